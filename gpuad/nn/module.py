"""Module: a tree of parameters with a forward function, and itself a pytree.

Attributes that are tensors, Modules, or lists, tuples and dicts that hold some, are the tree: a Parameter is trained,
any other tensor is a buffer.  All else is static.  A tensor that is found in two places is one leaf.
"""

from __future__ import annotations

import abc
import copyreg
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from .. import tree
from ..array import describe
from ..attribution import assign, ledgers, scope
from ..convert import as_operand, reduced
from ..dtype import is_float
from ..errors import DataError, DTypeError, GradientError
from ..fuse.plan import realize
from ..node import Leaf
from ..provenance import here
from ..recording import active
from ..tensor import Tensor

# --- parameters -------------------------------------------------------------------------------


class Parameter(Tensor):
    """A tensor that a Module trains: a leaf that requires grad, named after its place in the Module."""

    __slots__ = ()

    def __init__(self, data: Any, name: str | None = None) -> None:
        x = as_operand(data)
        if x.trace is not None:
            raise GradientError(
                f"a Parameter cannot be made of a tensor inside {x.trace.kind}()\n  make it outside and pass it in"
            )
        if not is_float(x.dtype):
            raise DTypeError(f"a Parameter has a gradient, which {describe(x)} cannot; use .to(gpuad.float32)")
        super().__init__(realize(x.array), None, (Leaf(name, here(2)), 0))
        assign(self.data, "parameter")


copyreg.pickle(Parameter, reduced)


def _seen_as_parameter(x: Tensor) -> Parameter:
    """`x`, a value or a gradient, in the place of a Parameter."""
    if isinstance(x, Parameter):
        return x
    parameter = Parameter.__new__(Parameter)
    parameter.become(x)
    return parameter


# --- what a Module is without its tensors -----------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Slot:
    """The place of the leaf of this number."""

    index: int
    parameter: bool


@dataclass(frozen=True, slots=True, eq=False)
class _Static:
    """A value that is not part of the tree, equal to another by identity or by value."""

    value: Any

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Static) or type(self.value) is not type(other.value):
            return False
        return self.value is other.value or _are_equal(self.value, other.value)

    def __hash__(self) -> int:
        return hash(type(self.value))


def _are_equal(a: Any, b: Any) -> bool:
    try:
        return bool(a == b)
    except ValueError:  # arrays, which have no one truth
        return False


@dataclass(frozen=True, slots=True)
class _Inner:
    """A Module, list, tuple or dict: its names or keys, and what is there."""

    kind: Any  # the class
    names: tuple[Any, ...]
    parts: tuple[_Part, ...]
    training: bool | None = field(default=None, compare=False)  # a gradient taken in training fits one taken after


_Part = _Slot | _Static | _Inner


def _take_apart(x: Any, leaves: list[Tensor], places: dict[int, int]) -> _Part:
    """What `x` is without its tensors, which are added to `leaves` once each; `places` has their numbers by id."""
    if isinstance(x, Tensor):
        if id(x) not in places:
            places[id(x)] = len(leaves)
            leaves.append(x)
        return _Slot(places[id(x)], isinstance(x, Parameter))
    found = _contents(x)
    if found is None:
        return _Static(x)
    names, values = found
    parts = tuple([_take_apart(value, leaves, places) for value in values])
    if not isinstance(x, Module):
        return _Static(x) if all(type(part) is _Static for part in parts) else _Inner(type(x), names, parts)
    return _Inner(type(x), names, parts, vars(x).get("training"))


def _put_together(part: _Part, leaves: list[Any]) -> Any:
    if isinstance(part, _Slot):
        return leaves[part.index]
    if isinstance(part, _Static):
        return part.value
    values = [_put_together(p, leaves) for p in part.parts]
    if issubclass(part.kind, Module):
        module = part.kind.__new__(part.kind)
        vars(module).update(zip(part.names, values, strict=True))
        if part.training is not None:
            vars(module)["training"] = part.training
        return module
    return dict(zip(part.names, values, strict=True)) if part.kind is dict else part.kind(values)


