"""Devices by name, and the default one.

device("cpu")                        NumPy
device("cuda"), device("cuda:1")     CuPy, imported only when asked for
device("meta", like="cpu:numpy")     shapes only
with use_device("meta"): ...
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ..errors import DeviceError
from .cpu import CPU
from .device import Device
from .meta import Meta

_devices: dict[tuple[str, str], Device] = {}  # the one device of each name
_default: ContextVar[Device | None] = ContextVar("default_device", default=None)


def device(name: str | Device, *, like: str | None = None) -> Device:
    """The device called `name`: "cpu", "cuda", "cuda:1" or "meta".  `like` says what a meta device stands for.

    Raises a DeviceError that says what is missing, and what installs it.
    """
    if isinstance(name, Device):
        return name
    if not isinstance(name, str):
        raise DeviceError(f'a device has a name, such as "cpu" or "cuda:0"; got {name!r}')
    key = ("cuda:0" if name == "cuda" else name, like or "")
    found = _devices.get(key)
    if found is None:
        found = _devices.setdefault(key, _make(name, like))
    return found


def _make(name: str, like: str | None) -> Device:
    if like is not None and name != "meta":
        raise DeviceError(
            f'like={like!r} describes a meta device; device({name!r}) is what it is. Use device("meta", like=...)'
        )
    if name == "cpu":
        return CPU()
    if name == "meta":
        return Meta(like or "cpu:numpy")
    kind, _, number = name.partition(":")
    if kind == "cuda" and (number.isdecimal() or name == "cuda"):
        from .cuda import Cuda  # here, so that nobody else waits for it

        try:
            return Cuda(int(number or 0))
        except DeviceError as error:
            raise DeviceError(f"{name} is not available: {error}") from None
    raise DeviceError(f'there is no device {name!r}; the names are "cpu", "cuda", "cuda:<index>" and "meta"')


def _after_fork() -> None:
    """A child has none of its parent's threads to give a lock back."""
    for found in _devices.values():
        found.lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def default_device() -> Device:
    """Where new tensors go: the innermost `use_device`, else `GPUAD_DEVICE`, else the CPU."""
    return _default.get() or device(os.environ.get("GPUAD_DEVICE") or "cpu")


@contextmanager
def use_device(name: str | Device) -> Iterator[Device]:
    """Create tensors on `name` inside the block."""
    chosen = device(name)
    token = _default.set(chosen)
    try:
        yield chosen
    finally:
        _default.reset(token)


__all__ = ["Device", "default_device", "device", "use_device"]
