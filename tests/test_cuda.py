"""The device `cuda`: on a GPU where there is one; everywhere on a stand-in, which runs CUDA threads on the CPU."""

import functools
import gc
import json
import subprocess
import sys
import weakref
from dataclasses import replace

import numpy as np
import pytest

import gpuad
import stand_in
from gpuad import data, nn, optim
from gpuad.buffer import LiveBytes, observers
from gpuad.cli import main
from gpuad.devices import cuda_checks, cuda_index
from gpuad.devices import device as find_device
from gpuad.devices.cuda_launch import for_dtype, settings
from gpuad.dtype import as_dtype, compute_dtype, is_float
from gpuad.errors import DataError, DeviceError, GradientError, IndexRangeError, MutationError, NonFiniteError
from gpuad.fuse.emit import emit
from gpuad.fuse.kernel import watchers
from gpuad.fuse.prelude import CUDA_FLAGS, CUDA_PRELUDE
from gpuad.models import GPT, GPTConfig
from gpuad.random import Generator
from gpuad.training.job import Job
from gpuad.training.settings import Settings
from samples import SAMPLES
from stand_in import nvrtc
from test_table import assert_close, cast, outputs

RTOL = {"float64": 1e-11, "float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}
SMALL = {"vocabulary": 29, "length": 8, "layers": 1, "heads": 2, "width": 16}


@pytest.fixture(scope="module")
def cupy(cuda):
    """CuPy, or what stands for it."""
    return find_device(cuda).xp


# --- the table --------------------------------------------------------------------------------


def evaluated(sample, kind, device):
    """The values of a sample as `kind` and, in float32, how it pulls cotangents back and pushes tangents forward."""
    args = [gpuad.asarray(a, device=device) if isinstance(a, np.ndarray) else a for a in cast(sample, kind)]
    found = [y.numpy() for y in outputs(sample.call(*args))]
    if not sample.grad or kind != np.float32:
        return found, []
    places = [k for k, a in enumerate(sample.args) if isinstance(a, np.ndarray) and a.dtype == np.float64]

    def function(xs):
        full = list(args)
        for place, x in zip(places, xs, strict=True):
            full[place] = x
        return [y for y in outputs(sample.call(*full)) if is_float(y.dtype)]

    def directions(like):
        rng = np.random.default_rng(7)
        return [gpuad.asarray(rng.uniform(0.5, 1.5, x.shape).astype(x.dtype), device=device) for x in like]

    xs = [args[place] for place in places]
    ys, pull = gpuad.vjp(function, xs)
    pulled = pull(directions(ys))[0]
    pushed = gpuad.jvp(function, (xs,), (directions(xs),))[1]
    return found, [[t.numpy() for t in pulled], [t.numpy() for t in pushed]]


def kinds_of(sample):
    return [as_dtype(name) for name in sample.dtypes if name != "float64"]


@pytest.fixture(scope="module")
def on_cpu(cupy):
    """What the CPU makes of every sample.  The kernels it runs there are compiled for the stand-in, all at once."""
    codes = {}
    watch = lambda kernel: codes.setdefault(settings(emit(kernel), kernel) + CUDA_PRELUDE + emit(kernel).code)
    watchers.append(watch)
    try:
        found = {(s.name, kind): evaluated(s, kind, "cpu") for s in SAMPLES for kind in kinds_of(s)}
    finally:
        watchers.remove(watch)
    if hasattr(cupy, "__file__") and "stand_in" in cupy.__file__:
        prepare(list(codes))
    return found


def prepare(codes):
    for k in range(0, len(codes), 300):
        stand_in.prepare(codes[k : k + 300], CUDA_FLAGS)


@pytest.mark.parametrize("architecture", ["sm_75", "sm_80", "sm_90", "sm_100", "sm_120"])
def test_texts_written_by_hand_compile(architecture):
    try:
        nvrtc.library()
    except ImportError as error:
        pytest.skip(str(error))
    texts = [cuda_checks._TRUE, cuda_checks._SAME, cuda_checks._CLEAR]
    texts += [for_dtype(cuda_checks._RANGE, as_dtype(name)) for name in ("int8", "int64", "uint64")]
    texts += [for_dtype(cuda_index._RECURRENCE, as_dtype(name)) for name in ("float32", "float64")]
    for text in texts:
        assert nvrtc.refusal(CUDA_PRELUDE + text, CUDA_FLAGS, architecture, ()) is None


@pytest.mark.parametrize("sample", SAMPLES, ids=repr)
def test_samples_are_those_of_the_cpu(sample, cuda, on_cpu):
    for kind in kinds_of(sample):
        values, derivatives = evaluated(sample, kind, cuda)
        expected, of_cpu = on_cpu[sample.name, kind]
        rtol = sample.rtol if sample.rtol is not None and kind == np.float32 else RTOL[kind.name]
        for found, reference in zip(values, expected, strict=True):
            assert found.dtype == reference.dtype
            assert_close(found, reference, rtol)
        for found, reference in zip(derivatives, of_cpu, strict=True):
            for a, b in zip(found, reference, strict=True):
                assert_close(a, b, 10 * rtol)


# --- products ---------------------------------------------------------------------------------


def integers(shape, dtype, seed=0):
    """Small integers, whose products are exact in every dtype."""
    return np.random.default_rng(seed).integers(-3, 4, shape).astype(dtype)


OPERANDS = {
    "plain": ((5, 3), (3, 4)),
    "batch with a matrix": ((2, 3, 5, 3), (3, 4)),
    "matrix with a batch": ((5, 3), (2, 3, 4)),
    "batches": ((2, 3, 5, 3), (2, 3, 3, 4)),
    "broadcast batches": ((2, 1, 5, 3), (3, 3, 4)),
    "one row": ((1, 3), (3, 4)),
    "one column": ((5, 3), (3, 1)),
    "one element": ((1, 3), (3, 1)),
    "nothing to sum": ((5, 0), (0, 4)),
    "no rows": ((0, 3), (3, 4)),
}


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "int64", "int8"])
@pytest.mark.parametrize("name", OPERANDS)
def test_product_of_any_layout_is_that_of_numpy(cuda, name, dtype):
    kind = as_dtype(dtype)
    a, b = (integers(shape, kind, k) for k, shape in enumerate(OPERANDS[name]))
    wide = compute_dtype(kind)
    expected = np.matmul(a.astype(wide), b.astype(wide)).astype(kind)
    for turned_a in (False, True):
        for turned_b in (False, True):
            x = stored(a, turned_a, cuda)
            y = stored(b, turned_b, cuda)
            found = gpuad.matmul(x, y)
            assert found.dtype == kind
            np.testing.assert_array_equal(found.numpy(), expected)


