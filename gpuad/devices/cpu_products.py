"""Products of matrices on the CPU's compiled engine: NumPy's own BLAS library, on our threads instead of its.

Its threads and ours would fight for the cores: one that has just worked keeps its core busy for a while, in case there
is more.  And tiles of sizes that follow from the shapes alone give the same bits whatever the number of threads.  Where
the library is not OpenBLAS, or a product is small or of another kind, `numpy.matmul` computes it.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..dtype import HALVES
from ..fuse import threads
from ..fuse.compiler import library
from ..fuse.prelude import HOST_PRELUDE
from ..fuse.sources import source
from .matrices import by_rows, flat, layout, step

WORTH = 1 << 18  # multiplications below which one thread is as fast
TILE = (256, 1024)  # rows and columns of a tile at most: each tile's operands are copied together anew
TILES = 4  # below which they are made smaller
LEAST = 1 << 23  # multiplications of a tile that is not made smaller, and of what a thread takes at a time


class Product:
    """`multiply(a, b, out)`, where `operands` makes a, b and out of the arrays that it is called with."""

    def __init__(self, operands: Callable[..., tuple[Any, Any, Any]]) -> None:
        self.operands = operands

    def __call__(self, *arrays: Any) -> None:
        multiply(*self.operands(*arrays))

    def bound(self, *arrays: Any) -> Callable[[], None]:
        """The same for these arrays alone, whose memory the caller keeps."""
        a, b, out = self.operands(*arrays)
        copied = not all(any(np.may_share_memory(x, y) for y in arrays) for x in (a, b))
        tiles = None if copied or a.dtype in HALVES else _tiles(*by_rows(a, b, out))
        return functools.partial(self, *arrays) if tiles is None else tiles


# a @ b for a [..., m, k] and b [..., k, n]; a @ w.T for w [n, k]; and the sum of g[r, :, None] * a[r, None, :] over all
# rows of g [..., n] and a [..., k].  The results are contiguous.
PRODUCTS = {
    "matmul": Product(lambda a, b, out: (a, b, out)),
    "linear": Product(lambda a, w, out: (a, w.T, out)),
    "linear_weight": Product(lambda g, a, out: (_whole(g).T, _whole(a), out)),
}


def _whole(x: Any) -> Any:
    """`x` as one matrix of all its rows; a copy where no strides give it."""
    found = flat(x)
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1]) if found is None else found


def multiply(a: Any, b: Any, out: Any) -> None:
    """out = a @ b.  Half types are multiplied and added up in float32."""
    if a.dtype in HALVES:
        wide = np.empty(out.shape, np.float32)
        multiply(a.astype(np.float32), b.astype(np.float32), wide)
        out[...] = wide
        return
    a, b, out = by_rows(a, b, out)
    tiles = _tiles(a, b, out)
    if tiles is None:
        np.matmul(a, b, out=out)
    else:
        tiles()


def _tiles(a: Any, b: Any, out: Any) -> Callable[[], None] | None:
    """What computes out = a @ b by tiles, and keeps no memory; None where NumPy is to compute it."""
    (m, k), n, batch = a.shape[-2:], b.shape[-1], out.shape[:-2]
    count = math.prod(batch)
    if m == 1 or n == 1 or count * m * n * k < WORTH:
        return None
    left, right, blas = _operand(a, batch), _operand(b, batch), _blas()
    if left is None or right is None or blas is None or out.dtype.name not in blas.gemm:
        return None
    tile_m, tile_n = tile(count, m, n, k)
    words = (blas.gemm[out.dtype.name], m, n, k, tile_m, tile_n, *left, *right, out.ctypes.data, n, m * n)
    items, grain = count * -(-m // tile_m) * -(-n // tile_n), max(1, LEAST // (tile_m * tile_n * k))
    slots = (ctypes.c_int64 * len(words))(*words)
    shares = _address(out.dtype.name), ctypes.addressof(slots), items, grain, 0, threads.count()

    def run(_held: Any = slots) -> None:
        before = blas.get_threads()
        blas.set_threads(1)
        try:
            threads.run(*shares)
        finally:
            blas.set_threads(before)

    return run


def tile(count: int, m: int, n: int, k: int) -> tuple[int, int]:
    """Rows and columns of a tile of `count` products [m, k] [k, n]: enough tiles to share, each of enough work."""
    rows, columns = min(m, TILE[0]), min(n, TILE[1])
    while count * -(-m // rows) * -(-n // columns) < TILES and rows * columns * k > LEAST:
        if rows >= columns:
            rows = -(-rows // 32) * 16  # half of it, by the rows that a library's loops take together
        else:
            columns = -(-columns // 32) * 16
    return rows, columns


def _operand(x: Any, batch: tuple[int, ...]) -> tuple[int, int, int, int] | None:
    """The address of `x`, broadcast over `batch`, whether it is turned, its steps by row and matrix; None if it must
    be copied."""
    if x.shape[:-2] != batch:
        x = np.broadcast_to(x, (*batch, *x.shape[-2:]))
    if not x.flags.aligned or any(s % x.itemsize for s in x.strides):
        return None
    lies, between = layout(x), step(x)
    return None if lies is None or between is None else (x.ctypes.data, *lies, between)


@dataclass
class Blas:
    """NumPy's BLAS library: the addresses of its products by dtype, and the number of threads it takes for one."""

    gemm: dict[str, int]
    get_threads: Any
    set_threads: Any


@functools.cache
def _blas() -> Blas | None:
    """The OpenBLAS that NumPy's wheels bring, whose integers have 64 bits; None where there is another library."""
    try:
        found = ctypes.CDLL(np._core._multiarray_umath.__file__)  # type: ignore[attr-defined]  # it links to the library
        gemm = {"float32": found.scipy_cblas_sgemm64_, "float64": found.scipy_cblas_dgemm64_}
        get, set_ = found.scipy_openblas_get_num_threads64_, found.scipy_openblas_set_num_threads64_
    except (OSError, AttributeError):
        return None
    return Blas({name: ctypes.cast(f, ctypes.c_void_p).value or 0 for name, f in gemm.items()}, get, set_)


@functools.cache
def _address(dtype: str) -> int:
    made = library(HOST_PRELUDE + source("product.cpp"))
    return ctypes.cast(getattr(made, f"product_{dtype}"), ctypes.c_void_p).value or 0
