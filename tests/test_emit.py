"""The emitted text: run on the host beside the NumPy engine, compiled by NVRTC, and read."""

import contextlib
import ctypes
import functools
import hashlib
import importlib
import importlib.util
import os
import shutil
import subprocess
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import gpuad
from gpuad import random
from gpuad.debug import explain
from gpuad.dtype import ALL, INTEGERS, compute_dtype, is_float
from gpuad.errors import DataError, DTypeError
from gpuad.fuse import host
from gpuad.fuse.compiled import door
from gpuad.fuse.emit import emit
from gpuad.fuse.kernel import Kernel, watchers
from gpuad.fuse.launch import Emitted, arguments
from gpuad.fuse.prelude import CUDA_FLAGS, CUDA_PRELUDE, HOST_FLAGS, HOST_PRELUDE
from gpuad.op import Elementwise
from gpuad.tensor import Tensor
from samples import SAMPLES

EVERY_ARCHITECTURE = ("sm_75", "sm_80", "sm_90", "sm_100", "sm_120")
DTYPES = tuple(map(np.dtype, ("?", "i1", "i8", "u1", "u8", "f2", "bfloat16", "f4", "f8")))  # what each op is run in
BATCH = 300  # kernels of one compilation
RTOL = {"float64": 1e-12, "float32": 4e-6, "float16": 2e-3, "bfloat16": 1.6e-2}  # two libraries, each within ulps

# --- kernels, with what the NumPy engine makes of them -----------------------------------------


@dataclass
class Case:
    """One kernel: its text, what to pass, and what the NumPy engine computed."""

    emitted: Emitted
    calls: list  # (entry, arguments, how many items)
    scratch: np.ndarray
    keep: list  # memory that the arguments point into
    outputs: list
    expected: list


def case_of(kernel):
    """A Case of a kernel that is about to run."""
    emitted = emit(kernel)
    twin = Kernel(kernel.space, kernel.nodes, kernel.leaves, kernel.outputs)
    twin.results = [np.empty(y.shape, y.dtype) for y in kernel.outputs]
    host.job(twin)(*[leaf.data for leaf in twin.leaves], *twin.results)
    expected, twin.results = twin.results, [poisoned(y.shape, y.dtype) for y in kernel.outputs]
    # Memory of a contiguous leaf may be taken over for a result; a view that is not contiguous has it to itself.
    leaves = {id(x.data): x.data.copy() if x.data.flags.c_contiguous else x.data for x in kernel.leaves}
    partials = [poisoned((n,), dtype) for n, dtype in emitted.partial_sizes(kernel)]
    lengths = emitted.lengths(kernel)
    calls = [
        (entry, [leaves.get(id(a), a) for a in arguments(emitted, entry, twin, partials)], lengths[entry.items])
        for entry in emitted.entries
    ]
    scratch = poisoned((emitted.scratch_bytes(kernel.cols, shared=False),), np.dtype("u1"))
    return Case(emitted, calls, scratch, [leaves, partials], twin.results, expected)


def poisoned(shape, dtype):
    """Memory whose contents show where they were not written."""
    out = np.empty(shape, dtype)
    out.reshape(-1).view(np.uint8)[...] = 0xA5
    return out


def cases_of(function):
    """The kernels that `function` and the values of its results run, as Cases."""
    found = []
    watch = lambda kernel: found.append(case_of(kernel))
    watchers.append(watch)
    try:
        result = function()
        for y in result if isinstance(result, tuple | list) else [result]:
            if isinstance(y, Tensor):
                y.numpy()
    finally:
        watchers.remove(watch)
    return found


def values(dtype, shape, name, low=-2.0):
    """Values that most functions accept, from `low` to 2, or small integers."""
    rng = np.random.default_rng(zlib.crc32(f"{name}{dtype}{shape}".encode()))
    if dtype == np.bool_:
        return rng.integers(0, 2, shape).astype(bool)
    if dtype in INTEGERS:
        return rng.integers(0 if dtype.kind == "u" or low >= 0 else -5, 6, shape).astype(dtype)
    return rng.uniform(low, 2.0, shape).astype(dtype)


