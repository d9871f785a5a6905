"""Disks that are full and folders that are read-only, under a broker and under a worker.

A broker that cannot keep its word ends: one line that says what is wrong, a non-zero exit code, and nothing
acknowledged that is not there. When there is room again the next start goes on. A worker stays: its task fails, and
a later one is done.
"""

import contextlib
import random
import time
from pathlib import Path

import pytest

from fedmq.cli.processes import Child

from ..integration.federation import WAIT_S, Federation, Program, log_of, wait_for
from . import marked
from .marked import MARKED, Recovery, accepted, judge, wait_for_more, wait_for_updates
from .rounds import times
from .tally import Tally
from .volumes import Limit, Volume, protect, ran_in_a_namespace, small, unprotect, without_licence

TURNS = times(1, 5)
BROKER_FULL, WORKER_FULL = "disk full under the broker", "disk full under a worker"
BROKER_READ_ONLY, WORKER_READ_ONLY = "state folder read-only, broker", "state folder read-only, worker"
MIB = 1 << 20


def ends_with(f: Federation, said: str) -> None:
    """The broker ends with its last line about the disk, and the exit code of a state folder."""
    broker = f.broker
    assert broker is not None
    assert broker.join(WAIT_S), f"the broker goes on without a disk\n{log_of(broker)}"
    last = log_of(broker).splitlines()[-1]
    assert last.startswith("fedmq: "), log_of(broker)
    assert said in last, last
    assert broker.code == 6, last
    print(last)


def refused_to_start(f: Federation, volume: Volume) -> None:
    """A start on a full disk is refused in one line."""
    if isinstance(volume, Limit):
        return  # a limit is one process's, and the next one has none
    again = f.spawn("again", "broker", f.toml)
    assert again.join(WAIT_S), "it started on a full disk"
    last = log_of(again).splitlines()[-1]
    assert again.code == 6, last
    assert volume.says in last, last


@pytest.mark.timeout(120 + 60 * TURNS)
def test_a_full_disk_under_the_broker(
    tmp_path: Path, rng: random.Random, tally: Tally, request: pytest.FixtureRequest
) -> None:
    """It ends, refuses to start on the full disk, and with room goes on where it was: see `marked`."""
    if ran_in_a_namespace(f"{request.path}::{request.node.name}", tally):
        return
    with small(tmp_path / "state", 96 * MIB) as volume, Federation(tmp_path, MARKED) as f:
        marked.start(f)
        for _ in range(TURNS):
            assert f.broker is not None
            volume.fill(rng.choice([0, rng.randrange(300_000)]), f.broker.pid)
            ends_with(f, volume.says)
            volume.fill(0, f.broker.pid)  # its end may have freed something
            refused_to_start(f, volume)
            volume.make_room(f.broker.pid)
            recovery = Recovery(f)
            f.start_broker()
            tally.injected(BROKER_FULL, recovery.wait())
        marked.finish(f)
        verdict = judge(f, rng)
        tally.judged([BROKER_FULL], verdict.lost, verdict.twice)


def complaints(worker: Child | Program) -> int:
    """How often a worker has said that a result, or a model, cannot be kept."""
    log = log_of(worker)
    return log.count("the result cannot be kept") + log.count("the model cannot be stored")


def fill_until(volume: Volume, spare: int, worker: Child | Program, said: int) -> None:
    """Fill it until the worker says so: what it deletes meanwhile, models and results, would make room for the next."""

    def refused() -> bool:
        volume.fill(spare, worker.pid)
        return complaints(worker) > said

    wait_for("it says so", refused)


@pytest.mark.timeout(120 + 90 * TURNS)
@pytest.mark.parametrize("number", [1, 3], ids=["inline", "spooled"])
def test_a_full_disk_under_a_worker(
    tmp_path: Path, rng: random.Random, tally: Tally, request: pytest.FixtureRequest, number: int
) -> None:
    """It stays, says what is wrong, and works again when there is room; meanwhile the others do."""
    if ran_in_a_namespace(f"{request.path}::{request.node.name}", tally):
        return
    name = f"w{number}"
    with small(tmp_path / name, 2 * MIB) as volume, Federation(tmp_path, MARKED) as f:
        marked.start(f)
        worker = f.workers[name]
        for _ in range(TURNS):
            said = complaints(worker)
            fill_until(volume, rng.randrange(30_000), worker, said)
            wait_for_updates(f, marked.BUFFER)
            volume.make_room(worker.pid)
            tally.injected(WORKER_FULL, Recovery(f, name).wait())
        assert worker.code is None, "it is the same process"
        marked.finish(f)
        verdict = judge(f, rng)
        tally.judged([WORKER_FULL], verdict.lost, verdict.twice)


