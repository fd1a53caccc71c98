"""A device of shapes alone: everything runs but the arithmetic, and nothing is allocated.

Its arrays are NumPy arrays of the right shape and strides over a single element, so that views behave as they do on
the CPU; their contents must never be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ..array import TOTAL, Array, Shape, computed
from ..buffer import Buffer
from ..dtype import DType
from ..errors import DeviceError
from ..fuse.kernel import Kernel, structure
from ..provenance import Site, describe
from ..recording import Place
from .device import Device
from .offload import Copies, Offloaded, Offloads


def hollow(shape: Shape, dtype: DType) -> np.ndarray[Any, Any]:
    """A NumPy array with the strides of a contiguous one of `shape`, over the memory of one element."""
    strides, step = [], dtype.itemsize
    for n in reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    return as_strided(np.empty(1, dtype), shape, tuple(reversed(strides)))


class Partials(NamedTuple):
    """The memory that a device takes for the partial results of a run of a kernel: elements of dtypes.

    What is `kept` is taken once for all runs, and is no part of them.
    """

    kernel: Any  # its structure
    sizes: list[tuple[int, DType]]
    kept: bool

    @property
    def nbytes(self) -> int:
        """The bytes."""
        return sum(n * dtype.itemsize for n, dtype in self.sizes)


_known: dict[tuple[str, Any], Partials] = {}  # cache: by structure


def _partials(like: str, kernel: Kernel) -> Partials:
    """What a device that is `like` that takes for a kernel."""
    key = like, structure(kernel)
    if key not in _known:
        from ..fuse import compiled, engines
        from ..fuse.emit import emit

        sizes: list[tuple[int, DType]] = []
        if like.startswith("cuda") or (like == "cpu:compiled" and engines.compiles(kernel)):
            sizes = emit(kernel).partial_sizes(kernel)
        _known[key] = Partials(key, sizes, like == "cpu:compiled" and compiled.keeps(sizes))
    return _known[key]


class _Attention:
    """Kernels for attention that compute nothing, and take the workspace that those of a GPU take."""

    def __init__(self, device: Meta, *, workspace: bool) -> None:
        self.device, self.workspace = device, workspace

    def forward(self, *arrays: Any, **params: Any) -> None:
        """Nothing."""

    def backward(self, q: Any, *arrays: Any, **params: Any) -> None:
        """Take the workspace, and give it back."""
        if self.workspace:
            self.device.allocate((q.shape[0] * q.shape[1], q.shape[2]), np.dtype(np.float32), "workspace")


class Meta(Device):
    """Shapes only, standing for the device that `like` describes."""

    computes = False

    def __init__(self, like: str) -> None:
        super().__init__()
        self.like = like
        self.offloads = like.startswith("cuda")
        self.away = Offloads(self, Copies())
        self.partials: list[Partials] | None = None  # of each kernel that runs, while somebody wants to know
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

    def offload(self, array: Array) -> Offloaded:
        """`array`, whose bytes go and come as on a GPU that it stands for."""
        return self.away.offload(array) if self.offloads else super().offload(array)

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
        """Take the memory for partial results that the device it stands for takes, and give it back."""
        if not any(node.op is not None and node.op.fusion == TOTAL for node in kernel.nodes):
            return
        found = _partials(self.like, kernel)
        if self.partials is not None:
            self.partials.append(found)
        if not found.kept:
            held = [self.allocate((n,), dtype, "workspace") for n, dtype in found.sizes]
            del held

    def call(self, op: Any, arrays: list[Any], params: dict[str, Any], site: Site | None) -> Any:
        """Results of the shapes and dtypes that the op's rule gives."""
        found = op.infer(arrays, params)
        if self.like.startswith("cuda"):
            from . import cuda_index, cuda_products

            if op.name in cuda_products.PRODUCTS:
                shape, dtype = found
                out = self.allocate(shape, dtype, site=site)
                cuda_products.PRODUCTS[op.name](self, *arrays, out.data)
                return out
            cuda_index.workspace(self, op.name, arrays, params)
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

    def _digest(self, data: Any) -> Any:
        if not data.flags.c_contiguous:
            self.allocate(data.shape, data.dtype, "workspace")
        return self.allocate((1,), np.dtype(np.uint64), "workspace") if self.like.startswith("cuda") else 0

    def _check_digests(self, first: Any, second: Any, refuse: Callable[[int], Exception]) -> None:
        """Return: all are the same."""

    def attention(self, q: Any, k: Any, v: Any) -> Any:
        """The kernels of the device it stands for, where they are for such arrays, without their work."""
        if self.like == "cpu:compiled":
            from . import cpu_attention

            return _Attention(self, workspace=False) if cpu_attention.takes(q, k, v) else None
        if self.like.startswith("cuda"):
            from . import cuda_attention

            return _Attention(self, workspace=True) if cuda_attention.takes(q, k, v) else None
        return None

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
        return self.allocate(data.shape, data.dtype, "input", site)

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
