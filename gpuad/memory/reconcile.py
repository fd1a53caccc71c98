"""From what a step asks for to what the device gives: the same memory counted by gpuad, by CuPy's pool and by NVML.

    p = reconciled("cuda", step)  # after a first step
    print(*p.reconciliation, sep="\n")
    print(certify(step, "24GiB"))

On a GPU nothing is sampled.  CuPy's hooks tell every allocation, the pool keeps what it has taken until it is asked to
give it back, and so one reading of NVML after the step shows what the pool's high-water mark came to.

`certify` lets a step run below a limit: on a GPU CuPy's pool holds it, elsewhere the ledger's account is compared.
"""

from __future__ import annotations

import gc
import sys
import tracemalloc
import uuid
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np

from ..devices import Device
from ..devices import device as find_device
from . import nvml
from .account import in_units, is_like_gpu, logical, simulated
from .cupy_pool import pool_of
from .ledger import profile, run_to_end
from .profile import Profile, Row, missing, show

Step = Callable[[], Any]


def reconciled(device: str | Device, step: Step, name: str = "run") -> Profile:
    """The Profile of `step()` on `device`, with its `reconciliation`.

    Run a step before: the first one compiles kernels and makes what lasts.  What is free in CuPy's pool goes back to
    the driver at the beginning.  Of several GPUs the one is looked at that is named.  An error of `step` is passed on.
    """
    chosen = find_device(device)
    if chosen.name.startswith("cuda"):
        return _on_gpu(chosen, step, name)
    before = _resident()
    seen: Profile
    with profile(device=chosen, name=name) as seen:
        strange = _strange(chosen, seen)
        run_to_end(step)
        strange = None if strange is None else (_strange(chosen, seen) or 0) - strange
    rows = simulated(seen) if is_like_gpu(chosen) else [logical(seen)]
    if chosen.name == "cpu":
        note = "the most of that together with what is kept for reuse, but not what NumPy's functions take inside"
        rows.append(Row("held", seen.held, "exact", note))
    if strange is not None:
        note = "NumPy's memory that is not gpuad's, when the run ends, as tracemalloc has it"
        rows.append(Row("outside the ledger", strange, "exact", note))
    dry = "not in a dry run: nothing is allocated"
    if chosen.computes:
        rows.append(_process(before, _resident()))
    elif is_like_gpu(chosen):
        rows += [missing("process (NVML)", dry), missing("device (NVML)", dry)]
    else:
        rows.append(missing("process", dry))
    seen.reconciliation = rows
    return seen


def _strange(device: Device, seen: Profile) -> int | None:
    """The bytes of NumPy's that no buffer of the CPU has; None where tracemalloc does not run."""
    if device.name != "cpu" or not tracemalloc.is_tracing():
        return None
    domain = tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)
    held = sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces([domain]).traces)
    kept: int = device.reuse.kept  # type: ignore[attr-defined]  # the CPU's
    return held - (seen.live[-1] if seen.live else 0) - kept


# --- rows ---------------------------------------------------------------------------------------


def _resident() -> int | None:
    """The most bytes that this process ever had in memory; None on Windows."""
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _process(before: int | None, after: int | None) -> Row:
    if before is None or after is None:
        return missing("process", "Windows does not tell what Unix calls the maximum resident set")
    note = "the most that the process had in memory since it began, by the system's count of pages: "
    note += "reached in this step" if after > before else "reached before this step, of which it is an upper bound"
    return Row("process", after, "sampled", note)


# --- a GPU --------------------------------------------------------------------------------------


def _on_gpu(device: Any, step: Step, name: str) -> Profile:
    pool = pool_of(device)
    device.synchronize()
    gc.collect()
    pool.trim()
    held = pool.held()
    before = _read(device, held)
    seen: Profile
    # for the picture alone: what is reached between two readings is not seen
    sampler = nvml.Sampler(_reader(device, held)) if before.process.nbytes is not None else None
    with profile(device=device, name=name) as seen, sampler or nullcontext(), pool.watched():
        run_to_end(step)
        device.synchronize()
    reserved = pool.held()
    after = _read(device, reserved)
    if sampler is not None and before.process.nbytes is not None:
        context = before.process.nbytes - held
        readings = [(seconds, reading.process.nbytes) for seconds, reading in sampler.readings]
        seen.sampled = [(seconds, n - context) for seconds, n in readings if n is not None]
    seen.reconciliation = [
        logical(seen),
        in_units(seen),
        *pool.rows(),
        *_driver(before, held, after, reserved),
    ]
    return seen


def _read(device: Any, held: int) -> nvml.Reading:
    """What NVML says now."""
    return _reader(device, held)()


def _reader(device: Any, held: int) -> Callable[[], nvml.Reading]:
    """A function that asks NVML, on any thread."""
    runtime = device.xp.cuda.runtime
    name = uuid.UUID(bytes=bytes(runtime.getDeviceProperties(device.index)["uuid"]))
    return partial(nvml.read, runtime.deviceGetPCIBusId(device.index), str(name), held=held)


def _driver(before: nvml.Reading, held: int, after: nvml.Reading, reserved: int) -> list[Row]:
    """What NVML said before the step, when the pool held `held`, and after it, when it held `reserved`."""
    first, last = before.process, after.process
    why = first.reason or last.reason
    if first.nbytes is None:
        context, unexplained = missing("context", why), missing("unexplained", f"without the context: {why}")
    else:
        note = f"what the process had beside the pool before the step, when the pool held {show(held)}: CUDA's context,"
        note += " kernels, libraries of NVIDIA, and what other libraries hold"
        context = Row("context", first.nbytes - held, first.quality, _with(note, first.reason))
        if last.nbytes is None:
            unexplained = missing("unexplained", f"without what the process has: {last.reason}")
        else:
            note = (
                "what the process has more than pool and context: what the step loaded, and what the driver rounds up"
            )
            quality = "exact" if first.quality == last.quality == "exact" else "sampled"
            nbytes = last.nbytes - reserved - (first.nbytes - held)
            unexplained = Row("unexplained", nbytes, quality, _with(note, why))
    note = "of all processes, after the step"
    if before.used.nbytes is not None and after.used.nbytes is not None:
        note += f"; it changed by {show(after.used.nbytes - before.used.nbytes)}, the pool by {show(reserved - held)}"
    return [
        context,
        unexplained,
        _figure("process (NVML)", last, "after the step"),
        _figure("device (NVML)", after.used, note),
    ]


def _figure(row: str, figure: nvml.Figure, note: str) -> Row:
    return Row(
        row, figure.nbytes, figure.quality, figure.reason if figure.nbytes is None else _with(note, figure.reason)
    )


def _with(note: str, reason: str) -> str:
    return f"{note}; {reason}" if reason else note


__all__ = ["reconciled"]
