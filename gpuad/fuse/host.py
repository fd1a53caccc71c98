"""Running a kernel with NumPy: in blocks that fit the cache, with scratch that is allocated once.

A kernel is lowered to a Program (a list of NumPy calls on numbered registers), cached by structure.  A run walks the
iteration space in blocks; every call of a block writes to scratch or straight into an output.  Reductions follow
trees that depend on shapes alone, so that the bits of a result depend neither on blocks nor on threads nor on what it
was fused with: values are contiguous wherever arithmetic is done, and partial sums cover fixed chunks.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..array import ROW, SOURCE, TOTAL, Array
from ..dtype import DType, compute_dtype
from ..recording import Live
from .kernel import Kernel, inexact, row_shape, structure
from .totals import CHUNK, GROUP, Total

BLOCK = 65536  # elements of one block: fewer calls weigh more than a smaller cache
THREADED = 1 << 25  # element operations from which a kernel is worth two threads: below, they wait for each other
THREADS = max(1, min(2, os.cpu_count() or 1))

FULL, PER_ROW, PER_COLUMN, ONE, STRIDED = range(5)  # how a register meets the space
REDUCE, POSITION, ADD_UP = 4, 5, 6  # kinds of steps besides functions of one, two and more registers
Data = np.ndarray[Any, Any]

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

_programs: dict[tuple[Any, ...], Program] = {}  # cache, cleared when it outgrows MAX_PROGRAMS
MAX_PROGRAMS = 8192
_scratch: list[dict[int, Data]] = [{}, {}]  # scratch memory by slot, for each of the two walkers
_lock = threading.RLock()  # one kernel at a time: scratch is shared by all
_pool: ThreadPoolExecutor | None = None


RowFunction = Callable[[Any, tuple[DType, ...], DType], Callable[..., Any]]


def job(kernel: Kernel, row_function: RowFunction | None = None) -> Job:
    """What computes the outputs of `kernel`: called with the leaves' data and the results.

    `row_function(op, operands, result)` is what computes functions of one value a row that NumPy rounds otherwise than
    the compiled engine; without it NumPy does.
    """
    key = structure(kernel), row_function is not None
    program = _programs.get(key)
    if program is None:
        if len(_programs) >= MAX_PROGRAMS:
            _programs.clear()
        program = _programs[key] = Program(kernel, row_function)
        program.label = hash(key)
    return Job(program, kernel)


class Job:
    """A program with the numbers of one kernel."""

    __slots__ = ("params", "program", "scalars")

    def __init__(self, program: Program, kernel: Kernel) -> None:
        nodes = kernel.nodes
        self.program = program
        self.scalars = [nodes[place].inputs[operand] for _, place, operand, _ in program.scalars]
        self.params = [nodes[place].params for place in program.positions]

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells the job from another: the program, and the numbers that are not live."""
        fixed = [[type(x) if type(x) is Live else x for x in numbers] for numbers in (self.scalars, *self.params)]
        return self.program.label, str(fixed)

    def __call__(self, *arrays: Any) -> None:
        params = [tuple([x.value() if type(x) is Live else x for x in values]) for values in self.params]
        with _lock, np.errstate(all="ignore"):
            self.program.run(arrays, self.scalars, params)


def _cast(x: Any, out: Data) -> None:
    np.copyto(out, x, casting="unsafe")


def _as_scalar(value: Any, dtype: DType) -> Any:
    return np.array(value, dtype)


