"""The stand-in's `cupy.cuda.stream`.  Work is done when it is asked for, so that streams have nothing to order."""

from __future__ import annotations

import itertools
import threading
import time
from typing import Any

from . import runtime
from .device import Device

_addresses = itertools.count(0x51000, 16)  # a counter: streams and events are told apart by it
_current = threading.local()  # of each thread, by device: the stream in use


class _BaseStream:
    def __init__(self, ptr: int, device_id: int) -> None:
        self.ptr, self.device_id = ptr, device_id
        self._before: list[_BaseStream] = []

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BaseStream) and self.ptr == other.ptr

    def __hash__(self) -> int:
        return hash(self.ptr)

    def __enter__(self) -> _BaseStream:
        self._before.append(get_current_stream())
        return self.use()

    def __exit__(self, *args: object) -> None:
        self._before.pop().use()

    def use(self) -> _BaseStream:
        device = runtime.getDevice()
        if self.device_id not in (-1, device):
            raise RuntimeError(f"This stream was not created on device {device}.")
        _streams()[device] = self
        return self

    @property
    def done(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass

    def record(self, event: Event | None = None) -> Event:
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        if not isinstance(event, Event):
            raise TypeError(f"Argument 'event' has incorrect type (expected Event, got {type(event).__name__})")

    def launch_host_func(self, callback: Any, arg: Any) -> None:
        callback(arg)


class Stream(_BaseStream):
    """A queue of work on the current device."""

    def __init__(
        self, null: bool = False, non_blocking: bool = False, ptds: bool = False, priority: int | None = None
    ) -> None:
        super().__init__(0 if null else next(_addresses), -1 if null else runtime.getDevice())

    def __repr__(self) -> str:
        return f"<Stream {self.ptr} (device {self.device_id})>"


class ExternalStream(_BaseStream):
    """A stream of somebody else's."""

    def __init__(self, ptr: int, device_id: int = -1) -> None:
        super().__init__(ptr, device_id)


Stream.null = Stream(null=True)  # type: ignore[attr-defined]


def _streams() -> dict[int, _BaseStream]:
    if not hasattr(_current, "streams"):
        _current.streams = {}
    return _current.streams


def get_current_stream(device_id: int = -1) -> _BaseStream:
    return _streams().get(runtime.getDevice() if device_id == -1 else device_id, Stream.null)  # type: ignore[attr-defined]


class Event:
    """A point in a stream."""

    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        self.ptr, self.device = next(_addresses), Device()
        self._timed, self._time = not disable_timing, None

    @property
    def done(self) -> bool:
        return True

    def record(self, stream: Any = None) -> None:
        self._time = time.perf_counter()

    def synchronize(self) -> None:
        pass


def get_elapsed_time(start_event: Event, end_event: Event) -> float:
    """The milliseconds between two events."""
    if not (start_event._timed and end_event._timed) or start_event._time is None or end_event._time is None:
        raise runtime.CUDARuntimeError(runtime._INVALID_VALUE)
    return (end_event._time - start_event._time) * 1e3
