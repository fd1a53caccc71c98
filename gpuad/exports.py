"""What Tensor offers to other libraries: NumPy's protocols, the array API's namespace, DLPack.

NumPy's functions on tensors are gpuad's, with their derivatives.  What leaves as a NumPy array is a read-only view;
what leaves through DLPack is lent, or copied where something pending or kept still reads the memory.
"""

from __future__ import annotations

import sys
import sysconfig
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from .array import Array, describe
from .fuse.plan import exclusive, realize
from .provenance import Site, here, is_inside
from .provenance import describe as describe_site

if TYPE_CHECKING:
    from .tensor import Tensor

CPU_DEVICE = (1, 0)  # kDLCPU of DLPack, and its only device


class Exports:
    """The protocols through which other libraries read a tensor."""

    __slots__ = ()

    # --- NumPy ------------------------------------------------------------------------------

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        """The values as a read-only view, or a writable copy where one is asked for or the dtype changes."""
        values = cast("Tensor", self).numpy()
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
        device = cast("Tensor", self).device
        if device.name != "cpu":
            raise BufferError(
                f"DLPack has no {device.name} device, or none that gpuad exports yet; use .to('cpu') first"
            )
        return CPU_DEVICE

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
            raise BufferError(f"a tensor on the CPU cannot be exported to DLPack device {dl_device}")
        if stream is not None:
            raise BufferError(f"the CPU has no streams, but __dlpack__() got stream={stream!r}")
        array = realize(tensor.data)
        if copy is not True and not _lend(array):
            if copy is False:
                raise BufferError(
                    f"the memory of {describe(self)} is also held by another tensor, a view, a pending expression or a"
                    " tape, which what the consumer writes would corrupt\n  leave copy=False out"
                )
            copy = True
        data = np.array(array.data, order="C") if copy else array.data
        try:
            return data.__dlpack__(max_version=max_version) if _NEW_NUMPY else data.__dlpack__()
        except BufferError as error:
            raise BufferError(
                f"{describe(self)} cannot be exported through DLPack: {error}\n  use .to(dtype) first"
            ) from error


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


_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("purelib", "platlib")})


def _asker() -> Site | None:
    """The line that asked for the memory, behind the lines of the library that takes it."""
    frame = sys._getframe(1)
    while frame.f_back is not None and (
        is_inside(frame.f_code.co_filename) or frame.f_code.co_filename.startswith(_LIBRARIES)
    ):
        frame = frame.f_back
    return frame.f_code, frame.f_lasti
