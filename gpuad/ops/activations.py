"""Activations, and the functions NumPy lacks.  A CPU computes them by `devices/special.py`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..convert import as_operand
from ..devices import special
from ..dtype import compute_dtype, float32, is_float
from ..errors import DataError
from ..op import Composite, Elementwise
from ..tensor import Tensor
from .compare import clip, less_equal, where
from .elementwise import exp, sigmoid, square
from .shape import astype

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
    "(x > T(0)) | (x != x) ? x : T(0)",
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


def _gelu_slope(x: Tensor) -> Tensor:
    """The mass of the normal distribution below x, plus x times its density there."""
    x = clip(x, -40, 40)  # beyond, the slope is 0 or 1 in every dtype; within, no product is inf * 0
    mass = 0.5 + 0.5 * erf(x * math.sqrt(0.5))
    slope: Tensor = mass + x * (math.sqrt(0.5) / _ROOT_PI) * exp(-0.5 * square(x))
    return slope


_gelu = _special(
    "gelu", special.gelu, f"T(0.5) * {_FINITE} * erfc(x * T({-math.sqrt(0.5)}))", lambda t, x: t * _gelu_slope(x), 16
)


def _gated(name: str, gate: Elementwise, inner_slope: Callable[[Tensor], Any], bound: float) -> Composite:
    """x * gate(x), where gate(x) = sigmoid(inner(x)).  The rules use the gate again, which one kernel makes once.

    Beyond `bound` the gate is 0 or 1 in every dtype; within, no product of the slopes is inf * 0.
    """

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        wide = astype(x, compute_dtype(x.dtype))
        s = gate(wide)
        return astype(clip(wide, -1000, None) * s, x.dtype), s  # finite where s is 0

    def slopes(x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Of the product and of the gate."""
        x = clip(astype(x, s.dtype), -bound, bound)
        of_gate = s * (1 - s) * inner_slope(x)
        return s + x * of_gate, of_gate

    def pull(g: list[Tensor | None], x: Tensor, s: Tensor) -> Tensor:
        of_product, of_gate = slopes(x, s)
        terms = [] if g[0] is None else [astype(g[0], s.dtype) * of_product]
        terms += [] if g[1] is None else [g[1] * of_gate]
        return astype(terms[0] if len(terms) == 1 else terms[0] + terms[1], x.dtype)

    def push(t: Tensor, x: Tensor, s: Tensor) -> list[Tensor]:
        of_product, of_gate = slopes(x, s)
        t = astype(t, s.dtype)
        return [astype(t * of_product, x.dtype), t * of_gate]

    return Composite(name, "x", outputs=("y", "s"), forward=forward, vjp=(pull,), jvp=(push,))


def _gelu_inner_slope(x: Tensor) -> Tensor:
    slope: Tensor = _LINEAR + 3 * _CUBIC * square(x)
    return slope


_gelu_gate = _special(
    "gelu_gate",
    special.gelu_gate,
    f"T(1) / (T(1) + exp(-x * (T({_LINEAR}) + T({_CUBIC}) * x * x)))",
    lambda t, x, y: t * (y * (1 - y) * _gelu_inner_slope(clip(x, -40, 40))),
    13,
)
_silu = _gated("silu", sigmoid, lambda x: 1, 1000)
_gelu_tanh = _gated("gelu", _gelu_gate, _gelu_inner_slope, 40)


def silu(x: Any, /) -> Tensor:
    """x * sigmoid(x)."""
    y, _ = _silu(_floating(x))
    result: Tensor = y
    return result


def _floating(x: Any) -> Tensor:
    x = as_operand(x)
    return x if is_float(x.dtype) else astype(x, float32)


def gelu(x: Any, /, *, approximate: str = "none") -> Tensor:
    """x times the mass of the normal distribution below x; GPT-2 was trained with the form `approximate="tanh"`."""
    if approximate not in ("none", "tanh"):
        raise DataError(f'gelu() got approximate={approximate!r}; it is "none" or "tanh"')
    result: Tensor = _gelu(x) if approximate == "none" else _gelu_tanh(_floating(x))[0]
    return result


__all__ = ["erf", "gelu", "relu", "rsqrt", "sigmoid", "silu", "softplus"]
