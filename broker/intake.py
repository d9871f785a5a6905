"""Updates coming in: OFFER and PART to accept row and ACK. Pure.

An offer is checked in this order, and what fails changes nothing: the id's MAC (so that nobody learns
anything about other workers' tasks), its staleness, whether it is known, then what it claims of itself
(layout, encoding, size, examples), then, once the bytes are here, digest, form, finiteness and norm. An accepted
update is one journal row, and its ACK follows that row's commit.
"""

import math
from typing import Literal

import msgspec
import xxhash

from fedmq.fedcore import codecs, wire
from fedmq.fedcore.config import AsyncMode, Privacy
from fedmq.fedcore.strategy import rules, staleness
from fedmq.fedcore.wire import Offer

from .books import Books
from .events import (
    Action,
    Adopt,
    Adopted,
    Discard,
    OpenUpload,
    PartWritten,
    Refused,
    Seal,
    Sealed,
    Send,
    Tell,
    UploadOpened,
    VersionDurable,
    WritePart,
)
from .payloads import measured, size_fault
from .rounds import AsyncPlan
from .rows import AcceptRow, EvaluationRow, VersionRow
from .sessions import Worker
from .tally import ANSWERED, reason_label
from .tasks import TaskIds
from .uploads import Stage, Upload

WAIT_S = 1.0
WAIT_MIN_S = 0.05
FROZEN_MAX = 4
"""So many buffers may wait to be folded; beyond, updates wait at the workers."""

Result = Literal["accepted", "duplicate", "stale", "rejected"]


