"""Samples of softmax and its losses, normalizations, look-up, rotation and attention."""

import math
from functools import partial

import numpy as np
import scipy.special

from gpuad.ops import nn
from gpuad.ops.attention import scaled_dot_product_attention

from . import Sample

rng = np.random.default_rng(5)
EVERY = ("float32", "float64", "float16", "bfloat16")


def _floats(*shape):
    return rng.standard_normal(shape)


def _torch(name):
    """A function of torch.nn.functional, imported when it is called."""
    return lambda *args, **options: getattr(__import__("torch").nn.functional, name)(*args, **options)


# --- references -------------------------------------------------------------------------------


def _losses(x, target, ignored=-100, smoothing=0.0):
    """The loss of each row, and which rows count."""
    logs = scipy.special.log_softmax(x, -1)
    counted = target != ignored
    wanted = np.take_along_axis(logs, np.where(counted, target, 0)[..., None], -1)[..., 0]
    return np.where(counted, -(1 - smoothing) * wanted - smoothing * logs.mean(-1), 0), counted


def _mean_loss(x, target, **options):
    losses, counted = _losses(x, target, **options)
    return losses.sum() / np.asarray(counted.sum(), x.dtype)


def _layer_norm(x, weight=1.0, bias=0.0, eps=1e-5):
    centered = x - x.mean(-1, keepdims=True)
    return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + eps) * weight + bias


def _rms_norm(x, weight=1.0, eps=1e-6):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def _rotated(x, base=10000.0, offset=0, interleaved=False):
    """By multiplication of complex numbers."""
    n = x.shape[-1] // 2
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :n], x[..., n:])
    angle = (offset + np.arange(x.shape[-2]))[:, None] / base ** (np.arange(n) / n)
    z = (a + 1j * b) * np.exp(1j * angle)
    pair = np.stack([z.real, z.imag], -1) if interleaved else np.concatenate([z.real, z.imag], -1)
    return pair.reshape(x.shape).astype(x.dtype)


def _attention(q, k, v, mask=None, causal=False, scale=None):
    scores = q @ k.swapaxes(-1, -2) * np.asarray(1 / math.sqrt(q.shape[-1]) if scale is None else scale, q.dtype)
    if mask is not None:
        scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
    if causal:
        scores = np.where(np.tri(*scores.shape[-2:], dtype=bool), scores, -np.inf)
    e = np.exp(scores - np.maximum(scores.max(-1, keepdims=True), np.finfo(q.dtype).min))
    return e / np.maximum(e.sum(-1, keepdims=True), np.asarray(0.5, q.dtype)) @ v


# --- samples ----------------------------------------------------------------------------------

x, weight, bias = _floats(3, 4, 5), _floats(5), _floats(5)
target = rng.integers(0, 5, (3, 4))
partly = np.where(rng.random((3, 4)) < 0.3, -100, target)
q, k, v = _floats(2, 3, 4, 6), _floats(2, 3, 5, 6), _floats(2, 3, 5, 3)
mask = rng.random((4, 5)) < 0.6
mask[:, 0] = True
hidden = mask.copy()
hidden[1] = False  # the second query sees no key: zeros here, nan in PyTorch


def _loss(name, reference, targets=target, **options):
    def torch(x, target):
        result = _torch("cross_entropy")(x.reshape(-1, 5), target.reshape(-1), **options)
        return result.reshape(target.shape) if options.get("reduction") == "none" else result

    call = partial(nn.cross_entropy, **options)
    return Sample(f"cross_entropy[{name}]", call, (x, targets), reference, torch, rtol=3e-5)


def _attend(name, *args, torch=True, **options):
    def theirs(q, k, v, mask=None):
        named = {{"causal": "is_causal"}.get(key, key): value for key, value in options.items()}
        return _torch("scaled_dot_product_attention")(q, k, v, attn_mask=mask, **named)

    def ours(q, k, v, mask=None):
        return scaled_dot_product_attention(q, k, v, mask=mask, **options)

    reference = partial(_attention, **options)
    return Sample(f"attention[{name}]", ours, args, reference, theirs if torch else None, rtol=5e-5)


