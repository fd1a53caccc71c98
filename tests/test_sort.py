"""What is peculiar to sorting, positions and running sums: ties, NaN, directions of gradients, zeros, messages."""

import numpy as np
import pytest

import gpuad

FLOATS = ("float16", "bfloat16", "float32", "float64")


@pytest.mark.parametrize("dtype", FLOATS)
def test_nan_counts_as_the_largest(dtype):
    x = gpuad.asarray([3.0, float("nan"), -1.0, float("inf"), float("nan"), -0.0], dtype=dtype)
    assert gpuad.argsort(x).tolist() == [2, 5, 0, 3, 1, 4]
    assert gpuad.argsort(x, descending=True).tolist() == [1, 4, 3, 0, 5, 2]
    assert np.isnan(gpuad.sort(x).tolist()[-2:]).all()
    assert gpuad.argmax(x).item() == 1 and gpuad.argmin(x).item() == 1


@pytest.mark.parametrize("dtype", ["uint8", "int64", "bool", *FLOATS])
def test_equal_elements_keep_their_order_in_both_directions(dtype):
    x = gpuad.asarray([1, 0, 1, 0, 1], dtype=dtype)
    assert gpuad.argsort(x).tolist() == [1, 3, 0, 2, 4]
    assert gpuad.argsort(x, descending=True).tolist() == [0, 2, 4, 1, 3]


def test_sorting_is_stable_on_long_axes():
    x = np.random.default_rng(0).integers(0, 5, (3, 1000))
    found = gpuad.argsort(gpuad.asarray(x), axis=1, descending=True).numpy()
    np.testing.assert_array_equal(found, np.argsort(-x, axis=1, kind="stable"))
    np.testing.assert_array_equal(
        np.take_along_axis(x, found, 1), gpuad.sort(gpuad.asarray(x), descending=True).numpy()
    )


def test_smallest_unsigned_integers_sort_last_when_descending():
    x = gpuad.asarray(np.array([0, 255, 3], np.uint8))
    assert gpuad.sort(x, descending=True).tolist() == [255, 3, 0]


def test_gradient_of_sort_goes_back_to_where_each_element_came_from(torch):
    x = np.array([[2.0, -1.0, 2.0, 0.5], [1.0, 1.0, 1.0, -3.0]])
    g = np.array([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
    for descending in (False, True):
        t = torch.tensor(x, requires_grad=True)
        torch.sort(t, dim=1, descending=descending, stable=True).values.backward(torch.tensor(g))
        _, pullback = gpuad.vjp(lambda v, d=descending: gpuad.sort(v, axis=1, descending=d), gpuad.asarray(x))
        np.testing.assert_array_equal(pullback(gpuad.asarray(g))[0].numpy(), t.grad.numpy())


def test_sorting_pulls_and_pushes_alike_at_any_order():
    """The median of three squared has the second derivative 2 along the median, however it is nested."""
    median = lambda v: gpuad.sum(gpuad.sort(v)[1] ** 2)
    x = gpuad.asarray([3.0, 1.0, 2.0])
    gradient = gpuad.grad(median)
    assert gradient(x).tolist() == [0, 0, 4]
    t = gpuad.asarray([1.0, 1.0, 1.0])
    assert gpuad.jvp(gradient, (x,), (t,))[1].tolist() == [0, 0, 2]
    assert gpuad.grad(lambda v: gpuad.sum(gradient(v)))(x).tolist() == [0, 0, 2]


def test_positions_carry_no_derivative():
    x = gpuad.asarray([1.0, 3.0, 2.0]).requires_grad_()
    for function in (gpuad.argsort, gpuad.argmax, gpuad.argmin):
        assert function(x).dtype == gpuad.int64
        assert not function(x).requires_grad
    assert gpuad.sort(x).requires_grad


def test_positions_in_nothing_are_an_error_that_shows_it():
    x = gpuad.asarray(np.zeros((2, 0), np.float32))
    with pytest.raises(gpuad.ShapeError, match=r"argmax\(\) .* axis -1 of float32\[2, 0\]"):
        gpuad.argmax(x, axis=-1)
    with pytest.raises(gpuad.ShapeError, match=r"argmin\(\) .* any axis of float32\[2, 0\]"):
        gpuad.argmin(x)


def test_there_is_no_axis_to_sort_a_scalar_along():
    with pytest.raises(gpuad.ShapeError, match=r"sort\(\) got axis -1 of float32\[\]"):
        gpuad.sort(1.0)


# --- running sums and products ----------------------------------------------------------------


def test_a_running_sum_of_several_axes_needs_to_be_told_which():
    x = gpuad.asarray(np.zeros((2, 3), np.float32))
    for function in (gpuad.cumulative_sum, gpuad.cumulative_prod):
        with pytest.raises(gpuad.ShapeError, match=rf"{function.__name__}\(\) needs axis= for float32\[2, 3\]"):
            function(x)
        with pytest.raises(gpuad.ShapeError, match="got axis 2"):
            function(x, axis=2)


def test_running_sums_begin_with_the_neutral_element_where_asked():
    x = gpuad.asarray([[2, 3], [4, 5]], dtype="int32")
    assert gpuad.cumulative_sum(x, axis=1, include_initial=True).tolist() == [[0, 2, 5], [0, 4, 9]]
    assert gpuad.cumulative_prod(x, axis=0, include_initial=True).tolist() == [[1, 1], [2, 3], [8, 15]]
    assert gpuad.cumulative_sum(gpuad.zeros((0,)), include_initial=True).tolist() == [0]


def test_running_sums_of_halves_are_kept_in_single_precision():
    x = np.ones(3000, np.float16)  # in float16, 2048 + 1 is 2048
    found = gpuad.cumulative_sum(gpuad.asarray(x))
    assert found.dtype == gpuad.float16 and found[-1].item() == 3000


def test_running_product_is_differentiated_twice_at_zeros(torch):
    x = np.array([2.0, 0.0, 3.0, 0.0, -1.0])
    weights = np.array([1.0, -2.0, 0.5, 3.0, 4.0])
    t = torch.tensor(x, requires_grad=True)
    (first,) = torch.autograd.grad((t.cumprod(0) * torch.tensor(weights)).sum(), t, create_graph=True)
    (second,) = torch.autograd.grad((first * torch.tensor(weights)).sum(), t)
    w = gpuad.asarray(weights)
    gradient = gpuad.grad(lambda v: gpuad.sum(gpuad.cumulative_prod(v) * w))
    np.testing.assert_allclose(gradient(gpuad.asarray(x)).numpy(), first.detach().numpy(), atol=1e-14)
    found = gpuad.grad(lambda v: gpuad.sum(gradient(v) * w))(gpuad.asarray(x))
    np.testing.assert_allclose(found.numpy(), second.numpy(), atol=1e-14)


def test_bools_have_no_difference():
    with pytest.raises(gpuad.DTypeError, match=r"diff\(\) of bool\[2\]"):
        gpuad.diff(gpuad.asarray([True, False]))


def test_differences_are_taken_a_whole_number_of_times():
    with pytest.raises(gpuad.ShapeError, match="n = -1"):
        gpuad.diff([1.0, 2.0], n=-1)


def test_differences_undo_running_sums():
    x = gpuad.asarray(np.arange(12.0).reshape(3, 4) ** 2)
    np.testing.assert_array_equal(
        gpuad.diff(gpuad.cumulative_sum(x, axis=0, include_initial=True), axis=0).numpy(), x.numpy()
    )
