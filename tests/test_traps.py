"""The ways a recomputation can go wrong: each gives the gradient of the plain function, or an error that says where.

A trap is a function `f` of the one tensor x, and what happens between its run and the backward pass.  The line at
fault ends in `# here`.
"""

import contextvars
import ctypes
import inspect
import itertools
import os
import random
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import gpuad
from gpuad import CaptureError, EscapedTensorError, GradientError, RecomputeError, asarray, checkpoint, grad, jvp
from gpuad.nn.functional import dropout
from gpuad.op import Opaque

X = np.linspace(0.1, 0.9, 6)


def slope(f, between=lambda: None, **options):
    """The gradient of sum(f(x)) through a checkpoint, after `between` has happened."""
    x = asarray(X).requires_grad_()
    y = gpuad.sum(checkpoint(f, **options)(x))
    y.numpy()
    between()
    y.backward()
    return x.grad.numpy()


def plain(f):
    """The same without a checkpoint."""
    x = asarray(X).requires_grad_()
    gpuad.sum(f(x)).backward()
    return x.grad.numpy()


def is_right(f, **options):
    """Is the gradient that of the plain function, where both begin at the same seeds?"""
    both = []
    for run in (plain, slope):
        np.random.seed(3)
        random.seed(3)
        gpuad.random.seed(3)
        both.append(run(f) if run is plain else run(f, **options))
    return np.array_equal(*both, equal_nan=True)


def line_of(f, mark="# here"):
    """`test_traps.py:41`, as messages write it: the line of `f` that ends in `mark`."""
    text, first = inspect.getsourcelines(f)
    (k,) = [k for k, line in enumerate(text) if line.rstrip().endswith(mark)]
    return f"test_traps.py:{first + k}"


def refused(f, between=lambda: None, *, error=RecomputeError, op="", likely="", mark="# here", **options):
    """The message of the error, which tells the op, the line that is marked and a likely cause."""
    with pytest.raises(error) as caught:
        slope(f, between, **options)
    said = str(caught.value)
    assert line_of(f, mark) in said, said
    assert f"{op}()" in said, said
    assert re.search(likely, said), said
    assert "f()" in said, said
    assert "\n  " in said, said  # a cause or a remedy
    return said


CONSTANT = r"a constant it uses changed between the forward and the backward pass; pass it as an argument"
BRANCH = r"likely a branch on something that changed in between"


# --- 1: randomness that gpuad does not know of ------------------------------------------------


def test_an_untold_generator_is_an_error():
    rng = np.random.default_rng(0)

    def f(x):
        return gpuad.sin(x) * rng.random(6)  # here

    refused(f, op="multiply", likely=CONSTANT)


def test_the_operating_system_s_randomness_is_an_error():
    def f(x):
        return gpuad.sin(x) * np.frombuffer(os.urandom(6), np.uint8).astype(float)  # here

    refused(f, op="multiply", likely=CONSTANT)


@pytest.mark.parametrize(
    "make",
    [np.random.default_rng, np.random.RandomState, random.Random, lambda n: np.random.Generator(np.random.MT19937(n))],
    ids=["Generator", "RandomState", "random.Random", "MT19937"],
)
def test_a_generator_one_is_told_of_is_drawn_again_and_stays_where_it_is(make):
    def draws(rng):
        return np.array([rng.random() for _ in range(6)])

    first = make(5)
    rng = make(5)

    def f(x):
        return gpuad.sin(x) * draws(rng) + draws(rng)

    found = slope(f, generators=[rng])
    assert np.array_equal(found, np.cos(X) * draws(first))
    draws(first)
    assert np.array_equal(draws(rng), draws(first))  # the second run has not moved it


SOURCES = {
    "NumPy": np.random.rand,
    "Python": random.random,
    "gpuad": lambda: gpuad.random.uniform(()).item(),
}


@pytest.mark.parametrize("source", SOURCES)
def test_what_is_drawn_between_the_runs_goes_on_undisturbed(source):
    draw, drawn = SOURCES[source], []

    def f(x):
        return gpuad.sin(x) * np.random.rand(6) * dropout(gpuad.ones((6,), dtype=gpuad.float64), 0.5) * random.random()

    assert is_right(f)
    for between in (lambda: None, lambda: drawn.append(draw())):
        np.random.seed(1)
        random.seed(1)
        gpuad.random.seed(1)
        slope(f, between)
        drawn.append(draw())
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_generator_of_gpuad_s_own_is_drawn_again():
    generator = gpuad.random.Generator(4)

    def f(x):
        return dropout(gpuad.sin(x), 0.5, generator=generator)

    state = generator.state
    found = slope(f)
    generator.set_state(state)
    assert np.array_equal(found, plain(f))