def stored(values, turned, device):
    """`values` as a tensor whose memory has the last two axes exchanged, if `turned`."""
    if not turned:
        return gpuad.asarray(values, device=device)
    return gpuad.asarray(np.ascontiguousarray(np.swapaxes(values, -1, -2)), device=device).mT


def test_product_of_strided_operands_is_that_of_numpy(cuda):
    values = np.random.default_rng(0).standard_normal((4, 6, 2, 8)).astype(np.float32)
    x = gpuad.asarray(values, device=cuda)
    heads = gpuad.permute_dims(x, (0, 2, 1, 3))  # as attention takes them: no one step from matrix to matrix
    expected = np.matmul(values.transpose(0, 2, 1, 3), values.transpose(0, 2, 3, 1))
    np.testing.assert_allclose((heads @ heads.mT).numpy(), expected, rtol=1e-5, atol=1e-5)
    spread = gpuad.broadcast_to(x[0, 0, 0], (3, 8))
    np.testing.assert_allclose(
        (spread @ x[0, :, 0, :].T).numpy(), np.tile(values[0, 0, 0], (3, 1)) @ values[0, :, 0].T, rtol=1e-5
    )
    np.testing.assert_allclose(
        (x[0, :, 0, ::2] @ x[0, :, 1, 1::2].T).numpy(),
        values[0, :, 0, ::2] @ values[0, :, 1, 1::2].T,
        rtol=1e-5,
        atol=1e-5,
    )


# --- errors that are flagged ------------------------------------------------------------------


def test_index_out_of_range_is_raised_when_a_value_is_read(cuda):
    weight = gpuad.ones((4, 3), device=cuda)
    good, bad = (gpuad.asarray(np.array([1, k]), device=cuda) for k in (3, 9))
    kept = nn.functional.embedding(weight, good)
    flagged = nn.functional.embedding(weight, bad)
    with pytest.raises(IndexRangeError, match=r"test_cuda.py:\d+ got the index 9 for a weight with 4 rows"):
        flagged.numpy()
    assert gpuad.sum(kept).item() == 6, "the device goes on"


@pytest.mark.parametrize(
    "act, message",
    {
        "getitem": (
            lambda x, i: x[i],
            r"index 7 is out of range for axis 0 of float32\[4, 5\], of length 4, at test_cu",
        ),
        "take": (lambda x, i: gpuad.take(x, i, axis=1), r"index 7 is out of range for axis 1"),
        "assignment": (lambda x, i: x.__setitem__((slice(None), i), 0.0), r"index 7 is out of range for axis 1"),
        "targets": (lambda x, i: nn.functional.cross_entropy(x[:2], i), r"got the target 7 for 5 classes"),
    }.values(),
)
def test_every_index_is_checked_and_its_line_named(cuda, act, message):
    x, index = gpuad.ones((4, 5), device=cuda), gpuad.asarray(np.array([0, 7]), device=cuda)
    act(x, index)
    with pytest.raises(IndexRangeError, match=message):
        gpuad.ones(2, device=cuda).numpy()


