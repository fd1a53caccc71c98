"""What a training run works on: a GPT, the text it learns from, its optimizer, and how far they have come."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import __version__, data
from ..convert import asarray
from ..devices import Device
from ..devices import device as find_device
from ..errors import DataError, DeviceError, NonFiniteError
from ..memory.profile import show
from ..memory.step_plan import Scheduled, StepPlan, StepPlanner
from ..models import sample
from ..optim import cosine_with_warmup
from ..random import Generator
from ..replay import capture
from ..tensor import Tensor
from ..trace import no_grad
from .made import make_model, make_optimizer, planner
from .runs import VERSION, Run
from .settings import Settings


class Job:
    """One training: the model, the text it learns from, and how far it has come."""

    def __init__(self, settings: Settings) -> None:
        self.settings = s = settings.checked()
        self.device = find(s.device)
        self.text = data.ByteDataset(data.find_text_files(s.data) if s.data else data.standard_library_files())
        _check_size(self.text, s.length)
        self.generator = Generator(s.seed)
        self.checkpoints, chain = "", None  # what is said of them, and what runs the model's blocks
        if s.checkpointing != "none":
            plans = planner(s, self.device)
            plan = plans.plan(s.checkpointing)
            chain = Scheduled(plan.schedule)
            self.checkpoints = _told(plan, plans)
        self.model = make_model(s, self.device, self.generator, chain)
        self.optimizer = make_optimizer(s, self.model)
        self.take = capture(self._take)
        self.done = 0  # steps
        self.seconds = 0.0  # that they took, with evaluating and saving

    @property
    def engine(self) -> str:
        """What computes, as `config.json` names it."""
        return f"{self.device.name}:{self.device.engine}"

    # --- the run's folder -------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """What `config.json` says of a run of this job."""
        orders = {"bigram": 2, "trigram": 3}
        return {
            "version": VERSION,
            "gpuad": __version__,
            "engine": self.engine,
            "settings": dataclasses.asdict(self.settings),
            "data": {"digest": self.text.digest, "description": self.text.describe()},
            "baselines": {k: data.ngram_loss(self.text.train, self.text.held_out, n) for k, n in orders.items()},
        }

    def save(self, run: Run) -> None:
        """Make the present state the last complete one of `run`."""
        weights = self.model.state_dict()
        if not all(np.isfinite(w.numpy()).all() for w in weights.values()):
            raise NonFiniteError(f"the weights after step {self.done} are not finite")
        progress = {"step": self.done, "seconds": self.seconds, "generator": self.generator.state}
        run.save(weights, self.optimizer.state_dict(), progress)

    def restore(self, run: Run) -> None:
        """Go on from the last complete state of `run`."""
        text = run.config["data"]
        if text["digest"] != self.text.digest:
            raise DataError(
                f"the text has changed since the run in {run.folder} began\n"
                f"  it was {text['description']}, and is {self.text.describe()}\n"
                "  restore the files, or start a new run"
            )
        if run.config["engine"] != self.engine:
            device, _, engine = run.config["engine"].partition(":")
            remedy = f"set GPUAD_CPU_ENGINE={engine} to go on, or " if device == "cpu" == self.device.name else ""
            raise DataError(
                f"the run in {run.folder} was computed by {run.config['engine']}, and this is {self.engine}\n"
                f"  which rounds otherwise; {remedy}start a new run"
            )
        weights, optimizer, progress = run.load()
        self.model.load_state_dict(weights)
        self.optimizer.load_state_dict(optimizer)
        self.generator.set_state(progress["generator"])
        self.done, self.seconds = progress["step"], progress["seconds"]
        run.rewind(self.done)

    # --- training ---------------------------------------------------------------------------

    def rate(self, step: int) -> float:
        """The learning rate of `step`, counted from 0."""
        s = self.settings
        warmup = min(s.warmup, s.steps // 10)
        final = s.learning_rate * s.final_rate
        return cosine_with_warmup(step, warmup=warmup, total=s.steps, peak=s.learning_rate, final=final)

    def step(self, tokens: npt.NDArray[np.int64]) -> float:
        """The loss on `tokens`, after a step that makes it smaller."""
        self.optimizer.lr = self.rate(self.done)
        value = float(self.take(asarray(tokens, device=self.device)).item())
        if not math.isfinite(value):
            raise NonFiniteError(f"the loss is {value}")
        self.done += 1
        return value

    def _take(self, tokens: Tensor) -> Tensor:
        """A step on `tokens`; the loss before it."""
        loss = self.model.loss(tokens)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss

    def held_out_loss(self, windows: int) -> float:
        """The loss on that many windows of the held-out text."""
        s = self.settings
        parts = data.held_out_windows(self.text.held_out, batch=s.batch, length=s.length, windows=windows)
        self.model.eval()
        try:
            with no_grad():
                loss = float(np.mean([self.model.loss(asarray(part, device=self.device)).item() for part in parts]))
        finally:
            self.model.train()
        if not math.isfinite(loss):
            raise NonFiniteError(f"the held-out loss after step {self.done} is {loss}")
        return loss

    def write(self, count: int) -> str:
        """`count` bytes of text that the model makes up."""
        written = sample(self.model, b"\n", count, temperature=0.8, generator=Generator(self.settings.seed))
        return bytes(written).decode("utf-8", "replace")


def find(name: str) -> Device:
    """The device called `name`, which has to compute."""
    if name == "auto":
        try:
            return find_device("cuda")
        except DeviceError:
            return find_device("cpu")
    found = find_device(name)
    if not found.computes:
        raise DeviceError(f"--device {name} knows shapes only; take auto, cpu or cuda")
    return found


def _told(plan: StepPlan, plans: StepPlanner) -> str:
    """What people are told of the checkpoints of a job."""
    text = (
        f"checkpointing {plan.name}: {plan.extra:.2f} forward passes computed again, {show(plan.peak)} expected at most"
        f" ({show(plans.plan('none').peak)} without)"
    )
    return text if plans.advice is None else f"{text}\n{plans.advice}"


def _check_size(text: data.ByteDataset, length: int) -> None:
    for part, size in (("train on", text.train.size), ("hold out", text.held_out.size)):
        if size <= length:
            raise DataError(
                f"there is too little text: {text.describe()}\n"
                f"  {size} bytes to {part} do not fill a window of {length + 1}; name more, or take a smaller --length"
            )


__all__ = ["Job", "find"]
