"""The ledger: every buffer of one device from its allocation to its end, with what it is for.

    with gpuad.memory.profile() as p:
        step()
    print(p.peak_bytes, p.by_category(p.peak_event))

A ledger begins with what is alive.  Categories are facts that the tape, Modules and optimizers report as they arise; of
one buffer the most lasting holds (CATEGORIES).  Memory that the CPU keeps for reuse is counted beside what is alive.
"""

from __future__ import annotations

import gc
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

from ..array import Array
from ..attribution import assign, doing, during, forget, ledgers, phase
from ..buffer import Buffer, observers
from ..devices import Device, default_device
from ..devices import device as find_device
from ..fuse.plan import realize_all
from ..nn.module import Parameter
from ..node import Node, bottom
from ..provenance import Site, describe
from ..remat.region import from_outside
from ..tensor import Tensor
from ..tree import leaves
from .flops import flops_of
from .modules import Names
from .profile import Block, Mark, Profile

EXPLICIT = frozenset(("parameter", "optimizer state", "gradient", "input", "workspace"))


@dataclass(slots=True)
class Account:
    """What a ledger knows of a living buffer."""

    block: Block
    explicit: str  # the category that somebody assigned, or ""
    phase: str  # in which it became what it is
    kept: Counter[str] = field(default_factory=Counter)  # by ops whose derivative needs it

    def category(self) -> tuple[str, str]:
        """What it is for now, and the op that keeps it."""
        if self.explicit in EXPLICIT:
            return self.explicit, ""
        if self.kept:
            op = next(iter(self.kept))
            if op.startswith("checkpoint("):
                return "boundary", op
            return "recomputed" if self.phase == "recompute" else "saved", op
        return {"recompute": "recomputed", "backward": "cotangent"}.get(self.phase, "temporary"), ""


@dataclass(slots=True)
class Waiting:
    """What is known of a pending array: the ops that keep it, what it is for, and what memory it will be made of."""

    kept: list[str] = field(default_factory=list)
    category: str = ""
    leaves: list[Account] = field(default_factory=list)
    op: str = ""  # for which the leaves are kept


