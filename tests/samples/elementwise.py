"""Samples of arithmetic, powers, exponentials, trigonometry and rounding."""

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.special

import gpuad

from . import Sample

ALL_FLOATS = ("float32", "float64", "float16", "bfloat16")

anywhere = np.array([[-3.0, -1.25, -0.5, 0.0], [0.25, 0.75, 1.0, 2.5]])
positive = np.array([[0.01, 0.25, 0.5, 1.0], [1.5, 3.0, 20.0, 400.0]])
inside = np.array([-0.96875, -0.5, -0.125, 0.0, 0.0625, 0.25, 0.75, 0.875])  # of (-1, 1)
above = np.array([1.0625, 1.25, 2.0, 3.5, 1e3])  # 1
counts = np.array([[-7, -3, -1, 0], [1, 2, 5, 100]])
a = np.array([[2.5, -1.5, 0.75], [-0.25, 3.0, -2.0]])
b = np.array([[1.25, 0.5, -2.0], [-3.0, 1.0, 0.375]])
row, column = np.array([0.5, -1.25, 2.0]), np.array([[1.5], [-0.75]])


def unary(name: str, x: np.ndarray, numpy: Callable[..., Any], **options: Any) -> Sample:
    """The function `name` of gpuad and torch at the points `x`."""
    return Sample(name, getattr(gpuad, name), (x,), numpy, lambda x: getattr(x, name)(), **options)


def binary(name: str, numpy: Callable[..., Any], x: np.ndarray = a, y: np.ndarray = b, **options: Any) -> list[Sample]:
    """The function `name` of equal shapes, of shapes that broadcast, and of scalars on either side."""
    function = getattr(gpuad, name)

    def torch(x: Any, y: Any) -> Any:
        return getattr(x, name)(y)

    return [
        Sample(name, function, (x, y), numpy, torch, **options),
        Sample(f"{name}[broadcast]", function, (x[:1] + 0.125, y[:, :1] + 0.125), numpy, torch, **options),
        Sample(f"{name}[scalar b]", lambda x: function(x, 1.5), (x,), lambda x: numpy(x, x.dtype.type(1.5)), **options),
        Sample(f"{name}[scalar a]", lambda y: function(1.5, y), (y,), lambda y: numpy(y.dtype.type(1.5), y), **options),
    ]


def away_from_steps(x: np.ndarray) -> np.ndarray:
    """`x` moved so that no quotient of samples is a whole number."""
    return x + 0.0625


