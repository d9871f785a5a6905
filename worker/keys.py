"""The worker's keys, in its state folder: its own pair, made at first use, and which broker it talks to.

    STATE/worker.key       this worker's public key: for the operator to allow
    STATE/worker.secret    its secret half (0600); it never leaves
    STATE/broker.key       the broker's public key, once there was one

A worker that has talked to a broker with keys never talks to one without: `broker.key` is what it expects from
then on, whatever it is started with. Loaded by workers that have keys, and by nobody else.
"""

import logging
import time
from pathlib import Path

import msgspec

from fedmq.fedcore.errors import StateError
from fedmq.fedcore.keys import Pair, Token, read_public, read_secret, to_bytes, write_pair, write_text

from .transport import CurveKeys, new_pair, public_of

log = logging.getLogger("fedmq.worker")

NAME = "worker"


class Credentials(msgspec.Struct, frozen=True):
    """What a worker connects with."""

    own: CurveKeys
    public: bytes
    """Its own public key, as ENROLL says it."""
    invite: tuple[CurveKeys, str] | None
    """The pair that registers the first one, where it was invited, and until when it does, in words."""
    is_new: bool
    """Whether the pair was made just now, so that no broker can know it."""


def load(folder: Path, server: str | None, token: Token | None) -> Credentials | None:
    """What a state folder's worker connects with; None when it has no keys and needs none.

    Parameters
    ----------
    folder : Path
        The state folder, which exists.
    server : str, optional
        The broker's public key.
    token : Token, optional
        An invite, which says the broker's key as well.

    Raises
    ------
    ConfigError
        When the secret can be read by others.
    StateError
        When the keys cannot be written.
    """
    known = folder / "broker.key"
    wanted = server if token is None else token.server
    if wanted is None:
        if not known.exists():
            return None
        wanted = read_public(known)
    try:
        if token is not None or server is not None:
            _write(known, wanted)
        pair, is_new = _own(folder)
    except OSError as error:
        raise StateError(f"keys cannot be written into {folder}: {error.strerror}") from error
    log.info("key loaded", extra={"key": pair.public, "new": is_new})
    own = CurveKeys(wanted, pair.public, pair.secret)
    invite = None
    if token is not None:
        until = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(token.expires_at))
        invite = CurveKeys(wanted, public_of(token.secret), token.secret), until
    return Credentials(own, to_bytes(pair.public), invite, is_new)


def _own(folder: Path) -> tuple[Pair, bool]:
    secret = folder / f"{NAME}.secret"
    if not secret.exists():
        (folder / f"{NAME}.key").unlink(missing_ok=True)  # of no use without its other half
        pair = Pair(*new_pair())
        write_pair(folder, NAME, pair)
        return pair, True
    text = read_secret(secret)
    pair = Pair(public_of(text), text)
    _write(folder / f"{NAME}.key", pair.public)  # a kill may have come between the two
    return pair, False


def _write(path: Path, key: str) -> None:
    """Write a public key, unless it stands there."""
    if not path.exists() or path.read_bytes().strip() != key.encode():
        write_text(path, f"{key}\n", 0o644)
