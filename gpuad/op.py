"""Op: one operation, with one derivative rule per argument, for every mode and order.

A rule takes the tangent (or cotangent) first, then by name any of: the op's inputs, its outputs (`y` where there is
one), `like` for the shapes and dtypes of its inputs, and its keyword parameters.  What no rule names is not kept.
Rules are written with public ops on tensors, which alone makes them differentiable and fusable.
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from .array import ANCHOR, COMPOSITE, ELEMENTWISE, OPAQUE, ROW, SOURCE, TOTAL, Array, Shape, describe
from .devices import Device
from .dtype import WEAK, DType, compute_dtype, result_dtype
from .errors import DeviceError, DTypeError, GradientError, ShapeError
from .fuse.plan import SURVEY_EVERY, cut, eager, realize, realize_all
from .provenance import Site, blame
from .provenance import describe as describe_site
from .tensor import Tensor
from .trace import apply

Rule: TypeAlias = "Callable[..., Any] | None"
Inferred: TypeAlias = tuple[Shape, DType]


class Op:
    """A primitive operation.  Arrays are positional, everything else is keyword."""

    fusion = OPAQUE  # evaluated at once, not part of any kernel
    cost = 1.0
    in_place = False
    cuda = ""
    numpy: Any

    def __init__(
        self,
        name: str,
        inputs: Sequence[str],
        *,
        outputs: Sequence[str] = ("y",),
        vjp: Sequence[Rule] = (),
        jvp: Sequence[Rule] = (),
        params: Sequence[str] = (),
        doc: str = "",
    ) -> None:
        self.name, self.inputs, self.outputs, self.params = name, tuple(inputs), tuple(outputs), tuple(params)
        self.__doc__ = doc
        self.slots = {n: k for k, n in enumerate((*self.inputs, *self.outputs, "like", *self.params))}
        self.vjp = [self._bind(r) for r in vjp] or [None] * len(self.inputs)
        self.jvp = [self._bind(r) for r in jvp] or [None] * len(self.inputs)
        self.differentiable = [True] * len(self.outputs)  # which outputs carry a derivative
        self._plans: dict[tuple[bool, ...], tuple[int, ...] | None] = {}

    def _bind(self, rule: Rule) -> tuple[Callable[..., Any], tuple[int, ...]] | None:
        """The rule with the slots it reads, checked when the op is defined."""
        if rule is None:
            return None
        _, *names = inspect.signature(rule).parameters
        if unknown := [n for n in names if n not in self.slots]:
            raise TypeError(f"{self.name}: a rule asks for {unknown}; it may name {list(self.slots)}")
        return rule, tuple(self.slots[n] for n in names)

    def __call__(self, *args: Any, **params: Any) -> Any:
        if len(args) != len(self.inputs) and self.inputs:
            raise TypeError(f"{self.name}() takes {len(self.inputs)} tensors, got {len(args)}")
        if params and params.keys() - set(self.params):
            raise TypeError(f"{self.name}() takes no {', '.join(sorted(params.keys() - set(self.params)))}")
        return apply(self, args, params)

    def likeness(self, values: list[Any], y: Any) -> Any:
        """What rules get as `like`: the shape and dtype of each input, None for Python scalars."""
        return [None if type(v) in WEAK else (v.shape, v.dtype) for v in values]

    def frame(self, values: list[Any], y: Any, params: dict[str, Any]) -> list[Any]:
        """Everything a rule may name, in the order of the slots."""
        return [*values, *(y if type(y) is tuple else (y,)), self.likeness(values, y), *params.values()]

    def plan(self, traced: tuple[bool, ...]) -> tuple[int, ...] | None:
        """The inputs and outputs that the tape must keep, by slot; None if no derivative flows."""
        if traced not in self._plans:
            rules = [r for r, t in zip(self.vjp, traced, strict=True) if t and r is not None]
            wanted = {s for _, slots in rules for s in slots if s < len(self.inputs) + len(self.outputs)}
            self._plans[traced] = tuple(sorted(wanted)) if rules else None
        return self._plans[traced]

    def pull(self, g: Any, frame: list[Any], traced: Sequence[bool]) -> list[Any]:
        """The cotangent of each traced input from that of the output (a list of them if there are several)."""
        return [
            self._apply(r, g, frame) if t and r is not None else None for r, t in zip(self.vjp, traced, strict=True)
        ]

    def push(self, tangents: list[Any], frame: list[Any]) -> Any:
        """The tangent of the output, or None if it is zero; a list where there are several outputs."""
        parts = [
            self._apply(r, t, frame) for r, t in zip(self.jvp, tangents, strict=True) if r is not None and t is not None
        ]
        if len(self.outputs) > 1 and parts:
            return [_sum_of([part[k] for part in parts]) for k in range(len(self.outputs))]
        return _sum_of(parts)

    @staticmethod
    def _apply(rule: tuple[Callable[..., Any], tuple[int, ...]], t: Any, frame: list[Any]) -> Any:
        function, slots = rule
        return function(t, *[frame[s] for s in slots])

    def evaluate(self, arrays: list[Any], params: dict[str, Any], site: Site | None) -> Any:
        """The result as an Array, or a tuple of them, perhaps pending."""
        raise NotImplementedError

    def signature(self, operands: tuple[DType | type, ...]) -> tuple[tuple[DType, ...], DType]:
        """The dtype each operand is cast to first, and the dtype of the result."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<op {self.name}>"


