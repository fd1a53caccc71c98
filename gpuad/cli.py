"""The command line: `gpuad train`, `gpuad profile`, `gpuad estimate`, `gpuad plan`, `gpuad info`."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import __version__
from .errors import DataError, GpuadError
from .training.settings import Settings, flag

KINDS = "like cpu:numpy, cpu:compiled or cuda:sm_NN"
OFFERED = [f for f in dataclasses.fields(Settings) if f.metadata]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code.  An error is one message on stderr and the exit code 2."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command == "train":
            return _train(arguments)
        if arguments.command in ("profile", "estimate"):
            from .memory import command

            return command.run(arguments)
        if arguments.command == "plan":
            from .memory import plan_command

            return plan_command.run(arguments)
        from .info import info

        print(info())
        return 0
    except GpuadError as error:
        message = str(error)
    except BrokenPipeError:  # whoever read what is printed has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a full disk, say
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except KeyboardInterrupt:
        print("gpuad: interrupted", file=sys.stderr)
        return 130
    print(f"gpuad {arguments.command}: {message}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("gpuad", description="Automatic differentiation for CuPy and NumPy.")
    parser.add_argument("--version", action="version", version=f"gpuad {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="train | profile | estimate | plan | info")
    train = commands.add_parser(
        "train",
        usage="gpuad train [OPTION ...]",
        help="train a byte-level GPT on text",
        description="Train a byte-level GPT: on the sources of Python's standard library, or on text of yours. "
        "Ctrl-C saves and stops, and --resume goes on to the same losses.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=26),
    )
    for f in OFFERED:
        options: dict[str, Any] = {"help": f.metadata["help"], "metavar": f.metadata["metavar"]}
        if type(f.default) is bool:
            options = {"help": options["help"], "action": "store_true", "default": None}
        elif type(f.default) is tuple:
            options["nargs"] = "+"
        else:
            options |= {"type": type(f.default), "help": f"{options['help']} (default {f.default})"}
        train.add_argument(flag(f.name), **options)
    train.add_argument("--out", type=Path, metavar="DIR", help="folder of the run (default: a new one in runs)")
    train.add_argument("--resume", type=Path, metavar="DIR", help="go on with the run in this folder")
    train.add_argument("--sample", type=int, metavar="N", default=400, help="bytes it writes at the end (default 400)")
    for name, dry, text in (
        ("profile", False, "measure the memory of inference, training, and training with checkpoints"),
        ("estimate", True, "the same without a device: from shapes alone"),
    ):
        parts = commands.add_parser(
            name,
            usage=f"gpuad {name} [FILE.py:FUNCTION] [OPTION ...]",
            help=text,
            description=text[0].upper() + text[1:] + ".",
            formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=26),
        )
        _add_memory_options(parts, dry=dry)
    plan = commands.add_parser(
        "plan",
        usage="gpuad plan [OPTION ...]",
        help="plan checkpoints of a training step for a budget of memory",
        description="Plan checkpoints of a training step: what the usual schedules take, and those of least work for "
        "budgets, by dry runs; and measure them where there is room. The exit code is 1 where nothing fits a budget.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=26),
    )
    _add_model_options(plan)
    plan.add_argument(
        "--budget", nargs="+", action="extend", metavar="SIZE", help="the most that a step may take: 24GiB, say"
    )
    plan.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:<index>: measure there")
    plan.add_argument("--like", metavar="KIND", help=f"predict only, {KINDS}")
    plan.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    plan.add_argument("--plot", type=Path, metavar="FILE", help="write a picture of memory and time, .png or .svg")
    commands.add_parser(
        "info", help="show versions, devices and engines", description="Show versions, devices, engines."
    )
    return parser


def _add_memory_options(parser: argparse.ArgumentParser, *, dry: bool) -> None:
    """The options of `gpuad estimate` where it is `dry`, else of `gpuad profile`."""
    parser.add_argument("function", nargs="?", metavar="FILE.py:FUNCTION", help="a function of yours, called as it is")
    _add_model_options(parser)
    parser.add_argument("--budget", metavar="SIZE", help="compare with checkpoints planned for it: 24GiB, say")
    parser.add_argument("--limit", metavar="SIZE", help="say whether it fits: 24GiB, say")
    if dry:
        parser.add_argument(
            "--like", default="cuda:sm_90", metavar="KIND", help=f"where it would run, {KINDS} (default cuda:sm_90)"
        )
    else:
        parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:<index>")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page to look at in a browser")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a picture, .png or .svg")


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    """The options that say what to train."""
    parser.add_argument("--model", metavar="NAME", help="gpt, gpt2 or llama-7b (default gpt)")
    parser.add_argument("--batch", type=int, metavar="N", help="rows of tokens in a step")
    parser.add_argument("--length", type=int, metavar="N", help="tokens in a row")
    parser.add_argument("--dtype", metavar="NAME", help="float32, bfloat16 or mixed (default float32)")
    parser.add_argument("--optimizer", metavar="NAME", help="sgd, adam or adamw (default adamw)")


def _train(arguments: argparse.Namespace) -> int:
    from .training.loop import resume, start
    from .training.runs import Run

    if arguments.sample < 0:
        raise DataError(f"--sample must be at least 0, got {arguments.sample}")
    given = {f.name: getattr(arguments, f.name) for f in OFFERED if getattr(arguments, f.name) is not None}
    if "data" in given:
        given["data"] = tuple(os.path.abspath(path) for path in given["data"])  # --resume may run from anywhere
    if arguments.resume is None:
        return start(Settings(**given), arguments.out, arguments.sample)
    if arguments.out is not None:
        raise DataError("--resume goes on in the folder of the run; leave --out out")
    with Run.open(arguments.resume) as run:
        _check_match(given, Settings.of(run.config["settings"]), arguments.resume)
        return resume(run, arguments.sample)


def _check_match(given: dict[str, Any], settings: Settings, folder: Path) -> None:
    for name, value in given.items():
        if value != (expected := getattr(settings, name)):
            asked, had = (" ".join(x) or "the default" if isinstance(x, tuple) else x for x in (value, expected))
            raise DataError(
                f"{flag(name)} {asked} does not match the run in {folder}, which has {had}\n"
                "  leave it out, or start a new run"
            )


__all__ = ["main"]
