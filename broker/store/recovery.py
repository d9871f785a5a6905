"""From a journal to what the mind has to know at its start. Reads only.

An update whose `version` is empty is not aggregated yet. It lies in a frozen buffer, whose version is still
to be made, or in the open one: the first after those.
"""

import json
import math
import sqlite3
from collections.abc import Iterator
from typing import Any

from fedmq.broker.rows import AcceptRow, EvaluationRow, MetricsRow, Recovered, RoundRow, VersionInfo


def recover(db: sqlite3.Connection, max_staleness: int, kept: frozenset[int]) -> Recovered:
    """Read everything in one transaction; see `Journal.recover`."""
    db.execute("BEGIN")
    try:
        return _recover(db, max_staleness, kept)
    finally:
        db.execute("ROLLBACK")


def _recover(db: sqlite3.Connection, max_staleness: int, kept: frozenset[int]) -> Recovered:
    facts: dict[str, str] = dict(db.execute("SELECT name, value FROM facts"))
    row = db.execute("SELECT max(version), coalesce(sum(privacy_steps), 0) FROM versions").fetchone()
    current, privacy_steps = (-1 if row[0] is None else int(row[0])), int(row[1])
    # A buffer stays in `frozen` for good; those from the current version on are still to be folded.
    query = "SELECT buffer FROM frozen WHERE buffer >= ? ORDER BY buffer"
    frozen = tuple(int(buffer) for (buffer,) in db.execute(query, (current,)))
    opened = frozen[-1] + 1 if frozen else current
    window = "SELECT task, buffer FROM updates WHERE base >= ? ORDER BY id"
    lately = "SELECT DISTINCT worker FROM updates WHERE buffer >= ?"
    return Recovered(
        versions=tuple(_versions(db, current - max_staleness, kept)),
        kept=kept,
        frozen=tuple(_updates(db, current, opened - 1)),
        frozen_buffers=frozen,
        open=tuple(_updates(db, opened, opened)),
        round=_round(db, opened),
        known=dict(db.execute(window, (current - max_staleness,))),
        evaluations=tuple(_evaluations(db, current)),
        metrics=tuple(_metrics(db)),
        paused="paused" in facts,
        evicted=frozenset(worker for (worker,) in db.execute("SELECT worker FROM evicted")),
        workers=frozenset(worker for (worker,) in db.execute(lately, (current - 1 - max_staleness,))),
        finished=facts.get("finished"),
        counts=counts(db),
        privacy_steps=privacy_steps,
        participations=dict(db.execute("SELECT worker, participations FROM ledger")),
        last_parts=dict(db.execute("SELECT worker, last_version FROM ledger")),
        started_s=float(db.execute("SELECT coalesce(sum(seconds), 0) FROM runs").fetchone()[0]),
    )


def counts(db: sqlite3.Connection) -> dict[str, int]:
    """The totals. Those of the counters table may be behind after a kill; what was accepted never is."""
    totals: dict[str, int] = dict(db.execute("SELECT name, value FROM counters ORDER BY name"))
    accepted = int(db.execute("SELECT count(*) FROM updates").fetchone()[0])
    return totals | ({"accepted": accepted} if accepted else {})


def _versions(db: sqlite3.Connection, oldest: int, kept: frozenset[int]) -> Iterator[VersionInfo]:
    for row in _rows(
        db,
        "SELECT version, digest, size, layout, n, clip_norm FROM versions"
        " WHERE version >= ? OR version IN (SELECT value FROM json_each(?)) ORDER BY version",
        (oldest, json.dumps(sorted(kept))),
    ):
        yield VersionInfo(**row)


def _updates(db: sqlite3.Connection, first: int, last: int) -> Iterator[AcceptRow]:
    """Rows of buffers `first` … `last`, in the order in which they were accepted, without their payloads."""
    for row in _rows(
        db,
        "SELECT task, worker, base, buffer, tau, weight, examples, norm, encoding, size, digest, metrics,"
        " iif(inlined, x'', NULL) AS inline FROM updates WHERE buffer BETWEEN ? AND ? ORDER BY id",
        (first, last),
    ):
        row["norm"] = math.nan if row["norm"] is None else row["norm"]
        yield AcceptRow(**row)


def _round(db: sqlite3.Connection, buffer: int) -> RoundRow | None:
    for row in _rows(
        db,
        "SELECT buffer, cohort, target, quorum, deadline_s, extensions, missing FROM rounds WHERE buffer = ?",
        (buffer,),
    ):
        row["cohort"], row["missing"] = tuple(json.loads(row["cohort"])), tuple(json.loads(row["missing"]))
        return RoundRow(**row)
    return None


def _evaluations(db: sqlite3.Connection, version: int) -> Iterator[EvaluationRow]:
    query = (
        "SELECT task, worker, version, examples, metrics FROM evaluations WHERE version = ? ORDER BY rowid"
    )
    for row in _rows(db, query, (version,)):
        yield EvaluationRow(**row)


def _metrics(db: sqlite3.Connection) -> Iterator[MetricsRow]:
    query = "SELECT version, source, metrics, examples, workers FROM metrics ORDER BY version, source"
    for row in _rows(db, query, ()):
        yield MetricsRow(**row)


def _rows(db: sqlite3.Connection, query: str, parameters: tuple[Any, ...]) -> Iterator[dict[str, Any]]:
    """The rows of a query as dicts, named as the structs name their fields."""
    cursor = db.cursor()
    cursor.row_factory = sqlite3.Row
    for row in cursor.execute(query, parameters):
        fields = dict(row)
        if "metrics" in fields:
            fields["metrics"] = json.loads(fields["metrics"])
        yield fields
