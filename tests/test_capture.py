"""capture: replays give the bits of the step itself; what a recording cannot follow is an error, or runs as it is."""

import gc

import numpy as np
import pytest

import gpuad
from gpuad import buffer, nn, optim
from gpuad.fuse import engines
from gpuad.models import GPT, GPTConfig
from gpuad.nn import functional as F

F32 = np.float32


def network(device, **options):
    generator = gpuad.random.Generator(3)
    return nn.Sequential(
        nn.Linear(12, 32, device=device, generator=generator),
        nn.ReLU(),
        nn.Dropout(options.get("dropout", 0.0), generator=generator),
        nn.Linear(32, 5, device=device, generator=generator),
    )


def batches(n, seed=0, rows=16):
    rng = np.random.default_rng(seed)
    return [(rng.standard_normal((rows, 12), F32), rng.integers(0, 5, rows)) for _ in range(n)]


def training(device, kind=optim.AdamW, dropout=0.0, **options):
    """A model, its optimizer, and a step."""
    model = network(device, dropout=dropout)
    optimizer = kind(model.parameters(), 1e-2, **options)

    def step(x, t):
        loss = F.cross_entropy(model(x), t)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return model, optimizer, step


def taken(step, optimizer, device, data, rates=None):
    losses = []
    for k, (x, t) in enumerate(data):
        if rates is not None:
            optimizer.lr = rates[k]
        losses.append(step(gpuad.asarray(x, device=device), gpuad.asarray(t, device=device)).item())
    return losses


def recording_of(captured):
    (form,) = captured.forms.values()
    return form.recording


def same_bits(a, b):
    return all(np.array_equal(p.numpy(), q.numpy()) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
        (optim.Adam, {}),
        (optim.AdamW, {"max_grad_norm": 0.5}),
        (optim.AdamW, {"no_decay": lambda p: p.ndim < 2}),
    ],
)
def test_replays_have_the_bits_of_the_step(device, kind, options):
    data, rates = batches(8), [0.01 / (k + 1) for k in range(8)]
    model, optimizer, step = training(device, kind, **options)
    losses = taken(step, optimizer, device, data, rates)
    again, captured_optimizer, captured_step = training(device, kind, **options)
    captured = gpuad.capture(captured_step)
    assert taken(captured, captured_optimizer, device, data, rates) == losses
    assert recording_of(captured) is not None and same_bits(model, again)
    state, other = optimizer.state_dict(), captured_optimizer.state_dict()
    assert all(np.array_equal(state[name].numpy(), other[name].numpy()) for name in state)


@pytest.mark.parametrize("kind", ["plain", "dropout", "checkpoint"])
def test_a_gpt_replays_with_its_random_numbers(device, kind):
    data = [np.random.default_rng(k).integers(0, 50, (2, 17)) for k in range(6)]
    config = GPTConfig(vocabulary=50, length=16, layers=2, heads=2, width=16, dropout=0.0 if kind == "plain" else 0.3)

    def made():
        generator = gpuad.random.Generator(1)
        wrap = gpuad.checkpoint if kind == "checkpoint" else None
        model = GPT(config, device=device, generator=generator, wrap_block=wrap)
        optimizer = optim.AdamW(model.parameters(), 1e-2, max_grad_norm=1.0)

        def step(tokens):
            loss = model.loss(tokens)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss

        return model, generator, step

    model, generator, step = made()
    losses = [step(gpuad.asarray(tokens, device=device)).item() for tokens in data]
    again, other, other_step = made()
    captured = gpuad.capture(other_step)
    with gpuad.use_device(device):
        assert [captured(tokens).item() for tokens in data] == losses
    assert recording_of(captured) is not None
    assert same_bits(model, again) and generator.state == other.state


def test_a_function_without_a_model_is_replayed_on_its_arguments(device):
    calls = []

    @gpuad.capture
    def f(x, scale, *, more):
        calls.append(1)
        return {"sum": gpuad.sum(x * scale), "rows": [gpuad.exp(x[:, :2]) + more, more]}

    for k in range(6):
        a = np.random.default_rng(k).standard_normal((3, 4)).astype(F32)
        found = f(gpuad.asarray(a, device=device), 2.0, more=1.0)
        assert np.allclose(found["sum"].numpy(), 2 * a.sum(), rtol=1e-5)
        assert np.allclose(found["rows"][0].numpy(), np.exp(a[:, :2]) + 1, rtol=1e-6) and found["rows"][1] == 1.0
    assert len(calls) == 3  # as it is, and two recordings


