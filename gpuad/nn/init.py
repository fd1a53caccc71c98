"""Initial values for parameters: each function returns a new tensor of the shape it is given.

A weight is `[out, in]`, with any further axes (of a convolution) behind.  `generator` is where the numbers come from;
without one, `gpuad.random.default()`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .. import random
from ..devices import Device
from ..dtype import DEFAULT_FLOAT
from ..errors import DataError, ShapeError
from ..ops.compare import less, logical_or, where
from ..ops.create import ones, zeros
from ..ops.reduce import any as any_
from ..random import Generator
from ..tensor import Tensor

Placement = str | Device | None


def normal(
    shape: Sequence[int],
    mean: float = 0.0,
    std: float = 1.0,
    *,
    dtype: Any = DEFAULT_FLOAT,
    device: Placement = None,
    generator: Generator | None = None,
) -> Tensor:
    """Normally distributed values."""
    return random.normal(shape, mean, std, dtype=dtype, device=device, generator=generator)


def uniform(
    shape: Sequence[int],
    low: float = 0.0,
    high: float = 1.0,
    *,
    dtype: Any = DEFAULT_FLOAT,
    device: Placement = None,
    generator: Generator | None = None,
) -> Tensor:
    """Values spread evenly from `low` to `high`."""
    return random.uniform(shape, low, high, dtype=dtype, device=device, generator=generator)


def trunc_normal(
    shape: Sequence[int],
    mean: float = 0.0,
    std: float = 1.0,
    low: float = -2.0,
    high: float = 2.0,
    *,
    dtype: Any = DEFAULT_FLOAT,
    device: Placement = None,
    generator: Generator | None = None,
) -> Tensor:
    """Values of a normal distribution from which what lies outside `low` to `high` is left out."""
    if not (std > 0 and low < high):
        raise DataError(f"trunc_normal() needs std > 0 and low < high, got std={std}, low={low}, high={high}")
    below, above = (math.erf((edge - mean) / std / math.sqrt(2)) / 2 for edge in (low, high))
    if above - below < 0.01:  # each round of drawing again keeps that share
        raise DataError(
            f"trunc_normal() would find under 1 % of normal({mean}, {std}) between {low} and {high}\n"
            "  use uniform(), which is close to it there, or a smaller std"
        )
    x = random.normal(shape, mean, std, dtype=dtype, device=device, generator=generator)
    while x.device.name != "meta":
        outside = logical_or(less(x, low), less(high, x))
        if not any_(outside):
            break
        again = random.normal(shape, mean, std, dtype=dtype, device=device, generator=generator)
        x = where(outside, again, x)
    return x


def kaiming_uniform(
    shape: Sequence[int],
    gain: float = math.sqrt(2),
    *,
    dtype: Any = DEFAULT_FLOAT,
    device: Placement = None,
    generator: Generator | None = None,
) -> Tensor:
    """Uniform values of standard deviation gain / sqrt(in): sqrt(2) keeps the variance through a layer with relu."""
    bound = gain * math.sqrt(3 / max(1, _fans(shape)[0]))
    return uniform(shape, -bound, bound, dtype=dtype, device=device, generator=generator)


def xavier_uniform(
    shape: Sequence[int],
    gain: float = 1.0,
    *,
    dtype: Any = DEFAULT_FLOAT,
    device: Placement = None,
    generator: Generator | None = None,
) -> Tensor:
    """Uniform values of standard deviation gain * sqrt(2 / (in + out))."""
    bound = gain * math.sqrt(6 / max(1, sum(_fans(shape))))
    return uniform(shape, -bound, bound, dtype=dtype, device=device, generator=generator)


def xavier_normal(
    shape: Sequence[int],
    gain: float = 1.0,
    *,
    dtype: Any = DEFAULT_FLOAT,
    device: Placement = None,
    generator: Generator | None = None,
) -> Tensor:
    """Normal values of standard deviation gain * sqrt(2 / (in + out))."""
    std = gain * math.sqrt(2 / max(1, sum(_fans(shape))))
    return normal(shape, 0.0, std, dtype=dtype, device=device, generator=generator)


def _fans(shape: Sequence[int]) -> tuple[int, int]:
    """How many inputs reach one output of a weight of `shape`, and how many outputs one input reaches."""
    if len(shape) < 2:
        raise ShapeError(f"a weight has at least two axes, [out, in], got {tuple(shape)}")
    window = math.prod(shape[2:])
    return shape[1] * window, shape[0] * window


__all__ = [
    "kaiming_uniform",
    "normal",
    "ones",
    "trunc_normal",
    "uniform",
    "xavier_normal",
    "xavier_uniform",
    "zeros",
]
