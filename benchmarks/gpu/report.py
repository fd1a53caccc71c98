"""The file of results, whole at every moment, and the table for a terminal of 80 columns."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpuad.files import replacing

from .cases import GPUAD, LIBRARIES

VERSION, WIDTH, NAME = 1, 80, 36
COPY = "copy on the device"
TITLES = {"gpuad": "gpuad", "torch": "PyTorch", "torch.compile": "compile", "jax": "JAX"}
FIELDS = ("name", "library", "median_ms", "gbs", "share_of_copy", "difference", "error", "note")


def with_shares(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results with every field, and with what part of the measured copy bandwidth each has reached.

    The bandwidth is the best that a library's copy has reached.
    """
    best = max((r["gbs"] for r in results if r["name"] == COPY and r.get("gbs")), default=None)
    shared = []
    for r in results:
        share = r["gbs"] / best if best and r.get("gbs") and not r.get("tflops") else None
        shared.append({field: None for field in FIELDS} | r | {"share_of_copy": share})
    return shared


def write(path: Path, document: dict[str, Any]) -> None:
    """Put `document` in the place of the file `path`."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def table(document: dict[str, Any]) -> str:
    """What was measured: the machine, a line for each case, then rates, errors, and what was left out."""
    results = document["results"]
    lines = [
        *_machine(document),
        "",
        _row("median ms", TITLES[GPUAD], "GB/s", "share", *_peers()),
    ]
    by_name: dict[str, dict[str, dict[str, Any]]] = {}
    for r in results:
        by_name.setdefault(r["name"], {})[r["library"]] = r
    for name, found in by_name.items():
        ours = found.get(GPUAD, {})
        share = ours.get("share_of_copy")
        rate = f"{ours['gbs']:.0f}" if share is not None else ""
        percent = f"{share:.0%}" if share is not None else ""
        lines.append(_row(name, _time(ours), rate, percent, *(_time(found.get(x, {})) for x in LIBRARIES[1:])))
    lines += ["", "GB/s: the bytes that must move over gpuad's time; share: of the best copy's GB/s"]
    rates = [line for r in results if (line := _rate(r))]
    lines += ["", *rates] if rates else []
    errors = [f"{r['library']}, {r['name']}: {r['error']}" for r in results if r.get("error")]
    for title, said in (("errors", errors), ("left out", [_left_out(x) for x in document["left_out"]])):
        if said:
            lines += ["", f"{title}:"]
            for text in said:
                lines += textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ")
    return "\n".join(line.rstrip() for line in lines)


def _machine(document: dict[str, Any]) -> list[str]:
    machine = document["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    text = f"{machine.get('gpu') or 'no GPU'}, driver {machine.get('driver') or 'unknown'}; Python {machine['python']}"
    note = "" if document["sizes"] == "full" else " Tiny sizes: the times mean nothing."
    return textwrap.wrap(f"{text}; {versions}; {machine['date']}.{note}", WIDTH)


def _peers() -> list[str]:
    return [TITLES[x] for x in LIBRARIES[1:]]


def _row(name: str, ours: str, rate: str, percent: str, *peers: str) -> str:
    name = name if len(name) <= NAME else name[: NAME - 2] + ".."
    return f"{name:<{NAME}}{ours:>8}{rate:>6}{percent:>6}" + "".join(f"{x:>8}" for x in peers)


def _time(result: dict[str, Any]) -> str:
    if result.get("error"):
        return "error"
    ms = result.get("median_ms")
    if ms is None:
        return "-"
    return f"{ms:.0f}" if ms >= 1000 else f"{ms:#.4g}" if ms >= 1 else f"{ms:.4f}"


def _rate(result: dict[str, Any]) -> str | None:
    """Products and tokens a second, and memory, which have no column."""
    if result.get("tokens_per_s"):
        memory = result.get("peak_bytes")
        said = f"{result['tokens_per_s']:,.0f} tokens/s" + (f", {memory / 2**30:.1f} GiB" if memory else "")
    elif result.get("tflops"):
        said = f"{result['tflops']:.1f} TFLOP/s"
    else:
        return None
    return f"{result['name']:<36}{result['library']:<14}{said:>30}"


def _left_out(left: dict[str, Any]) -> str:
    names = left["names"]
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return f"{left['library']}: {left['reason']} ({shown})"
