"""What the NVIDIA driver says about the memory of a GPU and of this process on it, through NVML.

`read(pci_bus_id)` gives a Reading and raises nothing: a figure that cannot be had is unavailable, with the reason in
plain words.  NVML comes as the module `pynvml` of the package nvidia-ml-py, imported when it is first asked.  Nothing
here touches CUDA, which would create a context, and so the very memory that is to be measured.

NVML numbers GPUs in its own order and knows nothing of CUDA_VISIBLE_DEVICES, so a GPU is named by what CUDA says of it:
its PCI bus id, and its UUID, which alone tells one MIG instance from another.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

Quality = Literal["exact", "sampled", "unavailable"]

INSTALL = "pip install nvidia-ml-py"
SAMPLER = "gpuad-nvml"  # the name of the thread that takes samples
PATIENCE = 5.0  # seconds that a Sampler waits for its thread
SCRAMBLED = ("535.43.", "535.54.", "535.86.")  # drivers whose third list of processes has another layout
UNKNOWN_BYTES = 2**64 - 1  # how NVML's structures say that a number is not available
SAYS = {  # by the name of pynvml's exception, without NVMLError_
    "LibraryNotFound": "the NVIDIA driver is not installed: its library NVML is not found",
    "DriverNotLoaded": "the NVIDIA driver is not running",
    "LibRmVersionMismatch": "the NVIDIA driver was updated while it ran: restart the machine",
    "FunctionNotFound": "the NVIDIA driver is too old to tell",
    "NoPermission": "NVML refuses: this user, or this container, has no permission",
    "Uninitialized": "NVML was shut down by other code in this process",
    "NotFound": "NVML knows no such GPU or process",
    "NotSupported": "NVML does not tell this for this GPU or on this system",
    "GpuIsLost": "the GPU is lost: it no longer answers the driver",
}


@dataclass(frozen=True)
class Figure:
    """A number of bytes, and how far to trust it.

    "sampled" is a bound or a guess that stands for it, and `reason` says which.  Where it is "unavailable" there is
    no number, and `reason` says why.
    """

    nbytes: int | None
    quality: Quality = "exact"
    reason: str = ""


@dataclass(frozen=True)
class Reading:
    """What NVML says at one moment. Of a GPU that is split by MIG, the instance counts as the device."""

    process: Figure  # what this process has on the device, its CUDA context included
    process_peak: Figure  # the most it ever had, of which some drivers are set to keep account
    used: Figure  # what all processes have on the device
    reserved: Figure  # what the driver keeps for itself, beside `used`
    total: Figure  # all memory of the device


class Refused(Exception):
    """NVML does not answer; the message says why."""


def unavailable(reason: str | Refused) -> Figure:
    """No number, and why."""
    return Figure(None, "unavailable", str(reason))


def read(pci_bus_id: str, uuid: str | None = None, *, held: int = 0, before: Reading | None = None) -> Reading:
    """What NVML says about the GPU at `pci_bus_id` ("0000:65:00.0"), and about this process on it.

    `uuid`, with or without "GPU-" or "MIG-" at its front, goes before the bus id.  `held` is what this process is known
    to hold at least.  Where NVML cannot tell this process from others, the only one listed is taken for it if it holds
    as much; else the growth of the device's use since `before`, a Reading from before this process used it.
    """
    try:
        with opened() as nvml:
            device = find_device(nvml, pci_bus_id, uuid)
            used, reserved, total = device_memory(nvml, device)
            process = process_memory(nvml, device, held)
            if process.nbytes is None and before is not None:
                process = growth(before.used, used, held, process.reason)
            return Reading(process, process_peak(nvml, device, held), used, reserved, total)
    except Refused as refused:
        nothing = unavailable(refused)
        return Reading(nothing, nothing, nothing, nothing, nothing)


# --- the library ----------------------------------------------------------------------------


@contextmanager
def opened() -> Iterator[Any]:
    """The module pynvml, with NVML initialized until the block ends. Blocks may nest, and run on several threads."""
    nvml = find_pynvml()
    with asking(nvml):
        nvml.nvmlInit()
    try:
        yield nvml
    finally:
        with suppress(nvml.NVMLError):  # other code has shut it down once too often
            nvml.nvmlShutdown()


def find_pynvml() -> Any:
    """The module pynvml of nvidia-ml-py."""
    nvml: Any = sys.modules.get("pynvml")
    if nvml is None:  # only then, because the filter below is that of all threads
        try:
            with warnings.catch_warnings():
                # The deprecated package pynvml makes every import of nvidia-ml-py warn of itself.
                warnings.simplefilter("ignore", FutureWarning)
                nvml = importlib.import_module("pynvml")
        except ImportError:
            raise Refused(f"the package nvidia-ml-py is not installed: {INSTALL}") from None
    if hasattr(nvml, "__path__"):  # that of nvidia-ml-py is one file
        remedy = f"pip uninstall pynvml, then {INSTALL} --force-reinstall"
        raise Refused(f"the module pynvml is that of the deprecated package pynvml, not of nvidia-ml-py: {remedy}")
    if not hasattr(nvml, "nvmlMemory_v2"):
        raise Refused(f"the module pynvml is not that of nvidia-ml-py 12 or newer: {INSTALL} --upgrade")
    return nvml


@contextmanager
def asking(nvml: Any) -> Iterator[None]:
    """Turn an error of NVML inside the block into Refused, which says in words what it means."""
    try:
        yield
    except nvml.NVMLError as error:
        name = type(error).__name__.removeprefix("NVMLError_")
        raise Refused(SAYS.get(name, f"NVML fails: {error}")) from error


# --- the device -----------------------------------------------------------------------------


def find_device(nvml: Any, pci_bus_id: str, uuid: str | None) -> Any:
    """NVML's handle of the GPU, or of the instance in use where MIG splits it."""
    name = (uuid or "").removeprefix("GPU-").removeprefix("MIG-")
    if name and (instance := by_uuid(nvml, f"MIG-{name}")) is not None:
        return instance
    gpu = by_uuid(nvml, f"GPU-{name}") if name else None
    if gpu is None:
        with asking(nvml):
            gpu = nvml.nvmlDeviceGetHandleByPciBusId(pci_bus_id)
    return find_instance(nvml, gpu) if is_split(nvml, gpu) else gpu


