"""Messages between sockets and the body: one ROUTER for the workers, and the poller of the I/O thread.

Rules that hold here:

- Nothing blocks. What a peer does not take waits in that peer's own queue, in order, and is tried again.
- Blocks go out of the mapped file without a copy. At most eight of a peer's are unsent; the next FETCH is
  answered `busy`, so that unread FETCHes cannot pile up.
- What arrives becomes a well-formed message or a `Violation`; no frame goes further undecoded.
- A peer is a return address. A peer without a route is forgotten here, and reported once.
- Connections are counted, by the socket's monitor, so that an orderly end can wait until workers have hung up:
  libzmq throws away what a worker has received and not yet read when its connection breaks, the BYE with it.
"""

import collections
import errno
import struct
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import zmq

from fedmq.fedcore import wire
from fedmq.fedcore.errors import ConfigError, ProtocolError

from .events import Event, Peer, Received, Violation

RECEIVE_MAX = 64
"""Messages that are drained in a turn."""
ZERO_COPY = 64 * 1024
"""From this size on, a frame is sent from where it lies."""
OLDEST_ZMQ = (4, 3, 4)
UNSENT_MAX = 2 * wire.FETCHES_MAX
"""Blocks on their way to a peer. Twice what it may ask for at a time: libzmq tells that a block has left only
some time after the peer could have read it, and asked for the next."""
RETRY_S = 0.005
RETRY_MAX_S = 0.1
FRAMES_MAX = 4
"""Frames of one message that are looked at: one more than any message has."""
_MONITORED = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED
_MONITOR_EVENT = struct.Struct("=hi")  # as zmq.utils.monitor does it, which would load asyncio


class Wires(msgspec.Struct, frozen=True, kw_only=True):
    """How the broker's socket is set up."""

    bind: str
    block: int
    """Bytes of the largest payload frame."""
    high_water: int
    """Messages that may wait for, or from, one peer inside the socket."""


class _Line:
    """What waits for one peer."""

    __slots__ = ("blocks", "queue")

    def __init__(self) -> None:
        self.queue: collections.deque[tuple[list[wire.Frame], int, bool]] = collections.deque()
        self.blocks: list[zmq.MessageTracker] = []


