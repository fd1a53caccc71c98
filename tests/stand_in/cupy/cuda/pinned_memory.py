"""The stand-in's `cupy.cuda.pinned_memory`: memory of the host, poisoned when fresh."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from stand_in import guarded


class _Pinned(bytearray):
    """Memory of the host, which NumPy reads as a buffer."""

    @property
    def ptr(self) -> int:
        return ctypes.addressof((ctypes.c_uint8 * len(self)).from_buffer(self))

    def size(self) -> int:
        return len(self)

    def __int__(self) -> int:
        return self.ptr


class PinnedMemoryPool:
    """Where pinned memory comes from."""

    def __init__(self, allocator: Any = None) -> None:
        self._allocator = allocator or alloc_pinned_memory

    def malloc(self, size: int) -> _Pinned:
        return self._allocator(size)

    def free_all_blocks(self) -> None:
        pass

    def n_free_blocks(self) -> int:
        return 0


def alloc_pinned_memory(size: int) -> _Pinned:
    found = _Pinned(-(-size // 512) * 512)
    guarded.poison(np.frombuffer(found, np.uint8))
    return found


_default_pool = PinnedMemoryPool()  # CuPy's own
