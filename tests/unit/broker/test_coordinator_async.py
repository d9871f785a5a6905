"""Asynchronous federations: who gets a task, when a buffer is full, and what staleness does."""

import math
from typing import Any

import pytest

from fedmq.broker.rows import AcceptRow, FinishRow, FreezeRow, VersionRow
from fedmq.fedcore import wire
from fedmq.fedcore.config import Aggregate, Evaluate, Stop, Storage

from .federation import Federation, asynchronous


def test_concurrency_bounds_the_tasks_that_are_out() -> None:
    """A worker that has offered is not counted any more."""
    federation = Federation(asynchronous(concurrency=2))
    workers = federation.workers(4)
    assert [len(worker.tasks()) for worker in workers] == [1, 1, 0, 0]
    workers[0].offer(workers[0].task())
    assert [len(worker.tasks()) for worker in workers] == [1, 1, 1, 0]


def test_tasks_spread_before_they_pile_up() -> None:
    """A worker with room for two gets its second when everybody had one."""
    federation = Federation(asynchronous(concurrency=3))
    federation.operate("pause")
    workers = federation.workers(2, free=2)
    federation.operate("resume")
    assert [len(worker.tasks()) for worker in workers] == [2, 1]
    assert workers[0].tasks()[0].seq == 1


def test_a_full_buffer_freezes_and_is_folded() -> None:
    """K updates, in one transaction's order: rows, then the freeze, then the fold."""
    federation = Federation(asynchronous(buffer=3))
    for worker in federation.workers(3):
        worker.fit()
    assert [row.buffer for row in federation.durable(FreezeRow)] == [0]
    fold = federation.fold()
    assert (fold.buffer, fold.base.version, len(fold.rows)) == (0, 0, 3)
    assert all(row.inline == b"" for row in fold.rows)
    (row,) = federation.durable(VersionRow)[1:]
    assert (row.info.version, row.updates, row.examples) == (1, 3, 30)


def test_a_fold_waits_until_the_freeze_is_durable() -> None:
    """Else a restart would take more updates into what was folded."""
    federation = Federation(asynchronous(buffer=1))
    worker = federation.worker("w0")
    federation.hold = True
    worker.offer(worker.task())
    assert not federation.folds
    federation.commit()
    assert federation.folds


def test_no_task_goes_out_against_a_version_that_is_not_durable() -> None:
    """A crash could take it back."""
    federation = Federation(asynchronous(buffer=1))
    worker = federation.worker("w0")
    worker.offer(worker.task())
    federation.hold = True
    federation.fold()
    worker.beat()
    assert worker.task().version == 0
    federation.commit()
    worker.beat(free=1)
    assert worker.task().version == 1


@pytest.mark.parametrize(
    ("mode", "weights"),
    [
        ({"staleness": "constant"}, [1.0, 1.0, 1.0]),
        ({"staleness": "polynomial", "exponent": 1.0}, [1.0, 1 / 2, 1 / 3]),
        ({"staleness": "polynomial"}, [1.0, 2**-0.5, 3**-0.5]),
        ({"staleness": "hinge", "hinge_threshold": 1, "hinge_slope": 1.0}, [1.0, 1.0, 1 / 2]),
    ],
    ids=["constant", "1/(1+τ)", "polynomial", "hinge"],
)
@pytest.mark.parametrize("weight", ["uniform", "examples"])
def test_staleness_weighs_an_update(mode: Any, weights: list[float], weight: Any) -> None:
    """τ counts versions between its base and the buffer that it came to; s(0) is exactly 1."""
    federation = Federation(asynchronous(buffer=1, aggregate=Aggregate(weight=weight), **mode))
    workers = federation.workers(3)
    for worker in workers:
        worker.offer(worker.task())
        federation.fold()
    rows = federation.durable(AcceptRow)
    mass = 10 if weight == "examples" else 1
    assert [row.tau for row in rows] == [0, 1, 2]
    assert [row.weight for row in rows] == pytest.approx([mass * w for w in weights], abs=2**-19)
    assert all(math.ldexp(row.weight, 20).is_integer() for row in rows)
    assert rows[0].weight == mass


