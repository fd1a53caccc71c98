"""The cost each elementwise op declares (additions an element) beside what NumPy takes in a block that fits the cache.

The planner compares them with STORE_COST to decide what is stored and what is computed again; a declared cost that is
off by more than a few times here is worth correcting.
"""

import numpy as np
import pytest

from gpuad import ops
from gpuad.op import Elementwise

FAMILIES = [ops.elementwise, ops.compare, ops.activations]
UNARY = {
    op.name: op
    for family in FAMILIES
    for op in vars(family).values()
    if isinstance(op, Elementwise) and len(op.inputs) == 1
}


@pytest.mark.parametrize("library", ["gpuad"])
@pytest.mark.parametrize("name", sorted(UNARY))
def test_cost(benchmark, library, name):
    op = UNARY[name]
    benchmark.group = f"{name}, declared {op.cost:g}"
    x = np.random.default_rng(0).random(16384).astype(np.float32) * 0.9 + 0.05
    operands, result = op.signature((x.dtype,))
    if operands[0].kind in "iu":
        pytest.skip("on integers")
    x, out = x.astype(operands[0]), np.empty(x.shape, result)
    with np.errstate(all="ignore"):
        benchmark.pedantic(op.numpy, (x, out), rounds=50, iterations=5, warmup_rounds=5)
