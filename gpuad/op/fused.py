"""Ops that become part of a kernel: elementwise functions, values made from their position, reductions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..array import ELEMENTWISE, ROW, SOURCE, TOTAL, Array, Shape, describe
from ..devices import Device
from ..dtype import WEAK, DType, compute_dtype, result_dtype
from ..errors import DTypeError, ShapeError
from ..fuse.plan import SURVEY_EVERY, cut, eager, realize
from ..provenance import Site
from ..tensor import Tensor
from .base import Op, Rule, two_devices


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
            like = [(g.shape, g.dtype)] * len(parts)
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
                        two_devices(self.name, arrays)
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
        g = structural["sum_to" if len(g.shape) >= len(shape) else "broadcast_to"](g, shape)
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
    shapes = {a.shape for a in arrays if type(a) not in WEAK}
    if len(shapes) == 2:  # nearly always: a smaller one along the last axes of the other
        large, small = sorted(shapes, key=len, reverse=True)
        if large[len(large) - len(small) :] == small:
            return large  # type: ignore[no-any-return]
    try:
        return np.broadcast_shapes(*[a.shape for a in arrays if type(a) not in WEAK])
    except ValueError:
        shown = " and ".join(describe(a) for a in arrays if type(a) not in WEAK)
        raise ShapeError(
            f"{name}() cannot broadcast {shown}\n  axes are matched from the last; each pair must be equal or have a 1"
        ) from None


def _check_range(name: str, arrays: Sequence[Any], dtypes: tuple[DType, ...]) -> None:
    for a, dtype in zip(arrays, dtypes, strict=True):
        if type(a) is int and dtype.kind not in "iub" and abs(a) >= 2**1024:
            raise DTypeError(f"{name}() got an integer of {len(str(a))} digits, which {dtype} cannot hold")
        if type(a) is int and dtype.kind in "iu":
            info = np.iinfo(dtype.type)  # type: ignore[type-var]  # an integer dtype, as its kind says
            if not info.min <= a <= info.max:
                raise DTypeError(
                    f"{name}() got {a}, which {dtype} cannot hold ({info.min} to {info.max}); cast the tensor first"
                )


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
