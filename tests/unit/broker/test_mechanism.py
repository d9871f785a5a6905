"""From the `[privacy]` table to the constants that every version of a federation is made with."""

import msgspec
import pytest

from fedmq.broker.mechanism import coin, mechanism
from fedmq.fedcore.config import (
    AdaptiveClip,
    Aggregate,
    AsyncMode,
    Config,
    Correlated,
    Evaluate,
    Model,
    Privacy,
    SampledPrivacy,
    SyncMode,
    WorkerPrivacy,
)
from fedmq.fedcore.errors import ConfigError, PrivacyError
from fedmq.fedcore.privacy.accounting import Spend, epsilon, gaussian_epsilon
from fedmq.fedcore.privacy.adaptive import AdaptiveClipping
from fedmq.fedcore.privacy.correlated_level import CorrelatedWorkerLevel
from fedmq.fedcore.privacy.mechanisms import RecordLevel, WorkerLevel
from fedmq.fedcore.privacy.sampled_workers import SampledWorkers

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


def config(**keys: float) -> Config:
    """A federation with the table, and these keys in it."""
    return Config(
        mode=SyncMode(),
        aggregate=Aggregate(weight="uniform"),
        evaluate=Evaluate(fraction=0.0),
        privacy=msgspec.structs.replace(TABLE, **keys),
    )


def workers(k: int = 10, noise_multiplier: float | None = None) -> Config:
    """A worker-level federation of ε = 1 with a cap of k."""
    return Config(
        model=Model(initial="my_app:App"),
        mode=AsyncMode(buffer=20, one_per_worker=True),
        aggregate=Aggregate(weight="uniform"),
        evaluate=Evaluate(fraction=0.0),
        privacy=WorkerPrivacy(
            epsilon=1.0, delta=1e-5, clip_norm=0.5, max_participations=k, noise_multiplier=noise_multiplier
        ),
    )


def test_noise_is_calibrated_from_the_budget() -> None:
    """Ten steps cost ε = 3 with it; the rest of the table is passed on."""
    found = mechanism(config())
    assert isinstance(found, RecordLevel)
    assert 2.99 < epsilon([Spend(found.noise_multiplier, 1.0, steps=10)], 1e-5) <= 3.0
    assert (found.max_grad_norm, found.divisor, found.max_batch, found.sampling_rate) == (0.5, 64.0, 32, 1.0)
    assert mechanism(config()) == found


def test_configured_noise_that_fits_the_budget_is_taken() -> None:
    """More noise than needed is the operator's choice."""
    assert mechanism(config(noise_multiplier=6.0)).noise_multiplier == 6.0


def test_configured_noise_that_passes_the_budget_is_refused() -> None:
    """With what it would cost, before anything is spent."""
    with pytest.raises(PrivacyError, match=r"privacy\.steps = 10 cost epsilon .* privacy\.epsilon is 3"):
        mechanism(config(noise_multiplier=2.0))


def test_a_federation_goes_on_with_the_noise_that_it_began_with() -> None:
    """Whatever a later accountant would say."""
    assert mechanism(config(), calibrated=9.0).noise_multiplier == 9.0


@pytest.mark.parametrize(("k", "z"), [(1, 3.73), (10, 11.8), (50, 26.4)])
def test_a_workers_noise_pays_for_its_cap(k: int, z: float) -> None:
    """Without amplification: k versions with z are one with z / √k, and that costs ε at the most."""
    found = mechanism(workers(k))
    assert isinstance(found, WorkerLevel)
    assert found.noise_multiplier == pytest.approx(z, rel=0.005)
    assert 0.999 < gaussian_epsilon(found.noise_multiplier / k**0.5, 1e-5) <= 1.0
    assert (found.sigma, found.denominator) == (found.noise_multiplier * 0.5, 20.0)


def correlated(z: float | None = None, bandwidth: int | None = None) -> Config:
    """The same with noise that later versions take back: T = 200, b = 20."""
    table = Correlated(versions=200, min_separation=20, bandwidth=bandwidth)
    found = workers(noise_multiplier=z)
    assert isinstance(found.privacy, WorkerPrivacy)
    return msgspec.structs.replace(found, privacy=msgspec.structs.replace(found.privacy, correlated=table))


def test_correlated_noise_pays_once_for_all_versions() -> None:
    """z is that of one release; σ is z · S times the sensitivity; p is the best one, or as it was at the start."""
    found = mechanism(correlated())
    assert isinstance(found, CorrelatedWorkerLevel)
    assert 0.999 < gaussian_epsilon(found.noise_multiplier, 1e-5) <= 1.0
    assert found.sigma == found.noise_multiplier * 0.5 * found.noise.sensitivity
    assert (found.noise.bandwidth, found.denominator) == (16, 20.0)
    assert [
        each.noise.bandwidth
        for each in (mechanism(correlated(bandwidth=4)), mechanism(correlated(), 3.8, 7))
        if isinstance(each, CorrelatedWorkerLevel)
    ] == [4, 7]


def test_correlated_noise_that_passes_the_budget_is_refused() -> None:
    """It names what it is too little for."""
    with pytest.raises(PrivacyError, match=r"privacy\.correlated\.versions = 200 together cost epsilon"):
        mechanism(correlated(3.0))


