"""The broker's mind: events in, actions out. A pure state machine.

It does no I/O, reads no clock and draws no randomness: time is a parameter, ids come from `TaskIds`, and
what it wants done it returns. So a whole federation runs in one process on virtual time, and every
interleaving can be tried.

How a message is treated depends on whether its sender has a session:

=============  =======================================  =========================================
message        without a session                        with one
=============  =======================================  =========================================
HELLO          WELCOME, or REJECT                       the session begins anew
BEAT           ERROR need_hello                         reconcile what the worker holds
FETCH          ERROR need_hello                         BLOCK, or ERROR gone / malformed
OFFER          ERROR need_hello                         GRANT, ACK or WAIT (`intake`)
PART           ERROR need_hello                         into the spool (`intake`)
FAIL           ERROR need_hello                         the task is free again
BYE            nothing                                  the session ends, its tasks are free
ENROLL         ERROR forbidden                          ERROR forbidden
=============  =======================================  =========================================

Over a connection that was made with an invite's key, ENROLL registers a key, and anything else is forbidden.
Behind one return address there may be another key than before: it has no part in the session of the first.

Anything malformed is answered, counted, and changes nothing; three within a minute end the session and its
connection. So does a flood: each worker, and each peer without a session, has some patience to use (`patience`), and a
message that moves nothing costs some of it.
"""

from fedmq.fedcore import wire
from fedmq.fedcore.config import Config
from fedmq.fedcore.keys import to_text
from fedmq.fedcore.privacy.sampled_workers import Coin

from . import status
from .books import Books
from .evaluating import Evaluating
from .events import (
    Action,
    Adopted,
    Collect,
    Control,
    Drain,
    Enrolled,
    Evaluated,
    Event,
    Folded,
    ModelEncoded,
    PartWritten,
    Peer,
    Received,
    Refused,
    Register,
    Registered,
    Reply,
    Revoked,
    RoundDurable,
    Sealed,
    SendBlock,
    Severed,
    Tick,
    Unreachable,
    UploadOpened,
    VersionDurable,
    Violation,
    Wake,
)
from .handout import Handout
from .intake import Intake
from .measures import Measured, measure
from .operators import Operators
from .peers import Peers
from .progress import Progress
from .rows import Recovered
from .sessions import Worker
from .tasks import TaskIds

TICK_S = 1.0
"""Leases, deadlines, stalls and beats are looked at this often (oftener where `beat_s` is short)."""


