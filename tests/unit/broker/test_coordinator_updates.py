"""What becomes of an offer: acknowledged when it is durable, once, or refused with a reason and without a trace."""

from typing import Any

import numpy as np
import pytest
import xxhash

from fedmq.broker.events import OpenUpload, PartWritten, Sealed
from fedmq.broker.rows import AcceptRow
from fedmq.fedcore import kernels, wire
from fedmq.fedcore.config import Aggregate

from .federation import Federation, asynchronous, payload

REASONS = (
    "task",
    "base",
    "layout",
    "encoding",
    "size",
    "digest",
    "examples",
    "payload",
    "non-finite",
    "norm",
)
"""How the reason of a refusal may begin: what is wrong, or in a round that it is over."""


def refused(federation: Federation, name: str, **fields: Any) -> wire.Ack:
    """What a worker is told whose offer differs from a good one in these fields."""
    worker = federation.worker(name)
    worker.offer(worker.task(), **fields)
    ack = worker.last(wire.Ack)
    assert not federation.durable(AcceptRow)
    assert ack.result in ("rejected", "stale")
    assert ack.reason.split(":")[0].split()[0] in REASONS
    return ack


def test_an_update_is_acknowledged_when_its_row_is_durable() -> None:
    """Not before: from the ACK on it survives a dead broker."""
    federation = Federation()
    worker = federation.worker("w0")
    federation.hold = True
    worker.offer(worker.task())
    assert not worker.got(wire.Ack)
    federation.commit()
    assert worker.last(wire.Ack).result == "accepted"
    (row,) = federation.durable(AcceptRow)
    assert (row.task, row.worker, row.base, row.buffer, row.examples) == (
        worker.task().task,
        "w0",
        0,
        0,
        10,
    )
    assert row.inline == payload()


def test_an_update_that_is_offered_twice_counts_once() -> None:
    """Its ACK was lost; the task id is the idempotency key."""
    federation = Federation()
    worker = federation.worker("w0")
    worker.offer(worker.task())
    worker.offer(worker.task())
    assert [ack.result for ack in worker.got(wire.Ack)] == ["accepted", "duplicate"]
    assert len(federation.durable(AcceptRow)) == 1


def test_duplicate_is_not_said_before_the_first_is_durable() -> None:
    """The worker forgets the update on either answer."""
    federation = Federation()
    worker = federation.worker("w0")
    federation.hold = True
    worker.offer(worker.task())
    worker.offer(worker.task())
    assert not worker.got(wire.Ack)
    federation.commit()
    assert [ack.result for ack in worker.got(wire.Ack)] == ["accepted", "duplicate"]


def test_an_update_is_known_after_a_restart() -> None:
    """Its row was durable, its ACK was never sent."""
    federation = Federation()
    task = federation.worker("w0").task()
    worker = federation.worker("w0", tasks=(task.task,))
    worker.offer(task)
    federation.restart()
    worker.hello(outbox=(task.task,))
    worker.offer(task)
    assert worker.last(wire.Ack).result == "duplicate"


def test_an_update_that_was_not_durable_is_accepted_after_the_restart() -> None:
    """The worker still has it, for it heard nothing."""
    federation = Federation()
    worker = federation.worker("w0")
    task = worker.task()
    federation.hold = True
    worker.offer(task)
    federation.restart()
    worker.hello(outbox=(task.task,))
    worker.offer(task)
    assert worker.last(wire.Ack).result == "accepted"


def test_an_update_is_accepted_whatever_became_of_its_session() -> None:
    """Nobody is there to be told; the next offer is a duplicate."""
    federation = Federation()
    worker = federation.worker("w0")
    task = worker.task()
    federation.hold = True
    worker.offer(task)
    worker.say(wire.Bye())
    federation.commit()
    assert len(federation.durable(AcceptRow)) == 1


