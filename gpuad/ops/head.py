"""A product of matrices and its cross entropy as one op, for so many classes that all logits would not fit.

A chunk of rows at a time becomes logits and losses and, where a derivative follows, at once the gradient of these
logits, and from it the chunk's part of the gradients of rows and weight.  So no logit is computed twice, and those of
one chunk are all that is ever held.  The backward pass only multiplies by the cotangent.

Reference composition: cross_entropy(linear(x, weight), targets).
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from ..array import Array, describe
from ..attribution import ledgers, ran
from ..convert import as_operand
from ..devices.words import as_words
from ..dtype import INTEGERS, DType, compute_dtype, int32, int64, result_dtype
from ..errors import DataError, DTypeError, IndexRangeError, ShapeError
from ..fuse.plan import realize, realize_all
from ..op import Opaque
from ..op.base import same_device
from ..provenance import Site, blame, here
from ..provenance import describe as describe_site
from ..tensor import Tensor
from .create import ones_like, zeros_like
from .linalg import linear, matmul, matrix_transpose
from .reduce import sum
from .rows import _losses, _losses_pull, floating, wide
from .shape import astype, reshape, same, window

CHUNK_BYTES = 64 << 20  # of logits at once
FEWEST_ROWS = 64  # of a chunk, so that products stay worthwhile


def rows_at_once(classes: int, dtype: DType) -> int:
    """The rows of a chunk unless the caller chooses."""
    return max(FEWEST_ROWS, CHUNK_BYTES // max(1, classes * dtype.itemsize))


# --- the op -------------------------------------------------------------------------------------


def _loss_and_gradient(
    x: Tensor, weight: Tensor, targets: Tensor, ignored: int, smoothing: float
) -> tuple[Tensor, Tensor]:
    """The loss of each row, [rows, 1], and the gradient of their sum with respect to the logits, [rows, classes]."""
    logits, column, (loss, top, total) = _logits_and_loss(x, weight, targets, ignored, smoothing)
    gradient = _losses_pull([ones_like(loss), None, None], logits, column, top, total, ignored, smoothing)
    assert gradient is not None
    return loss, gradient


def _logits_and_loss(x: Tensor, weight: Tensor, targets: Tensor, ignored: int, smoothing: float) -> tuple[Any, ...]:
    """The logits, the targets as a column, and what cross entropy keeps of each row, its loss first."""
    logits, column = linear(x, weight), reshape(targets, (targets.size, 1))
    return logits, column, _losses(logits, column, ignored=ignored, smoothing=smoothing)


def _by_chunks(
    device: Any, arrays: list[Array], results: list[Array], ignored: int, smoothing: float, chunk: int
) -> None:
    """Write the losses and, where they have elements, the gradients of x and weight, by ordinary ops on each chunk."""
    x, weight, targets = [Tensor(a) for a in arrays]
    x, weight = wide(x), wide(weight)  # once, not in each product
    losses, dx, dweight = results
    total: Tensor | None = None
    for start in range(0, x.shape[0], chunk):
        rows = slice(start, start + chunk)
        part, aims = window(x, key=(rows,)), window(targets, key=(rows,))
        if dx.size or dweight.size:
            loss, gradient = _loss_and_gradient(part, weight, aims, ignored, smoothing)
            realize_all([loss.array, gradient.array])  # one kernel
            if dx.size:
                _write(device, dx, rows, astype(matmul(gradient, weight), dx.dtype))
            if dweight.size:
                added = matmul(matrix_transpose(gradient), part)
                total = added if total is None else total + added
                realize(total.array)
                del added
            del gradient  # its memory is the next chunk's
        else:
            loss = _logits_and_loss(part, weight, aims, ignored, smoothing)[2][0]
        _write(device, losses, rows, reshape(loss, aims.shape))
    if dweight.size:
        _write(device, dweight, slice(None), zeros_like(Tensor(dweight)) if total is None else total)


def _write(device: Any, place: Array, rows: slice, values: Tensor) -> None:
    """Put `values` in `rows` of the memory `place`, which nobody else has seen yet."""
    found = realize(values.array).data
    if device.computes:
        with device.using():
            device.perform(_put, [found], [place.data[rows]], "put")


def _put(x: Any, out: Any) -> None:
    as_words(out)[...] = as_words(x)


class _Head(Opaque):
    """The sum of the losses; and the gradients of x and weight, of which those that nobody asked for have no rows."""

    besides = ("of_x", "of_weight")

    def __init__(self) -> None:
        super().__init__(
            "linear_cross_entropy",
            ("x", "weight", "targets"),
            outputs=("loss", "dx", "dweight"),
            infer=self._shapes,
            params=("ignored", "smoothing", "chunk", "of_x", "of_weight"),
        )
        self.differentiable = [True, False, False]

    def _shapes(self, x: Any, weight: Any, targets: Any, *, of_x: bool, of_weight: bool, **_: Any) -> Any:
        (rows, features), classes, full = x.shape, weight.shape[0], compute_dtype(x.dtype)
        return [
            ((), full),
            ((rows if of_x else 0, features), x.dtype),
            ((classes if of_weight else 0, features), full),  # as it is added up
        ]

    def evaluate(self, arrays: list[Any], params: dict[str, Any], site: Site | None) -> Any:
        device: Any = same_device(self.name, arrays)
        realize_all(arrays)
        x, weight, targets = arrays
        (_, full), *gradients = self.infer(arrays, params)
        losses = device.allocate((x.shape[0],), full, "workspace", site=site)
        dx, dweight = [device.allocate(shape, dtype, site=site) for shape, dtype in gradients]
        ignored, smoothing, chunk = params["ignored"], params["smoothing"], params["chunk"]
        with blame(site):
            kernel = device.head(x, weight)
            if kernel is None:
                _by_chunks(device, arrays, [losses, dx, dweight], ignored, smoothing, chunk)
            else:
                room = min(chunk, max(1, x.shape[0])), kernel.pitch(weight.shape[0], x.dtype)
                if ledgers:
                    ran(self, arrays, params)
                logits = device.allocate(room, x.dtype, "workspace", site=site)
                if device.computes:
                    with device.lock, device.using():
                        data = [a.data for a in (x, weight, targets, logits, losses, dx, dweight)]
                        run = partial(kernel.run, ignored=ignored, smoothing=smoothing)
                        device.perform(run, data[:3], data[3:], (self.name, ignored, smoothing, chunk), site)
            loss = sum(Tensor(losses))
        return realize(loss.array), dx, dweight

    def plan(self, traced: tuple[bool, ...]) -> tuple[int, ...] | None:
        return (0, 1, 2, 4, 5) if any(traced) else None  # all but the loss

    def pull(self, g: Any, frame: list[Any], traced: Any) -> list[Any]:
        if g[0] is None:
            return [None] * 3
        parts = zip(self._gradients(frame), frame[:2], traced[:2], strict=True)
        return [*[astype(wide(d) * g[0], v.dtype) if t else None for d, v, t in parts], None]

    def push(self, tangents: list[Any], frame: list[Any]) -> Any:
        parts = zip(self._gradients(frame), tangents[:2], strict=True)
        first, *more = [sum(wide(d) * wide(t)) for d, t in parts if t is not None]
        return [first + more[0] if more else first, None, None]

    def _gradients(self, frame: list[Any]) -> tuple[Tensor, Tensor]:
        """Those of the sum of the losses: as they were kept, or by the composition where they are traced again."""
        x, weight, targets, _, dx, dweight, _, ignored, smoothing, *_ = frame
        if not (recorded(x) or recorded(weight)):
            return dx, dweight
        _, g = _loss_and_gradient(x, weight, targets, ignored, smoothing)
        return matmul(g, weight), matmul(matrix_transpose(g), x)


_head = _Head()


def recorded(x: Tensor) -> bool:
    """Does a derivative follow what is computed from `x`?  A checkpointed function's first run is followed by none."""
    y = same(x)
    while y.trace is not None and y.trace.kind == "checkpoint":
        y = y.data
    return y.trace is not None or y.link is not None


