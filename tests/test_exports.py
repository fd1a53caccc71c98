"""NumPy's protocols, the array API's namespace and DLPack: what other libraries see of a tensor."""

import inspect
import operator
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import gpuad
from gpuad import numpy_names
from gpuad.numpy_functions import REBUILT

A = np.array([[0.3, -1.2, 2.5], [0.7, 1.9, -0.4]])
P = np.array([[0.3, 1.2, 2.5], [0.7, 1.9, 0.4]])  # positive
S = np.array([[2.0, 0.3, -0.1], [0.4, 3.0, 0.2], [-0.3, 0.1, 1.5]])  # well conditioned
V = np.array([0.5, -1.5, 2.0])

# What users write with NumPy, of one float64 array: an array in the first run and a tensor in the second.
SMOOTH = {
    "np.exp(x)": (A, lambda x: np.exp(x)),
    "np.add(array, x)": (A, lambda x: np.add(A, x)),
    "array * x": (A, lambda x: P * x),
    "array - x": (A, lambda x: V - x),
    "array / x": (A, lambda x: P / x),
    "array ** x": (A, lambda x: P**x),
    "array @ x": (S, lambda x: A @ x),
    "float64 * x": (A, lambda x: np.float64(2) * x),
    "float64 - x": (A, lambda x: np.float64(2) - x),
    "float64 / x": (A, lambda x: np.float64(2) / x),
    "x ** 2": (A, lambda x: np.power(x, 2)),
    "2 ** x": (A, lambda x: np.power(2.0, x)),
    "np.true_divide": (A, lambda x: np.true_divide(x, P)),
    "np.absolute": (A, lambda x: np.absolute(x)),
    "np.arcsin": (A / 3, lambda x: np.arcsin(x)),
    "np.arccos": (A / 3, lambda x: np.arccos(x)),
    "np.arctan": (A, lambda x: np.arctan(x)),
    "np.arcsinh": (A, lambda x: np.arcsinh(x)),
    "np.arccosh": (P + 1, lambda x: np.arccosh(x)),
    "np.arctanh": (A / 3, lambda x: np.arctanh(x)),
    "np.arctan2": (A, lambda x: np.arctan2(x, P)),
    "np.hypot": (A, lambda x: np.hypot(P, x)),
    "np.logaddexp": (A, lambda x: np.logaddexp(x, P)),
    "np.maximum": (A, lambda x: np.maximum(x, 0.5)),
    "np.minimum": (A, lambda x: np.minimum(0.5, x)),
    "np.square": (A, lambda x: np.square(x)),
    "np.sqrt": (P, lambda x: np.sqrt(x)),
    "np.log1p": (P, lambda x: np.log1p(x)),
    "np.matmul": (S, lambda x: np.matmul(A, x)),
    "add.reduce": (A, lambda x: np.add.reduce(x)),
    "add.reduce(axis=None)": (A, lambda x: np.add.reduce(x, axis=None)),
    "add.reduce(-1, keepdims)": (A, lambda x: np.add.reduce(x, -1, keepdims=True)),
    "multiply.reduce": (A, lambda x: np.multiply.reduce(x, axis=1)),
    "maximum.reduce": (A, lambda x: np.maximum.reduce(x)),
    "minimum.reduce": (A, lambda x: np.minimum.reduce(x, (0, 1))),
    "np.sum(x)": (A, lambda x: np.sum(x)),
    "np.sum(x, 0)": (A, lambda x: np.sum(x, 0)),
    "np.sum(x, axis, keepdims)": (A, lambda x: np.sum(x, axis=1, keepdims=True)),
    "np.mean(x, 1)": (A, lambda x: np.mean(x, 1)),
    "np.mean(x, defaults)": (A, lambda x: np.mean(x, axis=0, dtype=None, out=None, keepdims=False)),
    "np.prod": (A, lambda x: np.prod(x, 0)),
    "np.max": (A, lambda x: np.max(x, 1)),
    "np.amax": (A, lambda x: np.amax(x)),
    "np.min": (A, lambda x: np.min(x, axis=(0, 1))),
    "np.amin": (A, lambda x: np.amin(x, 0)),
    "np.var(x)": (A, lambda x: np.var(x)),
    "np.var(ddof)": (A, lambda x: np.var(x, 1, ddof=1)),
    "np.std(correction)": (A, lambda x: np.std(x, axis=1, correction=1)),
    "np.cumsum(x)": (A, lambda x: np.cumsum(x)),
    "np.cumsum(x, 1)": (A, lambda x: np.cumsum(x, 1)),
    "np.cumprod(x, 0)": (A, lambda x: np.cumprod(x, 0)),
    "np.sort": (A, lambda x: np.sort(x)),
    "np.sort(axis=None)": (A, lambda x: np.sort(x, axis=None)),
    "np.where(c, x, 0)": (A, lambda x: np.where(A > 0, x, 0.0)),
    "np.where(x > 0, array, x)": (A, lambda x: np.where(x > 0, P, x)),
    "np.concatenate": (A, lambda x: np.concatenate([P, x, x])),
    "np.concatenate(axis)": (A, lambda x: np.concatenate((x, A), axis=1)),
    "np.concatenate(axis=None)": (A, lambda x: np.concatenate((x, V), axis=None)),
    "np.stack": (A, lambda x: np.stack([x, P], axis=1)),
    "np.hstack": (A, lambda x: np.hstack([x, P])),
    "np.vstack": (A, lambda x: np.vstack([x, V])),
    "np.reshape": (A, lambda x: np.reshape(x, (3, 2))),
    "np.reshape(-1)": (A, lambda x: np.reshape(x, -1)),
    "np.ravel": (A, lambda x: np.ravel(x)),
    "np.transpose": (A, lambda x: np.transpose(x)),
    "np.transpose(axes)": (A[None], lambda x: np.transpose(x, (2, 0, 1))),
    "np.swapaxes": (A[None], lambda x: np.swapaxes(x, 0, -1)),
    "np.moveaxis": (A[None], lambda x: np.moveaxis(x, 0, -1)),
    "np.moveaxis(several)": (A[None], lambda x: np.moveaxis(x, [0, 1], [-1, 0])),
    "np.expand_dims": (A, lambda x: np.expand_dims(x, 1)),
    "np.expand_dims(several)": (A, lambda x: np.expand_dims(x, (0, -1))),
    "np.squeeze": (A[None, :, None], lambda x: np.squeeze(x)),
    "np.squeeze(axis)": (A[None, :, None], lambda x: np.squeeze(x, 2)),
    "np.broadcast_to": (V, lambda x: np.broadcast_to(x, (2, 3))),
    "np.broadcast_arrays": (V, lambda x: np.broadcast_arrays(x, A)[0]),
    "np.meshgrid": (V, lambda x: np.meshgrid(x, np.arange(2.0))[0]),
    "np.flip": (A, lambda x: np.flip(x)),
    "np.flip(axis)": (A, lambda x: np.flip(x, 1)),
    "np.roll": (A, lambda x: np.roll(x, 2)),
    "np.roll(axis)": (A, lambda x: np.roll(x, 1, axis=1)),
    "np.tile": (A, lambda x: np.tile(x, 2)),
    "np.tile(several)": (A, lambda x: np.tile(x, (2, 1, 2))),
    "np.repeat": (A, lambda x: np.repeat(x, 2)),
    "np.repeat(axis)": (A, lambda x: np.repeat(x, [1, 2, 0], axis=1)),
    "np.tril": (S, lambda x: np.tril(x)),
    "np.triu": (S, lambda x: np.triu(x, 1)),
    "np.clip": (A, lambda x: np.clip(x, -0.5, 1.0)),
    "np.clip(max=)": (A, lambda x: np.clip(x, max=0.6)),
    "np.pad": (A, lambda x: np.pad(x, 1)),
    "np.pad(values)": (A, lambda x: np.pad(x, ((1, 0), (0, 2)), "constant", constant_values=3.0)),
    "np.diff": (A, lambda x: np.diff(x)),
    "np.diff(n, axis)": (S, lambda x: np.diff(x, 2, axis=0)),
    "np.diff(prepend=)": (A, lambda x: np.diff(x, prepend=np.zeros((2, 1)))),
    "np.dot(vectors)": (V, lambda x: np.dot(x, V)),
    "np.dot(matrices)": (S, lambda x: np.dot(A, x)),
    "np.dot(number)": (A, lambda x: np.dot(x, np.float64(3))),
    "np.dot(3 axes)": (A, lambda x: np.dot(x, np.stack([S, S + 1]))),
    "np.inner": (A, lambda x: np.inner(x, P)),
    "np.vdot": (A, lambda x: np.vdot(x, P)),
    "np.outer": (A, lambda x: np.outer(x, V)),
    "np.tensordot": (A, lambda x: np.tensordot(x, A, axes=([1], [1]))),
    "np.tensordot(n)": (A, lambda x: np.tensordot(x, S, 1)),
    "np.einsum": (A, lambda x: np.einsum("ij,kj->ik", x, P)),
    "np.einsum(optimize)": (A, lambda x: np.einsum("ij,ij->", x, x, optimize=True)),
    "np.take": (A, lambda x: np.take(x, np.array([5, 0, 0]))),
    "np.take(axis)": (A, lambda x: np.take(x, [2, 0], axis=1)),
    "np.take_along_axis": (A, lambda x: np.take_along_axis(x, np.array([[2, 0], [1, 1]]), 1)),
    "np.linalg.norm": (A, lambda x: np.linalg.norm(x)),
    "np.linalg.norm(axis)": (A, lambda x: np.linalg.norm(x, axis=1)),
    "np.linalg.norm(fro)": (A, lambda x: np.linalg.norm(x, "fro")),
    "np.round(decimals)": (A, lambda x: x + np.round(x, 1)),
    "np.linalg.norm(number)": (A[:1, 0], lambda x: np.linalg.norm(x, 2, keepdims=True)),
    "np.copy": (A, lambda x: np.copy(x)),
    "np.astype": (A, lambda x: np.astype(x, np.float64)),
    "np.real": (A, lambda x: np.real(x)),
    "np.matrix_transpose": (A, lambda x: np.matrix_transpose(x)),
}
# Where no derivative flows.
DISCRETE = {
    "np.any": (A, lambda x: np.any(x > 2, 1)),
    "np.all": (A, lambda x: np.all(x > -1, axis=0)),
    "logical_and.reduce": (A, lambda x: np.logical_and.reduce(x > -1)),
    "logical_or.reduce": (A, lambda x: np.logical_or.reduce(x > 2, axis=None)),
    "np.argmax": (A, lambda x: np.argmax(x, 1)),
    "np.argmin": (A, lambda x: np.argmin(x)),
    "np.argsort": (A, lambda x: np.argsort(x, 1)),
    "np.argsort(kind)": (A, lambda x: np.argsort(x, kind="stable")),
    "np.count_nonzero": (A, lambda x: np.count_nonzero(x > 0, axis=1)),
    "np.zeros_like": (A, lambda x: np.zeros_like(x)),
    "np.ones_like": (A, lambda x: np.ones_like(x, dtype=np.int64)),
    "np.full_like": (A, lambda x: np.full_like(x, 3)),
    "np.empty_like": (A, lambda x: np.empty_like(x) * 0),
    "np.isclose": (A, lambda x: np.isclose(x, A + [[0, 1e-6, 1]])),
    "np.isclose(extremes)": (np.array([np.inf, -np.inf, np.nan, 0.0]), lambda x: np.isclose(x, np.array([np.inf] * 4))),
    "np.isclose(equal_nan)": (np.array([np.nan, 1.0]), lambda x: np.isclose(x, np.array([np.nan] * 2), equal_nan=True)),
    "np.allclose": (A, lambda x: np.asarray(np.allclose(x, A + 1e-9))),
    "np.array_equal": (A, lambda x: np.asarray(np.array_equal(x, A))),
    "np.array_equal(no)": (A, lambda x: np.asarray(np.array_equal(x, V))),
    "np.shape": (A, lambda x: np.asarray(np.shape(x))),
    "np.ndim": (A, lambda x: np.asarray(np.ndim(x))),
    "np.size": (A, lambda x: np.asarray([np.size(x), np.size(x, 1)])),
    "np.floor": (A, lambda x: np.floor(x)),
    "np.rint": (A, lambda x: np.rint(x)),
    "np.sign": (A, lambda x: np.sign(x)),
    "np.isnan": (A, lambda x: np.isnan(x)),
    "np.logical_not": (A, lambda x: np.logical_not(x > 0)),
    "np.invert": (A, lambda x: np.invert(x > 0)),
    "float32 >= x": (A, lambda x: np.float32(0.5) >= x),
    "array == x": (A, lambda x: np.abs(A) == x),
    "np.iscomplexobj": (A, lambda x: np.asarray([np.iscomplexobj(x), np.isrealobj(x)])),
    "np.result_type": (A, lambda x: np.zeros(1, np.result_type(x, np.float32))),
}


