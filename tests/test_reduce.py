"""What is peculiar to reductions: bits that do not move, accuracy, kinks, extremes, empty axes, messages."""

import warnings

import numpy as np
import pytest
import scipy.special

import gpuad
from gpuad.fuse import host, kernel

REDUCTIONS = ("sum", "mean", "prod", "max", "min", "var", "logsumexp")
OVER = {"row": -1, "column": 0, "all": None}
SHAPES = [(7, 33), (301, 129), (4097, 2), (70001, 1), (5, 4097), (3, 9001), (1, 50001), (3, 17, 65)]


def values(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def forms(x):
    """Tensors with the values of `x`: computed, pending, transposed, strided, repeated."""
    backwards = tuple(range(x.ndim))[::-1]
    yield "computed", gpuad.asarray(x)
    yield "pending", gpuad.asarray(x) * 1.0
    yield "pending twice", gpuad.asarray(x * 2) / 2.0
    yield "transposed", gpuad.permute_dims(gpuad.asarray(x.T), backwards)
    yield "transposed, pending", gpuad.permute_dims(gpuad.asarray(x.T), backwards) * 1.0
    yield "strided", gpuad.asarray(np.repeat(x, 2, axis=-1))[..., ::2]
    yield "reversed", gpuad.asarray(np.ascontiguousarray(x[..., ::-1]))[..., ::-1]


@pytest.fixture
def settings(monkeypatch):
    """A function that has kernels run with other blocks, and on threads from the first element on."""

    def choose(block, threaded):
        host._programs.clear()
        monkeypatch.setattr(host, "BLOCK", block)
        monkeypatch.setattr(host, "THREADED", threaded)

    yield choose
    host._programs.clear()


@pytest.mark.parametrize("over", OVER)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bits_depend_neither_on_layout_nor_fusion_nor_blocks_nor_threads(shape, over, settings):
    x = values(shape)
    axis = tuple(range(len(shape) - 1)) if over == "column" else OVER[over]
    for name in REDUCTIONS:
        first = None
        for block in (host.CHUNK, 2 * host.CHUNK, 4 * host.CHUNK, 64 * host.CHUNK):
            for threaded in (1, 1 << 40):
                settings(block, threaded)
                for form, tensor in forms(x):
                    bits = getattr(gpuad, name)(tensor, axis=axis).numpy().tobytes()
                    first = bits if first is None else first
                    assert bits == first, f"{name} of {form} with blocks of {block}, threads from {threaded}"


def test_the_sign_of_a_zero_extreme_does_not_depend_on_layout_or_blocks(settings):
    x = np.where(np.random.default_rng(0).random((64, 301)) < 0.5, np.float32(0), np.float32(-0.0))
    for name in ("max", "min"):
        for axis in (0, 1, None):
            found = set()
            for block in (host.CHUNK, 4 * host.CHUNK):
                settings(block, 1)
                found |= {getattr(gpuad, name)(t, axis=axis).numpy().tobytes() for _, t in forms(x)}
            assert len(found) == 1, (name, axis)


def test_bits_do_not_depend_on_what_else_the_kernel_computes():
    x = values((37, 129))
    alone = gpuad.sum(gpuad.exp(gpuad.asarray(x)), axis=1, keepdims=True).numpy()
    t = gpuad.asarray(x)
    y = gpuad.exp(t)
    s = gpuad.sum(y, axis=1, keepdims=True)
    z = y / s + gpuad.max(y, axis=1, keepdims=True)
    assert z.numpy().tobytes() == (np.exp(x) / alone + np.exp(x).max(1, keepdims=True)).tobytes()
    assert s.numpy().tobytes() == alone.tobytes()


@pytest.mark.parametrize(
    "shape, axis", [((10_000_019,), None), ((1_000_003, 10), 0), ((10, 1_000_003), 1), ((3_000_017, 3), None)]
)
def test_sums_of_ten_million_floats_are_close_to_exact(shape, axis):
    x = np.random.default_rng(0).random(shape, dtype=np.float32)
    exact = x.sum(axis=axis, dtype=np.float64)
    np.testing.assert_allclose(gpuad.sum(gpuad.asarray(x), axis=axis).numpy(), exact, rtol=3e-6)


def test_halves_add_up_in_single_precision():
    ones = np.ones(5000, np.float16)  # in float16, 2048 + 1 is 2048
    assert gpuad.sum(gpuad.asarray(ones)).item() == 5000
    assert gpuad.sum(gpuad.asarray(ones)).dtype == gpuad.float16
    assert gpuad.mean(gpuad.asarray(np.full(1000, 60000, np.float16))).item() == 60000
    assert gpuad.sum(gpuad.asarray(ones), dtype=gpuad.bfloat16).dtype == gpuad.bfloat16


@pytest.mark.parametrize(
    "given, summed",
    [
        ("bool", "int64"),
        ("int8", "int64"),
        ("int32", "int64"),
        ("uint8", "uint64"),
        ("uint64", "uint64"),
        ("bfloat16", "bfloat16"),
    ],
)
def test_integers_add_up_and_multiply_in_64_bits(given, summed):
    x = gpuad.asarray([1, 1, 1], dtype=given)
    for function in (gpuad.sum, gpuad.prod):
        assert function(x).dtype == summed
        assert function(x, dtype=gpuad.float32).dtype == gpuad.float32
    assert gpuad.count_nonzero(x).dtype == gpuad.int64
    assert gpuad.max(x).dtype == given


def test_large_unsigned_sums_do_not_turn_negative():
    assert gpuad.sum(gpuad.asarray(np.full(3, 2**62, np.uint64))).item() == 3 * 2**62


def test_variance_of_values_far_from_zero_does_not_cancel():
    x = np.array([1e4 + 0.125, 1e4 + 0.25, 1e4 + 0.375], np.float32)
    np.testing.assert_allclose(gpuad.var(gpuad.asarray(x)).numpy(), np.var(x.astype(np.float64)), rtol=1e-6)


def test_a_row_of_statistics_is_one_kernel():
    x = gpuad.asarray(values((50, 40)))
    seen = []
    kernel.watchers.append(seen.append)
    try:
        gpuad.logsumexp(x, axis=1).numpy()
        gpuad.var(gpuad.exp(x), axis=-1, keepdims=True).numpy()
    finally:
        kernel.watchers.pop()
    assert len(seen) == 2


def test_reduction_fused_with_its_input_never_stores_it():
    x = gpuad.asarray(values((64, 64)))
    seen = []
    kernel.watchers.append(seen.append)
    try:
        gpuad.sum(gpuad.sin(x) * 2.0).numpy()
    finally:
        kernel.watchers.pop()
    assert [[y.shape for y in k.outputs] for k in seen] == [[()]]


# --- axes -------------------------------------------------------------------------------------


def test_axes_may_come_in_any_order_and_from_the_end():
    x = values((2, 3, 4))
    assert (
        gpuad.sum(gpuad.asarray(x), axis=(-1, 0)).numpy().tobytes()
        == gpuad.sum(gpuad.asarray(x), axis=(0, 2)).numpy().tobytes()
    )
    assert gpuad.sum(gpuad.asarray(x), axis=np.int64(1)).shape == (2, 4)
    assert gpuad.sum(gpuad.asarray(x), axis=[0, 1]).shape == (4,)


def test_an_axis_given_twice_is_an_error_that_shows_it():
    x = gpuad.asarray(values((2, 3)))
    with pytest.raises(gpuad.ShapeError, match=r"max\(\) got an axis twice in \(1, -1\) for float32\[2, 3\]"):
        gpuad.max(x, axis=(1, -1))


def test_an_axis_out_of_range_is_an_error_that_shows_it():
    with pytest.raises(gpuad.ShapeError, match=r"mean\(\) got axis 2 of float32\[2, 3\]"):
        gpuad.mean(gpuad.asarray(values((2, 3))), axis=2)


@pytest.mark.parametrize("function", [gpuad.max, gpuad.min])
def test_an_empty_axis_has_no_extreme_and_the_error_names_it(function):
    x = gpuad.asarray(np.zeros((2, 0, 3), np.float32))
    with pytest.raises(gpuad.ShapeError, match=rf"{function.__name__}\(\) .* axis 1 of float32\[2, 0, 3\]"):
        function(x, axis=(0, -2))
    assert function(x, axis=0).shape == (0, 3)


@pytest.mark.parametrize("axis", [0, 1, 2, (0, 1), (1, 2), None])
def test_reductions_of_nothing_are_the_neutral_element(axis):
    x = np.zeros((2, 0, 3), np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, reference in (
            ("sum", np.sum), ("prod", np.prod), ("mean", np.mean), ("var", np.var), ("any", np.any), ("all", np.all),
            ("count_nonzero", np.count_nonzero), ("logsumexp", np.logaddexp.reduce),
        ):  # fmt: skip
            np.testing.assert_array_equal(
                getattr(gpuad, name)(gpuad.asarray(x), axis=axis).numpy(), reference(x, axis=axis)
            )


def test_gradient_of_an_empty_sum_is_empty():
    x = gpuad.asarray(np.zeros((3, 0), np.float32)).requires_grad_()
    gpuad.sum(gpuad.sum(x, axis=1)).backward()
    assert x.grad.shape == (3, 0)


def test_reductions_take_what_asarray_takes():
    assert gpuad.sum([1.0, 2.0]).item() == 3.0
    assert gpuad.max(np.array([1, 5, 2])).item() == 5
    assert gpuad.any([0, 0, 2]).item() is True
    assert gpuad.std(3.0).item() == 0.0


def test_sums_cannot_be_bools():
    with pytest.raises(gpuad.DTypeError, match=r"sum\(\) of float32\[2\] cannot be bool"):
        gpuad.sum([1.0, 2.0], dtype=gpuad.bool)


# --- kinks and extremes -----------------------------------------------------------------------


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_equal_extremes_share_the_gradient_evenly(axis, torch):
    x = np.array([[1.0, 3.0, 3.0], [3.0, -2.0, 3.0]])
    for ours, theirs in ((gpuad.max, torch.amax), (gpuad.min, torch.amin)):
        t = torch.tensor(x, requires_grad=True)
        theirs(t, dim=(0, 1) if axis is None else axis).sum().backward()
        found = gpuad.grad(lambda v, f=ours: gpuad.sum(f(v, axis=axis)))(gpuad.asarray(x))
        np.testing.assert_allclose(found.numpy(), t.grad.numpy())


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_extremes_pass_nan_on(axis):
    x = np.array([[1.0, np.nan, 3.0], [4.0, 5.0, -np.inf]], np.float32)
    for ours, theirs in ((gpuad.max, np.max), (gpuad.min, np.min)):
        np.testing.assert_array_equal(ours(gpuad.asarray(x), axis=axis).numpy(), theirs(x, axis=axis))


def test_the_derivative_of_a_nan_is_nan_and_of_its_neighbours_is_not():
    x = gpuad.asarray([[1.0, np.nan, 3.0], [4.0, 5.0, 6.0]])
    found = gpuad.grad(lambda v: gpuad.sum(gpuad.max(v, axis=1)))(x).numpy()
    assert np.isnan(found[0]).all()
    np.testing.assert_array_equal(found[1], [0, 0, 1])


def test_product_is_differentiated_twice_at_zeros():
    """d²(abc)/dadb is c, whatever a and b are."""
    x = gpuad.asarray(np.array([0.0, 0.0, 5.0]))
    gradient = gpuad.grad(lambda v: gpuad.prod(v))
    np.testing.assert_array_equal(gradient(x).numpy(), [0, 0, 0])
    rows = [gpuad.grad(lambda v, k=k: gradient(v)[k])(x).numpy() for k in range(3)]
    np.testing.assert_array_equal(rows, [[0, 5, 0], [5, 0, 0], [0, 0, 0]])


def test_product_with_one_zero_has_one_slope():
    x = gpuad.asarray([[2.0, 0.0, -4.0]])
    np.testing.assert_array_equal(gpuad.grad(lambda v: gpuad.sum(gpuad.prod(v, axis=1)))(x).numpy(), [[0, -8, 0]])


def test_third_derivative_of_a_product_at_zero_is_that_of_the_polynomial():
    f = lambda s: gpuad.prod(gpuad.stack([s, s, s]))  # s³
    for _ in range(3):
        f = gpuad.grad(f)
    assert f(gpuad.asarray(0.0)).item() == 6.0


def test_standard_deviation_of_constants_has_gradient_zero(torch):
    t = torch.full((4,), 2.0, requires_grad=True)
    t.std(correction=0).backward()
    found = gpuad.grad(gpuad.std)(gpuad.full(4, 2.0))
    np.testing.assert_array_equal(found.numpy(), t.grad.numpy())
    np.testing.assert_array_equal(found.numpy(), 0)
    assert np.isfinite(gpuad.grad(lambda v: gpuad.sum(gpuad.grad(gpuad.std)(v)))(gpuad.full(4, 2.0)).numpy()).all()


def test_variance_without_degrees_of_freedom_is_that_of_numpy():
    x = np.array([1.0, 2.0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for correction in (2, 3):
            np.testing.assert_array_equal(
                gpuad.var(gpuad.asarray(x), correction=correction).numpy(), np.var(x, ddof=correction)
            )
        np.testing.assert_array_equal(gpuad.var(gpuad.asarray(x[:1]), correction=1).numpy(), np.var(x[:1], ddof=1))


INFINITE = np.array(
    [[-np.inf, -np.inf, -np.inf], [-np.inf, 1.0, 2.0], [np.inf, 1.0, -np.inf], [np.nan, 1.0, 2.0], [3e4, 3e4, -3e4]]
)


def test_logsumexp_of_infinities_is_its_limit():
    with np.errstate(all="ignore"):
        expected = np.logaddexp.reduce(INFINITE, axis=1)
    found = gpuad.logsumexp(gpuad.asarray(INFINITE), axis=1).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-15)


def test_gradient_of_logsumexp_is_finite_where_everything_is_minus_infinity():
    x = gpuad.asarray(INFINITE[:2])
    pushed = gpuad.jvp(lambda v: gpuad.logsumexp(v, axis=1), (x,), (gpuad.ones_like(x),))[1]
    np.testing.assert_allclose(pushed.numpy(), [0, 1], rtol=1e-15)
    pulled = gpuad.grad(lambda v: gpuad.sum(gpuad.logsumexp(v, axis=1) * gpuad.asarray([0.0, 1.0], dtype="float64")))(x)
    np.testing.assert_allclose(pulled.numpy(), [[0, 0, 0], [0, *scipy.special.softmax([1.0, 2.0])]])


def test_truth_and_counts_carry_no_derivative():
    x = gpuad.asarray([1.0, 0.0]).requires_grad_()
    for function in (gpuad.any, gpuad.all, gpuad.count_nonzero):
        assert not function(x).requires_grad
