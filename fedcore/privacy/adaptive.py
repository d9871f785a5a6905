"""A clip norm that follows the updates: the noise is scaled to how long they are, and nobody has to guess.

    bᵢ = 1[‖Δᵢ‖ ≤ C]        c = Σ (bᵢ − ½) + N(0, σ_b²)        b̃ = c / D + ½        C ← C · exp(−η (b̃ − γ))

C comes to rest where the share γ of the updates is no longer than it. Each version so releases two sums of the same
workers: of their clipped updates, and of their bits.

**What both cost together.** A worker that counts as zero adds nothing to either sum, instead of w·clip_C(Δ) and
b − ½. So it moves the first by at most C, to which N(0, (z_Δ C)²) is added, and the second by ½, to which N(0, σ_b²) is
added. In units of their noise the two are one vector that it moves by at most

    √( z_Δ⁻² + (2σ_b)⁻² ) = 1/z

which is one Gaussian release with the multiplier z (Andrew et al., section 3 and theorem 1). The accountant charges
z as ever; the update's noise pays for the count: z_Δ = (z⁻² − (2σ_b)⁻²)^−½. The count is centred for this: of Σ bᵢ
a worker would move a whole 1. C follows from what was released before, so that versions compose like any others.

Rules that hold here:

- b is that of the norm that the broker computed, before the clip and without its weight; weights up to 1 only shrink
  the first sum.
- An update that is not finite is a worker that counts as zero: it adds nothing to the count, as it adds nothing to
  the sum. As "too long" it would let who sends NaN drive C up, and it has no length.
- The count's noise is rounded to a fixed grid, as the sum's is, and its stream follows from the version's noise key:
  the same rows folded again move C to the same number, on any machine.

References
----------
Andrew, Thakkar, McMahan, Ramaswamy, *Differentially Private Learning with Adaptive Clipping*, arXiv:1905.03871.
McMahan, Andrew et al., *A General Approach to Adding Differential Privacy to Iterative Training Procedures*,
arXiv:1812.06210, for the joint release of several vectors.
"""

import hmac
import math
from collections.abc import Iterable
from decimal import Context, Decimal
from typing import Final

import msgspec
import numpy as np

from .. import kernels
from ..config.clip_tables import CLIP_MAX, CLIP_MIN
from ..errors import PrivacyError

__all__ = ["CLIP_MAX", "CLIP_MIN", "AdaptiveClipping", "centred_count", "count_key"]

_COUNT_BITS: Final = 20
"""The grid of the count, 2⁻²⁰: half-integers lie on it."""
_NONCE: Final = bytes(12)
_EXACT: Final = Context(prec=40)
_FARTHEST: Final = 100.0
"""A step of ln C, in either direction: one such crosses all that C may be."""


class AdaptiveClipping(msgspec.Struct, frozen=True, kw_only=True):
    """How the clip norm moves from one version to the next.

    Parameters
    ----------
    quantile : float
        γ in [0, 1]: the share of updates that the clip should leave as they are.
    rate : float
        η > 0, of the geometric steps.
    count_noise : float
        σ_b > 0, the standard deviation of the noise on the count.

    Examples
    --------
    >>> rule = AdaptiveClipping(quantile=0.5, rate=0.2, count_noise=5.0)
    >>> round(rule.next_clip_norm(1.0, count=-5.0, denominator=10.0), 4)  # ten updates, and all are longer
    1.1052
    >>> round(rule.update_noise(2.0), 4)  # of z = 2; the count pays the rest
    2.0412
    """

    quantile: float
    rate: float
    count_noise: float

    def __post_init__(self) -> None:
        for name, value in (("rate", self.rate), ("count_noise", self.count_noise)):
            if not 0 < value < math.inf:
                raise PrivacyError(f"{name} must be positive and finite, got {value}")
        if not 0 <= self.quantile <= 1:
            raise PrivacyError(f"quantile must be from 0 to 1, got {self.quantile}")

    def update_noise(self, noise_multiplier: float) -> float:
        """z_Δ, what the update's noise is multiplied with, so that it and the count cost z together.

        Raises
        ------
        PrivacyError
            When z ≥ 2 σ_b: the count alone costs that much.
        """
        if noise_multiplier >= 2 * self.count_noise:
            raise PrivacyError(
                f"the noise multiplier must be below twice count_noise, which is {2 * self.count_noise:g}, got "
                f"{noise_multiplier:g}: the count of updates below the clip norm would cost all of it"
            )
        # z / √(1 − r²) with r = z / 2σ_b: nothing is squared that could overflow.
        return noise_multiplier / math.sqrt(1 - (noise_multiplier / (2 * self.count_noise)) ** 2)

    def next_clip_norm(self, clip_norm: float, *, count: float, denominator: float) -> float:
        """C of the version after, from the centred count of this one, with its noise.

        Parameters
        ----------
        clip_norm : float
            C of this version.
        count : float
            c; without noise ±K/2 when all K updates are below it, or above.
        denominator : float
            D, a public constant: K, or how many workers a coin is expected to choose.

        Returns
        -------
        float
            From `CLIP_MIN` to `CLIP_MAX`. The same number on every machine: e^x is rounded correctly here, and
            the C library's is not.
        """
        step = -self.rate * (count / denominator + 0.5 - self.quantile)
        step = min(max(step, -_FARTHEST), _FARTHEST)
        moved = clip_norm * float(_EXACT.exp(Decimal(step)))
        return min(max(moved, CLIP_MIN), CLIP_MAX)

    def noisy(self, count: float, noise_key: bytes) -> float:
        """A centred count with its noise N(0, σ_b²), from the stream that belongs to a version's noise key."""
        total = kernels.Accumulator(1, frac_bits=_COUNT_BITS)
        total.add(np.array([count], np.float32).data)
        total.add_noise(self.count_noise, key=count_key(noise_key), nonce=_NONCE)
        return math.ldexp(int(total.totals()[0]), -_COUNT_BITS)


def centred_count(norms: Iterable[float], clip_norm: float) -> float:
    """Σ (bᵢ − ½): ½ for each update of a norm up to C, −½ for each longer one, nothing for one that is not finite.

    Examples
    --------
    >>> centred_count([0.5, 1.0, 2.0], 1.0), centred_count([float("nan"), float("inf")], 1.0)
    (0.5, 0.0)
    """
    return sum((0.5 if norm <= clip_norm else -0.5 for norm in norms if math.isfinite(norm)), start=0.0)


def count_key(noise_key: bytes) -> bytes:
    """The ChaCha20 key of a version's count, from that of its update (HKDF-Expand, RFC 5869): another stream."""
    return hmac.digest(noise_key, b"fedmq count 1\x01", "sha256")
