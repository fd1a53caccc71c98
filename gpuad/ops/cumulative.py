"""Running sums and products, and differences.

Products are differentiated without dividing, so that zeros need no care: the derivative of a running product is a
linear recurrence, whose own derivatives are recurrences again.
"""

from __future__ import annotations

from typing import Any

from ..array import describe
from ..convert import as_operand
from ..dtype import DEFAULT_INT, DType, as_dtype, bool_, compute_dtype, is_float, uint64
from ..errors import DTypeError, ShapeError
from ..op import Opaque
from ..tensor import Tensor
from .create import full
from .join import concat
from .shape import astype, normalize_axis

# --- primitives, along `axis` and, if `reverse`, from its end ---------------------------------------


def _same(x: Any, *_: Any, **__: Any) -> tuple[tuple[int, ...], DType]:
    return x.shape, x.dtype


def _scan(name: str) -> Any:
    """The forward of a running sum or product: `xp.cumsum` or `xp.cumprod`, from either end."""

    def forward(xp: Any, x: Any, axis: int, reverse: bool) -> Any:
        scan = getattr(xp, name)
        if not reverse:
            return scan(x, axis=axis, dtype=x.dtype)
        return xp.ascontiguousarray(xp.flip(scan(xp.flip(x, axis), axis=axis, dtype=x.dtype), axis))

    return forward


def _shift_forward(xp: Any, x: Any, axis: int, reverse: bool, fill: float) -> Any:
    y = xp.empty(x.shape, x.dtype)
    source, target = xp.moveaxis(x, axis, 0), xp.moveaxis(y, axis, 0)
    if reverse:
        source, target = source[::-1], target[::-1]
    target[:1] = fill
    target[1:] = source[:-1]
    return y


def _recur_forward(xp: Any, a: Any, b: Any, axis: int, reverse: bool) -> Any:
    y = xp.empty(b.shape, b.dtype)
    a, b, lines = (xp.moveaxis(v, axis, 0) for v in (a, b, y))
    if reverse:
        a, b, lines = a[::-1], b[::-1], lines[::-1]
    lines[:1] = b[:1]
    for k in range(1, len(lines)):
        lines[k] = a[k] * lines[k - 1] + b[k]
    return y


_running_sum: Opaque = Opaque(
    "cumulative_sum",
    "x",
    infer=_same,
    forward=_scan("cumsum"),
    params=("axis", "reverse"),
    vjp=(lambda g, axis, reverse: _running_sum(g, axis=axis, reverse=not reverse),),
    jvp=(lambda t, axis, reverse: _running_sum(t, axis=axis, reverse=reverse),),
)
_shift: Opaque = Opaque(
    "shift",
    "x",
    infer=_same,
    forward=_shift_forward,
    params=("axis", "reverse", "fill"),
    vjp=(lambda g, axis, reverse: _shift(g, axis=axis, reverse=not reverse, fill=0),),
    jvp=(lambda t, axis, reverse: _shift(t, axis=axis, reverse=reverse, fill=0),),
    doc="Each element is the one before it; the first is `fill`.",
)


def _pull_recurrence(g: Tensor, a: Tensor, axis: int, reverse: bool) -> Tensor:
    """What an element of `b` contributes to everything after it."""
    after = _shift(a, axis=axis, reverse=not reverse, fill=0)
    result: Tensor = _recurrence(after, g, axis=axis, reverse=not reverse)
    return result


_recurrence: Opaque = Opaque(
    "recurrence",
    "ab",
    infer=_same,
    forward=_recur_forward,
    params=("axis", "reverse"),
    vjp=(
        lambda g, a, y, axis, reverse: (
            _pull_recurrence(g, a, axis, reverse) * _shift(y, axis=axis, reverse=reverse, fill=0)
        ),
        lambda g, a, axis, reverse: _pull_recurrence(g, a, axis, reverse),
    ),
    jvp=(
        lambda t, a, y, axis, reverse: _recurrence(
            a, t * _shift(y, axis=axis, reverse=reverse, fill=0), axis=axis, reverse=reverse
        ),
        lambda t, a, axis, reverse: _recurrence(a, t, axis=axis, reverse=reverse),
    ),
    doc="y[k] = a[k] * y[k - 1] + b[k]; the first y is the first b.",
)
_running_product: Opaque = Opaque(
    "cumulative_prod",
    "x",
    infer=_same,
    forward=_scan("cumprod"),
    params=("axis", "reverse"),
    vjp=(
        lambda g, x, y, axis, reverse: (
            _shift(y, axis=axis, reverse=reverse, fill=1) * _pull_recurrence(g, x, axis, reverse)
        ),
    ),
    jvp=(
        lambda t, x, y, axis, reverse: _recurrence(
            x, t * _shift(y, axis=axis, reverse=reverse, fill=1), axis=axis, reverse=reverse
        ),
    ),
)


