"""The ``--json FILE`` option of commands that measure: checked before minutes of work, written after them.

Those that work for longer write what they have as they go.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from fedmq.fedcore.errors import ConfigError

__all__ = ["check_writable", "json_option", "keep_json", "write_json"]

F = TypeVar("F", bound=Callable[..., object])


def json_option(command: F) -> F:
    """Add ``--json FILE`` as the parameter `json_file`; a file that cannot be written ends the command now."""
    option = click.option(
        "--json",
        "json_file",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        callback=_writable,
        help="Also write the figures there; - is stdout.",
    )
    return option(command)


def write_json(document: Mapping[str, Any], json_file: Path | None) -> bool:
    """Write the figures where they were asked for; whether that was stdout, which is theirs alone then.

    Raises
    ------
    ConfigError
        When the file cannot be written after all.
    """
    if json_file is None:
        return False
    text = json.dumps(document, indent=2)
    if str(json_file) == "-":
        click.echo(text)
        return True
    try:
        json_file.write_text(f"{text}\n", encoding="utf-8")
    except OSError as error:
        raise _unwritable(json_file, error) from error
    return False


def keep_json(document: Callable[[], Mapping[str, Any]], json_file: Path | None) -> Callable[[], None]:
    """What writes the figures so far, so that whoever ends long work without a word loses no more than the last.

    Parameters
    ----------
    document : callable
        Makes what there is by now.
    json_file : path or None
        With stdout, or without a file, nothing is written before the end.
    """

    def keep() -> None:
        if json_file is not None and str(json_file) != "-":
            write_json(document(), json_file)

    return keep


def check_writable(file: Path) -> None:
    """Refuse before minutes of work what could not be written after them; leaves nothing behind.

    Raises
    ------
    ConfigError
        When the file cannot be written.
    """
    existed = file.exists()
    try:
        file.open("ab").close()
    except OSError as error:
        raise _unwritable(file, error) from error
    if not existed:
        file.unlink()


def _writable(ctx: click.Context, param: click.Parameter, json_file: Path | None) -> Path | None:
    if json_file is not None and str(json_file) != "-":
        check_writable(json_file)
    return json_file


def _unwritable(json_file: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{json_file}: cannot be written: {error.strerror}")
