"""Whatever is wrong is one clear line and a proper exit code, and changes nothing.

What people get wrong (a config, an address, an app) is tried through the commands that they type; what a
hostile or broken peer sends, over a raw socket against a broker process.
"""

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import xxhash
import zmq

from fedmq.cli.processes import Child
from fedmq.fedcore import wire
from fedmq.fedcore.codecs import payload_size

from .federation import Federation, Tables, log_of, run, wait_for, write_model

N = 100
EVERYTHING = (
    "updates",
    "payloads",
    "versions",
    "frozen",
    "rounds",
    "left_out",
    "evaluations",
    "metrics",
    "evicted",
)


def one_line(ended: "subprocess.CompletedProcess[str]", code: int) -> str:
    """The error of a command that printed one line, ended with `code`, and said nothing else."""
    assert ended.returncode == code, ended.stderr
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert ended.stderr.startswith("fedmq: ")
    return ended.stderr


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("[federation]\nnmae = 'x'", 2, ["federation.nmae", "name"]),
        ("[fedaration]\nname = 'x'", 2, ["fedaration", "federation"]),
        ("[mode]\nkind = 'async'\nbuffer = 'ten'", 2, ["mode.buffer", '"ten"']),
        ("[mode]\nkind = 'async'\nbuffer = 0", 2, ["mode.buffer", "0", "1"]),
        ("[mode]\nkind = 'often'", 2, ["mode.kind", '"often"', "async", "sync"]),
        ("[mode]\nkind = 'sync'\nbuffer = 3", 2, ["mode.buffer"]),
        ("[federation]\nbind = 'tcp://0.0.0.0:5560'", 2, ["federation.bind", "security.insecure"]),
        ("[federation]\nbind = '127.0.0.1'", 2, ["federation.bind", "tcp://"]),
        ("[optimizer]\nkind = 'momentum'\nbeta = 1.5", 2, ["optimizer.beta", "1.5"]),
        ("[network]\nbeat_s = 10\nlease_s = 11", 2, ["network.lease_s", "network.beat_s"]),
        ("[stop]\nmetric = 'loss'", 2, ["stop.target"]),
        ("[model", 2, ["federation.toml", "line 1"]),
        ("[model]\ninitial = 'gone.safetensors'", 2, ["model.initial", "gone.safetensors", "No such file"]),
        ("[model]\ninitial = 'text.safetensors'", 4, ["model.initial", "not a safetensors file"]),
        ("[model]\ninitial = 'nowhere:App'", 3, ["nowhere:App", "no module named"]),
        ("[model]\ninitial = 'tiny:Nothing'", 3, ["tiny:Nothing", "no attribute 'Nothing'", "'App'"]),
        ("[model]\ninitial = 'tiny:Halving'", 3, ["initial"]),
        ("[federation]\nstate = '/sys/fedmq'", 6, ["/sys/fedmq", "federation.state"]),
        ("[federation]\nstate = 'text.safetensors/state'", 6, ["text.safetensors/state"]),
        ("[evaluate]\napp = 'nowhere:App'", 3, ["nowhere:App", "no module named"]),
    ],
    ids=lambda value: value.replace("\n", " ") if isinstance(value, str) else None,
)
def test_a_broker_that_cannot_start_says_why(tmp_path: Path, text: str, code: int, said: list[str]) -> None:
    """Config, model, app and state folder: the key, what it holds, and what it may hold; nothing is begun."""
    (tmp_path / "text.safetensors").write_text("weights " * 100)
    toml = tmp_path / "federation.toml"
    if "bind" not in text:
        text = text.replace("[federation]", "[federation]\nbind = 'tcp://127.0.0.1:*'")
        text += (
            ""
            if "[federation]" in text or "[model\n" in text
            else "\n[federation]\nbind = 'tcp://127.0.0.1:*'"
        )
    toml.write_text(text)
    error = one_line(run("broker", toml, cwd=tmp_path), code)
    assert [part for part in said if part not in error] == [], error
    assert not (tmp_path / "state" / "endpoint").exists()
    assert not list((tmp_path / "state").glob("versions/*"))


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    """A config, a state folder, an app, a broker."""
    assert "missing.toml" in one_line(run("broker", "missing.toml", cwd=tmp_path), 2)
    config = tmp_path / "federation.toml"
    config.write_text('[federation]\nbind = "tcp://127.0.0.1:*"\n[model]\ninitial = "missing.safetensors"\n')
    assert 'missing.safetensors", which cannot be read' in one_line(run("broker", config, cwd=tmp_path), 2)
    assert not (tmp_path / "state").exists(), "another model must do for the next start"
    for command in ("status", "pause", "history", "verify"):
        assert "missing: there is no such state folder" in one_line(run(command, "missing", cwd=tmp_path), 6)
    (tmp_path / "empty").mkdir()
    assert "not the state folder of a broker" in one_line(run("status", "empty", cwd=tmp_path), 6)
    connect = ("worker", "--connect", "tcp://127.0.0.1:1", "--state", "w", "--app")
    assert "no module named 'nowhere'" in one_line(run(*connect, "nowhere:app", cwd=tmp_path), 3)
    assert "has no attribute 'Nothing'" in one_line(run(*connect, "tiny:Nothing", cwd=tmp_path), 3)
    assert "expected module:attribute" in one_line(run(*connect, "tiny", cwd=tmp_path), 3)
    assert "give the module's name, not its path: a.tiny:App" in one_line(
        run(*connect, "a/tiny.py:App", cwd=tmp_path), 3
    )
    broken = run(*connect, "tiny:App", cwd=tmp_path, env={"TINY_BREAKS": "1"})
    assert "importing tiny raised OSError: no data on this machine" in one_line(broken, 3)
    url = run("worker", "--connect", "127.0.0.1:5560", "--app", "tiny:App", "--state", "w", cwd=tmp_path)
    assert "connect must be tcp://host:port or ipc://path" in one_line(url, 2)
    assert "/sys/fedmq" in one_line(
        run(
            "worker",
            "--connect",
            "tcp://127.0.0.1:1",
            "--app",
            "tiny:App",
            "--state",
            "/sys/fedmq",
            cwd=tmp_path,
        ),
        6,
    )
    assert "did you mean 'worker'?" in one_line(run("wroker", cwd=tmp_path), 2)


