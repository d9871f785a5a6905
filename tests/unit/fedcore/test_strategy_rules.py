"""The weighted mean's parts are FedAvg and FedBuff, as their papers have them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq.fedcore.strategy.rules import Mean, Share, denominator
from fedmq.fedcore.strategy.staleness import Constant, Polynomial

updates = st.lists(st.tuples(st.integers(1, 10**6), st.integers(0, 20)), min_size=1, max_size=20)


def test_fedavg_weights_by_examples() -> None:
    """Σ nᵢ Δᵢ / Σ nᵢ."""
    shares = [Mean("examples").share(examples=n, tau=0) for n in (600, 200)]
    assert [share.weight / denominator(shares) for share in shares] == [0.75, 0.25]


def test_fedbuff_divides_by_the_number_of_updates() -> None:
    """Σ s(τᵢ) Δᵢ / K, and not by Σ s: a stale buffer takes a smaller step."""
    mean = Mean("uniform", Polynomial(0.5))
    shares = [mean.share(examples=n, tau=3) for n in (600, 200)]
    assert [share.weight / denominator(shares) for share in shares] == [0.25, 0.25]


def test_fedbuff_may_weight_by_examples() -> None:
    """Σ nᵢ sᵢ Δᵢ / Σ nᵢ."""
    mean = Mean("examples", Polynomial(0.5))
    shares = [mean.share(examples=300, tau=0), mean.share(examples=100, tau=3)]
    assert [share.weight / denominator(shares) for share in shares] == [0.75, 0.125]


@given(updates, st.sampled_from(["examples", "uniform"]))
def test_fresh_updates_are_a_true_mean_and_stale_ones_less(
    given_: list[tuple[int, int]], weighting: str
) -> None:
    """Fractions add up to 1 when all are fresh, and never to more."""
    fresh = [Mean(weighting, Constant()).share(examples=n, tau=tau) for n, tau in given_]  # type: ignore[arg-type]
    assert sum(share.weight for share in fresh) == denominator(fresh)
    stale = [Mean(weighting, Polynomial()).share(examples=n, tau=tau) for n, tau in given_]  # type: ignore[arg-type]
    assert sum(share.weight for share in stale) <= denominator(stale) * (1 + 2**-20)
    assert denominator(stale) == denominator(fresh)


def test_nothing_and_nobody_are_refused() -> None:
    """An update of no examples, a negative staleness, a mean of nothing."""
    with pytest.raises(ValueError, match="at least one example"):
        Mean().share(examples=0, tau=0)
    with pytest.raises(ValueError, match="staleness"):
        Mean().share(examples=1, tau=-1)
    with pytest.raises(ValueError, match="no updates"):
        denominator([])
    assert Mean("uniform").share(examples=7, tau=0) == Share(1.0, 1)
