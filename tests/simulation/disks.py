"""What survives a process, and how much of it survives a power cut.

The broker's disk keeps its promises (rows that were committed, spool bytes that were synced, version files that
were reported); of the rest any prefix may be there. A worker's outbox and model cache are not synced.
"""

import random

import msgspec
import xxhash

from fedmq.broker.rows import Row
from fedmq.fedcore import wire
from fedmq.worker.entry import Entry


class SpoolFile(msgspec.Struct):
    """The payload of one update, as far as it has come."""

    data: bytearray = msgspec.field(default_factory=bytearray)
    synced: int = 0


class BrokerDisk:
    """The broker's state folder."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        """Every row that was ever committed, in order: a journal is rebuilt from it."""
        self.spool: dict[bytes, SpoolFile] = {}
        self.versions: dict[int, bytes] = {}

    def power_cut(self, rng: random.Random) -> None:
        """Lose what was not synced, at any byte."""
        for task, file in list(self.spool.items()):
            del file.data[rng.randint(file.synced, len(file.data)) :]
            if not file.synced and rng.random() < 0.5:
                del self.spool[task]  # its name was not synced either

    def make_version(self, version: int, about: bytes, size: int) -> bytes:
        """Write a version's file, whose bytes depend on nothing but `about`; its digest."""
        content = random.Random(about).randbytes(size)
        self.versions[version] = content
        return xxhash.xxh3_128_digest(content)


class Spool:
    """The broker's spool in one life of its process; holds the laws of the real one.

    A violation of them would end a real broker, so it ends the simulation.
    """

    def __init__(self, disk: BrokerDisk) -> None:
        self._files = disk.spool
        self._open: dict[bytes, tuple[int, str]] = {}

    def tasks(self) -> frozenset[bytes]:
        """The tasks of which there are payload bytes."""
        return frozenset(self._files)

    def open(self, task: bytes, size: int, encoding: str) -> int:
        """Open an upload, or find it again; how many of its bytes are here."""
        file = self._files.setdefault(task, SpoolFile())
        if len(file.data) > size:
            self._files[task] = file = SpoolFile()
        self._open[task] = (size, encoding)
        return len(file.data)

    def write(self, task: bytes, offset: int, data: bytes) -> int:
        """Append bytes; the length then."""
        size, _ = self._open[task]
        file = self._files[task]
        assert offset == len(file.data), f"bytes at {offset} of an upload that holds {len(file.data)}"
        assert offset + len(data) <= size, "more bytes than were announced"
        file.data += data
        return len(file.data)

    def seal(self, task: bytes) -> tuple[bytes, str]:
        """Make a complete upload durable; its digest and encoding."""
        size, encoding = self._open.pop(task)
        file = self._files[task]
        assert len(file.data) == size, f"an upload is sealed at {len(file.data)} of {size} bytes"
        file.synced = size
        return xxhash.xxh3_128_digest(file.data), encoding

    def delete(self, tasks: tuple[bytes, ...]) -> None:
        """Delete payloads."""
        for task in tasks:
            self._open.pop(task, None)
            self._files.pop(task, None)

    def payload(self, task: bytes) -> bytes:
        """A sealed payload."""
        return bytes(self._files[task].data)


class WorkerDisk:
    """A worker's state folder."""

    def __init__(self, instance: bytes) -> None:
        self.instance = instance
        self.outbox: dict[bytes, tuple[Entry, bytes]] = {}
        self.models: dict[bytes, bytearray] = {}

    def power_cut(self, rng: random.Random) -> None:
        """Lose some results, and the ends of some models."""
        for task in list(self.outbox):
            if rng.random() < 0.3:
                del self.outbox[task]
        for data in self.models.values():
            if rng.random() < 0.3:
                del data[rng.randint(0, len(data)) :]

    def is_whole(self, task: wire.Task) -> bool:
        """Whether a task's model is what its digest says."""
        return task.digest is None or xxhash.xxh3_128_digest(self.models.get(task.digest, b"")) == task.digest
