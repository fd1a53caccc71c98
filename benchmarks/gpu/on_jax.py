"""JAX under jit: the networks alone.

It has no events: a step ends, by the host's clock, where its result is there.
"""

from __future__ import annotations

import functools
import gc
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .cases import GPTSizes
from .networks import ADAM_EPS, BETAS, DECAY, MAX_NORM, RATE
from .operations import EPS

Weights = dict[str, Any]


class Side:
    """Networks and a clock on JAX's first device of a kind."""

    def __init__(self, device: str, tiny: bool) -> None:
        self.tiny, self.device = tiny, jax.devices("gpu" if device.startswith("cuda") else device)[0]
        jax.config.update("jax_default_device", self.device)
        self.last: Any = None  # what the latest step has asked for

    def describe(self) -> dict[str, Any]:
        """What the machine is, for the file."""
        return {"gpu": None if self.device.platform == "cpu" else self.device.device_kind}

    def mlp(self, weights: list[np.ndarray[Any, Any]], rate: float) -> Any:
        """An MLP with these weights, under Adam."""
        return _MLP(self, weights, rate)

    def gpt(self, sizes: GPTSizes, dtype: str, weights: dict[str, np.ndarray[Any, Any]]) -> Any:
        """A GPT with these weights, under AdamW."""
        return _GPT(self, sizes, dtype, weights)

    def event(self) -> float:
        """The time at which the latest step is done."""
        self.wait()
        return time.perf_counter()

    def milliseconds(self, start: float, end: float) -> float:
        """The time between two events."""
        return (end - start) * 1e3

    def wait(self) -> None:
        """Return when the latest step is done."""
        jax.block_until_ready(self.last)

    def watch_memory(self) -> None:
        """Nothing: the most that was alive is counted since the process began, and batches grow."""
        self.release()

    def memory(self) -> dict[str, Any]:
        """The most bytes that were alive at once."""
        self.wait()
        found = self.device.memory_stats() or {}
        return {"peak_bytes": found["peak_bytes_in_use"]} if "peak_bytes_in_use" in found else {}

    def release(self) -> None:
        """Forget what is not in use, compiled programs too."""
        self.last = None
        gc.collect()
        jax.clear_caches()

    def healthy(self) -> bool:
        """Does the device still compute?"""
        try:
            return bool(jnp.ones(8).sum() == 8.0)
        except Exception:  # whatever it is, it says no
            return False


def _adam(p: Any, g: Any, m: Any, v: Any, t: Any, rate: float, betas: tuple[float, float], decay: float) -> Any:
    """A step of Adam for one array, where `decay` shrinks the array itself: its new value, m and v."""
    b1, b2 = betas
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    step = rate * (m / (1 - b1**t)) / (jnp.sqrt(v / (1 - b2**t)) + ADAM_EPS)
    return p * (1 - rate * decay) - step, m, v


class _MLP:
    def __init__(self, side: Side, weights: list[np.ndarray[Any, Any]], rate: float) -> None:
        self.side = side
        values = [jnp.asarray(w) for w in weights]
        self.state = values, [jnp.zeros_like(w) for w in values], [jnp.zeros_like(w) for w in values], jnp.float32(0)

        def loss(weights: Any, x: Any, target: Any) -> Any:
            with jax.default_matmul_precision("highest"):  # no TF32
                for k in range(0, len(weights), 2):
                    x = x @ weights[k].T + weights[k + 1]
                    x = jax.nn.relu(x) if k < len(weights) - 2 else x
            return -jnp.take_along_axis(jax.nn.log_softmax(x), target[:, None], 1).mean()

        def step(state: Any, x: Any, target: Any) -> Any:
            values, ms, vs, t = state
            gradients = jax.grad(loss)(values, x, target)
            t = t + 1
            new = [_adam(*each, t, rate, (0.9, 0.999), 0.0) for each in zip(values, gradients, ms, vs, strict=True)]
            return [n[0] for n in new], [n[1] for n in new], [n[2] for n in new], t

        self._step, self._gradients = jax.jit(step, donate_argnums=0), jax.jit(jax.value_and_grad(loss))

    def place(self, x: Any, target: Any) -> tuple[Any, Any]:
        return jnp.asarray(x), jnp.asarray(target.astype(np.int32))

    def gradients(self, x: Any, target: Any) -> tuple[float, list[Any]]:
        loss, found = self._gradients(self.state[0], *self.place(x, target))
        return float(loss), [np.asarray(g) for g in found]

    def step(self, x: Any, target: Any) -> None:
        self.state = self.side.last = self._step(self.state, x, target)


