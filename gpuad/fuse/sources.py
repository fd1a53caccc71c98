"""The text of hand-written kernels: beside the package where it is installed, in `kernels/` of a checkout."""

from __future__ import annotations

import functools
import re
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent
_FOLDERS = (_PACKAGE / "_kernels", _PACKAGE.parent / "kernels")
_INCLUDE = re.compile(r'^#include "(.*)"$', re.MULTILINE)  # files of a compiler's own stand in <>


@functools.cache
def source(name: str) -> str:
    """The text of the kernel file `name`, such as "attention.cpp", with the files that it includes in place."""
    return _INCLUDE.sub(lambda line: source(line[1]), _read(name))


def _read(name: str) -> str:
    for folder in _FOLDERS:
        if (folder / name).is_file():
            return (folder / name).read_text()
    raise FileNotFoundError(f"{name} is neither in {_FOLDERS[0]} nor in {_FOLDERS[1]}: the installation is incomplete")