def _sum_of(parts: list[Any]) -> Any:
    """The sum of those that are not None; None if there are none."""
    found = [part for part in parts if part is not None]
    return functools.reduce(operator.add, found) if found else None


# --- elementwise ------------------------------------------------------------------------------


class Elementwise(Op):
    """An op whose Jacobian is diagonal, so that one rule per argument serves both modes.

    `diff[i]` maps a tangent of argument i to a tangent of the output; a real diagonal map is its own transpose, so
    the same rule maps cotangents back.  `numpy` takes the operands and `out`; `cuda` is an expression in the input
    names.  `dtypes` says which dtypes come in and out:

        "promote"  all operands are cast to their common dtype, which is the result's
        "float"    the same, and integers become float32
        "compare"  cast to the common dtype; the result is bool
        "logical"  cast to bool; the result is bool
        "integer"  the same as promote, and floats are an error
        "select"   the first operand is cast to bool, the others to their common dtype
    """

    fusion = ELEMENTWISE

    def __init__(
        self,
        name: str,
        inputs: Sequence[str],
        *,
        numpy: Callable[..., Any],
        cuda: str,
        diff: Sequence[Rule] = (),
        dtypes: str = "promote",
        cost: float = 1.0,
        doc: str = "",
    ) -> None:
        super().__init__(name, inputs, vjp=diff, jvp=diff, doc=doc)
        self.numpy, self.cuda, self.cost = numpy, cuda, cost
        self.in_place = isinstance(numpy, np.ufunc)
        self.dtypes = dtypes
        self._signatures: dict[tuple[DType | type, ...], tuple[tuple[DType, ...], DType]] = {}

    def signature(self, operands: tuple[DType | type, ...]) -> tuple[tuple[DType, ...], DType]:
        found = self._signatures.get(operands)
        if found is None:
            found = self._signatures[operands] = self._sign(operands)
        return found

    def _sign(self, operands: tuple[DType | type, ...]) -> tuple[tuple[DType, ...], DType]:
        n, bool_ = len(operands), np.dtype(np.bool_)
        if self.dtypes == "logical":
            return (bool_,) * n, bool_
        if self.dtypes == "select":
            common = result_dtype(operands[1:])
            return (bool_, *(common,) * (n - 1)), common
        common = result_dtype(operands)
        if self.dtypes == "integer" and common.kind not in "biu":
            raise DTypeError(f"{self.name}() needs integers or bools, got {common}; cast with .to(gpuad.int64)")
        if self.dtypes == "float" and common.kind in "biu":
            common = np.dtype(np.float32)
        return (common,) * n, bool_ if self.dtypes == "compare" else common

    def likeness(self, values: list[Any], y: Any) -> Any:
        shape, dtype = y.shape, y.dtype
        for v in values:
            if type(v) not in WEAK and (v.shape != shape or v.dtype != dtype):
                return super().likeness(values, y)
        return None  # nothing was broadcast or cast

    def pull(self, g: Any, frame: list[Any], traced: Sequence[bool]) -> list[Any]:
        parts = super().pull(g, frame, traced)
        like = frame[len(self.inputs) + 1]
        if like is None:
            return parts
        return [p if p is None else unbroadcast(p, *spec) for p, spec in zip(parts, like, strict=True)]

    def push(self, tangents: list[Any], frame: list[Any]) -> Any:
        t, y = super().push(tangents, frame), frame[len(self.inputs)]
        return t if t is None or (t.shape == y.shape and t.dtype == y.dtype) else rebroadcast(t, y.shape, y.dtype)

    def evaluate(self, arrays: list[Any], params: dict[str, Any], site: Site | None) -> Array:
        shape: Shape | None = None
        device = None
        depth, same, borrowed, whole = 0, True, False, False
        operands: list[DType | type] = []
        for a in arrays:
            if type(a) is Array:
                operands.append(a.dtype)
                if shape is None:
                    shape, device = a.shape, a.device
                else:
                    if a.shape != shape:
                        same = False
                    if a.device is not device:
                        _two_devices(self.name, arrays)
                if a.depth > depth:
                    depth = a.depth
                if a.buffer is not None and a.buffer.borrowed:
                    borrowed = True
            else:
                operands.append(type(a))
                whole = whole or type(a) is int
        if not same:
            shape = broadcast_shape(self.name, arrays)
        key = tuple(operands)
        found = self._signatures.get(key)
        if found is None:
            found = self.signature(key)
        if shape is None or device is None:
            raise TypeError(f"{self.name}() needs at least one tensor")
        if whole:
            _check_range(self.name, arrays, found[0])
        depth += 1
        if depth % SURVEY_EVERY == 0 and cut(
            [a for a in arrays if type(a) is Array], depth, found[1].itemsize * _size(shape)
        ):
            depth = 1
        y = Array(shape, found[1], device, self, tuple(arrays), (), depth, site)
        if borrowed or eager.get():
            realize(y)
        return y


