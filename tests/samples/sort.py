"""Samples of sorting, and of where the largest and smallest elements are."""

import functools

import numpy as np

import gpuad

from . import Sample

HALF = ("float32", "float64", "float16", "bfloat16")

x = np.array(
    [
        [[0.5, -1.25, 2.0, 0.25], [1.5, 0.75, -0.5, 1.0], [-2.0, 1.75, 0.375, -0.875]],
        [[1.125, 0.625, -1.5, -0.25], [-0.75, 2.5, 1.375, 0.125], [0.875, -1.125, 2.25, -1.75]],
    ]
)
integers = np.array([[3, 0, 3, -2, 0], [1, 1, 7, 7, 1]], np.int16)


def descending(x, axis=-1):
    """The stable order from the largest to the smallest: of equal elements the first comes first."""
    return np.argsort(-x, axis=axis, kind="stable")


def ascending(x, axis=-1):
    return np.argsort(x, axis=axis, kind="stable")


SAMPLES = [
    *(
        Sample(
            f"sort[axis={axis}]",
            functools.partial(gpuad.sort, axis=axis),
            (x,),
            functools.partial(np.sort, axis=axis),
            lambda x, axis=axis: x.sort(dim=axis).values,
            dtypes=HALF,
        )
        for axis in (0, 1, -1)
    ),
    Sample(
        "sort[descending]",
        lambda x: gpuad.sort(x, descending=True),
        (x,),
        lambda x: -np.sort(-x),
        lambda x: x.sort(descending=True).values,
        dtypes=HALF,
    ),
    Sample("sort[transposed]", lambda x: gpuad.sort(x, axis=0), (x.T,), lambda x: np.sort(x, axis=0)),
    Sample("sort[empty]", gpuad.sort, (np.zeros((2, 0)),), np.sort, lambda x: x.sort().values),
    Sample("sort[one element]", gpuad.sort, (np.array([0.5]),), np.sort, lambda x: x.sort().values),
    Sample("sort[integers]", gpuad.sort, (integers,), np.sort, lambda x: x.sort().values),
    Sample("sort[bools]", gpuad.sort, (integers > 0,), np.sort),
    Sample("argsort", gpuad.argsort, (x,), ascending, lambda x: x.argsort(), grad=False, dtypes=HALF),
    Sample("argsort[axis=1]", lambda x: gpuad.argsort(x, axis=1), (x,), lambda x: ascending(x, 1), grad=False),
    Sample("argsort[equal elements]", gpuad.argsort, (integers,), ascending, lambda x: x.argsort(stable=True)),
    Sample(
        "argsort[equal elements, descending]",
        lambda x: gpuad.argsort(x, descending=True),
        (integers,),
        descending,
        lambda x: x.argsort(stable=True, descending=True),
    ),
    *(
        Sample(
            f"{name}[{note}]",
            functools.partial(getattr(gpuad, name), **params),
            (a,),
            functools.partial(getattr(np, name), **params),
            grad=False,
            dtypes=HALF if a is x else ("float32", "float64"),
        )
        for name in ("argmax", "argmin")
        for note, a, params in (
            ("", x, {}),
            ("axis=0", x, {"axis": 0}),
            ("axis=-1, keepdims", x, {"axis": -1, "keepdims": True}),
            ("keepdims", x, {"keepdims": True}),
            ("equal elements", integers, {"axis": 1}),
            ("NaN", np.array([[1.0, np.nan, 3.0, np.nan], [2.0, 0.0, 5.0, 1.0]]), {"axis": 1}),
            ("0-d", np.array(0.5), {}),
            ("no lines", np.zeros((0, 2)), {"axis": 1}),
        )
    ),
]
