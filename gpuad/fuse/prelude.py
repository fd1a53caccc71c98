"""What stands before the text of a kernel, so that one text means the same to NVRTC and to the host's compiler.

DEVICE stands before a function that kernels call, MEMBER_OF_STRUCT before one of a struct, KERNEL before an entry;
teams.py has the loops.  Half types are 16 bits of storage, read by `widen` and written by `to_float16` and
`to_bfloat16`; they need no header of CUDA's.
"""

from __future__ import annotations

import numpy as np

from ..dtype import DType, compute_dtype
from .functions import HOST_FUNCTIONS
from .teams import CUDA_TEAMS, HOST_TEAMS

# Every number means the same on both processors: no contraction, no shortcuts, signed integers that wrap.
CUDA_FLAGS = ("--std=c++17", "--fmad=false")
HOST_FLAGS = ("-std=c++17", "-ffp-contract=off", "-fwrapv")
# A GPU's kernel says how many elements a group has, and whether sums over columns fit in shared memory.
CUDA_DEFAULTS = """
#ifndef WIDTH
#define WIDTH 4
#endif
#ifndef COLUMNS_IN_SHARED
#define COLUMNS_IN_SHARED 1
#endif
"""

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

_FUNCTIONS = """
DEVICE float widen(float x) { return x; }
DEVICE double widen(double x) { return x; }
DEVICE float widen(bfloat16 h) { return float_of(uint32(h.bits) << 16); }
DEVICE bfloat16 to_bfloat16(float x) {
    const uint32 b = bits_of(x);  // to nearest, ties to even; a nan stays one
    return {x != x ? uint16(b >> 16 | 64) : uint16((b + 0x7fff + (b >> 16 & 1)) >> 16)};
}

// Philox 4x64-10, as numpy.random.Philox: the words after key (a, b) and counter (c, d, e, f), four at a time.
struct Stream {
    uint64 a, b, c, d, e, f;
    uint64 block = ~uint64(0), w0 = 0, w1 = 0, w2 = 0, w3 = 0;  // the words of the last block that was asked for
    MEMBER_OF_STRUCT uint64 word(uint64 k) {
        if (k / 4 != block) compute(k / 4);
        return k % 4 == 0 ? w0 : k % 4 == 1 ? w1 : k % 4 == 2 ? w2 : w3;
    }
    MEMBER_OF_STRUCT void compute(uint64 asked) {
        uint64 p = a, q = b;
        block = asked;
        w0 = c + asked + 1;
        w1 = d + (w0 < asked + 1);
        w2 = e + (w0 < asked + 1 && w1 == 0);
        w3 = f + (w0 < asked + 1 && w1 == 0 && w2 == 0);
        for (int round = 0; round < 10; ++round) {
            const uint64 high0 = high_word(0xD2E7470EE14C6C93u, w0), low0 = 0xD2E7470EE14C6C93u * w0;
            const uint64 high1 = high_word(0xCA5A826395121157u, w2), low1 = 0xCA5A826395121157u * w2;
            w0 = high1 ^ w1 ^ p;
            w1 = low1;
            w2 = high0 ^ w3 ^ q;
            w3 = low0;
            p += 0x9E3779B97F4A7C15u;
            q += 0xBB67AE8584CAA73Bu;
        }
    }
};
template <typename T> DEVICE T philox_bits(Stream& s, uint64 i) {
    const uint64 each = 8 / sizeof(T);  // the low part of a word first
    return T(s.word(i / each) >> i % each * 8 * sizeof(T));
}
template <typename T> struct Uniform { using word = uint32; };
template <> struct Uniform<double> { using word = uint64; };
DEVICE int kept(double) { return 53; }
DEVICE int kept(float) { return 24; }
DEVICE int kept(float16) { return 11; }
DEVICE int kept(bfloat16) { return 8; }
template <typename T> DEVICE auto philox_uniform(Stream& s, uint64 i) {
    using Word = typename Uniform<T>::word;
    const Word word = philox_bits<Word>(s, i) >> (8 * sizeof(Word) - kept(T()));
    return decltype(widen(T()))(word) / decltype(widen(T()))(Word(1) << kept(T()));
}
template <typename T> DEVICE double philox_normal(Stream& s, uint64 i) {
    using Word = typename Uniform<T>::word;
    const int bits = sizeof(Word) == 8 ? 53 : 32;
    const double scale = 1.0 / double(uint64(1) << bits);
    const double first = double(philox_bits<Word>(s, i / 2 * 2) >> (8 * sizeof(Word) - bits));
    const double second = double(philox_bits<Word>(s, i / 2 * 2 + 1) >> (8 * sizeof(Word) - bits));
    const double turn = second * (4 * scale), quarter = rint(turn);  // the angle in right angles
    const double angle = (turn - quarter) * 1.5707963267948966;
    const int place = int(quarter) + 3 * int(i % 2);  // an odd element is the sine: the cosine, three right angles on
    const double side = place % 2 ? -sin(angle) : cos(angle);
    return (place % 4 < 2 ? side : -side) * sqrt(-2 * log((first + 1.0) * scale));
}
template <typename T> DEVICE T philox_integer(Stream& s, uint64 low, uint64 values, uint64 i) {  // no values: all 2^64
    const uint64 word = s.word(i);
    return T((values == 0 ? word : high_word(word, values)) + low);
}
// What `f` draws for the elements of a group that begins at i.
template <typename T> struct Drawn {
    T element[WIDTH];
    MEMBER_OF_STRUCT T operator[](int j) const { return element[j]; }
};
template <typename F> DEVICE auto drawn(Stream s, int64 i, F f) {
    Drawn<decltype(f(s, i))> found;
    for (int j = 0; j < WIDTH; ++j) found.element[j] = f(s, i + j);
    return found;
}
"""

