"""Kernels on a GPU: their text compiled once by CuPy's NVRTC, and launched by the driver's own call.

CuPy's RawKernel packs every argument anew.  Here each function has a block of 8-byte slots and the addresses of the
slots, as the driver takes them: a launch writes what changed and makes one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..array import Array
from ..dtype import DType
from ..fuse.emit import emit
from ..fuse.kernel import Kernel, structure
from ..fuse.launch import Emitted, Entry, arguments, chunk_bytes
from ..fuse.prelude import CUDA_FLAGS, CUDA_PRELUDE, c_name

THREADS = 256  # of a block, where it does not matter; where it does, bits depend on it
MOST_BLOCKS = 1 << 16  # of a grid, whose threads go on with what is left
WARP = 32
SHARED = 48 << 10  # bytes of shared memory that a block gets without asking
MOST_SHARED = 96 << 10  # that every GPU from sm_80 on gives when asked
WIDTH = 4  # elements that a thread takes at a time, as the prelude has it
KEPT = 4096  # structures of kernels whose text is kept


@dataclass(frozen=True)
class Geometry:
    """How many blocks of how many threads run an entry: teams of `x` threads, `y` of them in a block."""

    blocks: int
    x: int
    y: int = 1
    shared: int = 0  # bytes of a block


def flat(size: int) -> Geometry:
    """One thread an element, or more elements a thread where there are many."""
    return Geometry(min(max(1, -(-size // THREADS)), MOST_BLOCKS), THREADS)


def geometry(emitted: Emitted, entry: Entry, kernel: Kernel) -> Geometry:
    """How to run `entry`.  How many threads share a row follows from its length alone, and so do its bits."""
    lengths = emitted.lengths(kernel)
    n = lengths[entry.items]
    if entry.items == "one":
        return Geometry(1, THREADS)
    if entry.items in ("size", "cols"):
        return flat(n)
    share = 1
    while share < THREADS and share * WIDTH < lengths["cols"]:
        share *= 2
    scratch = lengths["scratch"] if emitted.scratch or emitted.partials else 0
    if entry.items == "chunks":
        return Geometry(min(max(1, n), MOST_BLOCKS), THREADS, 1, scratch)
    together = 1 if share > WARP else max(1, min(THREADS // share, n, SHARED // max(scratch, 1)))
    return Geometry(min(max(1, -(-n // together)), MOST_BLOCKS), share, together, scratch * together)


class Function:
    """One compiled entry, and the block of its arguments.  Used by one thread at a time, under the device's lock."""

    def __init__(self, kernel: Any, dtypes: Sequence[DType]) -> None:
        self.kernel, self.pointer = kernel, kernel.kernel.ptr
        self.shared = 0  # bytes that it was allowed to have
        self.slots = np.zeros(max(1, len(dtypes)), np.uint64)
        self.values = [self.slots[k : k + 1].view(dtype)[:1] for k, dtype in enumerate(dtypes)]
        self.addresses = self.slots.ctypes.data + 8 * np.arange(self.slots.size, dtype=np.uint64)

    def fill(self, given: Sequence[Any]) -> int:
        """Put `given`, arrays and NumPy scalars, in the block; the address of the block."""
        for value, x in zip(self.values, given, strict=True):
            value[0] = x if isinstance(x, np.generic) else x.data.ptr
        return int(self.addresses.ctypes.data)


class Launcher:
    """What compiles and launches kernels on one device.  Its methods are called inside `device.using()`."""

    def __init__(self, device: Any) -> None:
        self.device = device
        self.modules: dict[str, Any] = {}  # by text
        self.functions: dict[tuple[str, str, str], Function] = {}  # by settings, code and name
        self.fused: dict[tuple[Any, ...], Emitted] = {}  # by structure

    def launch(self, code: str, name: str, given: Sequence[Any], shape: Geometry, settings: str = "") -> None:
        """Run the function `name` of `code` with `given`: arrays and NumPy scalars.

        `settings` are macros that the prelude reads.
        """
        with self.device.lock:
            found = self.functions.get((settings, code, name))
            if found is None:
                found = self.functions[settings, code, name] = self._compiled(settings, code, name, given)
            if shape.shared > max(SHARED, found.shared):
                found.kernel.max_dynamic_shared_size_bytes = found.shared = shape.shared
            driver, stream = self.device.xp.cuda.driver, self.device.stream
            block = (shape.x, shape.y, 1)
            driver.launchKernel(
                found.pointer, shape.blocks, 1, 1, *block, shape.shared, stream.ptr, found.fill(given), 0
            )

    def _compiled(self, settings: str, code: str, name: str, given: Sequence[Any]) -> Function:
        text = settings + CUDA_PRELUDE + code
        module = self.modules.get(text)
        if module is None:
            module = self.modules[text] = self.device.xp.RawModule(code=text, options=CUDA_FLAGS)
        pointer: DType = np.dtype(np.uint64)
        return Function(module.get_function(name), [x.dtype if isinstance(x, np.generic) else pointer for x in given])

    def run(self, kernel: Kernel) -> None:
        """Compute the outputs of a fused kernel."""
        key = structure(kernel)
        emitted = self.fused.get(key)
        if emitted is None:
            if len(self.fused) >= KEPT:
                self.fused.clear()
            emitted = self.fused[key] = emit(kernel)
        held: list[Array] = [
            self.device.allocate((n,), dtype, "workspace") for n, dtype in emitted.partial_sizes(kernel)
        ]
        memory = [a.data for a in held]
        for entry in emitted.entries:
            shape, settings = geometry(emitted, entry, kernel), ""
            if shape.shared > MOST_SHARED:  # rows too long to collect their columns there
                shape = replace(shape, shared=chunk_bytes(emitted.partials))
                settings = "#define COLUMNS_IN_SHARED 0\n"
            self.launch(emitted.code, entry.name, arguments(emitted, entry, kernel, memory), shape, settings)


def for_dtype(text: str, dtype: DType) -> str:
    """`text`, in which T stands for an element of `dtype`."""
    return f"using T = {c_name(dtype)};\n{text}"
