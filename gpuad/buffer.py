"""Buffers: the unit in which memory is owned, counted and lent.

Every byte gpuad holds belongs to a Buffer, made by a device's `allocate` or registered by its `adopt`.  Observers
(a memory ledger, a progress bar) see each one come and go.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakValueDictionary

import numpy as np

from .provenance import Site, describe

if TYPE_CHECKING:
    from .devices.device import Device


class Observer(Protocol):
    """What sees every allocation: a memory ledger, or a counter."""

    def allocated(self, buffer: Buffer) -> None:
        """Called when `buffer` begins to hold memory."""

    def freed(self, buffer: Buffer) -> None:
        """Called when the memory of `buffer` is given back."""


class Home(Protocol):
    """What keeps free memory for another buffer."""

    holds: int  # references to each array that it has lent

    def give(self, owner: Any) -> None:
        """Keep the memory of the array `owner`, if nobody else looks at it."""


# The one registry of memory that others can write, by the id of its owner, which the buffer keeps alive.
shared: WeakValueDictionary[int, Buffer] = WeakValueDictionary()
observers: list[Observer] = []  # the one registry; empty costs one test per allocation


class Buffer:
    """Memory on a device.  `owner` is the device library's array that holds it; Arrays are views of that."""

    __slots__ = ("__weakref__", "borrowed", "category", "device", "home", "lent", "nbytes", "owner", "site")

    def __init__(
        self,
        owner: Any,
        device: Device,
        nbytes: int,
        *,
        borrowed: bool = False,
        home: Home | None = None,
        category: str = "temporary",
        site: Site | None = None,
    ) -> None:
        self.owner, self.device, self.nbytes = owner, device, nbytes
        self.home = home  # where the memory goes when this does
        self.borrowed = borrowed  # others can write this memory
        self.lent: Site | None = None  # the line that gave it to them, where it is ours
        self.category = category
        self.site = site
        if borrowed:
            shared[id(owner)] = self
        if observers:
            for observer in observers:
                observer.allocated(self)

    def __del__(self) -> None:
        if observers:
            for observer in observers:
                observer.freed(self)
        if self.home is not None and not self.borrowed:
            self.home.give(self.owner)

    def lend(self, site: Site | None) -> None:
        """Let others write this memory from now on, which nothing pending or kept reads."""
        self.borrowed, self.lent = True, site
        shared[id(self.owner)] = self

    def history(self) -> str:
        """Where this memory, which is borrowed, came from or how others got hold of it, as error messages tell it."""
        if self.lent is not None:
            return f"made at {describe(self.site)} and lent through DLPack at {describe(self.lent)}"
        return f"imported at {describe(self.site)} without a copy"

    def views(self) -> int:
        """How many arrays, of ours or of anyone's, look into this memory besides `owner` itself."""
        kept = 0 if self.home is None else self.home.holds
        return sys.getrefcount(self.owner) - 2 - kept  # less this attribute and the argument of getrefcount


class LiveBytes:
    """An observer that counts the bytes alive, of one device or of all, and the most there were."""

    def __init__(self, device: Device | None = None) -> None:
        self.device = device
        self.live = self.peak = 0

    def allocated(self, buffer: Buffer) -> None:
        """Count `buffer` in."""
        if self.device is None or buffer.device is self.device:
            self.live += buffer.nbytes
            if self.live > self.peak:
                self.peak = self.live

    def freed(self, buffer: Buffer) -> None:
        """Count `buffer` out."""
        if self.device is None or buffer.device is self.device:
            self.live -= buffer.nbytes


_WORDS = 8192  # of one step: they stay in the cache
_WEIGHTS = np.arange(1, _WORDS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # then mixed, as SplitMix64 does
_WEIGHTS = (_WEIGHTS ^ (_WEIGHTS >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
_WEIGHTS = (_WEIGHTS ^ (_WEIGHTS >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
_WEIGHTS |= np.uint64(1)  # odd, so that every change of one word shows
# A weight leaves the top bit where it is, so the changed signs of two float64 would cancel: high bits are folded onto
# low ones first.  Not by 32, where the signs of two float32 would meet and cancel, nor by 8, 16 or 24.
_FOLD = np.uint64(33)
_STEP = 0x9E3779B97F4A7C15  # odd, so that a step forgets nothing of those before it


def fingerprint(data: np.ndarray[Any, Any]) -> int:
    """64 bits that depend on every byte of `data` and on its place: a write shows, and so does a shuffle."""
    raw = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    words = raw[: raw.size // 8 * 8].view(np.uint64)
    scratch = np.empty(min(words.size, _WORDS), np.uint64)
    total = raw.size
    for start in range(0, words.size, _WORDS):
        part = words[start : start + _WORDS]
        mixed = np.right_shift(part, _FOLD, out=scratch[: part.size])
        mixed ^= part
        total = (total * _STEP + int(np.dot(mixed, _WEIGHTS[: part.size]))) % 2**64
    return (total * _STEP + int.from_bytes(raw[words.size * 8 :].tobytes(), "little")) % 2**64
