"""Files that are whole at every moment: written under another name, then renamed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".part"  # how the names of files end that are being written


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A name beside `path` to write to; the file takes the place of `path` when the block ends without an error.

    Whoever reads `path` finds the old file or the new one, also after a kill or a crash of the machine.  Where a link
    leads to is replaced, not the link; what is no file (a terminal, a pipe) is written to when the block ends.
    """
    target = Path(path).resolve()
    if target.exists() and not target.is_file() and not target.is_dir():
        with tempfile.TemporaryDirectory() as folder:
            whole = Path(folder) / target.name
            yield whole
            target.write_bytes(whole.read_bytes())
        return
    partial = target.with_name(f".{target.name}.{os.urandom(4).hex()}{PARTIAL}")
    try:
        partial.touch(exist_ok=False)
        mode = partial.stat().st_mode
        yield partial
        partial.chmod(mode)  # a library may have made the file for this user alone
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())  # or a crash of the machine could leave the new name with nothing in it
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


__all__ = ["PARTIAL", "replacing"]
