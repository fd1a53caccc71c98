"""Arithmetic, powers, exponentials, trigonometry, rounding: one definition each, with one rule per argument for every
mode and order.  What an op costs is measured in additions of the NumPy engine, and less where compilers do better."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..array import Shape, describe
from ..convert import as_operand
from ..devices import special
from ..dtype import HALVES, WEAK, DType, bool_, is_float, result_dtype
from ..errors import DataError, DTypeError
from ..op import Elementwise, Opaque, broadcast_shape
from ..tensor import Tensor
from .compare import equal, greater_equal, isnan, logical_and, not_equal, signbit, where
from .create import zeros_like


class _Arithmetic(Elementwise):
    """An op on numbers: bools alone are an error."""

    def _sign(self, operands: tuple[DType | type, ...]) -> tuple[tuple[DType, ...], DType]:
        dtypes, result = super()._sign(operands)
        if bool_ in dtypes:
            raise DTypeError(f"{self.name}() needs numbers, got bools; cast with .to(gpuad.int64), or use a logical op")
        return dtypes, result


def _math(name: str, numpy: Any, cuda: str, diff: Any, cost: float, doc: str) -> Elementwise:
    """A function of one float; integers become float32."""
    return Elementwise(name, "x", numpy=numpy, cuda=cuda, diff=(diff,), dtypes="float", cost=cost, doc=doc)


def _operand(x: Any) -> Any:
    return x if isinstance(x, Tensor) or type(x) in WEAK else as_operand(x)


def _common(*operands: Any) -> DType:
    """The dtype that tensors and Python scalars make together."""
    return result_dtype(tuple([type(x) if type(x) in WEAK else x.dtype for x in operands]))


# --- arithmetic ---------------------------------------------------------------------------------

add = Elementwise(
    "add", "ab", numpy=np.add, cuda="a + b", diff=(lambda t: t, lambda t: t), doc="a + b; of bools, a or b."
)
subtract = _Arithmetic(
    "subtract", "ab", numpy=np.subtract, cuda="a - b", diff=(lambda t: t, lambda t: -t), doc="a - b for each element."
)
multiply = Elementwise(
    "multiply",
    "ab",
    numpy=np.multiply,
    cuda="a * b",
    diff=(lambda t, b: t * b, lambda t, a: t * a),
    doc="a * b; of bools, a and b.",
)
divide = Elementwise(
    "divide",
    "ab",
    numpy=np.divide,
    cuda="a / b",
    diff=(lambda t, b: t / b, lambda t, b, y: -t * (y / b)),
    dtypes="float",
    cost=3,
    doc="a / b for each element; integers become float32.",
)
negative = _Arithmetic("negative", "x", numpy=np.negative, cuda="-x", diff=(lambda t: -t,), doc="-x for each element.")
positive = _Arithmetic("positive", "x", numpy=np.positive, cuda="x", diff=(lambda t: t,), cost=0.5, doc="x itself.")
abs = _Arithmetic(
    "abs",
    "x",
    numpy=np.abs,
    cuda="x > T(0) ? x : T(0) - x",  # of integers and of -0.0 too
    diff=(lambda t, x: t * sign(x),),
    doc="The size of each element.  Its derivative at 0 is 0.",
)
sign: Elementwise = _Arithmetic(
    "sign",
    "x",
    numpy=np.sign,
    cuda="x != x ? x : T(x > T(0)) - T(x < T(0))",
    cost=2,
    doc="-1, 0 or 1 with the sign of each element; nan of nan.",
)
copysign = Elementwise(
    "copysign",
    "ab",
    numpy=np.copysign,
    cuda="copysign(a, b)",
    diff=(lambda t, a, y: where(equal(a, 0), 0, where(not_equal(signbit(a), signbit(y)), -t, t)), None),
    dtypes="float",
    cost=2,
    doc="The size of a with the sign of b.",
)

_FMOD = "fmod(a, b)"
_BELOW = f"({_FMOD} != T(0) && ({_FMOD} < T(0)) != (b < T(0)))"  # C++ rounds quotients to 0, we downwards
_floor_divide = Elementwise(
    "floor_divide",
    "ab",
    numpy=np.floor_divide,
    cuda=f"b == T(0) ? a / b : rint((a - {_FMOD}) / b) - T({_BELOW})",
    cost=40,
)
_remainder = Elementwise(
    "remainder",
    "ab",
    numpy=np.remainder,
    cuda=f"{_BELOW} ? {_FMOD} + b : copysign({_FMOD}, b)",
    diff=(lambda t: t, lambda t, a, b: -t * floor_divide(a, b)),
    cost=30,
)
# As in NumPy, by 0 gives 0; the least integer by -1 would trap.
_INVERSE = "b < T(0) && b == T(-1)"
_floor_divide_int = _Arithmetic(
    "floor_divide",
    "ab",
    numpy=np.floor_divide,
    cuda=f"b == T(0) ? T(0) : {_INVERSE} ? T(0) - a : T(a / b - T(a % b != T(0) && (a % b < T(0)) != (b < T(0))))",
    cost=10,
)
_remainder_int = _Arithmetic(
    "remainder",
    "ab",
    numpy=np.remainder,
    cuda=f"b == T(0) || ({_INVERSE}) ? T(0) : T(a % b + (a % b != T(0) && (a % b < T(0)) != (b < T(0)) ? b : T(0)))",
    cost=10,
)


def floor_divide(x1: Any, x2: Any, /) -> Tensor:
    """The largest whole number not above x1 / x2.  Integers stay integers, and an integer divided by 0 gives 0."""
    a, b = _operand(x1), _operand(x2)
    result: Tensor = (_floor_divide if is_float(_common(a, b)) else _floor_divide_int)(a, b)
    return result


def remainder(x1: Any, x2: Any, /) -> Tensor:
    """x1 - floor_divide(x1, x2) * x2, with the sign of x2.  An integer by 0 leaves 0."""
    a, b = _operand(x1), _operand(x2)
    result: Tensor = (_remainder if is_float(_common(a, b)) else _remainder_int)(a, b)
    return result


# --- powers -------------------------------------------------------------------------------------

square = _Arithmetic("square", "x", numpy=np.square, cuda="x * x", diff=(lambda t, x: t * (2 * x),), doc="x * x.")
sqrt = _math(
    "sqrt",
    np.sqrt,
    "sqrt(x)",
    lambda t, y: t / (2 * y),
    3,
    "The square root; nan of what is negative.  At 0 its derivative is inf.",
)
reciprocal = _math("reciprocal", np.reciprocal, "T(1) / x", lambda t, y: -t * (y * y), 3, "1 / x for each element.")


def _nonzero(y: Tensor) -> Tensor:
    """`y`, or inf where it is 0: what is divided by it has the value 0 there, and so has every derivative."""
    found: Tensor = where(equal(y, 0), math.inf, y)
    return found


hypot = Elementwise(
    "hypot",
    "ab",
    numpy=np.hypot,
    cuda="hypot(a, b)",
    diff=(lambda t, a, y: t * (a / _nonzero(y)), lambda t, b, y: t * (b / _nonzero(y))),
    dtypes="float",
    cost=16,
    doc="The square root of a^2 + b^2, without overflow.  At the origin its derivatives are 0.",
)


def _pow_of_base(t: Tensor, a: Tensor, b: Any) -> Tensor | None:
    """t * b * a^(b - 1): 0 where b is 0, whatever a is."""
    if type(b) in WEAK:
        return None if b == 0 else t * (pow(a, b - 1) * b)
    lost = logical_and(equal(a, 0), equal(b, 0))
    slope: Tensor = pow(a, where(lost, 1, b - 1)) * b
    return t * slope


def _pow_of_exponent(t: Tensor, a: Any, b: Tensor, y: Tensor) -> Tensor:
    """t * a^b * log(a): 0 where a is 0 and b is not negative."""
    slope: Tensor
    if type(a) not in WEAK:
        slope = y * log(where(logical_and(equal(a, 0), greater_equal(b, 0)), 1, a))
    elif a == 0:
        slope = where(greater_equal(b, 0), 0, -math.inf)
    else:
        slope = y * (math.log(a) if a > 0 else math.nan)
    return t * slope


_pow = Elementwise(
    "pow", "ab", numpy=np.power, cuda="pow(a, b)", diff=(_pow_of_base, _pow_of_exponent), dtypes="float", cost=20
)


def _integer_power(xp: Any, a: Any, b: Any, dtype: DType) -> Any:
    if xp.any(xp.asarray(b) < 0):
        raise DataError(
            "pow() of integers needs exponents that are not negative; cast the base with .to(gpuad.float32)"
        )
    return xp.power(xp.asarray(a, dtype=dtype), xp.asarray(b, dtype=dtype))


def _infer_power(a: Any, b: Any, dtype: DType) -> tuple[Shape, DType]:
    return broadcast_shape("pow", [a, b]), dtype


_pow_int = Opaque("pow", "ab", infer=_infer_power, forward=_integer_power, params=("dtype",))


def pow(x1: Any, x2: Any, /) -> Tensor:
    """x1 to the power x2.  Integers stay integers; a negative exponent of theirs is a DataError.

    0 to the power 0 is 1, and the derivatives are finite there.  The exponents -1, 1, 2, 3, 4 cost next to nothing.
    """
    a, b = _operand(x1), _operand(x2)
    dtype = _common(a, b)
    if isinstance(a, Tensor) and type(b) in WEAK and b in _POWERS and a.dtype == dtype and (b > 0 or is_float(dtype)):
        result: Tensor = _POWERS[b](a)
    elif is_float(dtype):
        result = _pow(a, b)
    elif dtype == bool_:
        raise DTypeError(f"pow() needs numbers, got {describe(a)} and {describe(b)}; cast with .to(gpuad.int64)")
    else:
        result = _pow_int(a, b, dtype=dtype)
    return result


_POWERS: dict[float, Any] = {
    -1: reciprocal,
    1: positive,
    2: square,
    3: lambda x: square(x) * x,
    4: lambda x: square(square(x)),
}

# --- exponentials and logarithms ----------------------------------------------------------------

exp = _math("exp", np.exp, "exp(x)", lambda t, y: t * y, 6, "e to the power x.")
expm1 = _math("expm1", np.expm1, "expm1(x)", lambda t, x: t * exp(x), 20, "exp(x) - 1, exact where x is small.")
log = _math(
    "log", np.log, "log(x)", lambda t, x: t / x, 7, "The natural logarithm; -inf of 0, nan of what is negative."
)
log1p = _math("log1p", np.log1p, "log1p(x)", lambda t, x: t / (1 + x), 20, "log(1 + x), exact where x is small.")
log2 = _math("log2", np.log2, "log2(x)", lambda t, x: t / (x * math.log(2)), 10, "The logarithm to base 2.")
log10 = _math("log10", np.log10, "log10(x)", lambda t, x: t / (x * math.log(10)), 14, "The logarithm to base 10.")


sigmoid = _math(
    "sigmoid", special.sigmoid, "T(1) / (T(1) + exp(-x))", lambda t, y: t * (y * (1 - y)), 10, "1 / (1 + exp(-x))."
)


def _share(a: Any, b: Any) -> Any:
    """exp(a) / (exp(a) + exp(b)): one half where both are the same infinity."""
    d = a - b
    return sigmoid(where(logical_and(isnan(d), equal(a, b)), 0, d))


logaddexp = Elementwise(
    "logaddexp",
    "ab",
    numpy=np.logaddexp,
    cuda="a == b ? a + log(T(2)) : (a > b ? a : b) + log1p(exp(a > b ? b - a : a - b))",
    diff=(lambda t, a, b: t * _share(a, b), lambda t, a, b: t * _share(b, a)),
    dtypes="float",
    cost=40,
    doc="log(exp(a) + exp(b)), without overflow.",
)

# --- trigonometry -------------------------------------------------------------------------------

sin = _math("sin", np.sin, "sin(x)", lambda t, x: t * cos(x), 10, "The sine of x.")
cos: Elementwise = _math("cos", np.cos, "cos(x)", lambda t, x: -t * sin(x), 10, "The cosine of x.")
tan = _math("tan", np.tan, "tan(x)", lambda t, y: t * (1 + y * y), 30, "The tangent of x.")
asin = _math("asin", np.arcsin, "asin(x)", lambda t, x: t / sqrt((1 - x) * (1 + x)), 24, "The angle whose sine is x.")
acos = _math(
    "acos", np.arccos, "acos(x)", lambda t, x: -t / sqrt((1 - x) * (1 + x)), 24, "The angle whose cosine is x."
)
atan = _math("atan", np.arctan, "atan(x)", lambda t, x: t / (1 + x * x), 30, "The angle whose tangent is x.")
atan2 = Elementwise(
    "atan2",
    "ab",
    numpy=np.arctan2,
    cuda="atan2(a, b)",
    diff=(lambda t, a, b: t * _over_radius(b, a, b), lambda t, a, b: -t * _over_radius(a, a, b)),
    dtypes="float",
    cost=40,
    doc="The angle of the point (b, a).  At the origin its derivatives are 0.",
)


def _over_radius(x: Any, a: Any, b: Any) -> Any:
    """x / (a^2 + b^2), without overflow."""
    radius = _nonzero(hypot(a, b))
    return x / radius / radius


sinh = _math("sinh", np.sinh, "sinh(x)", lambda t, x: t * cosh(x), 30, "The hyperbolic sine of x.")
cosh: Elementwise = _math("cosh", np.cosh, "cosh(x)", lambda t, x: t * sinh(x), 30, "The hyperbolic cosine of x.")
tanh = _math("tanh", np.tanh, "tanh(x)", lambda t, y: t * (1 - y * y), 8, "The hyperbolic tangent of x.")
asinh = _math("asinh", np.arcsinh, "asinh(x)", lambda t, x: t / hypot(x, 1), 40, "The number whose sinh is x.")
acosh = _math(
    "acosh",
    np.arccosh,
    "acosh(x)",
    lambda t, x: t / (sqrt(x - 1) * sqrt(x + 1)),  # the product of the roots does not overflow
    40,
    "The positive number whose cosh is x.",
)
atanh = _math("atanh", np.arctanh, "atanh(x)", lambda t, x: t / ((1 - x) * (1 + x)), 40, "The number whose tanh is x.")

# --- rounding: derivatives are 0 ----------------------------------------------------------------


def _rounding(name: str, numpy: Any, cuda: str, doc: str) -> Any:
    """A function to whole numbers, which leaves integers as they are."""
    op = Elementwise(name, "x", numpy=numpy, cuda=cuda)

    def rounded(x: Any, /) -> Any:
        tensor = as_operand(x)
        if tensor.dtype == bool_:
            raise DTypeError(f"{name}() needs numbers, got {describe(tensor)}")
        return op(tensor) if is_float(tensor.dtype) else tensor.alias()

    rounded.__name__ = rounded.__qualname__ = name
    rounded.__doc__ = doc
    return rounded


floor = _rounding("floor", np.floor, "floor(x)", "The largest whole number not above each element.")
ceil = _rounding("ceil", np.ceil, "ceil(x)", "The smallest whole number not below each element.")
trunc = _rounding("trunc", np.trunc, "trunc(x)", "The whole number next to each element on the side of 0.")
round = _rounding("round", np.rint, "rint(x)", "The whole number nearest to each element; from halfway, the even one.")

_nextafter = Elementwise(
    "nextafter", "ab", numpy=np.nextafter, cuda="nextafter(a, b)", diff=(lambda t: t, None), dtypes="float", cost=8
)


def nextafter(x1: Any, x2: Any, /) -> Tensor:
    """The next number of the dtype after x1, seen from there towards x2: float32 or float64."""
    a, b = _operand(x1), _operand(x2)
    dtype = _common(a, b)
    if dtype in HALVES:  # they are computed in float32, whose next number is another
        raise DTypeError(f"nextafter() steps through float32 or float64, got {dtype}; cast with .to(gpuad.float32)")
    result: Tensor = _nextafter(a, b)
    return result


# --- complex numbers are not supported yet; these are what they are of real ones ------------------


def real(x: Any, /) -> Tensor:
    """The real part of each element: `x` itself."""
    result: Tensor = positive(x)
    return result


def conj(x: Any, /) -> Tensor:
    """The complex conjugate of each element: `x` itself."""
    result: Tensor = positive(x)
    return result


def imag(x: Any, /) -> Tensor:
    """The imaginary part of each element: 0."""
    return zeros_like(as_operand(x))


__all__ = [
    "add",
    "subtract",
    "multiply",
    "divide",
    "negative",
    "positive",
    "abs",
    "sign",
    "copysign",
    "floor_divide",
    "remainder",
    "square",
    "sqrt",
    "reciprocal",
    "hypot",
    "pow",
    "exp",
    "expm1",
    "log",
    "log1p",
    "log2",
    "log10",
    "logaddexp",
    "sigmoid",
    "sin",
    "cos",
    "tan",
    "asin",
    "acos",
    "atan",
    "atan2",
    "sinh",
    "cosh",
    "tanh",
    "asinh",
    "acosh",
    "atanh",
    "floor",
    "ceil",
    "trunc",
    "round",
    "nextafter",
    "real",
    "conj",
    "imag",
]
