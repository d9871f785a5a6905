"""The initial model from the first worker: one model, whoever brings it, and whatever happens on the way."""

import pytest

from fedmq.broker.events import Refused
from fedmq.broker.rows import VersionRow
from fedmq.fedcore import wire
from fedmq.fedcore.config import Config, Model, Network, Storage, SyncMode

from .federation import Federation, Worker, asynchronous

MODEL = b"a safetensors file" * 10
KINDS = ("fit", "evaluate", "init")


def config(max_bytes: int = 1 << 20) -> Config:
    network = Network(block=1024, credit_budget=64 * 1024)
    return asynchronous(model=Model(initial="first-worker", max_bytes=max_bytes), network=network)


def bring(worker: Worker, data: bytes = MODEL, *, inline: bool = True) -> None:
    """Offer an initial model."""
    worker.offer(worker.task("init"), data, inline=inline)


def test_the_first_worker_that_can_is_asked_for_a_model() -> None:
    """One at a time; nobody trains before there is one."""
    federation = Federation(config())
    plain = federation.worker("plain")
    first, second = federation.worker("w0", kinds=KINDS), federation.worker("w1", kinds=KINDS)
    assert [len(w.tasks("init")) for w in (plain, first, second)] == [0, 1, 0]
    assert not plain.tasks()
    assert federation.status()["reason"] == "needs an initial model from a worker"
    assert federation.status()["version"] is None


@pytest.mark.parametrize("inline", [True, False])
def test_a_model_becomes_version_0(inline: bool) -> None:
    """Durable before it is acknowledged, then everybody trains on it."""
    federation = Federation(config())
    worker = federation.worker("w0", kinds=KINDS)
    bring(worker, inline=inline)
    if not inline:
        worker.send_granted(worker.task("init"), MODEL)
    assert federation.adoptions[0].inline == (MODEL if inline else None)
    federation.hold = True
    federation.adopt()
    assert not worker.got(wire.Ack)
    federation.commit()
    assert worker.last(wire.Ack).result == "accepted"
    assert [row.info.version for row in federation.durable(VersionRow)] == [0]
    worker.beat()
    assert worker.task("fit").version == 0
    assert federation.discarded == [worker.task("init").task]


def test_another_worker_is_asked_when_the_first_is_gone() -> None:
    """Its task is free like any other."""
    federation = Federation(config())
    first, second = federation.worker("w0", kinds=KINDS), federation.worker("w1", kinds=KINDS)
    first.say(wire.Bye())
    federation.wait(1.0)
    assert second.tasks("init")


def test_a_model_that_is_refused_is_asked_of_another() -> None:
    """With the reason of whoever read it."""
    federation = Federation(config())
    first, second = federation.worker("w0", kinds=KINDS), federation.worker("w1", kinds=KINDS)
    bring(first)
    federation.tell(Refused(first.task("init").task, "not a safetensors file"))
    ack = first.last(wire.Ack)
    assert (ack.result, ack.reason) == ("rejected", "not a safetensors file")
    first.beat()
    federation.wait(0.5)
    assert len(first.tasks("init")) == 1
    assert second.tasks("init")


def test_a_model_that_is_too_large_is_rejected_unseen() -> None:
    """Not a byte of it is taken."""
    federation = Federation(config(max_bytes=100))
    worker = federation.worker("w0", kinds=KINDS)
    bring(worker, inline=False)
    assert worker.last(wire.Ack).reason == "size: at most 100 bytes"
    assert not federation.spool


def test_two_models_never_become_one_version() -> None:
    """The second would write over the first, whose digest the journal holds; it used to end the daemon."""
    federation = Federation(config())
    first = federation.worker("w0", kinds=KINDS)
    task = first.task("init").task
    federation.wait(80.0)  # gone, and another is asked
    second = federation.worker("w1", kinds=KINDS)
    federation.wait(1.0)
    bring(second)
    first_again = federation.worker("w0", kinds=KINDS, outbox=(task,), free=0)
    first_again.offer(second.task("init"), MODEL, task=task)
    assert first_again.got(wire.Wait)
    assert len(federation.adoptions) == 1
    federation.adopt()
    first_again.offer(second.task("init"), MODEL, task=task)
    assert first_again.last(wire.Ack).result == "stale"
    assert len(federation.durable(VersionRow)) == 1


def test_a_model_that_is_complete_when_there_is_one_already_is_stale() -> None:
    """It was in PARTs, and another came first."""
    federation = Federation(config())
    first = federation.worker("w0", kinds=KINDS)
    bring(first, inline=False)
    first.part(first.task("init"), MODEL[:100], 0)
    spare = federation.task_id("init", "w1", 0)
    second = federation.worker("w1", kinds=KINDS)
    second.offer(first.task("init"), MODEL, task=spare)
    federation.adopt()
    first.part(first.task("init"), MODEL[100:], 100)
    assert first.last(wire.Ack).result == "stale"
    assert not federation.adoptions


def test_a_model_that_is_offered_again_is_a_duplicate() -> None:
    """Its ACK was lost."""
    federation = Federation(config())
    worker = federation.worker("w0", kinds=KINDS)
    bring(worker)
    bring(worker)
    assert worker.got(wire.Wait)
    federation.adopt()
    bring(worker)
    assert [ack.result for ack in worker.got(wire.Ack)] == ["accepted", "duplicate"]


def test_an_init_task_of_an_earlier_life_is_taken_over() -> None:
    """While there is no model; then it is called back."""
    federation = Federation(config())
    task = federation.worker("w0", kinds=KINDS).task("init").task
    federation.restart()
    federation.worker("w0", kinds=KINDS, tasks=(task,), free=0)
    other = federation.worker("w1", kinds=KINDS)
    assert not other.tasks("init")
    federation.restart()
    other.hello(kinds=KINDS)
    bring(other)
    federation.adopt()
    late = federation.worker("w0", kinds=KINDS, tasks=(task,), free=0)
    assert late.last(wire.Cancel).task == task


def test_a_disk_budget_below_the_model_does_not_keep_it_out() -> None:
    """Nobody trains before there is one, so nothing would ever make room. Rounds used to wait for it for ever."""
    federation = Federation(
        Config(
            mode=SyncMode(min_available=1),
            model=Model(initial="first-worker"),
            network=Network(block=1024, credit_budget=64 * 1024),
            storage=Storage(disk_budget=100),
        )
    )
    worker = federation.worker("w0", kinds=KINDS)
    bring(worker, inline=False)
    assert worker.got(wire.Grant)
