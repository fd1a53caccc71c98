"""The chunked head beside its composition and PyTorch: values, gradients, every mode, and what memory it takes."""

import numpy as np
import pytest

import gpuad
from gpuad import grad, jvp
from gpuad.buffer import observers
from gpuad.devices import cuda_head
from gpuad.dtype import as_dtype
from gpuad.errors import DataError, DTypeError, IndexRangeError, ShapeError
from gpuad.fuse.prelude import CUDA_FLAGS, CUDA_PRELUDE
from gpuad.models import GPT, GPTConfig, language
from gpuad.nn import functional as F
from gpuad.ops import head
from gpuad.random import Generator
from stand_in import nvrtc

on_cuda = pytest.mark.usefixtures("cuda")  # on the stand-in, or a GPU
ROWS, FEATURES, CLASSES = 13, 6, 37


def inputs(rows=ROWS, ignored=-100):
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((rows, FEATURES)), rng.standard_normal((CLASSES, FEATURES))
    targets = rng.integers(0, CLASSES, rows)
    targets[rows // 2 :: 5] = ignored
    return x, weight, targets


def composition(x, weight, targets, chunk=None, **options):
    return F.cross_entropy(F.linear(x, weight), targets, **options)


def with_gradients(function, dtype="float64", device="cpu", values=None, **options):
    """The loss and its gradients by x and weight, in float64."""
    x, weight, targets = values or inputs()
    leaves = [gpuad.asarray(v, dtype=dtype, device=device).requires_grad_() for v in (x, weight)]
    loss = function(*leaves, gpuad.asarray(targets, device=device), **options)
    loss.backward()
    return [v.to("float64").numpy() for v in (loss, *[leaf.grad for leaf in leaves])]


def by_torch(torch, values=None, dtype="float64", **options):
    """The same by PyTorch, in float64, of the values that `dtype` can hold."""
    x, weight, targets = values or inputs()
    x, weight = (torch.tensor(v.astype(as_dtype(dtype)).astype(float), requires_grad=True) for v in (x, weight))
    loss = torch.nn.functional.cross_entropy(x @ weight.T, torch.tensor(targets), **options)
    loss.backward()
    return [v.detach().numpy() for v in (loss, x.grad, weight.grad)]


def close(found, expected, rtol):
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=rtol * max(abs(want).max(), 1e-3))


OPTIONS = [{}, {"reduction": "sum"}, {"label_smoothing": 0.2}, {"reduction": "sum", "label_smoothing": 1.0}]
RTOL = {"float64": 1e-13, "float32": 2e-6, "float16": 4e-3, "bfloat16": 3e-2}


@pytest.mark.parametrize("options", OPTIONS, ids=repr)
@pytest.mark.parametrize("chunk", [None, 1, 4, ROWS - 1, ROWS, ROWS + 1])
def test_values_and_gradients_are_pytorchs_whatever_the_chunk(torch, chunk, options):
    expected = by_torch(torch, **options)
    close(with_gradients(F.linear_cross_entropy, chunk=chunk, **options), expected, RTOL["float64"])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_other_dtypes_are_near(torch, dtype):
    for options in OPTIONS:
        expected = by_torch(torch, dtype=dtype, **options)
        close(with_gradients(F.linear_cross_entropy, dtype, chunk=5, **options), expected, RTOL[dtype])


def test_one_row_and_a_multiple_of_the_chunk_and_one_more(torch):
    for rows in (1, 8, 9):
        values = inputs(rows)
        values[2][:] = np.arange(rows)
        expected = by_torch(torch, values)
        close(with_gradients(F.linear_cross_entropy, values=values, chunk=4), expected, RTOL["float64"])


def test_any_shape_of_rows_and_dtype_of_targets():
    x, weight, targets = inputs(12, ignored=3)
    want = with_gradients(composition, values=(x, weight, targets), ignore_index=3)
    for dtype in ("int8", "uint8", "int32", "uint64"):
        shaped = x.reshape(2, 3, 2, FEATURES), weight, targets.reshape(2, 3, 2).astype(dtype)
        loss, dx, dweight = with_gradients(F.linear_cross_entropy, values=shaped, ignore_index=3, chunk=5)
        assert dx.shape == (2, 3, 2, FEATURES)
        close([loss, dx.reshape(x.shape), dweight], want, 1e-13)
    one = F.linear_cross_entropy(x[0], weight, np.array(5))
    np.testing.assert_allclose(one.numpy(), F.cross_entropy(x[0] @ weight.T, np.array(5)).numpy(), rtol=1e-6)


