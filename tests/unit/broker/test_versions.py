"""The version store: files that are whole, durable before they are named, and read without a copy."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from fedmq.broker.store.versions import MAPS_MAX, VersionStore
from fedmq.fedcore import model_file
from fedmq.fedcore.errors import ModelError, StateError

MODEL = {"w": np.arange(100, dtype=np.float32), "steps": np.array(3)}
FILE = b"".join(model_file.from_arrays(MODEL).chunks)


class Killed(BaseException):
    """The process dies here: nothing that comes after it runs, no cleaning up either."""


@pytest.fixture
def store(tmp_path: Path) -> VersionStore:
    return VersionStore(tmp_path / "versions")


def names(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "versions").iterdir())


def add(store: VersionStore, version: int, slots: tuple[str, ...] = ()) -> model_file.Written:
    with store.writer(version, slots) as writer:
        writer.model(FILE)
        for slot in slots:
            writer.state(slot, np.full(100, version, np.float32).data)
        return writer.commit()


def test_a_version_is_a_safetensors_file(store: VersionStore, tmp_path: Path) -> None:
    """What was written has the size and digest that `write` says, and any tool reads it."""
    model = model_file.from_arrays(MODEL)
    written = store.write(0, model.chunks)
    assert written == model_file.Written(len(FILE), model_file.digest(FILE))
    assert names(tmp_path) == ["v00000000.safetensors"]
    loaded = safetensors.numpy.load_file(store.path(0))
    np.testing.assert_array_equal(loaded["w"], MODEL["w"])
    assert store.layout(0) == model.layout


def test_blocks_are_views_of_the_file(store: VersionStore) -> None:
    """A block is exactly min(length, size − offset) bytes, read-only, and nothing is copied for it."""
    add(store, 0)
    first, again = store.block(0, 0, 64), store.block(0, 0, 64)
    assert np.shares_memory(np.frombuffer(first, np.uint8), np.frombuffer(again, np.uint8))
    assert first.readonly
    blocks = [bytes(store.block(0, offset, 100)) for offset in range(0, len(FILE), 100)]
    assert b"".join(blocks) == FILE
    assert len(blocks[-1]) == len(FILE) % 100


@pytest.mark.parametrize(("offset", "length"), [(-1, 5), (len(FILE), 1), (1 << 60, 1), (0, 0), (0, -1)])
def test_a_block_of_nothing_is_refused(store: VersionStore, offset: int, length: int) -> None:
    """Where no byte of the file lies there is no block."""
    add(store, 0)
    with pytest.raises(ValueError, match=f"at {offset} of a file"):
        store.block(0, offset, length)


def test_a_deleted_version_stays_readable_for_who_holds_it(store: VersionStore) -> None:
    """Deleting takes the name away; views that are still being sent keep their bytes."""
    add(store, 3)
    view = store.block(3, 0, 64)
    store.delete([3, 4])
    assert bytes(view) == FILE[:64]
    with pytest.raises(StateError, match="version 3 is not kept"):
        store.block(3, 0, 64)


def test_many_kept_versions_do_not_take_a_descriptor_each(store: VersionStore) -> None:
    """However many are read, only the last few stay mapped; the others are mapped again when they are asked for."""
    before = len(list(Path("/dev/fd").iterdir()))
    held = None
    for version in range(2 * MAPS_MAX):
        add(store, version)
        held = held or store.file(version)
        assert bytes(store.file(version)) == FILE
    assert len(list(Path("/dev/fd").iterdir())) - before <= MAPS_MAX + 1
    assert held is not None
    assert bytes(held) == bytes(store.file(0)) == FILE


def test_optimizer_state_lies_beside_its_version(store: VersionStore, tmp_path: Path) -> None:
    """Each slot is a flat float32 file; version 0 has zeros without a file."""
    add(store, 7, ("velocity", "v"))
    assert names(tmp_path) == ["v00000007.safetensors", "v00000007.v.f32", "v00000007.velocity.f32"]
    assert store.state(7, "velocity", 100).tolist() == [7.0] * 100
    assert store.state(0, "velocity", 5).tolist() == [0.0] * 5
    with pytest.raises(StateError, match="expected 396"):
        store.state(7, "v", 99)
    with pytest.raises(StateError, match="the optimizer's m of version 7"):
        store.state(7, "m", 100)


def test_state_goes_with_its_version_or_before(store: VersionStore, tmp_path: Path) -> None:
    """Old state can be dropped while old models stay; deleting a version deletes its state."""
    for version in (1, 2, 3):
        add(store, version, ("m",))
    store.delete_states_before(3)
    assert names(tmp_path) == [
        *(f"v0000000{v}.safetensors" for v in (1, 2)),
        "v00000003.m.f32",
        "v00000003.safetensors",
    ]
    store.delete([3])
    assert store.versions() == (1, 2)
    assert names(tmp_path) == ["v00000001.safetensors", "v00000002.safetensors"]


def test_a_full_disk_shows_before_anything_is_written(
    store: VersionStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where sizes are known the space is taken first: what does not fit fails at once, and leaves nothing."""
    asked: list[int] = []

    def refuse(descriptor: int, offset: int, size: int) -> None:
        asked.append(offset + size)
        if len(asked) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(StateError, match="the disk is full"):
        store.writer(1, ("m",), size=len(FILE), n=100)
    assert asked == [400, len(FILE)]
    assert names(tmp_path) == []


