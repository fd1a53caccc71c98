"""The stand-in for CuPy: that it offers nothing CuPy does not have, and that CUDA's thread model holds in it."""

import ctypes
import importlib.util
import inspect
import os
import re
import subprocess
import sys
import threading
import types
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import stand_in
from gpuad.fuse.prelude import CUDA_FLAGS, CUDA_PRELUDE
from stand_in import KernelError

if stand_in.missing():
    pytest.skip(stand_in.missing(), allow_module_level=True)


@pytest.fixture(scope="module")
def cupy():
    with stand_in.installed() as module:
        yield module


# --- what it offers is what CuPy has ----------------------------------------------------------------

MODULES = [
    "",
    *(
        f"cuda.{name}"
        for name in (
            *("runtime", "driver", "stream", "memory", "memory_hook"),
            *("pinned_memory", "device", "function", "compiler"),
        )
    ),
]
MODULES.insert(1, "cuda")


def offered(cupy):
    """The public names of the stand-in: {path: object}."""
    found = {}
    for module in MODULES:
        where = step(cupy, module)
        for name, value in vars(where).items():
            if (
                name.startswith("_")
                or name == "annotations"
                or isinstance(value, types.ModuleType)
                or name in NOT_CUPYS
            ):
                continue
            if module.count(".") and getattr(value, "__module__", where.__name__) != where.__name__:
                continue  # it is there for the stand-in's own use
            path = f"{module}.{name}".lstrip(".")
            found[path] = value
            if isinstance(value, type) and value.__module__.startswith("cupy") and not issubclass(value, Exception):
                members = [m for m in vars(value) if not m.startswith("_") or m in SPECIAL]
                found.update({f"{path}.{m}": inspect.getattr_static(value, m) for m in members})
    return found


SPECIAL = ("__array_ufunc__", "__array_function__", "__dlpack__", "__dlpack_device__", "__cuda_array_interface__")
NOT_CUPYS = {"Any", "Iterator", "UNIT", "ufunc"}  # the last one is made in another way
OF_THE_INSTANCE = {"nin", "nout", "name", "numpy"}


def step(where, path):
    for name in filter(None, path.split(".")):
        where = getattr(where, name)
    return where


def parameters(function):
    """The parameters of `function`, [(name, has a default, only by keyword)]; None where nothing tells."""
    try:
        listed = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return parsed(inspect.getdoc(function) or "")
    return [
        (p.name, p.default is not p.empty, p.kind == p.KEYWORD_ONLY)
        for p in listed
        if p.name != "self" and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]


def parsed(doc):
    """The same from the first line of a docstring, as Cython writes it: name(type name=default, ...) -> type."""
    match = re.match(r"[\w.]+\((.*)\)", doc.strip().split("\n")[0])
    if match is None:
        return None
    found, by_keyword = [], False
    for part in filter(None, re.split(r",\s*(?![^\[(]*[\])])", match[1])):
        name, has_default, _ = part.replace("\\", "").partition("=")
        name = name.split(":")[0].split()[-1]
        if name.startswith("*"):
            by_keyword = True
        elif name not in ("self", "/"):
            found.append((name, bool(has_default), by_keyword))
    return found


@pytest.fixture(scope="module")
def real():
    """The real CuPy, which imports without a driver."""
    if importlib.util.find_spec("cupy") is None:
        pytest.skip("needs CuPy itself to compare with: pip install cupy-cuda12x")
    import cupy

    assert not Path(cupy.__file__).is_relative_to(Path(stand_in.__file__).parent)
    return cupy


def difference(path, ours, theirs):
    """What tells the stand-in's `path` from CuPy's, or None."""
    if isinstance(ours, (int, float, str)) or ours is None:
        return None if ours == theirs or ours != ours else f"{path} is {ours!r}, and {theirs!r} in CuPy"
    if not callable(ours) and not isinstance(ours, classmethod | staticmethod):
        return f"{path} is an attribute, and a function in CuPy" if callable(theirs) else None
    if type(ours).__name__ == "ufunc":
        same = (ours.nin, ours.nout) == (theirs.nin, theirs.nout)
        named = {name for name, _, _ in parsed(theirs.__doc__)[ours.nin :]}
        return None if same and named == {"out", "casting", "dtype"} else f"{path} is another ufunc in CuPy"
    if not callable(theirs):
        return f"{path} is no function in CuPy"
    told = parameters(theirs)
    if isinstance(ours, type) and told is not None and all(name.startswith("_") for name, _, _ in told):
        told = parsed((theirs.__doc__ or "").strip())  # Cython's classes say *args, and there the truth
    if told is None or ours is theirs or parameters(ours) == told:
        return None
    return f"{path}: {parameters(ours)}, and {told} in CuPy"


def test_every_name_and_signature_is_that_of_cupy(real):
    with stand_in.installed() as cupy:
        names = offered(cupy)
    assert len(names) > 300
    assert not [name for name in names if not exists(real, name)]
    found = [difference(path, value, step(real, path)) for path, value in names.items() if exists(real, path)]
    assert not [said for said in found if said]


def exists(where, path):
    try:
        step(where, path)
    except AttributeError:
        return path.rpartition(".")[2] in OF_THE_INSTANCE
    return True


def test_cublas_calls_are_those_of_cupy(real):
    """Its module loads only where cuBLAS is installed, but has its signatures inside."""
    library = Path(importlib.util.find_spec("cupy_backends.cuda.libs.cublas").origin).read_bytes()
    with stand_in.installed() as cupy:
        calls = {n: f for n, f in vars(cupy.cuda.cublas).items() if inspect.isfunction(f) and not n.startswith("_")}
    assert len(calls) == 4
    for name, function in calls.items():
        (told,) = set(re.findall(rb"\0(" + name.encode() + rb"\([^)\0]*\))", library))
        assert parameters(function) == parsed(told.decode()), name


def test_pinned_memory_is_that_of_cupy(real):
    with stand_in.installed() as cupy:
        names = [name for name in vars(type(cupy.cuda.alloc_pinned_memory(1))) if not name.startswith("_")]
    assert names and not [name for name in names if not hasattr(real.cuda.PinnedMemoryPointer, name)]


# --- CUDA's thread model ------------------------------------------------------------------------------

