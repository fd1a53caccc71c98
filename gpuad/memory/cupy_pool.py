"""What CuPy's allocators say of what they hold and lend: a pool with hooks, an asynchronous one, any other."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from ..attribution import Watcher, doing, ledgers
from ..buffer import Buffer, observers
from ..devices import Device
from ..provenance import describe, here
from .nvml import SAMPLER
from .pool import rounded
from .profile import Row, missing, show


def pool_of(device: Any) -> Other:
    """Where this thread's allocations come from."""
    cuda = device.xp.cuda
    owner = getattr(cuda.get_allocator(), "__self__", None)
    kind = {cuda.MemoryPool: Hooked, cuda.MemoryAsyncPool: Marked}.get(type(owner), Other)
    return kind(device, owner)


class Other:
    """An allocator of which nothing is known."""

    def __init__(self, device: Any, pool: Any) -> None:
        self.device, self.pool = device, pool

    def trim(self) -> None:
        """Give back to the driver what is free."""

    def held(self) -> int:
        """The bytes that are the driver's."""
        return 0

    def watched(self) -> AbstractContextManager[Any]:
        """Find out inside what `rows` says."""
        return nullcontext()

    def rows(self) -> list[Row]:
        """Those of the pool."""
        why = "CuPy's allocator is none of its pools, and tells nothing; what it holds is in the context or unexplained"
        return [missing("pool used", why), missing("pool reserved", why)]


class Marked(Other):
    """The driver's own pool, which hooks see nothing of and which keeps high-water marks itself."""

    def trim(self) -> None:
        """Give back to the driver what is free."""
        with self._here():
            self.pool.free_all_blocks()

    def held(self) -> int:
        """The bytes that are the driver's."""
        with self._here():
            return int(self.pool.total_bytes())

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Set the marks to what there is now, and read them afterwards."""
        runtime = self.device.xp.cuda.runtime
        pool = runtime.deviceGetMemPool(self.device.index)
        marks = runtime.cudaMemPoolAttrUsedMemHigh, runtime.cudaMemPoolAttrReservedMemHigh
        for mark in marks:
            runtime.memPoolSetAttribute(pool, mark, 0)
        yield
        self.high, self.reserved = [runtime.memPoolGetAttribute(pool, mark) for mark in marks]

    def rows(self) -> list[Row]:
        """Those of the pool."""
        note = "by the high-water mark that the driver keeps of its own pool (MemoryAsyncPool), in its own units"
        return [Row("pool used", self.high, "exact", note), Row("pool reserved", self.reserved, "exact", note)]

    def _here(self) -> AbstractContextManager[Any]:
        found: AbstractContextManager[Any] = self.device.xp.cuda.Device(self.device.index)
        return found


@dataclass(eq=False)
class Taken:
    """A block of the pool that was lent since the hook is there."""

    nbytes: int
    claimed: bool = False  # by a Buffer


@dataclass
class Failure:
    """An allocation that failed: `nbytes` for `op` at the user's `line`."""

    nbytes: int
    op: str
    line: str
    used: int  # by the pool then
    held: int


