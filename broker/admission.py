"""Who may talk to the broker right now: the lists of its key ring, as they are on disk. No sockets.

Rules that hold here:

- A list is read again when its file is another or has changed. That costs one `stat`, a few times a second at
  most while messages come, and one at each handshake.
- What was added counts at once. What was taken away counts when the file has stood still for a moment: an editor
  that empties a file before it writes it must not send every worker away.
- A list that is gone, cannot be read or has a broken line changes nothing, and is an error in the log until it is
  mended. To let nobody in, empty it.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from fedmq.fedcore.errors import FedmqError

from .keyring import KeyRing

log = logging.getLogger("fedmq.broker")

LOOK_S = 0.25
"""While messages come, the files are looked at so often."""
SETTLE_S = 0.25
"""So long a file must have stood still before what it lacks is believed."""

Stamp = tuple[int, int, int]
"""Of a file's content: inode, size, time of its last change. A file that is not there has an inode of 0."""


class Roll(msgspec.Struct, frozen=True):
    """Everybody who can come, as the lists are."""

    keys: frozenset[str]
    invites: int
    """Those that have not expired and may still register a key."""


class Admission:
    """The keys that may connect, and the invites that may register one.

    Parameters
    ----------
    ring : KeyRing
        Whose lists they are.
    clock, wall : callable
        Monotonic seconds, and seconds since 1970.

    Raises
    ------
    FedmqError
        When a list has a broken line or cannot be read. (Later that is only logged.)
    """

    def __init__(
        self,
        ring: KeyRing,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._ring = ring
        self._clock = clock
        self._wall = wall
        self._looked_at = clock()
        self._loaded = _stamp(ring.allowlist)
        """Of the list that counts."""
        self._seen = self._loaded
        """Of the list that was there when last looked at."""
        self._seen_at = self._looked_at
        self._invites_stamp = _stamp(ring.invitations)
        self._members = ring.allowed()
        self._invites = ring.invites()
        self._revoked: list[str] = []
        self._told_at: float | None = None
        self._told: tuple[dict[str, str], int] | None = None
        """The list and the number of open invites that `roll` has told."""

    @property
    def count(self) -> int:
        """How many keys are on the allowlist."""
        return len(self._members)

    def is_member(self, key: str) -> bool:
        """Whether a key is on the allowlist."""
        return key in self._members

    def is_guest(self, key: str) -> bool:
        """Whether a key is an invite's that has not expired."""
        invite = self._invites.get(key)
        return invite is not None and self._wall() < invite.expires_at

    def name(self, key: str) -> str:
        """What people call a key; empty for a stranger's."""
        invite = self._invites.get(key)
        return self._members.get(key, "" if invite is None else invite.name)

    def roll(self) -> Roll | None:
        """Who may come, if that has changed since the last call; else None."""
        if self._told_at == self._looked_at:
            return None
        self._told_at = self._looked_at
        now = self._wall()
        invites = sum(i.claim != "used" and now < i.expires_at for i in self._invites.values())
        if self._told is not None and self._told[0] is self._members and self._told[1] == invites:
            return None
        self._told = self._members, invites
        return Roll(frozenset(self._members), invites)

    def look(self, *, now: bool = False) -> None:
        """See whether a list has changed, if it is time, or `now`."""
        at = self._clock()
        if not now and at < self._looked_at + LOOK_S:
            return
        self._looked_at = at
        self._look_at_allowlist(at)
        stamp = _stamp(self._ring.invitations)
        if stamp != self._invites_stamp:
            self._invites_stamp = stamp
            try:
                self._invites = self._ring.invites()
            except FedmqError as error:
                log.error("invites unreadable; those before still count", extra={"reason": str(error)})

    def due(self) -> float | None:
        """When to look again although no message comes: while a change has to settle."""
        return None if self._seen == self._loaded else self._seen_at + SETTLE_S

    def revoked(self) -> list[str]:
        """Keys that were taken off the allowlist since the last call."""
        revoked, self._revoked = self._revoked, []
        return revoked

    def _look_at_allowlist(self, at: float) -> None:
        stamp = _stamp(self._ring.allowlist)
        if stamp == self._loaded:
            self._seen = stamp
            return
        is_settled = stamp == self._seen and at >= self._seen_at + SETTLE_S
        if stamp != self._seen:
            self._seen, self._seen_at = stamp, at
        try:
            if not stamp[0]:
                raise FedmqError(f"{self._ring.allowlist} is gone")
            found = self._ring.allowed()
        except FedmqError as error:
            if is_settled:
                self._loaded = stamp  # said once, until it changes
                log.error("allowlist unreadable; the one before still counts", extra={"reason": str(error)})
            return
        if _stamp(self._ring.allowlist) != stamp:
            return  # it is being written
        gone = [key for key in self._members if key not in found]
        if is_settled or not gone:
            added = len(found.keys() - self._members.keys())
            self._members, self._loaded = found, stamp
            self._revoked += gone
            log.info("allowlist changed", extra={"keys": len(found), "added": added, "revoked": len(gone)})
        else:
            self._members = {**self._members, **found}


def _stamp(path: Path) -> Stamp:
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_ino, found.st_size, found.st_mtime_ns)