def test_results_are_copies(device):
    f = gpuad.capture(lambda x: x * 2)
    found = [f(gpuad.asarray(np.full(3, k, F32), device=device)) for k in range(6)]
    assert [y.numpy()[0] for y in found] == [0, 2, 4, 6, 8, 10]


def test_the_memory_of_arguments_stays_the_callers(device):
    f = gpuad.capture(lambda x: gpuad.sum(gpuad.exp(x) - x))
    given = [gpuad.asarray(np.full((64, 64), k, F32), device=device) for k in range(5)]
    for k, x in enumerate(given):
        assert f(x).item() == pytest.approx(64 * 64 * (np.exp(k) - k), rel=1e-4)
    assert [x.numpy().max() for x in given] == [0, 1, 2, 3, 4]


def test_other_shapes_and_other_numbers_are_recorded_apart(device):
    f = gpuad.capture(lambda x, k: gpuad.sum(x) * k)
    for n in (3, 5, 3, 5, 3, 5, 3, 5, 3, 5):
        for k in (1, 2.5, True):
            assert f(gpuad.ones(n, device=device), k).item() == n * k
    assert len(f.forms) == 6


# --- what changes between calls -----------------------------------------------------------------


def test_loaded_weights_are_followed(device):
    data = batches(12)
    model, optimizer, step = training(device)
    captured = gpuad.capture(step)
    taken(captured, optimizer, device, data[:5])
    assert recording_of(captured) is not None
    weights, state = model.state_dict(), optimizer.state_dict()
    expected = taken(captured, optimizer, device, data[5:8])
    model.load_state_dict(weights)
    optimizer.load_state_dict(state)
    assert taken(captured, optimizer, device, data[5:8]) == expected
    with gpuad.no_grad():
        model[0].bias.copy_(np.zeros(32, F32))
    twin, twin_optimizer, twin_step = training(device)
    twin.load_state_dict(model.state_dict())
    twin_optimizer.load_state_dict(optimizer.state_dict())
    assert taken(captured, optimizer, device, data[8:]) == taken(twin_step, twin_optimizer, device, data[8:])


def test_values_that_somebody_holds_do_not_change(device):
    data = batches(12)
    model, optimizer, step = training(device)
    captured = gpuad.capture(step)
    taken(captured, optimizer, device, data[:5])
    held = model[0].weight.detach()
    before = held.numpy().copy()
    view = optimizer.state_dict()
    moments = {name: x.numpy().copy() for name, x in view.items()}
    taken(captured, optimizer, device, data[5:])
    assert np.array_equal(held.numpy(), before)
    assert all(np.array_equal(x.numpy(), moments[name]) for name, x in view.items())
    del held, view
    taken(captured, optimizer, device, data)
    assert recording_of(captured) is not None  # it is recorded again in time


def test_training_modes_and_options_are_followed(device):
    data = batches(14)
    model, optimizer, step = training(device, dropout=0.5)
    twin, twin_optimizer, twin_step = training(device, dropout=0.5)
    captured = gpuad.capture(step)
    for k, change in enumerate(
        [lambda m, o: None, lambda m, o: m.eval(), lambda m, o: o.param_groups[0].update(eps=0.1)]
    ):
        change(model, optimizer)
        change(twin, twin_optimizer)
        part = data[4 * k : 4 * k + 4]
        assert taken(captured, optimizer, device, part) == taken(twin_step, twin_optimizer, device, part)


def test_names_outside_the_step_are_followed(device):
    scale = 1.0

    @gpuad.capture
    def f(x):
        return gpuad.sum(x) * scale

    x = gpuad.ones(4, device=device)
    assert [f(x).item() for _ in range(5)] == [4.0] * 5
    scale = 2.0
    assert [f(x).item() for _ in range(5)] == [8.0] * 5