def _contents(x: Any) -> tuple[tuple[Any, ...], Iterable[Any]] | None:
    """The names or keys of what `x` holds and the values, in order; None for what is no container."""
    if isinstance(x, Module):
        attributes = {name: value for name, value in vars(x).items() if name != "training"}
        return tuple(attributes), attributes.values()
    if type(x) is dict:
        return tuple(x), x.values()
    return (tuple(range(len(x))), x) if type(x) in (list, tuple) else None


def _flatten(module: Module) -> tuple[list[Any], _Part]:
    leaves: list[Any] = []
    return leaves, _take_apart(module, leaves, {})


def _unflatten(part: _Part, leaves: list[Any]) -> Any:
    parameters = {slot.index for slot in _slots(part) if slot.parameter}
    # once for each leaf, not for each place: what was tied is again one object
    seen = [_seen_as_parameter(x) if k in parameters and isinstance(x, Tensor) else x for k, x in enumerate(leaves)]
    return _put_together(part, seen)


def _slots(part: _Part) -> Iterator[_Slot]:
    if isinstance(part, _Slot):
        yield part
    elif isinstance(part, _Inner):
        for p in part.parts:
            yield from _slots(p)


def _places(x: Any, path: str) -> Iterator[tuple[str, Any]]:
    """(path, Module or tensor) for `x` and everything in it, outer first; ties appear in each of their places."""
    if isinstance(x, Tensor):
        yield path, x
        return
    found = _contents(x)
    if found is not None:
        if isinstance(x, Module):
            yield path, x
        for name, value in zip(*found, strict=True):
            yield from _places(value, f"{path}.{name}" if path else str(name))


# --- Module -----------------------------------------------------------------------------------


