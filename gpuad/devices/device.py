"""What every device offers: memory, kernels, copies.  Nothing outside `devices/` and `fuse/` knows which one it has."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from ..array import Array, Shape, computed
from ..dtype import DType
from ..errors import CaptureError, DeviceError
from ..provenance import Site, describe
from ..recording import Arena, Place, active, also, suspended
from .words import as_words

if TYPE_CHECKING:
    from ..fuse.kernel import Kernel
    from .offload import Offloaded

# The bits of a device's error word.
NON_FINITE = 1  # a step met infinities or NaN
INDEX = 2  # an index lies outside the axis it indexes
RECOMPUTE = 4  # a checkpointed function computed something else the second time


class Device(ABC):
    """One place where arrays live.  Devices are compared by identity; `devices.device(name)` gives the one."""

    name: str
    xp: Any = np  # the array library: NumPy or CuPy
    computes = True  # False where arrays have shapes but no values
    offloads = False  # True where arrays can wait in memory of the host
    waits = True  # False where errors are flagged while the host goes on, and raised when a value is read

    def __init__(self) -> None:
        self.lock = threading.RLock()  # taken while arrays are realized
        self._flagged = 0

    @property
    @abstractmethod
    def engine(self) -> str:
        """Which machinery runs fused kernels here."""

    @property
    def error_word(self) -> int:
        """The bits of what has gone wrong and was not put right since."""
        return self._flagged

    def perform(
        self,
        work: Callable[..., Any],
        inputs: Sequence[Any],
        outputs: Sequence[Any],
        key: Any = None,
        site: Site | None = None,
    ) -> None:
        """Call `work(*inputs, *outputs)` with arrays of the device's library, of which it writes `outputs`.

        It depends on nothing else that may change, so that a recording can do it again.  `work.bound(*arrays)`, where
        there is one, is the quickest way to do that.  `key` tells the work from other work.
        """
        recorder = active.get()
        if recorder is None:
            work(*inputs, *outputs)
            return
        recorder.note(self, work, inputs, outputs, key, site)
        with suspended():
            work(*inputs, *outputs)

    def into(self, work: Callable[..., Any], arrays: list[Any], out: Any, key: Any, site: Site | None) -> None:
        """Perform `work(*arrays, out)`; numbers may stand among `arrays`."""
        if active.get() is None:
            work(*arrays, out)
            return
        numbers = {k: x for k, x in enumerate(arrays) if not hasattr(x, "strides")}

        def again(*given: Any) -> None:
            inputs = list(given[:-1])
            for k, x in numbers.items():
                inputs.insert(k, x)
            work(*inputs, given[-1])

        inputs = [x for x in arrays if hasattr(x, "strides")]
        self.perform(again if numbers else work, inputs, [out], (key, str(numbers)), site)

    def recorded(
        self, forward: Callable[..., Any], arrays: list[Any], params: dict[str, Any], result: Any, name: str, site: Any
    ) -> Any:
        """The `result` of a library's function in memory of the recording, where replays put what it gives then."""
        outs = [
            self.allocate(r.shape, r.dtype, site=site) for r in (result if isinstance(result, tuple) else (result,))
        ]
        numbers, count = {k: x for k, x in enumerate(arrays) if not hasattr(x, "strides")}, len(outs)

        def again(*given: Any) -> None:  # it must not hold an Array
            inputs, results = list(given[:-count]), given[-count:]
            for k, x in numbers.items():
                inputs.insert(k, x)
            found = forward(*inputs, **params)
            for y, r in zip(results, found if isinstance(found, tuple) else (found,), strict=True):
                if r.shape != y.shape:
                    raise CaptureError(
                        f"{name}() at {describe(site)} gave {y.dtype}{list(y.shape)} when the step was recorded, and"
                        f" {list(r.shape)} now\n  leave it out of the captured step"
                    )
                as_words(y)[...] = as_words(r)

        inputs = [x for x in arrays if hasattr(x, "strides")]
        self.perform(again, inputs, [y.data for y in outs], (name, params, numbers), site)
        return tuple(outs) if isinstance(result, tuple) else outs[0]

    def arena(self) -> Arena:
        """New memory for a recording."""
        return Arena(self.xp.empty)

    def fill(self, data: Any, values: Any) -> None:
        """Put `values`, an array of NumPy or of the device's library, in the memory of `data`."""
        as_words(data)[...] = as_words(values)

    @abstractmethod
    def place(self, data: Any) -> Place:
        """Where an array of the device's library lies."""

    @abstractmethod
    def base(self, data: Any) -> int:
        """The address of the memory that an array of the device's library is part of."""

    @abstractmethod
    def at(self, place: Place) -> Any:
        """An array of the device's library that lies there, and keeps no memory."""

    def from_device(self, array: Array, site: Site | None = None) -> Array:
        """A copy of a computed `array` of another device."""
        return self.from_numpy(array.device.to_numpy(array), site=site)

    def using(self) -> AbstractContextManager[object]:
        """Direct the array library to this device for as long as the block lasts."""
        return nullcontext()

    @abstractmethod
    def allocate(self, shape: Shape, dtype: DType, category: str = "temporary", site: Site | None = None) -> Array:
        """A computed Array of undefined contents."""

    @abstractmethod
    def adopt(self, data: Any, *, borrowed: bool = False, site: Site | None = None) -> Array:
        """A computed Array over memory that a library function has allocated."""

    @abstractmethod
    def run(self, kernel: Kernel) -> None:
        """Compute the outputs of a fused kernel."""

    @abstractmethod
    def call(self, op: Any, arrays: list[Any], params: dict[str, Any], site: Site | None) -> Any:
        """The result of an op that does not fuse: an Array, or a tuple of them."""

    @abstractmethod
    def from_numpy(self, data: np.ndarray[Any, Any], *, copy: bool = True, site: Site | None = None) -> Array:
        """An Array with the contents of `data`."""

    @abstractmethod
    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        """A read-only NumPy array of the contents of a computed `array`."""

    @abstractmethod
    def synchronize(self) -> None:
        """Return when all that was asked of the device is done."""

    def check_range(
        self, array: Array, low: int, high: int, refuse: Callable[[int], Exception], ignored: int | None = None
    ) -> None:
        """See that the indexes in the computed `array` go from `low` to `high`; `ignored` may stand among them.

        The error is `refuse(index)`, for an index that does not.  It is raised at once where the device `waits`, else
        when a value is read.
        """
        data = array.data
        also(lambda: self._check_range(data, low, high, refuse, ignored))

    def check_true(
        self,
        ok: Array,
        bit: int,
        refuse: Callable[[int], Exception],
        undoing: Callable[[], Callable[[], None]] | None = None,
    ) -> None:
        """See that the one element of `ok`, a computed bool, is true; if not `bit` is set in the error word.

        The error is `refuse(0)`, raised as by `check_range`.  Where that is later, what `undoing()` gives now is called
        before, and for every check made since.
        """
        data = ok.data
        also(lambda: self._check_true(data, bit, refuse, undoing))

    def offload(self, array: Array) -> Offloaded:
        """A computed, contiguous `array` on its way to memory of the host, where the device `offloads`.

        Its memory on the device is free once two more have gone, or what is returned is dropped.
        """
        raise DeviceError(f"{self.name} cannot move arrays to memory of the host\n  keep them, or use a GPU")

    def digest(self, array: Array, axes: tuple[int, ...] | None = None) -> Any:
        """64 bits that depend on every byte of a computed `array` and on its place, for `check_digests`.

        Elements are taken in the order of these axes, the first outermost: those of the memory make it fast.
        What holds them is the device's own matter.  No recording notes it.
        """
        with suspended():
            return self._digest(array.data if axes is None else array.data.transpose(axes))

    def check_digests(self, first: Any, second: Any, refuse: Callable[[int], Exception]) -> None:
        """See that two digests are the same; if not RECOMPUTE is set in the error word.

        The error is `refuse(0)`, raised as by `check_range`.  No recording notes it.
        """
        with suspended():
            self._check_digests(first, second, refuse)

    @abstractmethod
    def _digest(self, data: Any) -> Any:
        """The digest of an array of the device's library."""

    def _check_range(
        self, data: Any, low: int, high: int, refuse: Callable[[int], Exception], ignored: int | None
    ) -> None:
        if not data.size or (data.min() >= low and data.max() <= high):
            return
        wrong = data[(data < low) | (data > high)]
        if ignored is not None:
            wrong = wrong[wrong != ignored]
        if wrong.size:
            raise refuse(int(wrong[0]))

    def _check_true(
        self, ok: Any, bit: int, refuse: Callable[[int], Exception], undoing: Callable[[], Callable[[], None]] | None
    ) -> None:
        if ok.item():
            self._flagged &= ~bit
            return
        self._flagged |= bit
        raise refuse(0)

    def _check_digests(self, first: Any, second: Any, refuse: Callable[[int], Exception]) -> None:
        if first == second:
            self._flagged &= ~RECOMPUTE
            return
        self._flagged |= RECOMPUTE
        raise refuse(0)

    def all_clear(self) -> Array | None:
        """bool[]: whether nothing is flagged so far, for what must not happen then; None where the device `waits`."""
        return None

    def attention(self, q: Any, k: Any, v: Any) -> Any:
        """What computes attention in one kernel, `forward` and `backward`, for arrays of these shapes and dtypes.

        None where products of matrices are to do it.
        """
        return None

    def head(self, x: Any, weight: Any) -> Any:
        """What computes the losses of rows `x` under the head `weight`, a chunk of rows at a time, with its gradients.

        None where ordinary ops are to do it.
        """
        return None

    def adam(self, dtypes: Iterable[DType]) -> Any:
        """What takes a `step` of Adam over all parameters of these dtypes in one kernel.

        None where fused kernels are to do it.
        """
        return None

    def describe(self) -> str:
        """What it is, in a line for `gpuad info`."""
        return f"engine {self.engine}"

    def view(self, array: Array, data: Any, site: Site | None) -> Array:
        """An Array that looks at `data`, a view of the memory of the computed `array`."""
        assert array.buffer is not None
        return computed(data, array.buffer, data.shape, array.dtype, site)

    def __repr__(self) -> str:
        return f"device({self.name!r})"
