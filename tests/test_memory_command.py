"""`gpuad profile`, `gpuad estimate`, `memory.estimate` and the short program: what they print, write and refuse."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

import gpuad
from gpuad import memory
from gpuad.cli import main
from gpuad.memory.setups import RUNS

ROOT = Path(__file__).parent.parent
SMALL = ["--batch", "2", "--length", "16"]
USERS = """
import numpy as np
import gpuad

def step():
    w = gpuad.ones((100, 100)).requires_grad_()
    gpuad.sum(gpuad.exp(w @ w)).backward()

def reads():
    x = gpuad.ones((4, 4))
    return gpuad.sum(x * 2).item()

def selects():
    x = gpuad.ones((4, 4))
    return x[x > 0]

def pending():
    return gpuad.exp(gpuad.ones((100, 100)))

def fails():
    raise KeyError("no such thing")

number = 3

def outside():
    global kept
    kept = np.ones((300, 300))
    step()
"""


@pytest.fixture
def user(tmp_path):
    path = tmp_path / "user.py"
    path.write_text(USERS)
    return path


def test_profile_compares_training_with_inference(capsys, tmp_path):
    out = tmp_path / "p.json"
    assert main(["profile", "--device", "cpu", *SMALL, "--json", str(out)]) == 0
    shown = capsys.readouterr().out
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert "gpt, batch 2, 16 tokens, float32, adamw, on cpu" in shown and "training, checkpointed: peak" in shown
    found = json.loads(out.read_text())
    assert found["version"] == 1 and found["device"].startswith("cpu:")
    assert [run["name"] for run in found["runs"]] == list(RUNS)
    inference, training, checkpointed, auto = found["runs"]
    assert [run["extra_forward"] for run in (inference, training)] == [None, 0.0]
    assert 0 <= auto["extra_forward"] <= checkpointed["extra_forward"] < 1
    assert inference["peak_bytes"] < training["peak_bytes"] and checkpointed["by_category"].keys() >= {"parameter"}
    for run in found["runs"]:
        assert sum(run["by_category"].values()) == run["peak_bytes"]
        assert {row["quality"] for row in run["reconciliation"]} <= {"exact", "sampled", "unavailable"}
    assert training["by_category"]["optimizer state"] == 2 * training["by_category"]["parameter"]
    assert training["flops"] > 2.9 * inference["flops"] and inference["params"] >= 800_000


@pytest.mark.parametrize("like", ["cpu:numpy", "cpu:compiled", "cuda:sm_90"])
def test_estimate_needs_no_device(capsys, tmp_path, like):
    out = tmp_path / "e.json"
    arguments = ["estimate", "--like", like, *SMALL, "--dtype", "mixed", "--optimizer", "adam", "--limit", "1GiB"]
    assert main([*arguments, "--json", str(out)]) == 0
    assert "fits in 1.00 GiB" in " ".join(capsys.readouterr().out.split())
    assert json.loads(out.read_text())["device"] == f"meta like {like}"


def test_profile_is_what_was_estimated(tmp_path):
    from gpuad.fuse import engines

    files = [tmp_path / name for name in ("p.json", "e.json")]
    assert main(["profile", "--device", "cpu", *SMALL, "--json", str(files[0])]) == 0
    assert main(["estimate", "--like", f"cpu:{engines.engine()}", *SMALL, "--json", str(files[1])]) == 0
    real, dry = (json.loads(path.read_text())["runs"] for path in files)
    # beside what other tests have left alive on the CPU
    for a, b in zip(real, dry, strict=True):
        for category in ("saved", "boundary", "recomputed", "cotangent", "gradient"):
            assert a["by_category"].get(category) == b["by_category"].get(category)
        assert (a["peak_phase"], a["flops"]) == (b["peak_phase"], b["flops"])


def test_pictures_and_a_page_are_written(tmp_path):
    files = [tmp_path / name for name in ("m.png", "m.svg", "m.html")]
    assert main(["estimate", *SMALL, "--plot", str(files[0]), "--html", str(files[2])]) == 0
    assert main(["estimate", *SMALL, "--plot", str(files[1])]) == 0
    assert files[0].read_bytes().startswith(b"\x89PNG") and "<svg" in files[1].read_text()
    assert "</html>" in files[2].read_text()


@pytest.mark.parametrize("command", ["profile", "estimate"])
def test_a_users_function(capsys, user, command):
    where = ["--device", "cpu"] if command == "profile" else ["--like", "cpu"]
    assert main([command, f"{user}:step", *where]) == 0
    shown = capsys.readouterr().out
    assert "step: peak" in shown and "user.py:7" in shown


def test_numpy_memory_outside_the_ledger_is_shown(capsys, user, tmp_path):
    out = tmp_path / "p.json"
    assert main(["profile", f"{user}:outside", "--device", "cpu", "--json", str(out)]) == 0
    (run,) = json.loads(out.read_text())["runs"]
    (row,) = [row for row in run["reconciliation"] if row["row"] == "outside the ledger"]
    assert row == {"row": "outside the ledger", "bytes": 300 * 300 * 8, "quality": "exact"}
    assert "outside the ledger" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["estimate", "--model", "gpt3"], "--model is one of gpt, gpt2, llama-7b, got 'gpt3'"),
        (["profile", "--dtype", "int8"], "--dtype is one of"),
        (["estimate", "--like", "tpu"], "like='tpu' describes no device; it is one of cpu:numpy"),
        (["estimate", "--batch", "0"], "--batch must be at least 1"),
        (["estimate", "--model", "gpt2", "--length", "4096"], "gpt2 sees at most 1024 tokens"),
        (["estimate", "--limit", "much"], "much"),
        (["estimate", "nothing.py:f"], "there is no file nothing.py"),
        (["estimate", "nothing"], "path/to/file.py:function"),
        (["estimate", "--json", "nowhere/m.json"], "there is no folder nowhere"),
        (["estimate", "--json", "m.json", "--plot", "m.gif"], "--plot writes .png and .svg, got m.gif"),
        (["estimate", "--json", "."], "it is a folder"),
        (["estimate", "--json", "m.json", "--html", "./m.json"], "need files of their own"),
        (["estimate", "x.py:f", "--model", "gpt"], "--model say what model to make"),
        (["estimate", "--batch", "99999999999999999999"], "at most 16777216"),
        (["profile", "--device", "meta"], "gpuad estimate takes them"),
    ],
)
def test_bad_input_is_refused(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("reads", r"an array on the meta device has a shape but no values \(float32\[\], made at user.py:11\)"),
        ("selects", "a mask bool.4, 4. on the meta device selects an unknown number of elements, at user.py:15"),
        ("missing", r"user.py has no function missing\(\)"),
        ("number", r"user.py has a int, which is no function, number\(\)"),
        ("fails", r"failed at user.py:21: KeyError: 'no such thing'"),
    ],
)
def test_what_a_dry_run_cannot_follow_is_named(capsys, user, function, message):
    import re

    out = user.with_suffix(".json")
    assert main(["estimate", f"{user}:{function}", "--json", str(out)]) == 2
    assert re.search(message, capsys.readouterr().err) and not out.exists()


def test_estimate_takes_shapes_dtypes_and_tensors():
    seen = []

    def step(a, b, c, *, like=None):
        seen.extend([(x.shape, str(x.dtype), x.device.engine) for x in (a, b, c["x"])])
        gpuad.sum(a * 2).backward() if a.requires_grad else gpuad.matmul(a, a)

    p = memory.estimate(step, (8, 8), ((3,), "bfloat16"), {"x": np.zeros((2, 5), np.int32)}, like="cuda:sm_80")
    assert seen == [
        ((8, 8), "float32", "cuda:sm_80"),
        ((3,), "bfloat16", "cuda:sm_80"),
        ((2, 5), "int32", "cuda:sm_80"),
    ]
    assert p.device == "meta like cuda:sm_80" and p.name == "step"
    for wrong in ("8, 8", None, (True, 3), ((3.0, 3), "float32")):
        with pytest.raises(gpuad.DataError, match="takes shapes"):
            memory.estimate(lambda x: x, wrong)


@pytest.mark.parametrize(
    "spec", [(3, 4), [3, 4], ((3, 4), "float32"), ([3, 4], np.float32), ((np.int64(3), 4), gpuad.float32)]
)
def test_estimate_counts_its_inputs(spec):
    p = memory.estimate(lambda x: gpuad.cumulative_sum(x, axis=0), spec, like="cpu")
    assert p.by_category(p.peak_event)["input"] == 48 and p.peak_bytes == 96


def test_estimate_refuses_work_elsewhere():
    layer = gpuad.nn.Linear(4, 4)
    with pytest.raises(gpuad.DeviceError, match=r"works on cpu at test_memory_command\.py"):
        memory.estimate(lambda: gpuad.sum(layer(gpuad.ones((2, 4), device="cpu"))), like="cuda:sm_90")
    with memory.dry("cuda:sm_80"):
        layer = gpuad.nn.Linear(4, 4)
        x = gpuad.ones((2, 4))
    with pytest.raises(gpuad.DeviceError, match="works on meta like cuda:sm_80"):
        memory.estimate(lambda: gpuad.sum(layer(x)), like="cuda:sm_90")


def test_what_is_pending_is_computed_first(user):
    assert main(["profile", f"{user}:pending", "--device", "cpu"]) == 0
    p = memory.profile(lambda: gpuad.exp(gpuad.ones((100, 100))))
    assert any(b.nbytes == 40000 and b.phase == "forward" for b in p.blocks)


def test_a_limit_that_is_passed_is_an_exit_code():
    assert main(["estimate", *SMALL, "--limit", "1KiB"]) == 1


def test_numbers_go_where_a_link_leads(tmp_path):
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    real.write_text("old")
    link.symlink_to(real)
    assert main(["estimate", *SMALL, "--json", str(link)]) == 0
    assert link.is_symlink() and json.loads(real.read_text())["version"] == 1


def test_the_short_program_runs(capsys):
    runpy.run_path(str(ROOT / "scripts" / "profile_memory.py"), run_name="__main__")
    shown = capsys.readouterr().out
    assert "training, checkpointed: peak" in shown and "on a GPU:" in shown
