"""The machine that the stand-in pretends to be: its devices, and what is loaded on them."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from stand_in import compiler

DEVICES = 2
TOTAL_BYTES = 8 << 30  # of each device
DYNAMIC_SHARED, DYNAMIC_SHARED_OPT_IN = 48 << 10, 227 << 10  # bytes: what a kernel may have unasked, and at most

allocated = [0] * DEVICES  # the counter of bytes that each device has given


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
