"""All that the broker's mind knows, in one place. Pure.

`Intake` (updates coming in), `Handout` (tasks going out), `Progress` (buffers becoming versions) and
`Coordinator` (who may talk) work on one `Books` and put what they want done into its `out`.

`current` advances only when the version's row is durable: no task ever goes out against a version that a
crash could take back. Buffers advance when they freeze, which the same crash would repeat exactly.
"""

import heapq
from collections import deque
from collections.abc import Iterable
from typing import Any

from fedmq.fedcore import wire
from fedmq.fedcore.config import (
    Config,
    Correlated,
    Privacy,
    SampledPrivacy,
    SyncMode,
    WorkerPrivacy,
    lower_is_better,
)
from fedmq.fedcore.privacy.sampled_workers import Coin

from . import secrecy
from .downlink import Downlink
from .evaluations import Evaluation
from .events import Action, Commit, Discard, Enrolled, Note, Peer, Send
from .participations import WorkerLedger
from .rounds import AsyncPlan, Buffer, Round, SyncPlan
from .rows import CounterRow, MetricsRow, Recovered, Row, VersionInfo
from .sampling import Sampling
from .sessions import Held, Worker, Workers
from .tally import RELEASED, Tally, reason_label
from .tasks import TaskIds
from .uploads import Uploads

UPLOAD_BLOCKS = 8
"""An upload's window, in blocks: enough to keep a loopback or a long fat link busy."""
STAY_S = 10.0
"""So long after its start a broker whose federation is over waits for workers that may have missed the end."""


