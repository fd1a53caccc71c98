"""Optimizers against PyTorch's, what a step does to memory, what it refuses, schedules."""

import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

import gpuad
from gpuad import nn, optim
from gpuad.devices.device import NON_FINITE
from gpuad.errors import DataError, DTypeError, GradientError, NonFiniteError, ShapeError
from gpuad.fuse.kernel import Kernel, watchers

SHAPES = [(3, 4), (4,), (), (2, 3, 2)]
OPTIMIZERS = {
    "SGD": (optim.SGD, {"lr": 0.05}),
    "SGD momentum": (optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}),
    "SGD nesterov": (optim.SGD, {"lr": 0.05, "momentum": 0.8, "nesterov": True}),
    "Adam": (optim.Adam, {"lr": 0.03}),
    "Adam decay": (optim.Adam, {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}),
    "AdamW": (optim.AdamW, {"lr": 0.03}),
    "AdamW decay": (optim.AdamW, {"lr": 0.03, "betas": (0.9, 0.95), "eps": 1e-7, "weight_decay": 0.2}),
}
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)
TOLERANCE = {"float64": 1e-12, "float32": 1e-6}


def values(dtype="float64", seed=0):
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.standard_normal(s), dtype) for s in SHAPES]


def parameters(dtype="float64"):
    return [nn.Parameter(v, name=f"p{k}") for k, v in enumerate(values(dtype))]


def give(params, gradients):
    for p, g in zip(params, gradients, strict=True):
        p.grad = None if g is None else gpuad.asarray(g)


def contents(optimizer):
    """Copies of all parameters and states."""
    state = {name: x.numpy().copy() for name, x in optimizer.state_dict().items()}
    return state | {f"value.{k}": p.numpy().copy() for k, p in enumerate(optimizer.parameters)}


def assert_same(a, b, rtol=0.0):
    assert set(a) == set(b)
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=rtol, atol=rtol, err_msg=name)


def address(x):
    return x.array.data.__array_interface__["data"][0]


@contextmanager
def kernels() -> Iterator[list[Kernel]]:
    seen: list[tuple] = []

    def watch(kernel):
        seen.append((kernel.space, kernel.ops, len(kernel.outputs)))

    watchers.append(watch)
    try:
        yield seen
    finally:
        watchers.remove(watch)


# --- the same numbers as PyTorch --------------------------------------------------------------


@every_optimizer
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_twenty_steps_are_pytorchs(torch, name, dtype):
    cls, options = OPTIMIZERS[name]
    ours, theirs = parameters(dtype), [torch.tensor(v, requires_grad=True) for v in values(dtype)]
    a, b = cls(ours, **options), getattr(torch.optim, cls.__name__)(theirs, **options)
    for step in range(20):
        gradients = values(dtype, seed=step + 1)
        give(ours, gradients)
        for p, g in zip(theirs, gradients, strict=True):
            p.grad = torch.tensor(g)
        a.step(), b.step()
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p.numpy(), q.detach().numpy(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@every_optimizer
def test_a_parameter_without_gradient_stays_with_its_state_as_in_pytorch(torch, name):
    cls, options = OPTIMIZERS[name]
    ours, theirs = parameters(), [torch.tensor(v, requires_grad=True) for v in values()]
    a, b = cls(ours, **options), getattr(torch.optim, cls.__name__)(theirs, **options)
    absent = [set(), {1}, {0, 2}, {1, 2}, set(), {0, 1, 2, 3}, {3}, set()]
    for step, missing in enumerate(absent):
        gradients = [None if k in missing else g for k, g in enumerate(values(seed=step + 1))]
        give(ours, gradients)
        for p, g in zip(theirs, gradients, strict=True):
            p.grad = None if g is None else torch.tensor(g)
        before = contents(a)
        a.step(), b.step()
        after = contents(a)
        for key in before:
            if any(key.endswith(str(k)) for k in missing) and not key.startswith("group"):
                np.testing.assert_array_equal(after[key], before[key], err_msg=key)
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p.numpy(), q.detach().numpy(), rtol=1e-12, atol=1e-12)


