"""A stand-in for the module pynvml of nvidia-ml-py: GPUs as a test describes them, behind the calls that gpuad uses.

`with installed(Library([Gpu(...)])) as library:` makes it the module `pynvml` until the block ends.  Like NVML it must
be initialized, counts how often, hides the GPU behind its MIG instances, and answers with errors.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace

ERRORS = {
    "Uninitialized": 1,
    "InvalidArgument": 2,
    "NotSupported": 3,
    "NoPermission": 4,
    "NotFound": 6,
    "DriverNotLoaded": 9,
    "LibraryNotFound": 12,
    "FunctionNotFound": 13,
    "GpuIsLost": 15,
    "LibRmVersionMismatch": 18,
    "Unknown": 999,
}


class NVMLError(Exception):
    """What every error of NVML is: NVMLError(999) is an NVMLError_Unknown."""

    def __new__(cls, value: int) -> NVMLError:
        error = super().__new__(CLASSES.get(value, cls) if cls is NVMLError else cls)
        error.value = value
        return error

    def __str__(self) -> str:
        return type(self).__name__.removeprefix("NVMLError_") + " Error"


def _error_class(name: str, value: int) -> type[NVMLError]:
    return type(f"NVMLError_{name}", (NVMLError,), {"__new__": lambda cls, *_: NVMLError.__new__(cls, value)})


CLASSES = {value: _error_class(name, value) for name, value in ERRORS.items()}


@dataclass
class Gpu:
    """A GPU, or a MIG instance: what NVML tells of it."""

    uuid: str
    pci_bus_id: str = "0000:01:00.0"
    total: int = 80 * 2**30
    used: int = 0
    reserved: int = 2**29
    processes: list[tuple[int, int | None]] = field(default_factory=list)  # (number, bytes)
    accounts: dict[int, tuple[int, bool]] | None = None  # by number (bytes, does it run?); None if accounting is off
    instances: list[Gpu | None] | None = None  # None in a place that is empty; None where the GPU is not split
    refuses: dict[str, str] = field(default_factory=dict)  # {call: error} for this handle alone


class Library(ModuleType):
    """The module.  `refuses` names calls that fail, {call: error}; every call is in `calls`, by name, in order."""

    NVMLError = NVMLError
    NVML_FEATURE_ENABLED = 1
    NVML_DEVICE_MIG_ENABLE = 1
    nvmlMemory_v2 = 0x02000028

    def __init__(self, gpus: list[Gpu], *, driver: str = "570.86.15", refuses: dict[str, str] | None = None) -> None:
        super().__init__("pynvml")
        self.gpus = gpus
        self.driver = driver
        self.refuses = refuses or {}
        self.calls: list[str] = []
        self.opened = 0
        for error in CLASSES.values():
            setattr(self, error.__name__, error)

    def _called(self, name: str, gpu: Gpu | None = None) -> None:
        """Note a call, and fail if it is to."""
        self.calls.append(name)
        if not self.opened and name != "nvmlInit":
            raise NVMLError(ERRORS["Uninitialized"])
        refusal = self.refuses.get(name) or (gpu and gpu.refuses.get(name))
        if refusal:
            raise NVMLError(ERRORS[refusal])

    def nvmlInit(self):
        self._called("nvmlInit")
        self.opened += 1

    def nvmlShutdown(self):
        self._called("nvmlShutdown")
        self.opened -= 1

    def nvmlSystemGetDriverVersion(self):
        self._called("nvmlSystemGetDriverVersion")
        return self.driver

    def nvmlDeviceGetHandleByPciBusId(self, pciBusId):
        self._called("nvmlDeviceGetHandleByPciBusId")
        return self._first(gpu for gpu in self.gpus if _place(gpu.pci_bus_id) == _place(pciBusId))

    def nvmlDeviceGetHandleByUUID(self, uuid):
        self._called("nvmlDeviceGetHandleByUUID")
        instances = itertools.chain.from_iterable(gpu.instances or () for gpu in self.gpus)
        return self._first(gpu for gpu in itertools.chain(self.gpus, filter(None, instances)) if gpu.uuid == uuid)

    def _first(self, found: Iterator[Gpu]) -> Gpu:
        for gpu in found:
            return gpu
        raise NVMLError(ERRORS["NotFound"])

    def nvmlDeviceGetMigMode(self, device):
        self._called("nvmlDeviceGetMigMode", device)
        split = int(device.instances is not None)
        return [split, split]

    def nvmlDeviceGetMaxMigDeviceCount(self, device):
        self._called("nvmlDeviceGetMaxMigDeviceCount", device)
        return len(device.instances or ())

    def nvmlDeviceGetMigDeviceHandleByIndex(self, device, index):
        self._called("nvmlDeviceGetMigDeviceHandleByIndex", device)
        return self._first(filter(None, device.instances[index : index + 1]))

    def nvmlDeviceGetMemoryInfo(self, handle, version=None):
        self._called("nvmlDeviceGetMemoryInfo_v2" if version else "nvmlDeviceGetMemoryInfo", handle)
        if handle.instances is not None:
            raise NVMLError(ERRORS["NoPermission"])
        free = handle.total - handle.used - handle.reserved
        if version is None:
            return SimpleNamespace(total=handle.total, free=free, used=handle.used + handle.reserved)
        assert version == self.nvmlMemory_v2
        return SimpleNamespace(
            version=version, total=handle.total, reserved=handle.reserved, free=free, used=handle.used
        )

    def nvmlDeviceGetComputeRunningProcesses_v2(self, handle):
        self._called("nvmlDeviceGetComputeRunningProcesses_v2", handle)
        return self._processes(handle, handle.processes)

    def nvmlDeviceGetComputeRunningProcesses_v3(self, handle):
        self._called("nvmlDeviceGetComputeRunningProcesses_v3", handle)
        scrambled = self.driver.startswith(("535.43.", "535.54.", "535.86."))
        return self._processes(
            handle, [(n or 0, pid) for pid, n in handle.processes] if scrambled else handle.processes
        )

    def _processes(self, handle: Gpu, listed: list[tuple[int, int | None]]) -> list[SimpleNamespace]:
        if handle.instances is not None:
            raise NVMLError(ERRORS["NoPermission"])
        return [
            SimpleNamespace(pid=pid, usedGpuMemory=nbytes, gpuInstanceId=2**32 - 1, computeInstanceId=2**32 - 1)
            for pid, nbytes in listed
        ]

    def nvmlDeviceGetAccountingMode(self, handle):
        self._called("nvmlDeviceGetAccountingMode", handle)
        return int(handle.accounts is not None)

    def nvmlDeviceGetAccountingStats(self, handle, pid):
        self._called("nvmlDeviceGetAccountingStats", handle)
        if pid not in (handle.accounts or {}):
            raise NVMLError(ERRORS["NotFound"])
        most, runs = handle.accounts[pid]
        return SimpleNamespace(maxMemoryUsage=most, isRunning=int(runs))


def _place(pci_bus_id: str) -> list[int]:
    """The numbers of a PCI bus id, which may have more zeros or fewer."""
    return [int(number, 16) for number in pci_bus_id.replace(".", ":").split(":")]


@contextlib.contextmanager
def installed(module: ModuleType | None) -> Iterator[ModuleType | None]:
    """`module` as what `import pynvml` gives until the block ends; with None, it fails as if nothing were there."""
    before = sys.modules.get("pynvml")
    sys.modules["pynvml"] = module
    try:
        yield module
    finally:
        del sys.modules["pynvml"]
        if before is not None:
            sys.modules["pynvml"] = before
