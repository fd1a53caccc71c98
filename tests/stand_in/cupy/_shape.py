"""The stand-in's functions that copy arrays and look at them in another shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ._array import ndarray, owned, placed, values, view_of


def copyto(dst: ndarray, src: Any, casting: str = "same_kind", where: Any = None) -> None:
    if not isinstance(dst, ndarray):
        raise TypeError(f"Argument 'dst' has incorrect type (expected ndarray, got {type(dst).__name__})")
    with np.errstate(all="ignore"):
        np.copyto(values(dst), values(src), casting=casting, where=True if where is None else values(where))


def may_share_memory(a: Any, b: Any, max_work: Any = None) -> bool:
    return np.may_share_memory(values(a), values(b))


def concatenate(
    tup: Sequence[ndarray], axis: Any = 0, out: Any = None, *, dtype: Any = None, casting: str = "same_kind"
) -> ndarray:
    if not all(isinstance(x, ndarray) for x in tup):
        raise TypeError("Only cupy arrays can be concatenated")
    return placed(np.concatenate([values(x) for x in tup], axis, dtype=dtype, casting=casting), out)


def stack(
    tup: Sequence[ndarray], axis: int = 0, out: Any = None, *, dtype: Any = None, casting: str = "same_kind"
) -> ndarray:
    return placed(np.stack([values(x) for x in tup], axis, dtype=dtype, casting=casting), out)


def broadcast_to(array: ndarray, shape: Any) -> ndarray:
    host = values(array)
    strides = np.broadcast_to(host, shape).strides  # NumPy's own view cannot be written; CuPy's can
    return view_of(array, np.lib.stride_tricks.as_strided(host, shape, strides))


def expand_dims(a: ndarray, axis: Any) -> ndarray:
    return view_of(a, np.expand_dims(values(a), axis))


def squeeze(a: ndarray, axis: Any = None) -> ndarray:
    return a.squeeze(axis)


def moveaxis(a: ndarray, source: Any, destination: Any) -> ndarray:
    return view_of(a, np.moveaxis(values(a), source, destination))


def swapaxes(a: ndarray, axis1: int, axis2: int) -> ndarray:
    return a.swapaxes(axis1, axis2)


def transpose(a: ndarray, axes: Any = None) -> ndarray:
    return view_of(a, values(a).transpose(axes))


def reshape(a: ndarray, newshape: Any, order: str = "C", *, copy: Any = None) -> ndarray:
    return a.reshape(newshape, order=order, copy=copy)


def ravel(a: ndarray, order: str = "C") -> ndarray:
    return a.ravel(order)


def flip(a: ndarray, axis: Any = None) -> ndarray:
    return view_of(a, np.flip(values(a), axis))


def roll(a: ndarray, shift: Any, axis: Any = None) -> ndarray:
    return owned(np.roll(values(a), shift, axis))


def repeat(a: ndarray, repeats: Any, axis: Any = None) -> ndarray:
    return owned(np.repeat(values(a), repeats, axis))


def tile(A: ndarray, reps: Any) -> ndarray:
    return owned(np.tile(values(A), reps))


__all__ = [
    "copyto",
    "may_share_memory",
    "concatenate",
    "stack",
    "broadcast_to",
    "expand_dims",
    "squeeze",
    "moveaxis",
    "swapaxes",
    "transpose",
    "reshape",
    "ravel",
    "flip",
    "roll",
    "repeat",
    "tile",
]