def test_groups_and_exemption_from_decay_are_pytorchs(torch):
    ours, theirs = parameters(), [torch.tensor(v, requires_grad=True) for v in values()]
    a = optim.AdamW(
        [{"params": ours[:2], "lr": 0.1}, {"params": ours[2:], "betas": (0.5, 0.6)}],
        weight_decay=0.3,
        no_decay=lambda p: p.ndim < 2,
    )
    b = torch.optim.AdamW(
        [
            {"params": theirs[:1], "lr": 0.1},
            {"params": theirs[1:2], "lr": 0.1, "weight_decay": 0.0},
            {"params": theirs[3:], "betas": (0.5, 0.6)},
            {"params": theirs[2:3], "betas": (0.5, 0.6), "weight_decay": 0.0},
        ],
        weight_decay=0.3,
    )
    for step in range(5):
        gradients = values(seed=step + 1)
        a.update(gradients)
        for p, g in zip(theirs, gradients, strict=True):
            p.grad = torch.tensor(g)
        b.step()
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p.numpy(), q.detach().numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("fused", [True, False])
def test_clipping_by_the_global_norm_is_pytorchs(torch, fused):
    ours, theirs = parameters(), [torch.tensor(v, requires_grad=True) for v in values()]
    a = optim.AdamW(ours, 0.03, no_decay=lambda p: p.ndim < 2, max_grad_norm=2.5 if fused else None)
    b = torch.optim.AdamW([{"params": theirs[::3]}, {"params": theirs[1:3], "weight_decay": 0.0}], 0.03)
    for step in range(6):
        gradients = [np.asarray(g * 3.0 ** (step - 3)) for g in values(seed=step + 1)]
        give(ours, gradients)
        for p, g in zip(theirs, gradients, strict=True):
            p.grad = torch.tensor(g)
        norm = torch.nn.utils.clip_grad_norm_(theirs, 2.5)
        if not fused:
            assert optim.clip_grad_norm(ours, 2.5).item() == pytest.approx(norm.item(), rel=1e-12)
            for p, q in zip(ours, theirs, strict=True):
                np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=1e-12)
        a.step(), b.step()
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p.numpy(), q.detach().numpy(), rtol=1e-12, atol=1e-12)


# --- half types -------------------------------------------------------------------------------


def half_parameters(dtype):
    return [nn.Parameter(gpuad.asarray(v).to(dtype), name=f"p{k}") for k, v in enumerate(values("float32"))]


def half_gradients(dtype, seed):
    return [gpuad.asarray(g).to(dtype) for g in values("float32", seed)]


def adamw_in_float32(weights, gradients, lr, decay, b1, b2, eps):
    """The weights after each step of AdamW, every operation rounded to float32."""
    one = np.float32
    m, v = np.zeros_like(weights), np.zeros_like(weights)
    for n, g in enumerate(gradients, start=1):
        m = m + one(1 - b1) * (g - m)
        v = v * one(b2) + one(1 - b2) * (g * g)
        change = one(lr / (1 - b1**n)) * (m / (np.sqrt(v) / one(math.sqrt(1 - b2**n)) + one(eps)))
        weights = weights * one(1 - lr * decay) - change
        yield weights


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types_are_the_rounding_of_float32_weights(dtype):
    lr, decay, betas, eps = 1e-3, 0.1, (0.9, 0.99), 1e-7
    params = half_parameters(dtype)
    optimizer = optim.AdamW(params, lr, betas, eps, decay)
    kind, gradients = params[0].dtype, [half_gradients(dtype, seed) for seed in range(1, 8)]
    references = []
    for k, x in enumerate(values("float32")):
        of_p = [g[k].numpy().astype(np.float32) for g in gradients]
        references.append(adamw_in_float32(x.astype(kind).astype(np.float32), of_p, lr, decay, *betas, eps))
    for given, *expected in zip(gradients, *references, strict=True):
        optimizer.update(given)
        for k, (p, weights) in enumerate(zip(params, expected, strict=True)):
            np.testing.assert_array_equal(optimizer.state_dict()[f"master.p{k}"].numpy(), weights)
            np.testing.assert_array_equal(p.numpy(), weights.astype(kind))


