"""Noise that takes itself back: the banded inverse square root (BISR) for worker-level privacy.

Independent noise adds up: after T versions the model carries √T times the noise of one. Here version t (from 1) gets

    noise_t = Σ_{j<p} c_j Z_{t−j},    Z_i ~ N(0, σ² I) of its own stream each,    c = coefficients of √(1 − x)

that is 1, −1/2, −1/8, −1/16, …: most of what a version adds, the next p − 1 take back. The releases are C⁻¹(C x + Z),
where C⁻¹ is the banded lower triangular Toeplitz matrix of c. So they cost what *one* Gaussian release of C x does.

Rules that hold here:

* Participation is bounded twice: a worker is in at most k of the T versions, and any two of them are at least b
  versions apart. The broker enforces both; the claim is void where either is not.
* C is non-negative and its coefficients decrease, so that no pattern of participations moves C x farther than k
  columns at spacing b from the first one on, all pushed the same way. The tests try every pattern.
* A version's Z is drawn from its own key, and again from the same key for the p − 1 versions after it: nothing is
  remembered but keys, and a tile is as large as ever. Keys must never be reused *otherwise*.
* T is a constant of the claim: a version after the last planned one costs privacy that was not counted.

References
----------
Kalinin, McKenna, Upadhyay & Lampert, *Back to Square Roots: An Optimal Bound on the Matrix Factorization Error for
Multi-Epoch Differentially Private SGD*, arXiv:2505.12128. That adaptively chosen updates do not change the claim for a
lower triangular C: Denisov et al., arXiv:2202.08312.
"""

import math
from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..errors import PrivacyError
from .accounting import gaussian_epsilon

__all__ = ["Bisr", "Participation", "best_bandwidth", "inverse_square_root"]

F64 = NDArray[np.float64]

MAX_BANDWIDTH: Final = 1024
"""Each term is a whole stream of noise: more would cost a version more time than it saves error."""


