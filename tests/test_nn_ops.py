"""What is peculiar to the ops of networks: kernels and what tapes keep, extremes, masks, errors."""

import math

import numpy as np
import pytest
import scipy.special

import gpuad
from gpuad import random
from gpuad.fuse.kernel import watchers
from gpuad.fuse.plan import realize
from gpuad.ops import nn
from gpuad.ops.attention import scaled_dot_product_attention


@pytest.fixture
def kernels():
    """Every kernel that runs, as (names of its ops, shapes of what it writes)."""
    seen = []

    def watch(kernel):
        seen.append((kernel.ops, [y.shape for y in kernel.outputs]))

    watchers.append(watch)
    yield seen
    watchers.remove(watch)


def leaf(*shape, seed=0):
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return gpuad.asarray(x).requires_grad_()


def gradient(f, x):
    """d sum(f(x)) / dx, as NumPy."""
    return gpuad.grad(lambda x: gpuad.sum(f(x)))(gpuad.asarray(x)).numpy()


# --- kernels ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "f",
    [
        nn.softmax,
        nn.log_softmax,
        nn.layer_norm,
        nn.rms_norm,
        lambda x: nn.dropout(x, 0.5),
    ],
    ids=["softmax", "log_softmax", "layer_norm", "rms_norm", "dropout"],
)
def test_forward_and_backward_are_one_kernel_each(f, kernels):
    x = leaf(8, 16)
    g = gpuad.asarray(np.ones((8, 16), np.float32))
    y = f(x)
    realize(y.array)
    assert len(kernels) == 1
    kernels.clear()
    y.backward(g)
    assert len(kernels) == 1


def test_gradients_of_layer_norm_are_one_kernel(kernels):
    x, weight, bias = leaf(8, 16), leaf(16), leaf(16)
    y = nn.layer_norm(x, weight, bias)
    realize(y.array)
    kernels.clear()
    y.backward(gpuad.asarray(np.ones((8, 16), np.float32)))
    ((_, written),) = kernels
    assert sorted(written) == [(8, 16), (16,), (16,)]


def test_cross_entropy_writes_nothing_of_the_size_of_its_logits_but_the_gradient(kernels):
    x = leaf(8, 16)
    loss = nn.cross_entropy(x, np.arange(8))
    loss.item()
    assert [shape for _, shapes in kernels for shape in shapes if shape[-1:] == (16,)] == []
    kernels.clear()
    loss.backward()
    (big,) = [k for k in kernels if (8, 16) in k[1]]
    assert big[0].count("exp") == 1 and "sum_row" not in big[0] and "max_row" not in big[0]


def test_attention_writes_scores_once_and_weights_once(kernels):
    q, k, v = leaf(2, 8, 4), leaf(2, 8, 4, seed=1), leaf(2, 8, 4, seed=2)
    y = scaled_dot_product_attention(q, k, v, causal=True)
    realize(y.array)
    ((_, written),) = kernels
    assert written == [(2, 8, 8)]
    kernels.clear()
    y.backward(gpuad.asarray(np.ones((2, 8, 4), np.float32)))
    assert [written for _, written in kernels] == [[(2, 8, 8)]]


# --- softmax and its losses -------------------------------------------------------------------


def test_softmax_of_large_numbers_does_not_overflow():
    x = np.array([[1e4, 1e4 + 1.0, -1e4]], np.float32)
    np.testing.assert_allclose(nn.softmax(x).numpy(), scipy.special.softmax(x, -1), rtol=1e-6)
    np.testing.assert_allclose(nn.log_softmax(x).numpy(), scipy.special.log_softmax(x, -1), rtol=1e-6)


def test_softmax_takes_minus_infinity_as_never():
    x = np.array([[0.0, -np.inf, 1.0]])
    assert nn.softmax(x).numpy()[0, 1] == 0.0
    assert np.isfinite(gradient(lambda x: nn.softmax(x) * gpuad.asarray([1.0, 2.0, 3.0]), x)).all()
    assert np.isnan(nn.softmax(np.full((1, 3), -np.inf)).numpy()).all()


def test_softmax_of_integers_is_float32():
    assert nn.softmax(np.arange(3)).dtype == gpuad.float32