def test_a_workers_noise_that_passes_the_budget_is_refused() -> None:
    """It names the cap that it is too little for."""
    with pytest.raises(PrivacyError, match=r"privacy\.max_participations = 10 cost epsilon"):
        mechanism(workers(noise_multiplier=11.0))
    assert mechanism(workers(noise_multiplier=12.0)).noise_multiplier == 12.0


def adaptive(buffer: int, clip: AdaptiveClip, k: int = 1) -> Config:
    """The same, with a clip norm that follows the updates."""
    found = workers(k)
    assert isinstance(found.privacy, WorkerPrivacy)
    return msgspec.structs.replace(
        found,
        mode=AsyncMode(buffer=buffer, one_per_worker=True),
        privacy=msgspec.structs.replace(found.privacy, adaptive_clip=clip),
    )


def test_a_count_is_paid_for_out_of_what_is_charged() -> None:
    """z stays what the budget says, and the sum has more noise than without the count: σ_b is a 20th of K."""
    found = mechanism(adaptive(100, AdaptiveClip()))
    assert isinstance(found, WorkerLevel)
    assert found.adaptive == AdaptiveClipping(quantile=0.5, rate=0.2, count_noise=5.0)
    z = found.noise_multiplier
    assert found == msgspec.structs.replace(mechanism(workers(1)), buffer=100, adaptive=found.adaptive)
    assert found.sigma == pytest.approx((z**-2 - 10.0**-2) ** -0.5 * 0.5, rel=1e-12)
    own = mechanism(adaptive(100, AdaptiveClip(quantile=0.9, rate=1.0, count_noise=40.0)))
    assert isinstance(own, WorkerLevel)
    assert own.adaptive == AdaptiveClipping(quantile=0.9, rate=1.0, count_noise=40.0)


@pytest.mark.parametrize(
    ("buffer", "clip", "said"),
    [
        (
            37,
            AdaptiveClip(),
            r"count_noise is 1\.85, a 20th of the divisor 37; .* 3\.7\d+ it must be above 1\.8\d+",
        ),
        (1000, AdaptiveClip(count_noise=1.8), r"count_noise is 1\.8; .* would cost the whole budget"),
    ],
)
def test_a_count_that_would_cost_the_whole_budget_is_a_config_error(
    buffer: int, clip: AdaptiveClip, said: str
) -> None:
    """z ≥ 2 σ_b, found when z is calibrated; it says what to raise."""
    with pytest.raises(ConfigError, match=said):
        mechanism(adaptive(buffer, clip))


def sampled(rate: float = 1.0, noise_multiplier: float | None = None) -> Config:
    """A federation of ε = 3 whose ten rounds ask each worker with this probability."""
    return Config(
        model=Model(initial="my_app:App"),
        mode=SyncMode(),
        aggregate=Aggregate(weight="uniform"),
        evaluate=Evaluate(fraction=0.0),
        privacy=SampledPrivacy(
            epsilon=3.0,
            delta=1e-5,
            clip_norm=0.5,
            sampling_rate=rate,
            steps=10,
            divisor=20.0,
            noise_multiplier=noise_multiplier,
        ),
    )


def test_a_sampled_workers_noise_pays_for_all_rounds() -> None:
    """At q = 1 that of ten releases; a coin makes it less, by the accountant's word."""
    found = mechanism(sampled())
    assert isinstance(found, SampledWorkers)
    assert 2.99 < gaussian_epsilon(found.noise_multiplier / 10**0.5, 1e-5) <= 3.0
    assert (found.sigma, found.denominator) == (found.noise_multiplier * 0.5, 20.0)
    enough = mechanism(sampled(rate=0.1, noise_multiplier=1.0))  # of which ten whole releases cost 26
    assert enough.spend == Spend(1.0, 0.1)


def test_a_sampled_workers_noise_that_passes_the_budget_is_refused() -> None:
    """It names the rounds that it is too little for."""
    with pytest.raises(PrivacyError, match=r"privacy\.steps = 10 cost epsilon"):
        mechanism(sampled(noise_multiplier=2.0))


def test_a_sampled_count_is_paid_for_out_of_what_is_charged() -> None:
    """σ_b is a 20th of D; z is that of the budget; where the count would cost all of it, it is a config error."""
    found = mechanism(adapted(100.0))
    assert isinstance(found, SampledWorkers)
    assert found.adaptive == AdaptiveClipping(quantile=0.5, rate=0.2, count_noise=5.0)
    assert found.spend == mechanism(sampled()).spend
    assert found.sigma == pytest.approx((found.noise_multiplier**-2 - 10.0**-2) ** -0.5 * 0.5, rel=1e-12)
    with pytest.raises(ConfigError, match=r"count_noise is 1, a 20th of the divisor 20; .* whole budget"):
        mechanism(adapted(20.0))


def adapted(divisor: float) -> Config:
    """The same rounds, with a clip norm that follows the updates."""
    found = sampled()
    assert isinstance(found.privacy, SampledPrivacy)
    table = msgspec.structs.replace(found.privacy, adaptive_clip=AdaptiveClip(), divisor=divisor)
    return msgspec.structs.replace(found, privacy=table)


def test_only_rounds_of_workers_have_a_coin() -> None:
    """At the rate of the table, from the broker's own key."""
    flipped = coin(sampled(rate=0.25), b"k" * 32)
    assert flipped is not None
    assert 150 < sum(flipped.takes(0, f"w{i}") for i in range(800)) < 250
    assert coin(config(), b"k" * 32) is None
    assert coin(workers(), b"k" * 32) is None
