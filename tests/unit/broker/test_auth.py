"""The gate at a real ROUTER: each message's key, connections that are found again, and descriptors that change hands.

What comes of it for whole federations stands in tests/integration/test_curve.py.
"""

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from fedmq.broker import auth
from fedmq.broker.admission import Admission
from fedmq.broker.auth import Gate, load_pair, new_pair
from fedmq.broker.events import Received, Violation
from fedmq.broker.keyring import Invite, KeyRing
from fedmq.broker.transport import Transport, Wires
from fedmq.fedcore import wire
from fedmq.fedcore.errors import ConfigError
from fedmq.fedcore.keys import Pair, write_pair

HELLO = wire.Hello(protocol=1, name="w", instance=b"i", boot=b"b")
WAIT_S = 20.0


class Site:
    """A transport with keys, and sockets that connect to it."""

    def __init__(self, folder: Path) -> None:
        self.ring = KeyRing(folder)
        self.pair = new_pair()
        self.transport = Transport(
            Wires(bind="tcp://127.0.0.1:*", block=1 << 20, high_water=100), (self.pair, Admission(self.ring))
        )
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.events: list[Any] = []
        self.revoked: list[str] = []
        self._dealers: list[zmq.Socket[bytes]] = []

    @property
    def gate(self) -> Gate:
        gate = self.transport._gate
        assert gate is not None
        return gate

    def connect(self, pair: Pair, routing_id: bytes = b"") -> "zmq.Socket[bytes]":
        dealer = self._context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.LINGER, 0)
        if routing_id:
            dealer.setsockopt(zmq.ROUTING_ID, routing_id)
        dealer.setsockopt(zmq.CURVE_SERVERKEY, self.pair.public.encode())
        dealer.setsockopt(zmq.CURVE_PUBLICKEY, pair.public.encode())
        dealer.setsockopt(zmq.CURVE_SECRETKEY, pair.secret.encode())
        dealer.connect(self.transport.endpoint)
        self._dealers.append(dealer)
        return dealer

    def allow(self, name: str) -> Pair:
        pair = new_pair()
        self.ring.allow(pair.public, name)
        return pair

    def turn(self) -> None:
        self.transport.poll(0.02)
        self.revoked += self.transport.revoked()
        self.events += self.transport.receive()
        self.transport.retry()

    def until(self, condition: Callable[[], Any]) -> Any:
        ends = time.monotonic() + WAIT_S
        while not (found := condition()):
            assert time.monotonic() < ends, self.events
            self.turn()
        return found

    def hear(self, dealer: "zmq.Socket[bytes]", message: wire.Message = HELLO) -> Received:
        """Say something and see it arrive."""
        before = len(self.events)
        dealer.send_multipart(wire.encode(message))
        self.until(lambda: len(self.events) > before)
        event = self.events[-1]
        assert isinstance(event, Received)
        return event

    def close(self) -> None:
        self._context.destroy(linger=0)
        self.transport.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.close()


def test_a_message_carries_the_key_of_its_connection(site: Site) -> None:
    """Whatever it says of itself; two under one name are two."""
    first, second = site.allow("a"), site.allow("b")
    assert site.hear(site.connect(first)).user == first.public
    assert site.hear(site.connect(second)).user == second.public
    assert not any(event.invited for event in site.events)


def test_an_invites_key_is_marked(site: Site) -> None:
    """The mind knows what to make of it; when it expires, its open connection says nothing more."""
    pair = new_pair()
    site.ring.invite(Invite(pair.public, time.time() + 600, name="x"), time.time())
    dealer = site.connect(pair)
    event = site.hear(dealer)
    assert (event.user, event.invited) == (pair.public, True)
    site.ring.revoke("x")
    site.until(lambda: not site.gate._admission.is_guest(pair.public))
    dealer.send_multipart(wire.encode(HELLO))
    for _ in range(20):
        site.turn()
    assert len(site.events) == 1


def test_a_key_that_was_revoked_is_not_heard_and_is_cut(site: Site) -> None:
    """Its frames go unread, even those that are no message, and its connection ends; another's does not."""
    pair, other = site.allow("a"), site.allow("b")
    dealer, stays = site.connect(pair), site.connect(other)
    monitor = dealer.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    site.hear(dealer)
    site.hear(stays)
    site.ring.revoke("a")
    site.until(lambda: site.revoked == [pair.public])
    heard = len(site.events)
    dealer.send_multipart([b"noise"])
    site.until(lambda: monitor.poll(0))
    assert len(site.events) == heard
    site.hear(stays)
    dealer.disable_monitor()
    monitor.close()


