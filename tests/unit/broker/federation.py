"""A federation for tests: the broker's mind, its actions carried out in memory, and workers that do as they are told.

The test decides when a commit is durable (`hold` and `commit`), when a fold is done (`fold`), and what time it is
(`wait`). Everything else is answered at once, as a body with infinitely fast disks would.
"""

import math
from collections import deque
from collections.abc import Iterable
from typing import Any, TypeVar

import msgspec
import numpy as np
import xxhash

from fedmq.broker import mechanism
from fedmq.broker.coordinator import Coordinator
from fedmq.broker.events import (
    Action,
    Adopt,
    Adopted,
    Collect,
    Commit,
    Control,
    Discard,
    Drain,
    Drop,
    EncodeModel,
    Evaluate,
    Event,
    Exit,
    Fold,
    Folded,
    ModelEncoded,
    Note,
    OpenUpload,
    PartWritten,
    Peer,
    Received,
    Register,
    Reply,
    Seal,
    Sealed,
    Send,
    SendBlock,
    SendTask,
    Tell,
    Tick,
    UploadOpened,
    Wake,
    WritePart,
)
from fedmq.broker.rows import Recovered, Row, VersionInfo, VersionRow
from fedmq.broker.store.journal import Journal
from fedmq.broker.tasks import TaskIds
from fedmq.fedcore import wire
from fedmq.fedcore.config import AsyncMode, Config, Model, SyncMode, WorkerPrivacy
from fedmq.fedcore.config import Evaluate as EvaluateTable
from fedmq.fedcore.privacy.sampled_workers import Coin

M = TypeVar("M", bound=wire.Message)
R = TypeVar("R", bound=msgspec.Struct)

LAYOUT = b"layout"
TICK_S = 1.0


def asynchronous(**keys: Any) -> Config:
    """A config in asynchronous mode; keys of `[mode]`, and whole tables by their names."""
    return _config(AsyncMode, keys)


def synchronous(**keys: Any) -> Config:
    """A config in synchronous mode; keys of `[mode]`, and whole tables by their names."""
    return _config(SyncMode, keys)


def payload(number: float = 1.0, elements: int = 4) -> bytes:
    """An f32 update whose elements are all `number`."""
    return np.full(elements, number, "<f4").tobytes()


