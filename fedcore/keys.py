"""CURVE keys as both sides hold them: as text, in files, and in an invite's token.

A key is 32 bytes and is written in Z85, 40 characters, wherever a person may see it. A pair lies in two files,
each one line: ``NAME.key`` holds the public half, for anybody; ``NAME.secret`` holds the secret half.

Rules that hold here:

- A secret's file is made with mode 0600, and is refused when anybody but its owner can read it.
- No secret stands in a message, whatever went wrong; nor does a text that might be one.
- A file that is there is never overwritten: whoever holds the old half would be locked out without a word.

Making a pair takes libsodium, hence zmq: `fedmq.broker.auth` and `fedmq.worker.transport` do it.
"""

import base64
import binascii
import contextlib
import os
import re
import zlib
from pathlib import Path
from typing import Final

import msgspec

from .errors import ConfigError, StateError

KEY_BYTES: Final = 32
KEY_CHARS: Final = 40
TOKEN_PREFIX: Final = "fedmq-invite-"
NAME_FORM: Final = "1 to 64 letters, digits, '.', '_' and '-', a letter or digit first"

_DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_VALUES: Final = {digit: value for value, digit in enumerate(_DIGITS)}
_FORM: Final = re.compile(f"[{re.escape(_DIGITS)}]{{{KEY_CHARS}}}")
_LAST: Final = frozenset("%$#")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FILE_MAX: Final = 4096
"""Bytes of a key's file, or of a token's, that are looked at."""


class Pair(msgspec.Struct, frozen=True):
    """Both halves of a key, in Z85."""

    public: str
    secret: str

    def __repr__(self) -> str:
        return f"Pair(public={self.public!r}, secret=…)"


class Token(msgspec.Struct, frozen=True):
    """What one invite's token says."""

    server: str
    """The broker's public key."""
    secret: str
    """The secret half of the invite's pair: whoever holds it may register one key."""
    expires_at: float
    """Seconds since 1970, by the broker's clock."""
    connect: str = ""
    """Where the broker listens; empty when that is said otherwise."""
    name: str = ""
    """What the broker's operator calls the worker that this is for."""

    def __repr__(self) -> str:
        return f"Token(server={self.server!r}, secret=…, expires_at={self.expires_at!r})"


