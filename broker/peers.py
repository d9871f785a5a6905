"""Talk with workers: who gets a session, what each holds, and who is gone. Pure.

HELLO opens a session and BEAT keeps it true: both say what the worker holds, and `_reconcile` brings that
and what the broker believes together. Rules that hold here:

- What a worker lost is free at once; what an earlier life of this broker gave it is taken over while it is
  still wanted, and called back otherwise.
- A session ends by BYE, by two leases of silence, by three protocol errors within a minute, or when its
  worker opens another. Then everything it had is free, except what is on disk already.
"""

from typing import Literal

from fedmq.fedcore import wire

from .books import Books
from .events import Drop, Peer
from .rounds import SyncPlan
from .sessions import Refusal, Worker, missing
from .tasks import TaskIds
from .uploads import Stage

NOT_ITS_FAULT = ("paused", "deadline", "version ")
"""How a FAIL begins that says nothing about the app: such a worker is not left alone for a while."""

ErrorCode = Literal["need_hello", "gone", "busy", "malformed", "forbidden"]


class Peers:
    """Keeps the books on who is there."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._violations: dict[Peer, list[float]] = {}

    def hello(self, peer: Peer, worker_id: str, hello: wire.Hello, now: float) -> None:
        """Open a session, or say why not."""
        books = self._books
        books.awaited.discard(worker_id)
        refusal = self._refusal(worker_id, hello)
        if refusal is not None:
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
            reason = "another program with this name is connected"
            retry_s = books.config.network.lease_s
            books.send(peer, wire.Reject(why=opened.value, reason=reason, retry_s=retry_s))
            return
        if old_peer is not None:
            books.uploads.hold_all(old_peer)
            if old_peer != peer:
                books.emit(Drop(old_peer))
        self._violations.pop(peer, None)
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
        if not fail.reason.startswith(NOT_ITS_FAULT):
            worker.bench(now)
        books.release(worker, held, f"failed: {wire.clip(fail.reason)}", failed=True)

    def unreachable(self, peer: Peer, now: float) -> None:
        """There is no route to a peer: whoever it was is suspect until it is heard again."""
        worker = self._books.workers.at(peer)
        if worker is not None and worker.session is not None:
            worker.session.suspect = True
            self._books.uploads.hold_all(peer)

    def gone(self, worker: Worker, reason: str) -> None:
        """A session is over: everything that it had is free."""
        books = self._books
        if worker.session is not None:
            books.uploads.hold_all(worker.session.peer)
            self._violations.pop(worker.session.peer, None)
            books.workers.close(worker)
        for held in list(worker.held.values()):
            books.release(worker, held, reason)
        if isinstance(books.plan, SyncPlan) and books.plan.wants(worker.id, books.buffer):
            # It was asked, and had not even got its task.
            books.plan.lost(worker.id, books.buffer.number, reason, failed=False)
        if books.evaluation is not None:
            books.evaluation.drop(worker.id)
        books.queue.pop(worker.id, None)

    def silence(self, now: float) -> None:
        """What time does: leases, beats, and violations that are long ago."""
        books = self._books
        suspect, gone = books.workers.silent(now)
        for worker in suspect:
            books.note("info", "worker silent", worker=worker.name)
        for worker in gone:
            books.note(
                "warning", "worker gone", worker=worker.name, silent_s=2 * books.config.network.lease_s
            )
            self.gone(worker, "silent for two leases")
        for session in books.workers.beats(now):
            session.sent = now
            books.send(session.peer, wire.Beat())
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

    def _refusal(self, worker_id: str, hello: wire.Hello) -> wire.Message | None:
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
        return None

    def _reconcile(
        self, worker: Worker, tasks: tuple[bytes, ...], outbox: tuple[bytes, ...], now: float
    ) -> None:
        """Bring what the worker holds and what the broker believes together."""
        books = self._books
        for held in missing(worker, (*tasks, *outbox)):
            books.release(worker, held, "lost by the worker")
        for task in tasks:
            if task not in worker.held and not self._adopt(worker, task, now):
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
