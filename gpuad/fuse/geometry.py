"""How many threads of a GPU run an entry of a kernel's text, and how they share its loops.

Where values of a row or a chunk are combined, the number of threads that share it follows from the length of a row
alone, and so do the bits of the result: it is never what the kernel happens to be fused with.
"""

from __future__ import annotations

from dataclasses import dataclass

from .kernel import Kernel
from .launch import Emitted, Entry, chunk_bytes

WARP = 32
THREADS = 256  # of a block, where nothing says otherwise
MOST_THREADS = 512  # as FUSED promises, so that each thread may have 128 registers
MOST_BLOCKS = (1 << 31) - 1
MOST_LAYERS = 65535
VECTOR = 16  # bytes that one access moves
SHARED = 48 << 10  # bytes of shared memory that a block gets without asking


@dataclass(frozen=True)
class Geometry:
    """`blocks` times `layers` blocks of `x` times `y` threads: y teams of x, or one."""

    blocks: int
    x: int
    y: int = 1
    shared: int = 0  # bytes of a block
    layers: int = 1  # blockIdx.y numbers them


def flat(size: int, width: int = 1) -> Geometry:
    """A thread for each group of `width` elements."""
    return Geometry(min(max(1, -(-size // (THREADS * width))), MOST_BLOCKS), THREADS)


def width_of(emitted: Emitted, kernel: Kernel) -> int:
    """How many elements make a group: of whole arrays as many as one access moves, of rows what their length allows."""
    if emitted.by_rows:
        return 8 if kernel.cols >= 1024 else 4 if kernel.cols >= 128 else 1
    sizes = [a.dtype.itemsize for a in (*kernel.leaves, *kernel.outputs) if a.size > 1]
    return max(1, min(8, VECTOR // min(sizes, default=VECTOR)))


def team_of(cols: int, width: int) -> int:
    """How many threads share a row of `cols` columns: a warp where that gives each at most four groups."""
    groups = -(-cols // width)
    if groups <= 4 * WARP:
        return WARP
    return min(MOST_THREADS, -(-groups // (2 * WARP)) * WARP)


def geometry(emitted: Emitted, entry: Entry, kernel: Kernel) -> Geometry:
    """How to run `entry` of `emitted`, the text of `kernel`."""
    lengths, width = emitted.lengths(kernel), width_of(emitted, kernel)
    n = lengths[entry.items]
    if entry.items == "one":
        return Geometry(1, MOST_THREADS)
    if entry.items in ("size", "cols"):
        return flat(n, width if entry.items == "size" else 1)
    team = team_of(kernel.cols, width)
    if entry.items == "chunks":
        if not emitted.by_rows:
            team = THREADS
        return Geometry(min(max(1, n), MOST_BLOCKS), team, 1, lengths["scratch"])
    if not emitted.reduces:  # a row need not be in one team
        team = min(team, THREADS)
        layers = min(MOST_LAYERS, -(-kernel.cols // (4 * team * width)) or 1)
    else:
        layers = 1
    scratch = lengths["scratch"] if emitted.scratch else 0
    # teams of several warps wait for a whole block
    together = 1 if emitted.reduces and team > WARP else THREADS // team
    teams = max(1, min(together, SHARED // max(scratch, 1), n))
    return Geometry(min(max(1, -(-n // teams)), MOST_BLOCKS), team, teams, scratch * teams, layers)


def without_columns(emitted: Emitted, shape: Geometry) -> Geometry:
    """`shape` where sums over columns stay in global memory, for rows too long to collect them in shared memory."""
    return Geometry(shape.blocks, shape.x, shape.y, chunk_bytes(emitted.partials), shape.layers)
