"""What the mind tells of itself: each thing that can happen is counted, under its reason."""

from typing import Any

import msgspec
import pytest

from fedmq.broker import metrics
from fedmq.broker.measures import Measured
from fedmq.fedcore import config, wire

from .federation import Federation, Worker, asynchronous, payload, synchronous


def number(federation: Federation, name: str, *labels: str) -> Any:
    """One number, as the page would show it."""
    measured = federation.mind.measure(federation.now)
    assert isinstance(measured, Measured)
    value = metrics.complete(measured.numbers, private=False).get(f"fedmq_{name}", 0)
    return value.get(labels, 0) if isinstance(value, dict) else value


def keep_waiting(federation: Federation, seconds: int, *workers: Worker) -> None:
    """Let time pass, and the workers live."""
    for _ in range(seconds):
        for worker in workers:
            worker.beat()
        federation.wait(1)


def test_updates_by_result_and_reason() -> None:
    """accepted, duplicate, stale and rejected, each with what was wrong."""
    f = Federation(asynchronous(buffer=2, max_staleness=0))
    a, b = f.workers(2)
    first = a.task()
    a.offer(first)
    a.offer(first)
    b.offer(b.task(), layout=b"another")
    assert number(f, "updates_total", "fit", "accepted", "") == 1
    assert number(f, "updates_total", "fit", "duplicate", "") == 1
    assert number(f, "updates_total", "fit", "rejected", "layout") == 1
    a.say(
        wire.Offer(
            task=b"forged",
            kind="fit",
            base=0,
            examples=1,
            layout=b"l",
            encoding="f32",
            size=4,
            digest=b"d" * 16,
        )
    )
    assert number(f, "updates_total", "unknown", "rejected", "task") == 1
    assert number(f, "tasks_released_total", "fit", "rejected") == 1
    staleness = f.mind.measure(f.now).numbers["fedmq_staleness_versions"]
    assert isinstance(staleness, metrics.Distribution)
    assert sum(staleness.counts) == 1


def test_sessions_and_leases() -> None:
    """Opened, opened again, suspect, expired, left, refused."""
    f = Federation()
    a, b = f.workers(2)
    assert number(f, "sessions") == 2
    a.hello()
    assert number(f, "sessions_opened_total", "no") == 2
    assert number(f, "sessions_opened_total", "yes") == 1
    assert number(f, "sessions_closed_total", "replaced") == 1
    b.say(wire.Bye())
    assert number(f, "sessions_closed_total", "left") == 1
    f.wait(f.config.network.lease_s + 1)
    assert number(f, "suspects_total", "silent") == 1
    assert number(f, "sessions_suspect") == 1
    f.wait(f.config.network.lease_s + 1)
    assert number(f, "sessions_closed_total", "silent") == 1
    assert number(f, "tasks_released_total", "fit", "silent") >= 1
    assert number(f, "sessions") == 0
    f.worker("c").hello(protocol=2)
    assert number(f, "hellos_refused_total", "wrong_protocol") == 1


def test_offers_that_are_put_off() -> None:
    """Each WAIT under the reason that it has."""
    f = Federation(asynchronous(one_per_worker=True))
    (a,) = f.workers(1, free=2)
    task = a.task()
    a.offer(task)
    # A task of an earlier life of the broker, whose buffer has this worker's update already.
    other = msgspec.structs.replace(task, task=f.task_id("fit", "w0", 0))
    a.offer(other)
    assert a.got(wire.Wait)
    assert number(f, "waits_sent_total", "place") == 1
    assert number(f, "updates_total", "fit", "accepted", "") == 1


def test_transfers_and_their_credit() -> None:
    """New, resumed, stalled; and what may be sent now."""
    f = Federation(elements=4096)
    (a,) = f.workers(1)
    data = payload(elements=4096)
    a.offer(a.task(), data, inline=False)
    assert number(f, "uploads_total", "new") == 1
    assert number(f, "uploads") == 1
    assert number(f, "upload_credit_bytes") == len(data)
    task = a.task()
    a.part(task, data[:1000], 0)
    f.wait(61)
    a.beat()
    assert number(f, "waits_sent_total", "stalled") == 1
    assert number(f, "upload_credit_bytes") == 0
    a.offer(task, data, inline=False)
    assert number(f, "uploads_total", "resumed") == 1


def test_rounds_and_what_is_called_back() -> None:
    """A round that is over calls back what others did not finish; without a quorum it is extended."""
    f = Federation(synchronous(min_available=2, min_updates=1, deadline_s=60.0))
    a, b = f.workers(2)
    assert number(f, "rounds_opened_total") == 1
    assert number(f, "buffer_target_updates") == 2
    keep_waiting(f, 61, a, b)
    assert number(f, "rounds_extended_total") == 1
    a.fit()
    keep_waiting(f, 61, a, b)
    assert number(f, "buffers_frozen_total", "deadline") == 1
    assert number(f, "cancels_sent_total", "round_over") == 1
    f.fold()
    assert number(f, "version") == 1
    assert number(f, "version_age_seconds") == 0
    folds = f.mind.measure(f.now).numbers["fedmq_fold_seconds"]
    assert isinstance(folds, metrics.Distribution)
    assert folds.total == pytest.approx(0.1)


def test_work_of_an_earlier_life() -> None:
    """Taken over while it is wanted, called back otherwise."""
    f = Federation()
    (a,) = f.workers(1)
    task = a.task()
    f.restart()
    a.hello(tasks=(task.task, b"of somebody else"))
    assert number(f, "tasks_adopted_total", "fit") == 1
    assert number(f, "cancels_sent_total", "unwanted") == 1


def test_names_that_workers_choose_are_bounded() -> None:
    """Only so many metrics of a model, and only plain names: labels cost whoever collects them memory."""
    f = Federation(asynchronous(buffer=1, evaluate=config.Evaluate(every=1)))
    (a,) = f.workers(1)
    a.fit()
    f.fold()
    a.beat(free=1)
    names = {f"m{i:02d}": 1.0 for i in range(60)} | {"loss": 0.5, 'a"b\n': 1.0}
    a.answer(a.task("evaluate"), **names)
    shown = f.mind.measure(f.now).numbers["fedmq_model_metric"]
    assert isinstance(shown, dict)
    assert len(shown) == metrics.MODEL_METRICS_MAX
    assert ("federated", 'a"b\n') not in shown


def test_privacy_is_counted() -> None:
    """Spent and left add up to what was planned."""
    privacy = config.Privacy(
        epsilon=3.0, delta=1e-5, max_grad_norm=1.0, sampling_rate=0.1, steps=10, divisor=1.0, max_batch=8
    )
    f = Federation(
        synchronous(
            min_available=1,
            privacy=privacy,
            aggregate=config.Aggregate(weight="uniform"),
            evaluate=config.Evaluate(fraction=0.0),
        )
    )
    (a,) = f.workers(1)
    a.fit()
    f.fold()
    assert number(f, "privacy_steps_spent") == 1
    assert number(f, "privacy_steps_left") == 9
    assert sum(f.mind.measure(f.now).numbers["fedmq_update_norm"].counts) == 0  # type: ignore[union-attr]
