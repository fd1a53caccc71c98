"""The cost each elementwise op declares (additions an element) beside what a block that fits the cache takes.

`numpy` is the op's NumPy function, `compiled` its kernel on one thread.  The planner compares costs with STORE_COST to
decide what is stored and what is computed again; a declared cost that is off by more than a few times in both is worth
correcting.
"""

import numpy as np
import pytest

import gpuad
from gpuad import ops
from gpuad.fuse import compiled, threads
from gpuad.op import Elementwise

FAMILIES = [ops.elementwise, ops.compare, ops.activations]
UNARY = {
    op.name: op
    for family in FAMILIES
    for op in vars(family).values()
    if isinstance(op, Elementwise) and len(op.inputs) == 1
}


SIZE = 16384


def compiled_call(op, x, monkeypatch):
    """What runs the kernel of `op` again, on one thread."""
    ran = []
    job = compiled.job
    monkeypatch.setattr(compiled, "job", lambda kernel: (ran.append((job(kernel), kernel)), ran[-1][0])[1])
    given = gpuad.asarray(x)
    result = op(given)
    result.numpy()
    ((made, kernel),) = ran
    (call,) = made.program.calls
    keep = given, result, kernel
    return lambda: threads.run(call.entry, call.place, *call.shares[:-1], 1) or keep


@pytest.mark.parametrize("library", ["numpy", "compiled"])
@pytest.mark.parametrize("name", sorted(UNARY))
def test_cost(benchmark, monkeypatch, library, name):
    op = UNARY[name]
    benchmark.group = f"{name}, declared {op.cost:g}"
    x = np.random.default_rng(0).random(SIZE).astype(np.float32) * 0.9 + 0.05
    operands, result = op.signature((x.dtype,))
    if operands[0].kind in "iu":
        pytest.skip("on integers")
    if library == "compiled":
        benchmark.pedantic(compiled_call(op, x, monkeypatch), rounds=50, iterations=5, warmup_rounds=5)
        return
    x, out = x.astype(operands[0]), np.empty(x.shape, result)
    with np.errstate(all="ignore"):
        benchmark.pedantic(op.numpy, (x, out), rounds=50, iterations=5, warmup_rounds=5)
