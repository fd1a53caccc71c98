"""Checkpoints as programs use them: functions of every kind, odd arguments, what they leave behind."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import gpuad
from gpuad import checkpoint, nn
from gpuad.cli import main
from gpuad.devices import device as find_device
from gpuad.errors import DataError
from gpuad.memory.sizes import parse_bytes
from gpuad.training.made import planner
from gpuad.training.settings import Settings


def leaf(*shape, seed=0):
    values = np.random.default_rng(seed).standard_normal(shape)
    return gpuad.asarray(values.astype(np.float32)).requires_grad_()


def mean_square(x):
    return gpuad.mean(x * x)


def through(fns, x):
    for f in fns:
        x = f(x)
    return x


def test_a_chain_of_checkpointed_functions_can_be_planned():
    w, x = leaf(16, 16), leaf(32, 16, seed=1)
    block = checkpoint(lambda x: gpuad.tanh(x @ w))
    fns = [block, block, lambda x: block(x) + x, mean_square]
    through(fns, x).backward()
    expected = w.grad.numpy(), x.grad.numpy()
    for run in (gpuad.memory.plan(fns, x, 1.0), lambda x: gpuad.checkpoint_sequential(fns, x)):
        w.grad = x.grad = None
        run(x).backward()
        assert all((a == b.grad.numpy()).all() for a, b in zip(expected, (w, x)))


def test_dry_runs_of_a_plan_are_no_part_of_a_profile():
    w, x = leaf(16, 16), leaf(32, 16, seed=1)
    fns = [lambda x: gpuad.tanh(x @ w), mean_square]
    plan = gpuad.memory.plan(fns, x, 1.0)

    def step():
        plan(x).backward()

    def planning():
        gpuad.memory.plan(fns, x, 1.0)
        step()

    step()
    alone, both = gpuad.memory.profile(step), gpuad.memory.profile(planning)
    assert alone.flops == both.flops > 0
    assert alone.peak_bytes == both.peak_bytes


def test_numbers_of_bytes_may_be_numpys_and_have_a_unit_if_they_have_a_fraction():
    assert parse_bytes(np.int64(512)) == 512 and type(parse_bytes(np.int64(512))) is int
    with pytest.raises(DataError, match=r"'0\.5' is no number of bytes"):
        parse_bytes("0.5")


@pytest.mark.parametrize("policy", [np.ones(3), "all", 1, []])
def test_what_is_no_policy_is_refused_at_once(policy):
    with pytest.raises(DataError, match="policy= is"):
        checkpoint(mean_square, policy=policy)


@pytest.mark.parametrize("command", ["profile", "estimate"])
def test_a_budget_that_is_no_size_is_an_error_before_anything_runs(command, capsys):
    assert main([command, "--budget", "24G"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "'24G' is no number of bytes" in err


def test_a_job_that_fits_nowhere_names_its_recording():
    found = planner(Settings(layers=2, width=16, heads=2, length=16, batch=2), find_device("cpu"))
    assert found.binding[0] == "recorded step"
    with pytest.raises(DataError, match="before the blocks run, and the rest is a recording of the step"):
        found.plan("1kB")


def test_a_plan_holds_for_no_longer_axis():
    x = gpuad.asarray(np.ones((8, 16, 16), np.float32)).requires_grad_()
    fns = [lambda x: gpuad.matmul(x, gpuad.matrix_transpose(x)), gpuad.sum]
    made = gpuad.memory.plan(fns, x, 1.0)
    made(x).backward()
    made(x[:3]).backward()
    for other in (gpuad.reshape(x, (1, 128, 16)), x.detach()[0]):
        with pytest.raises(DataError, match="make another plan"):
            made(other)


def test_a_function_that_asks_for_a_value_is_named():
    def branching(x):
        return x * 2.0 if bool(gpuad.any(x > 0.0)) else x

    x = gpuad.asarray(np.ones(4)).requires_grad_()
    with pytest.raises(DataError, match=r"(?s)branching\(\) cannot run on shapes alone.*\"every\""):
        gpuad.checkpoint_sequential([branching, gpuad.sum], x)
    gpuad.checkpoint_sequential([branching, gpuad.sum], x, "every").backward()
    assert (x.grad.numpy() == 2.0).all()


def test_two_threads_plan_at_once():
    w = gpuad.asarray(np.eye(64)).requires_grad_()
    x = gpuad.asarray(np.ones((32, 64))).requires_grad_()
    fns = [*[lambda x: gpuad.tanh(gpuad.matmul(x, w))] * 6, gpuad.sum]
    alone = gpuad.memory.plan(fns, x, 0.8).peak
    with ThreadPoolExecutor(2) as pool:
        assert [p.peak for p in pool.map(lambda _: gpuad.memory.plan(fns, x, 0.8), range(4))] == [alone] * 4


def test_a_wrong_budget_is_an_error_before_anything_runs():
    def never(x):
        raise AssertionError

    x = gpuad.asarray(np.ones(4))
    for wrong in ("24G", 2.0, 0.0):
        with pytest.raises(DataError):
            gpuad.memory.plan([never], x, wrong)
    with pytest.raises(DataError, match="offload="):
        gpuad.memory.plan([never], x, 1.0, offload="no")
    with pytest.raises(DataError, match="generators="):
        gpuad.checkpoint_sequential([never], x, "every", generators=[3])


def test_modules_in_a_sequential_are_a_chain():
    model = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 1))
    x = gpuad.asarray(np.ones((2, 4), np.float32)).requires_grad_()
    assert (gpuad.checkpoint_sequential(model, x).numpy() == model(x).numpy()).all()
