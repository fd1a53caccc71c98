"""Arrays that wait in memory of the host: their values, the memory they free, and the order of what is asked for."""

import contextlib

import numpy as np
import pytest

import gpuad
from gpuad.buffer import LiveBytes, observers
from gpuad.devices import device as find_device
from gpuad.devices.offload import ON_THE_WAY
from gpuad.dtype import ALL, as_dtype
from gpuad.errors import CaptureError, DeviceError
from gpuad.fuse.plan import realize

MIB = 1 << 20


def realized(values, device):
    return realize(gpuad.asarray(values, device=device).array)


def noise(shape, dtype="float32", seed=0):
    """Random bits; bools are 0 or 1."""
    rng, dtype = np.random.default_rng(seed), as_dtype(dtype)
    if dtype == np.bool_:
        return rng.integers(0, 2, shape).astype(bool)
    return np.frombuffer(rng.bytes(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape)


def pushed_out(device):
    """Let all go that is on its way: so many others go after it."""
    for _ in range(ON_THE_WAY):
        device.offload(realized(np.zeros(1), device))


@contextlib.contextmanager
def counted():
    """What counts the bytes that come and go inside."""
    found = LiveBytes()
    observers.append(found)
    try:
        yield found
    finally:
        observers.remove(found)


@pytest.fixture(params=["itself", "meta"])
def place(request, cuda):
    """A device that offloads: a GPU, or the meta device that is like one."""
    return find_device("meta", like="cuda:sm_90") if request.param == "meta" else find_device(cuda)


@pytest.mark.parametrize("dtype", sorted(map(str, ALL)))
@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (33, 65)])
def test_values_come_back_bit_for_bit(cuda, dtype, shape):
    device, values = find_device(cuda), noise(shape, dtype)
    array = realized(values, device)
    array.buffer.category = "input"
    for prefetched in (False, True):
        away = device.offload(array)
        pushed_out(device)
        if prefetched:
            away.prefetch()
            away.prefetch()
        back = away.fetch()
        assert back.data is not array.data
        assert (back.shape, back.dtype, back.buffer.category) == (shape, values.dtype, "input")
        assert device.to_numpy(back).tobytes() == values.tobytes()
        again = away.fetch()
        assert again.data is not back.data and device.to_numpy(again).tobytes() == values.tobytes()


def test_part_of_an_array_comes_back(cuda):
    device, values = find_device(cuda), noise((6, 50))
    array = realized(values, device)
    away = device.offload(device.view(array, array.data[2:5], None))
    pushed_out(device)
    assert device.to_numpy(away.fetch()).tobytes() == values[2:5].tobytes()


def test_what_has_not_left_is_not_copied_back(place):
    assert place.offloads
    array = realized(np.ones(5, np.float32), place)
    away = place.offload(array)
    away.prefetch()
    assert away.fetch() is array
    pushed_out(place)
    assert away.fetch() is not array


