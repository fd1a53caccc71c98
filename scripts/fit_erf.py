"""Print the coefficients of `gpuad/devices/special.py`: rational minimax fits, by Remez exchange in 60 digits.

Needs mpmath.  Each line of output is the largest weighted error and a `Rational` to paste.
"""

from collections.abc import Callable

import mpmath as mp  # type: ignore[import-untyped, import-not-found, unused-ignore]  # it has no types

mp.mp.dps = 60
Function = Callable[[mp.mpf], mp.mpf]


def polynomial(coefficients: list[mp.mpf], z: mp.mpf) -> mp.mpf:
    return mp.polyval(coefficients[::-1], z)


def solve(points: list[tuple[mp.mpf, mp.mpf, mp.mpf]], m: int, n: int) -> tuple[list[mp.mpf], list[mp.mpf]]:
    """P and Q with weight * (P / Q - value) equal in size and alternating in sign over `points`."""
    q = [mp.mpf(1)] + [mp.mpf(0)] * n
    for _ in range(4):  # the error term is multiplied by the previous Q, which makes the system linear
        rows, right = [], []
        for i, (z, value, weight) in enumerate(points):
            numerator = [weight * z**j for j in range(m + 1)]
            denominator = [-weight * value * z**j for j in range(1, n + 1)]
            rows.append([*numerator, *denominator, (-1) ** i * polynomial(q, z)])
            right.append(weight * value)
        solution = list(mp.lu_solve(mp.matrix(rows), mp.matrix(right)))
        q = [mp.mpf(1), *solution[m + 1 : m + 1 + n]]
    return solution[: m + 1], q


def fit(f: Function, weight: Function, high: float, m: int, n: int) -> tuple[mp.mpf, list[mp.mpf], list[mp.mpf]]:
    """The least largest weighted error of P (degree m) over Q (degree n, Q(0) = 1) on [0, high], then P and Q."""
    count = 600
    grid = [high * ((1 - mp.cos(mp.pi * k / count)) / 2) ** 2 for k in range(count + 1)]  # denser near 0
    table = [(z, f(z), weight(z)) for z in grid]
    chosen = [round(count * (i + 1) / (m + n + 2)) for i in range(m + n + 2)]
    for _ in range(20):
        p, q = solve([table[k] for k in chosen], m, n)
        error = [w * (polynomial(p, z) / polynomial(q, z) - value) for z, value, w in table]
        peaks = [0]  # the largest error of each run of one sign
        for k in range(1, count + 1):
            if (error[k] > 0) != (error[peaks[-1]] > 0):
                peaks.append(k)
            elif abs(error[k]) > abs(error[peaks[-1]]):
                peaks[-1] = k
        peaks = [k for k in peaks if error[k] != 0]
        while len(peaks) > len(chosen):
            peaks.pop(0 if abs(error[peaks[0]]) < abs(error[peaks[-1]]) else -1)
        sizes = [abs(error[k]) for k in peaks]
        if max(sizes) < 1.02 * min(sizes):
            return max(sizes), p, q
        chosen = peaks
    raise ArithmeticError(f"no convergence for degrees {m}, {n}")


def erf_near(z: mp.mpf) -> mp.mpf:
    """erf(x) / x - 1 at x = sqrt(z)."""
    return mp.erf(mp.sqrt(z)) / mp.sqrt(z) - 1 if z else 2 / mp.sqrt(mp.pi) - 1


def erf_far(knee: float) -> tuple[Function, Function]:
    """log(erfc(knee + d) / erfc(knee)) / d, and the weight that makes its error one of erf itself."""

    def slope(d: mp.mpf) -> mp.mpf:
        if d:
            return mp.log(mp.erfc(knee + d) / mp.erfc(knee)) / d
        return -2 / mp.sqrt(mp.pi) * mp.exp(-(mp.mpf(knee) ** 2)) / mp.erfc(knee)

    return slope, lambda d: d * mp.erfc(knee + d)


def normal_tail(a: mp.mpf) -> mp.mpf:
    """exp(a^2 / 2) times the normal distribution's mass above a."""
    return mp.erfc(a / mp.sqrt(2)) * mp.exp(a * a / 2) / 2


def log1p(e: mp.mpf) -> mp.mpf:
    """log(1 + e) / e."""
    return mp.log1p(e) / e if e else mp.mpf(1)


def show(name: str, digits: int, error: mp.mpf, p: list[mp.mpf], q: list[mp.mpf]) -> None:
    numerator, denominator = (", ".join(mp.nstr(c, digits) for c in side[::-1]) for side in (p, q))
    print(f"{name}: error {mp.nstr(error, 2)}\nRational(({numerator}), ({denominator}))\n", flush=True)


def main() -> None:
    for name, digits, knee, limit, near, far, reach, tail, log in (
        ("float32", 9, 1.125, 4.1, (3, 2), (2, 1), 14.5, (4, 5), (3, 3)),
        ("float64", 17, 1.0, 6.1, (5, 5), (6, 5), 39.0, (10, 11), (6, 6)),
    ):
        print(f"{name} erf gap: {mp.nstr(mp.erfc(knee) / knee, digits)}")
        show(f"{name} erf near", digits, *fit(erf_near, lambda z: mp.mpf(1), knee**2, *near))
        show(f"{name} erf far", digits, *fit(*erf_far(knee), limit - knee, *far))
        show(f"{name} normal tail", digits, *fit(normal_tail, lambda a: 1 / normal_tail(a), reach, *tail))
        show(f"{name} log1p", digits, *fit(log1p, lambda e: 1 / log1p(e), 1.0, *log))


if __name__ == "__main__":
    main()
