"""Buffers: the unit in which memory is owned, counted and lent.

Every byte gpuad holds belongs to a Buffer, made by a device's `allocate` or registered by its `adopt`.  Observers
(a memory ledger, a progress bar) see each one come and go.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .provenance import Site

if TYPE_CHECKING:
    from .devices.device import Device


class Observer(Protocol):
    """What sees every allocation: a memory ledger, or a counter."""

    def allocated(self, buffer: Buffer) -> None:
        """Called when `buffer` begins to hold memory."""

    def freed(self, buffer: Buffer) -> None:
        """Called when the memory of `buffer` is given back."""


observers: list[Observer] = []  # the one registry; empty costs one test per allocation


class Buffer:
    """Memory on a device.  `owner` is the device library's array that holds it; Arrays are views of that."""

    __slots__ = ("borrowed", "category", "device", "nbytes", "owner", "site")

    def __init__(
        self,
        owner: Any,
        device: Device,
        nbytes: int,
        *,
        borrowed: bool = False,
        category: str = "temporary",
        site: Site | None = None,
    ) -> None:
        self.owner, self.device, self.nbytes = owner, device, nbytes
        self.borrowed = borrowed  # others can write this memory
        self.category = category
        self.site = site
        if observers:
            for observer in observers:
                observer.allocated(self)

    def __del__(self) -> None:
        if observers:
            for observer in observers:
                observer.freed(self)

    def views(self) -> int:
        """How many arrays, of ours or of anyone's, look into this memory besides `owner` itself."""
        return sys.getrefcount(self.owner) - 2  # less this attribute and the argument of getrefcount


class LiveBytes:
    """An observer that counts the bytes alive, and the most there were."""

    def __init__(self) -> None:
        self.live = self.peak = 0

    def allocated(self, buffer: Buffer) -> None:
        """Count `buffer` in."""
        self.live += buffer.nbytes
        if self.live > self.peak:
            self.peak = self.live

    def freed(self, buffer: Buffer) -> None:
        """Count `buffer` out."""
        self.live -= buffer.nbytes


_WEIGHTS = np.random.Generator(np.random.Philox(0)).integers(1, 2**64, 8192, dtype=np.uint64, endpoint=False) | np.uint64(1)


def fingerprint(data: np.ndarray[Any, Any]) -> int:
    """A 64-bit sum of the words of `data`, weighted by position: a write shows, and so does a shuffle."""
    raw = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    words = raw[: raw.size // 8 * 8].view(np.uint64)
    total = raw.size
    for place, start in enumerate(range(0, words.size, _WEIGHTS.size)):
        part = words[start : start + _WEIGHTS.size]
        total += (2 * place + 1) * int(np.dot(part, _WEIGHTS[: part.size]))
    for place, byte in enumerate(raw[words.size * 8 :].tolist()):
        total += byte * int(_WEIGHTS[-1 - place])
    return total % 2**64
