"""Messages between sockets and the body: one ROUTER for the workers, and the poller of the I/O thread.

Rules that hold here:

- Nothing blocks. What a peer does not take waits in that peer's own queue, in order, and is tried again.
- Blocks go out of the mapped file without a copy. The socket holds at most eight of a peer's; as many as it may ask
  for at a time wait here, and the next FETCH is answered `busy`, so that unread FETCHes cannot pile up.
- What arrives becomes a well-formed message or a `Violation`; no frame goes further undecoded.
- A peer is a return address. A peer without a route is forgotten here, and reported once.
- A peer that is dropped while its message is looked at loses its connection as well, a moment later, so that the
  reason reaches it (`connections`). What it sends meanwhile is thrown away unread.
- A peer that does not read what it is sent is dropped before its queue grows without end.
- With CURVE, `auth` decides whose message it is. What a key sends that may not speak is never decoded.
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
from fedmq.fedcore.keys import Pair

from . import descriptors
from .admission import Admission
from .auth import Gate
from .connections import Connections, DroppedPeers
from .events import Event, Peer, Received, Violation

RECEIVE_MAX = 64
"""Messages that are drained in a turn."""
ZERO_COPY = 64 * 1024
"""From this size on, a frame is sent from where it lies."""
OLDEST_ZMQ = (4, 3, 4)
UNSENT_MAX = 2 * wire.FETCHES_MAX
"""Blocks of a peer's that the socket may hold. libzmq tells that one has left only some time after the peer could
have read it: so those beyond wait, and only who asks for more than `wire.FETCHES_MAX` at a time is ever `busy`."""
RETRY_S = 0.005
RETRY_MAX_S = 0.1
UNREAD_MAX = 2048
"""Messages that may wait for a peer, BLOCKs among them; one that reads nothing is given up. An honest worker's
BEAT gets at most 1024 answers."""
REBIND_S = 30.0
"""How long a rebind tries to get its address back."""
FRAMES_MAX = 4
"""Frames of one message that are looked at: one more than any message has."""
_MONITORED = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED
_MONITOR_EVENT = struct.Struct("=hi")  # as zmq.utils.monitor does it, which would load asyncio
_KINDS = max(*wire.TO_BROKER, *wire.TO_WORKER) + 1


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

    def unsent(self) -> int:
        """Blocks that the socket holds."""
        self.blocks = [tracker for tracker in self.blocks if not tracker.done]
        return len(self.blocks)


class Transport:
    """The broker's socket.

    Parameters
    ----------
    wires : Wires
        Address and limits.
    curve : tuple of Pair and Admission, optional
        The broker's keys, and who may connect. Without it anybody may.

    Attributes
    ----------
    endpoint : str
        Where workers connect: the bound address, with the port that the system chose where it was asked to.
    bytes_up, bytes_down : int
        Bytes of frames from, and to, workers.
    connections : Connections
        All that are open, whosever they are.
    rebinds : int
        How many times the socket was closed and bound again.
    received, sent : list of int
        Well-formed messages from, and messages to, workers, by the number of their kind.
    errors : dict
        ERRORs to workers, by their code.

    Raises
    ------
    ConfigError
        When the address is in use or is none of this machine's, or libzmq is too old.
    """

    def __init__(self, wires: Wires, curve: tuple[Pair, Admission] | None = None) -> None:
        if zmq.zmq_version_info() < OLDEST_ZMQ:
            raise ConfigError(f"libzmq is {zmq.zmq_version()}; fedmq needs 4.3.4 or newer: upgrade pyzmq")
        self.bytes_up = 0
        self.bytes_down = 0
        self.rebinds = 0
        self.received = [0] * _KINDS
        self.sent = [0] * _KINDS
        self.errors: dict[str, int] = {}
        self._wires = wires
        self._lines: dict[Peer, _Line] = {}
        self._waiting: dict[Peer, _Line] = {}
        self._lost: list[Peer] = []
        self._retry_at = 0.0
        self._retry_s = RETRY_S
        self._source: tuple[Peer, zmq.Frame] | None = None
        """Whose message is looked at, and a frame that knows its connection."""
        self._context = zmq.Context()
        self._poller = zmq.Poller()
        self._gate = None if curve is None else Gate(self._context, *curve)
        try:
            self._socket = self._bind(wires)
        except BaseException:
            self._context.destroy(linger=0)
            raise
        self.endpoint: str = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.connections = Connections(self.endpoint, wires.block)
        self._dropped = DroppedPeers(self.connections)
        self.watch(self._socket)
        self.watch(self._monitor)
        if self._gate is not None:
            self.watch(self._gate.socket)

    def watch(self, source: Any) -> None:
        """Let `poll` return when this socket or file is readable."""
        self._poller.register(source, zmq.POLLIN)

    def poll(self, timeout_s: float | None) -> None:
        """Wait until something is readable, a waiting peer is due, or `timeout_s` has passed."""
        if self._waiting:
            due = max(self._retry_at - time.monotonic(), 0.0)
            timeout_s = due if timeout_s is None else min(timeout_s, due)
        if self._gate is not None and (settled := self._gate.due()) is not None:
            due = max(settled - time.monotonic(), 0.0)
            timeout_s = due if timeout_s is None else min(timeout_s, due)
        # Rounded up: a timeout rounded to zero would spin until its time has come.
        ready = self._poller.poll(None if timeout_s is None else int(timeout_s * 1000) + (timeout_s > 0))
        if any(source is self._monitor for source, _ in ready):
            self._observe()
        if self._gate is not None:
            self._gate.turn()

    def receive(self) -> Iterator[Event]:
        """Up to 64 messages that have arrived."""
        for _ in range(RECEIVE_MAX):
            try:
                source = self._socket.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            peer = source.bytes
            if self.connections.listens:
                self.connections.hear(_descriptor_of(source))
            if peer in self._dropped:
                self._skip()
                self._dropped.ignored(peer)
                continue
            self._source = peer, source
            user, invited = None, False
            if self._gate is not None:
                sender = self._gate.sender(peer, source)
                if sender is None:  # revoked
                    self.drop(peer)
                    self._skip()
                    continue
                user, invited = sender.key, sender.is_guest
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
                self.received[message.code] += 1
                yield Received(peer, message, payload, user, invited)

    def send(self, peer: Peer, message: wire.Message, payload: wire.Frame | None = None) -> None:
        """Send a message, now or when the peer takes it."""
        if isinstance(message, wire.Error):
            self.errors[message.why] = self.errors.get(message.why, 0) + 1
        self._post(peer, wire.encode(message, payload), is_block=False)

    def send_block(
        self, peer: Peer, version: int, offset: int, data: memoryview, encoding: str = "f32"
    ) -> None:
        """Send a BLOCK that lies in a mapped file, or `busy` when too many are unsent."""
        line = self._lines.get(peer)
        waiting = 0 if line is None else sum(is_block for _, _, is_block in line.queue)
        if waiting >= wire.FETCHES_MAX:
            reason = f"{waiting} blocks wait already"
            busy = wire.Error(ref=wire.Fetch.code, why="busy", reason=reason, version=version, offset=offset)
            self.send(peer, busy)
            return
        block = wire.Block(version=version, offset=offset, model=None if encoding == "f32" else encoding)
        self._post(peer, wire.encode(block, data), is_block=True)

    def drop(self, peer: Peer) -> None:
        """Forget what waits for a peer; one whose message is looked at loses its connection in a moment.

        With CURVE any peer does, for there its connection is known.
        """
        self._forget(peer)
        if peer in self._dropped:
            return
        if self._gate is not None:
            self._dropped.add(peer, self._gate.hold(peer))
        elif self._source is not None and self._source[0] == peer:
            self._dropped.add(peer, descriptors.hold(_descriptor_of(self._source[1])))

    def rebind(self) -> None:
        """Close the socket, with all that libzmq holds for anybody, and listen at the same address again.

        Raises
        ------
        ConfigError
            When the address could not be had again.
        """
        self._lines.clear()
        self._waiting.clear()
        self.connections.forget()
        self._source = None
        self._dropped.end_all()
        self._poller.unregister(self._socket)
        self._poller.unregister(self._monitor)
        # A listener is closed by libzmq's own thread, and an ipc one then removes its file: not the new one's.
        self._socket.unbind(self.endpoint)
        while self._monitor.poll(int(REBIND_S * 1000)):
            if _MONITOR_EVENT.unpack(self._monitor.recv_multipart()[0])[0] == zmq.EVENT_CLOSED:
                break
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=0)
        self._socket = self._bind(msgspec.structs.replace(self._wires, bind=self.endpoint))
        self.watch(self._socket)
        self.watch(self._monitor)
        self.rebinds += 1

    def retry(self) -> None:
        """Try again those peers that did not take what was sent, and end dropped ones, if it is time."""
        now = time.monotonic()
        self._dropped.end(now)
        self.connections.cut_mute(now)
        if not self._waiting or now < self._retry_at:
            return
        moved = False
        for peer, line in list(self._waiting.items()):
            moved |= self._flush(peer, line)
        # A router cannot say when a peer's pipe has room again, hence this; a peer that takes nothing
        # is asked ten times a second.
        self._retry_s = RETRY_S if moved else min(self._retry_s * 2, RETRY_MAX_S)
        self._retry_at = time.monotonic() + self._retry_s

    def revoked(self) -> Iterator[str]:
        """Keys that may not connect any more, since the last call; after each its connections are dropped."""
        if self._gate is not None and (keys := self._gate.revoked()):
            for key, peers in self._gate.peers(keys).items():
                yield key
                for peer in peers:
                    self.drop(peer)

    def lost(self) -> list[Peer]:
        """Peers that turned out to have no route, since the last call."""
        lost, self._lost = self._lost, []
        return lost

    @property
    def idle(self) -> bool:
        """Whether everything was handed to the socket."""
        return not self._waiting

    @property
    def refused(self) -> int:
        """Handshakes that ended because of their key."""
        return 0 if self._gate is None else self._gate.refused

    @property
    def waiting(self) -> int:
        """Peers for which something waits, or is on its way."""
        return len(self._lines)

    def close(self, linger_s: float = 0.0) -> None:
        """Close the socket; give what it still holds `linger_s` to leave."""
        self._lines.clear()
        self._waiting.clear()
        self._dropped.end_all()
        if not self._context.closed:
            self._socket.disable_monitor()
            self._monitor.close(linger=0)
            self._socket.close(linger=int(linger_s * 1000))
            if self._gate is not None:
                self._gate.close()
            self._context.term()

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
        if self._gate is not None:
            self._gate.protect(socket)
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
        hung_up = False
        while True:
            try:
                event, descriptor = _MONITOR_EVENT.unpack(self._monitor.recv_multipart(zmq.NOBLOCK)[0])
            except zmq.Again:
                break
            if event == zmq.EVENT_ACCEPTED:
                self.connections.opened(descriptor)
            elif event == zmq.EVENT_DISCONNECTED:
                self.connections.closed(descriptor)
                hung_up = True
        if hung_up:
            for peer, line in list(self._lines.items()):  # few: only those for which something waits
                self._forget_if_idle(peer, line)

    def _skip(self) -> None:
        """Throw away the rest of a message."""
        while self._socket.getsockopt(zmq.RCVMORE):
            self.bytes_up += len(self._socket.recv())

    def _forget(self, peer: Peer) -> None:
        self._lines.pop(peer, None)
        self._waiting.pop(peer, None)

    def _post(self, peer: Peer, frames: list[wire.Frame], *, is_block: bool) -> None:
        line = self._lines.get(peer)
        if line is None:
            line = self._lines[peer] = _Line()
        elif len(line.queue) >= UNREAD_MAX:
            self.drop(peer)
            self._lost.append(peer)
            return
        self.sent[frames[0][3]] += 1
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
            if large and line.unsent() >= UNSENT_MAX:
                self._wait(peer, line)
                return moved
            try:
                tracker = self._socket.send_multipart(
                    [peer, *frames], zmq.NOBLOCK, copy=not large, track=large
                )
            except zmq.Again:
                self._wait(peer, line)
                return moved
            except zmq.ZMQError as error:
                if error.errno != errno.EHOSTUNREACH:
                    raise
                self._forget(peer)
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

    def _wait(self, peer: Peer, line: _Line) -> None:
        """Try again soon what the socket did not take, or may not hold yet."""
        if not self._waiting:
            self._retry_s = RETRY_S
            self._retry_at = time.monotonic() + RETRY_S
        self._waiting[peer] = line

    def _forget_if_idle(self, peer: Peer, line: _Line) -> None:
        """Keep nothing of a peer for which nothing waits: strangers that come and go must not fill the memory."""
        if not line.unsent() and not line.queue:
            self._lines.pop(peer, None)


def _descriptor_of(frame: zmq.Frame) -> int:
    """The descriptor of the connection that a frame came over; −1 when it does not say."""
    try:
        return int(frame.get(zmq.SRCFD))
    except zmq.ZMQError:  # of a peer that speaks ZMTP 1.0
        return -1