KERNELS = r"""
#define KERNEL extern "C" __global__ void
typedef long long int64;

__device__ __forceinline__ float warp_sum(float v) {
    for (int mask = 16; mask; mask >>= 1) v += __shfl_xor_sync(0xffffffffu, v, mask);
    return v;
}

// y[r, :] = (x[r, :] - mean) / deviation for float[rows, n], a block per row.
KERNEL layer_norm(const float* __restrict__ x, float* __restrict__ y, int n) {
    __shared__ float partial[2][32];
    const float* row = x + (int64)blockIdx.x * n;
    float sums[2] = {0.0f, 0.0f};
    for (int round = 0; round < 2; ++round) {
        float sum = 0.0f;
        for (int i = threadIdx.x; i < n; i += blockDim.x) {
            const float d = row[i] - sums[0];
            sum += round ? d * d : row[i];
        }
        sum = warp_sum(sum);
        if (threadIdx.x % 32 == 0) partial[round][threadIdx.x / 32] = sum;
        __syncthreads();
        sum = warp_sum(threadIdx.x % 32 < blockDim.x / 32 ? partial[round][threadIdx.x % 32] : 0.0f);
        sums[round] = sum / n;
    }
    float* out = y + (int64)blockIdx.x * n;
    for (int i = threadIdx.x; i < n; i += blockDim.x) out[i] = (row[i] - sums[0]) * rsqrtf(sums[1]);
}

// y[block] = the sum of int[blockDim] of each block, in shared memory.
KERNEL __launch_bounds__(256) block_sum(const int* x, int* y) {
    __shared__ int s[256];
    s[threadIdx.x] = x[blockIdx.x * blockDim.x + threadIdx.x];
    __syncthreads();
    for (int half = blockDim.x / 2; half; half /= 2) {
        if (threadIdx.x < half) s[threadIdx.x] += s[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) y[blockIdx.x] = s[0];
}

KERNEL reversed(const float* x, float* y) {
    extern __shared__ __align__(16) float room[];
    room[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = room[blockDim.x - 1 - threadIdx.x];
}

KERNEL votes(const int* x, unsigned* ballot, int* found, int* counts) {
    const int i = threadIdx.x;
    ballot[i] = __ballot_sync(~0u, x[i] > 0);
    found[2 * i] = __any_sync(~0u, x[i] > 5);
    found[2 * i + 1] = __all_sync(~0u, x[i] > -5);
    counts[3 * i] = __syncthreads_count(x[i] > 0);
    counts[3 * i + 1] = __syncthreads_or(x[i] > 5);
    counts[3 * i + 2] = __syncthreads_and(x[i] > -5);
}

KERNEL shuffles(const double* x, double* y) {
    const int i = threadIdx.x, n = blockDim.x;
    y[i] = __shfl_sync(~0u, x[i], 3, 8);
    y[n + i] = __shfl_up_sync(~0u, x[i], 2, 16);
    y[2 * n + i] = __shfl_down_sync(~0u, x[i], 5);
    y[3 * n + i] = __shfl_xor_sync(~0u, x[i], 9, 16);
    y[4 * n + i] = i % 32 < 12 ? __shfl_sync(0xfffu, x[i], 11) : __shfl_down_sync(0xfffff000u, x[i], 1);
}

KERNEL atomics(const int* x, int n, int* bins, int* lowest, int* highest, unsigned* bits, unsigned* ticket, int* lock) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += blockDim.x * gridDim.x) {
        atomicAdd(&bins[x[i] & 7], 1);
        atomicMin(lowest, x[i]);
        atomicMax(highest, x[i]);
        atomicOr(bits, 1u << (x[i] & 31));
        atomicInc(ticket, 9);
        while (atomicCAS(lock, 0, 1) != 0) {}
        lock[1] += x[i];
        __threadfence();
        atomicExch(lock, 0);
    }
}

KERNEL half_return(int* y) {
    __shared__ int s[64];
    if (threadIdx.x % 2) return;
    s[threadIdx.x] = threadIdx.x;
    __syncthreads();
    y[threadIdx.x / 2] = s[62 - threadIdx.x] + __popc(__ballot_sync(~0u, 1));
}

KERNEL half_stay_out(int* y) {
    if (threadIdx.x < 16) y[threadIdx.x] = __shfl_sync(~0u, y[threadIdx.x], 0);
    else __syncthreads();
}

KERNEL two_barriers(int* y) {
    if (threadIdx.x < 16) __syncthreads();
    else
        __syncthreads();
}

KERNEL left_out(int* y) { y[threadIdx.x] = __shfl_sync(1u << threadIdx.x, int(threadIdx.x), 5); }

// y[i] = x[i - 1], where a barrier is missing: each thread sees the one before it only if that had its turn.
KERNEL race(const int* x, int* y) {
    __shared__ int s[64];
    s[threadIdx.x] = x[threadIdx.x];
    y[threadIdx.x] = threadIdx.x ? s[threadIdx.x - 1] : 0;
}

KERNEL unset_shared(float* y) {
    __shared__ float s[4];
    y[blockIdx.x] = s[0];
    s[0] = 1.0f;
}

KERNEL places(int* y) {
    const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    y[block * blockDim.x * blockDim.y * blockDim.z + thread] += block * 10000 + thread;
}

KERNEL write_at(float* y, int64 i) { y[i] = 1.0f; }
KERNEL read_at(const float* x, int64 i, float* y) { *y = x[i]; }
KERNEL past_static(int* y, int i) {
    __shared__ int s[8];
    s[i] = 1;
    y[0] = s[0];
}
KERNEL four(const float* x, float* y) { *reinterpret_cast<float4*>(y) = *reinterpret_cast<const float4*>(x); }
KERNEL quotient(int* y, int by) { y[0] = y[0] / by; }
KERNEL endless(int* y, int depth);
__device__ __noinline__ int deeper(volatile int* y, int depth) {
    volatile int room[1024];
    room[depth % 1024] = y[0];
    return depth ? deeper(room, depth - 1) + room[depth % 1024] : 0;
}
KERNEL endless(int* y, int depth) { y[0] = deeper(y, depth); }

template <typename T> __global__ void doubled(T* x, T by) {
    __shared__ T s[64];
    s[threadIdx.x] = x[threadIdx.x] * by;
    __syncthreads();
    x[threadIdx.x] = s[threadIdx.x];
}

struct Pair {
    int mine, next;
    static void compute(Pair* const* lanes) {
        for (int i = 0; i < 32; ++i) lanes[i]->next = lanes[(i + 1) % 32]->mine;
    }
};
KERNEL together(int* y) {
    Pair pair = {int(threadIdx.x) * 3, 0};
    stand_in::warp_together<Pair, Pair::compute>(~0u, pair, "together");
    y[threadIdx.x] = pair.next;
}
"""


@pytest.fixture(scope="module")
def run(cupy):
    """Runs a kernel: run(name, grid, block, *arguments, shared=0)."""
    module = cupy.RawModule(code=KERNELS, name_expressions=("doubled<float>", "doubled<int>"))

    def run(name, grid, block, *arguments, shared=0):
        grid, block = ((n,) if isinstance(n, int) else n for n in (grid, block))
        module.get_function(name)(grid, block, arguments, shared_mem=shared)

    return run