def test_children_of_a_told_generator_are_an_error():
    """A generator counts its children apart from what it draws."""
    rng = np.random.default_rng(0)

    def f(x):
        return gpuad.sin(x) * rng.spawn(1)[0].random(6)  # here

    refused(f, op="multiply", likely=CONSTANT, generators=[rng])


def test_draws_of_a_gpuad_generator_on_another_thread_are_an_error():
    def f(x):
        drawn = []
        thread = threading.Thread(target=lambda: drawn.append(gpuad.random.uniform((6,), dtype=gpuad.float64)))
        thread.start()
        thread.join()
        return gpuad.sin(x) * drawn[0]  # here

    refused(f, op="multiply", likely=CONSTANT)


# --- 2: global state --------------------------------------------------------------------------

scale = 2.0


def test_a_global_that_the_first_run_changes_is_an_error():
    def f(x):
        global scale
        scale *= 1.5
        return gpuad.sin(x) * scale  # here

    refused(f, op="multiply", likely=CONSTANT)


@pytest.mark.parametrize(
    ("before", "after"), [(2.0, 3.0), (2, 2.0), (0.0, -0.0), (1.0, True), (1.0, float("nan")), (1, np.float64(1))]
)
def test_a_number_that_changes_is_an_error(before, after):
    state = {"by": before}

    def f(x):
        return gpuad.sin(x) * state["by"]  # here

    refused(f, lambda: state.update(by=after), op="multiply", likely=CONSTANT)


def test_an_option_of_an_op_that_changes_is_an_error():
    state = {"axis": 0, "key": slice(0, 2), "shape": [2, 3], "bound": "min"}
    functions = {
        "axis": lambda x: gpuad.cumulative_sum(gpuad.reshape(x, (2, 3))[:, :2], axis=state["axis"]),
        "key": lambda x: gpuad.sin(x)[state["key"]],
        "shape": lambda x: gpuad.reshape(gpuad.sin(x), state["shape"]),
        "bound": lambda x: gpuad.clip(gpuad.sin(x), **{state["bound"]: 0.5}),  # another op of the same name
    }

    def change_in_place():
        state["shape"][:] = 3, 2

    changes = {
        "axis": lambda: state.update(axis=1),
        "key": lambda: state.update(key=slice(1, 3)),
        "shape": change_in_place,
        "bound": lambda: state.update(bound="max"),
    }
    for name, f in functions.items():
        with pytest.raises(RecomputeError, match=r"test_traps.py:\d+\n  an option of it changed between"):
            slope(f, changes[name])


@pytest.mark.parametrize(("before", "after"), [(0.0, -0.0), (2.0, 3.0), (1.0, float("nan"))])
def test_a_pending_constant_that_changes_is_an_error(before, after):
    state = {"by": before}

    def f(x):
        constant = gpuad.full((6,), state["by"], dtype=gpuad.float64) * 2
        return gpuad.sin(x) * gpuad.atan2(constant, -gpuad.ones_like(constant))  # here

    refused(f, lambda: state.update(by=after), op="multiply", likely=CONSTANT)
    assert is_right(f)


# --- 3: a list that grows ---------------------------------------------------------------------


def test_a_list_that_grows_is_an_error():
    seen = []

    def f(x):
        seen.append(gpuad.sin(x))
        total = seen[0]  # of the first run, when it runs again
        for part in seen:
            total = total + part  # here
        return total

    refused(f, error=CaptureError, likely="when it ran again, at .*, and not when it ran first")


def test_a_list_of_constants_that_grows_is_an_error():
    parts = []

    def f(x):
        parts.append(1.5)
        for part in parts:
            x = x * part  # here
        return x

    refused(f, op="multiply", likely="took another path.*where the first run did nothing more")


def test_a_list_that_shrinks_is_an_error():
    parts = [1.5, 2.5, 3.5]

    def f(x):
        parts.pop()
        for part in parts:
            x = gpuad.sin(x) * part  # here
        return x

    refused(f, op="sin", likely="stopped early when it ran again: the first run went on with sin")


# --- 4: a mutated constant --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["array", "view", "tensor over borrowed memory", "list", "argument"])
def test_a_constant_that_is_written_is_an_error(kind):
    memory = np.ones(12)
    constant = {
        "array": memory[:6],
        "view": memory[::2],
        "tensor over borrowed memory": asarray(memory[:6], copy=False),
        "list": [1.0] * 6,
        "argument": memory[:6],
    }[kind]

    def change():
        memory[2] = 3.0
        if kind == "list":
            constant[2] = 3.0

    def f(x, given=None):
        return gpuad.sin(x) * gpuad.asarray(constant if given is None else given, dtype=gpuad.float64)  # here

    if kind != "argument":
        refused(f, change, op="multiply", likely=CONSTANT)
        return
    x = asarray(X).requires_grad_()
    y = gpuad.sum(checkpoint(f)(x, constant))
    change()
    with pytest.raises(RecomputeError, match=CONSTANT):
        y.backward()


