"""Numbers of bytes as people write them."""

from __future__ import annotations

import re
from fractions import Fraction

import numpy as np

from ..errors import DataError

UNITS = {
    "": 1,
    "b": 1,
    **{f"{letter}b": 1000**k for k, letter in enumerate("kmgt", 1)},
    **{f"{letter}ib": 1024**k for k, letter in enumerate("kmgt", 1)},
}


def parse_bytes(size: int | str) -> int:
    """The bytes that `size` stands for: a number, or a text such as "24GiB", "1.5 GB" or "512".

    Units of 1000 are kB, MB, GB and TB, those of 1024 KiB, MiB, GiB and TiB, in letters large or small.  A part of a
    byte is dropped.  A DataError for anything else: "24G", which people use for both, and "0.5", which has no unit.
    """
    if isinstance(size, int | np.integer) and not isinstance(size, bool) and size >= 0:
        return int(size)
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)\s*", size.lower()) if isinstance(size, str) else None
    if found is not None and found[2] in UNITS and (found[2] or "." not in found[1]):
        return int(Fraction(found[1]) * UNITS[found[2]])
    raise DataError(f'{size!r} is no number of bytes\n  write it as 24000000, "24MB" (of 1000) or "24MiB" (of 1024)')
