"""`fedmq worker`: what it refuses before it connects to anybody."""

from pathlib import Path

import pytest

URL = ["--connect", "tcp://127.0.0.1:5560"]


@pytest.fixture(autouse=True)
def _somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("app", "message"),
    [
        ("nosuchmodule:app", "no module named 'nosuchmodule'"),
        ("os:nothing", "os has no attribute 'nothing'"),
        ("os:path", "has no methods fit(weights, task) and evaluate(weights, task)"),
    ],
)
def test_an_app_that_does_not_load_is_3(fedmq, tmp_path: Path, app: str, message: str) -> None:
    """One line that says what is wrong with it; no state folder is made."""
    code, out, err = fedmq("worker", *URL, "--app", app)
    assert (code, out) == (3, "")
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_apps_are_looked_for_in_the_current_folder(fedmq, tmp_path: Path) -> None:
    """Where somebody stands who writes one."""
    (tmp_path / "an_app_that_stands_here.py").write_text("raise RuntimeError('found me')")
    code, _, err = fedmq("worker", *URL, "--app", "an_app_that_stands_here:app")
    assert code == 3
    assert "found me" in err


@pytest.mark.parametrize("pair", ["x", "=3", ""])
def test_node_settings_are_pairs(fedmq, pair: str) -> None:
    """`--node` without a key or a value is a usage error."""
    code, _, err = fedmq("worker", *URL, "--app", "a:b", "--node", pair)
    assert code == 2
    assert "write KEY=VALUE, e.g. partition=3." in err


def test_an_address_that_is_none(fedmq, tmp_path: Path) -> None:
    """It is named, with the form that it should have."""
    (tmp_path / "an_app_that_works.py").write_text(
        "class App:\n    def fit(self, weights, task): ...\n    def evaluate(self, weights, task): ...\napp = App()\n"
    )
    code, _, err = fedmq("worker", "--connect", "5560", "--app", "an_app_that_works:app")
    assert code == 2
    assert "tcp://" in err
