"""The broker against a peer that nobody built it for: `reference_worker.py` knows docs/protocol.md alone.

Each of its fits goes half of the way to 1.0, from zeros: version k holds 1 − 2⁻ᵏ in every element, exactly,
in every encoding that can say so and whatever the number of workers.
"""

import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq

from fedmq import Broker
from fedmq.fedcore import config

SCRIPT = Path(__file__).with_name("reference_worker.py")
GOLDEN = Path(__file__).parents[1] / "unit" / "fedcore" / "golden" / "protocol1.json"
VERSIONS = 3
LARGE = 150_000
BLOCK = 64 * 1024


@contextmanager
def broker(folder: Path, **tables: dict[str, Any]) -> Iterator[Broker]:
    """A broker of synchronous rounds of two workers that finishes with version 3."""
    settings: dict[str, Any] = {
        "federation": {"bind": "tcp://127.0.0.1:*", "state": "state"},
        "model": {"initial": "first-worker"},
        "mode": {"kind": "sync", "min_available": 2},
        "network": {"beat_s": 0.5, "lease_s": 5.0, "block": BLOCK},
        "storage": {"durability": "os", "keep": VERSIONS + 1},
        "stop": {"versions": VERSIONS},
    }
    with Broker(config.parse(settings | tables, base_dir=folder)) as made:
        yield made


@contextmanager
def workers(endpoint: str, **options: list[str]) -> Iterator[dict[str, "subprocess.Popen[str]"]]:
    """Worker processes by name, each with its own command-line options."""
    running = {
        name: subprocess.Popen(
            [sys.executable, str(SCRIPT), endpoint, name, *extra], stdout=subprocess.PIPE, text=True
        )
        for name, extra in options.items()
    }
    try:
        yield running
    finally:
        for process in running.values():
            process.kill()
            process.communicate()


def finish(process: "subprocess.Popen[str]") -> list[str]:
    """What a worker said, once it has left because the federation is finished."""
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    lines = said.splitlines()
    assert not [line for line in lines if line.startswith(("< ERROR", "< REJECT", "> FAIL"))], said
    return lines


def weights(folder: Path, version: int) -> np.ndarray:
    """The one tensor of a version's file, read as any safetensors reader would."""
    file = (folder / "state" / "versions" / f"v{version:08d}.safetensors").read_bytes()
    (length,) = struct.unpack_from("<Q", file)
    start, end = json.loads(file[8 : 8 + length])["w"]["data_offsets"]
    return np.frombuffer(file[8 + length + start : 8 + length + end], "<f4")


def test_a_federation_of_strangers(tmp_path: Path) -> None:
    """The first makes the model, both train and evaluate, and every version is what arithmetic says."""
    with (
        broker(tmp_path) as running,
        workers(running.endpoint, one=["--init", "1000"], two=[]) as processes,
    ):
        one, two = (finish(process) for process in processes.values())
    for version in range(VERSIONS + 1):
        assert (weights(tmp_path, version) == 1 - 0.5**version).all(), version
    assert one.count("> OFFER init") == 1
    for said in (one, two):
        assert said.count("> OFFER fit") == VERSIONS
        assert said.count("> OFFER evaluate") >= 1
        assert said.count("< ACK accepted") == len([line for line in said if line.startswith("> OFFER")])
        assert said[-1] == "< BYE finished"


@pytest.mark.parametrize(("encoding", "error"), [("f32", 0.0), ("f16", 0.0), ("bf16", 0.0), ("i8", 1e-6)])
def test_encodings(tmp_path: Path, encoding: str, error: float) -> None:
    """An update in each encoding means the same to both sides; 1,500 values end in a short i8 block."""
    speaks = ["--encodings", f"f32,{encoding}"]
    with (
        broker(tmp_path, aggregate={"encoding": encoding}) as running,
        workers(running.endpoint, one=["--init", "1500", *speaks], two=speaks) as processes,
    ):
        for process in processes.values():
            finish(process)
    assert np.abs(weights(tmp_path, VERSIONS) - (1 - 0.5**VERSIONS)).max() <= error


