"""The connections of the broker's socket: which are open, and which must end.

A ROUTER knows peers, and each has spoken; a connection may never speak. So these are counted and ended by their
descriptors (`descriptors`), of which the socket's monitor tells.

Rules that hold here:

- A connection that finishes no message in its first seconds is cut: a worker says HELLO at once. Where connections
  would leave no descriptors for files, the one that has been mute for longest goes sooner.
- One that takes in more than two messages' bytes and finishes none is cut as well, while somebody suspects that there
  are such.
- A dropped peer has a moment to read why, then its connection ends. What it sends meanwhile counts: one that floods on
  has no time to read.
"""

import math
import socket as sockets
import time

from fedmq.fedcore import wire

from . import descriptors
from .events import Peer

GRACE_S = 0.5
"""A dropped peer has so long to read why."""
IGNORED_MAX = 16
"""A dropped peer that goes on sending is cut after so many messages."""
MUTE_S = 20.0
"""libzmq itself ends a handshake that takes more than ten seconds."""
UNFINISHED_S = 0.1
"""Connections are compared over at least so long before one is found to finish no message. At half a second the others
lost twice as much to one that floods, is cut, and connects again: `python -m tests.hostile.slowdown more`."""
LOOK_SHARE = 20
"""A look at ten thousand connections takes a quarter of a second: it may cost a twentieth of the time."""


class Connections:
    """All that are open, whosever they are.

    Parameters
    ----------
    endpoint : str
        The bound address.
    block : int
        Bytes of the largest payload frame.

    Attributes
    ----------
    cuts : int
        How many were ended here.
    most : int
        How many there may be; one more, and the one that has been mute for longest goes.
    turned_away : int
        How many went for that.
    """

    def __init__(self, endpoint: str, block: int) -> None:
        self.cuts = 0
        self.turned_away = 0
        self.most = descriptors.room()
        self._is_supported = descriptors.is_supported(endpoint)
        self._port = int(endpoint.rpartition(":")[2]) if endpoint.startswith("tcp://") else 0
        self._unfinished_max = 2 * (block + wire.HEADER_MAX)
        self._open: set[int] = set()
        self._mute: dict[int, float] = {}
        """Those that have not finished a message, the oldest first, and until when they may stay so."""
        self._marks: dict[int, int] = {}
        """Bytes that each had taken in when it last finished a message, or was looked at first."""
        self._marked_at = 0.0
        self._look_s = 0.0
        self._heard: set[int] | None = None
        """Those that finished a message since they were marked, while that is of interest."""

    def __len__(self) -> int:
        return len(self._open)

    def opened(self, descriptor: int) -> None:
        """Somebody has connected."""
        self._open.add(descriptor)
        self._mute[descriptor] = time.monotonic() + MUTE_S
        self._marks[descriptor] = 0
        if len(self._open) > self.most:
            self._cut_mute()  # files need descriptors too
            self.turned_away += 1

    def closed(self, descriptor: int) -> None:
        """Somebody has hung up."""
        self._open.discard(descriptor)
        self._mute.pop(descriptor, None)

    def forget(self) -> None:
        """The socket was closed, and all of them with it."""
        self._open.clear()
        self._mute.clear()
        self._heard = None

    @property
    def listens(self) -> bool:
        """Whether it matters who finishes a message: `hear` is to be told."""
        return bool(self._mute) or self._heard is not None

    def hear(self, descriptor: int) -> None:
        """A connection has finished a message."""
        self._mute.pop(descriptor, None)
        if self._heard is not None:
            self._heard.add(descriptor)

    def cut_mute(self, now: float) -> None:
        """End those that have been mute for too long."""
        while self._mute and next(iter(self._mute.values())) <= now:
            self._cut_mute()

    def cut_unfinished(self) -> int:
        """End connections that take more than two messages' bytes and finish none; how many.

        To be called again and again while it is suspected that there are some: the first call takes marks.
        """
        now = time.monotonic()
        pause_s = max(UNFINISHED_S, LOOK_SHARE * self._look_s)
        if self._heard is None or now - self._marked_at > 4 * pause_s:
            self._heard, self._marks, self._marked_at = set(), {}, now
        elif now - self._marked_at < pause_s:
            return 0
        self._marked_at = now
        heard, self._heard = self._heard, set()
        before, self._marks = self._marks, {}
        cuts = 0
        for descriptor in self._open if self._is_supported else ():
            received = descriptors.bytes_received(descriptor, self._port)
            if received is None:
                continue
            mark = received if descriptor in heard else min(before.get(descriptor, received), received)
            self._marks[descriptor] = mark
            too_many = received - mark > self._unfinished_max
            if too_many and (connection := descriptors.hold(descriptor)) is not None:
                descriptors.cut(connection)
                cuts += 1
        self.cuts += cuts
        self._look_s = time.monotonic() - now
        return cuts

    def trust(self) -> None:
        """Stop to watch for connections that finish no message."""
        self._heard = None

    def _cut_mute(self) -> None:
        """End the connection that has been mute for longest."""
        oldest = next(iter(self._mute))
        del self._mute[oldest]
        self.cuts += descriptors.cut_at(oldest, self._port)


class _Dropped:
    """A peer that is not listened to any more."""

    __slots__ = ("connection", "due", "ignored")

    def __init__(self, due: float, connection: sockets.socket | None) -> None:
        self.due = due
        self.connection = connection
        """A duplicate of its descriptor, until it is cut."""
        self.ignored = 0


class DroppedPeers:
    """Peers whose connections end soon.

    Parameters
    ----------
    connections : Connections
        Where their ends are counted.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._peers: dict[Peer, _Dropped] = {}
        """Those that were dropped first in front."""

    def __contains__(self, peer: Peer) -> bool:
        return peer in self._peers

    def add(self, peer: Peer, connection: sockets.socket | None) -> None:
        """Do not listen to a peer any more, and end its connection (a duplicate of it, if it is known) in a moment."""
        self._peers[peer] = _Dropped(time.monotonic() + GRACE_S, connection)

    def ignored(self, peer: Peer) -> None:
        """One of them has sent another message; one that floods on has no time to read why."""
        dropped = self._peers[peer]
        dropped.ignored += 1
        if dropped.ignored >= IGNORED_MAX and dropped.connection is not None:
            del self._peers[peer]
            self._end(peer, dropped.connection, time.monotonic())

    def end(self, now: float) -> None:
        """Cut the connections of those whose time has come."""
        for peer, dropped in list(self._peers.items()):
            if dropped.due > now:
                return
            del self._peers[peer]
            if dropped.connection is not None:
                self._end(peer, dropped.connection, now)

    def end_all(self) -> None:
        """Cut all their connections now, and forget them."""
        self.end(math.inf)
        self._peers.clear()

    def _end(self, peer: Peer, connection: sockets.socket, now: float) -> None:
        descriptors.cut(connection)
        self._connections.cuts += 1
        # What libzmq has of it already may still come, and goes unread as well.
        self._peers[peer] = _Dropped(now + GRACE_S, None)
