"""The state folder: one process at a time, one federation for ever, secrets that only their owner reads."""

import contextlib
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fedmq.broker.store.journal import Journal
from fedmq.broker.store.state import StateFolder, read_identity, replace
from fedmq.fedcore.config import Config, parse
from fedmq.fedcore.errors import ConfigError, StateError

CONFIG = parse({"mode": {"kind": "async", "buffer": 3}})


def settled(path: Path, config: Config = CONFIG) -> tuple[str, bytes, bytes]:
    """Open, settle and close; the id and both keys."""
    with StateFolder.open(path) as state:
        state.settle(config)
        return state.id, state.mac_key, state.noise_key


def test_a_federation_keeps_its_id_and_keys(tmp_path: Path) -> None:
    """A restart is the same federation; another folder is another one."""
    first = settled(tmp_path / "a")
    assert settled(tmp_path / "a") == first
    other = settled(tmp_path / "b")
    assert not set(first) & set(other)
    assert [len(bytes.fromhex(first[0])), len(first[1]), len(first[2])] == [16, 32, 32]


def test_only_its_owner_can_read_a_state_folder(tmp_path: Path) -> None:
    """The folder, its secrets and its identity."""
    settled(tmp_path / "a")
    for name, mode in {
        ".": 0o700,
        "keys": 0o700,
        "keys/mac": 0o600,
        "keys/noise": 0o600,
        "federation.json": 0o600,
    }.items():
        assert stat.S_IMODE((tmp_path / "a" / name).stat().st_mode) == mode, name


def test_a_folder_is_used_by_one_process_at_a_time(tmp_path: Path) -> None:
    """The second one is told who has it; when the first has ended, however, it is free."""
    code = (
        "import sys; from fedmq.broker.store.state import StateFolder; "
        "state = StateFolder.open(sys.argv[1]); print('locked', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "a")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    assert holder.stdout.readline() == b"locked\n"
    with pytest.raises(StateError, match=f"in use by process {holder.pid}"):
        StateFolder.open(tmp_path / "a")
    holder.kill()
    holder.wait()
    holder.stdout.close()
    holder.stdin.close()
    StateFolder.open(tmp_path / "a").close()


def test_a_folder_is_used_once_in_a_process(tmp_path: Path) -> None:
    """Two brokers in one notebook do not share a folder either."""
    with StateFolder.open(tmp_path / "a"), pytest.raises(StateError, match="is in use by process"):
        StateFolder.open(tmp_path / "a")


def begin_and_fail(folder: Path) -> None:
    """A start that gets as far as it can before something is wrong."""
    with contextlib.suppress(ConfigError), StateFolder.open(folder) as state:
        state.settle(CONFIG)
        Journal.open(state.journal).close()
        state.announce("tcp://127.0.0.1:1")
        raise ConfigError("no such file")


@pytest.mark.parametrize("there", [None, (), ("notes.txt", "keys/mine")])
def test_a_first_start_that_fails_leaves_nothing(tmp_path: Path, there: tuple[str, ...] | None) -> None:
    """No folder, an empty one, one with somebody's files: it is as it was, and any config may be next."""
    folder = tmp_path / "a"
    for name in there or ():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    if there is not None:
        folder.mkdir(exist_ok=True)
    before = sorted(tmp_path.rglob("*"))
    begin_and_fail(folder)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_first_run_that_fails_leaves_everything(tmp_path: Path) -> None:
    """Once the start has succeeded an error, of a disk that is full at the end say, takes nothing away."""
    with contextlib.suppress(ZeroDivisionError), StateFolder.open(tmp_path / "a") as state:
        state.settle(CONFIG)
        state.journal.write_bytes(b"accepted updates")
        state.keep()
        raise ZeroDivisionError
    assert (tmp_path / "a" / "journal.db").read_bytes() == b"accepted updates"
    assert (tmp_path / "a" / "federation.json").exists()


def test_a_later_start_that_fails_leaves_everything(tmp_path: Path) -> None:
    """A federation that exists is not taken away by whatever goes wrong."""
    before = settled(tmp_path / "a")
    begin_and_fail(tmp_path / "a")
    assert settled(tmp_path / "a") == before


def test_a_lock_file_that_was_taken_away_locks_nobody(tmp_path: Path) -> None:
    """Whoever waits for its turn with the old file in hand looks for the new one."""
    with pytest.raises(ConfigError), StateFolder.open(tmp_path / "a"):
        raise ConfigError("a first start fails")
    with StateFolder.open(tmp_path / "a"), pytest.raises(StateError, match="is in use by process"):
        StateFolder.open(tmp_path / "a")


def test_what_may_change_changes(tmp_path: Path) -> None:
    """Limits and deadlines: the next start says which keys differ, and remembers them."""
    settled(tmp_path / "a")
    changed = parse({"mode": {"kind": "async", "buffer": 3, "concurrency": 7}})
    with StateFolder.open(tmp_path / "a") as state:
        assert [str(change) for change in state.settle(changed)] == ["mode.concurrency: 100 -> 7"]
        assert state.settle(changed) == ()


def test_what_may_not_change_is_refused_by_name(tmp_path: Path) -> None:
    """Another buffer would be another run; nothing is written, and the old config still starts."""
    before = settled(tmp_path / "a")
    changed = parse({"mode": {"kind": "async", "buffer": 4}})
    with (
        StateFolder.open(tmp_path / "a") as state,
        pytest.raises(StateError, match=r"may not change: mode\.buffer: 3 -> 4"),
    ):
        state.settle(changed)
    assert settled(tmp_path / "a") == before


def test_a_path_is_the_same_file_or_moved_with_its_folder(tmp_path: Path) -> None:
    """Named from somewhere else, or in a folder that was moved as a whole; another file is refused."""
    there, elsewhere = tmp_path / "there", tmp_path / "elsewhere"
    settled(tmp_path / "a", parse({"model": {"initial": "m.safetensors"}}, base_dir=there))
    named = parse({"model": {"initial": str(there / "m.safetensors")}}, base_dir=elsewhere)
    settled(tmp_path / "a", named)
    settled(tmp_path / "a", parse({"model": {"initial": "m.safetensors"}}, base_dir=there))
    settled(tmp_path / "a", parse({"model": {"initial": "m.safetensors"}}, base_dir=elsewhere))
    other = parse({"model": {"initial": "n.safetensors"}}, base_dir=elsewhere)
    with StateFolder.open(tmp_path / "a") as state, pytest.raises(StateError, match=r"model\.initial"):
        state.settle(other)


def test_a_lost_config_is_written_again_when_nothing_of_weight_changed(tmp_path: Path) -> None:
    """The fingerprint vouches for it."""
    before = settled(tmp_path / "a")
    (tmp_path / "a" / "config.toml").unlink()
    assert settled(tmp_path / "a") == before
    (tmp_path / "a" / "config.toml").unlink()
    with StateFolder.open(tmp_path / "a") as state, pytest.raises(StateError, match=r"config\.toml"):
        state.settle(parse({"mode": {"kind": "async", "buffer": 4}}))


@pytest.mark.parametrize("name", ["mac", "noise"])
def test_a_lost_key_is_not_made_anew(tmp_path: Path, name: str) -> None:
    """It would disown every task that is out, or change a version's noise."""
    settled(tmp_path / "a")
    (tmp_path / "a" / "keys" / name).unlink()
    with StateFolder.open(tmp_path / "a") as state, pytest.raises(StateError, match="from a backup"):
        state.settle(CONFIG)


def test_a_cut_key_is_refused(tmp_path: Path) -> None:
    """Sixteen bytes of a key are not the key."""
    settled(tmp_path / "a")
    (tmp_path / "a" / "keys" / "mac").write_bytes(b"x" * 16)
    with StateFolder.open(tmp_path / "a") as state, pytest.raises(StateError, match="holds 16 bytes"):
        state.settle(CONFIG)


def test_a_first_start_that_was_killed_is_a_first_start(tmp_path: Path) -> None:
    """federation.json comes last: without it the folder is still new."""
    settled(tmp_path / "a")
    (tmp_path / "a" / "federation.json").unlink()
    with StateFolder.open(tmp_path / "a") as state:
        assert state.is_new
        state.settle(CONFIG)


def test_a_journal_without_an_identity_is_refused(tmp_path: Path) -> None:
    """Half of a backup must not become a new federation over an old journal."""
    settled(tmp_path / "a")
    (tmp_path / "a" / "federation.json").unlink()
    (tmp_path / "a" / "journal.db").touch()
    with StateFolder.open(tmp_path / "a") as state, pytest.raises(StateError, match="has a journal"):
        state.settle(CONFIG)


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    """Here, because a file is where a folder should be."""
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match=r"state folder .*file/state cannot be used"):
        StateFolder.open(tmp_path / "file" / "state")


