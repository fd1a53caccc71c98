"""Attention as one op, where a device has a kernel that never stores the matrix of all weights.

`attend(q, k, v, ...)` takes them apart, `attend_packed(qkv, ...)` side by side as one projection leaves them.  Their
reference composition is `composed`: it serves forward mode and derivatives of derivatives.
"""

from __future__ import annotations

import functools
import math
from functools import partial
from typing import Any

import numpy as np

from .. import random
from ..array import Array, describe
from ..attribution import ledgers, ran
from ..convert import as_operand
from ..devices.words import as_words
from ..dtype import WEAK, DType, bool_, compute_dtype, is_float
from ..errors import DTypeError, ShapeError
from ..fuse.plan import realize_all
from ..op import Composite, Opaque, Source
from ..op.base import same_device
from ..provenance import Site, here
from ..tensor import Tensor
from .compare import maximum, where
from .elementwise import exp
from .join import stack, unstack
from .linalg import matmul, matrix_transpose
from .nn import dropout
from .reduce import max as row_max
from .rows import floating, row_sum, through_softmax, wide
from .shape import astype, broadcast_to, permute_dims, sum_to

# --- the weights, as an op ----------------------------------------------------------------------

SMALL = 256  # queries and keys up to which the whole triangle is kept as a table


@functools.lru_cache(maxsize=8)  # up to 256 KiB each, in float32
def _triangle(rows: int, columns: int, dtype: DType) -> Any:
    return np.where(np.tri(rows, columns, dtype=np.bool_), 0, -np.inf).astype(dtype)


