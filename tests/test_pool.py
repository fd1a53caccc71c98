"""The simulator of CuPy's pool: held to the real one event by event, and to cases worked out by hand.

CuPy's own pool runs here without a driver, in a process of its own: it hands out made-up addresses, and the two things
that it asks the driver, the current device and stream, are answered in the driver's place.
"""

import importlib.util
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuad.memory.pool import UNIT, Pool, rounded, simulate

CUPYS_POOL = r"""
import ctypes, importlib, json, sys

# CuPy's modules take each other's C functions out of capsules, when they are imported: put ours in before.
ANSWERS = {
    ("cupy.cuda.device", "get_device_id"): ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(lambda _: 0),
    ("cupy.cuda.stream", "get_current_stream_ptr"): ctypes.CFUNCTYPE(ctypes.c_ssize_t)(lambda: 0),
}
signature = ctypes.pythonapi.PyCapsule_GetName
signature.restype, signature.argtypes = ctypes.c_void_p, [ctypes.py_object]
capsule = ctypes.pythonapi.PyCapsule_New
capsule.restype, capsule.argtypes = ctypes.py_object, [ctypes.c_void_p] * 3

class BeforeMemory:
    def find_spec(self, name, path=None, target=None):
        if name == "cupy.cuda.memory":
            for (module, function), answer in ANSWERS.items():
                table = importlib.import_module(module).__pyx_capi__
                table[function] = capsule(ctypes.cast(answer, ctypes.c_void_p), signature(table[function]), None)

sys.meta_path.insert(0, BeforeMemory())
from cupy.cuda import memory

def run(limit, events):
    end = 512

    def segment(nbytes, device):
        nonlocal end
        end += nbytes
        return end - nbytes

    pool = memory.SingleDeviceMemoryPool(memory.PythonFunctionAllocator(segment, lambda address, device: None).malloc)
    pool.set_limit(limit)
    lent, states = {}, []
    for action, key, nbytes in events:
        if action == "malloc":
            try:
                lent[key] = pool.malloc(nbytes)
            except memory.OutOfMemoryError:
                pass
        elif action == "free":
            lent.pop(key, None)
        else:
            pool.free_all_blocks()
        address = lent[key].ptr if key in lent else None
        states.append([address, pool.used_bytes(), pool.total_bytes(), pool.free_bytes(), pool.n_free_blocks()])
    return states

for line in sys.stdin:
    print(json.dumps(run(*json.loads(line))), flush=True)
"""


@pytest.fixture(scope="module")
def cupys_pool():
    """CuPy's pool: cupys_pool(limit or 0, [(action, key, nbytes)]) gives, after each, [address, used, total, ...]."""
    if importlib.util.find_spec("cupy") is None:
        pytest.skip("needs CuPy itself to compare with: pip install cupy-cuda12x")
    command = [sys.executable, "-W", "ignore", "-c", CUPYS_POOL]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def run(limit, events):
            print(json.dumps([limit, events]), file=process.stdin, flush=True)
            return json.loads(process.stdout.readline())

        yield run
        process.stdin.close()


class Followed(Pool):
    """The simulator, but of several free chunks of one size it takes the one that CuPy took, at `taken`."""

    taken = None

    def choose(self, size):
        first = super().choose(size)
        same = [i for i in range(first, len(self._free)) if self._free[i][0] == self._free[first][0]]
        return next((i for i in same if self._free[i][1] == self.taken), first)


SIZES = st.one_of(st.sampled_from([0, 1, 512, 513, 1024, 1536, 2048, 4096]), st.integers(0, 50_000))
MALLOCS = st.tuples(st.just("malloc"), SIZES)
FREES = st.tuples(st.just("free"), st.integers(0, 1000))
ACTIONS = st.one_of(MALLOCS, FREES, MALLOCS, FREES, MALLOCS, st.tuples(st.just("trim"), st.just(0)))
LIMITS = st.one_of(st.none(), st.integers(1, 150_000))


def events_of(actions):
    """[(action, key, nbytes)], where a free names one of the keys that are still there."""
    events, keys = [], []
    for key, (action, number) in enumerate(actions):
        if action == "malloc":
            keys.append(key)
            events.append((action, key, number))
        elif action == "free" and keys:
            events.append((action, keys.pop(number % len(keys)), 0))
        elif action == "trim":
            events.append((action, None, 0))
    return events


