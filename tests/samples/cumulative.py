"""Samples of the running sums and products, and of differences."""

import functools

import numpy as np

import gpuad

from . import Sample

HALF = ("float32", "float64", "float16", "bfloat16")

x = np.array([[[0.5, -1.25, 2.0], [1.5, 0.75, -0.5]], [[1.125, 0.625, -1.5], [-0.75, 2.5, 1.375]]])
zeros = np.array([[2.0, 0.0, -1.5, 0.5], [0.0, 1.25, 0.0, 2.0], [1.0, -0.5, 3.0, 0.0]])
line = np.array([0.5, -1.25, 2.0, 0.75, 1.5])
integers = np.array([[3, 0, -2], [1, 5, 7]], np.int32)
FUNCTIONS = (
    (gpuad.cumulative_sum, np.cumsum, lambda x, axis: x.cumsum(axis)),
    (gpuad.cumulative_prod, np.cumprod, lambda x, axis: x.cumprod(axis)),
)


def after(initial, function):
    """`function`, with `initial` before its results."""

    def call(x, axis):
        y = function(x, axis=axis)
        return np.concatenate([np.full_like(np.take(y, [0], axis), initial), y], axis)

    return call


SAMPLES = [
    *(
        Sample(
            f"{f.__name__}[{note}]",
            functools.partial(f, axis=axis),
            (a,),
            functools.partial(reference, axis=axis),
            functools.partial(torch, axis=axis),
            dtypes=HALF if note == "axis=-1" else ("float32", "float64"),
        )
        for f, reference, torch in FUNCTIONS
        for note, a, axis in (
            ("axis=0", x, 0),
            ("axis=1", x, 1),
            ("axis=-1", x, -1),
            ("one axis", line, 0),
            ("zeros, axis=0", zeros, 0),
            ("zeros, axis=1", zeros, 1),
            ("transposed", x.T, 1),
            ("empty", np.zeros((2, 0)), 1),
            ("no lines", np.zeros((0, 2)), 1),
        )
    ),
    *(
        Sample(
            f"{f.__name__}[initial, axis={axis}]",
            functools.partial(f, axis=axis, include_initial=True),
            (x,),
            functools.partial(after(initial, reference), axis=axis),
        )
        for (f, reference, _), initial in zip(FUNCTIONS, (0, 1), strict=True)
        for axis in (0, -1)
    ),
    Sample("cumulative_sum", gpuad.cumulative_sum, (line,), np.cumsum),
    Sample("cumulative_prod", gpuad.cumulative_prod, (line,), np.cumprod),
    Sample(
        "cumulative_sum[int32]",
        lambda x: gpuad.cumulative_sum(x, axis=1),
        (integers,),
        lambda x: np.cumsum(x, axis=1, dtype=np.int64),
    ),
    Sample(
        "cumulative_prod[uint8]",
        lambda x: gpuad.cumulative_prod(x, axis=0),
        (np.full((5, 2), 20, np.uint8),),
        lambda x: np.cumprod(x, axis=0, dtype=np.uint64),
    ),
    Sample(
        "cumulative_sum[dtype=float64]",
        lambda x: gpuad.cumulative_sum(x, axis=0, dtype=gpuad.float64),
        (x,),
        lambda x: np.cumsum(x, axis=0, dtype=np.float64),
    ),
    Sample("diff", gpuad.diff, (x,), np.diff, lambda x: x.diff(), dtypes=HALF),
    Sample(
        "diff[axis=0]", lambda x: gpuad.diff(x, axis=0), (x,), lambda x: np.diff(x, axis=0), lambda x: x.diff(dim=0)
    ),
    Sample("diff[n=2]", lambda x: gpuad.diff(x, n=2), (x,), lambda x: np.diff(x, n=2), lambda x: x.diff(n=2)),
    Sample("diff[n=0]", lambda x: gpuad.diff(x, n=0), (x,), lambda x: np.diff(x, n=0), lambda x: x.diff(n=0)),
    Sample("diff[one element]", gpuad.diff, (line[:1],), np.diff, lambda x: x.diff()),
    Sample("diff[integers]", gpuad.diff, (integers,), np.diff),
    Sample(
        "diff[prepend, append]",
        lambda x, a, b: gpuad.diff(x, axis=1, prepend=a, append=b),
        (x, x[:, :1] * 2, x[:, 1:] + 1),
        lambda x, a, b: np.diff(x, axis=1, prepend=a, append=b),
        lambda x, a, b: x.diff(dim=1, prepend=a, append=b),
    ),
]
