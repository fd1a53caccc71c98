"""checkpoint: keep a function's inputs, and compute the rest again when a derivative asks for it.

A checkpointed call is one op.  Its rules run the function again under the trace that asks, so it nests and works in
every mode and order.  Each run happens in a Region (region.py), which finds the tensors that enter from outside: they
become inputs of the op; and which holds every run after the first to what that did.  What a policy keeps are further
outputs of the op, which nobody sees.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from .. import tree
from ..array import Array
from ..attribution import during
from ..errors import DataError
from ..fuse.plan import realize_all
from ..node import bottom
from ..provenance import Site
from ..tensor import Tensor
from .draws import Draws
from .part import Part, Rerun, name_of, result_of, varies
from .policies import Policy, policy_of
from .record import DETERMINISM


def checkpoint(
    f: Callable[..., Any] | None = None,
    *,
    policy: Any = None,
    determinism: str = "hash",
    generators: Sequence[Any] = (),
) -> Callable[..., Any]:
    """`f`, keeping only its inputs for derivatives and computing the rest again; also a decorator.

    Arguments and result are trees.  Tensors that `f` closes over are differentiated like arguments.

    `policy` says what is kept besides: "nothing" (as None), "matmuls" (the results of products of matrices),
    `names("a", "b")` (values that `checkpoint_name` calls so), or a function of a value (with .op, .name, .shape,
    .dtype, .nbytes) that returns whether to keep it.

    A second run draws the same random numbers: gpuad's, NumPy's global ones, Python's `random`, CuPy's global ones, and
    those of `generators` (of NumPy, or random.Random).  With `determinism` "hash" it must do the same ops on the same
    constants and return the same results, and each value that is written to memory and kept must have the same bits, or
    a RecomputeError names the first that differs; with "shapes" the values of arrays are not compared, with "off" no
    more than the shapes of the results.  One that uses other tensors from outside, or values assigned since, is a
    CaptureError.

    An argument that `f` assigns, as in `x += y`, stays what it was for the caller.  Threads that `f` starts may not
    compute with what is differentiated.
    """
    if determinism not in DETERMINISM:
        raise DataError(f'determinism= is "hash", "shapes" or "off", got {determinism!r}')
    keeps = policy_of(policy)
    Draws(generators)  # so that a wrong one is an error here
    if f is None:
        return functools.partial(checkpoint, policy=policy, determinism=determinism, generators=generators)
    if not callable(f):
        raise DataError(f"checkpoint() takes a function, got {type(f).__name__}")

    @functools.wraps(f)
    def checkpointed(*args: Any, **kwargs: Any) -> Any:
        leaves, structure = tree.flatten((args, kwargs))
        places = [k for k, x in enumerate(leaves) if isinstance(x, Tensor)]

        def call(tensors: Sequence[Any]) -> Any:
            filled = list(leaves)
            for place, t in zip(places, tensors, strict=True):
                filled[place] = t
            some, named = structure.unflatten(filled)
            return f(*some, **named)

        inputs = [leaves[k] for k in places]
        for k in places:
            leaves[k] = None  # or the op would keep their handles
        return _first_run(Part(call, name_of(f), determinism, generators), inputs, keeps)

    return checkpointed


def _first_run(part: Part, inputs: list[Tensor], policy: Policy | None) -> Any:
    out, region = part.first([Tensor(x.array) for x in inputs], policy)
    leaves, structure = tree.flatten(out)
    inside = [k for k, y in enumerate(leaves) if isinstance(y, Tensor) and y.trace is region]
    if not inside:
        return out
    part.record.results = [result_of(leaves[k]) for k in inside]
    realize_all(region.kept.values())
    arrays = (*[leaves[k].array for k in inside], *region.kept.values())
    del out
    differentiable = [varies(leaves[k]) for k in inside]
    for k in inside:
        leaves[k] = None
    op = Checkpointed(part, len(inputs), differentiable, list(region.kept), arrays)
    region.kept.clear()
    results = op(*inputs, *region.captured)
    op.arrays = ()
    for k, y in zip(inside, results if isinstance(results, tuple) else (results,)):  # what is kept comes after them
        leaves[k] = y
    return structure.unflatten(leaves)


class Checkpointed(Rerun):
    """One checkpointed call: an op whose rules run the function again."""

    def __init__(
        self,
        part: Part,
        arguments: int,
        differentiable: list[bool],
        kept: list[tuple[Any, ...]],
        arrays: tuple[Array, ...],
    ) -> None:
        self.name = f"checkpoint({part.record.name})"
        self.keeper = f"policy of {self.name}"
        self.part, self.arguments, self.results = part, arguments, len(differentiable)
        self.record = part.record
        self.kept = kept  # places of the values that a policy keeps, which are the outputs after the results
        self._returns(differentiable, len(kept))
        self.arrays = arrays  # until they are handed out

    def evaluate(self, arrays: list[Any], params: dict[str, Any], site: Site | None) -> Any:
        return self.arrays if len(self.arrays) > 1 else self.arrays[0]

    def again(self, inputs: Sequence[Any], frame: list[Any]) -> list[Any]:
        """The results, computed again from `inputs`: the arguments, then the captured tensors."""
        n = len(inputs) + self.results
        given = {place: bottom(frame[n + k]) for k, place in enumerate(self.kept)}
        with during("recompute"):
            return self.part.again(inputs[: self.arguments], list(inputs[self.arguments :]), given)


__all__ = ["checkpoint"]