SAMPLES = [
    Sample("softmax", nn.softmax, (x,), partial(scipy.special.softmax, axis=-1), lambda x: x.softmax(-1), dtypes=EVERY),
    Sample("softmax[1-D]", nn.softmax, (weight,), scipy.special.softmax, lambda x: x.softmax(0)),
    Sample(
        "softmax[axis=0]",
        partial(nn.softmax, axis=0),
        (x,),
        partial(scipy.special.softmax, axis=0),
        lambda x: x.softmax(0),
    ),
    Sample("softmax[no rows]", nn.softmax, (np.zeros((0, 3)),), np.copy, lambda x: x.softmax(-1)),
    Sample("softmax[no columns]", nn.softmax, (np.zeros((3, 0)),), np.copy, lambda x: x.softmax(-1)),
    Sample("softmax[transposed]", nn.softmax, (_floats(4, 3).T,), partial(scipy.special.softmax, axis=-1)),
    Sample(
        "log_softmax",
        nn.log_softmax,
        (x,),
        partial(scipy.special.log_softmax, axis=-1),
        lambda x: x.log_softmax(-1),
        dtypes=EVERY,
    ),
    Sample(
        "log_softmax[axis=1]",
        partial(nn.log_softmax, axis=1),
        (x,),
        partial(scipy.special.log_softmax, axis=1),
        lambda x: x.log_softmax(1),
    ),
    _loss("mean", _mean_loss),
    _loss("partly ignored", _mean_loss, partly),
    _loss("ignore_index", partial(_mean_loss, ignored=2), ignore_index=2),
    _loss("sum", lambda x, t: _losses(x, t)[0].sum(), reduction="sum"),
    _loss("none", lambda x, t: _losses(x, t)[0], partly, reduction="none"),
    _loss("smoothing", partial(_mean_loss, smoothing=0.1), partly, label_smoothing=0.1),
    Sample(
        "cross_entropy[one row]",
        nn.cross_entropy,
        (weight, np.array(2, np.int32)),
        _mean_loss,
        lambda x, t: _torch("cross_entropy")(x, t.long()),
        rtol=3e-5,
    ),
    Sample(
        "layer_norm",
        nn.layer_norm,
        (x, weight, bias),
        _layer_norm,
        lambda x, w, b: _torch("layer_norm")(x, (5,), w, b),
        rtol=3e-5,
        dtypes=("float32", "float64", "bfloat16"),
    ),
    Sample("layer_norm[plain]", nn.layer_norm, (x,), _layer_norm, lambda x: _torch("layer_norm")(x, (5,)), rtol=3e-5),
    Sample(
        "layer_norm[weight, eps]",
        partial(nn.layer_norm, eps=0.1),
        (x, weight),
        partial(_layer_norm, eps=0.1),
        lambda x, w: _torch("layer_norm")(x, (5,), w, None, 0.1),
        rtol=3e-5,
    ),
    Sample("layer_norm[1-D]", nn.layer_norm, (weight, bias), _layer_norm, rtol=3e-5),
    Sample("layer_norm[no rows]", nn.layer_norm, (np.zeros((0, 5)), weight, bias), _layer_norm),
    Sample(
        "rms_norm",
        nn.rms_norm,
        (x, weight),
        _rms_norm,
        lambda x, w: _torch("rms_norm")(x, (5,), w, 1e-6),
        rtol=3e-5,
        dtypes=EVERY,
    ),
    Sample(
        "rms_norm[plain]",
        nn.rms_norm,
        (x,),
        _rms_norm,
        lambda x: _torch("rms_norm")(x, (5,), None, 1e-6),
        rtol=3e-5,
    ),
    Sample(
        "embedding",
        nn.embedding,
        (_floats(6, 3), rng.integers(0, 6, (2, 4))),
        lambda w, i: w[i],
        lambda w, i: _torch("embedding")(i, w),
        dtypes=EVERY,
    ),
    Sample("embedding[no indices]", nn.embedding, (_floats(6, 3), np.zeros((0,), np.int32)), lambda w, i: w[i]),
    Sample("rotary_embedding", nn.rotary_embedding, (_floats(2, 3, 6),), _rotated),
    Sample(
        "rotary_embedding[offset, base]",
        partial(nn.rotary_embedding, offset=7, base=100.0),
        (_floats(3, 4),),
        partial(_rotated, offset=7, base=100.0),
    ),
    Sample(
        "rotary_embedding[interleaved]",
        partial(nn.rotary_embedding, interleaved=True),
        (_floats(2, 3, 6),),
        partial(_rotated, interleaved=True),
    ),
    _attend("plain", q, k, v),
    _attend("2-D", q[0, 0], k[0, 0], v[0, 0]),
    _attend("scale", q, k, v, scale=0.3),
    _attend("causal", q, k, v, causal=True),
    _attend("causal, more queries", k, q, v[..., :4, :], causal=True),
    _attend("mask", q, k, v, mask),
    _attend("added mask", q, k, v, _floats(3, 1, 5)),
    _attend("nothing to see", q, k, v, hidden, torch=False),
    _attend("mask and causal", q, k, v, mask, causal=True, torch=False),
]