class Books:
    """The state of one federation, as its mind sees it.

    Parameters
    ----------
    config : Config
        The federation's configuration.
    ids : TaskIds
        Makes and checks task ids.
    federation : str
        The federation's id, as in WELCOME.
    recovered : Recovered
        What the journal holds.
    now : float
        Monotonic seconds.
    coin : Coin, optional
        What decides whom a round asks, where the config samples workers.
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
        self.config = config
        self.ids = ids
        self.federation = federation
        self.out: list[Action] = []
        self.workers = Workers(config.network.lease_s, config.network.beat_s)
        self.credit = min(UPLOAD_BLOCKS * config.network.block, config.network.credit_budget)
        self.uploads = Uploads(config.network.credit_budget, self.credit)
        self.queue: dict[str, None] = {}
        """Workers to look at when tasks are handed out, those that wait longest first."""
        self._benched: list[tuple[float, str]] = []
        """Workers to look at when they have been left alone for long enough: a heap."""

        self.versions: dict[int, VersionInfo] = {info.version: info for info in recovered.versions}
        self.kept: set[int] = set(recovered.kept)
        self.downlink = Downlink(config.model.downlink)
        self.current: VersionInfo | None = recovered.versions[-1] if recovered.versions else None
        self.made = self.version
        """The last version whose row was given to the journal: the current one, or the one about to be."""
        self.known: dict[bytes, int] = dict(recovered.known)
        """The buffer of each accepted update that may be offered again, in the order of acceptance."""
        self.latest: dict[str, MetricsRow] = {}
        """The last metrics of each source."""
        self.best: dict[tuple[str, str], tuple[float, int]] = {}
        """By source and metric: the best score (higher is better) and its version."""
        for row in recovered.metrics:
            self.remember(row)
        self.paused = recovered.paused
        self.evicted: set[str] = set(recovered.evicted)
        self.awaited: set[str] = set(recovered.workers - recovered.evicted)
        """Workers of an earlier life of this broker that have not come back yet."""
        self.stay_until = now + STAY_S
        self.finished = recovered.finished
        self.started = now - recovered.started_s
        self.version_at = now
        """When the current version was made, or was found at the start."""
        self.tally = Tally()
        self.counts: dict[str, int] = dict(recovered.counts)
        self._unsaved: dict[str, int] = {}

        private = config.privacy
        self.planned = _planned(config)
        """How many releases the noise is planned for, where that is a number: none may be made beyond."""
        self.privacy_left = None if self.planned is None else max(self.planned - recovered.privacy_steps, 0)
        self.ledger = (
            WorkerLedger(private, recovered.participations, recovered.last_parts)
            if isinstance(private, WorkerPrivacy)
            else None
        )
        """Each worker's participations, where they are counted."""
        self.enrolled: Enrolled | None = None
        """Who may connect, where there are keys, once that was told."""
        sampling = None
        if isinstance(private, SampledPrivacy):
            if coin is None:
                raise ValueError("a federation that samples its workers needs a coin")
            sampling = Sampling(coin, until_deadline=private.wait_for == "deadline")
        self.plan: AsyncPlan | SyncPlan = (
            SyncPlan(config.mode, config.federation.seed, private=private is not None, sampling=sampling)
            if isinstance(config.mode, SyncMode)
            else AsyncPlan(config.mode)
        )
        self.frozen: deque[Buffer] = deque()
        for number in recovered.frozen_buffers:
            self.frozen.append(Buffer(number, (row for row in recovered.frozen if row.buffer == number)))
        base = -1 if self.current is None else self.current.version
        self.buffer = Buffer(base + len(self.frozen), recovered.open)
        opened = recovered.round
        if isinstance(self.plan, SyncPlan) and opened is not None and opened.buffer == self.buffer.number:
            self.plan.round = Round(opened, now, durable=True)

        self.adopting: bytes | None = None
        """The init task whose model is being made version 0, or was."""
        self.folding = False
        self.fold_s = 0.0
        """How long the last fold took."""
        self.evaluation: Evaluation | None = None
        self.measuring: int | None = None
        """The version that the broker-side evaluation works on."""
        self.stopping: str | None = None
        """Why the federation ends as soon as what is under way is done; None while it goes on."""
        self.draining = False
        """The process stops; the federation goes on at its next start."""
        self.exited = False

    @property
    def version(self) -> int:
        """The current version, −1 before there is a model."""
        return -1 if self.current is None else self.current.version

    @property
    def max_staleness(self) -> int:
        """How many versions an accepted update may have missed; a round's may have missed none."""
        return self.plan.mode.max_staleness if isinstance(self.plan, AsyncPlan) else 0

    @property
    def complete(self) -> bool:
        """Whether no more updates are needed: it stops, or the last version has its buffer."""
        last = min(filter(None, (self.config.stop.versions, self.planned)), default=0)
        return (
            self.stopping is not None
            or self.finished is not None
            or bool(last and self.buffer.number >= last)
        )

    def capped(self, worker: str) -> bool:
        """Whether one more update of this worker would pass its privacy cap: what is to be folded counts as spent."""
        return self.ledger is not None and self.ledger.capped(worker, (*self.frozen, self.buffer))

    def rests(self, worker: str) -> bool:
        """Whether an update of this worker would come too soon after its last one, as far as the noise goes."""
        return self.ledger is not None and self.ledger.rests(worker, (*self.frozen, self.buffer))

    @property
    def handing_out(self) -> bool:
        """Whether any task may go out at all."""
        return not (self.paused or self.draining or self.finished)

    def emit(self, *actions: Action) -> None:
        """Ask for these, in this order."""
        self.out.extend(actions)

    def commit(self, *rows: Row, then: tuple[Action, ...] = ()) -> None:
        """Make rows durable, then carry out `then`."""
        self.out.append(Commit(rows, then))

    def note(self, level: str, text: str, **fields: Any) -> None:
        """Something for the log."""
        told = secrecy.note(text, fields) if self.config.samples_workers else fields
        if told is not None:
            self.out.append(Note(level, text, told))

    def send(self, peer: Peer, message: wire.Message) -> None:
        """Send now; not after a commit."""
        self.out.append(Send(peer, message))

    def tell(self, worker: Worker, message: wire.Message, now: float) -> None:
        """Send to a worker, if it is there."""
        if worker.session is not None:
            worker.session.sent = now
            self.out.append(Send(worker.session.peer, message))

    def count(self, what: str, number: int = 1) -> None:
        """Add to a total that survives a restart."""
        self.counts[what] = self.counts.get(what, 0) + number
        self._unsaved[what] = self._unsaved.get(what, 0) + number

    def counter_rows(self) -> tuple[CounterRow, ...]:
        """What the journal has not been told of the totals yet."""
        if not self._unsaved:
            return ()
        row, self._unsaved = CounterRow(counts=self._unsaved), {}
        return (row,)

    def remember(self, row: MetricsRow) -> None:
        """Note a version's metrics; of equal ones the earlier version stays the best."""
        self.latest[row.source] = row
        for name, value in row.metrics.items():
            score = -value if lower_is_better(name) else value
            known = self.best.get((row.source, name))
            if known is None or score > known[0]:
                self.best[row.source, name] = (score, row.version)

    def look_at(self, worker: Worker) -> None:
        """Consider this worker when tasks are handed out next."""
        self.queue.setdefault(worker.id)
        if self.evaluation is not None and worker.id in self.evaluation.todo:
            self.evaluation.ready[worker.id] = None

    def look_at_those(self, workers: Iterable[str]) -> None:
        """Consider these, as far as they are here."""
        for worker in map(self.workers.get, workers):
            if worker is not None and worker.session is not None:
                self.look_at(worker)

    def look_at_all(self) -> None:
        """Consider every worker that has a session."""
        for worker, _ in self.workers.sessions():
            self.look_at(worker)

    def bench(self, worker: Worker, now: float) -> None:
        """Its app failed: leave it alone for a while."""
        worker.bench(now)
        heapq.heappush(self._benched, (worker.benched_until, worker.id))

    def look_at_rested(self, now: float) -> None:
        """Consider those that have been left alone for long enough."""
        while self._benched and self._benched[0][0] <= now:
            self.look_at_those((heapq.heappop(self._benched)[1],))

    def discard(self, task: bytes) -> None:
        """Forget an upload, and the bytes that have come of it."""
        if self.uploads.end(task) is not None:
            self.emit(Discard((task,)))

    def lose(self, plan: SyncPlan, worker: str, version: int, reason: str, *, failed: bool = False) -> None:
        """A member of the open round will not answer, for now or for good."""
        row = plan.lost(worker, version, reason, failed=failed)
        if row is not None:
            self.commit(row)

    def release(self, worker: Worker, held: Held, reason: str, *, failed: bool = False) -> None:
        """Take a task from a worker that will not finish it; somebody else, or it again, may get it.

        `failed`: it did its work and that was of no use, so that a private round will not ask it again.
        """
        self.workers.free(worker, held.task)
        self.tally.add("tasks_released", held.kind, reason_label(reason, RELEASED))
        if held.kind == "evaluate":
            if self.evaluation is not None and self.evaluation.version == held.version:
                self.evaluation.drop(worker.id)
        elif held.kind == "fit" and isinstance(self.plan, SyncPlan):
            self.lose(self.plan, worker.id, held.version, reason, failed=failed)
        self.look_at(worker)
        self.note(
            "info", "task released", worker=worker.name, kind=held.kind, version=held.version, reason=reason
        )


def _planned(config: Config) -> int | None:
    match config.privacy:
        case Privacy(steps=steps) | SampledPrivacy(steps=steps):
            return steps
        case WorkerPrivacy(correlated=Correlated(versions=versions)):
            return versions
    return None
