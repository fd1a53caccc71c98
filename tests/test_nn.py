"""Modules as trees, their names and state, layers against PyTorch, initial values, files."""

import gc
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import gpuad
from gpuad import nn, random, tree
from gpuad.buffer import LiveBytes, observers
from gpuad.errors import DataError, DTypeError, GpuadError, GradientError, IndexRangeError, ShapeError
from gpuad.random import Generator
from gpuad.tensor import Tensor

F = nn.functional


class Tied(nn.Module):
    """A tie, a buffer, a list, a dict, and what is static."""

    def __init__(self):
        self.a = nn.Linear(3, 3, bias=False)
        self.b = nn.Linear(3, 3)
        self.b.weight = self.a.weight
        self.layers = [nn.Linear(3, 2), {"scale": nn.Parameter(np.float32(2.0))}]
        self.count = gpuad.asarray(np.array([1.0, 2.0], np.float32))
        self.table = [1, 2]
        self.activation = gpuad.tanh

    def forward(self, x):
        y = self.layers[0](self.b(self.activation(self.a(x))))
        return y * self.layers[1]["scale"] + self.count


def data(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


# --- the tree ---------------------------------------------------------------------------------


def test_parameters_have_paths_and_a_tied_one_is_listed_once():
    model = Tied()
    names = [name for name, _ in model.named_parameters()]
    assert names == ["a.weight", "b.bias", "layers.0.weight", "layers.0.bias", "layers.1.scale"]
    assert [p.name for p in model.parameters()] == names
    assert [name for name, _ in model.named_buffers()] == ["count"]
    assert model.num_parameters() == 9 + 3 + 6 + 2 + 1


def test_a_name_the_user_gave_stays():
    class M(nn.Module):
        def __init__(self):
            self.w = nn.Parameter([1.0], name="gain")

    assert [p.name for p in M().parameters()] == ["gain"]


def test_a_module_is_a_tree_whose_copy_computes_the_same_and_keeps_its_ties():
    model, x = Tied(), gpuad.asarray(data(4, 3))
    leaves, structure = tree.flatten(model)
    assert len(leaves) == 6
    copy = structure.unflatten(leaves)
    assert type(copy) is Tied and copy is not model
    assert copy.a.weight is copy.b.weight is model.a.weight
    assert copy.activation is model.activation
    np.testing.assert_array_equal(copy(x).numpy(), model(x).numpy())


def test_map_keeps_the_tie_when_it_makes_new_leaves():
    doubled = tree.map(lambda p: p.detach() * 2, Tied())
    assert doubled.a.weight is doubled.b.weight
    assert isinstance(doubled.a.weight, nn.Parameter)
    assert [name for name, _ in doubled.named_parameters()] == [name for name, _ in Tied().named_parameters()]


def test_grad_gives_a_module_of_the_gradients_that_backward_collects():
    model, x = Tied(), gpuad.asarray(data(4, 3))
    found = gpuad.grad(lambda m: gpuad.sum(m(x) ** 2))(model)
    gpuad.sum(model(x) ** 2).backward()
    assert type(found) is Tied
    assert found.a.weight is found.b.weight
    for g, p in zip(found.parameters(), model.parameters(), strict=True):
        np.testing.assert_allclose(g.numpy(), p.grad.numpy(), rtol=1e-6)
    np.testing.assert_allclose(found.count.numpy(), gpuad.sum(2 * model(x), axis=0).numpy(), rtol=1e-6)


def test_a_tied_gradient_is_the_sum_over_both_places():
    class Twice(nn.Module):
        def __init__(self):
            self.a = nn.Parameter([3.0])
            self.b = self.a

        def forward(self, x):
            return gpuad.sum(self.a * self.b * x)

    assert gpuad.grad(lambda m: m(2.0))(Twice()).a.item() == 2 * 3.0 * 2.0


def test_a_step_of_tree_map_lowers_the_loss():
    model, x = Tied(), gpuad.asarray(data(4, 3))

    def loss(m):
        return gpuad.sum(m(x) ** 2)

    before, gradients = gpuad.value_and_grad(loss)(model)
    after = loss(tree.map(lambda p, g: p.detach() - 1e-3 * g, model, gradients))
    assert after.item() < before.item()


def test_parameters_are_found_inside_a_transformation():
    model = nn.Linear(2, 1, bias=False)
    found = gpuad.grad(lambda m: sum(gpuad.sum(p * p) for p in m.parameters()))(model)
    np.testing.assert_allclose(found.weight.numpy(), 2 * model.weight.numpy())


def test_trees_of_different_modules_do_not_match_but_training_does_not_matter():
    a, b = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)), nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.2))
    with pytest.raises(GpuadError, match="trees differ"):
        tree.map(lambda x, y: x, a, b)
    c = tree.map(lambda x: x, a)
    tree.map(lambda x, y: x, a.eval(), c)
    assert c.training and c[1].training and not a[1].training


