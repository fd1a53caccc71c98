"""The command line: what it prints, how it starts, and that the program beside it does the same job."""

import subprocess
import sys
from pathlib import Path

import pytest

import gpuad
from gpuad.cli import main

ROOT = Path(__file__).parent.parent
PROGRAM = ROOT / "scripts" / "train_gpt.py"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def gpuad_process(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "gpuad", *arguments], cwd=ROOT, capture_output=True, text=True, **options
    )


# --- what it prints ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["plan", "--help"], ["info", "--help"], ["info"]]
)
def test_what_is_printed_fits_a_terminal(arguments, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    try:
        code = main(arguments)
    except SystemExit as ended:
        code = ended.code
    out = capsys.readouterr().out
    assert code == 0 and len(out.splitlines()) > 4
    assert max(map(len, out.splitlines())) <= 80


def test_every_option_of_train_is_explained_with_its_default(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    sizes = "device layers heads width length steps batch learning-rate dropout seed sample save-every".split()  # noqa: SIM905
    for name in ["data", "checkpointing", "out", "resume", *sizes]:
        assert f"--{name} " in text
    assert text.count("(default") >= len(sizes)


def test_info_shows_versions_devices_and_engines(capsys):
    assert main(["info"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].split() == ["gpuad", gpuad.__version__]
    table = {row[:16].strip(): row[16:] for row in rows if row}
    assert table["device cpu"].startswith(f"engine {gpuad.device('cpu').engine}")
    assert table["device meta"] == "shapes only"
    assert "not available" in table["device cuda"] or table["device cuda"].startswith("engine")
    assert table["default device"] == "cpu"
    assert table["numpy"].startswith("2.") and table["matplotlib"]


def test_the_version_is_quick_to_ask():
    program = (
        "import sys, gpuad.cli\ntry: gpuad.cli.main(['--version'])\nexcept SystemExit: print(*sys.modules, sep='\\n')"
    )
    shown = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    version, *modules = shown.stdout.splitlines()
    assert version == f"gpuad {gpuad.__version__}"
    assert not {"gpuad.training.loop", "safetensors", "tqdm", "matplotlib"}.intersection(modules)


@pytest.mark.parametrize("arguments", [[], ["fly"], ["train", "--steps", "many"], ["train", "--stepz", "3"]])
def test_arguments_that_cannot_be_understood_end_with_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("usage: gpuad") and "error: " in err


def test_an_error_is_one_message_on_stderr_and_code_2(tmp_path):
    process = gpuad_process("train", "--device", "cuda", "--out", str(tmp_path / "run"))
    assert process.returncode == 2 and process.stdout == ""
    assert process.stderr.startswith("gpuad train: cuda is not available: ")
    assert "Traceback" not in process.stderr
    assert list(tmp_path.iterdir()) == []


# --- the program beside it --------------------------------------------------------------------


def test_the_short_program_is_short_and_runs(tmp_path):
    source = PROGRAM.read_text()
    assert len(source.splitlines()) <= 60
    before, constants, after = source.partition("STEPS, WARMUP, BATCH, LENGTH, SEED = 800, 80, 16, 64, 0")
    assert constants
    copy = tmp_path / "scripts" / "train_gpt.py"
    copy.parent.mkdir()
    copy.write_text(
        before + "STEPS, WARMUP, BATCH, LENGTH, SEED = 50, 5, 2, 8, 0" + after.replace('b"\\n", 400', 'b"\\n", 20')
    )
    (tmp_path / "gpuad").symlink_to(ROOT / "gpuad")
    (tmp_path / "text").write_text("to be or not to be, that is the question\n" * 100)
    process = subprocess.run([sys.executable, copy, tmp_path / "text"], cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "step 50: loss" in process.stdout and "held-out loss" in process.stdout
    model = gpuad.models.GPT(gpuad.models.GPTConfig(length=8, layers=4, heads=4, width=128, positions="rotary"))
    model.load_state_dict(gpuad.nn.load(tmp_path / "gpt.safetensors"))
