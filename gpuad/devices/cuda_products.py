"""Products of matrices on a GPU.

Floats go to cuBLAS directly: CuPy copies the operands of a batch that are transposed, has no batch in bfloat16, and
takes float16 through float32.  Half types add up in float32.  Integers go through CuPy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..array import Shape
from ..errors import DeviceError
from .matrices import by_rows, flat, layout, step
from .words import as_words

_ONE = {name: np.ones(1, name) for name in ("float32", "float64")}  # factors, which cuBLAS reads on the host
_ZERO = {name: np.zeros(1, name) for name in ("float32", "float64")}
_TYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 14}  # cudaDataType


def matmul(device: Any, a: Any, b: Any, out: Any) -> None:
    """out = a @ b for a [..., m, k] and b [..., k, n]; out [..., m, n] is contiguous."""
    if not out.size:
        return
    if not a.shape[-1]:
        out.fill(0)
    elif a.dtype.name not in _TYPES:
        device.xp.matmul(a, b, out=out)
    else:
        _multiply(device, *by_rows(a, b, out))


def linear(device: Any, a: Any, w: Any, out: Any) -> None:
    """out = a @ w.T for a [..., m, k] and w [n, k]."""
    matmul(device, a, w.T, out)


def linear_weight(device: Any, g: Any, a: Any, out: Any) -> None:
    """out = the sum of g[r, :, None] * a[r, None, :] over all rows of g [..., n] and a [..., k]."""
    matmul(device, _whole(device, g).T, _whole(device, a), out)


def _whole(device: Any, x: Any) -> Any:
    """`x` as one matrix of all its rows; a copy where no strides give it."""
    found = flat(x)
    if found is None:
        found = device.xp.ascontiguousarray(as_words(x)).view(x.dtype).reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return found


def _multiply(device: Any, a: Any, b: Any, out: Any) -> None:
    """The product of floats, in one call of cuBLAS.

    It stores matrices by columns, so it is asked for the transpose of `out`: that of b times that of a.
    """
    cuda, cublas = device.xp.cuda, _cublas(device.xp)
    batch = out.shape[:-2]
    left, right = _operand(device, a, batch), _operand(device, b, batch)
    m, n, k = out.shape[-2], out.shape[-1], a.shape[-1]
    name = out.dtype.name
    wide = "float64" if name == "float64" else "float32"
    kind = _TYPES[name]
    compute = cublas.CUBLAS_COMPUTE_64F if wide == "float64" else cublas.CUBLAS_COMPUTE_32F
    one, zero = _ONE[wide].ctypes.data, _ZERO[wide].ctypes.data
    shape = (cuda.get_cublas_handle(), right.turned, left.turned, n, m, k)
    count, algorithm = math.prod(batch), cublas.CUBLAS_GEMM_DEFAULT
    if count == 1:
        cublas.gemmEx(
            *(*shape, one, right.pointer, kind, right.row, left.pointer, kind, left.row),
            *(zero, out.data.ptr, kind, n, compute, algorithm),
        )
    else:
        cublas.gemmStridedBatchedEx(
            *(*shape, one, right.pointer, kind, right.row, right.step, left.pointer, kind, left.row, left.step),
            *(zero, out.data.ptr, kind, n, m * n, count, compute, algorithm),
        )


@dataclass
class Operand:
    """Matrices as cuBLAS takes them: whether they are to be turned, the steps to a next row and a next matrix.

    Steps are in elements.  `held` is the memory of a copy.
    """

    pointer: int
    turned: int
    row: int
    step: int
    held: Any


def _operand(device: Any, x: Any, batch: Shape) -> Operand:
    """`x`, broadcast over `batch`; a copy of it where its matrices do not lie as cuBLAS can read them."""
    if x.shape[:-2] != batch:
        x = device.xp.broadcast_to(x, (*batch, *x.shape[-2:]))
    held, between, lies = None, step(x), layout(x)
    if between is None or lies is None:
        held = device.allocate(x.shape, x.dtype, "workspace")
        as_words(held.data)[...] = as_words(x)
        x, between, lies = held.data, math.prod(x.shape[-2:]), (0, x.shape[-1])
    return Operand(x.data.ptr, *lies, between, held)


def _cublas(xp: Any) -> Any:
    try:
        return xp.cuda.cublas
    except (ImportError, AttributeError) as error:
        raise DeviceError(
            f'cuBLAS is missing: {error}\n  pip install "cupy-cuda12x[ctk]", or cupy-cuda13x[ctk]'
        ) from None
