"""What the threads beside the I/O thread do with their jobs."""

import collections
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fedmq.broker.events import Adopt, Adopted, OpenUpload, Refused, Seal, WritePart
from fedmq.broker.rows import CounterRow
from fedmq.broker.store.journal import Journal
from fedmq.broker.store.spool import Spool
from fedmq.broker.store.versions import VersionStore
from fedmq.broker.threads import Commits, Durable, Failed, Notice, Service, Spooler, Spooling
from fedmq.fedcore import model_file
from fedmq.fedcore.inbox import Inbox

MODEL = b"".join(model_file.from_arrays({"w": np.arange(5, dtype=np.float32)}).chunks)


@pytest.fixture
def versions(tmp_path: Path) -> VersionStore:
    return VersionStore(tmp_path / "versions", fsync=False)


@pytest.fixture
def spooler(tmp_path: Path, versions: VersionStore) -> Iterator[Spooler]:
    with contextlib.closing(Spool(tmp_path / "spool", fsync=False)) as spool:
        yield Spooler(spool, versions, max_bytes=10_000)


def carry_out(spooler: Spooler, *jobs: Spooling) -> list[Notice]:
    return list(spooler(collections.deque(jobs)))


def test_a_workers_file_becomes_version_0(spooler: Spooler, versions: VersionStore) -> None:
    """Uploaded in parts, or inline: the same file, with its digest, size and layout."""
    upload = (OpenUpload(b"t", len(MODEL), "safetensors"), WritePart(b"t", 0, memoryview(MODEL)), Seal(b"t"))
    for adopt, jobs in ((Adopt(b"t"), upload), (Adopt(b"t", MODEL), ())):
        adopted = carry_out(spooler, *jobs, adopt)[-1]
        assert isinstance(adopted, Adopted)
        info = adopted.info
        assert (info.version, info.n, info.size) == (0, 5, len(MODEL))
        assert versions.layout(0).digest == info.layout
        versions.verify(0, size=info.size, digest=info.digest)


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (b"no model at all, but long enough", "not a safetensors file"),
        (MODEL[:-1], "safetensors file of"),
        (MODEL + bytes(10_000), "expected at most 10000"),
        (
            b"".join(model_file.from_arrays({"w": np.zeros(2, np.float32)}).chunks)[:-4]
            + np.float32("nan").tobytes(),
            "not finite",
        ),
    ],
    ids=["no model", "cut", "too large", "NaN"],
)
def test_a_file_that_is_no_model_is_refused_with_its_reason(
    spooler: Spooler, versions: VersionStore, file: bytes, reason: str
) -> None:
    """Nothing is left of it."""
    (refused,) = carry_out(spooler, Adopt(b"t", file))
    assert isinstance(refused, Refused)
    assert reason in refused.reason
    assert versions.versions() == ()


def test_a_commit_that_takes_long_shows_in_the_latencies(tmp_path: Path) -> None:
    """Median and tail of what a COMMIT took, for the status."""
    with contextlib.closing(Journal.open(tmp_path / "journal.db", "os")) as journal:
        commits = Commits(journal)
        assert commits.latency_ms() == {"commits": 0, "median": 0.0, "p99": 0.0}
        for _ in range(5):
            assert list(commits(collections.deque([(CounterRow(counts={"n": 1}),)] * 3))) == [Durable(3)]
        found = commits.latency_ms()
        assert found["commits"] == 5
        assert 0 < found["median"] <= found["p99"]
        assert sum(commits.times.counts) == 5
        assert commits.rows == 15
        assert commits.running_s() == 0.0
        assert journal.recover(0).counts == {"n": 15}


def test_a_commit_that_does_not_end_can_be_seen() -> None:
    """From another thread, while the disk keeps the store thread waiting."""

    class Stuck(Journal):
        commit_s = 0.0

        def __init__(self) -> None:
            self.entered, self.go = threading.Event(), threading.Event()

        def apply(self, rows: object) -> None:
            self.entered.set()
            assert self.go.wait(10)

    journal = Stuck()
    inbox: Inbox[Notice] = Inbox()
    commits = Commits(journal)
    service = Service("store", inbox, commits)
    for _ in range(3):
        service.put(())
    assert journal.entered.wait(10)
    assert commits.running_s() > 0.0
    service.put(())
    assert service.waiting >= 1
    journal.go.set()
    assert service.close(10)
    assert commits.running_s() == 0.0
    assert inbox.waiting >= 1
    inbox.close()


def test_a_job_that_fails_is_reported_once_and_ends_the_thread() -> None:
    """Jobs after it are not done: what they would promise is not promised."""
    inbox: Inbox[Notice] = Inbox()
    ready = threading.Event()
    done: list[int] = []

    def work(jobs: "collections.deque[int]") -> Iterator[Notice]:
        assert ready.wait(10)
        while jobs:
            job = jobs.popleft()
            if job == 2:
                raise OSError(28, "No space left on device")
            done.append(job)
            yield Durable(job)

    service: Service[int] = Service("test", inbox, work)
    for job in range(5):
        service.put(job)
    ready.set()
    assert service.close(10)
    *before, failed = inbox.drain()
    assert done == [0, 1]
    assert before == [Durable(0), Durable(1)]
    assert isinstance(failed, Failed)
    assert (failed.thread, str(failed.error)) == ("test", "[Errno 28] No space left on device")
    inbox.close()