def test_each_message_is_asked_for_its_key(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two frames the key goes: the second is not heard, although nobody was told of a revocation yet."""
    pair = site.allow("a")
    dealer = site.connect(pair)
    site.hear(dealer)
    monkeypatch.setattr(site.gate._admission, "is_member", lambda key: False)
    dealer.send_multipart(wire.encode(HELLO))
    dealer.send_multipart([b"noise"])
    for _ in range(30):
        site.turn()
    assert len(site.events) == 1
    assert not any(isinstance(event, Violation) for event in site.events)


def test_a_return_address_that_changes_hands_brings_its_own_key(site: Site) -> None:
    """A worker may choose its routing id, and another may take it later: the key is each message's own."""
    first, second = site.allow("a"), site.allow("b")
    dealer = site.connect(first, b"chosen")
    assert site.hear(dealer).user == first.public
    dealer.close(linger=0)
    site.until(lambda: not site.transport.connections)
    assert site.hear(site.connect(second, b"chosen")).user == second.public
    found = site.gate.peers([first.public, second.public])
    assert found == {first.public: [], second.public: [b"chosen"]}


def test_a_descriptor_that_was_used_again_is_not_cut(site: Site) -> None:
    """The connection is gone and its number is another socket's: that one stays whole."""
    dealer = site.connect(site.allow("a"))
    peer = site.hear(dealer).peer
    origin = site.gate._origins[peer]
    descriptor = origin.descriptor
    dealer.close(linger=0)
    site.until(lambda: auth._inode(descriptor) != origin.inode)  # some time after it was told to be closed
    taken: list[socket.socket] = []
    near = far = None
    try:
        while near is None:
            left, right = socket.socketpair()
            taken += (left, right)
            assert len(taken) < 100, "the number is not given out again"
            if descriptor in (left.fileno(), right.fileno()):
                near, far = (left, right) if left.fileno() == descriptor else (right, left)
        assert site.gate.hold(peer) is None
        near.send(b"x")
        assert far is not None
        assert far.recv(1) == b"x"
    finally:
        for one in taken:
            one.close()


def test_connections_that_are_gone_are_forgotten(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that comes back a thousand times leaves nothing behind."""
    monkeypatch.setattr(auth, "SPARE", 4)
    site.gate._sweep_at = 4
    pair = site.allow("a")
    for _ in range(20):
        dealer = site.connect(pair)
        site.hear(dealer)
        dealer.close(linger=0)
        site.until(lambda: not site.transport.connections)
    assert len(site.gate._origins) <= 5


def test_refused_keys_are_counted_and_seldom_logged(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever reaches the port can try keys all day; the log holds one line of it, with how many there were."""
    for _ in range(5):
        before = site.transport.refused
        site.connect(new_pair())
        site.until(lambda before=before: site.transport.refused > before)
    assert [r.getMessage() for r in caplog.records] == ["key refused: it is not on the allowlist"]
    assert site.transport.refused >= 5
    assert site.events == []


def test_after_a_rebind_the_gate_still_stands(site: Site) -> None:
    """The new socket asks for keys as the old one did."""
    pair = site.allow("a")
    site.hear(site.connect(pair))
    site.transport.rebind()
    assert site.hear(site.connect(pair)).user == pair.public
    site.connect(new_pair())
    site.until(lambda: site.transport.refused)


def test_a_public_key_begins_with_a_letter_or_digit() -> None:
    """A shell takes it for no option, and an editor for no comment."""
    assert all(new_pair().public[0].isalnum() for _ in range(200))


def test_halves_belong_together(tmp_path: Path) -> None:
    """Else workers would look for somebody else."""
    pair = new_pair()
    write_pair(tmp_path, "broker", pair)
    assert load_pair(KeyRing(tmp_path)) == pair
    (tmp_path / "broker.key").write_text(new_pair().public)
    with pytest.raises(ConfigError, match="not the public half"):
        load_pair(KeyRing(tmp_path))