def elementwise_functions():
    """Every elementwise op that the families define, by name: the public function where one stands before it."""
    found = {}
    for path in sorted(Path(gpuad.ops.__file__).parent.glob("[a-z]*.py")):
        module = importlib.import_module(f"gpuad.ops.{path.stem}")
        for op in vars(module).values():
            if isinstance(op, Elementwise):
                found[op.name] = (op, getattr(gpuad, op.name, op))
    return {name: found[name] for name in sorted(found)}


def kernels_of_op(op, function):
    """The op over each dtype it takes, and over dtypes and Python scalars mixed."""
    found = []
    pairs = [(d,) * len(op.inputs) for d in DTYPES]
    if len(op.inputs) > 1:
        pairs += [
            tuple(map(np.dtype, d[: len(op.inputs)]))
            for d in (("f4", "f8", "f8"), ("i4", "f4", "f4"), ("?", "i8", "i8"), ("u1", "f2", "f2"))
        ]
    for dtypes in pairs:
        args = [gpuad.asarray(values(d, (3, 5), f"{op.name}{k}", low=-0.9)) for k, d in enumerate(dtypes)]
        try:
            found += cases_of(lambda args=args: function(*args))
        except (DTypeError, DataError):
            assert dtypes[0].name not in ("float32", "float64") or op.dtypes == "integer", "floats are for all others"
    if len(op.inputs) > 1:
        x = gpuad.asarray(values(np.dtype("f4"), (3, 5), op.name))
        for scalars in ((0, 2, 3), (0, 0.5, 1.5)):
            try:
                found += cases_of(lambda scalars=scalars: function(x, *scalars[1 : len(op.inputs)]))
            except DTypeError:
                assert op.dtypes == "integer"
    return found


def kernels_of_sample(sample):
    """A sample of the table tests and its derivatives, in float32, and its value in half types where it has them."""
    found = []
    for dtype in ["float32", *sorted({"float16", "bfloat16"} & set(sample.dtypes))]:
        kind = gpuad.dtype.as_dtype(dtype)
        args = [
            gpuad.asarray(a.astype(kind) if a.dtype == np.float64 else a) if isinstance(a, np.ndarray) else a
            for a in sample.args
        ]
        found += cases_of(lambda args=args: sample.call(*args))
        if sample.grad and dtype == "float32":
            found += cases_of(lambda args=args: gradients(sample.call, args))
    return found


def gradients(function, args):
    """The cotangents of the floating-point `args` when those of the results are ones."""
    places = [k for k, a in enumerate(args) if isinstance(a, Tensor) and is_float(a.dtype)]

    def of_floats(*xs):
        every = list(args)
        for k, x in zip(places, xs, strict=True):
            every[k] = x
        result = function(*every)
        return [y for y in (result if isinstance(result, tuple | list) else [result]) if is_float(y.dtype)]

    ys, pull = gpuad.vjp(of_floats, *[args[k] for k in places])
    return list(pull([gpuad.ones_like(y) for y in ys]))


def tensor(shape, dtype="f4", name="x", low=-2.0):
    return gpuad.asarray(values(np.dtype(dtype), shape, name, low))


def rational(x):
    return gpuad.exp(gpuad.sin(x) * 2) / (1 + x * x)


def softmax(x):
    e = gpuad.exp(x - gpuad.sum(x, axis=-1, keepdims=True) / x.shape[-1])
    return e / gpuad.sum(e, axis=-1, keepdims=True)


def gelu_by_hand(x):
    return 0.5 * x * (1 + gpuad.tanh(0.7978845608 * (x + 0.044715 * x * x * x)))


def centred(x):
    return x - gpuad.sum(x, axis=-1, keepdims=True) / x.shape[-1]


def layer_norm(x):
    c = centred(x)
    return c / (gpuad.sum(c * c, axis=-1, keepdims=True) / x.shape[-1] + 1e-5)


def two_outputs():
    x = tensor((6, 7))
    e = gpuad.exp(x)
    total = gpuad.sum(e, axis=-1, keepdims=True)
    gpuad.fuse.plan.realize_all([e.array, total.array, (e * total).array])


def transposed(x, *axes):
    return gpuad.permute_dims(x, axes)


GENERATOR = random.Generator(0)
GENERATOR.set_state((1, 2, 2**64 - 2, 2**64 - 1, 2**64 - 1, 5))  # about to carry

