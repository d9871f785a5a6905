"""How every command ends: its exit code, and one line that says what was wrong."""

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from fedmq import __version__
from fedmq.cli import main


def test_help_lists_every_command(fedmq) -> None:
    """With a line for each, and how to begin."""
    code, out, _ = fedmq("--help")
    assert code == 0
    for name in main.COMMANDS:
        assert f"\n  {name} " in out
    assert "fedmq init" in out
    assert "Exit codes:" in out


@pytest.mark.parametrize("name", main.COMMANDS)
def test_help_teaches(fedmq, name: str) -> None:
    """A paragraph, and an example to copy."""
    code, out, _ = fedmq(name, "--help")
    assert code == 0
    assert f"fedmq {name}" in out.split("Example:")[1].split("Options:")[0]


def test_version(fedmq) -> None:
    """`fedmq --version` names the installed version."""
    assert fedmq("--version") == (0, f"fedmq, version {__version__}\n", "")


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["stauts"], "fedmq: No such command 'stauts'; did you mean 'status'? Try 'fedmq --help'."),
        (["xyzzy"], "fedmq: No such command 'xyzzy'; 'fedmq --help' lists them. Try 'fedmq --help'."),
        (["worker", "--app", "a:b"], "fedmq: Missing option '--connect'. Try 'fedmq worker --help'."),
        (["init", "--mode", "x"], "fedmq: Invalid value for '--mode': 'x' is not one of 'async', 'sync'. "),
        (["evict", "."], "fedmq: Missing argument 'WORKER'. Try 'fedmq evict --help'."),
    ],
)
def test_wrong_usage_is_one_line_and_2(fedmq, args: list[str], line: str) -> None:
    """What is wrong, and where to read on."""
    code, out, err = fedmq(*args)
    assert (code, out) == (2, "")
    assert err.startswith(line)
    assert err.count("\n") == 1


def test_a_config_error_is_one_line_and_2(fedmq, tmp_path: Path) -> None:
    """The file and the key are named; nothing was made."""
    path = tmp_path / "federation.toml"
    path.write_text("[mode]\nbufer = 1\n")
    code, out, err = fedmq("broker", path)
    assert (code, out) == (2, "")
    assert err == f"fedmq: {path}: mode.bufer is not a key; did you mean mode.buffer?\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_config_says_what_writes_one(fedmq, tmp_path: Path) -> None:
    """The first thing that a newcomer may see."""
    code, _, err = fedmq("broker", tmp_path / "federation.toml")
    assert code == 2
    assert err.endswith('no such file; "fedmq init" writes one\n')


def test_debug_shows_where(fedmq, tmp_path: Path) -> None:
    """A traceback above the line; before and after the command's name."""
    for args in (["--debug", "broker", tmp_path / "x"], ["broker", tmp_path / "x", "--debug"]):
        code, _, err = fedmq(*args)
        assert code == 2
        assert err.startswith("Traceback")
        assert err.splitlines()[-1].startswith("fedmq: ")


def test_a_defect_is_70_and_says_so(fedmq, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not a FedmqError is nobody's fault but ours."""

    @click.command()
    def broken() -> None:
        raise ZeroDivisionError("a\nb")

    monkeypatch.setattr("fedmq.cli.info.info", broken)
    code, _, err = fedmq("info")
    assert code == 70
    assert err == "fedmq: a defect, please report it: ZeroDivisionError: a b; --debug shows where\n"


def test_ctrl_c_says_nothing(fedmq, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line that ^C stands on ends; the exit code is the shells'."""

    @click.command()
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fedmq.cli.info.info", interrupted)
    assert fedmq("info") == (130, "", "\n")


def test_a_closed_pipe_says_nothing() -> None:
    """``fedmq info | head -0``: the reader has what it wanted; click's exit code for that is 1."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        command = [sys.executable, "-m", "fedmq.cli.main", "info"]
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")
