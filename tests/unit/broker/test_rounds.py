"""Synchronous rounds: who is asked, when a round is over, and what becomes of those who did not make it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq.broker.rounds import Buffer, Round, SyncPlan
from fedmq.broker.rows import AcceptRow, FreezeRow, LeftOutRow, RoundRow
from fedmq.fedcore import wire
from fedmq.fedcore.config import Evaluate, Stop, SyncMode

from .federation import Federation, Worker, payload, synchronous


def asked(workers: list[Worker]) -> list[str]:
    """Who of them has a fit task in this session."""
    return [worker.name for worker in workers if worker.tasks("fit")]


def left_out(federation: Federation) -> dict[str, str]:
    """Who was left out of round 0, and why."""
    return {row.worker: row.reason for row in federation.durable(LeftOutRow) if row.buffer == 0}


def test_a_round_opens_when_enough_workers_are_there() -> None:
    """Until then it is stalled, and says what it needs."""
    federation = Federation(synchronous(min_available=3))
    workers = federation.workers(2)
    assert not asked(workers)
    assert federation.status()["reason"] == "needs 1 more worker"
    workers.append(federation.worker("w2"))
    assert asked(workers) == ["w0", "w1", "w2"]
    assert federation.status()["state"] == "running"


def test_a_round_is_durable_before_its_first_task() -> None:
    """So that a restart goes on with the same one."""
    federation = Federation(synchronous(min_available=2))
    federation.hold = True
    workers = federation.workers(2)
    assert not asked(workers)
    federation.commit()
    assert asked(workers) == ["w0", "w1"]
    assert federation.durable(RoundRow) == [
        RoundRow(buffer=0, cohort=("w0", "w1"), target=2, quorum=2, deadline_s=600.0)
    ]


def test_a_round_ends_with_its_target() -> None:
    """Everybody's update is in; the next round is asked for right behind the version."""
    federation = Federation(synchronous(min_available=2))
    workers = federation.workers(2)
    for worker in workers:
        worker.fit()
    assert federation.durable(FreezeRow) == [FreezeRow(buffer=0, reason="complete")]
    assert {row.worker for row in federation.fold().rows} == {"w0", "w1"}
    assert [worker.task().version for worker in workers] == [1, 1]
    assert not left_out(federation)


def test_the_weights_of_a_round_are_examples() -> None:
    """FedAvg; nothing is stale in a round."""
    federation = Federation(synchronous(min_available=2))
    for examples, worker in enumerate(federation.workers(2), 5):
        worker.fit(examples=examples)
    assert [(row.weight, row.tau) for row in federation.durable(AcceptRow)] == [(5.0, 0), (6.0, 0)]


def test_clients_per_round_asks_some() -> None:
    """The same ones for the same seed, others in the next round."""
    cohorts = []
    for _ in range(2):
        federation = Federation(synchronous(min_available=6, clients_per_round=2))
        federation.workers(6)
        cohorts.append(federation.durable(RoundRow)[0].cohort)
    assert cohorts[0] == cohorts[1]
    assert len(cohorts[0]) == 2


@given(order=st.permutations([f"w{i}" for i in range(8)]), buffer=st.integers(0, 50))
def test_a_cohort_does_not_depend_on_who_came_first(order: list[str], buffer: int) -> None:
    """The choice is a function of the seed, the round, and who is there."""
    plan = SyncPlan(SyncMode(clients_per_round=3, over_selection=1.5), 7, private=False)
    row = plan.plan(buffer, order)
    assert row == plan.plan(buffer, sorted(order))
    assert len(row.cohort) == 5
    assert (row.target, row.quorum) == (3, 3)


