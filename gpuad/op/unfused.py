"""Ops that are computed outside kernels: views, library functions, products; and ops made of other ops."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from ..array import ANCHOR, COMPOSITE, Array
from ..attribution import ledgers, whole
from ..fuse.plan import SURVEY_EVERY, cut, eager, realize, realize_all
from ..provenance import Site, blame
from ..tensor import Tensor
from .base import Op, Rule, parameters, same_device
from .fused import structural


class View(Op):
    """An op whose result looks at its input's memory: `view(data, **params)` gives the view.  Linear.

    `view` never copies: where no strides give the result it is a ValueError.
    """

    def __init__(self, name: str, view: Callable[..., Any], *, transpose: Callable[..., Any], doc: str = "") -> None:
        _, *params = parameters(view)
        super().__init__(name, ("x",), vjp=(transpose,), params=params, doc=doc)
        self.view = view
        self.may_wait = True
        self.jvp = [(lambda t, *values: self(t, **dict(zip(params, values, strict=True))), self._param_slots())]

    def _param_slots(self) -> tuple[int, ...]:
        return tuple(self.slots[n] for n in self.params)

    def evaluate(self, arrays: list[Any], params: dict[str, Any], site: Site | None) -> Array:
        (x,) = arrays
        realize(x)
        return x.device.view(x, self.view(x.data, **params), site)  # type: ignore[no-any-return]


class Opaque(Op):
    """An op computed at once by a library function.

    `forward(xp, *arrays, **params)` calls NumPy or CuPy; `infer(arrays, params)` gives the shape and dtype of the
    result (a list of them for several) without computing it; `into(xp, *arrays, out, **params)`, where given, writes
    into memory allocated for it.
    """

    def __init__(
        self,
        name: str,
        inputs: Sequence[str],
        *,
        infer: Callable[..., Any],
        forward: Callable[..., Any] | None = None,
        into: Callable[..., Any] | None = None,
        vjp: Sequence[Rule] = (),
        jvp: Sequence[Rule] = (),
        outputs: Sequence[str] = ("y",),
        params: Sequence[str] = (),
        doc: str = "",
    ) -> None:
        super().__init__(name, inputs, outputs=outputs, vjp=vjp, jvp=jvp, params=params, doc=doc)
        self._infer, self.forward, self.into = infer, forward, into
        self.may_wait = len(self.outputs) == 1 and type(self).evaluate is Opaque.evaluate

    def infer(self, arrays: list[Any], params: dict[str, Any]) -> Any:
        """The shape and dtype of the result, or a list of them."""
        return self._infer(*arrays, **params)

    def evaluate(self, arrays: list[Any], params: dict[str, Any], site: Site | None) -> Any:
        device = same_device(self.name, arrays)
        realize_all([a for a in arrays if type(a) is Array])
        return device.call(self, [a.data if type(a) is Array else a for a in arrays], params, site)


class Joining(Opaque):
    """An op linear in all of its inputs, of which there may be any number: concat, stack.

    `split(g, like, **params)` gives the cotangent of each input from that of the output.
    """

    def __init__(
        self,
        name: str,
        *,
        infer: Callable[..., Any],
        into: Callable[..., Any],
        split: Callable[..., list[Any]],
        doc: str = "",
    ) -> None:
        params = parameters(infer)  # besides the arrays
        super().__init__(name, (), infer=infer, into=into, params=params, doc=doc)
        self.split = split

    def plan(self, traced: tuple[bool, ...]) -> tuple[int, ...] | None:
        return () if any(traced) else None

    def pull(self, g: Any, frame: list[Any], traced: Sequence[bool]) -> list[Any]:
        n = len(traced) + 1
        parts = self.split(g, frame[n], **dict(zip(self.params, frame[n + 1 :], strict=True)))
        return [p if t else None for p, t in zip(parts, traced, strict=True)]

    def push(self, tangents: list[Any], frame: list[Any]) -> Any:
        if all(t is None for t in tangents):
            return None
        values = frame[: len(tangents)]
        params = dict(zip(self.params, frame[len(tangents) + 2 :], strict=True))
        return self(
            *[structural["zeros_like"](v) if t is None else t for v, t in zip(values, tangents, strict=True)], **params
        )


class Anchor(Opaque):
    """An op that begins a kernel: it stays pending, so that what follows elementwise can join it."""

    fusion = ANCHOR

    def evaluate(self, arrays: list[Any], params: dict[str, Any], site: Site | None) -> Any:
        device = same_device(self.name, arrays)
        shape, dtype = self.infer(arrays, params)
        depth = 1 + max(a.depth for a in arrays)
        if depth % SURVEY_EVERY == 0 and cut(arrays, depth, math.prod(shape) * dtype.itemsize):
            depth = 1
        y = Array(shape, dtype, device, self, tuple(arrays), tuple(params.items()), depth, site)
        if eager.get() or any(a.buffer is not None and a.buffer.borrowed for a in arrays):
            realize(y)
        return y


class Composite(Op):
    """An op computed by other ops, with derivative rules of its own.  `forward` is written with public ops."""

    fusion = COMPOSITE

    def __init__(
        self,
        name: str,
        inputs: Sequence[str],
        *,
        forward: Callable[..., Any],
        vjp: Sequence[Rule],
        jvp: Sequence[Rule],
        outputs: Sequence[str] = ("y",),
        params: Sequence[str] = (),
        doc: str = "",
    ) -> None:
        super().__init__(name, inputs, outputs=outputs, vjp=vjp, jvp=jvp, params=params, doc=doc)
        self.forward = forward

    def evaluate(self, arrays: list[Any], params: dict[str, Any], site: Site | None) -> Any:
        same_device(self.name, arrays)
        token = whole.set(whole.get() or self.name) if ledgers else None
        try:
            with blame(site):
                out = self.forward(*[Tensor(a) if type(a) is Array else a for a in arrays], **params)
        finally:
            if token is not None:
                whole.reset(token)
        return tuple([t.data for t in out]) if type(out) is tuple else out.data
