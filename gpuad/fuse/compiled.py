"""The compiled engine: kernels as machine code of the host, made from their emitted text.

A Program belongs to a structure: it has the entries' addresses and a block of 8-byte slots in which lengths and strides
stand already; a run writes the addresses of its arrays and its scalars, and calls.
"""

from __future__ import annotations

import ctypes
from dataclasses import replace
from typing import Any

import numpy as np

from ..dtype import DType
from . import threads
from .compiler import CompilerError, library
from .emit import emit
from .kernel import Kernel, structure
from .launch import Emitted, Entry, Parameter, arguments, value_of
from .prelude import HOST_PRELUDE, c_name

GRAIN = 32768  # elements that a thread takes at a time, or one row or chunk if that has more
KEPT = 1 << 20  # bytes of partial results that a program keeps; more are allocated for each run
DRAWN = 16  # elements of a group for which random numbers are drawn together: one block has 16 of 16 bits
ALONE = 1 << 18  # element operations up to which one thread does not call the others
FLOAT32: DType = np.dtype(np.float32)

_programs: dict[tuple[Any, ...], Program | CompilerError] = {}  # cache, cleared when it outgrows MAX_PROGRAMS
MAX_PROGRAMS = 8192
_functions: dict[str, list[int]] = {}  # the addresses of the entries of each code


def run(kernel: Kernel) -> None:
    """Compute the outputs of `kernel` into its `results`.  The caller holds the device's lock.

    Raises a CompilerError where the compiler refuses the kernel's text.
    """
    key = structure(kernel)
    program = _programs.get(key)
    if program is None:
        if len(_programs) >= MAX_PROGRAMS:
            _programs.clear()
        try:
            program = Program(kernel)
        except CompilerError as error:
            if error.passing:
                raise
            program = error
        _programs[key] = program
    if isinstance(program, CompilerError):  # each time, without asking the compiler again
        raise program
    program.run(kernel)


class Program:
    """A kernel of one structure, ready to run."""

    def __init__(self, kernel: Kernel) -> None:
        emitted = emit(kernel)
        addresses = _functions.get(emitted.code)
        if addresses is None:
            addresses = _functions[emitted.code] = _compiled(emitted)
        self.partials = emitted.partial_sizes(kernel)
        memory = [np.empty(n, dtype) for n, dtype in self.partials]
        self.keeps = sum(m.nbytes for m in memory) <= KEPT
        work = kernel.rows * kernel.cols * (1 + len(kernel.nodes))
        many = threads.count() if work > ALONE else 1
        scratch = emitted.scratch_bytes(kernel.cols, shared=False)
        entries = emitted.entries
        if emitted.partials and emitted.lengths(kernel)["chunks"] == 1:  # the partial results are the results
            entries = (replace(entries[0], parameters=_without_partials(kernel, entries)),)
        self.calls = [
            Call(address, entry, emitted, kernel, memory, many, scratch)
            for address, entry in zip(addresses, entries, strict=False)
        ]

    def run(self, kernel: Kernel) -> None:
        """Compute the results of `kernel`, which has this structure."""
        memory = None if self.keeps else [np.empty(n, dtype) for n, dtype in self.partials]
        for call in self.calls:
            call(kernel, memory)


def _without_partials(kernel: Kernel, entries: tuple[Entry, ...]) -> tuple[Parameter, ...]:
    """The parameters of the first entry, where those of partial results are the outputs of the second."""
    outputs = [p for p in entries[1].parameters if p.kind == "output"]  # in the order of the partial results
    return tuple([outputs[p.index] if p.kind == "partial" else p for p in entries[0].parameters])


class Call:
    """One entry with its slots."""

    def __init__(
        self, address: int, entry: Entry, emitted: Emitted, kernel: Kernel, memory: list[Any], many: int, scratch: int
    ) -> None:
        self.address, self.threads, self.scratch, self.memory = address, many, scratch, memory
        self.partials: list[tuple[int, int]] = []
        slots = bytearray(8 * len(entry.parameters))
        self.words, self.floats = memoryview(slots).cast("q"), memoryview(slots).cast("f")
        self.place = ctypes.addressof(ctypes.c_char.from_buffer(slots)) if slots else 0
        self.leaves: list[tuple[int, int]] = []
        self.outputs: list[tuple[int, int]] = []
        self.scalars: list[tuple[int, Parameter]] = []
        given = arguments(emitted, entry, kernel, memory)
        for slot, (p, value) in enumerate(zip(entry.parameters, given, strict=True)):
            if p.kind == "leaf":
                self.leaves.append((slot, p.index))
            elif p.kind == "output":
                self.outputs.append((slot, p.index))
            elif p.kind in ("scalar", "param"):
                self.scalars.append((slot, p))
            elif p.kind in ("partial", "partials"):
                self.partials.append((slot, p.index))
                self.words[slot] = value.ctypes.data
            else:
                self.words[slot] = int(value)
        lengths = emitted.lengths(kernel)
        self.items = lengths[entry.items]
        each = {"size": 1, "rows": kernel.cols, "chunks": kernel.rows * kernel.cols // max(lengths["chunks"], 1)}
        self.grain = max(1, GRAIN // max(each.get(entry.items, 1), 1))

    def __call__(self, kernel: Kernel, memory: list[Any] | None) -> None:
        words, leaves, results = self.words, kernel.leaves, kernel.results
        for slot, k in self.leaves:
            words[slot] = leaves[k].data.__array_interface__["data"][0]
        for slot, k in self.outputs:
            words[slot] = results[k].__array_interface__["data"][0]
        if memory is not None:
            self.memory = []  # what the slots were made with
            for slot, k in self.partials:
                words[slot] = memory[k].ctypes.data
        if self.scalars:
            with np.errstate(all="ignore"):
                for slot, p in self.scalars:
                    self._scalar(slot, p, kernel)
        threads.run(self.address, self.place, self.items, self.grain, self.scratch, self.threads)

    def _scalar(self, slot: int, p: Parameter, kernel: Kernel) -> None:
        """Put the value of a scalar parameter in its slot."""
        value = value_of(p, kernel)
        if value.dtype == FLOAT32:
            self.floats[2 * slot] = value
        else:
            self.words[slot] = int.from_bytes(value.tobytes().ljust(8, b"\0"), "little", signed=True)


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
