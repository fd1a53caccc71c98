"""The command line: `gpuad train`, `gpuad info`."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from . import __version__
from .errors import GpuadError

OPTIONS = {  # of Settings: metavar and help
    "data": ("PATH", "text files or folders to learn from (default: the Python standard library's sources)"),
    "device": ("NAME", "auto, cpu, cuda or cuda:<index>"),
    "layers": ("N", "transformer blocks"),
    "heads": ("N", "attention heads"),
    "width": ("N", "features of a position"),
    "length": ("N", "bytes of context"),
    "steps": ("N", "steps to take"),
    "batch": ("N", "sequences in a step"),
    "learning_rate": ("X", "peak learning rate"),
    "final_learning_rate": ("X", "learning rate at the end"),
    "warmup": ("N", "steps of linear warm-up"),
    "weight_decay": ("X", "decay of the matrices"),
    "max_grad_norm": ("X", "norm the gradient is clipped to"),
    "dropout": ("P", "chance of dropping a value"),
    "seed": ("N", "seed of the weights, the order of the text and dropout"),
    "checkpointing": ("", "keep only the input of each block, and compute the rest again"),
    "evaluate_every": ("N", "steps between held-out losses"),
    "save_every": ("N", "steps between saved states"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code.  An error is one clear message on stderr and exit code 2."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command == "info":
            return info()
        return _train(arguments)
    except GpuadError as error:
        print(f"gpuad {arguments.command}: {error}", file=sys.stderr)
        return 2


def entry() -> int:
    """The `gpuad` command: `main`, in a process whose OpenBLAS threads do not spin between products.

    OpenBLAS reads its settings when NumPy is loaded, so the process starts over once with the variable set.
    """
    if sys.argv[1:2] == ["train"] and "OPENBLAS_THREAD_TIMEOUT" not in os.environ and os.name == "posix":
        os.environ["OPENBLAS_THREAD_TIMEOUT"] = "4"
        os.execv(sys.executable, [sys.executable, "-m", "gpuad", *sys.argv[1:]])
    return main()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("gpuad", description="Automatic differentiation for CuPy and NumPy.")
    parser.add_argument("--version", action="version", version=f"gpuad {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train a byte-level GPT on text", formatter_class=argparse.RawTextHelpFormatter)
    from .train import Settings

    for field in dataclasses.fields(Settings):
        metavar, text = OPTIONS[field.name]
        flag = "--" + field.name.replace("_", "-")
        if field.type == "bool":
            train.add_argument(flag, action="store_true", default=None, help=text)
        elif field.name == "data":
            train.add_argument(flag, nargs="+", metavar=metavar, help=text)
        else:
            kind = {"int": int, "float": float, "str": str}[str(field.type)]
            train.add_argument(flag, type=kind, metavar=metavar, help=f"{text} (default {field.default})")
    train.add_argument("--out", type=Path, metavar="DIR", help="folder of the run (default runs/gpt-<n>)")
    train.add_argument("--resume", type=Path, metavar="DIR", help="go on with the run in this folder")
    train.add_argument("--sample", type=int, default=400, metavar="N", help="bytes to write at the end (default 400)")
    commands.add_parser("info", help="versions, devices and engines")
    return parser


def _train(arguments: argparse.Namespace) -> int:
    from .errors import DataError
    from .train import Settings, settings_of, train

    given = {f.name: getattr(arguments, f.name) for f in dataclasses.fields(Settings)}
    given = {name: value for name, value in given.items() if value is not None}
    if "data" in given:
        given["data"] = tuple(os.path.abspath(path) for path in given["data"])
    if arguments.resume is None:
        return train(Settings(**given), out=arguments.out, sample=arguments.sample)
    settings = settings_of(arguments.resume)
    if arguments.out is not None:
        raise DataError("--resume goes on in the run's own folder; leave --out out")
    for name, value in given.items():
        if getattr(settings, name) != value:
            raise DataError(
                f"--{name.replace('_', '-')} {value} does not match the run in {arguments.resume}, which has"
                f" {getattr(settings, name)}\n  leave it out, or start a new run"
            )
    return train(settings, resume=arguments.resume, sample=arguments.sample)


def info() -> int:
    """Print versions, devices and engines."""
    from .devices import default_device, missing_cuda

    print(f"gpuad      {__version__}")
    print(f"Python     {platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores")
    for name in ("numpy", "ml_dtypes", "safetensors", "tqdm", "matplotlib", "cupy-cuda12x", "cupy-cuda13x"):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = "not installed"
        print(f"{name:<12} {version}" if len(name) > 10 else f"{name:<10} {version}")
    device = default_device()
    print(f"default    {device.name}")
    print("cpu        engine numpy: fused kernels in cache-sized blocks")
    print("meta       shapes only")
    print(f"cuda       {missing_cuda().splitlines()[0]}")
    return 0
