"""The worker's state folder: one process, one identity, and errors that say what to do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedmq.fedcore.errors import StateError
from fedmq.worker.state import StateFolder, write_file


def test_the_identity_outlives_the_process(tmp_path: Path) -> None:
    """The instance is drawn once for a folder."""
    first = StateFolder(tmp_path / "w", owner="a")
    instance = first.instance
    first.close()
    again = StateFolder(tmp_path / "w", owner="a")
    assert again.instance == instance
    assert len(instance) == 16
    again.close()


def test_a_folder_in_use_is_refused_by_name(tmp_path: Path) -> None:
    """The error says who is there; when that one is gone, the folder is free."""
    first = StateFolder(tmp_path, owner="worker ward-3")
    with pytest.raises(StateError, match=rf"in use by process {os.getpid()}, worker ward-3"):
        StateFolder(tmp_path, owner="b")
    first.close()
    StateFolder(tmp_path, owner="b").close()


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    """The lock goes with its process, however that ends."""
    code = (
        "import os, sys; from fedmq.worker.state import StateFolder; "
        "StateFolder(sys.argv[1], 'x'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert (tmp_path / "instance").exists()
    StateFolder(tmp_path, owner="b").close()


def test_what_an_app_writes_outlives_the_process(tmp_path: Path) -> None:
    """It has a folder of its own beside models and outbox."""
    first = StateFolder(tmp_path / "w", owner="a")
    assert first.app is not None
    (first.app / "mine").write_text("x")
    first.close()
    again = StateFolder(tmp_path / "w", owner="a")
    assert again.app == tmp_path / "w" / "app"
    assert (again.app / "mine").read_text() == "x"
    again.close()


def test_without_a_folder_there_is_a_temporary_one() -> None:
    """It is gone after close; so an app is given none, which would forget what it wrote."""
    folder = StateFolder(None, owner="a")
    assert folder.outbox.is_dir()
    assert folder.app is None
    folder.close()
    assert not folder.path.exists()


def test_a_damaged_identity_is_named(tmp_path: Path) -> None:
    """Nothing is guessed: the user decides."""
    (tmp_path / "instance").write_bytes(b"short")
    with pytest.raises(StateError, match="holds 5 bytes, expected 16"):
        StateFolder(tmp_path, owner="a")
    (tmp_path / "instance").unlink()
    StateFolder(tmp_path, owner="a").close()


def test_a_path_that_is_no_folder_is_named(tmp_path: Path) -> None:
    """A file in its place, in one clear error."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(StateError, match="cannot be used"):
        StateFolder(tmp_path / "file", owner="a")


@pytest.mark.parametrize("fsync", [False, True])
def test_write_file_replaces_whole(tmp_path: Path, fsync: bool) -> None:
    """The draft is gone, and the content is the new one."""
    path = tmp_path / "f"
    write_file(path, b"old", fsync=fsync)
    write_file(path, b"new", fsync=fsync)
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]
