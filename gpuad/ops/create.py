"""Creation functions: float32 and int64 by default, on the default device unless told otherwise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..array import Shape
from ..convert import asarray
from ..devices import Device, default_device
from ..devices import device as find_device
from ..dtype import DEFAULT_FLOAT, DEFAULT_INT, WEAK, DType, Scalar, as_dtype, bool_, is_float, of_scalar
from ..errors import DTypeError, ShapeError
from ..op import Source
from ..operators import operators
from ..provenance import here
from ..tensor import Tensor


def _fill(params: tuple[Any, ...], start: int, out: np.ndarray[Any, Any]) -> None:
    out.fill(params[0])


def _count(params: tuple[Any, ...], start: int, out: np.ndarray[Any, Any]) -> None:
    first, step = params
    index = np.arange(start, start + out.size, dtype=np.float64 if out.dtype.kind == "f" else np.int64)
    np.copyto(out, (index * step + first).reshape(out.shape), casting="unsafe")


constant = Source("full", numpy=_fill, cuda="a", cost=0.5, doc="The same value everywhere.")
iota = Source("arange", numpy=_count, cuda="a + i * b", doc="first + index * step.")


def _shape(shape: int | Sequence[int]) -> Shape:
    found = (shape,) if isinstance(shape, int) else tuple(int(n) for n in shape)
    if any(n < 0 for n in found):
        raise ShapeError(f"a shape has no negative lengths, got {found}")
    return found


def _device(device: str | Device | None) -> Device:
    return default_device() if device is None else find_device(device)


def full(
    shape: int | Sequence[int], fill_value: Any, *, dtype: Any = None, device: str | Device | None = None
) -> Tensor:
    """A tensor of `shape` filled with `fill_value`."""
    if isinstance(fill_value, Tensor):
        value = fill_value if dtype is None else fill_value.to(dtype)
        repeated: Tensor = operators.broadcast_to(value, _shape(shape))
        return repeated
    if isinstance(fill_value, np.generic):
        dtype, fill_value = fill_value.dtype if dtype is None else dtype, fill_value.item()
    if type(fill_value) not in WEAK:
        raise DTypeError(f"full() needs a number to fill with, got {type(fill_value).__name__}")
    kind = of_scalar(type(fill_value)) if dtype is None else as_dtype(dtype)
    _check_fill(fill_value, kind)
    return Tensor(constant.make(_shape(shape), kind, _device(device), (fill_value,), here(2)))


def _check_fill(value: Scalar, dtype: DType) -> None:
    """A DTypeError for a number that `dtype` cannot hold."""
    if dtype.kind in "iu":
        info = np.iinfo(dtype.type)  # type: ignore[type-var]  # an integer dtype, as its kind says
        if not info.min <= value <= info.max:  # nor nan, nor inf
            raise DTypeError(f"{dtype} cannot hold {value} (it goes from {info.min} to {info.max})")


def zeros(shape: int | Sequence[int], *, dtype: Any = None, device: str | Device | None = None) -> Tensor:
    """A tensor of `shape` filled with 0."""
    return full(shape, 0, dtype=DEFAULT_FLOAT if dtype is None else dtype, device=device)


def ones(shape: int | Sequence[int], *, dtype: Any = None, device: str | Device | None = None) -> Tensor:
    """A tensor of `shape` filled with 1."""
    return full(shape, 1, dtype=DEFAULT_FLOAT if dtype is None else dtype, device=device)


def empty(shape: int | Sequence[int], *, dtype: Any = None, device: str | Device | None = None) -> Tensor:
    """A tensor of `shape` whose values mean nothing yet (they are 0: nothing here reads memory nobody wrote)."""
    return zeros(shape, dtype=dtype, device=device)


def full_like(x: Tensor, /, fill_value: Any, *, dtype: Any = None, device: str | Device | None = None) -> Tensor:
    """A tensor of the shape of `x`, and its dtype and device unless given, filled with `fill_value`."""
    return full(x.shape, fill_value, dtype=x.dtype if dtype is None else dtype, device=device or x.device)


def zeros_like(x: Tensor, /, *, dtype: Any = None, device: str | Device | None = None) -> Tensor:
    """A tensor like `x` filled with 0."""
    return full_like(x, 0, dtype=dtype, device=device)


def ones_like(x: Tensor, /, *, dtype: Any = None, device: str | Device | None = None) -> Tensor:
    """A tensor like `x` filled with 1."""
    return full_like(x, 1, dtype=dtype, device=device)


def empty_like(x: Tensor, /, *, dtype: Any = None, device: str | Device | None = None) -> Tensor:
    """A tensor like `x` whose values mean nothing yet."""
    return zeros_like(x, dtype=dtype, device=device)


def arange(
    start: float,
    /,
    stop: float | None = None,
    step: float = 1,
    *,
    dtype: Any = None,
    device: str | Device | None = None,
) -> Tensor:
    """start, start + step, ... below `stop`: int64 for integer arguments, else float32."""
    if stop is None:
        start, stop = 0, start
    if step == 0:
        raise ShapeError("arange() needs a step that is not 0")
    if dtype is None:
        dtype = DEFAULT_INT if all(type(v) is int for v in (start, stop, step)) else DEFAULT_FLOAT
    n = max(0, math.ceil((stop - start) / step))
    return Tensor(iota.make((n,), _numeric(as_dtype(dtype)), _device(device), (start, step), here(2)))


def linspace(
    start: float,
    stop: float,
    /,
    num: int,
    *,
    dtype: Any = None,
    device: str | Device | None = None,
    endpoint: bool = True,
) -> Tensor:
    """`num` evenly spaced values from `start` to `stop`."""
    kind = DEFAULT_FLOAT if dtype is None else as_dtype(dtype)
    return asarray(np.linspace(start, stop, num, endpoint=endpoint).astype(kind), device=device)


def eye(
    n_rows: int, n_cols: int | None = None, /, *, k: int = 0, dtype: Any = None, device: str | Device | None = None
) -> Tensor:
    """A matrix with ones on the k-th diagonal and zeros elsewhere."""
    return asarray(np.eye(n_rows, n_cols, k, as_dtype(dtype or DEFAULT_FLOAT)), device=device)


def _numeric(dtype: DType) -> DType:
    if dtype == bool_:
        raise DTypeError("arange() cannot count in bools")
    return dtype


__all__ = [
    "arange",
    "asarray",
    "constant",
    "empty",
    "empty_like",
    "eye",
    "full",
    "full_like",
    "iota",
    "is_float",
    "linspace",
    "ones",
    "ones_like",
    "zeros",
    "zeros_like",
]