def test_a_tensor_that_is_assigned_is_followed(device):
    mask = gpuad.asarray(np.array([1, 0, 1], F32), device=device)

    @gpuad.capture
    def f(x):
        return gpuad.sum(x * mask)

    x = gpuad.ones(3, device=device)
    assert [f(x).item() for _ in range(5)] == [2.0] * 5
    mask[1] = 5.0
    assert [f(x).item() for _ in range(5)] == [7.0] * 5
    mask = gpuad.asarray(np.zeros(3, F32), device=device)
    assert [f(x).item() for _ in range(5)] == [0.0] * 5


def test_pending_tensors_from_outside_are_followed(device):
    mask = gpuad.ones(3, device=device) * 2
    f = gpuad.capture(lambda x: gpuad.sum(x * mask))
    assert [f(gpuad.ones(3, device=device)).item() for _ in range(5)] == [6.0] * 5


def test_views_of_a_parameter_are_a_snapshot(device):
    data = batches(8)
    model, optimizer, step = training(device)
    captured = gpuad.capture(step)
    taken(captured, optimizer, device, data[:5])
    view = model[0].weight.numpy()
    before = view.copy()
    taken(captured, optimizer, device, data[5:])
    assert np.array_equal(view, before)


def test_a_gradient_from_before_is_added_to(device):
    data = batches(6)
    x, t = (gpuad.asarray(a, device=device) for a in data[5])
    models = []
    for wrap in (lambda f: f, gpuad.capture):
        model, optimizer, step = training(device)
        step = wrap(step)
        taken(step, optimizer, device, data[:5])
        F.cross_entropy(model(x), t).backward()
        taken(step, optimizer, device, data[:2])
        assert model[0].weight.grad is None
        models.append(model)
    assert same_bits(*models)


@pytest.mark.parametrize(
    "change",
    [
        lambda model, optimizer: model[0].weight.requires_grad_(False),
        lambda model, optimizer: setattr(optimizer, "max_grad_norm", 1e-3),
        lambda model, optimizer: model[0].bias.requires_grad_(False),
    ],
)
def test_what_decides_a_step_is_followed(device, change):
    data, models = batches(10), []
    for wrap in (lambda f: f, gpuad.capture):
        model, optimizer, step = training(device)
        step = wrap(step)
        taken(step, optimizer, device, data[:5])
        change(model, optimizer)
        taken(step, optimizer, device, data[5:])
        models.append(model)
    assert same_bits(*models)


@pytest.mark.parametrize("kind", [optim.SGD, optim.AdamW])
def test_parameters_that_have_moved_more_often_are_followed(device, kind):
    data, models = batches(12), []
    for wrap in (lambda f: f, gpuad.capture):
        model, optimizer, step = training(device, kind)
        step = wrap(step)
        taken(step, optimizer, device, data[:6])
        gpuad.sum(model[0].bias * 2).backward()
        optimizer.step()
        optimizer.zero_grad()
        taken(step, optimizer, device, data[6:])
        models.append(model)
    assert same_bits(*models)


def test_a_gradient_that_somebody_holds_does_not_change(device):
    model, x = network(device), gpuad.asarray(batches(1)[0][0], device=device)
    captured = gpuad.capture(lambda x: gpuad.sum(model(x)).backward())
    for _ in range(5):
        captured(x)
    held = model[0].weight.grad
    before = held.numpy().copy()
    captured(x)
    assert np.array_equal(held.numpy(), before)


def test_another_living_tensor_under_the_same_name_is_followed(device):
    tables = [gpuad.full(3, float(k), device=device) for k in range(3)]
    table = tables[0]
    f = gpuad.capture(lambda x: gpuad.sum(x + table))
    x = gpuad.zeros(3, device=device)
    assert [f(x).item() for _ in range(5)] == [0.0] * 5
    table = tables[2]
    assert [f(x).item() for _ in range(5)] == [6.0] * 5


def test_signs_of_zero_are_numbers_of_their_own(device):
    f = gpuad.capture(lambda x, k: x * k)
    x = gpuad.ones(2, device=device)
    for _ in range(4):
        assert not np.signbit(f(x, 0.0).numpy()).any() and np.signbit(f(x, -0.0).numpy()).all()


