"""Ordinary programs that writing in place, threads or lifetimes could break."""

import copy
import gc
import os
import pickle
import threading

import numpy as np
import pytest

import gpuad
from gpuad.buffer import LiveBytes, observers
from gpuad.fuse import host
from gpuad.node import Node


def f64(x):
    return gpuad.asarray(np.asarray(x, np.float64))


def values(*shape, seed=0):
    return gpuad.asarray(np.random.default_rng(seed).standard_normal(shape))


def test_a_gradient_still_pending_when_a_second_backward_accumulates():
    w = f64([1.0, 2.0]).requires_grad_()
    gpuad.sum(w * w).backward()
    doubled = w.grad * 2.0  # pending on the first gradient
    kept = w.grad
    gpuad.sum(w * w * w).backward()
    assert doubled.tolist() == [4.0, 8.0]
    assert kept.tolist() == [2.0, 4.0]
    assert w.grad.tolist() == [5.0, 16.0]


def test_accumulation_writes_in_place_only_where_nobody_looks():
    w = values(1000).requires_grad_()
    gpuad.sum(w * w).backward()
    address = w.grad.data.data.ctypes.data
    gpuad.sum(w * w).backward()
    assert w.grad.data.data.ctypes.data == address
    seen = w.grad.numpy()
    before = seen.copy()
    gpuad.sum(w * w).backward()
    assert np.array_equal(seen, before)
    assert w.grad.data.data.ctypes.data != address
    assert np.allclose(w.grad.numpy(), 6 * w.numpy())


def test_logits_are_what_they_were_after_backward():
    w = values(16, 10).requires_grad_()
    logits = values(32, 16, seed=1) @ w
    before = logits.numpy().copy()
    targets = gpuad.asarray(np.arange(32) % 10)
    loss = gpuad.nn.functional.cross_entropy(logits, targets)
    loss.backward(retain_graph=True)
    first = w.grad.numpy().copy()
    assert np.array_equal(logits.numpy(), before)
    loss.backward()
    assert np.allclose(w.grad.numpy(), 2 * first)


def test_assignment_never_corrupts_a_tape():
    w = f64([1.0, 2.0, 3.0]).requires_grad_()
    h = w * 2.0
    y = h * h
    h[0] = 100.0
    h += 1.0
    gpuad.sum(y).backward()
    assert w.grad.tolist() == [8.0, 16.0, 24.0]
    assert h.tolist() == [101.0, 5.0, 7.0]


def test_assignment_into_a_buffer_is_differentiable():
    def f(x):
        buffer = f64([0.0, 0.0, 0.0])
        buffer[1] = x * x
        return gpuad.sum(buffer * buffer)

    assert gpuad.grad(f)(f64(2.0)).item() == 32.0
    assert gpuad.jvp(gpuad.grad(f), (f64(2.0),), (f64(1.0),))[1].item() == 48.0


def test_a_pending_reader_survives_assignment_and_updates():
    a = f64([1.0, 1.0])
    b = a + 1.0
    a[0] = 5.0
    assert b.tolist() == [2.0, 2.0] and a.tolist() == [5.0, 1.0]
    w = f64([1.0, 2.0]).requires_grad_()
    y = w * 3.0
    with gpuad.no_grad():
        w -= 1.0
    assert y.tolist() == [3.0, 6.0] and w.tolist() == [0.0, 1.0] and w.is_leaf


def test_a_chain_of_temporaries_reuses_its_memory_and_stays_right():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 64))
    y = f64(x)
    expected = x
    for _ in range(10):
        y = gpuad.tanh(y @ f64(x)) + 1.0
        expected = np.tanh(expected @ x) + 1
        if rng.random() < 0.5:
            y.numpy()
    assert np.allclose(y.numpy(), expected)


def test_sixteen_threads_share_a_pending_tensor_and_a_leaf():
    x, w = values(300, 50), values(50, seed=1).requires_grad_()
    shared = gpuad.exp(gpuad.sin(x) * 0.5)  # pending, for all of them
    results, errors = [None] * 16, []
    start = threading.Barrier(16)

    def work(k):
        try:
            start.wait()
            for _ in range(5):
                gpuad.sum(shared * w * float(k)).backward()
            own = gpuad.grad(gpuad.grad(lambda t: t * t * t * float(k)))(f64(2.0))
            results[k] = own.item()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(16)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert errors == []
    assert results == [12.0 * k for k in range(16)]
    expected = np.exp(np.sin(x.numpy()) * 0.5).sum(0) * 5 * sum(range(16))
    assert np.allclose(w.grad.numpy(), expected)


