"""The picture of the races: accuracy over virtual time, a row for each condition, a column for each partition.

Of encodings there is a second row, over the bytes that were sent. Legends stand below the panels, not in them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from .measure import Found, Measured
from .race import Curve, smoothed
from .settings import PARTITIONS

__all__ = ["draw"]

_WIDTH: Final = 10.0
"""Inches: at a page's usual width the smallest letters can be read."""
_ROW: Final = 3.1
"""Inches that a row is high."""
_DPI: Final = 120
_COLOURS: Final = ("#1b6ca8", "#d1603d", "#3a8f5c", "#7a5195", "#c9a227")
"""Of as many lines as a panel has."""

_Along = Callable[[Curve], np.ndarray]


class _Row(msgspec.Struct, frozen=True):
    title: str
    along: _Along
    unit: str
    races: list[Measured] = []


def draw(found: Found, path: Path) -> None:
    """Write the picture: the smoothed curve of the first seed, pale lines for the others."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = _rows(found)
    figure = Figure(figsize=(_WIDTH, 0.5 + _ROW * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    seeds = "one seed" if found.seeds == 1 else f"{found.seeds} seeds, all but the first one pale"
    figure.suptitle(f"{found.data}, measured on {found.measured_on}: {seeds}", fontsize=10)
    parts = figure.subfigures(len(rows), 1, squeeze=False).ravel()
    for part, row in zip(parts, rows, strict=True):
        _draw_row(part, row, found)
    figure.savefig(path, dpi=_DPI)


def _rows(found: Found) -> list[_Row]:
    rows: dict[str, _Row] = {}
    for each in found.races:
        entry = each.entry
        title = ", ".join(part for part in (entry.topic, entry.condition) if part)
        rows.setdefault(title, _Row(title, _minutes, "virtual minutes", [])).races.append(each)
        if entry.topic == "compression":
            sent = f"{title}, by what was sent"
            rows.setdefault(sent, _Row(sent, _megabytes, "MB of updates", [])).races.append(each)
    return list(rows.values())


def _minutes(curve: Curve) -> np.ndarray:
    return np.array(curve.times_s) / 60


def _megabytes(curve: Curve) -> np.ndarray:
    return curve.sent_by_version / 1e6


def _draw_row(part: Any, row: _Row, found: Found) -> None:
    part.suptitle(row.title, fontsize=10, fontweight="bold")
    columns = [each for each in PARTITIONS if any(one.entry.partition == each for one in row.races)]
    axes = part.subplots(1, len(columns), sharey=True, squeeze=False).ravel()
    names = list(dict.fromkeys(each.entry.name for each in row.races))
    lines: dict[str, Any] = {}
    for axis, partition in zip(axes, columns, strict=True):
        for each in row.races:
            if each.entry.partition == partition:
                name = each.entry.name
                lines[name] = _draw_race(axis, each, row.along, _COLOURS[names.index(name) % len(_COLOURS)])
        if found.central and row.races[0].entry.topic == "accuracy":
            central = 100 * float(np.median(found.central))
            lines["in one place"] = axis.axhline(central, color="#444444", linestyle=":", linewidth=1.2)
        axis.set_title(partition, fontsize=9)
        axis.set_xlabel(row.unit, fontsize=9)
        axis.set_xlim(left=0)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy, %", fontsize=9)
    axes[0].set_ylim(*_limits(row.races, found.central))
    part.legend(lines.values(), lines.keys(), fontsize=8, loc="outside lower center", ncols=len(lines))


def _draw_race(axis: Any, race: Measured, along: _Along, colour: str) -> Any:
    """Every seed's line; the first one's is what the legend shows."""
    drawn = [
        axis.plot(
            along(curve),
            100 * smoothed(curve.accuracies),
            color=colour,
            alpha=0.3 if seed else 1.0,
            linewidth=0.8 if seed else 1.6,
        )[0]
        for seed, curve in enumerate(race.curves)
    ]
    return drawn[0]


def _limits(races: list[Measured], central: list[float]) -> tuple[float, float]:
    """The last ten points of the climb, and where somebody ends lower, that."""
    finals = [each.final for each in races]
    highest = [*finals, *(central if races[0].entry.topic == "accuracy" else [])]
    return 100 * max(min(finals) - 0.1, 0), 100 * min(max(highest) + 0.02, 1)
