"""The reconciliation and the limits of a step: blocks of known size on CuPy's pool, or the stand-in's, and by hand."""

import gc
import importlib.util
import json
import os
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import numpy as np
import pytest

import gpuad
from gpuad import memory, nn, optim
from gpuad.attribution import ledgers
from gpuad.buffer import observers
from gpuad.devices import device as find_device
from gpuad.errors import DataError, DeviceError, OutOfMemoryError
from gpuad.fuse.plan import realize
from gpuad.memory.limits import certify, smallest_limit
from gpuad.memory.reconcile import reconciled
from gpuad.memory.sizes import parse_bytes
from stand_in import nvml
from test_pool import CUPYS_POOL

UINT8 = np.dtype(np.uint8)
MIB = 2**20
PID = os.getpid()


@pytest.fixture
def cupy(cuda, monkeypatch):
    """CuPy, or what stands for it, with a pool of its own for the test, and no error word before the first check."""
    device = find_device(cuda)
    gc.collect()
    monkeypatch.setattr(device.checks, "word", None)
    with device.xp.cuda.using_allocator(device.xp.cuda.MemoryPool().malloc):
        yield device.xp


@pytest.fixture
def pool(cupy):
    return cupy.cuda.get_allocator().__self__


@pytest.fixture(params=["pool", "simulated"])
def counted(request, cuda, cupy):
    """A device with CuPy's pool, or the meta device like it, whose pool is simulated."""
    device = find_device(cuda)
    return device if request.param == "pool" else find_device("meta", like=f"cuda:{device.engine}")


def take(device, nbytes):
    """A Buffer of so many bytes."""
    return find_device(device).allocate((nbytes,), UINT8)


def rows(profile):
    """{row: (bytes, quality)}, and the notes as {row: note}."""
    found = profile.reconciliation
    assert len({r.row for r in found}) == len(found)
    assert all(r.quality == ("unavailable" if r.nbytes is None else r.quality) and r.note for r in found)
    return {r.row: (r.nbytes, r.quality) for r in found}, {r.row: r.note for r in found}


def blocks(device):
    """Takes 600 and 100 bytes, frees the 600 and takes 2,000: in units of 512 bytes 2 + 1, then 1 + 4.

    The pool takes segments of 2, 1 and 4 units; below a limit of 5 it gives back the first before it takes the last.
    """

    def step():
        a = take(device, 600)
        b = take(device, 100)
        del a
        return b, take(device, 2000)

    return step


# --- the pool -----------------------------------------------------------------------------------


def test_blocks_are_counted_from_what_was_asked_for_to_what_was_reserved(counted):
    found, notes = rows(reconciled(counted, blocks(counted), "blocks"))
    quality = "exact" if counted.computes else "sampled"
    assert found["logical"] == (2100, "exact")
    assert found["rounded"] == (5 * 512, "exact")
    assert found["pool used"] == (5 * 512, quality)
    assert found["pool reserved"] == (7 * 512, quality)
    assert "outside the ledger" not in found
    assert counted.computes or "simulated" in notes["pool reserved"]


def test_peak_of_rounded_bytes_may_be_another_than_that_of_bytes(counted):
    def step():
        large = take(counted, 1024)
        del large
        return [take(counted, 1) for _ in range(3)]

    found, _ = rows(reconciled(counted, step))
    assert found["logical"][0] == 1024 and found["rounded"][0] == found["pool used"][0] == 3 * 512


def test_what_was_alive_before_is_in_every_row(counted):
    before = take(counted, 5000)
    found, _ = rows(reconciled(counted, blocks(counted)))
    assert [found[row][0] for row in ("logical", "rounded", "pool used")] == [7100, 15 * 512, 15 * 512]
    assert found["pool reserved"][0] == 17 * 512 and before.shape == (5000,)


