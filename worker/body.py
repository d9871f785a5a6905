"""The worker's body: the I/O thread, which carries out what the mind asks for.

Rules that hold here:

- The mind is handled under one lock, by this thread; `status` takes the lock and reads.
- Other threads only `post`. An event that is posted wakes the socket's poller, so nothing polls.
- An error of disk or socket becomes an event, for the mind to deal with. What is not foreseen ends the
  worker, with its traceback in the log and `failure` for whoever started it.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from fedmq.fedcore import wire
from fedmq.fedcore.errors import StateError
from fedmq.fedcore.inbox import Inbox

from .events import (
    Action,
    BlockFailed,
    CancelApp,
    CloseSocket,
    DeleteModel,
    DeleteOutbox,
    Event,
    Exit,
    KeepModel,
    Moment,
    Note,
    Notify,
    OpenSocket,
    OutboxFailed,
    Send,
    SendStored,
    Start,
    StartApp,
    StoreBlock,
    Tick,
    Wake,
)
from .hooks import Hooks
from .models import ModelCache
from .outbox import Outbox
from .runner import Runner
from .session import Session
from .transport import Transport

if TYPE_CHECKING:
    from .enrolment import Enrolment

log = logging.getLogger("fedmq.worker")

_LEVELS: Final = {
    **dict.fromkeys(Moment, logging.INFO),
    Moment.MODEL_REFETCHED: logging.WARNING,
    Moment.NOT_CONNECTED: logging.WARNING,
    Moment.TASK_FAILED: logging.WARNING,
    Moment.TASK_RECEIVED: logging.DEBUG,
    Moment.TASK_STARTED: logging.DEBUG,
    Moment.UPDATE_DELAYED: logging.DEBUG,
    Moment.UPDATE_LOST: logging.ERROR,
    Moment.UPDATE_RESENT: logging.DEBUG,
}
_TEXTS: Final = {moment: moment.value.replace("_", " ") for moment in Moment}


class Body:
    """What a mind needs to act: a socket, a disk, an app."""

    def __init__(
        self,
        session: "Session | Enrolment",
        transport: Transport,
        outbox: Outbox,
        models: ModelCache,
        name: str,
    ) -> None:
        self._session = session
        self._transport = transport
        self._outbox = outbox
        self._models = models
        self._name = name
        self._lock = threading.Lock()
        self._posted: Inbox[Event] = Inbox()
        transport.watch(self._posted)
        self._wake_at = math.inf
        self._undeleted = False
        """The last deletion failed; said once."""
        self._exit: Exit | None = None
        self.runner: Runner
        self.hooks: Hooks
        self.failure: BaseException | None = None

    @property
    def exit(self) -> Exit | None:
        """How it ended, once it has."""
        return self._exit

    def post(self, event: Event) -> None:
        """Hand an event to the mind. For any thread."""
        self._posted.put(event)

    def close(self) -> None:
        """Give the descriptors back, after the thread has ended: what is posted now is for nobody."""
        self._posted.close()

    def status(self) -> dict[str, Any]:
        """A snapshot for people. For any thread."""
        with self._lock:
            status = self._session.status()
        status["bytes_up"] = self._transport.sent_bytes
        status["bytes_down"] = self._transport.received_bytes
        return status

    def run(self) -> None:
        """The I/O thread, until the mind wants to exit."""
        try:
            self._handle(Start())
            while self._exit is None:
                self._turn()
        except BaseException as error:
            self.failure = error
            log.exception("the worker stopped on an error of its own")
        finally:
            self.runner.close()
            self._transport.close()

    def _turn(self) -> None:
        timeout_s = None if math.isinf(self._wake_at) else self._wake_at - time.monotonic()
        arrived = self._transport.wait(timeout_s)
        self._handle(*(self._posted.drain() + arrived or [Tick()]))
        try:
            self._transport.flush()
        except _Unreadable as error:
            self.post(OutboxFailed(error.task, str(error)))

    def _handle(self, *events: Event) -> None:
        now = time.monotonic()
        if now >= self._wake_at:
            self._wake_at = math.inf
        with self._lock:
            actions = self._session.handle(*events, now=now)
        for action in actions:
            self._perform(action)

    def _perform(self, action: Action) -> None:
        match action:
            case Send():
                self._transport.send(action.message)
            case SendStored():
                self._send_stored(action)
            case Notify():
                self._notify(action)
            case StoreBlock():
                try:
                    self._models.append(action.digest, action.offset, action.data)
                except OSError as error:
                    log.error("a model cannot be stored: %s", error)
                    self.post(BlockFailed(action.digest, f"the model cannot be stored: {error.strerror}"))
            case KeepModel():
                self._models.keep(action.digest, action.data)
            case StartApp():
                self.runner.submit(action.task, action.federation)
            case CancelApp():
                self.runner.cancel(action.task)
            case DeleteOutbox():
                self._transport.forget(action.task)
                self._delete("a result", self._outbox.delete, action.task)
            case DeleteModel():
                self._delete("a model", self._models.delete, action.digest)
            case OpenSocket():
                self._transport.open(invited=action.invited)
            case CloseSocket():
                self._transport.close()
            case Wake():
                self._wake_at = action.at
            case Note():
                self._log(logging.getLevelNamesMapping()[action.level.upper()], action.text, action.fields)
            case Exit():
                self._exit = action
            case _:
                raise TypeError(f"no such action: {type(action).__name__}")

    def _notify(self, action: Notify) -> None:
        level = _LEVELS[action.moment]
        if action.fields.get("result") == "rejected":
            level = logging.WARNING  # stale and duplicate are everyday life
        self._log(level, _TEXTS[action.moment], action.fields)
        self.hooks.tell(action.moment, action.fields)

    def _delete(self, what: str, delete: Callable[[bytes], None], name: bytes) -> None:
        """Delete, where the disk lets us. It is no loss otherwise: a result that the next process finds is offered
        once more, and the broker knows it; a model is fetched over what is there."""
        try:
            delete(name)
        except OSError as error:
            if not self._undeleted:
                log.warning("%s cannot be deleted: %s", what, error)
            self._undeleted = True
        else:
            self._undeleted = False

    def _send_stored(self, action: SendStored) -> None:
        task = action.message.task

        def payload() -> wire.Frame:
            try:
                return self._outbox.read(task, action.offset, action.length)
            except StateError as error:
                raise _Unreadable(task, str(error)) from error

        self._transport.send(action.message, payload)

    def _log(self, level: int, text: str, fields: Mapping[str, Any]) -> None:
        if log.isEnabledFor(level):
            log.log(level, "%s", text, extra={"worker": self._name, **fields})


class _Unreadable(Exception):
    """A queued payload cannot be read."""

    def __init__(self, task: bytes, reason: str) -> None:
        super().__init__(reason)
        self.task = task
