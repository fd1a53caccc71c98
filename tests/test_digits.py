"""A network learns to read handwritten digits, in both styles."""

import numpy as np
import pytest

import gpuad
from gpuad import nn, optim
from gpuad.random import Generator

sklearn = pytest.importorskip("sklearn.datasets", reason="needs scikit-learn, which is not installed")
F = nn.functional


@pytest.fixture(scope="module")
def digits():
    """Images float32[n, 64] and labels of a training set and of the fifth that is held out."""
    images, labels = sklearn.load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = (images[order] / 16).astype(np.float32), labels[order].astype(np.int64)
    n = len(images) // 5
    return images[n:], labels[n:], images[:n], labels[:n]


@pytest.mark.parametrize("style", ["backward", "grad"])
def test_digits_are_read_with_97_percent_accuracy(digits, style):
    images, labels, held_images, held_labels = digits
    g = Generator(0)
    model = nn.Sequential(
        nn.Linear(64, 128, generator=g), nn.ReLU(), nn.Dropout(0.2, generator=g), nn.Linear(128, 10, generator=g)
    )
    optimizer = optim.AdamW(model.parameters(), 3e-3)
    rng, batch = np.random.default_rng(1), 64

    def loss(model, x, y):
        return F.cross_entropy(model(x), y)

    total = 15 * (len(images) // batch)
    for step in range(total):
        if step % (total // 15) == 0:
            order = rng.permutation(len(images))
        chosen = order[step % (total // 15) * batch :][:batch]
        x, y = gpuad.asarray(images[chosen]), gpuad.asarray(labels[chosen])
        optimizer.lr = optim.cosine_with_warmup(step, warmup=10, total=total, peak=5e-3)
        if style == "backward":
            optimizer.zero_grad()
            loss(model, x, y).backward()
            optimizer.step()
        else:
            optimizer.update(gpuad.grad(loss)(model, x, y))
    with gpuad.no_grad():
        found = model.eval()(gpuad.asarray(held_images)).numpy().argmax(1)
    assert (found == held_labels).mean() >= 0.97
