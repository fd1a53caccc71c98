"""Memory of the CPU that is free, kept for the next array of its size.

Fresh memory costs a page fault every 4 KiB, which on a virtual machine takes longer than writing the page: products of
matrices run twice as fast into memory that was used before.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from ..array import Shape
from ..dtype import DType

Data = np.ndarray[Any, Any]

SMALLEST = 1 << 15  # bytes; smaller blocks the C library reuses by itself
LIMIT = 1 << 29  # bytes kept at most


class Reuse:
    """Free blocks by size.  Safe on threads: each step is one operation of a dict or a list."""

    holds = 0  # references to what is lent

    def __init__(self, smallest: int = SMALLEST, limit: float = LIMIT) -> None:
        self.smallest, self.limit = smallest, limit  # in bytes: of a block, and of all that are kept
        self.free: dict[int, list[Data]] = {}
        self.kept = 0  # bytes; approximate while threads race, and set right whenever everything is dropped

    def give(self, owner: Data) -> None:
        """Keep the memory of `owner`, if nobody else looks at it."""
        n = owner.nbytes
        if n < self.smallest:
            return
        if sys.getrefcount(owner) > 3 or not (
            owner.flags.owndata and owner.flags.c_contiguous and owner.flags.writeable
        ):
            return  # the references counted: the buffer's and ours, and the argument
        if self.kept + n > self.limit:
            self.drop()
            if n > self.limit:
                return
        self.free.setdefault(n, []).append(owner)
        self.kept += n

    def take(self, shape: Shape, dtype: DType, nbytes: int) -> tuple[Data, Data]:
        """An array of undefined contents, and the array that owns its memory."""
        blocks = self.free.get(nbytes) if nbytes >= self.smallest else None
        if blocks:
            try:
                owner = blocks.pop()
            except IndexError:  # another thread was faster
                owner = None
            if owner is not None:
                self.kept -= nbytes
                return owner.reshape(-1).view(dtype).reshape(shape), owner
        data = np.empty(shape, dtype)
        return data, data

    def drop(self) -> None:
        """Give everything back to the system."""
        self.free, self.kept = {}, 0