def test_what_cupy_takes_for_itself_is_outside_the_ledger(cuda, cupy):
    def step():
        a = take(cuda, 1000)
        temporary = cupy.empty(700, "u1")
        del temporary
        return a

    theirs = cupy.empty(5000, "u1")
    found, notes = rows(reconciled(cuda, step))
    assert found["rounded"] == (1024, "exact")
    assert found["outside the ledger"] == (5120 + 1024, "exact")
    assert found["pool used"] == (5120 + 2048, "exact")
    assert "5.00 KiB before the step, 5.00 KiB after the step" in notes["outside the ledger"]
    assert theirs.nbytes == 5000


def test_results_of_cupy_count_as_ours_from_the_beginning(cuda, cupy):
    def step():
        made = cupy.empty(3000, "u1")
        beside = cupy.empty(600, "u1")
        ours = find_device(cuda).adopt(made)
        del beside
        return ours

    found, _ = rows(reconciled(cuda, step))
    assert found["rounded"] == (3072, "exact")
    assert found["outside the ledger"] == (1024, "exact") and found["pool used"] == (4096, "exact")


def test_array_that_outlives_its_buffer_is_outside_the_ledger(cuda, cupy):
    left = []
    step = lambda: left.append(find_device(cuda).export_array(take(cuda, 1000)))
    found, notes = rows(reconciled(cuda, step))
    assert found["outside the ledger"] == (0, "exact")  # at the high-water mark it was a Buffer's
    assert "1.00 KiB after the step" in notes["outside the ledger"]


def test_memory_of_other_libraries_is_not_the_pools(cuda, cupy):
    memory = cupy.cuda.memory.Memory(4096)  # from the driver, as that of others
    theirs = cupy.ndarray((4096,), UINT8, cupy.cuda.MemoryPointer(memory, 0))
    borrowed = find_device(cuda).adopt(theirs, borrowed=True)
    found, _ = rows(reconciled(cuda, blocks(cuda)))
    assert found["logical"][0] == 4096 + 2100 and borrowed.shape == (4096,)
    assert found["pool used"] == (5 * 512, "exact") and "outside the ledger" not in found


def test_high_water_mark_of_the_pool_stays_when_it_gives_back(cuda, pool):
    def step():
        take(cuda, 4096)
        pool.free_all_blocks()
        take(cuda, 1024)

    found, notes = rows(reconciled(cuda, step))
    assert found["pool reserved"] == (4096, "exact") and "gave 3.00 KiB back" in notes["pool reserved"]


def test_allocations_of_other_threads_are_missed_and_that_is_said(cuda, pool):
    kept, done = [], threading.Event()
    idle = threading.Thread(target=done.wait)

    def step():
        thread = threading.Thread(target=lambda: kept.append(pool.malloc(600)))
        thread.start()
        thread.join()
        return take(cuda, 100)

    idle.start()
    try:
        alone, notes = rows(reconciled(cuda, blocks(cuda)))
        others = f"not those of {threading.active_count() - 1} other"
        assert alone["pool used"] == (5 * 512, "exact") and others in notes["pool used"]
        found, notes = rows(reconciled(cuda, step))
        assert found["pool used"] == (512, "sampled") and "1.00 KiB after the step" in notes["pool used"]
    finally:
        done.set()
        idle.join()


def test_marks_are_places_where_the_pool_is_compared(cuda, cupy):
    x, kept = gpuad.asarray(np.ones(100, "f4"), device=cuda).requires_grad_(), []

    def step():
        y = gpuad.sum(x * x)
        kept.append(cupy.empty(600, "u1"))
        y.backward()
        kept.clear()

    step()
    _, notes = rows(reconciled(cuda, step))
    said = notes["outside the ledger"]
    assert "0 B before the step, 1.00 KiB forward end, 1.00 KiB backward end, 0 B after the step" in said


def test_a_step_that_fails_leaves_nothing_behind(cuda, cupy):
    def step():
        take(cuda, 100)
        raise KeyError("of the user")

    with pytest.raises(KeyError, match="of the user"):
        reconciled(cuda, step)
    assert not observers and not ledgers
    assert not cupy.cuda.memory_hook.get_memory_hooks()
    assert rows(reconciled(cuda, blocks(cuda)))[0]["pool used"] == (5 * 512, "exact")


