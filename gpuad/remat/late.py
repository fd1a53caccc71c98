"""What stands in the place of an op in a second run: a value that was kept, or one that nobody may ask for."""

from __future__ import annotations

import math
from typing import Any

from ..array import ANCHOR, Array, Shape
from ..dtype import DType
from ..fuse.plan import SURVEY_EVERY, cut, eager, realize
from ..provenance import Site
from .record import Place


def given(values: dict[Place, Array], k: int, op: Any, arrays: list[Any], *_: Any) -> Any:
    """The values of the k-th op, of which the first at least was kept."""
    if len(op.outputs) == 1:
        return values[k, 0]
    return tuple([values[k, n] for n in range(len(op.outputs))])


def later(result: tuple[Shape, DType], op: Any, arrays: list[Any], params: dict[str, Any], site: Site | None) -> Array:
    """A pending array of what `op` gives, which it is asked for when somebody wants that."""
    inputs = [a for a in arrays if type(a) is Array]
    if eager.get() or any(a.buffer is not None and a.buffer.borrowed for a in inputs):
        return op.evaluate(arrays, params, site)  # type: ignore[no-any-return]
    shape, dtype = result
    depth = 1 + max(a.depth for a in inputs)
    if depth % SURVEY_EVERY == 0 and cut(inputs, depth, math.prod(shape) * dtype.itemsize):
        depth = 1
    operation: Any = _Late(op, params)
    return Array(shape, dtype, inputs[0].device, operation, tuple(arrays), (), depth, site)


class _Late:
    """The operation of an array that an op would compute at once, put off until it is asked for."""

    fusion, late = ANCHOR, True

    def __init__(self, op: Any, params: dict[str, Any]) -> None:
        self.op, self.options = op, params
        self.name = op.name

    def evaluate(self, arrays: list[Any], site: Site | None) -> Any:
        """The Array, computed."""
        return realize(self.op.evaluate(arrays, self.options, site))


__all__ = ["given", "later"]
