"""What memory is for, and on whose account: what a memory ledger is told while there is one.

Each of these costs one test where there is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from .array import Array


class Watcher(Protocol):
    """What is told of memory besides that it comes and goes: a ledger."""

    def assigned(self, array: Array, category: str) -> None:
        """Called when what `array` is for becomes clear, perhaps before it has memory."""

    def kept(self, array: Array, op: str) -> None:
        """Called when a tape keeps `array` for the derivative of `op`."""

    def released(self, array: Array, op: str) -> None:
        """Called when it keeps it no longer."""

    def computed(self, array: Array) -> None:
        """Called when `array` has got its memory."""

    def ran(self, op: Any, arrays: list[Any], params: dict[str, Any]) -> None:
        """Called when a product, attention or another op outside fused kernels has run on data."""

    def mark(self, name: str) -> None:
        """Called at a place in the order of events that has a name."""


ledgers: list[Watcher] = []  # the one registry
# an op, the Modules that asked for it, outer first, and the phase in which they did
Doing: TypeAlias = "tuple[str, tuple[Any, ...], str]"
doing: ContextVar[Doing] = ContextVar("doing", default=("", (), ""))  # on whose account memory is taken, for ledgers
asked: WeakKeyDictionary[Array, Doing] = WeakKeyDictionary()  # the same for pending arrays
phase: ContextVar[str] = ContextVar("phase", default="forward")
scope: ContextVar[tuple[Any, ...]] = ContextVar("scope", default=())  # the Modules that are running, outer first
whole: ContextVar[str] = ContextVar("whole", default="")  # the op that is being made of others
scopes: WeakKeyDictionary[Any, tuple[Any, ...]] = WeakKeyDictionary()  # those of each node of a tape


def begin(op: Any) -> None:
    """From here on memory is taken for `op`, or for what is made of it."""
    doing.set((whole.get() or op.name, scope.get(), phase.get()))


def began(array: Any) -> None:
    """`array` is the result of what has begun, perhaps pending."""
    if array.op is not None:
        asked.setdefault(array, doing.get())


def resume(array: Array) -> None:
    """From here on memory is taken for `array`, which was asked for before."""
    found = asked.get(array)
    if found is not None:
        doing.set(found)
    elif array.op is not None:
        doing.set((array.op.name, scope.get(), phase.get()))


def assign(array: Array, category: str) -> None:
    """From now on the memory of `array`, or what it will have once it is computed, is of `category`."""
    if array.buffer is not None:
        array.buffer.category = category
    for ledger in ledgers:
        ledger.assigned(array, category)


def take_over(array: Array) -> None:
    """The memory of `array`, which is going, is taken over by a result: it is no input and no gradient any longer."""
    if array.buffer is not None and (ledgers or array.buffer.category in ("input", "gradient")):
        assign(array, "temporary")


def keep(array: Array, node: Any, op: str) -> None:
    """A node of a tape keeps `array` from now on, for `op`."""
    scopes[node] = scope.get()
    for ledger in ledgers:
        ledger.kept(array, op)


def release(array: Array, op: str) -> None:
    """A node of a tape keeps `array` no longer."""
    for ledger in ledgers:
        ledger.released(array, op)


def computed(array: Array) -> None:
    """`array` has got its memory."""
    for ledger in ledgers:
        ledger.computed(array)


def ran(op: Any, arrays: list[Any], params: dict[str, Any]) -> None:
    """An op outside fused kernels has run on these data."""
    for ledger in ledgers:
        ledger.ran(op, arrays, params)


def mark(name: str) -> None:
    """This place in the order of events has a name."""
    for ledger in ledgers:
        ledger.mark(name)


def forget() -> None:
    """Hold no Module any longer: the last ledger has gone."""
    if not ledgers:
        doing.set(("", (), ""))
        asked.clear()
        scopes.clear()


@contextmanager
def during(name: str) -> Iterator[None]:
    """What is allocated inside belongs to the phase `name`."""
    token = phase.set(name)
    try:
        yield
    finally:
        phase.reset(token)
