"""Flat: parameters of one kind side by side in one array, and the optimizer's state for them likewise.

Each parameter is a view of its segment.  `replace` gives up every handle to the old arrays before the new ones are
computed, so that the engine may write the new values over them where nobody else looks; `writable` gives them to a
kernel that writes over them, or copies where somebody does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from typing import Any

from ..array import Array, describe
from ..attribution import assign
from ..devices.segments import Segments
from ..dtype import HALVES, DType, compute_dtype
from ..errors import DTypeError
from ..fuse.plan import exclusive, realize, realize_all
from ..op.base import same_device
from ..ops.compare import equal, where
from ..ops.copying import copy
from ..ops.create import constant, full, zeros
from ..ops.elementwise import square
from ..ops.join import concat, stack
from ..ops.reduce import sum as sum_
from ..ops.shape import astype, reshape
from ..provenance import here
from ..recording import Live, Recorder, active
from ..tensor import Tensor


class Flat:
    """The `parameters`, all of one dtype and group, with `states` further arrays of the same length.

    `arrays` has the weights that a step starts from, and then each state.  The weights are the `values` of the
    parameters themselves; of half types, with `master_weights`, float32 numbers of which the values are the rounding.
    """

    def __init__(
        self,
        parameters: list[Tensor],
        places: list[int],
        group: dict[str, Any],
        states: int,
        master_weights: bool,
        state_dtype: DType | None = None,
    ) -> None:
        self.parameters, self.places, self.group = parameters, places, group
        self.dtype, self.device = parameters[0].dtype, parameters[0].device
        self.master = master_weights and self.dtype in HALVES
        self.state = self.full if state_dtype is None else state_dtype  # the dtype that states are kept in
        self.steps = [0] * len(parameters)  # how often each has moved
        self.shapes = [p.shape for p in parameters]
        self.sizes = [math.prod(shape) for shape in self.shapes]
        self.starts = [0, *accumulate(self.sizes)][:-1]
        self.loaded = False  # have weights come that may not fit the values?
        state = [zeros(sum(self.sizes), dtype=self.state, device=self.device) for _ in range(states)]
        realize_all([s.array for s in state])
        values = self._values()
        weights = realize(astype(Tensor(values), self.full).array) if self.master else values
        self._hold([weights, *[s.array for s in state]], values)

    @property
    def full(self) -> DType:
        """The dtype that a step is computed in."""
        return compute_dtype(self.dtype)

    def _values(self) -> Array:
        """The values of the parameters, gathered in new memory."""
        for p in self.parameters:
            if p.dtype != self.dtype or p.device is not self.device:
                raise DTypeError(
                    f"the parameter {p.name or describe(p)} is {p.dtype} on {p.device.name}, and was {self.dtype} on"
                    f" {self.device.name} when its optimizer was made\n  make the optimizer after model.to(...)"
                )
        return realize(concat([reshape(p.detach(), -1) for p in self.parameters]).array)

    def _hold(self, arrays: list[Array], values: Array | None) -> None:
        """Keep `arrays`, and make the parameters views of `values`, or of the weights if these are not computed."""
        if values is None or values.op is not None:
            values = realize(self.rounded(Tensor(arrays[0])).array)
        self.arrays = arrays
        self.values: Array | None = values
        self.views = self.segments(values)
        for k, array in enumerate(arrays):
            assign(array, "optimizer state" if k or self.master else "parameter")
        assign(values, "parameter")
        for p, view in zip(self.parameters, self.views, strict=True):
            p.data = view

    def release(self) -> None:
        """Have the parameters look at nothing, till `_hold`."""
        self.views = []
        for p in self.parameters:
            p.data = None

    def rounded(self, weights: Tensor) -> Tensor:
        """The values that parameters of these weights have."""
        return astype(weights, self.dtype) if self.master else weights

    def segments(self, array: Array) -> list[Array]:
        """The part of the flat `array` that belongs to each parameter, in its shape: views."""
        return [
            self.device.view(array, array.data[start : start + size].reshape(shape), array.site)
            for start, size, shape in zip(self.starts, self.sizes, self.shapes, strict=True)
        ]

    def follow(self) -> None:
        """Gather the values again if a parameter was given other ones, by `load_state_dict` or `copy_`, say.

        A master weight stays where it rounds to the value: what is loaded first, it or the value, makes no difference.
        """
        if not self.loaded and all(p.data is view for p, view in zip(self.parameters, self.views, strict=True)):
            return
        weights = values = self._values()
        if self.master:
            old, new = Tensor(self.arrays[0]), Tensor(values)
            weights = realize(where(equal(self.rounded(old), new), old, astype(new, self.full)).array)
        self._hold([weights, *self.arrays[1:]], values)
        self.loaded = False

    def load(self, states: Sequence[Sequence[Tensor]], master: Sequence[Tensor | None], steps: list[int]) -> None:
        """Take over `states`, each a list with a tensor for each parameter, and the numbers of steps.

        Where there is no master weight the value is one.
        """
        weights = self.arrays[0]
        if self.master:
            given = [p.detach() if x is None else x for p, x in zip(self.parameters, master, strict=True)]
            weights = self._gathered(given, self.full)
            self.loaded = True
        self.arrays, self.steps = [weights, *[self._gathered(state, self.state) for state in states]], steps

    def _gathered(self, parts: Sequence[Tensor], dtype: DType) -> Array:
        """`parts` side by side."""
        flat: Tensor = concat([reshape(x, -1) for x in parts]).to(dtype)
        return realize(flat.to(self.device).array)

    def _lies_flat(self, a: Array) -> bool:
        """Are the elements of `a` there, in this dtype and place, one after the other?"""
        return a.op is None and a.device is self.device and a.dtype == self.dtype and bool(a.data.flags.c_contiguous)

    def gradient(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """The gradients of the parameters, side by side; 0 where there is none."""
        arrays = [None if g is None else g.array for g in gradients]
        if all(a is not None and self._lies_flat(a) for a in arrays):
            flat = [self.device.view(a, a.data.reshape(-1), a.site) for a in arrays if a is not None]
            side_by_side: Tensor = concat([Tensor(a) for a in flat])
            return side_by_side
        parts = [
            zeros(p.size, dtype=self.dtype, device=self.device) if g is None else astype(reshape(g, -1), self.dtype)
            for p, g in zip(self.parameters, gradients, strict=True)
        ]
        found: Tensor = concat(parts)
        return found

    @property
    def memory(self) -> list[Any]:
        """What a kernel that takes the step writes: the values, and where they are not among them the weights, then
        each state."""
        assert self.values is not None or not self.master
        found = [self.values] if self.master else []
        return [a.data for a in (*found, *self.arrays) if a is not None]

    def moving(
        self, gradients: Sequence[Any], memory: Sequence[Any], options: Callable[[int], tuple[float, ...]]
    ) -> Segments:
        """The parameters that have gradients, with what `options` gives for the step that each takes.

        `gradients` and `memory` are arrays of the device's library.
        """
        values, *master, m, v = memory
        chosen = [k for k, (g, size) in enumerate(zip(gradients, self.sizes, strict=True)) if g is not None and size]
        kinds = {n: kind for kind, n in enumerate(dict.fromkeys(self.steps[k] + 1 for k in chosen))}
        return Segments(
            values,
            master[0] if master else None,
            m,
            v,
            [self.starts[k] for k in chosen],
            [g for g in gradients if g is not None and g.size],
            [kinds[self.steps[k] + 1] for k in chosen],
            [options(n) for n in kinds],
        )

    def spread(self, values: Sequence[bool | float]) -> Any:
        """One value for each parameter: itself if they are all the same, else a tensor that repeats each."""
        if len(set(values)) == 1:
            return values[0]
        dtype = "bool" if isinstance(values[0], bool) else compute_dtype(self.dtype)
        return concat(
            [full(p.size, v, dtype=dtype, device=self.device) for p, v in zip(self.parameters, values, strict=True)]
        )

    def number(self, f: Callable[[], float]) -> Any:
        """f(), or in a recording a scalar that asks for it again in each replay."""
        if active.get() is None:
            return f()
        return Tensor(constant.make((), self.full, self.device, (Live(f),), here()))

    def by_step(self, f: Callable[[int], float]) -> Any:
        """f(the number of the step that is being taken) for each parameter, spread."""
        if len(set(self.steps)) == 1:
            return self.number(lambda: f(self.steps[0] + 1))
        if active.get() is None:
            return self.spread([f(n + 1) for n in self.steps])
        each = [Live(partial(self._of_step, f, k)) for k in range(len(self.steps))]
        return concat(
            [
                Tensor(constant.make((size,), self.full, self.device, (live,), here()))
                for size, live in zip(self.sizes, each, strict=True)
            ]
        )

    def _of_step(self, f: Callable[[int], float], k: int) -> float:
        return f(self.steps[k] + 1)

    def guard(self, recorder: Recorder) -> None:
        """Have `recorder` see to it that the arrays stay where they are, and options but the learning rate as well."""
        recorder.saw(self.parameters)
        recorder.state.append(lambda: [a for a in (self.values, *self.arrays) if a is not None])
        recorder.kept.update(self.device.base(data) for data in self.memory)
        options = {name: value for name, value in self.group.items() if name not in ("params", "lr")}
        places = [self.device.place(a.data) for a in self.arrays]
        together = len(set(self.steps)) == 1  # then one number speaks for all: `by_step`

        def same() -> bool:
            return (
                not self.loaded
                and (len(set(self.steps)) == 1) == together
                and all(self.group[name] == value for name, value in options.items())
                and [self.device.place(a.data) for a in self.arrays] == places
            )

        recorder.guards.append(same)


class Weigh:
    """`weigh(value, neutral)`: `value` where a step may change something, else `neutral`, which changes nothing."""

    def __init__(self, flat: Flat, moving: Sequence[bool], finite: Tensor) -> None:
        chosen = flat.spread(moving)
        self.moving: Tensor = finite & chosen if isinstance(chosen, Tensor) else finite
        self.dtype, self.device = compute_dtype(flat.dtype), flat.device

    def __call__(self, value: Any, neutral: float = 0.0) -> Tensor:
        if not isinstance(value, Tensor):
            value = full((), value, dtype=self.dtype, device=self.device)
        result: Tensor = where(self.moving, value, neutral)
        return result


def replace(flats: Sequence[Flat], changed: Sequence[Sequence[Tensor]]) -> None:
    """Compute the new arrays of each flat, and put them in the place of the old ones.

    What is not computed, because of an exception, keeps its old value.
    """
    new = [[x.array for x in arrays] for arrays in changed]
    values = [flat.rounded(arrays[0]).array for flat, arrays in zip(flats, changed, strict=True)]
    old = [flat.values if flat.master and active.get() is not None else None for flat in flats]
    for flat in flats:
        flat.release()
        flat.arrays, flat.values = [], None
    try:
        realize_all([array for arrays in new for array in arrays] + values)
        for k in range(len(flats)):
            values[k] = _in_place(old, k, values[k])
    finally:
        for flat, arrays, rounded in zip(flats, new, values, strict=True):
            flat._hold([_origin(array) for array in arrays], rounded)


def _in_place(old: list[Array | None], k: int, new: Array) -> Array:
    """`new`, or in a recording `old[k]` with its values, where nobody else looks at that: replays write there again."""
    recorder, array = active.get(), old[k]
    if recorder is None or array is None or array.buffer is None or not exclusive(array, 2):  # by the list, and here
        return new
    recorder.wrote(array.buffer)
    array.device.perform(partial(_fill, array.device), [new.data], [array.data], "values")
    return array


def _fill(device: Any, x: Any, out: Any) -> None:
    device.fill(out, x)


def _origin(array: Array) -> Array:
    """`array` itself once it is computed; till then what it was to replace, which a rule puts first: p - change."""
    while array.op is not None:
        first = array.inputs[0]
        assert isinstance(first, Array)
        array = first
    return array


@contextmanager
def writable(flats: Sequence[Flat]) -> Iterator[None]:
    """Have the memory of each flat to itself inside the block, for a kernel that writes over arrays and values."""
    for flat in flats:
        flat.release()
    try:
        for flat in flats:
            array = flat.values
            if not flat.master:
                flat.values = None  # they are the weights
            elif array is not None and not exclusive(array, 2):  # for us: the attribute and this variable
                flat.values = _copied(array)
            for k in range(len(flat.arrays)):
                array = flat.arrays[k]
                if not exclusive(array, 2):
                    flat.arrays[k] = _copied(array)
            del array
            if (recorder := active.get()) is not None:
                for array in (flat.values, *flat.arrays):
                    if array is not None and array.buffer is not None:
                        recorder.wrote(array.buffer)
                del array
        yield
    finally:
        for flat in flats:
            flat._hold(flat.arrays, flat.values)


def _copied(array: Array) -> Array:
    return realize(copy(Tensor(array)).array)


def collected(flat: Flat, gradients: Sequence[Tensor | None]) -> list[Array | None]:
    """The gradients of the parameters as a kernel reads them: contiguous, of their dtype.  They may be pending."""
    found: list[Array | None] = []
    for g in gradients:
        if g is not None:
            same_device("step", [flat.arrays[0], g.array])
            g = astype(g, flat.dtype)
            g = g if g.array.op is not None or g.array.data.flags.c_contiguous else copy(g)
        found.append(None if g is None else g.array)
    return found


def norm_of(gradients: Sequence[Tensor]) -> Tensor:
    """The root of the sum of all squares, a scalar; half types are summed in float32."""
    squares = [sum_(square(astype(g, compute_dtype(g.dtype)))) for g in gradients]
    total: Tensor = sum_(stack(squares)) if len(squares) > 1 else squares[0]
    root: Tensor = total**0.5
    return root


def limit(norm: Tensor, max_norm: float) -> Tensor:
    """What to multiply gradients of this norm by to make it at most `max_norm`."""
    factor = max_norm / (norm + 1e-6)
    result: Tensor = where(factor < 1, factor, 1.0)
    return result


__all__ = ["Flat", "Weigh", "collected", "limit", "norm_of", "replace", "writable"]
