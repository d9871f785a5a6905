"""What a safetensors header may say: everything else is one clear `ModelError`."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq.fedcore import safetensors_file
from fedmq.fedcore.errors import ModelError
from fedmq.fedcore.safetensors_file import Entry, encode_header, parse_header, prefix_bytes


def headed(document: object, data: bytes = b"") -> bytes:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    return len(text).to_bytes(8, "little") + text + data


def row(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_what_is_written_is_read_back() -> None:
    """A header survives a round trip, tensors without elements in their place."""
    entries = (
        Entry("b", "F32", (2, 3), 0, 24),
        Entry("empty", "F32", (0, 5), 24, 24),
        Entry("a", "I64", (), 24, 32),
    )
    header = encode_header(entries, {"made": "of ünicode", "a": ""})
    assert len(header) % safetensors_file.ALIGNMENT == 0
    parsed = parse_header(header + bytes(32), len(header) + 32)
    assert parsed.entries == entries
    assert parsed.metadata == {"made": "of ünicode", "a": ""}
    assert parsed.data_start == len(header) == prefix_bytes(header[:8])
    assert parsed.size == len(header) + 32


def test_metadata_order_does_not_show() -> None:
    """Equal metadata gives equal bytes, however the map was filled."""
    assert encode_header((), {"a": "1", "b": "2"}) == encode_header((), {"b": "2", "a": "1"})


def test_tensors_may_stand_in_any_order_in_the_header() -> None:
    """Order in the file is order of offsets, not order of the JSON object."""
    parsed = parse_header(headed({"z": row(offsets=(8, 16)), "a": row()}))
    assert [entry.name for entry in parsed.entries] == ["a", "z"]


@pytest.mark.parametrize(
    ("file", "says"),
    [
        (b"", "0 bytes"),
        (b"\x10\0\0\0", "4 bytes"),
        (b"PK\x03\x04 a zip archive", "not a safetensors file"),
        ((1).to_bytes(8, "little") + b"{", "header of 1 bytes"),
        ((1 << 63).to_bytes(8, "little") + b"{}", "header of 9223372036854775808 bytes"),
        ((99).to_bytes(8, "little") + b"{}", "truncated"),
        (headed(b"[1]"), "does not start"),
        (headed(b"{} x"), "not JSON"),
        (headed(b"{\xff}"), "not JSON"),
        (headed(b'{"a":' + b"[" * 100_000), "not JSON"),
        (headed(b'{"a":' + b"1" * 5_000 + b"}"), "not JSON"),
        (headed(b'{"a":1,"a":1}'), "'a' stands twice"),
        (
            headed(b'{"a":{"dtype":"F32","dtype":"F32","shape":[],"data_offsets":[0,4]}}'),
            "'dtype' stands twice",
        ),
        (headed({"__metadata__": {"k": 1}}), "not a map of texts"),
        (headed({"__metadata__": [1]}), "not a map of texts"),
        (headed({"__metadata__": {"k": "\ud800"}}), "not valid Unicode"),
        (headed({"a": 5}), "expected exactly dtype"),
        (headed({"a": {**row(), "more": 1}}), "expected exactly dtype"),
        (headed({"a": row(dtype="F8_E4M3")}), "dtype 'F8_E4M3'"),
        (headed({"a": row(dtype=["F32"])}), r"dtype \['F32'\]"),
        (headed({"a": row(shape=2)}), "not a list"),
        (headed({"a": row(shape=(-2,))}), "dimension of -2"),
        (headed({"a": row(shape=(2.0,))}), "dimension of 2.0"),
        (headed({"a": row(shape=(True, 2))}), "dimension of True"),
        (headed({"a": row(shape=(1 << 60,))}), "dimension of"),
        (headed({"a": row(shape=(1 << 30, 1 << 30))}), "larger than"),
        (headed({"a": row(shape=(1,) * 33)}), "33 dimensions"),
        (headed({"a": row(offsets=(0,))}), "two integers"),
        (headed({"a": row(offsets="08")}), "two integers"),
        (headed({"a": row(offsets=(-8, 0))}), "two integers"),
        (headed({"a": row(offsets=(0, 8.0))}), "two integers"),
        (headed({"a": row(offsets=(8, 0))}), "-8 bytes between"),
        (headed({"a": row(offsets=(0, 4))}), "expected 8"),
        (headed({"a": row(offsets=(8, 16))}), "leaves a hole"),
        (headed({"a": row(), "b": row()}), "overlaps"),
        (headed({"a": row(), "b": row(offsets=(4, 12))}), "overlaps"),
        (headed({"a": row(), "b": row(offsets=(12, 20))}), "leaves a hole"),
        (headed({"": row()}), "non-empty"),
        (headed({"\ud800": row()}), "not valid Unicode"),
        (headed({"x" * 2000: row()}), "name of 2000 bytes"),
    ],
)
def test_a_header_that_breaks_a_rule_is_refused_in_one_line(file: bytes, says: str) -> None:
    """Hostile headers give a `ModelError` of one short line that says what is wrong."""
    with pytest.raises(ModelError, match=says) as error:
        parse_header(file)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("more", [-8, -1, 1, 64])
def test_a_file_of_another_size_than_its_header_says_is_refused(more: int) -> None:
    """A file that was cut, or that carries bytes behind its tensors, is not read."""
    file = headed({"a": row()}, bytes(8))
    parse_header(file, len(file))
    with pytest.raises(ModelError, match="describes"):
        parse_header(file, len(file) + more)


def test_too_many_tensors_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of tensors is bounded."""
    monkeypatch.setattr(safetensors_file, "MAX_TENSORS", 2)
    with pytest.raises(ModelError, match="3 tensors"):
        parse_header(headed({str(i): row(shape=(0,), offsets=(0, 0)) for i in range(3)}))


def test_our_own_header_is_held_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody may read back is not written."""
    monkeypatch.setattr(safetensors_file, "MAX_HEADER_BYTES", 1_000)
    with pytest.raises(ModelError, match="at most 1000"):
        encode_header([Entry(f"tensor {i}", "F32", (0,), 0, 0) for i in range(50)], {})


@given(st.binary(max_size=300))
def test_noise_is_never_more_than_a_model_error(noise: bytes) -> None:
    """Any bytes behind a plausible length either parse or raise `ModelError`."""
    for file in (noise, headed(b"{" + noise)):
        try:
            header = parse_header(file)
        except ModelError:
            continue
        assert header.data_start <= len(file)


@given(st.data())
def test_a_damaged_header_is_never_more_than_a_model_error(data: st.DataObject) -> None:
    """Changing bytes of a good header gives a header that obeys every rule, or a `ModelError`."""
    good = headed({"__metadata__": {"k": "v"}, "a": row(), "b": row("I64", (1,), (8, 16))})
    bad = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        bad[data.draw(st.integers(8, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        header = parse_header(bad)
    except ModelError:
        return
    assert sum(entry.end - entry.begin for entry in header.entries) == header.size - header.data_start
