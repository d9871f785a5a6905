"""Keys in the broker's mind: who somebody is, what an invite may do, and what is left of a key that was revoked."""

import pytest
import xxhash

from fedmq.broker.events import Received, Register, Registered, Revoked, Seal, Sealed
from fedmq.broker.rows import AcceptRow, EvictRow
from fedmq.fedcore import wire
from fedmq.fedcore.config import Security
from fedmq.fedcore.keys import to_text

from .federation import Federation, Worker, asynchronous, payload, synchronous

KEYS = [to_text(bytes([number]) * 32) for number in range(1, 5)]
INVITE = to_text(b"i" * 32)
NEW = b"n" * 32
KEYED = Security(keys="keys")


def keyed(federation: Federation, number: int, name: str = "ward") -> Worker:
    """A worker with a key that has said HELLO over a connection of its own."""
    worker = Worker(federation, name)
    worker.peer = b"peer %d" % number
    worker.key = KEYS[number]
    worker.hello()
    return worker


def error(federation: Federation, peer: bytes) -> wire.Error:
    """The last message to a peer, which is an ERROR."""
    last = federation.sent[peer][-1]
    assert isinstance(last, wire.Error)
    return last


def test_the_key_is_who_a_worker_is() -> None:
    """Two that call themselves the same are two, in the status and in the journal."""
    federation = Federation(asynchronous(buffer=2, security=KEYED))
    for number in (0, 1):
        keyed(federation, number).fit()
    shown = federation.status()["workers"]
    assert [(worker["name"], worker["key"]) for worker in shown] == [("ward", key) for key in KEYS[:2]]
    assert [row.worker for row in federation.durable(AcceptRow)] == KEYS[:2]


def test_without_keys_none_is_shown() -> None:
    """There the name is all there is."""
    federation = Federation()
    federation.worker("w0")
    assert federation.status()["workers"][0]["key"] is None


def test_one_key_may_change_its_name() -> None:
    """It is the same worker still, and what it holds is its own."""
    federation = Federation(asynchronous(security=KEYED))
    worker = keyed(federation, 0)
    task = worker.task()
    worker.name = "other"
    worker.hello(tasks=(task.task,))
    assert [w["name"] for w in federation.status()["workers"]] == ["other"]
    worker.say(wire.Beat(tasks=(task.task,), outbox=(), free=0, seen=0))
    assert not worker.got(wire.Cancel)


def test_another_key_cannot_answer_a_task() -> None:
    """A task's id is made for one key; another worker's is rejected, whatever name it has."""
    federation = Federation(asynchronous(security=KEYED))
    first, second = keyed(federation, 0), keyed(federation, 1)
    second.offer(first.task())
    ack = second.last(wire.Ack)
    assert (ack.result, ack.reason.split(":")[0]) == ("rejected", "task")


@pytest.mark.parametrize("message", [wire.Beat(), wire.Bye(), wire.Fetch(version=0, offset=0, length=9)])
def test_another_key_has_no_part_in_a_session(message: wire.Message) -> None:
    """A return address may come to be another's: what that says is not the first one's word."""
    federation = Federation(asynchronous(security=KEYED))
    worker = keyed(federation, 0)
    federation.tell(Received(worker.peer, message, None, KEYS[1]))
    assert federation.status()["workers"][0]["state"] == "training"
    assert not federation.blocks
    if not isinstance(message, wire.Bye):
        assert error(federation, worker.peer).why == "need_hello"


def test_another_key_that_says_hello_takes_the_address() -> None:
    """The first one's session is over; its tasks are free."""
    federation = Federation(asynchronous(concurrency=1, security=KEYED))
    first = keyed(federation, 0)
    assert first.task()
    second = Worker(federation, "ward")
    second.peer, second.key = first.peer, KEYS[1]
    second.hello()
    states = {worker["key"]: worker["state"] for worker in federation.status()["workers"]}
    assert states == {KEYS[0]: "gone", KEYS[1]: "training"}


def test_a_revoked_key_loses_everything_at_once() -> None:
    """Session, task, and what it had begun to send; the task goes to somebody else."""
    federation = Federation(asynchronous(concurrency=1, security=KEYED), elements=1000)
    victim, other = keyed(federation, 0), keyed(federation, 1)
    victim.offer(victim.task(), payload(elements=1000), inline=False)
    victim.part(victim.task(), bytes(1024), 0)
    assert federation.status()["uploads"] == 1
    task = victim.task().task
    federation.tell(Revoked(KEYS[0]))
    assert victim.last(wire.Bye).reason == "revoked"
    assert federation.dropped == [victim.peer]
    assert federation.discarded == [task]
    assert federation.status()["uploads"] == 0
    states = {worker["key"]: worker["state"] for worker in federation.status()["workers"]}
    assert states == {KEYS[0]: "gone", KEYS[1]: "training"}
    assert other.task()


