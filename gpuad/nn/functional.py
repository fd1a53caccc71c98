"""The functions behind the layers, under PyTorch's names."""

from __future__ import annotations

from ..ops.activations import gelu, relu, sigmoid, silu, softplus
from ..ops.attention import scaled_dot_product_attention
from ..ops.elementwise import tanh
from ..ops.head import linear_cross_entropy
from ..ops.linalg import linear
from ..ops.nn import (
    cross_entropy,
    dropout,
    embedding,
    layer_norm,
    log_softmax,
    rms_norm,
    rotary_embedding,
    softmax,
)

__all__ = [
    "cross_entropy",
    "dropout",
    "embedding",
    "gelu",
    "layer_norm",
    "linear",
    "linear_cross_entropy",
    "log_softmax",
    "relu",
    "rms_norm",
    "rotary_embedding",
    "scaled_dot_product_attention",
    "sigmoid",
    "silu",
    "softmax",
    "softplus",
    "tanh",
]
