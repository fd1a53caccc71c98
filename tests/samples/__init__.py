"""What the table tests run: for each family of ops a module with a list `SAMPLES`.

A sample calls one op, with one choice of parameters, on small arrays; 0-d, empty, broadcast and non-contiguous
arguments are samples of their own.  Within a derivative's reach (1e-3) of a sample's arguments its values are finite
and, where a derivative is infinite, `grad` is False: infinities belong in a test of their own.  Kinks are welcome.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sample:
    """One call of one op, and the same call of NumPy and PyTorch."""

    name: str  # "sum[axis=1]"
    call: Callable[..., Any]  # on tensors; gives a tensor or a tuple of them
    args: tuple[Any, ...]  # NumPy arrays; the float64 ones are differentiated, and cast to the dtype under test
    numpy: Callable[..., Any]  # the same on NumPy arrays of the dtype under test (float32 for half types)
    torch: Callable[..., Any] | None = None  # the same on torch tensors
    grad: bool = True  # has derivatives with respect to every float64 argument
    second: bool = True  # second derivatives exist and are worth testing
    dtypes: tuple[str, ...] = ("float32", "float64")  # what the values are tested in
    rtol: float | None = None  # replaces the table's tolerance in float32

    def __repr__(self) -> str:
        return self.name


SAMPLES: list[Sample] = [
    sample
    for family in sorted(module.name for module in pkgutil.iter_modules(__path__))
    for sample in importlib.import_module(f"{__name__}.{family}").SAMPLES
]
