"""Draws: where every source of random numbers stood when a function ran, so that it can draw the same again.

gpuad's own generators are followed by their counters.  NumPy's global generator and Python's are put back where they
stood, as are the generators that one is told of.  CuPy's global generator cannot say where it stands: inside, another
one takes its place, which begins at a seed that CuPy's own gives if anything is drawn at all.
"""

from __future__ import annotations

import random as python_random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from .. import random
from ..errors import DataError


class Source:
    """A generator that can be read and put back: `get()` gives its state, `set(state)` goes on from one."""

    def __init__(self, get: Callable[[], Any], set: Callable[[Any], object]) -> None:
        self.get, self.set = get, set


def source(generator: Any) -> Source:
    """`generator`, of NumPy or of Python; a DataError for what cannot be put back."""
    if isinstance(generator, np.random.Generator):
        bits = generator.bit_generator
        return Source(lambda: bits.state, lambda state: setattr(bits, "state", state))
    if isinstance(generator, np.random.RandomState):
        return Source(lambda: generator.get_state(legacy=False), generator.set_state)
    if isinstance(generator, python_random.Random):
        return Source(generator.getstate, generator.setstate)
    raise DataError(
        f"generators= takes generators of NumPy and Python's random.Random, got {type(generator).__name__}\n"
        "  gpuad's own need not be named; others cannot be put back: draw before, and pass what was drawn"
    )


_GLOBAL = (
    Source(lambda: np.random.get_state(legacy=False), np.random.set_state),
    Source(python_random.getstate, python_random.setstate),
)


class Draws:
    """The state of every source as a first run found it, where that run drew from it."""

    def __init__(self, generators: Sequence[Any] = ()) -> None:
        if not isinstance(generators, list | tuple):
            raise DataError(f"generators= takes a list of generators, got {type(generators).__name__}")
        self.sources = (*_GLOBAL, *[source(g) for g in generators])
        self.before: dict[int, Any] = {}  # by index of the source
        self.own: dict[random.Generator, random.State] = {}
        self.cupy: int | None = None  # the seed of CuPy's

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Note the state of what is drawn from inside."""
        before = [s.get() for s in self.sources]
        with _cupys(self._seed), random.recording() as self.own:
            try:
                yield
            finally:
                drawn = [not _same(s.get(), old) for s, old in zip(self.sources, before, strict=True)]
                self.before = {k: old for k, old in enumerate(before) if drawn[k]}

    def _seed(self, own: Any) -> int:
        """The seed of the generator that stands for CuPy's `own`: as in the first run, if there was one."""
        if self.cupy is None:
            self.cupy = int(own.randint(0, 2**31 - 1))
        return self.cupy

    @contextmanager
    def repeated(self) -> Iterator[None]:
        """Draw inside what was drawn before, and go on afterwards as if nothing had been."""
        after = {k: self.sources[k].get() for k in self.before}
        try:
            for k, state in self.before.items():
                self.sources[k].set(state)
            with _cupys(self._seed), random.replaying(self.own):
                yield
        finally:
            for k, state in after.items():
                self.sources[k].set(state)


@contextmanager
def undrawn(generators: Sequence[Any] = ()) -> Iterator[None]:
    """Draw inside as one likes: afterwards everything is as if nothing had been."""
    draws = Draws(generators)
    draws.cupy = 0  # any seed will do, and CuPy's own generator could not be put back
    try:
        with draws.recorded():
            yield
    finally:
        for k, state in draws.before.items():
            draws.sources[k].set(state)
        for generator, began in draws.own.items():
            generator.set_state(began)


def _same(a: Any, b: Any) -> bool:
    """Are two states of a generator equal?  They are tuples and dicts of numbers and arrays."""
    if isinstance(a, dict):
        return all(_same(a[key], b[key]) for key in a)
    if isinstance(a, np.ndarray):
        return bool((a == b).all())
    return bool(a == b)


@contextmanager
def _cupys(seed: Callable[[Any], int]) -> Iterator[None]:
    """Another generator in the place of CuPy's global one, made with `seed(CuPy's)` when it is used."""
    cupy = sys.modules.get("cupy")
    if cupy is None or not hasattr(cupy, "random") or not cupy.cuda.is_available():
        yield
        return
    own = cupy.random.get_random_state()
    cupy.random.set_random_state(_late(cupy.random.RandomState, lambda: seed(own)))
    try:
        yield
    finally:
        cupy.random.set_random_state(own)


def _late(kind: Any, seed: Callable[[], int]) -> Any:
    """A generator of the class `kind` that begins at `seed()` when something is asked of it for the first time."""

    class Late(kind):  # type: ignore[misc]  # a class of CuPy's, which may not be there
        def __init__(self) -> None:
            pass

        def __getattr__(self, name: str) -> Any:  # asked for only while it has no state
            if "begun" in self.__dict__:
                raise AttributeError(name)
            self.begun = True
            kind.__init__(self, seed())
            return getattr(self, name)

        def __del__(self) -> None:
            if "begun" in self.__dict__ and hasattr(kind, "__del__"):
                kind.__del__(self)

    return Late()


__all__ = ["Draws", "undrawn"]
