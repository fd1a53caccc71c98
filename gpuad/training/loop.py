"""`gpuad train`: start or resume a run, take its steps, and keep its folder up to date."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from .. import buffer, data
from ..errors import NonFiniteError
from .job import Job, find
from .plot import plot_losses
from .runs import Run, refuse_run_in
from .settings import Settings

BAR = "{percentage:3.0f}%|{bar}| {n}/{total} [{elapsed}<{remaining}{postfix}]"  # fits in 80 columns
WINDOWS, LAST_WINDOWS = 256, 2048  # of held-out text, for the losses on the way and for the last one


class Stop:
    """Whether Ctrl-C, or a request to terminate, has come: then the step is finished and saved first."""

    def __init__(self) -> None:
        self.signal = 0

    @contextmanager
    def listening(self) -> Iterator[Stop]:
        """Listen inside the block; a second signal stops at once."""

        def ask(number: int, frame: FrameType | None) -> None:
            if self.signal:
                raise KeyboardInterrupt
            self.signal = number
            # not print(), which may be what the signal has interrupted
            os.write(2, b"\nfinishing this step and saving; once more to stop at once\n")

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def start(settings: Settings, out: Path | None, sample: int) -> int:
    """Train from the beginning, in the folder `out`; the exit code."""
    settings.checked()
    if out is not None:
        refuse_run_in(out)  # before the work of reading the text
    with _counting(settings) as memory:
        job = Job(settings)
        config = job.describe()
        with Run.create(out) as run:
            job.save(run)
            run.begin(config)
            return _complete(job, run, memory, sample)


def resume(run: Run, sample: int) -> int:
    """Go on with `run`; the exit code."""
    settings = Settings.of(run.config["settings"])
    with _counting(settings) as memory:
        job = Job(settings)
        job.restore(run)
        return _complete(job, run, memory, sample)


def _complete(job: Job, run: Run, memory: buffer.LiveBytes, sample: int) -> int:
    """Take the steps that are left, show what came of them; the exit code."""
    steps = job.settings.steps
    print(f"{run.config['data']['description']}\n{job.model.num_parameters():,} parameters on {job.engine}")
    if job.checkpoints:
        print("\n".join(textwrap.fill(line, 80) for line in job.checkpoints.splitlines()))
    for name, loss in run.config["baselines"].items():
        print(f"held-out loss of a {name} table: {loss:.3f} nats per byte")
    print(
        f"the run is in {run.folder}" + (f", going on after step {job.done} of {steps}" if job.done else ""), flush=True
    )
    with Stop().listening() as stop:
        take_steps(job, run, stop, memory)
    metrics = run.metrics()
    plot_losses(metrics, run.config["baselines"], run.folder / "loss.png")
    if job.done < steps:
        print(f"stopped after step {job.done}; go on with: gpuad train --resume {run.folder}")
        return 128 + stop.signal
    print(f"held-out loss {metrics[-1]['val_loss']:.3f} nats per byte after {steps} steps, {job.seconds:.0f} s")
    if sample:
        print(f"\n{sample} bytes of its own:\n\n{printable(job.write(sample), sys.stdout.encoding)}")
    return 0


def take_steps(job: Job, run: Run, stop: Stop, memory: buffer.LiveBytes) -> None:
    """Take the steps that are left, logging each; save now and then, at the end, and when asked to stop."""
    from tqdm import tqdm  # here, so that nothing else waits for it

    s, saved, shown = job.settings, job.done, ""
    batches = data.batches(job.text.train, batch=s.batch, length=s.length, seed=s.seed, start_step=job.done)
    began = time.perf_counter() - job.seconds
    with tqdm(total=s.steps, initial=job.done, bar_format=BAR, disable=None, dynamic_ncols=True) as bar:
        for step, tokens in zip(range(job.done + 1, s.steps + 1), batches, strict=False):
            started, due, last = time.perf_counter(), step % s.save_every == 0, step == s.steps
            try:
                loss = job.step(tokens)
                rate = s.batch * s.length / (time.perf_counter() - started)
                entry = {"step": step, "loss": loss, "tokens_per_second": round(rate, 1)}
                if due or last:
                    entry["val_loss"] = job.held_out_loss(LAST_WINDOWS if last else WINDOWS)
                    shown = f", val {entry['val_loss']:.3f}"
                job.seconds = time.perf_counter() - began
                run.log(entry | {"seconds": round(job.seconds, 3)})
                stopping = stop.signal != 0  # asked once: a signal from here on is for the next step
                if due or last or stopping:
                    job.save(run)
                    saved = step
            except NonFiniteError as error:
                raise NonFiniteError(
                    f"step {step} of the run in {run.folder} failed: {error}\n"
                    f"  the state after step {saved} is kept; a smaller --learning-rate may help"
                ) from None
            bar.set_postfix_str(f"loss {loss:.3f}{shown}, {rate:,.0f} tok/s, {memory.peak / 2**20:.0f} MiB", False)
            bar.update()
            if bar.disable and (due or last):
                print(f"step {step}/{s.steps}: loss {loss:.3f}{shown}, {job.seconds:.0f} s", flush=True)
            if stopping:
                break


@contextmanager
def _counting(settings: Settings) -> Iterator[buffer.LiveBytes]:
    """What counts the memory that is taken inside the block, on the device to train on."""
    memory = buffer.LiveBytes(find(settings.device))
    buffer.observers.append(memory)
    try:
        yield memory
    finally:
        buffer.observers.remove(memory)


def printable(text: str, encoding: str | None, columns: int = 80) -> str:
    """`text` in lines of at most `columns` characters that a terminal of this encoding can show."""
    shown = "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text.expandtabs(4))
    shown = shown.encode(encoding or "utf-8", "replace").decode(encoding or "utf-8")
    return "\n".join(line[k : k + columns] for line in shown.split("\n") for k in range(0, len(line) or 1, columns))


__all__ = ["Stop", "printable", "resume", "start", "take_steps"]
