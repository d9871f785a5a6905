"""The STATE_DIR argument: the folder of one broker, by its own path or by its federation.toml."""

from pathlib import Path

import click

from fedmq.fedcore.errors import StateError


def _state_folder(ctx: click.Context, param: click.Parameter, path: Path) -> Path:
    """A broker's state folder; a .toml file stands for the folder that it names."""
    if path.suffix == ".toml" and path.is_file():
        from fedmq.fedcore import config

        path = Path(config.load(path).federation.state)
    if not path.is_dir():
        raise StateError(
            f"{path}: there is no such state folder; it is the one that [federation] state names, "
            "and the broker makes it when it first starts"
        )
    return path


state_argument = click.argument(
    "state", metavar="STATE_DIR", type=click.Path(path_type=Path), callback=_state_folder
)