ORDERS = pytest.mark.parametrize("order", ["forward", "reverse", "shuffle", "shuffle:7"])
random = np.random.default_rng(0)


@ORDERS
@pytest.mark.parametrize("block", [32, 96, 1024])
def test_layer_norm_with_shuffles(cupy, run, order, block):
    x = random.standard_normal((5, 700)).astype("f4")
    y = cupy.empty((5, 700), "f4")
    assert stand_in.unwritten(y) == y.size
    with stand_in.order(order):
        run("layer_norm", 5, block, cupy.asarray(x), y, np.int32(700))
    assert stand_in.unwritten(y) == 0
    wide = x.astype("f8")
    want = (wide - wide.mean(1, keepdims=True)) / wide.std(1, keepdims=True)
    np.testing.assert_allclose(y.get(), want, atol=2e-6)


@ORDERS
def test_reduction_in_shared_memory(cupy, run, order):
    x = random.integers(-100, 100, (7, 256), dtype="i4")
    y = cupy.empty(7, "i4")
    with stand_in.order(order):
        run("block_sum", 7, 256, cupy.asarray(x), y)
    np.testing.assert_array_equal(y.get(), x.sum(1))


@ORDERS
def test_dynamic_shared_memory(cupy, run, order):
    x, y = cupy.arange(100, dtype="f4"), cupy.empty(100, "f4")
    with stand_in.order(order):
        run("reversed", 1, 100, x, y, shared=400)
    np.testing.assert_array_equal(y.get(), np.arange(100)[::-1])


def test_dynamic_shared_memory_ends_where_asked(cupy, run):
    x, y = cupy.arange(100, dtype="f4"), cupy.empty(100, "f4")
    with pytest.raises(KernelError, match=r"reversed: block \(0, 0, 0\).* past the end of the dynamic shared memory"):
        run("reversed", 1, 100, x, y, shared=384)


def test_much_dynamic_shared_memory_must_be_asked_for(cupy):
    kernel = cupy.RawModule(code=KERNELS).get_function("reversed")
    x, y = cupy.zeros(4, "f4"), cupy.empty(4, "f4")
    with pytest.raises(cupy.cuda.driver.CUDADriverError, match="INVALID_VALUE"):
        kernel((1,), (4,), (x, y), shared_mem=60 << 10)
    kernel.max_dynamic_shared_size_bytes = 60 << 10
    kernel((1,), (4,), (x, y), shared_mem=60 << 10)
    assert kernel.attributes["max_dynamic_shared_size_bytes"] == 60 << 10
    with pytest.raises(cupy.cuda.driver.CUDADriverError):
        kernel.max_dynamic_shared_size_bytes = 300 << 10


@ORDERS
def test_votes(cupy, run, order):
    x = random.integers(-6, 7, 64).astype("i4")
    ballot, found, counts = cupy.empty(64, "u4"), cupy.empty((64, 2), "i4"), cupy.empty((64, 3), "i4")
    with stand_in.order(order):
        run("votes", 1, 64, cupy.asarray(x), ballot, found, counts)
    for part in (slice(0, 32), slice(32, 64)):
        warp = x[part]
        assert set(ballot.get()[part].tolist()) == {sum(1 << k for k in range(32) if warp[k] > 0)}
        np.testing.assert_array_equal(found.get()[part], [[(warp > 5).any(), (warp > -5).all()]] * 32)
    np.testing.assert_array_equal(counts.get(), [[(x > 0).sum(), (x > 5).any(), (x > -5).all()]] * 64)