@pytest.mark.parametrize("able", [True, False])
def test_space_that_was_taken_shows_in_no_byte(
    store: VersionStore, monkeypatch: pytest.MonkeyPatch, able: bool
) -> None:
    """The file is what was written into it, also where a file system cannot take space beforehand."""
    if not able:

        def refuse(*_: int) -> None:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

        monkeypatch.setattr(os, "posix_fallocate", refuse)
    with store.writer(1, size=len(FILE)) as writer:
        writer.model(FILE[:70])
        writer.model(FILE[70:])
        writer.commit()
    assert store.path(1).read_bytes() == FILE


def test_why_the_writing_ended_is_not_lost_over_what_remains(
    store: VersionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder that has become read-only the unfinished file stays, until recovery."""

    def unlink(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", unlink)
    with pytest.raises(StateError, match="the disk"), store.writer(7):
        raise StateError("the disk")


def test_what_is_not_committed_leaves_nothing(store: VersionStore, tmp_path: Path) -> None:
    """A writer that ends early, by an error or by itself, leaves no file."""
    with store.writer(1, ("m",)) as writer:
        writer.model(b"half")
        assert len(names(tmp_path)) == 2

    def chunks() -> Iterator[bytes]:
        yield b"half"
        raise ModelError("not finite")

    with pytest.raises(ModelError):
        store.write(2, chunks())
    assert names(tmp_path) == []


@pytest.mark.parametrize("moment", range(5))
def test_a_crash_at_any_moment_of_a_commit_leaves_the_old_version_in_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """Killed before, between or after the renames: the journal's version is whole, the rest is cleaned."""
    store = VersionStore(tmp_path / "versions")
    add(store, 1, ("m",))
    calls = 0

    def deadly(real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            nonlocal calls
            if calls == moment:
                raise Killed
            calls += 1
            return real(*args, **kwargs)

        return call

    writer = store.writer(2, ("m",))
    writer.model(FILE)
    writer.state("m", bytes(400))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", deadly(os.fsync))
        patch.setattr(Path, "replace", deadly(Path.replace))
        with pytest.raises(Killed):
            writer.commit()
    for file in writer._files.values():
        file.close()
    left = names(tmp_path)
    assert len(left) == 4
    assert ("v00000002.safetensors" in left) == (moment == 4)

    again = VersionStore(tmp_path / "versions")
    assert again.recover(1) == (1,)
    assert names(tmp_path) == ["v00000001.m.f32", "v00000001.safetensors"]
    add(again, 2, ("m",))
    assert again.recover(2) == (1, 2)


def test_everything_is_synced_before_it_has_its_name(
    store: VersionStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file is fsynced before it is renamed, the model comes last, then the folder is fsynced."""
    seen: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def watched_fsync(descriptor: int) -> None:
        seen.append("sync " + Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def watched_replace(path: Path, target: Path) -> Path:
        seen.append(f"name {target.name}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "replace", watched_replace)
    add(store, 1, ("m",))
    assert seen == [
        "sync v00000001.m.f32.new",
        "sync v00000001.safetensors.new",
        "name v00000001.m.f32",
        "name v00000001.safetensors",
        "sync versions",
    ]
    seen.clear()
    add(VersionStore(tmp_path / "versions", fsync=False), 2, ("m",))
    assert seen == ["name v00000002.m.f32", "name v00000002.safetensors"]


def test_recovery_leaves_other_files_alone(store: VersionStore, tmp_path: Path) -> None:
    """Only what this store writes is cleaned; versions up to the current one stay."""
    for version in (0, 5, 6):
        add(store, version)
    (tmp_path / "versions" / "notes.txt").write_text("an operator's")
    assert store.recover(5) == (0, 5)
    assert "notes.txt" in names(tmp_path)
    assert VersionStore(tmp_path / "versions").recover(None) == ()
    assert names(tmp_path) == ["notes.txt"]


def test_a_missing_current_version_is_an_error(store: VersionStore) -> None:
    """A state folder of which a part is gone is not quietly started anew."""
    add(store, 1)
    with pytest.raises(StateError, match="version 2 is current"):
        store.recover(2)


def test_a_torn_file_is_found(store: VersionStore) -> None:
    """A file that was cut or changed is not what the journal says; an empty one cannot be read."""
    written = add(store, 1)
    store.verify(1, size=written.size, digest=written.digest)
    for content in (FILE[:-1], FILE[:-1] + b"x", b""):
        store.path(1).write_bytes(content)
        fresh = VersionStore(store.path(1).parent)
        with pytest.raises(StateError, match=r"v00000001\.safetensors (is damaged|cannot be read)"):
            fresh.verify(1, size=written.size, digest=written.digest)


def test_a_full_disk_is_a_state_error(store: VersionStore, tmp_path: Path) -> None:
    """What the disk refuses is one clear line, and leaves nothing."""
    store.path(1).with_name("v00000001.safetensors.new").symlink_to("/dev/full")
    with pytest.raises(StateError, match=r"cannot be written: .*No space left"):
        add(store, 1)
    assert names(tmp_path) == []
