"""Worker-level privacy before a federation starts: how much noise, and whether a model survives it.

All lengths are in units of S, the clip norm of one update, because nobody knows before how long updates are. What can
be said without training anything:

* **One version** is the mean of K clipped updates plus noise of z/K a coordinate: ‖noise‖ ≈ √n · z/K for n parameters.
  The mean is at most 1 long, when all K agree, and about 1/√K when they have nothing in common.
* **The whole run**: T versions move a model by at most T, when all agree; their noise adds up to about √(nT) · z/K,
  less where it is correlated. The quotient, the *noise share*, is the least part of the movement that is noise. At
  1 or above there is nothing left to learn from: the plan is refused. Below 0.3 it seldom hurts.

With the fewest participations that do, k = TK/N, the share is z₁ √(n / NK), where z₁ is what one participation needs
for ε: it takes many workers, whatever T is.
"""

import math
from typing import Final, Literal

import msgspec
import numpy as np

from ..config.clip_tables import COUNT_NOISE_SHARE
from ..errors import PrivacyError
from .accounting import Spend, epsilon, poisson_noise
from .adaptive import AdaptiveClipping
from .correlated import Bisr, Participation, best_bandwidth
from .participation import fixed_size_epsilon, least_noise, participations_epsilon, participations_noise

__all__ = ["SMALLEST_MODEL", "Arrivals", "Fixed", "Plan", "Poisson", "plan"]

SMALLEST_MODEL: Final = 650
"""Parameters of softmax regression on 8 x 8 digits, which stand in where nobody said how many there are."""

DROWNED: Final = 1.0
COSTLY: Final = 0.3


class Arrivals(msgspec.Struct, frozen=True, kw_only=True):
    """Workers come by themselves (asynchronous), or all of them take part.

    Parameters
    ----------
    buffer : int
        K: updates, each of another worker, that make a version.
    most : int, optional
        k: versions that one worker may be in; by default the fewest with which T versions can be made.
    bandwidth : int, optional
        p of correlated noise; 0 is the best one, None independent noise.
    separation : int, optional
        b, with correlated noise; by default ⌊N / 2K⌋, so that at least half of the workers may always come.
    """

    buffer: int
    most: int | None = None
    bandwidth: int | None = None
    separation: int | None = None


class Poisson(msgspec.Struct, frozen=True, kw_only=True):
    """The broker's secret coin puts each worker into each version with probability `rate`."""

    rate: float


class Fixed(msgspec.Struct, frozen=True, kw_only=True):
    """A secret draw puts exactly `cohort` workers into each version."""

    cohort: int


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a budget means for a federation; lengths in units of S, the clip norm."""

    workers: int
    versions: int
    cohort: float
    """K, or how many are expected where a coin decides; what the sum is divided by."""
    participation: Literal["arrivals", "poisson", "fixed"]
    """How workers come to be in a version."""
    adjacency: Literal["zero-out", "replace-one"]
    accountant: str
    most: int | None
    """k; None where the coin decides."""
    separation: int | None
    bandwidth: int | None
    sampling_rate: float | None
    """q; None where no coin decides."""
    epsilon_budget: float
    delta: float
    noise_multiplier: float
    """z, in hundredths, rounded up. With correlated noise that of the one release that all versions are."""
    epsilon: float
    """What z really costs."""
    deviation: float
    """Standard deviation of the noise on one version's sum, a coordinate; z, unless it is correlated."""
    count_noise: float | None
    """σ_b, where S follows the updates; z is then what the sum and the count cost together."""
    parameters: int
    assumed: bool
    """Whether `parameters` is only a stand-in."""
    noise_per_coordinate: float
    noise_norm: float
    """Of one version's mean."""
    signal_to_noise_best: float
    """All updates agree, each as long as S."""
    signal_to_noise_unrelated: float
    """Updates have nothing in common."""
    noise_after_all: float
    """‖noise‖ that T versions together leave in the model."""
    noise_share: float
    """That over T, the farthest that T versions can move it."""
    largest_model: int
    """With so many parameters the noise share is 1."""
    noise_level: float
    cohort_needed: int
    workers_needed: int
    """With the same ε, versions and share of the workers in each, so that the noise share is `noise_level`."""

    @property
    def verdict(self) -> Literal["fine", "costly", "drowned"]:
        """What the noise share means."""
        if self.noise_share >= DROWNED:
            return "drowned"
        return "costly" if self.noise_share > COSTLY else "fine"


