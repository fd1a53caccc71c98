"""Boundaries: what a stage of a chain is given, kept for its next run, on the device or on the host."""

from __future__ import annotations

from typing import Any

from ..array import Array
from ..attribution import keep, ledgers
from ..node import Node
from ..op import Op


class Boundary:
    """Computed arrays, kept on the account of `op`, which is not the chain: that holds this."""

    def __init__(self, op: Op, arrays: list[Array]) -> None:
        self.op = op
        self.away: list[Any] | None = None  # what is on the host, and arrays that cannot go there
        self._keep(arrays)

    def _keep(self, arrays: list[Array]) -> None:
        self.node = Node(self.op, [], list(arrays), None)
        for array in arrays:
            array.kept += 1
            if ledgers:
                keep(array, self.node, self.op.name)

    def offload(self) -> None:
        """Let them wait in memory of the host."""
        self.away = [a.device.offload(a) if _can_go(a) else a for a in self.fetched()]
        self.node.release()

    def prefetch(self) -> None:
        """Let them begin to come back."""
        for gone in self.away or ():
            if type(gone) is not Array:
                gone.prefetch()

    def fetched(self) -> list[Array]:
        """They, on the device again."""
        if self.away is not None:
            away, self.away = self.away, None
            self._keep([gone if type(gone) is Array else gone.fetch() for gone in away])
        found = self.node.saved
        assert found is not None
        return found


def _can_go(array: Array) -> bool:
    """Is it all of its memory, in one piece, and not of a parameter or an input, which others hold as well?"""
    buffer = array.buffer
    assert buffer is not None
    if buffer.category in ("parameter", "input"):
        return False
    return array.nbytes == buffer.nbytes and bool(array.data.flags.c_contiguous)


__all__ = ["Boundary"]