def test_staleness_counts_buffers_that_are_frozen_and_not_folded() -> None:
    """τ is against the version that the update's buffer builds on."""
    federation = Federation(asynchronous(buffer=1))
    for worker in federation.workers(3):
        worker.offer(worker.task())
    assert [(row.buffer, row.tau) for row in federation.durable(AcceptRow)] == [(0, 0), (1, 1), (2, 2)]


def test_an_update_that_missed_too_many_versions_is_stale() -> None:
    """`max_staleness` is always finite."""
    federation = Federation(asynchronous(buffer=1, max_staleness=1))
    workers = federation.workers(3)
    for worker in workers[:2]:
        worker.offer(worker.task())
    workers[2].offer(workers[2].task())
    ack = workers[2].last(wire.Ack)
    assert (ack.result, ack.reason) == ("stale", "base: missed more than 1 versions")


def test_an_update_that_is_older_than_all_that_is_known_is_stale() -> None:
    """Not a forgery: the broker has forgotten the version."""
    federation = Federation(asynchronous(buffer=1, max_staleness=0, storage=Storage(keep=1)))
    slow, quick = federation.workers(2)
    task = slow.task()
    slow.hello()  # so that nothing keeps its version
    for _ in range(4):
        quick.fit()
        federation.fold()
    slow.offer(task)
    assert slow.last(wire.Ack).result == "stale"


def test_frozen_buffers_are_folded_in_order() -> None:
    """One at a time, each onto the version that the one before made."""
    federation = Federation(asynchronous(buffer=2))
    for worker in federation.workers(6):
        worker.offer(worker.task())
    assert len(federation.folds) == 1
    assert [federation.fold().buffer for _ in range(3)] == [0, 1, 2]
    assert [row.info.version for row in federation.durable(VersionRow)] == [0, 1, 2, 3]


def test_frozen_buffers_are_folded_after_a_restart() -> None:
    """With exactly their rows; the open one goes on with what it had."""
    federation = Federation(asynchronous(buffer=2))
    for worker in federation.workers(5):
        worker.offer(worker.task())
    before = {row.task: row.buffer for row in federation.durable(AcceptRow)}
    federation.restart()
    for buffer in (0, 1):
        fold = federation.fold()
        assert fold.buffer == buffer
        assert {row.task for row in fold.rows} == {task for task, b in before.items() if b == buffer}
    assert federation.status()["buffer"] == {"number": 2, "have": 1, "of": 2, "frozen": 0}


def test_a_version_that_was_folded_and_not_committed_is_folded_again() -> None:
    """The same rows: there is no in-between."""
    federation = Federation(asynchronous(buffer=1))
    worker = federation.worker("w0")
    worker.offer(worker.task())
    federation.hold = True
    first = federation.fold()
    federation.restart()
    assert federation.fold().rows == first.rows
    assert len(federation.durable(VersionRow)) == 2


def test_one_per_worker_waits_for_the_next_buffer() -> None:
    """A worker in the open buffer gets no task until it is frozen, and then at once."""
    federation = Federation(asynchronous(buffer=2, one_per_worker=True))
    worker = federation.worker("w0", free=2)
    assert len(worker.tasks()) == 1
    worker.fit()
    assert len(worker.tasks()) == 1
    federation.worker("w1").fit()
    assert len(worker.tasks()) == 2


def test_a_second_update_of_one_worker_is_told_to_wait() -> None:
    """An earlier life of the broker gave it another task."""
    federation = Federation(asynchronous(buffer=2, one_per_worker=True))
    worker = federation.worker("w0")
    spare = federation.task_id("fit", "w0", 0)
    worker.fit()
    worker.offer(worker.task(), task=spare)
    assert worker.got(wire.Wait)
    federation.worker("w1").fit()
    worker.offer(worker.task(), task=spare)
    assert worker.last(wire.Ack).task == spare


