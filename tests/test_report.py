"""Reports over profiles that are small enough to add up by hand."""

import itertools
import json
import random
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import gpuad
from gpuad import buffer, checkpoint
from gpuad.errors import DataError
from gpuad.memory import plots
from gpuad.memory.difference import difference
from gpuad.memory.plots import samples, shorten, spans, stagger, ticks, tree
from gpuad.memory.profile import CATEGORIES, Block, Mark, Profile, Row, alike, show
from gpuad.memory.report import KEEP_INPUTS, Kept, Report, kept, remedy
from gpuad.ops.rows import layer_norm

K = 1024


class Run:
    """Writes a profile down, in KiB."""

    def __init__(self, name, device="cpu:compiled"):
        self.profile = Profile(name, device, [], [], [], [], [])

    def phase(self, name):
        self.profile.phases.append((len(self.profile.live), name))
        return self

    def take(self, size, category, op="", line="", module="", by=""):
        p, event = self.profile, len(self.profile.live)
        block = Block(
            len(p.blocks), int(size * K), op, line, module, p.phase(event), event, None, [(event, category, by)]
        )
        p.blocks.append(block)
        self._tick(block.nbytes)
        return block

    def free(self, *blocks):
        for block in blocks:
            block.died = len(self.profile.live)
            self._tick(-block.nbytes)

    def turn(self, block, category, by=""):
        block.categories.append((len(self.profile.live), category, by))
        self._tick(0)

    def mark(self, name):
        self.profile.marks.append(Mark(name, len(self.profile.live) - 1, self.profile.live[-1]))

    def _tick(self, nbytes):
        p = self.profile
        p.live.append((p.live[-1] if p.live else 0) + nbytes)
        p.seconds.append(len(p.live) / 1000)


def inference():
    """Peak of 10 KiB in its last event."""
    run = Run("inference").phase("setup")
    run.take(4, "parameter", line="t.py:1", module="blocks.0.up")
    run.phase("forward")
    run.take(1, "input", "asarray", "t.py:4")
    run.take(5, "temporary", "linear", "t.py:5", "blocks.0.up")
    run.mark("forward end")
    return run.profile


def training():
    """25 KiB when forward ends; the peak of 31 KiB when backward begins."""
    run = Run("training").phase("setup")
    run.take(4, "parameter", line="t.py:1", module="blocks.0.up")
    run.take(8, "optimizer state", line="t.py:2")
    run.phase("forward")
    run.take(1, "input", "asarray", "t.py:4")
    x = run.take(7, "saved", "linear", "t.py:5", "blocks.0.up", "gelu")
    y = run.take(5, "saved", "gelu", "t.py:6", "blocks.0", "linear")
    run.free(run.take(2, "temporary", "sum", "t.py:7"))
    run.mark("forward end")
    run.phase("backward")
    g = run.take(6, "cotangent", "linear", "t.py:6", "blocks.0.down")
    run.free(y)
    run.take(4, "gradient", "linear_weight", "t.py:5", "blocks.0.up")
    run.free(x, g)
    run.mark("backward end")
    run.phase("step")
    run.free(run.take(3, "workspace", "adamw", "t.py:9"))
    run.mark("step end")
    p = run.profile
    p.params, p.flops = 1024, 24 * K
    p.reconciliation = [
        Row("logical", 31 * K, "exact"),
        Row("pool reserved", 40 * K, "exact"),
        Row("process (NVML)", None, "unavailable", "NVML is <not> there"),
        Row("unexplained", -2 * K, "sampled"),
    ]
    return p


def rows(text):
    """The cells of each line, by its first: columns are two blanks apart at least."""
    found = {}
    for line in text.splitlines():
        first, *cells = re.split(r"\s{2,}", line.strip())
        found.setdefault(first, []).append(cells)
    return found