def values(y):
    return y.numpy() if isinstance(y, gpuad.Tensor) else np.asarray(y)


@pytest.mark.parametrize("name", [*SMOOTH, *DISCRETE])
def test_a_numpy_call_on_a_tensor_gives_the_values_numpy_gives(name):
    x, f = (SMOOTH | DISCRETE)[name]
    expected = f(x)
    got = f(gpuad.asarray(x))
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    np.testing.assert_allclose(values(got), expected, rtol=1e-12)


@pytest.mark.parametrize("name", SMOOTH)
def test_a_numpy_call_on_a_tensor_is_differentiated_in_every_mode(name):
    x, f = SMOOTH[name]
    t = np.cos(np.arange(x.size)).reshape(x.shape)
    h = 1e-6
    slope = (f(x + h * t) - f(x - h * t)) / (2 * h)
    g = np.sin(1 + np.arange(slope.size)).reshape(slope.shape)
    y, dy = gpuad.jvp(f, (x,), (t,))
    assert isinstance(y, gpuad.Tensor)
    np.testing.assert_allclose(dy.numpy(), slope, rtol=1e-6, atol=1e-7)
    (pulled,) = gpuad.vjp(f, x)[1](g)
    np.testing.assert_allclose(np.vdot(pulled.numpy(), t), np.vdot(g, slope), rtol=1e-6, atol=1e-7)
    leaf = gpuad.asarray(x).requires_grad_()
    f(leaf).backward(g)
    np.testing.assert_array_equal(leaf.grad.numpy(), pulled.numpy())


