"""The clip norm of one version where the unit is a worker, its noise, and how both go on to the next version.

Both worker-level mechanisms with noise of each version's own have one: that of workers who come by themselves, and that
of rounds by a coin. Which workers are in a version is theirs to say; what is done with an update is the same:

    Σ wᵢ clip_S(Δᵢ) + N(0, (z_Δ S)² I)        and, where S is adapted,        Σ (bᵢ − ½) + N(0, σ_b²)

A worker that counts as zero adds nothing to either sum, so that it moves the two, in units of their noise, as one
vector by 1/z at most (`adaptive`). That is all that an accountant needs to know of a version.
"""

import math
from collections.abc import Iterable

import msgspec

from ..errors import PrivacyError
from .adaptive import CLIP_MAX, CLIP_MIN, AdaptiveClipping, centred_count

__all__ = ["Clip"]


class Clip(msgspec.Struct, frozen=True):
    """What updates are clipped to, and the noise that goes with it.

    Parameters
    ----------
    norm : float
        S > 0, of this version; a mechanism's own has that of the first one.
    noise_multiplier : float
        z, what a version costs.
    divisor : float
        D, a public constant: K, or how many workers a coin is expected to choose.
    adaptive : AdaptiveClipping or None
        How S moves; then z is what the sum and the count of bits cost together.

    Raises
    ------
    PrivacyError
        When S or D is out of range, or the count alone would cost z.
    """

    norm: float
    noise_multiplier: float
    divisor: float
    adaptive: AdaptiveClipping | None

    def __post_init__(self) -> None:
        for name, value in (("clip_norm", self.norm), ("divisor", self.divisor)):
            if not 0 < value < math.inf:
                raise PrivacyError(f"{name} must be positive and finite, got {value}")
        if self.adaptive is not None:
            self.adaptive.update_noise(self.noise_multiplier)
            if not CLIP_MIN <= self.norm <= CLIP_MAX:
                raise PrivacyError(
                    f"clip_norm must be from {CLIP_MIN:g} to {CLIP_MAX:g} where it is adapted, got {self.norm:g}"
                )

    @property
    def sigma(self) -> float:
        """The noise's standard deviation on the sum, z·S; z_Δ·S where S is adapted."""
        z = self.noise_multiplier
        return (z if self.adaptive is None else self.adaptive.update_noise(z)) * self.norm

    @property
    def left_by_first(self) -> float | None:
        """What version 0 leaves: S, where it is adapted."""
        return None if self.adaptive is None else self.norm

    @property
    def counted(self) -> tuple[float, float] | None:
        """S and σ_b, where updates are counted as well: what their count is made with."""
        return None if self.adaptive is None else (self.norm, self.adaptive.count_noise)

    def after(self, left: float | None) -> float:
        """S of a version that builds on one which left this clip norm; None where none is adapted.

        Raises
        ------
        PrivacyError
            When only one of the two adapts: the version belongs to another federation.
        """
        if (left is None) != (self.adaptive is None):
            raise PrivacyError(
                f"the version before left {'no' if left is None else 'a'} clip norm, and the mechanism "
                f"{'has a constant one' if self.adaptive is None else 'adapts it'}"
            )
        return self.norm if left is None else left

    def next_norm(self, norms: Iterable[float], noise_key: bytes) -> float | None:
        """S of the version after one that is made of updates of these norms, where it is adapted.

        Parameters
        ----------
        norms : iterable of float
            Of all updates of the version, unclipped and unweighted. There may be none: then the count is all
            noise.
        noise_key : bytes
            The version's.
        """
        if self.adaptive is None:
            return None
        count = self.adaptive.noisy(centred_count(norms, self.norm), noise_key)
        return self.adaptive.next_clip_norm(self.norm, count=count, denominator=self.divisor)