class Coordinator:
    """The mind of one federation.

    Parameters
    ----------
    config : Config
        The federation's configuration.
    ids : TaskIds
        Makes and checks task ids; holds this process's boot number.
    federation : str
        The federation's id, as workers know it.
    recovered : Recovered
        What the journal holds; `Recovered()` for a new federation.
    now : float
        Monotonic seconds.
    coin : Coin, optional
        What decides whom a round asks, where the config samples workers.

    Examples
    --------
    >>> mind = Coordinator(Config(), TaskIds(b"f" * 16, b"k" * 32, b"bootboot"), "f" * 32, Recovered(), 0.0)
    >>> hello = wire.Hello(protocol=1, name="ward-3", instance=b"i", boot=b"b")
    >>> [type(action).__name__ for action in mind.handle(Received(b"peer", hello), 0.1)]
    ['Note', 'Send']
    """

    def __init__(
        self,
        config: Config,
        ids: TaskIds,
        federation: str,
        recovered: Recovered,
        now: float,
        coin: Coin | None = None,
    ) -> None:
        self._books = Books(config, ids, federation, recovered, now, coin)
        self._recovered = recovered
        self._peers = Peers(self._books)
        self._operators = Operators(self._books, self._peers)
        self._handout = Handout(self._books)
        self._intake = Intake(self._books)
        self._evaluating = Evaluating(self._books)
        self._progress = Progress(self._books, self._evaluating)
        self._tick_s = min(TICK_S, config.network.beat_s / 2)

    def start(self, now: float) -> list[Action]:
        """The first actions: go on where the journal stopped."""
        self._progress.recovered(self._recovered.evaluations, now)
        self._books.emit(Wake(now + self._tick_s))
        return self._settle(now)

    def handle(self, event: Event, now: float) -> list[Action]:
        """What to do about an event.

        Parameters
        ----------
        event : Event
            One of `fedmq.broker.events`.
        now : float
            Monotonic seconds; never goes back.

        Returns
        -------
        list of Action
            To be carried out in this order.
        """
        if self._books.exited:
            # Its last actions are being carried out; an operator is still answered.
            error = {"ok": False, "error": "the broker is stopping"}
            return [Reply(event.token, error)] if isinstance(event, Control) else []
        match event:
            case Received():
                self._received(event, now)
            case Violation():
                self._peers.violation(event.peer, event.ref, event.reason, now, task=event.task)
            case Unreachable():
                self._peers.unreachable(event.peer, now)
            case Revoked():
                self._peers.revoked(event.user, now)
            case Registered():
                self._registered(event)
            case Enrolled():
                self._books.enrolled = event
            case Severed():
                self._peers.severed(now)
            case Tick():
                self._tick(now)
            case UploadOpened():
                self._intake.opened(event, now)
            case PartWritten():
                self._intake.written(event, now)
            case Sealed():
                self._intake.sealed(event, now)
            case Adopted():
                self._intake.adopted(event, now)
            case Refused():
                self._intake.refused(event, now)
            case Folded():
                self._progress.folded(event)
            case ModelEncoded():
                self._encoded(event)
            case VersionDurable():
                self._progress.version_durable(event.info, now)
            case RoundDurable():
                self._progress.round_durable(event.buffer)
            case Evaluated():
                self._evaluating.evaluated(event)
            case Control():
                self._operators.command(event, now)
            case Drain():
                self._books.draining = True
            case _:
                raise TypeError(f"not an event of the broker's: {type(event).__name__}")
        return self._settle(now)

    def status(self, now: float) -> dict[str, object]:
        """What `fedmq status` shows."""
        return status.report(self._books, now)

    def measure(self, now: float) -> Measured:
        """What `/metrics` and `/readyz` show."""
        return measure(self._books, now)

    def _settle(self, now: float) -> list[Action]:
        self._progress.advance(now)
        self._handout.serve(now)
        actions, self._books.out = self._books.out, []
        return actions

    def _received(self, event: Received, now: float) -> None:
        books, message = self._books, event.message
        if event.invited or isinstance(message, wire.Enroll):
            self._enrol(event)
            return
        if isinstance(message, wire.Hello):
            self._peers.hello(event.peer, event.user or message.name, message, now)
            return
        worker = books.workers.at(event.peer)
        if worker is None or event.user not in (None, worker.id):
            self._peers.stranger(event.peer, message)
            return
        if worker.session is not None and worker.session.suspect:
            books.look_at(worker)
        books.workers.heard(worker, now)
        if not self._peers.bears(worker, message, event.payload, now):
            return
        match message:
            case wire.Beat():
                self._peers.beat(worker, message, now)
            case wire.Fetch():
                self._fetch(worker, event.peer, message, now)
            case wire.Offer():
                self._intake.offer(worker, message, event.payload, now)
            case wire.Part():
                if not self._intake.part(worker, message, event.payload or memoryview(b""), now):
                    reason = "a PART that was not granted"
                    self._peers.violation(event.peer, message.code, reason, now, task=message.task)
            case wire.Fail():
                self._peers.failed(worker, message, now)
            case wire.Bye():
                books.note("info", "worker left", worker=worker.name, reason=wire.clip(message.reason))
                self._peers.gone(worker, "left")
            case _:
                self._peers.violation(event.peer, message.code, "not a worker's message", now)

    def _enrol(self, event: Received) -> None:
        books, message = self._books, event.message
        if not isinstance(message, wire.Enroll):
            reason = "an invite's key may do nothing but ENROLL"
        elif event.user is None:
            reason = "this broker has no keys"
        elif not event.invited:
            reason = "this connection's key is registered already"
        else:
            books.emit(Register(event.peer, event.user, message.key))
            return
        self._peers.forbidden(event.peer, message, reason)

    def _registered(self, event: Registered) -> None:
        books, key = self._books, to_text(event.key)
        if event.refusal:
            books.note("warning", "enrolment refused", key=key, reason=event.refusal)
            self._peers.error(event.peer, wire.Enroll.code, "forbidden", event.refusal)
        else:
            books.note("info", "key enrolled", key=key)
            books.send(event.peer, wire.Enrolled(key=event.key))

    def _fetch(self, worker: Worker, peer: Peer, fetch: wire.Fetch, now: float) -> None:
        books, encoding = self._books, fetch.model or "f32"
        info = books.versions.get(fetch.version)
        kept = info is not None and fetch.version in books.kept
        size = books.downlink.size(info, encoding) if info is not None and kept else None
        if size is None and kept and books.downlink.is_missing(fetch.version, encoding):
            # Of an earlier life of this broker. The same bytes are made again, and the transfer goes on.
            books.emit(*books.downlink.request(fetch.version))
            reason = f"that version is not yet there as {encoding}"
            self._peers.error(peer, fetch.code, "busy", reason, version=fetch.version, offset=fetch.offset)
        elif size is None:
            reason = f"that version is not there as {encoding}" if kept else "that version is no longer kept"
            self._peers.error(peer, fetch.code, "gone", reason, version=fetch.version, offset=fetch.offset)
        elif fetch.offset >= size or fetch.length > books.config.network.block:
            reason = "a FETCH beyond the file or the block size"
            self._peers.violation(peer, fetch.code, reason, now, version=fetch.version, offset=fetch.offset)
        else:
            assert worker.session is not None
            worker.session.sent = now
            length = min(fetch.length, size - fetch.offset)
            books.emit(SendBlock(peer, fetch.version, fetch.offset, length, encoding))

    def _encoded(self, event: ModelEncoded) -> None:
        books = self._books
        books.downlink.made(event)
        if event.version not in books.kept:  # it was collected while it was read: so goes what was made of it
            books.downlink.forget((event.version,))
            books.emit(Collect((event.version,)))
        elif event.refusal:
            advice = 'workers fetch it as f32; model.downlink = "bf16" has the range of float32'
            books.note(
                "warning", "version not encoded", version=event.version, reason=event.refusal, advice=advice
            )

    def _tick(self, now: float) -> None:
        self._peers.silence(now)
        self._peers.call_back(now)
        self._intake.stalled(now)
        self._books.look_at_rested(now)
        self._books.emit(Wake(now + self._tick_s))
