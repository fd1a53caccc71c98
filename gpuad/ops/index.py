"""Indexing.

A key is read as a window (slices, integers, None: a view) and then arrays along axes of the window.  The axes that
arrays index are merged into one, and so are the arrays: everything is a `take` along one axis, whose transpose is
`scatter_add`.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..array import Shape, describe
from ..convert import as_operand, asarray
from ..devices import Device
from ..dtype import bool_, compute_dtype, int64, is_float, uint64
from ..errors import DeviceError, DTypeError, IndexRangeError, ShapeError
from ..fuse.plan import realize
from ..op import Inferred, Opaque, broadcast_shape
from ..provenance import describe as describe_site
from ..provenance import here
from ..recording import active
from ..recording import refuse as refuse_in_capture
from ..tensor import Tensor
from .compare import where
from .create import arange
from .shape import astype, normalize_axis, permute_dims, reshape, window

SCATTERED_AT_ONCE = 1 << 15  # elements whose addresses are made together: 256 KiB of them

# --- primitives -------------------------------------------------------------------------------


def _take_infer(x: Any, index: Any, axis: int) -> Inferred:
    return (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]), x.dtype


def _take_forward(xp: Any, x: Any, index: Any, axis: int) -> Any:
    if x.flags.c_contiguous:
        return xp.take(x, index, axis=axis)
    return x[(slice(None),) * axis + (index, ...)]  # take() would copy all of x first


gather: Opaque = Opaque(
    "take",
    ("x", "index"),
    infer=_take_infer,
    forward=_take_forward,
    vjp=(lambda g, index, like, axis: scatter_add(g, index, axis=axis, length=like[0][0][axis]), None),
    jvp=(lambda t, index, axis: gather(t, index, axis=axis), None),
    params=("axis",),
)


def _scatter_infer(x: Any, index: Any, axis: int, length: int) -> Inferred:
    return (*x.shape[:axis], length, *x.shape[axis + index.ndim :]), x.dtype


def _scatter_forward(xp: Any, x: Any, index: Any, axis: int, length: int) -> Any:
    """Adds in the order of the elements of `x`, one at a time: the bits depend on nothing else.

    A GPU has its own (devices/cuda_index.py), which adds 64 at a time in that order, and then their sums.
    """
    shape, dtype = _scatter_infer(x, index, axis, length)
    before, width = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    values = x.reshape(-1)
    full = compute_dtype(dtype)
    out = xp.zeros(before * length * width, full)
    if not values.size:
        return out.reshape(shape).astype(dtype, copy=False)
    starts = (xp.arange(before)[:, None] * length + index.reshape(-1)).reshape(-1) * width
    columns = xp.arange(width)
    rows = max(1, SCATTERED_AT_ONCE // width)
    for k in range(0, starts.size, rows):
        addresses = (starts[k : k + rows, None] + columns).reshape(-1)
        xp.add.at(out, addresses, values[k * width : (k + rows) * width].astype(full, copy=False))
    return out.reshape(shape).astype(dtype, copy=False)


scatter_add: Opaque = Opaque(
    "scatter_add",
    ("x", "index"),
    infer=_scatter_infer,
    forward=_scatter_forward,
    vjp=(lambda g, index, axis: gather(g, index, axis=axis), None),
    jvp=(lambda t, index, axis, length: scatter_add(t, index, axis=axis, length=length), None),
    params=("axis", "length"),
    doc="Zeros with each slice of `x` added at its `index` along `axis`, which has `length`; half types in float32.",
)

# --- keys -------------------------------------------------------------------------------------


@dataclass(slots=True)
class Picked:
    """One array of a key: integers, not negative, along an axis of the window; or a mask over `span` axes."""

    axis: int
    span: int
    array: Tensor
    host: Any  # its values where the key had a list or a NumPy array

    @property
    def index(self) -> Tensor:
        """The places it picks, counted through the `span` axes together."""
        mask = self.array
        if mask.dtype != bool_:
            return mask
        device = mask.device
        if self.host is not None:
            return Tensor(device.from_numpy(self.host.reshape(-1).nonzero()[0], site=here(2)))
        values = _values(mask)
        with device.using():
            return Tensor(device.adopt(values.reshape(-1).nonzero()[0], site=here(2)))


@dataclass(slots=True)
class Key:
    """A key for one tensor: `window` of basic indexing, then arrays along axes of that.

    The axes of the arrays' common shape go to the place `at` among the axes without arrays.
    """

    window: tuple[Any, ...]
    whole: bool  # the window is all of the tensor
    picked: list[Picked]
    at: int

    def through(self, x: Tensor) -> Tensor:
        """The window of `x`."""
        result: Tensor = x if self.whole else window(x, key=self.window)
        return result


def user_line() -> str:
    """`train.py:41`: the line of the user's call that is running."""
    return describe_site(here(2))


