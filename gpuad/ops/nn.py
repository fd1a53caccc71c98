"""What networks are made of, besides what `rows` has: look-up, rotation, dropout.

Half types are computed in float32 and rounded at the end.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from .. import random
from ..array import describe
from ..convert import as_operand
from ..dtype import INTEGERS, DType, bool_, uint16
from ..errors import DataError, DTypeError, IndexRangeError, ShapeError
from ..fuse.plan import realize
from ..op import Opaque
from ..provenance import describe as describe_site
from ..provenance import here
from ..tensor import Tensor
from .compare import where
from .create import full_like
from .index import scatter_add
from .rows import cross_entropy, floating, layer_norm, log_softmax, rms_norm, softmax, wide
from .shape import astype, same

# --- look-up and rotation ---------------------------------------------------------------------


_embedding: Opaque = Opaque(
    "embedding",
    ("weight", "index"),
    infer=lambda weight, index: ((*index.shape, *weight.shape[1:]), weight.dtype),
    forward=lambda xp, weight, index: xp.take(weight, index, axis=0),
    vjp=(lambda g, index, like: scatter_add(g, index, axis=0, length=like[0][0][0]), None),
    jvp=(lambda t, index: _embedding(t, index), None),
)


def embedding(weight: Any, indices: Any, /) -> Tensor:
    """The rows of `weight`, [rows, features], at `indices`, integers of any shape: [..., features]."""
    weight, indices = as_operand(weight), as_operand(indices)
    if weight.ndim != 2:
        raise ShapeError(f"embedding() needs a weight with two axes, rows and features, got {describe(weight)}")
    if indices.dtype not in INTEGERS:
        raise DTypeError(f"embedding() needs integer indices, got {describe(indices)}; cast them with .to(gpuad.int64)")
    rows, line = weight.shape[0], describe_site(here(2))
    indices.device.check_range(
        realize(indices.array),
        0,
        rows - 1,
        lambda found: IndexRangeError(
            f"embedding() at {line} got the index {found} for a weight with {rows} rows\n"
            f"  indices go from 0 to {rows - 1}"
        ),
    )
    result: Tensor = _embedding(weight, indices)
    return result


@functools.lru_cache(maxsize=8)  # two small tables for each shape that a model uses, and each device
def _turns(
    xp: Any, place: str, length: int, pairs: int, base: float, offset: int, interleaved: bool, dtype: DType
) -> tuple[Any, Any]:
    """For each feature of each position the cosine of its angle, and the sine with the sign its partner takes."""
    angles = np.arange(offset, offset + length)[:, None] * base ** (-np.arange(pairs) / pairs)
    cos, sin = np.cos(angles), np.sin(angles)
    if interleaved:
        both = np.repeat(cos, 2, axis=1), np.stack([-sin, sin], axis=2).reshape(length, 2 * pairs)
    else:
        both = np.concatenate([cos, cos], axis=1), np.concatenate([-sin, sin], axis=1)
    return xp.asarray(both[0].astype(dtype)), xp.asarray(both[1].astype(dtype))


def _rotate_into(xp: Any, x: Any, out: Any, base: float, offset: int, interleaved: bool, sign: int) -> None:
    pairs = x.shape[-1] // 2
    cos, sin = _turns(xp, str(x.device), x.shape[-2], pairs, base, offset, interleaved, x.dtype)
    partner = xp.empty(x.shape, x.dtype)
    first, second = (
        ((..., slice(0, None, 2)), (..., slice(1, None, 2)))
        if interleaved
        else ((..., slice(None, pairs)), (..., slice(pairs, None)))
    )
    partner[first], partner[second] = x[second], x[first]
    xp.multiply(partner, sin, out=partner)
    xp.multiply(x, cos, out=out)
    (xp.add if sign > 0 else xp.subtract)(out, partner, out=out)


def _rotate_back(g: Tensor, base: float, offset: int, interleaved: bool, sign: int) -> Tensor:
    result: Tensor = _rotate(g, base=base, offset=offset, interleaved=interleaved, sign=-sign)
    return result


_rotate = Opaque(
    "rotary_embedding",
    "x",
    infer=lambda x, base, offset, interleaved, sign: (x.shape, x.dtype),
    into=_rotate_into,
    vjp=(_rotate_back,),
    jvp=(lambda t, base, offset, interleaved, sign: _rotate_back(t, base, offset, interleaved, -sign),),
    params=("base", "offset", "interleaved", "sign"),
)


def rotary_embedding(x: Any, /, *, base: float = 10000.0, offset: int = 0, interleaved: bool = False) -> Tensor:
    """`x`, [..., positions, features], with each pair of features turned by an angle that grows with the position.

    Pair k of n turns by (offset + position) * base^(-k / n).  Pairs are feature k with k + n (as in GPT-NeoX and
    LLaMA), or if `interleaved` 2k with 2k + 1 (as in GPT-J).
    """
    x = floating(x)
    if x.ndim < 2 or x.shape[-1] % 2:
        raise ShapeError(f"rotary_embedding() needs positions and an even number of features, got {describe(x)}")
    y = _rotate(wide(x), base=float(base), offset=int(offset), interleaved=bool(interleaved), sign=1)
    return astype(y, x.dtype)


# --- dropout ----------------------------------------------------------------------------------


def dropout(x: Any, p: float = 0.5, /, *, generator: random.Generator | None = None, training: bool = True) -> Tensor:
    """`x` with each element 0 with probability `p`, else divided by 1 - p; `x` itself unless `training`.

    Each element takes 16 random bits, so that the probability is `p` to within 2^-16.  The mask is never stored: the
    gradient makes it again.
    """
    given = floating(x)
    if not 0.0 <= p <= 1.0:
        raise DataError(f"dropout() needs a probability p from 0 to 1, got {p}")
    if not training or p == 0.0:
        return same(given)
    if p == 1.0:
        kept, factor = full_like(given, False, dtype=bool_), 1.0
    else:
        bits = random.bits(given.shape, dtype=uint16, device=given.device, generator=generator)
        kept, factor = bits >= min(round(p * 65536), 65535), 1.0 / (1.0 - p)
    result: Tensor = where(kept, given * factor, 0)
    return result


__all__ = [
    "cross_entropy",
    "dropout",
    "embedding",
    "layer_norm",
    "log_softmax",
    "rms_norm",
    "rotary_embedding",
    "softmax",
]