@ORDERS
def test_shuffles_within_groups(cupy, run, order):
    x, y = np.arange(64.0), cupy.empty((5, 64))
    with stand_in.order(order):
        run("shuffles", 1, 64, cupy.asarray(x), y)
    i = np.arange(64)
    lane, warp = i % 32, i // 32 * 32
    got = y.get()
    np.testing.assert_array_equal(got[0], i // 8 * 8 + 3)
    np.testing.assert_array_equal(got[1], np.where(i % 16 < 2, i, i - 2))
    np.testing.assert_array_equal(got[2], np.where(lane + 5 > 31, i, i + 5))
    np.testing.assert_array_equal(got[3], i ^ 9)
    np.testing.assert_array_equal(got[4], np.where(lane < 12, warp + 11, np.where(lane == 31, i, i + 1)))


@ORDERS
def test_integer_atomics(cupy, run, order):
    x = random.integers(-50, 50, 1000).astype("i4")
    bins, low, high = cupy.zeros(8, "i4"), cupy.full((), 99, "i4"), cupy.full((), -99, "i4")
    bits, ticket, lock = cupy.zeros((), "u4"), cupy.zeros((), "u4"), cupy.zeros(2, "i4")
    with stand_in.order(order):
        run("atomics", 3, 64, cupy.asarray(x), np.int32(1000), bins, low, high, bits, ticket, lock)
    np.testing.assert_array_equal(bins.get(), np.bincount(x & 7))
    assert (int(low), int(high), int(ticket)) == (x.min(), x.max(), 1000 % 10)
    assert int(bits) == np.bitwise_or.reduce(np.uint32(1) << (x & 31).astype("u4"))
    assert lock.get().tolist() == [0, x.sum()]


@ORDERS
def test_threads_that_returned_are_not_waited_for(cupy, run, order):
    y = cupy.empty(32, "i4")
    with stand_in.order(order):
        run("half_return", 1, 64, y)
    np.testing.assert_array_equal(y.get(), 62 - 2 * np.arange(32) + 16)


@ORDERS
def test_a_deadlock_is_an_error_that_says_who_waits(cupy, run, order):
    with stand_in.order(order), pytest.raises(KernelError, match="deadlock") as caught:
        run("half_stay_out", 1, 32, cupy.zeros(32, "i4"))
    line = lambda text: KERNELS[: KERNELS.index(text)].count("\n") + 1
    assert f"16 of 32 threads wait in __shfl_sync at line {line('if (threadIdx.x < 16) y[')}" in str(caught.value)
    assert f"16 of 32 threads wait in __syncthreads at line {line('else __syncthreads')}" in str(caught.value)


def test_a_block_waits_at_one_barrier(cupy, run):
    with pytest.raises(KernelError, match="different barriers, __syncthreads at line"):
        run("two_barriers", 1, 32, cupy.zeros(32, "i4"))


def test_a_shuffle_from_a_thread_that_takes_no_part_gives_poison(cupy, run):
    y = cupy.empty(32, "i4")
    run("left_out", 1, 32, y)
    assert y.get().tolist() == [-1] * 5 + [5] + [-1] * 26


def test_a_missing_barrier_shows_in_another_order(cupy, run):
    x, want = np.arange(1, 65, dtype="i4"), [0, *range(1, 64)]
    found = {}
    for order in ("forward", "reverse", "shuffle"):
        y = cupy.empty(64, "i4")
        with stand_in.order(order):
            run("race", 1, 64, cupy.asarray(x), y)
        found[order] = y.get().tolist()
    assert found["forward"] == want
    assert found["reverse"] != want and found["shuffle"] != want


def test_shared_memory_of_each_block_is_poisoned(cupy, run):
    y = cupy.empty(3, "f4")
    run("unset_shared", 3, 1, y)
    assert np.isnan(y.get()).all()


@ORDERS
def test_every_thread_of_every_block_runs_once(cupy, run, order):
    y = cupy.zeros((24, 60), "i4")
    with stand_in.order(order):
        run("places", (2, 3, 4), (5, 4, 3), y)
    np.testing.assert_array_equal(y.get(), np.arange(24)[:, None] * 10000 + np.arange(60))


def test_templates_by_name(cupy, run):
    for name, dtype in (("doubled<float>", "f4"), ("doubled<int>", "i4")):
        x = cupy.arange(64, dtype=dtype)
        run(name, 1, 64, x, np.dtype(dtype).type(2))
        np.testing.assert_array_equal(x.get(), np.arange(64) * 2)


def test_what_a_warp_computes_together(cupy, run):
    y = cupy.empty(64, "i4")
    run("together", 1, 64, y)
    lane = np.arange(64) % 32
    np.testing.assert_array_equal(y.get(), (np.arange(64) + np.where(lane == 31, -31, 1)) * 3)


# --- faults -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 64, 100, 5000])
def test_a_write_past_the_end_is_an_error(cupy, run, size):
    y = cupy.empty(size, "f4")
    for place in (size, size + 64, -1, -1025):
        with pytest.raises(KernelError, match=rf"write_at.* an allocation of {4 * size} bytes"):
            run("write_at", 1, 1, y, np.int64(place))
    run("write_at", 1, 1, y, np.int64(size - 1))
    assert stand_in.unwritten(y) == size - 1


def test_a_read_past_the_end_is_an_error_or_no_number(cupy, run):
    x, y = cupy.ones(64, "f4"), cupy.empty(1, "f4")
    with pytest.raises(KernelError, match=r"thread \(0, 0, 0\).* 0 bytes past the end of an allocation of 256 bytes"):
        run("read_at", 1, 1, x, np.int64(64), y)
    run("read_at", 1, 1, cupy.ones(60, "f4"), np.int64(60), y)  # between the end and the page that faults
    assert abs(float(y[0])) > 1e37


def test_freed_memory_cannot_be_used(cupy, run):
    x, y = cupy.ones(64, "f4"), cupy.empty(1, "f4")
    freed = np.uint64(x.data.ptr)
    del x
    with pytest.raises(KernelError, match="memory that it may not use"):
        run("read_at", 1, 1, freed, np.int64(0), y)


def test_other_faults_name_the_kernel(cupy, run):
    x, y = cupy.zeros(64, "f4"), cupy.zeros(64, "i4")
    with pytest.raises(KernelError, match=r"past_static.*past the end of an array"):
        run("past_static", 1, 1, y, np.int32(8))
    with pytest.raises(KernelError, match=r"four.*alignment forbids"):
        run("four", 1, 1, x[1:], x)
    with pytest.raises(KernelError, match=r"quotient.*divided by zero"):
        run("quotient", 1, 1, y, np.int32(0))
    with pytest.raises(KernelError, match=r"endless.*more than \d+ KiB"):
        run("endless", 1, 1, y, np.int32(10**6))
    run("past_static", 1, 1, y, np.int32(7))  # and all is well again
    run("four", 1, 1, x[4:], x)


def test_a_fault_that_is_no_kernels_ends_the_process():
    program = "import ctypes, cupy\ncupy.zeros(3) + 1\nctypes.string_at(16)"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=stand_in.environment(), capture_output=True, check=False)
    assert done.returncode == -11, done.stderr


def test_a_fault_in_a_kernel_is_an_exception_in_any_process():
    program = """
import numpy, cupy
text = 'extern "C" __global__ void f(float* y, int i) { y[i] = 1; }'
cupy.RawModule(code=text).get_function("f")((1,), (1,), (cupy.empty(64, "f4"), numpy.int32(64)))
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=stand_in.environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "KernelError: f: block (0, 0, 0), thread (0, 0, 0): an access" in done.stderr


def test_a_write_by_others_next_to_an_array_is_found_when_it_is_freed():
    program = """
import ctypes, cupy
x = cupy.empty(60, "f4")
ctypes.memset(x.data.ptr + 240, 0, 4)
del x
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=stand_in.environment(), capture_output=True, text=True, check=False)
    assert "something wrote 0 bytes past the end of an allocation of 240 bytes; found when it was freed" in done.stderr


# --- texts --------------------------------------------------------------------------------------------


def test_half_types_of_the_prelude(cupy):
    text = (
        CUDA_PRELUDE
        + """
    KERNEL widened(const uint16* x, float* y, int64 n) { LOOP(i, n) y[i] = widen(HALF{x[i]}); }
    KERNEL narrowed(const float* x, uint16* y, int64 n) { LOOP(i, n) y[i] = NARROW(x[i]).bits; }
    """
    )
    bits = np.arange(65536, dtype="u2")
    sums = random.standard_normal(65536).astype("f4") * np.exp2(random.integers(-30, 20, 65536)).astype("f4")
    for name in ("float16", "bfloat16"):
        dtype = np.dtype(getattr(ml_dtypes, name, name))
        options = (*CUDA_FLAGS, f"-DHALF={name}", f"-DNARROW=to_{name}")
        module = cupy.RawModule(code=text, options=options)
        wide, narrow = cupy.empty(65536, "f4"), cupy.empty(65536, "u2")
        module.get_function("widened")((4,), (128,), (cupy.asarray(bits), wide, 65536))
        np.testing.assert_array_equal(wide.get(), bits.view(dtype).astype("f4"))
        for values in (wide.get(), sums):
            module.get_function("narrowed")((4,), (128,), (cupy.asarray(values), narrow, 65536))
            with np.errstate(over="ignore", invalid="ignore"):
                np.testing.assert_array_equal(narrow.get().view(dtype).astype("f4"), values.astype(dtype).astype("f4"))


UNARY = {
    **{
        name: getattr(np, name)
        for name in [
            "exp",
            "exp2",
            "expm1",
            "log",
            "log2",
            "log10",
            "log1p",
            "sin",
            "cos",
            "tan",
            "tanh",
            "sqrt",
            "cbrt",
        ]
    },
    **{name: getattr(np, name) for name in ["sinh", "cosh", "floor", "ceil", "trunc", "rint", "fabs"]},
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sinpi": lambda x: np.sin(np.pi * x),
    "cospi": lambda x: np.cos(np.pi * x),
    "exp10": lambda x: 10**x,
    "abs": np.abs,
}


