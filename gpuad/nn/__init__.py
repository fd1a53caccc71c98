"""Networks: Modules and their layers, the functions behind them, initial values, files of weights."""

from . import functional, init
from .layers import (
    GELU,
    Dropout,
    Embedding,
    LayerNorm,
    Linear,
    MultiHeadAttention,
    ReLU,
    RMSNorm,
    Sequential,
    SiLU,
    Tanh,
)
from .module import Module, Parameter
from .serialize import load, load_metadata, save

__all__ = [
    "Dropout",
    "Embedding",
    "GELU",
    "LayerNorm",
    "Linear",
    "Module",
    "MultiHeadAttention",
    "Parameter",
    "RMSNorm",
    "ReLU",
    "Sequential",
    "SiLU",
    "Tanh",
    "functional",
    "init",
    "load",
    "load_metadata",
    "save",
]
