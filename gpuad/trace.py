"""Traces: the transformations that are watching, and how an op is applied under them.

`apply` peels the innermost trace off the arguments, recurses, then lets that trace record.  Level 0 is the ambient
tape.  Trace ids are unique and only grow, so depth is not identity; a trace dies when the call that opened it
returns.  Invariant: a rule at level k sees only tensors of the levels below k.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import ref

from .array import Array
from .attribution import began, begin, keep, ledgers
from .convert import as_operand
from .dtype import WEAK
from .errors import EscapedTensorError
from .node import Borrowed, Leaf, Link, Node, bottom, clock
from .provenance import describe, here
from .recording import active
from .tensor import Tensor

horizon: ContextVar[int] = ContextVar("horizon", default=0)  # traces older than this do not record
instead: ContextVar[Any] = ContextVar("instead", default=None)  # what evaluates the next op in its place
active_region: ContextVar[Any] = ContextVar("active_region", default=None)  # the innermost checkpointed call running


class Trace:
    """One open call of a transformation."""

    __slots__ = ("id", "open", "site")
    kind = "transformation"

    def __init__(self) -> None:
        self.id = next(clock)
        self.open = True
        self.site = here(3)

    def is_constant(self, x: Tensor) -> bool:
        """Is `x`, which this trace sees, constant for every derivative?"""
        return False

    def lift(self, op: Any, args: list[Any], lower: list[Any], out: Any, params: dict[str, Any]) -> Any:
        """The result of `op` as this trace sees it: `out` itself where it does not depend on what is traced."""
        raise NotImplementedError


class ReverseTrace(Trace):
    """Records what a reverse sweep needs."""

    __slots__ = ()
    kind = "grad"

    def leaf(self, x: Tensor) -> Tensor:
        """`x` as an argument to differentiate with respect to; its ambient history stays behind."""
        inner = x.alias() if x.trace is not None else Tensor(x.data)
        return Tensor(inner, self, (Leaf(None, None), 0))

    def lift(self, op: Any, args: list[Any], lower: list[Any], out: Any, params: dict[str, Any]) -> Any:
        parents = [a.link if type(a) not in WEAK and a.trace is self else None for a in args]
        return attach(op, parents, lower, out, params, self)


class ForwardTrace(Trace):
    """Pushes a tangent along with every value."""

    __slots__ = ()
    kind = "jvp"

    def lift(self, op: Any, args: list[Any], lower: list[Any], out: Any, params: dict[str, Any]) -> Any:
        tangents = [a.link if type(a) not in WEAK and a.trace is self else None for a in args]
        tangent = op.push(tangents, op.frame(lower, out, params))
        if type(out) is tuple:
            if tangent is None:
                return out
            return tuple([y if t is None else Tensor(y, self, t) for y, t in zip(out, tangent, strict=True)])
        return out if tangent is None else Tensor(out, self, tangent)


def apply(op: Any, args: Sequence[Any], params: dict[str, Any]) -> Any:
    """Evaluate `op` on tensors and Python scalars, letting the innermost transformation among them see it."""
    recorder = active.get()
    if recorder is not None:
        recorder.saw(args)
    top, linked = None, False
    arrays = []
    for a in args:
        if type(a) is not Tensor and not isinstance(a, Tensor):
            if type(a) in WEAK:
                arrays.append(a)
                continue
            return apply(op, [b if type(b) in WEAK else as_operand(b, args) for b in args], params)
        trace = a.trace
        if trace is None:
            if a.link is not None:
                linked = True
        elif top is None or trace.id > top.id:
            top = trace
        arrays.append(a.data)
    if linked or top is not None:
        region = active_region.get()
        if region is not None and (top is None or top.id <= region.id):
            return region.apply(op, args, params)
    if top is None:
        if ledgers:
            begin(op)
        other = instead.get()
        if other is None:
            y = op.evaluate(arrays, params, here(2))
        else:
            instead.set(None)  # only this one
            y = other(op, arrays, params, here(2))
        if ledgers:
            for array in y if type(y) is tuple else (y,):
                began(array)
        if linked and horizon.get() <= 0:
            return attach(op, [None if type(a) in WEAK else a.link for a in args], arrays, y, params, None)
        return Tensor(y) if type(y) is Array else tuple([Tensor(k) for k in y])
    if not top.open:
        _escaped(op, args, top)
    lower = [a.data if type(a) not in WEAK and a.trace is top else a for a in args]
    out = apply(op, lower, params)
    return out if top.id < horizon.get() else top.lift(op, args, lower, out, params)


def attach(
    op: Any, parents: list[Link | None], values: list[Any], y: Any, params: dict[str, Any], trace: Trace | None
) -> Any:
    """`y` as tensors on the tape of `trace`, through a node that holds what the rules of traced inputs ask for."""
    node = record(op, parents, values, y, params)
    if node is not None and op.nodes is not None:
        op.nodes[trace] = ref(node)
    if node is not None and type(y) is not tuple:
        return Tensor(y, trace, (node, 0))
    if type(y) is tuple:
        if node is None:
            return tuple([Tensor(k) for k in y]) if trace is None else y
        differentiable = op.differentiable
        return tuple(
            [
                Tensor(v, trace, (node, k)) if differentiable[k] else Tensor(v) if trace is None else v
                for k, v in enumerate(y)
            ]
        )
    return Tensor(y) if trace is None else y


def record(op: Any, parents: list[Link | None], values: list[Any], y: Any, params: dict[str, Any]) -> Node | None:
    """The node of one operation, or None if no derivative flows through it."""
    wanted = op.plan(tuple([p is not None for p in parents]))
    if wanted is None:
        return None
    ys = y if type(y) is tuple else (y,)
    made = bottom(ys[0])
    assert made is not None
    n = len(values)
    saved: list[Any] = [None] * (n + len(ys))
    for k in wanted:
        v = values[k] if k < n else ys[k - n]
        if isinstance(v, Tensor):
            v = v.alias()  # the user may rebind theirs
        saved[k] = v
        array = bottom(v)
        if array is not None:
            array.kept += 1
            if array.buffer is not None and array.buffer.borrowed:
                saved[k] = Borrowed(v, array, made.site)
    saved.append(op.likeness(values, y))
    if params:
        saved.extend(params.values())
    node = Node(op, parents, saved, made.site)
    if ledgers:
        for k, v in enumerate(saved[: n + len(ys)]):
            if (array := bottom(v)) is not None:
                keep(array, node, node.keeper(k))
    return node


def _escaped(op: Any, args: Sequence[Any], trace: Trace) -> None:
    made = next(bottom(a) for a in args if type(a) not in WEAK and a.trace is trace)
    raise EscapedTensorError(
        f"{op.name}() got a tensor that outlived the {trace.kind}() call that made it\n"
        f"  made at {describe(made.site if made is not None else None)}; used at {describe(here(3))}\n"
        "  return it from the function instead of storing it elsewhere"
    )


@contextmanager
def no_grad() -> Iterator[None]:
    """Record nothing inside for any transformation opened before; ambient tape included."""
    token = horizon.set(next(clock))
    try:
        yield
    finally:
        horizon.reset(token)


def is_recording() -> bool:
    """True unless a `no_grad` block is running."""
    return horizon.get() <= 0


__all__ = [
    "ForwardTrace",
    "ReverseTrace",
    "Trace",
    "active_region",
    "apply",
    "attach",
    "horizon",
    "instead",
    "is_recording",
    "no_grad",
    "record",
]
