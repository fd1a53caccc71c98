"""The planner: which functions of a chain to checkpoint, so that its derivative fits in a number of bytes.

`segments` gives schedules of the usual kinds; `best` the one that takes least time within a budget, by dynamic
programming over sub-chains.  Let [s, t] be the stages s..t, run and differentiated while the input of s is there, which
is not counted, and m the bytes for the rest.  It begins in one of these ways, each of which needs some m at least:

    tape s                   then [s + 1, t] with m less the output of s and what it saves
    advance from s to r      then [r, t] with m less the input of r, then [s, r - 1] with m
    advance and offload      the same, but the input of s is on the host during [r, t]

The least m for each [s, t] is exact.  The least time is a table over m in slots: of the greatest common divisor of all
sizes where that makes few enough, which is exact too, else of more bytes, where m is rounded down at every step, though
never below what the sub-chain needs.  So there is a schedule for every budget from the floor on, none takes more than
its budget, and more bytes never take more time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import DataError
from .chain_model import Advance, Schedule, Stage, Tape, all_, every, log, none, segmented, simulate
from .profile import show

Bytes: TypeAlias = npt.NDArray[np.int64]
Times: TypeAlias = npt.NDArray[np.float64]

EXACT = 4096  # slots at most where a slot is the greatest common divisor of all sizes
SLOTS = 1000  # slots otherwise
NUMBERS = 2**25  # in one table: 256 MiB


def best(stages: Sequence[Stage], budget: int, first: int = 0, bandwidth: float | None = None) -> Schedule:
    """The schedule of least extra time that takes `budget` bytes at most.

    `first` is the bytes of the chain's input, counted from beginning to end.  With `bandwidth`, bytes per unit of time
    between device and host, inputs of checkpointed functions may wait on the host.  A DataError if nothing fits.
    """
    return Planner(stages, first, bandwidth).best(budget)


def floor(stages: Sequence[Stage], first: int = 0, bandwidth: float | None = None) -> int:
    """The fewest bytes that a schedule can take."""
    return Planner(stages, first, bandwidth).floor


@dataclass(frozen=True)
class _Table:
    """The least times of sub-chains: `times[movable][s, t, m // slot]`; `rooms` are the m at which slots begin.

    `later[t, s]` is `times[True][s, t]` where of each room the input of s is to be kept.
    """

    slot: int
    rooms: Bytes
    times: tuple[Times, Times]
    later: Times

    def cells(self, rooms: Bytes) -> Bytes:
        """The slots that `rooms` lie in."""
        return np.minimum(np.maximum(rooms // self.slot, 0), len(self.rooms) - 1)


@dataclass(frozen=True)
class _Part:
    """A sub-chain and its bytes.  `movable`: its input is held by nobody else, so that it can go to the host."""

    s: int
    t: int
    room: int
    movable: bool


class Planner:
    """The schedules of one chain for all budgets; `floor` is the least budget that has one.

    Tables are made for the budgets that are asked for, and kept.
    """

    def __init__(self, stages: Sequence[Stage], first: int = 0, bandwidth: float | None = None) -> None:
        if not stages:
            raise DataError("a plan needs a chain of one function at least\n  give it the functions to run")
        if bandwidth is not None and not bandwidth > 0:
            raise DataError(f"a plan got a bandwidth of {bandwidth}\n  give bytes per unit of time, or None")
        n = len(stages)
        self._first, self._bandwidth = first, bandwidth
        self._output = np.array([stage.output for stage in stages], np.int64)
        self._kept = self._output + [stage.saved for stage in stages]
        # gradients of the stages after each
        after = [*accumulate((stage.gradient for stage in reversed(stages[1:])), initial=0)][::-1]
        self._around = np.array([stage.cotangent for stage in stages], np.int64) + after
        self._taped = np.array([stage.taped for stage in stages], np.int64)
        self._backward = np.array([stage.backward for stage in stages], np.int64) + after
        # [s, t]: advancing over s..t
        self._advance = np.zeros((n, n), np.int64)
        self._advance_time = np.zeros((n, n))
        forward = np.array([stage.forward for stage in stages], np.int64)
        times = np.array([stage.forward_time for stage in stages], np.float64)
        for s in range(n):
            self._advance[s, s:] = np.maximum.accumulate(forward[s:] + [0, *self._output[s:-1]])
            self._advance_time[s, s:] = np.cumsum(times[s:])
        # a chain that ends before the last stage is recomputed, for what it saves only
        self._last_time = times - [*(stage.output_time for stage in stages[:-1]), 0.0]
        self._unit = math.gcd(*self._output, *self._kept, *self._around, *self._taped, *self._backward, *forward) or 1
        self._kinds = (False, True) if bandwidth else (False,)
        self._most = simulate(stages, none(n)).peak
        self._least = self._least_rooms()
        self._tables: dict[int, _Table] = {}
        self.floor = first + int(self._least[0][0, -1])

    def best(self, budget: int) -> Schedule:
        """The schedule of least extra time that takes `budget` bytes at most; a DataError if none does."""
        if budget < self.floor:
            raise DataError(
                f"no schedule of these {len(self._output)} functions fits in {show(budget)}\n"
                f"  the least that one takes is {self.floor} bytes ({show(self.floor)})"
            )
        room = min(budget - self._first, self._most)
        whole = _Part(0, len(self._output) - 1, room, False)
        tables = self._tables_for(room)
        return self._schedule(min(tables, key=lambda table: self._time(table, whole)), whole)

    def _schedule(self, table: _Table, whole: _Part) -> Schedule:
        """The schedule that the table's time is that of."""
        parts = [whole]  # each after what it is the inner schedule of
        drafts: list[list[tuple[Tape | Advance, int]]] = []
        for part in parts:
            draft: list[tuple[Tape | Advance, int]] = []
            rest: _Part | None = part
            while rest is not None:
                item, inner, rest = self._begin(table, rest)
                draft.append((item, len(parts)))
                if inner is not None:
                    parts.append(inner)
            drafts.append(draft)
        schedules: list[Schedule] = [()] * len(parts)
        for i in reversed(range(len(parts))):
            schedules[i] = tuple(
                item if isinstance(item, Tape) else replace(item, inner=schedules[inner]) for item, inner in drafts[i]
            )
        return schedules[0]

    def _begin(self, table: _Table, part: _Part) -> tuple[Tape | Advance, _Part | None, _Part | None]:
        """How to begin `part`: the item, still without its inner schedule, what it recomputes, and what is left."""
        s, t, movable = part.s, part.t, part.movable
        room = self._offered(table, part)
        choice = int(self._times(table, s, t, movable, np.array([room])).argmin())
        if choice == 0:
            return Tape(s), None, _Part(s + 1, t, room - int(self._kept[s]), False) if s < t else None
        offload, before = divmod(choice - 1, t - s)
        r = s + 1 + before
        inner = _Part(s, r - 1, room, movable)
        later = room - int(self._output[r - 1])
        prefetch = bool(offload) and later >= self._backward[r]
        if offload:
            later += int(self._output[s - 1])
        return Advance(s, r - 1, (), bool(offload), prefetch), inner, _Part(r, t, later, True)

    def _offered(self, table: _Table, part: _Part) -> int:
        """The bytes that the table counts on where there are `part.room`."""
        begin = int(table.rooms[table.cells(np.array(part.room))])
        return max(begin, int(self._least[part.movable][part.s, part.t]))

    def _time(self, table: _Table, part: _Part) -> float:
        return float(table.times[part.movable][part.s, part.t, table.cells(np.array(part.room))])

    def _needs(self, s: int, t: int, movable: bool) -> Bytes:
        """The least bytes that [s, t] needs for each way to begin: tape, advance to each r, the same with offload."""
        tape = max(self._taped[s] + self._around[t], self._backward[s])
        if s == t:
            return np.array([tape])
        tape = max(tape, self._kept[s] + self._least[False][s + 1, t])
        run = np.maximum(self._advance[s, s:t] + self._around[t], self._least[movable][s, s:t])
        later = self._output[s:t] + self._least[True][s + 1 : t + 1, t]
        needs = [[tape], np.maximum(run, later)]
        if movable and self._bandwidth:
            needs.append(np.maximum(run, later - self._output[s - 1]))
        return np.concatenate(needs)

    def _least_rooms(self) -> tuple[Bytes, Bytes]:
        """The least bytes that each [s, t] needs, by whether its input is movable."""
        n = len(self._output)
        pinned = np.zeros((n, n), np.int64)
        self._least = pinned, np.zeros((n, n), np.int64) if self._bandwidth else pinned
        for s, t in _parts(n):
            for movable in self._kinds:
                self._least[movable][s, t] = self._needs(s, t, movable).min()
        return self._least

    def _tables_for(self, room: int) -> list[_Table]:
        """Tables whose best answer never gets worse with more room: the one that reaches it and all that are finer."""
        n = len(self._output)
        allowed = NUMBERS // (n * n * len(self._kinds))
        finest = min(2 * (self.floor - self._first), self._most)
        slot, count = self._unit, min(EXACT, allowed)
        if slot * count < finest:
            count = min(SLOTS, allowed)
            slot = -(-finest // count)
        tables = [self._table(slot, min(room, slot * count))]
        while slot * count < room:
            reach, count = 4 * slot * count, min(SLOTS, allowed)
            slot = -(-reach // count)
            tables.append(self._table(slot, min(room, slot * count)))
        return tables

    def _table(self, slot: int, room: int) -> _Table:
        """The table in slots of so many bytes up to `room`."""
        kept = self._tables.get(slot)
        if kept is not None and kept.rooms[-1] + slot > room:
            return kept
        n, rooms = len(self._output), np.arange(0, room + 1, slot)
        pinned = np.empty((n, n, len(rooms)))
        movable = np.empty_like(pinned) if self._bandwidth else pinned
        table = _Table(slot, rooms, (pinned, movable), np.empty_like(pinned))
        for s, t in _parts(n):
            for kind in self._kinds:
                table.times[kind][s, t] = self._row(table, s, t, kind)
            if s:
                table.later[t, s] = movable[s, t, table.cells(rooms - self._output[s - 1])]
        self._tables[slot] = table
        return table

    def _row(self, table: _Table, s: int, t: int, movable: bool) -> Times:
        """The least time of [s, t] for each of the table's rooms."""
        row = np.full(len(table.rooms), np.inf)
        least = self._least[movable][s, t]
        begin = least // table.slot
        if begin < len(row):
            row[begin] = self._times(table, s, t, movable, least[None]).min()
            rooms = table.rooms[begin + 1 :]
            if s == t:
                row[begin + 1 :] = self._last_time[s]
            elif movable and self._bandwidth:
                row[begin + 1 :] = self._times(table, s, t, movable, rooms).min(axis=0)
            else:  # the same times, looked up once for all s
                needs = self._needs(s, t, movable)
                tape = self._advance_time[s, s] + table.times[False][s + 1, t, table.cells(rooms - self._kept[s])]
                tape[rooms < needs[0]] = np.inf
                times = table.later[t, s + 1 : t + 1, begin + 1 :] + self._advance_time[s, s:t, None]
                times += table.times[movable][s, s:t, begin + 1 :]
                times[rooms < needs[1:, None]] = np.inf
                row[begin + 1 :] = np.minimum(tape, times.min(axis=0))
        return row

    def _times(self, table: _Table, s: int, t: int, movable: bool, rooms: Bytes) -> Times:
        """The time of [s, t] for each way to begin, in the order of `_needs`, and for each of `rooms`."""
        needs = self._needs(s, t, movable)
        times = np.empty((len(needs), len(rooms)))
        if s == t:
            times[0] = self._last_time[s]
        else:
            times[0] = self._advance_time[s, s] + table.times[False][s + 1, t, table.cells(rooms - self._kept[s])]
            run = self._advance_time[s, s:t, None]
            inputs = self._output[s:t, None]
            r = np.arange(s + 1, t + 1)[:, None]
            later, inner = table.times[True][:, t], table.times[movable][s][s:t][:, table.cells(rooms)]
            times[1 : 1 + len(r)] = run + later[r, table.cells(rooms - inputs)] + inner
            if movable and self._bandwidth:
                moved = self._output[s - 1]
                run = run + 2 * moved / self._bandwidth
                times[1 + len(r) :] = run + later[r, table.cells(rooms + moved - inputs)] + inner
        times[rooms < needs[:, None]] = np.inf
        return times


def _parts(n: int) -> Iterator[tuple[int, int]]:
    """All [s, t] of n stages, the shorter first."""
    return ((s, s + length) for length in range(n) for s in range(n - length))


def balance(sizes: Sequence[int], k: int) -> list[int]:
    """Where `k` segments of `sizes` begin, and the end: contiguous, none empty, the largest as small as can be.

    Among those the sum of squares is least, and among these the earlier segments are longer.
    """
    n = len(sizes)
    if not 1 <= k <= n:
        raise DataError(f"{n} functions cannot be {k} segments\n  ask for 1 to {n}")
    ends = np.array([0, *accumulate(sizes)]) // (math.gcd(*sizes) or 1)
    # [begin, end]: the size of that segment
    size = np.where(np.tri(n + 1, k=0, dtype=bool), np.inf, ends - ends[:, None].astype(np.float64))
    # by begin, the least that the largest of the segments from there on can be: of one segment, then of one more
    largest = size[:, n]
    for _ in range(1, k):
        largest = np.maximum(size, largest).min(axis=1)
    squares = np.where(size <= largest[0], size * size, np.inf)
    sums = [squares[:, n]]
    for _ in range(1, k):
        sums.append((squares + sums[-1]).min(axis=1))
    bounds = [0]
    for rest in reversed(sums[:-1]):
        totals = squares[bounds[-1]] + rest
        bounds.append(n - int(totals[::-1].argmin()))
    return [*bounds, n]


def segments(stages: Sequence[Stage], how: str | int, first: int = 0) -> Schedule:
    """The schedule of the usual kind that is called `how`.

    A number of segments, balanced by the bytes that they keep; "sqrt" for the square root of the number of stages,
    "auto" for the number with the lowest peak, and of these the one of least extra time; "every", "all" or "log".
    """
    n = len(stages)
    if not n:
        raise DataError("segments need one function at least\n  give the functions to run")
    if isinstance(how, str) and how in _WHOLE:
        return _WHOLE[how](n)
    inputs = [first, *(stage.output for stage in stages[:-1])]
    sizes = [a + stage.saved for a, stage in zip(inputs, stages)]
    if how == "sqrt":
        how = round(math.sqrt(n))
    if how == "auto":
        tried = [segmented(balance(sizes, k)) for k in range(1, n + 1)]
        costs = [simulate(stages, schedule, first) for schedule in tried]
        return tried[min(range(n), key=lambda i: (costs[i].peak, costs[i].extra_time))]
    if isinstance(how, (str, bool)):
        raise DataError(f'segments cannot be {how!r}\n  ask for "auto", "sqrt", "every", "all", "log" or a number')
    return segmented(balance(sizes, how))


_WHOLE: dict[str, Callable[[int], Schedule]] = {"every": every, "all": all_, "log": log}
