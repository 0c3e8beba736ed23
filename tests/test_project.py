"""The house itself: version, imports, floors, sizes, and the habits that a reader would otherwise have to watch."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastconv

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "fastconv"
SOURCES = sorted(PACKAGE.rglob("*.py"))
FILE_LINES, FUNCTION_LINES = 400, 60

# Lowest floor first; modules of one floor may import one another.
FLOORS = (
    ("errors", "random", "precision"),
    ("geometry",),
    ("backends",),
    ("_tape", "_derivatives", "autograd"),
    ("ops", "grad"),
    ("nn",),
    ("io",),
    ("optim", "data", "training"),
    ("models", "plotting", "warmup"),
    ("digits",),
    ("cli", "__main__"),
)
FLOOR_OF = {name: level for level, names in enumerate(FLOORS) for name in names}

# What `import fastconv` must not bring along: optional packages, those needed only by training and files, and Numba,
# which takes longer than all the rest together: the first array brings its backend.
OPTIONAL = ("cupy", "torch", "matplotlib", "sklearn", "PIL", "onnx", "dask", "mpi4py", "scipy")
LAZY = (*OPTIONAL, "numba", "llvmlite", "tqdm", "safetensors")


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def trees() -> list[tuple[Path, ast.Module]]:
    return [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in SOURCES]


def test_version_is_the_top_entry_of_the_changelog():
    heading = re.search(r"^## \[(.+?)\] - ", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert heading is not None
    assert fastconv.__version__ == heading[1]


@pytest.mark.parametrize("name", [module_name(path) for path in SOURCES if path.stem != "__main__"])
def test_every_module_imports_without_the_extras(name):
    assert importlib.import_module(name).__doc__


def test_public_face_is_names_and_no_logic():
    body = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8")).body
    assert ast.get_docstring(ast.Module(body, [])) is not None
    rest = [ast.unparse(node) for node in body[1:] if not isinstance(node, ast.ImportFrom)]
    assert [line for line in rest if not re.fullmatch(r"__version__ = '[^']+'|import fastconv\.\w+ as \w+", line)] == []


def test_the_docstring_is_a_map_of_the_public_names():
    """`help(fastconv)` lists nothing else: to pydoc an imported name belongs elsewhere."""
    public = {name for name, value in vars(fastconv).items() if name[0] != "_" and callable(value)}
    results = {"Explanation", "DeviceError"}  # met, not sought
    sought = {re.sub("[23]d$", "1d", name) for name in public - results}
    assert sought - set(re.findall(r"\w+", fastconv.__doc__)) == set()


def test_import_leaves_optional_packages_alone(tmp_path):
    for name in LAZY:  # present for sure, so that "not imported" cannot mean "not installed"
        (tmp_path / f"{name}.py").write_text("")
    code = f"import json, sys, fastconv; print(json.dumps([name for name in {LAZY} if name in sys.modules]))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))}
    output = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert output.returncode == 0, output.stderr
    assert json.loads(output.stdout) == []


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_a_backend_has_all_that_the_contract_names(backend):
    (contract,) = (tree for path, tree in trees() if path.name == "contract.py")
    named = [node.name for node in ast.walk(contract) if isinstance(node, ast.FunctionDef)]
    module = importlib.import_module(f"fastconv.backends.{backend}")
    assert [name for name in named if not callable(getattr(module, name, None))] == []


def imported_modules(path: Path, tree: ast.Module) -> set[str]:
    """Absolute names of the fastconv modules that a file imports anywhere, inside functions too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in names if node.module == "fastconv"} or {node.module}
    return {name for name in found if name.partition(".")[0] == "fastconv"}


@pytest.mark.parametrize(("path", "tree"), trees(), ids=lambda value: module_name(value) if value in SOURCES else "")
def test_no_floor_imports_from_a_floor_above(path, tree):
    parts = module_name(path).split(".")
    if parts == ["fastconv"]:
        return
    assert parts[1] in FLOOR_OF, f"fastconv.{parts[1]} has no floor yet: name it in FLOORS and in CONTRIBUTING.md"
    own = FLOOR_OF[parts[1]]
    used = {name.split(".")[1] if "." in name else "(the package itself)" for name in imported_modules(path, tree)}
    above = {name for name in used if FLOOR_OF.get(name, len(FLOORS)) > own}
    assert above == set() or (parts[1] == "cli" and above <= {"__version__", "(the package itself)"})


def test_kernels_use_our_own_threads():
    """`prange` and `parallel=True` would bring Numba's pools: no concurrent calls, no fork, silent serial runs."""
    offences = []
    for path, tree in trees():
        for node in ast.walk(tree):
            named = getattr(node, "id", getattr(node, "attr", getattr(node, "name", None)))
            if named == "prange" or (isinstance(node, ast.keyword) and node.arg == "parallel"):
                offences.append(f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', '?')}")
    assert offences == []


def compiled_as(function: ast.AST) -> str | None:
    """The decorator that makes a function part of the compiled code, or None."""
    for decorator in getattr(function, "decorator_list", ()):
        name = getattr(getattr(decorator, "func", decorator), "id", None)
        if name in ("kernel", "shared", "routine", "inlined", "embedded", "intrinsic"):
            return str(name)
    return None


def test_routines_are_called_by_kernels_alone():
    """A routine has no way in from Python: such a call would compute nothing."""
    kernels = [(path, tree) for path, tree in trees() if path.parent.name == "cpu"]
    routines = {
        (module_name(path), node.name)
        for path, tree in kernels
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and compiled_as(node) in ("routine", "inlined")
    }
    assert len(routines) > 20
    offences = []
    for path, tree in kernels:
        imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
        named = {name for module, name in routines if module == module_name(path)}
        named |= {a.name for node in imports for a in node.names if (node.module, a.name) in routines}
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef) and compiled_as(function) is None:
                calls = [node for node in ast.walk(function) if isinstance(node, ast.Name) and node.id in named]
                offences += [f"{path.name}:{node.lineno} {function.name} → {node.id}" for node in calls]
    assert offences == []


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    docstring = function.body[0] if ast.get_docstring(function) else None
    described = docstring.end_lineno - docstring.lineno + 1 if docstring else 0
    return function.end_lineno - function.lineno + 1 - described


def test_files_and_functions_stay_short():
    report = sorted(((len(path.read_text(encoding="utf-8").splitlines()), path) for path in SOURCES), reverse=True)
    print("\n".join(f"{lines:5} {path.relative_to(ROOT)}" for lines, path in report))
    print(f"{sum(lines for lines, _ in report):5} in all")
    long = [f"{path.relative_to(ROOT)}: {lines} lines" for lines, path in report if lines > FILE_LINES]
    for path, tree in trees():
        functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
        sizes = {f"{path.relative_to(ROOT)}:{node.lineno} {node.name}": code_lines(node) for node in functions}
        long += [f"{name}: {lines} lines" for name, lines in sizes.items() if lines > FUNCTION_LINES]
    assert long == []
