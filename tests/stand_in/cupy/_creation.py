"""The stand-in's functions that make arrays."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np

from ._array import mark_capsule, ndarray, owned, values
from .cuda.device import Device
from .cuda.memory import MemoryPointer, UnownedMemory


def empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return ndarray(shape, dtype, order=order)


def full(shape: Any, fill_value: Any, dtype: Any = None, order: str = "C") -> ndarray:
    if dtype is None:
        dtype = fill_value.dtype if isinstance(fill_value, ndarray) else np.array(fill_value).dtype
    made = empty(shape, dtype, order)
    made[...] = fill_value
    return made


def zeros(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return full(shape, 0, dtype, order)


def ones(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return full(shape, 1, dtype, order)


def empty_like(prototype: Any, dtype: Any = None, order: str = "K", subok: Any = None, shape: Any = None) -> ndarray:
    shape = prototype.shape if shape is None else shape
    columns = order == "F" or (order in "KA" and values(prototype).flags.fnc and len(prototype.shape) == len(shape))
    return empty(shape, prototype.dtype if dtype is None else dtype, "F" if columns else "C")


def zeros_like(a: Any, dtype: Any = None, order: str = "K", subok: Any = None, shape: Any = None) -> ndarray:
    made = empty_like(a, dtype, order, subok, shape)
    made.fill(0)
    return made


def ones_like(a: Any, dtype: Any = None, order: str = "K", subok: Any = None, shape: Any = None) -> ndarray:
    made = empty_like(a, dtype, order, subok, shape)
    made.fill(1)
    return made


def array(
    obj: Any,
    dtype: Any = None,
    copy: Any = True,
    order: str = "K",
    subok: bool = False,
    ndmin: int = 0,
    *,
    blocking: bool = False,
) -> ndarray:
    if not isinstance(obj, ndarray) and hasattr(obj, "__cuda_array_interface__"):
        obj = _through_interface(obj)
    if isinstance(obj, ndarray):
        same = dtype is None or obj.dtype == np.dtype(dtype)
        laid = order in "KA" or getattr(obj.flags, f"{order.lower()}_contiguous")
        if same and laid and obj.ndim >= ndmin and copy is not True:
            return obj
        if copy is False:
            raise ValueError("Unable to avoid copy while creating an array as requested.")
        host = obj._host
    else:
        if copy is False:
            raise ValueError("Creating a CuPy array from host memory always needs a copy.")
        if isinstance(obj, (list, tuple)) and any(isinstance(x, ndarray) for x in obj):
            obj = [values(x) for x in obj]
        host = np.asarray(obj)
    if host.dtype.kind not in "biufcV" or (host.dtype.kind == "V" and host.dtype != ml_dtypes.bfloat16):
        raise ValueError(f"Unsupported dtype {host.dtype}")
    with np.errstate(all="ignore"):
        return owned(np.array(host, dtype=dtype, order=order, ndmin=ndmin))


def asarray(a: Any, dtype: Any = None, order: Any = None, *, copy: Any = None, blocking: bool = False) -> ndarray:
    return array(a, dtype, copy, order or "K", blocking=blocking)


def ascontiguousarray(a: Any, dtype: Any = None) -> ndarray:
    return array(a, dtype, None, "C", ndmin=1)


def asnumpy(a: Any, stream: Any = None, order: str = "C", out: Any = None, *, blocking: bool = True) -> np.ndarray:
    if isinstance(a, ndarray):
        return a.get(stream, order, out)
    if out is not None:
        out[...] = a
        return out
    return np.asarray(a, order=order)


def arange(start: Any, stop: Any = None, step: Any = 1, dtype: Any = None) -> ndarray:
    if isinstance(start, ndarray):
        raise ValueError("the stand-in's arange takes numbers")
    first, last = (0, start) if stop is None else (start, stop)
    return owned(np.arange(first, last, step, dtype=dtype))


def linspace(
    start: Any, stop: Any, num: int = 50, endpoint: bool = True, retstep: bool = False, dtype: Any = None, axis: int = 0
) -> ndarray:
    if retstep:
        raise NotImplementedError("the stand-in's linspace gives no step")
    return owned(np.linspace(start, stop, num, endpoint=endpoint, dtype=dtype, axis=axis))


def eye(N: int, M: Any = None, k: int = 0, dtype: Any = float, order: str = "C") -> ndarray:
    return owned(np.eye(N, M, k, dtype, order))


def tri(N: int, M: Any = None, k: int = 0, dtype: Any = float) -> ndarray:
    return owned(np.tri(N, M, k, dtype))


def _through_interface(obj: Any) -> ndarray:
    """What `obj` shows through `__cuda_array_interface__`, without a copy."""
    shown = obj.__cuda_array_interface__
    made = np.dtype(shown["typestr"])
    last = shown["strides"] or [0] * len(shown["shape"])
    span = sum(max(n - 1, 0) * s for n, s in zip(shown["shape"], last, strict=True)) + made.itemsize
    nbytes = span if shown["strides"] else math.prod(shown["shape"]) * made.itemsize
    device = obj.device.id if isinstance(getattr(obj, "device", None), Device) else -1
    pointer = MemoryPointer(UnownedMemory(shown["data"][0], nbytes, obj, device), 0)
    return ndarray(shown["shape"], made, pointer, shown["strides"])


class _OnHost:
    """A DLPack capsule as NumPy takes it."""

    def __init__(self, capsule: Any) -> None:
        self.capsule = capsule

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self.capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


def from_dlpack(array: Any, *, device: Any = None, copy: Any = None) -> ndarray:
    kind, index = array.__dlpack_device__()
    if kind != 2:
        raise BufferError("the stand-in imports memory of its devices alone")
    capsule = array.__dlpack__(stream=1)
    half = getattr(array, "dtype", None) == ml_dtypes.bfloat16
    mark_capsule(capsule, 1, 0, 1 if half else None)
    host = np.from_dlpack(_OnHost(capsule))
    host = host.view(ml_dtypes.bfloat16) if half else host
    made = ndarray.__new__(ndarray)
    made.base, made.data = None, MemoryPointer(UnownedMemory(host.ctypes.data, host.nbytes, host, index), 0)
    made._host = host
    return made


__all__ = [
    "empty",
    "full",
    "zeros",
    "ones",
    "empty_like",
    "zeros_like",
    "ones_like",
    "array",
    "asarray",
    "ascontiguousarray",
    "asnumpy",
    "arange",
    "linspace",
    "eye",
    "tri",
    "from_dlpack",
]
