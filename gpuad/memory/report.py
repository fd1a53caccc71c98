"""What one or several profiles say, for people: tables for a terminal, pictures, a page; and as JSON for programs.

Nothing is measured here, and nothing is said that the profiles do not say.  The same Tables go to the terminal and to
the page.
"""

from __future__ import annotations

import json
import os
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import DataError
from ..files import replacing
from ..ops.head import CHUNK_BYTES
from .page import page
from .plots import figure, headline, shorten
from .profile import CATEGORIES, Profile, alike, show, total
from .sizes import parse_bytes

WIDTH = 80  # of a terminal
COLUMN = 13  # of a run's name above its numbers
ABREAST = 4  # runs in one table
MOMENTS = ("forward end", "backward end", "step end")  # marks
LINES = 10  # that keep most
BASE = "inference"  # the run that others are compared with
RESERVED = "pool reserved"  # the row of the reconciliation that a limit holds for, beside the peak


# --- tables ---------------------------------------------------------------------------------


@dataclass
class Table:
    """Rows of text below a title.  A row of one cell is a sentence across the table, indented if it begins so.

    `align` has for each column "<" for text, of which the end is shown where room is short, or ">" for numbers.
    """

    title: str
    head: Sequence[str]
    rows: list[Sequence[str]]
    align: str

    def __str__(self) -> str:
        cells = [row for row in self.rows if len(row) > 1]
        heads = [textwrap.wrap(shorten(h, 3 * COLUMN), COLUMN) or [""] for h in self.head]
        wide = [max(len(text) for text in [*head, *(row[c] for row in cells)]) for c, head in enumerate(heads)]
        texts = [c for c, a in enumerate(self.align) if a == "<"]
        while sum(wide) + 2 * (len(wide) - 1) > WIDTH:  # numbers are short: the widest text gives way
            wide[max(texts, key=wide.__getitem__)] -= 1
        out = textwrap.wrap(self.title, WIDTH)
        if any(self.head):
            deep = max(map(len, heads))
            heads = [[""] * (deep - len(head)) + head for head in heads]
            out += [self._row([head[k] for head in heads], wide) for k in range(deep)]
        for row in self.rows:
            out += [self._row(row, wide)] if len(row) > 1 else _wrap(row[0])
        return "\n".join(out)

    def _row(self, cells: Sequence[str], wide: Sequence[int]) -> str:
        return "  ".join(f"{shorten(c, w):{a}{w}}" for c, a, w in zip(cells, self.align, wide)).rstrip()


def _wrap(text: str) -> list[str]:
    indent = " " * (len(text) - len(text.lstrip()))
    return textwrap.wrap(text.strip(), WIDTH, initial_indent=indent, subsequent_indent=indent)


def by_category(profiles: Sequence[Profile]) -> Table:
    """The bytes of each category at the marks and at the peak, a column for each run."""
    rows: list[Sequence[str]] = []
    for name in MOMENTS:
        marks = [p.mark(name) for p in profiles]
        if any(marks):
            held = [None if m is None else p.by_category(m.event) for p, m in zip(profiles, marks)]
            rows += [[name], *_categories(held), ["  all", *("-" if m is None else show(m.live) for m in marks)]]
    held = [p.by_category(p.peak_event) for p in profiles]
    rows += [["peak"], ["  in phase", *(p.peak_phase or "-" for p in profiles)], *_categories(held)]
    rows.append(["  all", *(show(p.peak_bytes) for p in profiles)])
    if any(p.extra is not None for p in profiles):
        rows.append(["forward passes again", *("-" if p.extra is None else f"{p.extra:.2f}" for p in profiles)])
    return Table("What the memory was for", ["", *(p.name for p in profiles)], rows, "<" + ">" * len(profiles))


def _categories(held: Sequence[dict[str, int] | None]) -> Iterator[Sequence[str]]:
    for category in CATEGORIES:
        if any(h and category in h for h in held):
            yield [f"  {category}", *("-" if h is None else show(h.get(category, 0)) for h in held)]


