"""Does a step fit in a limit?  On a GPU by running it under that limit, elsewhere by account."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..devices import Device, default_device
from ..devices import device as find_device
from ..errors import DataError, DeviceError, OutOfMemoryError
from .account import events, is_like_gpu
from .cupy_pool import Failure, Hooked, pool_of
from .ledger import profile, run_to_end
from .pool import UNIT, Pool, rounded
from .profile import Profile, show
from .sizes import parse_bytes

Step = Callable[[], Any]


@dataclass(frozen=True)
class Certificate:
    """That a step fits in `limit` bytes of a device, and how many it took."""

    device: str
    limit: int
    nbytes: int
    enforced: bool  # by the pool, which held no more at any time; else by account

    def __str__(self) -> str:
        fits = f"fits in {show(self.limit)} of {self.device}"
        if self.enforced:
            return f"{fits}: CuPy's pool was limited to that, and took {show(self.nbytes)}; CUDA's context comes on top"
        return f"{fits} by account, which no allocator enforced: {show(self.nbytes)}"


def certify(step: Step, limit: int | str, device: str | Device | None = None) -> Certificate:
    """That `step()` fits in `limit`, bytes or a text such as "24GiB", on `device` or the default one.

    On a GPU the step runs while CuPy's pool may not hold more, so that it is proved.  On the CPU the peak of the ledger
    is compared, on meta like a GPU that of the pool as simulated below the limit.  An OutOfMemoryError says which line
    asked for more; what the step has done till then is done.  Run a step before.
    """
    chosen = default_device() if device is None else find_device(device)
    allowed = parse_bytes(limit)
    if not allowed:
        raise DataError("certify() got a limit of 0 bytes, in which nothing fits\n  give it what the step may take")
    return _enforced(chosen, step, allowed) if chosen.name.startswith("cuda") else _by_account(chosen, step, allowed)


def smallest_limit(
    step: Step, low: int | str, high: int | str, *, tolerance: int | str = "1MiB", device: str | Device | None = None
) -> int:
    """The smallest limit in bytes that `certify` passes, to within `tolerance`: found between `low` and `high`.

    The step runs once for each trial and has to do the same each time.  An OutOfMemoryError if it does not fit in
    `high`.  A step that fits in less than `low` gives what it takes.
    """
    least, most = parse_bytes(low) // UNIT, -(-parse_bytes(high) // UNIT)
    finest = max(1, parse_bytes(tolerance) // UNIT)
    trial = most
    while True:
        try:
            took = certify(step, trial * UNIT, device).nbytes
        except OutOfMemoryError:
            if trial == most:
                raise
            least = trial
        else:
            most = min(trial, -(-took // UNIT))  # a limit that the pool does not reach changes nothing
        if most - least <= finest:
            return most * UNIT
        trial = (least + most) // 2


def _enforced(device: Any, step: Step, limit: int) -> Certificate:
    pool = pool_of(device)
    if not isinstance(pool, Hooked):
        raise DeviceError(
            "certify() needs CuPy's MemoryPool, which alone keeps to a limit; another allocator is in use\n"
            "  cupy.cuda.set_allocator(cupy.get_default_memory_pool().malloc)"
        )
    device.synchronize()
    gc.collect()
    pool.trim()
    if pool.held() > limit:
        raise OutOfMemoryError(_refusal(device, limit, f"CuPy's pool holds {show(pool.held())} before it begins"))
    refused = ""
    with pool.limited(limit):
        try:
            with profile(device=device, name="certify") as seen, pool.watched():
                run_to_end(step)
                device.synchronize()
        except device.xp.cuda.memory.OutOfMemoryError as error:
            refused = _refused(device, limit, pool.failure, str(error))
    if refused:  # raised here, where no traceback keeps the step's memory
        raise OutOfMemoryError(refused)
    return Certificate(seen.device, limit, max(pool.reserved, pool.held()), True)


def _refused(device: Device, limit: int, failure: Failure | None, said: str) -> str:
    if failure is None:
        return _refusal(device, limit, said)
    held, free = show(failure.held), show(failure.held - failure.used)
    asked = f"{failure.op or 'CuPy'} asked for {show(failure.nbytes)} at {failure.line}"
    state = f"CuPy's pool held {held} then, {free} of it free in pieces"
    if failure.held + rounded(failure.nbytes) <= limit:
        state += ", and the driver had no more: others use the GPU, or the limit is more than it has"
    return _refusal(device, limit, asked, state)


def _by_account(device: Device, step: Step, limit: int) -> Certificate:
    seen: Profile
    with profile(device=device, name="certify") as seen:
        run_to_end(step)
    if not is_like_gpu(device):
        first = next((event for event, live in enumerate(seen.live) if live > limit), None)
        if first is not None:
            raise OutOfMemoryError(_account(device, seen, limit, first))
        return Certificate(seen.device, limit, seen.peak_bytes, False)
    pool, addresses = Pool(limit), dict[int, int]()
    for nbytes, number in events(seen):
        if nbytes < 0:
            pool.free(addresses.pop(number))
            continue
        try:
            addresses[number] = pool.malloc(nbytes)
        except MemoryError as error:
            why = f"in CuPy's pool as simulated, {error}"
            raise OutOfMemoryError(_account(device, seen, limit, seen.blocks[number].born, why)) from None
    return Certificate(seen.device, limit, pool.high_total, False)


def _account(device: Device, seen: Profile, limit: int, event: int, *why: str) -> str:
    """What is said of a step whose `event` passes the limit."""
    block = next(b for b in seen.blocks if b.born == event)
    if block.phase == "setup":
        return _refusal(device, limit, "what is there before it begins takes more", *why)
    asked = f"{block.op or 'it'} takes {show(block.nbytes)} at {block.line or 'an unknown line'}"
    return _refusal(device, limit, f"{asked}, for {show(seen.live[event])} in all", *why)


def _refusal(device: Device, limit: int, *why: str) -> str:
    remedy = "allow more, or see by gpuad.memory.profile() what keeps memory"
    return "\n  ".join([f"the step does not fit in {show(limit)} on {device.name}: {why[0]}", *why[1:], remedy])


__all__ = ["Certificate", "certify", "smallest_limit"]