def by_uuid(nvml: Any, uuid: str) -> Any:
    """The handle of the GPU or MIG instance of this UUID; None where NVML gives none."""
    try:
        return nvml.nvmlDeviceGetHandleByUUID(uuid)
    except nvml.NVMLError:
        return None


def is_split(nvml: Any, gpu: Any) -> bool:
    """Whether MIG splits this GPU; most GPUs cannot be split, and say so by an error."""
    try:
        return bool(nvml.nvmlDeviceGetMigMode(gpu)[0] == nvml.NVML_DEVICE_MIG_ENABLE)
    except nvml.NVMLError:
        return False


def find_instance(nvml: Any, gpu: Any) -> Any:
    """The handle of the MIG instance that CUDA uses: the one it is told to use, or the only one in sight."""
    told = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    if told.startswith("MIG-") and (instance := by_uuid(nvml, told)) is not None:
        return instance
    with asking(nvml):
        places = nvml.nvmlDeviceGetMaxMigDeviceCount(gpu)
    instances = []
    for place in range(places):
        with suppress(nvml.NVMLError):  # the place is empty, or hidden from this container
            instances.append(nvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, place))
    if len(instances) == 1:
        return instances[0]
    raise Refused(
        f"MIG splits the GPU into {len(instances)} instances, and which of them this process uses is not known:"
        " set CUDA_VISIBLE_DEVICES to its UUID, which nvidia-smi -L lists"
    )


def device_memory(nvml: Any, device: Any) -> tuple[Figure, Figure, Figure]:
    """Used, reserved and total."""
    try:
        with asking(nvml):
            try:
                memory = nvml.nvmlDeviceGetMemoryInfo(device, version=nvml.nvmlMemory_v2)
                used, reserved = Figure(memory.used), Figure(memory.reserved)
            except nvml.NVMLError_FunctionNotFound:
                memory = nvml.nvmlDeviceGetMemoryInfo(device)
                used = Figure(memory.used, reason="with what the driver reserves, which it tells apart since R510")
                reserved = unavailable(SAYS["FunctionNotFound"])
        if not memory.total:  # some boards that share the CPU's memory say this, others refuse
            raise Refused(SAYS["NotSupported"])
    except Refused as refused:
        nothing = unavailable(refused)
        if nothing.reason == SAYS["NotSupported"]:
            nothing = unavailable(f"{refused}; a GPU that shares the CPU's memory has none of its own")
        return nothing, nothing, nothing
    return used, reserved, Figure(memory.total)


# --- this process ---------------------------------------------------------------------------


def process_memory(nvml: Any, device: Any, held: int) -> Figure:
    """What this process has on `device`, by the list of processes that compute there."""
    try:
        listed = processes(nvml, device)
    except Refused as refused:
        return unavailable(refused)
    pid = os.getpid()
    own = [nbytes for number, nbytes in listed if number == pid]  # one for each MIG instance, where there are some
    if None in own:
        return unavailable("NVML does not tell what single processes use, as under Windows, WSL and in some containers")
    total = sum(nbytes for nbytes in own if nbytes is not None)
    if own and total >= held:
        return Figure(total)
    reason = f"the process {pid} that NVML lists holds less than this one" if own else f"NVML lists no process {pid}"
    reason += ": in a container it may go by another number, or be hidden"
    alone = listed[0][1] if len(listed) == 1 else None
    if alone is not None and 0 < held <= alone:
        return Figure(alone, "sampled", f"a guess, from the only process listed, as {reason}")
    return unavailable(reason)