def test_a_written_index_or_mask_is_an_error():
    for memory, change in ((np.arange(6), 5), (np.arange(6) > 2, True)):

        def f(x, memory=memory):
            return gpuad.sin(x)[memory] * 2  # here

        def write(memory=memory, change=change):
            memory[0] = change

        with pytest.raises(RecomputeError, match=line_of(f)):
            slope(f, write)


def test_borrowed_memory_of_an_argument_or_a_capture_that_is_written_is_an_error():
    for captured in (False, True):
        memory = X.copy()
        x = asarray(memory, copy=False).requires_grad_()
        f = checkpoint((lambda y, x=x: gpuad.sin(x) * y) if captured else (lambda x: gpuad.sin(x)))
        y = gpuad.sum(f(asarray(X)) if captured else f(x))
        memory[0] = 0.5
        with pytest.raises(gpuad.MutationError, match=r"memory that the gradient of checkpoint\(<lambda>\)\(\) needs"):
            y.backward()


def test_memory_that_is_lent_and_written_is_an_error():
    constant = asarray(X) + 0.0
    constant.numpy()

    def f(x):
        return gpuad.sin(x) * constant  # here

    refused(f, lambda: write_through_dlpack(constant), op="multiply", likely=CONSTANT)


def test_what_is_put_off_until_it_is_asked_for_does_not_see_later_writes():
    constant = asarray(X) + 0.0
    constant.numpy()

    def f(x):
        flat = gpuad.reshape(gpuad.exp(x) * constant, (2, 3))
        return gpuad.sum(gpuad.sin(flat) @ flat.mT)

    expected = grad(f)(asarray(X)).numpy()
    found = grad(checkpoint(f))(asarray(X))  # pending still
    write_through_dlpack(constant)
    assert np.array_equal(found.numpy(), expected)


def test_an_op_over_borrowed_memory_is_not_put_off():
    def f(x):
        return gpuad.sin(gpuad.flip(x))

    def slope_of(f):
        memory = X.copy()
        x = asarray(memory, copy=False)
        _, found = jvp(f, (x,), (gpuad.ones_like(x),))
        memory[:] = 0
        return found.numpy()

    assert np.array_equal(slope_of(checkpoint(f)), slope_of(f))


def write_through_dlpack(x):
    view = np.from_dlpack(x)  # which NumPy makes read-only; another library would not
    ctypes.memset(view.ctypes.data, 0, view.nbytes)


# --- 5: a stale parameter ---------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [gpuad.optim.SGD, gpuad.optim.Adam, gpuad.optim.AdamW])
def test_an_optimizer_s_step_in_between_is_an_error_for_captures_and_harmless_for_arguments(optimizer):
    def step(w):
        other = optimizer([w], lr=0.1)
        w.grad = gpuad.ones_like(w)
        other.step()
        w.grad = None

    for captured in (True, False):
        w = asarray(X + 1).requires_grad_()
        w.name = "layer.w"

        def f(x, v=None, w=w):
            return gpuad.sin(x) * (w if v is None else v)  # here

        x = asarray(X).requires_grad_()
        y = gpuad.sum(checkpoint(f)(x) if captured else checkpoint(f)(x, w))
        y.numpy()
        step(w)
        if captured:
            with pytest.raises(
                CaptureError, match=rf"layer.w, which f\(\) uses from outside, was assigned [^$]*{line_of(f)}"
            ):
                y.backward()
        else:
            y.backward()
            assert np.array_equal(x.grad.numpy(), np.cos(X) * (X + 1))
            assert np.array_equal(w.grad.numpy(), np.sin(X))


@pytest.mark.parametrize("change", ["+=", "[]", "copy_", "data"])
def test_an_assigned_capture_is_an_error_that_names_both_lines(change):
    w = asarray(X).requires_grad_()

    def f(x):
        return gpuad.sin(x) * w  # here

    def assign():
        with gpuad.no_grad():
            match change:
                case "+=":
                    nonlocal w
                    w += 1.0
                case "[]":
                    w[2] = 1.0
                case "copy_":
                    w.copy_(X + 1)
                case "data":
                    w.become(asarray(X + 1).requires_grad_())

    said = refused(f, assign, error=CaptureError, likely="now it is the value made at test_traps.py")
    text, first = inspect.getsourcelines(assign)
    lines = {int(n) for n in re.findall(r"made at test_traps.py:(\d+)", said)}
    assert all(first <= n < first + len(text) for n in lines), said


