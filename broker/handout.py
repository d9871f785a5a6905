"""Tasks going out: who gets what, next. Pure.

A worker is looked at when something about it changed (it came, it has a free slot, a round wants it), not
on every event, so that ten thousand idle workers cost nothing. One look gives at most one task; a worker
with room for more goes to the end of the queue, so that tasks spread before they pile up.
"""

import math

from fedmq.fedcore import wire
from fedmq.fedcore.wire import TaskKind

from .books import Books
from .events import SendTask
from .rounds import AsyncPlan
from .rows import VersionInfo
from .sessions import Worker
from .tasks import task_seed

_NO_MODEL = VersionInfo(version=0, digest=b"", size=0, layout=b"", n=0)
"""What an `init` task is against."""


class Handout:
    """Hands out tasks on the books it is given."""

    def __init__(self, books: Books) -> None:
        self._books = books

    def serve(self, now: float) -> None:
        """Give tasks to the workers in the queue, as far as the mode allows."""
        books = self._books
        if not books.handing_out:
            return
        self._evaluations(now)
        while books.queue and not self._saturated():
            worker = books.workers.get(next(iter(books.queue)))
            assert worker is not None
            del books.queue[worker.id]
            if self._next(worker, now):
                books.look_at(worker)

    def _saturated(self) -> bool:
        """Whether nobody could be given a task, whoever it is: the queue stays as it is."""
        books, plan, current = self._books, self._books.plan, self._books.current
        if current is None:
            holders = books.workers.holders()
            return books.adopting is not None or any(worker.holding("init") for worker in holders)
        if books.complete or books.downlink.is_pending(current.version):
            return True
        if isinstance(plan, AsyncPlan):
            # Where too many buffers wait to be folded, an update could only be stale.
            late = books.buffer.number - current.version > books.max_staleness
            return late or books.workers.busy >= plan.mode.concurrency
        return plan.round is None or not plan.round.durable

    def _evaluations(self, now: float) -> None:
        """Evaluate tasks come first, and do not count as busy: they are short, and a version waits for them."""
        books = self._books
        evaluation = books.evaluation
        if evaluation is None or not evaluation.ready or books.downlink.is_pending(evaluation.version):
            return
        ready, evaluation.ready = evaluation.ready, {}
        for worker_id in ready:
            worker = books.workers.get(worker_id)
            if worker is not None and worker_id in evaluation.todo and worker.can("evaluate", now):
                evaluation.todo.pop(worker_id)
                left = evaluation.deadline_at - now
                self._hand(worker, "evaluate", books.versions[evaluation.version], now, left)

    def _next(self, worker: Worker, now: float) -> bool:
        """Give this worker one task if there is one for it."""
        books = self._books
        current, plan = books.current, books.plan
        if current is None:
            return self._init(worker, now)
        if not worker.can("fit", now):
            return False
        if isinstance(plan, AsyncPlan):
            if worker.full(plan.mode.tasks_per_worker) or books.capped(worker.id) or books.rests(worker.id):
                return False
            if plan.mode.one_per_worker and (worker.id in books.buffer.workers or worker.holding("fit")):
                return False
            self._hand(worker, "fit", current, now, 0.0, worker.nth(current.version))
            return True
        if plan.round is None or worker.holding("fit", current.version):
            return False
        if not plan.wants(worker.id, books.buffer):
            return False
        deadline_at = plan.round.deadline_at
        self._hand(worker, "fit", current, now, deadline_at - now if deadline_at < math.inf else 0.0)
        return True

    def _init(self, worker: Worker, now: float) -> bool:
        books = self._books
        if books.config.model.source != "first-worker" or not worker.can("init", now):
            return False
        self._hand(worker, "init", _NO_MODEL, now, 0.0)
        return True

    def _hand(
        self, worker: Worker, kind: TaskKind, info: VersionInfo, now: float, deadline_s: float, nth: int = 0
    ) -> None:
        books = self._books
        session = worker.session
        assert session is not None
        task = books.ids.make(kind, worker.id, info.version, info.digest)
        held = books.workers.hold(worker, task, kind, info.version, now)
        books.tally.add("tasks_sent", kind)
        aggregate = books.config.aggregate
        file = books.downlink.file(info, session)
        encoding = aggregate.encoding if aggregate.encoding in session.encodings else "f32"
        message = wire.Task(
            task=task,
            seq=held.seq,
            kind=kind,
            version=info.version,
            size=file.size,
            digest=file.digest or None,
            layout=info.layout or None,
            encoding=encoding,
            keep=aggregate.most(encoding, info.n) if kind == "fit" else None,
            feedback=True if aggregate.feeds_back and encoding != "f32" and kind == "fit" else None,
            model=None if file.encoding == "f32" else file.encoding,
            seed=task_seed(books.config.federation.seed, worker.name, info.version, nth),
            deadline_s=max(deadline_s, 0.0),
            config=books.config.task,
        )
        session.sent = now
        if 0 < file.size <= wire.TASK_INLINE_MAX and session.given != info.version:
            session.given = info.version
            books.emit(SendTask(session.peer, message))
        else:
            books.send(session.peer, message)
