"""The README's table of GPU results, from the newest benchmarks/results/gpu-*.json, as benchmarks/gpu.py writes them.

python scripts/gpu_table.py           prints it
python scripts/gpu_table.py --write   puts it between the two marks in README.md
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- scripts/gpu_table.py writes from here -->", "<!-- to here -->"
NOTHING = "Nothing has been measured on a GPU yet."
VERSION = 1
COPY = "copy on the device"
LIBRARIES = {"gpuad": "gpuad", "torch": "PyTorch", "torch.compile": "torch.compile", "jax": "JAX"}

Result = dict[str, Any]


def newest(folder: Path) -> dict[str, Any] | None:
    """The document with the latest date, of those measured on a GPU at full size; None if there is none."""
    found = []
    for path in sorted(folder.glob("gpu-*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["version"] != VERSION:
            raise SystemExit(f"{path.name} has version {document['version']}, and this script reads {VERSION}")
        if document["sizes"] == "full" and document["machine"].get("gpu"):
            found.append((document["machine"]["date"], path.name, document))
    return max(found, key=lambda each: each[:2])[2] if found else None


def markdown(document: dict[str, Any]) -> str:
    """The machine, a table of kernels and steps, a table of GPTs, and what has failed or was left out."""
    by_name: dict[str, dict[str, Result]] = {}
    for result in document["results"]:
        by_name.setdefault(result["name"], {})[result["library"]] = result
    gpts = [name for name, found in by_name.items() if any(r.get("tokens_per_s") for r in found.values())]
    parts = [_machine(document, by_name.get(COPY, {})), _kernels(by_name, gpts)]
    if gpts:
        parts.append(_gpts(by_name, gpts))
    parts += _rest(document)
    return "\n\n".join(parts)


def _machine(document: dict[str, Any], copies: dict[str, Result]) -> str:
    machine = document["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    rates = [r["gbs"] for r in copies.values() if r.get("gbs")]
    copy = f" A copy on the device moves {max(rates) / 1e3:.2f} TB/s, read and written." if rates else ""
    return (
        f"{machine['gpu']}, driver {machine.get('driver') or 'unknown'}; Python {machine['python']}, {versions};"
        f" {machine['date']} (`python benchmarks/gpu.py`). Median milliseconds by device events, after each result was"
        f" compared with float64.{copy} In parentheses: the part of it that gpuad's kernel reaches, counting the bytes"
        " that must move, or TFLOP/s."
    )


def _kernels(by_name: dict[str, dict[str, Result]], gpts: list[str]) -> str:
    lines = ["| | " + " | ".join(LIBRARIES.values()) + " |", "|---" * (len(LIBRARIES) + 1) + "|"]
    for name, found in by_name.items():
        if name in gpts:
            continue
        cells = [_milliseconds(found.get(library)) for library in LIBRARIES]
        cells[0] += _part(found.get("gpuad"))
        lines.append(f"| {_escaped(name)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _gpts(by_name: dict[str, dict[str, Result]], gpts: list[str]) -> str:
    lines = ["| tokens/s (most GiB alive) | " + " | ".join(LIBRARIES.values()) + " |"]
    lines.append("|---" * (len(LIBRARIES) + 1) + "|")
    for name in gpts:
        cells = [_tokens(by_name[name].get(library)) for library in LIBRARIES]
        lines.append(f"| {_escaped(name)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _rest(document: dict[str, Any]) -> list[str]:
    """What has no number, and why."""
    parts = []
    failed = [
        f"- {LIBRARIES[r['library']]}, {_escaped(r['name'])}: {_escaped(r['error'])}"
        for r in document["results"]
        if r.get("error")
    ]
    if failed:
        parts.append("Errors:\n\n" + "\n".join(failed))
    left = [f"{LIBRARIES[x['library']]} ({len(x['names'])} cases: {x['reason']})" for x in document["left_out"]]
    if left:
        parts.append("Left out: " + _escaped("; ".join(left)) + ".")
    return parts


def _milliseconds(result: Result | None) -> str:
    if result is None:
        return ""
    if result.get("error"):
        return "error"
    ms = result["median_ms"]
    return f"{ms:.1f}" if ms >= 100 else f"{ms:.2f}" if ms >= 1 else f"{ms:.4f}"


def _part(result: Result | None) -> str:
    if result is None or result.get("error"):
        return ""
    if result.get("tflops"):
        return f" ({result['tflops']:.0f} TFLOP/s)"
    return f" ({result['share_of_copy']:.0%})" if result.get("share_of_copy") is not None else ""


def _tokens(result: Result | None) -> str:
    if result is None or result.get("error"):
        return "" if result is None else "error"
    peak = result.get("peak_bytes")
    return f"{result['tokens_per_s']:,.0f}" + (f" ({peak / 2**30:.1f})" if peak else "")


def _escaped(text: str) -> str:
    """`text` as Markdown shows it: a star or a bar is one, and brackets are no link."""
    for sign in "\\*|[]<>":
        text = text.replace(sign, "\\" + sign)
    return text


def put(text: str, table: str) -> str:
    """`text` with `table` in place of what is between the marks."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise SystemExit(f"README.md needs the lines {BEGIN} and {END}, once each and in this order")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="change README.md instead of printing")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="the folder of the files")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="the file that --write changes")
    options = parser.parse_args()
    document = newest(options.results)
    table = NOTHING if document is None else markdown(document)
    if not options.write:
        sys.stdout.write(table + "\n")
        return
    new = put(options.readme.read_text(encoding="utf-8"), table)
    options.readme.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