def test_a_capture_assigned_the_same_values_is_right():
    w = asarray(X).requires_grad_()

    def f(x):
        return gpuad.sin(x) * w

    def assign():
        with gpuad.no_grad():
            w.copy_(X.copy())

    assert np.array_equal(slope(f, assign), np.cos(X) * X)


@pytest.mark.parametrize("after", [True, False])
def test_a_capture_that_begins_or_ceases_to_require_grad_is_an_error(after):
    w = asarray(X + 1).requires_grad_(not after)

    def f(x):
        return gpuad.sin(x) * w  # here

    refused(f, lambda: w.requires_grad_(after), error=(CaptureError, RecomputeError))


def test_equal_parameters_that_change_places_keep_their_gradients():
    """Their values cannot tell them apart; what a first run captured first stays first."""
    a, b = (gpuad.ones((6,), dtype=gpuad.float64).requires_grad_() for _ in range(2))
    order = [a, b]

    def f(x):
        return gpuad.sin(x * order[0]) + x * x * order[1]

    slope(f, order.reverse)
    assert np.array_equal(a.grad.numpy(), X * np.cos(X))
    assert np.array_equal(b.grad.numpy(), X * X)


# --- 6: an iterator ---------------------------------------------------------------------------


def test_an_iterator_that_goes_on_is_an_error():
    batches = itertools.count(1)

    def f(x):
        return gpuad.sin(x) * next(batches)  # here

    refused(f, op="multiply", likely=CONSTANT)


def test_an_iterator_that_ends_is_an_error_and_no_end_of_a_loop():
    """StopIteration out of backward() would end a loop around it without a word."""
    batches = iter([X])

    def f(x):
        return gpuad.sin(x) * next(batches)  # here

    said = refused(f, likely="likely something outside that the first run used up or changed")
    assert "raised StopIteration when it ran again" in said


def test_an_error_in_the_second_run_names_its_line_and_keeps_its_cause():
    parts = [1.0]

    def f(x):
        return gpuad.sin(x) * parts.pop()  # here

    with pytest.raises(RecomputeError, match=f"raised IndexError when it ran again, at {line_of(f)}, .*pop from empty"):
        slope(f)
    parts.append(1.0)
    try:
        slope(f)
    except RecomputeError as error:
        assert isinstance(error.__cause__, IndexError)


# --- 7: a branch ------------------------------------------------------------------------------


def test_a_branch_on_time_is_an_error():
    begun = time.monotonic()

    def f(x):
        if time.monotonic() - begun < 0.01:
            return gpuad.sin(x)  # first
        return gpuad.cos(x)  # here

    said = refused(f, lambda: time.sleep(0.02), op="cos", likely=BRANCH)
    assert f"where the first run did sin() at {line_of(f, '# first')}" in said


def test_a_branch_is_told_by_its_line_in_every_mode():
    for mode in (lambda f: grad(f), lambda f: lambda x: jvp(f, (x,), (x,)), lambda f: grad(grad(f))):
        calls = []

        def f(x, calls=calls):
            calls.append(1)
            return x * x * x if len(calls) == 1 else gpuad.cos(x)  # here

        with pytest.raises(RecomputeError, match=rf"cos\(\) at {line_of(f)}, where the first run did multiply"):
            mode(checkpoint(f))(asarray(0.5))


def test_a_branch_on_a_value_inside_is_right():
    def f(x):
        return gpuad.sin(x) * 2 if gpuad.sum(x).detach().item() > 1 else gpuad.cos(x)

    assert is_right(f)


# --- 8: shuffled arrays -----------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", [np.random.shuffle, random.shuffle])
def test_a_shuffle_by_a_global_generator_is_right(shuffle):
    def f(x):
        order = np.arange(6)
        shuffle(order)
        return gpuad.sin(x)[order] * np.arange(6.0)

    assert is_right(f)
    assert is_right(lambda x: gpuad.sin(x) * np.random.permutation(6))


def test_a_shuffle_by_an_untold_generator_is_an_error():
    rng = np.random.default_rng(0)

    def f(x):
        order = np.arange(6)
        rng.shuffle(order)
        return gpuad.sin(x)[order] * np.arange(6.0)  # here

    refused(f, op="take", likely=CONSTANT)
    found = slope(f, generators=[rng])
    assert sorted(found / np.cos(X)) == pytest.approx(range(6))


def test_a_captured_array_that_is_shuffled_in_place_is_an_error():
    order = np.arange(6)

    def f(x):
        np.random.shuffle(order)
        return gpuad.sin(x)[order] * np.arange(6.0)  # here

    np.random.seed(0)
    refused(f, op="take", likely=CONSTANT)


