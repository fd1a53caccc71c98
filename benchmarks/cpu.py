"""gpuad on the CPU beside PyTorch and JAX: python benchmarks/cpu.py [--passes 3] [--out FILE] [--only CASE]

Each library computes each case in a process of its own, one after the other, several passes over all of them; what is
shown is the median over passes of a process's median.  PyTorch runs eager and compiled, both also with transparent huge
pages (THP_MEM_ALLOC_ENABLE=1), which is fairer to it.  Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
N = 10_000_000
CASES = {
    "gelu": "gelu(x*w+b)*tanh(x), 1e7, forward + backward",
    "relu": "relu(x*w+b)*x - x/2, 1e7, forward + backward",
    "mlp": "MLP 784-256-128-10, batch 128, Adam step",
    "gpt": "GPT 4x128, T=64, batch 16, AdamW step",
}
THP = {"THP_MEM_ALLOC_ENABLE": "1"}
LIBRARIES: dict[str, tuple[str, dict[str, str]]] = {
    "gpuad, compiled": ("gpuad", {"GPUAD_CPU_ENGINE": "compiled"}),
    "gpuad, captured": ("gpuad_captured", {"GPUAD_CPU_ENGINE": "compiled"}),
    "gpuad, NumPy": ("gpuad", {"GPUAD_CPU_ENGINE": "numpy"}),
    "PyTorch eager": ("torch", {}),
    "PyTorch eager, THP": ("torch", THP),
    "torch.compile": ("torch_compile", {}),
    "torch.compile, THP": ("torch_compile", THP),
    "JAX jit": ("jax", {}),
}
STEPS_OF_TRAINING = ("mlp", "gpt")  # the cases that capture() is for
Step = Callable[[], Any]  # one round; what it returns is compared


# --- the cases, in each library -----------------------------------------------------------------


def inputs() -> tuple[Any, Any]:
    """x and the cotangent of y."""
    rng = np.random.default_rng(0)
    return rng.standard_normal(N, np.float32), rng.standard_normal(N, np.float32)


def gpuad_step(case: str, *, captured: bool = False) -> Step:
    """A round of `case` with gpuad."""
    import gpuad
    from gpuad.nn import functional as F

    if case in ("gelu", "relu"):
        x, g = (gpuad.asarray(a) for a in inputs())
        x.requires_grad_()

        def chain() -> Any:
            x.grad = None
            h = x * 1.5 + 0.1
            y = F.gelu(h, approximate="tanh") * gpuad.tanh(x) if case == "gelu" else F.relu(h) * x - 0.5 * x
            y.backward(g)
            return y.numpy()[:1000].sum() + x.grad.numpy()[:1000].sum()

        return chain
    if case == "mlp":
        nn = gpuad.nn
        model = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))
        rng = np.random.default_rng(0)
        a, t = gpuad.asarray(rng.standard_normal((128, 784), np.float32)), gpuad.asarray(rng.integers(0, 10, 128))
        optimizer: Any = gpuad.optim.Adam(model.parameters(), 1e-3)
        loss_of: Step = lambda: F.cross_entropy(model(a), t)
    else:
        from gpuad.models.gpt import GPT, GPTConfig

        gpt = GPT(GPTConfig(length=64, layers=4, heads=4, width=128))
        tokens = gpuad.asarray(np.random.default_rng(0).integers(0, 256, (16, 65)))
        optimizer = gpuad.optim.AdamW(gpt.parameters(), 1e-3, max_grad_norm=1.0)
        loss_of = lambda: gpt.loss(tokens)

    def step() -> Any:
        loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    made = gpuad.capture(step) if captured else step
    return lambda: made().item()


def torch_step(case: str, *, compiled: bool = False) -> Step:
    """A round of `case` with PyTorch."""
    import torch

    F = torch.nn.functional
    made = torch.compile if compiled else lambda f: f
    if case in ("gelu", "relu"):
        x, g = (torch.from_numpy(a) for a in inputs())
        x.requires_grad_()

        def chain(x: Any) -> Any:
            h = x * 1.5 + 0.1
            return F.gelu(h, approximate="tanh") * torch.tanh(x) if case == "gelu" else F.relu(h) * x - 0.5 * x

        chain = made(chain)

        def both() -> Any:
            x.grad = None
            y = chain(x)
            y.backward(g)
            return float(y.detach()[:1000].sum() + x.grad[:1000].sum())

        return both
    if case == "mlp":
        nn = torch.nn
        model: Any = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))
        rng = np.random.default_rng(0)
        a, t = torch.from_numpy(rng.standard_normal((128, 784), np.float32)), torch.from_numpy(rng.integers(0, 10, 128))
        optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
        loss_of = made(lambda: F.cross_entropy(model(a), t))
        clip = False
    else:
        sys.path.insert(0, str(ROOT / "benchmarks"))
        from test_training import TorchGPT

        from gpuad.models.gpt import GPTConfig

        model = TorchGPT(GPTConfig(length=64, layers=4, heads=4, width=128))
        tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (16, 65)))
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
        loss_of, clip = made(lambda: model.loss(tokens)), True

    def step() -> Any:
        loss = loss_of()
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def jax_step(case: str) -> Step:
    """A round of `case` with JAX."""
    import jax
    import jax.numpy as jnp

    if case in ("gelu", "relu"):
        x, g = (jnp.asarray(a) for a in inputs())

        def chain(x: Any) -> Any:
            h = x * 1.5 + 0.1
            return jax.nn.gelu(h, approximate=True) * jnp.tanh(x) if case == "gelu" else jax.nn.relu(h) * x - 0.5 * x

        @jax.jit
        def both(x: Any, g: Any) -> Any:
            y, pull = jax.vjp(chain, x)
            return y, pull(g)[0]

        def run() -> Any:
            y, d = jax.block_until_ready(both(x, g))
            return float(y[:1000].sum() + d[:1000].sum())

        return run
    rng, clip = np.random.default_rng(0), case == "gpt"
    normal = lambda *shape: jnp.asarray(rng.standard_normal(shape, np.float32) * 0.02)
    if case == "mlp":
        sizes = ((784, 256), (256, 128), (128, 10))
        weights: Any = [(normal(*s), jnp.zeros(s[1])) for s in sizes]
        a, t = jnp.asarray(rng.standard_normal((128, 784), np.float32)), jnp.asarray(rng.integers(0, 10, 128))

        def loss_of(weights: Any) -> Any:
            h = a
            for k, (w, b) in enumerate(weights):
                h = h @ w + b
                h = jax.nn.relu(h) if k < 2 else h
            return -jnp.take_along_axis(jax.nn.log_softmax(h), t[:, None], 1).mean()
    else:
        tokens = jnp.asarray(rng.integers(0, 256, (16, 65)))
        block = lambda: {
            "n1": (jnp.ones(128), jnp.zeros(128)),
            "n2": (jnp.ones(128), jnp.zeros(128)),
            "qkv": (normal(128, 384), jnp.zeros(384)),
            "out": (normal(128, 128), jnp.zeros(128)),
            "up": (normal(128, 512), jnp.zeros(512)),
            "down": (normal(512, 128), jnp.zeros(128)),
        }
        weights = {
            "token": normal(256, 128),
            "position": normal(64, 128),
            "norm": (jnp.ones(128), jnp.zeros(128)),
            "blocks": [block() for _ in range(4)],
        }

        def norm(x: Any, w: Any) -> Any:
            d = x - x.mean(-1, keepdims=True)
            return d * jax.lax.rsqrt((d * d).mean(-1, keepdims=True) + 1e-5) * w[0] + w[1]

        def loss_of(weights: Any) -> Any:
            x = weights["token"][tokens[:, :-1]] + weights["position"]
            mask = jnp.tril(jnp.ones((64, 64), bool))
            for w in weights["blocks"]:
                qkv = (norm(x, w["n1"]) @ w["qkv"][0] + w["qkv"][1]).reshape(16, 64, 3, 4, 32)
                q, k, v = qkv.transpose(2, 0, 3, 1, 4)
                s = jnp.where(mask, q @ k.swapaxes(-1, -2) / np.sqrt(32), -jnp.inf)
                y = (jax.nn.softmax(s) @ v).transpose(0, 2, 1, 3).reshape(16, 64, 128)
                x = x + y @ w["out"][0] + w["out"][1]
                h = jax.nn.gelu(norm(x, w["n2"]) @ w["up"][0] + w["up"][1], approximate=True)
                x = x + h @ w["down"][0] + w["down"][1]
            logits = norm(x, weights["norm"]) @ weights["token"].T
            return -jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], 2).mean()

    zeros = jax.tree.map(jnp.zeros_like, weights)
    state = (weights, zeros, zeros, 0)

    @jax.jit
    def update(state: Any) -> Any:
        weights, m, v, n = state
        loss, g = jax.value_and_grad(loss_of)(weights)
        if clip:
            size = jnp.sqrt(sum((x * x).sum() for x in jax.tree.leaves(g)))
            g = jax.tree.map(lambda x: x * jnp.minimum(1.0, 1.0 / (size + 1e-6)), g)
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, g)
        a, b, decay = 1 - 0.9 ** (n + 1.0), 1 - 0.999 ** (n + 1.0), 1 - 1e-5 * clip
        new = jax.tree.map(lambda p, m, v: p * decay - 1e-3 * (m / a) / (jnp.sqrt(v / b) + 1e-8), weights, m, v)
        return loss, (new, m, v, n + 1)

    def step() -> Any:
        nonlocal state
        loss, state = update(state)
        return float(loss)

    return step


STEPS: dict[str, Callable[[str], Step]] = {
    "gpuad": gpuad_step,
    "gpuad_captured": lambda case: gpuad_step(case, captured=True),
    "torch": torch_step,
    "torch_compile": lambda case: torch_step(case, compiled=True),
    "jax": jax_step,
}


# --- measuring ----------------------------------------------------------------------------------


def measure(library: str, case: str) -> dict[str, float]:
    """The median time of a round in ms, and what the last round returned, in this process."""
    step = STEPS[library](case)
    for _ in range(4):
        value = step()
    times, begin = [], time.perf_counter()
    while len(times) < 9 or (time.perf_counter() - begin < 4 and len(times) < 60):
        start = time.perf_counter()
        value = step()
        times.append((time.perf_counter() - start) * 1e3)
    return {"ms": statistics.median(times), "value": float(value)}


def in_a_process(library: str, case: str, environment: dict[str, str]) -> dict[str, float] | str:
    """What `measure` says in a process of its own, or why it says nothing."""
    command = [sys.executable, __file__, "--measure", library, case]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    env = {**os.environ, "PYTHONPATH": path, **environment}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    except subprocess.TimeoutExpired:
        return "took over 300 s"
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["failed"])[-1]
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def table(found: dict[str, dict[str, list[float]]]) -> str:
    """The medians, and how many times faster gpuad is than each, captured where that is for it."""
    lines = []
    for case, by_library in found.items():
        lines += ["", CASES[case]]
        fastest = "gpuad, captured" if case in STEPS_OF_TRAINING else "gpuad, compiled"
        ours = statistics.median(by_library[fastest]) if by_library.get(fastest) else None
        for library, times in by_library.items():
            if times:
                ms = statistics.median(times)
                ratio = f"{ms / ours:6.2f}x" if ours else ""
                lines.append(f"  {library:<22}{ms:9.2f} ms  {ratio}  ({min(times):.2f} to {max(times):.2f})")
    return "\n".join(lines)


def machine() -> str:
    """Two lines on what this was measured with."""
    versions = []
    for package in ("numpy", "torch", "jax"):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{package} missing")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    date = datetime.date.today().isoformat()
    return f"{date}, {platform.machine()}, {cores} cores, Python {platform.python_version()}\n{', '.join(versions)}"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", choices=list(CASES), action="append")
    parser.add_argument("--measure", nargs=2, metavar=("LIBRARY", "CASE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure)))
        return
    found: dict[str, dict[str, list[float]]] = {
        case: {name: [] for name in LIBRARIES if case in STEPS_OF_TRAINING or name != "gpuad, captured"}
        for case in options.only or CASES
    }
    for number in range(options.passes):
        for case, by_library in found.items():
            for name, times in by_library.items():
                said = in_a_process(LIBRARIES[name][0], case, LIBRARIES[name][1])
                if isinstance(said, str):
                    print(f"{case}, {name}: {said}", file=sys.stderr)
                    continue
                times.append(said["ms"])
                print(f"pass {number + 1}: {case}, {name}: {said['ms']:.2f} ms ({said['value']:.5f})", file=sys.stderr)
    how = f"Median of a process's median over {options.passes} passes; ratio to gpuad (captured, where it is); range."
    text = f"{machine()}\n{how}\n{table(found)}\n"
    print(text)
    if options.out:
        partial = options.out.with_suffix(".partial")
        partial.write_text(text)
        partial.replace(options.out)


if __name__ == "__main__":
    main()
