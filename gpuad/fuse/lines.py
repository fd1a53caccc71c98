"""The lines of a kernel's text: what is read, computed and called what, and how often.

Loops that put them in order are written by emit.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from string import ascii_lowercase
from typing import Any

import numpy as np

from ..array import ROW, SOURCE, TOTAL, Array
from ..dtype import DType, compute_dtype
from .kernel import Kernel, row_shape
from .launch import INT64, Parameter, strides_of
from .prelude import c_name, rounded, widened
from .totals import CHUNK

FLOAT64: DType = np.dtype(np.float64)
ONCE, EACH_ROW, EACH = range(3)  # how often a value is computed or read: once, for each row, for each element

# What a reduction begins with: together with any x it gives x.
IDENTITY = {
    np.add: "T(-T(0))",
    np.multiply: "T(1)",
    np.maximum: "T(-INFINITY)",
    np.minimum: "T(INFINITY)",
    np.logical_or: "false",
    np.logical_and: "true",
}
IDENTITY_OF_INTEGERS = {np.maximum: "Limits<T>::low", np.minimum: "Limits<T>::high"}


def contiguous(shape: Sequence[int]) -> list[int]:
    """The strides of a contiguous array of `shape`, in elements; 0 along axes of length 1."""
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(0 if n == 1 else step)
        step *= max(n, 1)
    return strides[::-1]


def substitute(expression: str, names: dict[str, str]) -> str:
    """`expression` with each whole word that `names` has replaced by what it stands for."""
    return re.sub(r"\b[A-Za-z_]\w*\b", lambda found: names.get(found[0], found[0]), expression)


def words(lines: Iterable[str]) -> set[str]:
    """The names that `lines` use."""
    return {word for line in lines for word in re.findall(r"\w+", line)}


class Lines:
    """The lines of one kernel.

    Names: in0 and x0 of a leaf, s0 of a scalar, out0 of an output, <op>_<place> of a node.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.nodes: list[Any] = list(kernel.nodes)  # pending: each has an op
        self.parameters: dict[str, Parameter] = {}
        self.names: dict[int, str] = {}
        self.scopes: dict[int, int] = {}
        self.level: dict[int, int] = {}  # how many loops over a row must end before the array is known
        self.places = {id(a): place for place, a in enumerate(kernel.nodes)}
        self.totals = [a for a in self.nodes if a.op.fusion == TOTAL]
        self.reductions = [a for a in self.nodes if a.op.fusion == ROW]
        self.lines: dict[int, str] = {}
        self.scalars = 0
        rows = row_shape(kernel.space)
        for k, leaf in enumerate(kernel.leaves):
            self.names[id(leaf)] = f"x{k}"
        for place, node in enumerate(self.nodes):
            self.names[id(node)] = f"{re.sub(r'[^A-Za-z0-9_]', '_', node.op.name)}_{place + 1}"
            per_row = node.op.fusion == ROW or (node.shape != kernel.space and node.shape == rows)
            self.scopes[id(node)] = EACH_ROW if per_row else EACH
            below = max((self.level.get(id(x), 0) for x in node.inputs if type(x) is Array), default=0)
            self.level[id(node)] = below + (node.op.fusion == ROW)
        self.strides = {id(x): strides_of(x, len(kernel.space)) for x in kernel.leaves}
        self.by_rows = self._by_rows()
        for leaf in kernel.leaves:
            self.scopes[id(leaf)] = self._scope(leaf)
        self.rows: dict[str, str] = {}  # the lines that say where the row of an array begins
        self.drawn: dict[int, str] = {}  # how random numbers are drawn, of nodes that are

    def _by_rows(self) -> bool:
        """Must rows and columns be told apart?"""
        if self.reductions or any(self.by_column(t) for t in self.totals):
            return True
        if EACH_ROW in self.scopes.values():
            return True
        if self.totals and self.kernel.cols > CHUNK:  # a chunk is a part of a row
            return False
        if any(n.op.fusion == SOURCE and words([n.op.cuda]) & {"row", "column"} for n in self.nodes):
            return True
        whole = contiguous(self.kernel.space)
        return len(self.kernel.space) > 1 and any(any(s) and s != whole for s in self.strides.values())

    def _scope(self, leaf: Array) -> int:
        strides = self.strides[id(leaf)]
        if not any(strides):
            if leaf.size:
                return ONCE
            return EACH_ROW if self.by_rows and leaf.shape[-1:] in ((), (1,)) else EACH  # nothing is read of nothing
        if strides == contiguous(self.kernel.space) or not self.by_rows:
            return EACH
        return EACH if strides[-1] else EACH_ROW

    def by_column(self, total: Array) -> bool:
        """True for a reduction that leaves one value a column."""
        return len(total.shape) == 1

    def parameter(self, kind: str, name: str, dtype: DType, index: int = 0, slot: int = 0) -> str:
        """The name of a parameter, which the entry now has."""
        self.parameters.setdefault(name, Parameter(kind, name, dtype, index, slot))
        return name

    def length(self, name: str) -> str:
        """The name of a length, which the entry now takes."""
        return self.parameter(name, name, INT64)

    # --- reading ----------------------------------------------------------------------------

    def leaf(self, k: int) -> str:
        """The name of the pointer to a leaf."""
        return self.parameter("leaf", f"in{k}", self.kernel.leaves[k].dtype, k)

    def stride(self, k: int, axis: int) -> str:
        """The name of a stride of a leaf."""
        return self.parameter("stride", f"in{k}_s{axis}", INT64, k, axis)

    def declared(self, k: int, element: str) -> str:
        """The line that reads an element of a leaf."""
        dtype = self.kernel.leaves[k].dtype
        return f"const {c_name(compute_dtype(dtype))} x{k} = {widened(element, dtype)};"

    def offset(self, k: int, leaf: Array) -> str:
        """Where the row of a leaf begins, in elements from its start: empty for 0."""
        strides, space = self.strides[id(leaf)], self.kernel.space
        if strides == contiguous(space):
            return f"r * {self.length('cols')}"
        if strides[:-1] == contiguous(space[:-1]):
            return "r"
        axes = [axis for axis, stride in enumerate(strides[:-1]) if stride]
        rank = len(space)
        return " + ".join(f"{'r' if rank == 2 else f'k{axis}'} * {self.stride(k, axis)}" for axis in axes)

    def once(self, scope: int) -> list[str]:
        """The lines that read the leaves of `scope`."""
        found = []
        for k, x in enumerate(self.kernel.leaves):
            if self.scopes[id(x)] == scope:
                found.append(self.declared(k, f"{self.leaf(k)}[{(self.offset(k, x) if scope else '') or 0}]"))
        return found

    def reading(self, k: int, leaf: Array) -> tuple[list[str], str]:
        """What a loop over elements needs to read a leaf: lines before an element, and the line of one."""
        stride, n = (self.strides[id(leaf)] or [0])[-1], self.end()
        base = self.leaf(k)
        if self.by_rows:
            offset = self.offset(k, leaf)
            base = f"{base} + {offset}" if offset else base
            self.rows[f"row{k}"] = f"const auto* const row{k} = {base};"
            base = f"row{k}"
        if (stride == 1 and self.by_rows) or self.strides[id(leaf)] == contiguous(self.kernel.space):
            return [f"const auto p{k} = group({base}, g, {n});"], self.declared(k, f"p{k}[j]")
        rank = len(self.kernel.space)
        index = f"{'c' if rank > 1 else 'i'} * {self.stride(k, rank - 1)}" if stride else ""
        offset = "" if self.by_rows or rank < 2 else self.offset(k, leaf)
        return [], self.declared(k, f"{base}[{' + '.join(filter(None, (offset, index))) or 0}]")

    def end(self) -> str:
        """Where a loop over elements ends."""
        return self.length("cols") if self.by_rows else "end" if self.totals else self.length("size")

    def leading(self, lines: Iterable[str]) -> list[str]:
        """The lines that compute the leading indexes that `lines` use, from the row's number."""
        used = words(lines)
        axes = [axis for axis in range(len(self.kernel.space) - 1) if f"k{axis}" in used]
        return [f"const int64 k{axis} = {self.from_row(axis)};" for axis in axes]

    def from_row(self, axis: int) -> str:
        """The index along a leading axis, from the row's number."""
        leading = range(axis + 1, len(self.kernel.space) - 1)
        n = [self.parameter("axis", f"n{k}", INT64, slot=k) for k in leading]
        index = f"r / {n[0]}" if len(n) == 1 else f"r / ({' * '.join(n)})" if n else "r"
        return index if axis == 0 else f"{index} % {self.parameter('axis', f'n{axis}', INT64, slot=axis)}"

    # --- computing --------------------------------------------------------------------------

    def operand(self, x: Any, want: DType, place: int, slot: int) -> str:
        """An operand of a node as the dtype the operation wants: a name, a cast of one, or an argument."""
        if type(x) is Array:
            name = self.names[id(x)]
            return name if compute_dtype(x.dtype) == want else f"{c_name(want)}({name})"
        self.scalars += 1
        return self.parameter("scalar", f"s{self.scalars - 1}", want, place, slot)

    def line(self, node: Array) -> str:
        """The line that computes an elementwise node, or a source."""
        if id(node) not in self.lines:
            self.lines[id(node)] = self.compute(node)
        return self.lines[id(node)]

    def compute(self, node: Array) -> str:
        """The line, written for the first time, when its scalars become parameters."""
        op: Any = node.op
        place = self.places[id(node)]
        if op.fusion == SOURCE:
            expression = self.source(node, place)
        else:
            wants, _ = op.signature(tuple([x.dtype if type(x) is Array else type(x) for x in node.inputs]))
            wants = tuple(map(compute_dtype, wants))
            operands = [self.operand(x, w, place, k) for k, (x, w) in enumerate(zip(node.inputs, wants, strict=True))]
            names = dict(zip(op.inputs, operands, strict=True))
            expression = substitute(op.cuda, {"T": c_name(wants[-1]), **names})
        dtype = node.dtype
        return f"const {c_name(compute_dtype(dtype))} {self.names[id(node)]} = {rounded(expression, dtype)};"

    def source(self, node: Array, place: int) -> str:
        """The expression of a source.  Its parameters are a, b, ...; the position is i, or `row` and `column`.

        One that looks at no position has parameters of the node's own dtype; one that does, int64 or double.
        """
        op: Any = node.op
        counts = bool(words([op.cuda]) & {"i", "row", "column"})
        names = {"T": c_name(node.dtype), "row": "r", "column": "c"}
        for slot, value in enumerate(node.params):
            dtype = compute_dtype(node.dtype) if not counts else FLOAT64 if type(value) is float else INT64
            names[ascii_lowercase[slot]] = self.parameter("param", f"s{self.scalars}", dtype, place, slot)
            self.scalars += 1
        expression = substitute(op.cuda, names)
        if expression.startswith("philox_"):
            self.drawn[id(node)] = expression
            expression = f"{self.names[id(node)]}_drawn[j]"
        return f"{c_name(compute_dtype(node.dtype))}({expression})" if counts else expression

    def draws(self, nodes: list[Any]) -> list[str]:
        """The lines that draw the random numbers of a group: one block of the stream has several."""
        lines = []
        for node in nodes:
            self.line(node) if node.op.fusion == SOURCE else None
            if id(node) in self.drawn:
                found = re.fullmatch(r"(philox_\w+<\w+>)\((.*)\)", self.drawn[id(node)])
                assert found is not None
                *state, _ = found[2].split(", ")
                first = f"r * {self.length('cols')} + g" if self.by_rows else "g"
                rest = "".join(f"{word}, " for word in state[6:])
                draw = f"[&](Stream& s, int64 i) {{ return {found[1]}(s, {rest}i); }}"
                stream = f"Stream{{{', '.join(f'uint64({word})' for word in state[:6])}}}"
                lines.append(f"const auto {self.names[id(node)]}_drawn = drawn({stream}, {first}, {draw});")
        return lines

    def how(self, node: Array) -> str:
        """The arguments that say how a reduction combines, and what it begins with."""
        op: Any = node.op
        c = c_name(node.dtype)
        together = substitute(op.cuda, {"T": c})
        begin = IDENTITY_OF_INTEGERS.get(op.numpy) if node.dtype.kind in "biu" else None
        begin = substitute(begin or IDENTITY[op.numpy], {"T": c})
        return f"COMBINE({c}, {together}), {begin}"

    def reduced(self, node: Array) -> str:
        """The element that a reduction takes."""
        return self.operand(node.inputs[0], node.dtype, 0, 0)
