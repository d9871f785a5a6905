"""Small results of the outbox: records in one file, because making a file costs more than a small update.

    outbox/small    record, record, …   each: [ lengths: entry 4 bytes, payload 4 bytes ] [ entry: msgpack ]
                                        [ payload ] [ XXH3-64 of all that: 8 bytes ]

A record without an entry says that the result of a task, which is its payload, was acknowledged.

Rules that hold here:

- A record exists when its last byte is written. What a kill or a power loss left of one ends the file: nothing
  after it is read, and it is cut off at the next start.
- An acknowledged result stays in the file, and a record says so, until all are, or until the file is mostly of those:
  then it is emptied, or written anew. So a killed worker does not offer again what the broker may no longer know, and
  would call stale. Only a power loss brings some of them back, or a kill before the ACK was heard.
- `put` is called by the app's thread, `delete` by the I/O thread; a lock keeps them apart.
"""

import contextlib
import os
import struct
import threading
from pathlib import Path
from typing import Final

import msgspec
import xxhash

from .entry import Entry
from .state import sync_folder, write_all, write_file

_LENGTHS: Final = struct.Struct(">II")
_CHECKSUM: Final = 8
COMPACT: Final = 4 * 1024 * 1024
"""From this size on the file is written anew once most of it has been acknowledged."""


class SmallResults:
    """The records of one file.

    Parameters
    ----------
    path
        The file; made when it is first needed.
    fsync
        Make each record durable against power loss as well.
    """

    def __init__(self, path: Path, *, fsync: bool) -> None:
        self._path = path
        self._fsync = fsync
        self._lock = threading.Lock()
        self._fd = -1
        self._size = 0
        self._records: dict[bytes, tuple[bytes, bytes]] = {}
        """By task: the whole record, and the payload in it."""

    def load(self) -> list[Entry]:
        """The results that are here, the oldest first; a torn end is cut off."""
        entries: dict[bytes, Entry] = {}
        with self._lock:
            data = self._path.read_bytes() if self._path.exists() else b""
            self._size = 0
            while (record := _read(data, self._size)) is not None:
                entry, payload, end = record
                if entry is None:
                    self._records.pop(payload, None)
                    entries.pop(payload, None)
                else:
                    self._records[entry.task] = (data[self._size : end], payload)
                    entries[entry.task] = entry
                self._size = end
            if self._size < len(data):
                os.truncate(self._path, self._size)
        return list(entries.values())

    def put(self, entry: Entry, payload: bytes) -> None:
        """Add a result. Raises OSError when it cannot be written; nothing of it stays then."""
        record = _record(msgspec.msgpack.encode(entry), payload)
        with self._lock:
            self._append(record, fsync=self._fsync)
            self._records[entry.task] = (record, payload)

    def payload(self, task: bytes) -> bytes | None:
        """The bytes of a result, if it is here."""
        record = self._records.get(task)
        return None if record is None else record[1]

    def delete(self, task: bytes) -> bool:
        """Forget a result; whether it was here."""
        with self._lock:
            if self._records.pop(task, None) is None:
                return False
            if not self._records:
                os.truncate(self._path, 0)
                self._size = 0
            elif self._size > COMPACT and 2 * self._live() < self._size:
                self._compact()
            else:
                with contextlib.suppress(
                    OSError
                ):  # else it is offered once more, should this process be killed
                    self._append(_record(b"", task), fsync=False)
            return True

    def close(self) -> None:
        """Leave nothing in the file that was acknowledged, and give the descriptor back."""
        with self._lock:
            if self._live() < self._size:
                with contextlib.suppress(OSError):  # else it is offered once more
                    self._compact()
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def _append(self, record: bytes, *, fsync: bool) -> None:
        """Write a whole record, or nothing."""
        new = self._fd < 0
        if new:
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            write_all(self._fd, record)
            if fsync:
                os.fsync(self._fd)
                if new:
                    sync_folder(self._path.parent)
        except BaseException:
            os.ftruncate(self._fd, self._size)
            raise
        self._size += len(record)

    def _live(self) -> int:
        return sum(len(record) for record, _ in self._records.values())

    def _compact(self) -> None:
        """Write what is left into a new file, which takes the place of the old one."""
        data = b"".join(record for record, _ in self._records.values())
        write_file(self._path, data, fsync=self._fsync)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._size = len(data)


def _record(about: bytes, payload: bytes) -> bytes:
    body = b"".join((_LENGTHS.pack(len(about), len(payload)), about, payload))
    return body + xxhash.xxh3_64_digest(body)


def _read(data: bytes, start: int) -> tuple[Entry | None, bytes, int] | None:
    """The record that begins at a place: its entry, if any, its payload, where it ends; None where none is whole."""
    first = start + _LENGTHS.size
    if first > len(data):
        return None
    entry_size, payload_size = _LENGTHS.unpack_from(data, start)
    middle, last = first + entry_size, first + entry_size + payload_size
    end = last + _CHECKSUM
    if end > len(data) or xxhash.xxh3_64_digest(data[start:last]) != data[last:end]:
        return None
    payload = data[middle:last]
    if entry_size == 0:
        return None, payload, end
    try:
        entry = msgspec.msgpack.decode(data[first:middle], type=Entry)
    except msgspec.MsgspecError:
        return None
    return (entry, payload, end) if entry.size == payload_size else None
