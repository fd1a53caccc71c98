"""Benchmarks run beside their peer in one process: `pytest benchmarks` ends with a table of ratios of medians."""

import os
import platform

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="benchmarks are compared with PyTorch, which is not installed")


@pytest.fixture
def rounds(benchmark):
    """Time a function: medians of many rounds, after a warm-up."""

    def run(function, rounds=15):
        return benchmark.pedantic(function, rounds=rounds, warmup_rounds=2, iterations=1)

    return run


def pytest_terminal_summary(terminalreporter, config):
    session = getattr(config, "_benchmarksession", None)
    if session is None or not session.benchmarks:
        return
    groups = {}
    for bench in session.benchmarks:
        if not bench.has_error:
            groups.setdefault(bench.group, {})[bench.params["library"]] = bench["median"]
    write = terminalreporter.write_line
    write("")
    write(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; Python {platform.python_version()},")
    write(f"NumPy {np.__version__}, PyTorch {torch.__version__} ({torch.get_num_threads()} threads); medians")
    write(f"{'':42}{'gpuad':>12}{'PyTorch':>12}{'ratio':>8}")
    for name, times in groups.items():
        ours, theirs = times.get("gpuad"), times.get("torch")
        if ours and theirs:
            write(f"{name:<42}{_time(ours):>12}{_time(theirs):>12}{ours / theirs:>8.2f}")
        elif ours:
            write(f"{name:<42}{_time(ours):>12}")


def _time(seconds):
    return f"{seconds * 1e6:.2f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"
