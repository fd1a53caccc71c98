"""What a kernel over many parameters at once needs to know of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..array import Array


@dataclass(frozen=True)
class Segments:
    """Parameters of one dtype that lie side by side in flat arrays, each a segment, and a step of Adam for them."""

    values: Array
    master: Array | None  # float32 weights of which half types are the rounding
    m: Array  # the mean gradient, float32
    v: Array  # the mean square, float32
    starts: Sequence[int]  # where the segments begin
    gradients: Sequence[Array]  # of each segment: contiguous, of the dtype of the values
    kinds: Sequence[int]  # which of the options each segment follows
    options: Sequence[tuple[float, ...]]  # as `kernels/adamw.cu` lists them
