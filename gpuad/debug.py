"""Asking what gpuad would do: the pending expression of a tensor, and the kernels it would become."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

from numpy.lib.stride_tricks import as_strided

from .array import ANCHOR, Array, Shape, computed, describe
from .buffer import Buffer
from .devices.meta import Meta, hollow
from .dtype import DType
from .errors import DTypeError
from .fuse.kernel import Kernel
from .fuse.plan import eager as evaluating_eagerly
from .fuse.plan import realize
from .provenance import Site
from .provenance import describe as describe_site
from .tensor import Tensor


def explain(x: Tensor, /) -> str:
    """The pending expression of `x`, one line per operation, and the kernels it would become.  Computes nothing.

    print(gpuad.explain(gpuad.sin(x) * 2))
    """
    if not isinstance(x, Tensor):
        raise DTypeError(f"explain() needs a tensor, got {type(x).__name__}")
    array = x.array
    with array.device.lock:
        if array.op is None:
            return f"{describe(array)} is computed already ({describe_site(array.site)}); nothing is pending"
        order = _expression(array)
        device = _DryRun()
        copy, held = _copied(order, device)
    realize(copy)
    del held
    operations = sum(a.op is not None for a in order)
    became = _counted(len(device.steps), "step")
    lines = [f"{describe(array)} is pending: {_counted(operations, 'operation')}, which become {became}", ""]
    lines += [f"    {line}" for line in _listed(order)]
    for number, step in enumerate(device.steps, 1):
        lines += ["", f"{number}. {step[0]}", *(f"    {line}" for line in step[1:])]
    return "\n".join(lines)


@contextmanager
def eager() -> Iterator[None]:
    """Compute every operation inside at once, one kernel each: for debugging, where a line should fail by itself."""
    token = evaluating_eagerly.set(True)
    try:
        yield
    finally:
        evaluating_eagerly.reset(token)


class _DryRun(Meta):
    """A device that has shapes alone, and lists what it is asked to do."""

    def __init__(self) -> None:
        super().__init__("explain")
        self.steps: list[list[str]] = []

    def allocate(self, shape: Shape, dtype: DType, category: str = "temporary", site: Site | None = None) -> Array:
        """A computed Array without contents, which no ledger counts."""
        data = hollow(shape, dtype)
        return computed(data, Buffer(data, self, 0, category=category, site=site), shape, dtype, site)

    def run(self, kernel: Kernel) -> None:
        """List the kernel: what fuses, what is written, the text."""
        written = ", ".join(describe(y) for y in kernel.outputs)
        title = f"one kernel of {_counted(len(kernel.nodes), 'operation')} ({', '.join(kernel.ops)}) writes {written}"
        from .fuse.emit import emit  # here, so that importing gpuad does not wait for what only explain() needs

        self.steps.append([title, *emit(kernel).text.splitlines()])

    def call(self, op: Any, arrays: list[Any], params: dict[str, Any], site: Site | None) -> Any:
        """List the library call."""
        out = super().call(op, arrays, params, site)
        reads = ", ".join(describe(a) for a in arrays)
        self.steps.append([f"a library call, {op.name}({reads}) at {describe_site(site)}, writes {describe(out)}"])
        return out


def _expression(array: Array) -> list[Array]:
    """The arrays that `array` is to be computed from, inputs first, and itself."""
    found = [array]
    seen = {id(array)}
    for a in found:  # which grows meanwhile
        for x in a.inputs:
            if type(x) is Array and id(x) not in seen:
                seen.add(id(x))
                found.append(x)
    return sorted(found, key=attrgetter("serial"))


def _copied(order: list[Array], device: _DryRun) -> tuple[Array, list[Array]]:
    """The last of `order` as an expression on `device`, and holders of its parts as numerous as the original's.

    What is written and what is computed again depends on who else holds an array, so the counts are the same.
    """
    inside = dict.fromkeys(map(id, order), 0)  # how often each is an input in this expression
    for a in order:
        for x in a.inputs:
            if type(x) is Array:
                inside[id(x)] += 1
    copies: dict[int, Array] = {}
    held: list[Array] = []
    for a in order:
        if a.op is None:
            copy = device.allocate(a.shape, a.dtype, site=a.site)
            copy.data = as_strided(copy.data, a.shape, a.data.strides)
        else:
            inputs = tuple([copies[id(x)] if type(x) is Array else x for x in a.inputs])
            copy = Array(a.shape, a.dtype, device, a.op, inputs, a.params, a.depth, a.site)
        copies[id(a)] = copy
        held += [copy] * (sys.getrefcount(a) - 3 - inside[id(a)])  # less the list, the loop, the argument
    for a in order:
        copies[id(a)].readers, copies[id(a)].kept = a.readers, a.kept
    return copies[id(order[-1])], held


def _listed(order: list[Array]) -> list[str]:
    """One line for each array: its name, how it is made, what it is, the user's line."""
    names: dict[int, str] = {}
    rows: list[tuple[str, str, str]] = []
    leaves = 0
    for a in order:
        if a.op is None:
            names[id(a)], made = f"x{leaves}", "computed"
            leaves += 1
        else:
            names[id(a)] = f"{a.op.name}_{len(names) - leaves + 1}"
            params = dict(a.params).values() if a.op.fusion == ANCHOR else a.params
            operands = [names[id(x)] if type(x) is Array else repr(x) for x in (*a.inputs, *params)]
            made = f"{a.op.name}({', '.join(operands)})"
        rows.append((f"{names[id(a)]} = {made}", describe(a), describe_site(a.site)))
    widths = [max(len(row[k]) for row in rows) for k in range(2)]
    return [f"{made:<{widths[0]}}  {what:<{widths[1]}}  {where}" for made, what, where in rows]


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


__all__ = ["explain"]
