"""The text of a kernel: plain C++ that NVRTC compiles for a GPU and any C++ compiler for the CPU.

    KERNEL multiply_sin_3f2a91b0(const float* in0, float s0, float* out0, int64 size) {
        LOOP(i, size) {
            const float x0 = in0[i];
            const float multiply_1 = x0 * s0;
            const float sin_2 = sin(multiply_1);
            out0[i] = sin_2;
        }
    }

The code follows from the kernel's structure alone, so it is the key under which a compiled kernel is kept: scalars,
lengths and strides are arguments, and the lines of the user's program stand in a header beside it.  Half types are
widened when read; arithmetic is in float, and each result is rounded, as in the NumPy engine.

A kernel loops over elements, or over rows where some values are one a row: then each reduction over a row has a loop
of its own, which computes again what it needs of the row.  Reductions over rows, or over everything, give one partial
result for each chunk of fixed size; a second entry reduces those.  Outputs may take over the memory of inputs, so
everything is stored in the last loop, after the last read.
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
from .launch import INT64, Emitted, Entry, Parameter, strides_of
from .prelude import c_name, narrowed, rounded, widened

NAMED = 4  # operations that the name of a kernel lists
FLOAT64: DType = np.dtype(np.float64)


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
        self.rows_of = row_shape(kernel.space)
        self.parameters: dict[str, Parameter] = {}
        self.names: dict[int, str] = {}
        self.scopes: dict[int, int] = {}
        self.level: dict[int, int] = {}  # how many loops over a row must end before the array is known
        self.places = {id(a): place for place, a in enumerate(kernel.nodes)}
        self.totals = [a for a in kernel.nodes if a.op is not None and a.op.fusion == TOTAL]
        self.lines: dict[int, str] = {}
        self.scalars = 0
        for k, leaf in enumerate(kernel.leaves):
            self.names[id(leaf)] = f"x{k}"
        for place, node in enumerate(kernel.nodes):
            assert node.op is not None
            self.names[id(node)] = f"{re.sub(r'[^A-Za-z0-9_]', '_', node.op.name)}_{place + 1}"
            per_row = node.op.fusion == ROW or (node.shape != kernel.space and node.shape == self.rows_of)
            self.scopes[id(node)] = EACH_ROW if per_row else EACH
            below = max((self.level.get(id(x), 0) for x in node.inputs if type(x) is Array), default=0)
            self.level[id(node)] = below + (node.op.fusion == ROW)
        self.by_rows = EACH_ROW in self.scopes.values() or any(self.by_column(t) for t in self.totals)
        self.reads = {id(leaf): self.read(k, leaf) for k, leaf in enumerate(kernel.leaves)}

    def by_column(self, total: Array) -> bool:
        """True for a reduction that leaves one value a column."""
        return total.size > 1

    def parameter(self, kind: str, name: str, dtype: DType, index: int = 0, slot: int = 0) -> str:
        """The name of a parameter, which the entry now has."""
        self.parameters.setdefault(name, Parameter(kind, name, dtype, index, slot))
        return name

    def length(self, name: str) -> str:
        """The name of a length, which the entry now takes."""
        return self.parameter(name, name, INT64)

    # --- reading ----------------------------------------------------------------------------

    def read(self, k: int, leaf: Array) -> str:
        """The line that reads an element of the leaf; decides how often it is read."""
        space, rank = self.kernel.space, len(self.kernel.space)
        strides = strides_of(leaf, rank)
        self.parameter("leaf", f"in{k}", leaf.dtype, k)
        if not any(strides):
            scope, where = ONCE, "0"
        elif strides == _contiguous(space):
            scope, where = EACH, "i"
        elif strides == [*_contiguous(space[:-1]), 0]:
            scope, where = EACH_ROW, "r"
        else:
            scope = EACH if strides[-1] else EACH_ROW
            terms = []
            for axis, stride in enumerate(strides):
                if axis == rank - 1 and stride == 1 and strides[:-1] == [0] * (rank - 1):
                    terms.append("c")
                elif stride:
                    terms.append(f"{self.index(axis)} * {self.parameter('stride', f'in{k}_s{axis}', INT64, k, axis)}")
            where = " + ".join(terms)
        self.scopes[id(leaf)] = scope
        element = widened(f"in{k}[{where}]", leaf.dtype)
        return f"const {c_name(compute_dtype(leaf.dtype))} x{k} = {element};"

    def index(self, axis: int) -> str:
        """The name of the index along `axis` of the space."""
        rank = len(self.kernel.space)
        if rank == 1 and not self.by_rows:
            return "i"
        return "c" if axis == rank - 1 else "r" if rank == 2 else f"k{axis}"

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
        """The expression of a source.  Its parameters are a, b, ..., the position is i.

        One that looks at no position has parameters of the node's own dtype; one that counts, int64 or double.
        """
        op: Any = node.op
        counts = re.search(r"\bi\b", op.cuda) is not None
        names = {"T": c_name(node.dtype)}
        for slot, value in enumerate(node.params):
            dtype = compute_dtype(node.dtype) if not counts else FLOAT64 if type(value) is float else INT64
            names[ascii_lowercase[slot]] = self.parameter("param", f"s{self.scalars}", dtype, place, slot)
            self.scalars += 1
        expression = substitute(op.cuda, names)
        return f"{c_name(compute_dtype(node.dtype))}({expression})" if counts else expression

    def combine(self, node: Array, so_far: str, value: str, again: str) -> str:
        """`so_far` combined with `value` where `again` is true; else `value`, the first there is."""
        op: Any = node.op
        together = substitute(op.cuda, {"a": so_far, "b": value, "T": c_name(node.dtype)})
        return f"{so_far} = {again} ? {together} : {value};"

    def begin(self, node: Array) -> str:
        """The line that declares the result of a reduction, as it is over no elements."""
        op: Any = node.op
        identity = getattr(op.numpy, "identity", None)
        return f"{c_name(node.dtype)} {self.names[id(node)]} = {0 if identity is None else int(identity)};"

    def reduced(self, node: Array) -> str:
        """The element that a reduction takes."""
        return self.operand(node.inputs[0], node.dtype, 0, 0)

    # --- loops ------------------------------------------------------------------------------

    def needed(self, roots: Iterable[Any]) -> tuple[list[Array], list[Array]]:
        """The leaves to read and the nodes to compute for each element, for `roots` to be known."""
        seen: set[int] = set()
        stack = [x for x in roots if self.scopes[id(x)] == EACH]
        while stack:
            x = stack.pop()
            if id(x) not in seen:
                seen.add(id(x))
                stack.extend([y for y in x.inputs if type(y) is Array and self.scopes[id(y)] == EACH])
        return [x for x in self.kernel.leaves if id(x) in seen], [x for x in self.kernel.nodes if id(x) in seen]

    def element(self, roots: Iterable[Any], after: list[str]) -> list[str]:
        """The body of a loop over elements: indexes, reads, one line for each operation, `after`."""
        leaves, nodes = self.needed(roots)
        body = [self.reads[id(x)] for x in leaves] + [self.line(x) for x in nodes] + after
        used, leading = words(body), self.leading(body)
        if self.by_rows:
            return [f"const int64 i = r * {self.length('cols')} + c;", *body] if "i" in used else body
        if leading or "r" in used:
            both = ", c = i - r * cols" if "c" in used else ""
            leading.insert(0, f"const int64 r = i / {self.length('cols')}{both};")
        elif "c" in used:
            leading = [f"const int64 c = i % {self.length('cols')};"]
        return leading + body

    def stores(self, scope: int, where: str) -> list[str]:
        """The lines that write the outputs of `scope`."""
        lines = []
        for k, y in enumerate(self.kernel.outputs):
            if y not in self.totals and self.scopes[id(y)] == scope:
                out = self.parameter("output", f"out{k}", y.dtype, k)
                lines.append(f"{out}[{where}] = {narrowed(self.names[id(y)], y.dtype)};")
        return lines

    def accumulate(self, again: str) -> list[str]:
        """The lines that add an element to the partial results of its chunk."""
        lines = []
        for k, total in enumerate(self.totals):
            value, so_far = self.reduced(total), self.names[id(total)]
            if self.by_column(total):
                so_far = f"{self.parameter('partial', f'partial{k}', total.dtype, k)}[k * {self.length('cols')} + c]"
            first = "r > first" if self.by_column(total) else again
            lines.append(self.combine(total, so_far, value, first))
        return lines

    def roots(self) -> list[Any]:
        """What the last loop over elements must know: outputs, and what the ending reductions take."""
        outputs = [y for y in self.kernel.outputs if y not in self.totals and self.scopes[id(y)] == EACH]
        return outputs + [total.inputs[0] for total in self.totals]

    def once(self, scope: int) -> list[str]:
        """The lines that read the leaves of `scope`, with their indexes."""
        return [self.reads[id(x)] for x in self.kernel.leaves if self.scopes[id(x)] == scope]

    def flat(self) -> list[str]:
        """The loop over all elements."""
        for leaf in self.kernel.leaves:
            if self.scopes[id(leaf)] == EACH_ROW:
                self.scopes[id(leaf)] = EACH
        if self.totals:
            body = self.element(self.roots(), self.stores(EACH, "i") + self.accumulate("i > first"))
            return self.chunked("i", self.length("size"), body)
        body = self.element(self.roots(), self.stores(EACH, "i"))
        return [f"LOOP(i, {self.length('size')}) {{", *indented(body), "}"]

    def row(self) -> list[str]:
        """What is done with each row: a loop for each level of reductions, then what is left to store."""
        nodes = self.kernel.nodes
        reductions = [a for a in nodes if a.op is not None and a.op.fusion == ROW]
        roots = self.roots()
        depth = max([self.level[id(a)] for a in reductions], default=0)
        last = max([depth - 1] + [self.level.get(id(a), 0) for a in roots])
        lines = self.once(EACH_ROW)
        for level in range(max(last, depth) + 1):
            here = [a for a in nodes if self.scopes[id(a)] == EACH_ROW and self.level[id(a)] == level]
            lines += [self.line(a) for a in here if a not in reductions]
            ending = [a for a in reductions if self.level[id(a)] == level + 1]
            wanted = [a.inputs[0] for a in ending] + (roots if level == last else [])
            if not wanted:
                continue
            after = [self.combine(a, self.names[id(a)], self.reduced(a), "c > 0") for a in ending]
            if level == last:
                after += self.accumulate("r > first || c > 0") + self.stores(EACH, "i")
            body = self.element(wanted, after)
            lines += [self.begin(a) for a in ending]
            lines += [f"for (int64 c = 0; c < {self.length('cols')}; ++c) {{", *indented(body), "}"]
        lines += self.stores(EACH_ROW, "r")
        return self.leading(lines) + lines

    def chunked(self, index: str, length: str, body: list[str]) -> list[str]:
        """A loop over chunks of `length`, each of which leaves partial results."""
        scalars = [(k, total) for k, total in enumerate(self.totals) if not self.by_column(total)]
        chunk = self.length("chunk")
        return [
            f"LOOP(k, {self.length('chunks')}) {{",
            *indented(
                [
                    f"const int64 first = k * {chunk}, end = first + {chunk} < {length} ? first + {chunk} : {length};",
                    *[self.begin(total) for _, total in scalars],
                    f"for (int64 {index} = first; {index} < end; ++{index}) {{",
                    *indented(body),
                    "}",
                    *[
                        f"{self.parameter('partial', f'partial{k}', total.dtype, k)}[k] = {self.names[id(total)]};"
                        for k, total in scalars
                    ],
                ]
            ),
            "}",
        ]

    def finish(self) -> list[str]:
        """The loops that reduce the partial results."""
        lines = []
        for k, total in enumerate(self.totals):
            name, partial = self.names[id(total)], self.parameter("partials", f"partial{k}", total.dtype, k)
            out = self.parameter("output", f"out{self.output_of(total)}", total.dtype, self.output_of(total))
            by_column = self.by_column(total)
            value = f"{partial}[k * {self.length('cols')} + c]" if by_column else f"{partial}[k]"
            lines += [
                f"LOOP(c, {self.length('cols') if by_column else 1}) {{",
                *indented(
                    [
                        self.begin(total),
                        f"for (int64 k = 0; k < {self.length('chunks')}; ++k) {{",
                        *indented([self.combine(total, name, value, "k > 0")]),
                        "}",
                        f"{out}[c] = {name};",
                    ]
                ),
                "}",
            ]
        return lines

    def output_of(self, total: Array) -> int:
        """The place of an ending reduction among the outputs."""
        return next(k for k, y in enumerate(self.kernel.outputs) if y is total)

    # --- the whole --------------------------------------------------------------------------

    def emitted(self) -> Emitted:
        """All of it."""
        if not self.by_rows:
            loop = self.flat()
        elif self.totals:
            loop = self.chunked("r", self.length("rows"), self.row())
        else:
            loop = [f"LOOP(r, {self.length('rows')}) {{", *indented(self.row()), "}"]
        functions = [("NAME", ordered(self.parameters), self.once(ONCE) + loop)]
        if self.totals:
            self.parameters = {}
            lines = self.finish()
            functions.append(("NAME_finish", ordered(self.parameters), lines))
        code = "\n".join(written(*function) for function in functions)
        name = self.name(code)
        return Emitted(
            self.header(name),
            code.replace("KERNEL NAME", f"KERNEL {name}"),
            tuple([Entry(stem.replace("NAME", name), parameters) for stem, parameters, _ in functions]),
            self.by_rows,
            tuple([(total.dtype, self.by_column(total)) for total in self.totals]),
        )

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
    kinds = ("leaf partials", "scalar param", "output", "partial", "stride axis size rows cols chunk chunks")
    rank = {kind: k for k, together in enumerate(kinds) for kind in together.split()}
    return tuple(sorted(parameters.values(), key=lambda p: rank[p.kind]))


def written(name: str, parameters: Sequence[Parameter], lines: Sequence[str]) -> str:
    """The text of one function."""
    declared = ", ".join(p.declaration for p in parameters)
    return "\n".join([f"KERNEL {name}({declared}) {{", *indented(lines), "}"]) + "\n"
