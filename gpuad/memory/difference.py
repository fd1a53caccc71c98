"""What grew and what shrank between two profiles, at their peaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .profile import Block, Profile, alike, show
from .report import Table

MOST = 10  # of a kind that are listed


@dataclass(frozen=True)
class Change:
    """The bytes of one category, module, op or line at the peak before and after."""

    name: str
    before: int
    after: int

    @property
    def grown(self) -> int:
        """How many bytes more there are; negative where there are fewer."""
        return self.after - self.before


@dataclass(frozen=True)
class Difference:
    """What differs between the peaks of `before` and `after`: by kind, the largest change first, nothing that is equal.

    The kinds are "category", "module", "op" and "line".
    """

    before: Profile
    after: Profile
    changes: dict[str, list[Change]]

    def __str__(self) -> str:
        return self.table()

    def table(self) -> str:
        """The largest changes of each kind, at most 80 columns wide."""
        a, b = self.before, self.after
        whole = Change("peak", a.peak_bytes, b.peak_bytes)
        rows: list[Sequence[str]] = [_row(whole), ["  in phase", a.peak_phase or "-", b.peak_phase or "-", ""]]
        for kind, changes in self.changes.items():
            if changes:
                rows += [[f"by {kind}"], *(_row(change, "  ") for change in changes[:MOST])]
            if len(changes) > MOST:
                rest = changes[MOST:]
                others = Change(f"{len(rest)} others", sum(c.before for c in rest), sum(c.after for c in rest))
                rows.append(_row(others, "  "))
        if not any(self.changes.values()):
            rows.append(["Nothing differs at the peak."])
        title = f"What differs at the peak, from {a.name} to {b.name}"
        return str(Table(title, ["", a.name, b.name, "change"], rows, "<>>>"))


def _row(change: Change, indent: str = "") -> list[str]:
    sign = "+" if change.grown > 0 else ""
    return [indent + change.name, show(change.before), show(change.after), sign + show(change.grown)]


def difference(a: Profile, b: Profile) -> Difference:
    """What is different at the peak of `b` from that of `a`.

    Modules whose paths differ only in numbers count as one: "blocks.*.attention".
    """
    held = [(p.alive(p.peak_event), p.peak_event) for p in (a, b)]
    modules = alike(block.module for blocks, _ in held for block in blocks)
    kinds: dict[str, Callable[[Block, int], str]] = {
        "category": lambda block, event: block.category(event),
        "module": lambda block, event: modules[block.module] or "(no module)",
        "op": lambda block, event: block.op or "(no op)",
        "line": lambda block, event: block.line or "(no line)",
    }
    changes = {}
    for kind, name in kinds.items():
        before, after = Counter[str](), Counter[str]()
        for counts, (blocks, event) in zip((before, after), held):
            for block in blocks:
                counts[name(block, event)] += block.nbytes
        found = [Change(n, before[n], after[n]) for n in {**before, **after} if before[n] != after[n]]
        changes[kind] = sorted(found, key=lambda change: -abs(change.grown))
    return Difference(a, b, changes)


__all__ = ["Change", "Difference", "difference"]
