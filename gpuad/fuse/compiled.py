"""The compiled engine: kernels as machine code of the host, made from their emitted text.

A Program belongs to a structure: it has the entries' addresses and a block of 8-byte slots in which lengths and strides
stand already; a Job writes the addresses of its arrays and its numbers, and calls.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from ..array import Array
from ..dtype import DType
from ..recording import Live, suspended
from . import threads
from .compiler import CompilerError, library
from .emit import emit
from .kernel import Kernel, structure
from .launch import Emitted, Entry, Parameter, arguments, cast, number_of
from .prelude import HOST_PRELUDE, c_name

GRAIN = 32768  # elements that a thread takes at a time, or one row or chunk if that has more
KEPT = 1 << 20  # bytes of partial results that a program keeps; more are allocated for each run
DRAWN = 16  # elements of a group for which random numbers are drawn together: one block has 16 of 16 bits
ALONE = 1 << 18  # element operations up to which one thread does not call the others
FLOAT32: DType = np.dtype(np.float32)

Number: TypeAlias = tuple[int, Any, tuple[DType, ...]]  # slot, value, and the dtypes it is cast to in turn

_programs: dict[tuple[Any, ...], Program | CompilerError] = {}  # cache, cleared when it outgrows MAX_PROGRAMS
MAX_PROGRAMS = 8192
_functions: dict[str, list[int]] = {}  # the addresses of the entries of each code


def job(kernel: Kernel) -> Job:
    """What computes the outputs of `kernel`: called under the device's lock, with the leaves' data and the results.

    Raises a CompilerError where the compiler refuses the kernel's text.
    """
    key = structure(kernel)
    program = _programs.get(key)
    if program is None:
        if len(_programs) >= MAX_PROGRAMS:
            _programs.clear()
        try:
            program = Program(kernel)
            program.label = hash(key)
        except CompilerError as error:
            if error.passing:
                raise
            program = error
        _programs[key] = program
    if isinstance(program, CompilerError):  # each time, without asking the compiler again
        raise program
    return Job(program, kernel)


class Program:
    """A kernel of one structure, ready to run."""

    label = 0  # the same for programs of the same structure

    def __init__(self, kernel: Kernel) -> None:
        emitted = emit(kernel)
        addresses = _functions.get(emitted.code)
        if addresses is None:
            addresses = _functions[emitted.code] = _compiled(emitted)
        self.partials, self.device = emitted.partial_sizes(kernel), kernel.nodes[0].device
        with suspended():
            memory = self.memory()
        self.kept = memory if keeps(self.partials) else None
        work = kernel.rows * kernel.cols * (1 + len(kernel.nodes))
        many = threads.count() if work > ALONE else 1
        scratch = emitted.scratch_bytes(kernel.cols, shared=False)
        entries = emitted.entries
        if emitted.partials and emitted.lengths(kernel)["chunks"] == 1:  # the partial results are the results
            entries = (replace(entries[0], parameters=_without_partials(kernel, entries)),)
        self.calls = [
            Call(address, entry, emitted, kernel, [m.data for m in memory], many, scratch)
            for address, entry in zip(addresses, entries, strict=False)
        ]

    def memory(self) -> list[Array]:
        """Memory for the partial results of one run."""
        return [self.device.allocate((n,), dtype, "workspace") for n, dtype in self.partials]


def keeps(partials: Sequence[tuple[int, DType]]) -> bool:
    """Does a program keep memory for partial results of these lengths, because it is little?"""
    return sum(n * dtype.itemsize for n, dtype in partials) <= KEPT


class Job:
    """A program with the numbers of one kernel."""

    __slots__ = ("numbers", "program")

    def __init__(self, program: Program, kernel: Kernel) -> None:
        self.program = program
        self.numbers = [[(slot, *number_of(p, kernel)) for slot, p in call.scalars] for call in program.calls]

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells the job from another: the program, and the numbers that are not live."""
        fixed = [[(slot, type(x) if type(x) is Live else x) for slot, x, _ in numbers] for numbers in self.numbers]
        return self.program.label, str(fixed)

    def __call__(self, *arrays: Any) -> None:
        addresses = [x.__array_interface__["data"][0] for x in arrays]
        partials = self.program.memory() if self.program.kept is None else None
        for call, numbers in zip(self.program.calls, self.numbers):
            if partials is not None:
                call.point(partials)
            call.fill(addresses, numbers)
            call.run(call.place)

    def bound(self, *arrays: Any) -> Callable[[], None]:
        """The same for these arrays alone, whose memory the caller keeps: with slots of its own, ready to be read."""
        addresses = [x.__array_interface__["data"][0] for x in arrays]
        partials = self.program.memory()
        calls = []
        for call, numbers in zip(self.program.calls, self.numbers, strict=True):
            own = call.copied()
            own.point(partials)
            own.fill(addresses, numbers)
            calls.append((own, [entry for entry in numbers if type(entry[1]) is Live], partials))

        def again() -> None:
            for call, live, _ in calls:
                if live:
                    call.put(live)
                call.run(call.place)

        return again


