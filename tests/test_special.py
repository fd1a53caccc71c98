"""The functions NumPy lacks, against SciPy over the whole range of both dtypes."""

import threading
from collections.abc import Callable

import numpy as np
import pytest
import scipy.special

from gpuad.devices import special
from gpuad.devices.special import FITS, GELU_TANH, Floats

Reference = Callable[[Floats], Floats]
ROOT_HALF_PI = np.sqrt(np.pi / 2)


def normal_mass_below(x: Floats) -> Floats:
    """SciPy's ndtr, less exact than ours where x is very negative, with its exponent in long double there."""
    tail = scipy.special.erfcx(-x / np.sqrt(2)) / 2 * np.exp(-(x.astype(np.longdouble) ** 2) / 2)
    return np.where(x < -1, tail, scipy.special.ndtr(x)).astype(np.float64)


# name: the reference in float64, and a bound on the error in units of eps relative to the result, as a function of x
CASES: dict[str, tuple[Reference, Reference]] = {
    "erf": (scipy.special.erf, lambda x: 2 + 0 * x),
    "gelu": (lambda x: x * normal_mass_below(x), lambda x: 6 + np.where(x < 0, x * x / 2, 0)),
    "gelu_gate": (
        lambda x: scipy.special.expit(2 / ROOT_HALF_PI * (x + 0.044715 * x**3)),
        lambda x: 4 + np.where(x < 0, 4 * np.abs(x) + 0.18 * np.abs(x) ** 3, 0),
    ),
    "sigmoid": (scipy.special.expit, lambda x: 4 + 0 * x),
    "softplus": (lambda x: np.logaddexp(0, x), lambda x: 4 + 0 * x),
    "rsqrt": (lambda x: 1 / np.sqrt(np.abs(x)), lambda x: 2 + 0 * x),
    "relu": (lambda x: np.maximum(x, 0), lambda x: 0 * x),
}
# Where exp overflows, results that should be just above the smallest normal number are 0.
UNDERFLOW = {"float32": 1e-36, "float64": 1e-304}

function = pytest.mark.parametrize("name", CASES)
floats = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def evaluate(name: str, x: Floats, out: Floats | None = None) -> Floats:
    """The function's values, where any floating point flag but underflow is an error."""
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        return getattr(special, name)(x, out=out)


def every_size(dtype: type) -> Floats:
    """Finite numbers of all magnitudes and both signs: random bits, and points crowded where functions bend."""
    rng = np.random.default_rng(0)
    integers = np.int32 if dtype is np.float32 else np.int64
    bits = rng.integers(np.iinfo(integers).min, np.iinfo(integers).max, 20_000, integers).view(dtype)
    largest = np.finfo(dtype)
    edges = [0.0, -0.0, largest.tiny, -largest.tiny, largest.smallest_subnormal, largest.max, largest.min]
    knees = [s * k * (1 + d) for k in (1, 1.125, 4.1, 6.1, 14.5, 39) for s in (1, -1) for d in (-1e-6, 0, 1e-6)]
    near = [rng.uniform(-reach, reach, 20_000) for reach in (2, 7, 45, 120, 800)]
    return np.concatenate([bits[np.isfinite(bits)], np.concatenate([edges, knees, *near]).astype(dtype)])


def same_bits(a: Floats, b: Floats) -> bool:
    """Equal, the sign of zero included; which nan is left to the processor."""
    nan = np.isnan(a)
    return a.dtype == b.dtype and np.array_equal(nan, np.isnan(b)) and a[~nan].tobytes() == b[~nan].tobytes()


@function
@floats
def test_values_are_accurate_at_every_size(name, dtype):
    reference, bound = CASES[name]
    x = every_size(dtype)
    with np.errstate(all="ignore"):
        exact = reference(x.astype(np.float64))
        error = np.abs(evaluate(name, np.abs(x) if name == "rsqrt" else x) - exact)
        units = bound(np.clip(x.astype(np.float64), -50, 50))  # beyond that, results are 0 or exact
    allowed = units * np.finfo(dtype).eps * np.abs(exact) + UNDERFLOW[dtype.__name__]
    ordinary = np.isfinite(exact)
    assert x[ordinary][~(error <= allowed)[ordinary]].tolist() == []


@floats
def test_erf_is_within_two_units_in_the_last_place(dtype):
    x = np.concatenate([np.linspace(-7, 7, 200_001), 2.0 ** np.linspace(-140, 0, 20_000)]).astype(dtype)
    exact = scipy.special.erf(x.astype(np.float64))
    units = 2 if dtype is np.float32 else 3  # SciPy's own error is in the last one
    assert (np.abs(evaluate("erf", x) - exact) <= units * np.spacing(np.abs(exact).astype(dtype))).all()


@floats
def test_erf_is_odd_never_above_one_and_never_decreases(dtype):
    x = np.linspace(0, 7, 100_001).astype(dtype)
    y = evaluate("erf", x)
    assert same_bits(evaluate("erf", -x), -y)
    assert y.max() == 1
    assert np.diff(y).min() >= -np.finfo(dtype).eps / 2