def plan(
    how: Arrivals | Poisson | Fixed,
    *,
    workers: int,
    versions: int,
    epsilon_target: float,
    delta: float,
    parameters: int | None = None,
    noise_level: float = COSTLY,
    adaptive_clip: bool = False,
) -> Plan:
    """How much noise (ε, δ) takes, and what it does to a model.

    Parameters
    ----------
    how : Arrivals or Poisson or Fixed
        How workers come to be in a version.
    workers : int
        N ≥ 1.
    versions : int
        T ≥ 1.
    epsilon_target, delta : float
        The budget of each worker for the whole run.
    parameters : int, optional
        n, of the model; without it `SMALLEST_MODEL` stands in.
    noise_level : float
        The noise share that `workers_needed` is for.
    adaptive_clip : bool
        Whether S follows the updates: then the noise pays for their count as well, with its own noise: a 20th
        of the updates that are expected in a version.

    Raises
    ------
    PrivacyError
        When the versions cannot be made under the caps, a value is out of range, or sampling needs
        dp-accounting and it is not installed.
    """
    for name, value in (("workers", workers), ("versions", versions), ("parameters", parameters or 1)):
        if value < 1:
            raise PrivacyError(f"{name} must be ≥ 1, got {value}")
    if not 0 < noise_level < math.inf:
        raise PrivacyError(f"noise_level must be positive and finite, got {noise_level}")
    n = SMALLEST_MODEL if parameters is None else parameters
    found = _noise(how, workers, versions, epsilon_target, delta)
    if adaptive_clip:
        found = _counting(found)
    per_model = found.after_all / (found.cohort * versions)  # the noise share of one parameter
    share = per_model * math.sqrt(n)
    cohort_needed = math.ceil(found.cohort * share / noise_level)
    noise_norm = found.deviation / found.cohort * math.sqrt(n)
    return Plan(
        workers=workers,
        versions=versions,
        cohort=found.cohort,
        participation=found.participation,
        adjacency="replace-one" if found.participation == "fixed" else "zero-out",
        accountant=found.accountant,
        most=found.most,
        separation=found.separation,
        bandwidth=found.bandwidth,
        sampling_rate=how.rate if isinstance(how, Poisson) else None,
        epsilon_budget=epsilon_target,
        delta=delta,
        noise_multiplier=found.noise_multiplier,
        epsilon=found.epsilon,
        deviation=found.deviation,
        count_noise=found.count_noise,
        parameters=n,
        assumed=parameters is None,
        noise_per_coordinate=found.deviation / found.cohort,
        noise_norm=noise_norm,
        signal_to_noise_best=1 / noise_norm,
        signal_to_noise_unrelated=1 / (noise_norm * math.sqrt(found.cohort)),
        noise_after_all=found.after_all / found.cohort * math.sqrt(n),
        noise_share=share,
        largest_model=math.floor(per_model**-2),
        noise_level=noise_level,
        cohort_needed=cohort_needed,
        workers_needed=math.ceil(workers * cohort_needed / found.cohort),
    )


class _Noise(msgspec.Struct, frozen=True, kw_only=True):
    """What the accountant says; deviations are of the sum, a coordinate."""

    participation: Literal["arrivals", "poisson", "fixed"]
    cohort: float
    noise_multiplier: float
    epsilon: float
    deviation: float
    after_all: float
    accountant: str
    most: int | None = None
    separation: int | None = None
    bandwidth: int | None = None
    count_noise: float | None = None


def _counting(found: _Noise) -> _Noise:
    """The same with a count of updates beside each sum; what is charged stays, and the sum gets more noise."""
    if found.bandwidth is not None:
        raise PrivacyError(
            "correlated noise needs a constant clip norm: its versions cancel each other's noise"
        )
    rule = AdaptiveClipping(quantile=0.5, rate=0.2, count_noise=found.cohort / COUNT_NOISE_SHARE)
    if found.noise_multiplier >= 2 * rule.count_noise:
        raise PrivacyError(
            f"a clip norm that follows the updates takes more than {COUNT_NOISE_SHARE / 2 * found.noise_multiplier:g} "
            f"of them in a version with the noise multiplier {found.noise_multiplier:g}, and there are "
            f"{found.cohort:g}: their count would cost the whole budget"
        )
    more = rule.update_noise(found.noise_multiplier) / found.noise_multiplier
    return msgspec.structs.replace(
        found,
        deviation=found.deviation * more,
        after_all=found.after_all * more,
        count_noise=rule.count_noise,
    )


