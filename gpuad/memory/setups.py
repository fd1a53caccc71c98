"""What `gpuad profile`, `estimate` and `plan` compare: inference, training, training with checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..convert import asarray
from ..devices import Device, default_device, use_device
from ..dtype import DType, bfloat16, float32, int64
from ..errors import DataError
from ..models import GPT, GPTConfig, Llama, LlamaConfig
from ..optim import SGD, Adam, AdamW
from ..random import Generator
from ..remat import checkpoint
from ..tensor import Tensor
from ..trace import no_grad
from .hollow import stand_in_for
from .ledger import profile, run_to_end
from .profile import Profile
from .step_plan import Scheduled, StepPlan, StepPlanner

MODELS = ("gpt", "gpt2", "llama-7b")
DTYPES = ("float32", "bfloat16", "mixed")  # mixed: bfloat16 with float32 master weights and states
OPTIMIZERS = {"sgd": SGD, "adam": Adam, "adamw": AdamW}
MOST = 1 << 24  # rows, and tokens in one
USUAL = {"gpt": (16, 64), "gpt2": (8, 1024), "llama-7b": (1, 2048)}  # batch and length


@dataclass(frozen=True)
class Setup:
    """What to train: a model by name, on `batch` rows of `length` tokens.  None is what is usual for the model."""

    model: str = "gpt"
    batch: int | None = None
    length: int | None = None
    dtype: str = "float32"
    optimizer: str = "adamw"

    def __post_init__(self) -> None:
        for what, given, known in (
            ("model", self.model, MODELS),
            ("dtype", self.dtype, DTYPES),
            ("optimizer", self.optimizer, tuple(OPTIMIZERS)),
        ):
            if given not in known:
                raise DataError(f"--{what} is one of {', '.join(known)}, got {given!r}")
        for what, number in (("batch", self.batch), ("length", self.length)):
            if number is not None and not 1 <= number <= MOST:
                raise DataError(f"--{what} must be at least 1 and at most {MOST}, got {number}")
        if self.model == "gpt2" and self.shape[1] > 1024:
            raise DataError(f"gpt2 sees at most 1024 tokens, got --length {self.shape[1]}")

    @property
    def shape(self) -> tuple[int, int]:
        """Batch and length."""
        batch, length = USUAL[self.model]
        return self.batch or batch, self.length or length

    def describe(self) -> str:
        """The setup in a line."""
        batch, length = self.shape
        return f"{self.model}, batch {batch}, {length} tokens, {self.dtype}, {self.optimizer}"

    def make(self, wrap_block: Callable[[Any], Any] | None = None, run_chain: Scheduled | None = None) -> Any:
        """The model, on the default device."""
        length = self.shape[1]
        options: dict[str, Any] = {"dtype": self.weights, "generator": Generator(0)}
        options |= {"wrap_block": wrap_block, "run_chain": run_chain}
        if self.model == "gpt":
            return GPT(GPTConfig(length=length, layers=4, heads=4, width=128, positions="rotary"), **options)
        if self.model == "gpt2":
            return GPT(GPTConfig.gpt2(), **options)
        return Llama(LlamaConfig.sized("7b"), **options)

    @property
    def weights(self) -> DType:
        """The dtype of the parameters."""
        return float32 if self.dtype == "float32" else bfloat16

    def optimizer_of(self, model: Any) -> Any:
        """The optimizer over the parameters of `model`."""
        options: dict[str, Any] = {"max_grad_norm": 1.0}
        if self.dtype == "bfloat16":
            options |= {"master_weights": False, "state_dtype": bfloat16}
        return OPTIMIZERS[self.optimizer](model.parameters(), 1e-4, **options)

    def tokens(self, extra: int) -> Tensor:
        """A batch of tokens, `extra` more than the length of each row."""
        shape, device = (self.shape[0], self.shape[1] + extra), default_device()
        if not device.computes:
            return Tensor(device.allocate(shape, int64, "input"))
        return asarray(np.random.default_rng(0).integers(0, 256, shape))


def inference(setup: Setup) -> Callable[[], Any]:
    """A function that computes the logits of every position, without a tape."""
    model, tokens = setup.make().eval(), setup.tokens(0)

    def run() -> Any:
        with no_grad():
            return model(tokens)

    return run


def training(
    setup: Setup, wrap_block: Callable[[Any], Any] | None = None, run_chain: Scheduled | None = None
) -> Callable[[], Any]:
    """A function that takes a step."""
    model, tokens = setup.make(wrap_block, run_chain), setup.tokens(1)
    optimizer = setup.optimizer_of(model)

    def run() -> None:
        model.loss(tokens).backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def planner(setup: Setup, device: Device) -> StepPlanner:
    """What plans the checkpoints of a step, as `device` would run it."""
    return StepPlanner(lambda chain: training(setup, run_chain=chain), stand_in_for(device))


RUNS = ("inference", "training", "training, checkpointed", "training, auto")
Measure = Callable[[Callable[[], Any], str, Device], Profile]


@dataclass(frozen=True)
class Plans:
    """The plans for a step that are compared: every block checkpointed, "auto", and budgets; and what takes the memory.

    `refused` says of each budget that nothing fits in why.

    The planner is not kept: its model counts on the meta device.
    """

    every: StepPlan
    others: list[StepPlan]
    advice: str | None
    refused: list[str]

    @classmethod
    def of(cls, setup: Setup, device: Device, *budgets: str) -> Plans:
        """Those of a step as `device` would run it."""
        found = planner(setup, device)
        others, refused = [found.plan("auto")], []
        for budget in budgets:
            try:
                others.append(found.plan(budget))
            except DataError as error:
                refused.append(" ".join(str(error).split()))
        return cls(found.plan("every"), others, found.advice, refused)


def measured(
    setup: Setup, device: Device, measure: Measure | None = None, plans: Plans | None = None
) -> Iterator[Profile]:
    """The Profile of each of RUNS on `device`, and of each other of `plans`, each after a first run."""
    plans = plans or Plans.of(setup, device)
    runs: list[tuple[str, float, Callable[[], Callable[[], Any]]]] = [
        ("inference", 0.0, partial(inference, setup)),
        ("training", 0.0, partial(training, setup)),
        ("training, checkpointed", plans.every.extra, partial(training, setup, checkpoint)),
    ]
    for plan in plans.others:
        scheduled = Scheduled(plan.schedule)
        runs.append((f"training, {plan.name}", plan.extra, partial(training, setup, run_chain=scheduled)))
    for name, extra, make in runs:
        with use_device(device):
            run = make()
            run_to_end(run)
            profile = (measure or _profiled)(run, name, device)
            profile.extra = None if name == "inference" else extra
            yield profile
            del run


def _profiled(run: Callable[[], Any], name: str, device: Device) -> Profile:
    found: Profile = profile(run, device=device, name=name)
    return found
