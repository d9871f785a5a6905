"""The worker's state folder: who this worker is, and that nobody else is it.

    STATE/lock        held (flock) while a process works here; says which
    STATE/instance    16 random bytes: this worker's identity to the broker, for good
    STATE/worker.key, worker.secret, broker.key
                      its keys, where the broker has some (`keys.py`)
    STATE/models/     model cache (`models.py`)
    STATE/outbox/     updates not yet acknowledged (`outbox.py`)
    STATE/feedback/   what encodings left out of them (`feedback.py`)
    STATE/app/        the client app's own: `TaskContext.state`

Rules that hold here:

- One process at a time. A lock goes with its process, however that ends.
- A copy of a folder is a second worker with the first one's identity: of the two the broker serves the one that was
  started last, and refuses the other while that is there.
- Without a folder of its own a worker gets a temporary one, and nothing outlives it.
"""

import contextlib
import errno
import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fedmq.fedcore.errors import StateError

if TYPE_CHECKING:
    import tempfile

INSTANCE_BYTES: Final = 16


class StateFolder:
    """A locked state folder.

    Parameters
    ----------
    path : path-like or None
        The folder; made if missing. None for a temporary one, deleted at `close`.
    owner : str
        What to tell the next one who wants the folder.

    Raises
    ------
    StateError
        When another process works there, or the folder cannot be used.
    """

    def __init__(self, path: str | os.PathLike[str] | None, owner: str) -> None:
        self._temporary = _temporary_folder() if path is None else None
        self.path = Path(self._temporary.name if self._temporary else path or "").absolute()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(self.path / "lock", owner)
            try:
                self.instance = _instance(self.path / "instance")
                for name in ("models", "outbox", "feedback", "app"):
                    (self.path / name).mkdir(exist_ok=True)
            except BaseException:
                os.close(self._lock)
                raise
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            advice = "make room and start again" if full else "choose one that is writable"
            raise StateError(
                f"the state folder {self.path} cannot be used: {error.strerror}; {advice}"
            ) from error

    @property
    def models(self) -> Path:
        """Where the model cache lies."""
        return self.path / "models"

    @property
    def outbox(self) -> Path:
        """Where the outbox lies."""
        return self.path / "outbox"

    @property
    def feedback(self) -> Path:
        """Where what encodings leave out is kept."""
        return self.path / "feedback"

    @property
    def app(self) -> Path | None:
        """The client app's own folder; None in a temporary one, where it could keep nothing."""
        return self.path / "app" if self._temporary is None else None

    def close(self) -> None:
        """Let the next one in."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
        if self._temporary is not None:
            self._temporary.cleanup()


def write_file(path: Path, data: bytes, *, fsync: bool = False) -> None:
    """Write a file so that it is there whole or not at all, whenever the process dies."""
    draft = path.with_name(path.name + ".tmp")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        write_all(fd, data)
        if fsync:
            os.fsync(fd)
    finally:
        os.close(fd)
    draft.replace(path)
    if fsync:
        sync_folder(path.parent)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write all of `data`; the system may take less than it is given at a time."""
    view = memoryview(data)
    while view.nbytes:
        view = view[os.write(fd, view) :]


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _temporary_folder() -> "tempfile.TemporaryDirectory[str]":
    import tempfile  # which an edge program with a state folder need not load

    return tempfile.TemporaryDirectory(prefix="fedmq-worker-")


def _lock(path: Path, owner: str) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(fd, 200).decode("utf-8", "replace").strip() or "another process"
        os.close(fd)
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        raise StateError(
            f"the state folder {path.parent} is in use by {holder};"
            " stop that, or give this worker a folder of its own"
        ) from None
    os.ftruncate(fd, 0)
    os.write(fd, f"process {os.getpid()}, {owner}\n".encode()[:200])
    return fd


def _instance(path: Path) -> bytes:
    with contextlib.suppress(FileNotFoundError):
        instance = path.read_bytes()
        if len(instance) != INSTANCE_BYTES:
            raise StateError(
                f"{path} holds {len(instance)} bytes, expected {INSTANCE_BYTES}; delete it for a new identity"
            )
        return instance
    instance = os.urandom(INSTANCE_BYTES)
    write_file(path, instance, fsync=True)
    return instance
