"""checkpoint(policy=): exactly what a policy says is kept, and every gradient has the bits of one without."""

from collections import Counter
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gpuad
from gpuad import DataError, asarray, checkpoint, checkpoint_name, grad, jvp, names, vjp
from gpuad.attribution import ledgers
from gpuad.buffer import LiveBytes, observers
from gpuad.fuse.kernel import watchers
from gpuad.nn.functional import dropout, linear_cross_entropy, rms_norm, silu, softmax

N = 24
POLICIES = {
    "nothing": "nothing",
    "matmuls": "matmuls",
    "names": names("hidden", "weights"),
    "small": lambda value: value.nbytes <= N * 8,
    "everything": lambda value: True,
    "by op": lambda value: value.op in ("exp", "tanh", "sum"),
}
DTYPES = [np.float32, np.float64]


def values(dtype=np.float64, shape=(N, N), seed=0):
    return asarray(np.random.default_rng(seed).standard_normal(shape).astype(dtype) / 4)


def layer(p, x):
    """Products, rows, dropout, a broadcast vector and names; several results in a tree."""
    hidden = checkpoint_name(gpuad.tanh(x @ p["w"] + p["b"][0]), "hidden")
    weights = checkpoint_name(softmax(dropout(hidden, 0.25) @ hidden.mT), "weights")
    return {"y": weights @ rms_norm(x) * gpuad.exp(-hidden), "total": (gpuad.sum(hidden * hidden, axis=1), None)}


def layers(dtype):
    return {"w": values(dtype, seed=1), "b": [values(dtype, (N,), seed=2)]}, values(dtype, seed=3)


def loss_of(f):
    """Of a layer `f`: a scalar that uses all of its results, after dropout that begins at the same seed each time."""

    def loss(p, x):
        gpuad.random.seed(11)
        out = f(p, x)
        return gpuad.sum(dropout(out["y"], 0.5) ** 2) + gpuad.sum(gpuad.sin(out["total"][0]))

    return loss


def bits(tree):
    return [x.numpy().copy() for x in gpuad.tree.leaves(tree)]


