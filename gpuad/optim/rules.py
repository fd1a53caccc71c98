"""SGD, Adam and AdamW: what one step changes, written once for every device, and where a device has a kernel for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from typing import Any

from ..errors import DataError
from ..fuse.plan import realize_all
from ..ops.elementwise import sqrt, square
from ..tensor import Tensor
from .flat import Flat, Weigh, collected, writable
from .optimizer import Group, Optimizer, Refuse, Undoing


class SGD(Optimizer):
    """p - lr * g, where g may be smoothed by momentum; weight decay is added to the gradient."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        no_decay: Callable[[Tensor], bool] | None = None,
        max_grad_norm: float | None = None,
        master_weights: bool = True,
        state_dtype: Any = None,
    ) -> None:
        if nesterov and not momentum:
            raise DataError("nesterov looks ahead along the momentum, which is 0; set momentum=0.9, say")
        options = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
        super().__init__(
            params, options, ("momentum",) if momentum else (), no_decay, max_grad_norm, master_weights, state_dtype
        )

    def rule(self, flat: Flat, weigh: Weigh, g: Tensor, p: Tensor, *state: Tensor) -> list[Tensor]:
        """As in PyTorch, without dampening."""
        o = flat.group
        if o["weight_decay"]:
            g = g + weigh(o["weight_decay"]) * p
        rate = weigh(flat.number(lambda: o["lr"]))
        if not state:
            return [p - rate * g]
        momentum = weigh(o["momentum"], 1.0)
        velocity = state[0] * momentum + g
        direction = g + momentum * velocity if o["nesterov"] else velocity
        return [p - rate * direction, velocity]


class Adam(Optimizer):
    """Steps along the mean gradient over the root of the mean square; weight decay is added to the gradient."""

    decoupled = False

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        no_decay: Callable[[Tensor], bool] | None = None,
        max_grad_norm: float | None = None,
        master_weights: bool = True,
        state_dtype: Any = None,
    ) -> None:
        if not (0 <= betas[0] < 1 and 0 <= betas[1] < 1 and eps > 0):
            raise DataError(f"{type(self).__name__}() needs betas from 0 to below 1 and eps > 0, got {betas} and {eps}")
        options = {"lr": lr, "betas": (betas[0], betas[1]), "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, options, ("m", "v"), no_decay, max_grad_norm, master_weights, state_dtype)

    def rule(self, flat: Flat, weigh: Weigh, g: Tensor, p: Tensor, *state: Tensor) -> list[Tensor]:
        """As in PyTorch: the corrections for the bias of m and v are in the size of the step."""
        (m, v), o = state, flat.group
        (b1, b2), decay = o["betas"], o["weight_decay"]
        if decay and not self.decoupled:
            g = g + weigh(decay) * p
        m = m + weigh(1 - b1) * (g - m)
        v = v * weigh(b2, 1.0) + weigh(1 - b2) * square(g)
        size = flat.by_step(lambda n: o["lr"] / (1 - b1**n))
        root = flat.by_step(lambda n: math.sqrt(1 - b2**n))
        if decay and self.decoupled:
            p = p * weigh(flat.number(lambda: 1 - o["lr"] * decay), 1.0)
        return [p - weigh(size) * (m / (sqrt(v) / root + o["eps"])), m, v]

    def _stepped_at_once(
        self, flats: list[Flat], gradients: list[Tensor | None], refuse: Refuse, undoing: Undoing
    ) -> bool:
        dtypes = [dtype for flat in flats for dtype in (flat.dtype, flat.state)]
        kernel = flats[0].device.adam(dtypes) if type(self).rule is Adam.rule else None
        if kernel is None:
            return False
        arrays = [collected(flat, [gradients[k] for k in flat.places]) for flat in flats]
        realize_all([a for of_flat in arrays for a in of_flat if a is not None])
        moving = [[a is not None for a in of_flat] for of_flat in arrays]

        def take(*data: Any) -> None:
            left, parts = iter(data), []
            given = [[next(left) if moves else None for moves in of_flat] for of_flat in moving]
            for flat, gradients in zip(flats, given, strict=True):
                memory = list(islice(left, len(flat.arrays) + flat.master))
                parts.append(flat.moving(gradients, memory, partial(self._options_of_step, flat.group)))
            kernel.step(parts, self.max_grad_norm, refuse, undoing())

        inputs = [a.data for of_flat in arrays for a in of_flat if a is not None]
        with writable(flats):
            flats[0].device.perform(take, inputs, [data for flat in flats for data in flat.memory], "adam")
        return True

    def _options_of_step(self, group: Group, n: int) -> tuple[float, ...]:
        """What `kernels/adamw.cu` calls options, in step number `n`."""
        (b1, b2), lr, decay = group["betas"], group["lr"], group["weight_decay"]
        shrink, added = (1 - lr * decay, 0.0) if self.decoupled else (1.0, decay)
        return shrink, added, 1 - b1, b2, 1 - b2, lr / (1 - b1**n), math.sqrt(1 - b2**n), group["eps"]


class AdamW(Adam):
    """Adam, with weight decay that shrinks the parameters themselves."""

    decoupled = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        no_decay: Callable[[Tensor], bool] | None = None,
        max_grad_norm: float | None = None,
        master_weights: bool = True,
        state_dtype: Any = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            no_decay=no_decay,
            max_grad_norm=max_grad_norm,
            master_weights=master_weights,
            state_dtype=state_dtype,
        )


__all__ = ["Adam", "AdamW", "SGD"]
