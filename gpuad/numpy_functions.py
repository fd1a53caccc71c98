"""NumPy's functions on tensors where more than the names differ from the array API: defaults, flattening, old forms.

Each takes what NumPy's takes, less what has no meaning for tensors, and is made of gpuad's functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import gpuad

from .array import Shape
from .convert import as_operand
from .dtype import WEAK, DType, as_dtype, is_float, result_dtype
from .tensor import Tensor

xp: Any = gpuad  # the functions are looked up when they are called
REBUILT: dict[str, Callable[..., Any]] = {}  # the one registry, by NumPy's name


def rebuilt(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enter a function under NumPy's `names`."""

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        REBUILT.update(dict.fromkeys(names, function))
        return function

    return enter


def _only(what: str, given: Any, *allowed: Any) -> None:
    if not any(given is a or given == a for a in allowed):
        raise TypeError(f"numpy.{what}={given!r} means nothing for a tensor, or is not offered; leave it out")


def _along(x: Any, axis: int | None) -> tuple[Tensor, int]:
    """`x` and the axis to work along: flattened and 0, where NumPy's default None says so."""
    t = as_operand(x)
    return (xp.reshape(t, -1), 0) if axis is None else (t, axis)


# --- what it is -------------------------------------------------------------------------------


@rebuilt("shape")
def shape(a: Any) -> Shape:
    """The length of each axis."""
    return as_operand(a).shape


@rebuilt("ndim")
def ndim(a: Any) -> int:
    """How many axes."""
    return as_operand(a).ndim


@rebuilt("size")
def size(a: Any, axis: int | Sequence[int] | None = None) -> int:
    """How many elements, or how many along `axis`."""
    lengths = as_operand(a).shape
    if axis is None:
        return math.prod(lengths)
    return math.prod(lengths[k] for k in ((axis,) if isinstance(axis, int) else axis))


@rebuilt("iscomplexobj")
def iscomplexobj(x: Any) -> bool:
    """Whether the elements are complex numbers: no tensor's are."""
    return False


@rebuilt("isrealobj")
def isrealobj(x: Any) -> bool:
    """Whether the elements are real numbers: every tensor's are."""
    return True


# --- shape ------------------------------------------------------------------------------------


@rebuilt("reshape")
def reshape(a: Any, /, shape: Any, order: str = "C", *, copy: bool | None = None) -> Tensor:
    """`a` as another shape."""
    _only("reshape(order)", order, "C")
    out: Tensor = xp.reshape(as_operand(a), shape)
    return xp.copy(out) if copy else out


@rebuilt("ravel")
def ravel(a: Any, order: str = "C") -> Tensor:
    """`a` with one axis."""
    _only("ravel(order)", order, "C", "K")
    return _along(a, None)[0]


@rebuilt("transpose")
def transpose(a: Any, axes: Sequence[int] | None = None) -> Tensor:
    """`a` with its axes in the order `axes`, reversed by default."""
    t = as_operand(a)
    out: Tensor = xp.permute_dims(t, tuple(reversed(range(t.ndim))) if axes is None else tuple(axes))
    return out


@rebuilt("swapaxes")
def swapaxes(a: Any, axis1: int, axis2: int) -> Tensor:
    """`a` with two axes exchanged."""
    t = as_operand(a)
    order = list(range(t.ndim))
    order[axis1], order[axis2] = order[axis2], order[axis1]
    out: Tensor = xp.permute_dims(t, tuple(order))
    return out


@rebuilt("expand_dims")
def expand_dims(a: Any, axis: int | Sequence[int]) -> Tensor:
    """`a` with new axes of length 1 at the places `axis` of the result."""
    out = as_operand(a)
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    n = out.ndim + len(axes)
    for k in sorted(k + n if k < 0 else k for k in axes):
        out = xp.expand_dims(out, axis=k)
    return out


@rebuilt("squeeze")
def squeeze(a: Any, axis: int | Sequence[int] | None = None) -> Tensor:
    """`a` without the axes of length 1, or without those in `axis`."""
    t = as_operand(a)
    out: Tensor = xp.squeeze(t, tuple(k for k, n in enumerate(t.shape) if n == 1) if axis is None else axis)
    return out


@rebuilt("broadcast_arrays")
def broadcast_arrays(*args: Any, subok: bool = False) -> tuple[Tensor, ...]:
    """The arrays, each repeated to the shape they broadcast to."""
    return tuple(xp.broadcast_arrays(*map(as_operand, args)))


