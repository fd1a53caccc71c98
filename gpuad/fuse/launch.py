"""How to call the text of a kernel: which arguments each entry takes, and what they are for a given kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..array import Array, Shape
from ..dtype import DType, compute_dtype
from ..recording import Live
from .kernel import Kernel
from .prelude import c_name
from .totals import CHUNK

INT64: DType = np.dtype(np.int64)
COLUMN_CHUNK = 1 << 16  # elements of a chunk that leaves one partial result a column, roughly


@dataclass(frozen=True)
class Parameter:
    """One parameter of an entry, and what to pass for it (see `arguments`).

    `kind` is "leaf" or "partials" for a pointer to elements of `dtype` that are read, "output" or "partial" for one to
    elements that are written, "scalar" for an operand and "param" for a parameter of a node, "stride" for a stride of
    a leaf in elements, "axis" for a length of the space, and "size", "rows", "cols", "chunk", "chunks" or "scratch"
    (bytes of a team) for the length of that name.
    """

    kind: str
    name: str
    dtype: DType
    index: int = 0
    slot: int = 0

    @property
    def declaration(self) -> str:
        """How the text declares it.  Bools are read as the bytes they are: compilers make vectors of those."""
        c = "uint8" if self.kind == "leaf" and self.dtype.kind == "b" else c_name(self.dtype)
        if self.kind in ("leaf", "partials"):
            return f"const {c}* {self.name}"
        return f"{c}* {self.name}" if self.kind in ("output", "partial") else f"{c} {self.name}"


@dataclass(frozen=True)
class Entry:
    """One function of the text.  `items` is the length that its outermost loop goes over, or "one"."""

    name: str
    parameters: tuple[Parameter, ...]
    items: str


@dataclass(frozen=True)
class Row:
    """One value for each column in a team's scratch memory.  Only `shared` ones are needed on a GPU."""

    dtype: DType
    shared: bool

    @property
    def size(self) -> int:
        """The bytes of a column, aligned."""
        return max(4, self.dtype.itemsize)


