"""The mathematical functions of the text that a CPU runs, under the names that CUDA has for them.

HOST_FUNCTIONS stands after the types of `prelude.py` and its macro DEVICE, in place of the C library's headers, which
take longer to compile than a kernel.  A function is made of arithmetic and selects alone, so that a loop of it becomes
vector instructions, and gives the same bits on every processor: no fused multiply-add, no estimates of reciprocals.
Subnormal numbers are kept, zeros have their signs, nan gives nan.

The C library is asked for what no select can do well, out of line: fmod, pow of double, and the sine, cosine and
tangent of doubles from `far_angle` on.
"""

from __future__ import annotations

import math

from ..devices.special import FITS
from .fits import POLYNOMIALS

# The largest error for float and for double, in units in the last place of the result.  Functions of float with 0.51
# are computed in double and rounded.
ERRORS: dict[str, tuple[float, float]] = {
    "exp": (1, 1),
    "expm1": (2.2, 2),
    "exp2": (1.2, 1.3),
    "log": (1, 1),
    "log1p": (1.5, 1.5),
    "log2": (0.51, 1),
    "log10": (0.51, 1),
    "pow": (0.6, 1),
    "sin": (1.6, 1),
    "cos": (1.6, 1),
    "tan": (0.51, 2),
    "asin": (0.51, 2),
    "acos": (0.51, 1.5),
    "atan": (0.51, 2),
    "atan2": (0.51, 2),
    "sinh": (2, 2),
    "cosh": (2, 2),
    "tanh": (1.5, 1.5),
    "asinh": (0.51, 2),
    "acosh": (0.51, 2.2),
    "atanh": (0.51, 2),
    "erf": (2, 2),
    "erfc": (4, 3.5),
    "hypot": (0.51, 1.5),
    "sqrt": (0.5, 0.5),
    "rint": (0, 0),
    "floor": (0, 0),
    "ceil": (0, 0),
    "trunc": (0, 0),
    "fmod": (0, 0),
    "copysign": (0, 0),
    "nextafter": (0, 0),
}


def _literal(value: float, dtype: str) -> str:
    return f"{value:.9e}f" if dtype == "float" else f"{value:.17e}"


def _sum(terms: list[str]) -> str:
    """The polynomial with these coefficients, the constant first, in halves that do not wait for each other."""
    if len(terms) == 1:
        return terms[0]
    half = 1 << (len(terms) - 1).bit_length() - 1
    return f"({_sum(terms[:half])} + z{half} * {_sum(terms[half:])})"


def _polynomial(name: str, coefficients: tuple[float, ...], dtype: str) -> str:
    """A function of z1 that evaluates the polynomial; z2, z4, ... are its powers."""
    terms = [_literal(c, dtype) for c in reversed(coefficients)]
    powers = [1 << k for k in range(1, (len(terms) - 1).bit_length())]
    lines = [f"    const {dtype} z{k} = z{k // 2} * z{k // 2};" for k in powers]
    return "\n".join([f"DEVICE {dtype} {name}({dtype} z1) {{", *lines, f"    return {_sum(terms)};", "}"])


def _polynomials() -> str:
    text = []
    for name, both in POLYNOMIALS.items():
        text += [_polynomial(name, c, dtype) for c, dtype in zip(both, ("float", "double")) if c]
    for dtype, fits in (("float", FITS["float32"]), ("double", FITS["float64"])):
        for name, fit in (("erf_near", fits.erf_near), ("erf_far", fits.erf_far)):
            text.append(_polynomial(f"{name}_over", fit.numerator, dtype))
            text.append(_polynomial(f"{name}_under", fit.denominator, dtype))
    return "\n".join(text)


def _erf_constants(name: str, dtype: str) -> str:
    fits = FITS[name]
    parts = (("knee", fits.erf_knee), ("limit", fits.erf_limit), ("gap", fits.erf_gap))
    return "".join(f"    static constexpr {dtype} erf_{n} = {_literal(v, dtype)};\n" for n, v in parts)


