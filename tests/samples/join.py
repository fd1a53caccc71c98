"""Samples of joining and taking apart: concat, stack, unstack."""

import numpy as np

import gpuad

from .shape import ALL, empty, m, sample, scalar, v, x

SAMPLES = [
    sample(
        "concat",
        lambda *a: gpuad.concat(a),
        (m, m[:1]),
        lambda *a: np.concatenate(a),
        lambda a, b: a.new_zeros(4, 4).slice_scatter(a, 0, 0, 3).slice_scatter(b, 0, 3),
    ),
    sample("concat[last]", lambda *a: gpuad.concat(a, axis=-1), (x, x[:, :, :1], x), lambda *a: np.concatenate(a, -1)),
    sample(
        "concat[flat]",
        lambda *a: gpuad.concat(a, axis=None),
        (m, scalar, v),
        lambda *a: np.concatenate(a, None),
        dtypes=ALL,
    ),
    sample("concat[one]", lambda a: gpuad.concat([a]), (v,), lambda a: a),
    sample("concat[twice the same]", lambda a: gpuad.concat([a, a]), (v,), lambda a: np.concatenate([a, a])),
    sample("concat[empty]", lambda *a: gpuad.concat(a), (empty, m[:, :3]), lambda *a: np.concatenate(a)),
    sample(
        "concat[pending]", lambda *a: gpuad.concat([a[0] * a[0], a[1]]), (v, v), lambda a, b: np.concatenate([a * a, b])
    ),
    sample(
        "concat[dtypes]",
        lambda a: gpuad.concat([a, gpuad.arange(3, device=a.device)]),
        (v,),
        lambda a: np.concatenate([a, np.arange(3, dtype=a.dtype)]),
    ),
    sample("stack", lambda *a: gpuad.stack(a), (v, v * 2), lambda *a: np.stack(a)),
    sample("stack[last]", lambda *a: gpuad.stack(a, axis=-1), (m, m * 2), lambda *a: np.stack(a, -1)),
    sample("stack[0-d]", lambda *a: gpuad.stack(a), (scalar, np.array(-0.7)), lambda *a: np.stack(a)),
    sample("unstack", lambda a: gpuad.unstack(a), (m,), lambda a: list(a), lambda a: a.unbind()),
    sample(
        "unstack[axis]",
        lambda a: gpuad.unstack(a, axis=1),
        (x,),
        lambda a: list(np.moveaxis(a, 1, 0)),
        lambda a: a.unbind(1),
    ),
]
