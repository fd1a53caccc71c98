"""The stand-in's `cupy.cuda.memory`: guarded memory, and pools that only count.

A pool of CuPy's keeps what is freed for the next; here each allocation is fresh, so that reading what was freed shows,
and the pool's numbers are those that CuPy's would have, by gpuad's simulator of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from gpuad.memory.pool import UNIT, Pool
from stand_in import guarded

from .. import _machine
from . import runtime
from .device import Device
from .memory_hook import _call
from .stream import get_current_stream


class OutOfMemoryError(MemoryError):
    """More than there is, or than a pool's limit."""

    def __init__(self, size: int, total: int, limit: int = 0) -> None:
        limited = f", limit set to: {limit:,} bytes" if limit else ""
        super().__init__(f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes{limited}).")


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


class _Fresh(BaseMemory):
    """Fresh memory of the current device, which somebody else counts."""

    def __init__(self, size: int) -> None:
        self.ptr, self.size, self.device_id = 0, size, runtime.getDevice()
        if size:
            self._block = guarded.Guarded(size, self.device_id)
            self.ptr = self._block.address


class Memory(_Fresh):
    """Fresh memory of the current device."""

    def __init__(self, size: int) -> None:
        if _machine.allocated[runtime.getDevice()] + size > _machine.TOTAL_BYTES:
            raise runtime.CUDARuntimeError(runtime._NO_MEMORY)
        super().__init__(size)
        _machine.allocated[self.device_id] += size

    def __del__(self) -> None:
        if getattr(self, "ptr", 0):
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


class _Chunk(NamedTuple):
    """What a pool lent: `size` bytes at `address` of its arena, and the fresh memory in their place."""

    mem: _Fresh
    arena: Pool
    address: int
    size: int


class PooledMemory(BaseMemory):
    """Memory that a pool lent, and takes back when this dies."""

    def __init__(self, chunk: _Chunk, pool: weakref.ref[_DevicePool]) -> None:
        self._chunk, self.pool = chunk, pool
        self.ptr, self.size, self.device_id = chunk.mem.ptr, chunk.size, chunk.mem.device_id

    def free(self) -> None:
        ptr, self.ptr = self.ptr, 0
        pool = self.pool() if ptr else None
        if pool is None:
            return
        told = {"device_id": self.device_id, "mem_size": self.size, "mem_ptr": ptr, "pmem_id": id(self)}
        _call("free_preprocess", **told)
        pool.give_back(self._chunk)
        _call("free_postprocess", **told)

    def __del__(self) -> None:
        self.free()


