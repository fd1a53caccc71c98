"""CUDA text to a library of this machine, with g++; and launches of its entries, thread by thread.

The text is preprocessed as NVRTC would, its entries are found, and a launcher for each is written behind it: C++ reads
the types of the parameters, so nothing states them twice.  Libraries are kept in a folder by the hash of their text:
GPUAD_STAND_IN_CACHE, or a temporary one for the life of the process.

GPUAD_STAND_IN_NVRTC=1 compiles every text with NVRTC for sm_90 first.  GPUAD_STAND_IN_ORDER is the order in which the
threads of a block, and the blocks, get their turn: forward, reverse, shuffle or shuffle:SEED.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import guarded, nvrtc

HERE = Path(__file__).parent
FLAGS = (
    *("-std=c++17", "-O1", "-march=native", "-fPIC", "-w", "-fno-math-errno", "-fno-trapping-math"),
    "-ffp-contract=off",  # as emitted text is compiled for a GPU
    *("-fwrapv", "-fno-strict-aliasing"),  # CUDA's integers wrap, and its text reads memory as other types
    "-ftrivial-auto-var-init=pattern",  # what is read before it is written shows
    *("-fsanitize=bounds-strict,alignment", "-fsanitize-undefined-trap-on-error"),
)
LINK = ("-nostdlib", "-lgcc")  # the C library is there already, and finding it takes half of the time
MACROS = ("-DGPUAD_ON_HOST", "-D__CUDA_ARCH__=900", "-D__CUDACC__", "-D__CUDACC_RTC__")
MEANINGLESS = ("--fmad=", "-fmad=", "--use_fast_math", "-use_fast_math", "-lineinfo", "--std=", "-std=")  # to g++
ORDERS = {"forward": 0, "reverse": 1, "shuffle": 2}


class CompileError(Exception):
    """The text does not compile: what the compiler says."""


class KernelError(Exception):
    """A kernel did what a GPU would answer with an error, or with a wrong result."""


class Entry(ctypes.Structure):
    """What a library says of one of its entries; see cuda_on_host.hpp."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("kinds", ctypes.c_char_p),
        ("run", ctypes.c_void_p),
        ("shared", ctypes.c_void_p),
        ("shared_end", ctypes.c_void_p),
    )


@functools.cache
def cxx() -> str:
    """The path of g++."""
    found = shutil.which(os.environ.get("CXX", "g++"))
    if found is None:
        raise CompileError("the stand-in for CuPy needs g++")
    return found


@functools.cache
def temporary_folder() -> Path:
    """A folder that goes when this process ends."""
    folder = tempfile.TemporaryDirectory(prefix="stand_in_")
    _kept.append(folder)
    return Path(folder.name)


_kept: list[object] = []  # what must live as long as the process
_lock = threading.RLock()  # one compilation, one launch at a time


def folder() -> Path:
    """Where libraries are kept."""
    path = os.environ.get("GPUAD_STAND_IN_CACHE")
    if not path:
        return temporary_folder()
    Path(path).mkdir(parents=True, exist_ok=True)
    return Path(path)


def run_compiler(arguments: Sequence[str | Path], text: str | None = None) -> str:
    """What g++ prints."""
    done = subprocess.run([cxx(), *map(str, arguments)], input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompileError(done.stderr)
    return done.stdout


@functools.cache
def model() -> str:
    """A hash of the thread model, the flags and the compiler."""
    parts = [run_compiler(["--version"]), *FLAGS, *MACROS, compiler_text()]
    parts += [(HERE / name).read_text() for name in ("cuda_math.hpp", "cuda_on_host.hpp", "cuda_on_host.cpp")]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def compiler_text() -> str:
    """This file: what it writes around a text is part of what is compiled."""
    return Path(__file__).read_text()


def built(name: str, arguments: Sequence[str | Path], text: str | None = None) -> Path:
    """The file `name` in the folder, which g++ with `arguments` makes where it is missing."""
    path = folder() / name
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        handle, fresh = tempfile.mkstemp(dir=path.parent, suffix=path.suffix)
        os.close(handle)
        try:
            run_compiler([*arguments, "-o", fresh], text)
            os.replace(fresh, path)  # at once, for other processes share the folder
        finally:
            Path(fresh).unlink(missing_ok=True)
    return path


@functools.cache
def runtime() -> ctypes.CDLL:
    """The fibres, loaded so that libraries of kernels find them."""
    flags = [*("-std=c++17", "-O2", "-march=native", "-fPIC", "-fno-strict-aliasing", "-shared", "-I", HERE)]
    path = built(f"runtime_{model()[:24]}.so", [*flags, HERE / "cuda_on_host.cpp"])
    lib = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    lib.stand_in_launch.restype = ctypes.c_char_p
    lib.stand_in_launch.argtypes = (
        *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int),
        *(ctypes.c_uint64, ctypes.c_void_p),
    )
    return lib


