"""Attention as one op: the kernels beside PyTorch and their composition, in every mode and order."""

import numpy as np
import pytest

import gpuad
from gpuad import grad, jvp, vjp
from gpuad.devices import cuda_attention
from gpuad.devices import device as find_device
from gpuad.fuse import engines
from gpuad.fuse.prelude import CUDA_FLAGS, CUDA_PRELUDE
from gpuad.nn import functional as F
from gpuad.nn import layers
from gpuad.ops import attention
from stand_in import nvrtc

compiled = pytest.mark.skipif(engines.engine() != "compiled", reason="needs the compiled engine")
on_cuda = pytest.mark.usefixtures("cuda")  # on the stand-in, or a GPU
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


@compiled
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


@compiled
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_that_of_the_composition(mode):
    rng = np.random.default_rng(0)
    x, t = (gpuad.asarray(rng.standard_normal((4, 48, 3, 4, 16))) for _ in range(2))
    got, want = (MODES[mode](f, x, t).numpy() for f in (packed, composed))
    np.testing.assert_allclose(got, want, atol=1e-12 * max(1, abs(want).max()))


@compiled
def test_side_by_side_has_the_bits_of_apart():
    x = gpuad.asarray(np.random.default_rng(0).standard_normal((4, 48, 3, 4, 16)).astype(np.float32))
    y, pull = vjp(lambda x: attention.attend_packed(x, causal=True, scale=0.25), x)
    apart, pull_apart = vjp(lambda x: attention.attend(*attention._parts(x), causal=True, scale=0.25), x)
    np.testing.assert_array_equal(y.numpy(), apart.numpy())
    np.testing.assert_array_equal(pull(y)[0].numpy(), pull_apart(y)[0].numpy())


@compiled
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


@compiled
def test_features_that_lie_apart_are_copied_first():
    q, k, v, g = arrays(*SHAPES[0])
    turned = [gpuad.asarray(np.ascontiguousarray(a.transpose(0, 1, 3, 2))) for a in (q, k, v)]
    y = F.scaled_dot_product_attention(*[gpuad.permute_dims(x, (0, 1, 3, 2)) for x in turned])
    np.testing.assert_array_equal(y.numpy(), ours(q, k, v, g, "float64")[0])


@compiled
def test_shapes_decide_on_the_meta_device_as_they_do_here():
    meta = gpuad.device("meta", like="cpu:compiled")
    for queries, keys, values in SHAPES:
        q, k, v = (gpuad.zeros(s, device=meta) for s in (queries, keys, (*keys[:3], values)))
        y = F.scaled_dot_product_attention(q.requires_grad_(), k, v)
        assert y.link[0].op.name == "attention" and y.shape == (*queries[:3], values)
    small = gpuad.zeros((1, 1, 4, 4), device=meta).requires_grad_()
    assert F.scaled_dot_product_attention(small, small, small).link[0].op.name == "matmul"


# --- on a GPU -------------------------------------------------------------------------------------

KINDS = {"float32": 2e-5, "float16": 4e-3, "bfloat16": 3e-2}  # with what may differ


def on_device(function, values, dtype, device):
    """`function` of `values` as `dtype` on `device`, and the gradients of the sum of its products with the last."""
    *xs, g = [gpuad.asarray(v, dtype=dtype, device=device) for v in values]
    y, pull = vjp(lambda *xs: function(*xs), *xs)
    return [v.to("float64").numpy() for v in (y, *pull(g))]


