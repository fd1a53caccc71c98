"""`gpuad plan`: what checkpoints take and give for a training step: planned for budgets, measured where it fits."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

from ..devices import Device, use_device
from ..errors import DataError
from .command import called, check_outputs, computing, setup_of
from .dryrun import meta_like
from .free import free_bytes
from .ledger import run_to_end
from .pareto import Choices, Ran, paragraph
from .profile import show
from .report import writing
from .setups import Setup, planner, training
from .sizes import parse_bytes
from .step_plan import KINDS, Peak, Scheduled, StepPlan

POINTS = 16  # of the curve
SPARE = 0.15  # of a step's peak: what pools keep beside it, about
SECONDS = 20.0  # that measured steps may take together, about
MOST = 7  # steps of each schedule that are timed


def run(arguments: argparse.Namespace) -> int:
    """Plan, measure, print, write; the exit code, 1 where nothing fits in a budget."""
    from tqdm import tqdm  # here, so that nothing else waits for it

    check_outputs([arguments.json, arguments.plot], arguments.plot)
    budgets = list(dict.fromkeys(arguments.budget or ()))
    for budget in budgets:
        parse_bytes(budget)
    if arguments.like is not None and arguments.device != "auto":
        raise DataError("--like plans without a device, --device for one that is there; give one of them")
    setup = setup_of(arguments)
    device = computing(arguments.device) if arguments.like is None else meta_like(arguments.like)
    print(paragraph(f"{setup.describe()}, on {called(device)}"), flush=True)
    with tqdm(total=1, disable=None, leave=False, dynamic_ncols=True) as bar:
        choices = choose(setup, device, budgets, bar)
        if device.computes:
            _measure(setup, device, choices, bar)
    encoding = sys.stdout.encoding or "utf-8"
    print(f"\n{choices}".encode(encoding, "replace").decode(encoding))
    if arguments.json is not None:
        with writing(arguments.json) as partial:
            partial.write_text(choices.to_json() + "\n", encoding="utf-8")
    if arguments.plot is not None:
        suffix = arguments.plot.suffix.lower()
        with writing(arguments.plot) as partial:
            choices.figure().savefig(partial, format=suffix[1:], metadata={"Date": None} if suffix == ".svg" else None)
    return 1 if choices.infeasible else 0


def choose(setup: Setup, device: Device, budgets: Sequence[str], bar: Any) -> Choices:
    """What is predicted for a step as `device` would run it."""
    bar.reset(total=1 + len(KINDS) + len(budgets) + POINTS)
    found = planner(setup, device)
    bar.update()
    plans, infeasible = [], {}
    for how in (*KINDS, *budgets):
        try:
            plans.append(found.plan(how))
        except DataError as error:
            infeasible[how] = str(error)
        bar.update()
    curve = []
    for plan in found.curve(POINTS):
        curve.append(plan)
        bar.update()
    return Choices(
        title=setup.describe(),
        device=called(device),
        base=found.base,
        functions=len(found.stages),
        plans=plans,
        curve=curve,
        least=found.least,
        binds=found.binding,
        advice=found.advice,
        infeasible=infeasible,
    )


def _measure(setup: Setup, device: Device, choices: Choices, bar: Any) -> None:
    """Take steps by those schedules that have room on `device`, and say why by the others not."""
    free = free_bytes(device)
    if free is None:
        choices.notes.append(f"Nothing was measured: {device.name} does not say how much memory is free.")
        return
    fitting = [plan for plan in choices.plans if plan.peak * (1 + SPARE) <= free]
    if fitting:
        bar.reset(total=len(fitting) * (2 + MOST))
        choices.ran = measured(setup, device, fitting, bar)
    left = [plan for plan in choices.plans if plan.name not in choices.ran]
    if left:
        choices.notes.append(
            f"{'Not all was' if choices.ran else 'Nothing was'} measured: {show(free)} are free on {device.name}, and"
            f" {SPARE:.0%} of a peak are left for what pools keep."
        )


def measured(setup: Setup, device: Device, plans: Sequence[StepPlan], bar: Any) -> dict[str, Ran]:
    """What a step took by each of `plans`, by name, without those that failed for want of memory."""
    chain = Scheduled()
    peaks: dict[str, int] = {}
    spent = 0.0
    with use_device(device):
        with Peak(device).counting() as seen:
            step = training(setup, run_chain=chain)
            for plan in sorted(plans, key=lambda plan: plan.peak):
                try:
                    chain.schedule = plan.schedule
                    run_to_end(step)  # which compiles kernels, and makes what lasts
                    bar.update()
                    seen.peak = seen.live
                    spent += _seconds(step, device)
                    bar.update()
                except MemoryError:
                    break
                peaks[plan.name] = seen.peak
        # in turns, so that what slows the machine down slows all of them down
        times: dict[str, list[float]] = {name: [] for name in peaks}
        rounds = max(1, min(MOST, int(SECONDS / spent))) if spent else 0
        bar.reset(total=rounds * len(peaks))
        for _ in range(rounds):
            for plan in plans:
                if plan.name in peaks:
                    chain.schedule = plan.schedule
                    times[plan.name].append(_seconds(step, device))
                    bar.update()
    return {name: Ran(peak, median(times[name])) for name, peak in peaks.items()}


def _seconds(step: Any, device: Device) -> float:
    device.synchronize()
    began = time.perf_counter()
    run_to_end(step)
    device.synchronize()
    return time.perf_counter() - began


__all__ = ["choose", "measured", "run"]
