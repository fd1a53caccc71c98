"""The stand-in's functions that reduce, add up and multiply."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from ._array import ndarray, owned, placed, reduced, values

_HALVES = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))


def clip(a: ndarray, a_min: Any, a_max: Any, out: Any = None) -> ndarray:
    low, high = (None if bound is None else values(bound) for bound in (a_min, a_max))
    with np.errstate(all="ignore"):
        return placed(np.clip(values(a), low, high), out)


def sum(a: ndarray, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
    return a.sum(axis, dtype, out, keepdims)


def prod(a: ndarray, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
    return a.prod(axis, dtype, out, keepdims)


def mean(a: ndarray, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
    return a.mean(axis, dtype, out, keepdims)


def max(a: ndarray, axis: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
    return a.max(axis, out, keepdims)


def min(a: ndarray, axis: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
    return a.min(axis, out, keepdims)


def argmax(a: ndarray, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
    return reduced(np.argmax, a, out, axis=axis, keepdims=keepdims)


def argmin(a: ndarray, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
    return reduced(np.argmin, a, out, axis=axis, keepdims=keepdims)


def any(a: ndarray, axis: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
    return a.any(axis, out, keepdims)


def all(a: ndarray, axis: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
    return a.all(axis, out, keepdims)


def count_nonzero(a: ndarray, axis: Any = None) -> ndarray:
    return owned(np.count_nonzero(values(a), axis))


def cumsum(a: ndarray, axis: Any = None, dtype: Any = None, out: Any = None) -> ndarray:
    with np.errstate(all="ignore"):
        return placed(np.cumsum(values(a), axis, dtype), out)


def cumprod(a: ndarray, axis: Any = None, dtype: Any = None, out: Any = None) -> ndarray:
    with np.errstate(all="ignore"):
        return placed(np.cumprod(values(a), axis, dtype), out)


def matmul(
    *args: Any,
    axes: Any = None,
    axis: Any = None,
    keepdims: bool = False,
    casting: str = "same_kind",
    dtype: Any = None,
    signature: Any = None,
    order: str = "K",
    out: Any = None,
) -> ndarray:
    """Products of matrices.  Half types are added up in float32; bfloat16 fails beyond two dimensions, as in CuPy."""
    if axes is not None or axis is not None or keepdims or signature is not None:
        raise NotImplementedError("the stand-in's matmul takes out= and dtype= alone")
    a, b, *rest = args
    out = rest[0] if rest else out
    if not isinstance(a, ndarray) or not isinstance(b, ndarray):
        raise TypeError(f"Unsupported type {type(b if isinstance(a, ndarray) else a)}")
    x, y = values(a), values(b)
    common = np.result_type(x, y) if dtype is None else np.dtype(dtype)
    if common == ml_dtypes.bfloat16 and (x.ndim > 2 or y.ndim > 2):
        raise TypeError(common, a.dtype, b.dtype)
    wide = np.dtype(np.float32) if common in _HALVES else common
    with np.errstate(all="ignore"):
        return placed(np.matmul(x.astype(wide), y.astype(wide)).astype(common), out, casting)


ndarray.__matmul__ = lambda self, other: matmul(self, other)  # type: ignore[attr-defined]


__all__ = [
    "clip",
    "sum",
    "prod",
    "mean",
    "max",
    "min",
    "argmax",
    "argmin",
    "any",
    "all",
    "count_nonzero",
    "cumsum",
    "cumprod",
    "matmul",
]