def _turns() -> str:
    """1 / (2 pi) in pieces, of which all but the last have 29 bits."""
    digits = "28BE60DB9391054A7F09D5F47D4D377036D8A5664F10E4107F9458EAF7AEF158"
    value, place, lines = int(digits, 16), 4 * len(digits), []
    for k, bits in enumerate((31, 29, 29, 29, 29, 53)):  # the first two bits are 0
        place -= bits
        piece = math.ldexp(value >> place, place - 4 * len(digits))
        lines.append(f"constexpr double turn{k} = {_literal(piece, 'double')};")
        value &= (1 << place) - 1
    return "\n".join(lines)


_LAYOUT = (
    """
#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define memcpy __builtin_memcpy
namespace gpuad {
template <typename T> struct Layout;
template <> struct Layout<float> {
    using Word = uint32;
    static constexpr int digits = 23, bias = 127;
    static constexpr float to_whole = 12582912.0f;  // 1.5 * 2^23: added to a small number, rounds it into the low bits
    static constexpr float least = 1.17549435e-38f, ln2_high = 0.693359375f, ln2_low = -2.12194440055e-4f;
    static constexpr float exp_least = -105.0f, exp_most = 90.0f, erfc_limit = 10.25f, erfc_middle = 2.0f;
"""
    + _erf_constants("float32", "float")
    + """};
template <> struct Layout<double> {
    using Word = uint64;
    static constexpr int digits = 52, bias = 1023;
    static constexpr double to_whole = 6755399441055744.0;
    static constexpr double least = 2.2250738585072014e-308;
    static constexpr double ln2_high = 6.93147180369123816490e-01, ln2_low = 1.90821492927058770002e-10;
    static constexpr double exp_least = -746.0, exp_most = 711.0, erfc_limit = 27.5, erfc_middle = 4.0;
"""
    + _erf_constants("float64", "double")
    + """};
template <typename T> using Word = typename Layout<T>::Word;
DEVICE uint32 word_of(float x) { return __builtin_bit_cast(uint32, x); }
DEVICE uint64 word_of(double x) { return __builtin_bit_cast(uint64, x); }
DEVICE float number_of(uint32 word) { return __builtin_bit_cast(float, word); }
DEVICE double number_of(uint64 word) { return __builtin_bit_cast(double, word); }

// Exact, and one instruction each on most processors.
DEVICE float sqrt(float x) { return __builtin_sqrtf(x); }
DEVICE double sqrt(double x) { return __builtin_sqrt(x); }
DEVICE float rint(float x) { return __builtin_rintf(x); }
DEVICE double rint(double x) { return __builtin_rint(x); }
DEVICE float floor(float x) { return __builtin_floorf(x); }
DEVICE double floor(double x) { return __builtin_floor(x); }
DEVICE float ceil(float x) { return __builtin_ceilf(x); }
DEVICE double ceil(double x) { return __builtin_ceil(x); }
DEVICE float trunc(float x) { return __builtin_truncf(x); }
DEVICE double trunc(double x) { return __builtin_trunc(x); }
DEVICE float abs(float x) { return __builtin_fabsf(x); }
DEVICE double abs(double x) { return __builtin_fabs(x); }
DEVICE int32 abs(int32 x) { return x < 0 ? -x : x; }
DEVICE int64 abs(int64 x) { return x < 0 ? -x : x; }
DEVICE float copysign(float a, float b) { return __builtin_copysignf(a, b); }
DEVICE double copysign(double a, double b) { return __builtin_copysign(a, b); }
DEVICE bool signbit(float x) { return word_of(x) >> 31; }
DEVICE bool signbit(double x) { return word_of(x) >> 63; }
template <typename T> DEVICE T min(T a, T b) { return b < a ? b : a; }
template <typename T> DEVICE T max(T a, T b) { return a < b ? b : a; }
"""
)

