"""Who may say what: messages with and without a session, malformed ones, and what a peer is told about them."""

import pytest

from fedmq.broker.events import Drop, Received, SendBlock, Tick, Unreachable, Violation
from fedmq.fedcore import wire

from .federation import Federation, asynchronous, payload

TASK = b"t" * 37

NEEDS_A_SESSION = [
    (wire.Beat(), None),
    (wire.Fetch(version=0, offset=0, length=10), None),
    (wire.Offer(task=TASK, kind="evaluate", base=0, examples=1, metrics={"loss": 1.0}), None),
    (wire.Part(task=TASK, offset=0), memoryview(b"x")),
    (wire.Fail(task=TASK), None),
]


@pytest.mark.parametrize(("message", "data"), NEEDS_A_SESSION, ids=lambda m: type(m).__name__)
def test_without_a_session_a_peer_is_told_to_say_hello(
    message: wire.Message, data: memoryview | None
) -> None:
    """That is how a worker learns that the broker was restarted."""
    federation = Federation()
    federation.tell(Received(b"stranger", message, data))
    (error,) = federation.sent[b"stranger"]
    assert isinstance(error, wire.Error)
    assert (error.why, error.ref) == ("need_hello", message.code)


def test_a_bye_without_a_session_is_not_answered() -> None:
    """Whoever leaves need not come first."""
    federation = Federation()
    federation.tell(Received(b"stranger", wire.Bye()))
    assert not federation.sent


@pytest.mark.parametrize("has_session", [False, True])
def test_enrolment_is_not_open(has_session: bool) -> None:
    """Without keys there is nothing to register; asking is answered, and changes nothing."""
    federation = Federation()
    worker = federation.worker("w0")
    peer = worker.peer if has_session else b"stranger"
    federation.tell(Received(peer, wire.Enroll(key=b"k" * 32)))
    error = federation.sent[peer][-1]
    assert isinstance(error, wire.Error)
    assert error.why == "forbidden"


def test_a_fetch_is_served_from_the_file() -> None:
    """A BLOCK is what is left of the file at that offset, at most what was asked for."""
    federation = Federation()
    worker = federation.worker("w0")
    worker.say(wire.Fetch(version=0, offset=4000, length=4096))
    assert federation.blocks == [SendBlock(worker.peer, 0, 4000, 1000)]


def test_a_fetch_of_a_version_that_is_not_kept_is_gone() -> None:
    """It says which FETCH, so that the worker can FAIL the tasks that need it."""
    federation = Federation()
    worker = federation.worker("w0")
    worker.say(wire.Fetch(version=7, offset=100, length=10))
    error = worker.last(wire.Error)
    assert (error.why, error.version, error.offset) == ("gone", 7, 100)


@pytest.mark.parametrize(("offset", "length"), [(5000, 1), (0, (1 << 20) + 1)])
def test_a_fetch_beyond_the_file_or_the_block_is_malformed(offset: int, length: int) -> None:
    """Nothing is read for it."""
    federation = Federation()
    worker = federation.worker("w0")
    worker.say(wire.Fetch(version=0, offset=offset, length=length))
    assert worker.last(wire.Error).why == "malformed"
    assert not federation.blocks


def test_a_violation_is_answered_and_says_what_it_is_about() -> None:
    """An OFFER that breaks the protocol but names its task ends that update at the worker."""
    federation = Federation()
    worker = federation.worker("w0")
    federation.tell(Violation(worker.peer, wire.Offer.code, "a metric is not a finite number", TASK))
    error = worker.last(wire.Error)
    assert (error.why, error.ref, error.task) == ("malformed", wire.Offer.code, TASK)
    assert federation.status()["updates"]["malformed"] == 1


def test_a_part_that_was_not_granted_says_which() -> None:
    """So that the worker offers that update again and learns where to go on."""
    federation = Federation(elements=1000)
    worker = federation.worker("w0")
    data = payload(elements=1000)
    worker.offer(worker.task(), data, inline=False)
    worker.part(worker.task(), data[1024:2048], 1024)
    error = worker.last(wire.Error)
    assert (error.why, error.ref, error.task) == ("malformed", wire.Part.code, worker.task().task)


def test_three_violations_within_a_minute_end_the_session() -> None:
    """What it held is free, and it has to say HELLO again."""
    federation = Federation()
    worker = federation.worker("w0")
    for _ in range(3):
        federation.tell(Violation(worker.peer, 0, "noise"))
    assert federation.dropped == [worker.peer]
    assert federation.status()["workers"][0]["state"] == "gone"
    worker.beat()
    assert worker.last(wire.Error).why == "need_hello"


def test_violations_that_are_far_apart_are_forgiven() -> None:
    """Two a minute, for ever, is not an attack."""
    federation = Federation()
    worker = federation.worker("w0")
    for _ in range(6):
        federation.tell(Violation(worker.peer, 0, "noise"))
        federation.wait(31.0)
        worker.beat()
    assert not federation.dropped


def test_a_stranger_with_three_violations_is_dropped_too() -> None:
    """And may begin anew: nothing of it is kept."""
    federation = Federation()
    for _ in range(4):
        federation.tell(Violation(b"stranger", 0, "noise"))
    assert federation.dropped == [b"stranger"]


def test_what_a_peer_says_reaches_the_log_as_one_line() -> None:
    """A reason from outside cannot forge log lines, nor clear a terminal."""
    federation = Federation()
    worker = federation.worker("w0")
    worker.say(wire.Fail(task=worker.task().task, reason="a\nb\x1b[2Jc"))
    worker.say(wire.Bye(reason="x\ny"))
    reasons = [str(note.fields.get("reason", "")) for note in federation.notes]
    assert any(reason.startswith("failed: a b") for reason in reasons)
    assert not any(set(reason) & {"\n", "\x1b"} for reason in reasons)


def test_a_message_that_travels_the_other_way_is_a_violation() -> None:
    """The transport never lets one through; the mind does not rely on that."""
    federation = Federation()
    worker = federation.worker("w0")
    worker.say(wire.Cancel(task=TASK))
    assert worker.last(wire.Error).why == "malformed"


def test_time_alone_sends_nothing_but_beats() -> None:
    """A worker that is silent for less than a lease hears that the broker lives."""
    federation = Federation(asynchronous())
    worker = federation.worker("w0", free=0)
    federation.wait(21.0)
    assert len(worker.got(wire.Beat)) == 2


def test_a_peer_without_a_route_that_nobody_knows_is_no_matter() -> None:
    """The socket may find out late."""
    federation = Federation()
    federation.tell(Unreachable(b"stranger"))
    federation.tell(Tick())
    assert not federation.sent


def test_something_that_is_no_event_is_a_defect() -> None:
    """It ends in an error, not in silence."""
    federation = Federation()
    with pytest.raises(TypeError, match="not an event"):
        federation.mind.handle(Drop(b""), 101.0)  # type: ignore[arg-type]
