"""What becomes one kernel, what it writes, and what a tape keeps."""

import gc

import numpy as np
import pytest

import gpuad
from gpuad import grad, jvp, vjp
from gpuad.fuse import engines, host, kernel, plan
from gpuad.node import Node, bottom


@pytest.fixture
def kernels():
    """The operations and the number of results of each kernel that runs."""
    log = []
    watcher = lambda k: log.append((k.ops, len(k.outputs)))
    kernel.watchers.append(watcher)
    yield log
    kernel.watchers.remove(watcher)


def values(*shape, seed=0, dtype=np.float32):
    return gpuad.asarray(np.random.default_rng(seed).standard_normal(shape).astype(dtype))


def chain(x):
    return gpuad.exp(gpuad.sin(x) * 2.0) / (1.0 + x * x)


def test_the_gradient_of_an_elementwise_function_is_one_kernel_that_keeps_only_inputs(kernels):
    x = values(300, 70)
    g = grad(lambda x: gpuad.sum(chain(x)))(x)
    assert kernels == []  # nothing has run yet
    g.numpy()
    assert [outputs for _, outputs in kernels] == [1]
    s = x.numpy().astype(float)
    e, d = np.exp(2 * np.sin(s)), 1 + s * s
    assert np.allclose(g.numpy(), 2 * e * np.cos(s) / d - 2 * s * e / d**2, atol=1e-5)


def test_so_is_its_hessian_vector_product(kernels):
    x, v = values(300, 70), values(300, 70, seed=1)
    h = jvp(grad(lambda x: gpuad.sum(chain(x))), (x,), (v,))[1]
    h.numpy()
    assert [outputs for _, outputs in kernels] == [1]


def test_backward_of_an_elementwise_function_writes_the_gradients_and_the_loss_alone(kernels):
    x, w = values(300, 70).requires_grad_(), values(300, 70, seed=1).requires_grad_()
    gpuad.sum(gpuad.tanh(x * w) * x).backward()
    assert [outputs for _, outputs in kernels] == [3]


def test_the_tape_keeps_only_what_rules_name():
    w = values(4).requires_grad_()
    kept = lambda y: [bottom(v) is not None for v in y.link[0].saved[:3]]
    assert kept(w + w) == [False, False, False]
    assert kept(w * values(4)) == [False, True, False]
    assert kept(gpuad.exp(w))[:2] == [False, True]
    assert kept(gpuad.sin(w))[:2] == [True, False]


def test_a_bias_is_added_in_the_memory_of_the_product(kernels):
    x, w, b = values(64, 32), values(32, 48, seed=1).requires_grad_(), values(48, seed=2).requires_grad_()
    live = gpuad.buffer.LiveBytes()
    gpuad.buffer.observers.append(live)
    try:
        y = gpuad.tanh(x @ w + b) @ values(48, 8, seed=3)
        y.numpy()
        # tanh(x w + b), in the memory of x w; the constant and its product
        assert live.peak - 48 * 8 * 4 == 64 * 48 * 4 + 64 * 8 * 4
        assert [outputs for _, outputs in kernels] == [1]
    finally:
        gpuad.buffer.observers.remove(live)


def test_a_pending_expression_keeps_its_inputs_when_memory_is_given_away():
    a = values(100)
    before = a.numpy().copy()
    h = a + 1.0
    y = h * 2.0
    del a
    y.numpy()
    assert np.array_equal(h.numpy(), before + 1)  # h was never written; its input must still be there


def test_a_row_reduction_and_what_surrounds_it_is_one_kernel(kernels):
    x = values(50, 40)
    m = gpuad.max(x, axis=-1, keepdims=True)
    e = gpuad.exp(x - m)
    y = e / gpuad.sum(e, axis=-1, keepdims=True)
    y.numpy()
    assert [outputs for _, outputs in kernels] == [1]
    n = np.exp(x.numpy() - x.numpy().max(-1, keepdims=True))
    assert np.allclose(y.numpy(), n / n.sum(-1, keepdims=True), atol=1e-6)


def test_a_cotangent_and_the_bias_gradient_come_from_one_kernel(kernels):
    x = values(64, 32)
    w, b = values(32, 48, seed=1).requires_grad_(), values(48, seed=2).requires_grad_()
    y = gpuad.tanh(x @ w + b)
    y.numpy()
    kernels.clear()
    gpuad.sum(y * y).backward()
    (ops, outputs), *rest = kernels
    assert "sum_column" in ops and outputs == 2
    assert [ops[-1] for ops, _ in rest] == ["sum_all"]  # the loss, whose chunks are others than those of the bias


