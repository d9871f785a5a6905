"""What the process and its disk tell of themselves."""

import os
from pathlib import Path

import pytest

from fedmq.broker import vitals
from fedmq.broker.metrics import BY_NAME


def test_every_number_has_a_place(tmp_path: Path) -> None:
    """And is one: bytes, descriptors, seconds."""
    (tmp_path / "journal.db").write_bytes(b"x" * 1000)
    (tmp_path / "journal.db-wal").write_bytes(b"x" * 234)
    found = vitals.numbers(tmp_path)
    assert found.keys() <= BY_NAME.keys()
    assert found["fedmq_journal_bytes"] == 1234
    assert isinstance(found["fedmq_disk_free_bytes"], int)
    assert isinstance(found["fedmq_process_resident_bytes"], int)
    assert found["fedmq_process_resident_bytes"] > 1 << 20


def test_descriptors_are_counted() -> None:
    """One more is one more; the one that the counting takes is left out."""
    if not Path("/proc/self/fd").exists():
        assert "fedmq_process_open_fds" not in vitals.numbers(Path())
        return
    before = vitals.numbers(Path())["fedmq_process_open_fds"]
    descriptor = os.open(os.devnull, os.O_RDONLY)
    try:
        assert vitals.numbers(Path())["fedmq_process_open_fds"] == before + 1  # type: ignore[operator]
    finally:
        os.close(descriptor)


def test_a_folder_that_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is wrong with it until the disk is full, or it is gone."""
    assert vitals.unwritable(tmp_path) is None
    monkeypatch.setattr(vitals, "FULL_BYTES", 1 << 62)
    assert vitals.unwritable(tmp_path) == "the disk is full"
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert vitals.unwritable(tmp_path) == "the state folder is read-only"
    assert (
        vitals.unwritable(tmp_path / "gone")
        == "the state folder cannot be reached: No such file or directory"
    )
