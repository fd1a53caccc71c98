"""What language models share: tokens in, logits for the token after each position out, and the loss over them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from ..array import describe
from ..errors import ShapeError
from ..nn import Module
from ..nn.functional import cross_entropy, linear_cross_entropy
from ..ops.shape import reshape
from ..tensor import Tensor

LARGE = 8192  # tokens of a vocabulary from which on the head goes by chunks of rows


class LanguageModel(Module):
    """A stack of `blocks` between an embedding of tokens, `token`, and a `norm` and a `head`.

    `wrap_block(block)` is called in place of each block: a function that computes it again in the backward pass, say.
    """

    config: Any  # with at least `vocabulary` and `length`, a dataclass
    wrap_block: Callable[[Any], Callable[[Tensor], Tensor]] | None
    token: Any
    blocks: list[Any]
    norm: Any
    head: Any

    def forward(self, tokens: Tensor) -> Tensor:
        """int[batch, length] to logits[batch, length, vocabulary]."""
        logits: Tensor = self.head(self._features(tokens))
        return logits

    def _embedded(self, tokens: Tensor) -> Tensor:
        """int[batch, length] to what the first block reads, [batch, length, width]."""
        x: Tensor = self.token(tokens)
        return x

    def _features(self, tokens: Tensor) -> Tensor:
        """int[batch, length] to what the head reads, [batch, length, width]."""
        most = self.config.length
        if tokens.ndim != 2 or tokens.shape[1] > most:
            raise ShapeError(f"{type(self).__name__} needs tokens [batch, up to {most}], got {describe(tokens)}")
        x = self._embedded(tokens)
        for block in self.blocks:
            x = (block if self.wrap_block is None else self.wrap_block(block))(x)
        features: Tensor = self.norm(x)
        return features

    def loss(self, tokens: Tensor) -> Tensor:
        """The mean cross entropy, in nats, of predicting each token of int[batch, length + 1] from those before it.

        Of a large vocabulary the logits are never held all at once.
        """
        before, targets = tokens[:, :-1], tokens[:, 1:]
        if self.config.vocabulary >= LARGE:
            large: Tensor = linear_cross_entropy(self._features(before), self.head.weight, targets)
            return large
        logits = self(before)
        loss: Tensor = cross_entropy(reshape(logits, (-1, logits.shape[-1])), reshape(targets, (-1,)))
        return loss

    def extra_repr(self) -> str:
        """The sizes."""
        return ", ".join(f"{name}={value}" for name, value in asdict(self.config).items())
