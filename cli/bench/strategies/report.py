"""What the races came to: tables for people, a document for programs."""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np

from fedmq.fedcore.config import Mean

from ...simulate.figures import duration
from .measure import Found, Measured
from .race import smoothed
from .topics import TOPICS

__all__ = ["document", "facts", "lines"]

_HEADS = {
    "accuracy": "as good as central training?",
    "speed": "workers of unequal speed",
    "dropout": "workers that die in the middle of a fit, and are back after five minutes",
    "compression": "narrow links, asynchronous",
    "attackers": "hostile workers, synchronous",
}


def facts(found: Found) -> dict[str, Any]:
    """What everything in a run was measured with."""
    return {
        "data": found.data,
        "measured_on": found.measured_on,
        "seeds": found.seeds,
        "setting": msgspec.to_builtins(found.setting),
    }


def document(found: Found) -> dict[str, Any]:
    """The figures of a run: medians, and each seed's curve."""
    return {
        **facts(found),
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
    times = [f"to {target:.0%}" for target in targets]
    match topic:
        case "attackers":
            last = ["at the end", "against clean"]
        case "compression":
            last = ["sooner", "at the end", "an update", f"sent to {targets[-1]:.0%}"]
        case _:
            last = ["sooner", "at the end"]
    rows = [["under", "partition", "", *times, *last]]
    for each in races:
        entry = each.entry
        row = [
            entry.condition,
            entry.partition,
            entry.name,
            *(_time(each.crossing(target)) for target in targets),
        ]
        if topic == "attackers":
            clean = next((one for one in races if _is_clean_mean(one, entry.partition)), None)
            row += [_percent(each.final), "" if clean is None or each is clean else _points(each, clean)]
        else:
            first = next(one for one in races if _circumstances(one) == _circumstances(each))
            row += [_sooner(first, each, targets[-1]), _percent(each.final)]
        if topic == "compression":
            row += [f"{each.curves[0].update_bytes / 1000:.1f} kB", _sent(each.sent(targets[-1]))]
        rows.append(row)
    yield from _table(rows)


def _circumstances(each: Measured) -> tuple[str, str]:
    """Under which races are compared with the first of them."""
    return each.entry.condition, each.entry.partition


def _is_clean_mean(each: Measured, partition: str) -> bool:
    """What attacks and robust rules are held against: neither."""
    entry = each.entry
    return entry.partition == partition and entry.attack == "none" and isinstance(entry.rule, Mean)


def _race(found: Found, each: Measured) -> dict[str, Any]:
    """The entry with all that it was run with, and its curves: `earlier` makes a `Measured` of it again."""
    return {
        **msgspec.to_builtins(each.entry),
        "final": each.final,
        "last": _last(each),
        "reached_s": {f"{target:.2f}": each.crossing(target) for target in found.setting.targets},
        "curves": [
            {
                **msgspec.to_builtins(curve),
                "smoothed": [round(float(value), 5) for value in smoothed(curve.accuracies)],
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


def _points(each: Measured, clean: Measured) -> str:
    return f"{100 * (each.final - clean.final):+.2f}"


def _sent(size_bytes: float | None) -> str:
    return "never" if size_bytes is None else f"{size_bytes / 1e6:.1f} MB"


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
