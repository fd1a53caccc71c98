"""The machine that the stand-in pretends to be: its devices, and what is loaded on them."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from stand_in import compiler

DEVICES = 2
TOTAL_BYTES = 8 << 30  # of each device
DYNAMIC_SHARED, DYNAMIC_SHARED_OPT_IN = 48 << 10, 227 << 10  # bytes: what a kernel may have unasked, and at most

allocated = [0] * DEVICES  # the counter of bytes that each device has given, but to the driver's own pools


@dataclass
class DriverPool:
    """A pool of the driver's, which grows by 32 MiB and keeps what it has until it is trimmed."""

    used: int = 0
    reserved: int = 0
    used_high: int = 0
    reserved_high: int = 0

    def change(self, nbytes: int) -> None:
        self.used += nbytes
        self.reserved = max(self.reserved, self.needed())
        self.used_high = max(self.used_high, self.used)
        self.reserved_high = max(self.reserved_high, self.reserved)

    def needed(self) -> int:
        return -(-self.used // (32 << 20)) * (32 << 20)


driver_pools = [DriverPool() for _ in range(DEVICES)]  # the registry of them


@dataclass
class Loaded:
    """An entry on one device, with what was set for it there."""

    entry: compiler.Entry
    device: int
    dynamic_limit: int = DYNAMIC_SHARED


functions: dict[int, Loaded] = {}  # the registry of loaded functions by their ptr


def load(entry: compiler.Entry, device: int) -> int:
    """The ptr of `entry` on `device`."""
    ptr = ctypes.addressof(entry) + device
    functions.setdefault(ptr, Loaded(entry, device))
    return ptr
