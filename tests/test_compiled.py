"""The compiled engine: which kernels it runs, that bits are theirs alone, and what happens when compilers fail."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gpuad
from gpuad.errors import DeviceError
from gpuad.fuse import compiled, compiler, engines, host
from gpuad.fuse.kernel import watchers
from gpuad.nn import functional as F

pytestmark = pytest.mark.skipif(engines.engine() != "compiled", reason="needs a C++ compiler")
ROOT = Path(__file__).parent.parent


def tensor(*shape, seed=0, dtype=np.float32):
    return gpuad.asarray(np.random.default_rng(seed).standard_normal(shape).astype(dtype))


@pytest.fixture
def runs(monkeypatch):
    """The engines that ran, in order."""
    log = []
    for module, name in ((compiled, "compiled"), (host, "numpy")):
        job = module.job
        watched = lambda k, *rest, job=job, name=name: (log.append(name), job(k, *rest))[1]
        monkeypatch.setattr(module, "job", watched)
    return log


# --- which engine -------------------------------------------------------------------------------


def test_size_decides(runs):
    gpuad.exp(tensor(engines.SMALL)).numpy()
    gpuad.exp(tensor(engines.SMALL - 1)).numpy()
    assert runs == ["compiled", "numpy"]


def test_functions_of_one_value_a_row_are_compiled_wherever_they_stand(runs):
    x = tensor(3, 5)
    total = gpuad.sum(x * x, axis=-1, keepdims=True)
    total.numpy()
    gpuad.log(total).numpy()  # alone
    y = gpuad.log(gpuad.sum(x * x, axis=-1, keepdims=True)) * x
    y.numpy()  # by a function that a kernel of NumPy's calls
    (total * 2).numpy()  # exact in both engines
    assert runs == ["numpy", "compiled", "numpy", "numpy"]


def test_the_setting_is_checked():
    code = "import gpuad; print(gpuad.device('cpu').engine)"
    run = lambda **env: subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **env}, capture_output=True, text=True, cwd=ROOT
    )
    assert run(GPUAD_CPU_ENGINE="numpy").stdout == "numpy\n"
    assert run(GPUAD_CPU_ENGINE="compiled").stdout == "compiled\n"
    assert 'GPUAD_CPU_ENGINE is "numpy" or "compiled", got \'fast\'' in run(GPUAD_CPU_ENGINE="fast").stderr
    without = run(CXX="no-such-compiler")
    assert without.stdout == "numpy\n" and "CXX names 'no-such-compiler', which is not installed" in without.stderr
    refused = run(CXX="no-such-compiler", GPUAD_CPU_ENGINE="compiled")
    assert "GPUAD_CPU_ENGINE=compiled needs a C++ compiler" in refused.stderr


def test_the_meta_device_computes_nothing(runs):
    gpuad.exp(gpuad.zeros((100, 100), device="meta")).array
    assert runs == []


# --- bits ---------------------------------------------------------------------------------------

SHAPES = [(9000,), (100, 100), (3, 5000), (2, 3, 1500), (5000, 2), (1, 8200), (70, 130)]


def forms(x, b):
    """(fused, in steps) of the same values: the steps are written to memory between."""
    y = gpuad.exp(x) * b
    z = gpuad.exp(x)
    z.numpy()
    z = z * b
    z.numpy()
    return y, z


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bits_do_not_depend_on_what_is_fused(shape, dtype):
    x, b = tensor(*shape, dtype=dtype), tensor(shape[-1], seed=1, dtype=dtype)
    for reduce in (
        lambda y: y,
        lambda y: gpuad.sum(y),
        lambda y: gpuad.sum(y, axis=tuple(range(y.ndim - 1))) if y.ndim > 1 else y,
        lambda y: gpuad.sum(y, axis=-1),
        lambda y: gpuad.max(y, axis=-1) + gpuad.min(y),
        lambda y: F.softmax(y),
        lambda y: gpuad.sum(F.softmax(y) * b),
        lambda y: F.layer_norm(y, b),
    ):
        fused, stepwise = (reduce(y).numpy() for y in forms(x, b))
        assert fused.tobytes() == stepwise.tobytes()


STEPS = (
    lambda a, b, column, row: gpuad.exp(a * 0.3),
    lambda a, b, column, row: gpuad.tanh(a),
    lambda a, b, column, row: a * column + b,
    lambda a, b, column, row: a - row,
    lambda a, b, column, row: a * gpuad.sum(b * 0.01, axis=-1, keepdims=True),
    lambda a, b, column, row: F.softmax(a) + b * 0.1,
    lambda a, b, column, row: a - gpuad.max(b, axis=-1, keepdims=True),
    lambda a, b, column, row: F.layer_norm(a),
    lambda a, b, column, row: a * gpuad.log(gpuad.sum(gpuad.exp(b * 0.1), axis=-1, keepdims=True)),
)


@settings(max_examples=12, derandomize=True)
@given(
    st.sampled_from([(3, 4097), (2, 3, 5000), (1, 8193), (70, 130), (9000, 3), (30, 50)]),
    st.lists(
        st.tuples(st.sampled_from(range(len(STEPS))), st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=6
    ),
)
def test_bits_of_whole_programs_do_not_depend_on_what_is_fused(shape, program):
    def run(stepwise):
        values = [tensor(*shape)]
        column, row = tensor(shape[-1], seed=1), tensor(*shape[:-1], 1, seed=2)
        for step, i, j in program:
            value = STEPS[step](values[i % len(values)], values[j % len(values)], column, row)
            if stepwise:
                value.numpy()
            values.append(value)
        y = values[-1]
        results = [
            y,
            gpuad.sum(y),
            gpuad.sum(y, axis=0),
            gpuad.sum(y, axis=-1),
            gpuad.max(y, axis=-1, keepdims=True) * y,
        ]
        if not stepwise:
            gpuad.fuse.plan.realize_all([r.array for r in results])
        return [r.numpy().tobytes() for r in results]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "library", _any_library)
        assert run(False) == run(True)


def test_reductions_of_everything_and_of_rows_have_the_same_bits_together_and_apart():
    x = tensor(300, 400)
    y = x * 2
    together = [gpuad.sum(y), gpuad.sum(y, axis=0), gpuad.sum(y, axis=1), gpuad.exp(y)]
    gpuad.fuse.plan.realize_all([t.array for t in together])
    apart = [gpuad.sum(x * 2), gpuad.sum(x * 2, axis=0), gpuad.sum(x * 2, axis=1), gpuad.exp(x * 2)]
    for a, b in zip(together, apart, strict=True):
        assert a.numpy().tobytes() == b.numpy().tobytes()


PROGRAM = """
import gpuad, hashlib, numpy as np
from gpuad.nn import functional as F
rng = np.random.default_rng(0)
x = gpuad.asarray(rng.standard_normal((517, 643)).astype("f4")).requires_grad_()
w = gpuad.asarray(rng.standard_normal(643).astype("f4")).requires_grad_()
q = gpuad.asarray(rng.standard_normal((3, 70, 3, 4, 16)).astype("f4")).requires_grad_()
y = F.gelu(F.layer_norm(x, w)) * F.softmax(x)
z = gpuad.ops.attention.attend_packed(q, causal=True, scale=0.25)
(gpuad.sum(y) + gpuad.sum(z * z)).backward()
bits = b"".join(t.numpy().tobytes() for t in (y, z, x.grad, w.grad, q.grad))
print(hashlib.sha256(bits).hexdigest())
"""


def test_bits_do_not_depend_on_the_number_of_threads():
    said = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, "GPUAD_CPU_THREADS": n, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for n in ("1", "2", "3", "7")
    }
    assert len(said) == 1


@given(
    st.lists(st.integers(0, 70), min_size=1, max_size=4),
    st.sampled_from(["sum", "max", "min", "prod", "any", "all"]),
    st.sampled_from(["float32", "float64", "int32", "int64", "uint8", "bool"]),
    st.integers(0, 3),
)
def test_reductions_are_numpys(shape, name, dtype, axis):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 3, shape).astype(dtype)
    axes = None if axis >= len(shape) else axis
    if name in ("max", "min") and (x.size == 0 or dtype == "bool"):
        return
    t = gpuad.asarray(x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "compiles", lambda kernel: True)
        patch.setattr(compiled, "library", _any_library)
        got = getattr(gpuad, name)(t, axis=axes).numpy()
    np.testing.assert_allclose(got, getattr(np, name)(x, axis=axes), rtol=1e-5)


def _any_library(text, *options, library=compiler.library):
    return library(text, "-O1", *options)  # many small kernels: the compiler's time counts


@pytest.mark.parametrize("shape", [(64, 20000), (4, 300000), (3, 4097)])
def test_a_total_of_wide_rows_is_apart_from_what_reduces_them(shape):
    x = tensor(*shape)
    total, rows = gpuad.sum(x), gpuad.sum(x, axis=-1, keepdims=True)
    gpuad.fuse.plan.realize_all([total.array, rows.array])
    exact = x.numpy().astype(np.float64)
    np.testing.assert_allclose(rows.numpy(), exact.sum(-1, keepdims=True), atol=1e-2)
    np.testing.assert_allclose(total.numpy(), exact.sum(), atol=1e-1)
    w, z = tensor(*shape).requires_grad_(), gpuad.asarray(np.full((shape[0], 1), 2, np.float32))
    loss = gpuad.sum(gpuad.pow(w, z))
    loss.backward()
    np.testing.assert_allclose(w.grad.numpy(), 2 * w.numpy(), rtol=1e-5)
    np.testing.assert_allclose(loss.numpy(), (exact**2).sum(), rtol=1e-5)


def test_counting_by_fractions_is_not_counting_by_integers():
    for first, last, step in ((0, 20000, 1), (0.5, 20000, 1), (0, 1, 0.00005), (0.0, 10000.0, 1)):
        got = gpuad.arange(first, last, step, dtype="float64").numpy()
        np.testing.assert_allclose(got, np.arange(first, last, step), rtol=1e-12)


@pytest.mark.parametrize("shape", [(30, 50), (100, 200), (9000, 1), (30, 1)])
def test_functions_of_rows_leave_the_bits_of_small_kernels_alone(shape):
    def program(stepwise):
        x = tensor(*shape, seed=1)
        p = gpuad.exp(x)
        square = gpuad.square(x)
        rows = gpuad.sum(square, axis=-1, keepdims=True)
        logs = gpuad.log(rows)
        y = p * logs
        total = gpuad.sum(logs)
        for t in (p, square, rows, logs, y) if stepwise else ():
            t.numpy()
        return y.numpy(), total.numpy()

    for fused, steps in zip(program(False), program(True), strict=True):
        assert fused.tobytes() == steps.tobytes()


def test_arrays_in_records_are_read_where_they_lie():
    records = np.zeros(20000, dtype=[("a", "u1"), ("b", "<f4"), ("c", "u1")])
    records["b"] = np.arange(20000)
    x = gpuad.asarray(records["b"], copy=False)
    np.testing.assert_array_equal((x * 2).numpy(), np.arange(20000) * 2.0)
    raw = np.zeros(80001, np.uint8)[1:].view(np.float32)
    raw[:] = np.arange(20000)
    np.testing.assert_array_equal((gpuad.asarray(raw, copy=False) * 2).numpy(), np.arange(20000) * 2.0)


@pytest.mark.parametrize("scalar", [1e300, 10**40, -(10**60)])
def test_a_scalar_beyond_the_dtype_is_infinite_in_silence(scalar):
    y = (gpuad.ones((100, 100)) * scalar).numpy()
    assert np.isinf(y).all()


def test_rows_of_floats_and_doubles_lie_aligned_in_scratch():
    x = tensor(3001, 7)
    e = gpuad.exp(x)
    y = e / gpuad.sum(gpuad.astype(e, "float64") * 1.5, axis=-1, keepdims=True)
    exact = np.exp(x.numpy().astype(np.float64))
    np.testing.assert_allclose(y.numpy(), exact / (exact * 1.5).sum(-1, keepdims=True), rtol=1e-6)


def test_one_very_long_row_is_summed():
    x = gpuad.ones((1, 30_000_000))
    assert gpuad.sum(x, axis=-1).item() == 3e7


# --- threads ------------------------------------------------------------------------------------


def test_many_python_threads_may_compute():
    x = tensor(300, 400)
    expected, found = (gpuad.tanh(x) * x).numpy(), []

    def work():
        for _ in range(20):
            found.append((gpuad.tanh(x) * x).numpy())

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 160 and all(y.tobytes() == expected.tobytes() for y in found)


FORK = """
import os, gpuad, numpy as np
x = gpuad.asarray(np.ones((1000, 1000), "f4"))
before = gpuad.sum(gpuad.exp(x)).item()
pid = os.fork()
if pid == 0:
    os._exit(0 if gpuad.sum(gpuad.exp(x)).item() == before else 1)