def test_a_buffer_that_can_never_be_full_says_so() -> None:
    """K above the number of workers, where each counts once."""
    federation = Federation(asynchronous(buffer=3, one_per_worker=True))
    assert federation.status()["reason"] == "needs 3 more workers"
    federation.workers(2)
    assert (federation.status()["state"], federation.status()["reason"]) == (
        "stalled",
        "needs 1 more worker",
    )
    federation.worker("w2")
    assert federation.status()["state"] == "running"


def test_it_stops_after_so_many_versions() -> None:
    """The last buffer is asked for, and no more; everybody is told, when it is durable."""
    federation = Federation(asynchronous(buffer=1, stop=Stop(versions=2)))
    worker, other = federation.workers(2)
    worker.fit()
    federation.fold()
    worker.fit()
    late = other.task()
    other.offer(late)
    assert other.last(wire.Ack).result == "stale"
    worker.beat()
    tasks = len(worker.tasks())
    federation.fold()
    assert len(worker.tasks()) == tasks
    assert worker.last(wire.Bye).reason == other.last(wire.Bye).reason == "finished"
    assert federation.exit is not None
    assert (federation.exit.code, federation.exit.reason) == (0, "made version 2")
    assert federation.durable(FinishRow) == [FinishRow(reason="made version 2")]


def test_a_federation_that_is_finished_stays_finished() -> None:
    """A restart tells the workers that it knows of, for they would look for it for ever; then it exits."""
    federation = Federation(asynchronous(buffer=1, stop=Stop(versions=1)))
    federation.worker("w0").fit()
    federation.fold()
    federation.restart()
    assert federation.exit is None
    worker = federation.worker("w0")
    assert worker.last(wire.Reject).why == "finished"
    assert federation.exit is not None
    assert federation.exit.reason == "made version 1"


def test_a_federation_that_is_finished_does_not_wait_for_ever() -> None:
    """Not every worker comes back."""
    federation = Federation(asynchronous(buffer=1, stop=Stop(versions=1)))
    federation.worker("w0").fit()
    federation.fold()
    federation.restart()
    federation.wait(120.0)
    assert federation.exit is not None


def test_it_stops_after_so_many_seconds() -> None:
    """Of running, over all starts; what is frozen is folded first."""
    federation = Federation(asynchronous(buffer=1, stop=Stop(seconds=50.0)))
    worker = federation.worker("w0")
    worker.fit()
    federation.wait(51.0)
    assert federation.exit is None
    federation.fold()
    assert federation.exit is not None
    assert federation.exit.reason == "ran for 50 s"


@pytest.mark.parametrize(
    ("metric", "target", "values"), [("loss", 0.5, (0.6, 0.5)), ("accuracy", 0.9, (0.8, 0.95))]
)
def test_it_stops_at_a_target(metric: str, target: float, values: tuple[float, float]) -> None:
    """Reached from above by losses, from below by the rest."""
    stop, evaluate = Stop(metric=metric, target=target), Evaluate(every=1)
    federation = Federation(asynchronous(buffer=1, stop=stop, evaluate=evaluate))
    worker = federation.worker("w0")
    worker.offer(worker.task())
    federation.fold()
    worker.beat(free=1)
    worker.answer(worker.task("evaluate"), **{"loss": 9.0, metric: values[0]})
    assert federation.exit is None
    worker.beat()
    worker.offer(worker.task())
    federation.fold()
    worker.beat(free=1)
    worker.answer(worker.task("evaluate"), **{"loss": 9.0, metric: values[1]})
    assert federation.exit is not None
    assert federation.exit.reason == f"{metric} reached {values[1]:.6g} at version 2"


