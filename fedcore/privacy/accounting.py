"""What a sequence of noisy releases costs: (ε, δ), and the noise that a budget asks for.

Two accountants, for the two things that a federation may honestly claim:

* **Gaussian, exact.** Releases without amplification by sampling: one release, or the k versions that a worker
  had a part in when updates arrive by themselves. The Gaussian mechanism composes exactly, k releases with
  noise multiplier z are one with z/√k, and its (ε, δ) curve is a closed formula (Balle & Wang,
  arXiv:1805.06530). Plain Python, no library.
* **Poisson-sampled Gaussian**, where a secret coin puts every record into each step with probability q:
  privacy-loss distributions (PLD) from Google's dp-accounting, ``pip install fedmq[privacy]``. Its estimate is
  an upper bound. It must not be used where arrivals only look random: claiming q = 0.05 for a buffer of
  arrivals reports ε = 4.77 where the honest figure is 17.86 (z = 1, 200 steps).

Rules that hold here:

* z, the noise multiplier, is the noise's standard deviation over the sensitivity of the release to one record
  (or one worker). Neighbours differ by adding or removing one.
* Calibrated noise is rounded *up*, an ε is never rounded down.
* The library is imported when it is called for, not before: it takes a second and brings SciPy.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from ..errors import PrivacyError

__all__ = [
    "Spend",
    "epsilon",
    "gaussian_delta",
    "gaussian_epsilon",
    "gaussian_noise",
    "poisson_noise",
]

_DIGITS: Final = 4  # a calibrated noise multiplier has this many significant digits
_PLD_INTERVAL: Final = 1e-4


class Spend(msgspec.Struct, frozen=True):
    """Equal steps of one mechanism: what a version adds to the ledger.

    Parameters
    ----------
    noise_multiplier : float
        z > 0.
    sampling_rate : float
        q in (0, 1]; 1 where no coin decides who takes part, which means no amplification.
    steps : int
        How many times, ≥ 0.
    """

    noise_multiplier: float
    sampling_rate: float = 1.0
    steps: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.noise_multiplier < math.inf:
            raise PrivacyError(f"noise_multiplier must be positive and finite, got {self.noise_multiplier}")
        if not 0 < self.sampling_rate <= 1:
            raise PrivacyError(f"sampling_rate must be in (0, 1], got {self.sampling_rate}")
        if self.steps < 0:
            raise PrivacyError(f"steps must be ≥ 0, got {self.steps}")


def epsilon(spends: Iterable[Spend], delta: float) -> float:
    """The ε, at `delta`, of all these steps together.

    Parameters
    ----------
    spends : iterable of Spend
        In any order; z and q may differ between them.
    delta : float
        In (0, 1).

    Raises
    ------
    PrivacyError
        When a value is out of range, or steps were sampled and dp-accounting is not installed.

    Examples
    --------
    >>> round(epsilon([Spend(noise_multiplier=11.8, steps=10)], delta=1e-5), 2)
    1.0
    """
    _check_delta(delta)
    spends = [spend for spend in spends if spend.steps]
    if not spends:
        return 0.0
    if all(spend.sampling_rate == 1 for spend in spends):
        return gaussian_epsilon(1 / math.sqrt(sum(s.steps / s.noise_multiplier**2 for s in spends)), delta)
    dp, pld = _dp_accounting()
    accountant = pld.PLDAccountant(value_discretization_interval=_PLD_INTERVAL)
    for spend in spends:
        event = dp.GaussianDpEvent(spend.noise_multiplier)
        if spend.sampling_rate < 1:
            event = dp.PoissonSampledDpEvent(spend.sampling_rate, event)
        accountant.compose(event, spend.steps)
    return float(accountant.get_epsilon(delta))


def poisson_noise(*, epsilon_target: float, delta: float, sampling_rate: float, steps: int) -> float:
    """The smallest noise multiplier with which `steps` Poisson-sampled releases cost at most (ε, δ).

    Parameters
    ----------
    epsilon_target : float
        ε > 0.
    delta : float
        In (0, 1); take it well below one over the number of records.
    sampling_rate : float
        q in (0, 1].
    steps : int
        ≥ 1.

    Returns
    -------
    float
        z, rounded up to four significant digits.

    Raises
    ------
    PrivacyError
        When a value is out of range, or dp-accounting is not installed.
    """
    _check_epsilon(epsilon_target)
    _check_delta(delta)
    if steps < 1:
        raise PrivacyError(f"steps must be ≥ 1, got {steps}")
    Spend(1.0, sampling_rate, steps)  # checks the rate
    if sampling_rate == 1:
        return _round_up(gaussian_noise(epsilon_target, delta) * math.sqrt(steps))

    def costs_too_much(z: float) -> bool:
        return epsilon([Spend(z, sampling_rate, steps)], delta) > epsilon_target

    z = _bisect(costs_too_much, _clt_guess(epsilon_target, delta, sampling_rate, steps), _DIGITS)
    return _round_up(z)


def gaussian_delta(noise_multiplier: float, epsilon_: float) -> float:
    """δ(ε) of one Gaussian release: Φ(1/2z − εz) − e^ε Φ(−1/2z − εz).

    References
    ----------
    Balle & Wang, *Improving the Gaussian Mechanism for Differential Privacy*, arXiv:1805.06530, theorem 8.
    """
    Spend(noise_multiplier)
    z = noise_multiplier
    log_first = _log_ndtr(0.5 / z - epsilon_ * z)
    log_second = epsilon_ + _log_ndtr(-0.5 / z - epsilon_ * z)
    return math.exp(log_first) * -math.expm1(min(log_second - log_first, 0.0))


def gaussian_epsilon(noise_multiplier: float, delta: float) -> float:
    """The ε of one Gaussian release at `delta`, rounded up in the last digits.

    Examples
    --------
    >>> round(gaussian_epsilon(3.73, 1e-5), 3)
    1.0
    """
    _check_delta(delta)
    if gaussian_delta(noise_multiplier, 0.0) <= delta:
        return 0.0
    return _bisect(lambda eps: gaussian_delta(noise_multiplier, eps) > delta, 1.0, 12)


def gaussian_noise(epsilon_target: float, delta: float) -> float:
    """The smallest noise multiplier with which one Gaussian release is (ε, δ)-private.

    Examples
    --------
    >>> round(gaussian_noise(1.0, 1e-5), 2)
    3.73
    """
    _check_epsilon(epsilon_target)
    _check_delta(delta)
    return _bisect(lambda z: gaussian_delta(z, epsilon_target) > delta, 1.0, 12)


def _bisect(too_small: Callable[[float], bool], guess: float, digits: int) -> float:
    """The least x > 0 that is not too small, from above, to a relative 10^−digits; too_small is monotone."""
    low, high = 0.9 * guess, 1.1 * guess
    while too_small(high):
        low, high = high, 2 * high
    while not too_small(low):
        low, high = low / 2, low
        if high < 1e-9:
            return high
    while high - low > 10.0**-digits * high:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if too_small(middle) else (low, middle)
    return high


def _clt_guess(epsilon_target: float, delta: float, sampling_rate: float, steps: int) -> float:
    """A first guess of z by the central limit: μ = q √(T (e^{1/z²} − 1)) (Dong et al., arXiv:1905.02383).

    It is close, so that the bisection asks the accountant a dozen times and not thirty.
    """
    mu = 1 / gaussian_noise(epsilon_target, delta)
    return 1 / math.sqrt(math.log1p((mu / sampling_rate) ** 2 / steps))


def _round_up(value: float) -> float:
    scale = 10.0 ** (_DIGITS - 1 - math.floor(math.log10(value)))
    return math.ceil(value * scale) / scale


def _log_ndtr(x: float) -> float:
    """log Φ(x); far in the tail by the first terms of its asymptotic series, where erfc would be 0."""
    if x > -30:
        return math.log(0.5 * math.erfc(-x / math.sqrt(2)))
    return -0.5 * x * x - math.log(-x * math.sqrt(2 * math.pi)) + math.log1p(-1 / x**2 + 3 / x**4)


def _check_epsilon(value: float) -> None:
    if not 0 < value < math.inf:
        raise PrivacyError(f"epsilon must be positive and finite, got {value}")


def _check_delta(value: float) -> None:
    if not 0 < value < 1:
        raise PrivacyError(
            f"delta must be in (0, 1), got {value}; it is a probability of failure, such as 1e-5"
        )


def _dp_accounting() -> tuple[Any, Any]:
    try:
        import dp_accounting
        from dp_accounting import pld
    except ImportError as error:
        raise PrivacyError(
            "accounting for Poisson-sampled steps needs the library dp-accounting: pip install fedmq[privacy]"
        ) from error
    return dp_accounting, pld
