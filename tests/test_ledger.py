"""The ledger: held against tracemalloc to the byte, against the dry run event by event, by hand on small programs."""

import gc
import tracemalloc

import numpy as np
import pytest

import gpuad
from gpuad import attribution, memory, nn, optim
from gpuad.devices import device as find_device
from gpuad.fuse import engines
from gpuad.memory.setups import Setup, measured
from gpuad.models import GPT, GPTConfig

DOMAIN = tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)
KINDS = {
    "plain": {},
    "dropout": {"dropout": 0.1},
    "rotary": {"positions": "rotary"},
    "checkpoint": {"wrap": gpuad.checkpoint},
    "bfloat16": {"dtype": "bfloat16"},
}


@pytest.fixture(params=["numpy", "compiled"])
def engine(request, monkeypatch):
    if request.param == "compiled" and engines.engine() != "compiled":
        pytest.skip("needs the compiled engine")
    monkeypatch.setattr(engines, "engine", lambda: request.param)
    return request.param


def training_step(device, *, dtype="float32", wrap=None, small=False, **options):
    """A function that takes a step of a GPT on `device`; the second one is as all that follow."""
    sizes = {"length": 16, "heads": 2, "width": 16} if small else {"length": 64, "heads": 4, "width": 64}
    config = GPTConfig(vocabulary=64, layers=2, **sizes, **options)
    with gpuad.use_device(device):
        model = GPT(config, dtype=dtype, generator=gpuad.random.Generator(0), wrap_block=wrap)
        optimizer = optim.AdamW(model.parameters(), 1e-3, max_grad_norm=1.0)
        tokens = gpuad.asarray(np.random.default_rng(0).integers(0, 64, (2 if small else 16, config.length + 1)))

    def step():
        with gpuad.use_device(device):
            loss = model.loss(tokens)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return loss

    for _ in range(2):
        step()
    gc.collect()
    return step


def held_by_numpy():
    return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces([DOMAIN]).traces)


class AtMarks:
    """Looks at tracemalloc wherever a ledger has a mark."""

    def __init__(self):
        self.held = []

    def mark(self, name):
        self.held.append(held_by_numpy())

    def __getattr__(self, name):
        return lambda *_: None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keeps", [False, True])
def test_live_bytes_are_those_of_tracemalloc(engine, keeps, kind, monkeypatch):
    find_device("cpu").reuse.drop()
    if not keeps:  # no memory for reuse: then the ledger has all there is
        monkeypatch.setattr(find_device("cpu").reuse, "limit", 0)
    tracemalloc.start()  # before the model is made: it does not see the end of memory that is older
    watch = AtMarks()
    try:
        step = training_step("cpu", **KINDS[kind])
        with memory.profile() as p:
            before, held = p.live[-1] + find_device("cpu").reuse.kept, held_by_numpy()
            attribution.ledgers.append(watch)
            step()
    finally:
        tracemalloc.stop()
        if watch in attribution.ledgers:
            attribution.ledgers.remove(watch)
    assert [mark.name for mark in p.marks] == ["forward end", "backward end", "step end"]
    # what is alive, and what the CPU keeps for reuse: to the byte
    assert [mark.live + mark.kept - before for mark in p.marks] == [at - held for at in watch.held]
    assert p.peak_bytes > 1e6 and any(mark.kept for mark in p.marks) == keeps


def events(p):
    """What happened, in order."""
    found = {}
    for b in p.blocks:
        if b.phase != "setup":
            found[b.born] = ("begins", b.nbytes, b.op, b.line, b.module, b.phase)
        if b.died is not None:
            found[b.died] = ("ends", b.nbytes, b.op)
        for event, category, op in b.categories:
            if event != b.born:
                found[event] = ("is", b.nbytes, category, op)
    return [found[event] for event in sorted(found)]


@pytest.mark.parametrize("kind", KINDS)
def test_dry_run_like_an_engine_has_its_events(engine, kind):
    real, dry = (
        events(memory.profile(training_step(device, **KINDS[kind]), device=device))
        for device in (find_device("cpu"), find_device("meta", like=f"cpu:{engine}"))
    )
    assert len(real) > 100 and real == dry


@pytest.mark.parametrize("kind", KINDS)
def test_dry_run_like_a_gpu_has_its_events(cuda, kind):
    gpu = find_device(cuda)
    real, dry = (
        events(memory.profile(training_step(device, small=True, **KINDS[kind]), device=device))
        for device in (gpu, find_device("meta", like=f"cuda:{gpu.architecture}"))
    )
    assert len(real) > 100 and real == dry


# --- by hand --------------------------------------------------------------------------------------

