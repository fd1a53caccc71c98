"""GPT: a causal transformer over tokens, after GPT-2.

model = GPT(GPTConfig(length=256, layers=6, heads=6, width=384))
loss = model.loss(tokens)  # int64[batch, length + 1]
loss.backward()
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..devices import Device
from ..dtype import float32
from ..errors import DataError
from ..nn import Dropout, Embedding, LayerNorm, Linear, Module, MultiHeadAttention, init
from ..nn.functional import gelu
from ..random import Generator
from ..tensor import Tensor
from ..trace import no_grad
from .language import LanguageModel


@dataclass(frozen=True)
class GPTConfig:
    """The sizes of a GPT.  `length` is the most tokens it sees at once."""

    vocabulary: int = 256
    length: int = 256
    layers: int = 6
    heads: int = 6
    width: int = 384
    dropout: float = 0.0
    tied: bool = True  # the head's weight is the token embedding's
    positions: str = "learned"  # or "rotary"
    rotary_base: float = 10000.0  # smaller for short lengths: every pair of features then turns noticeably
    std: float = 0.02  # of the weights at the start

    def __post_init__(self) -> None:
        if self.positions not in ("learned", "rotary"):
            raise DataError(f'positions are "learned" or "rotary", got {self.positions!r}')

    @classmethod
    def gpt2(cls) -> GPTConfig:
        """The sizes of the published GPT-2 with 124,439,808 parameters.

        GPT computes what that model does: norms (eps 1e-5) before attention and network and after the last block,
        biases everywhere but in the head, which has the token embedding's weight, gelu by tanh.  Its other weights
        are [in, out], the transposes of these; it was trained with a dropout of 0.1.
        """
        return cls(vocabulary=50257, length=1024, layers=12, heads=12, width=768)


class GPT(LanguageModel):
    """Logits for the token after each position.

    `wrap_block(block)` is called in place of each block: a function that computes it again in the backward pass, say.
    `run_chain(functions, x)` runs the blocks and what follows them, checkpointing some of them, say.
    """

    def __init__(
        self,
        config: GPTConfig,
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
        self.position = Embedding(c.length, c.width, **place) if c.positions == "learned" else None
        self.dropout = Dropout(c.dropout, generator=generator)
        self.blocks = [Block(c, **place) for _ in range(c.layers)]
        self.norm = LayerNorm(c.width, dtype=dtype, device=device)
        self.head = Linear(c.width, c.vocabulary, bias=False, **place)
        self._initialize(generator)
        if c.tied:
            self.head.weight = self.token.weight

    def _initialize(self, generator: Generator | None) -> None:
        """As GPT-2: normal weights, smaller by sqrt(2 layers) where a block adds to the stream, and no biases."""
        std = self.config.std
        small = std / math.sqrt(2 * self.config.layers)
        with no_grad():
            for name, p in self.named_parameters():
                if p.ndim == 2:
                    wide = small if name.endswith(("out.weight", "down.weight")) else std
                    p.copy_(init.normal(p.shape, std=wide, dtype=p.dtype, device=p.device, generator=generator))
                elif name.endswith("bias"):
                    p.copy_(init.zeros(p.shape, dtype=p.dtype, device=p.device))

    def _embedded(self, tokens: Tensor) -> Tensor:
        x: Tensor = self.token(tokens)
        if self.position is not None:
            x = x + self.position.weight[: tokens.shape[1]]
        found: Tensor = self.dropout(x)
        return found


class Block(Module):
    """Attention, then a network for each position, both added to the stream they read through a norm."""

    def __init__(self, config: GPTConfig, **place: Any) -> None:
        c, where = config, {"dtype": place["dtype"], "device": place["device"]}
        self.norm1 = LayerNorm(c.width, **where)
        self.attention = MultiHeadAttention(
            c.width,
            c.heads,
            causal=True,
            dropout=c.dropout,
            rotary=c.positions == "rotary",
            rotary_base=c.rotary_base,
            **place,
        )
        self.norm2 = LayerNorm(c.width, **where)
        self.up = Linear(c.width, 4 * c.width, **place)
        self.down = Linear(4 * c.width, c.width, **place)
        self.dropout = Dropout(c.dropout, generator=place["generator"])

    def forward(self, x: Tensor) -> Tensor:
        """[batch, length, width] to the same."""
        x = x + self.dropout(self.attention(self.norm1(x)))
        y: Tensor = x + self.dropout(self.down(gelu(self.up(self.norm2(x)), approximate="tanh")))
        return y


__all__ = ["Block", "GPT", "GPTConfig"]