@pytest.mark.parametrize("dtype", ["int8", "int64", "uint8", "uint64"])
def test_indexes_are_checked_in_every_dtype(cuda, dtype):
    x = gpuad.arange(300, device=cuda)
    low = 0 if dtype.startswith("u") else -1
    good = gpuad.asarray(np.array([5, low], dtype), device=cuda)
    assert x[good].tolist() == [5, low % 300 if low else 0]
    if dtype in ("int64", "uint64"):
        bad = gpuad.asarray(np.array([5, 2**63 - 1 if dtype == "int64" else 2**64 - 1], dtype), device=cuda)
        found = x[bad]
        with pytest.raises(IndexRangeError, match="out of range"):
            found.numpy()


def test_first_of_several_errors_is_raised(cuda):
    x = gpuad.ones(3, device=cuda)
    wrong = [x[gpuad.asarray(np.array([k]), device=cuda)] for k in (5, 6)]
    with pytest.raises(IndexRangeError, match="index 5 is out of range"):
        wrong[1].numpy()
    find_device(cuda).synchronize()


def test_ignored_targets_are_no_error(cuda):
    logits = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    targets = np.array([1, -100, 4])
    losses = [
        nn.functional.cross_entropy(gpuad.asarray(logits, device=d), gpuad.asarray(targets, device=d)).item()
        for d in ("cpu", cuda)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def step_of(optimizer, parameter, gradient):
    parameter.grad = gpuad.asarray(np.array(gradient, np.float32), device=parameter.device)
    optimizer.step()


def test_failed_step_changes_nothing_and_is_raised_when_a_value_is_read(cuda):
    found = {}
    for device in ("cpu", cuda):
        p = gpuad.asarray(np.array([1.0, 2.0], np.float32), device=device).requires_grad_()
        p.name = "weight"
        optimizer = optim.AdamW([p], 0.1)
        step_of(optimizer, p, [0.5, -1.0])
        before = p.numpy().copy()
        message = r"step\(\).* changed nothing: gradients are inf or nan in\n  weight: 1 of the 2 elements"
        with pytest.raises(NonFiniteError, match=message):
            step_of(optimizer, p, [np.nan, 1.0])
            p.numpy()
        np.testing.assert_array_equal(p.numpy(), before)
        assert optimizer.state_dict()["step.weight"].item() == 1
        step_of(optimizer, p, [0.25, 1.0])
        found[device] = p.numpy()
    np.testing.assert_allclose(found[cuda], found["cpu"], rtol=1e-6)


def test_steps_after_a_flagged_error_change_nothing_either(cuda):
    p = gpuad.ones(2, device=cuda).requires_grad_()
    optimizer = optim.SGD([p], 0.1, momentum=0.9)
    step_of(optimizer, p, [1.0, 1.0])
    before = p.numpy()
    gpuad.ones(3, device=cuda)[gpuad.asarray(np.array([3]), device=cuda)]
    for gradient in ([1.0, np.inf], [2.0, 2.0]):
        step_of(optimizer, p, gradient)
    with pytest.raises(IndexRangeError, match="index 3"):
        p.numpy()
    np.testing.assert_array_equal(p.numpy(), before)
    assert optimizer.state_dict()["step.0"].item() == 1
    step_of(optimizer, p, [1.0, 1.0])
    np.testing.assert_allclose(p.numpy(), before - 0.19, rtol=1e-6)


def test_checks_that_nobody_reads_do_not_pile_up(cuda):
    device = find_device(cuda)
    x, index = gpuad.ones(3, device=cuda), gpuad.asarray(np.array([1]), device=cuda)
    for _ in range(cuda_checks.MOST + 5):
        x[index]
    assert len(device.checks.made) <= cuda_checks.MOST
    device.synchronize()
    assert device.error_word == 0


# --- optimizers -------------------------------------------------------------------------------

KINDS = {"AdamW": optim.AdamW, "Adam": optim.Adam, "SGD": functools.partial(optim.SGD, momentum=0.9)}
PARAMETERS = [(70, 70), (5,), (), (0, 3), (4, 33)]


def draws(seed, dtype="float32"):
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.standard_normal(shape), as_dtype(dtype)) for shape in PARAMETERS]


def optimized(device, kind, dtype="float32", **options):
    """Parameters on `device`, and an optimizer with decay for matrices alone."""
    found = [gpuad.asarray(x, device=device).requires_grad_() for x in draws(0, dtype)]
    for k, p in enumerate(found):
        p.name = f"p{k}"
    return found, KINDS[kind](found, 0.01, weight_decay=0.1, no_decay=lambda p: p.ndim < 2, **options)


def updates(device, optimizer, steps, dtype="float32", scale=1.0):
    for seed in range(1, steps + 1):
        optimizer.update([gpuad.asarray(g, device=device) * scale for g in draws(seed, dtype)])


