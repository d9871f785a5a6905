"""Anything at all, to both minds and through both transports: no exception escapes, and nobody else pays for it.

A few seconds by default; ``FEDMQ_FUZZ=10 pytest tests/hostile/test_fuzz.py`` goes on for ten minutes. What hypothesis
finds it shrinks, and prints how to see it again.
"""

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import pytest
import xxhash
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedmq.broker.events import Received as ToBroker
from fedmq.broker.events import Violation
from fedmq.broker.tasks import TaskIds
from fedmq.broker.transport import Transport as BrokerTransport
from fedmq.broker.transport import Wires
from fedmq.fedcore import wire
from fedmq.fedcore.errors import ProtocolError
from fedmq.worker import events as to_worker
from fedmq.worker.session import Identity, Session
from fedmq.worker.transport import Transport as WorkerTransport

from ..integration.federation import wait_for
from ..unit.broker.federation import Federation, asynchronous, payload, synchronous
from .attackers import GREETING, READY, connect, frame, message

MINUTES = float(os.environ.get("FEDMQ_FUZZ", "0"))
TESTS = 6
"""How many share the time."""
Frames = list[bytes]

pytestmark = pytest.mark.timeout(int(120 + 90 * MINUTES))


def fuzz(once: Callable[[], None]) -> None:
    """Run it, and again until this test's share of the time is over."""
    ends = time.monotonic() + 60 * MINUTES / TESTS
    once()
    while time.monotonic() < ends:
        once()


