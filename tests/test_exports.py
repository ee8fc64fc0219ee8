"""What is public is said once, exists, and leaks nothing."""

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

import tersor

PACKAGES = [
    "tersor",
    *(f"tersor.{info.name}" for info in pkgutil.iter_modules(tersor.__path__) if info.ispkg),
]
MODULES = sorted(info.name for info in pkgutil.walk_packages(tersor.__path__, "tersor."))


def test_every_public_name_exists_and_is_public():
    assert len(set(tersor.__all__)) == len(tersor.__all__)
    for name in tersor.__all__:
        value = getattr(tersor, name)
        assert not name.startswith("_") and not inspect.ismodule(value), name
        assert inspect.getdoc(value), f"{name} has no docstring"


def test_the_lazy_names_are_the_typed_ones():
    tree = ast.parse(Path(tersor.__file__).read_text())
    typed = {
        alias.asname or alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        for alias in node.names
    }
    assert typed == {name: f"tersor.{tersor._HOME[name]}" for name in tersor.__all__}
    assert set(tersor._HOME) == set(tersor.__all__)


def test_dir_lists_the_public_names():
    assert set(tersor.__all__) <= set(dir(tersor))
    with pytest.raises(AttributeError, match="kompress"):
        _ = tersor.kompress


@pytest.mark.parametrize("name", MODULES)
def test_a_module_lists_only_what_it_has(name):
    module = importlib.import_module(name)
    assert inspect.getdoc(module), f"{name} has no docstring"
    for public in getattr(module, "__all__", []):
        assert not public.startswith("_") and hasattr(module, public), f"{name}.{public}"


@pytest.mark.parametrize("name", PACKAGES[1:])
def test_a_package_that_gathers_names_lists_them(name):
    tree = ast.parse(Path(importlib.import_module(name).__file__).read_text())
    gathered = {alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom) and
                node.module.startswith("tersor") for alias in node.names}  # fmt: skip
    assert gathered == set(getattr(importlib.import_module(name), "__all__", []))


@pytest.mark.parametrize("name", MODULES)
def test_no_private_name_is_imported_from_elsewhere(name):
    source = Path(importlib.util.find_spec(name).origin).read_text()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("tersor"):
            private = [
                alias.name
                for alias in node.names
                if alias.name.startswith("_") and not alias.name.endswith("__")
            ]
            assert not private, f"{name}:{node.lineno} {private}"
