"""What Tensor offers to other libraries: NumPy's protocols, the array API's namespace, DLPack, CuPy's arrays.

NumPy's functions on tensors are gpuad's, with their derivatives.  What leaves as a NumPy array is a read-only view;
what leaves through DLPack or as a CuPy array is lent, or copied where something pending or kept still reads the memory.
"""

from __future__ import annotations

import sys
import sysconfig
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast
from weakref import finalize

import numpy as np

from .array import Array, describe
from .errors import DeviceError, GradientError
from .fuse.plan import exclusive, realize
from .operators import operators
from .provenance import Site, here, is_inside
from .provenance import describe as describe_site

if TYPE_CHECKING:
    from .tensor import Tensor

CPU_DEVICE = (1, 0)  # kDLCPU of DLPack, and its only device
CUDA = 2  # kDLCUDA


class Exports:
    """The protocols through which other libraries read a tensor."""

    __slots__ = ()

    # --- NumPy ------------------------------------------------------------------------------

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        """The values as a read-only view, or a writable copy where one is asked for or the dtype changes."""
        tensor = cast("Tensor", self)
        if tensor.device.name.startswith("cuda"):
            raise DeviceError(
                f"{describe(self)} is on {tensor.device.name}; a NumPy array of it would be a copy, at"
                f" {describe_site(here(2))}\n  ask for it with .numpy()"
            )
        values = tensor.numpy()
        if dtype is not None and values.dtype != dtype:
            if copy is False:
                raise ValueError(
                    f"{describe(self)} cannot become {np.dtype(dtype)} without a copy; leave copy=False out"
                )
            return values.astype(dtype)
        return values.copy() if copy else values

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """The result of a NumPy ufunc as a tensor."""
        from .numpy_names import call_ufunc

        return call_ufunc(ufunc, method, inputs, kwargs)

    def __array_function__(self, func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of a NumPy function as a tensor."""
        from .numpy_names import call_function

        return call_function(func, types, args, kwargs)

    def __array_namespace__(self, *, api_version: str | None = None) -> ModuleType:
        """The module of array API functions for tensors: gpuad."""
        import gpuad

        offered = getattr(gpuad, "__array_api_version__", None)
        if api_version is not None and offered is not None and api_version > offered:
            raise ValueError(f"gpuad follows the array API standard {offered}, but {api_version} was asked for")
        return gpuad

    # --- DLPack -----------------------------------------------------------------------------

    def __dlpack_device__(self) -> tuple[int, int]:
        """DLPack's name for where the values are."""
        kind, _, index = cast("Tensor", self).device.name.partition(":")
        if kind == "meta":
            raise BufferError("DLPack has no meta device, whose tensors have no values")
        return (CUDA, int(index)) if kind == "cuda" else CPU_DEVICE

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A DLPack capsule: the memory itself, which is borrowed from then on, or a copy of it.

        The memory is copied with `copy=True`, and by default where another tensor, a view, a pending expression or
        a tape holds it, so that what the consumer writes changes nothing but this tensor.
        """
        tensor = cast("Tensor", self)
        if tensor.trace is not None or tensor.link is not None:
            where = f"inside {tensor.trace.kind}()" if tensor.trace is not None else "that requires grad"
            raise BufferError(
                f"__dlpack__() of {describe(self)} {where} would lose its derivative at {describe_site(here(2))}\n"
                "  export x.detach() if it is meant to be constant"
            )
        here_device = self.__dlpack_device__()
        if dl_device is not None and tuple(dl_device) != here_device:
            if tuple(dl_device) == CPU_DEVICE and copy is not False:
                return tensor.to("cpu").__dlpack__(max_version=max_version)
            raise BufferError(f"a tensor on {tensor.device.name} cannot be exported to DLPack device {dl_device}")
        if stream is not None and here_device == CPU_DEVICE:
            raise BufferError(f"the CPU has no streams, but __dlpack__() got stream={stream!r}")
        array = realize(tensor.data)
        if copy is not True and not _lend(array):
            if copy is False:
                raise BufferError(
                    f"the memory of {describe(self)} is also held by another tensor, a view, a pending expression or a"
                    " tape, which what the consumer writes would corrupt\n  leave copy=False out"
                )
            copy = True
        if here_device != CPU_DEVICE:
            if copy:
                array = realize(operators.copy(tensor).data)
            gpu: Any = array.device
            lent = gpu.export_array(array)
            with gpu.using():  # whose stream the consumer's is to wait for
                return lent.__dlpack__(stream=stream, max_version=max_version)
        data = np.array(array.data, order="C") if copy else array.data
        try:
            return data.__dlpack__(max_version=max_version) if _NEW_NUMPY else data.__dlpack__()
        except BufferError as error:
            raise BufferError(
                f"{describe(self)} cannot be exported through DLPack: {error}\n  use .to(dtype) first"
            ) from error

    # --- CuPy -------------------------------------------------------------------------------

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Where the values are on a GPU: the memory itself, which is borrowed from then on.

        Where something else holds the memory this tensor goes on with a copy of its own, which is lent.
        """
        tensor = cast("Tensor", self)
        if not tensor.device.name.startswith("cuda"):
            raise AttributeError(f"a tensor on {tensor.device.name} has no __cuda_array_interface__")
        if tensor.trace is not None or tensor.link is not None:
            raise GradientError(
                f"__cuda_array_interface__ of {describe(self)} would lose its derivative at {describe_site(here(2))}\n"
                "  export x.detach() if it is meant to be constant"
            )
        array = realize(tensor.data)
        if not _lend(array):
            del array
            tensor.data = realize(operators.copy(tensor).data)
            array = tensor.data
            _lend(array)
        _hold(tensor, array)
        gpu: Any = array.device
        lent = gpu.export_array(array)
        with gpu.using():
            found: dict[str, Any] = lent.__cuda_array_interface__
        return found

    def cupy(self) -> Any:
        """The values of a tensor on a GPU as a CuPy array: the memory itself, which is borrowed from then on.

        Where something else holds the memory (a tape, a view, an optimizer) the array is a copy.
        """
        tensor = cast("Tensor", self)
        tensor._refuse_inside("cupy()")
        if not tensor.device.name.startswith("cuda"):
            raise DeviceError(
                f"cupy() needs a tensor on a GPU, and {describe(self)} is on {tensor.device.name}\n"
                '  move it with .to("cuda")'
            )
        array = realize(tensor.array)
        if tensor.link is not None or not _lend(array):
            array = realize(operators.copy(tensor.detach()).data)
        device: Any = array.device
        return device.export_array(array)


_NEW_NUMPY = tuple(int(n) for n in np.__version__.split(".")[:2]) >= (2, 1)  # where arrays take `max_version`


def _lend(array: Array) -> bool:
    """Whether others may write the computed `array` from now on: True unless its memory is held more than once."""
    assert array.buffer is not None
    if array.buffer.borrowed:
        return True
    if not exclusive(array, held=3):  # by the tensor, by `__dlpack__` and here
        return False
    array.buffer.lend(_asker())
    return True


_held: dict[int, list[Array]] = {}  # what tensors have lent as addresses alone, by the id of the tensor


def _hold(tensor: Tensor, array: Array) -> None:
    """Keep `array` as long as `tensor` lives, even rebound: the consumer has an address, and holds the tensor."""
    arrays = _held.get(id(tensor))
    if arrays is None:
        arrays = _held[id(tensor)] = []
        finalize(tensor, _held.pop, id(tensor), None).atexit = False
    if all(a.buffer is not array.buffer for a in arrays):
        arrays.append(array)


_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("purelib", "platlib")})


def _asker() -> Site | None:
    """The line that asked for the memory, behind the lines of the library that takes it."""
    frame = sys._getframe(1)
    while frame.f_back is not None and (
        is_inside(frame.f_code.co_filename) or frame.f_code.co_filename.startswith(_LIBRARIES)
    ):
        frame = frame.f_back
    return frame.f_code, frame.f_lasti
