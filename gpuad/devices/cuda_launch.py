"""Kernels on a GPU: their text compiled once by CuPy's NVRTC, and launched by the driver's own call.

CuPy's RawKernel packs every argument anew.  Here each function has a block of 8-byte slots and the addresses of the
slots, as the driver takes them: a launch writes what changed and makes one call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import numpy as np

from ..array import Array
from ..dtype import DType
from ..fuse.emit import emit
from ..fuse.geometry import SHARED, Geometry, flat, geometry, width_of, without_columns
from ..fuse.kernel import Kernel, structure
from ..fuse.launch import Emitted, Entry, Unread, cast, filled, numbers
from ..fuse.prelude import CUDA_FLAGS, CUDA_PRELUDE, c_name

MOST_SHARED = 96 << 10  # bytes of shared memory that every GPU from sm_80 on gives a block when asked
KEPT = 4096  # structures of kernels whose text is kept


class Function:
    """One compiled entry, and the block of its arguments.  Used by one thread at a time, under the device's lock."""

    def __init__(self, kernel: Any, dtypes: Sequence[DType]) -> None:
        self.kernel, self.pointer = kernel, kernel.kernel.ptr
        self.shared = 0  # bytes that it was allowed to have
        self.dtypes = dtypes
        self._make_block()

    def _make_block(self) -> None:
        self.slots = np.zeros(max(1, len(self.dtypes)), np.uint64)
        self.values = [self.slots[k : k + 1].view(dtype)[:1] for k, dtype in enumerate(self.dtypes)]
        self.addresses = self.slots.ctypes.data + 8 * np.arange(self.slots.size, dtype=np.uint64)
        self.block = int(self.addresses.ctypes.data)

    def copied(self) -> Function:
        """The same with a block of its own."""
        twin = copy(self)
        twin._make_block()
        return twin

    def fill(self, given: Sequence[Any]) -> None:
        """Put `given`, arrays and NumPy scalars, in the block."""
        for value, x in zip(self.values, given, strict=True):
            value[0] = x if isinstance(x, np.generic) else x.data.ptr


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
            function = self.function(code, name, given, shape, macros)
            function.fill(given)
            self.call(function, shape)

    def function(self, code: str, name: str, given: Sequence[Any], shape: Geometry, macros: str) -> Function:
        """The function `name` of `code`, compiled, for arguments of the dtypes of `given`."""
        found = self.functions.get((macros, code, name))
        if found is None:
            found = self.functions[macros, code, name] = self._compiled(macros, code, name, given)
        if shape.shared > max(SHARED, found.shared):
            found.kernel.max_dynamic_shared_size_bytes = found.shared = shape.shared
        return found

    def call(self, function: Function, shape: Geometry) -> None:
        """Run a compiled function, whose block is filled."""
        driver, stream = self.device.xp.cuda.driver, self.device.stream
        grid, block = (shape.blocks, shape.layers, 1), (shape.x, shape.y, 1)
        driver.launchKernel(function.pointer, *grid, *block, shape.shared, stream.ptr, function.block, 0)

    def _compiled(self, macros: str, code: str, name: str, given: Sequence[Any]) -> Function:
        text = macros + CUDA_PRELUDE + code
        module = self.modules.get(text)
        if module is None:
            module = self.modules[text] = self.device.xp.RawModule(code=text, options=CUDA_FLAGS)
        pointer: DType = np.dtype(np.uint64)
        return Function(module.get_function(name), [x.dtype if isinstance(x, np.generic) else pointer for x in given])

    def job(self, kernel: Kernel) -> Job:
        """What computes the outputs of a fused kernel: called with the leaves' data and the results."""
        key = structure(kernel)
        emitted = self.fused.get(key)
        if emitted is None:
            if len(self.fused) >= KEPT:
                self.fused.clear()
            emitted = self.fused[key] = emit(kernel)
        return Job(self, emitted, kernel)


class Job:
    """The launches of one kernel, without its arrays."""

    def __init__(self, launcher: Launcher, emitted: Emitted, kernel: Kernel) -> None:
        self.launcher, self.leaves = launcher, len(kernel.leaves)
        self.partials = emitted.partial_sizes(kernel)
        self.code, self.macros = emitted.code, settings(emitted, kernel)
        self.steps: list[tuple[Entry, list[Any], Geometry]] = []
        for entry in emitted.entries:
            shape = geometry(emitted, entry, kernel)
            if emitted.by_column and _columns_are_too_long(emitted, kernel):
                shape = without_columns(emitted, shape)
            self.steps.append((entry, numbers(emitted, entry, kernel), shape))

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells the job from another: the text, and the numbers that are not live."""
        return self.code, str([[type(x) if type(x) is Unread else x for x in given] for _, given, _ in self.steps])

    def __call__(self, *arrays: Any) -> None:
        memory = self._memory()
        for entry, given, shape in self.steps:
            full = filled(entry, given, arrays, self.leaves, [m.data for m in memory])
            self.launcher.launch(self.code, entry.name, full, shape, self.macros)

    def bound(self, *arrays: Any) -> Callable[[], None]:
        """The same for these arrays alone, whose memory the caller keeps, ready to be launched."""
        memory, calls = self._memory(), []
        for entry, given, shape in self.steps:
            full = filled(entry, given, arrays, self.leaves, [m.data for m in memory])
            function = self.launcher.function(self.code, entry.name, full, shape, self.macros).copied()
            function.fill(full)
            calls.append((function, [(k, x) for k, x in enumerate(given) if type(x) is Unread], shape, memory))

        def again() -> None:
            for function, unread, shape, _ in calls:
                for k, x in unread:
                    function.values[k][0] = cast(x.live, x.dtypes)
                self.launcher.call(function, shape)

        return again

    def _memory(self) -> list[Array]:
        return [self.launcher.device.allocate((n,), dtype, "workspace") for n, dtype in self.partials]


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