def _noise(
    how: Arrivals | Poisson | Fixed, workers: int, versions: int, target: float, delta: float
) -> _Noise:
    match how:
        case Arrivals():
            return _arrivals(how, workers, versions, target, delta)
        case Poisson():
            return _poisson(how, workers, versions, target, delta)
        case Fixed():
            return _fixed(how, workers, versions, target, delta)


def _arrivals(how: Arrivals, workers: int, versions: int, target: float, delta: float) -> _Noise:
    correlated = how.bandwidth is not None
    separation = 1
    if correlated:
        separation = max(1, workers // (2 * how.buffer)) if how.separation is None else how.separation
    most = how.most
    if most is None:
        most = max(1, -(-versions * how.buffer // workers))
    pattern = Participation(versions=versions, most=most, separation=separation)
    _check_feasible(how.buffer, workers, pattern)
    if not correlated:
        z = least_noise(
            lambda z: participations_epsilon(z, pattern.times, delta),
            target,
            participations_noise(target, pattern.times, delta),
        )
        return _Noise(
            participation="arrivals",
            cohort=how.buffer,
            noise_multiplier=z,
            epsilon=participations_epsilon(z, pattern.times, delta),
            deviation=z,
            after_all=z * math.sqrt(versions),
            accountant=f"exact composition of {pattern.times} Gaussian releases",
            most=pattern.times,
        )
    z = least_noise(lambda z: participations_epsilon(z, 1, delta), target)
    noise = Bisr(
        bandwidth=how.bandwidth or best_bandwidth(pattern), noise_multiplier=z, participation=pattern
    )
    return _Noise(
        participation="arrivals",
        cohort=how.buffer,
        noise_multiplier=z,
        epsilon=noise.epsilon(delta),
        deviation=noise.deviation * float(np.linalg.norm(noise.coefficients)),
        after_all=float(noise.model_error()[-1]),
        accountant=f"one Gaussian release of all {versions} versions, at the sensitivity of BISR",
        most=pattern.times,
        separation=separation,
        bandwidth=noise.bandwidth,
    )


def _poisson(how: Poisson, workers: int, versions: int, target: float, delta: float) -> _Noise:
    def cost(z: float) -> float:
        return epsilon([Spend(z, how.rate, versions)], delta)

    guess = poisson_noise(epsilon_target=target, delta=delta, sampling_rate=how.rate, steps=versions)
    z = least_noise(cost, target, guess)
    return _Noise(
        participation="poisson",
        cohort=how.rate * workers,
        noise_multiplier=z,
        epsilon=cost(z),
        deviation=z,
        after_all=z * math.sqrt(versions),
        accountant=f"PLD of {versions} Poisson-sampled Gaussian releases, q = {how.rate:g}",
    )


def _fixed(how: Fixed, workers: int, versions: int, target: float, delta: float) -> _Noise:
    def cost(z: float) -> float:
        return fixed_size_epsilon(z, workers=workers, cohort=how.cohort, rounds=versions, delta=delta)

    z = least_noise(cost, target)
    return _Noise(
        participation="fixed",
        cohort=how.cohort,
        noise_multiplier=z,
        epsilon=cost(z),
        deviation=z,
        after_all=z * math.sqrt(versions),
        accountant=f"RDP of {versions} Gaussian releases, {how.cohort} of {workers} without replacement, at 2S",
    )


def _check_feasible(buffer: int, workers: int, pattern: Participation) -> None:
    """T versions of K different workers exist when, and only when, none of these is short."""
    if not 1 <= buffer <= workers:
        raise PrivacyError(
            f"buffer must be from 1 to {workers}, the number of workers: each gives one update to a version; "
            f"got {buffer}"
        )
    most_separate = workers // buffer
    if pattern.separation > most_separate and pattern.versions > most_separate:
        raise PrivacyError(
            f"separation {pattern.separation} with buffer {buffer} keeps {pattern.separation * buffer} workers "
            f"apart, and there are {workers}: it may be {most_separate} at most"
        )
    if pattern.versions * buffer > workers * pattern.times:
        raise PrivacyError(
            f"{pattern.versions} versions of {buffer} updates are {pattern.versions * buffer} participations, and "
            f"{workers} workers with at most {pattern.times} each give {workers * pattern.times}: allow "
            f"{-(-pattern.versions * buffer // workers)} each, or make {workers * pattern.times // buffer} versions"
        )
