"""The broker of a simulation: the real mind and the real journal, around them a body on virtual time.

It keeps the promises of `fedmq.broker.events`, each thread being a line with random delays, and hands what it
sees to an auditor, who knows what must never happen.
"""

import math
import random
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from fedmq.broker import opening
from fedmq.broker.coordinator import Coordinator
from fedmq.broker.events import (
    Action,
    Adopt,
    Adopted,
    Collect,
    Commit,
    Discard,
    Drain,
    Drop,
    Evaluate,
    Evaluated,
    Event,
    Exit,
    Fold,
    Folded,
    Note,
    OpenUpload,
    PartWritten,
    Received,
    Reply,
    Seal,
    Sealed,
    Send,
    SendBlock,
    SendTask,
    Tell,
    Tick,
    Unreachable,
    UploadOpened,
    Wake,
    WritePart,
)
from fedmq.broker.rows import Row, VersionInfo, VersionRow
from fedmq.broker.store.journal import Journal
from fedmq.broker.tasks import TaskIds
from fedmq.fedcore import wire
from fedmq.fedcore.config import AsyncMode, Config

from .audit import Audit
from .disks import BrokerDisk, Spool
from .network import Network, Parcel
from .process import Process
from .schedule import Line, Schedule

LAYOUT = b"layout"


