"""Print the coefficients of `gpuad/fuse/functions.py`: polynomial fits over an interval, in 60 digits.

Needs mpmath.  Each line of output is the largest error of a fit and its coefficients, from the highest degree down.
"""

from collections.abc import Callable

import mpmath as mp  # type: ignore[import-untyped, import-not-found, unused-ignore]  # it has no types

mp.mp.dps = 60
Function = Callable[[mp.mpf], mp.mpf]


# The functions by the coefficient of z^k in their series at 0; each converges well over its interval.
SERIES: dict[str, Function] = {
    "exp": lambda k: 1 / mp.factorial(k + 2),  # (exp(r) - 1 - r) / r^2
    "power": lambda k: 1 / mp.factorial(k + 1),  # (exp(r) - 1) / r
    "exp2": lambda k: mp.log(2) ** (k + 2) / mp.factorial(k + 2),  # (2^r - 1 - r log 2) / r^2
    "log": lambda k: mp.mpf((-1) ** k) / (k + 3),  # (log(1 + f) - f + f^2 / 2) / f^3
    "log_ratio": lambda k: mp.mpf(2) / (2 * k + 3),  # (log((1 + s) / (1 - s)) / s - 2) / z
    "sin": lambda k: (-1) ** (k + 1) / mp.factorial(2 * k + 3),  # (sin(r) - r) / r^3
    "cos": lambda k: (-1) ** k / mp.factorial(2 * k + 4),  # (cos(r) - 1 + z / 2) / z^2
    "sinh": lambda k: 1 / mp.factorial(2 * k + 3),  # (sinh(x) - x) / x^3
    "tanh": lambda k: mp.bernoulli(2 * k + 4) * 4 ** (k + 2) * (4 ** (k + 2) - 1) / mp.factorial(2 * k + 4),
    "asin": lambda k: mp.binomial(2 * k + 2, k + 1) / mp.mpf(4) ** (k + 1) / (2 * k + 3),  # (asin(s) - s) / s^3
    "atan": lambda k: (-1) ** (k + 1) / mp.mpf(2 * k + 3),  # (atan(t) - t) / t^3
}
HALF_LOG2 = mp.log(2) / 2 * mp.mpf("1.0001")
ROOT = mp.sqrt(2)
# function, interval, and the number of coefficients for float32 and float64; 0 where a dtype needs none
FITS = [
    ("exp", -HALF_LOG2, HALF_LOG2, 5, 10),
    ("exp2", mp.mpf(-0.5), mp.mpf(0.5), 6, 11),
    ("log", 1 / ROOT - 1, ROOT - 1, 9, 0),
    ("log_ratio", mp.mpf(0), (3 - 2 * ROOT) ** 2 * mp.mpf("1.0001"), 4, 7),
    ("sin", mp.mpf(0), mp.mpf("0.6170"), 3, 6),
    ("cos", mp.mpf(0), mp.mpf("0.6170"), 3, 6),
    ("power", -HALF_LOG2, HALF_LOG2, 7, 0),
    ("sinh", mp.mpf(0), mp.mpf(1), 4, 8),
    ("tanh", mp.mpf(0), mp.mpf("0.390625"), 6, 13),
    ("asin", mp.mpf(0), mp.mpf("0.25"), 0, 13),
    ("atan", mp.mpf(0), mp.mpf("0.17158"), 0, 11),
]


def scaled_erfc(knee: int) -> Function:
    """((1 + 2 a) exp(a^2) erfc(a) - 1) / (1 + t) as a function of t = (a - knee) / (a + knee)."""

    def f(t: mp.mpf) -> mp.mpf:
        a = knee * (1 + t) / (1 - t)
        return ((1 + 2 * a) * mp.exp(a * a) * mp.erfc(a) - 1) / (1 + t)

    return f


def show(name: str, dtype: str, f: Function, low: mp.mpf, high: mp.mpf, count: int) -> None:
    p, error = mp.chebyfit(f, [low, high], count, error=True)
    coefficients = ", ".join(mp.nstr(c, 10 if dtype == "float32" else 18) for c in p)
    print(f"{name} {dtype}: error {mp.nstr(error, 2)}\n{coefficients}\n", flush=True)


def main() -> None:
    for name, low, high, single, double in FITS:
        taylor = [SERIES[name](k) for k in range(220)]
        f = lambda z, taylor=taylor: mp.polyval(taylor[::-1], z)
        for dtype, count in (("float32", single), ("float64", double)):
            if count:
                show(name, dtype, f, low, high, count)
    for dtype, knee, reach, count in (("float32", 2, mp.mpf("10.3"), 11), ("float64", 4, mp.mpf("27.6"), 23)):
        show("erfc", dtype, scaled_erfc(knee), mp.mpf("1e-9") - 1, (reach - knee) / (reach + knee), count)


if __name__ == "__main__":
    main()
