"""Digests: that they show every change, that nothing else shows in them, and what is raised when two differ."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gpuad
from gpuad.buffer import LiveBytes, fingerprint, observers
from gpuad.devices import cpu_digest
from gpuad.devices import device as find_device
from gpuad.devices.device import RECOMPUTE
from gpuad.dtype import ALL, as_dtype
from gpuad.errors import RecomputeError
from gpuad.fuse import compiler, engines, threads
from gpuad.fuse.plan import realize

WORDS = 512  # of a piece, as in kernels/digest.cpp and kernels/digest.cu
PIECE = 4 * WORDS
SIZES = (0, 1, 2, 3, 4, 5, 63, PIECE - 1, PIECE, PIECE + 1, 8 * PIECE + 17, 3 * (1 << 18) + 5)


@pytest.fixture(params=["own", "numpy"])
def engine(request, device, monkeypatch):
    """The device's engine, and the CPU's other one."""
    if request.param == "numpy":
        if device != "cpu":
            pytest.skip("a GPU has one engine")
        monkeypatch.setattr(cpu_digest, "_function", lambda: None)
    return request.param


def realized(values, device):
    """The computed Array of `values` on `device`."""
    return realize(gpuad.asarray(values, device=device).array)


def read(digest):
    """The number that a digest is."""
    return digest if isinstance(digest, int) else int(digest.device.to_numpy(digest)[0])


def digest(values, device):
    return read(find_device(device).digest(realized(values, device)))


def mixed(x):
    """SplitMix64's mixing of uint64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


G = np.uint64(0x9E3779B97F4A7C15)
KEYS = mixed(np.arange(1, WORDS // 2 + 1, dtype=np.uint64) * G)
LOW = np.uint64(2**32 - 1)


def expected(values):
    """What the kernels compute, in NumPy."""
    raw = np.ascontiguousarray(values).tobytes()
    words = np.frombuffer(raw + bytes(-len(raw) % PIECE), np.uint32).reshape(-1, WORDS).astype(np.uint64)
    first, second = np.split(words, 2, axis=1)
    products = ((first + (KEYS & LOW)) & LOW) * ((second + (KEYS >> np.uint64(32))) & LOW)
    pieces = np.arange(len(words), dtype=np.uint64) * G + products.sum(axis=1, dtype=np.uint64)
    return (int(mixed(pieces).sum(dtype=np.uint64)) + len(raw)) % 2**64


def noise(size, dtype, seed=0):
    """`size` elements of random bits; bools are 0 or 1."""
    dtype = as_dtype(dtype)
    rng = np.random.default_rng(seed)
    if dtype == np.bool_:
        return rng.integers(0, 2, size).astype(bool)
    return np.frombuffer(rng.bytes(size * dtype.itemsize), dtype).copy()


# --- what it is ---------------------------------------------------------------------------------


@pytest.mark.parametrize("nbytes", SIZES)
def test_a_digest_is_that_of_its_definition(device, nbytes):
    if device == "cpu" and engines.engine() != "compiled":
        pytest.skip("needs the compiled engine")
    values = noise(nbytes, "uint8")
    assert digest(values, device) == expected(values)


@pytest.mark.parametrize("dtype", sorted(map(str, ALL)))
def test_every_dtype_has_the_digest_of_its_bytes(device, engine, dtype):
    for size in (0, 1, 7, 2 * WORDS + 3):
        values = noise(size, dtype)
        assert digest(values, device) == digest(values.view(np.uint8), device)


def test_layout_does_not_show(device, engine):
    values = noise(35 * 33, "float32").reshape(35, 33)
    x = realized(values, device)
    where = find_device(device)
    for seen in (lambda a: a.T, lambda a: a[::2], lambda a: a[:, 1:], lambda a: a[::-1, ::-3], lambda a: a[3:]):
        view = where.view(x, seen(x.data), None)
        assert read(where.digest(view)) == digest(np.ascontiguousarray(seen(values)), device)


def test_where_an_array_begins_does_not_show(device, engine):
    where, values = find_device(device), noise(3 * PIECE, "uint8")
    x = realized(values, device)
    for start in (1, 2, 4, 8, 16, 33):
        view = where.view(x, x.data[start:], None)
        assert read(where.digest(view)) == digest(values[start:].copy(), device)


@pytest.mark.skipif(engines.engine() != "compiled", reason="needs the compiled engine")
def test_the_number_of_threads_does_not_show(monkeypatch):
    values = noise(10_000_001, "uint8")
    found = set()
    for count in (1, 2, 3, 7):
        monkeypatch.setattr(threads, "count", lambda count=count: count)
        found.add(digest(values, "cpu"))
    assert found == {expected(values)}


def test_without_a_compiler_it_is_the_fingerprint(monkeypatch):
    def refuse(*_):
        raise compiler.CompilerError("no")

    monkeypatch.setattr(engines, "engine", lambda: "compiled")
    monkeypatch.setattr(cpu_digest, "library", refuse)
    cpu_digest._function.cache_clear()
    values = noise(1000, "float32")
    try:
        with pytest.warns(RuntimeWarning, match="digests are computed with NumPy, which is slower: no"):
            first = digest(values, "cpu")
        monkeypatch.undo()
        assert first == digest(values, "cpu") == fingerprint(values), "a compiler that works later changes nothing"
    finally:
        cpu_digest._function.cache_clear()


# --- what shows ---------------------------------------------------------------------------------


def test_no_swap_and_no_two_signs_of_a_piece_cancel():
    values = np.random.default_rng(0).standard_normal(WORDS).astype(np.float32)
    found = {expected(values)}
    places = [(i, j) for i in range(0, WORDS, 7) for j in range(i)]
    for i, j in places:
        swapped, signed = values.copy(), values.copy()
        swapped[[i, j]] = swapped[[j, i]]
        signed[[i, j]] *= -1
        found |= {expected(swapped), expected(signed)}
    assert len(found) == 1 + 2 * len(places)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "float16", "bfloat16", "float32", "float64", "int64"])
