"""A stand-in for CuPy in the tests: CUDA's threads as fibres on one CPU thread, and arrays in guarded memory.

In a test or a fixture, `with stand_in.installed() as cupy:`; in a process of its own,
`subprocess.run(command, env=stand_in.environment())`.  compiler.py says which variables of the environment it reads.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from . import guarded
from .compiler import KernelError, prepare
from .guarded import OutOfBounds

FOLDER = Path(__file__).resolve().parent  # here is the package named cupy


def missing() -> str | None:
    """What the stand-in needs and this machine lacks; None where it works."""
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        return "the stand-in for CuPy needs g++"
    return None if sys.platform == "linux" else "the stand-in for CuPy needs Linux"


def environment(**changes: str) -> dict[str, str]:
    """The environment of a process that is to import the stand-in as cupy."""
    path = [str(FOLDER), str(FOLDER.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), **changes}


@contextlib.contextmanager
def installed() -> Iterator[ModuleType]:
    """The stand-in as the module `cupy`, until the block ends; then what was there before is back."""
    before = _take_away()
    sys.path.insert(0, str(FOLDER))
    try:
        import cupy

        assert Path(cupy.__file__).is_relative_to(FOLDER)
        yield cupy
    finally:
        sys.path.remove(str(FOLDER))
        _take_away()
        sys.modules.update(before)


def _take_away() -> dict[str, ModuleType]:
    """Forget every module of a cupy, and give them."""
    found = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "cupy"}
    for name in found:
        del sys.modules[name]
    return found


@contextlib.contextmanager
def order(name: str) -> Iterator[None]:
    """Threads and blocks in the order `name` until the block ends: forward, reverse, shuffle or shuffle:SEED."""
    before = os.environ.get("GPUAD_STAND_IN_ORDER")
    os.environ["GPUAD_STAND_IN_ORDER"] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ["GPUAD_STAND_IN_ORDER"]
        else:
            os.environ["GPUAD_STAND_IN_ORDER"] = before


def unwritten(array: Any) -> int:
    """How many elements of a cupy array still hold what fresh memory is filled with.

    An integer of one byte may hold the same by chance; a wider one hardly.
    """
    host = array.get()
    fresh = np.empty(host.nbytes, np.uint8)
    guarded.poison(fresh)
    same = host.reshape(-1).view(np.uint8).reshape(host.size, host.itemsize) == fresh.reshape(host.size, host.itemsize)
    return int(same.all(axis=1).sum())


__all__ = ["KernelError", "OutOfBounds", "environment", "installed", "missing", "order", "prepare", "unwritten"]
