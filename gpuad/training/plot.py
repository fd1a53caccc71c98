"""The picture of a run: its losses, step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..files import replacing

LIGHT, DARK, ACCENT, GREY = "#a6c8e4", "#1f5c99", "#d9541a", "#5a5a5a"


def plot_losses(metrics: Sequence[Mapping[str, Any]], baselines: Mapping[str, float], path: Path) -> bool:
    """Draw the losses in `metrics` to a PNG file; False where matplotlib is not installed, or nothing is logged."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    if not metrics:
        return False
    steps = np.array([entry["step"] for entry in metrics])
    losses = np.array([entry["loss"] for entry in metrics])
    held_out = [(entry["step"], entry["val_loss"]) for entry in metrics if "val_loss" in entry]

    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(steps, losses, color=LIGHT, linewidth=0.7, label="training, each step")
    window = min(50, len(losses) // 10)
    if window > 1:
        mean = np.convolve(losses, np.full(window, 1 / window), "valid")
        middle = steps[window // 2 :][: len(mean)]
        axes.plot(middle, mean, color=DARK, linewidth=1.5, label=f"training, mean of {window} steps")
    if held_out:
        label = f"held out, {held_out[-1][1]:.2f} at last"
        axes.plot(*zip(*held_out, strict=True), "o-", color=ACCENT, markersize=4, linewidth=1.2, label=label)
    for name, loss in baselines.items():
        axes.axhline(loss, color=GREY, linestyle=(0, (4, 3)), linewidth=0.9, zorder=0)
        axes.annotate(
            f"{name} table {loss:.2f}", (1, loss), (4, 0), ("axes fraction", "data"), "offset points", color=GREY,
            va="center", fontsize=9, annotation_clip=False,
        )  # fmt: skip
    # The first steps leave through the top, or the rest would be flat.
    shown = [*losses[len(losses) // 20 :], *(loss for _, loss in held_out), *baselines.values()]
    low, high = min(shown), max(shown)
    axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    axes.set_xlim(0, steps[-1] * 1.01)
    axes.set(xlabel="step", ylabel="loss in nats per byte")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, loc="upper right")
    with replacing(path) as partial:
        figure.savefig(partial, dpi=150, format="png")
    return True


__all__ = ["plot_losses"]
