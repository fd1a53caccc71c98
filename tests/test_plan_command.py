"""`gpuad plan`, plans of whole training steps, and the memory of `gpuad train --checkpointing`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gpuad
from gpuad import data, optim
from gpuad.buffer import LiveBytes, observers
from gpuad.cli import main
from gpuad.devices import device as find_device
from gpuad.devices import use_device
from gpuad.errors import DataError
from gpuad.fuse import engines
from gpuad.memory import free, plan_command
from gpuad.memory.dryrun import meta_like
from gpuad.memory.pareto import pareto
from gpuad.memory.setups import Setup, planner, training
from gpuad.memory.step_plan import KINDS, Peak, Scheduled, StepPlan, StepPlanner
from gpuad.models import GPT, GPTConfig
from gpuad.tensor import Tensor
from gpuad.training.job import Job
from gpuad.training.settings import Settings

ROOT = Path(__file__).parent.parent
SMALL = ["--batch", "8"]


@pytest.fixture(scope="module")
def small():
    """What plans a step of the default GPT on the CPU."""
    return planner(Setup(batch=8), find_device("cpu"))


def budgets(found):
    """Some between the least that a step takes and what it takes without checkpoints."""
    least, most = found.least.peak, found.plan("none").peak
    return [least + (most - least) * k // 7 for k in range(8)]


# --- plans of a step --------------------------------------------------------------------------


def test_a_plan_fits_its_budget_and_more_bytes_take_no_more_time(small):
    plans = [small.plan(str(budget)) for budget in budgets(small)]
    assert all(plan.peak <= budget for plan, budget in zip(plans, budgets(small)))
    extra = [plan.extra for plan in plans]
    assert extra == sorted(extra, reverse=True) and extra[0] > 0 == extra[-1]
    for how in KINDS:
        usual = small.plan(how)
        assert small.within(usual.peak, "").extra <= usual.extra


def test_no_schedule_for_a_budget_says_what_the_least_is_and_what_binds(small):
    least = small.least.peak
    assert small.plan(str(least)).peak == least
    with pytest.raises(
        DataError, match=rf"(?s)fits this step in .*the least is {least} bytes .*, and at the peak the "
    ):
        small.plan(str(least - 1))


def test_the_curve_has_nothing_that_another_point_is_better_than(small):
    curve = list(small.curve(16))
    assert 3 <= len(curve) <= 17 and curve[0].extra == 0 and curve[-1].peak == small.least.peak
    assert len(pareto(curve)) == len(curve)
    better, worse = StepPlan("a", None, 5, 0.5, 0.2), StepPlan("b", None, 6, 0.5, 0.2)
    assert pareto([worse, better]) == [better]


EXACT = """
from gpuad.devices import device, use_device
from gpuad.memory.ledger import run_to_end
from gpuad.memory.setups import Setup, planner, training
from gpuad.memory.step_plan import KINDS, Peak, Scheduled

