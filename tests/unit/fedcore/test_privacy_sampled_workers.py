"""Worker-level privacy in rounds: what it costs, and the coin."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq.fedcore.errors import PrivacyError
from fedmq.fedcore.privacy.accounting import Spend, epsilon
from fedmq.fedcore.privacy.mechanisms import Mechanism
from fedmq.fedcore.privacy.participation import participations_epsilon
from fedmq.fedcore.privacy.sampled_workers import Coin, SampledWorkers

KEY = b"k" * 32


def mechanism(rate: float = 0.05, noise_multiplier: float = 1.0) -> SampledWorkers:
    return SampledWorkers(clip_norm=0.5, noise_multiplier=noise_multiplier, sampling_rate=rate, divisor=10.0)


def test_what_two_hundred_rounds_cost() -> None:
    """q = 0.05, z = 1, δ = 1e-5: ε is 4.77; a coin flipped twice, so that q is 0.0975, makes it 9.70."""
    spend = mechanism().spend
    assert (spend.noise_multiplier, spend.sampling_rate) == (1.0, 0.05)
    assert round(epsilon([Spend(1.0, 0.05, steps=200)], 1e-5), 2) == 4.77
    assert round(epsilon([Spend(1.0, 1 - 0.95**2, steps=200)], 1e-5), 2) == 9.70


def test_a_coin_that_always_falls_the_same_way_buys_nothing() -> None:
    """q = 1 is the exact composition of T Gaussian releases."""
    assert epsilon([Spend(9.0, 1.0, steps=50)], 1e-5) == pytest.approx(participations_epsilon(9.0, 50, 1e-5))


def test_every_number_is_a_constant() -> None:
    """The clip, the noise on the sum and the divisor depend on nobody who came."""
    found: Mechanism = mechanism(noise_multiplier=3.0)
    assert (found.max_update_norm, found.sigma, found.denominator) == (0.5, 1.5, 10.0)
    assert found.admits(1.0)
    assert not found.admits(0.5)


@pytest.mark.parametrize("field", ["clip_norm", "divisor", "noise_multiplier", "sampling_rate"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_nonsense_is_refused(field: str, value: float) -> None:
    """Before anything is released with it."""
    good = {"clip_norm": 0.5, "noise_multiplier": 1.0, "sampling_rate": 0.05, "divisor": 10.0}
    with pytest.raises(PrivacyError, match=field):
        SampledWorkers(**(good | {field: value}))


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.5, 0.93])
def test_the_coin_takes_each_worker_at_its_rate(rate: float) -> None:
    """Within five standard deviations, over workers and over rounds."""
    coin, n = Coin(KEY, rate), 20_000
    spread = 5 * math.sqrt(rate * (1 - rate) * n)
    assert abs(sum(coin.takes(3, f"w{i}") for i in range(n)) - rate * n) < spread
    assert abs(sum(coin.takes(i, "w3") for i in range(n)) - rate * n) < spread


def test_coins_do_not_follow_from_each_other() -> None:
    """Of two workers in one round, and of one worker in two rounds: both fall as often as chance says."""
    coin, n = Coin(KEY, 0.5), 20_000
    for other in (lambda i: coin.takes(i, "w1"), lambda i: coin.takes(i + 1, "w0")):
        both = sum(coin.takes(i, "w0") and other(i) for i in range(n))
        assert abs(both - n / 4) < 5 * math.sqrt(n * 3 / 16)


@given(round_=st.integers(0, 2**40), worker=st.text(max_size=20), key=st.binary(min_size=32, max_size=40))
def test_a_coin_falls_the_same_way_however_often_it_is_asked(round_: int, worker: str, key: bytes) -> None:
    """It is a function of the key, the round and the worker; at q = 1 it takes everybody."""
    assert Coin(key, 0.5).takes(round_, worker) == Coin(key, 0.5).takes(round_, worker)
    assert Coin(key, 1.0).takes(round_, worker)
    if Coin(key, 0.3).takes(round_, worker):
        assert Coin(key, 0.6).takes(round_, worker)


def test_another_key_is_another_coin() -> None:
    """Who does not have the key cannot know; a short key is refused."""
    fall = [[Coin(key, 0.5).takes(i, "w") for i in range(64)] for key in (KEY, b"l" * 32)]
    assert fall[0] != fall[1]
    with pytest.raises(PrivacyError, match="at least 32 bytes"):
        Coin(b"short", 0.5)