def test_profiles_of_two_steps_may_be_one_in_the_other(cuda, cupy):
    inner = []

    def step():
        kept = take(cuda, 1024)
        inner.append(reconciled(cuda, blocks(cuda)))
        return kept

    outer, _ = rows(reconciled(cuda, step))
    assert outer["pool used"] == (7 * 512, "exact")
    assert rows(inner[0])[0]["pool used"] == (7 * 512, "exact")


def test_each_of_two_gpus_is_reconciled_alone(cuda, cupy):
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("needs two GPUs")
    devices = [find_device(f"cuda:{k}") for k in range(2)]
    described = [described_gpu(cupy, index, (index + 1) * 100 * MIB) for index in range(2)]

    def step():
        assert cupy.cuda.runtime.getDevice() == 0
        return take(devices[0], 10_000), take(devices[1], 1000)

    with nvml.installed(nvml.Library(described)):
        first, second = (rows(reconciled(device, step))[0] for device in devices)
    assert [found["pool used"][0] for found in (first, second)] == [10_240, 1024]
    assert [found["process (NVML)"][0] for found in (first, second)] == [100 * MIB, 200 * MIB]


def test_driver_s_own_pool_tells_its_marks(cuda):
    cupy = find_device(cuda).xp
    with cupy.cuda.using_allocator(cupy.cuda.MemoryAsyncPool().malloc):

        def step():
            a = take(cuda, 40 * MIB)
            del a
            return take(cuda, 10 * MIB)

        take(cuda, 200 * MIB)
        found, notes = rows(reconciled(cuda, step))
        assert found["logical"] == (40 * MIB, "exact")
        assert 40 * MIB <= found["pool used"][0] <= 50 * MIB <= found["pool reserved"][0] < 200 * MIB
        assert found["pool used"][1] == found["pool reserved"][1] == "exact"
        assert "the driver keeps" in notes["pool used"]
        with pytest.raises(DeviceError, match=r"MemoryPool, which alone keeps to a limit[\s\S]*set_allocator"):
            certify(step, "1GiB", cuda)


def test_other_allocators_tell_nothing(cuda):
    cupy = find_device(cuda).xp
    with cupy.cuda.using_allocator(None):
        found, notes = rows(reconciled(cuda, blocks(cuda)))
    assert found["rounded"] == (5 * 512, "exact")
    assert found["pool used"] == found["pool reserved"] == (None, "unavailable")
    assert "none of its pools" in notes["pool used"]


def test_training_takes_of_the_pool_what_the_dry_run_says(cuda, cupy):
    def used(device):
        device = find_device(device)
        with gpuad.use_device(device):
            model = nn.Linear(100, 300, generator=gpuad.random.Generator(0))
            adam, x = optim.AdamW(model.parameters(), lr=1e-3), gpuad.asarray(np.ones((64, 100), "f4"))

            def step():
                gpuad.sum(gpuad.tanh(model(x))).backward()
                adam.step()
                adam.zero_grad()

            step()
            return rows(reconciled(device, step))[0]

    measured, simulated = used(cuda), used(find_device("meta", like=f"cuda:{find_device(cuda).engine}"))
    assert measured["logical"][0] == simulated["logical"][0] + 16  # the GPU's error word
    outside = measured.get("outside the ledger", (0, ""))[0]
    assert measured["pool used"] == (simulated["pool used"][0] + 512 + outside, "exact")


ON_CUPYS_POOL = r"""
import contextlib, types
import cupy
from gpuad.memory import cupy_pool
from gpuad.provenance import here

end = 512

def segment(nbytes, device):
    global end
    end += nbytes
    return end - nbytes

pool = memory.SingleDeviceMemoryPool(memory.PythonFunctionAllocator(segment, lambda address, device: None).malloc)

class Machine:
    index = 0
    xp = types.SimpleNamespace(cuda=types.SimpleNamespace(
        MemoryHook=cupy.cuda.MemoryHook, Device=lambda index: contextlib.nullcontext()))
    def allocate(self, nbytes, site):
        return pool.malloc(nbytes)

hooked = cupy_pool.Hooked(Machine(), pool)
hooked.trim()
with hooked.limited(7 * 512), hooked.watched():
    a = pool.malloc(600)
    b = pool.malloc(100)
    del a
    pool.malloc(0)
    c = pool.malloc(2000)
    try:
        Machine().allocate(2000, here())
    except memory.OutOfMemoryError:
        pass
    del b, c
    pool.free_all_blocks()
found = {row.row: [row.nbytes, row.quality] for row in hooked.rows()}
print(json.dumps([found, vars(hooked.failure), pool.get_limit()]))
"""