def unbroadcast(g: Tensor, shape: Shape, dtype: DType) -> Tensor:
    """The cotangent `g` of a broadcast value, as one of the value itself."""
    if g.shape != shape:
        g = structural["sum_to"](g, shape)
    return g if g.dtype == dtype else structural["astype"](g, dtype)


def rebroadcast(t: Tensor, shape: Shape, dtype: DType) -> Tensor:
    """The tangent `t` with the shape and dtype of the result it belongs to."""
    if t.dtype != dtype:
        t = structural["astype"](t, dtype)
    return t if t.shape == shape else structural["broadcast_to"](t, shape)


structural: dict[str, Callable[..., Tensor]] = {}  # the ops that elementwise rules need: sum_to, broadcast_to, astype


def _size(shape: Shape) -> int:
    n = 1
    for d in shape:
        n *= d
    return n


def broadcast_shape(name: str, arrays: Sequence[Any]) -> Shape:
    """The shape that the arrays broadcast to; a ShapeError that shows them if there is none."""
    try:
        return np.broadcast_shapes(*[a.shape for a in arrays if type(a) not in WEAK])
    except ValueError:
        shown = " and ".join(describe(a) for a in arrays if type(a) not in WEAK)
        raise ShapeError(
            f"{name}() cannot broadcast {shown}\n  axes are matched from the last; each pair must be equal or have a 1"
        ) from None


def _check_range(name: str, arrays: Sequence[Any], dtypes: tuple[DType, ...]) -> None:
    for a, dtype in zip(arrays, dtypes, strict=True):
        if type(a) is int and dtype.kind in "iu":
            info = np.iinfo(dtype.type)  # type: ignore[type-var]  # an integer dtype, as its kind says
            if not info.min <= a <= info.max:
                raise DTypeError(
                    f"{name}() got {a}, which {dtype} cannot hold ({info.min} to {info.max}); cast the tensor first"
                )


def _two_devices(name: str, arrays: Sequence[Any]) -> None:
    shown = " and ".join(f"{describe(a)} on {a.device.name}" for a in arrays if type(a) is Array)
    raise DeviceError(f"{name}() got {shown}\n  move one of them with .to(device)")


