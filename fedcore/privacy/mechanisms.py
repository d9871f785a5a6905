"""How much noise a private version gets, and from which stream.

A mechanism says, from the configuration alone, what the aggregator does with a frozen buffer:

    d = ( Σ clip(Δᵢ) + N(0, σ² I) ) / D

* Every number here is public: the bound, σ and D depend on no data, nor on how many updates arrived.
* Clipping is the broker's, whatever the worker did. Projecting onto a ball is non-expansive, so that a sum of
  clipped gradients that is clipped once more is no more sensitive than before.
* The noise key of a version is derived from the master key, the version and everything that is folded. The same
  rows folded again, after a crash, get the same noise; other rows never do: equal noise under two different
  sums would cancel.
"""

import hashlib
import hmac
import math
import struct
from collections.abc import Iterable
from typing import Final

import msgspec

from ..errors import PrivacyError
from .accounting import Spend
from .adaptive import AdaptiveClipping
from .clip import Clip
from .correlated_level import CorrelatedWorkerLevel
from .sampled_workers import SampledWorkers

__all__ = ["NOISE_NONCE", "Mechanism", "RecordLevel", "WorkerLevel", "frozen_digest", "noise_key"]

NOISE_NONCE: Final = bytes(12)
"""Each version has its own key, so that the nonce may be constant."""


class RecordLevel(msgspec.Struct, frozen=True):
    """Each update is a sum of clipped per-example gradients over a Poisson batch; the noise is drawn once.

    Parameters
    ----------
    max_grad_norm : float
        S, the clip norm of one example's gradient: the sensitivity of the sum to one record.
    noise_multiplier : float
        z.
    sampling_rate : float
        q, the probability with which each record takes part in a step.
    divisor : float
        D, a public constant: the expected batch, q times the number of records.
    max_batch : int
        b, the largest batch of one worker that still fits; a larger sum is scaled down to b·S.

    References
    ----------
    Abadi et al., *Deep Learning with Differential Privacy*, arXiv:1607.00133.
    """

    max_grad_norm: float
    noise_multiplier: float
    sampling_rate: float
    divisor: float
    max_batch: int

    def __post_init__(self) -> None:
        _check_positive("max_grad_norm", self.max_grad_norm)
        _check_positive("divisor", self.divisor)
        _check_positive("max_batch", self.max_batch)
        Spend(self.noise_multiplier, self.sampling_rate)

    @property
    def max_update_norm(self) -> float:
        """What an update is clipped to, b·S; also the bound B of the exact sum's grid."""
        return self.max_batch * self.max_grad_norm

    @property
    def sigma(self) -> float:
        """The noise's standard deviation on the sum, z·S."""
        return self.noise_multiplier * self.max_grad_norm

    @property
    def denominator(self) -> float:
        """D."""
        return self.divisor

    @property
    def spend(self) -> Spend:
        """What one version costs each record."""
        return Spend(self.noise_multiplier, self.sampling_rate)

    def admits(self, weight: float) -> bool:
        """Whether an update may have this weight: each record counts the same."""
        return weight == 1.0


class WorkerLevel(msgspec.Struct, frozen=True):
    """Each update is all that one worker adds to a version: clipped to S, weighted by 0 ≤ w ≤ 1.

    The noise is always that of w = 1 and the denominator always K, whatever staleness made of the weights: both
    are constants.

    Parameters
    ----------
    clip_norm : float
        S, what an update's norm is clipped to: the sensitivity of the sum to one worker.
    noise_multiplier : float
        z.
    buffer : int
        K, the updates that make a version; the sum is divided by it.
    adaptive : AdaptiveClipping, optional
        How S moves from version to version: then `clip_norm` is that of the first one, z is what the sum and the
        count of bits cost together, and `onto` gives the mechanism of one version (`clip`).

    References
    ----------
    McMahan et al., *Learning Differentially Private Recurrent Language Models*, arXiv:1710.06963.
    """

    clip_norm: float
    noise_multiplier: float
    buffer: int
    adaptive: AdaptiveClipping | None = None

    def __post_init__(self) -> None:
        _check_positive("buffer", self.buffer)
        Spend(self.clip.noise_multiplier)  # both check what they are made of

    @property
    def clip(self) -> Clip:
        """What updates are clipped to, the noise with it, and how both move."""
        return Clip(self.clip_norm, self.noise_multiplier, self.denominator, self.adaptive)

    @property
    def max_update_norm(self) -> float:
        """What an update is clipped to, S; also the bound B of the exact sum's grid."""
        return self.clip_norm

    @property
    def sigma(self) -> float:
        """The noise's standard deviation on the sum, z·S; z_Δ·S where S is adapted."""
        return self.clip.sigma

    def onto(self, left: float | None) -> "WorkerLevel":
        """The mechanism of a version that builds on one which left this clip norm; None where none is adapted."""
        return msgspec.structs.replace(self, clip_norm=self.clip.after(left))

    @property
    def denominator(self) -> float:
        """K."""
        return float(self.buffer)

    @property
    def spend(self) -> Spend:
        """What one version costs each worker that is in it: arrivals are no sample, so nothing is amplified."""
        return Spend(self.noise_multiplier)

    def admits(self, weight: float) -> bool:
        """Whether an update may have this weight: with more, one worker could move the sum by more than S."""
        return 0.0 <= weight <= 1.0


Mechanism = RecordLevel | WorkerLevel | CorrelatedWorkerLevel | SampledWorkers


def frozen_digest(
    rows: Iterable[tuple[bytes, bytes]],
    *,
    frac_bits: int,
    sigma: float,
    counted: tuple[float, float] | None = None,
) -> bytes:
    """Name everything that a private sum is made of, in 32 bytes.

    Parameters
    ----------
    rows : iterable of (task id, payload digest)
        The frozen updates; their order does not matter.
    frac_bits : int
        F, the grid of the exact sum.
    sigma : float
        The noise's standard deviation.
    counted : (float, float), optional
        Where updates are counted as well: the clip norm, and the standard deviation of the count's noise.
    """
    sha = hashlib.sha256(b"fedmq frozen 1" + struct.pack("<qd", frac_bits, sigma))
    if counted is not None:
        # No length of a task id begins like this: rows cannot be taken for it.
        sha.update(b"adaptive clip 1" + struct.pack("<dd", *counted))
    for row in sorted(rows):
        for part in row:
            sha.update(struct.pack("<q", len(part)) + part)
    return sha.digest()


def noise_key(master_key: bytes, *, version: int, frozen: bytes) -> bytes:
    """The 32-byte ChaCha20 key of one version's noise (HKDF-SHA256, RFC 5869).

    Parameters
    ----------
    master_key : bytes
        At least 32 random bytes from the broker's state folder, as sensitive as the raw updates.
    version : int
        The version that is made.
    frozen : bytes
        `frozen_digest` of what it is made of.

    Raises
    ------
    PrivacyError
        When the master key is shorter than 32 bytes.
    """
    if len(master_key) < 32:
        raise PrivacyError(f"the master noise key must be at least 32 bytes, got {len(master_key)}")
    secret = hmac.digest(b"fedmq noise 1", master_key, "sha256")
    return hmac.digest(secret, struct.pack("<q", version) + frozen + b"\x01", "sha256")


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise PrivacyError(f"{name} must be positive and finite, got {value}")
