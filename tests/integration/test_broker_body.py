"""The broker's body under a scripted mind: real sockets, real threads, a real journal, one raw DEALER."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
import zmq

from fedmq.broker import control, threads, transport
from fedmq.broker.body import Body
from fedmq.broker.control import ControlServer
from fedmq.broker.events import (
    Action,
    Collect,
    Commit,
    Control,
    Discard,
    Drain,
    Drop,
    Event,
    Exit,
    Folded,
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
    Violation,
    Wake,
    WritePart,
)
from fedmq.broker.notes import NoteLog
from fedmq.broker.rows import CounterRow, Row, VersionInfo, VersionRow
from fedmq.broker.store.journal import Journal
from fedmq.broker.store.spool import Spool
from fedmq.broker.store.versions import VersionStore
from fedmq.broker.threads import Commits, Halt, Notice, Service, Spooler, write_initial
from fedmq.broker.transport import UNSENT_MAX, Transport, Wires
from fedmq.broker.watchdog import Watchdog
from fedmq.fedcore import model_file, wire
from fedmq.fedcore.errors import ConfigError, StateError
from fedmq.fedcore.inbox import Inbox

BLOCK = 1 << 20
WAIT_S = 20.0
HELLO = wire.Hello(protocol=1, name="w", instance=b"i", boot=b"b")

React = Callable[[Event], Sequence[Action]]


class Ask(Event, frozen=True):
    """A test's own event: the mind is to ask for these actions."""

    actions: tuple[Action, ...]


class Script:
    """A mind that remembers what it was told, and answers as a test says."""

    def __init__(self, react: React | None = None, first: Sequence[Action] = ()) -> None:
        self.react: React = react or (lambda event: ())
        self.first = list(first)
        self.told: list[Event] = []
        self._changed = threading.Condition()

    def start(self, now: float) -> list[Action]:
        return self.first

    def handle(self, event: Event, now: float) -> list[Action]:
        if isinstance(event, Ask):
            return list(event.actions)
        with self._changed:
            self.told.append(event)
            self._changed.notify_all()
        if isinstance(event, Drain):
            return [Exit(0, "drained")]
        return list(self.react(event))

    def wait_for(self, kind: type[Event], count: int = 1) -> list[Any]:
        """The events of a kind, when there are so many."""
        with self._changed:
            assert self._changed.wait_for(
                lambda: sum(isinstance(event, kind) for event in self.told) >= count, WAIT_S
            ), f"{count} {kind.__name__}, got {self.told}"
            return [event for event in self.told if isinstance(event, kind)]


class GatedJournal(Journal):
    """A journal on a disk that a test can stop, or break."""

    gate: threading.Event
    transactions: list[int]
    broken: Exception | None

    def apply(self, rows: Sequence[Row]) -> None:
        self.transactions.append(len(rows))
        assert self.gate.wait(WAIT_S)
        if self.broken is not None and rows:
            raise self.broken
        super().apply(rows)


class Rig:
    """A body and everything around it."""

    def __init__(
        self, folder: Path, mind: Script, *, bind: str = "tcp://127.0.0.1:*", water: int = 40
    ) -> None:
        self.mind = mind
        self.folder = folder
        self.inbox: Inbox[Notice] = Inbox()
        self.stack = contextlib.ExitStack()
        self.transport = Transport(Wires(bind=bind, block=BLOCK, high_water=water))
        self.stack.callback(lambda: self.transport.close(1.0))
        self.journal = GatedJournal.open(folder / "journal.db", "os")
        assert isinstance(self.journal, GatedJournal)
        self.journal.gate = threading.Event()
        self.journal.gate.set()
        self.journal.transactions = []
        self.journal.broken = None
        self.stack.callback(self.journal.close)
        self.versions = VersionStore(folder / "versions")
        self.spool = Spool(folder / "spool")
        self.stack.callback(self.spool.close)
        self.store = Service("store", self.inbox, Commits(self.journal))
        self.stack.callback(self.store.close)
        self.spooler = Service("spool", self.inbox, Spooler(self.spool, self.versions, 1 << 30))
        self.stack.callback(self.spooler.close)
        idle: Any = Service("idle", self.inbox, lambda jobs: ())
        self.stack.callback(idle.close)
        self.control = ControlServer(folder / "control.sock", self.inbox)
        self.stack.callback(self.control.close)
        self.body = Body(
            mind,
            transport=self.transport,
            control=self.control,
            inbox=self.inbox,
            store=self.store,
            spooler=self.spooler,
            folder=idle,
            judge=idle,
            versions=self.versions,
            watchdog=Watchdog(0),
            notes=NoteLog(__import__("logging").getLogger("fedmq.broker.test")),
            figures=lambda: {"endpoint": self.transport.endpoint},
        )
        self.exit: Exit | None = None
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.exit = self.body.run()
        except BaseException as error:  # the test looks at it
            self.failure = error

    def __enter__(self) -> "Rig":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.inbox.put(Drain())
        self.inbox.put(Halt("the test is over"))
        self.journal.gate.set()
        self.join()
        self.stack.close()
        self.inbox.close()

    def join(self) -> None:
        """Wait for the loop to end."""
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()


