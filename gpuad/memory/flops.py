"""How much arithmetic products of matrices and attention are: a multiplication and an addition are two operations.

What fused kernels do beside that is not counted, as is usual: it is bound by memory.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def flops_of(op: Any, arrays: list[Any], params: dict[str, Any]) -> int:
    """The operations of one op on these data; 0 for what is no product."""
    count = _COUNTS.get(op.name)
    return 0 if count is None else int(count(arrays, params))


def _matmul(arrays: list[Any], params: dict[str, Any]) -> int:
    a, b = arrays[0].shape, arrays[1].shape
    batch = np.broadcast_shapes(a[:-2], b[:-2])
    products: int = 2 * math.prod(batch) * math.prod(a[-2:]) * int(b[-1])
    return products


def _linear(arrays: list[Any], params: dict[str, Any]) -> int:
    products: int = 2 * math.prod(arrays[0].shape) * int(arrays[1].shape[0])
    return products


def _linear_weight(arrays: list[Any], params: dict[str, Any]) -> int:
    products: int = 2 * math.prod(arrays[0].shape) * int(arrays[1].shape[-1])
    return products


def _attention(arrays: list[Any], params: dict[str, Any]) -> int:
    """Two products of queries and keys; a causal one needs half of each."""
    q, k, v = arrays[:3]
    scores = math.prod(q.shape[:3]) * int(k.shape[2])
    products: int = 2 * scores * int(q.shape[3] + v.shape[3])
    return products // (2 if params.get("causal") else 1)


def _head(arrays: list[Any], params: dict[str, Any]) -> int:
    """A product for the logits, and one for each gradient."""
    each: int = 2 * math.prod(arrays[0].shape) * int(arrays[1].shape[0])
    return each * (1 + int(params["of_x"]) + int(params["of_weight"]))


_COUNTS = {
    "matmul": _matmul,
    "linear": _linear,
    "linear_weight": _linear_weight,
    "attention": _attention,
    # the scores again, and two products for each of the gradients of weights and values
    "attention_backward": lambda arrays, params: 5 * _attention(arrays, params) // 2,
    "linear_cross_entropy": _head,
}
