"""The house's rules: which room may import what, and what an edge worker never loads."""

import ast
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("broker", "cli", "fedcore", "worker")
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))

# The only files that may touch a socket.
ZMQ_FILES = {"broker/auth.py", "broker/transport.py", "worker/transport.py"}
# Which rooms a room may import, besides itself.
BELOW = {
    "fedcore": set(),
    "worker": {"fedcore"},
    "broker": {"fedcore"},
    "cli": {"broker", "fedcore", "worker"},
}
# What only some installs have: never at module level, but where a room's extra brings it.
HEAVY = {
    "dp_accounting", "flwr", "matplotlib", "opacus", "prometheus_client", "rich", "safetensors", "sklearn", "starlette",
    "torch", "uvicorn",
}  # fmt: skip
# What an edge worker must not pay for.
NOT_FOR_WORKERS = {*HEAVY, "sqlite3", "fedmq.broker", "fedmq.cli"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path, *, module_level: bool = False) -> Iterator[str]:
    """Yield the absolute dotted name of everything that a file imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = ["fedmq", *PurePosixPath(name_of(path)).parent.parts]
    for node in _at_import(tree) if module_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """Walk what runs when the module is imported: no function bodies, no TYPE_CHECKING blocks."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield from (inner for other in node.orelse for inner in [other, *_at_import(other)])
            continue
        yield node
        yield from _at_import(node)


def test_imports_point_down() -> None:
    """A room imports only rooms below it; broker and worker never see each other."""
    wrong = []
    for path in FILES:
        room = path.relative_to(ROOT).parts[0]
        for name in imports(path):
            top, _, rest = name.partition(".")
            target = rest.partition(".")[0]
            if top == "fedmq" and target in ROOMS and target not in BELOW[room] | {room}:
                wrong.append(f"{name_of(path)} imports {name}")
    assert not wrong


def test_packages_import_each_other_absolutely() -> None:
    """A relative import stays inside its room."""
    wrong = []
    for path in FILES:
        depth = len(path.relative_to(ROOT).parent.parts)
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        relative = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.level]
        wrong += [f"{name_of(path)}:{node.lineno}" for node in relative if node.level > depth]
    assert not wrong


def test_sockets_are_touched_in_three_files_only() -> None:
    """Transports and authenticator, and `fedmq info`, which asks zmq for its version."""
    users = {name_of(path) for path in FILES if any(name.split(".")[0] == "zmq" for name in imports(path))}
    assert users <= ZMQ_FILES | {"cli/info.py"}


def test_heavy_libraries_are_loaded_on_use() -> None:
    """Nothing optional is imported at module level, but where a file that is itself loaded on use is about it."""
    wrong = [
        f"{name_of(path)} imports {name}"
        for path in FILES
        for name in imports(path, module_level=True)
        if name.split(".")[0] in HEAVY and not _is_about(path, name.split(".")[0])
    ]
    assert not wrong


def _is_about(path: Path, library: str) -> bool:
    """Adapters, the broker's HTTP port, and files of the command line with the library's name, as torch_network."""
    name = name_of(path)
    if name == "broker/http.py":
        return library in {"prometheus_client", "starlette", "uvicorn"}
    return name.startswith("worker/adapters/") or (name.startswith("cli/") and library in path.stem)


def test_a_function_lives_with_its_noun() -> None:
    """There is no drawer for odds and ends."""
    drawers = {"common", "helper", "helpers", "misc", "util", "utils"}
    found = [p for p in FILES if drawers & set(p.relative_to(ROOT).with_suffix("").parts)]
    assert not found


def test_every_file_says_what_it_is_for() -> None:
    """Each module opens with a docstring."""
    silent = [name_of(p) for p in FILES if not ast.get_docstring(ast.parse(p.read_text(encoding="utf-8")))]
    assert not silent


def test_there_is_no_folder_that_shadows_the_package() -> None:
    """A root folder called fedmq would be imported in place of the installed one."""
    assert not (ROOT / "fedmq").exists()


def test_every_folder_is_a_package() -> None:
    """A folder without __init__.py would be left out by tools that walk packages."""
    missing = {name_of(path.parent) for path in FILES if not (path.parent / "__init__.py").exists()}
    assert not missing


@pytest.mark.parametrize("module", ["fedmq.worker", "fedmq.worker.daemon"])
def test_a_worker_loads_nothing_of_the_broker(module: str) -> None:
    """An edge program pays for neither torch, safetensors, sqlite3, rich nor any broker code."""
    code = f"import {module}, json, sys; print(json.dumps(list(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = set(json.loads(found.stdout))
    assert module in loaded
    assert not NOT_FOR_WORKERS & loaded


def test_what_was_installed_is_this_checkout() -> None:
    """The tests run against an install; each file of the checkout must be in it, as it is here."""
    spec = importlib.util.find_spec("fedmq")
    assert spec is not None
    assert spec.origin is not None
    installed = Path(spec.origin).parent
    stale = [name_of(path) for path in FILES if (installed / name_of(path)).read_bytes() != path.read_bytes()]
    assert not stale
