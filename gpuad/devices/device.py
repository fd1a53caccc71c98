"""What every device offers: memory, kernels, copies.  Nothing outside `devices/` and `fuse/` knows which one it has."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

from ..array import Array, Shape, computed
from ..dtype import DType
from ..provenance import Site

if TYPE_CHECKING:
    from ..fuse.kernel import Kernel

NON_FINITE = 1  # the bit of a device's error word that a step with infinities or NaN sets


class Device(ABC):
    """One place where arrays live.  Devices are compared by identity; `devices.device(name)` gives the one."""

    name: str
    engine: str  # which machinery runs fused kernels here
    computes = True  # False where arrays have shapes but no values

    def __init__(self) -> None:
        self.lock = threading.RLock()  # taken while arrays are realized
        self.error_word = 0

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

    def recycle(self, owner: Any, nbytes: int) -> None:  # noqa: B027  # most devices have nothing to do
        """Keep the memory of a buffer that is going, for another."""

    def view(self, array: Array, data: Any, site: Site | None) -> Array:
        """An Array that looks at `data`, a view of the memory of the computed `array`."""
        assert array.buffer is not None
        return computed(data, array.buffer, data.shape, array.dtype, site)

    def __repr__(self) -> str:
        return f"device({self.name!r})"