def assert_same_bits(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.dtype == y.dtype
        assert np.array_equal(x, y)


# --- every mode and order ---------------------------------------------------------------------


def reverse(loss, p, x):
    return gpuad.value_and_grad(loss, argnums=(0, 1))(p, x)


def forward(loss, p, x):
    return jvp(loss, (p, x), (gpuad.tree.map(gpuad.ones_like, p), x))


def forward_over_reverse(loss, p, x):
    return jvp(grad(loss), (p, x), (gpuad.tree.map(gpuad.ones_like, p), x))


def reverse_over_reverse(loss, p, x):
    def slope(p):
        g = grad(loss)(p, x)
        return gpuad.sum(g["w"] * p["w"]) + gpuad.sum(g["b"][0])

    return grad(slope)(p)


def reverse_over_forward(loss, p, x):
    return grad(lambda p: jvp(lambda x: loss(p, x), (x,), (x,))[1])(p)


def nested_gradient(loss, p, x):
    """A gradient step inside of a function that is differentiated."""

    def after_a_step(p):
        g = grad(loss)(p, x)
        return loss({"w": p["w"] - 0.1 * g["w"], "b": p["b"]}, x)

    return grad(after_a_step)(p)


def ambient(loss, p, x):
    p, x = leaves_of(p, x)
    loss(p, x).backward()
    return [t.grad for t in gpuad.tree.leaves((p, x))]


def ambient_twice(loss, p, x):
    """Two sweeps of one tape, whose gradients add up."""
    p, x = leaves_of(p, x)
    y = loss(p, x)
    y.backward(retain_graph=True)
    y.backward()
    return [t.grad for t in gpuad.tree.leaves((p, x))]


def ambient_second_order(loss, p, x):
    p, x = leaves_of(p, x)
    loss(p, x).backward(create_graph=True)
    first = [t.grad for t in gpuad.tree.leaves((p, x))]
    for t in gpuad.tree.leaves((p, x)):
        t.grad = None
    gpuad.sum(first[0] * first[0]).backward()
    return first, [t.grad for t in gpuad.tree.leaves((p, x))]


def grad_of_ambient(loss, p, x):
    """A functional gradient under the ambient tape: a penalty."""
    p, x = leaves_of(p, x)
    g = grad(loss, argnums=1)(p, x)
    gpuad.sum(g * g).backward()
    return [t.grad for t in gpuad.tree.leaves((p, x))]


def in_no_grad(loss, p, x):
    with gpuad.no_grad():
        value = loss(*leaves_of(p, x))
        assert not value.requires_grad
        return value, grad(loss)(p, x)


def leaves_of(p, x):
    return gpuad.tree.map(lambda t: t.alias().requires_grad_(), (p, x))


MODES = [
    reverse,
    forward,
    forward_over_reverse,
    reverse_over_reverse,
    reverse_over_forward,
    nested_gradient,
    ambient,
    ambient_twice,
    ambient_second_order,
    grad_of_ambient,
    in_no_grad,
]


def closing_over_parameters(policy):
    return lambda p, x: checkpoint(lambda x: layer(p, x), policy=policy)(x)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("mode", MODES, ids=lambda m: m.__name__)
def test_no_policy_changes_a_bit(mode, dtype):
    expected = bits(mode(loss_of(layer), *layers(dtype)))
    for name, policy in POLICIES.items():
        found = bits(mode(loss_of(checkpoint(layer, policy=policy)), *layers(dtype)))
        of_captured = bits(mode(loss_of(closing_over_parameters(policy)), *layers(dtype)))
        assert all(map(np.array_equal, found, of_captured)), name
        assert [a.dtype for a in found] == [a.dtype for a in expected], name
        assert all(map(np.array_equal, found, expected)), name


# --- random functions -------------------------------------------------------------------------

STEPS = {
    "tanh": lambda x, w: gpuad.tanh(x),
    "times w": lambda x, w: x * w,
    "product": lambda x, w: x @ w,
    "own product": lambda x, w: gpuad.tanh(x @ x.mT),
    "norm": lambda x, w: rms_norm(x),
    "silu": lambda x, w: silu(x),
    "softmax": lambda x, w: softmax(x),
    "row": lambda x, w: x - gpuad.mean(x, axis=1, keepdims=True),
    "column": lambda x, w: x + gpuad.max(x, axis=0),
    "total": lambda x, w: x * gpuad.sum(w),
    "dropout": lambda x, w: dropout(x, 0.3),
    "transpose": lambda x, w: x.mT,
    "half": lambda x, w: gpuad.concat([x[3:], x[:3]]),
    "assign": lambda x, w: assigned(x, w),
    "named": lambda x, w: checkpoint_name(gpuad.sin(x), "hidden"),
    "detached": lambda x, w: x * gpuad.tanh(x).detach(),
    "choice": lambda x, w: gpuad.where(x > 0, x, -w),
}


def assigned(x, w):
    y = x * 1.5
    y[1:4] = w[0]
    y += x
    return y


@given(
    st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=8),
    st.sampled_from(sorted(POLICIES)),
    st.integers(0, 4),
    st.sampled_from(DTYPES),
)
@settings(max_examples=40)
def test_random_functions_have_the_same_gradients(steps, policy, split, dtype):
    def run(steps, x, w):
        for name in steps:
            x = STEPS[name](x, w)
        return x

    def slopes(wrap):
        gpuad.random.seed(5)
        x, w = (values(dtype, (6, 6), seed).requires_grad_() for seed in (0, 1))
        inner = wrap(lambda x: run(steps[:split], x, w), policy="nothing")  # w is captured
        outer = wrap(lambda x, w: run(steps[split:], inner(x), w), policy=POLICIES[policy])
        y = outer(x, w)
        gpuad.sum(y * y).backward()
        return y.numpy(), x.grad.numpy(), w.grad.numpy() if w.grad is not None else np.zeros(1)

    plain, found = slopes(lambda f, policy: f), slopes(checkpoint)
    assert np.array_equal(plain[0], found[0])
    for a, b in zip(plain[1:], found[1:], strict=True):  # where sums of three cotangents are, they may round otherwise
        assert np.abs(a - b).max() <= 1e4 * np.finfo(dtype).eps * (1 + np.abs(a).max())


# --- what is kept, and what is computed again -------------------------------------------------


