"""grad, value_and_grad, vjp, jvp: transformations of functions over pytrees, which nest in any order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from . import tree
from .array import describe
from .attribution import during
from .convert import as_operand
from .dtype import is_float
from .errors import DTypeError, GpuadError, ShapeError
from .ops.create import ones_like, zeros_like
from .recording import active
from .tape import sweep
from .tensor import Tensor
from .trace import ForwardTrace, ReverseTrace


def _differentiable(leaves: list[Any], what: str) -> list[Tensor]:
    tensors = [as_operand(x) for x in leaves]
    recorder = active.get()
    if recorder is not None:
        recorder.saw(tensors)
    for x in tensors:
        if not is_float(x.dtype):
            raise DTypeError(
                f"{what} differentiates floating-point tensors, got {describe(x)}; cast it with .to(gpuad.float32)"
            )
    return tensors


def vjp(f: Callable[..., Any], *primals: Any, has_aux: bool = False) -> tuple[Any, ...]:
    """`(y, pullback)`, or `(y, pullback, aux)`: f(*primals), and the function that pulls a cotangent of y back.

    `pullback(g)` takes a tree like y and returns a tuple with one tree for each primal.
    """
    leaves, structure = tree.flatten(primals)
    trace = ReverseTrace()
    boxes = [trace.leaf(x) for x in _differentiable(leaves, "vjp()")]
    nodes = [b.link[0] for b in boxes]  # now: the function may rebind its arguments
    primal_values = [b.data for b in boxes]
    try:
        out = f(*structure.unflatten(boxes))
    finally:
        trace.open = False
    aux = None
    if has_aux:
        out, aux = out
        aux = tree.map(lambda x: _outside(x, trace), aux)
    found, shape = tree.flatten(out)
    outputs = [as_operand(y) for y in found]
    links = [y.link if y.trace is trace else None for y in outputs]
    results = [_outside(y, trace) for y in outputs]
    like = [(y.shape, y.dtype) for y in results]

    def pullback(g: Any, retain: bool = True) -> tuple[Any, ...]:
        cotangents, same = tree.flatten(g)
        if same != shape:
            raise GpuadError(f"the cotangent is {same}, but the output is {shape}")
        seeds = []
        for link, given, (size, dtype) in zip(links, cotangents, like, strict=True):
            ct = as_operand(given)
            if ct.shape != size:
                raise ShapeError(f"a cotangent is {describe(ct)}, but the output is {dtype}{list(size)}")
            if link is not None:
                seeds.append((link, ct.to(dtype)))
        with during("backward"):
            gradients = sweep(seeds, retain=retain)
        parts = [
            gradients[n].alias() if n in gradients else zeros_like(x) for n, x in zip(nodes, primal_values, strict=True)
        ]
        pulled: tuple[Any, ...] = structure.unflatten(parts)
        return pulled

    y = shape.unflatten(results)
    return (y, pullback, aux) if has_aux else (y, pullback)


def _outside(x: Any, trace: Any) -> Any:
    """`x` as those outside `trace` see it."""
    if not isinstance(x, Tensor):
        return x
    inner: Tensor = x.data if x.trace is trace else x
    return inner.alias()


def jvp(f: Callable[..., Any], primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
    """`(y, dy)`: f(*primals), and its derivative along `tangents`, a tree like `primals`."""
    for what, given in (("primals", primals), ("tangents", tangents)):
        if not isinstance(given, tuple | list):
            raise GpuadError(f"jvp() takes {what} as a tuple, one for each argument: jvp(f, (x,), (t,))")
    leaves, structure = tree.flatten(tuple(primals))
    directions, same = tree.flatten(tuple(tangents))
    if same != structure:
        raise GpuadError(f"jvp() got tangents {same} for primals {structure}")
    xs, ts = _differentiable(leaves, "jvp()"), [as_operand(t) for t in directions]
    for x, t in zip(xs, ts, strict=True):
        if t.shape != x.shape:
            raise ShapeError(f"jvp() got the tangent {describe(t)} for {describe(x)}")
    trace = ForwardTrace()
    boxes = [Tensor(x.alias(), trace, t.to(x.dtype).alias()) for x, t in zip(xs, ts, strict=True)]
    try:
        out = f(*structure.unflatten(boxes))
    finally:
        trace.open = False
    found, shape = tree.flatten(out)
    outputs = [as_operand(y) for y in found]
    results = [_outside(y, trace) for y in outputs]
    slopes = [y.link.alias() if y.trace is trace else zeros_like(y) for y in outputs]
    return shape.unflatten(results), shape.unflatten(slopes)


def value_and_grad(
    f: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False
) -> Callable[..., tuple[Any, Any]]:
    """A function that returns `(f(*args), gradient)`, or `((value, aux), gradient)`.

    The gradient is a tree like the argument `argnums` points at, or a tuple of them; f must return a scalar.
    """
    several = not isinstance(argnums, int)
    wanted: tuple[int, ...] = (argnums,) if isinstance(argnums, int) else tuple(argnums)

    def value_and_gradient(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        for k in wanted:
            if not -len(args) <= k < len(args):
                raise GpuadError(f"grad() was asked for argument {k}, but the function got {len(args)}")
        places = [k % len(args) for k in wanted]

        def of_chosen(*chosen: Any) -> Any:
            filled = list(args)
            for k, value in zip(places, chosen, strict=True):
                filled[k] = value
            return f(*filled, **kwargs)

        y, pullback, *aux = vjp(of_chosen, *[args[k] for k in places], has_aux=has_aux)
        if not isinstance(y, Tensor) or y.size != 1:
            shown = describe(y) if isinstance(y, Tensor) else type(y).__name__
            raise ShapeError(
                f"grad() needs a function that returns a scalar, got {shown}\n  sum the result, or use vjp()"
            )
        gradients = pullback(ones_like(y), retain=False)
        return (y, aux[0]) if has_aux else y, gradients if several else gradients[0]

    return value_and_gradient


def grad(f: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False) -> Callable[..., Any]:
    """A function that returns the gradient of the scalar f(*args) with respect to `argnums`, or `(gradient, aux)`."""
    both = value_and_grad(f, argnums, has_aux)

    def gradient(*args: Any, **kwargs: Any) -> Any:
        value, found = both(*args, **kwargs)
        return (found, value[1]) if has_aux else found

    return gradient


def stop_gradient(x: Any) -> Any:
    """`x` (a tree) as constants for every derivative."""
    return tree.map(lambda t: t.detach() if isinstance(t, Tensor) else t, x)
