"""The worker's socket: frames in and out, connections made and lost. The only importer of zmq here.

Rules that hold here:

- Nothing waits but `wait`. What the socket does not take stays queued, in order; its payload is read from
  the outbox only when its turn comes.
- The I/O thread owns all of it. Other threads reach that thread by what `watch` was given.
- The socket is never handed an identity, and libzmq's own heartbeats stay off: they drop connections that
  are merely slow.
- A connection is known by the socket's monitor: after HANDSHAKE_FAILED_AUTH libzmq does not try again, and
  after any other loss it does so silently.
"""

import contextlib
import logging
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import msgspec
import zmq

from fedmq.fedcore import wire
from fedmq.fedcore.errors import ConfigError, ProtocolError

from .events import Event, Lost, Opened, Received, Refused
from .pace import PIECE_MAX

log = logging.getLogger("fedmq.worker")

MESSAGES_PER_TURN: Final = 64
ZERO_COPY: Final = 64 * 1024
"""From this size on, a frame is sent from where it lies."""
QUEUE: Final = 64
"""High-water mark, in messages, each way."""
BYE_LINGER_MS: Final = 500
"""How long a closing socket may take to send a BYE."""
_PORTS: Final = range(1, 65536)
NOISE_S: Final = 10.0
"""Broken frames are logged at most so often."""

_MONITORED: Final = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_DISCONNECTED
)

# As zmq.utils.monitor does it, which would load asyncio.
_MONITOR_EVENT: Final = struct.Struct("=hi")

Payload = Callable[[], wire.Frame]


class CurveKeys(msgspec.Struct, frozen=True):
    """Keys in Z85, 40 characters each: the broker's public one, and this worker's pair."""

    server: str
    public: str
    secret: str

    def __repr__(self) -> str:
        return f"CurveKeys(server={self.server!r}, public={self.public!r}, secret=…)"


def new_pair() -> tuple[str, str]:
    """A new public key, which begins with a letter or digit (no shell takes it for an option), and its secret."""
    while True:
        public, secret = (half.decode() for half in zmq.curve_keypair())
        if public[0].isalnum():
            return public, secret


def public_of(secret: str) -> str:
    """The public half of a secret key."""
    return zmq.curve_public(secret.encode()).decode()


def check_address(address: str) -> None:
    """Refuse what is no broker's address, before anything is made for it.

    Raises
    ------
    ConfigError
    """
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    is_tcp = (
        address.startswith("tcp://") and host and port.isascii() and port.isdigit() and int(port) in _PORTS
    )
    if not is_tcp and not (address.startswith("ipc://") and len(address) > len("ipc://")):
        raise ConfigError(f"connect must be tcp://host:port or ipc://path, got {address!r}")


