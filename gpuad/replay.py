"""capture: a step recorded once, then asked of the device again without the step's Python.

The first call runs the step as it is, and so do two that are recorded and held against each other.  From then on a call
copies its arguments to where the recorded step read them, repeats what was recorded, in the same memory, and returns
copies.  What a recording rests on is looked at before each replay: where that has changed, the step runs as it is and
is recorded again.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from . import tree
from .array import Array, describe
from .buffer import Buffer
from .convert import asarray
from .devices import default_device
from .errors import CaptureError, NonFiniteError
from .fuse.plan import eager, realize, realize_all
from .guards import Guards
from .node import clock
from .provenance import Site, here
from .provenance import describe as describe_site
from .recording import Action, Place, Recorder, active
from .tensor import Tensor
from .trace import active_region, is_recording

ATTEMPTS = 4  # recordings after which memory that still moves from one to the next is an error
FORMS = 64  # forms of arguments that a captured step keeps


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

    Parameters, optimizers with their learning rates, random generators, the Modules that are called and the names that
    the step itself uses are followed: where something has changed, the step runs as it is and is recorded again.  Other
    Python values are those of the recording, as in any compiled step: pass what changes as an argument.  A step that
    cannot be followed is a CaptureError that names the line: one that reads values (`item()`), keeps a tensor or new
    gradients after it returns, makes random generators, or does something else each time.  Arguments are copied,
    contiguous.  Memory stays reserved for the step as long as it lives.
    """
    return functools.wraps(step)(Captured(step))


class Captured:
    """A step with a recording for each form of its arguments."""

    def __init__(self, step: Callable[..., Any]) -> None:
        self.step = step
        self.forms: dict[Any, Form] = {}
        self.lock = threading.RLock()  # one call at a time

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if active.get() is not None or active_region.get() is not None:
            return self.step(*args, **kwargs)  # inside another captured step, or a checkpointed function
        given = Arguments(args, kwargs)
        with self.lock:
            try:
                hash(given.key)
            except TypeError:
                raise CaptureError(
                    f"a captured step got an argument at {describe_site(here())} that is no tensor and cannot be"
                    " compared\n  pass tensors, numbers and strings"
                ) from None
            form = self.forms.pop(given.key) if given.key in self.forms else Form(self.step)
            self.forms[given.key] = form  # the last one
            if len(self.forms) > FORMS:
                del self.forms[next(iter(self.forms))]
            return form(given)


class Arguments:
    """The arguments of one call: tensors and arrays, each once, and all else."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.leaves, self.structure = tree.flatten((args, kwargs))
        self.tensors: list[Any] = []  # and NumPy arrays
        number: dict[int, int] = {}
        self.places: dict[int, int] = {}  # which of them stands at which leaf
        for k, x in enumerate(self.leaves):
            if isinstance(x, Tensor | np.ndarray):
                self._check(x)
                if id(x) not in number:
                    number[id(x)] = len(self.tensors)
                    self.tensors.append(x)
                self.places[k] = number[id(x)]
        if any(hasattr(kind, "training") for kind in _kinds(self.structure)):
            raise CaptureError(
                f"a captured step got a Module as an argument at {describe_site(here())}\n"
                "  let the step name it: Modules and their modes are followed where they are used"
            )
        fixed = tuple([(type(x), repr(x) if type(x) is float else x) for x in self._others()])
        shapes = tuple([(x.shape, x.dtype, _device(x)) for x in self.tensors])
        modes = is_recording(), eager.get(), default_device().name
        self.key = self.structure, fixed, modes, shapes, tuple(self.places.items())

    def _others(self) -> list[Any]:
        return [x for k, x in enumerate(self.leaves) if k not in self.places]

    def _check(self, x: Any) -> None:
        if isinstance(x, Tensor) and (x.trace is not None or x.link is not None):
            raise CaptureError(
                f"a captured step got {describe(x)} at {describe_site(here())}, which a derivative follows\n"
                "  pass detach() of it; a parameter is followed without being an argument"
            )

    def call(self, step: Callable[..., Any], tensors: list[Tensor]) -> Any:
        """`step` with `tensors` in the place of the arguments', which it must not assign to."""
        before = [x.data for x in tensors]
        filled = [tensors[self.places[k]] if k in self.places else x for k, x in enumerate(self.leaves)]
        args, kwargs = self.structure.unflatten(filled)
        result = step(*args, **kwargs)
        for x, data in zip(tensors, before, strict=True):
            if x.data is not data:
                raise CaptureError(
                    f"{_name(step)}() assigns to its argument {describe(x)}, which a replay could not do\n"
                    "  compute a new tensor, and return it"
                )
        return result

    def devices(self) -> list[Any]:
        """The devices of the tensors, or the default one."""
        return [x.device for x in self.tensors if isinstance(x, Tensor)] or [default_device()]


def _kinds(structure: tree.Structure) -> Iterator[Any]:
    yield structure.kind
    for child in structure.children:
        yield from _kinds(child)


