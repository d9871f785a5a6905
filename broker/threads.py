"""The threads beside the I/O thread: each takes jobs from a queue and puts what came of them into the inbox.

Rules that hold here:

- A thread does its jobs in order. It is woken by a job and by nothing else: there are no timers.
- A job that fails ends the daemon: the thread reports `Failed` once and takes no more. What it was asked
  to promise was not promised.
- The store thread commits together whatever queued during the last commit: one fsync for many.
"""

import collections
import queue
import statistics
import threading
import time
from collections.abc import Callable, Iterable
from typing import Generic, TypeAlias, TypeVar

import msgspec

from fedmq.fedcore import model_file, wire
from fedmq.fedcore.config import Config
from fedmq.fedcore.errors import ModelError
from fedmq.fedcore.inbox import Inbox
from fedmq.fedcore.privacy.correlated_level import CorrelatedWorkerLevel
from fedmq.fedcore.privacy.mechanisms import Mechanism

from .aggregator import fold
from .events import (
    Adopt,
    Adopted,
    Collect,
    Discard,
    EncodeModel,
    Event,
    Fold,
    OpenUpload,
    PartWritten,
    Refused,
    Seal,
    UploadOpened,
    WritePart,
)
from .fold_job import plan_fold
from .rows import Row, VersionInfo
from .store.encoded_versions import encode_version
from .store.journal import Journal
from .store.spool import Spool
from .store.versions import VersionStore
from .tally import SECONDS, Distribution

LATENCIES = 1024
"""Commits whose latency is remembered."""

Job = TypeVar("Job")


class Durable(msgspec.Struct, frozen=True):
    """So many more commits are on disk."""

    commits: int


class Failed(msgspec.Struct, frozen=True):
    """A thread ended, and why."""

    thread: str
    error: BaseException


class Halt(msgspec.Struct, frozen=True):
    """End now; not an orderly stop."""

    reason: str


class Ask(msgspec.Struct, frozen=True):
    """Another thread wants to know what only the I/O thread may look at: to be called there; must not raise."""

    answer: Callable[[], None]


Notice: TypeAlias = Event | Durable | Failed | Halt | Ask
"""What the I/O thread finds in its inbox."""


Work: TypeAlias = Callable[[collections.deque[Job]], Iterable[Notice]]
"""Takes all jobs that are waiting, at least one, off a deque; yields the notices that come of them."""


class Service(Generic[Job]):
    """One thread and its queue.

    Parameters
    ----------
    name : str
        Of the thread, in logs and debuggers.
    inbox : Inbox
        Where notices go.
    work : Work
    """

    def __init__(
        self,
        name: str,
        inbox: Inbox[Notice],
        work: Work[Job],
    ) -> None:
        self._name = name
        self._inbox = inbox
        self._work = work
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        # A daemon: an immediate end of the process must not wait for a long fold. Nothing is lost by it.
        self._thread = threading.Thread(target=self._run, name=f"fedmq-{name}", daemon=True)
        self._thread.start()

    def put(self, job: Job) -> None:
        """Add a job."""
        self._jobs.put(job)

    @property
    def waiting(self) -> int:
        """How many jobs wait. For any thread."""
        return self._jobs.qsize()

    def close(self, timeout_s: float | None = None) -> bool:
        """Do what is queued, then end; whether it ended in time."""
        self._jobs.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while True:
                jobs: collections.deque[Job] = collections.deque()
                job = self._jobs.get()
                try:
                    while job is not None:
                        jobs.append(job)
                        job = self._jobs.get_nowait()
                except queue.Empty:
                    pass
                else:
                    if not jobs:
                        return
                    self._jobs.put(None)  # the end: comes again, after these
                for notice in self._work(jobs):
                    self._inbox.put(notice)
        except BaseException as error:  # whatever it is: the I/O thread ends the daemon with it
            self._inbox.put(Failed(self._name, error))