def test_long_chains_are_cut():
    longest = []
    watcher = lambda k: longest.append(len(k.nodes))
    kernel.watchers.append(watcher)
    try:
        y = x = values(3)
        for _ in range(1000):
            y = y + 1.0
        assert np.allclose(y.numpy(), x.numpy() + 1000)
        g = grad(lambda x: gpuad.sum(sum((x for _ in range(500)), 0.0)))(x)
        assert np.allclose(g.numpy(), 500)
        assert max(longest) <= plan.MAX_DEPTH + plan.SURVEY_EVERY
    finally:
        kernel.watchers.remove(watcher)


def test_recomputation_stays_linear_in_the_length_of_a_chain():
    evaluated = []
    watcher = lambda k: evaluated.append(len(k.nodes))
    kernel.watchers.append(watcher)
    try:
        w = values(1000).requires_grad_()
        y = w
        for _ in range(60):
            y = gpuad.sin(y) * 1.1
        gpuad.sum(y).backward()
        # 120 operations forward and about 180 backward; naive inlining would take thousands
        assert sum(evaluated) < 3 * 300
    finally:
        kernel.watchers.remove(watcher)


def test_an_accumulation_does_not_pin_what_it_has_summed():
    live = gpuad.buffer.LiveBytes()
    gpuad.buffer.observers.append(live)
    try:
        total = gpuad.zeros(())
        for k in range(100):
            total = total + gpuad.sum(values(1000, 10, seed=k))
        assert live.live <= (plan.SURVEY_EVERY + plan.PINNED) * 40_000
        assert live.live < 100 * 40_000 / 4
    finally:
        gpuad.buffer.observers.remove(live)


def test_counts_fall_when_their_holders_die():
    x = values(10)
    y = gpuad.exp(x)
    z = gpuad.sin(y)
    assert y.data.readers == 1
    del z
    assert y.data.readers == 0
    w = values(10).requires_grad_()
    y = gpuad.exp(w)
    assert y.data.kept == 1
    array = y.data
    del y
    assert array.kept == 0


@pytest.mark.parametrize("shape", [(7,), (1000, 33), (3, 5, 700), (2, 9000), (40_000,), (0, 4), (4, 0), ()])
def test_bits_do_not_depend_on_blocks_threads_or_fusion(shape, monkeypatch):
    x = values(*shape)

    def compute(fused):
        a = x * 1.7 + 0.3
        if not fused:
            a.numpy()
        results = [gpuad.exp(gpuad.sin(a)), gpuad.sum(a)]
        if len(shape):
            results += [gpuad.sum(a, axis=-1), gpuad.sum(a, axis=0)]
        return [r.numpy().copy() for r in results]

    expected = compute(fused=True)
    for block, threaded in ((4096, 1 << 60), (16384, 1), (1 << 20, 1), (8192, 1)):
        monkeypatch.setattr(host, "BLOCK", block)
        monkeypatch.setattr(host, "THREADED", threaded)
        monkeypatch.setattr(host, "_programs", {})
        for fused in (True, False):
            for got, want in zip(compute(fused), expected, strict=True):
                assert got.tobytes() == want.tobytes()


def test_sums_of_many_numbers_are_accurate():
    x = np.random.default_rng(0).random(3_000_001).astype(np.float32)
    assert gpuad.sum(gpuad.asarray(x)).item() == pytest.approx(x.sum(dtype=np.float64), rel=1e-6)


def test_functional_gradients_in_a_loop_leave_nothing_behind():
    w = values(50, seed=3).requires_grad_()
    loss = lambda w, x: gpuad.sum(gpuad.tanh(w * x) * w)
    gc.collect()
    gc.disable()
    live = gpuad.buffer.LiveBytes()
    gpuad.buffer.observers.append(live)
    try:
        counts = []
        for step in range(20):
            g = grad(loss)(w, values(50, seed=step))
            w = w - 0.1 * g
            assert not g.requires_grad
            w = w.detach().requires_grad_()
            w.numpy()
            del g
            counts.append((live.live, sum(type(o) is Node for o in gc.get_objects())))
        assert counts[3] == counts[-1]
    finally:
        gpuad.buffer.observers.remove(live)
        gc.enable()


def test_vjp_on_the_meta_device_computes_nothing():
    x = gpuad.asarray(np.zeros((1 << 20, 1 << 10), np.float16)[:1], device="meta")
    big = gpuad.broadcast_to(x, (1 << 20, 1 << 10))  # a gigabyte that is never allocated
    y, pull = vjp(lambda x: gpuad.sum(chain(x)), big)
    assert pull(gpuad.ones((), dtype="float16", device="meta"))[0].shape == (1 << 20, 1 << 10)
    with pytest.raises(gpuad.DeviceError, match=r"no values .*test_fusion.py"):
        y.numpy()


