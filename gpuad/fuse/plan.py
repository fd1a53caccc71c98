"""What becomes one kernel, and which results it writes to memory.

`realize` grows a kernel from the arrays that are wanted, through everything pending below them that walks the same
space.  What does not (a product of matrices, a reduction over rows, a smaller array) is computed before.

An interior result lives and dies in a register unless someone else will want it, and then it is written only when

  - computing it again costs more than storing and reading it (`STORE_COST`), or
  - it is one value a row, which costs nothing to store, or
  - computing it again would keep alive memory that is otherwise free to go: then storing it costs none.

The decision looks at the graph alone, never at a clock, so a dry run makes the same one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from operator import attrgetter
from typing import Any
from weakref import ref

from ..array import ANCHOR, ELEMENTWISE, ROW, SOURCE, TOTAL, Array, Shape
from ..attribution import computed, doing, ledgers, ran, resume, take_over
from ..errors import GpuadError
from ..recording import active
from .kernel import Kernel, row_shape, space_of, watchers
from .totals import CHUNK

STORE_COST = 48.0  # additions an element may take to compute again before it is stored; see benchmarks/test_costs.py
MAX_DEPTH = 32  # longest chain of pending operations
MAX_LEAVES = 24  # most arrays one pending expression may read
SURVEY_EVERY = 16  # depths at which a pending expression's leaves are counted
PINNED = 4  # how many times its own size a pending expression may keep alive

eager: ContextVar[bool] = ContextVar("eager", default=False)


def realize(array: Array) -> Array:
    """`array`, computed."""
    if array.op is not None:
        realize_all((array,))
    return array


def realize_all(arrays: Iterable[Array]) -> None:
    """Compute `arrays` in as few kernels as their spaces allow."""
    by_device: dict[int, dict[int, Array]] = {}
    for a in arrays:
        if a.op is not None:
            by_device.setdefault(id(a.device), {})[id(a)] = a
    before = doing.get() if ledgers else None
    for pending in by_device.values():
        roots = list(pending.values())
        with roots[0].device.lock:
            _compute([ref(a) for a in roots], set(pending))
    if before is not None:
        doing.set(before)


def _compute(roots: Sequence[ref[Array]], wanted: set[int]) -> None:
    """Compute `roots`, grouped by space; arrays whose id is in `wanted` are stored wherever they are met.

    What waits here is held weakly: it lives as long as something will read it, and no longer.
    """
    for (space, _), group in _grouped(roots).items():
        left = _pending(group)  # an earlier kernel may have stored some
        if left and isinstance(space, int):
            _run_anchor(left[0], wanted)
            continue
        if not left or isinstance(space, int):
            continue
        nodes, before = _grow(left, space)
        if before:
            waiting = [ref(a) for a in before]
            del nodes, before
            _compute(waiting, wanted)
            left = _pending(group)
            if not left:
                continue
            nodes, before = _grow(left, space)
            assert not before
        _run(left, nodes, space, wanted)


def _grouped(roots: Sequence[ref[Array]]) -> dict[tuple[Shape | int, bool], list[ref[Array]]]:
    """`roots` by the space they are computed over; an anchor is a group of its own.

    Reductions over everything are apart from those over rows, whose chunks have other sizes, and from all else where a
    chunk is a part of a row.
    """
    groups: dict[tuple[Shape | int, bool], list[ref[Array]]] = {}
    for root in roots:
        a = root()
        if a is not None and a.op is not None:
            space = id(a) if a.op.fusion == ANCHOR else space_of(a)
            groups.setdefault((space, _over_all(a)), []).append(root)
    for key in [key for key in groups if key[1]]:
        others, space = groups.get((key[0], False)), key[0]
        narrow = not isinstance(space, int) and (not space or space[-1] <= CHUNK)
        if others and narrow and not any(_by_column(a) for a in _pending(others)):
            others += groups.pop(key)
    return groups


def _over_all(a: Array) -> bool:
    """Is `a` a reduction over everything?"""
    return a.op is not None and a.op.fusion == TOTAL and not a.shape


def _by_column(a: Array) -> bool:
    """Is `a` a reduction over rows?"""
    return a.op is not None and a.op.fusion == TOTAL and len(a.shape) == 1


def _pending(roots: Sequence[ref[Array]]) -> list[Array]:
    """Those of `roots` that are still to be computed."""
    return [a for root in roots if (a := root()) is not None and a.op is not None]


def _grow(roots: Sequence[Array], space: Shape) -> tuple[list[Array], list[Array]]:
    """The pending arrays of the kernel that computes `roots`, inputs first, and those to compute before it."""
    rows = row_shape(space)
    nodes: list[Array] = []
    before: list[Array] = []
    seen = {id(root) for root in roots}
    stack = list(roots)
    while stack:
        a = stack.pop()
        nodes.append(a)
        for x in a.inputs:
            if type(x) is not Array or x.op is None:
                continue
            fusion, shape = x.op.fusion, x.shape
            if id(x) in seen:
                if fusion == TOTAL and not any(x is b for b in before):  # a root that another root reads
                    before.append(x)
                continue
            seen.add(id(x))
            if (
                (fusion == ELEMENTWISE and shape in (space, rows))
                or (fusion == SOURCE and shape == space)
                or (fusion == ROW and x.inputs[0].shape == space)  # type: ignore[union-attr]  # never a scalar
            ):
                stack.append(x)
            else:
                before.append(x)
    if len(space) > 0 and space[-1] > CHUNK and any(x.shape == rows for x in nodes if x.shape != space):
        # chunks of everything are parts of a row here, and a kernel that reduces rows has whole ones
        before += [x for a in nodes if _over_all(a) for x in a.inputs if type(x) is Array and x.op is not None]
    nodes.sort(key=_serial)
    return nodes, before


_serial = attrgetter("serial")


def _run_anchor(array: Array, wanted: set[int]) -> None:
    """Compute an array that a product of matrices or a named kernel makes."""
    inputs = [x for x in array.inputs if type(x) is Array]
    pending = list({id(x): x for x in inputs if x.op is not None}.values())
    if pending:
        _compute([ref(x) for x in pending], wanted | {id(x) for x in pending})
    data, params = [x.data for x in inputs], dict(array.params)
    if ledgers:
        resume(array)
    if getattr(array.op, "late", False):
        out = array.op.evaluate(list(array.inputs), array.site)  # type: ignore[union-attr]  # see remat/late.py
    else:
        out = array.device.call(array.op, data, params, array.site)
        if ledgers:
            ran(array.op, data, params)
    del data  # or what dies with its last reader would not give its memory back
    array.compute(out.data, out.buffer)
    if ledgers:
        computed(array)
    _tell([array])


def _run(roots: Sequence[Array], nodes: list[Array], space: Shape, wanted: set[int]) -> None:
    """Allocate what the kernel over `nodes` writes, run it, and mark it computed."""
    uses, leaves, last = _reads(nodes)
    # less the references of this kernel, and those of the loop, the list and the argument
    dying = {id(x) for x in leaves if sys.getrefcount(x) - uses[id(x)] <= 3}
    stored = _stored(roots, nodes, space, uses, dying, wanted)
    outputs = [a for a in nodes if id(a) in stored]
    kernel = Kernel(space, nodes, leaves, outputs)
    donors = _donors(nodes, leaves, uses, stored, dying) if dying else []
    device = outputs[0].device
    made = []
    for y in outputs:
        if ledgers:
            resume(y)
        donor = _donor_for(y, nodes.index(y), donors, last) if donors and y.shape == space else None
        if donor is not None:
            take_over(donor)
        made.append(donor if donor is not None else device.allocate(y.shape, y.dtype, site=y.site))
    kernel.results = [m.data for m in made]
    if device.computes:
        for watcher in watchers:
            watcher(kernel)
    try:
        device.run(kernel)
    except BaseException:  # Ctrl-C among them: what was to be written over may be half written
        for x in made:
            if any(x is leaf for leaf in leaves):
                _lose(x)
        raise
    recorder = active.get()
    for y, m in zip(outputs, made, strict=True):
        assert m.buffer is not None
        if recorder is not None:
            recorder.wrote(m.buffer)
        y.compute(m.data, m.buffer)
        if ledgers:
            computed(y)
    _tell(outputs)  # last: it may raise, and by now what they were computed of may be written over


def _tell(outputs: Iterable[Array]) -> None:
    """Tell who wants to know that `outputs` are computed.  One that is refused is lost, or the next to ask had it."""
    for y in outputs:
        try:
            y.written()
        except BaseException:
            _lose(y)
            raise


def _lose(array: Array) -> None:
    array.op, array.data, array.inputs = _LOST, None, ()


class _Lost:
    """What stands for the operation of an array that an interrupted kernel was writing over, or that was refused."""

    name, fusion, into = "lost", ANCHOR, None

    def forward(self, *_: object, **__: object) -> object:
        """Never: a GpuadError."""
        raise GpuadError(
            "this value was lost when the kernel that used it was interrupted, or a check refused it; compute it again"
        )

    infer = forward


_LOST: Any = _Lost()


def _reads(nodes: list[Array]) -> tuple[dict[int, int], list[Array], dict[int, int]]:
    """How often each array is read inside the kernel; its leaves; the place of the node that reads each leaf last.

    A function of its own, so that no loop variable holds an array while references are counted.
    """
    inside = set(map(id, nodes))
    uses = dict.fromkeys(inside, 0)
    leaves: list[Array] = []
    last: dict[int, int] = {}
    for place, a in enumerate(nodes):
        for x in a.inputs:
            if type(x) is Array:
                key = id(x)
                if key in inside:
                    uses[key] += 1
                    continue
                if key not in last:
                    leaves.append(x)
                    uses[key] = 0
                uses[key] += 1
                last[key] = place
    return uses, leaves, last


def _stored(
    roots: Sequence[Array], nodes: list[Array], space: Shape, uses: dict[int, int], dying: set[int], wanted: set[int]
) -> set[int]:
    """The ids of the nodes that are written to memory."""
    stored = {id(root) for root in roots}
    # whom a tensor, a tape or an expression outside holds: beyond this kernel, the list, the loop and the argument
    held = {id(a) for a in nodes if sys.getrefcount(a) - uses[id(a)] > 3}
    if not held:
        return stored
    again: dict[int, float] = {}  # what computing a node again costs, from what is stored by then
    pins: dict[int, bool] = {}  # would that keep alive memory that could go?
    for a in nodes:
        key, op = id(a), a.op
        assert op is not None
        cost, pinned = op.cost, False
        for x in a.inputs:
            if type(x) is Array:
                if id(x) in again:
                    cost += again[id(x)]
                    pinned = pinned or pins[id(x)]
                elif id(x) in dying and x.size >= a.size:
                    pinned = True
        if key not in stored:
            read_again = a.kept or a.readers > uses[key]
            if (
                key in wanted
                or a.wanted
                or (read_again and (cost > STORE_COST or a.shape != space))
                or (pinned and (read_again or key in held))
            ):
                stored.add(key)
        again[key], pins[key] = (0.0, False) if key in stored else (cost, pinned)
    return stored


def _donors(
    nodes: list[Array], leaves: list[Array], uses: dict[int, int], stored: set[int], dying: set[int]
) -> list[Array]:
    """Leaves whose memory nobody will look at once this kernel has run."""
    exposed: set[int] = set()  # what someone could still ask to be computed from the leaves again
    for a in reversed(nodes):
        key = id(a)
        if key in stored:
            continue
        if key in exposed or sys.getrefcount(a) - uses[key] > 3:
            exposed.add(key)
            exposed.update(id(x) for x in a.inputs if type(x) is Array)
    return [x for x in leaves if id(x) in dying and id(x) not in exposed and exclusive(x, uses[id(x)] + 2)]


def _donor_for(y: Array, place: int, donors: list[Array], last: dict[int, int]) -> Array | None:
    """A dying leaf whose memory `y` may take over, removed from `donors`; None if there is none."""
    op = y.op
    assert op is not None
    if op.fusion != ELEMENTWISE:
        return None
    for x in sorted(donors, key=lambda x: x is not _changed(y)):  # p - ... takes over p, if it can
        flags = x.data.flags  # CuPy's memory can always be written, and its flags do not say so
        if x.shape != y.shape or x.dtype != y.dtype or not (flags.c_contiguous and getattr(flags, "writeable", True)):
            continue
        if last[id(x)] < place or (last[id(x)] == place and op.in_place):
            donors.remove(x)
            return x
    return None


def _changed(y: Array) -> Array | None:
    """The array that `y` is made of first of all: p in p - rate * g."""
    x: Any = y
    while type(x) is Array and x.op is not None:
        x = x.inputs[0] if x.inputs else None
    return x if type(x) is Array else None


def exclusive(array: Array, held: int) -> bool:
    """True if nobody sees the memory of the computed `array` besides the `held` holders that the caller knows of.

    Counted are references, exactly and by the interpreter: of tensors, tapes, pending expressions and variables to the
    Array; of other Arrays to its buffer; of anyone's views and loans to the memory.
    """
    buffer = array.buffer
    if buffer is None or buffer.borrowed or sys.getrefcount(array) > held + 2:  # and our own two
        return False
    if sys.getrefcount(array.data) > 2 + (array.data is buffer.owner):  # a view of NumPy's may hold a view of ours
        return False
    return sys.getrefcount(buffer) <= 3 and buffer.views() <= 1


def survey(inputs: Sequence[Array]) -> tuple[int, int, int]:
    """How many arrays the pending `inputs` read, their bytes together, and the bytes of the largest."""
    count = total = largest = 0
    seen: set[int] = set()
    stack = list(inputs)
    while stack:
        a = stack.pop()
        if id(a) in seen:
            continue
        seen.add(id(a))
        if a.op is None:
            count += 1
            total += a.nbytes
            largest = max(largest, a.nbytes)
        else:
            stack.extend([x for x in a.inputs if type(x) is Array])
    return count, total, largest


def cut(inputs: Sequence[Array], depth: int, nbytes: int) -> bool:
    """Compute pending `inputs` when an array of `nbytes` over them would be too deep or keep too much alive."""
    if depth % SURVEY_EVERY:
        return False
    if depth < MAX_DEPTH:
        count, total, largest = survey(inputs)
        if count <= MAX_LEAVES and total <= PINNED * max(nbytes, largest):
            return False
    realize_all(inputs)
    return True