def test_cohorts_differ_between_rounds_and_seeds() -> None:
    """Over the rounds everybody is asked."""
    everybody = [f"w{i}" for i in range(10)]
    mode = SyncMode(clients_per_round=2)
    cohorts = {SyncPlan(mode, seed, private=False).plan(0, everybody).cohort for seed in range(20)}
    assert len(cohorts) > 10
    rounds = [SyncPlan(mode, 0, private=False).plan(buffer, everybody).cohort for buffer in range(60)]
    assert {worker for cohort in rounds for worker in cohort} == set(everybody)


def test_over_selection_takes_the_first_and_calls_back_the_rest() -> None:
    """Who was late hears CANCEL, and is recorded."""
    federation = Federation(synchronous(min_available=3, clients_per_round=2, over_selection=1.5))
    workers = federation.workers(3)
    assert len(asked(workers)) == 3
    workers[0].fit()
    workers[2].fit()
    late = workers[1]
    assert late.last(wire.Cancel).task == late.task().task
    assert left_out(federation) == {"w1": "late"}
    late.offer(late.tasks()[0])
    assert late.last(wire.Ack).result == "stale"


def test_a_round_ends_at_its_deadline_with_a_quorum() -> None:
    """Nobody waits for the slowest if enough have answered."""
    federation = Federation(synchronous(min_available=3, min_updates=2, deadline_s=60.0))
    workers = federation.workers(3)
    for worker in workers[:2]:
        worker.fit()
    federation.wait(59.0)
    assert not federation.folds
    federation.wait(1.5)
    assert len(federation.fold().rows) == 2
    assert federation.durable(FreezeRow)[0].reason == "deadline"
    assert left_out(federation) == {"w2": "deadline"}


def test_a_task_says_how_much_of_the_deadline_is_left() -> None:
    """It counts from receipt; 0 means none."""
    federation = Federation(synchronous(min_available=1, deadline_s=60.0))
    worker = federation.worker("w0")
    assert worker.task().deadline_s == 60.0
    federation.wait(10.0)
    worker.say(wire.Fail(task=worker.task().task, reason="paused"))
    worker.beat()
    assert worker.task().deadline_s == pytest.approx(50.0)
    federation = Federation(synchronous(min_available=1, deadline_s=0.0))
    assert federation.worker("w0").task().deadline_s == 0.0


def test_a_round_without_its_quorum_is_extended_with_fresh_workers() -> None:
    """As many as are missing; those who were asked may still answer, and the deadline begins again."""
    federation = Federation(synchronous(min_available=2, deadline_s=60.0))
    slow, quick = federation.workers(2)
    fresh = federation.worker("w2")
    quick.fit()
    assert not fresh.tasks()
    for _ in range(3):
        federation.wait(20.5)
        slow.beat(tasks=(slow.task().task,), free=0)
        fresh.beat()
    row = federation.durable(RoundRow)[-1]
    assert (row.cohort, row.extensions, row.target) == (("w0", "w1", "w2"), 1, 2)
    fresh.fit()
    assert {row.worker for row in federation.fold().rows} == {"w1", "w2"}
    assert left_out(federation) == {"w0": "late"}


def test_a_round_that_found_nobody_at_its_deadline_asks_who_comes_next() -> None:
    """It does not wait for another deadline first."""
    federation = Federation(synchronous(min_available=1, deadline_s=60.0))
    federation.worker("w0")
    federation.wait(61.0)
    fresh = federation.worker("w1")
    assert fresh.tasks()


def test_an_update_that_crosses_an_extension_counts() -> None:
    """Its worker was asked; it used to be stale while the extension was on its way to the disk."""
    federation = Federation(synchronous(min_available=2, deadline_s=60.0))
    workers = federation.workers(2)
    workers[0].fit()
    federation.hold = True
    federation.wait(61.0)
    workers[1].offer(workers[1].task())
    federation.commit()
    assert workers[1].last(wire.Ack).result == "accepted"
    assert federation.folds


