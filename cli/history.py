"""`fedmq history`: what every version was made of, and how good it was."""

import csv
import io
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from .logs import log_options
from .state_folder import state_argument


@click.command()
@state_argument
@click.option("--csv", "style", flag_value="csv", help="Write comma-separated values.")
@click.option("--json", "style", flag_value="json", help="Write one JSON array.")
@log_options
def history(state: Path, style: str | None) -> None:
    """Show every version: when it was made, from what, and its metrics.

    It reads the journal, beside a running broker or without one. STATE_DIR may also be the federation.toml.

    \b
    Example:
      fedmq history state
      fedmq history state --csv > history.csv
    """
    from fedmq.broker.store.history import History

    with History.open(state / "journal.db") as journal:
        rows = journal.history()
    if style == "json":
        click.echo(json.dumps(rows, indent=2))
        return
    if not rows:  # in CSV as well: without a version there are no columns
        if style is None:
            click.echo("no version yet")
        return
    flat = [_flat(row) for row in rows]
    columns = list(dict.fromkeys(key for row in flat for key in row))
    if style == "csv":
        click.echo(_csv(flat, columns), nl=False)
    else:
        click.echo("\n".join(_aligned([row | _readable(row) for row in flat], columns)))


def _flat(row: Mapping[str, Any]) -> dict[str, object]:
    """A version with its metrics as columns of their own: ``federated.loss``."""
    flat: dict[str, object] = {}
    for key, value in row.items():
        flat |= (
            {f"{key}.{name}": inner for name, inner in value.items()}
            if isinstance(value, Mapping)
            else {key: value}
        )
    return flat


def _readable(row: Mapping[str, object]) -> dict[str, object]:
    """What a person reads more easily than a machine: local time, and the beginning of the digest."""
    made = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(str(row["created_at"]))))
    return {"created_at": made, "digest": str(row["digest"])[:12]}


def _csv(rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _aligned(rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> list[str]:
    cells = [list(columns), *([_cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    return ["  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)) for line in cells]


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
