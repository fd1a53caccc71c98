"""What CuPy does with atomics, or once for each element, in kernels whose bits depend on nothing but their input."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..dtype import DType, compute_dtype
from ..fuse.prelude import c_name
from ..fuse.sources import source
from .cuda_launch import Geometry, flat, for_dtype
from .words import as_words

PIECE = 64  # places that a block of scatter_add.cu adds up
THREADS = 128  # of such a block
START_THREADS = 256
MOST_LAYERS = 65535  # blocks that a grid has in y
INDEXES = ("int32", "int64")  # in which kernels read an index
_RECURRENCE = """
// y[k] = a[k] * y[k - 1] + b[k] down each column; up from the end, if `reverse`.  The first y is the first b.
// a, b, y: T[steps, columns].  One thread a column.
KERNEL recurrence(const T* a, const T* b, T* y, int64 steps, int64 columns, bool reverse) {
    LOOP(c, columns) {
        T last = 0;
        for (int64 n = 0; n < steps; ++n) {
            const int64 i = (reverse ? steps - 1 - n : n) * columns + c;
            last = n > 0 ? a[i] * last + b[i] : b[i];
            y[i] = last;
        }
    }
}
"""


@functools.cache
def text(dtype: DType, index: DType) -> str:
    """What follows the prelude: `kernels/scatter_add.cu` for elements of `dtype`."""
    return f"#define T {c_name(dtype)}\n#define INDEX {c_name(index)}\n" + source("scatter_add.cu")


def _segments(device: Any, index: Any, length: int) -> tuple[Any, Any, Any]:
    """`index` as kernels read it, flat; its stable order; how many indexes are below each of 0 to `length`."""
    xp = device.xp
    index = xp.ascontiguousarray(index.reshape(-1))
    if index.dtype.name not in INDEXES:
        index = index.astype(np.int64)
    order = xp.argsort(index).astype(np.int64, copy=False)
    starts = xp.empty(length + 1, np.int64)
    given = [index, order, starts, np.int64(index.size), np.int64(length)]
    shape = Geometry(-(-(length + 1) // START_THREADS), START_THREADS)
    device.launcher.launch(text(np.dtype(np.float32), index.dtype), "segment_starts", given, shape)
    return index, order, starts


def scatter_add(device: Any, x: Any, index: Any, axis: int, length: int) -> Any:
    """Zeros with each slice of `x` added at its `index` along `axis`, which has `length`."""
    xp = device.xp
    shape = (*x.shape[:axis], length, *x.shape[axis + index.ndim :])
    out = xp.empty(shape, x.dtype)
    as_words(out).fill(0)
    if not x.size or not out.size:
        return out
    before, width = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    index, order, starts = _segments(device, index, length)
    blocks = -(-index.size // PIECE)
    partial = device.allocate(_sums(index, before * width), compute_dtype(x.dtype), "workspace")
    sizes = [np.int64(n) for n in (before, index.size, length, width)]
    grid = Geometry(blocks, THREADS, layers=min(-(-before * width // THREADS), MOST_LAYERS))
    code, run = text(x.dtype, index.dtype), device.launcher.launch
    run(code, "scatter_pieces", [_contiguous(xp, x), index, order, starts, out, partial.data, *sizes], grid)
    run(code, "scatter_finish", [index, order, starts, partial.data, out, *sizes], grid)
    return out


def _contiguous(xp: Any, x: Any) -> Any:
    """`x`, or a copy of it whose elements lie in order."""
    return x if x.flags.c_contiguous else xp.ascontiguousarray(as_words(x)).view(x.dtype)


def sources(device: Any, index: Any, length: int) -> tuple[Any, Any]:
    """For each place along an axis: whether an assignment to `index` writes it, and which of its rows does so last."""
    xp = device.xp
    if not index.size:
        return xp.zeros(length, np.bool_), xp.zeros(length, np.int64)
    _, order, starts = _segments(device, index, length)
    written = starts[1:] > starts[:-1]
    return written, xp.where(written, order[xp.maximum(starts[1:] - 1, 0)], 0)


def recurrence(device: Any, a: Any, b: Any, axis: int, reverse: bool) -> Any:
    """y[k] = a[k] * y[k - 1] + b[k] along `axis`; the first y is the first b."""
    xp = device.xp
    y = xp.empty(xp.moveaxis(b, axis, 0).shape, b.dtype)
    if y.size:
        a, b = (xp.ascontiguousarray(xp.moveaxis(v.astype(y.dtype, copy=False), axis, 0)) for v in (a, b))
        steps = y.shape[0]
        given = [a, b, y, np.int64(steps), np.int64(y.size // steps), np.bool_(reverse)]
        device.launcher.launch(for_dtype(_RECURRENCE, y.dtype), "recurrence", given, flat(y.size // steps))
    return xp.moveaxis(y, 0, axis)


def workspace(device: Any, name: str, arrays: list[Any], params: dict[str, Any]) -> None:
    """Take the memory of ours that the op `name` takes beside its result, and give it back."""
    if name == "scatter_add":
        (x, index), axis, length = arrays, params["axis"], params["length"]
        if x.size and length:
            width = math.prod(x.shape[:axis]) * math.prod(x.shape[axis + index.ndim :])
            device.allocate(_sums(index, width), compute_dtype(x.dtype), "workspace")


def _sums(index: Any, width: int) -> tuple[int, int]:
    """The shape of the sums of pieces: of each, those of its first and of its last segment."""
    return 2 * (index.size // PIECE + 1), width


BY_NAME: dict[str, Callable[..., Any]] = {
    "scatter_add": scatter_add,
    "sources": sources,
    "recurrence": recurrence,
}  # the ops that run here
