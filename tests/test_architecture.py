"""The layers of ARCHITECTURE.md and the sizes of the house style, read off the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "tersor"
ROWS = [
    ["errors"],
    ["checks"],
    ["spec", "task", "result", "progress", "patterns", "points", "structure"],
    ["tensor", "coding"],
    ["model", "artifact"],
    ["measure"],
    ["calibrate", "export"],
    ["recipe", "train", "allocate", "report"],
    ["pipeline"],
    ["cli"],
]
ROW = {name: row for row, names in enumerate(ROWS) for name in names}
MODULES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")
NO_TORCH = ("coding", "recipe", "cli")  # not even inside a function, but for the commands of cli
TORCH_FOR_TYPES = ("spec", "task", "result", "progress", "points", "structure", "checks", "errors", "report")


def name_of(path):
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


def package(path):
    return name_of(path).partition(".")[0]


def imports(tree, types_too=True):
    """(module, line) of each import; without ``types_too`` those under TYPE_CHECKING are left out."""
    for node in ast.iter_child_nodes(tree):
        for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if for_types and not types_too:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            # `from tersor import x` may mean a package or a public name of the root
            deep = node.module == "tersor"
            yield from (
                (f"{node.module}.{alias.name}" if deep else node.module, node.lineno) for alias in node.names
            )
        else:
            yield from imports(node, types_too)


def at_import_time(tree):
    """The same tree without the bodies of functions: what runs when the module is imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = []
    return tree


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_package_imports_only_from_rows_below(path):
    here = package(path)
    assert here in ROW, f"{here} has no row"
    for target, line in imports(ast.parse(path.read_text())):
        parts = target.split(".")
        if parts[0] != "tersor" or len(parts) == 1 or parts[1] == here or parts[1] not in ROW:
            continue
        assert ROW[parts[1]] < ROW[here], f"{path}:{line} imports {target}"


def test_the_root_is_imported_only_at_the_edge():
    # `import tersor` inside a package would reach everything, whatever its row.
    for path in MODULES:
        for target, line in imports(ast.parse(path.read_text())):
            public = target == "tersor" or (target.startswith("tersor.") and target.split(".")[1] not in ROW)
            if public and not target.endswith("__version__"):
                assert ROW[package(path)] >= ROW["pipeline"], f"{path}:{line} imports {target}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_torch_stays_where_it_belongs(path):
    here, tree = package(path), ast.parse(path.read_text())
    if here in NO_TORCH:
        tree = at_import_time(tree) if here == "cli" else tree
        found = list(imports(tree))
    else:
        found = list(imports(tree, types_too=False)) if here in TORCH_FOR_TYPES else []
    assert not [target for target, _ in found if target.split(".")[0] == "torch"]


@pytest.mark.parametrize("name", ["cli", "coding", "recipe", "report"])
def test_nothing_of_it_imports_torch(name):
    modules = ["tersor", *(f"tersor.{name_of(path)}" for path in MODULES if package(path) == name)]
    code = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("path", [SOURCE / "__init__.py", *MODULES], ids=name_of)
def test_sizes(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 60, f"{path}:{node.lineno} {node.name} has {length} lines"
            given = node.args
            count = len([*given.posonlyargs, *given.args, *given.kwonlyargs])
            count -= bool(given.args) and given.args[0].arg in ("self", "cls")
            assert count <= 8, f"{path}:{node.lineno} {node.name} takes {count} arguments"


def test_every_package_of_the_rows_is_what_it_says():
    found = {package(path) for path in MODULES}
    assert found <= set(ROW), found - set(ROW)


def test_tests_mirror_the_source():
    tests = Path(__file__).parent
    homes = {path.parent.name for path in tests.rglob("test_*.py")} - {"tests", "benchmarks", "examples"}
    assert homes <= set(ROW), homes - set(ROW)
