"""einsum: sums of products over named axes, two operands at a time.

The plan of a call depends on its subscripts and shapes alone.  It is carried out with views, fused multiplications,
sums and products of matrices, so that every derivative is theirs.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from ..array import Shape, describe
from ..convert import as_operand
from ..dtype import compute_dtype, result_dtype
from ..errors import ShapeError
from ..tensor import Tensor
from .compare import where
from .create import arange
from .linalg import matmul
from .reduce import sum
from .shape import astype, permute_dims, reshape

Labels: TypeAlias = tuple[str, ...]  # one for each axis; "...0" is the last axis of the ellipsis, "...1" the one before


def einsum(subscripts: str, /, *operands: Any) -> Tensor:
    """The sum of products that `subscripts` describes: a letter for each axis of each operand, `->`, and the result's.

    Axes with the same letter are multiplied along each other; letters that the result does not have are summed over;
    a letter twice in one operand is its diagonal; `...` stands for further axes, which are broadcast.  Without `->`
    the result has the ellipsis and then, in order, the letters that occur once.  Integers keep their dtype.

        einsum("btc,dc->btd", x, w)     einsum("...ij,...jk", a, b)     einsum("ii->i", x)
    """
    tensors = [as_operand(x) for x in operands]
    terms, out, sizes = _read(subscripts, tuple(x.shape for x in tensors))
    common = result_dtype(tuple(x.dtype for x in tensors))
    wide = compute_dtype(common)
    pieces = [_tidied(astype(x, wide), labels, sizes) for x, labels in zip(tensors, terms, strict=True)]
    for i, j in _order(tuple(labels for _, labels in pieces), out, tuple(sizes.items())):
        right, left = pieces.pop(j), pieces.pop(i)
        needed = {*out, *itertools.chain.from_iterable(labels for _, labels in pieces)}
        pieces.append(_contracted(left, right, needed, sizes))
    ((x, labels),) = pieces
    x, labels = _summed(x, labels, set(out))
    present = [k for k in out if k in labels]
    x = permute_dims(x, [labels.index(k) for k in present])
    if len(present) < len(out):  # an axis that is of length 1 in every operand
        x = reshape(x, [sizes[k] if k in labels else 1 for k in out])
    return astype(x, common)


# --- reading ----------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1024)
def _read(subscripts: str, shapes: tuple[Shape, ...]) -> tuple[list[Labels], Labels, dict[str, int]]:
    """The labels of each operand and of the result, and the length of each label."""
    given, arrow, result = subscripts.replace(" ", "").partition("->")
    texts = given.split(",")
    if len(texts) != len(shapes):
        raise ShapeError(f"einsum() got {len(shapes)} operands for {subscripts!r}, which names {len(texts)}")
    terms = [_labels(text, len(shape), subscripts) for text, shape in zip(texts, shapes, strict=True)]
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        for label, n in zip(term, shape, strict=True):
            known = sizes.setdefault(label, n)
            if known == 1:
                sizes[label] = n
            elif n not in (1, known):
                lists = " and ".join(str(list(s)) for s in shapes)
                raise ShapeError(f"einsum() got {known} and {n} for {label!r} of {subscripts!r} from shapes {lists}")
    spread = sorted({k for k in sizes if k.startswith("...")}, key=lambda k: -int(k[3:]))
    if arrow:
        out = _labels(result, len(result.replace("...", "")) + ("..." in result) * len(spread), subscripts)
        if len(set(out)) != len(out) or any(k not in sizes for k in out):
            raise ShapeError(
                f"einsum() cannot make {result!r} of {subscripts!r}\n  its letters must be in an operand, each once"
            )
    else:
        seen = list(itertools.chain.from_iterable(terms))
        out = (*spread, *sorted(k for k in sizes if not k.startswith("...") and seen.count(k) == 1))
    return terms, out, sizes


def _labels(text: str, ndim: int, subscripts: str) -> Labels:
    """The labels of an operand with `ndim` axes."""
    before, dots, after = text.partition("...")
    letters = before + after
    if not all(k.isascii() and k.isalpha() for k in letters):
        raise ShapeError(f"einsum() cannot read {subscripts!r}: axes are named by the letters a to z and A to Z")
    extra = ndim - len(letters)
    if extra < 0 or (extra and not dots):
        raise ShapeError(f"einsum() got an operand with {ndim} axes for {text!r} of {subscripts!r}")
    return (*before, *(f"...{k}" for k in reversed(range(extra))), *after)


# --- order ------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1024)
def _order(terms: tuple[Labels, ...], out: Labels, lengths: tuple[tuple[str, int], ...]) -> list[tuple[int, int]]:
    """The pairs to contract, of what is left each time: first those that shrink what is left most, then the cheapest.

    Operands that share no label are multiplied only when nothing else is left.
    """
    sizes = dict(lengths)
    left = [frozenset(labels) for labels in terms]
    pairs = []

    def volume(labels: Iterable[str]) -> int:
        return math.prod(sizes[k] for k in labels)

    while len(left) > 1:
        best: tuple[tuple[Any, ...], tuple[int, int], frozenset[str]] | None = None
        for i, j in itertools.combinations(range(len(left)), 2):
            others = [labels for k, labels in enumerate(left) if k not in (i, j)]
            made = (left[i] | left[j]) & frozenset(out).union(*others)
            grown = volume(made) - volume(left[i]) - volume(left[j])
            score = (not left[i] & left[j], grown, volume(left[i] | left[j]))
            if best is None or score < best[0]:
                best = (score, (i, j), made)
        assert best is not None
        _, (i, j), made = best
        left = [labels for k, labels in enumerate(left) if k not in (i, j)] + [made]
        pairs.append((i, j))
    return pairs


# --- carrying out -----------------------------------------------------------------------------


def _tidied(x: Tensor, labels: Labels, sizes: dict[str, int]) -> tuple[Tensor, Labels]:
    """`x` without the axes that are broadcast, and with its diagonals taken."""
    while repeated := next((k for k in labels if labels.count(k) > 1), None):
        i = labels.index(repeated)
        j = labels.index(repeated, i + 1)
        n = x.shape[i]
        if n != x.shape[j]:
            raise ShapeError(f"einsum() got {describe(x)}, whose axes {i} and {j} have one letter but two lengths")
        rest = [k for k in range(x.ndim) if k not in (i, j)]
        index = arange(n, device=x.device)
        on_diagonal = reshape(index, (n, 1)) == index
        x = sum(where(on_diagonal, permute_dims(x, [*rest, i, j]), 0), axis=-1, dtype=x.dtype)
        labels = (*(labels[k] for k in rest), repeated)
    kept = [k for k, n in zip(labels, x.shape, strict=True) if n == sizes[k] and n != 1]
    return reshape(x, [sizes[k] for k in kept]), tuple(kept)


def _summed(x: Tensor, labels: Labels, needed: set[str]) -> tuple[Tensor, Labels]:
    """`x` summed over the labels nobody needs."""
    gone = [k for k, label in enumerate(labels) if label not in needed]
    if gone:
        x = sum(x, axis=gone, dtype=x.dtype)
    return x, tuple(k for k in labels if k in needed)


def _contracted(
    left: tuple[Tensor, Labels], right: tuple[Tensor, Labels], needed: set[str], sizes: dict[str, int]
) -> tuple[Tensor, Labels]:
    """The product of two operands, summed over the labels that neither the result nor another operand has."""
    a, of_a = _summed(*left, needed | set(right[1]))
    b, of_b = _summed(*right, needed | set(left[1]))
    both = [k for k in of_a if k in of_b]
    batch, inner = [k for k in both if k in needed], [k for k in both if k not in needed]
    rows, columns = [k for k in of_a if k not in both], [k for k in of_b if k not in both]
    made = (*batch, *rows, *columns)
    if not inner:  # nothing to sum: a multiplication, which fuses
        return _spread(a, of_a, made) * _spread(b, of_b, made), made

    def folded(x: Tensor, labels: Labels, *groups: Sequence[str]) -> Tensor:
        x = permute_dims(x, [labels.index(k) for group in groups for k in group])
        return reshape(x, [*(sizes[k] for k in groups[0]), *(math.prod(sizes[k] for k in g) for g in groups[1:])])

    y = matmul(folded(a, of_a, batch, rows, inner), folded(b, of_b, batch, inner, columns))
    return reshape(y, [sizes[k] for k in made]), made


def _spread(x: Tensor, labels: Labels, made: Labels) -> Tensor:
    """`x` with its axes in the order of `made`, and axes of length 1 for what it lacks."""
    x = permute_dims(x, [labels.index(k) for k in made if k in labels])
    lengths = iter(x.shape)
    return reshape(x, [next(lengths) if k in labels else 1 for k in made])


__all__ = ["einsum"]
