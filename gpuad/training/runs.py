"""A run's folder: its settings, its metrics, its last complete state.

    config.json         what the run was started with
    metrics.jsonl       one object a step
    model.safetensors   the weights, for use
    state.safetensors   weights, optimizer and generator: what a resumed run starts from
    loss.png            the losses, where matplotlib is installed

Metrics are appended; every other file is replaced whole, so that a kill at any moment leaves a complete one.  The
state is one file, because its parts belong together, and config.json is written last: a folder with one holds a run.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from .. import nn
from ..errors import DataError
from ..files import PARTIAL, replacing
from ..tensor import Tensor

if sys.platform != "win32":
    import fcntl

VERSION = 2  # of the files in the folder; in 1, checkpointing was false or true
_KEYS = {"version", "gpuad", "engine", "settings", "data", "baselines"}
Tensors = Mapping[str, Tensor]


class Run:
    """The folder of one training run.  Until it is closed, no other process can open it."""

    def __init__(self, folder: Path, config: dict[str, Any], metrics: BinaryIO) -> None:
        self.folder, self.config, self._metrics = folder, config, metrics

    @classmethod
    def create(cls, folder: Path | None) -> Run:
        """A run in `folder`, which must not hold one, or in a new one of its own; `begin` makes it complete."""
        if folder is not None:
            refuse_run_in(folder)
        try:
            folder = _made(folder)
            return cls(folder, {}, _claimed((folder / "metrics.jsonl").open("wb"), folder))
        except OSError as error:
            raise DataError(f"{error.filename} cannot be written: {error.strerror}\n  choose another --out") from None

    @classmethod
    def open(cls, folder: Path) -> Run:
        """The run that `folder` holds."""
        path = folder / "config.json"
        try:
            config = json.loads(path.read_text())
            metrics = (folder / "metrics.jsonl").open("rb+")
        except (FileNotFoundError, NotADirectoryError) as error:
            raise DataError(f"{folder} holds no run: there is no {error.filename}") from None
        except (OSError, ValueError) as error:
            raise DataError(f"the run in {folder} cannot be read: {error}") from None
        _bring_up_to_date(config)
        run = cls(folder, config, _claimed(metrics, folder))
        if not isinstance(config, dict) or config.get("version") != VERSION or not config.keys() >= _KEYS:
            run.close()
            raise DataError(f"{path} does not describe a run of this version of gpuad\n  start a new run")
        for litter in folder.glob(f".*{PARTIAL}"):  # of a kill
            litter.unlink()
        return run

    def begin(self, config: dict[str, Any]) -> None:
        """Write the settings of a run whose first state is saved: from here on it can be resumed."""
        self.config = config
        with replacing(self.folder / "config.json") as partial:
            partial.write_text(json.dumps(config, indent=2) + "\n")

    def close(self) -> None:
        """Let other processes open the run."""
        self._metrics.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- metrics ----------------------------------------------------------------------------

    def log(self, entry: dict[str, Any]) -> None:
        """Append one object to the metrics."""
        self._metrics.write(json.dumps(entry, allow_nan=False).encode() + b"\n")
        self._metrics.flush()

    def metrics(self) -> list[dict[str, Any]]:
        """The objects logged so far."""
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    def rewind(self, step: int) -> None:
        """Drop the metrics after `step`, which a resumed run takes again, and a line that a kill cut short."""
        self._metrics.seek(0)
        try:
            for expected in range(1, step + 1):
                if json.loads(self._metrics.readline())["step"] != expected:
                    raise ValueError
        except (ValueError, KeyError, TypeError):
            raise DataError(
                f"{self._metrics.name} does not hold the steps 1 to {step} that the run has taken\n"
                "  restore it, or start a new run"
            ) from None
        self._metrics.truncate(self._metrics.tell())

    # --- state ------------------------------------------------------------------------------

    def save(self, weights: Tensors, optimizer: Tensors, progress: dict[str, Any]) -> None:
        """Make these tensors and plain values the last complete state."""
        os.fsync(self._metrics.fileno())  # the metrics reach as far as the state, also after a crash of the machine
        state = {f"model.{k}": x for k, x in weights.items()} | {f"optimizer.{k}": x for k, x in optimizer.items()}
        nn.save(self.folder / "state.safetensors", state, {"progress": json.dumps(progress)})
        nn.save(self.folder / "model.safetensors", weights, {"step": str(progress["step"])})

    def load(self) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
        """The weights, the optimizer's state and the progress last saved."""
        path = self.folder / "state.safetensors"
        try:
            tensors, progress = nn.load(path), json.loads(nn.load_metadata(path)["progress"])
        except (OSError, KeyError, ValueError) as error:
            raise DataError(f"{path} is not the state of a run: {error}\n  start a new run") from None
        weights, optimizer = (
            {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
            for prefix in ("model.", "optimizer.")
        )
        return weights, optimizer, progress


def _bring_up_to_date(config: Any) -> None:
    """Make of a config of version 1 what it would be now."""
    if isinstance(config, dict) and config.get("version") == 1 and isinstance(config.get("settings"), dict):
        settings = config["settings"]
        if type(settings.get("checkpointing")) is bool:
            settings["checkpointing"] = "every" if settings["checkpointing"] else "none"
            config["version"] = VERSION


def refuse_run_in(folder: Path) -> None:
    """A DataError if `folder` holds a run."""
    if (folder / "config.json").exists():
        raise DataError(f"{folder} holds a run already\n  go on with it by --resume {folder}, or choose another --out")


def _made(folder: Path | None) -> Path:
    """`folder`, or a new one with the next number."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    for number in itertools.count(1):
        with contextlib.suppress(FileExistsError):
            folder = Path("runs", f"gpt-{number}")
            folder.mkdir(parents=True)
            return folder
    raise AssertionError  # there is always a next number


def _claimed(metrics: BinaryIO, folder: Path) -> BinaryIO:
    """`metrics`, locked until it is closed."""
    if sys.platform != "win32":
        try:
            fcntl.flock(metrics, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            metrics.close()
            raise DataError(f"another process is training the run in {folder}\n  stop it first") from None
        except OSError:
            pass  # a file system without locks
    return metrics


__all__ = ["Run", "refuse_run_in"]
