"""The functions of the compiled CPU engine, over the whole range of both dtypes, beside the C library's long double."""

import ctypes
import functools
import platform
import re
import shutil
import subprocess

import numpy as np
import pytest

from gpuad.fuse.functions import ERRORS, HOST_FUNCTIONS

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
FLAGS = ["-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-fwrapv"]
FLAGS += ["-shared", "-fPIC"]
DTYPES = {"float": np.dtype(np.float32), "double": np.dtype(np.float64)}
TYPES = """
using int32 = int;
using int64 = long long;
using uint32 = unsigned int;
using uint64 = unsigned long long;
#define DEVICE static inline __attribute__((always_inline))
"""
OF_TWO = ("pow", "atan2", "hypot", "fmod", "copysign", "nextafter")


def loop(name, c, result, function):
    """An entry that applies `function` to each element of arrays of `c`, on a line of its own."""
    parameters, operands = (
        (f"const {c}* x, const {c}* z", "x[i], z[i]") if name in OF_TWO else (f"const {c}* x", "x[i]")
    )
    return (
        f'extern "C" void {name}_{c}({parameters}, {result}* __restrict y, long long n) '
        f"{{ for (long long i = 0; i < n; ++i) y[i] = {function}({operands}); }}"
    )


def loops():
    """A loop of each of our functions."""
    return [loop(name, c, c, name) for name in ERRORS for c in DTYPES]


def references():
    """A loop of each function of the C library in long double, but for the next number, which depends on the type."""
    suffixes = {(name, c): "l" for name in ERRORS for c in DTYPES}
    suffixes["nextafter", "float"], suffixes["nextafter", "double"] = "f", ""
    return [loop(name, c, "long double", f"__builtin_{name}{suffix}") for (name, c), suffix in suffixes.items()]


def compiled(folder, name, text, *flags):
    """The path of the library made of `text`, and what the compiler reports."""
    source, library = folder / f"{name}.cpp", folder / f"{name}.so"
    source.write_text(text)
    command = ["g++", *FLAGS, *flags, str(source), "-o", str(library), "-lm"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return str(library), run.stderr


OURS = "\n".join([TYPES + HOST_FUNCTIONS, *loops()])


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """Our functions, as the engine compiles them."""
    return ctypes.CDLL(compiled(tmp_path_factory.mktemp("ours"), "ours", OURS, "-march=native")[0])


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Our functions for the least processor, one element at a time."""
    return ctypes.CDLL(compiled(tmp_path_factory.mktemp("plain"), "plain", OURS, "-fno-tree-vectorize")[0])


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    """The C library's functions, in long double."""
    return ctypes.CDLL(compiled(tmp_path_factory.mktemp("exact"), "exact", "\n".join(references()))[0])


@pytest.fixture(scope="module")
def vectorized(tmp_path_factory):
    """The loops that become vector instructions on a processor with AVX2, by function and type."""
    _, report = compiled(
        tmp_path_factory.mktemp("report"), "report", OURS, "-march=x86-64-v3", "-fopt-info-vec-optimized"
    )
    lines = OURS.splitlines()
    found = re.findall(r"\.cpp:(\d+):\d+: optimized: loop vectorized", report)
    entries = [re.match(r'extern "C" void (\w+)_(\w+)\(', lines[int(k) - 1]) for k in found]
    return {entry.groups() for entry in entries if entry}


def call(library, name, c, arrays, dtype):
    y = np.empty(arrays[0].shape, dtype)
    arrays = [np.ascontiguousarray(a) for a in arrays]
    function = getattr(library, f"{name}_{c}")
    function(*[ctypes.c_void_p(a.ctypes.data) for a in (*arrays, y)], ctypes.c_longlong(y.size))
    return y


@functools.cache
def points(c):
    """Numbers of every size and sign: random bits, and crowds where functions bend, overflow or underflow."""
    dtype = DTYPES[c]
    rng = np.random.default_rng(0)
    integer = np.dtype(f"i{dtype.itemsize}")
    bits = rng.integers(np.iinfo(integer).min, np.iinfo(integer).max, 60_000, integer).view(dtype)
    info = np.finfo(dtype)
    special = np.array([0, info.smallest_subnormal, info.tiny, info.max, 1, np.inf, np.nan], dtype)
    knees = [0.35, 0.4142135, 0.5, 0.625, 0.7071, 1, 1.125, 1.4142, 2, 2.4142135, 4.1, 6.1, 20, 40, 80, 1e17]
    knees += [np.log(float(info.max)), -np.log(float(info.smallest_subnormal)), -np.log(float(info.tiny))]
    knees += [float(info.maxexp), float(-info.minexp), float(-info.minexp + info.nmant), 10, 26.5, 1e6, 1e9, 2.0**28]
    turns = np.arange(1, 20_000) * (np.pi / 2)
    near = [k * (1 + rng.uniform(-reach, reach, 300)) for k in knees for reach in (1e-15, 1e-7, 1e-3)]
    even = [rng.uniform(-reach, reach, 12_000) for reach in (0.5, 1, 2, 10, 120, 800, 1e5, 1e12)]
    small = 2.0 ** rng.uniform(-60, 0, 12_000)
    with np.errstate(all="ignore"):
        steps = [np.nextafter(special, dtype.type(s)) for s in (-np.inf, np.inf)]
        together = np.concatenate([*near, *even, small, -1 + small, 1 + small, turns]).astype(dtype)
        whole = np.concatenate([bits, special, *steps, together, np.arange(-200, 200).astype(dtype)])
    return np.concatenate([whole, -whole])


def pairs(c):
    """Pairs of such numbers: any two, two of one size, any base with a small exponent, every two special ones."""
    x = points(c)
    rng = np.random.default_rng(1)
    anything, other = rng.permutation(x)[:60_000], rng.permutation(x)[:60_000]
    with np.errstate(all="ignore"):
        like = (anything * 2.0 ** rng.uniform(-3, 3, anything.size)).astype(x.dtype)
        exponents = np.round(rng.uniform(-40, 40, anything.size) * 4) / 4
    info = np.finfo(x.dtype)
    edges = np.array([0, info.smallest_subnormal, info.tiny, 0.5, 1, 2, 3, 1e30, info.max, np.inf, np.nan], x.dtype)
    edges = np.concatenate([edges, -edges])
    a = [anything, anything, anything, np.repeat(edges, edges.size), np.abs(anything)]
    b = [other, like, exponents, np.tile(edges, edges.size), rng.uniform(-150, 150, anything.size)]
    with np.errstate(all="ignore"):
        return np.concatenate(a).astype(x.dtype), np.concatenate(b).astype(x.dtype)


def errors(y, exact):
    """How far `y` is from `exact`, in units in the last place of what `exact` rounds to; 0 for the right infinity."""
    with np.errstate(all="ignore"):
        rounded = exact.astype(y.dtype)
        unit = np.spacing(np.abs(np.where(np.isfinite(rounded), rounded, np.finfo(y.dtype).max)))
        away = np.abs(y.astype(np.longdouble) - exact) / unit
    same = (y == rounded) & ~np.isfinite(rounded) | np.isnan(y) & np.isnan(rounded)
    at_edge = np.isinf(y) != np.isinf(rounded)  # the exact value lies between the largest number and infinity
    with np.errstate(all="ignore"):
        beyond = np.abs(exact) / np.finfo(y.dtype).max - 1
        away = np.where(at_edge & (np.sign(y) == np.sign(exact)), np.abs(beyond) / np.finfo(y.dtype).eps, away)
    return np.where(same, 0, np.where(np.isnan(away), np.inf, away)).astype(np.float64)


@pytest.mark.parametrize("c", DTYPES)
@pytest.mark.parametrize("name", ERRORS)
def test_values_are_within_the_stated_bound(ours, exact, name, c):
    x = pairs(c) if name in OF_TWO else (points(c),)
    y = call(ours, name, c, x, DTYPES[c])
    reference = call(exact, name, c, x, np.longdouble)
    away = errors(y, reference)
    worst = np.argmax(away)
    assert away[worst] <= ERRORS[name][c == "double"], (away[worst], [a[worst] for a in x], y[worst], reference[worst])
    zero = (reference == 0) & (y == 0)
    assert np.array_equal(np.signbit(y[zero]), np.signbit(reference[zero]))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="asks for instructions of x86-64")
