"""The CPU, through NumPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..array import Array, Shape, computed
from ..buffer import Buffer, shared
from ..dtype import DType
from ..fuse import engines
from ..fuse.kernel import Kernel
from ..provenance import Site
from .device import Device
from .reuse import SMALLEST, Reuse


class _Window:
    """The memory of a NumPy array as NumPy may read it: being no array itself, it gives no way to write."""

    def __init__(self, data: np.ndarray[Any, Any]) -> None:
        self.data = data
        self.__array_interface__ = {
            "shape": data.shape,
            "strides": data.strides,
            "typestr": f"|V{data.itemsize}",  # the interface knows no bfloat16; the caller puts the dtype back
            "data": (data.ctypes.data, True),
            "version": 3,
        }


class CPU(Device):
    """NumPy arrays; fused kernels run in cache-sized blocks."""

    name = "cpu"

    @property
    def engine(self) -> str:
        """What runs fused kernels: "numpy" or "compiled"."""
        return engines.engine()

    def __init__(self) -> None:
        super().__init__()
        self.reuse = Reuse()

    def allocate(self, shape: Shape, dtype: DType, category: str = "temporary", site: Site | None = None) -> Array:
        """A computed Array of undefined contents."""
        nbytes = math.prod(shape) * dtype.itemsize
        data, owner = self.reuse.take(shape, dtype, nbytes)
        return computed(
            data, Buffer(owner, self, nbytes, reusable=True, category=category, site=site), shape, dtype, site
        )

    def recycle(self, owner: Any, nbytes: int) -> None:
        """Keep the memory of a buffer that is going, for another."""
        if nbytes >= SMALLEST:
            self.reuse.give(owner)

    def adopt(self, data: Any, *, borrowed: bool = False, site: Site | None = None) -> Array:
        """A computed Array over a NumPy array, which is not copied."""
        data = np.asarray(data)
        owner = data
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        buffer = shared.get(id(owner))  # what a library returns may be a view of its argument
        if buffer is None:
            buffer = Buffer(owner, self, owner.nbytes, borrowed=borrowed, site=site)
        return computed(data, buffer, data.shape, data.dtype, site)

    def run(self, kernel: Kernel) -> None:
        """Compute the outputs of a fused kernel."""
        engines.run(kernel)

    def call(self, op: Any, arrays: list[Any], params: dict[str, Any], site: Site | None) -> Any:
        """The result of an op that does not fuse, with NumPy."""
        with np.errstate(all="ignore"):
            if op.into is not None:
                shape, dtype = op.infer(arrays, params)
                out = self.allocate(shape, dtype, site=site)
                op.into(np, *arrays, out.data, **params)
                return out
            result = op.forward(np, *arrays, **params)
        if isinstance(result, tuple):
            return tuple([self.adopt(r, site=site) for r in result])
        return self.adopt(result, site=site)

    def describe(self) -> str:
        """The engine, and with what it computes."""
        if self.engine != "compiled":
            return f"engine {self.engine}"
        from ..fuse import compiler, threads

        return f"engine compiled, by {compiler.identity().splitlines()[0].split(' ')[0]}, {threads.count()} threads"

    def attention(self, q: Any, k: Any, v: Any) -> Any:
        """The compiled kernels, where they are for such arrays."""
        if engines.engine() != "compiled":
            return None
        from . import cpu_attention  # here, so that importing gpuad does not wait for it

        return cpu_attention if cpu_attention.takes(q, k, v) else None

    def from_numpy(self, data: np.ndarray[Any, Any], *, copy: bool = True, site: Site | None = None) -> Array:
        """An Array with the contents of `data`; without `copy` it borrows the memory."""
        if not copy:
            return self.adopt(data, borrowed=True, site=site)
        array = self.allocate(data.shape, data.dtype, site=site)
        array.data[...] = data
        return array

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        """A read-only view, which keeps the memory and cannot be made writable."""
        return np.asarray(_Window(array.data)).view(array.dtype)

    def synchronize(self) -> None:
        """Return: NumPy is always done."""