def test_static_attributes_are_compared_by_value_and_arrays_do_not_break_it():
    class M(nn.Module):
        def __init__(self, static):
            self.w, self.static = nn.Parameter([1.0]), static

    assert tree.flatten(M({"a": (1, 2)}))[1] == tree.flatten(M({"a": (1, 2)}))[1]
    assert tree.flatten(M(1))[1] != tree.flatten(M(True))[1]
    assert tree.flatten(M(np.zeros(3)))[1] != tree.flatten(M(np.zeros(3)))[1]
    hash(tree.flatten(M(np.zeros(3)))[1])


def test_flattening_leaves_no_cycles():
    live = LiveBytes()
    gc.collect()
    gc.disable()
    observers.append(live)
    try:
        model = Tied()
        copy = tree.map(lambda p: gpuad.exp(p.detach()), model)
        del model, copy
        assert live.live == 0
    finally:
        observers.remove(live)
        gc.enable()


# --- state ------------------------------------------------------------------------------------


def test_state_goes_into_another_model():
    a, b = Tied(), Tied()
    b.load_state_dict(a.state_dict())
    x = gpuad.asarray(data(4, 3))
    np.testing.assert_array_equal(a(x).numpy(), b(x).numpy())
    assert list(a.state_dict()) == [
        *["a.weight", "b.bias", "layers.0.weight", "layers.0.bias", "layers.1.scale", "count"]
    ]


def test_a_tied_weight_loads_under_either_name():
    model, state = Tied(), Tied().state_dict()
    state["b.weight"] = state.pop("a.weight")
    model.load_state_dict(state)
    np.testing.assert_array_equal(model.a.weight.numpy(), state["b.weight"].numpy())


def test_a_wrong_state_is_reported_whole_and_changes_nothing():
    model = Tied()
    before = {name: x.numpy().copy() for name, x in model.state_dict().items()}
    state = Tied().state_dict()
    del state["count"]
    state["b.bias"] = gpuad.zeros((4,))
    state["c"] = gpuad.zeros(())
    with pytest.raises(DataError) as caught:
        model.load_state_dict(state)
    assert str(caught.value).split("\n  ")[1:] == [
        "b.bias is float32[3], got float32[4]",
        "count is missing",
        "c is not in this Tied",
    ]
    for name, x in model.state_dict().items():
        np.testing.assert_array_equal(x.numpy(), before[name])


def test_a_partial_state_loads_without_strict():
    model = Tied()
    old = model.b.bias.numpy().copy()
    model.load_state_dict({"count": np.array([5.0, 6.0]), "other": np.zeros(1)}, strict=False)
    assert model.count.tolist() == [5.0, 6.0] and model.count.dtype == gpuad.float32
    np.testing.assert_array_equal(model.b.bias.numpy(), old)
    with pytest.raises(DataError, match="count is float32"):
        model.load_state_dict({"count": np.zeros(3)}, strict=False)


def test_a_state_is_a_snapshot():
    model = nn.Linear(2, 2)
    state = model.state_dict()
    before = state["weight"].numpy().copy()
    with gpuad.no_grad():
        model.weight.copy_(gpuad.zeros((2, 2)))
    np.testing.assert_array_equal(state["weight"].numpy(), before)
    assert not model.weight.numpy().any()


