"""Guards: what a recorded step rests on, looked at before each replay.

A recording has addresses.  They are right as long as each tensor that the step found outside lies where it lay, nobody
new looks at the memory that the step writes in place, and the Modules, options and plain values that decided what the
step did are what they were.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any
from weakref import ref

from .array import Array, describe
from .errors import CaptureError
from .provenance import describe as describe_site
from .recording import Place, Recorder
from .tensor import Tensor

PLAIN = (bool, int, float, complex, str, bytes, type(None))


class Guards:
    """What the run of `step` that `recorder` has seen rests on.  `inputs` are what it got as arguments."""

    def __init__(self, name: str, step: Callable[..., Any], recorder: Recorder, inputs: list[Array]) -> None:
        self.name, self.step, self.device = name, step, recorder.device
        self.moved: str | None = None  # why another call would not find everything where this one did
        self._refuse_what_is_left(recorder, inputs)
        changed = [buffer for found in recorder.changed.values() if (buffer := found()) is not None]
        written = {self.device.base(buffer.owner) for buffer in changed}
        self.buffers = [ref(buffer) for buffer in changed]
        del changed
        self.tensors: list[tuple[ref[Tensor], Place, Any, bool]] = []  # with their links; is their memory written?
        self.gradients: list[tuple[ref[Tensor], Place | None]] = []  # of leaves; None where there is none
        kept = {self.device.base(a.data) for a in inputs} | recorder.kept
        for tensor, place in recorder.places():
            kept |= self._note(tensor, place, written)
        self.state = recorder.state
        self.guards = recorder.guards
        self.modules = [(module, _attributes(module)) for module in recorder.modules.values()]
        self.values = _named_values(step)
        for base, line in recorder.read.items():
            if base not in kept:
                self.moved = self.moved or (
                    f"{name}() reads at {describe_site(line)} a tensor that is gone, or another one, when it returns\n"
                    "  pass it as an argument, and return the new one if there is one"
                )
        self.holders: list[int] = []

    def count(self) -> None:
        """Count who looks at the memory that is written, once nothing of the recording is in the way."""
        self.holders = self._holders()

    def _note(self, tensor: Tensor, place: Place, written: set[int]) -> set[int]:
        """Note a tensor from outside, and its gradient; the addresses of their memory."""
        kept, array = set(), tensor.array
        if tensor.is_leaf:
            gradient = tensor.grad.array if tensor.grad is not None else None
            if gradient is not None and gradient.op is None:
                kept.add(self.device.base(gradient.data))
            lies = None if gradient is None or gradient.op is not None else self.device.place(gradient.data)
            self.gradients.append((ref(tensor), lies))
        if array.op is not None or self.device.place(array.data) != place:
            self.moved = self.moved or (
                f"{self.name}() assigns to {tensor.name or describe(tensor)}, which it finds outside\n"
                "  return the new value, and assign it after the call"
            )
        else:
            base = self.device.base(array.data)
            kept.add(base)
            self.tensors.append((ref(tensor), place, tensor.link, base in written))
        return kept

    def _refuse_what_is_left(self, recorder: Recorder, inputs: list[Array]) -> None:
        """A CaptureError if memory of the recording is still in use: a replay would write over it."""
        if not recorder.left() and not any(map(_is_held, inputs)):
            return
        gc.collect()
        for x in inputs:
            if _is_held(x):
                raise CaptureError(
                    f"{self.name}() keeps its argument {describe(x)}, or something it has not computed from it yet\n"
                    "  return what the next call needs, and pass it in again"
                )
        tensors = [tensor for tensor, _ in recorder.places()]
        gradients = {id(t.grad.array.buffer): t for t in tensors if t.grad is not None}
        followed = {id(t.array.buffer) for t in tensors} | {id(a.buffer) for arrays in recorder.state for a in arrays()}
        for buffer in recorder.left():
            if id(buffer) in gradients:
                t = gradients[id(buffer)]
                self.moved = (
                    f"{self.name}() leaves new gradients behind, that of {t.name or describe(t)} among them\n"
                    "  call optimizer.zero_grad() at its end, or return the gradients"
                )
            elif id(buffer) in followed:
                self.moved = self.moved or (
                    f"{self.name}() finds a parameter or a state that others look at, and so gives it new memory, each"
                    " time\n  do not hold on to detach(), numpy() or state_dict() of it between calls"
                )
            else:
                raise CaptureError(
                    f"{self.name}() keeps a tensor made at {describe_site(buffer.site)} after it returns\n"
                    "  return it, and pass it in again where the next call needs it"
                )

    def held(self) -> list[Any] | None:
        """The memory that a replay works on, for as long as the list is held; None where something has changed."""
        if self.moved is not None or not all(guard() for guard in self.guards):
            return None
        if not self._modules_are_the_same() or not _same(_named_values(self.step), self.values):
            return None
        if self._holders() != self.holders:
            return None
        held = [a.data for arrays in self.state for a in arrays()]
        for tensor_ref, place, link, _ in self.tensors:
            tensor = tensor_ref()
            if tensor is None or tensor.link is not link:
                return None
            array = tensor.array
            if array.op is not None or array.device is not self.device or self.device.place(array.data) != place:
                return None
            held.append(array.data)
        for tensor_ref, lies in self.gradients:
            tensor = tensor_ref()
            if tensor is None or (tensor.grad is None) != (lies is None):
                return None
            if tensor.grad is not None:
                array = tensor.grad.array
                if array.op is not None or self.device.place(array.data) != lies:
                    return None
                held.append(array.data)
        return held

    def _modules_are_the_same(self) -> bool:
        return all(_same(_attributes(module), before) for module, before in self.modules)

    def _holders(self) -> list[int]:
        """How many look at what is written in place: at Arrays, their data, gradients, buffers; as the interpreter
        counts, with the same variables in the way each time."""
        found: list[int] = []
        for tensor_ref, _, _, written in self.tensors:
            tensor = tensor_ref()
            if tensor is not None and written:
                found += _counts(tensor)
        for tensor_ref, lies in self.gradients:
            tensor = tensor_ref()
            if tensor is not None and tensor.grad is not None and lies is not None:
                found += [sys.getrefcount(tensor.grad), *_counts(tensor.grad)]
        for buffer_ref in self.buffers:
            buffer = buffer_ref()
            found += [-1] if buffer is None else [sys.getrefcount(buffer), buffer.views(), buffer.borrowed]
        return found


def _counts(tensor: Tensor) -> list[int]:
    """References to the Array of a tensor and to its data."""
    array = tensor.array
    return [sys.getrefcount(array), sys.getrefcount(array.data)]


def _is_held(array: Array) -> bool:
    """Does anyone besides the list that it is in, and a loop, see a computed `array` or its memory?"""
    return sys.getrefcount(array) > 4 or sys.getrefcount(array.buffer) > 2


def _attributes(module: Any) -> list[Any]:
    """The names and values of a Module's attributes; of lists and dicts what is in them."""
    found: list[Any] = []
    for name, value in vars(module).items():
        found += [name, value]
        if type(value) in (list, tuple):
            found += value
        elif type(value) is dict:
            found += [*value, *value.values()]
    return found


def _same(a: list[Any], b: list[Any]) -> bool:
    """Are they the same things, or descriptions that are equal?  A tensor has one weak reference."""
    return len(a) == len(b) and all(x is y or (type(x) is str and x == y) for x, y in zip(a, b, strict=True))


def _named_values(step: Callable[..., Any]) -> list[Any]:
    """The numbers, strings and tensors that a function finds under names outside itself, to be compared."""
    code = getattr(step, "__code__", None)
    if code is None:
        return []
    found = [step.__globals__.get(name) for name in _names(code)]
    for cell in step.__closure__ or ():
        with contextlib.suppress(ValueError):  # an empty one
            found.append(cell.cell_contents)
    return [
        f"{type(x).__name__} {x!r}" if type(x) in PLAIN else ref(x)
        for x in found
        if type(x) in PLAIN or isinstance(x, Tensor)
    ]


def _names(code: CodeType) -> Iterator[str]:
    """The names that a function's code, and that of functions in it, asks for."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


__all__ = ["Guards"]
