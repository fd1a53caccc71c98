"""Products of matrices on a GPU.

Floats go to cuBLAS directly: CuPy copies the operands of a batch that are transposed, has no batch in bfloat16, and
takes float16 through float32.  Half types add up in float32.  Integers go through CuPy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
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
    if a.shape[-1] and a.dtype.name in _TYPES:
        _multiply(device, *by_rows(a, b, out))
    elif not device.computes:
        return
    elif not a.shape[-1]:
        out.fill(0)
    else:
        device.xp.matmul(a, b, out=out)


def linear(device: Any, a: Any, w: Any, out: Any) -> None:
    """out = a @ w.T for a [..., m, k] and w [n, k]."""
    matmul(device, a, w.T, out)


def linear_weight(device: Any, g: Any, a: Any, out: Any) -> None:
    """out = the sum of g[r, :, None] * a[r, None, :] over all rows of g [..., n] and a [..., k]."""
    (g, _g), (a, _a) = _whole(device, g), _whole(device, a)
    matmul(device, g.T, a, out)


def _whole(device: Any, x: Any) -> tuple[Any, Any]:
    """`x` as one matrix of all its rows; and the Array that holds it, where no strides give it and it is a copy."""
    found = flat(x)
    if found is not None:
        return found, None
    held = _copied(device, x)
    return flat(held.data), held


def _copied(device: Any, x: Any) -> Any:
    """A contiguous copy of `x`, an Array; on a meta device one without contents."""
    held = device.allocate(x.shape, x.dtype, "workspace")
    if device.computes:
        as_words(held.data)[...] = as_words(x)
    return held


def _multiply(device: Any, a: Any, b: Any, out: Any) -> None:
    """The product of floats, in one call of cuBLAS.

    It stores matrices by columns, so it is asked for the transpose of `out`: that of b times that of a.
    """
    batch = out.shape[:-2]
    left, right = _operand(device, a, batch), _operand(device, b, batch)
    if not device.computes:
        return
    cuda, cublas = device.xp.cuda, _cublas(device.xp)
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
            *(*shape, one, right.data.data.ptr, kind, right.row, left.data.data.ptr, kind, left.row),
            *(zero, out.data.ptr, kind, n, compute, algorithm),
        )
    else:
        cublas.gemmStridedBatchedEx(
            *(*shape, one, right.data.data.ptr, kind, right.row, right.step),
            *(left.data.data.ptr, kind, left.row, left.step),
            *(zero, out.data.ptr, kind, n, m * n, count, compute, algorithm),
        )


@dataclass
class Operand:
    """Matrices as cuBLAS takes them: whether they are to be turned, the steps to a next row and a next matrix.

    Steps are in elements.  `held` is what holds a copy.
    """

    data: Any
    turned: int
    row: int
    step: int
    held: Any


def _operand(device: Any, x: Any, batch: Shape) -> Operand:
    """`x`, broadcast over `batch`; a copy of it where its matrices do not lie as cuBLAS can read them."""
    if x.shape[:-2] != batch:
        x = device.xp.broadcast_to(x, (*batch, *x.shape[-2:]))
    between, lies = step(x), layout(x)
    if between is not None and lies is not None:
        return Operand(x, *lies, between, None)
    held = _copied(device, x)
    return Operand(held.data, 0, x.shape[-1], math.prod(x.shape[-2:]), held)


def _cublas(xp: Any) -> Any:
    try:
        return xp.cuda.cublas
    except (ImportError, AttributeError) as error:
        raise DeviceError(
            f'cuBLAS is missing: {error}\n  pip install "cupy-cuda12x[ctk]", or cupy-cuda13x[ctk]'
        ) from None


PRODUCTS: dict[str, Callable[..., None]] = {"matmul": matmul, "linear": linear, "linear_weight": linear_weight}