def test_to_changes_floating_point_tensors_and_keeps_leaves_and_ties():
    class M(Tied):
        def __init__(self):
            super().__init__()
            self.index = gpuad.asarray([1, 2])

    model = M()
    gpuad.sum(model(gpuad.asarray(data(4, 3)))).backward()
    weight, gradient = model.a.weight, model.a.weight.grad.numpy()
    assert model.to("float64") is model
    assert model.a.weight is weight is model.b.weight and weight.is_leaf
    assert weight.dtype == gpuad.float64 and model.index.dtype == gpuad.int64
    np.testing.assert_array_equal(weight.grad.numpy(), gradient.astype(np.float64))


def test_to_moves_every_tensor_to_a_device():
    model = Tied()
    model.index = gpuad.asarray([1, 2])
    assert model.to("meta").count.device.name == "meta" and model.index.device.name == "meta"
    assert model.a.weight is model.b.weight and model.a.weight.is_leaf


def test_zero_grad_forgets_gradients():
    model = nn.Linear(3, 1)
    gpuad.sum(model(gpuad.asarray(data(4, 3)))).backward()
    assert model.weight.grad is not None
    model.zero_grad()
    assert model.weight.grad is None and model.bias.grad is None


def test_a_module_shows_what_is_in_it():
    model = nn.Sequential(nn.Linear(3, 4, bias=False), gpuad.tanh, nn.Dropout(0.5))
    assert repr(model) == "Sequential(\n  0: Linear(3, 4, bias=False)\n  2: Dropout(0.5)\n)"
    assert "layers:\n    0: Linear(3, 2)\n" in repr(Tied()) and "count: float32[2]" in repr(Tied())


def test_a_parameter_must_be_able_to_have_a_gradient():
    with pytest.raises(DTypeError, match=r"int64\[2\] cannot"):
        nn.Parameter([1, 2])
    with pytest.raises(GradientError, match="inside grad"):
        gpuad.grad(lambda x: nn.Parameter(x))(1.0)


def test_a_dataclass_and_an_abstract_class_can_be_modules():
    import abc
    from dataclasses import dataclass

    class Base(nn.Module, abc.ABC):
        @abc.abstractmethod
        def forward(self, x): ...

    @dataclass(eq=False)
    class Scale(Base):
        gain: nn.Parameter

        def forward(self, x):
            return x * self.gain

    with pytest.raises(TypeError, match="abstract"):
        Base()
    model = Scale(nn.Parameter([2.0]))
    assert model(3.0).tolist() == [6.0] and model.gain.name == "gain"


# --- layers -----------------------------------------------------------------------------------


def in_torch(torch, layer, state):
    layer.load_state_dict({name: torch.tensor(x.numpy()) for name, x in state.items()})
    return layer


def agree(torch, ours, theirs, x, rtol=1e-5):
    """The values and all gradients of our layer and of PyTorch's, on the same weights."""
    in_torch(torch, theirs, ours.state_dict())
    a, b = gpuad.asarray(x), torch.tensor(x)
    if x.dtype.kind == "f":
        a.requires_grad_(), b.requires_grad_()
    ya, yb = ours(a), theirs(b)
    g = data(*ya.shape, seed=9, dtype=np.float64)
    np.testing.assert_allclose(ya.detach().numpy(), yb.detach().numpy(), rtol=rtol, atol=rtol)
    ya.backward(gpuad.asarray(g, dtype=ya.dtype))
    yb.backward(torch.tensor(g, dtype=yb.dtype))
    if x.dtype.kind == "f":
        np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), rtol=rtol, atol=rtol)
    theirs_by_name = dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        np.testing.assert_allclose(
            p.grad.numpy(), theirs_by_name[name].grad.numpy(), rtol=rtol, atol=rtol, err_msg=name
        )


@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_pytorchs(torch, bias):
    agree(torch, nn.Linear(3, 5, bias), torch.nn.Linear(3, 5, bias), data(2, 4, 3))