def history(seed, length=300):
    """A random profile."""
    choose = random.Random(seed)
    run, alive = Run("random").phase("forward"), []
    for _ in range(length):
        if choose.random() < 0.05:
            run.phase(choose.choice(("forward", "backward", "recompute")))
        kind = choose.random()
        if kind < 0.5 or not alive:
            alive.append(run.take(choose.randrange(9), choose.choice(CATEGORIES), "op", f"a.py:{choose.randrange(5)}"))
        elif kind < 0.8:
            run.free(alive.pop(choose.randrange(len(alive))))
        else:
            run.turn(choose.choice(alive), choose.choice(CATEGORIES))
    return run.profile


# --- what profiles are asked -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"), (999, "999 B"), (1000, "0.977 KiB"), (1024, "1.00 KiB"), (10239, "10.0 KiB"), (6784, "6.63 KiB"),
        (102349, "100 KiB"),
        (999 * K, "999 KiB"), (1023 * K, "0.999 MiB"), (7.53 * K**3, "7.53 GiB"), (75.3 * K**3, "75.3 GiB"),
        (753 * K**3, "753 GiB"), (2 * K**4, "2.00 TiB"), (-3 * K**2, "-3.00 MiB"),
    ],
)  # fmt: skip
def test_bytes_are_shown_with_three_digits(nbytes, text):
    assert show(int(nbytes)) == text


