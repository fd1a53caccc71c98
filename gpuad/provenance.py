"""Which line of the user's program an operation came from.

A site is `(code object, instruction offset)`: a tenth of a microsecond to take, formatted only when a message needs
it.  The innermost frame outside gpuad's own machinery is the user's; the models and the command line count as users.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import CodeType
from typing import TypeAlias

Site: TypeAlias = tuple[CodeType, int]

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_USERS = tuple(_PACKAGE + name for name in ("models" + os.sep, "training" + os.sep, "cli", "__main__"))
_inside: dict[str, bool] = {}  # cache: is this file gpuad's own machinery?
blamed: ContextVar[Site | None] = ContextVar("blamed", default=None)  # set while a derivative is computed


def is_inside(filename: str) -> bool:
    """True for the files of gpuad that a user does not think of as their program."""
    found = _inside.get(filename)
    if found is None:
        path = os.path.abspath(filename)
        found = _inside[filename] = path.startswith(_PACKAGE) and not path.startswith(_USERS)
    return found


def here(depth: int = 1) -> Site | None:
    """The site of the user's call that is running, or the forward line whose derivative is being computed."""
    found = blamed.get()
    if found is not None:
        return found
    frame = sys._getframe(depth)
    inside = _inside
    while True:
        code = frame.f_code
        name = code.co_filename
        if not (inside[name] if name in inside else is_inside(name)):
            return code, frame.f_lasti
        if frame.f_back is None:
            return None
        frame = frame.f_back


def raised_at(error: BaseException) -> Site | None:
    """The site of the user's innermost call that `error` came through."""
    found, step = None, error.__traceback__
    while step is not None:
        if not is_inside(step.tb_frame.f_code.co_filename):
            found = step.tb_frame.f_code, step.tb_lasti
        step = step.tb_next
    return found


@contextmanager
def blame(site: Site | None) -> Iterator[None]:
    """Attribute what runs inside to `site`."""
    token = blamed.set(site)
    try:
        yield
    finally:
        blamed.reset(token)


def line_of(site: Site) -> int:
    """The line number of `site`."""
    code, offset = site
    for start, end, line in code.co_lines():
        if start <= offset < end and line is not None:
            return line
    return code.co_firstlineno


def describe(site: Site | None) -> str:
    """`train.py:41`, or a phrase for the site that is not known."""
    if site is None:
        return "an unknown line"
    return f"{os.path.basename(site[0].co_filename)}:{line_of(site)}"
