"""The layers of feed-forward networks and transformers.

They begin as PyTorch's do: `generator` is where their numbers come from, `dtype` and `device` say what they are.
Weights are `[out, in]`; their transpose is a view, which costs nothing.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..array import describe
from ..devices import Device
from ..dtype import DEFAULT_FLOAT
from ..errors import DataError, ShapeError
from ..ops.attention import attend_packed
from ..ops.join import unstack
from ..ops.shape import permute_dims, reshape
from ..random import Generator
from ..tensor import Tensor
from . import functional as F
from . import init
from .module import Module, Parameter

Placement = str | Device | None


class Linear(Module):
    """x @ weight.T + bias, for x of shape [..., in_features]."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        dtype: Any = DEFAULT_FLOAT,
        device: Placement = None,
        generator: Generator | None = None,
    ) -> None:
        bound = 1 / math.sqrt(max(1, in_features))
        draw = functools.partial(init.uniform, low=-bound, high=bound, dtype=dtype, device=device, generator=generator)
        self.weight = Parameter(draw((out_features, in_features)))
        self.bias = Parameter(draw((out_features,))) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        if x.shape[-1:] != self.weight.shape[1:]:
            raise ShapeError(
                f"Linear({self.extra_repr()}) got {describe(x)}\n  its last axis must be {self.weight.shape[1]}"
            )
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        """The sizes."""
        out_features, in_features = self.weight.shape
        return f"{in_features}, {out_features}" + (", bias=False" if self.bias is None else "")


class Embedding(Module):
    """A row of weight[num_embeddings, features] for each index."""

    def __init__(
        self,
        num_embeddings: int,
        features: int,
        *,
        dtype: Any = DEFAULT_FLOAT,
        device: Placement = None,
        generator: Generator | None = None,
    ) -> None:
        self.weight = Parameter(
            init.normal((num_embeddings, features), dtype=dtype, device=device, generator=generator)
        )

    def forward(self, indices: Tensor) -> Tensor:
        """int[...] to [..., features]."""
        return F.embedding(self.weight, indices)

    def extra_repr(self) -> str:
        """The sizes."""
        return ", ".join(map(str, self.weight.shape))


class LayerNorm(Module):
    """Mean 0 and variance 1 over the last axis, then a scale and a shift for each feature."""

    def __init__(
        self,
        features: int,
        eps: float = 1e-5,
        bias: bool = True,
        *,
        dtype: Any = DEFAULT_FLOAT,
        device: Placement = None,
    ) -> None:
        self.weight = Parameter(init.ones((features,), dtype=dtype, device=device))
        self.bias = Parameter(init.zeros((features,), dtype=dtype, device=device)) if bias else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., features], normalized."""
        return F.layer_norm(x, self.weight, self.bias, eps=self.eps)

    def extra_repr(self) -> str:
        """The size."""
        return f"{self.weight.shape[0]}, eps={self.eps}" + (", bias=False" if self.bias is None else "")


class RMSNorm(Module):
    """Mean square 1 over the last axis, then a scale for each feature."""

    def __init__(
        self, features: int, eps: float = 1e-5, *, dtype: Any = DEFAULT_FLOAT, device: Placement = None
    ) -> None:
        self.weight = Parameter(init.ones((features,), dtype=dtype, device=device))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., features], normalized."""
        return F.rms_norm(x, self.weight, eps=self.eps)

    def extra_repr(self) -> str:
        """The size."""
        return f"{self.weight.shape[0]}, eps={self.eps}"


class Dropout(Module):
    """In training, each element 0 with probability p and else divided by 1 - p; in evaluation, nothing."""

    def __init__(self, p: float = 0.5, *, generator: Generator | None = None) -> None:
        if not 0 <= p < 1:
            raise DataError(f"Dropout() needs a probability below 1, got {p}")
        self.p, self.generator = p, generator

    def forward(self, x: Tensor) -> Tensor:
        """x with some elements dropped."""
        return F.dropout(x, self.p, generator=self.generator, training=self.training)

    def extra_repr(self) -> str:
        """The probability."""
        return str(self.p)


