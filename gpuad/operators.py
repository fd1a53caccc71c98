"""The operators of Tensor: `x + y`, `x @ y`, `x[i] < y`, `x += y`.

They call the ops that `gpuad.ops` enters into `operators`, so that this file can stand below them.  An in-place
operator rebinds the handle and writes no memory: what a tape or a pending expression holds stays as it is.
"""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import Self

    from .tensor import Tensor

operators = types.SimpleNamespace()  # the one registry of what the methods of Tensor call


class Operators:
    """Arithmetic, comparison and in-place operators."""

    __slots__ = ()

    def __add__(self, other: Any) -> Tensor:
        result: Tensor = operators.add(self, other)
        return result

    def __radd__(self, other: Any) -> Tensor:
        result: Tensor = operators.add(other, self)
        return result

    def __iadd__(self, other: Any) -> Self:
        result: Self = operators.update(self, operators.add, other)
        return result

    def __sub__(self, other: Any) -> Tensor:
        result: Tensor = operators.subtract(self, other)
        return result

    def __rsub__(self, other: Any) -> Tensor:
        result: Tensor = operators.subtract(other, self)
        return result

    def __isub__(self, other: Any) -> Self:
        result: Self = operators.update(self, operators.subtract, other)
        return result

    def __mul__(self, other: Any) -> Tensor:
        result: Tensor = operators.multiply(self, other)
        return result

    def __rmul__(self, other: Any) -> Tensor:
        result: Tensor = operators.multiply(other, self)
        return result

    def __imul__(self, other: Any) -> Self:
        result: Self = operators.update(self, operators.multiply, other)
        return result

    def __truediv__(self, other: Any) -> Tensor:
        result: Tensor = operators.divide(self, other)
        return result

    def __rtruediv__(self, other: Any) -> Tensor:
        result: Tensor = operators.divide(other, self)
        return result

    def __itruediv__(self, other: Any) -> Self:
        result: Self = operators.update(self, operators.divide, other)
        return result

    def __floordiv__(self, other: Any) -> Tensor:
        result: Tensor = operators.floor_divide(self, other)
        return result

    def __rfloordiv__(self, other: Any) -> Tensor:
        result: Tensor = operators.floor_divide(other, self)
        return result

    def __ifloordiv__(self, other: Any) -> Self:
        result: Self = operators.update(self, operators.floor_divide, other)
        return result

    def __mod__(self, other: Any) -> Tensor:
        result: Tensor = operators.remainder(self, other)
        return result

    def __rmod__(self, other: Any) -> Tensor:
        result: Tensor = operators.remainder(other, self)
        return result

    def __imod__(self, other: Any) -> Self:
        result: Self = operators.update(self, operators.remainder, other)
        return result

    def __pow__(self, other: Any) -> Tensor:
        result: Tensor = operators.pow(self, other)
        return result

    def __rpow__(self, other: Any) -> Tensor:
        result: Tensor = operators.pow(other, self)
        return result

    def __ipow__(self, other: Any) -> Self:
        result: Self = operators.update(self, operators.pow, other)
        return result

    def __matmul__(self, other: Any) -> Tensor:
        result: Tensor = operators.matmul(self, other)
        return result

    def __rmatmul__(self, other: Any) -> Tensor:
        result: Tensor = operators.matmul(other, self)
        return result

    def __imatmul__(self, other: Any) -> Self:
        result: Self = operators.update(self, operators.matmul, other)
        return result

    def __and__(self, other: Any) -> Tensor:
        result: Tensor = operators.bitwise_and(self, other)
        return result

    def __rand__(self, other: Any) -> Tensor:
        result: Tensor = operators.bitwise_and(other, self)
        return result

    def __iand__(self, other: Any) -> Self:
        result: Self = operators.update(self, operators.bitwise_and, other)
        return result

    def __or__(self, other: Any) -> Tensor:
        result: Tensor = operators.bitwise_or(self, other)
        return result

    def __ror__(self, other: Any) -> Tensor:
        result: Tensor = operators.bitwise_or(other, self)
        return result

    def __ior__(self, other: Any) -> Self:
        result: Self = operators.update(self, operators.bitwise_or, other)
        return result

    def __xor__(self, other: Any) -> Tensor:
        result: Tensor = operators.bitwise_xor(self, other)
        return result

    def __rxor__(self, other: Any) -> Tensor:
        result: Tensor = operators.bitwise_xor(other, self)
        return result

    def __ixor__(self, other: Any) -> Self:
        result: Self = operators.update(self, operators.bitwise_xor, other)
        return result

    def __lshift__(self, other: Any) -> Tensor:
        result: Tensor = operators.bitwise_left_shift(self, other)
        return result

    def __rlshift__(self, other: Any) -> Tensor:
        result: Tensor = operators.bitwise_left_shift(other, self)
        return result

    def __ilshift__(self, other: Any) -> Self:
        result: Self = operators.update(self, operators.bitwise_left_shift, other)
        return result

    def __rshift__(self, other: Any) -> Tensor:
        result: Tensor = operators.bitwise_right_shift(self, other)
        return result

    def __rrshift__(self, other: Any) -> Tensor:
        result: Tensor = operators.bitwise_right_shift(other, self)
        return result

    def __irshift__(self, other: Any) -> Self:
        result: Self = operators.update(self, operators.bitwise_right_shift, other)
        return result

    def __eq__(self, other: object) -> Tensor:  # type: ignore[override]  # elementwise, as in NumPy
        result: Tensor = operators.equal(self, other)
        return result

    def __ne__(self, other: object) -> Tensor:  # type: ignore[override]  # elementwise, as in NumPy
        result: Tensor = operators.not_equal(self, other)
        return result

    def __lt__(self, other: Any) -> Tensor:
        result: Tensor = operators.less(self, other)
        return result

    def __le__(self, other: Any) -> Tensor:
        result: Tensor = operators.less_equal(self, other)
        return result

    def __gt__(self, other: Any) -> Tensor:
        result: Tensor = operators.greater(self, other)
        return result

    def __ge__(self, other: Any) -> Tensor:
        result: Tensor = operators.greater_equal(self, other)
        return result

    def __neg__(self) -> Tensor:
        result: Tensor = operators.negative(self)
        return result

    def __pos__(self) -> Tensor:
        result: Tensor = operators.positive(self)
        return result

    def __abs__(self) -> Tensor:
        result: Tensor = operators.abs(self)
        return result

    def __invert__(self) -> Tensor:
        result: Tensor = operators.bitwise_invert(self)
        return result
