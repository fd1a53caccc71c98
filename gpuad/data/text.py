"""Text files as bytes: which files, one mapped array of their content, and batches that can resume anywhere.

The content of all files lies end to end in one array, training files first, so that both parts are plain slices. The
array is mapped from a file in the user's cache directory:

    magic[8]  length of train, uint64  length of all, uint64  digest[32]  zeros[8]  content

and the digest covers the two lengths and the content, so a file that is cut short or damaged is known and rebuilt.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import struct
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import DataError

StrPath: TypeAlias = str | os.PathLike[str]
Bytes: TypeAlias = npt.NDArray[np.uint8]
Tokens: TypeAlias = npt.NDArray[np.int64]

_PEEK = 8192  # a NUL byte among the first 8 KiB makes a file binary
_PIECE = 1 << 22  # bytes read at once
_MAGIC = b"gpuadB01"
_HEADER = struct.Struct("<8sQQ32s8x")
_STREAM = 0x62617463686573  # "batches": keeps this stream apart from others that share the seed

# Tests, third-party packages, generated tables and topics, and programs of their own: not what one calls the library.
_NOT_LIBRARY = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "idlelib", "lib2to3", "encodings", "pydoc_data"}
)


# ---- which files -----------------------------------------------------------------------------------------------------


def find_text_files(paths: Iterable[StrPath] | StrPath) -> list[Path]:
    """The text files that `paths` name, each once, absolute and sorted.

    A folder stands for the files below it, without hidden ones, `__pycache__`, empty and binary files; links to folders
    are not followed. A file named directly is taken whatever it holds. DataError names a path that is missing, cannot
    be read, is empty, or is a folder without text files.
    """
    found: list[Path] = []
    for path in [paths] if isinstance(paths, str | os.PathLike) else paths:
        path = Path(os.path.abspath(path))
        if stat.S_ISDIR(_stat(path).st_mode):
            inside = [file for file in _files_below(path, skip=frozenset()) if _is_text(file)]
            if not inside:
                raise DataError(f"no text files in {path}\n  hidden, empty and binary files were skipped")
            found += inside
        else:
            _size(path)
            _peek(path)
            found.append(path)
    if not found:
        raise DataError("no paths were given\n  name at least one text file or folder")
    return _each_once(found)


def standard_library_files() -> list[Path]:
    """The Python sources of the running interpreter's standard library, without tests and tables, sorted."""
    root = Path(sysconfig.get_path("stdlib")).absolute()
    _stat(root)
    files = [file for file in _files_below(root, skip=_NOT_LIBRARY) if file.suffix == ".py" and _is_text(file)]
    if not files:
        raise DataError(f"no Python sources in {root}\n  this Python came without them: name files of your own")
    return _each_once(files)


def _files_below(folder: Path, *, skip: frozenset[str]) -> Iterator[Path]:
    """Each regular file below `folder` that is neither hidden nor in a folder named in `skip`."""

    def refuse(error: OSError) -> None:
        raise _unreadable(error.filename or folder, error) from error

    for where, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if name[0] != "." and name != "__pycache__" and name not in skip]
        for name in names:
            path = Path(where, name)
            if name[0] != "." and path.is_file():
                yield path


def _each_once(files: Iterable[Path]) -> list[Path]:
    """`files` sorted, without a second name (a link, a repetition) for the same file."""
    once: dict[str, Path] = {}
    for file in sorted(files):
        once.setdefault(os.path.realpath(file), file)
    return list(once.values())


def _is_text(path: Path) -> bool:
    """Whether the file has content and none of the NUL bytes by which binary files are known."""
    start = _peek(path)
    return bool(start) and b"\0" not in start


def _peek(path: Path) -> bytes:
    """The file's first bytes, which also shows that it can be read."""
    try:
        with open(path, "rb") as file:
            return file.read(_PEEK)
    except OSError as error:
        raise _unreadable(path, error) from error


