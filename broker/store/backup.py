"""A consistent copy of a state folder, whether or not a broker runs on it.

What makes it consistent: one snapshot of the journal decides, and everything that it names is held open before
anything is copied, because the broker collects files that it needs no longer. Rules that hold here:

- The copy is whole or not there: it is written aside, made durable, and renamed.
- A file is copied with its mode, and what the journal says of it (size, digest) is checked on the way.
- The current version, the optimizer's state, the payloads that are in no version yet and, for FedAsync, the versions
  that these were trained from must be in it. One that was collected before it could be opened means that the journal
  has moved on: it is taken again, a few times.
- Nothing in the state folder is written, and the broker is never kept waiting.

Restoring is starting a broker on the copy. What that forgets is everything after `Summary.taken_at`: that cannot be
helped, only said, here and by the broker that is first started on it (`announce`).
"""

import contextlib
import json
import os
import re
import resource
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from fedmq.fedcore import config as configs
from fedmq.fedcore.errors import ConfigError, StateError
from fedmq.fedcore.strategy import optimizers

from . import schema
from .copying import Collected, Files
from .state import read_identity
from .versions import sync_folder, versions_in

__all__ = ["NOTE", "Summary", "announce", "backup"]

NOTE: Final = "backup.json"
"""What a copy says of itself, until a broker is started on it."""
ATTEMPTS: Final = 10
_PAGES: Final = 256
"""Of the journal, between two reports of progress."""
_NOT_COPIED: Final = frozenset(
    {
        "lock",
        "endpoint",
        "control.sock",
        "journal.db",
        "journal.db-wal",
        "journal.db-shm",
        "spool",
        "versions",
        NOTE,
    }
)
"""Of a running process, or copied with more care than the rest: what else lies in the folder is copied as it is."""

_REQUIRED: Final = ("federation.json", "config.toml", "keys/mac", "keys/noise")
_HEX: Final = re.compile("(?:[0-9a-f]{2})+")

Progress = Callable[[int, int], None]
"""Called with the bytes that are copied, and how many there are."""


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What a copy holds.

    Attributes
    ----------
    federation, id
        Whose it is.
    taken_at : float
        Wall-clock seconds: what the journal said at that moment is in the copy.
    version : int or None
        The current version; None before there is one.
    waiting : int
        Accepted updates that are in no version yet.
    updates : int
        Updates that were ever accepted.
    privacy_steps, privacy_planned : int or None
        Releases that had been spent, of how many; None without privacy.
    size : int
        Bytes of the copy.
    missed_versions, missed_updates : int
        What the broker made and accepted while it was copied, and is not in it.
    """

    federation: str
    id: str
    taken_at: float
    version: int | None
    waiting: int
    updates: int
    privacy_steps: int | None
    privacy_planned: int | None
    size: int = 0
    missed_versions: int = 0
    missed_updates: int = 0


def backup(
    state: str | Path,
    out: str | Path,
    *,
    progress: Progress | None = None,
    wall: Callable[[], float] = time.time,
) -> Summary:
    """Copy a state folder.

    Parameters
    ----------
    state : path
        The state folder; its broker may be running.
    out : path
        The copy. A folder that is there must be empty.
    progress : callable, optional
        Told how far it is.

    Raises
    ------
    ConfigError
        When `out` is there and not empty, or lies in the state folder.
    StateError
        When `state` is no state folder, is damaged, changes faster than it can be copied, or the disk refuses.
    """
    state, out = Path(state).resolve(), Path(out).resolve()
    identity = read_identity(state)
    _check_target(state, out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise _refused(state, out, error) from error
    try:
        _raise_descriptor_limit()
        taken = _take(state, aside, progress or (lambda done, total: None), wall)
        summary = msgspec.structs.replace(taken, id=identity.id, **_missed(state, taken))
        (aside / NOTE).write_text(json.dumps(msgspec.to_builtins(summary), indent=1) + "\n", encoding="utf-8")
        _sync(aside)
        aside.rename(out)
        sync_folder(out.parent)
        return summary
    except sqlite3.Error as error:
        raise schema.unusable(state / "journal.db", error) from error
    except OSError as error:
        raise _refused(state, out, error) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def announce(state: Path) -> Summary | None:
    """What a copy that a broker was started on said of itself; asked for again it says nothing.

    A note that cannot be read is taken away all the same: it is there for people alone.
    """
    note = state / NOTE
    try:
        content = note.read_bytes()
    except FileNotFoundError:
        return None
    note.unlink()
    with contextlib.suppress(msgspec.DecodeError):
        return msgspec.json.decode(content, type=Summary)
    return None


def _check_target(state: Path, out: Path) -> None:
    if out == state or out.is_relative_to(state):
        raise ConfigError(
            f"{out} lies in the state folder {state}; a copy belongs elsewhere, best on another disk"
        )
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ConfigError(f"{out} is there already and is no empty folder; name another, or remove it")
    except OSError as error:
        raise ConfigError(f"{out} cannot be read: {error.strerror}") from error


def _take(state: Path, aside: Path, progress: Progress, wall: Callable[[], float]) -> Summary:
    """Try until a snapshot's files are all there."""
    before: int | None = -1
    for _ in range(ATTEMPTS):
        try:
            return _copy(state, aside, progress, wall)
        except Collected as collected:
            if collected.version == before:  # nothing was made since, so nobody has collected it
                raise StateError(
                    f"{collected.path} is missing, but the journal needs it: the state folder is damaged; restore it "
                    "from a backup"
                ) from None
            before = collected.version
            for left in aside.iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
    raise StateError(
        f"the broker on {state} makes versions faster than they can be copied: pause it for the moment (fedmq pause), "
        "or raise storage.keep"
    )