class Runs(Counter):
    """How often each op has been evaluated: a ledger that counts, and a watcher of kernels."""

    def ran(self, op, arrays, params):
        self[op.name] += 1

    def kernel(self, kernel):
        self.update(node.op.name for node in kernel.nodes if node.op is not None)

    def assigned(self, *_): ...
    def kept(self, *_): ...
    def released(self, *_): ...
    def computed(self, *_): ...
    def mark(self, *_): ...


@contextmanager
def counting():
    runs = Runs()
    ledgers.append(runs)
    watchers.append(runs.kernel)
    try:
        yield runs
    finally:
        ledgers.remove(runs)
        watchers.remove(runs.kernel)


def two_products(w, x):
    a = checkpoint_name(gpuad.tanh(x @ w[0]), "a")
    b = checkpoint_name(gpuad.sin(a @ w[1]), "b")
    return gpuad.exp(b)


def measured(f, *, backward=True):
    """The bytes that the tape of f(w, x) keeps beside its inputs and result, and what its backward pass evaluates."""
    w = [values(seed=k).requires_grad_() for k in range(2)]
    x = values(seed=7).requires_grad_()
    y = None
    live = LiveBytes()
    observers.append(live)
    try:
        y = f(w, x)
        y.numpy()
        kept = live.live - y.nbytes
        gpuad.sum(y).numpy()
        with counting() as runs:
            gpuad.sum(y).backward()
        del y
        assert live.live == sum(t.grad.nbytes for t in (*w, x) if t.grad is not None)  # all else is given back
    finally:
        observers.remove(live)
    return kept, runs


ONE = N * N * 8  # bytes of a matrix


@pytest.mark.parametrize(
    ("policy", "kept", "products"),
    [
        ("nothing", 0, 2 + 4),  # two again, and two for the gradients of each
        ("matmuls", 2, 4),
        (names("a"), 1, 1 + 4),  # the second product is computed from it
        (names("b"), 1, 2 + 4),  # the rule of sin asks for the second product, not for its own result
        (names("a", "b"), 2, 1 + 4),
        (names("other"), 0, 2 + 4),
        (lambda value: value.op == "tanh", 1, 1 + 4),
        (lambda value: value.op in ("tanh", "matmul"), 3, 4),
        (lambda value: value.name == "b" or value.op == "matmul", 3, 4),
        (lambda value: False, 0, 2 + 4),
    ],
)
def test_exactly_what_a_policy_says_is_kept_and_not_computed_again(policy, kept, products):
    nbytes, runs = measured(checkpoint(two_products, policy=policy))
    assert nbytes == kept * ONE
    assert runs["matmul"] == products


def test_a_kept_value_is_not_evaluated_again():
    for name, again in (("a", "sin"), ("b", "tanh")):
        _, runs = measured(checkpoint(two_products, policy=names(name)))
        here = {"a": "tanh", "b": "sin"}[name]
        assert runs[here] == 0, name
        assert runs[again] >= 1, name


def test_what_no_derivative_needs_is_not_computed_again():
    def f(w, x):
        return (x @ w[0]) @ w[1]  # of which no rule asks for the last product

    _, runs = measured(checkpoint(f))
    assert runs["matmul"] == 1 + 4
    _, runs = measured(checkpoint(f, policy="matmuls"))
    assert runs["matmul"] == 4


def test_all_results_of_an_op_are_kept_when_one_has_a_name():
    """silu gives besides the gate, which its rule needs."""

    def f(w, x):
        return gpuad.exp(checkpoint_name(silu(x @ w[0]), "named") @ w[1])

    by_name, runs = measured(checkpoint(f, policy=names("named")))
    by_op, _ = measured(checkpoint(f, policy=lambda value: value.op == "silu"))
    assert by_name == by_op == 2 * ONE
    assert runs["silu_gate"] == 0
    assert runs["matmul"] == 2 + 4


@pytest.mark.parametrize("policy", POLICIES)
def test_an_op_that_gives_more_where_a_derivative_follows_is_computed_again(policy):
    targets = asarray(np.arange(N) % 5)

    def loss(x, w):
        return checkpoint_name(linear_cross_entropy(gpuad.sin(x), w[:5], targets), "hidden")

    expected = bits(grad(loss, argnums=(0, 1))(values(), values(seed=1)))
    found = bits(grad(checkpoint(loss, policy=POLICIES[policy]), argnums=(0, 1))(values(), values(seed=1)))
    assert_same_bits(found, expected)


