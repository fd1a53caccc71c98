"""gpuad as a user calls it, timed by events on its own stream."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import gpuad
from gpuad import nn, optim
from gpuad.buffer import LiveBytes, observers
from gpuad.fuse.plan import realize_all
from gpuad.models import GPT, GPTConfig
from gpuad.nn import functional as F

from .cases import GPTSizes
from .networks import ADAM_EPS, BETAS, DECAY, MAX_NORM, RATE
from .operations import DROPPED, EPS, Input

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "gelu(x*w+b)*tanh(x)": lambda x: F.gelu(x * 1.5 + 0.1, approximate="tanh") * F.tanh(x),
    "relu(x*w+b)*x-x/2": lambda x: F.relu(x * 1.5 + 0.1) * x - 0.5 * x,
    "dropout": lambda x: F.dropout(x, DROPPED),
    "softmax": F.softmax,
    "log_softmax": F.log_softmax,
    "layer_norm": lambda x, w, b: F.layer_norm(x, w, b, eps=EPS),
    "rms_norm": lambda x, w: F.rms_norm(x, w, eps=EPS),
    "cross_entropy": F.cross_entropy,
    "sum over rows": lambda x: gpuad.sum(x, axis=0),
    "sum of all": gpuad.sum,
    "matmul": gpuad.matmul,
    "attention": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, causal=True),
    "embedding": F.embedding,
}


class Side:
    """Data, functions and a clock on one of gpuad's devices."""

    def __init__(self, device: str, tiny: bool) -> None:
        self.device, self.tiny = gpuad.device(device), tiny
        self.cupy = self.device.xp if device.startswith("cuda") else None
        self._fill_bytes, self._fill_seconds = 1 << 16 if tiny else 1 << 30, 0.0
        self._filled = self._computed(gpuad.zeros(self._fill_bytes, dtype=gpuad.uint8, device=self.device))
        self._ledger: LiveBytes | None = None
        self._before = self._used()

    def describe(self) -> dict[str, Any]:
        """What the machine is, for the file."""
        if self.cupy is None:
            return {"gpu": None}
        runtime = self.cupy.cuda.runtime
        found = runtime.getDeviceProperties(self.device.index)
        name = found["name"].decode() if isinstance(found["name"], bytes) else found["name"]
        return {
            "gpu": name,
            "gpu_bytes": int(found["totalGlobalMem"]),
            "compute_capability": f"{found['major']}.{found['minor']}",
            "cuda_driver": runtime.driverGetVersion(),
            "cuda_runtime": runtime.runtimeGetVersion(),
        }

    # --- data and functions -----------------------------------------------------------------

    def draw(self, given: Input, dtype: str) -> Any:
        """A computed tensor of fresh random numbers."""
        if given.kind == "below":
            return self._computed(gpuad.random.integers(given.shape, 0, given.high, device=self.device))
        if given.kind == "uniform":
            return self._computed(gpuad.random.uniform(given.shape, dtype=dtype, device=self.device))
        return self._computed(gpuad.random.normal(given.shape, std=given.scale, dtype=dtype, device=self.device))

    def draw_like(self, y: Any) -> Any:
        """Normal numbers in the shape and dtype of `y`."""
        return self._computed(gpuad.random.normal(y.shape, dtype=y.dtype, device=self.device))

    def leaf(self, x: Any) -> Any:
        """`x`, whose gradient is wanted if it can have one."""
        return x.requires_grad_() if x.dtype.kind not in "iu" else x

    def function(self, name: str) -> Callable[..., Any]:
        """The operation of that name."""
        return FUNCTIONS[name]

    def forward(self, f: Callable[..., Any], xs: list[Any]) -> Any:
        """f(*xs), asked for: what is pending is launched, as it is where a value is read."""
        y = f(*xs)
        realize_all([y.array])
        return y

    def backward(self, y: Any, g: Any, xs: list[Any]) -> list[Any]:
        """The gradients of what requires them."""
        leaves = [x for x in xs if x.is_leaf]
        for x in leaves:
            x.grad = None
        y.backward(g)
        return [x.grad for x in leaves]

    def fetch(self, x: Any) -> np.ndarray[Any, Any]:
        """The values as a NumPy array."""
        return x.detach().numpy()

    def copy(self, nbytes: int) -> tuple[Callable[[], None], Any, Any]:
        """What copies random bytes on the device, from where, and to where."""
        source = self._computed(gpuad.random.bits(nbytes // 8, dtype=gpuad.uint64, device=self.device))
        target = self._computed(gpuad.zeros(nbytes // 8, dtype=gpuad.uint64, device=self.device))
        a, b = source.array.data, target.array.data
        if self.cupy is None:
            return lambda: np.copyto(b, a), source, target

        def copy() -> None:
            with self.device.using():
                b.data.copy_from_device_async(a.data, a.nbytes, self.device.stream)

        return copy, source, target

    def _computed(self, x: Any) -> Any:
        realize_all([x.array])
        return x

    # --- networks and optimizers ------------------------------------------------------------

    def adamw(self, shapes: list[tuple[int, ...]]) -> Any:
        """Float32 parameters with gradients, under AdamW."""
        return _Adam(self, shapes)

    def mlp(self, weights: list[np.ndarray[Any, Any]], rate: float) -> Any:
        """An MLP with these weights, under Adam."""
        return _MLP(self.device, weights, rate)

    def gpt(self, sizes: GPTSizes, dtype: str, weights: dict[str, np.ndarray[Any, Any]]) -> Any:
        """A GPT with these weights, under AdamW."""
        return _GPT(self.device, sizes, dtype, weights)

    # --- the clock --------------------------------------------------------------------------

    def event(self) -> Any:
        """A mark in the device's stream."""
        if self.cupy is None:
            return time.perf_counter()
        with self.cupy.cuda.Device(self.device.index):
            event = self.cupy.cuda.Event()
            event.record(self.device.stream)
        return event

    def milliseconds(self, start: Any, end: Any) -> float:
        """The time between two marks that the device has passed."""
        return (end - start) * 1e3 if self.cupy is None else float(self.cupy.cuda.get_elapsed_time(start, end))

    def wait(self) -> None:
        """Return when the device is done; what it has flagged is raised."""
        self.device.synchronize()

    def fill(self, times: int) -> None:
        """Keep the device busy with writing a large block, and its cache full of that."""
        block = self._filled.array.data
        for _ in range(times):
            if self.cupy is None:
                block.fill(1)
            else:
                with self.cupy.cuda.Device(self.device.index):
                    self.cupy.cuda.runtime.memsetAsync(block.data.ptr, 1, block.nbytes, self.device.stream.ptr)

    def fill_seconds(self) -> float:
        """How long one fill takes."""
        if not self._fill_seconds:
            self.fill(2)
            start = self.event()
            self.fill(5)
            end = self.event()
            self.wait()
            self._fill_seconds = max(self.milliseconds(start, end) / 5e3, 1e-6)
        return self._fill_seconds

    # --- memory -----------------------------------------------------------------------------

    def watch_memory(self) -> None:
        """Begin to count the most bytes that are alive at once."""
        self.release()
        self._ledger = LiveBytes()
        observers.append(self._ledger)

    def memory(self) -> dict[str, Any]:
        """The most since then, what the pool has taken for it, and what the card lacks since this process began."""
        assert self._ledger is not None
        observers.remove(self._ledger)
        found: dict[str, Any] = {"peak_bytes": self._ledger.peak}
        if self.cupy is not None:
            found |= {
                "pool_bytes": self.cupy.get_default_memory_pool().total_bytes(),
                "device_bytes": self._used() - self._before,
            }
        return found

    def _used(self) -> int:
        if self.cupy is None:
            return 0
        with self.cupy.cuda.Device(self.device.index):
            free, total = self.cupy.cuda.runtime.memGetInfo()
        return int(total - free)

    def release(self) -> None:
        """Give free memory back to the driver."""
        if self._ledger is not None and self._ledger in observers:
            observers.remove(self._ledger)
        gc.collect()
        if self.cupy is not None:
            self.cupy.get_default_memory_pool().free_all_blocks()

    def healthy(self) -> bool:
        """Does the device still compute?"""
        try:
            return bool(gpuad.sum(gpuad.ones(8, device=self.device)).item() == 8.0)
        except Exception:  # whatever it is, it says no
            return False


class _Adam:
    """`values` and `gradients`, and steps over them."""

    def __init__(self, side: Side, shapes: list[tuple[int, ...]]) -> None:
        inputs = [Input("normal", shape) for shape in shapes]
        self.values = [side.draw(x, "float32").requires_grad_() for x in inputs]
        for value, x in zip(self.values, inputs, strict=True):
            value.grad = side.draw(x, "float32")
        self._optimizer = optim.AdamW(self.values, RATE, BETAS, ADAM_EPS, DECAY)

    @property
    def gradients(self) -> list[Any]:
        return [p.grad for p in self.values]

    def step(self) -> None:
        self._optimizer.step()

    def clip(self, most: float) -> Any:
        return optim.clip_grad_norm(self.values, most)


class _MLP:
    def __init__(self, device: Any, weights: list[np.ndarray[Any, Any]], rate: float) -> None:
        self.device, layers = device, []
        for k in range(0, len(weights), 2):
            out, into = weights[k].shape
            layers += [nn.Linear(into, out, device=device), nn.ReLU()]
        self.model = nn.Sequential(*layers[:-1])
        with gpuad.no_grad():
            for p, w in zip(self.model.parameters(), weights, strict=True):
                p.copy_(gpuad.asarray(w, device=device))
        self.optimizer = optim.Adam(self.model.parameters(), rate)

    def place(self, x: Any, target: Any) -> tuple[Any, Any]:
        return gpuad.asarray(x, device=self.device), gpuad.asarray(target, device=self.device)

    def gradients(self, x: Any, target: Any) -> tuple[float, list[Any]]:
        x, target = self.place(x, target)
        loss = F.cross_entropy(self.model(x), target)
        loss.backward()
        found = [p.grad.numpy().copy() for p in self.model.parameters()]
        self.optimizer.zero_grad()
        return loss.item(), found

    def step(self, x: Any, target: Any) -> None:
        F.cross_entropy(self.model(x), target).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


class _GPT:
    note = "bfloat16 weights, gpuad's AdamW"

    def __init__(self, device: Any, sizes: GPTSizes, dtype: str, weights: dict[str, np.ndarray[Any, Any]]) -> None:
        self.device = device
        config = GPTConfig(
            vocabulary=sizes.vocabulary,
            length=sizes.length,
            layers=sizes.layers,
            heads=sizes.heads,
            width=sizes.width,
        )
        self.model = GPT(config, dtype=dtype, device=device, generator=gpuad.random.Generator(0))
        with gpuad.no_grad():
            for name, p in self.model.named_parameters():
                p.copy_(gpuad.asarray(weights[name], device=device).to(dtype))
        self.optimizer = optim.AdamW(
            self.model.parameters(),
            RATE,
            BETAS,
            ADAM_EPS,
            DECAY,
            no_decay=lambda p: p.ndim < 2,
            max_grad_norm=MAX_NORM,
        )

    def weights(self) -> dict[str, Any]:
        return {name: p.numpy() for name, p in self.model.named_parameters()}

    def loss(self, tokens: Any) -> float:
        with gpuad.no_grad():
            return float(self.model.loss(gpuad.asarray(tokens, device=self.device)).item())

    def gradients(self, tokens: Any) -> tuple[float, dict[str, Any]]:
        loss = self.model.loss(gpuad.asarray(tokens, device=self.device))
        loss.backward()
        found = {name: p.grad.numpy() for name, p in self.model.named_parameters()}
        self.optimizer.zero_grad()
        return float(loss.item()), found

    def step(self, tokens: Any) -> Any:
        loss = self.model.loss(gpuad.asarray(tokens, device=self.device))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def value(self, loss: Any) -> float:
        return float(loss.item())
