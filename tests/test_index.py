"""Indexing and assignment: NumPy's values, the derivatives of both, and what assignment must not do."""

import linecache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpuad
from gpuad import Tensor, asarray
from gpuad.errors import DeviceError, DTypeError, GpuadError, GradientError, IndexRangeError, ShapeError

# --- random keys ------------------------------------------------------------------------------

lengths = st.integers(0, 4)
bounds = st.none() | st.integers(-5, 5)
slices = st.builds(slice, bounds, bounds, st.none() | st.sampled_from([-3, -2, -1, 1, 2, 3]))


@st.composite
def shapes_and_keys(draw):
    """A shape and a key for it: slices, integers, None, an Ellipsis, integer arrays, masks."""
    shape = tuple(draw(st.lists(lengths, max_size=4)))
    common = tuple(draw(st.lists(st.integers(0, 3), max_size=2)))  # what index arrays broadcast to
    key, axis, done = [], 0, set()
    while axis < len(shape):
        n = shape[axis]
        kind = draw(st.sampled_from(["slice", "slice", "int", "array", "mask", "none", "flag", "rest", "stop"]))
        if kind == "slice":
            key.append(draw(slices))
        elif kind == "int" and n:
            key.append(draw(st.integers(-n, n - 1)))
        elif kind == "array" and n:
            mine = tuple(draw(st.sampled_from([1, d])) for d in common[draw(st.integers(0, len(common))) :])
            size = int(np.prod(mine))
            flat = draw(st.lists(st.integers(-n, n - 1), min_size=size, max_size=size))
            key.append(np.array(flat, draw(st.sampled_from([np.int64, np.int32, np.int8]))).reshape(mine))
        elif kind == "mask":
            span = draw(st.integers(1, min(2, len(shape) - axis)))
            size = int(np.prod(shape[axis : axis + span]))
            flat = draw(st.lists(st.booleans(), min_size=size, max_size=size))
            key.append(np.array(flat, bool).reshape(shape[axis : axis + span]))
            axis += span - 1
        elif kind == "none":
            key.append(None)
            continue
        elif kind == "flag" and draw(st.integers(0, 9)) == 0:
            key.append(draw(st.booleans()))
            continue
        elif kind == "rest" and "rest" not in done:
            key.append(...)
            axis = draw(st.integers(axis, len(shape)))
            done.add(kind)
            continue
        elif kind == "stop" and "rest" not in done:
            break
        else:
            continue
        axis += 1
    return shape, tuple(key)


def numbers(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def as_tensors(key):
    """`key` with its arrays as tensors."""
    return tuple(asarray(k) if isinstance(k, np.ndarray) else k for k in key)


def numpy_of(x, key):
    """`x[key]`, or None where NumPy refuses."""
    try:
        return x[key]
    except (IndexError, ValueError):
        return None


@given(shapes_and_keys(), st.booleans())
def test_indexing_gives_what_numpy_gives(shape_and_key, tensors):
    shape, key = shape_and_key
    x = numbers(shape)
    expected = numpy_of(x, key)
    ours = as_tensors(key) if tensors else key
    if expected is None:
        with pytest.raises((IndexRangeError, ShapeError)):
            asarray(x)[ours]
        return
    found = asarray(x)[ours]
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found.numpy(), expected)


@given(shapes_and_keys())
def test_gradient_of_indexing_adds_at_the_places_read(shape_and_key):
    shape, key = shape_and_key
    x = numbers(shape)
    y = numpy_of(x, key)
    if y is None:
        return
    g = numbers(np.shape(y), 1)
    expected = np.zeros(shape)
    np.add.at(expected, key, g)
    _, pull = gpuad.vjp(lambda x: x[key], asarray(x))
    np.testing.assert_allclose(pull(asarray(g))[0].numpy(), expected, atol=1e-12)


def assignment_in_numpy(x, key, v, g):
    """x with v at key, and the cotangents of x and v for the cotangent g, by the places of an assignment of numbers."""
    y = x.copy()
    y[key] = v
    order = np.arange(np.size(y[key])).reshape(np.shape(y[key]))
    places = np.full(x.shape, -1)
    places[key] = order
    spread = np.zeros(order.shape)
    spread.reshape(-1)[places[places >= 0]] = g[places >= 0]
    extra = spread.ndim - v.ndim
    gv = spread.sum(tuple(range(extra)))
    for k, n in enumerate(v.shape):
        if n == 1:
            gv = gv.sum(k, keepdims=True)
    return y, np.where(places < 0, g, 0.0), gv


