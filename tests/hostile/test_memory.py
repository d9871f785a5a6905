"""What strangers can make the broker hold: messages without end, and connections that say nothing.

All against a broker process, with an honest worker beside the attacker whose updates must go on.
"""

import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmq.cli.processes import Child

from ..integration.federation import Federation, Tables, log_of, wait_for, write_model
from .attackers import EMPTY_MORE, GREETING, Flood, Memory, Raw, frame, half_open, message

N = 100
CUT = "connections cut that sent and sent and finished no message"
REBOUND = "too much memory in use: socket closed and bound again"
TABLES: Tables = {
    "model": {"initial": "zeros.safetensors"},
    "mode": {"kind": "async", "buffer": 2, "max_staleness": 5},
    "network": {"beat_s": 0.5, "lease_s": 3.0, "credit_budget": 1 << 20, "memory_limit": 200 << 20},
}
"""A broker of 25 MB that may take 200."""


def honest(f: Federation) -> Child:
    """A worker that trains for a moment and never stops."""
    worker = f.start_worker("honest", "tiny:Halving")
    f.wait_for_version(2)
    return worker


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Federation, Child]]:
    """A broker with an honest worker; at the end it must be alive, and stop in order."""
    write_model(tmp_path / "zeros.safetensors", {"w": np.zeros(N, np.float32)})
    with Federation(tmp_path, TABLES) as f:
        broker = f.start_broker()
        honest(f)
        yield f, broker
        f.wait_for_more(2)
        assert broker.code is None
        assert "defect" not in log_of(broker)


def told(f: Federation) -> dict[str, Any]:
    status = f.status()
    return {key: status[key] for key in ("cuts", "rebinds", "connections")}


def test_an_endless_message_is_cut_and_nobody_else_is(tmp_path: Path) -> None:
    """Frames with the MORE bit and no end: the connection that sends them is found by what it sends and finishes.

    Memory stays far below the limit, the honest worker keeps its session, and each return of the attacker ends alike.
    """
    write_model(tmp_path / "zeros.safetensors", {"w": np.zeros(N, np.float32)})
    with Federation(tmp_path, {**TABLES, "network": {"beat_s": 0.5, "lease_s": 10.0}}) as f:
        broker = f.start_broker()
        honest(f)
        with Memory(broker.pid) as memory, Flood(f.endpoint, EMPTY_MORE * 50_000) as flood:
            wait_for("two cuts", lambda: told(f)["cuts"] >= 2)
            f.wait_for_more(2)
        assert flood.cuts >= 1
        assert CUT in log_of(broker)
        assert told(f)["rebinds"] == 0
        assert memory.peak < 1.1 * (1 << 30)
        assert log_of(broker).count("worker connected") == 1
        wait_for("memory is given back", lambda: memory.now() < 150e6)
        f.wait_for_more(2)


@pytest.mark.parametrize("way", ["tcp", "ipc"])
def test_what_cannot_be_laid_on_anybody_costs_a_rebind(tmp_path: Path, way: str) -> None:
    """Many connections that each stay below suspicion, or come over a unix socket, where none can be counted.

    The broker closes its socket and listens at the same address again; the honest worker comes back by itself, and
    what was acknowledged is in the journal.
    """
    write_model(tmp_path / "zeros.safetensors", {"w": np.zeros(N, np.float32)})
    bind = {"federation": {"bind": f"ipc://{tmp_path}/socket"}} if way == "ipc" else {}
    with Federation(tmp_path, {**TABLES, **bind}) as f:
        broker = f.start_broker()
        honest(f)
        each = 2_000_000 if way == "tcp" else 0  # of two bytes: 64 MB for the broker, 2 MB on the wire
        with (
            Memory(broker.pid) as memory,
            Flood(f.endpoint, EMPTY_MORE * 20_000, connections=6 if way == "tcp" else 1, each=each),
        ):
            wait_for("a rebind", lambda: told(f)["rebinds"] >= 1)
            peak = memory.peak
        wait_for("its return", lambda: log_of(f.workers["honest"]).count("worker: connected") == 2)
        before = f.status()["updates"]["accepted"]
        wait_for("updates go on", lambda: f.status()["updates"]["accepted"] > before + 4)
        assert REBOUND in log_of(broker)
        assert peak < 900e6
        wait_for("memory is given back", lambda: memory.now() < 150e6)
        f.wait_for_more(2)


def test_a_message_of_a_million_frames_is_one_violation(served: tuple[Federation, Child]) -> None:
    """One that ends is thrown away, counted, and answered like any other of the wrong number of frames."""
    f, broker = served
    with Raw(f.endpoint) as raw:
        raw.send(EMPTY_MORE * 200_000 + frame(b"x"))
        wait_for("it is counted", lambda: f.status()["updates"]["malformed"] == 1)
    assert "4 frames" in log_of(broker)


@pytest.mark.parametrize(
    "data",
    [
        b"\x02" + (2**63 - 1).to_bytes(8, "big"),
        b"\x02" + (2**40).to_bytes(8, "big") + b"x" * 1000,
        b"\x03" + (2 << 20).to_bytes(8, "big"),
        b"\x02" + bytes([255] * 8),
        b"\xff" * 1000,
    ],
    ids=["2^63", "2^40", "2 MiB", "2^64", "ones"],
)
def test_a_forged_length_ends_its_connection(served: tuple[Federation, Child], data: bytes) -> None:
    """Beyond a block and a header nothing is allocated: the connection ends."""
    f, broker = served
    with Memory(broker.pid) as memory, Raw(f.endpoint) as raw:
        raw.send(data)
        assert raw.is_cut()
    assert memory.peak < memory.first + 30e6


def test_what_is_no_greeting_ends_its_connection(served: tuple[Federation, Child]) -> None:
    """HTTP, TLS, random bytes, half of a greeting, another mechanism: over in half a minute at the latest.

    What libzmq takes for an ancient peer, or a polite one, goes as well: it never says HELLO.
    """
    f, _ = served
    rng = np.random.default_rng(0)
    wrong = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.bytes(200),
        rng.bytes(64),
        GREETING[:30],
        GREETING.replace(b"NULL", b"WHAT"),
        GREETING + b"\x00\x01x",
        GREETING + message(b"FQ\x01\x04", b"\x80"),
        GREETING + b"\x04\x06\x05READY\xff",
    ]
    streams = [Raw(f.endpoint, shaken=False) for _ in wrong]
    for stream, data in zip(streams, wrong, strict=True):
        with stream:
            stream.send(data)
    streams = [Raw(f.endpoint, shaken=False) for _ in wrong]
    for stream, data in zip(streams, wrong, strict=True):
        stream.send(data)
    for stream in streams:
        with stream:
            assert stream.is_cut(40)
    wait_for("they are gone", lambda: told(f)["connections"] == 1)


@pytest.mark.parametrize("say", [b"", GREETING[:11]], ids=["silent", "half a greeting"])
def test_half_open_connections_go_by_themselves(served: tuple[Federation, Child], say: bytes) -> None:
    """Thousands of connections that never shake hands: dropped after ten seconds, and the memory with them.

    As many as this process may have descriptors, 5,000 at most (the two cases make 10,000).
    """
    f, broker = served
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    count = min(5000, hard - 512)
    print(f"{count} connections, of {hard} descriptors")
    try:
        with Memory(broker.pid) as memory, half_open(f.endpoint, count, say):
            f.wait_for_more(2)
            wait_for("they are dropped", lambda: told(f)["connections"] <= 1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert memory.peak < memory.first + 300e6
    assert len(list(Path(f"/proc/{broker.pid}/fd").iterdir())) < 100
