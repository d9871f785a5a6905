"""The outbox: finished results, on disk until the broker acknowledges them.

    outbox/<task id>.result    [ payload ] [ entry: msgpack ] [ length of the entry: 4 bytes ] [ "FQO1" ]
    outbox/small               all those that may ride with their OFFER; see `small_results`

The payload is the encoded update; the entry is what the OFFER says of it.

Rules that hold here:

- The end is what makes a result exist. It is written last, so that a process killed between any two steps
  leaves a whole result or none; a file without its end is removed at the next start.
- By default nothing is fsynced: a result survives its process, and only the broker's ACK promises more.
- A result that cannot be written is a `StateError`, and nothing of it stays.
- `put` is called by the app's thread, the rest by the I/O thread; each task id has one writer.
"""

import errno
import itertools
import logging
import mmap
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec
import xxhash

from fedmq.fedcore import wire
from fedmq.fedcore.errors import StateError

from .entry import Entry
from .small_results import SmallResults
from .state import sync_folder, write_all

log = logging.getLogger("fedmq.worker")

RESULT: Final = ".result"
SMALL: Final = "small"
_END: Final = struct.Struct(">I4s")
_MAGIC: Final = b"FQO1"


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
        self._small = SmallResults(path / SMALL, fsync=fsync)

    def load(self) -> list[Entry]:
        """What is here at the start, the oldest first; what is not whole is removed."""
        found: list[tuple[int, Entry]] = []
        small = self._path / SMALL
        if small.exists():
            written = small.stat().st_mtime_ns
            found += ((written, entry) for entry in self._small.load())
        for file in sorted(self._path.iterdir()):
            if file == small:
                continue
            entry = self._read(file)
            if entry is None:
                log.warning("removed a result that is not whole from the outbox", extra={"file": file.name})
                file.unlink()
            else:
                found.append((file.stat().st_mtime_ns, entry))
        return [entry for _, entry in sorted(found, key=lambda pair: pair[0])]

    def put(self, entry: Entry, chunks: Iterable[bytes | memoryview] = ()) -> Entry:
        """Store a result; its size and digest are counted on the way.

        Raises
        ------
        StateError
            When it cannot be written (the disk is full …).
        """
        try:
            return self._write(entry, chunks)
        except OSError as error:
            self.delete(entry.task)
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise StateError(
                f"the result cannot be kept: {'the disk is full' if full else error.strerror} ({self._path})"
            ) from error
        except BaseException:
            self.delete(entry.task)
            raise

    def read(self, task: bytes, offset: int, length: int) -> bytes | memoryview:
        """Bytes of a payload; of one in a file of its own, mapped for as long as the view lives.

        Raises
        ------
        StateError
            When they are not there any more.
        """
        small = self._small.payload(task)
        if small is not None:
            return small[offset : offset + length]
        try:
            with self._file(task).open("rb", buffering=0) as file:
                is_whole = os.fstat(file.fileno()).st_size >= offset + length
                data = _mapped(file.fileno(), offset, length) if is_whole else b""
        except OSError as error:
            raise StateError(
                f"a result in the outbox cannot be read: {error.strerror} ({self._path})"
            ) from error
        if len(data) != length:
            raise StateError(f"a result in the outbox was cut short ({self._path})")
        return data

    def delete(self, task: bytes) -> None:
        """Forget a result; an unknown one is no error."""
        if not self._small.delete(task):
            self._file(task).unlink(missing_ok=True)

    def close(self) -> None:
        """Give the descriptor back, at the end; results stay."""
        self._small.close()

    def _write(self, entry: Entry, chunks: Iterable[bytes | memoryview]) -> Entry:
        """Keep the chunks in memory as long as they may ride with their OFFER; write a file where they may not."""
        chunks = iter(chunks)
        kept: list[bytes] = []
        size = 0
        for chunk in chunks:
            size += memoryview(chunk).nbytes
            if size > wire.INLINE_MAX:
                return self._write_file(entry, itertools.chain(kept, (chunk,), chunks))
            kept.append(bytes(chunk))
        payload = b"".join(kept)
        if entry.has_payload:
            entry = msgspec.structs.replace(entry, size=size, digest=xxhash.xxh3_128_digest(payload))
        self._small.put(entry, payload)
        return entry

    def _write_file(self, entry: Entry, chunks: Iterable[bytes | memoryview]) -> Entry:
        state = xxhash.xxh3_128()
        size = 0
        # Never over a file that is there: its pieces may be mapped, and who reads what was cut off is killed.
        self._file(entry.task).unlink(missing_ok=True)
        fd = os.open(self._file(entry.task), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            for chunk in chunks:
                view = memoryview(chunk)
                state.update(view)
                size += view.nbytes
                write_all(fd, view)
            entry = msgspec.structs.replace(entry, size=size, digest=state.digest())
            about = msgspec.msgpack.encode(entry)
            write_all(fd, about + _END.pack(len(about), _MAGIC))
            if self._fsync:
                os.fsync(fd)
        finally:
            os.close(fd)
        if self._fsync:
            sync_folder(self._path)
        return entry

    def _read(self, file: Path) -> Entry | None:
        """What a file says of its result; None unless it is a whole one under its own name."""
        try:
            with file.open("rb") as result:
                size = result.seek(0, os.SEEK_END)
                result.seek(max(size - _END.size, 0))
                length, magic = _END.unpack(result.read())
                result.seek(max(size - _END.size - length, 0))
                entry = msgspec.msgpack.decode(result.read(length), type=Entry)
        except (struct.error, msgspec.MsgspecError):
            return None
        is_whole = magic == _MAGIC and entry.size + length + _END.size == size
        return entry if is_whole and self._file(entry.task) == file else None

    def _file(self, task: bytes) -> Path:
        return self._path / (task.hex() + RESULT)


def _mapped(fd: int, offset: int, length: int) -> memoryview:
    """Sent from where they lie in the page cache, bytes are not copied once more.

    A mapping keeps a descriptor of its own. Where none is left they are read: a result is not lost for that.
    """
    if length == 0:  # which cannot be mapped
        return memoryview(b"")
    before = offset % mmap.ALLOCATIONGRANULARITY
    try:
        view = memoryview(mmap.mmap(fd, before + length, access=mmap.ACCESS_READ, offset=offset - before))
    except OSError:
        return memoryview(os.pread(fd, length, offset))
    return view[before:]