def test_second_derivatives_go_through_numpy_calls():
    def slope(f):
        return lambda x: gpuad.jvp(f, (x,), (1.0,))[1]

    third = slope(slope(gpuad.grad(lambda x: np.sum(np.sin(x)))))(2.0)
    assert abs(float(third) + np.cos(2.0)) < 1e-6


def test_a_result_is_a_tensor_whichever_side_the_array_is_on():
    x = gpuad.ones(3)
    a = np.arange(3, dtype=np.float32)
    for op in (operator.add, operator.sub, operator.mul, operator.truediv, operator.pow, operator.lt, operator.eq):
        assert isinstance(op(a, x), gpuad.Tensor)
        assert isinstance(op(a[0], x), gpuad.Tensor)
        assert op(a, x).dtype == op(a, np.ones(3, np.float32)).dtype


def test_a_numpy_scalar_keeps_its_dtype_and_a_python_scalar_has_none():
    x = gpuad.ones(3)
    assert (np.float64(2) * x).dtype == gpuad.float64
    assert (np.float16(2) * x).dtype == gpuad.float32
    assert np.multiply(2.0, x).dtype == gpuad.float32


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: np.frexp(x), "numpy.frexp() has no counterpart"),
        (lambda x: np.median(x), "numpy.median() has no counterpart"),
        (lambda x: np.linalg.svd(x), "numpy.linalg.svd() has no counterpart"),
        (lambda x: np.fft.fft(x), "numpy.fft.fft() has no counterpart"),
        (lambda x: np.logaddexp.reduce(x), "numpy.logaddexp.reduce() has no counterpart"),
        (lambda x: np.add.accumulate(x), "numpy.add.accumulate() of a tensor is not offered"),
        (lambda x: np.add(x, x, where=np.array([True])), "numpy.add() of a tensor does not take where"),
        (lambda x: np.sum(x, initial=3.0), "numpy.sum() of a tensor does not take initial="),
        (lambda x: np.add.reduce(x, initial=3.0), "numpy.add.reduce() of a tensor does not take initial"),
        (lambda x: np.sort(x, order="f"), "numpy.sort(order)='f'"),
    ],
)
def test_what_has_no_counterpart_is_an_error_that_names_it_and_never_an_array(call, words):
    with pytest.raises(TypeError) as error:
        call(gpuad.ones(3))
    assert words in str(error.value)
    if "order" not in words:
        assert "np.asarray(x), or x.numpy()" in str(error.value)


