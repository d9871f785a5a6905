"""What to do when the system refuses a file: wait where that helps, and else say what a person can do about it."""

import errno
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from fedmq.fedcore.errors import StateError

__all__ = ["FULL", "PATIENCE_S", "is_exhausted", "patiently", "unwritten"]

T = TypeVar("T")

PATIENCE_S: Final = 10.0
"""How long an open waits for a free descriptor. Connections that are beyond the limit are cut well before."""
_RETRY_S: Final = 0.02

FULL = "the disk is full; make room and start the broker again"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_EXHAUSTED = (errno.EMFILE, errno.ENFILE)


def unwritten(path: Path, error: OSError) -> StateError:
    """A file that could not be written, as one line that a person can act on."""
    said = f"{path} cannot be written: {error.strerror or error}"
    if error.errno in _FULL:
        return StateError(f"{said}: {FULL}")
    if error.errno in _FORBIDDEN:
        return StateError(f"{said}: make the state folder writable for this user and start the broker again")
    if error.errno in _EXHAUSTED:
        return StateError(f"{said}: raise the limit on open files (ulimit -n) and start the broker again")
    return StateError(said)


def is_exhausted(error: BaseException | None) -> bool:
    """Whether something failed for want of a descriptor: it is there, and a moment later it can be opened."""
    if isinstance(error, StateError):
        error = error.__cause__
    return isinstance(error, OSError) and error.errno in _EXHAUSTED


def patiently(open_it: Callable[[], T], sleep: Callable[[float], None] = time.sleep) -> T:
    """Open or map a file, and wait where a crowd of connections has just taken the last descriptor.

    For any thread but the I/O thread, which is the one that sends the crowd away.
    """
    ends = time.monotonic() + PATIENCE_S
    while True:
        try:
            return open_it()
        except (OSError, StateError) as error:
            if not is_exhausted(error) or time.monotonic() > ends:
                raise
        sleep(_RETRY_S)