def test_the_next_task_may_come_before_the_ack() -> None:
    """The worker is free when it has offered."""
    federation = Federation()
    worker = federation.worker("w0")
    federation.hold = True
    worker.offer(worker.task())
    worker.beat(outbox=(worker.task().task,))
    assert len(worker.tasks()) == 2


@pytest.mark.parametrize("task", [b"short", b"\x01" + bytes(36), b"\x09" + bytes(36)])
def test_a_forged_id_is_rejected(task: bytes) -> None:
    """Only the state folder's key makes one."""
    assert refused(Federation(), "w0", task=task).result == "rejected"


def test_somebody_elses_task_is_rejected() -> None:
    """An id is a capability of one worker."""
    federation = Federation()
    other = federation.task_id("fit", "w1", 0)
    assert refused(federation, "w0", task=other).reason.startswith("task: not this worker's")


def test_a_task_of_another_kind_or_base_is_rejected() -> None:
    """What the offer says must be what the id says."""
    federation = Federation()
    evaluate = federation.task_id("evaluate", "w0", 0)
    assert refused(federation, "w0", task=evaluate).result == "rejected"
    assert refused(federation, "w1", base=1).result == "rejected"


def test_a_base_that_does_not_exist_yet_is_rejected() -> None:
    """A broker that was restored from a backup refuses what came after it."""
    federation = Federation()
    future = federation.task_id("fit", "w0", 5)
    assert "does not have" in refused(federation, "w0", task=future, base=5).reason


def test_a_task_against_another_model_is_rejected() -> None:
    """The MAC covers the digest of the version that the task was on."""
    federation = Federation(asynchronous(buffer=1))
    old = federation.worker("w0").task()
    worker = federation.worker("w1")
    worker.fit()
    federation.fold(digest=b"another version1")
    assert federation.worker("w2").tasks()
    claim = federation.task_id("fit", "w2", 1)  # of the version that it would have been
    assert old.version == 0
    worker = federation.worker("w2")
    worker.offer(worker.task(), task=claim)
    assert worker.last(wire.Ack).result == "rejected"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"layout": b"another"}, "layout: "),
        ({"encoding": "f64"}, "encoding: "),
        ({"encoding": "f16"}, "size: "),
        ({"size": 12}, "size: "),
        ({"digest": b"sixteen bytes ok"}, "digest: "),
        ({"examples": 0}, "examples: "),
        ({"examples": 10**9 + 1}, "examples: "),
    ],
)
def test_an_offer_that_is_not_what_it_should_be_is_rejected(fields: Any, reason: str) -> None:
    """With the first thing that is wrong."""
    ack = refused(Federation(), "w0", **fields)
    assert ack.result == "rejected"
    assert ack.reason.startswith(reason)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_an_update_that_is_not_finite_is_rejected(number: float) -> None:
    """One NaN would spoil the model for everybody."""
    data = payload(number)
    assert refused(Federation(), "w0", data=data).reason.startswith("non-finite: ")


def test_an_update_with_too_large_a_norm_is_rejected() -> None:
    """`aggregate.max_update_norm` bounds what one worker can do."""
    federation = Federation(asynchronous(aggregate=Aggregate(max_update_norm=2.0)))
    assert refused(federation, "w0", data=payload(1.1)).reason.startswith("norm: 2.2 is above 2")
    worker = federation.worker("w1")
    assert worker.fit(payload(1.0)).result == "accepted"


def test_a_payload_that_is_shorter_than_it_says_is_rejected() -> None:
    """Before its digest is looked at."""
    federation = Federation()
    worker = federation.worker("w0")
    worker.offer(worker.task(), payload()[:8], size=16)
    assert worker.last(wire.Ack).reason.startswith("size: ")


def test_a_rejected_worker_is_left_alone_for_a_while() -> None:
    """It would do the same again at once, and the broker with it."""
    federation = Federation()
    worker = federation.worker("w0")
    worker.fit(payload(float("nan")))
    assert len(worker.tasks()) == 1
    federation.wait(2.0)
    assert len(worker.tasks()) == 2


