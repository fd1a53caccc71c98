"""What is measured, the most important first, and the bytes that each case has to move."""

from __future__ import annotations

import math
from dataclasses import dataclass

GPUAD, TORCH, COMPILE, JAX = "gpuad", "torch", "torch.compile", "jax"
LIBRARIES = (GPUAD, TORCH, COMPILE, JAX)
EAGER, KERNELS = (GPUAD, TORCH), (GPUAD, TORCH, COMPILE)

ITEMSIZE = {"float32": 4, "bfloat16": 2}
SHORT = {"float32": "f32", "bfloat16": "bf16"}

# Arrays of the size of the input that are read or written, each once: forward, then backward (of what forward kept and
# of the cotangent, to the gradient).
TRAFFIC = {
    "gelu(x*w+b)*tanh(x)": (2, 3),
    "relu(x*w+b)*x-x/2": (2, 3),
    "softmax": (2, 3),
    "log_softmax": (2, 3),
    "layer_norm": (2, 3),
    "rms_norm": (2, 3),
    "cross_entropy": (1, 2),
    "dropout": (2, 2),
    "sum over rows": (1, None),
    "sum of all": (1, None),
    "attention": (4, 8),  # q, k, v and the result; those, its cotangent and three gradients
}


@dataclass(frozen=True)
class GPTSizes:
    """The sizes of a GPT as gpuad's GPTConfig names them, and the batch."""

    batch: int
    vocabulary: int = 50304
    length: int = 1024
    layers: int = 12
    heads: int = 12
    width: int = 768


@dataclass(frozen=True)
class Case:
    """One thing to measure.  `kind` says how: see `measure.measure`."""

    name: str
    kind: str
    operation: str = ""
    shape: tuple[int, ...] = ()
    dtype: str = "float32"
    nbytes: int = 0  # that must move
    flops: int = 0
    libraries: tuple[str, ...] = KERNELS
    gpt: GPTSizes | None = None


def find_cases(tiny: bool) -> list[Case]:
    """Every case, the most important first.  Tiny sizes are for machines without a GPU; their times say nothing."""
    elements = (3001,) if tiny else (10**8,)
    narrow, wide, classes = ((37, 24), (21, 40), (19, 101)) if tiny else ((8192, 768), (8192, 4096), (4096, 50257))
    tall = (130, 24) if tiny else (65536, 3072)
    found = [_copy(1 << 16 if tiny else 1 << 32), _product(64 if tiny else 8192, "float32")]
    found += [_product(64 if tiny else 8192, "bfloat16")]
    for dtype in ("float32", "bfloat16"):
        found += _both("gelu(x*w+b)*tanh(x)", elements, dtype)
    found += _gpts(tiny)
    found += _both("layer_norm", narrow, "bfloat16") + _both("softmax", wide, "float32")
    found += _both("cross_entropy", classes, "bfloat16")
    found += _both("sum over rows", wide, "float32")
    found += _attention(tiny)
    found += _hand_written(tiny)
    found += [Case("MLP 784-256-128-10, batch 128, Adam", "mlp", shape=(128, 784, 256, 128, 10), libraries=LIBRARIES)]
    found += _both("sum over rows", tall, "bfloat16") + _both("sum of all", elements, "float32")
    found += _both("relu(x*w+b)*x-x/2", elements, "float32")
    found += _both("dropout", elements, "float32")
    found += _both("layer_norm", wide, "float32") + _both("rms_norm", wide, "float32")
    found += _both("rms_norm", narrow, "bfloat16") + _both("layer_norm", narrow, "float32")
    found += _both("cross_entropy", classes, "float32") + _both("cross_entropy", wide, "float32")
    found += _both("softmax", classes, "float32") + _both("softmax", narrow, "float32")
    found += _both("softmax", wide, "bfloat16")
    found += _both("log_softmax", classes, "float32") + _both("log_softmax", wide, "float32")
    return found


