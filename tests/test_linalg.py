"""What is peculiar to products of matrices: how many there are, dtypes, vectors, and what errors say."""

import itertools

import numpy as np
import pytest

import gpuad
from gpuad.ops import einsum as einsum_module
from gpuad.ops.einsum import einsum
from gpuad.ops.linalg import _product


@pytest.fixture
def products(monkeypatch):
    """The shapes of both operands of every product of matrices that runs."""
    seen = []
    into = _product.into

    def watched(xp, a, b, out):
        seen.append((a.shape, b.shape))
        into(xp, a, b, out)

    monkeypatch.setattr(_product, "into", watched)
    monkeypatch.setattr(gpuad.device("cpu"), "_product", lambda op: None)  # the compiled engine has its own
    return seen


def tensor(*shape, dtype=np.float32):
    return gpuad.asarray(np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype))


def test_weight_gradient_of_activations_is_one_plain_product(products):
    x, w = tensor(4, 8, 3).requires_grad_(), tensor(3, 5).requires_grad_()
    gpuad.matmul(x, w).backward(gpuad.ones((4, 8, 5)))
    assert sorted(products) == [((3, 32), (32, 5)), ((4, 8, 5), (5, 3))]


def test_matrix_times_batch_gets_its_gradient_from_one_product(products):
    a, b = tensor(2, 3).requires_grad_(), tensor(4, 3, 5)
    gpuad.matmul(a, b).backward(gpuad.ones((4, 2, 5)))
    assert products == [((2, 20), (20, 3))]


def test_activations_are_multiplied_row_by_row_whatever_their_strides():
    x, w = np.random.default_rng(0).standard_normal((3, 4, 5)), np.eye(5)
    moved = gpuad.permute_dims(gpuad.asarray(x), (1, 0, 2))
    assert np.array_equal(gpuad.matmul(moved, w).numpy(), x.transpose(1, 0, 2))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types_add_up_in_float32(dtype):
    ones = gpuad.ones((1, 5000), dtype=dtype)
    y = gpuad.matmul(ones, gpuad.ones((5000, 1), dtype=dtype))
    assert y.dtype == ones.dtype
    assert y.item() == float(np.float32(5000).astype(ones.dtype))  # 2048 or 256 if rounded on the way


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (gpuad.int32, gpuad.int64, gpuad.int64),
        (gpuad.int8, gpuad.float16, gpuad.float16),
        (gpuad.float16, gpuad.bfloat16, gpuad.float32),
        (gpuad.float32, gpuad.float64, gpuad.float64),
    ],
)
def test_operands_meet_in_their_common_dtype(a, b, expected):
    assert gpuad.matmul(gpuad.ones((2, 3), dtype=a), gpuad.ones((3, 2), dtype=b)).dtype == expected


def test_integers_wrap_as_in_numpy():
    x = np.array([[100, 100]], np.int8)
    assert gpuad.matmul(x, x.T).numpy() == np.matmul(x, x.T)


def test_bools_cannot_be_multiplied():
    with pytest.raises(gpuad.DTypeError, match=r"bool\[2, 2\] .*gpuad.int64"):
        gpuad.matmul(gpuad.ones((2, 2), dtype=gpuad.bool), gpuad.ones((2, 2), dtype=gpuad.bool))


@pytest.mark.parametrize(
    ("a", "b"), [((2, 3), (4, 5)), ((3,), (4,)), ((2, 3, 4), (3, 4, 2)), ((), (3,)), ((2, 3), ())], ids=repr
)
def test_shapes_that_do_not_fit_are_shown(a, b):
    with pytest.raises(gpuad.ShapeError) as error:
        gpuad.matmul(gpuad.zeros(a), gpuad.zeros(b))
    assert str(gpuad.zeros(a).dtype) + str(list(a)) in str(error.value)
    assert str(gpuad.zeros(b).dtype) + str(list(b)) in str(error.value)


def test_operator_calls_matmul():
    x = tensor(2, 3)
    assert np.array_equal((x @ gpuad.matrix_transpose(x)).numpy(), gpuad.matmul(x, gpuad.matrix_transpose(x)).numpy())


# --- the others -------------------------------------------------------------------------------


def test_vecdot_takes_an_axis_from_the_front_when_both_have_as_many():
    x = np.arange(6.0).reshape(2, 3)
    assert np.array_equal(gpuad.vecdot(x, x, axis=0).numpy(), (x * x).sum(0))
    with pytest.raises(gpuad.ShapeError, match="not an axis of both"):
        gpuad.vecdot(x, x[0], axis=0)


