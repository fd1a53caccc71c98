"""Ops, by kind: what an operation is, those that fuse, those that do not."""

from .base import Inferred, Op, Rule
from .fused import Elementwise, Reduction, Source, broadcast_shape, structural
from .unfused import Anchor, Composite, Joining, Opaque, View

__all__ = [
    "Anchor",
    "Composite",
    "Elementwise",
    "Inferred",
    "Joining",
    "Op",
    "Opaque",
    "Reduction",
    "Rule",
    "Source",
    "View",
    "broadcast_shape",
    "structural",
]