@pytest.fixture
def zeros(tmp_path: Path) -> Tables:
    """A federation from zeros that goes on until it is stopped, a version for every two updates."""
    write_model(tmp_path / "zeros.safetensors", {"w": np.zeros(N, np.float32)})
    return {
        "model": {"initial": "zeros.safetensors"},
        "mode": {"kind": "async", "buffer": 2, "max_staleness": 5},
        "aggregate": {"max_update_norm": 1000.0},
    }


def test_what_is_in_use_is_refused(tmp_path: Path, zeros: Tables) -> None:
    """A port, and a state folder, of a broker and of a worker; those who have them go on."""
    with Federation(tmp_path, zeros) as f:
        broker = f.start_broker()
        w1 = f.start_worker("w1", "tiny:Halving")
        text = f.toml.read_text(encoding="utf-8")
        other = tmp_path / "other.toml"
        other.write_text(
            text.replace("tcp://127.0.0.1:*", f.endpoint).replace(str(f.state), str(tmp_path / "other"))
        )
        other.write_text(other.read_text().replace('state = "state"', 'state = "other"'))
        error = one_line(run("broker", other, cwd=tmp_path), 2)
        assert f'federation.bind is "{f.endpoint}", which is in use' in error
        assert not (tmp_path / "other").exists()
        assert f"in use by process {broker.pid}" in one_line(run("broker", f.toml, cwd=tmp_path), 6)
        wait_for("w1 works", lambda: "connected" in log_of(w1))
        again = run("worker", "--connect", f.endpoint, "--app", "tiny:Halving", "--state", "w1", cwd=tmp_path)
        assert f"w1 is in use by process {w1.pid}" in one_line(again, 6)
        f.wait_for_more(2)


