"""A broker's mind and those who mean harm: floods, hoarders, strangers. What they cost is bounded, and theirs alone."""

import msgspec
import pytest

from fedmq.broker.events import Severed
from fedmq.broker.patience import PATIENCE, REST_S
from fedmq.broker.peers import STRANGERS_MAX
from fedmq.broker.sessions import GONE_MAX
from fedmq.fedcore import wire
from fedmq.fedcore.config import Aggregate

from .federation import Federation, Worker, asynchronous, payload, synchronous


def flood(worker: Worker, *messages: wire.Message, most: int = int(2 * PATIENCE)) -> int:
    """Say these over and over until the session is over; how many messages that took."""
    federation = worker._federation
    for said in range(most):
        if worker.peer in federation.dropped:
            return said
        worker.say(messages[said % len(messages)])
    raise AssertionError("everything was borne")


def states(federation: Federation) -> dict[str, str]:
    return {worker["name"]: worker["state"] for worker in federation.status()["workers"]}


@pytest.mark.parametrize(
    "message",
    [
        wire.Beat(tasks=(), outbox=(), free=1),
        wire.Fetch(version=0, offset=0, length=1),
        wire.Fail(task=b"t" * 37),
        wire.Offer(task=b"t" * 37, kind="evaluate", base=0, examples=1, metrics={"loss": 1.0}),
    ],
    ids=lambda message: type(message).__name__,
)
def test_a_flood_ends_the_session(message: wire.Message) -> None:
    """About as many messages as patience bears; then the session is over, counted, and nobody else's is."""
    f = Federation(asynchronous(buffer=10))
    honest, mallory = f.workers(2)
    assert PATIENCE / 2 < flood(mallory, message) <= PATIENCE + 1
    assert states(f) == {"w0": "training", "w1": "gone"}
    assert f.status()["updates"]["flooded"] == 1
    assert honest.fit().result == "accepted"


def test_who_flooded_is_refused_until_it_has_rested() -> None:
    """HELLO is answered with REJECT `full`, which says how long; afterwards it is welcome."""
    f = Federation()
    mallory = f.worker("mallory")
    flood(mallory, wire.Beat(free=0))
    mallory.hello(peer=b"another connection")
    reject = mallory.last(wire.Reject)
    assert (reject.why, reject.fatal) == ("full", False)
    assert REST_S - 1 <= reject.retry_s <= REST_S
    assert mallory.got(wire.Welcome) == []
    f.wait(REST_S)
    mallory.hello(peer=b"a third one")
    assert mallory.got(wire.Welcome)


def test_another_name_brings_no_new_patience() -> None:
    """HELLOs under ever new names over one connection have one budget."""
    f = Federation()
    mallory = f.worker("m0")
    for number in range(1, 1000):
        mallory.name = f"m{number}"
        mallory.say(wire.Hello(protocol=1, name=mallory.name, instance=b"i", boot=b"b"))
        if mallory.peer in f.dropped:
            break
    assert number < 300
    assert f.status()["updates"]["flooded"] == 1


