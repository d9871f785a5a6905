"""The worker's mind against a broker on virtual time, with a network and a power plug that hypothesis holds.

The broker here is written from the protocol alone: it asserts what a broker may rely on. Whatever happened,
once the faults stop everything that was finished is delivered, once, and nothing stays in anybody's hands.
"""

import random
from collections import deque
from typing import Any

import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmq.fedcore import wire
from fedmq.worker.connection import Phase
from fedmq.worker.entry import Entry
from fedmq.worker.events import (
    Action,
    AppFailed,
    CancelApp,
    CloseSocket,
    DeleteModel,
    DeleteOutbox,
    Event,
    Exit,
    KeepModel,
    Lost,
    ModelBroken,
    Opened,
    OpenSocket,
    Pause,
    Received,
    Resume,
    Send,
    SendStored,
    Start,
    StartApp,
    StoreBlock,
    Stored,
    Tick,
    Wake,
)
from fedmq.worker.session import Identity, Session

BLOCK = 1024
INLINE = 500
CREDIT = 3 * BLOCK
RIDES = 3200
"""Models of at most so many bytes come with their tasks, mostly."""
LEASE_S = 35.0


def model(version: int) -> bytes:
    return random.Random(version).randbytes(2500 + 700 * (version % 3))


def update(task: bytes) -> bytes:
    """What the app makes of a task: sometimes inline, sometimes several blocks."""
    return random.Random(task).randbytes((100, INLINE, INLINE + 1, 4 * BLOCK)[task[-1] % 4])


