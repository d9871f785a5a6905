"""The picture of what privacy cost: accuracy over ε, record-level on the left and crowds on the right."""

import statistics
from pathlib import Path
from typing import Any

from .report import TITLES, Run

__all__ = ["draw"]


def draw(run: Run, path: Path) -> None:
    """Write the picture: lines are arms with privacy, dotted ones what the same has without."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.5, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    records, crowds = figure.subplots(1, 2)
    for axis, worker_level in ((records, False), (crowds, True)):
        _panel(axis, run, worker_level=worker_level)
    records.set_title("record-level: one image more or less", fontsize=10)
    crowds.set_title("worker-level: all of one worker's images", fontsize=10)
    figure.suptitle(f"What privacy costs: {run.data}", fontsize=11)
    figure.savefig(path, dpi=110)


def _panel(axis: Any, run: Run, *, worker_level: bool) -> None:
    series: dict[str, list[tuple[float, list[float]]]] = {}
    free: dict[str, float] = {}
    for each in run.found:
        arm = each.arm
        if (arm.kind == "worker") != worker_level:
            continue
        name = f"{arm.workers:,} workers" if worker_level else TITLES[arm.kind]
        if arm.epsilon is None:
            free[name] = 100 * each.median
        else:
            series.setdefault(name, []).append((arm.epsilon, [100 * one for one in each.accuracies]))
    colours = {name: f"C{number}" for number, name in enumerate(dict.fromkeys([*series, *free]))}
    for name, points in series.items():
        points.sort()
        middles = [statistics.median(values) for _, values in points]
        below = [middle - min(values) for middle, (_, values) in zip(middles, points, strict=True)]
        above = [max(values) - middle for middle, (_, values) in zip(middles, points, strict=True)]
        axis.errorbar(
            [epsilon for epsilon, _ in points],
            middles,
            yerr=[below, above],
            marker="o",
            capsize=3,
            color=colours[name],
            label=name,
        )
    for name, accuracy in free.items():
        label = None if name in series else f"{name}, no privacy"
        axis.axhline(accuracy, color=colours[name], linestyle=":", linewidth=1, label=label)
    axis.set_xscale("log")
    axis.set_xticks(run.setting.epsilons, [f"{epsilon:g}" for epsilon in run.setting.epsilons])
    axis.minorticks_off()
    axis.set_xlabel("ε", fontsize=9)
    axis.set_ylabel("accuracy, %", fontsize=9)
    axis.grid(alpha=0.3)
    if series or free:
        axis.legend(fontsize=7, loc="lower right")
