"""Reductions.  Three primitives for each kind (over the last axis, over all others, over everything); the rest is made
of them by rearranging."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..array import describe
from ..convert import as_operand
from ..dtype import bool_, compute_dtype, float32, is_float
from ..errors import ShapeError
from ..op import Composite, Elementwise, Reduction
from ..tensor import Tensor
from .compare import equal, isfinite, not_equal, where
from .cumulative import accumulated_dtype, product_of_others
from .elementwise import exp, log
from .shape import astype, broadcast_to, normalize_axis, permute_dims, reshape, same

_OVER = ("row", "column", "all")

# --- primitives -------------------------------------------------------------------------------


def _linear(over: str) -> Reduction:
    op: Reduction = Reduction(
        f"sum_{over}",
        over,
        np.add,
        cuda="a + b",
        vjp=lambda g, like: broadcast_to(g, like[0][0]),
        jvp=lambda t: op(t),
    )
    return op


def _extreme(name: str, over: str, ufunc: np.ufunc, cuda: str) -> Reduction:
    """max or min.  Ties share evenly; where the result is NaN nothing ties, and 0 / 0 makes the derivative NaN too."""
    total = _sum[over]

    def pull(g: Tensor, x: Tensor, y: Tensor) -> Tensor:
        ties = equal(x, y)
        result: Tensor = where(ties, g, 0) / total(astype(ties, g.dtype))
        return result

    def push(t: Tensor, x: Tensor, y: Tensor) -> Tensor:
        ties = equal(x, y)
        result: Tensor = total(where(ties, t, 0)) / total(astype(ties, t.dtype))
        return result

    return Reduction(f"{name}_{over}", over, ufunc, cuda=cuda, vjp=pull, jvp=push)


def _multiplying(over: str) -> Reduction:
    def others(x: Tensor) -> Tensor:
        if over == "row":
            return product_of_others(x, x.ndim - 1)
        cols = x.shape[-1] if over == "column" else 1
        return reshape(product_of_others(reshape(x, (x.size // cols, cols)), 0), x.shape)

    return Reduction(
        f"prod_{over}",
        over,
        np.multiply,
        cuda="a * b",
        vjp=lambda g, x: g * others(x),
        jvp=lambda t, x: _sum[over](t * others(x)),
    )


def _logical(name: str, over: str, ufunc: np.ufunc, cuda: str) -> Reduction:
    return Reduction(f"{name}_{over}", over, ufunc, cuda=cuda, vjp=None, jvp=None)


_sum = {over: _linear(over) for over in _OVER}
_prod = {over: _multiplying(over) for over in _OVER}
_max = {over: _extreme("max", over, np.maximum, "(a > b) | (a != a) ? a : b") for over in _OVER}
_min = {over: _extreme("min", over, np.minimum, "(a < b) | (a != a) ? a : b") for over in _OVER}
_any = {over: _logical("any", over, np.logical_or, "a | b") for over in _OVER}
_all = {over: _logical("all", over, np.logical_and, "a & b") for over in _OVER}

# --- axes -------------------------------------------------------------------------------------

Axes = int | Sequence[int] | None


def axes_of(axis: Axes, x: Tensor, name: str) -> tuple[int, ...]:
    """The axes to reduce, counted from the front, in order."""
    if axis is None:
        return tuple(range(x.ndim))
    axes = tuple(axis) if isinstance(axis, Sequence) else (axis,)
    found = tuple(sorted(normalize_axis(operator.index(k), x, name) for k in axes))
    if len(set(found)) != len(found):
        raise ShapeError(f"{name}() got an axis twice in {tuple(axes)} for {describe(x)}")
    return found


def _count(x: Tensor, axes: tuple[int, ...]) -> int:
    """How many elements each result is made of."""
    return math.prod(x.shape[k] for k in axes)


def reduce_by(primitives: dict[str, Any], x: Tensor, axes: tuple[int, ...], keepdims: bool) -> Tensor:
    """`x` reduced over `axes` by the primitive that fits, rearranged first where none does."""
    if not axes:
        return same(x)
    last = x.ndim - 1
    if axes == (last,) and keepdims:  # as the primitives have it
        row: Tensor = primitives["row"](x)
        return row
    if len(axes) == last and last not in axes and x.size and not keepdims:
        column: Tensor = primitives["column"](x)
        return column
    rest = tuple(k for k in range(x.ndim) if k not in axes)
    count, inner = _count(x, axes), tuple(x.shape[k] for k in rest)
    if not rest:
        y = primitives["all"](x)
    elif axes == tuple(range(len(axes))) and x.size:
        y = primitives["column"](x if len(rest) == 1 else reshape(x, (count, math.prod(inner))))
    else:
        moved = permute_dims(x, (*rest, *axes))
        y = primitives["row"](moved if len(axes) == 1 else reshape(moved, (*inner, count)))
    return reshape(y, tuple(1 if k in axes else d for k, d in enumerate(x.shape)) if keepdims else inner)


# --- sums and products ------------------------------------------------------------------------


def sum(x: Any, /, *, axis: Axes = None, dtype: Any = None, keepdims: bool = False) -> Tensor:
    """The sum over `axis` (all axes by default).

    Integers and bools add up in int64, unsigned ones in uint64, half types in float32 (and are rounded at the end).
    """
    x = as_operand(x)
    axes, target = axes_of(axis, x, "sum"), accumulated_dtype(x, dtype, "sum")
    return astype(reduce_by(_sum, astype(x, compute_dtype(target)), axes, keepdims), target)


def prod(x: Any, /, *, axis: Axes = None, dtype: Any = None, keepdims: bool = False) -> Tensor:
    """The product over `axis` (all axes by default), in the dtypes of `sum`.  Derivatives are right at zeros."""
    x = as_operand(x)
    axes, target = axes_of(axis, x, "prod"), accumulated_dtype(x, dtype, "prod")
    return astype(reduce_by(_prod, astype(x, compute_dtype(target)), axes, keepdims), target)


def count_nonzero(x: Any, /, *, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """How many elements (int64) along `axis` are not 0."""
    x = _truth(x)
    return astype(reduce_by(_sum, astype(x, np.int64), axes_of(axis, x, "count_nonzero"), keepdims), np.int64)


# --- statistics -------------------------------------------------------------------------------


def _wide(x: Tensor) -> tuple[Tensor, Any]:
    """`x` in the dtype its mean is computed in, and the dtype of the result."""
    target = x.dtype if is_float(x.dtype) else float32
    return astype(x, compute_dtype(target)), target


def _inverse(n: float) -> float:
    """1 / n; infinite, so that 0 * it is NaN, where there is nothing to divide by."""
    return 1 / n if n > 0 else math.inf


def _mean(x: Tensor, axes: tuple[int, ...], keepdims: bool) -> Tensor:
    return reduce_by(_sum, x, axes, keepdims) * _inverse(_count(x, axes))


def _variance(x: Tensor, axes: tuple[int, ...], correction: float, keepdims: bool) -> Tensor:
    """In two passes: what is squared has the mean taken off, so that nothing cancels."""
    d = x - _mean(x, axes, True)
    return reduce_by(_sum, d * d, axes, keepdims) * _inverse(_count(x, axes) - correction)


def mean(x: Any, /, *, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """The mean over `axis` (all axes by default): float32 for integers, NaN where there are no elements."""
    x = as_operand(x)
    wide, target = _wide(x)
    return astype(_mean(wide, axes_of(axis, x, "mean"), keepdims), target)


def var(x: Any, /, *, axis: Axes = None, correction: float = 0.0, keepdims: bool = False) -> Tensor:
    """The variance over `axis`: the sum of squared distances from the mean, over their number less `correction`."""
    x = as_operand(x)
    wide, target = _wide(x)
    return astype(_variance(wide, axes_of(axis, x, "var"), correction, keepdims), target)


def std(x: Any, /, *, axis: Axes = None, correction: float = 0.0, keepdims: bool = False) -> Tensor:
    """The standard deviation over `axis`: the root of `var`.  Its gradient is 0 where all elements are equal."""
    x = as_operand(x)
    wide, target = _wide(x)
    return astype(_deviation(_variance(wide, axes_of(axis, x, "std"), correction, keepdims)), target)


def _deviation_rule(t: Tensor, y: Tensor) -> Tensor:
    constant = equal(y, 0)
    result: Tensor = where(constant, 0, t / (2 * where(constant, 1, y)))
    return result


_deviation = Elementwise(
    "std",
    "x",
    numpy=np.sqrt,
    cuda="sqrt(x)",
    diff=(_deviation_rule,),
    dtypes="float",
    cost=4,
    doc="The root of a variance; at 0 its derivative is 0.",
)

# --- extremes ---------------------------------------------------------------------------------


def _choose(primitives: dict[str, Reduction], x: Any, axis: Axes, keepdims: bool, name: str) -> Tensor:
    x = as_operand(x)
    axes = axes_of(axis, x, name)
    for k in axes:
        if x.shape[k] == 0:
            raise ShapeError(f"{name}() has nothing to choose from along axis {k} of {describe(x)}")
    return astype(reduce_by(primitives, astype(x, compute_dtype(x.dtype)), axes, keepdims), x.dtype)


def max(x: Any, /, *, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """The largest element over `axis` (all axes by default), NaN if there is one.  Equal ones share the gradient."""
    return _choose(_max, x, axis, keepdims, "max")


def min(x: Any, /, *, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """The smallest element over `axis` (all axes by default), NaN if there is one.  Equal ones share the gradient."""
    return _choose(_min, x, axis, keepdims, "min")


# --- logsumexp --------------------------------------------------------------------------------


def _logsumexp_forward(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    top = max(x, axis=axes, keepdims=True)
    top = where(isfinite(top), top, 0)  # inf - inf is no distance
    result: Tensor = log(sum(exp(x - top), axis=axes, keepdims=True)) + top
    return result


def _share(x: Tensor, y: Tensor) -> Tensor:
    """How much of the sum each element is: the softmax; 0 where all of them are -inf."""
    result: Tensor = exp(x - where(equal(y, -math.inf), 0, y))
    return result


_logsumexp = Composite(
    "logsumexp",
    "x",
    forward=_logsumexp_forward,
    params=("axes",),
    vjp=(lambda g, x, y: g * _share(x, y),),
    jvp=(lambda t, x, y, axes: sum(t * _share(x, y), axis=axes, keepdims=True),),
)


def logsumexp(x: Any, /, *, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """The logarithm of the sum of exp(x) over `axis` (all axes by default), without overflow; -inf of only -inf."""
    x = as_operand(x)
    axes = axes_of(axis, x, "logsumexp")
    wide, target = _wide(x)
    if _count(x, axes) == 0:
        return astype(log(sum(wide, axis=axes, keepdims=keepdims)), target)  # of 0
    y = _logsumexp(wide, axes=axes) if axes else wide
    if not keepdims:
        y = reshape(y, tuple(d for k, d in enumerate(x.shape) if k not in axes))
    return astype(y, target)


# --- truth ------------------------------------------------------------------------------------


def _truth(x: Any) -> Tensor:
    """Which elements of `x` are not 0."""
    given = as_operand(x)
    return given if given.dtype == bool_ else not_equal(given, 0)


def any(x: Any, /, *, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """True where an element over `axis` (all axes by default) is not 0.  NaN is not 0."""
    x = _truth(x)
    return reduce_by(_any, x, axes_of(axis, x, "any"), keepdims)


def all(x: Any, /, *, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """True where every element over `axis` (all axes by default) is not 0.  NaN is not 0."""
    x = _truth(x)
    return reduce_by(_all, x, axes_of(axis, x, "all"), keepdims)


__all__ = ["all", "any", "count_nonzero", "logsumexp", "max", "mean", "min", "prod", "std", "sum", "var"]
