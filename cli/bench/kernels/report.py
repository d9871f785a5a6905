"""A run as tables for people: each topic, from which n native pays, the bars, and who was absent."""

import math
from collections.abc import Iterator, Sequence
from typing import Final

from .bars import Bar
from .calls import ONE_UPDATE, SIZES
from .contest import Result
from .run import Found

__all__ = ["bar_lines", "lines"]

_COLUMNS: Final = ("", "threads", "time", "GB/s", "of read4", "native is")
_BAR_COLUMNS: Final = ("bar", "what", "needed", "measured", "")


def lines(found: Found) -> list[str]:
    """Everything, line by line."""
    shown = [found.title]
    if not found.complete:
        shown.append("interrupted: these are medians of what was measured until then")
    for topic, title in found.titles.items():
        results = [one for one in found.results if one.topic == topic]
        if results:
            shown += [
                "",
                *(_call_lines(results) if topic == "calls" else _topic_lines(found, title, results)),
            ]
    if found.crossovers:
        shown += ["", "native pays, against numpy, from"]
        shown += [f"  {name:<24}{_from(n)}" for name, n in found.crossovers.items()]
    if found.errors:
        shown += ["", "relative error of squared distances between models that are close"]
        shown += [f"  {name:<28}{error:.1e}" for name, error in found.errors.items()]
    shown += ["", *bar_lines(found.bars, found.workload.is_the_bars)]
    if found.absent:
        shown += ["", "absent"]
        shown += [f"  {one.who} ({one.topic}): {one.reason}" for one in found.absent]
    return shown


def bar_lines(bars: Sequence[Bar], is_the_size: bool) -> list[str]:
    """The bars; at another size than theirs without a verdict."""
    heading = (
        "the bars" if is_the_size else "what the bars are about, at another size than theirs: no verdict"
    )
    rows = [
        (str(bar.number), bar.what, _needed(bar), _figure(bar.measured), _verdict(bar, is_the_size))
        for bar in bars
    ]
    return [heading, *_aligned([_BAR_COLUMNS, *rows], left=(1, 2, 4))]


def _topic_lines(found: Found, title: str, results: Sequence[Result]) -> list[str]:
    rows = [
        (_name(one), str(one.threads), time(one.median_s), *_rates(one), _times(found.ratio(one)))
        for one in results
    ]
    size = f"n = {results[0].n:,}" + (f", K = {results[0].k}" if results[0].k > 1 else "")
    few = min(one.rounds for one in results)
    return [f"{title}; {size}; medians of {few}", *_aligned([_COLUMNS, *rows], left=(0,))]


def _call_lines(results: Sequence[Result]) -> list[str]:
    """Microseconds of a call, a line for each kernel and implementation, a column for each n."""
    found: dict[tuple[str, ...], dict[int, float]] = {}
    for one in results:
        who = (" ".join(part for part in (one.kernel, one.mode, one.variant) if part), one.impl)
        found.setdefault(who, {})[one.n] = one.median_s
    head = ("", "", *(f"n = {n}" for n in SIZES))
    rows = [
        (*who, *(f"{times[n] * 1e6:.2f}" if n in times else "" for n in SIZES))
        for who, times in found.items()
    ]
    note = f"one call, in µs; {ONE_UPDATE}: a mean of nothing but that"
    return [note, *_aligned([head, *rows], left=(0, 1))]


def _name(one: Result) -> str:
    if one.kernel == "_read4":
        return "roofline: read4"
    if one.kernel == "_copy":
        return "roofline: memcpy, read + written"
    accumulator = ["Accumulator"] if one.kernel == "Accumulator" else []
    return " ".join([*accumulator, one.name])


def _rates(one: Result) -> tuple[str, str]:
    share = "" if one.of_roofline is None else f"{one.of_roofline:.2f}"
    return f"{one.gbps:.1f}", share


def _times(ratio: float | None) -> str:
    if ratio is None:
        return ""
    return f"{ratio:.1f} x" if ratio < 99.5 else f"{ratio:.0f} x"


def time(seconds: float) -> str:
    """``"12.3 ms"``."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.1f} µs"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _from(n: int | None) -> str:
    return f"more than {SIZES[-1]}" if n is None else f"n = {n}"


def _needed(bar: Bar) -> str:
    return f"{'≤' if bar.at_most else '≥'} {_figure(bar.needed)} {bar.unit}".rstrip()


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    if math.isinf(value):
        return f"> {SIZES[-1]}"
    if value == int(value):
        return str(int(value))
    return f"{value:.1e}" if value < 1e-3 else f"{value:.2f}"


def _verdict(bar: Bar, is_the_size: bool) -> str:
    if bar.measured is None:
        return "not measured"
    if bar.met is None:
        return "" if not is_the_size else "not measured"
    return "met" if bar.met else "NOT MET"


def _aligned(rows: Sequence[tuple[str, ...]], left: tuple[int, ...]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (
            f"{cell:<{width}}" if column in left else f"{cell:>{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()