@pytest.mark.parametrize("axes", [3, ((0,), (0, 1)), ((0, 0), (0, 0)), ((1,), (0,))])
def test_tensordot_refuses_axes_that_do_not_pair_up(axes):
    with pytest.raises(gpuad.ShapeError, match=r"tensordot\(\) cannot multiply float32\[2, 3\] and float32\[2, 3\]"):
        gpuad.tensordot(gpuad.zeros((2, 3)), gpuad.zeros((2, 3)), axes=axes)


def test_outer_needs_vectors():
    with pytest.raises(gpuad.ShapeError, match=r"reshape them with \(-1,\)"):
        gpuad.outer(gpuad.zeros((2, 2)), gpuad.zeros(2))


# --- einsum -----------------------------------------------------------------------------------


def test_einsum_contracts_a_chain_in_the_cheap_order(products):
    a, b, c = tensor(30, 2), tensor(2, 30), tensor(30, 2)
    einsum("ij,jk,kl->il", a, b, c).numpy()
    assert products == [((2, 30), (30, 2)), ((30, 2), (2, 2))]


def test_einsum_multiplies_what_shares_a_letter_first():
    shapes = {"ab": (20, 3), "cd": (20, 3), "bc": (3, 20)}
    terms = tuple(tuple(t) for t in shapes)
    lengths = {k: n for t, shape in shapes.items() for k, n in zip(t, shape, strict=True)}
    first = einsum_module._order(terms, ("a", "d"), tuple(lengths.items()))[0]
    assert set(terms[first[0]]) & set(terms[first[1]])


def test_einsum_without_a_sum_is_no_product_of_matrices(products):
    y = einsum("bi,bj->bij", tensor(2, 3), tensor(2, 4))
    assert y.shape == (2, 3, 4)
    y.numpy()
    assert products == []


def test_diagonal_is_not_disturbed_by_what_is_beside_it():
    x = np.array([[1.0, np.nan], [np.inf, 2.0]])
    assert einsum("ii->i", x).tolist() == [1.0, 2.0]
    assert einsum("ii", x).item() == 3.0


def test_einsum_agrees_with_numpy_on_every_result_of_three_letters():
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 3)), rng.standard_normal((3, 4))
    for n in range(4):
        for out in itertools.permutations("ijk", n):
            subscripts = f"ij,jk->{''.join(out)}"
            np.testing.assert_allclose(einsum(subscripts, a, b).numpy(), np.einsum(subscripts, a, b), rtol=1e-12)


def test_einsum_sums_over_an_ellipsis_that_the_result_lacks(torch):
    x = np.arange(24.0).reshape(2, 3, 4)
    assert np.array_equal(einsum("i...->i", x).numpy(), torch.einsum("i...->i", torch.tensor(x)).numpy())


def test_einsum_keeps_integers_and_rounds_half_types_once():
    x = np.arange(6, dtype=np.int32).reshape(2, 3)
    y = einsum("ij,kj->ik", x, x)
    assert (y.dtype, y.tolist()) == (np.dtype(np.int32), (x @ x.T).tolist())
    ones = gpuad.ones((5000,), dtype="bfloat16")
    assert einsum("i,i", ones, ones).item() == 4992.0  # the nearest to 5000; 256 if rounded on the way


@pytest.mark.parametrize(
    ("subscripts", "shapes", "message"),
    [
        ("ij,jk->ik", [(2, 3), (4, 5)], "3 and 4 for 'j'"),
        ("ij->ik", [(2, 3)], "its letters must be in an operand"),
        ("ij->ii", [(2, 3)], "each once"),
        ("ij", [(2,)], "1 axes for 'ij'"),
        ("i", [(2, 3)], "2 axes for 'i'"),
        ("i,j", [(2,)], "1 operands"),
        ("i1", [(2, 3)], "letters a to z"),
        ("ii", [(2, 3)], "3 for 'i'|two lengths"),
        ("ii", [(3, 1)], "two lengths"),
    ],
)
def test_einsum_says_what_does_not_fit(subscripts, shapes, message):
    with pytest.raises(gpuad.ShapeError, match=message):
        einsum(subscripts, *[gpuad.zeros(shape) for shape in shapes])
