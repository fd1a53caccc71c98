"""Samples of comparisons, logic, bits and choices, with ties and bounds."""

from collections.abc import Callable
from typing import Any

import numpy as np

import gpuad

from . import Sample

ALL_FLOATS = ("float32", "float64", "float16", "bfloat16")

a = np.array([[2.5, -1.5, 0.75, 1.0], [-0.25, 3.0, -2.0, 0.0]])
b = np.array([[1.25, -1.5, -2.0, 1.5], [-3.0, 3.0, 0.375, 0.0]])  # three ties
row = np.array([0.5, -1.5, 2.0, 0.0])
special = np.array([0.0, -0.0, 1.0, -2.5, np.nan, np.inf, -np.inf])
counts = np.array([[-7, -3, -1, 0], [1, 2, 5, 100]])
places = np.array([0, 1, 3, 70])
small = counts.astype(np.int8)
flags = counts % 3 == 0


def comparing(name: str, numpy: Callable[..., Any]) -> list[Sample]:
    """The comparison `name` of floats, integers, both, and scalars."""
    function = getattr(gpuad, name)
    return [
        Sample(name, function, (a, b), numpy, dtypes=ALL_FLOATS, grad=False),
        Sample(f"{name}[special]", function, (special[:, None], special), numpy, grad=False),
        Sample(f"{name}[integers]", function, (counts, small[:, ::-1].copy()), numpy),
        Sample(f"{name}[float, integer]", function, (a, counts), numpy, grad=False),
        Sample(f"{name}[scalar]", lambda x: function(x, 1), (a,), lambda x: numpy(x, 1), grad=False),
        Sample(f"{name}[scalar first]", lambda x: function(0.75, x), (a,), lambda x: numpy(0.75, x), grad=False),
    ]


def on_words(name: str, numpy: Callable[..., Any], second: np.ndarray = places) -> list[Sample]:
    function = getattr(gpuad, name)
    return [
        Sample(name, function, (counts, second), numpy),
        Sample(f"{name}[int8]", function, (small, second.astype(np.int8)), numpy),
        Sample(f"{name}[scalar]", lambda x: function(x, 3), (counts,), lambda x: numpy(x, 3)),
    ]


def where(c: Any, x: Any, y: Any) -> Any:
    return x.where(c, y)


def clamp(low: Any, high: Any) -> Callable[..., Any]:
    return lambda x: x.clamp(low, high)


