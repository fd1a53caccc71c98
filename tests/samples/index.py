"""Samples of indexing and assignment."""

import numpy as np

import gpuad

from .shape import ALL, empty, m, sample, scalar, v, x

rows, columns = np.array([2, 0, 2, -1]), np.array([[1], [-4], [3]])
mask = m > 0.0
over_first = np.array([True, False])


def getitem(name, key, array=x, **options):
    """`array[key]` with the three libraries."""
    index = lambda a: a[key]
    return sample(f"getitem[{name}]", index, (array,), index, **options)


def setitem(name, key, value, array=x, torch=False):
    """`array[key] = value`, with derivatives of both where the value is an array of float64."""

    def assign(copy):
        def f(a, b=value):
            y = copy(a)
            y[key] = b
            return y

        return f

    args = (array, value) if isinstance(value, np.ndarray) else (array,)
    theirs = assign(lambda a: a.clone()) if torch else None
    return sample(f"setitem[{name}]", assign(lambda a: a + 0), args, assign(np.copy), theirs)


def along(name, array, indices, axis):
    return sample(
        f"take_along_axis[{name}]",
        lambda a: gpuad.take_along_axis(a, indices, axis=axis),
        (array,),
        lambda a: np.take_along_axis(a, indices, axis),
    )


basic = lambda a: a[1, ::2]
SAMPLES = [
    sample("getitem", basic, (x,), basic, basic, dtypes=ALL),
    getitem("int", 1),
    getitem("negative step", (slice(None), slice(None, None, -2), slice(3, 0, -1))),
    getitem("all axes", (1, -1, 2)),
    getitem("new axes", (None, 0, ..., None)),
    getitem("0-d", (...,), scalar),
    getitem("empty", slice(5, 9)),
    getitem("of empty", (slice(None), 1), empty),
    getitem("pairs", (rows % 2, slice(None), columns)),
    getitem("flag", True, scalar),
    sample("getitem[rows]", lambda a: a[rows], (m,), lambda a: a[rows], lambda a: a[rows], dtypes=ALL),
    sample("getitem[tensor]", lambda a, i: a[i], (m, rows), lambda a, i: a[i], lambda a, i: a[i]),
    sample(
        "getitem[tensors]",
        lambda a, i, j: a[i, j],
        (m, rows, columns),
        lambda a, i, j: a[i, j],
        lambda a, i, j: a[i, j],
    ),
    sample(
        "getitem[apart]",
        lambda a, i: a[i % 2, :, i],
        (x, rows),
        lambda a, i: a[i % 2, :, i],
        lambda a, i: a[i % 2, :, i],
    ),
    getitem("integer and array", (1, slice(None), rows)),
    getitem("slice and arrays", (slice(None, None, -1), [0, 2], [1, 3])),
    getitem("mask", mask, m),
    getitem("mask behind", (slice(None), mask)),
    getitem("mask and integer", (over_first, 1)),
    getitem("mask of nothing", mask & False, m),
    getitem("no rows", [], m),
    sample("take", lambda a: gpuad.take(a, rows, axis=1), (x,), lambda a: np.take(a, rows, 1)),
    sample(
        "take[matrix of indices]", lambda a: gpuad.take(a, columns, axis=-1), (m,), lambda a: np.take(a, columns, -1)
    ),
    along("sort", x, np.argsort(x, 1), 1),
    along("last", m, np.array([[0, -1], [3, 3], [1, 0]]), -1),
    along("broadcast", x, np.array([[[2, 0]]]), 2),
    setitem("int", 1, m, torch=True),
    setitem("broadcast", (slice(None), 1), v[:1], torch=True),
    setitem("slices", (..., slice(None, None, -2)), m[:, :2]),
    setitem("everything", ..., m),
    setitem("scalar", (0, slice(1, None)), 2.5),
    setitem("rows", [2, 0], m[:2], m, torch=True),
    setitem("repeated rows", [2, 0, 2], m[[0, 1, 2]], m),
    setitem("one row for all", [2, 0], m[0], m, torch=True),
    setitem("pairs", (rows % 2, slice(None), columns), m[:, None, :3]),
    setitem("scalar at pairs", ([0, 1], [1, 1], [2, 3]), 2.5),
    setitem("mask", mask, 2.5, m),
    setitem("mask and values", mask, np.arange(float(mask.sum())), m, torch=True),
    setitem("mask and rows", over_first, m, torch=True),
    setitem("mask and columns", (slice(None), mask), np.array([[1.0], [2.0]]), torch=True),
    setitem("no rows", [], 2.5, m),
    setitem("0-d", (), np.array(2.5), scalar),
]
