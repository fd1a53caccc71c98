"""An NVIDIA GPU, through CuPy.

CuPy brings the memory pool, NVRTC, cuBLAS and the functions that do not fuse.  Everything runs on one stream of the
device's own, ordered with the caller's current stream by events where arrays come in and go out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from ..array import Array, Shape, computed
from ..array import describe as shown
from ..buffer import Buffer, shared
from ..dtype import DType, bfloat16
from ..errors import DeviceError
from ..fuse.kernel import Kernel
from ..provenance import Site
from ..recording import Place, active, refuse
from . import cuda_attention, cuda_digest, cuda_head, cuda_index, cuda_optimizer, cuda_products
from .cuda_checks import Checks
from .cuda_launch import Launcher
from .device import Device
from .offload import CudaCopies, Offloaded, Offloads
from .words import as_words, operands_as_words

INSTALL = 'pip install "gpuad[cuda12x]" (for CUDA 13 drivers "gpuad[cuda13x]")'
OLDEST = 14  # the first CuPy with bfloat16, and views that never copy


def find_cupy() -> Any:
    """CuPy, on a machine with a driver and a GPU; else a DeviceError that says what is missing, and the remedy."""
    try:
        import cupy
    except ImportError as error:
        raise DeviceError(f"CuPy cannot be imported ({error})\n  {INSTALL}") from None
    if int(cupy.__version__.split(".")[0]) < OLDEST:
        raise DeviceError(f"CuPy {cupy.__version__} is too old; {OLDEST} has what is needed\n  {INSTALL}")
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except RuntimeError as error:
        raise DeviceError(f"the NVIDIA driver is missing or too old ({error})\n  install a newer driver") from None
    if not count:
        raise DeviceError("the driver finds no GPU\n  see what nvidia-smi lists, and CUDA_VISIBLE_DEVICES")
    return cupy


def _with_cupy(op: Any, device: Any, *arrays: Any, **params: Any) -> Any:
    """What CuPy's functions give for `op`."""
    given = list(arrays)
    words, options = operands_as_words(op.name, given, params)
    result = op.forward(device.xp, *words, **options)
    return result.view(bfloat16) if words is not given else result


def _into_with_cupy(op: Any, device: Any, *arrays: Any, **params: Any) -> None:
    """Write what CuPy's functions give for `op` to the last of `arrays`."""
    *given, out = arrays
    words, options = operands_as_words(op.name, given, params)
    op.into(device.xp, *words, as_words(out), **options)


