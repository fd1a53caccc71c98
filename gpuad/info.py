"""`gpuad info`: what this installation has and what it would use."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import textwrap

import numpy as np

from . import __version__
from .devices import default_device
from .devices import device as find_device
from .errors import DeviceError

PACKAGES = ("numpy", "ml_dtypes", "safetensors", "tqdm", "matplotlib", "cupy-cuda12x", "cupy-cuda13x")


def info() -> str:
    """A table of versions, devices and engines."""
    rows = [
        ("gpuad", __version__),
        ("Python", platform.python_version()),
        ("system", f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"),
        *((name, _version(name)) for name in PACKAGES),
        ("BLAS", _blas()),
        ("", ""),
        *((f"device {name}", _device(name)) for name in ("cpu", "cuda", "meta")),
        ("default device", default_device().name),
    ]
    return "\n".join(textwrap.fill(v, 80, initial_indent=f"{k:<16}", subsequent_indent=" " * 16) for k, v in rows)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _blas() -> str:
    found = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return f"{found.get('name', 'unknown')} {found.get('version', '')}"


def _device(name: str) -> str:
    try:
        found = find_device(name)
    except DeviceError as error:
        return str(error).splitlines()[0]
    return found.describe()


__all__ = ["info"]
