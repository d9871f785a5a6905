"""What must never happen, looked at while it runs and when it has ended.

- An ACK rests on what is durable. What was acknowledged is in exactly one version, or waits for one.
- A version consumes exactly the rows of its frozen buffer, however often it is folded.
- No update counts twice; its staleness and its buffer are as the mode allows.
- A task goes out against a version, and in a round, that a crash cannot take back.
- A worker keeps a result until it has the broker's word for it.
- Credit stays within its budget, and a worker never holds more tasks than it has slots.
"""

from typing import Any

from fedmq.broker.coordinator import Coordinator
from fedmq.broker.events import Fold
from fedmq.broker.rows import (
    AcceptRow,
    EvaluationRow,
    FinishRow,
    FreezeRow,
    Recovered,
    RoundRow,
    Row,
    VersionRow,
)
from fedmq.broker.sessions import Phase
from fedmq.broker.tasks import TaskIds
from fedmq.fedcore import wire
from fedmq.fedcore.config import AsyncMode, Config, SyncMode
from fedmq.worker.entry import Entry
from fedmq.worker.events import Event as WorkerEvent
from fedmq.worker.events import Received, Stored


class Audit:
    """Watches one federation.

    Parameters
    ----------
    config : Config
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._read = 0
        self.accepted: dict[bytes, AcceptRow] = {}
        self.buffers: dict[int, dict[bytes, AcceptRow]] = {}
        self.acknowledged: set[bytes] = set()
        self.versions: dict[int, VersionRow] = {}
        self.finish: str | None = None
        self._frozen: set[int] = set()
        self._rounds: dict[int, RoundRow] = {}
        self._evaluations: set[bytes] = set()

    def restarted(self, recovered: Recovered, rows: list[Row]) -> None:
        """What a new life finds is what the ones before promised."""
        self._index(rows)
        waiting = [row.task for row in (*recovered.frozen, *recovered.open)]
        made = [row.task for row in self.accepted.values() if row.buffer + 1 in self.versions]
        assert len(set(waiting + made)) == len(waiting + made), "an update is in two places"
        assert self.acknowledged <= {*waiting, *made}, "an acknowledged update is gone"
        assert recovered.privacy_steps == self._spent(), "the ledger forgot what was released"

    def broker_sends(self, message: wire.Message, rows: list[Row]) -> None:
        """The broker says something to a worker."""
        self._index(rows)
        match message:
            case wire.Ack(task=task, result="accepted" | "duplicate" as result):
                claim = TaskIds.read(task)
                assert claim is not None
                if claim.kind == "fit":
                    assert task in self.accepted, f"{result} is said of an update that is not durable"
                    if result == "accepted":
                        self.acknowledged.add(task)
                elif claim.kind == "evaluate":
                    assert task in self._evaluations, f"{result} is said of an answer that is not durable"
                else:
                    assert 0 in self.versions, "the initial model is not durable"
            case wire.Task(kind="fit" | "evaluate" as kind, version=version):
                assert version in self.versions, "a task against a version that is not durable"
                assert self.finish is None, "a task after the end"
                if kind == "fit" and isinstance(self._config.mode, SyncMode):
                    assert version in self._rounds, "a task in a round that is not durable"

    def folding(self, fold: Fold, rows: list[Row]) -> None:
        """A buffer is about to be folded."""
        self._index(rows)
        assert fold.buffer in self._frozen, "a buffer is folded that is not frozen"
        assert fold.base == self.versions[fold.buffer].info, "a buffer is folded onto another version"
        assert len({row.task for row in fold.rows}) == len(fold.rows), "an update is folded twice"
        assert {row.task for row in fold.rows} == set(self.buffers.get(fold.buffer, ())), "other rows"

    def discarded(self, tasks: tuple[bytes, ...], rows: list[Row]) -> None:
        """Payloads are deleted."""
        self._index(rows)
        for task in tasks:
            row = self.accepted.get(task)
            needed = row is not None and row.inline is None and row.buffer + 1 not in self.versions
            assert not needed, "a payload is deleted that is still to be folded"

    def adopting(self, rows: list[Row]) -> None:
        """A worker's file becomes version 0's."""
        self._index(rows)
        assert 0 not in self.versions, "version 0 is written over"

    def look(self, mind: Coordinator) -> None:
        """The mind's books add up."""
        books: Any = mind._books
        uploads = books.uploads
        assert 0 <= uploads.in_flight() <= self._config.network.credit_budget, "credit"
        for upload in uploads._uploads.values():
            assert 0 <= upload.written <= upload.queued <= upload.limit <= upload.size, "an upload's credit"
        held = [h for worker in books.workers for h in worker.held.values()]
        assert len({h.task for h in held}) == len(held), "a task is owned twice"
        busy = sum(h.kind == "fit" and h.phase is Phase.SENT for h in held)
        assert books.workers.busy == busy, f"{busy} fit tasks are out, counted as {books.workers.busy}"

    def worker_holds(self, name: str, tasks: int, slots: int) -> None:
        """A worker was given a task."""
        assert tasks <= slots, f"{name} has {slots} slots and was given {tasks} tasks"

    def worker_forgets(self, task: bytes, because: WorkerEvent) -> None:
        """A worker deletes a result: only the broker's word allows it, or that nobody wants it any more."""
        match because:
            case Received(message=wire.Ack(task=of) | wire.Cancel(task=of)) | Stored(entry=Entry(task=of)):
                assert of == task, "a worker forgets another result"
            case _:
                raise AssertionError(f"a worker forgets a result because of {type(because).__name__}")

    def ended(self, rows: list[Row]) -> None:
        """The federation said that it is finished."""
        self._index(rows)
        target = self._config.stop.versions
        assert self.finish is not None, "nothing durable says that it is finished"
        assert max(self.versions) == target, f"finished at version {max(self.versions)}, not {target}"
        for row in self.accepted.values():
            version = self.versions.get(row.buffer + 1)
            assert version is None or version.updates == len(self.buffers[row.buffer])
        assert self.acknowledged <= set(self.accepted)

    def contents(self) -> dict[int, list[tuple[str, int]]]:
        """What each version was made of: workers, and their bases."""
        return {
            version: sorted((row.worker, row.base) for row in self.buffers.get(version - 1, {}).values())
            for version in sorted(self.versions)
            if version
        }

    def _spent(self) -> int:
        return sum(row.privacy_steps for row in self.versions.values())

    def _index(self, rows: list[Row]) -> None:
        """Read the rows that became durable since the last look."""
        for row in rows[self._read :]:
            match row:
                case VersionRow():
                    self.versions[row.info.version] = row
                    if row.info.version:
                        assert row.info.version - 1 in self._frozen, "a version of an open buffer"
                case AcceptRow():
                    self._accept(row)
                case FreezeRow():
                    assert row.buffer not in self._frozen, "a buffer is frozen twice"
                    self._frozen.add(row.buffer)
                case RoundRow():
                    assert row.buffer in self.versions, "a round on a version that is not durable"
                    before = self._rounds.get(row.buffer)
                    assert before is None or set(before.cohort) <= set(row.cohort), "a round lost a member"
                    self._rounds[row.buffer] = row
                case EvaluationRow():
                    assert row.task not in self._evaluations, "an answer counts twice"
                    self._evaluations.add(row.task)
                case FinishRow():
                    self.finish = row.reason
        self._read = len(rows)

    def _accept(self, row: AcceptRow) -> None:
        assert row.task not in self.accepted, "an update is accepted twice"
        assert row.buffer not in self._frozen, "an update for a frozen buffer"
        assert row.tau == row.buffer - row.base >= 0, "staleness"
        buffer = self.buffers.setdefault(row.buffer, {})
        mode = self._config.mode
        if isinstance(mode, AsyncMode):
            assert row.tau <= mode.max_staleness, "an update that is too stale"
            alone = mode.one_per_worker
        else:
            assert row.tau == 0, "an update of another round"
            assert row.worker in self._rounds[row.buffer].cohort, "an update of a worker that was not asked"
            alone = True
        assert not (alone and any(r.worker == row.worker for r in buffer.values())), "two of one worker"
        self.accepted[row.task] = buffer[row.task] = row