class Transport:
    """The broker's socket.

    Parameters
    ----------
    wires : Wires
        Address and limits.

    Attributes
    ----------
    endpoint : str
        Where workers connect: the bound address, with the port that the system chose where it was asked to.
    bytes_up, bytes_down : int
        Bytes of frames from, and to, workers.

    Raises
    ------
    ConfigError
        When the address is in use or is none of this machine's, or libzmq is too old.
    """

    def __init__(self, wires: Wires) -> None:
        if zmq.zmq_version_info() < OLDEST_ZMQ:
            raise ConfigError(f"libzmq is {zmq.zmq_version()}; fedmq needs 4.3.4 or newer: upgrade pyzmq")
        self.bytes_up = 0
        self.bytes_down = 0
        self._lines: dict[Peer, _Line] = {}
        self._waiting: dict[Peer, _Line] = {}
        self._lost: list[Peer] = []
        self._retry_at = 0.0
        self._retry_s = RETRY_S
        self._context = zmq.Context()
        self._poller = zmq.Poller()
        try:
            self._socket = self._bind(wires)
        except BaseException:
            self._context.destroy(linger=0)
            raise
        self.endpoint: str = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._connections: set[int] = set()
        self.watch(self._socket)
        self.watch(self._monitor)

    def watch(self, source: Any) -> None:
        """Let `poll` return when this socket or file is readable."""
        self._poller.register(source, zmq.POLLIN)

    def poll(self, timeout_s: float | None) -> None:
        """Wait until something is readable, a waiting peer is due, or `timeout_s` has passed."""
        if self._waiting:
            due = max(self._retry_at - time.monotonic(), 0.0)
            timeout_s = due if timeout_s is None else min(timeout_s, due)
        # Rounded up: a timeout rounded to zero would spin until its time has come.
        ready = self._poller.poll(None if timeout_s is None else int(timeout_s * 1000) + (timeout_s > 0))
        if any(source is self._monitor for source, _ in ready):
            self._observe()

    def receive(self) -> Iterator[Event]:
        """Up to 64 messages that have arrived."""
        for _ in range(RECEIVE_MAX):
            try:
                peer = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            frames: list[wire.Frame] = []
            while self._socket.getsockopt(zmq.RCVMORE):
                # A payload stays in the frame that it came in; small frames are cheaper to copy.
                frame: wire.Frame = (
                    self._socket.recv() if len(frames) < 2 else self._socket.recv(copy=False).buffer
                )
                self.bytes_up += len(frame)
                if len(frames) < FRAMES_MAX:
                    frames.append(frame)
            try:
                message, payload = wire.decode(frames, wire.TO_BROKER)
            except ProtocolError as error:
                ref = frames[0][3] if frames and len(frames[0]) == 4 else 0
                yield Violation(peer, ref, wire.clip(str(error)), error.task)
            else:
                yield Received(peer, message, payload)

    def send(self, peer: Peer, message: wire.Message, payload: wire.Frame | None = None) -> None:
        """Send a message, now or when the peer takes it."""
        self._post(peer, wire.encode(message, payload), is_block=False)

    def send_block(self, peer: Peer, version: int, offset: int, data: memoryview) -> None:
        """Send a BLOCK that lies in a mapped file, or `busy` when too many are unsent."""
        line = self._lines.get(peer)
        if line is not None:
            line.blocks = [tracker for tracker in line.blocks if not tracker.done]
            unsent = len(line.blocks) + sum(is_block for _, _, is_block in line.queue)
            if unsent >= UNSENT_MAX:
                reason = f"{unsent} blocks are on their way already"
                busy = wire.Error(
                    ref=wire.Fetch.code, why="busy", reason=reason, version=version, offset=offset
                )
                self.send(peer, busy)
                return
        block = wire.Block(version=version, offset=offset)
        self._post(peer, wire.encode(block, data), is_block=True)

    def drop(self, peer: Peer) -> None:
        """Forget what waits for a peer."""
        self._lines.pop(peer, None)
        self._waiting.pop(peer, None)

    def retry(self) -> None:
        """Try again those peers that did not take what was sent, if it is time."""
        if not self._waiting or time.monotonic() < self._retry_at:
            return
        moved = False
        for peer, line in list(self._waiting.items()):
            moved |= self._flush(peer, line)
        # A router cannot say when a peer's pipe has room again, hence this; a peer that takes nothing
        # is asked ten times a second.
        self._retry_s = RETRY_S if moved else min(self._retry_s * 2, RETRY_MAX_S)
        self._retry_at = time.monotonic() + self._retry_s

    def lost(self) -> list[Peer]:
        """Peers that turned out to have no route, since the last call."""
        lost, self._lost = self._lost, []
        return lost

    @property
    def idle(self) -> bool:
        """Whether everything was handed to the socket."""
        return not self._waiting

    @property
    def connections(self) -> int:
        """How many connections are open, whosever they are."""
        return len(self._connections)

    @property
    def waiting(self) -> int:
        """Peers for which something waits, or is on its way."""
        return len(self._lines)

    def close(self, linger_s: float = 0.0) -> None:
        """Close the socket; give what it still holds `linger_s` to leave."""
        self._lines.clear()
        self._waiting.clear()
        if not self._context.closed:
            self._socket.disable_monitor()
            self._monitor.close(linger=0)
            self._socket.close(linger=int(linger_s * 1000))
            self._context.term()

    def socket(self, kind: int) -> "zmq.Socket[bytes]":
        """Another socket of this context; close it before this transport."""
        return self._context.socket(kind)

    def _bind(self, wires: Wires) -> "zmq.Socket[bytes]":
        socket = self._context.socket(zmq.ROUTER)
        for option, value in (
            (zmq.ROUTER_MANDATORY, 1),
            (zmq.LINGER, 0),
            (zmq.MAXMSGSIZE, wires.block + wire.HEADER_MAX),
            (zmq.BACKLOG, 4096),
            (zmq.HANDSHAKE_IVL, 10_000),
            (zmq.TCP_KEEPALIVE, 1),
            (zmq.TCP_KEEPALIVE_IDLE, 60),
            (zmq.TCP_KEEPALIVE_INTVL, 15),
            (zmq.TCP_KEEPALIVE_CNT, 4),
            (zmq.SNDHWM, wires.high_water),
            (zmq.RCVHWM, wires.high_water),
            (zmq.IPV6, int("[" in wires.bind)),
        ):
            socket.setsockopt(option, value)
        self._monitor = socket.get_monitor_socket(_MONITORED)
        try:
            socket.bind(wires.bind)
        except zmq.ZMQError as error:
            socket.disable_monitor()
            self._monitor.close(linger=0)
            socket.close()
            if error.errno == errno.EADDRINUSE:
                raise ConfigError(
                    f'federation.bind is "{wires.bind}", which is in use: stop what listens there, or choose '
                    "another port"
                ) from None
            raise ConfigError(
                f'federation.bind is "{wires.bind}", which this machine cannot listen on: {error.strerror}'
            ) from None
        return socket

    def _observe(self) -> None:
        """Count who has connected and who has hung up."""
        while True:
            try:
                event, descriptor = _MONITOR_EVENT.unpack(self._monitor.recv_multipart(zmq.NOBLOCK)[0])
            except zmq.Again:
                return
            if event == zmq.EVENT_ACCEPTED:
                self._connections.add(descriptor)
            else:
                self._connections.discard(descriptor)
                for peer, line in list(self._lines.items()):  # few: only those for which something waits
                    self._forget_if_idle(peer, line)

    def _post(self, peer: Peer, frames: list[wire.Frame], *, is_block: bool) -> None:
        line = self._lines.get(peer)
        if line is None:
            line = self._lines[peer] = _Line()
        line.queue.append((frames, sum(map(len, frames)), is_block))
        if len(line.queue) == 1:
            self._flush(peer, line)

    def _flush(self, peer: Peer, line: _Line) -> bool:
        """Hand over what waits for a peer, until it takes no more; whether it took anything."""
        moved = False
        while line.queue:
            frames, size, is_block = line.queue[0]
            # The large frame alone is worth tracking; a short block is gone when it was copied.
            large = is_block and len(frames[-1]) >= ZERO_COPY
            try:
                tracker = self._socket.send_multipart(
                    [peer, *frames], zmq.NOBLOCK, copy=not large, track=large
                )
            except zmq.Again:
                if not self._waiting:
                    self._retry_s = RETRY_S
                    self._retry_at = time.monotonic() + RETRY_S
                self._waiting[peer] = line
                return moved
            except zmq.ZMQError as error:
                if error.errno != errno.EHOSTUNREACH:
                    raise
                self.drop(peer)
                self._lost.append(peer)
                return moved
            moved = True
            self.bytes_down += size
            line.queue.popleft()
            if tracker is not None:
                line.blocks.append(tracker)
        self._waiting.pop(peer, None)
        self._forget_if_idle(peer, line)
        return moved

    def _forget_if_idle(self, peer: Peer, line: _Line) -> None:
        """Keep nothing of a peer for which nothing waits: strangers that come and go must not fill the memory."""
        line.blocks = [tracker for tracker in line.blocks if not tracker.done]
        if not line.blocks and not line.queue:
            self._lines.pop(peer, None)
