"""The worker's keys in its state folder: made once, mended after a kill, and never a step back to the clear."""

from pathlib import Path

import pytest

from fedmq.fedcore.errors import ConfigError, StateError
from fedmq.fedcore.keys import Pair, Token, to_bytes, to_token, write_pair
from fedmq.worker import CurveKeys, Worker, keys
from fedmq.worker.transport import new_pair, public_of

SERVER, _ = new_pair()
OTHER, _ = new_pair()
INVITE = Pair(*new_pair())
TOKEN = Token(SERVER, INVITE.secret, 1_800_000_000.0, "tcp://127.0.0.1:1", "ward-3")


class App:
    def fit(self, weights: object, task: object) -> None: ...

    def evaluate(self, weights: object, task: object) -> None: ...


def test_without_a_broker_with_keys_there_are_none(tmp_path: Path) -> None:
    """And no file is made."""
    assert keys.load(tmp_path, None, None) is None
    assert list(tmp_path.iterdir()) == []


def test_the_key_is_made_at_first_use(tmp_path: Path) -> None:
    """Once; only its owner reads the secret, and the public half lies beside it for the operator."""
    first = keys.load(tmp_path, SERVER, None)
    again = keys.load(tmp_path, SERVER, None)
    assert first is not None
    assert again is not None
    assert (first.is_new, again.is_new) == (True, False)
    assert first.own == again.own
    assert first.own.server == SERVER
    assert first.public == to_bytes(first.own.public)
    assert (tmp_path / "worker.secret").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "worker.key").read_text().strip() == first.own.public == public_of(first.own.secret)


def test_a_broker_that_had_a_key_is_expected_to_have_it(tmp_path: Path) -> None:
    """A later start that says nothing of keys does not speak in the clear; one that says another means it."""
    keys.load(tmp_path, SERVER, None)
    again = keys.load(tmp_path, None, None)
    assert again is not None
    assert again.own.server == SERVER
    changed = keys.load(tmp_path, OTHER, None)
    assert changed is not None
    assert changed.own.server == OTHER
    assert keys.load(tmp_path, None, None) == changed


def test_an_invite_says_the_brokers_key(tmp_path: Path) -> None:
    """Its pair registers the worker's own, which is another."""
    found = keys.load(tmp_path, None, TOKEN)
    assert found is not None
    assert found.invite is not None
    invite, until = found.invite
    assert invite == CurveKeys(SERVER, INVITE.public, INVITE.secret)
    assert until == "2027-01-15 08:00:00 UTC"
    assert found.own.public != invite.public
    assert (tmp_path / "broker.key").read_text().strip() == SERVER


def test_a_kill_between_the_two_halves_is_mended(tmp_path: Path) -> None:
    """The public one follows from the secret; a public one alone is of no use to anybody."""
    pair = Pair(*new_pair())
    write_pair(tmp_path, "worker", pair)
    (tmp_path / "worker.key").unlink()
    found = keys.load(tmp_path, SERVER, None)
    assert found is not None
    assert (found.own.public, found.is_new) == (pair.public, False)
    assert (tmp_path / "worker.key").read_text().strip() == pair.public
    (tmp_path / "worker.secret").unlink()
    fresh = keys.load(tmp_path, SERVER, None)
    assert fresh is not None
    assert fresh.is_new
    assert fresh.own.public != pair.public


def test_a_secret_that_others_can_read_is_refused(tmp_path: Path) -> None:
    """Before anything is sent."""
    keys.load(tmp_path, SERVER, None)
    (tmp_path / "worker.secret").chmod(0o644)
    with pytest.raises(ConfigError, match="others can read"):
        Worker(App(), "tcp://127.0.0.1:1", tmp_path, server_key=SERVER).start()


def test_keys_that_cannot_be_written_are_one_clear_error(tmp_path: Path) -> None:
    """A folder in the place of a file."""
    (tmp_path / "broker.key.new").mkdir()
    (tmp_path / "broker.key.new" / "x").touch()
    with pytest.raises(StateError, match="keys cannot be written"):
        keys.load(tmp_path, SERVER, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"server_key": SERVER, "state": None}, "need state"),
        ({"server_key": SERVER, "keys": CurveKeys(SERVER, INVITE.public, INVITE.secret)}, "leave out"),
        (
            {"server_key": OTHER, "invite": to_token(TOKEN)},
            "not the key of the broker that the invite is from",
        ),
        ({"server_key": "no key"}, "neither a public key"),
        ({"invite": "no invite"}, "an invite is a text"),
        ({"connect": None}, "connect is missing"),
        ({"connect": None, "server_key": SERVER}, "connect is missing"),
    ],
)
def test_arguments_that_do_not_fit_are_said_at_once(
    tmp_path: Path, arguments: dict[str, object], message: str
) -> None:
    """Before a thread is started or a file is made."""
    given: dict[str, object] = {"connect": "tcp://127.0.0.1:1", "state": tmp_path / "state", **arguments}
    with pytest.raises(ConfigError, match=message):
        Worker(App(), **given)  # type: ignore[arg-type]
    assert not (tmp_path / "state").exists()


def test_an_invite_may_say_where_the_broker_is_and_who_one_is(tmp_path: Path) -> None:
    """Then it is all that a worker needs to be told."""
    with Worker(App(), state=tmp_path / "state", invite=to_token(TOKEN)) as worker:
        assert worker.status()["name"] == "ward-3"


def test_no_secret_is_shown_by_accident() -> None:
    """In a traceback or a log."""
    assert INVITE.secret not in repr(CurveKeys(SERVER, INVITE.public, INVITE.secret))