def setitem(x, key, v):
    y = x + 0.0
    y[key] = v
    return y


@given(shapes_and_keys(), st.data())
def test_assignment_gives_what_numpy_gives_with_both_gradients(shape_and_key, data):
    shape, key = shape_and_key
    x = numbers(shape)
    part = numpy_of(x, key)
    if part is None:
        return
    start = data.draw(st.integers(0, np.ndim(part)))
    v = numbers([data.draw(st.sampled_from([1, n])) for n in np.shape(part)[start:]], 1)
    g = numbers(shape, 2)
    expected, gx, gv = assignment_in_numpy(x, key, v, g)
    y, pull = gpuad.vjp(lambda x, v: setitem(x, key, v), asarray(x), asarray(v))
    np.testing.assert_array_equal(y.numpy(), expected)
    found = pull(asarray(g))
    np.testing.assert_array_equal(found[0].numpy(), gx)
    np.testing.assert_allclose(found[1].numpy(), gv, atol=1e-12)
    tx, tv = numbers(shape, 3), numbers(v.shape, 4)
    _, slope = gpuad.jvp(lambda x, v: setitem(x, key, v), (asarray(x), asarray(v)), (asarray(tx), asarray(tv)))
    tangent = tx.copy()
    tangent[key] = tv
    np.testing.assert_array_equal(slope.numpy(), tangent)


# --- what is read -----------------------------------------------------------------------------


def test_basic_indexing_looks_at_the_same_memory():
    x = asarray(np.arange(12.0).reshape(3, 4))
    for key in (1, slice(None, None, -1), (..., 2), (None, slice(1, 3)), (1, 2), ()):
        assert np.shares_memory(x[key].array.data, x.array.data)


def test_indexing_of_a_pending_tensor_computes_it():
    x = asarray(np.arange(4.0)) * 2.0
    np.testing.assert_array_equal(x[1:3].numpy(), [2.0, 4.0])
    np.testing.assert_array_equal(x[[3, 0]].numpy(), [6.0, 0.0])


def test_indices_may_be_numbers_of_any_library():
    x = asarray(np.arange(5.0))
    for i in (2, np.int32(2), np.array(2), asarray(2), asarray(np.array(2, np.uint8))):
        assert x[i].numpy() == 2.0
    for i in ([0, -1], (0, -1), np.array([0, -1]), asarray([0, -1]), range(0, 5, 4)):
        np.testing.assert_array_equal(x[(i,)].numpy(), [0.0, 4.0])
    np.testing.assert_array_equal(x[asarray(1) : asarray(3)].numpy(), [1.0, 2.0])
    assert x[[]].shape == (0,)


def test_small_index_dtypes_reach_the_end_of_long_axes():
    x = np.arange(600.0).reshape(300, 2)
    i, j = np.array([-1, 100], np.int8), np.array([1, 0], np.int8)
    np.testing.assert_array_equal(asarray(x)[asarray(i), asarray(j)].numpy(), x[i, j])
    np.testing.assert_array_equal(asarray(x)[np.array([250], np.uint64)].numpy(), x[[250]])


def test_gather_of_memory_in_another_order_is_right():
    x = np.arange(24.0).reshape(4, 6)
    np.testing.assert_array_equal(asarray(x)[:, ::2][[2, 0]].numpy(), x[[2, 0], ::2])


def test_take_gives_the_slices_at_integers():
    x = np.arange(12.0).reshape(3, 4)
    np.testing.assert_array_equal(gpuad.take(asarray(x), asarray([2, -1]), axis=1).numpy(), x[:, [2, -1]])
    np.testing.assert_array_equal(gpuad.take(x[0], np.array([[1], [0]])).numpy(), [[1.0], [0.0]])
    np.testing.assert_array_equal(gpuad.take(x, -1, axis=0).numpy(), x[-1])
    with pytest.raises(ShapeError, match="axis="):
        gpuad.take(x, [0])
    with pytest.raises(DTypeError, match="mask"):
        gpuad.take(x, [True, False, True], axis=0)


def test_gradient_of_take_adds_half_types_in_float32():
    ones = gpuad.ones((4096, 3), dtype=gpuad.float16)
    _, pull = gpuad.vjp(lambda x: x[np.zeros(4096, np.int64)], gpuad.zeros((2, 3), dtype=gpuad.float16))
    np.testing.assert_array_equal(pull(ones)[0].numpy(), np.array([[4096.0] * 3, [0.0] * 3], np.float16))


