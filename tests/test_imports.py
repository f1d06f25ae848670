"""Who may import whom, read from the source: the wings meet only in the IR."""

import ast
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WINGS = {
    "dialect": {"jaxlib", "numpy", "alpa_mlir.dialect"},
    "passes": {
        "jaxlib", "numpy", "scipy", "cvxpy", "highspy", "networkx", "numba", "alpa_mlir.dialect", "alpa_mlir.passes",
    },
    "runtime": {
        "jax", "jaxlib", "ml_dtypes", "numpy", "mpi4py", "cupy", "orbax", "tensorstore",
        "alpa_mlir.dialect", "alpa_mlir.runtime",
    },
    "clusters": set(),
}  # fmt: skip
IMPURE = {"os", "time", "random", "subprocess", "socket", "pathlib", "tempfile", "secrets", "uuid", "threading"}
FILES = [(wing, path) for wing in WINGS for path in sorted((ROOT / wing).rglob("*.py"))]


def imported(path):
    """(line, dotted name) of every import in a file, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def package(name):
    """`alpa_mlir.<wing>` of our own modules, else the top-level package."""
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "alpa_mlir" else parts[0]


def violations(wing, path):
    for line, name in imported(path):
        found = package(name)
        if found not in sys.stdlib_module_names and found not in WINGS[wing]:
            yield f"{path.relative_to(ROOT)}:{line}: {wing} must not import {name}"


@pytest.mark.parametrize(("wing", "path"), FILES, ids=[str(p.relative_to(ROOT)) for _, p in FILES])
def test_imports_only_what_its_wing_may(wing, path):
    assert list(violations(wing, path)) == []


def test_what_is_imported_late_is_there():
    """Names that functions import when they run, commands and benchmarks too, which linters do not look up."""
    folders = ("alpa_mlir", *WINGS, "benchmarks")
    found = {name: path for folder in folders for path in (ROOT / folder).rglob("*.py") for _, name in imported(path)}
    missing = []
    for name, path in found.items():
        module, _, attribute = name.rpartition(".")
        if module.startswith("alpa_mlir") and not hasattr(import_module(module), attribute) and not _is_module(name):
            missing.append(f"{path.relative_to(ROOT)}: {name}")
    assert missing == []


def _is_module(name):
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize("path", [p for w, p in FILES if w == "passes"], ids=lambda p: str(p.relative_to(ROOT)))
def test_passes_are_pure(path):
    """No clock, no environment, no randomness, no files."""
    assert [f"{line}: {name}" for line, name in imported(path) if package(name) in IMPURE] == []
    calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
    opened = [n.lineno for n in calls if isinstance(n.func, ast.Name) and n.func.id == "open"]
    drawn = [n.lineno for n in calls if ast.unparse(n.func).startswith(("np.random.", "numpy.random."))]
    assert (opened, drawn) == ([], [])


def test_the_check_can_fail(tmp_path):
    """The rule itself, on a file that breaks it."""
    bad = ROOT / "passes" / "registry.py"
    names = {name for _, name in imported(bad)}
    assert "alpa_mlir.dialect.diagnostics.Remark" in names
    source = tmp_path / "bad.py"
    source.write_text("import jax\nfrom alpa_mlir.runtime import worker\n")
    found = [name for _, name in imported(source)]
    assert [package(n) in WINGS["passes"] for n in found] == [False, False]
