"""The stand-in's `cupy.cuda.compiler`."""

from __future__ import annotations


class CompileException(Exception):
    """A text that does not compile, with what the compiler says."""

    def __init__(self, msg: str, source: str, name: str, options: tuple[str, ...], backend: str = "nvrtc") -> None:
        self._msg, self.source, self.name, self.options, self.backend = msg, source, name, options, backend
        super().__init__(msg)

    def __str__(self) -> str:
        return self._msg

    def get_message(self) -> str:
        return self._msg
