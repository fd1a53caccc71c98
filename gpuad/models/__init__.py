"""Models, written as a user would write them."""

from .gpt import GPT, GPTConfig
from .sample import sample

__all__ = ["GPT", "GPTConfig", "sample"]
