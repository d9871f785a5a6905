"""Parity of encode and decode."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmq.fedcore.codecs import ENCODINGS

KINDS = st.sampled_from(["normal", "ties", "wide", "zeros", "anything"])
SIZES = st.one_of(
    st.sampled_from([0, 1, 7, 8, 9, 1023, 1024, 1025, 2049, 16383, 16384, 16385]), st.integers(0, 5000)
)
SEEDS = st.integers(0, 2**32)


@given(
    KINDS, SIZES, SEEDS, st.sampled_from(ENCODINGS), st.binary(min_size=32, max_size=32), st.integers(0, 7)
)
@settings(max_examples=80, deadline=None)
def test_encode_and_decode(
    native: ModuleType,
    reference: ModuleType,
    vector: Callable[..., Any],
    unaligned: Callable[[bytes, int], memoryview],
    same_bits: Callable[[Any, Any], None],
    kind: str,
    n: int,
    seed: int,
    encoding: str,
    key: bytes,
    shift: int,
) -> None:
    """Payloads are equal byte by byte, and are read as the same values at any alignment."""
    x = vector(kind, n, seed)
    nonce = key[:12]
    payload = reference.encode(x, encoding, key=key, nonce=nonce)
    moved = np.frombuffer(unaligned(x.tobytes(), shift), np.float32)
    assert native.encode(moved, encoding, key=key, nonce=nonce) == payload
    same_bits(native.decode(unaligned(payload, shift), encoding, n), reference.decode(payload, encoding, n))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_threads_encode_and_decode_alike(
    native: ModuleType,
    reference: ModuleType,
    vector: Callable[..., Any],
    same_bits: Callable[[Any, Any], None],
    encoding: str,
) -> None:
    """Above the size where threads start to work, too."""
    n = 256 * 1024 + 1025
    x = vector("normal", n, 1)
    payload = native.encode(x, encoding, key=bytes(32), nonce=bytes(12))
    assert payload == reference.encode(x, encoding, key=bytes(32), nonce=bytes(12))
    same_bits(native.decode(payload, encoding, n), reference.decode(payload, encoding, n))


def test_every_half_is_read_alike(
    native: ModuleType, reference: ModuleType, same_bits: Callable[[Any, Any], None]
) -> None:
    """All 65,536 f16 and bf16 values."""
    every = np.arange(2**16, dtype=np.uint16)
    for encoding in ("f16", "bf16"):
        same_bits(native.decode(every, encoding, every.size), reference.decode(every, encoding, every.size))


def test_every_border_between_halves_is_written_alike(native: ModuleType, reference: ModuleType) -> None:
    """All f16 and bf16 values, the middles between neighbours, and what lies just beside these."""
    every = np.arange(2**16, dtype=np.uint16)
    for encoding in ("f16", "bf16"):
        exact = reference.decode(every, encoding, every.size).view(np.uint32)
        for step in (0, 1, 0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001):
            x = (exact + np.uint32(step)).view(np.float32)
            assert native.encode(x, encoding) == reference.encode(x, encoding)


def test_without_a_key_the_rounding_is_drawn(native: ModuleType) -> None:
    """Two payloads of one vector differ, and both are close to it."""
    x = np.linspace(-1, 1, 4096, dtype=np.float32)
    one, other = native.encode(x, "i8"), native.encode(x, "i8")
    assert one != other
    assert np.abs(native.decode(one, "i8", x.size) - x).max() <= 1 / 127 + 1e-6
