"""Stages: the functions of a chain, run one at a time on arrays, each with a tape of its own or with none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .. import tree
from ..array import Array
from ..node import Entry, Leaf
from ..tensor import Tensor
from ..trace import ReverseTrace
from .part import Part, name_of, result_of, varies
from .record import Step
from .region import brought_in


@dataclass
class Form:
    """A tree without the tensors that a chain computes with: what a stage is given, or returns."""

    structure: Any
    leaves: list[Any]  # None in the places of these tensors
    places: list[int]

    def filled(self, tensors: Sequence[Any]) -> Any:
        """The tree with them."""
        leaves = list(self.leaves)
        for place, t in zip(self.places, tensors, strict=True):
            leaves[place] = t
        return self.structure.unflatten(leaves)


def taken_apart(x: Any, is_computed: Callable[[Tensor], bool]) -> tuple[Form, list[Tensor]]:
    """The form of a tree, and the tensors that fill it."""
    leaves, structure = tree.flatten(x)
    places = [k for k, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and is_computed(leaf)]
    tensors = [leaves[k] for k in places]
    for k in places:
        leaves[k] = None
    return Form(structure, leaves, places), tensors


class Taped:
    """The tape of one run of a stage."""

    def __init__(self, entries: list[Entry | None], results: list[Tensor], trace: ReverseTrace) -> None:
        self.entries = entries  # where it begins, by input; None where nothing varies
        self.links = [y.link if y.trace is trace else None for y in results]

    def seeds(self, cotangents: list[Any]) -> Iterator[tuple[Any, Tensor]]:
        """What a sweep begins with.  The list is used up, so that nobody else holds a cotangent during the sweep."""
        cotangents.reverse()
        for link in self.links:
            if (cotangent := cotangents.pop()) is not None and link is not None:
                yield link, cotangent


class Captured:
    """The tensors that the stages of a chain capture, each once, and where tapes end at them."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.ends: list[Leaf] = []
        self.numbers: dict[tuple[int, int], int] = {}  # by data and link

    def number(self, x: Tensor) -> int:
        """Which of them `x` is."""
        key = id(x.data), id(x.link)
        if key not in self.numbers:
            self.numbers[key] = len(self.tensors)
            self.tensors.append(x.alias())  # keeps data and link alive
            self.ends.append(Leaf(None, None))
        return self.numbers[key]


class Stage:
    """A function of a chain, from its first run on."""

    def __init__(
        self, f: Callable[[Any], Any], form: Form, varying: list[bool], determinism: str, generators: Sequence[Any]
    ) -> None:
        self.part = Part(lambda tensors: f(form.filled(tensors)), name_of(f), determinism, generators)
        self.varying = varying  # through which inputs may a derivative flow?
        self.captured: list[int] = []  # the numbers of the tensors that it captures, in its order
        self.differentiable: list[bool] = []  # through which results may one flow?

    def first(self, arrays: list[Array], captured: Captured, taped: bool) -> tuple[Form, list[Tensor], Taped | None]:
        """Run it: the form of what it returns, the tensors in it, and the tape if it is `taped`."""
        trace = ReverseTrace() if taped else None
        entries = self._entries()

        def inside(x: Tensor) -> Tensor:
            k = captured.number(x)
            self.captured.append(k)
            return _entering(brought_in(x.array), captured.ends[k], trace)

        inputs = [_entering(a, entry, trace) for a, entry in zip(arrays, entries, strict=True)]
        try:
            out, region = self.part.first(inputs, inside=inside, varying=self.varying)
        finally:
            if trace is not None:
                trace.open = False
        form, wrapped = taken_apart(out, lambda y: y.trace is region)
        self.part.record.results = [result_of(y) for y in wrapped]
        results = [y.data for y in wrapped]
        self.differentiable = [varies(y) for y in wrapped]
        return form, results, None if trace is None else Taped(entries, results, trace)

    def step(self) -> Step:
        """The first run, as a step of the record of a function that the chain runs in."""
        record = self.part.record
        return Step(record.name, record, record.steps[0].site if record.steps else None, (), {})

    def again(
        self, arrays: list[Array], captured: list[Array], ends: list[Leaf], taped: bool
    ) -> tuple[list[Tensor], Taped | None]:
        """Run it again: the tensors in what it returns, and the tape if it is `taped`."""
        trace = ReverseTrace() if taped else None
        entries = self._entries()
        inputs = [_entering(a, entry, trace) for a, entry in zip(arrays, entries, strict=True)]
        stand_ins = [_entering(captured[k], ends[k], trace) for k in self.captured]
        try:
            results = self.part.again(inputs, stand_ins)
        finally:
            if trace is not None:
                trace.open = False
        return results, None if trace is None else Taped(entries, results, trace)

    def _entries(self) -> list[Entry | None]:
        return [Entry(None, None) if flows else None for flows in self.varying]


def _entering(array: Array, end: Leaf | None, trace: ReverseTrace | None) -> Tensor:
    """A tensor of the array, on the tape of `trace` if there is one."""
    return Tensor(array) if end is None or trace is None else Tensor(Tensor(array), trace, (end, 0))


__all__ = ["Captured", "Form", "Stage", "Taped", "taken_apart"]