@pytest.mark.parametrize("encoding", ["f16", "bf16", "i8"])
def test_encoded_updates_are_accepted(encoding: str) -> None:
    """The size follows from the encoding, and the norm is of what it decodes to."""
    federation = Federation(asynchronous(aggregate=Aggregate(encoding=encoding)))  # type: ignore[arg-type]
    worker = federation.worker("w0", encodings=("f32", encoding))
    assert worker.task().encoding == encoding
    data = kernels.encode(np.ones(4, np.float32), encoding, key=bytes(32))
    worker.offer(worker.task(), data, encoding=encoding, digest=xxhash.xxh3_128_digest(data))
    assert worker.last(wire.Ack).result == "accepted"
    assert federation.durable(AcceptRow)[0].norm == pytest.approx(2.0, rel=0.02)


def test_sparse_updates_are_accepted_and_others_refused_with_a_reason() -> None:
    """A task says how many values to keep, and to keep the rest; what is no payload of the model's changes nothing."""
    aggregate = Aggregate(encoding="topk", density=0.3)
    federation = Federation(asynchronous(aggregate=aggregate))
    worker = federation.worker("w0", encodings=("f32", "topk"))
    task = worker.task()
    assert (task.encoding, task.keep, task.feedback) == ("topk", 2, True)
    data = kernels.encode(np.array([0, 3, 0, 4], np.float32), "topk")
    worker.offer(task, data, encoding="topk", digest=xxhash.xxh3_128_digest(data))
    assert worker.last(wire.Ack).result == "accepted"
    assert federation.durable(AcceptRow)[0].norm == 5
    for wrong, begins in (
        (data[:-4] + bytes(4), "payload: block 0 of a topk payload must not hold a zero"),
        (
            kernels.encode(np.array([1, 0, 1], np.float32), "topk"),
            "payload must be of 4 values, as topk, not of 3",
        ),
        (bytes(13), "size: 6 to 12 bytes in topk"),
    ):
        other = Federation(asynchronous(aggregate=aggregate))
        ack = refused(other, "w0", data=wrong, encoding="topk", digest=xxhash.xxh3_128_digest(wrong))
        assert ack.reason.startswith(begins)


N = 20_000
KEEP = 20


def sparse(held: int, step: int = 1) -> bytes:
    """A topk payload of N values, `held` of them not zero."""
    x = np.zeros(N, np.float32)
    x[: held * step : step] = 1
    return bytes(kernels.encode(x, "topk"))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (sparse(0), ""),
        (sparse(KEEP), ""),
        (sparse(KEEP, step=129), ""),
        (sparse(KEEP + 1), "payload: holds 21 values, at most 20 were asked for"),
        (sparse(KEEP + 1, step=129), "size: 12 to 92 bytes in topk"),
        (sparse(N), "size: 12 to 92 bytes in topk"),
        (b"", "size: 12 to 92 bytes in topk"),
        (sparse(0)[:-1], "size: 12 to 92 bytes in topk"),
        (sparse(KEEP)[:-1], "payload: block 1 of a topk payload ends inside its head"),
    ],
    ids=[
        "none",
        "all asked for",
        "far apart",
        "one more",
        "one more, far apart",
        "n",
        "nothing",
        "cut head",
        "cut",
    ],
)
@pytest.mark.parametrize("inline", [True, False])
def test_no_worker_sends_more_values_than_it_was_asked_for(data: bytes, reason: str, inline: bool) -> None:
    """By its size before a byte moves, where no so few values take so many; else when all is here."""
    federation = Federation(asynchronous(aggregate=Aggregate(encoding="topk", density=0.001)), elements=N)
    worker = federation.worker("w0", encodings=("topk",))
    task = worker.task()
    assert task.keep == KEEP
    federation.slow_spool = True
    worker.offer(task, data, encoding="topk", inline=inline)
    opened = [action for action in federation.spooling if isinstance(action, OpenUpload)]
    if reason.startswith("size") or inline:
        assert not opened
        ack = worker.last(wire.Ack)
        assert (ack.result, ack.reason[: len(reason)]) == ("rejected" if reason else "accepted", reason)
        assert len(federation.durable(AcceptRow)) == (not reason)
    else:
        assert [(action.n, action.most) for action in opened] == [
            (N, KEEP)
        ]  # the spool counts: test_spool.py