_EXPONENTIALS = """
// e^x = 2^k * (1 + over), with |x - k log 2| at most log(2) / 2.  `power` has k in its low bits.
template <typename T> struct Parts { T over; Word<T> power; };
template <typename T> DEVICE Parts<T> parted(T x) {
    using L = Layout<T>;
    const T near = x * T(1.4426950408889634) + L::to_whole, k = near - L::to_whole;
    const T high = x - k * L::ln2_high, low = k * L::ln2_low, r = high - low;  // high is exact
    return {high - (low - r * r * exp_tail(r)), word_of(near)};
}
// y * 2^k, rounded once, for |k| <= 2 * bias.
template <typename T> DEVICE T scaled(T y, Word<T> power) {
    using L = Layout<T>;
    const Word<T> both = power + Word<T>(2 * L::bias), first = both >> 1;
    return y * number_of(first << L::digits) * number_of((both - first) << L::digits);
}
// 2^k for a normal result.
template <typename T> DEVICE T power_of_two(Word<T> power) {
    return number_of((power + Word<T>(Layout<T>::bias)) << Layout<T>::digits);
}
// c ? a : b without a branch, which GCC would follow into all that is computed from the result.
template <typename T> DEVICE T chosen(bool c, T a, T b) {
    const Word<T> mask = -Word<T>(c);
    return number_of((word_of(a) & mask) | (word_of(b) & ~mask));
}
template <typename T> DEVICE T within(T x, T low, T high) {
    const T below = chosen(x > high, high, x);
    return chosen(below < low, low, below);
}
// e^x / 2.
template <typename T> DEVICE T half_exp(T x) {
    const Parts<T> p = parted(within(x, Layout<T>::exp_least, Layout<T>::exp_most));
    return scaled(T(1) + p.over, p.power - 1);
}
// e^x for |x| <= 80.
template <typename T> DEVICE T exp_near(T x) {
    const Parts<T> p = parted(x);
    return (T(1) + p.over) * power_of_two<T>(p.power);
}
template <typename T> DEVICE T exp_any(T x) {
    using L = Layout<T>;
    const Parts<T> p = parted(within(x, L::exp_least, L::exp_most));
    return scaled(T(1) + p.over, p.power);
}
template <typename T> DEVICE T expm1_any(T x) {
    using L = Layout<T>;
    const Parts<T> p = parted(within(x, T(-40), L::exp_most));
    const T s = power_of_two<T>(p.power);
    const T y = x > T(40) ? scaled(T(1) + p.over, p.power) : s * p.over + (s - T(1));
    return x == T(0) ? x : y;  // a zero keeps its sign
}
template <typename T> DEVICE T exp2_any(T x) {
    using L = Layout<T>;
    const T c = within(x, T(-L::bias - L::digits - 2), T(L::bias + 2));
    const T near = c + L::to_whole, r = c - (near - L::to_whole);
    return scaled(T(1) + (r * T(0.6931471805599453) + r * r * exp2_tail(r)), word_of(near));
}
template <typename T> DEVICE T sinh_any(T x) {
    const T z = x * x, e = half_exp(abs(x));
    return abs(x) < T(1) ? x + x * (z * sinh_tail(z)) : copysign(e - T(0.25) / e, x);
}
template <typename T> DEVICE T cosh_any(T x) {
    const T e = half_exp(abs(x));
    return e + T(0.25) / e;
}
template <typename T> DEVICE T tanh_any(T x) {
    const T a = abs(x), z = x * x, twice = a + a;
    const T far = T(1) - T(2) / (exp_near(twice > T(40) ? T(40) : twice) + T(1));
    return copysign(a < T(0.625) ? a + a * (z * tanh_tail(z)) : far, x);
}
// The formula of devices/special.py, from the same numbers.
template <typename T> DEVICE T erf_any(T x) {
    using L = Layout<T>;
    const T a = abs(x), b = a > L::erf_knee ? L::erf_knee : a, d = (a > L::erf_limit ? L::erf_limit : a) - b;
    const T z = b * b, far = T(1) - exp_near(d * (erf_far_over(d) / erf_far_under(d)));
    return copysign(b + b * (erf_near_over(z) / erf_near_under(z) + far * L::erf_gap), x);
}
// exp(-x^2) * (1 + w * erfc_scaled(w - 1)) / (1 + 2 x), with x^2 in two parts, the first of them exact.
template <typename T> DEVICE T erfc_any(T x) {
    using L = Layout<T>;
    const T size = abs(x), a = size > L::erfc_limit ? L::erfc_limit : size;
    const T head = number_of(word_of(a) & ~((Word<T>(1) << (L::digits / 2 + 1)) - 1));
    const T near = a * a * T(-1.4426950408889634) + L::to_whole, k = near - L::to_whole;
    const T first = -(head * head) - k * L::ln2_high;  // exact
    const T low = k * L::ln2_low + (a - head) * (a + head), r = first - low, e = first - (low - r * r * exp_tail(r));
    const T w = (a + a) / (a + L::erfc_middle), more = w * erfc_scaled(w - T(1));
    const T share = (a < T(0.5) ? more - (a + a) : T(1) + more) / (T(1) + (a + a));
    const T tail = a < T(0.5) ? T(1) + (share + (e + share * e)) : scaled(share + share * e, word_of(near));
    return x > T(0) ? tail : T(2) - tail;
}
"""

