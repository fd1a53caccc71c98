"""Schedules of chains: what they cost against published tables, and the planner against exhaustive search."""

import itertools
import math
import random

import pytest

from gpuad.errors import DataError
from gpuad.memory.planner import Planner, balance, best, floor, segments
from gpuad.remat.schedule import Advance, StageCost, Tape, all_, balanced, every, log, none, segmented, simulate

SIZES = (8, 16, 32, 64, 128, 256)

# Peak in units of one boundary, and extra forward passes to the two digits of the tables, for each of SIZES.
TABLES = {
    (17, "none"): ((136, 272, 544, 1088, 2176, 4352), (0, 0, 0, 0, 0, 0)),
    (17, "sqrt"): ((53, 71, 104, 143, 211, 287), (0.75, 0.75, 0.84, 0.88, 0.91, 0.94)),
    (17, "sqrt of cN"): ((24, 32, 43, 65, 85, 126), (0.88, 0.94, 0.97, 0.98, 0.98, 0.99)),
    (17, "every"): ((24, 32, 48, 80, 144, 272), (0.88, 0.94, 0.97, 0.98, 0.99, 1.0)),
    (17, "log"): ((20, 21, 22, 23, 24, 25), (1.5, 2.0, 2.5, 3.0, 3.5, 4.0)),
    (17, "all"): ((19, 19, 19, 19, 19, 19), (3.5, 7.5, 15.5, 31.5, 63.5, 127.5)),
    (1, "none"): (SIZES, (0, 0, 0, 0, 0, 0)),
    (1, "sqrt"): ((5, 7, 10, 15, 21, 31), (0.75, 0.75, 0.84, 0.88, 0.91, 0.94)),
    (1, "log"): ((4, 5, 6, 7, 8, 9), (1.5, 2.0, 2.5, 3.0, 3.5, 4.0)),
    (1, "all"): ((3, 3, 3, 3, 3, 3), (3.5, 7.5, 15.5, 31.5, 63.5, 127.5)),
}
# extra forward passes of the best schedule in the memory of sqrt(cN) segments
PLANNED = {
    17: (0.88, 0.94, 0.97, 0.97, 0.98, 0.98),
    1: (0.50, 0.69, 0.81, 0.84, 0.89, 0.91),
}


def uniform(n, c):
    """`n` stages of the tables: each boundary is one unit, the loss nothing, and a tape keeps `c` units."""
    inner = StageCost(1, c - 1, c, c, c, cotangent=0, gradient=0, forward_time=1.0, backward_time=2.0)
    last = StageCost(0, c - 1, c - 1, c - 1, c - 1, cotangent=0, gradient=0, forward_time=1.0, backward_time=2.0)
    return [*[inner] * (n - 1), last]


def drawn(seed, n, most=6):
    """A chain whose stages differ in everything."""
    draw = random.Random(seed).randint
    return [
        StageCost(
            output=draw(1, most),
            saved=draw(0, 2 * most),
            forward=draw(0, 2 * most),
            taped=draw(0, 3 * most),
            backward=draw(0, 4 * most),
            cotangent=draw(0, most),
            gradient=draw(0, 2),
            forward_time=float(draw(1, 8)),
            backward_time=float(draw(1, 8)),
            output_time=float(draw(0, 1)),
        )
        for _ in range(n)
    ]


def schedules(s, t, offloads, movable=False):
    """Every schedule of stages s..t; where `offloads`, with and without the host for inputs that nobody else holds."""
    if s == t:
        yield (Tape(s),)
        return
    for rest in schedules(s + 1, t, offloads):
        yield (Tape(s), *rest)
    for r in range(s + 1, t + 1):
        inners = list(schedules(s, r - 1, offloads, movable))
        for rest in schedules(r, t, offloads, movable=True):
            for inner in inners:
                yield (Advance(s, r - 1, inner), *rest)
                if offloads and movable:
                    yield (Advance(s, r - 1, inner, offload=True), *rest)


def frontier(costs):
    """By peak, the least extra time that any of `costs` takes with so many bytes."""
    points = {}
    for cost in costs:
        points[cost.peak] = min(cost.extra_time, points.get(cost.peak, math.inf))
    peaks = sorted(points)
    return dict(zip(peaks, itertools.accumulate((points[peak] for peak in peaks), min)))


# --- what schedules cost ----------------------------------------------------------------------


@pytest.mark.parametrize("c, kind", TABLES)
def test_usual_schedules_cost_what_the_tables_say(c, kind):
    for n, peak, passes in zip(SIZES, *TABLES[c, kind]):
        stages = uniform(n, c)
        if kind == "none":
            schedule = none(n)
        else:
            k = min(n, round(math.sqrt(c * n)))
            schedule = segments(stages, k if kind == "sqrt of cN" else kind, first=1)
        cost = simulate(stages, schedule, first=1)
        assert (n, cost.peak) == (n, peak)
        assert cost.extra / n == pytest.approx(passes, abs=0.00501)
        assert cost.extra_time == cost.extra
        assert cost.time == 3 * n + cost.extra


