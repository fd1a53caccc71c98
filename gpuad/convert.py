"""Making tensors of what users have: numbers, lists, NumPy arrays, other libraries' arrays."""

from __future__ import annotations

import copyreg
from copy import deepcopy
from typing import Any

import numpy as np

from .array import describe
from .devices import Device, default_device
from .devices import device as find_device
from .dtype import DEFAULT_FLOAT, DEFAULT_INT, as_dtype
from .errors import DataError, DTypeError
from .operators import operators
from .provenance import here
from .tensor import Tensor


def asarray(obj: Any, /, *, dtype: Any = None, device: str | Device | None = None, copy: bool | None = None) -> Tensor:
    """A tensor with the values of `obj`: a tensor, NumPy array, number, nested list, or any DLPack exporter.

    Arrays keep their dtype, Python numbers become float32 and int64.  Memory is copied, unless `copy=False`: then the
    tensor borrows it, and a gradient that was to use it after someone has written to it is a MutationError.
    A tensor is returned as it is where nothing changes, unless `copy=True`.
    """
    if isinstance(obj, Tensor):
        return _converted(obj, dtype, device, copy)
    if (gpu := _gpu_of(obj)) is not None:
        return _from_gpu(obj, gpu, dtype, device, copy)
    target = find_device(device) if device is not None else default_device()
    data = _numpy(obj, copy)
    if dtype is None and not isinstance(obj, np.ndarray | np.generic):
        data = _of_numbers(obj, data)
    wanted = as_dtype(dtype) if dtype is not None else as_dtype(data.dtype)
    if copy is False:
        if target.name.startswith("cuda"):
            raise DataError(f"copy=False cannot bring {type(obj).__name__} to {target.name}; leave copy=False out")
        if data.dtype != wanted or not (isinstance(obj, np.ndarray) or hasattr(obj, "__dlpack__")):
            raise DataError(
                f"copy=False needs a NumPy array or DLPack exporter of dtype {wanted}, got {type(obj).__name__} of"
                f" {data.dtype}\n  leave copy=False out"
            )
        return Tensor(target.from_numpy(data, copy=False, site=here(2)))
    if data.dtype != wanted:
        data = data.astype(wanted)
    return Tensor(target.from_numpy(data, site=here(2)))


def _revived(cls: type[Tensor], values: np.ndarray[Any, Any], is_leaf: bool, name: str | None) -> Tensor:
    x = cls.__new__(cls)
    x.become(asarray(values))
    if is_leaf:
        x.requires_grad_()
        x.name = name
    return x


def reduced(x: Tensor) -> tuple[Any, ...]:
    """What pickle keeps of a tensor: its values, and whether it requires grad; on the default device again."""
    return _revived, (type(x), np.array(deepcopy(x).numpy()), x.is_leaf, x.name)


copyreg.pickle(Tensor, reduced)


def from_dlpack(x: Any, /, *, device: str | Device | None = None, copy: bool | None = None) -> Tensor:
    """A tensor over the memory of `x`, an array of any library that exports DLPack; where `x` is unless told otherwise.

    The memory is borrowed: operations on the tensor run at once, and a gradient that was to use it after someone has
    written to it is a MutationError.  `copy=True` gives the tensor memory of its own.
    """
    if not hasattr(x, "__dlpack__"):
        raise TypeError(
            f"from_dlpack() needs an object with __dlpack__, got {type(x).__name__}\n  use asarray() for it"
        )
    if (gpu := _gpu_of(x)) is not None:
        return _from_gpu(x, gpu, None, device, copy is True)
    data = _through_dlpack(x, copy)
    as_dtype(data.dtype)
    target = find_device("cpu" if device is None else device)
    return Tensor(target.from_numpy(data, copy=copy is True, site=here(2)))


CUDA = (2, 13)  # kDLCUDA and kDLCUDAManaged of DLPack


