"""The outbox: finished results, on disk until the broker acknowledges them.

    outbox/<task id>.payload    the encoded update
    outbox/<task id>.entry      what the OFFER says of it (msgpack)

Rules that hold here:

- The entry is what makes a result exist. It is written last (draft, rename) and deleted first, so that a
  process killed between any two steps leaves a whole result or none; what it leaves of none is removed
  at the next start.
- By default nothing is fsynced: a result survives its process, and only the broker's ACK promises more.
- A result that cannot be written is a `StateError`, and nothing of it stays.
- `put` is called by the app's thread, the rest by the I/O thread; each task id has one writer.
"""

import errno
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec
import xxhash

from fedmq.fedcore import wire
from fedmq.fedcore.errors import StateError

from .entry import Entry
from .state import sync_folder, write_all, write_file

log = logging.getLogger("fedmq.worker")

ENTRY: Final = ".entry"
PAYLOAD: Final = ".payload"


class Outbox:
    """The results in one state folder.

    Parameters
    ----------
    path
        The folder, which exists.
    fsync
        Make each result durable against power loss as well, which costs a few ms on a disk.
    """

    def __init__(self, path: Path, *, fsync: bool = False) -> None:
        self._path = path
        self._fsync = fsync
        # A small payload is offered at once: it need not be read again. Set and popped, never iterated.
        self._fresh: dict[bytes, bytes] = {}

    def load(self) -> list[Entry]:
        """What is here at the start, the oldest first; what is not whole is removed."""
        found: list[tuple[int, Entry]] = []
        for file in sorted(self._path.iterdir()):
            if file.suffix == ENTRY:
                entry = self._read(file)
                if entry is None:
                    log.warning("removed a damaged result from the outbox", extra={"file": file.name})
                    file.unlink()
                else:
                    found.append((file.stat().st_mtime_ns, entry))
        whole = {self._file(entry.task, suffix) for _, entry in found for suffix in (ENTRY, PAYLOAD)}
        for file in self._path.iterdir():
            if file not in whole:
                file.unlink()
        return [entry for _, entry in sorted(found, key=lambda pair: pair[0])]

    def put(self, entry: Entry, chunks: Iterable[bytes | memoryview] = ()) -> Entry:
        """Store a result; its size and digest are counted on the way.

        Raises
        ------
        StateError
            When it cannot be written (the disk is full …).
        """
        try:
            if entry.has_payload:
                size, digest = self._write_payload(entry.task, chunks)
                entry = msgspec.structs.replace(entry, size=size, digest=digest)
            write_file(self._file(entry.task, ENTRY), msgspec.msgpack.encode(entry), fsync=self._fsync)
        except OSError as error:
            self.delete(entry.task)
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise StateError(
                f"the result cannot be kept: {'the disk is full' if full else error.strerror} ({self._path})"
            ) from error
        except BaseException:
            self.delete(entry.task)
            raise
        return entry

    def read(self, task: bytes, offset: int, length: int) -> bytes:
        """Bytes of a payload.

        Raises
        ------
        StateError
            When they are not there any more.
        """
        fresh = self._fresh.get(task)
        if fresh is not None:
            return fresh[offset : offset + length]
        try:
            with self._file(task, PAYLOAD).open("rb", buffering=0) as file:
                data = os.pread(file.fileno(), length, offset)
        except OSError as error:
            raise StateError(
                f"a result in the outbox cannot be read: {error.strerror} ({self._path})"
            ) from error
        if len(data) != length:
            raise StateError(f"a result in the outbox was cut short ({self._path})")
        return data

    def delete(self, task: bytes) -> None:
        """Forget a result; an unknown one is no error."""
        self._fresh.pop(task, None)
        self._file(task, ENTRY).unlink(missing_ok=True)
        self._file(task, PAYLOAD).unlink(missing_ok=True)

    def _write_payload(self, task: bytes, chunks: Iterable[bytes | memoryview]) -> tuple[int, bytes]:
        state = xxhash.xxh3_128()
        size = 0
        kept: list[bytes] = []
        fd = os.open(self._file(task, PAYLOAD), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            for chunk in chunks:
                view = memoryview(chunk)
                state.update(view)
                size += view.nbytes
                if size <= wire.INLINE_MAX:
                    kept.append(bytes(view))
                write_all(fd, view)
            if self._fsync:
                os.fsync(fd)
        finally:
            os.close(fd)
        if self._fsync:
            sync_folder(self._path)
        if size <= wire.INLINE_MAX:
            self._fresh[task] = b"".join(kept)
        return size, state.digest()

    def _read(self, file: Path) -> Entry | None:
        try:
            entry = msgspec.msgpack.decode(file.read_bytes(), type=Entry)
            if self._file(entry.task, ENTRY) != file:
                return None
            if entry.has_payload and self._file(entry.task, PAYLOAD).stat().st_size != entry.size:
                return None
        except (msgspec.DecodeError, FileNotFoundError):
            return None
        return entry

    def _file(self, task: bytes, suffix: str) -> Path:
        return self._path / (task.hex() + suffix)