def test_the_norm_of_zero_has_the_derivative_zero():
    assert gpuad.grad(np.linalg.norm)(gpuad.zeros(3)).numpy().tolist() == [0, 0, 0]
    assert np.isnan(float(np.linalg.norm(gpuad.asarray([1.0, float("nan")]))))


def test_out_is_refused_because_what_is_written_has_no_derivative():
    x, a = gpuad.ones(3), np.ones(3)
    for call in (
        lambda: np.add(a, 1.0, out=x),
        lambda: np.add(x, 1.0, out=a),
        lambda: np.sum(x, out=a[0]),
        lambda: operator.iadd(a, x),
    ):
        with pytest.raises(TypeError, match="out="):
            call()
    assert a.tolist() == [1, 1, 1]


def test_another_library_may_take_over():
    class Measured:
        def __array_ufunc__(self, *args, **kwargs):
            return "measured"

        def __array_function__(self, *args):
            return "measured"

    assert np.add(gpuad.ones(2), Measured()) == "measured"
    assert np.concatenate([gpuad.ones(2), Measured()]) == "measured"


def test_a_masked_array_is_refused_rather_than_unmasked():
    with pytest.raises(ValueError, match="lose its mask"):
        gpuad.asarray(np.ma.masked_array([1.0, 2.0], mask=[True, False]))


