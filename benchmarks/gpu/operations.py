"""Each operation in float64 NumPy, on a sample of what was computed: the reference for its results.

`check_value` and `check_gradients` give the largest relative difference found, inf where something is not finite.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
DROPPED = 0.1  # the probability of the case "dropout"
EPS = 1e-5  # of the norms
BLOCKS, BLOCK = 256, 1024  # the elements that are compared of an elementwise result


@dataclass(frozen=True)
class Input:
    """How to draw one operand: "normal", "uniform" (0 to 1) or "below" (integers below `high`)."""

    kind: str
    shape: tuple[int, ...]
    sampled: bool = True  # along the sample, or needed whole
    high: int = 0
    scale: float = 1.0  # of normal numbers


@dataclass(frozen=True)
class Operation:
    """What an operation computes.

    `value(xs, y)` is the result for operands `xs`, where `y` is what was found (dropout looks where it is 0).
    `pull(xs, g, y, count)` are gradients of the first operands, `count` the rows there were before sampling.
    `sample` is what is compared: "elements", "rows" or "whole"; `sample_value` the same for the value where it differs.
    """

    inputs: Callable[[tuple[int, ...]], list[Input]]
    value: Callable[[list[Array], Array], Array]
    pull: Callable[[list[Array], Array, Array, int], list[Array]] | None = None
    sample: str = "rows"
    sample_value: str | None = None
    rows: int = 64  # of the sample
    parameters: Callable[[list[Array], Array], list[Array]] | None = None  # gradients that sum over all rows


def _one(shape: tuple[int, ...]) -> list[Input]:
    return [Input("normal", shape)]


def _positive(shape: tuple[int, ...]) -> list[Input]:
    return [Input("uniform", shape)]  # a sum that cancels would be compared with its rounding errors


# --- elementwise --------------------------------------------------------------------------------


def _gelu(h: Array) -> tuple[Array, Array]:
    """gelu in its tanh form, and its slope."""
    root = np.sqrt(2 / np.pi)
    t = np.tanh(root * (h + 0.044715 * h**3))
    return 0.5 * h * (1 + t), 0.5 * (1 + t) + 0.5 * h * (1 - t * t) * root * (1 + 3 * 0.044715 * h * h)


def _chain(xs: list[Array], y: Array) -> Array:
    return _gelu(1.5 * xs[0] + 0.1)[0] * np.tanh(xs[0])


def _chain_pull(xs: list[Array], g: Array, y: Array, count: int) -> list[Array]:
    value, slope = _gelu(1.5 * xs[0] + 0.1)
    t = np.tanh(xs[0])
    return [g * (1.5 * slope * t + value * (1 - t * t))]


def _relu_chain(xs: list[Array], y: Array) -> Array:
    return np.maximum(1.5 * xs[0] + 0.1, 0) * xs[0] - 0.5 * xs[0]


def _relu_chain_pull(xs: list[Array], g: Array, y: Array, count: int) -> list[Array]:
    h = 1.5 * xs[0] + 0.1
    return [g * (np.maximum(h, 0) + 1.5 * xs[0] * (h > 0) - 0.5)]


def _dropout(xs: list[Array], y: Array) -> Array:
    dropped = np.mean(y == 0)
    spread = np.sqrt(DROPPED * (1 - DROPPED) / y.size)
    if abs(dropped - DROPPED) > 6 * spread:
        return np.full_like(xs[0], np.nan)  # which never passes
    return np.where(y == 0, 0, xs[0] / (1 - DROPPED))


def _dropout_pull(xs: list[Array], g: Array, y: Array, count: int) -> list[Array]:
    return [np.where(y == 0, 0, g / (1 - DROPPED))]


# --- rows ---------------------------------------------------------------------------------------


def _softmax(xs: list[Array], y: Array) -> Array:
    e = np.exp(xs[0] - xs[0].max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _softmax_pull(xs: list[Array], g: Array, y: Array, count: int) -> list[Array]:
    s = _softmax(xs, y)
    return [s * (g - (g * s).sum(-1, keepdims=True))]


def _log_softmax(xs: list[Array], y: Array) -> Array:
    return np.log(_softmax(xs, y))


def _log_softmax_pull(xs: list[Array], g: Array, y: Array, count: int) -> list[Array]:
    return [g - _softmax(xs, y) * g.sum(-1, keepdims=True)]


def _normalized(x: Array, centered: bool) -> tuple[Array, Array]:
    """The row without its mean, if `centered`, at a mean square of 1; and what it was divided by."""
    x = x - x.mean(-1, keepdims=True) if centered else x
    size = np.sqrt((x * x).mean(-1, keepdims=True) + EPS)
    return x / size, size


def _norm_pull(centered: bool) -> Callable[[list[Array], Array, Array, int], list[Array]]:
    def pull(xs: list[Array], g: Array, y: Array, count: int) -> list[Array]:
        n, size = _normalized(xs[0], centered)
        g = g * xs[1]
        if centered:
            g = g - g.mean(-1, keepdims=True)
        return [(g - n * (g * n).mean(-1, keepdims=True)) / size]

    return pull


def _norm_parameters(centered: bool) -> Callable[[list[Array], Array], list[Array]]:
    def parameters(xs: list[Array], g: Array) -> list[Array]:
        weight, bias = np.zeros(g.shape[-1]), np.zeros(g.shape[-1])
        for start in range(0, len(g), 512):
            part = g[start : start + 512].astype(np.float64)
            weight += (part * _normalized(xs[0][start : start + 512].astype(np.float64), centered)[0]).sum(0)
            bias += part.sum(0)
        return [weight, bias] if centered else [weight]

    return parameters


def _norm_inputs(centered: bool) -> Callable[[tuple[int, ...]], list[Input]]:
    def inputs(shape: tuple[int, ...]) -> list[Input]:
        parameter = Input("normal", shape[-1:], sampled=False)
        return [Input("normal", shape), parameter] + [parameter] * centered

    return inputs


def _losses(xs: list[Array], y: Array) -> Array:
    """The mean cross entropy.  exp in float32 is exact enough, and ten times as fast."""
    x, target = xs
    total = 0.0
    for start in range(0, len(x), 512):
        part = x[start : start + 512].astype(np.float32)
        top = part.max(-1, keepdims=True)
        picked = np.take_along_axis(part, target[start : start + 512, None], -1)
        total += float((np.log(np.exp(part - top).sum(-1, dtype=np.float64)) + (top - picked)[:, 0]).sum())
    return np.array(total / len(x))


def _losses_pull(xs: list[Array], g: Array, y: Array, count: int) -> list[Array]:
    x, target = xs
    s = _softmax([x], y)
    s[np.arange(len(x)), target] -= 1
    return [s * g / count]


# --- products, sums, look-up --------------------------------------------------------------------


def _attention_weights(xs: list[Array]) -> Array:
    q, k, _ = xs
    scores = q @ np.swapaxes(k, -1, -2) / np.sqrt(q.shape[-1])
    return _softmax([np.where(np.tri(q.shape[-2], dtype=bool), scores, -np.inf)], scores)


def _attention_pull(xs: list[Array], g: Array, y: Array, count: int) -> list[Array]:
    (q, k, v), w = xs, _attention_weights(xs)
    t = g @ np.swapaxes(v, -1, -2)
    t = w * (t - (t * w).sum(-1, keepdims=True)) / np.sqrt(q.shape[-1])
    return [t @ k, np.swapaxes(t, -1, -2) @ q, np.swapaxes(w, -1, -2) @ g]


def _embedding_pull(xs: list[Array], g: Array, y: Array, count: int) -> list[Array]:
    gradient = np.zeros(xs[0].shape)
    np.add.at(gradient, xs[1], g.astype(np.float64))
    return [gradient]


def _sum_over_rows(xs: list[Array], y: Array) -> Array:
    parts = [xs[0][k : k + 4096].astype(np.float32).sum(0, dtype=np.float64) for k in range(0, len(xs[0]), 4096)]
    return np.sum(parts, axis=0)


OPERATIONS: dict[str, Operation] = {
    "gelu(x*w+b)*tanh(x)": Operation(_one, _chain, _chain_pull, "elements"),
    "relu(x*w+b)*x-x/2": Operation(_one, _relu_chain, _relu_chain_pull, "elements"),
    "dropout": Operation(_one, _dropout, _dropout_pull, "elements"),
    "softmax": Operation(_one, _softmax, _softmax_pull),
    "log_softmax": Operation(_one, _log_softmax, _log_softmax_pull),
    "layer_norm": Operation(
        _norm_inputs(True),
        lambda xs, y: _normalized(xs[0], True)[0] * xs[1] + xs[2],
        _norm_pull(True),
        parameters=_norm_parameters(True),
    ),
    "rms_norm": Operation(
        _norm_inputs(False),
        lambda xs, y: _normalized(xs[0], False)[0] * xs[1],
        _norm_pull(False),
        parameters=_norm_parameters(False),
    ),
    "cross_entropy": Operation(
        # a scale that leaves some probabilities large enough to show beside the ones of the targets
        lambda shape: [Input("normal", shape, scale=3.0), Input("below", shape[:1], high=shape[1])],
        _losses,
        _losses_pull,
        sample_value="whole",
    ),
    "sum over rows": Operation(_positive, _sum_over_rows, sample="whole"),
    "sum of all": Operation(_positive, lambda xs, y: xs[0].sum(dtype=np.float64), sample="whole"),
    "matmul": Operation(
        lambda shape: [Input("normal", shape), Input("normal", shape, sampled=False)],
        lambda xs, y: xs[0] @ xs[1],
        rows=8,
    ),
    "attention": Operation(
        lambda shape: [Input("normal", shape)] * 3,
        lambda xs, y: _attention_weights(xs) @ xs[2],
        _attention_pull,
        rows=1,
    ),
    "embedding": Operation(
        lambda shape: [Input("normal", shape[:2], False), Input("below", shape[2:], high=shape[0])],
        lambda xs, y: xs[0][xs[1]],
        _embedding_pull,
        sample="whole",
    ),
}


# --- comparing ----------------------------------------------------------------------------------


def difference(found: Array, expected: Array) -> float:
    """The distance relative to the size of `expected`: over all elements, or a quarter of the largest one's."""
    if found.shape != expected.shape:
        raise ValueError(f"the result has the shape {found.shape}, and should have {expected.shape}")
    off = found.astype(np.float64) - expected
    if not np.isfinite(off).all():
        return float("inf")
    size, largest = float(np.linalg.norm(expected)), float(np.abs(expected).max(initial=0.0))
    if not size:
        return float("inf") if off.any() else 0.0
    return max(float(np.linalg.norm(off)) / size, float(np.abs(off).max()) / largest / 4)


