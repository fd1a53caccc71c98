"""Functions that compute on a device, run on shapes alone: what they use from outside is brought to the meta device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..array import Array
from ..attribution import forget, ledgers
from ..buffer import Buffer, observers
from ..devices import Device
from ..remat.region import from_outside
from .dryrun import meta_like
from .flops import flops_of

FLOPS_A_BYTE = 16  # writing a byte, and reading what it is made of, takes as long as this many operations


def stand_in_for(device: Device) -> Device:
    """The meta device that stands for `device`; itself if it is one."""
    if not device.computes:
        return device
    return meta_like(f"{device.name.partition(':')[0]}:{device.engine}")


class Counting:
    """What is made on a meta device: bytes alive and the most there were, bytes in all, and arithmetic operations.

    What is brought in is not counted, nor what another thread or a dry run inside this one makes.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.live = self.peak = self.made = self.flops = 0
        self.counted: set[int] = set()  # the ids of what is alive
        self.new: set[int] = set()  # those of what has been made since `begin`
        self.brought: dict[int, tuple[Array, Array]] = {}  # by id: an array from outside, and what stands for it
        self.bringing = False

    @property
    def work(self) -> int:
        """What all of it takes, in arithmetic operations."""
        return self.flops + FLOPS_A_BYTE * self.made

    def begin(self) -> tuple[int, int]:
        """The bytes alive and the work done so far; `peak` and `new` are of what follows."""
        self.peak = self.live
        self.new.clear()
        return self.live, self.work

    def bring(self, array: Array) -> Array:
        """What stands for an array from outside."""
        if array.device is self.device:
            return array
        if id(array) not in self.brought:
            self.bringing = True
            category = "temporary" if array.buffer is None else array.buffer.category
            self.brought[id(array)] = array, self.device.allocate(array.shape, array.dtype, category)
            self.bringing = False
        return self.brought[id(array)][1]

    def allocated(self, buffer: Buffer) -> None:
        """Count `buffer` in."""
        if buffer.device is self.device and not self.bringing and self._is_asked():
            self.counted.add(id(buffer))
            self.live += buffer.nbytes
            self.made += buffer.nbytes
            self.peak = max(self.peak, self.live)
            self.new.add(id(buffer))

    def freed(self, buffer: Buffer) -> None:
        """Count `buffer` out."""
        if id(buffer) in self.counted:
            self.counted.remove(id(buffer))
            self.new.discard(id(buffer))
            self.live -= buffer.nbytes

    def ran(self, op: Any, arrays: list[Any], params: dict[str, Any]) -> None:
        """Count the arithmetic of an op."""
        if self._is_asked():
            self.flops += flops_of(op, arrays, params)

    def _is_asked(self) -> bool:
        """Does this run bring in what comes from outside, here and now?"""
        return from_outside.get() == self.bring

    def _nothing(self, *_: Any) -> None:
        """What else a watcher is told."""

    assigned = kept = released = computed = mark = _nothing


@contextmanager
def counting(device: Device) -> Iterator[Counting]:
    """A block in which functions of regions run on `device`, a meta device, and are counted."""
    count: Any = Counting(device)
    token = from_outside.set(count.bring)
    observers.append(count)
    ledgers.append(count)
    try:
        yield count
    finally:
        ledgers.remove(count)
        observers.remove(count)
        from_outside.reset(token)
        forget()


__all__ = ["Counting", "counting", "stand_in_for"]