SLOW = {(1, 256)}


@pytest.mark.parametrize(
    "c, n", [pytest.param(c, n, marks=[pytest.mark.slow] * ((c, n) in SLOW)) for c in PLANNED for n in SIZES]
)
def test_planned_schedules_cost_what_the_tables_say(c, n):
    budget = TABLES[c, "sqrt of cN" if c > 1 else "sqrt"][0][SIZES.index(n)]
    stages = uniform(n, c)
    cost = simulate(stages, best(stages, budget, first=1), first=1)
    assert cost.peak <= budget
    assert cost.extra / n == pytest.approx(PLANNED[c][SIZES.index(n)], abs=0.00501)


def test_automatic_segments_never_peak_above_other_numbers():
    for n in (8, 31, 32):
        stages = uniform(n, 17)
        auto = simulate(stages, segments(stages, "auto", first=1), first=1)
        peaks = [simulate(stages, balanced(n, k), first=1).peak for k in range(1, n + 1)]
        assert auto.peak == min(peaks)


def test_sixteen_segments_of_31_layers_are_balanced():
    stages = uniform(31, 17)
    peak = simulate(stages, segments(stages, 16, first=1), first=1).peak
    assert peak <= 59  # PyTorch's segments take 297
    assert peak <= 1.05 * simulate(stages, balanced(31, 16), first=1).peak


def test_each_run_of_a_recomputation_stops_before_the_output():
    stages = [StageCost(1, 0, 1, 1, 1, 0, 0, 4.0, 1.0, output_time=3.0)] * 3
    assert simulate(stages, every(3)).extra_time == 2 * (4.0 - 3.0)


def test_a_transfer_takes_time_both_ways():
    stages = [StageCost(6, 0, 6, 6, 6, 0, 0, 1.0, 1.0)] * 3
    inner = Advance(1, 1, (Tape(1),), offload=True)
    schedule = (Advance(0, 0, (Tape(0),)), inner, Tape(2))
    assert simulate(stages, schedule, bandwidth=3.0).extra_time == 2 + 2 * 6 / 3
    assert simulate(stages, schedule).extra_time == 2


# --- the planner ------------------------------------------------------------------------------


@pytest.mark.parametrize("n, held", [(8, 1), (16, 3), (64, 1), (64, 2), (64, 3), (64, 6), (64, 16), (100, 4)])
def test_the_planner_finds_the_binomial_schedule(n, held):
    """Revolve: r n - C(s + r, r - 1) extra runs where s inputs are held, and r is the first with C(s + r, s) >= n."""
    tape = held + 1  # so much that two never fit
    stages = [StageCost(1, tape, 1, tape + 1, tape + 1, 0, 0, 1.0, 1.0)] * n
    r = next(r for r in itertools.count() if math.comb(held + r, held) >= n)
    budget = held + 1 + tape + 1  # and the input of the stage that is taped, and its output
    assert simulate(stages, best(stages, budget, first=1), first=1).extra == r * n - math.comb(held + r, r - 1)


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("bandwidth", [None, 2.0, 64.0])
def test_exhaustive_search_finds_nothing_better(seed, bandwidth):
    n = 1 + seed % 6
    stages, first = drawn(seed, n), seed % 3
    planner = Planner(stages, first, bandwidth)
    every_cost = (simulate(stages, schedule, first, bandwidth) for schedule in schedules(0, n - 1, bool(bandwidth)))
    found = frontier(every_cost)
    assert planner.floor == floor(stages, first, bandwidth) == min(found)
    for budget, extra_time in found.items():
        cost = simulate(stages, planner.best(budget), first, bandwidth)
        assert cost.peak <= budget
        assert cost.extra_time == pytest.approx(extra_time, abs=1e-9)


