"""Worker-level privacy: how often a worker has a part, whatever it does and whenever the broker dies."""

import math
from typing import Any

import msgspec
import pytest

from fedmq.broker.rows import AcceptRow, VersionRow
from fedmq.fedcore import wire
from fedmq.fedcore.config import Aggregate, Config, Evaluate, WorkerPrivacy

from .federation import LAYOUT, Federation, Worker, asynchronous, payload


def private(cap: int = 2, **keys: Any) -> Config:
    privacy = WorkerPrivacy(
        epsilon=8.0, delta=1e-5, clip_norm=1.0, max_participations=cap, noise_multiplier=10.0
    )
    return asynchronous(
        privacy=privacy,
        aggregate=Aggregate(weight="uniform"),
        evaluate=Evaluate(every=0, fraction=0.0),
        one_per_worker=True,
        **({"buffer": 2} | keys),
    )


def version(federation: Federation, *workers: Worker) -> None:
    """Each of them finishes its task, and the version is made."""
    for worker in workers:
        assert worker.fit().result == "accepted"
    federation.fold()


def test_a_buffer_is_released_with_k_updates_of_k_workers() -> None:
    """A second one of the same worker has to wait for the next buffer, and it gets no task before."""
    federation = Federation(private())
    one, two = federation.workers(2)
    one.fit()
    assert len(one.tasks()) == 1
    federation.wait(20.0)
    assert not federation.folds
    two.fit()
    assert {row.worker for row in federation.fold().rows} == {"w0", "w1"}
    assert len(one.tasks()) == 2


def test_staleness_lowers_a_weight_and_examples_do_not_raise_it() -> None:
    """1 at the most: with more, one worker could move the sum by more than the clip norm."""
    federation = Federation(private(cap=5))
    late, *others = federation.workers(3)
    version(federation, *others)
    late.fit(examples=1000)
    (row,) = [row for row in federation.durable(AcceptRow) if row.worker == "w0"]
    assert row.tau == 1
    assert row.weight == pytest.approx(2**-0.5, rel=1e-5)
    assert {row.weight for row in federation.durable(AcceptRow) if row.worker != "w0"} == {1.0}


def test_a_worker_at_its_cap_gets_no_task() -> None:
    """What is accepted and not yet released counts as spent."""
    federation = Federation(private(cap=1))
    one, two = federation.workers(2)
    one.fit()
    assert len(one.tasks()) == 1
    version(federation, two)
    for worker in (one, two):
        worker.beat()
    federation.wait(60.0)
    assert (len(one.tasks()), len(two.tasks())) == (1, 1)


def test_an_update_that_would_pass_the_cap_is_refused() -> None:
    """Hand-outs are not journalled: a task of an earlier life is good, and its worker's budget is spent."""
    federation = Federation(private(cap=1))
    one, two = federation.workers(2)
    again = msgspec.structs.replace(one.task(), task=federation.task_id("fit", "w0", 0))
    version(federation, one, two)
    one.offer(again)
    ack = one.last(wire.Ack)
    assert (ack.result, ack.reason.partition(":")[0]) == ("stale", "privacy budget")
    assert len(federation.durable(AcceptRow)) == 2


def test_a_frozen_buffer_counts_before_and_after_a_restart() -> None:
    """What will be released is as good as spent."""
    federation = Federation(private(cap=1))
    for worker in federation.workers(2):
        worker.fit()
    again = federation.task_id("fit", "w0", 0)
    federation.restart()
    one = federation.worker("w0")
    assert not one.tasks()
    one.offer(wire.Task(task=again, seq=1, kind="fit", version=0, size=1, digest=bytes(16), layout=LAYOUT))
    assert one.last(wire.Ack).result == "stale"


def test_the_charge_is_the_versions() -> None:
    """Killed before the commit, the same rows are folded again and charged once; after it, they stay charged."""
    federation = Federation(private(cap=2))
    for worker in federation.workers(2):
        worker.fit()
    federation.hold = True
    federation.fold()
    federation.restart()  # the version's row was not durable
    assert [row.charged for row in federation.durable(VersionRow)] == [None]
    workers = federation.workers(2)
    assert len(federation.folds) == 1
    federation.fold()
    assert [row.charged for row in federation.durable(VersionRow)] == [None, 1.0]
    federation.restart()
    version(federation, *federation.workers(2))
    federation.restart()
    workers = federation.workers(2)
    assert not any(worker.tasks() for worker in workers)


def test_an_update_that_is_not_finite_keeps_its_slot_and_costs_as_much() -> None:
    """Who is in a version, and what it costs, does not depend on data."""
    federation = Federation(private(cap=1))
    one, two = federation.workers(2)
    assert one.fit(payload(math.nan)).result == "accepted"
    version(federation, two)
    one.beat()
    assert len(one.tasks()) == 1


def test_status_says_how_many_workers_are_missing_for_privacy() -> None:
    """A buffer that can never be full is no silent wait; somebody new makes it go on."""
    federation = Federation(private(cap=1))
    version(federation, *federation.workers(2))
    status = federation.status()
    assert (status["state"], status["reason"]) == (
        "stalled",
        "needs 2 more workers: 2 here have spent the privacy budget",
    )
    new = federation.worker("w2")
    assert federation.status()["reason"] == "needs 1 more worker: 2 here have spent the privacy budget"
    version(federation, new, federation.worker("w3"))


def test_nothing_of_a_single_worker_is_published() -> None:
    """No norm, no metrics, no number of updates; and nobody is asked to evaluate."""
    federation = Federation(private())
    one, two = federation.workers(2)
    one.fit(metrics={"loss": 3.0})
    status = federation.status()
    assert status["buffer"]["have"] is None
    assert [worker["updates"] for worker in status["workers"]] == [None, None]
    assert federation.mind.measure(federation.now).numbers["fedmq_update_norm"].total == 0
    version(federation, two)
    assert federation.durable(VersionRow)[-1].update_norm is None
    assert not one.tasks("evaluate")
    assert not federation.status()["metrics"]


def test_updates_of_workers_that_left_still_count() -> None:
    """Nothing is stalled that the workers who are here can fill."""
    federation = Federation(private(cap=1, buffer=3))
    first = federation.workers(3)
    gone = federation.worker("gone")
    version(federation, *first)
    assert gone.fit().result == "accepted"
    gone.say(wire.Bye())
    federation.worker("new-1")
    federation.worker("new-2")
    assert federation.status()["state"] == "running"


def test_the_clip_norm_of_a_fold_is_that_of_its_base() -> None:
    """What the version before left, before and after a restart; status shows it."""
    federation = Federation(private(cap=9))
    assert federation.status()["clip_norm"] is None  # constant: it is in the config
    left = msgspec.structs.replace(federation.info(1), clip_norm=2.5)
    federation.info = lambda version: msgspec.structs.replace(left, version=version)  # type: ignore[method-assign]
    version(federation, *federation.workers(2))
    for _ in range(2):
        assert federation.status()["clip_norm"] == 2.5
        federation.restart()
    for worker in federation.workers(2):
        worker.fit()
    assert federation.folds[0].base.clip_norm == 2.5
