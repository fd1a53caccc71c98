"""What schedules of a step cost, for people and programs: memory against what is computed again.

Nothing is planned or measured here.  The table is text of 80 columns, the picture's axes are the peak of a step and the
forward passes that are computed again; what was measured stands in it by the time that it took.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError
from .plots import NORMAL, SMALL, ticks
from .profile import show
from .report import Table
from .step_plan import StepPlan

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABELS = {"none": "none", "sqrt": "√N", "auto": "√(cN)", "every": "every layer"}
COLOURS = {"none": "#332288", "sqrt": "#ddaa33", "auto": "#117733", "every": "#882255"}  # Paul Tol's muted scheme
PLANNED, FIXED = "#4477aa", "#999999"


@dataclass(frozen=True)
class Ran:
    """What a step took on a device: bytes, and seconds in the median."""

    peak: int
    seconds: float


@dataclass
class Choices:
    """The schedules that one may choose from for a step: usual ones and those for budgets, and planned ones between.

    `ran` is by the names of `plans`; `infeasible` has for each budget that nothing fits in why.
    """

    title: str
    device: str
    base: int  # bytes that no schedule changes
    functions: int  # of the chain
    plans: list[StepPlan]
    curve: list[StepPlan]
    least: StepPlan
    binds: tuple[str, str]  # what the least peak is: in a word or two, in a sentence
    advice: str | None
    ran: dict[str, Ran] = field(default_factory=dict)
    infeasible: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def most(self) -> int:
        """The peak without checkpoints."""
        return self.plans[0].peak

    def slower(self, name: str) -> float | None:
        """By what part of a step without checkpoints a measured one takes longer."""
        if name not in self.ran or "none" not in self.ran:
            return None
        return self.ran[name].seconds / self.ran["none"].seconds - 1

    # --- text -----------------------------------------------------------------------------------

    def __str__(self) -> str:
        head = ["schedule", "peak", "of none", "forward passes again", "time"]
        rows: list[Sequence[str]] = []
        for plan in self.plans:
            label = {"sqrt": "sqrt, √N", "auto": "auto, √(cN)", "every": "every layer"}.get(plan.name, plan.name)
            row = [label, show(plan.peak), f"{plan.peak / self.most:.0%}", f"{plan.extra:.2f}", f"{plan.slower:+.0%}"]
            if self.ran:
                ran, slower = self.ran.get(plan.name), self.slower(plan.name)
                row += ["-" if ran is None else show(ran.peak), "-" if slower is None else f"{slower:+.0%}"]
            rows.append(row)
        if self.ran:
            head += ["measured peak", "measured time"]
        title = "A training step by its checkpoints: the peak of everything on the device"
        text = [str(Table(title, head, rows, "<" + ">" * (len(head) - 1)))]
        fixed = f"Before the blocks run {show(self.base)} are there, which no schedule changes."
        least = f"The least that a step can take is {show(self.least.peak)}; {self.binds[1]}."
        text += [paragraph(line) for line in (f"{fixed} {least}", self.advice, *self.infeasible.values(), *self.notes)]
        return "\n\n".join(part for part in text if part)

    def to_json(self) -> str:
        """Everything, as JSON of version 1."""
        found = {
            "version": 1,
            "setup": self.title,
            "device": self.device,
            "base_bytes": self.base,
            "functions": self.functions,
            "least_bytes": self.least.peak,
            "binds": self.binds[0],
            "advice": self.advice,
            "schedules": [self._as_json(plan) for plan in self.plans],
            "infeasible": list(self.infeasible),
            "curve": [_as_json(plan) for plan in self.curve],
        }
        return json.dumps(found, indent=2)

    def _as_json(self, plan: StepPlan) -> dict[str, Any]:
        ran = self.ran.get(plan.name)
        found = {"name": plan.name, **_as_json(plan), "of_none": plan.peak / self.most, "measured": None}
        if ran is not None:
            found["measured"] = {
                "peak_bytes": ran.peak,
                "seconds": ran.seconds,
                "time_more": self.slower(plan.name),
            }
        return found

    # --- the picture ----------------------------------------------------------------------------

    def figure(self) -> Figure:
        """The curve of planned schedules, the usual ones and the budgets' on it, and what was measured."""
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError:
            raise DataError("--plot needs matplotlib\n  pip install 'gpuad[plot]'") from None
        drawn = Figure(figsize=(9.0, 5.4), dpi=150, layout="constrained")
        FigureCanvasAgg(drawn)
        axes = drawn.add_subplot()
        drawn.suptitle(f"{self.title}, on {self.device}", fontsize=NORMAL + 2, fontweight="bold")
        self._draw(axes)
        return drawn

    def _draw(self, axes: Axes) -> None:
        curve = pareto([*self.curve, *self.plans])
        axes.axvspan(0, self.base, color="#f2f2f2", linewidth=0)
        axes.axvline(self.base, color=FIXED, linewidth=1, linestyle=(0, (4, 3)))
        axes.text(self.base, 0.98, "no schedule changes this ", transform=axes.get_xaxis_transform(), ha="right",
                  va="top", fontsize=SMALL, color="#555555", rotation=90)  # fmt: skip
        axes.step([p.peak for p in curve], [p.extra for p in curve], where="post", color=PLANNED, linewidth=1.4)
        axes.plot([p.peak for p in curve], [p.extra for p in curve], ".", color=PLANNED, markersize=5, label="planned")
        for plan in self.plans:
            budget = plan.name not in LABELS
            label = f"plan for {plan.name}" if budget else LABELS[plan.name]
            label += f": {show(plan.peak)}, {plan.extra:.2f} again"
            mark, colour = ("*", "#cc3311") if budget else ("o", COLOURS[plan.name])
            axes.plot(plan.peak, plan.extra, mark, color=colour, markersize=11 if budget else 8, label=label, zorder=3,
                      linestyle="none")  # fmt: skip
        per_pass = next((p.slower / p.extra for p in (*self.plans, *self.curve) if p.extra), 0.0)
        self._draw_measured(axes, per_pass)
        top = 1.12 * max([p.extra for p in (*self.plans, *self.curve)] + [0.1])
        axes.set(xlim=(0, 1.06 * self.most), ylim=(-0.04 * top, max(top, axes.get_ylim()[1])))
        axes.set_xticks(ticks(self.most), [show(t) for t in ticks(self.most)], fontsize=SMALL)
        axes.set_xlabel("peak of a training step", fontsize=NORMAL)
        axes.set_ylabel("forward passes computed again", fontsize=NORMAL)
        axes.tick_params(labelsize=SMALL)
        axes.grid(color="#00000018", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if per_pass:
            beside = axes.secondary_yaxis("right", functions=(_times(per_pass), _times(1 / per_pass)))
            beside.set_ylabel("more time for a step", fontsize=NORMAL)
            beside.yaxis.set_major_formatter(lambda t, _: f"{t:+.0%}")
            beside.tick_params(labelsize=SMALL)
        axes.legend(frameon=False, fontsize=SMALL, loc="upper left" if self.base > 0.3 * self.most else "upper right")

    # fmt: off
    def _draw_measured(self, axes: Axes, per_pass: float) -> None:
        """Hollow marks where steps were measured, by the time on the right."""
        label: str | None = "measured"
        for plan in self.plans:
            slower = self.slower(plan.name)
            if slower is not None and per_pass:
                colour = COLOURS.get(plan.name, "#cc3311")
                axes.plot(self.ran[plan.name].peak, slower / per_pass, "o", markerfacecolor="none", markersize=12,
                          markeredgecolor=colour, markeredgewidth=1.4, label=label, linestyle="none", zorder=4)
                label = None
    # fmt: on


def pareto(plans: Sequence[StepPlan]) -> list[StepPlan]:
    """Those that no other has both a lower peak and less to compute again than, the lowest peak first."""
    found: list[StepPlan] = []
    for plan in sorted(plans, key=lambda plan: (plan.peak, plan.extra)):
        if not found or plan.extra < found[-1].extra:
            found.append(plan)
    return found


def _times(factor: float) -> Callable[[Any], Any]:
    return lambda x: np.asarray(x) * factor


def _as_json(plan: StepPlan) -> dict[str, Any]:
    return {"peak_bytes": plan.peak, "extra_forward": plan.extra, "time_more": plan.slower}


def paragraph(text: str | None) -> str:
    """`text` in lines of at most 80 columns, each of its own lines on a new one."""
    return str(Table("", [], [[line] for line in (text or "").splitlines()], "")).strip("\n")


__all__ = ["Choices", "LABELS", "Ran", "paragraph", "pareto"]
