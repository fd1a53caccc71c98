"""`gpuad train`: a byte-level GPT on real text, from one command."""

from __future__ import annotations

import dataclasses
import itertools
import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from . import __version__, buffer, data, random
from .convert import asarray
from .devices import device as find_device
from .devices import use_device
from .errors import DataError
from .models.gpt import GPT, GPTConfig
from .optim import AdamW, cosine_with_warmup
from .remat import checkpoint
from .runs import VERSION, Run, plot_losses
from .trace import no_grad


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run is: everything that its losses depend on."""

    data: tuple[str, ...] = ()
    device: str = "auto"
    layers: int = 4
    heads: int = 4
    width: int = 128
    length: int = 64
    steps: int = 2000
    batch: int = 16
    learning_rate: float = 3e-3
    final_learning_rate: float = 3e-4
    warmup: int = 100
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0
    dropout: float = 0.0
    seed: int = 0
    checkpointing: bool = False
    evaluate_every: int = 250
    save_every: int = 250

    def check(self) -> None:
        """A DataError for settings that make no sense."""
        for name in ("layers", "heads", "width", "length", "steps", "batch", "evaluate_every", "save_every"):
            if getattr(self, name) < 1:
                raise DataError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if self.width % self.heads:
            raise DataError(f"--width {self.width} cannot be split over --heads {self.heads}")
        if not 0 <= self.dropout < 1:
            raise DataError(f"--dropout must be in [0, 1), got {self.dropout}")
        if self.learning_rate <= 0:
            raise DataError(f"--learning-rate must be above 0, got {self.learning_rate}")


class Job:
    """One training run: the model, what it learns from, and where it is."""

    def __init__(self, settings: Settings) -> None:
        settings.check()
        self.settings = s = settings
        self.device = find_device("cpu" if s.device == "auto" else s.device)
        files = data.find_text_files(s.data) if s.data else data.standard_library_files()
        self.text = data.ByteDataset(files)
        self.held_out = data.held_out_windows(self.text.held_out, batch=s.batch, length=s.length, windows=2048)
        random.seed(s.seed)
        config = GPTConfig(
            length=s.length, layers=s.layers, heads=s.heads, width=s.width, dropout=s.dropout
        )
        with use_device(self.device):
            self.model = GPT(config, generator=random.Generator(s.seed))
        if s.checkpointing:
            self.model.wrap_block = checkpoint
        self.optimizer = AdamW(
            self.model.parameters(), s.learning_rate, weight_decay=s.weight_decay, max_grad_norm=s.max_grad_norm
        )
        self.step = 0
        self.seconds = 0.0

    def fresh_config(self) -> dict[str, Any]:
        """What `config.json` of a new run says."""
        return {
            "version": VERSION,
            "gpuad": __version__,
            "engine": f"{self.device.name}:{self.device.engine}",
            "settings": dataclasses.asdict(self.settings),
            "data": {"digest": self.text.digest, "description": self.text.describe()},
            "baselines": {
                name: data.ngram_loss(self.text.train, self.text.held_out, order)
                for name, order in (("bigram", 2), ("trigram", 3))
            },
        }

    def restore(self, run: Run) -> None:
        """Go on from the state that `run` saved last."""
        if run.config["data"]["digest"] != self.text.digest:
            raise DataError(
                f"the text has changed since {run.folder} was started: it was {run.config['data']['description']}, and is"
                f" {self.text.describe()}\n  restore the files, or start a new run"
            )
        weights, optimizer, progress = run.load()
        self.model.load_state_dict(weights)
        self.optimizer.load_state_dict(optimizer | progress["optimizer"])
        random.default().set_state(tuple(progress["generator"]))
        self.step, self.seconds = progress["step"], progress["seconds"]

    def save(self, run: Run) -> None:
        """Make the present state the last complete one of `run`."""
        state = self.optimizer.state_dict()
        arrays = {k: v.numpy() for k, v in state.items() if hasattr(v, "numpy")}
        progress = {
            "step": self.step,
            "seconds": self.seconds,
            "generator": list(random.default().state),
            "optimizer": {k: v for k, v in state.items() if k not in arrays},
        }
        run.save({k: v.numpy() for k, v in self.model.state_dict().items()}, arrays, progress)

    def evaluate(self, windows: int) -> float:
        """The held-out loss over the first `windows` windows, in nats per byte."""
        batches = self.held_out[: max(1, windows // self.settings.batch)]
        self.model.eval()
        try:
            with no_grad(), use_device(self.device):
                return float(np.mean([self.model.loss(asarray(b)).item() for b in batches]))
        finally:
            self.model.train()

    def learning_rate(self, step: int) -> float:
        """The learning rate of `step`, counted from 0."""
        s = self.settings
        return cosine_with_warmup(step, warmup=s.warmup, total=s.steps, peak=s.learning_rate, final=s.final_learning_rate)

    def train(self, run: Run, stop: Stop) -> None:
        """Take the steps that are left, logging each; save now and then, at the end, and when asked to stop."""
        from tqdm import tqdm  # here, so that importing gpuad does not wait for it

        s = self.settings
        batches = data.batches(self.text.train, batch=s.batch, length=s.length, seed=s.seed, start_step=self.step)
        memory = buffer.LiveBytes()
        buffer.observers.append(memory)
        bar = tqdm(total=s.steps, initial=self.step, unit="step", disable=None, dynamic_ncols=True)
        try:
            began = time.perf_counter() - self.seconds
            for batch in itertools.islice(batches, s.steps - self.step):
                started = time.perf_counter()
                self.optimizer.lr = self.learning_rate(self.step)
                with use_device(self.device):
                    loss = self.model.loss(asarray(batch))
                loss.backward()
                value = loss.item()
                del loss
                self.optimizer.step()
                self.optimizer.zero_grad()
                self.step += 1
                now = time.perf_counter()
                self.seconds = now - began
                rate = s.batch * s.length / (now - started)
                entry = {"step": self.step, "loss": value, "tokens_per_second": round(rate, 1), "seconds": self.seconds}
                last = self.step == s.steps
                if last or self.step % s.evaluate_every == 0:
                    entry["val_loss"] = self.evaluate(2048 if last else 256)
                run.log(entry)
                bar.update()
                bar.set_postfix_str(
                    f"loss {value:.3f}, {rate:,.0f} tok/s, {memory.peak / 2**20:.0f} MiB", refresh=False
                )
                if last or stop.asked or self.step % s.save_every == 0:
                    self.save(run)
                if stop.asked:
                    break
        finally:
            bar.close()
            buffer.observers.remove(memory)

    def sample(self, count: int, prompt: bytes = b"def ") -> str:
        """`count` bytes that the model writes after `prompt`."""
        generator = np.random.Generator(np.random.Philox(self.settings.seed))
        text = list(prompt)
        self.model.eval()
        with no_grad(), use_device(self.device):
            for _ in range(count):
                window = np.array(text[-self.settings.length :], np.int64)[None]
                logits = self.model(asarray(window))[0, -1].numpy().astype(np.float64)
                chances = np.exp((logits - logits.max()) / 0.8)
                text.append(int(generator.choice(len(chances), p=chances / chances.sum())))
        self.model.train()
        return bytes(text).decode("utf-8", "replace")


class Stop:
    """Set by Ctrl-C (or a terminate signal): the step that is running is finished and saved first."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator[Stop]:
        """Listen inside the block; a second Ctrl-C stops at once."""

        def ask(number: int, frame: FrameType | None) -> None:
            if self.asked:
                raise KeyboardInterrupt
            self.asked = True
            print("\nfinishing this step and saving; Ctrl-C again stops at once", file=sys.stderr)

        before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for s, handler in before.items():
                signal.signal(s, handler)


