"""Random numbers: NumPy's Philox is the reference; every element by itself; state, replay, and where draws happen."""

import copy
import json
import pickle
import threading

import numpy as np
import pytest
import scipy.stats

import gpuad
from gpuad import random
from gpuad.fuse.kernel import watchers
from gpuad.random import Generator


def philox(state):
    """NumPy's generator at `state`."""
    return np.random.Philox(key=np.array(state[:2], np.uint64), counter=np.array(state[2:], np.uint64))


def stepped(seed, blocks):
    """A generator that has drawn before, near the end of a word of its counter."""
    generator = Generator(seed)
    key = generator.state[:2]
    generator.set_state((*key, 2**64 - blocks, 2**64 - 1, 0, 5))
    return generator


# --- the stream -------------------------------------------------------------------------------


def test_a_seed_gives_the_stream_of_numpys_philox():
    raw = np.random.Philox(12345).random_raw(100)
    assert np.array_equal(random.bits(100, dtype="uint64", generator=Generator(12345)).numpy(), raw)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7, 5), (3, 20001)], ids=repr)
def test_bits_are_the_words_of_the_stream(dtype, shape):
    generator = stepped(3, 2)
    expected = philox(generator.state).random_raw(int(np.prod(shape)) + 1).view(dtype)[: int(np.prod(shape))]
    assert np.array_equal(random.bits(shape, dtype=dtype, generator=generator).numpy().reshape(-1), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_uniforms_are_those_of_numpy(dtype):
    generator = stepped(4, 1)
    expected = np.random.Generator(philox(generator.state)).random((5, 9001), dtype=dtype)
    assert np.array_equal(random.uniform((5, 9001), dtype=dtype, generator=generator).numpy(), expected)


@pytest.mark.parametrize(("dtype", "bits"), [("float16", 11), ("bfloat16", 8)])
def test_half_uniforms_are_the_top_bits_and_stay_below_one(dtype, bits):
    generator = Generator(5)
    words = philox(generator.state).random_raw(50_000).view(np.uint32)
    x = random.uniform(100_000, dtype=dtype, generator=generator).numpy().astype(np.float64)
    assert np.array_equal(x, (words >> (32 - bits)) * 2.0**-bits)
    assert x.max() < 1.0


def _box_muller(first, second):
    """In long double: cosine and sine of the second, an angle in turns, times the radius that the first gives."""
    radius, turn = np.sqrt(-2 * np.log(first.astype(np.longdouble))), second.astype(np.longdouble)
    angle = 2 * np.longdouble("3.14159265358979323846264338327950288") * turn
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1).reshape(-1)


@pytest.mark.parametrize(("dtype", "ulps"), [(np.float32, 0.51), (np.float64, 4.0)])
def test_normals_are_box_muller_to_a_few_ulp(dtype, ulps):
    generator = Generator(6)
    if dtype is np.float64:
        words, scale = philox(generator.state).random_raw(20_000) >> np.uint64(11), 2.0**-53
    else:
        words, scale = philox(generator.state).random_raw(10_000).view(np.uint32), 2.0**-32
    exact = _box_muller((words[0::2] + 1.0) * scale, words[1::2] * scale)
    found = random.normal(20_000, dtype=dtype, generator=generator).numpy()
    plain = np.abs(exact) > 0.01  # nearer to 0 the reference loses digits of its angle
    error = np.abs(found.astype(np.longdouble) - exact) / np.spacing(np.abs(exact).astype(dtype))
    assert plain.mean() > 0.98 and error[plain].max() <= ulps


@pytest.mark.parametrize(("dtype", "largest"), [("float32", 6.7), ("float64", 8.6)])
def test_normals_are_normal(dtype, largest):
    x = random.normal(200_000, dtype=dtype, generator=Generator(7)).numpy()
    assert scipy.stats.kstest(x, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(x[0::2], x[1::2])[0, 1]) < 0.01
    assert np.abs(x).max() < largest


def test_normal_and_uniform_take_a_mean_and_bounds():
    x = random.normal(100_000, 3.0, 0.5, generator=Generator(8)).numpy()
    assert abs(x.mean() - 3) < 0.01 and abs(x.std() - 0.5) < 0.01
    u = random.uniform(100_000, -2.0, 4.0, generator=Generator(8)).numpy()
    assert u.min() >= -2 and u.max() <= 4 and abs(u.mean() - 1) < 0.02


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 4), (0, 2**33 + 7), (-(2**63), 2**63)])
def test_integers_are_the_high_word_of_the_product(low, high):
    generator = Generator(9)
    expected = [low + (int(w) * (high - low) >> 64) for w in philox(generator.state).random_raw(500)]
    assert random.integers(500, low, high, generator=generator).tolist() == expected