def test_honest_haste_is_no_flood() -> None:
    """A worker that works as fast as it can may say all that belongs to it, without a pause."""
    f = Federation(asynchronous(buffer=100_000))
    worker = f.worker("fast")
    for _ in range(int(PATIENCE) // 2):
        worker.say(wire.Fetch(version=0, offset=0, length=5000))
        worker.beat(free=0, tasks=(worker.task().task,))
        assert worker.fit().result == "accepted"
    assert f.dropped == []


def test_moving_bytes_is_no_flood() -> None:
    """PARTs that are granted, and FETCHes of more than a few KiB, cost nothing; credit bounds them."""
    f = Federation(elements=40_000_000 // 4, model_bytes=1 << 30)
    worker = f.worker("large")
    for number in range(2 * int(PATIENCE)):
        worker.say(wire.Fetch(version=0, offset=number * 4096, length=4096))
    data = bytes(40_000_000)
    worker.offer(worker.task(), data, inline=False)
    assert worker.send_granted(worker.task(), data, 4096) == len(data)
    assert f.dropped == []


def test_bytes_that_nobody_awaits_cost_by_their_size() -> None:
    """PARTs of an unknown task are thrown away; a few may be in flight, a flood of them is one."""
    f = Federation()
    worker = f.worker("w")
    part = wire.Part(task=b"t" * 37, offset=0)
    for _ in range(16):
        worker.say(part, bytes(1 << 20))
    assert f.dropped == []
    for _ in range(200):
        worker.say(part, bytes(1 << 20))
    assert worker.peer in f.dropped


def test_lists_of_unknown_tasks_cost_by_their_length() -> None:
    """A BEAT with a thousand ids is a thousand answers: it may be said once or twice."""
    f = Federation()
    worker = f.worker("w")
    ids = tuple(b"%037d" % number for number in range(1000))
    assert flood(worker, wire.Beat(tasks=ids, outbox=(), free=0)) <= 2


def test_a_stranger_is_answered_and_then_dropped() -> None:
    """Messages without a session are told to say HELLO, up to a number between two ticks."""
    f = Federation()
    stranger = Worker(f, "stranger")
    for _ in range(STRANGERS_MAX - 1):
        stranger.say(wire.Beat(free=1))
    assert f.dropped == []
    assert {error.why for error in stranger.got(wire.Error)} == {"need_hello"}
    f.wait(1)
    for _ in range(STRANGERS_MAX):
        stranger.say(wire.Bye())
    assert f.dropped == [stranger.peer]
    assert f.status()["workers"] == []


def test_a_name_that_is_taken_is_refused_so_often_and_no_more() -> None:
    """Another instance that insists is a stranger; the one that has the name loses nothing."""
    f = Federation()
    owner = f.worker("w")
    thief = Worker(f, "w")
    thief.peer = b"thief"
    for _ in range(STRANGERS_MAX):
        thief.say(wire.Hello(protocol=1, name="w", instance=b"another", boot=b"b"))
    assert f.dropped == [b"thief"]
    assert owner.fit().result == "accepted"


def test_a_hoarder_gets_its_share() -> None:
    """However many tasks it asks for; an honest worker gets its own beside it."""
    f = Federation(asynchronous(buffer=2, concurrency=10, tasks_per_worker=4))
    hoarder = f.worker("hoarder", free=2**53 - 1)
    assert len(hoarder.tasks()) == 4
    honest = f.worker("honest")
    assert len(honest.tasks()) == 1
    hoarder.beat(tuple(task.task for task in hoarder.tasks()), free=2**53 - 1)
    assert len(hoarder.tasks()) == 4


def test_offers_without_bytes_earn_no_endless_tasks() -> None:
    """An OFFER frees a slot; a worker that only offers has twice its share on the books and no more."""
    f = Federation(asynchronous(buffer=1000, tasks_per_worker=4))
    worker = f.worker("w")
    for number in range(20):
        if number < len(worker.tasks()):
            worker.offer(worker.tasks()[number], inline=False)
    assert len(worker.tasks()) == 8
    assert f.status()["uploads"] == 8


def test_tasks_that_are_too_old_are_called_back() -> None:
    """A hoarder cannot keep tasks, their slots and their base's file for ever; what it sends is stale anyway."""
    f = Federation(asynchronous(buffer=1, max_staleness=2, concurrency=2))
    hoarder, honest = f.workers(2)
    task = hoarder.task()
    for _ in range(4):
        honest.fit()
        f.fold()
    f.wait(1)
    assert [cancel.task for cancel in hoarder.got(wire.Cancel)] == [task.task]
    hoarder.beat()
    assert hoarder.fit().result == "accepted", "it has a fresh one"


def test_an_update_that_moves_is_not_called_back() -> None:
    """A slow transfer is not cut short by the clock; its ACK will say what has become of it."""
    f = Federation(asynchronous(buffer=1, max_staleness=2), elements=100_000)
    slow, honest = f.workers(2)
    data = payload(elements=100_000)
    slow.offer(slow.task(), data, inline=False)
    slow.part(slow.task(), data[:1000], 0)
    for _ in range(4):
        honest.fit(payload(elements=100_000), inline=True)
        if f.folds:
            f.fold()
    f.wait(1)
    assert slow.got(wire.Cancel) == []


def test_rounds_keep_their_members() -> None:
    """In synchronous mode a round's end calls tasks back, and nothing before it."""
    f = Federation(synchronous(min_available=2))
    f.workers(2)
    f.wait(5)
    assert set(states(f).values()) == {"training"}


def test_workers_that_are_gone_are_forgotten_some_day() -> None:
    """Strangers with ever new names do not fill the memory; those who are there stay."""
    f = Federation()
    f.worker("here", kinds=("evaluate",))
    for number in range(GONE_MAX + 50):
        visitor = f.worker(f"v{number}", kinds=("evaluate",))
        visitor.say(wire.Bye())
    names = states(f)
    assert len(names) == GONE_MAX + 1
    assert names["here"] == "idle"
    assert "v0" not in names
    assert f"v{GONE_MAX + 49}" in names


def test_a_claim_of_a_billion_examples_is_refused() -> None:
    """`aggregate.max_examples` bounds what one worker may weigh."""
    f = Federation(asynchronous(buffer=2, aggregate=Aggregate(max_examples=1000)))
    worker = f.worker("giant")
    ack = worker.fit(examples=1001)
    assert (ack.result, ack.reason) == ("rejected", "examples: 1 to 1000, says aggregate.max_examples")
    f.wait(2)
    assert worker.fit(examples=1000).result == "accepted"


def test_a_session_keeps_only_what_it_understands() -> None:
    """Sixty-four kinds and encodings of 128 bytes, from each of ten thousand workers, would be a quarter of a GB."""
    f = Federation()
    words = tuple(f"{number:0128}" for number in range(63))
    worker = f.worker("w", kinds=(*words, "fit"), encodings=(*words, "f32"), tags=words)
    assert worker.tasks("fit")
    session = f.mind._books.workers.at(worker.peer).session  # type: ignore[union-attr]
    assert session is not None
    assert (session.kinds, session.encodings) == ({"fit"}, {"f32"})


def test_a_rebind_costs_nobody_anything() -> None:
    """Every connection is gone: nobody gets a task meanwhile, and everybody goes on where it was after its HELLO."""
    f = Federation(asynchronous(buffer=2))
    first, second = f.workers(2)
    tasks = first.task(), second.task()
    f.tell(Severed())
    assert set(states(f).values()) == {"suspect"}
    for worker, task in ((first, tasks[0]), (second, tasks[1])):
        worker.hello(peer=worker.peer + b" again", tasks=(task.task,), free=0)
        worker.offer(task)
    assert f.status()["updates"]["accepted"] == 2
    assert msgspec.to_builtins(f.status()["buffer"])["frozen"] == 1
