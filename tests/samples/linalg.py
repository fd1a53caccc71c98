"""Samples of products of matrices, and of einsum."""

from functools import partial

import numpy as np

import gpuad
from gpuad.ops.einsum import einsum

from . import Sample

rng = np.random.default_rng(3)
EVERY = ("float32", "float64", "float16", "bfloat16")
LOOSE = 3e-5  # sums of products with cancellation, in float32


def _floats(*shape):
    return rng.standard_normal(shape)


def _matmul(name, a, b, **options):
    return Sample(f"matmul[{name}]", gpuad.matmul, (a, b), np.matmul, lambda a, b: a @ b, rtol=LOOSE, **options)


def _linear(name, *args, **options):
    return Sample(
        f"linear[{name}]",
        gpuad.linear,
        args,
        lambda x, w, *b: x @ w.T + (b[0] if b else 0),
        lambda *args: __import__("torch").nn.functional.linear(*args),
        rtol=LOOSE,
        **options,
    )


def _einsum(subscripts, *shapes):
    return Sample(
        f"einsum[{subscripts}]",
        partial(einsum, subscripts),
        tuple(_floats(*shape) for shape in shapes),
        partial(np.einsum, subscripts),
        lambda *xs: __import__("torch").einsum(subscripts, *xs),
        rtol=LOOSE,
    )


SAMPLES = [
    _linear("2-D", _floats(3, 4), _floats(5, 4), _floats(5), dtypes=EVERY),
    _linear("batch", _floats(2, 3, 4), _floats(5, 4)),
    _linear("vector", _floats(4), _floats(5, 4), _floats(5)),
    _linear("empty", _floats(0, 4), _floats(5, 4)),
    _matmul("2-D", _floats(3, 4), _floats(4, 5), dtypes=EVERY),
    _matmul("batch", _floats(2, 3, 4), _floats(2, 4, 5)),
    _matmul("batch @ matrix", _floats(2, 3, 4), _floats(4, 5)),
    _matmul("matrix @ batch", _floats(3, 4), _floats(2, 4, 5)),
    _matmul("4-D @ matrix", _floats(2, 1, 3, 4), _floats(4, 2)),
    _matmul("broadcast batches", _floats(2, 1, 3, 4), _floats(3, 4, 2)),
    _matmul("vector @ vector", _floats(4), _floats(4)),
    _matmul("vector @ matrix", _floats(4), _floats(4, 3)),
    _matmul("matrix @ vector", _floats(3, 4), _floats(4)),
    _matmul("vector @ batch", _floats(4), _floats(2, 4, 3)),
    _matmul("batch @ vector", _floats(2, 3, 4), _floats(4)),
    _matmul("no rows", _floats(0, 4), _floats(4, 3)),
    _matmul("nothing to sum", _floats(2, 0), _floats(0, 3)),
    _matmul("no batch", _floats(0, 2, 3), _floats(3, 2)),
    _matmul("transposed", _floats(4, 3).T, _floats(5, 4).T),
    _matmul("strided batch", _floats(3, 2, 4).transpose(1, 0, 2), _floats(2, 5, 4).transpose(0, 2, 1)),
    Sample(
        "matmul[integer]",
        gpuad.matmul,
        (np.arange(6).reshape(2, 3), np.arange(6, dtype=np.int32).reshape(3, 2)),
        np.matmul,
        grad=False,
    ),
    Sample("matmul[mixed]", gpuad.matmul, (_floats(2, 3), np.arange(6).reshape(3, 2)), np.matmul, dtypes=("float64",)),
    Sample("matrix_transpose", gpuad.matrix_transpose, (_floats(2, 3, 4),), lambda x: x.swapaxes(1, 2), lambda x: x.mT),
    Sample(
        "vecdot",
        gpuad.vecdot,
        (_floats(3, 4), _floats(4)),
        np.vecdot,
        lambda a, b: (a * b).sum(-1),
        rtol=LOOSE,
        dtypes=EVERY,
    ),
    Sample(
        "vecdot[axis=-2]",
        lambda a, b: gpuad.vecdot(a, b, axis=-2),
        (_floats(3, 4), _floats(2, 3, 1)),
        lambda a, b: np.vecdot(a, b, axis=-2),
        rtol=LOOSE,
    ),
    Sample("outer", gpuad.outer, (_floats(3), _floats(4)), np.outer, lambda a, b: a.outer(b)),
    Sample(
        "tensordot[2]",
        gpuad.tensordot,
        (_floats(2, 3, 4), _floats(3, 4, 5)),
        np.tensordot,
        lambda a, b: __import__("torch").tensordot(a, b, 2),
        rtol=LOOSE,
    ),
    Sample(
        "tensordot[axes]",
        lambda a, b: gpuad.tensordot(a, b, axes=((0, -1), (2, 0))),
        (_floats(2, 3, 4), _floats(4, 5, 2)),
        lambda a, b: np.tensordot(a, b, axes=((0, 2), (2, 0))),
        rtol=LOOSE,
    ),
    Sample(
        "tensordot[0]",
        lambda a, b: gpuad.tensordot(a, b, axes=0),
        (_floats(2, 3), _floats(2)),
        lambda a, b: np.tensordot(a, b, axes=0),
    ),
    _einsum("ij,jk->ik", (3, 4), (4, 5)),
    _einsum("ij,jk", (3, 4), (4, 5)),
    _einsum("bhqd,bhkd->bhqk", (2, 3, 4, 5), (2, 3, 2, 5)),
    _einsum("btc,dc->btd", (2, 3, 4), (5, 4)),
    _einsum("...ij,...jk->...ik", (2, 1, 3, 4), (3, 4, 2)),
    _einsum("b...i,bi->b...", (2, 3, 4), (2, 4)),
    _einsum("ii->i", (3, 3)),
    _einsum("ii", (3, 3)),
    _einsum("iij->ji", (3, 3, 2)),
    _einsum("ij->ji", (2, 3)),
    _einsum("ij->", (2, 3)),
    _einsum("i,j,k->kij", (2,), (3,), (4,)),
    _einsum("ij,jk,kl,lm->im", (2, 3), (3, 4), (4, 2), (2, 3)),
    _einsum("ij,ij->ij", (2, 3), (2, 3)),
    _einsum("ij,j->j", (2, 3), (3,)),
    _einsum("ij,j->ij", (2, 3), (1,)),
    _einsum("...,...", (2, 3), (3,)),
    _einsum(",ij->ji", (), (2, 3)),
]
