"""Random numbers: the stream of NumPy's Philox 4x64-10, from which every element can be computed by itself.

A generator is a key and a counter.  A draw reads words of `numpy.random.Philox(key=..., counter=...)` from the
counter on and moves the counter past them, in whole blocks of four 64-bit words; how many depends on the shape and
the dtype alone.  Element i of a draw comes from fixed words, so that any part of it can be computed again, anywhere:

    bits          word i of the stream cut into words of the dtype's size, the low half of a wide one first
    uniform       float64: the top 53 bits of 64-bit word i, times 2^-53; float32: the top 24 of 32-bit word i, times
                  2^-24 (both as `numpy.random.Generator.random`); half types the top 11 or 8 bits of that word
    normal        Box-Muller: of words 2k and 2k + 1 (64 bits for float64, else 32) the first gives the radius
                  sqrt(-2 ln u), u in (0, 1], the second the angle; element 2k is the cosine, 2k + 1 the sine
    integers      the high word of 64-bit word i times the number of possible values
    permutation   the stable order of n 64-bit words

What is drawn stays pending and is computed where it is used, again if need be, rather than stored.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias

import numpy as np

from .array import Shape
from .devices import Device, default_device
from .devices import device as find_device
from .dtype import DEFAULT_FLOAT, DEFAULT_INT, INTEGERS, DType, as_dtype, bfloat16, float16, float32, float64, is_float
from .errors import DataError, DTypeError, ShapeError
from .op import Opaque, Source
from .provenance import here
from .recording import Live, active, also, refuse
from .tensor import Tensor

State: TypeAlias = tuple[int, int, int, int, int, int]  # two words of key, four of counter, the low one first
Words = np.ndarray[Any, Any]
WORD, BLOCK = 64, 256  # bits

_recorders: ContextVar[tuple[dict[Generator, State], ...]] = ContextVar("recorders", default=())
_no_stand_ins: Mapping[Generator, Generator] = {}
_stand_ins: ContextVar[Mapping[Generator, Generator]] = ContextVar("stand_ins", default=_no_stand_ins)


class Generator:
    """A source of random numbers: the stream of `numpy.random.Philox(seed)`.

    Without a seed it begins where the operating system says.  Generators may be shared by threads.
    """

    __slots__ = ("_lock", "_state")

    def __init__(self, seed: int | None = None) -> None:
        refuse("a generator that is made in the step", "make it before")
        if seed is not None and (not isinstance(seed, int) or seed < 0):
            raise DataError(f"a seed is an integer from 0 on, or None, got {seed!r}")
        low, high = np.random.SeedSequence(seed).generate_state(2, np.uint64).tolist()
        self._lock = threading.Lock()
        self._state: State = (low, high, 0, 0, 0, 0)

    @property
    def state(self) -> State:
        """Two 64-bit words of key and four of counter, as ints: what `set_state` takes."""
        return _stand_ins.get().get(self, self)._state

    def set_state(self, state: Sequence[int]) -> None:
        """Go on from `state`, as `state` gave it; a list of it, as JSON makes, will do."""
        refuse("a generator that is set in the step", "set it between calls")
        words = tuple(int(w) for w in state)
        if len(words) != 6 or not all(0 <= w < 1 << WORD for w in words):
            raise DataError(f"the state of a generator is six 64-bit words, got {state!r}")
        _stand_ins.get().get(self, self)._state = words

    def split(self, n: int = 1) -> list[Generator]:
        """`n` generators with streams of their own, made of the next words of this one."""
        refuse("split()", "split the generator before")
        if n < 0:
            raise DataError(f"split() makes 0 or more generators, got {n}")
        keys = _words(self.advance(2 * n * WORD), 0, 2 * n).tolist()
        children = [Generator(0) for _ in range(n)]
        for k, child in enumerate(children):
            child._state = (keys[2 * k], keys[2 * k + 1], 0, 0, 0, 0)
        return children

    def advance(self, bits: int) -> State:
        """The state before moving past `bits` bits, rounded up to whole blocks: what a draw begins with."""
        before = _stand_ins.get().get(self, self)._advance(bits)
        for drawn in _recorders.get():
            drawn.setdefault(self, before)
        return before

    def _advance(self, bits: int) -> State:
        with self._lock:
            before = self._state
            self._state = _moved(before, -(-bits // BLOCK))
        return before

    def drawn(self, bits: int) -> tuple[Any, ...]:
        """The words of `advance(bits)`; those of a recording advance anew in each replay."""
        if active.get() is None:
            return self.advance(bits)
        actual = _stand_ins.get().get(self, self)
        first = [drawn for drawn in _recorders.get() if self not in drawn]
        found: list[State] = []

        def draw() -> None:
            found[:] = [actual._advance(bits)]
            for drawn in first:
                drawn[self] = found[0]

        also(draw)
        return tuple([Live(functools.partial(_word, found, k)) for k in range(6)])

    def __reduce__(self) -> tuple[Any, ...]:
        return _revived, (self.state,)

    def __repr__(self) -> str:
        low, high, *counter = self.state
        return f"Generator(key={low + (high << WORD):#x}, counter={_joined(counter)})"


def _word(found: list[State], k: int) -> int:
    return found[0][k]


def _revived(state: State) -> Generator:
    generator = Generator.__new__(Generator)
    generator._lock, generator._state = threading.Lock(), state
    return generator


def _joined(counter: Sequence[int]) -> int:
    return sum(word << WORD * k for k, word in enumerate(counter))


def _moved(state: State, blocks: int) -> State:
    """`state` with its counter moved on, around the end if need be."""
    k0, k1, c0, c1, c2, c3 = state
    if c0 + blocks < 1 << WORD:
        return k0, k1, c0 + blocks, c1, c2, c3
    counter = _joined((c0, c1, c2, c3)) + blocks
    mask = (1 << WORD) - 1
    return k0, k1, counter & mask, counter >> 64 & mask, counter >> 128 & mask, counter >> 192 & mask


_default: Generator | None = None  # the process's own, made at first use
_making = threading.Lock()


def default() -> Generator:
    """The generator of functions that are not given one."""
    global _default
    if _default is None:
        with _making:
            if _default is None:
                _default = Generator()
    return _default


def seed(n: int) -> None:
    """Let the default generator begin the stream of `Generator(n)`."""
    refuse("seed()", "seed between calls")
    default().set_state(Generator(n).state)


@contextmanager
def recording() -> Iterator[dict[Generator, State]]:
    """A dict that fills with each generator drawn from inside, and its state before its first draw there."""
    drawn: dict[Generator, State] = {}
    token = _recorders.set((*_recorders.get(), drawn))
    try:
        yield drawn
    finally:
        _recorders.reset(token)


@contextmanager
def replaying(drawn: Mapping[Generator, State]) -> Iterator[None]:
    """Draw inside what was drawn when `drawn` was recorded.

    The generators themselves stay where they are: other threads, and what follows, do not notice.
    """
    stand_ins = {generator: _revived(state) for generator, state in drawn.items()}

    def begin() -> None:
        for generator, stand_in in stand_ins.items():
            stand_in._state = drawn[generator]

    also(begin)
    token = _stand_ins.set({**_stand_ins.get(), **stand_ins})
    try:
        yield
    finally:
        _stand_ins.reset(token)


# --- words of the stream ----------------------------------------------------------------------


class _Philox(threading.local):
    """One thread's NumPy generator, which is told where to begin five times faster than a new one is made."""

    def __init__(self) -> None:
        self.source = np.random.Philox(0)
        self.position: Any = self.source.state

    def words(self, state: Sequence[int], count: int) -> Words:
        """The first `count` 64-bit words after `state`."""
        position = self.position
        position["state"]["key"][:] = state[:2]
        position["state"]["counter"][:] = state[2:6]
        self.source.state = position
        found: Words = self.source.random_raw(count)
        return found


