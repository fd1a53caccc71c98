"""Measuring a chain: the bytes of each of its functions by a dry run, the time by arithmetic or by a clock."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from ..array import Array
from ..errors import DataError, DeviceError
from ..fuse.plan import realize_all
from ..node import Leaf
from ..ops.create import ones_like
from ..remat.chain import Backward, Chain
from ..remat.draws import undrawn
from ..remat.part import name_of, varies
from ..remat.schedule import Schedule, StageCost
from ..remat.stage import Captured, Form, Stage, Taped, taken_apart
from ..tape import sweep
from ..tensor import Tensor
from ..trace import ReverseTrace
from .hollow import Counting, counting, stand_in_for

FLOPS_A_DIGESTED_BYTE = 4  # reading a byte takes a part of what writing one does
REPEATS = 3  # of each function, for a clock

Functions = Sequence[Callable[[Any], Any]]


@dataclass(frozen=True)
class Measured:
    """The functions of a chain as a planner sees them, and the bytes that are there from beginning to end.

    These are the chain's input, its result and the cotangent of that, which whoever calls the chain may hold, and
    what identifies the values of the first run.
    """

    stages: list[StageCost]
    first: int


@dataclass
class _Ran:
    """A function of a chain that has run on shapes: what it was given, and what it returned."""

    stage: Stage
    arrays: list[Array]
    results: list[Array]
    output: int  # bytes
    besides: int  # that stay besides: digests of values, and what the function keeps itself
    forward: int
    work: int


def measure(fns: Functions, x: Any, determinism: str, generators: Sequence[Any]) -> Measured:
    """What each of `fns` takes, where `x` is given to the first; times are in arithmetic operations.

    Nothing is computed: of `x` and what the functions use from outside only shapes matter.
    """
    form, tensors = taken_apart(x, lambda leaf: True)
    if not tensors:
        raise DataError(
            f"a plan needs the input of its functions, with a tensor at least, got {type(x).__name__}\n"
            "  give it as x, made by gpuad.asarray()"
        )
    varying = [varies(t) for t in tensors]
    with undrawn(generators), counting(stand_in_for(tensors[0].device)) as count:
        arrays = [count.bring(t.array) for t in tensors]
        captured = Captured()
        ran: list[_Ran] = []
        for f in fns:
            stage = Stage(f, form, varying, determinism, generators)
            try:
                form, found = _forward(count, stage, arrays, captured)
            except DeviceError as error:
                raise DataError(
                    f"{name_of(f)}() cannot run on shapes alone, as it does for a plan: {error}\n"
                    '  checkpoint_sequential(fns, x, "every"), "log" and "all" need no dry run'
                ) from error
            ran.append(found)
            arrays, varying = found.results, stage.differentiable
        leaves: dict[Leaf, Tensor] = {}
        stages = [_backward(count, item, captured, leaves) for item in reversed(ran)][::-1]
    last = stages[-1]
    first = sum(t.array.nbytes for t in tensors) + last.output + last.cotangent + sum(item.besides for item in ran)
    stages[-1] = replace(last, output=0, cotangent=0, taped=last.taped - last.output)
    return Measured(stages, first)


def _forward(count: Counting, stage: Stage, arrays: list[Array], captured: Captured) -> tuple[Form, _Ran]:
    """Run a stage without a tape."""
    live, work = count.begin()
    form, tensors, _ = stage.first(arrays, captured, taped=False)
    results = [t.array for t in tensors]
    realize_all(results)
    del tensors
    buffers = {id(y.buffer): y.buffer for y in results}
    output = sum(buffer.nbytes for key, buffer in buffers.items() if buffer is not None and key in count.new)
    besides = count.live - live - output
    return form, _Ran(stage, arrays, results, output, besides, count.peak - live, count.work - work)


def _backward(count: Counting, ran: _Ran, captured: Captured, leaves: dict[Leaf, Tensor]) -> StageCost:
    """Run it with a tape, twice: as the first run does, and as a later one, of whose results nobody asks."""
    stage, given = ran.stage, [count.bring(x.array) for x in captured.tensors]

    live, work = count.begin()
    tensors, tape = stage.again(ran.arrays, given, captured.ends, taped=True)
    realize_all([t.array for t in tensors])
    taped, held, forward_work = count.peak - live, count.live - live, count.work - work
    cotangents = _cotangents(count, ran.results, stage.differentiable)
    cotangent = count.live - live - held
    del tensors
    _, work = count.begin()
    _pull(_taped(tape), cotangents, leaves)
    backward, backward_work = count.peak - live, count.work - work
    del tape
    gradient = count.live - live

    again, _ = count.begin()
    cotangents = _cotangents(count, ran.results, stage.differentiable)
    _, work = count.begin()
    _, tape = stage.again(ran.arrays, given, captured.ends, taped=True)
    _pull(_taped(tape), cotangents, {})
    return StageCost(
        output=ran.output,
        saved=max(0, held - ran.output),
        forward=ran.forward,
        taped=taped,
        backward=max(backward, count.peak - again),
        cotangent=cotangent,
        gradient=gradient,
        forward_time=ran.work + FLOPS_A_DIGESTED_BYTE * _digested(stage),
        backward_time=backward_work,
        output_time=max(0, forward_work + backward_work - (count.work - work)),
    )


def _digested(stage: Stage) -> int:
    """The bytes that each run takes digests of."""
    forms = [step.results[k] for step in stage.part.record.steps for k in step.digests]
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in forms)


def _pull(tape: Taped, cotangents: list[Any], leaves: dict[Leaf, Tensor]) -> None:
    """Pull the cotangents of a stage's results back through its tape, and drop those of what it is given."""
    sweep(tape.seeds(cotangents), leaves=leaves)
    found = [leaves.pop(entry) for entry in tape.entries if entry is not None and entry in leaves]
    realize_all([t.array for t in (*found, *leaves.values())])


