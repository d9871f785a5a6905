"""The contract of sparse payloads: what is in them, that there is one for a vector, and what is refused."""

from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmq.fedcore.codecs import TOPK_BLOCK, TOPK_HEAD, size_range, topk_part

ONE = b"\x00\x3c"


def block(span: int, gaps: bytes, values: bytes) -> bytes:
    """A block as its parts say."""
    return TOPK_HEAD.pack(span, len(values) // 2, len(gaps)) + gaps + values


def test_the_bytes_are_those_of_the_table(kernels: ModuleType) -> None:
    """A head, gaps of one and two bytes, halves; a value at the start has a gap of 0."""
    x = np.zeros(400, np.float32)
    x[[0, 1, 129, 130, 258, 399]] = [1, -2, 3, 4, 5, 0.5]
    expected = block(400, b"\x00\x00\x7f\x00\x7f\x8c\x01", np.array([1, -2, 3, 4, 5, 0.5], "<f2").tobytes())
    assert kernels.encode(x, "topk") == expected
    assert (kernels.decode(expected, "topk", 400) == x).all()


def test_what_is_not_there_is_not_written(kernels: ModuleType) -> None:
    """Zeros of either sign, and what is a zero as a half, leave no trace; they are read as +0."""
    x = np.array([0.0, -0.0, 2.0**-25, -(2.0**-26), 2.0**-24], np.float32)
    payload = kernels.encode(x, "topk")
    assert payload == block(5, b"\x04", b"\x01\x00")
    assert kernels.decode(payload, "topk", 5).view(np.uint32)[:4].tolist() == [0, 0, 0, 0]
    assert kernels.encode(np.zeros(0, np.float32), "topk") == b""


def test_what_a_half_cannot_say_shows(kernels: ModuleType) -> None:
    """An overflow is an infinity and a NaN stays one, so that whoever looks for them finds them."""
    for value in (1e5, np.inf, np.nan):
        payload = kernels.encode(np.array([0, value], np.float32), "topk")
        assert not np.isfinite(kernels.sum_squares(payload, encoding="topk", n=2))
        with pytest.raises(ValueError, match="finite"):
            kernels.Accumulator(2, frac_bits=10).add(payload, encoding="topk")


@given(st.integers(0, 2**32), st.sampled_from([1, 500, TOPK_BLOCK, 2 * TOPK_BLOCK + 9]), st.floats(0, 1))
@settings(max_examples=40)
def test_payloads_of_pieces_joined_are_the_payload_of_the_whole(
    kernels: ModuleType, seed: int, n: int, share: float
) -> None:
    """Blocks stand for themselves; each is found again by its position, and the size is within its bounds."""
    rng = np.random.default_rng(seed)
    x = np.where(rng.random(n) < share, rng.standard_normal(n), 0).astype(np.float32)
    payload = kernels.encode(x, "topk")
    least, most = size_range("topk", n)
    assert least <= len(payload) <= most
    pieces = [kernels.encode(x[i : i + TOPK_BLOCK], "topk") for i in range(0, n, TOPK_BLOCK)]
    assert b"".join(pieces) == payload
    for i, piece in enumerate(pieces):
        stop = min((i + 1) * TOPK_BLOCK, n)
        first, last = topk_part(memoryview(payload), i * TOPK_BLOCK, stop)
        assert payload[first:last] == piece
    assert topk_part(memoryview(payload), 0, 0) == (0, 0)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"\x01", "block 0 .* ends inside its head"),
        (TOPK_HEAD.pack(0, 0, 0), "cannot be of 0 values"),
        (TOPK_HEAD.pack(TOPK_BLOCK + 1, 0, 0), "cannot be of 16385 values"),
        (TOPK_HEAD.pack(2, 3, 3) + bytes(9), "cannot be of 2 values, 3 of them not zero"),
        (TOPK_HEAD.pack(9, 2, 1) + bytes(9), "with gaps in 1 bytes"),
        (TOPK_HEAD.pack(9, 1, 3) + bytes(9), "with gaps in 3 bytes"),
        (block(9, b"\x00", ONE)[:-1], "is cut off"),
        (block(9, b"\x00", ONE) + b"\x00", "is of 9 values, and not the last one"),
        (block(9, b"\x00", ONE) * 2, "is of 9 values, and not the last one"),
        (block(TOPK_BLOCK, b"\x00", ONE) + b"\x00", "block 1 .* ends inside its head"),
        (block(9, b"\x09", ONE), "ascending positions below 9"),
        (block(9, b"\x04\x04", ONE * 2), "ascending positions below 9"),
        (block(9, b"\x80", ONE), "shortest form"),
        (block(9, b"\x84\x00", ONE), "shortest form"),
        (block(9, b"\x00\x00", ONE), "shortest form"),
        (block(600, b"\x80\x81", ONE), "shortest form"),
        (block(9, b"\x00", b"\x00\x00"), "must not hold a zero"),
        (block(9, b"\x00", b"\x00\x80"), "must not hold a zero"),
        (block(8, b"\x00", ONE), "must be of 9 values, as topk, not of 8"),
        (b"", "must be of 9 values, as topk, not of 0"),
        (block(TOPK_BLOCK, b"\x00", ONE), "must be of 9 values, as topk, not of 16384"),
    ],
)
def test_anything_else_is_refused(kernels: ModuleType, payload: bytes, reason: str) -> None:
    """Whatever a payload gets wrong is said, and nothing is added."""
    total = kernels.Accumulator(9, frac_bits=10)
    norm = kernels.Norm("topk", 9)
    for refuse in (
        lambda: kernels.decode(payload, "topk", 9),
        lambda: kernels.sum_squares(payload, encoding="topk", n=9),
        lambda: total.add(payload, encoding="topk"),
        lambda: (norm.update(payload), norm.value()),
    ):
        with pytest.raises(ValueError, match=reason):
            refuse()
    assert not total.totals().any()


def test_a_number_of_values_can_be_asked_for_in_any_encoding(kernels: ModuleType) -> None:
    """A norm of another number of values than expected is refused."""
    x = np.ones(9, np.float32)
    assert kernels.sum_squares(x, n=9) == 9
    with pytest.raises(ValueError, match="payload must be 40 bytes"):
        kernels.sum_squares(x, n=10)
    norm = kernels.Norm("f32", 10)
    norm.update(x)
    with pytest.raises(ValueError, match="the data so far must be of 10 values, as f32, not of 9"):
        norm.value()
