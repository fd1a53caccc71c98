"""Flat: parameters of one kind side by side in one array, and the optimizer's state for them likewise.

Each parameter is a view of its segment.  `replace` gives up every handle to the old arrays before the new ones are
computed, so that the engine may write the new values over them where nobody else looks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from ..array import Array, describe
from ..dtype import compute_dtype
from ..errors import DTypeError
from ..fuse.plan import realize, realize_all
from ..ops.compare import where
from ..ops.create import full, zeros
from ..ops.elementwise import square
from ..ops.join import concat, stack
from ..ops.reduce import sum as sum_
from ..ops.shape import astype, reshape
from ..tensor import Tensor


class Flat:
    """The `parameters`, all of one dtype and group, with `states` further arrays of the same length."""

    def __init__(self, parameters: list[Tensor], places: list[int], group: dict[str, Any], states: int) -> None:
        self.parameters, self.places, self.group = parameters, places, group
        self.dtype, self.device = parameters[0].dtype, parameters[0].device
        self.steps = [0] * len(parameters)  # how often each has moved
        self.shapes = [p.shape for p in parameters]
        size = sum(p.size for p in parameters)
        state = [zeros(size, dtype=compute_dtype(self.dtype), device=self.device) for _ in range(states)]
        realize_all([s.array for s in state])
        self._hold([self._values(), *[s.array for s in state]])

    def _values(self) -> Array:
        """The values of the parameters, gathered in new memory."""
        for p in self.parameters:
            if p.dtype != self.dtype or p.device is not self.device:
                raise DTypeError(
                    f"the parameter {p.name or describe(p)} is {p.dtype} on {p.device.name}, and was {self.dtype} on"
                    f" {self.device.name} when its optimizer was made\n  make the optimizer after model.to(...)"
                )
        return realize(concat([reshape(p.detach(), -1) for p in self.parameters]).array)

    def _hold(self, arrays: list[Array]) -> None:
        """Keep `arrays`, the values and then each state, and make the parameters views of the values."""
        self.arrays = arrays
        self.views = self.segments(arrays[0])
        for p, view in zip(self.parameters, self.views, strict=True):
            p.data = view

    def segments(self, array: Array) -> list[Array]:
        """The part of the flat `array` that belongs to each parameter, in its shape: views."""
        parts, start = [], 0
        for shape in self.shapes:
            stop = start + math.prod(shape)
            parts.append(self.device.view(array, array.data[start:stop].reshape(shape), array.site))
            start = stop
        return parts

    def follow(self) -> None:
        """Gather the values again if a parameter was given other ones, by `load_state_dict` or `copy_`, say."""
        if any(p.data is not view for p, view in zip(self.parameters, self.views, strict=True)):
            self._hold([self._values(), *self.arrays[1:]])

    def load(self, states: Sequence[Sequence[Tensor]], steps: list[int]) -> None:
        """Take over `states`, each a list with a tensor for each parameter, and the numbers of steps."""
        flat = [concat([reshape(x, -1) for x in state]).to(compute_dtype(self.dtype)) for state in states]
        new = [realize(x.to(self.device).array) for x in flat]
        self.arrays, self.steps = [self.arrays[0], *new], steps

    def gradient(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """The gradients of the parameters, side by side; 0 where there is none."""
        arrays = [None if g is None else g.array for g in gradients]
        if all(a is not None and a.op is None and a.dtype == self.dtype and a.data.flags.c_contiguous for a in arrays):
            flat = [self.device.view(a, a.data.reshape(-1), a.site) for a in arrays if a is not None]
            return astype(concat([Tensor(a) for a in flat]), compute_dtype(self.dtype))
        parts = [
            zeros(p.size, dtype=self.dtype, device=self.device) if g is None else astype(reshape(g, -1), self.dtype)
            for p, g in zip(self.parameters, gradients, strict=True)
        ]
        return astype(concat(parts), compute_dtype(self.dtype))

    def spread(self, values: Sequence[bool | float]) -> Any:
        """One value for each parameter: itself if they are all the same, else a tensor that repeats each."""
        if len(set(values)) == 1:
            return values[0]
        dtype = "bool" if isinstance(values[0], bool) else compute_dtype(self.dtype)
        return concat(
            [full(p.size, v, dtype=dtype, device=self.device) for p, v in zip(self.parameters, values, strict=True)]
        )

    def by_step(self, f: Callable[[int], float]) -> Any:
        """f(the number of the step that is being taken) for each parameter, spread."""
        return self.spread([f(n + 1) for n in self.steps])


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
    for flat in flats:
        flat.arrays, flat.views = [], []
        for p in flat.parameters:
            p.data = None
    try:
        realize_all([array for arrays in new for array in arrays])
    finally:
        for flat, arrays in zip(flats, new, strict=True):
            flat._hold([_origin(array) for array in arrays])


def _origin(array: Array) -> Array:
    """`array` itself once it is computed; till then what it was to replace, which a rule puts first: p - change."""
    while array.op is not None:
        first = array.inputs[0]
        assert isinstance(first, Array)
        array = first
    return array


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


__all__ = ["Flat", "Weigh", "limit", "norm_of", "replace"]
