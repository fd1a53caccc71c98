"""Checkpoints as programs use them: functions of every kind, odd arguments, what they leave behind."""

import numpy as np
import pytest

import gpuad
from gpuad import checkpoint
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
