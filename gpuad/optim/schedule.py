"""Learning rates as pure functions of the step, counted from 0.

for step in range(total):
    optimizer.lr = cosine_with_warmup(step, warmup=100, total=total, peak=1e-3, final=1e-4)
"""

from __future__ import annotations

import math

from ..errors import DataError


def constant(step: int, *, warmup: int = 0, peak: float) -> float:
    """`peak`, after a linear rise over the first `warmup` steps."""
    return peak * min(1.0, (step + 1) / (warmup + 1))


def linear(step: int, *, warmup: int = 0, total: int, peak: float, final: float = 0.0) -> float:
    """A linear rise over `warmup` steps to `peak`, then a straight line to `final`, reached at step `total`."""
    done = _progress(step, warmup, total)
    return constant(step, warmup=warmup, peak=peak) if step < warmup else peak + (final - peak) * done


def cosine_with_warmup(step: int, *, warmup: int, total: int, peak: float, final: float = 0.0) -> float:
    """A linear rise over `warmup` steps to `peak`, then half a cosine down to `final`, reached at step `total`."""
    done = _progress(step, warmup, total)
    if step < warmup:
        return constant(step, warmup=warmup, peak=peak)
    return final + (peak - final) * (1 + math.cos(math.pi * done)) / 2


def _progress(step: int, warmup: int, total: int) -> float:
    """How much of what follows the warm-up is done at `step`, from 0 to 1."""
    if not 0 <= warmup < total:
        raise DataError(f"a schedule of {total} steps cannot warm up for {warmup}; warmup must be less than total")
    return min(1.0, max(0, step - warmup) / (total - warmup))


__all__ = ["constant", "cosine_with_warmup", "linear"]
