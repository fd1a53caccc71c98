"""Digests of arrays on a GPU by `kernels/digest.cu`, which the host does not wait for."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..array import Array
from ..fuse.geometry import Geometry
from ..fuse.sources import source
from .words import as_words

PIECE, THREADS, WARPS = 2048, 256, 8  # bytes of a piece; threads and warps of a block, as in the text
MOST = 1024  # blocks: enough for every GPU, few enough that each has many pieces for its keys

UINT64: np.dtype[np.generic] = np.dtype(np.uint64)


def digest(device: Any, data: Any) -> Array:
    """uint64[1]: 64 bits that depend on every byte of `data` and on its place.  Called inside `device.using()`."""
    if not data.flags.c_contiguous:
        copy = device.allocate(data.shape, data.dtype, "workspace").data
        as_words(copy)[...] = as_words(data)
        data = copy
    out: Array = device.allocate((1,), UINT64, "workspace")
    out.data.fill(0)
    blocks = min(MOST, max(1, -(-data.nbytes // (PIECE * WARPS))))
    given = [data, np.int64(data.nbytes), out.data]
    device.launcher.launch(source("digest.cu"), "digest", given, Geometry(blocks, THREADS))
    return out
