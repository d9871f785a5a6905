"""The picture of the races: accuracy over virtual time, a panel for each condition and partition."""

from pathlib import Path
from typing import Any, Final

import numpy as np

from .measure import Found, Measured
from .race import smoothed

__all__ = ["draw"]

_COLUMNS: Final = 4


def draw(found: Found, path: Path) -> None:
    """Write the picture: the smoothed curve of the first seed, pale lines for the others."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels: dict[tuple[str, str, str], list[Measured]] = {}
    for each in found.races:
        entry = each.entry
        panels.setdefault((entry.topic, entry.condition, entry.partition), []).append(each)
    rows = -(-len(panels) // _COLUMNS) or 1
    figure = Figure(figsize=(4.6 * _COLUMNS, 3.4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for axis, ((topic, condition, partition), races) in zip(axes, panels.items(), strict=False):
        _panel(axis, races, found)
        axis.set_title(", ".join(part for part in (topic, condition, partition) if part), fontsize=9)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    figure.suptitle(f"Accuracy over virtual time: {found.data}; pale: other seeds")
    figure.savefig(path, dpi=100)


def _panel(axis: Any, races: list[Measured], found: Found) -> None:
    for number, each in enumerate(races):
        for seed, curve in enumerate(each.curves):
            axis.plot(
                np.array(curve.times_s) / 60,
                100 * smoothed(curve.accuracies),
                color=f"C{number}",
                alpha=0.3 if seed else 1.0,
                linewidth=0.8 if seed else 1.6,
                label=None if seed else each.entry.name,
            )
    if found.central and races[0].entry.topic == "accuracy":
        central = 100 * float(np.median(found.central))
        axis.axhline(central, color="#444444", linestyle=":", linewidth=1, label="in one place")
    finals = [each.final for each in races]
    axis.set_ylim(100 * max(min(finals) - 0.1, 0), 100 * min(max(finals) + 0.03, 1))
    axis.set_xlabel("minutes", fontsize=8)
    axis.set_ylabel("accuracy, %", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.legend(fontsize=7, loc="lower right")