@every_optimizer
def test_tiny_steps_move_half_types_only_with_master_weights(name):
    cls, options = OPTIMIZERS[name]
    options = options | {"lr": 1e-5, "weight_decay": 0.0}
    for master_weights in (True, False):
        w = nn.Parameter(gpuad.ones(3, dtype="bfloat16"))
        optimizer = cls([w], **options, master_weights=master_weights)
        for _ in range(600):
            optimizer.update([gpuad.ones(3, dtype="bfloat16")])
        assert ("master.0" in optimizer.state_dict()) == master_weights
        assert (w.to("float32").numpy() < 1).all() == master_weights


@every_optimizer
@pytest.mark.parametrize("order", ["values first", "state first"])
def test_training_in_half_types_goes_on_from_a_saved_state(tmp_path, name, order):
    cls, options = OPTIMIZERS[name]
    whole, first, second = (half_parameters("bfloat16") for _ in range(3))
    a, b, c = (cls(params, **(options | {"lr": 1e-3})) for params in (whole, first, second))
    for seed in range(1, 5):
        a.update(half_gradients("bfloat16", seed)), b.update(half_gradients("bfloat16", seed))
    nn.save(tmp_path / "state", b.state_dict())
    nn.save(tmp_path / "values", {p.name: p for p in first})
    found = nn.load(tmp_path / "values")
    if order == "state first":
        c.load_state_dict(nn.load(tmp_path / "state"))
    with gpuad.no_grad():
        for p in second:
            p.copy_(found[p.name])
    if order == "values first":
        c.load_state_dict(nn.load(tmp_path / "state"))
    for seed in range(5, 8):
        a.update(half_gradients("bfloat16", seed)), c.update(half_gradients("bfloat16", seed))
    assert_same(contents(a), contents(c))


def test_master_weights_start_from_the_values_where_a_state_has_none():
    params = half_parameters("bfloat16")
    state = optim.AdamW(half_parameters("bfloat16"), master_weights=False).state_dict()
    optimizer = optim.AdamW(params)
    optimizer.update(half_gradients("bfloat16", 1))
    optimizer.load_state_dict(state)
    for k, p in enumerate(params):
        np.testing.assert_array_equal(optimizer.state_dict()[f"master.p{k}"].numpy(), p.to("float32").numpy())
    with pytest.raises(DataError, match=r"master.p0 is not in this AdamW"):
        optim.AdamW(half_parameters("bfloat16"), master_weights=False).load_state_dict(optimizer.state_dict())


def test_master_weights_follow_values_given_from_outside():
    params = half_parameters("bfloat16")
    optimizer = optim.SGD(params, 1e-4)
    optimizer.update(half_gradients("bfloat16", 1))
    before = {name: x.numpy().copy() for name, x in optimizer.state_dict().items()}
    with gpuad.no_grad():
        params[1].copy_(gpuad.ones((4,)) * 3)
    optimizer.update([gpuad.zeros(s, dtype="bfloat16") for s in SHAPES])
    after = optimizer.state_dict()
    np.testing.assert_array_equal(after["master.p1"].numpy(), np.full(4, 3, np.float32))
    for name in ("master.p0", "master.p2", "master.p3"):
        np.testing.assert_array_equal(after[name].numpy(), before[name])


def test_a_failed_step_leaves_half_types_and_their_master_weights():
    params = half_parameters("bfloat16")
    optimizer = optim.AdamW(params, 0.1)
    optimizer.update(half_gradients("bfloat16", 1))
    before = contents(optimizer)

    def fail(kernel):
        if len(kernel.outputs) == 4:
            raise MemoryError

    watchers.append(fail)
    try:
        with pytest.raises(MemoryError):
            optimizer.update(half_gradients("bfloat16", 2))
    finally:
        watchers.remove(fail)
    assert_same(contents(optimizer), before)
    with pytest.raises(NonFiniteError):
        optimizer.update([g * math.nan for g in half_gradients("bfloat16", 2)])
    assert_same(contents(optimizer), before)
    optimizer.update(half_gradients("bfloat16", 2))
    twin = optim.AdamW(half_parameters("bfloat16"), 0.1)
    for seed in (1, 2):
        twin.update(half_gradients("bfloat16", seed))
    assert_same(contents(optimizer), contents(twin))