_LOGARITHMS = """
// x = 2^k * (1 + f) with 1 + f from sqrt(1/2) to sqrt(2), for a normal x; `place` is k + bias.
template <typename T> struct Split { T k, f; Word<T> place; };
template <typename T> DEVICE Split<T> split(T x) {
    using L = Layout<T>;
    const Word<T> root = word_of(T(0.7071067811865476)), unit = Word<T>(1) << L::digits;
    const Word<T> moved = word_of(x) + (word_of(T(1)) - root), place = moved >> L::digits;
    const T k = number_of(place | word_of(T(unit))) - T(unit + L::bias);
    return {k, number_of((moved & (unit - 1)) + root) - T(1), place};
}
template <typename T> DEVICE Split<T> split_any(T x) {
    const T lift = T(Word<T>(1) << (Layout<T>::digits + 2));
    Split<T> s = split(x < Layout<T>::least ? x * lift : x);
    s.k = x < Layout<T>::least ? s.k - T(Layout<T>::digits + 2) : s.k;
    return s;
}
// log(1 + f) - f + half, with half = f^2 / 2.
DEVICE float log_rest(float f, float half) { return f * (half + half) * log_tail(f); }
DEVICE double log_rest(double f, double half) {
    const double s = f / (2.0 + f), z = s * s;
    return s * (half + z * log_tail(z));
}
// `y` where it is the logarithm of x; else the limit, or nan.
template <typename T> DEVICE T log_or_limit(T x, T y) {
    y = x < T(INFINITY) ? y : x;  // one at a time: GCC gives up a loop where more than three selects meet
    y = x > T(0) ? y : T(NAN);
    return x == T(0) ? T(-INFINITY) : y;
}
template <typename T> DEVICE T log_any(T x) {
    using L = Layout<T>;
    const Split<T> s = split_any(x);
    const T half = T(0.5) * s.f * s.f, rest = log_rest(s.f, half);
    return log_or_limit(x, s.k * L::ln2_high + (s.f - (half - (rest + s.k * L::ln2_low))));
}
template <typename T> DEVICE T log1p_any(T x) {
    using L = Layout<T>;
    const T u = T(1) + x, lost = x > T(1) ? T(1) - (u - x) : x - (u - T(1));  // u + lost is 1 + x
    const Split<T> s = split(u);
    const T share = T(0.5) * lost * number_of((Word<T>(2 * L::bias + 1) - s.place) << L::digits);  // lost / 2^k
    const T half = T(0.5) * s.f * s.f, low = s.k * L::ln2_low + (share - share * s.f);
    const T y = s.k * L::ln2_high + (s.f - (half - (log_rest(s.f, half) + low)));
    return abs(x) < T(4) * L::least ? x : log_or_limit(u, y);
}
// The logarithm to the base whose own natural logarithm is 1 / scale, and in which that of 2 is `two`.
DEVICE double log_to_base(double x, double scale, double scale_low, double two, double two_low) {
    const Split<double> s = split_any(x);
    const double half = 0.5 * s.f * s.f, rest = log_rest(s.f, half);
    const double high = number_of(word_of(s.f - half) & ~((uint64(1) << 32) - 1)), low = s.f - high - half + rest;
    const double whole = s.k * two, part = high * scale, sum = whole + part;
    const double small = s.k * two_low + ((low + high) * scale_low + low * scale) + ((whole - sum) + part);
    return log_or_limit(x, sum + small);
}
DEVICE double log2(double x) {
    return log_to_base(x, 1.44269504072144627571e+00, 1.67517131648865118353e-10, 1.0, 0.0);
}
DEVICE double log10(double x) {
    const double scale = 4.34294481878168880939e-01, two = 3.01029995663611771306e-01;
    return log_to_base(x, scale, 2.50829467116452752298e-11, two, 3.69423907715893078616e-13);
}
DEVICE double asinh_of_size(double a) {
    const double z = a * a;
    const bool large = a > 1e17;
    const double w = large ? a : a + z / (1.0 + sqrt(1.0 + z));
    return log1p_any(w) + (large ? 0.6931471805599453 : 0.0);
}
DEVICE double asinh(double x) { return copysign(asinh_of_size(abs(x)), x); }
DEVICE double acosh(double x) {
    const double t = x - 1.0;
    const bool large = x > 1e17;
    const double w = large ? x : t + sqrt(2.0 * t + t * t);
    return x < 1.0 ? double(NAN) : log1p_any(w) + (large ? 0.6931471805599453 : 0.0);
}
DEVICE double atanh(double x) {
    const double a = abs(x);
    return copysign(0.5 * log1p_any((a + a) / (1.0 - a)), x);
}
"""