def processes(nvml: Any, device: Any) -> list[tuple[int, int | None]]:
    """(number, bytes or None) of every process that computes on `device`."""
    versions = ["v3", "v2"]  # nvidia-ml-py's function without a version is the newest alone, with an error of its own
    with asking(nvml):
        if nvml.nvmlSystemGetDriverVersion().startswith(SCRAMBLED):
            versions.remove("v3")
        for version in versions:
            function = getattr(nvml, f"nvmlDeviceGetComputeRunningProcesses_{version}", None)
            if function is not None:
                with suppress(nvml.NVMLError_FunctionNotFound):
                    return [(row.pid, known(row.usedGpuMemory)) for row in function(device)]
    raise Refused(SAYS["FunctionNotFound"])


def known(nbytes: int | None) -> int | None:
    """A number of bytes as NVML gives it, None where that is how it says that it does not know."""
    return None if nbytes in (0, UNKNOWN_BYTES) else nbytes


def growth(before: Figure, used: Figure, held: int, reason: str) -> Figure:
    """What this process has on the device, guessed from its use before and now; `reason` is why that is needed."""
    if before.nbytes is None or used.nbytes is None:
        return unavailable(reason)
    grown = used.nbytes - before.nbytes
    if grown < max(held, 1):
        return unavailable(f"{reason}; and the device's use grew by less than this process holds")
    return Figure(grown, "sampled", f"a guess, from what the device's use grew by, other processes' too, as {reason}")


def process_peak(nvml: Any, device: Any, held: int) -> Figure:
    """The most that this process ever had on `device`, where the driver keeps account of it."""
    pid = os.getpid()
    try:
        with asking(nvml):
            if nvml.nvmlDeviceGetAccountingMode(device) != nvml.NVML_FEATURE_ENABLED:
                return unavailable("the driver keeps no account of processes: nvidia-smi --accounting-mode=1 as root")
            account = nvml.nvmlDeviceGetAccountingStats(device, pid)
    except Refused as refused:
        return unavailable(refused)
    most = known(account.maxMemoryUsage)
    if most is None:
        return unavailable("the driver's account of this process says nothing of its memory")
    if most < held or not account.isRunning:
        return unavailable(f"the driver's account of process {pid} is another's: in a container numbers differ")
    return Figure(most)


# --- the timeline ---------------------------------------------------------------------------


class Sampler:
    """Readings while a block runs: its first and last moment, and every `interval` seconds between.

    They are for a timeline.  What happens between two of them is not seen, so their highest is a lower bound.  A
    reading that fails is left out, counted in `failures` by what it said, and warned of when the block ends.
    """

    def __init__(self, reader: Callable[[], Reading], interval: float = 0.02) -> None:
        self.reader = reader
        self.interval = interval
        self.readings: list[tuple[float, Reading]] = []  # with the seconds since the block began
        self.failures: Counter[str] = Counter()

    def __enter__(self) -> Sampler:
        self._began = time.perf_counter()
        self._end = threading.Event()
        self._open = ExitStack()
        with suppress(Refused):  # every reading will say so
            self._open.enter_context(opened())  # for all of them: it takes longer than a reading
        self._take()
        self._thread = threading.Thread(target=self._run, name=SAMPLER, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            self.failures[f"NVML did not answer for {PATIENCE} s"] += 1
        else:
            self._take()
            self._open.close()
        if self.failures:
            said = "; ".join(f"{text} ({times} times)" for text, times in self.failures.items())
            warnings.warn(f"readings of the GPU's memory failed: {said}", RuntimeWarning, stacklevel=2)

    def highest(self, row: Literal["process", "used"]) -> Figure:
        """The highest reading of a row, a lower bound of its peak."""
        figures = [getattr(reading, row) for _, reading in self.readings]
        seen = [figure for figure in figures if figure.nbytes is not None]
        if not seen:
            return figures[-1] if figures else unavailable("no reading was taken")
        highest = max(seen, key=lambda figure: figure.nbytes)
        also = f"; {highest.reason}" if highest.reason else ""
        reason = f"a lower bound, the highest of {len(seen)} readings {self.interval:g} s apart{also}"
        return Figure(highest.nbytes, "sampled", reason)

    def _run(self) -> None:
        while not self._end.wait(self.interval):
            self._take()

    def _take(self) -> None:
        """One more reading."""
        moment = time.perf_counter() - self._began
        try:
            reading = self.reader()
        except Exception as error:
            self.failures[f"{type(error).__name__}: {error}"] += 1
        else:
            self.readings.append((moment, reading))
