"""An MLP, a GPT and AdamW in float64 NumPy: the references of whole steps."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from .cases import GPTSizes
from .operations import _gelu, _normalized

Array = np.ndarray[Any, Any]
RATE, BETAS, ADAM_EPS, DECAY = 1e-3, (0.9, 0.95), 1e-8, 0.1  # of AdamW in every case
MLP_RATE = 1e-3
MAX_NORM = 1.0  # of all gradients of a GPT together
STD = 0.02  # of a GPT's weights at the start


def mlp_weights(sizes: tuple[int, ...]) -> list[Array]:
    """float32 weight [out, in] and bias of each layer, one after the other."""
    rng, found = np.random.default_rng(), []
    for into, out in pairwise(sizes):
        bound = into**-0.5
        found += [rng.uniform(-bound, bound, shape).astype(np.float32) for shape in ((out, into), (out,))]
    return found


def mlp_gradients(weights: list[Array], x: Array, target: Array) -> tuple[float, list[Array]]:
    """The mean cross entropy of an MLP with relu between its layers, and its gradient for each of `weights`."""
    layers = [(weights[k].astype(np.float64), weights[k + 1].astype(np.float64)) for k in range(0, len(weights), 2)]
    inputs = [x.astype(np.float64)]
    for k, (weight, bias) in enumerate(layers):
        h = inputs[-1] @ weight.T + bias
        inputs.append(np.maximum(h, 0) if k < len(layers) - 1 else h)
    logits = inputs.pop()
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    rows = np.arange(len(x))
    loss = float(-np.log(p[rows, target]).mean())
    p[rows, target] -= 1
    g, found = p / len(x), []
    for (weight, _), a in zip(reversed(layers), reversed(inputs)):
        found = [g.T @ a, g.sum(0), *found]
        g = (g @ weight) * (a > 0)
    return loss, found


def adamw_steps(p: Array, g: Array, steps: int) -> Array:
    """`p` after `steps` steps of AdamW with the same gradient `g`."""
    (b1, b2), m, v = BETAS, np.zeros(p.shape), np.zeros(p.shape)
    p, g = p.astype(np.float64), g.astype(np.float64)
    for t in range(1, steps + 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        p = p * (1 - RATE * DECAY) - RATE * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + ADAM_EPS)
    return p


def gpt_weights(shapes: dict[str, tuple[int, ...]], layers: int) -> dict[str, Array]:
    """float32 weights as GPT-2 begins: normal, smaller where a block adds to the stream; norms are the identity."""
    rng, found = np.random.default_rng(), {}
    for name, shape in shapes.items():
        if len(shape) == 2:
            small = name.endswith(("out.weight", "down.weight"))
            std = STD / np.sqrt(2 * layers) if small else STD
            found[name] = rng.standard_normal(shape, np.float32) * np.float32(std)
        else:
            found[name] = np.full(shape, "norm" in name and name.endswith("weight"), np.float32)
    return found


def gpt_tokens(sizes: GPTSizes, batch: int | None = None, length: int | None = None) -> Array:
    """Random tokens int64[batch, length + 1], the small ones more often, so that there is something to learn."""
    shape = (sizes.batch if batch is None else batch, (sizes.length if length is None else length) + 1)
    return (sizes.vocabulary * np.random.default_rng().random(shape) ** 4).astype(np.int64)


def gpt_loss(weights: dict[str, Array], tokens: Array, sizes: GPTSizes) -> float:
    """The mean cross entropy of a GPT with these float64 weights on int64[batch, length + 1]."""
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    (b, t), c = inputs.shape, sizes.width
    hidden = ~np.tri(t, dtype=bool)
    x = weights["token.weight"][inputs] + weights["position.weight"][:t]

    def norm(x: Array, name: str) -> Array:
        return _normalized(x, True)[0] * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(x: Array, name: str) -> Array:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    for k in range(sizes.layers):
        at = f"blocks.{k}."
        qkv = linear(norm(x, at + "norm1"), at + "attention.qkv").reshape(b, t, 3, sizes.heads, -1)
        q, key, v = qkv.transpose(2, 0, 3, 1, 4)
        scores = q @ key.swapaxes(-1, -2) / np.sqrt(c // sizes.heads)
        scores[..., hidden] = -np.inf
        w = np.exp(scores - scores.max(-1, keepdims=True))
        w /= w.sum(-1, keepdims=True)
        x = x + linear((w @ v).transpose(0, 2, 1, 3).reshape(b, t, c), at + "attention.out")
        x = x + linear(_gelu(linear(norm(x, at + "norm2"), at + "up"))[0], at + "down")
    logits = (norm(x, "norm") @ weights["token.weight"].T).reshape(b * t, -1)
    top = logits.max(-1)
    picked = logits[np.arange(b * t), targets.reshape(-1)]
    return float((np.log(np.exp(logits - top[:, None]).sum(-1)) + top - picked).mean())


def gpt_differences(
    weights: dict[str, Array], tokens: Array, sizes: GPTSizes, loss: float, gradients: dict[str, Array]
) -> tuple[float, float]:
    """How far a loss is from the reference, and the size of the gradient from the slope along it; both relative.

    The slope is a central difference of the reference's loss.
    """
    weights = {name: w.astype(np.float64) for name, w in weights.items()}
    with np.errstate(invalid="ignore"):  # a bfloat16 nan is said to be one below
        gradients = {name: g.astype(np.float64) for name, g in gradients.items()}
    expected = gpt_loss(weights, tokens, sizes)
    of_loss = abs(loss - expected) / expected if np.isfinite(loss) else np.inf
    size = float(np.sqrt(sum(float((g * g).sum()) for g in gradients.values())))
    if not (np.isfinite(size) and size):
        return of_loss, np.inf
    h = 1e-3 / size
    ahead, behind = (
        gpt_loss({name: w + sign * gradients[name] for name, w in weights.items()}, tokens, sizes) for sign in (h, -h)
    )
    slope = (ahead - behind) / 2e-3
    return of_loss, abs(slope - size) / size
