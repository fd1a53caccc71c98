"""Held-out loss of smoothed n-gram tables: what a model must beat to have learnt more than byte statistics.

Each level is smoothed with the one below it by Witten and Bell's rule, down to a uniform guess. With N(abc) the number
of times `c` followed `ab` in the training bytes, N(ab) the times anything did and T(ab) the number of different bytes
that did,

    P(c | ab) = (N(abc) + T(ab) P(c | b)) / (N(ab) + T(ab)),

and a context that never occurred passes the level below through. Nothing is fitted on the held-out bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import DataError

_SYMBOLS = 256
_CHUNK = 1 << 20  # bytes counted or scored at once; a code takes eight bytes, so this bounds the scratch memory


class _Level(NamedTuple):
    """The counts of n-grams of one length; an n-gram's code is its bytes read as one big-endian number."""

    counts: npt.NDArray[np.uint32]  # uint32[256**n]: N(abc), by code
    totals: npt.NDArray[np.int64]  # int64[256**(n-1)]: N(ab), by the context's code
    kinds: npt.NDArray[np.int64]  # int64[256**(n-1)]: T(ab), by the context's code


def ngram_loss(train: npt.NDArray[np.uint8], held_out: npt.NDArray[np.uint8], order: int) -> float:
    """The mean loss, in nats per byte, with which a table of `order`-grams of `train` predicts `held_out`.

    `order` is 1, 2 (bigram) or 3 (trigram). Every held-out byte is scored: the first ones, which lack a full context,
    by the lower levels. So the losses of different orders are over the same bytes.

    >>> aab = np.frombuffer(b"aab", np.uint8)
    >>> round(ngram_loss(aab, aab[:1], 1), 4)  # -log((2 + 2 / 256) / (3 + 2))
    0.9124
    """
    if order not in (1, 2, 3):
        raise DataError(f"ngram_loss() got order={order}\n  use 1, 2 (bigram) or 3 (trigram): the tables are dense")
    for name, data in (("train", train), ("held_out", held_out)):
        if data.dtype != np.uint8 or data.ndim != 1 or not data.size:
            raise DataError(
                f"ngram_loss() got {name} = {data.dtype}{list(data.shape)}\n"
                "  pass a non-empty uint8[bytes], such as dataset.train and dataset.held_out"
            )
    levels = [_count(train, n) for n in range(1, order + 1)]
    loss = 0.0
    for n in range(1, min(order, held_out.size + 1)):
        loss -= float(np.log(_probability(_codes(held_out[:n], n), levels[:n])).sum())
    for start in range(0, held_out.size - order + 1, _CHUNK):
        codes = _codes(held_out[start : start + _CHUNK + order - 1], order)
        loss -= float(np.log(_probability(codes, levels)).sum())
    return loss / held_out.size


def _codes(data: npt.NDArray[np.uint8], n: int) -> npt.NDArray[np.int64]:
    """The code of the n-gram at each position of `data` where a whole one fits: int64[data.size - n + 1]."""
    size = max(0, data.size - n + 1)
    codes = np.zeros(size, np.int64)
    for k in range(n):
        codes = codes * _SYMBOLS + data[k : k + size]
    return codes


def _count(train: npt.NDArray[np.uint8], n: int) -> _Level:
    """How often each n-gram occurs in `train`, and how often and how variously each context is continued."""
    counts = np.zeros(_SYMBOLS**n, np.uint32)
    for start in range(0, train.size - n + 1, _CHUNK):
        # Not bincount: for trigrams its int64 result, once per chunk, would be twice this table.
        np.add.at(counts, _codes(train[start : start + _CHUNK + n - 1], n), np.uint32(1))
    by_context = counts.reshape(-1, _SYMBOLS)
    return _Level(counts, by_context.sum(axis=1, dtype=np.int64), np.count_nonzero(by_context, axis=1).astype(np.int64))


def _probability(codes: npt.NDArray[np.int64], levels: Sequence[_Level]) -> npt.NDArray[np.float64]:
    """P(last byte | the bytes before it) for each code, whose n-grams are as long as there are levels."""
    probability = np.full(codes.size, 1.0 / _SYMBOLS)
    for n, level in enumerate(levels, start=1):
        suffix = codes % _SYMBOLS**n
        context = suffix // _SYMBOLS
        kinds = level.kinds[context]
        weight = level.totals[context] + kinds
        mixed = (level.counts[suffix] + kinds * probability) / np.maximum(weight, 1)
        probability = np.where(weight > 0, mixed, probability)
    return probability