# --- 9: assignment inside ---------------------------------------------------------------------


def test_assignment_inside_is_right():
    def f(x):
        y = gpuad.sin(x)
        y += x
        y[1:3] = x[2:4] * 2
        y[np.array([0, 0])] = x[:2]
        x *= y
        x[0] = 3.0
        return x * y

    # a leaf refuses to be assigned; behind x + 0 it is the caller's tensor that would be
    assert np.array_equal(slope(lambda x: f(x + 0)), plain(lambda x: f(x + 0)))


def test_the_caller_s_tensor_stays_when_the_function_assigns_its_argument():
    def f(x):
        x += 1.0
        return x * x

    x = asarray(X).requires_grad_()
    h = gpuad.sin(x)
    y = checkpoint(f)(h)
    assert np.array_equal(h.numpy(), np.sin(X))
    gpuad.sum(y).backward()
    assert np.allclose(x.grad.numpy(), 2 * (np.sin(X) + 1) * np.cos(X))


def test_an_argument_that_is_assigned_in_between_is_right():
    x = asarray(X).requires_grad_()
    h = gpuad.sin(x)
    y = checkpoint(lambda h: h * h)(h)
    h += 1.0
    gpuad.sum(y).backward()
    assert np.allclose(x.grad.numpy(), 2 * np.sin(X) * np.cos(X))


def test_a_captured_leaf_that_the_function_assigns_is_an_error():
    w = asarray(X).requires_grad_()

    def f(x):
        y = gpuad.sin(x) * w  # here
        with gpuad.no_grad():
            w.copy_(w * 2)
        return y

    refused(f, error=CaptureError, likely="assigned between the forward and the backward")


def test_a_captured_tensor_that_the_function_assigns_is_an_error():
    total = asarray(np.zeros(6))

    def f(x):
        nonlocal total
        total += x.detach()  # here
        return gpuad.sin(x) * total

    refused(f, error=(CaptureError, RecomputeError))
    with pytest.raises(EscapedTensorError):
        total * 2


def test_running_statistics_with_the_values_of_a_run_are_an_error():
    mean = asarray(np.zeros(6)).requires_grad_()

    def f(x):
        with gpuad.no_grad():
            mean.copy_(mean * 0.9 + x * 0.1)
        return gpuad.sin(x)

    with pytest.raises(GradientError, match="inside checkpoint"):
        slope(f)


# --- 10: threads ------------------------------------------------------------------------------


def in_thread(f):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(f).result()


def test_a_forward_and_a_backward_pass_on_other_threads_are_right():
    def f(x):
        return dropout(gpuad.sin(x), 0.5) * gpuad.exp(x)

    gpuad.random.seed(3)
    expected = plain(f)
    x = asarray(X).requires_grad_()
    gpuad.random.seed(3)
    y = in_thread(lambda: gpuad.sum(checkpoint(f)(x)))
    in_thread(y.backward)
    assert np.array_equal(x.grad.numpy(), expected)


def test_many_threads_may_sweep_at_once():
    w = asarray(X).requires_grad_()
    f = checkpoint(lambda x: gpuad.tanh(dropout(gpuad.sin(x * w), 0.5)) @ w, policy="matmuls")
    gpuad.random.seed(3)
    tapes = [f(asarray(X)) for _ in range(16)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda y: y.backward(), tapes))
    found, w.grad = w.grad.numpy(), None
    gpuad.random.seed(3)
    for _ in range(16):
        (gpuad.tanh(dropout(gpuad.sin(asarray(X) * w), 0.5)) @ w).backward()
    assert np.allclose(found, w.grad.numpy())


def test_a_thread_inside_that_computes_with_what_is_traced_is_an_error():
    def f(x):
        return in_thread(lambda: gpuad.sin(x))  # here

    refused(f, error=CaptureError, op="sin", likely="another thread\n  compute in the thread that calls the function")


def test_a_thread_inside_with_the_same_context_is_right():
    def f(x):
        context = contextvars.copy_context()
        return in_thread(lambda: context.run(lambda: gpuad.sin(x))) * x

    assert is_right(f)


def test_a_thread_inside_that_computes_a_constant_or_with_a_capture_is_right():
    w = asarray(X).requires_grad_()

    def f(x):
        return gpuad.sin(x) * in_thread(lambda: gpuad.exp(w)) * in_thread(lambda: gpuad.ones((6,)) * 3)

    gradients = []
    for run in (plain, slope):
        gradients.append((run(f), w.grad.numpy()))
        w.grad = None
    assert all(map(np.array_equal, *gradients))


