"""NumPy's functions by the names gpuad has for them, which are those of the array API standard.

`np.exp(x)`, `np_array * x` and `np.sum(x, 0)` on a tensor come here and go on as gpuad functions, so that every
transformation sees them.  What has no counterpart is a TypeError: never an array that has lost its derivative.
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import numpy as np

import gpuad

from .convert import as_operand
from .numpy_functions import REBUILT
from .tensor import Tensor

# --- ufuncs -----------------------------------------------------------------------------------

SAME_NAME = (  # ufuncs that gpuad calls what NumPy calls them
    *("add", "subtract", "multiply", "divide", "floor_divide", "remainder", "negative", "positive", "sign", "square"),
    *("sqrt", "reciprocal", "exp", "expm1", "log", "log2", "log10", "log1p", "logaddexp", "hypot"),
    *("sin", "cos", "tan", "sinh", "cosh", "tanh", "floor", "ceil", "trunc"),
    *("maximum", "minimum", "copysign", "nextafter", "signbit", "isfinite", "isinf", "isnan"),
    *("equal", "not_equal", "less", "less_equal", "greater", "greater_equal"),
    *("logical_and", "logical_or", "logical_xor", "logical_not", "bitwise_and", "bitwise_or", "bitwise_xor"),
    *("matmul", "vecdot"),
)
UFUNCS = {name: name for name in SAME_NAME} | {
    "absolute": "abs",
    "arccos": "acos",
    "arccosh": "acosh",
    "arcsin": "asin",
    "arcsinh": "asinh",
    "arctan": "atan",
    "arctan2": "atan2",
    "arctanh": "atanh",
    "conjugate": "conj",
    "invert": "bitwise_invert",
    "left_shift": "bitwise_left_shift",
    "power": "pow",
    "right_shift": "bitwise_right_shift",
    "rint": "round",
}
REDUCTIONS = {
    "add": "sum",
    "multiply": "prod",
    "maximum": "max",
    "minimum": "min",
    "logical_and": "all",
    "logical_or": "any",
}


def call_ufunc(ufunc: np.ufunc, method: str, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`ufunc(*inputs)`, or its reduction, as a tensor; NotImplemented where another library's array takes part."""
    name = f"numpy.{ufunc.__name__}"
    given = {k: v for k, v in kwargs.items() if not _is_default(v, _UFUNC_DEFAULTS.get(k, ...))}
    if "out" in given:
        raise TypeError(
            f"{name}() cannot write a tensor's values into out=, where they would lose their derivative\n"
            "  assign the result instead: y = y * x, not y *= x where y is a NumPy array"
        )
    if any(_is_foreign(x) for x in inputs):
        return NotImplemented
    if method == "reduce":
        return _reduce(ufunc, name, inputs[0], given)
    if method != "__call__":
        raise TypeError(f"{name}.{method}() of a tensor is not offered\n  {_remedy()}")
    if given:
        raise TypeError(f"{name}() of a tensor does not take {', '.join(given)}\n  {_remedy()}")
    return _named(UFUNCS.get(ufunc.__name__), name)(*[_operand(x) for x in inputs])


def _reduce(ufunc: np.ufunc, name: str, x: Any, given: dict[str, Any]) -> Any:
    function = _named(REDUCTIONS.get(ufunc.__name__), f"{name}.reduce")
    axis = given.pop("axis", 0)
    keywords = {k: given.pop(k) for k in ("keepdims", "dtype") if k in given}
    if given:
        raise TypeError(f"{name}.reduce() of a tensor does not take {', '.join(given)}\n  {_remedy()}")
    return function(_operand(x), axis=axis, **keywords)


_UFUNC_DEFAULTS = {"where": True, "out": None, "dtype": None, "keepdims": False, "casting": "same_kind", "subok": True}


def _is_foreign(x: Any) -> bool:
    """True for another library's array that has a say in what a ufunc gives."""
    return not isinstance(x, Tensor | np.ndarray | np.generic) and hasattr(x, "__array_ufunc__")


# --- functions --------------------------------------------------------------------------------

