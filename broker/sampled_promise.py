"""What a federation promises whose rounds ask workers by a secret coin, and how much of it is used up.

Rules that hold here:

- Every round costs every worker the same, whether it was asked or not: that is what the coin buys, and so it is the
  rounds that are counted. No worker is named.
- Who was asked, and how many, is what the accountant takes for secret. Nothing here depends on it.
"""

from typing import Final

import msgspec

from fedmq.fedcore.config import SampledPrivacy
from fedmq.fedcore.privacy.accounting import Spend, epsilon
from fedmq.fedcore.privacy.adaptive import AdaptiveClipping

from .clip_statement import COUNT, noise_agrees, update_noise
from .ledger import Ledger

__all__ = ["SampledPromise", "sampled_promise"]

ASSUMPTIONS: Final = (
    "The broker is trusted, and so are the keys between it and the workers: it sees single updates before the noise, "
    "and clips them, whatever a worker did. It flips each worker's coin, and keeps it to itself.",
    "Each holder of data is one principal (a CURVE key, without keys a name). Who comes under several has a coin for "
    "each, and the cost of all of them adds up.",
    "When a worker comes and goes does not depend on what the coin said of another, nor on private data.",
    "The initial model, the learning rate, the clip norm, the sampling rate and the divisor were chosen without the "
    "private data.",
    "The system's source of randomness and the master noise key (keys/noise), which the coin derives from, are secret.",
)
NOT_COVERED: Final = (
    "That a worker takes part in the federation, and its name: these are public.",
    "What workers that were asked learn by it, and who watches the network or the broker's machine: they see that "
    "somebody was asked. Against them a worker is hidden as if there were no coin.",
    "What the broker's operator, or who has the state folder or a backup of it, can learn: the coin is in there.",
    "What a federation spent that this journal does not know of: after the backup that it was restored from, or "
    "with the same data elsewhere.",
    "Evaluation on private data, by hand or by an app, and what is concluded from it.",
    "Rounding: the noise lies on a fixed fine grid.",
)
TIME: Final = (
    'When a version is made: a round ends as soon as all that it asked have answered (privacy.wait_for = "sample"), '
    "so that its time, and with it who is there when the next one opens, tells whether slow workers were among them."
)


class SampledPromise(msgspec.Struct, frozen=True, kw_only=True):
    """A `[privacy]` table with unit = "worker" in rounds, and how much of the budget is used up."""

    unit: str
    adjacency: str
    mechanism: str
    noise_multiplier: float
    clip_norm: float
    """Where it is adapted, of the next version; likewise `sigma`."""
    sigma: float
    """The noise's standard deviation on a sum, a coordinate."""
    sampling_rate: float
    divisor: float
    accountant: str
    delta: float
    epsilon_budget: float
    epsilon_planned: float
    """What all planned rounds cost each worker."""
    epsilon_spent: float
    """What the rounds until now have cost each worker."""
    releases: int
    releases_planned: int
    noise_agrees: bool
    """Whether each release in the journal had the noise above."""
    adaptive: AdaptiveClipping | None
    """How the clip norm moves."""
    update_noise: float
    """z of the sum alone; `noise_multiplier` is what it costs together with the count, where there is one."""
    assumptions: tuple[str, ...]
    not_covered: tuple[str, ...]


def sampled_promise(
    table: SampledPrivacy, ledger: Ledger, noises: set[tuple[float, float | None]]
) -> SampledPromise:
    """The promise of a table, with the noise that the federation was started with.

    Parameters
    ----------
    table : SampledPrivacy
    ledger : Ledger
        Of the same federation.
    noises : set of (float, float or None)
        σ that the journal has of its releases, and the clip norm of each, where it is adapted.
    """
    q, z, releases, adaptive = (
        table.sampling_rate,
        ledger.noise_multiplier,
        ledger.releases,
        ledger.adaptive,
    )

    def cost(rounds: int) -> float:
        return epsilon([Spend(z, q, rounds)], table.delta)

    return SampledPromise(
        unit=table.unit,
        adjacency=(
            "add or remove one worker: all its updates are in the sums, or count as zero, which is the same where the "
            "divisor is a constant"
        ),
        mechanism="sum of clipped updates of Poisson-sampled workers + Gaussian noise, over a constant divisor"
        + ("" if adaptive is None else COUNT),
        noise_multiplier=z,
        clip_norm=ledger.clip_norm,
        sigma=update_noise(ledger) * ledger.clip_norm,
        adaptive=adaptive,
        update_noise=update_noise(ledger),
        sampling_rate=q,
        divisor=table.divisor,
        accountant=(
            "exact composition of Gaussian releases"
            if q == 1
            else "privacy-loss distributions of Poisson-sampled Gaussian releases, one worker more or less "
            "(dp-accounting)"
        ),
        delta=table.delta,
        epsilon_budget=table.epsilon,
        epsilon_planned=cost(table.steps),
        epsilon_spent=cost(releases),
        releases=releases,
        releases_planned=table.steps,
        noise_agrees=noise_agrees(ledger, noises),
        assumptions=ASSUMPTIONS,
        not_covered=NOT_COVERED if table.wait_for == "deadline" else (TIME, *NOT_COVERED),
    )