def check_value(name: str, inputs: list[Array], y: Array) -> float:
    """How far `y` is from the operation on `inputs`."""
    op = OPERATIONS[name]
    kind = op.sample_value or op.sample
    take = _sampler(kind, inputs[0].shape, op.rows)
    y = take(y) if kind != "whole" else y
    return difference(y, op.value(_operands(op, inputs, take, kind), _wide(y)))


def check_gradients(name: str, inputs: list[Array], y: Array, g: Array, gradients: list[Array]) -> float:
    """How far `gradients` are from those of the operation on `inputs` for the cotangent `g` of the result `y`."""
    op = OPERATIONS[name]
    assert op.pull is not None
    take = _sampler(op.sample, inputs[0].shape, op.rows)
    along = op.sample != "whole" and y.ndim > 0
    y, near = (take(y), take(g)) if along else (y, g)
    given = _operands(op, inputs, take, op.sample)
    expected = op.pull(given, near if op.sample == "whole" else _wide(near), _wide(y), len(inputs[0]))
    found = [x if op.sample == "whole" else take(x) for x in gradients[: len(expected)]]
    if op.parameters is not None:
        expected += op.parameters(inputs, g)
        found += gradients[len(found) :]
    return max(difference(a, b) for a, b in zip(found, expected, strict=True))


