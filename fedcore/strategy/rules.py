"""What each update of a buffer weighs, and the weighted mean. Other rules than the mean stand in `robust`.

    d = Σ wᵢ Δᵢ / D,      wᵢ = mᵢ · s(τᵢ),      D = Σ mᵢ   (or a constant)

The mass m of an update is its number of examples, or 1 when all count the same. Its weight w is the mass times
its staleness factor. D sums the masses and not the weights: stale updates make the step *smaller* instead of
making the fresh ones count more. That one formula is

* FedAvg with m = n, s = 1:     Σ nᵢ Δᵢ / Σ nᵢ        (McMahan et al., arXiv:1602.05629)
* FedBuff with m = 1:           Σ s(τᵢ) Δᵢ / K         (Nguyen et al., arXiv:2106.06639)
* FedBuff with m = n:           Σ nᵢ s(τᵢ) Δᵢ / Σ nᵢ
* a private mean with a fixed D: under differential privacy what divides must not depend on data.

Masses are whole numbers and weights are dyadic (`staleness.dyadic`), so both sums are exact: the order of
arrival cannot matter.
"""

from collections.abc import Iterable
from typing import Literal

import msgspec

from .staleness import Constant, Hinge, Polynomial, dyadic

__all__ = ["Mean", "Share", "Weighting", "denominator"]

Weighting = Literal["examples", "uniform"]


class Share(msgspec.Struct, frozen=True):
    """One update's part in a combination; it is what an accept row stores.

    Parameters
    ----------
    weight : float
        w > 0, a multiple of 2⁻²⁰: what its delta is multiplied by.
    mass : int
        m > 0: what it adds to the denominator.
    """

    weight: float
    mass: int


class Mean(msgspec.Struct, frozen=True):
    """The weighted mean, ``[aggregate] rule = "mean"``.

    Parameters
    ----------
    weighting : {"examples", "uniform"}
        Whether an update's mass is its number of examples, or 1.
    staleness : Staleness
        s(τ); `Constant` in synchronous federations, where τ is 0.

    Examples
    --------
    >>> mean = Mean("uniform", Polynomial(0.5))
    >>> shares = [mean.share(examples=600, tau=0), mean.share(examples=20, tau=3)]
    >>> [s.weight for s in shares], denominator(shares)
    ([1.0, 0.5], 2.0)
    """

    weighting: Weighting = "examples"
    staleness: Constant | Polynomial | Hinge = Constant()

    def share(self, *, examples: int, tau: int) -> Share:
        """The part that an update of `examples` examples and staleness `tau` has.

        Raises
        ------
        ValueError
            When `examples` is not positive or `tau` is negative.
        """
        if examples < 1:
            raise ValueError(f"an update is made of at least one example, got {examples}")
        mass = examples if self.weighting == "examples" else 1
        return Share(dyadic(mass * self.staleness(tau)), mass)


def denominator(shares: Iterable[Share]) -> float:
    """D = Σ m, exactly.

    Raises
    ------
    ValueError
        When there is no share: the mean of nothing does not exist.
    """
    total = sum(share.mass for share in shares)
    if total == 0:
        raise ValueError("the mean of no updates does not exist")
    return float(total)
