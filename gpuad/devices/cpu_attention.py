"""Attention on the CPU by `kernels/attention.cpp`, compiled when first used.

Arrays are NumPy's, [batch, heads, positions, features], float32 or float64, with contiguous features.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from typing import Any

from ..fuse import threads
from ..fuse.compiler import library
from ..fuse.prelude import HOST_PRELUDE
from ..fuse.sources import source

BLOCK = 64  # queries or keys of one item, as in the text
MOST_FEATURES = 256
WORTH = 1 << 15  # scores below which products of matrices do as well


def takes(q: Any, k: Any, v: Any) -> bool:
    """Is the kernel for arrays of these shapes and dtypes?"""
    return (
        q.dtype.name in ("float32", "float64")
        and q.dtype == k.dtype == v.dtype
        and len(q.shape) == len(k.shape) == len(v.shape) == 4
        and q.shape[:2] == k.shape[:2] == v.shape[:2]
        and 0 < max(q.shape[3], v.shape[3]) <= MOST_FEATURES
        and q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] >= WORTH
    )


def forward(q: Any, k: Any, v: Any, out: Any, lse: Any, *, causal: bool, scale: float) -> None:
    """Write softmax(scale q kᵀ) v to `out` and the logarithm of each query's sum to `lse`."""
    items = q.shape[0] * q.shape[1] * -(-q.shape[2] // BLOCK)
    _run("attention_forward", items, (q, k, v, out), lse, causal, scale)


def backward(
    q: Any, k: Any, v: Any, out: Any, lse: Any, g: Any, dq: Any, dk: Any, dv: Any, *, causal: bool, scale: float
) -> None:
    """Write to `dq`, `dk` and `dv` the cotangents of q, k and v from that of `out`."""
    heads, arrays = q.shape[0] * q.shape[1], (q, k, v, out, g, dq, dk, dv)
    if heads >= threads.count():
        _run("attention_backward", heads, arrays, lse, causal, scale)
    else:  # the same bits from more and smaller items
        for entry, n in (("attention_backward_queries", q.shape[2]), ("attention_backward_keys", k.shape[2])):
            _run(entry, heads * -(-n // BLOCK), arrays, lse, causal, scale)


def _run(entry: str, items: int, arrays: tuple[Any, ...], lse: Any, causal: bool, scale: float) -> None:
    q, k, v = arrays[:3]
    words = [q.shape[1], q.shape[2], k.shape[2], q.shape[3], v.shape[3], int(causal), 0, lse.ctypes.data]
    for x in arrays:
        words.append(x.__array_interface__["data"][0])
        words += [s // x.itemsize for s in x.strides[:3]]
    slots = bytearray(struct.pack(f"{len(words)}q", *words))
    struct.pack_into("d", slots, 6 * 8, scale)
    place = ctypes.addressof(ctypes.c_char.from_buffer(slots))
    threads.run(_address(entry, q.dtype.name), place, items, 1, 0, threads.count())


@functools.cache
def _address(entry: str, dtype: str) -> int:
    made = library(HOST_PRELUDE + source("attention.cpp"), f"-DONLY_{dtype.upper()}")
    return ctypes.cast(getattr(made, f"{entry}_{dtype}"), ctypes.c_void_p).value or 0
