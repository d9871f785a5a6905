"""Synchronous rounds of a private mechanism: nobody is chosen, replaced or shown by what the data did."""

import math
from typing import Any

import pytest

from fedmq.broker.rows import AcceptRow, LeftOutRow, RoundRow, VersionRow
from fedmq.fedcore import wire
from fedmq.fedcore.config import Aggregate, Config, Evaluate, Privacy, Stop, SyncMode

from .federation import Federation, payload, synchronous


def private(steps: int = 10, **keys: Any) -> Config:
    privacy = Privacy(
        epsilon=3.0,
        delta=1e-5,
        max_grad_norm=1.0,
        sampling_rate=0.1,
        steps=steps,
        divisor=100.0,
        max_batch=64,
        noise_multiplier=1.0,
    )
    keys.setdefault("evaluate", Evaluate(every=0, fraction=0.0))
    return synchronous(privacy=privacy, aggregate=Aggregate(weight="uniform"), **keys)


def test_a_round_waits_for_its_whole_cohort() -> None:
    """Everybody who is there; each update counts the same."""
    federation = Federation(private(min_available=2))
    for examples, worker in enumerate(federation.workers(2), 3):
        worker.fit(examples=examples)
    assert [row.weight for row in federation.fold().rows] == [1.0, 1.0]


def test_a_member_that_failed_is_missing() -> None:
    """Asked again it would draw another sample, and the accountant counts one; nobody comes in its place."""
    federation = Federation(private(min_available=2))
    failing, other = federation.workers(2)
    spare = federation.worker("w2")
    failing.say(wire.Fail(task=failing.task().task, reason="ValueError"))
    failing.beat()
    federation.wait(5.0)
    assert len(failing.tasks()) == 1
    assert not spare.tasks()
    other.fit()
    assert [row.worker for row in federation.fold().rows] == ["w1"]


def test_a_member_whose_update_was_rejected_is_missing() -> None:
    """For the same reason: here it had the wrong layout."""
    federation = Federation(private(min_available=2))
    wrong, other = federation.workers(2)
    assert wrong.fit(layout=b"another").result == "rejected"
    federation.wait(5.0)
    assert len(wrong.tasks()) == 1
    other.fit()
    assert len(federation.fold().rows) == 1


def test_a_member_that_failed_is_not_asked_after_a_restart_either() -> None:
    """The round goes on where it was, without it."""
    federation = Federation(private(min_available=2, deadline_s=60.0))
    failed, other = federation.workers(2)
    failed.say(wire.Fail(task=failed.task().task, reason="ValueError"))
    federation.restart()
    failed.hello()
    other.hello()
    assert not failed.tasks()
    other.fit()
    assert len(federation.fold().rows) == 1


def test_a_round_ends_at_its_deadline_with_whatever_there_is() -> None:
    """Also with nothing: an empty round is released with noise."""
    federation = Federation(private(min_available=2, deadline_s=60.0))
    federation.workers(2)
    federation.wait(61.0)
    assert federation.fold().rows == ()
    assert federation.durable(VersionRow)[-1].privacy_steps == 1
    assert not [row for row in federation.durable(RoundRow) if row.extensions]


def test_an_empty_round_is_folded_after_a_restart() -> None:
    """It was frozen without a row."""
    federation = Federation(private(min_available=2, deadline_s=60.0))
    federation.workers(2)
    federation.wait(61.0)
    federation.restart()
    assert federation.fold().rows == ()


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_an_update_that_is_not_finite_keeps_its_slot(number: float) -> None:
    """Rejecting it would make who is in the buffer depend on data; the fold counts it as zero."""
    federation = Federation(private(min_available=1))
    worker = federation.worker("w0")
    assert worker.fit(payload(number)).result == "accepted"
    (row,) = federation.durable(AcceptRow)
    assert not math.isfinite(row.norm)
    assert len(federation.fold().rows) == 1


def test_a_large_norm_is_clipped_and_not_rejected() -> None:
    """By the fold; whether it was large is not told."""
    federation = Federation(private(min_available=1))
    assert federation.worker("w0").fit(payload(1e9)).result == "accepted"


def test_only_f32_is_taken() -> None:
    """An encoding would change sums that were clipped exactly."""
    federation = Federation(private(min_available=1))
    worker = federation.worker("w0")
    ack = worker.fit(payload()[:8], encoding="f16")
    assert ack.reason == "encoding: f32 where privacy is on"


def test_nobody_is_recorded_as_left_out() -> None:
    """A row would say who answered."""
    federation = Federation(private(min_available=2, deadline_s=60.0))
    workers = federation.workers(2)
    workers[0].fit()
    federation.wait(61.0)
    federation.fold()
    assert not federation.durable(LeftOutRow)


def test_the_norm_of_a_version_is_not_recorded() -> None:
    """It is a function of the data that nobody paid for."""
    federation = Federation(private(min_available=1))
    federation.worker("w0").fit()
    federation.fold()
    assert federation.durable(VersionRow)[-1].update_norm is None


def test_status_does_not_show_who_answered() -> None:
    """Nor how many."""
    federation = Federation(private(min_available=2))
    workers = federation.workers(2)
    workers[0].fit()
    status = federation.status()
    assert status["round"]["have"] is None
    assert status["buffer"]["have"] is None
    assert [worker["updates"] for worker in status["workers"]] == [None, None]


def test_the_budget_ends_the_federation() -> None:
    """Each version is one release; what was spent is known after a restart."""
    federation = Federation(private(steps=2, min_available=1))
    worker = federation.worker("w0")
    worker.fit()
    federation.fold()
    assert federation.status()["privacy_steps_left"] == 1
    federation.restart()
    assert federation.status()["privacy_steps_left"] == 1
    worker.hello()
    worker.fit()
    federation.fold()
    assert federation.exit is not None
    assert federation.exit.reason == "the privacy budget is spent"
    assert len(federation.durable(RoundRow)) == 2


def test_a_member_that_was_away_may_still_answer() -> None:
    """It keeps its sample; the round waits for it, or for the deadline."""
    federation = Federation(private(min_available=2, deadline_s=600.0))
    away, other = federation.workers(2)
    task = away.task()
    other.fit()
    away.say(wire.Bye())
    assert not federation.folds
    away.hello(outbox=(task.task,), free=0)
    away.offer(task)
    assert len(federation.fold().rows) == 2


def test_versions_and_budget_agree() -> None:
    """A stop beyond the budget is a config error, so that the earlier end is never a surprise."""
    assert private(steps=3, stop=Stop(versions=3)).privacy is not None
    assert isinstance(private().mode, SyncMode)
