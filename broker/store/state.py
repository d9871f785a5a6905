"""The state folder of one broker: who it is, its secrets, and that only one process uses it.

::

    lock              flocked by the process that uses the folder; holds its pid
    federation.json   the federation's id and the fingerprint of its config
    config.toml       the config that it last started with
    keys/mac, noise   secrets: of task ids, and of the noise (as sensitive as raw updates)
    journal.db        see journal.py
    spool/ versions/  payloads on their way to a version; the versions' files
    endpoint          where the running broker listens
    control.sock      how the command line speaks to it

Rules that hold here:

- A folder is used by one process at a time, and a folder of one federation never becomes another's.
- A start that fails in a folder that was no federation's leaves it as it was.
- Small files are replaced whole (written aside, fsynced, renamed): a kill leaves the old or the new one.
- Secrets are drawn from the operating system, once, and only their owner can read them.
"""

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shutil
import time
from pathlib import Path
from types import TracebackType

import msgspec

from fedmq.fedcore import config as configs
from fedmq.fedcore.errors import ConfigError, StateError

from .versions import sync_folder

FORMAT = 1
KEY_BYTES = 32
_OURS = (
    "federation.json", "config.toml", "journal.db", "journal.db-wal", "journal.db-shm", "spool", "versions",
    "keys/mac", "keys/noise", "keys", "endpoint", "control.sock", "lock",
)  # fmt: skip
"""All that a broker makes in its folder."""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """federation.json."""

    format: int
    id: str
    """32 hexadecimal digits, random, for ever."""
    fingerprint: str
    """Of everything in the config that a restart may not change."""
    base_dir: str
    """The folder that relative paths of the last config were relative to."""
    created_at: float
    noise_multiplier: float | None = None
    """What the privacy budget was calibrated to, once: an accountant of a later release may differ."""
    bandwidth: int | None = None
    """Likewise p of correlated noise: the noise of one run is one mechanism's."""


class StateFolder:
    """A state folder that this process has locked; use `open`. A context manager.

    Attributes
    ----------
    path : Path
    is_new : bool
        Whether the folder has not been used by a federation before.
    id : str
        The federation's id.
    mac_key, noise_key : bytes
        32 bytes each.
    """

    def __init__(self, path: Path, lock: int, before: frozenset[str] | None) -> None:
        self.path = path
        self._lock = lock
        self._before = before
        """What of `_OURS` was there; None where there was no folder."""
        self._is_kept = False
        self.is_new = not (path / "federation.json").exists()
        self.id = ""
        self.mac_key = b""
        self.noise_key = b""

    @classmethod
    def open(cls, path: str | Path) -> "StateFolder":
        """Lock a state folder; make it where there is none. Writes nothing else.

        Raises
        ------
        StateError
            When another process uses it, or it cannot be written.
        """
        path = Path(path).absolute()
        try:
            before = frozenset(name for name in _OURS if (path / name).exists()) if path.exists() else None
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = _lock(path)
        except OSError as error:
            raise unwritable(path, error) from error
        try:
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
            return cls(path, lock, before)
        except OSError as error:
            os.close(lock)
            raise unwritable(path, error) from error

    def __enter__(self) -> "StateFolder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self.is_new and not self._is_kept and self._lock >= 0:
            self._undo()
        self.close()

    @property
    def journal(self) -> Path:
        """The journal's database file."""
        return self.path / "journal.db"

    @property
    def spool(self) -> Path:
        """The folder of payloads."""
        return self.path / "spool"

    @property
    def versions(self) -> Path:
        """The folder of model files."""
        return self.path / "versions"

    @property
    def control(self) -> Path:
        """The control socket."""
        return self.path / "control.sock"

    def settle(
        self, config: configs.Config, noise_multiplier: float | None = None, bandwidth: int | None = None
    ) -> tuple[configs.Change, ...]:
        """Make the folder this federation's, or check that it is; remember the config.

        Parameters
        ----------
        config : Config
        noise_multiplier : float, optional
            Of a new federation with privacy; remembered for ever.
        bandwidth : int, optional
            Likewise, with correlated noise.

        Returns
        -------
        tuple of Change
            The keys that differ from the last start, all of which may.

        Raises
        ------
        StateError
            When a key differs that may not, by name; when the folder is damaged or of a later format.
        """
        try:
            identity, changes = self._identify(config, noise_multiplier, bandwidth)
            self.mac_key = self._secret("mac")
            self.noise_key = self._secret("noise")
            for folder in (self.spool, self.versions):
                folder.mkdir(mode=0o700, exist_ok=True)
            replace(self.path / "config.toml", configs.to_toml(config).encode())
            # Last: with it the folder is no longer new, and everything above has to be there.
            document = json.dumps(msgspec.to_builtins(identity), indent=1)
            replace(self.path / "federation.json", document.encode())
            self.id = identity.id
            return changes
        except OSError as error:
            raise unwritable(self.path, error) from error

    def announce(self, endpoint: str) -> None:
        """Write where the broker listens, for scripts that let the system choose the port."""
        try:
            replace(self.path / "endpoint", f"{endpoint}\n".encode())
        except OSError as error:
            raise unwritable(self.path, error) from error

    def keep(self) -> None:
        """The start has succeeded. Whatever fails from now on, nothing is taken away: updates may be in there."""
        self._is_kept = True

    def close(self) -> None:
        """Let others use the folder."""
        if self._lock >= 0:
            (self.path / "endpoint").unlink(missing_ok=True)
            os.ftruncate(self._lock, 0)
            os.close(self._lock)
            self._lock = -1

    def _undo(self) -> None:
        """Take away what a first start that failed has made: the next one may be with another config."""
        for name in _OURS:
            path = self.path / name
            if name in (self._before or ()):
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        if self._before is None:
            with contextlib.suppress(OSError):  # somebody else has put something there
                self.path.rmdir()

    def abandon(self) -> None:
        """Keep the lock until this process ends: something may still be writing into the folder."""
        self._lock = -1

    def _identify(
        self, config: configs.Config, noise_multiplier: float | None, bandwidth: int | None
    ) -> tuple[Identity, tuple[configs.Change, ...]]:
        fingerprint = configs.fingerprint(config)
        if not self.is_new:
            identity = read_identity(self.path)
            changes = self._compare(config, identity, same=identity.fingerprint == fingerprint)
            renewed = msgspec.structs.replace(identity, fingerprint=fingerprint, base_dir=config.base_dir)
            return renewed, changes
        if self.journal.exists():
            raise StateError(
                f"state folder {self.path} has a journal and no federation.json: restore it from a backup, "
                "or name another folder in federation.state"
            )
        identity = Identity(
            format=FORMAT,
            id=secrets.token_hex(16),
            fingerprint=fingerprint,
            base_dir=config.base_dir,
            created_at=time.time(),
            noise_multiplier=noise_multiplier,
            bandwidth=bandwidth,
        )
        return identity, ()

    def _compare(
        self, config: configs.Config, identity: Identity, *, same: bool
    ) -> tuple[configs.Change, ...]:
        path = self.path / "config.toml"
        try:
            text = path.read_text(encoding="utf-8")
            allowed, refused = _differences(text, identity.base_dir, config)
        except (OSError, ConfigError) as error:
            if same:  # nothing that matters differs; the file is written again
                return ()
            raise StateError(f"{path}, the config of the last start, cannot be read: {error}") from error
        if refused:
            listed = "; ".join(str(change) for change in refused)
            raise StateError(
                f"state folder {self.path} belongs to a federation with another config. These keys may not "
                f"change: {listed}. Change them back, or name another folder in federation.state"
            )
        return allowed

    def _secret(self, name: str) -> bytes:
        path = self.path / "keys" / name
        path.parent.mkdir(mode=0o700, exist_ok=True)
        if path.exists():
            key = path.read_bytes()
            if len(key) != KEY_BYTES:
                raise StateError(
                    f"{path} holds {len(key)} bytes, expected {KEY_BYTES}: restore it from a backup"
                )
            return key
        if not self.is_new:
            # A new key would disown every task that is out, or give a version other noise when folded again.
            raise StateError(f"{path} is gone: restore the state folder from a backup")
        key = secrets.token_bytes(KEY_BYTES)
        replace(path, key)
        return key