def test_modes_are_not_inherited_by_threads():
    found = []
    w = f64(2.0).requires_grad_()
    with gpuad.no_grad():
        worker = threading.Thread(target=lambda: found.append((w * w).requires_grad))
        worker.start()
        worker.join()
        assert not (w * w).requires_grad
    assert found == [True]


def test_memory_is_flat_over_a_hundred_steps_without_the_collector():
    rng = np.random.default_rng(0)
    w1 = gpuad.asarray(rng.standard_normal((20, 30)) * 0.1).requires_grad_()
    w2 = gpuad.asarray(rng.standard_normal((30, 3)) * 0.1).requires_grad_()
    live = LiveBytes()
    gc.collect()
    gc.disable()
    observers.append(live)
    try:
        counts = []
        for _ in range(100):
            x = gpuad.asarray(rng.standard_normal((16, 20)))
            loss = gpuad.sum(gpuad.tanh(x @ w1) @ w2)
            loss.backward()
            with gpuad.no_grad():
                for w in (w1, w2):
                    w -= 0.01 * w.grad
                    w.grad = None
                    w.numpy()
            del loss, x
            counts.append((live.live, sum(type(o) is Node for o in gc.get_objects())))
        assert counts[5] == counts[-1]
    finally:
        observers.remove(live)
        gc.enable()


def test_an_unswept_tape_is_freed_with_its_last_name():
    live = LiveBytes()
    gc.collect()
    gc.disable()
    observers.append(live)
    try:
        w = values(1000).requires_grad_()
        base = live.live
        y = gpuad.exp(gpuad.sin(w))
        y.numpy()
        y.backward(gradient=np.ones(1000), retain_graph=True)
        w.grad = None
        del y
        assert live.live == base
    finally:
        observers.remove(live)
        gc.enable()


def test_parallel_kernels_compute_what_serial_ones_do(monkeypatch):
    x = values(3000, 50)
    compute = lambda: [
        t.numpy().copy() for t in (gpuad.exp(gpuad.sin(x)), gpuad.sum(gpuad.sin(x)), gpuad.sum(x * x, axis=0))
    ]
    serial = compute()
    monkeypatch.setattr(host, "THREADED", 1)
    monkeypatch.setattr(host, "_programs", {})
    for a, b in zip(serial, compute(), strict=True):
        assert a.tobytes() == b.tobytes()


def test_operations_on_empty_tensors():
    x = gpuad.zeros((0, 3), dtype="float64").requires_grad_()
    y = gpuad.sum(gpuad.exp(x) * 2.0)
    y.backward()
    assert y.item() == 0.0 and x.grad.shape == (0, 3)


def test_leaves_may_be_assigned_only_under_no_grad():
    w = f64([1.0, 2.0]).requires_grad_()
    with pytest.raises(gpuad.GpuadError, match="no_grad"):
        w += 1.0
    with pytest.raises(gpuad.GpuadError, match="no_grad"):
        w[0] = 1.0
    with gpuad.no_grad():
        w[0] = 7.0
    assert w.tolist() == [7.0, 2.0] and w.requires_grad


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_of_a_model_is_a_model_of_its_own(twin):
    model = gpuad.nn.Sequential(gpuad.nn.Linear(3, 2), gpuad.nn.ReLU())
    other = twin(model)
    x = values(4, 3).to("float32")
    assert np.array_equal(other(x).numpy(), model(x).numpy())
    assert [(n, p.requires_grad) for n, p in other.named_parameters()] == [("0.weight", True), ("0.bias", True)]
    gpuad.sum(other(x)).backward()
    with gpuad.no_grad():
        for p in other.parameters():
            p -= 1.0
    assert all(p.grad is None for p in model.parameters())
    assert not np.array_equal(other(x).numpy(), model(x).numpy())


def test_what_is_part_of_a_tape_cannot_be_copied():
    w = values(2).requires_grad_()
    for twin in (copy.deepcopy, pickle.dumps):
        with pytest.raises(gpuad.GradientError, match="copy detach"):
            twin(w * 2.0)


def test_a_forked_process_computes(monkeypatch):
    monkeypatch.setattr(host, "THREADED", 1)
    monkeypatch.setattr(host, "_programs", {})
    x = values(300_000)
    expected = (x * 2.0).numpy().sum()
    pid = os.fork()
    if pid == 0:
        os._exit(0 if (x * 2.0).numpy().sum() == expected else 1)
    assert os.waitpid(pid, 0)[1] == 0


def test_an_interrupted_kernel_never_gives_a_wrong_value(monkeypatch):
    x = values(100)
    y = x + 1.0
    del x
    monkeypatch.setattr(host, "job", lambda kernel, *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        y.numpy()
    monkeypatch.undo()
    with pytest.raises(gpuad.GpuadError, match="interrupted"):
        y.numpy()