def quickly(examples: int) -> settings:
    """So many examples, however slow each is."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    return settings(max_examples=examples, suppress_health_check=slow)


small = st.integers(0, 20)
numbers = st.one_of(
    small, st.integers(-(2**63), 2**64 - 1), st.sampled_from([2**31, 2**53 - 1, 2**53, 10**9]), st.floats()
)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=12) | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


def headers(kind: type[wire.Message], ids: st.SearchStrategy[bytes]) -> st.SearchStrategy[dict[str, Any]]:
    """Headers of a kind that are nearly right: its keys, each with a good value, mostly."""
    good: dict[str, st.SearchStrategy[Any]] = {
        "protocol": st.just(1),
        "name": st.sampled_from(["honest", "mallory", "eve"]),
        "federation": st.just("federation"),
        "instance": st.binary(min_size=1, max_size=4),
        "boot": st.just(b"b"),
        "kinds": st.lists(st.sampled_from(["fit", "evaluate", "init", "x"]), max_size=3),
        "encodings": st.lists(st.sampled_from(["f32", "i8", "x"]), max_size=2),
        "tags": st.lists(st.text(max_size=4), max_size=2),
        "tasks": st.lists(ids, max_size=4),
        "outbox": st.lists(ids, max_size=4),
        "task": ids,
        "kind": st.sampled_from(["fit", "evaluate", "init"]),
        "layout": st.just(b"layout"),
        "encoding": st.sampled_from(["f32", "f16", "safetensors"]),
        "digest": st.sampled_from([xxhash.xxh3_128_digest(payload()), bytes(16)]),
        "size": st.sampled_from([16, 5000, 0]),
        "metrics": st.just({"loss": 1.0}),
        "config": st.dictionaries(st.text(max_size=4), values, max_size=2),
        "result": st.sampled_from(["accepted", "duplicate", "stale", "rejected"]),
        "code": st.sampled_from([*wire.ERROR_CODES, "full", "name_in_use", "finished", "wrong_protocol"]),
        "reason": st.sampled_from(["", "finished", "shutdown", "why"]),
        "fatal": st.booleans(),
        "key": st.binary(min_size=32, max_size=32),
        "ref": st.sampled_from([1, 6, 8, 10]),
        "beat_s": st.sampled_from([0, 1.0, 1e9]),
        "lease_s": st.sampled_from([0, 3.0, 1e9]),
        "block": st.sampled_from([1, 1024, 2**31 - 1]),
    }
    keys = [field for field, _ in wire._keys(kind)]
    return st.fixed_dictionaries({key: good.get(key, small) for key in keys}).flatmap(
        lambda header: st.one_of(
            st.just(header),
            st.just(header),
            st.sampled_from(keys or [""]).map(
                lambda gone: {key: value for key, value in header.items() if key != gone}
            ),
            st.tuples(st.sampled_from([*keys, "new"]), values).map(lambda pair: header | {pair[0]: pair[1]}),
        )
    )


def packed(header: dict[str, Any]) -> bytes:
    """As msgpack; what it cannot pack (a surrogate, an integer of 70 bits) is nothing."""
    try:
        packed: bytes = msgpack.packb(header)
    except (ValueError, OverflowError, UnicodeEncodeError):
        return b"\xc1"
    return packed


def frames_of(table: wire.Table, ids: st.SearchStrategy[bytes]) -> st.SearchStrategy[Frames]:
    """Frame lists: good ones, good ones bent, and anything."""
    bodies = st.sampled_from([payload(), b"", b"x", bytes(5000)])

    def near(kind: type[wire.Message]) -> st.SearchStrategy[Frames]:
        first = wire.MAGIC + bytes([kind.code])
        return st.tuples(headers(kind, ids), st.lists(bodies, max_size=1)).map(
            lambda pair: [first, packed(pair[0]), *(pair[1] if kind.payload != "none" else [])]
        )

    good = st.sampled_from(sorted(table)).flatmap(lambda code: near(table[code]))
    bent = st.tuples(good, st.integers(0, 2**32 - 1)).map(lambda pair: _bend(pair[0], random.Random(pair[1])))
    return st.one_of(good, good, bent, st.lists(st.binary(max_size=60), max_size=5))


def _bend(frames: Frames, rng: random.Random) -> Frames:
    """Flip bits, cut, repeat, or shuffle."""
    frames = list(frames)
    where = rng.randrange(len(frames))
    body = bytearray(frames[where])
    match rng.randrange(5):
        case 0 if body:
            body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
            frames[where] = bytes(body)
        case 1:
            frames[where] = bytes(body[: rng.randrange(len(body) + 1)])
        case 2:
            frames.insert(where, frames[where])
        case 3:
            del frames[where]
        case _:
            rng.shuffle(frames)
    return frames


LIVE = [b"a task that is out, number %03d" % number + b" of all" for number in range(8)]
"""Stand for the ids of tasks that workers have by then; as long as those, so that bent frames stay bent."""


def alive(f: Federation, frames: Frames) -> Frames:
    """Frames with the ids of tasks that were given out, to whomever."""
    out = [m.task for messages in f.sent.values() for m in messages if isinstance(m, wire.Task)]
    for place, task in zip(LIVE, out, strict=False):
        frames = [frame.replace(place, task) for frame in frames]
    return frames


def plausible_ids() -> Frames:
    """Ids of tasks that are out, of tasks that an earlier life of this broker gave out, and one of nobody's."""
    f = Federation()
    found = [b"t" * 37, *LIVE]
    for name in ("honest", "mallory", "eve"):
        ids = TaskIds(b"f" * 16, b"k" * 32, b"boot0000")
        found += [ids.make("fit", name, version, f.info(version).digest) for version in (0, 0, 0, 1, 1, 2)]
    return found


class Honest:
    """A worker beside the attackers; what it has must not change by what they send that is no message."""

    def __init__(self, federation: Federation) -> None:
        self.worker = federation.worker("honest", instance=b"honest itself")
        self.federation = federation

    def is_at(self, peer: bytes) -> bool:
        """Whether its name's session is on this connection."""
        worker = self.federation.mind._books.workers.at(peer)
        return worker is not None and worker.id == "honest"

    def state(self) -> dict[str, Any]:
        """What the broker says of it."""
        return next(w for w in self.federation.status()["workers"] if w["name"] == "honest")


def consistent(f: Federation) -> None:
    """What holds of the books at any time."""
    books = f.mind._books
    holders: dict[bytes, str] = {}
    busy = 0
    for worker in books.workers:
        for task, held in worker.held.items():
            assert holders.setdefault(task, worker.id) == worker.id, "a task has two owners"
            busy += held.kind == "fit" and held.phase.value == "sent"
    assert books.workers.busy == busy
    assert 0 <= books.uploads.in_flight() <= f.config.network.credit_budget
    for worker, session in books.workers.sessions():
        assert books.workers.at(session.peer) is worker
    assert all(books.workers.get(worker_id) for worker_id in books.queue)