def test_gradient_of_take_is_the_same_bits_every_time():
    rng = np.random.default_rng(0)
    index, g = asarray(rng.integers(0, 7, 50_000)), asarray(rng.standard_normal((50_000, 3)).astype(np.float32))
    _, pull = gpuad.vjp(lambda x: x[index], gpuad.zeros((7, 3)))
    first = pull(g)[0].numpy()
    np.testing.assert_array_equal(pull(g)[0].numpy(), first)
    np.testing.assert_allclose(first, np.eye(7)[:, index.numpy()] @ g.numpy().astype(np.float64), rtol=2e-3)


# --- assignment -------------------------------------------------------------------------------


def test_assignment_never_corrupts_a_tape():
    x = np.array([1.0, 2.0, 3.0])
    w = asarray(x).requires_grad_()
    h = w * 2.0
    y = h * h  # keeps h
    h[0] = 100.0
    gpuad.sum(y).backward()
    np.testing.assert_array_equal(w.grad.numpy(), 8 * x)


def test_pending_reader_survives_assignment():
    a = gpuad.ones(3)
    b = a + 1.0
    a[0] = 5.0
    np.testing.assert_array_equal(b.numpy(), [2.0, 2.0, 2.0])
    np.testing.assert_array_equal(a.numpy(), [5.0, 1.0, 1.0])


def test_views_do_not_see_later_assignments():
    x = gpuad.zeros((2, 2))
    row = x[0]
    x[0, 0] = 1.0
    np.testing.assert_array_equal(row.numpy(), [0.0, 0.0])


def test_constant_becomes_traced_when_a_traced_value_is_assigned():
    def f(x):
        buffer = gpuad.zeros(3, dtype=gpuad.float64)
        buffer[1] = x * x
        return gpuad.sum(buffer * buffer)

    x = asarray(2.0)
    assert gpuad.grad(f)(x).numpy() == 32.0
    assert gpuad.jvp(gpuad.grad(f), (x,), (asarray(1.0),))[1].numpy() == 48.0
    assert gpuad.grad(gpuad.grad(f))(x).numpy() == 48.0


def test_last_of_repeated_places_wins_in_the_gradient_too():
    v = asarray([1.0, 2.0, 3.0]).requires_grad_()
    x = gpuad.zeros(2)
    x[[0, 0, 1]] = v
    np.testing.assert_array_equal(x.numpy(), [2.0, 3.0])
    gpuad.sum(x * asarray([10.0, 1.0])).backward()
    np.testing.assert_array_equal(v.grad.numpy(), [0.0, 10.0, 1.0])


def test_overwritten_infinity_leaves_no_nan_in_the_gradient():
    w = asarray([1.0, np.inf, 3.0]).requires_grad_()
    x = w * 2.0
    x[w > 2.0] = 1.0
    x[[1]] = 1.0
    gpuad.sum(x).backward()
    np.testing.assert_array_equal(w.grad.numpy(), [2.0, 0.0, 0.0])


def test_masks_may_depend_on_what_is_differentiated():
    def f(x):
        y = x * 1.0
        y[y > 2.0] = 2.0
        return gpuad.sum(x[x > 0.0] * x[x > 0.0]) + gpuad.sum(y)

    x, ones = asarray([-1.0, 1.0, 3.0]), gpuad.ones(3)
    np.testing.assert_array_equal(gpuad.grad(f)(x).numpy(), [1.0, 3.0, 6.0])
    np.testing.assert_array_equal(gpuad.jvp(gpuad.grad(f), (x,), (ones,))[1].numpy(), [0.0, 2.0, 2.0])


def test_assignment_casts_to_the_dtype_of_the_tensor():
    x = gpuad.zeros(3)
    x[0] = np.float64(1.5)
    x[1] = asarray(2)
    x[2] = True
    assert x.dtype == gpuad.float32
    np.testing.assert_array_equal(x.numpy(), [1.5, 2.0, 1.0])
    flags = asarray([False, False])
    flags[flags == False] = 1  # noqa: E712  elementwise
    assert flags.dtype == gpuad.bool
    n = asarray([1, 2])
    for v in (0.5, asarray(0.5), [0.5, 0.5]):
        with pytest.raises(DTypeError, match="cannot assign"):
            n[0] = v
    small = asarray(np.zeros(2, np.uint8))
    with pytest.raises(DTypeError, match="does not fit"):
        small[0] = 256


def test_assignment_of_a_wrong_shape_is_an_error():
    x = gpuad.zeros((3, 4))
    for key, v in ((0, np.ones(3)), ([0, 1], np.ones((3, 4))), (x > 1.0, np.ones(2)), (..., np.ones((2, 3, 4)))):
        with pytest.raises(ShapeError, match=r"cannot assign float32\["):
            x[key] = v