def _lock(path: Path) -> int:
    """The descriptor of the folder's lock file, which this process holds from now on."""
    while True:
        lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(lock, 32).decode("ascii", "replace").strip()
            os.close(lock)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            raise StateError(
                f"state folder {path} is in use by process {holder or '(unknown)'}; stop that broker first"
            ) from None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), (path / "lock").stat()):
                return lock
        os.close(lock)  # of a start that failed, and took its lock file away meanwhile


def _differences(
    text: str, base_dir: str, config: configs.Config
) -> tuple[tuple[configs.Change, ...], list[configs.Change]]:
    """What differs from the config of the last start: keys that may change, and keys that may not.

    A path is the same when it still names the same file, and also when it was moved together with the
    config's folder.
    """
    moved = configs.changes(configs.parse(text, base_dir=config.base_dir), config)
    old = configs.parse(text, base_dir=base_dir)
    stayed = configs.changes(
        msgspec.structs.replace(old, base_dir=""), msgspec.structs.replace(config, base_dir="")
    )
    neither = {change.key for change in moved[1]}
    return moved[0], [change for change in stayed[1] if change.key in neither]


def read_identity(path: Path) -> Identity:
    """Read the federation.json of a state folder, which needs no lock.

    Raises
    ------
    StateError
        When it is not there, is damaged or of a later format.
    """
    file = path / "federation.json"
    try:
        identity = msgspec.json.decode(file.read_bytes(), type=Identity)
    except FileNotFoundError:
        raise StateError(f"{path} is not the state folder of a broker: it has no federation.json") from None
    except (OSError, msgspec.DecodeError) as error:
        raise StateError(f"{file} cannot be read: {error}") from error
    if identity.format > FORMAT:
        raise StateError(
            f"{file} has format {identity.format}, this version knows {FORMAT}: use a newer fedmq"
        )
    return identity


def replace(path: Path, content: bytes) -> None:
    """Write a small file so that a kill leaves the old or the new content; readable by its owner only."""
    aside = path.with_name(path.name + ".new")
    with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    aside.replace(path)
    sync_folder(path.parent)


def unwritable(path: Path, error: OSError) -> StateError:
    """An I/O error in a state folder as one line that a person can act on."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StateError(f"state folder {path}: the disk is full; make room and start the broker again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StateError(
            f"state folder {path} cannot be written ({error.strerror}): "
            "make it writable for this user, or name another in federation.state"
        )
    return StateError(f"state folder {path} cannot be used: {error}")
