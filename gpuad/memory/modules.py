"""What Modules are called: the path of each from its model, as its parameters' names have it."""

from __future__ import annotations

from ..nn.module import Module


class Names:
    """The paths of Modules that ran."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Module, str]] = {}  # by id; the Modules are held, so that ids stay theirs

    def path(self, running: tuple[Module, ...]) -> str:
        """The path of the innermost of the Modules that run: "blocks.0.attention"; "" if none does."""
        if not running:
            return ""
        module = running[-1]
        known = self._known.get(id(module))
        if known is None:
            known = self._known[id(module)] = module, self._find(module, running[:-1])
        return known[1]

    def _find(self, module: Module, around: tuple[Module, ...]) -> str:
        for relative, p in module.named_parameters():
            if p.name is not None and p.name.endswith(relative):
                whole = p.name.removesuffix(relative).rstrip(".")
                return whole or type(module).__name__
        outer = self.path(around)
        return f"{outer}.{type(module).__name__}" if outer else type(module).__name__
