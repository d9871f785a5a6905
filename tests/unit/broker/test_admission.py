"""Lists that change while a broker runs: what counts at once, what has to settle, and what breaks nothing."""

import logging
from pathlib import Path

import pytest

from fedmq.broker.admission import LOOK_S, SETTLE_S, Admission, Roll
from fedmq.broker.keyring import Invite, KeyRing
from fedmq.fedcore.errors import ConfigError
from fedmq.fedcore.keys import to_text

A, B, C, INVITE = (to_text(bytes([number]) * 32) for number in range(1, 5))


class Lists:
    """A key ring, its admission, and the time."""

    def __init__(self, folder: Path) -> None:
        self.ring = KeyRing(folder)
        self.ring.allow(A, "a")
        self.ring.allow(B, "b")
        self.now = 100.0
        self.wall = 5000.0
        self.admission = Admission(self.ring, lambda: self.now, lambda: self.wall)

    def pass_(self, seconds: float) -> None:
        self.now += seconds
        self.admission.look()

    def members(self) -> set[str]:
        return {key for key in (A, B, C) if self.admission.is_member(key)}


@pytest.fixture
def lists(tmp_path: Path) -> Lists:
    return Lists(tmp_path)


def test_what_is_added_counts_at_the_next_look(lists: Lists) -> None:
    """A handshake looks at once, a message only when it is time."""
    lists.ring.allow(C, "c")
    lists.pass_(LOOK_S / 2)
    assert lists.members() == {A, B}
    lists.admission.look(now=True)
    assert lists.members() == {A, B, C}
    assert lists.admission.due() is None


def test_what_is_taken_away_counts_when_it_has_settled(lists: Lists) -> None:
    """Told once; until then it says when to look again."""
    lists.ring.revoke("a")
    lists.pass_(LOOK_S)
    assert lists.members() == {A, B}
    assert lists.admission.due() == lists.now + SETTLE_S
    lists.pass_(SETTLE_S)
    assert lists.members() == {B}
    assert lists.admission.revoked() == [A]
    assert lists.admission.revoked() == []
    assert lists.admission.due() is None


def test_a_file_that_is_being_written_sends_nobody_away(lists: Lists) -> None:
    """Emptied, half written, whole: only what it is at rest counts."""
    path = lists.ring.allowlist
    whole = path.read_text() + f"{C} c\n"
    for content in ("", whole[:50], whole[:90]):
        path.write_text(content)
        lists.pass_(LOOK_S * 0.9)
        lists.admission.look(now=True)
        assert {A, B} <= lists.members()
    path.write_text(whole)
    lists.pass_(LOOK_S)
    lists.pass_(SETTLE_S)
    assert lists.members() == {A, B, C}
    assert lists.admission.revoked() == []


def test_additions_count_although_something_was_taken_away(lists: Lists) -> None:
    """A worker is swapped for another: nobody waits for the rest to settle."""
    lists.ring.allowlist.write_text(f"{A} a\n{C} c\n")
    lists.pass_(LOOK_S)
    assert lists.members() == {A, B, C}
    lists.pass_(SETTLE_S)
    assert lists.members() == {A, C}
    assert lists.admission.revoked() == [B]


@pytest.mark.parametrize("way", ["gone", "broken", "not text"])
def test_a_list_that_cannot_be_read_changes_nothing(
    lists: Lists, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once. Mended, it counts again."""
    path = lists.ring.allowlist
    match way:
        case "gone":
            path.unlink()
        case "broken":
            path.write_text(f"{A} a\nb\n")
        case _:
            path.write_bytes(b"\xff" * 60)
    with caplog.at_level(logging.ERROR, "fedmq.broker"):
        for _ in range(10):
            lists.pass_(1.0)
    assert lists.members() == {A, B}
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    path.write_text(f"{A} a\n")
    lists.pass_(1.0)
    lists.pass_(1.0)
    assert lists.members() == {A}


def test_a_start_with_a_broken_list_ends(lists: Lists) -> None:
    """Then there is no list before it that could go on."""
    lists.ring.allowlist.write_text("b\n")
    with pytest.raises(ConfigError, match="line 1"):
        Admission(lists.ring)


def test_a_start_without_a_list_lets_nobody_in(tmp_path: Path) -> None:
    """The first worker is allowed later."""
    admission = Admission(ring := KeyRing(tmp_path))
    assert admission.count == 0
    ring.allow(A, "a")
    admission.look(now=True)
    assert admission.is_member(A)


def test_guests_come_and_go(lists: Lists) -> None:
    """An invite counts from when it was made until it expires, or was withdrawn; a member is no guest."""
    lists.ring.invite(Invite(INVITE, lists.wall + 60, name="new"), lists.wall)
    assert not lists.admission.is_guest(INVITE)
    lists.pass_(LOOK_S)
    assert lists.admission.is_guest(INVITE)
    assert not lists.admission.is_member(INVITE)
    assert lists.admission.name(INVITE) == "new"
    lists.wall += 60
    assert not lists.admission.is_guest(INVITE)
    lists.wall -= 1
    assert lists.admission.is_guest(INVITE)
    lists.ring.revoke("new")
    lists.pass_(LOOK_S)
    assert not lists.admission.is_guest(INVITE)
    assert not lists.admission.is_guest(A)


def test_broken_invites_change_nothing(lists: Lists, caplog: pytest.LogCaptureFixture) -> None:
    """Those before still count."""
    lists.ring.invite(Invite(INVITE, lists.wall + 60, name="new"), lists.wall)
    lists.pass_(LOOK_S)
    lists.ring.invitations.write_text("x\n")
    with caplog.at_level(logging.ERROR, "fedmq.broker"):
        lists.pass_(LOOK_S)
        lists.pass_(LOOK_S)
    assert lists.admission.is_guest(INVITE)
    assert len(caplog.records) == 1


def test_who_can_come_is_told_once_and_again_when_it_changes(lists: Lists) -> None:
    """Members, and invites that may still register a key: not a used one, and not when it has expired."""
    admission = lists.admission
    assert admission.roll() == Roll(frozenset({A, B}), 0)
    lists.pass_(LOOK_S)
    assert admission.roll() is None
    lists.ring.invite(Invite(INVITE, lists.wall + 60, name="new"), lists.wall)
    lists.pass_(LOOK_S)
    assert admission.roll() == Roll(frozenset({A, B}), 1)
    lists.wall += 60
    lists.pass_(LOOK_S)
    assert admission.roll() == Roll(frozenset({A, B}), 0)
    lists.wall -= 60
    assert lists.ring.register(INVITE, C, lists.wall) == ""
    lists.pass_(LOOK_S)
    assert admission.roll() == Roll(frozenset({A, B, C}), 0)
    assert admission.roll() is None
