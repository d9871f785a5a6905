"""What privacy cost: a table for people, a document for programs."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from .arms import Found, Kind
from .settings import DELTA, Setting

__all__ = ["TITLES", "Run", "document", "facts", "lines"]

TITLES: Final[dict[Kind, str]] = {
    "central": "network 784-32-10, in one place",
    "federated": "network 784-32-10, federated",
    "pixels": "network 784-32-10, noise once",
    "head": "scattering, linear",
    "once": "scattering, linear, noise once",
    "each": "scattering, linear, noise in each worker",
    "worker": "softmax on pixels",
}


class Run(msgspec.Struct, kw_only=True):
    """A run of the benchmark, as far as it came."""

    setting: Setting
    seeds: int
    data: str
    measured_on: str
    found: list[Found] = []


def facts(run: Run) -> dict[str, Any]:
    """What everything in a run was measured with."""
    return {
        "data": run.data,
        "measured_on": run.measured_on,
        "seeds": run.seeds,
        "delta": DELTA,
        "setting": msgspec.to_builtins(run.setting),
    }


def document(run: Run) -> dict[str, Any]:
    """The figures of a run."""
    return {
        **facts(run),
        "arms": [
            {**msgspec.to_builtins(each), "title": TITLES[each.arm.kind], "median": each.median}
            for each in run.found
        ],
    }


def lines(run: Run) -> Iterator[str]:
    """A table of record-level arms, and one of crowds."""
    seeds = "one seed" if run.seeds == 1 else f"medians of {run.seeds} seeds"
    yield f"{run.data}, measured on {run.measured_on}, {seeds}, delta {DELTA:g}"
    records = [each for each in run.found if each.arm.kind != "worker"]
    crowds = [each for each in run.found if each.arm.kind == "worker"]
    if records:
        yield ""
        yield "record-level: one image more or less"
        yield from _table([_HEAD, *map(_row, records)])
    if crowds:
        yield ""
        yield "worker-level: all images of one worker more or less"
        yield from _table([_HEAD, *map(_row, crowds)])


_HEAD: Final = ("model", "workers", "epsilon", "accuracy", "lowest … highest", "spent", "z", "q", "steps")


def _row(each: Found) -> tuple[str, ...]:
    arm, private = each.arm, each.noise_multiplier > 0
    low, high = min(each.accuracies), max(each.accuracies)
    return (
        TITLES[arm.kind],
        f"{arm.workers:,}",
        "none" if arm.epsilon is None else f"{arm.epsilon:g}",
        f"{100 * each.median:.2f} %",
        f"{100 * low:.2f} … {100 * high:.2f}",
        f"{each.spent:.4f}" if private else "",
        f"{each.noise_multiplier:.6g}" if private else "",
        f"{each.sampling_rate:.4g}" if private and each.sampling_rate < 1 else "",
        str(each.steps),
    )


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns as wide as their widest cell."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
