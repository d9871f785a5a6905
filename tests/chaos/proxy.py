"""A TCP proxy between workers and their broker: it is slow, far away, deaf in one direction, or it breaks things.

    with Proxy(broker_endpoint) as proxy:
        federation.start_worker("w1", connect=proxy.endpoint)
        proxy.rate = 1e6                    # bytes a second, for each direction of each connection
        proxy.cut_after("up", 12_345)       # after so many more bytes, in the middle of whatever that is

Rules that hold here:

- One thread moves all bytes; everything else may be called from any thread, and counts from then on.
- What a side has sent is counted when it is read (`seen`), also the bytes that a cut leaves behind: so `seen["up"]`
  is what workers put on the wire.
- A cut resets both ends, as a device that lost its state does. The listener stays: peers may come back at once.
- A direction that is swallowed keeps its connections open and its bytes to itself. When it ends, connections that
  have lost bytes are cut: their streams have a hole.
"""

import collections
import contextlib
import random
import selectors
import socket
import struct
import threading
import time
from types import TracebackType
from typing import Literal, Self

Way = Literal["up", "down"]
"""From worker to broker, and back."""

PIECE = 64 * 1024
HELD_MAX = 256 * 1024
"""Bytes of a direction that may wait here; then its sender has to."""
TICK_S = 0.005
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER of no time: close sends a reset


class Proxy:
    """A proxy before one broker.

    Parameters
    ----------
    target
        ``tcp://host:port`` of the broker, which may come and go.
    rng
        Decides which bit is flipped.

    Attributes
    ----------
    rate
        Bytes a second for each direction of each connection; 0 for no limit.
    delay_s
        How long each byte takes, beside that.
    swallowed
        Directions whose bytes vanish; change it by `swallow` and `deliver`.
    seen
        Bytes that were sent to this proxy, by direction.
    cuts, flips
        How many connections were cut, and bits flipped.
    """

    def __init__(self, target: str, rng: random.Random) -> None:
        host, _, port = target.removeprefix("tcp://").rpartition(":")
        self._target = (host, int(port))
        self._rng = rng
        self.rate = 0.0
        self.delay_s = 0.0
        self.swallowed: frozenset[Way] = frozenset()
        self.seen: dict[Way, int] = {"up": 0, "down": 0}
        self.cuts = 0
        self.flips = 0
        self._cut_at: dict[Way, list[int]] = {"up": [], "down": []}
        self._flip_at: dict[Way, list[int]] = {"up": [], "down": []}
        self._cut_now = False
        self._closing = False
        self._links: set[_Link] = set()
        self._selector = selectors.DefaultSelector()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._listener.setblocking(False)
        self._waker, self._alarm = socket.socketpair()
        self._alarm.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._selector.register(self._alarm, selectors.EVENT_READ, None)
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        self._wake()
        self._thread.join()

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._links)

    def cut(self) -> None:
        """Cut every connection now."""
        self._cut_now = True
        self._wake()

    def cut_after(self, way: Way, count: int) -> None:
        """Cut the connection that carries the byte after the next `count` bytes of a direction."""
        self._cut_at[way] = sorted([*self._cut_at[way], self.seen[way] + count])

    def flip_after(self, way: Way, count: int) -> None:
        """Flip one bit of the byte that follows the next `count` bytes of a direction."""
        self._flip_at[way] = sorted([*self._flip_at[way], self.seen[way] + count])

    def swallow(self, *ways: Way) -> None:
        """Let these directions' bytes vanish from now on."""
        self.swallowed = frozenset(ways)

    def deliver(self) -> None:
        """End `swallow`."""
        self.swallowed = frozenset()
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._waker.send(b"\0")

    def _run(self) -> None:
        try:
            while not self._closing:
                before = sum(self.seen.values())
                ready = self._selector.select(TICK_S if self._links else None)
                for key, _ in ready:
                    if key.fileobj is self._listener:
                        self._accept()
                    elif key.fileobj is self._alarm:
                        self._alarm.recv(4096)
                self._turn()
                # What is readable may not be read yet: without a pause the loop would spin.
                if ready and before == sum(self.seen.values()):
                    time.sleep(TICK_S)
        finally:
            for link in self._links:
                link.close()
            for closing in (self._listener, self._waker, self._alarm):
                closing.close()
            self._selector.close()

    def _turn(self) -> None:
        cut_now, self._cut_now = self._cut_now, False
        for link in list(self._links):
            if cut_now or (link.has_hole and not self.swallowed):
                self.cuts += 1
                self._end(link)
            elif not self._move(link):
                self._end(link)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            client, _ = self._listener.accept()
            try:
                server = socket.create_connection(self._target, timeout=1.0)
            except OSError:  # no broker now: the worker is told as the network would
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                client.close()
                return
            link = _Link(client, server)
            self._links.add(link)
            for end in (client, server):
                end.setblocking(False)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._selector.register(end, selectors.EVENT_READ, None)

    def _end(self, link: "_Link") -> None:
        """Reset both ends; what was sent and never passed on is counted all the same."""
        for way, half in link.halves.items():
            with contextlib.suppress(OSError):
                while data := half.source.recv(PIECE):
                    self.seen[way] += len(data)
        for end in link.ends:
            self._selector.unregister(end)
        link.close()
        self._links.discard(link)

    def _move(self, link: "_Link") -> bool:
        """Move what can be moved of both directions; False when the connection is over."""
        try:
            for way, half in link.halves.items():
                # A direction that waits here for its time is not read: its sender sees a full network.
                while half.held < HELD_MAX and half.may_read(self.rate):
                    try:
                        data = half.source.recv(PIECE if not self.rate else max(int(self.rate / 50), 1))
                    except BlockingIOError:
                        break
                    if not data:
                        half.flush(everything=True)
                        return False
                    if not self._pass(way, half, data):
                        return False
                half.flush()
        except OSError:
            return False
        return True

    def _pass(self, way: Way, half: "_Half", data: bytes) -> bool:
        """Do to these bytes what is to be done at their place; False when that is a cut."""
        begin = self.seen[way]
        self.seen[way] += len(data)
        while self._flip_at[way] and self._flip_at[way][0] < begin + len(data):
            at = self._flip_at[way].pop(0) - begin
            data = data[:at] + bytes([data[at] ^ (1 << self._rng.randrange(8))]) + data[at + 1 :]
            self.flips += 1
        is_cut = bool(self._cut_at[way]) and self._cut_at[way][0] < begin + len(data)
        if is_cut:
            data = data[: self._cut_at[way].pop(0) - begin]
            self.cuts += 1
        if way in self.swallowed:
            half.has_hole = True
        else:
            half.take(data, time.monotonic() + self.delay_s, self.rate)
        if is_cut:
            half.flush(everything=True)
        return not is_cut