def _causal_into(params: tuple[Any, ...], start: int, out: Any) -> None:
    rows, columns = params
    if out.ndim == 2 and out.shape[1] == columns and start % columns == 0:
        row = np.arange(start // columns, start // columns + out.shape[0]) % rows
        if max(rows, columns) <= SMALL:
            _triangle(rows, columns, out.dtype).take(row, 0, out, "clip")
        else:
            out.fill(0)
            for line, first in zip(out, (row + 1).tolist(), strict=True):
                line[first:] = -np.inf
    else:
        place = np.arange(start, start + out.size)
        np.copyto(out, np.where(place % columns <= place // columns % rows, 0, -np.inf).reshape(out.shape))


# 0 where the column is at most the row, else -inf.
_causal = Source("causal", numpy=_causal_into, cuda="column <= row % a ? T(0) : T(-INFINITY)", cost=2)


def _weights_forward(scores: Tensor, mask: Any, scale: float, causal: bool) -> Tensor:
    x = wide(scores)
    if scale != 1.0:
        x = x * scale
    masked = type(mask) not in WEAK
    if masked:
        x = where(mask, x, -math.inf) if mask.dtype == bool_ else x + mask
    if causal:
        x = x + Tensor(_causal.make(x.shape, x.dtype, x.device, x.shape[-2:], here()))
    top = row_max(x, axis=-1, keepdims=True)
    if masked:  # where all is -inf, so that exp gives 0 instead of nan
        top = maximum(top, float(np.finfo(x.dtype).min))  # type: ignore[type-var]  # float32 or float64
    e = exp(x - top)
    total = row_sum(e)
    return astype(e / (maximum(total, 0.5) if masked else total), scores.dtype)  # a total is at least 1, or 0


# softmax(scores * scale + mask) along the last axis, and 0 in rows where nothing takes part.  A mask that is the number
# 0 is none; where a mask hides something y is 0, so the rules need not see it.
_weights = Composite(
    "attention_weights",
    ("scores", "mask"),
    forward=_weights_forward,
    vjp=(
        lambda g, y, like, scale: astype(through_softmax(g, y) * scale, like[0][1]),
        lambda g, y, like: astype(sum_to(through_softmax(g, y), like[1][0]), like[1][1]),
    ),
    jvp=(
        lambda t, y, scale: astype(through_softmax(wide(t) * scale, y), y.dtype),
        lambda t, y: astype(through_softmax(broadcast_to(wide(t), y.shape), y), y.dtype),
    ),
    params=("scale", "causal"),
)


# --- the whole, as an op ------------------------------------------------------------------------


def composed(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Tensor:
    """softmax(q kᵀ scale) v by products of matrices."""
    return matmul(_weights_of(q, k, causal, scale), v)


def _weights_of(q: Tensor, k: Tensor, causal: bool, scale: float) -> Tensor:
    w: Tensor = _weights(matmul(q, matrix_transpose(k)), 0.0, scale=scale, causal=causal)
    return w


def _parts(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v, [batch, heads, positions, features], of [batch, positions, 3, heads, features]."""
    q, k, v = unstack(permute_dims(qkv, (2, 0, 3, 1, 4)))
    return q, k, v


def _views(data: Any) -> list[Any]:
    """The same of an array of the device's library."""
    return [data[:, :, part].transpose(0, 2, 1, 3) for part in range(3)]


def _turned(device: Any, q: Any, v: Any, site: Site | None) -> Array:
    """A new array [batch, heads, queries, values] whose memory goes by positions, then heads, then features."""
    batch, heads, queries, _ = q.shape
    y = device.allocate((batch, queries, heads, v.shape[3]), q.dtype, site=site)
    return device.view(y, y.data.transpose(0, 2, 1, 3), site)  # type: ignore[no-any-return]


def _whole_features(device: Any, x: Any) -> Any:
    """`x`, or a copy of it whose features are contiguous."""
    if x.strides[3] == x.itemsize:
        return x
    copy = device.allocate(x.shape, x.dtype, "workspace")
    if device.computes:
        with device.using():
            device.perform(_copy_words, [x], [copy.data], "copy")
    return copy.data


def _copy_words(x: Any, out: Any) -> None:
    as_words(out)[...] = as_words(x)


class _Attention(Opaque):
    """y and the logarithm of each query's sum of weights, from q, k, v or from all three side by side."""

    def __init__(self, name: str, inputs: tuple[str, ...]) -> None:
        super().__init__(name, inputs, outputs=("y", "lse"), infer=self._shapes, params=("causal", "scale"))
        self.packed = len(inputs) == 1
        self.differentiable[1] = False

    def _shapes(self, *arrays: Any, **_: Any) -> Any:
        q, _k, v = _views(arrays[0]) if self.packed else arrays
        return [((*q.shape[:3], v.shape[3]), q.dtype), (q.shape[:3], compute_dtype(q.dtype))]

    def evaluate(self, arrays: list[Any], params: dict[str, Any], site: Site | None) -> Any:
        device: Any = same_device(self.name, arrays)
        realize_all(arrays)
        q, k, v = _views(arrays[0].data) if self.packed else [_whole_features(device, a.data) for a in arrays]
        y, lse = _turned(device, q, v, site), device.allocate(q.shape[:3], compute_dtype(q.dtype), site=site)
        if ledgers:
            ran(self, [q, k, v], params)
        with device.lock, device.using():
            kernel = partial(device.attention(q, k, v).forward, **params)
            device.perform(kernel, [q, k, v], [y.data, lse.data], (self.name, params), site)
        return y, lse

    def plan(self, traced: tuple[bool, ...]) -> tuple[int, ...] | None:
        return tuple(range(len(self.inputs) + 2)) if any(traced) else None

    def pull(self, g: Any, frame: list[Any], traced: Any) -> list[Any]:
        n = len(self.inputs)
        if g[0] is None:
            return [None] * n
        inputs, (y, lse, _, causal, scale) = frame[:n], frame[n:]
        found = _backward[self.packed](*inputs, y, lse, g[0], causal=causal, scale=scale)
        parts = found if type(found) is tuple else (found,)
        return [part if t else None for part, t in zip(parts, traced, strict=True)]

    def push(self, tangents: list[Any], frame: list[Any]) -> Any:
        inputs, (_, _, _, causal, scale) = frame[: len(self.inputs)], frame[len(self.inputs) :]
        if self.packed:
            tangents, inputs = list(_parts(tangents[0])), list(_parts(inputs[0]))
        (tq, tk, tv), (q, k, v) = tangents, inputs
        w = _weights_of(q, k, causal, scale)
        of_scores = [matmul(tq, matrix_transpose(k))] if tq is not None else []
        of_scores += [matmul(q, matrix_transpose(tk))] if tk is not None else []
        terms = [matmul(through_softmax(t * scale, w), v) for t in of_scores]
        terms += [matmul(w, tv)] if tv is not None else []
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return [total, None]


class _Backward(Opaque):
    """The cotangents of q, k and v from that of y: by the kernel, or by the composition where they are traced again."""

    def __init__(self, name: str, inputs: tuple[str, ...]) -> None:
        outputs = tuple(f"d{x}" for x in inputs)
        super().__init__(
            name, (*inputs, "y", "lse", "g"), outputs=outputs, infer=self._shapes, params=("causal", "scale")
        )
        self.packed = len(inputs) == 1

    def __call__(self, *args: Any, **params: Any) -> Any:
        if any(x.trace is not None or x.link is not None for x in args):
            return self._composed(*args, **params)
        return super().__call__(*args, **params)

    def _shapes(self, *arrays: Any, **_: Any) -> Any:
        return [(x.shape, x.dtype) for x in arrays[: len(self.outputs)]]

    def _composed(self, *args: Any, causal: bool, scale: float) -> Any:
        (q, k, v), g = _parts(args[0]) if self.packed else args[:3], args[-1]
        w = _weights_of(q, k, causal, scale)
        of_scores = through_softmax(matmul(g, matrix_transpose(v)), w) * scale
        found = matmul(of_scores, k), matmul(matrix_transpose(of_scores), q), matmul(matrix_transpose(w), g)
        return permute_dims(stack(found), (1, 3, 0, 2, 4)) if self.packed else found

    def evaluate(self, arrays: list[Any], params: dict[str, Any], site: Site | None) -> Any:
        device: Any = same_device(self.name, arrays)
        realize_all(arrays)
        *inputs, y, lse, g = [a.data for a in arrays]
        g = _whole_features(device, g)
        if self.packed:
            q, k, v = _views(inputs[0])
            whole = device.allocate(inputs[0].shape, inputs[0].dtype, site=site)
            found: Any = whole
            dq, dk, dv = _views(whole.data)
        else:
            q, k, v = [_whole_features(device, x) for x in inputs]
            found = tuple([_turned(device, x, x, site) for x in (q, k, v)])
            dq, dk, dv = [x.data for x in found]
        if ledgers:
            ran(self, [q, k, v], params)
        with device.lock, device.using():
            kernel = partial(device.attention(q, k, v).backward, **params)
            device.perform(kernel, [q, k, v, y, lse, g], [dq, dk, dv], (self.name, params), site)
        return found


_attention = _Attention("attention", ("q", "k", "v"))
_packed = _Attention("attention", ("qkv",))
_backward = (
    _Backward("attention_backward", ("q", "k", "v")),
    _Backward("attention_backward", ("qkv",)),
)


def attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float) -> Tensor | None:
    """softmax(q kᵀ scale) v by the device's kernel; None where it has none for these."""
    if q.device.attention(q, k, v) is None:
        return None
    y: Tensor = _attention(q, k, v, causal=causal, scale=scale)[0]
    return y


def attend_packed(qkv: Tensor, *, causal: bool, scale: float) -> Tensor | None:
    """The same for [batch, positions, 3, heads, features]; the result is [batch, heads, positions, features]."""
    batch, length, three, heads, features = qkv.shape
    assert three == 3, describe(qkv)
    if qkv.device.attention(*[_Shape((batch, heads, length, features), qkv.dtype)] * 3) is None:
        return None
    y: Tensor = _packed(qkv, causal=causal, scale=scale)[0]
    return y


class _Shape:
    """What `Device.attention` asks about."""

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        self.shape, self.dtype = shape, dtype


# --- public -------------------------------------------------------------------------------------


def scaled_dot_product_attention(
    q: Any,
    k: Any,
    v: Any,
    /,
    *,
    mask: Any = None,
    causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
    generator: random.Generator | None = None,
) -> Tensor:
    """softmax(q kᵀ scale) v: for each query the mean of the values, weighted by how well their keys fit.

    `q` is [..., queries, features], `k` [..., keys, features], `v` [..., keys, values]; `scale` is 1 / sqrt(features)
    unless given.  `mask` broadcasts to [..., queries, keys]: bools, true where a key takes part, or floats that are
    added to the scaled scores.  `causal` lets query i see keys 0 to i.  A query that may see no key gets zeros (PyTorch
    gives nan there).  Weights are dropped with probability `dropout_p`.
    """
    q, k, v = floating(q), floating(k), floating(v)
    if q.ndim < 2 or k.ndim < 2 or v.ndim < 2 or q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
        raise ShapeError(
            f"scaled_dot_product_attention() got q {describe(q)}, k {describe(k)}, v {describe(v)}\n"
            "  q and k must agree in the last axis, k and v in the one before"
        )
    factor = 1.0 / math.sqrt(max(1, q.shape[-1])) if scale is None else float(scale)
    if mask is None and not dropout_p:
        y = attend(q, k, v, causal=causal, scale=factor)
        if y is not None:
            return y
    scores = matmul(q, matrix_transpose(k))
    if mask is None:
        weights = _weights(scores, 0.0, scale=factor, causal=causal)
    else:
        weights = _weights(scores, _mask(mask, scores), scale=factor, causal=causal)
    return matmul(dropout(weights, dropout_p, generator=generator), v)


def _mask(mask: Any, scores: Tensor) -> Tensor:
    """`mask` as a tensor that broadcasts to `scores`."""
    given = as_operand(mask)
    if given.dtype != bool_ and not is_float(given.dtype):
        raise DTypeError(
            f"scaled_dot_product_attention() got the mask {describe(given)}\n"
            "  bools say which keys take part; floats are added to the scores"
        )
    padded = (1,) * (scores.ndim - given.ndim) + given.shape
    if len(padded) != scores.ndim or any(a not in (1, b) for a, b in zip(padded, scores.shape, strict=True)):
        raise ShapeError(
            f"scaled_dot_product_attention() cannot broadcast the mask {describe(given)} to {list(scores.shape)}"
        )
    return given


__all__ = ["scaled_dot_product_attention"]
