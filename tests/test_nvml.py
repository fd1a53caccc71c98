"""What NVML is asked and how its answers are read, against a stand-in for the module pynvml."""

import ctypes
import importlib
import inspect
import os
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import replace
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType

import pytest

from gpuad.memory import nvml
from gpuad.memory.nvml import Figure, Reading, Sampler, read
from stand_in.nvml import CLASSES, NVMLError, installed
from stand_in.nvml import Gpu as Described
from stand_in.nvml import Library as Pynvml

ROOT = Path(__file__).parents[1]
PID = os.getpid()
GIB = 2**30
PCI = "0000:65:00.0"
GPU_UUID = "11111111-2222-3333-4444-555555555555"
MIG_UUID = "99999999-8888-7777-6666-555555555555"


def gpu(**of_it):
    """A GPU of 80 GiB: 5 GiB in use, 3 of them by this process."""
    usual = {"uuid": f"GPU-{GPU_UUID}", "pci_bus_id": PCI, "used": 5 * GIB, "processes": [(PID, 3 * GIB), (7, 2 * GIB)]}
    return Described(**{**usual, **of_it})


def reading(*gpus, driver="570.86.15", refuses=None, pci_bus_id=PCI, uuid=None, **known):
    """What `read` gives on a machine with these GPUs."""
    with installed(Pynvml(list(gpus), driver=driver, refuses=refuses)) as library:
        found = read(pci_bus_id, uuid, **known)
    assert library.opened == 0
    return found


def unavailable(figure, *words):
    """Is there no number, and a reason of one line with these words?"""
    assert (figure.nbytes, figure.quality) == (None, "unavailable")
    assert "\n" not in figure.reason and [word for word in words if word not in figure.reason] == []
    return True


def nothing(found, *words):
    """Is no figure of a reading available, for a reason with these words?"""
    return all(unavailable(getattr(found, row), *words) for row in Reading.__dataclass_fields__)


# --- where NVML answers ---------------------------------------------------------------------------------


