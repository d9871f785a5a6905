"""The broker's folder of keys: its own pair, the workers that may connect, and invites for those that may join.

::

    broker.key       the broker's public key, for every worker
    broker.secret    its secret half (0600)
    allowlist        one worker a line: its public key, and a name for people
    invites          one invite a line: its public key, when it expires, what became of it, and a name

Rules that hold here:

- The lists are text, replaced whole (written aside, fsynced, renamed), and changed under a lock on the folder:
  the command line and the broker may both write. A line that begins with # is a comment, and stays.
- An invite registers one key. It is *claimed* by that key before the key is on the allowlist and *used* after
  it, so that whatever dies in between, the same key gets through and no other does.
- What is revoked stays revoked: an invite that a key came by goes with it.
- Of an invite the broker holds the public half only. Who reads this folder cannot join by it.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from fedmq.fedcore.config import Security
from fedmq.fedcore.errors import ConfigError, StateError
from fedmq.fedcore.keys import check_name, is_key, read_public, read_secret, write_text

NAME = "broker"
"""Of the broker's own pair."""
Claim = Literal["open", "claimed", "used"]


class Invite(msgspec.Struct, frozen=True):
    """A line of `invites`."""

    key: str
    """The public half of its pair."""
    expires_at: float
    """Seconds since 1970."""
    claim: Claim = "open"
    by: str = ""
    """The key that it registered, or is registering; empty while it is open."""
    name: str = ""