def test_a_named_view_is_kept():
    def f(w, x):
        flat = checkpoint_name(gpuad.reshape(gpuad.tanh(x @ w[0]), (N * N,)), "flat")
        return gpuad.exp(gpuad.reshape(flat, (N, N)) @ w[1])

    kept, runs = measured(checkpoint(f, policy=names("flat")))
    assert kept == ONE
    assert runs["matmul"] == 2 + 4  # the second for exp, the first for tanh


def test_names_of_what_is_there_anyway_keep_nothing():
    def f(w, x):
        x, v = checkpoint_name(x, "named"), checkpoint_name(w[0], "named")
        constant = checkpoint_name(values(seed=3), "named")
        return gpuad.tanh((x * constant) @ v) @ w[1]

    assert measured(checkpoint(f, policy=names("named")))[0] == 0
    x = values()
    assert checkpoint_name(x, "outside") is x


def test_a_policy_is_asked_of_every_value_with_its_name_and_size():
    asked = []

    def policy(value):
        asked.append((value.op, value.name, value.shape, value.dtype, value.nbytes))
        return False

    x = asarray(np.ones((2, 3), np.float32))
    checkpoint(lambda x: gpuad.sum(checkpoint_name(gpuad.sin(x) * 2, "twice"), axis=0), policy=policy)(x)
    assert asked[:3] == [
        ("sin", None, (2, 3), gpuad.float32, 24),
        ("multiply", None, (2, 3), gpuad.float32, 24),
        ("multiply", "twice", (2, 3), gpuad.float32, 24),
    ]
    before = len(asked)
    grad(lambda x: gpuad.sum(checkpoint(gpuad.sin, policy=policy)(x)))(x)
    assert len(asked) == before + 1  # a second run asks no more


def test_nested_checkpoints_keep_by_their_own_policies():
    def inner(w, x):
        return gpuad.tanh(checkpoint_name(x @ w[0], "a"))

    def kept(outer_policy, inner_policy):
        part = checkpoint(inner, policy=inner_policy)
        return measured(checkpoint(lambda w, x: gpuad.exp(part(w, x) @ w[1]), policy=outer_policy))

    assert kept("nothing", "nothing")[0] == 0
    assert kept("nothing", names("a"))[0] == 0  # what the inner keeps lives as long as the outer's tape
    assert kept("matmuls", "nothing")[0] == ONE  # the product that the outer sees
    assert kept(lambda value: value.op == "checkpoint(inner)", "nothing")[0] == ONE
    # the outer's run again, the inner's for its own derivative
    assert kept("nothing", "nothing")[1]["matmul"] == 2 + 1 + 4
    assert kept("nothing", "matmuls")[1]["matmul"] == 2 + 4
    assert kept("matmuls", "matmuls")[1]["matmul"] == 1 + 4


def test_the_tape_keeps_what_a_policy_keeps_until_the_last_sweep():
    w = [values(seed=k).requires_grad_() for k in range(2)]
    live = LiveBytes()
    observers.append(live)
    try:
        y = gpuad.sum(checkpoint(two_products, policy="matmuls")(w, values(seed=7)))
        y.backward(retain_graph=True)
        gradients = sum(t.grad.nbytes for t in w)
        assert live.live == y.nbytes + gradients + 2 * ONE + ONE  # and x
        with counting() as runs:
            y.backward()
        assert runs["matmul"] == 3  # x has no gradient
        assert live.live == y.nbytes + gradients
    finally:
        observers.remove(live)


def test_without_a_derivative_nothing_is_kept():
    w = [values(seed=k) for k in range(2)]
    x = values(seed=7)
    f = checkpoint(two_products, policy="matmuls")
    live = LiveBytes()
    observers.append(live)
    try:
        y = f(w, x)
        y.numpy()
        assert live.live == ONE
        for t in w:
            t.requires_grad_()
        with gpuad.no_grad():
            z = f(w, x)
        z.numpy()
        assert not z.requires_grad
        assert live.live == 2 * ONE
    finally:
        observers.remove(live)


