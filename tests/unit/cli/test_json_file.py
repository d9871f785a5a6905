"""The --json option: refused before the work, written after it."""

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from fedmq.cli.json_file import json_option, keep_json, write_json
from fedmq.fedcore.errors import ConfigError

worked: list[bool] = []


@click.command()
@json_option
def measure(json_file: Path | None) -> None:
    """Work for a while, then write."""
    worked.append(True)
    if not write_json({"seconds": 1.5}, json_file):
        click.echo("a table")


def run(*arguments: str) -> "click.testing.Result":
    worked.clear()
    return CliRunner().invoke(measure, arguments)


@pytest.mark.parametrize("command", ["demo", "bench federation"])
def test_a_file_that_cannot_be_written_ends_the_command_at_once(command: str) -> None:
    """Before the first second of work; also in the real commands."""
    ended = run("--json", "/nonexistent/figures.json")
    assert isinstance(ended.exception, ConfigError)
    assert str(ended.exception) == "/nonexistent/figures.json: cannot be written: No such file or directory"
    assert not worked
    from fedmq.cli.main import fedmq

    real = CliRunner().invoke(fedmq, [*command.split(), "--json", "/nonexistent/figures.json"])
    assert isinstance(real.exception, ConfigError)


def test_a_file_gets_the_figures_and_stdout_the_table(tmp_path: Path) -> None:
    """Over what was there."""
    target = tmp_path / "figures.json"
    target.write_text("of yesterday, and longer than what comes")
    assert run("--json", str(target)).output == "a table\n"
    assert json.loads(target.read_text()) == {"seconds": 1.5}


def test_a_dash_is_stdout_alone() -> None:
    """So that it can be piped."""
    assert json.loads(run("--json", "-").output) == {"seconds": 1.5}


def test_looking_leaves_nothing_behind(tmp_path: Path) -> None:
    """A command that fails later has not made an empty file."""
    fails = click.Command("fails", callback=lambda json_file: 1 / 0)
    target = tmp_path / "figures.json"
    ended = CliRunner().invoke(json_option(fails), ["--json", str(target)])
    assert isinstance(ended.exception, ZeroDivisionError)
    assert not target.exists()


def test_figures_so_far_are_kept_in_a_file_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stdout gets one document, at the end."""
    target, so_far = tmp_path / "figures.json", [1]
    for json_file in (target, Path("-"), None):
        keep = keep_json(lambda: {"seconds": list(so_far)}, json_file)
        keep()
        so_far.append(len(so_far) + 1)
        keep()
        so_far[:] = [1]
    assert json.loads(target.read_text()) == {"seconds": [1, 2]}
    assert capsys.readouterr().out == ""
