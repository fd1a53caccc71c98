"""What a chain of functions takes when it is differentiated by a schedule: bytes, runs and time.

A chain is functions, here stages 0..N-1, each of which takes what the one before returned.  A schedule says how it is
run for its derivative: a tuple of items that cover the stages in order, each a Tape or an Advance, the last a Tape.

    Tape(s)                  run stage s with a tape; the backward pass uses it
    Advance(s, t, inner)     run stages s..t without a tape and keep only the input of s; when the backward pass comes
                             there, run them once more, by the schedule `inner` of just these stages

Nothing here knows of tensors: `simulate` counts what would be alive.  The planner searches among the schedules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from ..errors import DataError


@dataclass(frozen=True)
class StageCost:
    """What one function of a chain takes: bytes, and times in any unit.

    `forward`, `taped` and `backward` are the most bytes while it runs.  The input of the function is in none of them.
    """

    output: int  # what it returns
    saved: int  # kept for its derivative besides its input and its output
    forward: int  # without a tape: temporaries and output
    taped: int  # with a tape: temporaries, output and what is saved
    backward: int  # saved values, output, cotangents of output and input, gradients of parameters, temporaries
    cotangent: int  # of its output
    gradient: int  # of its parameters, kept to the end
    forward_time: float
    backward_time: float
    output_time: float = 0.0  # the part of forward_time that the output needs and what is saved does not


@dataclass(frozen=True)
class Tape:
    """Run `stage` with a tape."""

    stage: int

    @property
    def first(self) -> int:
        """The stage."""
        return self.stage

    @property
    def last(self) -> int:
        """The stage."""
        return self.stage


@dataclass(frozen=True)
class Advance:
    """Run stages `first`..`last` without a tape, and by `inner` again when the backward pass comes there.

    With `offload` the input of `first` is on the host meanwhile, and with `prefetch` there is room for it to come back
    during the backward run of stage `last + 1` already.
    """

    first: int
    last: int
    inner: Schedule
    offload: bool = False
    prefetch: bool = False


Schedule: TypeAlias = tuple[Tape | Advance, ...]


def none(n: int) -> Schedule:
    """Every stage with a tape: nothing is recomputed."""
    return _taped(0, n)


def every(n: int) -> Schedule:
    """Each stage checkpointed on its own, the last one taped."""
    return segmented(range(n + 1))


def balanced(n: int, k: int) -> Schedule:
    """`k` segments as equal as can be; the first n % k are one stage longer."""
    return segmented([i * (n // k) + min(i, n % k) for i in range(k + 1)])


def segmented(bounds: Sequence[int]) -> Schedule:
    """Segments that are checkpointed, the last one taped: segment i is stages bounds[i]..bounds[i + 1] - 1."""
    *checkpointed, last = pairwise(bounds)
    return (*[Advance(s, end - 1, _taped(s, end)) for s, end in checkpointed], *_taped(*last))


def all_(n: int) -> Schedule:
    """Each stage recomputed from the input of the chain: least memory, n(n - 1)/2 extra runs."""
    schedule: Schedule = (Tape(0),)
    for stage in range(1, n):
        schedule = (Advance(0, stage - 1, schedule), Tape(stage))
    return schedule


def log(n: int) -> Schedule:
    """The first half of the stages recomputed, and both halves again so: log2(n)/2 extra passes."""
    return _halved(0, n)


def _taped(s: int, end: int) -> Schedule:
    return tuple(Tape(stage) for stage in range(s, end))


def _halved(s: int, end: int) -> Schedule:
    if end - s == 1:
        return (Tape(s),)
    middle = s + (end - s + 1) // 2
    return (Advance(s, middle - 1, _halved(s, middle)), *_halved(middle, end))


def runs(schedule: Schedule, n: int) -> list[int]:
    """How often each of the `n` stages runs forward."""
    found = [0] * n
    pending = list(schedule)
    while pending:
        item = pending.pop()
        for s in range(item.first, item.last + 1):
            found[s] += 1
        if isinstance(item, Advance):
            pending += item.inner
    return found


@dataclass(frozen=True)
class Cost:
    """What a schedule takes."""

    peak: int  # bytes
    extra: int  # runs of stages beyond one each
    extra_time: float  # of these runs, and of moving to the host and back
    time: float  # of everything, the backward pass included


def simulate(stages: Sequence[StageCost], schedule: Schedule, first: int = 0, bandwidth: float | None = None) -> Cost:
    """What `schedule` takes for `stages`; `first` is the bytes of the chain's input, alive from beginning to end.

    `bandwidth`, bytes per unit of time, is that of moving to the host and back, during which nothing else is counted to
    run; None is no time at all.  The cotangent of the last output is there from the beginning.
    """
    end = len(stages)
    _check(schedule, 0, end - 1)
    live = peak = first + stages[-1].cotangent
    ran = [0] * end
    time = extra_time = 0.0
    coming: dict[int, int] = {}  # by stage, the bytes that come back from the host during its backward run
    # what is still to be done, the next last: items, and whether the backward pass comes to them
    pending = work(schedule)
    while pending:
        item, comes_back = pending.pop()
        again = 0.0
        if isinstance(item, Tape) and not comes_back:
            stage = stages[item.stage]
            peak = max(peak, live + stage.taped)
            live += stage.output + stage.saved
            # A recomputation ends with the last value saved, not with the output.
            stopped = pending[-1][1] and item.stage < end - 1
            spent = stage.forward_time - (stage.output_time if stopped else 0.0)
            again = spent if ran[item.stage] else 0.0
            ran[item.stage] += 1
        elif isinstance(item, Tape):
            stage = stages[item.stage]
            live -= stage.output + stage.saved + stage.cotangent
            peak = max(peak, live + stage.backward + coming.pop(item.stage, 0))
            live += stage.gradient + (stages[item.stage - 1].cotangent if item.stage else 0)
            spent = stage.backward_time
        elif not comes_back:
            spent, between = 0.0, 0
            for k in range(item.first, item.last + 1):
                peak = max(peak, live + between + stages[k].forward)
                between = stages[k].output
                spent += stages[k].forward_time
                again += stages[k].forward_time if ran[k] else 0.0
                ran[k] += 1
            live += between
            if item.offload:
                moved = stages[item.first - 1].output
                live -= moved
                again += 2 * moved / bandwidth if bandwidth else 0.0
                spent += 2 * moved / bandwidth if bandwidth else 0.0
                if item.prefetch:
                    coming[item.last + 1] = moved
        else:
            live += (stages[item.first - 1].output if item.offload else 0) - stages[item.last].output
            spent = 0.0
            _check(item.inner, item.first, item.last)
            pending += work(item.inner)
        time += spent
        extra_time += again
    return Cost(peak, sum(ran) - end, extra_time, time)


def work(schedule: Schedule) -> list[tuple[Tape | Advance, bool]]:
    """What a schedule does, the first last: each item in order, then the backward pass through them."""
    return [*[(item, True) for item in schedule], *[(item, False) for item in reversed(schedule)]]


def _check(schedule: Schedule, first: int, last: int) -> None:
    """Refuse a schedule of other stages than `first`..`last`."""
    due = first
    for item in schedule:
        begin, end = (item.stage, item.stage) if isinstance(item, Tape) else (item.first, item.last)
        if begin != due or end < begin:
            break
        due = end + 1
    if due != last + 1 or not isinstance(schedule[-1], Tape):
        raise DataError(
            f"a schedule of stages {first}..{last} goes wrong at stage {due}\n"
            "  its items have to cover the stages in order, and the last has to be a Tape"
        )
