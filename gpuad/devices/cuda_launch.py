"""Kernels on a GPU: their text compiled once by CuPy's NVRTC, and launched by the driver's own call.

CuPy's RawKernel packs every argument anew.  Here each function has a block of 8-byte slots and the addresses of the
slots, as the driver takes them: a launch writes what changed and makes one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..array import Array
from ..dtype import DType
from ..fuse.emit import emit
from ..fuse.geometry import SHARED, Geometry, flat, geometry, width_of, without_columns
from ..fuse.kernel import Kernel, structure
from ..fuse.launch import Emitted, arguments
from ..fuse.prelude import CUDA_FLAGS, CUDA_PRELUDE, c_name

MOST_SHARED = 96 << 10  # bytes of shared memory that every GPU from sm_80 on gives a block when asked
KEPT = 4096  # structures of kernels whose text is kept


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
        self.functions: dict[tuple[str, str, str], Function] = {}  # by macros, code and name
        self.fused: dict[tuple[Any, ...], Emitted] = {}  # by structure

    def launch(self, code: str, name: str, given: Sequence[Any], shape: Geometry, macros: str = "") -> None:
        """Run the function `name` of `code` with `given`: arrays and NumPy scalars.

        `macros` stand before the prelude, which reads them.
        """
        with self.device.lock:
            found = self.functions.get((macros, code, name))
            if found is None:
                found = self.functions[macros, code, name] = self._compiled(macros, code, name, given)
            if shape.shared > max(SHARED, found.shared):
                found.kernel.max_dynamic_shared_size_bytes = found.shared = shape.shared
            driver, stream = self.device.xp.cuda.driver, self.device.stream
            block = (shape.x, shape.y, 1)
            driver.launchKernel(
                found.pointer, shape.blocks, shape.layers, 1, *block, shape.shared, stream.ptr, found.fill(given), 0
            )

    def _compiled(self, macros: str, code: str, name: str, given: Sequence[Any]) -> Function:
        text = macros + CUDA_PRELUDE + code
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
            shape, given = geometry(emitted, entry, kernel), arguments(emitted, entry, kernel, memory)
            if emitted.by_column and _columns_are_too_long(emitted, kernel):
                shape = without_columns(emitted, shape)
            self.launch(emitted.code, entry.name, given, shape, settings(emitted, kernel))


def settings(emitted: Emitted, kernel: Kernel) -> str:
    """The macros that stand before the text of a kernel: the elements of a group, and where sums over columns are."""
    lines = f"#define WIDTH {width_of(emitted, kernel)}\n"
    return lines + "#define COLUMNS_IN_SHARED 0\n" * _columns_are_too_long(emitted, kernel)


def _columns_are_too_long(emitted: Emitted, kernel: Kernel) -> bool:
    return emitted.by_column and emitted.scratch_bytes(kernel.cols, shared=True) > MOST_SHARED


def for_dtype(text: str, dtype: DType) -> str:
    """`text`, in which T stands for an element of `dtype`."""
    return f"using T = {c_name(dtype)};\n{text}"


__all__ = ["Geometry", "Launcher", "flat", "for_dtype", "settings"]