def test_a_thread_inside_that_computes_another_constant_is_an_error():
    state = iter([2.0, 3.0])

    def f(x):
        return gpuad.sin(x) * in_thread(lambda: gpuad.ones((6,)) * next(state))  # here

    refused(f, op="multiply", likely=CONSTANT)


# --- and more ---------------------------------------------------------------------------------


def test_a_tensor_cached_by_the_first_run_is_an_error():
    cache = {}

    def f(x):
        if "sine" not in cache:
            cache["sine"] = gpuad.sin(x)
        return cache["sine"] * x  # here

    refused(f, error=(CaptureError, RecomputeError), likely="when it ran again")


def test_a_cached_tensor_does_not_pass_for_a_capture_of_the_same_values():
    cache, w = {}, asarray(X).requires_grad_()

    def f(x):
        if "same" not in cache:
            cache["same"] = x * 1.0
            return gpuad.sin(w) * cache["same"]
        return cache["same"] * gpuad.sin(x)

    with pytest.raises((CaptureError, RecomputeError)):
        slope(f)


def test_a_cached_constant_is_right():
    cache = {}

    def f(x):
        if "table" not in cache:
            cache["table"] = gpuad.cumulative_sum(gpuad.ones((6,), dtype=gpuad.float64)) * 2
        return gpuad.sin(x) * cache["table"]

    assert is_right(f)
    for outer in (f, checkpoint(f)):
        cache.clear()  # then it is pending in the first run, and computed in the second
        found = slope(lambda x, outer=outer: outer(x) * 2, lambda: cache["table"].numpy())
        assert np.array_equal(found, plain(f) * 2)


def test_an_order_that_changes_is_an_error_or_harmless():
    parts = {"a": 2.0, "b": 3.0}

    def f(x):
        for by in parts.values():
            x = gpuad.sin(x) * by  # here
        return x

    def turn():
        parts["a"] = parts.pop("a")

    refused(f, turn, op="multiply", likely=CONSTANT)


def test_what_depends_on_ids_is_an_error():
    def f(x):
        marks = [object() for _ in range(3)]  # which lie elsewhere each time
        kept.extend(marks)
        return gpuad.sin(x) * (id(marks[0]) % 1000003)  # here

    kept = []
    refused(f, op="multiply", likely=CONSTANT)


def test_results_in_another_order_or_number_are_an_error():
    def first(a, b):
        return a, b

    for then, said in (
        (lambda a, b: (b, a), r"f\(\) returned other values when it ran again: result 0 of 2 was float64\[6\] of sin"),
        (lambda a, b: (a, a), r"result 1 of 2 was float64\[6\] of cos\(\) at test_traps.py:\d+ when it ran first"),
        (lambda a, b: (a, b.detach()), r"result 1 of 2 was"),
        (lambda a, b: (a,), r"f\(\) returned another number of tensors .* when it ran again: 1, and 2"),
        (lambda a, b: (a, b, a), "when it ran again: 3, and 2"),
        (lambda a, b: 3.0, "when it ran again: 0, and 2"),
    ):
        for determinism in ("hash", "shapes"):
            orders = iter([first, then])

            def f(x, orders=orders):
                return next(orders)(gpuad.sin(x), gpuad.cos(x))

            x = asarray(X).requires_grad_()
            y, z = checkpoint(f, determinism=determinism)(x)
            with pytest.raises(RecomputeError, match=said):
                gpuad.sum(y * 2 + z * 3).backward()


def test_an_argument_returned_in_another_place_is_an_error():
    calls = []

    def f(x, y):
        calls.append(1)
        return (x, y * 2) if len(calls) == 1 else (y * 2, x)

    x, y = asarray(X).requires_grad_(), asarray(X).requires_grad_()
    a, _ = checkpoint(f)(x, y)
    with pytest.raises(RecomputeError, match=r"result 0 of 2 was its argument 0, float64\[6\], when it ran first"):
        gpuad.sum(a).backward()


def test_even_without_comparison_results_have_to_fit():
    calls = []

    def f(x):
        calls.append(1)
        return (gpuad.sin(x), gpuad.cos(x)) if len(calls) == 1 else (gpuad.sin(x), gpuad.sum(x))

    x = asarray(X).requires_grad_()
    y, z = checkpoint(f, determinism="off")(x)
    with pytest.raises(RecomputeError, match="result 1 of 2"):
        gpuad.sum(y + z).backward()