@pytest.mark.parametrize("mode", ["async", "sync"])
def test_the_brokers_mind_bears_anything(mode: str) -> None:
    """Random interleavings of three attackers' messages, an honest worker's, ticks and folds.

    What is no message changes nothing of the honest worker's; at the end its update is accepted like ever.
    """
    ids = st.sampled_from(plausible_ids()) | st.binary(max_size=70)
    steps = st.lists(
        st.one_of(
            st.tuples(st.sampled_from([b"m", b"e", b"s"]), frames_of(wire.TO_BROKER, ids)),
            st.sampled_from([("wait", 1.0), ("wait", 40.0), ("fold", 0), ("honest", 0)]),
        ),
        max_size=40,
    )

    @quickly(200)
    @given(steps)
    def once(steps: list[tuple[Any, Any]]) -> None:
        config = asynchronous(buffer=3) if mode == "async" else synchronous(min_available=1, deadline_s=30.0)
        f = Federation(config)
        honest = Honest(f)
        for who, what in steps:
            if who == "wait":
                f.wait(what)
            elif who == "fold":
                if f.folds:
                    f.fold()
            elif who == "honest":
                honest.worker.hello()
            else:
                _deliver(f, honest, who, alive(f, what))
            consistent(f)
        f.wait(1)
        while f.folds:
            f.fold()
        f.wait(90)
        honest.worker.hello()
        f.wait(100)
        honest.worker.hello(outbox=())
        f.wait(2)
        assert not f.exit
        for _ in range(20):
            if honest.worker.tasks("fit"):
                break
            while f.folds:
                f.fold()
            f.wait(31)
            honest.worker.hello()
        assert honest.worker.fit().result == "accepted"

    fuzz(once)


def _deliver(f: Federation, honest: Honest, peer: bytes, frames: Frames) -> None:
    """As the transport does it."""
    before = honest.state()
    try:
        decoded, data = wire.decode(frames, wire.TO_BROKER)
    except ProtocolError as error:
        # Without keys a name is all that tells workers apart: one that was silent for long may be played by another.
        is_played = honest.is_at(peer)
        f.tell(Violation(peer, 0, wire.clip(str(error)), error.task))
        after = honest.state()
        assert is_played or {key: before[key] for key in before if not key.endswith("_s")} == {
            key: after[key] for key in after if not key.endswith("_s")
        }
    else:
        f.tell(ToBroker(peer, decoded, data))


def test_the_workers_mind_bears_anything() -> None:
    """A broker that says anything, in any order, while the app and the socket do what they do."""
    ids = st.sampled_from([b"t1", b"t2", b"t3"]) | st.binary(max_size=70)
    local = st.sampled_from(
        [to_worker.Tick(), to_worker.Opened(), to_worker.Lost(), to_worker.Pause(), to_worker.Resume()]
    )
    steps = st.lists(
        st.one_of(frames_of(wire.TO_WORKER, ids), frames_of(wire.TO_WORKER, ids), local), max_size=60
    )

    @quickly(300)
    @given(steps, st.integers(0, 2**32 - 1))
    def once(steps: list[Any], seed: int) -> None:
        me = Identity(name="w", instance=b"i" * 16, boot=b"b" * 16)
        session = Session(me, rng=random.Random(seed))
        now, exits, events = 0.0, 0, [to_worker.Start(), to_worker.Opened(), *steps]
        for step in events:
            now += 0.5
            event = step
            if isinstance(step, list):
                try:
                    event = to_worker.Received(*wire.decode(step, wire.TO_WORKER))
                except ProtocolError:
                    continue
            for action in session.handle(event, now=now):
                assert not exits, "nothing is asked for after the end"
                exits += isinstance(action, to_worker.Exit)
                if isinstance(action, to_worker.Send):
                    wire.decode(wire.encode(action.message), wire.TO_BROKER)
        for _ in range(5):
            now += 1000.0
            session.handle(to_worker.Tick(), now=now)

    fuzz(once)


@pytest.fixture
def broker() -> Iterator[BrokerTransport]:
    """A broker's socket in this process."""
    transport = BrokerTransport(Wires(bind="tcp://127.0.0.1:*", block=4096, high_water=16))
    yield transport
    transport.close()