def _cotangents(count: Counting, results: Sequence[Array], differentiable: list[bool]) -> list[Any]:
    return [
        Tensor(count.device.allocate(y.shape, y.dtype)) if flows else None for y, flows in zip(results, differentiable)
    ]


def peak(fns: Functions, x: Any, schedule: Schedule, determinism: str, generators: Sequence[Any]) -> int:
    """The most bytes that the chain takes by `schedule`, forward and backward, with what Measured counts as there."""
    form, tensors = taken_apart(x, lambda leaf: True)
    trace = ReverseTrace()
    with undrawn(generators), counting(stand_in_for(tensors[0].device)) as count:
        inputs = [Tensor(count.bring(t.array)) for t in tensors]
        for k, t in enumerate(tensors):
            if varies(t):
                inputs[k] = Tensor(inputs[k], trace, (Leaf(None, None), 0))
        live, _ = count.begin()
        chain = Chain(fns, determinism, generators)
        chain.first(form.filled(inputs), schedule)
        results, chain.results = chain.results, ()
        cotangents = _cotangents(count, results, chain.differentiable)
        given = [count.bring(x.array) for x in chain.captured.tensors]
        left, chain.left = chain.left, None
        assert left is not None
        held = list(cotangents)
        Backward(chain, left, given, cotangents, retain=False).run()
        del results, held
        return count.peak - live + sum(t.array.nbytes for t in tensors)


def clocked(fns: Functions, x: Any, measured: Measured, generators: Sequence[Any]) -> Measured:
    """The same with the times that the functions take on real values, in seconds: medians of REPEATS."""
    form, tensors = taken_apart(x, lambda leaf: True)
    varying = [varies(t) for t in tensors]
    arrays = [t.array for t in tensors]
    found = []
    with undrawn(generators):
        for f, known in zip(fns, measured.stages, strict=True):
            forwards, steps = [], []
            for _ in range(1 + REPEATS):  # the first compiles kernels
                stage, captured = Stage(f, form, varying, "off", generators), Captured()
                began = time.perf_counter()
                result, tensors, _ = stage.first(arrays, captured, taped=False)
                _finish(tensors)
                forwards.append(time.perf_counter() - began)
                cotangents: list[Any] = [
                    ones_like(y) if flows else None for y, flows in zip(tensors, stage.differentiable)
                ]
                began = time.perf_counter()
                given = [x.array for x in captured.tensors]
                again, tape = stage.again(arrays, given, captured.ends, taped=True)
                _finish(again)
                _pull(_taped(tape), cotangents, {})
                _finish(tensors)
                steps.append(time.perf_counter() - began)
            forward, step = median(forwards[1:]), median(steps[1:])
            unneeded = known.output_time / known.forward_time if known.forward_time else 0.0
            found.append(
                replace(
                    known,
                    forward_time=forward,
                    backward_time=max(0.0, step - forward),
                    output_time=unneeded * forward,
                )
            )
            form, varying, arrays = result, stage.differentiable, [t.array for t in tensors]
    return Measured(found, measured.first)


def _finish(tensors: list[Tensor]) -> None:
    """Wait until they are computed, and all before them."""
    realize_all([t.array for t in tensors])
    for device in {t.device for t in tensors}:
        device.synchronize()


def _taped(tape: Taped | None) -> Taped:
    assert tape is not None
    return tape
