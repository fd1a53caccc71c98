"""Sampling: tokens that a language model writes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..convert import asarray
from ..errors import DataError
from ..random import Generator, uniform
from ..trace import no_grad
from .gpt import GPT


def sample(
    model: GPT, prompt: Sequence[int], count: int, *, temperature: float = 1.0, generator: Generator | None = None
) -> list[int]:
    """The `count` tokens that `model` writes after those of `prompt`, which may be bytes.

    Each is drawn from what the model expects; a `temperature` below 1 makes the likely ones likelier.
    """
    if not prompt or not temperature > 0:
        raise DataError("sample() needs a prompt of at least one token, and a temperature above 0")
    tokens, training = list(prompt), model.training
    model.eval()
    try:
        with no_grad():
            draws = uniform(count, generator=generator).tolist()
            for draw in draws:
                window = np.array([tokens[-model.config.length :]])
                logits = model(asarray(window, device=model.token.weight.device))[0, -1].numpy().astype(np.float64)
                chances = np.cumsum(np.exp((logits - logits.max()) / temperature))
                tokens.append(int(np.searchsorted(chances, draw * chances[-1], side="right")))
    finally:
        model.train(training)
    return tokens[len(prompt) :]


__all__ = ["sample"]
