"""The model cache: files that grow at their end, and are trusted only after they were read."""

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import xxhash

from fedmq.fedcore import model_file
from fedmq.fedcore.encoded_model import encoded
from fedmq.fedcore.errors import ModelError, StateError
from fedmq.fedcore.layout import Layout
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


@pytest.mark.parametrize("is_small", [False, True])
def test_what_is_written_into_a_writable_model_nobody_else_sees(tmp_path: Path, is_small: bool) -> None:
    """Not the base, not the file, not the next one who asks; and it outlives its file."""
    cache = ModelCache(tmp_path)
    if is_small:
        cache.keep(DIGEST, memoryview(FILE))
    else:
        cache.append(DIGEST, 0, memoryview(FILE))
    opened = cache.open(DIGEST)
    own, other = cache.writable(DIGEST), cache.writable(DIGEST)
    own[0] ^= 1
    assert bytes(own) == bytes([FILE[0] ^ 1]) + FILE[1:]
    assert opened == other == cache.open(DIGEST) == FILE
    cache.delete(DIGEST)
    own[1] ^= 1
    assert other == FILE
    with pytest.raises(ModelError, match="not in the cache"):
        cache.writable(DIGEST)


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


def a_model() -> tuple[bytes, bytes]:
    """A version's file, and what it is as halves."""
    tensors = {"w": np.linspace(-1, 1, 5001, dtype=np.float32), "steps": np.array(7)}
    file = b"".join(bytes(chunk) for chunk in model_file.from_arrays(tensors).chunks)
    return file, b"".join(bytes(chunk) for chunk in encoded(file, Layout.from_file_prefix(file), "f16"))


@pytest.mark.parametrize("small", [True, False], ids=["in memory", "mapped"])
def test_a_model_that_came_as_halves_is_opened_as_what_they_stand_for(tmp_path: Path, small: bool) -> None:
    """A model file like any other; the file that came stays as it is, and the other has no name and no copy."""
    file, came = a_model()
    digest = xxhash.xxh3_128_digest(came)
    cache = ModelCache(tmp_path)
    if small:
        cache.keep(digest, memoryview(came))
    else:
        cache.append(digest, 0, memoryview(came))
    opened = cache.open(digest, "f16")
    assert opened.readonly
    layout = Layout.from_file_prefix(opened, len(opened))
    assert layout == Layout.from_file_prefix(file, len(file))
    assert np.array_equal(layout.flat(opened), layout.flat(file).astype(np.float16).astype(np.float32))
    assert cache.open(digest, "f16") is opened
    assert cache.open(digest) == came
    assert len(list(tmp_path.iterdir())) == (0 if small else 1)
    cache.delete(digest)
    assert layout.flat(opened)[0] == -1
    with pytest.raises(ModelError, match="not in the cache"):
        cache.open(digest, "f16")


def test_halves_are_verified_before_they_are_read(tmp_path: Path) -> None:
    """The digest is that of what came; what it is not is not decoded, nor is what is no model."""
    _, came = a_model()
    cache = ModelCache(tmp_path)
    cache.append(DIGEST, 0, memoryview(came))
    with pytest.raises(ModelError, match="not what its digest says"):
        cache.open(DIGEST, "f16")
    cut = xxhash.xxh3_128_digest(came[:-1])
    cache.append(cut, 0, memoryview(came[:-1]))
    with pytest.raises(ModelError, match="expected"):
        cache.open(cut, "f16")


def test_no_room_for_the_decoded_model_is_not_the_models_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be fetched again for nothing."""
    _, came = a_model()
    digest = xxhash.xxh3_128_digest(came)
    cache = ModelCache(tmp_path)
    cache.append(digest, 0, memoryview(came))

    def refuses(**_: object) -> object:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuses)
    with pytest.raises(StateError, match="No space left on device"):
        cache.open(digest, "f16")