def test_a_target_that_was_reached_before_a_crash_still_stops_it() -> None:
    """The measurement was durable, the end was not."""
    stop, evaluate = Stop(metric="loss", target=0.5), Evaluate(every=1)
    federation = Federation(asynchronous(stop=stop, evaluate=evaluate, buffer=1))
    worker = federation.worker("w0")
    worker.offer(worker.task())
    federation.fold()
    worker.beat(free=1)
    worker.answer(worker.task("evaluate"), loss=0.1)
    assert federation.exit is not None
    federation.rows = [row for row in federation.rows if not isinstance(row, FinishRow)]
    federation.restart()
    federation.worker("w0")
    assert federation.exit is not None
    assert federation.exit.reason == "loss reached 0.1 at version 1"


def test_versions_that_nothing_needs_are_collected() -> None:
    """The last `keep` stay, and those that a task is on."""
    federation = Federation(asynchronous(buffer=1, storage=Storage(keep=1)))
    slow, quick = federation.workers(2)
    for _ in range(3):
        quick.offer(quick.tasks()[-1])  # and gets its next on the version that is current now
        federation.fold()
    assert (slow.tasks()[-1].version, quick.tasks()[-1].version) == (0, 2)
    assert federation.collected == [1]
    slow.say(wire.Bye())
    quick.offer(quick.tasks()[-1])
    federation.fold()
    assert federation.collected == [1, 0, 2]


def test_no_task_goes_out_that_could_only_be_stale() -> None:
    """Where buffers wait to be folded, and `max_staleness` is small; a worker used to train in vain."""
    federation = Federation(asynchronous(buffer=1, max_staleness=0))
    worker = federation.worker("w0")
    worker.fit()
    assert len(worker.tasks()) == 1
    federation.fold()
    assert worker.task().version == 1


def test_seeds_repeat() -> None:
    """A worker's n-th task on a version has the same seed in every run, and no two are alike."""
    seeds = []
    for _ in range(2):
        federation = Federation()
        worker = federation.worker("w0", free=2)
        seeds.append([task.seed for task in worker.tasks()])
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0])) == 2


def test_a_small_model_rides_with_the_first_task_on_it() -> None:
    """Once a session: a worker that comes again may be another process, which has it no more."""
    federation = Federation(asynchronous(buffer=1), model_bytes=wire.TASK_INLINE_MAX)
    worker = federation.worker("w0", free=2)
    assert [task.version for task in worker.tasks()] == [0, 0]
    assert federation.rode == [(worker.peer, 0)]
    worker.offer(worker.tasks()[0])
    federation.fold()
    worker.offer(worker.tasks()[1])
    assert [task.version for task in worker.tasks()] == [0, 0, 0, 1]
    worker.hello()
    assert federation.rode == [(worker.peer, version) for version in (0, 1, 1)]


def test_a_large_model_waits_to_be_fetched() -> None:
    """A round begins with as many TASKs as there are workers: they must stay small."""
    federation = Federation(model_bytes=wire.TASK_INLINE_MAX + 1)
    assert federation.worker("w0").tasks()
    assert federation.rode == []


def test_an_offer_frees_a_slot_once() -> None:
    """Not again when it is repeated, nor when a BEAT has counted its result already."""
    federation = Federation(asynchronous(buffer=9, one_per_worker=False))
    worker = federation.worker("w0")
    first = worker.task()
    worker.offer(first, inline=False)
    assert len(worker.tasks()) == 2
    worker.offer(first, inline=False)
    assert len(worker.tasks()) == 2
    second = worker.tasks()[1]
    worker.beat((), (first.task, second.task), free=1)
    assert len(worker.tasks()) == 3
    worker.offer(second)
    assert len(worker.tasks()) == 3


def test_an_offer_of_a_task_that_was_given_up_frees_nothing() -> None:
    """It takes no slot in these books; the worker says anew what is free when it hears of it."""
    federation = Federation(asynchronous(buffer=9))
    worker = federation.worker("w0")
    first = worker.task()
    worker.say(wire.Fail(task=first.task, reason="deadline"))
    worker.offer(first)
    assert worker.tasks() == [first]
