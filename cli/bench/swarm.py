"""Thousands of workers in one process: the real mind of each, over one epoll; their training is a pause.

    python -m fedmq.cli.bench.swarm ENDPOINT PREFIX COUNT TRAIN_S FLOATS

It reports its totals as a JSON line on stdout every half second, and ends when its stdin does.

Rules that hold here:

- A worker's behaviour is its mind's (`fedmq.worker.session`): HELLO, BEAT, backoff, offers and all. Only the body
  is small: no disk, no threads, an outbox in memory, and an update that is the same for every task.
- A lost connection is made again as libzmq does it: after 0.25 s at first, twice as long each time up to 5 s,
  with jitter.
- Latencies are counted in bins of a tenth of a factor of two, so that no report grows with the load.
"""

import errno
import heapq
import itertools
import json
import math
import os
import random
import select
import socket
import sys
import time
from collections import Counter
from typing import Any, Final

import xxhash

from fedmq.fedcore import wire
from fedmq.fedcore.errors import ProtocolError
from fedmq.worker.entry import Entry
from fedmq.worker.events import (
    Action,
    AppFailed,
    CancelApp,
    CloseSocket,
    DeleteOutbox,
    Event,
    Exit,
    Lost,
    Opened,
    OpenSocket,
    Received,
    Send,
    SendStored,
    Start,
    StartApp,
    Stored,
    Tick,
    Wake,
)
from fedmq.worker.session import Identity, Session

from .zmtp import HELLO, Receiver, frames_to_bytes

__all__ = ["BINS", "Swarm", "bin_of", "main"]

REPORT_S: Final = 0.5
RECONNECT_S: Final = 0.25
RECONNECT_MAX_S: Final = 5.0
STORM: Final = 128
"""Connections that one process begins at a time: more would only wait in the listener's backlog."""
BINS: Final = 300
_CHUNK: Final = 1 << 16


def bin_of(seconds: float) -> int:
    """The bin of a latency: ten for each doubling, from a microsecond on."""
    return max(0, min(BINS - 1, int(10 * math.log2(max(seconds, 1e-6) * 1e6))))


class Member:
    """One worker: its mind, its connection, and what it has to offer."""

    __slots__ = (
        "backoff_s", "entries", "inbox", "mind", "name", "offered", "out", "socket", "wake_at", "wants_socket",
    )  # fmt: skip

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        me = Identity(
            name=name, instance=name.encode()[-32:], boot=b"swarm", kinds=("fit",), slots=1, keep_models=0
        )
        self.mind = Session(me, rng=random.Random(number))
        self.socket: socket.socket | None = None
        self.inbox = Receiver()
        self.out = bytearray()
        self.entries: dict[bytes, Entry] = {}
        self.offered: dict[bytes, float] = {}
        self.backoff_s = RECONNECT_S
        self.wake_at = math.inf
        self.wants_socket = False