def _without_partials(kernel: Kernel, entries: tuple[Entry, ...]) -> tuple[Parameter, ...]:
    """The parameters of the first entry, where those of partial results are the outputs of the second."""
    outputs = [p for p in entries[1].parameters if p.kind == "output"]  # in the order of the partial results
    return tuple([outputs[p.index] if p.kind == "partial" else p for p in entries[0].parameters])


class Call:
    """One entry with its slots."""

    def __init__(
        self, address: int, entry: Entry, emitted: Emitted, kernel: Kernel, memory: list[Any], many: int, scratch: int
    ) -> None:
        self.pointers: list[tuple[int, int]] = []  # (slot, number) of each leaf, and of each result after the leaves
        self.partials: list[tuple[int, int]] = []
        self.scalars: list[tuple[int, Parameter]] = []
        self._over(bytearray(8 * len(entry.parameters)))
        given = arguments(emitted, entry, kernel, memory)
        for slot, (p, value) in enumerate(zip(entry.parameters, given, strict=True)):
            if p.kind == "leaf":
                self.pointers.append((slot, p.index))
            elif p.kind == "output":
                self.pointers.append((slot, len(kernel.leaves) + p.index))
            elif p.kind in ("scalar", "param"):
                self.scalars.append((slot, p))
            elif p.kind in ("partial", "partials"):
                self.partials.append((slot, p.index))
                self.words[slot] = value.ctypes.data
            else:
                self.words[slot] = int(value)
        lengths = emitted.lengths(kernel)
        items = lengths[entry.items]
        each = {"size": 1, "rows": kernel.cols, "chunks": kernel.rows * kernel.cols // max(lengths["chunks"], 1)}
        self.entry, self.shares = address, (items, max(1, GRAIN // max(each.get(entry.items, 1), 1)), scratch, many)

    def _over(self, slots: bytearray) -> None:
        self.slots = slots
        self.words, self.floats = memoryview(slots).cast("q"), memoryview(slots).cast("f")
        self.place = ctypes.addressof(ctypes.c_char.from_buffer(slots)) if slots else 0

    def copied(self) -> Call:
        """The same with slots of its own."""
        twin = copy(self)
        twin._over(bytearray(self.slots))
        return twin

    def point(self, partials: Sequence[Array]) -> None:
        """Put the addresses of partial results in their slots."""
        for slot, k in self.partials:
            self.words[slot] = partials[k].data.ctypes.data

    def fill(self, addresses: Sequence[int], numbers: Sequence[Number]) -> None:
        """Put the addresses of leaves and results, and numbers, in their slots."""
        words = self.words
        for slot, k in self.pointers:
            words[slot] = addresses[k]
        if numbers:
            self.put(numbers)

    def put(self, numbers: Sequence[Number]) -> None:
        """Put numbers in their slots."""
        with np.errstate(all="ignore"):
            for slot, x, dtypes in numbers:
                value = cast(x, dtypes)
                if value.dtype == FLOAT32:
                    self.floats[2 * slot] = value
                else:
                    self.words[slot] = int.from_bytes(value.tobytes().ljust(8, b"\0"), "little", signed=True)

    def run(self, place: int) -> None:
        """Call the entry, with the slots at an address."""
        threads.run(self.entry, place, *self.shares)


def _compiled(emitted: Emitted) -> list[int]:
    """The addresses of the entries of a text, compiled."""
    made = library(host_text(emitted))
    return [ctypes.cast(getattr(made, f"{entry.name}_items"), ctypes.c_void_p).value or 0 for entry in emitted.entries]


def host_text(emitted: Emitted) -> str:
    """What the compiler gets of a kernel."""
    groups = f"#define WIDTH {DRAWN}\n" if emitted.draws else ""
    return groups + HOST_PRELUDE + emitted.code + "".join(map(door, emitted.entries))


def door(entry: Entry) -> str:
    """The function through which an entry is called: it takes all arguments from slots."""
    given = ", ".join(_from_slot(k, p) for k, p in enumerate(entry.parameters))
    return (
        f'\nextern "C" void {entry.name}_items(const Slot* slots, int64 first, int64 last, unsigned char* scratch) {{\n'
        f"    {entry.name}({given}, {{first, last, scratch}});\n}}\n"
    )


def _from_slot(k: int, p: Parameter) -> str:
    if p.kind in ("leaf", "partials", "output", "partial"):
        return f"({p.declaration.removesuffix(p.name).strip()})slots[{k}].p"
    member = {"float": "f", "double": "d", "bool": "b", "uint64": "u"}.get(c_name(p.dtype), "i")
    return f"slots[{k}].{member}"