def test_a_list_of_layers_is_followed(device):
    class Net(nn.Module):
        def __init__(self):
            self.layers = [nn.Linear(3, 3, device=device)]

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    net, x = Net(), gpuad.ones((2, 3), device=device)
    captured = gpuad.capture(lambda x: net(x))
    for _ in range(5):
        captured(x)
    net.layers.append(nn.Linear(3, 3, device=device))
    for _ in range(5):
        assert np.array_equal(captured(x).numpy(), net(x).numpy())


def test_memory_that_moved_once_is_forgotten(device):
    data = batches(12)
    model, optimizer, step = training(device)
    captured = gpuad.capture(step)
    taken(captured, optimizer, device, data[:1])
    held = model[0].weight.detach()
    taken(captured, optimizer, device, data[1:2])
    del held
    model.load_state_dict({name: x.numpy() for name, x in model.state_dict().items()})
    taken(captured, optimizer, device, data[2:])
    assert recording_of(captured) is not None


@pytest.mark.parametrize(
    "options", [{}, {"master_weights": False}, {"master_weights": False, "state_dtype": "bfloat16"}]
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_types_are_captured(device, dtype, options):
    data, models = batches(7), []
    for wrap in (lambda f: f, gpuad.capture):
        model = network(device).to(dtype)
        optimizer = optim.AdamW(model.parameters(), 1e-2, **options)

        def step(x, t, model=model, optimizer=optimizer):
            loss = F.cross_entropy(model(x.to(dtype)), t)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss

        step = wrap(step)
        taken(step, optimizer, device, data)
        models.append(model)
    assert recording_of(step) is not None
    assert all(
        p.numpy().tobytes() == q.numpy().tobytes()
        for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True)
    )


def test_what_is_pending_when_a_step_is_taken_is_computed_first(device):
    data, results = batches(6), []
    for wrap in (lambda f: f, gpuad.capture):
        model, optimizer, _ = training(device)

        def step(x, t, model=model, optimizer=optimizer):
            before = model[0].weight * 2.0
            F.cross_entropy(model(x), t).backward()
            optimizer.step()
            optimizer.zero_grad()
            return before

        step = wrap(step)
        results.append([step(*(gpuad.asarray(a, device=device) for a in pair)).numpy() for pair in data])
    assert all(np.array_equal(a, b) for a, b in zip(*results, strict=True)) and recording_of(step) is not None


def test_detached_tensors_and_functional_gradients_are_followed(device):
    w = gpuad.asarray(np.arange(3, dtype=F32), device=device).requires_grad_()

    @gpuad.capture
    def f(x):
        return gpuad.sum(w.detach() * x), gpuad.grad(lambda v: gpuad.sum(v * v * x))(w)

    x = gpuad.ones(3, device=device)
    for k in range(6):
        if k == 4:
            with gpuad.no_grad():
                w.copy_(np.full(3, 5, F32))
        total, slope = f(x)
        assert total.item() == w.numpy().sum() and np.array_equal(slope.numpy(), 2 * w.numpy())
    assert recording_of(f) is None  # w has moved: it is recorded again


def test_shapes_in_turn_are_replayed(device):
    _, optimizer, step = training(device)
    captured = gpuad.capture(step)
    for k in range(12):
        taken(captured, optimizer, device, batches(1, seed=k, rows=16 if k % 2 else 8))
    assert [form.calls for form in captured.forms.values()] == [3, 3]


# --- what cannot be followed ----------------------------------------------------------------------


def refused(f, device, match, calls=4):
    captured = gpuad.capture(f)
    with pytest.raises(gpuad.CaptureError, match=match):
        for _ in range(calls):
            captured(gpuad.ones((4, 4), device=device))


def test_reading_a_value_is_refused(device):
    refused(
        lambda x: x * gpuad.sum(x).item(), device, r"cannot follow the values of float32\[\] at test_capture.py:\d+"
    )


