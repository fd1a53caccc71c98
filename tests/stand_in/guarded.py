"""Memory for the stand-in: poisoned when fresh, between pages that fault, with a margin that is looked at.

An allocation starts at a multiple of 256 bytes and ends less than 256 bytes before a page that nobody may use.  What is
left of the pages, before it and behind it, is filled with MARGIN and must still hold that when it is freed.
"""

from __future__ import annotations

import bisect
import ctypes
import mmap
import threading
from typing import NamedTuple

import numpy as np

POISON = 0xFFF1  # of each two bytes: a nan in every floating type, an index out of range in every wide integer
MARGIN = 0xFD
ALIGNMENT = 256

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_FAILED = ctypes.c_void_p(-1).value


class OutOfBounds(Exception):
    """Something wrote to memory next to an allocation."""


class _Window:
    """Memory as NumPy may see it; `owner` lives as long as an array that looks at it."""

    def __init__(self, address: int, nbytes: int, owner: object) -> None:
        self.owner = owner
        self.__array_interface__ = {"shape": (nbytes,), "typestr": "|u1", "data": (address, False), "version": 3}


def seen(address: int, nbytes: int, owner: object = None) -> np.ndarray:
    """uint8[nbytes], the memory at `address`; `owner` is what keeps it."""
    return np.asarray(_Window(address, nbytes, owner)) if nbytes else np.empty(0, np.uint8)


def poison(data: np.ndarray) -> None:
    """Fill uint8[n], which starts at an even address, with POISON."""
    data[0::2], data[1::2] = POISON & 255, POISON >> 8


class Extent(NamedTuple):
    """Where an allocation lies: `nbytes` at `address`, in pages from `first` to `last`."""

    first: int
    last: int
    address: int
    nbytes: int
    device_id: int

    @property
    def margins(self) -> tuple[np.ndarray, np.ndarray]:
        """What is left of the pages before the allocation, and behind it."""
        end = self.address + self.nbytes
        return seen(self.first, self.address - self.first), seen(end, self.last - end)

    def violation(self) -> str | None:
        """What was written next to this memory, in words; None if nothing was."""
        for margin, place in zip(self.margins, (self.first, self.address + self.nbytes), strict=True):
            wrong = (margin != MARGIN).nonzero()[0]
            if wrong.size:
                return f"something wrote {self.place(place + int(wrong[0]))}"
        return None

    def restore(self) -> None:
        """Make the margins what they were."""
        for margin in self.margins:
            margin[:] = MARGIN

    def place(self, address: int) -> str:
        """Where `address`, which is near, lies."""
        distance = address - self.address
        if distance < 0:
            where = f"{-distance} bytes before the start"
        elif distance < self.nbytes:
            where = f"at byte {distance}"
        else:
            where = f"{distance - self.nbytes} bytes past the end"
        return f"{where} of an allocation of {self.nbytes} bytes"


# The registry of live allocations, in the order of their first pages.
_lock = threading.Lock()
_firsts: list[int] = []
_extents: dict[int, Extent] = {}
violations: list[str] = []  # the list of what was found when memory was freed, where an exception has nowhere to go


def near(address: int) -> Extent | None:
    """The allocation in whose pages, or in the guard behind or before which, `address` lies."""
    with _lock:
        k = bisect.bisect_right(_firsts, address + mmap.PAGESIZE) - 1
        if k < 0:
            return None
        extent = _extents[_firsts[k]]
        if address < extent.first and k > 0:  # between two allocations: rather past the end of one
            other = _extents[_firsts[k - 1]]
            if address < other.last + mmap.PAGESIZE:
                return other
        return extent if address < extent.last + mmap.PAGESIZE else None


class Guarded:
    """`nbytes` of fresh memory at `address`, given back when this dies."""

    def __init__(self, nbytes: int, device_id: int) -> None:
        room = -(-nbytes // ALIGNMENT) * ALIGNMENT
        pages = -(-room // mmap.PAGESIZE) * mmap.PAGESIZE
        start = _libc.mmap(None, pages + 2 * mmap.PAGESIZE, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        if start == _FAILED:
            raise MemoryError(f"no memory for {nbytes} bytes: errno {ctypes.get_errno()}")
        first = start + mmap.PAGESIZE
        if _libc.mprotect(first, pages, mmap.PROT_READ | mmap.PROT_WRITE):
            raise MemoryError(f"no memory for {nbytes} bytes: errno {ctypes.get_errno()}")
        self.extent = Extent(first, first + pages, first + pages - room, nbytes, device_id)
        self.address = self.extent.address
        self.extent.restore()
        poison(seen(self.address, nbytes))
        with _lock:
            bisect.insort(_firsts, first)
            _extents[first] = self.extent

    def __del__(self) -> None:
        if not hasattr(self, "address"):
            return
        extent = self.extent
        with _lock:
            del _firsts[bisect.bisect_left(_firsts, extent.first)], _extents[extent.first]
        wrong = extent.violation()
        _libc.munmap(extent.first - mmap.PAGESIZE, extent.last - extent.first + 2 * mmap.PAGESIZE)
        if wrong:
            violations.append(wrong)
            raise OutOfBounds(f"{wrong}; found when it was freed")
