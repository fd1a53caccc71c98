"""Dtypes, and which one comes out when several go in.

A dtype is a NumPy dtype; bfloat16 comes from ml_dtypes.  Python scalars are weak: they take the dtype of the array
they meet, and a float that meets integers makes float32, so that float64 never appears unasked.
"""

from __future__ import annotations

import functools
from typing import Any, TypeAlias

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
    if isinstance(dtype, np.dtype) and dtype in ALL:
        return dtype
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


# --- the array API's functions on dtypes ----------------------------------------------------------

_KINDS = {
    "bool": frozenset({bool_}),
    "signed integer": frozenset({int8, int16, int32, int64}),
    "unsigned integer": frozenset({uint8, uint16, uint32, uint64}),
    "integral": INTEGERS,
    "real floating": FLOATS,
    "complex floating": frozenset[DType](),
    "numeric": INTEGERS | FLOATS,
}


def _dtype_of(x: Any) -> DType | type:
    """The dtype of a tensor, array or dtype; the type of a Python scalar."""
    if type(x) in WEAK:
        return type(x)
    return as_dtype(x.dtype if hasattr(x, "dtype") else x)


def result_type(*arrays_and_dtypes: Any) -> DType:
    """The dtype of an operation on these tensors, dtypes and Python scalars."""
    return result_dtype(tuple(_dtype_of(x) for x in arrays_and_dtypes))


def can_cast(from_: Any, to: Any, /) -> bool:
    """Whether every operation that promotes would turn `from_`, a tensor or dtype, into `to`."""
    source, target = _dtype_of(from_), as_dtype(to)
    return result_dtype((source, target)) == target


def isdtype(dtype: Any, kind: Any) -> bool:
    """Whether `dtype` is of `kind`: a dtype, a name such as "real floating", or a tuple of them."""
    if isinstance(kind, tuple):
        return any(isdtype(dtype, k) for k in kind)
    if isinstance(kind, str) and kind in _KINDS:
        return as_dtype(dtype) in _KINDS[kind]
    return as_dtype(dtype) == as_dtype(kind)


def finfo(type: Any, /) -> Any:
    """The limits of a floating-point dtype: bits, eps, max, min, smallest_normal, dtype."""
    dtype = _dtype_of(type)
    if dtype not in FLOATS:
        raise DTypeError(f"finfo() needs a floating-point dtype, got {dtype}; use iinfo() for integers")
    return ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]


def iinfo(type: Any, /) -> Any:
    """The limits of an integer dtype: bits, max, min, dtype."""
    dtype = _dtype_of(type)
    if dtype not in INTEGERS:
        raise DTypeError(f"iinfo() needs an integer dtype, got {dtype}; use finfo() for floats")
    return ml_dtypes.iinfo(dtype)  # type: ignore[no-untyped-call]
