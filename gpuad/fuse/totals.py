"""Reductions over rows or over everything, on the host: by fixed chunks, so that bits depend on shapes alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..array import Array

Data = np.ndarray[Any, Any]

CHUNK = 4096  # elements of one partial sum, and the most columns of a row that is summed at once
GROUP = 16  # partial sums over rows that are added up one after the other
PAIRS = 64  # groups that are added up at once, until one is left


class Total:
    """A reduction over the rows (one value a column) or over everything, by fixed chunks."""

    def __init__(self, output: int, op: Any, node: Array, cols: int) -> None:
        self.output, self.ufunc, self.dtype = output, op.numpy, node.dtype
        self.by_column = node.size > 1
        self.cols = cols
        self.chunk_rows = max(1, CHUNK // max(cols, 1))  # rows of one partial result
        self.chunk = (
            max(1, self.chunk_rows * cols) if cols <= CHUNK else CHUNK
        )  # elements of one, where rows do not matter
        self.flat = False

    def allocate(self, rows: int, cols: int, flat: bool) -> Data:
        """Memory for the partial results of every chunk."""
        self.flat = flat
        if not rows * cols:
            return np.empty((0, cols) if self.by_column else 0, self.dtype)
        if self.by_column:
            return np.empty((-(-rows // (self.chunk_rows * GROUP)), cols), self.dtype)
        if self.flat:
            return np.empty(-(-rows * cols // max(self.chunk, 1)), self.dtype)
        if cols > CHUNK:
            return np.empty((rows, -(-cols // CHUNK)), self.dtype)
        return np.empty(-(-rows // self.chunk_rows), self.dtype)

    def add(self, block: Data, partial: Data, r0: int, c0: int) -> None:
        """Put the partial results of `block`, which begins at row `r0` and column `c0`, where they belong."""
        reduce = self.ufunc.reduce
        r, c = block.shape
        if self.by_column:
            step = self.chunk_rows
            whole = r // step
            parts = list(reduce(block[: whole * step].reshape(whole, step, c), 1)) if step > 1 else list(block)
            if whole * step < r:
                parts.append(reduce(block[whole * step :], 0))
            for k, part in enumerate(parts, r0 // step):
                group = partial[k // GROUP, c0 : c0 + c]
                if k % GROUP:
                    self.ufunc(group, part, out=group)
                else:
                    group[...] = part
            return
        if self.flat or self.cols <= CHUNK:
            line, chunk = np.ascontiguousarray(block).reshape(-1), self.chunk
            first = (r0 * self.cols + c0) // chunk
            whole = line.size // chunk
            if whole:
                reduce(line[: whole * chunk].reshape(whole, chunk), -1, None, partial[first : first + whole])
            if whole * chunk < line.size:
                partial[first + whole] = reduce(line[whole * chunk :])
            return
        for start in range(0, c, CHUNK):
            reduce(
                np.ascontiguousarray(block[:, start : start + CHUNK]),
                -1,
                None,
                partial[r0 : r0 + r, (c0 + start) // CHUNK],
            )

    def finish(self, partial: Data, out: Data) -> None:
        """Reduce the partial results into `out`."""
        with np.errstate(all="ignore"):
            if self.by_column:
                while len(partial) > PAIRS:
                    n = len(partial) // PAIRS * PAIRS
                    pairs = self.ufunc.reduce(partial[:n].reshape(-1, PAIRS, self.cols), 1)
                    partial = np.concatenate([pairs, partial[n:]])
                self.ufunc.reduce(partial, 0, None, out.reshape(-1))
            else:
                out[...] = self.ufunc.reduce(partial.reshape(-1))
