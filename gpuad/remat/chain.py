"""Chains: functions, each of which takes what the one before returns, run by a schedule as one op of the tape.

The schedule (schedule.py) says which functions, called stages, run with a tape, and which are run again later.  A plain
backward pass carries it out step by step, by a list of what is to be done instead of recursion.  Where another
transformation looks on, the rules of the op run the chain again under that, with each Advance of the schedule
checkpointed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .. import tree
from ..array import Array
from ..attribution import during
from ..fuse.plan import realize_all
from ..node import Leaf
from ..op import Op
from ..provenance import Site
from ..tape import sweep
from ..tensor import Tensor
from ..trace import horizon, is_recording
from .boundary import Boundary
from .part import Rerun, name_of, varies
from .record import Record
from .schedule import Advance, Schedule, Tape, work
from .stage import Captured, Form, Stage, Taped, taken_apart


def run(
    fns: Sequence[Callable[[Any], Any]],
    x: Any,
    schedule: Schedule,
    determinism: str = "hash",
    generators: Sequence[Any] = (),
) -> Any:
    """What the last of `fns` returns; `x`, a tree, is given to the first.  `schedule` is of just these functions."""
    if not is_watched(x):
        for f in fns:
            x = f(x)
        return x
    tensors = [leaf for leaf in tree.leaves(x) if isinstance(leaf, Tensor)]
    chain = Chain(fns, determinism, generators)
    form = chain.first(x, schedule)
    if not form.places:
        return form.filled(())
    captured, chain.captured.tensors = chain.captured.tensors, []  # or the op would keep them as long as its result
    results = chain(*tensors, *captured)
    del captured
    return form.filled(results if isinstance(results, tuple) else (results,))


def is_watched(x: Any) -> bool:
    """May a derivative be taken of what is computed of `x`: outside no_grad(), or by a newer transformation?"""
    traces = [leaf.trace for leaf in tree.leaves(x) if isinstance(leaf, Tensor)]
    return is_recording() or any(trace is not None and trace.id > horizon.get() for trace in traces)


class Progress:
    """What a run of a chain has left for its backward pass."""

    def __init__(self, boundaries: dict[int, Boundary], tapes: dict[int, Taped]) -> None:
        self.boundaries = boundaries  # by the stage that is given them
        self.tapes = tapes  # by stage

    def copy(self) -> Progress:
        """The same, to be used up by one of several backward passes."""
        return Progress(dict(self.boundaries), dict(self.tapes))


class Chain(Rerun):
    """One run of a chain, an op of its input's tensors and of those that its functions capture."""

    def __init__(self, fns: Sequence[Callable[[Any], Any]], determinism: str, generators: Sequence[Any]) -> None:
        self.name = f"checkpoint({name_of(fns[0])} .. {name_of(fns[-1])})"
        self.account = Op(self.name, ())  # what boundaries are kept for
        self.fns, self.determinism, self.generators = fns, determinism, generators
        self.captured = Captured()
        self.stages: list[Stage] = []
        self.record = Record(self.name, determinism)  # of the records of its stages
        self.schedule: Schedule = ()
        self.arguments = 0  # how many of the op's inputs come from the chain's input
        self.results: tuple[Array, ...] = ()  # until they are handed out
        self.left: Progress | None = None  # by the first run, until a backward pass uses it up

    def first(self, x: Any, schedule: Schedule) -> Form:
        """Run `schedule` on `x`, once: the form of what the last function returns."""
        form, tensors = taken_apart(x, lambda leaf: True)
        varying = [varies(t) for t in tensors]
        arrays = [t.array for t in tensors]
        realize_all(arrays)
        self.schedule, self.arguments, self.left = schedule, len(arrays), Progress({}, {})
        for item in schedule:
            if isinstance(item, Advance):
                self.left.boundaries[item.first] = Boundary(self.account, arrays)
            for s in range(item.first, item.last + 1):
                stage = Stage(self.fns[s], form, varying, self.determinism, self.generators)
                form, tensors, taped = stage.first(arrays, self.captured, isinstance(item, Tape))
                varying = stage.differentiable
                arrays = [t.array for t in tensors]
                realize_all(arrays)
                self.stages.append(stage)
                self.record.steps.append(stage.step())
                if taped is not None:
                    self.left.tapes[s] = taped
            if isinstance(item, Advance) and item.offload:
                self.left.boundaries[item.first].offload()
        self.results = tuple(arrays)
        self._returns(self.stages[-1].differentiable)
        return form

    def evaluate(self, arrays: list[Any], params: dict[str, Any], site: Site | None) -> Any:
        found, self.results = self.results, ()
        return found if len(found) > 1 else found[0]

    # --- under another transformation -------------------------------------------------------------

    def again(self, inputs: Sequence[Any], frame: list[Any]) -> list[Any]:
        """The results, computed again from `inputs`: the tensors of the chain's input, then the captured ones."""
        values, captured = list(inputs[: self.arguments]), list(inputs[self.arguments :])
        for item in self.schedule:
            if isinstance(item, Tape):
                stage = self.stages[item.stage]
                with during("recompute"):
                    values = stage.part.again(values, [captured[k] for k in stage.captured])
            else:
                segment = Segment(self.stages[item.first : item.last + 1], len(values))
                results = segment(*values, *[captured[k] for k in segment.captured])
                values = list(results) if isinstance(results, tuple) else [results]
        return values

    # --- the plain backward pass ------------------------------------------------------------------

    def pull(self, g: Any, frame: list[Any], traced: Sequence[bool]) -> list[Any]:
        cotangents = list(g) if len(self.outputs) > 1 else [g]
        if self.left is None or not _are_plain([*cotangents, *frame[: len(traced)]]):
            return super().pull(g, frame, traced)
        return self._carry_out(self.left.copy(), cotangents, frame, traced, retain=True)

    def pull_last(self, g: Any, frame: list[Any], traced: Sequence[bool]) -> list[Any]:
        """The same, where nobody needs the tape again: what is left of the first run is freed on the way."""
        cotangents = g if len(self.outputs) > 1 else [g]
        left, self.left = self.left, None
        if left is None or not _are_plain([*cotangents, *frame[: len(traced)]]):
            return super().pull(g, frame, traced)
        del g
        return self._carry_out(left, cotangents, frame, traced, retain=False)

    def _carry_out(
        self, left: Progress, cotangents: list[Any], frame: list[Any], traced: Sequence[bool], *, retain: bool
    ) -> list[Any]:
        captured = [x.array for x in frame[self.arguments : len(traced)]]
        backward = Backward(self, left, captured, cotangents, retain)
        backward.run()
        found = [*backward.cotangents, *[backward.found.get(end) for end in self.captured.ends]]
        return [ct if t else None for ct, t in zip(found, traced, strict=True)]