def test_an_inner_checkpoint_s_constant_is_held_to_the_outer_s_first_run():
    state = {"by": 2.0}

    def f(x):
        return gpuad.sin(x) * state["by"]  # here

    inner = checkpoint(f)
    deeper = checkpoint(lambda x: checkpoint(inner)(x) * 1.0)
    for outer in (lambda x: inner(x) * 1.0, deeper):
        state["by"] = 2.0
        with pytest.raises(RecomputeError, match=rf"f\(\) computed something else .*multiply\(\) at {line_of(f)}"):
            slope(outer, lambda: state.update(by=3.0))
    state["by"] = 2.0
    assert is_right(deeper)


def test_an_inner_checkpoint_s_path_and_results_are_held_to_the_outer_s_first_run():
    for change in ("path", "order", "other function"):
        calls = []

        def f(x, calls=calls, change=change):
            calls.append(1)
            a, b = gpuad.sin(x), gpuad.cos(x)
            if len(calls) > 1:
                a, b = {"path": (gpuad.tan(x), b), "order": (b, a), "other function": (a, b)}[change]
            return a, b

        def g(x):
            return gpuad.exp(x), gpuad.cos(x)

        def outer(x, f=f, calls=calls, change=change):
            a, b = checkpoint(g if change == "other function" and calls else f)(x)
            return a * 2 + b

        with pytest.raises(RecomputeError):
            slope(outer)


def test_nan_is_equal_to_nan():
    nan = float("nan")

    def f(x):
        spoilt = gpuad.log(x - 0.5) * gpuad.asarray([nan] * 6) + gpuad.full((6,), nan)
        return gpuad.where(gpuad.isnan(spoilt), gpuad.sin(x), spoilt) * gpuad.clip(x, float("-inf"), 0.5)

    assert is_right(f)
    assert np.isnan(slope(lambda x: gpuad.sin(x * nan) @ gpuad.cos(x * nan))).all()


def test_a_detached_tensor_is_a_constant_and_held_to_its_value():
    w = asarray(X).requires_grad_()

    def f(x):
        return gpuad.sin(x) * gpuad.exp(x).detach() * w.detach()  # here

    assert is_right(f)

    def assign():
        with gpuad.no_grad():
            w.copy_(X + 1)

    refused(f, assign, op="multiply", likely=CONSTANT)


def test_values_taken_to_numpy_and_back_are_constants():
    def f(x):
        return gpuad.sin(x) * np.exp(x.detach().numpy())

    assert is_right(f)


def test_a_generator_function_and_tensors_left_outside_are_errors():
    def f(x):
        yield gpuad.sin(x)

    with pytest.raises(EscapedTensorError, match=r"outlived the checkpoint\(\) call"):
        list(checkpoint(f)(asarray(X)))
    left = []
    checkpoint(lambda x: (left.append(x.detach()), x)[1])(asarray(X))
    with pytest.raises(EscapedTensorError):
        left[0].numpy()


def test_an_except_clause_does_not_hide_a_difference():
    state = {"by": 2.0}

    def f(x):
        try:
            return gpuad.sin(x) * state["by"]
        except RecomputeError:
            return gpuad.sin(x)

    with pytest.raises(RecomputeError):
        slope(f, lambda: state.update(by=3.0))


def test_an_op_that_is_no_function_is_an_error_where_its_value_is_needed():
    """Same op, same operands, other bits: what digests of values are for."""
    drifting = Opaque(
        "drifting",
        ("x",),
        infer=lambda x: (x.shape, x.dtype),
        forward=lambda xp, x: x + next(drift),
        vjp=(lambda g: g,),
        jvp=(lambda t: t,),
    )
    drift = itertools.count()

    def f(x):
        return gpuad.sin(drifting(x))  # here

    refused(f, op="drifting", likely="likely a source of numbers that gpuad does not know of, or memory")
    said = "computed something else when it ran again: the first difference is drifting"
    with pytest.raises(RecomputeError, match=said):
        jvp(checkpoint(f), (asarray(X),), (asarray(X),))[1].numpy()
    assert slope(f, determinism="shapes").shape == (6,)


def test_what_was_refused_stays_refused():
    state = {"by": 2.0}
    f = checkpoint(lambda x: gpuad.sin(x) * state["by"])
    x = asarray(X).requires_grad_()
    y = gpuad.sum(f(x))
    state["by"] = 3.0
    for error in (RecomputeError, gpuad.FreedTapeError):
        with pytest.raises(error):
            y.backward()
    assert x.grad is None

    drift = itertools.count()
    drifting = Opaque(
        "drifting",
        ("x",),
        infer=lambda x: (x.shape, x.dtype),
        forward=lambda xp, x: x + next(drift),
        jvp=(lambda t: t,),
    )
    f = checkpoint(lambda x: gpuad.sin(drifting(x)))
    _, slopes = jvp(f, (asarray(X),), (asarray(X),))  # pending
    for error in (RecomputeError, gpuad.GpuadError):
        with pytest.raises(error):
            slopes.numpy()


