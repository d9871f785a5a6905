"""Worker-level privacy with correlated noise: what the aggregator does with a frozen buffer, and whose keys go into it.

    version t  =  ( Σ wᵢ clip_S(Δᵢ) + Σ_{j<p} c_j Z_{t−j} ) / K        Z_i ~ N(0, σ² I) of the key of version i

Rules that hold here:

* A version's key is derived from all that it is made of: its own rows, and the keys of the p − 1 versions whose noise
  it takes back. So the same key means the same rows *and* the same noise, by induction back to version 1. In one
  journal the earlier keys are committed before, and nothing could differ; a backup that is restored may make version
  t − 1 again of other rows, and then version t, of the same rows as before, must not draw the same Z_t: the
  differences of both pairs of releases would cancel all noise.
* T is the claim's: no version after it is planned for, and none is made.
"""

import hashlib
from collections.abc import Sequence

import msgspec

from ..errors import PrivacyError
from .accounting import Spend
from .correlated import Bisr

__all__ = ["CorrelatedWorkerLevel"]


class CorrelatedWorkerLevel(msgspec.Struct, frozen=True):
    """`WorkerLevel` whose noise later versions take back.

    Parameters
    ----------
    clip_norm : float
        S, what an update's norm is clipped to: the sensitivity of one sum to one worker.
    buffer : int
        K, the updates that make a version; the sum is divided by it.
    noise : Bisr
        z of the whole run, p, and how often and how soon again a worker may take part.
    """

    clip_norm: float
    buffer: int
    noise: Bisr

    @property
    def noise_multiplier(self) -> float:
        """z: all T versions together cost what one Gaussian release with it does."""
        return self.noise.noise_multiplier

    @property
    def max_update_norm(self) -> float:
        """What an update is clipped to, S; also the bound B of the exact sum's grid."""
        return self.clip_norm

    @property
    def sigma(self) -> float:
        """The standard deviation of each Z: z · S times the sensitivity of C."""
        return self.noise.deviation * self.clip_norm

    @property
    def spread(self) -> float:
        """Σ |c_j| σ: 9.5 times this is more than all streams of a version together, which the grid has to hold."""
        return self.sigma * float(abs(self.noise.coefficients).sum())

    @property
    def denominator(self) -> float:
        """K."""
        return float(self.buffer)

    @property
    def spend(self) -> Spend:
        """What the whole run costs a worker that is in as many versions as it may."""
        return Spend(self.noise_multiplier)

    def admits(self, weight: float) -> bool:
        """Whether an update may have this weight: with more, one worker could move the sum by more than S."""
        return 0.0 <= weight <= 1.0

    def used(self, version: int, earlier: Sequence[bytes]) -> tuple[bytes, ...]:
        """Of the keys of earlier versions, the last one's first, those whose noise this version takes back.

        Raises
        ------
        PrivacyError
            When the version is none of the T, or a key is missing.
        """
        planned = self.noise.participation.versions
        if not 1 <= version <= planned:
            raise PrivacyError(f"version {version} is none of the {planned} that the noise is planned for")
        count = min(self.noise.bandwidth, version) - 1
        if len(earlier) < count:
            raise PrivacyError(
                f"version {version} takes back noise of {count} versions before it, and {len(earlier)} keys are here"
            )
        return tuple(earlier[:count])

    def binds(self, frozen: bytes, used: Sequence[bytes]) -> bytes:
        """The digest of a frozen buffer together with the keys of the noise that it takes back."""
        sha = hashlib.sha256(b"fedmq correlated 1" + frozen)
        for key in used:
            sha.update(key)
        return sha.digest()

    def taken_back(self, key: bytes, used: Sequence[bytes]) -> tuple[tuple[float, bytes], ...]:
        """What a version with this key adds besides its own Z: signed standard deviations, each with a stream's key."""
        return tuple(self.noise.terms(self.sigma, [key, *used])[1:])
