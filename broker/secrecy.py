"""What is not shown where a secret coin decides whom a round asks: all that would tell of whom, or of how many. Pure.

The accountant counts on nobody's knowing who was asked. So status, log and history show a round's number and its
deadline, who is connected, and what a version is; not who works, what came in, or how much. The state folder itself
holds all of it, and is the operator's. Of `/metrics` the same is left out (`metrics.Metric.of_sample`).
"""

from typing import Any, Final

_ROUND: Final = ("asked", "have", "needed")
_COUNTS: Final = ("malformed", "flooded")
"""Totals that say nothing of updates."""
_TELLING: Final = ("bytes_up", "bytes_down", "commit_ms", "uploads", "rss_bytes", "rss_anon_bytes")
_SAYS: Final[dict[str, tuple[str, ...]]] = {
    "buffer frozen": ("buffer",),
    "protocol error": ("worker",),
    "task released": (),
    "update rejected": (),
    "update stale": (),
}
"""Lines of the log that tell, and what of them may stand there; nothing: the line does not."""
_AT_WORK: Final = frozenset({"idle", "training", "uploading", "evaluating", "initialising"})


def status(report: dict[str, Any]) -> dict[str, Any]:
    """A status, or a part of one, without what tells; `here` is a worker that is connected, whatever it does."""
    shown = {name: value for name, value in report.items() if name not in _TELLING}
    if shown.get("buffer"):
        shown["buffer"] = shown["buffer"] | {"have": None, "of": None}
    if shown.get("round"):
        shown["round"] = shown["round"] | dict.fromkeys(_ROUND)
    if "updates" in shown:
        shown["updates"] = {name: n for name, n in shown["updates"].items() if name in _COUNTS}
    if "workers" in shown:
        shown["workers"] = [_worker(worker) for worker in shown["workers"]]
    return shown


def note(text: str, fields: dict[str, Any]) -> dict[str, Any] | None:
    """The fields of a line in the log that may stand there; None where the line may not."""
    told = _SAYS.get(text)
    if told is None:
        return fields
    return {name: fields[name] for name in told} or None


def _worker(worker: dict[str, Any]) -> dict[str, Any]:
    hidden = dict.fromkeys(("task", "version", "since_s", "heard_s", "updates"))
    return worker | hidden | ({"state": "here"} if worker["state"] in _AT_WORK else {})
