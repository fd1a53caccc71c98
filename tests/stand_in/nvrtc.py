"""NVIDIA's run-time compiler, from the wheel nvidia-cuda-nvrtc-cu12, which needs no driver."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path


@functools.cache
def library() -> ctypes.CDLL:
    """The compiler, or an ImportError that says what installs it."""
    try:
        spec = importlib.util.find_spec("nvidia.cuda_nvrtc")
    except ModuleNotFoundError:
        spec = None
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        for path in sorted(Path(folder).glob("lib/libnvrtc.so.*")):
            return ctypes.CDLL(str(path))
    raise ImportError("needs NVRTC: pip install nvidia-cuda-nvrtc-cu12")


def refusal(code: str, options: Sequence[str], architecture: str, names: Sequence[str] = ()) -> str | None:
    """What NVRTC says about `code` where it does not compile for `architecture` (sm_90); else None."""
    lib, program = library(), ctypes.c_void_p()
    assert lib.nvrtcCreateProgram(ctypes.byref(program), code.encode(), b"kernel.cu", 0, None, None) == 0
    for name in names:
        assert lib.nvrtcAddNameExpression(program, name.encode()) == 0
    given = [option.encode() for option in (f"--gpu-architecture={architecture}", *options)]
    failed = lib.nvrtcCompileProgram(program, len(given), (ctypes.c_char_p * len(given))(*given))
    size = ctypes.c_size_t()
    lib.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    lib.nvrtcGetProgramLog(program, log)
    lib.nvrtcDestroyProgram(ctypes.byref(program))
    return log.value.decode() if failed else None