def drained(transport: BrokerTransport, seconds: float = 0.0) -> list[Any]:
    """What has arrived; reading is all that the transport is asked for."""
    transport.poll(seconds)
    found = list(transport.receive())
    transport.retry()
    return found


def test_the_brokers_socket_bears_any_frames(broker: BrokerTransport) -> None:
    """Whatever frames come, one event comes of each message, a message or a violation; and HELLO still arrives."""
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.linger = 0
    dealer.connect(broker.endpoint)

    @quickly(200)
    @given(st.lists(frames_of(wire.TO_BROKER, st.binary(max_size=70)).filter(bool), max_size=8))
    def once(messages: list[Frames]) -> None:
        for frames in messages:
            dealer.send_multipart(frames)
        hello = wire.Hello(protocol=1, name="last", instance=b"i", boot=b"b")
        dealer.send_multipart(wire.encode(hello))
        found: list[Any] = []

        def last() -> bool:
            found.extend(drained(broker, 0.05))
            return bool(found) and getattr(found[-1], "message", None) == hello

        wait_for("HELLO", last, 20)
        assert len(found) >= len(messages) + 1
        assert all(isinstance(event, ToBroker | Violation) for event in found)

    try:
        fuzz(once)
    finally:
        context.destroy(linger=0)


def test_the_brokers_socket_bears_any_bytes(broker: BrokerTransport) -> None:
    """Bytes that are no ZMTP, or nearly: greetings cut and bent, lengths forged, ends missing; HELLO still arrives."""
    stream = GREETING + READY + message(b"FQ\x01\x04", b"\x80") + frame(b"x" * 300, more=True)
    bent = st.tuples(st.integers(0, len(stream)), st.binary(max_size=12), st.integers(0, len(stream))).map(
        lambda cut: stream[: cut[0]] + cut[1] + stream[cut[2] :]
    )
    old = st.binary(max_size=80).map(lambda rest: b"\x01\x00" + rest)  # ZMTP 1.0
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.linger = 0
    dealer.connect(broker.endpoint)

    @quickly(200)
    @given(st.lists(st.one_of(bent, st.binary(max_size=200), old), max_size=4))
    def once(streams: list[bytes]) -> None:
        for data in streams:
            with contextlib.suppress(OSError), connect(broker.endpoint) as stranger:
                stranger.sendall(data)
        hello = wire.Hello(protocol=1, name="last", instance=b"i", boot=b"b")
        dealer.send_multipart(wire.encode(hello))
        found: list[Any] = []

        def arrived() -> bool:
            events = drained(broker, 0.02)
            for event in events:  # as the mind would
                if isinstance(event, Violation):
                    broker.drop(event.peer)
            found.extend(events)
            return any(getattr(event, "message", None) == hello for event in found)

        wait_for("HELLO", arrived, 20)

    try:
        fuzz(once)
    finally:
        context.destroy(linger=0)


def test_the_workers_socket_bears_any_frames() -> None:
    """A broker that sends anything: what is no message is ignored, and the next BEAT arrives."""
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.linger = 0
    port = router.bind_to_random_port("tcp://127.0.0.1")
    transport = WorkerTransport(f"tcp://127.0.0.1:{port}")
    transport.open()
    transport.send(wire.Hello(protocol=1, name="w", instance=b"i", boot=b"b"))

    def connected() -> bool:
        transport.wait(0.02)
        transport.flush()
        return bool(router.poll(20))

    wait_for("its HELLO", connected, 20)
    peer = router.recv_multipart()[0]

    @quickly(200)
    @given(st.lists(frames_of(wire.TO_WORKER, st.binary(max_size=70)).filter(bool), max_size=8))
    def once(messages: list[Frames]) -> None:
        for frames in messages:
            router.send_multipart([peer, *frames])
        router.send_multipart([peer, *wire.encode(wire.Cancel(task=b"the last"))])
        found: list[Any] = []

        def last() -> bool:
            found.extend(transport.wait(0.05))
            return any(getattr(event, "message", None) == wire.Cancel(task=b"the last") for event in found)

        wait_for("the last message", last, 20)

    try:
        fuzz(once)
    finally:
        transport.terminate()
        context.destroy(linger=0)
