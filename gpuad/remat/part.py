"""Parts: functions that run once, and then again as often as derivatives ask; and the ops that do so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .. import tree
from ..dtype import is_float
from ..errors import GpuadError, RecomputeError
from ..node import Entry, place
from ..op import Op
from ..provenance import blame, raised_at
from ..provenance import describe as describe_site
from ..tape import sweep
from ..tensor import Tensor
from ..trace import ForwardTrace, ReverseTrace, Trace, active_region
from .draws import Draws
from .policies import Policy
from .record import Record, Result
from .region import Region


def name_of(f: Callable[..., Any]) -> str:
    """What messages call `f`."""
    return getattr(f, "__name__", type(f).__name__)


def varies(x: Tensor) -> bool:
    """May a derivative flow through `x`?"""
    return is_float(x.dtype) and (x.link is not None if x.trace is None else not x.trace.is_constant(x))


class Part:
    """A function of a list of tensors, with what is known of its first run."""

    def __init__(
        self, call: Callable[[Sequence[Any]], Any], name: str, determinism: str = "hash", generators: Sequence[Any] = ()
    ) -> None:
        around = active_region.get()
        self.call, self.draws = call, Draws(generators)
        self.record = Record(name, determinism, None if around is None else around.record)
        self.varying: Sequence[bool] | None = None  # which inputs may have a derivative; None for all

    def first(
        self,
        inputs: Sequence[Tensor],
        policy: Policy | None = None,
        inside: Callable[[Tensor], Tensor] | None = None,
        varying: Sequence[bool] | None = None,
    ) -> tuple[Any, Region]:
        """What it returns, and the region it ran in."""
        self.varying = varying
        region = Region(self.record, policy=policy, inside=inside)
        with self.draws.recorded(), region.running():
            return self.call(self._entering(inputs, region)), region

    def again(self, inputs: Sequence[Any], captured: list[Any], given: dict[Any, Any] | None = None) -> list[Any]:
        """Its results that it computes, once more, seen from outside its region."""
        region = Region(self.record, replay=captured, given=given, late=True)
        try:
            with self.draws.repeated(), region.running(), blame(None):  # messages tell the function's own lines
                out = self.call(self._entering(inputs, region))
        except (GpuadError, MemoryError):
            raise
        except Exception as error:
            raise RecomputeError(
                f"{self.record.name}() raised {type(error).__name__} when it ran again, at"
                f" {describe_site(raised_at(error))}, and not when it ran first: {error}\n"
                "  likely something outside that the first run used up or changed, as an iterator or a list"
            ) from error
        results = [y for y in tree.leaves(out) if isinstance(y, Tensor) and y.trace is region]
        self.record.finish(region.step, list(map(result_of, results)))
        return [y.data for y in results]

    def _entering(self, inputs: Sequence[Any], region: Region) -> list[Tensor]:
        varying = self.varying or [True] * len(inputs)
        return [
            Tensor(x, region, ("argument", k) if varies else ("constant", "argument", k))
            for k, (x, varies) in enumerate(zip(inputs, varying, strict=True))
        ]


def result_of(y: Tensor) -> Result:
    """What a record keeps of a tensor that a function returns, and its region computes."""
    return Result(y.link, y.shape, y.dtype)


class Rerun(Op):
    """An op that has been computed by a function, whose rules run that again under the trace that asks."""

    inputs = params = ()  # any number of tensors
    hidden = 0  # outputs after the results, which nobody sees

    def _returns(self, differentiable: list[bool], hidden: int = 0) -> None:
        """Have an output for each result, differentiable or not, and `hidden` ones after them."""
        self.hidden, self.differentiable = hidden, [*differentiable, *[False] * hidden]
        self.nodes = {}
        n = len(self.differentiable)
        self.outputs = ("y",) if n == 1 else tuple([f"y{k}" for k in range(n)])

    def again(self, inputs: Sequence[Any], frame: list[Any]) -> list[Any]:
        """The results, computed again from `inputs`; a frame has what the tape keeps."""
        raise NotImplementedError

    def _run_again(self, inputs: Sequence[Any], frame: list[Any], trace: Trace) -> list[Any]:
        """The results under `trace`.

        On the tapes that look on, this run stands where the call does, and takes the cotangents of the call's results:
        so sums are taken as if it had run once.
        """
        assert self.nodes is not None
        nodes = {level: node for level, held in self.nodes.items() if (node := held()) is not None}
        token = place.set(max((node.behind for node in nodes.values()), default=place.get()))
        try:
            outputs = self.again(inputs, frame)
        finally:
            place.reset(token)
            trace.open = False
        for level, node in nodes.items():
            links = [_link(y.data if y.trace is trace else y, level) for y in outputs]
            if any(links):
                node.again = [*links, *[None] * self.hidden]
        return outputs

    def plan(self, traced: tuple[bool, ...]) -> tuple[int, ...] | None:
        if not any(traced) or not any(self.differentiable):
            return None
        n, end = len(traced), len(self.outputs)
        return (*range(n), *range(n + end - self.hidden, n + end))

    def pull(self, g: Any, frame: list[Any], traced: Sequence[bool]) -> list[Any]:
        trace = ReverseTrace()
        inputs = [Tensor(x, trace, (Entry(None, None), 0)) if t else x for x, t in zip(frame, traced, strict=False)]
        outputs = self._run_again(inputs, frame, trace)
        cotangents = g if len(self.outputs) > 1 else [g]
        found = zip(outputs, cotangents[: len(self.outputs) - self.hidden], strict=True)
        seeds = [(y.link, ct) for y, ct in found if ct is not None and y.trace is trace]
        del outputs, found
        leaves = sweep(seeds)
        return [leaves.get(x.link[0]) if t else None for x, t in zip(inputs, traced, strict=True)]

    def push(self, tangents: list[Any], frame: list[Any]) -> Any:
        if all(t is None for t in tangents):
            return None
        trace = ForwardTrace()
        inputs = [x if t is None else Tensor(x, trace, t) for x, t in zip(frame, tangents, strict=False)]
        outputs = self._run_again(inputs, frame, trace)
        slopes = [y.link if y.trace is trace else None for y in outputs]
        return [*slopes, *[None] * self.hidden] if len(self.outputs) > 1 else slopes[0]


def _link(y: Any, level: Any) -> Any:
    """The link of a tensor on the tape of a trace, or the ambient one; None if it is not on that."""
    while y.trace is not level and y.trace is not None:
        y = y.data
    return y.link if y.trace is level else None


__all__ = ["Part", "Rerun", "name_of", "result_of", "varies"]