def test_modules_that_differ_in_numbers_are_alike():
    found = alike(["blocks.0.up", "blocks.11.up", "encoder.3", "norm2", "blocks.0.up", ""])
    assert found == {
        "blocks.0.up": "blocks.*.up", "blocks.11.up": "blocks.*.up", "encoder.3": "encoder.3", "norm2": "norm2", "": "",
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_categories_over_time_are_those_of_each_event(seed):
    p = history(seed)
    over_time = p.by_event()
    for event in range(len(p.live)):
        assert {name: s[event] for name, s in over_time.items() if s[event]} == p.by_category(event)
        assert sum(s[event] for s in over_time.values()) == p.live[event]


# --- tables ----------------------------------------------------------------------------------


def test_a_line_names_peak_phase_op_and_line():
    lines = Report([inference(), training()], limit=20 * K).line().splitlines()
    assert lines == [
        "inference: peak 10.0 KiB in forward, linear at t.py:5; fits in 20.0 KiB: 10.0 KiB to spare",
        "training: peak 31.0 KiB in backward, linear at t.py:6; does not fit in 20.0 KiB: 11.0 KiB too much",
    ]
    assert Report([training()]).line() == "training: peak 31.0 KiB in backward, linear at t.py:6"


def test_what_the_pool_reserves_counts_against_a_limit():
    """31 KiB are asked for, and the pool takes 40."""
    assert (
        Report([training()], limit=35 * K)
        .line()
        .endswith("; fits in 35.0 KiB only if the pool, which took 40.0 KiB, finds room in its own")
    )
    assert Report([training()], limit=42 * K).line().endswith("; fits in 42.0 KiB: 2.00 KiB to spare")


def test_categories_are_shown_at_the_marks_and_at_the_peak():
    table = Report([inference(), training()]).table()
    found = rows(table.partition("\n\nThe peak as a multiple")[0])
    assert found["parameter"] == [["4.00 KiB", "4.00 KiB"], ["-", "4.00 KiB"], ["-", "4.00 KiB"], ["4.00 KiB"] * 2]
    # saved: 7 + 5 at the end of forward and at the peak, then nothing, so there are no rows
    assert found["saved"] == [["0 B", "12.0 KiB"], ["0 B", "12.0 KiB"]]
    assert found["gradient"] == [["-", "4.00 KiB"], ["-", "4.00 KiB"]]
    assert found["temporary"] == [["5.00 KiB", "0 B"], ["5.00 KiB", "0 B"]]
    assert found["all"] == [["10.0 KiB", "25.0 KiB"], ["-", "17.0 KiB"], ["-", "17.0 KiB"], ["10.0 KiB", "31.0 KiB"]]
    assert found["in phase"] == [["forward", "backward"]]
    assert [name for name in found if name in ("forward end", "backward end", "step end", "peak")] == [
        "forward end", "backward end", "step end", "peak",
    ]  # fmt: skip


def test_the_ratio_is_the_sum_of_what_each_category_adds():
    table = Report([training(), inference()]).table()
    found = rows(table.partition("The peak as a multiple of that of inference (10.0 KiB)")[2].partition("\n\n")[0])
    assert found["parameter"] == [["0.40", "40.0%", "0.40", "12.9%"]]
    assert found["optimizer state"] == [["0.00", "0.0%", "0.80", "25.8%"]]
    assert found["input"] == [["0.10", "10.0%", "0.10", "3.2%"]]
    assert found["saved"] == [["0.00", "0.0%", "1.20", "38.7%"]]
    assert found["cotangent"] == [["0.00", "0.0%", "0.60", "19.4%"]]
    assert found["temporary"] == [["0.50", "50.0%", "0.00", "0.0%"]]
    assert found["all"] == [["1.00 100.0%", "3.10 100.0%"]]


def test_lines_that_keep_most_come_first_with_a_remedy():
    table = Report([inference(), training()]).table()
    part = table.partition("What training keeps for the backward pass, when forward ends: 12.0 KiB\n")[2]
    assert part.partition("\n\n")[0].splitlines() == [
        "   bytes  share  op               line",
        "7.00 KiB  58.3%  linear for gelu  t.py:5",
        "    checkpoint() around linear and the gelu that reads it computes at most these",
        "    two again",
        "5.00 KiB  41.7%  gelu for linear  t.py:6",
        "    checkpoint() around gelu and the linear that reads it computes gelu again: a",
        "    few flops a value",
        "For comparison: the run has 2 flops for each of these bytes.",
    ]


def test_what_is_kept_but_not_held_at_the_peak_is_said():
    run = Run("training").phase("forward")
    kept_twice = [run.take(6, "saved", "gelu", f"t.py:{k}", "", "linear") for k in range(12)]
    run.mark("forward end")
    run.free(*kept_twice[1:])
    run.take(100, "workspace")
    table = str(Report([run.profile]))
    assert "Of all that, 6.00 KiB is held at the peak: keeping less lowers the peak by no\nmore." in table
    assert rows(table)["12.0 KiB"] == [["16.7%", "2 others"]]
    assert table.count("gelu for linear") == 10


def test_modules_and_blocks_of_one_line_are_added():
    run = Run("training").phase("forward")
    for k in range(3):
        run.take(2, "saved", "linear", "t.py:5", f"blocks.{k}.up", "gelu")
    run.take(1, "saved", "linear", "t.py:5", "head", "cross_entropy")
    run.take(4, "boundary", "add", "t.py:5")
    when, held, found = kept(run.profile)
    assert when == "at the peak" and held == 7 * K
    assert found == [Kept("t.py:5", "linear", "gelu", "blocks.*.up", 7 * K, 2 * K)]


def test_the_reconciliation_shows_what_is_missing_and_what_is_unexplained():
    found = rows(str(Report([inference(), training()])))
    assert found["logical"] == [["31.0 KiB", "exact"]]
    assert found["process (NVML)"] == [["-", "unavailable"]]
    assert found["NVML is <not> there"] == [[]]
    assert found["unexplained"] == [["-2.00 KiB", "sampled"]]
    assert "gave" not in str(Report([inference()]))


@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_tables_are_at_most_80_columns_wide(count):
    path = "/home/someone/" + "a_long_folder/" * 12 + "train.py:1234"
    profiles = []
    for k in range(count):
        p = training()
        p.name = "inference" if k == 0 else f"training, with a name that is very long, of number{k}"
        for b in p.blocks:
            b.line, b.module = path, "model." + "decoder.layers.3." * 9 + "attention"
            b.op += "_and_more" * 9
        p.reconciliation.append(Row("r" * 100, 1, "exact", "n" * 200))
        profiles.append(p)
    texts = [str(Report(profiles, limit=1)), str(difference(profiles[0], inference()))]
    assert max(len(line) for text in texts for line in text.splitlines()) <= 80
    assert "a_long_folder/train.py:1234" in texts[0] and "attention" in texts[0]
    assert all(f"number{k}" in texts[0].partition("What the memory")[2] for k in range(1, count))


def test_the_end_of_a_path_is_kept():
    assert shorten("gpuad/models/gpt.py:152", 23) == "gpuad/models/gpt.py:152"
    assert shorten("gpuad/models/gpt.py:152", 20) == "...models/gpt.py:152"
    assert shorten("gpuad/models/gpt.py:152", 17) == "...gpt.py:152"
    assert shorten("blocks.11.attention.query", 20) == "...attention.query"
    assert all(len(shorten("blocks.11/attention.py:3", n)) <= n for n in range(30))


def test_an_empty_profile_has_a_report(tmp_path):
    empty = Profile("nothing", "cpu:numpy", [], [], [], [], [])
    report = Report([empty, empty], limit=0)
    assert report.line().splitlines() == ["nothing: peak 0 B; fits in 0 B: 0 B to spare"] * 2
    assert rows(str(report))["all"] == [["0 B", "0 B"]] and "parameter" not in str(report)
    assert json.loads(report.to_json())["runs"][0]["by_category"] == {}
    assert "Nothing differs at the peak." in str(difference(empty, empty))
    report.save_html(tmp_path / "a.html")
    report.plot(tmp_path / "a.png")


# --- remedies ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "reader", "module", "largest", "words"),
    [
        ("linear", "cross_entropy", "head", 64 << 20, "linear_cross_entropy() never holds all logits"),
        ("linear", "cross_entropy", "head", 1 << 20, "checkpoint() around linear and the cross_entropy"),
        ("attention_weights", "matmul", "", 1, "scaled_dot_product_attention() keeps none"),
        ("softmax", "matmul", "", 1, "if these are attention weights"),
        ("greater_equal", "where", "", 1, "dropout() keeps none, it draws it again"),
        ("silu", "multiply", "", 1, "computes silu again: a few flops a value"),
        ("multiply", "linear", "", 1, "if both factors are kept anyway"),
        ("layer_norm", "linear", "", 1, "keeps its input instead of its results"),
        ("view", "linear", "blocks.*.norm1", 1, "keeps its input instead of its results"),
        ("linear", "attention", "x", 1, "linear and the attention that reads it computes at most these two again"),
        ("relu", "relu", "blocks.*", 1, "checkpoint() of blocks.*, or of the block it is in"),
        ("", "", "", 1, "checkpoint() of the function with this line"),
    ],
)
def test_remedies_follow_from_facts(op, reader, module, largest, words):
    assert words in remedy(Kept("t.py:1", op, reader, module, largest, largest))


