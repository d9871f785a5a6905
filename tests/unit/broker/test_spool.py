"""The spool: bytes that only grow, resume where they ended, and are durable before they are sealed."""

import errno
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq.broker.events import Sealed
from fedmq.broker.store import spool as spool_module
from fedmq.broker.store.spool import Spool
from fedmq.fedcore import kernels, model_file
from fedmq.fedcore.codecs import ENCODINGS
from fedmq.fedcore.errors import StateError

TASK = b"\x01task\xff"
X = np.random.default_rng(3).normal(size=5000).astype(np.float32)


def upload(spool: Spool, task: bytes, payload: bytes, encoding: str = "f32", step: int = 4096) -> Sealed:
    offset = spool.open(task, len(payload), encoding)
    while offset < len(payload):
        offset = spool.write(task, offset, memoryview(payload)[offset : offset + step])
    return spool.seal(task)


def expected(task: bytes, payload: bytes, encoding: str = "f32") -> Sealed:
    return Sealed(
        task, model_file.digest(payload), math.sqrt(kernels.sum_squares(payload, encoding=encoding))
    )


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("step", [1021, 65536])
def test_a_sealed_upload_has_the_digest_and_norm_of_its_bytes(spool: Spool, encoding: str, step: int) -> None:
    """Whatever the size of the blocks, digest and norm are those of the whole payload, decoded."""
    payload = kernels.encode(X, encoding, key=bytes(32))
    assert upload(spool, TASK, payload, encoding, step) == expected(TASK, payload, encoding)
    assert bytes(spool.payload(TASK)) == payload
    assert spool.path(TASK).name == "017461736bff"


@given(cuts=st.lists(st.integers(1, 4000), max_size=6), kills=st.sets(st.integers(0, 5)))
def test_an_upload_goes_on_after_a_kill(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], kills: set[int]
) -> None:
    """A new process holds what the file holds, and seals with the same digest and norm."""
    payload = X[:1000].tobytes()
    folder = tmp_path_factory.mktemp("spool")
    spool = Spool(folder, fsync=False)
    offset = spool.open(TASK, len(payload), "f32")
    for i, cut in enumerate([*cuts, len(payload)]):
        part = payload[offset : offset + cut]
        assert spool.write(TASK, offset, part) == offset + len(part)
        offset += len(part)
        if i in kills:
            spool.close()  # a kill does as much: there is nothing but the file
            spool = Spool(folder, fsync=False)
            assert spool.tasks() == {TASK}
            assert spool.open(TASK, len(payload), "f32") == offset
    assert spool.seal(TASK) == expected(TASK, payload)


def test_a_sealed_upload_can_be_sealed_again_after_a_restart(spool: Spool, tmp_path: Path) -> None:
    """Killed between seal and accept: the file is whole, and is read again for digest and norm."""
    payload = X.tobytes()
    first = upload(spool, TASK, payload)
    again = Spool(tmp_path / "spool")
    assert again.open(TASK, len(payload), "f32") == len(payload)
    assert again.seal(TASK) == first


def test_opening_again_goes_on(spool: Spool) -> None:
    """A worker that offers again after a cut connection continues; nothing is read twice."""
    payload = X.tobytes()
    spool.open(TASK, len(payload), "f32")
    spool.write(TASK, 0, payload[:1000])
    assert spool.open(TASK, len(payload), "f32") == 1000


def test_a_file_that_is_longer_than_the_offer_is_emptied(spool: Spool, tmp_path: Path) -> None:
    """What cannot be the beginning of the offered payload is not resumed."""
    spool.open(TASK, 4000, "f32")
    spool.write(TASK, 0, X[:1000].tobytes())
    assert Spool(tmp_path / "spool").open(TASK, 400, "f32") == 0
    assert spool.path(TASK).stat().st_size == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_not_finite_has_a_norm_that_is_not(spool: Spool, value: float) -> None:
    """Finiteness is judged by the norm, in whatever block the value was."""
    x = X.copy()
    x[4999] = value
    norm = upload(spool, TASK, x.tobytes()).norm
    assert norm is not None
    assert not math.isfinite(norm)


def test_a_model_file_has_no_norm(spool: Spool) -> None:
    """What a worker offers as the initial model is no update; only its digest counts."""
    sealed = upload(spool, TASK, b"not an update", "safetensors")
    assert sealed == Sealed(TASK, model_file.digest(b"not an update"), None)


def test_bytes_must_continue_the_file(spool: Spool) -> None:
    """A gap, a repetition, bytes beyond the end, an unknown or incomplete upload: nothing changes."""
    with pytest.raises(ValueError, match="is not open"):
        spool.write(TASK, 0, b"1234")
    spool.open(TASK, 8, "f32")
    spool.write(TASK, 0, b"1234")
    for offset, data in ((8, b""), (0, b"1234"), (5, b"1"), (4, b"12345")):
        with pytest.raises(ValueError, match=f"at {offset} of an upload that holds 4 of 8"):
            spool.write(TASK, offset, data)
    with pytest.raises(ValueError, match="holds 4 of 8"):
        spool.seal(TASK)
    assert spool.path(TASK).read_bytes() == b"1234"