class Dealer:
    """A worker's end of the wire, by hand."""

    def __init__(self, endpoint: str, water: int = 1000) -> None:
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.RCVHWM, water)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(endpoint)

    def send(self, message: wire.Message, payload: wire.Frame | None = None) -> None:
        self.socket.send_multipart(wire.encode(message, payload))

    def receive(self) -> tuple[Any, memoryview | None]:
        assert self.socket.poll(int(WAIT_S * 1000)), "nothing arrived"
        return wire.decode(self.socket.recv_multipart(), wire.TO_WORKER)

    def close(self) -> None:
        self._context.destroy(linger=0)


@contextlib.contextmanager
def talking(rig: Rig, water: int = 1000) -> Iterator[tuple[Dealer, bytes]]:
    """A dealer that has said HELLO, and the peer that the mind knows it as."""
    dealer = Dealer(rig.transport.endpoint, water)
    try:
        before = sum(isinstance(event, Received) for event in rig.mind.told)
        dealer.send(HELLO)
        yield dealer, rig.mind.wait_for(Received, before + 1)[-1].peer
    finally:
        dealer.close()


def count(name: str) -> CounterRow:
    return CounterRow(counts={name: 1})


def bye(reason: str) -> wire.Bye:
    return wire.Bye(reason=reason)


def counts_in(rig: Rig) -> dict[str, int]:
    with Journal.read_only(rig.folder / "journal.db") as history:
        return dict(history.summary()["counts"])


def do(rig: Rig, *actions: Action) -> None:
    """Have the mind ask for these, from outside of the loop."""
    rig.inbox.put(Ask(actions))


def test_messages_to_a_peer_keep_their_order(tmp_path: Path) -> None:
    """All of them arrive, in the order of the actions."""
    with Rig(tmp_path, Script()) as rig, talking(rig) as (dealer, peer):
        do(rig, *(Send(peer, bye(str(number))) for number in range(300)))
        assert [dealer.receive()[0].reason for _ in range(300)] == [str(number) for number in range(300)]


def test_then_runs_when_its_rows_are_durable(tmp_path: Path) -> None:
    """Whoever reads the answer finds the rows in the journal."""

    def react(event: Event) -> Sequence[Action]:
        assert isinstance(event, Received)
        return [Commit((count("accepted"),), (Send(event.peer, bye("durable")),))]

    with Rig(tmp_path, Script(react)) as rig, talking(rig) as (dealer, _):
        assert dealer.receive()[0].reason == "durable"
        assert counts_in(rig)["accepted"] == 1


def test_answers_wait_for_their_commits_and_nothing_else_does(tmp_path: Path) -> None:
    """While the disk stands still others are served; then answers come in the order of their commits."""
    with Rig(tmp_path, Script()) as rig, talking(rig) as (dealer, peer):
        rig.journal.gate.clear()
        do(
            rig,
            Commit((count("a"),), (Send(peer, bye("a")),)),
            Commit((), (Send(peer, bye("after a")),)),
            Commit((count("b"),), (Send(peer, bye("b")), Tell(Folded_ := _folded()))),
            Send(peer, bye("at once")),
        )
        assert dealer.receive()[0].reason == "at once"
        assert not dealer.socket.poll(100)
        rig.journal.gate.set()
        assert [dealer.receive()[0].reason for _ in range(3)] == ["a", "after a", "b"]
        assert rig.mind.wait_for(Folded) == [Folded_]