class Commits:
    """What the store thread does: group commit.

    Parameters
    ----------
    journal : Journal
        Written by this thread alone from now on.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._latencies: collections.deque[float] = collections.deque(maxlen=LATENCIES)
        self._since: float | None = None
        self.times = Distribution(SECONDS)
        self.rows = 0

    def __call__(self, jobs: collections.deque[tuple[Row, ...]]) -> Iterable[Notice]:
        """Commit all rows of all jobs in one transaction."""
        self._since = time.monotonic()
        rows = [row for rows in jobs for row in rows]
        self._journal.apply(rows)
        self._since = None
        self._latencies.append(self._journal.commit_s)
        self.times.add(self._journal.commit_s)
        self.rows += len(rows)
        return (Durable(len(jobs)),)

    def running_s(self) -> float:
        """How long the commit at work has taken so far; 0.0 when there is none. For any thread."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since

    def latency_ms(self) -> dict[str, float]:
        """Of the last 1024 commits: ``commits``, ``median`` and ``p99`` in milliseconds."""
        taken = sorted(self._latencies)
        if not taken:
            return {"commits": 0, "median": 0.0, "p99": 0.0}
        return {
            "commits": len(taken),
            "median": statistics.median(taken) * 1e3,
            "p99": taken[min(len(taken) * 99 // 100, len(taken) - 1)] * 1e3,
        }


Spooling: TypeAlias = OpenUpload | WritePart | Seal | Discard | Adopt | Collect


class Spooler:
    """What the spool thread does: payload bytes to disk, and files away.

    Parameters
    ----------
    spool : Spool
    versions : VersionStore
    max_bytes : int
        Of a model file that a worker may bring.
    """

    def __init__(self, spool: Spool, versions: VersionStore, max_bytes: int) -> None:
        self._spool = spool
        self._versions = versions
        self._max_bytes = max_bytes

    def __call__(self, jobs: collections.deque[Spooling]) -> Iterable[Notice]:
        """Carry out each; its bytes are let go before the next."""
        while jobs:
            notice = self._do(jobs.popleft())
            if notice is not None:
                yield notice

    def _do(self, job: Spooling) -> Event | None:
        match job:
            case OpenUpload(task, size, encoding, n, most):
                return UploadOpened(task, self._spool.open(task, size, encoding, n, most))
            case WritePart(task, offset, data):
                return PartWritten(task, self._spool.write(task, offset, data))
            case Seal(task):
                return self._spool.seal(task)
            case Discard(tasks):
                self._spool.delete(tasks)
            case Adopt(task, inline):
                return self._adopt(task, inline)
            case Collect(versions):
                self._versions.delete(versions)
        return None

    def _adopt(self, task: bytes, inline: bytes | None) -> Event:
        file = self._spool.payload(task) if inline is None else memoryview(inline)
        try:
            return Adopted(task, write_initial(self._versions, file, self._max_bytes))
        except ModelError as error:
            return Refused(task, wire.clip(str(error)))


Folding: TypeAlias = Fold | EncodeModel


class Folder:
    """What the aggregation thread does: frozen buffers to versions, and those to what workers fetch.

    Parameters
    ----------
    config : Config
    journal : Journal
        Read for inline payloads, over a connection of its own.
    versions : VersionStore
    spool : Spool
    mechanism : Mechanism or None
        Of privacy, where it is on.
    master_key : bytes
        What noise keys derive from.
    """

    def __init__(
        self,
        config: Config,
        journal: Journal,
        versions: VersionStore,
        spool: Spool,
        mechanism: Mechanism | None,
        master_key: bytes,
    ) -> None:
        self._config = config
        self._journal = journal
        self._versions = versions
        self._spool = spool
        self._mechanism = mechanism
        self._master_key = master_key

    def __call__(self, jobs: collections.deque[Folding]) -> Iterable[Notice]:
        """Fold or encode each."""
        while jobs:
            job = jobs.popleft()
            if isinstance(job, EncodeModel):
                yield encode_version(self._versions, job.version, job.encoding)
                continue
            inline = self._journal.payloads(job.buffer)
            private = self._mechanism
            mixed = private.noise.bandwidth - 1 if isinstance(private, CorrelatedWorkerLevel) else 0
            plan = plan_fold(
                job.base,
                [msgspec.structs.replace(row, inline=inline.get(row.task)) for row in job.rows],
                weighting=self._config.aggregate.weight,
                optimizer=self._config.optimizer,
                rule=self._config.aggregate.rule,
                mechanism=self._mechanism,
                master_key=self._master_key,
                earlier=self._journal.noise_keys(job.base.version + 1, mixed) if mixed else (),
            )
            yield fold(plan, self._versions, self._spool)


def write_initial(versions: VersionStore, file: memoryview, max_bytes: int) -> VersionInfo:
    """Write anybody's safetensors file as version 0.

    Raises
    ------
    ModelError
        When it is no model, or too large.
    """
    if len(file) > max_bytes:
        raise ModelError(f"a model of {len(file)} bytes, expected at most {max_bytes} (model.max_bytes)")
    model = model_file.from_file(file)
    written = versions.write(0, model.chunks)
    layout = model.layout
    return VersionInfo(version=0, digest=written.digest, size=written.size, layout=layout.digest, n=layout.n)