# --- the tables -------------------------------------------------------------------------------


def offered(name):
    try:
        operator.attrgetter(name)(gpuad)
    except AttributeError:
        return False
    return True


def xp_names(function):
    """What a function of numpy_functions.py takes from gpuad: `xp.<name>` in its source."""
    return re.findall(r"xp\.((?:linalg\.)?\w+)", inspect.getsource(function))


def test_every_mapped_name_is_one_of_gpuads():
    names = {*numpy_names.UFUNCS.values(), *numpy_names.REDUCTIONS.values()}
    names |= {numpy_names.read(line).name for line in numpy_names.RENAMED.values()}
    names |= {name for function in REBUILT.values() for name in xp_names(function)}
    assert sorted(n for n in names if not offered(n)) == []


def test_every_mapped_name_is_one_of_numpys():
    old = [n for n in (*numpy_names.RENAMED, *REBUILT) if not callable(operator.attrgetter(n)(np))]
    assert old == []
    assert [n for n in (*numpy_names.UFUNCS, *numpy_names.REDUCTIONS) if not isinstance(getattr(np, n), np.ufunc)] == []


def test_the_arguments_of_a_renaming_are_those_of_numpys_function():
    for name, line in numpy_names.RENAMED.items():
        parameters = numpy_names._signature(operator.attrgetter(name)(np)).parameters
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            continue
        read = numpy_names.read(line)
        assert {*read.arrays, *read.keywords, *read.ignored} <= set(parameters), name


