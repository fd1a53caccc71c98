"""Arrays that wait in memory of the host: they go and come on a stream of their own, beside the device's other work.

The host waits for no copy.  CuPy's pool gives what is freed to the next that asks on the main stream, and looks at no
other stream, so the order in which memory is used rests on this:

- a copy to the host begins when the main stream has come to where it was asked for: the values are there;
- an array that goes is kept until the main stream is told to wait for its copy, and only then its memory is free;
- a copy back begins when the main stream has come to where it was asked for: it is done with what that memory was;
- an array that comes is handed out, or dropped, once the main stream is told to wait for its copy;
- memory of the host is read and written by the copies alone, which one stream does one after the other, so it may be
  used again at once.
"""

from __future__ import annotations

from typing import Any
from weakref import ref

from ..array import Array
from ..recording import refuse

# Arrays that may be on their way to the host together.  Where one more goes the main stream waits for the first, whose
# copy the work since then has hidden: two that one layer leaves behind do not wait for each other.
ON_THE_WAY = 2
_REMEDY = "leave what moves arrays to the host and back out of the captured step"


class Copies:
    """What copies arrays to the host and back.  This one is for arrays without values, and does nothing."""

    def out(self, array: Array) -> tuple[Any, Any]:
        """Begin to copy `array`: memory of the host, and the event of its being there."""
        return None, None

    def back(self, memory: Any, array: Array) -> Any:
        """Begin to copy `memory` to `array`: the event of its being there."""

    def wait(self, event: Any) -> None:
        """Let the device's later work be done after `event`."""

    def give(self, memory: Any, nbytes: int) -> None:
        """Use `memory` for another array."""


class Offloaded:
    """A computed array whose values are in memory of the host, or on their way.  They stay there as long as this."""

    def __init__(self, copies: Copies, array: Array, memory: Any, event: Any) -> None:
        assert array.buffer is not None
        self.copies, self.memory, self.event = copies, memory, event  # the event of the last copy
        self.shape, self.dtype, self.device, self.site = array.shape, array.dtype, array.device, array.site
        self.category, self.nbytes = array.buffer.category, array.nbytes
        self.going: Array | None = array  # until the main stream is told to wait for the copy
        self.coming: Array | None = None

    def leave(self) -> None:
        """Free the memory on the device, for work that begins when the copy is there."""
        self.copies.wait(self.event)
        self.going = None

    def prefetch(self) -> None:
        """Begin to copy the values back to the device."""
        refuse("a copy from the host", _REMEDY)
        with self.device.lock:
            if self.going is None and self.coming is None:
                coming = self.device.allocate(self.shape, self.dtype, self.category, self.site)
                self.event = self.copies.back(self.memory, coming)
                self.coming = coming

    def fetch(self) -> Array:
        """The array on the device, for work that begins when its values are there; it may be asked for again."""
        with self.device.lock:
            self.prefetch()
            if self.going is not None:  # its memory has not been freed
                return self.going
            self.copies.wait(self.event)
            found, self.coming = self.coming, None
            assert found is not None
            return found

    def __del__(self) -> None:
        if self.going is not None or self.coming is not None:
            self.copies.wait(self.event)
        self.copies.give(self.memory, self.nbytes)


class Offloads:
    """The arrays of one device that went to the host last."""

    def __init__(self, device: Any, copies: Copies) -> None:
        self.device, self.copies = device, copies
        self.going: list[ref[Offloaded]] = []

    def offload(self, array: Array) -> Offloaded:
        """`array`, computed and contiguous, on its way to memory of the host."""
        refuse("a copy to the host", _REMEDY)
        with self.device.lock:
            while len(self.going) >= ON_THE_WAY:
                first = self.going.pop(0)()
                if first is not None:
                    first.leave()
            found = Offloaded(self.copies, array, *self.copies.out(array))
            self.going.append(ref(found))
        return found


class CudaCopies(Copies):
    """Copies to pinned memory of the host, and back, on a stream of their own."""

    def __init__(self, device: Any) -> None:
        self.device = device
        with device.using():
            self.stream = device.xp.cuda.Stream(non_blocking=True)
        self.free: dict[int, list[Any]] = {}  # memory of the host by its size, which is never given back

    def out(self, array: Array) -> tuple[Any, Any]:
        """Begin to copy `array`: memory of the host, and the event of its being there."""
        assert array.data.flags.c_contiguous, "an array that is offloaded is contiguous"
        free = self.free.get(array.nbytes)
        memory = free.pop() if free else self.device.xp.cuda.alloc_pinned_memory(max(1, array.nbytes))
        return memory, self._copy(array.data.data.copy_to_host_async, memory, array.nbytes)

    def back(self, memory: Any, array: Array) -> Any:
        """Begin to copy `memory` to `array`: the event of its being there."""
        return self._copy(array.data.data.copy_from_host_async, memory, array.nbytes)

    def _copy(self, copy: Any, memory: Any, nbytes: int) -> Any:
        """The event of the end of `copy`, which begins when the main stream has come here."""
        with self.device.using():
            self.stream.wait_event(self.device.stream.record())
            copy(memory.ptr, nbytes, self.stream)
            return self.stream.record()

    def wait(self, event: Any) -> None:
        """Let the device's later work be done after `event`."""
        self.device.stream.wait_event(event)

    def give(self, memory: Any, nbytes: int) -> None:
        """Use `memory` for another array."""
        self.free.setdefault(nbytes, []).append(memory)
