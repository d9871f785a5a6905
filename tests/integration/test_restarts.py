"""A federation that is stopped, killed and started again is the same federation, to the bit."""

import os
import random
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from .federation import Federation, Tables, log_of, run, wait_for

VERSIONS = 12
ROUNDS: Tables = {
    "federation": {"seed": 7},
    "mode": {"kind": "sync", "min_available": 3, "deadline_s": 0.0},
    "optimizer": {"kind": "momentum", "lr": 0.5, "beta": 0.9},
    "evaluate": {"every": 3},
    "stop": {"versions": VERSIONS},
}


def final_digest(folder: Path, tables: Tables, env: Mapping[str, str] | None = None) -> str:
    """The digest of the last version of a run that nothing disturbs."""
    with Federation(folder, tables, env) as f:
        f.start_broker()
        f.start_workers(3)
        f.finish()
        assert f.history()[-1]["version"] == VERSIONS
        return f.digest()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What `ROUNDS` must always come to."""
    return final_digest(tmp_path_factory.mktemp("undisturbed"), ROUNDS)


@pytest.mark.parametrize(
    "env",
    [
        {"FEDMQ_KERNELS": "python"},
        {"FEDMQ_NUM_THREADS": "1"},
        {"FEDMQ_NUM_THREADS": "3"},
        {"FEDMQ_ISA": "base"},
    ],
    ids=lambda env: "=".join(*env.items()),
)
def test_kernels_and_threads_do_not_matter(tmp_path: Path, undisturbed: str, env: dict[str, str]) -> None:
    """The same bits from Python's kernels and the native ones, with any number of threads."""
    assert final_digest(tmp_path, ROUNDS, env) == undisturbed


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_a_broker_that_ends_in_the_middle_changes_nothing(
    tmp_path: Path, undisturbed: str, number: signal.Signals
) -> None:
    """Four ends at arbitrary moments: the same model, momentum and all; workers come back by themselves."""
    rng = random.Random(int(number))
    with Federation(tmp_path, ROUNDS) as f:
        f.start_broker()
        f.start_workers(3, delay=0.02)
        for after in (1, 3, 6, 9):
            f.wait_for_version(after)
            time.sleep(rng.uniform(0, 0.1))
            f.stop_broker(number)
            f.start_broker()
        f.finish()
        assert f.digest() == undisturbed
        assert len({row[0] for row in f.query("SELECT task FROM updates")}) == 3 * VERSIONS


def test_kernels_may_change_in_the_middle(tmp_path: Path, undisturbed: str) -> None:
    """A broker that goes on with Python's kernels, on another machine say, gives the same bits."""
    with Federation(tmp_path, ROUNDS) as f:
        f.start_broker()
        f.start_workers(3, delay=0.02)
        f.wait_for_version(4)
        f.stop_broker(signal.SIGKILL)
        f.start_broker({"FEDMQ_KERNELS": "python"})
        assert f.status()["kernels"] == "python"
        f.finish()
        assert f.digest() == undisturbed


