"""Pytrees: nested lists, tuples, dicts (by sorted key), None, and the classes that register.

leaves, structure = flatten({"w": w, "b": [b, None]})
same = structure.unflatten(leaves)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, TypeVar

from .errors import GpuadError

T = TypeVar("T")

_registry: dict[type, tuple[Callable[[Any], tuple[list[Any], Hashable]], Callable[[Hashable, list[Any]], Any]]] = {}


@dataclasses.dataclass(frozen=True, slots=True)
class Structure:
    """The shape of a tree without its leaves; two trees match when their structures are equal."""

    kind: type | None  # None stands for a leaf
    aux: Hashable = None
    children: tuple[Structure, ...] = ()

    def unflatten(self, leaves: Iterable[Any]) -> Any:
        """The tree of this structure with `leaves` put in, in order."""
        stream = iter(leaves)
        tree = self._build(stream)
        if next(stream, self) is not self:
            raise GpuadError(f"too many leaves for {self}")
        return tree

    def _build(self, stream: Any) -> Any:
        if self.kind is None:
            try:
                return next(stream)
            except StopIteration:
                raise GpuadError(f"too few leaves for {self}") from None
        children = [child._build(stream) for child in self.children]
        return _registry[self.kind][1](self.aux, children)

    @property
    def size(self) -> int:
        """How many leaves a tree of this structure has."""
        return 1 if self.kind is None else sum(child.size for child in self.children)

    def __str__(self) -> str:
        if self.kind is None:
            return "*"
        inside = ", ".join(map(str, self.children))
        return f"{self.kind.__name__}({inside})"


LEAF = Structure(None)


def register(
    cls: type, flatten: Callable[[Any], tuple[list[Any], Hashable]], unflatten: Callable[[Any, list[Any]], Any]
) -> None:
    """Make instances of `cls` (not of its subclasses) inner nodes of trees.

    `flatten(x)` gives the children and a hashable rest; `unflatten(rest, children)` builds an equal instance.
    """
    _registry[cls] = (flatten, unflatten)


def register_dataclass(cls: type[T]) -> type[T]:
    """Make a dataclass a tree whose children are its fields; usable as a decorator."""
    names = tuple(f.name for f in dataclasses.fields(cls))  # type: ignore[arg-type]  # checked by fields() itself
    register(
        cls,
        lambda x: ([getattr(x, n) for n in names], names),
        lambda aux, children: cls(**dict(zip(aux, children, strict=True))),
    )
    return cls


def _flatten_dict(d: dict[Any, Any]) -> tuple[list[Any], Hashable]:
    try:
        keys = tuple(sorted(d))
    except TypeError:
        raise GpuadError(f"the keys of a dict in a tree must sort, got {list(d)}") from None
    return [d[k] for k in keys], keys


register(list, lambda x: (list(x), None), lambda _, children: children)
register(tuple, lambda x: (list(x), None), lambda _, children: tuple(children))
register(dict, _flatten_dict, lambda keys, children: dict(zip(keys, children, strict=True)))
register(type(None), lambda _: ([], None), lambda _, __: None)


def _entry(tree: Any) -> tuple[type, list[Any], Hashable] | None:
    cls = type(tree)
    if cls in _registry:
        children, aux = _registry[cls][0](tree)
        return cls, children, aux
    if isinstance(tree, tuple) and hasattr(cls, "_fields"):  # a named tuple registers itself when first met
        register(cls, lambda x: (list(x), None), lambda _, children: cls(*children))
        return cls, list(tree), None
    return None


def flatten(tree: Any) -> tuple[list[Any], Structure]:
    """The leaves of `tree` in a fixed order, and the structure that puts them back."""
    leaves: list[Any] = []
    return leaves, _walk(tree, leaves)


def _walk(node: Any, leaves: list[Any]) -> Structure:
    # not a closure: one that calls itself is a reference cycle, and would keep the leaves alive
    entry = _entry(node)
    if entry is None:
        leaves.append(node)
        return LEAF
    cls, children, aux = entry
    return Structure(cls, aux, tuple([_walk(child, leaves) for child in children]))


def leaves(tree: Any) -> list[Any]:
    """The leaves of `tree`, in order."""
    return flatten(tree)[0]


def map(f: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """A tree of `f(leaf, ...)` over the leaves of `tree` and of trees of the same structure."""
    found, structure = flatten(tree)
    others: list[Sequence[Any]] = []
    for other in rest:
        more, same = flatten(other)
        if same != structure:
            raise GpuadError(f"trees differ: {structure} and {same}")
        others.append(more)
    return structure.unflatten([f(*group) for group in zip(found, *others, strict=True)])
