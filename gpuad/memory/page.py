"""One page with everything a report has, in one file: it needs no network, and no server to be opened.

Without scripts it shows all runs one below the other; a script adds the choice of a run, the values under the pointer
and the zoom of the icicle.  All text from profiles is escaped.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any, Protocol

from .plots import COLOURS, DARK, LEVELS, Node, depth, samples, shorten, spans, stagger, ticks, tree
from .profile import Profile, show

POINTS = 900  # of a timeline
LETTER = 0.72  # share of a timeline's width, in percent, that a letter takes at most
FOLD = 80  # cells side by side in the icicle, after which the smaller ones are one
MARK_ROWS = 4


class Table(Protocol):
    """What the page needs of a table; a row of one cell is a sentence across it."""

    title: str
    head: Sequence[str]
    rows: list[Sequence[str]]
    align: str


def page(
    profiles: Sequence[Profile], lines: Sequence[str], together: Sequence[Table], of_run: Sequence[Sequence[Table]]
) -> str:
    """The text of the page: the `lines` of the summary, the tables of all runs, and for each run its own."""
    top = max(p.top for p in profiles)
    runs = "".join(_run(k, p, top, tables) for k, (p, tables) in enumerate(zip(profiles, of_run)))
    choice = "".join(f'<button type="button" data-run="{k}">{escape(p.name)}</button>' for k, p in enumerate(profiles))
    summary = "".join(f"<li>{escape(line)}</li>" for line in lines)
    devices = ", ".join(dict.fromkeys(p.device for p in profiles))
    data = json.dumps([_data(p) for p in profiles], separators=(",", ":")).replace("<", "\\u003c")
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>Memory of {escape(devices)}</title>\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Whatever slips through, a browser fetches nothing for this page.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline';"
        " script-src 'unsafe-inline'\">\n"
        f"<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>Where the memory goes</h1>\n<p class="device">{escape(devices)}</p>\n<ul class="summary">{summary}</ul>\n'
        f'<div class="together">{"".join(map(_table, together))}</div>\n'
        f'<nav id="choice" aria-label="runs" hidden>{choice}</nav>\n{runs}</main>\n'
        '<div id="tip" hidden></div>\n'
        f'<script type="application/json" id="data">{data}</script>\n<script>{SCRIPT}</script>\n</body>\n</html>\n'
    )


def _table(table: Table) -> str:
    sides = ["text" if a == "<" else "number" for a in table.align]
    head = "".join(f'<th scope="col" class="{side}">{escape(h)}</th>' for h, side in zip(table.head, sides))
    rows = []
    for row in table.rows:
        if len(row) == 1:
            kind = "note" if row[0].startswith(" ") or row[0].endswith(".") else "part"
            rows.append(f'<tr><td colspan="{len(sides)}" class="{kind}"><div>{escape(row[0].strip())}</div></td></tr>')
        else:
            kind = ' class="all"' if row[0].strip() == "all" else ""
            cells = "".join(f'<td class="{side}">{escape(c)}</td>' for c, side in zip(row, sides))
            rows.append(f"<tr{kind}>{cells}</tr>")
    body = f"<thead><tr>{head}</tr></thead>\n<tbody>{''.join(rows)}</tbody>"
    return f'<div class="table"><h3>{escape(table.title)}</h3>\n<table>{body}</table></div>\n'


def _run(number: int, profile: Profile, top: int, tables: Sequence[Table]) -> str:
    root = tree(profile)
    levels = LEVELS if depth(root) > len(LEVELS) else [level for level in LEVELS if level != "module"]
    return (
        f'<section class="run" data-run="{number}">\n<h2>{escape(profile.name)}</h2>\n'
        f"<h3>In time</h3>\n{_timeline(profile, top)}{_key(profile)}"
        f"<h3>At the peak, by {', '.join(levels[:-1])} and {levels[-1]}</h3>\n"
        f'<p class="note">Widths are bytes. A click makes a cell as wide as the whole; one above it goes back.</p>\n'
        f'<div class="icicle" style="height:{1.9 * depth(root):.1f}em">{_cells(root, root.nbytes, 0, 0)}</div>\n'
        f"{''.join(map(_table, tables))}</section>\n"
    )


# --- the timeline ---------------------------------------------------------------------------


def _timeline(profile: Profile, top: int) -> str:
    """Areas one above the other, 1000 by 300 units, with the text around them in percent of the width."""
    height, count = max(1, top) * 1.05, max(1, len(profile.live))
    events = samples(profile, POINTS)
    stacked, areas = [0] * len(events), []
    for name, series in profile.by_event().items():
        stacked = [s + series[event] for s, event in zip(stacked, events)]
        steps = "".join(f"H{e / count * 1000:.1f}V{300 - s / height * 300:.1f}" for e, s in zip(events, stacked))
        areas.append(f'<path fill="{COLOURS[name]}" d="M0 300{steps}H1000V300Z"/>')
    dots = " ".join(
        f"{profile.event_at(t) / count * 1000:.1f},{300 - n / height * 300:.1f}" for t, n in profile.sampled
    )
    title = "what the driver counts for the process, less its context; sampled: a lower bound"
    drawn = f'<polyline class="sampled" points="{dots}"><title>{title}</title></polyline>' if dots else ""
    lines = "".join(f'<path class="grid" d="M0 {300 - t / height * 300:.1f}H1000"/>' for t in ticks(top))
    scale = "".join(f'<span style="bottom:{t / height:.2%}">{show(t)}</span>' for t in ticks(top))
    phases = "".join(
        f'<span style="left:{begin / count:.2%};width:{(end - begin) / count:.2%}">{escape(name)}</span>'
        for begin, end, name in spans(profile, 0.04)
    )
    marks, rows = _marks(profile, count)
    return (
        f'<div class="timeline" style="margin-top:{1.1 * rows + 0.8:.1f}em">'
        f'<div class="scale">{scale}</div><div class="marks">{marks}</div>'
        f'<svg viewBox="0 0 1000 300" preserveAspectRatio="none" role="img" aria-label="bytes over events">'
        f'{"".join(reversed(areas))}{lines}{drawn}<path class="cursor" d="M0 0V300" hidden=""/></svg>'
        f'<div class="phases">{phases}</div><div class="ends"><span>0</span><span>events: what was allocated and'
        f" freed, in order</span><span>{len(profile.live):,}</span></div></div>\n"
    )


def _marks(profile: Profile, count: int) -> tuple[str, int]:
    """A line at each mark and at the peak, its name above if there is room; and how many rows of names that makes."""
    marks = sorted(
        {(m.event, m.name) for m in profile.marks} | ({(profile.peak_event, "peak")} if profile.live else set())
    )
    placed = []
    for event, name in marks:
        name = shorten(name, 40)
        wide = LETTER * len(name) + 1.2
        begin = min(event / count * 100, 100 - wide)
        placed.append((begin, begin + wide, event, name))
    placed.sort()
    out, levels = [], [0]
    for (begin, end, event, name), row in zip(placed, stagger([(b, e) for b, e, _, _ in placed], MARK_ROWS)):
        kind = ' class="peak"' if name == "peak" else ""
        level = 0 if row is None else row + 1
        levels.append(level)
        out.append(f'<i{kind} style="left:{event / count:.2%};top:{-1.25 * level:.2f}em"></i>')
        if level:
            out.append(
                f'<span{kind} style="left:{begin:.2f}%;top:{-1.25 * level:.2f}em;max-width:{end - begin:.2f}%">'
                f"{escape(name)}</span>"
            )
    return "".join(out), max(levels)


def _key(profile: Profile) -> str:
    """The colours, with the bytes at the peak."""
    at_peak = profile.by_category(profile.peak_event)
    entries = (
        f'<li><i style="background:{COLOURS[name]}"></i>{name} <b>{show(at_peak.get(name, 0))}</b></li>'
        for name in profile.by_event()
    )
    return f'<ul class="key"><li>at the peak:</li>{"".join(entries)}</ul>\n'


def _data(profile: Profile) -> dict[str, Any]:
    """What is shown under the pointer."""
    events = samples(profile, POINTS)
    return {
        "count": max(1, len(profile.live)),
        "events": events,
        "seconds": [round(profile.seconds[e], 6) for e in events],
        "phases": [profile.phase(e) for e in events],
        "live": [profile.live[e] for e in events],
        "series": {name: [series[e] for e in events] for name, series in profile.by_event().items()},
    }


# --- the icicle -----------------------------------------------------------------------------


def _cells(node: Node, whole: int, begin: int, level: int) -> str:
    """The cell of `node` and those below it: places in shares of the whole, which the script reads to zoom."""
    share = node.nbytes / whole if whole else 0.0
    title = f"{node.name}: {show(node.nbytes)}, {share:.1%} of the peak"
    ink = "#fff" if node.category in DARK else "#000"
    name = node.name if node.children else node.name.rpartition("/")[2]  # of a line, the file's own name
    out = [
        f'<button type="button" data-x="{begin / whole if whole else 0:.8f}" data-w="{share:.8f}"'
        f' title="{escape(title)}" style="left:{begin / whole if whole else 0:.4%};width:{share:.4%};'
        f'top:{1.9 * level:.1f}em;background:{COLOURS.get(node.category, "#f0f0f0")};color:{ink}">'
        f"{escape(name)} <b>{show(node.nbytes)}</b></button>"
    ]
    children = node.children
    if len(children) > FOLD:
        rest = children[FOLD - 1 :]
        smaller = Node(f"{len(rest)} smaller", sum(child.nbytes for child in rest), node.category)
        children = [*children[: FOLD - 1], smaller]
    for child in children:
        out.append(_cells(child, whole, begin, level + 1))
        begin += child.nbytes
    return "".join(out)


STYLE = """
:root{color-scheme:light}
body{margin:0;background:#fff;color:#1a1a1a;font:15px/1.45 system-ui,sans-serif}
main{max-width:1160px;margin:0 auto;padding:1.5em 1.2em 4em}
h1{font-size:1.6em;margin:0}h2{font-size:1.35em;margin:1.2em 0 0}h3{font-size:1.05em;margin:1.6em 0 .4em}
.device,.note{color:#555}.device{margin:.1em 0 1em}p.note{margin:0 0 .5em}
.summary{padding-left:1.1em;font-weight:600}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.15em .9em .15em 0;text-align:left;vertical-align:bottom;overflow-wrap:break-word}
th{border-bottom:1px solid #888;font-weight:600}th.number,td.number{text-align:right;white-space:pre;padding-left:1em}
th.number{white-space:normal}td.part{padding-top:.7em;font-weight:600}
td.note div{width:0;min-width:100%;padding-left:1.6em;box-sizing:border-box}
.run table{min-width:min(100%,42em)}.run td:last-child,.run th:last-child{width:99%}
td.text{white-space:nowrap}tr.all td{border-top:1px solid #bbb}.table{overflow-x:auto}
.together{display:flex;flex-wrap:wrap;gap:0 2em}.together>div{max-width:min(100%,37em)}
.together td,.together th{padding-right:.3em}
nav{position:sticky;top:0;z-index:5;background:#fff;padding:.6em 0;margin-top:1.5em;border-bottom:1px solid #ccc}
nav button{font:inherit;padding:.3em .9em;margin-right:.5em;border:1px solid #888;border-radius:4px;background:#f4f4f4}
nav button[aria-pressed=true]{background:#332288;color:#fff;border-color:#332288}
.timeline{position:relative;margin:0 0 0 5.2em}
.timeline svg{display:block;width:100%;height:300px;border-left:1px solid #555}
.grid{stroke:#0002;fill:none;vector-effect:non-scaling-stroke}
.cursor{stroke:#000;vector-effect:non-scaling-stroke}.cursor[hidden]{display:none}
.scale{position:absolute;height:300px;left:-6.1em;width:5.8em;font-size:.85em}
.scale span{position:absolute;right:0;transform:translateY(50%)}
.sampled{fill:none;stroke:#000;stroke-dasharray:2 3;vector-effect:non-scaling-stroke}
.marks{position:absolute;left:0;right:0;top:0;height:300px;pointer-events:none;font-size:.85em}
.marks span{position:absolute;background:#fff;padding:0 .2em;white-space:nowrap;line-height:1.25;
overflow:hidden;text-overflow:ellipsis;box-sizing:border-box;z-index:1}
.marks i{position:absolute;bottom:0;border-left:1px dashed #333}.marks i.peak{border-left:1px solid #000}
.marks span.peak{font-weight:700}
.phases{position:relative;height:1.5em;font-size:.85em;overflow:hidden}
.phases span{position:absolute;top:0;bottom:0;text-align:center;overflow:hidden;white-space:nowrap;background:#e4e4e4}
.phases span:nth-child(even){background:#cfcfcf}
.ends{display:flex;justify-content:space-between;color:#555;font-size:.85em}
.key{list-style:none;padding:0;margin:.6em 0 0 5.2em;display:flex;flex-wrap:wrap;gap:.2em 1.3em;font-size:.9em}
.key i{display:inline-block;width:.9em;height:.9em;margin-right:.4em;vertical-align:-.1em}
.icicle{position:relative;overflow:hidden;font-size:.86em}
.icicle button{position:absolute;box-sizing:border-box;margin:0;padding:0 .3em;border:0;
border-right:1px solid #fff;border-bottom:1px solid #fff;font:inherit;height:1.9em;text-align:center;
white-space:nowrap;overflow:hidden;text-overflow:ellipsis;cursor:pointer;transition:left .25s,width .25s}
.icicle button:hover,.icicle button:focus-visible{outline:2px solid #000;outline-offset:-2px;z-index:2}
.icicle b{font-weight:600}.icicle .tiny{color:transparent!important}
#tip{position:fixed;z-index:9;pointer-events:none;background:#fff;border:1px solid #555;padding:.4em .7em;
font-size:.86em;box-shadow:0 2px 8px #0003;font-variant-numeric:tabular-nums}
#tip table{border-collapse:separate;border-spacing:0}
#tip td{padding:0 .7em 0 0}#tip td+td{text-align:right;padding:0}
"""

SCRIPT = """
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const colours = COLOURS, tip = document.getElementById("tip"), choice = document.getElementById("choice");
const sections = [...document.querySelectorAll(".run")];
function show(bytes) {
  let size = Math.abs(bytes), unit = "B";
  for (const larger of ["KiB", "MiB", "GiB", "TiB"]) if (size >= 999.5) { size /= 1024; unit = larger; }
  return (unit === "B" || size >= 99.95 ? size.toFixed(0) : size.toPrecision(3)) + " " + unit;
}
function choose(number) {
  sections.forEach((section, k) => { section.hidden = k !== number; });
  [...choice.children].forEach((button, k) => button.setAttribute("aria-pressed", k === number));
}
[...choice.children].forEach((button, k) => button.addEventListener("click", () => choose(k)));
choice.hidden = sections.length < 2;
choose(sections.length > 1 ? 1 : 0);

function cell(text, colour) {
  const td = document.createElement("td");
  td.textContent = text;
  if (colour) td.style.borderLeft = "0.8em solid " + colour, td.style.paddingLeft = "0.5em";
  return td;
}
function fill(run, k) {
  const table = document.createElement("table");
  const rows = [["event", run.events[k].toLocaleString("en")], ["after", run.seconds[k].toFixed(6) + " s"],
    ["phase", run.phases[k]], ["all", show(run.live[k])]];
  for (const [name, value] of rows) table.insertRow().append(cell(name), cell(value));
  for (const name of Object.keys(run.series).reverse())
    if (run.series[name][k]) table.insertRow().append(cell(name, colours[name]), cell(show(run.series[name][k])));
  tip.replaceChildren(table);
}
function follow(event) {
  tip.hidden = false;
  const left = event.clientX + 16, over = left + tip.offsetWidth > innerWidth;
  tip.style.left = (over ? event.clientX - tip.offsetWidth - 16 : left) + "px";
  tip.style.top = Math.max(0, Math.min(event.clientY + 12, innerHeight - tip.offsetHeight)) + "px";
}
sections.forEach((section, number) => {
  const run = data[number], svg = section.querySelector("svg"), cursor = svg.querySelector(".cursor");
  svg.addEventListener("pointermove", event => {
    if (!run.events.length) return;
    const box = svg.getBoundingClientRect(), at = (event.clientX - box.left) / box.width * run.count;
    let k = 0, high = run.events.length - 1;  // the last sampled event that is not after the pointer
    while (k < high) { const m = k + high + 1 >> 1; if (run.events[m] <= at) k = m; else high = m - 1; }
    const x = run.events[k] / run.count * 1000;
    cursor.setAttribute("d", `M${x} 0V300`);
    cursor.removeAttribute("hidden");
    fill(run, k);
    follow(event);
  });
  svg.addEventListener("pointerleave", () => { tip.hidden = true; cursor.setAttribute("hidden", ""); });

  const cells = [...section.querySelectorAll(".icicle button")].map(button =>
    ({button, x: +button.dataset.x, w: +button.dataset.w}));
  function zoom(zoomed) {
    if (!zoomed.w) return;
    for (const {button, x, w} of cells) {
      const begin = Math.max(0, Math.min(1, (x - zoomed.x) / zoomed.w));
      const end = Math.max(0, Math.min(1, (x + w - zoomed.x) / zoomed.w));
      button.style.left = begin * 100 + "%";
      button.style.width = (end - begin) * 100 + "%";
      button.style.visibility = end - begin > 1e-6 ? "visible" : "hidden";
      button.classList.toggle("tiny", end - begin < 0.05);
    }
  }
  for (const one of cells) one.button.addEventListener("click", () => zoom(one));
  zoom(cells[0]);
});
""".replace("COLOURS", json.dumps(COLOURS))
