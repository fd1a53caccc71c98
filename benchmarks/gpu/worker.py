"""A process of one library.  It reads the names of cases, one a line, and answers each with a line of JSON.

    python -m benchmarks.gpu.worker LIBRARY DEVICE full|tiny

The first answer is {"ready": what the machine is} or {"missing": why there is nothing to measure with}.  A case is
answered with its result, or {"error": what went wrong}; where the device does not compute any more afterwards, the
process ends, and the next case needs a new one.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Any

from .cases import COMPILE, GPUAD, TORCH, find_cases

MOST = 300  # characters of an error


def main() -> None:
    """Answer until there is no more to read."""
    library, device, size = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not mix with the answers

    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")

    try:
        side = _side(library, device, size == "tiny")
        answer({"ready": side.describe()})
    except Exception as error:  # a library fails in its own ways to be there, and each is a reason to say
        answer({"missing": _said(error)})
        return
    from .measure import measure

    cases = {case.name: case for case in find_cases(size == "tiny")}
    for line in sys.stdin:
        try:
            message = measure(side, cases[line.rstrip("\n")])
        except Exception as error:  # one case less, and its reason in the file
            message = {"error": _said(error)}
            traceback.clear_frames(error.__traceback__)  # which hold arrays
            if os.environ.get("GPUAD_BENCHMARK_TRACEBACK"):
                traceback.print_exception(error)
        healthy = True
        try:
            side.release()
        except Exception:  # a device that has failed frees nothing either
            healthy = False
        healthy = healthy and ("error" not in message or side.healthy())
        answer(message | ({} if healthy else {"broken": True}))
        if not healthy:
            os._exit(1)  # at once: leaving politely would free what cannot be freed


def _side(library: str, device: str, tiny: bool) -> Any:
    if library == GPUAD:
        from . import on_gpuad

        return on_gpuad.Side(device, tiny)
    if library in (TORCH, COMPILE):
        from . import on_torch

        return on_torch.Side(device, tiny, compiled=library == COMPILE)
    from . import on_jax

    return on_jax.Side(device, tiny)


def _said(error: BaseException) -> str:
    """An error in a line."""
    said = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {said if len(said) <= MOST else said[:MOST] + '...'}"


if __name__ == "__main__":
    main()