class Transport:
    """One DEALER at a time, to one broker.

    Parameters
    ----------
    address
        ``tcp://host:port`` or ``ipc://path``.
    keys
        For CURVE; None speaks in the clear.
    invite
        The keys of this worker's invite, and until when that holds, in words.

    Raises
    ------
    ConfigError
        When the address is none, or a key is not one.
    """

    def __init__(
        self, address: str, keys: CurveKeys | None = None, invite: tuple[CurveKeys, str] | None = None
    ) -> None:
        check_address(address)
        self._address = address
        self._keys = keys
        self._invite = invite
        self._is_invited = False
        self._context = zmq.Context(io_threads=1)
        self._poller = zmq.Poller()
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._queue: deque[tuple[wire.Message, Payload | None]] = deque()
        self._head: list[wire.Frame] | None = None
        """The frames of the first in the queue, where the socket did not take them yet."""
        self._waits_to_send = False
        self._noise_until = 0.0
        self.sent_bytes = 0
        self.received_bytes = 0
        try:
            # A wrong address or key is found out here, not in the I/O thread. This may already connect, for a moment.
            self.open(invited=True)
            self.close()
        except (zmq.ZMQError, ValueError) as error:
            self.terminate()
            raise ConfigError(f"cannot connect to {address!r}: {error}") from error

    def open(self, *, invited: bool = False) -> None:
        """A new socket, which connects by itself, for as long as it takes; with the invite's key if asked to."""
        self.close()
        self._is_invited = invited and self._invite is not None
        keys = self._invite[0] if invited and self._invite is not None else self._keys
        dealer: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        options: dict[int, Any] = {
            zmq.LINGER: 0,
            zmq.IMMEDIATE: 1,
            zmq.CONNECT_TIMEOUT: 10_000,
            zmq.HANDSHAKE_IVL: 10_000,
            zmq.RECONNECT_IVL: 250,
            zmq.RECONNECT_IVL_MAX: 5_000,
            zmq.TCP_KEEPALIVE: 1,
            zmq.TCP_KEEPALIVE_IDLE: 60,
            zmq.TCP_KEEPALIVE_INTVL: 15,
            zmq.TCP_KEEPALIVE_CNT: 4,
            zmq.SNDHWM: QUEUE,
            zmq.RCVHWM: QUEUE,
            zmq.MAXMSGSIZE: PIECE_MAX + wire.HEADER_MAX,
            zmq.IPV6: 1,
        }
        for option, value in options.items():
            dealer.setsockopt(option, value)
        self._socket = dealer
        self._waits_to_send = False
        if keys is not None:
            dealer.curve_serverkey = keys.server.encode()
            dealer.curve_publickey = keys.public.encode()
            dealer.curve_secretkey = keys.secret.encode()
        self._monitor = dealer.get_monitor_socket(_MONITORED)
        self._poller.register(dealer, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        dealer.connect(self._address)

    def close(self) -> None:
        """Drop the socket and what was not sent; a BYE at the queue's end is given a moment."""
        if self._socket is None:
            return
        dealer, self._socket = self._socket, None
        farewell = bool(self._queue) and isinstance(self._queue[-1][0], wire.Bye)
        if farewell:
            message, _ = self._queue[-1]
            with contextlib.suppress(zmq.Again):
                dealer.send_multipart(wire.encode(message), zmq.NOBLOCK)
        self._clear()
        self._poller.unregister(dealer)
        if self._monitor is not None:
            self._poller.unregister(self._monitor)
            dealer.disable_monitor()
            self._monitor.close(linger=0)
            self._monitor = None
        dealer.close(linger=BYE_LINGER_MS if farewell else 0)

    def terminate(self) -> None:
        """Close everything, for good."""
        self.close()
        self._context.term()

    def send(self, message: wire.Message, payload: Payload | None = None) -> None:
        """Queue a message. A HELLO begins a session: what was queued for the one before goes."""
        if isinstance(message, wire.Hello):
            self._clear()
        self._queue.append((message, payload))

    def forget(self, task: bytes) -> None:
        """Drop what is queued of a task's update."""
        if any(payload is not None for _, payload in self._queue):
            self._head = None
            self._queue = deque(
                (message, payload)
                for message, payload in self._queue
                if payload is None or getattr(message, "task", None) != task
            )

    def flush(self) -> None:
        """Send what the socket takes. May raise what reading a payload raises; that message is dropped."""
        dealer = self._socket
        if dealer is None:
            return
        while self._queue:
            frames = self._head or self._encode_head()
            try:
                # Large ones go from where they lie: the bytes, or their mapping, live until they are sent.
                dealer.send_multipart(frames, zmq.NOBLOCK, copy=len(frames[-1]) < ZERO_COPY)
            except zmq.Again:
                self._head = frames
                self._wait_to_send(dealer, True)
                return
            self._head = None
            self._queue.popleft()
            self.sent_bytes += len(frames[2]) if len(frames) == 3 else 0
        self._wait_to_send(dealer, False)

    def _encode_head(self) -> list[wire.Frame]:
        message, payload = self._queue[0]
        try:
            return wire.encode(message, None if payload is None else payload())
        except BaseException:
            self._queue.popleft()
            raise

    def _wait_to_send(self, dealer: "zmq.Socket[bytes]", waits: bool) -> None:
        if waits != self._waits_to_send:
            self._waits_to_send = waits
            self._poller.modify(dealer, zmq.POLLIN | zmq.POLLOUT if waits else zmq.POLLIN)

    def _clear(self) -> None:
        self._queue.clear()
        self._head = None

    def watch(self, source: Any) -> None:
        """Let `wait` return when this file is readable."""
        self._poller.register(source, zmq.POLLIN)

    def wait(self, timeout_s: float | None) -> list[Event]:
        """What happened, after at most `timeout_s` (None: until something does)."""
        timeout_ms = None if timeout_s is None else max(0, round(timeout_s * 1000 + 0.5))
        ready = dict(self._poller.poll(timeout_ms))
        events: list[Event] = []
        if self._socket is not None and ready.get(self._socket, 0) & zmq.POLLIN:
            self._receive(self._socket, events)
        if self._monitor is not None and self._monitor in ready:
            self._observe(self._monitor, events)
        return events

    def _receive(self, dealer: "zmq.Socket[bytes]", events: list[Event]) -> None:
        for _ in range(MESSAGES_PER_TURN):
            try:
                frames: list[wire.Frame] = [dealer.recv(zmq.NOBLOCK)]
            except zmq.Again:
                return
            while dealer.getsockopt(zmq.RCVMORE):
                # A payload stays in the frame that it came in; small frames are cheaper to copy.
                frames.append(dealer.recv() if len(frames) < 2 else dealer.recv(copy=False).buffer)
            try:
                message, payload = wire.decode(frames, wire.TO_WORKER)
            except ProtocolError as error:
                self._complain(error)
                continue
            self.received_bytes += 0 if payload is None else payload.nbytes
            events.append(Received(message, payload))

    def _observe(self, monitor: "zmq.Socket[bytes]", events: list[Event]) -> None:
        for _ in range(MESSAGES_PER_TURN):
            try:
                event, _ = _MONITOR_EVENT.unpack(monitor.recv_multipart(zmq.NOBLOCK)[0])
            except zmq.Again:
                return
            match event:
                case zmq.EVENT_HANDSHAKE_SUCCEEDED:
                    events.append(Opened())
                case zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                    events.append(Refused(self._why_refused()))
                case zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                    events.append(Refused(self._why_strange()))
                case zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
                    # Without keys it is a broker that is just ending, and libzmq tries again.
                    if self._keys is not None:
                        events.append(Refused(self._why_broken()))
                case _:
                    events.append(Lost())

    def _why_refused(self) -> str:
        if self._is_invited and self._invite is not None:
            until = self._invite[1]
            return f"the broker does not take this invite, which held until {until}: expired, or withdrawn"
        public = "" if self._keys is None else f": {self._keys.public}"
        return f"this worker's key is not on its list{public}"

    def _why_strange(self) -> str:
        hint = "it may want a key (--server-key)" if self._keys is None else "it may have no keys"
        return f"what listens at {self._address} does not speak as this worker does: {hint}"

    def _why_broken(self) -> str:
        server = "" if self._keys is None else self._keys.server
        return f"what listens at {self._address} broke off the handshake: it may have no keys, or other than {server}"

    def _complain(self, error: ProtocolError) -> None:
        now = time.monotonic()
        if now >= self._noise_until:
            self._noise_until = now + NOISE_S
            log.warning("ignored frames that are no message: %s", error)
