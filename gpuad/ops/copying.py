"""Copies: to memory of its own, for a tensor over borrowed memory, and to another device."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..array import Array
from ..devices import Device
from ..devices import device as find_device
from ..fuse.plan import realize
from ..op import Elementwise, Op
from ..operators import operators
from ..provenance import Site
from ..tensor import Tensor


def _copy(x: Any, out: Any) -> None:
    np.copyto(out, x)


copy = Elementwise(
    "copy", "x", numpy=_copy, cuda="x", cost=0.5, diff=(lambda t: t,), doc="The values of x, in memory of their own."
)


class _Move(Op):
    """The values of x on another device; its derivative comes back the same way."""

    def __init__(self) -> None:
        super().__init__(
            "to_device",
            ("x",),
            vjp=(lambda g, source: to_device(g, device=source),),
            params=("device", "source"),
            doc=_Move.__doc__ or "",
        )
        self.jvp = [((lambda t, device: to_device(t, device=device)), (self.slots["device"],))]

    def evaluate(self, arrays: list[Any], params: dict[str, Any], site: Site | None) -> Array:
        moved: Array = params["device"].from_device(realize(arrays[0]), site)
        return moved


_move = _Move()


def to_device(x: Tensor, /, device: str | Device) -> Tensor:
    """`x` on `device`; `x` itself where it is there already."""
    target = find_device(device)
    if target is x.device:
        return x
    result: Tensor = _move(x, device=target, source=x.device)
    return result


operators.copy, operators.to_device = copy, to_device

__all__ = ["copy", "to_device"]
