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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from . import nn
from .errors import DataError
from .files import PARTIAL, replacing
from .tensor import Tensor

if sys.platform != "win32":
    import fcntl

VERSION = 1  # of the files in the folder
_KEYS = {"version", "gpuad", "engine", "settings", "data", "baselines"}
Tensors = Mapping[str, Tensor]


class Run:
    """The folder of one training run, which no other process changes while this object lives."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.config = folder, dict[str, Any]()
        self._claim = _claimed(folder)

    @classmethod
    def create(cls, folder: Path | None) -> Run:
        """A run in `folder`, which must not hold one, or in a new one of its own; `begin` makes it complete."""
        if folder is not None:
            refuse_run_in(folder)
        try:
            if folder is None:
                folder = _new_folder()
            else:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"no run can be kept here: {error.filename}: {error.strerror}\n  choose another --out") from None
        return cls(folder)

    @classmethod
    def open(cls, folder: Path) -> Run:
        """The run that `folder` holds."""
        path = folder / "config.json"
        try:
            config = json.loads(path.read_text())
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(f"{folder} holds no run: there is no {path}\n  name the folder of an earlier run") from None
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read: {error}") from None
        if not isinstance(config, dict) or config.get("version") != VERSION or not config.keys() >= _KEYS:
            raise DataError(f"{path} does not describe a run of this version of gpuad\n  start a new run")
        run = cls(folder)
        run.config = config
        for litter in folder.glob(f".*{PARTIAL}"):  # of a kill
            litter.unlink()
        return run

    def begin(self, config: dict[str, Any]) -> None:
        """Write the rest of a run whose first state is saved."""
        self.config = config
        self._metrics.write_text("")
        with replacing(self.folder / "config.json") as partial:
            partial.write_text(json.dumps(config, indent=2) + "\n")

    # --- metrics ----------------------------------------------------------------------------

    @property
    def _metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    def log(self, entry: dict[str, Any]) -> None:
        """Append one object to the metrics."""
        with open(self._metrics, "a") as file:
            file.write(json.dumps(entry, allow_nan=False) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The objects logged so far."""
        return [json.loads(line) for line in self._metrics.read_text().splitlines()]

    def rewind(self, step: int) -> None:
        """Drop the metrics after `step`, which a resumed run takes again, and a line that a kill cut short."""
        try:
            with open(self._metrics, "rb+") as file:
                for expected in range(1, step + 1):
                    if json.loads(file.readline())["step"] != expected:
                        raise ValueError
                file.truncate(file.tell())
        except (OSError, ValueError, KeyError, TypeError):
            raise DataError(
                f"{self._metrics} does not hold the steps 1 to {step} that the run has taken\n"
                "  restore it, or start a new run"
            ) from None

    # --- state ------------------------------------------------------------------------------

    def save(self, weights: Tensors, optimizer: Tensors, progress: dict[str, Any]) -> None:
        """Make these tensors and plain values the last complete state; the metrics before it are on the disk first."""
        if self._metrics.exists():
            with open(self._metrics, "rb+") as file:
                os.fsync(file.fileno())
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


def refuse_run_in(folder: Path) -> None:
    """A DataError if `folder` holds a run, or cannot."""
    if (folder / "config.json").exists():
        raise DataError(f"{folder} holds a run already\n  go on with it by --resume {folder}, or choose another --out")
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is not a folder\n  choose another --out")


def _new_folder() -> Path:
    for number in itertools.count(1):
        folder = Path("runs", f"gpt-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise AssertionError


def _claimed(folder: Path) -> Any:
    """What keeps other processes from changing the run in `folder`, as long as it lives."""
    if sys.platform == "win32":
        return None
    claim = _Folder(folder)
    try:
        fcntl.flock(claim.number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DataError(f"another process is training the run in {folder}\n  stop it first, or start a new run") from None
    except OSError:
        pass  # a file system without locks
    return claim


class _Folder:
    """An open folder."""

    def __init__(self, folder: Path) -> None:
        self.number = os.open(folder, os.O_RDONLY)

    def __del__(self) -> None:
        os.close(self.number)


__all__ = ["Run", "refuse_run_in"]