SAMPLES = [
    *comparing("equal", np.equal),
    *comparing("not_equal", np.not_equal),
    *comparing("less", np.less),
    *comparing("less_equal", np.less_equal),
    *comparing("greater", np.greater),
    *comparing("greater_equal", np.greater_equal),
    *[
        Sample(name, getattr(gpuad, name), (special,), getattr(np, name), dtypes=ALL_FLOATS, grad=False)
        for name in ("isnan", "isinf", "isfinite", "signbit")
    ],
    *[
        Sample(f"{name}[integers]", getattr(gpuad, name), (counts,), getattr(np, name))
        for name in ("isnan", "isinf", "isfinite", "signbit")
    ],
    *[
        Sample(name, getattr(gpuad, name), (flags, counts), getattr(np, name))
        for name in ("logical_and", "logical_or", "logical_xor")
    ],
    Sample("logical_not", gpuad.logical_not, (special,), np.logical_not, grad=False),
    *on_words("bitwise_and", np.bitwise_and),
    *on_words("bitwise_or", np.bitwise_or),
    *on_words("bitwise_xor", np.bitwise_xor),
    *on_words("bitwise_left_shift", np.left_shift),
    *on_words("bitwise_right_shift", np.right_shift),
    *[
        Sample(f"bitwise_invert[{x.dtype}]", gpuad.bitwise_invert, (x,), np.invert)
        for x in (counts, small, flags, counts.astype(np.uint16))
    ],
    Sample("bitwise_and[bools]", gpuad.bitwise_and, (flags, flags[0]), np.bitwise_and),
    # choosing
    Sample("where", gpuad.where, (flags, a, b), np.where, where, dtypes=ALL_FLOATS),
    Sample("where[broadcast]", gpuad.where, (flags[:, :1], a, row), np.where, where),
    Sample("where[condition of more axes]", gpuad.where, (flags, row, np.array(2.0)), np.where, where),
    Sample("where[scalar b]", lambda c, x: gpuad.where(c, x, 0), (flags, a), lambda c, x: np.where(c, x, 0)),
    Sample(
        "where[scalar a]",
        lambda c, x: gpuad.where(c, 1.5, x),
        (flags, a),
        lambda c, x: np.where(c, x.dtype.type(1.5), x),
    ),
    Sample("where[0-d]", gpuad.where, (np.array(True), np.array(1.0), np.array(2.0)), np.where, where),
    Sample("where[empty]", gpuad.where, (np.zeros((0, 2), bool), np.zeros((0, 2)), np.array(1.0)), np.where, where),
    Sample("where[integers]", gpuad.where, (flags, counts, small), np.where),
    Sample("where[bools]", gpuad.where, (flags, flags[0], ~flags), np.where),
    Sample(
        "where[special]",
        lambda x: gpuad.where(gpuad.isfinite(x), x, 0),
        (special,),
        lambda x: np.where(np.isfinite(x), x, 0),
        grad=False,
    ),
    *[
        Sample(
            f"{name}{label}",
            getattr(gpuad, name),
            args,
            getattr(np, name),
            lambda x, y, name=name: getattr(x, name)(y),
            dtypes=ALL_FLOATS,
        )
        for name in ("maximum", "minimum")
        for label, args in (("", (a, b)), ("[broadcast]", (a, row)), ("[0-d]", (np.array(1.0), np.array(1.0))))
    ],
    *[
        Sample(f"{name}[special]", getattr(gpuad, name), (special[:, None], special), getattr(np, name), grad=False)
        for name in ("maximum", "minimum")
    ],
    *[
        Sample(f"{name}[integers]", getattr(gpuad, name), (counts, small[:, ::-1].copy()), getattr(np, name))
        for name in ("maximum", "minimum")
    ],
    Sample("maximum[scalar]", lambda x: gpuad.maximum(x, 1), (a,), lambda x: np.maximum(x, 1)),
    Sample("minimum[scalar first]", lambda x: gpuad.minimum(1, x), (a,), lambda x: np.minimum(1, x)),
    # a has elements at, below and above these bounds
    Sample(
        "clip",
        lambda x: gpuad.clip(x, -1.5, 1.0),
        (a,),
        lambda x: np.clip(x, -1.5, 1.0),
        clamp(-1.5, 1),
        dtypes=ALL_FLOATS,
    ),
    Sample("clip[min]", lambda x: gpuad.clip(x, min=0), (a,), lambda x: np.clip(x, 0, None), clamp(0, None)),
    Sample("clip[max]", lambda x: gpuad.clip(x, max=1.0), (a,), lambda x: np.clip(x, None, 1), clamp(None, 1)),
    Sample("clip[no bound]", gpuad.clip, (a,), lambda x: x),
    Sample("clip[min above max]", lambda x: gpuad.clip(x, 2, 0.5), (a,), lambda x: np.clip(x, 2, 0.5), clamp(2, 0.5)),
    Sample("clip[tensors]", gpuad.clip, (a, b - 1, b + 2), np.clip, lambda x, low, high: x.clamp(low, high)),
    Sample(
        "clip[tensors, broadcast]",
        gpuad.clip,
        (a, row - 2, np.array(1.75)),
        np.clip,
        lambda x, low, high: x.clamp(low, high),
    ),
    Sample("clip[crossed tensors]", gpuad.clip, (a, b + 1, b - 0.5), np.clip, lambda x, low, high: x.clamp(low, high)),
    Sample("clip[tensor min]", lambda x, low: gpuad.clip(x, low), (a, row), lambda x, low: np.clip(x, low, None)),
    Sample(
        "clip[tensor max]", lambda x, high: gpuad.clip(x, max=high), (a, row), lambda x, high: np.clip(x, None, high)
    ),
    Sample(
        "clip[tensor min, scalar max]",
        lambda x, low: gpuad.clip(x, low, 1),
        (a, row),
        lambda x, low: np.clip(x, low, 1),
    ),
    Sample("clip[special]", lambda x: gpuad.clip(x, -1, 2), (special,), lambda x: np.clip(x, -1, 2), grad=False),
    Sample("clip[integers]", lambda x: gpuad.clip(x, -2, 4), (counts,), lambda x: np.clip(x, -2, 4)),
]
