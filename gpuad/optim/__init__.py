"""Optimizers, gradient clipping, and schedules of the learning rate."""

from .optimizer import Optimizer, clip_grad_norm
from .rules import SGD, Adam, AdamW
from .schedule import constant, cosine_with_warmup, linear

__all__ = ["Adam", "AdamW", "Optimizer", "SGD", "clip_grad_norm", "constant", "cosine_with_warmup", "linear"]
