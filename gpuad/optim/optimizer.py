"""Optimizers over flat buffers: parameters of one kind lie side by side, and a step is one kernel over them all.

The kernel writes where it reads, by itself: the engine gives a result the memory of an input that nobody else holds
(fuse/plan.py).  Whoever holds a parameter's old value, a tape or a NumPy view, keeps it, and the step allocates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any
from weakref import ref

import numpy as np

from .. import tree
from ..array import describe
from ..attribution import during, ledgers, mark
from ..convert import as_operand, asarray
from ..devices.device import NON_FINITE
from ..dtype import DType, as_dtype, is_float
from ..errors import DataError, DeviceError, DTypeError, GradientError, NonFiniteError, ShapeError
from ..fuse.plan import realize, realize_all
from ..nn.module import Module
from ..ops.compare import isfinite, logical_not, where
from ..ops.reduce import sum as sum_
from ..ops.shape import astype
from ..provenance import describe as describe_site
from ..provenance import here
from ..recording import active, also
from ..tensor import Tensor
from ..trace import no_grad
from .flat import Flat, Weigh, limit, norm_of, replace

Group = dict[str, Any]
Refuse = Callable[[int], Exception]
Undoing = Callable[[], Callable[[], None]]


class Optimizer:
    """What optimizers share.  A subclass says in `rule` how one step changes the values and the state.

    `params` are tensors, or dicts of options with tensors under "params".  `no_decay(parameter)` is True for those
    that weight decay leaves alone; `max_grad_norm` bounds the norm of all gradients together.

    With `master_weights` parameters of half types have float32 weights beside them, which take the steps; the
    parameters are these, rounded.  Without, a step that is too small to be seen in a half type is lost.  States are
    float32 for half types too, unless `state_dtype` says otherwise: with bfloat16 and no master weights AdamW takes 8
    bytes a parameter, gradients included, as PyTorch's does, and loses what bfloat16 cannot hold.
    """

    def __init__(
        self,
        params: Iterable[Any],
        options: Group,
        state: tuple[str, ...],
        no_decay: Callable[[Tensor], bool] | None,
        max_grad_norm: float | None,
        master_weights: bool,
        state_dtype: Any = None,
    ) -> None:
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise DataError(f"max_grad_norm= is a positive number or None, got {max_grad_norm}")
        self.max_grad_norm, self.state = max_grad_norm, state
        kept = None if state_dtype is None else as_dtype(state_dtype)
        if kept is not None and not is_float(kept):
            raise DTypeError(f"state_dtype= is a floating-point dtype or None, got {kept}")
        groups = _groups(params, options)
        self.parameters: list[Tensor] = [p for group in groups for p in group["params"]]
        self.param_groups: list[Group] = groups if no_decay is None else _divided(groups, no_decay)
        place = {id(p): k for k, p in enumerate(self.parameters)}
        self._flats = []
        for group in self.param_groups:
            kinds: dict[DType, list[Tensor]] = {}
            for p in group["params"]:
                kinds.setdefault(p.dtype, []).append(p)
            self._flats += [
                Flat(ps, [place[id(p)] for p in ps], group, len(state), master_weights, kept) for ps in kinds.values()
            ]

    def rule(self, flat: Flat, weigh: Weigh, g: Tensor, p: Tensor, *state: Tensor) -> list[Tensor]:
        """The new weights and states, each written as the old one changed: `[p - ..., m + ...]`."""
        raise NotImplementedError

    # --- stepping ---------------------------------------------------------------------------

    def step(self) -> None:
        """Change the parameters along the gradients that `backward()` has collected.

        A parameter without one stays, and so does its state.  If the gradients' norm is not finite nothing changes,
        and a NonFiniteError names the parameters at fault.
        """
        if not any(p.is_leaf for p in self.parameters):
            raise GradientError(
                "step() found parameters that collect no gradient\n  call requires_grad_() on them first"
            )
        self._step([p.grad for p in self.parameters], "step")

    def update(self, gradients: Any) -> None:
        """Change the parameters along `gradients`: a Module of them, or a tree in the order the parameters were given.

        None in a list is no gradient.
        """
        self._step(self._ordered(gradients), "update")

    def _step(self, gradients: list[Tensor | None], name: str) -> None:
        flats = [flat for flat in self._flats if any(gradients[k] is not None for k in flat.places)]
        if not flats:
            return
        called = f"{name}()" if flats[0].device.waits else f"{name}() at {describe_site(here())}"
        refuse, undoing = _refusal(self.parameters, gradients, called), partial(_undoing, flats)
        recorder = active.get()
        with no_grad(), during("step"):
            for flat in flats:
                flat.follow()
                if recorder is not None:
                    flat.guard(recorder)
            if recorder is not None:
                largest = self.max_grad_norm
                recorder.guards.append(lambda: self.max_grad_norm == largest)
                recorder.settle()
            if not self._stepped_at_once(flats, gradients, refuse, undoing):
                self._step_by_rule(flats, gradients, refuse, undoing)
        moved = [[gradients[k] is not None for k in flat.places] for flat in flats]
        also(partial(_count, flats, moved))
        if ledgers:
            mark("step end")

    def _stepped_at_once(
        self, flats: list[Flat], gradients: list[Tensor | None], refuse: Refuse, undoing: Undoing
    ) -> bool:
        """Take the step in a kernel of the device for it, if it has one; whether it has."""
        return False

    def _step_by_rule(
        self, flats: list[Flat], gradients: list[Tensor | None], refuse: Refuse, undoing: Undoing
    ) -> None:
        """Take the step in fused kernels."""
        device = flats[0].device
        sides = [flat.gradient([gradients[k] for k in flat.places]) for flat in flats]
        norm = norm_of(sides)
        realize(norm.array)
        whole = isfinite(norm)
        clear = device.all_clear()
        finite = whole if clear is None else whole & Tensor(clear)
        factor = 1.0 if self.max_grad_norm is None else limit(norm, self.max_grad_norm)
        # before the rest: what is pending above them would be too deep for one kernel
        realize_all([x.array for x in (whole, finite, factor) if isinstance(x, Tensor)])
        changed = []
        for flat, g in zip(flats, sides, strict=True):
            weigh = Weigh(flat, [gradients[k] is not None for k in flat.places], finite)
            g = astype(g, flat.full)  # not before: it would be stored beside the gradient itself
            g = where(finite, g * factor if isinstance(factor, Tensor) else g, 0)
            changed.append(self._changed(flat, weigh, g))
        replace(flats, changed)
        device.check_true(whole.array, NON_FINITE, refuse, undoing)

    def _changed(self, flat: Flat, weigh: Weigh, g: Tensor) -> list[Tensor]:
        """What `rule` gives, in the dtypes that weights and states have."""
        changed = self.rule(flat, weigh, g, *map(Tensor, flat.arrays))
        return [new.to(old.dtype) for new, old in zip(changed, flat.arrays, strict=True)]

    def _ordered(self, gradients: Any) -> list[Tensor | None]:
        """The gradients in the order of `self.parameters`, checked."""
        names = [p.name for p in self.parameters]
        found = _leaves(gradients)
        if isinstance(gradients, Module):
            named: dict[str | None, Tensor] = dict(gradients.named_parameters())
            if set(names) <= set(named) and len(set(names)) == len(names):
                found = [named[name] for name in names]
        if len(found) != len(names):
            raise ShapeError(f"update() got {len(found)} gradients for {len(names)} parameters")
        for k, (p, g) in enumerate(zip(self.parameters, found, strict=True)):
            if g is not None and g.shape != p.shape:
                raise ShapeError(
                    f"update() got {describe(g)} as the gradient of {_called(p, k)}, which is {describe(p)}"
                )
            if g is not None and g.trace is not None:
                raise GradientError(
                    f"update() inside {g.trace.kind}() would lose its derivative\n  update outside of it"
                )
        return found

    def zero_grad(self) -> None:
        """Forget the gradients that `backward()` has collected."""
        for p in self.parameters:
            if p.is_leaf:
                p.grad = None

    @property
    def lr(self) -> float:
        """The learning rate (of the first group, if they differ); setting it sets that of every group."""
        rate: float = self.param_groups[0]["lr"]
        return rate

    @lr.setter
    def lr(self, rate: float) -> None:
        for group in self.param_groups:
            group["lr"] = rate

    # --- saving -----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """{"m.<name>": ..., "step.<name>": ..., "group.0.lr": ...}: all that `load_state_dict` needs, as tensors.

        A parameter without a name, or with one that is not its own, has its number.  Master weights are
        "master.<name>".
        """
        keys, found = self._keys(), {}
        for flat in self._flats:
            named = [*zip(self.state, flat.arrays[1:], strict=True), *([("master", flat.arrays[0])] * flat.master)]
            for name, array in named:
                for k, view in zip(flat.places, flat.segments(array), strict=True):
                    found[f"{name}.{keys[k]}"] = Tensor(view)
            for k, n in zip(flat.places, flat.steps, strict=True):
                found[f"step.{keys[k]}"] = asarray(n)
        for i, group in enumerate(self.param_groups):
            for name, value in _options(group):
                found[f"group.{i}.{name}"] = asarray(np.asarray(value, np.float64))
        return found

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict()` of such an optimizer gave.  Nothing changes if there is an error.

        Master weights that are missing start from the values; so do those that do not round to them when a step comes.
        """
        keys = self._keys()
        masters = {f"master.{keys[k]}" for flat in self._flats if flat.master for k in flat.places}
        shapes: dict[str, tuple[int, ...]] = {}
        for k, p in enumerate(self.parameters):
            names = [*self.state, "master"] if f"master.{keys[k]}" in masters else self.state
            shapes |= {f"{name}.{keys[k]}": p.shape for name in names} | {f"step.{keys[k]}": ()}
        for i, group in enumerate(self.param_groups):
            shapes |= {f"group.{i}.{n}": (len(v),) if isinstance(v, tuple) else () for n, v in _options(group)}
        given = {name: as_operand(x).detach() for name, x in state.items()}
        wrong = [f"{name} is missing" for name in shapes if name not in given and name not in masters]
        wrong += [f"{name} is not in this {type(self).__name__}" for name in given if name not in shapes]
        wrong += [
            f"{name} should have the shape {shapes[name]}, got {describe(x)}"
            for name, x in given.items()
            if name in shapes and x.shape != shapes[name]
        ]
        if wrong:
            raise DataError("load_state_dict() changed nothing, because\n  " + "\n  ".join(wrong))
        for flat in self._flats:
            states = [[given[f"{name}.{keys[k]}"] for k in flat.places] for name in self.state]
            master = [given.get(f"master.{keys[k]}") for k in flat.places]
            flat.load(states, master, [given[f"step.{keys[k]}"].item() for k in flat.places])
        for i, group in enumerate(self.param_groups):
            for name, value in _options(group):
                new = given[f"group.{i}.{name}"].tolist()
                group[name] = bool(new) if isinstance(value, bool) else tuple(new) if isinstance(value, tuple) else new

    def _keys(self) -> list[str]:
        names = [p.name for p in self.parameters]
        return [str(k) if n is None or names.count(n) > 1 else n for k, n in enumerate(names)]

    def __repr__(self) -> str:
        lines = [f"  {len(g['params'])} parameters: {dict(_options(g))}" for g in self.param_groups]
        return f"{type(self).__name__}(\n" + "\n".join(lines) + "\n)"