def test_making_a_tensor_of_python_values_is_refused(device):
    refused(
        lambda x: x + gpuad.asarray(np.ones(4, F32), device=device),
        device,
        "what Python puts into tensors at test_capture.py",
    )


def test_a_mask_that_selects_is_refused(device):
    refused(lambda x: x[x > 0], device, r"the mask bool\[4, 4\]")


def test_numbers_that_differ_each_time_are_refused(device):
    count = iter(range(10))
    refused(lambda x: x * float(next(count)), device, r"does not do the same each time\n.*test_capture.py:\d+ it did")


def test_other_parts_each_time_are_refused(device):
    count, tables = iter(range(10)), [gpuad.full((4, 4), float(k), device=device) for k in range(9)]
    refused(lambda x: gpuad.sum(x[next(count) % 3 :][:1]), device, "does not do the same each time")
    refused(lambda x: gpuad.sum(x * tables[next(count) % 9]), device, "does not do the same each time", calls=6)


def test_other_results_each_time_are_refused(device):
    count = iter(range(10))
    refused(lambda x: (x * 2, x * 3)[:: 1 if next(count) % 2 else -1], device, "does not do the same each time")
    refused(lambda x: (x * 2, next(count)), device, "does not do the same each time")


def test_generators_of_the_step_itself_are_refused(device):
    generator = gpuad.random.Generator(1)
    draw = lambda g: gpuad.random.uniform((4, 4), generator=g, device=device)
    refused(lambda x: x + draw(gpuad.random.Generator(5)), device, "a generator that is made in the step")
    refused(lambda x: x + draw(generator.split()[0]), device, r"split\(\)")

    def seeds(x):
        gpuad.random.seed(3)
        return x + draw(None)

    refused(seeds, device, "cannot follow")


def test_assigning_to_an_argument_is_refused(device):
    def f(x):
        x += 1.0
        return x

    refused(f, device, r"assigns to its argument float32\[4, 4\]")


def test_a_tensor_that_is_given_twice_is_one(device):
    f = gpuad.capture(lambda a, b: (a * b, a is b))
    x, y = gpuad.ones(3, device=device), gpuad.ones(3, device=device)
    assert [f(x, x)[1] for _ in range(5)] == [True] * 5 and [f(x, y)[1] for _ in range(5)] == [False] * 5


def test_a_module_as_an_argument_is_refused(device):
    f = gpuad.capture(lambda x, layer: layer(x))
    with pytest.raises(gpuad.CaptureError, match="got a Module as an argument"):
        f(gpuad.ones(3, device=device), nn.Dropout(0.5))


def test_another_path_each_time_is_refused(device):
    count = iter(range(10))
    refused(lambda x: gpuad.exp(x) if next(count) % 2 else gpuad.tanh(x), device, "does not do the same each time")


def test_a_kept_tensor_is_refused(device):
    kept = []

    def f(x):
        kept.append(x * 2)
        return gpuad.sum(kept[-1])

    refused(f, device, r"f\(\) keeps its argument float32\[4, 4\], or something it has not computed from it yet")


def test_a_kept_result_is_refused(device):
    kept = []

    def f(x):
        kept.append(gpuad.matmul(x, x))
        return gpuad.sum(kept[-1])

    refused(f, device, r"f\(\) keeps a tensor made at test_capture.py:\d+ after it returns")


def test_gradients_that_are_left_are_refused(device):
    model = network(device)

    def step(x):
        model.zero_grad()
        gpuad.sum(model(gpuad.concat([x, x, x], axis=1))).backward()

    message = r"leaves new gradients behind, that of 0.weight among them\n  call optimizer.zero_grad\(\)"
    refused(step, device, message, calls=6)


def test_a_state_in_a_variable_is_refused(device):
    state = gpuad.zeros((4, 4), device=device)

    def f(x):
        nonlocal state
        state = state + x
        return gpuad.sum(state)

    message = r"is gone, or another one, when it returns\n  pass it as an argument, and return the new one"
    refused(f, device, message, calls=6)


