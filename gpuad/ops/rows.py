"""What looks at rows (the last axis) as a whole: softmax and its losses, normalizations.

Each has derivative rules of its own, so that forward and backward are one kernel each and the tape keeps little.
Half types are computed in float32 and rounded at the end.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..array import Shape, describe
from ..convert import as_operand
from ..dtype import INTEGERS, DType, compute_dtype, float32, is_float, result_dtype
from ..errors import DataError, DTypeError, IndexRangeError, ShapeError
from ..fuse.plan import realize
from ..op import Composite, Elementwise, Opaque
from ..provenance import describe as describe_site
from ..provenance import here
from ..tensor import Tensor
from .activations import rsqrt
from .compare import where
from .create import arange
from .elementwise import exp, log
from .reduce import max, mean, sum
from .shape import astype, moveaxis, normalize_axis, reshape, same


def floating(x: Any) -> Tensor:
    """`x` as a tensor of floats."""
    x = as_operand(x)
    return x if is_float(x.dtype) else astype(x, float32)


def wide(x: Tensor) -> Tensor:
    """`x` in the dtype it is computed in."""
    return astype(x, compute_dtype(x.dtype))


def row_sum(x: Tensor) -> Tensor:
    """The sum of each row, kept as an axis of length 1."""
    return sum(x, axis=-1, keepdims=True)


def row_mean(x: Tensor) -> Tensor:
    """The mean of each row, kept as an axis of length 1."""
    return mean(x, axis=-1, keepdims=True)


# --- softmax ----------------------------------------------------------------------------------


def _softmax_forward(x: Tensor) -> Tensor:
    full = wide(x)
    e = exp(full - max(full, axis=-1, keepdims=True))
    return astype(e / row_sum(e), x.dtype)


def through_softmax(t: Tensor, y: Tensor) -> Tensor:
    """The Jacobian of softmax, which is symmetric, times `t`, in the dtype it is computed in."""
    t, y = wide(t), wide(y)
    return y * (t - row_sum(t * y))


def _softmax_rule(t: Tensor, y: Tensor) -> Tensor:
    return astype(through_softmax(t, y), y.dtype)


_softmax = Composite("softmax", "x", forward=_softmax_forward, vjp=(_softmax_rule,), jvp=(_softmax_rule,))


def _log_softmax_forward(x: Tensor) -> Tensor:
    full = wide(x)
    z = full - max(full, axis=-1, keepdims=True)
    return astype(z - log(row_sum(exp(z))), x.dtype)


_log_softmax = Composite(
    "log_softmax",
    "x",
    forward=_log_softmax_forward,
    vjp=(lambda g, y: astype(wide(g) - exp(wide(y)) * row_sum(wide(g)), y.dtype),),
    jvp=(lambda t, y: astype(wide(t) - row_sum(exp(wide(y)) * wide(t)), y.dtype),),
)


def softmax(x: Any, /, *, axis: int = -1) -> Tensor:
    """exp(x), divided by its sum along `axis`.  A row of -inf alone is nan."""
    return _along(_softmax, floating(x), axis)


def log_softmax(x: Any, /, *, axis: int = -1) -> Tensor:
    """The logarithm of softmax, which does not underflow."""
    return _along(_log_softmax, floating(x), axis)


def _along(op: Composite, x: Tensor, axis: int) -> Tensor:
    """`op`, which works along the last axis, along `axis`."""
    k = normalize_axis(axis, x, op.name)
    if x.size == 0:
        return same(x)
    if k == x.ndim - 1:
        result: Tensor = op(x)
        return result
    return moveaxis(op(moveaxis(x, k, -1)), -1, k)


# --- cross entropy ----------------------------------------------------------------------------


class _OneHot(Elementwise):
    """`value` in the column `target`, 0 in the others; `column` numbers them."""

    def __init__(self) -> None:
        super().__init__(
            "one_hot",
            ("column", "target", "value"),
            numpy=_one_hot_into,
            cuda="column == target ? value : T(0)",
            diff=(None, None, lambda t, column, target: _one_hot(column, target, t)),
        )

    def _sign(self, operands: tuple[DType | type, ...]) -> tuple[tuple[DType, ...], DType]:
        column, target, value = (result_dtype((operand,)) for operand in operands)
        return (column, target, value), value


def _one_hot_into(column: Any, target: Any, value: Any, out: Any) -> None:
    out.fill(0)
    rows, columns = out.shape
    if target.shape != (rows, 1) or column.size != columns:
        np.copyto(out, value, where=np.equal(column, target))
        return
    place = target[:, 0] - column.reshape(-1)[0]  # columns are consecutive: no need to look at each
    (row,) = ((place >= 0) & (place < columns)).nonzero()
    if row.size < rows:
        place = place[row]
    out[row, place] = value if value.ndim == 0 else value[row, place if value.shape[1] == columns else 0]


_one_hot = _OneHot()


def _pick_forward(xp: Any, x: Any, target: Any, ignored: int) -> Any:
    flat = target.reshape(-1)
    if not 0 <= ignored < x.shape[-1]:
        flat = xp.where(flat == ignored, 0, flat)
    return x.reshape(flat.size, x.shape[-1])[xp.arange(flat.size), flat].reshape(target.shape)


_pick: Opaque = Opaque(
    "pick",
    ("x", "target"),
    infer=lambda x, target, ignored: (target.shape, x.dtype),
    forward=_pick_forward,
    vjp=(lambda g, target, like: _one_hot(_columns(g, like[0][0]), target, g), None),
    jvp=(lambda t, target, ignored: _pick(t, target, ignored=ignored), None),
    params=("ignored",),
    doc="The element of each row of `x` that `target` names; any element where it names the ignored one.",
)


def _columns(like: Tensor, shape: Shape) -> Tensor:
    return arange(shape[-1], dtype=np.int32, device=like.device)


def _losses_forward(x: Tensor, target: Tensor, ignored: int, smoothing: float) -> tuple[Tensor, Tensor, Tensor]:
    full = wide(x)
    top = max(full, axis=-1, keepdims=True)
    z = full - top
    total = row_sum(exp(z))
    wanted = astype(_pick(x, target, ignored=ignored), full.dtype) - top
    if smoothing:
        wanted = (1.0 - smoothing) * wanted + smoothing * row_mean(z)
    return where(target == ignored, 0.0, log(total) - wanted), top, total


def _losses_pull(
    g: list[Tensor | None], x: Tensor, target: Tensor, top: Tensor, total: Tensor, ignored: int, smoothing: float
) -> Tensor | None:
    of_loss, _, of_total = g
    e = exp(wide(x) - top)
    if of_loss is None:
        return None if of_total is None else astype(e * of_total, x.dtype)
    of_loss = where(target == ignored, 0.0, of_loss)
    factor = of_loss / total if of_total is None else of_loss / total + of_total
    pulled = e * factor - _one_hot(_columns(x, x.shape), target, (1.0 - smoothing) * of_loss if smoothing else of_loss)
    if smoothing:
        pulled = pulled - of_loss * (smoothing / x.shape[-1])
    return astype(pulled, x.dtype)


def _losses_push(
    t: Tensor, x: Tensor, target: Tensor, top: Tensor, total: Tensor, ignored: int, smoothing: float
) -> list[Tensor | None]:
    t = wide(t)
    of_total = row_sum(exp(wide(x) - top) * t)
    wanted: Tensor = _pick(t, target, ignored=ignored)
    if smoothing:
        wanted = (1.0 - smoothing) * wanted + smoothing * row_mean(t)
    return [where(target == ignored, 0.0, of_total / total - wanted), None, of_total]


# The loss of each row; its largest logit, a constant; and the sum of exp(x - top), which the rules use again.
_losses = Composite(
    "cross_entropy",
    ("x", "target"),
    outputs=("loss", "top", "total"),
    forward=_losses_forward,
    vjp=(_losses_pull, None),
    jvp=(_losses_push, None),
    params=("ignored", "smoothing"),
)
_losses.differentiable[1] = False


def cross_entropy(
    logits: Any,
    targets: Any,
    /,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """The negative logarithm of the probability that softmax(logits) gives to `targets`.

    `logits` are float32[..., classes], `targets` integers of the shape without the last axis.  Targets equal to
    `ignore_index` count for nothing: "mean" is over the others (nan if there are none); "sum" and "none" are the other
    reductions.  `label_smoothing` is the part of each target that is spread evenly over all classes.
    """
    logits, targets = floating(logits), as_operand(targets)
    if targets.dtype not in INTEGERS:
        raise DTypeError(
            f"cross_entropy() needs integer targets, got {describe(targets)}; "
            + ("use argmax(targets, axis=-1)" if targets.shape == logits.shape else "cast them with .to(gpuad.int64)")
        )
    if logits.ndim == 0 or targets.shape != logits.shape[:-1]:
        raise ShapeError(
            f"cross_entropy() got logits {describe(logits)} and targets {describe(targets)}\n"
            "  the classes are the last axis of the logits; targets have all axes but that one"
        )
    if reduction not in ("mean", "sum", "none"):
        raise DataError(f'cross_entropy() knows the reductions "mean", "sum" and "none", not {reduction!r}')
    if not 0.0 <= label_smoothing <= 1.0:
        raise DataError(f"cross_entropy() needs a label_smoothing from 0 to 1, got {label_smoothing}")
    classes, line = logits.shape[-1], describe_site(here(2))
    targets.device.check_range(
        realize(targets.array),
        0,
        classes - 1,
        lambda found: IndexRangeError(
            f"cross_entropy() at {line} got the target {found} for {classes} classes\n"
            f"  targets go from 0 to {classes - 1}, or are ignore_index, {ignore_index}"
        ),
        ignored=ignore_index,
    )
    column = reshape(targets, (*targets.shape, 1))
    loss, _, _ = _losses(logits, column, ignored=ignore_index, smoothing=float(label_smoothing))
    if reduction == "none":
        return astype(reshape(loss, targets.shape), logits.dtype)
    loss = sum(loss)
    if reduction == "mean":
        loss = loss / astype(sum(targets != ignore_index), loss.dtype)
    return astype(loss, logits.dtype)


# --- normalization ----------------------------------------------------------------------------


def _normalize_forward(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    full = wide(x)
    center = row_mean(full)
    d = full - center
    scale = rsqrt(row_mean(d * d) + eps)
    return d * scale, center, scale


def _normalize_pull(g: list[Tensor | None], y: Tensor, scale: Tensor, like: Any) -> Tensor:
    pulled = _scaled_pull(g[0], g[2], y, scale, centered=True)
    return astype(pulled if g[1] is None else pulled + g[1] * (1 / y.shape[-1]), like[0][1])


def _normalize_push(t: Tensor, y: Tensor, scale: Tensor) -> list[Tensor]:
    t = astype(t, y.dtype)
    center = row_mean(t)
    slope = row_mean(y * t)
    return [scale * (t - center - y * slope), center, -(scale * scale) * slope]


def _rms_forward(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    full = wide(x)
    scale = rsqrt(row_mean(full * full) + eps)
    return full * scale, scale


def _rms_push(t: Tensor, y: Tensor, scale: Tensor) -> list[Tensor]:
    t = astype(t, y.dtype)
    slope = row_mean(y * t)
    return [scale * (t - y * slope), -(scale * scale) * slope]


def _scaled_pull(g: Tensor | None, of_scale: Tensor | None, y: Tensor, scale: Tensor, *, centered: bool) -> Tensor:
    """The cotangent of x from those of y, which is x (less its mean, if `centered`) times `scale`, and of `scale`."""
    if g is None:
        return y * (0.0 if of_scale is None else of_scale * (scale * scale) * (-1 / y.shape[-1]))
    slope = row_mean(g * y)
    if of_scale is not None:
        slope = slope + of_scale * scale * (1 / y.shape[-1])
    return scale * ((g - row_mean(g) if centered else g) - y * slope)


# y = (x - center) * scale of each row, in the dtype it is computed in.  The tape keeps y as an expression of x and of
# center and scale, one value a row each; the rule asks for center for that alone.
_normalize = Composite(
    "layer_norm",
    "x",
    outputs=("y", "center", "scale"),
    forward=_normalize_forward,
    vjp=(_normalize_pull,),
    jvp=(_normalize_push,),
    params=("eps",),
)
_rms = Composite(
    "rms_norm",
    "x",
    outputs=("y", "scale"),
    forward=_rms_forward,
    vjp=(lambda g, y, scale, like: astype(_scaled_pull(g[0], g[1], y, scale, centered=False), like[0][1]),),
    jvp=(_rms_push,),
    params=("eps",),
)


def layer_norm(x: Any, weight: Any = None, bias: Any = None, /, *, eps: float = 1e-5) -> Tensor:
    """Each row (last axis) of `x` with mean 0 and variance 1, then times `weight` plus `bias`, both [features].

    The variance is that of the row itself, plus `eps`.
    """
    x, weight, bias = _row_operands("layer_norm", x, weight, bias)
    y, _, _ = _normalize(x, eps=float(eps))
    return _affine(y, x, weight, bias)


def rms_norm(x: Any, weight: Any = None, /, *, eps: float = 1e-6) -> Tensor:
    """Each row (last axis) of `x` with mean square 1, then times `weight`, [features]."""
    x, weight, _ = _row_operands("rms_norm", x, weight, None)
    y, _ = _rms(x, eps=float(eps))
    return _affine(y, x, weight, None)


def _row_operands(name: str, x: Any, weight: Any, bias: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
    x = floating(x)
    if x.ndim == 0:
        raise ShapeError(f"{name}() works along the last axis, and {describe(x)} has none")
    found = []
    for what, v in (("weight", weight), ("bias", bias)):
        found.append(None if v is None else as_operand(v))
        if v is not None and found[-1].shape != x.shape[-1:]:  # type: ignore[union-attr]  # a tensor, as v is
            raise ShapeError(f"{name}() of {describe(x)} needs a {what} of shape [{x.shape[-1]}], got {describe(v)}")
    return x, found[0], found[1]


def _affine(y: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """`y * weight + bias`, rounded to the dtype that the operands make together."""
    if weight is not None:
        y = y * weight
    if bias is not None:
        y = y + bias
    return astype(y, result_dtype(tuple(v.dtype for v in (x, weight, bias) if v is not None)))


__all__ = ["cross_entropy", "layer_norm", "log_softmax", "rms_norm", "softmax"]
