"""Samples of the reductions."""

import functools

import numpy as np
import scipy.special

import gpuad

from . import Sample

ALL = ("float32", "float64", "float16", "bfloat16")

x = np.array(
    [
        [[0.5, -1.25, 2.0, 0.25], [1.5, 0.75, -0.5, 1.0], [-2.0, 1.75, 0.375, -0.875]],
        [[1.125, 0.625, -1.5, -0.25], [-0.75, 2.5, 1.375, 0.125], [0.875, -1.125, 2.25, -1.75]],
    ]
)
wide = (np.linspace(0.9, 1.1, 210) * np.sign(np.sin(np.arange(210) + 0.5))).reshape(3, 70)
ties = np.array([[1.0, 3.0, 3.0], [-2.0, -2.0, -2.0], [0.5, 3.0, 0.25]])
one_zero = np.array([[2.0, 0.0, -1.5, 0.5], [1.25, -0.5, 3.0, 2.0]])
two_zeros = np.array([[2.0, 0.0, -1.5, 0.0], [0.0, 0.0, 0.0, 2.0]])
no_rows, no_columns = np.zeros((0, 3)), np.zeros((3, 0))
integers = np.array([[3, 0, -2], [0, 0, 7]])
AXES = {
    "": {},
    "axis=-1": {"axis": -1},
    "axis=0": {"axis": 0},
    "axis=1": {"axis": 1},
    "axis=(0, 1)": {"axis": (0, 1)},
    "axis=(2, 0)": {"axis": (2, 0)},
    "axis=(1, 2)": {"axis": (1, 2)},
    "axis=()": {"axis": ()},
    "keepdims": {"keepdims": True},
    "axis=-1, keepdims": {"axis": -1, "keepdims": True},
    "axis=1, keepdims": {"axis": 1, "keepdims": True},
    "axis=(0, 1), keepdims": {"axis": (0, 1), "keepdims": True},
}
ARGUMENTS = {
    "0-d": (np.array(0.75), {}),
    "one column": (wide[:, :1], {"axis": 0}),
    "one row": (wide[:1], {"axis": 1}),
    "transposed, axis=0": (wide.T, {"axis": 0}),
    "transposed, axis=1": (wide.T, {"axis": 1}),
    "strided": (wide[::2, ::3], {"axis": -1}),
    "no rows": (no_rows, {"axis": 1}),
}


# --- the same in NumPy and PyTorch --------------------------------------------------------------


def in_torch(name):
    """The method of a PyTorch tensor, with the parameters of the array API."""

    def call(x, axis=None, keepdims=False, **params):
        return getattr(x, name)(dim=tuple(range(x.ndim)) if axis is None else axis, keepdim=keepdims, **params)

    return call


def prod_in_torch(x, axis=None, keepdims=False):
    """PyTorch takes products over one dim at a time."""
    axes = range(x.ndim) if axis is None else [axis] if isinstance(axis, int) else axis
    for k in sorted((k % x.ndim for k in axes), reverse=True):
        x = x.prod(dim=k, keepdim=keepdims)
    return x


def in_numpy(name):
    """NumPy's `var` or `std`, with the parameters of the array API."""

    def call(x, axis=None, keepdims=False, correction=0.0):
        return getattr(np, name)(x, axis=axis, keepdims=keepdims, ddof=correction)

    return call


REFERENCES = {
    "sum": (np.sum, in_torch("sum")),
    "mean": (np.mean, in_torch("mean")),
    "prod": (np.prod, prod_in_torch),
    "max": (np.max, in_torch("amax")),
    "min": (np.min, in_torch("amin")),
    "var": (in_numpy("var"), lambda *a, correction=0.0, **k: in_torch("var")(*a, correction=correction, **k)),
    "std": (in_numpy("std"), lambda *a, correction=0.0, **k: in_torch("std")(*a, correction=correction, **k)),
    "logsumexp": (scipy.special.logsumexp, in_torch("logsumexp")),
    "any": (np.any, None),
    "all": (np.all, None),
    "count_nonzero": (np.count_nonzero, None),
}


