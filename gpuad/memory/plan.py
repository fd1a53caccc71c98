"""Plans: schedules of checkpoints for a chain of functions, so that its derivative fits in a number of bytes.

    plan = gpuad.memory.plan(model.blocks, x, budget="12GiB")
    print(plan.explain())
    y = plan(x)

A plan is made by dry runs of the functions, on the shapes of `x`; nothing is computed for it.
"""

from __future__ import annotations

import functools
import math
import textwrap
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any
from weakref import ref

from ..array import Shape, describe
from ..dtype import DType
from ..errors import DataError
from ..remat.chain import is_watched, run
from ..remat.draws import Draws
from ..remat.part import name_of, varies
from ..remat.record import DETERMINISM
from ..remat.schedule import Cost, Schedule, Tape, none, runs, simulate
from ..tensor import Tensor
from ..tree import leaves
from .measure import Functions, Measured, clocked, measure, peak
from .planner import WHOLE, Planner
from .planner import segments as segments_of
from .profile import show
from .sizes import parse_bytes

LITTLE = 0.05  # of the bytes: who saves less has checkpointed in vain
MOVED_BYTE = 8192  # moving a byte to the host or back takes as long as this many operations
FEW = 32  # segments at most of which every number is tried
HOST_BANDWIDTH = 25e9  # bytes a second, of PCI Express 4.0 with 16 lanes
WIDTH = 80  # columns of text

KINDS = ("auto", "sqrt", *WHOLE)


class Plan:
    """A chain of functions and a schedule of checkpoints for it.  `plan(x)` runs it, as one node of the tape.

    `peak` is the most bytes that it takes, forward and backward: input, what is kept, computed again, cotangents,
    gradients of what the functions capture, and the result, but nothing else that exists before.  `extra` is the work
    of computing again, in forward passes.  Both are predicted, for a derivative that no other transformation looks on:
    a second derivative takes more, and so does grad() with respect to `x` alone while parameters require grad.
    """

    def __init__(
        self, fns: Functions, x: Any, measured: Measured, schedule: Schedule, peak: int, options: dict[str, Any]
    ) -> None:
        self.fns, self.measured, self.schedule, self.peak, self.options = tuple(fns), measured, schedule, peak, options
        self.made_for = [_described(t) for t in _tensors(x)]
        self.inputs = [(t.shape, t.dtype, varies(t)) for t in _tensors(x)]

    def __repr__(self) -> str:
        return f"<Plan of {_counted(self.fns)}: peak {show(self.peak)}, {self.extra:.2f} forward passes again>"

    def cost(self, schedule: Schedule) -> Cost:
        """What another schedule of the same functions would take."""
        return simulate(self.measured.stages, schedule, self.measured.first)

    @property
    def extra(self) -> float:
        """The work of computing again, in forward passes."""
        return self.in_forward_passes(self.cost(self.schedule).extra_time)

    def in_forward_passes(self, spent: float) -> float:
        """A time as a multiple of that of all functions once."""
        return spent / (sum(stage.forward_time for stage in self.measured.stages) or 1.0)

    def __call__(self, x: Any) -> Any:
        """What the last function returns for `x`, of whose tensors no axis is longer than planned.

        Nor is a derivative taken with respect to more of them.
        """
        given = _tensors(x)
        if len(given) != len(self.inputs) or not all(map(_fits, given, self.inputs)):
            raise DataError(
                f"a plan for {', '.join(self.made_for)} got {', '.join(map(_described, given)) or 'no tensor'}\n"
                "  make another plan for it, of an input that requires grad if a derivative flows through"
            )
        return run(self.fns, x, self.schedule, **self.options)

    def explain(self) -> str:
        """What each function does, and what the usual schedules would take, as text of up to 80 columns."""
        n, total = len(self.fns), self.in_forward_passes
        made_for = f"{_counted(self.fns)} for {', '.join(self.made_for)}"
        lines = [
            *textwrap.wrap(made_for, WIDTH),
            f"peak {show(self.peak)}, {self.extra:.2f} forward passes computed again",
            "",
            f"{'functions':>10}  {'':20}  {'runs':>4}  {'tape keeps':>10}  then",
        ]
        rows = list(zip(map(self._name, range(n)), runs(self.schedule, n), map(self._kept, range(n)), self._done()))
        begin = 0
        for end in range(1, n + 1):
            if end == n or rows[end] != rows[begin]:
                where = f"{begin}" if end == begin + 1 else f"{begin} to {end - 1}"
                name, often, kept, done = rows[begin]
                lines.append(f"{where:>10}  {name:20}  {often:>4}  {show(kept):>10}  {done}")
                begin = end
        lines += ["", f"{'schedule':>10}  {'peak up to':>10}  {'forward passes again':>20}"]
        for name, schedule in self.usual().items():
            cost = self.cost(schedule)
            known = self.peak if schedule == self.schedule else cost.peak
            lines.append(f"{name:>10}  {show(known):>10}  {total(cost.extra_time):>20.2f}")
        lines.append(f"{'this plan':>10}  {show(self.peak):>10}  {self.extra:>20.2f}")
        if (advice := self.advice()) is not None:
            lines += ["", *textwrap.wrap(advice, WIDTH)]
        return "\n".join(lines)

    def usual(self) -> dict[str, Schedule]:
        """The schedules that one would choose without planning."""
        stages, first = self.measured.stages, self.measured.first
        named = {how: segments_of(stages, how, first) for how in ("sqrt", "auto", "every", "log", "all")}
        return {"none": none(len(stages)), **named}

    def advice(self) -> str | None:
        """What takes the memory, where checkpointing saves hardly any of it."""
        return saves_little(self.measured, self._name)

    def _name(self, s: int) -> str:
        name = name_of(self.fns[s])
        return name if len(name) <= 20 else name[:19] + "…"

    def _kept(self, s: int) -> int:
        stage = self.measured.stages[s]
        return stage.output + stage.saved

    def _done(self) -> list[str]:
        """What is done with each function: kept, or computed again, from an input that may wait on the host."""
        found: list[str] = []
        for item in self.schedule:
            if isinstance(item, Tape):
                found.append("kept")
            else:
                together = f" with {item.first} to {item.last}" if item.last > item.first else ""
                found += [f"{'host, ' * item.offload}again{together}"] * (item.last - item.first + 1)
        return found


