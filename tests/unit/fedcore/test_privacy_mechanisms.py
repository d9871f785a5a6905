"""Mechanisms are constants, and noise keys are functions of everything that is folded."""

import hashlib
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq.fedcore.errors import PrivacyError
from fedmq.fedcore.privacy.accounting import Spend
from fedmq.fedcore.privacy.mechanisms import RecordLevel, frozen_digest, noise_key

MASTER = bytes(range(32))
ROWS = [(b"task 1", b"payload 1"), (b"task 2", b"payload 2")]


def test_a_record_level_mechanism_is_scaled_by_the_clip_norm() -> None:
    """σ = z·S, the bound b·S, the divisor as it stands; one version costs one sampled step."""
    mechanism = RecordLevel(0.5, 4.0, 0.25, 100.0, 300)
    assert (mechanism.sigma, mechanism.max_update_norm, mechanism.denominator) == (2.0, 150.0, 100.0)
    assert mechanism.spend == Spend(4.0, 0.25, 1)


@pytest.mark.parametrize(
    "values",
    [
        (0.0, 4.0, 0.25, 100.0, 300),
        (math.inf, 4.0, 0.25, 100.0, 300),
        (0.5, 0.0, 0.25, 100.0, 300),
        (0.5, 4.0, 0.0, 100.0, 300),
        (0.5, 4.0, 1.5, 100.0, 300),
        (0.5, 4.0, 0.25, math.nan, 300),
        (0.5, 4.0, 0.25, 100.0, 0),
    ],
)
def test_a_mechanism_out_of_range_does_not_exist(values: Any) -> None:
    """No noise, no divisor, or a rate that is none."""
    with pytest.raises(PrivacyError, match="must be"):
        RecordLevel(*values)


@given(st.permutations(ROWS))
def test_the_digest_does_not_depend_on_the_order_of_arrival(rows: list[tuple[bytes, bytes]]) -> None:
    """The rows of a frozen buffer are a set."""
    assert frozen_digest(rows, frac_bits=40, sigma=2.0) == frozen_digest(ROWS, frac_bits=40, sigma=2.0)


def test_whatever_is_folded_is_in_the_key() -> None:
    """Other rows, another grid, another σ, another version or master key: other noise."""
    frozen = frozen_digest(ROWS, frac_bits=40, sigma=2.0)
    keys = [
        noise_key(MASTER, version=3, frozen=frozen),
        noise_key(MASTER, version=4, frozen=frozen),
        noise_key(MASTER[::-1], version=3, frozen=frozen),
        noise_key(MASTER, version=3, frozen=frozen_digest(ROWS[:1], frac_bits=40, sigma=2.0)),
        noise_key(MASTER, version=3, frozen=frozen_digest(ROWS, frac_bits=41, sigma=2.0)),
        noise_key(MASTER, version=3, frozen=frozen_digest(ROWS, frac_bits=40, sigma=2.5)),
        noise_key(
            MASTER,
            version=3,
            frozen=frozen_digest([(b"task 1payload", b" 1"), ROWS[1]], frac_bits=40, sigma=2.0),
        ),
    ]
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 32 for key in keys)
    assert noise_key(MASTER, version=3, frozen=frozen) == keys[0]


def test_the_key_is_hkdf() -> None:
    """RFC 5869 with SHA-256, written out the other way round: from hashlib's blocks."""

    def mac(key: bytes, message: bytes) -> bytes:
        padded = key.ljust(64, b"\0")
        inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in padded) + message).digest()
        return hashlib.sha256(bytes(byte ^ 0x5C for byte in padded) + inner).digest()

    secret = mac(b"fedmq noise 1", MASTER)
    expected = mac(secret, (7).to_bytes(8, "little") + bytes(32) + b"\x01")
    assert noise_key(MASTER, version=7, frozen=bytes(32)) == expected


def test_a_short_master_key_is_refused() -> None:
    """It is as sensitive as the raw updates."""
    with pytest.raises(PrivacyError, match="at least 32 bytes, got 16"):
        noise_key(bytes(16), version=1, frozen=bytes(32))