def test_a_model_is_trained_in_the_dtype_it_was_given_before_its_optimizer():
    model = nn.Linear(2, 2).to("bfloat16")
    optimizer = optim.AdamW(model.parameters(), 0.1)
    gpuad.sum(model(gpuad.ones((1, 2), dtype="bfloat16"))).backward()
    optimizer.step()
    assert model.weight.dtype == gpuad.bfloat16
    assert optimizer.state_dict()["master.weight"].dtype == gpuad.float32
    model.to("float32")
    optimizer.zero_grad()
    gpuad.sum(model(gpuad.ones((1, 2)))).backward()
    with pytest.raises(DTypeError, match="weight is float32 on cpu, and was bfloat16"):
        optimizer.step()
    assert "master.weight" not in optim.AdamW(model.parameters()).state_dict()


def test_half_types_keep_their_state_in_float32():
    exact, half = parameters("float32")[:1], [nn.Parameter(values("float32")[0]).to("bfloat16")]
    half = [nn.Parameter(half[0].detach())]
    a, b = optim.AdamW(exact, 0.01), optim.AdamW(half, 0.01)
    for step in range(10):
        g = values("float32", seed=step + 1)[0]
        a.update([g]), b.update([gpuad.asarray(g).to("bfloat16")])
    assert half[0].dtype == gpuad.bfloat16 and b.state_dict()["m.0"].dtype == gpuad.float32
    np.testing.assert_allclose(half[0].to("float32").numpy(), exact[0].numpy(), atol=0.05)


# --- kernels and memory -----------------------------------------------------------------------


@every_optimizer
@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
def test_an_update_is_one_kernel_over_all_parameters(name, max_grad_norm):
    cls, options = OPTIMIZERS[name]
    params = parameters("float32")
    optimizer = cls(params, **options, max_grad_norm=max_grad_norm)
    give(params, values("float32", seed=1))
    with kernels() as seen:
        optimizer.step()
    size = sum(p.size for p in params)
    large = [(ops, outputs) for space, ops, outputs in seen if space == (size,)]
    assert [outputs for _, outputs in large] == [1, 1 + len(optimizer.state)]
    assert large[0][0][-1] == "sum_all"
    assert all(space == () for space, _, _ in seen if space != (size,))


def test_a_changing_learning_rate_makes_no_new_kernel():
    params = parameters("float32")
    optimizer = optim.AdamW(params)
    seen = []
    for step in range(3):
        optimizer.lr = 0.1 / (step + 1)
        give(params, values("float32", seed=step))
        with kernels() as ran:
            optimizer.step()
        seen.append(ran)
    assert seen[0] == seen[1] == seen[2]


@every_optimizer
def test_a_plain_loop_updates_in_place(name):
    cls, options = OPTIMIZERS[name]
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    optimizer = cls(model.parameters(), **options)
    x = gpuad.asarray(np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32))
    places = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = gpuad.sum(model(x) ** 2)
        loss.backward()
        optimizer.step()
        places.append([address(p) for p in model.parameters()])
    assert places[0] == places[1] == places[2] == places[3]


