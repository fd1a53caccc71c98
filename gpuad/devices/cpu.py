"""The CPU, through NumPy."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np

from ..array import ANCHOR, Array, Shape, computed, describe
from ..buffer import Buffer, shared
from ..dtype import DType
from ..fuse import engines
from ..fuse.kernel import Kernel
from ..provenance import Site
from ..recording import Place, active, refuse
from .device import Device
from .reuse import Reuse


class _Window:
    """Memory as NumPy may look at it.  Being no array itself it gives no way to write where it is `read_only`.

    `held` is what keeps the memory, if anything.
    """

    def __init__(self, place: Place, *, read_only: bool, held: Any = None) -> None:
        self.held = held
        self.__array_interface__ = {
            "shape": place.shape,
            "strides": place.strides,
            "typestr": f"|V{place.dtype.itemsize}",  # the interface knows no bfloat16; the caller puts the dtype back
            "data": (place.address, read_only),
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
        recorder = active.get()
        if recorder is not None:
            return recorder.allocate(self, shape, dtype, nbytes, category, site)
        data, owner = self.reuse.take(shape, dtype, nbytes)
        return computed(
            data, Buffer(owner, self, nbytes, home=self.reuse, category=category, site=site), shape, dtype, site
        )

    def adopt(self, data: Any, *, borrowed: bool = False, site: Site | None = None) -> Array:
        """A computed Array over a NumPy array, which is not copied."""
        data = np.asarray(data)
        owner = data
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        buffer = shared.get(id(owner))  # what a library returns may be a view of its argument
        if buffer is None:
            kind = "input" if borrowed else "temporary"
            buffer = Buffer(owner, self, owner.nbytes, borrowed=borrowed, category=kind, site=site)
        return computed(data, buffer, data.shape, data.dtype, site)

    def run(self, kernel: Kernel) -> None:
        """Compute the outputs of a fused kernel."""
        job = engines.job(kernel)
        key = None if active.get() is None else (kernel.ops, job.key)
        self.perform(job, [x.data for x in kernel.leaves], kernel.results, key)

    def place(self, data: Any) -> Place:
        """Where a NumPy array lies."""
        return Place(self.base(data), data.__array_interface__["data"][0], data.shape, data.strides, data.dtype)

    def base(self, data: Any) -> int:
        """The address of the memory that a NumPy array is part of."""
        while isinstance(data.base, np.ndarray):
            data = data.base
        address: int = data.__array_interface__["data"][0]
        return address

    def at(self, place: Place) -> Any:
        """A NumPy array that lies there, and keeps no memory."""
        return np.asarray(_Window(place, read_only=False)).view(place.dtype)

    def call(self, op: Any, arrays: list[Any], params: dict[str, Any], site: Site | None) -> Any:
        """The result of an op that does not fuse, with NumPy."""
        with np.errstate(all="ignore"):
            if op.into is not None:
                shape, dtype = op.infer(arrays, params)
                out = self.allocate(shape, dtype, site=site)
                work = self._product(op) or partial(op.into, np)
                self.into(partial(work, **params) if params else work, arrays, out.data, (op.name, params), site)
                return out
            result = op.forward(np, *arrays, **params)
            if active.get() is not None:
                return self.recorded(partial(op.forward, np), arrays, params, result, op.name, site)
        if isinstance(result, tuple):
            return tuple([self.adopt(r, site=site) for r in result])
        return self.adopt(result, site=site)

    def _product(self, op: Any) -> Any:
        """What computes the op where it is a product of matrices and the engine has its own."""
        if op.fusion != ANCHOR or engines.engine() != "compiled":
            return None
        from .cpu_products import PRODUCTS  # here, so that importing gpuad does not wait for it

        return PRODUCTS.get(op.name)

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
        refuse("what Python puts into tensors", "make the tensor before, or pass it to the step as an argument")
        if not copy:
            return self.adopt(data, borrowed=True, site=site)
        array = self.allocate(data.shape, data.dtype, "input", site)
        array.data[...] = data
        return array

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        """A read-only view, which keeps the memory and cannot be made writable."""
        refuse(f"the values of {describe(array)}", "return the tensor from the step, and read it there")
        data = array.data
        return np.asarray(_Window(self.place(data), read_only=True, held=data)).view(array.dtype)

    def _digest(self, data: Any) -> int:
        from . import cpu_digest  # here, so that importing gpuad does not wait for it

        with self.lock:
            if not data.flags.c_contiguous:
                copy = self.allocate(data.shape, data.dtype, "workspace").data
                copy[...] = data
                data = copy
            return cpu_digest.digest(data)

    def synchronize(self) -> None:
        """Return: NumPy is always done."""