def test_integers_are_evenly_distributed():
    counts = np.bincount(random.integers(60_000, 0, 6, generator=Generator(10)).numpy(), minlength=6)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_integers_must_fit_the_dtype():
    assert random.integers(3, 255, 256, dtype="uint8").tolist() == [255, 255, 255]
    with pytest.raises(gpuad.DataError, match="do not fit in uint8"):
        random.integers(3, 0, 257, dtype="uint8")
    with pytest.raises(gpuad.DataError, match="low < high"):
        random.integers(3, 5, 5)


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_bernoulli_is_true_with_probability_p(p):
    x = random.bernoulli((200, 500), p, generator=Generator(11))
    assert x.dtype == gpuad.bool
    assert abs(x.numpy().mean() - p) < 0.01 * (0 < p < 1) + 1e-12


def test_permutation_has_every_integer_once_in_an_order_of_its_own():
    orders = [random.permutation(50, generator=Generator(seed)).tolist() for seed in (1, 1, 2)]
    assert sorted(orders[0]) == list(range(50))
    assert orders[0] == orders[1] != orders[2]


# --- elements by themselves -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "dtype"),
    [
        ("random_bits", np.uint8),
        ("random_bits", np.uint16),
        ("random_integers", np.int32),
        ("random_uniform", np.float32),
        ("random_uniform", np.float64),
        ("random_normal", np.float32),
        ("random_normal", np.float64),
    ],
)
def test_any_part_of_a_draw_can_be_computed_by_itself(source, dtype):
    params = (*stepped(12, 3).state, *((5, 900) if source == "random_integers" else ()))
    function = getattr(random, source).numpy
    whole = np.empty((1, 101), dtype)
    function(params, 0, whole)
    for start, stop in [(0, 1), (1, 2), (3, 10), (16, 101), (100, 101), (17, 17)]:
        part = np.empty((1, stop - start), dtype)
        function(params, start, part)
        assert np.array_equal(part, whole[:, start:stop])


@pytest.mark.parametrize("shape", [(40_000,), (4, 10_000), (3, 20_001), (20_001, 3)], ids=repr)
def test_a_draw_does_not_depend_on_its_shape(shape):
    n = int(np.prod(shape))
    flat = random.normal(n, generator=Generator(13)).numpy()
    assert np.array_equal(random.normal(shape, generator=Generator(13)).numpy().reshape(-1), flat)
    fused = gpuad.sum(random.normal(shape, generator=Generator(13)), axis=-1).numpy()
    np.testing.assert_allclose(fused, flat.reshape(shape).sum(-1, dtype=np.float64), atol=1e-3)


def test_a_draw_joins_the_kernel_that_uses_it():
    seen = []
    watchers.append(seen.append)
    try:
        gpuad.sum(random.uniform((100, 100)) * 2.0).numpy()
    finally:
        watchers.pop()
    (kernel,) = seen
    assert kernel.ops[0] == "random_uniform" and len(kernel.outputs) == 1


def test_draws_on_the_meta_device_have_shapes_and_advance_alike():
    one, other = Generator(14), Generator(14)
    with gpuad.use_device("meta"):
        assert random.normal((3, 5), generator=one).shape == (3, 5)
        assert random.permutation(7, generator=one).shape == (7,)
    random.normal((3, 5), generator=other)
    random.permutation(7, generator=other)
    assert one.state == other.state


# --- state ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("draw", "blocks"),
    [
        (lambda g: random.uniform(8, generator=g), 1),
        (lambda g: random.uniform(9, generator=g), 2),
        (lambda g: random.uniform(9, dtype="float64", generator=g), 3),
        (lambda g: random.normal((3, 3), generator=g), 2),
        (lambda g: random.bits(17, dtype="uint16", generator=g), 2),
        (lambda g: random.integers(4, 0, 3, dtype="int8", generator=g), 1),
        (lambda g: random.uniform((0, 5), generator=g), 0),
        (lambda g: g.split(2), 1),
    ],
)
def test_a_draw_advances_by_the_blocks_its_words_fill(draw, blocks):
    generator = Generator(15)
    draw(generator)
    assert generator.state[2:] == (blocks, 0, 0, 0)