@rebuilt("meshgrid")
def meshgrid(*xi: Any, copy: bool = True, sparse: bool = False, indexing: str = "xy") -> tuple[Tensor, ...]:
    """The coordinates of a grid over one-dimensional arrays."""
    _only("meshgrid(sparse)", sparse, False)
    return tuple(xp.meshgrid(*map(as_operand, xi), indexing=indexing))


@rebuilt("tile")
def tile(A: Any, reps: int | Sequence[int]) -> Tensor:
    """`A` repeated as a whole, `reps` times along each axis."""
    out: Tensor = xp.tile(as_operand(A), (reps,) if isinstance(reps, int) else tuple(reps))
    return out


# --- joining ----------------------------------------------------------------------------------


@rebuilt("concatenate")
def concatenate(arrays: Any, /, axis: int | None = 0, *, dtype: Any = None, casting: str = "same_kind") -> Tensor:
    """The arrays one after the other along `axis`."""
    out: Tensor = xp.concat([as_operand(a) for a in arrays], axis=axis)
    return out if dtype is None else out.to(dtype)


@rebuilt("hstack")
def hstack(tup: Any, *, dtype: Any = None, casting: str = "same_kind") -> Tensor:
    """The arrays side by side: along the second axis, or the only one."""
    tensors = [t if t.ndim else xp.reshape(t, 1) for t in map(as_operand, tup)]
    out: Tensor = concatenate(tensors, 0 if tensors[0].ndim == 1 else 1, dtype=dtype)
    return out


@rebuilt("vstack")
def vstack(tup: Any, *, dtype: Any = None, casting: str = "same_kind") -> Tensor:
    """The arrays below each other, those with one axis as rows."""
    rows = [t if t.ndim > 1 else xp.reshape(t, (1, -1)) for t in map(as_operand, tup)]
    out: Tensor = concatenate(rows, 0, dtype=dtype)
    return out


# --- along an axis ----------------------------------------------------------------------------


@rebuilt("cumsum")
def cumsum(a: Any, axis: int | None = None, dtype: Any = None) -> Tensor:
    """The sum of the elements up to each."""
    x, k = _along(a, axis)
    out: Tensor = xp.cumulative_sum(x, axis=k, dtype=dtype)
    return out


@rebuilt("cumprod")
def cumprod(a: Any, axis: int | None = None, dtype: Any = None) -> Tensor:
    """The product of the elements up to each."""
    x, k = _along(a, axis)
    out: Tensor = xp.cumulative_prod(x, axis=k, dtype=dtype)
    return out


@rebuilt("sort")
def sort(a: Any, axis: int | None = -1, kind: Any = None, order: Any = None, *, stable: bool | None = None) -> Tensor:
    """The elements in ascending order; stably, whatever `kind`."""
    _only("sort(order)", order, None)
    x, k = _along(a, axis)
    out: Tensor = xp.sort(x, axis=k)
    return out


@rebuilt("argsort")
def argsort(
    a: Any, axis: int | None = -1, kind: Any = None, order: Any = None, *, stable: bool | None = None
) -> Tensor:
    """The indexes that sort the elements; stably, whatever `kind`."""
    _only("argsort(order)", order, None)
    x, k = _along(a, axis)
    out: Tensor = xp.argsort(x, axis=k)
    return out


@rebuilt("take")
def take(a: Any, indices: Any, axis: int | None = None, mode: str = "raise") -> Tensor:
    """The elements at `indices`, of the flattened array by default."""
    _only("take(mode)", mode, "raise")
    x, k = _along(a, axis)
    out: Tensor = xp.take(x, as_operand(indices), axis=k)
    return out


# --- products ---------------------------------------------------------------------------------


@rebuilt("dot")
def dot(a: Any, b: Any) -> Tensor:
    """The sum of products over the last axis of `a` and the last but one of `b` (or its only one)."""
    x, y = as_operand(a), as_operand(b)
    if not (x.ndim and y.ndim):
        out: Tensor = xp.multiply(x, y)
    elif y.ndim <= 2:
        out = xp.matmul(x, y)
    else:
        out = xp.tensordot(x, y, axes=((x.ndim - 1,), (y.ndim - 2,)))
    return out


@rebuilt("inner")
def inner(a: Any, b: Any, /) -> Tensor:
    """The sum of products over the last axes of both."""
    x, y = as_operand(a), as_operand(b)
    out: Tensor = xp.tensordot(x, y, axes=((x.ndim - 1,), (y.ndim - 1,))) if x.ndim and y.ndim else xp.multiply(x, y)
    return out


