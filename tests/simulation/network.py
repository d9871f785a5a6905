"""Connections between workers and the broker, as TCP under ZeroMQ gives them, and what can happen to them.

A connection keeps order and loses nothing, until it breaks: then each direction has delivered a prefix. Either
direction may stand still for longer than a lease, in the middle of anything, and go on or never again; it may
carry little. A message may come twice, or again much later over another connection, as from a proxy that
resends. The ends may learn late, or never, that a connection broke. A worker's socket makes another one by
itself, with a new return address at the broker, unless it is cut off.
"""

import itertools
import random
import sys
from collections import deque
from collections.abc import Callable
from typing import Literal, Protocol

from fedmq.cli.simulate.schedule import Line, Schedule
from fedmq.fedcore import wire

Parcel = tuple[wire.Message, bytes | None]
Way = Literal["up", "down"]
NEVER = float("inf")
HEADER_BYTES = 100
"""About what a message weighs without its payload."""
REMEMBERED = 12
"""Messages of each direction of a worker's that a proxy may send again."""


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
        self._then: Callable[[], None] = lambda: None
        self._bytes_per_s = NEVER

    def send(self, way: Way, parcel: Parcel) -> None:
        """Send on its way what is not lost."""
        if self.is_up:
            line = self.up if way == "up" else self.down
            size = HEADER_BYTES + len(parcel[1] or b"")
            line.put(parcel, busy_s=size / self._bytes_per_s)
            self._network.remember(self._socket.end.name, way, parcel)

    def slow(self, bytes_per_s: float) -> None:
        """Carry little from now on."""
        self._bytes_per_s = bytes_per_s

    def after_messages(self, messages: int, then: Callable[[], None]) -> None:
        """Do something instead of delivering the message after so many more, whichever way they go.

        BEATs are not counted, so that it happens in the middle of something.
        """
        self._left, self._then = messages, then

    def stall(self, until: float, ways: tuple[Way, ...] = ("up", "down")) -> None:
        """Nothing arrives these ways before this time; nothing is lost."""
        for way in ways:
            (self.up if way == "up" else self.down).stall(until)

    def break_(self, *, told_worker: bool, told_broker: bool) -> None:
        """Lose what is under way; say so to the ends, or let them find out."""
        if not self.is_up:
            return
        self.is_up = False
        self._network.broken += 1
        self.up.cut()
        self.down.cut()
        if told_broker:
            self._network.forget(self)
        if told_worker:
            self._socket.broke(self)

    def _arrive_up(self, parcel: Parcel) -> None:
        if not self._is_struck(parcel, self.up):
            self._network.to_broker(self.peer, parcel)

    def _arrive_down(self, parcel: Parcel) -> None:
        if self._socket.connection is self and not self._is_struck(parcel, self.down):
            self._socket.end.received(parcel)

    def _is_struck(self, parcel: Parcel, line: Line[Parcel]) -> bool:
        if self._left is None or isinstance(parcel[0], wire.Beat):
            return False
        self._left -= 1
        if self._left >= 0:
            return False
        self._left = None
        line.put_back(parcel)  # half of it has come; where the connection breaks it is lost with the rest
        self._then()
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
        if self.connection is not None:
            self.connection.send("up", (message, payload))

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
        if not self._network.reaches(self.end.name):
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
        self.to_broker = to_broker
        self.broken = 0
        self._is_broker_up = is_broker_up
        self._connections: dict[bytes, Connection] = {}
        self._counter = itertools.count()
        self._cut_off: dict[str, float] = {}
        self._said: dict[tuple[str, Way], deque[Parcel]] = {}

    def delay_s(self) -> float:
        """How long a message takes: mostly a millisecond, now and then a second."""
        return self.rng.uniform(0.001, 0.02) if self.rng.random() < 0.97 else self.rng.uniform(0.1, 2.0)

    def reaches(self, name: str) -> bool:
        """Whether a worker can connect now."""
        return self._is_broker_up() and self.schedule.now >= self._cut_off.get(name, 0.0)

    def cut_off(self, name: str, until: float) -> None:
        """A worker can make no connection before this time."""
        self._cut_off[name] = until

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
        connection.send("down", (message, payload))
        return True

    def remember(self, name: str, way: Way, parcel: Parcel) -> None:
        """Something was sent that may be sent again; greetings and beats are not, nor what ends a session.

        Over TCP none of this can happen. What must survive it is that nothing counts twice and nothing is lost.
        """
        if not isinstance(parcel[0], wire.Hello | wire.Welcome | wire.Beat | wire.Bye):
            self._said.setdefault((name, way), deque(maxlen=REMEMBERED)).append(parcel)

    def repeat(self, connection: Connection, name: str, way: Way) -> wire.Message | None:
        """Send one of the last messages again, whichever connection it went over; which, if there is one."""
        said = self._said.get((name, way))
        if not said or not connection.is_up:
            return None
        parcel = self.rng.choice(said)
        (connection.up if way == "up" else connection.down).put(parcel)
        return parcel[0]

    def forget(self, connection: Connection) -> None:
        """The broker's socket notices that a connection is gone."""
        self._connections.pop(connection.peer, None)

    def spare(self) -> None:
        """Take back what has not come yet, and what lasts."""
        self._cut_off.clear()
        for connection in self._connections.values():
            connection.after_messages(sys.maxsize, lambda: None)
            connection.slow(NEVER)

    def broker_died(self, *, silently: bool) -> None:
        """Every connection breaks; when a machine loses power nobody is told."""
        for connection in list(self._connections.values()):
            connection.break_(told_worker=not silently, told_broker=True)
