"""How much memory a device has left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

MEMINFO = Path("/proc/meminfo")
GROUP = Path("/sys/fs/cgroup")  # of a container: memory.max, memory.current


def free_bytes(device: Any) -> int | None:
    """The bytes that can be taken on `device`, with what its pool holds and nobody uses; None where nobody tells."""
    if device.name.startswith("cuda"):
        with device.using():
            pool: Any = getattr(device.xp.cuda.get_allocator(), "__self__", None)
            kept = int(pool.free_bytes()) if hasattr(pool, "free_bytes") else 0
            return int(device.xp.cuda.runtime.memGetInfo()[0]) + kept
    return _of_host()


def _of_host() -> int | None:
    """What Linux says is available, of the machine and of a container's share of it."""
    try:
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        available = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    try:
        most, used = [(GROUP / name).read_text().strip() for name in ("memory.max", "memory.current")]
        return available if most == "max" else min(available, int(most) - int(used))
    except (OSError, ValueError):
        return available


__all__ = ["free_bytes"]