def test_operands_that_lie_apart_and_dtypes_that_differ():
    x, weight, targets = inputs()
    rows = gpuad.asarray(np.repeat(x, 2, axis=1)[::-1])[:, ::2]
    turned = gpuad.asarray(np.ascontiguousarray(weight.T)).mT
    found = F.linear_cross_entropy(rows, turned, np.repeat(targets[::-1], 2)[::2], chunk=3)
    np.testing.assert_allclose(found.numpy(), composition(x, weight, targets).numpy(), rtol=1e-6)
    narrow = gpuad.asarray(weight, dtype="float32").requires_grad_()
    loss = F.linear_cross_entropy(gpuad.asarray(x, dtype="float64"), narrow, targets)
    loss.backward()
    assert loss.dtype == np.float64 and narrow.grad.dtype == np.float32


def test_nothing_to_count_is_nan_and_no_gradient_is_zero():
    x, weight, _ = inputs(3)
    targets = np.full(3, -100)
    assert np.isnan(F.linear_cross_entropy(x, weight, targets).item())
    loss, dx, dweight = with_gradients(F.linear_cross_entropy, values=(x, weight, targets), reduction="sum")
    assert loss == 0 and not dx.any() and not dweight.any()
    loss, dx, dweight = with_gradients(F.linear_cross_entropy, values=(x[:0], weight, targets[:0]), reduction="sum")
    assert loss == 0 and dx.shape == (0, FEATURES) and dweight.shape == weight.shape and not dweight.any()


MODES = {
    "value": lambda f, x, t: f(x),
    "grad": lambda f, x, t: grad(f)(x),
    "jvp": lambda f, x, t: jvp(f, (x,), (t,))[1],
    "forward over reverse": lambda f, x, t: jvp(grad(f), (x,), (t,))[1],
    "reverse over reverse": lambda f, x, t: grad(lambda x: gpuad.sum(grad(f)(x) * t))(x),
    "reverse over forward": lambda f, x, t: grad(lambda x: jvp(f, (x,), (t,))[1])(x),
    "checkpointed": lambda f, x, t: grad(gpuad.checkpoint(f))(x),
    "checkpointed twice": lambda f, x, t: grad(gpuad.checkpoint(lambda x: gpuad.checkpoint(f)(x) ** 2))(x),
}


@pytest.mark.parametrize("by", ["x", "weight", "both"])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_that_of_the_composition(mode, by):
    x, weight, targets = inputs()
    rng = np.random.default_rng(1)
    place = {"x": x, "weight": weight, "both": weight[:ROWS]}[by]
    at, along = gpuad.asarray(place), gpuad.asarray(rng.standard_normal(place.shape))

    def loss(function):
        def of(z):
            given = {"x": (z, weight), "weight": (x, z), "both": (gpuad.sin(z) * 2, z)}[by]
            aims = targets % ROWS if by == "both" else targets
            return function(*given, aims, chunk=4, label_smoothing=0.1)

        return of

    got, want = (MODES[mode](loss(f), at, along).numpy() for f in (F.linear_cross_entropy, composition))
    np.testing.assert_allclose(got, want, atol=1e-13 * max(1, abs(want).max()))


def test_weight_that_is_also_an_embedding_gets_both_gradients():
    _, weight, targets = inputs()
    tokens = np.random.default_rng(2).integers(0, CLASSES, ROWS)
    found = []
    for function in (F.linear_cross_entropy, composition):
        leaf = gpuad.asarray(weight).requires_grad_()
        function(gpuad.tanh(F.embedding(leaf, tokens)), leaf, targets, chunk=5).backward()
        found.append(leaf.grad.numpy())
    np.testing.assert_allclose(*found, rtol=1e-12)


def test_cotangent_scales_what_is_kept():
    x, weight, targets = inputs()
    found = []
    for function in (F.linear_cross_entropy, composition):
        leaf, factor = gpuad.asarray(x).requires_grad_(), gpuad.asarray(3.0, dtype="float64").requires_grad_()
        loss = gpuad.exp(function(leaf, weight, targets, chunk=5) * factor)
        loss.backward(retain_graph=True)
        loss.backward()
        found += [leaf.grad.numpy(), factor.grad.numpy()]
    np.testing.assert_allclose(found[0], found[2], rtol=1e-11)
    np.testing.assert_allclose(found[1], found[3], rtol=1e-11)


# --- what is computed, and what is held -----------------------------------------------------------