def test_a_total_that_another_result_of_the_same_space_reads_comes_first():
    x = values(3, 4)
    total = gpuad.sum(x)
    shares = x / total
    plan.realize_all([total.data, shares.data])
    assert np.allclose(shares.numpy(), x.numpy() / x.numpy().sum())


def test_a_total_reads_its_input_before_the_memory_is_given_away():
    x = values(64, 32)
    for _ in range(3):
        h = x @ values(32, 48, seed=1)
        expected = h.numpy().copy()
        total, y = gpuad.sum(h, axis=0), gpuad.exp(h * 0.5)
        del h
        plan.realize_all([y.data, total.data])
        assert np.allclose(total.numpy(), expected.sum(0), atol=1e-4)
        assert np.allclose(y.numpy(), np.exp(expected * 0.5), atol=1e-4)


def test_a_total_reads_scratch_before_it_is_used_again():
    x = values(64, 48)
    n = x.numpy().astype(np.float64)
    a = gpuad.sin(x)
    total = gpuad.sum(a, axis=0)
    y = x
    for _ in range(5):
        y = gpuad.exp(y * 0.1) + x
    plan.realize_all([total.data, y.data])
    assert np.allclose(total.numpy(), np.sin(n).sum(0), atol=1e-4)


# What each engine keeps of a block, in units of its input: norm, qkv, what attention makes, the stream, norm, up, gelu,
# result.  Products of matrices also keep the weights (T = C / 2, 4 heads) and the merged heads.
KEPT = {"numpy": 1 + 3 + 2 + 1 + 1 + 1 + 1 + 4 + 4, "compiled": 1 + 3 + 1 + 1 + 1 + 1 + 4 + 4}
ROWS = {"numpy": 2, "compiled": 2 + 4}  # values of each row: the scales of two norms, and the sums of four heads


@pytest.mark.parametrize("engine", ["numpy", "compiled"])
def test_a_transformer_block_is_six_kernels_each_way_beside_its_products(engine, kernels, monkeypatch):
    monkeypatch.setattr(engines, "engine", lambda: engine)
    block = gpuad.models.gpt.Block(
        gpuad.models.GPTConfig(length=64, layers=1, heads=4, width=128), dtype="float32", device=None, generator=None
    )
    x = values(16, 64, 128).requires_grad_()
    for p in block.parameters():
        p.numpy()
    gpuad.sum(block(x) ** 2).numpy()  # a first time: an engine's workspace is made once, and stays
    kernels.clear()
    live = gpuad.buffer.LiveBytes()
    gpuad.buffer.observers.append(live)
    try:
        loss = gpuad.sum(block(x) ** 2)
        loss.numpy()
        unit = 16 * 64 * 128 * 4
        rows = ROWS[engine] * 16 * 64 * 4
        assert live.live - rows - 4 == KEPT[engine] * unit
        ends = [(ops[-1], outputs) for ops, outputs in kernels]
        weights = [("divide", 1)] * (engine == "numpy")
        # the norms write their result and scale, and the second also the stream; gelu also its input
        assert ends == [("add", 2), ("add", 1), *weights, ("add", 3), ("multiply", 2), ("sum_all", 2)]
        kernels.clear()
        loss.backward()
        ends = [(ops[-1], outputs) for ops, outputs in kernels]
        # each cotangent comes with the gradients of the biases and norm weights that it reaches
        assert ends == [
            ("sum_column", 2),
            ("sum_column", 2),
            ("sum_column", 4),
            *[("multiply", 1)] * (engine == "numpy"),
            ("sum_column", 1),
            ("add", 3),
        ]
    finally:
        gpuad.buffer.observers.remove(live)


def test_all_results_of_a_kernel_are_computed_before_anyone_is_told():
    """Who is told may refuse a value, and what the others were computed of may be written over by then."""

    def refuse(array):
        raise ValueError("told")

    a, told = values(3), []
    b = a * 2
    c = b + 1
    b.array.on_write, c.array.on_write = refuse, told.append
    with pytest.raises(ValueError, match="told"):
        plan.realize_all([b.array, c.array])
    assert np.array_equal(c.numpy(), a.numpy() * 2 + 1)
    with pytest.raises(gpuad.GpuadError, match="a check refused it"):
        b.numpy()
