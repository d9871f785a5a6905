"""What the races came to: tables for people, a document for programs."""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np

from fedmq.fedcore.config import AsyncMode, SyncMode

from ...simulate.figures import duration
from .measure import Found, Measured
from .race import smoothed
from .topics import TOPICS

__all__ = ["document", "lines"]

_HEADS = {
    "accuracy": "as good as central training?",
    "speed": "workers of unequal speed",
    "dropout": "workers that die in the middle of a fit, and are back after five minutes",
    "compression": "narrow links, asynchronous",
    "attackers": "hostile workers, synchronous",
}


def document(found: Found) -> dict[str, Any]:
    """The figures of a run: medians, and each seed's curve."""
    return {
        "data": found.data,
        "measured_on": found.measured_on,
        "seeds": found.seeds,
        "setting": msgspec.to_builtins(found.setting),
        "central": found.central,
        "races": [_race(found, each) for each in found.races],
    }


def lines(found: Found) -> Iterator[str]:
    """A table for each topic."""
    yield f"{found.data}, measured on {found.measured_on}, {_counted(found.seeds)}"
    for topic in TOPICS:
        races = [each for each in found.races if each.entry.topic == topic]
        if races or (topic == "accuracy" and found.central):
            yield ""
            yield f"{topic}: {_HEADS[topic]}"
            yield from _accuracy(found, races) if topic == "accuracy" else _races(found, races, topic)


def _accuracy(found: Found, races: Sequence[Measured]) -> Iterator[str]:
    central = float(np.median(found.central)) if found.central else None
    rows = [["training", "partition", "passes", "accuracy", "below central"]]
    if central is not None:
        rows.append(["in one place", "", str(found.setting.central_epochs), _percent(central), ""])
    for each in races:
        gap = "" if central is None else f"{100 * (central - _last(each)):+.2f}"
        entry = each.entry
        rows.append([entry.name, entry.partition, str(entry.training.versions), _percent(_last(each)), gap])
    yield from _table(rows)


def _races(found: Found, races: Sequence[Measured], topic: str) -> Iterator[str]:
    targets = found.setting.targets
    rows = [["under", "partition", "", *(f"to {target:.0%}" for target in targets), "sooner", "at the end"]]
    if topic == "compression":
        rows[0].append("an update")
    for each in races:
        entry = each.entry
        first = next(
            one
            for one in races
            if (one.entry.condition, one.entry.partition) == (entry.condition, entry.partition)
            or (topic == "attackers" and one.entry.partition == entry.partition)
        )
        row = [
            entry.condition,
            entry.partition,
            entry.name,
            *(_time(each.crossing(target)) for target in targets),
            _sooner(first, each, targets[-1]),
            _percent(each.final),
        ]
        if topic == "compression":
            row.append(f"{each.curves[0].sent_bytes / each.curves[0].updates / 1000:.1f} kB")
        rows.append(row)
    yield from _table(rows)


def _race(found: Found, each: Measured) -> dict[str, Any]:
    entry = each.entry
    mode = entry.mode
    return {
        "topic": entry.topic,
        "name": entry.name,
        "condition": entry.condition,
        "partition": entry.partition,
        "mode": mode.kind,
        "buffer": mode.buffer if isinstance(mode, AsyncMode) else None,
        "deadline_s": mode.deadline_s if isinstance(mode, SyncMode) else None,
        "encoding": entry.encoding,
        "attack": entry.attack,
        "speeds": entry.speeds,
        "final": each.final,
        "last": _last(each),
        "reached_s": {f"{target:.2f}": each.crossing(target) for target in found.setting.targets},
        "curves": [
            {
                "times_s": [round(time, 1) for time in curve.times_s],
                "accuracies": curve.accuracies,
                "smoothed": [round(float(value), 5) for value in smoothed(curve.accuracies)],
                "sent_bytes": curve.sent_bytes,
            }
            for curve in each.curves
        ],
    }


def _last(each: Measured) -> float:
    """Of the last version alone: where a rate has fallen to zero, no version is luckier than the next."""
    return float(np.median([curve.accuracies[-1] for curve in each.curves]))


def _sooner(first: Measured, each: Measured, target: float) -> str:
    before, now = first.crossing(target), each.crossing(target)
    if before is None or now is None or each is first:
        return ""
    return f"{before / now:.2f} x"


def _time(seconds: float | None) -> str:
    return "never" if seconds is None else duration(seconds)


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _counted(seeds: int) -> str:
    return "one seed" if seeds == 1 else f"medians of {seeds} seeds"


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns as wide as their widest cell."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