class KeyRing:
    """A folder of keys.

    Parameters
    ----------
    folder : Path
        Where the keys lie.
    allowlist : Path, optional
        A list that lies elsewhere.
    """

    def __init__(self, folder: Path, allowlist: Path | None = None) -> None:
        self.folder = folder
        self.allowlist = allowlist or folder / "allowlist"
        self.invitations = folder / "invites"

    @classmethod
    def of(cls, security: Security) -> "KeyRing":
        """The one that a config names."""
        return cls(Path(security.keys), Path(security.allowlist) if security.allowlist else None)

    @property
    def public(self) -> str:
        """The broker's public key, or ConfigError with what makes one."""
        try:
            return read_public(self.folder / f"{NAME}.key")
        except ConfigError as error:
            raise ConfigError(f"{error}; {self._remedy()}") from None

    @property
    def secret(self) -> str:
        """The broker's secret key, or ConfigError with what makes one."""
        path = self.folder / f"{NAME}.secret"
        if not path.exists():
            raise ConfigError(f"{self.folder} holds no {NAME}.secret; {self._remedy()}")
        return read_secret(path)

    def allowed(self) -> dict[str, str]:
        """The keys on the allowlist, each with its name; none where there is no file.

        Raises
        ------
        ConfigError
            When a line is no key, by its number.
        StateError
            When the file cannot be read.
        """
        return parse_allowlist(_read(self.allowlist), self.allowlist)

    def invites(self) -> dict[str, Invite]:
        """All invites that are still remembered, by their keys; raises as `allowed` does."""
        return parse_invites(_read(self.invitations), self.invitations)

    def allow(self, key: str, name: str) -> bool:
        """Put a key on the allowlist; False when it stood there already.

        Raises
        ------
        ConfigError
            When the name is another key's.
        """
        check_name(name)
        with self._locked():
            return self._allow(key, name)

    def revoke(self, who: str) -> tuple[dict[str, str], list[Invite]]:
        """Take a key off the allowlist, by the key or its name, and invites of that name or that it came by.

        Returns
        -------
        keys : dict
            Those that were taken off, with their names.
        invites : list of Invite
            Open ones that were withdrawn.
        """
        with self._locked():
            allowed, invites = self.allowed(), self.invites()
            gone = {key: name for key, name in allowed.items() if who in (key, name)}
            stale = [i for i in invites.values() if who in (i.key, i.name, i.by) or i.by in gone]
            # First: an invite that outlived its key could put it back.
            if stale:
                self._write_invites({key: i for key, i in invites.items() if i not in stale})
            if gone:
                lines = _read(self.allowlist).splitlines()
                _write(self.allowlist, [line for line in lines if _key_of(line) not in gone])
        return gone, [invite for invite in stale if invite.claim == "open"]

    def invite(self, invite: Invite, now: float) -> None:
        """Remember an invite, and forget those that have expired by `now` (seconds since 1970)."""
        check_name(invite.name)
        with self._locked():
            self._free_for(invite.name, invite.key)
            invites = self.invites()
            if any(other.name == invite.name and other.expires_at > now for other in invites.values()):
                raise ConfigError(f"there is an invite for {invite.name} already; revoke it first")
            kept = {key: other for key, other in invites.items() if other.expires_at > now}
            self._write_invites({**kept, invite.key: invite})

    def register(self, invite: str, key: str, now: float) -> str:
        """Let an invite put a key on the allowlist, once.

        Returns
        -------
        str
            Why not; empty when the key is registered, durably.
        """
        with self._locked():
            invites = self.invites()
            found = invites.get(invite)
            if found is None or found.expires_at <= now:
                return "this invite has expired, or was withdrawn"
            if found.claim != "open" and found.by != key:
                return "this invite has registered another key already; it can do so once"
            if found.claim == "used":
                return "" if key in self.allowed() else "this key was revoked"
            if key in invites:
                return "an invite's own key cannot become a worker's"
            claimed = msgspec.structs.replace(found, claim="claimed", by=key)
            self._write_invites({**invites, invite: claimed})
            try:
                self._allow(key, found.name)
            except ConfigError as error:  # the name was given away meanwhile
                self._write_invites({**invites, invite: found})
                return str(error)
            self._write_invites({**invites, invite: msgspec.structs.replace(claimed, claim="used")})
            return ""

    def _allow(self, key: str, name: str) -> bool:
        if key in self.allowed():
            return False
        self._free_for(name, key)
        _write(self.allowlist, [*_read(self.allowlist).splitlines(), f"{key} {name}"])
        return True

    def _free_for(self, name: str, key: str) -> None:
        other = next((k for k, n in self.allowed().items() if n == name and k != key), None)
        if other is not None:
            raise ConfigError(
                f"{name} is the name of another key on the allowlist; revoke that, or choose another"
            )

    def _write_invites(self, invites: dict[str, Invite]) -> None:
        _write(
            self.invitations,
            [f"{i.key} {i.expires_at:.0f} {i.claim} {i.by or '-'} {i.name}" for i in invites.values()],
        )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """While this is held nobody else changes a list."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self.folder, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise StateError(f"{self.folder} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _remedy(self) -> str:
        return f"make the broker's keys with: fedmq keys new {NAME} --dir {self.folder}"


def parse_allowlist(text: str, path: Path) -> dict[str, str]:
    """The lines of an allowlist: a key, and the rest of the line is a name."""
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        key = _key_of(line)
        if key is None:
            continue
        if not is_key(key):
            raise ConfigError(
                f"{path}, line {number}, begins with no key: a line is a public key, a space and a name, or a "
                "comment that begins with #"
            )
        if key in found:
            raise ConfigError(f"{path}, line {number}, holds a key that stands in an earlier line")
        found[key] = line.strip().removeprefix(key).strip()
    return found


def _key_of(line: str) -> str | None:
    """The first word of a line of the allowlist; None of an empty one or a comment (no key begins with #)."""
    words = line.split(maxsplit=1)
    return None if not words or words[0].startswith("#") else words[0]


def parse_invites(text: str, path: Path) -> dict[str, Invite]:
    """The lines of `invites`."""
    found: dict[str, Invite] = {}
    for number, line in enumerate(text.splitlines(), 1):
        match line.split(" "):
            case [key, seconds, ("open" | "claimed" | "used") as claim, by, name] if (
                is_key(key) and seconds.isdigit() and (is_key(by) or by == "-")
            ):
                found[key] = Invite(key, float(seconds), claim, by if by != "-" else "", name)
            case _:
                raise ConfigError(f"{path}, line {number}, is no invite: restore the file, or delete it")
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text") from None
    except OSError as error:
        raise StateError(f"{path} cannot be read: {error.strerror}") from error


def _write(path: Path, lines: list[str]) -> None:
    try:
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
        write_text(path, "".join(f"{line}\n" for line in lines), mode)
    except OSError as error:
        raise StateError(f"{path} cannot be written: {error.strerror}") from error