CUDA_PRELUDE = (
    _TYPES
    + """
#define DEVICE __device__ __forceinline__
#define MEMBER_OF_STRUCT __device__ __forceinline__
#define KERNEL extern "C" __global__ void
#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#define NAN __int_as_float(0x7fc00000)
#endif
DEVICE uint64 high_word(uint64 x, uint64 y) { return __umul64hi(x, y); }
DEVICE uint32 bits_of(float x) { return __float_as_uint(x); }
DEVICE float float_of(uint32 b) { return __uint_as_float(b); }
#ifdef GPUAD_ON_HOST  // the tests compile this text for the CPU, a fibre for each thread
DEVICE float widen(float16 h) {
    _Float16 x;
    __builtin_memcpy(&x, &h, sizeof x);
    return float(x);
}
DEVICE float16 to_float16(float x) {
    const _Float16 y = _Float16(x);
    float16 h;
    __builtin_memcpy(&h, &y, sizeof h);
    return h;
}
#else
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
#endif
"""
    + CUDA_DEFAULTS
    + _FUNCTIONS
    + CUDA_TEAMS
)

HOST_PRELUDE = (
    _TYPES
    + """
#define DEVICE static inline __attribute__((always_inline))
#define MEMBER_OF_STRUCT inline __attribute__((always_inline))
#define KERNEL extern "C" void
#ifndef WIDTH
#define WIDTH 1
#endif
"""
    + HOST_FUNCTIONS
    + """
template <typename To, typename From> DEVICE To same_bits(From x) {
    To y;
    memcpy(&y, &x, sizeof y);
    return y;
}
DEVICE uint64 high_word(uint64 x, uint64 y) { return uint64((unsigned __int128)x * y >> 64); }
DEVICE uint32 bits_of(float x) { return same_bits<uint32>(x); }
DEVICE float float_of(uint32 b) { return same_bits<float>(b); }
DEVICE float widen(float16 h) { return float(same_bits<_Float16>(h.bits)); }
DEVICE float16 to_float16(float x) { return {same_bits<uint16>(_Float16(x))}; }
"""
    + _FUNCTIONS
    + HOST_TEAMS
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