class Count:
    """Counts the bytes of living buffers."""

    def __init__(self):
        self.nbytes = 0

    def allocated(self, made):
        self.nbytes += made.nbytes

    def freed(self, gone):
        self.nbytes -= gone.nbytes


def units_kept(f):
    """What the tape of `f()` keeps, in units of 64 x 64 floats."""
    counter = Count()
    buffer.observers.append(counter)
    try:
        before = counter.nbytes
        y = gpuad.sum(f())
        y.item()
        return round((counter.nbytes - before) / (64 * 64 * 4))
    finally:
        buffer.observers.remove(counter)


@pytest.fixture
def leaves():
    rng = np.random.default_rng(0)
    return [gpuad.asarray(rng.uniform(0.1, 1, (64, 64)).astype("f4")).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize("name", KEEP_INPUTS)
def test_an_op_that_keeps_its_input_need_not_keep_its_output(name, leaves):
    """Its output is a unit, which the product after it keeps too."""
    x, a, b = leaves
    f = getattr(gpuad, name)
    assert units_kept(lambda: f(x @ a) @ b) == 2
    assert units_kept(lambda: checkpoint(lambda h: f(h) @ b)(x @ a)) == 1


def test_a_product_with_its_reader_keeps_less(leaves):
    x, a, b = leaves
    assert units_kept(lambda: checkpoint(lambda x: gpuad.gelu(x @ a))(x) @ b) == 1  # without, 2: see above


def test_two_factors_stand_for_their_product(leaves):
    x, a, b = leaves
    assert units_kept(lambda: ((x @ a) * (x @ b)) @ b) == 3
    assert units_kept(lambda: checkpoint(lambda p, q: (p * q) @ b)(x @ a, x @ b)) == 2


def test_the_input_of_a_norm_is_less_than_its_results(leaves):
    x, a, b = leaves
    weight = gpuad.ones((64,)).requires_grad_()
    assert units_kept(lambda: layer_norm(x @ a, weight) @ b) == 2
    assert units_kept(lambda: checkpoint(lambda h: layer_norm(h, weight) @ b)(x @ a)) == 1


# --- files ---------------------------------------------------------------------------------------


def test_json_is_exact_and_of_the_documented_form(tmp_path):
    Report([inference(), training()]).save_json(tmp_path / "a.json")
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {
        "version": 1,
        "device": "cpu:compiled",
        "notes": [],
        "runs": [
            {
                "name": "inference",
                "peak_bytes": 10240,
                "peak_phase": "forward",
                "by_category": {"parameter": 4096, "input": 1024, "temporary": 5120},
                "params": 0,
                "flops": 0,
                "extra_forward": None,
                "reconciliation": [],
            },
            {
                "name": "training",
                "peak_bytes": 31744,
                "peak_phase": "backward",
                "by_category": {
                    "parameter": 4096, "optimizer state": 8192, "input": 1024, "saved": 12288, "cotangent": 6144,
                },
                "params": 1024,
                "flops": 24576,
                "extra_forward": None,
                "reconciliation": [
                    {"row": "logical", "bytes": 31744, "quality": "exact"},
                    {"row": "pool reserved", "bytes": 40960, "quality": "exact"},
                    {"row": "process (NVML)", "bytes": None, "quality": "unavailable"},
                    {"row": "unexplained", "bytes": -2048, "quality": "sampled"},
                ],
            },
        ],
    }  # fmt: skip


VOID = {"meta", "br", "hr", "img", "link", "input", "path"}


class Page(HTMLParser):
    """Reads a page, and insists that what is opened is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.texts, self.scripts = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        (self.scripts if self.open and self.open[-1] == "script" else self.texts).append(data)


def hostile():
    """A profile with names that HTML and matplotlib could mistake for something."""
    p = training()
    p.name = '</script><b>"$x_1$'
    for b in p.blocks:
        b.line, b.module = "<a>&.py:1", "$m^{2<3"
    p.marks.append(Mark("<i>$", 2, 0))
    return p


def test_the_page_is_well_formed_and_escaped(tmp_path):
    Report([inference(), hostile()]).save_html(tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text("utf-8")
    page = Page(text)
    shown = "".join(page.texts)
    assert '</script><b>"$x_1$: peak 31.0 KiB in backward, linear at <a>&.py:1' in shown
    assert "$m^{2<3 " in shown and "<i>$" in shown and "NVML is <not> there" in shown
    assert "<b>$" not in text and "<a>" not in text and "<i>$" not in text
    assert len(page.scripts) == 2


def test_the_page_fetches_nothing(tmp_path):
    Report([inference(), training()]).save_html(tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text("utf-8")
    assert not {"src", "href", "srcset", "action", "poster"} & {name for name, _ in Page(text).attributes}
    assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttp|import\(", text)
    assert "default-src 'none'" in text


def test_the_page_has_the_values_of_each_event(tmp_path):
    p = training()
    Report([inference(), p]).save_html(tmp_path / "a.html")
    data = json.loads(Page((tmp_path / "a.html").read_text("utf-8")).scripts[0])
    assert data[1]["live"] == p.live and data[1]["events"] == list(range(len(p.live)))
    assert data[1]["series"]["saved"] == [n * K for n in (0, 0, 0, 7, 12, 12, 12, 12, 7, 7, 0, 0, 0, 0)]
    assert data[1]["phases"][6:8] == ["forward", "backward"]


def test_pictures_are_written(tmp_path):
    report = Report([inference(), hostile()])
    report.plot(tmp_path / "a.png")
    report.plot(tmp_path / "a.SVG")
    data = (tmp_path / "a.png").read_bytes()
    assert data.startswith(b"\x89PNG") and int.from_bytes(data[16:20], "big") >= 1200  # pixels wide
    root = ElementTree.parse(tmp_path / "a.SVG").getroot()
    assert root.tag.endswith("svg") and len(list(root.iter())) > 100
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.SVG", "a.png"]


def test_no_text_in_a_picture_leaves_it_or_lies_on_another():
    """Of every timeline and icicle, with marks close to each other and names that are too long."""
    p = training()
    p.marks += [Mark(f"a mark {k}", k, 0) for k in range(6)] + [Mark("w" * 60, 13, 0)]
    for b in p.blocks[3:]:
        b.module = "model.decoder.layers.17.attention.projection." + b.op
    drawn = plots.figure([inference(), p])
    drawn.canvas.draw()
    renderer = drawn.canvas.get_renderer()
    whole = drawn.bbox
    for axes in drawn.axes:
        boxes = [t.get_window_extent(renderer) for t in axes.texts if t.get_text()]
        assert all(whole.x0 <= b.x0 and b.x1 <= whole.x1 and whole.y0 <= b.y0 and b.y1 <= whole.y1 for b in boxes)
        for k, one in enumerate(boxes):
            assert not any(one.shrunk(0.9, 0.9).overlaps(other.shrunk(0.9, 0.9)) for other in boxes[:k])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda r, d: r.plot(d / "a.pdf"), r"plot\(\) writes .png and .svg, got"),
        (lambda r, d: r.plot(d / "a"), r"plot\(\) writes .png and .svg, got"),
        (lambda r, d: r.plot(d / "none" / "a.png"), "cannot write .*a.png: No such file"),
        (lambda r, d: r.save_json(d / "none" / "a.json"), "cannot write .*a.json: No such file"),
        (lambda r, d: r.save_html(d / "none" / "a.html"), "cannot write .*a.html: No such file"),
        (lambda r, d: r.save_html(d), "cannot write"),
        (lambda r, d: Report([]), r"Report\(\) got no profiles"),
        (lambda r, d: Report([inference()], limit=-1), r"Report\(\) got the limit -1"),
    ],
)
def test_what_cannot_be_done_leaves_no_file(call, says, tmp_path):
    folder = tmp_path / "there"
    folder.mkdir()
    with pytest.raises(DataError, match=says):
        call(Report([inference()]), folder)
    assert list(folder.iterdir()) == [] and list(tmp_path.iterdir()) == [folder]


def test_a_failure_while_writing_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.raises(DataError, match=r"cannot write .*a.png: No space left"):
        Report([inference()]).plot(path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(DataError, match=r"needs matplotlib.*\n  pip install 'gpuad\[plot\]'"):
        Report([inference()]).plot(tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_reports_do_not_import_matplotlib():
    code = "import sys, gpuad.memory.report, gpuad.memory.difference; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(gpuad.__file__).parents[1])


# --- what pictures show ----------------------------------------------------------------------------


def test_samples_keep_the_peak_the_lowest_points_and_the_marks():
    p = history(1, 3000)
    p.marks.append(Mark("here", 1234, 0))
    chosen = samples(p, 100)
    assert len(chosen) <= 110 and chosen == sorted(set(chosen))
    assert {p.peak_event, 1234, 0, len(p.live) - 1} <= set(chosen)
    assert min(p.live[e] for e in chosen) == min(p.live)


def test_phases_that_take_turns_are_one():
    """Setup has 40 of 100 events, then backward and recompute take turns of 2 for 40, and 20 are the step."""
    p = history(0, 100)
    turns = [(40 + 2 * k, ("backward", "recompute")[k % 2]) for k in range(20)]
    p.phases = [(0, "setup"), *turns, (80, "step")]
    assert spans(p, 0.1) == [(0, 40, "setup"), (40, 80, "backward + recompute"), (80, 100, "step")]
    assert len(spans(p, 0.001)) == 22


def test_ticks_are_powers_of_two():
    assert ticks(31 * K) == [k * 4 * K for k in range(8)]
    assert ticks(0) == [0]
    for top in range(1, 3000):
        assert 2 <= len(ticks(top)) <= 8 and ticks(top)[-1] <= top


def test_names_that_overlap_go_to_other_rows():
    assert stagger([(0, 10), (5, 15), (8, 20), (10, 20), (9, 12)], 2) == [0, 1, None, 0, None]


def test_cells_of_the_icicle_add_up():
    def check(node):
        if node.children:
            assert sum(child.nbytes for child in node.children) == node.nbytes
            assert all(child.nbytes for child in node.children)
        for child in node.children:
            check(child)

    for p in (training(), inference(), *map(history, range(3))):
        check(tree(p))
    root = tree(training())
    assert [(c.name, c.nbytes) for c in root.children] == [
        ("parameter", 4 * K), ("optimizer state", 8 * K), ("input", K), ("saved", 12 * K), ("cotangent", 6 * K),
    ]  # fmt: skip
    saved = root.children[3]
    assert [c.name for c in saved.children] == ["blocks.0.up", "blocks.0"]
    assert saved.children[0].children[0].name == "linear"
    assert saved.children[0].children[0].children[0].name == "t.py:5"


def test_colours_differ_for_all_who_see():
    """Neighbours in the stack differ in lightness or hue also as seen without red, green or blue receptors."""
    simulate = {  # Machado, Oliveira & Fernandes 2009, severity 1, on linear RGB
        "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
        "all": np.eye(3).tolist(),
    }
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])

    def lab(colour, matrix):
        rgb = np.array([int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)])
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        xyz = to_xyz @ np.clip(np.array(matrix) @ linear, 0, 1) / [0.9505, 1, 1.089]
        f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
        return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])

    colours = list(plots.COLOURS.values())
    for matrix in simulate.values():
        seen = [lab(c, matrix) for c in colours]
        assert min(np.linalg.norm(a - b) for a, b in itertools.pairwise(seen)) > 15


# --- differences -----------------------------------------------------------------------------------


def test_a_difference_lists_what_grew_and_what_shrank():
    found = difference(inference(), training())
    assert [(c.name, c.before, c.after, c.grown) for c in found.changes["category"]] == [
        ("saved", 0, 12 * K, 12 * K), ("optimizer state", 0, 8 * K, 8 * K), ("cotangent", 0, 6 * K, 6 * K),
        ("temporary", 5 * K, 0, -5 * K),
    ]  # fmt: skip
    # linear: 5 before; 7 saved and 6 of cotangent after
    assert [(c.name, c.grown) for c in found.changes["op"]] == [("linear", 8 * K), ("(no op)", 8 * K), ("gelu", 5 * K)]
    assert [(c.name, c.grown) for c in found.changes["line"]] == [
        ("t.py:6", 11 * K), ("t.py:2", 8 * K), ("t.py:5", 2 * K),
    ]  # fmt: skip
    shown = rows(found.table())
    assert shown["peak"] == [["10.0 KiB", "31.0 KiB", "+21.0 KiB"]]
    assert shown["temporary"] == [["5.00 KiB", "0 B", "-5.00 KiB"]]
    assert shown["in phase"] == [["forward", "backward"]]
    assert "input" not in shown


def test_a_long_difference_is_cut_and_adds_up():
    run = Run("b")
    run.phase("forward")
    for k in range(15):
        run.take(k + 1, "temporary", "op", f"t.py:{k}")
    shown = rows(str(difference(Profile("a", "cpu", [], [], [], [], []), run.profile)))
    assert shown["t.py:14"] == [["0 B", "15.0 KiB", "+15.0 KiB"]]
    assert shown["5 others"] == [["0 B", "15.0 KiB", "+15.0 KiB"]]  # 1 + 2 + 3 + 4 + 5
