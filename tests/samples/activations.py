"""Samples of the activations, at their kinks and far out."""

import numpy as np
import scipy.special

import gpuad

from . import Sample

ALL_FLOATS = ("float32", "float64", "float16", "bfloat16")

x = np.array([[-6.0, -2.5, -1.0, -0.125], [0.0, 0.5, 1.75, 5.0]])
far = np.array([-1e4, -900.0, -60.0, 60.0, 900.0, 1e4])
positive = np.array([0.0625, 0.5, 1.0, 9.0])


def gelu(x: np.ndarray) -> np.ndarray:
    return x * scipy.special.ndtr(x)


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return x * scipy.special.expit(np.sqrt(8 / np.pi).astype(x.dtype) * (x + x.dtype.type(0.044715) * x * x * x))


def silu(x: np.ndarray) -> np.ndarray:
    return x * scipy.special.expit(x)


def softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(x, x.dtype.type(0))


def by_tanh(x: gpuad.Tensor) -> gpuad.Tensor:
    return gpuad.gelu(x, approximate="tanh")


def functional(name, **options):
    """The function `name` of torch.nn.functional, imported when it is called."""

    def call(x):
        import torch

        return getattr(torch.nn.functional, name)(x, **options)

    return call


SAMPLES = [
    Sample("relu", gpuad.relu, (x,), lambda x: np.maximum(x, 0), functional("relu"), dtypes=ALL_FLOATS),
    Sample("silu", gpuad.silu, (x,), silu, functional("silu"), dtypes=ALL_FLOATS),
    Sample("softplus", gpuad.softplus, (x,), softplus, functional("softplus"), dtypes=ALL_FLOATS),
    Sample("gelu", gpuad.gelu, (x,), gelu, functional("gelu"), dtypes=ALL_FLOATS),
    Sample("gelu[tanh]", by_tanh, (x,), gelu_tanh, functional("gelu", approximate="tanh"), dtypes=ALL_FLOATS),
    Sample("erf", gpuad.erf, (x,), scipy.special.erf, lambda x: x.erf(), dtypes=ALL_FLOATS),
    Sample("rsqrt", gpuad.rsqrt, (positive,), lambda x: 1 / np.sqrt(x), lambda x: x.rsqrt(), dtypes=ALL_FLOATS),
    Sample("relu[far]", gpuad.relu, (far,), lambda x: np.maximum(x, 0), functional("relu")),
    Sample("silu[far]", gpuad.silu, (far,), silu, functional("silu")),
    Sample("softplus[far]", gpuad.softplus, (far,), softplus, functional("softplus", threshold=100)),
    Sample("gelu[far]", gpuad.gelu, (far,), gelu, functional("gelu")),
    Sample("gelu[tanh, far]", by_tanh, (far,), gelu_tanh, functional("gelu", approximate="tanh")),
    Sample("erf[far]", gpuad.erf, (far,), scipy.special.erf, lambda x: x.erf()),
    Sample("sigmoid[far]", gpuad.sigmoid, (far,), scipy.special.expit, lambda x: x.sigmoid()),
    Sample("gelu[0-d]", gpuad.gelu, (np.array(-0.5),), gelu, functional("gelu")),
    Sample("gelu[empty]", gpuad.gelu, (np.zeros((3, 0)),), gelu, functional("gelu")),
    Sample("relu[integers]", gpuad.relu, (np.array([-2, 0, 3]),), lambda n: np.maximum(n, 0).astype(np.float32)),
    Sample(
        "silu[in a product]",
        lambda a, b: gpuad.silu(a) * b,
        (x, 2 + x[0]),
        lambda a, b: silu(a) * b,
        lambda a, b: functional("silu")(a) * b,
        dtypes=ALL_FLOATS,
    ),
]