def test_in_place_operators_on_parts_change_the_tensor():
    x = asarray([[1.0, 2.0], [3.0, 4.0]])
    x[0] += 1.0
    x[:, 1] *= asarray([2.0, 0.5])
    np.testing.assert_array_equal(x.numpy(), [[2.0, 6.0], [3.0, 2.0]])


def test_in_place_operators_keep_shape_and_dtype():
    x = gpuad.ones(3, dtype=gpuad.float16)
    x += gpuad.ones(3)
    assert x.dtype == gpuad.float16
    with pytest.raises(ShapeError, match="in-place"):
        x += gpuad.ones((2, 3))
    n = asarray([1, 2])
    with pytest.raises(DTypeError, match="in-place"):
        n /= 2
    with pytest.raises(DTypeError, match="in-place"):
        n += 0.5


def test_in_place_operators_never_corrupt_a_tape():
    w = asarray([1.0, 2.0]).requires_grad_()
    h = w * 3.0
    y = h * h
    h += 1.0
    gpuad.sum(y * h).backward()  # 9 w^2 (3 w + 1)
    np.testing.assert_allclose(w.grad.numpy(), 81 * np.array([1.0, 2.0]) ** 2 + 18 * np.array([1.0, 2.0]))


# --- leaves -----------------------------------------------------------------------------------


def test_assignment_into_a_leaf_is_an_error_that_names_it():
    w = gpuad.zeros(3).requires_grad_()
    w.name = "weight"
    with pytest.raises(GradientError, match=r"(?s)weight.*float32\[3\].*test_index.py:\d+.*no_grad"):
        w[0] = 1.0
    with pytest.raises(GradientError, match="weight"):
        w += 1.0
    assert w.is_leaf


def test_leaf_stays_the_leaf_when_assigned_under_no_grad():
    w = gpuad.zeros(3).requires_grad_()
    link = w.link
    loss = gpuad.sum(w * w)
    with gpuad.no_grad():
        w[0] = 2.0
        w += 1.0
        w[[1, 1]] = asarray([5.0, 7.0])
        w.copy_(w * 2.0)
    assert w.link is link
    np.testing.assert_array_equal(w.numpy(), [6.0, 14.0, 2.0])
    loss.backward()
    np.testing.assert_array_equal(w.grad.numpy(), [0.0, 0.0, 0.0])  # of the values at the time
    gpuad.sum(w * w).backward()
    np.testing.assert_array_equal(w.grad.numpy(), [12.0, 28.0, 4.0])


def test_value_inside_a_transformation_cannot_enter_a_leaf():
    w = gpuad.zeros(2).requires_grad_()

    def f(x):
        w[0] = x
        return x

    with gpuad.no_grad(), pytest.raises(GradientError, match="grad"):
        gpuad.grad(f)(asarray(1.0))


# --- tensors without a name -------------------------------------------------------------------


def test_assignment_into_an_unnamed_part_is_an_error_that_shows_the_right_form():
    x = gpuad.zeros((2, 2))
    with pytest.raises(GpuadError, match=r"(?s)test_index.py:\d+.*x\[0, 1\] = v"):
        x[0][1] = 5.0
    with pytest.raises(GpuadError, match=r"x\[0, 1\] = v"):
        x[0][1] += 5.0
    with pytest.raises(GpuadError, match=r"x\[0, 1\] = v"):
        [x][0][0][...] = 5.0
    with pytest.raises(GpuadError, match=r"x\[0, 1\] = v"):
        x[0][0:1] = 5.0
    np.testing.assert_array_equal(x.numpy(), np.zeros((2, 2)))


class Holder:
    def __init__(self, x):
        self.x = x

    @property
    def found(self):
        return self.x


def test_assignment_into_a_named_part_rebinds_that_name_alone():
    x = gpuad.zeros((2, 2))
    row = x[0]
    row[1] = 5.0
    np.testing.assert_array_equal(row.numpy(), [0.0, 5.0])
    np.testing.assert_array_equal(x.numpy(), np.zeros((2, 2)))


def assign_argument(t):
    t[0] = 1.0
    return t


def assign_global():
    global_tensor[0] = 1.0


def assign_free(t):
    def inside():
        t[0] = 1.0

    inside()
    return t


global_tensor = gpuad.zeros(2)