UNIT = 1000 * 4  # bytes of what follows


def tensor(seed=0):
    return gpuad.asarray(np.random.default_rng(seed).standard_normal(1000, np.float32))


def test_categories_of_a_small_step(engine):
    gc.collect()
    with memory.profile() as p:  # what other tests have left
        gpuad.ones(1).numpy()
    left = p.by_category(len(p.live) - 1)
    layer = nn.Linear(1000, 1000, bias=False)
    optimizer = optim.SGD(layer.parameters(), 0.1, momentum=0.9)
    x = gpuad.asarray(np.ones((2, 1000), np.float32))
    optimizer.update([gpuad.zeros((1000, 1000))])
    with memory.profile() as p:
        loss = gpuad.sum(gpuad.exp(layer(x)))
        loss.numpy()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    square = 1000 * 1000 * 4
    at = {mark.name: p.by_category(mark.event) for mark in p.marks}
    lasting = {"parameter": square, "optimizer state": square, "input": 2 * UNIT}
    assert {name: at["forward end"][name] - left.get(name, 0) for name in lasting} == lasting
    assert at["forward end"]["saved"] == 2 * UNIT  # exp's result, or what it is made of again
    assert at["backward end"]["gradient"] == square and "saved" not in at["backward end"]
    assert p.peak_phase == "step" or p.peak_phase == "backward"
    alive = [q for q in gc.get_objects() if issubclass(type(q), nn.Parameter)]
    assert p.params == sum(q.size for q in alive if q.device.name == "cpu")
    assert p.flops == 2 * 2 * 1000 * 1000 * 2  # the product, and that of the gradient


def test_blocks_have_line_op_module_and_phase():
    class Net(nn.Module):
        def __init__(self):
            self.inner = nn.Sequential(nn.Linear(1000, 50), nn.Linear(50, 1000))

        def forward(self, x):
            return self.inner(x)

    net, x = Net(), gpuad.ones((8, 1000))
    with memory.profile() as p:
        y = net(x)
        y.numpy()
        gpuad.sum(y * y).backward()
    products = [b for b in p.blocks if b.op == "linear" and b.phase == "forward"]
    assert [b.module for b in products] == ["inner.0", "inner.1"]
    assert all(b.line.startswith("test_ledger.py:") for b in products)
    backward = [b for b in p.blocks if b.phase == "backward" and b.op == "linear_weight"]
    assert sorted(b.module for b in backward) == ["inner.0", "inner.1"]
    assert {b.line for b in backward} == {b.line for b in products}  # of the forward pass, whose derivative it is


def test_a_tape_keeps_what_a_pending_expression_reads():
    x = tensor().requires_grad_()
    with memory.profile() as p:
        h = gpuad.exp(gpuad.cumulative_sum(x))  # pending, kept by its own derivative
        y = h * 2.0
        attribution.mark("here")
    saved = [b for b in p.alive(p.mark("here").event) if b.category(p.mark("here").event) == "saved"]
    assert [b.op for b in saved] == ["cumulative_sum"] and saved[0].saved_by(p.mark("here").event) == "exp"
    del y


def test_checkpointing_has_categories_of_its_own():
    weights = [tensor(k).requires_grad_() for k in range(3)]
    f = gpuad.checkpoint(lambda v: gpuad.cumulative_sum(gpuad.cumulative_sum(v * weights[1]) * weights[2]))
    with memory.profile() as p:
        h = gpuad.cumulative_sum(weights[0] * 1.5)
        y = gpuad.sum(f(h))
        y.backward()
    forward = p.mark("forward end").event
    kept = {b.category(forward): b.op for b in p.alive(forward) if b.category(forward) in ("boundary", "saved")}
    assert kept == {"boundary": "cumulative_sum"}
    assert any(b.phase == "recompute" and b.categories[-1][1] == "recomputed" for b in p.blocks)


def test_memory_that_is_taken_over_changes_its_category():
    with memory.profile() as p:
        x = tensor()
        y = x * 2.0
        del x
        y.numpy()
        attribution.mark("here")
    here = p.mark("here").event
    assert "input" not in {b.category(here) for b in p.alive(here) if b.phase != "setup"}


def test_a_profile_of_the_backward_pass_knows_what_the_tape_keeps():
    w = tensor().requires_grad_()
    loss = gpuad.sum(gpuad.cumulative_sum(gpuad.exp(w)) ** 2)
    loss.numpy()
    with memory.profile() as p:
        start = p.by_category(len(p.live) - 1)
        loss.backward()
    assert start["saved"] >= UNIT


