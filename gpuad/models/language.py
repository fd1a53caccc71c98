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
    `run_chain(functions, x)` gives what the last of the functions returns, each given what the one before returns: the
    blocks, and what follows them.  It may checkpoint some of them.
    """

    config: Any  # with at least `vocabulary` and `length`, a dataclass
    wrap_block: Callable[[Any], Callable[[Tensor], Tensor]] | None
    run_chain: Callable[[list[Callable[[Any], Any]], Tensor], Tensor] | None
    token: Any
    blocks: list[Any]
    norm: Any
    head: Any

    def forward(self, tokens: Tensor) -> Tensor:
        """int[batch, length] to logits[batch, length, vocabulary]."""
        return self._run(tokens, lambda x: self.head(self.norm(x)))

    def _embedded(self, tokens: Tensor) -> Tensor:
        """int[batch, length] to what the first block reads, [batch, length, width]."""
        x: Tensor = self.token(tokens)
        return x

    def _run(self, tokens: Tensor, end: Callable[[Tensor], Tensor]) -> Tensor:
        """What `end` makes of [batch, length, width], which the last block gives for int[batch, length]."""
        most = self.config.length
        if tokens.ndim != 2 or tokens.shape[1] > most:
            raise ShapeError(f"{type(self).__name__} needs tokens [batch, up to {most}], got {describe(tokens)}")
        x = self._embedded(tokens)
        blocks = self.blocks if self.wrap_block is None else [self.wrap_block(block) for block in self.blocks]
        if self.run_chain is not None:
            return self.run_chain([*blocks, end], x)
        for block in blocks:
            x = block(x)
        return end(x)

    def loss(self, tokens: Tensor) -> Tensor:
        """The mean cross entropy, in nats, of predicting each token of int[batch, length + 1] from those before it.

        Of a large vocabulary the logits are never held all at once.
        """
        before, targets = tokens[:, :-1], tokens[:, 1:]
        small = self.config.vocabulary < LARGE

        def end(x: Tensor) -> Tensor:
            features = self.norm(x)
            if not small:
                return linear_cross_entropy(features, self.head.weight, targets)
            logits = self.head(features)
            return cross_entropy(reshape(logits, (-1, logits.shape[-1])), reshape(targets, (-1,)))

        return self._run(before, end)

    def extra_repr(self) -> str:
        """The sizes."""
        return ", ".join(f"{name}={value}" for name, value in asdict(self.config).items())
