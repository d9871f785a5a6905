"""Peers that mean harm: raw ZMTP over TCP or a unix socket, where a ZeroMQ socket would be too well-behaved.

Rules that hold here:

- Nothing waits for ever: each socket has a timeout, and each thread a flag.
- What the broker does to an attacker (a reset, a closed connection) is expected here, and counted.
"""

import contextlib
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

TIMEOUT_S = 20.0
MORE = 1
LONG = 2
GREETING = b"\xff" + bytes(7) + b"\x01\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
_READY_BODY = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER\x08Identity\x00\x00\x00\x00"
READY = b"\x04" + bytes([len(_READY_BODY)]) + _READY_BODY
EMPTY_MORE = b"\x01\x00"
"""The cheapest frame that costs the broker memory: no bytes, and more to come."""


def frame(body: bytes, *, more: bool = False) -> bytes:
    """One ZMTP frame."""
    flags = MORE if more else 0
    if len(body) < 256:
        return bytes([flags, len(body)]) + body
    return bytes([flags | LONG]) + len(body).to_bytes(8, "big") + body


def message(*frames: bytes) -> bytes:
    """A whole message, as it stands on the wire."""
    return b"".join(frame(body, more=i < len(frames) - 1) for i, body in enumerate(frames))


class Raw:
    """A connection that sends any bytes.

    Parameters
    ----------
    endpoint : str
        ``tcp://host:port`` or ``ipc://path``.
    shaken : bool
        Whether to do ZMTP's handshake first.
    """

    def __init__(self, endpoint: str, *, shaken: bool = True) -> None:
        self._socket = connect(endpoint)
        if shaken:
            self._socket.sendall(GREETING)
            self._read(64)
            self._socket.sendall(READY)
            _, size = self._read(2)
            self._read(size)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def patience(self, seconds: float) -> None:
        """How long a send may wait before the connection is given up."""
        self._socket.settimeout(seconds)

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._socket.sendall(data)

    def drain(self) -> None:
        """Read what is there, and throw it away."""
        timeout_s = self._socket.gettimeout()
        self._socket.setblocking(False)
        try:
            while self._socket.recv(1 << 16):
                pass
            raise ConnectionResetError("the broker hung up")
        except BlockingIOError:
            self._socket.settimeout(timeout_s)

    def is_cut(self, timeout_s: float = TIMEOUT_S) -> bool:
        """Whether the broker ends this connection within a time; what it still says is thrown away."""
        ends = time.monotonic() + timeout_s
        while time.monotonic() < ends:
            self._socket.settimeout(max(ends - time.monotonic(), 0.01))
            try:
                if not self._socket.recv(65536):
                    return True
            except TimeoutError:
                return False
            except OSError:
                return True
        return False

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self._socket.recv(count - len(data))
            if not piece:
                raise ConnectionResetError("the broker hung up")
            data += piece
        return data


def connect(endpoint: str) -> socket.socket:
    """A stream socket to a broker."""
    if endpoint.startswith("ipc://"):
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        stream.settimeout(TIMEOUT_S)
        stream.connect(endpoint.removeprefix("ipc://"))
        return stream
    host, port = endpoint.removeprefix("tcp://").split(":")
    return socket.create_connection((host, int(port)), TIMEOUT_S)


class Flood:
    """Threads that connect, send the same bytes over and over, and connect again when they are cut.

    Parameters
    ----------
    endpoint : str
    data : bytes
        What is sent, again and again.
    connections : int
        How many at a time.
    each : int
        Bytes that a connection sends before it only stays open; 0 for no end.
    """

    def __init__(self, endpoint: str, data: bytes, *, connections: int = 1, each: int = 0) -> None:
        self.cuts = 0
        self.sent = 0
        self._endpoint = endpoint
        self._data = data
        self._each = each
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(connections)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(OSError), Raw(self._endpoint) as raw:
                # A connection that was cut while its window was full takes nothing and says nothing.
                raw.patience(1.0)
                self._push(raw)
            self.cuts += not self._stop.is_set()
            self._stop.wait(0.02)

    def _push(self, raw: Raw) -> None:
        sent = 0
        while not self._stop.is_set():
            if self._each and sent >= self._each:
                if raw.is_cut(0.05):
                    return
            else:
                raw.send(self._data)
                sent += len(self._data)
                self.sent += len(self._data)


class Memory:
    """Anonymous memory of a process, sampled in a thread for as long as a `with` lasts."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self.first = self.now()
        self.peak = self.first
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def now(self) -> int:
        """Bytes at this moment."""
        found = re.search(r"RssAnon:\s+(\d+)", self._status.read_text(encoding="ascii"))
        assert found is not None
        return int(found[1]) * 1024

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            with contextlib.suppress(OSError):  # the process has ended
                self.peak = max(self.peak, self.now())


@contextlib.contextmanager
def half_open(endpoint: str, count: int, say: bytes) -> Iterator[list[socket.socket]]:
    """So many connections that say a few bytes and then nothing."""
    streams: list[socket.socket] = []
    try:
        for _ in range(count):
            streams.append(connect(endpoint))
            if say:
                with contextlib.suppress(OSError):  # cut already
                    streams[-1].sendall(say)
        yield streams
    finally:
        for stream in streams:
            stream.close()