class Swarm:
    """All workers of this process.

    Parameters
    ----------
    address : (str, int)
        Of the broker.
    prefix : str
        Of the workers' names.
    count : int
    train_s : float
        How long a task takes, on average; from half to one and a half times as long.
    floats : int
        Of an update.
    """

    def __init__(
        self, address: tuple[str, int], prefix: str, count: int, train_s: float, floats: int
    ) -> None:
        self._address = address
        self._train_s = train_s
        self._payload = bytes(4 * floats)
        self._digest = xxhash.xxh3_128_digest(self._payload)
        self._rng = random.Random(prefix)
        self._poll = select.epoll()
        self._members = [Member(f"{prefix}-{number}", number) for number in range(count)]
        self._by_fd: dict[int, Member] = {}
        self._due: list[tuple[float, int, Any]] = []
        self._order = itertools.count()
        self._connecting = 0
        self._queue: list[Member] = []
        self._counts: Counter[str] = Counter()
        self._latency = [0] * BINS

    def run(self) -> None:
        """Until stdin ends."""
        self._poll.register(0, select.EPOLLIN)
        for member in self._members:
            self._tell(member, Start())
        self._later(0.0, self._report)
        while True:
            now = time.monotonic()
            while self._due and self._due[0][0] <= now:
                heapq.heappop(self._due)[2]()
            self._storm()
            timeout = max(self._due[0][0] - time.monotonic(), 0.0) if self._due else None
            for fd, happened in self._poll.poll(timeout, 512):
                if fd == 0:
                    if not os.read(0, 1024):
                        return
                elif fd in self._by_fd:
                    self._ready(self._by_fd[fd], happened)

    def _later(self, seconds: float, do: Any) -> None:
        heapq.heappush(self._due, (time.monotonic() + seconds, next(self._order), do))

    def _report(self) -> None:
        latency = {number: count for number, count in enumerate(self._latency) if count}
        print(json.dumps({**self._counts, "latency": latency}), flush=True)
        self._later(REPORT_S, self._report)

    def _storm(self) -> None:
        """Begin connections, as many as may be under way."""
        while self._queue and self._connecting < STORM:
            member = self._queue.pop()
            if not member.wants_socket or member.socket is not None:
                continue
            made = socket.socket(socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET)
            made.setblocking(False)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            member.socket, member.inbox = made, Receiver()
            member.out = bytearray(HELLO)
            self._by_fd[made.fileno()] = member
            self._poll.register(made.fileno(), select.EPOLLOUT)
            self._connecting += 1
            if made.connect_ex(self._address) not in (0, errno.EINPROGRESS):
                self._lost(member)

    def _ready(self, member: Member, happened: int) -> None:
        if happened & (select.EPOLLERR | select.EPOLLHUP):
            self._lost(member)
            return
        if happened & select.EPOLLOUT:
            self._flush(member)
        if happened & select.EPOLLIN and member.socket is not None:
            try:
                data = member.socket.recv(_CHUNK)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._lost(member)
                return
            self._received(member, data)

    def _received(self, member: Member, data: bytes) -> None:
        was_ready, connection = member.inbox.is_ready, member.inbox
        try:
            for frames in connection.feed(data):
                if not was_ready:
                    was_ready = self._opened(member)
                message, payload = wire.decode(frames, wire.TO_WORKER)
                self._count(member, message)
                self._tell(member, Received(message, payload))
                if member.inbox is not connection or member.socket is None:
                    return  # the mind has closed it
        except ProtocolError:
            self._counts["broken"] += 1
            self._lost(member)
            return
        if connection.is_ready and not was_ready:
            self._opened(member)

    def _opened(self, member: Member) -> bool:
        self._connecting -= 1
        self._counts["connections"] += 1
        member.backoff_s = RECONNECT_S
        self._tell(member, Opened())
        return True

    def _count(self, member: Member, message: wire.Message) -> None:
        kind = type(message).__name__.lower()
        self._counts[kind] += 1
        if isinstance(message, wire.Ack):
            self._counts[message.result] += 1
            offered = member.offered.pop(message.task, None)
            if offered is not None:
                self._latency[bin_of(time.monotonic() - offered)] += 1

    def _lost(self, member: Member) -> None:
        was_ready = member.inbox.is_ready
        self._close(member)
        if was_ready:
            self._counts["lost"] += 1
        # Full jitter, as the mind has it where it makes a new socket.
        self._later(self._rng.uniform(0.1, 1.0) * member.backoff_s, lambda: self._queue.append(member))
        member.backoff_s = min(2 * member.backoff_s, RECONNECT_MAX_S)
        self._tell(member, Lost())

    def _close(self, member: Member) -> None:
        if member.socket is None:
            return
        if not member.inbox.is_ready:
            self._connecting -= 1
        del self._by_fd[member.socket.fileno()]
        self._poll.unregister(member.socket.fileno())
        member.socket.close()
        member.socket = None
        member.inbox = Receiver()

    def _flush(self, member: Member) -> None:
        if member.socket is None:
            return
        try:
            sent = member.socket.send(member.out) if member.out else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            self._lost(member)
            return
        del member.out[:sent]
        wants = select.EPOLLIN | (select.EPOLLOUT if member.out else 0)
        self._poll.modify(member.socket.fileno(), wants)

    def _tell(self, member: Member, event: Event) -> None:
        for action in member.mind.handle(event, now=time.monotonic()):
            self._do(member, action)

    def _do(self, member: Member, action: Action) -> None:
        match action:
            case Send(message):
                self._send(member, message, None)
            case SendStored(message, offset, length):
                member.offered.setdefault(message.task, time.monotonic())
                self._send(member, message, self._payload[offset : offset + length])
            case StartApp(task, federation):
                pause = self._train_s * self._rng.uniform(0.5, 1.5)
                self._later(pause, lambda: self._finish(member, task, federation))
            case CancelApp(task):
                self._tell_soon(member, AppFailed(task, "cancelled"))
            case DeleteOutbox(task):
                member.entries.pop(task, None)
                member.offered.pop(task, None)
            case OpenSocket():
                member.wants_socket = True
                self._queue.append(member)
            case CloseSocket():
                member.wants_socket = False
                self._close(member)
            case Wake(at):
                member.wake_at = at
                if at < math.inf:
                    self._later(max(at - time.monotonic(), 0.0), lambda: self._wake(member, at))
            case Exit():
                self._counts["exited"] += 1
                self._close(member)
            case _:
                pass  # models are not kept: nothing is computed from them

    def _wake(self, member: Member, at: float) -> None:
        if member.wake_at == at:  # else it was put off
            member.wake_at = math.inf
            self._tell(member, Tick())

    def _tell_soon(self, member: Member, event: Event) -> None:
        self._later(0.0, lambda: self._tell(member, event))

    def _finish(self, member: Member, task: wire.Task, federation: str) -> None:
        entry = Entry(
            task=task.task,
            kind=task.kind,
            federation=federation,
            base=task.version,
            examples=1,
            layout=task.layout,
            encoding=task.encoding,
            size=len(self._payload),
            digest=self._digest,
        )
        member.entries[task.task] = entry
        self._tell(member, Stored(entry))

    def _send(self, member: Member, message: wire.Message, payload: bytes | None) -> None:
        if member.socket is None:
            return
        self._counts["sent"] += 1
        member.out += frames_to_bytes(wire.encode(message, payload))
        if member.inbox.is_ready:
            self._flush(member)


def main(arguments: list[str]) -> None:
    """Run a swarm; see the module."""
    endpoint, prefix, count, train_s, floats = arguments
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    Swarm((host.strip("[]"), int(port)), prefix, int(count), float(train_s), int(floats)).run()


if __name__ == "__main__":
    main(sys.argv[1:])