class Watch:
    """The sizes of all memory that is allocated, and the most that lives at once."""

    def __init__(self):
        self.sizes, self.live, self.peak = [], 0, 0

    def allocated(self, buffer):
        self.sizes.append(buffer.nbytes)
        self.live += buffer.nbytes
        self.peak = max(self.peak, self.live)

    def freed(self, buffer):
        self.live -= buffer.nbytes

    def __enter__(self):
        observers.append(self)
        return self

    def __exit__(self, *_):
        observers.remove(self)


def of_size(rows, classes, features, device="cpu"):
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal((n, features)).astype(np.float32) for n in (rows, classes))
    made = [gpuad.asarray(v, device=device) for v in (x, weight, rng.integers(0, classes, rows))]
    return made[0].requires_grad_(), made[1].requires_grad_(), made[2]


def loss_and_backward(device):
    """What is watched of a loss whose logits are twelve chunks; and the bytes of a chunk."""
    x, weight, targets = of_size(192, 500, 4, device)
    with Watch() as watch:
        F.linear_cross_entropy(x, weight, targets, chunk=16).backward()
    return watch, 16 * 500 * 4


@pytest.mark.parametrize("like", ["cpu:numpy", "cuda:sm_90", None])
def test_logits_are_never_all_held(like):
    watch, chunk = loss_and_backward("cpu" if like is None else gpuad.device("meta", like=like))
    assert max(watch.sizes) == chunk
    assert watch.peak < 4 * chunk


@on_cuda
def test_gpu_has_room_for_one_chunk():
    watch, chunk = loss_and_backward("cuda")
    assert max(watch.sizes) == chunk and watch.sizes.count(chunk) == 1
    assert watch.peak < 2 * chunk


def test_gradients_are_computed_only_where_they_are_wanted():
    x, weight, targets = of_size(192, 500, 4)
    with gpuad.no_grad():
        assert kept(x, weight, targets) == [False, False]
    fixed = weight.detach(), x.detach()
    assert kept(fixed[1], fixed[0], targets) == [False, False]
    assert kept(x, fixed[0], targets) == [True, False]
    assert kept(fixed[1], weight, targets) == [False, True]
    assert kept(x, weight, targets) == [True, True]
    first = []

    def run(x):
        first.append(kept(x, weight, targets))
        return F.linear_cross_entropy(x, weight, targets)

    gpuad.checkpoint(run)(x)
    assert first == [[False, False]], "the first run of a checkpointed function keeps nothing"


def kept(x, weight, targets):
    """Whether the gradients of x and of weight are made with the loss."""
    sizes = [x.size, weight.size]
    found = []
    op, evaluate = head._head, type(head._head).evaluate

    def watched(arrays, params, site):
        result = evaluate(op, arrays, params, site)
        found.extend(d.size for d in result[1:])
        return result

    op.evaluate = watched
    try:
        F.linear_cross_entropy(x, weight, targets)
    finally:
        del op.evaluate
    assert all(n in (0, size) for n, size in zip(found, sizes, strict=True))
    return [n > 0 for n in found]


def test_chunk_follows_from_the_shapes():
    assert head.rows_at_once(50257, as_dtype("float32")) == 333
    assert head.rows_at_once(50257, as_dtype("bfloat16")) == 667
    assert head.rows_at_once(10**6, as_dtype("float32")) == 64
    assert head.rows_at_once(1, as_dtype("float64")) == 1 << 23


# --- errors ---------------------------------------------------------------------------------------


def test_errors_name_the_call_and_the_remedy():
    x, weight, targets = inputs()
    head_of = lambda x=x, weight=weight, targets=targets, **options: F.linear_cross_entropy(
        x, weight, targets, **options
    )
    with pytest.raises(IndexRangeError, match=r"linear_cross_entropy\(\) at test_head.py:\d+ got the target 37 for 37"):
        head_of(targets=targets + 37 - targets[0])
    with pytest.raises(DTypeError, match="needs integer targets"):
        head_of(targets=targets.astype(float))
    with pytest.raises(ShapeError, match=r"got x float64\[13, 6\], weight float64\[37, 5\]"):
        head_of(weight=weight[:, :5])
    with pytest.raises(ShapeError, match=r"targets int64\[12\]"):
        head_of(targets=targets[1:])
    with pytest.raises(DataError, match=r'not "none"|not \'none\'\n  cross_entropy\(linear'):
        head_of(reduction="none")
    with pytest.raises(DataError, match="from 0 to 1, got 2"):
        head_of(label_smoothing=2)
    with pytest.raises(DataError, match="at least 1 row, got 0"):
        head_of(chunk=0)