def _fits(x: Tensor, planned: tuple[Shape, DType, bool]) -> bool:
    """Does a plan for such a tensor hold for `x`?"""
    shape, dtype, varied = planned
    return (
        (x.ndim, x.dtype) == (len(shape), dtype)
        and all(a <= b for a, b in zip(x.shape, shape, strict=True))
        and varies(x) <= varied
    )


def _counted(fns: Sequence[Any]) -> str:
    return f"{len(fns)} function{'s' * (len(fns) > 1)}"


def _tensors(x: Any) -> list[Tensor]:
    return [t for t in leaves(x) if isinstance(t, Tensor)]


def _described(x: Tensor) -> str:
    return f"{describe(x)} with a derivative" if varies(x) else describe(x)


def saves_little(measured: Measured, name: Callable[[int], str]) -> str | None:
    """A sentence on what takes the memory of a chain, where checkpoints could save less than LITTLE of it."""
    stages, first = measured.stages, measured.first
    most = simulate(stages, none(len(stages)), first).peak
    least = Planner(stages, first).floor
    if most - least >= LITTLE * most:
        return None
    gradients = sum(stage.gradient for stage in stages)
    widest = max(range(len(stages)), key=lambda s: stages[s].backward)
    binds = (
        f"the gradients of parameters take {show(gradients)}"
        if gradients > stages[widest].backward
        else f"the backward pass of {name(widest)} alone takes {show(stages[widest].backward)}"
    )
    saved = f"{(most - least) / most:.0%}" if most else "nothing"
    return f"checkpoints save {saved} of {show(most)} at most: {binds}"


