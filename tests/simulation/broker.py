"""The broker of a simulation: the real mind, journal, stores and fold, around them a body on virtual time.

It keeps the promises of `fedmq.broker.events`, each thread being a line with random delays, and hands what it
sees to an auditor, who knows what must never happen.
"""

import math
import random
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from fedmq.broker import opening
from fedmq.broker.coordinator import Coordinator
from fedmq.broker.events import (
    Action,
    Adopt,
    Collect,
    Commit,
    Discard,
    Drain,
    Drop,
    EncodeModel,
    Evaluate,
    Evaluated,
    Event,
    Exit,
    Fold,
    Folded,
    ModelEncoded,
    Note,
    OpenUpload,
    Received,
    Reply,
    Seal,
    Send,
    SendBlock,
    SendTask,
    Tell,
    Tick,
    Unreachable,
    Wake,
    WritePart,
)
from fedmq.broker.mechanism import coin, left_by_first, mechanism
from fedmq.broker.rows import Recovered, Row, VersionRow
from fedmq.broker.store import schema
from fedmq.broker.store.journal import Journal
from fedmq.broker.store.spool import Spool
from fedmq.broker.store.versions import VersionStore
from fedmq.broker.tasks import TaskIds
from fedmq.broker.threads import Folder, Folding, Spooler, Spooling, write_initial
from fedmq.cli.simulate.promises import Promises
from fedmq.cli.simulate.schedule import Line, Schedule
from fedmq.fedcore import model_file, wire
from fedmq.fedcore.config import AsyncMode
from fedmq.fedcore.errors import StateError

from .audit import Audit
from .disks import Disks
from .network import Network, Parcel
from .process import Process
from .recompute_noise import MASTER_KEY
from .scenario import Scenario


