"""The journal's tables, their migrations, and how a connection to them is opened.

Rules that hold here:

- Migrations go forward only: entry *n* of `MIGRATIONS` takes a journal from schema *n* to *n + 1*, in one
  transaction. An entry that was released is never edited; a journal of a later schema is refused.
- What must never happen is written down as a constraint, so that a defect above ends in an error and not
  in a wrong model: a task has one update, a frozen buffer takes none, versions are consecutive, and what a
  row points to exists.
- Wall-clock times are here and in no model file.
"""

import sqlite3
from pathlib import Path
from typing import Literal

from fedmq.fedcore.errors import StateError

from .refusals import FULL

APPLICATION_ID = 0x464D5131  # "FMQ1": tells a journal from anybody else's SQLite file
BUSY_S = 10.0

_FIRST = """
CREATE TABLE versions (
    version         INTEGER PRIMARY KEY,
    digest          BLOB NOT NULL,
    size            INTEGER NOT NULL,
    layout          BLOB NOT NULL,
    n               INTEGER NOT NULL,
    updates         INTEGER NOT NULL,
    examples        INTEGER NOT NULL,
    frac_bits       INTEGER,
    denominator     REAL,
    update_norm     REAL,
    seconds         REAL NOT NULL,
    sigma           REAL NOT NULL,
    noise_key       BLOB,
    privacy_steps   INTEGER NOT NULL,
    workers         INTEGER NOT NULL DEFAULT 0,
    staleness_mean  REAL,
    staleness_max   INTEGER,
    created_at      REAL NOT NULL
);
CREATE TRIGGER versions_are_consecutive BEFORE INSERT ON versions
WHEN NEW.version IS NOT (SELECT coalesce(max(version) + 1, 0) FROM versions)
BEGIN SELECT raise(ABORT, 'a version that does not follow the last one'); END;

CREATE TABLE updates (
    id           INTEGER PRIMARY KEY,
    task         BLOB NOT NULL UNIQUE,
    worker       TEXT NOT NULL,
    base         INTEGER NOT NULL REFERENCES versions (version),
    buffer       INTEGER NOT NULL,
    tau          INTEGER NOT NULL,
    weight       REAL NOT NULL,
    examples     INTEGER NOT NULL,
    norm         REAL,               -- NULL: not a number (SQLite has none)
    encoding     TEXT NOT NULL,
    size         INTEGER NOT NULL,
    digest       BLOB NOT NULL,
    inlined      INTEGER NOT NULL,   -- 1: its payload came with the offer and is (or was) in `payloads`
    metrics      TEXT NOT NULL,
    version      INTEGER REFERENCES versions (version),  -- NULL: not aggregated yet
    accepted_at  REAL NOT NULL
);
CREATE INDEX updates_by_buffer ON updates (buffer);
CREATE INDEX updates_by_base ON updates (base);

CREATE TABLE payloads (
    id    INTEGER PRIMARY KEY REFERENCES updates (id),
    data  BLOB NOT NULL
);

CREATE TABLE frozen (
    buffer     INTEGER PRIMARY KEY,
    reason     TEXT NOT NULL,
    frozen_at  REAL NOT NULL
);
CREATE TRIGGER frozen_is_frozen BEFORE INSERT ON updates
WHEN EXISTS (SELECT 1 FROM frozen WHERE buffer = NEW.buffer)
  OR EXISTS (SELECT 1 FROM versions WHERE version > NEW.buffer)
BEGIN SELECT raise(ABORT, 'an update for a buffer that is frozen'); END;

CREATE TABLE rounds (
    buffer      INTEGER PRIMARY KEY,
    cohort      TEXT NOT NULL,
    target      INTEGER NOT NULL,
    quorum      INTEGER NOT NULL,
    deadline_s  REAL NOT NULL,
    extensions  INTEGER NOT NULL,
    opened_at   REAL NOT NULL
);
CREATE TABLE left_out (
    buffer   INTEGER NOT NULL,
    worker   TEXT NOT NULL,
    reason   TEXT NOT NULL,
    left_at  REAL NOT NULL,
    PRIMARY KEY (buffer, worker)
) WITHOUT ROWID;

CREATE TABLE evaluations (
    task      BLOB PRIMARY KEY,
    worker    TEXT NOT NULL,
    version   INTEGER NOT NULL REFERENCES versions (version),
    examples  INTEGER NOT NULL,
    metrics   TEXT NOT NULL
);
CREATE INDEX evaluations_by_version ON evaluations (version);
CREATE TABLE metrics (
    version   INTEGER NOT NULL REFERENCES versions (version),
    source    TEXT NOT NULL,
    metrics   TEXT NOT NULL,
    examples  INTEGER NOT NULL,
    workers   INTEGER NOT NULL,
    PRIMARY KEY (version, source)
) WITHOUT ROWID;

CREATE TABLE evicted (worker TEXT PRIMARY KEY, evicted_at REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL, since REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE runs (
    run         INTEGER PRIMARY KEY,
    started_at  REAL NOT NULL,
    seconds     REAL NOT NULL
);
"""

_MISSING = """
ALTER TABLE rounds ADD COLUMN missing TEXT NOT NULL DEFAULT '[]';
"""