_ANGLES = """
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__)
#define LANES __attribute__((simd("notinbranch"), noinline, const)) static  // a loop may call it for a whole vector
#else
#define LANES static inline
#endif
// What the C library is called for, out of line, so that the loop around it is vectorized all the same.
constexpr double far_angle = 1e6;
LANES double sin_checked(double x, double y) { return __builtin_fabs(x) < far_angle ? y : __builtin_sin(x); }
LANES double cos_checked(double x, double y) { return __builtin_fabs(x) < far_angle ? y : __builtin_cos(x); }
LANES double tan_checked(double x, double y) { return __builtin_fabs(x) < far_angle ? y : __builtin_tan(x); }
LANES float fmod(float a, float b) { return __builtin_fmodf(a, b); }
LANES double fmod(double a, double b) { return __builtin_fmod(a, b); }
LANES double pow(double a, double b) { return __builtin_pow(a, b); }

// The sine and cosine of x minus `quarters` right angles, from -pi / 4 to pi / 4.
template <typename T> struct Turned { T sine, cosine, quarters; };
template <typename T> DEVICE Turned<T> turned(T r, T low, T quarters) {
    const T z = r * r, half = T(0.5) * z, near = T(1) - half;
    const T sine = r + (r * (z * sin_tail(z)) + low * near);
    const T cosine = near + (((T(1) - near) - half) + (z * z * cos_tail(z) - r * low));
    return {sine, cosine, quarters};
}
DEVICE Turned<double> turned(double x) {
    const double shift = Layout<double>::to_whole, n = (x * 0.63661977236758134308 + shift) - shift;
    const double first = x - n * 1.57079632673412561417, step = n * 6.07710050630396597660e-11;  // exact
    const double near = first - step, back = near - first, lost = (first - (near - back)) - (step + back);
    const double rest = lost - n * 2.02226624879595063154e-21, r = near + rest;
    return turned(r, (near - r) + rest, n - 4.0 * rint(0.25 * n));
}
// Of a float, whatever its size: its products with the first pieces of 1 / (2 pi) are exact, and their whole turns go.
DEVICE double turns(double x, double piece) {
    const double y = x * piece;
    return y - rint(y);
}
DEVICE Turned<float> turned(float angle) {
    const double x = angle, first = turns(x, turn0);
    const double rest = turns(x, turn1) + (turns(x, turn2) + (turns(x, turn3) + (turns(x, turn4) + x * turn5)));
    const double n = rint(4.0 * (first + rest)), r = ((first - 0.25 * n) + rest) * 6.283185307179586;
    const float quarters = float(n);
    return turned(float(r), 0.0f, quarters - 4.0f * rint(0.25f * quarters));
}
template <typename T> DEVICE T sine_of(Turned<T> t) {
    const T y = abs(t.quarters) == T(1) ? t.cosine : t.sine;
    return t.quarters < T(0) || t.quarters > T(1) ? -y : y;
}
template <typename T> DEVICE T cosine_of(Turned<T> t) {
    const T y = abs(t.quarters) == T(1) ? t.sine : t.cosine;
    return t.quarters > T(0) || t.quarters < T(-1) ? -y : y;
}
template <typename T> DEVICE T tangent_of(Turned<T> t) {
    const bool odd = abs(t.quarters) == T(1);
    return (odd ? -t.cosine : t.sine) / (odd ? t.sine : t.cosine);
}
DEVICE float sin(float x) { return x == 0.0f ? x : sine_of(turned(x)); }
DEVICE float cos(float x) { return cosine_of(turned(x)); }
DEVICE double sin(double x) { return sin_checked(x, x == 0.0 ? x : sine_of(turned(x))); }
DEVICE double cos(double x) { return cos_checked(x, cosine_of(turned(x))); }
DEVICE double tan(double x) { return tan_checked(x, x == 0.0 ? x : tangent_of(turned(x))); }

// s + rest is asin(x) where |x| is below a half, else half the angle whose cosine is |x|.
struct Bow { double s, rest; bool near; };
DEVICE Bow bow(double x) {
    const double a = abs(x);
    const bool near = a < 0.5;
    const double z = near ? x * x : 0.5 * (1.0 - a), s = near ? x : sqrt(z);
    return {s, s * (z * asin_tail(z)), near};
}
DEVICE double asin(double x) {
    const Bow b = bow(x);
    const double far = (1.57079632679489655800 - 2.0 * b.s) - (2.0 * b.rest - 6.12323399573676603587e-17);
    return b.near ? b.s + b.rest : copysign(far, x);
}
DEVICE double acos(double x) {
    const Bow b = bow(x);
    const double near = 1.57079632679489655800 - (b.s - (6.12323399573676603587e-17 - b.rest));
    const double twice = 2.0 * (b.s + b.rest);
    const double wide = (3.14159265358979311600 - 2.0 * b.s) - (2.0 * b.rest - 1.22464679914735317636e-16);
    return b.near ? near : x > 0.0 ? twice : wide;
}
// The angle of (x, y), by the share of the smaller in the larger, or from the diagonal where they are near each other.
DEVICE double atan2(double y, double x) {
    const double u = abs(x), v = abs(y);
    const bool steep = v > u;
    double high = steep ? v : u, low = steep ? u : v;
    const double scale = high > 1e300 ? 0.25 : 1.0, limit = low == INFINITY ? 1.0 : 0.0;
    low = high == INFINITY ? limit : low * scale;  // so that no sum overflows
    high = high == INFINITY ? 1.0 : high * scale;
    high = high == 0.0 ? 1.0 : high;
    const bool diagonal = low > 0.41421356237309503 * high;
    const double t = (diagonal ? low - high : low) / (diagonal ? low + high : high), z = t * t;
    const double rest = t * (z * atan_tail(z));
    double base = diagonal ? 1.0 : 0.0;  // in half right angles
    base = steep ? 2.0 - base : base;
    const double side = copysign(1.0, x);
    base = side < 0.0 ? 4.0 - base : base;
    const bool back = steep != (side < 0.0);
    const double low_part = base * 3.0616169978683830179e-17;
    const double angle = base * 0.78539816339744827900 + (back ? (low_part - rest) - t : (low_part + rest) + t);
    return x != x || y != y ? x + y : copysign(angle, y);
}
DEVICE double atan(double x) {
    const double a = abs(x);
    const bool far = a > 2.414213562373095, middle = a > 0.41421356237309503;
    const double t = (far ? -1.0 : middle ? a - 1.0 : a) / (far ? a : middle ? a + 1.0 : 1.0), z = t * t;
    const double high = far ? 1.57079632679489655800 : middle ? 0.78539816339744827900 : 0.0;
    const double low = far ? 6.12323399573676603587e-17 : middle ? 3.06161699786838301793e-17 : 0.0;
    return copysign(high + (t + (t * (z * atan_tail(z)) + low)), x);
}
"""

