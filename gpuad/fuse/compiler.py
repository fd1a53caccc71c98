"""The machine's C++ compiler: libraries made from kernel text, kept in the user's cache directory.

A library is loaded only from a directory that belongs to the user and that no one else can write.  Its name is a hash
of the text, the flags, the compiler and the processor, so it is found again exactly where it is right.  It is written
under a temporary name and renamed, so that an interrupted or a second process never leaves half of one.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

from .prelude import HOST_FLAGS

FLAGS = (*HOST_FLAGS, "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
CANDIDATES = ("g++", "c++", "clang++")


class CompilerError(Exception):
    """The compiler is missing, or refuses; the message says what it said.

    `passing` where it may do better the next time: it was killed, or the disk was full.
    """

    def __init__(self, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


@functools.cache
def command() -> tuple[str, ...]:
    """The compiler, as CXX names it or as one is found: program and first arguments."""
    named = shlex.split(os.environ.get("CXX", ""))
    for candidate in [named] if named else [[name] for name in CANDIDATES]:
        found = shutil.which(candidate[0])
        if found is not None:
            return (found, *candidate[1:])
    if named:
        raise CompilerError(f"CXX names {named[0]!r}, which is not installed")
    raise CompilerError(f"none of {', '.join(CANDIDATES)} is installed")


@functools.cache
def identity() -> str:
    """What the code that the compiler makes depends on, besides text and flags: itself and the processor."""
    said = _run([*command(), "--version"])
    return f"{' '.join(command())} {said.splitlines()[0]} {processor()}"


def processor() -> str:
    """The processor and its features, as far as the system tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        kept = [line for line in lines if line.split("\t")[0] in ("model name", "flags", "Features", "CPU part")]
        return " ".join(kept)
    except OSError:
        return f"{platform.machine()} {platform.processor()}"


@functools.cache
def flags() -> tuple[str, ...]:
    """What the compiler is told: FLAGS, and more of one that would give up vectors where many values are selected."""
    gcc = "clang" not in identity() and "Free Software Foundation" in _run([*command(), "--version"])
    return (*FLAGS, *(("--param", "max-tree-if-conversion-phi-args=32") if gcc else ()))


@functools.cache
def cache() -> Path:
    """The directory that libraries are kept in: the user's own, or a new one that goes with the process."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = Path(base) / "gpuad"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _is_ours(folder):
            return folder
    except OSError:
        pass
    return temporary(os.getpid())


def _is_ours(path: Path) -> bool:
    """Does `path` belong to this user, and can nobody else write it?"""
    found = path.stat()
    owned = not hasattr(os, "getuid") or found.st_uid == os.getuid()
    return owned and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and os.access(path, os.W_OK)


@functools.cache
def temporary(process: int) -> Path:
    """A directory that goes when the process does that made it, and not when a child of it ends."""
    folder = Path(tempfile.mkdtemp(prefix="gpuad-"))
    atexit.register(_remove, folder, process)
    return folder


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


def library(text: str, *options: str) -> ctypes.CDLL:
    """The library made of `text`, compiled now unless it was before.  Raises a CompilerError."""
    given = (*flags(), *options)
    key = hashlib.sha256("\0".join((identity(), *given, text)).encode()).hexdigest()[:32]
    try:
        return _made(cache() / f"{key}.so", text, given)
    except OSError:  # a full disk, a folder that is gone, or one that nothing may be run from
        try:
            return _made(temporary(os.getpid()) / f"{key}.so", text, given)
        except OSError as error:
            raise CompilerError(f"no compiled kernel can be kept or loaded: {error}", passing=True) from None


def _made(path: Path, text: str, given: tuple[str, ...]) -> ctypes.CDLL:
    """The library at `path`, made of `text` if it is not there."""
    if path.exists() and _is_ours(path):
        try:
            return ctypes.CDLL(str(path))
        except OSError:  # damaged
            path.unlink(missing_ok=True)
    compile_to(path, text, given)
    return ctypes.CDLL(str(path))


def compile_to(path: Path, text: str, flags: tuple[str, ...]) -> None:
    """Compile `text` to the library `path`."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="making-") as folder:
        source, made = Path(folder) / "kernel.cpp", Path(folder) / "kernel.so"
        source.write_text(text)
        _run([*command(), *flags, "-o", str(made), str(source)])
        made.chmod(0o700)
        os.replace(made, path)


def _run(arguments: list[str]) -> str:
    """What a command prints; a CompilerError if it fails."""
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise CompilerError(f"{arguments[0]}: {error}") from None
    if done.returncode:
        said = f"{shlex.join(arguments[:1])} failed with code {done.returncode}:\n{done.stderr[:2000]}"
        raise CompilerError(said, passing=done.returncode < 0)
    return done.stdout
