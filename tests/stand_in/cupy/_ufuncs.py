"""The stand-in's ufuncs: NumPy's, on arrays of the stand-in alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._array import ndarray, placed, values


class ufunc:
    """A function of each element."""

    def __init__(self, name: str, numpy: np.ufunc) -> None:
        self.name, self.numpy, self.nin, self.nout = name, numpy, numpy.nin, numpy.nout

    def __repr__(self) -> str:
        return f"<ufunc '{self.name}'>"

    def __call__(self, *args: Any, out: Any = None, casting: str = "same_kind", dtype: Any = None) -> ndarray:
        if len(args) == self.nin + 1 and out is None:
            *args, out = args
        if len(args) != self.nin:
            raise TypeError(f"Wrong number of arguments for '{self.name}'")
        with np.errstate(all="ignore"):
            result = self.numpy(*[values(x) for x in args], dtype=dtype)
        if out is not None and isinstance(out, ndarray) and out.shape != result.shape:
            result = np.broadcast_to(result, out.shape)
        return placed(result, out, casting)


NAMES = (
    *("add", "subtract", "multiply", "divide", "true_divide", "floor_divide", "remainder", "mod", "fmod", "power"),
    *(
        "negative",
        "positive",
        "absolute",
        "sign",
        "sqrt",
        "square",
        "cbrt",
        "reciprocal",
        "exp",
        "exp2",
        "expm1",
        "log",
    ),
    *(
        "log2",
        "log10",
        "log1p",
        "logaddexp",
        "sin",
        "cos",
        "tan",
        "arcsin",
        "arccos",
        "arctan",
        "arctan2",
        "sinh",
        "cosh",
    ),
    *("tanh", "arcsinh", "arccosh", "arctanh", "hypot", "maximum", "minimum", "fmax", "fmin", "floor", "ceil", "trunc"),
    *("rint", "signbit", "copysign", "nextafter", "isfinite", "isinf", "isnan", "logical_and", "logical_or"),
    *("logical_xor", "logical_not", "bitwise_and", "bitwise_or", "bitwise_xor", "invert", "left_shift", "right_shift"),
    *("equal", "not_equal", "greater", "greater_equal", "less", "less_equal"),
)
UFUNCS = {name: ufunc(f"cupy_{name}", getattr(np, name)) for name in NAMES}

_OPERATORS = {
    "add": "add",
    "sub": "subtract",
    "mul": "multiply",
    "truediv": "true_divide",
    "floordiv": "floor_divide",
    "mod": "remainder",
    "pow": "power",
    "and": "bitwise_and",
    "or": "bitwise_or",
    "xor": "bitwise_xor",
    "lshift": "left_shift",
    "rshift": "right_shift",
}
_COMPARISONS = {
    "eq": "equal",
    "ne": "not_equal",
    "lt": "less",
    "le": "less_equal",
    "gt": "greater",
    "ge": "greater_equal",
}


def _defer(other: Any) -> bool:
    return not isinstance(other, (ndarray, np.ndarray, np.generic, bool, int, float))


def _give_operators(function: ufunc, name: str) -> None:
    def forward(self: ndarray, other: Any) -> Any:
        return NotImplemented if _defer(other) else function(self, other)

    def reflected(self: ndarray, other: Any) -> Any:
        return NotImplemented if _defer(other) else function(other, self)

    def in_place(self: ndarray, other: Any) -> Any:
        return function(self, other, self)

    setattr(ndarray, f"__{name}__", forward)
    if name not in _COMPARISONS:
        setattr(ndarray, f"__r{name}__", reflected)
        setattr(ndarray, f"__i{name}__", in_place)


for _name, _ufunc in {**_OPERATORS, **_COMPARISONS}.items():
    _give_operators(UFUNCS[_ufunc], _name)
ndarray.__neg__ = lambda self: UFUNCS["negative"](self)  # type: ignore[attr-defined]
ndarray.__pos__ = lambda self: UFUNCS["positive"](self)  # type: ignore[attr-defined]
ndarray.__abs__ = lambda self: UFUNCS["absolute"](self)  # type: ignore[attr-defined]
ndarray.__invert__ = lambda self: UFUNCS["invert"](self)  # type: ignore[attr-defined]