_OTHERS = """
// The logarithm and the exponential to 1e-9 for pow, which multiplies an error by up to 104: only of floats' values.
DEVICE double short_log(double a) {
    const Split<double> s = split(a);
    const double t = s.f / (2.0 + s.f), z = t * t;
    const double y = s.k * 0.6931471805599453 + (2.0 * t + t * (z * log_short(z))), high = a < INFINITY ? y : a;
    return a == 0.0 ? -INFINITY : high;
}
DEVICE double short_exp(double x) {
    const double c = within(x, -110.0, 95.0), shift = Layout<double>::to_whole;
    const double near = c * 1.4426950408889634 + shift, r = c - (near - shift) * 0.6931471805599453;
    return (1.0 + r * exp_short(r)) * power_of_two<double>(word_of(near));
}
DEVICE float pow(float base, float exponent) {
    const double a = abs(base), b = exponent, half = 0.5 * b, y = short_exp(b * short_log(a));
    const bool whole = b == rint(b), odd = whole & (half != rint(half));
    double size = a == 1.0 ? 1.0 : y;
    size = b == 0.0 ? 1.0 : size;
    const double of_negative = whole | (a == INFINITY) ? size : double(NAN);
    size = base < 0.0f ? of_negative : size;
    return float(odd ? copysign(size, double(base)) : size);
}
DEVICE double hypot(double a, double b) {
    const double u = abs(a), v = abs(b), high = u > v ? u : v, low = u > v ? v : u;
    const double down = high > 0x1p500 ? 0x1p-600 : high < 0x1p-450 ? 0x1p600 : 1.0;
    const double up = high > 0x1p500 ? 0x1p600 : high < 0x1p-450 ? 0x1p-600 : 1.0, x = high * down, y = low * down;
    return u == INFINITY || v == INFINITY ? double(INFINITY) : a != a || b != b ? a + b : sqrt(x * x + y * y) * up;
}
DEVICE float hypot(float a, float b) {
    const double x = a, y = b, size = sqrt(x * x + y * y);
    return float(abs(x) == INFINITY || abs(y) == INFINITY ? double(INFINITY) : size);
}
template <typename T> DEVICE T nextafter_any(T a, T b) {
    const Word<T> word = word_of(a), one = 1, sign = word_of(T(-0.0));
    const bool outwards = (a < b) != signbit(a);
    const T stepped = a == T(0) ? number_of(one | (word_of(b) & sign)) : number_of(outwards ? word + one : word - one);
    return a == b ? b : a != a || b != b ? a + b : stepped;
}
"""


