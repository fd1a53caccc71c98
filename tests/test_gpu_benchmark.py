"""benchmarks/gpu.py at tiny sizes on the stand-in for CuPy, and scripts/gpu_table.py.  No time is asserted."""

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import stand_in
from benchmarks.gpu import networks, report
from benchmarks.gpu.cases import GPTSizes, find_cases, gpt_shapes
from benchmarks.gpu.operations import OPERATIONS, check_gradients, check_value, difference

ROOT = Path(__file__).parent.parent
NEEDED = ("name", "library", "median_ms", "gbs", "share_of_copy", "difference", "error", "note")


@pytest.fixture(scope="module")
def command():
    """benchmarks/gpu.py as a module; its name is also that of the package of its parts."""
    spec = importlib.util.spec_from_file_location("gpu_command", ROOT / "benchmarks" / "gpu.py")
    path = list(sys.path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


def run(command, out, *options, worker=None, **settings):
    """The document that the command writes, on the stand-in; `worker` are lines of Python that begin each process."""
    reason = stand_in.missing()
    if reason:
        pytest.skip(reason)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", stand_in.environment()["PYTHONPATH"])
        for name, value in settings.items():
            patch.setattr(command, name, value)
        if worker is not None:
            program = textwrap.dedent(worker) + "\nfrom benchmarks.gpu.worker import main\nmain()"
            patch.setattr(command, "WORKER", [sys.executable, "-c", program])
        assert command.main(["--tiny", "--out", str(out), *options]) == 0
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def document(command, tmp_path_factory):
    words = "copy,matmul,gelu,softmax,sum over rows,cross_entropy,layer_norm,dropout,MLP,GPT"
    return run(command, tmp_path_factory.mktemp("gpu") / "gpu.json", "--libraries", "gpuad", "--cases", words)


def test_every_case_is_compared_with_float64_and_timed(document):
    results = document["results"]
    assert len(results) > 25 and document["left_out"] == [] and document["complete"]
    for r in results:
        assert set(NEEDED) <= set(r), r["name"]
        assert r["error"] is None and r["library"] == "gpuad"
        assert 0 <= r["difference"] < 2e-2 and r["median_ms"] > 0 and r["rounds"] >= 5
    rates = [r for r in results if r["gbs"] is not None and not r.get("tflops")]
    assert {r["name"] for r in results} - {r["name"] for r in rates} == {
        *(r["name"] for r in results if r["name"].startswith(("matmul", "GPT"))),
        "MLP 784-256-128-10, batch 128, Adam",
    }
    copy = next(r for r in results if r["name"] == report.COPY)
    for r in rates:
        assert r["share_of_copy"] == pytest.approx(r["gbs"] / copy["gbs"])


def test_the_file_says_what_it_was_measured_on(document):
    assert document["version"] == 1 and document["sizes"] == "tiny"
    machine = document["machine"]
    assert machine["gpu"] == "stand-in for a GPU" and machine["date"].endswith("UTC")
    assert machine["versions"]["gpuad"] and machine["versions"]["numpy"] == np.__version__


def test_table_fits_eighty_columns(document):
    full = {
        **document,
        "results": report.with_shares(
            [
                {"name": case.name, "library": library, "median_ms": 12345.678, "gbs": 4321.0}
                | ({"tokens_per_s": 7123456.7, "peak_bytes": 123 << 30} if case.kind == "gpt" else {})
                for case in find_cases(tiny=False)
                for library in case.libraries
            ]
        ),
        "left_out": [{"library": "jax", "names": [c.name for c in find_cases(False)], "reason": "x" * 200}],
    }
    for made in (document, full):
        lines = report.table(made).splitlines()
        assert max(map(len, lines)) <= 80
        assert any(line.startswith("softmax fwd") for line in lines)


def test_failing_cases_are_recorded_and_the_rest_goes_on(command, tmp_path):
    worker = """
        import os, sys, time
        from benchmarks.gpu import on_gpuad
        def fails(x):
            raise MemoryError("out of memory")
        on_gpuad.FUNCTIONS["softmax"] = fails
        on_gpuad.FUNCTIONS["log_softmax"] = lambda x: os._exit(3)
        on_gpuad.FUNCTIONS["relu(x*w+b)*x-x/2"] = lambda x: time.sleep(60)
        on_gpuad.FUNCTIONS["sum over rows"] = lambda x: 1.001 * on_gpuad.gpuad.sum(x, axis=0)
    """
    words = "softmax fwd [21,relu(x*w+b)*x-x/2 fwd,sum over rows fwd [21,sum of all,matmul 64x64x64 f32"
    options = ["--libraries", "gpuad", "--cases", words]
    found = run(command, tmp_path / "gpu.json", *options, worker=worker, LIMIT=8.0)
    by_name = {r["name"]: r for r in found["results"]}
    assert by_name["softmax fwd [21, 40] f32"]["error"] == "MemoryError: out of memory"
    assert by_name["log_softmax fwd [21, 40] f32"]["error"] == "the process ended with status 3"
    assert by_name["relu(x*w+b)*x-x/2 fwd [3001] f32"]["error"] == "stopped after 8 s"
    assert by_name["sum over rows fwd [21, 40] f32"]["error"].startswith("WrongResult: the result differs from float64")
    assert all(by_name[name]["median_ms"] is None for name in by_name if by_name[name]["error"])
    for name in ("sum of all fwd [3001] f32", "matmul 64x64x64 f32"):
        assert by_name[name]["error"] is None and by_name[name]["median_ms"] > 0
    assert report.table(found).count("error") >= 5


def test_missing_peer_and_spent_budget_are_said(command, tmp_path, capsys):
    worker = """
        import sys
        sys.modules["torch"] = None
    """
    options = ["--libraries", "gpuad,torch", "--cases", "copy,sum of all"]
    found = run(command, tmp_path / "gpu.json", *options, worker=worker)
    left = {x["library"]: x for x in found["left_out"]}
    assert left["torch"]["reason"].startswith("ModuleNotFoundError") and report.COPY in left["torch"]["names"]
    assert "left out:" in capsys.readouterr().out
    assert command.main(["--tiny", "--out", str(tmp_path / "none.json"), "--budget", "0"]) == 1
    assert "the budget was spent" in capsys.readouterr().err and not (tmp_path / "none.json").exists()


# --- the references -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, op in OPERATIONS.items() if op.pull and name != "dropout"])
def test_reference_gradient_is_the_slope_of_the_reference_value(name):
    op, rng = OPERATIONS[name], np.random.default_rng(0)
    shape = {"attention": (1, 2, 7, 4), "embedding": (9, 4, 12)}.get(name, (6, 5))
    xs = [
        rng.integers(0, x.high, x.shape) if x.kind == "below" else rng.standard_normal(x.shape)
        for x in op.inputs(shape)
    ]
    y = op.value(xs, np.zeros(1))
    g = rng.standard_normal(y.shape)
    found = op.pull(xs, g, y, len(xs[0])) + (op.parameters(xs, g) if op.parameters else [])
    h = 1e-2 if name == "cross_entropy" else 1e-6  # whose value is in float32
    for k, gradient in enumerate(found):
        direction = rng.standard_normal(xs[k].shape)
        ahead, behind = (op.value([*xs[:k], xs[k] + sign * direction, *xs[k + 1 :]], y) for sign in (h, -h))
        assert np.sum(gradient * direction) == pytest.approx(np.sum(g * (ahead - behind)) / (2 * h), rel=1e-3)


def test_wrong_results_are_noticed():
    x = np.random.default_rng(0).standard_normal((200, 30))
    y = OPERATIONS["softmax"].value([x], x)
    assert check_value("softmax", [x], y) < 1e-15
    g = np.random.default_rng(1).standard_normal(x.shape)
    right = OPERATIONS["softmax"].pull([x], g, y, 200)
    assert check_gradients("softmax", [x], y, g, right) < 1e-15
    assert check_gradients("softmax", [x], y, g, [1.01 * right[0]]) > 5e-3
    y[-1, 3] = np.nan
    assert check_value("softmax", [x], y) == np.inf
    assert difference(np.array([1.0, 0.0]), np.array([1.0, 0.1])) > 2e-2


def test_reference_networks_are_those_of_gpuad():
    import gpuad
    from gpuad.models import GPT, GPTConfig

    sizes = GPTSizes(2, 29, 8, 2, 2, 16)
    config = GPTConfig(vocabulary=29, length=8, layers=2, heads=2, width=16)
    model = GPT(config, dtype="float64", device="cpu", generator=gpuad.random.Generator(0))
    assert {name: p.shape for name, p in model.named_parameters()} == gpt_shapes(sizes)
    tokens = networks.gpt_tokens(sizes)
    loss = model.loss(gpuad.asarray(tokens))
    loss.backward()
    weights = {name: p.numpy() for name, p in model.named_parameters()}
    gradients = {name: p.grad.numpy() for name, p in model.named_parameters()}
    of_loss, of_slope = networks.gpt_differences(weights, tokens, sizes, loss.item(), gradients)
    assert of_loss < 1e-9 and of_slope < 1e-3
    gradients["blocks.0.up.weight"] = 2 * gradients["blocks.0.up.weight"] + 0.1
    assert networks.gpt_differences(weights, tokens, sizes, loss.item(), gradients)[1] > 1e-2


def test_pytorch_computes_what_the_references_do(torch):
    """On the CPU, in this process: its code has run before it meets a GPU."""
    from benchmarks.gpu import measure, on_torch

    side = on_torch.Side("cpu", tiny=True, compiled=False)
    wanted = ("gelu", "layer_norm bwd [21", "cross_entropy bwd [21", "attention", "embedding", "AdamW", "MLP", "GPT")
    for case in find_cases(tiny=True):
        if case.name.startswith(wanted):
            result = measure.measure(side, case)
            assert result["difference"] < 2e-2 and result["median_ms"] > 0


# --- the README's table -------------------------------------------------------------------------


def table_script(*options):
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "gpu_table.py"), *map(str, options)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": ""},
    )
    return done.stdout, done.stderr


