"""Functions NumPy lacks, written like its ufuncs: `f(x, out=None)`.

`x` is a float32 or float64 array of any shape, best contiguous and small enough for the cache; `out`, if given, is
another of its shape and dtype, or `x` itself.  Nothing branches on a value, so an element's bits depend on that element
alone (which nan it is aside).  Infinities give the limit, nan gives nan, and no function warns.

The coefficients are fits of `scripts/fit_erf.py`; a CUDA or C kernel computes the same formulas from the same numbers.
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple, TypeAlias

import numpy as np

Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float32 | np.float64]]


class Rational(NamedTuple):
    """P(z) / Q(z).  Coefficients go from the highest degree down, as Horner's rule takes them."""

    numerator: tuple[float, ...]
    denominator: tuple[float, ...]


class Fits(NamedTuple):
    """The constants of one dtype.

    With b = clip(x, -knee, knee) and d = min(|x|, limit) - |b|, one of which stands still wherever the other moves,

        erf(x) = b * (1 + near(b^2) + gap * (1 - exp(d * far(d))))

    Both terms beside the 1 are below 0.4 in size, which is what keeps their rounding out of the result.
    """

    erf_knee: float
    erf_limit: float  # erf is 1 from here on
    erf_gap: float  # erfc(knee) / knee
    erf_near: Rational  # erf(x) / x - 1 in x^2, for |x| <= knee
    erf_far: Rational  # log(erfc(knee + d) / erfc(knee)) / d
    tail_limit: float  # exp(-a^2 / 2) is 0 from here on
    normal_tail: Rational  # exp(a^2 / 2) times the normal distribution's mass above a >= 0
    log1p: Rational  # log(1 + e) / e for 0 <= e <= 1


FITS = {
    "float32": Fits(
        erf_knee=1.125,
        erf_limit=4.1,
        erf_gap=0.0992104607,
        erf_near=Rational(
            (-0.00126560595, -0.016297621, -0.330343226, 0.128379159),
            (0.0389830934, 0.356620174, 1.0),
        ),
        erf_far=Rational((-0.256503194, -1.58690447, -2.8516211), (0.255709458, 1.0)),
        tail_limit=14.5,
        normal_tail=Rational(
            (0.00411633838, 0.0406334179, 0.183235698, 0.438295696, 0.5),
            (0.0103180104, 0.101859321, 0.469472112, 1.20250545, 1.67447637, 1.0),
        ),
        log1p=Rational(
            (0.00341727795, 0.23815739, 1.06621823, 1.0),
            (0.0752872324, 0.687936032, 1.5662181, 1.0),
        ),
    ),
    "float64": Fits(
        erf_knee=1.0,
        erf_limit=6.1,
        erf_gap=0.15729920705028513,
        erf_near=Rational(
            (
                *(-2.0709810237042719e-5, -0.00049512318477991596, -0.0088124847965660848),
                *(-0.048309468950532251, -0.31701424958580455, 0.12837916709551257),
            ),
            (
                *(2.0783448015225157e-5, 0.00069190740226191597, 0.010687266630541394),
                *(0.093783669772415178, 0.46044962577187018, 1.0),
            ),
        ),
        erf_far=Rational(
            (
                *(-0.00052742267667285379, -0.014078278505135944, -0.14233911536927111, -0.75022075204046064),
                *(-2.243050096512916, -3.6798656779644494, -2.6389675142347889),
            ),
            (
                *(0.00052756196293459294, 0.013010153057157062, 0.11435762612141205),
                *(0.4907945069100388, 1.0749501107172122, 1.0),
            ),
        ),
        tail_limit=39.0,
        normal_tail=Rational(
            (
                *(2.2427470243920741e-7, 6.9783859392684862e-6, 0.00010660410902470635, 0.0010399738357596087),
                *(0.0071243434259038224, 0.035673741868104639, 0.13206332163534239, 0.35737911468188956),
                *(0.67965240367145974, 0.82795188600241016, 0.5),
            ),
            (
                *(5.6217331041844323e-7, 1.7492219506687621e-5, 0.00026777904718043025, 0.0026243200413022853),
                *(0.018124173187777838, 0.091992653703220033, 0.34836291748336617, 0.98019881083566511),
                *(2.0015817919005185, 2.8171446335683673, 2.4537883328076859, 1.0),
            ),
        ),
        log1p=Rational(
            (
                *(2.2915510660672551e-5, 0.0068268662829842331, 0.1352125828582613, 0.83932128084675133),
                *(2.1705844263202946, 2.452381739952605, 1.0),
            ),
            (
                *(0.0015740265665237462, 0.048965105112812985, 0.44978487147267481, 1.7619150156706829),
                *(3.3134419629634878, 2.9523817399526021, 1.0),
            ),
        ),
    ),
}

