"""Worker-level privacy in rounds: the constants of the mechanism, and the coin that decides whom a round asks.

    d = ( Σ clip_S(Δᵢ) + N(0, (z·S)² I) ) / D        over the workers that the coin took

Rules that hold here:

- The coin is the broker's own secret, and each worker has one of its own in each round. It never follows from the
  federation's seed, which is public.
- It is a function of the master noise key, the round and the worker. So it falls the same way however often it is
  asked: a broker that was killed does not flip it again, which would be a second sample for the price of one.
- The divisor is a constant, and whoever is missing counts as zero. So the sum without a worker is the sum in which
  its update is zero, and neighbours that differ by one worker more or less are those of the accountant.
- Where S is adapted, a round releases a second sum, of the bits bᵢ − ½, over the very same sample. One coin put a
  worker into both or into neither, so that this is not two sampled releases: it is one Gaussian of one vector, to
  which a worker that the coin took adds at most 1/z in units of the noise (`clip`), and one that it did not take, as
  one that does not answer or is not finite, adds nothing. That is `PoissonSampledDpEvent(q, GaussianDpEvent(z))`: the
  Gaussian is the same in all directions in these units, and its cost depends on the length of what is added alone.
  S and so σ of a round follow from what was released before it, which adaptive composition allows.
"""

import hmac
import math
import struct

import msgspec

from ..errors import PrivacyError
from .accounting import Spend
from .adaptive import AdaptiveClipping
from .clip import Clip

__all__ = ["Coin", "SampledWorkers"]


class SampledWorkers(msgspec.Struct, frozen=True):
    """Each update is all that one worker adds to a round; a secret coin decided that it was asked.

    Parameters
    ----------
    clip_norm : float
        S, what an update's norm is clipped to: the sensitivity of the sum to one worker.
    noise_multiplier : float
        z.
    sampling_rate : float
        q, the probability with which a round asks a worker.
    divisor : float
        D, a public constant: the expected cohort, q times the number of workers.
    adaptive : AdaptiveClipping, optional
        How S moves from round to round: then `clip_norm` is that of the first one, z is what the sum and the count
        of bits cost together, and `onto` gives the mechanism of one round (`clip`).

    References
    ----------
    McMahan et al., *Learning Differentially Private Recurrent Language Models*, arXiv:1710.06963.
    Andrew et al., *Differentially Private Learning with Adaptive Clipping*, arXiv:1905.03871.
    """

    clip_norm: float
    noise_multiplier: float
    sampling_rate: float
    divisor: float
    adaptive: AdaptiveClipping | None = None

    def __post_init__(self) -> None:
        Spend(self.clip.noise_multiplier, self.sampling_rate)  # both check what they are made of

    @property
    def clip(self) -> Clip:
        """What updates are clipped to, the noise with it, and how both move."""
        return Clip(self.clip_norm, self.noise_multiplier, self.divisor, self.adaptive)

    @property
    def max_update_norm(self) -> float:
        """What an update is clipped to, S; also the bound B of the exact sum's grid."""
        return self.clip_norm

    @property
    def sigma(self) -> float:
        """The noise's standard deviation on the sum, z·S; z_Δ·S where S is adapted."""
        return self.clip.sigma

    def onto(self, left: float | None) -> "SampledWorkers":
        """The mechanism of a round that builds on a version which left this clip norm; None where none is adapted."""
        return msgspec.structs.replace(self, clip_norm=self.clip.after(left))

    @property
    def denominator(self) -> float:
        """D."""
        return self.divisor

    @property
    def spend(self) -> Spend:
        """What one round costs each worker, asked or not."""
        return Spend(self.noise_multiplier, self.sampling_rate)

    def admits(self, weight: float) -> bool:
        """Whether an update may have this weight: each worker counts the same."""
        return weight == 1.0


class Coin:
    """Takes a worker into a round with a given probability, in secret (HKDF-SHA256, RFC 5869).

    Parameters
    ----------
    master_key : bytes
        At least 32 random bytes from the broker's state folder: the one that noise keys derive from, too.
    rate : float
        q in (0, 1].

    Raises
    ------
    PrivacyError
        When the master key is shorter than 32 bytes, or the rate is none.

    Examples
    --------
    >>> coin = Coin(bytes(32), 0.5)
    >>> coin.takes(7, "ward-3") == coin.takes(7, "ward-3")
    True
    """

    def __init__(self, master_key: bytes, rate: float) -> None:
        if len(master_key) < 32:
            raise PrivacyError(f"the master noise key must be at least 32 bytes, got {len(master_key)}")
        Spend(1.0, rate)  # checks the rate
        self._secret = hmac.digest(b"fedmq coin 1", master_key, "sha256")
        self._below = math.floor(rate * 2.0**64)

    def takes(self, round_: int, worker: str) -> bool:
        """Whether the coin of this worker in this round says that it is asked."""
        drawn = hmac.digest(self._secret, struct.pack("<q", round_) + worker.encode() + b"\x01", "sha256")
        return int.from_bytes(drawn[:8], "big") < self._below
