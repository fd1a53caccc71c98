// What CUDA's text knows without a header: vector types, numbers, bits and mathematical functions, for the CPU.
#pragma once
#include <math.h>  // with C++'s overloads in the global namespace, as in CUDA
#include <stdint.h>
#include <stdio.h>
#include <string.h>

// --- vector types -------------------------------------------------------------------------------

#define VECTORS(T, name, size)                                                                                       \
    struct name##1 { T x; };                                                                                         \
    struct alignas(2 * size) name##2 { T x, y; };                                                                    \
    struct name##3 { T x, y, z; };                                                                                   \
    struct alignas(4 * size < 16 ? 4 * size : 16) name##4 { T x, y, z, w; };                                         \
    inline name##1 make_##name##1(T x) { return {x}; }                                                               \
    inline name##2 make_##name##2(T x, T y) { return {x, y}; }                                                       \
    inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                                               \
    inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
VECTORS(signed char, char, 1)
VECTORS(unsigned char, uchar, 1)
VECTORS(short, short, 2)
VECTORS(unsigned short, ushort, 2)
VECTORS(int, int, 4)
VECTORS(unsigned, uint, 4)
VECTORS(long long, longlong, 8)
VECTORS(unsigned long long, ulonglong, 8)
VECTORS(float, float, 4)
VECTORS(double, double, 8)
#undef VECTORS

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// --- the bits of numbers ------------------------------------------------------------------------

namespace stand_in {
template <class To, class From> To same_bits(From x) {
    static_assert(sizeof(To) == sizeof(From), "the bits of one number as another of its size");
    To y;
    memcpy(&y, &x, sizeof y);
    return y;
}
}  // namespace stand_in

inline int __float_as_int(float x) { return stand_in::same_bits<int>(x); }
inline unsigned __float_as_uint(float x) { return stand_in::same_bits<unsigned>(x); }
inline float __int_as_float(int x) { return stand_in::same_bits<float>(x); }
inline float __uint_as_float(unsigned x) { return stand_in::same_bits<float>(x); }
inline long long __double_as_longlong(double x) { return stand_in::same_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return stand_in::same_bits<double>(x); }
inline int __double2loint(double x) { return int(__double_as_longlong(x)); }
inline int __double2hiint(double x) { return int(__double_as_longlong(x) >> 32); }
inline double __hiloint2double(int high, int low) {
    return __longlong_as_double(static_cast<long long>(uint64_t(uint32_t(high)) << 32 | uint32_t(low)));
}

// --- integers -----------------------------------------------------------------------------------

inline int __mulhi(int x, int y) { return int((long long)x * y >> 32); }
inline unsigned __umulhi(unsigned x, unsigned y) { return unsigned((unsigned long long)x * y >> 32); }
inline long long __mul64hi(long long x, long long y) { return (long long)((__int128)x * y >> 64); }
inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
    return (unsigned long long)((unsigned __int128)x * y >> 64);
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) {
    unsigned y = 0;
    for (int i = 0; i < 32; ++i) y |= (x >> i & 1) << (31 - i);
    return y;
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    const uint64_t bytes = uint64_t(y) << 32 | x;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) result |= unsigned(bytes >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
    return result;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by) {
    return unsigned((uint64_t(high) << 32 | low) << (by & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned by) {
    return unsigned((uint64_t(high) << 32 | low) >> (by & 31));
}

// min and max exist for the pairs of types for which CUDA has them: others are as ambiguous as there.
#define LEAST(R, A, B)                                                                                   \
    inline R min(A a, B b) { return static_cast<R>(b) < static_cast<R>(a) ? static_cast<R>(b) : static_cast<R>(a); } \
    inline R max(A a, B b) { return static_cast<R>(a) < static_cast<R>(b) ? static_cast<R>(b) : static_cast<R>(a); }
#define LEAST_WITH_UNSIGNED(T)           \
    LEAST(T, T, T)                       \
    LEAST(unsigned T, unsigned T, unsigned T) \
    LEAST(unsigned T, T, unsigned T)     \
    LEAST(unsigned T, unsigned T, T)
LEAST_WITH_UNSIGNED(int)
LEAST_WITH_UNSIGNED(long)
LEAST_WITH_UNSIGNED(long long)
#undef LEAST_WITH_UNSIGNED
#undef LEAST
inline float min(float a, float b) { return fminf(a, b); }  // of a number and a nan the number, as in CUDA
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
inline double min(float a, double b) { return fmin(double(a), b); }
inline double max(float a, double b) { return fmax(double(a), b); }
inline double min(double a, float b) { return fmin(a, double(b)); }
inline double max(double a, float b) { return fmax(a, double(b)); }

// --- functions that C++ lacks -------------------------------------------------------------------

inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float rsqrtf(float x) { return float(1.0 / sqrt(double(x))); }
inline float rsqrt(float x) { return rsqrtf(x); }
inline float exp10(float x) { return exp10f(x); }
inline double sinpi(double x) {
    const double r = x - 2 * rint(x / 2);  // exact, from -1 to 1
    return fabs(r) == 1 ? copysign(0.0, x) : sin(r * M_PI);
}
inline double cospi(double x) {
    const double r = fabs(x - 2 * rint(x / 2));
    return r == 0.5 ? 0.0 : cos(r * M_PI);
}
inline float sinpif(float x) { return float(sinpi(double(x))); }
inline float cospif(float x) { return float(cospi(double(x))); }
inline float sinpi(float x) { return sinpif(x); }
inline float cospi(float x) { return cospif(x); }
inline void sincos(float x, float* sine, float* cosine) { sincosf(x, sine, cosine); }
inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1) : 0; }
inline float fdividef(float x, float y) { return x / y; }