class Intake:
    """Takes in updates on the books it is given."""

    def __init__(self, books: Books) -> None:
        self._books = books
        config = books.config
        mode = config.mode
        self._mean = rules.Mean(
            config.aggregate.weight,
            staleness.make(
                mode.staleness, exponent=mode.exponent, slope=mode.hinge_slope, threshold=mode.hinge_threshold
            )
            if isinstance(mode, AsyncMode)
            else staleness.Constant(),
        )

    def offer(self, worker: Worker, offer: Offer, payload: memoryview | None, now: float) -> None:
        """An OFFER, with or without its bytes."""
        books = self._books
        books.workers.offered(worker, offer.task)
        books.look_at(worker)
        verdict = self._judge(worker, offer)
        if verdict is not None:
            self._refuse(worker, offer.task, *verdict, now)
        elif offer.task in books.known:
            books.count("duplicate")
            self._answer(worker, offer.task, "duplicate", "", now)
        elif offer.kind == "evaluate":
            self._evaluated(worker, offer, now)
        elif self._has_no_place(worker, offer):
            self._wait(worker, offer.task, "place", now)
        elif offer.kind == "fit" and len(books.frozen) >= FROZEN_MAX:
            self._wait(worker, offer.task, "frozen", now)
        elif payload is None:
            self._begin(worker, offer, now)
        else:
            self._inline(worker, offer, payload, now)

    def part(self, worker: Worker, part: wire.Part, payload: memoryview, now: float) -> bool:
        """A PART; False when it is not what was granted."""
        upload = self._books.uploads.get(part.task)
        if upload is None or worker.session is None or upload.peer != worker.session.peer:
            return upload is None  # cancelled while it was under way: no fault of the worker's
        if upload.stage is Stage.HELD:
            return True  # it stood still, and lost its credit just now
        if not payload or not self._books.uploads.take(upload, part.offset, len(payload), now):
            return False
        self._books.emit(WritePart(part.task, part.offset, payload))
        return True

    def opened(self, event: UploadOpened, now: float) -> None:
        """The spool file of an upload is open."""
        uploads = self._books.uploads
        upload = uploads.opened(event.task, event.length, now)
        if upload is None:
            return
        self._books.tally.add("uploads", "resumed" if event.length else "new")
        worker = self._books.workers.get(upload.worker)
        if worker is None or worker.session is None or worker.session.peer != upload.peer:
            uploads.hold(upload)  # it left, or began another session, while the file was opened
        else:
            uploads.extend(upload)
            self._grant(upload, now)
        if upload.written == upload.size:
            self._written(upload, upload.size, now)

    def written(self, event: PartWritten, now: float) -> None:
        """Bytes of an upload are in the spool."""
        upload = self._books.uploads.get(event.task)
        if upload is not None:
            self._written(upload, event.length, now)

    def sealed(self, event: Sealed, now: float) -> None:
        """An upload is complete and durable."""
        books = self._books
        upload = books.uploads.get(event.task)
        if upload is None:
            books.emit(Discard((event.task,)))  # cancelled while it was sealed
            return
        if upload.stage is not Stage.SEALING:
            return  # of bytes that were discarded before these were offered
        worker = books.workers.get(upload.worker)
        assert worker is not None
        offer = upload.offer
        # Much may have happened since the offer was judged.
        verdict = self._judge(worker, offer)
        if event.digest != offer.digest:
            verdict = "rejected", "digest: the bytes are not what was offered"
        elif verdict is None and event.fault:
            verdict = "rejected", event.fault
        elif verdict is None and self._has_no_place(worker, offer):
            books.uploads.put_off(upload)
            self._wait(worker, offer.task, "place", now)
            self._share(now)
            return
        self._end(upload, now, keep=True)
        if verdict is None and offer.kind == "init":
            self._adopt(offer.task, None)
            return
        if verdict is None:
            verdict = self._accept(worker, offer, event.norm or 0.0, None, now)
        if verdict is not None:
            books.emit(Discard((offer.task,)))
            self._refuse(worker, offer.task, *verdict, now)

    def adopted(self, event: Adopted, now: float) -> None:
        """A worker's initial model is version 0's file."""
        books = self._books
        worker = self._holder(event.task)
        if worker is not None:
            books.workers.free(worker, event.task)
        ack = self._ack(worker, event.task, "accepted", "", now)
        books.known[event.task] = event.info.version - 1
        then = (*ack, Discard((event.task,)), Tell(VersionDurable(event.info)))
        books.commit(VersionRow(info=event.info), then=then)

    def refused(self, event: Refused, now: float) -> None:
        """A worker's initial model is of no use."""
        self._books.adopting = None
        self._books.emit(Discard((event.task,)))
        worker = self._holder(event.task)
        if worker is not None:
            self._refuse(worker, event.task, "rejected", event.reason, now)

    def stalled(self, now: float) -> None:
        """Take credit from uploads that stand still, and let others have it."""
        books = self._books
        for upload in books.uploads.stalled(now):
            worker = books.workers.get(upload.worker)
            if worker is not None:
                self._wait(worker, upload.offer.task, "stalled", now)
        for upload in books.uploads.slow(now):
            if books.uploads.extend(upload, however_little=True):
                self._grant(upload, now)
        self._share(now)

    def _judge(self, worker: Worker, offer: Offer) -> tuple[Result, str] | None:
        """What speaks against an offer before its bytes are here; None when nothing does."""
        books = self._books
        claim = TaskIds.read(offer.task)
        if claim is None or claim.kind != offer.kind or claim.version != offer.base:
            return "rejected", "task: not an id of this federation"
        info = books.versions.get(claim.version)
        if offer.kind == "init":
            if not books.ids.check(offer.task, worker.id, b""):
                return "rejected", "task: not this worker's"
            if books.current is not None and offer.task not in books.known:
                return "stale", "the federation has an initial model"
            if offer.size is not None and offer.size > books.config.model.max_bytes:
                return "rejected", f"size: at most {books.config.model.max_bytes} bytes"
            return None
        if claim.version > books.version:
            return "rejected", "task: against a version that this federation does not have"
        if info is None:
            return "stale", "base: that version is too old"
        if not books.ids.check(offer.task, worker.id, info.digest):
            return "rejected", "task: not this worker's, or against another model"
        most = books.config.aggregate.max_examples
        if offer.examples < 1 or offer.examples > most:
            return "rejected", f"examples: 1 to {most}, says aggregate.max_examples"
        return (
            None if offer.kind == "evaluate" or offer.task in books.known else self._judge_fit(worker, offer)
        )

    def _judge_fit(self, worker: Worker, offer: Offer) -> tuple[Result, str] | None:
        books = self._books
        info = books.versions[offer.base]
        if books.complete:
            return "stale", "the federation needs no more updates"
        if isinstance(books.plan, AsyncPlan):
            if books.buffer.number - offer.base > books.max_staleness:
                return "stale", f"base: missed more than {books.max_staleness} versions"
            if books.config.reach and offer.base not in books.kept:  # its file was lost: nothing to mix in
                return "stale", "base: the file of that version is gone"
            if books.capped(worker.id):
                return "stale", "privacy budget: this worker has had its part in as many versions as it may"
            if books.rests(worker.id):
                return "stale", "privacy separation: too soon after this worker's last part in a version"
        elif offer.base != books.buffer.number or not books.plan.wants(worker.id, books.buffer):
            return "stale", "the round is over, or has this worker's update"
        if offer.layout != info.layout:
            return "rejected", "layout: not the model's"
        if offer.encoding is None or not codecs.is_encoding(offer.encoding):
            return "rejected", "encoding: unknown"
        if isinstance(books.config.privacy, Privacy) and offer.encoding != "f32":
            return "rejected", "encoding: f32 where privacy is on"
        fault = size_fault(books.config.aggregate, offer.encoding, info.n, offer.size)
        return ("rejected", fault) if fault else None

    def _has_no_place(self, worker: Worker, offer: Offer) -> bool:
        """Whether an update that is otherwise good has to wait for the next buffer, or a model for another."""
        books, plan = self._books, self._books.plan
        if offer.kind == "init":
            return books.adopting is not None
        if not isinstance(plan, AsyncPlan):
            return False
        if plan.complete(books.buffer):  # full, and not frozen because the broker drains: K, and not more
            return True
        return plan.mode.one_per_worker and worker.id in books.buffer.workers

    def _begin(self, worker: Worker, offer: Offer, now: float) -> None:
        """An OFFER whose bytes are to come."""
        books = self._books
        assert worker.session is not None
        assert offer.size is not None
        upload = books.uploads.get(offer.task)
        if upload is not None and (upload.size, upload.offer.digest) == (offer.size, offer.digest):
            if upload.stage is not Stage.HELD:
                books.uploads.resume(upload, worker.session.peer, now)
                if upload.stage is Stage.MOVING:
                    books.uploads.extend(upload)
                    self._grant(upload, now)
                return
        elif upload is not None:  # other bytes than it offered before: it trained again
            books.discard(offer.task)
            upload = None
        if not books.uploads.room():
            self._wait(worker, offer.task, "credit", now)
            return
        if not (upload or self._fits_on_disk(offer.size)):
            self._wait(worker, offer.task, "disk", now)
            return
        books.uploads.start(worker.id, worker.session.peer, offer, now)
        encoding = offer.encoding or "f32"
        n = books.versions[offer.base].n if offer.kind == "fit" else None
        most = None if n is None else books.config.aggregate.most(encoding, n)
        books.emit(OpenUpload(offer.task, offer.size, encoding, n, most))

    def _fits_on_disk(self, size: int) -> bool:
        """Whether the spool may take so many bytes more.

        It takes what the open buffer needs, whatever that is, while no other waits to be folded: nothing
        else would ever make room.
        """
        books = self._books
        budget = books.config.storage.disk_budget
        if not budget:
            return True
        # Before there is a model, what is needed is one.
        needed = books.plan.needed(books.buffer) if books.current is not None else 1
        if not books.frozen and books.uploads.under_way() < needed:
            return True
        buffers = (*books.frozen, books.buffer)
        spooled = sum(row.size for buffer in buffers for row in buffer.rows if row.inline is None)
        return spooled + books.uploads.announced() + size <= budget

    def _written(self, upload: Upload, length: int, now: float) -> None:
        if self._books.uploads.written(upload, length):
            self._books.emit(Seal(upload.offer.task))
        elif upload.stage is Stage.MOVING and self._books.uploads.extend(upload):
            self._grant(upload, now)

    def _share(self, now: float) -> None:
        for upload in self._books.uploads.starved():
            if self._books.uploads.extend(upload):
                self._grant(upload, now)

    def _grant(self, upload: Upload, now: float) -> None:
        worker = self._books.workers.get(upload.worker)
        if worker is not None:
            upload.granted = now
            message = wire.Grant(task=upload.offer.task, offset=upload.queued, limit=upload.limit)
            self._books.tell(worker, message, now)

    def _end(self, upload: Upload, now: float, *, keep: bool = False) -> None:
        """The transfer is over: its credit goes to others, its bytes too unless they are accepted."""
        self._books.uploads.end(upload.offer.task)
        if not keep:
            self._books.emit(Discard((upload.offer.task,)))
        self._share(now)

    def _inline(self, worker: Worker, offer: Offer, payload: memoryview, now: float) -> None:
        """An OFFER that carries its bytes."""
        if len(payload) > wire.INLINE_MAX or len(payload) != offer.size:
            self._refuse(worker, offer.task, "rejected", "size: not that of the payload", now)
            return
        if xxhash.xxh3_128_digest(payload) != offer.digest:
            self._refuse(worker, offer.task, "rejected", "digest: the bytes are not what was offered", now)
            return
        if offer.kind == "init":
            self._adopt(offer.task, bytes(payload))
            return
        n, aggregate = self._books.versions[offer.base].n, self._books.config.aggregate
        norm, fault = measured(aggregate, offer.encoding or "f32", n, payload)
        if fault:
            self._refuse(worker, offer.task, "rejected", fault, now)
            return
        self._books.discard(offer.task)  # it may have begun to send the same in PARTs
        verdict = self._accept(worker, offer, norm, bytes(payload), now)
        if verdict is not None:
            self._refuse(worker, offer.task, *verdict, now)

    def _adopt(self, task: bytes, inline: bytes | None) -> None:
        """Make version 0 of a worker's model; one at a time, for the second would write over the first."""
        self._books.adopting = task
        self._books.emit(Adopt(task, inline))

    def _accept(
        self, worker: Worker, offer: Offer, norm: float, inline: bytes | None, now: float
    ) -> tuple[Result, str] | None:
        """Put an update into the open buffer, or say what speaks against it now that its norm is known."""
        books = self._books
        private = books.config.privacy is not None
        full = isinstance(books.config.privacy, Privacy)  # a sum of records' gradients has no staleness
        if not private and not math.isfinite(norm):
            return "rejected", "non-finite: the update holds NaN or infinity"
        if not private and norm > books.config.aggregate.max_update_norm:
            return "rejected", f"norm: {norm:.6g} is above {books.config.aggregate.max_update_norm:.6g}"
        tau = books.buffer.number - offer.base
        row = AcceptRow(
            task=offer.task,
            worker=worker.id,
            base=offer.base,
            buffer=books.buffer.number,
            tau=tau,
            weight=1.0 if full else self._mean.share(examples=offer.examples, tau=tau).weight,
            examples=offer.examples,
            norm=norm,
            encoding=offer.encoding or "f32",
            size=offer.size or 0,
            digest=offer.digest or b"",
            inline=inline,
            metrics=offer.metrics,
        )
        books.known[offer.task] = row.buffer
        # The mind has no use for the payload: the fold reads it from the journal.
        books.buffer.add(row if inline is None else msgspec.structs.replace(row, inline=b""))
        books.workers.free(worker, offer.task)
        books.look_at(worker)
        worker.accepted += 1
        worker.failures = 0
        worker.patience.earn()
        books.tally.staleness.add(tau)
        if not private:
            books.tally.norms.add(norm)
        books.count("accepted")
        books.commit(row, then=self._ack(worker, offer.task, "accepted", "", now))
        return None

    def _evaluated(self, worker: Worker, offer: Offer, now: float) -> None:
        books = self._books
        evaluation = books.evaluation
        books.workers.free(worker, offer.task)
        if evaluation is None or evaluation.version != offer.base or worker.id not in evaluation.asked:
            self._answer(worker, offer.task, "stale", "the evaluation is over", now)
        elif worker.id in evaluation.rows:
            self._answer(worker, offer.task, "duplicate", "", now)
        else:
            row = EvaluationRow(
                task=offer.task,
                worker=worker.id,
                version=offer.base,
                examples=offer.examples,
                metrics=offer.metrics,
            )
            evaluation.add(row)
            books.commit(row, then=self._ack(worker, offer.task, "accepted", "", now))

    def _holder(self, task: bytes) -> Worker | None:
        """The worker that has this task."""
        return next((worker for worker in self._books.workers.holders() if task in worker.held), None)

    def _ack(
        self, worker: Worker | None, task: bytes, result: Result, reason: str, now: float
    ) -> tuple[Action, ...]:
        claim = TaskIds.read(task)
        label = reason_label(reason, ANSWERED) if reason else ""
        self._books.tally.add("updates", "unknown" if claim is None else claim.kind, result, label)
        if worker is None or worker.session is None:
            return ()
        worker.session.sent = now
        return (Send(worker.session.peer, wire.Ack(task=task, result=result, reason=wire.clip(reason))),)

    def _wait(self, worker: Worker, task: bytes, reason: str, now: float) -> None:
        """Put an offer off, to come again."""
        self._books.tally.add("waits_sent", reason)
        retry_s = WAIT_S
        if reason == "frozen":  # there is room when a fold has ended
            retry_s = min(max(self._books.fold_s, WAIT_MIN_S), WAIT_S)
        self._books.tell(worker, wire.Wait(task=task, retry_s=retry_s), now)

    def _answer(self, worker: Worker, task: bytes, result: Result, reason: str, now: float) -> None:
        """ACK after everything that was committed before: what it says rests on that."""
        self._books.commit(then=self._ack(worker, task, result, reason, now))

    def _refuse(self, worker: Worker, task: bytes, result: Result, reason: str, now: float) -> None:
        books = self._books
        held = worker.held.get(task)
        if result == "rejected" and held is not None:
            # What it made was of no use, and would be again: not at once.
            books.bench(worker, now)
            books.release(worker, held, f"rejected: {reason}", failed=True)
        else:
            books.workers.free(worker, task)
        books.count(result)
        level = "info" if result == "stale" else "warning"
        books.note(level, f"update {result}", worker=worker.name, reason=reason)
        self._answer(worker, task, result, reason, now)
        books.look_at(worker)