# --- texts ----------------------------------------------------------------------------------------

_ENTRY = re.compile(
    r"__global__\s+(?:__launch_bounds__\s*\([^;{]*?\)\s*)?void\s+"
    r"(?:__launch_bounds__\s*\((?:[^()]|\([^()]*\))*\)\s*)?(\w+)\s*\("
)
_TEMPLATE = re.compile(r"template\s*<[^;{}]*>\s*(?:static\s+|inline\s+)*$")
_DYNAMIC_SHARED = re.compile(r"extern\s+__shared__\s+([^;\[\]]*?)(\w+)\s*\[\s*\]\s*;")
_ATTRIBUTE = re.compile(r"__align__\s*\([^()]*\)|alignas\s*\([^()]*\)|__attribute__\s*\(\(.*?\)\)")


@dataclass(frozen=True)
class Text:
    """A CUDA text that is ready for g++: it stands in a namespace of its own."""

    key: str
    body: str
    entries: tuple[str, ...]


def preprocessed(code: str, options: Sequence[str], names: Sequence[str]) -> Text:
    """`code` after the preprocessor, and its entries: those that are no templates, then `names`."""
    given = []
    for option in options:
        if option.startswith(("-D", "-I", "-U")):
            given.append(option)
        elif not option.startswith(MEANINGLESS):
            raise CompileError(f"the stand-in does not know the option {option}")
    plain = run_compiler(["-std=c++17", "-E", "-undef", "-x", "c++", *MACROS, *given, "-"], code)
    plain = plain.replace('"<stdin>"', '"kernel.cu"')
    found = [m[1] for m in _ENTRY.finditer(plain) if not _TEMPLATE.search(plain[max(0, m.start() - 400) : m.start()])]
    entries = (*dict.fromkeys(found), *(name for name in names if name not in found))
    body = _DYNAMIC_SHARED.sub(_pointer_to_dynamic_shared, plain)
    body = re.sub(r'extern\s+"C"\s+__global__', "__global__", body)
    key = hashlib.sha256("\0".join([model(), body, *entries]).encode()).hexdigest()[:24]
    return Text(key, body, entries)


def _pointer_to_dynamic_shared(match: re.Match[str]) -> str:
    before = match.string[: match.start()]
    if before.count("{") <= before.count("}"):
        raise CompileError(f"the stand-in knows extern __shared__ {match[2]}[] only inside a function")
    kind = _ATTRIBUTE.sub("", match[1]).strip()
    return f"{kind}* const {match[2]} = reinterpret_cast<{kind}*>(stand_in::dynamic_shared);"


def source(texts: Sequence[Text]) -> str:
    """The C++ of a library for `texts`, with the table of its entries for each."""
    parts = [
        'extern unsigned char __start_stand_in_shared[] __attribute__((weak, visibility("hidden")));',
        'extern unsigned char __stop_stand_in_shared[] __attribute__((weak, visibility("hidden")));',
    ]
    for text in texts:
        table = [
            f'{{"{name}", stand_in::Launcher<&{name}>::kinds, stand_in::Launcher<&{name}>::run,'
            " __start_stand_in_shared, __stop_stand_in_shared},"
            for name in text.entries
        ]
        parts += [
            "namespace {",
            f"namespace text_{text.key} {{",
            text.body,
            '\n# 1 "launchers"',
            "stand_in::Entry entries[] = {",
            *table,
            "{}};",
            "}",
            "}",
            f'extern "C" stand_in::Entry* entries_{text.key}() {{ return text_{text.key}::entries; }}',
        ]
    return "\n".join(parts)


_tables: dict[str, dict[str, Entry]] = {}  # the registry of loaded texts by key: their entries by name


