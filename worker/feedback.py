"""Error feedback: what an encoding left out of an update, kept for the next one.

    feedback/<federation>-<layout>.left             what the last update left out: float32, then the version it was on
    feedback/<federation>-<layout>.<task id>.draft  the same, of an update on its way into the outbox

With e as it is kept, zeros at first, an update is the encoded Δ + e, and e becomes (Δ + e) − decoded. Nothing is lost
for good: what is too small to be sent adds up until it is not.

Rules that hold here:

- e changes together with the outbox. A draft is whole before the update's entry is, and takes its place after it.
  Of one that a killed process left, `recover` decides by the outbox: the entry is there, so this is what it left out;
  or it is not, and the update never was.
- An update that the broker does not take, or no longer wants, is gone with all that it carried, as without an
  encoding: it was measured against a model that has moved on, or it is one that would be refused again. e stays.
- It belongs to a federation and a layout. A task on an older version than the last one's is of a federation that
  began anew, or went back: e is of no use there, and begins as zeros.
- Like the outbox it survives its process, and a power cut only with `fsync`. What was cut short counts as zeros.
- All calls are made by the app's thread, but for `recover`, which comes first.

References
----------
Seide et al., 1-bit stochastic gradient descent, Interspeech 2014. Karimireddy et al., Error feedback fixes SignSGD,
arXiv 1901.09847.
"""

import contextlib
import errno
import logging
import os
import struct
from collections.abc import Container
from pathlib import Path
from typing import Final

import numpy as np
import xxhash

from fedmq.fedcore.errors import StateError
from fedmq.fedcore.layout import Flat

from .compression import TILE
from .state import sync_folder, write_all

log = logging.getLogger("fedmq.worker")

LEFT: Final = ".left"
DRAFT: Final = ".draft"
_END: Final = struct.Struct("<Q")


class Feedback:
    """What was left out, in one state folder.

    Parameters
    ----------
    path
        The folder, which exists.
    fsync
        Make it as durable as the outbox is then.
    """

    def __init__(self, path: Path, *, fsync: bool = False) -> None:
        self._path = path
        self._fsync = fsync
        self._draft: _Draft | None = None

    def recover(self, stored: Container[bytes]) -> None:
        """Finish what a process that died had begun; `stored` are the tasks in the outbox."""
        for draft in self._path.glob("*" + DRAFT):
            key, task, _ = draft.name.split(".")
            if bytes.fromhex(task) in stored:
                draft.replace(self._path / (key + LEFT))
            else:
                draft.unlink()

    def begin(self, task: bytes, federation: str, layout: bytes, version: int, delta: Flat) -> "_Draft":
        """Add what is kept to the delta, in place; the draft takes what its encoding leaves out.

        Raises
        ------
        StateError
            When the disk refuses.
        """
        federation_key = xxhash.xxh3_64_hexdigest(federation.encode())
        key = f"{federation_key}-{xxhash.xxh3_64_hexdigest(layout)}"
        self.discard()
        try:
            self._add(self._path / (key + LEFT), version, delta)
            self._draft = _Draft(self._path / f"{key}.{task.hex()}{DRAFT}", version, fsync=self._fsync)
        except OSError as error:
            raise _refused(self._path, error) from error
        return self._draft

    def commit(self) -> None:
        """The update is in the outbox: what it left out is what is kept from now on.

        Raises
        ------
        StateError
            When the disk refuses.
        """
        draft, self._draft = self._draft, None
        if draft is None:
            return
        key = draft.path.name.partition(".")[0]
        try:
            draft.path.replace(self._path / (key + LEFT))
            for other in self._path.glob(key.partition("-")[0] + "-*" + LEFT):
                if other.name != key + LEFT:  # the federation has another model now
                    other.unlink()
            if self._fsync:
                sync_folder(self._path)
        except OSError as error:
            raise _refused(self._path, error) from error

    def discard(self) -> None:
        """The update was not stored: all stays as it was."""
        if self._draft is not None:
            self._draft.remove()
            self._draft = None

    def _add(self, file: Path, version: int, delta: Flat) -> None:
        with contextlib.suppress(FileNotFoundError), file.open("rb") as kept:
            whole = os.fstat(kept.fileno()).st_size == delta.nbytes + _END.size
            if not whole or _END.unpack(os.pread(kept.fileno(), _END.size, delta.nbytes))[0] > version:
                about = {"file": file.name}
                log.warning("what earlier updates left out is of no use, and is forgotten", extra=about)
                return
            for start in range(0, delta.size, TILE):
                tile = delta[start : start + TILE]
                tile += np.frombuffer(kept.read(tile.nbytes), "<f4")


class _Draft:
    """What one update leaves out, as it comes."""

    def __init__(self, path: Path, version: int, *, fsync: bool) -> None:
        self.path = path
        self._version = version
        self._fsync = fsync
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)

    def write(self, tile: Flat) -> None:
        """The next tile. An OSError is the outbox's to explain: both are on one disk."""
        write_all(self._fd, tile.astype("<f4", copy=False).data.cast("B"))

    def finish(self) -> None:
        """All tiles are here."""
        write_all(self._fd, _END.pack(self._version))
        if self._fsync:
            os.fsync(self._fd)
            sync_folder(self.path.parent)
        self._close()

    def remove(self) -> None:
        self._close()
        self.path.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _refused(path: Path, error: OSError) -> StateError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    why = "the disk is full" if full else error.strerror
    return StateError(f"what the encoding leaves out cannot be kept: {why} ({path})")