class MultiHeadAttention(Module):
    """Self-attention in `heads` heads, between a projection to queries, keys and values and one of the result.

    `causal`: a position sees itself and those before it.  `rotary`: queries and keys are turned by their position;
    see `rotary_embedding` for the base.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        causal: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
        rotary: bool = False,
        rotary_base: float = 10000.0,
        dtype: Any = DEFAULT_FLOAT,
        device: Placement = None,
        generator: Generator | None = None,
    ) -> None:
        if width % heads:
            raise ShapeError(f"a width of {width} does not divide into {heads} heads")
        if rotary and width // heads % 2:
            raise ShapeError(f"rotary positions turn pairs of features, and a head has {width // heads}")
        make = functools.partial(Linear, bias=bias, dtype=dtype, device=device, generator=generator)
        self.qkv = make(width, 3 * width)
        self.out = make(width, width)
        self.heads, self.causal, self.dropout, self.generator = heads, causal, dropout, generator
        self.rotary, self.rotary_base = rotary, rotary_base

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[batch, length, width] to the same; `mask` is True where a query (rows) may see a key (columns)."""
        if x.ndim != 3:
            raise ShapeError(f"MultiHeadAttention() needs [batch, length, width], got {describe(x)}")
        batch, length, width = x.shape
        split = reshape(self.qkv(x), (batch, length, 3, self.heads, width // self.heads))
        dropout = self.dropout if self.training else 0.0
        if mask is None and not (self.rotary or dropout):
            y = attend_packed(split, causal=self.causal, scale=1.0 / math.sqrt(width // self.heads))
            if y is not None:
                return self._merged(y, x.shape)
        q, k, v = unstack(permute_dims(split, (2, 0, 3, 1, 4)))
        if self.rotary:
            q, k = (F.rotary_embedding(x, base=self.rotary_base) for x in (q, k))
        y = F.scaled_dot_product_attention(
            q,
            k,
            v,
            mask=mask,
            causal=self.causal,
            dropout_p=dropout,
            generator=self.generator,
        )
        return self._merged(y, x.shape)

    def _merged(self, y: Tensor, shape: tuple[int, ...]) -> Tensor:
        """What the projection makes of the heads' results, [batch, heads, length, width / heads], side by side."""
        merged: Tensor = self.out(reshape(permute_dims(y, (0, 2, 1, 3)), shape))
        return merged

    def extra_repr(self) -> str:
        """The options."""
        shown = [f"heads={self.heads}"]
        shown += [name for name in ("causal", "rotary") if getattr(self, name)]
        return ", ".join(shown + [f"dropout={self.dropout}"] * (self.dropout > 0))


# --- composition ------------------------------------------------------------------------------


class Sequential(Module):
    """Layers, or functions, one after the other."""

    def __init__(self, *layers: Callable[[Any], Any]) -> None:
        for k, layer in enumerate(layers):
            setattr(self, str(k), layer)  # so that parameters are called "0.weight"

    def forward(self, x: Any) -> Any:
        """What the last layer makes of what those before it made of x."""
        for layer in self:
            x = layer(x)
        return x

    def __iter__(self) -> Iterator[Callable[[Any], Any]]:
        return (layer for name, layer in vars(self).items() if name.isdigit())

    def __len__(self) -> int:
        return sum(name.isdigit() for name in vars(self))

    def __getitem__(self, k: int) -> Callable[[Any], Any]:
        layers: Sequence[Callable[[Any], Any]] = list(self)
        return layers[k]


class GELU(Module):
    """x times the mass of the normal distribution below x."""

    def __init__(self, approximate: str = "none") -> None:
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        """gelu of each element."""
        return F.gelu(x, approximate=self.approximate)


class ReLU(Module):
    """max(x, 0)."""

    def forward(self, x: Tensor) -> Tensor:
        """relu of each element."""
        y: Tensor = F.relu(x)
        return y


class SiLU(Module):
    """x times sigmoid(x)."""

    def forward(self, x: Tensor) -> Tensor:
        """silu of each element."""
        y: Tensor = F.silu(x)
        return y


class Tanh(Module):
    """The hyperbolic tangent."""

    def forward(self, x: Tensor) -> Tensor:
        """tanh of each element."""
        y: Tensor = F.tanh(x)
        return y


__all__ = [
    "Dropout",
    "Embedding",
    "GELU",
    "LayerNorm",
    "Linear",
    "MultiHeadAttention",
    "RMSNorm",
    "ReLU",
    "Sequential",
    "SiLU",
    "Tanh",
]
