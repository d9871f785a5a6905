"""A model in fewer bytes: the version's header and other tensors as they are, its floats rounded, and nothing else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmq.fedcore import encoded_model, kernels, model_file
from fedmq.fedcore.encoded_model import decoded, encoded, encoded_size
from fedmq.fedcore.errors import ModelError
from fedmq.fedcore.layout import Layout
from fedmq.fedcore.state_dict import unpack

ENCODINGS = ("f16", "bf16")
LARGEST = {"f16": 65519.0, "bf16": float.fromhex("0x1.fefffep127")}
"""What is rounded to the largest number of an encoding, and not to an infinity."""


def model(**tensors: np.ndarray) -> bytes:
    return b"".join(bytes(chunk) for chunk in model_file.from_arrays(tensors).chunks)


def joined(chunks: object) -> bytes:
    return b"".join(bytes(chunk) for chunk in chunks)  # type: ignore[attr-defined]


def a_model(n: int = 5000) -> bytes:
    """Floats of two tensors, one of them nothing, and two that are not trained."""
    rng = np.random.default_rng(n)
    return model(
        w=rng.standard_normal((n,)).astype(np.float32),
        steps=np.array(7),
        empty=np.zeros((0, 3), np.float32),
        half=rng.standard_normal(3).astype(np.float16),
        seen=np.arange(5, dtype=np.uint8),
    )


@given(
    st.sampled_from(ENCODINGS),
    hnp.arrays(np.float32, st.integers(0, 40), elements=st.floats(-6e4, 6e4, width=32)),
)
def test_it_stands_for_the_rounded_numbers_and_nothing_else(encoding: str, values: np.ndarray) -> None:
    """Each as its encoding rounds it, subnormals and signs included; what is not a float is bit for bit the same."""
    file = model(w=values, mask=np.arange(3, dtype=np.int16))
    layout = Layout.from_file_prefix(file)
    travels = joined(encoded(file, layout, encoding))
    back = joined(decoded(travels, encoding))
    assert len(travels) == encoded_size(layout, encoding) == len(file) - 2 * values.size
    assert Layout.from_file_prefix(back, len(back)) == layout
    arrays = unpack(layout, back)
    assert arrays["mask"].tolist() == [0, 1, 2]
    if encoding == "f16":
        expected = values.astype(np.float16).astype(np.float32)
    else:
        bits = values.view(np.uint32).astype(np.uint64)
        expected = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)
    assert arrays["w"].tobytes() == expected.tobytes()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_was_decoded_is_encoded_to_the_same_bytes(encoding: str) -> None:
    """Rounding happens once."""
    file = a_model()
    layout = Layout.from_file_prefix(file)
    travels = joined(encoded(file, layout, encoding))
    assert joined(encoded(joined(decoded(travels, encoding)), layout, encoding)) == travels


def test_the_bytes_do_not_depend_on_tiles_or_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no piece is larger than a tile, or what is not a float."""
    file = a_model()
    layout = Layout.from_file_prefix(file)
    whole = joined(encoded(file, layout, "f16"))
    monkeypatch.setattr(encoded_model, "_TILE", 1000)
    chunks = [bytes(chunk) for chunk in encoded(file, layout, "f16")]
    assert b"".join(chunks) == whole
    assert max(map(len, chunks[1:])) == 2000
    assert joined(decoded(whole, "f16")) == joined(decoded(memoryview(bytearray(whole)), "f16"))
    with kernels.use("python"):
        assert joined(encoded(file, layout, "f16")) == whole


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_number_beyond_the_range_is_refused_by_the_name_of_its_tensor(encoding: str) -> None:
    """Whoever trained from an infinity would send an update that is none."""
    good = np.array([1.0, -LARGEST[encoding]], np.float32)
    file = model(first=np.zeros(3, np.float32), second=good)
    assert joined(encoded(file, Layout.from_file_prefix(file), encoding))
    bad = np.array([1.0, np.nextafter(np.float32(-LARGEST[encoding]), np.float32(-np.inf))], np.float32)
    bad[1] = bad[1] if encoding == "bf16" else -65520.0
    file = model(first=np.zeros(3, np.float32), second=bad)
    with pytest.raises(ModelError, match=f"tensor 'second' holds -.* which is not finite as {encoding}"):
        joined(encoded(file, Layout.from_file_prefix(file), encoding))


def test_a_file_of_another_size_is_no_model() -> None:
    """Cut, longer, or not in that encoding at all."""
    file = a_model(10)
    travels = joined(encoded(file, Layout.from_file_prefix(file), "f16"))
    for wrong in (travels[:-1], travels + b"\0", file):
        with pytest.raises(ModelError, match="expected"):
            decoded(wrong, "f16")
    with pytest.raises(ModelError):
        decoded(b"", "f16")