# --- clipping ---------------------------------------------------------------------------------


def clip_grad_norm(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """The norm of all gradients together, which are scaled down where it exceeds `max_norm`.

    Gradients whose norm is not finite stay as they are, for `step()` to refuse.
    """
    owners = [p for p in parameters if p.grad is not None]
    gradients = [p.grad for p in owners if p.grad is not None]
    if not gradients:
        raise GradientError("clip_grad_norm() found no gradients; call it between backward() and step()")
    with no_grad():
        norm = norm_of(gradients)
        realize(norm.array)
        factor = where(isfinite(norm), limit(norm, max_norm), 1)
        scaled = [(g * factor).to(g.dtype) for g in gradients]
        realize_all([g.array for g in scaled])
    for p, g in zip(owners, scaled, strict=True):
        p.grad = g
    return norm


# --- groups, names, messages ------------------------------------------------------------------


def _groups(params: Iterable[Any], options: Group) -> list[Group]:
    """`params` as groups with all of their options, checked."""
    if not isinstance(params, Iterable):
        raise DTypeError(
            f"an optimizer changes a list of tensors, got {type(params).__name__}; pass model.parameters()"
        )
    given = list(params)
    if not given or not isinstance(given[0], Mapping):
        given = [{"params": given}]
    groups = [{**options, **group, "params": list(group["params"])} for group in given]
    seen: set[int] = set()
    for group in groups:
        if unknown := set(group) - {"params", *options}:
            raise DataError(f"a group of parameters has the options {sorted(options)}, not {sorted(unknown)}")
        for k, p in enumerate(group["params"]):
            if not isinstance(p, Tensor) or p.trace is not None or not is_float(p.dtype):
                shown = describe(p) if isinstance(p, Tensor) else type(p).__name__
                raise DTypeError(f"an optimizer changes floating-point tensors, got {shown}; pass model.parameters()")
            if id(p) in seen:
                raise DataError(f"the parameter {_called(p, k)} is given twice")
            if p.device is not groups[0]["params"][0].device:
                raise DeviceError(f"the parameter {_called(p, k)} is on {p.device.name}; all must be on one device")
            seen.add(id(p))
    if not seen:
        raise DataError(
            "an optimizer needs parameters, got none; an iterator such as model.parameters() can be read once"
        )
    return groups


def _divided(groups: list[Group], no_decay: Callable[[Tensor], bool]) -> list[Group]:
    """Each group as those that decay and those that do not."""
    divided = []
    for group in groups:
        exempt = [p for p in group["params"] if no_decay(p)]
        ids = set(map(id, exempt))
        divided.append({**group, "params": [p for p in group["params"] if id(p) not in ids]})
        divided.append({**group, "params": exempt, "weight_decay": 0.0})
    return [group for group in divided if group["params"]]


def _options(group: Group) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in group.items() if name != "params"]