def _values(index: Tensor) -> Any:
    """The values of an index, which decide a shape or are checked."""
    if not index.device.computes:
        raise DeviceError(
            f"a mask {describe(index)} on the meta device selects an unknown number of elements, at {user_line()}\n"
            "  use where(mask, ...), or a mask that is a NumPy array"
        )
    refuse_in_capture(
        f"the mask {describe(index)}, which selects another number of elements each time", "use where(mask, ...)"
    )
    return realize(index.array).data


def _as_index(entry: Any, device: Device) -> tuple[int | Tensor, Any]:
    """An entry of a key that names places: an int, or integers or bools on `device`; and their values.

    The values are those of lists and NumPy arrays, which are not on a device yet; of a tensor None.
    """
    if isinstance(entry, np.integer) or (
        isinstance(entry, np.ndarray) and entry.ndim == 0 and entry.dtype.kind in "iu"
    ):
        return int(entry), None
    host = None
    if isinstance(entry, Tensor):
        index = entry
    else:
        empty = isinstance(entry, list | tuple | range) and len(entry) == 0
        given = asarray(
            np.empty(0, np.int64) if empty else list(entry) if isinstance(entry, range) else entry, device="cpu"
        )
        host = given.array.data
        index = given if given.device is device else asarray(host, device=device)
    if is_float(index.dtype):
        raise DTypeError(
            f"an index must be integers or bools, got {describe(index)} at {user_line()}\n"
            "  cast it with .to(gpuad.int64)"
        )
    return index, host


def _checked(index: Tensor, host: Any, length: int, axis: int, x: Tensor) -> Tensor:
    """`index` with negative ones counted from the end; an error that names one that is out of range.

    Of a tensor on the meta device the values are not known.
    """
    if index.size == 0 or (host is None and not index.device.computes):
        return index
    if host is None and (not index.device.waits or active.get() is not None):  # the same steps for every index
        line, what = user_line(), describe(x)
        low = 0 if index.dtype.kind == "u" else -length
        index.device.check_range(
            realize(index.array), low, length - 1, lambda found: _out_of_range(found, length, axis, what, line)
        )
        if index.dtype.kind != "u":
            index = astype(index, int64)
            counted: Tensor = where(index < 0, index + length, index)
            return counted
        return astype(index, int64) if index.dtype == uint64 else index
    values = _values(index) if host is None else host
    low, high = int(values.min()), int(values.max())
    if low < -length or high >= length:
        raise _out_of_range(low if low < -length else high, length, axis, describe(x), user_line())
    if low < 0 or index.dtype == uint64:
        index = astype(index, int64)
    return where(index < 0, index + length, index) if low < 0 else index


def _out_of_range(index: int, length: int, axis: int, what: str, line: str) -> IndexRangeError:
    valid = f"use {-length} to {length - 1}" if length else "that axis is empty"
    return IndexRangeError(
        f"index {index} is out of range for axis {axis} of {what}, of length {length}, at {line}\n  {valid}"
    )