class _GPT:
    """float32 weights under AdamW, and a loss that works on bfloat16 copies of them."""

    def __init__(self, side: Side, sizes: GPTSizes, dtype: str, weights: dict[str, np.ndarray[Any, Any]]) -> None:
        self.side, self.dtype = side, jnp.dtype(dtype)
        values = {name: jnp.asarray(w) for name, w in weights.items()}
        zeros = lambda: {name: jnp.zeros_like(w) for name, w in values.items()}
        self.state = values, zeros(), zeros(), jnp.float32(0)
        attention = _fastest_attention(sizes, self.dtype)
        self.note = f"float32 weights, used as bfloat16; attention by {attention}; host clock"
        self._loss = functools.partial(_gpt_loss, sizes=sizes, attention=attention)
        dtype_of_copies = self.dtype

        def step(state: Any, tokens: Any) -> Any:
            values, ms, vs, t = state
            copies = {name: w.astype(dtype_of_copies) for name, w in values.items()}
            loss, gradients = jax.value_and_grad(self._loss)(copies, tokens)
            gradients = {name: g.astype(jnp.float32) for name, g in gradients.items()}
            norm = jnp.sqrt(sum((g * g).sum() for g in gradients.values()))
            factor = jnp.minimum(1.0, MAX_NORM / (norm + 1e-6))
            t = t + 1
            new = {
                name: _adam(p, gradients[name] * factor, ms[name], vs[name], t, RATE, BETAS, DECAY * (p.ndim >= 2))
                for name, p in values.items()
            }
            return tuple({name: n[k] for name, n in new.items()} for k in range(3)) + (t,), loss

        self._step = jax.jit(step, donate_argnums=0)

    def _copies(self) -> Weights:
        return {name: w.astype(self.dtype) for name, w in self.state[0].items()}

    def weights(self) -> Weights:
        return {name: np.asarray(w) for name, w in self._copies().items()}

    def loss(self, tokens: Any) -> float:
        return float(self._loss(self._copies(), _place(tokens)))

    def gradients(self, tokens: Any) -> tuple[float, Weights]:
        loss, found = jax.value_and_grad(self._loss)(self._copies(), _place(tokens))
        return float(loss), {name: np.asarray(g) for name, g in found.items()}

    def step(self, tokens: Any) -> Any:
        self.state, loss = self._step(self.state, _place(tokens))
        self.side.last = loss, self.state[-1]
        return loss

    def value(self, loss: Any) -> float:
        return float(loss)


def _fastest_attention(sizes: GPTSizes, dtype: Any) -> str:
    """What attention is to be computed with: "cudnn" where that works, else "xla"."""
    x = jnp.ones((1, 64, sizes.heads, sizes.width // sizes.heads), dtype)
    try:
        jax.block_until_ready(jax.nn.dot_product_attention(x, x, x, is_causal=True, implementation="cudnn"))
    except Exception:  # no GPU, no cuDNN, or one too old for it
        return "xla"
    return "cudnn"


def _place(tokens: Any) -> Any:
    return jnp.asarray(tokens.astype(np.int32))


def _gpt_loss(weights: Weights, tokens: Any, *, sizes: GPTSizes, attention: str) -> Any:
    """The mean cross entropy of GPT-2 with `weights` on int32[batch, length + 1]."""
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    (b, t), dtype = inputs.shape, weights["token.weight"].dtype
    x = weights["token.weight"][inputs] + weights["position.weight"][:t]

    def norm(x: Any, name: str) -> Any:
        wide = x.astype(jnp.float32)
        wide = wide - wide.mean(-1, keepdims=True)
        y = wide * jax.lax.rsqrt((wide * wide).mean(-1, keepdims=True) + EPS)
        return (y * weights[f"{name}.weight"] + weights[f"{name}.bias"]).astype(dtype)

    def linear(x: Any, name: str) -> Any:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    for k in range(sizes.layers):
        at = f"blocks.{k}."
        qkv = linear(norm(x, at + "norm1"), at + "attention.qkv").reshape(b, t, 3, sizes.heads, -1)
        q, key, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        y = jax.nn.dot_product_attention(q, key, v, is_causal=True, implementation=attention)
        x = x + linear(y.reshape(b, t, -1), at + "attention.out")
        x = x + linear(jax.nn.gelu(linear(norm(x, at + "norm2"), at + "up"), approximate=True), at + "down")
    logits = (norm(x, "norm") @ weights["token.weight"].T).astype(jnp.float32)
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1).mean()