def to_text(key: bytes) -> str:
    """A key's 32 bytes in Z85.

    Examples
    --------
    >>> to_text(bytes(32)) == "0" * 40
    True
    """
    if len(key) != KEY_BYTES:
        raise ValueError(f"a key is {KEY_BYTES} bytes, not {len(key)}")
    text = ""
    for start in range(0, KEY_BYTES, 4):
        number = int.from_bytes(key[start : start + 4], "big")
        text += "".join(_DIGITS[number // 85**power % 85] for power in (4, 3, 2, 1, 0))
    return text


def to_bytes(text: str) -> bytes:
    """The 32 bytes of a key in Z85.

    Raises
    ------
    ValueError
        When the text is no key.

    Examples
    --------
    >>> to_bytes(to_text(bytes(range(32)))) == bytes(range(32))
    True
    """
    if not is_key(text):
        raise ValueError(f"a key is {KEY_CHARS} characters of Z85, not {len(text)} of anything")
    return b"".join(_number(text[start : start + 5]).to_bytes(4, "big") for start in range(0, KEY_CHARS, 5))


def is_key(text: str) -> bool:
    """Whether a text is a key in Z85."""
    if not _FORM.fullmatch(text):
        return False
    # Only groups that begin with one of the last digits can be more than four bytes hold.
    return not _LAST.intersection(text[::5]) or all(
        _number(text[start : start + 5]) < 2**32 for start in range(0, KEY_CHARS, 5)
    )


def check_name(name: str) -> str:
    """The name of a key, or ConfigError: it becomes a file's, and stands in lists that are read line by line."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} cannot be a key's name; it may hold {NAME_FORM}")
    return name


def write_pair(folder: Path, name: str, pair: Pair) -> None:
    """Write ``NAME.secret`` and ``NAME.key``, the folder with them where there is none.

    Raises
    ------
    ConfigError
        When one of them is there already.
    StateError
        When they cannot be written.
    """
    check_name(name)
    secret, public = folder / f"{name}.secret", folder / f"{name}.key"
    for path in (secret, public):
        if path.exists():
            raise ConfigError(
                f"{path} is there already; another pair would lock out whoever knows this one: choose "
                "another name or folder, or take the old files away"
            )
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_text(secret, f"{pair.secret}\n", 0o600)
        write_text(public, f"{pair.public}\n", 0o644)
    except OSError as error:
        raise StateError(f"{folder}: keys cannot be written there: {error.strerror}") from error


def write_text(path: Path, text: str, mode: int) -> None:
    """Write a small file so that it is there whole or not at all, durably.

    What root writes belongs to whoever owns the old file, or the folder: a broker reads what its operator wrote.
    """
    aside = path.with_name(path.name + ".new")
    with contextlib.suppress(FileNotFoundError):
        aside.unlink()  # of a process that was killed; its mode may be another
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
        if os.geteuid() == 0:
            owner = (path if path.exists() else path.parent).stat()
            os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_public(source: str | os.PathLike[str]) -> str:
    """A public key: the text itself, a ``.key`` file that holds it, or a folder with one in it.

    Of a folder it is ``worker.key``, as in a worker's state folder, or else ``broker.key``.

    Raises
    ------
    ConfigError
        When it is none of these, or names a secret.
    """
    text = os.fspath(source)
    if is_key(text):
        return text
    path = Path(text).expanduser()
    if path.is_dir():
        inside = next((f for f in (path / "worker.key", path / "broker.key") if f.is_file()), None)
        if inside is None:
            raise ConfigError(f"{path} is a folder without a worker.key or broker.key")
        path = inside
    if path.suffix == ".secret":
        raise ConfigError(f"{path} is a secret; what is asked for is its public half, {path.stem}.key")
    try:
        with path.open("rb") as file:
            line = file.read(_FILE_MAX).decode("ascii", "replace").strip()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no path"
        # The text may be a key with a slip of the finger in it; the wrong half of one must not be shown.
        shown = path if isinstance(error, OSError) and len(text) != KEY_CHARS else "what was given"
        raise ConfigError(
            f"{shown} is neither a public key ({KEY_CHARS} characters of Z85) nor a file with one: {reason}"
        ) from None
    if not is_key(line):
        raise ConfigError(f"{path} holds no public key: one is a line of {KEY_CHARS} characters of Z85")
    return line


def read_secret(path: Path) -> str:
    """The secret key in a file that only its owner can read.

    Raises
    ------
    ConfigError
        When it is not there, holds no key, or others can read it.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            line = file.read(_FILE_MAX).decode("ascii", "replace").strip()
    except OSError as error:
        raise ConfigError(f"{path}, a secret key, cannot be read: {error.strerror}") from None
    if mode & 0o077:
        raise ConfigError(
            f"{path} is a secret key that others can read (mode {mode:04o}): where somebody may have, make a "
            f"new pair; else give it back to its owner with: chmod 600 {path}"
        )
    if not is_key(line):
        raise ConfigError(f"{path} holds no secret key: one is a line of {KEY_CHARS} characters of Z85")
    return line


def to_token(token: Token) -> str:
    """An invite as one text that survives a shell, a chat and a double click."""
    body = msgspec.msgpack.encode(
        (
            to_bytes(token.server),
            to_bytes(token.secret),
            int(token.expires_at),
            token.connect,
            token.name,
        )
    )
    whole = body + zlib.crc32(body).to_bytes(4, "big")
    return TOKEN_PREFIX + base64.urlsafe_b64encode(whole).rstrip(b"=").decode()


def read_token(source: str | os.PathLike[str]) -> Token:
    """What an invite's token says: the text itself, or a file that holds it.

    Raises
    ------
    ConfigError
        When it is neither, or was damaged on its way.
    """
    text = os.fspath(source).strip()
    if not text.startswith(TOKEN_PREFIX):
        try:
            text = Path(text).expanduser().read_bytes()[:_FILE_MAX].decode("ascii", "replace").strip()
        except (OSError, ValueError):
            text = ""
        if not text.startswith(TOKEN_PREFIX):
            raise ConfigError(
                f'an invite is a text that begins with "{TOKEN_PREFIX}", or a file that holds one, as '
                '"fedmq keys invite" prints it'
            )
    body = text.removeprefix(TOKEN_PREFIX)
    try:
        whole = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
        if zlib.crc32(whole[:-4]).to_bytes(4, "big") != whole[-4:]:
            raise ValueError("checksum")
        server, secret, expires_at, connect, name = msgspec.msgpack.decode(
            whole[:-4], type=tuple[bytes, bytes, int, str, str]
        )
        return Token(to_text(server), to_text(secret), float(expires_at), connect, name)
    except (ValueError, binascii.Error, msgspec.DecodeError):
        raise ConfigError(
            "this invite is damaged: paste it whole, from its first letter to its last"
        ) from None


def _number(group: str) -> int:
    number = 0
    for digit in group:
        number = number * 85 + _VALUES[digit]
    return number