def test_an_update_that_was_being_sealed_is_not_accepted() -> None:
    """All of its bytes were here; the key was revoked before they counted."""
    federation = Federation(asynchronous(security=KEYED), elements=1000)
    victim = keyed(federation, 0)
    victim.offer(victim.task(), data := payload(elements=1000), inline=False)
    federation.slow_spool = True
    victim.part(victim.task(), data, 0)
    federation.serve_spool()
    assert federation.spooling == [Seal(victim.task().task)]
    federation.tell(Revoked(KEYS[0]))
    federation.tell(Sealed(victim.task().task, xxhash.xxh3_128_digest(data), 1.0))
    assert not federation.durable(AcceptRow)
    assert federation.status()["updates"]["accepted"] == 0


def test_what_was_accepted_before_stays() -> None:
    """It is promised: its version counts it."""
    federation = Federation(asynchronous(buffer=2, security=KEYED))
    keyed(federation, 0).fit()
    federation.tell(Revoked(KEYS[0]))
    keyed(federation, 1).fit()
    assert [row.worker for row in federation.fold().rows] == KEYS[:2]


def test_a_round_goes_on_without_a_revoked_member() -> None:
    """Others are asked in its place, or it is not waited for."""
    federation = Federation(synchronous(min_available=2, deadline_s=20, security=KEYED))
    workers = [keyed(federation, number) for number in range(3)]
    assert [len(worker.tasks("fit")) for worker in workers] == [1, 1, 0]
    federation.tell(Revoked(KEYS[0]))
    workers[1].fit()
    federation.wait(21.0)
    workers[2].fit()
    assert {row.worker for row in federation.folds[0].rows} == set(KEYS[1:3])


def test_a_stranger_that_is_revoked_is_no_matter() -> None:
    """It was on the list, and never here."""
    federation = Federation(asynchronous(security=KEYED))
    federation.tell(Revoked(KEYS[0]))
    assert not federation.sent
    assert not federation.dropped


def test_a_key_that_is_allowed_again_begins_anew() -> None:
    """It was revoked by mistake."""
    federation = Federation(asynchronous(security=KEYED))
    worker = keyed(federation, 0)
    federation.tell(Revoked(KEYS[0]))
    worker.hello()
    assert worker.got(wire.Welcome)
    assert worker.task()


def test_an_invite_registers_a_key() -> None:
    """The answer follows when the key is on the list."""
    federation = Federation(asynchronous(security=KEYED))
    federation.tell(Received(b"guest", wire.Enroll(key=NEW), None, INVITE, True))
    assert federation.registering == [Register(b"guest", INVITE, NEW)]
    assert not federation.sent
    federation.tell(Registered(b"guest", NEW))
    assert federation.sent[b"guest"] == [wire.Enrolled(key=NEW)]


def test_an_invite_that_was_used_is_refused_in_words() -> None:
    """The worker's operator reads why."""
    federation = Federation(asynchronous(security=KEYED))
    federation.tell(Registered(b"guest", NEW, "once"))
    assert (error(federation, b"guest").why, error(federation, b"guest").reason) == ("forbidden", "once")
    assert error(federation, b"guest").ref == wire.Enroll.code


@pytest.mark.parametrize(
    "message",
    [
        wire.Hello(protocol=1, name="x", instance=b"i", boot=b"b"),
        wire.Beat(),
        wire.Fetch(version=0, offset=0, length=10),
        wire.Offer(task=b"t", kind="evaluate", base=0, examples=1, metrics={"loss": 1.0}),
        wire.Fail(task=b"t"),
        wire.Bye(),
    ],
    ids=lambda message: type(message).__name__,
)
def test_an_invite_may_do_nothing_else(message: wire.Message) -> None:
    """No session, no bytes, no word."""
    federation = Federation(asynchronous(security=KEYED))
    federation.tell(Received(b"guest", message, None, INVITE, True))
    assert (error(federation, b"guest").why, error(federation, b"guest").ref) == ("forbidden", message.code)
    assert federation.status()["workers"] == []
    assert not federation.blocks


def test_a_guest_that_talks_on_and_on_is_dropped() -> None:
    """As any stranger."""
    federation = Federation(asynchronous(security=KEYED))
    for _ in range(1000):
        federation.tell(Received(b"guest", wire.Beat(), None, INVITE, True))
    assert b"guest" in federation.dropped


def test_a_member_has_nothing_to_enroll() -> None:
    """Its session is what it was."""
    federation = Federation(asynchronous(security=KEYED))
    worker = keyed(federation, 0)
    worker.say(wire.Enroll(key=NEW))
    assert (worker.last(wire.Error).why, worker.last(wire.Error).ref) == ("forbidden", wire.Enroll.code)
    assert not federation.registering
    assert federation.status()["workers"][0]["state"] == "training"


def test_evicting_by_a_name_that_two_have_asks_which() -> None:
    """Nobody is sent away by mistake; a key says which."""
    federation = Federation(asynchronous(security=KEYED))
    keyed(federation, 0)
    keyed(federation, 1)
    reply = federation.operate("evict", worker="ward")
    assert reply is not None
    assert all(key in reply["error"] for key in KEYS[:2])
    assert federation.operate("evict", worker=KEYS[1]) == {"ok": True}
    assert federation.durable(EvictRow) == [EvictRow(worker=KEYS[1], evicted=True)]
