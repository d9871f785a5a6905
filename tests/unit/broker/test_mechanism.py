"""From the `[privacy]` table to the constants that every version of a federation is made with."""

import msgspec
import pytest

from fedmq.broker.mechanism import mechanism
from fedmq.fedcore.config import Privacy
from fedmq.fedcore.errors import PrivacyError
from fedmq.fedcore.privacy.accounting import Spend, epsilon

# q = 1, so that the exact Gaussian composition is enough: no accountant to load.
TABLE = Privacy(
    epsilon=3.0,
    delta=1e-5,
    max_grad_norm=0.5,
    sampling_rate=1.0,
    steps=10,
    divisor=64.0,
    max_batch=32,
)


def test_noise_is_calibrated_from_the_budget() -> None:
    """Ten steps cost ε = 3 with it; the rest of the table is passed on."""
    found = mechanism(TABLE)
    assert 2.99 < epsilon([Spend(found.noise_multiplier, 1.0, steps=10)], 1e-5) <= 3.0
    assert (found.max_grad_norm, found.divisor, found.max_batch, found.sampling_rate) == (0.5, 64.0, 32, 1.0)
    assert mechanism(TABLE) == found


def test_configured_noise_that_fits_the_budget_is_taken() -> None:
    """More noise than needed is the operator's choice."""
    assert mechanism(msgspec.structs.replace(TABLE, noise_multiplier=6.0)).noise_multiplier == 6.0


def test_configured_noise_that_passes_the_budget_is_refused() -> None:
    """With what it would cost, before anything is spent."""
    with pytest.raises(PrivacyError, match=r"privacy\.steps = 10 cost epsilon .* privacy\.epsilon is 3"):
        mechanism(msgspec.structs.replace(TABLE, noise_multiplier=2.0))


def test_a_federation_goes_on_with_the_noise_that_it_began_with() -> None:
    """Whatever a later accountant would say."""
    assert mechanism(TABLE, calibrated=9.0).noise_multiplier == 9.0