def _folded() -> Folded:
    info = VersionInfo(version=1, digest=b"d" * 16, size=1, layout=b"l", n=1)
    return Folded(info, updates=1, examples=1, frac_bits=1, denominator=1.0, update_norm=1.0, seconds=0.0)


def test_a_commit_without_rows_runs_at_once_when_nothing_is_pending(tmp_path: Path) -> None:
    """It costs no transaction."""
    with Rig(tmp_path, Script()) as rig, talking(rig) as (dealer, peer):
        do(rig, Commit((), (Send(peer, bye("now")),)))
        assert dealer.receive()[0].reason == "now"
        assert rig.journal.transactions == []


def acknowledge(event: Event) -> Sequence[Action]:
    """A mind that commits something for each message, and then says so."""
    return [Commit((count("n"),), (Send(event.peer, bye("ok")),))] if isinstance(event, Received) else ()


def test_commits_that_queue_during_one_go_into_the_next(tmp_path: Path) -> None:
    """Forty answers cost two transactions: the one that was under way, and one for the rest."""
    with Rig(tmp_path, Script()) as rig, talking(rig) as (dealer, _):
        rig.journal.gate.clear()
        rig.mind.react = acknowledge
        dealer.send(wire.Beat())
        deadline = time.monotonic() + WAIT_S
        while not rig.journal.transactions and time.monotonic() < deadline:
            time.sleep(0.001)
        for _ in range(39):
            dealer.send(wire.Beat())
        rig.mind.wait_for(Received, 41)
        do(rig, Tell(Tick()))  # one more turn of the loop: all rows have been handed over
        rig.mind.wait_for(Tick)
        rig.journal.gate.set()
        assert [dealer.receive()[0].reason for _ in range(40)] == ["ok"] * 40
        assert sum(rig.journal.transactions) == 40
        assert len(rig.journal.transactions) <= 3


def test_uploads_end_in_the_spool_with_digest_and_norm(tmp_path: Path) -> None:
    """Each action has its event, in order; discarded bytes are gone."""
    x = np.arange(300_000, dtype=np.float32)
    data = memoryview(x.tobytes())
    with Rig(tmp_path, Script()) as rig:
        do(
            rig,
            OpenUpload(b"t", len(data), "f32"),
            *(WritePart(b"t", at, data[at : at + 100_000]) for at in range(0, len(data), 100_000)),
            Seal(b"t"),
        )
        (sealed,) = rig.mind.wait_for(Sealed)
        assert sealed.digest == xxhash.xxh3_128_digest(data)
        assert sealed.norm == pytest.approx(float(np.linalg.norm(x.astype(np.float64))))
        assert rig.mind.wait_for(UploadOpened) == [UploadOpened(b"t", 0)]
        assert [event.length for event in rig.mind.wait_for(PartWritten)] == [
            *range(100_000, len(data) + 1, 100_000)
        ]
        assert rig.spool.payload(b"t") == data
        do(rig, Discard((b"t", b"unknown")), OpenUpload(b"u", 4, "f32"))
        rig.mind.wait_for(UploadOpened, 2)
        assert rig.spool.tasks() == {b"u"}


def model(versions: VersionStore, n: int) -> bytes:
    """Write a version 0 of `n` floats; its file."""
    tensors = {"w": np.arange(n, dtype=np.float32)}
    write_initial(versions, memoryview(b"".join(model_file.from_arrays(tensors).chunks)), 1 << 30)
    return bytes(versions.file(0))


def test_blocks_are_the_bytes_of_the_file(tmp_path: Path) -> None:
    """Large ones without a copy, small ones, and the short last one."""
    with Rig(tmp_path, Script()) as rig, talking(rig) as (dealer, peer):
        file = model(rig.versions, 600_000)
        for offset, length in ((0, BLOCK), (BLOCK, BLOCK), (2 * BLOCK, len(file) - 2 * BLOCK), (7, 1)):
            do(rig, SendBlock(peer, 0, offset, length))
            block, payload = dealer.receive()
            assert (block.version, block.offset) == (0, offset)
            assert payload == file[offset : offset + length]


