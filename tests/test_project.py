"""The project itself: what an import costs, which module may import which, the README, the wheel."""

import ast
import graphlib
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

import gpuad

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
README = ROOT / "README.md"

# Lowest first. A module imports from its own layer and from those before it. An entry is a module, or a package with
# all that is in it; the longest entry that fits decides. "__init__" is gpuad/__init__.py itself.
LAYERS = (
    ("errors", "provenance", "files", "tree", "dtype"),
    ("buffer",),
    ("array", "attribution"),
    ("recording",),
    ("devices.device", "devices.special", "devices.reuse", "devices.words", "fuse"),
    ("devices",),
    ("node", "operators", "exports"),
    ("tensor", "convert"),
    ("trace",),
    ("op",),
    ("ops", "random"),
    ("tape",),
    ("transforms", "remat", "debug", "guards", "replay"),
    ("nn", "optim", "data"),
    ("models", "memory"),
    ("__init__",),
    ("numpy_functions",),
    ("numpy_names",),
    ("info", "training"),
    ("cli", "__main__"),
)

# Imports upwards that are inside a function, as (importer, imported), each with its reason beside it.
UPWARD_ON_CALL: frozenset[tuple[str, str]] = frozenset(
    {
        ("exports", "__init__"),  # __array_namespace__ returns the package
        ("exports", "numpy_names"),  # a NumPy function on a tensor is looked up among all of gpuad's
    }
)

HEAVY = {
    "asyncio",
    "concurrent.futures",
    "cupy",
    "cupyx",
    "email",
    "http",
    "hypothesis",
    "matplotlib",
    "multiprocessing",
    "numpy.f2py",
    "numpy.testing",
    "pynvml",
    "pytest",
    "safetensors",
    "scipy",
    "sklearn",
    "torch",
    "tqdm",
    "unittest",
    "urllib.request",
}


class Import(NamedTuple):
    importer: str
    imported: str
    line: int
    on_call: bool  # inside a function: runs when it is called, not when the module is imported


def module_names(package: Path) -> dict[str, Path]:
    """The modules under `package` by dotted name without the package's own, which is "__init__"."""
    names = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        if len(parts) > 1 and parts[-1] == "__init__":
            parts = parts[:-1]
        names[".".join(parts)] = path
    return names


