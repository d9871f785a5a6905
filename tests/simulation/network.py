"""Connections between workers and the broker, as TCP under ZeroMQ gives them.

A connection keeps order and loses nothing, until it breaks: then each direction has delivered a prefix. It may
stand still for longer than a lease. Its ends may learn late, or never, that it broke. A worker's socket makes
another one by itself, with a new return address at the broker.
"""

import itertools
import random
import sys
from collections.abc import Callable
from typing import Protocol

from fedmq.fedcore import wire

from .schedule import Line, Schedule

Parcel = tuple[wire.Message, bytes | None]


class End(Protocol):
    """A worker's side of its socket."""

    name: str

    def connected(self) -> None:
        """A connection was made."""

    def lost(self) -> None:
        """The connection broke."""

    def received(self, parcel: Parcel) -> None:
        """A message came."""


class Connection:
    """One connection, of one worker's socket."""

    def __init__(self, network: "Network", socket: "Socket", peer: bytes) -> None:
        self.peer = peer
        self.is_up = True
        self._network = network
        self._socket = socket
        self.up: Line[Parcel] = Line(network.schedule, network.delay_s, self._arrive_up)
        self.down: Line[Parcel] = Line(network.schedule, network.delay_s, self._arrive_down)
        self._left: int | None = None
        self._tells = (True, True)

    def break_after(self, messages: int, *, told_worker: bool, told_broker: bool) -> None:
        """Break instead of delivering the message after so many more, whichever way they go; BEATs are not
        counted, so that it happens in the middle of something."""
        self._left = messages
        self._tells = (told_worker, told_broker)

    def stall(self, until: float) -> None:
        """Nothing arrives either way before this time."""
        self.up.stall(until)
        self.down.stall(until)

    def break_(self, *, told_worker: bool, told_broker: bool) -> None:
        """Lose what is under way; say so to the ends, or let them find out."""
        self.is_up = False
        self._network.broken += 1
        self.up.cut()
        self.down.cut()
        if told_broker:
            self._network.forget(self)
        if told_worker:
            self._socket.broke(self)

    def _arrive_up(self, parcel: Parcel) -> None:
        if not self._breaks(parcel):
            self._network.to_broker(self.peer, parcel)

    def _arrive_down(self, parcel: Parcel) -> None:
        if self._socket.connection is self and not self._breaks(parcel):
            self._socket.end.received(parcel)

    def _breaks(self, parcel: Parcel) -> bool:
        if self._left is None or isinstance(parcel[0], wire.Beat):
            return False
        self._left -= 1
        if self._left >= 0:
            return False
        told_worker, told_broker = self._tells
        self._left = None
        self.break_(told_worker=told_worker, told_broker=told_broker)
        return True


class Socket:
    """A worker's socket: connects, and connects again, until it is closed."""

    def __init__(self, network: "Network", end: End) -> None:
        self.end = end
        self.connection: Connection | None = None
        self._network = network
        self._is_closed = False
        self._try()

    def send(self, message: wire.Message, payload: bytes | None) -> None:
        """Send if there is a connection; what is sent over a broken one is lost."""
        if self.connection is not None and self.connection.is_up:
            self.connection.up.put((message, payload))

    def close(self) -> None:
        """Close; what was sent may still arrive, or not."""
        self._is_closed = True
        connection, self.connection = self.connection, None
        if connection is not None and connection.is_up:
            connection.down.cut()
            if self._network.rng.random() < 0.5:
                connection.up.cut()
            self._network.schedule.after(1.0, lambda: self._network.forget(connection))

    def broke(self, connection: Connection) -> None:
        """The connection is known to be gone."""
        if self.connection is connection:
            self.connection = None
            self.end.lost()
            self._try()

    def _try(self) -> None:
        self._network.schedule.after(self._network.rng.uniform(0.01, 0.5), self._connect)

    def _connect(self) -> None:
        if self._is_closed or self.connection is not None:
            return
        if not self._network.is_broker_up():
            self._try()
            return
        self.connection = self._network.connect(self)
        self.end.connected()


class Network:
    """All connections.

    Parameters
    ----------
    schedule : Schedule
    rng : Random
    is_broker_up : callable
        Whether somebody listens.
    to_broker : callable
        Takes what arrives at the broker, and from which peer.
    """

    def __init__(
        self,
        schedule: Schedule,
        rng: random.Random,
        *,
        is_broker_up: Callable[[], bool],
        to_broker: Callable[[bytes, Parcel], None],
    ) -> None:
        self.schedule = schedule
        self.rng = rng
        self.is_broker_up = is_broker_up
        self.to_broker = to_broker
        self.broken = 0
        self._connections: dict[bytes, Connection] = {}
        self._counter = itertools.count()

    def delay_s(self) -> float:
        """How long a message takes: mostly a millisecond, now and then a second."""
        return self.rng.uniform(0.001, 0.02) if self.rng.random() < 0.97 else self.rng.uniform(0.1, 2.0)

    def connect(self, socket: Socket) -> Connection:
        """A new connection, with a return address that was never used before."""
        peer = b"peer%d" % next(self._counter)
        connection = self._connections[peer] = Connection(self, socket, peer)
        return connection

    def send(self, peer: bytes, message: wire.Message, payload: bytes | None = None) -> bool:
        """Send to a peer; False when there is no route to it any more."""
        connection = self._connections.get(peer)
        if connection is None:
            return False
        if connection.is_up:
            connection.down.put((message, payload))
        return True

    def forget(self, connection: Connection) -> None:
        """The broker's socket notices that a connection is gone."""
        self._connections.pop(connection.peer, None)

    def spare(self) -> None:
        """Take back every `break_after` that has not come."""
        for connection in self._connections.values():
            connection.break_after(sys.maxsize, told_worker=True, told_broker=True)

    def broker_died(self, *, silently: bool) -> None:
        """Every connection breaks; when a machine loses power nobody is told."""
        for connection in list(self._connections.values()):
            connection.break_(told_worker=not silently, told_broker=True)
