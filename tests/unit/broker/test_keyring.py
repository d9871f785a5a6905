"""The broker's folder of keys: lists that survive a kill, and invites that register one key once."""

import os
from pathlib import Path

import pytest

from fedmq.broker import keyring
from fedmq.broker.keyring import Invite, KeyRing
from fedmq.fedcore.errors import ConfigError, StateError
from fedmq.fedcore.keys import to_text

A, B, C, INVITE, OTHER = (to_text(bytes([number]) * 32) for number in range(1, 6))
NOW = 1_000_000.0


@pytest.fixture
def ring(tmp_path: Path) -> KeyRing:
    ring = KeyRing(tmp_path / "keys")
    ring.invite(Invite(INVITE, NOW + 3600, name="ward-3"), NOW)
    return ring


class Killed(BaseException):
    """As if the process died."""


def killed_at(monkeypatch: pytest.MonkeyPatch, write: int) -> None:
    """Die instead of the n-th write of a list (from 0), counted from now."""
    real, count = keyring.write_text, 0

    def write_text(path: Path, text: str, mode: int) -> None:
        nonlocal count
        count += 1
        if count > write:
            raise Killed
        real(path, text, mode)

    monkeypatch.setattr(keyring, "write_text", write_text)


def test_allowed_keys_have_names(ring: KeyRing) -> None:
    """One name is one key's; what is there already is no news."""
    assert ring.allow(A, "a")
    assert not ring.allow(A, "a")
    assert ring.allow(B, "b")
    assert ring.allowed() == {A: "a", B: "b"}
    with pytest.raises(ConfigError, match="name of another key"):
        ring.allow(C, "a")
    assert ring.allowlist.stat().st_mode & 0o777 == 0o600


def test_comments_stay(ring: KeyRing) -> None:
    """Whoever edits by hand finds his words again."""
    ring.allowlist.write_text(f"# the wards\n\n{A} a\n#{A} gone\n  {C}   two words \n")
    assert ring.allowed() == {A: "a", C: "two words"}
    ring.allow(B, "b")
    ring.revoke("a")
    assert ring.allowlist.read_text() == f"# the wards\n\n#{A} gone\n  {C}   two words \n{B} b\n"


def test_no_key_looks_like_a_comment() -> None:
    """The largest one begins with another letter: # is the last digit of Z85, and four bytes do not reach it."""
    assert to_text(b"\xff" * 32)[0] == "%"


def test_what_mode_and_place_a_list_has_it_keeps(tmp_path: Path) -> None:
    """A group may read it where its operator said so; it may lie elsewhere."""
    ring = KeyRing(tmp_path / "keys", tmp_path / "elsewhere")
    ring.allow(A, "a")
    ring.allowlist.chmod(0o640)
    ring.allow(B, "b")
    assert ring.allowlist.stat().st_mode & 0o777 == 0o640
    assert ring.allowlist == tmp_path / "elsewhere"


@pytest.mark.parametrize(
    ("text", "reason"),
    [(f"{A} a\nward-3\n", "line 2"), (f"{A} a\n{B} b\n{A} c\n", "line 3"), ("-\n", "line 1")],
)
def test_a_broken_line_is_named(ring: KeyRing, text: str, reason: str) -> None:
    """No line is guessed at."""
    ring.allowlist.write_text(text)
    with pytest.raises(ConfigError, match=reason):
        ring.allowed()


@pytest.mark.parametrize(
    "line", [INVITE, f"{INVITE} x open - w", f"{INVITE} 1 gone - w", f"{INVITE} 1 used x w"]
)
def test_a_broken_invite_is_named(ring: KeyRing, line: str) -> None:
    """Nor is one of these."""
    ring.invitations.write_text(f"{line}\n")
    with pytest.raises(ConfigError, match="line 1, is no invite"):
        ring.invites()


def test_lists_that_cannot_be_read_or_written_say_so(ring: KeyRing) -> None:
    """A folder in the place of a file."""
    ring.allowlist.mkdir()
    with pytest.raises(StateError, match="cannot be read"):
        ring.allowed()
    ring.allowlist.rmdir()
    ring.allowlist.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        ring.allowed()


@pytest.mark.parametrize("who", [A, "a"])
def test_revoking_is_by_key_or_by_name(ring: KeyRing, who: str) -> None:
    """Nobody else is touched."""
    ring.allow(A, "a")
    ring.allow(B, "b")
    assert ring.revoke(who) == ({A: "a"}, [])
    assert ring.revoke(who) == ({}, [])
    assert ring.allowed() == {B: "b"}


def test_an_open_invite_is_withdrawn_by_its_name(ring: KeyRing) -> None:
    """As a key is revoked."""
    gone, withdrawn = ring.revoke("ward-3")
    assert (gone, [invite.key for invite in withdrawn]) == ({}, [INVITE])
    assert ring.register(INVITE, A, NOW) == "this invite has expired, or was withdrawn"


