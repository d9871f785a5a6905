"""Freeze a state folder of a schema for the tests of upgrades: ``python -m tests.upgrades.freeze SCHEMA``.

To be run in the repository's root, when a release brings a new schema, with that release's code; the folder is then
committed and never made again. It holds a synchronous federation of two workers, `a` and `b`, in the middle of a round:
two versions are made, `a` has answered for the third, in PARTs, and `b` has its task in hand.

A schema before the current one (there was no release yet when schema 2 came) gets the same rows without the columns
that it did not have.
"""

import base64
import sqlite3
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from fedmq.broker.daemon import Broker
from fedmq.broker.store import schema
from fedmq.broker.store.history import History
from fedmq.fedcore import config, model_file, wire

from ..integration.by_hand import Worker, worker
from . import frozen

N = 8
SETTINGS = {
    "federation": {"name": "frozen", "bind": "tcp://127.0.0.1:*", "state": "state", "seed": 3},
    "model": {"initial": "model.safetensors"},
    "mode": {"kind": "sync", "min_available": 2, "deadline_s": 0.0},
    "optimizer": {"kind": "momentum", "lr": 0.5},
    "evaluate": {"every": 0},
    "storage": {"durability": "os", "keep": 1000, "keep_payloads": True},
}
TEXTS = ("federation.json", "config.toml")
KEYS = ("keys/mac", "keys/noise")


def main() -> None:
    number = int(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        model_file.write_chunks(
            base / "model.safetensors", model_file.from_arrays({"w": np.zeros(N, np.float32)}).chunks
        )
        settings = config.parse(SETTINGS, base_dir=base)
        task = run(settings)
        state = base / "state"
        journal = dump(state / "journal.db", number)
        # Where it was made is nobody's business: a folder may be moved.
        texts = {name: (state / name).read_text("utf-8").replace(folder, "/srv/frozen") for name in TEXTS}
        files = {name: (state / name).read_bytes() for name in KEYS}
        for path in [*(state / "versions").iterdir(), *(state / "spool").iterdir()]:
            files[path.relative_to(state).as_posix()] = path.read_bytes()
        initial = (base / "model.safetensors").read_bytes()
        finish(settings, task)
        with History.open(state / "journal.db") as history:
            digests = [row["digest"] for row in history.history()]
        assert task.layout is not None
        frozen.write(
            frozen.FOLDERS / f"schema{number}",
            journal,
            frozen.Frozen(
                texts=texts,
                files={name: base64.b64encode(content).decode() for name, content in files.items()},
                initial=base64.b64encode(initial).decode(),
                task=task.task.hex(),
                layout=task.layout.hex(),
                digests=digests,
            ),
        )


def run(settings: config.Config) -> wire.Task:
    """Two versions, and half of a round; the task that `b` has."""
    with (
        Broker(settings) as broker,
        worker(broker.endpoint, "a", n=N) as a,
        worker(broker.endpoint, "b", n=N) as b,
    ):
        for version in range(2):
            for value, w in enumerate((a, b), start=1):
                assert w.fit(value + version).result == "accepted"
        assert a.fit(3.0, inline=False).result == "accepted"
        task = b.task()
        assert task.version == 2
        return task


def finish(settings: config.Config, task: wire.Task) -> None:
    """The answer of `b`, and the version that comes of it."""
    with Broker(settings) as broker, worker(broker.endpoint, "b", n=N, tasks=(task.task,)) as b:
        answer(broker, b, task)


def answer(broker: Broker, b: Worker, task: wire.Task) -> None:
    """What `b` makes of its task, and the wait for the version."""
    assert b.offer(task, 5.0).result == "accepted"
    ends = time.monotonic() + 60
    while broker.status()["version"] != task.version + 1:
        assert time.monotonic() < ends
        time.sleep(0.02)


def dump(path: Path, number: int) -> str:
    """A journal as SQL, in a schema that is not later than its own."""
    db = frozen.empty(number)
    triggers = db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        db.execute(f"DROP TRIGGER {name}")
    source = sqlite3.connect(path)
    for (table,) in db.execute(
        "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY rootpage"
    ).fetchall():
        columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
        places = ", ".join("?" * len(columns))
        rows = source.execute(f"SELECT {', '.join(columns)} FROM {table}")
        db.executemany(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places})", rows)
    source.close()
    for _, sql in triggers:
        db.execute(sql)
    head = [f"PRAGMA application_id = {schema.APPLICATION_ID};", f"PRAGMA user_version = {number};"]
    return "\n".join([*head, *db.iterdump()]) + "\n"


if __name__ == "__main__":
    main()