# --- __array__ and the namespace --------------------------------------------------------------


def test_an_exported_array_is_a_view_that_cannot_be_made_writable():
    x = gpuad.asarray(np.arange(6.0).reshape(2, 3))
    for view in (x.numpy(), np.asarray(x), x.T.numpy() if hasattr(x, "T") else gpuad.permute_dims(x, (1, 0)).numpy()):
        assert np.shares_memory(view, x.array.data)
        for locked in (view, view[:1], view.view(np.int64), np.asarray(view), view.base):
            with pytest.raises(ValueError):
                locked.flags.writeable = True
            with pytest.raises(ValueError):
                locked[0] = 1


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "int64", "float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3)])
def test_every_dtype_and_shape_is_exported_as_it_is(dtype, shape):
    x = gpuad.ones(shape, dtype=dtype)
    assert x.numpy().dtype == x.dtype
    assert x.numpy().shape == shape
    assert (x.numpy() == 1).all()


def test_array_copies_where_it_is_told_to_or_must():
    x = gpuad.ones(3)
    assert np.array(x).flags.writeable
    assert np.asarray(x, dtype=np.float64).flags.writeable
    assert np.asarray(x, dtype=np.float32, copy=False).tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="without a copy"):
        np.asarray(x, dtype=np.float64, copy=False)


def test_an_export_keeps_the_memory_alive_and_the_tensor_from_being_written():
    x = gpuad.ones(4) * 3
    view = x.numpy()
    x += 1
    assert x.numpy().tolist() == [4] * 4
    del x
    assert view.tolist() == [3] * 4


@pytest.mark.parametrize("read", [np.asarray, lambda x: x.numpy(), np.array, np.from_dlpack])
def test_reading_a_tensor_inside_a_transformation_is_an_error(read):
    for transform in (gpuad.grad, lambda f: lambda x: gpuad.jvp(f, (x,), (1.0,))):
        with pytest.raises((gpuad.GradientError, BufferError), match=r"would lose its derivative at test_exports\.py"):
            transform(lambda x: read(x) + x)(1.0)


def test_the_array_namespace_is_gpuad():
    assert gpuad.ones(1).__array_namespace__() is gpuad
    assert gpuad.ones(1).__array_namespace__(api_version=None) is gpuad


# --- DLPack -----------------------------------------------------------------------------------

DLPACK = ["bool", "int8", "uint8", "int16", "int32", "int64", "float16", "float32", "float64"]


@given(
    hnp.arrays(
        st.sampled_from(DLPACK), hnp.array_shapes(min_dims=0, min_side=0, max_side=4), elements={"allow_nan": False}
    )
)
def test_numpy_round_trips_through_dlpack(a):
    x = gpuad.from_dlpack(a)
    assert x.dtype == a.dtype
    assert x.shape == a.shape
    back = np.from_dlpack(x)
    assert back.dtype == a.dtype
    np.testing.assert_array_equal(back, a)
    assert not a.size or np.shares_memory(back, a)


@pytest.mark.parametrize("dtype", DLPACK)
def test_torch_round_trips_through_dlpack(torch, dtype):
    t = torch.arange(6).reshape(2, 3).T.to(getattr(torch, dtype))
    x = gpuad.from_dlpack(t)
    np.testing.assert_array_equal(x.numpy(), t.numpy())
    back = torch.from_dlpack(x)
    assert back.dtype == t.dtype
    assert back.data_ptr() == t.data_ptr()
    assert back.stride() == t.stride()


def test_what_a_consumer_writes_shows_in_the_tensor_that_lent_the_memory(torch):
    x = gpuad.ones(3) * 2
    t = torch.from_dlpack(x)
    t += 1
    assert x.numpy().tolist() == [3, 3, 3]
    assert (x * 2).numpy().tolist() == [6, 6, 6]


