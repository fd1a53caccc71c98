"""Models, written as a user would write them."""

from .gpt import GPT, GPTConfig
from .llama import Llama, LlamaConfig
from .sample import sample

__all__ = ["GPT", "GPTConfig", "Llama", "LlamaConfig", "sample"]
