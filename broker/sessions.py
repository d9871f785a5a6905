"""Who is there: workers, their sessions, and what each holds. Pure.

A *worker* is a principal (a CURVE key, or without keys a name). A *session* is one life of its
connection, from HELLO on. Rules that hold here:

- One session a worker. A new process (`boot`) of the same `instance` replaces its session. Another live instance
  is refused, and so is a process that was replaced, which works on a copy of the same state folder: two programs
  under one name never evict each other in turn.
- Any message proves life. A lease of silence makes a session suspect (no new tasks); two end it, and
  free its tasks.
- A result on its way in takes no slot: the first that is heard of it, an OFFER or its place in an outbox,
  makes the worker free for one task more.
- `held` is what the broker believes the worker has. BEAT and HELLO say what it really has, and
  `reconcile` brings the two together: a task is missing only if its `seq` was seen and the worker lists
  it nowhere.
"""

import enum
import heapq
import itertools
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import get_args

from fedmq.fedcore import codecs
from fedmq.fedcore.wire import Hello, TaskKind

from .events import Peer
from .patience import Patience

GONE_MAX = 10_000
"""Workers without a session that are remembered: strangers with ever new names must not fill the memory."""
BENCH_S = 1.0
BENCH_MAX_S = 60.0
REPLACED_MAX = 8
"""Processes of a worker that are remembered after another took their place."""


KINDS = frozenset(get_args(TaskKind))


class Phase(enum.Enum):
    """Where a task in a worker's hands is."""

    SENT = "sent"
    """Fetching, training, or in the worker's outbox."""
    OFFERED = "offered"
    """Its result is on the way in; the worker is free again."""


class Held:
    """One task in a worker's hands."""

    __slots__ = ("kind", "phase", "seq", "since", "task", "version")

    def __init__(self, task: bytes, kind: TaskKind, version: int, seq: int, since: float) -> None:
        self.task = task
        self.kind: TaskKind = kind
        self.version = version
        self.seq = seq
        self.since = since
        self.phase = Phase.SENT


class Session:
    """One life of a connection."""

    __slots__ = (
        "boot", "encodings", "free", "given", "heard", "instance", "kinds", "models", "peer", "seen", "sent", "seq",
        "suspect",
    )  # fmt: skip

    def __init__(self, peer: Peer, hello: Hello, now: float) -> None:
        self.peer = peer
        self.instance = hello.instance
        self.boot = hello.boot
        self.kinds = KINDS.intersection(hello.kinds)
        self.encodings = frozenset(filter(codecs.is_encoding, hello.encodings))
        self.models = frozenset(hello.models or ())
        self.free = hello.free
        self.seq = 0
        self.seen = 0
        self.given = -1
        """The last version whose file rode with a TASK."""
        self.heard = now
        self.sent = now
        self.suspect = False