def follow(pool, events, states):
    """Put `events` through `pool` and assert after each that it is as CuPy's."""
    lent = {}
    for (action, key, nbytes), (address, *expected) in zip(events, states, strict=True):
        if action == "malloc":
            pool.taken = address
            try:
                lent[key] = pool.malloc(nbytes)
            except MemoryError:
                assert address is None
            assert lent.get(key) == address
        elif action == "free":
            pool.free(lent.pop(key, 0))
        else:
            pool.free_all_blocks()
        assert [pool.used_bytes, pool.total_bytes, pool.free_bytes, len(pool._free)] == expected


@given(actions=st.lists(ACTIONS, min_size=30, max_size=200), limit=LIMITS)
def test_every_event_leaves_the_pool_as_it_leaves_that_of_cupy(cupys_pool, actions, limit):
    """Address, bytes used, held and free, and the number of free chunks."""
    events = events_of(actions)
    follow(Followed(limit), events, cupys_pool(limit or 0, events))


def training_steps(layers=8, steps=3):
    """Parameters, then steps: activations kept with a temporary beside each, freed backwards as gradients come."""
    events, count = [], 0

    def malloc(nbytes):
        nonlocal count
        count += 1
        events.append(("malloc", count, nbytes))
        return count

    def free(key):
        events.append(("free", key, 0))

    weights = [n * 4096 * 2 for n in (4096, 4096, 4096, 4096, 11008, 11008, 11008, 1, 1)]
    for nbytes in weights * layers:
        malloc(nbytes)
    for step in range(steps):
        tokens = 2048 - 100 * step
        kept, gradients = [], []
        for _ in range(layers):
            for width in (4096, 2, 4096, 4096, 4096, 4096, 64, 4096, 2, 11008, 11008):
                kept.append(malloc(tokens * width * 2))
                free(malloc(tokens * width * 4))
        for at, key in enumerate(reversed(kept)):
            free(malloc(tokens * 4096 * 2))
            free(key)
            gradients.append(malloc(weights[at % len(weights)]))
        for key in gradients:
            free(key)
        events.append(("trim", None, 0))
    return events


def test_training_steps_are_followed_to_the_byte(cupys_pool):
    events = training_steps()
    states = cupys_pool(0, events)
    pool = Followed()
    follow(pool, events, states)
    assert pool.high_used == max(used for _, used, *_ in states)
    assert pool.high_total == max(total for _, _, total, *_ in states) > 2**30


