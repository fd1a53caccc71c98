"""Tensor: data seen by one transformation, over data seen by the next one out, down to an Array.

With `trace` None this is an ordinary tensor: `data` is an Array, and `link` its place on the ambient tape that
`backward()` walks, or None.  Else `trace` is an open transformation, and `link` is the tensor's place on that
transformation's tape (reverse mode) or its tangent (forward mode).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .array import Array, Shape, describe
from .devices import Device
from .devices import device as find_device
from .dtype import DType, as_dtype, is_float
from .errors import DTypeError, EscapedTensorError, GradientError, ShapeError
from .exports import Exports
from .fuse.plan import realize
from .node import Leaf
from .operators import Operators, operators
from .provenance import describe as describe_site
from .provenance import here
from .recording import active


class Tensor(Operators, Exports):
    """An n-dimensional array that can be differentiated.  Made by `gpuad.asarray` and the creation functions."""

    __slots__ = ("__weakref__", "data", "link", "trace")

    def __init__(self, data: Any, trace: Any = None, link: Any = None) -> None:
        self.data, self.trace, self.link = data, trace, link

    # --- what it is -------------------------------------------------------------------------

    @property
    def shape(self) -> Shape:
        """The length of each axis."""
        shape: Shape = self.data.shape
        return shape

    @property
    def dtype(self) -> DType:
        """The type of each element."""
        dtype: DType = self.data.dtype
        return dtype

    @property
    def device(self) -> Device:
        """Where the values are."""
        return self.array.device

    @property
    def array(self) -> Array:
        """The Array at the bottom of this tensor."""
        data = self.data
        while type(data) is not Array:
            data = data.data
        return data

    @property
    def ndim(self) -> int:
        """How many axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many elements."""
        n = 1
        for d in self.shape:
            n *= d
        return n

    @property
    def T(self) -> Tensor:  # the standard's name
        """The transpose of a matrix."""
        if self.ndim != 2:
            raise ShapeError(f".T is the transpose of a matrix, got {describe(self)}; use .mT or permute_dims()")
        return self.mT

    @property
    def mT(self) -> Tensor:  # the standard's name
        """This tensor with its last two axes exchanged."""
        result: Tensor = operators.matrix_transpose(self)
        return result

    @property
    def nbytes(self) -> int:
        """How many bytes the elements take."""
        return self.size * self.dtype.itemsize

    @property
    def name(self) -> str | None:
        """The name of a tensor that requires grad, if it was given one."""
        return self.link[0].name if self.is_leaf else None

    @name.setter
    def name(self, name: str | None) -> None:
        if not self.is_leaf:
            raise GradientError("only a tensor that requires grad has a name; call requires_grad_() first")
        self.link[0].name = name

    # --- gradients --------------------------------------------------------------------------

    @property
    def is_leaf(self) -> bool:
        """True for a tensor whose gradient `backward()` collects in `.grad`."""
        return self.trace is None and self.link is not None and type(self.link[0]) is Leaf

    @property
    def requires_grad(self) -> bool:
        """True if a derivative with respect to this tensor, or through it, is being recorded."""
        return self.link is not None

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """This tensor, from now on a leaf whose gradient `backward()` collects (or no longer one)."""
        if self.trace is not None:
            raise GradientError(
                f"requires_grad_() on a tensor inside {self.trace.kind}(), which differentiates by itself"
                "\n  call it outside, or pass the tensor as an argument"
            )
        if not requires_grad:
            self.link = None
        elif not is_float(self.dtype):
            raise DTypeError(
                f"{describe(self)} cannot require grad: only floating-point tensors have gradients"
                "\n  cast it with .to(gpuad.float32)"
            )
        elif self.link is None:
            self.link = (Leaf(None, here(2)), 0)
        return self

    @property
    def grad(self) -> Tensor | None:
        """The gradient that `backward()` has collected, or None."""
        return self.link[0].grad if self.is_leaf else None

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if not self.is_leaf:
            raise GradientError("only a tensor that requires grad has a .grad; call requires_grad_() first")
        if value is not None and not isinstance(value, Tensor):
            raise DTypeError(f"a gradient is a tensor or None, got {type(value).__name__}; use gpuad.asarray()")
        if value is not None and (value.shape != self.shape or value.dtype != self.dtype):
            raise ShapeError(f"the gradient of {describe(self)} cannot be {describe(value)}")
        self.link[0].grad = value

    def backward(self, gradient: Any = None, *, retain_graph: bool = False, create_graph: bool = False) -> None:
        """Add d(self)/d(leaf) to `.grad` of every leaf this tensor depends on.

        `gradient` is the cotangent, needed unless this is a scalar.  The tape is freed as it is swept, unless
        `retain_graph`; with `create_graph` the gradients can be differentiated again.
        """
        operators.backward(self, gradient, retain_graph, create_graph)

    def alias(self) -> Tensor:
        """The same value under another handle: rebinding one, with `+=` or `[...] =`, leaves the other alone."""
        recorder = active.get()
        if recorder is not None:
            recorder.saw((self,))
        return Tensor(self.data, self.trace, self.link)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if self.trace is not None or (self.link is not None and not self.is_leaf):
            raise GradientError(
                f"{describe(self)} made at {describe_site(self.array.site)} is part of a tape, which a copy cannot be"
                "\n  copy detach() of it"
            )
        buffer = self.data.buffer
        twin = type(self).__new__(type(self))
        twin.data = operators.copy(self.detach()).data if buffer is not None and buffer.borrowed else self.data
        twin.trace = twin.link = None  # values do not change, so two tensors may share them
        if self.is_leaf:
            twin.link = (Leaf(self.name, here(2)), 0)
            twin.link[0].grad = None if self.grad is None else self.grad.alias()
        return twin

    def detach(self) -> Tensor:
        """The same values, constant for every derivative."""
        recorder = active.get()
        if recorder is not None:
            recorder.saw((self,))
        level = self
        while isinstance(level, Tensor) and level.trace is not None:
            if level.trace.kind == "checkpoint":  # which still has to know where the values come from
                return Tensor(Tensor(self.array), level.trace, ("constant", *level.link))
            level = level.data
        return Tensor(self.array)

    # --- values -----------------------------------------------------------------------------

    def numpy(self) -> np.ndarray[Any, Any]:
        """The values as a read-only NumPy array, without a copy on the CPU."""
        self._refuse_inside("numpy()")
        array = realize(self.array)
        return array.device.to_numpy(array)

    def item(self) -> Any:
        """The one value of a tensor of size 1, as a Python scalar."""
        self._refuse_inside("item()")
        return self._value("item()")

    def tolist(self) -> Any:
        """The values as nested lists of Python scalars."""
        self._refuse_inside("tolist()")
        array = realize(self.array)
        return array.device.to_numpy(array).tolist()

    def _value(self, what: str) -> Any:
        if self.size != 1:
            raise ShapeError(
                f"{what} needs a tensor of one element, got {describe(self)}\n  reduce it first, with any() or sum()"
            )
        array = realize(self.array)
        return array.device.to_numpy(array).reshape(()).item()

    def _refuse_inside(self, what: str) -> None:
        """An error where a number would silently lose the derivative that an open transformation is taking."""
        if self.trace is not None and not self.trace.open:
            raise EscapedTensorError(
                f"{what} of a tensor that outlived the {self.trace.kind}() call that made it,"
                f" at {describe_site(here(3))}\n"
                "  return it from the function instead of storing it elsewhere"
            )
        if self.trace is not None and is_float(self.dtype) and not self.trace.is_constant(self):
            raise GradientError(
                f"{what} of a tensor inside {self.trace.kind}() would lose its derivative at {describe_site(here(3))}\n"
                "  use gpuad functions on it, or detach() if it is meant to be constant"
            )

    def __bool__(self) -> bool:
        return bool(self._value("bool()"))

    def __int__(self) -> int:
        self._refuse_inside("int()")
        return int(self._value("int()"))

    def __float__(self) -> float:
        self._refuse_inside("float()")
        return float(self._value("float()"))

    def __index__(self) -> int:
        if is_float(self.dtype):
            raise DTypeError(f"only an integer tensor can be an index, got {describe(self)}")
        return int(self.item())

    def __len__(self) -> int:
        if not self.shape:
            raise ShapeError("a tensor without axes has no length")
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        if not self.shape:
            raise ShapeError("a tensor without axes cannot be iterated over")
        return (self[i] for i in range(self.shape[0]))

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        if self.trace is not None:
            return f"Tensor({describe(self)}, inside {self.trace.kind}())"
        if not self.device.computes:
            return f"Tensor({describe(self)}, device=meta)"
        values = np.array2string(realize(self.array).device.to_numpy(self.array), separator=", ", prefix="Tensor(")
        note = f", name={self.name!r}" if self.name else ", requires_grad=True" if self.requires_grad else ""
        where = "" if self.device.name == "cpu" else f", device={self.device.name}"
        return f"Tensor({values}, dtype={self.dtype}{where}{note})"

    def to(self, target: Any) -> Tensor:
        """This tensor as another dtype, or on another device; itself where nothing changes."""
        if isinstance(target, Device) or (isinstance(target, str) and target.split(":")[0] in ("cpu", "cuda", "meta")):
            result: Tensor = operators.to_device(self, device=find_device(target))
            return result
        dtype = as_dtype(target)
        result = self if dtype == self.dtype else operators.astype(self, dtype)
        return result

    def to_device(self, device: Any, /, *, stream: None = None) -> Tensor:
        """This tensor on `device`; itself where it is there already."""
        result: Tensor = operators.to_device(self, device=find_device(device))
        return result

    # --- assignment -------------------------------------------------------------------------

    def become(self, new: Tensor) -> None:
        """Rebind this handle to `new`: all that `x += 1` and `x[i] = v` do.  No memory is written."""
        self.data, self.trace, self.link = new.data, new.trace, new.link

    def __setitem__(self, key: Any, value: Any) -> None:
        operators.assign(self, key, value)

    def __getitem__(self, key: Any) -> Tensor:
        result: Tensor = operators.getitem(self, key)
        return result

    def copy_(self, value: Any) -> Tensor:
        """This tensor with the values of `value`; a leaf stays the leaf it is (under `no_grad`)."""
        operators.assign(self, ..., value)
        return self