def reference(q, k, v, g, causal):
    """The same in float64, with all weights."""
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    if causal:
        scores = np.where(np.tri(*scores.shape[-2:], dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    through = weights * (g @ v.swapaxes(-1, -2) - (g * (weights @ v)).sum(-1, keepdims=True)) / np.sqrt(q.shape[-1])
    return weights @ v, through @ k, through.swapaxes(-1, -2) @ q, weights.swapaxes(-1, -2) @ g


@on_cuda
@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("queries, keys, features, causal", [(129, 257, 40, False), (190, 190, 16, True)])
def test_gpu_has_the_values_and_gradients_of_all_weights(queries, keys, features, causal, dtype):
    shapes = [(1, 1, n, features) for n in (queries, keys, keys, queries)]
    rng = np.random.default_rng(0)
    values = [gpuad.asarray(rng.standard_normal(s), dtype=dtype).to("float64").numpy() for s in shapes]
    attend = lambda q, k, v: attention.attend(q, k, v, causal=causal, scale=features**-0.5)
    for got, want in zip(on_device(attend, values, dtype, "cuda"), reference(*values, causal), strict=True):
        np.testing.assert_allclose(got, want, atol=KINDS[dtype] * abs(want).max())


@on_cuda
@pytest.mark.parametrize("dtype, features", [("float32", 72), ("bfloat16", 136)])
def test_gpu_takes_what_lies_side_by_side_or_turned(dtype, features):
    """bfloat16 at 136 features has dk and dv in blocks of their own."""
    rng = np.random.default_rng(0)
    qkv = gpuad.asarray(rng.standard_normal((1, 182, 3, 1, features)), dtype=dtype, device="cuda")
    g = gpuad.asarray(rng.standard_normal((1, 1, features, 182)), dtype=dtype, device="cuda").mT  # features lie apart
    y, pull = vjp(lambda x: attention.attend_packed(x, causal=True, scale=0.1), qkv)
    apart, pull_apart = vjp(lambda x: attention.attend(*attention._parts(x), causal=True, scale=0.1), qkv)
    np.testing.assert_array_equal(y.numpy(), apart.numpy())
    np.testing.assert_array_equal(pull(g)[0].numpy(), pull_apart(g)[0].numpy())
    by_products = vjp(lambda x: attention.composed(*attention._parts(x), True, 0.1), qkv.to("cpu").to("float32"))[1]
    want = by_products(g.to("cpu").to("float32"))[0].numpy()
    np.testing.assert_allclose(pull(g)[0].to("float32").numpy(), want, atol=KINDS[dtype] * abs(want).max())


@on_cuda
def test_gpu_differentiates_derivatives_by_the_composition():
    rng = np.random.default_rng(0)
    x, t = (rng.standard_normal((1, 182, 3, 1, 8)).astype(np.float32) for _ in range(2))
    found = []
    for function, device in ((packed, "cuda"), (composed, "cpu")):
        place, along = (gpuad.asarray(v, device=device) for v in (x, t))
        found.append(jvp(grad(function), (place,), (along,))[1].numpy())
    np.testing.assert_allclose(*found, atol=2e-5 * abs(found[1]).max())


@on_cuda
def test_gpu_leaves_the_rest_to_products():
    device = find_device("cuda")
    long, short = ((1, 1, n, 16) for n in (182, 181))
    kinds = {shape: gpuad.zeros(shape, device=device) for shape in (long, short, (1, 1, 182, 12), (1, 1, 182, 264))}
    takes = {shape: device.attention(x, x, x) is not None for shape, x in kinds.items()}
    assert list(takes.values()) == [True, False, False, False]
    wide = kinds[long].to("float64")
    assert device.attention(wide, wide, wide) is None
    assert device.attention(kinds[long], kinds[long], gpuad.zeros((1, 1, 182, 8), device=device)) is None


def test_shapes_decide_on_the_meta_device_as_on_a_gpu():
    meta = gpuad.device("meta", like="cuda:sm_90")
    x = gpuad.zeros((2, 2, 128, 64), dtype="bfloat16", device=meta).requires_grad_()
    y = F.scaled_dot_product_attention(x, x, x, causal=True)
    assert y.link[0].op.name == "attention"
    gpuad.sum(y).backward()
    assert x.grad.shape == x.shape
    _, lse = attention._attention(x, x, x, causal=True, scale=1.0)
    assert lse.dtype == np.float32


@pytest.mark.parametrize("dtype, architecture", [("float32", "sm_75"), ("bfloat16", "sm_90"), ("float16", "sm_75")])
def test_gpu_text_is_compiled_as_it_is_launched(dtype, architecture):
    try:
        nvrtc.library()
    except ImportError as error:
        pytest.skip(str(error))
    cores = dtype != "float32" and architecture != "sm_75"
    text = cuda_attention.text(gpuad.zeros(1, dtype=dtype).dtype, 64, True, cores)
    assert nvrtc.refusal(CUDA_PRELUDE + text, CUDA_FLAGS, architecture.replace("sm", "compute")) is None
