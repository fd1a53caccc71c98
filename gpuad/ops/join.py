"""Joining tensors along an axis, and taking them apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..array import Shape, describe
from ..convert import as_operand
from ..dtype import DType, result_dtype
from ..errors import ShapeError
from ..op import Inferred, Joining
from ..tensor import Tensor
from .shape import astype, expand_dims, normalize_axis, reshape, window


def _infer(*arrays: Any, axis: int) -> Inferred:
    first = arrays[0]
    length = sum(x.shape[axis] for x in arrays)
    return (*first.shape[:axis], length, *first.shape[axis + 1 :]), first.dtype


def _split(g: Tensor, like: list[tuple[Shape, DType]], axis: int) -> list[Tensor]:
    parts, start = [], 0
    for shape, _ in like:
        stop = start + shape[axis]
        parts.append(window(g, key=(slice(None),) * axis + (slice(start, stop), ...)))
        start = stop
    return parts


_concat = Joining(
    "concat", infer=_infer, forward=lambda xp, *arrays, axis: xp.concatenate(arrays, axis=axis), split=_split
)


def _operands(arrays: Sequence[Any], name: str) -> list[Tensor]:
    """`arrays` as tensors of their common dtype."""
    tensors = [as_operand(x) for x in arrays]
    if not tensors:
        raise ShapeError(f"{name}() needs at least one tensor")
    common = result_dtype(tuple(x.dtype for x in tensors))
    return [astype(x, common) for x in tensors]


def concat(arrays: Sequence[Any], /, *, axis: int | None = 0) -> Tensor:
    """The `arrays` one after the other along `axis`; with None, all of their elements in one axis."""
    tensors = _operands(arrays, "concat")
    if axis is None:
        tensors, axis = [reshape(x, -1) for x in tensors], 0
    first = tensors[0]
    k = normalize_axis(axis, first, "concat")
    for x in tensors:
        if x.ndim != first.ndim or (*x.shape[:k], *x.shape[k + 1 :]) != (*first.shape[:k], *first.shape[k + 1 :]):
            raise ShapeError(
                f"concat() cannot join {describe(first)} and {describe(x)} along axis {k}\n"
                "  their shapes must be equal along every other axis"
            )
    result: Tensor = _concat(*tensors, axis=k)
    return result


def stack(arrays: Sequence[Any], /, *, axis: int = 0) -> Tensor:
    """The `arrays`, of one shape, as the slices of a new axis."""
    tensors = _operands(arrays, "stack")
    first = tensors[0]
    for x in tensors:
        if x.shape != first.shape:
            raise ShapeError(f"stack() needs tensors of one shape, got {describe(first)} and {describe(x)}")
    if not -first.ndim - 1 <= axis <= first.ndim:
        raise ShapeError(f"stack() cannot put an axis at {axis} of {describe(first)}, which has {first.ndim} axes")
    k = axis % (first.ndim + 1)
    result: Tensor = _concat(*[expand_dims(x, axis=k) for x in tensors], axis=k)
    return result


def unstack(x: Tensor, /, *, axis: int = 0) -> tuple[Tensor, ...]:
    """The slices of `x` along `axis`, without that axis."""
    x = as_operand(x)
    k = normalize_axis(axis, x, "unstack")
    return tuple(window(x, key=(slice(None),) * k + (i, ...)) for i in range(x.shape[k]))


__all__ = ["concat", "stack", "unstack"]
