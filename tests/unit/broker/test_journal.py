"""The journal: one transaction is all or nothing, and what `apply` returned for survives everything."""

import contextlib
import math
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

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
from fedmq.broker.store import schema
from fedmq.broker.store.journal import Journal
from fedmq.fedcore.errors import StateError


def info(number: int) -> VersionInfo:
    return VersionInfo(version=number, digest=bytes([number]) * 16, size=100 + number, layout=b"L" * 16, n=25)


def version(number: int, **fields: object) -> VersionRow:
    return VersionRow(info=info(number), **fields)  # type: ignore[arg-type]


def update(task: str, buffer: int = 0, **fields: object) -> AcceptRow:
    row = AcceptRow(
        task=task.encode(),
        worker=f"worker-{task}",
        base=0,
        buffer=buffer,
        tau=buffer,
        weight=0.75,
        examples=12,
        norm=0.1,
        encoding="f32",
        size=100,
        digest=b"d" * 16,
        inline=f"payload of {task}".encode(),
        metrics={"loss": 1 / 3},
    )
    return msgspec.structs.replace(row, **fields)


def without_payload(row: AcceptRow) -> AcceptRow:
    return msgspec.structs.replace(row, inline=None if row.inline is None else b"")


def steady(recovered: Recovered) -> Recovered:
    """What was recovered, less the seconds that the test itself took."""
    return msgspec.structs.replace(recovered, started_s=0.0)


ROUND = RoundRow(buffer=1, cohort=("a", "ü"), target=2, quorum=1, deadline_s=30.0)