SAMPLES = [
    # shapes and strides, for all
    Sample("sin[0-d]", gpuad.sin, (np.array(0.3),), np.sin, lambda x: x.sin()),
    Sample("sin[empty]", gpuad.sin, (np.zeros((0, 3)),), np.sin, lambda x: x.sin()),
    Sample(
        "multiply[transposed]",
        lambda x, y: gpuad.permute_dims(x, (1, 0)) * y,
        (a, b.T.copy()),
        lambda x, y: x.T * y,
        lambda x, y: x.T * y,
    ),
    Sample("add[broadcast both]", gpuad.add, (row, column), np.add, lambda x, y: x + y, dtypes=ALL_FLOATS),
    Sample("add[0-d]", gpuad.add, (np.array(1.5), a), np.add, lambda x, y: x + y),
    Sample("multiply[empty]", gpuad.multiply, (np.zeros((2, 0, 3)), np.array(2.0)), np.multiply, lambda x, y: x * y),
    Sample("multiply[same twice]", lambda x: x * x * x, (a,), lambda x: x * x * x, lambda x: x * x * x),
    # arithmetic
    *binary("add", np.add, dtypes=ALL_FLOATS),
    *binary("subtract", np.subtract, dtypes=ALL_FLOATS),
    *binary("multiply", np.multiply, dtypes=ALL_FLOATS),
    *binary("divide", np.divide, dtypes=ALL_FLOATS),
    *binary("copysign", np.copysign, dtypes=ALL_FLOATS),
    *binary("remainder", np.remainder, away_from_steps(a), b),
    *binary("hypot", np.hypot, rtol=1e-6),
    *binary("atan2", np.arctan2, dtypes=ALL_FLOATS),
    *binary("logaddexp", np.logaddexp),
    *binary("pow", np.power, np.abs(a), b),
    Sample("floor_divide", gpuad.floor_divide, (away_from_steps(a), b), np.floor_divide),
    Sample("subtract[scalar - x]", lambda x: 2.0 - x, (a,), lambda x: 2 - x, lambda x: 2.0 - x),
    Sample("divide[scalar / x]", lambda x: 3 / x, (a,), lambda x: 3 / x, lambda x: 3 / x),
    Sample("divide[integers]", gpuad.divide, (counts, 2 + counts**2), lambda x, y: (x / y).astype(np.float32)),
    Sample("multiply[integers]", gpuad.multiply, (counts, counts), np.multiply),
    Sample("floor_divide[integers]", gpuad.floor_divide, (counts, 3 - counts[:, ::-1]), np.floor_divide),
    Sample("remainder[integers]", gpuad.remainder, (counts, 3 - counts[:, ::-1]), np.remainder),
    Sample("multiply[integer b]", gpuad.multiply, (a, counts[:, :3]), lambda x, n: x * n.astype(x.dtype)),
    unary("negative", anywhere, np.negative, dtypes=ALL_FLOATS),
    unary("positive", anywhere, np.positive),
    unary("abs", anywhere, np.abs, dtypes=ALL_FLOATS),
    unary("sign", anywhere, np.sign, dtypes=ALL_FLOATS),
    unary("reciprocal", positive - 5, np.reciprocal),
    Sample("abs[integers]", gpuad.abs, (counts,), np.abs),
    Sample("sign[integers]", gpuad.sign, (counts,), np.sign),
    Sample("real", gpuad.real, (anywhere,), np.real, lambda x: x.real),
    Sample("conj", gpuad.conj, (anywhere,), np.conj, lambda x: x.conj()),
    Sample("imag", gpuad.imag, (anywhere,), np.imag),
    # powers
    unary("square", anywhere, np.square, dtypes=ALL_FLOATS),
    unary("sqrt", positive, np.sqrt, dtypes=ALL_FLOATS),
    Sample("sqrt[0]", gpuad.sqrt, (np.array([0.0, 1.0]),), np.sqrt, grad=False),
    *[
        Sample(f"pow[x ** {n}]", lambda x, n=n: x**n, (anywhere,), lambda x, n=n: x**n, lambda x, n=n: x**n)
        for n in (0, 1, 2, 3, 4, 5, 7, 2.0, 3.0, 0.0)
    ],
    *[
        Sample(f"pow[x ** {n}]", lambda x, n=n: x**n, (positive[:, :3],), lambda x, n=n: x**n, lambda x, n=n: x**n)
        for n in (-1, -2, 0.5, -0.5, 2.5)
    ],
    *[
        Sample(
            f"pow[{n} ** x]", lambda x, n=n: n**x, (anywhere,), lambda x, n=n: x.dtype.type(n) ** x, lambda x, n=n: n**x
        )
        for n in (1, 2, 0.5, 10)
    ],
    Sample("pow[0 ** x]", lambda x: 0**x, (positive,), lambda x: np.zeros_like(x), lambda x: 0**x),
    Sample("pow[exponent 0]", gpuad.pow, (positive[0], np.zeros(4)), np.power, lambda x, y: x**y),
    Sample("pow[float ** int]", gpuad.pow, (anywhere[1], np.array([-1, 0, 3, 2])), lambda x, n: x ** n.astype(x.dtype)),
    Sample("pow[integers]", gpuad.pow, (counts, np.abs(counts) % 5), np.power),
    Sample("pow[integer ** 3]", lambda x: x**3, (counts,), lambda x: x**3),
    Sample("hypot[large]", gpuad.hypot, (1e30 * row, 1e30 * column), np.hypot, grad=False),
    # exponentials and logarithms
    unary("exp", anywhere, np.exp, dtypes=ALL_FLOATS),
    unary("expm1", anywhere, np.expm1),
    unary("log", positive, np.log, dtypes=ALL_FLOATS),
    unary("log1p", np.concatenate([inside, above]), np.log1p),
    unary("log2", positive, np.log2),
    unary("log10", positive, np.log10),
    unary("sigmoid", 4 * anywhere, scipy.special.expit, dtypes=ALL_FLOATS),
    Sample("expm1[small]", gpuad.expm1, (1e-9 * anywhere,), np.expm1),
    Sample("log1p[small]", gpuad.log1p, (1e-9 * anywhere,), np.log1p),
    Sample("logaddexp[equal]", gpuad.logaddexp, (row, row.copy()), np.logaddexp, lambda x, y: x.logaddexp(y)),
    Sample("logaddexp[far apart]", gpuad.logaddexp, (1e3 * row, -1e3 * row), np.logaddexp, lambda x, y: x.logaddexp(y)),
    # trigonometry
    unary("sin", anywhere, np.sin, dtypes=ALL_FLOATS),
    unary("cos", anywhere, np.cos),
    unary("tan", inside, np.tan),
    unary("asin", inside, np.arcsin),
    unary("acos", inside, np.arccos),
    unary("atan", anywhere, np.arctan),
    unary("sinh", anywhere, np.sinh),
    unary("cosh", anywhere, np.cosh),
    unary("tanh", anywhere, np.tanh, dtypes=ALL_FLOATS),
    unary("asinh", anywhere, np.arcsinh),
    unary("acosh", above, np.arccosh),
    unary("atanh", inside, np.arctanh),
    Sample("exp[integers]", gpuad.exp, (counts % 5,), lambda n: np.exp(n.astype(np.float32))),
    # rounding
    unary("floor", anywhere + 0.125, np.floor, dtypes=ALL_FLOATS),
    unary("ceil", anywhere + 0.125, np.ceil, dtypes=ALL_FLOATS),
    unary("trunc", anywhere + 0.125, np.trunc, dtypes=ALL_FLOATS),
    unary("round", anywhere + 0.125, np.rint, dtypes=ALL_FLOATS),
    Sample("round[halves]", gpuad.round, (np.arange(-3.5, 4.0),), np.rint, lambda x: x.round(), grad=False),
    Sample("floor[whole]", gpuad.floor, (np.arange(-3.0, 4.0),), np.floor, grad=False),
    Sample("floor[integers]", gpuad.floor, (counts,), lambda n: n),
    Sample("nextafter", gpuad.nextafter, (a, b), np.nextafter, grad=False),
    # what is fused together
    Sample(
        "chain",
        lambda x, y: gpuad.tanh(x * y + gpuad.exp(-y * y)) / (1 + gpuad.abs(x)),
        (a, row),
        lambda x, y: np.tanh(x * y + np.exp(-y * y)) / (1 + np.abs(x)),
        lambda x, y: (x * y + (-y * y).exp()).tanh() / (1 + x.abs()),
        dtypes=ALL_FLOATS,
    ),
]
