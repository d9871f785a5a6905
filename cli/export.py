"""`fedmq export`: a version as a safetensors file with the user's own dtypes and names."""

import math
from pathlib import Path

import click

from fedmq.fedcore.errors import ConfigError, StateError

from .logs import log_options
from .state_folder import state_argument

_SOURCES = ("federated", "broker")


@click.command()
@state_argument
@click.argument("out", metavar="OUT.safetensors", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--version", type=click.IntRange(0), help="This version.  [default: the latest]")
@click.option("--best", metavar="METRIC", help="The best kept version by it; of a loss, the lowest.")
@click.option("--force", is_flag=True, help="Overwrite a file that is there.")
@log_options
def export(state: Path, out: Path, version: int | None, best: str | None, force: bool) -> None:
    """Write a version as a safetensors file.

    Tensors have the dtypes and names that they had in the model that the federation started from. It works
    beside a running broker or without one. METRIC is one of "fedmq history"; where workers and the broker
    both measured it, the workers' value counts, unless it is written broker.METRIC.

    \b
    Example:
      fedmq export state model.safetensors
      fedmq export state --best accuracy best.safetensors
    """
    from fedmq.broker.store.versions import VersionStore
    from fedmq.fedcore import model_file

    if version is not None and best is not None:
        raise click.UsageError("--version and --best exclude each other.")
    if out.exists() and not force:
        raise ConfigError(f"{out}: is there already; --force overwrites it")
    folder = state / "versions"
    store = VersionStore(folder) if folder.is_dir() else None
    kept = store.versions() if store else ()
    if store is None or not kept:
        raise StateError(f"{state}: has no version yet")
    number = _best(state, best, kept) if best else kept[-1] if version is None else version
    if number not in kept:
        raise StateError(f"{state}: version {number} is not kept; there are {', '.join(map(str, kept))}")
    part = out.with_name(f"{out.name}.part")
    try:
        part.unlink(missing_ok=True)
        model_file.write_chunks(part, model_file.export(store.file(number)))
        part.replace(out)
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written: {error.strerror}") from error
    click.echo(f"wrote version {number} to {out}")


def _best(state: Path, metric: str, kept: tuple[int, ...]) -> int:
    """The kept version with the best value of a metric; the earlier one of equals."""
    from fedmq.broker.store.history import History
    from fedmq.fedcore.config import lower_is_better

    with History.open(state / "journal.db") as journal:
        rows = [row for row in journal.history() if row["version"] in kept]
    known = {f"{source}.{name}" for row in rows for source in _SOURCES for name in row[source]}
    for column in (metric, *(f"{source}.{metric}" for source in _SOURCES)):
        if column in known:
            source, _, name = column.partition(".")
            values: dict[int, float] = {
                row["version"]: row[source][name] for row in rows if name in row[source]
            }
            sign = -1 if lower_is_better(name) else 1
            return max(kept, key=lambda version: (sign * values.get(version, -sign * math.inf), -version))
    there_are = ", ".join(sorted(known)) or "none yet"
    raise StateError(f"{state}: no kept version was measured by {metric!r}; there are: {there_are}")
