"""Schedules of checkpoints for a training step whose model is a chain, by the peak of everything on the device.

    planner = StepPlanner(lambda chain: training(setup, run_chain=chain), meta_like("cuda:sm_90"))
    found = planner.plan("24GiB")  # or "none", "sqrt", "auto", "every"

Parameters, optimizer states, gradients, tokens, the chain and the update count.  Every peak is that of a dry run of the
whole step by that schedule, whose bytes are those of the device, one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..attribution import phase
from ..buffer import Buffer, LiveBytes, observers
from ..devices import Device, use_device
from ..devices.meta import Partials
from ..errors import DataError
from ..fuse.plan import realize_all
from ..remat.chain import run
from ..remat.part import name_of
from ..remat.schedule import Schedule, StageCost, every, simulate
from ..tensor import Tensor
from ..tree import leaves
from .ledger import run_to_end
from .measure import Functions, Measured, measure
from .plan import LITTLE
from .planner import Planner, segments
from .profile import show
from .sizes import parse_bytes

KINDS = ("none", "sqrt", "auto", "every")  # of schedules that go by a name
RECORDED = "recorded"  # the phase in which a recording of a step is there
TRIES = 6  # dry runs for a budget, at most


class Scheduled:
    """What runs a model's chain, as its `run_chain`: by `schedule`, which may be another one each time.

    None checkpoints nothing.
    """

    def __init__(self, schedule: Schedule | None = None) -> None:
        self.schedule = schedule
        self.watch: Callable[[Functions, Any], None] | None = None  # sees each chain before it runs

    def __call__(self, fns: Functions, x: Any) -> Any:
        """What the last of `fns` returns, `x` being given to the first."""
        if self.watch is not None:
            self.watch(fns, x)
        if self.schedule is not None:
            return run(fns, x, self.schedule)
        for f in fns:
            x = f(x)
        return x


@dataclass(frozen=True)
class StepPlan:
    """A schedule of a step's chain, None for no checkpoints, and what is predicted of the step."""

    name: str  # one of KINDS, or the budget
    schedule: Schedule | None
    peak: int  # bytes of everything on the device
    extra: float  # forward passes of the chain that are computed again
    slower: float  # the same as a part of the chain's forward and backward pass


class Peak(LiveBytes):
    """An observer that counts the bytes alive on one device, and knows the phase when there were most."""

    def __init__(self, device: Device, live: int = 0) -> None:
        super().__init__(device)
        self.live = self.peak = live
        self.phase = ""

    def allocated(self, buffer: Buffer) -> None:
        """Count `buffer` in."""
        before = self.peak
        super().allocated(buffer)
        if self.peak > before:
            self.phase = phase.get()

    @contextmanager
    def counting(self) -> Iterator[Peak]:
        """Count inside the block."""
        observers.append(self)
        try:
            yield self
        finally:
            observers.remove(self)


