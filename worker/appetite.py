"""The mind's appetite: how many tasks this worker would take now, and whether the broker knows it.

Rules that hold here:

- `free` counts tasks beyond those held. It is 0 while the user or the edge program says so, while the
  app keeps failing, and from too many results that wait to be acknowledged until half of them are: were it
  told of each one, a broker that is behind would hear as many BEATs as OFFERs.
- A broker takes the `free` it was told, less the TASKs that it sent and that were not `seen` then, and one
  more for each result that it first hears of by its OFFER. What differs from that is news, and is told at once.
- Where the two may have counted differently, because the broker gave a task up while its result was on the
  way, they are told again.
"""

from typing import Final

REST_S: Final = 1.0
REST_MAX_S: Final = 60.0
FAILURES_MAX: Final = 2
"""So many failures of the app in a row are bad luck; after more of them the worker rests, ever longer."""
OUTBOX_MAX: Final = 16
"""With so many results waiting, no new task is taken until half of them are gone."""


class Appetite:
    """What BEAT says of `free` and `seen`.

    Parameters
    ----------
    slots
        Tasks in hand at a time.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self.paused = False
        """The user wants no new task."""
        self.allowed = True
        """The edge program says that this is a time to train."""
        self.seen = 0
        """The highest `seq` of a TASK in this session."""
        self._failures = 0
        self._rest_until = 0.0
        self._is_full = False
        self._told_free = 0
        self._told_seen = 0
        self._is_in_doubt = False

    def may_start(self) -> bool:
        """Whether a task may be begun."""
        return self.allowed and not self.paused

    def free(self, occupied: int, waiting: int, now: float) -> int:
        """How many tasks it would take, with so many slots taken and so many results waiting."""
        self._is_full = waiting > OUTBOX_MAX // 2 if self._is_full else waiting >= OUTBOX_MAX
        if self._is_full or not self.may_start() or now < self._rest_until:
            return 0
        return max(0, self._slots - occupied)

    def hello(self, free: int) -> None:
        """HELLO says `free`; the session's TASKs are counted from 1."""
        self.seen = 0
        self.told(free)

    def told(self, free: int) -> None:
        """The broker is told `free`, and `seen`."""
        self._told_free = free
        self._told_seen = self.seen
        self._is_in_doubt = False

    def offered(self, results: int) -> None:
        """The broker first hears of so many results by their OFFERs."""
        self._told_free += results

    def doubt(self) -> None:
        """The broker did not want a result: whether it had counted its OFFER is not known here."""
        self._is_in_doubt = True

    def is_news(self, free: int) -> bool:
        """Whether the broker believes something else, or may."""
        return self._is_in_doubt or free != max(0, self._told_free - (self.seen - self._told_seen))

    def took(self, seq: int) -> None:
        """A TASK arrived."""
        self.seen = max(self.seen, seq)

    def succeeded(self) -> None:
        """The app did its work."""
        self._failures = 0

    def failed(self, now: float) -> None:
        """The app failed."""
        self._failures += 1
        if self._failures > FAILURES_MAX:
            doublings = min(self._failures - FAILURES_MAX - 1, 6)
            self._rest_until = now + min(REST_MAX_S, REST_S * 2.0**doublings)

    def next_due(self, now: float) -> float:
        """When `free` changes by itself."""
        return self._rest_until if self._rest_until > now else float("inf")
