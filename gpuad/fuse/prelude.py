"""What stands before the text of a kernel, so that one text means the same to NVRTC and to the host's compiler.

Three macros: DEVICE before a function that kernels call, KERNEL before an entry, LOOP(i, n) for what a GPU spreads
over threads.  Half types are 16 bits of storage, read by `widen` and written by `to_float16` and `to_bfloat16`; they
need no header of CUDA's.
"""

from __future__ import annotations

import numpy as np

from ..dtype import DType, compute_dtype

# Every number means the same on both processors: no contraction, no shortcuts, signed integers that wrap.
CUDA_FLAGS = ("--std=c++17", "--fmad=false")
HOST_FLAGS = ("-std=c++17", "-ffp-contract=off", "-fwrapv")

_TYPES = """
using int8 = signed char;
using int16 = short;
using int32 = int;
using int64 = long long;
using uint8 = unsigned char;
using uint16 = unsigned short;
using uint32 = unsigned int;
using uint64 = unsigned long long;
struct float16 { uint16 bits; };
struct bfloat16 { uint16 bits; };
"""

_HALVES = """
DEVICE float widen(bfloat16 h) { return float_of(uint32(h.bits) << 16); }
DEVICE bfloat16 to_bfloat16(float x) {
    const uint32 b = bits_of(x);  // to nearest, ties to even; a nan stays one
    return {x != x ? uint16(b >> 16 | 64) : uint16((b + 0x7fff + (b >> 16 & 1)) >> 16)};
}
"""

CUDA_PRELUDE = (
    _TYPES
    + """
#define DEVICE __device__ __forceinline__
#define KERNEL extern "C" __global__ void
#define LOOP(i, n) \\
    for (int64 i = blockIdx.x * int64(blockDim.x) + threadIdx.x; i < (n); i += int64(blockDim.x) * gridDim.x)
#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#define NAN __int_as_float(0x7fc00000)
#endif
DEVICE uint32 bits_of(float x) { return __float_as_uint(x); }
DEVICE float float_of(uint32 b) { return __uint_as_float(b); }
DEVICE float widen(float16 h) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(h.bits));
    return x;
}
DEVICE float16 to_float16(float x) {
    float16 h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h.bits) : "f"(x));
    return h;
}
"""
    + _HALVES
)

HOST_PRELUDE = (
    """
#include <cmath>
#include <cstring>
using namespace std;
"""
    + _TYPES
    + """
#define DEVICE static inline
#define KERNEL extern "C" void
#define LOOP(i, n) for (int64 i = 0; i < (n); ++i)
template <typename To, typename From> DEVICE To same_bits(From x) {
    To y;
    memcpy(&y, &x, sizeof y);
    return y;
}
DEVICE uint32 bits_of(float x) { return same_bits<uint32>(x); }
DEVICE float float_of(uint32 b) { return same_bits<float>(b); }
DEVICE float widen(float16 h) { return float(same_bits<_Float16>(h.bits)); }
DEVICE float16 to_float16(float x) { return {same_bits<uint16>(_Float16(x))}; }
"""
    + _HALVES
)

_C_NAMES: dict[DType, str] = {np.dtype(np.float32): "float", np.dtype(np.float64): "double", np.dtype(np.bool_): "bool"}


def c_name(dtype: DType) -> str:
    """What the text calls `dtype`."""
    return _C_NAMES.get(dtype) or dtype.name


def widened(expression: str, dtype: DType) -> str:
    """A stored element as arithmetic takes it."""
    return expression if compute_dtype(dtype) == dtype else f"widen({expression})"


def narrowed(expression: str, dtype: DType) -> str:
    """A result of arithmetic as memory takes it."""
    return expression if compute_dtype(dtype) == dtype else f"to_{dtype.name}({expression})"


def rounded(expression: str, dtype: DType) -> str:
    """A result of arithmetic with no more digits than `dtype` has."""
    return expression if compute_dtype(dtype) == dtype else f"widen(to_{dtype.name}({expression}))"
