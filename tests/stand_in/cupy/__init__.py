"""A stand-in for CuPy on a machine without a GPU: the few names that gpuad uses, on guarded memory of the host.

Kernels are compiled by the host's compiler and run thread by thread.  What is offered behaves as CuPy 14 does; what is
not offered fails.  `tests/test_stand_in.py` holds names and signatures against the real package.
"""

# ruff: noqa: F401, F403  # what is imported here is what is offered

from __future__ import annotations

from numpy import (
    bool_,
    dtype,
    e,
    float16,
    float32,
    float64,
    inf,
    int8,
    int16,
    int32,
    int64,
    nan,
    newaxis,
    pi,
    uint8,
    uint16,
    uint32,
    uint64,
)

from . import cuda
from ._array import ndarray
from ._creation import *
from ._math import *
from ._order import *
from ._raw import RawKernel, RawModule, is_available
from ._shape import *
from ._ufuncs import UFUNCS as _UFUNCS
from ._ufuncs import ufunc

__version__ = "14.2.0"
globals().update(_UFUNCS)
abs = _UFUNCS["absolute"]


def get_array_module(*args: object) -> object:
    """This module if one of `args` is its array, else NumPy."""
    import sys

    import numpy

    return sys.modules[__name__] if any(isinstance(x, ndarray) for x in args) else numpy


def get_default_memory_pool() -> cuda.MemoryPool:
    return cuda.memory._default_pool


def get_default_pinned_memory_pool() -> cuda.PinnedMemoryPool:
    return cuda.pinned_memory._default_pool
