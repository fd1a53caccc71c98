"""checkpoint: keep a function's inputs, and compute the rest again when a derivative asks for it.

A checkpointed call is one op.  Its rules run the function again under the trace that asks, so it nests and works in
every mode and order.  The first run happens inside a Region: a differentiated tensor that enters from outside becomes
an input of the op (the k-th, in order); what the function draws at random is drawn again.  The second run is watched:
each op, each constant that enters and each value that is written to memory must be what it was, or a RecomputeError
names the first that is not.
"""

from __future__ import annotations

import functools
import random as python_random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from . import random, tree
from .array import Array, describe
from .attribution import during
from .buffer import fingerprint
from .dtype import WEAK, is_float
from .errors import CaptureError, RecomputeError
from .fuse.plan import realize
from .node import Leaf
from .op import Op
from .provenance import Site, here
from .provenance import describe as describe_site
from .recording import suspended
from .tape import sweep
from .tensor import Tensor
from .trace import ForwardTrace, ReverseTrace, Trace, active_region, apply, horizon


def checkpoint(f: Callable[..., Any]) -> Callable[..., Any]:
    """`f`, keeping only its inputs for derivatives and computing the rest again; also a decorator.

    Arguments and result are trees.  Tensors that `f` closes over are differentiated like arguments.  gpuad's random
    numbers, NumPy's global ones and Python's are the same again; a second run that computes something else is a
    RecomputeError, and one that reaches for other tensors a CaptureError.
    """

    @functools.wraps(f)
    def checkpointed(*args: Any, **kwargs: Any) -> Any:
        leaves, structure = tree.flatten((args, kwargs))
        places = [k for k, x in enumerate(leaves) if isinstance(x, Tensor)]

        def call(tensors: Sequence[Any]) -> Any:
            filled = list(leaves)
            for place, t in zip(places, tensors, strict=True):
                filled[place] = t
            some, named = structure.unflatten(filled)
            return f(*some, **named)

        return _first_run(call, [leaves[k] for k in places], getattr(f, "__name__", type(f).__name__))

    return checkpointed


def _first_run(call: Callable[[Sequence[Any]], Any], inputs: list[Tensor], name: str) -> Any:
    record = Record(name)
    draws = Draws()
    region = Region(record)
    with draws.recorded(), region.running():
        out = call([Tensor(Tensor(x.array), region) for x in inputs])
    leaves, structure = tree.flatten(out)
    inside = [k for k, y in enumerate(leaves) if isinstance(y, Tensor) and y.trace is region]
    if not inside:
        return out
    arrays = tuple([leaves[k].array for k in inside])
    del out
    for k in inside:
        leaves[k] = None
    op = Checkpointed(name, call, len(inputs), len(inside), arrays, record, draws)
    results = op(*inputs, *region.captured)
    for k, y in zip(inside, results if isinstance(results, tuple) else (results,), strict=True):
        leaves[k] = y
    return structure.unflatten(leaves)