def plan(
    fns: Functions,
    x: Any,
    budget: int | str | float,
    *,
    time: str = "flops",
    offload: bool = False,
    determinism: str = "hash",
    generators: Sequence[Any] = (),
) -> Plan:
    """The schedule of least work for the chain `fns` whose peak is at most `budget`, `x` being given to the first.

    `budget` is bytes, a text such as "12GiB", or a fraction (a float up to 1.0) of what no checkpoint takes; what it
    counts is what `Plan.peak` does.  `x` requires grad if a derivative is to flow through it, as does what the
    functions capture: who unfreezes a parameter plans again.  Bytes are found by dry runs, in which the functions run
    on shapes; what they assign outside has no values then.  With `time` "flops" work is counted as arithmetic
    operations, with "profile" the functions run a few times and are timed.  With `offload` inputs of checkpointed
    functions may wait in pinned memory of the host where they are on a GPU; parameters never do.  For `determinism` and
    `generators` see `checkpoint`.  A DataError states the least budget if none fits; a warning what takes the memory if
    checkpoints save hardly any.  Dynamic programming after Beaumont et al., "Optimal checkpointing for heterogeneous
    chains", 2019.
    """
    fns = _checked(fns, determinism, generators)
    _limit(budget, 0)  # so that a wrong one is an error here
    if time not in ("flops", "profile"):
        raise DataError(f'time= is "flops" or "profile", got {time!r}')
    if not isinstance(offload, bool):
        raise DataError(f"offload= is True or False, got {offload!r}")
    measured = measure(fns, x, determinism, generators)
    if time == "profile":
        measured = clocked(fns, x, measured, generators)
    options: dict[str, Any] = {"determinism": determinism, "generators": generators}
    most = peak(fns, x, none(len(fns)), **options)
    limit = _limit(budget, most)
    bandwidth = None
    if offload and _tensors(x)[0].device.offloads:
        bandwidth = HOST_BANDWIDTH if time == "profile" else 1 / MOVED_BYTE
    if limit < most:
        schedule, found = _fitting(fns, x, measured, limit, bandwidth, **options)
    else:
        schedule, found = none(len(fns)), most
    made = Plan(fns, x, measured, schedule, found, options)
    advice = made.advice()
    if advice is not None and limit < most:
        warnings.warn(advice, stacklevel=2)
    return made


def _fitting(
    fns: Functions, x: Any, measured: Measured, limit: int, bandwidth: float | None, **options: Any
) -> tuple[Schedule, int]:
    """The schedule of least work of which a dry run takes at most `limit`, and the bytes that it takes."""
    stages, first = measured.stages, measured.first
    usual, least = _segmented(measured), math.inf
    for rate in dict.fromkeys((bandwidth, None)):  # what goes to the host stays a little longer than is counted
        planner, room = Planner(stages, first, rate), limit
        while True:
            room = max(room, planner.floor)
            schedule = _cheapest([planner.best(room), *usual], measured, room, rate)
            found = peak(fns, x, schedule, **options)
            if found <= limit:
                return schedule, found
            least = min(least, found)
            if room == planner.floor:
                break
            room = simulate(stages, schedule, first, rate).peak - 1
    raise DataError(
        f"no schedule of these {len(stages)} functions fits in {show(limit)}\n"
        f"  the least that one takes is {least:.0f} bytes ({show(int(least))})"
    )


