"""y = gelu(x * w + b) * tanh(x) over ten million float32 elements, forward and backward."""

import numpy as np
import pytest
import torch

import gpuad

N = 10_000_000


@pytest.mark.parametrize("library", ["gpuad", "torch"])
def test_gelu_tanh(rounds, benchmark, library):
    benchmark.group = "gelu(x*w+b)*tanh(x), 1e7, fwd+bwd"
    rng = np.random.default_rng(0)
    x, g = rng.standard_normal(N, np.float32), rng.standard_normal(N, np.float32)
    if library == "gpuad":
        leaf, cotangent = gpuad.asarray(x).requires_grad_(), gpuad.asarray(g)

        def run():
            leaf.grad = None
            y = gpuad.gelu(leaf * 1.5 + 0.1, approximate="tanh") * gpuad.tanh(leaf)
            y.numpy()
            y.backward(cotangent)
            return leaf.grad.numpy()
    else:
        leaf, cotangent = torch.from_numpy(x).requires_grad_(), torch.from_numpy(g)

        def run():
            leaf.grad = None
            y = torch.nn.functional.gelu(leaf * 1.5 + 0.1, approximate="tanh") * torch.tanh(leaf)
            y.backward(cotangent)
            return leaf.grad.numpy()

    result = rounds(run, rounds=7)
    h = 1.5 * x.astype(np.float64)[:1000] + 0.1
    inner = np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)
    t, th = np.tanh(inner), np.tanh(x[:1000].astype(np.float64))
    gelu, slope = 0.5 * h * (1 + t), 0.5 * (1 + t) + 0.5 * h * (1 - t * t) * np.sqrt(2 / np.pi) * (1 + 0.134145 * h * h)
    assert np.allclose(result[:1000], g[:1000] * (slope * 1.5 * th + gelu * (1 - th * th)), atol=1e-4)