def _leaves(gradients: Any) -> list[Tensor | None]:
    """The gradients in a tree, in order; of a Module those of parameters, of a list None as well."""
    if isinstance(gradients, Module):
        return list(gradients.parameters())
    if isinstance(gradients, list | tuple):
        return [g for entry in gradients for g in ([None] if entry is None else _leaves(entry))]
    return [as_operand(g) for g in tree.leaves(gradients)]


def _called(p: Tensor, k: int) -> str:
    return p.name or f"number {k}"


def _refusal(parameters: list[Tensor], gradients: list[Tensor | None], called: str) -> Callable[[int], NonFiniteError]:
    """What makes the error of a step that changed nothing, perhaps later.  It keeps nothing alive till then."""
    names = [_called(p, k) for k, p in enumerate(parameters)]
    given = [None if g is None else ref(g) for g in gradients]

    def refuse(_: int) -> NonFiniteError:
        lines = []
        left = [(name, g()) for name, g in zip(names, given, strict=True) if g is not None]
        for name, g in left:
            bad = 0 if g is None else sum_(logical_not(isfinite(g.detach()))).item()
            if g is not None and bad:
                lines.append(f"{name}: {bad} of the {g.size} elements of {describe(g)}")
        if lines:
            return NonFiniteError(f"{called} changed nothing: gradients are inf or nan in\n  " + "\n  ".join(lines))
        if any(g is None for _, g in left):
            return NonFiniteError(
                f"{called} changed nothing: the gradients, which are gone by now, were inf or nan\n"
                "  read the loss before zero_grad() to see in which parameters"
            )
        return NonFiniteError(
            f"{called} changed nothing: the gradients are finite, but the sum of their squares is not\n"
            "  scale the loss down"
        )

    return refuse


def _count(flats: list[Flat], moved: list[list[bool]]) -> None:
    """Count a step for the parameters that have moved."""
    for flat, of_flat in zip(flats, moved, strict=True):
        flat.steps = [n + moves for n, moves in zip(flat.steps, of_flat, strict=True)]


def _undoing(flats: list[Flat]) -> Callable[[], None]:
    """What sets the numbers of steps back to what they are now."""
    before = [(ref(flat), flat.steps) for flat in flats]

    def undo() -> None:
        for found, steps in before:
            flat = found()
            if flat is not None:
                flat.steps = steps

    return undo


__all__ = ["Group", "Optimizer", "Refuse", "Undoing", "clip_grad_norm"]