@pytest.mark.parametrize("c, dtype, rtol", [("float", "f4", 3e-7), ("double", "f8", 1e-15)])
def test_mathematical_functions_take_float_and_double(cupy, c, dtype, rtol):
    lines = "\n".join(f"y[{k} * n + i] = {name}(x[i]);" for k, name in enumerate(UNARY))
    text = f"""
    extern "C" __global__ void functions(const {c}* x, {c}* y, int n) {{
        static_assert(sizeof(exp(x[0])) == sizeof({c}) && sizeof(fma(x[0], x[0], x[0])) == sizeof({c}), "");
        static_assert(sizeof(min(x[0], x[0])) == sizeof({c}) && sizeof(pow(x[0], x[0])) == sizeof({c}), "");
        const int i = threadIdx.x;
        {lines}
        y[{len(UNARY)} * n + i] = max(x[i], {c}(NAN)) + min({c}(NAN), x[i]) + {c}(signbit(-x[i])) + {c}(isnan(x[i]));
    }}"""
    x = random.uniform(0.1, 3, 64).astype(dtype)
    y = cupy.empty((len(UNARY) + 1, 64), dtype)
    cupy.RawModule(code=text).get_function("functions")((1,), (64,), (cupy.asarray(x), y, np.int32(64)))
    for got, function in zip(y.get(), UNARY.values(), strict=False):
        np.testing.assert_allclose(got, function(x.astype("f8")), rtol=10 * rtol, atol=4 * rtol)
    np.testing.assert_allclose(y.get()[-1], 2 * x + 1, rtol=rtol)


def test_numbers_of_cuda(cupy):
    text = """
    extern "C" __global__ void numbers(long long* y) {
        int k = 0;
        y[k++] = __float_as_uint(1.0f);
        y[k++] = (long long)__umul64hi(0xFFFFFFFFFFFFFFFFull, 0x10ull);
        y[k++] = __mulhi(-5, 1 << 30);
        y[k++] = __popc(0xF0u) * 100 + __clz(1) + __ffs(8);
        y[k++] = __brev(1u);
        y[k++] = __byte_perm(0x03020100u, 0x07060504u, 0x7531u);
        y[k++] = __float2int_rn(2.5f) * 100 + __float2int_rz(-2.9f);
        y[k++] = __float2int_rz(1e20f);
        y[k++] = min(3, 7u) + max(-1ll, 2ll);
        y[k++] = __double_as_longlong(__longlong_as_double(42));
        const float4 v = make_float4(1, 2, 3, 4);
        const int2 p = make_int2(5, 6);
        y[k++] = (long long)(v.x + v.w) * 10 + p.y;
        y[k++] = sizeof(float4) * 100 + alignof(float4) + sizeof(int3) + sizeof(uint2) + sizeof(double2);
        y[k++] = __double2int_rn(sqrt(2.0) * 1000) + warpSize + int(__fmaf_rn(2.0f, 3.0f, 4.0f));
        y[k++] = __ldg(y) + __ldcs(y + 1);
        __stcs(y + k, 77ll);
    }"""
    y = cupy.empty(15, "i8")
    cupy.RawModule(code=text).get_function("numbers")((1,), (1,), (y,))
    want = [0x3F800000, 15, -2, 435, 2**31, 0x07050301, 198, 2**31 - 1, 5, 42, 56, 1652, 1456, 0x3F800000 + 15, 77]
    assert y.get().tolist() == want


def test_text_that_does_not_compile_says_where(cupy):
    text = 'extern "C" __global__ void f(float* y) {\n    y[0] = nothing;\n}'
    with pytest.raises(cupy.cuda.compiler.CompileException, match=r"kernel.cu:2:12: .*nothing"):
        cupy.RawModule(code=text).get_function("f")
    module = cupy.RawModule(code=text.replace("nothing", "1"), options=CUDA_FLAGS)
    with pytest.raises(cupy.cuda.driver.CUDADriverError, match="NOT_FOUND"):
        module.get_function("g")
    with pytest.raises(cupy.cuda.compiler.CompileException, match="atomicAdd"):
        cupy.RawModule(code='extern "C" __global__ void f(float* y) { atomicAdd(y, 1.0f); }').get_function("f")


def test_nvrtc_reads_the_text_first_where_asked(cupy, monkeypatch):
    if importlib.util.find_spec("nvidia.cuda_nvrtc") is None:
        pytest.skip("needs NVRTC: pip install nvidia-cuda-nvrtc-cu12")
    monkeypatch.setenv("GPUAD_STAND_IN_NVRTC", "1")
    fine = 'extern "C" __global__ void good(float* y) { y[threadIdx.x] = __expf(1.0f); }'
    cupy.RawModule(code=fine, options=CUDA_FLAGS).get_function("good")
    only_here = 'extern "C" __global__ void bad(float* y) { y[0] = __builtin_exp10f(y[1]); }'
    with pytest.raises(cupy.cuda.compiler.CompileException, match="__builtin_exp10f"):
        cupy.RawModule(code=only_here, options=CUDA_FLAGS).get_function("bad")


def test_many_texts_compile_together(cupy):
    text = 'extern "C" __global__ void same(int* y) {{ __shared__ int s[1]; s[0] = {}; y[0] = s[0]; }}'
    texts = [text.format(k) for k in range(20)]
    stand_in.prepare(texts, CUDA_FLAGS)
    for k in (0, 7, 19):
        y = cupy.empty(1, "i4")
        cupy.RawModule(code=texts[k], options=CUDA_FLAGS).get_function("same")((1,), (1,), (y,))
        assert int(y[0]) == k
    wrong, right = text.format("nothing"), text.format(99)
    stand_in.prepare([wrong, right], CUDA_FLAGS)
    cupy.RawModule(code=right, options=CUDA_FLAGS).get_function("same")
    with pytest.raises(cupy.cuda.compiler.CompileException, match="nothing"):
        cupy.RawModule(code=wrong, options=CUDA_FLAGS).get_function("same")


def test_libraries_are_found_again_in_a_folder(tmp_path):
    program = """
import cupy, numpy
y = cupy.empty(1, "i4")
cupy.RawModule(code='extern "C" __global__ void f(int* y) { y[0] = 7; }').get_function("f")((1,), (1,), (y,))
assert int(y[0]) == 7
"""
    environment = stand_in.environment(GPUAD_STAND_IN_CACHE=str(tmp_path))
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == made
    assert len([path for path in made if path.suffix == ".so"]) == 2


