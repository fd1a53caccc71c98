"""A case: first whether a library computes it right, then how long it takes.

The time of one kernel, or a few, is the device's own: before each round a large fill keeps the device busy while Python
gets ahead, and empties the cache.  What Python takes to ask for the work is measured beside it.  The time of a training
step is that between one step's end and the next one's, with whatever Python adds.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from . import networks
from .cases import Case, GPTSizes, gpt_shapes
from .operations import OPERATIONS, check_gradients, check_value, difference

LIMITS = {"float32": 1e-5, "bfloat16": 2e-2}  # of the relative difference from float64
LOSS_LIMIT = 2e-2  # of a GPT's loss, which some libraries round to bfloat16
SLOPE_LIMITS = {"float32": 1e-3, "bfloat16": 3e-2}  # of a GPT's gradient from its slope
ROUNDS, FEWEST = 30, 5
SECONDS = 1.5  # that rounds, beyond the fewest, may take
STEPS, STEP_SECONDS = 20, 5.0  # of a GPT
MLP_STEPS = 200
MOST_FILLS = 60


class WrongResult(Exception):
    """A result that is further from float64 than its dtype explains."""


def measure(side: Any, case: Case) -> dict[str, Any]:
    """The result of `case` with the library `side`, as the file has it, without name and library."""
    result: dict[str, Any] = KINDS[case.kind](side, case)
    seconds = result["median_ms"] / 1e3
    if case.nbytes:
        result["gbs"] = case.nbytes / seconds / 1e9
    if case.flops:
        result["tflops"] = case.flops / seconds / 1e12
    return result


# --- time ---------------------------------------------------------------------------------------


def _rounds(side: Any, prepare: Callable[[], Any], run: Callable[[Any], Any]) -> dict[str, Any]:
    """The device's time for `run(prepare())`, where preparing does not count."""
    host = 0.0
    for _ in range(3):
        given = prepare()
        side.wait()
        began = time.perf_counter()
        kept = run(given)
        host = time.perf_counter() - began
        side.wait()
        del given, kept
    fills = min(MOST_FILLS, 1 + math.ceil(1.5 * host / side.fill_seconds()))
    times, hosts, began = [], [], time.perf_counter()
    while len(times) < FEWEST or (len(times) < ROUNDS and time.perf_counter() - began < SECONDS):
        given = prepare()
        side.fill(fills)
        start, asked = side.event(), time.perf_counter()
        kept = run(given)
        hosts.append((time.perf_counter() - asked) * 1e3)
        end = side.event()
        side.wait()
        times.append(side.milliseconds(start, end))
        del given, kept
    return _summary(times) | {"host_ms": statistics.median(hosts)}


def _steps(side: Any, step: Callable[[], Any], most: int, seconds: float) -> dict[str, Any]:
    """The time of a step, one after the other, without waiting in between."""
    for _ in range(3):
        step()
    side.wait()
    marks, began = [side.event()], time.perf_counter()
    while len(marks) <= FEWEST or (len(marks) <= most and time.perf_counter() - began < seconds):
        step()
        marks.append(side.event())
    side.wait()
    return _summary([side.milliseconds(a, b) for a, b in pairwise(marks)])


def _summary(times: list[float]) -> dict[str, Any]:
    low, middle, high = np.percentile(times, [25, 50, 75]).tolist()
    return {"median_ms": middle, "quartiles_ms": [low, high], "rounds": len(times)}


def _accept(found: float, limit: float, what: str = "the result") -> float:
    if not found <= limit:
        raise WrongResult(f"{what} differs from float64 by {found:.2g}, and the limit is {limit:g}")
    return found


# --- kernels ------------------------------------------------------------------------------------


def _draw(side: Any, case: Case) -> list[Any]:
    """Fresh operands; those of an operation with a gradient are leaves, as they are in training."""
    op = OPERATIONS[case.operation]
    xs = [side.draw(x, case.dtype) for x in op.inputs(case.shape)]
    return xs if op.pull is None else [side.leaf(x) for x in xs]


def _forward(side: Any, case: Case) -> dict[str, Any]:
    f = side.function(case.operation)
    xs = _draw(side, case)
    y = side.forward(f, xs)
    found = check_value(case.operation, [side.fetch(x) for x in xs], side.fetch(y))
    _accept(found, LIMITS[case.dtype])
    del y
    xs = _draw(side, case)
    return {"difference": found} | _rounds(side, lambda: None, lambda _: side.forward(f, xs))


def _backward(side: Any, case: Case) -> dict[str, Any]:
    f = side.function(case.operation)
    xs = _draw(side, case)
    y = side.forward(f, xs)
    g, value = side.draw_like(y), side.fetch(y)
    gradients = [side.fetch(x) for x in side.backward(y, g, xs)]
    found = check_gradients(case.operation, [side.fetch(x) for x in xs], value, side.fetch(g), gradients)
    _accept(found, LIMITS[case.dtype], "a gradient")
    del y, gradients
    xs, g = _draw(side, case), side.draw_like(g)
    return {"difference": found} | _rounds(side, lambda: side.forward(f, xs), lambda y: side.backward(y, g, xs))


def _copy(side: Any, case: Case) -> dict[str, Any]:
    copy, source, target = side.copy(case.shape[0])
    copy()
    if not np.array_equal(side.fetch(source), side.fetch(target)):
        raise WrongResult("the copy is not what was copied")
    return {"difference": 0.0} | _rounds(side, lambda: None, lambda _: copy())