def test_hook_sees_on_cupys_own_pool_what_it_sees_on_the_stand_in():
    """CuPy's pool runs without a driver, as test_pool.py has it."""
    if importlib.util.find_spec("cupy") is None:
        pytest.skip("needs CuPy itself: pip install cupy-cuda12x")
    program = CUPYS_POOL.partition("def run(")[0] + ON_CUPYS_POOL
    command = [sys.executable, "-W", "ignore", "-c", program]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert not shown.returncode, shown.stderr
    found, failure, limit = json.loads(shown.stdout)
    assert found == {
        "outside the ledger": [5 * 512, "exact"],
        "pool used": [5 * 512, "exact"],
        "pool reserved": [7 * 512, "exact"],
    }
    line = program.splitlines().index("        Machine().allocate(2000, here())") + 1
    assert failure == {"nbytes": 2000, "op": "", "line": f"<string>:{line}", "used": 5 * 512, "held": 5 * 512}
    assert limit == 0


# --- the driver ---------------------------------------------------------------------------------


def described_gpu(cupy, index, process, **of_it):
    """What the stand-in for NVML is to tell of a GPU: this process has `process` bytes of it."""
    runtime = cupy.cuda.runtime
    name = uuid.UUID(bytes=bytes(runtime.getDeviceProperties(index)["uuid"]))
    usual = {"used": process + 50 * MIB, "processes": [(PID, process)]}
    return nvml.Gpu(f"GPU-{name}", runtime.deviceGetPCIBusId(index), **{**usual, **of_it})


def reconciled_with(gpu, device, grows):
    """The rows of a step that takes 3 MiB, while what NVML tells grows."""

    def step():
        gpu.used += grows
        gpu.processes = [(pid, nbytes and nbytes + grows) for pid, nbytes in gpu.processes]
        return take(device, 3 * MIB)

    with nvml.installed(nvml.Library([gpu])):
        return rows(reconciled(device, step))


@pytest.mark.parametrize("grows, left", [(8, 5), (3, 0), (2, -1)])
def test_what_the_driver_says_is_context_and_pool_and_what_is_left(cuda, cupy, grows, left):
    kept = take(cuda, 10 * MIB)
    found, notes = reconciled_with(described_gpu(cupy, 0, 310 * MIB), cuda, grows * MIB)
    assert found["pool reserved"] == (13 * MIB, "exact")
    assert found["context"] == (300 * MIB, "exact") and "held 10.0 MiB" in notes["context"]
    assert found["unexplained"] == (left * MIB, "exact")
    assert found["process (NVML)"] == ((310 + grows) * MIB, "exact")
    assert found["device (NVML)"] == ((360 + grows) * MIB, "exact")
    assert f"changed by {grows}.00 MiB, the pool by 3.00 MiB" in notes["device (NVML)"]
    assert list(found)[-4:] == ["context", "unexplained", "process (NVML)", "device (NVML)"] and kept.shape


def test_samples_are_for_the_picture_and_say_so(cuda, cupy, tmp_path):
    kept = take(cuda, 10 * MIB)
    with nvml.installed(nvml.Library([described_gpu(cupy, 0, 310 * MIB)])):
        p = reconciled(cuda, blocks(cuda))
    assert len(p.sampled) >= 2 and {nbytes for _, nbytes in p.sampled} == {10 * MIB}
    report = memory.Report([p])
    report.save_html(tmp_path / "m.html")
    report.plot(tmp_path / "m.svg")
    assert "sampled: a lower bound" in (tmp_path / "m.html").read_text()
    assert 'class="sampled" points="' in (tmp_path / "m.html").read_text() and kept.shape