# NumPy's function: how its arguments are passed on.  Before the stroke arrays, by position; after it the keywords that
# are understood, as `theirs` or `ours=theirs`; `~` marks those without meaning here.  Others must have their default.
RENAMED = {
    "all": "all(a, /, axis, keepdims)",
    "amax": "max(a, /, axis, keepdims)",
    "amin": "min(a, /, axis, keepdims)",
    "any": "any(a, /, axis, keepdims)",
    "argmax": "argmax(a, /, axis, keepdims)",
    "argmin": "argmin(a, /, axis, keepdims)",
    "astype": "astype(x, dtype, /, copy)",
    "broadcast_to": "broadcast_to(array, shape, /, ~subok)",
    "copy": "copy(a, /, ~order, ~subok)",
    "count_nonzero": "count_nonzero(a, /, axis, keepdims)",
    "cumulative_prod": "cumulative_prod(x, /, axis, dtype, include_initial)",
    "cumulative_sum": "cumulative_sum(x, /, axis, dtype, include_initial)",
    "diff": "diff(a, /, n, axis, prepend, append)",
    "flip": "flip(m, /, axis)",
    "full_like": "full_like(a, fill_value, /, dtype, ~order, ~subok)",
    "imag": "imag(val, /)",
    "matrix_transpose": "matrix_transpose(x, /)",
    "max": "max(a, /, axis, keepdims)",
    "mean": "mean(a, /, axis, keepdims)",
    "min": "min(a, /, axis, keepdims)",
    "moveaxis": "moveaxis(a, source, destination, /)",
    "ones_like": "ones_like(a, /, dtype, ~order, ~subok)",
    "pad": "pad(array, pad_width, mode, /, constant_values)",
    "prod": "prod(a, /, axis, dtype, keepdims)",
    "real": "real(val, /)",
    "repeat": "repeat(a, repeats, /, axis)",
    "roll": "roll(a, /, shift, axis)",
    "stack": "stack(arrays, /, axis)",
    "std": "std(a, /, axis, keepdims, correction=ddof, correction)",
    "sum": "sum(a, /, axis, dtype, keepdims)",
    "take_along_axis": "take_along_axis(arr, indices, /, axis)",
    "tensordot": "tensordot(a, b, /, axes)",
    "tril": "tril(m, /, k)",
    "triu": "triu(m, /, k)",
    "unstack": "unstack(x, /, axis)",
    "var": "var(a, /, axis, keepdims, correction=ddof, correction)",
    "zeros_like": "zeros_like(a, /, dtype, ~order, ~subok)",
}


class Renaming(NamedTuple):
    """A line of `RENAMED`, read."""

    name: str
    arrays: tuple[str, ...]
    keywords: dict[str, str]  # NumPy's name: ours
    ignored: frozenset[str]


@functools.cache
def read(line: str) -> Renaming:
    """What a line of `RENAMED` says."""
    name, arguments = line.removesuffix(")").split("(")
    arrays, keywords = ([w for w in part.replace(" ", "").split(",") if w] for part in arguments.split("/"))
    pairs = [word.split("=") for word in keywords if not word.startswith("~")]
    return Renaming(
        name,
        tuple(arrays),
        {pair[-1]: pair[0] for pair in pairs},
        frozenset(word[1:] for word in keywords if word.startswith("~")),
    )


@functools.cache
def _table() -> dict[Any, str]:
    """The name of each of NumPy's functions that is known here, as far as this NumPy has them."""
    found = {}
    for name in (*RENAMED, *REBUILT):
        try:
            found[operator.attrgetter(name)(np)] = name
        except AttributeError:
            continue
    return found


_signature = functools.cache(inspect.signature)


def call_function(function: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`function(*args, **kwargs)` as tensors; NotImplemented where another library's array takes part."""
    if not all(issubclass(t, Tensor) or t.__array_function__ is np.ndarray.__array_function__ for t in types):
        return NotImplemented
    known = _table().get(function)
    name = f"{function.__module__}.{function.__name__}"
    if kwargs.get("out") is not None:
        raise TypeError(f"{name}() cannot write a tensor's values into out=, where they would lose their derivative")
    kwargs = {k: v for k, v in kwargs.items() if k != "out" and v is not np._NoValue}
    if known in REBUILT:
        return REBUILT[known](*args, **kwargs)
    if known is None:
        _unknown(name)
    renaming = read(RENAMED[known])
    target = _named(renaming.name, name)
    signature = _signature(function)
    given = dict(signature.bind(*args, **kwargs).arguments)
    for kind in [p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]:
        given.update(given.pop(kind, {}))
    arrays = [_operand(given.pop(a)) for a in renaming.arrays if a in given]
    keywords = {}
    for key, value in given.items():
        parameter = signature.parameters.get(key)
        if key in renaming.ignored or (parameter is not None and _is_default(value, parameter.default)):
            continue
        if key not in renaming.keywords:
            raise TypeError(f"{name}() of a tensor does not take {key}=\n  {_remedy()}")
        keywords[renaming.keywords[key]] = _operand(value) if isinstance(value, np.ndarray) else value
    return target(*arrays, **keywords)


def _is_default(value: Any, default: Any) -> bool:
    return value is default or value is np._NoValue or (type(value) in (bool, int, str) and value == default)


def _operand(x: Any) -> Any:
    """`x` as gpuad's functions take it: NumPy's arrays and scalars become tensors, inside lists too."""
    if isinstance(x, np.ndarray | np.generic):
        return as_operand(x)
    if isinstance(x, list | tuple):
        return type(x)(map(_operand, x))
    return x


def _named(name: str | None, asked: str) -> Callable[..., Any]:
    """gpuad's function called `name`; a TypeError that names what was `asked` for, if there is none."""
    try:
        if name is not None:
            found: Callable[..., Any] = operator.attrgetter(name)(gpuad)
            return found
    except AttributeError:
        pass
    _unknown(asked)


def _unknown(name: str) -> NoReturn:
    raise TypeError(f"{name}() has no counterpart in gpuad, so its derivative is not known\n  {_remedy()}")


def _remedy() -> str:
    return "if no derivative is wanted, give NumPy the values: np.asarray(x), or x.numpy()"