# --- on a GPU -------------------------------------------------------------------------------------


@on_cuda
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_gpu_has_the_values_and_gradients_of_pytorch(torch, dtype):
    for chunk, options in zip((None, 1, 4, ROWS), OPTIONS, strict=True):
        expected = by_torch(torch, dtype=dtype, **options)
        close(with_gradients(F.linear_cross_entropy, dtype, "cuda", chunk=chunk, **options), expected, RTOL[dtype])


@on_cuda
def test_gpu_takes_what_lies_apart_and_nothing_at_all():
    x, weight, targets = (gpuad.asarray(v, device="cuda") for v in inputs())
    x, weight = x.to("bfloat16"), weight.to("bfloat16")
    spread = gpuad.repeat(x, 2, axis=1)[:, ::2]
    both = [F.linear_cross_entropy(v, weight, targets.to("int8"), chunk=4).item() for v in (x, spread)]
    assert both[0] == both[1]
    values = inputs(0)
    loss, dx, dweight = with_gradients(F.linear_cross_entropy, "float32", "cuda", values, reduction="sum")
    assert loss == 0 and dx.shape == (0, FEATURES) and not dweight.any()


@on_cuda
def test_gpu_names_the_target_that_is_out_of_range():
    x, weight, targets = inputs()
    x, weight = (gpuad.asarray(v.astype(np.float32), device="cuda") for v in (x, weight))
    loss = F.linear_cross_entropy(x, weight, gpuad.asarray(targets + 37 - targets[0], device="cuda"))
    with pytest.raises(IndexRangeError, match=r"linear_cross_entropy\(\) at test_head.py:\d+ got the target"):
        loss.item()
    assert np.isfinite(F.linear_cross_entropy(x, weight, gpuad.asarray(targets, device="cuda")).item())


@on_cuda
def test_gpu_differentiates_derivatives():
    x, weight, targets = inputs()
    found = []
    for function, device in ((F.linear_cross_entropy, "cuda"), (composition, "cpu")):
        at, fixed = (gpuad.asarray(v.astype(np.float32), device=device) for v in (x, weight))
        aims = gpuad.asarray(targets, device=device)
        f = lambda x: function(x, fixed, aims, chunk=5)  # noqa: B023  # called here
        found.append([v.numpy() for v in (jvp(f, (at,), (at,))[1], jvp(grad(f), (at,), (at,))[1])])
    close(*found, 1e-5)


@pytest.mark.parametrize("dtype, index", [("float32", "int64"), ("bfloat16", "int32")])
def test_gpu_text_is_compiled_as_it_is_launched(dtype, index):
    try:
        nvrtc.library()
    except ImportError as error:
        pytest.skip(str(error))
    text = CUDA_PRELUDE + cuda_head.text(as_dtype(dtype), as_dtype(index))
    assert nvrtc.refusal(text, CUDA_FLAGS, "compute_90") is None


# --- in a model -----------------------------------------------------------------------------------


def test_gpt_with_a_large_vocabulary_never_holds_all_logits(monkeypatch):
    config = GPTConfig(vocabulary=language.LARGE, length=32, layers=1, heads=2, width=8)
    model = GPT(config, generator=Generator(1))
    tokens = gpuad.asarray(np.random.default_rng(0).integers(0, language.LARGE, (4, 33)))
    monkeypatch.setattr(head, "CHUNK_BYTES", 0)  # chunks of the fewest rows
    with Watch() as watch:
        loss = model.loss(tokens)
        loss.backward()
    assert max(watch.sizes) == head.FEWEST_ROWS * language.LARGE * 4
    found = [loss.numpy(), *[p.grad.numpy() for p in model.parameters()]]
    for p in model.parameters():
        p.grad = None
    logits = model(tokens[:, :-1])
    whole = F.cross_entropy(logits, tokens[:, 1:])
    whole.backward()
    close(found, [whole.numpy(), *[p.grad.numpy() for p in model.parameters()]], 1e-5)


def test_small_vocabularies_keep_the_composition():
    model = GPT(GPTConfig(vocabulary=64, length=8, layers=1, heads=1, width=8))
    loss = model.loss(gpuad.asarray(np.zeros((2, 9), np.int64)))
    names, stack = set(), [loss.link[0]]
    while stack:
        node = stack.pop()
        if node.parents and node.op.name not in names:
            names.add(node.op.name)
        stack += [p[0] for p in node.parents if p is not None]
    assert "cross_entropy" in names and "linear_cross_entropy" not in names