def test_large_models_go_in_parts(tmp_path: Path) -> None:
    """600 kB both ways in 64 KiB blocks, under credit."""
    with (
        broker(tmp_path) as running,
        workers(running.endpoint, one=["--init", str(LARGE)], two=[]) as processes,
    ):
        two = [finish(process) for process in processes.values()][1]
    assert (weights(tmp_path, VERSIONS) == 1 - 0.5**VERSIONS).all()
    blocks = -(-4 * LARGE // BLOCK)
    assert len([line for line in two if line.startswith("> PART")]) == VERSIONS * blocks
    assert len([line for line in two if line.startswith("< BLOCK")]) >= VERSIONS * blocks


def test_small_updates_may_go_in_parts(tmp_path: Path) -> None:
    """Riding along is an offer, not a duty."""
    with (
        broker(tmp_path) as running,
        workers(running.endpoint, one=["--init", "10", "--parts"], two=["--parts"]) as processes,
    ):
        for process in processes.values():
            assert finish(process).count("> PART 0") >= VERSIONS
    assert (weights(tmp_path, VERSIONS) == 1 - 0.5**VERSIONS).all()


def test_an_upload_goes_on_where_the_connection_broke(tmp_path: Path) -> None:
    """After three parts the socket is closed; a new session sends the rest, and only what the cut lost again."""
    with (
        broker(tmp_path) as running,
        workers(running.endpoint, one=["--init", str(LARGE)], two=["--cut", "3"]) as processes,
    ):
        two = [finish(process) for process in processes.values()][1]
    assert (weights(tmp_path, VERSIONS) == 1 - 0.5**VERSIONS).all()
    after = two[two.index("! cut") :]
    grant = next(line for line in after if line.startswith("< GRANT"))
    arrived, rest = divmod(int(grant.removeprefix("< GRANT ")), BLOCK)
    assert rest == 0
    assert 1 <= arrived <= 3
    parts = len([line for line in two if line.startswith("> PART")])
    assert parts == VERSIONS * -(-4 * LARGE // BLOCK) + (3 - arrived)


def test_a_worker_that_leaves_says_so_and_is_replaced(tmp_path: Path) -> None:
    """BYE frees its place at once: the round waits for somebody, and two others finish it."""
    with (
        broker(tmp_path, mode={"kind": "sync", "min_available": 3}) as running,
        workers(running.endpoint, leaves=["--init", "10"]) as first,
    ):
        assert first["leaves"].stdout is not None
        for line in first["leaves"].stdout:
            if line == "< ACK accepted\n":  # of its initial model; there is no round before three are here
                break
        first["leaves"].terminate()
        said, _ = first["leaves"].communicate(timeout=60)
        assert (first["leaves"].returncode, said.splitlines()[-1]) == (0, "> BYE stopped")
        with workers(running.endpoint, a=[], b=[], c=[]) as others:
            for process in others.values():
                assert finish(process)[-1] == "< BYE finished"
    assert (weights(tmp_path, VERSIONS) == 1 - 0.5**VERSIONS).all()


def test_a_broker_that_is_started_again_goes_on(tmp_path: Path) -> None:
    """Workers come back by themselves, and no version is made twice or left out."""
    with broker(tmp_path) as first:
        endpoint = first.endpoint
        with workers(endpoint, one=["--init", "1000"], two=[]) as processes:
            stdout = processes["two"].stdout
            assert stdout is not None
            head = []
            for line in stdout:
                head.append(line)
                if line == "< ACK accepted\n":
                    break
            first.stop()
            federation = {"bind": endpoint, "state": "state"}
            with broker(tmp_path, federation=federation):
                said = [
                    "".join(head) + "\n".join(finish(processes["two"])),
                    "\n".join(finish(processes["one"])),
                ]
    assert (weights(tmp_path, VERSIONS) == 1 - 0.5**VERSIONS).all()
    for text in said:
        assert text.count("< WELCOME") == 2
        assert "< BYE shutdown" in text


def test_every_refused_vector_is_answered(tmp_path: Path) -> None:
    """ERROR `malformed` with a reason, whatever it was; and the broker serves the next one as if nothing was."""
    vectors = [v for v in json.loads(GOLDEN.read_text(encoding="utf-8"))["refused"] if v["way"] == "W→B"]
    with broker(tmp_path) as running, zmq.Context() as context:
        for vector in vectors:
            frames = [bytes.fromhex(frame) for frame in vector["frames"]]
            if not frames:
                continue  # a socket cannot send this one
            with context.socket(zmq.DEALER) as dealer:
                dealer.setsockopt(zmq.LINGER, 0)
                dealer.connect(running.endpoint)
                dealer.send_multipart(frames)
                assert dealer.poll(5000), vector["name"]
                first, header = dealer.recv_multipart()
            assert first == b"FQ\x01\x10", vector["name"]
            answer = msgpack.unpackb(header)
            assert answer["code"] == "malformed", vector["name"]
            assert answer["reason"].startswith(vector["reason"]), vector["name"]
        with workers(running.endpoint, one=["--init", "10"], two=[]) as processes:
            for process in processes.values():
                finish(process)


@pytest.mark.parametrize("model", ["f16", "bf16"])
def test_models_in_fewer_bytes(tmp_path: Path, model: str) -> None:
    """One peer reads them, one has never heard of them: both train, and the first fetches half as much."""
    reads = ["--models", f"f32,{model}"]
    table = {"initial": "first-worker", "downlink": model}
    with (
        broker(tmp_path, model=table, evaluate={"every": 0}) as running,
        workers(running.endpoint, one=["--init", str(LARGE)], two=reads) as processes,
    ):
        one, two = (finish(process) for process in processes.values())
    assert (weights(tmp_path, VERSIONS) == 1 - 0.5**VERSIONS).all()
    fetched = [len([line for line in said if line.startswith("< BLOCK")]) for said in (one, two)]
    assert fetched == [VERSIONS * -(-size * LARGE // BLOCK) for size in (4, 2)]