BY_HAND = {
    "gradient of a rational function": lambda: gpuad.grad(lambda x: gpuad.sum(rational(x)))(tensor((3, 5))),
    "second derivative": lambda: gpuad.jvp(
        gpuad.grad(lambda x: gpuad.sum(rational(x))), (tensor((9,)),), (tensor((9,), name="t"),)
    )[1],
    "softmax": lambda: softmax(tensor((4, 9))),
    "gradient of softmax": lambda: gpuad.vjp(softmax, tensor((4, 9)))[1](tensor((4, 9), name="g")),
    "layer norm": lambda: layer_norm(tensor((4, 9), "f8")),
    "gradient of layer norm": lambda: gpuad.vjp(layer_norm, tensor((2, 3, 9)))[1](tensor((2, 3, 9), name="g")),
    "gelu": lambda: gelu_by_hand(tensor((70,))),
    "gradient of gelu in float16": lambda: gpuad.vjp(gelu_by_hand, tensor((70,), "f2"))[1](tensor((70,), "f2", "g")),
    "float16 with bfloat16": lambda: gpuad.exp(tensor((3, 4), "f2") * 2) + tensor((4,)).to(gpuad.bfloat16),
    "broadcast by column": lambda: tensor((3, 4)) * tensor((4,)),
    "broadcast by row": lambda: tensor((3, 4)) * tensor((3, 1)),
    "broadcast of one": lambda: tensor((3, 4)) * tensor((1, 1)) + tensor(()),
    "broadcast in the middle": lambda: tensor((2, 3, 4)) + tensor((2, 1, 4)) * tensor((3, 1)),
    "broadcast both ways": lambda: tensor((3, 1)) + tensor((4,)),
    "broadcast in four axes": lambda: tensor((2, 3, 4, 5)) + tensor((3, 1, 5)) * tensor((2, 1, 4, 1)),
    "a pending value a row": lambda: gpuad.exp(tensor((3, 1))) * tensor((3, 4)),
    "transposed": lambda: transposed(tensor((4, 3)), 1, 0) + tensor((3, 4)),
    "transposed in three axes": lambda: transposed(tensor((4, 3, 2)), 1, 2, 0) * 2,
    "transposed rows": lambda: softmax(transposed(tensor((9, 2, 4)), 1, 2, 0)),
    "a scalar tensor": lambda: gpuad.exp(tensor(())),
    "a vector": lambda: gpuad.exp(tensor((5,))) * transposed(tensor((5, 1)), 1, 0),
    "no elements": lambda: gpuad.exp(tensor((0, 4))) + tensor((4,)),
    "sum of no columns": lambda: gpuad.sum(gpuad.exp(tensor((3, 0))), axis=-1) + 1,
    "sum of no rows": lambda: gpuad.sum(gpuad.exp(tensor((0, 3))), axis=0),
    "sum of nothing": lambda: gpuad.sum(gpuad.exp(tensor((0,)))),
    "sum of all": lambda: gpuad.sum(gpuad.sin(tensor((70, 130)))),
    "sum of all in float64": lambda: gpuad.sum(gpuad.sin(tensor((9001,), "f8"))),
    "sum of integers": lambda: gpuad.sum(tensor((7, 11), "i4") * 3),
    "sum by column": lambda: gpuad.sum(tensor((70, 130)) * tensor((130,)), axis=0),
    "sum by column of many rows": lambda: gpuad.sum(gpuad.sin(tensor((5000, 2))), axis=0),
    "sum by column of three axes": lambda: gpuad.sum(gpuad.exp(tensor((4, 5, 6))), axis=(0, 1)),
    "sum of softmax": lambda: gpuad.sum(softmax(tensor((70, 130)))),
    "sum of softmax by column": lambda: gpuad.sum(softmax(tensor((70, 130))), axis=0),
    "sum of one column": lambda: gpuad.sum(gpuad.exp(tensor((6, 1))), axis=-1, keepdims=True) * tensor((6, 1)),
    "several outputs": two_outputs,
    "full": lambda: gpuad.full((3, 4), 0.1) + gpuad.full((3, 4), 3, dtype=gpuad.int32),
    "full of a half type": lambda: gpuad.full((3, 4), 0.1, dtype=gpuad.float16) * tensor((3, 4), "f2"),
    "arange": lambda: gpuad.arange(3, 40, 2) * 2,
    "arange of floats": lambda: gpuad.exp(gpuad.arange(0.0, 2.0, 0.1)),
    "arange of steps cut to integers": lambda: gpuad.arange(0.0, 9.0, 0.4, dtype=gpuad.int32) + 1,
    "random bits": lambda: [random.bits((9, 9), dtype=d, generator=GENERATOR) for d in ("u1", "u2", "u4", "u8")],
    "random numbers": lambda: [
        random.uniform((9, 9), dtype=d, generator=GENERATOR) for d in ("f2", "bfloat16", "f4", "f8")
    ],
    "random normals": lambda: [
        random.normal((9, 9), dtype=d, generator=GENERATOR) for d in ("f2", "bfloat16", "f4", "f8")
    ],
    "random integers": lambda: [random.integers((40,), *r, generator=GENERATOR) for r in ((-5, 6), (-(2**63), 2**63))],
    "dropout": lambda: gpuad.where(random.bernoulli((3, 5), 0.3, generator=GENERATOR), tensor((3, 5)) / 0.7, 0),
    "where": lambda: gpuad.where(tensor((3, 4)) > 0, tensor((3, 4), name="a"), 0),
    "casts": lambda: [tensor((3, 4), "f4").to(d) * 1 for d in sorted(ALL, key=str)],
    "casts of integers": lambda: [tensor((3, 4), "i8").to(d) * 1 for d in sorted(ALL, key=str)],
    "casts of half types": lambda: [tensor((3, 4), "f2").to(d) * 1 for d in sorted(ALL, key=str)],
    "special values": lambda: gpuad.asarray(SPECIAL).to(gpuad.bfloat16) * gpuad.asarray(SPECIAL).to(gpuad.float16),
}
SPECIAL = np.array([np.inf, -np.inf, np.nan, -0.0, 1e-8, 6e-5, 65519.0, 65520.0, 3.39e38, 1.00390625], np.float32)

