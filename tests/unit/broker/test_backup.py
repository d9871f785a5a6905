"""A copy of a state folder: what is in it, what it is checked against, and that it is whole or not there."""

import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from fedmq.broker.rows import AcceptRow, FreezeRow, VersionInfo, VersionRow
from fedmq.broker.store import backup as backups
from fedmq.broker.store import copying, schema
from fedmq.broker.store.backup import NOTE, Summary, announce, backup
from fedmq.broker.store.history import History
from fedmq.broker.store.journal import Journal
from fedmq.broker.store.state import StateFolder
from fedmq.broker.store.versions import VersionStore
from fedmq.fedcore import config, model_file
from fedmq.fedcore.errors import ConfigError, StateError

N = 8


class Folder:
    """A state folder as a broker leaves it, with momentum: versions 0 to 2, two updates of which wait."""

    def __init__(self, path: Path, tables: dict[str, Any] | None = None) -> None:
        self.path = path
        settings = {"federation": {"name": "wards", "state": path}, "optimizer": {"kind": "momentum"}}
        with StateFolder.open(path) as folder:
            folder.settle(config.parse(settings | (tables or {}), base_dir=path.parent))
        self.store = VersionStore(path / "versions")
        self.model = model_file.from_arrays({"w": np.zeros(N, np.float32)})
        self.journal = Journal.open(path / "journal.db", "os")
        for version in range(3):
            self.make(version)
        self.accept(b"inline", 2, inline=True)
        self.accept(b"spooled", 2, inline=False)

    def make(self, version: int) -> None:
        """The next version, with its state."""
        with self.store.writer(version, ("velocity",) if version else ()) as writer:
            for chunk in model_file.from_arrays({"w": np.full(N, version, np.float32)}).chunks:
                writer.model(chunk)
            if version:
                writer.state("velocity", np.full(N, version, np.float32))
            made = writer.commit()
        layout = self.model.layout
        info = VersionInfo(
            version=version, digest=made.digest, size=made.size, layout=layout.digest, n=layout.n
        )
        rows: list[Any] = [FreezeRow(buffer=version - 1, reason="full")] if version else []
        self.journal.apply([*rows, VersionRow(info=info, privacy_steps=int(version > 0))])
        self.store.delete_states_before(version - 1)

    def accept(self, task: bytes, buffer: int, *, inline: bool, base: int | None = None) -> None:
        """One more update, fresh unless it has another base."""
        payload = np.ones(N, np.float32).tobytes()
        if not inline:
            (self.path / "spool" / task.hex()).write_bytes(payload)
        self.journal.apply(
            [
                AcceptRow(
                    task=task,
                    worker="w",
                    base=buffer if base is None else base,
                    buffer=buffer,
                    tau=0 if base is None else buffer - base,
                    weight=1.0,
                    examples=1,
                    norm=1.0,
                    encoding="f32",
                    size=len(payload),
                    digest=xxhash.xxh3_128_digest(payload),
                    inline=payload if inline else None,
                )
            ]
        )


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "state")


def names(path: Path) -> set[str]:
    """Every file in a folder."""
    return {found.relative_to(path).as_posix() for found in path.rglob("*") if found.is_file()}


def test_it_holds_what_the_journal_names(folder: Folder, tmp_path: Path) -> None:
    """Versions that are kept, the state of the current one, payloads that wait; identity and secrets."""
    (folder.path / "endpoint").write_text("tcp://…")
    (folder.path / "spool" / b"half of an upload".hex()).write_bytes(b"?")
    (folder.path / "federation.json.new").write_bytes(b"?")
    summary = backup(folder.path, tmp_path / "out", wall=lambda: 7.0)
    assert names(tmp_path / "out") == {
        "federation.json",
        "config.toml",
        "keys/mac",
        "keys/noise",
        "journal.db",
        f"spool/{b'spooled'.hex()}",
        *(f"versions/v0000000{version}.safetensors" for version in range(3)),
        "versions/v00000002.velocity.f32",
        NOTE,
    }
    assert summary.size == sum(
        (tmp_path / "out" / name).stat().st_size for name in names(tmp_path / "out") - {NOTE}
    )
    for name in names(tmp_path / "out") - {"journal.db", NOTE}:
        assert (tmp_path / "out" / name).read_bytes() == (folder.path / name).read_bytes()
    with (
        History.open(tmp_path / "out" / "journal.db") as copy,
        History.open(folder.path / "journal.db") as original,
    ):
        assert copy.history() == original.history()
        assert copy.summary() == original.summary()
    assert (summary.version, summary.waiting, summary.updates, summary.taken_at) == (2, 2, 2, 7.0)
    assert (summary.federation, summary.privacy_steps) == ("wards", None)
    assert (summary.missed_versions, summary.missed_updates) == (0, 0)