# gelu_gate(x) = 1 / (1 + exp(x * (first * x^2 + second))): -2 sqrt(2 / pi) times 0.044715 and 1
GELU_TANH = (-0.07135481627260025, -1.5957691216057308)


class _Constants:
    """`Fits` and a few literals as 0-d arrays, which a ufunc takes twice as fast as a Python or NumPy scalar."""

    def __init__(self, dtype: type[np.float32] | type[np.float64]) -> None:
        def scalars(*values: float) -> tuple[Floats, ...]:
            return tuple(np.array(value, dtype) for value in values)

        def ratio(fit: Rational) -> tuple[tuple[Floats, ...], tuple[Floats, ...]]:
            return scalars(*fit.numerator), scalars(*fit.denominator)

        fits = FITS[dtype.__name__]
        self.zero, self.one, self.infinity, self.minus_half = scalars(0, 1, np.inf, -0.5)
        self.erf_range = scalars(-fits.erf_limit, fits.erf_limit)
        self.erf_inner = scalars(-fits.erf_knee, fits.erf_knee)
        (self.erf_gap,) = scalars(fits.erf_gap)
        self.erf_near, self.erf_far = ratio(fits.erf_near), ratio(fits.erf_far)
        self.tail_range = scalars(-fits.tail_limit, fits.tail_limit)
        self.normal_tail, self.log1p = ratio(fits.normal_tail), ratio(fits.log1p)
        self.gelu_tanh = scalars(*GELU_TANH)


SCRATCH_SHAPES, SCRATCH_LIMIT = 4, 1 << 19  # how many shapes are kept, and of how many bytes: 8 MiB a thread


class _Scratch(threading.local):
    """One thread's temporaries by shape and dtype, kept because mapping fresh memory can take longer than `erf`."""

    def __init__(self) -> None:
        self.kept: dict[tuple[tuple[int, ...], np.dtype[np.float32 | np.float64]], tuple[Floats, ...]] = {}

    def like(self, x: Floats) -> tuple[Floats, ...]:
        """Four arrays like `x`, of undefined contents, this thread's until its next call."""
        key = x.shape, x.dtype
        arrays = self.kept.get(key)
        if arrays is None:
            arrays = tuple(np.empty(x.shape, x.dtype) for _ in range(4))
            if len(self.kept) == SCRATCH_SHAPES:
                self.kept.clear()
            if x.nbytes <= SCRATCH_LIMIT:
                self.kept[key] = arrays
        return arrays


_scratch = _Scratch()
_constants = {np.dtype(dtype): _Constants(dtype) for dtype in (np.float32, np.float64)}


def _polynomial(z: Floats, coefficients: tuple[Floats, ...], out: Floats) -> Floats:
    first, second, *rest = coefficients
    np.multiply(z, first, out=out)
    np.add(out, second, out=out)
    for coefficient in rest:
        np.multiply(out, z, out=out)
        np.add(out, coefficient, out=out)
    return out


def _ratio(z: Floats, fit: tuple[tuple[Floats, ...], tuple[Floats, ...]], out: Floats, scratch: Floats) -> Floats:
    numerator, denominator = fit
    return np.divide(_polynomial(z, numerator, out), _polynomial(z, denominator, scratch), out=out)


