"""What networks are made of, besides what `rows` has: look-up, rotation, dropout, attention.

Half types are computed in float32 and rounded at the end.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from .. import random
from ..array import describe
from ..convert import as_operand
from ..dtype import INTEGERS, WEAK, DType, bool_, compute_dtype, is_float, uint16
from ..errors import DataError, DTypeError, IndexRangeError, ShapeError
from ..op import Composite, Opaque, Source
from ..provenance import describe as describe_site
from ..provenance import here
from ..tensor import Tensor
from .compare import maximum, where
from .create import full_like
from .elementwise import exp
from .index import scatter_add
from .linalg import matmul, matrix_transpose
from .reduce import max as row_max
from .rows import cross_entropy, floating, layer_norm, log_softmax, rms_norm, row_sum, softmax, through_softmax, wide
from .shape import astype, broadcast_to, same, sum_to

# --- look-up and rotation ---------------------------------------------------------------------


def _look_up(xp: Any, weight: Any, index: Any) -> Any:
    if index.size and (index.min() < 0 or index.max() >= weight.shape[0]):
        low, high = int(index.min()), int(index.max())
        raise IndexRangeError(
            f"embedding() at {describe_site(here())} got the index {low if low < 0 else high}"
            f" for a weight with {weight.shape[0]} rows\n  indices go from 0 to {weight.shape[0] - 1}"
        )
    return xp.take(weight, index, axis=0)


_embedding: Opaque = Opaque(
    "embedding",
    ("weight", "index"),
    infer=lambda weight, index: ((*index.shape, *weight.shape[1:]), weight.dtype),
    forward=_look_up,
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
    result: Tensor = _embedding(weight, indices)
    return result


@functools.lru_cache(maxsize=8)  # two small tables for each shape that a model uses
def _turns(length: int, pairs: int, base: float, offset: int, interleaved: bool, dtype: DType) -> tuple[Any, Any]:
    """For each feature of each position the cosine of its angle, and the sine with the sign its partner takes."""
    angles = np.arange(offset, offset + length)[:, None] * base ** (-np.arange(pairs) / pairs)
    cos, sin = np.cos(angles), np.sin(angles)
    if interleaved:
        both = np.repeat(cos, 2, axis=1), np.stack([-sin, sin], axis=2).reshape(length, 2 * pairs)
    else:
        both = np.concatenate([cos, cos], axis=1), np.concatenate([-sin, sin], axis=1)
    return both[0].astype(dtype), both[1].astype(dtype)


def _rotate_into(x: Any, out: Any, base: float, offset: int, interleaved: bool, sign: int) -> None:
    pairs, dtype = x.shape[-1] // 2, compute_dtype(x.dtype)
    cos, sin = _turns(x.shape[-2], pairs, base, offset, interleaved, dtype)
    x = x.astype(dtype, copy=False)
    partner = np.empty(x.shape, dtype)
    first, second = (
        ((..., slice(0, None, 2)), (..., slice(1, None, 2)))
        if interleaved
        else ((..., slice(None, pairs)), (..., slice(pairs, None)))
    )
    partner[first], partner[second] = x[second], x[first]
    np.multiply(partner, sin, out=partner)
    turned = out if out.dtype == dtype else np.empty(x.shape, dtype)
    np.multiply(x, cos, out=turned)
    (np.add if sign > 0 else np.subtract)(turned, partner, out=turned)
    if turned is not out:
        out[...] = turned


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
    result: Tensor = _rotate(x, base=float(base), offset=int(offset), interleaved=bool(interleaved), sign=1)
    return result


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


# --- attention --------------------------------------------------------------------------------


SMALL = 256  # queries and keys up to which the whole triangle is kept as a table


@functools.lru_cache(maxsize=8)  # up to 256 KiB each, in float32
def _triangle(rows: int, columns: int, dtype: DType) -> Any:
    return np.where(np.tri(rows, columns, dtype=np.bool_), 0, -np.inf).astype(dtype)


def _causal_into(params: tuple[Any, ...], start: int, out: Any) -> None:
    rows, columns = params
    if out.ndim == 2 and out.shape[1] == columns and start % columns == 0:
        row = np.arange(start // columns, start // columns + out.shape[0]) % rows
        if max(rows, columns) <= SMALL:
            _triangle(rows, columns, out.dtype).take(row, 0, out, "clip")
        else:
            out.fill(0)
            for line, first in zip(out, (row + 1).tolist(), strict=True):
                line[first:] = -np.inf
    else:
        place = np.arange(start, start + out.size)
        np.copyto(out, np.where(place % columns <= place // columns % rows, 0, -np.inf).reshape(out.shape))


# 0 where the column is at most the row, else -inf.
_causal = Source("causal", numpy=_causal_into, cuda="i % b <= i / b % a ? T(0) : T(-INFINITY)", cost=2)


def _weights_forward(scores: Tensor, mask: Any, scale: float, causal: bool) -> Tensor:
    x = wide(scores)
    if scale != 1.0:
        x = x * scale
    masked = type(mask) not in WEAK
    if masked:
        x = where(mask, x, -math.inf) if mask.dtype == bool_ else x + mask
    if causal:
        x = x + Tensor(_causal.make(x.shape, x.dtype, x.device, x.shape[-2:], here()))
    top = row_max(x, axis=-1, keepdims=True)
    if masked:  # where all is -inf, so that exp gives 0 instead of nan
        top = maximum(top, float(np.finfo(x.dtype).min))  # type: ignore[type-var]  # float32 or float64
    e = exp(x - top)
    total = row_sum(e)
    return astype(e / (maximum(total, 0.5) if masked else total), scores.dtype)  # a total is at least 1, or 0


# softmax(scores * scale + mask) along the last axis, and 0 in rows where nothing takes part.  A mask that is the number
# 0 is none; where a mask hides something y is 0, so the rules need not see it.
_weights = Composite(
    "attention_weights",
    ("scores", "mask"),
    forward=_weights_forward,
    vjp=(
        lambda g, y, like, scale: astype(through_softmax(g, y) * scale, like[0][1]),
        lambda g, y, like: astype(sum_to(through_softmax(g, y), like[1][0]), like[1][1]),
    ),
    jvp=(
        lambda t, y, scale: astype(through_softmax(wide(t) * scale, y), y.dtype),
        lambda t, y: astype(through_softmax(broadcast_to(wide(t), y.shape), y), y.dtype),
    ),
    params=("scale", "causal"),
)


def scaled_dot_product_attention(
    q: Any,
    k: Any,
    v: Any,
    /,
    *,
    mask: Any = None,
    causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
    generator: random.Generator | None = None,
) -> Tensor:
    """softmax(q kᵀ scale) v: for each query the mean of the values, weighted by how well their keys fit.

    `q` is [..., queries, features], `k` [..., keys, features], `v` [..., keys, values]; `scale` is 1 / sqrt(features)
    unless given.  `mask` broadcasts to [..., queries, keys]: bools, true where a key takes part, or floats that are
    added to the scaled scores.  `causal` lets query i see keys 0 to i.  A query that may see no key gets zeros (PyTorch
    gives nan there).  Weights are dropped with probability `dropout_p`.
    """
    q, k, v = floating(q), floating(k), floating(v)
    if q.ndim < 2 or k.ndim < 2 or v.ndim < 2 or q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
        raise ShapeError(
            f"scaled_dot_product_attention() got q {describe(q)}, k {describe(k)}, v {describe(v)}\n"
            "  q and k must agree in the last axis, k and v in the one before"
        )
    scores = matmul(q, matrix_transpose(k))
    factor = 1.0 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    if mask is None:
        weights = _weights(scores, 0.0, scale=factor, causal=causal)
    else:
        weights = _weights(scores, _mask(mask, scores), scale=factor, causal=causal)
    return matmul(dropout(weights, dropout_p, generator=generator), v)


def _mask(mask: Any, scores: Tensor) -> Tensor:
    """`mask` as a tensor that broadcasts to `scores`."""
    given = as_operand(mask)
    if given.dtype != bool_ and not is_float(given.dtype):
        raise DTypeError(
            f"scaled_dot_product_attention() got the mask {describe(given)}\n"
            "  bools say which keys take part; floats are added to the scores"
        )
    padded = (1,) * (scores.ndim - given.ndim) + given.shape
    if len(padded) != scores.ndim or any(a not in (1, b) for a, b in zip(padded, scores.shape, strict=True)):
        raise ShapeError(
            f"scaled_dot_product_attention() cannot broadcast the mask {describe(given)} to {list(scores.shape)}"
        )
    return given


__all__ = [
    "cross_entropy",
    "dropout",
    "embedding",
    "layer_norm",
    "log_softmax",
    "rms_norm",
    "rotary_embedding",
    "scaled_dot_product_attention",
    "softmax",
]
