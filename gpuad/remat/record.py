"""Records: what a function's first run did, for every later run to be held against it as it goes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

from ..array import Array, Shape
from ..dtype import DType
from ..errors import RecomputeError
from ..provenance import Site, here
from ..provenance import describe as describe_site

DETERMINISM = ("hash", "shapes", "off")  # what a second run is held to: values, or only ops and shapes, or nothing

Place: TypeAlias = tuple[Any, ...]  # where a value comes from: ("argument", k), ("captured", k), (step, output)


@dataclass(slots=True)
class Step:
    """One op of a first run."""

    op: str
    site: Site | None
    operands: tuple[Any, ...]  # a Place, a Constant, or the text of a Python number, of each
    params: dict[str, Any]
    results: list[tuple[Shape, DType]] = field(default_factory=list)
    # of results that were written to memory, by output: axes as the memory has them, and the digest in that order
    digests: dict[int, tuple[tuple[int, ...] | None, Any]] = field(default_factory=dict)


@dataclass(slots=True)
class Constant:
    """A value that a function does not compute from what it is given: how it is made, of memory with these digests."""

    structure: Any
    digests: list[tuple[Any, Any]]  # device and digest of each array that is in memory

    def check(self, first: Constant, refuse: Callable[[int], Exception]) -> None:
        """Raise refuse(0), now or when a value is read, if this is not `first`."""
        if self.structure != first.structure:
            raise refuse(0)
        for (device, digest), (_, before) in zip(self.digests, first.digests, strict=True):
            device.check_digests(before, digest, refuse)


class Record:
    """What the first run of a function did, for the next ones to be held against."""

    def __init__(self, name: str, determinism: str = "hash") -> None:
        self.name, self.determinism = name, determinism
        self.steps: list[Step] = []
        self.constants: WeakKeyDictionary[Array, Constant] = WeakKeyDictionary()  # those that were looked at

    def constant(self, array: Array) -> Constant:
        """What identifies a value from outside."""
        borrowed = array.buffer is not None and array.buffer.borrowed
        found = None if borrowed else self.constants.get(array)
        if found is None:
            found = self._looked_at(array)
            if not borrowed:
                self.constants[array] = found
        return found

    def _looked_at(self, array: Array) -> Constant:
        shown = (array.shape, array.dtype, array.device)
        if self.determinism != "hash":
            return Constant(shown, [])
        op, inputs, params = array.op, array.inputs, array.params
        if op is None:
            return Constant(shown, [(array.device, array.device.digest(array))])
        parts = [self.constant(x) if type(x) is Array else Constant(repr(x), []) for x in inputs]
        structure = (op.name, *shown, params, *[part.structure for part in parts])
        return Constant(structure, [d for part in parts for d in part.digests])

    # --- holding a second run against it ----------------------------------------------------------

    def check(self, k: int, op: Any, operands: tuple[Any, ...], params: dict[str, Any]) -> None:
        """An error unless the k-th op is what it was."""
        if self.determinism == "off":
            return
        first = self.steps[k] if k < len(self.steps) else None
        if first is None or first.op != op.name or len(first.operands) != len(operands):
            before = "nothing more" if first is None else f"{first.op}() at {describe_site(first.site)}"
            raise RecomputeError(
                f"{self.name}() took another path when it ran again: {op.name}() at {describe_site(here(4))}, where the"
                f" first run did {before}\n"
                "  likely a branch on something that changed in between;"
                " a checkpointed function must do the same both times"
            )
        for a, b in zip(operands, first.operands, strict=True):
            if type(a) is Constant and type(b) is Constant:
                a.check(b, self._refusal(k, _CONSTANT))
            elif a != b:
                raise self._differs(k, _CONSTANT if type(a) is str or type(b) is str else _OPERAND)
        besides = getattr(op, "besides", ())
        if any(not _equal(params[name], first.params[name]) for name in params if name not in besides):
            raise self._differs(k, _PARAMETER)

    def finish(self, steps: int) -> None:
        """An error unless the second run did as many ops."""
        if self.determinism != "off" and steps != len(self.steps):
            step = self.steps[steps]
            raise RecomputeError(
                f"{self.name}() stopped early when it ran again: the first run went on with {step.op}() at"
                f" {describe_site(step.site)}"
            )

    def watch(self, k: int, output: int, array: Array, again: bool) -> None:
        """Take the digest of a value of the k-th op if it is written to memory; in a second run, compare it."""
        if again and (k >= len(self.steps) or self.steps[k].results[output] != (array.shape, array.dtype)):
            return
        report = functools.partial(self._written, k, output, again)
        if array.op is None:
            report(array)
        else:
            array.on_write = report if array.on_write is None else _both(array.on_write, report)

    def _written(self, k: int, output: int, again: bool, array: Array) -> None:
        if not again:
            axes = _axes(array)
            self.steps[k].digests[output] = axes, array.device.digest(array, axes)
        elif output in self.steps[k].digests:
            axes, first = self.steps[k].digests[output]
            array.device.check_digests(first, array.device.digest(array, axes), self._refusal(k, _VALUE))

    def _refusal(self, k: int, cause: str) -> Callable[[int], Exception]:
        """The error of a k-th op that differs, as a function that holds nothing of this: a device may call it late."""
        return functools.partial(_difference, self.name, self.steps[k].op, self.steps[k].site, cause)

    def _differs(self, k: int, cause: str) -> Exception:
        return self._refusal(k, cause)(0)


def _difference(name: str, op: str, site: Site | None, cause: str, _: int) -> Exception:
    return RecomputeError(
        f"{name}() computed something else when it ran again: the first difference is {op}() at {describe_site(site)}"
        f"\n  {cause}"
    )


_CONSTANT = "a constant it uses changed between the forward and the backward pass; pass it as an argument"
_OPERAND = "it took other operands: likely a list or a variable outside that the first run changed"
_PARAMETER = "an option of it changed between the forward and the backward pass; pass what it depends on"
_VALUE = "likely a source of numbers that gpuad does not know of, or memory that somebody wrote"


def _axes(array: Array) -> tuple[int, ...] | None:
    """The axes by how far apart their elements are in memory, the farthest first; None if they are in order."""
    strides = array.data.strides
    axes = tuple(sorted(range(len(strides)), key=lambda k: -abs(strides[k])))
    return None if axes == tuple(range(len(strides))) else axes


def _equal(a: Any, b: Any) -> bool:
    try:
        return bool(a == b)
    except ValueError:  # of arrays
        return repr(a) == repr(b)


def _both(first: Callable[[Array], None], second: Callable[[Array], None]) -> Callable[[Array], None]:
    def report(array: Array) -> None:
        first(array)
        second(array)

    return report


__all__ = ["DETERMINISM", "Constant", "Place", "Record", "Step"]