def test_gradients_that_pile_up_are_followed(device):
    model, twin, x = network(device), network(device), gpuad.asarray(batches(1)[0][0], device=device)

    def step(x):
        gpuad.sum(model(x)).backward()

    captured = gpuad.capture(step)
    for k in range(6):
        captured(x * k)
        gpuad.sum(twin(x * k)).backward()
        assert np.array_equal(model[0].weight.grad.numpy(), twin[0].weight.grad.numpy())
    assert recording_of(captured) is not None
    model.zero_grad()
    twin.zero_grad()
    for k in range(6):
        captured(x * k)
        gpuad.sum(twin(x * k)).backward()
        assert np.array_equal(model[3].bias.grad.numpy(), twin[3].bias.grad.numpy())


def test_an_argument_with_a_derivative_is_refused(device):
    f = gpuad.capture(lambda x: x * 2)
    with pytest.raises(gpuad.CaptureError, match=r"got float32\[3\] at test_capture.py.*\n  pass detach\(\)"):
        f(gpuad.ones(3, device=device).requires_grad_())


def test_a_derivative_from_outside_is_refused(device):
    w = gpuad.ones((4, 4), device=device).requires_grad_()
    h = w * 2
    refused(lambda x: gpuad.sum(x * h), device, r"cannot follow a derivative into the step: float32\[4, 4\] is used at")

    def twice(v):
        f = gpuad.capture(lambda: gpuad.sum(v * 3))
        f()
        return f()

    with pytest.raises(gpuad.CaptureError, match="cannot follow a derivative"):
        gpuad.grad(twice)(w)


def test_modes_are_recorded_apart(device):
    w = gpuad.ones(4, device=device).requires_grad_()

    @gpuad.capture
    def f(x):
        y = gpuad.sum(w * x)
        if y.requires_grad:
            y.backward()
        w.grad = None
        return y

    x = gpuad.ones(4, device=device)
    for _ in range(5):
        assert f(x).item() == 4.0
        with gpuad.no_grad():
            assert f(x).item() == 4.0
    assert len(f.forms) == 2


def test_an_argument_that_cannot_be_compared_is_refused(device):
    f = gpuad.capture(lambda x, other: x * 2)
    with pytest.raises(gpuad.CaptureError, match="pass tensors, numbers and strings"):
        f(gpuad.ones(3, device=device), {1, 2})


def test_two_devices_are_refused(device):
    other = "cpu" if device != "cpu" else "meta"
    with pytest.raises((gpuad.CaptureError, gpuad.DeviceError)):
        refused(lambda x: gpuad.sum(x) + gpuad.ones((), device=other), device, "one device")


def test_a_parameter_that_is_always_held_is_refused(device):
    model, optimizer, step = training(device)
    captured = gpuad.capture(step)
    with pytest.raises(gpuad.CaptureError, match=r"do not hold on to detach\(\), numpy\(\) or state_dict\(\)"):
        for data in batches(8):
            held = model[0].weight.detach()
            taken(captured, optimizer, device, [data])
    del held


def test_an_assignment_to_a_tensor_outside_is_refused(device):
    total = gpuad.zeros((4, 4), device=device)

    def f(x):
        total[...] = x * 2
        return gpuad.sum(x)

    refused(f, device, r"keeps a tensor made at test_capture.py:\d+ after it returns")


# --- errors, memory -------------------------------------------------------------------------------


def test_a_step_that_is_not_finite_changes_nothing_and_the_next_goes_on(device):
    data = batches(8)
    model, optimizer, step = training(device, max_grad_norm=1.0)
    captured = gpuad.capture(step)
    taken(captured, optimizer, device, data[:5])
    before, steps = model.state_dict(), optimizer.state_dict()["step.0.weight"].item()
    held = {name: x.numpy().copy() for name, x in before.items()}
    del before
    bad = data[5][0].copy()
    bad[0, 0] = np.nan
    with pytest.raises(gpuad.NonFiniteError, match="changed nothing"):
        captured(gpuad.asarray(bad, device=device), gpuad.asarray(data[5][1], device=device)).item()
    assert all(np.array_equal(x.numpy(), held[name]) for name, x in model.state_dict().items())
    assert optimizer.state_dict()["step.0.weight"].item() == steps
    _, twin_optimizer, twin_step = training(device, max_grad_norm=1.0)
    taken(twin_step, twin_optimizer, device, data[:5])
    assert taken(captured, optimizer, device, data[5:]) == taken(twin_step, twin_optimizer, device, data[5:])


