"""The mind's outbox: updates that the broker has not acknowledged, and how far each one is.

    state      OFFER due   GRANT              WAIT       ACK     new session
    IDLE       → OFFERED   –                  –          forget  –
    OFFERED    –           → SENDING (sets)   → WAITING  forget  → IDLE
    SENDING    –           raises the limit   → WAITING  forget  → IDLE
    WAITING    → OFFERED   –                  –          forget  → IDLE

Rules that hold here:

- An entry leaves by an ACK, a CANCEL, or because it cannot be read any more. Nothing else removes it.
- Only the first GRANT after an OFFER sets the position: a later one says how far the broker had come
  when it was sent, and PARTs are under way since.
- What rides with OFFERs stays within the worker's credit; of those that need a GRANT few are under way.
"""

import random
from collections.abc import Callable, Iterable
from enum import Enum, auto
from typing import Final

from fedmq.fedcore import wire

from .entry import Entry
from .events import Action, DeleteOutbox, Moment, Notify, Send, SendStored
from .pace import Pace

OFFERS_MAX: Final = 4
"""OFFERs without their bytes that are under way at a time."""
STALL_S: Final = 60.0
"""A transfer that stands still for so long is begun anew from where it is."""
RETRY_MIN_S: Final = 0.1


class Stage(Enum):
    """How far an upload is."""

    IDLE = auto()
    OFFERED = auto()
    SENDING = auto()
    WAITING = auto()


class Upload:
    """One entry and its progress in this session."""

    __slots__ = ("entry", "is_told", "limit", "moved_at", "offers", "position", "retry_at", "stage")

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.is_told = False
        """The broker has heard in this session that there is a result."""
        self.offers = 0
        self.stage = Stage.IDLE
        self.position = 0
        self.limit = 0
        self.moved_at = 0.0
        self.retry_at = 0.0