def test_modes_are_kept(folder: Folder, tmp_path: Path) -> None:
    """Secrets stay their owner's alone, and so does all else."""
    (folder.path / "curve").mkdir(mode=0o700)
    secret = folder.path / "curve" / "of a later release"
    secret.write_bytes(b"s")
    secret.chmod(0o400)
    backup(folder.path, tmp_path / "out")
    out = tmp_path / "out"
    for name in ("keys/mac", "keys/noise", "journal.db", "curve/of a later release"):
        assert (out / name).stat().st_mode == (folder.path / name).stat().st_mode, name
    for path in (out, out / "keys", out / "curve", out / "spool", out / "versions"):
        assert path.stat().st_mode & 0o777 == 0o700, path


def test_a_moment_is_copied_while_the_journal_grows(folder: Folder, tmp_path: Path) -> None:
    """Rows that are committed during the copy are not in it, and it says how many there were."""
    told = []

    def grow(done: int, total: int) -> None:
        if not told:
            folder.accept(b"late", 2, inline=True)
            folder.make(3)
        told.append((done, total))

    summary = backup(folder.path, tmp_path / "out", progress=grow)
    with History.open(tmp_path / "out" / "journal.db") as copy:
        assert copy.summary()["version"] == 2
        assert copy.accepted() == 2
    assert (summary.missed_versions, summary.missed_updates) == (1, 1)
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1]


def test_a_collected_file_is_copied_from_where_it_was_held(folder: Folder, tmp_path: Path) -> None:
    """What is open when the copying begins is readable although its name is gone."""

    def collect(done: int, total: int) -> None:
        folder.store.delete([1, 2])
        (folder.path / "spool" / b"spooled".hex()).unlink(missing_ok=True)

    backup(folder.path, tmp_path / "out", progress=collect)
    assert "versions/v00000002.safetensors" in names(tmp_path / "out")
    assert f"spool/{b'spooled'.hex()}" in names(tmp_path / "out")


