"""The planner: which functions of a chain to checkpoint, so that its derivative fits in a number of bytes.

`segments` gives schedules of the usual kinds; a Planner those that take least time within a budget, by dynamic
programming over sub-chains.  Let [s, t] be the stages s..t, run and differentiated while the input of s is there, which
is not counted, and m the bytes for the rest.  It begins in one of these ways:

    tape s                   then [s + 1, t] with m less the output of s and what it saves
    advance from s to r      then [r, t] with m less the input of r, then [s, r - 1] with m
    advance and offload      the same, but the input of s is on the host during [r, t]

The least m for each [s, t] is exact.  From there on a table says for some m, its rooms, which schedule takes least
time and how many bytes it takes exactly.  The rooms are the multiples of the greatest common divisor of all sizes where
these are few enough, and then no schedule is better; else one that needs a size between two rooms may be missed.  The
best for any budget is chosen from the same few, so more bytes never take more time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import accumulate
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import DataError
from ..remat.schedule import Advance, Cost, Schedule, StageCost, Tape, all_, every, log, none, segmented, simulate
from .profile import show

Integers: TypeAlias = npt.NDArray[np.int64]
Times: TypeAlias = npt.NDArray[np.float64]

EXACT = 4096  # rooms at most where they are the multiples of the greatest common divisor of all sizes
ROOMS = 1000  # rooms otherwise
NUMBERS = 2**24  # in one array of a table, where that gives fewer: 64 MiB, as half of it is not there
FEWEST = 32  # rooms in any case
NOWHERE = 2**62  # the bytes that a schedule takes where there is none


def best(stages: Sequence[StageCost], budget: int, first: int = 0, bandwidth: float | None = None) -> Schedule:
    """The schedule of least extra time that takes `budget` bytes at most.

    `first` is the bytes of the chain's input, counted from beginning to end.  With `bandwidth`, bytes per unit of time
    between device and host, inputs of checkpointed functions may wait on the host.  A DataError if nothing fits.
    """
    return Planner(stages, first, bandwidth).best(budget)


def floor(stages: Sequence[StageCost], first: int = 0, bandwidth: float | None = None) -> int:
    """The fewest bytes that a schedule can take."""
    return Planner(stages, first, bandwidth).floor


class _Table:
    """For each [s, t] and room the least time, the bytes that takes exactly, and how it begins.

    `movable` says that nobody else holds the input of s, so that it can go to the host; ways to begin are numbered in
    the order of `_needs`.  Column k is for rooms[k], with no time where that is less than [s, t] needs, but column 0
    for the least that it needs.  The last column is where nothing fits.
    """

    def __init__(self, rooms: Integers, n: int, offloads: bool) -> None:
        self.rooms = rooms
        shapes = [(len(rooms) + 1, n - s) for s in range(n)]
        # [movable][s][column, t - s]
        pinned = [np.full(shape, np.inf) for shape in shapes]
        self.times = (pinned, [part.copy() for part in pinned] if offloads else pinned)
        taken = [np.full(shape, NOWHERE) for shape in shapes]
        self.taken = (taken, [part.copy() for part in taken] if offloads else taken)
        ways = [np.zeros(shape, np.int16) for shape in shapes]
        self.ways = (ways, [part.copy() for part in ways] if offloads else ways)

    def columns(self, s: int, t: int, movable: bool, rooms: Integers) -> Integers:
        """For each of `rooms` the column of [s, t] with the least time that it is enough for."""
        times, taken = self.times[movable][s][:, t - s], self.taken[movable][s][:, t - s]
        columns = self.rooms.searchsorted(rooms, "right") - 1
        columns += taken[columns + 1] <= rooms
        columns[times[columns] == np.inf] = 0
        columns[taken[columns] > rooms] = -1
        return columns

    def column(self, s: int, t: int, movable: bool, room: int) -> int:
        """The same for one room, but the least where it is not enough."""
        return max(0, int(self.columns(s, t, movable, np.array([room]))[0]))

    def below(self, room: int) -> int:
        """The last column for no more than `room`."""
        return int(self.rooms.searchsorted(room, "right")) - 1


class _Rest:
    """What is left of the sub-chains that end at one t when an advance has come to r, with r movable.

    Of each room, `times[column, r]` is the least time of [r, t] beside the input of r, and `taken` the bytes of both;
    `least[r]` is the time where [r, t] has the least bytes.
    """

    def __init__(self, rooms: Integers, n: int) -> None:
        self.times, self.taken = np.empty((len(rooms), n)), np.empty((len(rooms), n), np.int64)
        self.least = np.empty(n)
        self.scratch = np.empty((len(rooms) + 1) * 2 * n)  # allocated once, as that takes as long as using it


_Part: TypeAlias = tuple[int, int, bool, int]  # s and t, whether the input is movable, and the column of the table


class Planner:
    """The schedules of one chain for all budgets; `floor` is the least budget that has one.

    What it takes to find them is done once, when the first is asked for.
    """

    def __init__(self, stages: Sequence[StageCost], first: int = 0, bandwidth: float | None = None) -> None:
        if not stages:
            raise DataError("a plan needs a chain of one function at least\n  give it the functions to run")
        if bandwidth is not None and not bandwidth > 0:
            raise DataError(f"a plan got a bandwidth of {bandwidth}\n  give bytes per unit of time, or None")
        n = len(stages)
        self._stages, self._first, self._bandwidth = stages, first, bandwidth
        self._output = np.array([stage.output for stage in stages], np.int64)
        self._kept = self._output + [stage.saved for stage in stages]
        # gradients of the stages after each
        after = [*accumulate((stage.gradient for stage in reversed(stages[1:])), initial=0)][::-1]
        self._around = np.array([stage.cotangent for stage in stages], np.int64) + after
        taped = np.array([stage.taped for stage in stages], np.int64)
        self._backward = np.array([stage.backward for stage in stages], np.int64) + after
        # [s, t]: the run of s with a tape and its backward run, and those of all of s..t
        self._own = np.maximum(taped[:, None] + self._around, self._backward[:, None])
        self._tapes = self._own.copy()
        for s in reversed(range(n - 1)):
            rest = self._kept[s] + self._tapes[s + 1, s + 1 :]
            self._tapes[s, s + 1 :] = np.maximum(self._own[s, s + 1 :], rest)
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
        self._unit = math.gcd(*self._output, *self._kept, *self._around, *taped, *self._backward, *forward) or 1
        self._kinds = (False, True) if bandwidth else (False,)
        self._most = simulate(stages, none(n)).peak
        self._least = self._least_rooms()
        self.floor = first + int(self._least[0][0, -1])

    def best(self, budget: int) -> Schedule:
        """The schedule of least extra time that takes `budget` bytes at most; a DataError if none does."""
        if budget < self.floor:
            raise DataError(
                f"no schedule of these {len(self._output)} functions fits in {show(budget)}\n"
                f"  the least that one takes is {self.floor} bytes ({show(self.floor)})"
            )
        table = self._table
        fits = table.taken[0][0][:, -1] <= budget - self._first
        return self._schedule(int(np.where(fits, table.times[0][0][:, -1], np.inf).argmin()))

    def curve(self, count: int) -> list[tuple[int, Schedule, Cost]]:
        """`count` budgets from the floor to what no checkpoints take, evenly spaced, and the best for each."""
        if count < 2:
            raise DataError(f"a curve got {count} points\n  ask for 2 at least")
        budgets = [self.floor + (self._first + self._most - self.floor) * i // (count - 1) for i in range(count)]
        schedules = [self.best(budget) for budget in budgets]
        return [
            (budget, schedule, simulate(self._stages, schedule, self._first, self._bandwidth))
            for budget, schedule in zip(budgets, schedules)
        ]

    def _schedule(self, column: int) -> Schedule:
        """The schedule that a column of the whole chain stands for."""
        parts = [(0, len(self._output) - 1, False, column)]  # each after what it is the inner schedule of
        drafts: list[list[tuple[Tape | Advance, int]]] = []
        for part in parts:
            draft: list[tuple[Tape | Advance, int]] = []
            rest: _Part | None = part
            while rest is not None:
                s, t, movable, column = rest
                way = int(self._table.ways[movable][s][column, t - s])
                item, inner, rest = self._begin(rest, way)
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

    def _begin(self, part: _Part, way: int) -> tuple[Tape | Advance, _Part | None, _Part | None]:
        """The item that begins `part` in this way, without its inner schedule, what it recomputes, and the rest."""
        s, t, movable, column = part
        table = self._table
        same = column or table.below(self._least[movable][s, t])
        room = int(table.rooms[same])
        if way == 0:
            rest = (s + 1, t, False, table.column(s + 1, t, False, room - self._kept[s])) if s < t else None
            return Tape(s), None, rest
        offload, before = divmod(way - 1, t - s)
        r = s + 1 + before
        gone = int(self._output[r - 1])
        inner = (s, r - 1, movable, same if table.times[movable][s][same, before] < np.inf else 0)
        prefetch = bool(offload) and bool(table.taken[movable][s][column, t - s] >= gone + self._backward[r])
        if offload:
            room = int(table.rooms[table.below(room + self._output[s - 1])])
        return (
            Advance(s, r - 1, (), bool(offload), prefetch),
            inner,
            (r, t, True, table.column(r, t, True, room - gone)),
        )

    def _needs(self, s: int, t: int, movable: bool) -> Integers:
        """The least bytes that [s, t] needs for each way to begin: tape, advance to each r, the same with offload."""
        if s == t:
            return np.array([self._own[s, t]])
        tape = max(self._own[s, t], self._kept[s] + self._least[False][s + 1, t])
        run = np.maximum(self._advance[s, s:t] + self._around[t], self._least[movable][s, s:t])
        later = self._output[s:t] + self._least[True][s + 1 : t + 1, t]
        needs = [[tape], np.maximum(run, later)]
        if movable and self._bandwidth:
            needs.append(np.maximum(run, later - self._output[s - 1]))
        return np.concatenate(needs)

    def _least_rooms(self) -> tuple[Integers, Integers]:
        """The least bytes that each [s, t] needs, by whether its input is movable."""
        n = len(self._output)
        pinned = np.zeros((n, n), np.int64)
        self._least = pinned, np.zeros((n, n), np.int64) if self._bandwidth else pinned
        for t in range(n):
            for s in reversed(range(t + 1)):
                for movable in self._kinds:
                    self._least[movable][s, t] = self._needs(s, t, movable).min()
        return self._least

    @cached_property
    def _table(self) -> _Table:
        """All that is to know of this chain's schedules."""
        n = len(self._output)
        table = _Table(self._rooms(), n, self._bandwidth is not None)
        rest = _Rest(table.rooms, n)
        for t in range(n):
            for s in reversed(range(t + 1)):
                for movable in self._kinds:
                    self._fill(table, s, t, movable, rest)
                if s:
                    times, taken = table.times[True][s][:, t - s], table.taken[True][s][:, t - s]
                    columns = table.columns(s, t, True, table.rooms - self._output[s - 1])
                    rest.times[:, s], rest.taken[:, s] = times[columns], taken[columns] + self._output[s - 1]
                    rest.least[s] = times[0]
        return table

    def _rooms(self) -> Integers:
        """The rooms of the table, from 0 to more than any schedule uses."""
        n = len(self._output)
        allowed = max(FEWEST, NUMBERS // (n * n * len(self._kinds)))
        most = self._most + (int(self._output.max()) if self._bandwidth else 0)
        if most <= self._unit * (min(EXACT, allowed) - 1):
            return np.arange(0, most + self._unit, self._unit)
        # half of them evenly up to where budgets are tight, half in equal ratios beyond
        half = min(ROOMS, allowed) // 2
        tight = min(most, max(2 * (self.floor - self._first), self._unit * half))
        step = -(-tight // (self._unit * half)) * self._unit
        beyond = np.geomspace(tight, most, half) / self._unit
        return np.unique(np.r_[np.arange(0, tight, step), np.ceil(beyond).astype(np.int64) * self._unit])

    def _fill(self, table: _Table, s: int, t: int, movable: bool, rest: _Rest) -> None:
        """Fill in [s, t], of which all parts are there."""
        times, taken, ways = table.times[movable][s], table.taken[movable][s], table.ways[movable][s]
        length, r = t - s, slice(s + 1, t + 1)
        needs = self._needs(s, t, movable)
        least = needs.min()
        taken[0, length] = least
        begin, end = np.maximum(1, table.rooms.searchsorted([least, self._tapes[s, t]])).tolist()
        times[end:-1, length] = self._last_time[t] + (self._advance_time[s, t - 1] if s < t else 0.0)
        taken[end:-1, length] = self._tapes[s, t]
        if s == t:
            times[0, 0] = self._last_time[t]
            return

        # One row for the least bytes, then one for each column that has use for another way than tapes; by way.
        rooms = table.rooms[begin:end]
        row = np.arange(1 + len(rooms))
        columns, parts = row + begin - 1, row + begin - 1  # these rows', and those of the parts that they are made of
        columns[0], parts[0] = 0, table.below(least)
        totals = rest.scratch[: len(row) * len(needs)].reshape(len(row), len(needs))
        taped, advanced, offloaded = totals[:, 0], totals[:, 1 : 1 + length], totals[:, 1 + length :]

        tape = table.columns(s + 1, t, False, table.rooms[parts] - self._kept[s])
        tape[0] = max(0, tape[0])
        np.add(table.times[False][s + 1][tape, length - 1], self._advance_time[s, s], out=taped)
        taped[1:][rooms < self._own[s, t]] = np.inf

        run, run_time = self._advance[s, s:t] + self._around[t], self._advance_time[s, s:t]
        np.add(_or(times[parts[0], :length], times[0, :length]), run_time, out=advanced[0])
        np.add(times[begin:end, :length], run_time, out=advanced[1:])
        if len(rooms) and run[-1] > rooms[0]:
            advanced[1:][rooms[:, None] < run] = np.inf
        moved, back = self._output[s - 1], parts
        if offloaded.size and self._bandwidth:
            back = table.rooms.searchsorted(table.rooms[parts] + moved, "right") - 1
            np.add(advanced[1:], rest.times[back[1:], r], out=offloaded[1:])
            np.add(advanced[0], _or(rest.times[back[0], r], rest.least[r]), out=offloaded[0])
            offloaded += 2 * moved / self._bandwidth
        advanced[0] += _or(rest.times[parts[0], r], rest.least[r])
        advanced[1:] += rest.times[begin:end, r]
        totals[0, needs > least] = np.inf

        way = totals.argmin(axis=1)
        offload, before = np.divmod(way - 1, length)
        offload = offload > 0
        later = rest.taken[np.where(offload, back, parts), s + 1 + before] - np.where(offload, moved, 0)
        advance = np.maximum(np.maximum(run[before], taken[parts, before]), later)
        tape = np.maximum(self._own[s, t], table.taken[False][s + 1][tape, length - 1] + self._kept[s])
        times[columns, length], ways[columns, length] = totals[row, way], way
        taken[columns[1:], length] = np.where(way, advance, tape)[1:]


def _or(times: Times, otherwise: Times) -> Times:
    """`times` where there are any."""
    return np.where(times < np.inf, times, otherwise)


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


def segments(stages: Sequence[StageCost], how: str | int, first: int = 0) -> Schedule:
    """The schedule of the usual kind that is called `how`.

    A number of segments, balanced by the bytes that they keep; "sqrt" for the square root of the number of stages,
    "auto" for the number with the lowest peak, and of these the one of least extra time; "every", "all" or "log".
    """
    n = len(stages)
    if not n:
        raise DataError("segments need one function at least\n  give the functions to run")
    if isinstance(how, str) and how in WHOLE:
        return WHOLE[how](n)
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


WHOLE: dict[str, Callable[[int], Schedule]] = {"every": every, "all": all_, "log": log}
