"""Policies: which values of a checkpointed function are kept for the backward pass instead of computed again.

checkpoint(block, policy="matmuls")
checkpoint(block, policy=names("attn_out"))  # where the block says checkpoint_name(y, "attn_out")
checkpoint(block, policy=lambda value: value.nbytes < 1 << 20)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from ..dtype import DType
from ..errors import DataError
from ..tensor import Tensor
from ..trace import active_region

MATMULS = frozenset(("matmul", "linear", "einsum"))  # products of two matrices, whose results cost most to compute


@dataclass(frozen=True, slots=True)
class Value:
    """What a policy is asked about: a result of `op`, called `name` where `checkpoint_name` calls it so."""

    op: str
    name: str | None
    shape: tuple[int, ...]
    dtype: DType

    @property
    def nbytes(self) -> int:
        """How many bytes keeping it takes."""
        return math.prod(self.shape) * self.dtype.itemsize


Policy: TypeAlias = Callable[[Value], bool]


def names(*kept: str) -> Policy:
    """A policy that keeps the values of these names."""
    if not kept or not all(isinstance(name, str) for name in kept):
        raise DataError(f'names() takes the names of values, as in names("attn_out"), got {kept!r}')
    chosen = frozenset(kept)
    return lambda value: value.name in chosen


def policy_of(given: Any) -> Policy | None:
    """The policy that `given` stands for: None or "nothing", "matmuls", or a function of a Value."""
    if given is None or (isinstance(given, str) and given == "nothing"):
        return None
    if isinstance(given, str) and given == "matmuls":
        return lambda value: value.op in MATMULS
    if callable(given):
        found: Policy = given
        return found
    raise DataError(
        f'policy= is "nothing", "matmuls", names(...) or a function of a value, got {given!r}\n'
        '  checkpoint(f, policy=gpuad.names("attn_out")), for example'
    )


def checkpoint_name(x: Tensor, name: str) -> Tensor:
    """`x`, which policies know by `name` in the checkpointed function that computes it."""
    if not isinstance(name, str) or not isinstance(x, Tensor):
        raise DataError(f"checkpoint_name() takes a tensor and a name, got {type(x).__name__} and {name!r}")
    region, inner = active_region.get(), x
    while region is not None and isinstance(inner, Tensor):
        if inner.trace is region:
            region.name(inner, name)
            break
        inner = inner.data
    return x


__all__ = ["checkpoint_name", "names"]