class Broker:
    """A broker as the protocol's page has it."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.version = 0
        self.wanted: set[bytes] = set()
        self.accepted: dict[bytes, bytes] = {}
        self.cancelled: set[bytes] = set()
        self.partial: dict[bytes, bytearray] = {}
        self.sizes: dict[bytes, int] = {}
        self.seqs: dict[bytes, int] = {}
        self.counter = 0
        self.out: list[tuple[wire.Message, bytes | None]] = []
        self.has_session = False
        self.fetches: list[wire.Fetch] = []
        self.begin(())

    def begin(self, listed: tuple[bytes, ...]) -> None:
        self.seq = 0
        self.free = 0
        self.seen = 0
        self.granted: dict[bytes, int] = {}
        self.results: set[bytes] = set()
        for task in [task for task in self.wanted if task not in listed]:
            self.wanted.discard(task)
            self.cancelled.add(task)
        self.seqs = dict.fromkeys(self.wanted, 0)

    def give(self) -> None:
        if not self.has_session or self.free <= self.seq - self.seen:
            return
        self.seq += 1
        self.counter += 1
        task = b"%d" % self.counter
        self.wanted.add(task)
        self.seqs[task] = self.seq
        file = model(self.version)
        digest = xxhash.xxh3_128_digest(file)
        fields: dict[str, Any] = {"size": len(file), "digest": digest, "layout": b"l"}
        rides = file if len(file) <= RIDES and self.rng.random() < 0.8 else None
        self.say(wire.Task(task=task, seq=self.seq, kind="fit", version=self.version, **fields), rides)

    def cancel(self) -> None:
        if self.has_session and self.wanted:
            task = self.rng.choice(sorted(self.wanted))
            self.wanted.discard(task)
            self.cancelled.add(task)
            self.say(wire.Cancel(task=task))

    def say(self, message: wire.Message, payload: bytes | None = None) -> None:
        self.out.append((message, payload))

    def reconcile(self, tasks: tuple[bytes, ...], outbox: tuple[bytes, ...]) -> None:
        assert not set(tasks) & set(outbox)
        here = {*tasks, *outbox}
        self.results.update(self.wanted.intersection(outbox))
        for task in [t for t in self.wanted if t not in here and self.seqs[t] <= self.seen]:
            self.wanted.discard(task)  # lost by the worker: somebody else gets one
            self.cancelled.add(task)
        for task in tasks:
            if task not in self.wanted:
                self.say(wire.Cancel(task=task))

    def hear_of(self, task: bytes) -> None:
        """The first OFFER of a result that no HELLO or BEAT has listed frees a slot."""
        if task in self.wanted and task not in self.results:
            self.results.add(task)
            self.free += 1

    def hear(self, message: wire.Message, payload: bytes | None) -> None:
        if isinstance(message, wire.Hello):
            self.has_session = True
            self.fetches.clear()
            self.begin((*message.tasks, *message.outbox))
            self.free = message.free
            terms: dict[str, Any] = {"block": BLOCK, "inline_max": INLINE, "credit": CREDIT}
            self.say(
                wire.Welcome(
                    protocol=1, federation="f", beat_s=10, lease_s=LEASE_S, max_model_bytes=10**6, **terms
                )
            )
            self.reconcile(message.tasks, message.outbox)
            return
        if not self.has_session:
            self.say(wire.Error(ref=message.code, why="need_hello"))
            return
        match message:
            case wire.Beat():
                assert message.free is not None
                assert message.seen is not None
                assert message.tasks is not None
                assert message.outbox is not None
                self.free, self.seen = message.free, message.seen
                self.reconcile(message.tasks, message.outbox)
            case wire.Fetch():
                self.fetches.append(message)
                assert len(self.fetches) <= wire.FETCHES_MAX
            case wire.Offer():
                self.offer(message, payload)
            case wire.Part():
                self.part(message, payload or b"")
            case wire.Fail():
                self.wanted.discard(message.task)
                self.cancelled.add(message.task)
            case wire.Bye():
                self.has_session = False

    def serve(self) -> None:
        """Send a block that was asked for."""
        if self.fetches:
            fetch = self.fetches.pop(0)
            file = model(fetch.version)
            data = file[fetch.offset : fetch.offset + fetch.length]
            assert data
            self.say(wire.Block(version=fetch.version, offset=fetch.offset), data)

    def offer(self, message: wire.Offer, payload: bytes | None) -> None:
        assert message.size is not None
        task = message.task
        self.hear_of(task)
        if task in self.accepted or task not in self.wanted:
            self.say(wire.Ack(task=task, result="duplicate" if task in self.accepted else "stale"))
        elif self.rng.random() < 0.2:
            self.granted.pop(task, None)
            self.say(wire.Wait(task=task, retry_s=2))
        elif payload is not None and self.rng.random() < 0.8:
            assert message.size <= INLINE
            self.accept(task, payload)
        else:
            held = self.partial.setdefault(task, bytearray())
            self.sizes[task] = message.size
            self.grant(task, len(held))

    def grant(self, task: bytes, offset: int) -> None:
        self.granted[task] = min(self.sizes[task], offset + CREDIT)
        self.say(wire.Grant(task=task, offset=offset, limit=self.granted[task]))

    def part(self, message: wire.Part, payload: bytes) -> None:
        held = self.partial.get(message.task)
        if held is None or message.task not in self.granted:
            return  # of a session before, or cancelled
        assert message.offset == len(held), "PARTs are contiguous"
        assert 0 < len(payload) <= BLOCK
        held += payload
        assert len(held) <= self.granted[message.task], "PARTs stay within the GRANT"
        if len(held) == self.sizes[message.task]:
            if message.task in self.wanted:
                self.accept(message.task, bytes(held))
            else:
                self.say(wire.Ack(task=message.task, result="stale"))
        else:
            self.grant(message.task, len(held))

    def accept(self, task: bytes, payload: bytes) -> None:
        assert payload == update(task)
        assert task not in self.accepted
        self.accepted[task] = payload
        self.wanted.discard(task)
        self.say(wire.Ack(task=task, result="accepted"))


class World:
    """One worker, one broker, a network between them, and the worker's disk."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.at_once = rng.randint(1, 5)
        """Messages that the worker finds when it looks."""
        self.now = 0.0
        self.broker = Broker(rng)
        self.outbox: dict[bytes, Entry] = {}
        self.models: dict[bytes, bytearray] = {}
        self.finished: set[bytes] = set()
        self.ended: set[bytes] = set()
        self.boot()

    def boot(self) -> None:
        """The process starts on what its disk holds."""
        self.up: deque[tuple[wire.Message, bytes | None]] = deque()
        self.down: deque[tuple[wire.Message, bytes | None]] = deque()
        self.socket = False
        self.connected = False
        self.may_speak = False
        self.job: wire.Task | None = None
        self.small: dict[bytes, bytes] = {}
        self.job_cancelled = False
        self.wake_at = float("inf")
        self.session = Session(
            Identity(name="w", instance=b"i" * 16, boot=b"b" * 16),
            rng=self.rng,
            outbox=list(self.outbox.values()),
            models={digest: len(file) for digest, file in self.models.items()},
        )
        self.tell(Start())

    def tell(self, *events: Event) -> None:
        for action in self.session.handle(*events, now=self.now):
            self.act(action)

    def act(self, action: Action) -> None:
        match action:
            case OpenSocket():
                assert not self.socket
                self.socket = True
            case CloseSocket():
                self.cut()
                self.socket = False
            case Send():
                self.send(action.message, None)
            case SendStored():
                payload = update(action.message.task)[action.offset :][: action.length]
                assert len(payload) == action.length
                self.send(action.message, payload)
            case StoreBlock():
                file = self.models.setdefault(action.digest, bytearray())
                assert len(file) == action.offset, "blocks are stored in order"
                file += action.data
            case KeepModel():
                assert action.digest not in self.models
                self.small[action.digest] = bytes(action.data)
            case DeleteModel():
                self.small.pop(action.digest, None)
                self.models.pop(action.digest, None)
            case DeleteOutbox():
                self.ended.add(action.task)
                del self.outbox[action.task]
            case StartApp():
                assert self.job is None, "one app at a time"
                self.job, self.job_cancelled = action.task, False
            case CancelApp():
                assert self.job is not None
                assert self.job.task == action.task
                self.job_cancelled = True
            case Wake():
                self.wake_at = action.at
            case Exit():
                raise AssertionError("nobody asked for that")

    def send(self, message: wire.Message, payload: bytes | None) -> None:
        assert self.connected
        if isinstance(message, wire.Hello):
            self.may_speak = False
        else:
            assert self.may_speak, "nothing but HELLO before WELCOME"
        self.up.append((message, payload))

    def connect(self) -> None:
        if self.socket and not self.connected:
            self.connected = True
            self.tell(Opened())

    def cut(self) -> None:
        """The connection is gone, and all that was on its way."""
        self.connected = False
        self.may_speak = False
        self.up.clear()
        self.down.clear()
        self.broker.out.clear()
        self.broker.has_session = False

    def lose(self) -> None:
        if self.connected:
            self.cut()
            self.tell(Lost())

    def forget(self) -> None:
        """The broker forgets the session, and keeps the connection: two leases, or a restart behind a proxy."""
        self.broker.has_session = False
        self.broker.out.clear()

    def crash(self) -> None:
        """kill -9, and a new process on the same state folder."""
        self.cut()
        self.boot()

    def rot(self) -> None:
        """A bit of a cached model changes."""
        for file in self.models.values():
            if file:
                file[0] ^= 1
                return

    def to_broker(self) -> None:
        if self.up:
            self.broker.hear(*self.up.popleft())

    def to_worker(self) -> None:
        self.down.extend(self.broker.out)
        self.broker.out.clear()
        events: list[Event] = []
        while self.down and len(events) < self.at_once:
            message, payload = self.down.popleft()
            if isinstance(message, wire.Welcome):
                self.may_speak = True
            events.append(Received(message, None if payload is None else memoryview(payload)))
        if events:
            self.tell(*events)

    def app_ends(self) -> None:
        job, self.job = self.job, None
        if job is None:
            return
        assert job.digest is not None
        file = self.small.get(job.digest) or bytes(self.models.get(job.digest, b""))
        if xxhash.xxh3_128_digest(file) != job.digest:
            self.tell(ModelBroken(job.task, job.digest))
            return
        data = update(job.task)
        fields: dict[str, Any] = {"layout": b"l", "encoding": "f32", "size": len(data), "digest": b"e" * 16}
        entry = Entry(task=job.task, kind="fit", federation="f", base=job.version, examples=1, **fields)
        self.outbox[job.task] = entry
        if not self.job_cancelled:
            self.finished.add(job.task)
        self.tell(Stored(entry))

    def app_fails(self) -> None:
        job, self.job = self.job, None
        if job is not None:
            self.tell(AppFailed(job.task, "raised"))

    def time(self) -> None:
        self.now = max(self.now, min(self.wake_at, self.now + 20))
        self.wake_at = float("inf") if self.wake_at <= self.now else self.wake_at
        self.tell(Tick())

    def next_version(self) -> None:
        self.broker.version += 1

    def step(self, name: str) -> None:
        match name:
            case "give":
                self.broker.give()
            case "cancel":
                self.broker.cancel()
            case "serve":
                self.broker.serve()
            case "pause":
                self.tell(Pause())
            case "resume":
                self.tell(Resume())
            case _:
                getattr(self, name)()

    def calm_down(self) -> None:
        """No more faults and no more tasks, until nothing happens any more."""
        self.tell(Resume())
        for _ in range(400):
            self.connect()
            for _ in range(40):
                self.to_broker()
                self.broker.serve()
                self.to_worker()
            self.app_ends()
            status = self.session.status()
            quiet = not (self.up or self.down or self.broker.out or status["tasks"] or status["outbox"])
            if quiet and self.session.phase is Phase.OPEN and not self.broker.wanted:
                believed = max(0, self.broker.free - (self.broker.seq - self.broker.seen))
                assert believed == self.session._free(self.now), "each side counts the free slots for itself"
                return
            self.time()
        raise AssertionError(f"never came to rest: {self.session.status()}, wanted {self.broker.wanted}")


