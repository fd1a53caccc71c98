"""The text of kernels/attention.cpp, compiled alone: beside NumPy, PyTorch and, to the bit, itself."""

import ctypes
import functools
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

TEXT = (Path(__file__).parent.parent / "kernels" / "attention.cpp").read_text()
BLOCK = 64  # queries, or keys, of an item
PRELUDE = """
using int64 = long long;
using uint64 = unsigned long long;
#define DEVICE static inline
union Slot { void* p; int64 i; double d; float f; };
DEVICE float exp(float x) { return __builtin_expf(x); }
DEVICE double exp(double x) { return __builtin_exp(x); }
DEVICE float log(float x) { return __builtin_logf(x); }
DEVICE double log(double x) { return __builtin_log(x); }
"""
FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-fwrapv", "-fPIC")
WIDTHS = {  # the vectors of other processors, in the instructions of this one
    "native": ["-march=native"],
    "16 bytes": ["-U__AVX__", "-U__AVX512F__"],
    "64 bytes": ["-march=native", "-U__AVX512F__", "-D__AVX512F__=1", "-Wno-psabi"],
}
TOLERANCE = {"float32": 2e-5, "float64": 1e-12}

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


class Slot(ctypes.Union):
    _fields_ = (("p", ctypes.c_void_p), ("i", ctypes.c_longlong), ("d", ctypes.c_double), ("f", ctypes.c_float))


def compiled(flags, out):
    """What g++ makes of the text, at `out`."""
    source = out.with_suffix(".cpp")
    source.write_text(PRELUDE + TEXT)
    subprocess.run(["g++", *FLAGS, *flags, "-o", out, source], check=True)
    return out


@functools.cache
def library(width):
    with tempfile.TemporaryDirectory() as folder:
        return ctypes.CDLL(str(compiled([*WIDTHS[width], "-shared"], Path(folder) / "attention.so")))


# --- arrays of [batch, heads, positions, features] in memory that is laid out otherwise -------------