# --- how it is called -------------------------------------------------------------------------


def test_it_decorates_with_and_without_options():
    @checkpoint
    def plain(x):
        """Twice x."""
        return x * 2

    @checkpoint(policy="matmuls", determinism="shapes")
    def with_options(x, *, factor, extra=None):
        return {"y": gpuad.sin(x) * factor["by"], "extra": extra}

    class Block:
        @checkpoint
        def __call__(self, x):
            return gpuad.sin(x * x)

    assert (plain.__name__, plain.__doc__) == ("plain", "Twice x.")
    x, by = asarray(0.5, dtype=gpuad.float64), asarray(3.0, dtype=gpuad.float64)
    assert grad(plain)(x).item() == 2.0
    dx, dby = grad(lambda x, by: with_options(x, factor={"by": by})["y"], argnums=(0, 1))(x, by)
    assert (dx.item(), dby.item()) == pytest.approx((3 * np.cos(0.5), np.sin(0.5)))
    assert with_options(x, factor={"by": 2}, extra="text")["extra"] == "text"
    assert grad(Block())(x).item() == pytest.approx(np.cos(0.25))


def test_results_that_nobody_computes_pass_through():
    @checkpoint(policy=lambda value: True)
    def f(x, y):
        return [x, {"none": None, "number": 3, "y": y}, (gpuad.sin(x), gpuad.sin(x).detach(), gpuad.argmax(x))]

    x, y = values(shape=(4,)).requires_grad_(), values(shape=(4,), seed=1)
    (same, middle, (sine, still, where)) = f(x, y)
    assert middle["none"] is None
    assert middle["number"] == 3
    assert np.array_equal(middle["y"].numpy(), y.numpy())
    assert where.item() == x.numpy().argmax()
    gpuad.sum(same * 2 + sine * 3 + still * 5).backward()
    assert np.allclose(x.grad.numpy(), 2 + 3 * np.cos(x.numpy()))


def test_unused_results_have_no_cotangent_and_pullbacks_may_be_called_twice():
    p, x = layers(np.float64)
    out, pullback = vjp(checkpoint(layer, policy="matmuls"), p, x)
    zero = gpuad.tree.map(gpuad.zeros_like, out)
    first = bits(pullback(out))
    assert_same_bits(bits(pullback(out)), first)
    assert all(not g.any() for g in bits(pullback(zero)))


def test_bad_input_is_refused_where_the_function_is_made():
    f = gpuad.sin
    for options, said in (
        ({"policy": "all"}, r'policy= is "nothing", "matmuls", names\(...\) or a function of a value, got \'all\''),
        ({"policy": 3}, "policy= is .*, got 3"),
        ({"policy": ["a"]}, "policy= is"),
        ({"determinism": "bits"}, r'determinism= is "hash", "shapes" or "off", got \'bits\''),
        ({"generators": [3]}, "generators= takes generators of NumPy and Python's random.Random, got int"),
        ({"generators": [gpuad.random.Generator(0)]}, "gpuad's own need not be named"),
        ({"generators": np.random.default_rng(0)}, "generators= takes a list of generators, got Generator"),
    ):
        with pytest.raises(DataError, match=said):
            checkpoint(f, **options)
        with pytest.raises(DataError, match=said):
            checkpoint(**options)
    with pytest.raises(DataError, match=r"checkpoint\(\) takes a function, got Tensor"):
        checkpoint(values())
    for wrong in ((), ("a", 3), (["a"],)):
        with pytest.raises(DataError, match=r"names\(\) takes the names of values"):
            names(*wrong)
    with pytest.raises(DataError, match=r"checkpoint_name\(\) takes a tensor and a name, got ndarray and 'a'"):
        checkpoint_name(np.ones(3), "a")
    with pytest.raises(DataError, match=r"checkpoint_name\(\) takes a tensor and a name, got Tensor and 3"):
        checkpoint_name(values(), 3)


def test_the_error_of_a_policy_reaches_the_user():
    def policy(value):
        raise KeyError(value.op)

    with pytest.raises(KeyError, match="sin"):
        checkpoint(gpuad.sin, policy=policy)(values())
    assert grad(lambda x: gpuad.sum(x * x))(values()).shape == (N, N)  # and nothing is left open