def test_a_small_model_rides_with_its_task(tmp_path: Path) -> None:
    """The whole file; a TASK whose file cannot be read goes without."""
    with Rig(tmp_path, Script()) as rig, talking(rig) as (dealer, peer):
        file = model(rig.versions, 10)
        digest = xxhash.xxh3_128_digest(file)
        task = wire.Task(
            task=b"t", seq=1, kind="fit", version=0, size=len(file), digest=digest, layout=b"layout"
        )
        do(rig, SendTask(peer, task))
        assert dealer.receive() == (task, file)
        do(rig, Collect((0,)), OpenUpload(b"t", 4, "f32"))
        rig.mind.wait_for(UploadOpened)
        do(rig, SendTask(peer, task))
        assert dealer.receive() == (task, None)


def test_a_version_whose_file_is_gone_is_answered(tmp_path: Path) -> None:
    """The worker gets `gone`, and the broker goes on."""
    with Rig(tmp_path, Script()) as rig, talking(rig) as (dealer, peer):
        model(rig.versions, 10)
        do(rig, Collect((0,)), OpenUpload(b"t", 4, "f32"))
        rig.mind.wait_for(UploadOpened)
        do(rig, SendBlock(peer, 0, 3, 10))
        error, _ = dealer.receive()
        assert (error.why, error.ref, error.version, error.offset) == ("gone", 6, 0, 3)


def test_a_peer_that_does_not_read_has_few_blocks_on_their_way(tmp_path: Path) -> None:
    """More FETCHes are answered `busy`; when it reads again, everything that was promised is there."""
    with Rig(tmp_path, Script()) as rig, talking(rig, water=1) as (dealer, peer):
        file = model(rig.versions, 300_000)
        do(rig, *(SendBlock(peer, 0, 0, BLOCK) for _ in range(60)))
        kinds = []
        for _ in range(60):
            message, payload = dealer.receive()
            kinds.append(type(message))
            if isinstance(message, wire.Block):
                assert payload == file[:BLOCK]
            else:
                assert (message.why, message.version, message.offset) == ("busy", 0, 0)
        assert kinds.count(wire.Block) >= 4
        assert kinds.count(wire.Error) >= 10


