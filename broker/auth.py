"""CURVE at the broker's socket: who gets through a handshake, whose message it is, and how a connection is cut.

Rules that hold here:

- libzmq asks over ZAP before it lets a key in. The answer comes from the I/O loop's own thread, the question is
  bound before the ROUTER is, and ZAP_ENFORCE_DOMAIN is on: else, without an answer, every key would get in.
- The principal of a message is the key of the connection that it came over (`User-Id`, which libzmq sets and no
  peer can), asked for with each message. A key that is no longer allowed is not heard, and its connection is cut.
- A revoked key's connections are cut although they are silent: so each is remembered by the descriptor that its
  messages come from. Descriptors are used again, so each stands with its inode, which no other connection has.
"""

import logging
import os
import socket as sockets
import stat
import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import zmq

from fedmq.fedcore.errors import ConfigError
from fedmq.fedcore.keys import Pair, to_text

from . import descriptors
from .admission import Admission
from .events import Peer
from .keyring import NAME, KeyRing

log = logging.getLogger("fedmq.broker")

DOMAIN: Final = b"fedmq"
QUIET_S: Final = 10.0
"""Refused keys are logged at most so often: anybody who reaches the port can try some."""
ANSWERS_MAX: Final = 256
"""Handshakes that are decided in a turn."""
SPARE: Final = 64
"""Connections that are remembered before those that are gone are first looked for."""


class Sender(msgspec.Struct, frozen=True):
    """Whose message it is."""

    key: str
    is_guest: bool
    """Whether the key is an invite's."""


class _Origin(msgspec.Struct, frozen=True):
    """Where a peer's messages come from."""

    key: str
    descriptor: int
    inode: tuple[int, int]


def new_pair() -> Pair:
    """A new pair of keys, whose public half begins with a letter or digit: no shell takes it for an option."""
    while True:
        public, secret = (half.decode() for half in zmq.curve_keypair())
        if public[0].isalnum():
            return Pair(public, secret)


def load_pair(ring: KeyRing) -> Pair:
    """The broker's own pair.

    Raises
    ------
    ConfigError
        When it is not there, others can read the secret, or the halves do not belong together.
    """
    secret = ring.secret
    pair = Pair(zmq.curve_public(secret.encode()).decode(), secret)
    if ring.public != pair.public:
        raise ConfigError(
            f"{ring.folder / NAME}.key is not the public half of {NAME}.secret: workers that know it would "
            "find nobody; restore the right file"
        )
    return pair


class Gate:
    """The door of one ROUTER.

    Parameters
    ----------
    context : zmq.Context
        The ROUTER's.
    pair : Pair
        The broker's own.
    admission : Admission
        Who may pass.
    clock : callable
        Monotonic seconds.
    """

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        pair: Pair,
        admission: Admission,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.refused = 0
        """Handshakes that ended because of their key."""
        self._pair = pair
        self._admission = admission
        self._clock = clock
        self._origins: dict[Peer, _Origin] = {}
        self._sweep_at = SPARE
        self._quiet_until = 0.0
        self._unsaid = 0
        self.socket: zmq.Socket[bytes] = context.socket(zmq.REP)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind("inproc://zeromq.zap.01")

    def protect(self, router: "zmq.Socket[bytes]") -> None:
        """Let nobody but those in; before the socket binds."""
        router.setsockopt(zmq.CURVE_SERVER, 1)
        router.setsockopt(zmq.CURVE_SECRETKEY, self._pair.secret.encode())
        router.setsockopt(zmq.ZAP_DOMAIN, DOMAIN)
        router.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)

    def due(self) -> float | None:
        """When `turn` has something to do although nothing came, in monotonic seconds."""
        return self._admission.due()

    def turn(self) -> None:
        """Answer handshakes, and notice who was revoked."""
        self._answer()
        self._admission.look()

    def revoked(self) -> list[str]:
        """Keys that were revoked since the last call."""
        return self._admission.revoked()

    def sender(self, peer: Peer, frame: zmq.Frame) -> Sender | None:
        """Whose message a frame of it is from; None when it is nobody's who may speak."""
        key = frame.get("User-Id")
        descriptor = frame.get(zmq.SRCFD)
        assert isinstance(key, str)
        assert isinstance(descriptor, int)
        known = self._origins.get(peer)
        if known is None or known.descriptor != descriptor or known.key != key:
            self._remember(peer, key, descriptor)
        if self._admission.is_member(key):
            return Sender(key, False)
        return Sender(key, True) if self._admission.is_guest(key) else None

    def peers(self, keys: Sequence[str]) -> dict[str, list[Peer]]:
        """From where messages of each of these keys have come."""
        found: dict[str, list[Peer]] = {key: [] for key in keys}
        for peer, origin in self._origins.items():
            if origin.key in found:
                found[origin.key].append(peer)
        return found

    def hold(self, peer: Peer) -> sockets.socket | None:
        """A duplicate of the descriptor of a peer's connection, to be closed; None when it is gone."""
        origin = self._origins.pop(peer, None)
        connection = None if origin is None else descriptors.hold(origin.descriptor)
        if origin is None or connection is None or _inode(connection.fileno()) == origin.inode:
            return connection
        connection.close()  # the number is another connection's now
        return None

    def close(self) -> None:
        """Close the socket; after the ROUTER's."""
        self.socket.close(linger=0)

    def _answer(self) -> None:
        """Decide the handshakes that wait."""
        for turn in range(ANSWERS_MAX):
            try:
                request = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if turn == 0:
                self._admission.look(now=True)
            number = request[1] if len(request) > 1 else b""
            key = _key_of(request)
            allowed = key and (self._admission.is_member(key) or self._admission.is_guest(key))
            if not allowed:
                self._refuse(key, request[3].decode("ascii", "replace") if len(request) > 3 else "")
            status, text = (b"200", b"OK") if allowed else (b"400", b"not on the allowlist")
            self.socket.send_multipart([b"1.0", number, status, text, key.encode(), b""])

    def _refuse(self, key: str, address: str) -> None:
        self.refused += 1
        now = self._clock()
        if now < self._quiet_until:
            self._unsaid += 1
            return
        fields = {"key": key or "none", "address": address}
        if self._unsaid:
            fields["others"] = str(self._unsaid)
        self._quiet_until, self._unsaid = now + QUIET_S, 0
        log.warning("key refused: it is not on the allowlist", extra=fields)

    def _remember(self, peer: Peer, key: str, descriptor: int) -> None:
        inode = _inode(descriptor)
        if inode is None:
            self._origins.pop(peer, None)  # it hung up already
            return
        if len(self._origins) >= self._sweep_at:
            self._origins = {p: o for p, o in self._origins.items() if _inode(o.descriptor) == o.inode}
            self._sweep_at = 2 * len(self._origins) + SPARE
        self._origins[peer] = _Origin(key, descriptor, inode)


def _key_of(request: list[bytes]) -> str:
    """The public key that a ZAP request is about; empty when it is no CURVE request of our ROUTER's."""
    match request:
        case [b"1.0", _, domain, _, _, b"CURVE", key] if domain == DOMAIN and len(key) == 32:
            return to_text(key)
    return ""


def _inode(descriptor: int) -> tuple[int, int] | None:
    """What tells a socket from any other that had its number, or will have."""
    try:
        found = os.fstat(descriptor)
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISSOCK(found.st_mode) else None