def ratio(base: Profile, profiles: Sequence[Profile]) -> Table:
    """How many times the peak of `base` each run needs at its own peak, and what part of that each category is."""
    runs = [base, *profiles]
    held = [p.by_category(p.peak_event) for p in runs]
    rows: list[Sequence[str]] = []
    for category in CATEGORIES:
        if any(category in h for h in held):
            parts = [_part(h.get(category, 0), base.peak_bytes, p.peak_bytes) for h, p in zip(held, runs)]
            rows.append([category, *parts])
    rows.append(["all", *(_part(p.peak_bytes, base.peak_bytes, p.peak_bytes) for p in runs)])
    title = f"The peak as a multiple of that of {base.name} ({show(base.peak_bytes)}), and what each part adds to it"
    return Table(title, ["", *(p.name for p in runs)], rows, "<" + ">" * len(runs))


def _part(nbytes: int, base: int, whole: int) -> str:
    return f"{nbytes / base:.2f} {nbytes / whole:>6.1%}" if whole else "0.00"


def reconciliation(profile: Profile) -> Table:
    """The rows of the reconciliation, with how far each is to be trusted."""
    rows: list[Sequence[str]] = []
    for row in profile.reconciliation:
        rows.append([row.row, "-" if row.nbytes is None else show(row.nbytes), row.quality])
        if row.note:
            rows.append([f"    {row.note}"])
    return Table(f"From what {profile.name} asked for to what the device gave", ["", "bytes", ""], rows, "<><")


# --- what is kept for the backward pass ----------------------------------------------------------


class Kept(NamedTuple):
    """What one op on one line keeps for the backward pass."""

    line: str
    op: str
    reader: str  # the op whose derivative it is kept for: of several the one of most bytes
    module: str
    nbytes: int
    largest: int  # bytes of one block


def kept(profile: Profile) -> tuple[str, int, list[Kept]]:
    """When that is (at the end of the forward pass, else at the peak), the bytes still held at the peak, the list."""
    mark = profile.mark("forward end")
    peak = profile.peak_event
    event = peak if mark is None else mark.event
    blocks = [b for b in profile.alive(event) if b.category(event) == "saved" and b.nbytes]
    modules = alike(b.module for b in blocks)
    groups: dict[tuple[str, str], Counter[tuple[str, str]]] = {}
    largest: Counter[tuple[str, str]] = Counter()
    for b in blocks:
        key = (b.line, b.op)
        groups.setdefault(key, Counter())[b.saved_by(event), modules[b.module]] += b.nbytes
        largest[key] = max(largest[key], b.nbytes)
    found = []
    for (line, op), parts in groups.items():
        (reader, module), _ = parts.most_common(1)[0]
        found.append(Kept(line, op, reader, module, parts.total(), largest[line, op]))
    held = total(b for b in blocks if b.is_alive(peak))
    return "at the peak" if mark is None else "when forward ends", held, sorted(found, key=lambda k: -k.nbytes)


# Elementwise ops whose derivative needs the input, so that it is kept anyway; not relu, say, which keeps its output.
KEEP_INPUTS = ("cos", "erf", "gelu", "log", "silu", "sin", "softplus", "square")
COMPARISONS = ("equal", "greater", "greater_equal", "less", "less_equal", "logical_and", "logical_not", "not_equal")
PRODUCTS = ("attention", "linear", "matmul")
NORMS = ("layer_norm", "rms_norm")
LOSSES = ("cross_entropy", "log_softmax")
WEIGHTS = "attention_weights"
TOGETHER = "checkpoint() around {op} and the {reader} that reads it"

