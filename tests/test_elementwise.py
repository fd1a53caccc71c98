"""What is peculiar to elementwise ops: dtypes, special values, kinks, integers, what is kept, what is refused."""

import itertools
import math
import operator

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import gpuad
from gpuad import DataError, DTypeError, ShapeError
from gpuad.dtype import ALL, FLOATS, HALVES, INTEGERS, kind

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
dtypes = st.sampled_from(sorted(ALL, key=str))
INF, NAN = math.inf, math.nan
EXTREMES = np.array([-INF, -1e30, -2.0, -1.0, -1e-30, -0.0, 0.0, 1e-30, 0.5, 1.0, 3.0, 1e30, INF, NAN], np.float32)


def words(text):
    return text.split()


def filled(dtype, shape=(2, 3)):
    return gpuad.asarray(np.ones(shape, dtype))


def slopes(function, *args):
    """The derivative of an elementwise function with respect to each argument."""
    y, pullback = gpuad.vjp(function, *map(gpuad.asarray, args))
    return [g.numpy() for g in pullback(gpuad.ones_like(y))]


def torch_slopes(torch, function, *args):
    leaves = [torch.tensor(x, requires_grad=True) for x in args]
    function(*leaves).sum().backward()
    return [x.grad.numpy() for x in leaves]


# --- dtypes -------------------------------------------------------------------------------------


@given(dtypes, dtypes)
def test_promotion_is_that_of_the_array_api_within_a_kind_and_the_floats_between(a, b):
    if {a.kind, b.kind} == {"i", "u"} and np.dtype(np.uint64) in (a, b):
        with pytest.raises(DTypeError, match=r"no common integer dtype; cast one of them with \.to"):
            filled(a) + filled(b)
        return
    if kind(a) != kind(b):
        expected = a if kind(a) > kind(b) else b
    elif {a, b} == HALVES:
        expected = np.dtype(np.float32)
    elif BFLOAT16 in (a, b):
        expected = a if a.itemsize > b.itemsize else b
    else:
        expected = np.promote_types(a, b)
    assert (filled(a) + filled(b)).dtype == expected
    assert (filled(b) * filled(a)).numpy().dtype == expected


@given(dtypes, st.sampled_from([True, 1, 1.0]), st.booleans())
def test_python_scalars_are_weak_and_make_no_float64(dtype, scalar, first):
    if type(scalar) is float and dtype not in FLOATS:
        expected = np.float32
    elif type(scalar) is int and dtype == np.bool_:
        expected = np.int64
    else:
        expected = dtype
    x = filled(dtype)
    y = gpuad.add(scalar, x) if first else x + scalar
    assert y.dtype == expected
    assert y.numpy().dtype == expected


@pytest.mark.parametrize(
    ("scalar", "expected"), [(np.float64(2), "f8"), (np.float32(2), "f4"), (np.float16(2), "f4"), (np.int64(2), "f4")]
)
def test_numpy_scalars_are_strong(scalar, expected):
    x = filled("f4")
    assert (x * scalar).dtype == expected
    assert (scalar * x).dtype == expected
    assert isinstance(scalar * x, gpuad.Tensor)


@pytest.mark.parametrize("dtype", sorted(INTEGERS | {np.dtype(np.bool_)}, key=str), ids=str)
def test_functions_of_a_float_take_integers_as_float32(dtype):
    x = filled(dtype)
    for y in (gpuad.exp(x), gpuad.sqrt(x), gpuad.gelu(x), x / x, gpuad.atan2(x, 1)):
        assert y.dtype == y.numpy().dtype == np.float32


@pytest.mark.parametrize("dtype", sorted(HALVES, key=str), ids=str)
def test_half_types_are_computed_in_float32_and_rounded_once(dtype):
    x = np.linspace(-4, 4, 1001).astype(dtype)
    wide = x.astype(np.float32)
    for function, reference in ((gpuad.exp, np.exp), (gpuad.tanh, np.tanh), (gpuad.square, np.square)):
        np.testing.assert_array_equal(function(gpuad.asarray(x)).numpy(), reference(wide).astype(dtype))
    y = gpuad.asarray(x) * 3.1 + 0.1
    np.testing.assert_array_equal(y.numpy(), ((wide * np.float32(3.1)).astype(dtype) + np.float32(0.1)).astype(dtype))


