"""A fedmq worker with nothing of fedmq in it: a peer to test the broker against.

Written from docs/protocol.md alone, with pyzmq, msgpack, xxhash and numpy. Its "training" is a script: half
of the way from the weights to 1.0, so that a federation of such workers converges, and every number that it
sends can be foretold. Each message goes to `say` as one line. Not a model of a worker to use: it trains in
its I/O loop and keeps its outbox in memory.

    python reference_worker.py tcp://127.0.0.1:5560 ward-3 [--parts] [--cut N] [--init N] [--encodings f32,i8]
                                                           [--models f32,f16]
"""

import argparse
import json
import math
import random
import signal
import struct
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import xxhash
import zmq

NAMES = (
    *("HELLO", "WELCOME", "REJECT", "BEAT", "TASK", "FETCH", "BLOCK", "OFFER", "GRANT"),
    *("PART", "ACK", "WAIT", "FAIL", "CANCEL", "BYE", "ERROR", "ENROLL", "ENROLLED"),
)
NUMBERS = {name: number for number, name in enumerate(NAMES, 1)}
IDLE, OFFERED, SENDING, WAITING = range(4)
LEASE_S = 35.0


def encode(x: np.ndarray, encoding: str) -> bytes:
    """The encodings of the protocol page; i8 rounds to the nearest."""
    if encoding == "f32":
        return x.astype("<f4").tobytes()
    if encoding == "f16":
        return x.astype("<f2").tobytes()
    if encoding == "bf16":
        return (x.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    blocks = [x[i : i + 1024] for i in range(0, len(x), 1024)]
    scales = [np.float32(np.abs(block).max() / 127) or np.float32(1) for block in blocks]
    return b"".join(
        s.tobytes() + np.rint(b / s).astype("i1").tobytes() for s, b in zip(scales, blocks, strict=True)
    )


def weights_of(file: bytes) -> np.ndarray:
    """The flat vector of a safetensors file: its F32 tensors, by data offset."""
    (length,) = struct.unpack_from("<Q", file)
    tensors = json.loads(file[8 : 8 + length])
    spans = sorted(
        t["data_offsets"] for name, t in tensors.items() if name != "__metadata__" and t["dtype"] == "F32"
    )
    data = file[8 + length :]
    return np.concatenate([np.frombuffer(data[a:b], "<f4") for a, b in spans] or [np.zeros(0, "<f4")])


def decoded(file: bytes, model: str) -> bytes:
    """The version's file that an encoded one stands for: its floats follow the header, at the place of F32's."""
    if model == "f32":
        return file
    (length,) = struct.unpack_from("<Q", file)
    tensors = json.loads(file[8 : 8 + length])
    n = sum(math.prod(t["shape"]) for k, t in tensors.items() if k != "__metadata__" and t["dtype"] == "F32")
    start, stop = 8 + length, 8 + length + 2 * n
    if model == "f16":
        values = np.frombuffer(file[start:stop], "<f2").astype("<f4")
    else:
        values = (np.frombuffer(file[start:stop], "<u2").astype("<u4") << 16).view("<f4")
    return file[:start] + values.tobytes() + file[stop:]


def zeros_file(n: int) -> bytes:
    """A safetensors file of one F32 tensor `w` of n zeros."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [n], "data_offsets": [0, 4 * n]}}).encode()
    header = header.ljust(-(-(len(header) + 8) // 64) * 64 - 8)
    return struct.pack("<Q", len(header)) + header + bytes(4 * n)


def say_aloud(line: str) -> None:
    print(line, flush=True)


class Model:
    """A version's file, as far as it has come."""

    def __init__(self, task: dict[str, Any], block: int) -> None:
        self.version, self.size, self.digest = task["version"], task["size"], task["digest"]
        self.encoding = task.get("model", "f32")
        self.named = {} if self.encoding == "f32" else {"model": self.encoding}
        self.file, self.fetched_twice = bytearray(self.size), False
        self.restart(block)

    def restart(self, block: int) -> None:
        self.missing, self.unasked = self.size, list(range(0, self.size, block))


class Result:
    """One entry of the outbox, and how far it is in this session."""

    def __init__(self, offer: dict[str, Any], payload: bytes | None) -> None:
        self.offer, self.payload = offer, payload
        self.state, self.position, self.limit, self.retry_at = IDLE, 0, 0, 0.0


class ReferenceWorker:
    """One worker; `run` returns its exit code when the broker has finished with it.

    `parts` never lets an update ride along; `cut` breaks the connection once, after so many PARTs; `init` is
    the size of the model that it makes when asked for one.
    """

    def __init__(
        self, endpoint: str, name: str, *, parts: bool = False, cut: int = 0, init: int = 0,
        encodings: tuple[str, ...] = ("f32",), models: tuple[str, ...] = (), say: Callable[[str], None] = say_aloud,
    ) -> None:  # fmt: skip
        self.endpoint, self.name, self.say, self.reads = endpoint, name, say, models
        self.parts, self.cut, self.init = parts, cut, init
        self.encodings, self.instance, self.boot = encodings, uuid.uuid4().bytes, uuid.uuid4().bytes
        self.rng, self.attempt, self.code = random.Random(name), 0, None
        self.tasks: dict[bytes, dict[str, Any]] = {}
        self.outbox: dict[bytes, Result] = {}
        self.models: dict[bytes, Model] = {}
        self.fetches: list[tuple[int, int]] = []
        self.terms: dict[str, Any] | None = None
        self.stopping = False

    def stop(self) -> None:
        """Say BYE and return 0 from `run`, soon; for signal handlers and other threads."""
        self.stopping = True

    def run(self) -> int:
        context = zmq.Context()
        try:
            while self.code is None:
                self.socket = context.socket(zmq.DEALER)
                self.socket.setsockopt(zmq.IMMEDIATE, 1)
                self.socket.setsockopt(zmq.CONNECT_TIMEOUT, 10_000)
                self.socket.setsockopt(zmq.SNDTIMEO, 2000)
                self.socket.connect(self.endpoint)
                self.wait_s = self.rng.uniform(0, min(60.0, 2.0**self.attempt))
                self.attempt += 1
                try:
                    self.session()
                except zmq.Again:  # nobody is there
                    self.leave(0 if self.stopping else None)
                self.socket.close(linger=1000)  # a BYE is to arrive, and the PARTs before a cut
                if self.code is None:
                    time.sleep(self.wait_s)
        finally:
            context.destroy()
        return self.code

    def session(self) -> None:
        """One connection, from HELLO until there is a reason to leave it."""
        self.open, self.heard, self.beat_s, self.lease_s = True, time.monotonic(), LEASE_S, LEASE_S
        self.hello()
        while self.open:
            if self.socket.poll(min(100, int(self.beat_s * 250))):
                self.heard = time.monotonic()
                self.receive(self.socket.recv_multipart())
            now = time.monotonic()
            if self.stopping:
                self.send("BYE", reason="stopped")
                self.leave(0)
            elif now > self.heard + self.lease_s:
                self.leave(None)
            elif self.terms is not None:
                self.work(now)

    def hello(self) -> None:
        self.terms, self.seen, self.told_seen, self.told = None, 0, 0, int(not self.tasks)
        self.listed = set(self.outbox)
        kinds = ["fit", "evaluate", *(["init"] if self.init else [])]
        me = {"name": self.name, "instance": self.instance, "boot": self.boot, "encodings": self.encodings}
        if self.reads:
            me["models"] = self.reads
        self.send("HELLO", protocol=1, **me, kinds=kinds, free=self.told, **self.held())

    def held(self) -> dict[str, list[bytes]]:
        return {"tasks": list(self.tasks), "outbox": list(self.outbox)}

    def work(self, now: float) -> None:
        """Whatever is due in an open session."""
        for task in list(self.tasks.values()):
            if task["kind"] == "init" or self.ready(task):
                self.train(task)
        for result in self.outbox.values():
            if result.state == IDLE or (result.state == WAITING and now >= result.retry_at):
                self.offer(result)
        free, known = int(not self.tasks), self.told - (self.seen - self.told_seen)
        if free != known or now > self.sent + self.beat_s:
            self.told, self.told_seen, self.listed = free, self.seen, set(self.outbox)
            self.send("BEAT", **self.held(), free=free, seen=self.seen)

    def ready(self, task: dict[str, Any]) -> bool:
        """Whether the task's model is here; asks for what is missing, four blocks at a time."""
        block = self.terms["block"]
        model = self.models.get(task["digest"]) or self.models.setdefault(task["digest"], Model(task, block))
        while model.unasked and len(self.fetches) < 4:
            offset = model.unasked.pop(0)
            self.fetches.append((model.version, offset))
            length = min(block, model.size - offset)
            self.send("FETCH", version=model.version, offset=offset, length=length, **model.named)
        if model.missing:
            return False
        if xxhash.xxh3_128_digest(bytes(model.file)) == model.digest:
            return True
        if model.fetched_twice:
            del self.models[model.digest]
            self.fail(task, "digest")
        model.fetched_twice = True
        model.restart(block)
        return False

    def train(self, task: dict[str, Any]) -> None:
        """The script: half of the way to 1.0."""
        offer = {"task": task["task"], "kind": task["kind"], "base": task["version"], "examples": 10}
        payload = None
        if task["kind"] == "init":
            payload, offer["encoding"] = zeros_file(self.init), "safetensors"
        else:
            model = self.models[task["digest"]]
            w = weights_of(decoded(bytes(model.file), model.encoding))
            offer["metrics"] = {"loss": float(np.mean((1 - w.astype("f8")) ** 2)) if len(w) else 0}
        if task["kind"] == "fit":
            encoding = task.get("encoding", "f32")
            payload = encode(np.float32(0.5) * (1 - w), encoding)
            offer |= {"layout": task["layout"], "encoding": encoding}
        if payload is not None:
            offer |= {"size": len(payload), "digest": xxhash.xxh3_128_digest(payload)}
        del self.tasks[task["task"]]
        self.outbox[task["task"]] = Result(offer, payload)

    def offer(self, result: Result) -> None:
        result.state, size = OFFERED, len(result.payload or b"")
        rides = (
            result.payload is not None and (size == 0 or not self.parts) and size <= self.terms["inline_max"]
        )
        self.send("OFFER", result.payload if rides else None, **result.offer)
        if result.offer["task"] not in self.listed:
            self.listed.add(result.offer["task"])
            self.told += 1

    def fail(self, task: dict[str, Any], reason: str) -> None:
        if self.tasks.pop(task["task"], None) is not None:
            self.send("FAIL", task=task["task"], reason=reason)

    def leave(self, code: int | None) -> None:
        self.open, self.code = False, code

    def send(self, kind: str, payload: bytes | None = None, /, **header: Any) -> None:
        self.sent = time.monotonic()
        self.say(
            " ".join(
                [">", kind, *(str(header[key]) for key in ("kind", "offset", "reason") if key in header)]
            )
        )
        frames = [b"FQ\x01" + bytes([NUMBERS[kind]]), msgpack.packb(header)]
        self.socket.send_multipart(frames if payload is None else [*frames, payload])

    def receive(self, frames: list[bytes]) -> None:
        kind, message = NAMES[frames[0][3] - 1], msgpack.unpackb(frames[1])
        notable = [
            str(message[key])
            for key in ("kind", "code", "result", "offset", "reason")
            if message.get(key, "") != ""
        ]
        self.say(" ".join(["<", kind, *notable]))
        if self.terms is None and kind not in ("WELCOME", "REJECT", "ACK", "CANCEL", "BYE", "ERROR"):
            return
        getattr(self, f"on_{kind.lower()}")(message, *frames[2:])

    def on_welcome(self, terms: dict[str, Any]) -> None:
        self.terms, self.beat_s, self.lease_s, self.attempt = terms, terms["beat_s"], terms["lease_s"], 0
        self.fetches.clear()
        for model in self.models.values():
            if model.missing:
                model.restart(terms["block"])
        for result in self.outbox.values():
            result.state = IDLE

    def on_reject(self, message: dict[str, Any]) -> None:
        self.wait_s += message.get("retry_s", 0)
        finished = message["code"] == "finished"
        self.leave(0 if finished else 1 if message.get("fatal") else None)

    def on_beat(self, message: dict[str, Any]) -> None:
        """Proof of life, which every message is."""

    def on_task(self, task: dict[str, Any], file: bytes | None = None) -> None:
        self.seen = max(self.seen, task["seq"])
        if file is not None and len(file) == task["size"]:
            model = self.models[task["digest"]] = Model(task, len(file))
            model.file, model.missing, model.unasked = bytearray(file), 0, []
        if task["task"] not in self.outbox:
            self.tasks[task["task"]] = task

    def on_block(self, message: dict[str, Any], data: bytes) -> None:
        where = (message["version"], message["offset"])
        if where in self.fetches:
            self.fetches.remove(where)
            model = next(m for m in self.models.values() if m.version == where[0])
            model.file[where[1] : where[1] + len(data)] = data
            model.missing -= len(data)

    def on_grant(self, grant: dict[str, Any]) -> None:
        result = self.outbox.get(grant["task"])
        if result is None or result.state not in (OFFERED, SENDING):
            return
        if result.state == OFFERED:
            result.state, result.position, result.limit = SENDING, grant["offset"], 0
        result.limit = max(result.limit, grant["limit"])
        while result.position < result.limit and self.open:
            piece = result.payload[result.position : min(result.position + self.terms["block"], result.limit)]
            self.send("PART", piece, task=grant["task"], offset=result.position)
            result.position += len(piece)
            self.cut -= 1
            if self.cut == 0:
                self.say("! cut")
                self.leave(None)

    def on_ack(self, message: dict[str, Any]) -> None:
        self.outbox.pop(message["task"], None)
        if message["result"] != "accepted":
            self.told = -1

    def on_wait(self, message: dict[str, Any]) -> None:
        if result := self.outbox.get(message["task"]):
            result.state = WAITING
            result.retry_at = time.monotonic() + message["retry_s"] * self.rng.uniform(1, 1.5)

    def on_cancel(self, message: dict[str, Any]) -> None:
        self.tasks.pop(message["task"], None)
        self.outbox.pop(message["task"], None)
        self.told = -1

    def on_bye(self, message: dict[str, Any]) -> None:
        self.leave({"finished": 0, "revoked": 1}.get(message.get("reason", "")))

    def on_error(self, error: dict[str, Any]) -> None:
        code, ref, task = error["code"], error["ref"], error.get("task")
        if code == "need_hello":
            self.hello()
        elif code == "gone":
            for held in [t for t in self.tasks.values() if t["version"] == error.get("version")]:
                self.fail(held, "the version is gone")
        elif code == "busy":
            where = (error["version"], error["offset"])
            for model in self.models.values():
                if model.version == where[0] and where in self.fetches:
                    self.fetches.remove(where)
                    model.unasked.append(where[1])
        elif ref == NUMBERS["OFFER"] and task is not None:
            self.outbox.pop(task, None)
        elif ref == NUMBERS["PART"] and task in self.outbox:
            self.outbox[task].state = IDLE


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("endpoint")
    options.add_argument("name")
    options.add_argument("--parts", action="store_true")
    options.add_argument("--cut", type=int, default=0)
    options.add_argument("--init", type=int, default=0)
    options.add_argument("--encodings", type=lambda text: tuple(text.split(",")), default=("f32",))
    options.add_argument("--models", type=lambda text: tuple(text.split(",")), default=())
    worker = ReferenceWorker(**vars(options.parse_args()))
    signal.signal(signal.SIGTERM, lambda *_: worker.stop())
    sys.exit(worker.run())
