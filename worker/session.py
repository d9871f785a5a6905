"""The worker's mind: a pure state machine. No I/O, no clock, and no randomness but what it is given.

    actions = session.handle(*events, now=now)      # see events.py for both

Theory of operation
-------------------
A session is one WELCOME's worth of talk. Everything that outlives a connection (tasks in hand, the
outbox, the model cache) is kept apart from what does not (FETCHes and GRANTs outstanding, `seq`): a new
session voids the second and says the first in its HELLO. So it never matters how a connection ended.

Its parts are pure as well: `connection` (phases, backoff), `tasks` (in hand), `downloads`, `uploads`, and
`appetite` (how many tasks more). What a message does in each phase (· changes nothing; ENDED hears nothing):

    ============  ======  ==========  ==============  ================
    message       CLOSED  CONNECTING  GREETING        OPEN
    ============  ======  ==========  ==============  ================
    WELCOME       ·       ·           → OPEN          → OPEN, anew
    REJECT        ·       ·           → CLOSED/ENDED  → CLOSED/ENDED
    BEAT          ·       ·           ·               proves life
    TASK          ·       ·           ·               into the hand
    BLOCK         ·       ·           ·               into the cache
    GRANT         ·       ·           ·               PARTs
    WAIT          ·       ·           ·               offered later
    ACK           ·       forget      forget          forget
    CANCEL        ·       forget      forget          forget
    BYE           ·       → CLOSED / ENDED (finished, revoked), in all three
    ERROR         ·       ·           ·               need_hello → GREETING; busy, gone, …
    ENROLLED      ·       ·           ·               ·
    ============  ======  ==========  ==============  ================

ACK, CANCEL and BYE are true whenever they arrive: the broker made them durable, or never takes them
back. A TASK of the session before is not: the broker has freed it when it read our HELLO.

Rules that hold here:

- An illegal message changes nothing, and proves life at most.
- A task in hand leaves it by a result, a FAIL or a CANCEL. An update leaves the outbox by an ACK or a CANCEL.
- All that time does is in `_on_time`, which runs whenever something happens; `Wake` only asks for once more.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from fedmq.fedcore import wire
from fedmq.fedcore.encoded_model import MODEL_ENCODINGS

from .appetite import Appetite
from .connection import NEVER, Connection, Phase
from .downloads import Downloads
from .entry import Entry
from .events import (
    Action,
    AppFailed,
    BlockFailed,
    CancelApp,
    Event,
    Exit,
    Lost,
    MayTrain,
    ModelBroken,
    Moment,
    Note,
    Notify,
    Opened,
    OutboxFailed,
    Pause,
    Received,
    Refused,
    Resume,
    Send,
    SendStored,
    Start,
    StartApp,
    Stop,
    Stored,
    Tick,
    Wake,
)
from .pace import Pace
from .tasks import Tasks
from .uploads import Uploads

BLOCK_MIN: Final = 1024
"""A broker that wants smaller pieces than this is not served."""
REFUSED_CODE: Final = 7
"""Exit code of a worker that is refused for good: `ConnectError`'s."""
_SAYING: Final = (Send, SendStored)


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Who this worker is and what it can do, as its HELLO says it."""

    name: str
    instance: bytes
    boot: bytes
    kinds: tuple[str, ...] = ("fit", "evaluate")
    encodings: tuple[str, ...] = ("f32",)
    tags: tuple[str, ...] = ()
    slots: int = 2
    """Tasks in hand at a time: one that runs, and the next, whose model is fetched meanwhile."""
    keep_models: int = 3


class Session:
    """The worker's mind.

    Parameters
    ----------
    me
        What HELLO says.
    rng
        Where all jitter comes from.
    outbox
        The entries that the state folder held at the start, the oldest first.
    models
        Digest and length of each file in the model cache, the least recently used first.
    """

    def __init__(
        self,
        me: Identity,
        *,
        rng: random.Random,
        outbox: Sequence[Entry] = (),
        models: Mapping[bytes, int] | None = None,
    ) -> None:
        self._me = me
        self._out: list[Action] = []
        self._pace = Pace()
        self._connection = Connection(rng, self._emit)
        self._appetite = Appetite(me.slots)
        self._tasks = Tasks()
        self._uploads = Uploads(outbox, self._pace, rng, self._emit)
        self._downloads = Downloads(models or {}, me.keep_models, self._pace, self._emit)
        self._federation: str | None = None
        self._model_max = 0
        self._version: int | None = None
        self._wake_at = NEVER
        self._counts = {"finished": 0, "failed": 0, "cancelled": 0, "accepted": 0, "rejected": 0}

    @property
    def phase(self) -> Phase:
        """Where the talk with the broker stands."""
        return self._connection.phase

    @property
    def has_ended(self) -> bool:
        """Whether `Exit` was asked for."""
        return self._connection.phase is Phase.ENDED

    def handle(self, *events: Event, now: float) -> list[Action]:
        """Take events, at a time that never goes back, and say what is to be done, in order.

        Several are taken as if all had happened at once: what they make possible is looked for once, after the last.
        """
        self._out = []
        for event in events:
            if self.has_ended:
                break
            self._on_event(event, now)
        if not self.has_ended:
            self._on_time(now)
            self._settle(now)
            self._set_alarm(now)
        return self._out

    def status(self) -> dict[str, Any]:
        """What a person wants to know: a snapshot of plain values."""
        return {
            "name": self._me.name,
            "connection": self.phase.name.lower(),
            "federation": self._federation,
            "version": self._version,
            "training": self._tasks.running is not None,
            "tasks": len(self._tasks),
            "outbox": len(self._uploads),
            "outbox_bytes": self._uploads.bytes_waiting(),
            "paused": self._appetite.paused,
            "may_train": self._appetite.allowed,
            **self._counts,
        }

    def _on_event(self, event: Event, now: float) -> None:
        match event:
            case Received():
                self._on_message(event.message, event.payload, now)
            case Tick():
                pass  # what time does is done at every event
            case Stored():
                self._on_stored(event.entry)
            case AppFailed():
                self._on_app_failed(event, now)
            case ModelBroken():
                self._on_model_broken(event)
            case BlockFailed():
                self._on_block_failed(event)
            case OutboxFailed():
                self._on_outbox_failed(event)
            case Start():
                self._connection.start(now)
            case Opened() if self.phase is not Phase.CLOSED:
                self._lose(now)
                self._hello(now)
            case Lost():
                self._lose(now)
            case Refused() if self.phase is not Phase.CLOSED:
                self._disconnect(now, event.reason)
            case Opened() | Refused():
                pass  # of a socket that is closed by now
            case Pause() | Resume():
                paused = isinstance(event, Pause)
                if paused != self._appetite.paused:
                    self._appetite.paused = paused
                    self._notify(Moment.PAUSED if paused else Moment.RESUMED)
            case MayTrain():
                self._appetite.allowed = event.allowed
            case Stop():
                if self.phase is Phase.OPEN:
                    self._emit(Send(wire.Bye(reason=wire.clip(event.reason))))
                self._finish(0, event.reason)
            case _:
                raise TypeError(f"not an event of the worker's: {type(event).__name__}")

    def _on_stored(self, entry: Entry) -> None:
        self._app_is_free(entry.task)
        self._appetite.succeeded()
        self._uploads.add(entry)
        if entry.task not in self._tasks:
            self._uploads.forget(entry.task)  # cancelled while it was being finished
        elif entry.kind == "init" and entry.size > self._model_max:
            self._uploads.forget(entry.task)
            self._fail(entry.task, f"a model of {entry.size} bytes; this federation takes {self._model_max}")
        else:
            self._tasks.drop(entry.task)
            self._counts["finished"] += 1
            about = {"task": entry.task, "kind": entry.kind, "version": entry.base, "bytes": entry.size}
            self._notify(Moment.TASK_FINISHED, **about)

    def _on_app_failed(self, event: AppFailed, now: float) -> None:
        self._app_is_free(event.task)
        if (held := self._tasks.get(event.task)) is not None:
            if held.kind != "evaluate":
                self._appetite.failed(now)
            self._fail(event.task, event.reason)

    def _on_model_broken(self, event: ModelBroken) -> None:
        self._app_is_free(event.task)
        if self._downloads.broken(event.digest):
            self._notify(Moment.MODEL_REFETCHED, reason="it is not what its digest says")
        else:
            self._fail_on_model(event.digest, "digest")

    def _on_block_failed(self, event: BlockFailed) -> None:
        self._fail_on_model(event.digest, event.reason)
        self._downloads.forget(event.digest)

    def _on_outbox_failed(self, event: OutboxFailed) -> None:
        if self._uploads.forget(event.task) is not None:
            self._notify(Moment.UPDATE_LOST, task=event.task, reason=event.reason)
            self._send_fail(event.task, "the update can no longer be read")

    def _on_message(self, message: wire.Message, payload: memoryview | None, now: float) -> None:
        if self.phase is Phase.CLOSED:
            return
        self._connection.heard(now)
        match message:
            case wire.Ack():
                self._on_ack(message)
            case wire.Cancel():
                self._on_cancel(message)
            case wire.Bye():
                self._on_bye(message, now)
            case wire.Welcome() if self.phase is not Phase.CONNECTING:
                self._on_welcome(message, now)
            case wire.Reject() if self.phase is not Phase.CONNECTING:
                self._on_reject(message, now)
            case _ if self.phase is Phase.OPEN:
                self._on_session_message(message, payload, now)

    def _on_session_message(self, message: wire.Message, payload: memoryview | None, now: float) -> None:
        match message:
            case wire.Task():
                self._on_task(message, payload, now)
            case wire.Block() if payload is not None:
                self._downloads.block(message, payload, now)
            case wire.Grant():
                if self._uploads.grant(message, now):
                    self._connection.said(now)
            case wire.Wait():
                if self._uploads.wait(message, now):
                    self._notify(Moment.UPDATE_DELAYED, task=message.task, retry_s=message.retry_s)
            case wire.Error():
                self._on_error(message, now)

    def _on_welcome(self, terms: wire.Welcome, now: float) -> None:
        if terms.protocol != wire.PROTOCOL or terms.block < BLOCK_MIN:
            self._disconnect(
                now, f"terms that cannot be met: protocol {terms.protocol}, blocks of {terms.block} bytes"
            )
            return
        if self.phase is Phase.OPEN:
            self._appetite.doubt()  # no HELLO of ours says what this session began with
        self._downloads.void()
        for entry in self._uploads.keep_only(terms.federation):
            self._notify(
                Moment.UPDATE_LOST, task=entry.task, reason=f"of another federation, {entry.federation}"
            )
        if self._federation not in (None, terms.federation):
            for task in self._tasks.all():
                self._cancel(task.task, f"of another federation, {self._federation}")
        self._federation = terms.federation
        self._model_max = terms.max_model_bytes
        self._pace.terms(terms.block)
        self._uploads.welcome(terms)
        self._connection.open(terms, now)
        self._notify(Moment.CONNECTED, federation=terms.federation)

    def _on_reject(self, message: wire.Reject, now: float) -> None:
        said = f"{message.why}: {message.reason}" if message.reason else message.why
        if message.why == "finished":
            self._finish(0, said)
        elif message.fatal:
            self._finish(REFUSED_CODE, said)
        else:
            self._disconnect(now, said, retry_s=message.retry_s)

    def _on_bye(self, message: wire.Bye, now: float) -> None:
        match message.reason:
            case "finished":
                self._finish(0, "finished")
            case "revoked":
                self._finish(REFUSED_CODE, "revoked")
            case _:
                self._disconnect(now, "the broker said goodbye")

    def _on_task(self, task: wire.Task, model: memoryview | None, now: float) -> None:
        self._appetite.took(task.seq)
        if task.task in self._tasks or task.task in self._uploads:
            return
        refusal = self._refusal(task)
        self._tasks.take(task, now)
        self._notify(Moment.TASK_RECEIVED, task=task.task, kind=task.kind, version=task.version)
        if refusal:
            self._fail(task.task, refusal)
        else:
            self._downloads.want(task)
            if model is not None:
                self._downloads.give(task, model)

    def _refusal(self, task: wire.Task) -> str:
        if task.kind not in self._me.kinds:
            return f"this worker's app has no {task.kind}"
        if task.kind == "fit" and task.encoding not in self._me.encodings:
            return f"this worker does not encode {task.encoding}"
        if task.model is not None and task.model not in MODEL_ENCODINGS:
            return f"this worker does not read models as {task.model}"
        if task.kind != "init" and not 0 < task.size <= self._model_max:
            return f"a model of {task.size} bytes, at most {self._model_max} were announced"
        return ""

    def _on_ack(self, message: wire.Ack) -> None:
        entry = self._uploads.forget(message.task)
        if entry is None:
            return
        if message.result != "accepted":
            self._appetite.doubt()
        about = {"task": message.task, "kind": entry.kind, "version": entry.base}
        if message.result == "accepted":
            self._counts["accepted"] += 1
            self._notify(Moment.UPDATE_ACCEPTED, **about)
        elif message.result == "duplicate":
            # An ACK was lost before, or this worker was killed when it had come.
            self._counts["accepted"] += 1
            self._notify(Moment.UPDATE_ACCEPTED, **about, result="duplicate")
        else:
            self._counts["rejected"] += 1
            self._notify(Moment.UPDATE_REJECTED, **about, result=message.result, reason=message.reason)

    def _on_cancel(self, message: wire.Cancel) -> None:
        if self._uploads.forget(message.task) is not None or message.task in self._tasks:
            self._appetite.doubt()
            self._cancel(message.task, message.reason)

    def _on_error(self, message: wire.Error, now: float) -> None:
        match message.why:
            case "need_hello":
                self._notify(Moment.DISCONNECTED, reason="the broker does not know this session")
                self._hello(now)
            case "busy":
                self._downloads.busy(message.version, message.offset, now)
            case "gone" if message.version is not None:
                self._downloads.gone(message.version)
                for task in self._tasks.on_version(message.version):
                    if not self._downloads.is_ready(task):
                        self._fail(task.task, f"version {message.version} is gone")
            case _ if message.ref == wire.Part.code and message.task is not None:
                self._uploads.again(message.task)
            case _ if message.ref == wire.Offer.code and message.task is not None:
                # Else it would be offered for ever.
                reason = message.reason or message.why
                self._on_ack(wire.Ack(task=message.task, result="rejected", reason=reason))
            case _:
                self._note(
                    "warning",
                    "the broker refused a message",
                    ref=message.ref,
                    reason=message.reason or message.why,
                )

    def _on_time(self, now: float) -> None:
        """Everything that happens because time has passed."""
        silence = self._connection.silence(now)
        if silence:
            self._disconnect(now, silence, stalled=True)
        elif self.phase is Phase.OPEN and (self._uploads.is_stalled(now) or self._downloads.is_stalled(now)):
            self._disconnect(now, "a transfer stood still", stalled=True)
        self._connection.reopen(now)
        for task in self._tasks.overdue(now):
            self._cancel_app(task.task)
            self._fail(task.task, "deadline")

    def _settle(self, now: float) -> None:
        """Everything that has become possible, whatever made it so."""
        if not self._appetite.may_start():
            for waiting in self._tasks.waiting():
                self._fail(waiting.task, "paused")
        elif (task := self._tasks.startable(self._downloads.is_ready)) is not None:
            self._tasks.running = task.task
            self._version = task.version
            self._emit(StartApp(task, self._federation or ""))
            self._notify(Moment.TASK_STARTED, task=task.task, kind=task.kind, version=task.version)
        self._downloads.trim(self._tasks.models)
        if self.phase is not Phase.OPEN:
            return
        before = len(self._out)
        self._appetite.offered(self._uploads.pump(now))
        self._downloads.pump(self._tasks.waiting(), now)
        for action in self._out[before:]:
            if isinstance(action, _SAYING):
                self._connection.said(now)
                break
        free = self._free(now)
        if self._appetite.is_news(free) or self._connection.is_beat_due(now):
            self._beat(free, now)

    def _set_alarm(self, now: float) -> None:
        at = min(self._tasks.next_deadline(), self._connection.next_due())
        if self.phase is Phase.OPEN:
            at = min(
                at,
                self._uploads.next_due(),
                self._downloads.next_due(now),
                self._appetite.next_due(now),
            )
        # An alarm that comes too early does no harm, and saves telling the body at every message.
        if at < self._wake_at or self._wake_at <= now:
            self._wake_at = at
            self._emit(Wake(at))

    def _free(self, now: float) -> int:
        return self._appetite.free(self._tasks.occupied(), len(self._uploads), now)

    def _hello(self, now: float) -> None:
        self._downloads.void()
        free = self._free(now)
        self._appetite.hello(free)
        self._connection.greeting(now)
        self._connection.said(now)
        me = self._me
        hello = wire.Hello(
            protocol=wire.PROTOCOL,
            name=me.name,
            instance=me.instance,
            boot=me.boot,
            kinds=me.kinds,
            encodings=me.encodings,
            tags=me.tags,
            free=free,
            tasks=self._tasks.ids(),
            outbox=self._uploads.ids(),
            models=MODEL_ENCODINGS,
        )
        self._emit(Send(hello))

    def _beat(self, free: int, now: float) -> None:
        self._appetite.told(free)
        self._connection.said(now)
        seen = self._appetite.seen
        self._emit(Send(wire.Beat(tasks=self._tasks.ids(), outbox=self._uploads.ids(), free=free, seen=seen)))

    def _lose(self, now: float) -> None:
        """The connection broke; the socket makes another by itself."""
        if self.phase is Phase.OPEN:
            self._notify(Moment.DISCONNECTED, reason="the connection broke")
        if self.phase in (Phase.GREETING, Phase.OPEN):
            self._downloads.void()
            self._connection.connecting(now)

    def _disconnect(self, now: float, reason: str, *, retry_s: float = 0.0, stalled: bool = False) -> None:
        """Close the socket, and open another after a while."""
        if stalled and (self._downloads.is_moving() or self._uploads.is_moving()):
            self._pace.stalled()
        if self.phase is Phase.OPEN:
            self._notify(Moment.DISCONNECTED, reason=reason)
        else:
            self._notify(Moment.NOT_CONNECTED, reason=reason)
        self._downloads.void()
        self._connection.close(now, retry_s)

    def _finish(self, code: int, reason: str) -> None:
        """Nothing more is to be done here. The outbox stays."""
        if self._tasks.running is not None:
            self._emit(CancelApp(self._tasks.running))
        self._connection.end()
        self._notify(Moment.FINISHED, reason=reason, code=code)
        self._emit(Exit(code, reason))

    def _app_is_free(self, task: bytes) -> None:
        if self._tasks.running == task:
            self._tasks.running = None

    def _cancel(self, task: bytes, reason: str) -> None:
        """The broker does not want a task any more."""
        self._cancel_app(task)
        self._tasks.drop(task)
        self._counts["cancelled"] += 1
        self._notify(Moment.TASK_CANCELLED, task=task, reason=reason)

    def _cancel_app(self, task: bytes) -> None:
        if self._tasks.running == task:
            self._emit(CancelApp(task))

    def _fail_on_model(self, digest: bytes, reason: str) -> None:
        for task in self._tasks.all():
            if task.digest == digest:
                self._cancel_app(task.task)
                self._fail(task.task, reason)

    def _fail(self, task: bytes, reason: str) -> None:
        """A task in hand will have no result."""
        held = self._tasks.drop(task)
        if held is not None:
            self._counts["failed"] += 1
            about = {"task": task, "kind": held.kind, "version": held.version}
            self._notify(Moment.TASK_FAILED, **about, reason=reason)
            self._send_fail(task, reason)

    def _send_fail(self, task: bytes, reason: str) -> None:
        # Outside of a session the next HELLO says it: the task is in neither list.
        if self.phase is Phase.OPEN:
            self._emit(Send(wire.Fail(task=task, reason=wire.clip(reason))))

    def _notify(self, moment: Moment, **fields: Any) -> None:
        self._emit(Notify(moment, fields))

    def _note(self, level: str, text: str, **fields: Any) -> None:
        self._emit(Note(level, text, fields))

    def _emit(self, action: Action) -> None:
        self._out.append(action)
