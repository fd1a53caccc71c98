"""Recorders: what a function asks of a device, in order, so that it can be asked again without the function's Python.

A device does its work through `Device.perform(work, inputs, outputs)`.  An active Recorder notes the work and where its
arrays lie; afterwards the same is done again in the same memory (replay.py).  What Python has to do again beside that,
a check that raises or a count of steps, goes through `also`; a number that is another one each time is a `Live`.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from weakref import ref

from .array import Array, computed, serials
from .array import describe as show
from .buffer import Buffer
from .dtype import WEAK
from .errors import CaptureError
from .provenance import Site, describe, here

active: ContextVar[Recorder | None] = ContextVar("recorder", default=None)


class Live:
    """A number that is asked for anew whenever the kernel that takes it runs."""

    __slots__ = ("value",)

    def __init__(self, value: Callable[[], float]) -> None:
        self.value = value

    def __float__(self) -> float:
        return float(self.value())

    def __int__(self) -> int:
        return int(self.value())

    __index__ = __int__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Live) and self.value() == other.value()

    __hash__ = None  # type: ignore[assignment]  # it is another number each time


@dataclass(frozen=True, slots=True)
class Place:
    """Where the elements of an array lie: what an array can be made of again that does not keep the memory."""

    base: int  # the address of the memory that they are part of
    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: Any


@dataclass(slots=True)
class Action:
    """One piece of work: `work(*arrays)`, or `work()` where there are no places."""

    work: Callable[..., Any]
    places: tuple[Place, ...]
    key: Any  # what tells it from other work, apart from places
    site: Site | None


class Arena:
    """The memory of a recording, which keeps it: blocks that are used again for arrays of their size, and no others."""

    holds = 1  # references to each block

    def __init__(self, empty: Callable[..., Any]) -> None:
        self.empty: Callable[..., Any] | None = empty  # None once it is closed
        self.blocks: list[Any] = []
        self.free: dict[int, list[Any]] = {}

    def take(self, shape: tuple[int, ...], dtype: Any, nbytes: int) -> tuple[Any, Any]:
        """An array of undefined contents, and the array that owns its memory."""
        blocks = self.free.get(nbytes)
        if blocks:
            owner = blocks.pop()
            return owner.reshape(-1).view(dtype).reshape(shape), owner
        assert self.empty is not None
        data = self.empty(shape, dtype)
        self.blocks.append(data)
        return data, data

    def give(self, owner: Any) -> None:
        """Use the memory of `owner` again, if nobody else looks at it."""
        if self.empty is not None and sys.getrefcount(owner) <= 4:  # the buffer's, our own two, and the argument
            self.free.setdefault(owner.nbytes, []).append(owner)

    def close(self) -> None:
        """Keep nothing any longer."""
        self.blocks, self.free, self.empty, self.holds = [], {}, None, 0


class Recorder:
    """What one run of a function asks of a device: the one that it uses first."""

    def __init__(self, realize: Callable[[Array], Array], opened: int) -> None:
        self.realize = realize
        self.opened = opened  # traces and tapes from before have smaller numbers
        self.device: Any = None
        self.memory: Any = None  # the Arena that new arrays come from
        self.actions: list[Action] = []
        self.made: list[ref[Buffer]] = []  # buffers that were allocated meanwhile
        self.filled: dict[int, bool] = {}  # has anything been written to such a buffer?  By address
        self.changed: dict[int, ref[Buffer]] = {}  # buffers from before that are written in place, by id
        self.began = next(serials)  # arrays from before have smaller numbers
        self.handles: dict[int, tuple[ref[Any], Place]] = {}  # tensors from before, and where their values lay
        self.read: dict[int, Site | None] = {}  # memory from before that is read, and where first
        self.state: list[Callable[[], Sequence[Array]]] = []  # what gives the arrays of optimizers
        self.kept: set[int] = set()  # such memory that a guard sees to
        self.modules: dict[int, Any] = {}  # Modules that were called, by id
        self.guards: list[Callable[[], bool]] = []  # what must stay true for a replay to be right

    def use(self, device: Any) -> None:
        """Note that the function works on `device`."""
        if self.device is None:
            self.device, self.memory = device, device.arena()
        elif device is not self.device:
            raise CaptureError(
                f"capture() follows work on one device, but at {describe(here())} this is {device.name} after"
                f" {self.device.name}\n  move tensors before the step, and pass them to it"
            )

    def note(
        self,
        device: Any,
        work: Callable[..., Any],
        inputs: Sequence[Any],
        outputs: Sequence[Any],
        key: Any,
        site: Site | None,
    ) -> None:
        """Note work on arrays of the device's library, of which it writes `outputs`."""
        self.use(device)
        place, filled = device.place, self.filled
        for x in inputs:
            base = device.base(x)
            if base not in filled:
                if x.size:
                    self.read.setdefault(base, site or here())
            elif not filled[base] and x.size:
                raise CaptureError(
                    f"capture() cannot follow what the step does before {describe(site or here())}:"
                    " memory is read that nothing on the device has written"
                )
        for y in outputs:
            base = device.base(y)
            if base in filled:
                filled[base] = True
        places = tuple([place(x) for x in (*inputs, *outputs)])
        self.actions.append(Action(work, places, key, site or here()))

    def allocate(
        self, device: Any, shape: tuple[int, ...], dtype: Any, nbytes: int, category: str, site: Site | None
    ) -> Array:
        """A computed Array of undefined contents, in memory of the recording."""
        self.use(device)
        data, owner = self.memory.take(shape, dtype, nbytes)
        buffer = Buffer(owner, device, nbytes, home=self.memory, category=category, site=site)
        self.made.append(ref(buffer))
        self.filled[device.base(data)] = False
        return computed(data, buffer, shape, dtype, site)

    def saw(self, tensors: Iterable[Any]) -> None:
        """Note tensors, among `tensors`, that were there before."""
        for x in tensors:
            known = self.handles.get(id(x))
            if type(x) in WEAK or not hasattr(x, "array") or (known is not None and known[0]() is x):
                continue
            tape = x.trace.id if x.trace is not None else -x.link[0].order[0] if x.link is not None else self.opened
            if tape < self.opened and not x.is_leaf:
                raise CaptureError(
                    f"capture() cannot follow a derivative into the step: {show(x)} is used at {describe(here())}\n"
                    "  compute it in the step, or detach() it"
                )
            array = x.array
            if array.serial < self.began:
                if array.op is not None:
                    with suspended():
                        self.realize(array)
                self.use(array.device)
                self.handles[id(x)] = ref(x), self.device.place(array.data)

    def settle(self) -> None:
        """Compute what is pending, for it may read memory that is about to be written in place."""
        for array in [x for x in gc.get_objects() if type(x) is Array and x.op is not None and not x.readers]:
            if array.serial > self.began and array.device is self.device:
                self.realize(array)

    def places(self) -> list[tuple[Any, Place]]:
        """The tensors from before that are still there, and where their values lay."""
        return [(tensor, place) for found, place in self.handles.values() if (tensor := found()) is not None]

    def left(self) -> list[Buffer]:
        """New memory that is still in use."""
        return [buffer for found in self.made if (buffer := found()) is not None]

    def wrote(self, buffer: Buffer) -> None:
        """Note that a kernel writes over `buffer`, which nobody else sees."""
        if self.device.base(buffer.owner) not in self.filled:
            self.changed[id(buffer)] = ref(buffer)


def also(f: Callable[[], None]) -> None:
    """Call `f`, now and in every replay; what it asks of a device is not noted."""
    recorder = active.get()
    if recorder is None:
        f()
        return
    with suspended():
        f()
    recorder.actions.append(Action(f, (), "call", here()))


@contextmanager
def suspended() -> Iterator[None]:
    """Note nothing inside."""
    token = active.set(None)
    try:
        yield
    finally:
        active.reset(token)


def refuse(what: str, remedy: str) -> None:
    """A CaptureError if a recording is under way, which cannot follow `what`."""
    if active.get() is not None:
        raise CaptureError(f"capture() cannot follow {what} at {describe(here())}\n  {remedy}")
