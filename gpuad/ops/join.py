"""Joining tensors along an axis, and taking them apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..array import Shape, describe
from ..convert import as_operand
from ..dtype import DType, result_dtype
from ..errors import ShapeError
from ..fuse.plan import realize
from ..op import Inferred, Joining, Op
from ..provenance import Site
from ..tensor import Tensor
from .create import zeros
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
    "concat",
    infer=_infer,
    into=lambda xp, *arrays, axis: xp.concatenate(arrays[:-1], axis=axis, out=arrays[-1]),
    split=_split,
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


class _Unstack(Op):
    """The `n` slices of x along an axis: views, whose cotangents are stacked into one."""

    def __init__(self, n: int) -> None:
        super().__init__(
            "unstack",
            ("x",),
            outputs=tuple(f"y{k}" for k in range(n)) if n > 1 else ("y",),
            vjp=(lambda g, like, axis: _restack(g if n > 1 else [g], like[0], axis),),
            jvp=(lambda t, axis: list(unstack(t, axis=axis)) if n > 1 else unstack(t, axis=axis)[0],),
            params=("axis",),
        )

    def evaluate(self, arrays: list[Any], params: dict[str, Any], site: Site | None) -> Any:
        x, axis = realize(arrays[0]), params["axis"]
        places = [(slice(None),) * axis + (k,) for k in range(x.shape[axis])]
        views = tuple([x.device.view(x, x.data[place + (...,)], site) for place in places])
        return views if len(views) > 1 else views[0]


def _restack(parts: list[Any], like: tuple[Shape, DType], axis: int) -> Tensor:
    """The cotangent of what was unstacked, of the shape and dtype `like`, from those of the slices."""
    shape, dtype = like
    rest = (*shape[:axis], *shape[axis + 1 :])
    device = next(g.device for g in parts if g is not None)
    return stack([zeros(rest, dtype=dtype, device=device) if g is None else g for g in parts], axis=axis)


_unstacks: dict[int, _Unstack] = {}  # one op for each number of slices


def unstack(x: Tensor, /, *, axis: int = 0) -> tuple[Tensor, ...]:
    """The slices of `x` along `axis`, without that axis."""
    x = as_operand(x)
    k = normalize_axis(axis, x, "unstack")
    n = x.shape[k]
    if n == 0:
        return ()
    if n not in _unstacks:
        _unstacks[n] = _Unstack(n)
    result = _unstacks[n](x, axis=k)
    return result if isinstance(result, tuple) else (result,)


__all__ = ["concat", "stack", "unstack"]