def test_a_tape_that_lets_go_of_one_of_two_readers_keeps_the_other():
    x = tensor().requires_grad_()
    with memory.profile() as p:
        a = gpuad.cumulative_sum(x)
        h = a * 2.0
        s, c = gpuad.sin(h), gpuad.cos(h)
        del s, c, h
        attribution.mark("here")
    here = p.mark("here").event
    assert "saved" not in {b.category(here) for b in p.alive(here) if b.op == "cumulative_sum"}
    del a


def test_borrowed_memory_is_input():
    given = np.ones(1000, np.float32)
    with memory.profile() as p:
        x = gpuad.asarray(given, copy=False)
        attribution.mark("here")
    here = p.mark("here").event
    assert [b.category(here) for b in p.alive(here) if b.phase != "setup"] == ["input"]
    del x


def test_operations_of_broadcast_products():
    a, b = gpuad.ones((4, 1, 6, 7)), gpuad.ones((1, 5, 7, 8))
    assert memory.profile(lambda: gpuad.matmul(a, b)).flops == 2 * 4 * 5 * 6 * 7 * 8


def test_a_profile_begins_with_what_is_alive_and_ends_with_the_block():
    layer = nn.Linear(500, 500)
    with memory.profile() as p:
        start = p.by_category(len(p.live) - 1)
        kept = gpuad.exp(tensor())
        kept.numpy()
    assert start["parameter"] >= 501 * 500 * 4 and p.phase(0) == "setup"
    n = len(p.live)
    gpuad.exp(tensor(1)).numpy()
    assert len(p.live) == n and not attribution.ledgers
    del layer


def test_values_assigned_to_a_parameter_are_parameters():
    layer = nn.Linear(700, 700, bias=False)
    with gpuad.no_grad():
        layer.weight.copy_(np.ones((700, 700), np.float32))
    with memory.profile() as p:
        pass
    square = 700 * 700 * 4
    assert [b.category(len(p.live) - 1) for b in p.blocks if b.nbytes == square and b.died is None].count(
        "parameter"
    ) >= 1
    assert not [b for b in p.blocks if b.nbytes == square and b.category(len(p.live) - 1) == "temporary"]


def test_a_function_is_profiled_with_its_arguments():
    p = memory.profile(lambda x, scale: gpuad.sum(x * scale).numpy(), tensor(), scale=2.0, name="sum")
    assert p.name == "sum" and p.device.startswith("cpu:") and p.peak_bytes > UNIT


def test_an_error_ends_the_profile():
    with pytest.raises(ZeroDivisionError), memory.profile():
        raise ZeroDivisionError
    assert not attribution.ledgers


def test_memory_without_names_on_other_threads_is_counted():
    import threading

    with memory.profile() as p:
        x = tensor()
        thread = threading.Thread(target=lambda: gpuad.exp(x).numpy())
        thread.start()
        thread.join()
    assert sum(b.nbytes for b in p.blocks if b.phase != "setup" and b.op == "exp") == UNIT


# --- the dry run of a model too large for this machine ------------------------------------------


def closed_form(batch, length, width, hidden, heads, layers, classes, itemsize=2):
    """Bytes that a training step of LLaMA with equal heads keeps for its backward pass; see docs/memory.md."""
    n = batch * length
    layer = n * (itemsize * (8 * width + 3 * hidden) + 4 * (heads + 2))
    targets = 8 * n if batch > 1 else 0  # of one row they are a view of the tokens
    outside = n * (3 * itemsize * width + 4) + targets + 4 * classes * width
    return layers * layer + outside


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize(("dtype", "each"), [("bfloat16", (2, 2, 4)), ("mixed", (2, 2, 12)), ("float32", (4, 4, 8))])
def test_llama_7b_in_a_dry_run(batch, dtype, each):
    runs = measured(Setup("llama-7b", batch=batch, dtype=dtype), find_device("meta", like="cuda:sm_90"))
    inference, training, checkpointed, auto = runs
    params = 6_738_415_616
    assert inference.params == training.params == params
    at = {mark.name: training.by_category(mark.event) for mark in training.marks}
    found = [at["backward end"][name] for name in ("parameter", "gradient", "optimizer state")]
    assert found == [size * params for size in each]
    itemsize = 4 if dtype == "float32" else 2
    assert at["forward end"]["saved"] == closed_form(batch, 2048, 4096, 11008, 32, 32, 32000, itemsize)
    if dtype == "bfloat16" and batch == 1:
        assert 12.55 <= inference.peak_bytes / 2**30 <= 13.06
    if batch == 4:
        assert checkpointed.peak_bytes < 0.9 * training.peak_bytes
        assert auto.peak_bytes < 0.9 * training.peak_bytes and auto.extra <= checkpointed.extra
    del runs