PROBLEMS = {
    **{f"op {name}": functools.partial(kernels_of_op, *op) for name, op in elementwise_functions().items()},
    **{f"sample {sample.name}": functools.partial(kernels_of_sample, sample) for sample in SAMPLES},
    **{name: functools.partial(cases_of, make) for name, make in BY_HAND.items()},
}
every = pytest.mark.parametrize("problem", PROBLEMS)


@functools.cache
def cases(problem):
    return PROBLEMS[problem]()


@functools.cache
def entries():
    """The entries of all kernels, by name."""
    texts()
    return {c.emitted.name: c.emitted.entries for problem in PROBLEMS for c in _found(problem)}


def _found(problem):
    with contextlib.suppress(Exception):
        return cases(problem)
    return []


@functools.cache
def texts():
    """The code of all kernels of all problems, by name."""
    found = {}
    for problem in PROBLEMS:
        with contextlib.suppress(Exception):  # which the problem's own test will raise
            found.update({case.emitted.name: case.emitted.code for case in cases(problem)})
    return found


# --- on the host --------------------------------------------------------------------------------


def compiler():
    found = shutil.which(os.environ.get("CXX") or "g++") or shutil.which("c++")
    if found is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("needs a C++ compiler, which is not installed")
    return found


def built(names, folder, cxx):
    """For each kernel, its library or what the compiler says about it."""
    source = HOST_PRELUDE + "\n".join(texts()[name] + "".join(map(door, entries()[name])) for name in names)
    stem = folder / hashlib.sha256(source.encode()).hexdigest()[:16]
    stem.with_suffix(".cpp").write_text(source)
    command = [cxx, "-O1", *HOST_FLAGS, "-shared", "-fPIC", "-o", f"{stem}.so", f"{stem}.cpp"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return dict.fromkeys(names, ctypes.CDLL(f"{stem}.so"))
    if len(names) == 1:
        return {names[0]: f"{texts()[names[0]]}\n{done.stderr}"}
    half = len(names) // 2
    return {**built(names[:half], folder, cxx), **built(names[half:], folder, cxx)}


@pytest.fixture(scope="session")
def libraries(tmp_path_factory):
    cxx, folder, names = compiler(), tmp_path_factory.mktemp("emitted"), list(texts())
    found = {}
    for start in range(0, len(names), BATCH):
        found.update(built(names[start : start + BATCH], folder, cxx))
    return found


def passed(value):
    """An argument as the 8 bytes of a slot."""
    raw = np.uint64(value.ctypes.data).tobytes() if isinstance(value, np.ndarray) else value.tobytes()
    return raw.ljust(8, b"\0")


def run(library, case, step=None):
    """Call the entries of a case, `step` items at a time."""
    for entry, args, items in case.calls:
        slots = ctypes.create_string_buffer(b"".join(map(passed, args)), 8 * len(args))
        function = getattr(library, f"{entry.name}_items")
        function.restype = None
        for first in range(0, items, step or max(items, 1)):
            last = min(items, first + (step or items))
            where = [ctypes.c_void_p(ctypes.addressof(slots)), ctypes.c_int64(first), ctypes.c_int64(last)]
            function(*where, ctypes.c_void_p(case.scratch.ctypes.data))


def agree(case):
    for got, want in zip(case.outputs, case.expected, strict=True):
        if not is_float(want.dtype):
            np.testing.assert_array_equal(got, want)
            continue
        widest = max([compute_dtype(want.dtype).name, *[p.dtype.name for p in case.emitted.parameters]], key=precision)
        rtol = RTOL[widest if widest in RTOL else "float32"]
        a, b = got.astype(np.float64), want.astype(np.float64)
        scale = np.max(np.abs(b), initial=0, where=np.isfinite(b))
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * max(scale, 1) / 4)