def _entries(x: Tensor, key: Any) -> tuple[list[Any], dict[int, Any]]:
    """The entries of a `key` for `x`, with one Ellipsis among them, and the known values of those that are arrays."""
    entries = list(key) if type(key) is tuple else [key]
    hosts = {}
    for k, entry in enumerate(entries):
        if type(entry) is slice:
            entries[k] = _checked_slice(entry)
        elif type(entry) is not int and entry is not None and entry is not Ellipsis:
            entries[k], hosts[k] = _as_index(entry, x.device)
    used = sum(_span(entry) for entry in entries)
    if used > x.ndim:
        raise IndexRangeError(
            f"too many indices for {describe(x)}: it has {x.ndim} axes, and {used} are indexed at {user_line()}"
        )
    ellipses = sum(entry is Ellipsis for entry in entries)
    if ellipses > 1:
        raise IndexRangeError(f"an index may have one ..., got {ellipses} at {user_line()}")
    return entries if ellipses else [*entries, ...], hosts


def read_key(x: Tensor, key: Any) -> Key:
    """The `key` of an indexing of `x`."""
    shape = x.shape
    entries, hosts = _entries(x, key)
    seen: list[Any] = []  # the window
    picked: list[Picked] = []
    whole = True
    advanced: list[int] = []  # where in the key there are arrays, and integers beside arrays
    axis = free = at = 0  # the axis of x; the axis of the window; its axes before the first array
    hidden = len(shape) - sum(_span(entry) for entry in entries)  # axes that the Ellipsis stands for
    for k, entry in enumerate(entries):
        if entry is Ellipsis:
            seen.append(entry)
            axis, free = axis + hidden, free + hidden
        elif entry is None:
            seen.append(entry)
            whole, free = False, free + 1
        elif type(entry) is slice:
            seen.append(entry)
            whole = whole and entry == slice(None)
            axis, free = axis + 1, free + 1
        else:
            if not advanced:
                at = free
            advanced.append(k)
            if type(entry) is int:
                n = shape[axis]
                if not -n <= entry < n:
                    raise _out_of_range(entry, n, axis, describe(x), user_line())
                seen.append(entry)
                whole, axis = False, axis + 1
                continue
            if entry.dtype != bool_:
                entry, span = _checked(entry, hosts[k], shape[axis], axis, x), 1
            elif entry.ndim == 0:  # a new axis, of which it selects one or none
                entry, span = reshape(entry, (1,)), 0
            else:
                span = entry.ndim
                if entry.shape != shape[axis : axis + span]:
                    raise IndexRangeError(
                        f"a mask {describe(entry)} cannot index {describe(x)} from axis {axis} on, at {user_line()}\n"
                        "  their lengths must be equal"
                    )
            seen.extend([slice(None)] * span if span else [None])
            whole = whole and span > 0
            picked.append(Picked(free, max(span, 1), entry, hosts[k]))
            axis, free = axis + span, free + max(span, 1)
    if picked and advanced[-1] - advanced[0] + 1 != len(advanced):
        at = 0  # they are not side by side: NumPy puts their axes first
    return Key(tuple(seen), whole, picked, at)


def _span(entry: Any) -> int:
    """How many axes an entry of a key indexes."""
    if entry is None or entry is Ellipsis:
        return 0
    return entry.ndim if isinstance(entry, Tensor) and entry.dtype == bool_ else 1


def _checked_slice(entry: slice) -> slice:
    """`entry` with numbers that are Python's."""
    try:
        start, stop, step = (None if n is None else operator.index(n) for n in (entry.start, entry.stop, entry.step))
    except TypeError:
        raise DTypeError(f"a slice needs integers, got {entry} at {user_line()}") from None
    if step == 0:
        raise ShapeError(f"the step of a slice cannot be 0, at {user_line()}")
    return slice(start, stop, step)


# --- arrays along one axis --------------------------------------------------------------------


