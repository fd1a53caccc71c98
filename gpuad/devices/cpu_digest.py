"""Digests of arrays on the CPU: by `kernels/digest.cpp` for the compiled engine, else by `buffer.fingerprint`."""

from __future__ import annotations

import ctypes
import functools
import warnings
from typing import Any

import numpy as np

from ..buffer import fingerprint
from ..fuse import engines, threads
from ..fuse.compiler import CompilerError, library
from ..fuse.prelude import HOST_PRELUDE
from ..fuse.sources import source

PIECE = 2048  # bytes of an item, as in the text
GRAIN = 128  # items that a thread takes at a time
ALONE = 1 << 18  # bytes up to which one thread does not call the others


def digest(data: np.ndarray[Any, Any]) -> int:
    """64 bits that depend on every byte of contiguous `data` and on its place, the same whatever the threads.

    Called under the device's lock.
    """
    function = _function()
    if function is None:
        return fingerprint(data)
    address, nbytes = data.__array_interface__["data"][0], data.nbytes
    slots = (ctypes.c_int64 * 3)(address, nbytes, 0)
    place, items = ctypes.addressof(slots), -(-nbytes // PIECE)
    if nbytes <= ALONE:
        function(place, 0, items, None)
    else:
        entry = ctypes.cast(function, ctypes.c_void_p).value or 0
        threads.run(entry, place, items, GRAIN, 0, threads.count())
    return (slots[2] + nbytes) % 2**64


@functools.cache
def _function() -> Any:
    """The kernel; None where fingerprints are taken instead.

    Asked once: a compiler that fails now and works later must not make two digests of the same values differ.
    """
    if engines.engine() != "compiled":
        return None
    try:
        function = library(HOST_PRELUDE + source("digest.cpp")).digest
    except CompilerError as error:
        warnings.warn(f"digests are computed with NumPy, which is slower: {error}", RuntimeWarning, stacklevel=2)
        return None
    function.restype = None
    function.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
    return function