class _DevicePool:
    """The memory of one device: an arena for each stream, which gpuad's simulator of CuPy's pool keeps the books of."""

    def __init__(self, device_id: int) -> None:
        self.device_id, self.limit = device_id, 0
        self.arenas: dict[int, Pool] = {}  # by stream
        self.pending: list[_Chunk] = []  # given back while the books were open: by the collector, or another thread
        self.lock = threading.Lock()

    def malloc(self, size: int) -> MemoryPointer:
        rounded, device = -(-size // UNIT) * UNIT, self.device_id
        _call("malloc_preprocess", device_id=device, size=size, mem_size=rounded)
        found = None
        try:
            found = self._malloc(size, rounded)
        finally:
            ptr, number = (0, 0) if found is None else (found.ptr, id(found.mem))
            told = {"device_id": device, "size": size, "mem_size": rounded, "mem_ptr": ptr, "pmem_id": number}
            _call("malloc_postprocess", **told)
        return found

    def _malloc(self, size: int, rounded: int) -> MemoryPointer:
        if not size:
            return _malloc(0)
        arena, address, taken = self._lend(rounded)
        if taken:
            told = {"device_id": self.device_id, "mem_size": rounded}
            _call("alloc_preprocess", **told)
            _call("alloc_postprocess", **told, mem_ptr=address)
        memory = _Fresh(size)
        return MemoryPointer(PooledMemory(_Chunk(memory, arena, address, rounded), weakref.ref(self)), 0)

    def _lend(self, size: int) -> tuple[Pool, int, bool]:
        """The arena and address of `size` bytes, and whether the driver was asked for them."""
        arena = self.arenas.setdefault(get_current_stream().ptr, Pool())
        for trial in range(3 if not self.limit or size <= self.limit else 0):
            if trial:
                if trial == 2:
                    gc.collect()
                self.free_all_blocks()
            with self.opened():
                total, segments = arena.total_bytes, arena._next_segment
                room = _machine.TOTAL_BYTES - _machine.allocated[self.device_id]
                arena.limit = total + (min(room, self.limit - self.total_bytes()) if self.limit else room)
                with contextlib.suppress(MemoryError):
                    address = arena.malloc(size)
                    _machine.allocated[self.device_id] += arena.total_bytes - total
                    return arena, address, arena._next_segment > segments
                _machine.allocated[self.device_id] += arena.total_bytes - total
        raise OutOfMemoryError(size, self.total_bytes(), self.limit)

    def give_back(self, chunk: _Chunk) -> None:
        self.pending.append(chunk)
        if self.lock.acquire(blocking=False):
            try:
                self._settle()
            finally:
                self.lock.release()

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """The books, for one thread, with all in them that was given back."""
        with self.lock:
            self._settle()
            yield

    def _settle(self) -> None:
        while self.pending:
            chunk = self.pending.pop()
            chunk.arena.free(chunk.address)

    def free_all_blocks(self) -> None:
        with self.opened():
            before = self.total_bytes()
            for arena in self.arenas.values():
                arena.free_all_blocks()
            _machine.allocated[self.device_id] -= before - self.total_bytes()

    def used_bytes(self) -> int:
        return sum(arena.used_bytes for arena in self.arenas.values()) - sum(chunk.size for chunk in self.pending)

    def total_bytes(self) -> int:
        return sum(arena.total_bytes for arena in self.arenas.values())

    def __del__(self) -> None:
        _machine.allocated[self.device_id] -= self.total_bytes()


class MemoryPool:
    """Memory of all devices, counted as CuPy's pool does: what is freed stays with the pool until `free_all_blocks`."""

    def __init__(self, allocator: Any = None) -> None:
        self._pools = [_DevicePool(device) for device in range(_machine.DEVICES)]

    def _here(self) -> _DevicePool:
        return self._pools[runtime.getDevice()]

    def malloc(self, size: int) -> MemoryPointer:
        return self._here().malloc(size)

    def free_all_blocks(self, stream: Any = None) -> None:
        if stream is not None:
            raise NotImplementedError("the stand-in frees the blocks of all streams")
        self._here().free_all_blocks()

    def n_free_blocks(self) -> int:
        with self._here().opened():
            return sum(len(arena._free) for arena in self._here().arenas.values())

    def used_bytes(self) -> int:
        return self._here().used_bytes()

    def free_bytes(self) -> int:
        return self.total_bytes() - self.used_bytes()

    def total_bytes(self) -> int:
        return self._here().total_bytes()

    def set_limit(self, size: int | None = None, fraction: float | None = None) -> None:
        if size is not None and fraction is not None:
            raise ValueError("size and fraction cannot be specified at one time")
        limit = int(_machine.TOTAL_BYTES * (fraction or 0)) if size is None else size
        if limit < 0:
            raise ValueError(f"memory limit size out of range: {limit}")
        self._here().limit = limit

    def get_limit(self) -> int:
        return self._here().limit


class MemoryAsync(BaseMemory):
    """Memory of the driver's own pool, of which hooks are not told."""

    def __init__(self, size: int, stream: Any) -> None:
        self._memory = _Fresh(size)
        self.ptr, self.size, self.device_id = self._memory.ptr, size, self._memory.device_id
        _machine.driver_pools[self.device_id].change(size)

    def __del__(self) -> None:
        _machine.driver_pools[self.device_id].change(-self.size)


class MemoryAsyncPool:
    """The driver's own pool of each device."""

    def __init__(self, pool_handles: Any = "current") -> None:
        if pool_handles != "current":
            raise NotImplementedError("the stand-in has the current pools only")

    def malloc(self, size: int) -> MemoryPointer:
        return MemoryPointer(MemoryAsync(-(-size // UNIT) * UNIT, get_current_stream()), 0)

    def free_all_blocks(self, stream: Any = None) -> None:
        runtime.memPoolTrimTo(runtime.deviceGetMemPool(runtime.getDevice()), 0)

    def used_bytes(self) -> int:
        return _machine.driver_pools[runtime.getDevice()].used

    def total_bytes(self) -> int:
        return _machine.driver_pools[runtime.getDevice()].reserved


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
