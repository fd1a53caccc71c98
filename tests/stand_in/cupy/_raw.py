"""The stand-in's RawModule and RawKernel: text that the host's compiler makes run."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from stand_in import compiler

from ._array import ndarray
from .cuda import driver, runtime, stream
from .cuda.compiler import CompileException
from .cuda.function import Function, Module


class RawModule:
    """A text with its entries; it is compiled when the first one is asked for."""

    def __init__(
        self,
        code: str | None = None,
        *,
        path: str | None = None,
        options: tuple[str, ...] = (),
        backend: str = "nvrtc",
        translate_cucomplex: bool = False,
        enable_cooperative_groups: bool = False,
        name_expressions: Sequence[str] | None = None,
        jitify: bool | None = None,
    ) -> None:
        if (code is None) == (path is None):
            raise TypeError("Exactly one of `code` and `path` keyword arguments must be given.")
        if code is None or backend != "nvrtc" or translate_cucomplex or enable_cooperative_groups or jitify:
            raise NotImplementedError("the stand-in compiles plain code, given as code=")
        if not isinstance(options, tuple):
            raise TypeError(f"Argument 'options' has incorrect type (expected tuple, got {type(options).__name__})")
        self.code, self.options, self.backend, self.file_path = code, options, backend, path
        self.name_expressions = tuple(name_expressions) if name_expressions else None

    @property
    def module(self) -> Module:
        """The module, compiled."""
        made = Module()
        try:
            made._entries = compiler.entries(self.code, self.options, self.name_expressions or ())
        except compiler.CompileError as error:
            raise CompileException(str(error), self.code, "kernel.cu", self.options) from None
        return made

    def compile(self, log_stream: Any = None) -> None:
        self.module

    def get_function(self, name: str) -> RawKernel:
        kernel = RawKernel(self.code, name, self.options, self.backend)
        kernel._module = self
        kernel.kernel  # raises now where there is none of that name
        return kernel


class RawKernel:
    """One entry of a text."""

    def __init__(
        self,
        code: str,
        name: str,
        options: tuple[str, ...] = (),
        backend: str = "nvrtc",
        translate_cucomplex: bool = False,
        *,
        enable_cooperative_groups: bool = False,
        jitify: bool | None = None,
    ) -> None:
        self.code, self.name, self.options, self.backend = code, name, options, backend
        self._module = RawModule(
            code=code,
            options=options,
            backend=backend,
            translate_cucomplex=translate_cucomplex,
            enable_cooperative_groups=enable_cooperative_groups,
            jitify=jitify,
        )

    @property
    def kernel(self) -> Function:
        return self._module.module.get_function(self.name)

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        return driver.funcGetAttribute(driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, self.kernel.ptr)

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, bytes: int) -> None:
        driver.funcSetAttribute(self.kernel.ptr, driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, bytes)

    @property
    def attributes(self) -> dict[str, int]:
        """What CuPy tells of a kernel, where the host's compiler knows it; registers are those of a small kernel."""
        return {
            "max_threads_per_block": 1024,
            "shared_size_bytes": 0,
            "const_size_bytes": 0,
            "local_size_bytes": 0,
            "num_regs": 32,
            "ptx_version": 90,
            "binary_version": 90,
            "cache_mode_ca": 0,
            "max_dynamic_shared_size_bytes": self.max_dynamic_shared_size_bytes,
            "preferred_shared_memory_carveout": -1,
        }

    def compile(self, log_stream: Any = None) -> None:
        self.kernel

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: Sequence[Any], *, shared_mem: int = 0
    ) -> None:
        held = [_argument(value) for value in args]
        addresses = (ctypes.c_void_p * len(held))(*[data.ctypes.data for data in held])
        gx, gy, gz = (*grid, 1, 1)[:3]
        bx, by, bz = (*block, 1, 1)[:3]
        here = stream.get_current_stream().ptr
        params = ctypes.addressof(addresses)
        driver.launchKernel(self.kernel.ptr, gx, gy, gz, bx, by, bz, shared_mem, here, params, 0)


def _argument(value: Any) -> np.ndarray:
    """The bytes of an argument, as CuPy would pass them."""
    if isinstance(value, ndarray):
        return np.array([value.data.ptr], np.uintp)
    if isinstance(value, np.generic):
        return np.array([value])
    kinds = {bool: np.bool_, int: np.int64, float: np.float64}
    if type(value) not in kinds:
        raise TypeError(f"Unsupported type {type(value)}")
    return np.array([value], kinds[type(value)])


def is_available() -> bool:
    return runtime.getDeviceCount() > 0