class _Half:
    """One direction of one connection."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source = source
        self._sink = sink
        self._queue: collections.deque[tuple[float, bytes]] = collections.deque()
        self.held = 0
        self.has_hole = False
        self._free_at = 0.0
        """When the link has carried what it was given."""

    def may_read(self, rate: float) -> bool:
        return not rate or self._free_at <= time.monotonic() + TICK_S

    def take(self, data: bytes, due: float, rate: float) -> None:
        if rate:
            self._free_at = max(self._free_at, time.monotonic()) + len(data) / rate
            due += self._free_at - time.monotonic()
        self._queue.append((due, data))
        self.held += len(data)

    def flush(self, *, everything: bool = False) -> None:
        """Pass on what is due, or all there is, as far as the other side takes it."""
        while self._queue and (everything or self._queue[0][0] <= time.monotonic()):
            due, data = self._queue[0]
            try:
                sent = self._sink.send(data)
            except BlockingIOError:
                return
            self.held -= sent
            if sent == len(data):
                self._queue.popleft()
            else:
                self._queue[0] = (due, data[sent:])


class _Link:
    """One connection through the proxy."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.ends = (client, server)
        self.halves: dict[Way, _Half] = {"up": _Half(client, server), "down": _Half(server, client)}

    @property
    def has_hole(self) -> bool:
        return any(half.has_hole for half in self.halves.values())

    def close(self) -> None:
        for end in self.ends:
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            end.close()