assert os.waitpid(pid, 0)[1] == 0
assert gpuad.sum(gpuad.exp(x)).item() == before
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_has_threads_of_its_own():
    env = {**os.environ, "GPUAD_CPU_THREADS": "3", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORK], env=env, check=True, timeout=60)


# --- the compiler and its cache -----------------------------------------------------------------


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """A cache of the test's own, and functions that look again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiler.cache.cache_clear()
    yield tmp_path / "gpuad"
    compiler.cache.cache_clear()


TEXT = 'extern "C" int answer() { return %d; }'


def test_a_library_is_compiled_once_and_found_again(own_cache, monkeypatch):
    assert compiler.library(TEXT % 41).answer() == 41
    (made,) = own_cache.iterdir()
    assert own_cache.stat().st_mode & 0o777 == 0o700 and made.suffix == ".so"
    monkeypatch.setattr(compiler, "compile_to", lambda *_: pytest.fail("compiled again"))
    assert compiler.library(TEXT % 41).answer() == 41


def test_what_differs_in_text_or_flags_is_another_library(own_cache):
    compiler.library(TEXT % 1)
    compiler.library(TEXT % 2)
    compiler.library(TEXT % 1, "-DSOMETHING")
    assert len(list(own_cache.iterdir())) == 3


def test_a_cache_that_others_can_write_is_not_used(own_cache):
    own_cache.mkdir(mode=0o777)
    own_cache.chmod(0o777)
    assert compiler.library(TEXT % 3).answer() == 3
    assert compiler.cache() != own_cache and not list(own_cache.iterdir())


def test_a_library_that_others_can_write_is_made_again(own_cache):
    compiler.library(TEXT % 4)
    (made,) = own_cache.iterdir()
    made.unlink()
    made.write_bytes(b"not ours")
    made.chmod(0o777)
    assert compiler.library(TEXT % 4).answer() == 4
    assert made.stat().st_mode & 0o777 == 0o700


def test_a_damaged_library_is_made_again(own_cache):
    compiler.library(TEXT % 6)
    (path,) = own_cache.iterdir()
    path.unlink()
    path.write_bytes(b"half")
    path.chmod(0o700)
    assert compiler.library(TEXT % 6).answer() == 6


def test_an_interrupted_compilation_leaves_nothing(own_cache, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    compiler.identity()
    compiler.flags()
    monkeypatch.setattr(compiler, "_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compiler.library(TEXT % 5)
    assert not list(own_cache.iterdir())


def test_a_kernel_that_the_compiler_refuses_runs_with_numpy(monkeypatch):
    def refuse(*_):
        raise compiler.CompilerError("no")

    monkeypatch.setattr(compiled, "library", refuse)
    x = tensor(97, 101)
    with pytest.warns(RuntimeWarning, match="a kernel runs with NumPy, which is slower: no"):
        y = (gpuad.expm1(x) + gpuad.log1p(gpuad.abs(x))).numpy()
    np.testing.assert_allclose(y, np.expm1(x.numpy()) + np.log1p(np.abs(x.numpy())), rtol=1e-6)


def test_a_compiler_that_was_killed_is_asked_again(monkeypatch):
    def killed(*_):
        raise compiler.CompilerError("killed", passing=True)

    run = lambda: (gpuad.log1p(gpuad.abs(tensor(91, 103))) * 3).numpy()
    with monkeypatch.context() as patch, pytest.warns(RuntimeWarning, match="killed"):
        patch.setattr(compiled, "library", killed)
        run()
    run()  # without a warning


def test_a_folder_that_cannot_be_used_is_replaced_by_a_temporary_one(own_cache, monkeypatch):
    compiler.library(TEXT % 7)
    compile_to = compiler.compile_to

    def full(path, *rest):
        if path.parent == own_cache:
            raise OSError(28, "No space left on device")
        compile_to(path, *rest)

    monkeypatch.setattr(compiler, "compile_to", full)
    assert compiler.library(TEXT % 8).answer() == 8
    monkeypatch.setattr(compiler, "compile_to", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(compiler.CompilerError, match="no compiled kernel can be kept or loaded"):
        compiler.library(TEXT % 9)


def test_no_shell_sees_the_compilers_name(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", f"g++; touch {tmp_path / 'touched'}")
    compiler.command.cache_clear()
    try:
        with pytest.raises(compiler.CompilerError, match="CXX names"):
            compiler.command()
    finally:
        monkeypatch.undo()
        compiler.command.cache_clear()
    assert not (tmp_path / "touched").exists()


def test_the_engine_is_asked_for_by_name(monkeypatch):
    monkeypatch.setenv("GPUAD_CPU_ENGINE", "quick")
    with pytest.raises(DeviceError, match="GPUAD_CPU_ENGINE"):
        engines.engine.__wrapped__()


# --- memory -------------------------------------------------------------------------------------


def test_results_take_over_memory_of_their_inputs():
    x = tensor(400, 300)
    y = gpuad.exp(x)
    y.numpy()
    place = y.array.data.ctypes.data
    expected = np.exp(x.numpy().astype(np.float64)) * 2 + 1
    z = y * 2 + 1
    del y
    assert z.numpy().ctypes.data == place
    np.testing.assert_allclose(z.numpy(), expected, rtol=1e-6)


def test_kernels_read_views_of_any_layout():
    x = np.random.default_rng(0).standard_normal((60, 50, 40)).astype(np.float32)
    t = gpuad.asarray(x)
    for view in (lambda a: a[::2, 1:, ::3], lambda a: a[:, :, 0], lambda a: a.transpose(2, 0, 1), lambda a: a[:, ::-1]):
        got = (gpuad.exp(_view(t, view)) * 2).numpy()
        np.testing.assert_allclose(got, np.exp(view(x)) * 2, rtol=1e-6)


def _view(t, view):
    if view(np.zeros((60, 50, 40))).shape == (40, 60, 50):
        return gpuad.permute_dims(t, (2, 0, 1))
    return view(t)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_random_numbers_are_those_of_the_other_engine(dtype, monkeypatch):
    draw = lambda: gpuad.random.uniform((300, 101), dtype=dtype, generator=gpuad.random.Generator(7)).numpy()
    compiled_ones = draw()
    monkeypatch.setattr(engines, "engine", lambda: "numpy")
    np.testing.assert_array_equal(compiled_ones, draw())


def test_kernels_are_seen_by_watchers():
    seen = []
    watch = lambda kernel: seen.append(kernel.ops)
    watchers.append(watch)
    try:
        gpuad.sin(tensor(100, 100)).numpy()
    finally:
        watchers.remove(watch)
    assert seen == [("sin",)]