class Federation:
    """One broker's mind and what came of it.

    Parameters
    ----------
    config : Config
    elements : int
        Of the model's flat vector.
    rows : iterable of rows
        What the journal holds at the start; None for version 0 and nothing else.
    model_bytes : int
        Of a version's file.
    coin : Coin, optional
        Where the config samples workers; by default one of a key of the federation's.
    """

    def __init__(
        self,
        config: Config | None = None,
        *,
        elements: int = 4,
        rows: Iterable[Row] | None = None,
        model_bytes: int = 5000,
        coin: Coin | None = None,
    ) -> None:
        self.config = config or asynchronous()
        self.elements = elements
        self.model_bytes = model_bytes
        self.coin = coin or mechanism.coin(self.config, b"n" * 32)
        first = () if self.config.model.source == "first-worker" else (VersionRow(info=self.info(0)),)
        self.rows: list[Row] = list(first if rows is None else rows)
        self.now = 100.0
        self._lives = 0
        self.lost: set[int] = set()
        """Versions whose files are not there at the next start."""
        self.spool: dict[bytes, bytearray] = {}
        self._encodings: dict[bytes, str] = {}
        self._begin()

    def restart(self) -> None:
        """The process dies; another one starts from what is durable. Sessions are gone."""
        self._begin()

    def tell(self, event: Event) -> None:
        """Hand an event to the mind and carry out what it wants."""
        self._carry_out(self.mind.handle(event, self.now))

    def wait(self, seconds: float) -> None:
        """Let time pass, with all ticks."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(self.now + TICK_S, end)
            self.tell(Tick())

    def commit(self, most: float = math.inf) -> None:
        """Make everything durable that was handed to the journal, or the first `most` commits of it."""
        while self.pending and most > 0:
            most -= 1
            commit = self.pending.popleft()
            self.rows += commit.rows
            self._carry_out(commit.then)

    def fold(self, digest: bytes | None = None) -> Fold:
        """The aggregation thread finishes the fold that it was asked for."""
        fold = self.folds.popleft()
        info = self.info(fold.buffer + 1)
        self.tell(
            Folded(
                info=info if digest is None else msgspec.structs.replace(info, digest=digest),
                updates=len(fold.rows),
                examples=sum(row.examples for row in fold.rows),
                frac_bits=20,
                denominator=1.0,
                update_norm=1.0,
                seconds=0.1,
                charged=1.0 if isinstance(self.config.privacy, WorkerPrivacy) else None,
            )
        )
        return fold

    def encode(self, refusal: str = "") -> EncodeModel:
        """The aggregation thread has made of a version what workers fetch, or says why it cannot."""
        job = self.encodings.popleft()
        digest = xxhash.xxh3_128_digest(b"version %d, encoded" % job.version)
        made = ModelEncoded(job.version, job.encoding, self.model_bytes // 2, digest)
        self.tell(ModelEncoded(job.version, job.encoding, refusal=refusal) if refusal else made)
        return job

    def operate(self, command: str, **args: Any) -> dict[str, Any] | None:
        """A command over the control socket; the reply if there is one yet."""
        self.replies.pop(1, None)
        self.tell(Control(1, command, args))
        return self.replies.get(1)

    def drain(self) -> None:
        """SIGTERM."""
        self.tell(Drain())

    def status(self) -> dict[str, Any]:
        """What `fedmq status` shows."""
        return self.mind.status(self.now)

    def worker(self, name: str, **hello: Any) -> "Worker":
        """A worker that has said HELLO."""
        worker = Worker(self, name)
        worker.hello(**hello)
        return worker

    def workers(self, count: int, **hello: Any) -> list["Worker"]:
        """Workers w0, w1, … that have said HELLO, in this order."""
        return [self.worker(f"w{i}", **hello) for i in range(count)]

    def durable(self, kind: type[R]) -> list[R]:
        """The durable rows of a kind."""
        return [row for row in self.rows if isinstance(row, kind)]

    def info(self, version: int) -> VersionInfo:
        """A version that everybody knows how to make."""
        digest = xxhash.xxh3_128_digest(b"version %d" % version)
        return VersionInfo(
            version=version, digest=digest, size=self.model_bytes, layout=LAYOUT, n=self.elements
        )

    def task_id(self, kind: Any, worker: str, version: int) -> bytes:
        """An id that this broker would make, but did not."""
        digest = b"" if kind == "init" else self.info(version).digest
        return self._ids.make(kind, worker, version, digest)

    def _begin(self) -> None:
        self._lives += 1
        self.hold = False
        """Whether commits wait for `commit`."""
        self.slow_spool = False
        """Whether spool actions are only kept, in `spooling`."""
        self.pending: deque[Commit] = deque()
        self.folds: deque[Fold] = deque()
        self.encodings: deque[EncodeModel] = deque()
        self.spooling: list[Action] = []
        self.sent: dict[Peer, list[wire.Message]] = {}
        self.rode: list[tuple[Peer, int]] = []
        """Whom a task brought its version's file as well, and which."""
        self.blocks: list[SendBlock] = []
        self.dropped: list[Peer] = []
        self.discarded: list[bytes] = []
        self.adoptions: list[Adopt] = []
        self.evaluations: list[int] = []
        self.collected: list[int] = []
        self.registering: list[Register] = []
        self.notes: list[Note] = []
        self.replies: dict[int, dict[str, Any]] = {}
        self.exit: Exit | None = None
        self._ids = TaskIds(b"f" * 16, b"k" * 32, b"boot%04d" % self._lives)
        recovered = self._recover()
        self.mind = Coordinator(self.config, self._ids, "federation", recovered, self.now, self.coin)
        self._carry_out(self.mind.start(self.now))

    def _recover(self) -> Recovered:
        journal = Journal.open(":memory:", "os", wall=lambda: self.now, clock=lambda: self.now)
        journal.apply(self.rows)
        mode = self.config.mode
        versions = {row.info.version for row in self.durable(VersionRow)} - self.lost
        recovered = journal.recover(mode.max_staleness if isinstance(mode, AsyncMode) else 0, versions)
        journal.close()
        return recovered

    def _carry_out(self, actions: Iterable[Action]) -> None:
        for action in actions:
            self._do(action)

    def _do(self, action: Action) -> None:
        match action:
            case Send(peer, message) | SendTask(peer, message):
                wire.encode(message)
                if isinstance(action, SendTask):
                    self.rode.append((peer, message.version))
                self.sent.setdefault(peer, []).append(message)
            case SendBlock():
                self.blocks.append(action)
            case Drop(peer):
                self.dropped.append(peer)
            case Commit():
                self.pending.append(action)
                if not self.hold:
                    self.commit()
            case Tell(event):
                self.tell(event)
            case OpenUpload() | WritePart() | Seal():
                self.spooling.append(action)
                if not self.slow_spool:
                    self.serve_spool()
            case Discard(tasks):
                self.discarded += tasks
                for task in tasks:
                    self.spool.pop(task, None)
            case Fold():
                self.folds.append(action)
            case EncodeModel():
                self.encodings.append(action)
            case Adopt():
                self.adoptions.append(action)
            case Evaluate(version):
                self.evaluations.append(version)
            case Collect(versions):
                self.collected += versions
            case Register():
                self.registering.append(action)
            case Reply(token, data):
                self.replies[token] = data
            case Note():
                self.notes.append(action)
            case Exit():
                self.exit = action
            case Wake(at):
                assert at > self.now
            case _:
                raise TypeError(f"not an action: {action}")

    def serve_spool(self) -> None:
        """Let the spool thread do what it was asked for."""
        actions, self.spooling = self.spooling, []
        for action in actions:
            match action:
                case OpenUpload(task, _, encoding):
                    self._encodings[task] = encoding
                    self.tell(UploadOpened(task, len(self.spool.setdefault(task, bytearray()))))
                case WritePart(task, offset, data):
                    file = self.spool[task]
                    assert offset == len(file), "a hole in a spool file"
                    file += data
                    self.tell(PartWritten(task, len(file)))
                case Seal(task):
                    data = bytes(self.spool[task])
                    is_update = self._encodings[task] == "f32"
                    norm = float(np.linalg.norm(np.frombuffer(data, "<f4"))) if is_update else None
                    self.tell(Sealed(task, xxhash.xxh3_128_digest(data), norm))

    def adopt(self) -> None:
        """The spool thread makes version 0 of the file that it was told to adopt."""
        self.tell(Adopted(self.adoptions.pop(0).task, self.info(0)))