class Laid:
    """An array whose features alone are contiguous, in memory that is poisoned between its rows."""

    def __init__(self, shape, dtype, order=(0, 1, 2), gap=0):
        self.memory = np.full([shape[k] for k in order] + [shape[3] + gap], 777.0, dtype)
        self.gap = self.memory[..., shape[3] :]
        self.array = self.memory[..., : shape[3]].transpose(*np.argsort(order), 3)

    def slots(self):
        strides = [dict(i=s // self.array.itemsize) for s in self.array.strides[:3]]
        return [dict(p=self.array.ctypes.data), *strides]


class Problem:
    """Random q, k, v and g, and the results of the kernels for them."""

    def __init__(
        self, sizes, dtype="float32", causal=False, scale=None, order=(0, 1, 2), gap=0, width="native", seed=0
    ):
        self.batch, self.heads, self.queries, self.keys, self.features, self.values = sizes
        self.dtype, self.causal, self.width = np.dtype(dtype), causal, width
        self.scale = self.features**-0.5 if scale is None else scale
        lengths = dict(q=(self.queries, self.features), k=(self.keys, self.features), v=(self.keys, self.values))
        lengths["out"] = lengths["g"] = (self.queries, self.values)
        lengths |= {f"d{name}": lengths[name] for name in "qkv"}
        lead = (self.batch, self.heads)
        self.laid = {name: Laid(lead + length, dtype, order, gap) for name, length in lengths.items()}
        self.lse = np.full(lead + (self.queries,), 777.0, dtype)
        rng = np.random.default_rng(seed)
        for name in "qkvg":
            self[name][...] = rng.standard_normal(self[name].shape)

    def __getitem__(self, name):
        return self.laid[name].array

    def slots(self):
        sizes = [self.heads, self.queries, self.keys, self.features, self.values, self.causal]
        slots = [*[dict(i=n) for n in sizes], dict(d=self.scale), dict(p=self.lse.ctypes.data)]
        for name in ("q", "k", "v", "out", "g", "dq", "dk", "dv"):
            slots += self.laid[name].slots()
        return (Slot * len(slots))(*[Slot(**slot) for slot in slots])

    def items(self, entry):
        blocks = {"forward": self.queries, "backward_queries": self.queries, "backward_keys": self.keys}
        return self.batch * self.heads * (-(-blocks[entry] // BLOCK) if entry in blocks else 1)

    def call(self, entry, first=0, last=None):
        function = getattr(library(self.width), f"attention_{entry}_{self.dtype.name}")
        last = self.items(entry) if last is None else last
        function(self.slots(), ctypes.c_longlong(first), ctypes.c_longlong(last))

    def run(self):
        self.call("forward")
        self.call("backward")
        return self

    def results(self):
        return {name: self[name].copy() for name in ("out", "dq", "dk", "dv")} | {"lse": self.lse.copy()}


def reference(problem):
    """The same in float64 with a matrix of all scores."""
    q, k, v, g = (problem[name].astype(np.float64) for name in "qkvg")
    scores = q @ k.swapaxes(-1, -2) * problem.scale
    if problem.causal:
        scores = np.where(np.tri(problem.queries, problem.keys, dtype=bool), scores, -np.inf)
    top = scores.max(-1, keepdims=True, initial=-1e300)
    weights = np.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    weights = np.divide(weights, total, where=total != 0, out=np.zeros_like(weights))
    out = weights @ v
    slopes = problem.scale * weights * (g @ v.swapaxes(-1, -2) - (out * g).sum(-1, keepdims=True))
    with np.errstate(divide="ignore"):
        lse = (top + np.log(total))[..., 0]
    turned = slopes.swapaxes(-1, -2)
    return {"out": out, "dq": slopes @ k, "dk": turned @ q, "dv": weights.swapaxes(-1, -2) @ g, "lse": lse}


def check(problem):
    expected = reference(problem)
    for name, y in problem.results().items():
        size = max(1.0, np.abs(expected[name]).max(initial=0.0, where=np.isfinite(expected[name])))
        tolerance = TOLERANCE[problem.dtype.name]
        np.testing.assert_allclose(y, expected[name], rtol=tolerance, atol=tolerance * size, err_msg=name)
    for name, laid in problem.laid.items():
        assert (laid.gap == 777.0).all(), f"{name} was written between its rows"


def assert_same_bits(a, b):
    for name in a:
        assert a[name].tobytes() == b[name].tobytes(), name


# --- values ---------------------------------------------------------------------------------------

SIZES = [  # batch, heads, queries, keys, features, values
    (2, 3, 64, 64, 32, 32),
    (1, 1, 1, 1, 1, 1),
    (2, 1, 5, 9, 3, 7),
    (1, 2, 65, 130, 33, 17),
    (1, 1, 130, 65, 8, 40),
    (1, 1, 200, 200, 256, 256),
    (2, 2, 63, 64, 16, 5),
    (1, 1, 300, 100, 64, 48),
    (1, 1, 100, 300, 20, 12),
]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("width", WIDTHS)
def test_results_and_gradients_are_those_of_the_whole_matrix(width, dtype, causal):
    for sizes in SIZES:
        check(Problem(sizes, dtype, causal, width=width).run())


@given(
    sizes=st.tuples(*[st.integers(1, 3)] * 2, *[st.integers(0, 150)] * 2, *[st.integers(1, 70)] * 2),
    order=st.permutations([0, 1, 2]),
    gap=st.integers(0, 5),
    causal=st.booleans(),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_any_sizes_and_strides_will_do(sizes, order, gap, causal, dtype):
    check(Problem(sizes, dtype, causal, order=order, gap=gap).run())


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_pytorchs(torch, causal):
    problem = Problem((2, 3, 97, 97, 24, 24), "float64", causal, order=(0, 2, 1)).run()
    q, k, v, g = (torch.tensor(problem[name].copy(), requires_grad=name != "g") for name in "qkvg")
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
    out.backward(g)
    for name, expected in {"out": out.detach(), "dq": q.grad, "dk": k.grad, "dv": v.grad}.items():
        np.testing.assert_allclose(problem[name], expected.numpy(), rtol=1e-11, atol=1e-12, err_msg=name)


def test_one_array_may_hold_q_k_and_v():
    qkv = np.random.default_rng(0).standard_normal((2, 70, 3, 4, 16)).astype(np.float32)
    plain, packed = Problem((2, 4, 70, 70, 16, 16), causal=True), Problem((2, 4, 70, 70, 16, 16), causal=True)
    for place, name in enumerate("qkv"):
        plain[name][...] = qkv[:, :, place].transpose(0, 2, 1, 3)
        packed.laid[name].array = qkv[:, :, place].transpose(0, 2, 1, 3)
    assert_same_bits(plain.run().results(), packed.run().results())


@pytest.mark.parametrize("scale", [0.0, -0.5, 30.0])
def test_any_scale_will_do(scale):
    check(Problem((1, 2, 70, 150, 8, 8), "float64", True, scale=scale).run())


@pytest.mark.parametrize("causal", [False, True])
def test_a_query_without_keys_gives_zeros(causal):
    problem = Problem((2, 2, 70, 0, 4, 3), causal=causal).run()
    assert (problem["out"] == 0).all() and (problem["dq"] == 0).all() and (problem.lse == -np.inf).all()
    problem["dq"][...] = 777.0
    problem.call("backward_queries")
    assert (problem["dq"] == 0).all()


@pytest.mark.parametrize("queries", [0, 3, 64, 100])
def test_a_key_that_no_query_sees_gets_zeros(queries):
    problem = Problem((1, 2, queries, 200, 4, 3), causal=True).run()
    assert (problem["dk"][:, :, queries:] == 0).all() and (problem["dv"][:, :, queries:] == 0).all()
    once = problem.results()
    problem["dk"][...] = problem["dv"][...] = 777.0
    problem.call("backward_keys")
    assert_same_bits(once, problem.results())


# --- nan and infinity ------------------------------------------------------------------------------


def test_nan_spreads_to_what_depends_on_it_and_no_further():
    sizes, place = (1, 1, 150, 150, 8, 8), 70
    clean = Problem(sizes, causal=True).run().results()
    for name in "kv":
        problem = Problem(sizes, causal=True)
        problem[name][0, 0, place] = np.nan
        y = problem.run().results()
        assert np.isnan(y["out"][0, 0, place:]).all() and np.isnan(y["dq"][0, 0, place:]).all()
        for result in ("out", "dq"):
            assert (y[result][0, 0, :place] == clean[result][0, 0, :place]).all()
    for name in "qg":
        problem = Problem(sizes, causal=True)
        problem[name][0, 0, place] = np.nan
        y = problem.run().results()
        for result in ("dk", "dv") if name == "q" else ("dv",):
            assert np.isnan(y[result][0, 0, : place + 1]).all()
        for result in ("dk", "dv"):
            assert (y[result][0, 0, place + 1 :] == clean[result][0, 0, place + 1 :]).all()


def test_a_row_with_an_infinite_score_is_nan():
    problem = Problem((1, 1, 3, 100, 1, 2), "float64", scale=1.0)
    problem["q"][0, 0, :, 0] = [1.0, 2.0, -1.0]
    problem["k"][0, 0, 90, 0] = np.inf
    out = problem.run()["out"][0, 0]
    assert np.isnan(out[:2]).all() and np.isfinite(out[2]).all()  # softmax of inf is nan, of -inf a weight of 0
    assert np.isnan(problem["dq"][0, 0, :2]).all()


@pytest.mark.parametrize("finite", [False, True])
def test_scores_of_minus_infinity_weigh_nothing_unless_all_are(finite):
    problem = Problem((1, 1, 2, 200, 1, 2), "float64", scale=1.0)
    problem["q"][...] = 1.0
    problem["k"][...] = -np.inf  # whole tiles of it
    if finite:
        problem["k"][0, 0, 150] = 0.5
    out = problem.run()["out"][0, 0]
    expected = problem["v"][0, 0, 150] if finite else np.nan
    np.testing.assert_array_equal(out, np.broadcast_to(expected, (2, 2)))


def test_scores_that_exp_cannot_take_are_no_trouble():
    problem = Problem((1, 1, 70, 140, 4, 4), "float64", scale=2e4).run()
    expected = reference(problem)
    assert np.isfinite(problem["out"]).all()
    np.testing.assert_allclose(problem["out"], expected["out"], atol=1e-9)


# --- the same bits ---------------------------------------------------------------------------------

ENTRIES = ("forward", "backward", "backward_keys", "backward_queries")


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bits_do_not_depend_on_how_items_are_grouped_or_on_threads(dtype, causal):
    sizes = (2, 2, 150, 140, 20, 36)
    whole = Problem(sizes, dtype, causal).run().results()
    single = Problem(sizes, dtype, causal)
    for entry in ("forward", "backward"):
        for item in reversed(range(single.items(entry))):
            single.call(entry, item, item + 1)
    assert_same_bits(whole, single.results())
    threaded = Problem(sizes, dtype, causal)
    with ThreadPoolExecutor(2) as pool:
        for entry in ("forward", "backward"):
            cut = threaded.items(entry) // 3
            parts = [(0, cut), (cut, threaded.items(entry))]
            for future in [pool.submit(threaded.call, entry, *part) for part in parts]:
                future.result()
    assert_same_bits(whole, threaded.results())


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("lengths", [(150, 140), (40, 200), (200, 40)])
def test_a_head_at_a_time_and_a_block_at_a_time_give_the_same_bits(lengths, dtype, causal):
    sizes = (1, 2, *lengths, 20, 36)
    whole, parts = Problem(sizes, dtype, causal).run(), Problem(sizes, dtype, causal)
    for entry in ("forward", "backward_queries", "backward_keys"):
        for item in range(parts.items(entry)):
            parts.call(entry, item, item + 1)
    assert_same_bits(whole.results(), parts.results())


def test_no_items_write_nothing():
    problem = Problem((1, 1, 4, 4, 2, 2))
    for entry in ENTRIES:
        problem.call(entry, 0, 0)
    assert all((y == 777.0).all() for y in problem.results().values())


# --- the text --------------------------------------------------------------------------------------


def test_the_text_includes_nothing():
    assert "#include" not in TEXT


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names instructions of x86-64")
def test_products_are_vectors_of_fused_multiply_adds(tmp_path):
    text = compiled(["-march=haswell", "-S"], tmp_path / "attention.s").read_text()
    for instruction in ("vfmadd231ps", "vfmadd231pd"):
        lines = [line for line in text.splitlines() if instruction in line]
        assert sum("%ymm" in line for line in lines) >= 100, instruction