@given(sizes=st.lists(st.integers(1, 10_000), min_size=1, max_size=40), data=st.data())
def test_peak_of_use_is_the_largest_sum_of_rounded_sizes(sizes, data):
    events, live, sums = [], [], [0]
    for key, size in enumerate(sizes):
        events.append((size, key))
        live.append((size, key))
        sums.append(sums[-1] + -(-size // 512) * 512)
        while live and data.draw(st.booleans()):
            size, key = live.pop(data.draw(st.integers(0, len(live) - 1)))
            events.append((-size, key))
            sums.append(sums[-1] - -(-size // 512) * 512)
    peaks = simulate(events)
    assert peaks.used == max(sums) <= peaks.total


# --- by hand ------------------------------------------------------------------------------------------


def k(n):
    """n KiB."""
    return n * 1024


def lending(*kib):
    """A pool that has lent segments of so many KiB, and their addresses."""
    pool = Pool()
    return pool, [pool.malloc(k(n)) for n in kib]


def state(pool):
    return SimpleNamespace(used=pool.used_bytes / 1024, total=pool.total_bytes / 1024, free=pool.free_bytes / 1024)


def test_sizes_are_rounded_up_to_units():
    assert [rounded(n) for n in (0, 1, 511, 512, 513, 7 * 2**30 + 1)] == [0, 512, 512, 512, 1024, 7 * 2**30 + UNIT]


def test_nothing_takes_nothing():
    pool = Pool(limit=512)
    pool.free(pool.malloc(0))
    assert (pool.used_bytes, pool.total_bytes, pool.high_total) == (0, 0, 0)
    assert simulate([(0, "a"), (0, "a")]) == (0, 0)


def test_smallest_chunk_that_is_large_enough_serves():
    pool, addresses = lending(8, 2, 4, 16)
    for address in addresses:
        pool.free(address)
    assert pool.malloc(k(3)) == addresses[2]
    assert pool.malloc(k(5)) == addresses[0]
    assert pool.malloc(k(1)) == addresses[2] + k(3)  # the rest of the first
    assert state(pool) == SimpleNamespace(used=9, total=30, free=21)


def test_any_larger_chunk_is_better_than_the_driver():
    pool, (large,) = lending(1024)
    pool.free(large)
    assert pool.malloc(1) == large
    assert pool.malloc(k(1023)) == large + 512
    assert pool.total_bytes == k(1024)
    pool.malloc(k(1))  # half a KiB is left
    assert pool.total_bytes == k(1025)


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
def test_parts_of_a_segment_become_whole_in_any_order(order):
    pool, (segment,) = lending(6)
    pool.free(segment)
    parts = [pool.malloc(k(2)) for _ in range(3)]
    assert parts == [segment, segment + k(2), segment + k(4)]
    for at in order:
        pool.free(parts[at])
    assert pool.malloc(k(6)) == segment
    assert pool.total_bytes == k(6)


def test_segments_side_by_side_do_not_merge():
    pool, (first, second) = lending(2, 2)
    assert second == first + k(2)
    pool.free(first)
    pool.free(second)
    pool.malloc(k(4))
    assert state(pool) == SimpleNamespace(used=4, total=8, free=4)


def test_lowest_of_equal_chunks_serves():
    pool, (first, second, third) = lending(2, 2, 2)
    for address in (second, third, first):
        pool.free(address)
    assert [pool.malloc(k(2)) for _ in range(3)] == [first, second, third]


def test_only_segments_with_nothing_lent_are_given_back():
    pool, (first, second, third) = lending(4, 8, 16)
    pool.free(second)
    lent = pool.malloc(k(1))  # of the second
    pool.free(first)
    pool.free_all_blocks()
    assert state(pool) == SimpleNamespace(used=17, total=24, free=7)
    pool.free(lent)
    pool.free(third)
    pool.free_all_blocks()
    assert state(pool) == SimpleNamespace(used=0, total=0, free=0)
    assert (pool.high_used, pool.high_total) == (k(28), k(28))
    assert not (pool._sizes or pool._before or pool._lent or pool._free)


def test_limit_makes_the_pool_give_back_before_it_fails():
    pool = Pool(limit=k(8))
    address = pool.malloc(k(4))
    pool.free(address)
    pool.malloc(k(6))  # the 4 KiB go back first
    assert state(pool) == SimpleNamespace(used=6, total=6, free=0)
    with pytest.raises(MemoryError, match="2,560 bytes do not fit in a pool limited to 8,192"):
        pool.malloc(k(2) + 1)
    pool.malloc(k(2))
    assert pool.total_bytes == pool.limit


def test_fragments_do_not_serve_what_their_sum_would():
    pool = Pool(limit=k(8))
    whole = pool.malloc(k(8))
    pool.free(whole)
    parts = [pool.malloc(k(2)) for _ in range(4)]
    pool.free(parts[0])
    pool.free(parts[2])
    with pytest.raises(MemoryError) as caught:
        pool.malloc(k(4))
    assert "4,096 are in use, 4,096 are free in pieces that are too small" in str(caught.value)


def test_too_much_for_the_limit_fails_and_leaves_the_pool_alone():
    pool = Pool(limit=k(8))
    pool.free(pool.malloc(k(4)))
    with pytest.raises(MemoryError):
        pool.malloc(k(9))
    assert state(pool) == SimpleNamespace(used=0, total=4, free=4)


def test_simulation_gives_both_peaks():
    """4 and 2 KiB are lent; the 4 come back and 3 of them go out again; 2 more do not fit in what is left of them."""
    events = [(k(4), "a"), (k(2), "b"), (-k(4), "a"), (k(3), "a"), (k(2), "c"), (-k(2), "b"), (-k(3), "a")]
    assert simulate(events) == (k(7), k(8))
    with pytest.raises(MemoryError):
        simulate(events, limit=k(7))