def test_a_copy_is_exported_where_one_is_asked_for(torch):
    x = gpuad.ones(3)
    t = torch.utils.dlpack.from_dlpack(x.__dlpack__(copy=True))
    t += 1
    assert x.numpy().tolist() == [1, 1, 1]
    assert not x.array.buffer.borrowed


def held_by_another_handle(x):
    return x.detach()


def held_by_a_view(x):
    return gpuad.reshape(x, (3, 1))


def held_by_a_pending_expression(x):
    return gpuad.exp(x)


def held_by_a_numpy_view(x):
    return x.numpy()


def held_by_a_tape(x):
    w = gpuad.asarray(np.ones(3, np.float32)).requires_grad_()
    return gpuad.sum(w * x)


@pytest.mark.parametrize(
    "hold", [held_by_another_handle, held_by_a_view, held_by_a_pending_expression, held_by_a_numpy_view, held_by_a_tape]
)
def test_memory_that_someone_holds_is_copied_not_lent(hold):
    x = gpuad.asarray(np.ones(3, np.float32))
    holder = hold(x)
    with pytest.raises(BufferError, match="leave copy=False out"):
        x.__dlpack__(copy=False)
    lent = np.from_dlpack(x)
    assert not np.shares_memory(lent, x.array.data)
    lent = lent if lent.flags.writeable else lent.copy()
    lent[:] = 9
    assert not x.array.buffer.borrowed
    expected = np.exp(np.float32(1)) if hold is held_by_a_pending_expression else 1
    if hold is not held_by_a_tape:
        np.testing.assert_allclose(np.asarray(holder).reshape(3), expected, rtol=1e-6)
    del holder
    assert np.shares_memory(np.from_dlpack(x), x.array.data)


def test_a_tape_keeps_right_what_was_exported_after_it(torch):
    w = gpuad.asarray(np.ones(3, np.float32)).requires_grad_()
    x = gpuad.asarray(np.full(3, 2, np.float32))
    y = gpuad.sum(w * x)
    torch.from_dlpack(x).zero_()
    y.backward()
    assert w.grad.numpy().tolist() == [2, 2, 2]


def test_a_tensor_that_requires_grad_is_not_exported(torch):
    x = gpuad.ones(3).requires_grad_()
    for export in (torch.from_dlpack, np.from_dlpack, lambda x: gpuad.from_dlpack(x * 2)):
        with pytest.raises(BufferError, match="detach"):
            export(x)
    assert torch.from_dlpack(x.detach()).tolist() == [1, 1, 1]


def test_a_torch_tensor_that_requires_grad_is_not_imported(torch):
    with pytest.raises(BufferError, match="detach"):
        gpuad.from_dlpack(torch.ones(3, requires_grad=True))


def test_what_dlpack_cannot_say_is_a_buffer_error():
    x = gpuad.ones(3)
    assert x.__dlpack_device__() == (1, 0)
    with pytest.raises(BufferError, match="device"):
        x.__dlpack__(dl_device=(2, 0))
    with pytest.raises(BufferError, match="stream"):
        x.__dlpack__(stream=1)
    with pytest.raises(BufferError, match="bfloat16"):
        x.to(gpuad.bfloat16).__dlpack__()
    with pytest.raises(BufferError, match="meta"):
        gpuad.ones(3, device="meta").__dlpack_device__()
    with pytest.raises(TypeError, match="asarray"):
        gpuad.from_dlpack([1.0])


def test_from_dlpack_copies_where_it_is_told_to():
    a = np.ones(3)
    x = gpuad.from_dlpack(a, copy=True)
    a[:] = 2
    assert x.numpy().tolist() == [1, 1, 1]
    assert not x.array.buffer.borrowed
    assert gpuad.from_dlpack(a, device="meta").device.name == "meta"
