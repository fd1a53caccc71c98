"""Which of the CPU's engines runs a kernel: NumPy, or machine code compiled from the kernel's text.

The choice follows from the process's setting and from the kernel alone, never from a clock or from what was compiled
before, because the two round differently.  A value has the same bits whatever it is fused with: its own shape decides.
What is one value a row may be computed in a kernel over whole rows or in one of its own: where it can differ it is
always compiled, also as a function that a kernel of NumPy's calls.
"""

from __future__ import annotations

import functools
import os
import warnings
from typing import Any

from ..array import TOTAL, Array
from ..errors import DeviceError
from . import host
from .kernel import SMALL, Kernel, inexact


@functools.cache
def engine() -> str:
    """The engine of this process, "numpy" or "compiled": GPUAD_CPU_ENGINE, else compiled where a compiler works."""
    asked = os.environ.get("GPUAD_CPU_ENGINE", "")
    if asked not in ("", "numpy", "compiled"):
        raise DeviceError(f'GPUAD_CPU_ENGINE is "numpy" or "compiled", got {asked!r}')
    if asked == "numpy":
        return "numpy"
    from . import threads  # here, so that importing gpuad does not wait for what only this engine needs
    from .compiler import CompilerError

    try:
        threads.prepare()
    except CompilerError as error:
        if asked:
            raise DeviceError(f"GPUAD_CPU_ENGINE=compiled needs a C++ compiler: {error}") from None
        warnings.warn(f"kernels run with NumPy, which is slower: {error}", RuntimeWarning, stacklevel=2)
        return "numpy"
    return "compiled"


def job(kernel: Kernel) -> Any:
    """What computes the outputs of `kernel`, called with the data of its leaves and then its `results`."""
    if engine() == "numpy":
        return host.job(kernel)
    from . import compiled, row_functions
    from .compiler import CompilerError

    try:
        if compiles(kernel):
            return compiled.job(kernel)
        return host.job(kernel, row_functions.compiled)
    except CompilerError as error:
        warnings.warn(f"a kernel runs with NumPy, which is slower: {error}", RuntimeWarning, stacklevel=2)
        return host.job(kernel)


def compiles(kernel: Kernel) -> bool:
    """Is `kernel` run as machine code, where the engine is the compiled one?"""
    if not all(map(_plain, kernel.leaves)):
        return False
    if kernel.rows * kernel.cols >= SMALL:
        return True
    if kernel.space[-1:] != (1,):
        return False
    return any(node.op is not None and (node.op.fusion == TOTAL or inexact(node.op)) for node in kernel.nodes)


def _plain(leaf: Array) -> bool:
    """Do the elements of `leaf` lie where elements of an array may lie, and not in the midst of records, say?"""
    flags, size = leaf.data.flags, leaf.dtype.itemsize
    return (flags.c_contiguous and flags.aligned) or (flags.aligned and not any(s % size for s in leaf.data.strides))
