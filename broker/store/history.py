"""Reading a journal beside its broker, or after it: what `fedmq status`, `history` and `export` show.

Everything here is plain values that JSON can hold. Under privacy no value of a single worker leaves the
journal, and nothing that depends on which records took part.
"""

import contextlib
import json
import math
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import schema
from .recovery import counts

_HIDDEN_UNDER_PRIVACY = ("examples", "workers", "staleness_mean", "staleness_max", "update_norm")
_HIDDEN_OF_A_SAMPLE = ("updates", "seconds")
"""Besides, where a secret coin decided who was asked: how many came, and what takes longer with their number."""


class History:
    """A read-only view of a journal; use `Journal.read_only`. A context manager."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection
        self._db.row_factory = sqlite3.Row

    @classmethod
    def open(cls, path: str | Path) -> "History":
        """Open the journal file `path`.

        Raises
        ------
        StateError
            When there is none, or it cannot be read by this version.
        """
        return cls(schema.open_reader(Path(path)))

    def __enter__(self) -> "History":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    def summary(self) -> dict[str, Any]:
        """The state of the federation, as far as the journal knows it.

        Returns
        -------
        dict
            ``version``, ``digest`` (hex), ``n``, ``size``, ``created_at`` (all None before version 0), ``clip_norm``
            (of the updates that are folded next, where it is adapted);
            ``buffer`` (its number, how many updates it holds, how many others wait to be folded), ``round``
            (of that buffer, or None), ``paused``, ``finished`` (a reason or None), ``evicted``, ``counts``,
            ``privacy_steps``, ``metrics`` (of the last version that has some), ``seconds`` (that the
            federation has run) and ``started_at`` (of the last run).
        """
        with self._snapshot():
            facts: dict[str, str] = dict(self._db.execute("SELECT name, value FROM facts"))
            last = self._db.execute(
                "SELECT version, digest, size, n, created_at, clip_norm FROM versions ORDER BY version DESC LIMIT 1"
            ).fetchone()
            head: dict[str, Any] = dict.fromkeys(
                ("version", "digest", "size", "n", "created_at", "clip_norm")
            )
            if last is not None:
                head |= dict(last) | {"digest": last["digest"].hex()}
            run = self._db.execute("SELECT started_at FROM runs ORDER BY run DESC LIMIT 1").fetchone()
            return {
                **head,
                **self._buffer(head["version"]),
                "paused": "paused" in facts,
                "finished": facts.get("finished"),
                "evicted": [w for (w,) in self._db.execute("SELECT worker FROM evicted ORDER BY worker")],
                "counts": counts(self._db),
                "privacy_steps": self.privacy_steps(),
                "metrics": self._last_metrics(),
                "seconds": self._db.execute("SELECT coalesce(sum(seconds), 0.0) FROM runs").fetchone()[0],
                "started_at": None if run is None else run[0],
            }

    def history(self) -> list[dict[str, Any]]:
        """One row per version, oldest first.

        Returns
        -------
        list of dict
            ``version``, ``created_at`` (wall clock), ``digest`` (hex), ``updates``, ``examples``, ``workers``
            (how many), ``staleness_mean``, ``staleness_max``, ``seconds`` (of aggregation), ``update_norm``,
            ``sigma``, ``clip_norm`` (that it was made with, where it is adapted), ``privacy_steps``, and ``federated``
            and ``broker`` (their metrics). Where a version cost privacy, ``examples``, ``workers``, ``update_norm``
            and both ``staleness`` are None; where a secret coin decided who was asked, ``updates`` and ``seconds``
            as well.
        """
        with self._snapshot():
            metrics: dict[int, dict[str, dict[str, float]]] = {}
            for version, source, values in self._db.execute("SELECT version, source, metrics FROM metrics"):
                metrics.setdefault(version, {})[source] = json.loads(values)
            rows = []
            for row in self._db.execute(
                "SELECT version, created_at, digest, updates, examples, workers, staleness_mean,"
                " staleness_max, seconds, update_norm, sigma, lag(clip_norm) OVER (ORDER BY version) AS clip_norm,"
                " privacy_steps, EXISTS (SELECT 1 FROM rounds WHERE buffer = version - 1 AND quorum = 0) AS is_sample"
                " FROM versions ORDER BY version"
            ):
                entry: dict[str, Any] = dict(row) | {"digest": row["digest"].hex()}
                is_sample = entry.pop("is_sample")  # no other round may end with nobody
                if entry["privacy_steps"]:
                    entry |= dict.fromkeys(_HIDDEN_UNDER_PRIVACY + (_HIDDEN_OF_A_SAMPLE if is_sample else ()))
                for source in ("federated", "broker"):
                    entry[source] = metrics.get(entry["version"], {}).get(source, {})
                rows.append(entry)
            return rows

    def updates(self, version: int) -> list[dict[str, Any]]:
        """The updates that a version was made of, in order of arrival: what a recomputation needs.

        Returns
        -------
        list of dict
            ``task`` (bytes), ``worker``, ``base``, ``tau``, ``weight``, ``examples``, ``norm``,
            ``encoding``, ``size``, ``digest`` (bytes), ``metrics``, ``accepted_at``, ``place`` (``"inline"``
            or ``"spool"``) and ``payload`` (bytes of an inline one that is still kept, else None).
        """
        rows = []
        for row in self._db.execute(
            "SELECT task, worker, base, tau, weight, examples, norm, encoding, size, digest, metrics,"
            " accepted_at, iif(inlined, 'inline', 'spool') AS place, data AS payload"
            " FROM updates LEFT JOIN payloads USING (id) WHERE version = ? ORDER BY updates.id",
            (version,),
        ):
            entry: dict[str, Any] = dict(row)
            entry["metrics"] = json.loads(entry["metrics"])
            entry["norm"] = math.nan if entry["norm"] is None else entry["norm"]
            rows.append(entry)
        return rows

    def left_out(self, version: int) -> dict[str, str]:
        """Workers that were asked for a version and are not in it, with the reason."""
        return dict(
            self._db.execute(
                "SELECT worker, reason FROM left_out WHERE buffer = ? ORDER BY worker", (version - 1,)
            )
        )

    def accepted(self) -> int:
        """How many updates were ever accepted."""
        return int(self._db.execute("SELECT count(*) FROM updates").fetchone()[0])

    def privacy_steps(self) -> int:
        """Releases of the privacy mechanism that all versions together have cost."""
        return int(self._db.execute("SELECT coalesce(sum(privacy_steps), 0) FROM versions").fetchone()[0])

    def participations(self) -> dict[str, int]:
        """The ledger of worker-level privacy: in how many versions each worker was charged for a part."""
        return dict(self._db.execute("SELECT worker, participations FROM ledger ORDER BY worker"))

    def parts(self) -> dict[str, list[int]]:
        """The versions that each worker has an update in, from the updates themselves."""
        found: dict[str, list[int]] = {}
        query = "SELECT worker, version FROM updates WHERE version IS NOT NULL ORDER BY worker, version"
        for worker, version in self._db.execute(query):
            found.setdefault(worker, []).append(version)
        return found

    def spent(self) -> dict[str, float]:
        """Σ 1 / z² over the versions that each worker was charged for: what composes exactly."""
        return dict(self._db.execute("SELECT worker, spent FROM ledger ORDER BY worker"))

    def charged(self) -> dict[int, float]:
        """The noise multiplier of each version that workers were charged for."""
        query = "SELECT version, charged FROM versions WHERE charged IS NOT NULL ORDER BY version"
        return dict(self._db.execute(query))

    def clip_norms(self) -> dict[int, float]:
        """What each version left as the clip norm of the updates folded onto it, where it is adapted."""
        query = "SELECT version, clip_norm FROM versions WHERE clip_norm IS NOT NULL ORDER BY version"
        return dict(self._db.execute(query))

    def _buffer(self, version: int | None) -> dict[str, Any]:
        if version is None:
            return {"buffer": None, "round": None}
        last = self._db.execute("SELECT max(buffer) FROM frozen WHERE buffer >= ?", (version,)).fetchone()[0]
        number = version if last is None else last + 1
        held = "SELECT count(*) FROM updates WHERE buffer BETWEEN ? AND ?"
        row = self._db.execute(
            "SELECT json_array_length(cohort) AS asked, target, quorum, deadline_s, extensions, opened_at"
            " FROM rounds WHERE buffer = ?",
            (number,),
        ).fetchone()
        return {
            "buffer": {
                "number": number,
                "updates": self._db.execute(held, (number, number)).fetchone()[0],
                "folding": self._db.execute(held, (version, number - 1)).fetchone()[0],
                "frozen": number - version,
            },
            "round": None if row is None else dict(row),
        }

    def _last_metrics(self) -> dict[str, Any]:
        rows = self._db.execute(
            "SELECT version, source, metrics FROM metrics WHERE version = (SELECT max(version) FROM metrics)"
        ).fetchall()
        found: dict[str, Any] = {"version": rows[0][0]} if rows else {}
        return found | {source: json.loads(metrics) for _, source, metrics in rows}

    @contextlib.contextmanager
    def _snapshot(self) -> Iterator[None]:
        """All reads inside see one moment of the journal, while its broker goes on writing."""
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            self._db.execute("ROLLBACK")