class _Naming(abc.ABCMeta):
    """Names the parameters of a Module when its constructor has returned."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        module = super().__call__(*args, **kwargs)
        for path, x in module.named_parameters():
            # an inner Module has named it by a shorter path; a name that the user gave stays
            if x.is_leaf and (x.name is None or path.endswith("." + x.name)):
                x.name = path
        return module


class Module(metaclass=_Naming):
    """The base of layers and models.  Assign tensors and Modules to attributes, and define `forward`.

    Every Module is a pytree of its parameters and buffers: `grad(loss)(model, x)` gives a Module of gradients, and
    `tree.map` works.
    """

    training: bool = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        tree.register(cls, _flatten, _unflatten)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What calling the Module computes."""
        raise NotImplementedError(f"{type(self).__name__} has no forward()")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        recorder = active.get()
        if recorder is not None:
            recorder.modules[id(self)] = self
        if not ledgers:
            return self.forward(*args, **kwargs)
        token = scope.set((*scope.get(), self))
        try:
            return self.forward(*args, **kwargs)
        finally:
            scope.reset(token)

    # --- what is in it ----------------------------------------------------------------------

    def modules(self) -> Iterator[Module]:
        """This Module and all those in it, each once."""
        return (x for _, x in _distinct(self) if isinstance(x, Module))

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """(path, parameter), a tied one only in its first place: ("blocks.0.norm.weight", ...)."""
        return ((path, x) for path, x in _distinct(self) if isinstance(x, Parameter))

    def parameters(self) -> Iterator[Parameter]:
        """What is trained, a tied parameter once."""
        return (x for _, x in self.named_parameters())

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """(path, tensor) for the tensors that are not parameters."""
        return ((path, x) for path, x in _distinct(self) if isinstance(x, Tensor) and not isinstance(x, Parameter))

    def buffers(self) -> Iterator[Tensor]:
        """The tensors that are not parameters."""
        return (x for _, x in self.named_buffers())

    def num_parameters(self) -> int:
        """How many numbers are trained."""
        return sum(x.size for x in self.parameters())

    # --- values -----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """{path: values} of the parameters and buffers as they are now; a tied tensor has its first path.

        Later steps do not change it: while it lives, an optimizer allocates instead of writing over its memory.
        """
        return {path: x.detach() for path, x in _distinct(self) if isinstance(x, Tensor)}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Take over the values of `state`: tensors or arrays by path, cast to the dtypes they replace.

        A tied tensor may come under any of its paths.  With `strict`, missing and unexpected names are an error; a
        shape that differs always is.  Nothing changes if there is an error.
        """
        tensors = {path: x for path, x in _places(self, "") if isinstance(x, Tensor)}
        given: dict[int, tuple[Tensor, Tensor]] = {}
        wrong = []
        for path, x in tensors.items():
            if path in state:
                new = as_operand(state[path])
                if new.shape != x.shape:
                    wrong.append(f"{path} is {describe(x)}, got {describe(new)}")
                given.setdefault(id(x), (x, new))
        if strict:
            wrong += [
                f"{path} is missing" for path, x in _distinct(self) if isinstance(x, Tensor) and id(x) not in given
            ]
            wrong += [f"{path} is not in this {type(self).__name__}" for path in state if path not in tensors]
        if wrong:
            raise DataError("load_state_dict() changed nothing, because\n  " + "\n  ".join(wrong))
        ready = [(x, realize(new.detach().to(x.dtype).to(x.device).array)) for x, new in given.values()]
        for x, array in ready:
            x.data = array
            if isinstance(x, Parameter):
                assign(array, "parameter")

    def zero_grad(self) -> None:
        """Forget the gradients that `backward()` has collected."""
        for x in self.parameters():
            if x.is_leaf:
                x.grad = None

    def to(self, target: Any) -> Self:
        """This Module with its floating-point tensors as another dtype, or all of its tensors on another device."""
        for _, x in _distinct(self):
            if isinstance(x, Tensor):
                moved = x.detach().to(target)
                if moved.dtype == x.dtype or is_float(x.dtype):
                    gradient, array = x.grad, realize(moved.array)
                    x.data = array
                    if gradient is not None:
                        x.grad = gradient.detach().to(target)
        return self

    def train(self, mode: bool = True) -> Self:
        """This Module in training mode: dropout is on."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """This Module in evaluation mode: dropout is off."""
        return self.train(False)

    # --- display ----------------------------------------------------------------------------

    def extra_repr(self) -> str:
        """What `repr` shows between the parentheses, before the Modules inside."""
        return ""

    def __repr__(self) -> str:
        lines = [line for name, value in zip(*_attributes(self), strict=True) for line in _shown(str(name), value)]
        extra = self.extra_repr()
        if not lines:
            return f"{type(self).__name__}({extra})"
        first = f"{type(self).__name__}({extra}" + (",\n  " if extra else "\n  ")
        return first + "\n  ".join(lines) + "\n)"


def _attributes(module: Module) -> tuple[tuple[Any, ...], Iterable[Any]]:
    found = _contents(module)
    assert found is not None
    return found


def _shown(name: str, value: Any) -> list[str]:
    """The lines that show the Modules in an attribute or an entry."""
    if isinstance(value, Module):
        return f"{name}: {value!r}".split("\n")
    if isinstance(value, Tensor) and not isinstance(value, Parameter):
        return [f"{name}: {describe(value)}"]
    found = _contents(value)
    if found is None:
        return []
    lines = [line for key, entry in zip(*found, strict=True) for line in _shown(str(key), entry)]
    return [f"{name}:", *["  " + line for line in lines]] if lines else []


def _distinct(module: Module) -> Iterator[tuple[str, Any]]:
    """The Modules and tensors of `module`, each in its first place."""
    seen: set[int] = set()
    for path, x in _places(module, ""):
        if id(x) not in seen:
            seen.add(id(x))
            yield path, x


__all__ = ["Module", "Parameter"]