def test_parameters_lie_side_by_side():
    params = parameters("float32")
    optim.SGD(params)
    offsets = [(address(p) - address(params[0])) // 4 for p in params]
    assert offsets == [0, 12, 16, 17]


def test_a_numpy_view_of_a_parameter_keeps_the_old_values():
    params = parameters("float32")
    optimizer = optim.AdamW(params, 0.1)
    view = params[0].numpy()
    before, place = view.copy(), address(params[0])
    optimizer.update(values("float32", seed=1))
    np.testing.assert_array_equal(view, before)
    assert address(params[0]) != place
    assert (params[0].numpy() != before).any()


def test_a_tape_that_holds_a_parameter_keeps_the_old_value():
    w = nn.Parameter(np.array([2.0, 3.0], np.float32))
    optimizer = optim.SGD([w], 0.5)
    place = address(w)
    loss = gpuad.sum(w * w)
    optimizer.update([np.array([1.0, 1.0], np.float32)])
    assert address(w) != place
    assert w.tolist() == [1.5, 2.5]
    loss.backward()
    assert w.grad.tolist() == [4.0, 6.0]  # at the value the loss was computed with


def test_a_pending_expression_and_a_snapshot_keep_the_old_value():
    w = nn.Parameter(np.array([2.0, 3.0], np.float32))
    optimizer = optim.AdamW([w], 0.5)
    with gpuad.no_grad():
        doubled = w * 2
    state = optimizer.state_dict()
    optimizer.update([np.array([1.0, 1.0], np.float32)])
    assert doubled.tolist() == [4.0, 6.0]
    assert state["m.0"].tolist() == [0.0, 0.0] and optimizer.state_dict()["m.0"].numpy().all()


def test_an_exception_in_the_middle_leaves_everything_as_it_was():
    params = parameters("float32")
    optimizer = optim.AdamW(params, 0.1)
    optimizer.update(values("float32", seed=1))
    before = contents(optimizer)

    def fail(kernel):
        if len(kernel.outputs) == 3:
            raise MemoryError

    watchers.append(fail)
    try:
        with pytest.raises(MemoryError):
            optimizer.update(values("float32", seed=2))
    finally:
        watchers.remove(fail)
    assert_same(contents(optimizer), before)
    twin = optim.AdamW(others := parameters("float32"), 0.1)
    for seed in (1, 2):
        twin.update(values("float32", seed=seed))
    optimizer.update(values("float32", seed=2))
    assert_same(contents(optimizer), contents(twin))
    assert len(others) == len(params)


def test_values_given_from_outside_are_followed():
    params = parameters()
    optimizer = optim.SGD(params, 1.0)
    with gpuad.no_grad():
        params[1].copy_(gpuad.ones((4,), dtype="float64"))
    gradients = values(seed=1)
    optimizer.update(gradients)
    np.testing.assert_allclose(params[1].numpy(), 1 - gradients[1])
    np.testing.assert_allclose(params[0].numpy(), values()[0] - gradients[0])


def test_training_holds_no_more_memory_and_no_more_nodes_after_a_step_than_before():
    from gpuad.buffer import LiveBytes, observers
    from gpuad.node import Node

    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
    optimizer = optim.AdamW(model.parameters(), no_decay=lambda p: p.ndim < 2, max_grad_norm=1.0)
    x = gpuad.asarray(np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32))
    live, counts = LiveBytes(), []
    gc.collect()
    gc.disable()
    observers.append(live)
    try:
        for _ in range(20):
            optimizer.zero_grad()
            gpuad.sum(model(x) ** 2).backward()
            optimizer.step()
            nodes = sum(issubclass(type(o), Node) for o in gc.get_objects())
            counts.append((live.live, nodes))
    finally:
        observers.remove(live)
        gc.enable()
    assert counts[2:] == [counts[2]] * 18


def test_an_optimizer_steps_on_the_meta_device():
    w = nn.Parameter(gpuad.zeros((3, 4), device="meta"))
    optimizer = optim.AdamW([w], max_grad_norm=1.0)
    gpuad.sum(w * w).backward()
    optimizer.step()
    assert w.shape == (3, 4) and w.is_leaf and w.device.name == "meta"


# --- gradients that are not finite ------------------------------------------------------------


@every_optimizer
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
def test_a_step_along_gradients_that_are_not_finite_changes_nothing(name, bad, max_grad_norm):
    cls, options = OPTIMIZERS[name]
    params = parameters("float32")
    optimizer = cls(params, **options, max_grad_norm=max_grad_norm)
    optimizer.update(values("float32", seed=1))
    before = contents(optimizer)
    gradients = values("float32", seed=2)
    gradients[0][1, 2] = gradients[3][0, 0, 0] = gradients[3][1, 1, 1] = bad
    give(params, gradients)
    device = gpuad.device("cpu")
    with pytest.raises(NonFiniteError) as caught:
        optimizer.step()
    assert str(caught.value) == (
        "step() changed nothing: gradients are inf or nan in\n"
        "  p0: 1 of the 12 elements of float32[3, 4]\n"
        "  p3: 2 of the 12 elements of float32[2, 3, 2]"
    )
    assert device.error_word & NON_FINITE
    assert_same(contents(optimizer), before)
    optimizer.update(values("float32", seed=3))
    assert not device.error_word & NON_FINITE


