"""Plans of chains: bytes found by dry runs against those really taken, budgets, segments, and waiting on the host."""

import functools
import gc
import importlib
import random
import sys
import time
import warnings
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest

import gpuad
from gpuad import nn
from gpuad.buffer import observers
from gpuad.devices import device as find_device
from gpuad.errors import DataError
from gpuad.fuse import engines
from gpuad.memory import plan
from gpuad.memory.measure import Measured, measure, peak
from gpuad.memory.plan import checkpoint_sequential
from gpuad.memory.planner import Planner, segments
from gpuad.models import GPT, GPTConfig
from gpuad.remat.chain import run
from gpuad.remat.schedule import Advance, StageCost, Tape, all_, balanced, every, none, segmented, simulate


@pytest.fixture(params=["numpy", "compiled"])
def engine(request, monkeypatch):
    if request.param == "compiled" and engines.engine() != "compiled":
        pytest.skip("needs the compiled engine")
    monkeypatch.setattr(engines, "engine", lambda: request.param)
    return request.param


class Bytes:
    """An observer that counts the bytes alive on one device, and the most there were."""

    def __init__(self, device):
        self.device, self.live, self.peak, self.made = device, 0, 0, 0

    def allocated(self, buffer):
        if buffer.device is self.device:
            self.live += buffer.nbytes
            self.made += 1
            self.peak = max(self.peak, self.live)

    def freed(self, buffer):
        if buffer.device is self.device:
            self.live -= buffer.nbytes


def taken(call, x, weights):
    """The most bytes that `call(x)` and its backward pass take, where workspaces of kernels are there already."""
    for _ in range(1 if x.device.engine == "numpy" else 2):
        for w in (*weights, x):
            if w.requires_grad:
                w.grad = None
        gc.collect()
        bytes_ = Bytes(x.device)
        observers.append(bytes_)
        try:
            call(x).backward()
        finally:
            observers.remove(bytes_)
    return bytes_.peak + x.nbytes


def small_gpt(device="cpu", layers=3):
    gpuad.random.seed(0)
    with gpuad.use_device(device):
        model = GPT(GPTConfig(length=32, layers=layers, heads=2, width=32, positions="rotary", dropout=0.1))
        values = np.random.default_rng(0).standard_normal((4, 32, 32)).astype(np.float32)
        x = gpuad.asarray(values).requires_grad_()
    end = lambda x: gpuad.mean(model.head(model.norm(x)) ** 2)
    return [*model.blocks, end], x, model.parameters()


def drawn(seed, device="cpu"):
    """A chain of functions that differ in kind and size."""
    pick, rng = random.Random(seed), np.random.default_rng(seed)
    weights, fns = [], []

    def weight(a, b):
        values = (rng.standard_normal((a, b)) / np.sqrt(a)).astype(np.float32)
        weights.append(gpuad.asarray(values, device=device).requires_grad_())
        return weights[-1]

    def waves(times, x):
        for _ in range(times):
            x = gpuad.sin(x) * gpuad.exp(-x * x)
        return x

    width = pick.choice([8, 16, 32, 64])
    x = gpuad.asarray(rng.standard_normal((64, width)).astype(np.float32), device=device)
    if pick.random() < 0.5:
        x = x.requires_grad_()
    for _ in range(pick.randint(1, 7)):
        kind = pick.choice(["linear", "residual", "waves", "mlp", "softmax", "dropout", "norm"])
        if kind == "linear":
            out = pick.choice([8, 16, 32, 64, 128])
            fns.append(functools.partial(lambda w, x: x @ w, weight(width, out)))
            width = out
        elif kind == "residual":
            fns.append(functools.partial(lambda w, x: gpuad.tanh(x @ w) + x, weight(width, width)))
        elif kind == "waves":
            fns.append(functools.partial(waves, pick.randint(1, 4)))
        elif kind == "mlp":
            a, b = weight(width, 4 * width), weight(4 * width, width)
            fns.append(functools.partial(lambda a, b, x: gpuad.nn.functional.gelu(x @ a) @ b + x, a, b))
        elif kind == "softmax":
            fns.append(functools.partial(gpuad.nn.functional.softmax, axis=-1))
        elif kind == "dropout":
            fns.append(lambda x: gpuad.nn.functional.dropout(x, 0.3))
        else:
            fns.append(lambda x: (x - gpuad.mean(x, axis=-1, keepdims=True)) / (1.0 + gpuad.std(x, axis=-1)[:, None]))
    fns.append(functools.partial(lambda w, x: gpuad.mean((x @ w) ** 2), weight(width, 32)))
    return fns, x, weights


