"""The text of a kernel: plain C++ that NVRTC compiles for a GPU and any C++ compiler for the CPU.

    FUSED multiply_sin_3f2a91b0(const float* in0, float s0, float* out0, int64 size ITEMS) {
        GROUPS(g, size) {
            const auto p0 = group(in0, g, size);
            auto q0 = results(out0, g);
            EACH(j, g, size) {
                const float x0 = p0[j];
                const float multiply_1 = x0 * s0;
                const float sin_2 = sin(multiply_1);
                q0[j] = sin_2;
            }
            put(q0, out0, g, size);
        }
    }

The code follows from the kernel's structure alone, so it is the key under which a compiled kernel is kept: scalars,
lengths and strides are arguments, and the lines of the user's program stand in a header beside it.  Half types are
widened when read; arithmetic is in float, and each result is rounded, as in the NumPy engine.

What is contiguous goes element by element.  Everything else goes by rows, each done by a team (see teams.py): a
reduction over a row has a loop of its own, and an element that a later loop needs again is computed again, or kept in
scratch memory where that costs more.  Reductions over rows, or over everything, give one partial result for each chunk
of fixed size; a second entry reduces those.  Outputs may take over the memory of inputs, so everything is stored in
the last loop, after the last read.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from string import ascii_lowercase
from typing import Any

import numpy as np

from ..array import ROW, SOURCE, TOTAL, Array, describe
from ..dtype import DType, compute_dtype
from ..provenance import describe as describe_site
from .kernel import Kernel, row_shape
from .launch import INT64, Emitted, Entry, Parameter, Row, chunk_bytes, strides_of
from .prelude import c_name, narrowed, rounded, widened
from .totals import CHUNK

NAMED = 4  # operations that the name of a kernel lists
KEEP_COST = 6.0  # additions an element of a row may take to compute again before it is kept
KEEP_BYTES = 1 << 14  # of a row, up to which elements are kept: they are to stay in the fastest memory
FLOAT64: DType = np.dtype(np.float64)

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


def _contiguous(shape: Sequence[int]) -> list[int]:
    """The strides of a contiguous array of `shape`, in elements; 0 along axes of length 1."""
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(0 if n == 1 else step)
        step *= max(n, 1)
    return strides[::-1]


def substitute(expression: str, names: dict[str, str]) -> str:
    """`expression` with each whole word that `names` has replaced by what it stands for."""
    return re.sub(r"\b[A-Za-z_]\w*\b", lambda found: names.get(found[0], found[0]), expression)


def emit(kernel: Kernel) -> Emitted:
    """The text of `kernel`, and how to call it."""
    return _Writer(kernel).emitted()


ONCE, EACH_ROW, EACH = range(3)  # how often a value is computed or read: once, for each row, for each element


class _Writer:
    """Writes one kernel.  Names: in0 and x0 of a leaf, s0 of a scalar, out0 of an output, <op>_<place> of a node."""

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
        self.drawn: dict[int, str] = {}  # how random numbers are drawn, of nodes that are
        self.kept: set[int] = set()  # nodes whose elements stay in scratch memory
        self.scratch: list[Row] = []  # what lies there

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
        whole = _contiguous(self.kernel.space)
        return len(self.kernel.space) > 1 and any(any(s) and s != whole for s in self.strides.values())

    def _scope(self, leaf: Array) -> int:
        strides = self.strides[id(leaf)]
        if not any(strides):
            return ONCE if leaf.size else EACH_ROW if self.by_rows else EACH  # nothing is read of no elements
        if strides == _contiguous(self.kernel.space) or not self.by_rows:
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
        if strides == _contiguous(space):
            return f"r * {self.length('cols')}"
        if strides[:-1] == _contiguous(space[:-1]):
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
        if (stride == 1 and self.by_rows) or self.strides[id(leaf)] == _contiguous(self.kernel.space):
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

    # --- scratch memory ---------------------------------------------------------------------

    def in_scratch(self, dtype: DType, *, shared: bool) -> str:
        """A pointer to a new row of scratch memory; `where` puts in its place later."""
        self.length("cols")
        self.scratch.append(Row(dtype, shared))
        return f"({c_name(dtype)}*)(scratch + WHERE{len(self.scratch) - 1})"

    def where(self, line: str) -> str:
        """`line` with the places of rows in scratch memory: wide ones first, last those that a GPU does not need."""
        base = chunk_bytes(self.partials())
        step = 0
        for k in sorted(range(len(self.scratch)), key=lambda k: (not self.scratch[k].shared, -self.scratch[k].size)):
            place = " + ".join([str(base)] * bool(base) + [f"cols * {step}"] * bool(step)) or "0"
            line = re.sub(rf" \+ WHERE{k}\b", f" + {place}" if place != "0" else "", line)
            step += self.scratch[k].size
        return line

    # --- loops ------------------------------------------------------------------------------

    def needed(self, roots: Iterable[Any], known: set[int]) -> tuple[set[int], set[int]]:
        """The leaves and nodes that each element needs for `roots`, and those of them that are `known` already."""
        seen: set[int] = set()
        read: set[int] = set()
        stack = [x for x in roots if self.scopes[id(x)] == EACH]
        while stack:
            x = stack.pop()
            if id(x) in seen:
                continue
            seen.add(id(x))
            if id(x) in known:
                read.add(id(x))
            else:
                stack.extend([y for y in x.inputs if type(y) is Array and self.scopes[id(y)] == EACH])
        return seen, read

    def element(self, roots: Iterable[Any], known: set[int], after: list[str]) -> tuple[list[str], list[str], set[int]]:
        """A loop's body over elements: lines before an element, those of one, and the nodes computed there."""
        seen, read = self.needed(roots, known)
        before: list[str] = self.draws([x for x in self.nodes if id(x) in seen - read])
        body: list[str] = []
        for k, leaf in enumerate(self.kernel.leaves):
            if id(leaf) in seen:
                lines, line = self.reading(k, leaf)
                before += lines
                body.append(line)
        computed = set()
        for node in self.nodes:
            if id(node) in read:
                c = c_name(compute_dtype(node.dtype))
                body.append(f"const {c} {self.names[id(node)]} = {self.names[id(node)]}_row[c];")
            elif id(node) in seen:
                body.append(self.line(node))
                computed.add(id(node))
                if id(node) in self.kept:
                    body.append(f"{self.names[id(node)]}_row[c] = {self.names[id(node)]};")
        body += after
        used = words(body)
        index = []
        if self.by_rows:
            if "c" in used or "i" in used:
                index.append("const int64 c = g + j;")
            if "i" in used:
                index.append(f"const int64 i = r * {self.length('cols')} + c;")
        else:
            leading = self.leading(body)
            if leading or used & {"i", "r", "c"}:
                index.append("const int64 i = g + j;")
            if leading or used & {"r", "c"}:
                index.append(f"const int64 r = i / {self.length('cols')}, c = i - r * {self.length('cols')};")
            index += leading
        return before, index + body, computed

    def writes(self) -> tuple[list[str], list[str], list[str]]:
        """The lines that write the outputs of each element: before the elements, in each, and after them."""
        before, each, after = [], [], []
        for k, y in enumerate(self.kernel.outputs):
            if y in self.totals or self.scopes[id(y)] != EACH:
                continue
            out = self.parameter("output", f"out{k}", y.dtype, k)
            if self.by_rows:
                self.rows[f"to{k}"] = f"{c_name(y.dtype)}* const to{k} = {out} + r * {self.length('cols')};"
                out = f"to{k}"
            before.append(f"auto q{k} = results({out}, g);")
            each.append(f"q{k}[j] = {narrowed(self.names[id(y)], y.dtype)};")
            after.append(f"put(q{k}, {out}, g, {self.end()});")
        return before, each, after

    def roots(self) -> list[Any]:
        """What the last loop over elements must know: outputs, and what the ending reductions take."""
        outputs = [y for y in self.kernel.outputs if y not in self.totals and self.scopes[id(y)] == EACH]
        return outputs + [total.inputs[0] for total in self.totals]

    def flat(self) -> list[str]:
        """The loop over all elements, by chunks if something is reduced."""
        size = self.length("size")
        first, each, last = self.writes()
        takes = [f"{self.names[id(t)]}_of.take(i - first, {self.reduced(t)});" for t in self.totals]
        before, body, _ = self.element(self.roots(), set(), each + takes)
        group = [*before, *first, f"EACH(j, g, {self.end()}) {{", *indented(body), "}", *last]
        if not self.totals:
            return [f"GROUPS(g, {size}) {{", *indented(group), "}"]
        chunk = self.length("chunk")
        lines = [f"const int64 first = k * {chunk}, end = first + {chunk} < {size} ? first + {chunk} : {size};"]
        lines += self.totals_begin()
        lines += ["SPAN(g, first, end) {", *indented(group), "}", *self.totals_end("end - first")]
        return [f"TEAMS(k, {self.length('chunks')}) {{", *indented(lines), "}"]

    def totals_begin(self) -> list[str]:
        """The lines that prepare the partial results of a chunk."""
        lines = []
        for k, t in enumerate(self.totals):
            partial, c = self.parameter("partial", f"partial{k}", t.dtype, k), c_name(t.dtype)
            name = f"{self.names[id(t)]}_of"
            if self.by_column(t):
                at = f"{partial} + k * {self.length('cols')}, {self.in_scratch(t.dtype, shared=True)}"
                lines.append(f"auto {name} = columns<{c}>({at}, {self.how(t)});")
            else:
                before = chunk_bytes(self.partials()[:k])
                at = f"({c}*)(scratch + {before})" if before else f"({c}*)scratch"
                lines.append(f"auto {name} = chunk_total<{c}>({at}, {self.how(t)});")
        return lines

    def totals_end(self, n: str) -> list[str]:
        """The lines that write the partial results of a chunk of `n` elements."""
        lines = []
        for k, t in enumerate(self.totals):
            name = f"{self.names[id(t)]}_of"
            if self.by_column(t):
                lines.append(f"{name}.flush(partial{k} + k * {self.length('cols')}, {self.length('cols')});")
            else:
                lines.append(f"const {c_name(t.dtype)} {self.names[id(t)]} = {name}.together({n});")
                lines.append(f"ONE partial{k}[k] = {self.names[id(t)]};")
        return lines

    def row(self) -> list[str]:
        """What is done with each row: a loop for each level of reductions, then what is left to store."""
        cols = self.length("cols")
        self.rows: dict[str, str] = {}  # the lines that say where the row of an array begins
        roots = self.roots()
        depth = max([self.level[id(a)] for a in self.reductions], default=0)
        last = max([depth - 1] + [self.level.get(id(a), 0) for a in roots])
        wanted: list[list[Any]] = []
        for level in range(max(last, depth) + 1):
            ending = [a for a in self.reductions if self.level[id(a)] == level + 1]
            wanted.append([a.inputs[0] for a in ending] + (roots if level == last else []))
        self._choose_kept(wanted)
        lines: list[str] = []
        known: set[int] = set()
        for level, takes in enumerate(wanted):
            scalars = [a for a in self.nodes if self.scopes[id(a)] == EACH_ROW and self.level[id(a)] == level]
            lines += [self.line(a) for a in scalars if a not in self.reductions]
            if not takes:
                continue
            ending = [a for a in self.reductions if self.level[id(a)] == level + 1]
            after = [f"{self.names[id(a)]}_of.take(c, {self.reduced(a)});" for a in ending]
            first, stores, end = self.writes() if level == last else ([], [], [])
            if level == last:
                for t in self.totals:
                    at = "c" if self.by_column(t) else f"(r - first) * {cols} + c"
                    again = ", r > first" if self.by_column(t) else ""
                    after.append(f"{self.names[id(t)]}_of.take({at}, {self.reduced(t)}{again});")
            before, body, computed = self.element(takes, known, after + stores)
            known |= computed & self.kept
            for a in ending:
                c = c_name(a.dtype)
                lines.append(f"auto {self.names[id(a)]}_of = row_total<{c}>({self._values_of(a)}, {self.how(a)});")
            group = [*before, *first, f"EACH(j, g, {cols}) {{", *indented(body), "}", *end]
            lines += [f"SPAN(g, 0, {cols}) {{", *indented(group), "}"]
            for a in ending:
                name = self.names[id(a)]
                lines.append(f"const {c_name(a.dtype)} {name} = {name}_of.together({cols});")
        for k, y in enumerate(self.kernel.outputs):
            if y not in self.totals and self.scopes[id(y)] == EACH_ROW:
                out = self.parameter("output", f"out{k}", y.dtype, k)
                lines.append(f"ONE {out}[r] = {narrowed(self.names[id(y)], y.dtype)};")
        kept = [f"auto* const {row} = {place};" for row, place in self.kept_rows.items()]
        lines = [*self.once(EACH_ROW), *self.rows.values(), *kept, *lines]
        return self.leading(lines) + lines

    def _values_of(self, reduction: Array) -> str:
        """Where a row of what a reduction takes may be collected, by an engine that collects it."""
        x: Any = reduction.inputs[0]
        if id(x) in self.kept and compute_dtype(x.dtype) == reduction.dtype:
            return f"{self.names[id(x)]}_row"
        name = f"{self.names[id(reduction)]}_row"
        self.kept_rows[name] = self.in_scratch(reduction.dtype, shared=False)
        return name

    def _choose_kept(self, wanted: list[list[Any]]) -> None:
        """Decide which elements of a row stay in scratch memory for a later loop."""
        self.kept_rows: dict[str, str] = {}
        if len(wanted) < 2:
            return
        loops = [self.needed(roots, set())[0] for roots in wanted]
        again: dict[int, float] = {}
        for node in self.nodes:
            if self.scopes[id(node)] != EACH or node.op.fusion == TOTAL:
                continue
            cost = node.op.cost + sum(again.get(id(x), 0.0) for x in node.inputs if type(x) is Array)
            dtype = compute_dtype(node.dtype)
            if (
                cost >= KEEP_COST
                and sum(id(node) in loop for loop in loops) > 1
                and dtype.itemsize * self.kernel.cols * (len(self.kept) + 1) <= KEEP_BYTES
            ):
                self.kept.add(id(node))
                self.kept_rows[f"{self.names[id(node)]}_row"] = self.in_scratch(dtype, shared=True)
                cost = 0.0
            again[id(node)] = cost

    def rows_of_chunk(self) -> list[str]:
        """The loop over rows, by chunks."""
        rows, chunk = self.length("rows"), self.length("chunk")
        body = self.row()
        lines = [
            f"const int64 first = k * {chunk}, last = first + {chunk} < {rows} ? first + {chunk} : {rows};",
            *self.totals_begin(),
            "for (int64 r = first; r < last; ++r) {",
            *indented(body),
            "}",
            *self.totals_end(f"(last - first) * {self.length('cols')}"),
        ]
        return [f"TEAMS(k, {self.length('chunks')}) {{", *indented(lines), "}"]

    def finish(self) -> list[str]:
        """The loops that reduce the partial results."""
        lines = []
        for k, total in enumerate(self.totals):
            name, partial = self.names[id(total)], self.parameter("partials", f"partial{k}", total.dtype, k)
            out = self.parameter("output", f"out{self.output_of(total)}", total.dtype, self.output_of(total))
            chunks = self.length("chunks")
            if self.by_column(total):
                cols = self.length("cols")
                value = f"down({partial} + c, {cols}, {chunks}, {self.how(total)})"
                lines += [f"LOOP(c, {cols}) {{", *indented([f"{out}[c] = {value};"]), "}"]
            else:
                c = c_name(total.dtype)
                lines += [
                    f"const {c} {name} = whole({partial}, {chunks}, {self.how(total)});",
                    f"FIRST {out}[0] = {name};",
                ]
        return lines

    def output_of(self, total: Array) -> int:
        """The place of an ending reduction among the outputs."""
        return next(k for k, y in enumerate(self.kernel.outputs) if y is total)

    # --- the whole --------------------------------------------------------------------------

    def emitted(self) -> Emitted:
        """All of it."""
        items = "rows" if self.by_rows else "size"
        if not self.by_rows:
            loop = self.flat()
        elif self.totals:
            loop = self.rows_of_chunk()
        else:
            loop = [f"TEAMS(r, {self.length('rows')}) {{", *indented(self.row()), "}"]
        if self.totals:
            items = "chunks"
        if self.scratch or self.totals:
            loop.insert(0, f"SCRATCH({self.parameter('scratch', 'scratch_bytes', INT64)})")
        loop = self.once(ONCE) + [self.where(line) for line in loop]
        functions = [("NAME", ordered(self.parameters), loop, items)]
        if self.totals:
            self.parameters = {}
            lines = self.finish()
            items = "cols" if any(map(self.by_column, self.totals)) else "one"
            functions.append(("NAME_finish", ordered(self.parameters), lines, items))
        code = "\n".join(written(*function[:3]) for function in functions)
        name = self.name(code)
        return Emitted(
            self.header(name),
            code.replace("FUSED NAME", f"FUSED {name}"),
            tuple([Entry(stem.replace("NAME", name), parameters, n) for stem, parameters, _, n in functions]),
            self.by_rows,
            bool(self.reductions),
            self.partials(),
            tuple(self.scratch),
            bool(self.drawn),
        )

    def partials(self) -> tuple[tuple[DType, bool], ...]:
        """Of each reduction that ends the kernel: its dtype; does it leave one result a column?"""
        return tuple([(total.dtype, self.by_column(total)) for total in self.totals])

    def name(self, code: str) -> str:
        """A name that says what is computed, and is another's only where the code is."""
        ops = list(dict.fromkeys(self.kernel.ops))
        listed = "_".join(ops[:NAMED])
        return f"{re.sub(r'[^A-Za-z0-9_]', '_', listed)}_{hashlib.sha256(code.encode()).hexdigest()[:8]}"

    def header(self, name: str) -> str:
        """A comment: what is read and written, and the user's lines with the operations of each."""
        reads = ", ".join(f"in{k} {describe(x)}" for k, x in enumerate(self.kernel.leaves))
        writes = ", ".join(f"out{k} {describe(y)}" for k, y in enumerate(self.kernel.outputs))
        lines: dict[str, list[str]] = {}
        for node in self.kernel.nodes:
            lines.setdefault(describe_site(node.site), []).append(self.names[id(node)])
        width = max(map(len, lines))
        listed = "".join(f"//   {line:<{width}}  {' '.join(names)}\n" for line, names in lines.items())
        return f"// {name}: from {reads or 'nothing'} to {writes}\n{listed}"


def words(lines: Iterable[str]) -> set[str]:
    """The names that `lines` use."""
    return {word for line in lines for word in re.findall(r"\w+", line)}


def indented(lines: Iterable[str]) -> list[str]:
    """`lines`, one level deeper."""
    return ["    " + line for line in lines]


def ordered(parameters: dict[str, Parameter]) -> tuple[Parameter, ...]:
    """The parameters in the order of an entry: what is read, scalars, what is written, lengths."""
    kinds = ("leaf partials", "scalar param", "output", "partial", "stride axis size rows cols chunk chunks scratch")
    rank = {kind: k for k, together in enumerate(kinds) for kind in together.split()}
    return tuple(sorted(parameters.values(), key=lambda p: rank[p.kind]))


def written(name: str, parameters: Sequence[Parameter], lines: Sequence[str]) -> str:
    """The text of one function."""
    declared = ", ".join(p.declaration for p in parameters)
    return "\n".join([f"FUSED {name}({declared} ITEMS) {{", *indented(lines), "}"]) + "\n"
