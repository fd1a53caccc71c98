"""The stand-in's `cupy.cuda`."""

# ruff: noqa: F401  # what is imported here is what is offered

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from . import compiler, cublas, device, driver, function, memory, memory_hook, pinned_memory, runtime, stream
from .device import Device, get_cublas_handle, get_device_id
from .function import Function, Module
from .memory import (
    BaseMemory,
    Memory,
    MemoryAsync,
    MemoryAsyncPool,
    MemoryPointer,
    MemoryPool,
    UnownedMemory,
    alloc,
    get_allocator,
    set_allocator,
)
from .memory_hook import MemoryHook
from .pinned_memory import PinnedMemoryPool, alloc_pinned_memory
from .stream import Event, ExternalStream, Stream, get_current_stream, get_elapsed_time


def is_available() -> bool:
    return runtime.getDeviceCount() > 0


@contextlib.contextmanager
def using_allocator(allocator: Any = None) -> Iterator[None]:
    before = getattr(memory._local, "allocator", None)
    memory._local.allocator = allocator or memory._malloc
    try:
        yield
    finally:
        memory._local.allocator = before