@pytest.mark.parametrize("top", [0.0, 3e4])
def test_cross_entropy_keeps_its_digits_beside_large_logits(top):
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((6, 9)) + top).astype(np.float32)
    t = rng.integers(0, 9, 6)
    logs = scipy.special.log_softmax(x.astype(np.float64), -1)
    y, pullback = gpuad.vjp(lambda x: nn.cross_entropy(x, t, reduction="none"), x)
    np.testing.assert_allclose(y.numpy(), -logs[np.arange(6), t], rtol=3e-6)
    (g,) = pullback(np.ones(6, np.float32))
    np.testing.assert_allclose(g.numpy(), np.exp(logs) - np.eye(9)[t], atol=1e-6)


@pytest.mark.parametrize("columns", [1, 3, 20_000])
def test_cross_entropy_finds_the_target_in_every_block(columns, torch):
    rng = np.random.default_rng(columns)
    x, t = rng.standard_normal((3, columns)), rng.integers(0, columns, 3)
    t[0], t[-1] = 0, columns - 1
    theirs = torch.tensor(x, requires_grad=True)
    torch.nn.functional.cross_entropy(theirs, torch.tensor(t)).backward()
    found = gpuad.grad(lambda x: nn.cross_entropy(x, t))(x).numpy()
    np.testing.assert_allclose(found, theirs.grad.numpy(), rtol=1e-9, atol=1e-15)


def test_cross_entropy_of_nothing_but_ignored_targets_is_nan_as_in_pytorch():
    x, t = np.zeros((2, 3)), np.full(2, -100)
    assert math.isnan(nn.cross_entropy(x, t).item())
    assert nn.cross_entropy(x, t, reduction="sum").item() == 0.0
    assert np.array_equal(gradient(lambda x: nn.cross_entropy(x, t, reduction="none"), x), np.zeros((2, 3)))


def test_ignored_rows_may_hold_anything():
    x = np.array([[np.nan, np.inf, 0.0], [0.0, 0.0, 0.0]])
    loss, g = gpuad.value_and_grad(lambda x: nn.cross_entropy(x, np.array([-100, 1])))(x)
    assert loss.item() == pytest.approx(math.log(3))
    np.testing.assert_allclose(g.numpy()[1], [1 / 3, -2 / 3, 1 / 3])


@pytest.mark.parametrize("wrong", [3, -1, 99])
def test_cross_entropy_names_the_line_and_a_target_out_of_range(wrong):
    with pytest.raises(gpuad.IndexRangeError, match=rf"test_nn_ops.py:\d+ got the target {wrong} for 3 classes"):
        nn.cross_entropy(gpuad.zeros((2, 3)), np.array([0, wrong])).item()


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (((2, 3), np.zeros(2)), {}, gpuad.DTypeError, "integer targets, got float64"),
        (((2, 3), np.zeros(3, int)), {}, gpuad.ShapeError, r"float32\[2, 3\] and targets int64\[3\]"),
        (((2, 3), np.zeros(2, int)), {"reduction": "average"}, gpuad.DataError, "not 'average'"),
        (((2, 3), np.zeros(2, int)), {"label_smoothing": 2.0}, gpuad.DataError, "from 0 to 1, got 2.0"),
    ],
)
def test_cross_entropy_says_what_it_cannot_use(arguments, options, error, message):
    shape, targets = arguments
    with pytest.raises(error, match=message):
        nn.cross_entropy(gpuad.zeros(shape), targets, **options)


# --- normalization ----------------------------------------------------------------------------


def test_layer_norm_of_a_constant_row_is_its_bias():
    x = np.full((2, 4), 7.0, np.float32)
    assert nn.layer_norm(x, np.ones(4, np.float32), np.arange(4, dtype=np.float32)).tolist() == [[0, 1, 2, 3]] * 2
    assert np.isfinite(gradient(nn.layer_norm, x)).all()


