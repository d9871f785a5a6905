"""An invited worker's mind: which key speaks next, and that nothing but ENROLL goes over the invite's connection."""

import random
from typing import Any

import pytest

from fedmq.fedcore import wire
from fedmq.worker.enrolment import Enrolment
from fedmq.worker.events import (
    Action,
    CloseSocket,
    Event,
    Exit,
    Lost,
    Note,
    Opened,
    OpenSocket,
    Received,
    Refused,
    Send,
    Start,
    Stop,
    Tick,
)
from fedmq.worker.session import Identity, Session

KEY = b"k" * 32
LONG = 1000.0


class Mind:
    """An enrolment, what it asked for, and the time."""

    def __init__(self, *, is_new: bool) -> None:
        me = Identity(name="w", instance=b"i" * 16, boot=b"b" * 16)
        self.enrolment = Enrolment(Session(me, rng=random.Random(1)), KEY, is_new=is_new)
        self.now = 0.0
        self.tell(Start())

    def tell(self, *events: Event) -> list[Action]:
        """What it wants done about events that come together."""
        self.done = self.enrolment.handle(*events, now=self.now)
        return self.done

    def sockets(self) -> list[bool]:
        """Of each socket that was opened just now, whether it speaks with the invite's key."""
        return [action.invited for action in self.done if isinstance(action, OpenSocket)]

    def said(self) -> list[wire.Message]:
        return [action.message for action in self.done if isinstance(action, Send)]

    def later(self) -> list[bool]:
        """The backoff is over."""
        self.now += LONG
        self.tell(Tick())
        return self.sockets()


def test_a_new_key_begins_with_the_invite() -> None:
    """ENROLL with its own key; then a socket with that, and HELLO."""
    mind = Mind(is_new=True)
    assert mind.sockets() == [True]
    mind.tell(Opened())
    assert mind.said() == [wire.Enroll(key=KEY)]
    done = mind.tell(Received(wire.Enrolled(key=KEY)))
    assert [type(action) for action in done] == [CloseSocket, OpenSocket, Note]
    assert mind.sockets() == [False]
    mind.tell(Opened())
    assert [type(message) for message in mind.said()] == [wire.Hello]


def test_a_known_key_begins_with_itself() -> None:
    """It was registered long ago, and is started with the invite still."""
    mind = Mind(is_new=False)
    assert mind.sockets() == [False]
    mind.tell(Opened())
    assert [type(message) for message in mind.said()] == [wire.Hello]


@pytest.mark.parametrize("is_new", [True, False])
def test_what_one_key_is_refused_the_other_tries_next(is_new: bool) -> None:
    """After the backoff, and for as long as it takes."""
    mind = Mind(is_new=is_new)
    tried = mind.sockets()
    for _ in range(4):
        mind.tell(Refused("no"))
        assert mind.sockets() == []
        tried += mind.later()
    assert tried == [is_new, not is_new, is_new, not is_new, is_new]


def test_a_refused_enrolment_is_as_a_refused_key() -> None:
    """Used by another, withdrawn: said in one line, and its own key is tried, which may have been allowed by hand."""
    mind = Mind(is_new=True)
    mind.tell(Opened())
    error = wire.Error(ref=wire.Enroll.code, why="forbidden", reason="once")
    done = mind.tell(Received(error))
    assert [getattr(a, "fields", {}).get("reason") for a in done].count("not enrolled: once") == 1
    assert any(isinstance(action, CloseSocket) for action in done)
    assert mind.later() == [False]


def test_an_answer_that_was_lost_is_asked_for_again() -> None:
    """The connection broke before ENROLLED came, or it stayed away: the same key asks again."""
    mind = Mind(is_new=True)
    mind.tell(Opened())
    mind.tell(Lost())
    mind.tell(Opened())
    assert mind.said() == [wire.Enroll(key=KEY)]
    assert mind.later() == []  # a lease without an answer closes the socket
    assert any(isinstance(action, CloseSocket) for action in mind.done)
    assert mind.later() == [True]
    mind.tell(Opened())
    assert mind.said() == [wire.Enroll(key=KEY)]


@pytest.mark.parametrize(
    "message",
    [
        wire.Welcome(
            protocol=1,
            federation="f",
            beat_s=1,
            lease_s=3,
            block=1024,
            inline_max=0,
            credit=0,
            max_model_bytes=9,
        ),
        wire.Beat(),
        wire.Task(task=b"t", seq=1, kind="init", version=0, size=0),
        wire.Bye(reason="finished"),
        wire.Error(ref=wire.Hello.code, why="need_hello"),
    ],
    ids=lambda message: type(message).__name__,
)
def test_over_the_invites_connection_nothing_else_is_heard(message: wire.Message) -> None:
    """Nor anything else said: there is no session."""
    mind = Mind(is_new=True)
    mind.tell(Opened())
    assert mind.tell(Received(message)) == []
    assert mind.enrolment.status()["connection"] == "connecting"


def test_it_can_be_stopped_at_any_time() -> None:
    """While it waits for ENROLLED as well."""
    mind = Mind(is_new=True)
    mind.tell(Opened())
    done: list[Any] = mind.tell(Stop())
    assert [action.code for action in done if isinstance(action, Exit)] == [0]
    assert not mind.said()


def test_what_comes_after_enrolled_is_of_a_socket_that_is_closed() -> None:
    """The session must not take the invite's connection for its own; what is not of a socket is heard."""
    mind = Mind(is_new=True)
    mind.tell(Opened())
    mind.tell(Received(wire.Enrolled(key=KEY)), Opened(), Received(wire.Bye(reason="revoked")))
    assert mind.sockets() == [False]
    assert not mind.said()
    mind = Mind(is_new=True)
    mind.tell(Opened())
    done: list[Any] = mind.tell(Received(wire.Enrolled(key=KEY)), Stop())
    assert [action.code for action in done if isinstance(action, Exit)] == [0]