@dataclass(slots=True)
class Merged:
    """A window whose axes with arrays are one axis, `at`, and the one `index` along it."""

    x: Tensor
    order: tuple[int, ...]  # of the axes of the window
    apart: Shape  # of the window in that order
    at: int
    index: Tensor

    def restore(self, y: Tensor) -> Tensor:
        """`y`, of the shape of `x`, with the axes of the window."""
        return permute_dims(reshape(y, self.apart), tuple(int(k) for k in np.argsort(self.order)))

    @property
    def picked_shape(self) -> Shape:
        """The shape of what the index picks."""
        return (*self.x.shape[: self.at], *self.index.shape, *self.x.shape[self.at + 1 :])


def merge(seen: Tensor, key: Key) -> Merged:
    """The window `seen` of `key` with one axis for all that arrays index."""
    first = key.picked[0]
    if len(key.picked) == first.span == 1 and key.at == first.axis:
        return Merged(seen, tuple(range(seen.ndim)), seen.shape, key.at, first.index)
    axes = [k for p in key.picked for k in range(p.axis, p.axis + p.span)]
    rest = [k for k in range(seen.ndim) if k not in axes]
    order = (*rest[: key.at], *axes, *rest[key.at :])
    moved = permute_dims(seen, order)
    lengths = [math.prod(seen.shape[p.axis : p.axis + p.span]) for p in key.picked]
    x = reshape(
        moved, (*[seen.shape[k] for k in rest[: key.at]], math.prod(lengths), *[seen.shape[k] for k in rest[key.at :]])
    )
    parts = [p.index for p in key.picked]
    broadcast_shape("getitem", parts)
    index = parts[0]
    if len(parts) > 1:
        index = astype(index, int64)
        for part, length in zip(parts[1:], lengths[1:], strict=True):
            index = index * length + astype(part, int64)
    return Merged(x, order, moved.shape, key.at, index)


def getitem(x: Tensor, key: Any) -> Tensor:
    """`x[key]` as NumPy has it: a view for slices, integers and None; a copy where there are arrays or masks."""
    found = read_key(x, key)
    if not found.picked:
        result: Tensor = window(x, key=found.window)
        return result
    merged = merge(found.through(x), found)
    result = gather(merged.x, merged.index, axis=merged.at)
    return result


def take(x: Any, indices: Any, /, *, axis: int | None = None) -> Tensor:
    """The slices of `x` at `indices`, integers of any shape, along `axis`.

    A one-dimensional `x` needs no `axis`.
    """
    x = as_operand(x)
    if axis is None:
        if x.ndim != 1:
            raise ShapeError(f"take() needs axis= for {describe(x)}, which has {x.ndim} axes")
        axis = 0
    return getitem(x, (slice(None),) * normalize_axis(axis, x, "take") + (_integers(indices, "take", x),))


def take_along_axis(x: Any, indices: Any, /, *, axis: int = -1) -> Tensor:
    """The elements of `x` at `indices` along `axis`, the other axes in step (and broadcast)."""
    x = as_operand(x)
    k, n = normalize_axis(axis, x, "take_along_axis"), x.ndim
    index = _integers(indices, "take_along_axis", x)
    if index.ndim != n:
        raise ShapeError(f"take_along_axis() needs as many axes in both, got {describe(x)} and {describe(index)}")
    key: list[Any] = [slice(None)] * n
    for other, length in enumerate(x.shape):
        if other != k:
            steps = arange(length, device=x.device)
            key[other] = reshape(steps, (1,) * other + (length,) + (1,) * (n - other - 1))
    key[k] = index
    return getitem(x, tuple(key))


def _integers(indices: Any, name: str, x: Tensor) -> Tensor:
    index, _ = _as_index(np.asarray(indices) if type(indices) is int else indices, x.device)
    if isinstance(index, int):
        index = asarray(np.asarray(index), device=x.device)
    if index.dtype == bool_:
        raise DTypeError(f"{name}() needs integers, got {describe(index)}; use x[mask]")
    return index


__all__ = ["take", "take_along_axis"]