# What to do about it: the first that applies.  They stand in the order of what is computed again: nothing; a few
# operations a value; some ten; a product of matrices; a whole block.  A checkpointed function keeps its inputs, so it
# helps only where these are kept anyway, or are less than what it makes.
REMEDIES: tuple[tuple[Callable[[Kept], bool], str], ...] = (
    (
        lambda k: (k.op in LOSSES or k.reader in LOSSES) and k.largest >= CHUNK_BYTES,
        "linear_cross_entropy() never holds all logits; nothing is computed again",
    ),
    (
        lambda k: WEIGHTS in (k.op, k.reader) or (k.op == "softmax" and k.reader in ("matmul", "softmax")),
        "if these are attention weights: scaled_dot_product_attention() keeps none where the device has a kernel for"
        " it, without a mask and dropout_p",
    ),
    (
        lambda k: k.op.startswith("random_") or (k.op in COMPARISONS and k.reader in ("where", "multiply")),
        "if this is a mask of what is dropped: dropout() keeps none, it draws it again",
    ),
    (
        lambda k: k.op in KEEP_INPUTS and k.reader not in ("", k.op, "attention", WEIGHTS),
        f"{TOGETHER} computes {{op}} again: a few flops a value",
    ),
    (
        lambda k: k.op == "multiply" and k.reader not in ("", k.op, "attention", WEIGHTS),
        f"{TOGETHER}, if both factors are kept anyway: one flop a value",
    ),
    (
        lambda k: k.op in NORMS or "norm" in k.module.rpartition(".")[2].lower(),
        "checkpoint() around the norm and what reads it keeps its input instead of its results: some ten flops a value",
    ),
    (
        lambda k: k.op in PRODUCTS and k.reader not in ("", k.op),
        f"{TOGETHER} computes at most these two again",
    ),
    (lambda k: k.module != "", "checkpoint() of {module}, or of the block it is in, computes all of that again"),
    (lambda k: True, "checkpoint() of the function with this line computes all of that again"),
)


def remedy(k: Kept) -> str:
    """What to do so that it is not kept, the cheapest in flops that is known for such an op."""
    words = next(words for applies, words in REMEDIES if applies(k))
    return words.format(op=k.op, reader=k.reader, module=k.module)


def kept_lines(profile: Profile) -> Table:
    """The lines that keep most for the backward pass, and what to do about each."""
    when, held, found = kept(profile)
    whole = sum(k.nbytes for k in found)
    title = f"What {profile.name} keeps for the backward pass, {when}: {show(whole)}"
    rows: list[Sequence[str]] = []
    for k in found[:LINES]:
        what = " for ".join(part for part in (k.op, k.reader) if part) or "-"
        rows.append([show(k.nbytes), f"{k.nbytes / max(1, whole):.1%}", what, k.line or "-"])
        rows.append([f"    {remedy(k)}"])
    if len(found) > LINES:
        rest = sum(k.nbytes for k in found[LINES:])
        rows.append([show(rest), f"{rest / max(1, whole):.1%}", f"{len(found) - LINES} others", ""])
    if show(held) != show(whole):
        rows.append([f"Of all that, {show(held)} is held at the peak: keeping less lowers the peak by no more."])
    if profile.flops and whole:
        rows.append([f"For comparison: the run has {profile.flops / whole:,.0f} flops for each of these bytes."])
    return Table(title, ["bytes", "share", "op", "line"], rows, ">><<")


# --- the report -----------------------------------------------------------------------------


