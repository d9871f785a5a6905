"""A real worker over a real socket, against a small broker that is written from the protocol's page alone."""

import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import xxhash
import zmq

from fedmq.fedcore import kernels, model_file, wire
from fedmq.fedcore.errors import ConfigError, ConnectError, StateError
from fedmq.worker import Evaluation, Fit, Moment, TaskContext, Worker
from fedmq.worker.client import Weights
from fedmq.worker.transport import CurveKeys

M = TypeVar("M", bound=wire.Message)

PATIENCE_S = 20


class ScriptedBroker:
    """A ROUTER, and the few lines that a test needs of a broker."""

    def __init__(self, n: int = 1000, block: int = 1 << 20) -> None:
        self.context = zmq.Context()
        self.block = block
        self.peer = b""
        self.seq = 0
        self.beats: list[wire.Beat] = []
        self.file = self.model(n, 0.0)
        self.router: zmq.Socket[bytes] = self.context.socket(zmq.ROUTER)
        self.router.linger = 0
        self.port = self.router.bind_to_random_port("tcp://127.0.0.1")

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    @staticmethod
    def model(n: int, value: float) -> bytes:
        return b"".join(model_file.from_arrays({"w": np.full(n, value, np.float32)}).chunks)

    def restart(self) -> None:
        """The broker's process dies, and another one takes its port."""
        self.router.close(linger=0)
        self.router = self.context.socket(zmq.ROUTER)
        self.router.linger = 0
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                self.router.bind(self.address)
                return
            except zmq.ZMQError:
                assert time.monotonic() < deadline
                time.sleep(0.02)

    def close(self) -> None:
        self.router.close(linger=0)
        self.context.term()

    def send(self, message: wire.Message, payload: bytes | None = None) -> None:
        self.router.send_multipart([self.peer, *wire.encode(message, payload)])

    def receive(self) -> tuple[wire.Message, bytes | None]:
        """The next message that is no BEAT."""
        while True:
            assert self.router.poll(PATIENCE_S * 1000), "the worker says nothing"
            self.peer, *frames = self.router.recv_multipart()
            message, payload = wire.decode(frames, wire.TO_BROKER)
            if isinstance(message, wire.Beat):
                self.beats.append(message)
            else:
                return message, None if payload is None else bytes(payload)

    def expect(self, kind: type[M]) -> tuple[M, bytes | None]:
        message, payload = self.receive()
        assert isinstance(message, kind), message
        return message, payload

    def beat(self) -> wire.Beat:
        """The next BEAT, when nothing else comes before."""
        assert self.router.poll(PATIENCE_S * 1000)
        _, *frames = self.router.recv_multipart()
        message, _ = wire.decode(frames, wire.TO_BROKER)
        assert isinstance(message, wire.Beat), message
        return message

    def welcome(self, **changes: Any) -> wire.Hello:
        """Answer a HELLO."""
        hello, _ = self.expect(wire.Hello)
        self.seq = 0
        terms: dict[str, Any] = {
            "protocol": 1,
            "federation": "fed",
            "beat_s": 10,
            "lease_s": 35,
            "block": self.block,
            "inline_max": wire.INLINE_MAX,
            "credit": 4 * self.block,
            "max_model_bytes": 1 << 30,
        }
        self.send(wire.Welcome(**{**terms, **changes}))
        return hello

    def task(self, name: str, **changes: Any) -> None:
        self.seq += 1
        fields: dict[str, Any] = {
            "task": name.encode(),
            "seq": self.seq,
            "kind": "fit",
            "version": 0,
            "size": len(self.file),
            "digest": xxhash.xxh3_128_digest(self.file),
            "layout": b"layout",
        }
        self.send(wire.Task(**{**fields, **changes}))

    def serve(self) -> None:
        """Answer one FETCH."""
        fetch, _ = self.expect(wire.Fetch)
        self.send(
            wire.Block(version=fetch.version, offset=fetch.offset),
            self.file[fetch.offset : fetch.offset + fetch.length],
        )

    def serve_all(self) -> None:
        """Answer the FETCHes of one model."""
        for _ in range(-(-len(self.file) // self.block)):
            self.serve()

    def acknowledge(self, task: bytes) -> None:
        self.send(wire.Ack(task=task, result="accepted"))


@pytest.fixture
def broker() -> Iterator[ScriptedBroker]:
    broker = ScriptedBroker()
    yield broker
    broker.close()


class App:
    """Adds one, and can be told to do otherwise."""

    def __init__(self) -> None:
        self.hold = threading.Event()
        self.hold.set()
        self.started = threading.Event()
        self.saw_cancel = threading.Event()
        self.raises = False

    def fit(self, weights: Weights, task: TaskContext) -> Fit:
        self.started.set()
        while not self.hold.wait(0.01):
            if task.cancelled:
                self.saw_cancel.set()
                task.check_cancelled()
        if self.raises:
            raise RuntimeError("not today")
        weights["w"] += 1
        return Fit(weights, 10, {"loss": 0.5})

    def evaluate(self, weights: Weights, task: TaskContext) -> Evaluation:
        return Evaluation(5, {"loss": float(weights["w"].mean())})


def until(condition: Any) -> None:
    """Wait for what another thread does."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def test_an_update_goes_round(broker: ScriptedBroker, tmp_path: Path) -> None:
    """HELLO, WELCOME, TASK, FETCH, BLOCK, OFFER with its payload, ACK; then the next without a FETCH."""
    worker = Worker(App(), broker.address, tmp_path, name="w", tags=["gpu"], encodings=["f32", "i8"])
    with worker:
        hello = broker.welcome()
        assert (hello.protocol, hello.name, hello.tags, hello.encodings) == (1, "w", ("gpu",), ("f32", "i8"))
        assert (hello.kinds, hello.free, hello.tasks, hello.outbox) == (("fit", "evaluate"), 2, (), ())
        assert hello.instance == (tmp_path / "instance").read_bytes()
        broker.task("one")
        broker.serve_all()
        offer, payload = broker.expect(wire.Offer)
        assert payload is not None
        assert (offer.task, offer.kind, offer.base, offer.layout) == (b"one", "fit", 0, b"layout")
        assert (offer.examples, offer.metrics, offer.encoding) == (10, {"loss": 0.5}, "f32")
        assert (offer.size, offer.digest) == (len(payload), xxhash.xxh3_128_digest(payload))
        np.testing.assert_array_equal(kernels.decode(payload, "f32", 1000), np.ones(1000))
        assert broker.beat() == wire.Beat(tasks=(), outbox=(b"one",), free=2, seen=1)
        broker.acknowledge(b"one")
        broker.task("two", kind="evaluate")
        offer, payload = broker.expect(wire.Offer)
        assert (offer.kind, offer.metrics, offer.size, payload) == ("evaluate", {"loss": 0.0}, None, None)
        broker.acknowledge(b"two")
        until(lambda: worker.status()["accepted"] == 2)
        assert not sum(file.stat().st_size for file in (tmp_path / "outbox").iterdir())
    bye, _ = broker.expect(wire.Bye)
    assert bye.reason == "stopped"
    assert worker.status() == {"connection": "stopped"} or worker.status()["reason"] == "stopped"


def test_an_upload_in_parts_resumes_after_a_lost_connection(tmp_path: Path) -> None:
    """OFFER, GRANT, PARTs; the broker dies and comes back; OFFER, GRANT from where it was, the rest."""
    broker = ScriptedBroker(n=100_000, block=64 * 1024)
    with Worker(App(), broker.address, tmp_path):
        broker.welcome()
        broker.task("t")
        broker.serve_all()
        offer, payload = broker.expect(wire.Offer)
        assert payload is None
        assert offer.size == 400_000
        data = b""
        broker.send(wire.Grant(task=b"t", offset=0, limit=100_000))
        while len(data) < 100_000:
            part, payload = broker.expect(wire.Part)
            assert payload is not None
            assert part.offset == len(data)
            data += payload
        assert len(data) == 100_000
        broker.restart()
        hello = broker.welcome()
        assert hello.outbox == (b"t",)
        again, _ = broker.expect(wire.Offer)
        assert again == offer
        broker.send(wire.Grant(task=b"t", offset=100_000, limit=250_000))
        while len(data) < 400_000:
            part, payload = broker.expect(wire.Part)
            assert payload is not None
            assert len(payload) <= 64 * 1024
            assert part.offset == len(data)
            data += payload
            broker.send(wire.Grant(task=b"t", offset=len(data), limit=len(data) + 150_000))
        assert xxhash.xxh3_128_digest(data) == offer.digest
        broker.acknowledge(b"t")
        until(lambda: not sum(file.stat().st_size for file in (tmp_path / "outbox").iterdir()))
    broker.close()


def test_a_model_is_fetched_in_blocks_and_resumed(tmp_path: Path) -> None:
    """A few FETCHes at a time; after a lost connection, and in another process, from the first missing byte."""
    broker = ScriptedBroker(n=200_000, block=64 * 1024)
    with Worker(App(), broker.address, tmp_path):
        broker.welcome()
        broker.task("t")
        for _ in range(3):
            broker.serve()
        until(lambda: sum(f.stat().st_size for f in (tmp_path / "models").iterdir()) == 3 * 64 * 1024)
        broker.restart()
        broker.welcome()
        fetch, _ = broker.expect(wire.Fetch)
        assert fetch.offset == 3 * 64 * 1024
        block = broker.file[fetch.offset : fetch.offset + fetch.length]
        broker.send(wire.Block(version=0, offset=fetch.offset), block)
        until(lambda: sum(f.stat().st_size for f in (tmp_path / "models").iterdir()) == 4 * 64 * 1024)
    broker.restart()
    with Worker(App(), broker.address, tmp_path):
        assert broker.welcome().tasks == ()
        broker.task("u")
        offsets: list[int] = []
        while len(offsets) < -(-len(broker.file) // broker.block) - 4:
            fetch, _ = broker.expect(wire.Fetch)
            offsets.append(fetch.offset)
            block = broker.file[fetch.offset : fetch.offset + fetch.length]
            broker.send(wire.Block(version=0, offset=fetch.offset), block)
        assert offsets[0] == 4 * 64 * 1024
        offer, _ = broker.expect(wire.Offer)
        assert offer.task == b"u"
    broker.close()


def test_a_raising_app_is_a_fail_and_the_worker_lives_on(broker: ScriptedBroker) -> None:
    """FAIL with type and place; the next task is done."""
    app = App()
    app.raises = True
    with Worker(app, broker.address):
        broker.welcome()
        broker.task("bad")
        broker.serve_all()
        fail, _ = broker.expect(wire.Fail)
        assert fail.task == b"bad"
        assert fail.reason.startswith("RuntimeError in fit, test_worker_socket.py line ")
        app.raises = False
        broker.task("good")
        offer, _ = broker.expect(wire.Offer)
        assert offer.task == b"good"


def test_a_cancelled_task_is_visible_to_the_app(broker: ScriptedBroker) -> None:
    """`task.cancelled` turns true, nothing is offered, and the next task is begun."""
    app = App()
    app.hold.clear()
    with Worker(app, broker.address):
        broker.welcome()
        broker.task("t")
        broker.serve_all()
        assert app.started.wait(PATIENCE_S)
        broker.send(wire.Cancel(task=b"t", reason="the round is over"))
        assert app.saw_cancel.wait(PATIENCE_S)
        app.hold.set()
        broker.task("u")
        offer, _ = broker.expect(wire.Offer)
        assert offer.task == b"u"


def test_work_goes_on_while_the_broker_is_away(broker: ScriptedBroker, tmp_path: Path) -> None:
    """Cut off it trains on, keeps what is finished, and delivers it to the next broker."""
    app = App()
    app.hold.clear()
    told: list[Moment] = []
    with Worker(app, broker.address, tmp_path, on_event=lambda moment, fields: told.append(moment)) as worker:
        broker.welcome()
        broker.task("t")
        broker.serve_all()
        assert app.started.wait(PATIENCE_S)
        broker.router.close(linger=0)
        until(lambda: worker.status()["connection"] == "connecting")
        app.hold.set()
        until(lambda: worker.status()["outbox"] == 1)
        broker.restart()
        assert broker.welcome().outbox == (b"t",)
        broker.expect(wire.Offer)
        broker.acknowledge(b"t")
        until(lambda: Moment.UPDATE_ACCEPTED in told)
    assert told == [
        Moment.CONNECTED,
        Moment.TASK_RECEIVED,
        Moment.TASK_STARTED,
        Moment.DISCONNECTED,
        Moment.TASK_FINISHED,
        Moment.CONNECTED,
        Moment.UPDATE_ACCEPTED,
        Moment.FINISHED,
    ]


def test_a_later_process_delivers_what_an_earlier_one_finished(
    broker: ScriptedBroker, tmp_path: Path
) -> None:
    """The outbox is a folder: same instance, another boot, the same bytes."""
    with Worker(App(), broker.address, tmp_path):
        first = broker.welcome()
        broker.task("t")
        broker.serve_all()
        offer, payload = broker.expect(wire.Offer)
    broker.expect(wire.Bye)
    with Worker(App(), broker.address, tmp_path) as worker:
        second = broker.welcome()
        assert second.instance == first.instance
        assert second.boot != first.boot
        assert second.outbox == (b"t",)
        assert broker.expect(wire.Offer) == (offer, payload)
        broker.acknowledge(b"t")
        until(lambda: worker.status()["outbox"] == 0)


def test_need_hello_is_answered_with_hello(broker: ScriptedBroker) -> None:
    """A broker that forgot the session gets everything said again, over the same connection."""
    with Worker(App(), broker.address):
        broker.welcome()
        peer = broker.peer
        broker.send(wire.Error(ref=4, why="need_hello", reason="who is that?"))
        broker.welcome()
        assert broker.peer == peer


def test_frames_that_are_no_message_change_nothing(
    broker: ScriptedBroker, caplog: pytest.LogCaptureFixture
) -> None:
    """They are logged, once in a while, and the session goes on."""
    with caplog.at_level(logging.WARNING, "fedmq.worker"), Worker(App(), broker.address):
        broker.welcome()
        for frames in ([b"x"], [b"FQ\x01\x63", b"\x80"], [b"FQ\x01\x04", b"\x81"], [b"FQ\x01\x07", b"\x80"]):
            broker.router.send_multipart([broker.peer, *frames])
        broker.task("t")
        broker.serve_all()
        broker.expect(wire.Offer)
    assert len([r for r in caplog.records if "no message" in r.getMessage()]) == 1


def test_pause_and_resume_are_told_at_once(broker: ScriptedBroker) -> None:
    """`free` falls to 0 and rises again, without waiting for a beat."""
    with Worker(App(), broker.address, slots=3) as worker:
        assert broker.welcome().free == 3
        until(lambda: worker.status()["connection"] == "open")
        worker.pause()
        assert broker.beat().free == 0
        assert worker.status()["paused"]
        worker.resume()
        assert broker.beat().free == 3


def test_an_edge_program_decides_when_to_train(broker: ScriptedBroker) -> None:
    """`may_train` is asked before HELLO; while it says no, no task is taken."""
    plugged_in = threading.Event()
    with Worker(App(), broker.address, may_train=plugged_in.is_set):
        assert broker.welcome().free == 0
        plugged_in.set()
        assert broker.beat().free == 2


def test_a_finished_federation_ends_a_started_worker(broker: ScriptedBroker) -> None:
    """BYE `finished`: `wait` returns, and its state folder is free."""
    worker = Worker(App(), broker.address).start()
    broker.welcome()
    assert not worker.wait(0.01)
    broker.send(wire.Bye(reason="finished"))
    assert worker.wait(PATIENCE_S)
    assert worker.status()["reason"] == "finished"


def test_a_refusal_for_good_is_an_error(broker: ScriptedBroker) -> None:
    """`run` raises, and says what the broker said."""
    worker = Worker(App(), broker.address)

    def refuse() -> None:
        broker.expect(wire.Hello)
        broker.send(wire.Reject(why="revoked", reason="evicted by an operator", fatal=True))

    refusal = threading.Thread(target=refuse)
    refusal.start()
    with pytest.raises(ConnectError, match="revoked: evicted by an operator"):
        worker.run()
    refusal.join()


def test_run_works_in_the_callers_thread(broker: ScriptedBroker) -> None:
    """The app runs where `run` was called: signals, GUIs and CUDA contexts stay where they are."""
    threads = []

    class Where(App):
        def evaluate(self, weights: Weights, task: TaskContext) -> Evaluation:
            threads.append(threading.get_ident())
            return super().evaluate(weights, task)

    def script() -> None:
        broker.welcome()
        broker.task("t", kind="evaluate")
        broker.serve_all()
        broker.expect(wire.Offer)
        broker.acknowledge(b"t")
        broker.send(wire.Bye(reason="finished"))

    scripted = threading.Thread(target=script)
    scripted.start()
    Worker(Where(), broker.address).run()
    scripted.join()
    assert threads == [threading.get_ident()]


def test_a_stopped_worker_can_be_started_again(broker: ScriptedBroker, tmp_path: Path) -> None:
    """It takes up its folder; started twice at a time it is refused, as is another one on its folder."""
    worker = Worker(App(), broker.address, tmp_path, name="ward-3")
    for _ in range(2):
        worker.start()
        broker.welcome()
        with pytest.raises(RuntimeError, match="is running"):
            worker.start()
        with pytest.raises(StateError, match="worker ward-3"):
            Worker(App(), broker.address, tmp_path).start()
        until(lambda: worker.status()["connection"] == "open")
        assert worker.stop()
        broker.expect(wire.Bye)


@pytest.mark.parametrize("address", ["localhost:5560", "tcp://", "tcp://127.0.0.1:port", "udp://127.0.0.1:1"])
def test_an_address_that_is_none_is_named(address: str) -> None:
    """A ConfigError at start, not a worker that never connects."""
    with pytest.raises(ConfigError, match=address):
        Worker(App(), address).start()


@pytest.mark.parametrize(
    "wrong",
    [
        {"encodings": ["q2"]},
        {"encodings": []},
        {"slots": 0},
        {"name": ""},
        {"name": "x" * 129},
        {"tags": [""]},
    ],
)
def test_wrong_arguments_are_said_at_once(wrong: dict[str, Any]) -> None:
    """Before anything is opened."""
    with pytest.raises(ConfigError):
        Worker(App(), "tcp://127.0.0.1:1", **wrong)


def test_a_key_that_is_not_on_the_list_is_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The monitor sees HANDSHAKE_FAILED_AUTH; the worker says so and tries again later."""
    from zmq.auth.thread import ThreadAuthenticator

    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    authenticator = ThreadAuthenticator(context)
    authenticator.start()
    (tmp_path / "keys").mkdir()
    authenticator.configure_curve(domain="*", location=str(tmp_path / "keys"))
    server_public, server_secret = zmq.curve_keypair()
    router = context.socket(zmq.ROUTER)
    router.curve_server = True
    router.curve_publickey, router.curve_secretkey = server_public, server_secret
    port = router.bind_to_random_port("tcp://127.0.0.1")
    public, secret = (key.decode() for key in zmq.curve_keypair())
    keys = CurveKeys(server_public.decode(), public, secret)
    try:
        with (
            caplog.at_level(logging.WARNING, "fedmq.worker"),
            Worker(App(), f"tcp://127.0.0.1:{port}", keys=keys) as worker,
        ):
            until(lambda: any("not connected" in r.getMessage() for r in caplog.records))
            assert worker.status()["connection"] in ("closed", "connecting")
        assert "not on its list" in str(vars(caplog.records[0]))
    finally:
        router.close(linger=0)
        authenticator.stop()
        context.term()


DAEMON = """
    import logging, sys, time
    import numpy as np
    from fedmq.worker import Evaluation, Fit, daemon

    class App:
        def fit(self, weights, task):
            print("training", flush=True)
            end = time.monotonic() + float(task.config.get("sleep", 0))
            while time.monotonic() < end:
                if task.config.get("polite"):
                    task.check_cancelled()
                time.sleep(0.005)
            return Fit(weights, 1)

        def evaluate(self, weights, task):
            return Evaluation(1, {"loss": 0.0})

    logging.basicConfig(level=logging.INFO)
    sys.exit(daemon.run(sys.argv[1], App(), sys.argv[2], grace_s=0.3))
"""


@pytest.fixture
def daemon(broker: ScriptedBroker, tmp_path: Path) -> Iterator[Any]:
    script = tmp_path / "daemon.py"
    script.write_text(textwrap.dedent(DAEMON))
    children: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        arguments = [sys.executable, str(script), broker.address, str(tmp_path / "state")]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        children.append(subprocess.Popen(arguments, **pipes, env={**os.environ, "PYTHONUNBUFFERED": "1"}))
        return children[-1]

    yield start
    for child in children:
        child.kill()
        child.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("config", [{}, {"sleep": 60, "polite": 1}, {"sleep": 60}])
def test_a_signal_ends_a_daemon_in_order(
    broker: ScriptedBroker, daemon: Any, number: signal.Signals, config: dict[str, Any]
) -> None:
    """BYE, and exit 0: idle, with an app that listens, and with one that does not."""
    child = daemon()
    broker.welcome()
    if config:
        broker.task("t", config=config)
        broker.serve_all()
        assert child.stdout.readline() == "training\n"
    while "connected" not in child.stderr.readline():
        assert child.poll() is None
    child.send_signal(number)
    bye, _ = broker.expect(wire.Bye)
    assert bye.reason == "stopped"
    assert child.wait(PATIENCE_S) == 0
    assert "Traceback" not in child.stderr.read()


def test_exit_codes_of_a_daemon(broker: ScriptedBroker, daemon: Any) -> None:
    """0 when the federation is finished, 7 when the broker refuses for good."""
    child = daemon()
    broker.welcome()
    broker.send(wire.Bye(reason="finished"))
    assert child.wait(PATIENCE_S) == 0
    child = daemon()
    broker.expect(wire.Hello)
    broker.send(wire.Reject(why="wrong_protocol", reason="this broker speaks 2", fatal=True))
    assert child.wait(PATIENCE_S) == 7
    assert "this broker speaks 2" in child.stderr.read()


def test_a_killed_daemon_delivers_what_it_had_finished(broker: ScriptedBroker, daemon: Any) -> None:
    """kill -9 between OFFER and ACK: the next process has the same identity and the same update."""
    child = daemon()
    first = broker.welcome()
    broker.task("t")
    broker.serve_all()
    offer, payload = broker.expect(wire.Offer)
    child.kill()
    child.wait()
    daemon()
    second = broker.welcome()
    assert second.instance == first.instance
    assert second.outbox == (b"t",)
    assert broker.expect(wire.Offer) == (offer, payload)


def test_importing_a_worker_is_cheap() -> None:
    """No broker, torch, safetensors, sqlite3 or asyncio; and `fedmq.worker` alone loads not even zmq."""
    code = """
        import json, sys
        import fedmq.worker
        bare = sorted(sys.modules)
        fedmq.worker.Worker, fedmq.worker.Fit
        print(json.dumps([bare, sorted(sys.modules)]))
    """
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], check=True, capture_output=True, text=True
    )
    bare, full = (set(names) for names in json.loads(found.stdout))
    assert not {"zmq", "numpy", "msgspec"} & bare
    assert not {"torch", "safetensors", "sqlite3", "fedmq.broker", "asyncio", "rich", "click"} & full
