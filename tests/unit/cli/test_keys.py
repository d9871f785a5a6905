"""`fedmq keys`: what each command writes and says, and that no secret is among it."""

import json
from pathlib import Path

import pytest

from fedmq.broker.auth import new_pair
from fedmq.broker.keyring import KeyRing
from fedmq.fedcore.keys import read_token, write_pair


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_pair_is_made_and_shown(fedmq, here: Path) -> None:
    """stdout is the public key alone, so that a script can take it; the secret stays in its file."""
    code, out, err = fedmq("keys", "new", "broker")
    secret = (here / "keys" / "broker.secret").read_text().strip()
    assert code == 0
    assert out.strip() == (here / "keys" / "broker.key").read_text().strip()
    assert secret not in out + err
    assert (here / "keys" / "broker.secret").stat().st_mode & 0o777 == 0o600
    assert fedmq("keys", "show", "keys")[1] == out
    code, _, err = fedmq("keys", "new", "broker")
    assert code == 2
    assert "is there already" in err
    assert (here / "keys" / "broker.secret").read_text().strip() == secret


def test_allow_list_revoke(fedmq, here: Path) -> None:
    """By a text, a file and a folder; each once, and gone by its name or its key."""
    text, file, folder = new_pair(), new_pair(), new_pair()
    write_pair(here, "ward-2", file)
    write_pair(here / "ward-3", "worker", folder)
    assert fedmq("keys", "allow", text.public, "--name", "ward-1")[1] == "allowed ward-1\n"
    assert fedmq("keys", "allow", "ward-2.key")[1] == "allowed ward-2\n"
    assert fedmq("keys", "allow", "ward-3")[1] == "allowed ward-3\n"
    assert fedmq("keys", "allow", "ward-3")[1] == "was allowed already\n"
    _, out, _ = fedmq("keys", "list")
    for pair, name in ((text, "ward-1"), (file, "ward-2"), (folder, "ward-3")):
        assert f"{pair.public}  {name}" in out
        assert pair.secret not in out
    assert fedmq("keys", "revoke", "ward-1")[1] == "revoked ward-1\n"
    assert fedmq("keys", "revoke", "--", file.public)[1] == "revoked ward-2\n"
    code, _, err = fedmq("keys", "revoke", "ward-1")
    assert code == 2
    assert "keys list" in err
    assert KeyRing(here / "keys").allowed() == {folder.public: "ward-3"}


def test_a_secret_cannot_be_allowed(fedmq, here: Path) -> None:
    """It would stand in a list for all to read."""
    write_pair(here, "ward-2", pair := new_pair())
    code, out, err = fedmq("keys", "allow", "ward-2.secret")
    assert code == 2
    assert "public half" in err
    assert pair.secret not in out + err
    assert not (here / "keys").exists()


def test_an_invite_is_printed_once(fedmq, here: Path) -> None:
    """stdout is the token alone; what is kept of it lets nobody in."""
    fedmq("keys", "new", "broker")
    code, out, err = fedmq("keys", "invite", "--name", "ward-3", "--expires", "90m", "--connect", "tcp://b:1")
    assert code == 0
    token = read_token(out.strip())
    assert (token.name, token.connect) == ("ward-3", "tcp://b:1")
    assert token.server == KeyRing(here / "keys").public
    kept = (here / "keys" / "invites").read_text()
    assert token.secret not in kept + err
    assert out.strip() not in kept
    (found,) = json.loads(fedmq("keys", "list", "--json")[1])["invites"]
    assert (found["name"], found["state"]) == ("ward-3", "open")
    assert 5300 < found["expires_s"] <= 5400
    assert "ward-3, expires in 89 min" in fedmq("keys", "list")[1]
    assert fedmq("keys", "revoke", "ward-3")[1] == "withdrew the invite for ward-3\n"
    assert json.loads(fedmq("keys", "list", "--json")[1])["invites"] == []


def test_an_invite_needs_the_brokers_key(fedmq, here: Path) -> None:
    """The error says how it is made."""
    code, _, err = fedmq("keys", "invite")
    assert code == 2
    assert "fedmq keys new broker" in err


@pytest.mark.parametrize("text", ["", "0h", "1w", "-1h", "91d", "1.5h"])
def test_what_is_no_duration(fedmq, here: Path, text: str) -> None:
    """A number and a unit, at most 90 days."""
    fedmq("keys", "new", "broker")
    code, _, err = fedmq("keys", "invite", "--expires", text)
    assert code == 2
    assert "90d" in err


def test_the_folder_may_be_named_by_the_federation(fedmq, here: Path) -> None:
    """So does its own list, where it lies elsewhere."""
    (here / "fed").mkdir()
    toml = here / "fed" / "federation.toml"
    toml.write_text('[security]\nkeys = "secrets"\nallowlist = "who"\n')
    fedmq("keys", "allow", new_pair().public, "--name", "a", "--dir", toml)
    assert (here / "fed" / "who").read_text().endswith(" a\n")
    toml.write_text("")
    code, _, err = fedmq("keys", "list", "--dir", toml)
    assert code == 2
    assert "security.keys is empty" in err


def test_the_commands_explain_themselves(fedmq) -> None:
    """Each says in an example how it is used, and the group where the allowlist lies."""
    for command in ("new", "show", "allow", "revoke", "list", "invite"):
        code, out, _ = fedmq("keys", command, "--help")
        assert code == 0
        assert "Example:" in out
    assert "allowlist" in fedmq("keys", "--help")[1]
