"""Talk with workers: who gets a session, what each holds, and who is gone. Pure.

HELLO opens a session and BEAT keeps it true: both say what the worker holds, and `_reconcile` brings that
and what the broker believes together. Rules that hold here:

- What a worker lost is free at once; what an earlier life of this broker gave it is taken over while it is
  still wanted, and called back otherwise.
- A session ends by BYE, by two leases of silence, by three protocol errors within a minute, by a flood of
  messages that move nothing, or when its worker opens another. Then everything it had is free, except what is
  on disk already.
- Who floods loses the connection, and for a while gets no session: `patience`.
"""

from typing import Literal

from fedmq.fedcore import wire

from .books import Books
from .events import Drop, Peer
from .rounds import SyncPlan
from .sessions import Refusal, Worker, missing
from .tally import RELEASED, reason_label
from .tasks import TaskIds
from .uploads import Stage

NOT_ITS_FAULT = ("paused", "deadline", "version ")
"""How a FAIL begins that says nothing about the app: such a worker is not left alone for a while."""

FLOOD = "too many messages that moved nothing"
STRANGERS_MAX = 200
"""Messages without a session that one connection may send between two ticks: what a worker had on its way when
the broker was started anew is less."""
HELLO_COST = 10.0
FREE_BYTES = 4096
"""A PART or a BLOCK of so many bytes is work, not talk: credit limits those."""
STRAY_BYTES = 64 * 1024
"""What comes of an update that is not awaited is thrown away, and costs by its size."""

ErrorCode = Literal["need_hello", "gone", "busy", "malformed", "forbidden"]