def _stat(path: Path) -> os.stat_result:
    """What the system knows of `path`, or DataError."""
    try:
        return path.stat()
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist\n  check the spelling and the current folder") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise _unreadable(path, error) from error


def _size(path: Path) -> int:
    """The size of a regular file with something in it, or DataError."""
    status = _stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise DataError(f"{path} is a folder\n  list its files with find_text_files()")
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path} is not a regular file\n  save its content to a file and name that")
    if not status.st_size:
        raise DataError(f"{path} is empty\n  name a file with text in it")
    return status.st_size


def _unreadable(path: StrPath, error: Exception) -> DataError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return DataError(f"{path} cannot be read: {reason}\n  check its permissions, or leave it out")


# ---- one array of their content --------------------------------------------------------------------------------------


class _Source(NamedTuple):
    """One file as it was when the dataset was described."""

    name: str  # relative to the folder that holds all files, so the split does not depend on where that is
    path: Path
    size: int
    stamp: tuple[int, int]  # modified, changed: the second also shows an edit that restored the first


class ByteDataset:
    """The bytes of some files, with a part held out for evaluation.

    Whole files are held out, chosen by a hash of their names until they make up `fraction` of the bytes: the choice
    depends on no seed and not on where the files lie. Of a single file, the tail is held out.

    train, held_out: uint8[bytes], read-only.
    train_files, held_out_files: the files they hold.
    digest: hex digest of the content and the split; equal digests mean equal data.
    cache: the file that the arrays are mapped from; None where it could not be written and they are in memory.
    """

    def __init__(self, files: Iterable[StrPath] | StrPath, *, fraction: float = 0.1) -> None:
        if not 0 < fraction < 1:
            raise DataError(f"ByteDataset() got fraction={fraction}\n  hold out more than 0 and less than 1")
        train, held_out = _split(_sources([files] if isinstance(files, str | os.PathLike) else files), fraction)
        sources = train + held_out
        cut = sum(source.size for source in train)
        if not held_out:
            cut -= min(max(1, round(fraction * cut)), cut - 1)
        content, self.digest, self.cache = _load(sources, cut)
        self.train: Bytes = content[:cut]
        self.held_out: Bytes = content[cut:]
        self.train_files = [source.path for source in train]
        self.held_out_files = [source.path for source in held_out or train]
        self._files = len(sources)

    def describe(self) -> str:
        """One line, such as "12.3 MB in 812 files, 1.2 MB held out"."""
        files = "1 file" if self._files == 1 else f"{self._files} files"
        return f"{_amount(self.train.size + self.held_out.size)} in {files}, {_amount(self.held_out.size)} held out"


def _amount(size: int) -> str:
    if size < 1000:
        return f"{size} bytes"
    return f"{size / 1e3:.1f} kB" if size < 1e6 else f"{size / 1e6:.1f} MB"


def _sources(files: Iterable[StrPath]) -> list[_Source]:
    """`files` described and sorted by name."""
    paths = _each_once(Path(os.path.abspath(file)) for file in files)
    if not paths:
        raise DataError("ByteDataset() got no files\n  name at least one; find_text_files() lists those of a folder")
    root = os.path.commonpath([path.parent for path in paths])
    sources = []
    for path in paths:
        size, status = _size(path), _stat(path)
        name = Path(os.path.relpath(path, root)).as_posix()
        sources.append(_Source(name, path, size, (status.st_mtime_ns, status.st_ctime_ns)))
    return sorted(sources)


def _split(sources: list[_Source], fraction: float) -> tuple[list[_Source], list[_Source]]:
    """The files to train on and those held out; none is held out of a single one."""
    if len(sources) == 1:
        return sources, []
    by_hash = sorted(sources, key=lambda source: hashlib.blake2b(os.fsencode(source.name)).digest())
    room = fraction * sum(source.size for source in sources)
    chosen = set()
    for source in by_hash:
        if source.size <= room:
            room -= source.size
            chosen.add(source)
    if not chosen:
        chosen = {min(by_hash, key=lambda source: source.size)}
    return [s for s in sources if s not in chosen], [s for s in sources if s in chosen]


