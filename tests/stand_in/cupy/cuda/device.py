"""The stand-in's `cupy.cuda.Device`."""

from __future__ import annotations

import threading
from typing import Any

from . import runtime

_entered = threading.local()  # the devices that `with` has left behind, of each thread


class Device:
    """One of the devices; the current one where none is named."""

    def __init__(self, device: Any = None) -> None:
        self.id = runtime.getDevice() if device is None else int(device)

    def __int__(self) -> int:
        return self.id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"

    def __enter__(self) -> Device:
        _entered.stack = [*getattr(_entered, "stack", []), runtime.getDevice()]
        self.use()
        return self

    def __exit__(self, *args: object) -> None:
        runtime.setDevice(_entered.stack.pop())

    def use(self) -> None:
        runtime.setDevice(self.id)

    def synchronize(self) -> None:
        runtime.deviceSynchronize()

    @property
    def compute_capability(self) -> str:
        return "90"

    @property
    def pci_bus_id(self) -> str:
        return runtime.deviceGetPCIBusId(self.id)

    @property
    def mem_info(self) -> tuple[int, int]:
        with self:
            return runtime.memGetInfo()

    @property
    def attributes(self) -> dict[str, Any]:
        known = runtime.getDeviceProperties(self.id)
        return {
            "WarpSize": known["warpSize"],
            "MultiProcessorCount": known["multiProcessorCount"],
            "MaxThreadsPerBlock": known["maxThreadsPerBlock"],
            "MaxThreadsPerMultiProcessor": known["maxThreadsPerMultiProcessor"],
            "MaxBlocksPerMultiprocessor": known["maxBlocksPerMultiProcessor"],
            "MaxSharedMemoryPerBlock": known["sharedMemPerBlock"],
            "MaxSharedMemoryPerBlockOptin": known["sharedMemPerBlockOptin"],
            "MaxSharedMemoryPerMultiprocessor": known["sharedMemPerMultiprocessor"],
            "MaxRegistersPerBlock": known["regsPerBlock"],
            "MaxGridDimX": known["maxGridSize"][0],
            "MaxGridDimY": known["maxGridSize"][1],
            "MaxGridDimZ": known["maxGridSize"][2],
            "L2CacheSize": known["l2CacheSize"],
            "ClockRate": known["clockRate"],
            "MemoryClockRate": known["memoryClockRate"],
            "GlobalMemoryBusWidth": known["memoryBusWidth"],
            "ComputeCapabilityMajor": known["major"],
            "ComputeCapabilityMinor": known["minor"],
        }

    @property
    def cublas_handle(self) -> int:
        return 0xB1A5 + self.id


def get_device_id() -> int:
    return runtime.getDevice()


def get_compute_capability() -> str:
    return Device().compute_capability


def get_cublas_handle() -> int:
    return Device().cublas_handle
