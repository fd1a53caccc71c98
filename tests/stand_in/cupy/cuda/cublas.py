"""The stand-in's `cupy.cuda.cublas`: products of matrices that lie column by column, at raw addresses."""

from __future__ import annotations

import ctypes

import ml_dtypes
import numpy as np

from stand_in import guarded
from stand_in.compiler import KernelError

CUBLAS_OP_N, CUBLAS_OP_T, CUBLAS_OP_C = range(3)
CUBLAS_DEFAULT_MATH, CUBLAS_TENSOR_OP_MATH, CUBLAS_PEDANTIC_MATH, CUBLAS_TF32_TENSOR_OP_MATH = range(4)
CUBLAS_GEMM_DEFAULT, CUBLAS_GEMM_DEFAULT_TENSOR_OP = -1, 99
CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_PEDANTIC, CUBLAS_COMPUTE_32F_FAST_TF32, CUBLAS_COMPUTE_64F = 68, 69, 77, 70

_DTYPES = {0: np.dtype("f4"), 1: np.dtype("f8"), 2: np.dtype("f2"), 14: np.dtype(ml_dtypes.bfloat16)}
_WIDE = {0: np.float32, 68: np.float32, 69: np.float32, 77: np.float32, 1: np.float64, 70: np.float64}
_math_modes: dict[int, int] = {}  # the setting of each handle


def setMathMode(handle: int, mode: int) -> None:
    _math_modes[handle] = mode


def getMathMode(handle: int) -> int:
    return _math_modes.get(handle, CUBLAS_DEFAULT_MATH)


def _matrices(
    address: int, dtype: np.dtype, rows: int, columns: int, leading: int, stride: int, count: int
) -> np.ndarray:
    """[count, rows, columns] at `address`; a column begins every `leading` elements, a matrix every `stride`."""
    if rows <= 0 or columns <= 0 or leading < rows:
        raise ValueError(f"cuBLAS refuses {rows} x {columns} with a leading dimension of {leading}")
    nbytes = ((count - 1) * stride + (columns - 1) * leading + rows) * dtype.itemsize
    extent = guarded.near(address)
    if extent is None or not extent.address <= address <= extent.address + extent.nbytes - nbytes:
        raise KernelError(f"a product of matrices uses {nbytes} bytes at {address:#x}, which are not all allocated")
    flat = guarded.seen(address, nbytes).view(dtype)
    strides = [k * dtype.itemsize for k in (stride, 1, leading)]
    return np.lib.stride_tricks.as_strided(flat, (count, rows, columns), strides)


def _scalar(address: int, dtype: type) -> np.generic:
    return np.frombuffer(ctypes.string_at(address, np.dtype(dtype).itemsize), dtype)[0]


def gemmStridedBatchedEx(
    handle: int,
    transa: int,
    transb: int,
    m: int,
    n: int,
    k: int,
    alpha: int,
    A: int,
    Atype: int,
    lda: int,
    strideA: int,
    B: int,
    Btype: int,
    ldb: int,
    strideB: int,
    beta: int,
    C: int,
    Ctype: int,
    ldc: int,
    strideC: int,
    batchCount: int,
    computeType: int,
    algo: int,
) -> None:
    """C = alpha op(A) op(B) + beta C for each of a batch, computed in float32 or float64."""
    wide = _WIDE[computeType]
    a = _matrices(A, _DTYPES[Atype], *((k, m) if transa else (m, k)), lda, strideA, batchCount).astype(wide)
    b = _matrices(B, _DTYPES[Btype], *((n, k) if transb else (k, n)), ldb, strideB, batchCount).astype(wide)
    c = _matrices(C, _DTYPES[Ctype], m, n, ldc, strideC, batchCount)
    factor, kept = _scalar(alpha, wide), _scalar(beta, wide)
    with np.errstate(all="ignore"):
        product = factor * np.matmul(a.swapaxes(1, 2) if transa else a, b.swapaxes(1, 2) if transb else b)
        c[...] = product if kept == 0 else product + kept * c.astype(wide)


def gemmEx(
    handle: int,
    transa: int,
    transb: int,
    m: int,
    n: int,
    k: int,
    alpha: int,
    A: int,
    Atype: int,
    lda: int,
    B: int,
    Btype: int,
    ldb: int,
    beta: int,
    C: int,
    Ctype: int,
    ldc: int,
    computeType: int,
    algo: int,
) -> None:
    """C = alpha op(A) op(B) + beta C, computed in float32 or float64."""
    gemmStridedBatchedEx(
        *(handle, transa, transb, m, n, k, alpha, A, Atype, lda, 0, B, Btype, ldb, 0, beta, C, Ctype, ldc, 0, 1),
        *(computeType, algo),
    )
