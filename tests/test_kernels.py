"""The hand-written kernels: compiled by NVRTC, run on the CPU a fibre for each thread, beside float64 references."""

import ctypes
import functools

import ml_dtypes
import numpy as np
import pytest

import gpuad
from gpuad.fuse.prelude import CUDA_FLAGS, CUDA_PRELUDE
from gpuad.fuse.sources import source as read
from stand_in import compiler, guarded, nvrtc

ARCHITECTURES = ("sm_75", "sm_80", "sm_90", "sm_100", "sm_120")
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
C_NAMES = {"float32": "float", "float64": "double", "int32": "int32", "int64": "int64"}
RTOL = {"float32": 3e-6, "float64": 1e-13, "float16": 2e-3, "bfloat16": 1.6e-2}  # of the largest element

# --- sources and launches: what the loader and the ops take over --------------------------------


def source(name, **definitions):
    """The text of kernels/<name>, with what it includes, after the prelude and `definitions`."""
    defined = [f"#define {key} {C_NAMES.get(str(value), value)}\n" for key, value in definitions.items()]
    return CUDA_PRELUDE + "".join(defined) + read(name)


def ceil_div(n, size):
    return -(-n // size)


class AttentionTiles:
    """The sizes of attention_mma.cuh and attention_fma.cuh; `own` rows of a block, `stream` rows of a tile."""

    def __init__(self, head, tensor_cores, backward):
        padded = ceil_div(head, 16) * 16 if tensor_cores else ceil_div(head, 32) * 32
        if tensor_cores:
            self.own = 128 if padded <= 64 and not backward else 64
            self.stream = 64 if padded <= 64 else 32 if padded <= 192 else 16
            stages = 2 if padded <= 128 or not backward else 1
            row = (padded + 8) * 2
        else:
            self.own = (
                (32 if padded <= 128 else 16) if backward else 64 if padded <= 64 else 32 if padded <= 128 else 16
            )
            self.stream = 32 if padded <= 64 else 8 if backward and padded > 224 else 16
            stages = 1
            row = (padded + 4) * 4
        self.split = tensor_cores and padded > 128
        scratch = 0 if tensor_cores else 4 * self.own * (self.stream + 4)
        sums = stages * 2 * self.stream * 4 if backward else 0
        self.shared = ((2 if backward else 1) * self.own + stages * 2 * self.stream) * row + scratch + sums


def launch_attention_forward(pairs, queries, head, tensor_cores):
    """Grid, block and shared bytes; `pairs` is batch * heads."""
    tiles = AttentionTiles(head, tensor_cores, backward=False)
    return (pairs * ceil_div(queries, tiles.own), 1, 1), (128, 1, 1), tiles.shared


def launch_attention_delta(pairs, queries):
    return (ceil_div(pairs * queries, 16), 1, 1), (128, 1, 1), 0


def launch_attention_backward_query(pairs, queries, head, tensor_cores):
    tiles = AttentionTiles(head, tensor_cores, backward=True)
    return (pairs * ceil_div(queries, tiles.own), 1, 1), (128, 1, 1), tiles.shared


def launch_attention_backward_key(pairs, keys, head, tensor_cores):
    tiles = AttentionTiles(head, tensor_cores, backward=True)
    return (pairs * ceil_div(keys, tiles.own), 2 if tiles.split else 1, 1), (128, 1, 1), tiles.shared


def launch_cross_entropy_in_place(rows):
    return (rows, 1, 1), (512, 1, 1), 0


def launch_segment_starts(rows):
    return (ceil_div(rows + 1, 256), 1, 1), (256, 1, 1), 0


PIECE = 64  # of scatter_add.cu


def launch_scatter(places, columns):
    """For scatter_pieces and scatter_finish."""
    return (ceil_div(places, PIECE), min(ceil_div(columns, 128), 3), 1), (128, 1, 1), 0


CHUNK = 4096  # of segments.cuh


def segment_table(segments):
    """int64[segments, 8] of dicts with the columns of segments.cuh, and the number of blocks."""
    names = ("values", "gradient", "master", "m", "v", "size", "first_block", "kind")
    table, blocks = np.zeros((len(segments), len(names)), np.int64), 0
    for row, segment in zip(table, segments, strict=True):
        row[:] = [{"first_block": blocks, "kind": 0, **segment}.get(name, 0) for name in names]
        blocks += ceil_div(segment["size"], CHUNK)
    return table, blocks


def launch_over_segments(blocks):
    """For gradient_squares and adamw."""
    return (blocks, 1, 1), (256, 1, 1), 0


def launch_gradient_norm():
    return (1, 1, 1), (1024, 1, 1), 0


# --- running --------------------------------------------------------------------------------------


@functools.cache
def entries(name, **definitions):
    return compiler.entries(source(name, **definitions))


def run(entry, launch, *values):
    """Run `entry`: an array is passed as its address, a NumPy scalar as itself."""
    grid, block, shared = launch
    if 0 in grid:
        return
    passed = [np.array([v.ctypes.data], np.uintp) if isinstance(v, np.ndarray) else np.array([v]) for v in values]
    addresses = (ctypes.c_void_p * len(passed))(*[v.ctypes.data for v in passed])
    compiler.launch(entry, grid, block, shared, ctypes.addressof(addresses), 0)


def fresh(shape, dtype):
    """Poisoned memory that ends where reading on is an error."""
    dtype = np.dtype(dtype)
    nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = guarded.Guarded(nbytes, 0)
    return guarded.seen(memory.address, nbytes, memory).view(dtype).reshape(shape)


def on_device(x, dtype=None):
    """A copy of `x` in such memory."""
    copy = fresh(np.shape(x), dtype or x.dtype)
    copy[...] = x
    return copy


def misaligned(x):
    """A copy of `x` that starts one element past a multiple of 16 bytes."""
    copy = fresh(x.size + 1, x.dtype)[1:].reshape(x.shape)
    copy[...] = x
    return copy


def sparse(folder, size, dtype):
    """`size` zeros, in a file of which only what is used exists."""
    return np.memmap(folder / f"{len(list(folder.iterdir()))}", dtype, "w+", shape=size)


def close(got, want, rtol=None, least=1e-3):
    """Equal up to `rtol` of the largest element, or of `least`; where one is not finite, both are the same."""
    rtol = rtol or RTOL[got.dtype.name]
    got, want = got.astype(np.float64), np.asarray(want, np.float64)
    largest = np.max(np.abs(want), initial=least, where=np.isfinite(want))
    np.testing.assert_allclose(got, want, rtol=0, atol=rtol * largest)


# --- NVRTC ----------------------------------------------------------------------------------------

HALVES = ("float16", "bfloat16")
HOPPER = ("sm_90",)
ATTENTION = {  # dtype, head, causal, tensor cores: for which architectures
    ("float32", 64, 1, 0): ARCHITECTURES,
    ("bfloat16", 64, 1, 1): ARCHITECTURES[1:],
    ("float16", 64, 0, 1): ARCHITECTURES[1:],
    ("float16", 64, 1, 0): ("sm_75",),
    ("bfloat16", 64, 0, 0): ("sm_75",),
    **{("float32", head, 1, 0): HOPPER for head in (8, 128, 256)},
    **{("bfloat16", head, 1, 1): HOPPER for head in (8, 128, 256)},
}
OTHERS = [
    *(
        ("head.cu", {"T": t, "INDEX": i})
        for t, i in zip(("float32", *HALVES), ("int32", "int64", "int32"), strict=True)
    ),
    *(("scatter_add.cu", {"T": t, "INDEX": "int64"}) for t in ("float32", "float64", *HALVES)),
    ("digest.cu", {}),
    *(("norm.cu", {"T": t}) for t in ("float32", *HALVES)),
    *(
        ("adamw.cu", {"T": t, "G": g, "S": s})
        for t in ("float32", *HALVES)
        for g in sorted({"float32", t})
        for s in sorted({"float32", g})
    ),
]
TEXTS = [
    *(
        ("attention.cu", dict(zip(("T", "HEAD", "CAUSAL", "TENSOR_CORES"), key, strict=True)), architectures)
        for key, architectures in ATTENTION.items()
    ),
    *((file, definitions, ARCHITECTURES) for file, definitions in OTHERS),
]


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: " ".join(map(str, (text[0], *text[1].values()))))
def test_nvrtc_compiles(text):
    file, definitions, architectures = text
    for architecture in architectures:
        # To machine code for Hopper, else to PTX, which is faster and finds all but what registers cannot hold.
        target = architecture if architecture == "sm_90" else architecture.replace("sm", "compute")
        said = nvrtc.refusal(source(file, **definitions), CUDA_FLAGS, target)
        assert said is None, said


