"""What one small operation costs in Python, forward and forward + backward: chains of 400."""

import numpy as np
import pytest
import torch

import gpuad

OPS = 400
CASES = {
    "add scalar": (lambda x, y: x + 1.0, (32,)),
    "add (32,)": (lambda x, y: x + y, (32,)),
    "mul (32,)": (lambda x, y: x * y, (32,)),
    "add (64, 64)": (lambda x, y: x + y, (64, 64)),
    "tanh (64, 64)": (None, (64, 64)),
}


def chain(f, x, y):
    for _ in range(OPS):
        x = f(x, y)
    return x


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("library", ["gpuad", "torch"])
def test_chain(benchmark, library, case, backward):
    benchmark.group = f"{OPS} ops: {case}, {'forward+backward' if backward else 'forward'}"
    f, shape = CASES[case]
    start, other = np.full(shape, 0.5, np.float32), np.full(shape, 1.001, np.float32)
    if library == "gpuad":
        f = f or (lambda x, y: gpuad.tanh(x))
        make, total, value = gpuad.asarray, gpuad.sum, lambda t: t.numpy()
    else:
        f = f or (lambda x, y: torch.tanh(x))
        make, total, value = (lambda a: torch.from_numpy(a.copy())), torch.sum, lambda t: t.detach().numpy()
    y = make(other)

    def run():
        x = make(start)
        if not backward:
            return value(chain(f, x, y))
        x.requires_grad_()
        total(chain(f, x, y)).backward()
        return value(x.grad)

    benchmark.pedantic(run, rounds=30, warmup_rounds=3)