def test_the_counter_carries_and_wraps():
    generator = Generator(16)
    key = generator.state[:2]
    generator.set_state((*key, 2**64 - 1, 2**64 - 1, 2**64 - 1, 2**64 - 1))
    expected = philox(generator.state).random_raw(8)
    assert np.array_equal(random.bits(8, dtype="uint64", generator=generator).numpy(), expected)
    assert generator.state == (*key, 1, 0, 0, 0)


def test_state_survives_json_pickle_and_copies():
    generator = Generator(17)
    random.uniform(10, generator=generator)
    restored = Generator()
    restored.set_state(json.loads(json.dumps(generator.state)))
    others = [restored, pickle.loads(pickle.dumps(generator)), copy.deepcopy(generator)]
    first = random.uniform(5, generator=generator).tolist()
    assert all(random.uniform(5, generator=g).tolist() == first for g in others)
    assert np.array(generator.state, np.uint64).tolist() == list(generator.state)


def test_split_gives_streams_of_their_own():
    parent = Generator(18)
    children = parent.split(3)
    streams = [random.bits(4, dtype="uint64", generator=g).tolist() for g in (parent, *children)]
    assert len({tuple(s) for s in streams}) == 4
    again = Generator(18)
    assert [g.state for g in again.split(3)] == [(*g.state[:2], 0, 0, 0, 0) for g in children]


def test_seed_restarts_the_default_generator():
    random.seed(19)
    first = random.uniform(5).tolist()
    random.seed(19)
    assert random.uniform(5).tolist() == first == random.uniform(5, generator=Generator(19)).tolist()


@pytest.mark.parametrize("seed", [-1, 1.5, "a"])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(gpuad.DataError, match="a seed is an integer"):
        Generator(seed)


def test_wrong_arguments_are_named():
    with pytest.raises(gpuad.DataError, match=r"gpuad.random.Generator, got Philox"):
        random.uniform(3, generator=np.random.Philox(0))
    with pytest.raises(gpuad.DTypeError, match="unsigned"):
        random.bits(3, dtype="int32")
    with pytest.raises(gpuad.DTypeError, match=r"normal\(\) gives floats"):
        random.normal(3, dtype="int32")
    with pytest.raises(gpuad.ShapeError, match="negative"):
        random.uniform((2, -1))
    with pytest.raises(gpuad.DataError, match="six 64-bit words"):
        Generator(0).set_state((1, 2, 3))


def test_threads_that_share_a_generator_draw_different_numbers():
    generator, drawn = Generator(20), []

    def work():
        for _ in range(200):
            drawn.append(random.bits(1, dtype="uint64", generator=generator).array.params[:6])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(drawn)) == 800 and generator.state[2] == 800


# --- recording and replay ---------------------------------------------------------------------


def test_recording_notes_each_generator_once_before_its_first_draw():
    a, b, unused = Generator(21), Generator(22), Generator(23)
    random.uniform(3, generator=a)
    before = {a: a.state, b: b.state}
    with random.recording() as drawn:
        random.uniform(3, generator=a)
        random.uniform(3, generator=b)
        random.uniform(3, generator=a)
    random.uniform(3, generator=unused)
    assert drawn == before


def test_recordings_nest():
    a = Generator(24)
    with random.recording() as outer:
        random.uniform(3, generator=a)
        middle = a.state
        with random.recording() as inner:
            random.uniform(3, generator=a)
    assert outer[a] != middle and inner == {a: middle}


def test_replaying_draws_the_same_and_leaves_the_generator_where_it_is():
    def region():
        return random.uniform(3, generator=a).tolist() + random.uniform(3).tolist()

    a = Generator(25)
    with random.recording() as drawn:
        first = region()
    after = a.state
    with random.replaying(drawn), random.recording() as again:
        assert region() == first
        with random.replaying(again):
            assert region() == first
    assert again == drawn
    assert a.state == after


def test_restoring_the_recorded_state_repeats_the_draw():
    a = Generator(26)
    with random.recording() as drawn:
        first = random.uniform(3, generator=a).tolist()
    for generator, state in drawn.items():
        generator.set_state(state)
    assert random.uniform(3, generator=a).tolist() == first