ORDINARY = ("give", "serve", "to_broker", "to_worker", "app_ends", "connect")
FAULTS = ("lose", "forget", "crash", "rot", "cancel", "app_fails", "time", "pause", "resume", "next_version")


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 600), st.floats(0.0, 0.3), st.sets(st.sampled_from(FAULTS)))
def test_everything_finished_is_delivered_once(seed: int, steps: int, rate: float, faults: set[str]) -> None:
    """Whatever was lost, killed or cancelled on the way: a result ends by ACK or CANCEL, and no task stays."""
    world = World(random.Random(seed))
    kinds = sorted(faults)
    for _ in range(steps):
        strikes = kinds and world.rng.random() < rate
        world.step(world.rng.choice(kinds if strikes else ORDINARY))
    world.calm_down()
    assert world.outbox == {}
    assert world.finished <= world.ended
    settled = set(world.broker.accepted) | world.broker.cancelled
    assert settled == {b"%d" % i for i in range(1, world.broker.counter + 1)}


def test_a_calm_world_accepts_everything() -> None:
    """Without faults each task is accepted, and each model is fetched once."""
    world = World(random.Random(0))
    world.connect()
    for i in range(200):
        for name in ("give", "to_broker", "to_broker", "serve", "to_worker", "to_worker", "app_ends"):
            world.step(name)
        if i % 50 == 0:
            world.next_version()
    world.calm_down()
    assert len(world.broker.accepted) == world.broker.counter > 50
    assert not world.broker.cancelled