def test_free_memory_of_the_pool_goes_back_before_the_first_reading(cuda, pool):
    take(cuda, 20 * MIB)
    assert pool.total_bytes() == 20 * MIB
    with nvml.installed(nvml.Library([described_gpu(find_device(cuda).xp, 0, 300 * MIB)])):
        found, _ = rows(reconciled(cuda, lambda: None))
    assert pool.total_bytes() == 0 and found["context"] == (300 * MIB, "exact")


def test_missing_nvml_leaves_the_pool_and_says_why(cuda, cupy):
    with nvml.installed(None):
        found, notes = rows(reconciled(cuda, blocks(cuda)))
    assert found["pool used"] == (5 * 512, "exact")
    for row in ("context", "unexplained", "process (NVML)", "device (NVML)"):
        assert found[row] == (None, "unavailable") and "nvidia-ml-py is not installed" in notes[row]


def test_process_that_nvml_does_not_tell_leaves_the_device(cuda, cupy):
    gpu = described_gpu(cupy, 0, 310 * MIB, processes=[(PID, None)])
    found, notes = reconciled_with(gpu, cuda, 4 * MIB)
    assert [found[row][0] for row in ("context", "unexplained", "process (NVML)")] == [None] * 3
    assert "WSL" in notes["unexplained"] and found["device (NVML)"] == (364 * MIB, "exact")
    assert "changed by 4.00 MiB, the pool by 3.00 MiB" in notes["device (NVML)"]


def test_guess_at_the_process_stays_a_guess(cuda, cupy):
    kept = take(cuda, 10 * MIB)
    gpu = described_gpu(cupy, 0, 310 * MIB, processes=[(PID + 1, 310 * MIB)])
    found, notes = reconciled_with(gpu, cuda, 8 * MIB)
    assert (found["context"], found["unexplained"]) == ((300 * MIB, "sampled"), (5 * MIB, "sampled"))
    assert "a guess" in notes["context"] and "a guess" in notes["unexplained"] and kept.shape


def test_process_that_goes_missing_in_the_step_leaves_the_context(cuda, cupy):
    gpu = described_gpu(cupy, 0, 300 * MIB)

    def step():
        gpu.processes = []

    with nvml.installed(nvml.Library([gpu])):
        found, notes = rows(reconciled(cuda, step))
    assert found["context"] == (300 * MIB, "exact") and found["unexplained"] == (None, "unavailable")
    assert f"lists no process {PID}" in notes["unexplained"]


# --- without a GPU ------------------------------------------------------------------------------


def test_cpu_has_the_ledger_and_the_process():
    touched = []
    found, notes = rows(reconciled("cpu", lambda: touched.append(np.ones(256 * MIB, "u1"))))
    assert list(found) == ["logical", "held", "process"]
    assert found["held"][0] >= found["logical"][0]
    assert found["process"][1] == "sampled" and "since it began" in notes["process"]
    if sys.platform == "linux":
        with open("/proc/self/status") as status:
            (line,) = [line for line in status if line.startswith("VmHWM")]
        assert abs(found["process"][0] - int(line.split()[1]) * 1024) <= MIB
    del touched[:]
    _, notes = rows(reconciled("cpu", lambda: None))
    assert "reached before this step" in notes["process"]


def test_units_of_the_process_are_those_of_the_system(monkeypatch):
    ours, _ = rows(reconciled("cpu", lambda: None))
    monkeypatch.setattr(sys, "platform", "darwin")
    assert rows(reconciled("cpu", lambda: None))[0]["process"][0] == ours["process"][0] // 1024
    monkeypatch.setitem(sys.modules, "resource", None)
    found, notes = rows(reconciled("cpu", lambda: None))
    assert found["process"] == (None, "unavailable") and "Windows" in notes["process"]


