"""The error word of a GPU: what goes wrong there is flagged while the host goes on, and raised when a value is read.

A check is a small kernel.  The first one that fails leaves its number and what it found beside the bits; the host
keeps, for each check since the word was last read, the error to raise and how to undo what it did after it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..array import Array
from ..errors import GpuadError
from ..recording import suspended
from .cuda_launch import flat, for_dtype
from .device import INDEX, NON_FINITE, RECOMPUTE

MOST = 1024  # checks after which the word is read even if no value is

_TEXT = """
// What checks leave in word: int32[4] is the bits, the number of the first check that failed, and the 64 bits of an
// index it found.
DEVICE void flag(int32* word, int32 bit, int32 number, int64 found) {
    if (atomicCAS(word + 1, 0, number) == 0) *reinterpret_cast<int64*>(word + 2) = found;
    atomicOr(word, bit);
}
"""
_RANGE = (
    _TEXT
    + """
// Flags an element of index: T[size] that is not from low to high, nor is `ignored`.  One thread an element.
KERNEL check_range(const T* index, int64 size, int64 low, int64 high, int64 ignored, int32 number, int32* word) {
    LOOP(i, size) {
        int64 x = int64(index[i]);
        if (x < 0 && T(-1) > T(0)) x = 0x7fffffffffffffff;  // of 64 bits without a sign
        if ((x < low || x > high) && x != ignored) flag(word, INDEX, number, x);
    }
}
""".replace("INDEX", str(INDEX))
)
_TRUE = (
    _TEXT
    + """
// Flags `bit` unless ok: bool[1] is true.  The first thread does it.
KERNEL check_true(const bool* ok, int32 bit, int32 number, int32* word) {
    LOOP(i, 1) {
        if (!ok[i]) flag(word, bit, number, 0);
    }
}
"""
)
_SAME = (
    _TEXT
    + """
// Flags RECOMPUTE unless a and b: uint64[1] are the same.  The first thread does it.
KERNEL check_same(const uint64* a, const uint64* b, int32 number, int32* word) {
    LOOP(i, 1) {
        if (a[i] != b[i]) flag(word, RECOMPUTE, number, 0);
    }
}
""".replace("RECOMPUTE,", f"{RECOMPUTE},")
)
_CLEAR = """
// out: bool[1] = nothing is flagged in word.  The first thread does it.
KERNEL is_clear(const int32* word, bool* out) {
    LOOP(i, 1) out[i] = word[0] == 0;
}
"""
_MEANING = {
    NON_FINITE: "infinities or NaN",
    INDEX: "an index out of range",
    RECOMPUTE: "a recomputation that gave something else",
}


@dataclass
class Check:
    """One check that was made on the device: the error to raise if it fails, and how to undo what followed it."""

    number: int
    refuse: Callable[[int], Exception]
    undo: Callable[[], None] | None


class Checks:
    """The error word of one device, and the checks made since it was last read."""

    def __init__(self, device: Any) -> None:
        self.device = device
        self.word: Array | None = None  # int32[4], made at the first check
        self.made: list[Check] = []
        self.numbers = itertools.count(1)

    def range(self, index: Any, low: int, high: int, refuse: Callable[[int], Exception], ignored: int | None) -> None:
        """Flag the elements of `index` that are not from `low` to `high`, nor `ignored`."""
        data = self.device.xp.ascontiguousarray(index)
        hidden = low if ignored is None else ignored
        bounds = [np.int64(n) for n in (data.size, low, high, hidden)]
        self._make(for_dtype(_RANGE, index.dtype), "check_range", [data, *bounds], data.size, refuse, None)

    def true(self, ok: Any, bit: int, refuse: Callable[[int], Exception], undo: Callable[[], None] | None) -> None:
        """Flag `bit` unless the one element of `ok`, bool, is true."""
        self._make(_TRUE, "check_true", [ok, np.int32(bit)], 1, refuse, undo)

    def same(self, first: Any, second: Any, refuse: Callable[[int], Exception]) -> None:
        """Flag RECOMPUTE unless `first` and `second`, uint64[1], are the same."""
        self._make(_SAME, "check_same", [first, second], 1, refuse, None)

    def clear(self) -> Array:
        """bool[]: whether nothing is flagged at this place in the order of the device's work."""
        device = self.device
        out: Array = device.allocate((), np.dtype(np.bool_))
        device.perform(self._write_clear, [], [out.data], "clear")
        return out

    def _write_clear(self, out: Any) -> None:
        self.device.launcher.launch(_CLEAR, "is_clear", [self.memory().data, out], flat(1))

    def memory(self) -> Array:
        """The word itself, for kernels that set bits: int32[4], of which the first element is the bits."""
        if self.word is None:
            with suspended():  # it outlives every recording
                self.word = self.device.allocate((4,), np.dtype(np.int32), "workspace")
            self.word.data.fill(0)
        return self.word

    def begin(self, refuse: Callable[[int], Exception], undo: Callable[[], None] | None) -> np.int32:
        """The number of a new check, which the caller's kernel is to leave in the word if it is the first to fail."""
        with self.device.lock:
            if len(self.made) >= MOST:
                self.read()
            check = Check(next(self.numbers), refuse, undo)
            self.made.append(check)
        return np.int32(check.number)

    def _make(
        self,
        code: str,
        name: str,
        given: list[Any],
        size: int,
        refuse: Callable[[int], Exception],
        undo: Callable[[], None] | None,
    ) -> None:
        with self.device.lock:
            number = self.begin(refuse, undo)
            self.device.launcher.launch(code, name, [*given, number, self.memory().data], flat(size))

    def bits(self) -> int:
        """What is flagged."""
        return 0 if self.word is None else int(self.device.xp.asnumpy(self.word.data)[0])

    def read(self) -> None:
        """Wait for the device; raise the error of the first check that failed since the last time, if one did."""
        with self.device.lock:
            if not self.made or self.word is None:
                return
            made, self.made = self.made, []
            bits, number, *found = self.device.xp.asnumpy(self.word.data).tolist()
            if not bits:
                return
            self.word.data.fill(0)
        after = [check for check in made if check.number >= number]
        for check in reversed(after):
            if check.undo is not None:
                check.undo()
        if not after or after[0].number != number:
            raise GpuadError("a kernel flagged " + " and ".join(v for k, v in _MEANING.items() if bits & k))
        raise after[0].refuse(int(np.array(found, np.int32).view(np.int64)[0]))
