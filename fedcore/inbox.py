"""What other threads hand to an I/O thread: a queue with one file descriptor that wakes its poller.

However many items wait, there is at most one byte in the pipe, and at most one system call for it.
"""

import collections
import os
import threading
from typing import Generic, TypeVar

T = TypeVar("T")


class Inbox(Generic[T]):
    """Put from any thread (or a signal handler); drain in one."""

    def __init__(self) -> None:
        self._items: collections.deque[T] = collections.deque()
        # Reentrant: a signal handler may put while the thread that it interrupted is putting.
        self._lock = threading.RLock()
        self._signalled = False
        self._reader, self._writer = os.pipe()

    def fileno(self) -> int:
        """The descriptor that is readable while items wait."""
        return self._reader

    def put(self, item: T) -> None:
        """Add an item; wakes the poller when it is the first. After `close` it is dropped."""
        with self._lock:
            if self._writer < 0:
                return
            self._items.append(item)
            if not self._signalled:
                self._signalled = True
                os.write(self._writer, b"\0")

    @property
    def waiting(self) -> int:
        """How many items wait. For any thread."""
        return len(self._items)

    def drain(self) -> list[T]:
        """Take all items, in order."""
        with self._lock:
            if self._signalled:
                os.read(self._reader, 1)
                self._signalled = False
            items = list(self._items)
            self._items.clear()
            return items

    def close(self) -> None:
        """Give the descriptors back."""
        with self._lock:
            self._signalled = False
            if self._writer >= 0:
                os.close(self._writer)
                os.close(self._reader)
                self._writer = self._reader = -1
