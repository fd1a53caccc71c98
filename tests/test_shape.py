"""Rearranging and joining: what is a view, what stays pending, and what is refused."""

import numpy as np
import pytest

import gpuad
from gpuad import asarray
from gpuad.buffer import LiveBytes, observers
from gpuad.errors import DeviceError, DTypeError, ShapeError

x = np.arange(24.0).reshape(2, 3, 4)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: gpuad.reshape(x, (6, 4)),
        lambda x: gpuad.reshape(gpuad.expand_dims(gpuad.reshape(x, -1), axis=0), (4, 6)),
        lambda x: gpuad.permute_dims(x, (2, 0, 1)),
        lambda x: gpuad.expand_dims(gpuad.permute_dims(x, (2, 0, 1)), axis=1),
        lambda x: gpuad.squeeze(gpuad.expand_dims(x, axis=-1), -1),
        lambda x: gpuad.moveaxis(x, 0, -1),
        lambda x: gpuad.flip(x),
        lambda x: gpuad.broadcast_to(x, (5, 2, 3, 4)),
        lambda x: gpuad.unstack(x, axis=1)[2],
        lambda x: gpuad.meshgrid(x[0, 0], x[0, :, 0])[1],
        lambda x: x[..., ::-2][0],
    ],
)
def test_views_of_computed_tensors_take_no_memory(view):
    tensor, count = asarray(x), LiveBytes()
    observers.append(count)
    try:
        y = view(tensor)
    finally:
        observers.remove(count)
    assert count.peak == 0
    assert np.shares_memory(y.array.data, tensor.array.data)


def test_reshape_copies_only_what_no_strides_describe():
    tensor, count = asarray(x), LiveBytes()
    moved = gpuad.permute_dims(tensor, (2, 0, 1))
    observers.append(count)
    try:
        y = gpuad.reshape(moved, (4, 6))
        assert count.live == 0  # the last two axes still lie one after the other
        z = gpuad.reshape(moved, -1)
        assert count.live == x.nbytes
    finally:
        observers.remove(count)
    np.testing.assert_array_equal(y.numpy(), x.transpose(2, 0, 1).reshape(4, 6))
    np.testing.assert_array_equal(z.numpy(), x.transpose(2, 0, 1).reshape(-1))


def test_reshape_of_a_transposed_tensor_reads_nothing_on_meta():
    big = gpuad.zeros((1 << 15, 1 << 15), device="meta")
    assert gpuad.reshape(gpuad.permute_dims(big + 1.0, (1, 0)), -1).shape == (1 << 30,)


def test_constants_stay_pending_through_reshape_and_broadcast():
    y = gpuad.broadcast_to(gpuad.reshape(gpuad.zeros((2, 3)), (3, 2, 1)), (3, 2, 5))
    assert y.array.op is not None
    assert y.numpy().shape == (3, 2, 5)


def test_triangles_stay_pending():
    y = gpuad.tril(asarray(x) * 2.0) + 1.0
    assert y.array.op is not None
    np.testing.assert_array_equal(y.numpy(), np.tril(x * 2.0) + 1.0)


def test_triangles_hide_infinities_from_the_gradient():
    m = np.array([[1.0, np.inf], [3.0, 4.0]])
    f = lambda m: gpuad.sum(gpuad.tril(m) * gpuad.tril(m))
    np.testing.assert_array_equal(gpuad.grad(f)(m).numpy(), [[2.0, 0.0], [6.0, 8.0]])


def test_functions_take_what_asarray_takes():
    assert gpuad.flip([1.0, 2.0]).dtype == gpuad.float32
    np.testing.assert_array_equal(gpuad.concat([[1, 2], np.array([3.0])]).numpy(), [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(gpuad.roll(np.arange(4), -1).numpy(), [1, 2, 3, 0])


def test_counts_of_repeat_may_be_a_tensor_that_has_values():
    np.testing.assert_array_equal(gpuad.repeat(asarray([5.0, 6.0]), asarray([2, 1])).numpy(), [5.0, 5.0, 6.0])
    with pytest.raises(DeviceError, match="meta"):
        gpuad.repeat(gpuad.zeros(2, device="meta"), gpuad.ones(2, dtype=gpuad.int64, device="meta"))


def test_joined_dtypes_are_promoted_and_their_gradients_are_not():
    half, single = gpuad.ones(2, dtype=gpuad.float16), gpuad.ones(3)
    y, pull = gpuad.vjp(lambda *a: gpuad.concat(a), half, single)
    assert y.dtype == gpuad.float32
    assert [g.dtype for g in pull(gpuad.ones(5))] == [gpuad.float16, gpuad.float32]


def test_concat_keeps_none_of_its_inputs_on_the_tape():
    w = asarray([1.0, 2.0]).requires_grad_()
    y = gpuad.concat([w, w])
    assert not [v for v in y.link[0].saved if hasattr(v, "dtype")]


def test_one_pending_tensor_may_be_joined_to_itself():
    w = gpuad.ones(2)
    np.testing.assert_array_equal(gpuad.concat([w, w]).numpy(), np.ones(4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gpuad.reshape(x, (5, 5)), r"float64\[2, 3, 4\].*24 elements"),
        (lambda: gpuad.permute_dims(x, (0, 1)), "each axis"),
        (lambda: gpuad.moveaxis(x, (0, 1), 0), "2 axes to move to 1"),
        (lambda: gpuad.moveaxis(x, (0, -3), (0, 1)), "twice"),
        (lambda: gpuad.expand_dims(x, axis=4), "cannot put an axis at 4"),
        (lambda: gpuad.squeeze(x, 1), "length is 3"),
        (lambda: gpuad.broadcast_to(x, (3, 4)), "cannot repeat"),
        (lambda: gpuad.broadcast_arrays(x, x[:, :2]), "cannot broadcast"),
        (lambda: gpuad.flip(x, axis=3), "axis 3"),
        (lambda: gpuad.roll(x, (1, 2), axis=0), "2 shifts for 1 axes"),
        (lambda: gpuad.tile(x, (-1,)), "cannot repeat"),
        (lambda: gpuad.repeat(x, -1), "cannot repeat"),
        (lambda: gpuad.repeat(x, [1, 2], axis=1), "one count for each of the 3"),
        (lambda: gpuad.meshgrid(x), "one-dimensional"),
        (lambda: gpuad.tril(x[0, 0]), "2 axes"),
        (lambda: gpuad.pad(x, (1, 2, 3)), "pair of widths"),
        (lambda: gpuad.pad(x, -1), "not negative"),
        (lambda: gpuad.pad(x, 1, mode="edge"), "edge"),
        (lambda: gpuad.concat([]), "at least one"),
        (lambda: gpuad.concat([x, x[0]]), "cannot join"),
        (lambda: gpuad.concat([x, x[:, :2]], axis=0), "every other axis"),
        (lambda: gpuad.stack([x, x[:1]]), "one shape"),
        (lambda: gpuad.stack([x], axis=5), "cannot put"),
        (lambda: gpuad.unstack(np.array(1.0)), "axis 0"),
    ],
)
def test_shapes_that_do_not_fit_are_errors_that_say_why(call, message):
    with pytest.raises(ShapeError, match=message):
        call()


def test_fractions_cannot_pad_integers_nor_count_repeats():
    with pytest.raises(DTypeError, match="pad"):
        gpuad.pad(np.arange(3), 1, constant_values=0.5)
    with pytest.raises(DTypeError, match="counts"):
        gpuad.repeat(x, 1.5)
