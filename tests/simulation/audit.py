"""What must never happen, looked at while it runs and when it has ended.

- An ACK rests on what is durable. What was acknowledged is in exactly one version, or waits for one.
- A version consumes exactly the rows of its frozen buffer, and has the bits that `recompute` finds for them, made
  from what the workers made; folded again after a crash it has the same.
- No update counts twice; its staleness, weight and buffer are as the mode allows.
- A private version costs one step of the ledger before anybody can see it. Where workers are charged, each is charged
  for just the versions that it is in, with each version, and is in none too often or too soon again.
- Where a coin decides whom a round asks, nobody else is asked, whatever was killed (`sample`). A clip norm that moves
  is what the versions before made of it.
- A task goes out against a version, and in a round, that a crash cannot take back.
- A worker keeps a result until it has the broker's word for it.
- Credit, memory and disk stay within their budgets, and a worker never holds more tasks than it has slots.
"""

import math
from typing import Any

import xxhash

from fedmq.broker.coordinator import Coordinator
from fedmq.broker.events import Fold, Folded
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
from fedmq.broker.uploads import Stage
from fedmq.fedcore import wire
from fedmq.fedcore.config import AsyncMode, SampledPrivacy, SyncMode, WorkerPrivacy
from fedmq.worker.entry import Entry
from fedmq.worker.events import Event as WorkerEvent
from fedmq.worker.events import Received, Stored

from .parts import Parts
from .recompute import Chain, decoded, weight_of
from .recompute_noise import Noise
from .sample import Sample
from .scenario import Scenario