@pytest.fixture
def launches(cuda, monkeypatch):
    """The names of the kernels launched so far."""
    names, launcher = [], find_device(cuda).launcher
    launch = launcher.launch
    monkeypatch.setattr(launcher, "launch", lambda code, name, *rest: (names.append(name), launch(code, name, *rest)))
    return names


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
def test_optimizers_step_as_on_the_cpu(cuda, kind, max_grad_norm):
    found = {}
    for device in ("cpu", cuda):
        parameters, optimizer = optimized(device, kind, max_grad_norm=max_grad_norm)
        updates(device, optimizer, 4)
        found[device] = [x.numpy() for x in (*parameters, *optimizer.state_dict().values())]
    for a, b in zip(found[cuda], found["cpu"], strict=True):
        np.testing.assert_allclose(a, b, rtol=3e-6, atol=3e-7)


def test_adamw_has_the_bits_of_its_rule_where_nothing_is_clipped(cuda, monkeypatch):
    found = []
    for _ in range(2):
        parameters, optimizer = optimized(cuda, "AdamW", max_grad_norm=1e6)
        updates(cuda, optimizer, 3)
        found.append([p.numpy() for p in parameters])
        monkeypatch.setattr(find_device(cuda), "adam", lambda dtypes: None)
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types_have_master_weights(cuda, dtype):
    found = {}
    for device in ("cpu", cuda):
        parameters, optimizer = optimized(device, "AdamW", dtype)
        updates(device, optimizer, 4, dtype)
        state = optimizer.state_dict()
        found[device] = [state[f"master.p{k}"].numpy() for k in range(len(parameters))]
        for p, master in zip(parameters, found[device], strict=True):
            assert master.dtype == np.float32
            np.testing.assert_array_equal(p.numpy(), master.astype(p.dtype))
    for a, b in zip(found[cuda], found["cpu"], strict=True):
        np.testing.assert_allclose(a, b, rtol=3e-6, atol=3e-7)


def test_a_step_of_adam_is_one_launch_over_all_parameters(cuda, launches):
    parameters, optimizer = optimized(cuda, "AdamW", max_grad_norm=1.0)
    gradients = [gpuad.asarray(g, device=cuda) for g in draws(1)]
    del launches[:]
    optimizer.update(gradients)
    assert launches == ["gradient_squares", "gradient_norm", "adamw"]
    assert optimizer.state_dict()["m.p1"].numpy()[0] != 0
    both = [*parameters, gpuad.ones(3, dtype="bfloat16", device=cuda).requires_grad_()]
    optimizer = optim.Adam(both)
    gradients.append(gpuad.asarray(np.ones(3, as_dtype("bfloat16")), device=cuda))
    del launches[:]
    optimizer.update(gradients)
    assert launches == ["gradient_squares"] * 2 + ["gradient_norm"] + ["adamw"] * 2


def test_what_has_no_kernel_steps_by_its_rule(cuda, launches):
    class Slower(optim.AdamW):
        def rule(self, flat, weigh, g, p, *state):
            return super().rule(flat, weigh, g * 0.5, p, *state)

    p, q = (gpuad.ones(3, device=cuda).requires_grad_() for _ in range(2))
    double = gpuad.ones(3, dtype="float64", device=cuda).requires_grad_()
    Slower([p], 0.1, eps=0.1).update([gpuad.ones(3, device=cuda)])
    optim.AdamW([q], 0.1, eps=0.1).update([gpuad.ones(3, device=cuda) * 0.5])
    assert launches.count("adamw") == 1
    np.testing.assert_allclose(p.numpy(), q.numpy(), rtol=1e-6)
    optim.AdamW([double]).update([gpuad.ones(3, dtype="float64", device=cuda)])
    assert launches.count("adamw") == 1 and double.numpy()[0] < 1


def test_adam_writes_only_where_nobody_looks(cuda):
    w, other = (gpuad.asarray(np.array([2.0, 3.0], np.float32), device=cuda).requires_grad_() for _ in range(2))
    optimizer = optim.AdamW([w, other], 0.5)
    gradient = [gpuad.ones(2, device=cuda), None]
    optimizer.update(gradient)
    place, before = w.array.data.data.ptr, w.tolist()
    optimizer.update(gradient)
    assert w.array.data.data.ptr == place and w.tolist() != before, "in place"
    assert other.tolist() == [2.0, 3.0] and optimizer.state_dict()["step.1"].item() == 0
    before = w.numpy()
    loss, state = gpuad.sum(w * w), optimizer.state_dict()
    first = state["m.0"].numpy()
    optimizer.update(gradient)
    assert w.array.data.data.ptr != place and (w.numpy() != before).all()
    loss.backward()
    np.testing.assert_array_equal(w.grad.numpy(), 2 * before)
    np.testing.assert_array_equal(state["m.0"].numpy(), first)


