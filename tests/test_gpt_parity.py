"""The GPT against the same model in PyTorch: losses and gradients over ten steps of AdamW; its memory; its checks."""

import gc
import math

import numpy as np
import pytest

import gpuad
from gpuad import nn, optim
from gpuad.buffer import LiveBytes, observers
from gpuad.errors import DataError, ShapeError
from gpuad.models import GPT, GPTConfig
from gpuad.node import Node
from gpuad.random import Generator

SMALL = {"vocabulary": 29, "length": 12, "layers": 2, "heads": 2, "width": 16}


def tokens(batch=3, length=13, vocabulary=29, seed=0):
    return np.random.default_rng(seed).integers(0, vocabulary, (batch, length))


def twin(torch, model):
    """`model` in PyTorch, with the same weights under the same names."""
    t, c = torch.nn, model.config

    def rotated(x):
        half = x.shape[-1] // 2
        angles = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] * 10000.0 ** (
            -torch.arange(half, dtype=x.dtype) / half
        )
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)

    class Attention(t.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.out = t.Linear(c.width, 3 * c.width), t.Linear(c.width, c.width)

        def forward(self, x):
            q, k, v = (y.unflatten(-1, (c.heads, -1)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
            if c.positions == "rotary":
                q, k = rotated(q), rotated(k)
            scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
            hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
            y = scores.masked_fill(hidden, -math.inf).softmax(-1) @ v
            return self.out(y.transpose(1, 2).flatten(-2))

    class Block(t.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2, self.attention = t.LayerNorm(c.width), t.LayerNorm(c.width), Attention()
            self.up, self.down = t.Linear(c.width, 4 * c.width), t.Linear(4 * c.width, c.width)

        def forward(self, x):
            x = x + self.attention(self.norm1(x))
            return x + self.down(t.functional.gelu(self.up(self.norm2(x)), approximate="tanh"))

    class Twin(t.Module):
        def __init__(self):
            super().__init__()
            self.token = t.Embedding(c.vocabulary, c.width)
            if c.positions == "learned":
                self.position = t.Embedding(c.length, c.width)
            self.blocks, self.norm = t.ModuleList([Block() for _ in range(c.layers)]), t.LayerNorm(c.width)
            self.head = t.Linear(c.width, c.vocabulary, bias=False)
            if c.tied:
                self.head.weight = self.token.weight

        def loss(self, tokens):
            x = self.token(tokens[:, :-1])
            if c.positions == "learned":
                x = x + self.position.weight[: x.shape[1]]
            for block in self.blocks:
                x = block(x)
            logits = self.head(self.norm(x))
            return t.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    other = Twin().to(getattr(torch, str(model.token.weight.dtype)))
    for name, p in other.named_parameters():
        p.data = torch.tensor(model.state_dict()[name].numpy())
    return other


def distance(a, b):
    """The norm of the difference, relative to the norm of b."""
    return np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float64", 1e-9)])
@pytest.mark.parametrize("options", [{}, {"tied": False, "positions": "rotary"}], ids=["learned tied", "rotary untied"])
def test_ten_steps_have_pytorchs_losses_and_gradients(torch, dtype, tolerance, options):
    model = GPT(GPTConfig(**SMALL, **options), dtype=dtype, generator=Generator(0))
    other = twin(torch, model)
    ours = optim.AdamW(model.parameters(), 1e-2, no_decay=lambda p: p.ndim < 2, max_grad_norm=1.0)
    theirs = torch.optim.AdamW(
        [
            {"params": [p for p in other.parameters() if p.ndim >= 2]},
            {"params": [p for p in other.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ],
        1e-2,
    )
    for step in range(10):
        batch = tokens(seed=step % 3)
        ours.zero_grad(), theirs.zero_grad()
        a, b = model.loss(gpuad.asarray(batch)), other.loss(torch.tensor(batch))
        a.backward(), b.backward()
        assert distance(a.item(), b.item()) < tolerance
        by_name = dict(model.named_parameters())
        assert set(by_name) == {name for name, _ in other.named_parameters()}
        whole = [(by_name[name].grad.numpy().ravel(), p.grad.numpy().ravel()) for name, p in other.named_parameters()]
        assert distance(*map(np.concatenate, zip(*whole, strict=True))) < tolerance, step
        ours.step()
        torch.nn.utils.clip_grad_norm_(other.parameters(), 1.0)
        theirs.step()
    assert a.item() < math.log(29) - 0.3  # it has learned


def test_both_styles_take_the_same_step():
    a, b = (GPT(GPTConfig(**SMALL), generator=Generator(0)) for _ in range(2))
    oa, ob = optim.AdamW(a.parameters(), 1e-2), optim.AdamW(b.parameters(), 1e-2)
    for step in range(3):
        batch = gpuad.asarray(tokens(seed=step))
        oa.zero_grad()
        loss = a.loss(batch)
        loss.backward()
        oa.step()
        value, gradients = gpuad.value_and_grad(lambda m, x: m.loss(x))(b, batch)
        ob.update(gradients)
        assert loss.item() == value.item()
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        np.testing.assert_array_equal(p.numpy(), q.numpy())


def test_a_hundred_steps_of_training_leave_memory_and_nodes_as_they_were():
    model = GPT(GPTConfig(**SMALL, dropout=0.1), generator=Generator(0))
    optimizer = optim.AdamW(model.parameters(), 1e-3, no_decay=lambda p: p.ndim < 2, max_grad_norm=1.0)
    batches = [gpuad.asarray(tokens(seed=k)) for k in range(4)]
    live, counts = LiveBytes(), []
    gc.collect()
    gc.disable()
    observers.append(live)
    try:
        for step in range(100):
            optimizer.zero_grad()
            loss = model.loss(batches[step % 4])
            loss.backward()
            optimizer.step()
            if step % 10 == 9:
                counts.append((live.live, sum(issubclass(type(o), Node) for o in gc.get_objects())))
        peak = live.peak
        loss = None
        optimizer.zero_grad()
        model.loss(batches[0]).backward()
        optimizer.step()
        assert live.peak == peak
    finally:
        observers.remove(live)
        gc.enable()
    assert counts[1:] == [counts[1]] * 9


def test_steps_of_training_write_the_parameters_in_place():
    model = GPT(GPTConfig(**SMALL), generator=Generator(0))
    optimizer = optim.AdamW(model.parameters(), 1e-3, no_decay=lambda p: p.ndim < 2)
    places = []
    for step in range(3):
        optimizer.zero_grad()
        loss = model.loss(gpuad.asarray(tokens(seed=step)))
        loss.backward()
        optimizer.step()
        places.append([p.array.data.__array_interface__["data"][0] for p in model.parameters()])
    assert places[0] == places[1] == places[2]


def test_a_position_does_not_see_those_after_it():
    for positions in ("learned", "rotary"):
        model = GPT(GPTConfig(**SMALL, positions=positions), generator=Generator(0))
        a, b = tokens(1, 12), tokens(1, 12)
        b[0, 7:] = (b[0, 7:] + 1) % 29
        x, y = (model(gpuad.asarray(t)).numpy() for t in (a, b))
        np.testing.assert_allclose(x[:, :7], y[:, :7], rtol=1e-5, atol=1e-6)
        assert (abs(x[:, 7:] - y[:, 7:]).max(-1) > 1e-4).all()


def test_the_initial_loss_is_that_of_guessing_and_the_weights_are_gpt2s():
    model = GPT(GPTConfig(vocabulary=256, length=32, layers=8, heads=2, width=64), generator=Generator(0))
    loss = model.loss(gpuad.asarray(tokens(4, 33, 256)))
    assert loss.item() == pytest.approx(math.log(256), abs=0.1)
    state = {name: x.numpy() for name, x in model.state_dict().items()}
    assert state["blocks.3.up.weight"].std() == pytest.approx(0.02, rel=0.05)
    assert state["blocks.3.down.weight"].std() == pytest.approx(0.02 / 4, rel=0.05)
    assert state["blocks.0.attention.out.weight"].std() == pytest.approx(0.02 / 4, rel=0.05)
    assert not state["blocks.0.attention.qkv.bias"].any() and (state["norm.weight"] == 1).all()


def test_the_head_is_tied_or_has_a_weight_of_its_own():
    tied, free = (GPT(GPTConfig(**SMALL, tied=tied)) for tied in (True, False))
    assert tied.head.weight is tied.token.weight and "head.weight" not in tied.state_dict()
    assert free.num_parameters() == tied.num_parameters() + 29 * 16


def test_parameters_are_named_by_their_place():
    model = GPT(GPTConfig(**SMALL))
    assert model.blocks[0].attention.qkv.weight.name == "blocks.0.attention.qkv.weight"


def test_blocks_go_through_the_wrapper():
    calls = []

    def wrap(block):
        def run(x):
            calls.append(block)
            return block(x)

        return run

    model = GPT(GPTConfig(**SMALL), wrap_block=wrap, generator=Generator(0))
    plain = GPT(GPTConfig(**SMALL), generator=Generator(0))
    batch = gpuad.asarray(tokens())
    assert model.loss(batch).item() == plain.loss(batch).item()
    assert calls == model.blocks


def test_dropout_is_reproducible_and_off_in_evaluation():
    def losses():
        model = GPT(GPTConfig(**SMALL, dropout=0.2), generator=Generator(5))
        batch = gpuad.asarray(tokens())
        return [model.loss(batch).item() for _ in range(2)] + [model.eval().loss(batch).item() for _ in range(2)]

    first, second, quiet, again = losses()
    assert first != second and quiet == again and losses() == [first, second, quiet, again]


def test_a_gpt_runs_on_the_meta_device():
    model = GPT(GPTConfig(**SMALL), device="meta")
    batch = gpuad.asarray(tokens(), device="meta")
    model.loss(batch).backward()
    optim.AdamW(model.parameters()).step()
    assert model.blocks[1].up.weight.grad.shape == (64, 16)


def test_a_gpt_explains_what_does_not_fit(tmp_path):
    model = GPT(GPTConfig(**SMALL))
    with pytest.raises(ShapeError, match=r"tokens \[batch, up to 12\], got int64\[3, 13\]"):
        model(gpuad.asarray(tokens()))
    with pytest.raises(DataError, match="rotary"):
        GPTConfig(positions="sinusoidal")
    with pytest.raises(ShapeError, match="5 heads"):
        GPT(GPTConfig(vocabulary=5, length=4, layers=1, heads=5, width=16))


def test_a_gpt_comes_back_from_a_file(tmp_path):
    a, b = (GPT(GPTConfig(**SMALL), generator=Generator(k)) for k in range(2))
    nn.save(tmp_path / "gpt.safetensors", a.state_dict())
    b.load_state_dict(nn.load(tmp_path / "gpt.safetensors"))
    batch = gpuad.asarray(tokens())
    assert a.loss(batch).item() == b.loss(batch).item()
