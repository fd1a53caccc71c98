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
from typing import Any

from ..array import TOTAL, Array, describe
from ..dtype import DType, compute_dtype
from ..provenance import describe as describe_site
from .kernel import Kernel
from .launch import INT64, Emitted, Entry, Parameter, Row, chunk_bytes, places
from .lines import EACH, EACH_ROW, ONCE, Lines, words
from .prelude import c_name, narrowed
from .totals import CHUNK

NAMED = 4  # operations that the name of a kernel lists
KEEP_COST = 6.0  # additions an element of a row may take to compute again before it is kept
KEEP_BYTES = 1 << 14  # of a row, up to which elements are kept: they are to stay in the fastest memory


def emit(kernel: Kernel) -> Emitted:
    """The text of `kernel`, and how to call it."""
    return _Writer(kernel).emitted()


class _Writer(Lines):
    """Writes one kernel: the loops around its lines, and what they leave in scratch memory."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel)
        self.kept: set[int] = set()  # nodes whose elements stay in scratch memory
        self.scratch: list[Row] = []  # what lies there

    # --- scratch memory ---------------------------------------------------------------------

    def in_scratch(self, dtype: DType, *, shared: bool) -> str:
        """A pointer to a new row of scratch memory; `where` puts in its place later."""
        self.length("cols")
        self.scratch.append(Row(dtype, shared))
        return f"({c_name(dtype)}*)(scratch + WHERE{len(self.scratch) - 1})"

    def where(self, line: str) -> str:
        """`line` with the places of rows in scratch memory."""
        base = chunk_bytes(self.partials())
        for k, step in places(self.scratch)[0].items():
            place = " + ".join([str(base)] * bool(base) + [f"cols * {step}"] * bool(step))
            line = re.sub(rf" \+ WHERE{k}\b", f" + {place}" if place else "", line)
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
        self.rows = {}
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
        assert not (self.by_rows and self.kernel.cols > CHUNK and not all(map(self.by_column, self.totals)))
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