class Cuda(Device):
    """One GPU: CuPy arrays, kernels compiled by NVRTC."""

    offloads = True
    waits = False

    def __init__(self, index: int) -> None:
        self.xp = cupy = find_cupy()
        count = cupy.cuda.runtime.getDeviceCount()
        if not 0 <= index < count:
            raise DeviceError(f"this machine has {count} GPU{'s' * (count > 1)}\n  the first is cuda:0")
        self.name, self.index = f"cuda:{index}", index
        with cupy.cuda.Device(index) as gpu:
            self.stream = cupy.cuda.Stream(non_blocking=True)
            self.architecture = f"sm_{gpu.compute_capability}"
        self.mixed = False  # has memory gone to others, or come from them?
        self.launcher = Launcher(self)
        self.checks = Checks(self)
        self.away: Offloads | None = None  # made when an array first goes
        super().__init__()

    @property
    def engine(self) -> str:
        """The architecture that kernels are compiled for."""
        return self.architecture

    @contextmanager
    def using(self) -> Iterator[None]:
        """Let CuPy work on this device and its stream inside the block.

        Once memory has come from others or gone to them, what they do before and after is kept in order with it.
        """
        cuda = self.xp.cuda
        with cuda.Device(self.index):
            theirs = cuda.get_current_stream()
            if not self.mixed or theirs == self.stream:
                with self.stream:
                    yield
                return
            self.stream.wait_event(theirs.record())
            try:
                with self.stream:
                    yield
            finally:
                theirs.wait_event(self.stream.record())

    # --- memory -----------------------------------------------------------------------------

    def allocate(self, shape: Shape, dtype: DType, category: str = "temporary", site: Site | None = None) -> Array:
        """A computed Array of undefined contents, from CuPy's pool."""
        recorder = active.get()
        with self.using():
            if recorder is not None:
                return recorder.allocate(self, shape, dtype, math.prod(shape) * dtype.itemsize, category, site)
            data = self.xp.empty(shape, dtype)
        return computed(data, Buffer(data, self, data.nbytes, category=category, site=site), shape, dtype, site)

    def adopt(self, data: Any, *, borrowed: bool = False, site: Site | None = None) -> Array:
        """A computed Array over a CuPy array, which is not copied."""
        owner = data if data.base is None else data.base
        buffer = shared.get(id(owner))  # what a library returns may be a view of its argument
        if buffer is None:
            kind = "input" if borrowed else "temporary"
            buffer = Buffer(owner, self, owner.nbytes, borrowed=borrowed, category=kind, site=site)
        return computed(data, buffer, data.shape, data.dtype, site)

    def from_numpy(self, data: np.ndarray[Any, Any], *, copy: bool = True, site: Site | None = None) -> Array:
        """An Array with the contents of `data`."""
        refuse("what Python puts into tensors", "make the tensor before, or pass it to the step as an argument")
        array = self.allocate(data.shape, data.dtype, "input", site)
        with self.using():
            array.data.set(np.asarray(data, order="C"))
        return array

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        """A read-only copy, once everything before it is done; what was flagged till then is raised."""
        refuse(f"the values of {shown(array)}", "return the tensor from the step, and read it there")
        with self.using():
            values: np.ndarray[Any, Any] = self.xp.asnumpy(array.data)
            self.checks.read()
        values.flags.writeable = False
        return values

    def import_array(self, data: Any, *, copy: bool, site: Site | None = None) -> Array:
        """An Array with the values of an array on this GPU as they are when the caller's current stream gets there.

        `data` is a CuPy array, or exports DLPack or the CUDA array interface.  Without `copy` its memory is borrowed.
        """
        cupy = self.xp
        with cupy.cuda.Device(self.index):
            theirs = cupy.cuda.get_current_stream()
            if not isinstance(data, cupy.ndarray):
                data = cupy.from_dlpack(data) if hasattr(data, "__dlpack__") else cupy.asarray(data)
            self.stream.wait_event(theirs.record())
        if not copy:
            self.mixed = True
            return self.adopt(data, borrowed=True, site=site)
        array = self.allocate(data.shape, data.dtype, site=site)
        with self.using():
            as_words(array.data)[...] = as_words(data)
            theirs.wait_event(self.stream.record())  # before the caller's next write
        return array

    def export_array(self, array: Array) -> Any:
        """The memory of a computed `array` as a CuPy array, for the caller's current stream."""
        self.mixed = True
        with self.xp.cuda.Device(self.index):
            self.xp.cuda.get_current_stream().wait_event(self.stream.record())
        return array.data.view()

    def from_device(self, array: Array, site: Site | None = None) -> Array:
        """A copy of a computed `array` of another device; from GPU to GPU it does not pass through the host."""
        source = array.device
        if not isinstance(source, Cuda):
            return super().from_device(array, site)
        with source.using():
            data = source.xp.ascontiguousarray(array.data)
            ready = source.stream.record()
        copy = self.allocate(array.shape, array.dtype, site=site)
        with self.using():
            self.stream.wait_event(ready)
            copy.data.data.copy_from_device_async(data.data, data.nbytes, self.stream)
            done = self.stream.record()
        source.stream.wait_event(done)  # before the memory it came from is used again
        return copy

    def offload(self, array: Array) -> Offloaded:
        """A computed, contiguous `array` on its way to pinned memory of the host."""
        with self.lock:
            if self.away is None:
                self.away = Offloads(self, CudaCopies(self))
        return self.away.offload(array)

    # --- computing --------------------------------------------------------------------------

    def run(self, kernel: Kernel) -> None:
        """Compute the outputs of a fused kernel."""
        with self.using():
            job = self.launcher.job(kernel)
            key = None if active.get() is None else (kernel.ops, job.key)
            self.perform(job, [x.data for x in kernel.leaves], kernel.results, key)

    def fill(self, data: Any, values: Any) -> None:
        """Put `values`, an array of NumPy or CuPy, in the memory of `data`, which is contiguous."""
        if isinstance(values, np.ndarray):
            data.set(np.asarray(values, order="C"))
        else:
            super().fill(data, values)

    def place(self, data: Any) -> Place:
        """Where a CuPy array lies."""
        return Place(data.data.mem.ptr, data.data.ptr, data.shape, data.strides, data.dtype)

    def base(self, data: Any) -> int:
        """The address of the memory that a CuPy array is part of."""
        address: int = data.data.mem.ptr
        return address

    def at(self, place: Place) -> Any:
        """A CuPy array that lies there, and keeps no memory."""
        memory = self.xp.cuda.UnownedMemory(place.address, self._span(place), None, self.index)
        pointer = self.xp.cuda.MemoryPointer(memory, 0)
        return self.xp.ndarray(place.shape, place.dtype, pointer, place.strides)

    def _span(self, place: Place) -> int:
        """The bytes from the first element to the end of the last."""
        steps = ((n - 1) * stride for n, stride in zip(place.shape, place.strides, strict=True) if n > 0)
        span: int = place.dtype.itemsize + sum(max(step, 0) for step in steps)
        return span

    def call(self, op: Any, arrays: list[Any], params: dict[str, Any], site: Site | None) -> Any:
        """The result of an op that does not fuse: with a kernel of ours, or with CuPy."""
        with self.lock, self.using():
            if op.into is None:
                forward = partial(cuda_index.BY_NAME.get(op.name) or partial(_with_cupy, op), self)
                result = forward(*arrays, **params)
                if active.get() is not None:
                    return self.recorded(forward, arrays, params, result, op.name, site)
                return self._adopted(result, site)
            shape, dtype = op.infer(arrays, params)
            out = self.allocate(shape, dtype, site=site)
            into = partial(cuda_products.PRODUCTS.get(op.name) or partial(_into_with_cupy, op), self, **params)
            self.into(into, arrays, out.data, (op.name, params), site)
            return out

    def attention(self, q: Any, k: Any, v: Any) -> Any:
        """The kernels of `kernels/attention.cu`, where they are for such arrays."""
        return cuda_attention.Attention(self) if cuda_attention.takes(q, k, v) else None

    def head(self, x: Any, weight: Any) -> Any:
        """Products by cuBLAS around `kernels/head.cu`, where it is for such arrays."""
        return cuda_head.Head(self) if cuda_head.takes(x, weight) else None

    def adam(self, dtypes: Iterable[DType]) -> Any:
        """The kernels of `kernels/adamw.cu` and `kernels/norm.cu`, where they are for such parameters."""
        return cuda_optimizer.Adam(self) if cuda_optimizer.takes(dtypes) else None

    def _adopted(self, result: Any, site: Site | None) -> Any:
        if isinstance(result, tuple):
            return tuple([self.adopt(r, site=site) for r in result])
        return self.adopt(result, site=site)

    # --- errors -----------------------------------------------------------------------------

    @property
    def error_word(self) -> int:
        """What is flagged and not raised yet, once the device has come to where it is asked."""
        with self.using():
            return self.checks.bits()

    def _check_range(
        self, data: Any, low: int, high: int, refuse: Callable[[int], Exception], ignored: int | None
    ) -> None:
        if data.size:
            with self.using():
                self.checks.range(data, low, high, refuse, ignored)

    def _check_true(
        self, ok: Any, bit: int, refuse: Callable[[int], Exception], undoing: Callable[[], Callable[[], None]] | None
    ) -> None:
        with self.using():
            self.checks.true(ok, bit, refuse, None if undoing is None else undoing())

    def _digest(self, data: Any) -> Array:
        with self.lock, self.using():
            return cuda_digest.digest(self, data)

    def _check_digests(self, first: Any, second: Any, refuse: Callable[[int], Exception]) -> None:
        with self.using():
            self.checks.same(first.data, second.data, refuse)

    def all_clear(self) -> Array:
        """bool[]: whether nothing is flagged at this place in the order of the device's work."""
        with self.using():
            return self.checks.clear()

    def describe(self) -> str:
        """The GPU's name, memory and compute capability, and the versions of driver and runtime."""
        cupy = self.xp
        runtime = cupy.cuda.runtime
        found = runtime.getDeviceProperties(self.index)
        name = found["name"].decode() if isinstance(found["name"], bytes) else found["name"]
        driver, own = (
            f"{n // 1000}.{n % 1000 // 10}" for n in (runtime.driverGetVersion(), runtime.runtimeGetVersion())
        )
        return (
            f"engine {self.engine}: {name}, {found['totalGlobalMem'] / 2**30:.0f} GiB; driver for CUDA {driver},"
            f" runtime {own}, CuPy {cupy.__version__}"
        )

    def synchronize(self) -> None:
        """Return when all that was asked of the device is done; what was flagged till then is raised."""
        self.stream.synchronize()
        with self.using():
            self.checks.read()