def test_topk_that_was_not_asked_for_has_no_bound_but_the_models_size() -> None:
    """A density is configured for topk alone; and a worker that sends f32 instead sends everything."""
    federation = Federation(asynchronous(aggregate=Aggregate(encoding="f16", density=0.001)), elements=N)
    worker = federation.worker("w0", encodings=("f32", "f16", "topk"))
    assert worker.task().keep is None
    worker.offer(worker.task(), sparse(N), encoding="topk")
    assert worker.last(wire.Ack).result == "accepted"


def test_a_sparse_upload_that_is_none_is_refused_when_it_is_sealed() -> None:
    """Large ones are looked at by the spool; what it found is the reason."""
    federation = Federation(asynchronous(aggregate=Aggregate(encoding="topk")))
    worker = federation.worker("w0", encodings=("f32", "topk"))
    task = worker.task()
    federation.slow_spool = True
    data = bytes(8)
    worker.say(
        wire.Offer(
            task=task.task,
            kind="fit",
            base=task.version,
            examples=1,
            layout=task.layout,
            encoding="topk",
            size=len(data),
            digest=xxhash.xxh3_128_digest(data),
        )
    )
    assert [action.n for action in federation.spooling if isinstance(action, OpenUpload)] == [4]
    federation.serve_spool()
    worker.say(wire.Part(task=task.task, offset=0), data)
    federation.spooling.clear()
    federation.tell(PartWritten(task.task, len(data)))
    federation.tell(Sealed(task.task, xxhash.xxh3_128_digest(data), None, "payload: what the spool says"))
    ack = worker.last(wire.Ack)
    assert (ack.result, ack.reason) == ("rejected", "payload: what the spool says")
    assert task.task in federation.discarded
    assert not federation.durable(AcceptRow)


@pytest.mark.parametrize(
    ("encoding", "feedback", "said"), [("i8", None, None), ("i8", True, True), ("topk", False, None)]
)
def test_feedback_is_what_was_configured(encoding: str, feedback: bool | None, said: bool | None) -> None:
    """By itself with topk only; a worker that falls back to f32 has nothing to keep."""
    aggregate = Aggregate(encoding=encoding, error_feedback=feedback)  # type: ignore[arg-type]
    federation = Federation(asynchronous(aggregate=aggregate))
    assert federation.worker("w0", encodings=("f32", encoding)).task().feedback is said
    plain = federation.worker("w1").task()
    assert (plain.encoding, plain.keep, plain.feedback) == ("f32", None, None)


def test_a_worker_that_cannot_encode_it_sends_f32() -> None:
    """An edge worker that knows one encoding takes part all the same."""
    federation = Federation(asynchronous(aggregate=Aggregate(encoding="i8")))
    worker = federation.worker("w0")
    assert worker.task().encoding == "f32"
    assert worker.fit().result == "accepted"


def test_updates_wait_at_the_workers_when_folding_is_slow() -> None:
    """Four frozen buffers may wait; beyond, an offer is told to come again."""
    federation = Federation(asynchronous(buffer=1, max_staleness=20))
    worker = federation.worker("w0")
    for _ in range(4):
        worker.fit()
    worker.offer(worker.task())
    assert worker.got(wire.Wait)
    assert len(federation.durable(AcceptRow)) == 4
    federation.fold()
    worker.offer(worker.task())
    assert len(federation.durable(AcceptRow)) == 5
