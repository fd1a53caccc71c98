"""CuPy's memory pool, simulated: how many bytes it takes from the driver for a sequence of allocations.

The pool gives nothing back by itself.  What a program frees stays in it, is split and merged, and serves later
allocations, so what the driver sees (`total_bytes`) is more than what the program holds (`used_bytes`).  In CuPy 14:

- A size is rounded up to a multiple of 512 bytes; an allocation of zero bytes takes nothing.
- The smallest free chunk that is large enough serves, however much larger it is.  It is split, and the rest stays free.
- Where there is none, the driver is asked for exactly the rounded size: a new segment.
- A freed chunk merges with what is free beside it in its segment.  Segments never merge.
- `free_all_blocks` gives back the segments that are free from end to end, and only those.
- An allocation that would pass the limit makes the pool do that first; if it still would, it fails.

One thing is open: of several free chunks of one size CuPy takes the one whose Python object lies lowest in the host's
memory, which nobody can foretell.  Here it is the one that lies lowest on the device.  CuPy lends a chunk only on the
stream that it was first lent on; here is one stream, which is what a device of gpuad has.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Hashable, Iterable
from typing import NamedTuple

UNIT = 512  # bytes; every size and every address is a multiple of it


class Peaks(NamedTuple):
    """The most bytes that a pool lent at one time, and the most that it held."""

    used: int
    total: int


def simulate(events: Iterable[tuple[int, Hashable]], limit: int | None = None) -> Peaks:
    """The peaks of a pool that starts empty: (nbytes, key) allocates, a later (-nbytes, key) frees the same."""
    pool = Pool(limit)
    addresses: dict[Hashable, int] = {}
    for nbytes, key in events:
        if nbytes > 0:
            addresses[key] = pool.malloc(nbytes)
        elif nbytes < 0:
            pool.free(addresses.pop(key))
    return Peaks(pool.high_used, pool.high_total)


def rounded(nbytes: int) -> int:
    """What an allocation of `nbytes` takes from the pool."""
    return -(-nbytes // UNIT) * UNIT


class Pool:
    """A pool that holds `total_bytes` of the driver's, at most `limit`, and has lent `used_bytes` of them.

    `high_used` and `high_total` are the most that these have been.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.used_bytes = self.high_used = 0
        self.total_bytes = self.high_total = 0
        self._sizes: dict[int, int] = {}  # of every chunk, by its address
        self._before: dict[int, int] = {}  # the chunk that ends where one starts; a segment's first has no entry
        self._lent: set[int] = set()
        self._free: list[tuple[int, int]] = []  # (size, address) of all other chunks, sorted
        self._next_segment = UNIT

    @property
    def free_bytes(self) -> int:
        """What the pool holds and has not lent."""
        return self.total_bytes - self.used_bytes

    def malloc(self, nbytes: int) -> int:
        """Lend `nbytes` and give their address, 0 for none. A MemoryError where the limit leaves no room."""
        if nbytes == 0:
            return 0
        size = rounded(nbytes)
        place = self.choose(size)
        if place < len(self._free):
            found, address = self._free.pop(place)
            if found > size:
                self._split(address, size)
        else:
            address = self._new_segment(size)
        self._lent.add(address)
        self.used_bytes += size
        self.high_used = max(self.high_used, self.used_bytes)
        return address

    def free(self, address: int) -> None:
        """Take back what `malloc` lent at `address`, and merge it with what is free beside it."""
        if address == 0:
            return
        self._lent.remove(address)
        self.used_bytes -= self._sizes[address]
        after, before = address + self._sizes[address], self._before.get(address)
        if after in self._before and after not in self._lent:
            self._unlist(after)
            self._join(address, after)
        if before is not None and before not in self._lent:
            self._unlist(before)
            self._join(before, address)
            address = before
        insort(self._free, (self._sizes[address], address))

    def free_all_blocks(self) -> None:
        """Give back to the driver the segments in which nothing is lent."""
        kept = []
        for size, address in self._free:
            if address in self._before or address + size in self._before:
                kept.append((size, address))  # another part of its segment is lent
            else:
                del self._sizes[address]
                self.total_bytes -= size
        self._free = kept

    def choose(self, size: int) -> int:
        """Where in the sorted list of free chunks the one is that serves `size`; the list's length where none does."""
        return bisect_left(self._free, (size, 0))

    def _split(self, address: int, size: int) -> None:
        """Cut the chunk at `address`, which is not listed, to `size`; the rest is free."""
        rest, end = address + size, address + self._sizes[address]
        self._sizes[address], self._sizes[rest] = size, end - rest
        self._before[rest] = address
        if end in self._before:
            self._before[end] = rest
        insort(self._free, (end - rest, rest))

    def _join(self, first: int, second: int) -> None:
        """Make one chunk of two that are side by side and not listed."""
        self._sizes[first] += self._sizes.pop(second)
        del self._before[second]
        end = first + self._sizes[first]
        if end in self._before:
            self._before[end] = first

    def _unlist(self, address: int) -> None:
        """Take a free chunk off the list."""
        del self._free[bisect_left(self._free, (self._sizes[address], address))]

    def _new_segment(self, size: int) -> int:
        """Ask the driver for `size` bytes; their address."""
        limit = self.limit
        if limit is not None and size <= limit < self.total_bytes + size:
            self.free_all_blocks()
        if limit is not None and limit < self.total_bytes + size:
            raise MemoryError(
                f"{size:,} bytes do not fit in a pool limited to {limit:,}\n"
                f"  {self.used_bytes:,} are in use, {self.free_bytes:,} are free in pieces that are too small"
            )
        address = self._next_segment
        self._next_segment += size
        self._sizes[address] = size
        self.total_bytes += size
        self.high_total = max(self.high_total, self.total_bytes)
        return address