def test_workers_that_are_killed_change_nothing(tmp_path: Path, undisturbed: str) -> None:
    """Killed while it trains, a worker does the same task again when it is back: the round is the same."""
    with Federation(tmp_path, ROUNDS) as f:
        f.start_broker()
        f.start_workers(3, delay=0.05)
        for after, name in ((2, "w1"), (5, "w3"), (8, "w2")):
            f.wait_for_version(after)
            f.workers[name].kill()
            f.start_worker(name, number=int(name[1]), delay=0.05)
        f.finish()
        assert f.digest() == undisturbed


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("n", [1000, 30_000], ids=["inline", "spooled"])
def test_a_buffer_survives(tmp_path: Path, number: signal.Signals, n: int) -> None:
    """Updates that were accepted and not yet aggregated are still in the buffer, and are counted once."""
    tables: Tables = {"mode": {"kind": "async", "buffer": 5, "one_per_worker": True}, "stop": {"versions": 1}}
    with Federation(tmp_path, tables) as f:
        f.start_broker()
        for w in (1, 2, 3):
            f.start_worker(f"w{w}", number=w, n=n)
        wait_for("three durable updates", lambda: f.query("SELECT count(*) FROM updates") == [(3,)])
        accepted = f.query("SELECT task, digest FROM updates ORDER BY task")
        f.stop_broker(number)
        f.start_broker()
        assert f.status()["buffer"]["have"] == 3
        wait_for("workers are back", lambda: sum(w["state"] == "idle" for w in f.status()["workers"]) == 3)
        assert f.status()["state"] == "stalled"
        assert f.status()["reason"] == "needs 2 more workers"
        for w in (4, 5):
            f.start_worker(f"w{w}", number=w, n=n)
        f.finish()
        rows = f.query("SELECT task, digest FROM updates WHERE version = 1 ORDER BY task")
        assert len(rows) == 5
        assert set(accepted) <= set(rows)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_workers_that_missed_the_end_are_told(tmp_path: Path, number: signal.Signals) -> None:
    """Cut off when the federation ended, a worker would look for its broker for ever: the next start tells it."""
    with Federation(tmp_path, {"mode": {"kind": "async", "buffer": 2}}) as f:
        f.start_broker()
        f.start_workers(2, delay=0.02)
        wait_for(
            "both have worked", lambda: [w["updates"] > 0 for w in f.status()["workers"]] == [True, True]
        )
        f.wait_for_version(1)  # 0 would mean that it never stops
        f.stop_broker(number)
        f.tables["stop"] = {"versions": f.history()[-1]["version"]}  # it is over before they are back
        broker = f.start_broker()
        f.finish()
        assert "made version" in log_of(broker)
        assert f.query("SELECT count(*) FROM facts WHERE name = 'finished'") == [(1,)]


def test_only_some_keys_may_change(tmp_path: Path) -> None:
    """A restart names the keys that may not change; those that may are taken, and it says so."""
    with Federation(
        tmp_path, {"mode": {"kind": "async", "buffer": 2}, "optimizer": {"kind": "momentum"}}
    ) as f:
        f.start_broker()
        f.start_workers(2, delay=0.01)
        f.wait_for_version(2)
        f.stop_broker(signal.SIGTERM)
        before = f.toml.read_text(encoding="utf-8")
        digest = f.digest()

        f.toml.write_text(before.replace("buffer = 2", "buffer = 3").replace("beta = 0.9", "beta = 0.8"))
        refused = run("broker", f.toml, cwd=f.folder)
        assert refused.returncode == 6
        assert "mode.buffer: 2 -> 3" in refused.stderr
        assert "optimizer.beta: 0.9 -> 0.8" in refused.stderr
        assert refused.stderr.count("\n") == 1
        assert f.digest() == digest

        f.tables["mode"]["concurrency"] = 1
        f.tables["evaluate"]["every"] = 1
        f.start_broker()
        assert f.broker is not None
        changed = "mode.concurrency: 100 -> 1; evaluate.every: 0 -> 1"
        wait_for(changed, lambda: f.broker is not None and changed in log_of(f.broker))
        wait_for("measured", lambda: f.status()["metrics"])


def test_a_second_broker_is_refused(tmp_path: Path) -> None:
    """Of the same folder: one line that says which process has it, and the first goes on."""
    with Federation(tmp_path, {"mode": {"kind": "async", "buffer": 2}, "stop": {"versions": 200}}) as f:
        f.start_broker()
        assert f.broker is not None
        f.start_workers(2, delay=0.01)
        other = tmp_path / "other.toml"
        other.write_text(f.toml.read_text(encoding="utf-8").replace(f.endpoint, "tcp://127.0.0.1:*"))
        refused = run("broker", other, cwd=f.folder)
        assert refused.returncode == 6
        assert f"in use by process {f.broker.pid}" in refused.stderr
        assert refused.stderr.count("\n") == 1
        f.wait_for_more(2)
        assert (f.state / "endpoint").read_text(encoding="utf-8").strip() == f.endpoint
        os.kill(f.broker.pid, signal.SIGTERM)
        assert f.broker.join(30)
        assert f.broker.code == 0