def build(texts: Sequence[Text]) -> None:
    """Compile `texts`, all that are not there yet into one library, and load them."""
    with _lock:
        missing = [text for text in dict.fromkeys(texts) if text.key not in _tables]
        fresh = [text for text in missing if not (folder() / text.key).exists()]
        runtime()
        if fresh:
            header = built(
                f"{model()[:24]}/cuda_on_host.hpp.gch", ["-x", "c++-header", *FLAGS, HERE / "cuda_on_host.hpp"]
            )
            key = hashlib.sha256("".join(text.key for text in fresh).encode()).hexdigest()[:24]
            arguments = [
                "-x",
                "c++",
                *FLAGS,
                "-shared",
                "-I",
                header.parent,
                "-include",
                "cuda_on_host.hpp",
                "-",
                *LINK,
            ]
            library = built(f"kernels_{key}.so", arguments, source(fresh))
            for text in fresh:
                note = folder() / f"{text.key}.{os.getpid()}"
                note.write_text(library.name)
                os.replace(note, folder() / text.key)
        for text in missing:
            lib = ctypes.CDLL(str(folder() / (folder() / text.key).read_text()))
            first = getattr(lib, f"entries_{text.key}")
            first.restype = ctypes.POINTER(Entry)
            table = first()
            _tables[text.key] = {name: table[k] for k, name in enumerate(text.entries)}


@functools.cache
def ready(code: str, options: tuple[str, ...] = (), names: tuple[str, ...] = ()) -> Text:
    """`code`, preprocessed, and accepted by NVRTC where the environment asks for it."""
    if os.environ.get("GPUAD_STAND_IN_NVRTC") == "1":
        said = nvrtc.refusal(code, options, "sm_90", names)
        if said is not None:
            raise CompileError(said)
    return preprocessed(code, options, names)


def entries(code: str, options: tuple[str, ...] = (), names: tuple[str, ...] = ()) -> dict[str, Entry]:
    """The entries of `code` by name, compiled."""
    text = ready(code, options, names)
    if text.key not in _tables:
        build([text])
    return _tables[text.key]


def prepare(codes: Sequence[str], options: tuple[str, ...] = ()) -> None:
    """Compile many texts at once, which is faster than one by one; `entries` then finds them.

    What does not compile is left out: `entries` says why when it is asked for.
    """
    texts = []
    for code in codes:
        with contextlib.suppress(CompileError):
            texts.append(ready(code, options))
    _build_what_compiles(texts)


def _build_what_compiles(texts: Sequence[Text]) -> None:
    try:
        build(texts)
    except CompileError:
        if len(texts) > 1:
            _build_what_compiles(texts[: len(texts) // 2])
            _build_what_compiles(texts[len(texts) // 2 :])


# --- launches -------------------------------------------------------------------------------------


def order() -> tuple[int, int]:
    """The order that the environment asks for, and its seed."""
    name, _, seed = os.environ.get("GPUAD_STAND_IN_ORDER", "forward").partition(":")
    return ORDERS[name], int(seed or 1)


def launch(
    entry: Entry, grid: tuple[int, int, int], block: tuple[int, int, int], shared: int, arguments: int, device_id: int
) -> None:
    """Run `entry` with the void*[] at the address `arguments`."""
    name = entry.name.decode()
    touched = []
    for k, kind in enumerate(entry.kinds.decode()):
        if kind == "*":
            address = ctypes.c_void_p.from_address(ctypes.c_void_p.from_address(arguments + 8 * k).value).value
            extent = guarded.near(address) if address else None
            if extent is not None:
                touched.append(extent)
                if extent.device_id != device_id:
                    raise KernelError(
                        f"{name}: argument {k} is memory of device {extent.device_id}, not of {device_id}"
                    )
    fault = ctypes.c_void_p()
    in_order, seed = order()
    with _lock:
        said = runtime().stand_in_launch(
            ctypes.byref(entry),
            arguments,
            (ctypes.c_uint * 3)(*grid),
            (ctypes.c_uint * 3)(*block),
            shared,
            in_order,
            seed,
            ctypes.byref(fault),
        )
    written = [wrong for wrong in [extent.violation() for extent in touched] if wrong]
    for extent in touched if written else ():
        extent.restore()
    if said is not None:
        extent = guarded.near(fault.value) if fault.value else None
        where = f", {extent.place(fault.value)}" if extent else ""
        raise KernelError(said.decode() + where)
    if written:
        raise KernelError(f"{name}: {written[0]}")