def product_of_others(x: Tensor, axis: int) -> Tensor:
    """For each element, the product of all the other ones along `axis`."""
    before, after = (
        _shift(_running_product(x, axis=axis, reverse=reverse), axis=axis, reverse=reverse, fill=1)
        for reverse in (False, True)
    )
    result: Tensor = before * after
    return result


# --- public -----------------------------------------------------------------------------------


def accumulated_dtype(x: Tensor, dtype: Any, name: str) -> DType:
    """The dtype in which elements of `x` add up or multiply: `dtype` if given; int64 or uint64 for integers."""
    if dtype is not None:
        wanted = as_dtype(dtype)
        if wanted == bool_:
            raise DTypeError(f"{name}() of {describe(x)} cannot be bool; use any() or all()")
        return wanted
    if is_float(x.dtype):
        return x.dtype
    return uint64 if x.dtype.kind == "u" else DEFAULT_INT


def _accumulate(scan: Opaque, x: Any, axis: int | None, dtype: Any, include_initial: bool, initial: int) -> Tensor:
    x, name = as_operand(x), scan.name
    if axis is None and x.ndim != 1:
        raise ShapeError(f"{name}() needs axis= for {describe(x)}: only with one axis is it plain which is meant")
    along = normalize_axis(0 if axis is None else axis, x, name)
    target = accumulated_dtype(x, dtype, name)
    y = scan(astype(x, compute_dtype(target)), axis=along, reverse=False)
    if include_initial:
        shape = tuple(1 if k == along else d for k, d in enumerate(x.shape))
        y = concat((full(shape, initial, dtype=y.dtype, device=x.device), y), axis=along)
    return astype(y, target)


def cumulative_sum(x: Any, /, *, axis: int | None = None, dtype: Any = None, include_initial: bool = False) -> Tensor:
    """The sums of the elements up to each one along `axis`, after a 0 if `include_initial`.

    The dtype is that of `sum`.  `axis` may be left out where there is only one.
    """
    return _accumulate(_running_sum, x, axis, dtype, include_initial, 0)


def cumulative_prod(x: Any, /, *, axis: int | None = None, dtype: Any = None, include_initial: bool = False) -> Tensor:
    """The products of the elements up to each one along `axis`, after a 1 if `include_initial`.

    The dtype is that of `prod`.  `axis` may be left out where there is only one.  Derivatives are right at zeros.
    """
    return _accumulate(_running_product, x, axis, dtype, include_initial, 1)


def diff(x: Any, /, *, axis: int = -1, n: int = 1, prepend: Any = None, append: Any = None) -> Tensor:
    """Each element along `axis` less the one before it, `n` times over; `prepend` and `append` are joined on first."""
    y = as_operand(x)
    if y.dtype == bool_:
        raise DTypeError(f"diff() of {describe(y)}: bools have no difference; cast with .to(gpuad.int64)")
    if n < 0:
        raise ShapeError(f"diff() takes differences n = 0, 1, 2, ... times, got n = {n}")
    along = normalize_axis(axis, y, "diff")
    parts = [as_operand(part) for part in (prepend, y, append) if part is not None]
    if len(parts) > 1:
        y = concat(parts, axis=along)
    leading = (slice(None),) * along
    for _ in range(n):
        y = y[(*leading, slice(1, None))] - y[(*leading, slice(None, -1))]
    return y.alias()


__all__ = ["cumulative_prod", "cumulative_sum", "diff"]