class Ledger:
    """An observer that writes everything down.  Events of all threads come in one order."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.blocks: list[Block] = []
        self.live: list[int] = []
        self.seconds: list[float] = []
        self.marks: list[Mark] = []
        self.phases: list[tuple[int, str]] = []
        self.flops = self.held = 0
        self.names = Names()
        self.lines: dict[Site | None, str] = {}  # of sites
        self.reuse = getattr(device, "reuse", None)  # the memory that the device keeps
        self.accounts: dict[int, Account] = {}  # by id of the buffer
        self.waiting: WeakKeyDictionary[Array, Waiting] = WeakKeyDictionary()
        self.above: WeakKeyDictionary[Array, WeakValueDictionary[int, Array]] = WeakKeyDictionary()  # what reads it
        self.lock = threading.RLock()  # an event may free something else
        self.began = time.perf_counter()
        alive = gc.get_objects()
        # a Parameter's values may have been assigned since it was made
        for parameter in [x for x in alive if issubclass(type(x), Parameter)]:
            assign(parameter.array, "parameter")
        for buffer in [x for x in alive if type(x) is Buffer and x.device is device]:
            self._open(buffer, "setup")
        for node in [x for x in alive if type(x) is Node]:
            for k, array in [(k, found) for k, v in enumerate(node.saved or ()) if (found := bottom(v)) is not None]:
                if array.device is device:
                    self.kept(array, node.keeper(k))

    # --- buffers come and go --------------------------------------------------------------------

    def allocated(self, buffer: Buffer) -> None:
        """Write down new memory."""
        if buffer.device is self.device and not _is_dry():
            with self.lock:
                # what is computed again counts as that wherever the sweep comes to need it
                self._open(buffer, "recompute" if doing.get()[2] == "recompute" else phase.get())

    def freed(self, buffer: Buffer) -> None:
        """Write down the end of memory."""
        with self.lock:
            account = self.accounts.pop(id(buffer), None)
            if account is not None:
                account.block.died = len(self.live)
                self._event(-account.block.nbytes)

    def _open(self, buffer: Buffer, now: str) -> None:
        explicit = buffer.category if buffer.category in EXPLICIT else ""
        op, modules, _ = ("", (), "") if now == "setup" else doing.get()
        if explicit == "input":
            op = "asarray"
        line = self.lines.get(buffer.site)
        if line is None:
            line = self.lines[buffer.site] = describe(buffer.site) if buffer.site is not None else ""
        block = Block(len(self.blocks), buffer.nbytes, op, line, self.names.path(modules), now, len(self.live))
        self.blocks.append(block)
        account = self.accounts[id(buffer)] = Account(block, explicit, now)
        block.categories.append((block.born, *account.category()))
        self._event(buffer.nbytes, now)

    def _event(self, nbytes: int, now: str | None = None) -> None:
        name = phase.get() if now is None else now
        if not self.phases or self.phases[-1][1] != name:
            self.phases.append((len(self.live), name))
        live = (self.live[-1] if self.live else 0) + nbytes
        self.live.append(live)
        if nbytes > 0 and live + self.kept_free() > self.held:
            self.held = live + self.kept_free()
        self.seconds.append(time.perf_counter() - self.began)

    # --- what they are for ----------------------------------------------------------------------

    def assigned(self, array: Array, category: str) -> None:
        """Write down what an array is for, once it has memory."""
        with self.lock:
            account = self._account(array)
            if account is not None:
                account.explicit = category
                if category == "temporary":  # another value has taken over the memory
                    account.phase = phase.get()
                self._recategorize(account)
            elif array.op is not None:
                self.waiting.setdefault(array, Waiting()).category = category

    def kept(self, array: Array, op: str) -> None:
        """Write down that a tape keeps an array; of a pending one it keeps what that will be made of."""
        with self.lock:
            account = self._account(array)
            if account is not None:
                self._keep(account, op)
            elif array.op is not None:
                waiting = self.waiting.setdefault(array, Waiting())
                waiting.kept.append(op)
                if len(waiting.kept) == 1:
                    self._look_below(array, waiting)

    def released(self, array: Array, op: str) -> None:
        """Write down that a tape keeps it no longer."""
        with self.lock:
            account = self._account(array)
            if account is not None:
                self._let_go(account, op)
                return
            waiting = self.waiting.get(array)
            if waiting is not None and op in waiting.kept:
                waiting.kept.remove(op)
                if not waiting.kept:
                    self._let_go_of_leaves(waiting)

    def computed(self, array: Array) -> None:
        """Write down what was to be written when `array` has memory: it was for that from the beginning."""
        with self.lock:
            waiting, account = self.waiting.pop(array, None), self._account(array)
            if account is None:
                return
            for reader in list(self.above.pop(array, {}).values()):
                of_reader = self.waiting.get(reader)
                if of_reader is not None and of_reader.kept:
                    self._look_below(reader, of_reader)
            if waiting is None:
                return
            account.kept.update(waiting.kept)
            account.explicit = waiting.category or account.explicit
            if len(account.block.categories) == 1 and account.block.phase == phase.get():
                account.block.categories[0] = account.block.born, *account.category()
            else:
                self._recategorize(account)
            self._let_go_of_leaves(waiting)

    def _look_below(self, array: Array, waiting: Waiting) -> None:
        """Keep the memory that a pending array is to be made of now, for the op that keeps the array."""
        waiting.op = op = waiting.op or waiting.kept[0]
        before = {id(leaf): leaf for leaf in waiting.leaves}
        found: dict[int, Account] = {}
        seen, stack = {id(array)}, [array]
        while stack:
            for x in stack.pop().inputs:
                if type(x) is Array and id(x) not in seen:
                    seen.add(id(x))
                    account = self._account(x)
                    if account is not None:
                        found[id(account)] = account
                    elif x.op is not None:
                        stack.append(x)
                        self._add_above(x, array)
        waiting.leaves = list(found.values())
        for key in found.keys() - before.keys():
            self._keep(found[key], op)
        for key in before.keys() - found.keys():
            if before[key].block.died is None:
                self._let_go(before[key], op)

    def _keep(self, account: Account, op: str) -> None:
        account.kept[op] += 1
        self._recategorize(account)

    def _let_go(self, account: Account, op: str) -> None:
        account.kept[op] -= 1
        if account.kept[op] <= 0:
            del account.kept[op]
        self._recategorize(account)

    def _let_go_of_leaves(self, waiting: Waiting) -> None:
        for leaf in waiting.leaves:
            if leaf.block.died is None:
                self._let_go(leaf, waiting.op)
        waiting.leaves, waiting.op = [], ""

    def _add_above(self, below: Array, array: Array) -> None:
        known = self.above.get(below)
        if known is None:
            known = self.above[below] = WeakValueDictionary()
        known[id(array)] = array

    def _account(self, array: Array) -> Account | None:
        return None if array.buffer is None else self.accounts.get(id(array.buffer))

    def _recategorize(self, account: Account) -> None:
        block, now = account.block, account.category()
        if block.categories[-1][1:] != now:
            block.categories.append((len(self.live), *now))
            self._event(0)

    # --- the rest -------------------------------------------------------------------------------

    def ran(self, op: Any, arrays: list[Any], params: dict[str, Any]) -> None:
        """Count the arithmetic of a product or of attention."""
        if not _is_dry():
            self.flops += flops_of(op, arrays, params)

    def mark(self, name: str) -> None:
        """Name this place in the order of events."""
        with self.lock:
            live = self.live[-1] if self.live else 0
            self.marks.append(Mark(name, len(self.live) - 1, live, self.kept_free()))

    def kept_free(self) -> int:
        """The bytes that the device keeps for reuse."""
        return 0 if self.reuse is None else int(self.reuse.kept)

    def profile(self, name: str) -> Profile:
        """What is being written down."""
        device = self.device.name if self.device.computes else f"meta like {self.device.engine}"
        if self.device.name == "cpu":
            device = f"cpu:{self.device.engine}"
        return Profile(name, device, self.blocks, self.live, self.seconds, self.marks, self.phases)


def _is_dry() -> bool:
    """Is this a dry run of a chain's functions, which is no part of what is profiled?"""
    return from_outside.get() is not None


