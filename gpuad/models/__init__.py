"""Models, written as a user would write them."""

from .gpt import GPT, GPTConfig

__all__ = ["GPT", "GPTConfig"]