LIFE: tuple[tuple[Row, ...], ...] = (
    (version(0),),
    (update("a"), CounterRow(counts={"accepted": 1})),
    (update("b", inline=None, norm=math.inf, encoding="i8"),),
    (FreezeRow(buffer=0, reason="full"),),
    (update("c", buffer=1),),
    (PauseRow(paused=True), EvictRow(worker="mallory", evicted=True)),
    (
        version(
            1,
            updates=2,
            examples=24,
            frac_bits=40,
            denominator=24.0,
            update_norm=0.5,
            seconds=0.2,
            charged=2.0,
        ),
    ),
    (ROUND, MetricsRow(version=1, source="federated", metrics={"loss": 0.5}, examples=24, workers=2)),
    (EvaluationRow(task=b"e", worker="worker-a", version=1, examples=9, metrics={"loss": 0.25}),),
    (PauseRow(paused=False), EvictRow(worker="mallory", evicted=False), CounterRow(counts={"accepted": 2})),
    (LeftOutRow(buffer=1, worker="worker-d", reason="deadline"), FreezeRow(buffer=1, reason="deadline")),
    (FinishRow(reason="made version 1"),),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    with contextlib.closing(Journal.open(path)) as opened:
        yield opened


def test_a_new_journal_recovers_nothing(journal: Journal) -> None:
    """A new federation is `Recovered()`."""
    assert journal.recover(20) == Recovered()
    assert journal.current() is None


def test_what_was_accepted_comes_back_as_it_was(journal: Journal) -> None:
    """Every field of a row survives, exactly; payloads stay in the journal."""
    rows = (update("a"), update("b", inline=None, norm=math.inf), update("c", weight=2.0**-20, metrics={}))
    journal.apply([version(0), *rows])
    assert journal.recover(20).open == tuple(map(without_payload, rows))


def test_a_norm_that_is_no_number_comes_back_as_one(journal: Journal) -> None:
    """SQLite has no NaN; a private update may have that norm."""
    journal.apply([version(0), update("a", norm=math.nan)])
    assert math.isnan(journal.recover(20).open[0].norm)


def test_a_frozen_buffer_is_what_will_be_folded(journal: Journal) -> None:
    """Its rows, in order of arrival, and their payloads are the same after a restart."""
    journal.apply([version(0), update("b"), update("a", inline=None)])
    journal.apply([FreezeRow(buffer=0, reason="full"), update("c", buffer=1)])
    recovered = journal.recover(20)
    assert [row.task for row in recovered.frozen] == [b"b", b"a"]
    assert recovered.frozen_buffers == (0,)
    assert [row.task for row in recovered.open] == [b"c"]
    assert journal.payloads(0) == {b"b": b"payload of b"}
    assert journal.payloads(1) == {b"c": b"payload of c"}


def test_several_buffers_may_wait_to_be_folded(journal: Journal) -> None:
    """The open one is the first after them; a frozen one may be empty."""
    journal.apply([version(0), update("a"), FreezeRow(buffer=0, reason="full")])
    journal.apply([FreezeRow(buffer=1, reason="deadline"), update("b", buffer=2)])
    recovered = journal.recover(20)
    assert recovered.frozen_buffers == (0, 1)
    assert [row.task for row in recovered.frozen] == [b"a"]
    assert [row.task for row in recovered.open] == [b"b"]


def test_a_version_consumes_its_buffer(journal: Journal) -> None:
    """In the transaction that names it; its payloads go, its ids stay known."""
    journal.apply([version(0), update("a"), update("b"), FreezeRow(buffer=0, reason="full")])
    journal.apply([version(1, updates=2)])
    recovered = journal.recover(20)
    assert (recovered.frozen, recovered.frozen_buffers, recovered.open) == ((), (), ())
    assert recovered.known == {b"a": 0, b"b": 0}
    assert journal.payloads(0) == {}
    assert journal.consumed([b"a", b"x"]) == {b"a"}
    assert journal.current() == info(1)


def test_payloads_are_kept_on_request(path: Path) -> None:
    """`keep_payloads` is for recomputation: everything that a version was made of can be read again."""
    with contextlib.closing(Journal.open(path, keep_payloads=True)) as journal:
        journal.apply([version(0), update("b"), update("a", inline=None), version(1)])
        with Journal.read_only(path) as history:
            found = history.updates(1)
    assert [(row["task"], row["place"], row["payload"]) for row in found] == [
        (b"b", "inline", b"payload of b"),
        (b"a", "spool", None),
    ]
    assert found[0]["metrics"] == {"loss": 1 / 3}
    assert (found[0]["weight"], found[0]["norm"], found[0]["digest"]) == (0.75, 0.1, b"d" * 16)


def test_ids_are_known_for_the_window_of_staleness(journal: Journal) -> None:
    """An id is needed as long as its base is recent enough to be accepted at all."""
    journal.apply([version(0), update("a"), version(1), update("b", buffer=1, base=1), version(2)])
    assert journal.recover(1).known == {b"b": 1}
    assert journal.recover(2).known == {b"a": 0, b"b": 1}


def test_versions_of_the_window_and_those_kept_come_back(journal: Journal) -> None:
    """Oldest first; the last one is current."""
    journal.apply([version(number) for number in range(6)])
    recovered = journal.recover(1, kept=[1, 5])
    assert recovered.versions == (info(1), info(4), info(5))
    assert recovered.kept == {1, 5}


def test_the_last_row_of_a_round_is_the_round(journal: Journal) -> None:
    """An extension replaces the row; a round of a buffer that is not open is over."""
    journal.apply([version(0), version(1), ROUND])
    assert journal.recover(0).round == ROUND
    extended = msgspec.structs.replace(ROUND, cohort=("a", "ü", "z"), extensions=1)
    journal.apply([extended])
    assert journal.recover(0).round == extended
    journal.apply([FreezeRow(buffer=1, reason="deadline")])
    assert journal.recover(0).round is None


def test_evaluations_of_the_current_version_come_back(journal: Journal) -> None:
    """Those of an older version are history; an answer that is given twice counts once."""
    old = EvaluationRow(task=b"1", worker="a", version=0, examples=3, metrics={"loss": 1.0})
    new = EvaluationRow(task=b"2", worker="a", version=1, examples=3, metrics={"loss": 0.5})
    journal.apply([version(0), old, version(1), new])
    journal.apply([msgspec.structs.replace(new, examples=99)])
    assert journal.recover(0).evaluations == (new,)


def test_what_an_operator_said_outlives_a_restart(path: Path) -> None:
    """Pause, eviction, the end, and totals."""
    with contextlib.closing(Journal.open(path)) as journal:
        journal.apply([PauseRow(paused=True), EvictRow(worker="m", evicted=True), FinishRow(reason="enough")])
        journal.apply([CounterRow(counts={"accepted": 2, "stale": 1}), CounterRow(counts={"accepted": 3})])
    with contextlib.closing(Journal.open(path)) as journal:
        recovered = journal.recover(0)
    assert recovered.paused
    assert recovered.evicted == {"m"}
    assert recovered.finished == "enough"
    assert recovered.counts == {"accepted": 5, "stale": 1}


def test_privacy_steps_add_up(journal: Journal) -> None:
    """What versions cost is in their rows, so that it is spent in the transaction that made them."""
    journal.apply([version(0), version(1, privacy_steps=1), version(2, privacy_steps=1)])
    assert journal.privacy_steps() == 2
    assert journal.recover(0).privacy_steps == 2


def test_a_version_charges_the_workers_in_it(journal: Journal, path: Path) -> None:
    """In its own transaction: each part counts, with 1 / z², which is what composes where z differs."""
    journal.apply([version(0), update("a"), update("b")])
    assert not journal.recover(0).participations
    journal.apply(
        [version(1, charged=2.0), update("c", buffer=1, worker="worker-a"), version(2, charged=4.0)]
    )
    assert journal.recover(0).participations == {"worker-a": 2, "worker-b": 1}
    with Journal.read_only(path) as history:
        assert history.participations() == {"worker-a": 2, "worker-b": 1}
        assert history.charged() == {1: 2.0, 2: 4.0}
    with contextlib.closing(sqlite3.connect(path)) as db:
        spent = dict(db.execute("SELECT worker, spent FROM ledger"))
    assert spent == {"worker-a": 1 / 4 + 1 / 16, "worker-b": 1 / 4}


def test_a_version_says_when_each_worker_in_it_had_its_last_part(journal: Journal, path: Path) -> None:
    """In its own transaction; and what was charged for the whole run is charged once."""
    journal.apply([version(0), update("a"), update("b")])
    assert not journal.recover(0).last_parts
    once = {"charged": 2.0, "whole_run": True}
    journal.apply(
        [version(1, **once), update("c", buffer=1, worker="worker-a"), version(2, **once)]  # type: ignore[arg-type]
    )
    recovered = journal.recover(0)
    assert recovered.last_parts == {"worker-a": 2, "worker-b": 1}
    assert recovered.participations == {"worker-a": 2, "worker-b": 1}
    with Journal.read_only(path) as history:
        assert history.spent() == {"worker-a": 1 / 4, "worker-b": 1 / 4}
        assert history.parts() == {"worker-a": [1, 2], "worker-b": [1]}
    with (
        contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db,
        pytest.raises(sqlite3.IntegrityError, match="last part"),
    ):
        db.execute("UPDATE ledger SET last_version = 1")


def test_noise_keys_are_kept_with_their_versions(journal: Journal) -> None:
    """The last one's first; version 0 has none, and files that go take no key with them."""
    journal.apply([version(0), *(version(number, noise_key=bytes([number]) * 32) for number in (1, 2, 3))])
    assert journal.noise_keys(4, 2) == [bytes([3]) * 32, bytes([2]) * 32]
    assert journal.noise_keys(3, 9) == [bytes([2]) * 32, bytes([1]) * 32]
    assert journal.noise_keys(1, 9) == []


def test_a_ledger_of_schema_3_learns_when_each_had_its_last_part(path: Path) -> None:
    """From the updates that are in versions; one that is only accepted had none yet."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        for number, script in enumerate(schema.MIGRATIONS[:3], 1):
            db.executescript(
                f"{script} PRAGMA application_id = {schema.APPLICATION_ID}; PRAGMA user_version = {number};"
            )
        for number in (0, 1, 2):
            db.execute(
                "INSERT INTO versions (version, digest, size, layout, n, updates, examples, seconds, sigma,"
                " privacy_steps, created_at) VALUES (?, '', 1, '', 1, 1, 1, 0, 0, 1, 0)",
                (number,),
            )
        for task, worker, into in (("1", "a", 1), ("2", "b", 1), ("3", "a", 2), ("4", "b", None)):
            db.execute(
                "INSERT INTO updates (task, worker, base, buffer, tau, weight, examples, encoding, size, digest,"
                " inlined, metrics, version, accepted_at) VALUES (?, ?, 0, 2, 0, 1, 1, 'f32', 4, '', 0, '{}', ?, 0)",
                (task, worker, into),
            )
        db.execute("INSERT INTO ledger VALUES ('a', 2, 0.5), ('b', 1, 0.25)")
    with contextlib.closing(Journal.open(path)) as journal:
        recovered = journal.recover(0)
    assert recovered.last_parts == {"a": 2, "b": 1}
    assert recovered.participations == {"a": 2, "b": 1}


def test_a_version_that_fails_charges_nobody(journal: Journal) -> None:
    """The transaction is whole or not at all: here the version does not follow the last one."""
    journal.apply([version(0), update("a")])
    with pytest.raises(sqlite3.IntegrityError):
        journal.apply([version(1, charged=2.0), version(3, charged=2.0)])
    assert not journal.recover(0).participations


@pytest.mark.parametrize(
    "statement",
    ["DELETE FROM ledger", "UPDATE ledger SET participations = 0", "UPDATE ledger SET spent = 0.0"],
)
def test_spending_cannot_be_taken_back(journal: Journal, path: Path, statement: str) -> None:
    """A defect above ends in an error and not in a second budget."""
    journal.apply([version(0), update("a"), version(1, charged=2.0)])
    with (
        contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db,
        pytest.raises(sqlite3.IntegrityError, match="spent privacy"),
    ):
        db.execute(statement)


def test_the_seconds_of_all_runs_add_up(path: Path) -> None:
    """Each commit says how long its run has lasted; a clean end says it once more."""
    for committed, ended in ((5.0, 7.0), (10.0, 11.0)):
        now = [100.0]
        journal = Journal.open(path, clock=lambda now=now: now[0])
        now[0] += committed
        journal.apply([CounterRow(counts={"x": 1})])
        now[0] += ended - committed
        journal.close()
    with contextlib.closing(Journal.open(path)) as journal:
        assert journal.recover(0).started_s == 18.0


@pytest.mark.parametrize("length", range(len(LIFE) + 1))
def test_a_copy_at_any_moment_is_the_journal(tmp_path: Path, length: int) -> None:
    """The database and its log, as a crash leaves them, recover what the running journal holds."""
    running = tmp_path / "running"
    running.mkdir()
    with contextlib.closing(Journal.open(running / "journal.db")) as journal:
        for rows in LIFE[:length]:
            journal.apply(rows)
        crashed = shutil.copytree(running, tmp_path / "crashed")
        expected = steady(journal.recover(20, [0, 1]))
        payloads = journal.payloads(0), journal.payloads(1)
    with contextlib.closing(Journal.open(crashed / "journal.db")) as journal:
        assert steady(journal.recover(20, [0, 1])) == expected
        assert (journal.payloads(0), journal.payloads(1)) == payloads
        for rows in LIFE[length:]:
            journal.apply(rows)
        end = journal.recover(20, [0, 1])
    assert end.frozen_buffers == (1,)
    assert end.frozen == (without_payload(update("c", buffer=1)),)
    assert end.known == {b"a": 0, b"b": 0, b"c": 1}
    assert end.counts == {"accepted": 3}
    assert (end.finished, end.paused, end.evicted) == ("made version 1", False, frozenset())


WRITER = """
import sys
from fedmq.broker.rows import AcceptRow, VersionInfo, VersionRow
from fedmq.broker.store.journal import Journal
journal = Journal.open(sys.argv[1], sys.argv[2])
journal.apply([VersionRow(info=VersionInfo(version=0, digest=b"d" * 16, size=1, layout=b"l" * 16, n=1))])
for i in range(100000):
    journal.apply([
        AcceptRow(task=b"%d %d" % (i, half), worker="w", base=0, buffer=0, tau=0, weight=1.0, examples=1, norm=1.0,
                  encoding="f32", size=4, digest=b"d" * 16, inline=b"x" * 300)
        for half in (0, 1)
    ])
    print(i, flush=True)
"""


@pytest.mark.parametrize("durability", ["fsync", "os"])
def test_what_was_acknowledged_survives_a_kill(path: Path, durability: str) -> None:
    """After SIGKILL everything that `apply` returned for is there, and no transaction is there by half."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), durability], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    for _ in range(25):
        writer.stdout.readline()
    writer.send_signal(signal.SIGKILL)
    acknowledged = 24 + len(writer.stdout.read().split())
    writer.wait()
    writer.stdout.close()
    with contextlib.closing(Journal.open(path)) as journal:
        tasks = [row.task for row in journal.recover(0).open]
        payloads = journal.payloads(0)
    assert len(tasks) >= 2 * (acknowledged + 1)
    assert tasks == [b"%d %d" % (i // 2, i % 2) for i in range(len(tasks))]
    assert len(tasks) % 2 == 0
    assert set(payloads) == set(tasks)


@pytest.mark.parametrize(
    ("rows", "law"),
    [
        ((update("a"),), "an update of a task that has one"),
        ((update("z", buffer=0),), "an update for a buffer that is frozen"),
        ((version(2),), "a version that does not follow"),
        ((version(0),), "a version that is there"),
        ((update("z", buffer=1, base=7),), "a base that never was"),
        ((MetricsRow(version=9, source="broker", metrics={}),), "metrics of no version"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_must_never_happen_is_refused_and_changes_nothing(
    journal: Journal, rows: tuple[Row, ...], law: str
) -> None:
    """The schema holds the laws, whoever breaks them; the rest of the transaction is not there either."""
    journal.apply([version(0), update("a"), FreezeRow(buffer=0, reason="full")])
    before = steady(journal.recover(20))
    with pytest.raises(sqlite3.IntegrityError):
        journal.apply([PauseRow(paused=True), update("good", buffer=1), *rows])
    assert steady(journal.recover(20)) == before


def test_freezing_twice_is_freezing_once(journal: Journal) -> None:
    """A restart may say it again."""
    journal.apply([version(0), FreezeRow(buffer=0, reason="full")])
    journal.apply([FreezeRow(buffer=0, reason="again")])
    assert journal.recover(0).frozen_buffers == (0,)


def test_readers_see_whole_transactions_while_the_broker_writes(path: Path) -> None:
    """`fedmq history` beside a running broker: never an error, never half a version."""
    done = threading.Event()
    seen: list[int] = []
    with contextlib.closing(Journal.open(path, "os")) as journal:
        journal.apply([version(0)])

        def read() -> None:
            with Journal.read_only(path) as history:
                while not done.is_set():
                    summary = history.summary()
                    assert summary["counts"].get("versions", 0) == summary["version"]
                    seen.append(summary["version"])

        reader = threading.Thread(target=read)
        reader.start()
        for number in range(1, 150):
            journal.apply([version(number), CounterRow(counts={"versions": 1})])
        done.set()
        reader.join()
    assert seen == sorted(seen)


def test_a_history_is_a_row_for_each_version(path: Path) -> None:
    """Numbers of updates, staleness, norm, metrics of both sources, and when it was made."""
    with contextlib.closing(Journal.open(path, wall=lambda: 1e9)) as journal:
        journal.apply([version(0), version(1), update("a", buffer=1, tau=1), update("b", buffer=1, tau=0)])
        journal.apply([version(2, updates=2, examples=24, update_norm=0.5, seconds=0.25)])
        journal.apply([MetricsRow(version=2, source="federated", metrics={"loss": 0.5})])
        journal.apply([MetricsRow(version=2, source="broker", metrics={"accuracy": 0.9})])
    with Journal.read_only(path) as history:
        last = history.history()[-1]
    assert last == {
        "version": 2,
        "created_at": 1e9,
        "digest": "02" * 16,
        "updates": 2,
        "examples": 24,
        "workers": 2,
        "staleness_mean": 0.5,
        "staleness_max": 1,
        "seconds": 0.25,
        "update_norm": 0.5,
        "sigma": 0.0,
        "clip_norm": None,
        "privacy_steps": 0,
        "federated": {"loss": 0.5},
        "broker": {"accuracy": 0.9},
    }


def test_a_private_history_tells_nothing_of_single_workers(path: Path) -> None:
    """Where a version cost privacy, what depends on who took part is not shown."""
    with contextlib.closing(Journal.open(path)) as journal:
        journal.apply(
            [version(0), update("a"), version(1, updates=1, examples=12, sigma=2.0, privacy_steps=1)]
        )
    with Journal.read_only(path) as history:
        row = history.history()[1]
        summary = history.summary()
    hidden = ("examples", "workers", "staleness_mean", "staleness_max", "update_norm")
    assert [row[name] for name in hidden] == [None] * len(hidden)
    assert (row["sigma"], row["privacy_steps"], summary["privacy_steps"]) == (2.0, 1, 1)


def test_a_summary_says_where_the_federation_stands(path: Path) -> None:
    """What `fedmq status` shows when no broker is running."""
    with contextlib.closing(Journal.open(path, wall=lambda: 1e9)) as journal:
        for rows in LIFE[:8]:
            journal.apply(rows)
    with Journal.read_only(path) as history:
        summary = history.summary()
    assert (summary["version"], summary["digest"]) == (1, "01" * 16)
    assert summary["buffer"] == {"number": 1, "updates": 1, "folding": 0, "frozen": 0}
    assert summary["round"] == {
        "asked": 2,
        "target": 2,
        "quorum": 1,
        "deadline_s": 30.0,
        "extensions": 0,
        "opened_at": 1e9,
    }
    assert summary["paused"]
    assert summary["evicted"] == ["mallory"]
    assert summary["metrics"] == {"version": 1, "federated": {"loss": 0.5}}


def test_a_worker_that_was_left_out_is_recorded_with_its_reason(path: Path) -> None:
    """Asked for version 2, and not in it."""
    with contextlib.closing(Journal.open(path)) as journal:
        journal.apply([version(0), version(1), LeftOutRow(buffer=1, worker="w", reason="deadline")])
    with Journal.read_only(path) as history:
        assert history.left_out(2) == {"w": "deadline"}
        assert history.left_out(1) == {}


def test_a_summary_of_a_new_journal_is_empty(path: Path) -> None:
    """Before the first version there is nothing to show, and no error."""
    Journal.open(path).close()
    with Journal.read_only(path) as history:
        assert history.summary()["version"] is None
        assert history.history() == []


def test_a_reader_cannot_write(path: Path) -> None:
    """Reading never changes a journal that a broker may own."""
    Journal.open(path).close()
    connection = schema.open_reader(path)
    with contextlib.closing(connection), pytest.raises(sqlite3.OperationalError, match="readonly"):
        connection.execute("INSERT INTO counters VALUES ('x', 1)")


def test_no_journal_is_a_clear_error(path: Path) -> None:
    """A reader of a folder without a journal is told so, and makes none."""
    with pytest.raises(StateError, match="holds no journal"):
        Journal.read_only(path)
    assert not path.exists()


@pytest.mark.parametrize("opened", [Journal.open, Journal.read_only], ids=["writer", "reader"])
def test_a_file_that_is_no_database_is_a_clear_error(path: Path, opened: object) -> None:
    """Damage is said in one line, with what to do."""
    path.write_bytes(b"this is no database, and longer than a header of one hundred bytes " * 20)
    with pytest.raises(StateError, match="is damaged"):
        opened(path)  # type: ignore[operator]


def test_somebody_elses_database_is_left_alone(path: Path) -> None:
    """A wrong path in a config must not put our tables into another program's file."""
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE theirs (x)")
    with pytest.raises(StateError, match="not a fedmq journal"):
        Journal.open(path)


def test_a_journal_of_schema_1_goes_on(path: Path) -> None:
    """Its rounds had no members that are not asked again. A reader waits for the broker to migrate it."""
    with contextlib.closing(sqlite3.connect(path)) as old:
        old.executescript(
            f"{schema.MIGRATIONS[0]} PRAGMA application_id = {schema.APPLICATION_ID}; PRAGMA user_version = 1;"
            "INSERT INTO versions (version, digest, size, layout, n, updates, examples, seconds, sigma,"
            " privacy_steps, created_at) VALUES (0, x'00', 9, x'01', 2, 0, 0, 0, 0, 0, 0);"
            'INSERT INTO rounds VALUES (0, \'["a", "b"]\', 2, 1, 30, 0, 0);'
        )
    with pytest.raises(StateError, match="start its broker once"):
        Journal.read_only(path)
    with contextlib.closing(Journal.open(path)) as journal:
        opened = journal.recover(0).round
        assert opened == RoundRow(buffer=0, cohort=("a", "b"), target=2, quorum=1, deadline_s=30.0)
        journal.apply([msgspec.structs.replace(opened, missing=("b",))])
        again = journal.recover(0).round
        assert again is not None
        assert again.missing == ("b",)


@pytest.mark.parametrize("opened", [Journal.open, Journal.read_only], ids=["writer", "reader"])
def test_a_later_schema_is_refused(path: Path, opened: object) -> None:
    """Migrations go forward only."""
    Journal.open(path).close()
    with contextlib.closing(sqlite3.connect(path)) as later:
        later.execute(f"PRAGMA user_version = {schema.SCHEMA + 1}")
    with pytest.raises(StateError, match="use a newer fedmq"):
        opened(path)  # type: ignore[operator]


def test_a_full_disk_is_a_clear_error_and_loses_nothing(path: Path) -> None:
    """What was committed before stays; the row that did not fit is not there by half."""
    with contextlib.closing(Journal.open(path)) as journal:
        journal.apply([version(0), update("a")])
        pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
        journal._db.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StateError, match="disk is full"):
            journal.apply([update("b", inline=os.urandom(60_000))])
        journal._db.execute("PRAGMA max_page_count = 1000000")
        assert [row.task for row in journal.recover(0).open] == [b"a"]


def test_what_was_accepted_is_counted_from_the_rows(path: Path) -> None:
    """Totals are written with versions: after a kill they are behind, and an operator would think that some is lost."""
    with contextlib.closing(Journal.open(path)) as journal:
        journal.apply([version(0), update("a"), CounterRow(counts={"accepted": 1, "stale": 2})])
        journal.apply([update("b")])
        assert journal.recover(0).counts == {"accepted": 2, "stale": 2}
    with Journal.read_only(path) as history:
        assert history.summary()["counts"] == {"accepted": 2, "stale": 2}


def test_a_federation_that_goes_on_after_all_is_not_finished(path: Path) -> None:
    """An operator who raised what stopped it wants more of it."""
    with contextlib.closing(Journal.open(path)) as journal:
        journal.apply([version(0), FinishRow(reason="made version 0")])
        assert journal.recover(0).finished == "made version 0"
        journal.apply([FinishRow(reason=None)])
        assert journal.recover(0).finished is None