class Region(Trace):
    """One run of a checkpointed function.  What it computes is wrapped, so that what enters from outside shows."""

    __slots__ = ("captured", "parent", "record", "replay", "seen", "step")
    kind = "checkpoint"

    def __init__(self, record: Record, replay: list[Any] | None = None) -> None:
        super().__init__()
        self.record = record
        self.replay = replay  # in a second run, what stands for the captured tensors
        self.captured: list[Tensor] = []
        self.seen: dict[
            tuple[int, int], tuple[Tensor, Any, Any]
        ] = {}  # (handle, its data, what stands for them inside)
        self.step = 0
        self.parent: Any = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Watch what runs inside."""
        self.parent = active_region.get()
        token = active_region.set(self)
        try:
            yield
        finally:
            active_region.reset(token)
            self.open = False

    def apply(self, op: Any, args: Sequence[Any], params: dict[str, Any]) -> Any:
        """`op` on what stands inside for `args`; the levels below see neither this region nor anything outside it."""
        if self.id < horizon.get():  # inside no_grad(): constants, which are compared where they meet the rest
            with self._outside():
                return apply(op, [a if type(a) in WEAK else Tensor(a.array) for a in args], params)
        lower = []
        for a in args:
            if type(a) in WEAK:
                lower.append(a)
            elif a.trace is self:
                lower.append(a.data)
            elif a.trace is not None or a.link is not None:
                lower.append(self.capture(a))
            else:
                lower.append(a)
        self.record.check_operands(self, op, lower, args)
        with self._outside():
            out = apply(op, lower, params)
        step, self.step = self.step, self.step + 1
        for k, y in enumerate(out if type(out) is tuple else (out,)):
            self.record.watch(self, step, k, op, y)
        return tuple([Tensor(y, self) for y in out]) if type(out) is tuple else Tensor(out, self)

    @contextmanager
    def _outside(self) -> Iterator[None]:
        """As seen by the region around this one, if there is one."""
        token = active_region.set(self.parent)
        try:
            yield
        finally:
            active_region.reset(token)

    def capture(self, x: Tensor) -> Any:
        """What stands inside for a differentiated tensor from outside."""
        key = (id(x), id(x.data))  # a handle may be rebound inside; both are kept alive below
        if key in self.seen:
            return self.seen[key][2]
        k = len(self.captured)
        self.captured.append(x.alias())
        if self.replay is None:
            inside: Any = Tensor(x.array)
        elif k >= len(self.replay):
            raise CaptureError(
                f"{self.record.name}() used {describe(x)} made at {describe_site(x.array.site)} when it ran again,"
                " and not when it ran first\n"
                "  a checkpointed function must do the same both times; pass what changes as an argument"
            )
        else:
            inside = self.replay[k]
            if not _same(inside.array, x.array):
                raise CaptureError(
                    f"{x.name or describe(x)}, which {self.record.name}() uses from outside, was assigned between the"
                    f" forward and the backward pass\n  used at {describe_site(here(3))}; now it is the value made at"
                    f" {describe_site(x.array.site)}\n  call backward() first, or pass the tensor as an argument"
                )
        self.seen[key] = x, x.data, inside
        return inside


def _same(a: Array, b: Array) -> bool:
    """True if two arrays hold the same values."""
    if a is b:
        return True
    if (a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device):
        return False
    return not a.device.computes or _print(a) == _print(b)


def _print(a: Array) -> int:
    realize(a)
    with suspended():  # what a recording computes is verified once; replays compute the same
        return fingerprint(a.device.to_numpy(a))


class Record:
    """What the first run did, for the second to be held against: ops, constants, and values written to memory."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.ops: list[tuple[str, Site | None]] = []
        self.constants: list[tuple[Any, ...]] = []  # the operands of each op that are not computed inside
        self.written: dict[tuple[int, int, int], int] = {}  # fingerprint of the value of each op, where it was written

    def check_operands(self, region: Region, op: Any, lower: list[Any], args: Sequence[Any]) -> None:
        """Note the op and its constants, or compare them with those of the first run."""
        constants = tuple(
            [_constant(a) for a, given in zip(lower, args, strict=True) if type(a) in WEAK or _is_constant(given)]
        )
        if region.replay is None:
            self.ops.append((op.name, here(4)))
            self.constants.append(constants)
            return
        k = region.step
        if k >= len(self.ops) or self.ops[k][0] != op.name:
            before = f"{self.ops[k][0]}() at {describe_site(self.ops[k][1])}" if k < len(self.ops) else "nothing more"
            raise RecomputeError(
                f"{self.name}() took another path when it ran again: {op.name}(), where the first run did {before}\n"
                "  likely a branch on something that changed in between;"
                " a checkpointed function must do the same both times"
            )
        if self.constants[k] != constants:
            self._differs(
                k, "a constant it uses changed between the forward and the backward pass; pass it as an argument"
            )

    def watch(self, region: Region, step: int, output: int, op: Any, y: Tensor) -> None:
        """Take, or compare, the fingerprint of `y` when it is written to memory."""
        array = y.array
        if getattr(op, "view", None) is not None or not array.device.computes:
            return
        report = functools.partial(self._written, region.replay is not None, step, output)
        if array.op is None:
            report(array)
        else:
            array.on_write = report if array.on_write is None else _both(array.on_write, report)

    def _written(self, again: bool, step: int, output: int, array: Array) -> None:
        found = _print(array)
        key = (step, output, array.size)
        if not again:
            self.written[key] = found
        elif self.written.get(key, found) != found:
            self._differs(step, "likely randomness that gpuad does not know of, or state that the first run changed")

    def _differs(self, step: int, cause: str) -> None:
        name, site = self.ops[step]
        raise RecomputeError(
            f"{self.name}() computed something else when it ran again: the first difference is {name}() at"
            f" {describe_site(site)}\n  {cause}"
        )


def _both(first: Callable[[Array], None], second: Callable[[Array], None]) -> Callable[[Array], None]:
    def report(array: Array) -> None:
        first(array)
        second(array)

    return report


def _is_constant(x: Any) -> bool:
    return type(x) not in WEAK and x.trace is None and x.link is None


