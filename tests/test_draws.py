"""CuPy's global generator in checkpointed functions: another one stands in its place, and draws the same again."""

import ast
import importlib.util
import inspect
import sys
import textwrap
import types

import numpy as np
import pytest

import gpuad
import stand_in
from gpuad import asarray, checkpoint

X = np.linspace(0.1, 0.9, 6)


class RandomState:
    """CuPy's class as far as it matters: `_lock` is made by the constructor, and asked for by everything else."""

    made = 0

    def __init__(self, seed=None, method=None):
        RandomState.made += 1
        self._lock = True
        self._generator = np.random.RandomState()
        self.seed(seed)

    def seed(self, seed=None):
        assert self._lock
        self._generator.seed(seed)

    def randint(self, low, high=None, size=None, dtype=int):
        assert self._lock
        return np.asarray(self._generator.randint(low, high, size))  # CuPy gives an array

    def random_sample(self, size=None, dtype=float):
        assert self._lock
        return self._generator.random_sample(size)


@pytest.fixture
def cupy(monkeypatch):
    """A module of that name with the global generator, seeded with 5, and its functions."""
    module, generators = types.ModuleType("cupy"), {0: RandomState(5)}

    def set_random_state(rs):
        if not isinstance(rs, RandomState):
            raise TypeError(f"Random state must be an instance of RandomState. Actual: {type(rs)}")
        generators[0] = rs

    def get_random_state():
        return generators[0]

    module.random = types.SimpleNamespace(
        RandomState=RandomState,
        get_random_state=get_random_state,
        set_random_state=set_random_state,
        rand=lambda *size: get_random_state().random_sample(size),
        seed=lambda seed=None: get_random_state().seed(seed),
    )
    module.cuda = types.SimpleNamespace(is_available=lambda: True)
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


def value_and_slope(f, **options):
    x = asarray(X).requires_grad_()
    y = checkpoint(f, **options)(x)
    value = y.numpy()
    gpuad.sum(y).backward()
    return value, x.grad.numpy()


def test_what_is_drawn_is_drawn_again(cupy):
    value, slope = value_and_slope(lambda x: gpuad.sin(x) * cupy.random.rand(6))
    assert np.allclose(value / np.sin(X), slope / np.cos(X))


def test_each_call_draws_anew_and_the_same_from_the_same_seed(cupy):
    def run():
        cupy.random.seed(5)
        return [value_and_slope(lambda x: x * cupy.random.rand(6))[1] for _ in range(3)]

    first, again = run(), run()
    assert all(map(np.array_equal, first, again))
    assert not np.array_equal(first[0], first[1])


def test_the_global_generator_is_back_afterwards_and_has_moved_by_one_number(cupy):
    own = cupy.random.get_random_state()
    expected = RandomState(5)
    expected.randint(0, 2**31 - 1)
    value_and_slope(lambda x: x * cupy.random.rand(6))
    assert cupy.random.get_random_state() is own
    assert cupy.random.rand() == expected.random_sample(())


def test_it_is_back_after_an_error_too(cupy):
    own = cupy.random.get_random_state()

    def f(x):
        cupy.random.rand()
        raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        checkpoint(f)(asarray(X))
    assert cupy.random.get_random_state() is own


def test_a_function_that_draws_nothing_makes_no_generator_and_moves_none(cupy):
    expected, before = RandomState(5).random_sample(3), RandomState.made
    value_and_slope(lambda x: gpuad.sin(x))
    assert RandomState.made == before
    assert np.array_equal(cupy.random.rand(3), expected)


def test_a_seed_inside_stays_inside(cupy):
    def f(x):
        cupy.random.seed(1)
        return x * cupy.random.rand(6)

    for _ in range(2):
        assert np.array_equal(value_and_slope(f)[1], RandomState(1).random_sample(6))


def test_checkpoints_inside_draw_again_what_they_drew(cupy):
    def inner(x):
        return gpuad.sin(x) * cupy.random.rand(6)

    part = checkpoint(inner)
    value, slope = value_and_slope(lambda x: part(x) * cupy.random.rand(6) + 0 * part(x))
    assert np.allclose(value / np.sin(X), slope / np.cos(X))


def test_where_no_gpu_is_there_nothing_is_asked_of_it(cupy):
    cupy.cuda.is_available = lambda: False
    cupy.random.get_random_state = None
    assert np.array_equal(value_and_slope(lambda x: x * 2)[1], np.full(6, 2.0))


# --- against CuPy itself, which imports without a driver --------------------------------------


@pytest.fixture(scope="module")
def real():
    if importlib.util.find_spec("cupy") is None:
        pytest.skip("needs CuPy itself to compare with: pip install cupy-cuda12x")
    import cupy

    assert not cupy.__file__.startswith(str(stand_in.FOLDER))
    return cupy


def test_the_fake_has_the_signatures_of_cupy(real):
    for name in ("__init__", "seed", "randint", "random_sample"):
        ours, theirs = (inspect.signature(getattr(kind, name)) for kind in (RandomState, real.random.RandomState))
        assert ours == theirs, name
    assert str(inspect.signature(real.random.get_random_state)) == "()"
    assert str(inspect.signature(real.random.set_random_state)) == "(rs)"
    assert str(inspect.signature(real.random.seed)) == "(seed=None)"
    assert callable(real.cuda.is_available)


def test_everything_in_cupy_s_generator_asks_for_what_its_constructor_makes(real):
    """The one that stands in its place begins when it is asked for something that is not there yet."""
    kind = real.random.RandomState
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    functions = {f.name: f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef)}
    made = {n.attr for n in attributes(functions["__init__"]) if isinstance(n.ctx, ast.Store)}
    made |= {n.attr for n in attributes(functions["seed"]) if isinstance(n.ctx, ast.Store)}
    assert "_generator" in made
    assert not [name for name in made if hasattr(kind, name)]  # or the class would answer
    for name, function in functions.items():
        used = sorted(attributes(function), key=lambda n: (n.lineno, n.col_offset))
        if name not in ("__init__", "<lambda>") and used:
            assert isinstance(used[0].ctx, ast.Load), name  # nothing is put where the constructor would write over it


def attributes(function):
    """Where a method says self.something."""
    return [
        n
        for n in ast.walk(function)
        if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id == "self"
    ]


@pytest.mark.gpu
def test_cupy_s_own_generator_is_drawn_again_on_a_gpu(real):
    own = real.random.get_random_state()
    x = asarray(X, device="cuda").requires_grad_()
    y = checkpoint(lambda x: gpuad.sin(x) * asarray(real.random.rand(6)))(x)
    value = y.numpy()
    gpuad.sum(y).backward()
    assert np.allclose(value / np.sin(X), x.grad.numpy() / np.cos(X))
    assert real.random.get_random_state() is own