def test_seal_waits_for_the_disk(spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes go to the disk every so many, then the rest, then the folder's entry; never with fsync off."""
    seen: list[str] = []
    fdatasync, fsync = os.fdatasync, os.fsync

    def name(descriptor: int) -> str:
        return Path(f"/proc/self/fd/{descriptor}").readlink().name

    monkeypatch.setattr(os, "fdatasync", lambda fd: (seen.append(f"data {name(fd)}"), fdatasync(fd)))
    monkeypatch.setattr(os, "fsync", lambda fd: (seen.append(f"folder {name(fd)}"), fsync(fd)))
    monkeypatch.setattr(spool_module, "SYNC_BYTES", 8192)
    upload(spool, b"\xaa", X.tobytes())
    assert seen == ["data aa", "data aa", "data aa", "folder spool"]
    seen.clear()
    upload(Spool(tmp_path / "os", fsync=False), b"\xaa", X.tobytes())
    assert seen == []


def test_it_knows_its_tasks(spool: Spool, tmp_path: Path) -> None:
    """Open ones too, and after a restart; deleting one that was never here is no error."""
    upload(spool, b"a", bytes(400))
    spool.open(b"b", 1000, "f32")
    spool.write(b"b", 0, bytes(40))
    assert spool.tasks() == {b"a", b"b"}
    assert Spool(tmp_path / "spool").tasks() == {b"a", b"b"}
    spool.delete([b"a", b"b", b"never seen"])
    assert spool.tasks() == frozenset()
    assert not any((tmp_path / "spool").iterdir())


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    """Only names in lower-case hex are payloads."""
    for name in ("README", "AB", "ab"):
        (tmp_path / name).write_bytes(b"1")
    assert Spool(tmp_path).tasks() == {b"\xab"}


def test_parts_of_a_payload_are_mapped(spool: Spool) -> None:
    """Any range can be read, on no particular page; a deleted payload lives as long as its view."""
    payload = X.tobytes()
    upload(spool, TASK, payload)
    for start, stop in ((0, 1), (4095, 4097), (4096, 8192), (5001, 20000), (7, 7), (20000, 20000)):
        assert bytes(spool.payload(TASK, start, stop)) == payload[start:stop]
    view = spool.payload(TASK, 100, 200)
    assert view.readonly
    spool.delete([TASK])
    assert bytes(view) == payload[100:200]


def test_a_short_or_missing_payload_is_a_state_error(spool: Spool) -> None:
    """A file that lost its end is found before it is folded."""
    upload(spool, TASK, X.tobytes())
    with pytest.raises(StateError, match="expected at least 20001"):
        spool.payload(TASK, 0, 20001)
    os.truncate(spool.path(TASK), 100)
    with pytest.raises(StateError, match="damaged: 100 bytes"):
        spool.payload(TASK, 0, 200)
    spool.delete([TASK])
    with pytest.raises(StateError, match="cannot be read"):
        spool.payload(TASK)


def test_a_full_disk_is_a_state_error(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the disk refuses is one clear line; what it took before is not counted, and written again."""
    payload = X.tobytes()
    spool.open(TASK, len(payload), "f32")
    pwrite = os.pwrite

    def full(descriptor: int, data: memoryview, offset: int) -> int:
        if offset >= 4096:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(descriptor, data[:4096], offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(StateError, match=r"017461736bff cannot be written: No space left"):
            spool.write(TASK, 0, payload)
    assert spool.open(TASK, len(payload), "f32") == 0
    assert upload(spool, TASK, payload) == expected(TASK, payload)


@pytest.mark.parametrize("step", [7, 65536])
def test_more_values_than_were_asked_for_are_a_fault(spool: Spool, step: int) -> None:
    """Counted when all is here; as many as were asked for are none."""
    x = np.where(np.arange(40_000) % 50 == 0, np.float32(1), np.float32(0))
    payload = kernels.encode(x, "topk")
    for most, fault in ((800, ""), (799, "payload: holds 800 values, at most 799 were asked for")):
        offset = spool.open(TASK, len(payload), "topk", x.size, most)
        while offset < len(payload):
            offset = spool.write(TASK, offset, payload[offset : offset + step])
        sealed = spool.seal(TASK)
        assert (sealed.fault, sealed.norm is None) == (fault, bool(fault))
        assert sealed.digest == model_file.digest(payload)
        spool.delete((TASK,))


@pytest.mark.parametrize("step", [7, 65536])
def test_bytes_that_are_no_payload_are_a_fault(spool: Spool, step: int) -> None:
    """They arrive like any others, and are sealed; then it is said what is wrong with them."""
    x = np.where(np.arange(X.size) % 50 == 0, X, np.float32(0))
    payload = kernels.encode(x, "topk")
    for n, data, fault in (
        (X.size, payload, ""),
        (X.size + 1, payload, "payload: the data so far must be of 5001 values, as topk, not of 5000"),
        (X.size, payload[:-1], "payload: the data so far: block 0 of a topk payload is cut off"),
        (X.size, payload + payload, "payload: the data so far: block 0 of a topk payload is of 5000 values"),
        (
            X.size,
            bytes(len(payload)),
            "payload: the data so far: block 0 of a topk payload cannot be of 0 values",
        ),
    ):
        offset = spool.open(TASK, len(data), "topk", n)
        while offset < len(data):
            offset = spool.write(TASK, offset, data[offset : offset + step])
        sealed = spool.seal(TASK)
        assert sealed.digest == model_file.digest(data)
        assert sealed.fault.startswith(fault)
        assert (sealed.norm is None) == bool(fault) == bool(sealed.fault)
        spool.delete((TASK,))