class Program:
    """A kernel as NumPy calls on registers: leaves first, then scalars, then scratch."""

    label = 0  # the same for programs of the same structure

    def __init__(self, kernel: Kernel, row_function: RowFunction | None = None) -> None:
        self.row_function = row_function
        self.rows, self.cols = kernel.rows, kernel.cols
        self.space, self.row_shape = kernel.space, row_shape(kernel.space)
        self.steps: list[tuple[int, Any, Any, int, int]] = []  # (kind or arity, function, inputs, output register)
        self.scalars: list[tuple[int, int, int, DType]] = []  # (register, node, operand, dtype)
        self.positions: list[int] = []  # the node of each step of that kind
        self.leaves: list[tuple[int, int]] = []  # (register, layout) of each leaf
        self.writes: list[tuple[int, int]] = []  # (register, layout) of each output that is not a total
        self.totals: list[Total] = []
        self.scratch: list[tuple[int, int, int, DType]] = []  # (register, slot, layout, dtype)
        self.count = 0  # registers
        self._slots_free: list[int] = []
        self._slots = 0
        self.flat = self._is_flat(kernel)
        self._lower(kernel)
        self.blocks = self._blocks()
        nothing: tuple[int, int] | None = None
        empty: list[Any] = [None] * self.count
        self.registers = [(empty, nothing), (list(empty), nothing)]  # of each walker
        self.parallel = (
            THREADS > 1 and self.rows * self.cols * max(1, len(self.steps)) >= THREADED and len(self.blocks) > 1
        )

    # --- lowering ---------------------------------------------------------------------------

    def _is_flat(self, kernel: Kernel) -> bool:
        """True if rows and columns need not be told apart."""
        if any(node.op is None or node.op.fusion == ROW for node in kernel.nodes):
            return False
        for node in kernel.nodes:
            assert node.op is not None
            if node.op.fusion == TOTAL and (node.size > 1 or (self.cols > CHUNK and len(self.space) > 1)):
                return False
            if node.op.fusion != TOTAL and node.shape != self.space:
                return False
        return all(self._layout(leaf) in (FULL, ONE) for leaf in kernel.leaves)

    def _layout(self, array: Array) -> int:
        data = array.data
        if array.size == 1 and self.rows * self.cols != 1:
            return ONE
        padded = (1,) * (len(self.space) - len(array.shape)) + array.shape
        if padded[-1:] == (1,) and self.cols != 1:
            return PER_ROW
        if data.flags.c_contiguous:
            if padded == self.space:
                return FULL
            if array.size == self.cols == padded[-1]:
                return PER_COLUMN
        return STRIDED

    def _register(self) -> int:
        self.count += 1
        return self.count - 1

    def _new(self, layout: int, dtype: DType) -> int:
        """A scratch register."""
        register = self._register()
        if layout == PER_ROW:
            slot = -1
        elif self._slots_free:
            slot = self._slots_free.pop()
        else:
            slot = self._slots
            self._slots += 1
        self.scratch.append((register, slot, layout, dtype))
        self._slot_of[register] = slot
        return register

    def _lower(self, kernel: Kernel) -> None:
        self._slot_of: dict[int, int] = {}
        where: dict[int, int] = {}  # the register of each array
        layouts: dict[int, int] = {}
        casts: dict[tuple[int, DType], int] = {}
        for leaf in kernel.leaves:
            register, layout = self._register(), self._layout(leaf)
            self.leaves.append((register, layout))
            where[id(leaf)] = register
            layouts[register] = FULL if layout == STRIDED else layout
        last: dict[int, int] = {}
        for place, node in enumerate(kernel.nodes):
            for x in node.inputs:
                if type(x) is Array:
                    last[id(x)] = place
        written = {id(y): k for k, y in enumerate(kernel.outputs)}
        registers_of_outputs: dict[int, int] = {}
        for place, node in enumerate(kernel.nodes):
            op = node.op
            assert op is not None
            layout = PER_ROW if node.shape != self.space and node.shape == self.row_shape else FULL
            if op.fusion == TOTAL:
                x = node.inputs[0]
                assert isinstance(x, Array)
                total = Total(written[id(node)], op, node, self.cols)
                self.steps.append((ADD_UP, total, where[id(x)], len(self.totals), 0))
                self.totals.append(total)
                self._free_dead(node, place, last, written, where, casts)
                continue
            if op.fusion == SOURCE:
                operand_dtypes: tuple[DType, ...] = ()
                raw = node.dtype
            elif op.fusion == ROW:
                operand_dtypes, raw = (node.dtype,), node.dtype
            else:
                operand_dtypes, result = op.signature(
                    tuple([x.dtype if type(x) is Array else type(x) for x in node.inputs])
                )
                operand_dtypes, raw = tuple(map(compute_dtype, operand_dtypes)), compute_dtype(result)
            ins: list[int] = []
            temporary: list[int] = []
            for slot, (x, want) in enumerate(zip(node.inputs, operand_dtypes, strict=False)):
                if type(x) is not Array:
                    register = self._register()
                    self.scalars.append((register, place, slot, want))
                    layouts[register] = ONE
                else:
                    register = where[id(x)]
                    if x.dtype != want:
                        cast = casts.get((register, want))
                        if cast is None:
                            cast = self._new_like(layouts[register], want, layouts)
                            self.steps.append((1, _cast, register, 0, cast))
                            if last[id(x)] == place:
                                temporary.append(cast)
                            else:
                                casts[register, want] = cast
                        register = cast
                ins.append(register)
            out = self._output(id(node), written, layout, raw, node.dtype, layouts)
            if op.fusion == SOURCE:
                self.steps.append((POSITION, op.numpy, len(self.positions), 0, out))
                self.positions.append(place)
            elif op.fusion == ROW:
                self.steps.append((REDUCE, op.numpy.reduce, ins[0], 0, out))
            else:
                function = op.numpy
                if self.row_function is not None and layout == PER_ROW and inexact(op):
                    function = self.row_function(op, operand_dtypes, raw)
                if len(ins) == 1:
                    self.steps.append((1, function, ins[0], 0, out))
                elif len(ins) == 2:
                    self.steps.append((2, function, ins[0], ins[1], out))
                else:
                    self.steps.append((3, function, tuple(ins), 0, out))
            if raw != node.dtype:  # a half type: computed in float32, rounded here
                rounded = self._output(id(node), written, layout, node.dtype, node.dtype, layouts)
                self.steps.append((1, _cast, out, 0, rounded))
                temporary.append(out)
                out = rounded
            where[id(node)] = out
            if id(node) in written:
                registers_of_outputs[written[id(node)]] = out
            self._free_dead(node, place, last, written, where, casts)
            for register in temporary:
                self._free(register)
        self.writes = [
            (registers_of_outputs[k], layouts[registers_of_outputs[k]]) if k in registers_of_outputs else (-1, FULL)
            for k in range(len(kernel.outputs))
        ]

    def _output(
        self, key: int, written: dict[int, int], layout: int, dtype: DType, final: DType, layouts: dict[int, int]
    ) -> int:
        """The register a node computes into: its place in memory if it is written, else scratch."""
        if key in written and dtype == final:
            register = self._register()
        else:
            register = self._new(layout, dtype)
        layouts[register] = layout
        return register

    def _new_like(self, layout: int, dtype: DType, layouts: dict[int, int]) -> int:
        register = self._new(layout, dtype)
        layouts[register] = layout
        return register

    def _free_dead(
        self,
        node: Array,
        place: int,
        last: dict[int, int],
        written: dict[int, int],
        where: dict[int, int],
        casts: dict[tuple[int, DType], int],
    ) -> None:
        """Free the scratch of what `node` is the last to read."""
        for x in node.inputs:
            if type(x) is Array and last[id(x)] == place and id(x) not in written:
                self._free(where[id(x)])
                for key in [key for key in casts if key[0] == where[id(x)]]:
                    self._free(casts.pop(key))
                last[id(x)] = -1

    def _free(self, register: int) -> None:
        slot = self._slot_of.pop(register, -1)
        if slot >= 0:
            self._slots_free.append(slot)

    # --- blocks -----------------------------------------------------------------------------

    def _blocks(self) -> list[tuple[int, int, int, int]]:
        """(first row, end row, first column, end column) of each block; a flat space is one long row."""
        rows, cols = self.rows, self.cols
        if self.flat:
            n, step = rows * cols, BLOCK
            for total in self.totals:
                step = max(total.chunk, step // total.chunk * total.chunk)
            self.block_rows, self.block_cols = 1, max(1, min(step, n))
            return [(0, 1, c, min(c + step, n)) for c in range(0, n, step)] or [(0, 1, 0, 0)]
        most = max(CHUNK, BLOCK // CHUNK * CHUNK)
        wide = cols > most and not any(step[0] == REDUCE for step in self.steps)
        col_step = most if wide else max(cols, 1)
        row_step = max(1, BLOCK // max(col_step, 1))
        for total in self.totals:
            if total.chunk_rows > 1:
                row_step = max(total.chunk_rows, row_step // total.chunk_rows * total.chunk_rows)
        self.block_rows, self.block_cols = min(row_step, max(rows, 1)), col_step
        return [
            (r, min(r + row_step, rows), c, min(c + col_step, cols))
            for r in range(0, rows, row_step)
            for c in range(0, max(cols, 1), col_step)
        ]

    # --- running ----------------------------------------------------------------------------

    def run(self, arrays: Sequence[Data], scalars: Sequence[Any], params: Sequence[tuple[Any, ...]]) -> None:
        """Compute the results: `arrays` are the leaves and then them, `scalars` and `params` the numbers of a Job."""
        results = arrays[len(self.leaves) :]
        partials = [total.allocate(self.rows, self.cols, self.flat) for total in self.totals]
        bound = self._bind(arrays, scalars, results)
        blocks = self.blocks if self.rows else []
        if self.parallel:
            half = self._half(blocks)
            future = _executor().submit(self._walk, params, bound, blocks[half:], partials, 1)
            try:
                self._walk(params, bound, blocks[:half], partials, 0)
            finally:
                future.result()  # whatever happens: the other walker writes to memory that the next kernel uses
        else:
            self._walk(params, bound, blocks, partials, 0)
        for total, partial in zip(self.totals, partials):
            total.finish(partial, results[total.output])

    def _half(self, blocks: list[tuple[int, int, int, int]]) -> int:
        """Where to split the blocks for two walkers: between the groups of rows that are summed together."""
        span = max([total.chunk_rows * GROUP for total in self.totals if total.by_column], default=0)
        for k in range(len(blocks) // 2, 0, -1):
            if not span or (blocks[k][0] % span == 0 and blocks[k][2] == 0):
                return k
        return len(blocks)

    def _bind(
        self, arrays: Sequence[Data], scalars: Sequence[Any], results: Sequence[Data]
    ) -> list[tuple[int, int, Any]]:
        """(register, layout, data) of every leaf, scalar and output, as the space sees it."""
        bound: list[tuple[int, int, Any]] = []
        shape = (1, self.rows * self.cols) if self.flat else (self.rows, self.cols)
        for (register, layout), data in zip(self.leaves, arrays):
            bound.append((register, layout, self._shaped(data, layout, shape)))
        for (register, _, _, dtype), x in zip(self.scalars, scalars):
            bound.append((register, ONE, _as_scalar(x.value() if type(x) is Live else x, dtype)))
        for (register, layout), data in zip(self.writes, results):
            if register >= 0:
                bound.append((register, layout, self._shaped(data, layout, shape)))
        return bound

    def _shaped(self, data: Data, layout: int, shape: tuple[int, int]) -> Any:
        if layout == FULL:
            return data if data.shape == shape else data.reshape(shape)
        if layout == PER_ROW:
            return (data if data.size == shape[0] else np.broadcast_to(data, self.row_shape)).reshape(shape[0], 1)
        if layout == PER_COLUMN:
            return data.reshape(shape[1])
        if layout == ONE:
            return data.reshape(())
        return Gathered(np.broadcast_to(data, self.space))

    def _walk(
        self,
        params: Sequence[tuple[Any, ...]],
        bound: list[tuple[int, int, Any]],
        blocks: list[tuple[int, int, int, int]],
        partials: list[Data],
        walker: int,
    ) -> None:
        """Compute `blocks`, with the registers and scratch of one walker."""
        registers, shape = self.registers[walker]
        whole = len(self.blocks) == 1
        for register, layout, data in bound:
            if layout == ONE or (whole and layout != STRIDED):
                registers[register] = data
        sliced = [entry for entry in bound if entry[1] == STRIDED or (entry[1] != ONE and not whole)]
        steps = self.steps
        with np.errstate(all="ignore"):
            for r0, r1, c0, c1 in blocks:
                if shape != (r1 - r0, c1 - c0):
                    shape = (r1 - r0, c1 - c0)
                    self._bind_scratch(registers, shape, _scratch[walker])
                for register, layout, data in sliced:
                    if layout == FULL:
                        registers[register] = data[r0:r1, c0:c1]
                    elif layout == PER_ROW:
                        registers[register] = data[r0:r1]
                    elif layout == PER_COLUMN:
                        registers[register] = data[c0:c1]
                    else:
                        registers[register] = data.block(r0, r1, c0, c1)
                for kind, function, a, b, out in steps:
                    if kind == 2:
                        function(registers[a], registers[b], registers[out])
                    elif kind == 1:
                        function(registers[a], registers[out])
                    elif kind == 3:
                        function(*[registers[i] for i in a], registers[out])
                    elif kind == REDUCE:
                        function(registers[a], -1, None, registers[out], True)
                    elif kind == POSITION:
                        function(params[a], r0 * self.cols + c0, registers[out])
                    else:
                        function.add(registers[a], partials[b], r0, c0)
        for register, _, _ in bound:
            registers[register] = None  # no reference may outlive the run
        self.registers[walker] = registers, shape

    def _bind_scratch(self, registers: list[Any], shape: tuple[int, int], pool: dict[int, Data]) -> None:
        size = self.block_rows * self.block_cols * 8
        n = shape[0] * shape[1]
        for register, slot, layout, dtype in self.scratch:
            if layout == PER_ROW:
                registers[register] = np.empty((shape[0], 1), dtype)
            elif layout == PER_COLUMN:
                registers[register] = np.empty(shape[1], dtype)
            elif layout == ONE:
                registers[register] = np.empty((), dtype)
            else:
                memory = pool.get(slot)
                if memory is None or memory.size < size:
                    memory = pool[slot] = np.empty(max(size, BLOCK * 8), np.uint8)
                registers[register] = memory[: n * dtype.itemsize].view(dtype).reshape(shape)


class Gathered:
    """A leaf that is not laid out as the space: its blocks are copied together."""

    def __init__(self, data: Data) -> None:
        self.data = data.reshape(1, -1) if data.ndim == 0 else data[None] if data.ndim == 1 else data
        self.run = self.data.shape[-2]  # rows that one slice can give

    def block(self, r0: int, r1: int, c0: int, c1: int) -> Data:
        """Rows `r0` to `r1` and columns `c0` to `c1`, contiguous."""
        data = self.data
        if data.ndim == 2:
            return np.ascontiguousarray(data[r0:r1, c0:c1])
        out = np.empty((r1 - r0, c1 - c0), data.dtype)
        r = r0
        while r < r1:
            lead, first = divmod(r, self.run)
            count = min(self.run - first, r1 - r)
            index = np.unravel_index(lead, data.shape[:-2])
            out[r - r0 : r - r0 + count] = data[index][first : first + count, c0:c1]
            r += count
        return out


def _after_fork() -> None:
    """A child has none of its parent's threads, and none to give a lock back."""
    global _pool, _lock
    _pool, _lock = None, threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _executor() -> ThreadPoolExecutor:
    global _pool  # made when first needed, so that importing starts no thread
    if _pool is None:
        from concurrent.futures import ThreadPoolExecutor

        _pool = ThreadPoolExecutor(1, thread_name_prefix="gpuad")
    return _pool