def test_adam_takes_gradients_that_are_pending_turned_or_borrowed(cuda, cupy):
    g = draws(1)[0]
    with cupy.cuda.Device(0):
        theirs = cupy.asarray(g)
    given = gpuad.asarray(g, device=cuda)
    turned = gpuad.asarray(np.ascontiguousarray(g.T), device=cuda).mT
    found = []
    for gradient in (given, turned, gpuad.asarray(theirs, copy=False), gpuad.asarray(g * 2, device=cuda) * 0.5):
        p = gpuad.asarray(draws(0)[0], device=cuda).requires_grad_()
        optim.AdamW([p]).update([gradient])
        found.append(p.numpy())
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])
    p = gpuad.ones(3, device=cuda).requires_grad_()
    with pytest.raises(DeviceError, match=r"step\(\) got float32\[3\] on cuda:0 and float32\[3\] on cpu"):
        optim.AdamW([p]).update([gpuad.ones(3)])


def test_failed_step_of_many_names_its_line_and_takes_back_all_since(cuda):
    parameters, optimizer = optimized(cuda, "AdamW", max_grad_norm=1.0)
    updates(cuda, optimizer, 2)
    before, state = [p.numpy() for p in parameters], {k: v.numpy() for k, v in optimizer.state_dict().items()}
    bad = draws(9)
    bad[0][3, 4] = np.inf
    bad = [gpuad.asarray(g, device=cuda) for g in bad]
    optimizer.update(bad)
    updates(cuda, optimizer, 2)
    with pytest.raises(NonFiniteError, match=r"update\(\) at test_cuda.py:\d+ changed nothing.*\n  p0: 1 of the 4900"):
        parameters[0].numpy()
    assert find_device(cuda).error_word == 0
    for p, values in zip(parameters, before, strict=True):
        np.testing.assert_array_equal(p.numpy(), values)
    for name, values in optimizer.state_dict().items():
        np.testing.assert_array_equal(values.numpy(), state[name], err_msg=name)
    updates(cuda, optimizer, 1)
    assert optimizer.state_dict()["step.p0"].item() == 3


def test_adam_steps_by_the_kernels_in_a_dry_run():
    meta = find_device("meta", like="cuda:sm_90")
    w, g = (gpuad.asarray(np.zeros((300, 40), np.float32), device=meta) for _ in range(2))
    counter = LiveBytes()
    optimizer = optim.AdamW([w], max_grad_norm=1.0)
    observers.append(counter)
    try:
        optimizer.update([g])
    finally:
        observers.remove(counter)
    assert counter.peak == 8 * 8 + 8 * 4 + 4 * 3 + 4 * 3, "the table, an option, three sums and the outcome"


# --- training ---------------------------------------------------------------------------------


def trained(device, steps, **options):
    """The losses of a small GPT on `device`."""
    generator = Generator(3)
    model = GPT(GPTConfig(**SMALL, **options), generator=generator).to(device)
    optimizer = optim.AdamW(model.parameters(), 1e-2, no_decay=lambda p: p.ndim < 2, max_grad_norm=1.0)
    rng = np.random.default_rng(0)
    losses = []
    for _ in range(steps):
        loss = model.loss(gpuad.asarray(rng.integers(0, 29, (3, 9)), device=device))
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    return losses, model, optimizer


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_gpt_trains_to_the_losses_of_the_cpu(cuda, positions):
    expected, of_cpu, _ = trained("cpu", 4, positions=positions, dropout=0.1)
    found, model, _ = trained(cuda, 4, positions=positions, dropout=0.1)
    np.testing.assert_allclose(found, expected, rtol=2e-5)
    for (name, p), q in zip(model.named_parameters(), of_cpu.parameters(), strict=True):
        assert p.device is find_device(cuda)
        np.testing.assert_allclose(p.numpy(), q.numpy(), rtol=2e-3, atol=2e-4, err_msg=name)


def test_state_goes_to_a_file_and_to_another_device(cuda, tmp_path):
    _, model, optimizer = trained(cuda, 2)
    nn.save(tmp_path / "model.safetensors", model.state_dict())
    nn.save(tmp_path / "optimizer.safetensors", optimizer.state_dict())
    twin = GPT(GPTConfig(**SMALL))
    twin.load_state_dict(nn.load(tmp_path / "model.safetensors"))
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        np.testing.assert_array_equal(p.numpy(), q.numpy())
    again = optim.AdamW(model.parameters(), 1e-2, no_decay=lambda p: p.ndim < 2, max_grad_norm=1.0)
    again.load_state_dict(nn.load(tmp_path / "optimizer.safetensors", device=cuda))
    for name, value in optimizer.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[name].numpy(), value.numpy())


def test_checkpoint_gives_the_same_gradients(cuda):
    x = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    generator = Generator(1)

    def function(x):
        return gpuad.sum(nn.functional.dropout(gpuad.tanh(x * 2) @ x.mT, 0.3, generator=generator))

    found = []
    for f in (function, gpuad.checkpoint(function)):
        generator.set_state(Generator(1).state)
        found.append(gpuad.grad(f)(gpuad.asarray(x, device=cuda)).numpy())
    np.testing.assert_array_equal(*found)