class Peers:
    """Keeps the books on who is there."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._violations: dict[Peer, list[float]] = {}
        self._strangers: dict[Peer, int] = {}
        """How many messages came over connections without a session, since the last tick."""

    def hello(self, peer: Peer, worker_id: str, hello: wire.Hello, now: float) -> None:
        """Open a session, or say why not."""
        books = self._books
        books.awaited.discard(worker_id)
        refusal = self._refusal(worker_id, hello, now)
        if refusal is not None:
            code = refusal.why if isinstance(refusal, wire.Reject) else "shutdown"
            books.tally.add("hellos_refused", code)
            books.send(peer, refusal)
            books.emit(Drop(peer))
            return
        before = books.workers.at(peer)
        if before is not None and before.id != worker_id:
            self.gone(before, "the connection took another name")
        old = books.workers.get(worker_id)
        old_peer = old.session.peer if old is not None and old.session is not None else None
        opened = books.workers.open(worker_id, peer, hello, now)
        if isinstance(opened, Refusal):
            books.tally.add("hellos_refused", opened.value)
            reason = "another program with this name is connected"
            retry_s = books.config.network.lease_s
            books.send(peer, wire.Reject(why=opened.value, reason=reason, retry_s=retry_s))
            self._strange(peer)
            return
        books.tally.add("sessions_opened", "no" if old is None else "yes")
        if old_peer is not None:
            books.tally.add("sessions_closed", "replaced")
            books.uploads.hold_all(old_peer)
            if old_peer != peer:
                books.emit(Drop(old_peer))
        if old is None and before is not None:
            opened.patience = before.patience  # another name over one connection
        if not self._spend(opened, HELLO_COST + self._unknown(opened, hello.tasks, hello.outbox), now):
            return
        self._violations.pop(peer, None)
        self._strangers.pop(peer, None)
        network = books.config.network
        books.note("info", "worker connected", worker=opened.name, resumed=old is not None)
        books.tell(
            opened,
            wire.Welcome(
                protocol=wire.PROTOCOL,
                federation=books.federation,
                beat_s=network.beat_s,
                lease_s=network.lease_s,
                block=network.block,
                inline_max=wire.INLINE_MAX,
                credit=books.credit,
                max_model_bytes=books.config.model.max_bytes,
            ),
            now,
        )
        for held in opened.held.values():
            held.seq = 0  # of an earlier session: whatever it does not list now, it does not have
        for upload in books.uploads.of(opened.id):
            if upload.offer.task not in hello.outbox and upload.stage is not Stage.SEALING:
                books.discard(upload.offer.task)  # it has not the rest of the bytes any more
        self._reconcile(opened, hello.tasks, hello.outbox, now)

    def beat(self, worker: Worker, beat: wire.Beat, now: float) -> None:
        """What a worker says of itself: its free slots and what it holds."""
        session = worker.session
        assert session is not None
        if beat.seen is not None:
            session.seen = max(session.seen, min(beat.seen, session.seq))
        if beat.free is not None:
            session.free = beat.free
        if beat.tasks is not None and beat.outbox is not None:
            self._reconcile(worker, beat.tasks, beat.outbox, now)
        self._books.look_at(worker)

    def failed(self, worker: Worker, fail: wire.Fail, now: float) -> None:
        """The client app failed on a task."""
        books = self._books
        upload = books.uploads.get(fail.task)
        if upload is not None and upload.worker == worker.id:
            books.discard(fail.task)
        held = worker.held.get(fail.task)
        if held is None:
            return
        books.count("failed")
        # An evaluation that fails is left out of its metrics; training need not wait for it.
        if held.kind != "evaluate" and not fail.reason.startswith(NOT_ITS_FAULT):
            books.bench(worker, now)
        books.release(worker, held, f"failed: {wire.clip(fail.reason)}", failed=True)

    def unreachable(self, peer: Peer, now: float) -> None:
        """There is no route to a peer: whoever it was is suspect until it is heard again."""
        worker = self._books.workers.at(peer)
        if worker is not None and worker.session is not None:
            if not worker.session.suspect:
                self._books.tally.add("suspects", "unreachable")
            worker.session.suspect = True
            self._books.uploads.hold_all(peer)

    def stranger(self, peer: Peer, message: wire.Message) -> None:
        """A message over a connection without a session: HELLO comes first."""
        if not isinstance(message, wire.Bye):
            self.error(peer, message.code, "need_hello", "say HELLO first")
        self._strange(peer)

    def forbidden(self, peer: Peer, message: wire.Message, reason: str) -> None:
        """A message that its sender's key, or the lack of one, does not allow."""
        self.error(peer, message.code, "forbidden", reason)
        self._strange(peer)

    def bears(self, worker: Worker, message: wire.Message, payload: memoryview | None, now: float) -> bool:
        """Take what a message costs from its sender's patience; False when the session is over for it."""
        books = self._books
        cost = 1.0
        match message:
            case wire.Beat():
                cost += self._unknown(worker, message.tasks or (), message.outbox or ())
            case wire.Fetch() if message.length >= FREE_BYTES:
                info = books.versions.get(message.version)
                cost = 0.0 if info is not None and message.offset + FREE_BYTES <= info.size else 1.0
            case wire.Part():
                size = 0 if payload is None else len(payload)
                upload = books.uploads.get(message.task)
                if upload is None or upload.stage is not Stage.MOVING:
                    cost += size / STRAY_BYTES
                elif size >= FREE_BYTES or message.offset + size == upload.size:
                    cost = 0.0
        return self._spend(worker, cost, now)

    def call_back(self, now: float) -> None:
        """Take back tasks whose update would be too stale by now: a worker that never answers must not keep them."""
        books = self._books
        oldest = books.buffer.number - books.max_staleness
        if isinstance(books.plan, SyncPlan) or oldest <= 0:
            return
        for worker in books.workers.holders():
            late = [held for held in worker.held.values() if held.kind == "fit" and held.version < oldest]
            for held in late:
                upload = books.uploads.get(held.task)
                if upload is None or upload.stage is Stage.HELD:
                    books.discard(held.task)
                    books.release(worker, held, "stale: it took too long")
                    books.tally.add("cancels_sent", "stale")
                    books.tell(worker, wire.Cancel(task=held.task, reason="its base is too old"), now)

    def revoked(self, worker_id: str, now: float) -> None:
        """A key may not connect any more: its session is over, and what it had begun to send goes."""
        books = self._books
        worker = books.workers.get(worker_id)
        books.awaited.discard(worker_id)
        if worker is None:
            return
        for upload in books.uploads.of(worker_id):
            books.discard(upload.offer.task)
        if worker.session is not None:
            peer = worker.session.peer
            books.note("warning", "worker revoked", worker=worker.name, key=worker_id)
            books.tell(worker, wire.Bye(reason="revoked"), now)
            books.emit(Drop(peer))
            self.gone(worker, "revoked")

    def severed(self, now: float) -> None:
        """All connections are gone, through nobody's fault: nobody is given a task before it is heard again."""
        for _, session in list(self._books.workers.sessions()):
            self.unreachable(session.peer, now)

    def gone(self, worker: Worker, reason: str) -> None:
        """A session is over: everything that it had is free."""
        books = self._books
        if worker.session is not None:
            books.uploads.hold_all(worker.session.peer)
            self._violations.pop(worker.session.peer, None)
            books.tally.add("sessions_closed", reason_label(reason, RELEASED))
            books.workers.close(worker)
        for held in list(worker.held.values()):
            books.release(worker, held, reason)
        if isinstance(books.plan, SyncPlan) and books.plan.wants(worker.id, books.buffer):
            # It was asked, and had not even got its task.
            books.lose(books.plan, worker.id, books.buffer.number, reason)
        if books.evaluation is not None:
            books.evaluation.drop(worker.id)
        books.queue.pop(worker.id, None)
        oldest = books.workers.forgettable()
        if oldest is not None:
            for upload in books.uploads.of(oldest.id):
                books.discard(upload.offer.task)
            books.queue.pop(oldest.id, None)
            books.workers.forget(oldest)

    def silence(self, now: float) -> None:
        """What time does: leases, beats, and violations that are long ago."""
        books = self._books
        suspect, gone = books.workers.silent(now)
        for worker in suspect:
            books.tally.add("suspects", "silent")
            books.note("info", "worker silent", worker=worker.name)
        for worker in gone:
            books.note(
                "warning", "worker gone", worker=worker.name, silent_s=2 * books.config.network.lease_s
            )
            self.gone(worker, "silent for two leases")
        for session in books.workers.beats(now):
            session.sent = now
            books.send(session.peer, wire.Beat())
        self._strangers.clear()
        edge = now - wire.VIOLATIONS_WINDOW_S
        self._violations = {peer: times for peer, times in self._violations.items() if times[-1] > edge}

    def violation(
        self,
        peer: Peer,
        ref: int,
        reason: str,
        now: float,
        *,
        task: bytes | None = None,
        version: int | None = None,
        offset: int | None = None,
    ) -> None:
        """Answer and count a protocol error; three within a minute end the session."""
        books = self._books
        books.count("malformed")
        books.tally.add("protocol_errors")
        recent = [t for t in self._violations.get(peer, ()) if now - t < wire.VIOLATIONS_WINDOW_S]
        self._violations[peer] = [*recent, now]
        worker = books.workers.at(peer)
        name = None if worker is None else worker.name
        reason = wire.clip(reason)
        books.note("warning", "protocol error", worker=name, reason=reason)
        self.error(peer, ref, "malformed", reason, task=task, version=version, offset=offset)
        if len(recent) + 1 >= wire.VIOLATIONS_MAX:
            del self._violations[peer]
            if worker is not None:
                books.note("warning", "session dropped", worker=name, reason="too many protocol errors")
                self.gone(worker, "too many protocol errors")
            books.emit(Drop(peer))

    def error(
        self,
        peer: Peer,
        ref: int,
        why: ErrorCode,
        reason: str,
        *,
        task: bytes | None = None,
        version: int | None = None,
        offset: int | None = None,
    ) -> None:
        """Tell a peer that its message of kind `ref` could not be served."""
        self._books.send(
            peer,
            wire.Error(ref=ref, why=why, reason=wire.clip(reason), task=task, version=version, offset=offset),
        )

    def _refusal(self, worker_id: str, hello: wire.Hello, now: float) -> wire.Message | None:
        books = self._books
        if hello.protocol != wire.PROTOCOL:
            reason = f"this broker speaks protocol {wire.PROTOCOL}, not {hello.protocol}"
            return wire.Reject(why="wrong_protocol", reason=reason, fatal=True)
        if worker_id in books.evicted:
            return wire.Reject(why="revoked", reason="evicted by an operator", fatal=True)
        if books.finished is not None:
            return wire.Reject(why="finished", reason=wire.clip(books.finished), fatal=True)
        if books.draining:
            return wire.Bye(reason="shutdown")
        known = books.workers.get(worker_id)
        if known is not None and (rest_s := known.patience.rest_s(now)):
            return wire.Reject(why="full", reason=FLOOD, retry_s=rest_s)
        return None

    def _unknown(self, worker: Worker, tasks: tuple[bytes, ...], outbox: tuple[bytes, ...]) -> int:
        """How many of these tasks are not on the books: each is looked at, and perhaps answered."""
        return sum(task not in worker.held for task in (*tasks, *outbox))

    def _spend(self, worker: Worker, cost: float, now: float) -> bool:
        if not cost or worker.patience.spend(cost, now):
            return True
        assert worker.session is not None
        peer = worker.session.peer
        rest_s = worker.patience.rest_s(now)
        self._books.note("warning", "session dropped", worker=worker.name, reason=FLOOD, rest_s=rest_s)
        self.gone(worker, FLOOD)
        self._flooded(peer, worker)
        return False

    def _strange(self, peer: Peer) -> None:
        """A message more over a connection without a session."""
        self._strangers[peer] = said = self._strangers.get(peer, 0) + 1
        if said >= STRANGERS_MAX:
            del self._strangers[peer]
            self._flooded(peer, None)

    def _flooded(self, peer: Peer, worker: Worker | None) -> None:
        books = self._books
        books.count("flooded")
        books.tally.add("floods")
        if worker is None:
            books.note("warning", "connection dropped", worker=None, reason=FLOOD)
        books.emit(Drop(peer))

    def _reconcile(
        self, worker: Worker, tasks: tuple[bytes, ...], outbox: tuple[bytes, ...], now: float
    ) -> None:
        """Bring what the worker holds and what the broker believes together."""
        books = self._books
        for held in missing(worker, (*tasks, *outbox)):
            books.release(worker, held, "lost by the worker")
        for task in tasks:
            if task not in worker.held and not self._adopt(worker, task, now):
                books.tally.add("cancels_sent", "unwanted")
                books.tell(worker, wire.Cancel(task=task, reason="not wanted any more"), now)
        for task in outbox:
            if task not in worker.held:
                self._adopt(worker, task, now)
            books.workers.finished(worker, task)
        books.look_at(worker)

    def _adopt(self, worker: Worker, task: bytes, now: float) -> bool:
        """Take over a task that an earlier life of this broker handed out, if it is still wanted."""
        books = self._books
        claim = TaskIds.read(task)
        if claim is None or task in books.known:
            return False
        info = books.versions.get(claim.version)
        digest = b"" if claim.kind == "init" or info is None else info.digest
        if not books.ids.check(task, worker.id, digest):
            return False
        if claim.kind == "init":
            wanted = books.current is None
        elif claim.kind == "evaluate":
            evaluation = books.evaluation
            wanted = (
                evaluation is not None
                and evaluation.version == claim.version
                and worker.id in evaluation.todo
            )
            if wanted and evaluation is not None:
                evaluation.todo.pop(worker.id)
        elif isinstance(books.plan, SyncPlan):
            wanted = self._in_round(worker, claim.version)
        else:
            missed = books.buffer.number - claim.version
            wanted = info is not None and missed <= books.max_staleness and not books.complete
        if wanted:
            books.tally.add("tasks_adopted", claim.kind)
            books.workers.adopt(worker, task, claim.kind, claim.version, now)
        return wanted

    def _in_round(self, worker: Worker, version: int) -> bool:
        """Whether the open round is this version's, and needs this worker's update."""
        books = self._books
        return (
            isinstance(books.plan, SyncPlan)
            and version == books.buffer.number
            and not worker.holding("fit", version)
            and books.plan.wants(worker.id, books.buffer)
        )
