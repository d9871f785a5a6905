"""`fedmq backup`: what it says, and how it ends."""

import json
from pathlib import Path

import pytest

from fedmq.cli import backup as command


def test_it_says_what_was_copied_and_what_a_restore_forgets(fedmq, state: Path, tmp_path: Path) -> None:
    """Version, waiting updates, where to; updates and versions that come after."""
    code, out, err = fedmq("backup", state, tmp_path / "copy")
    assert (code, err) == (0, "")
    assert out.startswith("copied wards: version 2, 0 accepted updates that are in no version yet (")
    assert "forgets everything after" in out
    assert "tasks against them are refused" in out
    assert "WARNING" not in out
    assert (tmp_path / "copy" / "versions" / "v00000002.safetensors").is_file()


def test_a_machine_can_read_it(fedmq, state: Path, tmp_path: Path) -> None:
    """One JSON object."""
    found = json.loads(fedmq("backup", state, tmp_path / "copy", "--json")[1])
    assert (found["federation"], found["version"], found["waiting"]) == ("wards", 2, 0)


def test_privacy_is_a_warning() -> None:
    """With how much had been spent when it was taken."""
    from fedmq.broker.store.backup import Summary

    summary = Summary(
        federation="wards",
        id="ab",
        taken_at=0.0,
        version=37,
        waiting=1,
        updates=100,
        privacy_steps=37,
        privacy_planned=300,
        missed_versions=1,
        missed_updates=4,
    )
    lines = command._lines(summary, Path("out"), "/secrets")
    assert "1 accepted update that" in lines[0]
    assert "accepted 4 updates and made 1 versions" in lines[1]
    assert "/secrets" in lines[2]
    assert "WARNING: privacy that is spent from then on. 37 of 300 steps" in lines[-1]


def test_what_is_there_is_not_written_over(fedmq, state: Path, tmp_path: Path) -> None:
    """Exit code 2, one line."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    code, out, err = fedmq("backup", state, tmp_path / "full")
    assert (code, out) == (2, "")
    assert "no empty folder" in err
    assert err.count("\n") == 1


def test_a_folder_of_somebody_else(fedmq, tmp_path: Path) -> None:
    """Exit code 6."""
    code, _, err = fedmq("backup", tmp_path, tmp_path.parent / "copy")
    assert code == 6
    assert "is not the state folder of a broker" in err


def test_a_long_copy_shows_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """On stderr; a short one shows nothing."""
    with command._Bar() as bar:
        bar.show(100, 1000)
    assert capsys.readouterr() == ("", "")
    with command._Bar() as bar:
        bar.show(0, 1 << 30)
        bar.show(1 << 29, 1 << 30)
        bar.show(1 << 30, 1 << 30)
    out, err = capsys.readouterr()
    assert out == ""
    assert "copying 1.07 GB" in err