def precision(name):
    return {"float16": 2, "bfloat16": 3, "float32": 1}.get(name, 0)


@every
def test_host_computes_what_numpy_does(problem, libraries):
    for case in cases(problem):
        library = libraries[case.emitted.name]
        if isinstance(library, str):
            pytest.fail(library)
        run(library, case)
        agree(case)
        whole = [y.copy() for y in case.outputs]
        run(library, case, step=3 if case.emitted.by_rows else 48)  # flat ranges begin at groups
        for y, was in zip(case.outputs, whole, strict=True):
            assert y.tobytes() == was.tobytes(), "bits depend on how items are grouped"


# --- NVRTC --------------------------------------------------------------------------------------


@functools.cache
def nvrtc():
    """NVIDIA's run-time compiler, which needs no driver."""
    try:
        spec = importlib.util.find_spec("nvidia.cuda_nvrtc")
    except ModuleNotFoundError:
        spec = None
    found = [
        p
        for folder in (spec.submodule_search_locations if spec else ())
        for p in Path(folder).glob("lib/libnvrtc.so.*")
    ]
    if not found:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("needs NVRTC: pip install nvidia-cuda-nvrtc-cu12")
    return ctypes.CDLL(str(found[0]))


def nvrtc_refuses(source, architecture):
    """What NVRTC says about `source`: None if it compiles, for a `compute_` architecture to PTX, else to a binary."""
    lib, program = nvrtc(), ctypes.c_void_p()
    assert lib.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None) == 0
    options = [flag.encode() for flag in (f"--gpu-architecture={architecture}", *CUDA_FLAGS)]
    failed = lib.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    size, made = ctypes.c_size_t(), ctypes.c_size_t()
    lib.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    lib.nvrtcGetProgramLog(program, log)
    (lib.nvrtcGetPTXSize if architecture.startswith("compute") else lib.nvrtcGetCUBINSize)(program, ctypes.byref(made))
    lib.nvrtcDestroyProgram(ctypes.byref(program))
    return log.value.decode() if failed or not made.value else None


def refused(names):
    """For each kernel that NVRTC does not compile, what it says."""
    said = nvrtc_refuses(CUDA_PRELUDE + "\n".join(texts()[name] for name in names), "compute_90")
    if said is None:
        return {}
    if len(names) == 1:
        return {names[0]: f"{texts()[names[0]]}\n{said}"}
    half = len(names) // 2
    return {**refused(names[:half]), **refused(names[half:])}


