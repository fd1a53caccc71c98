"""What a job trains: the model and its optimizer by the settings, and a rehearsal of both on shapes, for its memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from ..buffer import Buffer, observers
from ..devices import Device
from ..dtype import int64
from ..memory.hollow import stand_in_for
from ..memory.ledger import run_to_end
from ..memory.step_plan import Scheduled, StepPlanner
from ..models import GPT, GPTConfig
from ..optim import AdamW
from ..random import Generator
from ..tensor import Tensor
from ..trace import no_grad
from .settings import Settings

COPIES = 2  # of a batch of tokens: the one that is given, and the one that a recorded step reads
UNUSED = 16  # one part in so many of a recording: blocks that a view still holds when they come free; seen: one in 28


def make_model(settings: Settings, device: Device, generator: Generator, run_chain: Scheduled | None) -> GPT:
    """The model, on `device`."""
    s = settings
    config = GPTConfig(
        length=s.length,
        layers=s.layers,
        heads=s.heads,
        width=s.width,
        dropout=s.dropout,
        positions="rotary",
        rotary_base=s.rotary_base,
        std=s.std,
    )
    return GPT(config, device=device, generator=generator, run_chain=run_chain)


def make_optimizer(settings: Settings, model: GPT) -> AdamW:
    """The optimizer of its parameters."""
    s = settings
    return AdamW(
        model.parameters(),
        s.learning_rate,
        betas=(s.beta1, s.beta2),
        weight_decay=s.weight_decay,
        no_decay=lambda p: p.ndim < 2,
        max_grad_norm=s.max_grad_norm,
    )


def planner(settings: Settings, device: Device) -> StepPlanner:
    """What plans the checkpoints of a job on `device`: its steps, recorded and repeated, and its held-out losses."""
    hollow = stand_in_for(device)
    return StepPlanner(lambda chain: _rehearsal(settings, hollow, chain), hollow)


def _rehearsal(settings: Settings, device: Any, chain: Scheduled) -> Callable[[], None]:
    """A function that takes the memory of a recorded step and of a held-out loss, on a meta device."""
    model = make_model(settings, device, Generator(settings.seed), chain)
    optimizer = make_optimizer(settings, model)
    shape = (settings.batch, settings.length + 1)
    batches = [Tensor(device.allocate(shape, int64, "input")) for _ in range(COPIES)]

    def step() -> Tensor:
        loss = model.loss(batches[0])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    def rehearse() -> None:
        began = len(device.partials)
        blocks = _Blocks(device)
        observers.append(blocks)
        try:
            run_to_end(step)
        finally:
            observers.remove(blocks)
        bound = sum(partials.nbytes for partials in device.partials[began:])  # each call that is repeated has its own
        kept = blocks.nbytes + blocks.nbytes // UNUSED + bound
        recorded = device.allocate((kept,), np.dtype(np.uint8), "workspace")
        model.eval()
        with no_grad():
            run_to_end(lambda: model.loss(batches[0]))
        model.train()
        del recorded

    return rehearse


class _Blocks:
    """An observer that counts the memory of a recording (`recording.Arena`): blocks for arrays of one size each."""

    def __init__(self, device: Device) -> None:
        self.device, self.nbytes = device, 0
        self.free: Counter[int] = Counter()
        self.used: set[int] = set()  # ids of buffers

    def allocated(self, buffer: Buffer) -> None:
        """Give `buffer` a free block, or a new one."""
        if buffer.device is self.device:
            self.used.add(id(buffer))
            if self.free[buffer.nbytes]:
                self.free[buffer.nbytes] -= 1
            else:
                self.nbytes += buffer.nbytes

    def freed(self, buffer: Buffer) -> None:
        """Its block is free."""
        if id(buffer) in self.used:
            self.used.remove(id(buffer))
            self.free[buffer.nbytes] += 1


__all__ = ["make_model", "make_optimizer", "planner"]
