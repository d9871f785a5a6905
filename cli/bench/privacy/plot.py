"""The picture of what privacy cost: accuracy over ε at record level, over the number of workers at worker level.

Error bars are from the worst seed to the best. Legends stand below the panels, not in them.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from .arms import Found
from .report import TITLES, Run
from .settings import DELTA

__all__ = ["draw"]

_DPI: Final = 120
_COLOURS: Final = ("#1b6ca8", "#d1603d", "#3a8f5c", "#7a5195", "#c9a227", "#444444")


def draw(run: Run, path: Path) -> None:
    """Write the picture: a panel for each level that there are arms of; dotted is without privacy."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    records = [each for each in run.found if each.arm.kind != "worker"]
    crowds = [each for each in run.found if each.arm.kind == "worker"]
    panels = [(panel, found) for panel, found in ((_record_level, records), (_worker_level, crowds)) if found]
    figure = Figure(figsize=(6.0 * len(panels), 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    parts = figure.subfigures(1, len(panels), squeeze=False).ravel()
    for part, (panel, found) in zip(parts, panels, strict=True):
        axis = part.subplots()
        panel(axis, found)
        axis.set_ylabel("accuracy, %", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
        part.legend(
            *axis.get_legend_handles_labels(),
            fontsize=8,
            loc="outside lower center",
            ncols=2,
            columnspacing=1.0,
        )
    figure.suptitle(f"{run.data}, measured on {run.measured_on}, δ = {DELTA:g}", fontsize=10)
    figure.savefig(path, dpi=_DPI)


def _record_level(axis: Any, found: Sequence[Found]) -> None:
    """A line for each model with privacy, a dotted one across for each without."""
    models = list(dict.fromkeys(TITLES[each.arm.kind] for each in found))
    for name, colour in zip(models, _COLOURS, strict=False):
        ours = [each for each in found if TITLES[each.arm.kind] == name]
        _line(axis, [(each.arm.epsilon, each) for each in ours if each.arm.epsilon is not None], name, colour)
        for each in (one for one in ours if one.arm.epsilon is None):
            axis.axhline(100 * each.median, color=colour, linestyle=":", label=f"{name}, no privacy")
    _logarithmic(axis, [each.arm.epsilon for each in found if each.arm.epsilon is not None])
    axis.set_xlabel("ε of each image", fontsize=9)
    axis.set_title("record-level: one image more or less", fontsize=9)


def _worker_level(axis: Any, found: Sequence[Found]) -> None:
    """A line for each ε, the strictest one last."""
    epsilons = sorted({each.arm.epsilon or float("inf") for each in found}, reverse=True)
    for epsilon, colour in zip(epsilons, reversed(_COLOURS), strict=False):
        free = epsilon == float("inf")
        points = [(each.arm.workers, each) for each in found if (each.arm.epsilon or float("inf")) == epsilon]
        _line(axis, points, "no privacy" if free else f"ε = {epsilon:g}", colour, dotted=free)
    _logarithmic(axis, [each.arm.workers for each in found])
    axis.set_xlabel("workers, who share the same images", fontsize=9)
    axis.set_title("worker-level: all images of one worker more or less", fontsize=9)


def _line(
    axis: Any, points: Sequence[tuple[float, Found]], label: str, colour: str, *, dotted: bool = False
) -> None:
    """Medians, with the range of the seeds."""
    if not points:
        return
    points = sorted(points, key=lambda point: point[0])
    seeds = [[100 * accuracy for accuracy in each.accuracies] for _, each in points]
    middles = [statistics.median(values) for values in seeds]
    axis.errorbar(
        [place for place, _ in points],
        middles,
        yerr=[
            [middle - min(values) for middle, values in zip(middles, seeds, strict=True)],
            [max(values) - middle for middle, values in zip(middles, seeds, strict=True)],
        ],
        marker="o",
        markersize=4,
        capsize=3,
        color=colour,
        linestyle=":" if dotted else "-",
        label=label,
    )


def _logarithmic(axis: Any, places: Sequence[float]) -> None:
    """Ticks where something was measured."""
    axis.set_xscale("log")
    ticks = sorted(set(places))
    axis.set_xticks(ticks, [f"{place:,g}" for place in ticks])
    axis.minorticks_off()