def sample(name, note, a, params, *, compare=True, **fields):
    """A sample of the reduction `name` of `a`; `compare` with PyTorch, which takes axis=() for all axes."""
    reference, torch = REFERENCES[name]
    compare = compare and torch is not None and params.get("axis") != ()
    return Sample(
        f"{name}[{note}]" if note else name,
        functools.partial(getattr(gpuad, name), **params),
        (a,),
        functools.partial(reference, **params),
        functools.partial(torch, **params) if compare else None,
        **fields,
    )


SMOOTH = ("sum", "mean", "prod", "max", "min", "var", "logsumexp")
SAMPLES = [
    *(sample(name, note, x, params, dtypes=ALL) for name in SMOOTH for note, params in AXES.items()),
    *(
        sample(name, note, a, params, compare=(name, note) != ("var", "no rows"), dtypes=ALL)  # of which PyTorch warns
        for name in SMOOTH
        for note, (a, params) in ARGUMENTS.items()
    ),
    *(
        sample(
            "std", note, x, params, second=note not in ("axis=()", "axis=0"), dtypes=ALL
        )  # linear: of one and of two
        for note, params in AXES.items()
    ),
    *(
        sample(name, f"correction={correction}", x, {"axis": -1, "correction": correction})
        for name in ("var", "std")
        for correction in (1, 0.5)
    ),
    *(
        sample(name, f"ties, axis={axis}", ties, {"axis": axis}, second=False)
        for name in ("max", "min")
        for axis in (None, 0, 1)
    ),
    *(
        sample("prod", f"{note}, axis={axis}", a, {"axis": axis})
        for note, a in (("one zero", one_zero), ("two zeros", two_zeros))
        for axis in (None, 0, 1)
    ),
    *(sample(name, "no columns", no_columns, {"axis": 1}) for name in ("sum", "prod")),
    *(sample(name, "empty", no_rows, {}) for name in ("sum", "prod")),
    sample("sum", "dtype=float64", wide, {"dtype": np.float64}, compare=False),
    sample("sum", "integers", integers, {"axis": 1}),
    sample("sum", "bools", integers > 0, {"axis": 0}),
    sample("sum", "uint8", np.full(300, 255, np.uint8), {}, compare=False),
    sample("prod", "int32", integers.astype(np.int32), {"axis": 1}),
    sample("max", "int8", integers.astype(np.int8), {"axis": 0}),
    sample("min", "bools", integers > 0, {"axis": 1}),
    Sample(
        "mean[integers]",
        lambda x: gpuad.mean(x, axis=1),
        (integers,),
        lambda x: np.mean(x, axis=1, dtype=np.float32),
        dtypes=("float32",),
    ),
    Sample(
        "logsumexp[far away]",
        lambda x: gpuad.logsumexp(x + 5000.0, axis=1),
        (wide,),
        lambda x: scipy.special.logsumexp(x + 5000.0, axis=1),
        lambda x: (x + 5000.0).logsumexp(1),
    ),
    Sample(
        "logsumexp[of an expression]",
        lambda x: gpuad.logsumexp(gpuad.sin(x) * 3.0, axis=1),
        (wide,),
        lambda x: scipy.special.logsumexp(np.sin(x) * 3, axis=1),
        lambda x: (x.sin() * 3).logsumexp(1),
    ),
    *(
        sample(name, note, a, params, grad=False)
        for name in ("any", "all", "count_nonzero")
        for note, a, params in (
            ("floats", one_zero, {}),
            ("integers, axis=0", integers, {"axis": 0}),
            ("integers, axis=1", integers, {"axis": 1}),
            ("bools, keepdims", integers > 0, {"axis": -1, "keepdims": True}),
            ("NaN", np.array([[np.nan, 0.0]]), {"axis": 0}),
            ("empty", no_rows, {}),
            ("no rows", no_rows, {"axis": 0}),
            ("no columns", no_columns, {"axis": 1}),
        )
    ),
]
