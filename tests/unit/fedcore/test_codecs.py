"""The contract of `fedmq.fedcore.codecs`: names and sizes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq.fedcore import codecs, kernels

lengths = st.integers(0, 5000) | st.integers(0, 2**40)


@pytest.mark.parametrize(
    ("encoding", "sizes"),
    [
        ("f32", {0: 0, 1: 4, 1024: 4096, 1025: 4100}),
        ("f16", {0: 0, 1: 2, 1024: 2048, 1025: 2050}),
        ("bf16", {0: 0, 1: 2, 1024: 2048, 1025: 2050}),
        ("i8", {0: 0, 1: 5, 1023: 1027, 1024: 1028, 1025: 1033, 2048: 2056}),
    ],
)
def test_sizes_are_those_of_the_table(encoding: str, sizes: dict[int, int]) -> None:
    """Known numbers of values have known sizes, at the edges of i8's blocks too."""
    assert {n: codecs.payload_size(encoding, n) for n in sizes} == sizes


@given(st.sampled_from(codecs.SIZED), lengths)
def test_a_size_gives_back_the_number_of_values(encoding: str, n: int) -> None:
    """element_count inverts payload_size."""
    assert codecs.element_count(encoding, codecs.payload_size(encoding, n)) == n


@given(st.sampled_from(codecs.SIZED), st.integers(-3, 10_000))
def test_a_size_is_refused_just_when_nothing_has_it(encoding: str, size: int) -> None:
    """element_count accepts exactly the sizes that payload_size gives."""
    possible = {codecs.payload_size(encoding, n) for n in range(max(size, 0) + 1)}
    if size in possible:
        assert codecs.payload_size(encoding, codecs.element_count(encoding, size)) == size
    else:
        with pytest.raises(ValueError, match=f"{encoding}.*{size}"):
            codecs.element_count(encoding, size)


def test_an_unknown_encoding_is_answered_with_the_known_ones() -> None:
    """The message says what may be used."""
    message = "encoding must be one of f32, f16, bf16, i8, topk, not 'f64'"
    with pytest.raises(ValueError, match=message):
        codecs.payload_size("f64", 3)
    with pytest.raises(ValueError, match=message):
        codecs.element_count("f64", 24)


def test_the_size_of_a_topk_payload_has_bounds() -> None:
    """A head a block and nothing else, up to a byte of gap and two of value for each position."""
    assert codecs.size_range("topk", 0) == (0, 0)
    assert codecs.size_range("topk", 16_384) == (6, 6 + 3 * 16_384)
    assert codecs.size_range("topk", 16_385) == (12, 12 + 3 * 16_385)
    assert codecs.size_range("i8", 1025) == (1033, 1033)
    for ask in (codecs.payload_size, codecs.element_count):
        with pytest.raises(ValueError, match="how many bytes a topk payload takes depends on what it holds"):
            ask("topk", 3)


@given(st.integers(1, 40_000), st.integers(0, 2**32 - 1), st.floats(0, 1), st.booleans())
def test_what_holds_few_enough_values_is_small_enough(n: int, seed: int, share: float, spread: bool) -> None:
    """However they lie: at random, or as far from each other as they go, in the gaps that take most bytes."""
    x = np.zeros(n, np.float32)
    x[:: max(round(1 / max(share, 1e-4)), 1)] = 1
    if not spread:
        np.random.default_rng(seed).shuffle(x)
    held = int(np.count_nonzero(x))
    payload = memoryview(kernels.encode(x, "topk"))
    for most in (held, held + 1, n):
        least, largest = codecs.size_range("topk", n, most)
        assert least <= len(payload) <= largest <= codecs.size_range("topk", n)[1]
        assert codecs.topk_excess(payload, most) == ""
    if held:
        reason = f"payload: holds {held} values, at most {held - 1} were asked for"
        assert codecs.topk_excess(payload, held - 1) == reason


def test_the_bound_on_a_size_is_reached() -> None:
    """Where all gaps but one take two bytes, and where none does."""
    x = np.zeros(129 * 100 + 1, np.float32)
    x[128::129] = 1
    assert len(kernels.encode(x, "topk")) == codecs.size_range("topk", x.size, 100)[1]
    assert len(kernels.encode(np.ones(100, np.float32), "topk")) == codecs.size_range("topk", 100, 100)[1]
    assert codecs.size_range("topk", 100, 200) == codecs.size_range("topk", 100)


def test_a_negative_number_of_values_is_refused() -> None:
    """There are no fewer than 0 values."""
    with pytest.raises(ValueError, match="n must be 0 or more, not -1"):
        codecs.payload_size("f32", -1)
    with pytest.raises(ValueError, match="n must be 0 or more, not -1"):
        codecs.size_range("topk", -1)


def test_check_size_passes_the_right_size_and_names_a_wrong_one() -> None:
    """The message names the thing, what was expected and what came."""
    codecs.check_size("i8", 1025, 1033)
    with pytest.raises(ValueError, match=r"OFFER\.size must be 1033 bytes \(1025 values as i8\), not 1032"):
        codecs.check_size("i8", 1025, 1032, "OFFER.size")
    codecs.check_size("topk", 1025, 6)
    with pytest.raises(
        ValueError, match=r"payload must be 6 to 3081 bytes \(1025 values as topk\), not 3082"
    ):
        codecs.check_size("topk", 1025, 3082)


def test_only_strings_of_the_list_are_encodings() -> None:
    """is_encoding is safe to ask about anything that came over a wire."""
    assert all(codecs.is_encoding(name) for name in codecs.ENCODINGS)
    assert not any(codecs.is_encoding(thing) for thing in ("F32", "", None, 4, b"f32", ["f32"]))