def erf(x: Floats, out: Floats | None = None) -> Floats:
    """The error function of each element, within 1.7 units in the last place."""
    c = _constants[x.dtype]
    out = np.empty_like(x) if out is None else out
    b, scratch, e, near = _scratch.like(x)
    x.clip(*c.erf_range, out=out)
    out.clip(*c.erf_inner, out=b)
    d = np.abs(np.subtract(out, b, out=out), out=out)
    np.multiply(_ratio(d, c.erf_far, e, scratch), d, out=e)
    np.subtract(c.one, np.exp(e, out=e), out=e)
    np.multiply(e, c.erf_gap, out=e)
    z = np.multiply(b, b, out=out)
    np.add(_ratio(z, c.erf_near, near, scratch), e, out=near)
    np.multiply(near, b, out=near)
    return np.add(near, b, out=out)


def gelu(x: Floats, out: Floats | None = None) -> Floats:
    """x times the normal distribution's mass below x, accurate relative to itself in the negative tail too.

    There x^2 / 2 is rounded before it is an exponent: x^2 / 2 units in the last place, so 1e-6 at -5 in float32.
    """
    c = _constants[x.dtype]
    out = np.empty_like(x) if out is None else out
    a, mass, scratch, _ = _scratch.like(x)
    np.abs(x.clip(*c.tail_range, out=a), out=a)
    _ratio(a, c.normal_tail, mass, scratch)
    np.multiply(mass, a, out=mass)
    np.multiply(np.multiply(a, a, out=a), c.minus_half, out=a)
    np.multiply(mass, np.exp(a, out=a), out=mass)
    return np.subtract(x.clip(c.zero, c.infinity, out=out), mass, out=out)


def gelu_gate(x: Floats, out: Floats | None = None) -> Floats:
    """(1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3))) / 2 of each element, by which gelu's tanh form multiplies x."""
    c = _constants[x.dtype]
    first, second = c.gelu_tanh
    out = np.empty_like(x) if out is None else out
    e, *_ = _scratch.like(x)
    with np.errstate(over="ignore", invalid="ignore"):
        np.multiply(x, x, out=e)
        np.add(np.multiply(e, first, out=e), second, out=e)
        np.exp(np.multiply(e, x, out=e), out=e)
    return np.divide(c.one, np.add(e, c.one, out=e), out=out)


def sigmoid(x: Floats, out: Floats | None = None) -> Floats:
    """1 / (1 + exp(-x)) of each element.  Results below the smallest normal number may be 0."""
    c = _constants[x.dtype]
    out = np.empty_like(x) if out is None else out
    with np.errstate(over="ignore"):
        np.exp(np.negative(x, out=out), out=out)
    return np.divide(c.one, np.add(out, c.one, out=out), out=out)


def softplus(x: Floats, out: Floats | None = None) -> Floats:
    """log(1 + exp(x)) of each element, as max(x, 0) + log1p(exp(-|x|))."""
    c = _constants[x.dtype]
    out = np.empty_like(x) if out is None else out
    e, log, scratch, _ = _scratch.like(x)
    np.exp(np.negative(np.abs(x, out=e), out=e), out=e)
    np.multiply(_ratio(e, c.log1p, log, scratch), e, out=log)
    return np.add(x.clip(c.zero, c.infinity, out=out), log, out=out)


def rsqrt(x: Floats, out: Floats | None = None) -> Floats:
    """1 / sqrt(x) of each element: inf at 0 and nan below it."""
    c = _constants[x.dtype]
    out = np.empty_like(x) if out is None else out
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.divide(c.one, np.sqrt(x, out=out), out=out)


def relu(x: Floats, out: Floats | None = None) -> Floats:
    """max(x, 0) of each element."""
    c = _constants[x.dtype]
    out = np.empty_like(x) if out is None else out
    x.clip(c.zero, c.infinity, out=out)  # at both ends: twice as fast as np.maximum(x, scalar)
    return out
