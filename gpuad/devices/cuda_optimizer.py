"""A step of Adam on a GPU: `kernels/norm.cu` for the norm of all gradients, `kernels/adamw.cu` for all parameters.

Each dtype takes two launches, whatever number of parameters there is, and the norm one.  The kernels read gradients
where they lie, through a table of addresses, and the host waits for nothing.

The parameters have the bits that fused kernels give them as long as the norm is below `max_grad_norm`.  Where it clips,
the norm's squares are added in another order, and the last bit of the factor may differ.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from ..dtype import DType, float32, int64
from ..fuse.prelude import c_name
from ..fuse.sources import source
from .cuda_launch import Geometry
from .segments import Segments

DTYPES = ("float32", "float16", "bfloat16")
THREADS, NORM_THREADS = 256, 1024
CHUNK = 4096  # elements that a block has, as segments.cuh says
VALUES, GRADIENT, MASTER, M, V, LENGTH, FIRST_BLOCK, KIND, COLUMNS = range(9)  # of the table there
UPLOAD = 8192  # int64 copied together: for up to 64 KiB the host does not wait


def takes(dtypes: Iterable[DType]) -> bool:
    """Are the kernels for parameters of these dtypes?"""
    return all(dtype.name in DTYPES for dtype in dtypes)


@functools.cache
def text(file: str, dtype: DType, state: DType) -> str:
    """What follows the prelude, for parameters and gradients of one dtype, and states of another."""
    types = {"T": dtype, "G": dtype, "S": state}
    return "".join(f"#define {name} {c_name(of)}\n" for name, of in types.items()) + source(file)


class Adam:
    """The kernels on one device."""

    def __init__(self, device: Any) -> None:
        self.device = device

    def step(
        self,
        parts: Sequence[Segments],
        max_norm: float | None,
        refuse: Callable[[int], Exception],
        undo: Callable[[], None],
    ) -> None:
        """Write the step of `parts` over their values and states, unless something is flagged.

        A norm that is not finite is flagged, as by `Device.check_true` with `refuse` and `undo`.
        """
        device = self.device
        groups: dict[tuple[DType, DType], list[Segments]] = {}
        for part in parts:
            groups.setdefault((part.values.dtype, part.m.dtype), []).append(part)
        lengths = [sum(len(p.starts) for p in group) for group in groups.values()]
        blocks = [sum(_blocks(g.size) for p in group for g in p.gradients) for group in groups.values()]
        kinds = sum(len(p.options) for p in parts)
        words = COLUMNS * sum(lengths) + COLUMNS // 2 * kinds  # an option has half a word
        with device.lock, device.using():
            needed = ((words, int64), (sum(blocks), float32), (3, float32))
            held = [device.allocate((size,), dtype, "workspace") for size, dtype in needed]
            if not device.computes:
                return
            memory, partial, outcome = [array.data for array in held]
            _upload(memory, _tables(groups.values()))
            options = memory[COLUMNS * sum(lengths) :]
            tables = [memory[COLUMNS * sum(lengths[:k]) :] for k in range(len(lengths))]
            given = list(zip(groups, tables, map(np.int32, lengths), blocks, strict=True))
            self._norm(given, partial, max_norm, outcome, device.checks.begin(refuse, undo))
            for dtypes, table, length, n in given:
                self._launch("adamw.cu", dtypes, "adamw", [table, length, options, outcome], n)

    def _norm(
        self,
        given: list[tuple[tuple[DType, DType], Any, Any, int]],
        partial: Any,
        max_norm: float | None,
        outcome: Any,
        number: Any,
    ) -> None:
        """Put the norm, what clips it, and whether all is well, in `outcome`."""
        first = 0
        for dtypes, table, length, n in given:
            self._launch("norm.cu", dtypes, "gradient_squares", [table, length, partial[first:]], n)
            first += n
        limit = np.float32(np.inf if max_norm is None else max_norm)
        arguments = [partial, np.int64(partial.size), limit, outcome, self.device.checks.memory().data, number]
        self._launch("norm.cu", given[0][0], "gradient_norm", arguments, 1, NORM_THREADS)

    def _launch(
        self, file: str, dtypes: tuple[DType, DType], name: str, given: list[Any], blocks: int, threads: int = THREADS
    ) -> None:
        if blocks:
            self.device.launcher.launch(text(file, *dtypes), name, given, Geometry(blocks, threads))


def _blocks(size: int) -> int:
    return -(-size // CHUNK)


def _tables(groups: Iterable[list[Segments]]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The table of each group, then the options of all, as words."""
    tables: list[np.ndarray[Any, np.dtype[np.int64]]] = []
    options: list[tuple[float, ...]] = []
    for group in groups:
        first = 0
        for part in group:
            rows = np.zeros((len(part.starts), COLUMNS), np.int64)
            starts = np.asarray(part.starts, np.int64)
            for column, array in ((VALUES, part.values), (MASTER, part.master), (M, part.m), (V, part.v)):
                if array is not None:
                    rows[:, column] = array.data.ptr + starts * array.dtype.itemsize
            rows[:, GRADIENT] = [g.data.ptr for g in part.gradients]
            rows[:, LENGTH] = [g.size for g in part.gradients]
            counts = -(-rows[:, LENGTH] // CHUNK)
            rows[:, FIRST_BLOCK] = first + np.cumsum(counts) - counts
            rows[:, KIND] = len(options) + np.asarray(part.kinds, np.int64)
            first += int(np.sum(counts))
            options += part.options
            tables.append(rows.reshape(-1))
    return np.concatenate([*tables, np.array(options, np.float32).reshape(-1).view(np.int64)])


def _upload(memory: Any, words: np.ndarray[Any, np.dtype[np.int64]]) -> None:
    for start in range(0, words.size, UPLOAD):
        memory[start : start + UPLOAD].set(words[start : start + UPLOAD])