class Worker:
    """A worker that does what the test says, and nothing by itself.

    An OFFER frees a slot, so that the next task may be here at once. A test goes on with the one that it has
    offered until it says BEAT or HELLO: only then does the worker turn to what came meanwhile.
    """

    def __init__(self, federation: Federation, name: str) -> None:
        self.name = name
        self.peer: Peer = name.encode()
        self.instance = b"instance " + name.encode()
        self.key: str | None = None
        """The public key of its connection, where the broker has keys."""
        self._federation = federation
        self._positions: dict[bytes, int] = {}
        self._offered: wire.Task | None = None

    def say(self, message: wire.Message, data: bytes | None = None) -> None:
        """Send a message."""
        view = None if data is None else memoryview(data)
        self._federation.tell(Received(self.peer, message, view, self.key))

    def hello(self, *, peer: Peer | None = None, instance: bytes | None = None, **fields: Any) -> None:
        """Say HELLO, perhaps over another connection; what came before is forgotten."""
        self.peer = peer or self.peer
        self._offered = None
        self._federation.sent.pop(self.peer, None)
        hello = wire.Hello(protocol=1, name=self.name, instance=instance or self.instance, boot=b"boot")
        self.say(msgspec.structs.replace(hello, **fields))

    def beat(
        self,
        tasks: tuple[bytes, ...] | None = None,
        outbox: tuple[bytes, ...] = (),
        *,
        free: int | None = None,
    ) -> None:
        """Say what it holds, by default what came since its OFFER; it has seen every TASK that was sent."""
        seen = max((task.seq for task in self.tasks()), default=0)
        if tasks is None:
            last = seen if self._offered is None else self._offered.seq
            tasks = tuple(task.task for task in self.tasks() if task.seq > last)
        self._offered = None
        self.say(
            wire.Beat(tasks=tasks, outbox=outbox, free=int(not tasks) if free is None else free, seen=seen)
        )

    def got(self, kind: type[M]) -> list[M]:
        """The messages of a kind that it got in this session."""
        return [m for m in self._federation.sent.get(self.peer, []) if isinstance(m, kind)]

    def last(self, kind: type[M]) -> M:
        """The last message of a kind that it got in this session."""
        return self.got(kind)[-1]

    def tasks(self, kind: str | None = None) -> list[wire.Task]:
        """The tasks that it got in this session."""
        return [task for task in self.got(wire.Task) if kind in (None, task.kind)]

    def task(self, kind: str = "fit") -> wire.Task:
        """The task of a kind that it works on."""
        if self._offered is not None and self._offered.kind == kind:
            return self._offered
        return self.tasks(kind)[-1]

    def offer(
        self, about: wire.Task, /, data: bytes | None = None, *, inline: bool = True, **fields: Any
    ) -> None:
        """Offer what was made of a task, inline or to be sent in PARTs; `fields` replace what is true."""
        data = payload(elements=self._federation.elements) if data is None else data
        self._positions.pop(about.task, None)
        self._offered = about
        true = {
            "task": about.task,
            "kind": about.kind,
            "base": about.version,
            "examples": 10,
            "layout": about.layout,
            "encoding": "safetensors" if about.kind == "init" else "f32",
            "size": len(data),
            "digest": xxhash.xxh3_128_digest(data),
        }
        self.say(wire.Offer(**(true | fields)), data if inline else None)

    def answer(self, task: wire.Task, examples: int = 10, **metrics: float) -> None:
        """Offer the metrics of an evaluate task."""
        metrics = metrics or {"loss": 1.0}
        self.say(
            wire.Offer(task=task.task, kind="evaluate", base=task.version, examples=examples, metrics=metrics)
        )

    def part(self, task: wire.Task, data: bytes, offset: int) -> None:
        """Send a PART."""
        self.say(wire.Part(task=task.task, offset=offset), data)

    def send_granted(self, task: wire.Task, data: bytes, piece: int = 1024) -> int:
        """Send all that is granted: from where the first GRANT after the OFFER says; how far that is."""
        while True:
            grants = [grant for grant in self.got(wire.Grant) if grant.task == task.task]
            position = self._positions.setdefault(task.task, grants[-1].offset)
            stop = min(position + piece, max(grant.limit for grant in grants))
            if stop <= position:
                return position
            self._positions[task.task] = stop
            self.part(task, data[position:stop], position)

    def fit(self, data: bytes | None = None, **fields: Any) -> wire.Ack:
        """Finish the last fit task and be free again; the answer."""
        self.offer(self.task(), data, **fields)
        self.beat()
        return self.last(wire.Ack)


def _config(mode: type[AsyncMode] | type[SyncMode], keys: dict[str, Any]) -> Config:
    names = {field.name for field in msgspec.structs.fields(mode)}
    tables = {key: value for key, value in keys.items() if key not in names}
    # What most tests want.
    tables.setdefault("model", Model(initial="app:initial"))
    tables.setdefault("evaluate", EvaluateTable(every=0))
    return Config(mode=mode(**{key: value for key, value in keys.items() if key in names}), **tables)
