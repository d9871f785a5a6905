"""Secret coins: Poisson, independent, and for one version always the same."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq.fedcore.errors import ClientAppError
from fedmq.worker.privacy.sampling import MAX_RECORDS, poisson_sample, sum_key

from .private import Keys

KEY = st.binary(min_size=32, max_size=32)


@given(KEY, st.integers(0, 300), st.integers(0, 300), st.floats(1e-6, 1.0))
def test_records_beyond_move_no_coin(key: bytes, records: int, more: int, rate: float) -> None:
    """Neighbours, by one record or many at the end, have the same coins for what they share."""
    few, many = poisson_sample(key, records, rate), poisson_sample(key, records + more, rate)
    np.testing.assert_array_equal(few, many[many < records])
    assert (np.diff(many) > 0).all()


@given(KEY, st.floats(1e-6, 1.0), st.floats(1e-6, 1.0))
def test_a_larger_rate_takes_more(key: bytes, rate: float, other: float) -> None:
    """One coin, compared with either: the smaller sample is in the larger."""
    low, high = sorted((rate, other))
    assert set(poisson_sample(key, 200, low)) <= set(poisson_sample(key, 200, high))


def test_batches_are_poisson_samples() -> None:
    """Their sizes are binomial in mean and variance, each record is in as often as any, and pairs are independent."""
    keys, records, rate, throws = Keys(), 100, 0.3, 4000
    thrown = np.zeros((throws, records))
    for row in thrown:
        row[poisson_sample(keys(32), records, rate)] = 1
    sizes = thrown.sum(axis=1)
    deviation = math.sqrt(records * rate * (1 - rate))
    assert abs(sizes.mean() - records * rate) < 5 * deviation / math.sqrt(throws)
    assert abs(sizes.std() / deviation - 1) < 5 / math.sqrt(2 * throws)
    frequency = thrown.mean(axis=0)
    assert np.abs(frequency - rate).max() < 5 * math.sqrt(rate * (1 - rate) / throws)
    correlation = np.corrcoef(thrown, rowvar=False) - np.eye(records)
    assert np.abs(correlation).max() < 6 / math.sqrt(throws)


def test_a_rate_of_one_takes_everybody_and_nobody_is_an_empty_sample() -> None:
    """The ends of the range; and the largest worker."""
    assert len(poisson_sample(bytes(32), 50, 1.0)) == 50
    assert len(poisson_sample(bytes(32), 0, 0.5)) == 0
    assert len(poisson_sample(bytes(32), 50, 1e-30)) == 0
    with pytest.raises(ClientAppError, match=f"may hold {MAX_RECORDS} records"):
        poisson_sample(bytes(32), MAX_RECORDS + 1, 0.5)


def test_the_coins_of_a_sum_follow_from_secret_version_and_model() -> None:
    """The same again for a task that comes again; others as soon as one of the three is another."""
    flat = np.linspace(0, 1, 9, dtype=np.float32)
    key = sum_key(bytes(32), 3, flat)
    assert key == sum_key(bytes(32), 3, flat.copy())
    assert len(key) == 32
    others = {sum_key(b"\1" * 32, 3, flat), sum_key(bytes(32), 4, flat), sum_key(bytes(32), 3, flat + 1)}
    assert len(others | {key}) == 4