def test_a_round_that_nobody_can_extend_goes_on() -> None:
    """It is journalled again, and the wait begins anew."""
    federation = Federation(synchronous(min_available=2, deadline_s=60.0))
    workers = federation.workers(2)
    for _ in range(3):
        federation.wait(30.0)
        for worker in workers:
            worker.beat(tasks=(worker.task().task,), free=0)
    assert federation.durable(RoundRow)[-1].extensions == 1
    for worker in workers:
        worker.fit()
    assert federation.folds


@pytest.mark.parametrize("how", ["left", "silent"])
def test_a_round_goes_on_without_a_member_that_has_gone(how: str) -> None:
    """Nobody else is there to ask: at its deadline it settles for those who are left, and the next opens."""
    federation = Federation(synchronous(min_available=1, deadline_s=100.0))
    federation.operate("pause")
    stays, goes = federation.workers(2)
    federation.operate("resume")
    assert federation.durable(RoundRow)[-1].cohort == ("w0", "w1")
    stays.fit()
    if how == "left":
        goes.say(wire.Bye())
    for _ in range(9):
        federation.wait(10.0)
        stays.beat()
    assert not federation.folds
    federation.wait(11.0)
    assert [row.worker for row in federation.fold().rows] == ["w0"]
    gone = {"left": "left", "silent": "silent for two leases"}
    assert left_out(federation) == {"w1": gone[how]}
    assert federation.durable(RoundRow)[-1].cohort == ("w0",)


def test_a_quorum_that_was_asked_for_stands() -> None:
    """Neither `min_updates` nor `min_available` is given up: the round waits, and the status says for what."""
    for keys in ({"min_available": 1, "min_updates": 2}, {"min_available": 2}):
        federation = Federation(synchronous(clients_per_round=2, deadline_s=100.0, **keys))
        if keys["min_available"] == 1:
            federation.operate("pause")
        stays, goes = federation.workers(2)
        federation.operate("resume")
        stays.beat()
        stays.fit()
        goes.say(wire.Bye())
        for _ in range(25):
            federation.wait(10.0)
            stays.beat()
        assert not federation.folds
        state, reason = federation.status()["state"], federation.status()["reason"]
        assert (state, reason) == ("stalled", "needs 1 more update; the round was extended 2 times")


@pytest.mark.parametrize("how", ["failed", "left", "silent", "lost", "rejected"])
def test_a_member_that_loses_its_task_gets_a_substitute(how: str) -> None:
    """At once, where there is one; the deadline stays, and the member may still be asked again."""
    federation = Federation(synchronous(min_available=1, clients_per_round=1, deadline_s=600.0))
    member = federation.worker("w0")
    spare = federation.worker("w1")
    assert not spare.tasks()
    match how:
        case "failed":
            member.say(wire.Fail(task=member.task().task, reason="ValueError"))
        case "left":
            member.say(wire.Bye())
        case "silent":
            for _ in range(8):
                federation.wait(10.0)
                spare.beat()
        case "lost":
            member.beat()
        case "rejected":
            member.fit(payload(float("nan")))
    assert spare.tasks()
    row = federation.durable(RoundRow)[-1]
    assert (row.cohort, row.extensions) == (("w0", "w1"), 0)
    assert 0 < spare.task().deadline_s <= 600.0
    spare.fit()
    expected = {
        "failed": "failed: ValueError",
        "left": "left",
        "silent": "silent for two leases",
        "lost": "lost by the worker",
        "rejected": "rejected: non-finite: the update holds NaN or infinity",
    }
    assert left_out(federation) == {"w0": expected[how]}


def test_a_member_that_goes_before_it_got_its_task_gets_a_substitute_too() -> None:
    """It was asked, and had no free slot; a round without a deadline used to wait for it for ever."""
    federation = Federation(synchronous(min_available=2, clients_per_round=2, deadline_s=0.0))
    federation.hold = True
    member, other = federation.workers(2)
    member.beat(free=0)
    federation.commit()
    federation.hold = False
    assert not member.tasks()
    spare = federation.worker("w2")
    assert not spare.tasks()
    member.say(wire.Bye())
    assert spare.tasks()
    other.fit()
    spare.fit()
    assert federation.folds


