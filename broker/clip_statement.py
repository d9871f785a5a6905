"""What a statement says of the clip norm and its noise, where the unit is a worker: constant, or adapted.

Where it is adapted, each release has noise of its own: it is held against the clip norm that the version before left.
"""

from collections.abc import Iterable
from typing import Final

from .ledger import Ledger

__all__ = ["COUNT", "noise_agrees", "update_noise"]

COUNT: Final = (
    ", and with it the count of updates within the clip norm, centred so that one that counts as zero adds nothing, + "
    "Gaussian noise, by which the clip norm moves; the two are one Gaussian release of the multiplier below"
)


def update_noise(ledger: Ledger) -> float:
    """z of the sum alone: what is charged, or more where the count is charged with it (z_Δ)."""
    z, adaptive = ledger.noise_multiplier, ledger.adaptive
    return z if adaptive is None else adaptive.update_noise(z)


def noise_agrees(ledger: Ledger, noises: Iterable[tuple[float, float | None]]) -> bool:
    """Whether each release had the noise that is promised.

    Parameters
    ----------
    ledger : Ledger
        Of a mechanism whose noise is each version's own.
    noises : iterable of (float, float or None)
        σ of each release, and the clip norm that it was made with, where it is adapted.
    """
    z = update_noise(ledger)
    return all(
        sigma == z * (ledger.clip_norm if clip_norm is None else clip_norm)
        and (clip_norm is None) == (ledger.adaptive is None)
        for sigma, clip_norm in noises
    )