def test_every_bit_shows(device, engine, dtype):
    values = noise(37 if engine == "own" and device != "cpu" else 1037, dtype)
    raw = values.view(np.uint8)
    before = digest(values, device)
    rng = np.random.default_rng(1)
    for k in {0, raw.size - 1, *rng.integers(0, raw.size, 40).tolist()}:
        for bit in (0,) if dtype == "bool" else (0, 3, 7):
            raw[k] ^= 1 << bit
            assert digest(values, device) != before
            raw[k] ^= 1 << bit
    assert digest(values, device) == before


def pairs(size, seed):
    """Pairs of places: near, in one piece, at the same offset in different pieces, anywhere."""
    rng = np.random.default_rng(seed)
    found = [(0, 1), (3, 4), (0, WORDS), (5, 5 + 2 * WORDS), (WORDS - 1, WORDS), (7, 8), (0, 8), (0, 32), (0, 128)]
    return found + [tuple(rng.choice(size, 2, replace=False).tolist()) for _ in range(10)]


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_swaps_and_pairs_of_signs_show(device, engine, dtype):
    size = 3 * WORDS + 5
    values = np.random.default_rng(0).standard_normal(size).astype(as_dtype(dtype))
    seen = {digest(values, device)}
    for i, j in pairs(size, 2):
        swapped, signs = values.copy(), values.copy()
        swapped[[i, j]] = values[[j, i]]
        signs[[i, j]] = -signs[[i, j]]
        seen |= {digest(swapped, device), digest(signs, device)}
    assert len(seen) == 1 + 2 * len(pairs(size, 2))


def test_zeros_of_every_length_differ(device, engine):
    lengths = (0, 1, 2, 3, 4, 5, 8, PIECE - 4, PIECE, PIECE + 1, 2 * PIECE, 4 * PIECE)
    assert len({digest(np.zeros(n, np.uint8), device) for n in lengths}) == len(lengths)


def test_rows_that_change_places_show(device, engine):
    rows = noise(8 * WORDS, "float32").reshape(8, WORDS)
    orders = [np.random.default_rng(k).permutation(8) for k in range(10)]
    distinct = {tuple(order) for order in orders}
    assert len({digest(rows[order], device) for order in orders}) == len(distinct)
    block = np.repeat(np.arange(8, dtype=np.float32), WORDS)  # constant pieces
    assert digest(block, device) != digest(block[::-1].copy(), device)


@settings(max_examples=25)
@given(
    dtype=st.sampled_from(sorted(map(str, ALL))),
    shape=st.lists(st.integers(0, 40), max_size=3),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_a_digest_shows_what_bytes_show(device, dtype, shape, seed, data):
    values = noise(int(np.prod(shape)), dtype, seed).reshape(shape)
    other = values.copy()
    for _ in range(data.draw(st.integers(0, 2)) if values.size else 0):
        i, j = (data.draw(st.integers(0, values.size - 1)) for _ in range(2))
        flat = other.reshape(-1)
        flat[[i, j]] = flat[[j, i]]
    before = digest(values, device)
    assert (digest(other, device) == before) == (other.tobytes() == values.tobytes())
    if device != "cpu" or engines.engine() == "compiled":
        assert before == expected(values)


# --- what is done when two differ ---------------------------------------------------------------


def refusal(name):
    return lambda _: RecomputeError(f"{name} differs")


def test_two_that_differ_are_an_error_which_names_the_first(device):
    where = find_device(device)
    a, same, other = (where.digest(realized(x, device)) for x in (np.ones(9), np.ones(9), np.zeros(9)))
    read_back = realized(np.ones(1), device)
    checked = []

    def check(first, second, name):
        where.check_digests(first, second, refusal(name))
        checked.append(name)

    check(a, same, "first")
    assert where.error_word == 0
    with pytest.raises(RecomputeError, match="second differs"):
        check(a, other, "second")
        check(other, same, "third")
        assert where.error_word & RECOMPUTE
        where.to_numpy(read_back)
    assert checked == (["first"] if where.waits else ["first", "second", "third"])
    check(a, same, "fourth")
    assert where.error_word == 0
    where.to_numpy(read_back)


def test_digests_take_no_memory_that_is_not_counted(device):
    where = find_device(device)
    x = realized(noise(1 << 20, "float32"), device)
    bytes_ = LiveBytes()
    observers.append(bytes_)
    try:
        kept = [where.digest(x) for _ in range(3)]
        assert bytes_.live == (0 if where.waits else 24)
        del kept
        assert bytes_.live == 0
    finally:
        observers.remove(bytes_)


def test_recordings_note_no_digest(device):
    where = find_device(device)
    taken = []

    @gpuad.capture
    def step(x):
        y = gpuad.exp(x)
        taken.append(where.digest(realize(y.array)))
        where.check_digests(taken[-1], taken[-1], refusal("it"))
        return y

    x = gpuad.ones(5, device=device)
    for _ in range(4):
        np.testing.assert_allclose(step(x).numpy(), np.e, rtol=1e-6)
    assert 0 < len(taken) < 4, "replays take none"


def test_meta_has_digests_that_agree():
    where = find_device("meta")
    a, b = (where.digest(realize(gpuad.ones(n, device=where).array)) for n in (3, 4))
    assert a == b == 0
    where.check_digests(a, b, refusal("it"))
