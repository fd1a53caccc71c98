"""What CuPy does with atomics, or once for each element, in kernels whose bits depend on nothing but their input."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .cuda_launch import flat, for_dtype

_SCATTER_ADD = """
// out[b, r, c] = the sum of x[b, k, c] over all k with index[k] == r, in the order of k.
// x: T[before, count, width]; order: int64[count] sorts the index, ends: int64[length] counts the indexes up to each.
// One thread an element of out: T[before, length, width].
KERNEL scatter_add(const T* x, const int64* order, const int64* ends, T* out,
                   int64 before, int64 count, int64 length, int64 width) {
    LOOP(i, before * length * width) {
        const int64 c = i % width, r = i / width % length, b = i / (width * length);
        T sum = 0;
        for (int64 k = r > 0 ? ends[r - 1] : 0; k < ends[r]; ++k) {
            sum += x[(b * count + order[k]) * width + c];
        }
        out[i] = sum;
    }
}
"""
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


def _segments(xp: Any, flat: Any, length: int) -> tuple[Any, Any]:
    """The stable order of the indexes `flat`, and for each place how many of them are at most it."""
    flat = flat.astype(np.int64, copy=False)
    order = xp.argsort(flat).astype(np.int64, copy=False)
    places = xp.arange(length, dtype=np.int64)
    return order, xp.searchsorted(flat[order], places, side="right").astype(np.int64, copy=False)


def scatter_add(device: Any, x: Any, index: Any, axis: int, length: int) -> Any:
    """Zeros with each slice of `x` added at its `index` along `axis`, which has `length`."""
    xp = device.xp
    shape = (*x.shape[:axis], length, *x.shape[axis + index.ndim :])
    before, width = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    if not x.size or not length:
        return xp.zeros(shape, x.dtype)
    out = xp.empty(shape, x.dtype)
    order, ends = _segments(xp, index.reshape(-1), length)
    sizes = [np.int64(n) for n in (before, index.size, length, width)]
    given = [xp.ascontiguousarray(x), order, ends, out, *sizes]
    device.launcher.launch(for_dtype(_SCATTER_ADD, x.dtype), "scatter_add", given, flat(out.size))
    return out


def sources(device: Any, index: Any, length: int) -> tuple[Any, Any]:
    """For each place along an axis: whether an assignment to `index` writes it, and which of its rows does so last."""
    xp = device.xp
    order, ends = _segments(xp, index.reshape(-1), length)
    before = xp.concatenate([xp.zeros(1, np.int64), ends[:-1]])
    written = ends > before
    return written, xp.where(written, order[xp.maximum(ends - 1, 0)], 0)


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


BY_NAME: dict[str, Callable[..., Any]] = {
    "scatter_add": scatter_add,
    "sources": sources,
    "recurrence": recurrence,
}  # the ops that run here