def test_a_worker_on_a_disk_that_is_full_at_its_start(
    tmp_path: Path, tally: Tally, request: pytest.FixtureRequest
) -> None:
    """It says so in one line and exits with the code of a state folder; with room it starts."""
    if ran_in_a_namespace(f"{request.path}::{request.node.name}", tally):
        return
    with small(tmp_path / "w1", MIB) as volume, Federation(tmp_path, MARKED) as f:
        f.start_broker()
        if isinstance(volume, Limit):
            return  # said so: a limit is one process's, and cannot be set before it starts
        volume.fill(0, 0)
        worker = f.start_worker("w1", "marker:App", number=1, marks="marks-1")
        assert worker.join(WAIT_S), "it started on a full disk"
        last = log_of(worker).splitlines()[-1]
        assert worker.code == 6, last
        assert "No space left on device; make room" in last, last
        volume.make_room(0)
        marked.start_worker(f, 1)
        wait_for("it works", lambda: accepted(f, "w1"))


@pytest.mark.timeout(120 + 60 * TURNS)
def test_a_state_folder_that_becomes_read_only(tmp_path: Path, rng: random.Random, tally: Tally) -> None:
    """The broker ends in one line, refuses to start, changes nothing; writable again, it goes on."""
    with Federation(tmp_path, MARKED) as f, contextlib.ExitStack() as stack:
        stack.callback(unprotect, f.state)
        without_licence(f.start_broker)
        for number in range(1, 5):
            marked.start_worker(f, number)
        f.wait_for_version(1)
        for _ in range(TURNS):
            time.sleep(rng.uniform(0.0, 0.5))
            protect(f.state)
            ends_with(f, "writable")
            before = {path: path.stat().st_mtime_ns for path in f.state.rglob("*")}
            again = without_licence(lambda: f.spawn("again", "broker", f.toml))
            assert again.join(WAIT_S), "it started on a folder that it cannot write"
            assert again.code == 6, log_of(again)
            assert "writable" in log_of(again).splitlines()[-1]
            assert {path: path.stat().st_mtime_ns for path in f.state.rglob("*")} == before
            unprotect(f.state)
            recovery = Recovery(f)
            without_licence(f.start_broker)
            tally.injected(BROKER_READ_ONLY, recovery.wait())
        marked.finish(f)
        verdict = judge(f, rng)
        tally.judged([BROKER_READ_ONLY], verdict.lost, verdict.twice)


@pytest.mark.timeout(120 + 90 * TURNS)
def test_a_worker_whose_folder_becomes_read_only(tmp_path: Path, rng: random.Random, tally: Tally) -> None:
    """Its tasks fail, and it stays; writable again, it works."""
    with Federation(tmp_path, MARKED) as f, contextlib.ExitStack() as stack:
        stack.callback(unprotect, f.folder / "w1")
        f.start_broker()
        without_licence(lambda: marked.start_worker(f, 1))
        for number in (2, 3, 4):
            marked.start_worker(f, number)
        wait_for("it works", lambda: accepted(f, "w1"))
        worker = f.workers["w1"]
        for _ in range(TURNS):
            said = log_of(worker).count("Permission denied")
            protect(f.folder / "w1")
            wait_for_more("it says so", lambda: log_of(worker).count("Permission denied"), said)
            wait_for_updates(f, marked.BUFFER)
            unprotect(f.folder / "w1")
            tally.injected(WORKER_READ_ONLY, Recovery(f, "w1").wait())
        assert worker.code is None, "it is the same process"
        marked.finish(f)
        verdict = judge(f, rng)
        tally.judged([WORKER_READ_ONLY], verdict.lost, verdict.twice)