@dataclass(frozen=True)
class Emitted:
    """The text of a kernel, and how to call it: `entries`, one after the other.

    Kernels of the same structure have the same `code`, which is the key to keep a compiled one under.
    """

    header: str
    code: str
    entries: tuple[Entry, ...]
    by_rows: bool  # does it tell rows and columns apart?
    reduces: bool  # does it reduce rows, so that a team must see a whole one?
    partials: tuple[tuple[DType, bool], ...]  # of each reduction that ends the kernel: dtype; one result a column?
    scratch: tuple[Row, ...]
    draws: bool  # does it draw random numbers, several from each block of a stream?

    @property
    def text(self) -> str:
        """Header and code, as a reader wants them."""
        return self.header + self.code

    @property
    def name(self) -> str:
        """The first entry."""
        return self.entries[0].name

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The parameters of the first entry, in order."""
        return self.entries[0].parameters

    def lengths(self, kernel: Kernel) -> dict[str, int]:
        """The lengths that entries take as arguments, or go over, by name."""
        rows, cols = kernel.rows, kernel.cols
        chunk = chunk_of(kernel.space, by_column=self.by_column)
        if self.by_rows:
            chunk, n = max(chunk, 1), rows
        else:
            chunk, n = chunk * cols or CHUNK, rows * cols
        return {
            "size": rows * cols,
            "rows": rows,
            "cols": cols,
            "chunk": chunk,
            "chunks": -(-n // chunk),
            "scratch": self.scratch_bytes(cols, shared=True),
            "one": 1,
        }

    @property
    def by_column(self) -> bool:
        """Does the kernel end in reductions that leave one result a column?"""
        return any(by_column for _, by_column in self.partials)

    def scratch_bytes(self, cols: int, *, shared: bool) -> int:
        """The bytes of scratch memory of one team: of what a GPU needs, or of everything."""
        _, needed, everything = places(self.scratch)
        rows = needed if shared else everything
        return -(-(chunk_bytes(self.partials) + rows * cols) // 16) * 16

    def partial_sizes(self, kernel: Kernel) -> list[tuple[int, DType]]:
        """How many elements of which dtype the partial results of each ending reduction are."""
        n = self.lengths(kernel)
        return [(n["chunks"] * (n["cols"] if by_column else 1), dtype) for dtype, by_column in self.partials]


def places(scratch: Sequence[Row]) -> tuple[dict[int, int], int, int]:
    """Where each row begins, in bytes a column; how many those take that a GPU needs; and all of them.

    Wide ones come first, then those that a GPU does not need, each aligned whatever the number of columns is.
    """
    found, step, needed = {}, 0, 0
    for k in sorted(range(len(scratch)), key=lambda k: (not scratch[k].shared, -scratch[k].size)):
        step += -step % scratch[k].size
        found[k] = step
        step += scratch[k].size
        needed = step if scratch[k].shared else needed
    return found, needed, step


def chunk_of(space: Shape, *, by_column: bool) -> int:
    """How many rows of `space` one partial result covers; 0 if it is a part of a row, of CHUNK elements."""
    cols = space[-1] if space else 1
    if by_column:
        return max(16, min(COLUMN_CHUNK // max(cols, 1), 256))
    return 0 if cols > CHUNK or len(space) < 2 else CHUNK // max(cols, 1)


def chunk_bytes(partials: Sequence[tuple[DType, bool]]) -> int:
    """The bytes of scratch memory that collect the elements of a chunk, for each reduction over everything."""
    return sum(CHUNK * max(4, dtype.itemsize) for dtype, by_column in partials if not by_column)


def arguments(emitted: Emitted, entry: Entry, kernel: Kernel, partials: Sequence[Any] = ()) -> list[Any]:
    """What to pass to `entry`, in order: the device library's arrays, and NumPy scalars of the declared dtype.

    `kernel` has the structure that was emitted, and its `results`; `partials` is memory for `partial_sizes`.
    """
    arrays = [*[leaf.data for leaf in kernel.leaves], *kernel.results]
    return filled(entry, numbers(emitted, entry, kernel), arrays, len(kernel.leaves), partials)


def filled(
    entry: Entry, given: Sequence[Any], arrays: Sequence[Any], leaves: int, partials: Sequence[Any]
) -> list[Any]:
    """What to pass to `entry`: `given`, as `numbers` gave it, with arrays: `leaves` leaves, then the results."""
    found = []
    for p, x in zip(entry.parameters, given, strict=True):
        if p.kind == "leaf":
            found.append(arrays[p.index])
        elif p.kind == "output":
            found.append(arrays[leaves + p.index])
        elif p.kind in ("partial", "partials"):
            found.append(partials[p.index])
        else:
            found.append(cast(x.live, x.dtypes) if type(x) is Unread else x)
    return found


@dataclass(frozen=True)
class Unread:
    """A live number, and the dtypes it is cast to in turn."""

    live: Live
    dtypes: tuple[DType, ...]


def numbers(emitted: Emitted, entry: Entry, kernel: Kernel) -> list[Any]:
    """What to pass to `entry`, in order: NumPy scalars of the declared dtype, Unread ones, and None for arrays."""
    lengths = emitted.lengths(kernel)
    found: list[Any] = []
    for p in entry.parameters:
        if p.kind in ("leaf", "output", "partial", "partials"):
            found.append(None)
        elif p.kind in ("scalar", "param"):
            with np.errstate(all="ignore"):
                x, dtypes = number_of(p, kernel)
                found.append(Unread(x, dtypes) if type(x) is Live else cast(x, dtypes))
        elif p.kind == "stride":
            found.append(scalar(strides_of(kernel.leaves[p.index], len(kernel.space))[p.slot], p.dtype))
        else:
            found.append(scalar(kernel.space[p.slot] if p.kind == "axis" else lengths[p.kind], p.dtype))
    return found


def number_of(p: Parameter, kernel: Kernel) -> tuple[Any, tuple[DType, ...]]:
    """The number that a "scalar" or "param" is, perhaps a Live one, and the dtypes to cast it to, in turn.

    It is infinite where it is beyond a dtype; NumPy warns of that unless the caller has told it not to.
    """
    node = kernel.nodes[p.index]
    if p.kind == "scalar":
        return node.inputs[p.slot], (p.dtype,)
    return node.params[p.slot], (node.dtype, p.dtype) if p.dtype == compute_dtype(node.dtype) else (p.dtype,)


def cast(value: Any, dtypes: Sequence[DType]) -> Any:
    """`value` as a NumPy scalar of the last of `dtypes`, rounded to each in turn."""
    for dtype in dtypes:
        value = scalar(value, dtype)
    return value


def scalar(value: Any, dtype: DType) -> Any:
    """`value` as a NumPy scalar of `dtype`."""
    if type(value) is Live:
        value = value.value()
    if type(value) is int and dtype == INT64:
        value = (value + (1 << 63)) % (1 << 64) - (1 << 63)  # the words of random numbers are unsigned
    return np.asarray(value).astype(dtype)[()]


def strides_of(leaf: Array, rank: int) -> list[int]:
    """The strides of `leaf` along the axes of the space, in elements; 0 where it is repeated."""
    strides = [s // leaf.dtype.itemsize for s in leaf.data.strides]
    return [0] * (rank - len(strides)) + [0 if n == 1 else s for n, s in zip(leaf.shape, strides, strict=True)]
