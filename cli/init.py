"""`fedmq init`: write a commented federation.toml."""

import os
from pathlib import Path

import click

from fedmq.fedcore.errors import ConfigError

from .logs import log_options


@click.command()
@click.argument("target", type=click.Path(path_type=Path), default="federation.toml")
@click.option("--name", default="federation", show_default=True, help="The federation's name.")
@click.option(
    "--mode",
    type=click.Choice(["async", "sync"]),
    default="async",
    show_default=True,
    help="A version per full buffer, or per round.",
)
@click.option("--force", is_flag=True, help="Overwrite a file that is there.")
@log_options
def init(target: Path, name: str, mode: str, force: bool) -> None:
    """Write a commented federation.toml.

    TARGET is the .toml file to write, or a folder to write federation.toml into. Every key stands in it with
    its default and what it means.

    \b
    Example:
      fedmq init wards/federation.toml --name wards
      fedmq broker wards/federation.toml
    """
    from fedmq.fedcore import config

    path = target if target.suffix == ".toml" else target / "federation.toml"
    text = config.template(name=name, mode=mode)
    config.parse(text, base_dir=path.parent)  # a name that the broker would refuse is refused here
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(f"{path}: is there already; --force overwrites it") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {os.strerror(error.errno or 0)}") from error
    click.echo(f"wrote {path}; start it with: fedmq broker {path}")