@pytest.fixture(scope="session")
def faults():
    names = list(texts())
    found = {}
    for start in range(0, len(names), BATCH):
        found.update(refused(names[start : start + BATCH]))
    return found


@every
def test_nvrtc_compiles(problem, faults):
    said = [faults[case.emitted.name] for case in cases(problem) if case.emitted.name in faults]
    assert not said, said[0]


def codes(problems):
    found = {case.emitted.name: case.emitted.code for problem in problems for case in cases(problem)}
    return "\n".join(found.values())


def test_nvrtc_makes_binaries_for_sm_90():
    assert nvrtc_refuses(CUDA_PRELUDE + codes(BY_HAND), "sm_90") is None


@pytest.mark.parametrize("architecture", EVERY_ARCHITECTURE)
def test_nvrtc_makes_binaries_for_every_architecture(architecture):
    few = ("gradient of gelu in float16", "float16 with bfloat16", "sum of softmax by column", "dropout")
    assert nvrtc_refuses(CUDA_PRELUDE + codes(few), architecture) is None


# --- what the text is ---------------------------------------------------------------------------


def emitted(function):
    """The texts of the kernels that `function` runs."""
    return [case.emitted for case in cases_of(function)]


def one(function):
    (text,) = emitted(function)
    return text


@pytest.mark.parametrize("problem", ["gelu", "softmax", "layer norm", "gradient of softmax", "several outputs"])
def test_outputs_may_take_over_the_memory_of_inputs(problem, libraries):
    case = PROBLEMS[problem]()[-1]  # computed once more: the arguments are spoilt here
    ((entry, args, _),) = case.calls
    of = lambda kind: [k for k, p in enumerate(entry.parameters) if p.kind == kind]
    pairs = [(k, out) for k in of("leaf") for out in of("output") if args[k].shape == args[out].shape]
    k, out = pairs[0]
    args[out] = case.outputs[entry.parameters[out].index] = args[k]
    run(libraries[case.emitted.name], case)
    agree(case)


def test_arithmetic_is_never_contracted(tmp_path):
    x, y, z = (values(np.dtype("f4"), (4096,), name) for name in "xyz")
    (case,) = cases_of(lambda: gpuad.asarray(x) * gpuad.asarray(y) + gpuad.asarray(z))
    source, library = tmp_path / "kernel.cpp", tmp_path / "kernel.so"
    source.write_text(HOST_PRELUDE + case.emitted.code + "".join(map(door, case.emitted.entries)))
    command = [compiler(), "-O3", "-march=native", *HOST_FLAGS, "-shared", "-fPIC", "-o", library, source]
    subprocess.run(command, check=True)
    run(ctypes.CDLL(library), case)
    np.testing.assert_array_equal(case.outputs[0], x * y + z)
    assert "--fmad=false" in CUDA_FLAGS and not any("fast" in flag for flag in CUDA_FLAGS + HOST_FLAGS)


def test_same_structure_has_the_same_code():
    f = lambda shape: gpuad.exp(tensor(shape)) * tensor(shape[-1:])
    first, second = one(lambda: f((3, 4))), one(lambda: f((300, 500)))
    assert first.code == second.code and first.entries == second.entries


def test_scalars_do_not_show_in_the_code():
    f = lambda rate: gpuad.full((3, 4), 1.0 / rate) - tensor((3, 4)) * rate
    first, second = one(lambda: f(0.1)), one(lambda: f(0.25))
    assert first.code == second.code
    assert "0.1" not in first.code and "0.25" not in second.code


def test_what_differs_in_structure_differs_in_code():
    x = tensor((3, 4))
    y = tensor((4, 3))
    variants = [
        lambda: x * 2.0,
        lambda: x * x,
        lambda: x.to(gpuad.float64) * 2.0,
        lambda: x * tensor((4,)),
        lambda: x * tensor((3, 1)),
        lambda: x * transposed(y, 1, 0),
        lambda: gpuad.sum(x * 2.0),
        lambda: gpuad.sum(x * 2.0, axis=0),
        lambda: gpuad.sum(x * 2.0, axis=1),
    ]
    found = [one(variant) for variant in variants]
    assert len({text.code for text in found}) == len({text.name for text in found}) == len(variants)


