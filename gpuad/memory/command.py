"""`gpuad profile` and `gpuad estimate`: what training takes beside inference, measured or in a dry run."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import textwrap
import traceback
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..devices import Device, use_device
from ..devices import device as find_device
from ..errors import DataError, DeviceError, GpuadError
from .dryrun import meta_like
from .profile import Profile
from .reconcile import reconciled
from .report import WIDTH, Report
from .setups import RUNS, Plans, Setup, measured
from .sizes import parse_bytes

OF_MODELS = ("model", "batch", "length", "dtype", "optimizer")  # options that say what to train


def run(arguments: argparse.Namespace) -> int:
    """Measure or estimate, print, write; the exit code, 1 where something does not fit in --limit or --budget."""
    limit = None if arguments.limit is None else parse_bytes(arguments.limit)
    if arguments.budget is not None:
        parse_bytes(arguments.budget)  # or a wrong one is an error after dry runs only
    check_outputs([arguments.json, arguments.html, arguments.plot], arguments.plot)
    device = meta_like(arguments.like) if arguments.command == "estimate" else computing(arguments.device)
    refused: list[str] = []
    notes: list[str] = []
    if arguments.function is None:
        profiles, notes, refused = _of_model(setup_of(arguments), device, arguments.budget)
    elif given := [*_given(arguments), *(["budget"] if arguments.budget else [])]:
        raise DataError(f"{', '.join('--' + name for name in given)} say what model to make; a function makes its own")
    else:
        profiles = _of_function(arguments.function, device)
    report = Report(profiles, limit=limit, notes=notes)
    encoding = sys.stdout.encoding or "utf-8"
    print(str(report).encode(encoding, "replace").decode(encoding))
    if arguments.json is not None:
        report.save_json(arguments.json)
    if arguments.html is not None:
        report.save_html(arguments.html)
    if arguments.plot is not None:
        report.plot(arguments.plot)
    return 0 if report.fits and not refused else 1


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name in OF_MODELS if (value := getattr(arguments, name)) is not None}


def setup_of(arguments: argparse.Namespace) -> Setup:
    """What to train, by the options that say so."""
    return Setup(**_given(arguments))


def check_outputs(paths: list[Path | None], plot: Path | None) -> None:
    """See that files can be written, before the work that they are to show."""
    asked = [path for path in paths if path is not None]
    for path in asked:
        if path.is_dir() or not path.name:
            raise DataError(f"cannot write {path}: it is a folder")
        if not path.parent.is_dir():
            raise DataError(f"cannot write {path}: there is no folder {path.parent}")
    if len({path.resolve() for path in asked}) < len(asked):
        raise DataError("--json, --html and --plot need files of their own")
    if plot is not None:
        if plot.suffix.lower() not in (".png", ".svg"):
            raise DataError(f"--plot writes .png and .svg, got {plot}")
        if importlib.util.find_spec("matplotlib") is None:
            raise DataError('--plot needs matplotlib\n  pip install "gpuad[plot]"')


def computing(name: str) -> Device:
    """The device of that name, "auto" for a GPU where there is one."""
    if name == "auto":
        try:
            return find_device("cuda")
        except DeviceError:
            return find_device("cpu")
    device = find_device(name)
    if not device.computes:
        raise DeviceError(f"--device {name} knows shapes only\n  gpuad estimate takes them")
    return device


def _of_model(setup: Setup, device: Device, budget: str | None) -> tuple[list[Profile], list[str], list[str]]:
    """The profiles of its runs, what is to be said with them, and of that what says that a budget is too small."""
    from tqdm import tqdm  # here, so that nothing else waits for it

    budgets = () if budget is None else (budget,)
    print(textwrap.fill(f"{setup.describe()}, on {called(device)}", WIDTH), flush=True)
    try:
        with tqdm(total=len(RUNS) + len(budgets), disable=None, leave=False, dynamic_ncols=True) as bar:
            plans = Plans.of(setup, device, *budgets)
            found = []
            measure = lambda step, name, device: reconciled(device, step, name)
            for profile in measured(setup, device, measure, plans):
                found.append(profile)
                bar.update()
        return found, [*plans.refused, *([] if plans.advice is None else [plans.advice])], plans.refused
    except MemoryError as error:
        raise DeviceError(f"it does not fit on {device.name}: {error}\n  gpuad estimate needs no memory") from None


def called(device: Device) -> str:
    """What people call `device`."""
    return f"{device.name} ({device.engine})" if device.computes else f"shapes alone, as {device.engine} would"


def _of_function(where: str, device: Device) -> list[Profile]:
    """The Profile of a user's function, given as path/to/file.py:function, which is called once."""
    file, _, name = where.rpartition(":")
    path = Path(file)
    if not file or not name.isidentifier():
        raise DataError(f"a function is given as path/to/file.py:function, got {where!r}")
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    sys.path.insert(0, str(path.resolve().parent))
    try:
        with use_device(device), _tracing(device):
            function = getattr(_module(path), name, None)
            if not callable(function):
                is_what = "no function" if function is None else f"a {type(function).__name__}, which is no function,"
                raise DataError(f"{path} has {is_what} {name}()")
            return [reconciled(device, function, name)]
    except GpuadError:
        raise
    except Exception as error:
        line = traceback.extract_tb(error.__traceback__)[-1]
        at = f"{Path(line.filename).name}:{line.lineno}"
        raise DataError(f"{where} failed at {at}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)


def _module(path: Path) -> Any:
    """The module that a file is, known under its name as an imported one is."""
    name = path.stem if path.stem not in sys.modules else f"{path.stem}_profiled"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise DataError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@contextmanager
def _tracing(device: Device) -> Iterator[None]:
    """Have tracemalloc see what a user's function takes of NumPy's memory beside gpuad, on the CPU."""
    if device.name != "cpu" or tracemalloc.is_tracing():
        yield
        return
    device.reuse.drop()  # type: ignore[attr-defined]  # the CPU's; tracemalloc would not see the end of what is older
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


__all__ = ["called", "check_outputs", "computing", "run", "setup_of"]