def test_loops_of_every_function_are_vectorized(vectorized):
    assert sorted({(name, c) for name in ERRORS for c in DTYPES} - vectorized) == []


@pytest.mark.parametrize("c", DTYPES)
@pytest.mark.parametrize("name", ERRORS)
def test_bits_depend_on_neither_place_nor_processor(ours, plain, name, c):
    x = pairs(c) if name in OF_TWO else (points(c),)
    y = call(ours, name, c, x, DTYPES[c])
    nan = np.isnan(y)
    for other in (
        call(plain, name, c, x, DTYPES[c]),
        np.concatenate([call(ours, name, c, [a[k : k + 1003] for a in x], DTYPES[c]) for k in range(0, y.size, 1003)]),
    ):
        assert np.array_equal(nan, np.isnan(other))
        assert y[~nan].tobytes() == other[~nan].tobytes()


def test_no_header_is_needed_and_names_are_not_the_c_library_s(tmp_path):
    assert "#include" not in HOST_FUNCTIONS
    text = """
template <typename A, typename B> constexpr bool same = false;
template <typename A> constexpr bool same<A, A> = true;
static_assert(same<decltype(exp(1.0f)), float> && same<decltype(exp(1.0)), double>);
static_assert(same<decltype(abs(-1)), int> && same<decltype(abs(-1.0f)), float> && same<decltype(min(1, 2)), int>);
extern "C" int32 check() {
    int32 word;
    const float one = 1.0f;
    memcpy(&word, &one, sizeof word);
    return word == 0x3f800000 && abs(-3) == 3 && abs(int64(-4)) == 4 && min(2, 1) == 1 && max(2.0, 1.0) == 2.0 &&
        signbit(-0.0f) && signbit(-0.0) && !signbit(0.0f) && INFINITY > 3e38f && NAN != NAN;
}
"""
    assert ctypes.CDLL(compiled(tmp_path, "checks", TYPES + HOST_FUNCTIONS + text)[0]).check() == 1