def test_each_member_calls_for_one_substitute() -> None:
    """However often it fails: a broken app does not draw everybody in."""
    federation = Federation(synchronous(min_available=1, clients_per_round=1))
    member = federation.worker("w0")
    for i in range(1, 4):
        federation.worker(f"w{i}")
    for _ in range(4):
        member.say(wire.Fail(task=member.task().task, reason="paused"))
        member.beat()
    assert len(member.tasks()) == 5
    assert len(federation.durable(RoundRow)[-1].cohort) == 2


def test_a_substitute_that_is_not_there_yet_is_asked_when_it_comes() -> None:
    """The need is remembered."""
    federation = Federation(synchronous(min_available=1))
    member = federation.worker("w0")
    member.say(wire.Fail(task=member.task().task, reason="ValueError"))
    late = federation.worker("w1")
    assert late.tasks()


def test_a_rejected_update_does_not_end_a_members_part() -> None:
    """It is asked again, after a while, for the same round."""
    federation = Federation(synchronous(min_available=1, deadline_s=0.0))
    member = federation.worker("w0")
    member.fit(payload(float("nan")))
    federation.wait(2.0)
    assert member.fit().result == "accepted"
    assert federation.folds


def test_a_restart_goes_on_with_the_same_round() -> None:
    """The same cohort, what was accepted, and the tasks that are out."""
    federation = Federation(synchronous(min_available=3))
    workers = federation.workers(3)
    workers[0].fit()
    tasks = [worker.task().task for worker in workers]
    federation.restart()
    federation.worker("w3")
    workers[1].hello(tasks=(tasks[1],), free=0)
    workers[2].hello()  # it lost its task
    assert not workers[1].tasks()
    assert workers[2].tasks()
    assert len(federation.durable(RoundRow)) == 1
    assert federation.status()["round"]["have"] == 1
    for worker in workers[1:]:
        offered = tasks[1] if worker is workers[1] else worker.task().task
        worker.offer(workers[2].task(), task=offered)
    assert {row.worker for row in federation.fold().rows} == {"w0", "w1", "w2"}


def test_a_task_of_a_round_that_is_over_is_called_back_after_a_restart() -> None:
    """The worker comes back with a task of an earlier round."""
    federation = Federation(synchronous(min_available=2, clients_per_round=1, over_selection=2.0))
    slow, quick = federation.workers(2)
    task = slow.task().task
    slow.say(wire.Bye())
    quick.fit()
    federation.fold()
    federation.restart()
    slow.hello(tasks=(task,), free=0)
    assert slow.last(wire.Cancel).task == task


def test_a_worker_that_has_answered_is_not_asked_again() -> None:
    """Its second update would be stale."""
    federation = Federation(synchronous(min_available=2))
    worker, _ = federation.workers(2)
    worker.fit()
    spare = federation.task_id("fit", "w0", 0)
    worker.offer(worker.task(), task=spare)
    assert worker.last(wire.Ack).result == "stale"
    assert len(worker.tasks()) == 1


def test_a_worker_that_was_not_asked_cannot_take_part() -> None:
    """Even with a task that is its own."""
    federation = Federation(synchronous(min_available=3, clients_per_round=1))
    workers = federation.workers(3)
    (cohort,) = [row.cohort for row in federation.durable(RoundRow)]
    outsider = next(worker for worker in workers if worker.name not in cohort)
    member = next(worker for worker in workers if worker.name in cohort)
    outsider.offer(member.task(), task=federation.task_id("fit", outsider.name, 0))
    assert outsider.last(wire.Ack).result == "stale"


