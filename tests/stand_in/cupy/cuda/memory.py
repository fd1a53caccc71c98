"""The stand-in's `cupy.cuda.memory`: guarded memory, and a pool that only counts.

A pool of CuPy's keeps what is freed for the next; here each allocation is fresh, so that reading what was freed shows,
and the pool's numbers are those that CuPy's would have.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from stand_in import guarded

from .. import _machine
from . import runtime
from .device import Device

_ROUNDING = 512  # bytes: CuPy's pool gives multiples of it


class OutOfMemoryError(MemoryError):
    """More than there is, or than a pool's limit."""

    def __init__(self, size: int, total: int, limit: int = 0) -> None:
        limited = f" (limit set to: {limit:,} bytes)" if limit else ""
        super().__init__(f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes){limited}.")


class BaseMemory:
    """`size` bytes at `ptr` on a device."""

    ptr: int
    size: int
    device_id: int

    @property
    def device(self) -> Device:
        return Device(self.device_id)

    def __int__(self) -> int:
        return self.ptr


class Memory(BaseMemory):
    """Fresh memory of the current device."""

    def __init__(self, size: int) -> None:
        self.ptr, self.size, self.device_id = 0, size, runtime.getDevice()
        if not size:
            return
        if _machine.allocated[self.device_id] + size > _machine.TOTAL_BYTES:
            raise runtime.CUDARuntimeError(runtime._NO_MEMORY)
        _machine.allocated[self.device_id] += size
        self._block = guarded.Guarded(size, self.device_id)
        self.ptr = self._block.address

    def __del__(self) -> None:
        if self.ptr:
            _machine.allocated[self.device_id] -= self.size


class UnownedMemory(BaseMemory):
    """Memory that `owner` keeps."""

    def __init__(self, ptr: int, size: int, owner: object, device_id: int = -1) -> None:
        self.ptr, self.size, self._owner = ptr, size, owner
        self.device_id = runtime.getDevice() if device_id < 0 else device_id


class MemoryPointer:
    """A place in memory."""

    def __init__(self, mem: BaseMemory, offset: int) -> None:
        self.mem, self.ptr = mem, mem.ptr + offset

    def __int__(self) -> int:
        return self.ptr

    def __add__(self, offset: int) -> MemoryPointer:
        return MemoryPointer(self.mem, self.ptr - self.mem.ptr + offset)

    def __sub__(self, offset: int) -> MemoryPointer:
        return self + -offset

    @property
    def device_id(self) -> int:
        return self.mem.device_id

    @property
    def device(self) -> Device:
        return self.mem.device

    def memset(self, value: int, size: int) -> None:
        runtime.memset(self.ptr, value, size)

    def memset_async(self, value: int, size: int, stream: Any = None) -> None:
        runtime.memset(self.ptr, value, size)

    def copy_from_device(self, src: MemoryPointer, size: int) -> None:
        ctypes.memmove(self.ptr, src.ptr, size)

    def copy_from_device_async(self, src: MemoryPointer, size: int, stream: Any = None) -> None:
        ctypes.memmove(self.ptr, src.ptr, size)

    def copy_from_host(self, mem: Any, size: int) -> None:
        ctypes.memmove(self.ptr, mem, size)

    def copy_from_host_async(self, mem: Any, size: int, stream: Any = None) -> None:
        ctypes.memmove(self.ptr, mem, size)

    def copy_to_host(self, mem: Any, size: int) -> None:
        ctypes.memmove(mem, self.ptr, size)

    def copy_to_host_async(self, mem: Any, size: int, stream: Any = None) -> None:
        ctypes.memmove(mem, self.ptr, size)


def _host_view(pointer: MemoryPointer, nbytes: int) -> np.ndarray:
    """uint8[nbytes] at `pointer`, whose memory lives as long as the view."""
    return guarded.seen(pointer.ptr, nbytes, pointer.mem)


def alloc(size: int) -> MemoryPointer:
    """Memory of the current allocator."""
    return get_allocator()(size)


def _malloc(size: int) -> MemoryPointer:
    return MemoryPointer(Memory(size), 0)


class PooledMemory(BaseMemory):
    """Memory that a pool counts."""

    def __init__(self, chunk: Memory, pool: MemoryPool) -> None:
        self._chunk, self._pool = chunk, weakref.ref(pool)
        self.ptr, self.size, self.device_id = chunk.ptr, chunk.size, chunk.device_id

    def __del__(self) -> None:
        pool = self._pool()
        if pool is not None:
            pool._give_back(self)


class MemoryPool:
    """Memory of all devices, as CuPy's pool counts it: what is freed stays with the pool until `free_all_blocks`."""

    def __init__(self, allocator: Any = None) -> None:
        self._lock = threading.Lock()
        self._used = [0] * _machine.DEVICES
        self._limit = [0] * _machine.DEVICES
        self._free: list[Counter[int]] = [Counter() for _ in range(_machine.DEVICES)]  # how many blocks of each size

    def malloc(self, size: int) -> MemoryPointer:
        device, rounded = runtime.getDevice(), -(-size // _ROUNDING) * _ROUNDING
        with self._lock:
            reused = self._free[device][rounded] > 0
            limit, total = self._limit[device], self._total(device)
            if limit and not reused and total + rounded > limit:
                raise OutOfMemoryError(rounded, total, limit)
            try:
                memory = Memory(size)
            except runtime.CUDARuntimeError:
                raise OutOfMemoryError(rounded, total) from None
            if reused:
                self._free[device][rounded] -= 1
            self._used[device] += rounded
        return MemoryPointer(PooledMemory(memory, self), 0)

    def _give_back(self, memory: PooledMemory) -> None:
        rounded = -(-memory.size // _ROUNDING) * _ROUNDING
        with self._lock:
            self._used[memory.device_id] -= rounded
            if rounded:
                self._free[memory.device_id][rounded] += 1

    def _total(self, device: int) -> int:
        return self._used[device] + sum(size * n for size, n in self._free[device].items())

    def free_all_blocks(self, stream: Any = None) -> None:
        with self._lock:
            self._free[runtime.getDevice()].clear()

    def n_free_blocks(self) -> int:
        return self._free[runtime.getDevice()].total()

    def used_bytes(self) -> int:
        return self._used[runtime.getDevice()]

    def free_bytes(self) -> int:
        return self.total_bytes() - self.used_bytes()

    def total_bytes(self) -> int:
        return self._total(runtime.getDevice())

    def set_limit(self, size: int | None = None, fraction: float | None = None) -> None:
        if (size is None) == (fraction is None):
            raise ValueError("size and fraction cannot be specified at one time")
        self._limit[runtime.getDevice()] = int(_machine.TOTAL_BYTES * fraction) if size is None else size

    def get_limit(self) -> int:
        return self._limit[runtime.getDevice()]


# CuPy's state: the pool by default, the allocator of the process, and that of a thread inside `using_allocator`.
_default_pool = MemoryPool()
_allocator: Callable[[int], MemoryPointer] = _default_pool.malloc
_local = threading.local()


def get_allocator() -> Callable[[int], MemoryPointer]:
    return getattr(_local, "allocator", None) or _allocator


def set_allocator(allocator: Any = None) -> None:
    global _allocator
    if getattr(_local, "allocator", None) is not None:
        raise ValueError("Can't change the global allocator inside `using_allocator` context manager")
    _allocator = allocator or _malloc