class Hooked(Marked, Watcher):
    """CuPy's own pool on one GPU: what it lends by its hook, and how much of that Buffers hold.

    A block counts as a Buffer's from the beginning, even if CuPy makes its array before gpuad makes the Buffer.
    """

    def __init__(self, device: Any, pool: Any) -> None:
        super().__init__(device, pool)
        self.trim()
        with self._here():
            self.name = pool.malloc(1).mem.pool  # what its memory knows it by
        self.lock = threading.RLock()  # an event may free something else, and Buffers may end on other threads
        self.failure: Failure | None = None
        self.outside: list[tuple[str, int]] = []  # (mark, bytes that are lent and no Buffer's)
        self.unseen: list[tuple[str, int]] = []  # (mark, bytes that were lent or given back unseen by the hook)

    @contextmanager
    def limited(self, limit: int) -> Iterator[None]:
        """Hold no more than `limit` inside."""
        with self._here():
            before = self.pool.get_limit()
            self.pool.set_limit(size=limit)
        try:
            yield
        finally:
            with self._here():
                self.pool.set_limit(size=before)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Follow what this thread takes from the pool and gives back."""
        self.unclaimed: dict[int, Taken] = {}  # by address
        self.booked = sum(self._size(x) for x in gc.get_objects() if type(x) is Buffer)
        with self._here():
            self.live, self.reserved = self.pool.used_bytes(), self.pool.total_bytes()
        self._remember()
        self.mark("before the step")
        hook = self._hook()
        observers.append(self)
        ledgers.append(self)
        try:
            with hook:
                yield
            self.mark("after the step")
        finally:
            observers.remove(self)
            ledgers.remove(self)

    def rows(self) -> list[Row]:
        """Those of the pool."""
        outside = self.high - self.booked_at_high - sum(t.nbytes for t in self.open_at_high if t.claimed)
        rows = []
        if outside or any(nbytes for _, nbytes in self.outside):
            at_marks = ", ".join(f"{show(nbytes)} {mark}" for mark, nbytes in self.outside)
            note = "what the pool lent when its use was highest and the ledger knows nothing of: what CuPy takes for"
            note += f" itself, and arrays of CuPy's users; {at_marks}"
            rows.append(Row("outside the ledger", outside, "exact", note))
        unseen = [f"{show(nbytes)} {mark}" for mark, nbytes in self.unseen if nbytes]
        note = "the most that CuPy's pool lent at one time, by a hook that sees every allocation of this thread"
        others = sum(thread.name != SAMPLER for thread in threading.enumerate()) - 1
        if others:
            note += f", not those of {others} other{'s' * (others > 1)}"
        if unseen:
            note += f"; a guess, as other threads or pools took or gave back what it does not see: {', '.join(unseen)}"
        rows.append(Row("pool used", self.high, "sampled" if unseen else "exact", note))
        note = "the most that CuPy's pool had taken from the driver"
        if self.reserved > (held := self.held()):
            note += f", of which it gave {show(self.reserved - held)} back in the step"
        return [*rows, Row("pool reserved", max(self.reserved, held), "exact", note)]

    # --- what the hook sees

    def _hook(self) -> Any:
        """A MemoryHook of CuPy's that tells this."""
        methods = {
            "name": f"gpuad {id(self)}",
            "malloc_postprocess": lambda _, **told: self._took(**told),
            "free_postprocess": lambda _, **told: self._gave(**told),
            "alloc_postprocess": lambda _, **told: self._grew(**told),
        }
        return type("Hook", (self.device.xp.cuda.MemoryHook,), methods)()

    def _took(self, device_id: int, size: int, mem_size: int, mem_ptr: int, pmem_id: int) -> None:
        if device_id != self.device.index or not mem_size:
            return
        if not mem_ptr:
            used, held = self.pool.used_bytes(), self.pool.total_bytes()
            self.failure = Failure(size, doing.get()[0], line_of(self.device), used, held)
            return
        taken = Taken(mem_size)
        with self.lock:
            self.unclaimed[mem_ptr] = taken
            self.live += mem_size
            if self.live > self.high:
                self._remember()

    def _gave(self, device_id: int, mem_size: int, mem_ptr: int, pmem_id: int) -> None:
        if device_id == self.device.index:
            with self.lock:
                self.unclaimed.pop(mem_ptr, None)
                self.live -= mem_size

    def _grew(self, device_id: int, mem_size: int, mem_ptr: int) -> None:
        if device_id == self.device.index:
            self.reserved = max(self.reserved, self.pool.total_bytes())

    def _remember(self) -> None:
        """Remember this as the moment when the pool's use is highest."""
        self.high, self.booked_at_high, self.open_at_high = self.live, self.booked, list(self.unclaimed.values())

    # --- what gpuad tells

    def allocated(self, buffer: Buffer) -> None:
        """Count `buffer` in."""
        if nbytes := self._size(buffer):
            with self.lock:
                self.booked += nbytes
                taken = self.unclaimed.pop(buffer.owner.data.mem.ptr, None)
                if taken is not None:
                    taken.claimed = True

    def freed(self, buffer: Buffer) -> None:
        """Count `buffer` out."""
        if nbytes := self._size(buffer):
            with self.lock:
                self.booked -= nbytes

    def mark(self, name: str) -> None:
        """Compare the pool with the hook, and the hook with the Buffers."""
        with self._here(), self.lock:
            self.outside.append((name, self.live - self.booked))
            self.unseen.append((name, self.pool.used_bytes() - self.live))

    def _size(self, buffer: Buffer) -> int:
        """What `buffer` takes of the pool: nothing if it is on another device, or its memory is another's."""
        if buffer.device is not self.device:
            return 0
        found = getattr(buffer.owner.data.mem, "pool", None)
        return rounded(buffer.nbytes) if found is not None and found == self.name else 0


def line_of(device: Device) -> str:
    """The line that memory is asked for: that of the array which `device` allocates, else the one that is running."""
    depth = 1
    while f"{sys._getframe(depth).f_globals.get('__name__')}.".startswith((f"{__package__}.", "cupy.")):
        depth += 1
    frame = sys._getframe(depth)
    site = frame.f_locals["site"] if frame.f_code is type(device).allocate.__code__ else None
    return describe(site or here(depth + 1))


__all__ = ["Failure", "Other", "line_of", "pool_of"]
