"""Samples of rearranging: reshape, broadcast, flip, roll, tile, repeat, tril, pad and the like."""

import numpy as np

import gpuad

from . import Sample

x = np.random.default_rng(0).standard_normal((2, 3, 4))
m = np.random.default_rng(1).standard_normal((3, 4))
v = np.array([0.5, -1.25, 2.0])
scalar, empty = np.array(0.3), np.zeros((0, 3))
ALL = ("float32", "float64", "float16", "bfloat16")


def square(y):
    """Makes second derivatives of linear functions worth testing."""
    return y * y


def sample(name, call, args, numpy, torch=None, **options):
    """Of `square(call(...))`: what is linear has a second derivative only then."""
    return Sample(
        name,
        lambda *a: [square(y) for y in _all(call(*a))],
        args,
        lambda *a: [square(y) for y in _all(numpy(*a))],
        None if torch is None else lambda *a: [square(y) for y in _all(torch(*a))],
        **options,
    )


def _all(result):
    return list(result) if isinstance(result, tuple | list) else [result]


def transposed(f):
    """`f` of an argument whose memory is in another order."""
    return lambda a: f(a.transpose(2, 0, 1) if isinstance(a, np.ndarray) else gpuad.permute_dims(a, (2, 0, 1)))


SAMPLES = [
    Sample("astype", lambda a: gpuad.astype(a, "float64") * 2.0, (x,), lambda a: a.astype(np.float64) * 2.0),
    Sample(
        "astype[int]",
        lambda a: gpuad.astype(a, "int64"),
        (x * 3,),
        lambda a: a.astype(np.int64),
        grad=False,
    ),
    sample("reshape", lambda a: gpuad.reshape(a, (4, -1)), (x,), lambda a: a.reshape(4, 6), lambda a: a.reshape(4, 6)),
    sample("reshape[not contiguous]", transposed(lambda a: gpuad.reshape(a, -1)), (x,), transposed(np.ravel)),
    sample("reshape[0-d]", lambda a: gpuad.reshape(a, (1, 1)), (scalar,), lambda a: a.reshape(1, 1)),
    sample("reshape[empty]", lambda a: gpuad.reshape(a, (3, 0, 2)), (empty,), lambda a: a.reshape(3, 0, 2)),
    sample(
        "permute_dims",
        lambda a: gpuad.permute_dims(a, (2, 0, -2)),
        (x,),
        lambda a: a.transpose(2, 0, 1),
        lambda a: a.permute(2, 0, 1),
    ),
    sample(
        "moveaxis",
        lambda a: gpuad.moveaxis(a, 0, -1),
        (x,),
        lambda a: np.moveaxis(a, 0, -1),
        lambda a: a.movedim(0, -1),
    ),
    sample(
        "moveaxis[several]",
        lambda a: gpuad.moveaxis(a, (0, 2), (-1, 0)),
        (x,),
        lambda a: np.moveaxis(a, (0, 2), (-1, 0)),
    ),
    sample(
        "expand_dims", lambda a: gpuad.expand_dims(a, axis=-2), (m,), lambda a: a[:, None], lambda a: a.unsqueeze(-2)
    ),
    sample("expand_dims[0-d]", lambda a: gpuad.expand_dims(a, axis=0), (scalar,), lambda a: a[None]),
    sample(
        "squeeze",
        lambda a: gpuad.squeeze(a, (0, -1)),
        (m.reshape(1, 12, 1),),
        lambda a: a[0, :, 0],
        lambda a: a.squeeze((0, 2)),
    ),
    sample(
        "broadcast_to",
        lambda a: gpuad.broadcast_to(a, (2, 3, 4)),
        (m[:, :1],),
        lambda a: np.broadcast_to(a, (2, 3, 4)),
        lambda a: a.expand(2, 3, 4),
    ),
    sample(
        "broadcast_to[pending]",
        lambda a: gpuad.broadcast_to(a * a, (2, 3)),
        (v,),
        lambda a: np.broadcast_to(a * a, (2, 3)),
    ),
    sample("broadcast_to[empty]", lambda a: gpuad.broadcast_to(a, (0, 3)), (v,), lambda a: np.broadcast_to(a, (0, 3))),
    sample(
        "broadcast_arrays", lambda *a: gpuad.broadcast_arrays(*a), (v, x[:, :, :1]), lambda *a: np.broadcast_arrays(*a)
    ),
    sample("flip", gpuad.flip, (x,), np.flip, lambda a: a.flip((0, 1, 2))),
    sample("flip[axis]", lambda a: gpuad.flip(a, axis=-2), (x,), lambda a: np.flip(a, 1), lambda a: a.flip(1)),
    sample("flip[0-d]", gpuad.flip, (scalar,), np.flip),
    sample("flip[empty]", gpuad.flip, (empty,), np.flip),
    sample("roll", lambda a: gpuad.roll(a, 5), (m,), lambda a: np.roll(a, 5), lambda a: a.roll(5)),
    sample(
        "roll[axes]",
        lambda a: gpuad.roll(a, (1, -2), axis=(0, -1)),
        (x,),
        lambda a: np.roll(a, (1, -2), (0, 2)),
        lambda a: a.roll((1, -2), (0, 2)),
    ),
    sample("roll[empty]", lambda a: gpuad.roll(a, 1, axis=0), (empty,), lambda a: np.roll(a, 1, 0)),
    sample(
        "tile", lambda a: gpuad.tile(a, (2, 1, 3)), (m,), lambda a: np.tile(a, (2, 1, 3)), lambda a: a.tile((2, 1, 3))
    ),
    sample("tile[short]", lambda a: gpuad.tile(a, (2,)), (x,), lambda a: np.tile(a, 2)),
    sample("tile[none]", lambda a: gpuad.tile(a, (0, 2)), (m,), lambda a: np.tile(a, (0, 2))),
    sample(
        "repeat",
        lambda a: gpuad.repeat(a, 2),
        (m,),
        lambda a: np.repeat(a, 2),
        lambda a: a.flatten().repeat_interleave(2),
    ),
    sample("repeat[axis]", lambda a: gpuad.repeat(a, 3, axis=1), (x,), lambda a: np.repeat(a, 3, 1)),
    sample("repeat[counts]", lambda a: gpuad.repeat(a, [2, 0, 3], axis=0), (m,), lambda a: np.repeat(a, [2, 0, 3], 0)),
    sample(
        "repeat[array of counts]",
        lambda a: gpuad.repeat(a, np.array([1, 2, 0, 1]), axis=-1),
        (x,),
        lambda a: np.repeat(a, [1, 2, 0, 1], -1),
    ),
    sample("meshgrid", lambda *a: gpuad.meshgrid(*a), (v, m[0], v[:2]), lambda *a: np.meshgrid(*a)),
    sample(
        "meshgrid[ij]",
        lambda *a: gpuad.meshgrid(*a, indexing="ij"),
        (v, m[0]),
        lambda *a: np.meshgrid(*a, indexing="ij"),
    ),
    sample("tril", gpuad.tril, (x,), np.tril, lambda a: a.tril(), dtypes=ALL),
    sample("tril[above]", lambda a: gpuad.tril(a, k=1), (m,), lambda a: np.tril(a, 1), lambda a: a.tril(1)),
    sample("tril[below]", lambda a: gpuad.tril(a, k=-3), (m.T,), lambda a: np.tril(a, -3)),
    sample("triu", gpuad.triu, (x,), np.triu, lambda a: a.triu(), dtypes=ALL),
    sample("triu[below]", lambda a: gpuad.triu(a, k=-1), (m,), lambda a: np.triu(a, -1), lambda a: a.triu(-1)),
    sample("triu[empty]", gpuad.triu, (empty,), np.triu),
    sample("pad", lambda a: gpuad.pad(a, ((1, 2), (0, 3))), (m,), lambda a: np.pad(a, ((1, 2), (0, 3)))),
    sample(
        "pad[value]",
        lambda a: gpuad.pad(a, (1, 2), constant_values=0.5),
        (m,),
        lambda a: np.pad(a, (1, 2), constant_values=0.5),
        lambda a: a.new_full((6, 7), 0.5).slice_scatter(a.new_full((3, 7), 0.5).slice_scatter(a, 1, 1, 5), 0, 1, 4),
        dtypes=ALL,
    ),
    sample("pad[one width]", lambda a: gpuad.pad(a, 1), (x,), lambda a: np.pad(a, 1)),
    sample("pad[nothing]", lambda a: gpuad.pad(a, 0), (m,), lambda a: np.pad(a, 0)),
    sample("pad[empty]", lambda a: gpuad.pad(a, 1), (empty,), lambda a: np.pad(a, 1)),
]
