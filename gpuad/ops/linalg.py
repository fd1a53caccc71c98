"""Products of matrices."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..array import describe
from ..dtype import DType, result_dtype
from ..errors import ShapeError
from ..op import Anchor
from ..tensor import Tensor
from .shape import astype, permute_dims, sum_to


def _infer(a: Any, b: Any) -> tuple[tuple[int, ...], DType]:
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return (*batch, a.shape[-2], b.shape[-1]), a.dtype


def _into(a: Any, b: Any, out: Any) -> None:
    np.matmul(a, b, out=out)


def matrix_transpose(x: Tensor, /) -> Tensor:
    """`x` with its last two axes exchanged."""
    if x.ndim < 2:
        raise ShapeError(f"matrix_transpose() needs at least 2 axes, got {describe(x)}")
    return permute_dims(x, (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2))


_matmul = Anchor(
    "matmul",
    "ab",
    infer=_infer,
    into=_into,
    vjp=(
        lambda g, b, like: sum_to(matmul(g, matrix_transpose(b)), like[0][0]),
        lambda g, a, like: sum_to(matmul(matrix_transpose(a), g), like[1][0]),
    ),
    jvp=(lambda t, b: matmul(t, b), lambda t, a: matmul(a, t)),
)


def matmul(a: Any, b: Any, /) -> Tensor:
    """The product of matrices in the last two axes, broadcast over the others; vectors as in the array API."""
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
        raise ShapeError(f"matmul() cannot multiply {describe(a)} and {describe(b)}")
    common = result_dtype((a.dtype, b.dtype))
    result: Tensor = _matmul(astype(a, common), astype(b, common))
    return result