def test_embedding_is_pytorchs(torch):
    agree(torch, nn.Embedding(7, 3), torch.nn.Embedding(7, 3), np.array([[0, 6, 0], [1, 1, 2]]))


def test_layer_norm_is_pytorchs(torch):
    ours = nn.LayerNorm(6, dtype="float64")
    ours.load_state_dict({"weight": data(6, seed=1), "bias": data(6, seed=2)})
    agree(torch, ours, torch.nn.LayerNorm(6, dtype=torch.float64), data(4, 6, dtype=np.float64), 1e-12)


def test_rms_norm_is_pytorchs(torch):
    ours = nn.RMSNorm(6, dtype="float64")
    ours.load_state_dict({"weight": data(6, seed=1)})
    agree(torch, ours, torch.nn.RMSNorm(6, eps=1e-5, dtype=torch.float64), data(4, 6, dtype=np.float64), 1e-12)


def test_sequential_and_activations_are_pytorchs(torch):
    ours = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 4), nn.ReLU(), nn.SiLU(), nn.Tanh(), nn.GELU("tanh"))
    t = torch.nn
    theirs = t.Sequential(
        t.Linear(3, 4), t.GELU(), t.Linear(4, 4), t.ReLU(), t.SiLU(), t.Tanh(), t.GELU(approximate="tanh")
    )
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert len(ours) == 7 and ours[0].weight.shape == (4, 3)
    agree(torch, ours, theirs, data(5, 3))


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_pytorchs(torch, causal):
    ours = nn.MultiHeadAttention(8, 2, causal=causal, dtype="float64")
    theirs = torch.nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64)
    state = {name: torch.tensor(x.numpy()) for name, x in ours.state_dict().items()}
    theirs.load_state_dict(
        {
            "in_proj_weight": state["qkv.weight"],
            "in_proj_bias": state["qkv.bias"],
            "out_proj.weight": state["out.weight"],
            "out_proj.bias": state["out.bias"],
        }
    )
    x = data(3, 5, 8, dtype=np.float64)
    mask = torch.nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64) if causal else None
    a, b = gpuad.asarray(x).requires_grad_(), torch.tensor(x, requires_grad=True)
    ya, yb = ours(a), theirs(b, b, b, attn_mask=mask, is_causal=causal, need_weights=False)[0]
    np.testing.assert_allclose(ya.detach().numpy(), yb.detach().numpy(), rtol=1e-10, atol=1e-12)
    gpuad.sum(ya**3).backward()
    (yb**3).sum().backward()
    np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(ours.qkv.weight.grad.numpy(), theirs.in_proj_weight.grad.numpy(), rtol=1e-9, atol=1e-12)


def test_attention_takes_a_mask_and_ignores_what_it_hides():
    attention = nn.MultiHeadAttention(4, 2)
    x = data(1, 3, 4)
    mask = gpuad.asarray(np.array([True, True, False]))
    changed = x.copy()
    changed[:, 2] = 100.0
    a, b = attention(gpuad.asarray(x), mask), attention(gpuad.asarray(changed), mask)
    np.testing.assert_allclose(a.numpy()[:, :2], b.numpy()[:, :2], rtol=1e-6)