_LEDGER = """
ALTER TABLE versions ADD COLUMN charged REAL;  -- z, where the workers in it were charged; else NULL
CREATE TABLE ledger (
    worker          TEXT PRIMARY KEY,
    participations  INTEGER NOT NULL,
    spent           REAL NOT NULL  -- the sum of 1 / z² over them: what composes exactly
) WITHOUT ROWID;
CREATE TRIGGER ledger_only_grows BEFORE UPDATE ON ledger
WHEN NEW.participations < OLD.participations OR NEW.spent < OLD.spent
BEGIN SELECT raise(ABORT, 'spent privacy cannot be taken back'); END;
CREATE TRIGGER ledger_is_kept BEFORE DELETE ON ledger
BEGIN SELECT raise(ABORT, 'spent privacy cannot be taken back'); END;
"""

_FOLLOWING = """
ALTER TABLE versions ADD COLUMN clip_norm REAL;  -- of the updates folded onto it, where it is adapted; else NULL
ALTER TABLE ledger ADD COLUMN last_version INTEGER NOT NULL DEFAULT 0;
INSERT INTO ledger SELECT worker, 0, 0.0, max(version) FROM updates
    WHERE version IS NOT NULL AND worker IN (SELECT worker FROM ledger) GROUP BY worker
    ON CONFLICT (worker) DO UPDATE SET last_version = excluded.last_version;
CREATE TRIGGER last_parts_only_grow BEFORE UPDATE ON ledger WHEN NEW.last_version < OLD.last_version
BEGIN SELECT raise(ABORT, 'a worker''s last part cannot come before the one that it had'); END;
"""

MIGRATIONS: tuple[str, ...] = (_FIRST, _MISSING, _LEDGER, _FOLLOWING)
SCHEMA = len(MIGRATIONS)


def open_writer(path: Path, durability: Literal["fsync", "os"]) -> sqlite3.Connection:
    """Open the journal for its one writer; make it, or migrate it, where needed.

    Raises
    ------
    StateError
        When the file is no journal, is damaged, is of a later schema, or cannot be written.
    """
    try:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=BUSY_S)
        try:
            # NORMAL never fsyncs a commit, and unlike OFF it keeps the file whole in a power cut: the last
            # commits may be gone then, which is what "os" says.
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {'FULL' if durability == 'fsync' else 'NORMAL'}")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA journal_size_limit = 67108864")
            _migrate(connection, path)
        except BaseException:
            connection.close()
            raise
    except sqlite3.Error as error:
        raise unusable(path, error) from error
    return connection


def open_reader(path: Path, *, oldest: int | None = None) -> sqlite3.Connection:
    """Open the journal for reading, whether or not a broker is writing it.

    Parameters
    ----------
    path : Path
        The database file.
    oldest : int, optional
        The oldest schema that will do; by default only this version's.

    Raises
    ------
    StateError
        When there is no journal, or it cannot be read by this version.
    """
    if not path.is_file():
        raise StateError(f"{path.parent} holds no journal: expected the state folder of a broker")
    # A clean stop leaves no -wal file; then a folder that we may not write needs `immutable`, because a
    # WAL database is otherwise opened by making one.
    wal = path.with_name(path.name + "-wal")
    modes = ["mode=ro"] if wal.exists() else ["mode=ro", "mode=ro&immutable=1"]
    failure: sqlite3.Error | None = None
    for mode in modes:
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?{mode}",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=BUSY_S,
        )
        try:
            schema = _schema(connection, path)
        except sqlite3.OperationalError as error:
            connection.close()
            failure = error
            continue
        except (sqlite3.Error, StateError) as error:
            connection.close()
            if isinstance(error, StateError):
                raise
            raise unusable(path, error) from error
        if schema < (SCHEMA if oldest is None else oldest):
            connection.close()
            raise StateError(
                f"{path} has schema {schema}, this version reads {SCHEMA}: start its broker once, it migrates"
            )
        return connection
    assert failure is not None
    raise unusable(path, failure) from failure


def unusable(path: Path, error: sqlite3.Error) -> StateError:
    """A database error as one line that a person can act on."""
    name = getattr(error, "sqlite_errorname", "")
    if name in ("SQLITE_NOTADB", "SQLITE_CORRUPT"):
        return StateError(f"the journal {path} is damaged ({error}): restore the state folder from a backup")
    if name == "SQLITE_FULL":
        return StateError(f"the journal {path} cannot grow: {FULL}")
    return StateError(f"the journal {path} cannot be used: {error} ({name or type(error).__name__})")


def _schema(connection: sqlite3.Connection, path: Path) -> int:
    """The schema of the journal behind a connection; 0 of an empty file."""
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if not tables:
        return 0
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    if application != APPLICATION_ID:
        raise StateError(f"{path} is not a fedmq journal: its application id is {application:#x}")
    schema = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if schema > SCHEMA:
        raise StateError(f"{path} has schema {schema}, this version knows {SCHEMA}: use a newer fedmq")
    return schema


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    for schema in range(_schema(connection, path), SCHEMA):
        connection.executescript(
            f"BEGIN IMMEDIATE;\n{MIGRATIONS[schema]}\n"
            f"PRAGMA application_id = {APPLICATION_ID};\nPRAGMA user_version = {schema + 1};\nCOMMIT;"
        )