class Backward:
    """A backward pass through a chain, by a list of what is still to be done."""

    def __init__(
        self, chain: Chain, left: Progress, captured: list[Array], cotangents: list[Any], retain: bool
    ) -> None:
        self.chain, self.left, self.captured, self.retain = chain, left, captured, retain
        self.cotangents = cotangents  # of what comes out of the stage that is next
        self.found: dict[Leaf, Tensor] = {}  # cotangents of the captured tensors, by their ends
        self.values: list[Array] = []  # what the next stage is given when it runs again
        self.first = set(left.tapes)  # those of the first run
        # items of the schedule, the next last, and whether the backward pass comes to them
        self.pending: list[tuple[Tape | Advance, bool]] = [(item, True) for item in chain.schedule]

    def run(self) -> None:
        """Do all of it, or stop where no derivative flows any further."""
        while self.pending:
            item, comes_back = self.pending.pop()
            if not comes_back:
                self._run_again(item)
            elif isinstance(item, Tape):
                self._sweep(item.stage)
                if all(ct is None for ct in self.cotangents):
                    self.cotangents = [None] * self.chain.arguments
                    return
            else:
                self.values = self.left.boundaries[item.first].fetched()
                self.pending += work(item.inner)

    def _run_again(self, item: Tape | Advance) -> None:
        boundaries, taped = self.left.boundaries, isinstance(item, Tape)
        if not taped and item.first not in boundaries:
            boundaries[item.first] = Boundary(self.chain.account, self.values)
        for s in range(item.first, item.last + 1):
            with during("recompute"):
                results, tape = self.chain.stages[s].again(
                    self.values, self.captured, self.chain.captured.ends, taped=taped
                )
                self.values = [y.array for y in results]
                if tape is not None:
                    self.left.tapes[s] = tape
                if taped and self.pending[-1][1]:  # the backward pass comes next: nobody wants the results
                    self.values = []
                del results
                realize_all(self.values)
        if isinstance(item, Advance) and item.offload:
            boundaries[item.first].offload()

    def _sweep(self, s: int) -> None:
        """Pull the cotangents back through the tape of stage `s`."""
        following = self.pending[-1][0] if self.pending else None
        if isinstance(following, Advance) and following.prefetch and following.last + 1 == s:
            self.left.boundaries[following.first].prefetch()
        self.values = []
        tape = self.left.tapes.pop(s)
        sweep(tape.seeds(self.cotangents), leaves=self.found, retain=self.retain and s in self.first)
        self.cotangents = [None if entry is None else self.found.pop(entry, None) for entry in tape.entries]
        self.left.boundaries.pop(s, None)
        del tape
        realize_all([t.array for t in (*self.cotangents, *self.found.values()) if t is not None])


class Segment(Rerun):
    """Stages of a chain that are checkpointed together, where a derivative of the chain is looked on by another."""

    def __init__(self, stages: Sequence[Stage], arguments: int) -> None:
        self.stages, self.arguments = stages, arguments
        self.name = f"checkpoint({stages[0].part.record.name} .. {stages[-1].part.record.name})"
        self.record = Record(self.name, stages[0].part.record.determinism)
        self.record.steps = [stage.step() for stage in stages]
        self.captured = sorted({k for stage in stages for k in stage.captured})
        self._returns(stages[-1].differentiable)

    def again(self, inputs: Sequence[Any], frame: list[Any]) -> list[Any]:
        """The results, computed again from `inputs`: what the first stage is given, then the captured tensors."""
        values = list(inputs[: self.arguments])
        captured = dict(zip(self.captured, inputs[self.arguments :], strict=True))
        for stage in self.stages:
            with during("recompute"):
                values = stage.part.again(values, [captured[k] for k in stage.captured])
        return values

    def evaluate(self, arrays: list[Any], params: dict[str, Any], site: Site | None) -> Any:
        found = tuple([y.array for y in self.again([Tensor(a) for a in arrays], [])])
        realize_all(found)
        return found if len(found) > 1 else found[0]


def _are_plain(tensors: Sequence[Any]) -> bool:
    """Is no transformation looking on, nor the ambient tape?"""
    return all(t is None or (t.trace is None and t.link is None) for t in tensors)


__all__ = ["is_watched", "run"]
