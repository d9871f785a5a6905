"""Parity of the noise."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

KEYS = st.binary(min_size=32, max_size=32)
NONCES = st.binary(min_size=12, max_size=12)
SIZES = st.one_of(st.sampled_from([0, 1, 127, 128, 129, 255, 256, 257, 1024]), st.integers(0, 5000))
OFFSETS = st.one_of(st.integers(0, 300), st.sampled_from([128, 1024, 2**31, 2**34 + 77]))


@given(KEYS, NONCES, SIZES, OFFSETS, st.floats(0, 1e6), st.integers(0, 2**32))
@settings(max_examples=80, deadline=None)
def test_add_gaussian(
    native: ModuleType,
    reference: ModuleType,
    vector: Callable[..., Any],
    same_bits: Callable[[Any, Any], None],
    key: bytes,
    nonce: bytes,
    n: int,
    offset: int,
    sigma: float,
    seed: int,
) -> None:
    """Any key, any stretch of the stream."""
    one, other = vector("normal", n, seed), vector("normal", n, seed)
    native.add_gaussian_(one, sigma, key=key, nonce=nonce, offset=offset)
    reference.add_gaussian_(other, sigma, key=key, nonce=nonce, offset=offset)
    same_bits(one, other)


@given(
    KEYS, NONCES, SIZES, st.integers(0, 2**24 - 10), st.integers(0, 100), st.floats(-60, 57), st.booleans()
)
@settings(max_examples=80, deadline=None)
def test_add_noise(
    native: ModuleType,
    reference: ModuleType,
    same_bits: Callable[[Any, Any], None],
    key: bytes,
    nonce: bytes,
    n: int,
    block: int,
    frac_bits: int,
    exponent: float,
    twice: bool,
) -> None:
    """Any noise that a sum has room for, from below one unit of its last place to the largest, at any place."""
    totals = []
    for module in (native, reference):
        sums = module.Accumulator(n, frac_bits=frac_bits, offset=1024 * block)
        for _ in range(1 + twice):
            sums.add_noise(2.0 ** (exponent - frac_bits), key=key, nonce=nonce)
        totals.append(sums.totals())
    same_bits(*totals)


def test_the_end_of_the_stream(
    native: ModuleType, reference: ModuleType, same_bits: Callable[[Any, Any], None]
) -> None:
    """The last block counter is used and not passed."""
    one, other = np.zeros(200, np.float32), np.zeros(200, np.float32)
    native.add_gaussian_(one, 1.0, key=bytes(32), nonce=bytes(12), offset=2**35 - 200)
    reference.add_gaussian_(other, 1.0, key=bytes(32), nonce=bytes(12), offset=2**35 - 200)
    same_bits(one, other)
    for module in (native, reference):
        with pytest.raises(ValueError, match=r"2\^35"):
            module.add_gaussian_(one, 1.0, key=bytes(32), nonce=bytes(12), offset=2**35 - 199)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_the_stream(
    native: ModuleType, reference: ModuleType, same_bits: Callable[[Any, Any], None], threads: int
) -> None:
    """Above the size where threads start to work, from a position inside a group."""
    one, other = np.zeros(300_001, np.float32), np.zeros(300_001, np.float32)
    native.add_gaussian_(one, 1.5, key=bytes(range(32)), nonce=bytes(12), offset=77, threads=threads)
    reference.add_gaussian_(other, 1.5, key=bytes(range(32)), nonce=bytes(12), offset=77)
    same_bits(one, other)