def test_random_numbers_are_those_of_the_cpu(cuda):
    for draw in (
        functools.partial(gpuad.random.bits, (5, 7), dtype="uint16"),
        functools.partial(gpuad.random.uniform, 33),
        functools.partial(gpuad.random.integers, 33, -5, 100),
        functools.partial(gpuad.random.permutation, 20),
    ):
        found, expected = (draw(device=d, generator=Generator(5)).numpy() for d in (cuda, "cpu"))
        np.testing.assert_array_equal(found, expected)
    found, expected = (gpuad.random.normal(33, device=d, generator=Generator(5)).numpy() for d in (cuda, "cpu"))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_memory_is_freed_and_counted(cuda):
    counter = LiveBytes()
    observers.append(counter)
    gc.disable()
    try:
        x = gpuad.ones((256, 4), device=cuda) * 2
        assert x.numpy().sum() == 2048
        held = counter.live
        y = gpuad.sin(x) @ x.mT
        gpuad.sum(y).item()
        assert counter.live > held
        buffer = weakref.ref(y.array.buffer)
        del y
        assert buffer() is None
        assert counter.live == held
    finally:
        gc.enable()
        observers.remove(counter)


def test_result_takes_over_memory_that_nobody_looks_at(cuda, cupy):
    counter = LiveBytes()
    x = gpuad.ones(1024, device=cuda) * 2
    x.numpy()
    observers.append(counter)
    try:
        x += 1
        x.numpy()
        assert counter.peak == 0, "the memory of x is written over"
        lent = x.cupy()
        x += 1
        assert x[0].item() == 4
        assert cupy.asnumpy(lent)[0] == 3
        kept = x
        x = x * 2
        x.numpy()
        assert kept[0].item() == 4
    finally:
        observers.remove(counter)


def test_expressions_are_explained_and_evaluated_one_by_one(cuda):
    x = gpuad.ones((3, 4), device=cuda)
    y = gpuad.sin(x) * 2
    assert "which become 1 step" in gpuad.explain(y)
    with gpuad.eager():
        z = gpuad.sin(x) * 2
    np.testing.assert_array_equal(y.numpy(), z.numpy())


def test_train_runs_on_the_device(cuda, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 100)
    found = []
    for device in ("cpu", cuda):
        options = {"layers": 1, "heads": 2, "width": 16, "length": 8, "batch": 2, "steps": 3}
        flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        out = tmp_path / device
        assert main(["train", "--device", device, "--data", str(text), "--sample", "0", "--out", str(out), *flags]) == 0
        lines = (out / "metrics.jsonl").read_text().splitlines()
        found.append([json.loads(line)["loss"] for line in lines])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)
    assert " on cuda:0:sm_" in capsys.readouterr().out


@pytest.mark.slow
def test_default_model_trains_to_the_losses_of_the_cpu(cuda):
    settings = Settings(steps=20)
    found = {}
    for device in ("cpu", cuda):
        job = Job(replace(settings, device=device))
        batches = data.batches(job.text.train, batch=settings.batch, length=settings.length, seed=settings.seed)
        found[device] = [job.step(tokens) for _, tokens in zip(range(settings.steps), batches, strict=False)]
    np.testing.assert_allclose(found[cuda], found["cpu"], rtol=1e-4)


# --- in and out -------------------------------------------------------------------------------


def test_values_move_between_devices_with_their_gradients(cuda):
    x = gpuad.asarray(np.array([1.0, 2.0, 3.0], np.float32)).requires_grad_()
    y = (x.to(cuda) ** 2).to("cpu")
    gpuad.sum(y).backward()
    np.testing.assert_array_equal(x.grad.numpy(), [2.0, 4.0, 6.0])
    assert x.grad.device.name == "cpu"
    for dtype in ("bool", "int8", "uint64", "float16", "bfloat16", "float64"):
        values = integers((3, 4), as_dtype(dtype))
        np.testing.assert_array_equal(gpuad.asarray(values, device=cuda).to("cpu").numpy(), values)
        np.testing.assert_array_equal(gpuad.asarray(values.T, device=cuda).numpy(), values.T)
    with pytest.raises(DeviceError, match=r"multiply\(\) got float32\[3\] on cpu and float32\[3\] on cuda:0"):
        x * x.to(cuda)


def test_devices_have_one_name_and_are_two(cuda, cupy):
    assert find_device("cuda") is find_device("cuda:0") is find_device(cuda)
    count = cupy.cuda.runtime.getDeviceCount()
    with pytest.raises(DeviceError, match=f"cuda:{count} is not available: this machine has {count} GPU"):
        find_device(f"cuda:{count}")
    if count < 2:
        pytest.skip("needs two GPUs")
    x = gpuad.asarray(np.arange(6.0).reshape(2, 3), device="cuda:1").requires_grad_()
    y = (gpuad.sin(x) @ x.mT).to("cuda:0") * 2
    assert y.device.name == "cuda:0"
    gpuad.sum(y).backward()
    z = gpuad.asarray(np.arange(6.0).reshape(2, 3)).requires_grad_()
    gpuad.sum((gpuad.sin(z) @ z.mT) * 2).backward()
    assert x.grad.device.name == "cuda:1"
    np.testing.assert_allclose(x.grad.numpy(), z.grad.numpy(), rtol=1e-12)
    bad = gpuad.asarray(np.array([8]), device="cuda:1")
    gpuad.take(x.detach(), bad, axis=0)
    assert y.numpy().shape == (2, 2), "the other device has nothing to say"
    with pytest.raises(IndexRangeError):
        x.numpy()