@contextmanager
def _profiling(device: Device, name: str) -> Iterator[Profile]:
    ledger = Ledger(device)
    seen = ledger.profile(name)
    observers.append(ledger)
    ledgers.append(ledger)
    try:
        with during("forward"):
            yield seen
    finally:
        observers.remove(ledger)
        ledgers.remove(ledger)
        seen.flops, seen.params, seen.held = ledger.flops, _trained(device), ledger.held
        forget()


def _trained(device: Device) -> int:
    """How many numbers the Parameters on `device` are."""
    return sum(x.size for x in gc.get_objects() if issubclass(type(x), Parameter) and x.device is device)


def profile(
    fn: Callable[..., Any] | None = None,
    *args: Any,
    device: str | Device | None = None,
    name: str = "run",
    **kwargs: Any,
) -> Any:
    """The memory of `fn(*args, **kwargs)`, as a Profile; or of a block: `with profile() as p`.

    Of one device: `device`, else that of the first tensor among the arguments, else the default one.  What was alive
    before is counted from the beginning.  The Profile of a block is complete when the block ends.  Take a first step
    before: it compiles kernels, and makes what lasts.
    """
    tensors = [x for x in leaves((args, kwargs)) if isinstance(x, Tensor)]
    chosen = find_device(device) if device is not None else tensors[0].device if tensors else default_device()
    if fn is None:
        return _profiling(chosen, name)
    with _profiling(chosen, name) as seen:
        run_to_end(lambda: fn(*args, **kwargs))
    return seen


def run_to_end(step: Callable[[], Any]) -> None:
    """Call `step`, and compute what it returns, which may be pending."""
    found = step()
    realize_all([x.array for x in leaves(found) if isinstance(x, Tensor)])
