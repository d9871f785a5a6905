"""What the worker's mind is told (events) and what it asks for (actions). Frozen values; no behaviour.

The body promises:

- Actions are carried out in order, and none of them waits: `Send` queues where the socket is full.
  A `Send` of a HELLO empties that queue first, for what is in it belongs to the session before.
- Each `StartApp` is answered by exactly one of `Stored`, `AppFailed` or `ModelBroken`, however long the
  app takes and whether or not it was cancelled. No second one is asked for before.
- A `Stored` is told after the entry is in the outbox, and never before.
- `Opened` is told each time that a connection is made, also when the socket reconnects by itself.
"""

from enum import StrEnum
from typing import Any

import msgspec

from fedmq.fedcore import wire

from .entry import Entry


class Event(msgspec.Struct, frozen=True):
    """Base of what the mind is told."""


class Start(Event, frozen=True):
    """Begin: open the first connection."""


class Received(Event, frozen=True):
    """A well-formed message from the broker."""

    message: wire.Message
    payload: memoryview | None = None


class Tick(Event, frozen=True):
    """Time has passed: sent at the time of the last `Wake`, or earlier."""


class Opened(Event, frozen=True):
    """A connection to the broker was made; nothing has been said over it yet."""


class Lost(Event, frozen=True):
    """The connection broke; the socket is trying to make another."""


class Refused(Event, frozen=True):
    """The broker's socket refused the handshake; this socket will not try again."""

    reason: str


class Stored(Event, frozen=True):
    """The app finished, and its result is in the outbox."""

    entry: Entry


class AppFailed(Event, frozen=True):
    """The app raised, was cancelled, or its result could not be used or kept."""

    task: bytes
    reason: str


class ModelBroken(Event, frozen=True):
    """The app was not started: the model's file is not what its digest says."""

    task: bytes
    digest: bytes


class BlockFailed(Event, frozen=True):
    """A block could not be written to the model cache."""

    digest: bytes
    reason: str


class OutboxFailed(Event, frozen=True):
    """The bytes of an update can no longer be read from the outbox."""

    task: bytes
    reason: str


class Pause(Event, frozen=True):
    """The user wants no new task until `Resume`; what is running goes on."""


class Resume(Event, frozen=True):
    """The user takes tasks again."""


class MayTrain(Event, frozen=True):
    """The edge program says whether this is a time to train (idle, on power …)."""

    allowed: bool


class Stop(Event, frozen=True):
    """Leave in order: BYE, cancel the app, keep the outbox, `Exit` with code 0."""

    reason: str = "stopped"


class Action(msgspec.Struct, frozen=True):
    """Base of what the mind asks for."""


class OpenSocket(Action, frozen=True):
    """Make a new socket and connect it; with the key of this worker's invite instead of its own, if it says so."""

    invited: bool = False


class CloseSocket(Action, frozen=True):
    """Close the socket and forget what was not sent, but for a BYE that was just queued."""


class Send(Action, frozen=True):
    """Send a message without a payload."""

    message: wire.Message


class SendStored(Action, frozen=True):
    """Send an OFFER or PART whose payload is `length` bytes of the task's update, from `offset` on."""

    message: wire.Offer | wire.Part
    offset: int
    length: int


class StoreBlock(Action, frozen=True):
    """Write bytes of a model to its file in the cache; blocks of a model come in order."""

    digest: bytes
    offset: int
    data: memoryview


class KeepModel(Action, frozen=True):
    """Keep a whole, small model in memory."""

    digest: bytes
    data: memoryview


class DeleteModel(Action, frozen=True):
    """Delete a model from the cache."""

    digest: bytes


class StartApp(Action, frozen=True):
    """Run the client app on a task whose model, if it has one, is in the cache."""

    task: wire.Task
    federation: str


class CancelApp(Action, frozen=True):
    """Tell the running app that its task is no longer wanted."""

    task: bytes


class DeleteOutbox(Action, frozen=True):
    """Delete an update from the outbox, and what is still queued of it."""

    task: bytes


class Wake(Action, frozen=True):
    """Send a `Tick` at this time (monotonic seconds); replaces the one before."""

    at: float


class Moment(StrEnum):
    """What an embedding program can be told about."""

    CONNECTED = "connected"
    DISCONNECTED = "disconnected"
    NOT_CONNECTED = "not_connected"
    """An attempt to connect failed, or was refused for now; the next one follows by itself."""
    TASK_RECEIVED = "task_received"
    TASK_STARTED = "task_started"
    TASK_FINISHED = "task_finished"
    TASK_FAILED = "task_failed"
    TASK_CANCELLED = "task_cancelled"
    UPDATE_ACCEPTED = "update_accepted"
    UPDATE_REJECTED = "update_rejected"
    UPDATE_DELAYED = "update_delayed"
    """The broker has no room for it now; it is offered again by itself."""
    UPDATE_RESENT = "update_resent"
    """It was offered again: after a delay, in a new session, or because nobody answered."""
    UPDATE_LOST = "update_lost"
    """It can no longer be read, or no longer be of use to anybody."""
    MODEL_REFETCHED = "model_refetched"
    """It arrived damaged, and is fetched once more."""
    PAUSED = "paused"
    RESUMED = "resumed"
    FINISHED = "finished"


class Notify(Action, frozen=True):
    """Tell the log and the embedding program. Fields never hold the content of a message."""

    moment: Moment
    fields: dict[str, Any] = {}


class Note(Action, frozen=True):
    """An event for the log alone."""

    level: str
    text: str
    fields: dict[str, Any] = {}


class Exit(Action, frozen=True):
    """The worker is done: stop with this exit code once everything before is carried out."""

    code: int
    reason: str
