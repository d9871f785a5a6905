"""How a status looks: plain lines for logs and pipes, tables for a terminal.

Everything here is a pure function of the status that the broker gives (see `fedmq.broker.control`); names and
metrics in it come from the network and are shown without control characters or markup.
"""

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

Status = Mapping[str, Any]
_STYLES = {
    "running": "green",
    "finished": "green",
    "paused": "yellow",
    "draining": "yellow",
    "stalled": "red",
}
_BYTE_UNITS = ("B", "kB", "MB", "GB", "TB")


def summary(status: Status) -> str:
    """One line: what a log wants to hold about a moment."""
    parts = [version(status), state(status), progress(status), crowd(status)]
    parts += [metrics(status["metrics"]), traffic(status)]
    return "  ".join(part for part in parts if part)


def lines(status: Status) -> list[str]:
    """The whole status as plain lines."""
    rows = [*_facts(status), *(("worker", worker_line(worker)) for worker in status["workers"])]
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {text}" for name, text in rows]


def rich_view(status: Status) -> "RenderableType":
    """The whole status as tables; only where `rich` is installed."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    facts = Table.grid(padding=(0, 2))
    for name, text in _facts(status):
        style = _STYLES.get(status["state"], "") if name == "state" else ""
        facts.add_row(Text(name, style="dim"), Text(text, style=style))
    workers = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    keyed = any(worker.get("key") for worker in status["workers"])
    for column in ("worker", "state", "version", "for", "updates", *(("key",) if keyed else ())):
        workers.add_column(column, justify="right" if column in {"version", "for", "updates"} else "left")
    for worker in status["workers"]:
        cells = (
            printable(worker["name"]),
            worker["state"],
            "" if worker["version"] is None else str(worker["version"]),
            duration(worker["since_s"]),
            "" if worker["updates"] is None else str(worker["updates"]),
            *((printable(worker["key"]),) if keyed else ()),
        )
        workers.add_row(*(Text(cell) for cell in cells))
    return Group(facts, Text(""), workers) if status["workers"] else facts


def state(status: Status) -> str:
    """``"stalled: needs 2 more"``."""
    reason = status.get("reason")
    return f"{status['state']}: {printable(reason)}" if reason else str(status["state"])


def version(status: Status) -> str:
    """``"version 12"``, or that there is none."""
    return "no version yet" if status["version"] is None else f"version {status['version']}"


def progress(status: Status) -> str:
    """How far the next version is: the buffer, or the round."""
    opened, buffer = status.get("round"), status.get("buffer")
    if opened:
        have = "" if opened["have"] is None else f"{opened['have']} updates of "  # hidden under privacy
        left = f", {duration(opened['deadline_s'])} left" if opened["deadline_s"] is not None else ""
        if opened["asked"] is None:  # hidden where a coin decides
            return f"round {opened['number']}{left}"
        return f"round {opened['number']}: {have}{opened['asked']} asked, needs {opened['needed']}{left}"
    if buffer and buffer["of"] is not None:
        return f"buffer {buffer['number']}: {buffer['have']} of {buffer['of']} updates"
    return ""


def crowd(status: Status) -> str:
    """``"5 workers (3 training, 2 idle)"``."""
    workers = status["workers"]
    doing = ", ".join(f"{count} {what}" for what, count in Counter(w["state"] for w in workers).most_common())
    return f"{len(workers)} worker{'' if len(workers) == 1 else 's'}{f' ({doing})' if doing else ''}"


def connections(status: Status) -> str:
    """Only where some were turned away: ``"960 of 960; 31 turned away, raise the limit on open files (ulimit -n)"``."""
    if not status.get("turned_away"):
        return ""
    return (
        f"{status['connections']} of {status['connections_max']}; {status['turned_away']} turned away, "
        "raise the limit on open files (ulimit -n)"
    )


def worker_line(worker: Mapping[str, Any]) -> str:
    """One worker in one line."""
    what = f" on version {worker['version']}" if worker["version"] is not None else ""
    made = f", {worker['updates']} updates" if worker["updates"] is not None else ""  # hidden under privacy
    since = f" for {duration(worker['since_s'])}" if worker["since_s"] is not None else ""  # likewise
    key = f", key {printable(worker['key'])}" if worker.get("key") else ""
    return f"{printable(worker['name'])}: {worker['state']}{what}{since}{made}{key}"


def metrics(sources: Mapping[str, Mapping[str, float]]) -> str:
    """``"version 11: accuracy 0.931, loss 0.2104"``; the broker's own after the workers'."""
    shown = []
    for source in sorted(sources, reverse=True):
        values = [f"{printable(k)} {v:.4g}" for k, v in sorted(sources[source].items()) if k != "version"]
        by = " by the broker" if source == "broker" else ""
        shown.append(f"version {sources[source]['version']}{by}: {', '.join(values)}")
    return "; ".join(shown)


def traffic(status: Status) -> str:
    """What came up and went down."""
    if "bytes_up" not in status:
        return ""
    return f"{size(status['bytes_up'])} up, {size(status['bytes_down'])} down"


def duration(seconds: float | None) -> str:
    """``"45 s"``, ``"3 min 20 s"``, ``"2 h 05 min"``, ``"4 d 03 h"``."""
    if seconds is None:
        return ""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02} h"


def size(count: float) -> str:
    """``"12.3 MB"``."""
    for unit in _BYTE_UNITS:
        if count < 999.5 or unit == _BYTE_UNITS[-1]:
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"


def printable(text: object) -> str:
    """Text without control characters, which could move a terminal's cursor."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in str(text))


def _facts(status: Status) -> list[tuple[str, str]]:
    counts = status["updates"]
    facts = [
        ("federation", f"{printable(status['federation'])} ({status['id']})"),
        ("state", state(status)),
        ("version", version(status).removeprefix("version ")),
        ("mode", f"{status['mode']}{f', {progress(status)}' if progress(status) else ''}"),
        ("clip norm", f"{status['clip_norm']:.6g}, adapted" if status.get("clip_norm") else ""),
        ("workers", crowd(status)),
        ("connections", connections(status)),
        ("metrics", metrics(status["metrics"]) or "none yet"),
        ("updates", ", ".join(f"{count} {name}" for name, count in counts.items())),
        ("traffic", traffic(status)),
        ("uptime", duration(status.get("uptime_s")) or "not running"),
        ("kernels", str(status.get("kernels") or "")),
        ("endpoint", printable(status.get("endpoint") or "")),
        ("keys", _keys(status)),
    ]
    return [(name, text) for name, text in facts if text]


def _keys(status: Status) -> str:
    """The broker's own key, and how many others were refused; empty without keys."""
    if not status.get("broker_key"):
        return ""
    refused = status.get("keys_refused", 0)
    others = f"{refused} handshake{'' if refused == 1 else 's'} refused"
    return f"this broker's is {printable(status['broker_key'])}; {others}"