def test_every_kind_of_name_is_a_name():
    made = lambda: gpuad.zeros((2, 2))[0]
    expected = [1.0, 0.0]
    holder, items, table = Holder(made()), [made()], {"x": made()}
    holder.x[0] = 1.0
    np.testing.assert_array_equal(holder.x.numpy(), expected)
    holder.found[1] = 1.0
    np.testing.assert_array_equal(holder.x.numpy(), [1.0, 1.0])
    items[0][0] = 1.0
    table["x"][0] = 1.0
    assign_global()
    (walrus := made())[0] = 1.0
    explicit = made()
    explicit.__setitem__(0, 1.0)
    copied = made()
    copied.copy_(asarray(expected))
    found = [
        items[0],
        table["x"],
        global_tensor,
        walrus,
        explicit,
        copied,
        assign_argument(made()),
        assign_free(made()),
    ]
    for t in [*found, *[assign_argument(t) for t in gpuad.unstack(gpuad.zeros((2, 2)))]]:
        np.testing.assert_array_equal(t.numpy(), expected)


# --- errors and the meta device ---------------------------------------------------------------


def test_index_out_of_range_names_index_axis_length_and_line():
    x = gpuad.zeros((3, 4))
    for key, message in (
        ((0, 4), "index 4 .* axis 1 .* length 4"),
        (-4, "index -4 .* axis 0 .* length 3"),
        ([0, 3], "index 3 .* axis 0 .* length 3"),
        ((slice(None), asarray([1, -5])), "index -5 .* axis 1 .* length 4"),
    ):
        with pytest.raises(IndexRangeError, match=message) as error:
            x[key]
        assert "test_index.py" in str(error.value) and "float32[3, 4]" in str(error.value)
        with pytest.raises(IndexError, match=message):
            x[key] = 1.0


def test_line_of_an_index_error_is_the_line_of_the_user():
    x = gpuad.zeros(3)
    with pytest.raises(IndexRangeError) as error:
        x[[7]]
    line = int(str(error.value).split("test_index.py:")[1].split("\n")[0].split()[0])
    assert "x[[7]]" in linecache.getline(__file__, line)


def test_keys_that_make_no_sense_are_errors():
    x = gpuad.zeros((3, 4))
    for key, kind in (
        ((0, 0, 0), IndexRangeError),
        ((..., ...), IndexRangeError),
        (0.5, DTypeError),
        (asarray([0.0, 1.0]), DTypeError),
        ("a", DTypeError),
        (slice(0.5, None), DTypeError),
        (slice(None, None, 0), ShapeError),
        ([True, False], IndexRangeError),
        (([0, 1], [0, 1, 2]), ShapeError),
    ):
        with pytest.raises(kind):
            x[key]


def test_integers_made_of_a_differentiated_tensor_are_constants():
    x = asarray([1.0, 2.0])
    g = gpuad.grad(lambda x: gpuad.sum(x[x.to(gpuad.int64) - 1] * x))(x)
    np.testing.assert_array_equal(g.numpy(), [2.0, 4.0])


def test_meta_device_indexes_by_shape():
    x = gpuad.zeros((3, 4), device="meta")
    assert x[asarray([0, 1, 2, 2, 9], device="meta")].shape == (5, 4)  # what it holds is not known
    assert x[[0, 1]].shape == (2, 4) and x[..., None, 1].shape == (3, 1)
    assert x[np.array([True, False, True])].shape == (2, 4)
    with pytest.raises(IndexRangeError):
        x[[3]]
    x[[0, 1], 1:] = gpuad.ones((2, 3), device="meta")
    x[x > 0.0] = 0.0
    assert x.shape == (3, 4)
    with pytest.raises(DeviceError, match=r"(?s)mask bool\[3, 4\].*where"):
        x[x > 0.0]


def test_tape_keeps_the_indices_as_an_array():
    w = gpuad.zeros((3, 2)).requires_grad_()
    y = w[[0, 2, 2]]
    kept = [v for v in y.link[0].saved if hasattr(v, "dtype")]
    assert [v.dtype for v in kept] == [gpuad.int64] and kept[0].shape == (3,)
    assert not [v for v in (w[1:] * 1.0).link[0].parents[0][0].saved if hasattr(v, "dtype")]


def test_arguments_of_a_differentiated_function_may_be_assigned():
    def f(x):
        x[0] = 5.0
        x *= 2.0
        return gpuad.sum(x * x)

    np.testing.assert_array_equal(gpuad.grad(f)(asarray([1.0, 2.0])).numpy(), [0.0, 16.0])


def test_assigned_tensors_are_tensors():
    assert type(setitem(gpuad.zeros(2), 0, 1.0)) is Tensor
