"""Assignment: `x[key] = v` and `x += y` rebind a handle to a new value, differentiable in both the old one and `v`.

No memory is written that a tape, a view or a pending expression may hold.
"""

from __future__ import annotations

import opcode
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeAlias

import numpy as np

from ..array import Shape, describe
from ..convert import asarray
from ..dtype import WEAK, Scalar, bool_, int64, is_float, kind
from ..errors import DTypeError, GpuadError, GradientError, ShapeError
from ..op import Opaque
from ..tensor import Tensor
from ..trace import is_recording
from .compare import where
from .create import full
from .index import Key, Merged, gather, merge, read_key, user_line
from .shape import astype, broadcast_to, place, reshape, window

Value: TypeAlias = "Tensor | Scalar"

# --- primitives -------------------------------------------------------------------------------


def _put_into(xp: Any, x: Any, value: Any, out: Any, key: Any) -> None:
    out[...] = x
    out[key] = value


_put: Opaque = Opaque(
    "setitem",
    ("x", "value"),
    infer=lambda x, value, key: (x.shape, x.dtype),
    into=_put_into,
    vjp=(lambda g, key: _put(g, 0, key=key), lambda g, key: window(g, key=key)),
    jvp=(
        lambda t, key: _put(t, 0, key=key),
        lambda t, like, key: place(t, key=key, shape=like[0][0], fill=0),
    ),
    params=("key",),
    doc="`x` with `value` where `key` selects.",
)


def _sources_forward(xp: Any, index: Any, length: int) -> Any:
    flat = index.reshape(-1)
    last = xp.full(length, -1)
    last[flat] = xp.arange(flat.size)
    return last >= 0, xp.maximum(last, 0)


_sources: Opaque = Opaque(
    "sources",
    ("index",),
    outputs=("written", "source"),
    infer=lambda index, length: [((length,), bool_), ((length,), int64)],
    forward=_sources_forward,
    params=("length",),
    doc="For each place along an axis: whether an assignment to `index` writes it, and which of its rows does so last.",
)

# --- handles ----------------------------------------------------------------------------------


def assign(x: Tensor, key: Any, value: Any) -> None:
    """`x[key] = value`: the handle `x` becomes a tensor that has `value` there, differentiable in both.

    Where a key names an element twice the last value stays.  A leaf may be assigned under `no_grad`, and stays it.
    """
    if sys.getrefcount(x) <= _UNNAMED and _is_statement(sys._getframe(1)):
        raise GpuadError(
            f"assignment into {describe(x)}, a result that has no name and would be lost, at {user_line()}\n"
            "  write x[0, 1] = v instead of x[0][1] = v"
        )
    _rebind(x, "x[...] = v", lambda y: _assigned(y, key, value))


def update(x: Tensor, op: Callable[[Tensor, Any], Tensor], other: Any) -> Tensor:
    """`x += other` and its like: the handle `x`, which becomes `op(x, other)` in its shape and dtype."""

    def updated(y: Tensor) -> Tensor:
        new = op(y, other)
        if new.shape != y.shape:
            raise ShapeError(f"an in-place operator cannot make {describe(new)} of {describe(y)}; write x = x + y")
        if kind(new.dtype) > kind(y.dtype):
            raise DTypeError(f"an in-place operator cannot put {new.dtype} into {describe(y)}; write x = x + y")
        return astype(new, y.dtype)

    _rebind(x, "x += y", updated)
    return x


def _rebind(x: Tensor, statement: str, change: Callable[[Tensor], Tensor]) -> None:
    """Make the handle `x` what `change` makes of its value."""
    if not x.is_leaf:
        x.become(change(x))
        return
    name = f"the leaf {x.name!r}" if x.name else "a leaf"
    if is_recording():
        raise GradientError(
            f"{statement} on {name} that requires grad, {describe(x)}, at {user_line()}: its gradient would be lost\n"
            "  write it under gpuad.no_grad(), or assign to a copy, x = x + 0"
        )
    new = change(Tensor(x.data))
    if new.trace is not None:
        raise GradientError(
            f"{statement} on {name} with a value inside {new.trace.kind}(), at {user_line()}\n"
            "  assign what the transformation returns, or detach() the value"
        )
    x.data = new.data


def _assigned(x: Tensor, key: Any, value: Any) -> Tensor:
    found = read_key(x, key)
    v = _fitting(x, value)
    if not found.picked:
        return _put_window(x, found, v)
    seen = found.through(x)
    new = _put_masked(seen, found, v)
    if new is None:
        new = _put_picked(merge(seen, found), v)
    if found.whole:
        return new
    result: Tensor = _put(x, new, key=found.window)
    return result