setup, cpu = Setup(batch=8), device("cpu")
found = planner(setup, cpu)
plans = [found.plan(how) for how in (*KINDS, str((found.least.peak + found.plan("none").peak) // 2))]
with use_device(cpu), Peak(cpu).counting() as seen:
    chain = Scheduled()
    step = training(setup, run_chain=chain)
    for plan in plans:  # an engine's own memory for its kernels lasts from here on
        chain.schedule = plan.schedule
        run_to_end(step)
    for plan in plans:
        chain.schedule = plan.schedule
        seen.peak = seen.live
        run_to_end(step)
        print(plan.name, plan.peak, seen.peak)
"""


@pytest.mark.parametrize("engine", ["numpy", "compiled"])
def test_what_is_predicted_is_what_a_step_takes_to_the_byte(engine):
    if engine == "compiled" and engines.engine() != "compiled":
        pytest.skip("needs a C++ compiler")
    options = os.environ | {"GPUAD_CPU_ENGINE": engine}
    process = subprocess.run([sys.executable, "-c", EXACT], cwd=ROOT, env=options, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    rows = [line.split() for line in process.stdout.splitlines()]
    assert len(rows) == 5 and all(predicted == taken for _, predicted, taken in rows), rows


def test_a_real_step_never_takes_more_than_its_budget(small):
    cpu, chain = find_device("cpu"), Scheduled()
    with use_device(cpu), Peak(cpu).counting() as seen:
        step = training(Setup(batch=8), run_chain=chain)
        step()
        for budget in budgets(small):
            chain.schedule = small.plan(str(budget)).schedule
            step()
            seen.peak = seen.live
            step()
            assert seen.peak <= budget


# --- what binds -------------------------------------------------------------------------------


def step_planner(config, batch, optimizer=optim.AdamW):
    def make(chain):
        model = GPT(config, run_chain=chain)
        states = optimizer(model.parameters(), 1e-3)
        tokens = Tensor(
            gpuad.device("meta", like="cuda:sm_90").allocate((batch, config.length + 1), np.dtype(np.int64))
        )

        def step():
            model.loss(tokens).backward()
            states.step()
            states.zero_grad()

        return step

    return StepPlanner(make, meta_like("cuda:sm_90"))


def test_logits_that_bind_are_named():
    found = step_planner(GPTConfig(vocabulary=8000, length=64, layers=1, heads=2, width=16), 16)
    assert found.binding[0] == "logits" and found.saving < 0.05
    assert "at the peak norm, head and loss take" in found.advice


def test_the_optimizer_step_that_binds_is_named():
    found = planner(Setup(batch=1), find_device("cpu"))
    assert found.binding[0] == "optimizer step"
    assert "checkpoints save nothing of" in found.advice and "the peak is in the optimizer step" in found.advice


def test_parameter_gradients_that_bind_are_named():
    found = planner(Setup("llama-7b", batch=1, dtype="bfloat16"), meta_like("cuda:sm_90"))
    assert found.binding[0] == "parameter gradients"
    assert "at the peak the gradients of parameters take 12.3 GiB" in found.advice


def test_a_block_that_binds_is_named_and_brings_no_advice():
    found = planner(Setup(), meta_like("cuda:sm_90"))
    assert found.binding[0] == "backward pass of Block" and found.advice is None and found.saving > 0.4


def test_a_step_without_a_chain_is_refused():
    layer = gpuad.nn.Linear(2, 2, device="meta")
    with pytest.raises(DataError, match="gives its blocks to run_chain"):
        StepPlanner(lambda chain: lambda: gpuad.sum(layer.weight).backward(), meta_like("cpu"))


# --- gpuad plan -------------------------------------------------------------------------------


def test_plan_prints_and_writes_what_is_predicted_and_measured(capsys, tmp_path, small):
    budget = str((small.least.peak + small.plan("none").peak) // 2)
    files = [tmp_path / "p.json", tmp_path / "p.png"]
    options = ["--device", "cpu", "--budget", budget, "1GiB", "--budget", "2GiB", "--json", str(files[0])]
    assert main(["plan", *SMALL, *options, "--plot", str(files[1])]) == 0
    shown = capsys.readouterr().out
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert "auto, √(cN)" in shown and "measured time" in shown and "which no schedule changes" in shown
    found = json.loads(files[0].read_text())
    assert found["version"] == 1 and found["functions"] == 5 and found["infeasible"] == []
    schedules = {plan["name"]: plan for plan in found["schedules"]}
    assert list(schedules) == [*KINDS, budget, "1GiB", "2GiB"]
    assert schedules[budget]["peak_bytes"] <= int(budget) and schedules["1GiB"]["extra_forward"] == 0
    for plan in schedules.values():
        assert found["base_bytes"] < found["least_bytes"] <= plan["peak_bytes"]
        assert 0 < plan["measured"]["peak_bytes"] <= plan["peak_bytes"] and plan["measured"]["seconds"] > 0
    assert schedules["none"]["measured"]["time_more"] == 0
    assert [p["extra_forward"] for p in found["curve"]] == sorted(p["extra_forward"] for p in found["curve"])
    assert files[1].read_bytes().startswith(b"\x89PNG")


def test_plan_without_a_device_only_predicts(capsys, tmp_path):
    svg = tmp_path / "p.svg"
    assert main(["plan", "--like", "cuda:sm_80", *SMALL, "--budget", "1GiB", "--plot", str(svg)]) == 0
    shown = capsys.readouterr().out
    assert "as cuda:sm_80 would" in shown and "measured" not in shown
    assert "<svg" in svg.read_text()


def test_a_budget_that_nothing_fits_in_is_an_exit_code_and_a_reason(capsys, tmp_path):
    out = tmp_path / "p.json"
    assert main(["plan", "--like", "cpu", *SMALL, "--budget", "1MiB", "1GiB", "--json", str(out)]) == 1
    shown = capsys.readouterr().out
    assert "no schedule of checkpoints fits this step in 1.00 MiB" in shown and "the least is" in shown
    found = json.loads(out.read_text())
    assert found["infeasible"] == ["1MiB"] and [p["name"] for p in found["schedules"]][-1] == "1GiB"


def test_advice_where_checkpoints_save_little(capsys):
    assert main(["plan", "--like", "cuda", "--batch", "1", "--length", "8"]) == 0
    assert "checkpoints save nothing of" in capsys.readouterr().out
    assert main(["estimate", "--batch", "1", "--length", "8"]) == 0
    assert "checkpoints save nothing of" in capsys.readouterr().out


def test_what_has_no_room_is_not_measured(capsys, monkeypatch):
    monkeypatch.setattr(plan_command, "free_bytes", lambda device: 100)
    assert main(["plan", "--device", "cpu", *SMALL]) == 0
    assert "Nothing was measured: 100 B are free on cpu" in capsys.readouterr().out
    monkeypatch.setattr(plan_command, "free_bytes", lambda device: None)
    assert main(["plan", "--device", "cpu", *SMALL]) == 0
    assert "does not say how much memory is free" in capsys.readouterr().out


def test_free_memory_is_the_machines_or_the_containers_share(monkeypatch, tmp_path):
    monkeypatch.setattr(free, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(free, "GROUP", tmp_path)
    cpu = find_device("cpu")
    assert free.free_bytes(cpu) is None
    (tmp_path / "meminfo").write_text("MemTotal:  10 kB\nMemAvailable:  4 kB\n")
    assert free.free_bytes(cpu) == 4096
    (tmp_path / "memory.max").write_text("3000\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert free.free_bytes(cpu) == 2000
    (tmp_path / "memory.max").write_text("max\n")
    assert free.free_bytes(cpu) == 4096


def test_free_memory_of_a_gpu_counts_what_its_pool_keeps(cuda):
    found = find_device(cuda)
    before = free.free_bytes(found)
    held = found.allocate((1 << 22,), np.dtype(np.uint8))
    assert before - free.free_bytes(found) == pytest.approx(1 << 22, abs=1 << 12)
    del held
    assert free.free_bytes(found) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "24G"], "'24G' is no number of bytes"),
        (["--like", "cpu", "--device", "cpu"], "give one of them"),
        (["--like", "tpu"], "describes no device"),
        (["--model", "gpt3"], "--model is one of"),
        (["--plot", "p.gif"], "--plot writes .png and .svg"),
        (["--json", "nowhere/p.json"], "there is no folder nowhere"),
        (["--device", "meta"], "knows shapes only"),
    ],
)
def test_bad_options_are_one_message(capsys, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", *options]) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_profile_and_estimate_compare_with_a_plan(capsys, tmp_path):
    found = planner(Setup(batch=8), meta_like("cuda:sm_80"))
    sqrt = found.plan("sqrt")
    del found  # whose model would be counted
    out, budget = tmp_path / "e.json", str(sqrt.peak)
    assert main(["estimate", "--like", "cuda:sm_80", *SMALL, "--budget", budget, "--json", str(out)]) == 0
    shown = capsys.readouterr().out
    assert all(len(line) <= 80 for line in shown.splitlines()) and "forward passes again" in shown
    runs = {run["name"]: run for run in json.loads(out.read_text())["runs"]}
    assert list(runs)[2:] == ["training, checkpointed", "training, auto", f"training, {budget}"]
    assert runs[f"training, {budget}"]["peak_bytes"] <= int(budget)
    assert 0 < runs[f"training, {budget}"]["extra_forward"] <= sqrt.extra


# --- gpuad train ------------------------------------------------------------------------------


def test_a_budget_that_nothing_fits_in_leaves_the_report(capsys):
    assert main(["estimate", "--like", "cpu", *SMALL, "--budget", "1MiB"]) == 1
    shown = capsys.readouterr().out
    assert "no schedule of checkpoints fits this step in 1.00 MiB" in shown and "training, auto" in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_captured_job_stays_in_its_budget(share, tmp_path):
    from gpuad.training.made import planner as of_job

    path = tmp_path / "text"
    path.write_text("to be or not to be, that is the question\n" * 200)
    sizes = {"data": (str(path),), "device": "cpu", "layers": 3, "heads": 2, "width": 32, "length": 32, "batch": 8}
    cpu = find_device("cpu")
    plans = of_job(Settings(**sizes), cpu)
    least, most = plans.least.peak, plans.plan("none").peak
    budget = int(least + share * (most - least))
    live = LiveBytes(cpu)
    observers.append(live)
    try:
        job = Job(Settings(**sizes, checkpointing=str(budget)))
        batches = data.batches(job.text.train, batch=8, length=32, seed=0, start_step=0)
        losses = [job.step(tokens) for _, tokens in zip(range(6), batches)]
        job.held_out_loss(16)
    finally:
        observers.remove(live)
    assert 0.8 * budget < live.peak <= budget < most
    plain = Job(Settings(**sizes))
    batches = data.batches(plain.text.train, batch=8, length=32, seed=0, start_step=0)
    assert losses == [plain.step(tokens) for _, tokens in zip(range(6), batches)]
    assert "forward passes computed again" in job.checkpoints