def test_gradients_have_the_dtypes_of_their_arguments():
    a, b, c = (np.ones((2, 3), dtype) for dtype in (np.float16, BFLOAT16, np.float64))
    assert [g.dtype for g in slopes(lambda a, b, c: a * b + c, a, b, c)] == [a.dtype, b.dtype, c.dtype]


# --- shapes -------------------------------------------------------------------------------------


@given(hnp.mutually_broadcastable_shapes(num_shapes=3, max_dims=4, max_side=3, min_side=0))
def test_broadcasting_is_that_of_numpy_and_gradients_sum_back(shapes):
    x, y, z = (np.arange(1.0, 1 + math.prod(s)).reshape(s) for s in shapes.input_shapes)
    result = gpuad.asarray(x) * gpuad.asarray(y) + gpuad.asarray(z)
    np.testing.assert_array_equal(result.numpy(), x * y + z)
    gradients = slopes(lambda x, y, z: x * y + z, x, y, z)
    for g, argument, factor in zip(gradients, (x, y, z), (y, x, np.ones(())), strict=True):
        full = np.broadcast_to(factor, shapes.result_shape)
        lead = full.ndim - argument.ndim
        axes = (*range(lead), *(k + lead for k, n in enumerate(argument.shape) if n == 1))
        np.testing.assert_allclose(g, full.sum(axis=axes, keepdims=True).reshape(argument.shape))


def test_shapes_that_do_not_broadcast_are_shown():
    with pytest.raises(ShapeError, match=r"multiply\(\) cannot broadcast float32\[2, 3\] and float32\[4\]"):
        gpuad.ones((2, 3)) * gpuad.ones(4)


@pytest.mark.parametrize("engine", ["numpy", "compiled"])
def test_blocks_of_a_large_array_join_up(engine, monkeypatch):
    monkeypatch.setattr(gpuad.fuse.engines, "engine", lambda: engine)
    x = np.random.default_rng(0).standard_normal((19, 8209)).astype(np.float32)  # a line is large enough to compile
    t = gpuad.asarray(x)
    np.testing.assert_array_equal(gpuad.where(t > 0.5, t, 0).numpy(), np.where(x > 0.5, x, 0))
    np.testing.assert_array_equal(gpuad.where(t > 0.5, 0, t).numpy(), np.where(x > 0.5, 0, x))
    parts = np.concatenate([gpuad.gelu(gpuad.asarray(line)).numpy() for line in x])
    np.testing.assert_array_equal(gpuad.gelu(t).numpy().reshape(-1), parts)


def test_a_strided_column_may_be_computed_with_before_it_is_broadcast():
    x = np.arange(12.0).reshape(3, 4)
    t = gpuad.asarray(x)
    np.testing.assert_array_equal((t[:, 1:2] * 2 + t).numpy(), x[:, 1:2] * 2 + x)


# --- special values -----------------------------------------------------------------------------

UNARY = {
    **{name: getattr(np, name) for name in words("abs sign exp expm1 log log1p log2 log10 sqrt square floor ceil")},
    **{name: getattr(np, name) for name in words("sin cos tan sinh cosh tanh trunc negative positive reciprocal")},
    **{name: getattr(np, "arc" + name[1:]) for name in words("asin acos atan asinh acosh atanh")},
    "round": np.rint,
    "relu": lambda x: np.maximum(x, 0),
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "erf": lambda x: np.array([math.erf(v) for v in x], np.float32),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "softplus": lambda x: np.logaddexp(x, 0),
}


@pytest.mark.parametrize("name", UNARY)
def test_extreme_arguments_give_what_numpy_gives(name):
    found = getattr(gpuad, name)(gpuad.asarray(EXTREMES)).numpy()
    with np.errstate(all="ignore"):
        expected = UNARY[name](EXTREMES)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    if name not in ("relu", "positive"):  # NumPy leaves the sign of max(-0.0, 0) open
        zeros = expected == 0
        np.testing.assert_array_equal(np.signbit(found[zeros]), np.signbit(expected[zeros]))


