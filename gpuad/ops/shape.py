"""Rearranging: views where the memory allows, copies where it does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..array import Array, Shape, describe
from ..dtype import DType, as_dtype
from ..errors import ShapeError
from ..op import Elementwise, Op, View, broadcast_shape, structural
from ..provenance import Site
from ..tensor import Tensor
from .create import constant

# --- dtype ------------------------------------------------------------------------------------

_casts: dict[DType, Elementwise] = {}  # one op for each dtype to cast to


def _copy(x: Any, out: Any) -> None:
    np.copyto(out, x, casting="unsafe")


class _Cast(Elementwise):
    """Each element as another dtype."""

    def __init__(self, target: DType) -> None:
        super().__init__(f"astype_{target}", "x", numpy=_copy, cuda="x", cost=0.5, diff=(lambda t: astype(t, target),))
        self.target = target

    def _sign(self, operands: tuple[DType | type, ...]) -> tuple[tuple[DType, ...], DType]:
        (dtype,) = operands
        assert isinstance(dtype, np.dtype)
        return (dtype,), self.target


def astype(x: Tensor, dtype: Any, /, *, copy: bool = True) -> Tensor:
    """`x` with its elements as `dtype`; `x` itself where that changes nothing."""
    target = as_dtype(dtype)
    if x.dtype == target:
        return x
    op = _casts.get(target)
    if op is None:
        op = _casts[target] = _Cast(target)
    result: Tensor = op(x)
    return result


# --- shape ------------------------------------------------------------------------------------

_reshape = View("reshape", lambda x, shape: x.reshape(shape), transpose=lambda g, like: reshape(g, like[0][0]))
_permute = View(
    "permute_dims",
    lambda x, axes: x.transpose(axes),
    transpose=lambda g, axes: permute_dims(g, tuple(int(k) for k in np.argsort(axes))),
)


def reshape(x: Tensor, /, shape: int | Sequence[int], *, copy: bool | None = None) -> Tensor:
    """The elements of `x`, in order, as another shape; one length may be -1."""
    wanted = (shape,) if isinstance(shape, int) else tuple(int(n) for n in shape)
    if wanted.count(-1) == 1:
        rest = int(np.prod([n for n in wanted if n != -1]))
        if rest and x.size % rest == 0:
            wanted = tuple(x.size // rest if n == -1 else n for n in wanted)
    if any(n < 0 for n in wanted) or int(np.prod(wanted)) != x.size:
        raise ShapeError(f"reshape() cannot make {tuple(wanted)} of {describe(x)}, which has {x.size} elements")
    if wanted == x.shape:
        return x
    result: Tensor = _reshape(x, shape=wanted)
    return result


def permute_dims(x: Tensor, /, axes: Sequence[int]) -> Tensor:
    """`x` with its axes in the order `axes`."""
    order = tuple(normalize_axis(k, x, "permute_dims") for k in axes)
    if sorted(order) != list(range(x.ndim)):
        raise ShapeError(f"permute_dims() needs each axis of {describe(x)} once, got {tuple(axes)}")
    if order == tuple(range(x.ndim)):
        return x
    result: Tensor = _permute(x, axes=order)
    return result


def normalize_axis(axis: int, x: Tensor, name: str) -> int:
    """`axis` counted from the front."""
    if not -x.ndim <= axis < x.ndim:
        raise ShapeError(f"{name}() got axis {axis} of {describe(x)}, which has {x.ndim} axes")
    return axis % x.ndim


class _Broadcast(Op):
    """`x` repeated along new axes and axes of length 1: a view of computed memory, pending where `x` is."""

    def __init__(self) -> None:
        super().__init__(
            "broadcast_to", ("x",), vjp=(lambda g, like: sum_to(g, like[0][0]),), params=("shape",), doc=_Broadcast.__doc__ or ""
        )
        self.jvp = [((lambda t, shape: broadcast_to(t, shape)), (self.slots["shape"],))]
        self.spread = Elementwise("broadcast", "x", numpy=_copy, cuda="x", cost=0.25)

    def evaluate(self, arrays: list[Any], params: dict[str, Any], site: Site | None) -> Array:
        (x,), shape = arrays, params["shape"]
        if x.op is constant:
            return constant.make(shape, x.dtype, x.device, x.params, site)
        if x.op is not None:
            return Array(shape, x.dtype, x.device, self.spread, (x,), (), x.depth + 1, site)
        return x.device.view(x, np.broadcast_to(x.data, shape), site)  # type: ignore[no-any-return]


_broadcast = _Broadcast()


def broadcast_to(x: Tensor, /, shape: Sequence[int]) -> Tensor:
    """`x` repeated to `shape`, without copying."""
    wanted = tuple(int(n) for n in shape)
    if wanted == x.shape:
        return x
    padded = (1,) * (len(wanted) - x.ndim) + x.shape
    if len(padded) != len(wanted) or any(a not in (1, b) for a, b in zip(padded, wanted, strict=True)):
        raise ShapeError(f"broadcast_to() cannot repeat {describe(x)} to {wanted}")
    result: Tensor = _broadcast(x, shape=wanted)
    return result


def sum_to(x: Tensor, shape: Shape) -> Tensor:
    """The sum of `x` over the axes along which `shape` was broadcast to it."""
    from .reduce import sum

    if x.shape == shape:
        return x
    extra = x.ndim - len(shape)
    axes = tuple(range(extra)) + tuple(k + extra for k, n in enumerate(shape) if n == 1 and x.shape[k + extra] != 1)
    return reshape(sum(x, axis=axes), shape)


structural.update(sum_to=sum_to, broadcast_to=broadcast_to, astype=astype)

__all__ = ["astype", "broadcast_shape", "broadcast_to", "normalize_axis", "permute_dims", "reshape", "sum_to"]
