"""What it costs a worker to take part: (ε, δ) at worker level, and the noise that a budget asks for.

Whose presence is hidden is one worker's, all that it holds. Three ways in which workers come into versions, and what
may honestly be claimed for each:

* **By themselves** (asynchronous), or all of them, at most k times each. Who takes part is public, so nothing is
  amplified: k Gaussian releases with z are one with z/√k, exactly.
* **By the broker's secret coin**, each with probability q (Poisson): `accounting.epsilon`.
* **By a secret draw of m out of N** (fixed size). Neighbours replace one worker by another, which moves a clipped
  sum by 2S and not by S. dp-accounting does not double the sensitivity by itself under REPLACE_ONE
  (google/differential-privacy issue 378), so it is asked with z/2. Its Rényi bound (Wang, Balle & Kasiviswanathan,
  arXiv:1808.00087) is loose where m is close to N.

A planned noise multiplier has two decimals and is rounded *up*: the last hundredth more noise that still keeps the
budget.
"""

import math
from collections.abc import Callable
from typing import Any

from ..errors import PrivacyError
from .accounting import Spend, gaussian_epsilon, gaussian_noise

__all__ = ["fixed_size_epsilon", "least_noise", "participations_epsilon", "participations_noise"]


def participations_epsilon(noise_multiplier: float, participations: int, delta: float) -> float:
    """The ε of a worker that was in so many versions; 0 for one that was in none.

    Parameters
    ----------
    noise_multiplier : float
        z > 0, the same in each of them.
    participations : int
        k ≥ 0.
    delta : float
        In (0, 1).

    Examples
    --------
    >>> round(participations_epsilon(11.8, 10, 1e-5), 2)
    1.0
    """
    Spend(noise_multiplier, steps=participations)  # checks both
    if participations == 0:
        return 0.0
    return gaussian_epsilon(noise_multiplier / math.sqrt(participations), delta)


def participations_noise(epsilon_target: float, participations: int, delta: float) -> float:
    """The smallest noise multiplier with which a worker may be in so many versions for (ε, δ).

    Parameters
    ----------
    epsilon_target : float
        ε > 0.
    participations : int
        k ≥ 1.
    delta : float
        In (0, 1).

    Examples
    --------
    >>> round(participations_noise(1.0, 50, 1e-5), 1)
    26.4
    """
    if participations < 1:
        raise PrivacyError(f"participations must be ≥ 1, got {participations}")
    return gaussian_noise(epsilon_target, delta) * math.sqrt(participations)


def fixed_size_epsilon(
    noise_multiplier: float, *, workers: int, cohort: int, rounds: int, delta: float
) -> float:
    """The ε of rounds in each of which a secret draw puts `cohort` of the workers.

    Parameters
    ----------
    noise_multiplier : float
        z > 0, the noise's standard deviation over S, the clip norm of one update.
    workers : int
        N, a public constant; neighbours have equally many.
    cohort : int
        m, from 1 to N.
    rounds : int
        ≥ 0, each with a draw of its own.
    delta : float
        In (0, 1).

    Raises
    ------
    PrivacyError
        When a value is out of range, or dp-accounting is not installed.
    """
    Spend(noise_multiplier, steps=rounds)
    if not 1 <= cohort <= workers:
        raise PrivacyError(f"cohort must be from 1 to {workers}, the number of workers, got {cohort}")
    gaussian_epsilon(1.0, delta)  # checks δ
    if rounds == 0:
        return 0.0
    dp, rdp = _rdp()
    accountant = rdp.RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_ONE)
    release = dp.GaussianDpEvent(noise_multiplier / 2)
    accountant.compose(dp.SampledWithoutReplacementDpEvent(workers, cohort, release), rounds)
    return float(accountant.get_epsilon(delta))


def least_noise(cost: Callable[[float], float], epsilon_target: float, guess: float = 1.0) -> float:
    """The smallest noise multiplier, in hundredths, that costs no more than ε.

    Parameters
    ----------
    cost : callable
        From z to the ε that it costs; it must fall as z grows.
    epsilon_target : float
        ε > 0.
    guess : float
        Where to look first.

    Raises
    ------
    PrivacyError
        When not even a million times the clip norm is enough.

    Examples
    --------
    >>> least_noise(lambda z: participations_epsilon(z, 10, 1e-5), 8.0)
    1.9
    """
    if not 0 < epsilon_target < math.inf:
        raise PrivacyError(f"epsilon must be positive and finite, got {epsilon_target}")
    low, high = 0, max(1, round(100 * guess))  # `low` hundredths are known to be too few
    while cost(high / 100) > epsilon_target:
        low, high = high, 2 * high
        if high > 100_000_000:
            raise PrivacyError(f"no noise multiplier up to 1e6 keeps epsilon {epsilon_target:g}")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle / 100) > epsilon_target else (low, middle)
    return high / 100


def _rdp() -> tuple[Any, Any]:
    try:
        import dp_accounting
        from dp_accounting import rdp
    except ImportError as error:
        raise PrivacyError(
            "accounting for a fixed number of sampled workers needs the library dp-accounting: "
            "pip install fedmq[privacy]"
        ) from error
    return dp_accounting, rdp
