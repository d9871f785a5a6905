"""What the demo found: its numbers, as JSON for machines and as a table for people."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ..status_view import size

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Arm", "Made", "Report", "footnotes", "lines", "rich_table"]

_COLUMNS: Final = ("", "accuracy", "vs. central", "versions", "updates", "up", "down", "seconds")


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """What a federation made of its arm, from its journal.

    Attributes
    ----------
    versions, updates : int
        Versions after the first, and the updates that are in them.
    bytes_up, bytes_down : int
        From and to all workers together, as the broker counted them.
    digest : str
        Of the last version's file: XXH3-128 in hexadecimal.
    kernels : str
        ``"native"`` or ``"python"``.
    """

    versions: int
    updates: int
    bytes_up: int
    bytes_down: int
    digest: str
    kernels: str


class Arm(msgspec.Struct, frozen=True, kw_only=True):
    """One way to train: what it is called, how good its model is on the test images, and what it took.

    `seconds` are of the wall clock, with the start of all processes; `made` is None where there was no
    federation.
    """

    name: str
    accuracy: float
    seconds: float
    made: Made | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The comparison: three arms on the same images, and what the private one's privacy is.

    Attributes
    ----------
    epsilon, delta : float
        What the steps that were made cost, by the accountant.
    noise_multiplier, sampling_rate, steps
        What the accountant was told.
    seconds : float
        The whole command.
    """

    data: str
    mode: str
    partition: str
    app: str
    seed: int
    workers: int
    central: Arm
    federated: Arm
    private: Arm
    epsilon: float
    delta: float
    noise_multiplier: float
    sampling_rate: float
    steps: int
    seconds: float

    @property
    def arms(self) -> tuple[Arm, Arm, Arm]:
        """In the order in which they ran."""
        return self.central, self.federated, self.private

    def document(self) -> dict[str, Any]:
        """What ``--json`` writes; counts, bytes and digest are of the federation without privacy."""
        made = self.federated.made
        assert made is not None  # a federation always made something
        return {
            "data": self.data,
            "mode": self.mode,
            "partition": self.partition,
            "app": self.app,
            "seed": self.seed,
            "workers": self.workers,
            "versions": made.versions,
            "updates": made.updates,
            "seconds": round(self.seconds, 3),
            "bytes_up": made.bytes_up,
            "bytes_down": made.bytes_down,
            "accuracy": {
                "centralized": self.central.accuracy,
                "federated": self.federated.accuracy,
                "federated_dp": self.private.accuracy,
            },
            "epsilon": self.epsilon,
            "delta": self.delta,
            "kernels": made.kernels,
            "model_digest": made.digest,
        }


def title(report: Report) -> str:
    """One line that says what was compared."""
    made = report.federated.made
    kernels = f", {made.kernels} kernels" if made is not None else ""
    crowd = f"{report.workers} worker{'' if report.workers == 1 else 's'} ({report.partition}, {report.mode})"
    return f"{report.data}, {crowd}, {report.app}{kernels}, seed {report.seed}"


def cells(report: Report) -> list[tuple[str, ...]]:
    """The table's rows as text; the first column names the arm."""
    return [_row(arm, report.central.accuracy) for arm in report.arms]


def lines(report: Report) -> list[str]:
    """The table in plain characters."""
    rows: Sequence[tuple[str, ...]] = [_COLUMNS, *cells(report)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    return [
        "  ".join(
            f"{cell:<{width}}" if column == 0 else f"{cell:>{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def rich_table(report: Report) -> "Table":
    """The table for a terminal; only where `rich` is installed."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title=title(report), title_justify="left", header_style="dim")
    for column in _COLUMNS:
        table.add_column(
            column,
            justify="right" if column else "left",
            style={"": "bold", "accuracy": "bold green"}.get(column, ""),
            no_wrap=True,
        )
    for row in cells(report):
        table.add_row(*row)
    return table


def footnotes(report: Report) -> list[str]:
    """What the private arm promises, to whom, and what that rests on."""
    return [
        f"Privacy: ε = {report.epsilon:.2f} at δ = {report.delta:g} for every single training image: {report.steps} "
        f"steps, each on a Poisson sample (q = {report.sampling_rate:g}) of gradients that were clipped one by one, "
        f"with noise multiplier {report.noise_multiplier:g}.",
        "Trusted: the broker, which sees each worker's exact sum and draws the noise once, and each worker with its "
        "own images. The promise holds against everybody who sees the versions that the broker releases.",
    ]


def _row(arm: Arm, central: float) -> tuple[str, ...]:
    made = arm.made
    traffic = (
        ("", "", "", "")
        if made is None
        else (f"{made.versions}", f"{made.updates}", size(made.bytes_up), size(made.bytes_down))
    )
    return (
        arm.name,
        f"{arm.accuracy:.1%}",
        _gap(arm.accuracy - central, made),
        *traffic,
        f"{arm.seconds:.1f}",
    )


def _gap(difference: float, made: Made | None) -> str:
    """In points of a percent, with a sign; the baseline itself has none."""
    return "" if made is None else f"{100 * difference:+.1f}".replace("-", "\N{MINUS SIGN}")
