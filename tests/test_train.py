"""`gpuad train`: what it learns, what it leaves in its folder, and that stopping it anywhere changes nothing."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import gpuad
from gpuad.cli import main
from gpuad.errors import DataError
from gpuad.training import job as gpuad_job
from gpuad.training.loop import printable
from gpuad.training.runs import Run
from gpuad.training.settings import Settings

ROOT = Path(__file__).parent.parent
SIZES = {"layers": 1, "heads": 2, "width": 16, "length": 16, "batch": 4, "save-every": 8, "sample": 0}
SMALL = [word for name, size in SIZES.items() for word in (f"--{name}", str(size))]
OPTIONS = {"plain": [], "dropout": ["--dropout", "0.2"]}
STEPS = 60


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """A file of sentences, 14 kB."""
    words = [
        "the",
        "a",
        "red",
        "green",
        "small",
        "old",
        "cat",
        "dog",
        "bird",
        "sees",
        "likes",
        "follows",
        "under",
        "over",
    ]
    draw = random.Random(0)
    path = tmp_path_factory.mktemp("text") / "story.txt"
    path.write_text("".join(" ".join(draw.choices(words, k=7)) + ".\n" for _ in range(400)))
    return path


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def command(text, folder, *options):
    return ["train", "--data", str(text), "--out", str(folder), "--steps", str(STEPS), *SMALL, *options]


def spawn(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "gpuad", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(*arguments):
    """What a process of `gpuad` printed that ended well."""
    process = spawn(*arguments)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert err == ""
    return out


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder):
    """(step, loss, held-out loss or None) of each line of the metrics."""
    return [(entry["step"], entry["loss"], entry.get("val_loss")) for entry in metrics(folder)]


def saved_step(folder):
    with safe_open(folder / "state.safetensors", "numpy") as file:
        return json.loads(file.metadata()["progress"])["step"]


def assert_same_run(folder, expected):
    assert losses(folder) == losses(expected)
    for name in ("model.safetensors", "state.safetensors"):
        ours, theirs = load_file(folder / name), load_file(expected / name)
        assert ours.keys() == theirs.keys()
        assert all(ours[key].tobytes() == theirs[key].tobytes() for key in ours), name


@pytest.fixture(scope="module")
def whole(text, tmp_path_factory):
    """The folder of a run that was never stopped, by the name of its options."""
    folders = {}

    def run(name):
        if name not in folders:
            folder = tmp_path_factory.mktemp("whole") / name
            assert main(command(text, folder, *OPTIONS[name])) == 0
            folders[name] = folder
        return folders[name]

    return run


# --- what a run leaves ------------------------------------------------------------------------


def test_a_run_folder_holds_what_a_reader_expects(whole, text):
    folder = whole("plain")
    config = json.loads((folder / "config.json").read_text())
    assert config["settings"]["width"] == 16 and config["settings"]["data"] == [str(text)]
    assert config["gpuad"] == gpuad.__version__ and config["engine"] == f"cpu:{gpuad.device('cpu').engine}"
    assert len(config["data"]["digest"]) == 64 and "held out" in config["data"]["description"]
    assert 0 < config["baselines"]["trigram"] < config["baselines"]["bigram"] < np.log(256)
    found = metrics(folder)
    assert [entry["step"] for entry in found] == list(range(1, STEPS + 1))
    assert [entry["step"] for entry in found if "val_loss" in entry] == [*range(8, STEPS, 8), STEPS]
    seconds = [entry["seconds"] for entry in found]
    assert seconds == sorted(seconds) and seconds[0] > 0
    assert all(entry["tokens_per_second"] > 0 for entry in found)
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]
    weights = load_file(folder / "model.safetensors")
    assert weights["token.weight"].shape == (256, 16) and weights["token.weight"].dtype == np.float32
    assert "head.weight" not in weights  # tied


def test_the_model_file_opens_as_a_model_with_the_logged_loss(whole, text):
    folder = whole("plain")
    settings = Settings.of(json.loads((folder / "config.json").read_text())["settings"])
    job = gpuad_job.Job(settings)
    job.model.load_state_dict(gpuad.nn.load(folder / "model.safetensors"))
    assert job.held_out_loss(2048) == metrics(folder)[-1]["val_loss"]
    assert len(job.write(20).encode("utf-8", "replace")) >= 20


def test_it_learns(whole):
    found = metrics(whole("plain"))
    assert found[-1]["val_loss"] < found[0]["loss"] - 1.5


def test_the_loss_picture_is_drawn(whole):
    pytest.importorskip("matplotlib")
    picture = (whole("plain") / "loss.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 10_000


def test_the_default_recipe_is_the_one_that_was_tuned():
    job = gpuad_job.Job(Settings())
    shapes = {name: p.shape for name, p in job.model.named_parameters()}
    assert sum(np.prod(shape) for shape in shapes.values()) == job.model.num_parameters() == 826_112
    assert not any("position" in name for name in shapes)  # rotary
    assert {(b.attention.rotary, b.attention.rotary_base) for b in job.model.blocks} == {(True, 1000.0)}
    decaying, others = job.optimizer.param_groups
    assert decaying["weight_decay"] == 0.1 and {p.ndim for p in decaying["params"]} == {2}
    assert others["weight_decay"] == 0.0 and {p.ndim for p in others["params"]} == {1}
    assert job.optimizer.max_grad_norm == 1.0 and decaying["betas"] == (0.9, 0.95)
    weights = {name: p.numpy() for name, p in job.model.named_parameters()}
    assert weights["token.weight"].std() == pytest.approx(0.08, rel=0.02)
    assert weights["blocks.0.attention.qkv.weight"].std() == pytest.approx(0.08, rel=0.02)
    assert weights["blocks.0.up.weight"].std() == pytest.approx(0.08, rel=0.02)
    for name in ("attention.out", "down"):
        assert weights[f"blocks.3.{name}.weight"].std() == pytest.approx(0.08 / 8**0.5, rel=0.02)
    rates = [job.rate(step) for step in (0, 79, 80, 799)]
    assert rates[0] < 1e-4 and rates[1] < rates[2] == 3e-3
    assert rates[3] == pytest.approx(3e-4, rel=0.01)


# --- the same losses, whatever happens --------------------------------------------------------


@pytest.mark.parametrize("name", OPTIONS)
def test_the_same_seed_gives_the_same_losses_in_another_process(name, whole, text, tmp_path):
    out = finished(*command(text, tmp_path / "run", *OPTIONS[name]))
    assert_same_run(tmp_path / "run", whole(name))
    # the bar is silent without a terminal; lines tell the progress
    told = [line.split(":")[0] for line in out.splitlines() if line.startswith("step ")]
    assert told == [f"step {n}/{STEPS}" for n in [*range(8, STEPS, 8), STEPS]]
    assert "held-out loss of a trigram table" in out and "\r" not in out


def test_another_seed_gives_other_losses(whole, text, tmp_path):
    assert main(command(text, tmp_path / "run", "--seed", "1", "--steps", "3")) == 0
    assert metrics(tmp_path / "run")[0]["loss"] != metrics(whole("plain"))[0]["loss"]


@pytest.mark.parametrize(
    ("name", "how"),
    [("plain", "auto"), ("plain", "sqrt"), ("plain", "every"), ("plain", "1GiB"), ("dropout", "every")],
)
def test_checkpointing_changes_no_bit_of_the_losses(name, how, whole, text, tmp_path, capsys):
    assert main(command(text, tmp_path / "run", "--checkpointing", how, *OPTIONS[name])) == 0
    assert losses(tmp_path / "run") == losses(whole(name))
    assert f"checkpointing {how}: " in capsys.readouterr().out


def test_a_run_of_version_1_is_resumed_with_the_checkpoints_it_had(whole, tmp_path):
    folder = shutil.copytree(whole("plain"), tmp_path / "run")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for had, has in ((False, "none"), (True, "every")):
        config["version"], config["settings"]["checkpointing"] = 1, had
        path.write_text(json.dumps(config))
        with Run.open(folder) as run:
            assert Settings.of(run.config["settings"]).checkpointing == has
    config["settings"]["checkpointing"] = "often"
    path.write_text(json.dumps(config))
    with pytest.raises(DataError, match="of this version of gpuad"):
        Run.open(folder)


def wait_for_lines(process, path, count):
    """Return when `path` has `count` lines, or the process has ended."""
    while process.poll() is None and not (path.exists() and path.read_bytes().count(b"\n") >= count):
        time.sleep(0.002)


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "plain"), (signal.SIGTERM, "dropout")])
def test_a_run_stopped_by_a_signal_saves_and_resumes_to_the_same_bits(name, number, whole, text, tmp_path):
    folder = tmp_path / "run"
    process = spawn(*command(text, folder, *OPTIONS[name]))
    wait_for_lines(process, folder / "metrics.jsonl", 11)
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == 128 + number, err
    taken = len(metrics(folder))
    assert 11 <= taken < STEPS
    assert saved_step(folder) == taken  # nothing is lost
    assert f"stopped after step {taken}; go on with: gpuad train --resume {folder}" in out
    assert err == "\nfinishing this step and saving; once more to stop at once\n"
    assert f"going on after step {taken} of {STEPS}" in finished("train", "--resume", str(folder), "--sample", "0")
    assert_same_run(folder, whole(name))
    seconds = [entry["seconds"] for entry in metrics(folder)]
    assert seconds == sorted(seconds)  # they go on, too


@pytest.mark.parametrize("name", OPTIONS)
def test_a_run_killed_again_and_again_resumes_to_the_same_bits(name, whole, text, tmp_path):
    folder, draw = tmp_path / "run", random.Random()
    arguments, kills = command(text, folder, *OPTIONS[name]), 0
    for lines in (draw.randint(1, 20), draw.randint(21, 45)):
        process = spawn(*arguments)
        wait_for_lines(process, folder / "metrics.jsonl", lines)
        time.sleep(draw.random() * 0.02)
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        assert saved_step(folder) % 8 == 0  # a complete state, whatever was being written
        arguments = ["train", "--resume", str(folder), "--sample", "0"]
    assert kills == 2
    finished(*arguments)
    assert_same_run(folder, whole(name))
    assert not list(folder.glob(".*"))


def test_a_run_killed_before_its_first_save_begins_again(whole, text, tmp_path):
    folder = tmp_path / "run"
    process = spawn(*command(text, folder, "--save-every", "1000"))
    wait_for_lines(process, folder / "metrics.jsonl", 5)
    process.kill()
    process.communicate()
    assert saved_step(folder) == 0
    finished("train", "--resume", str(folder), "--sample", "0")
    assert [loss for _, loss, _ in losses(folder)] == [loss for _, loss, _ in losses(whole("plain"))]


def test_a_torn_line_and_litter_of_a_kill_are_dropped(whole, text, tmp_path, monkeypatch):
    folder = tmp_path / "run"

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(gpuad_job.Job, "held_out_loss", killed)
        assert main(command(text, folder)) == 130
    assert saved_step(folder) == 0 and len(metrics(folder)) == 7
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "lo')
    (folder / ".state.safetensors.0123abcd.part").write_bytes(b"half")
    assert main(["train", "--resume", str(folder), "--sample", "0"]) == 0
    assert_same_run(folder, whole("plain"))
    assert not list(folder.glob(".*"))


def test_a_finished_run_resumes_to_itself(whole, tmp_path, capsys):
    folder = shutil.copytree(whole("plain"), tmp_path / "run")
    before = (folder / "metrics.jsonl").read_bytes()
    assert main(["train", "--resume", str(folder), "--sample", "30"]) == 0
    assert (folder / "metrics.jsonl").read_bytes() == before
    assert "30 bytes of its own" in capsys.readouterr().out


def test_a_run_is_resumed_from_any_folder(text, tmp_path, monkeypatch, whole):
    monkeypatch.chdir(text.parent)
    folder = tmp_path / "run"
    assert main(["train", "--data", text.name, "--out", str(folder), "--steps", str(STEPS), *SMALL]) == 0
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--resume", "run", "--data", str(text), "--sample", "0", "--width", "16"]) == 0
    assert_same_run(folder, whole("plain"))


def test_runs_without_a_name_get_folders_of_their_own(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main(["train", "--data", str(text), "--steps", "1", *SMALL]) == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == ["gpt-1", "gpt-2"]


def test_files_and_folders_together_are_the_text(text, tmp_path):
    (tmp_path / "more" / "deep").mkdir(parents=True)
    (tmp_path / "more" / "deep" / "poem.txt").write_text("roses are red, violets are blue\n" * 40)
    (tmp_path / "more" / "binary").write_bytes(b"\0" * 5000)
    folder = tmp_path / "run"
    options = ["--data", str(text), str(tmp_path / "more"), "--steps", "1"]
    assert main(["train", "--out", str(folder), *SMALL, *options]) == 0
    assert "in 2 files" in json.loads((folder / "config.json").read_text())["data"]["description"]


# --- what goes wrong --------------------------------------------------------------------------


def failing(capsys, *arguments):
    """The one message with which `gpuad` refuses."""
    assert main([str(a) for a in arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("gpuad train: ") and "Traceback" not in err
    return err


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(text, tmp_path, capsys):
    folder = tmp_path / "run"
    message = failing(capsys, *command(text, folder, "--learning-rate", "1e30"))
    assert f"step 2 of the run in {folder} failed" in message and "state after step 0 is kept" in message
    assert [entry["step"] for entry in metrics(folder)] == [1]
    assert saved_step(folder) == 0
    assert all(np.isfinite(x).all() for x in load_file(folder / "state.safetensors").values())


def test_weights_that_are_not_finite_are_never_saved(text, tmp_path, capsys):
    folder = tmp_path / "run"
    message = failing(capsys, *command(text, folder, "--learning-rate", "1e30", "--save-every", "1"))
    assert "step 1 of" in message
    assert saved_step(folder) == 0


def test_a_full_disk_is_one_message_and_keeps_the_last_state(text, tmp_path, capsys, monkeypatch):
    folder, real = tmp_path / "run", os.fsync
    calls = []

    def full(number):
        calls.append(number)
        if len(calls) > 12:
            raise OSError(28, "No space left on device", "state.safetensors")
        real(number)

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left on device" in failing(capsys, *command(text, folder))
    assert saved_step(folder) % 8 == 0
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--device", "cuda"], "cuda is not available"),
        (["--device", "meta"], "knows shapes only"),
        (["--device", "tpu"], "there is no device 'tpu'"),
        (["--layers", "0"], "--layers must be at least 1"),
        (["--width", "10", "--heads", "4"], "--width must be a multiple of twice --heads, got 10 and 4"),
        (["--dropout", "1"], "--dropout must be"),
        (["--learning-rate", "nan"], "--learning-rate must be a positive number"),
        (["--seed", "-1"], "--seed must be"),
        (["--checkpointing", "often"], "--checkpointing is one of none, auto, sqrt, every, or a number of bytes"),
        (["--checkpointing", "24G"], "such as 24GiB, got '24G'"),
        (["--checkpointing", "1MB"], "no schedule of checkpoints fits this step in 977 KiB"),
        (["--sample", "-1"], "--sample must be"),
        (["--length", "100000"], "too little text"),
    ],
)
def test_what_cannot_be_trained_is_one_message_and_nothing_is_written(
    options, said, text, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert said in failing(capsys, "train", "--data", text, *options)
    assert said in failing(capsys, "train", "--data", text, "--out", tmp_path / "run", *options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["missing", "empty", "loop", "no text", "tiny", "closed"])
def test_text_that_cannot_be_used_is_one_message_and_nothing_is_written(kind, tmp_path, capsys, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    path = tmp_path / "given"
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "no text":
        path.mkdir()
        (path / "binary").write_bytes(b"\0\1")
    elif kind == "tiny":
        path.write_text("a few words")
    elif kind == "closed":
        path.write_text("secret " * 1000)
        path.chmod(0)
        if os.access(path, os.R_OK):
            pytest.skip("this user can read every file")
    said = {
        "missing": "does not exist",
        "empty": "is empty",
        "loop": "cannot be read",
        "no text": "no text files",
        "tiny": "too little text",
        "closed": "cannot be read: Permission denied",
    }[kind]
    message = failing(capsys, "train", "--data", path)
    assert said in message and (str(path) in message or kind == "tiny")
    assert list((tmp_path / "here").iterdir()) == []


def test_a_folder_that_holds_a_run_is_not_used_for_another(whole, text, capsys):
    folder = whole("plain")
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert "holds a run already" in failing(capsys, *command(text, folder))
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_place_that_cannot_be_written_is_refused(text, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "choose another --out" in failing(capsys, *command(text, tmp_path / "file"))
    assert "choose another --out" in failing(capsys, *command(text, tmp_path / "file" / "run"))


def test_resuming_what_is_no_run_is_refused(tmp_path, capsys):
    assert "holds no run" in failing(capsys, "train", "--resume", tmp_path)
    assert "holds no run" in failing(capsys, "train", "--resume", tmp_path / "missing")
    assert "leave --out out" in failing(capsys, "train", "--resume", tmp_path, "--out", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--width", "32"], "--width 32 does not match the run"),
        (["--steps", "90"], f"which has {STEPS}"),
        (["--dropout", "0.5"], "--dropout 0.5 does not match"),
        (["--checkpointing", "every"], "--checkpointing every does not match"),
        (["--data", "elsewhere"], "elsewhere does not match"),
    ],
)
def test_resuming_with_other_options_is_refused(options, said, whole, tmp_path, capsys):
    folder = shutil.copytree(whole("plain"), tmp_path / "run")
    assert said in failing(capsys, "train", "--resume", folder, *options)
    assert_same_run(folder, whole("plain"))


def test_resuming_on_changed_text_is_refused(tmp_path, capsys):
    path, folder = tmp_path / "text", tmp_path / "run"
    path.write_text("one two three " * 200)
    assert main(["train", "--data", str(path), "--out", str(folder), "--steps", "2", *SMALL]) == 0
    path.write_text("one two threE " * 200)
    assert "the text has changed since" in failing(capsys, "train", "--resume", folder)


def damage_config(folder):
    (folder / "config.json").write_text("{")


def other_version(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"version": 99}))


def other_engine(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"engine": "cpu:other"}))


def other_settings(folder):
    config = json.loads((folder / "config.json").read_text())
    config["settings"]["width"] = "wide"
    (folder / "config.json").write_text(json.dumps(config))


def damage_state(folder):
    (folder / "state.safetensors").write_bytes((folder / "state.safetensors").read_bytes()[:1000])


def lose_state(folder):
    (folder / "state.safetensors").unlink()


def swap_state(folder):
    shutil.copy(folder / "model.safetensors", folder / "state.safetensors")


def lose_metrics(folder):
    (folder / "metrics.jsonl").unlink()


def shorten_metrics(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:5] + lines[6:]))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damage_config, "cannot be read"),
        (other_version, "of this version of gpuad"),
        (other_engine, "set GPUAD_CPU_ENGINE=other to go on"),
        (other_settings, "the setting width is 'wide'"),
        (damage_state, "state.safetensors"),
        (lose_state, "state.safetensors"),
        (swap_state, "state.safetensors is not the state of a run"),
        (lose_metrics, "metrics.jsonl"),
        (shorten_metrics, f"does not hold the steps 1 to {STEPS}"),
    ],
)
def test_resuming_a_damaged_run_is_refused(damage, said, whole, tmp_path, capsys):
    folder = shutil.copytree(whole("plain"), tmp_path / "run")
    damage(folder)
    assert said in failing(capsys, "train", "--resume", folder)


def test_a_run_is_trained_by_one_process_at_a_time(whole, tmp_path, capsys):
    folder = shutil.copytree(whole("plain"), tmp_path / "run")
    with Run.open(folder):
        assert "another process is training" in failing(capsys, "train", "--resume", folder)
        with pytest.raises(DataError, match="another process"):
            Run.open(folder)
    Run.open(folder).close()


# --- what is shown ----------------------------------------------------------------------------


def test_sampled_text_fits_a_terminal():
    shown = printable("x" * 100 + "\n\tif\x00\x1b[2J é\n\nend", "ascii")
    assert shown.split("\n") == ["x" * 80, "x" * 20, "    if??[2J ?", "", "end"]
    assert printable("é", "utf-8") == "é"


# --- the main job -----------------------------------------------------------------------------


@pytest.mark.slow
def test_the_defaults_beat_the_trigram_table_within_three_minutes(tmp_path):
    out = finished("train", "--out", str(tmp_path / "run"))
    last = metrics(tmp_path / "run")[-1]
    tables = json.loads((tmp_path / "run" / "config.json").read_text())["baselines"]
    assert last["seconds"] <= 180
    assert last["val_loss"] < 1.75 and last["val_loss"] < tables["trigram"]
    assert "400 bytes of its own" in out
