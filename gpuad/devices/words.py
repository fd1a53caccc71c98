"""Elements that are only moved, as words of their bits: CuPy does not move a bfloat16 in all versions everywhere."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..dtype import WEAK, DType, bfloat16
from ..errors import DTypeError

WORD: DType = np.dtype(np.uint16)


def as_words(x: Any) -> Any:
    """The memory of `x`, with each bfloat16 as the word of its bits."""
    return x.view(WORD) if x.dtype == bfloat16 else x


# The ops that may be given words: arithmetic on them would be silently wrong.
MOVING = frozenset(
    ("arrange", "concat", "contiguous", "embedding", "pick", "place", "roll", "setitem", "shift", "stack", "take")
)


def operands_as_words(name: str, arrays: list[Any], params: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """The operands and parameters of the op `name`, as words; `arrays` itself if none is bfloat16.

    Raises a DTypeError for an op that does more than move elements.
    """
    if not any(type(a) not in WEAK and a.dtype == bfloat16 for a in arrays):
        return arrays, params
    if name not in MOVING:
        raise DTypeError(f"{name}() has no bfloat16 on a GPU yet; cast with .to(gpuad.float32)")
    words = [_bits(a) if type(a) in WEAK else as_words(a) for a in arrays]
    return words, params | {"fill": _bits(params["fill"])} if "fill" in params else params


def _bits(number: float) -> int:
    """The bits of `number` as a bfloat16."""
    return int(np.asarray(number, bfloat16).view(WORD))
