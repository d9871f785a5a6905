"""The picture of a run: each contestant's time against the roofline's, and from which n native pays.

Drawn with matplotlib, which nothing else of fedmq needs: the extra ``bench`` brings it.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fedmq.fedcore.errors import ConfigError

from ...json_file import check_writable
from .calls import ONE_UPDATE
from .contest import Result

if TYPE_CHECKING:
    from .run import Found

__all__ = ["check", "draw"]

_COLOURS: Final = {
    "native": "#1b6ca8",
    "python": "#8fb8d8",
    "numpy": "#c9a227",
    "torch": "#d1603d",
    "flwr": "#7a5195",
}
_LIMIT: Final = "#444444"


def check(path: Path | None) -> None:
    """Refuse before minutes of work what could not be drawn after them.

    Raises
    ------
    ConfigError
        Without matplotlib, for another kind of file, a folder that is not there, or what cannot be written.
    """
    if path is None:
        return
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--plot needs matplotlib; install it with: pip install 'fedmq[bench]'")
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"--plot must end in .png, .svg or .pdf, not {path.name!r}")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--plot: there is no folder {path.absolute().parent}")
    check_writable(path)


def draw(found: "Found", path: Path) -> None:
    """Write the picture: a panel for each topic, and the crossovers."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = sorted(dict.fromkeys(one.topic for one in found.results), key=lambda name: name == "calls")
    columns = 3
    rows = -(-len(names) // columns) or 1
    figure = Figure(figsize=(6.4 * columns, 3.9 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(found.title)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, name in zip(panels, names, strict=False):
        results = [one for one in found.results if one.topic == name]
        if name == "calls":
            _crossovers(panel, results)
        else:
            _times(panel, found.titles[name], results)
    for panel in panels[len(names) :]:
        panel.set_visible(False)
    figure.savefig(path, dpi=110)


def _times(panel: Any, title: str, results: Sequence[Result]) -> None:
    """Bars of milliseconds with as many threads as there are, the roofline's time as a line."""
    most = max((one.threads for one in results), default=1)
    shown = [one for one in results if one.threads in (1, most) and not one.kernel.startswith("_")]
    shown.sort(key=lambda one: one.median_s, reverse=True)
    labels = [f"{one.name}, {one.threads} T" for one in shown]
    times = [one.median_s * 1e3 for one in shown]
    panel.barh(labels, times, color=[_COLOURS[one.impl] for one in shown])
    for place, time_ms in enumerate(times):
        panel.text(
            time_ms,
            place,
            f" {time_ms:.3g}" if time_ms < 1000 else f" {time_ms:,.0f}",
            va="center",
            fontsize=7,
        )
    for limit in (one for one in results if one.kernel == "_read4" and shown):
        inputs_gb = shown[0].median_s * shown[0].gbps
        style = ":" if limit.threads == 1 else "--"
        panel.axvline(inputs_gb / limit.gbps * 1e3, color=_LIMIT, linestyle=style)
    panel.set_xscale("log")
    panel.margins(x=0.15)
    panel.set_title(f"{title}, ms", fontsize=9)
    panel.tick_params(labelsize=7)


def _crossovers(panel: Any, results: Sequence[Result]) -> None:
    """How many times as fast as numpy, over n."""
    numpy = {(one.kernel, one.n): one.median_s for one in results if one.impl == "numpy"}
    native: dict[str, list[Result]] = {}
    for one in results:
        if one.impl == "native" and one.variant != ONE_UPDATE and (one.kernel, one.n) in numpy:
            native.setdefault(f"{one.kernel} {one.mode}".strip(), []).append(one)
    for name, ones in native.items():
        ones.sort(key=lambda one: one.n)
        panel.plot(
            [one.n for one in ones],
            [numpy[one.kernel, one.n] / one.median_s for one in ones],
            marker=".",
            label=name,
        )
    panel.axhline(1, color=_LIMIT, linestyle=":")
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_title("one call: numpy's time / native's, over n", fontsize=9)
    panel.tick_params(labelsize=7)
    if native:
        panel.legend(fontsize=7)