def test_memory_is_free_while_arrays_are_away(place):
    with counted() as bytes_:
        away = []
        for _ in range(5):
            array = place.allocate((MIB // 4,), np.dtype(np.float32))
            away.append(place.offload(array))
            del array
            assert bytes_.live == min(len(away), ON_THE_WAY) * MIB
        assert bytes_.peak == (ON_THE_WAY + 1) * MIB
        away[0].prefetch()
        assert bytes_.live == (ON_THE_WAY + 1) * MIB
        array = away[0].fetch()
        assert bytes_.live == (ON_THE_WAY + 1) * MIB
        del array
        away[1].prefetch()
        del away
        assert bytes_.live == 0


def test_memory_of_the_host_is_used_again(cuda, monkeypatch):
    device = find_device(cuda)
    made, alloc = [], device.xp.cuda.alloc_pinned_memory
    monkeypatch.setattr(device.xp.cuda, "alloc_pinned_memory", lambda size: made.append(size) or alloc(size))
    for seed in range(6):
        values = noise(1237, seed=seed)
        away = device.offload(realized(values, device))
        pushed_out(device)
        assert device.to_numpy(away.fetch()).tobytes() == values.tobytes()
        del away
    assert made.count(1237 * 4) <= 1


def test_nobody_writes_into_what_is_on_its_way(cuda):
    x = gpuad.ones(1000, device=cuda)
    array = realize(x.array)
    place, away = array.data.data.ptr, find_device(cuda).offload(array)
    del array
    x += 1  # its memory could be used for the result, did nobody else hold it
    assert realize(x.array).data.data.ptr != place
    pushed_out(find_device(cuda))
    assert find_device(cuda).to_numpy(away.fetch()).sum() == 1000


@pytest.fixture
def log(cuda, monkeypatch):
    """What is asked of the streams, in order: ("wait", who, for whom, after entry) or (what copies, on what)."""
    device = find_device(cuda)
    if not device.xp.__file__.count("stand_in"):
        pytest.skip("CuPy's own classes cannot be watched")
    pushed_out(device)  # so that its stream is there
    device.away.going.clear()
    names = {device.stream.ptr: "main", device.away.copies.stream.ptr: "side"}
    found, recorded, pointer = [], {}, device.xp.cuda.MemoryPointer
    stream = type(device.stream).__mro__[1]
    record, wait = stream.record, stream.wait_event

    def recording(self, event=None):
        event = record(self, event)
        recorded[event.ptr] = names[self.ptr], len(found)
        return event

    def waiting(self, event):
        found.append(("wait", names[self.ptr], *recorded[event.ptr]))
        wait(self, event)

    monkeypatch.setattr(stream, "record", recording)
    monkeypatch.setattr(stream, "wait_event", waiting)
    for name in ("copy_to_host_async", "copy_from_host_async"):
        copy = getattr(pointer, name)

        def copying(self, mem, size, stream=None, name=name, copy=copy):
            found.append((name, names[stream.ptr]))
            copy(self, mem, size, stream)

        monkeypatch.setattr(pointer, name, copying)
    return found


def test_streams_wait_for_each_other_before_memory_is_used(cuda, log):
    device = find_device(cuda)
    arrays = [realized(np.ones(300, np.float32), device) for _ in range(ON_THE_WAY + 1)]
    del log[:]
    with counted() as bytes_:
        away = [device.offload(x) for x in arrays[:-1]]
        del arrays[0]
        goes = [("wait", "side", "main", 0), ("copy_to_host_async", "side")]
        goes += [("wait", "side", "main", 2), ("copy_to_host_async", "side")]
        assert log == goes and bytes_.live == 0, "the main stream waits for nothing, and nothing is freed"
        away.append(device.offload(arrays[-1]))
        assert bytes_.live == -1200
        assert log[4] == ("wait", "main", "side", 2), "for the copy of the first, which was the second entry"
        assert log[5:] == [("wait", "side", "main", 5), ("copy_to_host_async", "side")]
        del log[:]
        away[0].prefetch()
        assert log == [("wait", "side", "main", 0), ("copy_from_host_async", "side")]
        away[0].fetch()
        assert log[2:] == [("wait", "main", "side", 2)]
        del log[:]
        away[0].prefetch()
        del away[0]
        assert log[2:] == [("wait", "main", "side", 2)], "before the memory it was coming to is used again"


def test_what_is_dropped_on_its_way_is_waited_for(cuda, log):
    device = find_device(cuda)
    array = realized(np.ones(300, np.float32), device)
    del log[:]
    away = device.offload(array)
    del array, away
    assert log[2:] == [("wait", "main", "side", 2)]


def test_recordings_refuse_it(cuda):
    device = find_device(cuda)
    away = device.offload(realized(np.ones(5, np.float32), cuda))
    pushed_out(device)
    acts = (lambda x: device.offload(realize(x.array)), lambda x: away.prefetch(), lambda x: away.fetch())
    for act in acts:
        with pytest.raises(CaptureError, match=r"capture\(\) cannot follow a copy (to|from) the host"):
            step = gpuad.capture(lambda x, act=act: (act(x), x + 1)[1])
            for _ in range(3):  # the first ones may not be recorded
                step(gpuad.ones(3, device=cuda))


def test_other_devices_say_that_they_cannot():
    for device in (find_device("cpu"), find_device("meta", like="cpu:numpy")):
        assert not device.offloads
        with pytest.raises(DeviceError, match="cannot move arrays to memory of the host"):
            device.offload(realized(np.ones(3), device))
