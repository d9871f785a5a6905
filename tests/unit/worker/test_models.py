"""The model cache: files that grow at their end, and are trusted only after they were read."""

import os
from pathlib import Path

import pytest
import xxhash

from fedmq.fedcore.errors import ModelError
from fedmq.worker.models import ModelCache

FILE = os.urandom(5000)
DIGEST = xxhash.xxh3_128_digest(FILE)


def test_blocks_make_a_file_that_outlives_the_process(tmp_path: Path) -> None:
    """Its length is how much of it is here."""
    cache = ModelCache(tmp_path)
    cache.append(DIGEST, 0, memoryview(FILE)[:3000])
    assert ModelCache(tmp_path).lengths() == {DIGEST: 3000}
    ModelCache(tmp_path).append(DIGEST, 3000, memoryview(FILE)[3000:])
    assert ModelCache(tmp_path).open(DIGEST) == FILE


def test_an_open_model_is_read_only_and_outlives_its_file(tmp_path: Path) -> None:
    """Deleting a model while an app trains from it changes nothing for the app."""
    cache = ModelCache(tmp_path)
    cache.append(DIGEST, 0, memoryview(FILE))
    opened = cache.open(DIGEST)
    assert opened.readonly
    cache.delete(DIGEST)
    cache.delete(DIGEST)
    assert opened == FILE
    assert cache.lengths() == {}


def test_a_file_that_is_not_its_digest_is_refused(tmp_path: Path) -> None:
    """Whether it was changed on disk or came so over the wire."""
    cache = ModelCache(tmp_path)
    cache.append(DIGEST, 0, memoryview(FILE[:-1] + bytes([FILE[-1] ^ 1])))
    with pytest.raises(ModelError, match="not what its digest says"):
        cache.open(DIGEST)


def test_a_small_model_stays_in_memory(tmp_path: Path) -> None:
    """It is verified as a file is, leaves the frame that it came in alone, and never touches the disk."""
    cache = ModelCache(tmp_path)
    frame = bytearray(FILE)
    cache.keep(DIGEST, memoryview(frame))
    frame[0] ^= 1
    opened = cache.open(DIGEST)
    assert opened.readonly
    assert opened == FILE
    cache.keep(b"d" * 16, memoryview(FILE))
    with pytest.raises(ModelError, match="not what its digest says"):
        cache.open(b"d" * 16)
    assert cache.lengths() == {}
    cache.delete(DIGEST)
    assert opened == FILE
    with pytest.raises(ModelError, match="not in the cache"):
        cache.open(DIGEST)


@pytest.mark.parametrize("content", [None, b""])
def test_a_file_that_is_not_there_is_an_error(tmp_path: Path, content: bytes | None) -> None:
    """Nothing, or nothing in it."""
    cache = ModelCache(tmp_path)
    if content is not None:
        cache.append(DIGEST, 0, memoryview(b"x"))
        os.truncate(tmp_path / f"{DIGEST.hex()}.safetensors", 0)
    with pytest.raises(ModelError, match="not in the cache"):
        cache.open(DIGEST)


def test_strangers_are_cleared_away_and_the_oldest_comes_first(tmp_path: Path) -> None:
    """What is not a model of ours takes no room; the mind deletes the least recent first."""
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "abcd.safetensors").write_text("x")
    cache = ModelCache(tmp_path)
    for i in (2, 1, 3):
        cache.append(bytes([i]) * 16, 0, memoryview(b"x"))
        os.utime(tmp_path / f"{(bytes([i]) * 16).hex()}.safetensors", ns=(i, i))
    assert list(cache.lengths()) == [bytes([i]) * 16 for i in (1, 2, 3)]
    assert len(list(tmp_path.iterdir())) == 3
