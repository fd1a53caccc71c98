"""What checkpoints cost in time on the CPU: python benchmarks/checkpointing.py [--rounds 21] [--out FILE]

A step of a GPT of 12 layers with each kind of schedule, in one process, in turns; medians over the rounds of the time
beyond a step without checkpoints, beside what the plan predicts, and beside PyTorch, whose blocks are checkpointed by
`torch.utils.checkpoint`.  "digests" is the part of a step that is spent on choosing, taking and comparing them, by a
clock around that: the difference to steps without them drowns in noise.  Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs without installing

import gpuad
from gpuad.devices import device as find_device
from gpuad.memory.measure import measure
from gpuad.memory.planner import Planner, segments
from gpuad.models import GPT, GPTConfig
from gpuad.optim import AdamW
from gpuad.random import Generator
from gpuad.remat.chain import run
from gpuad.remat.record import Record
from gpuad.remat.region import Region
from gpuad.remat.schedule import none, simulate

LAYERS, HEADS, WIDTH, LENGTH, BATCH = 12, 8, 256, 128, 8
TOKENS = np.random.default_rng(0).integers(0, 256, (BATCH, LENGTH + 1))


class Clock:
    """The time spent inside some methods, each call once."""

    def __init__(self, *methods: tuple[type, str]) -> None:
        self.seconds, self.inside = 0.0, False
        for owner, name in methods:
            setattr(owner, name, self._timed(getattr(owner, name)))

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self.inside:
                return method(*args, **kwargs)
            self.inside, began = True, time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - began
                self.inside = False

        return timed


class Steps:
    """Training of a GPT, with a schedule that can be changed."""

    def __init__(self) -> None:
        config = GPTConfig(length=LENGTH, layers=LAYERS, heads=HEADS, width=WIDTH, positions="rotary")
        self.model = GPT(config, generator=Generator(0), run_chain=self._run)
        self.optimizer = AdamW(self.model.parameters(), 1e-4)
        self.tokens = gpuad.asarray(TOKENS)
        self.schedule: Any = None
        self.chain: tuple[Any, Any] | None = None

    def _run(self, fns: Any, x: Any) -> Any:
        self.chain = fns, x
        if self.schedule is None:
            for f in fns:
                x = f(x)
            return x
        return run(fns, x, self.schedule)

    def take(self) -> None:
        """One step."""
        self.model.loss(self.tokens).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        find_device("cpu").synchronize()


def torch_steps() -> dict[str, Callable[[], None]]:
    """Steps of the same model in PyTorch: without checkpoints, and with every block checkpointed."""
    import torch
    import torch.nn.functional as F
    from torch import nn
    from torch.utils.checkpoint import checkpoint

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
            self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

        def forward(self, x: Any) -> Any:
            parts = self.qkv(self.norm1(x)).view(BATCH, LENGTH, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(*parts, is_causal=True).transpose(1, 2).reshape(x.shape)
            x = x + self.out(y)
            return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))

    torch.manual_seed(0)
    token, blocks = nn.Embedding(256, WIDTH), nn.ModuleList([Block() for _ in range(LAYERS)])
    norm, head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256, bias=False)
    optimizer = torch.optim.AdamW(
        [p for part in (token, blocks, norm, head) for p in part.parameters()], 1e-4, fused=True
    )
    tokens = torch.from_numpy(TOKENS)

    def step(wrap: bool) -> None:
        x = token(tokens[:, :-1])
        for block in blocks:
            x = checkpoint(block, x, use_reentrant=False) if wrap else block(x)
        F.cross_entropy(head(norm(x)).view(-1, 256), tokens[:, 1:].reshape(-1)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return {"PyTorch, none": lambda: step(False), "PyTorch, every": lambda: step(True)}


def main() -> None:
    """Take the steps in turns, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    steps = Steps()
    steps.take()
    assert steps.chain is not None
    fns, x = steps.chain
    measured = measure(fns, x, "hash", ())
    stages, first = measured.stages, measured.first
    half = Planner(stages, first).best(simulate(stages, none(len(stages)), first).peak // 2)
    schedules = {how: segments(stages, how, first) for how in ("sqrt", "auto", "every")}
    schedules["half the memory"] = half
    once = sum(stage.forward_time + stage.backward_time for stage in stages)

    clock = Clock((Region, "_watch"), (Record, "_written"))

    def ours(schedule: Any) -> Callable[[], None]:
        def step() -> None:
            steps.schedule = schedule
            steps.take()

        return step

    cases = {"none": ours(None)} | {how: ours(schedule) for how, schedule in schedules.items()}
    try:
        cases |= torch_steps()
    except ImportError:
        print("PyTorch is not installed: no peer", file=sys.stderr)
    times: dict[str, list[float]] = {name: [] for name in cases}
    digests: dict[str, list[float]] = {name: [] for name in cases}
    shuffle = random.Random(0)
    for k in range(arguments.rounds + 1):
        for name in shuffle.sample(list(cases), len(cases)):  # so that none always follows the same other one
            clock.seconds, began = 0.0, time.perf_counter()
            cases[name]()
            if k:
                times[name].append(time.perf_counter() - began)
                digests[name].append(clock.seconds / times[name][-1])
    lines = [
        f"{datetime.date.today()}, {platform.processor() or platform.machine()}, {find_device('cpu').describe()},"
        f" Python {platform.python_version()}, NumPy {np.__version__}; medians of {arguments.rounds} rounds",
        f"GPT {LAYERS} x {WIDTH}, batch {BATCH} x {LENGTH}, AdamW, float32",
        "",
        f"{'schedule':18} {'step':>10} {'more':>8} {'predicted':>10} {'digests':>9} {'peak of the chain':>18}",
    ]
    median = {name: statistics.median(found) for name, found in times.items()}

    def ratio(name: str, base: str) -> float:
        return statistics.median(a / b for a, b in zip(times[name], times[base], strict=True)) - 1

    lines.append(f"{'none':18} {median['none'] * 1e3:>7.1f} ms")
    for how, schedule in schedules.items():
        cost = simulate(stages, schedule, first)
        lines.append(
            f"{how:18} {median[how] * 1e3:>7.1f} ms {ratio(how, 'none'):>8.1%} {cost.extra_time / once:>10.1%}"
            f" {statistics.median(digests[how]):>9.1%} {cost.peak / 2**20:>14.1f} MiB"
        )
    for name in [name for name in cases if name.startswith("PyTorch")]:
        more = "" if name.endswith("none") else f"{ratio(name, 'PyTorch, none'):>8.1%}"
        lines.append(f"{name:18} {median[name] * 1e3:>7.1f} ms {more}")
    print("\n".join(lines))
    if arguments.out is not None:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
