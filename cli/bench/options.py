"""Options that several benchmarks share: one text for each, so that it means the same everywhere."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])
Decorator = Callable[[Command], Command]


def only_option(name: str, metavar: str, known: Sequence[str]) -> Decorator[Any]:
    """`--only a,b`: a part of what there is, in the order of `known`; without it all."""

    def chosen(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
        parts = list(known) if value is None else [part.strip() for part in value.split(",")]
        if unknown := [part for part in parts if part not in known]:
            raise click.BadParameter(f"{unknown[0]!r} is none of {', '.join(known)}", ctx, param)
        return tuple(part for part in known if part in parts)

    return click.option(
        "--only",
        name,
        callback=chosen,
        metavar=f"{metavar},…",
        help=f"Of {', '.join(known)}.  [default: all]",
    )


seeds_option = click.option(
    "--seeds",
    type=click.IntRange(1, 100),
    help="So many runs of everything; the figures are medians.  [default: 3; quick: 1]",
)

data_dir_option = click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="The folder of fashion-mnist's four IDX files.  [default: Debian's]",
)

validation_option = click.option(
    "--validation",
    is_flag=True,
    help="Measure on a sixth of the training images, kept out: the settings were chosen so.",
)


from_option = click.option(
    "--from",
    "earlier",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    multiple=True,
    metavar="FILE",
    help="What an earlier run wrote there with --json is not measured again; may be given several times.",
)


def plot_option(what: str) -> Decorator[Any]:
    """`--plot FILE.png`: also draw `what`."""
    return click.option(
        "--plot",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE.png",
        help=f"Also draw {what}; needs matplotlib, the extra bench.",
    )
