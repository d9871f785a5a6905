"""Memory that nobody asked for: when to look for a culprit, and when to rebind the broker's socket.

libzmq limits the size of a frame, and the number of whole messages that wait; it does not limit how many frames a
message has. A peer that sends frames with the MORE bit for ever costs 64 bytes each before the broker sees any of
it, half a gigabyte a second. So the process's own memory is watched. Rules that hold here:

- Anonymous memory counts, mapped files do not: the system can take those back. What connections take that do nothing
  wrong does not count either: else a crowd that is welcome would be thrown out for its number.
- Above half of the limit, or when memory grows fast, connections that send and send and never finish a message are
  cut, and nobody else notices. Where that finds nobody, and the limit is passed, the socket is closed and bound
  again: all its buffers are freed, every worker connects again, and nothing that was acknowledged is lost.
- A rebind that frees little was of no use: the memory is not the socket's. The next one then waits, ever longer,
  unless memory has grown again since. So the broker neither flaps nor grows without end.
"""

import ctypes
import enum
import math
import os
from collections.abc import Callable

LOOK_S = 0.1
"""At half a gigabyte a second an attacker gets 50 MB between two looks."""
SETTLE_S = 1.0
"""So long after a rebind it is known what it freed."""
TRIM_S = 10.0
"""While memory is high, freed memory is given back to the system this often."""
BACKOFF_S = 10.0
BACKOFF_MAX_S = 600.0
GROWTH = 64 << 20
"""So many bytes more than usual are suspicious. An endless message that does end takes the I/O thread a second for
each million of its frames, 64 MB, to throw away."""
USUAL_RISE = 1 << 20
"""What is usual follows what is in use, by at most so much from one look to the next."""
PER_CONNECTION = 96 << 10
"""What libzmq and the broker hold for a connection in the long run: 30 KiB at first, and four chunks of 256 messages of
64 bytes that its two queues come to use (libzmq 4.3.5, src/yqueue.hpp)."""
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Step(enum.Enum):
    """What to do about the process's memory."""

    NOTHING = "nothing"
    """It is not time to look, or all is well."""
    CALM = "calm"
    """All is well again."""
    SUSPECT = "suspect"
    """Much is in use, or much more than a moment ago: look for connections that never finish a message."""
    REBIND = "rebind"
    """Too much is in use: close the socket and bind it again."""
    USELESS = "useless"
    """A rebind freed little: say so."""


def anonymous_bytes() -> int:
    """Resident bytes of this process that no file backs; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", "rb") as file:
            _, resident, shared, *_ = file.read().split()
    except OSError:
        return 0
    return (int(resident) - int(shared)) * _PAGE


def trim() -> None:
    """Give freed memory back to the system, where the C library can: it keeps what lies between used pieces."""
    release = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if release is not None:
        release(0)


class Watchdog:
    """Looks at the process's memory ten times a second.

    Parameters
    ----------
    limit : int
        Bytes, beyond those of the connections; 0 turns it off.
    measure : callable
        Bytes in use.
    trim : callable
        Gives freed memory back.

    Attributes
    ----------
    level : int
        Bytes in use when it last looked.
    due_at : float
        When to look next (monotonic seconds).
    backoff_s : float
        How long the next rebind waits, since the last one was useless; 0 when it was not.
    """

    def __init__(
        self, limit: int, measure: Callable[[], int] = anonymous_bytes, trim: Callable[[], None] = trim
    ) -> None:
        self.limit = limit
        self.level = 0
        self.due_at = 0.0 if limit else math.inf
        self._measure = measure
        self._trim = trim
        self._trim_at = math.inf
        self._before = 0
        """What was in use when the socket was rebound last."""
        self._floor = 0
        """The least that was in use since."""
        self._settled_at: float | None = None
        self._again_at = 0.0
        self.backoff_s = 0.0
        self._usual: int | None = None
        self._is_alert = False

    def look(self, now: float, connections: int = 0) -> Step:
        """Measure, if it is time, and say what to do, with so many connections open."""
        if now < self.due_at:
            return Step.NOTHING
        self.due_at = now + LOOK_S
        self.level = self._measure()
        usual = self._usual = min(
            self.level, (self.level if self._usual is None else self._usual) + USUAL_RISE
        )
        limit = self.limit + connections * PER_CONNECTION
        is_high = self.level > limit - self.limit // 2
        if is_high:
            self._trim_at = min(self._trim_at, now + TRIM_S)
        if now >= self._trim_at:
            self._trim_at = math.inf
            self._trim()
            self.level = self._measure()
        self._floor = min(self._floor, self.level)
        if self._settled_at is not None and now >= self._settled_at:
            self._settled_at = None
            if self._before - self._floor < self.limit // 10:
                self.backoff_s = min(self.backoff_s * 2, BACKOFF_MAX_S) if self.backoff_s else BACKOFF_S
                self._again_at = now + self.backoff_s
                return Step.USELESS
            self.backoff_s = 0.0
        if self.level > limit and (now >= self._again_at or self.level - self._floor > self.limit // 4):
            self._before = self._floor = self.level
            self._settled_at = self._again_at = now + SETTLE_S
            self._trim_at = now + SETTLE_S / 4  # by then libzmq's thread has freed what it held
            return Step.REBIND
        was_alert, self._is_alert = self._is_alert, is_high or self.level - usual > GROWTH
        if self._is_alert:
            return Step.SUSPECT
        return Step.CALM if was_alert else Step.NOTHING

    def freed(self, now: float) -> None:
        """A culprit was cut: its memory is free in a moment."""
        self._trim_at = min(self._trim_at, now + SETTLE_S / 4)
