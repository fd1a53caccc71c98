"""What all tests share: the `gpu` marker, the `torch` and device fixtures, the Hypothesis profile."""

import contextlib
import ctypes
import functools
import gc
import importlib
import importlib.util
import os
from collections.abc import Iterator
from types import ModuleType

import pytest
from hypothesis import HealthCheck, settings

import stand_in
from gpuad import devices
from gpuad.ops.nn import _turns

settings.register_profile(
    "gpuad",
    deadline=None,
    max_examples=50,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow],  # it measures the machine
)
settings.load_profile("gpuad")


@functools.cache
def missing_for_cuda() -> str | None:
    """What is missing for a test on a CUDA device; None when nothing is. CuPy is imported only where a driver is."""
    if importlib.util.find_spec("cupy") is None:
        return "needs a CUDA device: CuPy is not installed"
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "needs a CUDA device: the NVIDIA driver is not installed"
    try:
        cuda = importlib.import_module("cupy").cuda
        return None if cuda.runtime.getDeviceCount() else "needs a CUDA device: the driver finds none"
    except Exception as error:  # CuPy and the driver fail in many ways, and each is a reason to say aloud
        return f"needs a CUDA device: {type(error).__name__}: {error}"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and (reason := missing_for_cuda()):
        pytest.skip(reason)


@pytest.fixture(scope="session")
def torch() -> ModuleType:
    """PyTorch, to compare with. Its absence skips the test, or fails it when GPUAD_REQUIRE_TORCH is set."""
    if os.environ.get("GPUAD_REQUIRE_TORCH"):
        return importlib.import_module("torch")
    return pytest.importorskip("torch", reason="needs PyTorch, which is not installed", exc_type=ImportError)


# --- devices ----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["stand_in", pytest.param("gpu", marks=pytest.mark.gpu)])
def cuda(request) -> Iterator[str]:
    """The name of a CUDA device: of the stand-in for CuPy, or of a GPU."""
    with _cuda(request.param) as name:
        yield name


@contextlib.contextmanager
def _cuda(kind: str) -> Iterator[str]:
    if kind == "gpu":
        yield "cuda"
        return
    if said := stand_in.missing():
        pytest.skip(said)
    known = forgotten()
    with stand_in.installed():
        try:
            yield "cuda"
        finally:
            _turns.cache_clear()  # which hold memory of the device
            gc.collect()
            forgotten()
            devices._devices.update(known)


def forgotten():
    """The CUDA devices there are, which gpuad forgets."""
    names = [name for name in devices._devices if name[0].startswith("cuda")]
    return {name: devices._devices.pop(name) for name in names}


@pytest.fixture(scope="module", params=["cpu", "stand_in", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request) -> Iterator[str]:
    """The name of a device that computes: the CPU, or a CUDA device as above."""
    with contextlib.nullcontext("cpu") if request.param == "cpu" else _cuda(request.param) as name:
        yield name
