"""The stand-in's `cupy.cuda.driver`: launches."""

from __future__ import annotations

from stand_in import compiler

from .. import _machine
from . import runtime

CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8
CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT = 9
_ERRORS = {
    1: "CUDA_ERROR_INVALID_VALUE: invalid argument",
    400: "CUDA_ERROR_INVALID_HANDLE: invalid resource handle",
    500: "CUDA_ERROR_NOT_FOUND: named symbol not found",
    701: "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES: too many resources requested for launch",
}


class CUDADriverError(RuntimeError):
    """What the driver answers to a wrong call."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(_ERRORS.get(status, f"error {status}"))


def _loaded(ptr: int) -> _machine.Loaded:
    """The function that `ptr` stands for, on the current device."""
    function = _machine.functions.get(ptr)
    if function is None or function.device != runtime.getDevice():
        raise CUDADriverError(400)
    return function


def launchKernel(
    f: int,
    grid_dim_x: int,
    grid_dim_y: int,
    grid_dim_z: int,
    block_dim_x: int,
    block_dim_y: int,
    block_dim_z: int,
    shared_mem_bytes: int,
    stream: int,
    kernel_params: int,
    extra: int,
) -> None:
    """Run a grid; what a GPU would fault on is an error at once."""
    function = _loaded(f)
    grid, block = (grid_dim_x, grid_dim_y, grid_dim_z), (block_dim_x, block_dim_y, block_dim_z)
    limits = (2**31 - 1, 65535, 65535, 1024, 1024, 64)
    if extra or not all(0 < n <= limit for n, limit in zip(grid + block, limits, strict=True)):
        raise CUDADriverError(1)
    if block_dim_x * block_dim_y * block_dim_z > 1024 or shared_mem_bytes > function.dynamic_limit:
        raise CUDADriverError(1)
    compiler.launch(function.entry, grid, block, shared_mem_bytes, kernel_params, runtime.getDevice())


def funcSetAttribute(f: int, attribute: int, value: int) -> None:
    if attribute == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
        if not 0 <= value <= _machine.DYNAMIC_SHARED_OPT_IN:
            raise CUDADriverError(1)
        _loaded(f).dynamic_limit = value
    elif attribute != CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT:
        raise CUDADriverError(1)


def funcGetAttribute(attribute: int, f: int) -> int:
    if attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
        raise CUDADriverError(1)
    return _loaded(f).dynamic_limit