def by(fns, schedule):
    return lambda x: run(fns, x, schedule)


def usual(n):
    return [none(n), every(n), all_(n), balanced(n, 2)]


def any_of(pick, begin, end):
    """A schedule of stages begin..end - 1."""
    items, s = [], begin
    while s < end - 1:
        r = pick.randint(s, end - 1)
        items.append(Tape(s) if r == s else Advance(s, r - 1, any_of(pick, s, r)))
        s = max(r, s + 1)
    return (*items, Tape(end - 1))


def budgets(fns, x, count):
    """From the least that is feasible to what no checkpoint takes."""
    measured = measure(fns, x, "hash", ())
    least, most = Planner(measured.stages, measured.first).floor, peak(fns, x, none(len(fns)), "hash", ())
    return np.linspace(least, max(least, most), count).astype(int).tolist()


def planned(*args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that checkpoints save hardly any
        return plan(*args, **options)


# --- bytes ------------------------------------------------------------------------------------


def check_bytes(fns, x, weights, schedules):
    measured = measure(fns, x, "hash", ())
    for schedule in schedules:
        predicted = peak(fns, x, schedule, "hash", ())
        assert predicted == taken(by(fns, schedule), x, weights)
        assert predicted <= simulate(measured.stages, schedule, measured.first).peak


def check_budgets(fns, x, weights, count, **options):
    work = []
    for budget in budgets(fns, x, count):
        made = planned(fns, x, budget, **options)
        assert made.peak == taken(made, x, weights) <= budget
        work.append(made.extra)
    assert work == sorted(work, reverse=True)


def test_a_dry_run_finds_the_bytes_of_a_model(engine):
    fns, x, weights = small_gpt()
    check_bytes(fns, x, weights, usual(len(fns)))


@pytest.mark.parametrize("seed", range(4))
def test_a_dry_run_finds_the_bytes_of_any_chain(engine, seed):
    fns, x, weights = drawn(seed)
    pick = random.Random(seed)
    check_bytes(fns, x, weights, [*usual(len(fns)), *[any_of(pick, 0, len(fns)) for _ in range(4)]])


def test_a_plan_of_a_model_keeps_within_its_budget(engine):
    fns, x, weights = small_gpt()
    check_budgets(fns, x, weights, 5)


@pytest.mark.parametrize("seed", range(4))
def test_a_plan_of_any_chain_keeps_within_its_budget(engine, seed):
    check_budgets(*drawn(seed), 4)


def test_a_budget_holds_for_grad(engine):
    fns, x, weights = deep("cpu")
    made = planned(fns, x, 0.5)
    given = {"weights": [w.detach() for w in weights], "x": x.detach()}
    for _ in range(2):
        bytes_ = Bytes(x.device)
        observers.append(bytes_)
        try:
            gpuad.grad(lambda given: run(residual(given["weights"]), given["x"], made.schedule))(given)
        finally:
            observers.remove(bytes_)
    assert bytes_.peak + x.nbytes <= made.peak


def test_trees_between_functions_are_counted(engine):
    w = gpuad.asarray(np.eye(32, dtype=np.float32)).requires_grad_()

    def begins(x):
        return {"h": x @ w, "x": x, "order": gpuad.argsort(x, axis=0), "n": 3}

    def middle(d):
        return {**d, "h": gpuad.tanh(d["h"]) * d["n"] + d["x"], "detached": d["h"].detach() * 2.0}

    def ends(d):
        return gpuad.sum(d["h"] * d["detached"]) + gpuad.sum(d["order"]) * 0.0

    x = gpuad.asarray(np.random.default_rng(0).standard_normal((16, 32)).astype(np.float32)).requires_grad_()
    fns = [begins, middle, middle, middle, ends]
    pick = random.Random(0)
    check_bytes(fns, x, [w], [*usual(5), *[any_of(pick, 0, 5) for _ in range(6)]])
    check_budgets(fns, x, [w], 5)


def test_an_infeasible_budget_states_the_least_that_is_feasible():
    for seed in range(4):
        fns, x, _ = drawn(seed)
        with pytest.raises(DataError, match=r"least that one takes is \d+ bytes") as error:
            planned(fns, x, 1000)
        least = int(str(error.value).split("takes is ")[1].split()[0])
        assert planned(fns, x, least).peak <= least
        with pytest.raises(DataError, match=f"least that one takes is {least} bytes"):
            planned(fns, x, least - 1)


@pytest.mark.parametrize("make", [small_gpt, functools.partial(drawn, 3)])
def test_plans_give_the_same_bits(make):
    fns, x, weights = make()

    def gradients(call):
        for t in (x, *weights):
            if t.requires_grad:
                t.grad = None
        gpuad.random.seed(1)
        y = call(x)
        y.backward()
        return [y.numpy(), *[t.grad.numpy() for t in (x, *weights) if t.requires_grad]]

    expected = gradients(lambda x: functools.reduce(lambda x, f: f(x), fns, x))
    for budget in budgets(fns, x, 4):
        for a, b in zip(gradients(planned(fns, x, budget)), expected, strict=True):
            assert np.array_equal(a, b)


def test_measuring_touches_nothing_and_computes_nothing():
    rng = np.random.default_rng(5)
    w = gpuad.asarray(np.eye(8, dtype=np.float32)).requires_grad_()
    w.grad = gpuad.ones((8, 8))

    def stage(x):
        x = gpuad.nn.functional.dropout(x @ w, 0.5)
        return x * float(np.random.rand()) * random.random() * float(rng.random())

    x = gpuad.asarray(np.ones((4, 8), np.float32)).requires_grad_()
    fns = [stage, stage, gpuad.sum]
    state = lambda: (
        gpuad.random.default().state,
        np.random.get_state(legacy=False)["state"]["pos"],
        np.random.get_state(legacy=False)["state"]["key"].tolist(),
        random.getstate(),
        rng.bit_generator.state,
        w.grad.numpy().tolist(),
        (w.requires_grad, x.requires_grad, x.grad),
    )
    before, bytes_ = state(), Bytes(x.device)
    observers.append(bytes_)
    try:
        measured = measure(fns, x, "off", [rng])
        peak(fns, x, every(3), "off", [rng])
        planned(fns, x, 1.0, determinism="off", generators=[rng])
        assert bytes_.made == 0
        planned(fns, x, 1.0, time="profile", determinism="off", generators=[rng])
    finally:
        observers.remove(bytes_)
    assert state() == before
    assert len(measured.stages) == 3


def test_a_dry_run_that_fails_leaves_random_numbers_where_they_were():
    def fails(x):
        gpuad.random.uniform((3,))
        np.random.rand()
        raise ValueError("inside")

    before = gpuad.random.default().state, np.random.get_state(legacy=False)["state"]["pos"]
    x = gpuad.asarray(np.ones((4, 8), np.float32)).requires_grad_()
    with pytest.raises(ValueError, match="inside"):
        measure([gpuad.sin, fails], x, "hash", ())
    assert (gpuad.random.default().state, np.random.get_state(legacy=False)["state"]["pos"]) == before


def test_a_dry_run_leaves_the_generator_of_cupy_alone(monkeypatch):
    class State:
        def __init__(self, seed=None):
            self.drawn = 0

        def randint(self, low, high):
            self.drawn += 1
            return low

    states = [State()]
    numbers = SimpleNamespace(
        RandomState=State, get_random_state=lambda: states[-1], set_random_state=lambda state: states.append(state)
    )
    cupy = SimpleNamespace(random=numbers, cuda=SimpleNamespace(is_available=lambda: True))
    monkeypatch.setitem(sys.modules, "cupy", cupy)

    def draws(x):
        return x * float(1 + numbers.get_random_state().randint(0, 5))

    measure([draws, draws], gpuad.asarray(np.ones(3)).requires_grad_(), "hash", ())
    assert states[-1] is states[0] and states[0].drawn == 0


# --- segments ---------------------------------------------------------------------------------


def test_sixteen_segments_of_31_layers_are_balanced():
    rng = np.random.default_rng(0)
    weights = [gpuad.asarray(rng.standard_normal((32, 32)) / 8).requires_grad_() for _ in range(31)]
    wide = lambda w: lambda x: gpuad.tanh(gpuad.tanh(gpuad.tanh(x @ w) @ w) @ w) @ w
    fns = [*[wide(w) for w in weights[:-1]], lambda x: gpuad.sum(wide(weights[-1])(x))]
    x = gpuad.asarray(rng.standard_normal((256, 32))).requires_grad_()
    measured = measure(fns, x, "hash", ())
    found = taken(lambda x: checkpoint_sequential(fns, x, 16), x, weights)
    # all that are balanced by count: fifteen of two functions and one of one, wherever that is
    best = min(
        (simulate(measured.stages, segmented(bounds), measured.first).peak, bounds)
        for alone in range(16)
        for bounds in [[2 * k - (k > alone) for k in range(17)]]
    )
    assert found <= 1.05 * taken(by(fns, segmented(best[1])), x, weights)
    assert (
        simulate(measured.stages, segments(measured.stages, 16, measured.first), measured.first).peak <= 1.05 * best[0]
    )


def test_automatic_segments_take_least():
    for seed in range(2):
        fns, x, weights = drawn(seed)
        auto = taken(lambda x, fns=fns: checkpoint_sequential(fns, x), x, weights)
        for k in range(1, len(fns) + 1):
            assert auto <= 1.05 * taken(lambda x, fns=fns, k=k: checkpoint_sequential(fns, x, k), x, weights)


def test_segments_are_found_once_for_functions_and_input(monkeypatch):
    measured = []
    monkeypatch.setattr(
        importlib.import_module("gpuad.memory.plan"),
        "measure",
        lambda *args, **options: (measured.append(1), measure(*args, **options))[1],
    )

    def make(width):
        w = gpuad.asarray(np.eye(width, dtype=np.float32)).requires_grad_()
        return [lambda x: gpuad.tanh(x @ w)] * 3

    for width, rows, times in ((8, 4, 1), (8, 4, 1), (8, 5, 2), (9, 4, 3)):
        checkpoint_sequential(make(width), gpuad.asarray(np.ones((rows, width), np.float32)))
        assert len(measured) == times


def test_nothing_is_measured_where_no_derivative_is_taken(monkeypatch):
    monkeypatch.setattr(importlib.import_module("gpuad.memory.plan"), "measure", None)
    with gpuad.no_grad():
        x = gpuad.asarray(np.ones((3, 7))).requires_grad_()
        assert not checkpoint_sequential([gpuad.sin, gpuad.cos], x).requires_grad


def test_any_callable_is_a_function_of_a_chain():
    @dataclass
    class Compared:  # so that it has no hash
        times: float

        def __call__(self, x):
            return gpuad.sin(x) * self.times

    class Slotted:  # so that nothing refers to it weakly
        __slots__ = ()

        def method(self, x):
            return gpuad.sin(x)

    x = gpuad.asarray(np.ones(5))
    slotted = Slotted()
    for fns in (
        [Compared(1.0), Compared(2.0)],
        [slotted.method, slotted.method],
        [functools.partial(gpuad.multiply, 2.0), abs, gpuad.sin],
    ):
        expected = functools.reduce(lambda x, f: f(x), fns, x)
        for _ in range(2):
            assert np.array_equal(checkpoint_sequential(fns, x.detach().requires_grad_()).numpy(), expected.numpy())


@pytest.mark.parametrize("number", [0, 4, -1, True, 1.5, "some", [1]])
def test_wrong_segments_are_an_error(number):
    with pytest.raises(DataError, match="segments"):
        checkpoint_sequential([gpuad.sin] * 3, gpuad.asarray(np.ones(3)), number)


@pytest.mark.parametrize("fns", [[], [gpuad.sin, 3], iter([gpuad.sin]), gpuad.sin, None])
def test_what_is_no_chain_is_an_error(fns):
    for call in (checkpoint_sequential, functools.partial(plan, budget=1.0)):
        with pytest.raises(DataError, match="a chain is a list of functions"):
            call(fns, gpuad.asarray(np.ones(3)))


def test_an_input_without_a_tensor_is_an_error():
    for call in (checkpoint_sequential, functools.partial(plan, budget=1.0)):
        with pytest.raises(DataError, match="with a tensor at least"):
            call([gpuad.sin], {"x": 3.0})


def test_options_that_are_wrong_are_an_error():
    fns, x = [gpuad.sin, gpuad.sum], gpuad.asarray(np.ones(3)).requires_grad_()
    for budget in (0.0, 1.5, float("nan"), "some", -1, None, True):
        with pytest.raises(DataError):
            plan(fns, x, budget)
    for options in ({"time": "clock"}, {"determinism": "some"}, {"generators": [3]}):
        with pytest.raises(DataError):
            plan(fns, x, 1.0, **options)


# --- plans ------------------------------------------------------------------------------------


def test_a_plan_refuses_more_than_it_was_made_for():
    fns, x, _ = small_gpt()
    made = planned(fns, x, 1.0)
    made(x[:2])
    for other in (gpuad.concat([x, x]), {"x": x, "y": x}, 3.0):
        with pytest.raises(DataError, match=r"a plan for float32\[4, 32, 32\] .* got .*\n  make another plan"):
            made(other)
    of_constant = planned(fns, x.detach(), 1.0)
    with pytest.raises(DataError, match=r"a plan for float32\[4, 32, 32\] got float32\[4, 32, 32\] with a derivative"):
        of_constant(x)
    with gpuad.no_grad():
        of_constant(x.detach())


def test_a_fraction_is_of_what_no_checkpoint_takes():
    fns, x, weights = small_gpt()
    most = taken(by(fns, none(len(fns))), x, weights)
    assert planned(fns, x, 1.0).extra == 0
    half = planned(fns, x, 0.5)
    assert 0 < half.extra < 1 and half.peak <= 0.5 * most


def test_time_on_a_clock_is_used():
    def slow(x):
        time.sleep(0.005)
        return gpuad.sin(x)

    x = gpuad.asarray(np.ones((64, 64))).requires_grad_()
    fns = [gpuad.sin, slow, gpuad.sin, slow, gpuad.sin, gpuad.sum]
    made = planned(fns, x, budgets(fns, x, 5)[1], time="profile")
    seconds = [stage.forward_time for stage in made.measured.stages]
    assert seconds[1] >= 0.005 and seconds[3] >= 0.005 and seconds[0] < 0.005


def test_plans_explain_themselves_in_80_columns():
    w = gpuad.asarray(np.eye(16, dtype=np.float32)).requires_grad_()

    def a_function_with_quite_a_long_name_in_the_middle(d):
        return {**d, "h": gpuad.tanh(d["h"] @ w)}

    meta = gpuad.zeros((64, 16), device=find_device("meta", like="cuda:sm_90"))
    for h, offload in ((gpuad.zeros((64, 16)), False), (meta, True)):
        x = {name: gpuad.zeros_like(h) for name in "abcd"} | {"h": h.detach().requires_grad_()}
        fns = [*[a_function_with_quite_a_long_name_in_the_middle] * 23, lambda d: gpuad.sum(d["h"])]
        for budget in (budgets(fns, x, 6)[1], 1.0):
            text = planned(fns, x, budget, offload=offload).explain()
            assert max(map(len, text.splitlines())) <= 80
            assert "24 functions" in text and "a_function_with_qui…" in text and "this plan" in text


def test_what_checkpoints_cannot_save_is_a_warning():
    w = gpuad.asarray(np.ones((256, 256), np.float32)).requires_grad_()
    fns = [gpuad.sin, gpuad.sin, gpuad.sin, lambda x: gpuad.sum(gpuad.tanh(x @ w))]
    x = gpuad.asarray(np.ones((4, 256), np.float32)).requires_grad_()
    least, most = budgets(fns, x, 2)
    assert 0.95 * most < least < most
    with pytest.warns(
        UserWarning, match=r"checkpoints save \d% of .* at most: the backward pass of <lambda> alone takes"
    ):
        made = plan(fns, x, least)
    assert made.advice() in made.explain().replace("\n", " ")


def test_few_numbers_of_segments_of_a_long_chain_are_tried():
    stages = [StageCost(1000 + k % 7, 5000, 3000, 9000, 12000, 1000, 100, 1.0, 2.0) for k in range(256)]
    tried = importlib.import_module("gpuad.memory.plan")._segmented(Measured(stages, 0))
    assert len(tried) < 64
    least = lambda found: min(simulate(stages, schedule).peak for schedule in found)
    assert least(tried) <= 1.05 * least([segments(stages, k) for k in range(1, 65)])


# --- waiting on the host ----------------------------------------------------------------------


@pytest.fixture(params=["itself", "meta"])
def place(request, cuda):
    """A device that offloads: a GPU, or the meta device that is like one."""
    return find_device("meta", like="cuda:sm_90") if request.param == "meta" else find_device(cuda)


def deep(device, functions=8, width=32, rows=256):
    """Functions that keep four times what they are given."""
    rng = np.random.default_rng(0)
    new = lambda *shape: gpuad.asarray((rng.standard_normal(shape) / 6).astype(np.float32), device=device)
    weights = [new(width, width).requires_grad_() for _ in range(functions)]
    return residual(weights), new(rows, width).requires_grad_(), weights


def residual(weights):
    layer = lambda w: lambda x: gpuad.tanh(gpuad.tanh(gpuad.tanh(x @ w) @ w) @ w) + x
    return [*map(layer, weights[:-1]), lambda x: gpuad.sum(layer(weights[-1])(x) ** 2)]


def offloads(schedule):
    return any(type(item) is Advance and (item.offload or offloads(item.inner)) for item in schedule)


def test_inputs_wait_on_the_host_where_transfers_are_cheap(place, monkeypatch):
    monkeypatch.setattr(importlib.import_module("gpuad.memory.plan"), "MOVED_BYTE", 1e-3)
    fns, x, weights = deep(place)
    least, most = budgets(fns, x, 2)
    moved, offload = [], place.offload
    monkeypatch.setattr(place, "offload", lambda array: moved.append(id(array.buffer)) or offload(array))
    made = planned(fns, x, budget := (7 * least + most) // 8, offload=True)
    assert offloads(made.schedule) and made.extra < planned(fns, x, budget).extra
    assert made.peak == taken(made, x, weights) <= budget
    assert moved and not set(moved) & {id(t.array.buffer) for t in (x, *weights)}
    if place.computes:
        found = [t.grad.numpy() for t in (x, *weights)]
        taken(by(fns, none(len(fns))), x, weights)
        for a, b in zip(found, [t.grad.numpy() for t in (x, *weights)]):
            assert np.array_equal(a, b)
        y = made(x)  # what is away comes back for a second backward pass, too
        for t in (x, *weights):
            t.grad = None
        y.backward(retain_graph=True)
        assert all(np.array_equal(a, t.grad.numpy()) for a, t in zip(found, (x, *weights)))
        y.backward()
        assert all(np.array_equal(a + a, t.grad.numpy()) for a, t in zip(found, (x, *weights)))


def test_parameters_do_not_go_to_the_host(place, monkeypatch):
    w, x = nn.Parameter(gpuad.zeros((8, 8), device=place)), gpuad.zeros((4, 8), device=place)
    fns = [
        lambda x: {"h": x @ w, "rows": gpuad.reshape(w, (64,))},
        lambda d: {**d, "h": d["h"] @ gpuad.reshape(d["rows"], (8, 8))},
        lambda d: gpuad.sum(d["h"]),
    ]
    moved, offload = [], place.offload
    monkeypatch.setattr(place, "offload", lambda array: moved.append(array.shape) or offload(array))
    schedule = (Advance(0, 0, (Tape(0),)), Advance(1, 1, (Tape(1),), offload=True), Tape(2))
    run(fns, x, schedule).backward()
    assert moved == [(4, 8)]


def test_budgets_hold_on_a_device_that_offloads(place, monkeypatch):
    monkeypatch.setattr(importlib.import_module("gpuad.memory.plan"), "MOVED_BYTE", 1e-3)
    for fns, x, weights in (drawn(0, place), deep(place) if place.computes else small_gpt(place)):
        for budget in budgets(fns, x, 3)[1:]:
            made = planned(fns, x, budget, offload=True)
            assert made.peak == taken(made, x, weights) <= budget


def test_inputs_wait_on_the_host_where_layers_are_wide():
    device = find_device("meta", like="cuda:sm_90")
    with gpuad.use_device(device):
        x = gpuad.zeros((4096, 16384), dtype="float16").requires_grad_()
        w = gpuad.zeros((16384, 16384), dtype="float16")
    layer = lambda x: gpuad.tanh(gpuad.tanh(gpuad.tanh(x @ w) @ w) @ w) + x
    fns = [*[layer] * 15, lambda x: gpuad.sum(layer(x))]
    made = [planned(fns, x, budget, offload=True) for budget in budgets(fns, x, 9)[1:]]
    moving = [one for one in made if offloads(one.schedule)]
    assert moving and not offloads(made[-1].schedule)
    for one in moving:
        assert "  host, again with" in one.explain() and max(map(len, one.explain().splitlines())) <= 80


def test_nothing_waits_on_the_host_on_a_cpu():
    fns, x, weights = deep("cpu")
    for budget in budgets(fns, x, 3):
        made = planned(fns, x, budget, offload=True)
        assert made.schedule == planned(fns, x, budget).schedule and not offloads(made.schedule)
        assert taken(made, x, weights) <= budget