class StepPlanner:
    """The schedules of one step, which `make(chain)` makes on a meta `device`; `chain` is its model's `run_chain`.

    `base` is what is there when the chain begins, besides what is given to it: no schedule changes that.
    """

    def __init__(self, make: Callable[[Scheduled], Callable[[], Any]], device: Device) -> None:
        self.device, self.chain = device, Scheduled()
        self._known: dict[Schedule | None, tuple[int, str]] = {}  # by schedule: the peak and its phase
        seen: list[tuple[int, Measured]] = []
        with use_device(device), _partials(device) as partials, Peak(device).counting() as count:

            def watch(fns: Functions, x: Any) -> None:
                if not seen:
                    given = [t.array for t in leaves(x) if isinstance(t, Tensor)]
                    realize_all(given)
                    self.names = [name_of(f) for f in fns]
                    seen.append((count.live - sum(a.nbytes for a in given), measure(fns, x, "hash", ())))

            self.step = make(self.chain)
            run_to_end(self.step)  # what lasts is made by a first step
            self._lasting = count.live
            self.chain.watch = watch
            run_to_end(self.step)
            self.chain.watch = None
            if not seen:
                raise DataError("a plan of a step needs a model that gives its blocks to run_chain")
            self.base, self.measured = seen[0]
            self.chain.schedule = every(len(self.stages))
            run_to_end(self.step)
        engine = sum({p.kernel: p.nbytes for p in partials if p.kept}.values())  # which an engine keeps for its kernels
        self.base, self._lasting = self.base + engine, self._lasting + engine
        self._work = sum(stage.forward_time for stage in self.stages) or 1.0
        self._whole = self._work + sum(stage.backward_time for stage in self.stages)

    @property
    def stages(self) -> list[StageCost]:
        """The functions of the chain, as a planner sees them."""
        return self.measured.stages

    # --- schedules ------------------------------------------------------------------------------

    def plan(self, how: str) -> StepPlan:
        """That of one of KINDS, or that of least work within so many bytes: "24GiB", say."""
        if how not in KINDS:
            return self.within(parse_bytes(how), how)
        return self._tried(None if how == "none" else segments(self.stages, how, self.measured.first), how)

    def within(self, budget: int, name: str) -> StepPlan:
        """The least work found for a step of at most `budget` bytes; a DataError that says why if nothing fits."""
        usual = [self.plan(how) for how in KINDS]
        fitting = [plan for plan in (*usual, self.least) if plan.peak <= budget]
        if not fitting:
            raise DataError(
                f"no schedule of checkpoints fits this step in {show(budget)}\n"
                f"  the least is {self.least.peak} bytes ({show(self.least.peak)}): {show(self.base)} are there before"
                f" the blocks run, and {self.binding[1]}"
            )
        best = min(fitting, key=lambda plan: plan.extra)
        # What the whole step takes beside its chain depends on the schedule: so try, with what it took the last time
        low, high = self._planner.floor, budget - self.base
        room = high
        for _ in range(TRIES):
            if best.extra == 0 or room < self._planner.floor:
                break
            found = self._tried(self._planner.best(room), name)
            if found.peak <= budget:
                best, low = min(best, found, key=lambda plan: plan.extra), room
                if room >= high:
                    break
                room = (low + high) // 2
            else:
                high = room
                room = max(low, room - (found.peak - budget)) if low == self._planner.floor else (low + high) // 2
        return self._tried(best.schedule, name)

    def curve(self, count: int) -> Iterator[StepPlan]:
        """At most `count` plans, from no checkpoints to the least bytes: each takes fewer than those before."""
        found: dict[Schedule | None, StepPlan] = {None: self.plan("none")}
        yield found[None]
        for budget, schedule, cost in reversed(self._planner.curve(count)):
            plan = self._tried(schedule, show(self.base + budget))
            if cost.extra_time and plan.peak < min(known.peak for known in found.values()):
                found[schedule] = plan
                yield plan

    @cached_property
    def least(self) -> StepPlan:
        """The schedule that takes the fewest bytes, of those of least work."""
        floor = self._tried(self._planner.best(self._planner.floor), "least")
        return min([floor, *[self.plan(how) for how in KINDS]], key=lambda plan: (plan.peak, plan.extra))

    def _tried(self, schedule: Schedule | None, name: str) -> StepPlan:
        """A schedule with what a dry run of the step says of it."""
        if schedule not in self._known:
            self.chain.schedule = schedule
            with use_device(self.device), _partials(self.device), Peak(self.device, self._lasting).counting() as seen:
                run_to_end(self.step)
            self._known[schedule] = seen.peak, seen.phase
        extra = 0.0 if schedule is None else simulate(self.stages, schedule, self.measured.first).extra_time
        return StepPlan(name, schedule, self._known[schedule][0], extra / self._work, extra / self._whole)

    @cached_property
    def _planner(self) -> Planner:
        return Planner(self.stages, self.measured.first)

    # --- what binds -----------------------------------------------------------------------------

    @cached_property
    def binding(self) -> tuple[str, str]:
        """What the peak is where checkpoints save most, in a word or two, and as a sentence."""
        least, stages = self.least, self.stages
        gradients = sum(stage.gradient for stage in stages)
        when = self._known[least.schedule][1]
        if when == RECORDED:
            return "recorded step", "the rest is a recording of the step, with a held-out loss beside it"
        if when == "step":
            return "optimizer step", "the peak is in the optimizer step"
        after, needs = 0, []
        for stage in reversed(stages):
            needs.append(max(stage.taped + stage.cotangent, stage.backward) + after)
            after += stage.gradient
        widest = len(stages) - 1 - max(range(len(stages)), key=needs.__getitem__)
        stage = stages[widest]
        inside = least.peak - self.base <= (1 + LITTLE) * self._planner.floor
        if inside and gradients <= stage.backward:
            if widest == len(stages) - 1:
                return "logits", f"at the peak norm, head and loss take {show(max(stage.taped, stage.backward))}"
            name = self.names[widest]
            return (
                f"backward pass of {name}",
                f"at the peak the backward pass of one {name} takes {show(stage.backward)}",
            )
        return "parameter gradients", f"at the peak the gradients of parameters take {show(gradients)}"

    @property
    def saving(self) -> float:
        """The part of the step's peak without checkpoints that they can save."""
        return 1 - self.least.peak / self.plan("none").peak

    @property
    def advice(self) -> str | None:
        """What takes the memory, where checkpoints can save less than LITTLE of it."""
        if self.saving >= LITTLE:
            return None
        most = self.plan("none").peak
        saved = f"{self.saving:.1%}" if self.saving > 0 else "nothing"
        return (
            f"checkpoints save {saved} of {show(most)} at most: {show(self.base)} are there before the blocks run, and"
            f" {self.binding[1]}"
        )


@contextmanager
def _partials(device: Any) -> Iterator[list[Partials]]:
    """The memory for partial results of each kernel that runs on a meta device inside."""
    found: list[Partials] = []
    device.partials = found
    try:
        yield found
    finally:
        device.partials = None


__all__ = ["KINDS", "RECORDED", "Peak", "Scheduled", "StepPlan", "StepPlanner"]
