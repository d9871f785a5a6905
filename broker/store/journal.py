"""The journal: what was promised, accepted, aggregated and spent. One SQLite database, one writer.

Rules that hold here:

- `apply` is one transaction. What it was given is durable when it returns, or nothing of it is there.
- A version, what it consumed and what privacy it cost are one row, hence one transaction.
- Nothing is lost by a kill at any instant: the database and its write-ahead log are the whole truth, and
  `recover` needs nothing else.
- Rows of updates stay after their payloads went: they are the history, and what a recomputation follows.
"""

import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal, assert_never

from fedmq.broker.rows import (
    AcceptRow,
    CounterRow,
    EvaluationRow,
    EvictRow,
    FinishRow,
    FreezeRow,
    LeftOutRow,
    MetricsRow,
    PauseRow,
    Recovered,
    RoundRow,
    Row,
    VersionInfo,
    VersionRow,
)

from . import schema
from .history import History
from .recovery import recover


class Journal:
    """The writer's side of a journal; use `open`.

    `apply` is for one thread at a time, and so is `payloads`, which may be another.
    """

    def __init__(
        self,
        path: Path,
        connection: sqlite3.Connection,
        *,
        keep_payloads: bool,
        wall: Callable[[], float],
        clock: Callable[[], float],
    ) -> None:
        self._path = path
        self._db = connection
        self._reader: sqlite3.Connection | None = None
        self._keep_payloads = keep_payloads
        self._wall = wall
        self._clock = clock
        self._started = clock()
        self._run: int | None = None
        self.commit_s = 0.0
        """How long the last COMMIT took: with "fsync" that is the disk's fsync."""

    @classmethod
    def open(
        cls,
        path: str | Path,
        durability: Literal["fsync", "os"] = "fsync",
        *,
        keep_payloads: bool = False,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> "Journal":
        """Open a journal for writing; make or migrate it where needed.

        Parameters
        ----------
        path : path
            The database file; its folder exists.
        durability : {"fsync", "os"}
            Whether `apply` waits for the disk.
        keep_payloads : bool
            Keep inline payloads after their version was made.
        wall, clock : callable
            Wall-clock seconds, kept with rows; monotonic seconds, to know how long the federation has run.

        Raises
        ------
        StateError
            When the file is no journal, is damaged, is of a later schema, or cannot be written.
        """
        path = Path(path)
        connection = schema.open_writer(path, durability)
        return cls(path, connection, keep_payloads=keep_payloads, wall=wall, clock=clock)

    @staticmethod
    def read_only(path: str | Path) -> History:
        """Open a journal for reading, whether or not a broker is writing it."""
        return History.open(path)

    def apply(self, rows: Sequence[Row]) -> None:
        """Make rows durable, in order, in one transaction.

        Raises
        ------
        StateError
            When the disk refuses.
        sqlite3.IntegrityError
            When a row breaks a law of the schema: a defect of the caller's. Nothing was written.
        """
        now = self._wall()
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                for row in rows:
                    self._write(row, now)
                self._count_time(now)
                before = self._clock()
                self._db.execute("COMMIT")
                self.commit_s = self._clock() - before
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.IntegrityError:
            raise
        except sqlite3.Error as error:
            raise schema.unusable(self._path, error) from error

    def current(self) -> VersionInfo | None:
        """The last version, or None before there is one."""
        row = self._db.execute(
            "SELECT version, digest, size, layout, n, clip_norm FROM versions ORDER BY version DESC LIMIT 1"
        ).fetchone()
        if row is None:
            return None
        version, digest, size, layout, n, clip_norm = row
        return VersionInfo(version=version, digest=digest, size=size, layout=layout, n=n, clip_norm=clip_norm)

    def recover(self, max_staleness: int, kept: Iterable[int] = ()) -> Recovered:
        """Everything that the mind has to know to go on.

        Parameters
        ----------
        max_staleness : int
            How many versions back an update's base may lie.
        kept : iterable of int
            Versions whose files are there.
        """
        return recover(self._db, max_staleness, frozenset(kept))

    def payloads(self, buffer: int) -> dict[bytes, bytes]:
        """The inline payloads of a buffer's updates, by task.

        Read over a connection of its own, so that one thread may call this while another calls `apply`.
        """
        if self._reader is None:
            self._reader = schema.open_reader(self._path)
        query = "SELECT task, data FROM updates JOIN payloads USING (id) WHERE buffer = ?"
        return dict(self._reader.execute(query, (buffer,)))

    def consumed(self, tasks: Iterable[bytes]) -> frozenset[bytes]:
        """Those of `tasks` whose updates are in a version already."""
        query = "SELECT 1 FROM updates WHERE task = ? AND version IS NOT NULL"
        return frozenset(task for task in tasks if self._db.execute(query, (task,)).fetchone())

    def noise_keys(self, before: int, count: int) -> list[bytes]:
        """The noise keys of up to `count` versions before one, the last one's first; read as `payloads` is."""
        if self._reader is None:
            self._reader = schema.open_reader(self._path)
        query = (
            "SELECT noise_key FROM versions WHERE version < ? AND noise_key IS NOT NULL"
            " ORDER BY version DESC LIMIT ?"
        )
        return [key for (key,) in self._reader.execute(query, (before, count))]

    def privacy_steps(self) -> int:
        """Releases of the privacy mechanism that all versions together have cost."""
        return int(self._db.execute("SELECT coalesce(sum(privacy_steps), 0) FROM versions").fetchone()[0])

    def close(self) -> None:
        """Note how long the federation has run, and close. The write-ahead log is merged by that."""
        try:
            if self._run is not None:
                self.apply(())
        finally:
            if self._reader is not None:
                self._reader.close()  # first: the log is merged by the writer's close, if it is the last
            self._db.close()

    def _count_time(self, now: float) -> None:
        """Each commit says how long this run has lasted; a kill loses only what came after the last one."""
        seconds = self._clock() - self._started
        if self._run is None:
            cursor = self._db.execute(
                "INSERT INTO runs (started_at, seconds) VALUES (?, ?)", (now - seconds, seconds)
            )
            self._run = cursor.lastrowid
        else:
            self._db.execute("UPDATE runs SET seconds = ? WHERE run = ?", (seconds, self._run))

    def _write(self, row: Row, now: float) -> None:
        match row:
            case VersionRow():
                self._write_version(row, now)
            case AcceptRow():
                self._write_accept(row, now)
            case FreezeRow():
                self._db.execute(
                    "INSERT OR IGNORE INTO frozen VALUES (?, ?, ?)", (row.buffer, row.reason, now)
                )
            case RoundRow():
                self._db.execute(
                    "INSERT OR REPLACE INTO rounds VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        row.buffer,
                        json.dumps(row.cohort, ensure_ascii=False),
                        row.target,
                        row.quorum,
                        row.deadline_s,
                        row.extensions,
                        now,
                        json.dumps(row.missing, ensure_ascii=False),
                    ),
                )
            case LeftOutRow():
                self._db.execute(
                    "INSERT OR REPLACE INTO left_out VALUES (?, ?, ?, ?)",
                    (row.buffer, row.worker, row.reason, now),
                )
            case EvaluationRow():
                self._db.execute(
                    "INSERT OR IGNORE INTO evaluations VALUES (?, ?, ?, ?, ?)",
                    (row.task, row.worker, row.version, row.examples, _metrics(row.metrics)),
                )
            case MetricsRow():
                self._db.execute(
                    "INSERT OR REPLACE INTO metrics VALUES (?, ?, ?, ?, ?)",
                    (row.version, row.source, _metrics(row.metrics), row.examples, row.workers),
                )
            case PauseRow():
                self._fact("paused", "yes" if row.paused else None, now)
            case EvictRow():
                if row.evicted:
                    self._db.execute("INSERT OR IGNORE INTO evicted VALUES (?, ?)", (row.worker, now))
                else:
                    self._db.execute("DELETE FROM evicted WHERE worker = ?", (row.worker,))
            case FinishRow():
                self._fact("finished", row.reason, now)
            case CounterRow():
                self._db.executemany(
                    "INSERT INTO counters VALUES (?, ?)"
                    " ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
                    row.counts.items(),
                )
            case _:
                assert_never(row)

    def _write_version(self, row: VersionRow, now: float) -> None:
        info, buffer = row.info, row.info.version - 1
        self._db.execute(
            "INSERT INTO versions (version, digest, size, layout, n, updates, examples, frac_bits,"
            " denominator, update_norm, seconds, sigma, noise_key, privacy_steps, charged, clip_norm, created_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                info.version,
                info.digest,
                info.size,
                info.layout,
                info.n,
                row.updates,
                row.examples,
                row.frac_bits,
                row.denominator,
                row.update_norm,
                row.seconds,
                row.sigma,
                row.noise_key,
                row.privacy_steps,
                row.charged,
                info.clip_norm,
                now,
            ),
        )
        if row.charged is not None:
            self._db.execute(
                "INSERT INTO ledger SELECT worker, count(*), iif(?3, 1, count(*)) / (?1 * ?1), ?2 + 1 FROM updates"
                " WHERE buffer = ?2 GROUP BY worker ON CONFLICT (worker) DO UPDATE SET"
                " participations = participations + excluded.participations,"
                " spent = iif(?3, max(spent, excluded.spent), spent + excluded.spent),"
                " last_version = excluded.last_version",
                (row.charged, buffer, row.whole_run),
            )
        # Summed up once, so that a history does not read every update that there ever was.
        self._db.execute(
            "UPDATE versions SET (workers, staleness_mean, staleness_max) ="
            " (SELECT count(DISTINCT worker), avg(tau), max(tau) FROM updates WHERE buffer = ?)"
            " WHERE version = ?",
            (buffer, info.version),
        )
        self._db.execute("UPDATE updates SET version = ? WHERE buffer = ?", (info.version, buffer))
        if not self._keep_payloads:
            self._db.execute(
                "DELETE FROM payloads WHERE id IN (SELECT id FROM updates WHERE buffer = ?)", (buffer,)
            )

    def _write_accept(self, row: AcceptRow, now: float) -> None:
        cursor = self._db.execute(
            "INSERT INTO updates (task, worker, base, buffer, tau, weight, examples, norm, encoding, size,"
            " digest, inlined, metrics, accepted_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                row.task,
                row.worker,
                row.base,
                row.buffer,
                row.tau,
                row.weight,
                row.examples,
                row.norm,
                row.encoding,
                row.size,
                row.digest,
                row.inline is not None,
                _metrics(row.metrics),
                now,
            ),
        )
        if row.inline is not None:
            self._db.execute("INSERT INTO payloads VALUES (?, ?)", (cursor.lastrowid, row.inline))

    def _fact(self, name: str, value: str | None, now: float) -> None:
        if value is None:
            self._db.execute("DELETE FROM facts WHERE name = ?", (name,))
        else:
            self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?, ?)", (name, value, now))


_encode_metrics = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def _metrics(metrics: dict[str, float]) -> str:
    return _encode_metrics(metrics) if metrics else "{}"
