"""`fedmq demo` refuses at once what it cannot do, in one line that says what to do instead."""

import importlib.util
from pathlib import Path

import pytest

MISSING = {"dp_accounting": "privacy", "sklearn": "sklearn", "torch": "torch"}


def without(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """As if these were not installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name in modules else find(name, *rest)
    )


@pytest.mark.parametrize(
    ("modules", "arguments", "line"),
    [
        (["dp_accounting"], [], "dp-accounting, not installed here: pip install 'fedmq[privacy]'"),
        (["sklearn"], [], "scikit-learn, not installed here: pip install 'fedmq[sklearn]'"),
        (["torch"], ["--app", "torch"], "torch, not installed here: pip install 'fedmq[torch]'"),
        (
            ["dp_accounting", "sklearn"],
            [],
            "dp-accounting and scikit-learn, not installed here: pip install 'fedmq[privacy,sklearn]'",
        ),
    ],
)
def test_a_missing_library_is_named_with_its_extra(
    fedmq, monkeypatch: pytest.MonkeyPatch, modules: list[str], arguments: list[str], line: str
) -> None:
    """All that is missing, in one command to copy; nothing was started."""
    without(monkeypatch, *modules)
    assert fedmq("demo", *arguments) == (2, "", f"fedmq: fedmq demo needs {line}\n")


def test_digits_need_no_torch_and_fashion_no_scikit_learn(
    fedmq, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What is not used is not asked for: it gets as far as looking for the images."""
    without(monkeypatch, "torch", "sklearn")
    code, _, err = fedmq("demo", "--data", "fashion-mnist", "--data-dir", tmp_path)
    assert code == 2
    assert "apt install dataset-fashion-mnist" in err
    assert "--data-dir" in err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--partition", "even"], 'partition is "even"; it may be "iid" or "dirichlet:ALPHA"'),
        (["--data", "cifar"], "'cifar' is not one of 'digits', 'fashion-mnist'"),
        (["--workers", "0"], "0 is not in the range 1<=x<=64"),
        (["--mode", "round"], "'round' is not one of 'async', 'sync'"),
    ],
)
def test_a_wrong_option_is_one_line(fedmq, arguments: list[str], line: str) -> None:
    """Before anything is trained."""
    code, out, err = fedmq("demo", *arguments)
    assert (code, out) == (2, "")
    assert line in err
    assert err.count("\n") == 1


def test_a_folder_that_holds_something_is_refused(fedmq, tmp_path: Path) -> None:
    """It may be an earlier run's, or anybody's."""
    (tmp_path / "mine").touch()
    assert fedmq("demo", "--state", tmp_path) == (
        2,
        "",
        f"fedmq: --state {tmp_path} is not empty; name a new folder\n",
    )
