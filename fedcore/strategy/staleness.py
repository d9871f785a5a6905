"""How much an update still counts that was trained from an older version.

The staleness τ of an update is how many versions were made since the one that it was trained from. A
`Staleness` maps τ to a factor s(τ) in (0, 1]. Rules that hold for all of them:

* s(0) = 1 exactly: a fresh update counts fully. (A counter that is raised too early makes it 0.5; dividing by
  s(1) makes it √2. Both are known mistakes.)
* s never grows with τ and is never above 1.
* s applies to one update, once; it is never multiplied into the learning rate.

Weights that reach the exact sum are dyadic, see `dyadic`, so that their own sum is exact too.
"""

from typing import Final, Literal, Protocol, assert_never

import msgspec

from .. import kernels
from ..errors import ConfigError

__all__ = [
    "SMALLEST_WEIGHT",
    "Constant",
    "Hinge",
    "Polynomial",
    "Staleness",
    "StalenessKind",
    "dyadic",
    "make",
]

SMALLEST_WEIGHT: Final = 2.0**-20

StalenessKind = Literal["constant", "polynomial", "hinge"]


class Staleness(Protocol):
    """s(τ)."""

    def __call__(self, tau: int) -> float:
        """The factor for an update of staleness `tau` ≥ 0."""
        ...


class Constant(msgspec.Struct, frozen=True):
    """s(τ) = 1: every accepted update counts the same."""

    def __call__(self, tau: int) -> float:
        _check(tau)
        return 1.0


class Polynomial(msgspec.Struct, frozen=True):
    """s(τ) = (1 + τ)^−a.

    Parameters
    ----------
    exponent : float
        a ≥ 0; ½ by default, as in FedBuff.

    References
    ----------
    Xie et al., *Asynchronous Federated Optimization*, arXiv:1903.03934; Nguyen et al., *FedBuff*,
    arXiv:2106.06639.
    """

    exponent: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.exponent < float("inf"):
            raise ConfigError(f"staleness: exponent must be finite and ≥ 0, got {self.exponent}")

    def __call__(self, tau: int) -> float:
        _check(tau)
        return float((1 + tau) ** -self.exponent)


class Hinge(msgspec.Struct, frozen=True):
    """s(τ) = 1 while τ ≤ b, then 1 / (a(τ − b) + 1).

    Parameters
    ----------
    slope : float
        a ≥ 0.
    threshold : int
        b ≥ 0: up to here an update counts fully.

    References
    ----------
    Xie et al., *Asynchronous Federated Optimization*, arXiv:1903.03934.
    """

    slope: float = 10.0
    threshold: int = 4

    def __post_init__(self) -> None:
        if not (0 <= self.slope < float("inf") and self.threshold >= 0):
            raise ConfigError(
                f"staleness: slope and threshold must be ≥ 0, got {self.slope} and {self.threshold}"
            )

    def __call__(self, tau: int) -> float:
        _check(tau)
        return 1.0 if tau <= self.threshold else 1.0 / (self.slope * (tau - self.threshold) + 1.0)


def make(
    kind: StalenessKind, *, exponent: float = 0.5, slope: float = 10.0, threshold: int = 4
) -> Constant | Polynomial | Hinge:
    """The staleness function that the ``[mode]`` table names.

    Examples
    --------
    >>> s = make("polynomial", exponent=0.5)
    >>> s(0), s(3)
    (1.0, 0.5)
    """
    match kind:
        case "constant":
            return Constant()
        case "polynomial":
            return Polynomial(exponent)
        case "hinge":
            return Hinge(slope, threshold)
        case _:
            assert_never(kind)


def dyadic(weight: float) -> float:
    """Round a positive weight to the nearest multiple of 2⁻²⁰, but not to zero.

    Sums of such weights are exact in float64, in whatever order they are added; and an update that was accepted
    always counts for something.

    Raises
    ------
    ValueError
        When `weight` is not in (0, 2³²].

    Examples
    --------
    >>> dyadic(1.0), dyadic(1 / 3) * 2**20, dyadic(1e-9) == SMALLEST_WEIGHT
    (1.0, 349525.0, True)
    """
    if not 0 < weight <= 2**32:
        raise ValueError(f"a weight must be in (0, 2^32], got {weight}")
    return max(kernels.dyadic(weight), SMALLEST_WEIGHT)


def _check(tau: int) -> None:
    if tau < 0:
        raise ValueError(f"staleness counts versions and is ≥ 0, got {tau}")
