"""A DEALER's side of ZMTP 3.0 with the NULL mechanism, over bytes: what a swarm of workers speaks.

A ZeroMQ socket costs threads, two descriptors and a poll of all of them at each look; ten thousand of them need
ten thousand plain TCP connections instead. Pure: bytes in, messages and bytes out; no socket in here.

References
----------
https://rfc.zeromq.org/spec/23/ (ZMTP 3.0)
"""

import struct
from collections.abc import Iterable, Sequence
from typing import Final

from fedmq.fedcore.errors import ProtocolError

__all__ = ["HELLO", "Receiver", "frames_to_bytes"]

_MORE: Final = 1
_LONG: Final = 2
_COMMAND: Final = 4
_GREETING: Final = 64
_READY: Final = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER\x08Identity\x00\x00\x00\x00"
HELLO: Final = (
    b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)  # the greeting
    + bytes((_COMMAND, len(_READY))) + _READY
)  # fmt: skip
"""What is sent first: greeting and READY. Messages wait until the peer's READY is here."""


def frames_to_bytes(frames: Sequence[bytes | bytearray | memoryview]) -> bytes:
    """One message as it goes over the wire."""
    parts: list[bytes | bytearray | memoryview] = []
    for number, frame in enumerate(frames, 1):
        more = _MORE if number < len(frames) else 0
        if len(frame) < 256:
            parts.append(bytes((more, len(frame))))
        else:
            parts.append(bytes((more | _LONG,)) + struct.pack(">Q", len(frame)))
        parts.append(frame)
    return b"".join(parts)


class Receiver:
    """What arrives from the peer, in pieces of any size."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._frames: list[bytes] = []
        self._greeted = False
        self.is_ready = False
        """Whether the peer's READY has come: the connection is made."""

    def feed(self, data: bytes) -> Iterable[list[bytes]]:
        """Take bytes; the messages that are complete now.

        Raises
        ------
        ProtocolError
            When the peer does not speak ZMTP 3 with NULL.
        """
        self._data += data
        if not self._greeted:
            if len(self._data) < _GREETING:
                return
            if self._data[0] != 0xFF or self._data[10] < 3 or self._data[12:16] != b"NULL":
                raise ProtocolError("the peer does not speak ZMTP 3 without keys")
            del self._data[:_GREETING]
            self._greeted = True
        while (frame := self._next()) is not None:
            flags, body = frame
            if flags & _COMMAND:
                self.is_ready |= body.startswith(b"\x05READY")
                continue
            self._frames.append(body)
            if not flags & _MORE:
                message, self._frames = self._frames, []
                yield message

    def _next(self) -> tuple[int, bytes] | None:
        data = self._data
        if len(data) < 2:
            return None
        flags, start, size = data[0], 2, data[1]
        if flags & _LONG:
            if len(data) < 9:
                return None
            start, size = 9, struct.unpack_from(">Q", data, 1)[0]
        if len(data) < start + size:
            return None
        body = bytes(data[start : start + size])
        del data[: start + size]
        return flags, body