@pytest.mark.parametrize("bandwidth", [None, 1e6])
@pytest.mark.parametrize("n, most", [(6, 10**6), (24, 40), (24, 10**6)])
def test_every_budget_is_kept_and_more_never_takes_longer(n, most, bandwidth):
    """With sizes to 10**6 bytes the table has not every sum of them."""
    stages = drawn(n, n, most)
    planner = Planner(stages, 5, bandwidth)
    longest = math.inf
    budgets = range(planner.floor, simulate(stages, none(n), 5).peak + 1)
    for budget in [*budgets[:: len(budgets) // 100], budgets[-1]]:
        cost = simulate(stages, planner.best(budget), 5, bandwidth)
        assert cost.peak <= budget
        assert cost.extra_time <= longest + 1e-6
        longest = cost.extra_time
    assert longest == 0


@pytest.mark.parametrize("seed", range(20))
def test_sizes_that_share_no_divisor_lose_little(seed):
    stages = drawn(seed, 6, 10**6)
    planner = Planner(stages)
    found = frontier(simulate(stages, schedule) for schedule in schedules(0, 5, False))
    assert planner.floor == min(found)
    for budget in found:
        roomy = budget + budget // 100
        assert simulate(stages, planner.best(roomy)).extra_time <= found[budget]


def test_a_prefetch_never_takes_more_than_the_budget():
    seen = 0
    for seed in range(40):
        stages = drawn(seed, 6)
        planner = Planner(stages, 0, 64.0)
        for budget in range(planner.floor, simulate(stages, none(6)).peak):
            schedule = planner.best(budget)
            seen += "prefetch=True" in repr(schedule)
            assert simulate(stages, schedule, 0, 64.0).peak <= budget
    assert seen


def test_budgets_beyond_all_tapes_plan_no_checkpoints():
    stages = uniform(12, 17)
    assert best(stages, 12 * 17, first=1) == best(stages, 10**15, first=1) == none(12)


def test_one_stage_is_taped():
    stages = [StageCost(4, 3, 5, 8, 9, 4, 2, 1.0, 1.0)]
    planner = Planner(stages, first=10)
    assert planner.floor == 10 + 4 + 8  # the input, the cotangent of the output, and the run with a tape
    assert planner.best(planner.floor) == none(1) == all_(1) == log(1) == every(1)


def test_a_curve_goes_from_the_floor_to_no_checkpoints():
    stages = uniform(16, 17)
    planner = Planner(stages, first=1)
    curve = planner.curve(12)
    budgets = [budget for budget, _, _ in curve]
    times = [cost.extra_time for _, _, cost in curve]
    assert budgets == [19, 42, 65, 88, 111, 134, 157, 180, 203, 226, 249, 272]
    assert times == sorted(times, reverse=True)
    assert curve[-1][1] == none(16)
    for budget, schedule, cost in curve:
        assert schedule == planner.best(budget)
        assert cost == simulate(stages, schedule, first=1)
        assert cost.peak <= budget


def test_a_budget_below_the_floor_is_refused_with_the_floor():
    with pytest.raises(DataError) as error:
        best(uniform(8, 17), 18, first=1)
    assert str(error.value) == (
        "no schedule of these 8 functions fits in 18 B\n  the least that one takes is 19 bytes (19 B)"
    )


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: Planner([]), "a plan needs a chain of one function at least"),
        (lambda: Planner(uniform(2, 2), bandwidth=0.0), "a plan got a bandwidth of 0.0"),
        (lambda: Planner(uniform(2, 2)).curve(1), "a curve got 1 points"),
        (lambda: segments([], "auto"), "segments need one function at least"),
        (lambda: segments(uniform(4, 2), "half"), "segments cannot be 'half'"),
        (lambda: segments(uniform(4, 2), True), "segments cannot be True"),
        (lambda: segments(uniform(4, 2), 5), "4 functions cannot be 5 segments"),
        (lambda: segments(uniform(4, 2), 0), "4 functions cannot be 0 segments"),
        (lambda: simulate(uniform(3, 2), (Tape(0), Tape(2))), "a schedule of stages 0..2 goes wrong at stage 1"),
        (lambda: simulate(uniform(2, 2), (Tape(0), Advance(1, 1, (Tape(1),)))), "a schedule of stages 0..1"),
        (lambda: simulate(uniform(3, 2), (Advance(0, 1, (Tape(0),)), Tape(2))), "a schedule of stages 0..1"),
    ],
)
def test_what_cannot_be_planned_is_refused(call, message):
    with pytest.raises(DataError) as error:
        call()
    assert str(error.value).startswith(message)


# --- segments ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(60))
def test_balance_is_what_trying_all_finds(seed):
    draw = random.Random(seed)
    sizes = [draw.randint(0, 9) for _ in range(draw.randint(1, 9))]
    for k in range(1, len(sizes) + 1):

        def rank(bounds):
            parts = [sum(sizes[a:b]) for a, b in itertools.pairwise(bounds)]
            return max(parts), sum(part * part for part in parts), [-bound for bound in bounds]

        tried = [[0, *cuts, len(sizes)] for cuts in itertools.combinations(range(1, len(sizes)), k - 1)]
        assert balance(sizes, k) == min(tried, key=rank)


def test_equal_sizes_are_balanced_with_longer_segments_first():
    for k in range(1, 32):
        assert segmented(balance([17] * 31, k)) == balanced(31, k)
