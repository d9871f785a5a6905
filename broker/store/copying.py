"""Copying the files of a state folder while its broker collects those that it needs no longer.

Rules that hold here:

- All files are opened before the first is copied: what is open stays readable when its name is gone.
- A copy has its file's mode, is durable, and is compared with what the journal says while the bytes pass.
"""

import contextlib
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Final

import xxhash

from fedmq.fedcore.errors import StateError

__all__ = ["Collected", "Files"]

PIECE: Final = 1 << 20
_SPARE_FILES: Final = 64
"""Descriptors that are left for everything but the files that are held open."""


class Collected(Exception):
    """A file that the snapshot needs was taken away before it could be opened."""

    def __init__(self, path: Path, version: int | None) -> None:
        super().__init__(str(path))
        self.path = path
        self.version = version


class File:
    """One file to copy: its name in both folders, and what the journal says of it, where it does."""

    def __init__(self, state: Path, name: str, size: int | None, digest: bytes | None, *, hold: bool) -> None:
        self.source = state / name
        self.name = name
        self.needed = False
        self._expected = size, digest
        self.descriptor = os.open(self.source, os.O_RDONLY | os.O_CLOEXEC) if hold else None
        self.size = (self.source.stat() if self.descriptor is None else os.fstat(self.descriptor)).st_size

    def copy(self, folder: Path, moved: Callable[[int], None]) -> None:
        """Copy it, durably, with its mode."""
        descriptor, self.descriptor = self.descriptor, None
        with open(self.source if descriptor is None else descriptor, "rb", buffering=0) as source:
            mode = os.fstat(source.fileno()).st_mode & 0o777
            target = os.open(folder / self.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with open(target, "wb", buffering=0) as copy:
                os.fchmod(target, mode)
                digest, size = xxhash.xxh3_128(), 0
                while piece := source.read(PIECE):
                    view = memoryview(piece)
                    while view:
                        view = view[copy.write(view) :]
                    digest.update(piece)
                    size += len(piece)
                    moved(len(piece))
                os.fsync(target)
        found = size, digest.digest()
        if any(said not in (None, is_so) for said, is_so in zip(self._expected, found, strict=True)):
            raise StateError(
                f"{self.source} is damaged: it is not what the journal says, so there is nothing to back up; "
                "restore the state folder from an older backup"
            )

    def close(self) -> None:
        """Let it go."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


class Files:
    """What is to be copied, held open so that it stays readable when it is collected.

    Parameters
    ----------
    state : Path
    version : int or None
        The snapshot's.
    """

    def __init__(self, state: Path, version: int | None) -> None:
        self._state = state
        self._version = version
        self._held_max = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _SPARE_FILES
        self.files: list[File] = []

    def need(self, name: str, size: int | None = None, digest: bytes | None = None) -> None:
        """A file without which the copy is of no use."""
        try:
            self._add(name, size, digest)
        except FileNotFoundError:
            raise self.collected(name) from None
        self.files[-1].needed = True

    def take(self, name: str, size: int | None = None, digest: bytes | None = None) -> None:
        """A file that may go at any time."""
        with contextlib.suppress(FileNotFoundError):
            self._add(name, size, digest)

    def collected(self, name: str) -> Collected:
        """A file that was needed is gone."""
        return Collected(self._state / name, self._version)

    def close(self) -> None:
        """Let all go that were not copied."""
        for file in self.files:
            file.close()

    def _add(self, name: str, size: int | None, digest: bytes | None) -> None:
        hold = len(self.files) < self._held_max
        self.files.append(File(self._state, name, size, digest, hold=hold))
