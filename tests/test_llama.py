"""LLaMA against the same model in PyTorch: logits, loss and gradients; its published sizes; its memory; its checks."""

import math
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

import gpuad
from gpuad import optim
from gpuad.buffer import LiveBytes, observers
from gpuad.errors import DataError, ShapeError
from gpuad.models import GPT, GPTConfig, Llama, LlamaConfig, sample
from gpuad.models.llama import GroupedAttention
from gpuad.nn.functional import rotary_embedding
from gpuad.random import Generator

SMALL = {"vocabulary": 29, "length": 12, "layers": 2, "heads": 4, "width": 32, "hidden": 44}
MULTI, GROUPED, ONE = {}, {"kv_heads": 2}, {"kv_heads": 1}
SHARING = pytest.mark.parametrize("sharing", [MULTI, GROUPED, ONE], ids=["equal", "grouped", "one"])


def tokens(batch=3, length=13, vocabulary=29, seed=0):
    return np.random.default_rng(seed).integers(0, vocabulary, (batch, length))


def llama(dtype="float32", seed=0, **sizes):
    return Llama(LlamaConfig(**{**SMALL, **sizes}), dtype=dtype, generator=Generator(seed))


def twin(torch, model):
    """`model` in PyTorch, with the same weights under the same names; positions are turned as complex numbers."""
    t, c = torch.nn, model.config
    kv_heads = c.kv_heads or c.heads

    def rotated(x):
        half = x.shape[-1] // 2
        angles = torch.outer(torch.arange(x.shape[-2]).double(), c.rotary_base ** (-torch.arange(half).double() / half))
        z = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angles), angles)
        return torch.cat([z.real, z.imag], -1).to(x.dtype)

    class Norm(t.Module):
        def __init__(self):
            super().__init__()
            self.weight = t.Parameter(torch.ones(c.width))

        def forward(self, x):
            return self.weight * x / (x.pow(2).mean(-1, keepdim=True) + c.eps).sqrt()

    class Attention(t.Module):
        def __init__(self):
            super().__init__()
            size = c.width // c.heads
            self.q, self.out = (t.Linear(c.width, c.width, bias=False) for _ in range(2))
            self.k, self.v = (t.Linear(c.width, kv_heads * size, bias=False) for _ in range(2))

        def forward(self, x):
            q = self.q(x).unflatten(-1, (c.heads, -1)).transpose(1, 2)
            k, v = (p(x).unflatten(-1, (kv_heads, -1)).transpose(1, 2) for p in (self.k, self.v))
            q, k = rotated(q), rotated(k)
            k, v = (z.repeat_interleave(c.heads // kv_heads, dim=1) for z in (k, v))
            scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
            hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
            y = scores.masked_fill(hidden, -math.inf).softmax(-1) @ v
            return self.out(y.transpose(1, 2).flatten(-2))

    class Block(t.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2, self.attention = Norm(), Norm(), Attention()
            self.gate, self.up = (t.Linear(c.width, c.hidden, bias=False) for _ in range(2))
            self.down = t.Linear(c.hidden, c.width, bias=False)

        def forward(self, x):
            x = x + self.attention(self.norm1(x))
            z = self.norm2(x)
            return x + self.down(self.gate(z) * torch.sigmoid(self.gate(z)) * self.up(z))

    class Twin(t.Module):
        def __init__(self):
            super().__init__()
            self.token = t.Embedding(c.vocabulary, c.width)
            self.blocks, self.norm = t.ModuleList([Block() for _ in range(c.layers)]), Norm()
            self.head = t.Linear(c.width, c.vocabulary, bias=False)

        def forward(self, tokens):
            x = self.token(tokens)
            for block in self.blocks:
                x = block(x)
            return self.head(self.norm(x))

        def loss(self, tokens):
            return t.functional.cross_entropy(self(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    other = Twin().to(getattr(torch, str(model.token.weight.dtype)))
    state = model.state_dict()
    assert set(state) == {name for name, _ in other.named_parameters()}
    for name, p in other.named_parameters():
        p.data = torch.tensor(state[name].numpy())
    return other


def distance(a, b):
    """The norm of the difference, relative to the norm of b."""
    return np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30)


def assert_like_pytorch(torch, model, batch, tolerance):
    """Logits, loss and the gradient of each parameter are those of the twin."""
    other = twin(torch, model)
    logits, expected = model(gpuad.asarray(batch[:, :-1])), other(torch.tensor(batch[:, :-1]))
    assert distance(logits.numpy(), expected.detach().numpy()) < tolerance
    loss, expected = model.loss(gpuad.asarray(batch)), other.loss(torch.tensor(batch))
    assert distance(loss.item(), expected.item()) < tolerance
    loss.backward(), expected.backward()
    ours = dict(model.named_parameters())
    for name, p in other.named_parameters():
        assert distance(ours[name].grad.numpy(), p.grad.numpy()) < tolerance, name


# --- against PyTorch --------------------------------------------------------------------------


@SHARING
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float64", 1e-12)])
def test_logits_loss_and_gradients_are_pytorchs(torch, sharing, dtype, tolerance):
    model = llama(dtype, std=0.2, eps=1e-3, rotary_base=100.0, **sharing)  # so that each of them shows
    assert_like_pytorch(torch, model, tokens(), tolerance)


@SHARING
def test_the_kernel_of_attention_gives_the_same(torch, sharing):
    model = llama("float64", std=0.2, length=64, **sharing)  # 2 * 4 * 64 * 64 scores: as many as it is worth
    assert_like_pytorch(torch, model, tokens(2, 65), 1e-12)


def test_a_large_vocabulary_gives_the_same(torch):
    model = llama("float64", std=0.2, vocabulary=8192, layers=1, **GROUPED)
    assert_like_pytorch(torch, model, tokens(vocabulary=8192), 1e-12)


def test_positions_are_turned_as_complex_numbers():
    x = np.random.default_rng(0).normal(size=(2, 3, 7, 10))
    z = x[..., :5] + 1j * x[..., 5:]
    for base in (10000.0, 500000.0):
        turned = z * np.exp(1j * np.arange(7)[:, None] * base ** (-np.arange(5) / 5))
        expected = np.concatenate([turned.real, turned.imag], -1)
        np.testing.assert_allclose(rotary_embedding(gpuad.asarray(x), base=base).numpy(), expected, rtol=0, atol=1e-14)


@SHARING
def test_attention_depends_on_distances_not_on_places(sharing):
    attention = llama("float64", std=0.2, **sharing).blocks[0].attention
    x = np.random.default_rng(0).normal(size=(5, 32))
    q, k, v = [(x @ w.weight.numpy().T).reshape(5, -1, 8) for w in (attention.q, attention.k, attention.v)]
    k, v = [np.repeat(z, 4 // z.shape[1], axis=1) for z in (k, v)]  # neighbours share
    for first in (0, 1000):
        turn = np.exp(1j * (first + np.arange(5))[:, None, None] * 10000.0 ** (-np.arange(4) / 4))
        zq, zk = [(z[..., :4] + 1j * z[..., 4:]) * turn for z in (q, k)]
        scores = np.einsum("ihf,jhf->hij", zq, zk.conj()).real / math.sqrt(8)
        weights = np.where(np.tri(5, dtype=bool), np.exp(scores), 0)
        y = np.einsum("hij,jhf->ihf", weights / weights.sum(-1, keepdims=True), v).reshape(5, 32)
        found = attention(gpuad.asarray(x[None])).numpy()[0]
        np.testing.assert_allclose(found, y @ attention.out.weight.numpy().T, rtol=0, atol=1e-12)


def test_bfloat16_comes_close_to_float32():
    half, full = (llama(dtype, std=0.2, **GROUPED) for dtype in ("bfloat16", "float32"))
    full.load_state_dict(half.state_dict())
    batch = gpuad.asarray(tokens())
    a, b = half.loss(batch), full.loss(batch)
    a.backward(), b.backward()
    assert a.item() == pytest.approx(b.item(), rel=0.02)
    for (name, p), q in zip(half.named_parameters(), full.parameters(), strict=True):
        assert p.dtype == p.grad.dtype == gpuad.bfloat16, name
        assert distance(p.grad.numpy().astype(np.float32), q.grad.numpy()) < 0.1, name


# --- what it does -----------------------------------------------------------------------------


@SHARING
def test_a_position_does_not_see_those_after_it(sharing):
    model = llama("float64", std=0.2, **sharing)
    a, b = tokens(1, 12), tokens(1, 12)
    b[0, 7:] = (b[0, 7:] + 1) % 29
    x, y = (model(gpuad.asarray(t)).numpy() for t in (a, b))
    np.testing.assert_allclose(x[:, :7], y[:, :7], rtol=0, atol=1e-13)
    assert (abs(x[:, 7:] - y[:, 7:]).max(-1) > 1e-4).all()


def test_training_lowers_the_loss_and_the_model_writes_what_it_saw():
    model = Llama(LlamaConfig.sized("tiny"), generator=Generator(0))
    optimizer = optim.AdamW(model.parameters(), 1e-2, no_decay=lambda p: p.ndim < 2)
    song = np.array([3, 1, 4, 1, 5, 9, 2, 6] * 3)  # what follows 1 depends on what came before
    batch, losses = gpuad.asarray(np.stack([song[k : k + 17] for k in range(8)])), []
    for _ in range(60):
        optimizer.zero_grad()
        loss = model.loss(batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(64), abs=0.1)
    assert losses[1] < losses[0] and losses[-1] < 0.4
    assert sample(model, [4, 1, 5, 9], 12, temperature=0.01, generator=Generator(0)) == song[4 + 2 : 16 + 2].tolist()


def test_both_styles_give_the_same_gradients():
    model = llama(**GROUPED)
    batch = gpuad.asarray(tokens())
    gradients = gpuad.grad(lambda m: m.loss(batch))(model)
    model.loss(batch).backward()
    for p, g in zip(model.parameters(), gradients.parameters(), strict=True):
        np.testing.assert_array_equal(p.grad.numpy(), g.numpy())


def test_weights_begin_normal_and_smaller_where_a_block_adds_to_the_stream():
    state = {name: x.numpy() for name, x in llama(layers=8, width=64, hidden=128).state_dict().items()}
    for name in ("token", "head", "blocks.3.attention.q", "blocks.3.gate", "blocks.3.up"):
        assert state[f"{name}.weight"].std() == pytest.approx(0.02, rel=0.1), name
    for name in ("attention.out", "down"):
        assert state[f"blocks.3.{name}.weight"].std() == pytest.approx(0.02 / 4, rel=0.1), name
    assert all((x == 1).all() for name, x in state.items() if "norm" in name)


def test_parameters_are_named_by_their_place():
    model = llama(**ONE)
    assert model.blocks[0].attention.k.weight.name == "blocks.0.attention.k.weight"
    assert model.blocks[0].attention.k.weight.shape == (8, 32)


def test_blocks_go_through_the_wrapper():
    calls = []

    def wrap(block):
        calls.append(block)
        return gpuad.checkpoint(block)

    config = LlamaConfig(**SMALL, **GROUPED)
    wrapped, plain = (Llama(config, generator=Generator(0), wrap_block=w) for w in (wrap, None))
    batch = gpuad.asarray(tokens())
    for model in (wrapped, plain):
        model.loss(batch).backward()
    assert calls == wrapped.blocks
    for p, q in zip(wrapped.parameters(), plain.parameters(), strict=True):
        np.testing.assert_array_equal(p.grad.numpy(), q.grad.numpy())


# --- sizes and memory -------------------------------------------------------------------------

SEVEN = LlamaConfig.sized("7b")
PUBLISHED = [
    (SEVEN, 6_738_415_616),
    (LlamaConfig.sized("13b"), 13_015_864_320),
    (LlamaConfig(32000, 4096, 80, 64, 8, 8192, 28672), 68_976_648_192),  # Llama 2 70B
    (LlamaConfig(128256, 8192, 32, 32, 8, 4096, 14336, rotary_base=500000.0), 8_030_261_248),  # Llama 3 8B
]


@pytest.mark.parametrize(("config", "count"), PUBLISHED, ids=["7b", "13b", "2-70b", "3-8b"])
def test_published_sizes_have_the_published_parameters(config, count):
    model = Llama(config, dtype="bfloat16", device="meta")
    assert model.num_parameters() == count
    assert {p.dtype for p in model.parameters()} == {gpuad.bfloat16}


def test_gpt2_has_the_published_parameters():
    assert GPT(GPTConfig.gpt2(), device="meta").num_parameters() == 124_439_808


def test_a_step_of_the_seven_billion_allocates_nothing_on_meta():
    device, live = gpuad.device("meta", like="cuda:sm_90"), LiveBytes()
    tracemalloc.start()
    observers.append(live)
    try:
        model = Llama(SEVEN, dtype="bfloat16", device=device)
        assert live.live == 2 * 6_738_415_616
        optimizer = optim.AdamW(model.parameters(), 1e-4)
        states = live.live
        batch = gpuad.zeros((1, 2049), dtype="int64", device=device)
        model.loss(batch).backward()
        assert all(p.grad.shape == p.shape and p.grad.dtype == gpuad.bfloat16 for p in model.parameters())
        assert live.live - states == 2 * 6_738_415_616 + 8 * 2049
        optimizer.step()
        assert live.live - states == 2 * 6_738_415_616 + 8 * 2049
        assert tracemalloc.get_traced_memory()[1] < 50 << 20
    finally:
        observers.remove(live)
        tracemalloc.stop()


def kept(config, batch):
    """The bytes that stay when the features of [batch, 2048] tokens are computed, in bfloat16 on a GPU."""
    device, live = gpuad.device("meta", like="cuda:sm_90"), LiveBytes()
    model = Llama(config, dtype="bfloat16", device=device)
    indices = gpuad.zeros((batch, 2048), dtype="int64", device=device)
    assert indices.array.shape == (batch, 2048)
    observers.append(live)
    try:
        features = model._run(indices, model.norm)
        assert features.array.shape == (batch, 2048, 4096)
        return live.live
    finally:
        observers.remove(live)


@pytest.mark.parametrize(("batch", "kv_heads"), [(1, None), (4, None), (1, 8), (4, 8), (4, 1)])
def test_keys_and_values_are_kept_once_for_each_of_their_heads(batch, kv_heads):
    rows = batch * 2048
    kv_heads = kv_heads or 32
    streams = 2 * 4096 + 2 * 4096  # what the norms read, and what they give
    attention = 2 * 4096 + 2 * kv_heads * 128  # queries and results, keys and values
    if 1 < kv_heads < 32:
        attention += 4096  # the results once more, with all heads side by side
    network = 3 * 11008  # gate, up and their product
    of_rows = 4 * (32 + 2)  # float32: the sums of each head's weights, the scales of both norms
    two, three = (kept(replace(SEVEN, layers=n, kv_heads=kv_heads), batch) for n in (2, 3))
    assert three - two == rows * (2 * (streams + attention + network) + of_rows)


# --- errors -----------------------------------------------------------------------------------


def test_a_llama_explains_what_does_not_fit():
    model = llama(**GROUPED)
    with pytest.raises(ShapeError, match=r"tokens \[batch, up to 12\], got int64\[3, 13\]"):
        model(gpuad.asarray(tokens()))
    with pytest.raises(ShapeError, match=r"got int64\[5\]"):
        model(gpuad.asarray(np.arange(5)))
    with pytest.raises(gpuad.errors.IndexRangeError, match="index 29 for a weight with 29 rows"):
        model(gpuad.asarray([[29]]))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"heads": 5}, "width of 32 does not divide into 5 heads"),
        ({"heads": 32}, "32 heads of pairs"),  # of one feature each
        ({"heads": 0}, "0 heads"),
        ({"kv_heads": 3}, "4 heads cannot share 3 heads of keys and values"),
        ({"kv_heads": 8}, "cannot share 8"),
        ({"kv_heads": 0}, "cannot share 0"),
    ],
)
def test_a_config_explains_what_does_not_fit(sizes, message):
    with pytest.raises(ShapeError, match=message):
        LlamaConfig(**{**SMALL, **sizes})


def test_an_unknown_size_is_named_with_the_known_ones():
    with pytest.raises(DataError, match="'tiny', '7b', '13b', got '8b'"):
        LlamaConfig.sized("8b")


def test_a_llama_shows_its_sizes():
    shown = repr(llama(**GROUPED))
    assert "heads=4, kv_heads=2" in shown and "rotary_base=10000.0" in shown
    assert isinstance(llama().blocks[1].attention, GroupedAttention)