def _fitting(x: Tensor, value: Any) -> Value:
    """`value` as a Python scalar, or as a tensor of the dtype of `x` without leading axes of length 1."""
    if type(value) in WEAK:
        if type(value) is float and not is_float(x.dtype):
            raise DTypeError(f"cannot assign {value} to {describe(x)}; cast it with int() or the tensor with .to()")
        if x.dtype == bool_:
            return bool(value)
        if type(value) is int and x.dtype.kind in "iu":
            info = np.iinfo(x.dtype.name)
            if not info.min <= value <= info.max:
                raise DTypeError(f"cannot assign {value} to {describe(x)}: it does not fit")
        scalar: Scalar = value
        return scalar
    v = value if isinstance(value, Tensor) else asarray(value, device=x.device)
    if is_float(v.dtype) and not is_float(x.dtype):
        raise DTypeError(f"cannot assign {describe(v)} to {describe(x)}; cast it with .to({x.dtype})")
    extra = 0
    while extra < v.ndim and v.shape[extra] == 1:
        extra += 1
    return reshape(astype(v, x.dtype), v.shape[extra:])


def _spread(v: Value, shape: Shape) -> Value:
    """`v` as a part of `shape` that is assigned; a scalar as it is."""
    if not isinstance(v, Tensor) or v.shape == shape:
        return v
    padded = (1,) * (len(shape) - v.ndim) + v.shape
    if len(padded) != len(shape) or any(a not in (1, b) for a, b in zip(padded, shape, strict=True)):
        raise ShapeError(f"cannot assign {describe(v)} to a part of shape {shape} at {user_line()}")
    return broadcast_to(v, shape)


def _put_window(x: Tensor, key: Key, v: Value) -> Tensor:
    part = window(Tensor(x.array), key=key.window) if not key.whole else x
    v = _spread(v, part.shape)
    if not key.whole:
        result: Tensor = _put(x, v, key=key.window)
        return result
    if isinstance(v, Tensor):
        result = place(v, key=(...,), shape=x.shape, fill=0)
        return result
    return full(x.shape, v, dtype=x.dtype, device=x.device)


def _put_masked(seen: Tensor, key: Key, v: Value) -> Tensor | None:
    """The window `seen` with `v` where the one mask of `key` is true; None if `v` has an element for each place."""
    (first, *others) = key.picked
    mask = first.array
    if others or mask.dtype != bool_ or key.at != first.axis:
        return None
    behind = seen.ndim - first.axis - first.span  # axes of the window after the mask's
    if isinstance(v, Tensor):
        if v.ndim > behind:
            if v.shape[v.ndim - behind - 1] != 1:
                return None
            v = reshape(v, (*v.shape[: v.ndim - behind - 1], *(1,) * first.span, *v.shape[v.ndim - behind :]))
        _spread(v, (*seen.shape[: first.axis], *(1,) * first.span, *seen.shape[first.axis + first.span :]))
    return where(reshape(mask, (*mask.shape, *(1,) * behind)), v, seen) if seen.size else seen


def _put_picked(merged: Merged, v: Value) -> Tensor:
    """The window with `v` at the index of `merged`."""
    x, at, index = merged.x, merged.at, merged.index
    behind = x.ndim - at - 1
    v = _spread(v, merged.picked_shape)
    if not index.size or not x.size:
        return merged.restore(x)
    written, source = _sources(index, length=x.shape[at])
    if isinstance(v, Tensor):
        rows = reshape(v, (*x.shape[:at], index.size, *x.shape[at + 1 :]))
        v = gather(rows, source, axis=at)
    return merged.restore(where(reshape(written, (-1, *(1,) * behind)), v, x))


# --- is there a name? -------------------------------------------------------------------------
# `x[0][1] = v` rebinds a handle that only the running statement refers to: what it assigns is lost.

_STORES = {opcode.opmap[name] for name in ("STORE_SUBSCR", "STORE_SLICE") if name in opcode.opmap}
_counts: list[int] = []  # references to an object in an assignment, without and with a name


class _Probe:
    def __setitem__(self, key: Any, value: Any) -> None:
        _count(self, key, value)


def _count(x: _Probe, key: Any, value: Any) -> None:
    _counts.append(sys.getrefcount(x))


def _probe() -> int:
    """How many references a tensor without a name has in `assign`; 0 where that does not tell it from one with."""
    _Probe()[0] = 0
    named = _Probe()
    named[0] = 0
    without, with_name = _counts
    return without if without < with_name else 0


def _is_statement(frame: FrameType) -> bool:
    """Is `frame` that of `Tensor.__setitem__`, run by an assignment rather than by a call?"""
    caller = frame.f_back
    if frame.f_code is not Tensor.__setitem__.__code__ or caller is None:
        return False
    return caller.f_code.co_code[caller.f_lasti] in _STORES


_UNNAMED = _probe()

__all__: list[str] = []
