"""The spool: payload bytes of updates, one file an upload, named by the task id in hex.

Rules that hold here:

- A file only grows, from its end. After a kill its length is what the broker holds, and the upload
  resumes there; its digest and norm are read again.
- Digest and norm are taken while a block is warm. An update is on the disk every 16 MiB, so that no
  seal waits for a large one.
- `seal` returns when the bytes and the file's name are durable. What was accepted is never written again.
- All calls come from one thread, except `payload`, which any may call for a sealed update.
"""

import mmap
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import xxhash

from fedmq.fedcore import kernels
from fedmq.fedcore.codecs import is_encoding, topk_excess
from fedmq.fedcore.errors import StateError

from ..events import Sealed
from .refusals import patiently, unwritten
from .versions import sync_folder

__all__ = ["SYNC_BYTES", "Spool"]

SYNC_BYTES: Final = 16 << 20
"""How many bytes of an upload may be ahead of the disk."""

_READ_BYTES: Final = 1 << 20


class Spool:
    """Payloads of updates on disk.

    Parameters
    ----------
    folder : Path
        Made when it is not there.
    fsync : bool
        False (``durability = "os"``) never waits for the disk.
    """

    def __init__(self, folder: Path, *, fsync: bool = True) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._fsync = fsync
        self._uploads: dict[bytes, _Upload] = {}
        self._tasks = {bytes.fromhex(path.name) for path in folder.iterdir() if _ours(path)}

    def tasks(self) -> frozenset[bytes]:
        """The tasks of which there are payload bytes."""
        return frozenset(self._tasks)

    def open(
        self, task: bytes, size: int, encoding: str, n: int | None = None, most: int | None = None
    ) -> int:
        """Open an upload, or find it again; how many of its bytes are here.

        Parameters
        ----------
        task : bytes
            The task's id.
        size : int
            The payload's size in bytes. A file that is longer belongs to something else, and is emptied.
        encoding : str
            Of the update; any other name (``safetensors``) has no norm.
        n : int, optional
            How many values the payload must be of; `seal` says when it is not.
        most : int, optional
            How many of them a ``topk`` payload may hold; likewise.

        Raises
        ------
        StateError
            When the disk refuses.
        """
        upload = self._uploads.get(task)
        if upload is None or (upload.size, upload.encoding) != (size, encoding):
            self._close(task)
            try:
                upload = _Upload(self.path(task), size, encoding, n, most)
            except OSError as error:
                raise self._refused(task, error) from error
            self._uploads[task] = upload
            self._tasks.add(task)
        return upload.length

    def write(self, task: bytes, offset: int, data: memoryview | bytes) -> int:
        """Append bytes at `offset`, which is where the file ends; its length then.

        Raises
        ------
        StateError
            When the disk refuses.
        ValueError
            When the upload is not open, or the bytes do not continue it.
        """
        upload = self._open(task)
        if offset != upload.length or offset + len(data) > upload.size:
            raise ValueError(
                f"{len(data)} bytes at {offset} of an upload that holds {upload.length} of {upload.size}"
            )
        try:
            upload.append(data)
            if self._fsync and upload.length - upload.synced >= SYNC_BYTES:
                upload.sync()
        except OSError as error:
            raise self._refused(task, error) from error
        return upload.length

    def seal(self, task: bytes) -> Sealed:
        """Make a complete upload durable, and say its digest and norm, or what is wrong with it.

        Returns
        -------
        Sealed
            The norm is that of the decoded update: inf or NaN when it holds one; None for what is no update, or has
            a fault.

        Raises
        ------
        StateError
            When the disk refuses.
        ValueError
            When the upload is not open, or not complete.
        """
        upload = self._open(task)
        if upload.length != upload.size:
            raise ValueError(f"an upload that holds {upload.length} of {upload.size} bytes cannot be sealed")
        try:
            if self._fsync:
                upload.sync()
                sync_folder(self._folder)
        except OSError as error:
            raise self._refused(task, error) from error
        self._close(task)
        norm = upload.finish()
        if norm is not None and upload.most is not None:
            upload.fault = topk_excess(self.payload(task), upload.most)
            norm = None if upload.fault else norm
        return Sealed(task, upload.digest.digest(), norm, upload.fault)

    def payload(self, task: bytes, start: int = 0, stop: int | None = None) -> memoryview:
        """Bytes [start, stop) of a payload, mapped for as long as the view lives.

        Raises
        ------
        StateError
            When there is no such payload, or it is shorter.
        """
        path = self.path(task)
        try:
            return patiently(lambda: _mapped(path, start, stop))
        except OSError as error:
            raise StateError(f"{path} cannot be read: {error}") from error

    def delete(self, tasks: Iterable[bytes]) -> None:
        """Delete payloads, open or sealed; those that are not there are no error."""
        for task in tasks:
            self._close(task)
            self._tasks.discard(task)
            self.path(task).unlink(missing_ok=True)

    def close(self) -> None:
        """Close all uploads; their bytes stay."""
        for task in list(self._uploads):
            self._close(task)

    def path(self, task: bytes) -> Path:
        """Where a payload is, or would be."""
        return self._folder / task.hex()

    def _open(self, task: bytes) -> "_Upload":
        upload = self._uploads.get(task)
        if upload is None:
            raise ValueError(f"upload {task.hex()} is not open")
        return upload

    def _close(self, task: bytes) -> None:
        if upload := self._uploads.pop(task, None):
            os.close(upload.descriptor)

    def _refused(self, task: bytes, error: OSError) -> StateError:
        return unwritten(self.path(task), error)


