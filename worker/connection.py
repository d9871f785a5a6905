"""The mind's connection: which phase the talk is in, what time does to it, and when to try again.

Rules that hold here:

- Before the first WELCOME a lease is 35 s; after it, what the broker says.
- Whatever ends a connection, the next one is tried after a full jitter: anything between nothing and a
  ceiling that doubles from 1 s to 60 s, until a WELCOME. A thousand workers that lost one broker do not
  return at once.
- A socket that was told to connect does so by itself; a lease without success is answered by a new one.
"""

import random
from collections.abc import Callable
from enum import Enum, auto
from typing import Final

from fedmq.fedcore import wire

from .events import Action, CloseSocket, OpenSocket

NEVER: Final = float("inf")
LEASE_S: Final = 35.0
BACKOFF_S: Final = 1.0
BACKOFF_MAX_S: Final = 60.0
BEAT_MIN_S: Final = 0.05
"""What a broker's terms cannot go below."""


class Phase(Enum):
    """Where the talk with the broker stands."""

    CLOSED = auto()
    """No socket; one is opened when the backoff is over."""
    CONNECTING = auto()
    """A socket without a connection."""
    GREETING = auto()
    """HELLO was sent; nothing else may be before WELCOME."""
    OPEN = auto()
    """In session."""
    ENDED = auto()
    """`Exit` was asked for; nothing matters any more."""


class Connection:
    """One broker, one socket at a time.

    Parameters
    ----------
    rng
        Where jitter comes from.
    emit
        Takes the actions.
    """

    def __init__(self, rng: random.Random, emit: Callable[[Action], None]) -> None:
        self._rng = rng
        self._emit = emit
        self.phase = Phase.CLOSED
        self._lease_s = LEASE_S
        self._beat_s = LEASE_S
        self._attempt = 0
        self._open_at = NEVER
        self._since = 0.0
        """When a message came (OPEN), HELLO was sent (GREETING), or connecting began."""
        self._said_at = 0.0

    def start(self, now: float) -> None:
        """Open the first socket."""
        if self.phase is Phase.CLOSED and self._open_at == NEVER:
            self._open_at = now

    def connecting(self, now: float) -> None:
        """The socket has no connection, and tries to make one."""
        self.phase = Phase.CONNECTING
        self._since = now

    def greeting(self, now: float) -> None:
        """HELLO is being sent."""
        self.phase = Phase.GREETING
        self._since = now

    def open(self, terms: wire.Welcome, now: float) -> None:
        """WELCOME: in session, on these terms."""
        self.phase = Phase.OPEN
        self._since = now
        self._attempt = 0
        self._beat_s = max(BEAT_MIN_S, terms.beat_s)
        self._lease_s = max(2 * BEAT_MIN_S, terms.lease_s)

    def close(self, now: float, retry_s: float = 0.0) -> None:
        """Close the socket; open another after the backoff, or a little after `retry_s` if that is given."""
        self._emit(CloseSocket())
        self.phase = Phase.CLOSED
        if retry_s > 0:
            self._open_at = now + retry_s * self._rng.uniform(1.0, 1.5)
        else:
            ceiling = min(BACKOFF_MAX_S, BACKOFF_S * 2.0 ** min(self._attempt, 10))
            self._open_at = now + self._rng.uniform(0.0, ceiling)
        self._attempt += 1

    def end(self) -> None:
        """Close the socket, for good."""
        if self.phase is not Phase.CLOSED:
            self._emit(CloseSocket())
        self.phase = Phase.ENDED

    def heard(self, now: float) -> None:
        """A message came. Only in session does that prove anything."""
        if self.phase is Phase.OPEN:
            self._since = now

    def said(self, now: float) -> None:
        """A message was sent."""
        self._said_at = now

    def is_beat_due(self, now: float) -> bool:
        """Whether nothing was sent for so long that a BEAT is due."""
        return now >= self._said_at + self._beat_s

    def silence(self, now: float) -> str:
        """Why to give this socket up; empty while there is no reason."""
        if self.phase not in _WHY or now < self._since + self._lease_s:
            return ""
        return f"{_WHY[self.phase]} for {self._lease_s:.0f} s"

    def reopen(self, now: float) -> None:
        """Open a socket if the backoff is over."""
        if self.phase is Phase.CLOSED and now >= self._open_at:
            self._open_at = NEVER
            self.connecting(now)
            self._emit(OpenSocket())

    def next_due(self) -> float:
        """When one of the three above has something to say."""
        match self.phase:
            case Phase.CLOSED:
                return self._open_at
            case Phase.CONNECTING | Phase.GREETING:
                return self._since + self._lease_s
            case Phase.OPEN:
                return min(self._since + self._lease_s, self._said_at + self._beat_s)
            case Phase.ENDED:
                return NEVER


_WHY: Final = {
    Phase.CONNECTING: "no connection",
    Phase.GREETING: "no answer to HELLO",
    Phase.OPEN: "the broker was silent",
}