def _load(sources: list[_Source], cut: int) -> tuple[Bytes, str, Path | None]:
    """The content of `sources`, read-only, its digest, and the cache file that it is mapped from, if any."""
    total = sum(source.size for source in sources)
    with contextlib.suppress(OSError, RuntimeError):  # no home, no space, no permission: do without the cache
        path = _cache_path(sources, cut)
        cached = _open_cache(path, cut, total)
        if cached is None:
            _write_cache(path, sources, cut, total)
            cached = _open_cache(path, cut, total)
        if cached is not None:
            return *cached, path
    content = np.empty(total, np.uint8)
    filled = 0
    for piece in _pieces(sources):
        content[filled : filled + len(piece)] = np.frombuffer(piece, np.uint8)
        filled += len(piece)
    content.flags.writeable = False
    return content, _digest(cut, total, [content.data]).hex(), None


def _digest(cut: int, total: int, pieces: Iterable[bytes | memoryview]) -> bytes:
    """The digest of the two lengths and the content."""
    state = hashlib.blake2b(struct.pack("<QQ", cut, total), digest_size=32)
    for piece in pieces:
        state.update(piece)
    return state.digest()


def _pieces(sources: list[_Source]) -> Iterator[bytes]:
    """The content of `sources`, a piece at a time; DataError if one is not as it was described."""
    for source in sources:
        read = 0
        try:
            with open(source.path, "rb") as file:
                while piece := file.read(min(_PIECE, source.size + 1 - read)):  # one more: see a file that grew
                    read += len(piece)
                    if read > source.size:
                        break
                    yield piece
        except OSError as error:
            raise _unreadable(source.path, error) from error
        if read != source.size:
            raise DataError(f"{source.path} changed while it was read\n  start again when nothing writes to it")