class Broker(Process):
    """A broker process and its state folder.

    Parameters
    ----------
    scenario : Scenario
    schedule, rng, audit, disks
    """

    kind = "broker"

    def __init__(
        self, scenario: Scenario, schedule: Schedule, rng: random.Random, audit: Audit, disks: Disks
    ) -> None:
        super().__init__("broker")
        self.network: Network
        self.mind: Coordinator
        self.exit: Exit | None = None
        self.has_finished = False
        self.replies: dict[int, dict[str, Any]] = {}
        self.rows: list[Row] = []
        """Every row that was ever committed, in order."""
        self._scenario = scenario
        self._config = scenario.config
        self._schedule = schedule
        self._rng = rng
        self._audit = audit
        self._folders = [disks.folder("broker", name, self.operates) for name in ("versions", "spool")]
        # One database for all lives. A crash leaves what was committed, and of a transaction all or nothing.
        self._dies_in_fold: int | None = None
        self._db = schema.open_writer(":memory:", "os")  # type: ignore[arg-type]
        private = self._config.privacy
        self._mechanism = None if private is None else mechanism(self._config, private.noise_multiplier)

    def start(self) -> None:
        """Begin a life."""
        self.begin()
        self.exit = None
        for folder in self._folders:
            folder.is_frozen = False
        self._unwritten: list[tuple[Row, ...]] = []
        self._writing: list[tuple[Row, ...]] = []
        self._queued_bytes = 0
        self._wake_at = math.inf
        self._promises = Promises(self.carry_out)
        self._inbox: Line[Callable[[], None]] = self._line(0.0, 0.003, lambda do: do())
        self._spool_jobs: Line[Spooling] = self._line(0.0005, 0.02, self._spooling)
        self._folds: Line[Folding] = self._line(0.05, 2.0, self._fold)
        self._judge: Line[Evaluate] = self._line(0.1, 5.0, self._evaluate)
        self.run(self._open)

    def tell(self, event: Event) -> None:
        """Hand an event to the mind."""
        self.carry_out(self.mind.handle(event, self._schedule.now))
        self._audit.look(self.mind)

    def deliver(self, peer: bytes, parcel: Parcel) -> None:
        """A message arrived at the socket."""
        if self.is_alive and self.exit is None:
            message, payload = parcel
            self._audit.broker_hears(peer, message)
            event = Received(peer, message, None if payload is None else memoryview(payload))
            self.run(self.tell, event)

    def drain(self) -> None:
        """SIGTERM."""
        if self.is_alive:
            self.run(self.tell, Drain())

    def kill_in_fold(self, steps: int, on_death: Callable[[], None]) -> None:
        """Die while the next version is made, in the disk operation after so many; or else soon after."""
        self._dies_in_fold, self._on_death = steps, on_death

    def spare(self) -> None:
        """Take back a death that has not come."""
        super().spare()
        self._dies_in_fold = None

    def killed(self, *, power_cut: bool) -> None:
        """What goes with the process: connections, and in a power cut what was not synced."""
        self.network.broker_died(silently=power_cut)
        if self._writing and self._rng.random() < 0.5:
            self._apply(self._writing)  # the transaction that was being committed: nobody was told
        self._writing = []
        self._close_files()
        if power_cut:
            for folder in self._folders:
                folder.power_cut(self._rng)

    def close(self) -> None:
        """Let go of everything, for good."""
        self._close_files()
        self._db.close()

    def matters(self, action: Action) -> bool:
        """Notes, timers and beats leave no trace."""
        return not isinstance(action, Note | Wake) and not (
            isinstance(action, Send) and isinstance(action.message, wire.Beat)
        )

    def perform(self, action: Action) -> None:
        """Carry out one action."""
        match action:
            case Send(peer, message):
                self._post(peer, message, None)
            case SendTask(peer, message):
                self._send_task(peer, message)
            case SendBlock():
                self._block(action)
            case Commit():
                self._commit(action)
            case Tell(event):
                self.tell(event)
            case OpenUpload() | WritePart() | Seal() | Discard() | Adopt() | Collect():
                self._queue(action)
            case Fold():
                self._audit.folding(action, self.rows)
                self._folds.put(action)
            case EncodeModel():
                self._folds.put(action)
            case Evaluate():
                self._judge.put(action)
            case Wake(at):
                self._wake_at = at
                self._schedule.at(at, self.of_this_life(self._tick))
            case Exit():
                self.exit = action
                self._leave_if_done()
            case Reply(token, data):
                self.replies[token] = data
            case Drop() | Note():
                pass
            case _:
                raise TypeError(f"not an action of the broker's: {type(action).__name__}")

    def _open(self) -> None:
        """As `fedmq.broker.opening` does it: the journal decides what of the rest is kept."""
        config, now = self._config, self._schedule.now
        versions, spool = (folder.path for folder in self._folders)
        fsync = config.storage.durability == "fsync"
        self._journal = Journal(
            versions,
            self._db,
            keep_payloads=config.storage.keep_payloads,
            wall=lambda: self._schedule.now,
            clock=lambda: self._schedule.now,
        )
        self._journal._reader = self._db  # a database in memory has one connection
        self._versions = VersionStore(versions, fsync=fsync)
        self._spool = Spool(spool, fsync=fsync)
        current = self._journal.current()
        self._versions.recover(None if current is None else current.version)
        if current is not None:
            self._versions.verify(current.version, size=current.size, digest=current.digest)
        elif config.model.source != "first-worker":
            file = memoryview(initial_model(self._scenario, 0))
            info = write_initial(self._versions, file, config.model.max_bytes)
            info = msgspec.structs.replace(info, clip_norm=left_by_first(self._mechanism))
            self._apply([(VersionRow(info=info),)])
        staleness = config.mode.max_staleness if isinstance(config.mode, AsyncMode) else 0
        recovered = self._journal.recover(staleness, self._versions.versions())
        opening._check_bases(config, self._versions, recovered)
        unwanted = opening._unwanted(config, self._journal, self._spool, recovered, staleness)
        self._spool.delete(sorted(unwanted))
        self._begin_mind(recovered, now)

    def _begin_mind(self, recovered: Recovered, now: float) -> None:
        self._audit.restarted(recovered, self.rows)
        self._spooler = Spooler(self._spool, self._versions, self._config.model.max_bytes)
        self._folding = Folder(
            self._config, self._journal, self._versions, self._spool, self._mechanism, MASTER_KEY
        )
        ids = TaskIds(b"f" * 16, b"k" * 32, self._rng.randbytes(8))
        flipped = coin(self._config, MASTER_KEY)
        self.mind = Coordinator(self._config, ids, "federation", recovered, now, flipped)
        self.carry_out(self.mind.start(now))

    def _close_files(self) -> None:
        spool = getattr(self, "_spool", None)
        if spool is not None:
            spool.close()

    def _line(self, low_s: float, high_s: float, do: Callable[[Any], None]) -> Line[Any]:
        return Line(self._schedule, lambda: self._rng.uniform(low_s, high_s), self.of_this_life(do))

    def _notify(self, event: Event) -> None:
        self._inbox.put(lambda: self.tell(event))

    def _tick(self) -> None:
        if self._schedule.now >= self._wake_at:
            self._wake_at = math.inf
            self.tell(Tick())

    def _post(self, peer: bytes, message: wire.Message, payload: bytes | None) -> None:
        wire.encode(message, payload)  # which refuses what a worker would
        self._audit.broker_sends(peer, message, payload, self.rows)
        if not self.network.send(peer, message, payload):
            self._notify(Unreachable(peer))

    def _send_task(self, peer: bytes, task: wire.Task) -> None:
        try:
            payload = bytes(self._versions.block(task.version, 0, task.size, task.model or "f32"))
        except StateError:
            payload = None
        self._post(peer, task, payload)

    def _block(self, action: SendBlock) -> None:
        peer, version, offset = action.peer, action.version, action.offset
        try:
            data = bytes(self._versions.block(version, offset, action.length, action.encoding))
        except StateError:
            self._post(
                peer, wire.Error(ref=wire.Fetch.code, why="gone", version=version, offset=offset), None
            )
            return
        if self._rng.random() < 0.01:
            self._post(
                peer, wire.Error(ref=wire.Fetch.code, why="busy", version=version, offset=offset), None
            )
        else:
            model = None if action.encoding == "f32" else action.encoding
            self._post(peer, wire.Block(version=version, offset=offset, model=model), data)

    def _commit(self, commit: Commit) -> None:
        if self._promises.add(commit):
            self._unwritten.append(commit.rows)
            if not self._writing:
                self._write()

    def _write(self) -> None:
        """The store thread: whatever has queued becomes durable in one transaction."""
        self._writing, self._unwritten = self._unwritten, []
        self._schedule.after(self._commit_s(), self.of_this_life(self._written))

    def _commit_s(self) -> float:
        """An fsync: mostly as quick as the disk is, sometimes behind everybody else's writes."""
        return self._rng.uniform(0.0, self._fsync_s()) if self._rng.random() < 0.95 else 3.0

    def _fsync_s(self) -> float:
        return self._scenario.fsync_s if self._config.storage.durability == "fsync" else 0.001

    def _written(self) -> None:
        commits, self._writing = self._writing, []
        self._apply(commits)
        self._inbox.put(lambda: self._durable(len(commits)))
        if self._unwritten:
            self._write()

    def _apply(self, commits: list[tuple[Row, ...]]) -> None:
        rows = [row for commit in commits for row in commit]
        self._journal.apply(rows)
        self.rows += rows

    def _durable(self, commits: int) -> None:
        self._promises.keep(commits)
        self._leave_if_done()

    def _leave_if_done(self) -> None:
        if self.exit is not None and not self._promises:
            self.has_finished = self.exit.reason != "stopped"
            self.die()
            # What was sent leaves; then the socket closes.
            self._schedule.after(5.0, lambda: None if self.is_alive else self.killed(power_cut=False))

    def _queue(self, job: Spooling) -> None:
        if isinstance(job, WritePart):
            self._queued_bytes += len(job.data)
            self._audit.in_memory(self._queued_bytes)
        self._spool_jobs.put(job)

    def _spooling(self, job: Spooling) -> None:
        match job:
            case WritePart():
                self._queued_bytes -= len(job.data)
            case Discard(tasks):
                self._audit.discarded(tasks, self.rows)
            case Adopt():
                self._audit.adopting(self.rows)
        event = self._spooler._do(job)
        if event is not None:
            self._notify(event)
        self._audit.on_disk(sum(path.stat().st_size for path in self._folders[1].path.iterdir()))

    def _fold(self, fold: Folding) -> None:
        steps, self._dies_in_fold = self._dies_in_fold, None
        self._operations_left = steps if steps is not None else self._operations_left
        for made in self._folding(deque([fold])):
            if isinstance(made, ModelEncoded):
                self._notify(made)
                continue
            assert isinstance(made, Folded)
            self._audit.folded(made)
            self._notify(msgspec.structs.replace(made, seconds=0.1))
        if steps is not None:
            self._operations_left, self._actions_left = None, steps % 4

    def _evaluate(self, evaluate: Evaluate) -> None:
        failed = self._rng.random() < 0.2
        metrics = None if failed else {"accuracy": evaluate.version / 100}
        self._notify(Evaluated(version=evaluate.version, metrics=metrics, reason="failed" * failed))


def initial_model(scenario: Scenario, variant: int) -> bytes:
    """A model file with the scenario's sizes: floats that are trained, and bytes that are not."""
    rng = np.random.default_rng((scenario.seed, variant))
    tensors: dict[str, Any] = {"w": rng.standard_normal(scenario.elements).astype(np.float32)}
    if scenario.ballast:
        tensors["ballast"] = rng.integers(0, 255, scenario.ballast, np.uint8)
    return b"".join(bytes(chunk) for chunk in model_file.from_arrays(tensors).chunks)
