"""The dry run: a program on shapes alone, as a device would run it, with the memory that it would take.

    with gpuad.memory.dry(like="cuda:sm_90"):
        model = Llama(LlamaConfig.sized("7b"), dtype="bfloat16")
    p = gpuad.memory.estimate(lambda tokens: model.loss(tokens).backward(), ((1, 2049), "int64"), like="cuda:sm_90")

Which kernel an op takes, what is stored and what is computed again follow from shapes, dtypes and the description of
the device, so the events are those of the device, one by one; nothing is allocated.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from ..buffer import Buffer, observers
from ..devices import Device, use_device
from ..devices import device as find_device
from ..dtype import as_dtype
from ..errors import DataError, DeviceError
from ..provenance import describe as describe_site
from ..provenance import here
from ..tensor import Tensor
from .profile import Profile
from .reconcile import reconciled

KINDS = (
    *("cpu:numpy", "cpu:compiled"),
    *("cuda:sm_75", "cuda:sm_80", "cuda:sm_86", "cuda:sm_89", "cuda:sm_90", "cuda:sm_100", "cuda:sm_120"),
)


def meta_like(like: str) -> Device:
    """The meta device that stands for `like`: one of KINDS; "cpu" is "cpu:compiled" and "cuda" is "cuda:sm_90"."""
    found = {"cpu": "cpu:compiled", "cuda": "cuda:sm_90"}.get(like, like)
    if found not in KINDS:
        raise DeviceError(f"like={like!r} describes no device; it is one of {', '.join(KINDS)}")
    return find_device("meta", like=found)


def dry(like: str = "cuda:sm_90") -> AbstractContextManager[Device]:
    """A block in which tensors and models are made on the meta device that stands for `like`, without memory."""
    return use_device(meta_like(like))


def estimate(step: Callable[..., Any], *shapes: Any, like: str = "cuda:sm_90", name: str | None = None) -> Profile:
    """The memory that `step(*tensors)` would take on a device `like` this one, as a Profile, with operations counted.

    Each of `shapes` is a shape (of float32), a pair of shape and dtype, a tensor or array to be like, or a list or dict
    of these.  Models that `step` uses are made in it, or before in a `dry(like)` block.  Bytes that CuPy's pool would
    hold are simulated.  A step that reads a value (`item()`) or selects by a mask is a DeviceError that names the line.
    """
    with dry(like) as device:
        tensors = [_hollow(spec, device, spec) for spec in shapes]
        elsewhere = _Elsewhere(device)
        observers.append(elsewhere)
        try:
            return reconciled(device, lambda: step(*tensors), name or str(getattr(step, "__name__", "run")))
        finally:
            observers.remove(elsewhere)


class _Elsewhere:
    """Refuses memory on another device than the one that is estimated."""

    def __init__(self, device: Device) -> None:
        self.device = device

    def allocated(self, buffer: Buffer) -> None:
        """A DeviceError where `buffer` is elsewhere."""
        if buffer.device is not self.device:
            other = buffer.device.name if buffer.device.computes else f"meta like {buffer.device.engine}"
            raise DeviceError(
                f"estimate() of a step on meta like {self.device.engine}, which works on {other} at"
                f" {describe_site(here())}\n  make its models and tensors in the step, or in a block"
                f' `with gpuad.memory.dry(like="{self.device.engine}")`'
            )

    def freed(self, buffer: Buffer) -> None:
        """Nothing."""


def _hollow(spec: Any, device: Device, given: Any) -> Any:
    """Tensors of the shapes and dtypes that `spec` gives, which is, or is part of, the argument `given`."""
    if isinstance(spec, dict):
        return {name: _hollow(part, device, given) for name, part in spec.items()}
    if _is_shape(spec):
        return _input(tuple(spec), "float32", device)
    if isinstance(spec, tuple) and len(spec) == 2 and _is_shape(spec[0]) and not _is_shape(spec[1]):
        return _input(tuple(spec[0]), spec[1], device)
    if isinstance(spec, tuple | list):
        return type(spec)([_hollow(part, device, given) for part in spec])
    if hasattr(spec, "shape") and hasattr(spec, "dtype"):
        return _input(tuple(spec.shape), spec.dtype, device)
    raise DataError(
        f"estimate() takes shapes, pairs of shape and dtype, tensors, and lists and dicts of these, got {given!r}"
        '\n  ((16, 64), "int64"), for example'
    )


def _is_shape(x: Any) -> bool:
    return isinstance(x, tuple | list) and all(isinstance(n, int | np.integer) and not isinstance(n, bool) for n in x)


def _input(shape: tuple[int, ...], dtype: Any, device: Device) -> Tensor:
    return Tensor(device.allocate(tuple(map(int, shape)), as_dtype(dtype), "input", here()))