// Fast ones are exact here, and rounded ones are what the processor does anyway.
inline float __expf(float x) { return expf(x); }
inline float __exp10f(float x) { return exp10f(x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frsqrt_rn(float x) { return rsqrtf(x); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline double __dadd_rn(double x, double y) { return x + y; }
inline double __dsub_rn(double x, double y) { return x - y; }
inline double __dmul_rn(double x, double y) { return x * y; }
inline double __ddiv_rn(double x, double y) { return x / y; }
inline double __dsqrt_rn(double x) { return sqrt(x); }
inline double __fma_rn(double x, double y, double z) { return fma(x, y, z); }

// A float out of range becomes the nearest integer, and nan becomes 0.
namespace stand_in {
template <class Integer, class Float> Integer nearest(Float x, Float low, Float above) {
    return x != x ? Integer(0) : x < low ? Integer(low) : x < above ? Integer(x) : Integer(~Integer(0)) > 0
        ? Integer(~Integer(0)) : Integer(~(Integer(1) << (8 * sizeof(Integer) - 1)));
}
}  // namespace stand_in
inline int __float2int_rz(float x) { return stand_in::nearest<int>(truncf(x), -0x1p31f, 0x1p31f); }
inline int __float2int_rn(float x) { return __float2int_rz(rintf(x)); }
inline int __float2int_rd(float x) { return __float2int_rz(floorf(x)); }
inline int __float2int_ru(float x) { return __float2int_rz(ceilf(x)); }
inline unsigned __float2uint_rz(float x) { return stand_in::nearest<unsigned>(truncf(x), 0.0f, 0x1p32f); }
inline unsigned __float2uint_rn(float x) { return __float2uint_rz(rintf(x)); }
inline long long __float2ll_rz(float x) { return stand_in::nearest<long long>(truncf(x), -0x1p63f, 0x1p63f); }
inline long long __float2ll_rn(float x) { return __float2ll_rz(rintf(x)); }
inline int __double2int_rz(double x) { return stand_in::nearest<int>(trunc(x), -0x1p31, 0x1p31); }
inline int __double2int_rn(double x) { return __double2int_rz(rint(x)); }
inline long long __double2ll_rz(double x) { return stand_in::nearest<long long>(trunc(x), -0x1p63, 0x1p63); }
inline long long __double2ll_rn(double x) { return __double2ll_rz(rint(x)); }
inline float __int2float_rn(int x) { return float(x); }
inline float __uint2float_rn(unsigned x) { return float(x); }
inline float __ll2float_rn(long long x) { return float(x); }
inline float __ull2float_rn(unsigned long long x) { return float(x); }
inline double __int2double_rn(int x) { return double(x); }
inline double __ll2double_rn(long long x) { return double(x); }
inline float __double2float_rn(double x) { return float(x); }