def test_an_app_that_raises_costs_its_task_and_nothing_else(tmp_path: Path, zeros: Tables) -> None:
    """FAIL with where it was, never with what it said; the worker lives on, and its next fit counts."""
    with Federation(tmp_path, zeros) as f:
        f.start_broker()
        w1 = f.start_worker("w1", "tiny:Broken", failures=1)
        f.wait_for_version(1)
        assert w1.code is None
        assert "the client app raised RuntimeError in fit, tiny.py line" in log_of(w1)
        assert "the patient's name is in here" in log_of(w1)
        assert "Traceback" not in log_of(w1)
        assert f.broker is not None
        assert "RuntimeError in fit, tiny.py line" in log_of(f.broker)
        assert "patient" not in log_of(f.broker)
        assert f.status()["updates"]["failed"] == 1


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("nan", "tensor 'w' holds NaN or Inf"),
        ("shape", "tensor 'w' must have the shape (100,), got (99,)"),
        ("name", "'v'"),
        ("negative", "examples must be in 1"),
        ("many", "examples must be in 1"),
        ("exit", "SystemExit"),
        ("huge", "norm: 1e+31 is above 1000"),
    ],
)
def test_a_result_that_breaks_the_contract_is_no_update(
    tmp_path: Path, zeros: Tables, way: str, said: str
) -> None:
    """NaN, another layout, absurd example counts: its author reads why in his own log; no version is made."""
    with Federation(tmp_path, zeros) as f:
        f.start_broker()
        worker = f.start_worker("w1", "tiny:Wrong", way=way)
        wait_for(said, lambda: said in log_of(worker))
        assert worker.code is None
        wait_for(
            "it is counted", lambda: sum(f.status()["updates"][key] for key in ("failed", "rejected")) > 0
        )
        assert f.query("SELECT count(*) FROM updates") == [(0,)]
        assert f.status()["version"] == 0


class Peer:
    """A socket that sends what it likes, and reads what comes."""

    def __init__(self, endpoint: str, name: str = "w1") -> None:
        self.name = name
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(endpoint)
        self._arrived: list[wire.Message] = []

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self._context.destroy(linger=0)

    def raw(self, *frames: bytes) -> None:
        self._socket.send_multipart(frames)

    def send(self, message: wire.Message, payload: bytes | None = None) -> None:
        self._socket.send_multipart(wire.encode(message, payload))

    def hello(self, free: int = 1) -> wire.Welcome:
        self.send(wire.Hello(protocol=1, name=self.name, instance=self.name.encode(), boot=b"b", free=free))
        welcome = self.expect(wire.Welcome)
        assert isinstance(welcome, wire.Welcome)
        return welcome

    def expect(self, *kinds: type[wire.Message]) -> Any:
        """The next message of one of some kinds; others stay for later."""

        def arrived() -> wire.Message | None:
            while self._socket.poll(20):
                self._arrived.append(wire.decode(self._socket.recv_multipart(), wire.TO_WORKER)[0])
            return next((message for message in self._arrived if isinstance(message, kinds)), None)

        found = wait_for(f"one of {kinds}", arrived, 20)
        self._arrived.remove(found)
        return found

    def arrived(self, *kinds: type[wire.Message]) -> list[wire.Message]:
        """What has come of some kinds and was not expected yet."""
        while self._socket.poll(200):
            self._arrived.append(wire.decode(self._socket.recv_multipart(), wire.TO_WORKER)[0])
        return [message for message in self._arrived if isinstance(message, kinds)]

    def keep_asking_until(self, why: str) -> None:
        """Send BEATs, over whatever connection there is, until an ERROR says this."""

        def is_told() -> bool:
            self.send(wire.Beat(tasks=(), outbox=(), free=0))
            return any(getattr(message, "why", "") == why for message in self.arrived(wire.Error))

        wait_for(why, is_told, 20)

    def read(self, count: int) -> list[Any]:
        """The next so many messages, whatever they are but BEATs."""
        found: list[wire.Message] = []
        while len(found) < count:
            assert self._socket.poll(20_000), f"{len(found)} of {count} messages"
            message = wire.decode(self._socket.recv_multipart(), wire.TO_WORKER)[0]
            if not isinstance(message, wire.Beat):
                found.append(message)
        return found

    def answer(self, about: wire.Task, payload: bytes, **changes: Any) -> Any:
        """Offer a payload for a task, with some fields forged, and give the broker's verdict."""
        fields: dict[str, Any] = {
            "task": about.task,
            "kind": "fit",
            "base": about.version,
            "layout": about.layout,
            "encoding": "f32",
            "size": len(payload),
            "digest": xxhash.xxh3_128_digest(payload),
            "examples": 1,
            "metrics": {},
        }
        header = {key: value for key, value in (fields | changes).items() if value is not None}
        self.raw(wire.MAGIC + bytes([wire.Offer.code]), msgpack.packb(header), payload)
        return self.expect(wire.Ack, wire.Error)


@pytest.fixture
def served(tmp_path: Path, zeros: Tables) -> Iterator[tuple[Federation, Child]]:
    """A broker that must be as it was when the test is over: alive, and its journal unchanged."""

    def journal() -> dict[str, Any]:
        return {table: f.query(f"SELECT * FROM {table}") for table in EVERYTHING}

    with Federation(tmp_path, zeros) as f:
        broker = f.start_broker()
        before = journal()
        yield f, broker
        assert f.status()["version"] == 0
        assert journal() == before
        assert "defect" not in log_of(broker)
        f.stop_broker(signal.SIGTERM)
        assert broker.code == 0