def test_rotary_attention_depends_on_distances_alone():
    attention = nn.MultiHeadAttention(8, 2, rotary=True, dtype="float64")
    pair = data(1, 2, 8, dtype=np.float64)
    same = np.concatenate([pair, pair], 1)  # each at two places of the same distance
    first = attention(gpuad.asarray(pair), None).numpy()
    window = gpuad.asarray(np.array([[i // 2 == j // 2 for j in range(4)] for i in range(4)]))
    both = attention(gpuad.asarray(same), window).numpy()
    np.testing.assert_allclose(both[:, :2], first, rtol=1e-9)
    np.testing.assert_allclose(both[:, 2:], first, rtol=1e-9)
    plain = nn.MultiHeadAttention(8, 2, dtype="float64")
    plain.load_state_dict(attention.state_dict())
    assert abs(plain(gpuad.asarray(pair)).numpy() - first).max() > 1e-3


def test_dropout_drops_in_training_only_and_keeps_the_mean():
    layer, x = nn.Dropout(0.25, generator=Generator(0)), gpuad.ones((200, 200))
    y = layer(x).numpy()
    assert set(np.unique(y).round(5)) == {0.0, np.float32(1 / 0.75).round(5)}
    assert abs((y == 0).mean() - 0.25) < 0.01
    assert layer.eval()(x).data is x.data
    assert not layer.training and nn.Sequential(layer).train()[0].training


def test_dropped_attention_differs_from_call_to_call_and_not_in_evaluation():
    attention = nn.MultiHeadAttention(8, 2, dropout=0.5, generator=Generator(0))
    x = gpuad.asarray(data(2, 6, 8))
    assert (attention(x).numpy() != attention(x).numpy()).any()
    attention.eval()
    np.testing.assert_array_equal(attention(x).numpy(), attention(x).numpy())


def test_layers_explain_what_does_not_fit():
    with pytest.raises(ShapeError, match=r"Linear\(3, 5\) got float32\[2, 4\]\n  its last axis must be 3"):
        nn.Linear(3, 5)(gpuad.zeros((2, 4)))
    with pytest.raises(IndexRangeError, match="index 7 for a weight with 7 rows"):
        nn.Embedding(7, 3)(gpuad.asarray([7])).numpy()
    with pytest.raises(ShapeError, match="width of 10 does not divide into 3 heads"):
        nn.MultiHeadAttention(10, 3)
    with pytest.raises(ShapeError, match=r"\[batch, length, width\], got float32\[2, 4\]"):
        nn.MultiHeadAttention(4, 2)(gpuad.zeros((2, 4)))
    with pytest.raises(DataError, match="probability"):
        nn.Dropout(1.5)


def test_layers_take_a_dtype_a_device_and_a_generator():
    layer = nn.Linear(3, 5, dtype="bfloat16", generator=Generator(1))
    assert layer.weight.dtype == layer.bias.dtype == gpuad.bfloat16
    assert layer(gpuad.ones((2, 3), dtype="bfloat16")).dtype == gpuad.bfloat16
    attention = nn.MultiHeadAttention(8, 2, device="meta")
    assert attention(gpuad.zeros((2, 3, 8), device="meta")).shape == (2, 3, 8)
    again = nn.Linear(3, 5, dtype="bfloat16", generator=Generator(1))
    np.testing.assert_array_equal(layer.weight.numpy(), again.weight.numpy())


# --- initial values ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("draw", "mean", "std", "low", "high"),
    [
        (lambda s, g: nn.init.normal(s, 1.0, 0.5, generator=g), 1.0, 0.5, -math.inf, math.inf),
        (lambda s, g: nn.init.uniform(s, -1.0, 3.0, generator=g), 1.0, 4 / math.sqrt(12), -1.0, 3.0),
        (lambda s, g: nn.init.kaiming_uniform(s, generator=g), 0.0, math.sqrt(2 / 300), -0.1415, 0.1415),
        (lambda s, g: nn.init.xavier_uniform(s, generator=g), 0.0, math.sqrt(2 / 500), -0.1096, 0.1096),
        (lambda s, g: nn.init.xavier_normal(s, 2.0, generator=g), 0.0, 2 * math.sqrt(2 / 500), -math.inf, math.inf),
        # the variance of the standard normal between -2 and 2 is 1 - 4 pdf(2) / (1 - 2 cdf(-2)) = 0.7737
        (lambda s, g: nn.init.trunc_normal(s, 1.0, 0.5, 0.0, 2.0, generator=g), 1.0, 0.5 * 0.8796, 0.0, 2.0),
    ],
)
def test_initial_values_have_the_moments_and_bounds_they_promise(draw, mean, std, low, high):
    x = draw((200, 300), Generator(0)).numpy().astype(np.float64)
    assert abs(x.mean() - mean) < 5 * std / math.sqrt(x.size)
    assert abs(x.std() / std - 1) < 0.01
    assert low <= x.min() and x.max() <= high
    np.testing.assert_array_equal(x, draw((200, 300), Generator(0)).numpy())


def test_layers_begin_with_the_spread_of_pytorchs(torch):
    linear, embedding = nn.Linear(300, 200, generator=Generator(0)), nn.Embedding(300, 200, generator=Generator(0))
    theirs = torch.nn.Linear(300, 200)
    for ours, other in ((linear.weight, theirs.weight), (linear.bias, theirs.bias)):
        assert ours.numpy().std() == pytest.approx(other.detach().numpy().std(), rel=0.15)
        assert abs(ours.numpy()).max() <= 1 / math.sqrt(300)
    assert embedding.weight.numpy().std() == pytest.approx(1.0, rel=0.02)


def test_initial_values_explain_what_they_cannot_do():
    with pytest.raises(ShapeError, match="at least two axes"):
        nn.init.xavier_uniform((3,))
    with pytest.raises(DataError, match="under 1 %"):
        nn.init.trunc_normal((3,), 0.0, 1.0, 5.0, 6.0)
    with pytest.raises(DataError, match="low < high"):
        nn.init.trunc_normal((3,), 0.0, 1.0, 2.0, 1.0)


def test_a_parameter_drawn_at_random_is_drawn_once():
    w = nn.Parameter(random.normal((4,)))
    np.testing.assert_array_equal((w * 1).numpy(), w.numpy())


# --- files ------------------------------------------------------------------------------------


def test_weights_come_back_from_a_file_in_every_dtype(tmp_path: Path):
    tensors = {
        str(np.dtype(d)): gpuad.asarray(data(2, 3) * 10).to(d)
        for d in ("float64", "float32", "float16", gpuad.bfloat16, "int64", "int32", "int16", "int8", "uint8", "bool")
    }
    tensors["scalar"], tensors["empty"] = gpuad.asarray(2.5), gpuad.zeros((0, 3))
    tensors["transposed"] = gpuad.matrix_transpose(gpuad.asarray(data(2, 3)))
    path = tmp_path / "w.safetensors"
    nn.save(path, tensors, {"config": json.dumps({"layers": 2})})
    found = nn.load(path)
    assert set(found) == set(tensors)
    for name, x in tensors.items():
        assert isinstance(found[name], Tensor) and found[name].dtype == x.dtype and found[name].shape == x.shape
        np.testing.assert_array_equal(found[name].numpy(), x.numpy())
    assert json.loads(nn.load_metadata(path)["config"]) == {"layers": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_files_are_those_of_the_safetensors_library(tmp_path: Path):
    model = Tied()
    nn.save(tmp_path / "a", model.state_dict())
    np.testing.assert_array_equal(load_file(tmp_path / "a")["b.bias"], model.b.bias.numpy())
    save_file({"x": np.arange(3)}, tmp_path / "b")
    assert nn.load(tmp_path / "b")["x"].tolist() == [0, 1, 2] and nn.load_metadata(tmp_path / "b") == {}


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "w"
    nn.save(path, {"x": gpuad.asarray([1.0])})

    def fail(self, target):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        nn.save(path, {"x": gpuad.asarray([2.0])})
    assert nn.load(path)["x"].tolist() == [1.0]
    assert [p.name for p in tmp_path.iterdir()] == ["w"]


def test_files_explain_what_they_cannot_hold(tmp_path: Path):
    with pytest.raises(DataError, match="is text"):
        nn.save(tmp_path / "w", {}, {"step": 3})
    (tmp_path / "bad").write_bytes(b"not this format")
    with pytest.raises(DataError, match="bad is not a safetensors file"):
        nn.load(tmp_path / "bad")


def test_importing_networks_does_not_import_safetensors():
    program = "import sys, gpuad.nn, gpuad.optim, gpuad.models; print('safetensors' in sys.modules)"
    root = Path(__file__).parent.parent
    run = subprocess.run([sys.executable, "-c", program], cwd=root, check=True, capture_output=True, text=True)
    assert run.stdout.strip() == "False"
