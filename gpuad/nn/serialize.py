"""Tensors in files: the safetensors format, which holds names, dtypes, shapes and bytes, and no code.

    save("model.safetensors", model.state_dict(), {"step": "1000"})
    model.load_state_dict(load("model.safetensors"))

The state of an optimizer is a dict of tensors as well.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..convert import as_operand, asarray
from ..devices import Device
from ..errors import DataError
from ..files import replacing
from ..tensor import Tensor


def save(path: str | os.PathLike[str], tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """Write `tensors` by name to `path`, whole: whoever reads it finds the old file or the new one."""
    from safetensors.numpy import save_file

    notes = dict(metadata) if metadata else None
    if notes and any(type(v) is not str for entry in notes.items() for v in entry):
        raise DataError("the metadata of a safetensors file is text; use json.dumps() for other values")
    arrays = {str(name): np.asarray(as_operand(x).detach().numpy(), order="C") for name, x in tensors.items()}
    with replacing(path) as partial:
        save_file(arrays, partial, notes)


def load(path: str | os.PathLike[str], *, device: str | Device | None = None) -> dict[str, Tensor]:
    """The tensors in the file at `path`, by name."""
    with _opened(path) as file:
        return {name: asarray(file.get_tensor(name), device=device) for name in file.keys()}  # noqa: SIM118  # not a dict


def load_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The texts that were saved with the tensors in the file at `path`; the tensors are not read."""
    with _opened(path) as file:
        return dict(file.metadata() or {})


def _opened(path: str | os.PathLike[str]) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, "numpy")
    except SafetensorError as error:
        raise DataError(f"{os.fspath(path)} is not a safetensors file, or is damaged: {error}") from None


__all__ = ["load", "load_metadata", "save"]
