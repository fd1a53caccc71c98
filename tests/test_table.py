"""Every sample of every op against NumPy, PyTorch, finite differences, and its own other mode of derivative."""

import zlib
from collections import Counter

import numpy as np
import pytest

import gpuad
from gpuad.dtype import as_dtype, is_float
from samples import SAMPLES, Sample

RTOL = {"float64": 1e-11, "float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}
STEP = 1e-4  # of finite differences of fourth order: 1e-16 of the fifth derivative, and 1e-12 of the value
KINK_STEP = 1e-7  # of the one-sided differences that show a kink

every = pytest.mark.parametrize("sample", SAMPLES, ids=repr)
smooth = pytest.mark.parametrize("sample", [s for s in SAMPLES if s.grad], ids=repr)
twice = pytest.mark.parametrize("sample", [s for s in SAMPLES if s.grad and s.second], ids=repr)


def outputs(result):
    return list(result) if isinstance(result, tuple | list) else [result]


def cast(sample, dtype):
    """The arguments of `sample`, with the differentiable ones as `dtype`."""
    return [a.astype(dtype) if isinstance(a, np.ndarray) and a.dtype == np.float64 else a for a in sample.args]


def call(sample, dtype, device="cpu"):
    args = [gpuad.asarray(a, device=device) if isinstance(a, np.ndarray) else a for a in cast(sample, dtype)]
    return outputs(sample.call(*args))


class Problem:
    """A sample as a function from lists of arrays to lists of arrays, with a direction at both ends."""

    def __init__(self, sample: Sample) -> None:
        places = [k for k, a in enumerate(sample.args) if isinstance(a, np.ndarray) and a.dtype == np.float64]
        fixed = [gpuad.asarray(a) if isinstance(a, np.ndarray) else a for a in sample.args]

        def function(xs):
            args = list(fixed)
            for k, x in zip(places, xs, strict=True):
                args[k] = x
            return [y for y in outputs(sample.call(*args)) if is_float(y.dtype)]

        self.function = function
        self.x = [np.asarray(sample.args[k]) for k in places]
        rng = np.random.default_rng(zlib.crc32(sample.name.encode()))
        self.t = [rng.standard_normal(x.shape) for x in self.x]
        self.g = [rng.standard_normal(y.shape) for y in self.values(self.x)]

    def values(self, xs):
        return numpy(self.function([gpuad.asarray(x) for x in xs]))

    def pulled(self, xs):
        """The cotangents of the arguments `xs`."""
        return gpuad.vjp(self.function, xs)[1](self.g)[0]

    def pushed(self, xs):
        """The tangents of the results."""
        return gpuad.jvp(self.function, (xs,), (self.t,))[1]


def numpy(tensors):
    return [y.numpy() for y in tensors]


def inner(a, b):
    return sum(float(np.vdot(x, y)) for x, y in zip(a, b, strict=True))


def size_of_inner(a, b):
    return inner([np.abs(x) for x in a], [np.abs(x) for x in b])


def magnitude(*arrays):
    """The largest finite size of an element, or 0."""
    sizes = [np.abs(np.asarray(a, np.float64)).reshape(-1) for a in arrays]
    found = np.concatenate(sizes) if sizes else np.empty(0)
    return float(np.max(found, where=np.isfinite(found), initial=0.0))


def assert_close(found, expected, rtol, scale=1.0):
    """Equal up to `rtol` of each element and of the largest; exactly equal where they are not floats."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    if not is_float(found.dtype):
        np.testing.assert_array_equal(found, expected)
        return
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol * scale * magnitude(expected))


def assert_derivative(found, function, x, t):
    """`found` is the derivative of `function` at `x` along `t`; at a kink it lies between the one-sided ones.

    Where the function jumps it has none, and anything goes.
    """

    def along(h):
        return function([a + h * b for a, b in zip(x, t, strict=True)])

    here, h, k = along(0.0), STEP, KINK_STEP
    near, far, after, before = (along(s) for s in (h, 2 * h, k, -k))
    back, back2 = along(-h), along(-2 * h)
    for n, d in enumerate(found):
        assert d.shape == here[n].shape
        assert np.all(np.isfinite(d)), "a sample with infinite derivatives has grad=False"
        central = (8 * (near[n] - back[n]) - (far[n] - back2[n])) / (12 * h)
        right, left = (after[n] - here[n]) / k, (here[n] - before[n]) / k
        size = 1 + np.abs(d) + magnitude(here[n])
        kink = np.abs(right - left) > 1e-4 * size
        jump = (
            np.abs(after[n] - here[n]) > 0.1 * np.abs(near[n] - here[n]) + 1e-9 * size
        )  # much already at the small step
        jump |= np.abs(here[n] - before[n]) > 0.1 * np.abs(here[n] - back[n]) + 1e-9 * size
        low, high = np.minimum(left, right) - 1e-5 * size, np.maximum(left, right) + 1e-5 * size
        right_there = np.where(kink, (low <= d) & (d <= high), np.abs(d - central) <= 1e-7 * size + 1e-6 * np.abs(d))
        wrong = ~(right_there | jump)
        assert not wrong.any(), f"derivative {d[wrong]}, but finite differences give {central[wrong]} (output {n})"


def test_every_sample_has_a_name_of_its_own():
    assert [name for name, n in Counter(s.name for s in SAMPLES).items() if n > 1] == []


@every
def test_values_are_those_of_numpy(sample):
    for name in sample.dtypes:
        dtype = as_dtype(name)
        found = call(sample, dtype)
        args = cast(sample, dtype)
        if dtype.itemsize == 2:
            args = [a.astype(np.float32) if isinstance(a, np.ndarray) and a.dtype == dtype else a for a in args]
        with np.errstate(all="ignore"):
            expected = outputs(sample.numpy(*args))
        rtol = sample.rtol if sample.rtol is not None and name == "float32" else RTOL[name]
        for y, reference in zip(found, expected, strict=True):
            assert_close(y.numpy(), reference, rtol)


@every
def test_meta_device_agrees_on_shapes_and_dtypes(sample):
    for name in sample.dtypes:
        described = [[(y.shape, y.dtype) for y in call(sample, as_dtype(name), device)] for device in ("cpu", "meta")]
        assert described[0] == described[1]


@smooth
def test_jvp_is_the_directional_derivative(sample):
    problem = Problem(sample)
    assert_derivative(numpy(problem.pushed(problem.x)), problem.values, problem.x, problem.t)


@smooth
def test_vjp_is_the_transpose_of_jvp(sample):
    problem = Problem(sample)
    pushed, pulled = numpy(problem.pushed(problem.x)), numpy(problem.pulled(problem.x))
    assert [p.shape for p in pulled] == [x.shape for x in problem.x]
    forward, reverse = inner(problem.g, pushed), inner(pulled, problem.t)
    size = size_of_inner(problem.g, pushed) + size_of_inner(pulled, problem.t)
    assert abs(forward - reverse) <= 1e-11 * size


@twice
def test_jvp_of_vjp_is_the_directional_derivative_of_the_gradient(sample):
    problem = Problem(sample)
    second = numpy(gpuad.jvp(problem.pulled, (problem.x,), (problem.t,))[1])
    assert_derivative(second, lambda x: numpy(problem.pulled(x)), problem.x, problem.t)


@twice
def test_every_nesting_gives_the_same_second_derivative(sample):
    problem = Problem(sample)
    x, t, g = problem.x, problem.t, problem.g
    forward_over_reverse = numpy(gpuad.jvp(problem.pulled, (x,), (t,))[1])
    reverse_over_forward = numpy(gpuad.vjp(problem.pushed, x)[1](g)[0])
    reverse_over_reverse = numpy(gpuad.vjp(problem.pulled, x)[1](t)[0])
    forward_over_forward = numpy(gpuad.jvp(problem.pushed, (x,), (t,))[1])
    scale = magnitude(*forward_over_reverse)
    for a, b, c in zip(forward_over_reverse, reverse_over_forward, reverse_over_reverse, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-10, atol=1e-11 * scale)
        np.testing.assert_allclose(c, a, rtol=1e-10, atol=1e-11 * scale)
    size = size_of_inner(t, forward_over_reverse) + size_of_inner(g, forward_over_forward)
    assert abs(inner(g, forward_over_forward) - inner(t, forward_over_reverse)) <= 1e-10 * size


@pytest.mark.parametrize("sample", [s for s in SAMPLES if s.torch], ids=repr)
def test_values_and_gradients_are_those_of_pytorch(sample, torch):
    args = [torch.tensor(a) if isinstance(a, np.ndarray) else a for a in sample.args]
    traced = [a.requires_grad_(sample.grad) for a in args if isinstance(a, torch.Tensor) and a.dtype == torch.float64]
    theirs = outputs(sample.torch(*args))
    ours = call(sample, np.dtype(np.float64))
    for y, reference in zip(ours, theirs, strict=True):
        assert_close(y.numpy(), reference.detach().numpy(), 1e-11)
    if not sample.grad:
        return
    problem = Problem(sample)
    theirs = [y for y in theirs if y.dtype == torch.float64]
    reached = [(y, torch.tensor(g)) for y, g in zip(theirs, problem.g, strict=True) if y.requires_grad]
    gradients = [None] * len(traced)
    if reached:
        results, seeds = zip(*reached, strict=True)
        gradients = torch.autograd.grad(results, traced, seeds, allow_unused=True)
    for found, expected, x in zip(numpy(problem.pulled(problem.x)), gradients, problem.x, strict=True):
        assert_close(found, np.zeros_like(x) if expected is None else expected.numpy(), 1e-9)