def _declared(name: str, arguments: str, dtype: str) -> str:
    return f"DEVICE {dtype} {name}({', '.join(f'{dtype} {a}' for a in arguments.split())})"


def _both(name: str, arguments: str = "x") -> str:
    """The functions `name` of float and of double, by the template <name>_any."""
    call = f"{name}_any({', '.join(arguments.split())})"
    return "\n".join(f"{_declared(name, arguments, dtype)} {{ return {call}; }}" for dtype in ("float", "double"))


def _by_double(name: str, arguments: str = "x") -> str:
    """The function `name` of float, computed in double."""
    call = f"{name}({', '.join(f'double({a})' for a in arguments.split())})"
    return f"{_declared(name, arguments, 'float')} {{ return float({call}); }}"


HOST_FUNCTIONS = "\n".join(
    [
        _LAYOUT,
        _polynomials(),
        _EXPONENTIALS,
        *[_both(name) for name in ("exp", "expm1", "exp2", "sinh", "cosh", "tanh", "erf", "erfc")],
        _LOGARITHMS,
        *[_both(name) for name in ("log", "log1p")],
        *[_by_double(name) for name in ("log2", "log10", "asinh", "acosh", "atanh")],
        _turns(),
        _ANGLES,
        *[_by_double(name) for name in ("tan", "asin", "acos", "atan")],
        _by_double("atan2", "y x"),
        _OTHERS,
        _both("nextafter", "a b"),
        "}\nusing namespace gpuad;\n",
    ]
)