@pytest.mark.parametrize("name", words("hypot arctan2 logaddexp maximum minimum copysign nextafter power remainder"))
def test_pairs_of_extreme_arguments_give_what_numpy_gives(name):
    ours = {"arctan2": "atan2", "power": "pow"}.get(name, name)
    x, y = EXTREMES[:, None], EXTREMES
    with np.errstate(all="ignore"):
        expected = getattr(np, name)(x, y)
    found = getattr(gpuad, ours)(gpuad.asarray(x), gpuad.asarray(y)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "name", words("exp expm1 log log1p log2 log10 sqrt square sin tanh atan asinh reciprocal relu rsqrt sigmoid")
)
def test_derivatives_at_extreme_arguments_are_those_of_pytorch(name, torch):
    x = EXTREMES[np.abs(EXTREMES) != 1e30].astype(np.float64)
    (found,) = slopes(getattr(gpuad, name), x)
    (expected,) = torch_slopes(torch, getattr(torch, name), x)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize(
    "function",
    [
        gpuad.gelu,
        lambda x: gpuad.gelu(x, approximate="tanh"),
        gpuad.silu,
        gpuad.softplus,
        gpuad.relu,
        gpuad.tanh,
    ],
    ids=["gelu", "gelu tanh", "silu", "softplus", "relu", "tanh"],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_activations_are_finite_or_at_their_limit_far_out_with_all_derivatives(function, dtype):
    x = np.array([-INF, -1e30, -1e4, 1e4, 1e30, INF], dtype)
    y, (slope,) = function(gpuad.asarray(x)).numpy(), slopes(function, x)
    (curvature,) = slopes(lambda x: gpuad.vjp(function, x)[1](gpuad.ones_like(x))[0], x)
    saturates = y[-1] == 1
    np.testing.assert_array_equal(y, [-1, -1, -1, 1, 1, 1] if saturates else [0, 0, 0, 1e4, x[4], INF])
    np.testing.assert_array_equal(slope, [0] * 3 + [0 if saturates else 1] * 3)
    np.testing.assert_array_equal(curvature, 0)


# --- kinks and corners of the rules -------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 2.0, 3, 4, 5, 1, 0, 1.5, 0.5, -1])
def test_power_with_a_scalar_exponent_has_the_right_slope_at_zero(n):
    (slope,) = slopes(lambda x: x**n, np.zeros(1))
    np.testing.assert_array_equal(slope, {1: 1.0, 0.5: INF, -1: -INF}.get(n, 0.0))


def test_slopes_of_powers_of_zero_are_those_of_pytorch(torch):
    base, exponent = np.zeros(6), np.array([0.0, 0.5, 1.0, 2.0, 3.0, -1.0])
    ours, theirs = slopes(gpuad.pow, base, exponent), torch_slopes(torch, torch.pow, base, exponent)
    np.testing.assert_array_equal(ours[0], theirs[0])
    np.testing.assert_array_equal(ours[1], theirs[1])
    assert ours[1][1:5].tolist() == [0, 0, 0, 0]


def test_powers_of_a_scalar_base_have_the_right_slope():
    x = np.array([-1.0, 0.0, 0.5, 2.0])
    np.testing.assert_allclose(slopes(lambda x: 2**x, x)[0], 2**x * math.log(2))
    np.testing.assert_array_equal(slopes(lambda x: 0**x, x)[0], [-INF, 0, 0, 0])
    np.testing.assert_array_equal(slopes(lambda x: 1**x, x)[0], 0)
    assert np.isnan(slopes(lambda x: (-2) ** x, x)[0]).all()


def test_second_derivatives_of_powers_at_zero_are_right():
    def second(f):
        return gpuad.grad(gpuad.grad(f))(gpuad.asarray(0.0, dtype="f8")).item()

    assert [second(lambda x, n=n: x**n) for n in (0, 1, 2, 3, 2.0, 2.5)] == [0, 0, 2, 0, 2, 0]
    tensors = [gpuad.asarray(n, dtype="f8") for n in (0.0, 1.0, 2.0, 3.0)]
    assert [second(lambda x, n=n: x**n) for n in tensors] == [0, 0, 2, 0]


def test_a_polynomial_in_powers_has_the_gradient_of_its_coefficients():
    x = gpuad.asarray([-1.5, 0.0, 2.0])
    found = gpuad.grad(lambda x: gpuad.sum(1 * x**0 + 2 * x**1 - 3 * x**2 + x**3 + 0.5 * x**5))(x)
    np.testing.assert_allclose(
        found.numpy(), np.polynomial.polynomial.polyval(x.numpy(), [2, -6, 3, 0, 2.5]), rtol=1e-6
    )


def test_roots_and_logarithms_are_infinitely_steep_at_zero():
    for function in (gpuad.sqrt, gpuad.log, gpuad.log2, gpuad.log10):
        assert slopes(function, np.zeros(1))[0] == INF
    assert slopes(gpuad.rsqrt, np.zeros(1))[0] == -INF


@pytest.mark.parametrize("function", [gpuad.hypot, gpuad.atan2], ids=lambda f: f.name)
def test_polar_coordinates_have_no_slope_at_the_origin_to_any_order(function):
    zero = np.zeros(2)
    assert [g.tolist() for g in slopes(function, zero, zero)] == [[0, 0], [0, 0]]
    for g in slopes(lambda a, b: gpuad.vjp(function, a, b)[1](gpuad.ones_like(a))[0], zero, zero):
        assert g.tolist() == [0, 0]


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_polar_coordinates_neither_overflow_nor_underflow(scale):
    a, b = np.array([3 * scale], np.float32), np.array([4 * scale], np.float32)
    np.testing.assert_allclose(slopes(gpuad.hypot, a, b), [[0.6], [0.8]], rtol=1e-6)
    np.testing.assert_allclose(slopes(gpuad.atan2, a, b), [[0.16 / scale], [-0.12 / scale]], rtol=1e-6)


def test_logaddexp_shares_its_slope_between_infinities():
    a = np.array([INF, -INF, INF, -INF, 0.0, 1e4, NAN])
    b = np.array([INF, -INF, -INF, 0.0, 0.0, -1e4, 0.0])
    np.testing.assert_array_equal(
        slopes(gpuad.logaddexp, a, b), [[0.5, 0.5, 1, 0, 0.5, 1, NAN], [0.5, 0.5, 0, 1, 0.5, 0, NAN]]
    )
    x = gpuad.asarray(0.0, dtype="f8")
    assert gpuad.grad(gpuad.grad(lambda a: gpuad.logaddexp(a, 0)))(x).item() == 0.25  # at a tie too


def test_maximum_gives_each_of_a_tie_half():
    x = np.array([1.0, 2.0, 3.0])
    np.testing.assert_array_equal(slopes(gpuad.maximum, x, x[::-1]), [[0, 0.5, 1], [1, 0.5, 0]])
    np.testing.assert_array_equal(slopes(gpuad.minimum, x, x[::-1]), [[1, 0.5, 0], [0, 0.5, 1]])
    np.testing.assert_array_equal(slopes(lambda x: gpuad.maximum(x, 2), x), [[0, 0.5, 1]])


def test_clip_passes_at_its_bounds():
    x = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    np.testing.assert_array_equal(slopes(lambda x: gpuad.clip(x, -1, 1), x), [[0, 1, 1, 1, 0]])
    np.testing.assert_array_equal(slopes(lambda x: gpuad.clip(x, min=-1), x), [[0, 1, 1, 1, 1]])
    np.testing.assert_array_equal(slopes(lambda x: gpuad.clip(x, max=1), x), [[1, 1, 1, 1, 0]])


def test_clip_gives_every_cotangent_to_just_one_argument():
    x, low, high = (a.reshape(-1).astype(float) for a in np.meshgrid(*[np.arange(3)] * 3))
    np.testing.assert_array_equal(np.sum(slopes(gpuad.clip, x, low, high), axis=0), 1)


def test_abs_and_relu_are_flat_at_zero():
    assert slopes(gpuad.abs, np.array([0.0, -0.0]))[0].tolist() == [0, 0]
    assert slopes(gpuad.relu, np.array([0.0, -0.0]))[0].tolist() == [0, 0]


def test_where_lets_no_infinity_of_the_other_branch_into_a_derivative():
    x, big = np.array([1.0, 2.0]), np.array([INF, NAN])
    c = gpuad.asarray([True, True])
    np.testing.assert_array_equal(slopes(lambda x, y: gpuad.where(c, x * 2, y), x, big), [[2, 2], [0, 0]])
    np.testing.assert_array_equal(gpuad.where(c, gpuad.asarray(x), gpuad.asarray(big)).numpy(), x)


def test_rounding_and_comparing_have_no_derivative():
    x = np.array([0.3, 1.7])
    for function in (gpuad.floor, gpuad.ceil, gpuad.trunc, gpuad.round, gpuad.sign):
        assert slopes(lambda x, f=function: f(x) + 0 * x, x)[0].tolist() == [0, 0]
    assert slopes(lambda x: x * (x > 1), x)[0].tolist() == [0, 1]


def test_remainder_has_the_slopes_of_pytorch(torch):
    a, b = np.array([5.5, -5.5, 5.5, 7.25]), np.array([2.0, 2.0, -2.0, 1.5])
    np.testing.assert_array_equal(
        slopes(gpuad.remainder, a, b), torch_slopes(torch, lambda a, b: torch.remainder(a, b), a, b)
    )


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6).filter(lambda b: abs(b) > 1e-6))
def test_division_with_remainder_is_that_of_python(a, b):
    x, y = gpuad.asarray(np.array([a])), gpuad.asarray(np.array([b]))
    assert ((x // y).item(), (x % y).item()) == divmod(a, b)


# --- integers -----------------------------------------------------------------------------------


@given(st.lists(st.integers(-100, 100), min_size=1), st.lists(st.integers(-9, 9).filter(bool), min_size=1))
def test_division_of_integers_is_that_of_python(numerators, denominators):
    for a, b in itertools.product(numerators[:5], denominators[:5]):
        x, y = gpuad.asarray([a]), gpuad.asarray([b])
        assert ((x // y).item(), (x % y).item()) == divmod(a, b)
        assert (x // y).dtype == np.int64


def test_integer_division_by_zero_gives_zero_as_in_numpy():
    x, zero = gpuad.asarray([5, -5, 0]), gpuad.asarray([0])
    assert (x // zero).tolist() == (x % zero).tolist() == [0, 0, 0]


def test_integers_wrap_around_as_in_numpy():
    x = np.array([-128, 127, 100], np.int8)
    t = gpuad.asarray(x)
    np.testing.assert_array_equal((t + t).numpy(), x + x)
    np.testing.assert_array_equal((-t).numpy(), -x)
    np.testing.assert_array_equal((t**3).numpy(), x**3)
    np.testing.assert_array_equal(gpuad.abs(t).numpy(), np.abs(x))


@pytest.mark.parametrize("dtype", sorted(INTEGERS, key=str), ids=str)
def test_integer_powers_stay_integers(dtype):
    x = np.array([0, 1, 2, 3, 5], dtype)
    for n in (0, 1, 2, 3, 4, 5):
        y = (gpuad.asarray(x) ** n).numpy()
        assert y.dtype == dtype
        np.testing.assert_array_equal(y, x**n)
    np.testing.assert_array_equal((2 ** gpuad.asarray(x)).numpy(), 2**x)


def test_negative_exponents_of_integers_are_an_error_at_once():
    x = gpuad.asarray([1, 2])
    for exponent in (-1, gpuad.asarray([1, -2])):
        with pytest.raises(DataError, match=r"exponents that are not negative; cast the base with \.to"):
            x**exponent
    assert (x ** gpuad.asarray([1.0, -2.0])).tolist() == [1.0, 0.25]


@given(hnp.arrays(np.int32, 4), hnp.arrays(np.int32, 4, elements=st.integers(0, 40)))
def test_bits_are_those_of_numpy(x, n):
    a, b = gpuad.asarray(x), gpuad.asarray(n)
    for f in (operator.and_, operator.or_, operator.xor, operator.lshift, operator.rshift):
        np.testing.assert_array_equal(f(a, b).numpy(), f(x, n))
    np.testing.assert_array_equal((~a).numpy(), ~x)
    np.testing.assert_array_equal((1 << b).numpy(), 1 << n)


def test_rounding_and_parts_of_integers_are_the_integers():
    x = gpuad.asarray([1, -2])
    for function in (gpuad.floor, gpuad.ceil, gpuad.trunc, gpuad.round, gpuad.real, gpuad.conj):
        y = function(x)
        assert y.tolist() == [1, -2] and y.dtype == x.dtype
        y += 1
        assert x.tolist() == [1, -2]
    assert gpuad.imag(x).tolist() == [0, 0]


# --- operators and scalars ----------------------------------------------------------------------

OPERATORS = [operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod, operator.pow]
COMPARISONS = [operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne]


@pytest.mark.parametrize("f", OPERATORS + COMPARISONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("other", [2, 1.5, True, np.float32(1.5), np.array([0.5, 2.0, 3.0], np.float32)], ids=repr)
def test_operators_take_scalars_and_arrays_on_either_side(f, other):
    x = np.array([0.5, 1.5, 4.0], np.float32)
    t = gpuad.asarray(x)
    reference = np.float32(other) if isinstance(other, int | float) else other
    for found, expected in ((f(t, other), f(x, reference)), (f(other, t), f(reference, x))):
        assert isinstance(found, gpuad.Tensor)
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


def test_small_integer_exponents_cost_multiplications():
    x = gpuad.asarray([1.5, -2.0])
    assert [(x**n).array.op.name for n in (-1, 1, 2, 3, 4)] == [
        "reciprocal",
        "positive",
        "square",
        "multiply",
        "square",
    ]
    assert (x**2.5).array.op.name == "pow"


@pytest.mark.parametrize(
    ("names", "x_kept", "y_kept"),
    [
        (["negative", "positive", "floor", "sign"], False, False),
        (["tanh", "exp", "sqrt", "reciprocal", "tan", "sigmoid", "relu", "rsqrt"], False, True),
        (["sin", "log", "square", "erf", "silu"], True, False),
    ],
)
def test_rules_keep_no_more_than_they_need(names, x_kept, y_kept):
    for name in names:
        x = gpuad.asarray([0.5])
        y, pullback = gpuad.vjp(getattr(gpuad, name), x)
        assert (x.array.kept > 0, y.array.kept > 0) == (x_kept, y_kept), name
        del pullback


def test_a_product_keeps_only_the_factor_of_what_is_differentiated():
    a, b = gpuad.asarray([2.0]), gpuad.asarray([3.0])
    y, pullback = gpuad.vjp(lambda a: a * b + b, a)
    assert (a.array.kept, b.array.kept, y.array.kept) == (0, 1, 0)
    assert pullback(gpuad.ones(1))[0].item() == 3


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [lambda x: x - x, operator.neg, gpuad.abs, gpuad.square, gpuad.sign, gpuad.floor, lambda x: x**x, lambda x: x // x],
)
def test_arithmetic_of_bools_is_refused(function):
    with pytest.raises(DTypeError, match="needs numbers"):
        function(gpuad.asarray([True, False]))


@pytest.mark.parametrize("f", [operator.and_, operator.or_, operator.xor, operator.lshift, operator.rshift])
def test_bits_of_floats_are_refused(f):
    with pytest.raises(DTypeError, match=r"bitwise_\w+\(\) needs integers or bools, got float32; cast with"):
        f(gpuad.asarray([1.0]), 1)


def test_shifts_of_bools_are_refused():
    with pytest.raises(DTypeError, match=r"bitwise_left_shift\(\) needs integers, got bools"):
        gpuad.asarray([True]) << gpuad.asarray([True])


def test_steps_between_half_numbers_are_refused():
    with pytest.raises(DTypeError, match=r"nextafter\(\) steps through float32 or float64, got bfloat16"):
        gpuad.nextafter(gpuad.ones(2, dtype="bfloat16"), 2)


def test_gelu_has_two_forms():
    with pytest.raises(DataError, match='approximate=\'fast\'; it is "none" or "tanh"'):
        gpuad.gelu(gpuad.ones(2), approximate="fast")


def test_scalars_alone_are_refused():
    for function in (gpuad.add, gpuad.pow, gpuad.floor_divide, gpuad.maximum):
        with pytest.raises(TypeError, match="needs at least one tensor"):
            function(2, 3)


def test_scalars_that_an_integer_dtype_cannot_hold_are_refused():
    x = gpuad.asarray(np.array([1, 200], np.uint8))
    for function in (lambda: x + 300, lambda: x > -1, lambda: gpuad.where(x > 5, x, -1)):
        with pytest.raises(gpuad.DTypeError, match=r"uint8 cannot hold"):
            function().numpy()


def test_a_missing_argument_is_an_error():
    with pytest.raises(TypeError, match=r"add\(\)"):
        gpuad.add(gpuad.ones(3)).numpy()


def test_an_unknown_keyword_is_an_error():
    with pytest.raises(TypeError, match=r"exp\(\)"):
        gpuad.exp(gpuad.ones(3), out=gpuad.zeros(3))