def test_an_invite_registers_one_key(ring: KeyRing) -> None:
    """The first one; the same may ask again, and gets the same answer."""
    assert ring.register(INVITE, A, NOW) == ""
    assert ring.register(INVITE, A, NOW + 1) == ""
    assert "another key already" in ring.register(INVITE, B, NOW + 1)
    assert ring.allowed() == {A: "ward-3"}
    assert ring.invites()[INVITE] == Invite(INVITE, NOW + 3600, "used", A, "ward-3")


@pytest.mark.parametrize(("invite", "at"), [(OTHER, NOW), (INVITE, NOW + 3600), (INVITE, NOW + 1e6)])
def test_what_is_unknown_or_expired_registers_nothing(ring: KeyRing, invite: str, at: float) -> None:
    """To the second."""
    assert "expired" in ring.register(invite, A, at)
    assert ring.allowed() == {}


@pytest.mark.parametrize("write", [0, 1, 2])
def test_a_kill_in_between_leaves_the_invite_to_its_key(
    ring: KeyRing, monkeypatch: pytest.MonkeyPatch, write: int
) -> None:
    """Before anything was written it is anybody's still; after that it is the first one's, who gets through."""
    with monkeypatch.context() as patch:
        killed_at(patch, write)
        with pytest.raises(Killed):
            ring.register(INVITE, A, NOW)
    if write > 0:
        assert "another key already" in ring.register(INVITE, B, NOW)
    assert ring.register(INVITE, A, NOW) == ""
    assert ring.allowed() == {A: "ward-3"}


@pytest.mark.parametrize("write", [0, 1])
def test_a_kill_while_revoking_lets_nobody_back_in(
    ring: KeyRing, monkeypatch: pytest.MonkeyPatch, write: int
) -> None:
    """Done again, it is done; the invite never outlives the key."""
    ring.register(INVITE, A, NOW)
    with monkeypatch.context() as patch:
        killed_at(patch, write)
        with pytest.raises(Killed):
            ring.revoke("ward-3")
    assert A in ring.allowed()
    ring.revoke("ward-3")
    assert "expired, or was withdrawn" in ring.register(INVITE, A, NOW)
    assert ring.allowed() == {}


def test_a_key_that_was_taken_off_by_hand_stays_off(ring: KeyRing) -> None:
    """Its invite does not put it back."""
    ring.register(INVITE, A, NOW)
    ring.allowlist.write_text("")
    assert ring.register(INVITE, A, NOW) == "this key was revoked"
    assert ring.allowed() == {}


def test_an_invites_own_key_is_no_workers(ring: KeyRing) -> None:
    """Its secret was in the token, and so perhaps in many hands."""
    assert "an invite's own key" in ring.register(INVITE, INVITE, NOW)
    assert ring.invites()[INVITE].claim == "open"


def test_a_name_that_was_given_away_meanwhile(ring: KeyRing) -> None:
    """The invite stays open, for when the operator has made room."""
    ring.allow(B, "ward-3")
    assert "name of another key" in ring.register(INVITE, A, NOW)
    ring.revoke(B)
    assert ring.register(INVITE, A, NOW) == ""


def test_one_invite_a_name(ring: KeyRing) -> None:
    """While it has not expired; and none for a name that a key has."""
    with pytest.raises(ConfigError, match="invite for ward-3 already"):
        ring.invite(Invite(OTHER, NOW + 10, name="ward-3"), NOW)
    ring.allow(A, "a")
    with pytest.raises(ConfigError, match="name of another key"):
        ring.invite(Invite(OTHER, NOW + 10, name="a"), NOW)
    ring.invite(Invite(OTHER, NOW + 7200, name="ward-3"), NOW + 3600)
    assert list(ring.invites()) == [OTHER], "an expired one is still there"


def test_a_key_that_was_allowed_by_hand_may_enroll(ring: KeyRing) -> None:
    """It keeps the name that it has, and the invite is used."""
    ring.allow(A, "by-hand")
    assert ring.register(INVITE, A, NOW) == ""
    assert ring.allowed() == {A: "by-hand"}
    assert "another key already" in ring.register(INVITE, B, NOW)


def test_two_processes_lose_nothing(tmp_path: Path) -> None:
    """The command line and the broker change a list at the same time: every line is there."""
    ring = KeyRing(tmp_path)
    keys = [to_text(os.urandom(32)) for _ in range(30)]
    children = []
    for start in range(3):
        pid = os.fork()
        if pid == 0:
            for key in keys[start::3]:
                KeyRing(tmp_path).allow(key, f"w{keys.index(key)}")
            os._exit(0)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]
    assert ring.allowed() == {key: f"w{number}" for number, key in enumerate(keys)}