# --- arrays -------------------------------------------------------------------------------------------


def test_numpy_does_not_read_arrays_of_the_device(cupy):
    x = cupy.arange(6.0).reshape(2, 3)
    with pytest.raises(TypeError, match="Implicit conversion to a NumPy array is not allowed"):
        np.asarray(x)
    for mixed in (
        lambda: x + np.ones(3),
        lambda: np.ones(3) * x,
        lambda: cupy.add(x, np.ones(3)),
        lambda: x @ np.eye(3),
    ):
        with pytest.raises(TypeError, match="Unsupported type"):
            mixed()
    assert isinstance(np.exp(x), cupy.ndarray) and isinstance(np.float32(2) * x, cupy.ndarray)
    with pytest.raises(TypeError):
        np.linalg.inv(x)
    with pytest.raises(ValueError, match="fill"):
        x[...] = np.ones((2, 3))


def test_results_are_arrays(cupy):
    x = cupy.arange(6.0).reshape(2, 3)
    for result in (x.sum(), x.max(), x[1, 2], cupy.argmax(x), cupy.any(x > 1), x.mean(axis=0)[1]):
        assert isinstance(result, cupy.ndarray) and result.shape == ()
    assert float(x.sum()) == 15 and int(cupy.argmax(x)) == 5 and bool((x >= 0).all())
    assert x[1, 2].data.ptr == x.data.ptr + 40


def test_indexes(cupy):
    host = np.arange(24.0).reshape(2, 3, 4)
    x = cupy.asarray(host)
    ones, twos = np.array([1, 0, 1]), np.array([[2], [0]])
    for key in (
        (1,),
        (..., 2),
        (slice(None), None, 1),
        (slice(1, None), slice(None, None, -2)),
        (ones,),
        (0, twos, ones),
    ):
        ours = tuple(cupy.asarray(k) if isinstance(k, np.ndarray) else k for k in key)
        np.testing.assert_array_equal(x[ours].get(), host[key])
    np.testing.assert_array_equal(x[x > 5].get(), host[host > 5])
    np.testing.assert_array_equal(x[:, cupy.asarray([True, False, True])].get(), host[:, [True, False, True]])
    np.testing.assert_array_equal(x[..., [1, 3]].get(), host[..., [1, 3]])
    assert x[0].base is x and x[0].T.base is x and x[0].flags.c_contiguous and not x[..., 0].flags.c_contiguous
    with pytest.raises(IndexError, match="integer or boolean"):
        x[cupy.asarray([1.0])]
    with pytest.raises((IndexError, TypeError)):
        x[1.0]
    with pytest.raises(IndexError):
        x[5]


def test_indexes_in_arrays_wrap_around(cupy):
    x = cupy.arange(5)
    far = cupy.asarray([7, -1, -6])
    for result in (x[far], cupy.take(x, far), x.take(far), cupy.take_along_axis(x, far, 0)):
        assert result.get().tolist() == [2, 4, 4]


def test_assignments(cupy):
    host, x = np.zeros((3, 4)), cupy.zeros((3, 4))
    for key, value in (
        ((1,), 5),
        ((slice(None), 2), np.arange(3.0)),
        (([0, 2], [1, 3]), 7),
        ((..., slice(0, 2)), [8, 9]),
    ):
        x[key] = cupy.asarray(value) if isinstance(value, (list, np.ndarray)) else value
        host[key] = value
        np.testing.assert_array_equal(x.get(), host)
    x[x > 6] = -1
    host[host > 6] = -1
    np.testing.assert_array_equal(x.get(), host)
    y = cupy.zeros(3)
    y[cupy.asarray([1, 1, 1])] = cupy.asarray([1.0, 2.0, 3.0])
    assert float(y[1]) != 3.0  # a GPU may keep any of them


def test_functions_agree_with_numpy(cupy):
    host = random.integers(-9, 9, (4, 5)).astype("f4")
    x, same = cupy.asarray(host), np.testing.assert_array_equal
    calls = [
        lambda m, a: m.cumsum(a, axis=1),
        lambda m, a: m.cumprod(a, axis=0, dtype=a.dtype),
        lambda m, a: m.sort(a, axis=0),
        lambda m, a: m.argsort(a, axis=1, kind="stable"),
        lambda m, a: m.lexsort(a[:2]),
        lambda m, a: m.searchsorted(m.sort(a[0]), a[1]),
        lambda m, a: m.concatenate([a, a], axis=1),
        lambda m, a: m.stack((a, a)),
        lambda m, a: m.where(a > 0, a, 0),
        lambda m, a: m.roll(a, 2, 1),
        lambda m, a: m.flip(a, 0),
        lambda m, a: m.moveaxis(a, 0, 1),
        lambda m, a: m.expand_dims(a, 0),
        lambda m, a: m.squeeze(a[None]),
        lambda m, a: m.broadcast_to(a[0], (3, 5)),
        lambda m, a: m.matmul(a, a.T),
        lambda m, a: m.unique(a),
        lambda m, a: m.bincount((a[0] > 0).astype(np.int64)),
        lambda m, a: m.flatnonzero(a > 0),
        lambda m, a: m.nonzero(a)[1],
        lambda m, a: m.take_along_axis(a, m.argsort(a, axis=1), axis=1),
        lambda m, a: m.clip(a, -1, 1),
        lambda m, a: m.tri(3, 4, dtype=a.dtype),
        lambda m, a: m.full((2, 2), 3),
        lambda m, a: a.reshape(2, 10).swapaxes(0, 1).ravel(),
        lambda m, a: -(abs(a) ** 2) / (a * a + 1) % 3,
    ]
    for call in calls:
        got, want = call(cupy, x), call(np, host)
        assert got.dtype == want.dtype
        same(got.get(), want)
    out = cupy.empty((4, 5), "f4")
    assert cupy.add(x, 1, out) is out and cupy.multiply(x, 2, out=out) is out
    same(out.get(), host * 2)
    with pytest.raises(ValueError, match="stable"):
        cupy.sort(x, kind="quicksort")


def test_products_of_half_types_fail_where_cupys_do(cupy):
    host = random.standard_normal((2, 3, 3)).astype("f4")
    x = cupy.asarray(host.astype(ml_dtypes.bfloat16))
    assert cupy.matmul(x[0], x[1]).dtype == ml_dtypes.bfloat16
    with pytest.raises(TypeError):
        cupy.matmul(x, x)
    with pytest.raises(NotImplementedError):
        cupy.sort(x)


