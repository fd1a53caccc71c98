"""The README's tables of memory: the default GPT as measured on this machine, LLaMA-7B in dry runs, with its plans.

python scripts/memory_table.py           prints them
python scripts/memory_table.py --write   puts them between the marks in README.md, and the pictures in docs/

Beside ours stand PyTorch's figures for the same steps, from a dry run of PyTorch 2.13 (FakeTensorMode and MemTracker).
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # so that it runs without installing

from gpuad.devices import device as find_device  # noqa: E402
from gpuad.memory import Profile, Report, reconciled  # noqa: E402
from gpuad.memory.dryrun import meta_like  # noqa: E402
from gpuad.memory.pareto import LABELS, Choices  # noqa: E402
from gpuad.memory.plan_command import choose  # noqa: E402
from gpuad.memory.setups import RUNS, Setup, measured  # noqa: E402

BEGIN, END = "<!-- scripts/memory_table.py writes from here -->", "<!-- to here, memory -->"
PLANS_BEGIN, PLANS_END = "<!-- scripts/memory_table.py writes plans from here -->", "<!-- to here, plans -->"
PICTURE, CURVE = ROOT / "docs" / "memory.png", ROOT / "docs" / "plans.png"
GIB, MIB = 2**30, 2**20
# GiB at the peak, with PyTorch: training, and with every block checkpointed (batch, dtype, optimizer)
PYTORCH = {
    (1, "bfloat16", "adamw"): (50.80, 50.69),
    (4, "bfloat16", "adamw"): (90.24, 51.68),
    (1, "float32", "adamw"): (101.39, 101.39),
}
BUDGETS = ("60GiB",)
# GiB at the peak for the step that is planned for, with PyTorch, by schedule
PYTORCH_PLANS = {"none": 90.24, "sqrt": 57.53, "auto": 52.85, "every": 51.68}
ROWS = (
    *((1, "bfloat16", "sgd"), (4, "bfloat16", "sgd"), (1, "bfloat16", "adamw"), (4, "bfloat16", "adamw")),
    *((1, "mixed", "adamw"), (4, "mixed", "adamw"), (1, "float32", "adamw"), (4, "float32", "adamw")),
)


def small() -> list[Profile]:
    """The default GPT on this machine's CPU."""
    return list(measured(Setup(), find_device("cpu"), lambda step, name, device: reconciled(device, step, name)))


def small_table(profiles: list[Profile]) -> str:
    """Peaks by category, in MiB, and the ratios to inference."""
    categories = [c for c in dict.fromkeys(c for p in profiles for c in p.by_category(p.peak_event))]
    lines = ["| MiB at the peak | " + " | ".join(RUNS) + " |", "|---|" + "---|" * len(profiles)]
    for name in categories:
        held = [p.by_category(p.peak_event).get(name, 0) for p in profiles]
        if max(held) >= MIB / 10:
            lines.append(f"| {name} | " + " | ".join(f"{n / MIB:.1f}" if n >= MIB / 20 else "" for n in held) + " |")
    lines.append("| **all** | " + " | ".join(f"**{p.peak_bytes / MIB:.1f}**" for p in profiles) + " |")
    ratios = [p.peak_bytes / profiles[0].peak_bytes for p in profiles]
    lines.append("| times inference | " + " | ".join(f"{r:.1f}" for r in ratios) + " |")
    lines.append("| in phase | " + " | ".join(p.peak_phase for p in profiles) + " |")
    return "\n".join(lines)


def large_table() -> str:
    """LLaMA-7B at 2048 tokens on a GPU like sm_90, in GiB."""
    lines = [
        "| optimizer, dtype, batch | inference | training | x | checkpointed | x | auto"
        " | PyTorch: training, checkpointed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for batch, dtype, optimizer in ROWS:
        setup = Setup("llama-7b", batch=batch, dtype=dtype, optimizer=optimizer)
        base, training, checkpointed, auto = [p.peak_bytes / GIB for p in measured(setup, meta_like("cuda:sm_90"))]
        theirs = ", ".join(f"{x:.2f}" for x in PYTORCH.get((batch, dtype, optimizer), ()))
        lines.append(
            f"| {optimizer}, {dtype}, {batch} | {base:.2f} | {training:.2f} | {training / base:.1f}"
            f" | {checkpointed:.2f} | {checkpointed / base:.1f} | {auto:.2f} | {theirs} |"
        )
    return "\n".join(lines)


def text(profiles: list[Profile]) -> str:
    """What stands in the README."""
    engine = profiles[0].device
    return (
        f"The default GPT of `gpuad train` (4 x 128, batch 16 x 64, AdamW, float32), measured by the ledger on {engine}"
        f" (`gpuad profile`):\n\n{small_table(profiles)}\n\n"
        "LLaMA-7B on 2048 tokens, on a GPU like sm_90, in a dry run: GiB at the peak, and how many times inference that"
        f" is (`gpuad estimate --model llama-7b --batch 4 --dtype bfloat16`):\n\n{large_table()}"
    )


def plans() -> Choices:
    """The schedules of a step of LLaMA-7B on 4 x 2048 tokens, AdamW, all in bfloat16, on a GPU like sm_90."""
    from tqdm import tqdm

    setup = Setup("llama-7b", batch=4, dtype="bfloat16")
    with tqdm(total=1, disable=True) as bar:
        return choose(setup, meta_like("cuda:sm_90"), BUDGETS, bar)


def plans_table(choices: Choices) -> str:
    """Their peaks in GiB, and the forward passes that they compute again."""
    lines = [
        "| LLaMA-7B, batch 4 x 2048, AdamW, bfloat16 | peak, GiB | forward passes again | predicted time"
        " | PyTorch, GiB |",
        "|---|---|---|---|---|",
    ]
    for plan in [*choices.plans, choices.curve[-1]]:
        name = LABELS.get(plan.name, f"planned for {plan.name}")
        if plan is choices.curve[-1]:
            name = "planned for the least"
        theirs = f"{PYTORCH_PLANS[plan.name]:.2f}" if plan.name in PYTORCH_PLANS else ""
        lines.append(f"| {name} | {plan.peak / GIB:.2f} | {plan.extra:.2f} | +{plan.slower:.0%} | {theirs} |")
    return "\n".join(lines)


def put(text: str, begin: str, end: str, found: str) -> str:
    """`text` with `found` between two marks."""
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{found}\n{end}{after}"


def main() -> None:
    """Print, or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    profiles, choices = small(), plans()
    found, planned = text(profiles), plans_table(choices)
    if not options.write:
        print(f"{found}\n\n{planned}")
        return
    readme = ROOT / "README.md"
    written = put(readme.read_text(encoding="utf-8"), BEGIN, END, found)
    readme.write_text(put(written, PLANS_BEGIN, PLANS_END, planned), encoding="utf-8")
    PICTURE.parent.mkdir(exist_ok=True)
    Report(profiles).plot(PICTURE)
    choices.figure().savefig(CURVE)


if __name__ == "__main__":
    main()