@functools.cache
def _philox() -> _Philox:  # made at the first draw: NumPy's generators take a while to import
    return _Philox()


def _words(params: Sequence[int], first: int, count: int, dtype: Any = np.uint64) -> Words:
    """Words `first` to `first + count` of the stream that begins at the state `params`, cut to the size of `dtype`."""
    width = np.dtype(dtype).itemsize * 8
    skip = first % (BLOCK // width)
    state = _moved(tuple(params[:6]), first * width // BLOCK)  # type: ignore[arg-type]  # six, by what Source.make got
    raw = _philox().words(state, -(-(skip + count) * width // WORD))
    cut: Words = raw.astype("<u8", copy=False).view(np.dtype(dtype).newbyteorder("<"))
    return cut[skip : skip + count]


def _bits(params: tuple[int, ...], start: int, out: Words) -> None:
    np.copyto(out, _words(params, start, out.size, out.dtype).reshape(out.shape))


_KEPT: dict[DType, int] = {float64: 53, float32: 24, float16: 11, bfloat16: 8}  # bits of a uniform number


def _uniform(params: tuple[int, ...], start: int, out: Words) -> None:
    kept, wide = _KEPT[out.dtype], np.float64 if out.dtype == float64 else np.float32
    words = _words(params, start, out.size, np.uint64 if wide is np.float64 else np.uint32)
    words = words >> words.dtype.type(words.itemsize * 8 - kept)
    np.copyto(out, np.multiply(words, wide(2.0**-kept), dtype=wide).reshape(out.shape), casting="unsafe")


def _normal(params: tuple[int, ...], start: int, out: Words) -> None:
    first = start & ~1  # the pair that element `start` is of
    count = start - first + out.size + 1 & ~1
    if out.dtype == float64:
        words, scale = _words(params, first, count) >> np.uint64(11), 2.0**-53
    else:
        words, scale = _words(params, first, count, np.uint32), 2.0**-32
    radius = np.sqrt(-2 * np.log((words[0::2] + 1.0) * scale))
    turn = words[1::2] * (4 * scale)  # in quarters
    quarter = np.rint(turn)
    angle = (turn - quarter) * (np.pi / 2)  # exact before pi: sine and cosine keep their last bits near 0
    sine, cosine = np.sin(angle), np.cos(angle)
    place = quarter.astype(np.int8) & 3
    odd = (place & 1).astype(bool)
    pairs = np.empty((count // 2, 2))
    pairs[:, 0] = np.where(odd, sine, cosine) * _SIGN_OF_COSINE[place]
    pairs[:, 1] = np.where(odd, cosine, sine) * _SIGN_OF_SINE[place]
    pairs *= radius[:, None]
    np.copyto(out, pairs.reshape(-1)[start - first :][: out.size].reshape(out.shape), casting="unsafe")


_SIGN_OF_COSINE, _SIGN_OF_SINE = np.array([1.0, -1.0, -1.0, 1.0]), np.array([1.0, 1.0, -1.0, -1.0])


def _integers(params: tuple[int, ...], start: int, out: Words) -> None:
    low, values = params[6:]  # as unsigned words; no values are all 2^64
    words = _words(params, start, out.size)
    if values == 0:
        found = words
    else:  # the high word of the 128-bit product, by halves
        half, mask = np.uint64(32), np.uint64(0xFFFFFFFF)
        n1, n0 = np.uint64(values >> 32), np.uint64(values & 0xFFFFFFFF)
        w1, w0 = words >> half, words & mask
        middle = w1 * n0 + (w0 * n0 >> half)
        found = w1 * n1 + (middle >> half) + (w0 * n1 + (middle & mask) >> half)
    found = found + np.uint64(low)  # around the end where it is negative
    np.copyto(out, found.reshape(out.shape), casting="unsafe")


random_bits = Source("random_bits", numpy=_bits, cuda="philox_bits<T>(a, b, c, d, e, f, i)", cost=16)
random_uniform = Source("random_uniform", numpy=_uniform, cuda="philox_uniform<T>(a, b, c, d, e, f, i)", cost=40)
random_normal = Source("random_normal", numpy=_normal, cuda="philox_normal<T>(a, b, c, d, e, f, i)", cost=120)
random_integers = Source(
    "random_integers", numpy=_integers, cuda="philox_integer<T>(a, b, c, d, e, f, g, h, i)", cost=90
)

_order = Opaque(
    "permutation",
    "x",
    infer=lambda x: (x.shape, np.dtype(np.int64)),
    forward=lambda xp, x: xp.argsort(x, kind="stable").astype(np.int64, copy=False),
)


# --- draws ------------------------------------------------------------------------------------


def _draw(
    source: Source,
    shape: int | Sequence[int],
    dtype: DType,
    width: int,
    device: str | Device | None,
    generator: Generator | None,
    *params: int,
) -> Tensor:
    """A pending tensor of `shape` whose elements take `width` bits each of the stream."""
    sizes: Shape = (shape,) if isinstance(shape, int) else tuple(int(n) for n in shape)
    if any(n < 0 for n in sizes):
        raise ShapeError(f"a shape has no negative lengths, got {sizes}")
    if generator is not None and not isinstance(generator, Generator):
        raise DataError(f"generator= takes a gpuad.random.Generator, got {type(generator).__name__}")
    target = default_device() if device is None else find_device(device)
    count = 1
    for n in sizes:
        count *= n
    state = (default() if generator is None else generator).drawn(count * width)
    return Tensor(source.make(sizes, dtype, target, (*state, *params), here(3)))


def bits(
    shape: int | Sequence[int],
    *,
    dtype: Any = np.uint32,
    device: str | Device | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Words of the stream itself: uint8, uint16, uint32 or uint64."""
    target = as_dtype(dtype)
    if target.kind != "u":
        raise DTypeError(f"bits() gives unsigned integers, not {target}; use integers() for a range")
    return _draw(random_bits, shape, target, target.itemsize * 8, device, generator)


def uniform(
    shape: int | Sequence[int],
    low: float = 0.0,
    high: float = 1.0,
    *,
    dtype: Any = DEFAULT_FLOAT,
    device: str | Device | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Numbers between `low` and `high`, `low` included, evenly distributed."""
    target = _float(dtype, "uniform")
    x = _draw(random_uniform, shape, target, 64 if target == float64 else 32, device, generator)
    return x if (low, high) == (0.0, 1.0) else x * (high - low) + low


def normal(
    shape: int | Sequence[int],
    mean: float = 0.0,
    std: float = 1.0,
    *,
    dtype: Any = DEFAULT_FLOAT,
    device: str | Device | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Numbers from the normal distribution with `mean` and standard deviation `std`."""
    target = _float(dtype, "normal")
    x = _draw(random_normal, shape, target, 64 if target == float64 else 32, device, generator)
    return x if (mean, std) == (0.0, 1.0) else x * std + mean


def integers(
    shape: int | Sequence[int],
    low: int,
    high: int,
    *,
    dtype: Any = DEFAULT_INT,
    device: str | Device | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Integers from `low` up to but not including `high`; with n possible values none is off by more than n / 2^64."""
    target = as_dtype(dtype)
    if target not in INTEGERS:
        raise DTypeError(f"integers() gives integers, not {target}; use uniform() for floats")
    if not low < high:
        raise DataError(f"integers() needs low < high, got {low} and {high}")
    limits = np.iinfo(target)  # type: ignore[type-var]  # an integer dtype
    if low < limits.min or high - 1 > limits.max:
        raise DataError(f"integers() from {low} to {high - 1} do not fit in {target}; pass another dtype=")
    words = low % (1 << WORD), (high - low) % (1 << WORD)
    return _draw(random_integers, shape, target, 64, device, generator, *words)


def bernoulli(
    shape: int | Sequence[int],
    p: float = 0.5,
    *,
    device: str | Device | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Bools that are true with probability `p`, to within 2^-24."""
    if not 0 <= p <= 1:
        raise DataError(f"bernoulli() needs a probability, got {p}")
    result: Tensor = _draw(random_uniform, shape, float32, 32, device, generator) < float(p)
    return result


def permutation(n: int, *, device: str | Device | None = None, generator: Generator | None = None) -> Tensor:
    """The integers from 0 to n - 1 in a random order: int64[n]."""
    result: Tensor = _order(_draw(random_bits, int(n), np.dtype(np.uint64), 64, device, generator))
    return result


def _float(dtype: Any, name: str) -> DType:
    target = as_dtype(dtype)
    if not is_float(target):
        raise DTypeError(f"{name}() gives floats, not {target}; use integers() or bits()")
    return target


__all__ = [
    "Generator",
    "bernoulli",
    "bits",
    "default",
    "integers",
    "normal",
    "permutation",
    "recording",
    "replaying",
    "seed",
    "uniform",
]