def test_finite_gradients_whose_norm_overflows_are_refused_with_the_reason():
    w = nn.Parameter(np.ones(2, np.float32))
    with pytest.raises(NonFiniteError, match="finite, but the sum of their squares is not"):
        optim.SGD([w]).update([np.full(2, 1e30, np.float32)])
    assert w.tolist() == [1.0, 1.0]


def test_clipping_leaves_gradients_that_are_not_finite_for_the_step_to_refuse():
    params = parameters("float32")
    gradients = values("float32", seed=1)
    gradients[1][0] = math.inf
    give(params, gradients)
    assert optim.clip_grad_norm(params, 1.0).item() == math.inf
    for p, g in zip(params, gradients, strict=True):
        np.testing.assert_array_equal(p.grad.numpy(), g)


# --- gradients as a tree ----------------------------------------------------------------------


def test_update_takes_a_module_of_gradients_and_matches_by_name():
    class Net(nn.Module):
        def __init__(self):
            self.b = nn.Parameter(np.float32([1.0, 2.0]))
            self.w = nn.Parameter(np.float32([3.0, 4.0]))
            self.offset = gpuad.asarray(np.float32([1.0, 1.0]))

        def forward(self, x):
            return gpuad.sum(x * self.w + 10 * self.b + self.offset)

    model = Net()
    gradients = gpuad.grad(lambda m: m(2.0))(model)
    optim.SGD([{"params": [model.w], "lr": 1.0}, {"params": [model.b], "lr": 0.1}]).update(gradients)
    assert model.w.tolist() == [1.0, 2.0] and model.b.tolist() == [0.0, 1.0]
    optim.SGD([model.w], 1.0).update(gradients)  # the others are not its business
    assert model.w.tolist() == [-1.0, 0.0] and model.b.tolist() == [0.0, 1.0]


def test_update_takes_trees_of_plain_tensors():
    tensors = {"b": gpuad.asarray([1.0]), "a": [gpuad.asarray([2.0])]}
    optimizer = optim.SGD(gpuad.tree.leaves(tensors), 1.0)
    optimizer.update(gpuad.grad(lambda t: gpuad.sum(t["a"][0] * t["b"]))(tensors))
    assert tensors["b"].tolist() == [-1.0] and tensors["a"][0].tolist() == [1.0]
    optimizer.update([None, gpuad.asarray([5.0])])
    assert tensors["b"].tolist() == [-6.0] and tensors["a"][0].tolist() == [1.0]


def test_update_refuses_what_does_not_fit():
    params = parameters()
    optimizer = optim.SGD(params)
    with pytest.raises(ShapeError, match="got 2 gradients for 4 parameters"):
        optimizer.update(values()[:2])
    with pytest.raises(ShapeError, match=r"float64\[4\] as the gradient of p0, which is float64\[3, 4\]"):
        optimizer.update([values()[1], *values()[1:]])
    with pytest.raises(GradientError, match="update outside"):
        gpuad.grad(lambda g: optimizer.update([g, *values()[1:]]))(values()[0])


def test_backward_step_and_zero_grad_train():
    w = nn.Parameter([5.0])
    optimizer = optim.AdamW([w], 0.5, weight_decay=0.0)
    for _ in range(60):
        optimizer.zero_grad()
        gpuad.sum((w - 1) ** 2).backward()
        optimizer.step()
    assert abs(w.item() - 1) < 0.5
    optimizer.zero_grad()
    assert w.grad is None
    optimizer.step()  # without gradients: nothing to do


# --- options and state ------------------------------------------------------------------------


def test_wrong_options_are_explained():
    params = parameters()
    with pytest.raises(DataError, match="given twice"):
        optim.SGD([params[0], params[0]])
    with pytest.raises(DataError, match=r"not \['beta'\]"):
        optim.SGD([{"params": params, "beta": 1}])
    with pytest.raises(DataError, match="can be read once"):
        optim.SGD(iter(()))
    with pytest.raises(DTypeError, match=r"pass model.parameters\(\)"):
        optim.SGD({"w": params[0]})
    with pytest.raises(DTypeError, match=r"got int64\[1\]"):
        optim.SGD([gpuad.asarray([1])])
    with pytest.raises(DataError, match="momentum"):
        optim.SGD(params, nesterov=True)
    with pytest.raises(DataError, match="eps > 0"):
        optim.AdamW(params, eps=0.0)
    with pytest.raises(DataError, match="max_grad_norm"):
        optim.AdamW(params, max_grad_norm=0.0)
    with pytest.raises(GradientError, match="between"):
        optim.clip_grad_norm(params, 1.0)


