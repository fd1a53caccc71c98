"""Profile: what a ledger has seen of the memory of one run, and the questions that reports ask of it.

Memory is a list of Blocks, each with the events between which it lived.  Events are numbered from 0; after event `n` a
block is alive if `born <= n` and it has not `died` by then.  Bytes are those that were asked for: what an allocator
rounds them to is in the reconciliation.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate

# What memory is for, most lasting first.  "saved" is kept for the backward pass, "boundary" the input of a checkpointed
# function, "recomputed" what such a function computes again, "cotangent" what else the backward pass makes.
CATEGORIES = (
    "parameter",
    "optimizer state",
    "gradient",
    "input",
    "boundary",
    "saved",
    "recomputed",
    "cotangent",
    "workspace",
    "temporary",
)
PHASES = ("setup", "forward", "backward", "recompute", "step")


@dataclass(slots=True)
class Block:
    """Memory from its allocation to its end.

    `op` is what computed it, `line` the user's line of that ("train.py:41"; of what the backward pass makes, the line
    of the forward pass whose derivative it serves), `module` the path of the Module that ran ("blocks.0.attention").
    """

    number: int
    nbytes: int
    op: str
    line: str
    module: str
    phase: str  # in which it was allocated
    born: int  # the event that made it
    died: int | None = None  # the event that ended it
    # (event, category, op that saved it or "") from each event on
    categories: list[tuple[int, str, str]] = field(default_factory=list)

    def category(self, event: int) -> str:
        """What it was for after `event`."""
        return self._at(event)[1]

    def saved_by(self, event: int) -> str:
        """The op whose derivative it was kept for after `event`; "" if it was not."""
        return self._at(event)[2]

    def _at(self, event: int) -> tuple[int, str, str]:
        k = bisect_right(self.categories, event, key=lambda entry: entry[0])
        return self.categories[max(0, k - 1)]

    def is_alive(self, event: int) -> bool:
        """Does it exist after `event`?"""
        return self.born <= event and (self.died is None or self.died > event)


@dataclass(slots=True)
class Mark:
    """A named place in the order of events: "forward end", "backward end", "step end", or the user's."""

    name: str
    event: int
    live: int  # bytes
    kept: int = 0  # bytes that the allocator keeps for reuse beside them


@dataclass(slots=True)
class Row:
    """One row of the reconciliation; `quality` is "exact", "sampled" or "unavailable"."""

    row: str
    nbytes: int | None
    quality: str
    note: str = ""


def missing(row: str, why: str) -> Row:
    """A row that nobody can fill."""
    return Row(row, None, "unavailable", why)


@dataclass
class Profile:
    """The memory of one run.

    `live` has the bytes in use after each event, `seconds` when it happened since the run began.
    """

    name: str  # "training", "inference", or the user's
    device: str  # "cpu:compiled", "cuda:0 (NVIDIA H200)", "meta like cuda:sm_90"
    blocks: list[Block]
    live: list[int]
    seconds: list[float]
    marks: list[Mark]
    phases: list[tuple[int, str]]  # (event, phase) from each event on
    params: int = 0  # numbers that are trained
    flops: int = 0  # of the run
    extra: float | None = None  # forward passes that are computed again, where somebody knows
    held: int = 0  # the most bytes in use together with what the allocator kept for reuse
    reconciliation: list[Row] = field(default_factory=list)
    # (seconds, bytes) of what the driver counted for the process less its context, now and then: a lower bound
    sampled: list[tuple[float, int]] = field(default_factory=list)

    @property
    def peak_event(self) -> int:
        """The event after which most memory was in use: the first such."""
        return max(range(len(self.live)), key=self.live.__getitem__, default=0)

    @property
    def peak_bytes(self) -> int:
        """The most memory that was in use."""
        return max(self.live, default=0)

    def event_at(self, seconds: float) -> int:
        """The last event by that time since the run began."""
        return max(0, bisect_right(self.seconds, seconds) - 1)

    @property
    def top(self) -> int:
        """The most bytes that a picture of it shows."""
        return max([self.peak_bytes, *[nbytes for _, nbytes in self.sampled]])

    @property
    def peak_phase(self) -> str:
        """The phase in which that was."""
        return self.phase(self.peak_event)

    @property
    def peak_block(self) -> Block | None:
        """The block whose allocation made the peak."""
        event = self.peak_event
        return next((b for b in self.blocks if b.born == event), None)

    def phase(self, event: int) -> str:
        """The phase that `event` happened in."""
        k = bisect_right(self.phases, event, key=lambda entry: entry[0])
        return self.phases[max(0, k - 1)][1] if self.phases else ""

    def alive(self, event: int) -> list[Block]:
        """The blocks that exist after `event`, largest first."""
        return sorted((b for b in self.blocks if b.is_alive(event)), key=lambda b: -b.nbytes)

    def by_category(self, event: int) -> dict[str, int]:
        """The bytes of each category after `event`, in the order of CATEGORIES."""
        found: Counter[str] = Counter()
        for b in self.alive(event):
            found[b.category(event)] += b.nbytes
        return {name: found[name] for name in CATEGORIES if found[name]}

    def by_event(self) -> dict[str, list[int]]:
        """The bytes of each category after each event, in the order of CATEGORIES: what `by_category` says of each."""
        changes = {name: [0] * (len(self.live) + 1) for name in CATEGORIES}
        for b in self.blocks:
            last = len(self.live) if b.died is None else b.died
            turns = [event for event, _, _ in b.categories[1:]]
            for (_, category, _), begin, end in zip(b.categories, [b.born, *turns], [*turns, last]):
                begin, end = max(begin, b.born), min(end, last)
                if begin < end:
                    changes[category][begin] += b.nbytes
                    changes[category][end] -= b.nbytes
        return {name: list(accumulate(c[:-1])) for name, c in changes.items() if any(c)}

    def mark(self, name: str) -> Mark | None:
        """The last mark of that name."""
        return next((m for m in reversed(self.marks) if m.name == name), None)


def total(blocks: Iterable[Block]) -> int:
    """The bytes of `blocks` together."""
    return sum(b.nbytes for b in blocks)


def show(nbytes: int) -> str:
    """`nbytes` for people, to three digits: "7.53 GiB"."""
    size, unit = float(abs(nbytes)), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 999.5:
            break
        size, unit = size / 1024, larger
    size = math.nextafter(size, math.inf)  # halves are rounded up, as JavaScript does in the page
    digits = f"{size:.0f}" if unit == "B" or size >= 99.95 else f"{size:#.3g}"
    return f"{'-' if nbytes < 0 else ''}{digits} {unit}"


def alike(modules: Iterable[str]) -> dict[str, str]:
    """By module path, what it shares with those that differ from it in numbers only: "blocks.*.attention"."""
    paths = set(modules)
    shared = {path: re.sub(r"(?<![^.])[0-9]+(?![^.])", "*", path) for path in paths}
    count = Counter(shared.values())
    return {path: shared[path] if count[shared[path]] > 1 else path for path in paths}
