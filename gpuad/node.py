"""Nodes: what a tape is made of.

A link is `(node, k)`: the k-th output of the operation that `node` recorded.  A leaf is a node without parents; it
collects the gradient of the tensor that requires it.
"""

from __future__ import annotations

import itertools
import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeAlias

from .array import Array
from .attribution import ledgers, release
from .buffer import fingerprint
from .errors import MutationError
from .provenance import Site, describe

if TYPE_CHECKING:
    from .tensor import Tensor

Link: TypeAlias = "tuple[Node, int]"

clock = itertools.count(1)  # orders traces (inner ones start later) and nodes
Order: TypeAlias = "tuple[float, ...]"  # of nodes: that of the newest is least
# Where nodes that are made now stand: () is the end of the tape, (x,) is between the nodes around x.
place: ContextVar[Order] = ContextVar("place", default=())


class Node:
    """One recorded operation: enough to pull a cotangent back through it.

    `saved` holds what the op's rules ask for: its inputs, its output, `like` and its parameters, None where nobody
    asks; None altogether once a sweep has freed it.  What it keeps knows that it is kept.
    """

    __slots__ = ("__weakref__", "again", "op", "order", "parents", "saved", "site")

    def __init__(self, op: Any, parents: list[Link | None], saved: list[Any] | None, site: Site | None) -> None:
        self.op, self.parents, self.saved, self.site = op, parents, saved, site
        self.order: Order = (*place.get(), -next(clock))
        self.again: list[Link | None] | None = None  # of a later run of this op, which takes the cotangents of this one

    @property
    def behind(self) -> Order:
        """The place just before this node, after all that is older."""
        *around, last = self.order
        return (*around, last + 0.5)

    def release(self) -> None:
        """Forget what is saved."""
        saved, self.saved = self.saved, None
        if saved is not None:
            for k, v in enumerate(saved):
                if v is not None:
                    array = v if type(v) is Array else bottom(v)
                    if array is not None:
                        array.kept -= 1
                        if ledgers:
                            release(array, self.keeper(k))

    def keeper(self, k: int) -> str:
        """On whose account the k-th value is saved: the name of an op."""
        name: str = self.op.name if k < len(self.parents) or not self.op.keeper else self.op.keeper
        return name

    def __del__(self) -> None:
        self.release()


class Leaf(Node):
    """The end of a tape: a tensor that requires grad."""

    __slots__ = ("grad", "lock", "name")
    category = "gradient"  # of what arrives here

    def __init__(self, name: str | None, site: Site | None) -> None:
        super().__init__(None, [], None, site)
        self.name = name
        self.grad: Tensor | None = None
        self.lock = threading.Lock()  # taken while `grad` is added to


class Entry(Leaf):
    """The end of the tape of a part of a computation, which goes on before it."""

    __slots__ = ()
    category = "cotangent"


def bottom(value: Any) -> Any:
    """The Array under a saved value: under an Array, a tensor of any level, or a borrowed one; else None."""
    while type(value) is not Array:
        if value is None:
            return None
        if type(value) is Borrowed:
            return value.array
        if not hasattr(value, "trace"):
            return None
        value = value.data
    return value


class Borrowed:
    """A kept value whose memory others can write, with the fingerprint it had when it was kept."""

    __slots__ = ("array", "line", "print", "value")

    def __init__(self, value: Any, array: Array, site: Site | None) -> None:
        self.value, self.array, self.line = value, array, site
        self.print = fingerprint(array.device.to_numpy(array))

    def verified(self, op: str) -> Any:
        """The value (an Array, or a tensor over it), if its memory still holds what it held."""
        array = self.array
        if fingerprint(array.device.to_numpy(array)) != self.print:
            assert array.buffer is not None
            raise MutationError(
                f"memory that the gradient of {op}() needs was written after it was used\n"
                f"  {array.dtype}{list(array.shape)}, {array.buffer.history()};"
                f" saved by {op}() at {describe(self.line)}\n"
                "  write to it after the gradient is computed, or give gpuad memory of its own: "
                "asarray(a), or from_dlpack(a, copy=True)"
            )
        return self.value
