"""Making tensors of what users have: numbers, lists, NumPy arrays, other libraries' arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from .array import Array
from .devices import Device, default_device
from .devices import device as find_device
from .dtype import DEFAULT_FLOAT, DEFAULT_INT, as_dtype
from .errors import DataError, DTypeError
from .provenance import here
from .tensor import Tensor


def asarray(obj: Any, /, *, dtype: Any = None, device: str | Device | None = None, copy: bool | None = None) -> Tensor:
    """A tensor with the values of `obj`: a tensor, NumPy array, number, nested list, or any DLPack exporter.

    Arrays keep their dtype, Python numbers become float32 and int64.  Memory is copied, unless `copy=False`: then the
    tensor borrows it, and a gradient that was to use it after someone has written to it is a MutationError.
    """
    if isinstance(obj, Tensor):
        out = obj if dtype is None else obj.to(dtype)
        return out if device is None else out.to(find_device(device))
    target = find_device(device) if device is not None else default_device()
    data = _numpy(obj)
    wanted = as_dtype(dtype) if dtype is not None else as_dtype(data.dtype)
    if copy is False:
        if data.dtype != wanted or not isinstance(obj, np.ndarray):
            raise DataError(f"copy=False needs a NumPy array of dtype {wanted}, got {type(obj).__name__} of {data.dtype}")
        return Tensor(target.from_numpy(data, copy=False, site=here(2)))
    if data.dtype != wanted:
        data = data.astype(wanted)
    return Tensor(target.from_numpy(data, site=here(2)))


def _numpy(obj: Any) -> np.ndarray[Any, Any]:
    if isinstance(obj, np.ndarray | np.generic):
        return np.asarray(obj)
    if hasattr(obj, "__dlpack__"):
        return np.from_dlpack(obj)
    try:
        data = np.asarray(_plain(obj))
    except ValueError as error:
        raise DataError(f"cannot make a tensor of this {type(obj).__name__}: {error}") from None
    if data.dtype == object:
        raise DTypeError(f"cannot make a tensor of this {type(obj).__name__}: its elements are not numbers")
    if isinstance(obj, list | tuple | float | int) and data.dtype == np.float64 and not _has_arrays(obj):
        return data.astype(DEFAULT_FLOAT)
    if data.dtype.kind in "iu" and isinstance(obj, list | tuple | int):
        return data if _has_arrays(obj) else data.astype(DEFAULT_INT)
    return data


def _plain(obj: Any) -> Any:
    """`obj` with tensors inside lists replaced by their values."""
    if isinstance(obj, Tensor):
        return obj.numpy()
    return [_plain(x) for x in obj] if isinstance(obj, list | tuple) else obj


def _has_arrays(obj: Any) -> bool:
    if isinstance(obj, list | tuple):
        return any(_has_arrays(x) for x in obj)
    return isinstance(obj, np.ndarray | np.generic | Tensor)


def as_operand(x: Any) -> Tensor:
    """`x` as a tensor, for an op that was given something else."""
    return x if isinstance(x, Tensor) else asarray(x)


def wrap(array: Array) -> Tensor:
    """`array` as an ordinary tensor."""
    return Tensor(array)
