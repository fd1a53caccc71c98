"""How a GPU's threads share a kernel: through the stand-in, against NumPy, and to the bit against itself."""

import numpy as np
import pytest

import gpuad
from gpuad.fuse.geometry import MOST_THREADS, THREADS, WARP, team_of
from gpuad.nn import functional as F

SHAPES = [(7,), (5000,), (3, 5), (9, 33), (4, 130), (3, 1030), (2, 4100), (3, 2, 70), (40, 1), (1, 40), (300, 3)]


def tensor(device, shape, seed=0, dtype="float32"):
    data = np.random.default_rng(seed).standard_normal(shape)
    return gpuad.asarray(data, dtype=dtype, device=device)


REDUCTIONS = {
    "itself": lambda y: y,
    "sum": lambda y: gpuad.sum(y),
    "by column": lambda y: gpuad.sum(y, axis=tuple(range(y.ndim - 1))) if y.ndim > 1 else y,
    "by row": lambda y: gpuad.sum(y, axis=-1),
    "extremes": lambda y: gpuad.max(y, axis=-1) + gpuad.min(y),
    "softmax": lambda y: F.softmax(y),
    "sum of softmax": lambda y: gpuad.sum(F.softmax(y) * 2.0),
    "softmax by column": lambda y: gpuad.sum(F.softmax(y) * y, axis=0) if y.ndim > 1 else y,
}


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_are_right_and_bits_do_not_depend_on_what_is_fused(cuda, shape, name):
    reduce = REDUCTIONS[name]

    def both(device, dtype="float32"):
        x, b = tensor(device, shape, dtype=dtype), tensor(device, shape[-1:], seed=1, dtype=dtype)
        fused = gpuad.exp(x) * b
        steps = gpuad.exp(x)
        steps.numpy()
        steps = steps * b
        steps.numpy()
        return reduce(fused).numpy(), reduce(steps).numpy()

    fused, steps = both(cuda)
    assert fused.tobytes() == steps.tobytes()
    expected = both("cpu", "float64")[0]
    np.testing.assert_allclose(fused, expected, rtol=2e-5, atol=2e-5 * max(1, np.abs(expected).max()))


def test_half_types_beside_float32_leave_the_bits_of_a_row_alone(cuda):
    x = tensor(cuda, (5, 1030))
    half = (x * 0.5).to("bfloat16")
    half.numpy()
    alone, beside = gpuad.sum(x, axis=-1), gpuad.sum(x, axis=-1)
    other = gpuad.sum(half.to("float32"), axis=-1)
    gpuad.fuse.plan.realize_all([beside.array, other.array])
    assert alone.numpy().tobytes() == beside.numpy().tobytes()


def test_misaligned_arrays_are_read_element_by_element(cuda):
    data = np.random.default_rng(0).standard_normal(4099).astype(np.float32)
    x = gpuad.asarray(data, device=cuda)
    np.testing.assert_allclose((x[1:] * 2 + x[:-1]).numpy(), data[1:] * 2 + data[:-1], rtol=1e-6)
    rows = gpuad.asarray(data[:4095].reshape(9, 455), device=cuda)
    np.testing.assert_allclose(
        gpuad.sum(rows[:, 1:] * 2, axis=-1).numpy(), (data[:4095].reshape(9, 455)[:, 1:] * 2).sum(1), rtol=1e-4
    )


@pytest.mark.parametrize("cols", [0, 1, 31, 129, 4096, 50257, 1 << 20])
@pytest.mark.parametrize("width", [1, 4, 8])
def test_teams_are_whole_warps(cols, width):
    team = team_of(cols, width)
    assert team % WARP == 0 and WARP <= team <= MOST_THREADS and THREADS % WARP == 0
