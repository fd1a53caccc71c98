"""`gpuad train` as a short program: a byte-level GPT learns the sources of Python's standard library.

    python scripts/train_gpt.py [FILE OR FOLDER ...]

It takes about three minutes on two cores, and leaves the weights in gpt.safetensors.  What the command adds is a run
folder that can be resumed, and options.
"""

import sys
import time
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that it runs without installing

import gpuad
from gpuad import data, nn, optim
from gpuad.models import GPT, GPTConfig, sample

STEPS, WARMUP, BATCH, LENGTH, SEED = 800, 80, 16, 64, 0

# The text, and what tables of byte statistics make of the part held out.
text = data.ByteDataset(data.find_text_files(sys.argv[1:]) if sys.argv[1:] else data.standard_library_files())
held_out = data.held_out_windows(text.held_out, batch=BATCH, length=LENGTH, windows=512)
print(text.describe())
for name, order in (("bigram", 2), ("trigram", 3)):
    print(f"held-out loss of a {name} table: {data.ngram_loss(text.train, text.held_out, order):.3f} nats per byte")

# The model, and an optimizer that makes matrices decay, but not biases and norms.
config = GPTConfig(length=LENGTH, layers=4, heads=4, width=128, positions="rotary", rotary_base=1000.0, std=0.08)
model = GPT(config, generator=gpuad.random.Generator(SEED))
optimizer = optim.AdamW(
    model.parameters(), betas=(0.9, 0.95), weight_decay=0.1, no_decay=lambda p: p.ndim < 2, max_grad_norm=1.0
)

began = time.perf_counter()
for step, tokens in enumerate(islice(data.batches(text.train, batch=BATCH, length=LENGTH, seed=SEED), STEPS)):
    optimizer.lr = optim.cosine_with_warmup(step, warmup=WARMUP, total=STEPS, peak=3e-3, final=3e-4)
    loss = model.loss(gpuad.asarray(tokens))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % 50 == 49:
        print(f"step {step + 1}: loss {loss.item():.3f}, {time.perf_counter() - began:.0f} s", flush=True)

with gpuad.no_grad():
    losses = [model.loss(gpuad.asarray(tokens)).item() for tokens in held_out]
print(f"held-out loss {sum(losses) / len(losses):.3f} nats per byte")
nn.save("gpt.safetensors", model.state_dict())
print(
    bytes(sample(model, b"\n", 400, temperature=0.8, generator=gpuad.random.Generator(SEED))).decode(errors="replace")
)
