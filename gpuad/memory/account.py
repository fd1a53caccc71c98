"""What follows from a ledger's events alone: sums, the same in units of CuPy's pool, and that pool, simulated."""

from __future__ import annotations

from itertools import accumulate

from ..devices import Device
from .pool import UNIT, rounded, simulate
from .profile import Profile, Row


def logical(seen: Profile) -> Row:
    """The ledger's peak."""
    return Row("logical", seen.peak_bytes, "exact", "what was asked for, at the peak: by the ledger")


def in_units(seen: Profile) -> Row:
    """The same in the units of CuPy's pool."""
    sizes = (rounded(n) if n > 0 else -rounded(-n) for n, _ in events(seen))
    note = f"the same with each block rounded up to the pool's unit of {UNIT} bytes, when that is most"
    return Row("rounded", max(accumulate(sizes), default=0), "exact", note)


def simulated(seen: Profile) -> list[Row]:
    """What CuPy's pool would lend and hold; it is empty before it lends what the ledger begins with."""
    peaks = simulate(events(seen))
    note = "simulated from the ledger's events; without what CuPy takes for itself"
    return [
        logical(seen),
        in_units(seen),
        Row("pool used", peaks.used, "sampled", note),
        Row("pool reserved", peaks.total, "sampled", f"{note}, and from a pool that starts empty"),
    ]


def events(seen: Profile) -> list[tuple[int, int]]:
    """(nbytes, number of the block) of every allocation, (-nbytes, number) of every end, in order."""
    found = [(b.born, b.nbytes, b.number) for b in seen.blocks if b.nbytes]
    found += [(b.died, -b.nbytes, b.number) for b in seen.blocks if b.nbytes and b.died is not None]
    return [(nbytes, number) for _, nbytes, number in sorted(found)]


def is_like_gpu(device: Device) -> bool:
    """Does a meta device stand for a GPU?"""
    return not device.computes and device.engine.startswith("cuda")
