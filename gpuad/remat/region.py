"""Regions: one run of a function that can be run again, and is held to do the same.

What a function computes in a region is wrapped, so that what enters from outside shows: a differentiated tensor is
captured (the k-th, in order), anything else is a constant.  A first run writes a Record (record.py): each op with its
parameters and where its operands came from, each constant, and a digest of each value that is written to memory.  A
second run is held against it as it goes, and computes late what nothing may ask for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from ..array import Array, describe
from ..dtype import WEAK
from ..errors import CaptureError
from ..fuse.plan import realize
from ..provenance import describe as describe_site
from ..provenance import here
from ..tensor import Tensor
from ..trace import Trace, active_region, apply, horizon, instead
from .late import given, later
from .policies import Policy, Value
from .record import Constant, Place, Record, Step

# What takes the place of arrays from outside, where a function runs on shapes alone; else they are used themselves.
from_outside: ContextVar[Callable[[Array], Array] | None] = ContextVar("from_outside", default=None)


def brought_in(array: Array) -> Array:
    """`array` from outside, as it is used inside."""
    bring = from_outside.get()
    return array if bring is None else bring(array)


class Region(Trace):
    """One run.  What it computes is wrapped in tensors whose `link` is the Place that their value comes from.

    `inside(x)` makes what stands inside for a tensor x that is captured first.
    """

    __slots__ = (
        "captured",
        "given",
        "inside",
        "kept",
        "late",
        "parent",
        "policy",
        "record",
        "replay",
        "seen",
        "several",
        "step",
        "watched",
    )
    kind = "checkpoint"

    def __init__(
        self,
        record: Record,
        *,
        inside: Callable[[Tensor], Tensor] | None = None,
        policy: Policy | None = None,
        replay: list[Any] | None = None,
        given: dict[Place, Array] | None = None,
        late: bool = False,
    ) -> None:
        super().__init__()
        self.record, self.inside, self.policy = record, inside, policy
        self.replay = replay  # in a second run, what stands for the captured tensors
        self.given = given or {}  # values that were kept
        self.late = late  # does it compute what is asked for only?
        self.captured: list[Tensor] = []
        self.kept: dict[Place, Array] = {}  # what the policy keeps of a first run
        self.several: dict[int, list[Array]] = {}  # results of the ops that have more than one, if there is a policy
        # by handle and data: these, what stands for them inside, and its place
        self.seen: dict[tuple[int, int], tuple[Tensor, Any, Any, Place]] = {}
        self.watched: set[Place] = set()
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

    def is_constant(self, x: Tensor) -> bool:
        """Was `x` detached, or computed of what was?"""
        return bool(x.link[0] == "constant")

    def lift(self, op: Any, args: list[Any], lower: list[Any], out: Any, params: dict[str, Any]) -> Any:
        """Never, but where a thread does not know that it computes for this region: a CaptureError."""
        raise CaptureError(
            f"{op.name}() at {describe_site(here(3))} takes a tensor of {self.record.name}(), which is checkpointed, to"
            " another thread\n  compute in the thread that calls the function: what others do cannot be followed"
        )

    def apply(self, op: Any, args: Sequence[Any], params: dict[str, Any]) -> Any:
        """`op` on what stands inside for `args`; the levels below see neither this region nor anything outside it."""
        record, hidden = self.record, self.id < horizon.get()  # inside no_grad() all are constants
        if hidden and not any(type(a) not in WEAK and a.trace is self for a in args):
            with self.outside():
                return apply(op, [a if type(a) in WEAK else Tensor(a.array) for a in args], params)
        lower: list[Any] = []
        operands: list[Any] = []
        for a in args:
            if type(a) in WEAK:
                lower.append(a)
                operands.append(repr(a))
            elif a.trace is self:
                lower.append(Tensor(a.array) if hidden else a.data)
                operands.append(a.link)
            elif not hidden and (a.trace is not None or a.link is not None):
                stand_in, place = self.capture(a)
                lower.append(stand_in)
                operands.append(place)
            else:
                outside = brought_in(a.array)
                lower.append(a if outside is a.array and not hidden else Tensor(outside))
                operands.append(record.constant(outside))
        k, again = self.step, self.replay is not None
        self.step += 1
        step = Step(op.name, getattr(op, "record", op), here(3), tuple(operands), params)
        if again:
            record.check(k, step)
        else:
            record.steps.append(step)
        out = self._applied(k, op, lower, params)
        results = out if type(out) is tuple else (out,)
        arrays = [y.array for y in results]
        if not again:
            step.results += [(a.shape, a.dtype) for a in arrays]
            self._keep(k, None, arrays)
        if record.determinism == "hash":
            self._watch(k, op, operands, lower, arrays)
        constant = hidden or all(type(a) is Constant or type(a) is str or a[0] == "constant" for a in operands)
        wrapped = [Tensor(y, self, ("constant", k, n) if constant else (k, n)) for n, y in enumerate(results)]
        return tuple(wrapped) if type(out) is tuple else wrapped[0]

    def _watch(self, k: int, op: Any, operands: list[Any], lower: list[Any], arrays: list[Array]) -> None:
        """Have digests taken of the values that a tape would keep for this op: operands and results."""
        varying = tuple([type(a) is tuple and a[0] != "constant" for a in operands])
        n = len(operands)
        for slot in op.plan(varying) or () if any(varying) else ():
            place = operands[slot] if slot < n else (k, slot - n)
            if type(place) is tuple and type(place[0]) is int and place not in self.watched:
                self.watched.add(place)
                array = lower[slot].array if slot < n else arrays[slot - n]
                self.record.watch(place[0], place[1], array, self.replay is not None)

    def _applied(self, k: int, op: Any, lower: list[Any], params: dict[str, Any]) -> Any:
        """What `op` gives, as the region around this one sees it: computed, or kept, or to be computed late."""
        evaluate, record = None, self.record
        if (k, 0) in self.given and record.steps[k].op == op.name:  # "off" may do another one here
            evaluate = functools.partial(given, self.given, k)
        elif self.late and op.may_wait and record.determinism != "off":  # or the result could have another shape
            evaluate = functools.partial(later, record.steps[k].results[0])
        token = instead.set(evaluate)
        try:
            with self.outside():
                return apply(op, lower, params)
        finally:
            instead.reset(token)

    @contextmanager
    def outside(self) -> Iterator[None]:
        """As seen by the region around this one, if there is one."""
        token = active_region.set(self.parent)
        try:
            yield
        finally:
            active_region.reset(token)

    def _keep(self, k: int, name: str | None, arrays: list[Array]) -> None:
        """Keep the results of the k-th op if the policy says so of one of them."""
        step = self.record.steps[k]
        if self.policy is None or step.made_by.besides:  # which gives more where a derivative follows
            return
        if any(self.policy(Value(step.op, name, a.shape, a.dtype)) for a in arrays):
            for n, array in enumerate(arrays):
                array.wanted = True
                self.kept[k, n] = array
        elif len(arrays) > 1:
            self.several[k] = arrays  # one may be given a name, and is then kept with the others

    def name(self, x: Tensor, name: str) -> None:
        """Give `x`, a result of an op in this region, a name that the policy may know."""
        k = x.link[0]
        if self.replay is None and type(k) is int and x.link not in self.kept:
            self._keep(k, name, self.several.get(k, [x.array]))

    def capture(self, x: Tensor) -> tuple[Any, Place]:
        """What stands inside for a differentiated tensor from outside, and its place."""
        key = (id(x), id(x.data))  # a handle may be rebound inside; both are kept alive below
        if key in self.seen:
            return self.seen[key][2:]
        k = len(self.captured)
        self.captured.append(x.alias())
        if self.replay is None:
            stand_in: Any = Tensor(x.array) if self.inside is None else self.inside(x)
        elif k >= len(self.replay):
            raise CaptureError(
                f"{self.record.name}() used {x.name or describe(x)} made at {describe_site(x.array.site)} when it ran"
                f" again, at {describe_site(here(4))}, and not when it ran first\n"
                "  a checkpointed function must do the same both times; pass what changes as an argument"
            )
        else:
            stand_in = self.replay[k]
            self._check_capture(x, stand_in.array)
        self.seen[key] = x, x.data, stand_in, ("captured", k)
        return self.seen[key][2:]

    def _check_capture(self, x: Tensor, before: Array) -> None:
        now, used = brought_in(x.array), here(4)
        if now is before or self.record.determinism == "off":
            return

        text = (  # of which nothing holds the arrays: a device may ask for it late
            f"{x.name or describe(x)}, which {self.record.name}() uses from outside, was assigned between the"
            f" forward and the backward pass\n  used at {describe_site(used)}; now it is the value made at"
            f" {describe_site(now.site)}\n  call backward() first, or pass the tensor as an argument"
        )
        if (now.shape, now.dtype, now.device) != (before.shape, before.dtype, before.device):
            raise CaptureError(text)
        device = now.device
        device.check_digests(device.digest(realize(before)), device.digest(realize(now)), lambda _: CaptureError(text))


__all__ = ["Region", "brought_in", "from_outside"]