def _segmented(measured: Measured) -> list[Schedule]:
    """Numbers of segments, which do not round bytes as the planner does."""
    n = len(measured.stages)
    # of a longer chain, for each length of a segment as few as can be
    numbers = {*range(1, min(n, FEW) + 1), *[-(-n // length) for length in range(1, n + 1)]}
    return [segments_of(measured.stages, k, measured.first) for k in sorted(numbers)]


def _cheapest(tried: list[Schedule], measured: Measured, room: int, bandwidth: float | None) -> Schedule:
    """The schedule within `room` of least work; the first is."""
    costs = [simulate(measured.stages, schedule, measured.first, bandwidth) for schedule in tried]
    fitting = [k for k in range(len(tried)) if costs[k].peak <= room]
    return tried[min(fitting, key=lambda k: costs[k].extra_time)]


def _checked(fns: Functions, determinism: str, generators: Sequence[Any]) -> Functions:
    """The functions of a chain; a DataError for what is none, or for wrong options."""
    found = tuple(fns) if isinstance(fns, Iterable) and not isinstance(fns, Iterator) else ()
    if not found or not all(map(callable, found)):
        kind = type(fns).__name__
        raise DataError(
            f"a chain is a list of functions, each of which takes what the one before returns, got {kind}"
            f"{' of something else' if found else ' without any'}\n  give it [f, g, h], or a model's blocks"
        )
    if determinism not in DETERMINISM:
        raise DataError(f'determinism= is "hash", "shapes" or "off", got {determinism!r}')
    Draws(generators)
    return found


def _limit(budget: int | str | float, most: int) -> int:
    """The bytes that a budget stands for."""
    if not isinstance(budget, float):
        return parse_bytes(budget)
    if not 0 < budget <= 1:
        raise DataError(
            f"a fraction of the bytes that no checkpoint takes is more than 0 and at most 1.0, got {budget!r}\n"
            '  give a number of bytes as an int, or as a text such as "12GiB"'
        )
    return int(budget * most)


# --- sequences of functions ---------------------------------------------------------------------

_known: dict[Any, Schedule] = {}  # by functions, input and options: what was found for them
MOST_KNOWN = 256


def checkpoint_sequential(
    fns: Functions,
    x: Any,
    segments: str | int = "auto",
    *,
    determinism: str = "hash",
    generators: Sequence[Any] = (),
) -> Any:
    """What the last of `fns` returns, `x` being given to the first, with checkpoints as `segments` says.

    A number: so many segments, each checkpointed but the last, balanced by the bytes that they would keep.  "sqrt": the
    square root of the number of functions.  "auto": the number with the lowest peak, about sqrt(c n) where a function
    keeps c times what it is given.  "every": each function is a segment.  "log": halves of halves, for log2(n)/2 more
    forward passes.  "all": each function is computed again from `x`, for (n - 1)/2 more.  Chen et al., "Training deep
    nets with sublinear memory cost", 2016.

    Bytes are found by a dry run for "auto", "sqrt" and numbers when such functions first get such an input.
    """
    fns = _checked(fns, determinism, generators)
    n = len(fns)
    if isinstance(segments, bool) or not (isinstance(segments, int) or segments in KINDS):
        raise DataError(f"segments= is one of {', '.join(map(repr, KINDS))}, or a number, got {segments!r}")
    if isinstance(segments, int) and not 1 <= segments <= n:
        raise DataError(f"{n} functions cannot be {segments} segments\n  ask for 1 to {n}")
    options: dict[str, Any] = {"determinism": determinism, "generators": generators}
    if isinstance(segments, str) and segments in WHOLE:
        return run(fns, x, WHOLE[segments](n), **options)
    if not is_watched(x):
        return run(fns, x, none(n), **options)
    tensors = _tensors(x)
    key = (
        segments,
        determinism,
        *map(_identity, fns),
        *[(t.shape, t.dtype, t.device, t.link is None) for t in tensors],
    )
    schedule = _known.get(key)
    if schedule is None:
        measured = measure(fns, x, **options)
        schedule = segments_of(measured.stages, segments, measured.first)
        if len(_known) >= MOST_KNOWN:
            _known.clear()
        _known[key] = schedule
    return run(fns, x, schedule, **options)


def _identity(f: Any) -> Any:
    """What tells a function from others, without keeping it: functions made by the same line count as one."""
    if isinstance(f, types.FunctionType):
        wrapped = getattr(f, "__wrapped__", None)
        return f.__code__ if wrapped is None else (f.__code__, _identity(wrapped))
    if isinstance(f, functools.partial):
        return functools.partial, _identity(f.func)
    if isinstance(f, types.MethodType):
        return _identity(f.__func__), _identity(f.__self__)
    try:
        found = ref(f)
        hash(found)
    except TypeError:
        return id(f)
    return found


__all__ = ["Plan", "checkpoint_sequential", "plan"]