class _Upload:
    """One file that grows, and what is known of its bytes so far."""

    def __init__(self, path: Path, size: int, encoding: str, n: int | None, most: int | None) -> None:
        self.size = size
        self.encoding = encoding
        self.most = most
        self.length = 0
        self.synced = 0
        self.digest = xxhash.xxh3_128()
        self.fault = ""
        self._norm = kernels.Norm(encoding, n) if is_encoding(encoding) else None
        self.descriptor = patiently(lambda: os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        try:
            if os.fstat(self.descriptor).st_size > size:
                os.ftruncate(self.descriptor, 0)
            while piece := os.pread(self.descriptor, _READ_BYTES, self.length):
                self._take(memoryview(piece))
        except BaseException:
            os.close(self.descriptor)
            raise

    def append(self, data: memoryview | bytes) -> None:
        """Write at the end. What the disk took before it refused counts as not there."""
        view = memoryview(data)
        done = 0
        while done < len(view):
            done += os.pwrite(self.descriptor, view[done:], self.length + done)
        self._take(view)

    def sync(self) -> None:
        """Wait until all that was written is on the disk."""
        os.fdatasync(self.descriptor)
        self.synced = self.length

    def finish(self) -> float | None:
        """The norm of all bytes; None where there is none, or a fault."""
        try:
            return None if self._norm is None else self._norm.value()
        except ValueError as error:
            self._refuse(error)
            return None

    def _take(self, data: memoryview) -> None:
        self.digest.update(data)
        self.length += len(data)
        try:
            if self._norm is not None:
                self._norm.update(data)
        except ValueError as error:
            self._refuse(error)

    def _refuse(self, error: ValueError) -> None:
        """Look no further: what the worker sent is no payload, which it will be told when all is here."""
        self._norm = None
        self.fault = f"payload: {error}"


def _mapped(path: Path, start: int, stop: int | None) -> memoryview:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        stop = size if stop is None else stop
        if not 0 <= start <= stop <= size:
            raise StateError(f"{path} is damaged: {size} bytes, expected at least {stop}")
        if start == stop:
            return memoryview(b"")
        # A map starts at a whole page.
        first = start - start % mmap.ALLOCATIONGRANULARITY
        view = memoryview(mmap.mmap(file.fileno(), stop - first, access=mmap.ACCESS_READ, offset=first))
        return view[start - first :]


def _ours(path: Path) -> bool:
    try:
        return bytes.fromhex(path.name).hex() == path.name
    except ValueError:
        return False
