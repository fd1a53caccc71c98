"""The operations, by family.  The operators of Tensor are entered here."""

from ..op import structural
from ..operators import operators
from . import activations, assign, compare, create, elementwise, index, join, linalg, reduce, shape

operators.sum = reduce.sum
structural.update(zeros_like=create.zeros_like)
for _family in (activations, compare, elementwise, linalg, shape, join, index, assign):
    for _name, _op in vars(_family).items():
        if not _name.startswith("_") and callable(_op):
            setattr(operators, _name, _op)
