"""Where the memory of a training step goes: `gpuad profile` as a short program.

    python scripts/profile_memory.py

A small GPT computes logits, takes a training step, and takes one whose blocks are computed again in the backward pass;
the ledger sees every buffer of each.  Then the same step is estimated for a GPU, without one.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that it runs without installing

import numpy as np

import gpuad
from gpuad import memory, optim
from gpuad.models import GPT, GPTConfig

CONFIG = GPTConfig(length=64, layers=4, heads=4, width=128, positions="rotary")
TOKENS = np.random.default_rng(0).integers(0, 256, (16, CONFIG.length + 1))


def inference() -> Callable[[], Any]:
    """A function that computes logits."""
    model, tokens = GPT(CONFIG).eval(), gpuad.asarray(TOKENS[:, :-1])

    def run() -> Any:
        with gpuad.no_grad():
            return model(tokens).numpy() if tokens.device.computes else model(tokens)

    return run


def training(wrap_block: Any = None) -> Callable[[], Any]:
    """A function that takes a step."""
    model, tokens = GPT(CONFIG, wrap_block=wrap_block), gpuad.asarray(TOKENS)
    optimizer = optim.AdamW(model.parameters(), max_grad_norm=1.0)

    def run() -> None:
        model.loss(tokens).backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


profiles = []
for name, make in (
    ("inference", inference),
    ("training", training),
    ("training, checkpointed", lambda: training(gpuad.checkpoint)),
):
    step = make()
    step()  # a first one compiles kernels, and makes what lasts
    profiles.append(memory.profile(step, name=name))
    del step
print(memory.Report(profiles))

with memory.dry(like="cuda:sm_90"):
    step = training()
print(f"\non a GPU: {memory.estimate(step, like='cuda:sm_90').peak_bytes / 2**20:.1f} MiB")