def test_tensor_cores_are_refused_where_there_are_none():
    text = source("attention.cu", T="float16", HEAD=64, CAUSAL=1, TENSOR_CORES=1)
    assert "needs sm_80" in nvrtc.refusal(text, CUDA_FLAGS, "sm_75")


# --- attention ------------------------------------------------------------------------------------


def row_arguments(*arrays):
    """Each array [batch, heads, positions, features] with its strides in elements."""
    found = []
    for x in arrays:
        assert x.strides[3] == x.itemsize or x.size == 0
        found += [x, *[np.int64(s // x.itemsize) for s in x.strides[:3]]]
    return found


def attention(q, k, v, g, causal, tensor_cores, scale, results=None):
    """out, lse, dq, dk, dv by the kernels."""
    (heads, queries, head), keys, pairs = q.shape[1:], k.shape[2], q.shape[0] * q.shape[1]
    of = entries("attention.cu", T=q.dtype.name, HEAD=head, CAUSAL=int(causal), TENSOR_CORES=int(tensor_cores))
    out, dq, dk, dv = results or [fresh(x.shape, x.dtype) for x in (q, q, k, k)]
    lse, delta = fresh((pairs, queries), np.float32), fresh((pairs, queries), np.float32)
    sizes = [np.int32(heads), np.int32(queries), np.int32(keys), np.float32(scale)]
    launch = launch_attention_forward(pairs, queries, head, tensor_cores)
    run(of["attention_forward"], launch, *row_arguments(q, k, v, out), lse, *sizes)
    launch = launch_attention_delta(pairs, queries)
    run(of["attention_delta"], launch, *row_arguments(out, g), delta, np.int64(pairs), *sizes[:2])
    launch = launch_attention_backward_query(pairs, queries, head, tensor_cores)
    run(of["attention_backward_query"], launch, *row_arguments(q, k, v, g, dq), lse, delta, *sizes)
    launch = launch_attention_backward_key(pairs, keys, head, tensor_cores)
    run(of["attention_backward_key"], launch, *row_arguments(q, k, v, g, dk, dv), lse, delta, *sizes)
    return out, lse, dq, dk, dv


def attention_reference(q, k, v, g, causal, scale):
    """The same in float64, with all weights."""
    q, k, v, g = (x.astype(np.float64) for x in (q, k, v, g))
    scores = q @ k.swapaxes(-1, -2) * scale
    if causal:
        scores = np.where(np.tri(*scores.shape[-2:], dtype=bool), scores, -np.inf)
    top = np.max(scores, axis=-1, keepdims=True, initial=-1e300)
    e = np.exp(scores - top)
    total = e.sum(-1, keepdims=True)
    lse = top + np.log(total, out=np.full_like(total, -np.inf), where=total > 0)
    weights = e / np.where(total == 0, 1, total)
    out = weights @ v
    through = weights * (g @ v.swapaxes(-1, -2) - (g * out).sum(-1, keepdims=True))
    dq, dk = through @ k * scale, through.swapaxes(-1, -2) @ q * scale
    return out, lse.reshape(q.shape[0] * q.shape[1], q.shape[2]), dq, dk, weights.swapaxes(-1, -2) @ g


def draw(shape, dtype, seed=0):
    return on_device(np.random.default_rng(seed).standard_normal(shape), dtype)


def attention_inputs(batch, heads, queries, keys, head, dtype):
    q, g = (draw((batch, heads, queries, head), dtype, seed) for seed in (1, 2))
    k, v = (draw((batch, heads, keys, head), dtype, seed) for seed in (3, 4))
    return q, k, v, g


KINDS = [("float32", False), ("float16", True), ("bfloat16", True), ("float16", False)]
kinds = pytest.mark.parametrize("dtype, tensor_cores", KINDS)
SHAPES = [  # batch, heads, queries, keys, head, causal
    (1, 1, 1, 1, 16, True),
    (2, 3, 64, 64, 64, True),
    (2, 1, 130, 70, 64, True),
    (1, 2, 65, 200, 64, True),
    (1, 1, 70, 131, 40, False),
    (1, 1, 100, 33, 8, True),
    (1, 1, 67, 45, 128, True),
    (1, 1, 40, 50, 160, False),
    (1, 1, 65, 66, 256, True),
    (1, 2, 5, 0, 40, False),
    (1, 2, 0, 5, 40, False),
    (0, 2, 5, 5, 40, False),
]
CASES = [  # each kind at the sizes that differ in its tiles; float16 takes the texts of the others
    (*kind, shape) for kind in KINDS for shape in SHAPES if kind[0] != "float16" or shape[4] in (16, 40, 64)
]


@pytest.mark.parametrize("dtype, tensor_cores, shape", CASES, ids=str)
def test_attention_is_the_softmax_of_all_scores(dtype, tensor_cores, shape):
    *sizes, causal = shape
    inputs = attention_inputs(*sizes, dtype=np.dtype(dtype))
    scale = 1 / np.sqrt(sizes[-1])
    want = attention_reference(*inputs, causal, scale)
    for got, expected in zip(attention(*inputs, causal, tensor_cores, scale), want, strict=True):
        if got.dtype == np.float32 and got.ndim == 2:
            close(got, expected, 1e-5)
        else:
            close(got, expected, 2 * RTOL[dtype])


@kinds
def test_attention_takes_any_strides(dtype, tensor_cores):
    """q, k and v side by side in one array [batch, positions, 3, heads, features], and results likewise."""
    dtype, positions, heads, head = np.dtype(dtype), 37, 2, 40
    packed = draw((2, positions, 3, heads, head), dtype)
    q, k, v = packed.transpose(2, 0, 3, 1, 4)
    g = misaligned(draw((2, heads, positions, head), dtype, 5))
    results = fresh((2, positions, 4, heads, head), dtype).transpose(2, 0, 3, 1, 4)
    got = attention(q, k, v, g, False, tensor_cores, 0.3, list(results))
    plain = [on_device(x) for x in (q, k, v, g)]
    for y, z in zip(got, attention(*plain, False, tensor_cores, 0.3), strict=True):
        np.testing.assert_array_equal(y, z)


@kinds
def test_attention_indexes_past_2_to_31(dtype, tensor_cores, tmp_path):
    """Rows 2^30 elements apart, heads 2^32 apart, in files of which only what is used exists."""
    dtype = np.dtype(dtype)
    row, head_step, head, keys = 2**30, 2**32, 16, 3
    inputs = attention_inputs(1, 2, keys, keys, head, dtype)
    far = []
    for x in inputs:
        memory = sparse(tmp_path, (head_step + keys * row) * dtype.itemsize, np.uint8)
        steps = [n * dtype.itemsize for n in (0, head_step, row, 1)]
        view = np.ndarray(x.shape, dtype, memory, strides=steps)
        view[...] = x
        far.append(view)
    out = attention(*far, True, tensor_cores, 0.25, [fresh(x.shape, dtype) for x in (*inputs[:2], *inputs[1:3])])
    for y, z in zip(out, attention(*inputs, True, tensor_cores, 0.25), strict=True):
        np.testing.assert_array_equal(y, z)


@kinds
def test_attention_depends_neither_on_the_order_of_threads_nor_on_neighbours(dtype, tensor_cores, monkeypatch):
    inputs = attention_inputs(1, 3, 140, 70, 64, np.dtype(dtype))
    want = attention(*inputs, True, tensor_cores, 0.2)
    for order in ("reverse", "shuffle:3"):
        monkeypatch.setenv("GPUAD_STAND_IN_ORDER", order)
        for y, z in zip(attention(*inputs, True, tensor_cores, 0.2), want, strict=True):
            np.testing.assert_array_equal(y, z)
    alone = attention(*[on_device(x[:, 1:2]) for x in inputs], True, tensor_cores, 0.2)
    for y, z in zip(alone, want, strict=True):
        np.testing.assert_array_equal(y, z[1:2] if z.ndim == 2 else z[:, 1:2])


@kinds
def test_attention_survives_large_scores_and_shows_what_is_not_finite(dtype, tensor_cores):
    inputs = attention_inputs(1, 1, 70, 70, 16, np.dtype(dtype))
    inputs[0][...] *= 30
    inputs[1][...] *= 30
    want = attention_reference(*inputs, True, 1.0)
    out, lse, *gradients = attention(*inputs, True, tensor_cores, 1.0)
    close(out, want[0], 20 * RTOL[dtype])  # lse is 1000 and more
    close(lse, want[1])
    assert all(np.isfinite(x.astype(np.float32)).all() for x in gradients)
    inputs[0][0, 0, 5] = np.nan  # a query
    inputs[1][0, 0, 66] = -np.inf  # a key that few queries see, whose scores are inf, -inf or nan
    out, lse, dq, _, dv = attention(*inputs, True, tensor_cores, 1.0)
    assert np.isnan(out[0, 0, 5]).all() and np.isnan(lse[0, 5]) and np.isnan(dq[0, 0, 5]).all()
    assert np.isnan(dv[0, 0, :6]).all()  # the keys that the query sees
    assert np.isfinite(out[0, 0, :66].astype(np.float32)).all(axis=1).sum() == 65
    assert np.isnan(out[0, 0, 66:].astype(np.float32)).all()


def test_attention_equals_its_composition():
    inputs = attention_inputs(2, 2, 45, 45, 64, np.float32)
    *args, g = map(gpuad.asarray, inputs)
    y, pull = gpuad.vjp(lambda *a: gpuad.nn.functional.scaled_dot_product_attention(*a, causal=True), *args)
    want = [y, *pull(g)]
    out, _, dq, dk, dv = attention(*inputs, True, False, 64**-0.5)
    for got, expected in zip((out, dq, dk, dv), want, strict=True):
        close(got, expected.numpy())


def test_attention_equals_that_of_torch(torch):
    inputs = attention_inputs(1, 2, 50, 50, 64, np.dtype(np.float16))
    q, k, v, g = (torch.from_numpy(x.astype(np.float64)).requires_grad_() for x in inputs)
    y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    y.backward(g)
    out, _, dq, dk, dv = attention(*inputs, True, True, 64**-0.5)
    for got, want in zip((out, dq, dk, dv), (y, q.grad, k.grad, v.grad), strict=True):
        close(got, want.detach().numpy())


# --- the head -------------------------------------------------------------------------------------


def cross_entropy(logits, targets, scale=1.0, ignored=-100, smoothing=0.0):
    """losses, gradient and error word by the kernel; `logits` may have padding behind its rows."""
    stride, copy = logits.strides[0] // logits.itemsize, logits  # written in place
    loss, error = fresh(len(logits), np.float32), on_device(np.zeros(1, np.int32))
    run(
        entries("head.cu", T=logits.dtype.name, INDEX=targets.dtype.name)["cross_entropy_in_place"],
        launch_cross_entropy_in_place(len(logits)),
        *(copy, np.int64(stride), targets, loss, on_device(np.array([scale], np.float32)), error),
        *(np.int32(logits.shape[1]), np.int64(ignored), np.float32(smoothing)),
    )
    return loss, copy, error[0]


def cross_entropy_reference(logits, targets, scale, ignored, smoothing):
    x = logits.astype(np.float64)
    counted = (targets != ignored)[:, None]
    one_hot = np.zeros(x.shape)
    one_hot[np.arange(len(x))[counted[:, 0]], targets[counted[:, 0]]] = 1
    aim = (1 - smoothing) * one_hot + smoothing / x.shape[1]
    z = x - x.max(1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    return np.where(counted, -aim * log_p, 0).sum(1), np.where(counted, (np.exp(log_p) - aim) * scale, 0)


@pytest.mark.parametrize("dtype", ("float32", *HALVES))
@pytest.mark.parametrize("columns, padding", [(1, 0), (7, 1), (1000, 0), (9001, 7), (4104, 0)])
def test_cross_entropy_becomes_its_gradient(columns, padding, dtype):
    rng = np.random.default_rng(columns)
    memory = draw((5, columns + padding), np.dtype(dtype))
    memory[:, :columns] *= 3
    logits, behind = memory[:, :columns], memory[:, columns:].copy()
    targets = on_device(rng.integers(0, columns, 5), np.int32 if columns % 2 else np.int64)
    targets[2] = -100
    for smoothing in (0.0, 0.1):
        want = cross_entropy_reference(logits, targets, 0.25, -100, smoothing)
        copy = on_device(memory)
        loss, gradient, error = cross_entropy(copy[:, :columns], targets, 0.25, -100, smoothing)
        close(loss, want[0], 1e-5)
        close(gradient, want[1], least=0.25)
        np.testing.assert_array_equal(copy[:, columns:], behind)
        assert error == 0


def test_cross_entropy_flags_targets_out_of_range_and_ignores_them():
    logits, targets = draw((4, 30), np.float32), on_device(np.array([3, 30, -1, 29]))
    want = cross_entropy_reference(logits, np.array([3, -7, -7, 29]), 1.0, -7, 0.0)
    loss, gradient, error = cross_entropy(logits, targets, ignored=-7)
    close(loss, want[0])
    close(gradient, want[1])
    assert error == 2


def test_cross_entropy_shows_what_is_not_finite():
    logits, targets = draw((5, 3000), np.float32), on_device(np.array([1, 1, 1, 1, 1]))
    logits[0, 2000], logits[1, 2000], logits[2], logits[3, :2999] = np.nan, np.inf, -np.inf, -np.inf
    logits[4, 5] = -np.inf
    loss, gradient, _ = cross_entropy(logits, targets)
    assert np.isnan(loss[[0, 1, 2]]).all() and np.isnan(gradient[[0, 2]]).all() and np.isnan(gradient[1, 2000])
    assert loss[3] == np.inf and gradient[3, 2999] == 1 and gradient[3, 1] == -1
    assert np.isfinite(loss[4]) and gradient[4, 5] == 0


def test_cross_entropy_equals_its_composition():
    logits, targets = draw((6, 77), np.float32), on_device(np.array([0, 76, 5, -100, 7, 8]))
    fixed = gpuad.asarray(targets)
    f = lambda x: gpuad.nn.functional.cross_entropy(x, fixed, label_smoothing=0.2, reduction="none")
    y, pull = gpuad.vjp(f, gpuad.asarray(logits))
    (want,) = pull(gpuad.full((6,), 0.5))
    want_loss, want = y.numpy(), want.numpy()
    loss, gradient, _ = cross_entropy(logits, targets, 0.5, -100, 0.2)
    close(loss, want_loss)
    close(gradient, want)


def test_cross_entropy_indexes_past_2_to_31(tmp_path):
    logits, targets = draw((4, 20), np.float32), on_device(np.array([0, 19, 5, 7]))
    far = sparse(tmp_path, 2**32, np.float32)[: 4 * 2**30].reshape(4, 2**30)[:, :20]
    far[...] = logits
    for got, want in zip(cross_entropy(far, targets), cross_entropy(logits, targets), strict=True):
        np.testing.assert_array_equal(got, want)


# --- adding up by index -----------------------------------------------------------------------------


def scattered(x, index, rows):
    """The slices of x: [before, places, width] added up by index, by the kernels."""
    of = entries("scatter_add.cu", T=x.dtype.name, INDEX=index.dtype.name)
    before, places, width = x.shape
    order = on_device(np.argsort(index, kind="stable"))
    wide = np.float64 if x.dtype == np.float64 else np.float32
    starts, partial = fresh(rows + 1, np.int64), fresh((2 * (places // PIECE + 1), before * width), wide)
    result = on_device(np.zeros((before, rows, width), x.dtype))
    sizes = np.int64(before), np.int64(places), np.int64(rows), np.int64(width)
    run(of["segment_starts"], launch_segment_starts(rows), index, order, starts, sizes[1], sizes[2])
    np.testing.assert_array_equal(starts, np.searchsorted(np.sort(index), np.arange(rows + 1)))
    launch = launch_scatter(places, before * width)
    run(of["scatter_pieces"], launch, x, index, order, starts, result, partial, *sizes)
    run(of["scatter_finish"], launch, index, order, starts, partial, result, *sizes)
    return result


def embedding_gradient(g, index, rows):
    """The gradient of a table, of which the rows `index` were taken."""
    return scattered(g[None], index, rows)[0]


def added_up(g, index, rows):
    want = np.zeros((rows, g.shape[1]))
    np.add.at(want, index, g.astype(np.float64))
    return want


@pytest.mark.parametrize("dtype", ("float32", "float64", *HALVES))
@pytest.mark.parametrize("places, rows, features", [(0, 3, 8), (1, 1, 1), (300, 7, 40), (900, 5, 3), (129, 1000, 16)])
def test_embedding_gradient_adds_up_the_places_of_each_row(places, rows, features, dtype):
    index = on_device(np.random.default_rng(rows).integers(0, rows, places) // 2, np.int64)
    g = draw((places, features), np.dtype(dtype))
    for given in (g, misaligned(g)):
        close(embedding_gradient(given, index, rows), added_up(g, index, rows))


@pytest.mark.parametrize(
    "counts", [(64, 64, 64), (65, 1, 63), (128, 129, 1), (1, 191, 0, 70), (0, 0, 300), (63, 66, 65)]
)
def test_embedding_gradient_is_right_at_the_edges_of_pieces(counts):
    index = on_device(np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts)), np.int32)
    g = on_device(np.random.default_rng(1).integers(-9, 9, (len(index), 5)), np.float32)  # sums are exact
    result = embedding_gradient(g, index, len(counts))
    np.testing.assert_array_equal(result, added_up(g, index, len(counts)))


@pytest.mark.parametrize("before, width", [(3, 1), (2, 8), (300, 1), (5, 3)])
def test_slices_are_added_up_along_any_axis(before, width):
    index = on_device(np.random.default_rng(0).integers(0, 4, 333), np.int32)
    x = on_device(np.random.default_rng(1).integers(-9, 9, (before, 333, width)), np.float32)  # sums are exact
    want = np.stack([added_up(part, index, 6) for part in x])
    np.testing.assert_array_equal(scattered(x, index, 6), want)


def test_embedding_gradient_leaves_out_indexes_out_of_range():
    index = np.random.default_rng(0).integers(0, 4, 200)
    index[:70], index[150:], index[80] = -1, 4, 2**40
    g, inside = draw((200, 8), np.float32), (index >= 0) & (index < 4)
    close(embedding_gradient(g, on_device(index), 4), added_up(g[inside], index[inside], 4))


def test_embedding_gradient_indexes_past_2_to_31(tmp_path):
    result = sparse(tmp_path, 2**32, np.float32).reshape(1, 2**30, 4)
    index, order, starts = (
        on_device(np.array([2**30 - 1] * 2)),
        on_device(np.arange(2)),
        sparse(tmp_path, 2**30 + 1, np.int64),
    )
    starts[2**30] = 2
    g, sizes = on_device(np.full((1, 2, 4), 2.5), np.float32), [np.int64(n) for n in (1, 2, 2**30, 4)]
    of = entries("scatter_add.cu", T="float32", INDEX="int64")["scatter_pieces"]
    run(of, launch_scatter(2, 4), g, index, order, starts, result, fresh((2, 4), np.float32), *sizes)
    assert (result[0, 2**30 - 1] == 5).all()


@pytest.mark.parametrize("order", ("reverse", "shuffle:5"))
def test_sums_do_not_depend_on_the_order_of_threads(order, monkeypatch):
    index = on_device(np.random.default_rng(0).integers(0, 3, 400))
    g, logits, targets = draw((400, 12), np.float32), draw((3, 3000), np.float32), on_device(np.array([0, 2999, 5]))

    def results():
        loss, gradient, _ = cross_entropy(on_device(logits), targets, smoothing=0.1)
        return [embedding_gradient(g, index, 4), loss, gradient, gradient_norm([g.reshape(-1), logits[0]])[0]]

    want = results()
    monkeypatch.setenv("GPUAD_STAND_IN_ORDER", order)
    for y, z in zip(results(), want, strict=True):
        np.testing.assert_array_equal(y, z)


# --- the norm and the step ------------------------------------------------------------------------


def gradient_norm(gradients, max_norm=np.inf, flagged=(0, 0)):
    """norm, factor and whether all is well, and the error word, by the kernels; it is check number 7."""
    of = entries("norm.cu", T=next(g.dtype.name for g in gradients if g is not None))
    segments = [
        {"gradient": 0, "size": 10} if g is None else {"gradient": g.ctypes.data, "size": g.size} for g in gradients
    ]
    table, blocks = segment_table(segments)
    partial, outcome, error = (
        fresh(blocks, np.float32),
        fresh(3, np.float32),
        on_device(np.array([*flagged, 0, 0], np.int32)),
    )
    squares = launch_over_segments(blocks)
    run(of["gradient_squares"], squares, on_device(table), np.int32(len(table)), partial)
    launch = launch_gradient_norm()
    run(of["gradient_norm"], launch, partial, np.int64(blocks), np.float32(max_norm), outcome, error, np.int32(7))
    return outcome, error[:2].tolist()


@pytest.mark.parametrize("dtype", ("float32", *HALVES))
def test_norm_is_of_all_gradients_together(dtype):
    sizes = (1, 0, 4096, 4097, 13, 9000, 0)
    gradients = [misaligned(draw(n, np.dtype(dtype), n)) if n == 13 else draw(n, np.dtype(dtype), n) for n in sizes]
    gradients.insert(3, None)
    want = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradients if g is not None))
    for max_norm in (np.inf, 1e9, 2.0):
        (norm, factor, finite), error = gradient_norm(gradients, max_norm)
        np.testing.assert_allclose([norm, factor], [want, min(1, max_norm / (want + 1e-6))], rtol=2e-6)
        assert finite == 1 and error == [0, 0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_norm_flags_what_is_not_finite(value):
    g = draw(5000, np.float32)
    g[4999] = value
    outcome, error = gradient_norm([g], 1.0)
    assert outcome[2] == 0 and error == [1, 7]


def test_norm_refuses_a_step_after_another_error():
    outcome, error = gradient_norm([draw(10, np.float32)], flagged=(2, 5))
    assert outcome[2] == 0 and error == [2, 5]
    outcome, error = gradient_norm([on_device(np.array([np.nan], np.float32))], flagged=(2, 5))
    assert outcome[2] == 0 and error == [3, 5]


def test_norm_of_nothing_is_zero():
    outcome, error = gradient_norm([fresh(0, np.float32)], 1.0)
    assert outcome.tolist() == [0, 1, 1] and error == [0, 0]


class Parameter:
    """Values, gradient, m and v in memory of their own, and maybe master weights."""

    def __init__(self, size, dtype, gradient, seed, master=False, shifted=False, kind=0, state=np.float32):
        place = misaligned if shifted else on_device
        start = np.random.default_rng(seed).standard_normal(size)
        self.values = place(start.astype(dtype))
        self.gradient = place(np.random.default_rng(seed + 100).standard_normal(size).astype(gradient))
        self.master = place(start.astype(np.float32)) if master else None
        self.m, self.v = (place(np.zeros(size, state)) for _ in range(2))
        self.size, self.kind = size, kind

    def segment(self, with_gradient=True):
        names = ("values", "gradient", "master", "m", "v")
        held = {name: getattr(self, name).ctypes.data for name in names if getattr(self, name) is not None}
        return {**held, "size": self.size, "kind": self.kind, **({} if with_gradient else {"gradient": 0})}

    def contents(self):
        return [x.tobytes() for x in (self.values, self.master, self.m, self.v) if x is not None]


def options(step, lr, decay, decoupled, b1=0.9, b2=0.999, eps=1e-8):
    shrink, added = (1 - lr * decay, 0.0) if decoupled else (1.0, decay)
    return [shrink, added, 1 - b1, b2, 1 - b2, lr / (1 - b1**step), np.sqrt(1 - b2**step), eps]


def adamw(parameters, kinds, outcome=(0.0, 1.0, 1.0), segments=None):
    """One step by the kernel."""
    first = parameters[0]
    of = entries("adamw.cu", T=first.values.dtype.name, G=first.gradient.dtype.name, S=first.m.dtype.name)["adamw"]
    table, blocks = segment_table(segments or [p.segment() for p in parameters])
    tables = on_device(table), np.int32(len(table)), on_device(np.array(kinds, np.float32))
    run(of, launch_over_segments(blocks), *tables, on_device(np.array(outcome, np.float32)))


SIZES = (1, 0, 4096, 4099, 17, 8200)


@pytest.mark.parametrize("decoupled", (True, False))
def test_adamw_follows_torch(decoupled, torch):
    parameters = [Parameter(n, np.float32, np.float32, k, shifted=n == 17, kind=k % 2) for k, n in enumerate(SIZES)]
    theirs = [torch.tensor(p.values.astype(np.float64), requires_grad=True) for p in parameters]
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    groups = [{"params": theirs[0::2], "weight_decay": 0.1}, {"params": theirs[1::2], "weight_decay": 0.0, "lr": 0.02}]
    optimizer = kind(groups, lr=0.01)
    for step in (1, 2, 3):
        for p, t in zip(parameters, theirs, strict=True):
            p.gradient[...] = np.random.default_rng(step).standard_normal(p.size)
            t.grad = torch.tensor(p.gradient * 0.5, dtype=torch.float64)
        optimizer.step()
        adamw(parameters, [options(step, 0.01, 0.1, decoupled), options(step, 0.02, 0.0, decoupled)], (7, 0.5, 1))
    for p, t in zip(parameters, theirs, strict=True):
        np.testing.assert_allclose(p.values, t.detach().numpy(), rtol=2e-5, atol=2e-6)


def test_adamw_has_the_bits_of_its_composition():
    parameters = [Parameter(n, np.float32, np.float32, k) for k, n in enumerate((5, 4097))]
    ours = [gpuad.Tensor(gpuad.asarray(p.values).array).requires_grad_() for p in parameters]
    optimizer = gpuad.optim.AdamW(ours, lr=0.01, weight_decay=0.1)
    for step in (1, 2, 3):
        optimizer.update([gpuad.asarray(p.gradient * np.float32(step)) for p in parameters])
        for p in parameters:
            p.gradient *= step
        adamw(parameters, [options(step, 0.01, 0.1, True)])
        for p in parameters:
            p.gradient /= step
    for p, t in zip(parameters, ours, strict=True):
        np.testing.assert_array_equal(p.values, t.numpy())


@pytest.mark.parametrize("dtype", HALVES)
def test_adamw_all_in_half_types_has_the_bits_of_its_composition(dtype):
    dtype = np.dtype(dtype)
    parameters = [Parameter(n, dtype, dtype, k, state=dtype) for k, n in enumerate((5, 4097))]
    ours = [gpuad.Tensor(gpuad.asarray(p.values).array).requires_grad_() for p in parameters]
    optimizer = gpuad.optim.AdamW(ours, lr=0.01, weight_decay=0.1, master_weights=False, state_dtype=dtype)
    for step in (1, 2, 3):
        optimizer.update([gpuad.asarray(p.gradient) for p in parameters])
        adamw(parameters, [options(step, 0.01, 0.1, True)])
    state = optimizer.state_dict()
    for k, (p, t) in enumerate(zip(parameters, ours, strict=True)):
        assert p.values.tobytes() == t.numpy().tobytes()
        assert p.m.tobytes() == state[f"m.{k}"].numpy().tobytes()
        assert p.v.tobytes() == state[f"v.{k}"].numpy().tobytes()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("gradient", ("float32", "same"))
def test_adamw_keeps_master_weights_of_half_types(dtype, gradient):
    dtype = np.dtype(dtype)
    gradient = np.dtype(np.float32) if gradient == "float32" else dtype
    parameters = [Parameter(n, dtype, gradient, k, master=True, shifted=n == 17) for k, n in enumerate(SIZES)]
    plain = [Parameter(n, np.float32, np.float32, k) for k, n in enumerate(SIZES)]
    for p, q in zip(parameters, plain, strict=True):
        q.gradient[...] = p.gradient
    for step in (1, 2):
        adamw(parameters, [options(step, 1e-4, 0.1, True)])
        adamw(plain, [options(step, 1e-4, 0.1, True)])
    for p, q in zip(parameters, plain, strict=True):
        np.testing.assert_array_equal(p.master, q.values)
        np.testing.assert_array_equal(p.values, q.values.astype(dtype))


def test_adamw_rounds_half_types_without_master_weights():
    p, q = (Parameter(100, dtype, np.float32, 3) for dtype in (BFLOAT16, np.float32))
    q.values[...] = p.values
    adamw([p], [options(1, 0.1, 0.0, True)])
    adamw([q], [options(1, 0.1, 0.0, True)])
    np.testing.assert_array_equal(p.values, q.values.astype(BFLOAT16))


def test_adamw_changes_nothing_unless_all_is_finite_nor_what_has_no_gradient():
    parameters = [Parameter(n, np.float32, np.float32, n) for n in (4099, 50)]
    before = [p.contents() for p in parameters]
    adamw(parameters, [options(1, 0.1, 0.1, True)], outcome=(np.nan, 1, 0))
    assert [p.contents() for p in parameters] == before
    segments = [parameters[0].segment(with_gradient=False), parameters[1].segment()]
    adamw(parameters, [options(1, 0.1, 0.1, True)], segments=segments)
    assert parameters[0].contents() == before[0] and parameters[1].contents() != before[1]
