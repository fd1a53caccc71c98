"""Pictures of profiles: memory over the events of a run, and what it is made of at the peak.

What is shown is computed here from Profiles alone, for the page (page.py) as well; matplotlib is imported only to draw.
Colours are Paul Tol's muted scheme, which people tell apart who do not see all colours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import DataError
from .profile import CATEGORIES, Block, Profile, alike, show

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = dict(
    zip(
        CATEGORIES,
        (
            "#332288",  # parameter: indigo
            "#88ccee",  # optimizer state: cyan
            "#117733",  # gradient: green
            "#dddddd",  # input: grey
            "#882255",  # boundary: wine
            "#ddcc77",  # saved: sand
            "#aa4499",  # recomputed: purple
            "#44aa99",  # cotangent: teal
            "#999933",  # workspace: olive
            "#cc6677",  # temporary: rose
        ),
        strict=True,
    )
)
DARK = {"parameter", "gradient", "boundary", "recomputed"}  # whose names are written in white
GREY = "#d0d0d0"
LEVELS = ("category", "module", "op", "line")  # of the icicle, from its root


# --- what is shown --------------------------------------------------------------------------


def samples(profile: Profile, most: int) -> list[int]:
    """At most about `most` events that show the run: of equal stretches the lowest and the highest, and all marks."""
    live, count = profile.live, len(profile.live)
    if count <= most:
        return list(range(count))
    chosen = {0, count - 1, profile.peak_event, *(m.event for m in profile.marks)}
    stretches = max(1, most // 2)
    for k in range(stretches):
        part = range(k * count // stretches, (k + 1) * count // stretches)
        chosen |= {min(part, key=live.__getitem__), max(part, key=live.__getitem__)}
    return sorted(chosen)


def ticks(top: int) -> list[int]:
    """Powers of two times 0, 1, 2, ..., four to seven of them, up to `top` bytes."""
    step = max(1, 1 << max(0, top.bit_length() - 3))
    return list(range(0, top + 1, step))


def spans(profile: Profile, narrow: float) -> list[tuple[int, int, str]]:
    """The phases as (first event, event after the last, name).

    Two that take turns, each with less than the share `narrow` of all events, are one, named after both.
    """
    count = len(profile.live)
    found: list[tuple[int, int, list[str]]] = []
    begins = [*[event for event, _ in profile.phases], count]
    was_narrow = False
    for (begin, name), end in zip(profile.phases, begins[1:]):
        if end <= begin:
            continue
        is_narrow = end - begin < narrow * count
        first, _, names = found[-1] if found else (0, 0, [])
        if names == [name] or (was_narrow and is_narrow and (name in names or len(names) == 1)):
            found[-1] = (first, end, names if name in names else [*names, name])
        else:
            found.append((begin, end, [name]))
        was_narrow = is_narrow
    return [(begin, end, " + ".join(names)) for begin, end, names in found]


def stagger(places: Sequence[tuple[float, float]], rows: int) -> list[int | None]:
    """For each (begin, end), in order of their begin, the first of `rows` rows where it overlaps no other, or None."""
    ends = [float("-inf")] * rows
    chosen: list[int | None] = []
    for begin, end in places:
        row = next((r for r in range(rows) if ends[r] <= begin), None)
        chosen.append(row)
        if row is not None:
            ends[row] = end
    return chosen


@dataclass(slots=True)
class Node:
    """A cell of the icicle: bytes that share a category, module, op or line, and have the cells above it in common."""

    name: str
    nbytes: int
    category: str  # "" of the root
    children: list[Node] = field(default_factory=list)


def tree(profile: Profile) -> Node:
    """The bytes at the peak by category, module, op and line; modules only where the profile knows any.

    Categories come in their order, the rest by size.
    """
    event = profile.peak_event
    blocks = profile.alive(event)
    names = alike(b.module for b in blocks)
    keys: list[Callable[[Block], str]] = [
        lambda b: b.category(event),
        lambda b: names[b.module] or "(no module)",
        lambda b: b.op or "(no op)",
        lambda b: b.line or "(no line)",
    ]
    if not any(names):
        del keys[1]
    root = Node(profile.name, profile.peak_bytes, "")
    root.children = sorted(_split(blocks, keys, None), key=lambda node: CATEGORIES.index(node.category))
    return root


def _split(blocks: Iterable[Block], keys: Sequence[Callable[[Block], str]], category: str | None) -> list[Node]:
    groups: dict[str, list[Block]] = {}
    for b in blocks:
        if b.nbytes:
            groups.setdefault(keys[0](b), []).append(b)
    nodes = []
    for name, group in groups.items():
        children = _split(group, keys[1:], category or name) if len(keys) > 1 else []
        nodes.append(Node(name, sum(b.nbytes for b in group), category or name, children))
    return sorted(nodes, key=lambda node: -node.nbytes)


def depth(node: Node) -> int:
    """How many rows of cells there are, that of `node` included."""
    return 1 + max((depth(child) for child in node.children), default=0)


def headline(profile: Profile) -> str:
    """ "training: peak 7.53 GiB in forward, gelu at train.py:41": with what the profile knows of it."""
    text = f"{shorten(profile.name, 40)}: peak {show(profile.peak_bytes)}"
    if profile.peak_phase:
        text += f" in {profile.peak_phase}"
    block = profile.peak_block
    if block is not None:
        text += ", " + " at ".join(part for part in (block.op, shorten(block.line, 40)) if part)
    return text.removesuffix(", ")


def shorten(text: str, room: int) -> str:
    """`text` in at most `room` characters: its end, from where a folder or a part of a module path begins if near."""
    if len(text) <= room:
        return text
    begin = len(text) - max(0, room - 3)
    part = text.find("/" if "/" in text else "." if ":" not in text else ":", begin - 1) + 1
    return ("..." + text[part if begin <= part < (begin + len(text)) / 2 else begin :].lstrip("."))[:room]


# --- drawing --------------------------------------------------------------------------------

WIDTH = 12.0  # inches; at 100 dots an inch the letters are of the usual size on a screen
LEFT, PLOT = 0.95, 8.55  # where a timeline begins, and how wide it is
HEIGHTS = {"title": 0.4, "marks": 0.5, "timeline": 2.7, "phases": 0.24, "axis": 0.55, "caption": 0.3, "gap": 0.35}
ROW = 0.36  # height of a row of the icicle
SMALL, NORMAL = 8.5, 9.5  # points
FEWEST = 10  # letters that a name may be shortened to
LEAST = 0.003  # share of the whole below which cells are drawn together


SAMPLED = "sampled: a lower bound"


def figure(profiles: Sequence[Profile]) -> Figure:
    """A timeline and an icicle of each profile, one below the other."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise DataError("plot() needs matplotlib, which is not installed\n  pip install 'gpuad[plot]'") from None
    trees = [tree(p) for p in profiles]
    heights = [sum(HEIGHTS.values()) + ROW * depth(t) for t in trees]
    drawn = Figure(figsize=(WIDTH, sum(heights)), dpi=150)
    FigureCanvasAgg(drawn)  # which measures text
    top, bytes_at_top = sum(heights), max(p.top for p in profiles)
    for profile, root in zip(profiles, trees):
        top = _draw_run(drawn, profile, root, top, bytes_at_top)
    return drawn