def _gpu_of(x: Any) -> int | None:
    """The number of the GPU that the array `x` lies on; None if it lies on none."""
    if isinstance(x, np.ndarray | np.generic | list | tuple | bool | int | float):
        return None
    if hasattr(x, "__dlpack_device__"):
        kind, index = x.__dlpack_device__()
        return int(index) if kind in CUDA else None
    if hasattr(x, "__cuda_array_interface__"):
        cupy: Any = find_device("cuda").xp
        return int(cupy.asarray(x).device.id)
    return None


def _from_gpu(x: Any, gpu: int, dtype: Any, device: str | Device | None, copy: bool | None) -> Tensor:
    """A tensor with the values of `x`, an array on the GPU of that number: over its memory, with `copy=False`."""
    home: Any = find_device(f"cuda:{gpu}")
    array = home.import_array(x, copy=copy is not False, site=here(3))
    as_dtype(array.dtype)
    return _converted(Tensor(array), dtype, home if device is None else device, False if copy is False else None)


def _converted(x: Tensor, dtype: Any, device: str | Device | None, copy: bool | None) -> Tensor:
    """The tensor `x` as another dtype and on another device, differentiably."""
    out = x if dtype is None else x.to(as_dtype(dtype))
    if device is not None and find_device(device) is not x.device:
        out = out.to(find_device(device))
    if copy is False and out is not x:
        raise DataError(f"copy=False cannot make another dtype or device of {describe(x)}\n  leave copy=False out")
    if copy and out is x:
        copied: Tensor = operators.copy(x)
        return copied
    return out


def _numpy(obj: Any, copy: bool | None = None) -> np.ndarray[Any, Any]:
    """The values of `obj`, which is no tensor: its own memory where it is an array."""
    if isinstance(obj, np.ma.MaskedArray):
        raise DataError("a masked array would lose its mask\n  pass a.data and a.mask, or a.filled(value)")
    if isinstance(obj, np.ndarray | np.generic):
        return np.asarray(obj)
    if hasattr(obj, "__dlpack__"):
        return _through_dlpack(obj, copy)
    try:
        data = np.asarray(_plain(obj))
    except ValueError as error:
        raise DataError(f"cannot make a tensor of this {type(obj).__name__}: {error}") from None
    if data.dtype == object:
        raise DTypeError(f"cannot make a tensor of this {type(obj).__name__}: its elements are not numbers")
    return data


def _of_numbers(obj: Any, data: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """`data` as float32 or int64, where `obj` is made of Python numbers alone."""
    if not isinstance(obj, list | tuple | float | int) or _has_arrays(obj):
        return data
    if data.dtype == np.float64:
        return data.astype(DEFAULT_FLOAT)
    return data.astype(DEFAULT_INT) if data.dtype.kind in "iu" else data


def _through_dlpack(x: Any, copy: bool | None) -> np.ndarray[Any, Any]:
    """The memory of `x` as a NumPy array; only with `copy=False` is it certain to be that of `x` itself."""
    try:
        return np.from_dlpack(x, copy=False) if copy is False else np.from_dlpack(x)
    except (BufferError, RuntimeError) as error:
        raise BufferError(f"this {type(x).__name__} cannot be read through DLPack: {error}") from error


def _plain(obj: Any) -> Any:
    """`obj` with tensors inside lists replaced by their values."""
    if isinstance(obj, Tensor):
        return obj.numpy()
    return [_plain(x) for x in obj] if isinstance(obj, list | tuple) else obj


def _has_arrays(obj: Any) -> bool:
    if isinstance(obj, list | tuple):
        return any(_has_arrays(x) for x in obj)
    return isinstance(obj, np.ndarray | np.generic | Tensor)


def as_operand(x: Any, beside: Any = ()) -> Tensor:
    """`x` as a tensor, for an op that was given something else: a NumPy scalar goes where the tensors beside it are."""
    if isinstance(x, Tensor):
        return x
    devices = [y.device for y in beside if isinstance(y, Tensor)] if isinstance(x, np.generic) else []
    return asarray(x, device=devices[0] if devices else None)
