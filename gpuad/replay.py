"""capture: a step recorded once, then asked of the device again without the step's Python.

The first call runs the step as it is, and so do two that are recorded and held against each other.  From then on a call
copies its arguments to where the recorded step read them, repeats what was recorded, in the same memory, and returns
copies.  What a recording rests on is looked at before each replay: where that has changed, the step runs as it is and
is recorded again.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import sys
from collections.abc import Callable
from typing import Any
from weakref import ref

import numpy as np

from . import tree
from .array import Array, describe
from .buffer import Buffer
from .convert import asarray
from .devices import default_device
from .errors import CaptureError, NonFiniteError
from .fuse.plan import eager, realize, realize_all
from .node import clock
from .provenance import Site, here
from .provenance import describe as describe_site
from .recording import Action, Recorder, active
from .tensor import Tensor
from .trace import active_region, is_recording

ATTEMPTS = 4  # recordings after which memory that still moves from one to the next is an error
PLAIN = (bool, int, float, complex, str, bytes, type(None))


def capture(step: Callable[..., Any]) -> Callable[..., Any]:
    """`step`, repeated without its Python between kernels from the fourth call on; also a decorator.

    Arguments and result are trees of tensors; NumPy arrays will do as arguments.  Everything else among the arguments
    is static: another value, or tensors of other shapes, are a recording of their own.  The result's tensors are copies
    and constants for every derivative.

        @gpuad.capture
        def step(tokens):
            loss = model.loss(tokens)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss

    Parameters, optimizers with their learning rates, random generators and training modes are followed.  Other Python
    values are those of the recording, as in any compiled step: pass what changes as an argument.  A step that cannot be
    followed is a CaptureError that names the line: one that reads values (`item()`), keeps a tensor or a gradient after
    it returns, or computes with other numbers each time.  Memory stays reserved for the step as long as it lives.
    """
    return functools.wraps(step)(Captured(step))


class Captured:
    """A step with a recording for each form of its arguments."""

    def __init__(self, step: Callable[..., Any]) -> None:
        self.step = step
        self.forms: dict[Any, Form] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if active.get() is not None or active_region.get() is not None:
            return self.step(*args, **kwargs)  # inside another captured step, or a checkpointed function
        leaves, structure = tree.flatten((args, kwargs))
        places = [k for k, x in enumerate(leaves) if isinstance(x, Tensor | np.ndarray)]
        fixed = tuple([(type(x), x) for x in leaves if not isinstance(x, Tensor | np.ndarray)])
        given = [leaves[k] for k in places]
        for x in given:
            if isinstance(x, Tensor) and (x.trace is not None or x.link is not None):
                raise CaptureError(
                    f"a captured step got {describe(x)} at {describe_site(here())}, which a derivative follows\n"
                    "  pass detach() of it; a parameter is followed without being an argument"
                )
        modes = is_recording(), eager.get(), default_device().name
        key = structure, fixed, modes, tuple([(x.shape, x.dtype, _device(x)) for x in given])
        try:
            form = self.forms.get(key)
        except TypeError:
            raise CaptureError(
                f"a captured step got an argument at {describe_site(here())} that is no tensor and cannot be compared\n"
                "  pass tensors, numbers and strings"
            ) from None

        def call(tensors: list[Tensor]) -> Any:
            filled = list(leaves)
            for place, x in zip(places, tensors, strict=True):
                filled[place] = x
            some, named = structure.unflatten(filled)
            return self.step(*some, **named)

        if form is None:
            form = self.forms[key] = Form(self.step)
        return form(call, given)


def _device(x: Any) -> str:
    return x.device.name if isinstance(x, Tensor) else default_device().name


class Form:
    """The recording of a step for arguments of one form, and how it comes about."""

    def __init__(self, step: Callable[..., Any]) -> None:
        self.step = step
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self.calls = 0  # since the beginning
        self.before: list[Deed] | None = None  # what the last recorded run did
        self.recording: Recording | None = None

    def __call__(self, call: Callable[[list[Tensor]], Any], given: list[Any]) -> Any:
        if self.recording is not None:
            if self.recording.holds():
                return self.recording.replay(given)
            self.forget()
        self.calls += 1
        devices = [x.device for x in given if isinstance(x, Tensor)] or [default_device()]
        if self.calls == 1 or not all(device.computes for device in devices):
            return call([asarray(x) for x in given])
        recording = Recording(self.step, call, given)
        before, self.before = self.before, recording.deeds
        if recording.moved is not None:
            if self.calls > ATTEMPTS:
                raise CaptureError(recording.moved)
        elif before is not None:
            difference = _difference(before, self.before)
            if difference is None:
                self.recording = recording
            elif difference or self.calls > ATTEMPTS:
                raise CaptureError(
                    f"{recording.name}() does not do the same each time\n"
                    f"  {difference or 'its tensors lie in other memory after each call'}"
                )
        return recording.result()


Deed = tuple[str, tuple[int, ...], Site | None]  # what an action is, which memory it uses by number, and its line


class Recording:
    """One run of a step, recorded as it ran."""

    def __init__(self, step: Callable[..., Any], call: Callable[[list[Tensor]], Any], given: list[Any]) -> None:
        self.name, self.step = getattr(step, "__name__", type(step).__name__), step
        self.inputs = [_own(x) for x in given]
        recorder = Recorder(realize, next(clock))
        token = active.set(recorder)
        try:
            leaves, self.structure = tree.flatten(call([Tensor(x) for x in self.inputs]))
            arrays = {k: x.array for k, x in enumerate(leaves) if isinstance(x, Tensor)}
            realize_all(arrays.values())
        finally:
            active.reset(token)
        self.device: Any = recorder.device
        self.leaves = [None if k in arrays else x for k, x in enumerate(leaves)]
        self.outputs = {k: self._apart(a) for k, a in arrays.items()}
        del leaves, arrays
        self.moved: str | None = None  # why another call would not find everything where this one did
        self._refuse_what_is_left(recorder)
        self._guard(recorder)
        self.holders = self._holders()
        self.deeds = _deeds(recorder.actions)
        self.calls = [self._bound(action) for action in recorder.actions]
        self.memory = [  # counted as long as the recording keeps it
            Buffer(block, self.device, block.nbytes, category="workspace", site=here())
            for block in (recorder.memory.blocks if recorder.memory is not None else [])
        ]

    def _apart(self, array: Array) -> Any:
        """An array of the device's library over a result's memory, which it does not keep."""
        return array.device.at(array.device.place(array.data))

    def _bound(self, action: Action) -> Callable[[], None]:
        """An action that is ready to be done again."""
        if not action.places:
            return action.work
        arrays = [self.device.at(place) for place in action.places]
        bound = getattr(action.work, "bound", None)
        return functools.partial(action.work, *arrays) if bound is None else bound(*arrays)

    # --- what it rests on -------------------------------------------------------------------

    def _refuse_what_is_left(self, recorder: Recorder) -> None:
        """A CaptureError if memory of the recording is still in use: a replay would write over it."""
        if not recorder.left() and not any(map(_is_held, self.inputs)):
            return
        gc.collect()
        for x in self.inputs:
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

    def _guard(self, recorder: Recorder) -> None:
        """Note what must stay as it is: who holds what, Modules, and plain values that the step names."""
        kept = {recorder.device.base(a.data) for a in self.inputs} if recorder.device is not None else set()
        changed = [buffer for found in recorder.changed.values() if (buffer := found()) is not None]
        bases = {recorder.device.base(buffer.owner) for buffer in changed}
        self.buffers = [ref(buffer) for buffer in changed]
        self.tensors: list[tuple[ref[Tensor], ref[Array], bool]] = []  # with whether its memory is written
        self.gradients: list[tuple[ref[Tensor], ref[Tensor]]] = []
        for tensor, place in recorder.places():
            if tensor.grad is not None:
                gradient = tensor.grad.array
                kept.add(recorder.device.base(gradient.data))
                self.gradients.append((ref(tensor), ref(tensor.grad)))
                self.tensors.append((ref(tensor.grad), ref(gradient), True))
                del gradient
            array = tensor.array
            if array.op is not None or recorder.device.place(array.data) != place:
                self.moved = self.moved or (
                    f"{self.name}() assigns to {tensor.name or describe(tensor)}, which it finds outside\n"
                    "  return the new value, and assign it after the call"
                )
            if array.op is None:
                base = recorder.device.base(array.data)
                kept.add(base)
                self.tensors.append((ref(tensor), ref(array), base in bases))
        self.guards = recorder.guards
        self.modules = [(module, dict(vars(module))) for module in recorder.modules.values()]
        self.values = _plain_values(self.step)
        for base, line in recorder.read.items():
            if base not in kept and base not in recorder.kept:
                raise CaptureError(
                    f"{self.name}() reads at {describe_site(line)} a tensor that is gone, or another one, when it"
                    " returns\n"
                    "  pass it as an argument, and return the new one if there is one"
                )

    def holds(self) -> bool:
        """Is everything where the recorded step left it?"""
        if self.moved is not None or not all(guard() for guard in self.guards):
            return False
        for tensor_ref, array_ref, _ in self.tensors:
            tensor = tensor_ref()
            if tensor is None or tensor.array is not array_ref():
                return False
        for tensor_ref, gradient in self.gradients:
            tensor = tensor_ref()
            if tensor is None or tensor.grad is not gradient():
                return False
        for module, before in self.modules:
            now = vars(module)
            if len(now) != len(before) or any(now.get(name, self) is not value for name, value in before.items()):
                return False
        return _plain_values(self.step) == self.values and self._holders() == self.holders

    def _holders(self) -> list[int]:
        """How many look at the memory that is written in place: Arrays, tensors, views, as the interpreter counts."""
        arrays = [sys.getrefcount(array()) for _, array, written in self.tensors if written]
        found = [sys.getrefcount(buffer()) for buffer in self.buffers]
        return arrays + found + [b.views() + b.borrowed for buffer in self.buffers if (b := buffer()) is not None]

    # --- again ------------------------------------------------------------------------------

    def replay(self, given: list[Any]) -> Any:
        """The result of the step for other arguments of the same form."""
        device = self.device
        ready = [realize(x.array).data if isinstance(x, Tensor) else x for x in given]
        try:
            with device.lock, device.using(), np.errstate(all="ignore"):
                for own, x in zip(self.inputs, ready, strict=True):
                    device.fill(own.data, x)
                for call in self.calls:
                    call()
                return self.result()
        except NonFiniteError as error:
            raise NonFiniteError(f"{error}\n  call {self.name}() without capture() to see more") from None

    def result(self) -> Any:
        """Copies of what the step returned."""
        leaves = list(self.leaves)
        for k, data in self.outputs.items():
            copy = self.device.allocate(data.shape, data.dtype, "temporary", here())
            self.device.fill(copy.data, data)
            leaves[k] = Tensor(copy)
        return self.structure.unflatten(leaves)


def _own(x: Any) -> Array:
    """The values of an argument, in memory that replays can write to."""
    if not isinstance(x, Tensor):
        return asarray(x).array
    own = x.device.allocate(x.shape, x.dtype, "input", here())
    with x.device.using():
        x.device.fill(own.data, realize(x.array).data)
    return own


def _is_held(array: Array) -> bool:
    """Does anyone besides the list that it is in, and a loop, see a computed `array` or its memory?"""
    return sys.getrefcount(array) > 4 or sys.getrefcount(array.buffer) > 2


def _plain_values(step: Callable[..., Any]) -> list[Any]:
    """The numbers and strings that a function finds under names outside itself."""
    code = getattr(step, "__code__", None)
    if code is None:
        return []
    found = [step.__globals__.get(name) for name in code.co_names]
    for cell in step.__closure__ or ():
        with contextlib.suppress(ValueError):  # an empty one
            found.append(cell.cell_contents)
    return [x for x in found if type(x) in PLAIN]


# --- two recordings beside each other ---------------------------------------------------------


def _deeds(actions: list[Action]) -> list[Deed]:
    """Actions without addresses: memory is numbered as it appears."""
    numbers: dict[int, int] = {}
    return [
        (
            str(action.key),
            tuple([numbers.setdefault(place.address, len(numbers)) for place in action.places]),
            action.site,
        )
        for action in actions
    ]


def _difference(before: list[Deed], after: list[Deed]) -> str | None:
    """What two runs did not do alike: None if nothing, "" if only memory is not the same."""
    for (old, _, line), (new, _, _) in zip(before, after, strict=False):
        if old != new:
            done = f"at {describe_site(line)} it did {_short(old)}, and then {_short(new)}"
            return f"{done}\n  pass what changes as an argument"
    if len(before) != len(after):
        longer = max(before, after, key=len)
        return f"one call went on with {_short(longer[min(len(before), len(after))][0])}, and another did not"
    return None if [memory for _, memory, _ in before] == [memory for _, memory, _ in after] else ""


def _short(text: str) -> str:
    return text if len(text) <= 200 else text[:200] + " ..."
