"""Updates on their way in: credit, resumption, stalls. Pure.

An upload is a receiver-driven, resumable transfer into one spool file. Rules that hold here:

- All bytes in flight come from one budget, with a cap for each worker; an offer that finds no room is
  told to WAIT. Credit is what may still arrive and what is not yet written.
- `queued` (handed to the spool) is where the next PART must start, and what a new GRANT says after a
  reconnect; bytes are never sent twice, except those in flight when a connection died.
- A transfer that moves is never timed out; one that stands still for a minute loses its credit and is
  told to offer again. Its bytes stay.
- Spool events come in the order of the actions that caused them. An upload that was ended and begun again
  waits for the answer to its own `OpenUpload`; what an earlier one still causes changes nothing.
"""

import enum

from fedmq.fedcore.wire import Offer

from .events import Peer

STALL_S = 60.0
GRANT_S = 10.0
"""A worker whose bytes arrive hears of it at least so often, by a GRANT: else a slow transfer that moves looks to
it like one that stands still."""


class Stage(enum.Enum):
    """Where an upload is."""

    OPENING = "opening"
    MOVING = "moving"
    SEALING = "sealing"
    HELD = "held"
    """No credit: its session ended, it stood still, or its buffer has no place for it yet; waits for the
    worker to offer it again, and then for the spool to say what it holds."""


class Upload:
    """One update on its way in."""

    __slots__ = ("granted", "limit", "moved", "offer", "peer", "queued", "size", "stage", "worker", "written")

    def __init__(self, worker: str, peer: Peer, offer: Offer, now: float) -> None:
        assert offer.size is not None
        self.worker = worker
        self.peer = peer
        self.offer = offer
        self.size = offer.size
        self.stage = Stage.OPENING
        self.queued = 0
        self.written = 0
        self.limit = 0
        self.moved = now
        self.granted = now

    @property
    def credit(self) -> int:
        """Bytes of the budget that this upload holds."""
        return self.limit - self.written


class Uploads:
    """All uploads of a federation.

    Parameters
    ----------
    budget : int
        Bytes in flight, all workers together.
    cap : int
        Bytes in flight of one upload.
    """

    def __init__(self, budget: int, cap: int) -> None:
        self._budget = budget
        self._cap = cap
        self._uploads: dict[bytes, Upload] = {}
        self._unanswered: dict[bytes, int] = {}
        """How many times the spool was asked to open an upload, and has not answered."""

    def __len__(self) -> int:
        return len(self._uploads)

    def get(self, task: bytes) -> Upload | None:
        """The upload of this task's update."""
        return self._uploads.get(task)

    def in_flight(self) -> int:
        """Bytes of the budget that are taken."""
        return sum(u.credit for u in self._uploads.values())

    def announced(self) -> int:
        """Bytes that all uploads take on disk when they are complete."""
        return sum(u.size for u in self._uploads.values())

    def under_way(self) -> int:
        """How many uploads there are whose workers are sending them."""
        return sum(u.stage is not Stage.HELD for u in self._uploads.values())

    def room(self) -> bool:
        """Whether a new upload could be given anything to send."""
        return self.in_flight() < self._budget

    def start(self, worker: str, peer: Peer, offer: Offer, now: float) -> Upload:
        """Begin (or begin anew, or go on with) an upload: OPENING until the spool says what it holds."""
        upload = self._uploads[offer.task] = Upload(worker, peer, offer, now)
        self._unanswered[offer.task] = self._unanswered.get(offer.task, 0) + 1
        return upload

    def opened(self, task: bytes, length: int, now: float) -> Upload | None:
        """The spool holds `length` bytes; the upload if that is the answer it waits for."""
        left = self._unanswered.pop(task, 1) - 1
        if left:
            self._unanswered[task] = left
            return None
        upload = self._uploads.get(task)
        if upload is not None:
            upload.stage = Stage.MOVING
            upload.queued = upload.written = upload.limit = min(length, upload.size)
            upload.moved = now
        return upload

    def resume(self, upload: Upload, peer: Peer, now: float) -> None:
        """The same update was offered again: go on from what was handed to the spool."""
        upload.peer = peer
        upload.moved = now
        if upload.stage is Stage.MOVING:
            upload.limit = upload.queued

    def put_off(self, upload: Upload) -> None:
        """A complete update whose time has not come; its bytes stay."""
        upload.stage = Stage.HELD

    def extend(self, upload: Upload, *, however_little: bool = False) -> bool:
        """Raise its limit as far as the budget allows; whether that is worth a GRANT now."""
        room = self._budget - self.in_flight()
        target = min(upload.size, upload.written + self._cap, upload.limit + max(room, 0))
        # Fewer, larger grants: half a window at a time, or the rest of the update.
        if target <= upload.limit or (
            not however_little
            and target < upload.size
            and target - upload.limit < self._cap // 2
            and upload.credit
        ):
            return False
        upload.limit = target
        return True

    def take(self, upload: Upload, offset: int, length: int, now: float) -> bool:
        """Account for a PART; False when it is not what was granted."""
        if upload.stage is not Stage.MOVING or offset != upload.queued or offset + length > upload.limit:
            return False
        upload.queued += length
        upload.moved = now
        return True

    def written(self, upload: Upload, length: int) -> bool:
        """The spool holds `length` bytes; True when the update is complete (it is SEALING then)."""
        if upload.stage is Stage.OPENING or length < upload.written:
            return False  # of the file that was discarded before this one was opened
        upload.written = length
        if length == upload.size and upload.stage is not Stage.SEALING:
            upload.stage = Stage.SEALING
            return True
        return False

    def hold(self, upload: Upload) -> None:
        """Take its credit away: nothing more is expected on this connection."""
        if upload.stage is Stage.MOVING:
            upload.stage = Stage.HELD
            upload.limit = upload.queued

    def hold_all(self, peer: Peer) -> None:
        """A connection is gone."""
        for upload in self._uploads.values():
            if upload.peer == peer:
                self.hold(upload)

    def stalled(self, now: float) -> list[Upload]:
        """Uploads that have credit and did not move for a minute (they lose it here)."""
        still = [u for u in self._uploads.values() if u.stage is Stage.MOVING and now - u.moved >= STALL_S]
        for upload in still:
            self.hold(upload)
        return still

    def slow(self, now: float) -> list[Upload]:
        """Moving uploads whose worker has not heard for a while that their bytes arrive."""
        return [u for u in self._uploads.values() if u.stage is Stage.MOVING and now - u.granted >= GRANT_S]

    def starved(self) -> list[Upload]:
        """Moving uploads that wait for credit, those with least first."""
        waiting = [u for u in self._uploads.values() if u.stage is Stage.MOVING and u.limit < u.size]
        return sorted(waiting, key=lambda u: u.credit)

    def end(self, task: bytes) -> Upload | None:
        """Forget an upload: it was accepted, refused, or is no longer wanted."""
        return self._uploads.pop(task, None)

    def of(self, worker: str) -> list[Upload]:
        """The uploads of one worker."""
        return [upload for upload in self._uploads.values() if upload.worker == worker]

    def older_than(self, version: int) -> list[bytes]:
        """Fit uploads whose base is older than `version`: they could only be stale."""
        return [t for t, u in self._uploads.items() if u.offer.kind == "fit" and u.offer.base < version]