def _copy(state: Path, aside: Path, progress: Progress, wall: Callable[[], float]) -> Summary:
    """Copy what one snapshot of the journal says."""
    with contextlib.ExitStack() as stack:
        journal = schema.open_reader(state / "journal.db", oldest=1)
        stack.callback(journal.close)
        # Until this transaction ends the connection sees one moment, the copy of the journal included.
        journal.execute("BEGIN")
        summary = _summary(journal, state, wall())
        found = Files(state, summary.version)
        stack.callback(found.close)
        _find(journal, state, summary.version, found)
        (pages,), (page,) = (
            journal.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "page_size")
        )
        total = pages * page + sum(file.size for file in found.files)
        for name in ("versions", "spool"):
            (aside / name).mkdir(mode=0o700)
        _copy_journal(journal, state, aside, lambda left: progress((pages - left) * page, total))
        done = pages * page

        def moved(count: int) -> None:
            nonlocal done
            done += count
            progress(done, max(total, done))

        for file in found.files:
            folder = (aside / file.name).parent
            folder.mkdir(mode=file.source.parent.stat().st_mode & 0o777, parents=True, exist_ok=True)
            try:
                file.copy(aside, moved)
            except FileNotFoundError:
                if file.needed:
                    raise found.collected(file.name) from None
    size = sum(path.stat().st_size for path in aside.rglob("*") if path.is_file())
    return msgspec.structs.replace(summary, size=size)


def _summary(journal: sqlite3.Connection, state: Path, now: float) -> Summary:
    settings = configs.load(state / "config.toml")
    private = settings.privacy
    query = "SELECT max(version), coalesce(sum(privacy_steps), 0) FROM versions"
    version, steps = journal.execute(query).fetchone()
    count = "SELECT count(*) FROM updates"
    return Summary(
        federation=settings.federation.name,
        id="",
        taken_at=now,
        version=version,
        # Buffer b builds on version b: what is in this one and later ones is in no version yet.
        waiting=journal.execute(f"{count} WHERE buffer >= ?", (version or 0,)).fetchone()[0],
        updates=journal.execute(count).fetchone()[0],
        privacy_steps=None if private is None else steps,
        privacy_planned=private.steps
        if isinstance(private, configs.Privacy | configs.SampledPrivacy)
        else None,
    )


def _find(journal: sqlite3.Connection, state: Path, current: int | None, found: Files) -> None:
    """Everything that the snapshot names: what is collected soonest first."""
    payload = "SELECT task, size, digest FROM updates WHERE NOT inlined"
    if current is not None:
        settings = configs.load(state / "config.toml")
        for slot in optimizers.make(settings.optimizer).slots if current else ():
            found.need(f"versions/v{current:08d}.{slot}.f32")
        about = {row[0]: row[1:] for row in journal.execute("SELECT version, size, digest FROM versions")}
        found.need(f"versions/v{current:08d}.safetensors", *about.pop(current))
        bases = "SELECT DISTINCT base FROM updates WHERE buffer >= ? AND base < ?"
        for (base,) in journal.execute(bases, (current, current)) if settings.reach else ():
            found.need(f"versions/v{base:08d}.safetensors", *about.pop(base))
        for task, size, digest in journal.execute(f"{payload} AND buffer >= ?", (current,)):
            found.need(f"spool/{task.hex()}", size, digest)
        for version in reversed(versions_in(state / "versions")):
            if version in about:
                found.take(f"versions/v{version:08d}.safetensors", *about[version])
    held = {file.name for file in found.files}
    for path in sorted((state / "spool").iterdir()):  # those that storage.keep_payloads keeps
        name = f"spool/{path.name}"
        if name not in held and _HEX.fullmatch(path.name):
            for _, size, digest in journal.execute(f"{payload} AND task = ?", (bytes.fromhex(path.name),)):
                found.take(name, size, digest)
    for name in _REQUIRED:
        found.need(name)
    for path in _others(state):
        found.take(path.relative_to(state).as_posix())


def _others(state: Path) -> Iterator[Path]:
    """Whatever else a release keeps there: plain files alone, and not half-written."""
    for entry in sorted(state.iterdir()):
        if entry.name in _NOT_COPIED or entry.name.startswith("initial-"):
            continue
        for path in sorted(entry.rglob("*")) if entry.is_dir() else [entry]:
            required = path.relative_to(state).as_posix() in _REQUIRED
            if path.is_file() and not required and not path.name.endswith(".new"):
                yield path


def _copy_journal(journal: sqlite3.Connection, state: Path, aside: Path, left: Callable[[int], None]) -> None:
    target = aside / "journal.db"
    # Made first, for its mode: who reads it reads every update.
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    copy = sqlite3.connect(target, isolation_level=None)
    try:
        journal.backup(copy, pages=_PAGES, progress=lambda status, remaining, total: left(remaining))
    finally:
        copy.close()
    target.chmod((state / "journal.db").stat().st_mode & 0o777)


def _missed(state: Path, taken: Summary) -> dict[str, int]:
    """What happened since the snapshot."""
    with contextlib.closing(schema.open_reader(state / "journal.db", oldest=1)) as journal:
        now = _summary(journal, state, taken.taken_at)
    before, after = (-1 if s.version is None else s.version for s in (taken, now))
    return {"missed_versions": after - before, "missed_updates": now.updates - taken.updates}


def _refused(state: Path, out: Path, error: OSError) -> StateError:
    where = f" at {error.filename}" if error.filename else ""
    return StateError(f"{state} cannot be copied to {out}: {error.strerror or error}{where}")


def _sync(folder: Path) -> None:
    """Make everything in a folder durable: the small files, and all names."""
    for path in folder.rglob("*"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    sync_folder(folder)


def _raise_descriptor_limit() -> None:
    """Each file is held open until it is copied."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