def test_a_journal_that_has_moved_on_is_taken_again(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version that is collected between the snapshot and the first look: the next snapshot has another."""
    need, calls = copying.Files.need, []

    def late(self: copying.Files, name: str, *about: Any) -> None:
        if not calls:
            folder.make(3)
            folder.store.delete([2])
        calls.append(name)
        need(self, name, *about)

    monkeypatch.setattr(copying.Files, "need", late)
    assert backup(folder.path, tmp_path / "out").version == 3
    assert "versions/v00000003.velocity.f32" in names(tmp_path / "out")
    assert calls[0] == "versions/v00000002.velocity.f32"


def test_a_journal_that_always_moves_on(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gives up after a while, says what to do, and leaves nothing behind."""
    need = copying.Files.need
    version = 2

    def late(self: copying.Files, name: str, *about: Any) -> None:
        nonlocal version
        if name.startswith("versions/"):
            version += 1
            folder.make(version)
            folder.store.delete([version - 1])
        need(self, name, *about)

    monkeypatch.setattr(copying.Files, "need", late)
    with pytest.raises(StateError, match="fedmq pause"):
        backup(folder.path, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_few_descriptors_will_do(folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files beyond the limit are opened when their turn comes."""
    monkeypatch.setattr(copying.resource, "getrlimit", lambda _: (copying._SPARE_FILES + 1, 1 << 20))
    monkeypatch.setattr(backups, "_raise_descriptor_limit", lambda: None)
    backup(folder.path, tmp_path / "out")
    assert f"spool/{b'spooled'.hex()}" in names(tmp_path / "out")


@pytest.mark.parametrize(
    "name", ["versions/v00000002.safetensors", "versions/v00000002.velocity.f32", "keys/mac"]
)
def test_a_damaged_folder_is_no_backup(folder: Folder, tmp_path: Path, name: str) -> None:
    """What is missing without being collected is named."""
    (folder.path / name).unlink()
    with pytest.raises(StateError, match=rf"{name.split('/')[1]} is missing"):
        backup(folder.path, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


@pytest.mark.parametrize("name", ["versions/v00000002.safetensors", f"spool/{b'spooled'.hex()}"])
def test_bytes_are_compared_with_the_journal(folder: Folder, tmp_path: Path, name: str) -> None:
    """A copy of damage would be found when it is needed, so it is found now."""
    path = folder.path / name
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(StateError, match=f"{path} is damaged"):
        backup(folder.path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_may_be_there(folder: Folder, tmp_path: Path) -> None:
    """And parents need not."""
    (tmp_path / "out").mkdir()
    backup(folder.path, tmp_path / "out")
    backup(folder.path, tmp_path / "far" / "away")
    assert names(tmp_path / "out") == names(tmp_path / "far" / "away")


def test_nothing_is_written_over(folder: Folder, tmp_path: Path) -> None:
    """A folder with something in it, a file, the state folder itself and what lies in it."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for out in (tmp_path / "full", tmp_path / "full" / "file"):
        with pytest.raises(ConfigError, match="no empty folder"):
            backup(folder.path, out)
    for out in (folder.path, folder.path / "copy"):
        with pytest.raises(ConfigError, match="lies in the state folder"):
            backup(folder.path, out)


def test_what_is_no_state_folder(tmp_path: Path) -> None:
    """One line, and nothing is made."""
    with pytest.raises(StateError, match="is not the state folder of a broker"):
        backup(tmp_path, tmp_path.parent / "out of nothing")
    assert not (tmp_path.parent / "out of nothing").exists()


def test_a_place_where_nothing_can_be_made(folder: Folder, tmp_path: Path) -> None:
    """The system's reason."""
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match=r"cannot be copied to .*: (Not a directory|File exists)"):
        backup(folder.path, tmp_path / "file" / "out")


def test_a_disk_that_fills_up(folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names both folders, and what was begun is gone."""

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StateError, match=r"state cannot be copied to .*out: No space left on device"):
        backup(folder.path, tmp_path / "out")
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_an_older_schema_can_be_copied(folder: Folder, tmp_path: Path) -> None:
    """Before an upgrade is when one wants a backup: the new command copies what its broker would migrate."""
    folder.journal.close()
    with sqlite3.connect(folder.path / "journal.db") as db:
        db.execute("ALTER TABLE rounds DROP COLUMN missing")
        db.execute("ALTER TABLE versions DROP COLUMN charged")
        db.execute("ALTER TABLE versions DROP COLUMN clip_norm")
        db.execute("DROP TABLE ledger")
        db.execute("PRAGMA user_version = 1")
    db.close()
    assert backup(folder.path, tmp_path / "out").version == 2
    with pytest.raises(StateError, match="has schema 1"):
        History.open(tmp_path / "out" / "journal.db")
    schema.open_writer(tmp_path / "out" / "journal.db", "os").close()
    History.open(tmp_path / "out" / "journal.db").close()


def test_it_says_what_a_restore_would_forget(folder: Folder, tmp_path: Path) -> None:
    """The note in the copy is read once, by the first broker that is started on it."""
    summary = backup(folder.path, tmp_path / "out")
    assert json.loads((tmp_path / "out" / NOTE).read_text())["version"] == 2
    assert announce(tmp_path / "out") == summary
    assert announce(tmp_path / "out") is None
    (tmp_path / "out" / NOTE).write_text("scribbled over")
    assert announce(tmp_path / "out") is None
    assert not (tmp_path / "out" / NOTE).exists()


def test_spent_privacy_is_in_the_summary(tmp_path: Path) -> None:
    """Steps that were spent, of how many: what a restore would forget is what comes after."""
    private = {
        "mode": {"kind": "sync"},
        "privacy": {
            "epsilon": 3.0,
            "delta": 1e-5,
            "max_grad_norm": 1.0,
            "sampling_rate": 0.1,
            "steps": 10,
            "divisor": 1.0,
            "max_batch": 8,
        },
    }
    summary = backup(Folder(tmp_path / "state", private).path, tmp_path / "out")
    assert isinstance(summary, Summary)
    assert (summary.privacy_steps, summary.privacy_planned) == (2, 10)


def test_a_federation_without_a_model(tmp_path: Path) -> None:
    """There is little to copy, and it is copied."""
    with StateFolder.open(tmp_path / "state") as folder:
        folder.settle(config.parse({"federation": {"state": tmp_path / "state"}}))
        Journal.open(folder.journal, "os").close()
    summary = backup(tmp_path / "state", tmp_path / "out")
    assert (summary.version, summary.waiting) == (None, 0)
    assert names(tmp_path / "out") == {
        "federation.json",
        "config.toml",
        "keys/mac",
        "keys/noise",
        "journal.db",
        NOTE,
    }
