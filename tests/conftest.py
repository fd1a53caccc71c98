"""What all tests share: the `gpu` marker, the `torch` fixture, the Hypothesis profile."""

import ctypes
import functools
import importlib
import importlib.util
import os
from types import ModuleType

import pytest
from hypothesis import HealthCheck, settings

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