def _copy(nbytes: int) -> Case:
    """A copy on the device of half as many bytes, each read and written."""
    return Case("copy on the device", "copy", shape=(nbytes // 2,), nbytes=nbytes, libraries=EAGER)


def _product(n: int, dtype: str) -> Case:
    name = f"matmul {n}x{n}x{n} {SHORT[dtype]}"
    return Case(name, "forward", "matmul", (n, n), dtype, 3 * n * n * ITEMSIZE[dtype], 2 * n**3, libraries=EAGER)


def _both(operation: str, shape: tuple[int, ...], dtype: str) -> list[Case]:
    """Forward and, where there is something to it, backward."""
    size = math.prod(shape) * ITEMSIZE[dtype]
    where = f"{shape[0]:.0e}".replace("e+0", "e") if shape == (10**8,) else str(list(shape))
    return [
        Case(f"{operation} {way} {where} {SHORT[dtype]}", kind, operation, shape, dtype, arrays * size)
        for way, kind, arrays in zip(("fwd", "bwd"), ("forward", "backward"), TRAFFIC[operation])
        if arrays is not None
    ]


def _attention(tiny: bool) -> list[Case]:
    """Causal attention; the products that a causal mask leaves are half of all, and backward has 2.5 times as many."""
    shape = (2, 2, 40, 16) if tiny else (8, 12, 1024, 64)
    batch, heads, length, features = shape
    forward = 2 * batch * heads * length * length * features
    size = math.prod(shape) * ITEMSIZE["bfloat16"]
    return [
        Case(f"attention {way} {list(shape)} bf16", kind, "attention", shape, "bfloat16", n * size, flops, EAGER)
        for way, kind, n, flops in (("fwd", "forward", 4, forward), ("bwd", "backward", 8, forward * 5 // 2))
    ]


def _hand_written(tiny: bool) -> list[Case]:
    """The gradient of an embedding, AdamW and the norm of the gradients of GPT-2 124M."""
    rows, width, picked = (50, 24, 64) if tiny else (50304, 768, 8192)
    sizes = GPTSizes(1, 64, 16, 1, 2, 32) if tiny else GPTSizes(1)
    count = sum(math.prod(shape) for shape in gpt_shapes(sizes).values())
    name = "" if tiny else ", 124M parameters"
    found = [
        Case(
            f"embedding bwd [{rows}, {width}] {SHORT[dtype]}",
            "backward",
            "embedding",
            (rows, width, picked),
            dtype,
            (rows + picked) * width * ITEMSIZE[dtype] + 8 * picked,
            libraries=EAGER,
        )
        for dtype in ("bfloat16", "float32")
    ]
    # read p, m, v and g, write p, m and v; the norm reads g
    found.append(Case(f"AdamW{name} f32", "adamw", nbytes=28 * count, libraries=EAGER, gpt=sizes))
    found.append(Case(f"norm and clip{name} f32", "clip", nbytes=12 * count, libraries=EAGER, gpt=sizes))
    return found


def _gpts(tiny: bool) -> list[Case]:
    found = []
    for batch in (8, 64):
        sizes = GPTSizes(2, 64, 16, 1, 2, 32) if tiny else GPTSizes(batch)
        name = f"GPT {'tiny' if tiny else '124M'}, T={sizes.length}, batch {sizes.batch} bf16"
        found.append(Case(name, "gpt", dtype="bfloat16", libraries=LIBRARIES, gpt=sizes))
    return found[:1] if tiny else found


def gpt_shapes(sizes: GPTSizes) -> dict[str, tuple[int, ...]]:
    """The parameters of a GPT by the names that every library here gives them.  Weights are [out, in]."""
    c = sizes.width
    shapes: dict[str, tuple[int, ...]] = {
        "token.weight": (sizes.vocabulary, c),
        "position.weight": (sizes.length, c),
        "norm.weight": (c,),
        "norm.bias": (c,),
    }
    for k in range(sizes.layers):
        for name in ("norm1", "norm2"):
            shapes |= {f"blocks.{k}.{name}.weight": (c,), f"blocks.{k}.{name}.bias": (c,)}
        for name, out, into in (
            ("attention.qkv", 3 * c, c),
            ("attention.out", c, c),
            ("up", 4 * c, c),
            ("down", c, 4 * c),
        ):
            shapes |= {f"blocks.{k}.{name}.weight": (out, into), f"blocks.{k}.{name}.bias": (out,)}
    return shapes