def _cache_path(sources: list[_Source], cut: int) -> Path:
    """Where the content of `sources` is kept: the first half of the name says which files, the second which state."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    folder = (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "gpuad"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if sys.platform != "win32":
        status = folder.stat()
        if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise PermissionError(f"{folder} can be written by others")
    which = repr([os.fspath(source.path) for source in sources])
    state = repr([cut, [(source.size, source.stamp) for source in sources]])
    halves = [hashlib.blake2b(os.fsencode(half), digest_size=12).hexdigest() for half in (which, state)]
    return folder / f"text-{halves[0]}-{halves[1]}.bytes"


def _open_cache(path: Path, cut: int, total: int) -> tuple[Bytes, str] | None:
    """The content mapped from `path` and its digest, or None if the file is missing, incomplete or damaged."""
    try:
        with open(path, "rb") as file:
            header = file.read(_HEADER.size)
            if os.fstat(file.fileno()).st_size != _HEADER.size + total or header[:24] != _header(cut, total)[:24]:
                return None
            content: Bytes = np.asarray(np.memmap(file, np.uint8, mode="r", offset=_HEADER.size))
    except FileNotFoundError:
        return None
    digest = _digest(cut, total, [content.data])
    return (content, digest.hex()) if header == _header(cut, total, digest) else None


def _write_cache(path: Path, sources: list[_Source], cut: int, total: int) -> None:
    """Write the cache file under a temporary name, then give it its own; drop those of earlier states."""
    handle, temporary = tempfile.mkstemp(prefix="text-", suffix=".part", dir=path.parent)
    try:
        with open(handle, "wb") as file:
            file.seek(_HEADER.size)

            def written() -> Iterator[bytes]:
                for piece in _pieces(sources):
                    file.write(piece)
                    yield piece

            digest = _digest(cut, total, written())
            file.seek(0)
            file.write(_header(cut, total, digest))
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    for old in path.parent.glob(path.name.rpartition("-")[0] + "-*.bytes"):
        if old != path:
            with contextlib.suppress(OSError):
                old.unlink()


def _header(cut: int, total: int, digest: bytes = b"") -> bytes:
    return _HEADER.pack(_MAGIC, cut, total, digest)


# ---- batches ---------------------------------------------------------------------------------------------------------


def batches(data: Bytes, *, batch: int, length: int, seed: int, start_step: int = 0) -> Iterator[Tokens]:
    """Training batches int64[batch, length + 1] without end, from batch `start_step` on.

    An epoch goes once, in an order drawn from `seed`, over windows that do not overlap and that start at an offset of
    the epoch's own; a batch may take the end of one epoch and the start of the next. Batch k depends on the arguments
    and k alone, so a run that resumes at step k sees what it would have seen.
    """
    _check_windows("batches", data, batch, length)
    if start_step < 0 or not 0 <= seed < 1 << 64:
        raise DataError(
            f"batches() got seed={seed}, start_step={start_step}\n"
            "  a seed is from 0 to 2**64 - 1, and steps are counted from 0"
        )
    return _batches(data, batch, length + 1, seed, start_step)


def _batches(data: Bytes, batch: int, span: int, seed: int, start_step: int) -> Iterator[Tokens]:
    per_epoch = max(1, (data.size - span + 1) // span)  # as many as fit at every offset below span
    current, starts = -1, np.empty(0, np.int64)
    for step in count(start_step):
        rows = []
        wanted, last = step * batch, (step + 1) * batch
        while wanted < last:
            epoch, first = divmod(wanted, per_epoch)
            if epoch != current:
                current, starts = epoch, _epoch_starts(data.size, span, per_epoch, seed, epoch)
            rows.append(starts[first : first + last - wanted])
            wanted += rows[-1].size
        yield _gather(data, np.concatenate(rows), span)


def _epoch_starts(size: int, span: int, windows: int, seed: int, epoch: int) -> Tokens:
    """Where the windows of one epoch start, in the order in which they are drawn."""
    # Raw bits and a stable sort: NumPy promises Philox's stream for all time, but not that of shuffle or integers.
    bits = np.random.Philox(
        counter=np.array([0, 0, 0, _STREAM], np.uint64), key=np.array([seed, epoch], np.uint64)
    ).random_raw(windows + 1)
    offset = int(bits[0]) % min(span, size - windows * span + 1)
    return np.argsort(bits[1:], kind="stable").astype(np.int64) * span + offset


def held_out_windows(data: Bytes, *, batch: int, length: int, windows: int) -> list[Tokens]:
    """The same evenly spaced windows at each call, for evaluation: a list of int64[batch, length + 1].

    At most `windows` of them in all, and no more than fit without overlap. They come in full batches, and what is left
    over is dropped (fewer than `batch` make one smaller array); so a mean over the list weighs each byte alike.
    """
    _check_windows("held_out_windows", data, batch, length)
    if windows < 1:
        raise DataError(f"held_out_windows() got windows={windows}\n  ask for at least one")
    span = length + 1
    number = min(windows, data.size // span)
    if number > batch:
        number -= number % batch
    starts = np.arange(number, dtype=np.int64) * (data.size - span) // max(1, number - 1)
    return [_gather(data, starts[k : k + batch], span) for k in range(0, number, batch)]


def _gather(data: Bytes, starts: Tokens, span: int) -> Tokens:
    """The windows of `span` bytes at `starts`: int64[starts.size, span]."""
    windows: Tokens = data[starts[:, None] + np.arange(span)].astype(np.int64)
    return windows


def _check_windows(caller: str, data: Bytes, batch: int, length: int) -> None:
    if data.dtype != np.uint8 or data.ndim != 1:
        raise DataError(f"{caller}() got {data.dtype}{list(data.shape)}\n  pass uint8[bytes], such as dataset.train")
    if batch < 1 or length < 1:
        raise DataError(f"{caller}() got batch={batch}, length={length}\n  both must be at least 1")
    if data.size <= length:
        raise DataError(
            f"{caller}() got {data.size} bytes, and one window of length={length} needs {length + 1}\n"
            "  use more text or a shorter length"
        )
