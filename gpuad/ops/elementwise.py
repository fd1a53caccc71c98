"""The elementwise functions: each one definition, with one rule per argument for every mode and order."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..op import Elementwise


def _where(c: Any, a: Any, b: Any, out: Any) -> None:
    np.copyto(out, b)
    np.copyto(out, a, where=c)


add = Elementwise(
    "add", "ab", numpy=np.add, cuda="a + b", diff=(lambda t: t, lambda t: t), doc="a + b for each element."
)
subtract = Elementwise(
    "subtract", "ab", numpy=np.subtract, cuda="a - b", diff=(lambda t: t, lambda t: -t), doc="a - b for each element."
)
multiply = Elementwise(
    "multiply",
    "ab",
    numpy=np.multiply,
    cuda="a * b",
    diff=(lambda t, b: t * b, lambda t, a: t * a),
    doc="a * b for each element.",
)
divide = Elementwise(
    "divide",
    "ab",
    numpy=np.divide,
    cuda="a / b",
    diff=(lambda t, b: t / b, lambda t, b, y: -t * (y / b)),
    dtypes="float",
    cost=3,
    doc="a / b for each element.",
)
negative = Elementwise("negative", "x", numpy=np.negative, cuda="-x", diff=(lambda t: -t,), doc="-x for each element.")
exp = Elementwise(
    "exp", "x", numpy=np.exp, cuda="exp(x)", diff=(lambda t, y: t * y,), dtypes="float", cost=6, doc="e to the power x."
)
sin = Elementwise(
    "sin", "x", numpy=np.sin, cuda="sin(x)", diff=(lambda t, x: t * cos(x),), dtypes="float", cost=10, doc="Sine of x."
)
cos = Elementwise(
    "cos", "x", numpy=np.cos, cuda="cos(x)", diff=(lambda t, x: -t * sin(x),), dtypes="float", cost=10, doc="Cosine of x."
)
tanh = Elementwise(
    "tanh",
    "x",
    numpy=np.tanh,
    cuda="tanh(x)",
    diff=(lambda t, y: t * (1.0 - y * y),),
    dtypes="float",
    cost=8,
    doc="Hyperbolic tangent of each element.",
)
greater = Elementwise("greater", "ab", numpy=np.greater, cuda="a > b", dtypes="compare", doc="a > b for each element.")
where = Elementwise(
    "where",
    "cab",
    numpy=_where,
    cuda="c ? a : b",
    diff=(None, lambda t, c: where(c, t, 0), lambda t, c: where(c, 0, t)),
    dtypes="select",
    doc="a where c is true, else b.",
)
