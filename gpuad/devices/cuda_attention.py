"""Attention on a GPU by `kernels/attention.cu`: on tensor cores for half types from sm_80 on, else in float.

Arrays are CuPy's, [batch, heads, positions, features], with contiguous features.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..dtype import HALVES, DType
from ..fuse.geometry import Geometry
from ..fuse.prelude import c_name
from ..fuse.sources import source

DTYPES = ("float32", "float16", "bfloat16")
MOST_FEATURES = 256
STEP = 8  # features come in so many
WORTH = 1 << 15  # scores below which products of matrices do as well
TENSOR_CORES = 80  # the first architecture whose tensor cores the text uses
THREADS = 128
DELTAS = 16  # queries of a block of attention_delta


def takes(q: Any, k: Any, v: Any) -> bool:
    """Are the kernels for arrays of these shapes and dtypes?"""
    return (
        q.dtype.name in DTYPES
        and q.dtype == k.dtype == v.dtype
        and len(q.shape) == len(k.shape) == len(v.shape) == 4
        and q.shape[:2] == k.shape[:2] == v.shape[:2]
        and 0 < q.shape[3] == v.shape[3] <= MOST_FEATURES
        and q.shape[3] % STEP == 0
        and q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] >= WORTH
    )


@dataclass(frozen=True)
class Tiles:
    """Rows that a block has of its own and streams at a time, and its bytes of shared memory, as the text has them."""

    own: int
    stream: int
    shared: int
    split: bool = False  # dk and dv in blocks of their own


@functools.cache
def tiles(features: int, tensor_cores: bool, backward: bool) -> Tiles:
    """Those of `attention_mma.cuh` or `attention_fma.cuh`."""
    if tensor_cores:
        padded = -(-features // 16) * 16
        own = 128 if padded <= 64 and not backward else 64
        stream = 64 if padded <= 64 else 32 if padded <= 192 else 16
        stages, row = 2 if padded <= 128 or not backward else 1, (padded + 8) * 2
        scratch = 0
    else:
        padded = -(-features // 32) * 32
        own = 64 if padded <= 64 and not backward else 32 if padded <= 128 else 16
        stream = 32 if padded <= 64 else 8 if backward and padded > 224 else 16
        stages, row = 1, (padded + 4) * 4
        scratch = 4 * own * (stream + 4)
    rows = (2 if backward else 1) * own + stages * 2 * stream
    of_rows = stages * 2 * stream * 4 if backward else 0
    return Tiles(own, stream, rows * row + scratch + of_rows, tensor_cores and padded > 128)


@functools.cache
def text(dtype: DType, features: int, causal: bool, tensor_cores: bool) -> str:
    """What follows the prelude, for one dtype and number of features."""
    defined = {"T": c_name(dtype), "HEAD": features, "CAUSAL": int(causal), "TENSOR_CORES": int(tensor_cores)}
    return "".join(f"#define {name} {value}\n" for name, value in defined.items()) + source("attention.cu")


class Attention:
    """The kernels on one device.  Their methods are called inside `device.using()`."""

    def __init__(self, device: Any) -> None:
        self.device = device
        self.modern = int(device.architecture.removeprefix("sm_")) >= TENSOR_CORES

    def forward(self, q: Any, k: Any, v: Any, out: Any, lse: Any, *, causal: bool, scale: float) -> None:
        """Write softmax(scale q kᵀ) v to `out` and the logarithm of each query's sum to `lse`, float32."""
        given = [*_rows(q, k, v, out), lse, *_sizes(q, k), np.float32(scale)]
        self._launch("attention_forward", q, q.shape[2], given, causal)

    def backward(
        self,
        q: Any,
        k: Any,
        v: Any,
        out: Any,
        lse: Any,
        g: Any,
        dq: Any,
        dk: Any,
        dv: Any,
        *,
        causal: bool,
        scale: float,
    ) -> None:
        """Write to `dq`, `dk` and `dv` the cotangents of q, k and v from that of `out`."""
        pairs, queries = q.shape[0] * q.shape[1], q.shape[2]
        delta = self.device.allocate((pairs, queries), np.dtype(np.float32), "workspace")
        heads = np.int32(q.shape[1]), np.int32(queries)
        blocks = -(-pairs * queries // DELTAS)
        if blocks:
            self.device.launcher.launch(
                self._text(q, causal),
                "attention_delta",
                [*_rows(out, g), delta.data, np.int64(pairs), *heads],
                Geometry(blocks, THREADS),
            )
        shared = [lse, delta.data, *_sizes(q, k), np.float32(scale)]
        given = [*_rows(q, k, v, g, dq), *shared]
        self._launch("attention_backward_query", q, queries, given, causal, backward=True)
        given = [*_rows(q, k, v, g, dk, dv), *shared]
        self._launch("attention_backward_key", q, k.shape[2], given, causal, backward=True, halves=True)

    def _launch(
        self, name: str, q: Any, rows: int, given: list[Any], causal: bool, backward: bool = False, halves: bool = False
    ) -> None:
        """Run the entry `name`, whose blocks have `rows` to share; with `halves` it makes two results."""
        tile = tiles(q.shape[3], self._on_tensor_cores(q), backward)
        blocks = q.shape[0] * q.shape[1] * -(-rows // tile.own)
        layers = 2 if halves and tile.split else 1
        if blocks:
            shape = Geometry(blocks, THREADS, shared=tile.shared, layers=layers)
            self.device.launcher.launch(self._text(q, causal), name, given, shape)

    def _text(self, q: Any, causal: bool) -> str:
        return text(q.dtype, q.shape[3], causal, self._on_tensor_cores(q))

    def _on_tensor_cores(self, q: Any) -> bool:
        return self.modern and q.dtype in HALVES


def _rows(*arrays: Any) -> list[Any]:
    """Each array with its strides of batch, head and position, in elements."""
    found: list[Any] = []
    for x in arrays:
        found += [x, *[np.int64(stride // x.itemsize) for stride in x.strides[:3]]]
    return found


def _sizes(q: Any, k: Any) -> list[Any]:
    return [np.int32(q.shape[1]), np.int32(q.shape[2]), np.int32(k.shape[2])]