class Report:
    """What `profiles`, one of each run, say together; a run called "inference" is what the others are compared with.

    `limit` is a number of bytes that each run is to fit in: its peak, and what the pool took where that is known.  On a
    GPU the context comes on top, and only a run with this limit proves it.  `notes` are sentences to be shown with it.
    """

    def __init__(
        self, profiles: Sequence[Profile] | Profile, limit: int | str | None = None, notes: Sequence[str] = ()
    ) -> None:
        profiles = [profiles] if isinstance(profiles, Profile) else profiles
        limit = limit if limit is None or (isinstance(limit, int) and limit < 0) else parse_bytes(limit)
        if not profiles:
            raise DataError("Report() got no profiles\n  give it a list with one of each run")
        if limit is not None and limit < 0:
            raise DataError(f"Report() got the limit {limit}; it is a number of bytes")
        self.profiles, self.limit, self.notes = list(profiles), limit, list(notes)

    def __str__(self) -> str:
        return self.table()

    @property
    def fits(self) -> bool:
        """Does every run fit in the limit, if there is one?"""
        return not any("does not fit" in self._fits(p) for p in self.profiles)

    def line(self) -> str:
        """A line for each run: its peak, in which phase, by which op and line; with a limit, whether it fits."""
        return "\n".join(headline(p) + self._fits(p) for p in self.profiles)

    def _fits(self, profile: Profile) -> str:
        if self.limit is None:
            return ""
        limit = show(self.limit)
        if profile.peak_bytes > self.limit:
            return f"; does not fit in {limit}: {show(profile.peak_bytes - self.limit)} too much"
        reserved = next((r.nbytes for r in profile.reconciliation if r.row == RESERVED), None)
        if reserved is not None and reserved > self.limit:
            return f"; fits in {limit} only if the pool, which took {show(reserved)}, finds room in its own"
        return f"; fits in {limit}: {show(self.limit - max(profile.peak_bytes, reserved or 0))} to spare"

    def table(self) -> str:
        """All tables, at most 80 columns wide; what is kept is shown of the run that keeps most."""
        lines = [
            line for text in self.line().splitlines() for line in textwrap.wrap(text, WIDTH, subsequent_indent="  ")
        ]
        most = max(self.profiles, key=lambda p: sum(k.nbytes for k in kept(p)[2]))
        tables = [*self._together(), kept_lines(most)]
        tables += [reconciliation(p) for p in self.profiles if p.reconciliation]
        notes = [textwrap.fill(note, WIDTH) for note in self.notes]
        return "\n\n".join(["\n".join(lines), *notes, *(str(t) for t in tables if t.rows)])

    def _together(self) -> list[Table]:
        """The tables that have a column for each run."""
        runs = self.profiles
        tables = [by_category(part) for part in _parted(runs, ABREAST)]
        base = next((p for p in runs if p.name == BASE and p.peak_bytes), None)
        if base is not None:
            tables += [ratio(base, part) for part in _parted([p for p in runs if p is not base], ABREAST - 1)]
        return tables

    def to_json(self) -> str:
        """The peaks, what they are made of, and the reconciliation, as JSON of version 1."""
        devices = dict.fromkeys(p.device for p in self.profiles)
        runs = [_run(p) for p in self.profiles]
        found = {"version": 1, "device": ", ".join(devices), "notes": self.notes, "runs": runs}
        return json.dumps(found, indent=2)

    def save_json(self, path: str | os.PathLike[str]) -> None:
        """Write `to_json()` to a file."""
        with writing(path) as partial:
            partial.write_text(self.to_json() + "\n", encoding="utf-8")

    def save_html(self, path: str | os.PathLike[str]) -> None:
        """Write one page with everything, which needs no network."""
        text = page(
            self.profiles,
            [*self.line().splitlines(), *self.notes],
            self._together(),
            [[t for t in (kept_lines(p), reconciliation(p)) if t.rows] for p in self.profiles],
        )
        with writing(path) as partial:
            partial.write_text(text, encoding="utf-8", errors="replace")  # a file's name may be no text

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw each run over time and at its peak, to a file .png or .svg; needs the extra `plot`."""
        suffix = Path(path).suffix.lower()
        if suffix not in (".png", ".svg"):
            raise DataError(f"plot() writes .png and .svg, got {os.fspath(path)!r}")
        drawn = figure(self.profiles)
        with writing(path) as partial:
            drawn.savefig(partial, format=suffix[1:], metadata={"Date": None} if suffix == ".svg" else None)


def _parted(runs: list[Profile], most: int) -> list[list[Profile]]:
    """`runs` in as few parts as can be with `most` in each, as equal as can be."""
    parts = -(-len(runs) // most)
    return [runs[k * len(runs) // parts : (k + 1) * len(runs) // parts] for k in range(parts)]


def _run(p: Profile) -> dict[str, Any]:
    return {
        "name": p.name,
        "peak_bytes": p.peak_bytes,
        "peak_phase": p.peak_phase,
        "by_category": p.by_category(p.peak_event),
        "params": p.params,
        "flops": p.flops,
        "extra_forward": p.extra,
        "reconciliation": [{"row": r.row, "bytes": r.nbytes, "quality": r.quality} for r in p.reconciliation],
    }


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """As `replacing`, with an error for people."""
    try:
        with replacing(path) as partial:
            yield partial
    except OSError as error:
        raise DataError(f"cannot write {os.fspath(path)}: {error.strerror or error}") from error


__all__ = ["Report", "Table", "writing"]