# --- public -------------------------------------------------------------------------------------


def linear_cross_entropy(
    x: Any,
    weight: Any,
    targets: Any,
    /,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    chunk: int | None = None,
) -> Tensor:
    """`cross_entropy(linear(x, weight), targets)`, of which never more than `chunk` rows of logits exist at once.

    `x` is [..., features], `weight` [classes, features], `targets` integers of the shape of `x` without the last axis;
    the other options are those of `cross_entropy`, whose reduction "none" this has not.  A chunk is of at most 64 MiB
    unless given, and of at least 64 rows.  Derivatives of derivatives hold all logits.
    """
    x, weight, targets = floating(x), floating(weight), as_operand(targets)
    if targets.dtype not in INTEGERS:
        raise DTypeError(
            f"linear_cross_entropy() needs integer targets, got {describe(targets)}\n  cast them with .to(gpuad.int64)"
        )
    if not x.ndim or weight.ndim != 2 or x.shape[-1] != weight.shape[1] or targets.shape != x.shape[:-1]:
        raise ShapeError(
            f"linear_cross_entropy() got x {describe(x)}, weight {describe(weight)} and targets {describe(targets)}\n"
            "  they are [..., features], [classes, features] and [...]"
        )
    if reduction not in ("mean", "sum"):
        raise DataError(
            f'linear_cross_entropy() knows the reductions "mean" and "sum", not {reduction!r}\n'
            "  cross_entropy(linear(x, weight), targets) gives the loss of each row"
        )
    if not 0.0 <= label_smoothing <= 1.0:
        raise DataError(f"linear_cross_entropy() needs a label_smoothing from 0 to 1, got {label_smoothing}")
    if chunk is not None and chunk < 1:
        raise DataError(f"linear_cross_entropy() needs a chunk of at least 1 row, got {chunk}")
    classes, line = weight.shape[0], describe_site(here(2))
    targets.device.check_range(
        realize(targets.array),
        0,
        classes - 1,
        lambda found: IndexRangeError(
            f"linear_cross_entropy() at {line} got the target {found} for {classes} classes\n"
            f"  targets go from 0 to {classes - 1}, or are ignore_index, {ignore_index}"
        ),
        ignored=ignore_index,
    )
    common = result_dtype((x.dtype, weight.dtype))
    rows = reshape(astype(x, common), (math.prod(targets.shape), x.shape[-1]))
    weight, aims = astype(weight, common), reshape(targets, (targets.size,))
    if aims.dtype not in (int32, int64):
        aims = astype(aims, int64)
    loss, _, _ = _head(
        rows,
        weight,
        aims,
        ignored=int(ignore_index),
        smoothing=float(label_smoothing),
        chunk=rows_at_once(classes, common) if chunk is None else int(chunk),
        of_x=recorded(rows),
        of_weight=recorded(weight),
    )
    if reduction == "mean":
        loss = loss / astype(sum(aims != ignore_index), loss.dtype)
    return astype(loss, common)


__all__ = ["linear_cross_entropy"]