def test_numpy_array_is_only_made_when_asked_for(cuda):
    x = gpuad.arange(3, device=cuda)
    with pytest.raises(
        DeviceError, match=r"cuda:0; a NumPy array of it would be a copy, at test_cuda.py:\d+\n.*numpy()"
    ):
        np.asarray(x)
    values = x.numpy()
    np.testing.assert_array_equal(values, [0, 1, 2])
    assert not values.flags.writeable
    assert np.sin(x).device is x.device
    assert repr(x) == "Tensor([0, 1, 2], dtype=int64, device=cuda:0)"
    assert [int(v) for v in x] == x.tolist() == [0, 1, 2]


def test_cupy_array_comes_in_as_a_copy_or_is_borrowed(cuda, cupy):
    with cupy.cuda.Device(0):
        theirs = cupy.arange(6, dtype=np.float32).reshape(2, 3)
    x = gpuad.asarray(theirs)
    y = gpuad.asarray(theirs, copy=False).requires_grad_()
    assert x.device is y.device is find_device(cuda)
    z = gpuad.sum(y * y)
    theirs[:1, :1] = 5
    assert x[0, 0].item() == 0
    assert y[0, 0].item() == 5
    with pytest.raises(MutationError, match=r"imported at test_cuda.py"):
        z.backward()
    assert gpuad.from_dlpack(theirs)[0, 0].item() == 5
    assert gpuad.asarray(theirs, device="cpu").numpy()[0, 0] == 5
    with pytest.raises(DataError, match="cannot bring ndarray to cuda:0"):
        gpuad.asarray(np.ones(3), device=cuda, copy=False)


def test_memory_that_others_write_is_read_in_the_order_of_their_stream(cuda, cupy, monkeypatch):
    if "stand_in" not in cupy.__file__:
        pytest.skip("watches the streams of the stand-in")
    theirs = cupy.cuda.Stream()
    with theirs:
        values = cupy.arange(4, dtype=np.float32)
        x = gpuad.asarray(values, copy=False)
        waits, wait = [], cupy.cuda.Stream.wait_event
        monkeypatch.setattr(cupy.cuda.Stream, "wait_event", lambda s, e: (waits.append(s), wait(s, e))[1])
        assert (x * 2).numpy()[3] == 6
    ours = x.device.stream
    assert waits[0] == ours, "what they have written is there"
    assert waits[1] == theirs, "what they write next comes after"


def test_memory_leaves_as_a_cupy_array(cuda, cupy):
    x = gpuad.arange(4, dtype="float32", device=cuda) * 2
    theirs = x.cupy()
    assert isinstance(theirs, cupy.ndarray)
    theirs[1:2] = 7
    assert x.tolist() == [0, 7, 4, 6]
    weight = (gpuad.ones(3, device=cuda) * 2).requires_grad_()
    y = weight * weight
    weight.cupy()[:1] = 9
    gpuad.sum(y).backward()
    assert weight.grad.tolist() == [4, 4, 4]
    with pytest.raises(DeviceError, match=r'cupy\(\) needs a tensor on a GPU.*\n.*to\("cuda"\)'):
        gpuad.ones(3).cupy()
    with pytest.raises(GradientError, match="would lose its derivative"):
        gpuad.grad(lambda x: gpuad.sum(gpuad.asarray(x.cupy())))(gpuad.ones(3, device=cuda))


def test_memory_leaves_through_the_array_interface_and_dlpack(cuda, cupy):
    x = gpuad.arange(4, dtype="float32", device=cuda) * 2
    theirs = cupy.asarray(x)
    theirs[:1] = 1
    assert x.tolist() == [1, 2, 4, 6]
    x += 1
    x.numpy()
    gc.collect()
    assert cupy.asnumpy(theirs).tolist() == [1, 2, 4, 6], "the memory is held, though x has another value"
    y = gpuad.arange(4, dtype="float32", device=cuda) + 0
    part = y[1:]
    cupy.asarray(y)[1:2] = 5
    assert (y.tolist(), part.tolist()) == ([0, 5, 2, 3], [1, 2, 3]), "what another tensor holds is copied"
    assert not hasattr(gpuad.ones(3), "__cuda_array_interface__")
    with pytest.raises(GradientError, match=r"detach\(\)"):
        cupy.asarray(gpuad.ones(3, device=cuda).requires_grad_())
    z = gpuad.arange(4, dtype="float32", device=cuda) * 3
    assert z.__dlpack_device__() == (2, 0)
    assert cupy.from_dlpack(z).data.ptr == cupy.asarray(z).data.ptr
    np.testing.assert_array_equal(np.from_dlpack(z, device="cpu", copy=True), [0, 3, 6, 9])