@function
@floats
def test_finite_input_never_warns(name, dtype):
    x = every_size(dtype)
    y = evaluate(name, x)
    expected = x >= 0 if name == "rsqrt" else np.isfinite(x)
    assert not np.isnan(y[expected]).any()


@pytest.mark.parametrize(
    "name, at_minus_infinity, at_infinity",
    [
        ("erf", -1, 1),
        ("gelu", 0, np.inf),
        ("gelu_gate", 0, 1),
        ("sigmoid", 0, 1),
        ("softplus", 0, np.inf),
        ("rsqrt", np.nan, 0),
        ("relu", 0, np.inf),
    ],
)
@floats
def test_infinities_give_the_limit_and_nan_gives_nan(name, at_minus_infinity, at_infinity, dtype):
    y = evaluate(name, np.array([-np.inf, np.inf, np.nan] * 5, dtype))
    np.testing.assert_array_equal(y, np.array([at_minus_infinity, at_infinity, np.nan] * 5, dtype))


@pytest.mark.parametrize("name", ["erf"])
@floats
def test_zero_keeps_its_sign(name, dtype):
    y = evaluate(name, np.array([0.0, -0.0], dtype))
    assert (y == 0).all() and np.signbit(y).tolist() == [False, True]


@floats
def test_erf_of_a_subnormal_is_subnormal(dtype):
    x = np.arange(1, 9) * np.finfo(dtype).smallest_subnormal
    np.testing.assert_allclose(
        evaluate("erf", x), x * 1.1283791670955126, atol=np.finfo(dtype).smallest_subnormal, rtol=0
    )


@function
@floats
def test_bits_do_not_depend_on_the_block(name, dtype):
    x = np.concatenate([every_size(dtype)[:12_345], np.array([np.nan, np.inf, -np.inf], dtype)])
    whole = evaluate(name, x)
    for step in (1, 7, 64, 1001):
        short = x[: 300 * step]
        pieces = [evaluate(name, short[i : i + step]) for i in range(0, short.size, step)]
        assert same_bits(np.concatenate(pieces), whole[: short.size])
    assert same_bits(evaluate(name, x[::-1].copy())[::-1], whole)
    assert same_bits(evaluate(name, x[::3]), whole[::3])


@function
@floats
def test_out_may_be_the_input(name, dtype):
    x = every_size(dtype)
    expected = evaluate(name, x)
    out = np.empty_like(x)
    assert evaluate(name, x, out) is out
    assert same_bits(out, expected)
    assert same_bits(evaluate(name, x, x), expected)


@function
@floats
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (2, 3, 4)])
def test_any_shape_keeps_its_shape_and_dtype(name, dtype, shape):
    y = evaluate(name, np.ones(shape, dtype))
    assert isinstance(y, np.ndarray) and y.shape == shape and y.dtype == dtype


@function
@floats
def test_a_numpy_scalar_will_do(name, dtype):
    out = np.empty((), dtype)
    assert evaluate(name, dtype(0.7), out) is out
    assert same_bits(out, evaluate(name, np.array(0.7, dtype)))


def test_threads_do_not_share_temporaries():
    x = np.linspace(-5, 5, 4096, dtype=np.float32)
    expected = {name: evaluate(name, x) for name in CASES}
    wrong: list[str] = []

    def work() -> None:
        wrong.extend(name for _ in range(20) for name in CASES if not same_bits(evaluate(name, x), expected[name]))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_temporaries_are_kept_for_few_shapes_and_no_large_one():
    for size in range(1, 20):
        special.gelu(np.ones(size, np.float32))
    special.gelu(np.ones(special.SCRATCH_LIMIT, np.float64))
    kept = special._scratch.kept.values()
    assert len(kept) <= special.SCRATCH_SHAPES
    assert all(array.nbytes <= special.SCRATCH_LIMIT for arrays in kept for array in arrays)


@pytest.mark.parametrize("name", FITS)
def test_constants_are_what_they_say(name):
    fits, digits = FITS[name], {"float32": 1e-8, "float64": 1e-16}[name]
    assert fits.erf_gap == pytest.approx(scipy.special.erfc(fits.erf_knee) / fits.erf_knee, rel=10 * digits)
    assert fits.normal_tail.numerator[-1] / fits.normal_tail.denominator[-1] == 0.5
    assert fits.log1p.numerator[-1] / fits.log1p.denominator[-1] == 1
    np.testing.assert_allclose(GELU_TANH, (-2 * 0.044715 / ROOT_HALF_PI, -2 / ROOT_HALF_PI), rtol=1e-15)


def test_gelu_agrees_with_pytorch(torch):
    x = np.linspace(-12, 12, 20_001, dtype=np.float32)
    exact, approximate = (
        torch.nn.functional.gelu(torch.from_numpy(x), approximate=a).numpy() for a in ("none", "tanh")
    )
    np.testing.assert_allclose(special.gelu(x), exact, atol=1e-6, rtol=1e-6)
    np.testing.assert_allclose(x * special.gelu_gate(x), approximate, atol=1e-6, rtol=1e-6)