def test_dry_run_says_what_it_cannot_have():
    found, notes = rows(reconciled(meta := find_device("meta", like="cuda:sm_90"), blocks(meta)))
    for row in ("process (NVML)", "device (NVML)"):
        assert found[row] == (None, "unavailable") and "dry run" in notes[row]
    found, notes = rows(reconciled(meta := find_device("meta", like="cpu:numpy"), blocks(meta)))
    assert found == {"logical": (2100, "exact"), "process": (None, "unavailable")} and "dry run" in notes["process"]


# --- limits -------------------------------------------------------------------------------------


def test_certificate_says_what_fits_and_how_that_is_known(counted):
    found = certify(blocks(counted), 7 * 512, counted)
    assert (found.limit, found.nbytes, found.enforced) == (7 * 512, 7 * 512, counted.computes)
    words = "CuPy's pool was limited to that" if counted.computes else "by account, which no allocator enforced"
    assert str(found).startswith("fits in 3.50 KiB of ") and words in str(found)


def test_pool_that_gives_back_fits_in_less(counted):
    assert certify(blocks(counted), 5 * 512, counted).nbytes == 5 * 512
    with pytest.raises(OutOfMemoryError):
        certify(blocks(counted), 5 * 512 - 1, counted)
    assert smallest_limit(blocks(counted), 0, "1MiB", tolerance=1, device=counted) == 5 * 512


def test_smallest_limit_runs_the_step_below_each_trial(counted):
    trials = []

    def step():
        trials.append(1)
        return blocks(counted)()

    assert smallest_limit(step, 4 * 512, "1MiB", tolerance=512, device=counted) == 5 * 512
    assert len(trials) == 2  # with 1 MiB it takes 7 units, with 5 it takes 5, and 4 is less than asked about
    assert smallest_limit(step, 6 * 512, "1MiB", device=counted) == 7 * 512  # to within 1 MiB
    with pytest.raises(OutOfMemoryError, match=r"fit in 1\.00 KiB"):
        smallest_limit(step, 0, 1024, device=counted)


def test_refusal_names_the_limit_the_line_and_what_was_asked_for(cuda, pool):
    w = gpuad.asarray(np.ones((128, 256), "f4"), device=cuda)  # 128 KiB
    x = gpuad.asarray(np.ones((64, 128), "f4"), device=cuda)  # 32 KiB, and their product 64

    def step():
        return (x @ w).numpy()

    line = f"test_reconcile.py:{step.__code__.co_firstlineno + 1}"
    with pytest.raises(OutOfMemoryError) as caught:
        certify(step, "200KiB", cuda)
    first, state, remedy = str(caught.value).split("\n  ")
    assert first == f"the step does not fit in 200 KiB on cuda:0: matmul asked for 64.0 KiB at {line}"
    assert state.startswith("CuPy's pool held 160 KiB then, 0 B of it free") and "profile" in remedy
    assert isinstance(caught.value, MemoryError) and caught.value.__context__ is None
    assert pool.get_limit() == 0 and certify(step, "300KiB", cuda).nbytes == (128 + 32 + 64) * 1024


def test_refusal_in_the_backward_pass_names_the_line_of_the_forward_pass(cuda, cupy):
    w = gpuad.asarray(np.ones((100, 300), "f4"), device=cuda).requires_grad_()
    x = gpuad.asarray(np.ones((64, 100), "f4"), device=cuda)

    def step():
        y = x @ w
        gpuad.sum(y).backward()

    with pytest.raises(OutOfMemoryError) as caught:
        certify(step, "240KiB", cuda)
    assert f"test_reconcile.py:{step.__code__.co_firstlineno + 1}\n" in str(caught.value)
    assert w.grad is None


def test_limit_is_back_whatever_happens(cuda, pool):
    pool.set_limit(size=10 * MIB)
    seen = []

    def failing():
        seen.append(pool.get_limit())
        raise KeyError("of the user")

    certify(blocks(cuda), MIB, cuda)
    assert pool.get_limit() == 10 * MIB
    with pytest.raises(KeyError, match="of the user"):
        certify(failing, "2 MiB", cuda)
    assert seen == [2 * MIB] and pool.get_limit() == 10 * MIB
    with pytest.raises(OutOfMemoryError):
        certify(lambda: take(cuda, 2 * MIB), MIB, cuda)
    assert pool.get_limit() == 10 * MIB and not observers and not ledgers


