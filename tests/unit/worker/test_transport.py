"""The worker's transport, as far as it needs no peer: who wakes the I/O thread."""

import select
import socket
from collections.abc import Iterator

import pytest

from fedmq.worker.transport import Transport


@pytest.fixture
def transport() -> Iterator[Transport]:
    transport = Transport("tcp://127.0.0.1:1")
    yield transport
    transport.terminate()


class Late:
    """The alarm's socket, on which somebody wakes the thread just before, or just after, the thread reads it."""

    def __init__(self, transport: Transport, alarm: socket.socket, when: str) -> None:
        self._transport = transport
        self._alarm = alarm
        self._when = when

    def recv(self, size: int) -> bytes:
        if self._when == "before":
            self._transport.wake()
        data = self._alarm.recv(size)
        if self._when == "after":
            self._transport.wake()
        return data

    def fileno(self) -> int:
        return self._alarm.fileno()

    def close(self) -> None:
        self._alarm.close()


def test_a_wake_lets_wait_return_once(transport: Transport) -> None:
    """However many wake it, one byte waits; and when that is read, the next wakes it again."""
    for _ in range(3):
        transport.wake()
        transport.wake()
        assert transport.wait(20.0) == []
        assert transport.wait(0.0) == []


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_wake_at_the_wrong_moment_is_not_the_last(transport: Transport, when: str) -> None:
    """Another thread that wakes it while it reads the byte of the one before: the next wake arrives all the same."""
    alarm = transport._alarm
    transport._alarm = Late(transport, alarm, when)  # type: ignore[assignment]
    transport.wake()
    transport.wait(20.0)
    transport._alarm = alarm
    transport.wait(0.0)
    transport.wake()
    assert select.select([alarm], [], [], 0)[0], "a wake that wakes nobody"
