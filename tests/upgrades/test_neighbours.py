"""Workers and brokers of neighbouring minor versions work together: keys that one side does not know change nothing.

A later minor version may send keys that this one has never heard of, and an earlier one leaves keys out that were
added since. So somebody in the middle adds unknown keys to every header, in both directions, and takes out of it what
says no more than its absence: a federation must come to the same model, byte for byte.
"""

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import numpy as np
import pytest
import zmq

from fedmq.broker.daemon import Broker
from fedmq.broker.store.history import History
from fedmq.fedcore import wire
from fedmq.worker import Evaluation, Fit, TaskContext, Worker

WAIT_S = 60.0
N = 30_000
"""Elements: too many for a model or an update to ride along."""
VERSIONS = 5
LATER = {"later": {"nested": [1, 2.5, "text", None, True]}, "Later-2": b"\0" * 32, "x" * 64: -1}
"""What a later version might say."""
FOR_PEOPLE = {"reason", "tags", "metrics"}
"""Keys that nobody acts upon."""


class App:
    """A step that the task's seed alone decides."""

    def initial(self) -> dict[str, Any]:
        return {"w": np.zeros(N, np.float32)}

    def fit(self, weights: dict[str, Any], task: TaskContext) -> Fit:
        rng = np.random.default_rng(task.seed)
        return Fit({"w": weights["w"] + rng.normal(0, 0.1, N).astype(np.float32)}, 10, {"seen": 1.0})

    def evaluate(self, weights: dict[str, Any], task: TaskContext) -> Evaluation:
        return Evaluation(10, {"loss": float(np.square(weights["w"]).mean())})


class Middle:
    """Passes messages on between workers and a broker, each with other keys than it came with."""

    def __init__(self, broker: str) -> None:
        self._broker = broker
        self._context = zmq.Context()
        self._front = self._context.socket(zmq.ROUTER)
        self._front.setsockopt(zmq.LINGER, 0)
        port = self._front.bind_to_random_port("tcp://127.0.0.1")
        self.endpoint = f"tcp://127.0.0.1:{port}"
        self.changed: Counter[str] = Counter()
        """Keys that were taken away, by the message they were in; and messages that got some."""
        self._backs: dict[bytes, zmq.Socket[bytes]] = {}
        self._poller = zmq.Poller()
        self._poller.register(self._front, zmq.POLLIN)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="middle")
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        self._context.destroy(linger=0)

    def _run(self) -> None:
        while not self._over.is_set():
            ready = dict(self._poller.poll(100))
            if self._front in ready:
                peer, *frames = self._front.recv_multipart()
                self._back(peer).send_multipart(self.alter(frames, wire.TO_BROKER))
            for peer, back in list(self._backs.items()):
                if back in ready:
                    self._front.send_multipart([peer, *self.alter(back.recv_multipart(), wire.TO_WORKER)])

    def _back(self, peer: bytes) -> "zmq.Socket[bytes]":
        """A connection of its own to the broker for each worker."""
        if peer not in self._backs:
            back = self._backs[peer] = self._context.socket(zmq.DEALER)
            back.setsockopt(zmq.LINGER, 0)
            back.connect(self._broker)
            self._poller.register(back, zmq.POLLIN)
        return self._backs[peer]

    def alter(self, frames: list[bytes], table: wire.Table) -> list[bytes]:
        """The same message from a neighbouring version."""
        kind = table[frames[0][3]]
        header: dict[str, Any] = msgpack.unpackb(frames[1])
        for field in msgspec.structs.fields(kind):
            key = field.encode_name
            if key in header and self._says_nothing(kind, key, header[key], field):
                del header[key]
                self.changed[f"{kind.__name__}.{key}"] += 1
        self.changed[kind.__name__] += 1
        return [frames[0], msgpack.packb(LATER | header), *frames[2:]]

    @staticmethod
    def _says_nothing(
        kind: type[wire.Message], key: str, value: Any, field: msgspec.structs.FieldInfo
    ) -> bool:
        if field.required:
            return False
        default = field.default if field.default is not msgspec.NODEFAULT else None
        if field.default_factory is not msgspec.NODEFAULT:
            default = field.default_factory()
        same = list(default) == value if isinstance(default, tuple) else default == value
        # A BYE's reason is acted upon, and so are the metrics of an evaluation.
        matters = kind is wire.Bye or (key == "metrics" and "loss" in value)
        return bool(same) or (key in FOR_PEOPLE and not matters)