def test_layer_norm_does_not_lose_a_small_spread_on_a_large_mean():
    spread = np.random.default_rng(0).standard_normal((4, 64))
    x = (1e4 + spread).astype(np.float32)
    exact = x.astype(np.float64) - x.astype(np.float64).mean(-1, keepdims=True)
    exact /= np.sqrt((exact**2).mean(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(nn.layer_norm(x).numpy(), exact, atol=2e-3)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types_are_normalized_in_float32_and_rounded_once(dtype):
    x = gpuad.asarray(np.random.default_rng(0).standard_normal((3, 500)).astype(np.float32) * 100).to(dtype)
    for f in (nn.softmax, nn.log_softmax, nn.layer_norm, nn.rms_norm):
        assert np.array_equal(f(x).numpy(), f(x.to("float32")).to(dtype).numpy())


def test_norms_of_half_rows_with_float32_weights_are_float32():
    assert nn.layer_norm(gpuad.ones((2, 3), dtype="float16"), gpuad.ones(3)).dtype == gpuad.float32
    assert nn.rms_norm(gpuad.ones((2, 3), dtype="float16"), gpuad.ones(3, dtype="float16")).dtype == gpuad.float16


def test_norms_name_the_weight_that_does_not_fit():
    with pytest.raises(
        gpuad.ShapeError, match=r"layer_norm\(\) of float32\[2, 3\] needs a bias of shape \[3\], got float32\[2\]"
    ):
        nn.layer_norm(gpuad.zeros((2, 3)), None, gpuad.zeros(2))
    with pytest.raises(gpuad.ShapeError, match="has none"):
        nn.rms_norm(gpuad.asarray(1.0))


# --- look-up and rotation ---------------------------------------------------------------------


def test_embedding_adds_up_the_gradients_of_a_row_used_twice():
    g = gpuad.grad(lambda w: gpuad.sum(nn.embedding(w, np.array([2, 0, 2]))))(np.zeros((4, 2), np.float32))
    assert g.tolist() == [[1, 1], [0, 0], [2, 2], [0, 0]]


def test_embedding_gradients_have_the_same_bits_every_time():
    rng = np.random.default_rng(0)
    index, g = rng.integers(0, 7, 500), rng.standard_normal((500, 3)).astype(np.float32)
    runs = [
        gpuad.vjp(lambda w: nn.embedding(w, index), np.zeros((7, 3), np.float32))[1](g)[0].numpy() for _ in range(3)
    ]
    assert np.array_equal(runs[0], runs[1]) and np.array_equal(runs[0], runs[2])


@pytest.mark.parametrize("wrong", [4, -1])
def test_embedding_names_the_line_and_an_index_out_of_range(wrong):
    with pytest.raises(gpuad.IndexRangeError, match=rf"test_nn_ops.py:\d+ got the index {wrong} .*with 4 rows"):
        nn.embedding(gpuad.zeros((4, 2)), np.array([0, wrong]))


def test_embedding_says_what_it_cannot_use():
    with pytest.raises(gpuad.DTypeError, match="integer indices"):
        nn.embedding(gpuad.zeros((4, 2)), np.zeros(2))
    with pytest.raises(gpuad.ShapeError, match="two axes"):
        nn.embedding(gpuad.zeros(4), np.zeros(2, int))


def test_rotation_keeps_lengths_and_depends_on_distance_alone():
    rng = np.random.default_rng(0)
    q, k = (np.broadcast_to(rng.standard_normal(8), (6, 8)) for _ in range(2))
    scores = gpuad.matmul(nn.rotary_embedding(q), gpuad.matrix_transpose(nn.rotary_embedding(k, offset=3))).numpy()
    np.testing.assert_allclose(np.diag(scores), scores[0, 0], rtol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(nn.rotary_embedding(q).numpy(), axis=-1), np.linalg.norm(q, axis=-1))


def test_rotation_goes_on_where_an_offset_says():
    x = np.random.default_rng(0).standard_normal((5, 4))
    whole = nn.rotary_embedding(x).numpy()
    assert np.array_equal(nn.rotary_embedding(x[3:], offset=3).numpy(), whole[3:])


def test_rotation_needs_pairs():
    with pytest.raises(gpuad.ShapeError, match=r"even number of features, got float32\[2, 3\]"):
        nn.rotary_embedding(gpuad.zeros((2, 3)))


# --- dropout ----------------------------------------------------------------------------------


def test_dropout_drops_the_same_elements_forward_and_backward():
    x = leaf(64, 65)
    y = nn.dropout(x, 0.3)
    y.backward(gpuad.ones((64, 65)))
    kept = x.grad.numpy() != 0
    assert np.array_equal(kept, y.numpy() != 0)
    assert 0.65 < kept.mean() < 0.75
    np.testing.assert_allclose(y.numpy(), np.where(kept, x.numpy() / 0.7, 0), rtol=1e-6)


def test_dropout_stores_no_mask(kernels):
    y = nn.dropout(leaf(64, 64) * 1.0, 0.3)
    y.numpy()
    gpuad.sum(y).backward()
    assert all(shape in ((64, 64), ()) for _, shapes in kernels for shape in shapes)
    assert sum(names.count("random_bits") for names, _ in kernels) == 2  # once each way, and never written
    assert sum(shapes.count((64, 64)) for _, shapes in kernels) == 2


def test_dropout_draws_from_the_generator_it_is_given():
    x = gpuad.ones((10, 10))
    masks = [nn.dropout(x, 0.5, generator=random.Generator(seed)).tolist() for seed in (1, 1, 2)]
    assert masks[0] == masks[1] != masks[2]


def test_dropout_can_be_drawn_again():
    x = gpuad.ones((10, 10))
    with random.recording() as drawn:
        first = nn.dropout(x, 0.5).tolist()
    with random.replaying(drawn):
        assert nn.dropout(x, 0.5).tolist() == first


def test_dropout_at_its_ends_and_in_evaluation():
    x = gpuad.asarray(np.array([1.0, np.inf, -2.0], np.float32))
    assert nn.dropout(x, 0.0).data is x.data
    assert nn.dropout(x, 0.5, training=False).data is x.data
    assert nn.dropout(x, 1.0).tolist() == [0, 0, 0]
    assert gradient(lambda x: nn.dropout(x, 1.0), np.ones(3)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_dropout_needs_a_probability(p):
    with pytest.raises(gpuad.DataError, match="probability p from 0 to 1"):
        nn.dropout(gpuad.ones(3), p)


# --- attention --------------------------------------------------------------------------------


def test_a_query_that_sees_no_key_gets_zeros_and_gives_no_gradient():
    q, k, v = (np.random.default_rng(s).standard_normal((3, 4)) for s in range(3))
    mask = np.array([[True, True, False], [False, False, False], [True, False, False]])

    def attend(q, k, v):
        return gpuad.sum(scaled_dot_product_attention(q, k, v, mask=mask))

    assert scaled_dot_product_attention(q, k, v, mask=mask).tolist()[1] == [0, 0, 0, 0]
    gradients = gpuad.grad(attend, argnums=(0, 1, 2))(q, k, v)
    assert all(np.isfinite(g.numpy()).all() for g in gradients)
    assert gradients[0].tolist()[1] == [0, 0, 0, 0]
    assert gradients[2].tolist()[2] == [0, 0, 0, 0]


@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (70, 70), (3, 300), (300, 300)])
def test_causal_attention_sees_the_keys_up_to_its_own(queries, keys):
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((2, queries, 4)), rng.standard_normal((2, keys, 4)), rng.standard_normal((2, keys, 3))
    seen = np.tri(queries, keys, dtype=bool)
    causal = scaled_dot_product_attention(q, k, v, causal=True).numpy()
    np.testing.assert_allclose(causal, scaled_dot_product_attention(q, k, v, mask=seen).numpy(), rtol=1e-12)


def test_attention_with_dropout_is_unbiased():
    q, k, v = (gpuad.asarray(np.random.default_rng(s).standard_normal((1, 4, 8))) for s in range(3))
    many = gpuad.broadcast_to(q, (4000, 4, 8))
    generator = random.Generator(0)
    dropped = scaled_dot_product_attention(many, k, v, dropout_p=0.25, generator=generator).numpy()
    np.testing.assert_allclose(dropped.mean(0), scaled_dot_product_attention(q, k, v).numpy()[0], atol=0.05)


def test_attention_in_half_types_is_close_and_stays_half():
    q, k, v = (gpuad.asarray(np.random.default_rng(s).standard_normal((2, 6, 4))) for s in range(3))
    y = scaled_dot_product_attention(q.to("bfloat16"), k.to("bfloat16"), v.to("bfloat16"), causal=True)
    assert y.dtype == gpuad.bfloat16
    expected = scaled_dot_product_attention(q, k, v, causal=True).numpy()
    np.testing.assert_allclose(y.numpy().astype(np.float64), expected, atol=0.05)


@pytest.mark.parametrize(
    ("shapes", "options", "error", "message"),
    [
        (((2, 3), (2, 4), (2, 4)), {}, gpuad.ShapeError, "agree in the last axis"),
        (((2, 3), (2, 3), (4, 3)), {}, gpuad.ShapeError, "the one before"),
        (((2, 3),) * 3, {"mask": np.ones((3, 2), bool)}, gpuad.ShapeError, r"mask bool\[3, 2\] to \[2, 2\]"),
        (((2, 3),) * 3, {"mask": np.ones((2, 2), int)}, gpuad.DTypeError, "bools say which keys take part"),
        (((2, 3),) * 3, {"dropout_p": 2.0}, gpuad.DataError, "probability"),
    ],
)
def test_attention_says_what_it_cannot_use(shapes, options, error, message):
    with pytest.raises(error, match=message):
        scaled_dot_product_attention(*[gpuad.zeros(shape) for shape in shapes], **options)
