"""Op: one operation, with one derivative rule per argument, for every mode and order.

A rule takes the tangent (or cotangent) first, then by name any of: the op's inputs, its outputs (`y` where there is
one), `like` for the shapes and dtypes of its inputs, and its keyword parameters.  What no rule names is not kept.
Rules are written with public ops on tensors, which alone makes them differentiable and fusable.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from ..array import OPAQUE, Array, Shape, describe
from ..devices import Device
from ..dtype import WEAK, DType
from ..errors import DeviceError
from ..provenance import Site
from ..trace import apply

Inferred: TypeAlias = tuple[Shape, DType]

Rule: TypeAlias = "Callable[..., Any] | None"


class Op:
    """A primitive operation.  Arrays are positional, everything else is keyword."""

    fusion = OPAQUE  # evaluated at once, not part of any kernel
    cost = 1.0
    in_place = False
    may_wait = False  # can it be evaluated later than at once, where nobody may ever want its result?
    besides: tuple[str, ...] = ()  # parameters that say what to compute besides, where a derivative follows
    nodes: dict[Any, Any] | None = None  # by trace, those of one call, where it may run again
    keeper = ""  # on whose account its outputs are kept, if not its own
    pull_last: Callable[..., Any] | None = None  # pull() where nobody else needs the cotangents and the frame again
    cuda = ""
    numpy: Any

    def __init__(
        self,
        name: str,
        inputs: Sequence[str],
        *,
        outputs: Sequence[str] = ("y",),
        vjp: Sequence[Rule] = (),
        jvp: Sequence[Rule] = (),
        params: Sequence[str] = (),
        doc: str = "",
    ) -> None:
        self.name, self.inputs, self.outputs, self.params = name, tuple(inputs), tuple(outputs), tuple(params)
        self.__doc__ = doc
        self.slots = {n: k for k, n in enumerate((*self.inputs, *self.outputs, "like", *self.params))}
        self.vjp = [self._bind(r) for r in vjp] or [None] * len(self.inputs)
        self.jvp = [self._bind(r) for r in jvp] or [None] * len(self.inputs)
        self.differentiable = [True] * len(self.outputs)  # which outputs carry a derivative
        self._plans: dict[tuple[bool, ...], tuple[int, ...] | None] = {}

    def _bind(self, rule: Rule) -> tuple[Callable[..., Any], tuple[int, ...]] | None:
        """The rule with the slots it reads, checked when the op is defined."""
        if rule is None:
            return None
        _, *names = parameters(rule)
        if unknown := [n for n in names if n not in self.slots]:
            raise TypeError(f"{self.name}: a rule asks for {unknown}; it may name {list(self.slots)}")
        return rule, tuple(self.slots[n] for n in names)

    def __call__(self, *args: Any, **params: Any) -> Any:
        if len(args) != len(self.inputs) and self.inputs:
            raise TypeError(
                f"{self.name}() takes {len(self.inputs)} operand{'s' * (len(self.inputs) > 1)}, got {len(args)}"
            )
        if params and params.keys() - set(self.params):
            raise TypeError(f"{self.name}() takes no {', '.join(sorted(params.keys() - set(self.params)))}")
        return apply(self, args, params)

    def likeness(self, values: list[Any], y: Any) -> Any:
        """What rules get as `like`: the shape and dtype of each input, None for Python scalars."""
        return [None if type(v) in WEAK else (v.shape, v.dtype) for v in values]

    def frame(self, values: list[Any], y: Any, params: dict[str, Any]) -> list[Any]:
        """Everything a rule may name, in the order of the slots."""
        return [*values, *(y if type(y) is tuple else (y,)), self.likeness(values, y), *params.values()]

    def plan(self, traced: tuple[bool, ...]) -> tuple[int, ...] | None:
        """The inputs and outputs that the tape must keep, by slot; None if no derivative flows."""
        if traced not in self._plans:
            rules = [r for r, t in zip(self.vjp, traced, strict=True) if t and r is not None]
            wanted = {s for _, slots in rules for s in slots if s < len(self.inputs) + len(self.outputs)}
            self._plans[traced] = tuple(sorted(wanted)) if rules else None
        return self._plans[traced]

    def pull(self, g: Any, frame: list[Any], traced: Sequence[bool]) -> list[Any]:
        """The cotangent of each traced input from that of the output (a list of them if there are several)."""
        return [
            self._apply(r, g, frame) if t and r is not None else None for r, t in zip(self.vjp, traced, strict=True)
        ]

    def push(self, tangents: list[Any], frame: list[Any]) -> Any:
        """The tangent of the output, or None if it is zero; a list where there are several outputs."""
        parts = [
            self._apply(r, t, frame) for r, t in zip(self.jvp, tangents, strict=True) if r is not None and t is not None
        ]
        if len(self.outputs) > 1 and parts:
            return [_sum_of([part[k] for part in parts]) for k in range(len(self.outputs))]
        return _sum_of(parts)

    @staticmethod
    def _apply(rule: tuple[Callable[..., Any], tuple[int, ...]], t: Any, frame: list[Any]) -> Any:
        function, slots = rule
        return function(t, *[frame[s] for s in slots])

    def evaluate(self, arrays: list[Any], params: dict[str, Any], site: Site | None) -> Any:
        """The result as an Array, or a tuple of them, perhaps pending."""
        raise NotImplementedError

    def signature(self, operands: tuple[DType | type, ...]) -> tuple[tuple[DType, ...], DType]:
        """The dtype each operand is cast to first, and the dtype of the result."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<op {self.name}>"


def parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    """The names of a function's parameters, without `*args`: read off its code, as there are hundreds at import."""
    code = function.__code__
    return code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]


def _sum_of(parts: list[Any]) -> Any:
    """The sum of those that are not None; None if there are none."""
    found = [part for part in parts if part is not None]
    return functools.reduce(operator.add, found) if found else None


def same_device(name: str, arrays: Sequence[Any]) -> Device:
    """The one device of `arrays`; a DeviceError that shows them if there are two."""
    device: Device | None = None
    for a in arrays:
        if type(a) is Array:
            if device is not None and a.device is not device:
                two_devices(name, arrays)
            device = a.device
    if device is None:
        raise TypeError(f"{name}() needs at least one tensor")
    return device


def two_devices(name: str, arrays: Sequence[Any]) -> None:
    """A DeviceError that shows operands which lie on two devices."""
    shown = " and ".join(f"{describe(a)} on {a.device.name}" for a in arrays if type(a) is Array)
    raise DeviceError(f"{name}() got {shown}\n  move one of them with .to(device)")