def test_a_worker_that_cannot_train_is_not_asked() -> None:
    """One that only evaluates used to be in the cohort while it did."""
    federation = Federation(synchronous(min_available=1, evaluate=Evaluate(every=1)))
    judge = federation.worker("judge", kinds=("evaluate",))
    worker = federation.worker("w0")
    worker.fit()
    federation.fold()
    assert judge.tasks("evaluate")
    worker.answer(worker.task("evaluate"))
    worker.beat()
    worker.fit()
    federation.fold()
    assert [row.cohort for row in federation.durable(RoundRow)] == [("w0",)] * 3


def test_a_worker_that_evaluates_is_asked_for_the_next_round() -> None:
    """It will be free in a moment: a cohort must not depend on who is faster."""
    federation = Federation(synchronous(min_available=2, evaluate=Evaluate(every=1)))
    workers = federation.workers(2)
    for worker in workers:
        worker.fit()
    federation.fold()
    assert all(worker.tasks("evaluate") for worker in workers)
    assert federation.durable(RoundRow)[-1].cohort == ("w0", "w1")


def test_no_round_opens_behind_the_last_version() -> None:
    """Nor is anybody asked while it is folded."""
    federation = Federation(synchronous(min_available=1, stop=Stop(versions=1)))
    worker = federation.worker("w0")
    worker.fit()
    assert len(worker.tasks()) == 1
    federation.fold()
    assert len(federation.durable(RoundRow)) == 1
    assert worker.last(wire.Bye).reason == "finished"


def plan_with(cohort: tuple[str, ...], **fields: Any) -> SyncPlan:
    plan = SyncPlan(SyncMode(), 0, private=False)
    row = RoundRow(buffer=0, cohort=cohort, target=len(cohort), quorum=1, deadline_s=10.0, **fields)
    plan.round = Round(row, 100.0, durable=True)
    return plan


def test_an_extension_never_asks_the_same_worker_twice() -> None:
    """Not one that is in the cohort, nor one that has answered."""
    plan = plan_with(("a", "b"))
    row = plan.extend(["a", "b", "c", "d"], Buffer(0), 5, restart=True)
    assert row.cohort == ("a", "b", "c", "d")
    assert plan.extend(["a"], Buffer(0), 5, restart=False).extensions == 0


def test_a_deadline_is_a_deadline() -> None:
    """The instant itself is too late; none means never."""
    plan = plan_with(("a",))
    assert not plan.expired(109.9)
    assert plan.expired(110.0)


def test_a_round_goes_on_without_a_member_that_was_evicted() -> None:
    """Nobody else is there to be asked, and without a deadline nothing else would ever end the round."""
    federation = Federation(synchronous(min_available=2, deadline_s=0.0))
    workers = federation.workers(3)
    for worker in workers[:2]:
        worker.fit()
    federation.fold()  # the first two had made a round of their own
    for worker in workers[:2]:
        worker.fit()
    assert not federation.folds
    federation.operate("evict", worker="w2")
    assert len(federation.fold().rows) == 2
    assert federation.durable(LeftOutRow) == [LeftOutRow(buffer=1, worker="w2", reason="evicted")]


def test_a_fresh_worker_takes_the_place_of_one_that_was_evicted() -> None:
    """Where there is one, the round stays as large as it was."""
    federation = Federation(synchronous(min_available=2, deadline_s=0.0))
    workers = federation.workers(2)
    fresh = federation.worker("fresh")
    workers[0].fit()
    federation.operate("evict", worker="w1")
    fresh.fit()
    assert len(federation.fold().rows) == 2


def test_a_round_that_nobody_works_on_is_stalled() -> None:
    """Below `min_available` it waits for ever, and says so."""
    federation = Federation(synchronous(min_available=2, deadline_s=0.0))
    workers = federation.workers(2)
    workers[0].fit()
    assert federation.status()["state"] == "running"
    workers[1].say(wire.Bye())
    federation.operate("evict", worker="w1")
    assert (federation.status()["state"], federation.status()["reason"]) == (
        "stalled",
        "nobody works on the round",
    )