@pytest.fixture
def results(document, tmp_path):
    """A folder with an older and a newer file of a GPU, and a newer one of tiny sizes."""
    for day, name, sizes in (("01", "an old GPU", "full"), ("03", "NVIDIA H200", "full"), ("04", "a toy", "tiny")):
        machine = document["machine"] | {"gpu": name, "date": f"2026-12-{day} 10:00 UTC", "driver": "580.1"}
        changed = document | {"machine": machine, "sizes": sizes}
        if day == "03":
            first = {"name": "GPT 124M, T=1024, batch 8 bf16", "tokens_per_s": 512345.6, "peak_bytes": 5 << 30}
            changed["results"] = [
                *document["results"],
                report.with_shares([first | {"library": "gpuad", "median_ms": 16.0}])[0],
                report.with_shares([{"name": first["name"], "library": "jax", "error": "it | broke"}])[0],
            ]
            changed["left_out"] = [{"library": "torch", "names": ["a", "b"], "reason": "the budget was spent"}]
        (tmp_path / f"gpu-{day}.json").write_text(json.dumps(changed))
    return tmp_path


def test_readme_table_is_of_the_newest_file(results):
    said, errors = table_script("--results", results)
    assert errors == ""
    assert said.startswith("NVIDIA H200, driver 580.1;") and "2026-12-03" in said
    assert "| gelu(x\\*w+b)\\*tanh(x) fwd \\[3001\\] f32 | " in said
    assert "| GPT 124M, T=1024, batch 8 bf16 | 512,346 (5.0) |  |  | error |" in said
    assert "- JAX, GPT 124M, T=1024, batch 8 bf16: it \\| broke" in said
    assert "Left out: PyTorch (2 cases: the budget was spent)." in said
    rows = [line for line in said.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {6}


def test_readme_says_so_where_nothing_was_measured(tmp_path):
    readme = tmp_path / "README.md"
    before = "# x\n<!-- scripts/gpu_table.py writes from here -->\nold\n<!-- to here -->\nrest\n"
    readme.write_text(before)
    assert table_script("--results", tmp_path)[0] == "Nothing has been measured on a GPU yet.\n"
    assert readme.read_text() == before
    assert table_script("--results", tmp_path, "--readme", readme, "--write") == ("", "")
    assert readme.read_text() == before.replace("old", "Nothing has been measured on a GPU yet.")
    readme.write_text("# no marks\n")
    assert "README.md needs the lines" in table_script("--results", tmp_path, "--readme", readme, "--write")[1]
    assert readme.read_text() == "# no marks\n"
