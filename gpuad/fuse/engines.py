"""Which of the CPU's engines runs a kernel: NumPy, or machine code compiled from the kernel's text.

The choice follows from the process's setting and from the kernel alone, never from a clock or from what was compiled
before, because the two round differently.  A value has the same bits whatever it is fused with: its own shape decides,
and functions of one value a row, which may be computed in a kernel over whole rows or in one of their own, are always
compiled.
"""

from __future__ import annotations

import functools
import os
import re
import warnings
from typing import Any

from ..errors import DeviceError
from . import host
from .kernel import Kernel, row_shape

SMALL = 8192  # elements below which a kernel is not worth a compiler's time
# Functions that NumPy and the compiled text may round differently; all else is exact, or exactly rounded, in both.
INEXACT = re.compile(r"\b(exp(m1|2)?|log(1p|2|10)?|pow|a?sinh?|a?cosh?|a?tanh?|atan2|erfc?|hypot)\(")


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


def run(kernel: Kernel) -> None:
    """Compute the outputs of `kernel` into its `results`."""
    if compiles(kernel):
        from . import compiled
        from .compiler import CompilerError

        try:
            compiled.run(kernel)
            return
        except CompilerError as error:
            warnings.warn(f"a kernel runs with NumPy, which is slower: {error}", RuntimeWarning, stacklevel=2)
    host.run(kernel)


def compiles(kernel: Kernel) -> bool:
    """Is `kernel` run as machine code?"""
    if engine() == "numpy":
        return False
    return kernel.rows * kernel.cols >= SMALL or _has_functions_of_rows(kernel)


def _has_functions_of_rows(kernel: Kernel) -> bool:
    rows = row_shape(kernel.space)
    return any(node.shape == rows and len(rows) > 0 and _inexact(node.op) for node in kernel.nodes)


_answers: dict[str, bool] = {}  # of _inexact, by the text


def _inexact(op: Any) -> bool:
    text: str = op.cuda
    if text not in _answers:
        _answers[text] = INEXACT.search(text) is not None
    return _answers[text]
