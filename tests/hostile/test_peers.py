"""Workers that mean harm, one at a time, against a broker process with an honest worker beside them.

Each is refused with a reason, counted, costs the broker bounded memory, and leaves the honest worker's session alone.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xxhash

from fedmq.broker.tasks import TaskIds
from fedmq.cli.processes import Child
from fedmq.fedcore import wire

from ..integration.federation import Federation, Tables, log_of, wait_for, write_model
from ..integration.test_bad_input import Peer
from .attackers import Memory, Raw
from .slowdown import flood_of, hello

N = 1000
TABLES: Tables = {
    "model": {"initial": "zeros.safetensors"},
    "mode": {"kind": "async", "buffer": 2, "max_staleness": 20, "concurrency": 8, "tasks_per_worker": 3},
    "network": {"beat_s": 0.5, "lease_s": 20.0},
}
ONES = np.ones(N, np.float32).tobytes()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Federation, Child]]:
    """A broker and an honest worker, which keeps its one session, and works on when the attacker has gone."""
    write_model(tmp_path / "zeros.safetensors", {"w": np.zeros(N, np.float32)})
    with Federation(tmp_path, TABLES) as f:
        broker = f.start_broker()
        honest = f.start_worker("honest", "tiny:Still", delay=0.1)
        f.wait_for_version(2)
        with Memory(broker.pid) as memory:
            yield f, broker
            f.wait_for_more(2)
        assert memory.peak < memory.first + 60e6
        assert broker.code is None
        assert "defect" not in log_of(broker)
        assert log_of(honest).count("connected") == 1, "its session went on"


def counted(f: Federation, what: str) -> int:
    """How many of a kind the broker has counted."""
    number = f.status()["updates"][what]
    assert isinstance(number, int)
    return number


@pytest.mark.parametrize("kind", ["stranger", "hello", "beat", "fetch", "offer", "inline", "part", "unread"])
def test_a_flood_ends_its_connection(served: tuple[Federation, Child], kind: str) -> None:
    """Messages that move nothing, as fast as they go: dropped after a few thousand, with the reason, and counted."""
    f, broker = served
    data = flood_of(kind)

    def cut() -> bool:
        try:
            for _ in range(10):
                raw.send(data)
                if kind != "unread":
                    raw.drain()
        except OSError:
            return True
        return False

    with Raw(f.endpoint) as raw:
        raw.patience(1.0)
        if kind != "stranger":
            raw.send(hello("mallory"))
        wait_for("it is cut", cut)
    assert counted(f, "flooded") == 1
    assert "too many messages that moved nothing" in log_of(broker)
    assert f.status()["cuts"] >= 1


def test_who_has_flooded_is_told_when_to_come_back(served: tuple[Federation, Child]) -> None:
    """REJECT `full`, with the time to stay away; another connection makes no difference, and no other name is hit."""
    f, _ = served
    with Raw(f.endpoint) as raw:
        raw.send(hello("mallory") + flood_of("beat") * 5)
        assert raw.is_cut()
    with Peer(f.endpoint, "mallory") as mallory, Peer(f.endpoint, "other") as other:
        mallory.send(wire.Hello(protocol=1, name="mallory", instance=b"mallory", boot=b"b"))
        reject = mallory.expect(wire.Reject)
        assert (reject.why, reject.fatal) == ("full", False)
        assert 0 < reject.retry_s <= 10
        other.hello(free=0)


def test_three_malformed_messages_end_a_connection(served: tuple[Federation, Child]) -> None:
    """Not a flood of them: three."""
    f, _ = served
    with Raw(f.endpoint) as raw:
        raw.send(flood_of("malformed"))
        assert raw.is_cut()
    assert counted(f, "malformed") == 3


def test_ever_new_names_are_not_remembered_for_ever(served: tuple[Federation, Child]) -> None:
    """HELLO after HELLO under other names over one connection: one budget for all of them."""
    f, _ = served
    with Raw(f.endpoint) as raw:
        raw.patience(1.0)
        with contextlib.suppress(OSError):
            for number in range(1000):
                raw.send(b"".join(hello(f"m{number}-{i}") for i in range(100)))
                raw.drain()
    assert counted(f, "flooded") == 1
    assert len(f.status()["workers"]) <= 300


def test_a_hoarder_gets_its_share_and_keeps_it_for_a_while(served: tuple[Federation, Child]) -> None:
    """One that would take a billion tasks, and answers none: so many at a time, called back when they are too old."""
    f, _ = served
    with Peer(f.endpoint, "hoarder") as hoarder:
        hoarder.hello(free=10**9)
        tasks = [hoarder.expect(wire.Task) for _ in range(3)]
        f.wait_for_version(tasks[-1].version + 22)
        assert {hoarder.expect(wire.Cancel).task for _ in tasks} == {task.task for task in tasks}
        assert f.status()["uploads"] == 0


def test_offers_without_bytes_are_bounded(served: tuple[Federation, Child]) -> None:
    """A worker that offers and never sends: it gets no more tasks than it could have, and they are called back."""
    f, _ = served
    with Peer(f.endpoint, "idler") as idler:
        idler.hello(free=1)
        offered = []
        for _ in range(6):
            task = idler.expect(wire.Task)
            idler.send(_offer(task, ONES))
            idler.expect(wire.Grant, wire.Ack)
            offered.append(task.task)
        assert len(set(offered)) == 6
        f.wait_for_more(2)
        assert f.status()["uploads"] <= 6
        if f.status()["uploads"] == 6:  # none is stale yet: no seventh task comes
            assert idler.arrived(wire.Task) == []


def test_other_bytes_than_were_offered_are_no_update(served: tuple[Federation, Child]) -> None:
    """The digest of what came decides; the reason says so, and another worker's update is not touched."""
    f, _ = served
    with Peer(f.endpoint, "liar") as liar:
        liar.hello(free=1)
        task = liar.expect(wire.Task)
        liar.send(_offer(task, ONES))
        liar.expect(wire.Grant)
        liar.send(wire.Part(task=task.task, offset=0), bytes(len(ONES)))
        ack = liar.expect(wire.Ack)
        assert ack.result == "rejected"
        assert ack.reason.startswith("digest")
    assert counted(f, "rejected") == 1
    assert f.query("SELECT count(*) FROM updates WHERE worker = 'liar'") == [(0,)]