class Audit:
    """Watches one federation.

    Parameters
    ----------
    scenario : Scenario
    initial : bytes or None
        The file of version 0, where no worker makes it.
    """

    def __init__(self, scenario: Scenario, initial: bytes | None) -> None:
        self._scenario = scenario
        self._config = config = scenario.config
        self._read = 0
        self.accepted: dict[bytes, AcceptRow] = {}
        self.buffers: dict[int, dict[bytes, AcceptRow]] = {}
        self.acknowledged: set[bytes] = set()
        self.versions: dict[int, VersionRow] = {}
        self.finish: str | None = None
        self.largest_upload = 0
        self.refolded = 0
        """How often a buffer was folded again."""
        self._frozen: set[int] = set()
        self._rounds: dict[int, RoundRow] = {}
        self._evaluations: set[bytes] = set()
        self._repeated: set[bytes] = set()
        self._made: dict[tuple[bytes, bytes | None], tuple[Entry, bytes]] = {}
        self._folded: dict[int, bytes] = {}
        self._released: set[int] = set()
        self._rode: dict[bytes, int] = {}
        private = config.privacy
        self._is_private = private is not None
        self.parts = Parts(private) if isinstance(private, WorkerPrivacy) else None
        self.sample = Sample(private.sampling_rate) if isinstance(private, SampledPrivacy) else None
        self._noise = None if private is None else Noise(config)
        self.chain = Chain(config, self._noise)
        self._initial = {initial} if initial is not None else set()

    def restarted(self, recovered: Recovered, rows: list[Row]) -> None:
        """What a new life finds is what the ones before promised."""
        self._index(rows)
        waiting = [row.task for row in (*recovered.frozen, *recovered.open)]
        made = [row.task for row in self.accepted.values() if row.buffer + 1 in self.versions]
        assert len(set(waiting + made)) == len(waiting + made), "an update is in two places"
        assert self.acknowledged <= {*waiting, *made}, "an acknowledged update is gone"
        assert recovered.privacy_steps == self._spent(), "the ledger forgot what was released"
        if self.parts is not None:
            self.parts.restarted(recovered)
        if self.sample is not None:
            self.sample.restarted(recovered.round)

    def broker_hears(self, peer: bytes, message: wire.Message) -> None:
        """A worker says something to the broker."""
        if self.sample is not None and isinstance(message, wire.Hello):
            self.sample.hears(peer, message)

    def broker_sends(
        self, peer: bytes, message: wire.Message, payload: bytes | None, rows: list[Row]
    ) -> None:
        """The broker says something to a worker."""
        self._index(rows)
        match message:
            case wire.Welcome():
                self._rode.pop(peer, None)
            case wire.Ack(task=task, result="accepted" | "duplicate" as result):
                self._acknowledges(task, result)
            case wire.Task(kind="fit" | "evaluate"):
                self._hands_out(peer, message, payload)
            case wire.Block(version=version, offset=offset, model=encoding):
                assert payload is not None
                self._shows(version, offset, payload, encoding)

    def folding(self, fold: Fold, rows: list[Row]) -> None:
        """A buffer is about to be folded."""
        self._index(rows)
        assert fold.buffer in self._frozen, "a buffer is folded that is not frozen"
        assert fold.base == self.versions[fold.buffer].info, "a buffer is folded onto another version"
        assert len({row.task for row in fold.rows}) == len(fold.rows), "an update is folded twice"
        assert {row.task for row in fold.rows} == set(self.buffers.get(fold.buffer, ())), "other rows"

    def folded(self, folded: Folded) -> None:
        """The files of a version are there: of the same rows they are the same, however often."""
        self.refolded += folded.info.version in self._folded
        before = self._folded.setdefault(folded.info.version, folded.info.digest)
        assert before == folded.info.digest, f"version {folded.info.version} was folded again to other bits"

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

    def in_memory(self, uploads: int) -> None:
        """So many bytes of uploads wait for the spool."""
        assert uploads <= self._config.network.credit_budget, f"{uploads} bytes of uploads are in memory"

    def on_disk(self, spooled: int) -> None:
        """The spool holds so many bytes: within the budget, or what one buffer needs."""
        storage, mode = self._config.storage, self._config.mode
        if storage.disk_budget and not storage.keep_payloads:
            needed = mode.buffer if isinstance(mode, AsyncMode) else self._scenario.workers
            assert spooled <= max(storage.disk_budget, 2 * needed * self.largest_upload), "the disk budget"

    def look(self, mind: Coordinator) -> None:
        """The mind's books add up."""
        books: Any = mind._books
        uploads = books.uploads
        assert 0 <= uploads.in_flight() <= self._config.network.credit_budget, "credit"
        for upload in uploads._uploads.values():
            assert 0 <= upload.written <= upload.queued <= upload.limit <= upload.size, "an upload's credit"
            assert upload.stage is not Stage.HELD or upload.limit == upload.queued, "credit that nobody uses"
        held = [h for worker in books.workers for h in worker.held.values()]
        assert len({h.task for h in held}) == len(held), "a task is owned twice"
        busy = sum(h.kind == "fit" and h.phase is Phase.SENT for h in held)
        assert books.workers.busy == busy, f"{busy} fit tasks are out, counted as {books.workers.busy}"

    def repeated(self, message: wire.Message) -> None:
        """The network brings a message again."""
        if isinstance(message, wire.Task):
            self._repeated.add(message.task)

    def worker_holds(self, name: str, tasks: tuple[bytes, ...], slots: int) -> None:
        """A worker was given a task. One that comes again after it was done is not the broker's doing."""
        given = len({*tasks} - self._repeated)
        assert given <= slots, f"{name} has {slots} slots and was given {given} tasks"

    def worker_made(self, entry: Entry, payload: bytes | None) -> None:
        """A worker's app has a result."""
        self._made[entry.task, entry.digest] = entry, payload or b""
        self.largest_upload = max(self.largest_upload, entry.size)
        if entry.kind == "init":
            self._initial.add(payload or b"")

    def trains_on(self, version: int, model: memoryview, fetched_as: str | None) -> None:
        """A worker's app gets this model."""
        expected = self.chain.files[version] if fetched_as is None else self.chain.rounded(version)
        assert model == expected, f"an app was given other bits than version {version}"

    def worker_forgets(self, task: bytes, because: WorkerEvent) -> None:
        """A worker deletes a result: only the broker's word allows it, or that it cannot be read any more."""
        match because:
            case Received(message=wire.Ack(task=of) | wire.Cancel(task=of)) | Stored(entry=Entry(task=of)):
                assert of == task, "a worker forgets another result"
            case Received(message=wire.Error(ref=wire.Offer.code, task=of)):
                assert of == task, "a worker forgets another result"
            case _:
                raise AssertionError(f"a worker forgets a result because of {type(because).__name__}")

    def ended(self, rows: list[Row]) -> None:
        """The federation said that it is finished."""
        self._index(rows)
        target = self._config.stop.versions
        assert self.finish is not None, "nothing durable says that it is finished"
        assert max(self.versions) == target, f"finished at version {max(self.versions)}, not {target}"
        assert sorted(self.versions) == list(range(target + 1)), "a version is missing"
        assert self.acknowledged <= set(self.accepted)
        for task in self.acknowledged:
            places = [v for v in self.versions if v and task in self.buffers.get(v - 1, ())]
            waits = self.accepted[task].buffer >= target
            assert len(places) == (0 if waits else 1), f"an acknowledged update is in {len(places)} versions"

    def contents(self) -> dict[int, tuple[bytes, list[tuple[str, int]]]]:
        """What each version is: its bytes, and of whose updates it is made."""
        return {
            version: (
                self.chain.files[version],
                sorted((row.worker, row.tau) for row in self.buffers.get(version - 1, {}).values()),
            )
            for version in sorted(self.versions)
        }

    def _acknowledges(self, task: bytes, result: str) -> None:
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

    def _hands_out(self, peer: bytes, task: wire.Task, payload: bytes | None) -> None:
        version = task.version
        assert version in self.versions, "a task against a version that is not durable"
        assert self.finish is None, "a task after the end"
        file = self._as_fetched(version, task.model)
        assert (task.size, task.digest) == (len(file), xxhash.xxh3_128_digest(file)), "another model"
        if task.kind == "fit" and isinstance(self._config.mode, SyncMode):
            assert version in self._rounds, "a task in a round that is not durable"
            if self.sample is not None:
                self.sample.asks(peer, task)
        if payload is not None:
            self._rode[peer] = version
            self._shows(version, 0, payload, task.model)
        elif task.size <= wire.TASK_INLINE_MAX:
            assert self._rode.get(peer) == version, "a small model did not come with its task"

    def _as_fetched(self, version: int, encoding: str | None) -> bytes:
        """A version as workers fetch it, where that is how they do."""
        assert encoding in (None, self._config.model.downlink), "a model that was not asked for"
        return self.chain.files[version] if encoding is None else self.chain.halves(version)

    def _shows(self, version: int, offset: int, data: bytes, encoding: str | None) -> None:
        """Somebody outside sees bytes of a version."""
        assert version in self.versions, "a version is shown that is not durable"
        file = self._as_fetched(version, encoding)
        assert file[offset : offset + len(data)] == data, "other bits are shown"
        if self._is_private and version:
            self._released.add(version)
            assert len(self._released) <= self._spent(), "more was released than the ledger counts"

    def _spent(self) -> int:
        return sum(row.privacy_steps for row in self.versions.values())

    def _index(self, rows: list[Row]) -> None:
        """Read the rows that became durable since the last look."""
        for row in rows[self._read :]:
            match row:
                case VersionRow():
                    self._version(row)
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
                    if self.sample is not None:
                        self.sample.opened(row)
                case EvaluationRow():
                    assert row.task not in self._evaluations, "an answer counts twice"
                    self._evaluations.add(row.task)
                case FinishRow():
                    self.finish = row.reason
        self._read = len(rows)

    def _version(self, row: VersionRow) -> None:
        version = row.info.version
        assert version not in self.versions, "a version is made twice"
        self.versions[version] = row
        if version == 0:
            files = [file for file in self._initial if xxhash.xxh3_128_digest(file) == row.info.digest]
            assert len(files) == 1, "nobody made version 0"
            self.chain.begin(files[0])
            first = None if self._noise is None else self._noise.first_clip_norm
            assert row.info.clip_norm == first, "the first clip norm"
            return
        assert version - 1 in self._frozen, "a version of an open buffer"
        buffer = [*self.buffers.get(version - 1, {}).values()]
        payloads = {update.task: self._made[update.task, update.digest][1] for update in buffer}
        assert row.updates == len(buffer)
        assert row.privacy_steps == self._is_private, "a version costs another number of steps"
        if self.parts is not None:
            self.parts.made(version, [update.worker for update in buffer])
        self.chain.go_on(row, buffer, payloads)
        digest = xxhash.xxh3_128_digest(self.chain.files[version])
        assert digest == row.info.digest, f"version {version} is not what its updates make"

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
        if self.parts is not None:
            self.parts.accepted(row)
        if self.sample is not None:
            self.sample.accepted(row)
        self._is_as_made(row)

    def _is_as_made(self, row: AcceptRow) -> None:
        """An accept row says of an update what its worker made, and what that counts."""
        assert (row.task, row.digest) in self._made, "an update that no worker made"
        entry, payload = self._made[row.task, row.digest]
        assert (entry.base, entry.examples, entry.size) == (row.base, row.examples, row.size), "other claims"
        norm = math.sqrt(math.fsum(x * x for x in decoded(payload, row.encoding).astype(float).tolist()))
        same = math.isclose(norm, row.norm, rel_tol=1e-9) or (math.isnan(norm) and math.isnan(row.norm))
        assert same, f"the norm is {norm}, not {row.norm}"
        private = self._is_private
        full = private and self.parts is None  # a sum of records' gradients has no staleness
        weight = 1.0 if full else weight_of(self._config, row.examples, row.tau)
        assert row.weight == weight, f"an update weighs {row.weight}, not {weight}"
        assert private or math.isfinite(norm), "an update that is not finite"
