"""Comparisons, logic, bits, and choosing between values."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..convert import as_operand
from ..dtype import DType, bool_
from ..errors import DTypeError
from ..op import Elementwise
from ..tensor import Tensor

# --- comparing: the result is bool, and has no derivative ---------------------------------------

equal = Elementwise("equal", "ab", numpy=np.equal, cuda="a == b", dtypes="compare", doc="Whether a is b.")
not_equal = Elementwise(
    "not_equal", "ab", numpy=np.not_equal, cuda="a != b", dtypes="compare", doc="Whether a is not b."
)
less = Elementwise("less", "ab", numpy=np.less, cuda="a < b", dtypes="compare", doc="Whether a is below b.")
less_equal = Elementwise(
    "less_equal", "ab", numpy=np.less_equal, cuda="a <= b", dtypes="compare", doc="Whether a is at most b."
)
greater = Elementwise("greater", "ab", numpy=np.greater, cuda="a > b", dtypes="compare", doc="Whether a is above b.")
greater_equal = Elementwise(
    "greater_equal", "ab", numpy=np.greater_equal, cuda="a >= b", dtypes="compare", doc="Whether a is at least b."
)

# In C++ the functions of these names take no integers; the arithmetic serves every dtype.
isnan = Elementwise("isnan", "x", numpy=np.isnan, cuda="x != x", dtypes="compare", doc="Whether x is not a number.")
isinf = Elementwise(
    "isinf", "x", numpy=np.isinf, cuda="(x == x) & (x - x != x - x)", dtypes="compare", doc="Whether x is an infinity."
)
isfinite = Elementwise(
    "isfinite", "x", numpy=np.isfinite, cuda="x - x == x - x", dtypes="compare", doc="Whether x is a finite number."
)


class _SignBit(Elementwise):
    """Whether the sign of a float is minus, as it is for -0.0."""

    def _sign(self, operands: tuple[DType | type, ...]) -> tuple[tuple[DType, ...], DType]:
        (dtype,), _ = super()._sign(operands)
        return (dtype,), bool_


signbit = _SignBit("signbit", "x", numpy=np.signbit, cuda="signbit(x)", dtypes="float", doc=_SignBit.__doc__ or "")

# --- logic: operands are taken as bools -----------------------------------------------------------

logical_and = Elementwise(
    "logical_and", "ab", numpy=np.logical_and, cuda="a & b", dtypes="logical", doc="Whether both are true."
)
logical_or = Elementwise(
    "logical_or", "ab", numpy=np.logical_or, cuda="a | b", dtypes="logical", doc="Whether one of them is true."
)
logical_xor = Elementwise(
    "logical_xor", "ab", numpy=np.logical_xor, cuda="a != b", dtypes="logical", doc="Whether just one of them is true."
)
logical_not = Elementwise(
    "logical_not", "x", numpy=np.logical_not, cuda="!x", dtypes="logical", doc="Whether x is false."
)

# --- bits: integers and bools -----------------------------------------------------------------------


class _Shift(Elementwise):
    """Integers with their bits moved by as many places as another says; by too many, nothing but the sign is left."""

    def _sign(self, operands: tuple[DType | type, ...]) -> tuple[tuple[DType, ...], DType]:
        dtypes, result = super()._sign(operands)
        if result == bool_:
            raise DTypeError(f"{self.name}() needs integers, got bools; cast one with .to(gpuad.int64)")
        return dtypes, result


bitwise_and = Elementwise(
    "bitwise_and", "ab", numpy=np.bitwise_and, cuda="a & b", dtypes="integer", doc="The bits that both have."
)
bitwise_or = Elementwise(
    "bitwise_or", "ab", numpy=np.bitwise_or, cuda="a | b", dtypes="integer", doc="The bits that one of them has."
)
bitwise_xor = Elementwise(
    "bitwise_xor", "ab", numpy=np.bitwise_xor, cuda="a ^ b", dtypes="integer", doc="The bits that just one of them has."
)
bitwise_invert = Elementwise(
    "bitwise_invert", "x", numpy=np.invert, cuda="x ^ T(-1)", dtypes="integer", doc="The bits that x does not have."
)
bitwise_left_shift = _Shift(
    "bitwise_left_shift",
    "ab",
    numpy=np.left_shift,
    cuda="(b >= T(0)) & (b < T(8 * sizeof(T))) ? a << b : T(0)",
    dtypes="integer",
    doc="The bits of a, b places higher.",
)
bitwise_right_shift = _Shift(
    "bitwise_right_shift",
    "ab",
    numpy=np.right_shift,
    cuda="(b >= T(0)) & (b < T(8 * sizeof(T))) ? a >> b : T(a < T(0) ? -1 : 0)",
    dtypes="integer",
    doc="The bits of a, b places lower, filled up with its sign.",
)

# --- choosing: a tangent goes where the value came from -------------------------------------------

_WORDS = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}  # integers to see elements of any dtype as


def _select(c: Any, a: Any, b: Any, out: np.ndarray[Any, Any]) -> None:
    """out = a where c, else b, by masking bits: a copy under a random mask takes four times as long."""
    if c.shape != out.shape:
        np.copyto(out, b)
        np.copyto(out, a, where=c)
        return
    word = _WORDS[out.itemsize]
    a, b, result = a.view(word), b.view(word), out.view(word)
    mask = np.negative(c.view(np.int8), dtype=word)
    if b.ndim == 0 and b == 0:
        np.bitwise_and(a, mask, result)
    elif a.ndim == 0 and a == 0:
        np.bitwise_and(b, np.invert(mask, mask), result)
    else:  # bits of b, those changed in which a differs
        np.bitwise_and(np.bitwise_xor(a, b, result), mask, result)
        np.bitwise_xor(result, b, result)


where: Elementwise = Elementwise(
    "where",
    "cab",
    numpy=_select,
    cuda="c ? a : b",
    diff=(None, lambda t, c: where(c, t, 0), lambda t, c: where(c, 0, t)),
    dtypes="select",
    cost=2,
    doc="a where c is true, else b.",
)


def _maximum(a: Any, b: Any, out: Any) -> None:
    np.maximum(a, b, out=out)  # the ufunc takes no positional out


def _minimum(a: Any, b: Any, out: Any) -> None:
    np.minimum(a, b, out=out)


maximum = Elementwise(
    "maximum",
    "ab",
    numpy=_maximum,
    cuda="(a > b) | (a != a) ? a : b",
    diff=(
        lambda t, a, b: where(equal(a, b), 0.5 * t, where(less(a, b), 0, t)),
        lambda t, a, b: where(equal(a, b), 0.5 * t, where(less(b, a), 0, t)),
    ),
    cost=1.5,
    doc="The larger of a and b, or nan where one is nan.",
)
minimum = Elementwise(
    "minimum",
    "ab",
    numpy=_minimum,
    cuda="(a < b) | (a != a) ? a : b",
    diff=(
        lambda t, a, b: where(equal(a, b), 0.5 * t, where(greater(a, b), 0, t)),
        lambda t, a, b: where(equal(a, b), 0.5 * t, where(greater(b, a), 0, t)),
    ),
    cost=1.5,
    doc="The smaller of a and b, or nan where one is nan.",
)

# A bound has the derivative where it is the result, x elsewhere: at its bounds too.
_raise = Elementwise(
    "clip",
    ("x", "low"),
    numpy=_maximum,
    cuda="(x < low) | (low != low) ? low : x",
    diff=(lambda t, x, low: where(greater_equal(x, low), t, 0), lambda t, x, low: where(less(x, low), t, 0)),
    cost=1.5,
)
_lower = Elementwise(
    "clip",
    ("x", "high"),
    numpy=_minimum,
    cuda="(x > high) | (high != high) ? high : x",
    diff=(lambda t, x, high: where(less_equal(x, high), t, 0), lambda t, x, high: where(greater(x, high), t, 0)),
    cost=1.5,
)


_RAISED = "((x < low) | (low != low) ? low : x)"


def _bounded(x: Any, low: Any, high: Any, out: Any) -> None:
    np.clip(x, low, high, out)


_clip = Elementwise(
    "clip",
    ("x", "low", "high"),
    numpy=_bounded,
    cuda=f"({_RAISED} > high) | (high != high) ? high : {_RAISED}",
    diff=(
        lambda t, x, low, high: where(logical_and(greater_equal(x, low), less_equal(x, high)), t, 0),
        lambda t, x, low, high: where(logical_and(less(x, low), _less_equal(low, high)), t, 0),
        lambda t, x, low, high: where(logical_or(greater(x, high), _less(high, low)), t, 0),
    ),
    cost=2.5,
)
for _op in (maximum, minimum, _raise, _lower, _clip):
    _op.in_place = True  # like the ufuncs they call


def _less(a: Any, b: Any) -> Any:
    """a < b for tensors and scalars, of which it may be that both are scalars."""
    return less(a, b) if isinstance(a, Tensor) or isinstance(b, Tensor) else bool(a < b)


def _less_equal(a: Any, b: Any) -> Any:
    return less_equal(a, b) if isinstance(a, Tensor) or isinstance(b, Tensor) else bool(a <= b)


def clip(x: Any, /, min: Any = None, max: Any = None) -> Tensor:
    """`x`, or the bound it lies beyond: a number, a tensor that broadcasts, or None for no bound.

    The result is `max` where `min` exceeds it.  Derivatives go to `x` from one bound to the other, both included.
    """
    result: Tensor
    if min is None:
        result = as_operand(x).alias() if max is None else _lower(x, max)
    else:
        result = _raise(x, min) if max is None else _clip(x, min, max)
    return result


__all__ = [
    "equal",
    "not_equal",
    "less",
    "less_equal",
    "greater",
    "greater_equal",
    "isnan",
    "isinf",
    "isfinite",
    "signbit",
    "logical_and",
    "logical_or",
    "logical_xor",
    "logical_not",
    "bitwise_and",
    "bitwise_or",
    "bitwise_xor",
    "bitwise_invert",
    "bitwise_left_shift",
    "bitwise_right_shift",
    "where",
    "maximum",
    "minimum",
    "clip",
]
