"""Reductions.  Three primitives for each kind (over the last axis, over all others, over everything); the rest is made
of them by rearranging."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..array import describe
from ..dtype import HALVES, as_dtype, float32, is_float, kind
from ..errors import ShapeError
from ..op import Reduction
from ..tensor import Tensor
from .shape import astype, broadcast_to, normalize_axis, permute_dims, reshape

_OVER = ("row", "column", "all")


def _linear(name: str, over: str) -> Reduction:
    op: Reduction = Reduction(
        name,
        over,
        np.add,
        cuda="a + b",
        vjp=lambda g, like: broadcast_to(g, like[0][0]),
        jvp=lambda t: op(t),
    )
    return op


_sum = {over: _linear(f"sum_{over}", over) for over in _OVER}


def axes_of(axis: int | Sequence[int] | None, x: Tensor, name: str) -> tuple[int, ...]:
    """The axes to reduce, counted from the front, in order."""
    if axis is None:
        return tuple(range(x.ndim))
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    found = tuple(sorted(normalize_axis(int(k), x, name) for k in axes))
    if len(set(found)) != len(found):
        raise ShapeError(f"{name}() got an axis twice in {tuple(axes)} for {describe(x)}")
    return found


def reduce_by(primitives: dict[str, Any], x: Tensor, axes: tuple[int, ...], keepdims: bool) -> Tensor:
    """`x` reduced over `axes` by the primitive that fits, rearranged first where none does."""
    n = x.ndim
    kept = tuple(1 if k in axes else d for k, d in enumerate(x.shape))
    final = kept if keepdims else tuple(d for k, d in enumerate(x.shape) if k not in axes)
    if not axes:
        return x
    if len(axes) == n:
        y = primitives["all"](x)
    elif axes == (n - 1,):
        y = primitives["row"](x)
    elif axes == tuple(range(n - 1)):
        y = primitives["column"](x)
    else:
        rest = tuple(k for k in range(n) if k not in axes)
        inner = tuple(x.shape[k] for k in rest)
        if axes == tuple(range(len(axes))):
            y = primitives["column"](reshape(x, (-1 if x.size else 0, int(np.prod(inner)))))
        else:
            moved = x if axes == tuple(range(n - len(axes), n)) else permute_dims(x, (*rest, *axes))
            y = primitives["row"](reshape(moved, (*inner, int(np.prod([x.shape[k] for k in axes])))))
    return reshape(y, final)


def sum(x: Tensor, /, *, axis: int | Sequence[int] | None = None, dtype: Any = None, keepdims: bool = False) -> Tensor:
    """The sum over `axis` (all axes by default).  Integers and bools add up in int64, half types in float32."""
    axes = axes_of(axis, x, "sum")
    target = as_dtype(dtype) if dtype is not None else x.dtype if is_float(x.dtype) else np.dtype(np.int64)
    wide = float32 if target in HALVES else target
    if kind(x.dtype) == 1 and dtype is None and x.dtype == np.dtype(np.uint64):
        target = wide = x.dtype
    return astype(reduce_by(_sum, astype(x, wide), axes, keepdims), target)
