"""Small results in one file: whole records, whatever ends the process, and a file that does not grow for ever."""

import os
from pathlib import Path

import pytest
import xxhash

from fedmq.worker import small_results
from fedmq.worker.entry import Entry
from fedmq.worker.small_results import SmallResults


def an_entry(name: str, payload: bytes) -> Entry:
    digest = xxhash.xxh3_128_digest(payload)
    fields = {"federation": "f", "base": 1, "examples": 3, "layout": b"l", "encoding": "f32"}
    return Entry(task=name.encode(), kind="fit", size=len(payload), digest=digest, **fields)  # type: ignore[arg-type]


def put(results: SmallResults, *names: str, size: int = 100) -> list[Entry]:
    entries = []
    for name in names:
        payload = name.encode() * size
        entries.append(an_entry(name, payload))
        results.put(entries[-1], payload)
    return entries


@pytest.mark.parametrize("fsync", [False, True])
def test_records_outlive_the_process(tmp_path: Path, fsync: bool) -> None:
    """In the order in which they were put, with their bytes; also those that a later process adds."""
    first = put(SmallResults(tmp_path / "small", fsync=fsync), "a", "b")
    again = SmallResults(tmp_path / "small", fsync=fsync)
    assert again.load() == first
    more = put(again, "c")
    last = SmallResults(tmp_path / "small", fsync=fsync)
    assert last.load() == first + more
    assert [last.payload(name) for name in (b"a", b"c", b"d")] == [b"a" * 100, b"c" * 100, None]


def test_a_file_that_ends_anywhere_holds_what_was_whole(tmp_path: Path) -> None:
    """A kill in the middle of a record leaves those before it, and the next record finds its place."""
    path = tmp_path / "small"
    entries = put(SmallResults(path, fsync=False), "a", "b", size=9)
    data = path.read_bytes()
    whole = len(data) // 2
    for length in range(len(data)):
        path.write_bytes(data[:length])
        results = SmallResults(path, fsync=False)
        assert results.load() == (entries[:1] if length >= whole else [])
        (added,) = put(results, "c")
        assert SmallResults(path, fsync=False).load() == [*(entries[:1] if length >= whole else []), added]


def test_a_flipped_bit_ends_the_file(tmp_path: Path) -> None:
    """Nothing of a damaged record is believed."""
    path = tmp_path / "small"
    first, _ = put(SmallResults(path, fsync=False), "a", "b", size=3)
    data = path.read_bytes()
    for place in range(len(data) // 2, len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        assert SmallResults(path, fsync=False).load() == [first]


def test_acknowledged_results_do_not_come_back(tmp_path: Path) -> None:
    """However the process ends: the broker may have forgotten them, and would call them stale."""
    path = tmp_path / "small"
    results = SmallResults(path, fsync=False)
    _, waiting = put(results, "a", "b")
    assert results.delete(b"a")
    assert not results.delete(b"a")
    again = SmallResults(path, fsync=False)
    assert again.load() == [waiting]
    assert again.payload(b"a") is None
    assert results.delete(b"b")
    assert path.stat().st_size == 0
    (added,) = put(results, "c")
    assert SmallResults(path, fsync=False).load() == [added]


def test_an_acknowledgement_that_cannot_be_written_costs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of it is cut off, so that the next record is found; the result may come back once."""

    def full(fd: int, data: bytes) -> None:
        os.write(fd, data[:10])
        raise OSError(28, "No space left on device")

    path = tmp_path / "small"
    results = SmallResults(path, fsync=False)
    before = put(results, "a", "b")
    with monkeypatch.context() as patch:
        patch.setattr(small_results, "write_all", full)
        assert results.delete(b"a")
    after = put(results, "c")
    assert SmallResults(path, fsync=False).load() == before + after


def test_an_orderly_end_leaves_only_what_waits(tmp_path: Path) -> None:
    """So that nothing is offered twice after a restart."""
    path = tmp_path / "small"
    results = SmallResults(path, fsync=False)
    _, waiting = put(results, "a", "b")
    results.delete(b"a")
    results.close()
    assert SmallResults(path, fsync=False).load() == [waiting]


def test_the_file_is_written_anew_when_most_of_it_was_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One result that nobody acknowledges does not make the file grow for ever."""
    monkeypatch.setattr(small_results, "COMPACT", 4_000)
    path = tmp_path / "small"
    results = SmallResults(path, fsync=False)
    (stuck,) = put(results, "stuck")
    for number in range(100):
        put(results, f"{number}")
        results.delete(b"%d" % number)
        assert path.stat().st_size < 5_000
    (last,) = put(results, "last")
    found = SmallResults(path, fsync=False).load()
    assert (found[0], found[-1]) == (stuck, last)
    assert len(found) < 30
    assert results.payload(b"stuck") == b"stuck" * 100


def test_a_record_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of it is cut off again, and the next one is whole."""

    def full(fd: int, data: bytes) -> None:
        os.write(fd, data[:10])
        raise OSError(28, "No space left on device")

    path = tmp_path / "small"
    results = SmallResults(path, fsync=False)
    before = put(results, "a")
    with monkeypatch.context() as patch:
        patch.setattr(small_results, "write_all", full)
        with pytest.raises(OSError, match="No space"):
            put(results, "b")
    assert results.payload(b"b") is None
    after = put(results, "c")
    assert SmallResults(path, fsync=False).load() == before + after