class Worker:
    """A principal, with or without a session."""

    __slots__ = (
        "accepted",
        "benched_until",
        "failures",
        "held",
        "id",
        "last_nth",
        "last_version",
        "name",
        "patience",
        "replaced",
        "session",
        "since",
    )

    def __init__(self, worker_id: str, name: str, now: float) -> None:
        self.id = worker_id
        self.name = name
        self.session: Session | None = None
        self.held: dict[bytes, Held] = {}
        self.accepted = 0
        self.failures = 0
        self.benched_until = now
        self.since = now
        self.last_version = -1
        self.last_nth = 0
        self.patience = Patience(now)
        self.replaced: tuple[bytes, ...] = ()
        """The boots whose sessions another boot has taken while they lived."""

    def can(self, kind: TaskKind, now: float) -> bool:
        """Whether it takes a task of this kind now: what it said, less what it had not seen when it said so."""
        session = self.session
        return (
            session is not None
            and not session.suspect
            and kind in session.kinds
            and session.free > session.seq - session.seen
            and now >= self.benched_until
        )

    def will_take(self) -> bool:
        """Whether it takes a task now, or may when it is done with one that it has: it is not paused."""
        session = self.session
        return (
            session is not None
            and not session.suspect
            and (bool(self.held) or session.free > session.seq - session.seen)
        )

    def soon(self, kind: TaskKind, now: float) -> bool:
        """Whether it takes such a task now, or as soon as its evaluation is done."""
        session = self.session
        if session is None or session.suspect or kind not in session.kinds or now < self.benched_until:
            return False
        return self.holding("evaluate") or session.free > session.seq - session.seen

    def holding(self, kind: TaskKind, version: int | None = None) -> bool:
        """Whether it has a task of this kind (against this version)."""
        return any(h.kind == kind and version in (None, h.version) for h in self.held.values())

    def full(self, limit: int) -> bool:
        """Whether it has so many fit tasks in hand, or twice as many with those whose results are on their way."""
        fits = [held.phase for held in self.held.values() if held.kind == "fit"]
        return fits.count(Phase.SENT) >= limit or len(fits) >= 2 * limit

    def nth(self, version: int) -> int:
        """How many fit tasks it got against this version before; counts one more."""
        if version != self.last_version:
            self.last_version, self.last_nth = version, 0
        else:
            self.last_nth += 1
        return self.last_nth

    def bench(self, now: float) -> None:
        """Its app failed: leave it alone for a while, twice as long each time."""
        self.benched_until = now + min(BENCH_MAX_S, BENCH_S * 2.0 ** min(self.failures, 16))
        self.failures += 1


class Refusal(enum.Enum):
    """Why a HELLO gets no session."""

    NAME_IN_USE = "name_in_use"


