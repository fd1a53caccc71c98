"""How the matrices in the last two axes of an array lie in memory, as BLAS libraries ask for it.

Strides are in elements.  What no strides give is None, and the caller copies or takes another way.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any


def layout(x: Any) -> tuple[int, int] | None:
    """Whether the matrices of `x` are to be turned, and the step from row to row (if turned, column to column)."""
    rows, columns = x.shape[-2:]
    down, across = (stride // x.itemsize for stride in x.strides[-2:])
    if (across == 1 or columns == 1) and (down >= columns or rows == 1):
        return 0, max(down, columns)
    if (down == 1 or rows == 1) and (across >= rows or columns == 1):
        return 1, max(across, rows)
    return None


def step(x: Any) -> int | None:
    """The one step from matrix to matrix of `x`, 0 where they are one; None where there is more than one step."""
    found, length = None, 1
    for n, stride in zip(reversed(x.shape[:-2]), reversed(x.strides[:-2]), strict=True):
        if n == 1:
            continue
        if found is None:
            found = stride // x.itemsize
        elif stride != found * length * x.itemsize:
            return None
        length *= n
    return found or 0


def flat(x: Any) -> Any:
    """`x` [..., columns] as one matrix of all its rows, without a copy; None where no strides give it."""
    with contextlib.suppress(ValueError):
        return x.reshape(math.prod(x.shape[:-1]), x.shape[-1], copy=False)
    return None


def by_rows(a: Any, b: Any, out: Any) -> tuple[Any, Any, Any]:
    """The operands of out = a @ b; with all rows of `a` in one matrix, where one matrix `b` meets them."""
    if a.ndim > 2 and b.ndim == 2:
        rows, result = flat(a), flat(out)
        if rows is not None and result is not None:
            return rows, b, result
    return a, b, out
