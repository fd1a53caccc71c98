"""What digests of arrays cost: python benchmarks/digest.py [--device cuda]

Medians of many rounds, by the clock of the host; on a GPU of calls that follow one another without waiting.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs without installing

import gpuad
from gpuad.devices import device as find_device
from gpuad.fuse.plan import realize

SIZES = tuple(1 << k for k in (6, 12, 16, 18, 20, 22, 24, 27))  # bytes
ROUNDS = 15


def seconds(device: Any, array: Any) -> float:
    """The median time of a digest of `array`."""
    calls, found = max(1, min(1000, (1 << 22) // array.nbytes)), []
    for _ in range(ROUNDS + 1):
        device.synchronize()
        began = time.perf_counter()
        for _ in range(calls):
            device.digest(array)
        device.synchronize()
        found.append((time.perf_counter() - began) / calls)
    return statistics.median(found[1:])


def main() -> None:
    """Print a line for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    device = find_device(parser.parse_args().device)
    print(f"{device.name}, {device.describe()}")
    for nbytes in SIZES:
        array = realize(gpuad.asarray(np.random.default_rng(0).integers(0, 256, nbytes, np.uint8), device=device).array)
        took = seconds(device, array)
        print(f"{nbytes:>11,} bytes {took * 1e6:>10.2f} us {nbytes / took / 1e9:>8.1f} GB/s")


if __name__ == "__main__":
    main()
