"""The outbox: a result is there whole or not at all, whenever its process dies."""

import errno
import os
import resource
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import xxhash

from fedmq.fedcore.errors import StateError
from fedmq.worker import outbox as outbox_module
from fedmq.worker import small_results
from fedmq.worker.entry import Entry
from fedmq.worker.outbox import Outbox

LARGE = bytes(range(256)) * 257
"""Beyond what may ride with an OFFER: such a result has a file of its own."""


def an_entry(name: str = "t", kind: str = "fit") -> Entry:
    return Entry(
        task=name.encode(),
        kind=kind,  # type: ignore[arg-type]
        federation="fed",
        base=3,
        examples=10,
        metrics={"loss": 0.5},
        layout=b"layout",
        encoding="f32",
    )


@pytest.mark.parametrize("fsync", [False, True])
@pytest.mark.parametrize("size", [0, 1, 65536, 65537, 300_000])
def test_what_is_put_is_there_after_a_restart(tmp_path: Path, size: int, fsync: bool) -> None:
    """Entry and bytes, with size and digest counted; by another process as well."""
    data = os.urandom(size)
    entry = Outbox(tmp_path, fsync=fsync).put(an_entry(), [data[:1000], memoryview(data)[1000:]])
    assert (entry.size, entry.digest) == (size, xxhash.xxh3_128_digest(data))
    again = Outbox(tmp_path)
    assert again.load() == [entry]
    assert again.read(b"t", 0, size) == data
    assert again.read(b"t", size // 2, size - size // 2) == data[size // 2 :]


def test_a_fresh_result_reads_as_a_restarted_one(tmp_path: Path) -> None:
    """Small payloads are in memory; the bytes are the same."""
    outbox = Outbox(tmp_path)
    outbox.put(an_entry(), [b"abc", b"def"])
    assert outbox.read(b"t", 1, 3) == b"bcd"
    again = Outbox(tmp_path)
    again.load()
    assert again.read(b"t", 1, 3) == b"bcd"


def test_an_evaluation_has_no_bytes(tmp_path: Path) -> None:
    """Its metrics wait as an update does."""
    outbox = Outbox(tmp_path)
    entry = outbox.put(an_entry(kind="evaluate"))
    assert (entry.size, entry.digest) == (0, None)
    assert Outbox(tmp_path).load() == [entry]
    assert len(list(tmp_path.iterdir())) == 1


def test_the_oldest_comes_first(tmp_path: Path) -> None:
    """Results are offered in the order in which they were finished."""
    outbox = Outbox(tmp_path)
    for i, name in enumerate("cab"):
        outbox.put(an_entry(name), [LARGE])
        os.utime(tmp_path / f"{name.encode().hex()}.result", ns=(i, i))
        outbox.put(an_entry(f"small {name}"), [b"x"])
    os.utime(tmp_path / "small", ns=(1, 1))
    smalls = [b"small c", b"small a", b"small b"]
    assert [entry.task for entry in Outbox(tmp_path).load()] == [b"c", *smalls, b"a", b"b"]


def test_delete_leaves_nothing(tmp_path: Path) -> None:
    """And deleting what is not there is no error."""
    outbox = Outbox(tmp_path)
    for payload in (b"x", LARGE):
        outbox.put(an_entry(), [payload])
        outbox.delete(b"t")
        outbox.delete(b"t")
    assert [(file.name, file.stat().st_size) for file in tmp_path.iterdir()] == [("small", 0)]


class Plug:
    """Copies the folder before each of a process's steps on it: what a kill there would leave."""

    def __init__(self, folder: Path, copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.copies = copies
        self.count = 0
        for name in ("open", "write", "close", "fsync"):
            self._wrap(monkeypatch, os, name)
        for name in ("replace", "unlink"):
            self._wrap(monkeypatch, Path, name)

    def _wrap(self, monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> None:
        original = getattr(owner, name)

        def step(*args: object, **kwargs: object) -> object:
            self.copy()
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, step)

    def copy(self) -> None:
        target = self.copies / str(self.count)
        if not self.is_copying:
            self.is_copying = True
            shutil.copytree(self.folder, target)
            self.count += 1
            self.is_copying = False

    is_copying = False

    def states(self) -> Iterator[Path]:
        yield from (self.copies / str(i) for i in range(self.count))


def test_a_kill_between_any_two_steps_leaves_all_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of `put` and of `delete`; and what a start finds of half a result is cleared away."""
    folder = tmp_path / "outbox"
    folder.mkdir()
    outbox = Outbox(folder, fsync=True)
    kept = outbox.put(an_entry("kept"), [LARGE])
    with monkeypatch.context() as patch:
        plug = Plug(folder, tmp_path / "copies", patch)
        entry = outbox.put(an_entry("new"), [b"a" * 100, LARGE])
        steps_of_put = plug.count
        outbox.delete(b"new")
        plug.copy()
    seen = []
    for state in plug.states():
        restarted = Outbox(state)
        found = restarted.load()
        assert kept in found
        assert [e for e in found if e != kept] in ([], [entry])
        if entry in found:
            assert restarted.read(b"new", 0, 200) == b"a" * 100 + LARGE[:100]
        assert len(list(state.iterdir())) == len(found)
        seen.append(entry in found)
    assert steps_of_put >= 7
    assert True in seen
    # All of it appears in one step, and goes in one.
    assert sum(before != after for before, after in pairwise(seen)) == 2


@pytest.mark.parametrize("length", [0, 1, 500, 65_537, 65_540, -9, -8, -1])
def test_a_file_that_was_cut_short_is_cleared_away(tmp_path: Path, length: int) -> None:
    """After a power loss a file may end anywhere: such a result is dropped, the others stay."""
    outbox = Outbox(tmp_path)
    outbox.put(an_entry("torn"), [LARGE])
    whole = outbox.put(an_entry("whole"), [LARGE])
    file = tmp_path / f"{b'torn'.hex()}.result"
    file.write_bytes(file.read_bytes()[:length])
    assert Outbox(tmp_path).load() == [whole]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("bit", range(0, 8 * 8, 5))
def test_a_damaged_end_is_no_result(tmp_path: Path, bit: int) -> None:
    """Whatever bit of it is wrong; and noise is none either."""
    Outbox(tmp_path).put(an_entry(), [LARGE])
    file = tmp_path / f"{b't'.hex()}.result"
    data = bytearray(file.read_bytes())
    data[-1 - bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)
    (tmp_path / "noise").write_bytes(os.urandom(300))
    assert Outbox(tmp_path).load() == []
    assert list(tmp_path.iterdir()) == []


def test_an_entry_under_another_name_is_not_ours(tmp_path: Path) -> None:
    """A renamed file would be deleted under the wrong name later."""
    outbox = Outbox(tmp_path)
    outbox.put(an_entry("a"), [LARGE])
    (tmp_path / f"{b'a'.hex()}.result").rename(tmp_path / f"{b'b'.hex()}.result")
    assert Outbox(tmp_path).load() == []


@pytest.mark.parametrize("payload", [b"x", LARGE], ids=["small", "large"])
def test_a_full_disk_is_said_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, payload: bytes
) -> None:
    """`the disk is full`, by name of the folder; no half of the result stays."""
    outbox = Outbox(tmp_path)
    whole = outbox.put(an_entry("before"), [b"x"])

    def full(fd: int, data: bytes) -> None:
        os.write(fd, bytes(data)[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        for module in (outbox_module, small_results):
            patch.setattr(module, "write_all", full)
        with pytest.raises(StateError, match="the disk is full"):
            outbox.put(an_entry(), [payload])
    after = outbox.put(an_entry("after"), [b"y"])
    assert Outbox(tmp_path).load() == [whole, after]
    assert len(list(tmp_path.iterdir())) == 1


def test_an_error_while_encoding_leaves_nothing(tmp_path: Path) -> None:
    """What raises in the middle of a payload goes on, and its file goes away."""

    def chunks() -> Iterator[bytes]:
        yield LARGE
        raise ValueError("not finite")

    with pytest.raises(ValueError, match="not finite"):
        Outbox(tmp_path).put(an_entry(), chunks())
    assert list(tmp_path.iterdir()) == []


def test_bytes_that_are_being_sent_outlive_their_result(tmp_path: Path) -> None:
    """They are mapped, from any offset, not copied; a result that is deleted meanwhile changes nothing in them."""
    outbox = Outbox(tmp_path)
    outbox.put(an_entry(), [LARGE])
    views = [outbox.read(b"t", offset, 5000) for offset in (0, 1, 4095, 4096, 10_001)]
    assert outbox.read(b"t", 7, 0) == b""
    outbox.delete(b"t")
    assert [bytes(view) for view in views] == [LARGE[o : o + 5000] for o in (0, 1, 4095, 4096, 10_001)]


def test_bytes_are_read_where_no_descriptor_is_left_to_map_them(tmp_path: Path) -> None:
    """One is free, for the file: a result is not given up for want of a second one."""
    outbox = Outbox(tmp_path)
    outbox.put(an_entry(), [LARGE])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            taken.extend(os.open(os.devnull, os.O_RDONLY) for _ in iter(int, 1))
        os.close(taken.pop())
        assert bytes(outbox.read(b"t", 4097, 5000)) == LARGE[4097:9097]
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_bytes_that_are_gone_are_a_clear_error(tmp_path: Path) -> None:
    """For the mind, which has the task failed."""
    Outbox(tmp_path).put(an_entry(), [LARGE])
    outbox = Outbox(tmp_path)
    file = tmp_path / f"{b't'.hex()}.result"
    file.write_bytes(b"x")
    with pytest.raises(StateError, match="cut short"):
        outbox.read(b"t", 0, 10)
    file.unlink()
    with pytest.raises(StateError, match="cannot be read"):
        outbox.read(b"t", 0, 10)
