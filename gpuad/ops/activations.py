"""Activations, and the functions NumPy lacks.  A CPU computes them by `devices/special.py`."""

from __future__ import annotations

import math
from typing import Any

from ..devices import special
from ..errors import DataError
from ..op import Elementwise
from ..tensor import Tensor
from .compare import clip, less_equal, where
from .elementwise import exp, sigmoid, square

_ROOT_PI = math.sqrt(math.pi)
_LINEAR, _CUBIC = (-c for c in reversed(special.GELU_TANH))  # gelu's tanh form is x * sigmoid(linear x + cubic x^3)
_FINITE = "(x < T(-1000) ? T(-1000) : x)"  # to multiply by 0 what may be -inf


def _special(name: str, numpy: Any, cuda: str, diff: Any, cost: float, doc: str = "") -> Elementwise:
    op = Elementwise(name, "x", numpy=numpy, cuda=cuda, diff=(diff,), dtypes="float", cost=cost, doc=doc)
    op.in_place = True  # every function of devices/special.py may write over its input
    return op


relu = _special(
    "relu",
    special.relu,
    "x > T(0) || x != x ? x : T(0)",
    lambda t, y: where(less_equal(y, 0), 0, t),
    1.5,
    "max(x, 0).  Its derivative at 0 is 0.",
)
softplus = _special(
    "softplus",
    special.softplus,
    "(x > T(0) ? x : T(0)) + log1p(exp(x > T(0) ? -x : x))",
    lambda t, x: t * sigmoid(x),
    16,
    "log(1 + exp(x)), without overflow.",
)
erf = _special(
    "erf", special.erf, "erf(x)", lambda t, x: t * (2 / _ROOT_PI * exp(-square(x))), 14, "The error function of x."
)
rsqrt = _special(
    "rsqrt",
    special.rsqrt,
    "T(1) / sqrt(x)",
    lambda t, y: t * (-0.5 * (y * y * y)),
    4,
    "1 / sqrt(x): inf of 0, nan of what is negative.",
)


# Beyond these bounds the slopes are 0 or 1 in every dtype; within, no product of theirs is inf * 0.


def _silu_slope(x: Tensor) -> Tensor:
    x = clip(x, -1000, 1000)
    s = sigmoid(x)
    slope: Tensor = s * (1 + x * (1 - s))
    return slope


def _gelu_slope(x: Tensor) -> Tensor:
    """The mass of the normal distribution below x, plus x times its density there."""
    x = clip(x, -40, 40)
    mass = 0.5 + 0.5 * erf(x * math.sqrt(0.5))
    slope: Tensor = mass + x * (math.sqrt(0.5) / _ROOT_PI) * exp(-0.5 * square(x))
    return slope


def _gelu_tanh_slope(x: Tensor) -> Tensor:
    x = clip(x, -40, 40)
    z = square(x)
    s = sigmoid(x * (_LINEAR + _CUBIC * z))
    slope: Tensor = s * (1 + x * (1 - s) * (_LINEAR + 3 * _CUBIC * z))
    return slope


silu = _special(
    "silu", special.silu, f"{_FINITE} / (T(1) + exp(-x))", lambda t, x: t * _silu_slope(x), 12, "x * sigmoid(x)."
)
_gelu = _special(
    "gelu", special.gelu, f"T(0.5) * {_FINITE} * erfc(x * T({-math.sqrt(0.5)}))", lambda t, x: t * _gelu_slope(x), 16
)
_gelu_tanh = _special(
    "gelu",
    special.gelu_tanh,
    f"{_FINITE} / (T(1) + exp(-x * (T({_LINEAR}) + T({_CUBIC}) * x * x)))",
    lambda t, x: t * _gelu_tanh_slope(x),
    14,
)


def gelu(x: Any, /, *, approximate: str = "none") -> Tensor:
    """x times the mass of the normal distribution below x; GPT-2 was trained with the form `approximate="tanh"`."""
    if approximate not in ("none", "tanh"):
        raise DataError(f'gelu() got approximate={approximate!r}; it is "none" or "tanh"')
    result: Tensor = (_gelu if approximate == "none" else _gelu_tanh)(x)
    return result


__all__ = ["erf", "gelu", "relu", "rsqrt", "sigmoid", "silu", "softplus"]