def imports_in(importer: str, path: Path, package: str, modules: Collection[str]) -> Iterator[Import]:
    """The imports of `package`'s own modules that `path` makes, those for type checking only left out."""

    def module(dotted: str) -> str | None:
        # The module that a name belongs to: gpuad.ops.sin is in ops, gpuad.grad in __init__.
        parts = dotted.split(".")
        if parts[0] != package:
            return None
        for end in range(len(parts), 1, -1):
            if (name := ".".join(parts[1:end])) in modules:
                return name
        return "__init__"

    here = [package, *(part for part in importer.split(".") if part != "__init__")]
    enclosing = here if path.name == "__init__.py" else here[:-1]

    def targets(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
            return
        base = enclosing[: len(enclosing) - node.level + 1] if node.level else []
        prefix = ".".join([*base, node.module] if node.module else base)
        yield from (f"{prefix}.{alias.name}" for alias in node.names)

    def visit(node: ast.AST, on_call: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for imported in sorted({name for target in targets(node) if (name := module(target))} - {importer}):
                yield Import(importer, imported, node.lineno, on_call)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            children = node.orelse
        else:
            children = list(ast.iter_child_nodes(node))
        inside = on_call or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in children:
            yield from visit(child, inside)

    yield from visit(ast.parse(path.read_text(), str(path)), on_call=False)


def imports_of(package: Path) -> list[Import]:
    modules = module_names(package)
    return [found for name, path in modules.items() for found in imports_in(name, path, package.name, modules)]


def layer_of(module: str, layers: Sequence[Collection[str]]) -> int | None:
    """The index of the layer that `module` is in: that of the longest entry which is it or a package around it."""
    parts = module.split(".")
    for end in range(len(parts), 0, -1):
        for index, layer in enumerate(layers):
            if ".".join(parts[:end]) in layer:
                return index
    return None


def upward(imports: Collection[Import], layers: Sequence[Collection[str]]) -> list[Import]:
    """The imports from a layer after the importer's own; a module in no layer counts as below the first."""

    def height(module: str) -> int:
        index = layer_of(module, layers)
        return -1 if index is None else index

    return [found for found in imports if height(found.imported) > height(found.importer)]


def cycle(imports: Collection[Import]) -> list[str]:
    """The modules of one cycle among imports that run when a module is imported; empty when there is none."""
    graph: dict[str, set[str]] = {}
    for found in imports:
        if not found.on_call:
            graph.setdefault(found.importer, set()).add(found.imported)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(reversed(error.args[1]))  # each imports the next
    return []


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A small package with one of each kind of import."""
    files = {
        "__init__.py": "from p.high import f",
        "low.py": "import os\nimport numpy as np\n\n\ndef g():\n    from p import high",
        "mid/__init__.py": "from .a import x",
        "mid/a.py": "import typing\nfrom .. import low\nif typing.TYPE_CHECKING:\n    from p.high import f\nx = 1",
        "mid/b.py": "from p.mid import a, x\nfrom .a import x",
        "high.py": "import p.mid.b\nfrom p.mid.a import x\nfrom p import f",
    }
    for name, text in files.items():
        path = tmp_path / "p" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "p"


def test_imports_are_found_in_every_form(package: Path):
    assert {(found.importer, found.imported, found.on_call) for found in imports_of(package)} == {
        ("__init__", "high", False),
        ("low", "high", True),
        ("mid", "mid.a", False),
        ("mid.a", "low", False),
        ("mid.b", "mid.a", False),
        ("mid.b", "mid", False),
        ("high", "mid.b", False),
        ("high", "mid.a", False),
        ("high", "__init__", False),
    }


def test_an_import_of_a_higher_layer_is_found(package: Path):
    found = upward(imports_of(package), [("low",), ("mid",), ("high",), ("__init__",)])
    assert [(f.importer, f.imported) for f in found] == [("high", "__init__"), ("low", "high")]
    found = upward(imports_of(package), [("low", "high", "__init__", "mid"), ("mid.a",)])
    assert {(f.importer, f.imported) for f in found} == {("mid", "mid.a"), ("mid.b", "mid.a"), ("high", "mid.a")}


def test_a_cycle_of_imports_is_found(package: Path):
    imports = imports_of(package)
    assert set(cycle(imports)) == {"__init__", "high"}
    assert cycle([found for found in imports if found.imported != "__init__"]) == []


def test_every_module_is_in_a_layer():
    modules = module_names(ROOT / "gpuad")
    assert [name for name in modules if layer_of(name, LAYERS) is None] == []


def test_modules_import_downwards_only():
    allowed = [f for f in imports_of(ROOT / "gpuad") if f.on_call and (f.importer, f.imported) in UPWARD_ON_CALL]
    found = [
        f"{f.importer}:{f.line} imports {f.imported}"
        for f in upward(imports_of(ROOT / "gpuad"), LAYERS)
        if f not in allowed
    ]
    assert found == []
    assert {(f.importer, f.imported) for f in allowed} == UPWARD_ON_CALL, "an exception that is no longer needed"


def test_no_modules_import_each_other():
    assert cycle(imports_of(ROOT / "gpuad")) == []


def test_importing_gpuad_imports_nothing_heavy():
    program = (
        "import sys, numpy, ml_dtypes\n"
        "before = set(sys.modules)\n"  # what NumPy needs is not ours to avoid
        "import gpuad\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
    imported = run.stdout.split()
    assert "gpuad" in imported
    assert HEAVY.intersection(imported) == set()


def test_version_is_the_same_in_both_places():
    assert gpuad.__version__ == PYPROJECT["project"]["version"]


def test_the_readme_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if not README.exists():
        pytest.skip("README.md is not written yet")
    example = re.search(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    assert example, "README.md has no ```python block"
    assert len(example[1].splitlines()) <= 15
    monkeypatch.chdir(tmp_path)
    exec(compile(example[1], str(README), "exec"), {"__name__": "__main__"})


@pytest.mark.slow
def test_a_wheel_installed_elsewhere_trains(tmp_path: Path):
    # Neither this checkout nor this environment may be found from the new one.
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}

    def run(*command: str | Path) -> str:
        done = subprocess.run(
            command, cwd=tmp_path, env=environ, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        assert done.returncode == 0, f"{command} gave {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    pip = ("-m", "pip", "-qq", "--disable-pip-version-check")
    run(sys.executable, *pip, "wheel", ROOT, "--no-deps", "--wheel-dir", tmp_path)
    (wheel,) = tmp_path.glob("gpuad-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for path in (ROOT / "kernels").iterdir():
        assert f"gpuad/_kernels/{path.name}" in names
    assert {name.split("/")[0] for name in names} == {
        "gpuad",
        wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info",
    }

    run(sys.executable, "-m", "venv", tmp_path / "venv")
    scripts = tmp_path / "venv" / "bin"
    run(scripts / "python", *pip, "install", wheel)
    run(scripts / "gpuad", "train", "--steps", "2", "--out", "out")
    metrics = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert sum("loss" in row for row in metrics) == 2
    assert PYPROJECT["project"]["version"] in run(scripts / "gpuad", "info")