def test_in_place_operators_and_masks(cuda):
    x = gpuad.asarray(np.arange(12.0, dtype=np.float32).reshape(3, 4), device=cuda)
    x += 1
    x[1] = 0.5
    x[x > 8] = -1
    x[:, [0, 2]] = gpuad.asarray(np.array([[7.0], [8.0], [9.0]], np.float32), device=cuda)
    expected = np.arange(12.0, dtype=np.float32).reshape(3, 4) + 1
    expected[1] = 0.5
    expected[expected > 8] = -1
    expected[:, [0, 2]] = [[7.0], [8.0], [9.0]]
    np.testing.assert_array_equal(x.numpy(), expected)
    np.testing.assert_array_equal(x[x > 5].numpy(), expected[expected > 5])
    np.testing.assert_array_equal(x[np.array([True, False, True])].numpy(), expected[[True, False, True]])
    half = gpuad.zeros((2, 3), dtype="bfloat16", device=cuda)
    half[0, 1] = 1.5
    np.testing.assert_array_equal(
        gpuad.pad(half, 1, constant_values=2.5).to("float32").numpy()[:2, :3], [[2.5, 2.5, 2.5], [2.5, 0, 1.5]]
    )


def test_repeated_index_adds_in_order_and_the_last_assignment_stays(cuda):
    rng = np.random.default_rng(0)
    index, values = rng.integers(0, 5, 100), rng.standard_normal((100, 3)).astype(np.float32)
    gradients = []
    for device in ("cpu", cuda):
        weight = gpuad.zeros((5, 3), device=device).requires_grad_()
        y = nn.functional.embedding(weight, gpuad.asarray(index, device=device))
        y.backward(gpuad.asarray(values, device=device))
        gradients.append(weight.grad.numpy())
    np.testing.assert_array_equal(*gradients)
    x = gpuad.zeros(5, device=cuda)
    x[gpuad.asarray(index, device=cuda)] = gpuad.asarray(values[:, 0], device=cuda)
    expected = np.zeros(5, np.float32)
    expected[index] = values[:, 0]
    np.testing.assert_array_equal(x.numpy(), expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("axis", [0, 1])
def test_gradient_of_indexes_that_repeat_thousands_of_times(cuda, axis, dtype):
    rng = np.random.default_rng(0)
    index = np.concatenate([np.full(3000, 7), np.full(65, 9), rng.integers(0, 1000, 600), np.full(64, 999)])
    index = rng.permutation(index).reshape(3, -1)
    values = rng.standard_normal((*index.shape, 12)).astype(as_dtype(dtype))
    if axis:
        values = np.moveaxis(values, -1, 0)
    expected = np.zeros((1000, 12))
    np.add.at(expected, index, np.moveaxis(values, 0, -1).astype(np.float64) if axis else values.astype(np.float64))
    weight = gpuad.zeros((12, 1000) if axis else (1000, 12), dtype=dtype, device=cuda).requires_grad_()
    take = functools.partial(gpuad.take, axis=1) if axis else nn.functional.embedding
    gradients = []
    for _ in range(2):
        weight.grad = None
        take(weight, gpuad.asarray(index, device=cuda)).backward(gpuad.asarray(values, device=cuda))
        gradients.append(weight.grad.numpy())
    np.testing.assert_array_equal(*gradients)
    assert gradients[0].dtype == as_dtype(dtype)
    found = gradients[0].astype(np.float64)
    np.testing.assert_allclose(found.T if axis else found, expected, rtol=RTOL[dtype], atol=1e-4)


def test_info_describes_the_device(cuda):
    from gpuad.info import info

    assert "engine sm_" in info() and "GiB" in info()


# --- what is missing --------------------------------------------------------------------------


def said(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    return done.stderr


def test_missing_cupy_is_said_with_the_remedy():
    message = said("import sys; sys.modules['cupy'] = None; import gpuad; gpuad.device('cuda:1')")
    assert "DeviceError: cuda:1 is not available: CuPy cannot be imported" in message
    assert 'pip install "gpuad[cuda12x]"' in message


def test_missing_driver_is_said(monkeypatch):
    pytest.importorskip("cupy")
    program = """
import cupy, gpuad
def fails(): raise RuntimeError("cudaErrorInsufficientDriver")
cupy.cuda.runtime.getDeviceCount = fails
gpuad.device("cuda")
"""
    assert "DeviceError: cuda is not available: the NVIDIA driver is missing or too old" in said(program)


def test_cupy_is_not_imported_unasked():
    program = """
import sys, gpuad
gpuad.ones(3).numpy()
print([name for name in sys.modules if name.startswith("cupy")], file=sys.stderr)
"""
    assert said(program).strip() == "[]"