def test_header_lists_the_lines_of_the_program_and_the_code_does_not():
    def program(x):
        y = gpuad.sin(x)
        return y * 2.0

    x = tensor((3, 4))
    text = one(lambda: program(x))
    first = program.__code__.co_firstlineno
    assert f"//   test_emit.py:{first + 1}  sin_1" in text.header
    assert f"//   test_emit.py:{first + 2}  multiply_2" in text.header
    assert "in0 float32[3, 4] to out0 float32[3, 4]" in text.header
    assert "test_emit" not in text.code and "[3, 4]" not in text.code
    assert text.text == text.header + text.code


def test_code_has_one_line_for_each_operation():
    text = one(lambda: gpuad.grad(lambda x: gpuad.sum(gpuad.sin(x) * x))(tensor((5,))))
    lines = [line.strip() for line in text.code.splitlines()]
    assert "const float sin_1 = sin(x0);" in lines
    assert all(line.count(" = ") <= 1 for line in lines)
    assert [p.name for p in text.parameters] == ["in0", "s0", "out0", "size"]


def test_indexes_have_64_bits():
    for text in emitted(lambda: gpuad.sum(softmax(tensor((3, 4))) * tensor((4,)), axis=0)):
        assert "int32" not in text.code
        assert all(
            p.dtype == np.int64 for p in text.parameters if p.kind in ("stride", "axis", "rows", "cols", "chunk")
        )


# --- explain ------------------------------------------------------------------------------------


def explained_and_run(x):
    """What explain() says of `x`, and the code of the kernels that then run."""
    runs = []
    watch = lambda kernel: runs.append(emit(kernel).code)
    said = explain(x)
    watchers.append(watch)
    try:
        x.numpy()
    finally:
        watchers.remove(watch)
    return said, runs


def test_explain_shows_the_kernels_that_will_run():
    x = tensor((6, 5))
    kept = gpuad.exp(x * 2)  # someone else holds it: is it written, or computed again?
    costly = gpuad.tanh(gpuad.tanh(gpuad.tanh(gpuad.tanh(gpuad.tanh(gpuad.tanh(gpuad.tanh(x)))))))
    y = softmax(kept + costly)
    z = gpuad.tanh(gpuad.matmul(y, tensor((5, 4)))) + gpuad.sum(y, axis=-1, keepdims=True)
    said, runs = explained_and_run(gpuad.sum(z * z, axis=0))
    said = "\n".join(line.removeprefix("    ") for line in said.splitlines())
    places = [said.index(code.rstrip()) for code in runs]
    assert places == sorted(places) and len(places) == said.count("one kernel of") > 1
    assert "a library call, matmul(float32[6, 5], float32[5, 4])" in said


def test_explain_computes_nothing():
    x = tensor((6, 5))
    y = gpuad.sum(gpuad.exp(gpuad.sin(x) * 2))
    ran = []
    watch = lambda kernel: ran.extend(kernel.ops if kernel.outputs[0].device is y.device else ())
    watchers.append(watch)
    try:
        first = explain(y)
        assert explain(y) == first
    finally:
        watchers.remove(watch)
    assert not ran and y.array.op is not None and x.array.op is None
    np.testing.assert_allclose(y.numpy(), np.exp(np.sin(x.numpy()) * 2).sum(), rtol=1e-5)


def test_explain_lists_operations_with_their_lines():
    def program(x):
        y = gpuad.sin(x)
        return gpuad.exp(y * 2.0)

    lines = explain(program(tensor((3, 4)))).splitlines()
    first = program.__code__.co_firstlineno
    assert lines[0] == "float32[3, 4] is pending: 3 operations, which become 1 step"
    shown = [line.split() for line in lines if line.startswith("    ")]
    assert ["sin_1", "=", "sin(x0)", "float32[3,", "4]", f"test_emit.py:{first + 1}"] in shown
    assert ["multiply_2", "=", "multiply(sin_1,", "2.0)", "float32[3,", "4]", f"test_emit.py:{first + 2}"] in shown


def test_explain_says_that_a_value_is_computed():
    x = gpuad.exp(tensor((3, 4)))
    x.numpy()
    assert "float32[3, 4] is computed already (test_emit.py:" in explain(x)
