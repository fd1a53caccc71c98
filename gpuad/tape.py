"""The reverse sweep, and `backward()` over the ambient tape."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import Any

from .array import ANCHOR, OPAQUE, Array, describe
from .attribution import assign, during, ledgers, mark, scope, scopes
from .convert import asarray
from .errors import FreedTapeError, GradientError, ShapeError
from .fuse.plan import realize_all
from .node import Borrowed, Leaf, Link, Node, Order, bottom
from .operators import operators
from .ops.copying import copy
from .ops.create import ones_like
from .provenance import blamed, here
from .provenance import describe as describe_site
from .tensor import Tensor


def sweep(
    seeds: Iterable[tuple[Link, Tensor]],
    *,
    attached: bool = False,
    retain: bool = False,
    also: Tensor | None = None,
    leaves: dict[Leaf, Tensor] | None = None,
) -> dict[Leaf, Tensor]:
    """Pull cotangents back to the leaves, newest node first: {leaf: cotangent}.

    `attached` makes what is computed part of the ambient tape; `retain` leaves the tape for another sweep.
    All state is local, so a sweep may run inside another, or on another thread.  Before it pulls through an op that
    ends a kernel it computes that op's cotangent together with everything that has reached a leaf by then: they come
    from one region, and share its kernel.  The value of `also` is computed with the first of them.  What is in `leaves`
    already is added to.  A node whose op has run again hands its cotangents to that run.
    """
    cotangents: dict[Node, list[Tensor | None]] = {}
    heap: list[tuple[Order, Node]] = []
    leaves = {} if leaves is None else leaves
    arrived: list[Tensor] = [] if also is None else [also]

    def push(link: Link, g: Tensor) -> None:
        node, k = link
        if isinstance(node, Leaf):
            leaves[node] = leaves[node] + g if node in leaves else g
            if ledgers:
                assign(leaves[node].array, node.category)
            arrived.append(leaves[node])
            return
        found = cotangents.get(node)
        if found is None:
            found = cotangents[node] = [None] * len(node.op.outputs)
            heapq.heappush(heap, (node.order, node))
        before = found[k]
        found[k] = g if before is None else before + g

    for link, g in seeds:
        push(link, g)
        del link, g  # the last one would be held to the end
    while heap:
        _, node = heapq.heappop(heap)
        parts = cotangents.pop(node)
        if node.saved is None:
            raise FreedTapeError(
                f"the tape behind {node.op.name}() at {describe_site(node.site)} was freed by an earlier backward()\n"
                "  pass retain_graph=True to that one to sweep it twice"
            )
        if node.again is not None:
            for later, part in zip(node.again, parts, strict=True):
                if later is not None and part is not None:
                    push(later, part)
            del parts
            if not retain:
                node.release()
            continue
        op, parents = node.op, node.parents
        if op.fusion in (OPAQUE, ANCHOR):
            together = [a for a in map(bottom, [*parts, *arrived]) if a is not None and a.op is not None]
            if together:
                realize_all(together)
            arrived.clear()
        token = blamed.set(node.site)
        scoped = scope.set(scopes.get(node, ())) if ledgers else None
        try:
            traced, frame = [p is not None for p in parents], _unpack(node, attached)
            if retain or op.pull_last is None:
                pulled = op.pull(parts[0] if len(parts) == 1 else parts, frame, traced)
            else:
                node.release()
                pulled = op.pull_last(parts.pop() if len(parts) == 1 else parts, frame, traced)
            for parent, part in zip(parents, pulled):
                if parent is not None and part is not None:
                    push(parent, part)
        finally:
            blamed.reset(token)
            if scoped is not None:
                scope.reset(scoped)
        del parts, frame, pulled
        if not retain:
            node.release()
    return leaves


def _unpack(node: Node, attached: bool) -> list[Any]:
    """The saved values as tensors.  An output is stored without its node, to avoid a cycle."""
    saved = node.saved
    assert saved is not None
    out = list(saved)
    for k, v in enumerate(saved):
        if type(v) is Borrowed:
            v = out[k] = v.verified(node.op.name)
        if type(v) is Array:
            if attached:
                n = len(node.parents)
                out[k] = Tensor(v, None, node.parents[k] if k < n else (node, k - n))
            else:
                out[k] = Tensor(v)
    return out


def backward(y: Tensor, gradient: Any = None, retain_graph: bool = False, create_graph: bool = False) -> None:
    """Add the gradient of `y` to `.grad` of every leaf it depends on."""
    if y.trace is not None:
        raise GradientError(
            f"backward() on a tensor inside {y.trace.kind}() at {describe_site(here(3))}\n"
            "  the transformation differentiates by itself; return the tensor from the function instead"
        )
    if y.link is None:
        raise GradientError(
            f"backward() on {describe(y)} made at {describe_site(y.array.site)}, which depends on nothing that"
            " requires grad\n"
            "  call requires_grad_() on a tensor it is computed from, outside no_grad()"
        )
    if gradient is None:
        if y.size != 1:
            raise ShapeError(
                f"backward() needs a scalar, got {describe(y)} at {describe_site(here(3))}\n"
                "  sum it first, or pass gradient= of the same shape"
            )
        seed = ones_like(y)
    else:
        seed = (
            gradient.to(y.dtype) if isinstance(gradient, Tensor) else asarray(gradient, dtype=y.dtype, device=y.device)
        )
        if not create_graph:
            seed = seed.detach()
        if seed.shape != y.shape:
            raise ShapeError(f"gradient= is {describe(seed)}, but backward() was called on {describe(y)}")
    if seed.trace is None and seed.data.buffer is not None and seed.data.buffer.borrowed:
        seed = copy(seed)  # or a gradient that is a view of it would change under the user
    if ledgers:
        mark("forward end")
    with during("backward"):
        if create_graph:
            found = sweep([(y.link, seed)], attached=True, retain=True)
        else:  # who asks for the gradient of y will look at y, which costs little in a kernel of the sweep
            also = y if _needs_no_product(y.array) else None
            found = sweep([(y.link, seed)], retain=retain_graph, also=also)
            realize_all([g.array for g in (*found.values(), *([also] if also is not None else []))])
        for leaf, g in found.items():
            accumulate(leaf, g, create_graph)
    if ledgers:
        mark("backward end")


def _needs_no_product(array: Array) -> bool:
    """Can `array` be computed by fused kernels alone?"""
    seen: set[int] = set()
    stack = [array]
    while stack:
        a = stack.pop()
        if a.op is not None and a.op.fusion == ANCHOR:
            return False
        new = [x for x in a.inputs if type(x) is Array and id(x) not in seen]
        seen.update(map(id, new))
        stack += new
    return True


def accumulate(leaf: Leaf, g: Tensor, attached: bool) -> None:
    """Add `g` to the gradient of `leaf`, in place where nobody else sees the old one."""
    with leaf.lock:
        old = leaf.grad
        if old is None:
            leaf.grad = g.alias()
        elif attached:
            leaf.grad = old + g
        else:
            total = Tensor(old.data) + Tensor(g.array)
            leaf.grad = None
            del old  # so that the sum may take over its memory
            realize_all([total.data])
            leaf.grad = total
        assign(leaf.grad.array, "gradient")


operators.backward = backward
