"""Functions of one value a row, compiled, for kernels that NumPy runs: with the bits that the compiled engine gives."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from ..dtype import DType
from .compiler import library
from .lines import substitute
from .prelude import HOST_PRELUDE, c_name


def compiled(op: Any, operands: tuple[DType, ...], result: DType) -> Callable[..., Any]:
    """`function(*arrays, out)` that computes `op`: arrays of these dtypes, [rows, 1] or of one element."""
    return _function(op.cuda, tuple(op.inputs), operands, result)


@functools.cache
def _function(
    expression: str, names: tuple[str, ...], operands: tuple[DType, ...], result: DType
) -> Callable[..., Any]:
    reads = {name: f"{name}[i * {name}_step]" for name in names}
    pairs = zip(names, operands, strict=True)
    declared = [f"const {c_name(dtype)}* {name}, int64 {name}_step" for name, dtype in pairs]
    computed = substitute(expression, {"T": c_name(operands[-1]), **reads})
    text = (
        f"KERNEL function({', '.join(declared)}, {c_name(result)}* out, int64 n) {{\n"
        f"    for (int64 i = 0; i < n; ++i) out[i] = {computed};\n}}\n"
    )
    entry = library(HOST_PRELUDE + text).function
    entry.restype = None

    def call(*arrays: Any) -> None:
        *given, out = arrays
        flat = [np.ascontiguousarray(x) for x in given]
        words: list[Any] = []
        for x in flat:
            words += [ctypes.c_void_p(x.ctypes.data), ctypes.c_int64(0 if x.size == 1 else 1)]
        entry(*words, ctypes.c_void_p(out.ctypes.data), ctypes.c_int64(out.size))

    return call