class Participation(msgspec.Struct, frozen=True, kw_only=True):
    """How often, and how soon again, one worker may be in a version.

    Parameters
    ----------
    versions : int
        T ≥ 1: the versions that are made at most.
    most : int
        k ≥ 1.
    separation : int
        b ≥ 1: from one participation to the next at least; 1 forbids nothing.
    """

    versions: int
    most: int
    separation: int = 1

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if getattr(self, name) < 1:
                raise PrivacyError(f"{name} must be ≥ 1, got {getattr(self, name)}")

    @property
    def times(self) -> int:
        """How often a worker can be in a version: k, or fewer where T and b leave no room for as many."""
        return min(self.most, -(-self.versions // self.separation))


class Bisr(msgspec.Struct, frozen=True, kw_only=True):
    """Correlated noise for one pattern of participation.

    Parameters
    ----------
    bandwidth : int
        p ≥ 1, from how many versions' streams a version's noise is mixed; 1 is independent noise.
    noise_multiplier : float
        z > 0: the whole run costs what one Gaussian release with z does.
    participation : Participation
    """

    bandwidth: int
    noise_multiplier: float
    participation: Participation

    def __post_init__(self) -> None:
        if not 1 <= self.bandwidth <= MAX_BANDWIDTH:
            raise PrivacyError(f"bandwidth must be from 1 to {MAX_BANDWIDTH}, got {self.bandwidth}")
        if not 0 < self.noise_multiplier < math.inf:
            raise PrivacyError(f"noise_multiplier must be positive and finite, got {self.noise_multiplier}")

    @property
    def coefficients(self) -> F64:
        """c_0 … c_{p−1}."""
        return inverse_square_root(self.bandwidth)

    @property
    def sensitivity(self) -> float:
        """The farthest that one worker moves C x, in units of the clip norm S.

        ‖Σ_{i<k} column 1 + ib of C‖: for non-negative decreasing coefficients no other pattern moves it farther.
        """
        versions, step = self.participation.versions, self.participation.separation
        column = _series_inverse(self.coefficients, versions)
        total = np.zeros(versions)
        for i in range(self.participation.times):
            total[i * step :] += column[: versions - i * step]
        return float(np.linalg.norm(total)) * (1 + 1e-12)  # never below it by a rounding

    @property
    def deviation(self) -> float:
        """σ / S: the standard deviation of each Z, z times the sensitivity."""
        return self.noise_multiplier * self.sensitivity

    def sensitivity_of(self, versions: Sequence[int]) -> float:
        """The farthest that a worker moves C x whose updates are in just these versions (from 1), in units of S.

        ‖Σ_t column t of C‖: the entries are not negative, so that updates which all push the same way move it
        farthest. Whoever was in a version is public here, so this is what that worker's part cost.
        """
        last = self.participation.versions
        if not all(1 <= version <= last for version in versions) or len(set(versions)) < len(versions):
            raise PrivacyError(f"versions must be different ones from 1 to {last}, got {sorted(versions)}")
        column = _series_inverse(self.coefficients, last)
        total = np.zeros(last)
        for version in versions:
            total[version - 1 :] += column[: last - version + 1]
        return float(np.linalg.norm(total)) * (1 + 1e-12)

    def epsilon(self, delta: float) -> float:
        """What the T versions cost a worker that was in as many of them as it may."""
        return gaussian_epsilon(self.noise_multiplier, delta)

    def terms(self, sigma: float, keys: Sequence[bytes]) -> list[tuple[float, bytes]]:
        """What to add to a version: signed standard deviations, each with the key of its stream.

        Parameters
        ----------
        sigma : float
            The standard deviation of each Z, in the units of the sum: `deviation` · S.
        keys : sequence of bytes
            Of this version first, then of the one before it, and so on, each drawn with the same σ; all there
            are, or at least p of them.

        Returns
        -------
        list of (float, bytes)
            c_j σ with key j. Negative ones are subtracted: the stream is what was added before.
        """
        if not keys:
            raise PrivacyError("keys must be at least this version's own, got none")
        used = list(keys[: self.bandwidth])
        if len(set(used)) < len(used):
            raise PrivacyError("keys must be all different: two versions would share their noise")
        return [(float(c) * sigma, key) for c, key in zip(self.coefficients, used, strict=False)]

    def model_error(self) -> F64:
        """The standard deviation, in units of S, of the noise that Σ_{i≤t} noise_i holds, for t = 1 … T."""
        versions = self.participation.versions
        row = np.zeros(versions)
        row[: self.bandwidth] = self.coefficients[:versions]
        sums = np.cumsum(row)  # what is left of Z_{t−j} in the sum at t
        return self.deviation * np.sqrt(np.cumsum(sums**2))

    def root_mean_square_error(self) -> float:
        """Over all T sums; what independent noise with the same ε has, is √k · z · √((T + 1) / 2)."""
        return float(np.sqrt(np.mean(self.model_error() ** 2)))


def inverse_square_root(bandwidth: int) -> F64:
    """The first p coefficients of √(1 − x).

    Examples
    --------
    >>> inverse_square_root(4).tolist()
    [1.0, -0.5, -0.125, -0.0625]
    """
    coefficients = np.ones(bandwidth)
    for j in range(1, bandwidth):
        coefficients[j] = coefficients[j - 1] * (j - 1.5) / j
    return coefficients


def best_bandwidth(participation: Participation, candidates: Sequence[int] = (1, 2, 4, 8, 16, 32, 64)) -> int:
    """The bandwidth whose sums have the least error, among those that a version's time allows."""

    def error(bandwidth: int) -> float:
        used = Bisr(bandwidth=bandwidth, noise_multiplier=1.0, participation=participation)
        return used.root_mean_square_error()

    return min((p for p in candidates if p <= participation.versions), key=error)


def _series_inverse(coefficients: F64, n: int) -> F64:
    """The first n coefficients of 1 / Σ c_j x^j, c_0 = 1."""
    tail = -coefficients[1:]
    inverse = np.zeros(n)
    inverse[0] = 1.0
    for t in range(1, n):
        width = min(t, len(tail))
        inverse[t] = tail[:width] @ inverse[t - width : t][::-1]
    return inverse
