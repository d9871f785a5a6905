"""What a federation is doing, said by its running broker, or by its journal where none runs."""

from pathlib import Path
from typing import Any

from fedmq.fedcore import config
from fedmq.fedcore.errors import ConnectError

from . import control, secrecy
from .store.history import History
from .store.state import read_identity


def snapshot(state: Path) -> dict[str, Any]:
    """The status of the running broker, or what its journal says when none runs.

    Raises
    ------
    StateError
        When the folder is no state folder of a broker, or its broker does not answer.
    """
    try:
        found: dict[str, Any] = control.request(state, "status")
        return found
    except ConnectError:
        return _from_journal(state)


def _from_journal(state: Path) -> dict[str, Any]:
    """The same keys as the running broker gives; what only it knows is empty."""
    identity = read_identity(state)
    settings = config.load(state / "config.toml")
    with History.open(state / "journal.db") as journal:
        found = journal.summary()
    counts, metrics = dict(found["counts"]), dict(found["metrics"])
    measured = metrics.pop("version", None)
    buffer, asked = found["buffer"], found["round"]
    # Under privacy it is not shown how many have answered.
    have = None if buffer is None or settings.privacy is not None else buffer["updates"]
    shown = {
        "federation": settings.federation.name,
        "id": identity.id,
        "state": "finished" if found["finished"] else "stopped",
        "reason": found["finished"] or ("paused" if found["paused"] else ""),
        "version": found["version"],
        "mode": settings.mode.kind,
        "buffer": buffer
        and {
            "number": buffer["number"],
            "have": have,
            "of": getattr(settings.mode, "buffer", asked["target"] if asked else None),
            "frozen": buffer["frozen"],
        },
        "round": asked
        and {
            "number": buffer["number"],
            "asked": asked["asked"],
            "have": have,
            "needed": asked["quorum"],
            "deadline_s": None,
            "extensions": asked["extensions"],
        },
        "workers": [],
        "clip_norm": found["clip_norm"],
        "metrics": {source: {"version": measured, **values} for source, values in metrics.items()},
        "bytes_up": counts.pop("bytes_up", 0),
        "bytes_down": counts.pop("bytes_down", 0),
        "updates": counts,
        "uptime_s": None,
        "kernels": "",
        "endpoint": "",
    }
    return secrecy.status(shown) if settings.samples_workers else shown
