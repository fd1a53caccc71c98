"""The stand-in's `cupy.cuda.memory_hook`: what is told of the allocations that its thread makes from pools."""

from __future__ import annotations

import threading
from typing import Any

_local = threading.local()  # the hooks of each thread, by name


def get_memory_hooks() -> dict[str, MemoryHook]:
    if not hasattr(_local, "hooks"):
        _local.hooks = {}
    return _local.hooks


class MemoryHook:
    """Does nothing: what a hook is told is in the names of its methods."""

    name = "MemoryHook"

    def __enter__(self) -> MemoryHook:
        hooks = get_memory_hooks()
        if self.name in hooks:
            raise KeyError(f"memory hook {self.name} already exists")
        hooks[self.name] = self
        return self

    def __exit__(self, *_: object) -> None:
        del get_memory_hooks()[self.name]

    def alloc_preprocess(self, **kwargs: Any) -> None:
        """Called before the driver is asked."""

    def alloc_postprocess(self, **kwargs: Any) -> None:
        """Called after that."""

    def malloc_preprocess(self, **kwargs: Any) -> None:
        """Called before the pool is asked."""

    def malloc_postprocess(self, **kwargs: Any) -> None:
        """Called after that."""

    def free_preprocess(self, **kwargs: Any) -> None:
        """Called before memory goes back to the pool."""

    def free_postprocess(self, **kwargs: Any) -> None:
        """Called after that."""


def _call(event: str, **told: int) -> None:
    """Call a method of every hook of this thread."""
    for hook in list(get_memory_hooks().values()):
        getattr(hook, event)(**told)
