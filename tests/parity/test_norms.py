"""Parity of sum_squares, Norm and clip_."""

import itertools
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmq.fedcore.codecs import ENCODINGS

KINDS = st.sampled_from(["normal", "ties", "wide", "zeros", "anything"])
SIZES = st.one_of(
    st.sampled_from([0, 1, 15, 16, 17, 1024, 1025, 16383, 16384, 16385, 32769]), st.integers(0, 70_000)
)
SEEDS = st.integers(0, 2**32)
THREADS = st.sampled_from([1, 2, 3])


def same_number(a: float, b: float) -> bool:
    """Equal, or both NaN."""
    return a == b or (math.isnan(a) and math.isnan(b))


@given(KINDS, SIZES, SEEDS, st.sampled_from(ENCODINGS), THREADS, st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_sum_squares(
    native: ModuleType,
    reference: ModuleType,
    vector: Callable[..., Any],
    unaligned: Callable[[bytes, int], memoryview],
    kind: str,
    n: int,
    seed: int,
    encoding: str,
    threads: int,
    shift: int,
) -> None:
    """The lanes and blocks are added in the same order, infinities and NaNs included."""
    payload = reference.encode(vector(kind, n, seed), encoding, key=bytes(32))
    expected = reference.sum_squares(payload, encoding=encoding)
    found = native.sum_squares(unaligned(payload, shift), encoding=encoding, threads=threads)
    assert same_number(found, expected)


@given(SIZES, SEEDS, st.sampled_from(ENCODINGS), st.lists(st.integers(0, 300_000), max_size=6))
@settings(max_examples=60, deadline=None)
def test_norm_in_pieces(
    native: ModuleType,
    reference: ModuleType,
    vector: Callable[..., Any],
    n: int,
    seed: int,
    encoding: str,
    cuts: list[int],
) -> None:
    """Wherever a payload is cut, its norm is that of the whole."""
    payload = reference.encode(vector("normal", n, seed), encoding, key=bytes(32))
    norm = native.Norm(encoding)
    borders = [0, *sorted(min(cut, len(payload)) for cut in cuts), len(payload)]
    for start, stop in itertools.pairwise(borders):
        norm.update(payload[start:stop])
    assert norm.value() == math.sqrt(reference.sum_squares(payload, encoding=encoding))
    assert norm.value() == norm.value()


def test_norm_of_half_a_value(native: ModuleType, reference: ModuleType) -> None:
    """A value that has not come wholly is an error on both sides, and may still come."""
    for module in (native, reference):
        norm = module.Norm("f32")
        norm.update(b"\x00\x00\x40")
        with pytest.raises(ValueError, match="multiple of 4"):
            norm.value()
        norm.update(b"\x40")
        assert norm.value() == 3.0


@given(st.sampled_from(["normal", "wide", "zeros"]), SIZES, SEEDS, THREADS, st.floats(1e-9, 1e9))
@settings(max_examples=60, deadline=None)
def test_clip(
    native: ModuleType,
    reference: ModuleType,
    vector: Callable[..., Any],
    same_bits: Callable[[Any, Any], None],
    kind: str,
    n: int,
    seed: int,
    threads: int,
    max_norm: float,
) -> None:
    """The same norm comes back and the same values are left."""
    one, other = vector(kind, n, seed), vector(kind, n, seed)
    assert native.clip_(one, max_norm, threads=threads) == reference.clip_(other, max_norm)
    same_bits(one, other)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_a_large_vector(
    native: ModuleType,
    reference: ModuleType,
    vector: Callable[..., Any],
    same_bits: Callable[[Any, Any], None],
    threads: int,
) -> None:
    """Above the size where threads start to work, too."""
    one, other = vector("normal", 300_001, 5), vector("normal", 300_001, 5)
    assert native.sum_squares(one, threads=threads) == reference.sum_squares(other)
    assert native.clip_(one, 0.25, threads=threads) == reference.clip_(other, 0.25)
    same_bits(one, other)
