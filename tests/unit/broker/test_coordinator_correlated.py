"""Correlated noise: how soon again a worker has a part, whatever it does and whenever the broker dies."""

from typing import Any

import msgspec
import pytest

from fedmq.broker.events import Note
from fedmq.broker.rows import AcceptRow, VersionRow
from fedmq.fedcore import wire
from fedmq.fedcore.config import Aggregate, Config, Correlated, Evaluate, Stop, WorkerPrivacy

from .federation import LAYOUT, Federation, Worker, asynchronous


def separated(b: int = 3, cap: int = 4, versions: int = 20, **keys: Any) -> Config:
    """A worker in version t may be in version t + b next."""
    privacy = WorkerPrivacy(
        epsilon=8.0,
        delta=1e-5,
        clip_norm=1.0,
        max_participations=cap,
        noise_multiplier=10.0,
        correlated=Correlated(versions=versions, min_separation=b, bandwidth=2),
    )
    return asynchronous(
        privacy=privacy,
        aggregate=Aggregate(weight="uniform"),
        evaluate=Evaluate(every=0, fraction=0.0),
        one_per_worker=True,
        **({"buffer": 1} | keys),
    )


def version(federation: Federation, *workers: Worker) -> None:
    """Each of them finishes its task, and the version is made."""
    for worker in workers:
        assert worker.fit().result == "accepted"
    federation.fold()


def about(task: bytes, base: int = 0) -> wire.Task:
    return wire.Task(task=task, seq=1, kind="fit", version=base, size=1, digest=bytes(16), layout=LAYOUT)


def test_a_worker_gets_a_task_again_b_versions_later() -> None:
    """Not before, and at once when the open buffer is the first that it may be in."""
    federation = Federation(separated(3))
    first, second, third = federation.workers(3)
    version(federation, first)  # version 1
    federation.wait(10.0)
    assert len(first.tasks()) == 1
    version(federation, second)  # version 2
    federation.wait(10.0)
    assert len(first.tasks()) == 1
    version(federation, third)  # version 3: the open buffer makes version 4
    assert [len(w.tasks()) for w in (first, second, third)] == [2, 1, 1]
    version(federation, first)
    assert {row.worker for row in federation.durable(AcceptRow) if row.buffer == 3} == {"w0"}


def test_it_is_handed_out_when_a_buffer_is_full_and_not_when_it_is_folded() -> None:
    """A rest ends with the open buffer, however many wait to be folded."""
    federation = Federation(separated(2, max_staleness=10))
    first, second = federation.workers(2)
    first.fit()
    second.fit()
    assert federation.folds
    assert federation.status()["version"] == 0
    assert len(first.tasks()) == 2


def test_b_of_1_forbids_no_more_than_one_update_a_buffer() -> None:
    """Then the noise is correlated, and who is in a version may be in the next."""
    federation = Federation(separated(1))
    (only,) = federation.workers(1)
    version(federation, only)
    version(federation, only)
    assert [row.info.version for row in federation.durable(VersionRow)] == [0, 1, 2]


@pytest.mark.parametrize("restart", [False, True])
def test_an_update_that_comes_too_soon_is_refused(restart: bool) -> None:
    """Hand-outs are not journalled: an earlier life's task is good, and too soon. Its worker need not ask again."""
    federation = Federation(separated(3))
    first, second = federation.workers(2)
    version(federation, first)
    version(federation, second)
    if restart:
        federation.restart()
        first = federation.worker("w0")
    assert not first.got(wire.Task)[1:]
    first.offer(about(federation.task_id("fit", "w0", 2), 2))
    ack = first.last(wire.Ack)
    assert (ack.result, ack.reason.partition(":")[0]) == ("stale", "privacy separation")
    assert [note.text for note in federation.notes if isinstance(note, Note)][-1] == "update stale"
    assert len(federation.durable(AcceptRow)) == 2


@pytest.mark.parametrize("restart", [False, True])
def test_what_is_frozen_and_what_is_buffered_counts(restart: bool) -> None:
    """A version that is still to be made is as good as made."""
    federation = Federation(separated(3, buffer=2, max_staleness=10))
    first, second, third = federation.workers(3)
    first.fit()
    second.fit()  # frozen, not folded
    third.fit()  # buffered
    if restart:
        federation.restart()
        first, second, third = federation.workers(3)
    for name, worker in (("w0", first), ("w2", third)):
        worker.offer(about(federation.task_id("fit", name, 0)))
        ack = worker.last(wire.Ack)
        assert (ack.result, ack.reason.partition(":")[0]) == ("stale", "privacy separation")
    federation.fold()
    assert [row.worker for row in federation.durable(AcceptRow)] == ["w0", "w1", "w2"]


def test_the_last_part_is_the_versions() -> None:
    """One transaction: killed before it, the rows count as frozen; after it, the ledger knows."""
    federation = Federation(separated(2))
    (first,) = federation.workers(1)
    first.fit()
    federation.hold = True
    federation.fold()
    federation.restart()  # the version's row was not durable
    (first,) = federation.workers(1)
    assert not first.tasks()
    federation.fold()
    federation.restart()
    (first,) = federation.workers(1)
    assert not first.tasks()
    second = federation.worker("w1")
    version(federation, second)
    assert len(first.tasks()) == 1


def test_status_says_who_rests_and_how_many_are_missing() -> None:
    """A buffer that the workers who are here cannot fill is no silent wait; somebody new makes it go on."""
    federation = Federation(separated(3, buffer=2))
    version(federation, *federation.workers(2))
    status = federation.status()
    assert (status["state"], status["reason"]) == (
        "stalled",
        "needs 2 more workers: 2 here have been in one of the last 2 versions (privacy.correlated.min_separation)",
    )
    assert [worker["state"] for worker in status["workers"]] == ["resting", "resting"]
    new = federation.worker("w2")
    assert federation.status()["reason"].startswith("needs 1 more worker: 2 here have been")
    version(federation, new, federation.worker("w3"))


def test_status_tells_those_that_rest_from_those_that_have_spent_their_budget() -> None:
    """Who has spent it comes back never."""
    federation = Federation(separated(3, cap=1, buffer=2))
    version(federation, *federation.workers(2))
    status = federation.status()
    assert status["reason"] == "needs 2 more workers: 2 here have spent the privacy budget"
    assert [worker["state"] for worker in status["workers"]] == ["spent", "spent"]


def test_no_version_is_made_that_is_not_planned_for() -> None:
    """Whatever [stop] says, and whatever it said before."""
    federation = Federation(separated(1, cap=9, versions=2, max_staleness=10))
    one, two = federation.workers(2)
    one.fit()
    two.fit()
    one.offer(about(federation.task_id("fit", "w0", 0)))
    assert one.last(wire.Ack).reason.startswith("the federation needs no more updates")
    federation.fold()
    federation.fold()
    assert not federation.folds
    assert federation.status()["state"] == "finished"
    assert federation.status()["reason"] == "the privacy budget is spent"
    federation.config = msgspec.structs.replace(federation.config, stop=Stop(versions=1))
    federation.restart()
    assert federation.status()["version"] == 2
    assert not federation.worker("w2").tasks()
