"""From ``module:attribute`` to an app: what may be named, and what is said when it cannot be loaded."""

import sys
from pathlib import Path

import pytest

from fedmq.fedcore.app_loading import load_app, resolve_app
from fedmq.fedcore.apps import ClientApp
from fedmq.fedcore.errors import ClientAppError


class App:
    """The smallest client app, with a name to know it by."""

    def __init__(self, name: str = "") -> None:
        self.name = name

    def fit(self, weights: object, task: object) -> None:
        """Not called here."""

    def evaluate(self, weights: object, task: object) -> None:
        """Not called here."""


class Foreign:
    """Somebody else's kind of app."""


def with_node(node: dict[str, str]) -> App:
    return App(node["site"])


def broken() -> App:
    raise RuntimeError("no data here")


def of_two(first: int, second: int) -> App:
    return App(str(first + second))


def adapt(target: object, node: dict[str, str]) -> ClientApp | None:
    return App(f"adapted for {node.get('site')}") if isinstance(target, Foreign) else None  # type: ignore[return-value]


@pytest.mark.parametrize("target", [App("x"), App, lambda: App("x")], ids=["object", "class", "function"])
def test_an_app_is_an_object_or_what_makes_one(target: object) -> None:
    """A class or a function is called without arguments."""
    assert isinstance(resolve_app(target), App)


def test_what_makes_an_app_may_ask_for_the_node() -> None:
    """The settings of the worker that it runs in."""
    found = resolve_app(with_node, node={"site": "ward-3"})
    assert isinstance(found, App)
    assert found.name == "ward-3"


@pytest.mark.parametrize(
    "target", [Foreign(), Foreign, lambda: Foreign()], ids=["object", "class", "function"]
)
def test_an_adapter_turns_what_it_knows_into_an_app(target: object) -> None:
    """Before and after it was made; without the adapter it is no app."""
    found = resolve_app(target, node={"site": "a"}, adapters=[adapt])
    assert isinstance(found, App)
    assert found.name == "adapted for a"
    with pytest.raises(ClientAppError, match="has no methods fit"):
        resolve_app(target)


class OnlyFits:
    """An app that cannot measure, and says so."""

    kinds = ("fit",)

    def fit(self, weights: object, task: object) -> None: ...


class OnlyMeasures:
    """One that does not do what it says."""

    kinds = ("fit",)

    def evaluate(self, weights: object, task: object) -> None: ...


def test_an_app_has_the_methods_of_its_kinds() -> None:
    """One that names only `fit` needs no `evaluate`."""
    assert isinstance(resolve_app(OnlyFits), OnlyFits)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (3, "has no methods fit"),
        (OnlyMeasures, "has no methods fit"),
        (broken, "raised RuntimeError: no data here"),
        (of_two, "it takes first, second"),
    ],
    ids=["no app", "not what it says", "raises", "asks too much"],
)
def test_what_is_no_app_is_said(target: object, message: str) -> None:
    """With what it is, or what it did."""
    with pytest.raises(ClientAppError, match=message):
        resolve_app(target)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder, which is not on the path yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    return tmp_path


def test_a_module_of_the_current_folder_is_found(here: Path) -> None:
    """As `python` itself does; attributes of attributes, too."""
    (here / "found_here_app.py").write_text(
        "class Holder:\n    class App:\n        def fit(self, w, t): ...\n        def evaluate(self, w, t): ...\n"
    )
    assert type(load_app("found_here_app:Holder.App")).__qualname__ == "Holder.App"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("no_colon", "expected module:attribute"),
        ("apps/mine.py:app", "give the module's name, not its path: apps.mine:app"),
        ("not_there_app:app", "no module named 'not_there_app'; look at the current folder"),
        ("needs_more_app:app", "no module named 'not_installed_lib', which needs_more_app imports"),
        ("raises_app:app", "importing raises_app raised ValueError: bad luck"),
        ("exits_app:app", "importing exits_app raised SystemExit"),
        ("fine_app:ap", "has no attribute 'ap'; it has 'app'"),
        ("fine_app:app", "has no methods fit"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(here: Path, spec: str, message: str) -> None:
    """The name as it was given, what went wrong, and what to look at."""
    (here / "needs_more_app.py").write_text("import not_installed_lib\n")
    (here / "raises_app.py").write_text("raise ValueError('bad luck')\n")
    (here / "exits_app.py").write_text("raise SystemExit(1)\n")
    (here / "fine_app.py").write_text("app = 3\n")
    with pytest.raises(ClientAppError, match=message) as caught:
        load_app(spec)
    assert str(caught.value).startswith(f"cannot load the client app {spec!r}: ")
    assert "\n" not in str(caught.value)
