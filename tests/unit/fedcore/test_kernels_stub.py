"""The stub of the compiled kernels says what the compiled module is.

mypy's own stubtest sees names only: a compiled function has no signature but the first line of its docstring. So both
are parsed here, and compared.
"""

import ast
import importlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fedmq.fedcore import kernels

MODULE = "fedmq.fedcore.kernels._native"

# A parameter: its name, its kind, and its default as it is written.
Parameter = tuple[str, str, str | None]


@pytest.fixture(scope="module")
def native() -> ModuleType:
    """The compiled kernels."""
    if importlib.util.find_spec(MODULE) is None:
        assert os.environ.get("FEDMQ_REQUIRE_NATIVE") != "1"
        pytest.skip("no native kernels in this install")
    return importlib.import_module(MODULE)


@pytest.fixture(scope="module")
def stub() -> ast.Module:
    """The stub that was installed."""
    path = Path(kernels.__file__).with_name("_native.pyi")
    return ast.parse(path.read_text(encoding="utf-8"))


def parameters(function: ast.FunctionDef) -> Iterator[Parameter]:
    """What a function takes."""
    a = function.args
    for kind, names, defaults in (
        ("positional", a.posonlyargs + a.args, a.defaults),
        ("keyword", a.kwonlyargs, a.kw_defaults),
    ):
        written = [None if value is None else ast.unparse(value) for value in defaults]
        padded = [None] * (len(names) - len(written)) + written
        yield from ((each.arg, kind, default) for each, default in zip(names, padded, strict=True))
    assert a.vararg is a.kwarg is None


def described(function: Any) -> ast.FunctionDef:
    """What the first line of a compiled function's docstring says."""
    (parsed,) = ast.parse(f"def {function.__doc__.splitlines()[0]}: ...").body
    assert isinstance(parsed, ast.FunctionDef)
    return parsed


def functions(scope: ast.Module | ast.ClassDef) -> dict[str, list[Parameter]]:
    """The functions or methods of a stub."""
    return {each.name: list(parameters(each)) for each in scope.body if isinstance(each, ast.FunctionDef)}


def test_functions(native: ModuleType, stub: ast.Module) -> None:
    """The same functions, with the same parameters, kinds of parameters and defaults."""
    found = {
        name: list(parameters(described(value)))
        for name, value in vars(native).items()
        if not name.startswith("__") and not isinstance(value, type)
    }
    assert functions(stub) == found


def test_classes(native: ModuleType, stub: ast.Module) -> None:
    """The same classes, with the same methods and their parameters."""
    public = [each for each in stub.body if isinstance(each, ast.ClassDef) and not each.name.startswith("_")]
    classes = {name: value for name, value in vars(native).items() if isinstance(value, type)}
    assert {each.name for each in public} == classes.keys()
    for each in public:
        members = {
            name: list(parameters(described(value)))
            for name, value in vars(classes[each.name]).items()
            if callable(value) and (name == "__init__" or not name.startswith("_"))
        }
        assert functions(each) == members


def test_info(native: ModuleType, stub: ast.Module) -> None:
    """The facts that `info` gives are those of its TypedDict, and of those types."""
    (facts,) = (each for each in stub.body if isinstance(each, ast.ClassDef) and each.name == "_Info")
    declared = {
        ast.unparse(a.target): ast.unparse(a.annotation) for a in facts.body if isinstance(a, ast.AnnAssign)
    }
    assert {name: type(value).__name__ for name, value in native.info().items()} == declared
