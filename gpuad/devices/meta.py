"""A device of shapes alone: everything runs but the arithmetic, and nothing is allocated.

Its arrays are NumPy arrays of the right shape and strides over a single element, so that views behave as they do on
the CPU; their contents must never be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ..array import Array, Shape, computed
from ..buffer import Buffer
from ..dtype import DType
from ..errors import DeviceError
from ..fuse.kernel import Kernel
from ..provenance import Site, describe
from ..recording import Place
from .device import Device


def hollow(shape: Shape, dtype: DType) -> np.ndarray[Any, Any]:
    """A NumPy array with the strides of a contiguous one of `shape`, over the memory of one element."""
    strides, step = [], dtype.itemsize
    for n in reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    return as_strided(np.empty(1, dtype), shape, tuple(reversed(strides)))


class Meta(Device):
    """Shapes only, standing for the device that `like` describes."""

    computes = False

    def __init__(self, like: str) -> None:
        super().__init__()
        self.like = like
        self.name = "meta"

    @property
    def engine(self) -> str:
        """The device and engine it stands for."""
        return self.like

    def allocate(self, shape: Shape, dtype: DType, category: str = "temporary", site: Site | None = None) -> Array:
        """A computed Array without contents."""
        data = hollow(shape, dtype)
        return computed(data, Buffer(data, self, data.nbytes, category=category, site=site), shape, dtype, site)

    def adopt(self, data: Any, *, borrowed: bool = False, site: Site | None = None) -> Array:
        """A computed Array of the shape and dtype of `data`."""
        return self.allocate(data.shape, data.dtype, site=site)

    def place(self, data: Any) -> Place:
        """Never asked: nothing is recorded here."""
        raise DeviceError("arrays on the meta device have no memory")

    def base(self, data: Any) -> int:
        """Never asked: nothing is recorded here."""
        raise DeviceError("arrays on the meta device have no memory")

    def at(self, place: Place) -> Any:
        """Never asked: nothing is recorded here."""
        raise DeviceError("arrays on the meta device have no memory")

    def run(self, kernel: Kernel) -> None:
        """Nothing: the results of the kernel are allocated already."""

    def call(self, op: Any, arrays: list[Any], params: dict[str, Any], site: Site | None) -> Any:
        """Results of the shapes and dtypes that the op's rule gives."""
        found = op.infer(arrays, params)
        if isinstance(found, list):
            return tuple([self.allocate(shape, dtype, site=site) for shape, dtype in found])
        shape, dtype = found
        return self.allocate(shape, dtype, site=site)

    def _check_range(
        self, data: Any, low: int, high: int, refuse: Callable[[int], Exception], ignored: int | None
    ) -> None:
        """Return: there are no values to check."""

    def _check_true(
        self, ok: Any, bit: int, refuse: Callable[[int], Exception], undoing: Callable[[], Callable[[], None]] | None
    ) -> None:
        """Return: there is no value to check."""

    def attention(self, q: Any, k: Any, v: Any) -> Any:
        """The kernels of the device it stands for, where they are for such arrays; they are not called."""
        found: Any = None
        if self.like == "cpu:compiled":
            from . import cpu_attention as found
        elif self.like.startswith("cuda"):
            from . import cuda_attention as found
        return found if found is not None and found.takes(q, k, v) else None

    def head(self, x: Any, weight: Any) -> Any:
        """That of the device it stands for, where it is for such arrays; it is not run."""
        if not self.like.startswith("cuda"):
            return None
        from . import cuda_head

        return cuda_head.Head(self) if cuda_head.takes(x, weight) else None

    def adam(self, dtypes: Iterable[DType]) -> Any:
        """That of the device it stands for, where it is for such parameters; it allocates, and writes nothing."""
        if not self.like.startswith("cuda"):
            return None
        from . import cuda_optimizer

        return cuda_optimizer.Adam(self) if cuda_optimizer.takes(dtypes) else None

    def from_device(self, array: Array, site: Site | None = None) -> Array:
        """An Array of the shape and dtype of `array`."""
        return self.allocate(array.shape, array.dtype, site=site)

    def from_numpy(self, data: np.ndarray[Any, Any], *, copy: bool = True, site: Site | None = None) -> Array:
        """An Array of the shape and dtype of `data`."""
        return self.allocate(data.shape, data.dtype, site=site)

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        """Never: a DeviceError that names the line that made the array."""
        raise DeviceError(
            f"an array on the meta device has a shape but no values ({array.dtype}{list(array.shape)}, made at"
            f" {describe(array.site)})\n  run on another device to read values"
        )

    def describe(self) -> str:
        """What it is, in a line for `gpuad info`."""
        return "shapes only"

    def synchronize(self) -> None:
        """Return: nothing runs here."""