def _constant(a: Any) -> Any:
    """What identifies an operand that the function does not compute: its value."""
    if type(a) in WEAK:
        return repr(a)
    array = a.array
    if array.op is not None or not array.device.computes:  # random bits and ranges: made of a few numbers
        return array.params if not array.inputs else array.shape
    return _print(array)


class Draws:
    """The state of every source of random numbers as the first run found it."""

    def __init__(self) -> None:
        self.numpy: Any = None
        self.python: Any = None
        self.own: dict[random.Generator, random.State] = {}

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Note the state of what is drawn from inside."""
        numpy, python = np.random.get_state(legacy=False), python_random.getstate()
        with random.recording() as drawn:
            yield
        self.own = drawn
        if _numpy_state(np.random.get_state(legacy=False)) != _numpy_state(numpy):
            self.numpy = numpy
        if python_random.getstate() != python:
            self.python = python

    @contextmanager
    def repeated(self) -> Iterator[None]:
        """Draw inside what was drawn before, and go on afterwards as if nothing had been."""
        numpy = np.random.get_state(legacy=False) if self.numpy is not None else None
        python = python_random.getstate() if self.python is not None else None
        try:
            if self.numpy is not None:
                np.random.set_state(self.numpy)
            if self.python is not None:
                python_random.setstate(self.python)
            with random.replaying(self.own):
                yield
        finally:
            if numpy is not None:
                np.random.set_state(numpy)
            if python is not None:
                python_random.setstate(python)


def _numpy_state(state: Any) -> Any:
    inner = state["state"]
    return inner["pos"], inner["key"].tobytes(), state["has_gauss"], state["gauss"]


class Checkpointed(Op):
    """One checkpointed call: an op whose rules run the function again."""

    def __init__(
        self,
        name: str,
        call: Callable[[Sequence[Any]], Any],
        arguments: int,
        outputs: int,
        results: tuple[Array, ...],
        record: Record,
        draws: Draws,
    ) -> None:
        self.name = f"checkpoint({name})"
        self.inputs = self.params = ()  # any number of tensors
        self.call, self.arguments, self.record, self.draws = call, arguments, record, draws
        self.outputs = tuple(f"y{k}" for k in range(outputs)) if outputs > 1 else ("y",)
        self.differentiable = [is_float(a.dtype) for a in results]
        self.results: tuple[Array, ...] | None = results  # until they are handed out

    def plan(self, traced: tuple[bool, ...]) -> tuple[int, ...] | None:
        return tuple(range(len(traced))) if any(traced) and any(self.differentiable) else None

    def evaluate(self, arrays: list[Any], params: dict[str, Any], site: Site | None) -> Any:
        results, self.results = self.results, None
        assert results is not None, "a checkpointed call is evaluated once"
        return results if len(results) > 1 else results[0]

    def again(self, inputs: Sequence[Any]) -> list[Any]:
        """The differentiable outputs, computed again from `inputs`: the arguments, then the captured tensors."""
        region = Region(self.record, replay=list(inputs[self.arguments :]))
        with self.draws.repeated(), region.running(), during("recompute"):
            out = self.call([Tensor(x, region) for x in inputs[: self.arguments]])
        if region.step != len(self.record.ops):
            name, site = self.record.ops[region.step]
            raise RecomputeError(
                f"{self.record.name}() stopped early when it ran again: the first run went on with {name}() at"
                f" {describe_site(site)}"
            )
        return [y.data for y in tree.leaves(out) if isinstance(y, Tensor) and y.trace is region]

    def pull(self, g: Any, frame: list[Any], traced: Sequence[bool]) -> list[Any]:
        trace = ReverseTrace()
        inputs = [Tensor(x, trace, (Leaf(None, None), 0)) if t else x for x, t in zip(frame, traced, strict=False)]
        try:
            outputs = self.again(inputs)
        finally:
            trace.open = False
        cotangents = g if len(self.outputs) > 1 else [g]
        seeds = [(y.link, ct) for y, ct in zip(outputs, cotangents, strict=True) if ct is not None and y.trace is trace]
        del outputs
        found = sweep(seeds)
        return [found.get(x.link[0]) if t else None for x, t in zip(inputs, traced, strict=True)]

    def push(self, tangents: list[Any], frame: list[Any]) -> Any:
        if all(t is None for t in tangents):
            return None
        trace = ForwardTrace()
        inputs = [x if t is None else Tensor(x, trace, t) for x, t in zip(frame, tangents, strict=False)]
        try:
            outputs = self.again(inputs)
        finally:
            trace.open = False
        slopes = [y.link if y.trace is trace else None for y in outputs]
        return slopes if len(slopes) > 1 else slopes[0]


__all__ = ["checkpoint"]
