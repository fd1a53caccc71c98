"""Products of matrices, and what is made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..array import Shape, describe
from ..convert import as_operand
from ..dtype import HALVES, DType, bool_, compute_dtype, result_dtype
from ..errors import DTypeError, ShapeError
from ..op import Anchor
from ..tensor import Tensor
from .reduce import sum
from .shape import astype, normalize_axis, permute_dims, reshape, sum_to


def _infer(a: Any, b: Any) -> tuple[Shape, DType]:
    return (*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]), a.dtype


def _into(xp: Any, a: Any, b: Any, out: Any) -> None:
    """The product with NumPy; a GPU has its own (devices/cuda_products.py)."""
    if a.dtype in HALVES:
        wide = np.dtype(np.float32)
        out[...] = np.matmul(a.astype(wide), b.astype(wide))
    elif b.ndim == 2 and a.ndim > 2 and out.flags.c_contiguous:  # one product, not one for each leading index
        m, n = math.prod(a.shape[:-1]), b.shape[1]
        np.matmul(a.reshape(m, b.shape[0]), b, out=out.reshape(m, n))
    else:
        np.matmul(a, b, out=out)


def _left(g: Tensor, b: Tensor, like: Any) -> Tensor:
    """The cotangent of a in a @ b, of shape `like`.  A plain matrix that met a batch gets it from one product."""
    if len(like) == 2 and b.ndim > 2:
        return matmul(_rows_first(g), matrix_transpose(_rows_first(b)))
    return sum_to(_product(g, matrix_transpose(b)), like)


def _right(g: Tensor, a: Tensor, like: Any) -> Tensor:
    """The cotangent of b in a @ b, of shape `like`."""
    if len(like) == 2 and a.ndim > 2:
        return matmul(matrix_transpose(_rows(a)), _rows(g))
    return sum_to(_product(matrix_transpose(a), g), like)


def _rows(x: Tensor) -> Tensor:
    """All rows of all matrices of `x` below each other."""
    return reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))


def _rows_first(x: Tensor) -> Tensor:
    """All matrices of `x` beside each other."""
    n = x.ndim
    return reshape(permute_dims(x, (n - 2, *range(n - 2), n - 1)), (x.shape[-2], math.prod(x.shape[:-2]) * x.shape[-1]))


_product: Anchor = Anchor(
    "matmul",
    "ab",
    infer=_infer,
    into=_into,
    vjp=(lambda g, b, like: _left(g, b, like[0][0]), lambda g, a, like: _right(g, a, like[1][0])),
    jvp=(lambda t, b: _product(t, b), lambda t, a: _product(a, t)),
)


def matmul(a: Any, b: Any, /) -> Tensor:
    """The product of the matrices in the last two axes, broadcast over the others.

    A vector on the left is a row and on the right a column, whose axis the result does not have.  Half types are
    multiplied and added up in float32 and rounded at the end.
    """
    a, b = as_operand(a), as_operand(b)
    if not a.ndim or not b.ndim or a.shape[-1] != b.shape[-2 if b.ndim > 1 else 0]:
        raise _cannot("matmul", a, b, "the last axis of the first must be as long as the next-to-last of the second")
    if a.dtype != b.dtype:
        common = result_dtype((a.dtype, b.dtype))
        a, b = astype(a, common), astype(b, common)
    if a.dtype == bool_:
        raise DTypeError(f"matmul() cannot multiply {describe(a)} and {describe(b)}; cast them with .to(gpuad.int64)")
    if a.ndim > 1 and b.ndim > 1:
        if a.ndim > 2 and b.ndim > 2 and not _broadcast(a.shape[:-2], b.shape[:-2]):
            raise _cannot("matmul", a, b, "the axes before the last two must be equal or have a 1")
        result: Tensor = _product(a, b)
        return result
    row, column = a.ndim == 1, b.ndim == 1
    y = _product(reshape(a, (1, a.size)) if row else a, reshape(b, (b.size, 1)) if column else b)
    batch = y.shape[:-2]
    return reshape(y, (*batch, *(() if row else y.shape[-2:-1]), *(() if column else y.shape[-1:])))


def _gradient_into(xp: Any, g: Any, a: Any, out: Any) -> None:
    n = math.prod(g.shape[:-1])
    _into(xp, g.reshape(n, g.shape[-1]).T, a.reshape(n, a.shape[-1]), out)


# The cotangent of the weight in linear(a, w), from that of the result: the sum of outer products over all rows.
_weight_gradient: Anchor = Anchor(
    "linear_weight",
    "ga",
    infer=lambda g, a: ((g.shape[-1], a.shape[-1]), a.dtype),
    into=_gradient_into,
    vjp=(lambda h, a: _linear(a, h), lambda h, g: _product(g, h)),
    jvp=(lambda t, a: _weight_gradient(t, a), lambda t, g: _weight_gradient(g, t)),
)
_linear: Anchor = Anchor(
    "linear",
    "aw",
    infer=lambda a, w: ((*a.shape[:-1], w.shape[0]), a.dtype),
    into=lambda xp, a, w, out: _into(xp, a, w.T, out),
    vjp=(
        lambda g, w: _product(g, w),
        lambda g, a: _weight_gradient(g, a),
    ),
    jvp=(lambda t, w: _linear(t, w), lambda t, a: _linear(a, t)),
)


def linear(x: Any, weight: Any, /, bias: Any = None) -> Tensor:
    """`x @ weight.T + bias` for x [..., in], weight [out, in] and bias [out]: [..., out].

    Its gradients come in the layout of the weight, without a transposition in memory.
    """
    x, weight = as_operand(x), as_operand(weight)
    if not x.ndim or weight.ndim != 2 or x.shape[-1] != weight.shape[1]:
        raise _cannot("linear", x, weight, "the last axis of the first must be as long as that of a weight [out, in]")
    common = result_dtype((x.dtype, weight.dtype))
    x, weight = (v if v.dtype == common else astype(v, common) for v in (x, weight))
    y: Tensor = _linear(x if x.ndim > 1 else reshape(x, (1, x.size)), weight)
    y = y if x.ndim > 1 else reshape(y, weight.shape[:1])
    return y if bias is None else y + bias


def matrix_transpose(x: Any, /) -> Tensor:
    """`x` with its last two axes exchanged."""
    x = as_operand(x)
    if x.ndim < 2:
        raise ShapeError(f"matrix_transpose() needs at least 2 axes, got {describe(x)}")
    return permute_dims(x, (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2))


def tensordot(a: Any, b: Any, /, *, axes: int | tuple[Sequence[int], Sequence[int]] = 2) -> Tensor:
    """The sum of products over pairs of axes: the last `axes` of `a` with the first of `b`, or two lists of them.

    The result has the other axes of `a`, then those of `b`.
    """
    a, b = as_operand(a), as_operand(b)
    if isinstance(axes, int):
        if not 0 <= axes <= min(a.ndim, b.ndim):
            raise _cannot("tensordot", a, b, f"there are no {axes} axes in each to sum over")
        of_a, of_b = list(range(a.ndim - axes, a.ndim)), list(range(axes))
    else:
        of_a = [normalize_axis(int(k), a, "tensordot") for k in axes[0]]
        of_b = [normalize_axis(int(k), b, "tensordot") for k in axes[1]]
    lengths = [a.shape[k] for k in of_a]
    if lengths != [b.shape[k] for k in of_b] or len(set(of_a)) != len(of_a) or len(set(of_b)) != len(of_b):
        raise _cannot("tensordot", a, b, f"the axes {tuple(of_a)} and {tuple(of_b)} must be as long, each once")
    rest_a = [k for k in range(a.ndim) if k not in of_a]
    rest_b = [k for k in range(b.ndim) if k not in of_b]
    shape_a, shape_b = [a.shape[k] for k in rest_a], [b.shape[k] for k in rest_b]
    inner = math.prod(lengths)
    left = reshape(permute_dims(a, (*rest_a, *of_a)), (math.prod(shape_a), inner))
    right = reshape(permute_dims(b, (*of_b, *rest_b)), (inner, math.prod(shape_b)))
    return reshape(matmul(left, right), (*shape_a, *shape_b))


def vecdot(a: Any, b: Any, /, *, axis: int = -1) -> Tensor:
    """The sum of products along `axis`, which both have; other axes are broadcast."""
    a, b = as_operand(a), as_operand(b)
    if not -min(a.ndim, b.ndim) <= axis < 0 and not (a.ndim == b.ndim and 0 <= axis < a.ndim):
        raise _cannot("vecdot", a, b, f"axis {axis} is not an axis of both, counted from the end")
    if a.shape[axis] != b.shape[axis]:
        raise _cannot("vecdot", a, b, f"axis {axis} must be as long in both")
    common = result_dtype((a.dtype, b.dtype))
    wide = compute_dtype(common)
    return astype(sum(astype(a, wide) * astype(b, wide), axis=axis, dtype=wide), common)


def outer(a: Any, b: Any, /) -> Tensor:
    """The products of each element of the vector `a` with each of `b`, as a matrix."""
    a, b = as_operand(a), as_operand(b)
    if a.ndim != 1 or b.ndim != 1:
        raise _cannot("outer", a, b, "both must have one axis; reshape them with (-1,)")
    result: Tensor = reshape(a, (a.size, 1)) * b
    return result


def _broadcast(a: Shape, b: Shape) -> bool:
    return all(x == y or x == 1 or y == 1 for x, y in zip(reversed(a), reversed(b), strict=False))


def _cannot(name: str, a: Tensor, b: Tensor, why: str) -> ShapeError:
    return ShapeError(f"{name}() cannot multiply {describe(a)} and {describe(b)}\n  {why}")


__all__ = ["linear", "matmul", "matrix_transpose", "outer", "tensordot", "vecdot"]