def test_calibrated_noise_is_remembered(tmp_path: Path) -> None:
    """A later accountant may say something else; this federation goes on as it began."""
    with StateFolder.open(tmp_path / "a") as state:
        state.settle(CONFIG, 1.25, 8)
    settled(tmp_path / "a")
    found = read_identity(tmp_path / "a")
    assert (found.noise_multiplier, found.bandwidth) == (1.25, 8)


def test_what_is_no_state_folder_is_a_clear_error(tmp_path: Path) -> None:
    """`fedmq status` of a wrong folder."""
    with pytest.raises(StateError, match="not the state folder of a broker"):
        read_identity(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "cannot be read"),
        (
            b'{"format": 2, "id": "ab", "fingerprint": "", "base_dir": "", "created_at": 0}',
            "use a newer fedmq",
        ),
    ],
)
def test_a_damaged_or_later_identity_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    """One line that says what to do."""
    (tmp_path / "federation.json").write_bytes(content)
    with pytest.raises(StateError, match=message):
        read_identity(tmp_path)


def test_the_endpoint_is_there_while_the_broker_is(tmp_path: Path) -> None:
    """Scripts that let the system choose the port read it; a stale one would mislead them."""
    with StateFolder.open(tmp_path / "a") as state:
        state.announce("tcp://127.0.0.1:4711")
        assert (tmp_path / "a" / "endpoint").read_text() == "tcp://127.0.0.1:4711\n"
    assert not (tmp_path / "a" / "endpoint").exists()


def test_an_abandoned_folder_stays_locked(tmp_path: Path) -> None:
    """Something may still be writing into it: nobody gets it before this process ends."""
    code = (
        "import sys; from fedmq.broker.store.state import StateFolder; from fedmq.fedcore.errors import StateError\n"
        "state = StateFolder.open(sys.argv[1]); state.abandon(); state.close()\n"
        "try: StateFolder.open(sys.argv[1])\n"
        "except StateError as error: print(error)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a")], capture_output=True, text=True, check=True
    )
    assert "is in use by process" in found.stdout


def test_replacing_a_file_leaves_nothing_else(tmp_path: Path) -> None:
    """The new content, and no scratch."""
    replace(tmp_path / "f", b"old")
    replace(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
