"""Keys as text, in files and in tokens: what is read, what is refused, and that no secret is ever shown."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq.fedcore import keys
from fedmq.fedcore.errors import ConfigError
from fedmq.fedcore.keys import Pair, Token

# Of ZeroMQ's RFC 26 (CURVE), and of libzmq's manual.
KNOWN = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID"
KNOWN_HEX = "bb88471d65e2659b30c55a5321cebb5aab2b70a398645c26dca2b2fcb43fc518"
SECRET = "D:)Q[IlAW!ahhC2ac:9*A}h:p?([4%wOTJ%JR%cs"
PAIR = Pair(KNOWN, SECRET)


def test_the_text_is_z85() -> None:
    """As libzmq's manual has it."""
    assert keys.to_bytes(KNOWN).hex() == KNOWN_HEX
    assert keys.to_text(bytes.fromhex(KNOWN_HEX)) == KNOWN


@given(st.binary(min_size=32, max_size=32))
def test_every_key_has_a_text(key: bytes) -> None:
    """There and back."""
    text = keys.to_text(key)
    assert len(text) == 40
    assert keys.is_key(text)
    assert keys.to_bytes(text) == key


@pytest.mark.parametrize("text", ["", KNOWN[:-1], KNOWN + "0", KNOWN[:-1] + "~", KNOWN[:-1] + " ", "#" * 40])
def test_what_is_no_key(text: str) -> None:
    """Too short, too long, other characters, groups beyond four bytes."""
    assert not keys.is_key(text)
    with pytest.raises(ValueError, match="40 characters"):
        keys.to_bytes(text)


def test_a_pair_lies_in_two_files(tmp_path: Path) -> None:
    """The secret is its owner's alone, whatever the umask; both are one line."""
    before = os.umask(0)
    try:
        keys.write_pair(tmp_path / "new" / "keys", "ward-3", PAIR)
    finally:
        os.umask(before)
    folder = tmp_path / "new" / "keys"
    assert (folder / "ward-3.secret").stat().st_mode & 0o777 == 0o600
    assert (folder / "ward-3.key").read_text() == KNOWN + "\n"
    assert keys.read_secret(folder / "ward-3.secret") == SECRET
    assert keys.read_public(folder / "ward-3.key") == KNOWN
    assert sorted(path.name for path in folder.iterdir()) == ["ward-3.key", "ward-3.secret"]


@pytest.mark.parametrize("half", ["key", "secret"])
def test_nothing_is_overwritten(tmp_path: Path, half: str) -> None:
    """One half that is there is enough to stop."""
    (tmp_path / f"w.{half}").write_text("mine")
    with pytest.raises(ConfigError, match="is there already"):
        keys.write_pair(tmp_path, "w", PAIR)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b", "x" * 65, "a\n"])
def test_a_name_is_a_word(tmp_path: Path, name: str) -> None:
    """It becomes a file's, and a line's."""
    with pytest.raises(ConfigError, match="cannot be a key's name"):
        keys.write_pair(tmp_path, name, PAIR)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620])
def test_a_secret_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    """The error says what to do, and shows nothing of it."""
    keys.write_pair(tmp_path, "w", PAIR)
    (tmp_path / "w.secret").chmod(mode)
    with pytest.raises(ConfigError, match=rf"mode {mode:04o}.*chmod 600") as caught:
        keys.read_secret(tmp_path / "w.secret")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("content", ["", "short", SECRET[:-1] + "~"])
def test_a_secret_file_without_a_secret(tmp_path: Path, content: str) -> None:
    """Its content is not shown: it may be most of one."""
    path = tmp_path / "w.secret"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="holds no secret key") as caught:
        keys.read_secret(path)
    assert not content or content not in str(caught.value)


def test_a_public_key_is_a_text_a_file_or_a_folder(tmp_path: Path) -> None:
    """A worker's state folder, a broker's folder of keys."""
    keys.write_pair(tmp_path / "keys", "broker", PAIR)
    keys.write_pair(tmp_path / "state", "worker", PAIR)
    for source in (KNOWN, tmp_path / "keys" / "broker.key", tmp_path / "keys", str(tmp_path / "state")):
        assert keys.read_public(source) == KNOWN


def test_a_secret_is_not_taken_for_a_public_key(tmp_path: Path) -> None:
    """Its file by its name; a mistyped text is not repeated, for it may be one."""
    keys.write_pair(tmp_path, "w", PAIR)
    with pytest.raises(ConfigError, match=r"public half, w\.key") as caught:
        keys.read_public(tmp_path / "w.secret")
    assert SECRET not in str(caught.value)
    with pytest.raises(ConfigError, match="neither a public key") as caught:
        keys.read_public(SECRET[:-1] + "~")
    assert SECRET[:-1] not in str(caught.value)


@pytest.mark.parametrize("source", ["nowhere.key", "", "a\0b"])
def test_where_there_is_no_public_key(source: str) -> None:
    """The error says what one looks like."""
    with pytest.raises(ConfigError, match="key"):
        keys.read_public(source)


TOKEN = Token(KNOWN, SECRET, 1_800_000_000.0, "tcp://broker:5560", "ward-3")


def test_a_token_is_one_word_that_says_it_all(tmp_path: Path) -> None:
    """No shell splits or expands it; it may stand in a file."""
    text = keys.to_token(TOKEN)
    assert text.startswith("fedmq-invite-")
    assert text.replace("-", "").replace("_", "").isalnum()
    assert keys.read_token(f" {text}\n") == TOKEN
    (tmp_path / "token").write_text(f"{text}\n")
    assert keys.read_token(tmp_path / "token") == TOKEN


def test_a_damaged_token_is_refused() -> None:
    """Cut short or with another letter: never half of a key."""
    text = keys.to_token(TOKEN)
    for end in range(len(keys.TOKEN_PREFIX), len(text)):
        with pytest.raises(ConfigError, match="damaged"):
            keys.read_token(text[:end])
    middle = len(text) // 2
    other = "A" if text[middle] != "A" else "B"
    with pytest.raises(ConfigError, match="damaged") as caught:
        keys.read_token(text[:middle] + other + text[middle + 1 :])
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("text", ["", "nowhere", KNOWN])
def test_what_is_no_token(text: str) -> None:
    """A key is none."""
    with pytest.raises(ConfigError, match="an invite is a text"):
        keys.read_token(text)


def test_no_secret_is_shown_by_accident() -> None:
    """In a traceback or a log, a pair and a token show no secret."""
    assert SECRET not in repr(PAIR)
    assert SECRET not in repr(TOKEN)