class Uploads:
    """The outbox as the mind sees it.

    Parameters
    ----------
    entries
        What the outbox held when the worker started, the oldest first.
    pace
        Shared with the downloads.
    rng
        Where jitter comes from.
    emit
        Takes the actions.
    """

    def __init__(
        self, entries: Iterable[Entry], pace: Pace, rng: random.Random, emit: Callable[[Action], None]
    ) -> None:
        self._uploads = {entry.task: Upload(entry) for entry in entries}
        self._pace = pace
        self._rng = rng
        self._emit = emit
        self._inline_max = 0
        """Bytes that may ride with an OFFER."""
        self._credit = 0

    def __len__(self) -> int:
        return len(self._uploads)

    def __contains__(self, task: bytes) -> bool:
        return task in self._uploads

    def ids(self) -> tuple[bytes, ...]:
        """The tasks whose results wait here, the oldest first, for HELLO or BEAT to tell."""
        for upload in self._uploads.values():
            upload.is_told = True
        return tuple(self._uploads)

    def bytes_waiting(self) -> int:
        """The payload bytes that wait here."""
        return sum(upload.entry.size for upload in self._uploads.values())

    def add(self, entry: Entry) -> None:
        """A result was stored."""
        self._uploads[entry.task] = Upload(entry)

    def forget(self, task: bytes) -> Entry | None:
        """Drop an entry here and on disk; None when there is no such entry."""
        upload = self._uploads.pop(task, None)
        if upload is None:
            return None
        self._emit(DeleteOutbox(task))
        return upload.entry

    def keep_only(self, federation: str) -> list[Entry]:
        """Drop what belongs to other federations, and say what that was."""
        strangers = [u.entry for u in self._uploads.values() if u.entry.federation != federation]
        for entry in strangers:
            self.forget(entry.task)
        return strangers

    def welcome(self, terms: wire.Welcome) -> None:
        """A session opened: everything is to be offered again."""
        self._inline_max = min(terms.inline_max, wire.INLINE_MAX, terms.credit)
        self._credit = terms.credit
        for upload in self._uploads.values():
            upload.stage = Stage.IDLE

    def grant(self, message: wire.Grant, now: float) -> bool:
        """The broker's position and limit; False when no GRANT is due for this task."""
        upload = self._uploads.get(message.task)
        if upload is None or not upload.entry.has_payload:
            return False
        size = upload.entry.size
        if not message.offset <= message.limit or message.offset > size:
            return False
        if upload.stage is Stage.OFFERED:
            upload.stage = Stage.SENDING
            upload.position = message.offset
            upload.limit = min(message.limit, size)
        elif upload.stage is Stage.SENDING:
            upload.limit = max(upload.limit, min(message.limit, size))
            self._pace.moved()
        else:
            return False
        upload.moved_at = now
        self._send_parts(upload)
        return True

    def again(self, task: bytes) -> bool:
        """The broker lost the thread of this upload: offer it again; its GRANT says where to go on."""
        upload = self._uploads.get(task)
        if upload is None:
            return False
        upload.stage = Stage.IDLE
        return True

    def wait(self, message: wire.Wait, now: float) -> bool:
        """No room for this one now; False when it was not offered."""
        upload = self._uploads.get(message.task)
        if upload is None or upload.stage not in (Stage.OFFERED, Stage.SENDING):
            return False
        upload.stage = Stage.WAITING
        upload.retry_at = now + max(message.retry_s, RETRY_MIN_S) * self._rng.uniform(1.0, 1.5)
        return True

    def pump(self, now: float) -> int:
        """Offer what is due, the oldest first, within the limits; how many the broker first hears of by that."""
        uploads = self._uploads.values()
        is_due = False
        for upload in uploads:
            unanswered = upload.stage is Stage.OFFERED and now >= upload.moved_at + STALL_S
            if unanswered or (upload.stage is Stage.WAITING and now >= upload.retry_at):
                upload.stage = Stage.IDLE
            is_due = is_due or upload.stage is Stage.IDLE
        if not is_due:
            return 0
        offered = [u for u in uploads if u.stage is Stage.OFFERED]
        inline = sum(u.entry.size for u in offered if self._is_inline(u.entry))
        bare = sum(u.entry.has_payload and not self._is_inline(u.entry) for u in offered)
        news = 0
        for upload in uploads:
            if upload.stage is not Stage.IDLE:
                continue
            if self._is_inline(upload.entry):
                if inline and inline + upload.entry.size > self._credit:
                    break
                inline += upload.entry.size
            elif upload.entry.has_payload:
                if bare >= OFFERS_MAX:
                    break
                bare += 1
            news += not upload.is_told
            upload.is_told = True
            self._offer(upload, now)
        return news

    def is_stalled(self, now: float) -> bool:
        """Whether PARTs were sent and nothing came back for too long."""
        return any(u.stage is Stage.SENDING and now >= u.moved_at + STALL_S for u in self._uploads.values())

    def is_moving(self) -> bool:
        """Whether PARTs are under way."""
        return any(u.stage is Stage.SENDING for u in self._uploads.values())

    def next_due(self) -> float:
        """When `pump` or `is_stalled` has something to say, if nothing arrives before."""
        due = float("inf")
        for upload in self._uploads.values():
            if upload.stage is Stage.WAITING:
                due = min(due, upload.retry_at)
            elif upload.stage is not Stage.IDLE:
                due = min(due, upload.moved_at + STALL_S)
        return due

    def _is_inline(self, entry: Entry) -> bool:
        return entry.size <= self._inline_max and entry.has_payload

    def _offer(self, upload: Upload, now: float) -> None:
        entry = upload.entry
        upload.stage = Stage.OFFERED
        upload.moved_at = now
        upload.offers += 1
        if upload.offers > 1:
            about = {"task": entry.task, "version": entry.base, "offers": upload.offers}
            self._emit(Notify(Moment.UPDATE_RESENT, about))
        if self._is_inline(entry):
            self._emit(SendStored(entry.offer(), 0, entry.size))
        else:
            self._emit(Send(entry.offer()))

    def _send_parts(self, upload: Upload) -> None:
        while upload.position < upload.limit:
            length = min(self._pace.piece, upload.limit - upload.position)
            self._emit(
                SendStored(wire.Part(task=upload.entry.task, offset=upload.position), upload.position, length)
            )
            upload.position += length
