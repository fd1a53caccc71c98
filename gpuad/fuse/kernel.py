"""Kernel: what is computed in one pass over memory, on any device.

A kernel walks one iteration space, seen as `[rows, cols]` with the last axis as columns.  Its nodes are pending
arrays in evaluation order: elementwise ones of the whole space or of one value a row, reductions over the columns
(which stay inside), and reductions over the rows or over everything (which end it).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ..array import ROW, TOTAL, Array, Shape


class Kernel:
    """One fused computation: `nodes` from `leaves`, of which `outputs` are written to memory."""

    __slots__ = ("leaves", "nodes", "outputs", "results", "space")

    def __init__(self, space: Shape, nodes: list[Array], leaves: list[Array], outputs: list[Array]) -> None:
        self.space, self.nodes, self.leaves, self.outputs = space, nodes, leaves, outputs
        self.results: list[Any] = []  # the device library's array for each output, once allocated

    @property
    def ops(self) -> tuple[str, ...]:
        """The names of the operations, in order."""
        return tuple(node.op.name for node in self.nodes if node.op is not None)

    @property
    def rows(self) -> int:
        """How many rows the space has."""
        n = 1
        for d in self.space[:-1]:
            n *= d
        return n

    @property
    def cols(self) -> int:
        """How many columns the space has."""
        return self.space[-1] if self.space else 1


Watcher = Callable[[Kernel], None]
watchers: list[Watcher] = []  # called with every kernel before it runs


def row_shape(space: Shape) -> Shape:
    """The shape of one value a row of `space`."""
    return (*space[:-1], 1) if space else ()


def space_of(root: Array) -> Shape:
    """The iteration space of the kernel that computes `root`."""
    op = root.op
    assert op is not None
    if op.fusion in (ROW, TOTAL):
        return _array(root.inputs[0]).shape
    if root.shape and root.shape[-1] == 1:  # one value a row, perhaps of a reduction further down
        seen, stack = {id(root)}, [root]
        while stack:
            for x in stack.pop().inputs:
                if type(x) is Array and x.op is not None and x.shape == root.shape and id(x) not in seen:
                    if x.op.fusion == ROW:
                        return _array(x.inputs[0]).shape
                    seen.add(id(x))
                    stack.append(x)
    return root.shape


# Small kernels run on NumPy where large ones are compiled (engines.py), and the two round some functions differently.
SMALL = 8192  # elements below which a kernel is not worth a compiler's time
INEXACT = re.compile(r"\b(exp(m1|2)?|log(1p|2|10)?|pow|a?sinh?|a?cosh?|a?tanh?|atan2|erfc?|hypot|philox_normal)\b")
_inexact: dict[str, bool] = {}  # of each expression


def inexact(op: Any) -> bool:
    """May the engines of a CPU round `op` differently?  All else is exact, or exactly rounded, in both."""
    text: str = op.cuda
    if text not in _inexact:
        _inexact[text] = INEXACT.search(text) is not None
    return _inexact[text]


def _array(x: Any) -> Array:
    assert type(x) is Array
    return x


def structure(kernel: Kernel) -> tuple[Any, ...]:
    """What decides the code of a kernel: operations, operands, dtypes and layouts, but no addresses or scalars."""
    number: dict[int, int] = {}
    parts: list[Any] = [kernel.space]
    for leaf in kernel.leaves:
        number[id(leaf)] = len(number)
        parts.append((leaf.dtype, leaf.shape, leaf.data.strides))
    for node in kernel.nodes:
        operands = [number[id(x)] if type(x) is Array else type(x) for x in node.inputs]
        number[id(node)] = len(number)
        parts.append((node.op, node.dtype, node.shape, *operands, *map(type, node.params)))
    parts.append(tuple([number[id(y)] for y in kernel.outputs]))
    return tuple(parts)
