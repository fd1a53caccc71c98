"""LLaMA: a causal transformer with rotary positions, gated feed-forward networks and heads that share keys and values.

model = Llama(LlamaConfig.sized("7b"), dtype="bfloat16", device="meta")
loss = model.loss(tokens)  # int64[batch, length + 1]
loss.backward()

After Touvron et al., "LLaMA" (2023) and "Llama 2" (2023).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..devices import Device
from ..dtype import float32
from ..errors import DataError, ShapeError
from ..nn import Embedding, Linear, Module, RMSNorm, init
from ..nn.functional import rotary_embedding, scaled_dot_product_attention, silu
from ..ops.shape import broadcast_to, expand_dims, permute_dims, reshape
from ..random import Generator
from ..tensor import Tensor
from ..trace import no_grad
from .language import LanguageModel


@dataclass(frozen=True)
class LlamaConfig:
    """The sizes of a LLaMA.  `length` is the most tokens it sees at once, `hidden` the width inside its networks."""

    vocabulary: int = 256
    length: int = 256
    layers: int = 6
    heads: int = 6
    kv_heads: int | None = None  # of keys and values, each for as many heads of queries; None: one for each
    width: int = 384
    hidden: int = 1024
    rotary_base: float = 10000.0
    eps: float = 1e-6  # in the norms
    std: float = 0.02  # of the weights at the start

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % (2 * self.heads):
            raise ShapeError(
                f"a width of {self.width} does not divide into {self.heads} heads of pairs of features, which rotary"
                " positions turn"
            )
        if self.kv_heads is not None and (self.kv_heads < 1 or self.heads % self.kv_heads):
            raise ShapeError(f"{self.heads} heads cannot share {self.kv_heads} heads of keys and values evenly")

    @classmethod
    def sized(cls, name: str) -> LlamaConfig:
        """The sizes published as LLaMA "7b" and "13b", or "tiny" ones for tests."""
        if name not in SIZES:
            raise DataError(f"LLaMA has the sizes {', '.join(map(repr, SIZES))}, got {name!r}")
        return SIZES[name]


SIZES = {
    "tiny": LlamaConfig(vocabulary=64, length=16, layers=2, heads=4, kv_heads=2, width=32, hidden=88),
    "7b": LlamaConfig(vocabulary=32000, length=2048, layers=32, heads=32, width=4096, hidden=11008),
    "13b": LlamaConfig(vocabulary=32000, length=2048, layers=40, heads=40, width=5120, hidden=13824),
}


class Llama(LanguageModel):
    """Logits for the token after each position.

    `wrap_block(block)` is called in place of each block: a function that computes it again in the backward pass, say.
    `run_chain(functions, x)` runs the blocks and what follows them, checkpointing some of them, say.
    """

    def __init__(
        self,
        config: LlamaConfig,
        *,
        dtype: Any = float32,
        device: str | Device | None = None,
        generator: Generator | None = None,
        wrap_block: Callable[[Block], Callable[[Tensor], Tensor]] | None = None,
        run_chain: Callable[[list[Callable[[Any], Any]], Tensor], Tensor] | None = None,
    ) -> None:
        c, place = config, {"dtype": dtype, "device": device, "generator": generator}
        self.config, self.wrap_block, self.run_chain = config, wrap_block, run_chain
        self.token = Embedding(c.vocabulary, c.width, **place)
        self.blocks = [Block(c, **place) for _ in range(c.layers)]
        self.norm = RMSNorm(c.width, c.eps, dtype=dtype, device=device)
        self.head = Linear(c.width, c.vocabulary, bias=False, **place)
        self._initialize(generator)

    def _initialize(self, generator: Generator | None) -> None:
        """Normal weights, smaller by sqrt(2 layers) where a block adds to the stream."""
        std = self.config.std
        small = std / math.sqrt(2 * self.config.layers)
        with no_grad():
            for name, p in self.named_parameters():
                if p.ndim == 2:
                    wide = small if name.endswith(("out.weight", "down.weight")) else std
                    p.copy_(init.normal(p.shape, std=wide, dtype=p.dtype, device=p.device, generator=generator))


class Block(Module):
    """Attention, then a gated network for each position, both added to the stream they read through a norm.

    `gate`, `down` and `up` are what the paper's code calls w1, w2 and w3.
    """

    def __init__(self, config: LlamaConfig, **place: Any) -> None:
        c, where = config, {"dtype": place["dtype"], "device": place["device"]}
        self.norm1 = RMSNorm(c.width, c.eps, **where)
        self.attention = GroupedAttention(c, **place)
        self.norm2 = RMSNorm(c.width, c.eps, **where)
        self.gate = Linear(c.width, c.hidden, bias=False, **place)
        self.up = Linear(c.width, c.hidden, bias=False, **place)
        self.down = Linear(c.hidden, c.width, bias=False, **place)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, length, width] to the same."""
        x = x + self.attention(self.norm1(x))
        z = self.norm2(x)
        y: Tensor = x + self.down(silu(self.gate(z)) * self.up(z))
        return y


class GroupedAttention(Module):
    """Causal self-attention with rotary positions, in which groups of query heads share a head of keys and values."""

    def __init__(self, config: LlamaConfig, **place: Any) -> None:
        c = config
        self.heads, self.kv_heads = c.heads, c.heads if c.kv_heads is None else c.kv_heads
        self.size, self.rotary_base = c.width // c.heads, c.rotary_base  # the size of a head
        self.q = Linear(c.width, self.heads * self.size, bias=False, **place)
        self.k = Linear(c.width, self.kv_heads * self.size, bias=False, **place)
        self.v = Linear(c.width, self.kv_heads * self.size, bias=False, **place)
        self.out = Linear(self.heads * self.size, c.width, bias=False, **place)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, length, width] to the same."""
        q, k, v = [self._by_heads(project(x)) for project in (self.q, self.k, self.v)]
        q, k = [rotary_embedding(z, base=self.rotary_base) for z in (q, k)]
        if self.kv_heads == self.heads:
            side_by_side = permute_dims(scaled_dot_product_attention(q, k, v, causal=True), (0, 2, 1, 3))
        else:
            side_by_side = self._shared(q, k, v)
        y: Tensor = self.out(reshape(side_by_side, x.shape))
        return y

    def _by_heads(self, x: Tensor) -> Tensor:
        """[batch, length, heads * size] to [batch, heads, length, size]."""
        return permute_dims(reshape(x, (*x.shape[:2], x.shape[2] // self.size, self.size)), (0, 2, 1, 3))

    def _shared(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The result for fewer keys and values than queries, [batch, length, kv_heads, group, size].

        Each pair of a batch and a head of keys stands as a batch of its own, in which the group's heads see that head
        by a stride of 0: attention reads it where it lies.
        """
        batch, heads, length, size = q.shape
        group, pairs = heads // self.kv_heads, batch * self.kv_heads
        q = reshape(q, (pairs, group, length, size))
        k, v = [reshape(z, (pairs, length, size)) for z in (k, v)]  # computed now: what is pending would be repeated
        k, v = [broadcast_to(expand_dims(z, axis=1), q.shape) for z in (k, v)]
        y = scaled_dot_product_attention(q, k, v, causal=True)
        return permute_dims(reshape(y, (batch, self.kv_heads, group, length, size)), (0, 3, 1, 2, 4))

    def extra_repr(self) -> str:
        """The heads."""
        return f"heads={self.heads}, kv_heads={self.kv_heads}"


__all__ = ["Block", "GroupedAttention", "Llama", "LlamaConfig", "SIZES"]