def test_refused_step_keeps_no_memory(cuda, pool):
    def step():
        kept = take(cuda, MIB)
        return kept, take(cuda, 4 * MIB)

    with pytest.raises(OutOfMemoryError):
        certify(step, 2 * MIB, cuda)
    assert pool.used_bytes() == 0


def test_limit_below_what_is_there_already_is_refused_before_the_step(cuda, cupy):
    kept, ran = take(cuda, 2 * MIB), []
    with pytest.raises(OutOfMemoryError, match=r"pool holds 2\.00 MiB before it begins"):
        certify(lambda: ran.append(1), MIB, cuda)
    assert not ran and kept.shape


def test_gpu_that_has_less_than_the_limit_is_named(cuda, cupy):
    total = cupy.cuda.runtime.memGetInfo()[1]
    with pytest.raises(OutOfMemoryError, match="the driver had no more"):
        certify(lambda: take(cuda, total + MIB), 2 * total, cuda)


def test_error_of_cupy_without_an_allocation_is_told_as_it_is(cuda, cupy):
    def step():
        raise cupy.cuda.memory.OutOfMemoryError(1000, 0)

    with pytest.raises(OutOfMemoryError, match="Out of memory allocating 1,000 bytes"):
        certify(step, MIB, cuda)


@pytest.mark.parametrize("like", [None, "cpu:numpy", "cuda:sm_90"])
def test_limits_by_account_name_the_line_too(like):
    device = find_device("meta", like=like) if like else find_device("cpu")
    gc.collect()
    before = memory.profile(lambda: None, device=device).peak_bytes  # what other tests have left
    x = gpuad.asarray(np.ones((64, 256), "f4"), device=device)  # 64 KiB

    def step():
        y = gpuad.exp(x) @ x.T
        return realize(y.data)

    realize(step())
    assert certify(step, "64MiB", device).nbytes - before == (64 + 64 + 16) * 1024
    if before:
        return
    with pytest.raises(OutOfMemoryError) as caught:
        certify(step, "100KiB", device)
    first, *rest = str(caught.value).split("\n  ")
    where = f"{device.name}: exp takes 64.0 KiB at test_reconcile.py:{step.__code__.co_firstlineno + 1}"
    assert first == f"the step does not fit in 100 KiB on {where}, for 128 KiB in all"
    assert ("as simulated" in rest[0]) == (like == "cuda:sm_90")
    with pytest.raises(OutOfMemoryError, match="what is there before it begins takes more"):
        certify(step, "10KiB", device)


def test_limit_of_the_default_device_is_meant_where_none_is_named():
    assert certify(lambda: None, "1TiB").device.startswith("cpu")


def test_limit_of_nothing_is_refused(cuda):
    """To CuPy it would mean no limit."""
    with pytest.raises(DataError, match="a limit of 0 bytes"):
        certify(lambda: None, 0, cuda)


# --- sizes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, nbytes",
    [
        (0, 0),
        (12345, 12345),
        ("512", 512),
        ("512 B", 512),
        ("500MB", 500_000_000),
        ("24GiB", 25_769_803_776),
        ("1.5 gib", 1_610_612_736),
        (" 2TiB ", 2_199_023_255_552),
        ("3kb", 3000),
        ("0.1TB", 100_000_000_000),
        ("1.0001KiB", 1024),
    ],
)
def test_sizes_are_read(text, nbytes):
    assert parse_bytes(text) == nbytes


@pytest.mark.parametrize(
    "text", ["", "24G", "GiB", "-1GiB", -1, 1.5, True, "1e9", "nan", "1 000", "1,5GiB", "12 bits", None]
)
def test_what_is_no_size_is_refused_with_the_way_to_write_it(text):
    with pytest.raises(DataError, match=r"is no number of bytes\n  write it as .*24MiB"):
        parse_bytes(text)