def test_who_asks_for_no_more_than_it_may_is_never_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libzmq may hold for a while what was read already: the next four wait meanwhile, a fifth alone is refused."""
    held = UNSENT_MAX
    monkeypatch.setattr(transport._Line, "unsent", lambda line: held)
    with Rig(tmp_path, Script()) as rig, talking(rig) as (dealer, peer):
        model(rig.versions, 300_000)
        do(rig, *(SendBlock(peer, 0, 0, BLOCK) for _ in range(wire.FETCHES_MAX + 1)))
        assert not dealer.socket.poll(100)
        held = 0
        kinds = [type(dealer.receive()[0]) for _ in range(wire.FETCHES_MAX + 1)]
        assert kinds == [wire.Block] * wire.FETCHES_MAX + [wire.Error]


def test_nothing_is_kept_of_peers_that_have_gone(tmp_path: Path) -> None:
    """Strangers that come, get an answer and go leave nothing behind; nor does one that fetched large blocks."""
    with Rig(tmp_path, Script()) as rig:
        model(rig.versions, 300_000)
        for stranger in range(30):
            with talking(rig) as (dealer, peer):
                do(rig, Send(peer, bye("stranger")))
                dealer.receive()
                if stranger % 10 == 0:
                    do(rig, SendBlock(peer, 0, 0, BLOCK))
                    dealer.receive()
        ends = time.monotonic() + 10
        while rig.transport.connections or rig.transport.waiting:
            assert time.monotonic() < ends, f"{rig.transport.waiting} peers are remembered"
            time.sleep(0.01)


def test_what_a_full_socket_does_not_take_waits_in_order(tmp_path: Path) -> None:
    """A slow reader costs itself time, and nobody else."""
    with (
        Rig(tmp_path, Script(), water=2) as rig,
        talking(rig, water=1) as (slow, slow_peer),
        talking(rig) as (quick, quick_peer),
    ):
        config = {"pad": "x" * 60_000}
        task = wire.Task(
            task=b"t", seq=1, kind="init", version=0, size=0, config=config, digest=None, layout=None
        )
        do(rig, *(Send(slow_peer, task) for _ in range(400)), Send(slow_peer, bye("last")))
        do(rig, Send(quick_peer, bye("meanwhile")))
        assert quick.receive()[0].reason == "meanwhile"
        assert not rig.transport.idle
        received = [slow.receive()[0] for _ in range(401)]
        assert received[:400] == [task] * 400
        assert received[400] == bye("last")


def test_a_dropped_peer_gets_nothing_that_waited(tmp_path: Path) -> None:
    """And its queue is gone."""
    with Rig(tmp_path, Script(), water=2) as rig, talking(rig, water=1) as (_, peer):
        config = {"pad": "x" * 60_000}
        task = wire.Task(task=b"t", seq=1, kind="init", version=0, size=0, config=config)
        do(rig, *(Send(peer, task) for _ in range(400)), Drop(peer), OpenUpload(b"t", 4, "f32"))
        rig.mind.wait_for(UploadOpened)
        assert rig.transport.idle


@pytest.mark.parametrize(
    ("frames", "ref"),
    [
        ([b"rubbish"], 0),
        ([b"FQ\x01\x63", b"\x80"], 0x63),
        ([b"FQ\x01\x04", b"no map"], 4),
        ([b"FQ\x01\x04", b"\x80", b"no payload belongs here"], 4),
        ([b"FQ\x01\x04", b"\x80", b"", b"", b"", b""], 4),
        ([b"", b"FQ\x01\x04", b"\x80"], 0),
    ],
    ids=["no protocol", "unknown kind", "no map", "surplus payload", "many frames", "REQ envelope"],
)
def test_what_is_no_message_is_a_violation(tmp_path: Path, frames: list[bytes], ref: int) -> None:
    """The mind hears who sent it and what was wrong; the next message is served as ever."""
    with Rig(tmp_path, Script()) as rig, talking(rig) as (dealer, peer):
        dealer.socket.send_multipart(frames)
        (violation,) = rig.mind.wait_for(Violation)
        assert (violation.peer, violation.ref) == (peer, ref)
        assert violation.reason
        dealer.send(wire.Beat())
        assert rig.mind.wait_for(Received, 2)[1].message == wire.Beat()


def test_a_frame_beyond_every_limit_costs_its_sender_the_connection(tmp_path: Path) -> None:
    """It is never held in memory, and others do not notice."""
    with Rig(tmp_path, Script()) as rig, talking(rig) as (dealer, _), talking(rig) as (other, _):
        dealer.socket.send_multipart([b"FQ\x01\x0a", b"\x80", bytes(BLOCK + 128 * 1024)])
        other.send(wire.Beat())
        rig.mind.wait_for(Received, 3)
        assert not any(isinstance(event, Violation) for event in rig.mind.told)
        assert rig.transport.bytes_up < BLOCK


def test_a_payload_arrives_as_it_was_sent(tmp_path: Path) -> None:
    """A PART of a whole block, beside its header."""
    data = bytes(range(256)) * 4096
    with Rig(tmp_path, Script()) as rig, talking(rig) as (dealer, _):
        dealer.send(wire.Part(task=b"t", offset=5), data)
        received = rig.mind.wait_for(Received, 2)[1]
        assert received.message == wire.Part(task=b"t", offset=5)
        assert received.payload == data


def test_a_peer_without_a_route_is_reported(tmp_path: Path) -> None:
    """A vanished worker costs one event, not an error."""
    with Rig(tmp_path, Script()) as rig:
        do(rig, Send(b"nobody", bye("x")), Send(b"nobody", bye("y")))
        assert rig.mind.wait_for(Unreachable)[0] == Unreachable(b"nobody")


def test_a_tick_comes_at_the_time_of_the_last_wake(tmp_path: Path) -> None:
    """Not before, and soon after; a later Wake replaces it."""
    at = time.monotonic() + 0.15
    with Rig(tmp_path, Script(first=[Wake(at - 0.1), Wake(at)])) as rig:
        rig.mind.wait_for(Tick)
        late = time.monotonic() - at
        assert 0 <= late < 2.0
        assert sum(isinstance(event, Tick) for event in rig.mind.told) == 1


def test_exit_waits_for_commits_and_goodbyes(tmp_path: Path) -> None:
    """What was promised is on disk, and what was sent arrives, though the loop is over."""
    with Rig(tmp_path, Script()) as rig, talking(rig) as (dealer, peer):
        rig.journal.gate.clear()
        do(
            rig,
            Commit((count("last"),), (Send(peer, bye("shutdown")),)),
            Exit(3, "enough"),
        )
        time.sleep(0.05)
        assert rig.exit is None
        rig.journal.gate.set()
        rig.join()
        assert rig.exit == Exit(3, "enough")
        assert dealer.receive()[0].reason == "shutdown"
        assert counts_in(rig)["last"] == 1


def test_a_halt_does_not_wait(tmp_path: Path) -> None:
    """A second signal: what was not promised is not waited for."""
    with Rig(tmp_path, Script()) as rig:
        rig.journal.gate.clear()
        do(rig, Commit((count("never promised"),)))
        rig.inbox.put(Halt("a second signal"))
        rig.join()
        assert rig.exit == Exit(1, "a second signal")


@pytest.mark.parametrize(
    "broken", [StateError("the disk is full"), OSError(28, "No space left on device")], ids=["state", "os"]
)
def test_a_thread_that_fails_ends_the_loop_and_promises_nothing(tmp_path: Path, broken: Exception) -> None:
    """A broker that cannot keep its word stops with one clear error; the worker was never acknowledged."""
    with Rig(tmp_path, Script()) as rig, talking(rig) as (dealer, peer):
        rig.journal.broken = broken
        do(rig, Commit((count("x"),), (Send(peer, bye("never")),)))
        rig.join()
        rig.journal.broken = None
        assert isinstance(rig.failure, StateError)
        assert rig.failure.exit_code == 6
        assert not dealer.socket.poll(50)


def test_traffic_is_counted_with_each_version(tmp_path: Path) -> None:
    """Totals of bytes survive a restart, at the price of no further transaction."""
    with Rig(tmp_path, Script()) as rig, talking(rig) as (dealer, peer):
        info = VersionInfo(version=0, digest=b"d" * 16, size=1, layout=b"l", n=1)
        do(rig, Send(peer, bye("x")), Commit((VersionRow(info=info),), (Send(peer, bye("made")),)))
        dealer.receive()
        assert dealer.receive()[0].reason == "made"
        up = sum(map(len, wire.encode(HELLO)))
        down = sum(map(len, wire.encode(bye("x"))))
        assert counts_in(rig) == {"bytes_up": up, "bytes_down": down}
        assert len(rig.journal.transactions) == 1


def test_a_status_says_more_than_the_mind_knows(tmp_path: Path) -> None:
    """The mind's reply, and the process's own figures."""

    def answer(event: Event) -> Sequence[Action]:
        return [Reply(event.token, {"version": 4})] if isinstance(event, Control) else ()

    with Rig(tmp_path, Script(answer)) as rig:
        assert control.request(tmp_path, "status") == {"version": 4, "endpoint": rig.transport.endpoint}
        assert control.request(tmp_path, "pause") == {"version": 4}


def test_a_port_that_is_in_use_is_a_clear_error(tmp_path: Path) -> None:
    """It names the key, the address, and what to do."""
    with Rig(tmp_path, Script()) as rig, pytest.raises(ConfigError, match=r"federation\.bind .* in use"):
        Transport(Wires(bind=rig.transport.endpoint, block=BLOCK, high_water=10))


def test_an_address_of_another_machine_is_a_clear_error() -> None:
    """192.0.2.1 is nobody's (RFC 5737)."""
    with pytest.raises(ConfigError, match="cannot listen on"):
        Transport(Wires(bind="tcp://192.0.2.1:5560", block=BLOCK, high_water=10))


def test_a_service_does_what_is_queued_before_it_ends() -> None:
    """Closing is orderly: jobs that were put before are done, in order."""
    inbox: Inbox[Notice] = Inbox()
    release = threading.Event()

    def work(jobs: Any) -> Iterator[Notice]:
        assert release.wait(WAIT_S)
        while jobs:
            yield threads.Durable(jobs.popleft())

    service: Service[int] = Service("test", inbox, work)
    for job in range(1, 6):
        service.put(job)
    assert not service.close(0.01)
    release.set()
    assert service.close(WAIT_S)
    assert inbox.drain() == [threads.Durable(job) for job in range(1, 6)]
    inbox.close()