class Broker(Process):
    """A broker process and its state folder.

    Parameters
    ----------
    schedule, rng
    config : Config
    elements : int
        Of the model's flat vector.
    model_bytes : int
        Of a version's file.
    fsync_s : float
        Of the journal, at most, as a rule.
    audit : Audit
    """

    def __init__(
        self,
        schedule: Schedule,
        rng: random.Random,
        *,
        config: Config,
        elements: int,
        model_bytes: int,
        fsync_s: float,
        audit: Audit,
    ) -> None:
        super().__init__("broker")
        self.network: Network
        self.disk = BrokerDisk()
        self.mind: Coordinator
        self.exit: Exit | None = None
        self.has_finished = False
        self.replies: dict[int, dict[str, Any]] = {}
        self._schedule = schedule
        self._rng = rng
        self._config = config
        self._elements = elements
        self._model_bytes = model_bytes
        self._fsync_s = fsync_s
        self._audit = audit
        if config.model.source != "first-worker":
            self.disk.rows.append(VersionRow(info=self._info(0, b"initial")))

    def start(self) -> None:
        """Begin a life: open the state folder, make a mind of what is in it."""
        self.begin()
        self.exit = None
        now, config = self._schedule.now, self._config
        self._journal = Journal.open(
            ":memory:", "os", wall=lambda: self._schedule.now, clock=lambda: self._schedule.now
        )
        self._journal.apply(self.disk.rows)
        self._spool = Spool(self.disk)
        recovered = self._open_folder()
        self._audit.restarted(recovered, self.disk.rows)
        ids = TaskIds(b"f" * 16, b"k" * 32, self._rng.randbytes(8))
        self.mind = Coordinator(config, ids, "federation", recovered, now)
        self._promised: deque[Commit] = deque()
        self._unwritten: list[Commit] = []
        self._is_writing = False
        self._wake_at = math.inf
        self._inbox: Line[Callable[[], None]] = self._line(0.0, 0.003, lambda do: do())
        self._spool_jobs: Line[Action] = self._line(0.0005, 0.02, self._spooling)
        self._folds: Line[Fold] = self._line(0.05, 2.0, self._fold)
        self._judge: Line[Evaluate] = self._line(0.1, 5.0, self._evaluate)
        self.run(self._begin_mind)

    def tell(self, event: Event) -> None:
        """Hand an event to the mind."""
        self.carry_out(self.mind.handle(event, self._schedule.now))
        self._audit.look(self.mind)

    def deliver(self, peer: bytes, parcel: Parcel) -> None:
        """A message arrived at the socket."""
        if self.is_alive and self.exit is None:
            message, payload = parcel
            event = Received(peer, message, None if payload is None else memoryview(payload))
            self.run(self.tell, event)

    def drain(self) -> None:
        """SIGTERM."""
        if self.is_alive:
            self.run(self.tell, Drain())

    def killed(self, *, power_cut: bool) -> None:
        """What goes with the process: connections, and in a power cut what was not synced."""
        self.network.broker_died(silently=power_cut)
        if power_cut:
            self.disk.power_cut(self._rng)

    def matters(self, action: Action) -> bool:
        """Notes, timers and beats leave no trace."""
        return not isinstance(action, Note | Wake) and not (
            isinstance(action, Send) and isinstance(action.message, wire.Beat)
        )

    def perform(self, action: Action) -> None:
        """Carry out one action."""
        match action:
            case Send(peer, message):
                self._audit.broker_sends(message, self.disk.rows)
                self._post(peer, message, None)
            case SendTask(peer, message):
                self._audit.broker_sends(message, self.disk.rows)
                self._post(peer, message, self.disk.versions.get(message.version))
            case SendBlock(peer, version, offset, length):
                self._block(peer, version, offset, length)
            case Commit():
                self._commit(action)
            case Tell(event):
                self.tell(event)
            case OpenUpload() | WritePart() | Seal() | Discard() | Adopt() | Collect():
                self._spool_jobs.put(action)
            case Fold():
                self._audit.folding(action, self.disk.rows)
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

    def _begin_mind(self) -> None:
        self.carry_out(self.mind.start(self._schedule.now))

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
        if not self.network.send(peer, message, payload):
            self._notify(Unreachable(peer))

    def _block(self, peer: bytes, version: int, offset: int, length: int) -> None:
        file = self.disk.versions.get(version)
        if file is None:
            self._post(
                peer, wire.Error(ref=wire.Fetch.code, why="gone", version=version, offset=offset), None
            )
        elif self._rng.random() < 0.01:
            self._post(
                peer, wire.Error(ref=wire.Fetch.code, why="busy", version=version, offset=offset), None
            )
        else:
            self._post(peer, wire.Block(version=version, offset=offset), file[offset : offset + length])

    def _commit(self, commit: Commit) -> None:
        if not commit.rows and not self._promised:
            self.carry_out(commit.then)
            return
        self._promised.append(commit)
        if commit.rows:
            self._unwritten.append(commit)
            if not self._is_writing:
                self._is_writing = True
                self._schedule.after(self._commit_s(), self.of_this_life(self._write))

    def _commit_s(self) -> float:
        """An fsync: mostly as quick as the disk is, sometimes behind everybody else's writes."""
        return self._rng.uniform(0.0, self._fsync_s) if self._rng.random() < 0.95 else 3.0

    def _write(self) -> None:
        """The store thread: whatever has queued becomes durable in one transaction."""
        commits, self._unwritten = self._unwritten, []
        self._is_writing = False
        rows: list[Row] = [row for commit in commits for row in commit.rows]
        self._journal.apply(rows)
        self.disk.rows += rows
        self._inbox.put(lambda: self._durable(len(commits)))

    def _durable(self, commits: int) -> None:
        for _ in range(commits):
            self.carry_out(self._promised.popleft().then)
            while self._promised and not self._promised[0].rows:
                self.carry_out(self._promised.popleft().then)
        self._leave_if_done()

    def _leave_if_done(self) -> None:
        if self.exit is not None and not self._promised:
            self.has_finished = self.exit.reason != "stopped"
            self.die()
            # What was sent leaves; then the socket closes.
            self._schedule.after(5.0, lambda: None if self.is_alive else self.killed(power_cut=False))

    def _spooling(self, job: Action) -> None:
        match job:
            case OpenUpload(task, size, encoding):
                self._notify(UploadOpened(task, self._spool.open(task, size, encoding)))
            case WritePart(task, offset, data):
                self._notify(PartWritten(task, self._spool.write(task, offset, bytes(data))))
            case Seal(task):
                digest, encoding = self._spool.seal(task)
                norm = None if encoding == "safetensors" else norm_of(self._spool.payload(task))
                self._notify(Sealed(task, digest, norm))
            case Discard(tasks):
                self._audit.discarded(tasks, self.disk.rows)
                self._spool.delete(tasks)
            case Adopt(task, inline):
                content = self._spool.payload(task) if inline is None else inline
                self._audit.adopting(self.disk.rows)
                self._notify(Adopted(task, self._info(0, content)))
            case Collect(versions):
                for version in versions:
                    self.disk.versions.pop(version, None)

    def _fold(self, fold: Fold) -> None:
        for row in fold.rows:
            if row.inline is None:
                assert self._spool.payload(row.task), "a payload that was accepted is not in the spool"
        about = fold.base.digest + b"".join(sorted(row.worker.encode() + row.digest for row in fold.rows))
        self._notify(
            Folded(
                info=self._info(fold.buffer + 1, about),
                updates=len(fold.rows),
                examples=sum(row.examples for row in fold.rows),
                frac_bits=20,
                denominator=1.0,
                update_norm=1.0,
                seconds=0.1,
            )
        )

    def _evaluate(self, evaluate: Evaluate) -> None:
        failed = self._rng.random() < 0.2
        metrics = None if failed else {"accuracy": evaluate.version / 100}
        self._notify(Evaluated(version=evaluate.version, metrics=metrics, reason="failed" * failed))

    def _info(self, version: int, about: bytes) -> VersionInfo:
        digest = self.disk.make_version(version, about, self._model_bytes)
        size = self._model_bytes
        return VersionInfo(version=version, digest=digest, size=size, layout=LAYOUT, n=self._elements)

    def _open_folder(self) -> Any:
        """As `fedmq.broker.opening` does it: the journal decides what of the rest is kept."""
        current = self._journal.current()
        newest = -1 if current is None else current.version
        for version in [v for v in self.disk.versions if v > newest]:
            del self.disk.versions[version]
        assert newest < 0 or newest in self.disk.versions, f"the file of version {newest} is gone"
        mode = self._config.mode
        staleness = mode.max_staleness if isinstance(mode, AsyncMode) else 0
        recovered = self._journal.recover(staleness, self.disk.versions)
        spool: Any = self._spool
        unwanted = opening._unwanted(self._config, self._journal, spool, recovered, staleness)
        self._spool.delete(tuple(unwanted))
        return recovered


def norm_of(payload: bytes) -> float:
    """The L2 norm of an f32 payload."""
    return float(np.linalg.norm(np.frombuffer(payload, "<f4").astype(np.float64)))