ONES = np.ones(N, np.float32).tobytes()
NAN = np.array([1.0] * 99 + [np.nan], np.float32).tobytes()
INF = np.array([1.0] * 99 + [-np.inf], np.float32).tobytes()


@pytest.mark.parametrize(
    ("payload", "changes", "said"),
    [
        (NAN, {}, "non-finite"),
        (INF, {}, "non-finite"),
        (np.full(N, 1e6, np.float32).tobytes(), {}, "norm"),
        (ONES, {"layout": b"l" * 16}, "layout"),
        (ONES, {"encoding": "f64"}, "encoding"),
        (ONES, {"encoding": "f16"}, "size"),
        (ONES[:-4], {}, "size"),
        (ONES, {"size": 4 * N - 4}, "size"),
        (ONES, {"digest": bytes(16)}, "digest"),
        (ONES, {"examples": 0}, "examples"),
        (ONES, {"examples": 10**9}, "examples"),
        (ONES, {"examples": 10**12}, "examples"),
        (ONES, {"examples": -1}, "examples"),
        (ONES, {"examples": 2**60}, "examples"),
        (ONES, {"base": 3}, "task"),
        (ONES, {"base": -1}, "base"),
        (ONES, {"kind": "init", "base": 0, "layout": None, "encoding": "safetensors"}, "task"),
        (ONES, {"kind": "delete"}, "kind"),
        (ONES, {"task": b"t" * 37}, "task"),
        (ONES, {"task": b""}, "task"),
        (ONES, {"metrics": {"loss": float("nan")}}, "metric is not a finite number"),
        (ONES, {"metrics": {str(i): 1.0 for i in range(65)}}, "metrics"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else str(value)[:40],
)
def test_a_forged_offer_is_refused_with_its_reason(
    served: tuple[Federation, Child], payload: bytes, changes: dict[str, Any], said: str
) -> None:
    """A reason that begins with what was wrong; the session goes on, and an honest worker would be served."""
    f, _ = served
    with Peer(f.endpoint) as peer:
        peer.hello()
        verdict = peer.answer(peer.expect(wire.Task), payload, **changes)
        if isinstance(verdict, wire.Ack):
            assert verdict.result == "rejected"
            assert verdict.reason.startswith(said)
        else:
            assert verdict.why == "malformed"
            assert said in verdict.reason
        peer.send(wire.Beat(tasks=(), outbox=(), free=0, seen=1))  # whatever it was, it has nothing now
        wait_for("the task is free", lambda: [w["state"] for w in f.status()["workers"]] == ["idle"])


def test_a_task_is_of_one_worker(served: tuple[Federation, Child]) -> None:
    """Somebody else's task id is refused, also with its MAC bent by a bit; nothing is learnt from the answer."""
    f, _ = served
    with Peer(f.endpoint, "w1") as honest, Peer(f.endpoint, "w2") as thief:
        honest.hello()
        task = honest.expect(wire.Task)
        thief.hello(free=0)
        reasons = set()
        for stolen in (task.task, task.task[:-1] + bytes([task.task[-1] ^ 1]), task.task[:-16] + bytes(16)):
            verdict = thief.answer(task, ONES, task=stolen)
            assert verdict.result == "rejected"
            reasons.add(verdict.reason)
        assert reasons == {"task: not this worker's, or against another model"}


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        ([b"FQ\x01\x04", b"\x80" * (64 * 1024 + 1)], "header is 65537 bytes"),
        ([b"FQ\x01\x63", b"\x80"], "unknown kind 99"),
        ([b"FQ\x01\x05", b"\x80"], "kind 5 does not travel this way"),
        ([b"FQ\x02\x04", b"\x80"], "the first frame is not"),
        ([b"FQ\x01", b"\x80"], "the first frame is not"),
        ([b"FQ\x01\x04"], "1 frames"),
        ([b"FQ\x01\x04", b"\x80", b"x"], "Beat carries no payload"),
        ([b"FQ\x01\x04", b"\x80", b"x", b"y"], "4 frames"),
        ([b"FQ\x01\x04", b"\x81\xa4free"], "header"),
        ([b"FQ\x01\x04", b""], "header"),
        ([b"FQ\x01\x04", b"\x90"], "not a msgpack map"),
        ([b"FQ\x01\x04", b"\x80\x80"], "trailing bytes"),
        ([b"FQ\x01\x04", msgpack.packb({"free": "many"})], "free"),
        ([b"FQ\x01\x04", b"\x82\xa4free\x01\xa4free\x02"], "twice"),
        ([b"FQ\x01\x06", msgpack.packb({"version": 0, "offset": 0, "length": -1})], "length"),
        ([b"FQ\x01\x06", msgpack.packb({"version": 0, "offset": 10**9, "length": 10})], "beyond the file"),
        ([b"FQ\x01\x0a", msgpack.packb({"task": b"t", "offset": 0})], "payload"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_broken_frames_are_answered_and_change_nothing(
    served: tuple[Federation, Child], frames: list[bytes], said: str
) -> None:
    """ERROR malformed with what was wrong; the third within a minute ends the session and its connection."""
    f, broker = served
    with Peer(f.endpoint, "broken") as peer, Peer(f.endpoint, "honest") as honest:
        honest.hello(free=0)
        peer.hello(free=0)
        for _ in range(3):
            peer.raw(*frames)
            error = peer.expect(wire.Error)
            assert error.why == "malformed"
            assert said in error.reason
        wait_for("it is cut, and connects again", lambda: f.status()["cuts"] == 1)
        peer.keep_asking_until("need_hello")
        assert {w["name"]: w["state"] for w in f.status()["workers"]} == {"broken": "gone", "honest": "idle"}
        assert log_of(broker).count("broker: protocol error") == 1  # the same thing again is only counted
        assert f.status()["updates"]["malformed"] == 3


def test_what_is_no_peer_does_not_disturb(served: tuple[Federation, Child]) -> None:
    """Random bytes on the port, a peer without HELLO, and one that vanishes in the middle of a frame."""
    import socket

    f, _ = served
    host, port = f.endpoint.removeprefix("tcp://").split(":")
    rng = np.random.default_rng(0)
    for junk in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", rng.bytes(4096), b"\xff" + b"\0" * 8 + b"\x01\x7f"):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(junk)
    with Peer(f.endpoint) as peer:
        peer.send(wire.Beat(tasks=(), outbox=(), free=1))
        assert peer.expect(wire.Error).why == "need_hello"
        peer.hello(free=0)


def test_a_name_is_one_worker_at_a_time(tmp_path: Path, zeros: Tables) -> None:
    """A second program under a live name is refused and waits; when the first has left, it gets the name."""
    with Federation(tmp_path, zeros) as f:
        f.start_broker()
        first = f.start_worker("w1", "tiny:Halving", delay=0.01)
        wait_for("the first is there", lambda: len(f.status()["workers"]) == 1)
        second = f.spawn(
            "second",
            "worker",
            "--connect",
            f.endpoint,
            "--app",
            "tiny:Halving",
            "--name",
            "w1",
            "--state",
            "second",
        )
        wait_for(
            "the second is told", lambda: "name_in_use: another program with this name" in log_of(second)
        )
        assert second.code is None
        assert first.code is None
        first.send(signal.SIGTERM)
        assert first.join(20)
        assert first.code == 0
        wait_for(
            "the second is there",
            lambda: "connected" in log_of(second).split("name_in_use")[-1].replace("not connected", ""),
        )


def test_what_a_peer_claims_is_bounded(served: tuple[Federation, Child]) -> None:
    """Forged offers cost the broker no memory worth mentioning, and nobody else their turn; more end the session."""
    f, broker = served
    before = f.status()["rss_anon_bytes"]
    with Peer(f.endpoint) as peer, Peer(f.endpoint, "honest") as honest:
        peer.hello()
        task = peer.expect(wire.Task)
        offer = {
            "task": bytes(37),
            "kind": "fit",
            "base": 0,
            "layout": task.layout,
            "encoding": "f32",
            "size": payload_size("f32", N),
            "digest": bytes(16),
            "examples": 1,
            "metrics": {},
        }
        header = msgpack.packb(offer)
        for _ in range(200):
            peer.raw(wire.MAGIC + bytes([wire.Offer.code]), header)
        assert {verdict.result for verdict in peer.read(200)} == {"rejected"}
        for _ in range(5000):
            peer.raw(wire.MAGIC + bytes([wire.Offer.code]), header)
        honest.hello(free=0)
        wait_for("the flooder is cut", lambda: f.status()["cuts"] >= 1)
    assert f.status()["rss_anon_bytes"] - before < 20e6
    assert log_of(broker).count("update rejected") == 1