@rebuilt("vdot")
def vdot(a: Any, b: Any, /) -> Tensor:
    """The sum of the products of all elements."""
    out: Tensor = xp.matmul(_along(a, None)[0], _along(b, None)[0])
    return out


@rebuilt("outer")
def outer(a: Any, b: Any) -> Tensor:
    """The product of each element of `a` with each of `b`."""
    out: Tensor = xp.multiply(xp.reshape(as_operand(a), (-1, 1)), xp.reshape(as_operand(b), (1, -1)))
    return out


@rebuilt("einsum")
def einsum(subscripts: str, *operands: Any, optimize: Any = False) -> Tensor:
    """The sum of products that `subscripts` describes."""
    out: Tensor = xp.einsum(subscripts, *map(as_operand, operands))
    return out


@rebuilt("linalg.norm")
def norm(x: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Tensor:
    """The Euclidean length of all elements, or along `axis`; its derivative is 0 where it is 0."""
    t = as_operand(x)
    axes = t.ndim if axis is None else 1 if isinstance(axis, int) else len(axis)
    _only("linalg.norm(ord)", ord, *((None, 2) if axes == 1 else (None, "fro") if axes == 2 else (None,)))
    squares = xp.sum(t * t, axis=axis, keepdims=keepdims)
    out: Tensor = xp.where(squares > 0, xp.sqrt(xp.where(squares > 0, squares, 1)), squares)
    return out


# --- choosing and comparing -------------------------------------------------------------------


@rebuilt("where")
def where(condition: Any, x: Any, y: Any, /) -> Tensor:
    """The elements of `x` where `condition` holds, else of `y`."""
    branches = [b if type(b) in WEAK else as_operand(b) for b in (x, y)]
    out: Tensor = xp.where(as_operand(condition), *branches)
    return out


@rebuilt("clip")
def clip(a: Any, a_min: Any = None, a_max: Any = None, *, min: Any = None, max: Any = None) -> Tensor:
    """The elements of `a`, or the bounds they lie beyond."""
    out: Tensor = xp.clip(as_operand(a), a_min if min is None else min, a_max if max is None else max)
    return out


@rebuilt("round", "around")
def round(a: Any, decimals: int = 0) -> Tensor:
    """The nearest integers, or the nearest numbers of that many decimals."""
    x = as_operand(a)
    scale = 10.0**decimals
    out: Tensor = xp.round(x) if not decimals or not is_float(x.dtype) else xp.round(x * scale) / scale
    return out


@rebuilt("isclose")
def isclose(a: Any, b: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> Tensor:
    """Whether each element of `a` is within `atol + rtol * |b|` of that of `b`."""
    x, y = as_operand(a), as_operand(b)
    near = xp.less_equal(xp.abs(x - y), atol + rtol * xp.abs(y)) & xp.isfinite(y) | xp.equal(x, y)
    out: Tensor = near | (xp.isnan(x) & xp.isnan(y)) if equal_nan else near
    return out


@rebuilt("allclose")
def allclose(a: Any, b: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> bool:
    """Whether all elements are close, as `isclose` has it."""
    return bool(xp.all(isclose(a, b, rtol, atol, equal_nan)))


@rebuilt("array_equal")
def array_equal(a1: Any, a2: Any, equal_nan: bool = False) -> bool:
    """Whether shape and elements are equal."""
    x, y = as_operand(a1), as_operand(a2)
    same = x.shape == y.shape and xp.equal(x, y)
    if equal_nan and same is not False and is_float(x.dtype) and is_float(y.dtype):
        same = same | (xp.isnan(x) & xp.isnan(y))
    return same is not False and bool(xp.all(same))


@rebuilt("empty_like")
def empty_like(prototype: Any, /, dtype: Any = None, order: str = "K", subok: bool = True) -> Tensor:
    """A tensor like `prototype` whose values mean nothing yet."""
    out: Tensor = xp.empty_like(as_operand(prototype), dtype=dtype)
    return out


@rebuilt("result_type")
def result_type(*arrays_and_dtypes: Any) -> DType:
    """The dtype that the arguments make together."""
    return result_dtype(
        tuple(
            type(x) if type(x) in WEAK else x.dtype if hasattr(x, "shape") else as_dtype(x) for x in arrays_and_dtypes
        )
    )
