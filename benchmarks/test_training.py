"""Whole training steps: an MLP 784-256-128-10 with Adam, and a GPT of four layers."""

import numpy as np
import pytest
import torch

import gpuad
from gpuad.models.gpt import GPT, GPTConfig
from gpuad.nn import functional as F


@pytest.mark.parametrize("library", ["gpuad", "torch"])
def test_mlp(rounds, benchmark, library):
    benchmark.group = "MLP 784-256-128-10, batch 128, Adam"
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((128, 784), np.float32), rng.integers(0, 10, 128)
    if library == "gpuad":
        model = gpuad.nn.Sequential(
            gpuad.nn.Linear(784, 256),
            gpuad.nn.ReLU(),
            gpuad.nn.Linear(256, 128),
            gpuad.nn.ReLU(),
            gpuad.nn.Linear(128, 10),
        )
        optimizer = gpuad.optim.Adam(model.parameters(), 1e-3)
        x, t, loss_of = gpuad.asarray(x), gpuad.asarray(t), F.cross_entropy
    else:
        nn = torch.nn
        model = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        x, t, loss_of = torch.from_numpy(x), torch.from_numpy(t), nn.functional.cross_entropy
    losses = []

    def run():
        loss = loss_of(model(x), t)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())

    rounds(run, rounds=60)
    assert losses[-1] < losses[0]


class TorchGPT(torch.nn.Module):
    """The same GPT, written for PyTorch."""

    def __init__(self, config):
        super().__init__()
        nn, c = torch.nn, config
        self.heads = c.heads
        self.tokens, self.positions = nn.Embedding(c.vocabulary, c.width), nn.Embedding(c.length, c.width)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(c.width),
                    "qkv": nn.Linear(c.width, 3 * c.width),
                    "project": nn.Linear(c.width, c.width),
                    "norm2": nn.LayerNorm(c.width),
                    "up": nn.Linear(c.width, 4 * c.width),
                    "down": nn.Linear(4 * c.width, c.width),
                }
            )
            for _ in range(c.layers)
        )
        self.norm = nn.LayerNorm(c.width)

    def loss(self, tokens):
        F, (inputs, targets) = torch.nn.functional, (tokens[:, :-1], tokens[:, 1:])
        b, t = inputs.shape
        x = self.tokens(inputs) + self.positions.weight[:t]
        for block in self.blocks:
            q, k, v = block["qkv"](block["norm1"](x)).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + block["project"](y.transpose(1, 2).reshape(b, t, -1))
            x = x + block["down"](F.gelu(block["up"](block["norm2"](x)), approximate="tanh"))
        logits = self.norm(x) @ self.tokens.weight.T
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))


@pytest.mark.parametrize("library", ["gpuad", "torch"])
def test_gpt(rounds, benchmark, library):
    benchmark.group = "GPT 4x128, T=64, batch 16, AdamW"
    config = GPTConfig(length=64, layers=4, heads=4, width=128)
    tokens = np.random.default_rng(0).integers(0, 256, (16, 65))
    if library == "gpuad":
        model = GPT(config)
        optimizer = gpuad.optim.AdamW(model.parameters(), 1e-3, max_grad_norm=1.0)
        tokens = gpuad.asarray(tokens)
    else:
        model = TorchGPT(config)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        tokens = torch.from_numpy(tokens)
    losses = []

    def run():
        loss = model.loss(tokens)
        loss.backward()
        if library == "torch":
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())

    rounds(run, rounds=25)
    assert losses[-1] < losses[0]
