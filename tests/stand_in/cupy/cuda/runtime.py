"""The stand-in's `cupy.cuda.runtime`: two devices, which work at once, so that every copy is done when it returns."""

from __future__ import annotations

import ctypes
import threading
from typing import Any

from .. import _machine

CUDA_R_32F, CUDA_R_64F, CUDA_R_16F, CUDA_R_16BF = 0, 1, 2, 14
memcpyHostToHost, memcpyHostToDevice, memcpyDeviceToHost, memcpyDeviceToDevice, memcpyDefault = range(5)
eventDefault, eventBlockingSync, eventDisableTiming = range(3)
streamDefault, streamNonBlocking = range(2)
cudaMemPoolAttrReservedMemCurrent, cudaMemPoolAttrReservedMemHigh = 5, 6
cudaMemPoolAttrUsedMemCurrent, cudaMemPoolAttrUsedMemHigh = 7, 8
_ATTRIBUTES = {5: "reserved", 6: "reserved_high", 7: "used", 8: "used_high"}
_INVALID_VALUE, _NO_MEMORY, _INVALID_DEVICE = 1, 2, 101
_ERRORS = {
    _INVALID_VALUE: "cudaErrorInvalidValue: invalid argument",
    _NO_MEMORY: "cudaErrorMemoryAllocation: out of memory",
    _INVALID_DEVICE: "cudaErrorInvalidDevice: invalid device ordinal",
}
is_hip = False

_current = threading.local()  # the device of each thread


class CUDARuntimeError(RuntimeError):
    """What the runtime answers to a wrong call."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(_ERRORS.get(status, f"error {status}"))


def getDeviceCount() -> int:
    return _machine.DEVICES


def getDevice() -> int:
    return getattr(_current, "device", 0)


def setDevice(device: int) -> None:
    if not 0 <= device < _machine.DEVICES:
        raise CUDARuntimeError(_INVALID_DEVICE)
    _current.device = device


def getDeviceProperties(device: int) -> dict[str, Any]:
    if not 0 <= device < _machine.DEVICES:
        raise CUDARuntimeError(_INVALID_DEVICE)
    return {
        "name": b"stand-in for a GPU",
        "totalGlobalMem": _machine.TOTAL_BYTES,
        "sharedMemPerBlock": _machine.DYNAMIC_SHARED,
        "sharedMemPerMultiprocessor": 228 << 10,
        "sharedMemPerBlockOptin": _machine.DYNAMIC_SHARED_OPT_IN,
        "reservedSharedMemPerBlock": 1 << 10,
        "regsPerBlock": 65536,
        "regsPerMultiprocessor": 65536,
        "warpSize": 32,
        "maxThreadsPerBlock": 1024,
        "maxThreadsPerMultiProcessor": 2048,
        "maxBlocksPerMultiProcessor": 32,
        "maxThreadsDim": (1024, 1024, 64),
        "maxGridSize": (2147483647, 65535, 65535),
        "major": 9,
        "minor": 0,
        "multiProcessorCount": 4,
        "clockRate": 1_000_000,
        "memoryClockRate": 1_000_000,
        "memoryBusWidth": 1024,
        "l2CacheSize": 1 << 20,
        "totalConstMem": 64 << 10,
        "integrated": 0,
        "unifiedAddressing": 1,
        "concurrentKernels": 1,
        "ECCEnabled": 0,
        "pciBusID": device,
        "pciDeviceID": 0,
        "pciDomainID": 0,
        "uuid": bytes(15) + bytes([device]),
    }


def deviceGetPCIBusId(device: int) -> str:
    if not 0 <= device < _machine.DEVICES:
        raise CUDARuntimeError(_INVALID_DEVICE)
    return f"0000:{device:02X}:00.0"


def memGetInfo() -> tuple[int, int]:
    """The free and the total bytes of the current device."""
    given = _machine.allocated[getDevice()] + _machine.driver_pools[getDevice()].reserved
    return _machine.TOTAL_BYTES - given, _machine.TOTAL_BYTES


def deviceGetMemPool(device: int) -> int:
    """The handle of the driver's own pool."""
    return 0xA51C + device


def memPoolGetAttribute(pool: int, attr: int) -> int:
    value: int = getattr(_driver_pool(pool), _ATTRIBUTES[attr])
    return value


def memPoolSetAttribute(pool: int, attr: int, value: int) -> None:
    """A high-water mark can be set to 0 only, and is then what there is now."""
    if value or attr not in (cudaMemPoolAttrReservedMemHigh, cudaMemPoolAttrUsedMemHigh):
        raise CUDARuntimeError(_INVALID_VALUE)
    found, name = _driver_pool(pool), _ATTRIBUTES[attr]
    setattr(found, name, getattr(found, name.removesuffix("_high")))


def memPoolTrimTo(pool: int, size: int) -> None:
    found = _driver_pool(pool)
    found.reserved = min(found.reserved, max(size, found.needed()))


def _driver_pool(pool: int) -> _machine.DriverPool:
    return _machine.driver_pools[pool - 0xA51C]


def memcpy(dst: int, src: int, size: int, kind: int) -> None:
    if kind not in range(5):
        raise CUDARuntimeError(_INVALID_VALUE)
    ctypes.memmove(dst, src, size)


def memcpyAsync(dst: int, src: int, size: int, kind: int, stream: int) -> None:
    memcpy(dst, src, size, kind)


def memcpyPeer(dst: int, dstDevice: int, src: int, srcDevice: int, size: int) -> None:
    memcpy(dst, src, size, memcpyDeviceToDevice)


def memcpyPeerAsync(dst: int, dstDevice: int, src: int, srcDevice: int, size: int, stream: int) -> None:
    memcpy(dst, src, size, memcpyDeviceToDevice)


def memset(ptr: int, value: int, size: int) -> None:
    ctypes.memset(ptr, value, size)


def memsetAsync(ptr: int, value: int, size: int, stream: int) -> None:
    memset(ptr, value, size)


def deviceSynchronize() -> None:
    pass


def streamSynchronize(stream: int) -> None:
    pass


def deviceCanAccessPeer(device: int, peerDevice: int) -> int:
    return 0


def driverGetVersion() -> int:
    return 12080


def runtimeGetVersion() -> int:
    return 12080
