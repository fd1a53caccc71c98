"""Array: an immutable value on a device, perhaps not computed yet.

A pending Array knows the operation that makes it and that operation's inputs; a computed one has its memory.
Nothing here has heard of derivatives.  `fuse.plan.realize` turns pending into computed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from .buffer import Buffer
from .dtype import DType, Scalar
from .provenance import Site

if TYPE_CHECKING:
    from .devices.device import Device

Shape: TypeAlias = tuple[int, ...]

serials = itertools.count()

# How a pending operation can go into a kernel (see fuse/plan.py).
ELEMENTWISE = 0  # each output element from the input elements at the same place
SOURCE = 1  # each output element from its own position: full, arange, random bits
ROW = 2  # a reduction over the last axis, kept as an axis of length 1
TOTAL = 3  # a reduction over the leading axes or over all of them: it ends a kernel
ANCHOR = 4  # a product of matrices or a named kernel: it begins one
OPAQUE = 5  # not at all: it is computed at once
COMPOSITE = 6  # as the ops it is made of


class Operation(Protocol):
    """What an Array knows of the op that makes it: how it fuses, what it costs, how it is computed."""

    name: str
    fusion: int
    numpy: Any  # a ufunc for reductions, else a function of the operands and `out`
    cuda: str
    cost: float  # of one element, in additions
    in_place: bool  # may `numpy` write over an input it is reading?

    def signature(self, operands: tuple[DType | type, ...]) -> tuple[tuple[DType, ...], DType]:
        """The dtype each operand is cast to first, and the dtype of the result, from the dtypes that are given."""


Operand: TypeAlias = "Array | Scalar"


class Array:
    """An immutable array: pending while `op` is set, computed once `data` is.

    `data` is the device library's array (for `meta`, an array of the right shape and strides that must not be read).
    `readers` counts the pending arrays that would read this one, `kept` the tapes that keep it: a holder raises the
    count, its death lowers it.
    """

    __slots__ = (
        "__weakref__",
        "buffer",
        "data",
        "depth",
        "device",
        "dtype",
        "inputs",
        "kept",
        "on_write",
        "op",
        "params",
        "readers",
        "serial",
        "shape",
        "site",
        "wanted",
    )

    def __init__(
        self,
        shape: Shape,
        dtype: DType,
        device: Device,
        op: Operation | None = None,
        inputs: tuple[Operand, ...] = (),
        params: tuple[Any, ...] = (),
        depth: int = 0,
        site: Site | None = None,
    ) -> None:
        self.shape, self.dtype, self.device = shape, dtype, device
        self.op, self.inputs, self.params, self.depth, self.site = op, inputs, params, depth, site
        self.serial = next(serials)  # inputs have smaller ones than what reads them
        self.readers = self.kept = 0
        self.wanted = False  # is it to be stored wherever it is computed?
        self.data: Any = None
        self.buffer: Buffer | None = None
        self.on_write: Callable[[Array], None] | None = None  # called once, by written()
        for x in inputs:
            if type(x) is Array:
                x.readers += 1

    def __del__(self) -> None:
        self.data = None  # before the buffer goes, so that it can see whether anyone else looks at its memory
        for x in self.inputs:
            if type(x) is Array:
                x.readers -= 1

    def compute(self, data: Any, buffer: Buffer) -> None:
        """Become computed: `data` is a view of `buffer`."""
        inputs = self.inputs
        self.buffer = buffer
        self.data = data
        self.op = None  # last: another thread may be reading, and must find one or the other
        self.inputs, self.params, self.depth = (), (), 0
        for x in inputs:
            if type(x) is Array:
                x.readers -= 1

    def written(self) -> None:
        """Tell who wants to know that this array is computed; they may raise."""
        if self.on_write is not None:
            report, self.on_write = self.on_write, None
            report(self)

    @property
    def size(self) -> int:
        """How many elements."""
        n = 1
        for d in self.shape:
            n *= d
        return n

    @property
    def nbytes(self) -> int:
        """How many bytes the elements take."""
        return self.size * self.dtype.itemsize

    def __repr__(self) -> str:
        state = f"pending {self.op.name}" if self.op is not None else "computed"
        return f"<Array {describe(self)} {state}>"


def computed(data: Any, buffer: Buffer, shape: Shape, dtype: DType, site: Site | None = None) -> Array:
    """A computed Array that looks at `data`, a view of `buffer`."""
    array = Array(shape, dtype, buffer.device, site=site)
    array.data, array.buffer = data, buffer
    return array


def describe(x: Any) -> str:
    """`float32[64, 128]`, as error messages write a value."""
    if type(x) in (bool, int, float):
        return f"{type(x).__name__} {x!r}"
    return f"{x.dtype}[{', '.join(map(str, x.shape))}]"
