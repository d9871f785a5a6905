"""A backup that is taken under load and restored: what was in it is intact, and the federation goes on."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from fedmq.broker.daemon import Broker
from fedmq.broker.store.backup import backup
from fedmq.broker.store.history import History

from . import by_hand
from .by_hand import worker
from .federation import Federation, Tables, log_of, run, wait_for

MORE = 10
KEPT: Tables = {"storage": {"keep_payloads": True}, "optimizer": {"kind": "momentum", "lr": 0.5}}
ROUNDS: Tables = {
    **KEPT,
    "federation": {"seed": 7},
    "mode": {"kind": "sync", "min_available": 3, "deadline_s": 0.0},
}
BUFFERS: Tables = {**KEPT, "mode": {"kind": "async", "buffer": 4}}


@pytest.mark.parametrize("n", [1000, 30_000], ids=["inline", "spooled"])
@pytest.mark.parametrize("tables", [BUFFERS, ROUNDS], ids=["async", "sync"])
def test_a_federation_goes_on_from_a_backup(tmp_path: Path, tables: Tables, n: int) -> None:
    """Nothing of the copy is lost, workers come back by themselves, and every version can be recomputed."""
    with Federation(tmp_path, tables) as f:
        f.start_broker()
        f.start_workers(3, n=n, delay=0.02)
        f.wait_for_version(3)
        taken = json.loads(f.cli("backup", f.folder / "copy", "--json"))["version"]
        f.wait_for_version(taken + 3)
        f.stop_broker(signal.SIGKILL)
        lost = f.history()
        f.state.rename(f.folder / "lost")
        (f.folder / "copy").rename(f.state)
        assert f.history() == lost[: taken + 1]

        f.tables["stop"] = {"versions": taken + MORE}
        broker = f.start_broker()
        f.finish()
        assert "state folder is a backup" in log_of(broker)
        made = f.history()
        assert made[: taken + 1] == lost[: taken + 1]
        assert made[-1]["version"] == taken + MORE
        if tables is ROUNDS:
            # With a full cohort and a seed, what was forgotten is made again, byte for byte.
            both = min(len(made), len(lost))
            assert [row["digest"] for row in made[:both]] == [row["digest"] for row in lost[:both]]
        # Each update of the copy is in exactly one version: verify reads and folds all of them again.
        last = taken + MORE
        assert f.query(f"SELECT count(*) FROM updates WHERE version IS NULL AND buffer < {last}") == [(0,)]
        verified = run("verify", f.state, cwd=f.folder)
        assert verified.returncode == 0, verified.stderr
        assert f"{last} versions recomputed" in verified.stdout


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """A version for every update."""
    return by_hand.settings(tmp_path)


def at_version(broker: Broker, version: int) -> None:
    """Wait until it has come so far."""
    wait_for(f"version {version}", lambda: broker.status()["version"] == version)


def test_work_on_a_model_that_the_backup_never_had_is_refused(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    """A task id names the bytes of its model: the restored version 2 is another, and takes no update of the first."""
    with Broker(settings) as broker, worker(broker.endpoint) as w:
        w.fit()
        at_version(broker, 1)
        known = w.task()
        summary = backup(settings["federation"]["state"], tmp_path / "copy")
        assert (summary.version, summary.updates) == (1, 1)
        w.offer(known)
        while (newer := w.task()).version < 2:
            w.offer(newer)
    settings["federation"]["state"] = str(tmp_path / "copy")
    with Broker(settings) as broker, worker(broker.endpoint) as w:
        assert broker.status()["version"] == 1
        refused = w.offer(newer)
        assert (refused.result, refused.reason) == (
            "rejected",
            "task: against a version that this federation does not have",
        )
        # What it was asked before the backup is still worth something, with other bytes as well.
        assert w.offer(known, 7.0).result == "accepted"
        for version in range(2, newer.version):
            at_version(broker, version)
            assert w.fit().result == "accepted"
        at_version(broker, newer.version)
        refused = w.offer(newer)
        assert (refused.result, refused.reason) == (
            "rejected",
            "task: not this worker's, or against another model",
        )
    with (
        History.open(tmp_path / "copy" / "journal.db") as copy,
        History.open(tmp_path / "state" / "journal.db") as old,
    ):
        assert [row["digest"] for row in copy.history()[:2]] == [row["digest"] for row in old.history()[:2]]
        assert copy.history()[2]["digest"] != old.history()[2]["digest"]


def test_a_broker_is_not_kept_waiting(settings: dict[str, Any], tmp_path: Path) -> None:
    """It commits, folds and collects while a copy is held up in the middle."""
    with Broker(settings) as broker, worker(broker.endpoint) as w:
        w.fit()
        at_version(broker, 1)
        held = 0

        def hold(done: int, total: int) -> None:
            nonlocal held
            held += 1
            if held == 1:
                for version in range(2, 8):
                    assert w.fit().result == "accepted"
                    at_version(broker, version)

        ends = time.monotonic() + 60
        summary = backup(settings["federation"]["state"], tmp_path / "copy", progress=hold)
        assert time.monotonic() < ends
        assert (summary.version, summary.missed_versions) == (1, 6)
    settings["federation"]["state"] = str(tmp_path / "copy")
    with Broker(settings) as broker:
        assert broker.status()["version"] == 1
