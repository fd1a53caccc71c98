"""A run's folder: its settings, its metrics, its last complete state.

    config.json         what the run was started with
    metrics.jsonl       one object a step
    model.safetensors   the weights, for use
    state.safetensors   weights, optimizer and generator state: what a resumed run starts from
    loss.png            the losses, where matplotlib is installed

Every file is written under another name and renamed, so that a kill at any moment leaves a complete one.  The state
is one file, so that its parts always belong together.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DataError

VERSION = 1


def replace_text(path: Path, text: str) -> None:
    """Write `text` to `path`, which holds either the old or the new contents at every moment."""
    partial = path.with_name(f".{path.name}.part")
    with open(partial, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def save_tensors(path: Path, tensors: dict[str, np.ndarray[Any, Any]], metadata: dict[str, str]) -> None:
    """Write `tensors` to a safetensors file at `path`, which is complete at every moment."""
    from safetensors.numpy import save_file  # here, so that importing gpuad does not wait for it

    partial = path.with_name(f".{path.name}.part")
    save_file({name: np.ascontiguousarray(data) for name, data in tensors.items()}, partial, metadata)
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


def load_tensors(path: Path) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, str]]:
    """The tensors and the metadata of a safetensors file; a DataError where it cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None


class Run:
    """The folder of one training run."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.folder, self.config = folder, config

    @classmethod
    def create(cls, folder: Path, config: dict[str, Any]) -> Run:
        """A new run in `folder`, which must not hold one."""
        if (folder / "config.json").exists():
            raise DataError(f"{folder} holds a run already\n  continue it with --resume {folder}, or choose another --out")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            replace_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
            (folder / "metrics.jsonl").write_text("")
        except OSError as error:
            raise DataError(f"{folder} cannot be written: {error.strerror}\n  choose another --out") from None
        return cls(folder, config)

    @classmethod
    def open(cls, folder: Path) -> Run:
        """The run that `folder` holds."""
        try:
            config = json.loads((folder / "config.json").read_text())
        except FileNotFoundError:
            raise DataError(f"{folder} holds no run: it has no config.json\n  --resume takes the folder of an earlier run") from None
        except (OSError, ValueError) as error:
            raise DataError(f"{folder / 'config.json'} cannot be read: {error}") from None
        if not isinstance(config, dict) or config.get("version") != VERSION:
            raise DataError(f"{folder / 'config.json'} is not the settings of a run of this version of gpuad")
        return cls(folder, config)

    def log(self, entry: dict[str, Any]) -> None:
        """Append one object to the metrics."""
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(entry) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The objects logged so far; a line that a kill cut short is left out."""
        path = self.folder / "metrics.jsonl"
        found = []
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                found.append(json.loads(line))
            except ValueError:
                break
        return found

    def forget_after(self, step: int) -> list[dict[str, Any]]:
        """Drop the metrics of steps after `step`, which a resumed run takes again; what is left."""
        kept = [entry for entry in self.metrics() if entry["step"] <= step]
        replace_text(self.folder / "metrics.jsonl", "".join(json.dumps(entry) + "\n" for entry in kept))
        return kept

    def save(self, weights: dict[str, Any], state: dict[str, Any], progress: dict[str, Any]) -> None:
        """Make `weights`, the rest of the state and `progress` (plain values) the last complete state."""
        together = {f"model.{k}": v for k, v in weights.items()} | {f"optimizer.{k}": v for k, v in state.items()}
        save_tensors(self.folder / "state.safetensors", together, {"progress": json.dumps(progress)})
        save_tensors(self.folder / "model.safetensors", weights, {"format": "gpuad"})

    def load(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """The weights, the optimizer's state and the progress last saved."""
        path = self.folder / "state.safetensors"
        if not path.exists():
            raise DataError(f"{self.folder} was stopped before it saved anything\n  start again with another --out")
        tensors, metadata = load_tensors(path)
        part = lambda prefix: {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        return part("model."), part("optimizer."), json.loads(metadata["progress"])


def plot_losses(run: Run) -> Path | None:
    """Draw the run's losses into its folder; None where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    metrics = run.metrics()
    steps = np.array([m["step"] for m in metrics])
    losses = np.array([m["loss"] for m in metrics])
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(steps, losses, color="#9ecae1", linewidth=0.6, label="training, each step")
    window = max(1, len(losses) // 50)
    if window > 1:
        smooth = np.convolve(losses, np.ones(window) / window, "valid")
        axes.plot(steps[window - 1 :], smooth, color="#08519c", linewidth=1.5, label=f"training, mean of {window} steps")
    held_out = [(m["step"], m["val_loss"]) for m in metrics if "val_loss" in m]
    if held_out:
        axes.plot(*zip(*held_out, strict=True), "o-", color="#e6550d", markersize=4, label="held out")
    for name, value in run.config.get("baselines", {}).items():
        axes.axhline(value, color="#636363", linestyle=":", linewidth=1)
        axes.annotate(f"{name} {value:.2f}", (1, value), (-4, 3), ("axes fraction", "data"), "offset points", ha="right", fontsize=8)
    axes.set(xlabel="step", ylabel="loss, nats per byte")
    axes.legend(frameon=False)
    partial = run.folder / ".loss.part.png"
    figure.savefig(partial, dpi=150)
    plt.close(figure)
    os.replace(partial, run.folder / "loss.png")
    return run.folder / "loss.png"