@pytest.mark.parametrize("transposed", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_products_of_cublas(cupy, transposed):
    cuda, m, n, k, batch = cupy.cuda, 3, 4, 5, 2
    a = random.standard_normal((batch, *((k, m) if transposed[0] else (m, k)))).astype("f2")
    b = random.standard_normal((batch, *((n, k) if transposed[1] else (k, n)))).astype("f2")
    c = cupy.empty((batch, m, n), "f2")
    x, y = cupy.asarray(a), cupy.asarray(b)
    one, zero = np.float32(1), np.float32(0)
    numbers = [np.array([v]) for v in (one, zero)]
    half = cuda.runtime.CUDA_R_16F
    cuda.cublas.gemmStridedBatchedEx(  # row by row is the transpose column by column: c' = b' a'
        *(cuda.get_cublas_handle(), transposed[1], transposed[0], n, m, k, numbers[0].ctypes.data),
        *(y.data.ptr, half, b.shape[2], b[0].size, x.data.ptr, half, a.shape[2], a[0].size),
        *(numbers[1].ctypes.data, c.data.ptr, half, n, m * n, batch, cuda.cublas.CUBLAS_COMPUTE_32F, -1),
    )
    a, b = (v.swapaxes(1, 2) if t else v for v, t in zip((a, b), transposed, strict=True))
    np.testing.assert_allclose(c.get(), a.astype("f8") @ b.astype("f8"), rtol=2e-3, atol=2e-3)


# --- devices and memory -------------------------------------------------------------------------------


def test_two_devices_by_index(cupy, run):
    cuda = cupy.cuda
    assert cuda.runtime.getDeviceCount() == 2 and cuda.Device().id == 0
    x = cupy.arange(4)
    with cuda.Device(1) as device:
        y = cupy.arange(4)
        assert (y.device, device.compute_capability, cuda.runtime.getDevice()) == (cuda.Device(1), "90", 1)
        with pytest.raises(ValueError, match="array device = 0"):
            x + y
        with pytest.raises(KernelError, match="memory of device 0, not of 1"):
            run("places", 1, 1, x)
        run("places", 1, 1, y)
    assert cuda.Device().id == 0 and x.device.id == 0
    with pytest.raises(cuda.runtime.CUDARuntimeError, match="invalid device ordinal"):
        cuda.Device(2).use()
    handle = cupy.RawModule(code=KERNELS).get_function("places").kernel.ptr
    with cuda.Device(1), pytest.raises(cuda.driver.CUDADriverError, match="INVALID_HANDLE"):
        cuda.driver.launchKernel(handle, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0)


def test_launches_by_the_driver(cupy):
    """As gpuad launches: with a prepared block of arguments."""
    kernel = cupy.RawModule(code=KERNELS).get_function("write_at").kernel
    y = cupy.zeros(8, "f4")
    slots = (ctypes.c_int64 * 2)(y.data.ptr, 3)
    block = (ctypes.c_void_p * 2)(ctypes.addressof(slots), ctypes.addressof(slots) + 8)
    launch, stream = cupy.cuda.driver.launchKernel, cupy.cuda.Stream(non_blocking=True)
    launch(kernel.ptr, 1, 1, 1, 32, 1, 1, 0, stream.ptr, ctypes.addressof(block), 0)
    slots[1] = 5
    launch(kernel.ptr, 1, 1, 1, 32, 1, 1, 0, stream.ptr, ctypes.addressof(block), 0)
    assert y.get().tolist() == [0, 0, 0, 1, 0, 1, 0, 0]
    for grid, threads in ((0, 32), (1, 1025)):
        with pytest.raises(cupy.cuda.driver.CUDADriverError):
            launch(kernel.ptr, grid, 1, 1, threads, 1, 1, 0, stream.ptr, ctypes.addressof(block), 0)


@pytest.fixture
def pool(cupy):
    """A pool of its own, which new arrays come from."""
    pool = cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(pool.malloc):
        yield pool


def test_the_pool_counts_as_cupys(cupy, pool):
    x = cupy.empty(1000, "u1")
    assert (pool.used_bytes(), pool.total_bytes()) == (1024, 1024)
    view = x[10:]
    del x
    assert pool.used_bytes() == 1024  # the view keeps it
    del view
    assert (pool.used_bytes(), pool.total_bytes(), pool.n_free_blocks()) == (0, 1024, 1)
    y = cupy.empty(500, "u1")
    assert (pool.used_bytes(), pool.total_bytes(), pool.free_bytes(), pool.n_free_blocks()) == (512, 1024, 512, 1)
    pool.free_all_blocks()
    assert pool.total_bytes() == 1024  # the other half of the block is lent
    z = cupy.empty(512, "u1")
    assert (pool.used_bytes(), pool.total_bytes()) == (1024, 1024)
    del y, z
    assert pool.n_free_blocks() == 1  # they are one again
    pool.free_all_blocks()
    assert pool.total_bytes() == 0
    assert cupy.empty(0).data.ptr == 0 and pool.used_bytes() == 0


def test_the_pool_keeps_to_its_limit_as_cupys(cupy, pool):
    pool.set_limit(size=4096)
    assert pool.get_limit() == 4096
    with pytest.raises(cupy.cuda.memory.OutOfMemoryError, match=r"8,192 bytes \(.*0 bytes, limit set to: 4,096"):
        cupy.empty(8000, "u1")
    x = cupy.empty(2048, "u1")
    del x
    y = cupy.empty(3000, "u1")  # for which the other block went back
    assert (pool.used_bytes(), pool.total_bytes()) == (3072, 3072)
    with pytest.raises(cupy.cuda.memory.OutOfMemoryError, match=r"1,536 bytes .*3,072 bytes"):
        cupy.empty(1025, "u1")
    pool.set_limit()
    cupy.empty(1025, "u1")
    assert pool.total_bytes() == 4608 and y.nbytes == 3000


def test_blocks_stay_with_the_stream_they_were_lent_on(cupy, pool):
    x = cupy.empty(1024, "u1")
    del x
    with cupy.cuda.Stream(non_blocking=True):
        x = cupy.empty(1024, "u1")
        assert (pool.used_bytes(), pool.total_bytes()) == (1024, 2048)
    pool.set_limit(size=2048)
    with cupy.cuda.Stream(non_blocking=True):
        y = cupy.empty(512, "u1")  # the free block of another stream goes back for it
    assert (pool.used_bytes(), pool.total_bytes()) == (1536, 1536) and x.size == 1024 and y.size == 512


def test_memory_returns_to_the_device_when_the_pool_gives_it_back(cupy, pool):
    before = cupy.cuda.runtime.memGetInfo()[0]
    x = cupy.empty(1 << 20, "u1")
    assert cupy.cuda.Device().mem_info[0] == before - (1 << 20)
    del x
    assert cupy.cuda.runtime.memGetInfo()[0] == before - (1 << 20)
    pool.free_all_blocks()
    assert cupy.cuda.runtime.memGetInfo()[0] == before
    with pytest.raises(cupy.cuda.memory.OutOfMemoryError):
        cupy.empty(1 << 40, "u1")


def recorder(cupy):
    """A hook that writes down what it is told."""

    class Recorder(cupy.cuda.MemoryHook):
        name = "recorder"

    def note(event):
        return lambda self, **told: self.events.append((event, told))

    for event in EVENTS:
        setattr(Recorder, event, note(event))
    hook = Recorder()
    hook.events = []
    return hook


EVENTS = [f"{what}_{when}process" for what in ("alloc", "malloc", "free") for when in ("pre", "post")]


def test_hooks_see_what_their_thread_takes_and_gives_back(cupy, pool):
    x = cupy.empty(600, "u1")
    hook = recorder(cupy)
    with hook:
        y = cupy.empty(100, "u1")
        address = y.data.ptr
        del y
        del x
        cupy.empty(0)
        with pytest.raises(KeyError, match="recorder already exists"), recorder(cupy):
            pass
        pool.set_limit(size=2048)
        with pytest.raises(cupy.cuda.memory.OutOfMemoryError):
            cupy.empty(4000, "u1")
        thread = threading.Thread(target=pool.malloc, args=(512,))
        thread.start()
        thread.join()
    cupy.empty(100, "u1")
    seen = [(name, told["mem_size"]) for name, told in hook.events]
    assert seen == [
        *[("malloc_preprocess", 512), ("alloc_preprocess", 512), ("alloc_postprocess", 512)],
        *[("malloc_postprocess", 512), ("free_preprocess", 512), ("free_postprocess", 512)],
        *[("free_preprocess", 1024), ("free_postprocess", 1024), ("malloc_preprocess", 0), ("malloc_postprocess", 0)],
        *[("malloc_preprocess", 4096), ("malloc_postprocess", 4096)],
    ]
    taken, given, empty, failed = (hook.events[k][1] for k in (3, 4, 9, 11))
    assert (taken["size"], taken["mem_ptr"], taken["device_id"]) == (100, address, 0)
    assert (given["mem_ptr"], given["pmem_id"]) == (address, taken["pmem_id"])
    assert empty["mem_ptr"] == failed["mem_ptr"] == failed["pmem_id"] == 0


def test_hooks_are_told_what_cupy_tells_them(real):
    """By the list of keyword arguments in the docstring of each method."""
    with stand_in.installed() as cupy:
        hook, pool = recorder(cupy), cupy.cuda.MemoryPool()
        with hook:
            pool.malloc(1)
    assert {name for name, _ in hook.events} == set(EVENTS)
    for name, told in hook.events:
        listed = re.findall(r"^ *(\w+)\(int\):", getattr(real.cuda.MemoryHook, name).__doc__, re.MULTILINE)
        assert sorted(told) == sorted(listed), name


def test_pools_of_the_driver_have_high_water_marks(cupy):
    runtime, pool = cupy.cuda.runtime, cupy.cuda.MemoryAsyncPool()
    handle, hook, mib = runtime.deviceGetMemPool(0), recorder(cupy), 1 << 20
    marks = runtime.cudaMemPoolAttrUsedMemHigh, runtime.cudaMemPoolAttrReservedMemHigh
    with cupy.cuda.using_allocator(pool.malloc), hook:
        x = cupy.empty(40 * mib, "u1")
        y = cupy.empty(1000, "u1")
        del x
        assert (pool.used_bytes(), pool.total_bytes()) == (1024, 64 * mib)
        assert [runtime.memPoolGetAttribute(handle, mark) for mark in marks] == [40 * mib + 1024, 64 * mib]
        pool.free_all_blocks()
        for mark in marks:
            runtime.memPoolSetAttribute(handle, mark, 0)
        assert [runtime.memPoolGetAttribute(handle, mark) for mark in marks] == [1024, 32 * mib]
        del y
    assert not hook.events


def test_devices_are_named_for_the_driver(cupy):
    runtime = cupy.cuda.runtime
    for index in range(2):
        found = runtime.getDeviceProperties(index)
        assert (
            runtime.deviceGetPCIBusId(index)
            == cupy.cuda.Device(index).pci_bus_id
            == f"0000:{found['pciBusID']:02X}:00.0"
        )
        assert len(found["uuid"]) == 16
    with pytest.raises(runtime.CUDARuntimeError, match="invalid device"):
        runtime.deviceGetPCIBusId(2)


def test_streams_events_and_copies(cupy):
    cuda = cupy.cuda
    stream, x = cuda.Stream(non_blocking=True), cupy.arange(4, dtype="f4")
    with stream:
        assert cuda.get_current_stream() is stream
        start, end = stream.record(), cuda.Event()
        y = cupy.empty(4, "f4")
        cuda.runtime.memcpyAsync(y.data.ptr, x.data.ptr, 16, cuda.runtime.memcpyDeviceToDevice, stream.ptr)
        end.record(stream)
    assert cuda.get_current_stream() is cuda.Stream.null
    stream.wait_event(end)
    end.synchronize()
    assert cuda.get_elapsed_time(start, end) >= 0
    pinned = cuda.alloc_pinned_memory(16)
    host = np.frombuffer(pinned, "f4", 4)
    y.get(out=host)
    np.testing.assert_array_equal(host, x.get())
    assert pinned.ptr == host.ctypes.data
    cuda.runtime.memsetAsync(y.data.ptr, 0, 16, 0)
    assert not y.get().any()


@pytest.mark.parametrize("dtype", ["float32", "int8", "bool", "bfloat16"])
def test_arrays_go_to_others_and_come_back(cupy, dtype):
    x = cupy.asarray(np.arange(6).reshape(2, 3).astype(getattr(ml_dtypes, dtype, dtype)))[:, 1:]
    assert x.__dlpack_device__() == (2, 0)
    back = cupy.from_dlpack(x)
    assert (back.data.ptr, back.shape, back.strides, back.dtype) == (x.data.ptr, x.shape, x.strides, x.dtype)

    class Other:
        __cuda_array_interface__ = x.__cuda_array_interface__

    if dtype != "bfloat16":  # of which the interface tells no more than the size
        again = cupy.asarray(Other())
        assert (again.strides, again.dtype) == (x.strides, x.dtype)
        np.testing.assert_array_equal(again.get(), x.get())


def test_what_was_there_before_is_back_afterwards():
    before, path = sys.modules.get("cupy"), list(sys.path)
    with stand_in.installed() as cupy, stand_in.order("reverse"):
        assert sys.modules["cupy"] is cupy is not before
    assert sys.modules.get("cupy") is before and sys.path == path
    assert "GPUAD_STAND_IN_ORDER" not in os.environ
