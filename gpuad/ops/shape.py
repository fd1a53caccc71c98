"""Rearranging: views where the memory allows, copies where it does not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..array import COMPOSITE, Array, Shape, describe
from ..convert import as_operand
from ..dtype import DType, as_dtype, is_float
from ..errors import DTypeError, ShapeError
from ..fuse.plan import SURVEY_EVERY, cut
from ..op import Elementwise, Op, Opaque, View, broadcast_shape, structural
from ..operators import operators
from ..provenance import Site
from ..tensor import Tensor
from .compare import where
from .create import arange, constant

# --- dtype ------------------------------------------------------------------------------------

_casts: dict[DType, Elementwise] = {}  # one op for each dtype to cast to


def _copy(x: Any, out: Any) -> None:
    np.copyto(out, x, casting="unsafe")


def _pack(xp: Any, x: Any, out: Any) -> None:
    out[...] = x


class _Cast(Elementwise):
    """Each element as another dtype."""

    def __init__(self, target: DType) -> None:
        rule = (lambda t: astype(t, target)) if is_float(target) else None
        super().__init__(f"astype_{target}", "x", numpy=_copy, cuda="x", cost=0.5, diff=(rule,))
        self.target = target

    def _sign(self, operands: tuple[DType | type, ...]) -> tuple[tuple[DType, ...], DType]:
        (dtype,) = operands
        assert isinstance(dtype, np.dtype)
        return (dtype,), self.target


class _Same(Op):
    """The value itself, which is how a function that changes nothing gives back a handle of its own."""

    fusion = COMPOSITE

    def __init__(self) -> None:
        super().__init__("view", ("x",), vjp=(lambda g: g,), jvp=(lambda t: t,))

    def evaluate(self, arrays: list[Any], params: dict[str, Any], site: Site | None) -> Array:
        array: Array = arrays[0]
        return array


_same = _Same()


def same(x: Tensor) -> Tensor:
    """The value of `x` under a handle of its own: rebinding one leaves the other alone."""
    if x.trace is None and x.link is None:
        return Tensor(x.data)
    result: Tensor = _same(x)
    return result


def astype(x: Tensor, dtype: Any, /, *, copy: bool = True) -> Tensor:
    """`x` with its elements as `dtype`."""
    target = as_dtype(dtype)
    if x.dtype == target:
        return same(x)
    op = _casts.get(target)
    if op is None:
        op = _casts[target] = _Cast(target)
    result: Tensor = op(x)
    return result


# --- views ------------------------------------------------------------------------------------


class _Reshape(View):
    """The elements in another shape: a view, or of memory in another order a copy."""

    def __init__(self) -> None:
        super().__init__(
            "reshape", lambda x, shape: x.reshape(shape, copy=False), transpose=lambda g, like: reshape(g, like[0][0])
        )
        self.pack = Opaque("contiguous", "x", infer=lambda x: (x.shape, x.dtype), into=_pack)

    def evaluate(self, arrays: list[Any], params: dict[str, Any], site: Site | None) -> Array:
        (x,), shape = arrays, params["shape"]
        if x.op is constant:
            same: Array = constant.make(shape, x.dtype, x.device, x.params, site)
            return same
        try:
            return super().evaluate(arrays, params, site)
        except ValueError:  # no strides give this order
            return super().evaluate([self.pack.evaluate([x], {}, site)], params, site)


_reshape = _Reshape()
_permute = View(
    "permute_dims",
    lambda x, axes: x.transpose(axes),
    transpose=lambda g, axes: permute_dims(g, tuple(int(k) for k in np.argsort(axes))),
)
_flip: View = View(
    "flip",
    lambda x, axes: x[(*(slice(None, None, -1 if k in axes else 1) for k in range(x.ndim)), ...)],
    transpose=lambda g, axes: _flip(g, axes=axes),
)
window: View = View(
    "getitem",
    lambda x, key: x[key],
    transpose=lambda g, key, like: place(g, key=key, shape=like[0][0], fill=0),
    doc="The part of `x` that a key of slices, integers and None selects; the key has an Ellipsis.",
)


def _place(xp: Any, x: Any, out: Any, key: Any, shape: Shape, fill: Any) -> None:
    if x.size != out.size:
        out.fill(fill)
    out[key] = x


place: Opaque = Opaque(
    "place",
    "x",
    infer=lambda x, key, shape, fill: (shape, x.dtype),
    into=_place,
    vjp=(lambda g, key: window(g, key=key),),
    jvp=(lambda t, key, shape: place(t, key=key, shape=shape, fill=0),),
    params=("key", "shape", "fill"),
    doc="A tensor of `shape` that has `x` where `key` selects, and `fill` elsewhere.",
)


def reshape(x: Tensor, /, shape: int | Sequence[int], *, copy: bool | None = None) -> Tensor:
    """The elements of `x`, in order, as another shape; one length may be -1."""
    x = as_operand(x)
    wanted = (shape,) if isinstance(shape, int) else tuple(int(n) for n in shape)
    if wanted.count(-1) == 1:
        rest = math.prod(n for n in wanted if n != -1)
        if rest and x.size % rest == 0:
            wanted = tuple(x.size // rest if n == -1 else n for n in wanted)
    if any(n < 0 for n in wanted) or math.prod(wanted) != x.size:
        raise ShapeError(f"reshape() cannot make {tuple(wanted)} of {describe(x)}, which has {x.size} elements")
    if wanted == x.shape:
        return same(x)
    result: Tensor = _reshape(x, shape=wanted)
    return result


def permute_dims(x: Tensor, /, axes: Sequence[int]) -> Tensor:
    """`x` with its axes in the order `axes`."""
    x = as_operand(x)
    n = len(x.shape)
    order = tuple([k % n if -n <= k < n else normalize_axis(k, x, "permute_dims") for k in axes])
    identity = list(range(n))
    if sorted(order) != identity:
        raise ShapeError(f"permute_dims() needs each axis of {describe(x)} once, got {tuple(axes)}")
    if list(order) == identity:
        return same(x)
    result: Tensor = _permute(x, axes=order)
    return result


def normalize_axis(axis: int, x: Tensor, name: str) -> int:
    """`axis` counted from the front."""
    if not -x.ndim <= axis < x.ndim:
        raise ShapeError(f"{name}() got axis {axis} of {describe(x)}, which has {x.ndim} axes")
    return axis % x.ndim


def normalize_axes(axis: int | Sequence[int], x: Tensor, name: str) -> tuple[int, ...]:
    """Each of `axis`, which must differ, counted from the front."""
    axes = tuple(normalize_axis(k, x, name) for k in ((axis,) if isinstance(axis, int) else axis))
    if len(set(axes)) != len(axes):
        raise ShapeError(f"{name}() got an axis twice in {axis} for {describe(x)}")
    return axes


def moveaxis(x: Tensor, source: int | Sequence[int], destination: int | Sequence[int], /) -> Tensor:
    """`x` with its axes `source` at the places `destination`; the others keep their order."""
    x = as_operand(x)
    taken, places = normalize_axes(source, x, "moveaxis"), normalize_axes(destination, x, "moveaxis")
    if len(taken) != len(places):
        raise ShapeError(f"moveaxis() got {len(taken)} axes to move to {len(places)} places")
    order = [k for k in range(x.ndim) if k not in taken]
    for to, axis in sorted(zip(places, taken, strict=True)):
        order.insert(to, axis)
    return permute_dims(x, order)


def expand_dims(x: Tensor, /, *, axis: int = 0) -> Tensor:
    """`x` with a new axis of length 1 at the place `axis` of the result."""
    x = as_operand(x)
    if not -x.ndim - 1 <= axis <= x.ndim:
        raise ShapeError(f"expand_dims() cannot put an axis at {axis} of {describe(x)}, which has {x.ndim} axes")
    at = axis % (x.ndim + 1)
    return reshape(x, (*x.shape[:at], 1, *x.shape[at:]))


def squeeze(x: Tensor, /, axis: int | Sequence[int]) -> Tensor:
    """`x` without the axes `axis`, which must have length 1."""
    x = as_operand(x)
    axes = normalize_axes(axis, x, "squeeze")
    if long := [k for k in axes if x.shape[k] != 1]:
        raise ShapeError(
            f"squeeze() cannot drop axis {long[0]} of {describe(x)}: its length is {x.shape[long[0]]}, not 1"
        )
    return reshape(x, tuple(n for k, n in enumerate(x.shape) if k not in axes))


def flip(x: Tensor, /, *, axis: int | Sequence[int] | None = None) -> Tensor:
    """`x` with its elements in reverse order along `axis` (along all axes by default)."""
    x = as_operand(x)
    axes = tuple(range(x.ndim)) if axis is None else normalize_axes(axis, x, "flip")
    result: Tensor = _flip(x, axes=axes)
    return result


# --- repeated ---------------------------------------------------------------------------------


class _Broadcast(Op):
    """`x` repeated along new axes and axes of length 1: a view of computed memory, pending where `x` is."""

    def __init__(self) -> None:
        super().__init__(
            "broadcast_to",
            ("x",),
            vjp=(lambda g, like: sum_to(g, like[0][0]),),
            params=("shape",),
            doc=_Broadcast.__doc__ or "",
        )
        self.jvp = [((lambda t, shape: broadcast_to(t, shape)), (self.slots["shape"],))]
        self.spread = Elementwise("broadcast", "x", numpy=_copy, cuda="x", cost=0.25)

    def evaluate(self, arrays: list[Any], params: dict[str, Any], site: Site | None) -> Array:
        (x,), shape = arrays, params["shape"]
        if x.op is constant:
            same: Array = constant.make(shape, x.dtype, x.device, x.params, site)
            return same
        depth = x.depth + 1
        if x.op is not None and not (
            depth % SURVEY_EVERY == 0 and cut([x], depth, math.prod(shape) * x.dtype.itemsize)
        ):
            return Array(shape, x.dtype, x.device, self.spread, (x,), (), depth, site)
        return x.device.view(x, x.device.xp.broadcast_to(x.data, shape), site)  # type: ignore[no-any-return]


_broadcast = _Broadcast()


def broadcast_to(x: Tensor, /, shape: Sequence[int]) -> Tensor:
    """`x` repeated to `shape`, without copying."""
    x = as_operand(x)
    wanted = tuple(int(n) for n in shape)
    if wanted == x.shape:
        return same(x)
    padded = (1,) * (len(wanted) - x.ndim) + x.shape
    if len(padded) != len(wanted) or any(a not in (1, b) for a, b in zip(padded, wanted, strict=True)):
        raise ShapeError(f"broadcast_to() cannot repeat {describe(x)} to {wanted}")
    result: Tensor = _broadcast(x, shape=wanted)
    return result


def broadcast_arrays(*arrays: Tensor) -> list[Tensor]:
    """`arrays` repeated to the shape they have in common."""
    tensors = [as_operand(x) for x in arrays]
    shape = broadcast_shape("broadcast_arrays", tensors)
    return [broadcast_to(x, shape) for x in tensors]


def sum_to(x: Tensor, shape: Shape) -> Tensor:
    """The sum of `x` over the axes along which `shape` was broadcast to it."""
    if x.shape == shape:
        return x
    extra = x.ndim - len(shape)
    axes = tuple(range(extra)) + tuple(k + extra for k, n in enumerate(shape) if n == 1 and x.shape[k + extra] != 1)
    return reshape(operators.sum(x, axis=axes), shape)


def tile(x: Tensor, repetitions: Sequence[int], /) -> Tensor:
    """Copies of `x` side by side, `repetitions[k]` of them along axis k; the shorter of the two is filled with ones."""
    x = as_operand(x)
    if any(n < 0 for n in repetitions):
        raise ShapeError(f"tile() cannot repeat {describe(x)} {tuple(repetitions)} times")
    n = max(len(repetitions), x.ndim)
    times = (1,) * (n - len(repetitions)) + tuple(repetitions)
    shape = (1,) * (n - x.ndim) + x.shape
    apart = reshape(x, tuple(k for d in shape for k in (1, d)))
    spread = broadcast_to(apart, tuple(k for t, d in zip(times, shape, strict=True) for k in (t, d)))
    return reshape(spread, tuple(t * d for t, d in zip(times, shape, strict=True)))


def repeat(x: Tensor, repeats: Any, /, *, axis: int | None = None) -> Tensor:
    """`x` with each slice along `axis` repeated: `repeats` times, or the k-th `repeats[k]` times.

    Without `axis` the elements of `x` are, in order.  The shape depends on the values of `repeats`.
    """
    from .index import take

    x = as_operand(x)
    if axis is None:
        return repeat(reshape(x, -1), repeats, axis=0)
    k = normalize_axis(axis, x, "repeat")
    counts = np.asarray(repeats.numpy() if isinstance(repeats, Tensor) else repeats)
    if counts.dtype.kind not in "iu":
        raise DTypeError(f"repeat() needs integer counts, got {counts.dtype}")
    if counts.size and counts.min() < 0:
        raise ShapeError(f"repeat() cannot repeat {describe(x)} {counts.min()} times")
    n = x.shape[k]
    if counts.size == 1:
        times = counts.item()
        spread = broadcast_to(expand_dims(x, axis=k + 1), (*x.shape[: k + 1], times, *x.shape[k + 1 :]))
        return reshape(spread, (*x.shape[:k], n * times, *x.shape[k + 1 :]))
    if counts.shape != (n,):
        raise ShapeError(
            f"repeat() needs one count for each of the {n} along axis {k} of {describe(x)}, got {counts.shape}"
        )
    return take(x, np.repeat(np.arange(n), counts), axis=k)


def meshgrid(*arrays: Tensor, indexing: str = "xy") -> list[Tensor]:
    """The coordinates of a grid: for each of `arrays`, one-dimensional, a tensor that varies along an axis of its own.

    The k-th varies along axis k; with `indexing="xy"` the first two axes change places.
    """
    if indexing not in ("xy", "ij"):
        raise ShapeError(f'meshgrid() takes indexing="xy" or "ij", got {indexing!r}')
    tensors = [as_operand(x) for x in arrays]
    if wrong := [x for x in tensors if x.ndim > 1]:
        raise ShapeError(f"meshgrid() needs one-dimensional tensors, got {describe(wrong[0])}")
    n = len(tensors)
    place_of = [1, 0, *range(2, n)] if indexing == "xy" and n > 1 else list(range(n))
    shape = [0] * n
    for x, k in zip(tensors, place_of, strict=True):
        shape[k] = x.size
    return [
        broadcast_to(reshape(x, (1,) * k + (x.size,) + (1,) * (n - k - 1)), shape)
        for x, k in zip(tensors, place_of, strict=True)
    ]


# --- moved and masked -------------------------------------------------------------------------

_roll: Opaque = Opaque(
    "roll",
    "x",
    infer=lambda x, shift, axis: (x.shape, x.dtype),
    forward=lambda xp, x, shift, axis: xp.roll(x, shift, axis),
    vjp=(lambda g, shift, axis: _roll(g, shift=tuple(-s for s in shift), axis=axis),),
    jvp=(lambda t, shift, axis: _roll(t, shift=shift, axis=axis),),
    params=("shift", "axis"),
)


def roll(x: Tensor, /, shift: int | Sequence[int], *, axis: int | Sequence[int] | None = None) -> Tensor:
    """`x` with its elements moved by `shift` along `axis`; those that leave the end come in at the start.

    Without `axis`, in the order of their memory.
    """
    x = as_operand(x)
    if axis is None:
        return reshape(roll(reshape(x, -1), shift, axis=0), x.shape)
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    shifts = (shift,) * len(axes) if isinstance(shift, int) else tuple(shift)
    if len(shifts) != len(axes):
        raise ShapeError(f"roll() got {len(shifts)} shifts for {len(axes)} axes")
    result: Tensor = _roll(x, shift=shifts, axis=tuple(normalize_axis(k, x, "roll") for k in axes))
    return result


def _diagonals(x: Tensor, k: int, name: str) -> Tensor:
    """bool[rows, columns], true above the k-th diagonal."""
    if x.ndim < 2:
        raise ShapeError(f"{name}() needs at least 2 axes, got {describe(x)}")
    rows, columns = x.shape[-2:]
    return arange(columns, device=x.device) > reshape(arange(k, rows + k, device=x.device), (rows, 1))


def tril(x: Tensor, /, *, k: int = 0) -> Tensor:
    """`x` with 0 above the k-th diagonal of its last two axes."""
    x = as_operand(x)
    result: Tensor = where(_diagonals(x, k, "tril"), 0, x)
    return result


def triu(x: Tensor, /, *, k: int = 0) -> Tensor:
    """`x` with 0 below the k-th diagonal of its last two axes."""
    x = as_operand(x)
    result: Tensor = where(_diagonals(x, k - 1, "triu"), x, 0)
    return result


def pad(x: Tensor, /, pad_width: Any, mode: str = "constant", *, constant_values: bool | int | float = 0) -> Tensor:
    """`x` with `constant_values` around it: `pad_width` before and after each axis.

    `pad_width` is one number, a pair (before, after), or a pair for each axis.
    """
    x = as_operand(x)
    if mode != "constant":
        raise ShapeError(f'pad() offers mode="constant", got {mode!r}')
    if type(constant_values) is float and not is_float(x.dtype):
        raise DTypeError(f"pad() cannot put {constant_values} into {describe(x)}; cast it with .to(gpuad.float32)")
    try:
        widths = np.broadcast_to(np.asarray(pad_width), (x.ndim, 2)).tolist()
    except ValueError:
        raise ShapeError(f"pad() needs a pair of widths for each axis of {describe(x)}, got {pad_width}") from None
    if any(type(n) is not int or n < 0 for pair in widths for n in pair):
        raise ShapeError(f"pad() needs widths that are integers and not negative, got {pad_width}")
    key = (*(slice(before, before + n) for (before, _), n in zip(widths, x.shape, strict=True)), ...)
    shape = tuple(before + n + after for (before, after), n in zip(widths, x.shape, strict=True))
    result: Tensor = place(x, key=key, shape=shape, fill=constant_values)
    return result


structural.update(sum_to=sum_to, broadcast_to=broadcast_to, astype=astype)

__all__ = [
    "astype",
    "broadcast_arrays",
    "broadcast_shape",
    "broadcast_to",
    "expand_dims",
    "flip",
    "meshgrid",
    "moveaxis",
    "normalize_axis",
    "pad",
    "permute_dims",
    "repeat",
    "reshape",
    "roll",
    "squeeze",
    "sum_to",
    "tile",
    "tril",
    "triu",
]