@contextlib.contextmanager
def middle(broker: str) -> Iterator[Middle]:
    made = Middle(broker)
    try:
        yield made
    finally:
        made.close()


def digests(state: Path) -> list[str]:
    """Of every version."""
    with History.open(state / "journal.db") as history:
        return [row["digest"] for row in history.history()]


def federation(folder: Path, *, altered: bool) -> Counter[str]:
    """A whole federation of three workers; what was altered on the way."""
    tables = {
        "federation": {"bind": "tcp://127.0.0.1:*", "state": str(folder / "state"), "seed": 5},
        "mode": {"kind": "sync", "min_available": 3, "deadline_s": 0.0},
        "network": {"block": "16 KiB", "credit_budget": "256 KiB"},
        "evaluate": {"every": 2},
        "storage": {"durability": "os"},
        "stop": {"versions": VERSIONS},
    }
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(Broker(tables))
        between = stack.enter_context(middle(broker.endpoint)) if altered else None
        connect = broker.endpoint if between is None else between.endpoint
        workers = [
            stack.enter_context(Worker(App(), connect, name=name, tags=["ward"])) for name in ("a", "b", "c")
        ]
        for worker in workers:
            assert worker.wait(WAIT_S)
        assert broker.wait(WAIT_S) == 0
        return Counter() if between is None else between.changed


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What nobody altered."""
    folder = tmp_path_factory.mktemp("undisturbed")
    federation(folder, altered=False)
    return digests(folder / "state")


def test_a_federation_of_neighbours_comes_to_the_same_model(tmp_path: Path, undisturbed: list[str]) -> None:
    """Every kind of message was altered on the way, and no bit of any version is another."""
    changed = federation(tmp_path, altered=True)
    assert digests(tmp_path / "state") == undisturbed
    assert len(undisturbed) == VERSIONS + 1
    usual = {wire.Hello, wire.Welcome, wire.Task, wire.Fetch, wire.Block, wire.Offer, wire.Grant, wire.Part}
    assert {kind.__name__ for kind in (*usual, wire.Ack, wire.Bye)} <= changed.keys()
    taken_away = {
        "Hello.tags",
        "Hello.outbox",
        "Task.deadline_s",
        "Task.config",
        "Offer.metrics",
        "Ack.reason",
    }
    assert taken_away <= changed.keys()


@pytest.mark.parametrize(
    "kind", [*wire.TO_BROKER.values(), *wire.TO_WORKER.values()], ids=lambda kind: kind.__name__
)
def test_every_message_may_carry_unknown_keys(kind: type[wire.Message]) -> None:
    """Whatever they hold; the ones that are known are read as ever."""
    table = wire.TO_BROKER if kind in wire.TO_BROKER.values() else wire.TO_WORKER
    plain = {
        "protocol": 1, "name": "n", "instance": b"i", "boot": b"b", "federation": "f", "beat_s": 1, "lease_s": 1,
        "block": 1, "inline_max": 1, "credit": 1, "max_model_bytes": 1, "code": "busy", "task": b"t", "seq": 1,
        "kind": "evaluate", "version": 1, "size": 1, "digest": b"d" * 16, "layout": b"l", "offset": 0, "length": 1,
        "base": 0, "examples": 1, "metrics": {"loss": 1.0}, "limit": 1, "result": "stale", "retry_s": 1, "ref": 8,
        "key": b"k" * 32,
    }  # fmt: skip
    if kind is wire.Reject:
        plain["code"] = "full"
    if kind is wire.Offer:
        plain = {key: value for key, value in plain.items() if key not in ("size", "digest", "layout")}
    known = {field.encode_name for field in msgspec.structs.fields(kind)}
    header = {key: value for key, value in plain.items() if key in known}
    payload = [b"p"] if kind.payload == "required" else []
    frames = [wire.MAGIC + bytes([kind.code]), msgpack.packb(header), *payload]
    later = [frames[0], msgpack.packb(LATER | header), *payload]
    assert wire.decode(later, table)[0] == wire.decode(frames, table)[0]