# --- optimizers ---------------------------------------------------------------------------------


def _adamw(side: Any, case: Case) -> dict[str, Any]:
    assert case.gpt is not None
    shapes = list(gpt_shapes(case.gpt).values())
    some = sorted({0, 1, len(shapes) // 2, len(shapes) - 1})
    adam = side.adamw(shapes)
    before = [side.fetch(adam.values[k]).copy() for k in some]
    gradients = [side.fetch(adam.gradients[k]).copy() for k in some]
    for _ in range(2):
        adam.step()
    found = 0.0
    for k, p, g in zip(some, before, gradients, strict=True):
        change = networks.adamw_steps(p, g, 2) - p  # steps are small beside the values they change
        found = max(found, difference(side.fetch(adam.values[k]).astype(np.float64) - p, change))
    _accept(found, 1e-3, "the change of a parameter")  # which float32 rounds at the size of the parameter
    return {"difference": found} | _rounds(side, lambda: None, lambda _: adam.step())


def _clip(side: Any, case: Case) -> dict[str, Any]:
    assert case.gpt is not None
    adam = side.adamw(list(gpt_shapes(case.gpt).values()))
    flat = [side.fetch(g).reshape(-1).astype(np.float64) for g in adam.gradients]
    expected = math.sqrt(sum(float(g @ g) for g in flat))
    found = float(side.fetch(adam.clip(expected / 2)))
    size = _accept(abs(found - expected) / expected, LIMITS["float32"], "the norm")
    after = side.fetch(adam.gradients[1]).reshape(-1)
    _accept(difference(after, flat[1] / 2), 1e-4, "a clipped gradient")  # the divisor has 1e-6 added to it
    return {"difference": size} | _rounds(side, lambda: None, lambda _: adam.clip(expected / 4))


# --- networks -----------------------------------------------------------------------------------


def _mlp(side: Any, case: Case) -> dict[str, Any]:
    batch, *sizes = case.shape
    rng, weights = np.random.default_rng(), networks.mlp_weights(tuple(sizes))
    data = [(rng.standard_normal((batch, sizes[0]), np.float32), rng.integers(0, sizes[-1], batch)) for _ in range(8)]
    model = side.mlp(weights, networks.MLP_RATE)
    found = math.inf
    for pair in data[:2]:  # in one of them a relu at its kink may have rounded to the other side
        loss, gradients = model.gradients(*pair)
        expected, references = networks.mlp_gradients(weights, *pair)
        found = min(found, max(abs(loss - expected) / expected, *map(difference, gradients, references)))
    _accept(found, LIMITS["float32"], "a gradient")
    there = [model.place(*pair) for pair in data]
    count = 0

    def step() -> None:
        nonlocal count
        model.step(*there[count % len(there)])
        count += 1

    first = [model.gradients(*pair)[0] for pair in data]
    result = _steps(side, step, MLP_STEPS if not side.tiny else FEWEST, SECONDS)
    last = [model.gradients(*pair)[0] for pair in data]
    _learned(first, last)
    return {"difference": found} | result


def _gpt(side: Any, case: Case) -> dict[str, Any]:
    assert case.gpt is not None
    sizes: GPTSizes = case.gpt
    side.watch_memory()
    model = side.gpt(sizes, case.dtype, networks.gpt_weights(gpt_shapes(sizes), sizes.layers))
    some = networks.gpt_tokens(sizes, batch=2, length=min(64, sizes.length))
    loss, gradients = model.gradients(some)
    of_loss, of_slope = networks.gpt_differences(model.weights(), some, sizes, loss, gradients)
    del gradients
    _accept(of_loss, LOSS_LIMIT, "the loss")
    _accept(of_slope, SLOPE_LIMITS[case.dtype], "the size of the gradient")
    tokens = networks.gpt_tokens(sizes)
    expected = model.loss(tokens)  # not compiled, where a library compiles steps
    first = [model.value(model.step(tokens)) for tokens in (tokens, networks.gpt_tokens(sizes))]
    _accept(abs(first[0] - expected) / expected, LOSS_LIMIT, "the loss of a whole batch")
    memory = side.memory()
    losses: list[Any] = []
    result = _steps(
        side,
        lambda: losses.append(model.step(networks.gpt_tokens(sizes))),
        FEWEST if side.tiny else STEPS,
        STEP_SECONDS,
    )
    _learned(first, [model.value(x) for x in losses[-2:]])
    note = f"{model.note}; the slope along the gradient differs by {of_slope:.1g}"
    return (
        result
        | memory
        | {
            "difference": of_loss,
            "tokens_per_s": sizes.batch * sizes.length / result["median_ms"] * 1e3,
            "note": note,
        }
    )


def _learned(first: list[float], last: list[float]) -> None:
    before, after = statistics.fmean(first), statistics.fmean(last)
    if not after < before:
        raise WrongResult(f"the loss was {before:.4f} at first and {after:.4f} at last")


KINDS: dict[str, Callable[[Any, Case], dict[str, Any]]] = {
    "forward": _forward,
    "backward": _backward,
    "copy": _copy,
    "adamw": _adamw,
    "clip": _clip,
    "mlp": _mlp,
    "gpt": _gpt,
}