class Source(Op):
    """Values made from their position alone: full, arange, random bits.  They fuse, and cost nothing to keep.

    `numpy(params, start, out)` fills `out` with the elements from flat index `start` on.
    """

    fusion = SOURCE

    def __init__(self, name: str, *, numpy: Callable[..., Any], cuda: str, cost: float = 1.0, doc: str = "") -> None:
        super().__init__(name, (), doc=doc)
        self.numpy, self.cuda, self.cost = numpy, cuda, cost

    def make(self, shape: Shape, dtype: DType, device: Device, params: tuple[Any, ...], site: Site | None) -> Array:
        """A pending Array of `shape`."""
        y = Array(shape, dtype, device, self, (), params, 1, site)
        return realize(y) if eager.get() else y

    def evaluate(self, arrays: list[Any], params: dict[str, Any], site: Site | None) -> Any:
        raise TypeError(f"{self.name} makes arrays; it takes none")


class Reduction(Op):
    """A reduction by `ufunc`, pending: `over` is "row" (the last axis, kept), "column" (all others) or "all"."""

    def __init__(
        self, name: str, over: str, ufunc: np.ufunc, *, cuda: str, vjp: Rule, jvp: Rule, cost: float = 1.0
    ) -> None:
        super().__init__(name, ("x",), vjp=(vjp,), jvp=(jvp,))
        self.over, self.numpy, self.cuda, self.cost = over, ufunc, cuda, cost
        self.fusion = ROW if over == "row" else TOTAL

    def signature(self, operands: tuple[DType | type, ...]) -> tuple[tuple[DType, ...], DType]:
        dtype = operands[0]
        assert isinstance(dtype, np.dtype)
        return (dtype,), dtype

    def evaluate(self, arrays: list[Any], params: dict[str, Any], site: Site | None) -> Array:
        (x,) = arrays
        assert compute_dtype(x.dtype) == x.dtype, "half types are cast before they are reduced"
        shape = (*x.shape[:-1], 1) if self.over == "row" else x.shape[-1:] if self.over == "column" else ()
        depth = x.depth + 1
        if depth % SURVEY_EVERY == 0 and cut([x], depth, x.nbytes):
            depth = 1
        y = Array(shape, x.dtype, x.device, self, (x,), (), depth, site)
        if eager.get() or (x.buffer is not None and x.buffer.borrowed):
            realize(y)
        return y


# --- not fused --------------------------------------------------------------------------------


class View(Op):
    """An op whose result looks at its input's memory: `view(data, **params)` gives the view.  Linear."""

    def __init__(self, name: str, view: Callable[..., Any], *, transpose: Callable[..., Any], doc: str = "") -> None:
        _, *params = inspect.signature(view).parameters
        super().__init__(name, ("x",), vjp=(transpose,), params=params, doc=doc)
        self.view = view
        self.jvp = [(lambda t, *values: self(t, **dict(zip(params, values, strict=True))), self._param_slots())]

    def _param_slots(self) -> tuple[int, ...]:
        return tuple(self.slots[n] for n in self.params)

    def evaluate(self, arrays: list[Any], params: dict[str, Any], site: Site | None) -> Array:
        (x,) = arrays
        realize(x)
        data = self.view(x.data, **params)
        if data.size and not np.may_share_memory(data, x.data):  # NumPy had to copy (a reshape of a transpose)
            return x.device.adopt(data, site=site)  # type: ignore[no-any-return]
        return x.device.view(x, data, site)  # type: ignore[no-any-return]


class Opaque(Op):
    """An op computed at once by a library function.

    `forward(xp, *arrays, **params)` calls NumPy or CuPy; `infer(arrays, params)` gives the shape and dtype of the
    result (a list of them for several) without computing it; `into(*arrays, out, **params)`, where given, writes
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
        _, *params = inspect.signature(infer).parameters
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
        y = Array(shape, dtype, device, self, tuple(arrays), tuple(params.items()), 1, site)
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
        with blame(site):
            out = self.forward(*[Tensor(a) if type(a) is Array else a for a in arrays], **params)
        return tuple([t.data for t in out]) if type(out) is tuple else out.data


def same_device(name: str, arrays: Sequence[Any]) -> Device:
    """The one device of `arrays`; a DeviceError that shows them if there are two."""
    device: Device | None = None
    for a in arrays:
        if type(a) is Array:
            if device is not None and a.device is not device:
                _two_devices(name, arrays)
            device = a.device
    if device is None:
        raise TypeError(f"{name}() needs at least one tensor")
    return device


def no_derivative(name: str, site: Site | None) -> GradientError:
    """The error for a derivative that is not defined."""
    return GradientError(f"{name}() at {describe_site(site)} has no derivative")
