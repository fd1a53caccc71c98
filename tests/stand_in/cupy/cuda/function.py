"""The stand-in's `cupy.cuda.function`."""

from __future__ import annotations

from stand_in import compiler

from .. import _machine
from . import driver, runtime


class Module:
    """The entries of one text."""

    def __init__(self) -> None:
        self._entries: dict[str, compiler.Entry] = {}

    def get_function(self, name: str) -> Function:
        return Function(self, name)


class Function:
    """An entry of a module on the device on which it was asked for."""

    def __init__(self, module: Module, funcname: str) -> None:
        entry = module._entries.get(funcname)
        if entry is None:
            raise driver.CUDADriverError(500)
        self.module, self.ptr = module, _machine.load(entry, runtime.getDevice())
