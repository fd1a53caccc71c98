"""The stand-in's functions that find, take and sort elements.

Indexes out of range are wrapped around, not refused, as on a GPU.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from ._array import SCALARS, ndarray, owned, placed, values


def _wrapped(indices: Any, length: int) -> np.ndarray:
    index = values(indices) if isinstance(indices, (ndarray, *SCALARS)) else np.asarray(indices)
    if np.asarray(index).dtype.kind not in "biu":
        raise IndexError("arrays used as indices must be of integer type")
    return np.asarray(index).astype(np.int64) % max(length, 1)


def take(a: ndarray, indices: Any, axis: Any = None, out: Any = None) -> ndarray:
    host = values(a)
    index = _wrapped(indices, host.size if axis is None else host.shape[axis])
    return placed(np.take(host, index, axis), out)


def take_along_axis(a: ndarray, indices: ndarray, axis: Any) -> ndarray:
    host = values(a)
    index = _wrapped(indices, host.size if axis is None else host.shape[axis])
    return owned(np.take_along_axis(host, index, axis))


def put(a: ndarray, ind: Any, v: Any, mode: str = "wrap") -> None:
    if not isinstance(a, ndarray):
        raise TypeError(f"`a` must be cupy.ndarray (actual: {type(a)})")
    if mode not in ("raise", "wrap", "clip"):
        raise TypeError(f"clipmode not understood: {mode}")
    index, value = (values(x) if isinstance(x, ndarray) else np.asarray(x) for x in (ind, v))
    np.put(values(a), index, value, mode)


def nonzero(a: ndarray) -> tuple[ndarray, ...]:
    if a.ndim == 0:
        raise ValueError("Calling nonzero on 0d arrays is not allowed. Use cp.atleast_1d(scalar).nonzero() instead.")
    return tuple([owned(index) for index in np.nonzero(values(a))])


def flatnonzero(a: ndarray) -> ndarray:
    return owned(np.flatnonzero(values(a)))


def where(condition: Any, x: Any = None, y: Any = None) -> Any:
    if x is None or y is None:
        return nonzero(condition)
    return owned(np.where(values(condition), values(x), values(y)))


def _sortable(a: ndarray, kind: Any) -> np.ndarray:
    if kind not in (None, "stable"):
        raise ValueError("kind can only be None or 'stable'")
    if a.ndim == 0:
        raise np.exceptions.AxisError("Sorting arrays with the rank of zero is not supported")
    if a.dtype == ml_dtypes.bfloat16:
        raise NotImplementedError("Sorting arrays with dtype 'bfloat16' is not supported")
    return values(a)


def sort(a: ndarray, axis: Any = -1, kind: Any = None) -> ndarray:
    return owned(np.sort(_sortable(a, kind), axis, kind="stable"))


def argsort(a: ndarray, axis: Any = -1, kind: Any = None) -> ndarray:
    return owned(np.argsort(_sortable(a, kind), axis, kind="stable"))


def lexsort(keys: ndarray) -> ndarray:
    if not isinstance(keys, ndarray):
        raise TypeError("lexsort: keys must be a cupy.ndarray")
    return owned(np.lexsort(_sortable(keys, None)))


def searchsorted(a: ndarray, v: ndarray, side: str = "left", sorter: Any = None) -> ndarray:
    if not isinstance(a, ndarray):
        raise NotImplementedError("Only int or ndarray are supported for a")
    if not isinstance(v, ndarray):
        raise NotImplementedError("Only int or ndarray are supported for v")
    order = None if sorter is None else values(sorter)
    return owned(np.searchsorted(values(a), values(v), side, order))


def unique(
    ar: ndarray,
    return_index: bool = False,
    return_inverse: bool = False,
    return_counts: bool = False,
    axis: Any = None,
    *,
    equal_nan: bool = True,
) -> Any:
    found = np.unique(values(ar), return_index, return_inverse, return_counts, axis, equal_nan=equal_nan)
    return tuple([owned(part) for part in found]) if isinstance(found, tuple) else owned(found)


def bincount(x: ndarray, weights: Any = None, minlength: Any = None) -> ndarray:
    given = None if weights is None else values(weights)
    return owned(np.bincount(values(x), given, minlength or 0))


__all__ = [
    "take",
    "take_along_axis",
    "put",
    "nonzero",
    "flatnonzero",
    "where",
    "sort",
    "argsort",
    "lexsort",
    "searchsorted",
    "unique",
    "bincount",
]
