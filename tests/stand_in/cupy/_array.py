"""The stand-in's `cupy.ndarray`: an array in guarded memory, which NumPy cannot read by itself.

It wraps a NumPy array and does not inherit from one, so that what is not offered here fails.
"""

from __future__ import annotations

import ctypes
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from .cuda import memory, runtime
from .cuda.device import Device
from .cuda.memory import MemoryPointer

SCALARS = (bool, int, float, np.generic)
_DLPACK_CUDA, _DLPACK_CPU, _DLPACK_BFLOAT = 2, 1, 4


class Flags:
    """How the elements of an array lie in memory."""

    def __init__(self, c_contiguous: bool, f_contiguous: bool, owndata: bool) -> None:
        self.c_contiguous, self.f_contiguous, self.owndata = c_contiguous, f_contiguous, owndata
        self.fnc = f_contiguous and not c_contiguous
        self.forc = f_contiguous or c_contiguous

    def __getitem__(self, name: str) -> bool:
        return {
            "C_CONTIGUOUS": self.c_contiguous,
            "F_CONTIGUOUS": self.f_contiguous,
            "OWNDATA": self.owndata,
        }[name]


class ndarray:
    """An array on a device: `shape` elements of `dtype` at `memptr`, or in fresh memory."""

    __array_priority__ = 100

    def __init__(
        self,
        shape: Any,
        dtype: Any = float,
        memptr: MemoryPointer | None = None,
        strides: Sequence[int] | None = None,
        order: str = "C",
    ) -> None:
        shape = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
        dtype = np.dtype(dtype)
        nbytes = math.prod(shape) * dtype.itemsize
        if strides is not None and memptr is None:
            raise ValueError("memptr is required if strides is given.")
        self.data = memory.alloc(nbytes) if memptr is None else memptr
        self.base: ndarray | None = None
        if strides is not None and nbytes:
            nbytes = sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + dtype.itemsize
        flat = memory._host_view(self.data, nbytes)
        self._host = np.ndarray(shape, dtype, flat, 0, strides, order if order in ("C", "F") else "C")

    # --- what it is -----------------------------------------------------------------------------

    shape = property(lambda self: self._host.shape)
    dtype = property(lambda self: self._host.dtype)
    strides = property(lambda self: self._host.strides)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    nbytes = property(lambda self: self._host.nbytes)
    itemsize = property(lambda self: self._host.itemsize)
    T = property(lambda self: self.transpose())

    @property
    def flags(self) -> Flags:
        known = self._host.flags
        return Flags(known.c_contiguous, known.f_contiguous, self.base is None)

    @property
    def device(self) -> Device:
        return self.data.device

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "descr": self.dtype.descr,
            "stream": 1,
            "version": 3,
            "strides": None if self._host.flags.c_contiguous else self.strides,
            "data": (self.data.ptr, False),
        }

    def __array__(self, dtype: Any = None) -> Any:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        import cupy

        function = getattr(cupy, ufunc.__name__, None)
        if function is None or method != "__call__":
            return NotImplemented
        if "out" in kwargs:
            (kwargs["out"],) = kwargs["out"]
        return function(*inputs, **kwargs)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        import cupy

        function = getattr(cupy, func.__name__, None)
        if function is None or not all(issubclass(t, (ndarray, np.ndarray)) for t in types):
            return NotImplemented
        return function(*args, **kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        return _DLPACK_CUDA, self.data.device_id

    def __dlpack__(
        self, *, stream: Any = None, max_version: Any = None, dl_device: Any = None, copy: Any = None
    ) -> Any:
        half = self.dtype == ml_dtypes.bfloat16  # which NumPy cannot export
        capsule = (self._host.view(np.uint16) if half else self._host).__dlpack__()
        mark_capsule(capsule, _DLPACK_CUDA, self.data.device_id, _DLPACK_BFLOAT if half else None)
        return capsule

    def __repr__(self) -> str:
        return repr(self._host)

    def __str__(self) -> str:
        return str(self._host)

    def __len__(self) -> int:
        return len(self._host)

    def __iter__(self) -> Iterator[ndarray]:
        if self.ndim == 0:
            raise TypeError("iteration over a 0-d array")
        return (self[k] for k in range(len(self)))

    __hash__ = None  # type: ignore[assignment]

    # --- to the host and back ---------------------------------------------------------------------

    def get(self, stream: Any = None, order: str = "C", out: Any = None, blocking: bool = True) -> np.ndarray:
        if out is None:
            return np.array(self._host, order=order)
        if out.dtype != self.dtype or out.shape != self.shape:
            raise ValueError(f"Shape mismatch. Expected shape: {self.shape}, actual shape: {out.shape}")
        out[...] = self._host
        return out

    def set(self, arr: np.ndarray, stream: Any = None) -> None:
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if arr.dtype != self.dtype:
            raise TypeError(f"{arr.dtype} array cannot be set to {self.dtype} array")
        if arr.shape != self.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {arr.shape}")
        if not self.flags.forc:
            raise RuntimeError("Cannot set to non-contiguous array")
        self._host[...] = arr

    def item(self) -> Any:
        return self._host.item()

    def tolist(self) -> Any:
        return self._host.tolist()

    def __bool__(self) -> bool:
        return bool(self._host)

    def __int__(self) -> int:
        return int(self._host)

    def __float__(self) -> float:
        return float(self._host)

    def __index__(self) -> int:
        return operator.index(self._host)

    # --- views --------------------------------------------------------------------------------------

    def reshape(self, *shape: Any, order: str = "C", copy: Any = None) -> ndarray:
        shape = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
        return view_or_copy(self, self._host.reshape(shape, order=order, copy=copy))

    def view(self, dtype: Any = None, type: Any = None) -> ndarray:
        return view_of(self, self._host.view() if dtype is None else self._host.view(np.dtype(dtype)))

    def transpose(self, *axes: Any) -> ndarray:
        return view_of(self, self._host.transpose(*axes))

    def swapaxes(self, axis1: int, axis2: int) -> ndarray:
        return view_of(self, self._host.swapaxes(axis1, axis2))

    def squeeze(self, axis: Any = None) -> ndarray:
        return view_of(self, self._host.squeeze(axis))

    def ravel(self, order: str = "C") -> ndarray:
        return view_or_copy(self, self._host.ravel(order))

    def flatten(self, order: str = "C") -> ndarray:
        return owned(self._host.flatten(order))

    # --- copies -------------------------------------------------------------------------------------

    def astype(
        self, dtype: Any, order: str = "K", casting: Any = None, subok: Any = None, copy: bool = True
    ) -> ndarray:
        if not copy and self.dtype == np.dtype(dtype):
            return self
        with np.errstate(all="ignore"):
            return owned(self._host.astype(dtype, order=order))

    def copy(self, order: str = "C") -> ndarray:
        return owned(self._host.copy(order))

    def fill(self, value: Any) -> None:
        if isinstance(value, (ndarray, np.ndarray)):
            if value.shape != ():
                raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
            value = value.item()
        with np.errstate(all="ignore"):
            self._host[...] = np.asarray(value).astype(self.dtype)

    # --- indexing -----------------------------------------------------------------------------------

    def __getitem__(self, slices: Any) -> ndarray:
        key, advanced = self._key(slices)
        found = self._host[key]
        return owned(found) if advanced else view_of(self, found)

    def __setitem__(self, slices: Any, value: Any) -> None:
        key, advanced = self._key(slices)
        if isinstance(value, ndarray):
            value = values(value)
        elif isinstance(value, np.ndarray) and value.ndim:
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        with np.errstate(all="ignore"):
            if advanced:
                self._scatter(key, value)
            else:
                np.copyto(self._host[key], _without_leading_ones(value), casting="unsafe")

    def _scatter(self, key: Any, value: Any) -> None:
        """Assign where a place may be named twice: on a GPU any of the writes may be last; here the first is."""
        places = np.arange(self.size).reshape(self.shape)[key]
        spread = np.broadcast_to(np.asarray(value), places.shape).astype(self.dtype)
        flat = self._host.reshape(-1) if self._host.flags.c_contiguous else self._host.flatten()
        flat[places.reshape(-1)[::-1]] = spread.reshape(-1)[::-1]
        if not self._host.flags.c_contiguous:
            self._host[...] = flat.reshape(self.shape)

    def _key(self, slices: Any) -> tuple[tuple[Any, ...], bool]:
        """`slices` as NumPy takes them, indexes out of range wrapped around; are there arrays among them?"""
        parts = slices if isinstance(slices, tuple) else (slices,)
        key, advanced, taken = [], False, 0
        rest = sum(_axes(part) for part in parts)
        for part in parts:
            if part is Ellipsis:
                key.append(part)
                taken = self.ndim - rest + taken
            elif part is None or isinstance(part, slice):
                key.append(part)
                taken += part is not None
                rest -= part is not None
            elif not isinstance(part, (ndarray, np.ndarray, list, tuple, bool, np.bool_)):
                key.append(operator.index(part))  # a float fails
                taken, rest = taken + 1, rest - 1
            else:
                index = values(part) if isinstance(part, ndarray) else np.asarray(part)
                index = index.astype(np.int32) if isinstance(part, (list, tuple)) and not index.size else index
                if index.dtype.kind not in "biu":
                    raise IndexError(
                        f"arrays used as indices must be of integer or boolean type. (actual: {index.dtype.type})"
                    )
                advanced, width = True, _axes(part)
                if index.dtype.kind != "b":
                    length = self.shape[taken] if taken < self.ndim else 1
                    index = index.astype(np.int64) % max(length, 1)
                key.append(index)
                taken, rest = taken + width, rest - width
        if not advanced and not any(part is Ellipsis for part in key):
            key.append(Ellipsis)  # with which NumPy gives a view, not a scalar
        return tuple(key), advanced

    # --- reductions: always arrays --------------------------------------------------------------------

    def sum(self, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
        return reduced(np.sum, self, out, axis=axis, dtype=dtype, keepdims=keepdims)

    def prod(self, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
        return reduced(np.prod, self, out, axis=axis, dtype=dtype, keepdims=keepdims)

    def mean(self, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
        return reduced(np.mean, self, out, axis=axis, dtype=dtype, keepdims=keepdims)

    def min(self, axis: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
        return reduced(np.min, self, out, axis=axis, keepdims=keepdims)

    def max(self, axis: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
        return reduced(np.max, self, out, axis=axis, keepdims=keepdims)

    def any(self, axis: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
        return reduced(np.any, self, out, axis=axis, keepdims=keepdims)

    def all(self, axis: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
        return reduced(np.all, self, out, axis=axis, keepdims=keepdims)

    def argmax(self, axis: Any = None, out: Any = None, dtype: Any = None, keepdims: bool = False) -> ndarray:
        return reduced(np.argmax, self, out, axis=axis, keepdims=keepdims)

    def argmin(self, axis: Any = None, out: Any = None, dtype: Any = None, keepdims: bool = False) -> ndarray:
        return reduced(np.argmin, self, out, axis=axis, keepdims=keepdims)

    def take(self, indices: Any, axis: Any = None, out: Any = None) -> ndarray:
        import cupy

        return cupy.take(self, indices, axis, out)

    def argsort(self, axis: int = -1, kind: Any = None) -> ndarray:
        import cupy

        return cupy.argsort(self, axis, kind)

    def nonzero(self) -> tuple[ndarray, ...]:
        import cupy

        return cupy.nonzero(self)


def _axes(part: Any) -> int:
    """How many axes of an array a part of a key takes."""
    if part is None or part is Ellipsis:
        return 0
    if isinstance(part, (ndarray, np.ndarray)) and part.dtype == np.bool_:
        return part.ndim
    if isinstance(part, (bool, np.bool_)):
        return 0
    if isinstance(part, (list, tuple)):
        index = np.asarray(part)
        return index.ndim if index.dtype == np.bool_ else 1
    return 1


def _without_leading_ones(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        while value.ndim and value.shape[0] == 1:
            value = value[0]
    return value


# --- between arrays of the stand-in and of NumPy ------------------------------------------------------


def values(x: Any) -> Any:
    """What NumPy computes with for the operand `x`: an array of the current device, or a scalar."""
    if isinstance(x, ndarray):
        here = runtime.getDevice()
        if x.size and x.data.device_id != here:
            raise ValueError(
                f"Array device must be same as the current device: array device = {x.data.device_id} "
                f"while current = {here}"
            )
        return x._host
    if isinstance(x, SCALARS):
        return x
    raise TypeError(f"Unsupported type {type(x)}")


def view_of(x: ndarray, host: np.ndarray) -> ndarray:
    """An array over `host`, which looks at the memory of `x`."""
    made = ndarray.__new__(ndarray)
    made._host, made.base = host, x if x.base is None else x.base
    made.data = MemoryPointer(x.data.mem, host.ctypes.data - x.data.mem.ptr) if host.size else x.data
    return made


def owned(host: Any) -> ndarray:
    """A new array with the contents of `host`, and its order in memory."""
    host = np.asarray(host)
    made = ndarray(host.shape, host.dtype, order="F" if host.flags.fnc else "C")
    made._host[...] = host
    return made


def view_or_copy(x: ndarray, host: np.ndarray) -> ndarray:
    """An array over `host`, which NumPy has made of `x` with or without a copy."""
    return view_of(x, host) if np.may_share_memory(host, x._host) or not host.size else owned(host)


def reduced(function: Callable[..., Any], x: ndarray, out: ndarray | None, **params: Any) -> ndarray:
    """The result of a reduction, in `out` if given."""
    with np.errstate(all="ignore"):
        return placed(function(values(x), **params), out)


def placed(result: Any, out: ndarray | None, casting: str = "same_kind") -> ndarray:
    """`result` in `out`, or in an array of its own."""
    if out is None:
        return owned(result)
    if not isinstance(out, ndarray):
        raise TypeError(f"return arrays must be of ArrayType, got {type(out)}")
    if out.shape != np.shape(result):
        raise ValueError(f"Output shape mismatch. Expected: {np.shape(result)}, actual: {out.shape}")
    with np.errstate(all="ignore"):
        np.copyto(values(out), result, casting=casting)
    return out


def mark_capsule(capsule: Any, device_type: int, device_id: int, code: int | None) -> None:
    """Write into a DLPack capsule where its memory is, and the code of its dtype unless None."""
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    tensor = pointer(capsule, b"dltensor")
    ctypes.c_int32.from_address(tensor + 8).value = device_type
    ctypes.c_int32.from_address(tensor + 12).value = device_id
    if code is not None:
        ctypes.c_uint8.from_address(tensor + 20).value = code
