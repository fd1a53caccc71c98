"""PyTorch, eager or compiled, on a GPU or (to try the benchmark itself) on the CPU."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from .cases import GPTSizes
from .networks import ADAM_EPS, BETAS, DECAY, MAX_NORM, RATE
from .operations import DROPPED, EPS, Input

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "gelu(x*w+b)*tanh(x)": lambda x: F.gelu(x * 1.5 + 0.1, approximate="tanh") * torch.tanh(x),
    "relu(x*w+b)*x-x/2": lambda x: F.relu(x * 1.5 + 0.1) * x - 0.5 * x,
    "dropout": lambda x: F.dropout(x, DROPPED),
    "softmax": lambda x: F.softmax(x, -1),
    "log_softmax": lambda x: F.log_softmax(x, -1),
    "layer_norm": lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, b, EPS),
    "rms_norm": lambda x, w: F.rms_norm(x, x.shape[-1:], w, EPS),
    "cross_entropy": lambda x, target: F.cross_entropy(x, target),
    "sum over rows": lambda x: x.sum(0),
    "sum of all": lambda x: x.sum(),
    "matmul": lambda a, b: a @ b,
    "attention": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    "embedding": lambda w, index: F.embedding(index, w),
}


class Side:
    """Data, functions and a clock on one of PyTorch's devices."""

    def __init__(self, device: str, tiny: bool, compiled: bool) -> None:
        self.device, self.tiny, self.compiled = torch.device(device), tiny, compiled
        self.gpu = self.device.type == "cuda"
        if self.gpu and not torch.cuda.is_available():
            raise RuntimeError("PyTorch finds no GPU")
        torch.set_float32_matmul_precision("highest")  # no TF32
        self._filled = torch.zeros(1 << 16 if tiny else 1 << 30, dtype=torch.uint8, device=self.device)
        self._fill_seconds = 0.0
        self._before = self._used()

    def describe(self) -> dict[str, Any]:
        """What the machine is, for the file."""
        if not self.gpu:
            return {"gpu": None}
        found = torch.cuda.get_device_properties(self.device)
        return {
            "gpu": found.name,
            "gpu_bytes": found.total_memory,
            "compute_capability": f"{found.major}.{found.minor}",
        }

    # --- data and functions -----------------------------------------------------------------

    def draw(self, given: Input, dtype: str) -> Any:
        """A tensor of fresh random numbers."""
        if given.kind == "below":
            return torch.randint(0, given.high, given.shape, device=self.device)
        make = torch.rand if given.kind == "uniform" else torch.randn
        return make(given.shape, dtype=DTYPES[dtype], device=self.device).mul_(given.scale)

    def draw_like(self, y: Any) -> Any:
        """Normal numbers in the shape and dtype of `y`."""
        return torch.randn_like(y, requires_grad=False)

    def leaf(self, x: Any) -> Any:
        """`x`, whose gradient is wanted if it can have one."""
        return x.requires_grad_() if x.is_floating_point() else x

    def function(self, name: str) -> Callable[..., Any]:
        """The operation of that name."""
        if not self.compiled:
            return FUNCTIONS[name]
        torch._dynamo.reset()  # or it would compile for shapes it has not seen
        compiled: Callable[..., Any] = torch.compile(FUNCTIONS[name], dynamic=False)
        return compiled

    def forward(self, f: Callable[..., Any], xs: list[Any]) -> Any:
        """f(*xs)."""
        return f(*xs)

    def backward(self, y: Any, g: Any, xs: list[Any]) -> list[Any]:
        """The gradients of what requires them."""
        return list(torch.autograd.grad(y, [x for x in xs if x.requires_grad], g))

    def fetch(self, x: Any) -> np.ndarray[Any, Any]:
        """The values as a NumPy array."""
        return _fetched(x)

    def copy(self, nbytes: int) -> tuple[Callable[[], None], Any, Any]:
        """What copies random bytes on the device, from where, and to where."""
        source = torch.randint(-(2**62), 2**62, (nbytes // 8,), device=self.device)
        target = torch.zeros_like(source)
        return lambda: target.copy_(source), source, target

    # --- networks and optimizers ------------------------------------------------------------

    def adamw(self, shapes: list[tuple[int, ...]]) -> Any:
        """Float32 parameters with gradients, under AdamW."""
        return _Adam(self, shapes)

    def mlp(self, weights: list[np.ndarray[Any, Any]], rate: float) -> Any:
        """An MLP with these weights, under Adam."""
        return _MLP(self, weights, rate)

    def gpt(self, sizes: GPTSizes, dtype: str, weights: dict[str, np.ndarray[Any, Any]]) -> Any:
        """A GPT with these weights, under AdamW."""
        return _GPT(self, sizes, dtype, weights)

    # --- the clock --------------------------------------------------------------------------

    def event(self) -> Any:
        """A mark in the device's stream."""
        if not self.gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def milliseconds(self, start: Any, end: Any) -> float:
        """The time between two marks that the device has passed."""
        return float(start.elapsed_time(end)) if self.gpu else (end - start) * 1e3

    def wait(self) -> None:
        """Return when the device is done."""
        if self.gpu:
            torch.cuda.synchronize()

    def fill(self, times: int) -> None:
        """Keep the device busy with writing a large block, and its cache full of that."""
        for _ in range(times):
            self._filled.zero_()

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
        if self.gpu:
            torch.cuda.reset_peak_memory_stats()

    def memory(self) -> dict[str, Any]:
        """The most since then, what the pool has taken for it, and what the card lacks since this process began."""
        if not self.gpu:
            return {}
        return {
            "peak_bytes": torch.cuda.max_memory_allocated(),
            "pool_bytes": torch.cuda.max_memory_reserved(),
            "device_bytes": self._used() - self._before,
        }

    def _used(self) -> int:
        if not self.gpu:
            return 0
        free, total = torch.cuda.mem_get_info()
        return int(total - free)

    def release(self) -> None:
        """Give free memory back to the driver."""
        gc.collect()
        if self.gpu:
            torch.cuda.empty_cache()

    def healthy(self) -> bool:
        """Does the device still compute?"""
        try:
            return bool(torch.ones(8, device=self.device).sum().item() == 8.0)
        except Exception:  # whatever it is, it says no
            return False


def _fetched(x: Any) -> np.ndarray[Any, Any]:
    x = x.detach()
    if x.dtype == torch.bfloat16:
        return x.contiguous().view(torch.int16).cpu().numpy().view(ml_dtypes.bfloat16)
    found: np.ndarray[Any, Any] = x.cpu().numpy()
    return found


class _Adam:
    """`values` and `gradients`, and steps over them."""

    def __init__(self, side: Side, shapes: list[tuple[int, ...]]) -> None:
        inputs = [Input("normal", shape) for shape in shapes]
        self.values = [side.draw(x, "float32").requires_grad_() for x in inputs]
        for value, x in zip(self.values, inputs, strict=True):
            value.grad = side.draw(x, "float32")
        self._optimizer = torch.optim.AdamW(self.values, RATE, BETAS, ADAM_EPS, DECAY, fused=side.gpu)

    @property
    def gradients(self) -> list[Any]:
        return [p.grad for p in self.values]

    def step(self) -> None:
        self._optimizer.step()

    def clip(self, most: float) -> Any:
        return nn.utils.clip_grad_norm_(self.values, most)


class _MLP:
    def __init__(self, side: Side, weights: list[np.ndarray[Any, Any]], rate: float) -> None:
        self.device, layers = side.device, []
        for k in range(0, len(weights), 2):
            out, into = weights[k].shape
            layers += [nn.Linear(into, out), nn.ReLU()]
        model = nn.Sequential(*layers[:-1]).to(side.device)
        self.parameters = list(model.parameters())
        with torch.no_grad():
            for p, w in zip(self.parameters, weights, strict=True):
                p.copy_(torch.from_numpy(w))
        self.optimizer = torch.optim.Adam(self.parameters, rate, fused=side.gpu)
        loss = lambda x, target: F.cross_entropy(model(x), target)
        self._loss = torch.compile(loss, dynamic=False) if side.compiled else loss

    def place(self, x: Any, target: Any) -> tuple[Any, Any]:
        return torch.from_numpy(x).to(self.device), torch.from_numpy(target).to(self.device)

    def gradients(self, x: Any, target: Any) -> tuple[float, list[Any]]:
        loss = self._loss(*self.place(x, target))
        loss.backward()
        found = [_fetched(p.grad).copy() for p in self.parameters]
        self.optimizer.zero_grad()
        return loss.item(), found

    def step(self, x: Any, target: Any) -> None:
        self._loss(x, target).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


class _GPT:
    """bfloat16 weights; AdamW moves float32 copies of them."""

    note = "bfloat16 weights, float32 copies under fused AdamW"

    def __init__(self, side: Side, sizes: GPTSizes, dtype: str, weights: dict[str, np.ndarray[Any, Any]]) -> None:
        self.device = side.device
        self.model = _Network(sizes)
        self.model.load_state_dict({name: torch.from_numpy(w) for name, w in weights.items()})
        self.model.to(side.device)
        masters = [p.detach().clone().requires_grad_() for p in self.model.parameters()]
        self.model.to(DTYPES[dtype])
        self.parameters, self.masters = list(self.model.parameters()), masters
        groups = [
            {"params": [p for p in masters if p.ndim >= 2], "weight_decay": DECAY},
            {"params": [p for p in masters if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, RATE, BETAS, ADAM_EPS, fused=side.gpu)
        if side.compiled:
            torch._dynamo.reset()
        self._compiled = torch.compile(self.model, dynamic=False) if side.compiled else self.model

    def _place(self, tokens: Any) -> Any:
        return torch.from_numpy(tokens).to(self.device, non_blocking=True)

    def weights(self) -> dict[str, Any]:
        return {name: _fetched(p) for name, p in self.model.named_parameters()}

    def loss(self, tokens: Any) -> float:
        with torch.no_grad():
            return float(self.model(self._place(tokens)).item())

    def gradients(self, tokens: Any) -> tuple[float, dict[str, Any]]:
        loss = self.model(self._place(tokens))
        loss.backward()
        found = {name: _fetched(p.grad) for name, p in self.model.named_parameters()}
        self.model.zero_grad()
        return float(loss.item()), found

    def step(self, tokens: Any) -> Any:
        loss = self._compiled(self._place(tokens))
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, MAX_NORM)
        for master, p in zip(self.masters, self.parameters, strict=True):
            master.grad = p.grad.float()
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.masters)
        self.model.zero_grad()
        self.optimizer.zero_grad()
        return loss.detach()

    def value(self, loss: Any) -> float:
        return float(loss.item())


class _Network(nn.Module):
    """GPT-2 with the names of gpuad.models.GPT; its output is the loss."""

    def __init__(self, sizes: GPTSizes) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(sizes.vocabulary, sizes.width), nn.Embedding(sizes.length, sizes.width)
        self.blocks = nn.ModuleList(_Block(sizes.width, sizes.heads) for _ in range(sizes.layers))
        self.norm = nn.LayerNorm(sizes.width)

    def forward(self, tokens: Any) -> Any:
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        x = self.token(inputs) + self.position.weight[: inputs.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.token.weight)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = _Attention(width, heads)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Any) -> Any:
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.qkv, self.out, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads

    def forward(self, x: Any) -> Any:
        b, t, c = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(b, t, c))