class Workers:
    """All workers that were ever here in this broker's life.

    Parameters
    ----------
    lease_s, beat_s : float
        Seconds; see the module.
    """

    def __init__(self, lease_s: float, beat_s: float) -> None:
        self._lease_s = lease_s
        self._beat_s = beat_s
        self._workers: dict[str, Worker] = {}
        self._by_peer: OrderedDict[Peer, Worker] = OrderedDict()
        """Those with a session, the longest silent first: what time does to them looks at few of many."""
        self._holders: dict[str, Worker] = {}
        self._beats: list[tuple[float, int, Session]] = []
        """When each session was last due a BEAT if nothing else is sent; one entry each, a heap."""
        self._order = itertools.count()
        self._gone: dict[str, None] = {}
        """Those without a session, the longest gone first."""
        self.busy = 0
        """Fit tasks that are out: sent, and not yet offered."""

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._workers.values())

    def __len__(self) -> int:
        """How many have a session."""
        return len(self._by_peer)

    def holders(self) -> list[Worker]:
        """Those that have a task in their hands."""
        return list(self._holders.values())

    def get(self, worker_id: str) -> Worker | None:
        """The worker with this id, if it was ever here."""
        return self._workers.get(worker_id)

    def at(self, peer: Peer) -> Worker | None:
        """The worker whose session is on this connection."""
        return self._by_peer.get(peer)

    def sessions(self) -> Iterator[tuple[Worker, Session]]:
        """Every worker that has a session."""
        for worker in self._by_peer.values():
            if worker.session is not None:
                yield worker, worker.session

    def open(self, worker_id: str, peer: Peer, hello: Hello, now: float) -> Worker | Refusal:
        """Open a session on a connection that has none, or has this worker's.

        It replaces one that an older process of the same instance had, or one that is silent.
        """
        worker = self._workers.get(worker_id)
        if worker is not None and worker.session is not None:
            old = worker.session
            is_other = old.instance != hello.instance or hello.boot in worker.replaced
            if is_other and now - old.heard < self._lease_s:
                return Refusal.NAME_IN_USE
            if old.boot != hello.boot:
                others = [boot for boot in worker.replaced if boot != hello.boot]
                worker.replaced = (*others, old.boot)[-REPLACED_MAX:]
            self._by_peer.pop(old.peer, None)
        if worker is None:
            worker = self._workers[worker_id] = Worker(worker_id, hello.name, now)
        self._gone.pop(worker_id, None)
        worker.name = hello.name
        worker.session = Session(peer, hello, now)
        self._by_peer[peer] = worker
        heapq.heappush(self._beats, (now + self._beat_s, next(self._order), worker.session))
        return worker

    def close(self, worker: Worker) -> None:
        """End its session. What it holds stays on the books until it is freed."""
        if worker.session is not None:
            self._by_peer.pop(worker.session.peer, None)
            worker.session = None
            self._gone[worker.id] = None

    def forgettable(self) -> Worker | None:
        """The worker that is longest gone, when there are too many to remember."""
        return self._workers[next(iter(self._gone))] if len(self._gone) > GONE_MAX else None

    def forget(self, worker: Worker) -> None:
        """Remember nothing of a worker that is gone and has nothing here; or, if it has, for another while."""
        del self._gone[worker.id]
        if worker.held:
            self._gone[worker.id] = None
        else:
            del self._workers[worker.id]

    def heard(self, worker: Worker, now: float) -> None:
        """It sent something."""
        if worker.session is not None:
            worker.session.heard = now
            worker.session.suspect = False
            self._by_peer.move_to_end(worker.session.peer)

    def hold(self, worker: Worker, task: bytes, kind: TaskKind, version: int, now: float) -> Held:
        """Put a task into a worker's hands (it has a session)."""
        assert worker.session is not None
        worker.session.seq += 1
        held = worker.held[task] = Held(task, kind, version, worker.session.seq, now)
        worker.since = now
        self._holders[worker.id] = worker
        self.busy += kind == "fit"
        return held

    def adopt(self, worker: Worker, task: bytes, kind: TaskKind, version: int, now: float) -> None:
        """The worker holds a task that an earlier life of this broker gave it."""
        worker.held[task] = Held(task, kind, version, 0, now)
        self._holders[worker.id] = worker
        self.busy += kind == "fit"

    def finished(self, worker: Worker, task: bytes) -> bool:
        """The worker has its result; whether that is news."""
        held = worker.held.get(task)
        if held is None or held.phase is not Phase.SENT:
            return False
        held.phase = Phase.OFFERED
        self.busy -= held.kind == "fit"
        return True

    def offered(self, worker: Worker, task: bytes) -> None:
        """Its result is on the way in: the slot that it had is free, unless the worker has said so already."""
        if self.finished(worker, task) and worker.session is not None:
            worker.session.free += 1

    def free(self, worker: Worker, task: bytes) -> Held | None:
        """Take a task off the books."""
        held = worker.held.pop(task, None)
        if not worker.held:
            self._holders.pop(worker.id, None)
        if held is not None and held.phase is Phase.SENT:
            self.busy -= held.kind == "fit"
        return held

    def silent(self, now: float) -> tuple[list[Worker], list[Worker]]:
        """Workers that became suspect, and workers whose session should end."""
        suspect: list[Worker] = []
        gone: list[Worker] = []
        for worker, session in self.sessions():
            quiet = now - session.heard
            if quiet < self._lease_s:
                break  # and so were all that follow
            if quiet >= 2 * self._lease_s:
                gone.append(worker)
            elif not session.suspect:
                session.suspect = True
                suspect.append(worker)
        return suspect, gone

    def beats(self, now: float) -> list[Session]:
        """Sessions that are due a BEAT because nothing else was sent to them."""
        due: list[Session] = []
        again: list[tuple[float, int, Session]] = []
        while self._beats and self._beats[0][0] <= now:
            _, order, session = heapq.heappop(self._beats)
            worker = self._by_peer.get(session.peer)
            if worker is None or worker.session is not session:
                continue  # that session is over
            at = session.sent + self._beat_s
            if at <= now:
                due.append(session)
                at = now + self._beat_s
            again.append((at, order, session))
        for entry in again:
            heapq.heappush(self._beats, entry)
        return due


def missing(worker: Worker, listed: Iterable[bytes]) -> list[Held]:
    """Tasks that the worker has seen and lists nowhere: it lost them, or what it made of them.

    Parameters
    ----------
    listed : iterable of bytes
        The task ids in its BEAT or HELLO, those in hand and those in its outbox.
    """
    session = worker.session
    if session is None:
        return []
    here = frozenset(listed)
    return [held for held in worker.held.values() if held.task not in here and held.seq <= session.seen]
