"""Dtypes, and which one comes out when several go in.

A dtype is a NumPy dtype; bfloat16 comes from ml_dtypes.  Python scalars are weak: they take the dtype of the array
they meet, and a float that meets integers makes float32, so that float64 never appears unasked.
"""

from __future__ import annotations

import functools
from typing import TypeAlias

import ml_dtypes
import numpy as np

from .errors import DTypeError

DType: TypeAlias = "np.dtype[np.generic]"
Scalar: TypeAlias = bool | int | float

bool_: DType = np.dtype(np.bool_)
int8: DType = np.dtype(np.int8)
int16: DType = np.dtype(np.int16)
int32: DType = np.dtype(np.int32)
int64: DType = np.dtype(np.int64)
uint8: DType = np.dtype(np.uint8)
uint16: DType = np.dtype(np.uint16)
uint32: DType = np.dtype(np.uint32)
uint64: DType = np.dtype(np.uint64)
float16: DType = np.dtype(np.float16)
bfloat16: DType = np.dtype(ml_dtypes.bfloat16)
float32: DType = np.dtype(np.float32)
float64: DType = np.dtype(np.float64)

INTEGERS = frozenset({int8, int16, int32, int64, uint8, uint16, uint32, uint64})
HALVES = frozenset({float16, bfloat16})
FLOATS = frozenset({float16, bfloat16, float32, float64})
ALL = frozenset({bool_}) | INTEGERS | FLOATS

DEFAULT_FLOAT = float32
DEFAULT_INT = int64
WEAK = frozenset({bool, int, float})  # exact types: a NumPy scalar is a subclass of float and keeps its dtype


def as_dtype(dtype: object) -> DType:
    """The dtype that `dtype` names; a DTypeError for what gpuad does not compute with."""
    if dtype is float:
        return DEFAULT_FLOAT
    if dtype is int:
        return DEFAULT_INT
    try:
        found = bfloat16 if dtype == "bfloat16" else np.dtype(dtype)  # type: ignore[call-overload]  # any spelling
    except TypeError as error:
        raise DTypeError(f"{dtype!r} is not a dtype") from error
    if found.newbyteorder("=") not in ALL:
        hint = "complex numbers are not supported yet" if found.kind == "c" else "use a bool, integer or float dtype"
        raise DTypeError(f"dtype {found} cannot be used: {hint}")
    return found.newbyteorder("=")


def is_float(dtype: DType) -> bool:
    """True for the dtypes that can carry a derivative."""
    return dtype in FLOATS


def kind(dtype: DType) -> int:
    """0 for bool, 1 for integers, 2 for floats."""
    return 2 if dtype in FLOATS else 0 if dtype == bool_ else 1


@functools.cache
def promote(a: DType, b: DType) -> DType:
    """The dtype of an operation on `a` and `b`."""
    if a == b:
        return a
    ka, kb = kind(a), kind(b)
    if ka != kb:
        return a if ka > kb else b
    if ka == 2:
        if {a, b} == {float16, bfloat16}:
            return float32
        return a if a.itemsize > b.itemsize else b
    both = np.promote_types(a, b)
    if both not in ALL or kind(both) != 1:
        raise DTypeError(f"{a} and {b} have no common integer dtype; cast one of them with .to(dtype)")
    return both


def with_scalar(dtype: DType, scalar: type) -> DType:
    """The dtype of an operation on an array of `dtype` and a Python scalar of type `scalar`."""
    if scalar is float and dtype not in FLOATS:
        return DEFAULT_FLOAT
    if scalar is int and dtype == bool_:
        return DEFAULT_INT
    return dtype


def of_scalar(scalar: type) -> DType:
    """The dtype of a Python scalar that meets no array."""
    return DEFAULT_FLOAT if scalar is float else DEFAULT_INT if scalar is int else bool_


def result_dtype(operands: tuple[DType | type, ...]) -> DType:
    """The dtype that several dtypes and Python scalar types make together."""
    arrays = [t for t in operands if isinstance(t, np.dtype)]
    scalars = [t for t in operands if not isinstance(t, np.dtype)]
    if not arrays:
        return max((of_scalar(t) for t in scalars), key=kind)
    out = functools.reduce(promote, arrays)
    for scalar in scalars:
        out = with_scalar(out, scalar)
    return out


def compute_dtype(dtype: DType) -> DType:
    """The dtype arithmetic is done in: float32 for half types, else the dtype itself."""
    return float32 if dtype in HALVES else dtype