def _operands(op: Operation, inputs: list[Array], take: Callable[[Array], Array], kind: str) -> list[Array]:
    """The sample of the operands in float64; as they are where everything is needed."""
    if kind == "whole":
        return inputs
    specified = op.inputs(inputs[0].shape)
    return [_wide(take(x) if given.sampled else x) for x, given in zip(inputs, specified, strict=True)]


def _wide(x: Array) -> Array:
    return x if x.dtype.kind in "iu" else x.astype(np.float64)


def _sampler(kind: str, shape: tuple[int, ...], rows: int) -> Callable[[Array], Array]:
    """What takes the sample of an array: its first and last part, and others at random."""
    rng = np.random.default_rng()
    if kind == "elements":
        size = int(np.prod(shape))
        if size <= BLOCKS * BLOCK:
            return lambda x: x.reshape(-1)
        starts = np.concatenate([[0, size - BLOCK], rng.integers(0, size - BLOCK, BLOCKS - 2)])
        places = (starts[:, None] + np.arange(BLOCK)).reshape(-1)
        return lambda x: x.reshape(-1)[places]
    picked = rng.integers(0, shape[0], rows)
    if rows > 1:
        picked = np.unique(np.concatenate([[0, shape[0] - 1], picked]))
    return lambda x: x[picked]