def test_a_session_replayed_counts_once(served: tuple[Federation, Child]) -> None:
    """Every frame of a good session again, fifty times, over new connections: one update, and `duplicate`s."""
    f, _ = served
    with Peer(f.endpoint, "parrot") as parrot:
        parrot.hello(free=1)
        task = _accepted(parrot)
        parrot.send(wire.Bye())
        for _ in range(50):
            parrot.hello(free=0)
            verdict = parrot.answer(task, ONES)
            assert verdict.result in ("duplicate", "stale")
    assert f.query("SELECT count(*) FROM updates WHERE worker = 'parrot'") == [(1,)]
    assert counted(f, "duplicate") + counted(f, "stale") == 50


@pytest.mark.parametrize(
    ("examples", "said"),
    [
        (10**9, "examples: 1 to 100000000"),
        (2**53 - 1, "examples"),
        (0, "examples"),
        (-1, "examples"),
        (-(2**63), ""),
    ],
)
def test_nobody_owns_the_mean_by_claiming_so(
    served: tuple[Federation, Child], examples: int, said: str
) -> None:
    """A weight beyond `aggregate.max_examples`, or none, or less than none."""
    f, _ = served
    with Peer(f.endpoint, "giant") as giant:
        giant.hello(free=1)
        verdict = giant.answer(giant.expect(wire.Task), ONES, examples=examples)
        assert said in verdict.reason
        assert isinstance(verdict, wire.Error) == (examples < 0)
    assert counted(f, "rejected") + counted(f, "malformed") == 1
    assert f.query("SELECT count(*) FROM updates WHERE worker = 'giant'") == [(0,)]


def test_an_ancient_base_is_stale(served: tuple[Federation, Child]) -> None:
    """An update against a version that missed too many, offered when all others have gone on."""
    f, _ = served
    with Peer(f.endpoint, "ancient") as ancient:
        ancient.hello(free=1)
        task = ancient.expect(wire.Task)
        f.wait_for_version(task.version + 21)
        verdict = ancient.answer(task, ONES)
        assert verdict.result == "stale"
        assert verdict.reason.startswith("base")
    assert counted(f, "stale") >= 1


def test_a_forged_id_is_none(served: tuple[Federation, Child]) -> None:
    """Of the future, of another federation, of another key, of nothing: refused before anything else is looked at."""
    f, _ = served
    digest = f.history()[0]["digest"]
    other = TaskIds(b"f" * 16, b"k" * 32, b"bootboot")
    with Peer(f.endpoint, "forger") as forger:
        forger.hello(free=1)
        task = forger.expect(wire.Task)
        forged = {
            "future": other.make("fit", "forger", 10**6, bytes.fromhex(digest)),
            "federation": other.make("fit", "forger", task.version, bytes.fromhex(digest)),
            "short": task.task[:-1],
            "bent": task.task[:-1] + bytes([task.task[-1] ^ 1]),
        }
        for name, forgery in forged.items():
            verdict = forger.answer(
                task, ONES, task=forgery, base=10**6 if name == "future" else task.version
            )
            assert verdict.result == "rejected", name
            assert verdict.reason.startswith("task"), name
        assert forger.answer(task, ONES).result in ("accepted", "stale"), "its own task is as good as before"
    assert counted(f, "rejected") == len(forged)


def _accepted(peer: Peer) -> wire.Task:
    """A task of its own whose update is accepted: the next one, unless that was too slow."""
    while True:
        task = peer.expect(wire.Task)
        verdict = peer.answer(task, ONES)
        if verdict.result == "accepted":
            assert isinstance(task, wire.Task)
            return task
        assert verdict.result == "stale"


def _offer(task: wire.Task, data: bytes) -> wire.Offer:
    return wire.Offer(
        task=task.task,
        kind="fit",
        base=task.version,
        layout=task.layout,
        encoding="f32",
        size=len(data),
        digest=xxhash.xxh3_128_digest(data),
        examples=1,
    )