def test_a_reading_tells_the_process_and_the_device():
    found = reading(gpu(accounts={PID: (4 * GIB, True)}))
    assert found == Reading(Figure(3 * GIB), Figure(4 * GIB), Figure(5 * GIB), Figure(GIB // 2), Figure(80 * GIB))
    assert all(figure.quality == "exact" and not figure.reason for figure in vars(found).values())


def test_nothing_is_imported_until_it_is_asked():
    program = "import sys, gpuad.memory.nvml as n; n.Sampler(lambda: None); print('pynvml' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert shown.stdout.split() == ["False"]


def test_reading_only_reads():
    with installed(Pynvml([gpu()])) as library:
        read(PCI, GPU_UUID)
    assert not [call for call in library.calls if "Get" not in call and call not in ("nvmlInit", "nvmlShutdown")]
    assert library.calls[0] == "nvmlInit" and library.calls[-1] == "nvmlShutdown"


def test_rows_of_one_process_add_up():
    assert reading(gpu(processes=[(PID, GIB), (7, GIB), (PID, 2 * GIB)])).process == Figure(3 * GIB)


def test_library_is_shut_down_as_often_as_it_was_initialized():
    with installed(Pynvml([gpu()])) as library, nvml.opened():
        read(PCI)
        read(PCI)
        assert library.opened == 1
    assert library.opened == 0
    assert library.calls.count("nvmlInit") == library.calls.count("nvmlShutdown") == 3


@pytest.mark.parametrize("given", [PCI, "00000000:65:00.0"])
def test_gpu_is_found_by_its_place_whatever_its_number_is(given):
    first, second = gpu(uuid="GPU-a", pci_bus_id="0000:01:00.0", used=GIB), gpu(pci_bus_id=given)
    assert reading(first, second).used == Figure(5 * GIB)
    assert reading(second, first).used == Figure(5 * GIB)


@pytest.mark.parametrize("uuid", [GPU_UUID, f"GPU-{GPU_UUID}"])
def test_uuid_goes_before_the_place(uuid):
    other = gpu(uuid="GPU-a", pci_bus_id="0000:01:00.0", used=GIB)
    assert reading(other, gpu(), pci_bus_id="0000:01:00.0", uuid=uuid).used == Figure(5 * GIB)
    assert reading(other, gpu(), pci_bus_id="0000:01:00.0", uuid="GPU-nowhere").used == Figure(GIB)


# --- where there is no NVML -----------------------------------------------------------------------------


def test_missing_package_is_named_with_what_installs_it():
    with installed(None):
        assert nothing(read(PCI), "nvidia-ml-py is not installed", "pip install nvidia-ml-py")


def test_deprecated_package_is_named_with_the_way_out():
    old = ModuleType("pynvml")
    old.__path__ = []
    with installed(old):
        assert nothing(read(PCI), "deprecated package pynvml", "pip uninstall pynvml")


def test_other_modules_of_that_name_are_refused():
    with installed(ModuleType("pynvml")):
        assert nothing(read(PCI), "nvidia-ml-py 12 or newer")


def test_warning_of_the_deprecated_package_is_not_passed_on(monkeypatch, tmp_path):
    """It wraps the import of nvidia-ml-py, and warns of itself."""

    class Redirector:
        def find_spec(self, name, path=None, target=None):
            if name == "pynvml":
                warnings.warn("The pynvml package is deprecated.", FutureWarning, stacklevel=2)
                return PathFinder.find_spec(name, [str(tmp_path)])

    (tmp_path / "pynvml.py").write_text("from stand_in.nvml import NVMLError\nnvmlMemory_v2 = 1\n")
    monkeypatch.setattr(sys, "meta_path", [Redirector(), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    try:
        assert nvml.find_pynvml().NVMLError is NVMLError
    finally:
        sys.modules.pop("pynvml", None)


@pytest.mark.parametrize(
    "error, words",
    [
        ("LibraryNotFound", "driver is not installed"),
        ("DriverNotLoaded", "driver is not running"),
        ("LibRmVersionMismatch", "restart the machine"),
        ("NoPermission", "no permission"),
        ("Unknown", "NVML fails: Unknown Error"),
    ],
)
def test_library_that_does_not_start_is_a_reason(error, words):
    assert nothing(reading(gpu(), refuses={"nvmlInit": error}), words)


@pytest.mark.parametrize(
    "error, words",
    [
        ("NotFound", "no such GPU"),
        ("NoPermission", "no permission"),
        ("GpuIsLost", "the GPU is lost"),
        ("Uninitialized", "shut down by other code"),
        ("Unknown", "NVML fails: Unknown Error"),
    ],
)
def test_gpu_that_is_not_found_is_a_reason(error, words):
    assert nothing(reading(gpu(), refuses={"nvmlDeviceGetHandleByPciBusId": error}), words)


def test_library_that_others_shut_down_is_a_reason():
    class Interrupted(Pynvml):
        def nvmlSystemGetDriverVersion(self):
            self.opened = 0
            return super().nvmlSystemGetDriverVersion()

    with installed(Interrupted([gpu()])):
        found = read(PCI)
    assert found.used == Figure(5 * GIB)
    assert unavailable(found.process, "shut down by other code")
    assert unavailable(found.process_peak, "shut down by other code")


# --- where it answers in part ---------------------------------------------------------------------------


@pytest.mark.parametrize("error", ["NoPermission", "Unknown", "NotSupported"])
def test_one_refusal_leaves_the_other_figures(error):
    assert unavailable(reading(gpu(refuses={"nvmlDeviceGetComputeRunningProcesses_v3": error})).process)
    found = reading(gpu(refuses={"nvmlDeviceGetMemoryInfo_v2": error}))
    assert found.process == Figure(3 * GIB)
    assert all(unavailable(figure) for figure in (found.used, found.reserved, found.total))


@pytest.mark.parametrize("of_it", [{"refuses": {"nvmlDeviceGetMemoryInfo_v2": "NotSupported"}}, {"total": 0}])
def test_board_that_shares_the_memory_of_the_cpu_says_so(of_it):
    found = reading(gpu(**of_it))
    assert unavailable(found.used, "shares the CPU's memory") and unavailable(found.total, "shares the CPU's memory")
    assert found.process == Figure(3 * GIB)


def test_older_driver_is_asked_in_the_older_ways():
    missing = {
        "nvmlDeviceGetMemoryInfo_v2": "FunctionNotFound",
        "nvmlDeviceGetComputeRunningProcesses_v3": "FunctionNotFound",
    }
    found = reading(gpu(), driver="470.82.01", refuses=missing)
    assert found.process == Figure(3 * GIB)
    assert (found.used.nbytes, found.used.quality) == (5 * GIB + GIB // 2, "exact")
    assert "what the driver reserves" in found.used.reason
    assert unavailable(found.reserved, "too old") and found.total == Figure(80 * GIB)


def test_oldest_driver_lists_no_processes():
    missing = {f"nvmlDeviceGetComputeRunningProcesses_{version}": "FunctionNotFound" for version in ("v2", "v3")}
    found = reading(gpu(), refuses=missing)
    assert unavailable(found.process, "too old") and found.used == Figure(5 * GIB)


def test_binding_without_the_second_list_is_no_error(monkeypatch):
    monkeypatch.delattr(Pynvml, "nvmlDeviceGetComputeRunningProcesses_v2")
    assert reading(gpu()).process == Figure(3 * GIB)
    assert unavailable(reading(gpu(), driver="535.54.03").process, "too old")


@pytest.mark.parametrize("driver", ["535.43.02", "535.54.03", "535.86.10", "535.104.05", "535.98", "550.54.14"])
def test_drivers_that_scramble_the_third_list_are_asked_for_the_second(driver):
    refuses = {"nvmlDeviceGetComputeRunningProcesses_v3": "FunctionNotFound"} if driver == "535.98" else {}
    assert reading(gpu(), driver=driver, refuses=refuses, held=GIB).process == Figure(3 * GIB)


@pytest.mark.parametrize("said", [None, 2**64 - 1, 0])
def test_not_available_is_not_a_number(said):
    found = reading(gpu(processes=[(PID, said)]), held=GIB)
    assert unavailable(found.process, "WSL")
    assert found.used == Figure(5 * GIB)


def test_growth_of_the_device_stands_for_a_process_it_does_not_tell():
    before = reading(gpu(processes=[], used=GIB))
    found = reading(gpu(processes=[(PID, None)]), held=GIB, before=before).process
    assert (found.nbytes, found.quality) == (4 * GIB, "sampled")
    assert "a guess" in found.reason and "other processes' too" in found.reason and "WSL" in found.reason
    assert reading(gpu(), before=before).process == Figure(3 * GIB)
    assert unavailable(reading(gpu(processes=[]), held=5 * GIB, before=before).process, "grew by less")
    assert unavailable(reading(gpu(processes=[]), before=reading(gpu(total=0))).process, f"no process {PID}")


def test_process_of_another_number_is_missing():
    found = reading(gpu(processes=[(PID + 1, 3 * GIB), (PID + 2, 3 * GIB)]), held=GIB)
    assert unavailable(found.process, f"lists no process {PID}", "container")
    assert unavailable(reading(gpu(processes=[]), held=GIB).process, "container")


def test_only_process_is_taken_for_this_one_if_it_holds_enough():
    alone = gpu(processes=[(PID + 1, 3 * GIB)])
    found = reading(alone, held=2 * GIB).process
    assert (found.nbytes, found.quality) == (3 * GIB, "sampled")
    assert "a guess" in found.reason and f"lists no process {PID}" in found.reason
    assert unavailable(reading(alone, held=4 * GIB).process, "container")
    assert unavailable(reading(alone).process, "container")  # nothing tells that this process is there at all


def test_process_that_holds_too_little_is_not_this_one():
    found = reading(gpu(processes=[(PID, GIB)]), held=2 * GIB)
    assert unavailable(found.process, f"process {PID}", "holds less")


# --- MIG ------------------------------------------------------------------------------------------------


def split(*instances):
    """A GPU that MIG splits, which tells its own memory to nobody."""
    return gpu(instances=list(instances))


def instance(uuid=MIG_UUID, **of_it):
    return gpu(**{"uuid": f"MIG-{uuid}", "pci_bus_id": "ffff:00:00.0", "total": 20 * GIB, "used": 4 * GIB, **of_it})


@pytest.fixture(autouse=True)
def no_choice(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize("uuid", [MIG_UUID, f"MIG-{MIG_UUID}"])
def test_instance_is_found_by_its_uuid(uuid):
    found = reading(split(instance("a", used=GIB), instance()), uuid=uuid)
    assert (found.process, found.used, found.total) == (Figure(3 * GIB), Figure(4 * GIB), Figure(20 * GIB))


def test_instance_by_an_older_name_is_found():
    assert reading(split(instance(f"GPU-{GPU_UUID}/3/0")), uuid=f"MIG-GPU-{GPU_UUID}/3/0").used == Figure(4 * GIB)


def test_only_instance_in_sight_is_the_one_in_use():
    assert reading(split(None, instance(), None), uuid=GPU_UUID).used == Figure(4 * GIB)


def test_instance_that_cuda_is_told_to_use_is_the_one(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"MIG-{MIG_UUID}")
    assert reading(split(instance("a", used=GIB), instance())).used == Figure(4 * GIB)


def test_one_of_several_instances_is_not_guessed(monkeypatch):
    assert nothing(reading(split(instance("a"), instance("b"))), "2 instances", "CUDA_VISIBLE_DEVICES", "nvidia-smi -L")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert nothing(reading(split(instance("a"), instance("b"))), "2 instances")


def test_gpu_that_cannot_be_split_says_so_by_an_error():
    assert reading(gpu(refuses={"nvmlDeviceGetMigMode": "NotSupported"})).used == Figure(5 * GIB)


# --- the driver's account -------------------------------------------------------------------------------


def test_account_that_is_off_stays_off():
    assert unavailable(reading(gpu()).process_peak, "keeps no account", "as root")


@pytest.mark.parametrize(
    "accounts, words",
    [
        ({}, "no such"),
        ({PID: (4 * GIB, False)}, "another's"),
        ({PID: (GIB, True)}, "another's"),
        ({PID: (None, True)}, "nothing of its memory"),
    ],
)
def test_account_of_another_process_is_not_taken(accounts, words):
    assert unavailable(reading(gpu(accounts=accounts), held=2 * GIB).process_peak, words)


# --- the timeline ---------------------------------------------------------------------------------------


def figures(used, process=None):
    """A reading with these bytes."""
    of_process = Figure(process) if process is not None else nvml.unavailable("not told")
    return Reading(of_process, nvml.unavailable(""), Figure(used), Figure(0), Figure(100))


def test_sampler_reads_from_the_first_moment_to_the_last_and_then_stops():
    said = iter(range(10**9))
    with Sampler(lambda: figures(next(said)), interval=0.001) as sampler:
        while len(sampler.readings) < 5:
            time.sleep(0.001)
    count = len(sampler.readings)
    times = [seconds for seconds, _ in sampler.readings]
    assert times == sorted(times) and times[0] >= 0
    assert [taken.used.nbytes for _, taken in sampler.readings] == list(range(count))
    assert "gpuad-nvml" not in [thread.name for thread in threading.enumerate()]
    time.sleep(0.01)
    assert len(sampler.readings) == count


def test_highest_reading_is_called_a_lower_bound():
    said = iter([70, 30])
    with Sampler(lambda: figures(next(said)), interval=60.0) as sampler:
        pass
    highest = sampler.highest("used")
    assert (highest.nbytes, highest.quality) == (70, "sampled")
    assert highest.reason == "a lower bound, the highest of 2 readings 60 s apart"
    assert unavailable(sampler.highest("process"), "not told")
    assert unavailable(Sampler(lambda: figures(0)).highest("used"), "no reading")


def test_guess_stays_marked_in_the_timeline():
    guessed = replace(figures(10), process=Figure(5, "sampled", "a guess"))
    with Sampler(lambda: guessed, interval=60.0) as sampler:
        pass
    assert sampler.highest("process").reason.endswith("; a guess")


def test_sampler_stops_when_the_block_fails():
    with pytest.raises(KeyError), Sampler(lambda: figures(1), interval=0.001):
        raise KeyError
    assert "gpuad-nvml" not in [thread.name for thread in threading.enumerate()]


def test_failing_readings_are_counted_and_told():
    calls = []

    def reader():
        calls.append(threading.current_thread().name)
        if len(calls) % 2:
            raise OSError("no answer")
        return figures(1)

    said = r"failed: OSError: no answer \(\d+ times\)"
    with pytest.warns(RuntimeWarning, match=said), Sampler(reader, interval=0.001) as sampler:
        while len(calls) < 6:
            time.sleep(0.001)
    assert sampler.failures["OSError: no answer"] == (len(calls) + 1) // 2
    assert len(sampler.readings) == len(calls) // 2
    assert "gpuad-nvml" in calls


def test_library_that_hangs_does_not_hold_up_the_end(monkeypatch):
    monkeypatch.setattr(nvml, "PATIENCE", 0.01)
    go_on, hangs = threading.Event(), threading.Event()

    def reader():
        if threading.current_thread() is not threading.main_thread():
            hangs.set()
            go_on.wait()
        return figures(1)

    with pytest.warns(RuntimeWarning, match="did not answer"), Sampler(reader, interval=0.0) as sampler:
        hangs.wait()
    go_on.set()
    sampler._thread.join()


def test_sampler_initializes_the_library_once():
    with installed(Pynvml([gpu()])) as library:
        with Sampler(lambda: read(PCI), interval=0.001) as sampler:
            while len(sampler.readings) < 4:
                time.sleep(0.001)
            assert library.opened >= 1
        assert library.opened == 0
    assert sampler.highest("process").nbytes == 3 * GIB


def test_sampler_without_nvml_says_why():
    with installed(None), Sampler(lambda: read(PCI), interval=60.0) as sampler:
        pass
    assert not sampler.failures and unavailable(sampler.highest("process"), "nvidia-ml-py is not installed")


# --- the real package -----------------------------------------------------------------------------------


@pytest.fixture
def real():
    """The module pynvml of nvidia-ml-py."""
    pynvml = pytest.importorskip("pynvml", reason="needs nvidia-ml-py to compare with: pip install nvidia-ml-py")
    assert not isinstance(pynvml, Pynvml)
    return pynvml


def test_every_name_and_signature_is_that_of_nvidia_ml_py(real):
    calls = {name: value for name, value in vars(Pynvml).items() if not name.startswith("_")}
    assert len(calls) > 12
    for name, ours in calls.items():
        theirs = getattr(real, name)
        if inspect.isfunction(ours):
            told = list(inspect.signature(theirs).parameters.values())
            mine = list(inspect.signature(ours).parameters.values())[1:]
            assert [(p.name, p.default) for p in mine] == [(p.name, p.default) for p in told], name
        elif name != "NVMLError":
            assert ours == theirs, name


def test_every_error_is_that_of_nvidia_ml_py(real):
    for value, ours in CLASSES.items():
        theirs = type(real.NVMLError(value))
        assert theirs.__name__ == ours.__name__ == type(NVMLError(value)).__name__
        assert theirs.__mro__[1] is real.NVMLError and ours.__mro__[1] is NVMLError
    assert {f"NVMLError_{name}" for name in nvml.SAYS} <= set(dir(real))


def test_every_answer_has_the_fields_of_nvidia_ml_py(real):
    described = gpu(accounts={PID: (GIB, True)})
    library = Pynvml([described])
    library.nvmlInit()
    answers = {
        "c_nvmlMemory_v2_t": library.nvmlDeviceGetMemoryInfo(described, version=real.nvmlMemory_v2),
        "c_nvmlMemory_t": library.nvmlDeviceGetMemoryInfo(described),
        "c_nvmlProcessInfo_t": library.nvmlDeviceGetComputeRunningProcesses_v3(described)[0],
        "c_nvmlAccountingStats_t": library.nvmlDeviceGetAccountingStats(described, PID),
    }
    for name, answer in answers.items():
        assert set(vars(answer)) <= {field for field, *_ in getattr(real, name)._fields_}, name


def test_real_package_without_a_driver_is_a_reason(real):
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        assert nothing(read(PCI), "driver is not installed")
    else:
        pytest.skip("needs a machine without the NVIDIA driver")


def test_function_without_a_version_fails_with_no_error_of_nvml(real):
    """Where the driver lacks the newest list: the reason why the lists are asked for by their versions."""
    assert not issubclass(importlib.import_module("pynvml").NVMLLibraryMismatchError, real.NVMLError)