def test_a_backward_pass_in_no_grad_is_right():
    w = asarray(X).requires_grad_()

    def f(x):
        with gpuad.no_grad():
            still = w * 2
        return gpuad.sin(x * w) * still

    x = asarray(X).requires_grad_()
    y = gpuad.sum(checkpoint(f)(x))
    with gpuad.no_grad():
        y.backward()
    assert np.array_equal(x.grad.numpy(), plain(f))


def test_a_forward_and_a_backward_pass_may_both_be_eager():
    def f(x):
        constant = gpuad.full((6,), 2.0) * gpuad.arange(6)
        return gpuad.reshape(gpuad.sin(x) * constant, (2, 3)) @ gpuad.reshape(gpuad.cos(x), (3, 2))

    with gpuad.eager():
        assert is_right(f)
        assert is_right(f, policy="matmuls")


# --- what determinism= compares ---------------------------------------------------------------


def test_shapes_lets_values_differ_but_not_ops():
    rng = np.random.default_rng(0)
    first, then = np.random.default_rng(0).random((2, 6))

    def f(x):
        return gpuad.sin(x * rng.random(6))

    found = slope(f, determinism="shapes")
    assert np.allclose(found, then * np.cos(X * then))  # as asked for: the gradient of the second run
    assert not np.array_equal(first, then)
    calls = []

    def g(x):
        calls.append(1)
        return gpuad.sin(x) if len(calls) == 1 else gpuad.cos(x)

    with pytest.raises(RecomputeError, match="took another path"):
        slope(g, determinism="shapes")
    sizes = iter([6, 1])
    with pytest.raises(RecomputeError, match="constant it uses changed"):
        slope(lambda x: gpuad.sin(x) * np.ones(next(sizes)), determinism="shapes")


def test_off_lets_everything_differ():
    calls = []

    def f(x):
        calls.append(1)
        if len(calls) == 1:
            return gpuad.sum(gpuad.reshape(x, (2, 3)))
        return gpuad.sum(gpuad.max(gpuad.reshape(x, (3, 2)), axis=0)) + gpuad.sum(gpuad.sort(x)[:2] ** 2)

    assert np.allclose(slope(f, determinism="off"), [2 * X[0], 2 * X[1], 0, 0, 1, 1])


def test_off_takes_no_kept_value_for_another_op():
    calls = []

    def f(x):
        calls.append(1)
        return gpuad.sin(x) * 2 if len(calls) == 1 else gpuad.exp(gpuad.cos(x))

    found = slope(f, determinism="off", policy=lambda value: True)
    assert np.allclose(found, -np.sin(X) * np.exp(np.cos(X)))


def test_many_shared_parts_of_a_constant_take_no_time():
    def f(x):
        constant = asarray(X)
        for _ in range(26):
            constant = constant * constant
        return gpuad.sin(x) + constant

    begun = time.monotonic()
    assert is_right(f)
    assert time.monotonic() - begun < 2


# --- a device that does not wait --------------------------------------------------------------


def test_on_a_gpu_the_error_comes_when_a_value_is_read(cuda):
    for kind in ("constant", "capture", "none"):
        state = {"c": np.full(6, 2.0)}
        w = asarray(X, device=cuda).requires_grad_()

        def f(x, state=state, w=w):
            return gpuad.sin(x) * asarray(state["c"], device=cuda) * w  # here

        x = asarray(X, device=cuda).requires_grad_()
        y = gpuad.sum(checkpoint(f)(x))
        if kind == "constant":
            state["c"] = np.full(6, 3.0)
        if kind == "capture":
            with gpuad.no_grad():
                w.copy_(X + 1)
        if kind == "none":
            y.backward()
            assert np.allclose(x.grad.numpy(), 2 * np.cos(X) * X)
            assert np.allclose(w.grad.numpy(), 2 * np.sin(X))
            continue
        error = {"constant": RecomputeError, "capture": CaptureError}[kind]
        with pytest.raises(error, match=line_of(f)):
            y.backward()
            x.grad.numpy()


def test_on_a_gpu_dropout_and_policies_give_the_same_bits(cuda):
    def f(x, w):
        return gpuad.sum(dropout(gpuad.tanh(x @ w), 0.5) @ w)

    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal((8, 8)).astype(np.float32) for _ in range(2))
    found = []
    for g in (f, checkpoint(f), checkpoint(f, policy="matmuls")):
        gpuad.random.seed(3)
        found.append([t.numpy() for t in grad(g, argnums=(0, 1))(asarray(x, device=cuda), asarray(w, device=cuda))])
    for other in found[1:]:
        assert all(map(np.array_equal, found[0], other))