def _draw_run(drawn: Figure, profile: Profile, root: Node, top: float, bytes_at_top: int) -> float:
    """Draw below `top` inches, and return where what is drawn ends."""
    whole = drawn.get_figheight()

    def area(left: float, width: float, height: float) -> Axes:
        nonlocal top
        top -= height
        return drawn.add_axes((left / WIDTH, top / whole, width / WIDTH, height / whole))

    top -= HEIGHTS["title"]
    drawn.text(0.25 / WIDTH, (top + 0.08) / whole, headline(profile), fontsize=12, fontweight="bold", parse_math=False)
    top -= HEIGHTS["marks"]
    timeline = area(LEFT, PLOT, HEIGHTS["timeline"])
    draw_timeline(timeline, profile, bytes_at_top)
    _draw_phases(area(LEFT, PLOT, HEIGHTS["phases"]), profile)
    top -= HEIGHTS["axis"] + HEIGHTS["caption"]
    levels = "category, op and line" if depth(root) < 5 else "category, module, op and line"
    drawn.text(0.25 / WIDTH, (top + 0.08) / whole, f"At the peak, by {levels}; widths are bytes", fontsize=NORMAL + 0.5)
    draw_icicle(area(0.25, WIDTH - 0.5, ROW * depth(root)), root)
    return top - HEIGHTS["gap"]


