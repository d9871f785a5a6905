"""Versions as workers fetch them: made of the version's file, gone with it, and never trusted after a crash."""

from pathlib import Path

import numpy as np
import pytest

from fedmq.broker.store import encoded_versions
from fedmq.broker.store.encoded_versions import encode_version
from fedmq.broker.store.versions import VersionStore
from fedmq.fedcore import model_file
from fedmq.fedcore.errors import StateError


def a_store(folder: Path, *values: float, versions: int = 1) -> VersionStore:
    store = VersionStore(folder, fsync=False)
    for version in range(versions):
        w = np.array(values or [0.1, -2.0], np.float32)
        store.write(version, model_file.from_arrays({"w": w, "n": np.array(3)}).chunks)
    return store


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("encoding", ["f16", "bf16"])
def test_it_is_made_once_and_served_like_the_version(tmp_path: Path, encoding: str) -> None:
    """Size and digest are those of its bytes; made again, after whatever, they are the same."""
    store = a_store(tmp_path)
    made = encode_version(store, 0, encoding)
    file = bytes(store.block(0, 0, 1 << 20, encoding))
    assert (made.size, made.digest, made.refusal) == (len(file), model_file.digest(file), "")
    assert made.size == len(store.file(0)) - 4
    assert bytes(store.block(0, 8, 16, encoding)) == file[8:24]
    assert encode_version(store, 0, encoding) == made
    assert not any(name.endswith(".new") for name in names(tmp_path))


def test_it_goes_with_its_version(tmp_path: Path) -> None:
    """Whoever still holds a view of it reads on."""
    store = a_store(tmp_path, versions=2)
    for version in (0, 1):
        encode_version(store, version, "f16")
    view = store.block(0, 0, 64, "f16")
    before = bytes(view)
    store.delete((0,))
    assert names(tmp_path) == {"v00000001.safetensors", "v00000001.f16"}
    assert bytes(view) == before
    with pytest.raises(StateError, match="version 0 as f16 is not kept"):
        store.block(0, 0, 64, "f16")
    assert store.versions() == (1,)


def test_the_next_process_deletes_what_it_finds(tmp_path: Path) -> None:
    """It was never synced: after a power cut there may be anything in it."""
    store = a_store(tmp_path)
    encode_version(store, 0, "f16")
    (tmp_path / "v00000000.bf16.new").write_bytes(b"half of it")
    assert VersionStore(tmp_path).recover(0) == (0,)
    assert names(tmp_path) == {"v00000000.safetensors"}


def test_a_version_that_it_cannot_say_leaves_nothing(tmp_path: Path) -> None:
    """The reason names the tensor; nothing that could be served is there."""
    made = encode_version(a_store(tmp_path, 1.0, 1e5), 0, "f16")
    assert (made.size, made.digest) == (0, b"")
    assert made.refusal == "tensor 'w' holds 100000, which is not finite as f16"
    assert names(tmp_path) == {"v00000000.safetensors"}


def test_a_version_that_was_collected_is_no_error(tmp_path: Path) -> None:
    """It may have been waiting behind a long fold."""
    assert encode_version(a_store(tmp_path), 7, "f16").refusal == "no longer kept"


def test_a_death_on_the_way_leaves_no_file_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there under the final name is whole."""
    store = a_store(tmp_path)
    whole = encoded_versions.encoded

    def dies(*args: object) -> object:
        yield next(whole(*args))  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(encoded_versions, "encoded", dies)
    with pytest.raises(KeyboardInterrupt):
        encode_version(store, 0, "f16")
    assert names(tmp_path) == {"v00000000.safetensors", "v00000000.f16.new"}
    assert VersionStore(tmp_path).recover(0) == (0,)
    assert names(tmp_path) == {"v00000000.safetensors"}


def test_a_full_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does when a version cannot be written."""
    store = a_store(tmp_path)

    def refuses(*args: object) -> object:
        raise OSError(28, "No space left on device")
        yield

    monkeypatch.setattr(encoded_versions, "encoded", refuses)
    with pytest.raises(StateError, match=r"v00000000\.f16 cannot be written.*the disk is full"):
        encode_version(store, 0, "f16")
