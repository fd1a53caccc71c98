"""Order: sorting, and where the largest and smallest elements are.  NaN counts as larger than everything."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..array import Shape, describe
from ..convert import as_operand
from ..dtype import DType, compute_dtype, int64
from ..errors import ShapeError
from ..op import Opaque
from ..tensor import Tensor
from .shape import astype, normalize_axis


def _comparable(x: Tensor) -> Tensor:
    """`x` in a dtype that array libraries can put in order."""
    return astype(x, compute_dtype(x.dtype))


def _order(xp: Any, x: Any, axis: int, descending: bool) -> Any:
    if not descending:
        return xp.argsort(x, axis=axis, kind="stable").astype(int64, copy=False)
    # From the back, so that equal elements keep their order when the result is turned around.
    backwards = xp.flip(xp.argsort(xp.flip(x, axis), axis=axis, kind="stable"), axis)
    return xp.ascontiguousarray(x.shape[axis] - 1 - backwards).astype(int64, copy=False)


def _sorted(xp: Any, x: Any, axis: int, descending: bool) -> Any:
    indices = _order(xp, x, axis, descending)
    return xp.take_along_axis(x, indices, axis), indices


_arrange: Opaque = Opaque(
    "arrange",
    ("x", "indices"),
    infer=lambda x, indices, axis: (x.shape, x.dtype),
    forward=lambda xp, x, indices, axis: xp.take_along_axis(x, indices, axis),
    params=("axis",),
    vjp=(lambda g, indices, axis: _arrange_back(g, indices, axis), None),
    jvp=(lambda t, indices, axis: _arrange(t, indices, axis=axis), None),
    doc="The elements in the order of the permutations `indices` along `axis`.",
)


def _arrange_back(g: Tensor, indices: Tensor, axis: int) -> Tensor:
    """The elements of `g` back where the permutations `indices` took them from."""
    result: Tensor = _arrange(g, _argsort(indices, axis=axis, descending=False), axis=axis)
    return result


_sort = Opaque(
    "sort",
    "x",
    outputs=("values", "indices"),
    infer=lambda x, axis, descending: [(x.shape, x.dtype), (x.shape, int64)],
    forward=_sorted,
    params=("axis", "descending"),
    vjp=(lambda g, indices, axis: _arrange_back(g[0], indices, axis),),
    jvp=(lambda t, indices, axis: [_arrange(t, indices, axis=axis), None],),
)
_sort.differentiable = [True, False]
_argsort = Opaque(
    "argsort",
    "x",
    infer=lambda x, axis, descending: (x.shape, int64),
    forward=_order,
    params=("axis", "descending"),
)


def sort(x: Any, /, *, axis: int = -1, descending: bool = False, stable: bool = True) -> Tensor:
    """The elements of `x` in order along `axis`: NaNs last, or first if `descending`.

    Equal elements keep their order, whatever `stable` says; it matters for where gradients go.
    """
    x = as_operand(x)
    values, _ = _sort(_comparable(x), axis=normalize_axis(axis, x, "sort"), descending=bool(descending))
    return astype(values, x.dtype)


def argsort(x: Any, /, *, axis: int = -1, descending: bool = False, stable: bool = True) -> Tensor:
    """The indexes (int64) that put `x` in order along `axis`, as `sort` does."""
    x = as_operand(x)
    indices: Tensor = _argsort(_comparable(x), axis=normalize_axis(axis, x, "argsort"), descending=bool(descending))
    return indices


def _reduced(x: Any, axis: int | None, keepdims: bool) -> tuple[Shape, DType]:
    kept = [1 if axis is None or k == axis else d for k, d in enumerate(x.shape)]
    return tuple(kept if keepdims else [d for k, d in enumerate(kept) if axis is not None and k != axis]), int64


def _position(name: str) -> Opaque:
    def forward(xp: Any, x: Any, axis: int | None, keepdims: bool) -> Any:
        choose = getattr(xp, name)
        place = xp.asarray(choose(x, axis=axis, keepdims=keepdims), dtype=np.int64)
        if xp is np or x.dtype.kind != "f":
            return place
        lost = xp.isnan(x)  # CuPy does not promise the first of several
        return xp.where(lost.any(axis=axis, keepdims=keepdims), xp.argmax(lost, axis=axis, keepdims=keepdims), place)

    return Opaque(name, "x", infer=_reduced, forward=forward, params=("axis", "keepdims"))


_argmax, _argmin = _position("argmax"), _position("argmin")


def _find(op: Opaque, x: Any, axis: int | None, keepdims: bool) -> Tensor:
    x = as_operand(x)
    along = None if axis is None else normalize_axis(axis, x, op.name)
    if (x.size if along is None else x.shape[along]) == 0:
        where = "any axis" if along is None else f"axis {axis}"
        raise ShapeError(f"{op.name}() has nothing to choose from along {where} of {describe(x)}")
    found: Tensor = op(_comparable(x), axis=along, keepdims=bool(keepdims))
    return found


def argmax(x: Any, /, *, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """The index (int64) of the largest element along `axis`, or in all of `x` flattened; the first one of several.

    A NaN is the largest.
    """
    return _find(_argmax, x, axis, keepdims)


def argmin(x: Any, /, *, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """The index (int64) of the smallest element along `axis`, or in all of `x` flattened; the first one of several.

    A NaN is found first, as by `min`.
    """
    return _find(_argmin, x, axis, keepdims)


__all__ = ["argmax", "argmin", "argsort", "sort"]
