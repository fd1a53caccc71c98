"""A head's losses and gradients on a GPU, a chunk of rows at a time: products by cuBLAS around `kernels/head.cu`.

Rows and weight are CuPy's, [rows, features] and [classes, features], float32, float16 or bfloat16.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from ..dtype import DType
from ..fuse.geometry import Geometry
from ..fuse.prelude import c_name
from ..fuse.sources import source
from .words import as_words

TYPES = {"float32": 0, "float16": 2, "bfloat16": 14}  # cudaDataType
VECTOR = 16  # bytes that rows of logits begin at a multiple of
THREADS = 512
_ONE, _ZERO = np.ones(1, np.float32), np.zeros(1, np.float32)  # factors, which cuBLAS reads on the host


def takes(x: Any, weight: Any) -> bool:
    """Is the kernel for arrays of these shapes and dtypes?"""
    return x.dtype.name in TYPES and x.dtype == weight.dtype and min(*weight.shape) > 0


@functools.cache
def text(dtype: DType, index: DType) -> str:
    """What follows the prelude."""
    return f"#define T {c_name(dtype)}\n#define INDEX {c_name(index)}\n" + source("head.cu")


class Head:
    """What runs on one device.  `run` is called inside `device.using()`."""

    def __init__(self, device: Any) -> None:
        self.device = device

    def pitch(self, classes: int, dtype: DType) -> int:
        """Elements from a row of logits to the next, so that all begin at a multiple of 16 bytes."""
        step = VECTOR // dtype.itemsize
        return -(-classes // step) * step

    def run(
        self,
        x: Any,
        weight: Any,
        targets: Any,
        logits: Any,
        losses: Any,
        dx: Any,
        dweight: Any,
        *,
        ignored: int,
        smoothing: float,
    ) -> None:
        """Write the loss of each row, and the gradients of their sum to `dx` and `dweight` where these have elements.

        `targets` are int32 or int64; `logits`, [rows of a chunk, pitch], is room for a chunk.  `losses` and `dweight`
        are float32, and `dweight` adds up the chunks in their order.
        """
        device, xp = self.device, self.device.xp
        x, weight, targets = _contiguous(device, x), _contiguous(device, weight), xp.ascontiguousarray(targets)
        (rows, features), classes, (chunk, pitch) = x.shape, weight.shape[0], logits.shape
        one, error = xp.ones(1, np.float32), device.checks.memory().data
        sizes = [np.int32(classes), np.int64(ignored), np.float32(smoothing)]
        if dweight.size and not rows:
            dweight.fill(0)
        for start in range(0, rows, chunk):
            stop = min(rows, start + chunk)
            part, n = x[start:stop], stop - start
            self._multiply((1, 0, classes, n, features), weight, features, part, features, logits, pitch)
            given = [logits, np.int64(pitch), targets[start:stop], losses[start:stop], one, error, *sizes]
            device.launcher.launch(text(x.dtype, targets.dtype), "cross_entropy_in_place", given, Geometry(n, THREADS))
            if dx.size:
                result = dx[start:stop]
                self._multiply((0, 0, features, n, classes), weight, features, logits, pitch, result, features)
            if dweight.size:
                shape = (0, 1, features, classes, n)
                self._multiply(shape, part, features, logits, pitch, dweight, features, add=start > 0)

    def _multiply(
        self,
        shape: tuple[int, ...],
        a: Any,
        a_pitch: int,
        b: Any,
        b_pitch: int,
        out: Any,
        out_pitch: int,
        add: bool = False,
    ) -> None:
        """out = a b, or out += a b, for matrices that lie by columns, which for cuBLAS all do: ours, turned.

        `shape` says whether a and b are to be turned, the rows and columns of the result, and how many products are
        added up, in float32.
        """
        cuda, cublas = self.device.xp.cuda, self.device.xp.cuda.cublas
        one, kept = _ONE.ctypes.data, (_ONE if add else _ZERO).ctypes.data
        left = one, a.data.ptr, TYPES[a.dtype.name], a_pitch
        right = b.data.ptr, TYPES[b.dtype.name], b_pitch
        result = kept, out.data.ptr, TYPES[out.dtype.name], out_pitch
        handle, compute = cuda.get_cublas_handle(), cublas.CUBLAS_COMPUTE_32F
        cublas.gemmEx(handle, *shape, *left, *right, *result, compute, cublas.CUBLAS_GEMM_DEFAULT)


def _contiguous(device: Any, x: Any) -> Any:
    """`x`, or a copy of it whose elements lie in order."""
    if x.flags.c_contiguous:
        return x
    copy = device.allocate(x.shape, x.dtype, "workspace").data
    as_words(copy)[...] = as_words(x)
    return copy