def test_a_model_that_changed_its_dtype_is_refused():
    model = nn.Linear(2, 2)
    optimizer = optim.SGD(model.parameters())
    gpuad.sum(model.to("float64")(gpuad.ones((1, 2), dtype="float64"))).backward()
    with pytest.raises(DTypeError, match="weight is float64 on cpu, and was float32"):
        optimizer.step()


@every_optimizer
def test_training_goes_on_from_a_saved_state(tmp_path, name):
    cls, options = OPTIMIZERS[name]
    options = options | {"no_decay": lambda p: p.ndim < 2, "max_grad_norm": 3.0}
    whole, first, second = (parameters("float32") for _ in range(3))
    a, b, c = cls(whole, **options), cls(first, **options), cls(second, **options)
    b.lr = a.lr = 0.01
    for step in range(3):
        a.update(values("float32", seed=step)), b.update(values("float32", seed=step))
    nn.save(tmp_path / "state", b.state_dict() | {f"value.{k}": p for k, p in enumerate(first)})
    found = nn.load(tmp_path / "state")
    with gpuad.no_grad():
        for k, p in enumerate(second):
            p.copy_(found.pop(f"value.{k}"))
    c.load_state_dict(found)
    assert c.lr == 0.01
    for step in range(3, 6):
        a.update(values("float32", seed=step)), c.update(values("float32", seed=step))
    assert_same(contents(a), contents(c))


def test_a_wrong_optimizer_state_is_reported_whole_and_changes_nothing():
    optimizer = optim.AdamW(parameters("float32")[:2])
    optimizer.update(values("float32", seed=1)[:2])
    before = contents(optimizer)
    state = optim.AdamW(parameters("float32")[:2]).state_dict()
    del state["m.p0"]
    state["v.p1"], state["z"] = gpuad.zeros((5,)), gpuad.zeros(())
    with pytest.raises(DataError) as caught:
        optimizer.load_state_dict(state)
    assert str(caught.value).split("\n  ")[1:] == [
        "m.p0 is missing",
        "z is not in this AdamW",
        "v.p1 should have the shape (4,), got float32[5]",
    ]
    assert_same(contents(optimizer), before)


def test_the_learning_rate_is_set_for_every_group():
    optimizer = optim.AdamW(parameters(), 0.1, no_decay=lambda p: p.ndim < 2)
    optimizer.lr = 0.02
    assert [g["lr"] for g in optimizer.param_groups] == [0.02, 0.02] and optimizer.lr == 0.02
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.01, 0.0]
    assert "2 parameters: {'lr': 0.02" in repr(optimizer)


# --- schedules --------------------------------------------------------------------------------


def test_cosine_rises_falls_and_stays():
    rates = [optim.cosine_with_warmup(s, warmup=4, total=24, peak=1.0, final=0.1) for s in range(30)]
    np.testing.assert_allclose(rates[:5], [0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[14] == pytest.approx(0.55)
    assert (np.diff(rates[4:25]) < 0).all()
    np.testing.assert_allclose(rates[24:], 0.1)


def test_linear_and_constant_schedules():
    rates = [optim.linear(s, warmup=2, total=6, peak=3.0, final=1.0) for s in range(8)]
    np.testing.assert_allclose(rates, [1.0, 2.0, 3.0, 2.5, 2.0, 1.5, 1.0, 1.0])
    assert [optim.constant(s, peak=2.0) for s in (0, 9)] == [2.0, 2.0]
    assert [optim.constant(s, warmup=3, peak=2.0) for s in (0, 2, 3, 4)] == [0.5, 1.5, 2.0, 2.0]
    with pytest.raises(DataError, match="warm up for 5"):
        optim.cosine_with_warmup(0, warmup=5, total=5, peak=1.0)