def test_indexes_are_checked_in_replays(device):
    table = gpuad.asarray(np.arange(12, dtype=F32).reshape(4, 3), device=device)
    f = gpuad.capture(lambda index: gpuad.sum(table[index]))
    for k in (0, 1, -1, 2, -4):
        assert f(gpuad.asarray(np.array([k, 0]), device=device)).item() == table.numpy()[[k, 0]].sum()
    with pytest.raises(gpuad.IndexRangeError, match="index 4 is out of range"):
        f(gpuad.asarray(np.array([0, 4]), device=device)).item()
    assert f(gpuad.asarray(np.array([1, 1]), device=device)).item() == 24


def test_replays_allocate_nothing_but_their_results(device):
    _, optimizer, step = training(device)
    captured = gpuad.capture(step)
    taken(captured, optimizer, device, batches(5))
    x, t = (gpuad.asarray(a, device=device) for a in batches(1)[0])
    memory = buffer.LiveBytes()
    buffer.observers.append(memory)
    try:
        for _ in range(3):
            captured(x, t)
    finally:
        buffer.observers.remove(memory)
    assert memory.peak <= 1024 and memory.live <= 0


def test_memory_of_a_recording_is_counted_and_goes_with_it(device):
    gc.collect()
    memory = buffer.LiveBytes()
    buffer.observers.append(memory)
    try:
        f = gpuad.capture(lambda x: gpuad.sum(gpuad.matmul(gpuad.exp(x), x)))
        for _ in range(4):
            f(gpuad.ones((64, 64), device=device))
        assert memory.live >= 64 * 64 * 4
        del f
        gc.collect()
        assert memory.live <= 64
    finally:
        buffer.observers.remove(memory)


def test_memory_is_used_again_inside_a_recording(device):
    def deep(x):
        with gpuad.no_grad():
            for _ in range(20):
                x = gpuad.matmul(x, x) * 0.01
        return gpuad.sum(x)

    f = gpuad.capture(deep)
    for _ in range(4):
        f(gpuad.ones((64, 64), device=device))
    assert sum(b.nbytes for b in recording_of(f).memory) <= 5 * 64 * 64 * 4


def test_numbers_that_are_assigned_are_part_of_the_recording(device):
    def f(x):
        y = x * 2.0
        y[0] = 7.0
        return y

    captured = gpuad.capture(f)
    for k in range(5):
        assert captured(gpuad.full(3, float(k), device=device)).tolist() == [7.0, 2.0 * k, 2.0 * k]


def test_a_step_that_asks_for_nothing_is_called(device):
    count = iter(range(10))
    f = gpuad.capture(lambda: next(count))
    assert [f() for _ in range(5)] == [0, 1, 2, 3, 4]


def test_threads_take_turns(device):
    if device != "cpu":
        pytest.skip("the stand-in is slow")
    from concurrent.futures import ThreadPoolExecutor

    f = gpuad.capture(lambda x: gpuad.sum(gpuad.exp(x) * x))
    given = [gpuad.full((64, 64), k / 10) for k in range(10)]
    expected = [gpuad.sum(gpuad.exp(x) * x).item() for x in given]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            assert [y.item() for y in pool.map(f, given)] == expected


@pytest.mark.skipif(engines.engine() != "compiled", reason="needs the compiled engine")
def test_large_and_strided_and_small_kernels_replay():
    def f(x, y):
        z = gpuad.exp(x.T) * gpuad.tanh(y) + gpuad.mean(x)
        return z, F.softmax(z[:5, ::2], axis=-1), gpuad.sum(z, axis=0), gpuad.cumulative_sum(z[0])

    captured = gpuad.capture(f)
    for k in range(5):
        rng = np.random.default_rng(k)
        x, y = (gpuad.asarray(rng.standard_normal((300, 300), F32)) for _ in range(2))
        for a, b in zip(captured(x, y), f(x, y), strict=True):
            assert np.array_equal(a.numpy(), b.numpy())
