"""gpuad beside PyTorch and JAX on a GPU:  python benchmarks/gpu.py --out FILE [--budget 480]

It needs what is installed, and says which peers are missing.  Each library runs in a process of its own, which a crash
or an empty memory ends without ending the rest.  Before a case is timed its results are compared with float64 NumPy.
FILE is JSON, and whole after every case.  What is most important is measured first: within a library the copy
bandwidth, products of matrices, the gelu chain, GPT-2 124M, norms, softmax, cross entropy, attention, the optimizer,
other shapes; the libraries in the order gpuad, PyTorch eager, torch.compile, JAX, each with a share of the budget,
which is in seconds; what then is left over goes to what is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs without installing

from tqdm import tqdm

from benchmarks.gpu import report
from benchmarks.gpu.cases import LIBRARIES, Case, find_cases

ROOT = Path(__file__).resolve().parent.parent
SHARES = {"gpuad": 0.45, "torch": 0.65, "torch.compile": 0.85, "jax": 1.0}  # of the budget, until which cases begin
WORKER = [sys.executable, "-m", "benchmarks.gpu.worker"]
START, LIMIT = 100.0, 120.0  # seconds for a library to be there, and for one case
MOST_BROKEN = 6  # processes of a library, before it is given up
PACKAGES = ("numpy", "cupy-cuda12x", "cupy-cuda13x", "torch", "triton", "jax", "jaxlib")


class Worker:
    """The process of one library: a case in, a result out."""

    def __init__(self, library: str, device: str, tiny: bool) -> None:
        self.said = tempfile.TemporaryFile()  # noqa: SIM115  # closed by stop()
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {
            **os.environ,
            "PYTHONPATH": path,
            "NVIDIA_TF32_OVERRIDE": "0",  # float32 means float32, in every library
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        }
        self.process = subprocess.Popen(
            [*WORKER, library, device, "tiny" if tiny else "full"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        self.lines: queue.Queue[str] = queue.Queue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put("")  # the end

    def answer(self, seconds: float) -> dict[str, Any]:
        """The next message, or one that says why there is none."""
        try:
            line = self.lines.get(timeout=max(seconds, 0.1))
        except queue.Empty:
            self.stop()
            return {"error": f"stopped after {seconds:.0f} s", "stopped": True, "broken": True}
        if line:
            message: dict[str, Any] = json.loads(line)
            return message
        return {"error": f"the process ended with {self._ending()}", "broken": True}

    def _ending(self) -> str:
        code = self.process.wait()
        self.said.seek(0)
        last = self.said.read()[-4000:].decode("utf-8", "replace").strip().splitlines()[-1:]
        return " ".join([f"signal {-code}" if code < 0 else f"status {code}", *(f"({x[:200]})" for x in last)])

    def ask(self, name: str, seconds: float) -> dict[str, Any]:
        """The result of the case `name`."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # what there is to read says why
            self.process.stdin.write(name + "\n")
            self.process.stdin.flush()
        return self.answer(seconds)

    def stop(self) -> None:
        """End the process."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.reader.join()
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # of a name that nobody has read
            self.process.stdin.close()
        self.process.stdout.close()
        self.said.close()


class Run:
    """What was measured so far, what is to come, and the time that is left for it."""

    def __init__(self, out: Path, device: str, tiny: bool, budget: float) -> None:
        self.out, self.device, self.tiny, self.budget = out, device, tiny, budget
        self.began = time.monotonic()
        self.machine, self.results = machine(), list[dict[str, Any]]()
        self.missing: dict[str, str] = {}
        self.order: dict[str, int] = {}

    def left(self) -> float:
        """The seconds of the budget that are left."""
        return self.budget - (time.monotonic() - self.began)

    def measure(self, library: str, cases: list[Case], until: float, bar: Any) -> list[Case]:
        """Measure the cases while less than the part `until` of the budget is spent; the rest comes back."""
        worker: Worker | None = None
        broken = 0
        try:
            while cases and library not in self.missing and self.left() > (1 - until) * self.budget:
                worker = worker or self._start(library)
                if worker is None:
                    break
                case = cases[0]
                bar.set_description(f"{library}: {case.name}"[:60])
                limit = min(LIMIT, self.left())
                message = worker.ask(case.name, limit)
                if message.pop("broken", False):
                    worker.stop()
                    worker, broken = None, broken + 1
                if message.pop("stopped", False) and limit < LIMIT:
                    break  # the budget ended, not the case
                cases = cases[1:]
                bar.update()
                self.results.append({"name": case.name, "library": library} | message)
                self.write()
                if broken == MOST_BROKEN:
                    self.missing[library] = f"given up after {broken} processes that broke"
        finally:
            if worker is not None:
                worker.stop()
        return cases

    def _start(self, library: str) -> Worker | None:
        """A process that is ready; None where the library is missing."""
        worker = Worker(library, self.device, self.tiny)
        message = worker.answer(min(START, self.left()))
        if "ready" in message:
            self.machine |= {k: v for k, v in message["ready"].items() if self.machine.get(k) is None}
            return worker
        worker.stop()
        self.missing[library] = message.get("missing") or message["error"]
        return None

    def document(self, left_out: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        """What the file holds; it is complete when `left_out` is known."""
        results = report.with_shares(sorted(self.results, key=lambda r: self.order.get(r["name"], 0)))
        return {
            "version": report.VERSION,
            "complete": left_out is not None,
            "sizes": "tiny" if self.tiny else "full",
            "device": self.device,
            "budget_s": self.budget,
            "seconds": round(time.monotonic() - self.began, 1),
            "machine": self.machine,
            "results": results,
            "left_out": left_out or [],
        }

    def write(self, left_out: list[dict[str, Any]] | None = None) -> None:
        """Bring the file up to date."""
        report.write(self.out, self.document(left_out))


def machine() -> dict[str, Any]:
    """What is known without asking a library."""
    import gpuad

    versions: dict[str, str | None] = {"gpuad": gpuad.__version__}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "driver": _asked("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "commit": _asked("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"),
        "versions": versions,
    }


def _asked(program: str, *arguments: str) -> str | None:
    """The first line that a program prints; None where there is no such program, or it fails."""
    if shutil.which(program) is None:
        return None
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return None
    return (done.stdout.splitlines() or [None])[0] if done.returncode == 0 else None


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the file of results, JSON")
    parser.add_argument("--budget", type=float, default=480.0, help="seconds for everything (480)")
    parser.add_argument("--libraries", default=",".join(LIBRARIES), help="some of " + ",".join(LIBRARIES))
    parser.add_argument("--cases", default="", help="only cases whose name has one of these words, by commas")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the benchmark itself")
    parser.add_argument("--device", default="cuda", help='"cuda", or "cpu" to try the benchmark itself')
    options = parser.parse_args(arguments)
    options.libraries = options.libraries.split(",")
    unknown = [x for x in options.libraries if x not in LIBRARIES]
    if unknown:
        parser.error(f"there is no library {', '.join(unknown)}; there are {', '.join(LIBRARIES)}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Measure, write the file, print the table.  1 if no library could measure anything."""
    options = parsed(arguments)
    words = [word for word in options.cases.split(",") if word]
    cases = [c for c in find_cases(options.tiny) if not words or any(word in c.name for word in words)]
    run = Run(options.out, options.device, options.tiny, options.budget)
    run.order = {case.name: k for k, case in enumerate(cases)}
    waiting = {x: [case for case in cases if x in case.libraries] for x in LIBRARIES if x in options.libraries}
    total = sum(map(len, waiting.values()))
    with tqdm(total=total, disable=not sys.stderr.isatty(), unit="case") as bar:
        for library in waiting:
            waiting[library] = run.measure(library, waiting[library], SHARES[library], bar)
        for library in waiting:
            waiting[library] = run.measure(library, waiting[library], 1.0, bar)
    left_out = [
        {"library": x, "names": [c.name for c in rest], "reason": run.missing.get(x, "the budget was spent")}
        for x, rest in waiting.items()
        if rest
    ]
    if not run.results:
        reasons = [f"  {left['library']}: {left['reason']}" for left in left_out]
        print("\n".join(["nothing could be measured", *reasons]), file=sys.stderr)
        return 1
    run.write(left_out)
    print(report.table(run.document(left_out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