def train(settings: Settings, *, out: Path | None = None, resume: Path | None = None, sample: int = 400) -> int:
    """Run or resume a training; the exit code."""
    if resume is not None:
        run = Run.open(resume)
        job = Job(settings)
        job.restore(run)
        run.forget_after(job.step)
    else:
        job = Job(settings)
        run = Run.create(out if out is not None else _next_folder(), job.fresh_config())
    tables = run.config["baselines"]
    print(f"{run.config['data']['description']}; {job.model.num_parameters():,} parameters on {run.config['engine']}; run in {run.folder}")
    print("held-out loss of smoothed tables, nats per byte: " + ", ".join(f"{k} {v:.3f}" for k, v in tables.items()))
    if resume is not None:
        print(f"going on after step {job.step} of {settings.steps}")
    with Stop().listening() as stop:
        job.train(run, stop)
    plot_losses(run)
    if stop.asked:
        print(f"stopped after step {job.step}; go on with: gpuad train --resume {run.folder}")
        return 130
    last = next((m["val_loss"] for m in reversed(run.metrics()) if "val_loss" in m), None)
    if last is not None:
        print(f"held-out loss {last:.3f} nats per byte after {job.step} steps and {job.seconds:.0f} s")
    if sample:
        print(f"--- {sample} bytes it writes:\n{job.sample(sample)}")
    return 0


def settings_of(run: Path) -> Settings:
    """The settings of the run in a folder."""
    found = Run.open(run).config["settings"]
    names = {f.name for f in dataclasses.fields(Settings)}
    if set(found) != names:
        raise DataError(f"{run} was made by another version of gpuad: its settings are {json.dumps(sorted(found))}")
    return Settings(**{**found, "data": tuple(found["data"])})


def _next_folder() -> Path:
    numbers = itertools.count(1)
    return next(p for p in (Path("runs") / f"gpt-{n}" for n in numbers) if not (p / "config.json").exists())
