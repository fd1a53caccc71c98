"""Settings: everything that the losses of a training run depend on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..errors import DataError
from ..memory.sizes import parse_bytes

CHECKPOINTING = ("none", "auto", "sqrt", "every")  # or a number of bytes


def _option(default: Any, metavar: str, text: str) -> Any:
    """A field that the command line offers: --learning-rate for learning_rate."""
    return dataclasses.field(default=default, metadata={"metavar": metavar, "help": text})


@dataclasses.dataclass(frozen=True)
class Settings:
    """The text, the model and how it is trained.  The defaults take about three minutes on two cores."""

    data: tuple[str, ...] = _option((), "PATH", "text files and folders to learn from (default: Python's library)")
    device: str = _option("auto", "NAME", "auto (a GPU where there is one), cpu, cuda or cuda:<index>")
    layers: int = _option(4, "N", "blocks of the model")
    heads: int = _option(4, "N", "attention heads of a block")
    width: int = _option(128, "N", "features of a position")
    length: int = _option(64, "N", "bytes the model sees at once")
    steps: int = _option(800, "N", "steps to take")
    batch: int = _option(16, "N", "sequences in a step")
    learning_rate: float = _option(3e-3, "X", "the highest, after the warm-up")
    dropout: float = _option(0.0, "P", "chance of each activation to be dropped")
    seed: int = _option(0, "N", "decides weights, order of the text, dropout, sample")
    checkpointing: str = _option("none", "HOW", "none, auto, sqrt, every, or the most memory that it may take: 24GiB")
    save_every: int = _option(100, "N", "steps between saved states, with held-out losses")
    warmup: int = 100  # steps, or a tenth of them all if that is less
    final_rate: float = 0.1  # of the learning rate, at the last step
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.1  # of matrices
    max_grad_norm: float = 1.0
    rotary_base: float = 1000.0
    std: float = 0.08  # of the weights at the start

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Settings:
        """The settings that `dataclasses.asdict` made `found` of, perhaps by way of JSON."""
        fields = dataclasses.fields(cls)
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in found.items()
        }
        if set(values) != {f.name for f in fields}:
            raise DataError(f"these are not the settings of this version of gpuad: {', '.join(found)}")
        for f in fields:
            if type(values[f.name]) is not type(f.default):
                raise DataError(f"the setting {f.name} is {found[f.name]!r}, which is no {type(f.default).__name__}")
        return cls(**values).checked()

    def checked(self) -> Settings:
        """These settings; a DataError if they make no sense."""
        for name in ("layers", "heads", "width", "length", "steps", "batch", "save_every"):
            if getattr(self, name) < 1:
                raise DataError(f"{flag(name)} must be at least 1, got {getattr(self, name)}")
        if self.width % (2 * self.heads):
            raise DataError(f"--width must be a multiple of twice --heads, got {self.width} and {self.heads}")
        if not 0 <= self.dropout < 1:
            raise DataError(f"--dropout must be at least 0 and below 1, got {self.dropout}")
        if not 0 < self.learning_rate < float("inf"):
            raise DataError(f"--learning-rate must be a positive number, got {self.learning_rate}")
        if not 0 <= self.seed < 1 << 64:
            raise DataError(f"--seed must be at least 0 and below 2**64, got {self.seed}")
        if self.checkpointing not in CHECKPOINTING:
            try:
                parse_bytes(self.checkpointing)
            except DataError:
                raise DataError(
                    f"--checkpointing is one of {', '.join(CHECKPOINTING)}, or a number of bytes such as 24GiB, got"
                    f" {self.checkpointing!r}"
                ) from None
        return self


def flag(name: str) -> str:
    """What a setting is called on the command line."""
    return "--" + name.replace("_", "-")


__all__ = ["Settings", "flag"]