def _name(step: Callable[..., Any]) -> str:
    name: str = getattr(step, "__name__", type(step).__name__)
    return name


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

    def __call__(self, given: Arguments) -> Any:
        if self.recording is not None:
            with self.recording.device.lock:
                held = self.recording.guards.held()
                if held is not None:
                    return self.recording.replay(given.tensors)
            self.forget()
        self.calls += 1
        if self.calls == 1 or not all(device.computes for device in given.devices()):
            return given.call(self.step, [asarray(x).alias() for x in given.tensors])
        recording = Recording(self.step, given)
        if recording.device is None:  # it asks for nothing
            return recording.result()
        before, self.before = self.before, recording.deeds
        if recording.guards.moved is not None:
            self.before = None
            recording.close()
            if self.calls > ATTEMPTS:
                raise CaptureError(recording.guards.moved)
        elif before is not None:
            difference = _difference(before, recording.deeds)
            if difference is None:
                self.recording = recording
                recording.guards.count()
            elif difference or self.calls > ATTEMPTS:
                raise CaptureError(
                    f"{recording.name}() does not do the same each time\n"
                    f"  {difference or 'its tensors lie in other memory after each call'}"
                )
        return recording.result()


class Recording:
    """One run of a step, recorded as it ran."""

    def __init__(self, step: Callable[..., Any], given: Arguments) -> None:
        self.name = _name(step)
        self.inputs = [_own(x) for x in given.tensors]
        recorder = Recorder(realize, next(clock))
        token = active.set(recorder)
        try:
            leaves, self.structure = tree.flatten(given.call(step, [Tensor(x) for x in self.inputs]))
            arrays = {k: x.array for k, x in enumerate(leaves) if isinstance(x, Tensor)}
            realize_all(arrays.values())
        finally:
            active.reset(token)
        self.device: Any = recorder.device
        self.leaves = [None if k in arrays else x for k, x in enumerate(leaves)]
        places = {k: a.device.place(a.data) for k, a in arrays.items()}
        self.outputs = {k: a.device.at(places[k]) for k, a in arrays.items()}
        del leaves, arrays
        if self.device is None:
            return
        self.arena = recorder.memory
        self.guards = Guards(self.name, step, recorder, self.inputs)
        self.deeds = _deeds(recorder, self.inputs)
        self.deeds.append((f"return {self.structure} {self.leaves!r}", _lies(recorder, self.inputs, places), "", None))
        self.calls = [self._bound(action) for action in recorder.actions]
        self.memory = [  # counted as long as the recording keeps it
            Buffer(block, self.device, block.nbytes, category="workspace", site=here()) for block in self.arena.blocks
        ]

    def _bound(self, action: Action) -> Callable[[], None]:
        """An action that is ready to be done again."""
        if not action.places:
            return action.work
        arrays = [self.device.at(place) for place in action.places]
        bound = getattr(action.work, "bound", None)
        return functools.partial(action.work, *arrays) if bound is None else bound(*arrays)

    def close(self) -> None:
        """Keep no memory that nobody uses: there will be no replay."""
        self.calls, self.memory = [], []
        self.outputs = {k: data.copy() for k, data in self.outputs.items()}
        self.arena.close()

    def replay(self, given: list[Any]) -> Any:
        """The result of the step for other arguments of the same form.  The caller holds the device's lock."""
        device = self.device
        ready = [realize(x.array).data if isinstance(x, Tensor) else x for x in given]
        try:
            with device.using(), np.errstate(all="ignore"):
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
            with self.device.using():
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


# --- two recordings beside each other ---------------------------------------------------------

Deed = tuple[str, str, str, Site | None]  # what was done, to which parts of what, in which memory; and its line


def _deeds(recorder: Recorder, inputs: list[Array]) -> list[Deed]:
    """What was done, so that it can be compared with what another run did."""
    known: dict[int, str] = {}
    for k, x in enumerate(inputs):
        known[recorder.device.base(x.data)] = f"argument {k}"
    found = []
    for action in recorder.actions:
        parts, memory = [], []
        for place in action.places:
            if place.base in recorder.filled:  # memory of the recording, numbered as it appears
                name = known.setdefault(place.base, f"block {len(known)}")
            else:
                name = known.setdefault(place.base, f"tensor {len(known)}")
                memory += [place.base] if name.startswith("tensor") else []
            parts.append((name, place.address - place.base, place.shape, place.strides))
        found.append((str(action.key), str(parts), str(memory), action.site))
    return found


def _lies(recorder: Recorder, inputs: list[Array], places: dict[int, Place]) -> str:
    """Where results lie: in which argument, block or tensor."""
    own = {recorder.device.base(x.data): k for k, x in enumerate(inputs)}
    order = {base: k for k, base in enumerate(recorder.filled)}
    names = {k: (own.get(p.base, -1), order.get(p.base, -1), p.address - p.base) for k, p in places.items()}
    return str(sorted(names.items()))


def _difference(before: list[Deed], after: list[Deed]) -> str | None:
    """What two runs did not do alike: None if nothing, "" if only memory outside is not the same."""
    for (old, of_old, _, line), (new, of_new, _, _) in zip(before, after, strict=False):
        if (old, of_old) != (new, of_new):
            at = f"at {describe_site(line)} " if line is not None else ""
            done = f"{at}it did {_short(old)}, and then {_short(new)}"
            if old == new:
                done = f"{at}{_short(old)} worked on {_short(of_old)}, and then on {_short(of_new)}"
            return f"{done}\n  pass what changes as an argument"
    if len(before) != len(after):
        longer = max(before, after, key=len)
        return f"one call went on with {_short(longer[min(len(before), len(after))][0])}, and another did not"
    return None if [memory for _, _, memory, _ in before] == [memory for _, _, memory, _ in after] else ""


def _short(text: str) -> str:
    return text if len(text) <= 200 else text[:200] + " ..."