def draw_timeline(axes: Axes, profile: Profile, bytes_at_top: int) -> None:
    """The bytes of each category after each event, one above the other, with the marks and the peak."""
    events = samples(profile, 2400)
    heights = [0] * len(events)
    levels = []
    for name, series in profile.by_event().items():
        heights = [h + series[event] for h, event in zip(heights, events)]
        levels.append((name, heights))
    at_peak = profile.by_category(profile.peak_event)
    # From the highest level down: each covers the lower part of the one before, so no seams show.
    for name, heights in reversed(levels):
        label = f"{name}  {show(at_peak.get(name, 0))}"
        heights = [*heights, *heights[-1:]]  # the last event, too, has a width
        axes.fill_between(
            [*events, len(profile.live)], heights, step="post", color=COLOURS[name], linewidth=0, label=label
        )
    if profile.sampled:
        label = f"process, less context\n{SAMPLED}"
        places = [profile.event_at(seconds) for seconds, _ in profile.sampled]
        axes.plot(places, [nbytes for _, nbytes in profile.sampled], "k.:", markersize=3, linewidth=0.8, label=label)
    axes.set_xlim(0, max(1, len(profile.live)))
    axes.set_ylim(0, max(1, bytes_at_top) * 1.05)
    axes.set_yticks(ticks(bytes_at_top), [show(t) for t in ticks(bytes_at_top)], fontsize=SMALL)
    axes.tick_params(axis="x", bottom=False, labelbottom=False)
    axes.grid(axis="y", color="#00000020", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if levels:
        axes.legend(
            loc="upper left", bbox_to_anchor=(1.01, 1.02), frameon=False, fontsize=NORMAL, title="at the peak",
            title_fontsize=NORMAL, alignment="left", handlelength=1.1, handleheight=1.1, borderaxespad=0,
        )  # fmt: skip
    if profile.live:
        axes.plot(profile.peak_event, profile.peak_bytes, "o", color="black", markersize=4, clip_on=False)
        _write_marks(axes, [(m.event, m.name) for m in profile.marks] + [(profile.peak_event, "peak")])


def _write_marks(axes: Axes, marks: list[tuple[int, str]]) -> None:
    """A line at each mark, and its name above where there is room."""
    marks = sorted({(event, shorten(name, 40)) for event, name in marks})
    across = axes.get_window_extent().width
    count = axes.get_xlim()[1]
    measure = _measure(axes, SMALL)
    places = []
    for event, name in marks:
        wide = measure(name) + 8
        begin = min(event / count * across - wide / 2, across - wide)
        places.append((begin, begin + wide))
    order = sorted(range(len(marks)), key=lambda k: places[k])
    for k, row in zip(order, stagger([places[k] for k in order], 3)):
        (event, name), height = marks[k], 1.0 if row is None else 1.02 + 0.055 * row
        style = "-" if name == "peak" else (0, (4, 3))
        axes.plot([event, event], [0, height], transform=axes.get_xaxis_transform(), color="#333333", linewidth=0.8,
                  linestyle=style, clip_on=False, zorder=3)  # fmt: skip
        if row is not None:
            middle = (places[k][0] + places[k][1]) / 2 / across * count
            axes.text(middle, height, name, transform=axes.get_xaxis_transform(), fontsize=SMALL, ha="center",
                      va="bottom", zorder=4, bbox={"facecolor": "white", "linewidth": 0, "pad": 0.5},
                      fontweight="bold" if name == "peak" else None, parse_math=False)  # fmt: skip


def _draw_phases(axes: Axes, profile: Profile) -> None:
    """A strip of the phases, and the numbers of the events below it."""
    count = max(1, len(profile.live))
    measure, across = _measure(axes, SMALL), axes.get_window_extent().width
    for k, (begin, end, name) in enumerate(spans(profile, 0.04)):
        axes.axvspan(begin, end, color=("#e8e8e8", "#cfcfcf")[k % 2], linewidth=0)
        if measure(name) + 6 < (end - begin) / count * across:
            axes.text((begin + end) / 2, 0.45, name, fontsize=SMALL, ha="center", va="center")
    axes.set(xlim=(0, count), ylim=(0, 1), yticks=[], xlabel="events: what was allocated and freed, in order")
    axes.xaxis.label.set_fontsize(SMALL)
    axes.tick_params(axis="x", labelsize=SMALL)
    axes.locator_params(axis="x", integer=True)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    axes.spines[["top", "right", "left"]].set_visible(False)


def draw_icicle(axes: Axes, root: Node) -> None:
    """The cells of `root`, each above those it is made of."""
    axes.set(xlim=(0, max(1, root.nbytes)), ylim=(depth(root), 0))
    axes.set_axis_off()
    measure, across = _measure(axes, SMALL), axes.get_window_extent().width

    def cell(name: str, nbytes: int, begin: int, level: int, colour: str, ink: str) -> None:
        axes.barh(level, nbytes, left=begin, height=1, align="edge", color=colour, edgecolor="white", linewidth=0.8)
        room = nbytes / max(1, root.nbytes) * across - 8
        for text in (f"{name}  {show(nbytes)}", name):
            if measure(text) <= room:
                break
        else:
            letters = int(len(name) * room / max(1.0, measure(name))) - 1
            text = shorten(name, letters) if letters >= FEWEST else ""
        if text:
            middle = begin + nbytes / 2
            axes.text(middle, level + 0.5, text, color=ink, fontsize=SMALL, ha="center", va="center", parse_math=False)

    def draw(node: Node, begin: int, level: int) -> None:
        colour = COLOURS.get(node.category, "#f0f0f0")
        cell(node.name, node.nbytes, begin, level, colour, "white" if node.category in DARK else "black")
        small = [child for child in node.children if child.nbytes < LEAST * root.nbytes]
        for child in node.children[: len(node.children) - len(small)] if node.category else node.children:
            draw(child, begin, level + 1)
            begin += child.nbytes
        if small and node.category:
            cell(f"{len(small)} smaller", sum(child.nbytes for child in small), begin, level + 1, GREY, "black")

    draw(root, 0, 0)


def _measure(axes: Axes, size: float) -> Callable[[str], float]:
    """The width of a text in `size` points, in the pixels of the figure of `axes`."""
    from matplotlib.font_manager import FontProperties

    renderer, font = axes.figure.canvas.get_renderer(), FontProperties(size=size)  # type: ignore[attr-defined]
    return lambda text: float(renderer.get_text_width_height_descent(text, font, False)[0])
