"""Attention as one op: the kernel beside PyTorch and its composition, in every mode and order."""

import numpy as np
import pytest

import gpuad
from gpuad import grad, jvp, vjp
from gpuad.fuse import engines
from gpuad.nn import functional as F
from gpuad.nn import layers
from gpuad.ops import attention

compiled = pytest.mark.skipif(engines.engine() != "compiled", reason="needs the compiled engine")
pytestmark = compiled
SHAPES = [
    ((2, 3, 130, 16), (2, 3, 70, 16), 24),
    ((1, 1, 257, 9), (1, 1, 257, 9), 9),
    ((4, 4, 64, 32), (4, 4, 64, 32), 32),
]


def arrays(queries, keys, values):
    rng = np.random.default_rng(0)
    shapes = queries, keys, (*keys[:3], values), (*queries[:3], values)
    return [rng.standard_normal(shape) for shape in shapes]


def ours(q, k, v, g, dtype, **options):
    leaves = [gpuad.asarray(a, dtype=dtype).requires_grad_() for a in (q, k, v)]
    y = F.scaled_dot_product_attention(*leaves, **options)
    assert y.link[0].op.name == "attention"
    y.backward(gpuad.asarray(g, dtype=dtype))
    return [y.numpy(), *[x.grad.numpy() for x in leaves]]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("queries, keys, values", SHAPES)
def test_values_and_gradients_are_pytorchs(torch, queries, keys, values, causal):
    q, k, v, g = arrays(queries, keys, values)
    leaves = [torch.tensor(a, requires_grad=True) for a in (q, k, v)]
    seen = torch.ones(queries[2], keys[2], dtype=torch.bool).tril() if causal else None
    y = torch.nn.functional.scaled_dot_product_attention(*leaves, attn_mask=seen)
    y.backward(torch.tensor(g))
    expected = [y.detach().numpy(), *[x.grad.numpy() for x in leaves]]
    for dtype, atol in (("float64", 1e-12), ("float32", 2e-5)):
        for got, want in zip(ours(q, k, v, g, dtype, causal=causal), expected, strict=True):
            np.testing.assert_allclose(got, want, atol=atol)


def packed(x):
    return gpuad.sum(attention.attend_packed(x, causal=True, scale=0.25) ** 2)


def composed(x):
    return gpuad.sum(attention.composed(*attention._parts(x), True, 0.25) ** 2)


MODES = {
    "value": lambda f, x, t: f(x),
    "grad": lambda f, x, t: grad(f)(x),
    "jvp": lambda f, x, t: jvp(f, (x,), (t,))[1],
    "forward over reverse": lambda f, x, t: jvp(grad(f), (x,), (t,))[1],
    "reverse over reverse": lambda f, x, t: grad(lambda x: gpuad.sum(grad(f)(x) * t))(x),
    "reverse over forward": lambda f, x, t: grad(lambda x: jvp(f, (x,), (t,))[1])(x),
    "checkpointed": lambda f, x, t: grad(gpuad.checkpoint(f))(x),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_that_of_the_composition(mode):
    rng = np.random.default_rng(0)
    x, t = (gpuad.asarray(rng.standard_normal((4, 48, 3, 4, 16))) for _ in range(2))
    got, want = (MODES[mode](f, x, t).numpy() for f in (packed, composed))
    np.testing.assert_allclose(got, want, atol=1e-12 * max(1, abs(want).max()))


def test_side_by_side_has_the_bits_of_apart():
    x = gpuad.asarray(np.random.default_rng(0).standard_normal((4, 48, 3, 4, 16)).astype(np.float32))
    y, pull = vjp(lambda x: attention.attend_packed(x, causal=True, scale=0.25), x)
    apart, pull_apart = vjp(lambda x: attention.attend(*attention._parts(x), causal=True, scale=0.25), x)
    np.testing.assert_array_equal(y.numpy(), apart.numpy())
    np.testing.assert_array_equal(pull(y)[0].numpy(), pull_apart(y)[0].numpy())


def test_a_matrix_of_scores_is_never_stored():
    model = layers.MultiHeadAttention(64, 4, causal=True)
    x = gpuad.asarray(np.random.default_rng(0).standard_normal((2, 300, 64)).astype(np.float32))
    sizes = []

    class Watch:
        def allocated(self, buffer):
            sizes.append(buffer.nbytes)

        def freed(self, buffer):
            pass

    watch = Watch()
    gpuad.buffer.observers.append(watch)
    try:
        gpuad.sum(model(x)).backward()
    finally:
        gpuad.buffer.observers.remove(watch)
    assert max(sizes) == 2 * 300 * 3 * 64 * 4  # the projections; a matrix of scores would be 2 * 4 * 300 * 300 * 4


def test_features_that_lie_apart_are_copied_first():
    q, k, v, g = arrays(*SHAPES[0])
    turned = [gpuad.asarray(np.ascontiguousarray(a.transpose(0, 1, 3, 2))) for a in (q, k, v)]
    y = F.scaled_dot_product_attention(*[gpuad.permute_dims(x, (0, 1, 3, 2)) for x in turned])
    np.testing.assert_array_equal(y.numpy(), ours(q, k, v, g, "float64")[0])


def test_shapes_decide_on_the_meta_device_as_they_do_here():
    meta = gpuad.device("meta", like="cpu:compiled")
    for queries, keys, values in SHAPES:
        q, k, v = (gpuad.zeros(s, device=meta) for s in (queries, keys, (*keys[:3], values)))
        y = F.scaled_dot_product_attention(q.requires_grad_(), k, v)
        assert y.link[0].op.name == "attention" and y.shape == (*queries[:3], values)
    small = gpuad.zeros((1, 1, 4, 4), device=meta).requires_grad_()
    assert F.scaled_dot_product_attention(small, small, small).link[0].op.name == "matmul"
