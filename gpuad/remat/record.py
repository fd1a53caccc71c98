"""Records: what a function's first run did, for every later run to be held against it as it goes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np

from ..array import Array, Shape
from ..dtype import DType
from ..errors import RecomputeError
from ..provenance import Site
from ..provenance import describe as describe_site

DETERMINISM = ("hash", "shapes", "off")  # what a second run is held to: values, or only ops and shapes, or nothing

# Where a value comes from: ("argument", k), ("captured", k), (step, output); after "constant" where it is detached.
Place: TypeAlias = tuple[Any, ...]


@dataclass(slots=True)
class Step:
    """One op of a run."""

    op: str
    made_by: Any  # the op itself, or the Record of a checkpointed call
    site: Site | None
    operands: tuple[Any, ...]  # a Place, a Constant, or the text of a Python number, of each
    params: dict[str, Any]
    results: list[tuple[Shape, DType]] = field(default_factory=list)
    # of results that were written to memory, by output: axes as the memory has them, and the digest in that order
    digests: dict[int, tuple[tuple[int, ...] | None, Any]] = field(default_factory=dict)


@dataclass(slots=True, frozen=True)
class Result:
    """One tensor that a function returns: where it comes from."""

    place: Place
    shape: Shape
    dtype: DType


@dataclass(slots=True)
class Constant:
    """A value that a function does not compute from what it is given: the op and parts that make it, or its digest."""

    device: Any
    made: tuple[Any, ...]  # its shape and dtype; while it is pending the op, numbers and parameters as well
    parts: list[Constant]
    digest: Any  # None while it is pending

    def check(
        self, first: Constant, refuse: Callable[[int], Exception], seen: set[tuple[int, int]] | None = None
    ) -> None:
        """Raise refuse(0), now or when a value is read, if this is not `first`."""
        seen = set() if seen is None else seen  # pairs that are looked at: parts may be shared
        pair = id(self), id(first)
        if self is first or pair in seen:
            return
        seen.add(pair)
        if self.device is not first.device or not equal(self.made, first.made) or len(self.parts) != len(first.parts):
            raise refuse(0)
        if self.digest is not None:
            self.device.check_digests(first.digest, self.digest, refuse)
        for part, before in zip(self.parts, first.parts, strict=True):
            part.check(before, refuse, seen)


class Record:
    """What the first run of a function did, for the next ones to be held against.

    A function that runs inside another has its record in a step of that one's, and shares what is known of constants.
    """

    besides: tuple[str, ...] = ()  # as an op has

    def __init__(self, name: str, determinism: str = "hash", outer: Record | None = None) -> None:
        self.name, self.determinism = name, determinism
        self.steps: list[Step] = []
        self.results: list[Result] = []
        self.constants: WeakKeyDictionary[Array, Constant] = WeakKeyDictionary()  # those that were looked at
        if outer is not None and outer.determinism == determinism:
            self.constants = outer.constants

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
        device, shown = array.device, (array.shape, array.dtype)
        if self.determinism != "hash":
            return Constant(device, shown, [], None)
        op, inputs, params = array.op, array.inputs, array.params
        if op is None:
            return Constant(device, shown, [], device.digest(array))
        numbers = [None if type(x) is Array else x for x in inputs]
        return Constant(
            device, (*shown, op, numbers, params), [self.constant(x) for x in inputs if type(x) is Array], None
        )

    # --- holding a second run against it ----------------------------------------------------------

    def check(self, k: int, now: Step) -> None:
        """An error unless the k-th op is what it was."""
        if self.determinism == "off":
            return
        first = self.steps[k] if k < len(self.steps) else None
        if first is None or first.op != now.op or len(first.operands) != len(now.operands):
            before = "nothing more" if first is None else f"{first.op}() at {describe_site(first.site)}"
            raise RecomputeError(
                f"{self.name}() took another path when it ran again: {now.op}() at {describe_site(now.site)}, where the"
                f" first run did {before}\n  {_BRANCH}"
            )
        for a, b in zip(now.operands, first.operands, strict=True):
            if type(a) is Constant and type(b) is Constant:
                a.check(b, self._refusal(k, _CONSTANT))
            elif a != b:
                raise self._differs(k, _CONSTANT if type(a) is str or type(b) is str else _OPERAND)
        if isinstance(first.made_by, Record):
            first.made_by.check_all(now.made_by)
        elif first.made_by is not now.made_by:
            raise self._differs(k, _PARAMETER)
        besides = now.made_by.besides
        if any(not equal(now.params[name], first.params[name]) for name in now.params if name not in besides):
            raise self._differs(k, _PARAMETER)

    def check_all(self, now: Record) -> None:
        """An error unless another run, of which `now` is the record, was the same."""
        for k, step in enumerate(now.steps):
            self.check(k, step)
        self.finish(len(now.steps), now.results)

    def finish(self, steps: int, results: list[Result]) -> None:
        """An error unless the second run did as many ops, and returned the same."""
        if self.determinism != "off" and steps != len(self.steps):
            step = self.steps[steps]
            raise RecomputeError(
                f"{self.name}() stopped early when it ran again: the first run went on with {step.op}() at"
                f" {describe_site(step.site)}\n  {_BRANCH}"
            )
        if len(results) != len(self.results):
            raise RecomputeError(
                f"{self.name}() returned another number of tensors that it computes when it ran again: {len(results)},"
                f" and {len(self.results)} when it ran first\n  {_BRANCH}"
            )
        for k, (now, first) in enumerate(zip(results, self.results, strict=True)):
            if self.determinism == "off":  # ops may be numbered in another way, but a gradient has to fit
                now = replace(now, place=first.place)
            if now != first:
                raise RecomputeError(
                    f"{self.name}() returned other values when it ran again: result {k} of {len(results)} was"
                    f" {self._told(first)} when it ran first\n"
                    "  likely a list, dict or set that had another order; return the same values in the same order"
                )

    def _told(self, result: Result) -> str:
        """Where a result came from, as messages tell it."""
        place, shown = result.place, f"{result.dtype}[{', '.join(map(str, result.shape))}]"
        while place[0] == "constant":
            place = place[1:]
        if type(place[0]) is str:
            return f"its {place[0]} {place[1]}, {shown},"
        step = self.steps[place[0]]
        return f"{shown} of {step.op}() at {describe_site(step.site)}"

    def watch(self, k: int, output: int, array: Array, again: bool) -> None:
        """Take the digest of a value of the k-th op if it is written to memory; `again`, hold it to the first one."""
        report = functools.partial(self._written, k, output, again)
        if array.op is None:
            report(array)
        else:
            array.on_write = report if array.on_write is None else _both(array.on_write, report)

    def _written(self, k: int, output: int, again: bool, array: Array) -> None:
        digests, form = self.steps[k].digests, (array.shape, array.dtype)
        if not again:
            axes = _axes(array)
            digests[output] = axes, array.device.digest(array, axes)
        elif output in digests and self.steps[k].results[output] == form:  # or it is what an op gives besides
            axes, first = digests[output]
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


_BRANCH = "likely a branch on something that changed in between; a checkpointed function must do the same both times"
_CONSTANT = "a constant it uses changed between the forward and the backward pass; pass it as an argument"
_OPERAND = "it took other operands: likely a list or a variable outside that the first run changed"
_PARAMETER = "an option of it changed between the forward and the backward pass; pass what it depends on"
_VALUE = "likely a source of numbers that gpuad does not know of, or memory that somebody wrote"


def _axes(array: Array) -> tuple[int, ...] | None:
    """The axes by how far apart their elements are in memory, the farthest first; None if they are in order."""
    if array.data.flags.c_contiguous:
        return None
    strides = array.data.strides
    axes = tuple(sorted(range(len(strides)), key=lambda k: -abs(strides[k])))
    return axes


def equal(a: Any, b: Any) -> bool:
    """Are two options of an op the same?  NaN is NaN here, and 0.0 is not -0.0."""
    if type(a) is not type(b):
        return False
    if type(a) is float:
        return repr(a) == repr(b)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, np.ndarray):
        return (a.shape, a.dtype, a.tobytes()) == (b.shape, b.dtype, b.tobytes())
    return bool(a == b)


def _both(first: Callable[[Array], None], second: Callable[[Array], None]) -> Callable[[Array], None]:
    def report(array: Array) -> None:
        first(array)
        second(array)

    return report


__all__ = ["DETERMINISM", "Constant", "Place", "Record", "Result", "Step"]
