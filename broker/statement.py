"""What a federation promises about privacy, on what assumptions, and what it has spent: for somebody who audits it.

Rules that hold here:

- What was spent is read from the journal, what was promised from the state folder, and ε is computed from both
  now. Nothing that a broker said about itself is repeated.
- Nothing in a statement depends on data. Where the unit is a worker it names the workers and how often each took
  part, which is public there; where it is a record, or a coin decides who is asked, it tells neither.
- Without a `[privacy]` table nothing is promised, and it says so. A worker may have its own promise
  (`fedmq.worker.privacy`), which the broker cannot vouch for.
"""

import math
from pathlib import Path
from typing import Final

import msgspec

from fedmq.fedcore import config as configs
from fedmq.fedcore.config import Privacy, SampledPrivacy
from fedmq.fedcore.privacy.accounting import Spend, epsilon, gaussian_epsilon
from fedmq.fedcore.privacy.adaptive import AdaptiveClipping
from fedmq.fedcore.privacy.correlated import Bisr
from fedmq.fedcore.privacy.participation import participations_epsilon

from .clip_statement import COUNT, noise_agrees, update_noise
from .correlated_statement import Pattern, spent
from .ledger import Ledger, read
from .sampled_promise import SampledPromise, sampled_promise
from .store.history import History
from .store.state import read_identity

__all__ = ["Promise", "Statement", "WorkerPromise", "statement"]

ASSUMPTIONS: Final = (
    "The broker is trusted, and so are the keys between it and the workers: it sees single sums before the noise.",
    "Workers sample each record by a secret coin of its own with the sampling rate above, for each version once, "
    "and clip each record's gradient. The broker clips sums to max_batch times the clip norm, and cannot see more.",
    "A record is in one worker, once. A record that is in more of them, or a person with many, pays for each.",
    "The initial model, the learning rate, the clip norm and the divisor were chosen without the private records.",
    "The system's source of randomness and the master noise key (keys/noise) are secret.",
)
NOT_COVERED: Final = (
    "That a worker takes part, its name, and when it speaks.",
    "What the broker's operator, or who has the state folder or a backup of it, can learn.",
    "What a federation spent that this journal does not know of: after the backup that it was restored from, or "
    "with the same records elsewhere.",
    "Evaluation on private data, by hand or by an app, and what is concluded from it.",
    "Rounding: the noise lies on a fixed fine grid, and a sum is rounded once to float32 on its way.",
)

WORKER_ASSUMPTIONS: Final = (
    "The broker is trusted, and so are the keys between it and the workers: it sees single updates before the noise, "
    "and clips them, whatever a worker did.",
    "Each holder of data is one principal (a CURVE key, without keys a name). Who comes back under another one has "
    "another budget, and both add up.",
    "The initial model, the learning rate, the clip norm and the buffer's size were chosen without the private data.",
    "The system's source of randomness and the master noise key (keys/noise) are secret.",
)
WORKER_NOT_COVERED: Final = (
    "That a worker takes part, its name, when it speaks, and in which versions it had a part: these are public.",
    "What the broker's operator, or who has the state folder or a backup of it, can learn.",
    "What a federation spent that this journal does not know of: after the backup that it was restored from, or "
    "with the same data elsewhere.",
    "Evaluation on private data, by hand or by an app, and what is concluded from it.",
    "Rounding: the noise lies on a fixed fine grid.",
)


class Promise(msgspec.Struct, frozen=True, kw_only=True):
    """A `[privacy]` table, and how much of it is used up."""

    unit: str
    adjacency: str
    mechanism: str
    noise_multiplier: float
    max_grad_norm: float
    sigma: float
    """The noise's standard deviation on a sum, a coordinate."""
    sampling_rate: float
    divisor: float
    max_batch: int
    accountant: str
    delta: float
    epsilon_budget: float
    epsilon_planned: float
    """What all planned releases cost."""
    epsilon_spent: float
    releases: int
    releases_planned: int
    noise_agrees: bool
    """Whether each release in the journal had the noise above."""
    assumptions: tuple[str, ...] = ASSUMPTIONS
    not_covered: tuple[str, ...] = NOT_COVERED


class Charge(msgspec.Struct, frozen=True):
    """What one worker has paid."""

    participations: int
    epsilon: float


class WorkerPromise(msgspec.Struct, frozen=True, kw_only=True):
    """A `[privacy]` table with unit = "worker", and how much of each worker's budget is used up."""

    unit: str
    adjacency: str
    mechanism: str
    noise_multiplier: float
    clip_norm: float
    """Where it is adapted, of the next version; likewise `sigma`."""
    sigma: float
    """The noise's standard deviation on a sum, a coordinate."""
    divisor: float
    accountant: str
    delta: float
    epsilon_budget: float
    epsilon_planned: float
    """What a worker at its cap has paid."""
    epsilon_spent: float
    """Of the worker that has paid most."""
    releases: int
    max_participations: int
    noise_agrees: bool
    """Whether each release in the journal had the noise above."""
    workers: dict[str, Charge]
    """By principal, released versions only."""
    adaptive: AdaptiveClipping | None = None
    """How the clip norm moves."""
    update_noise: float
    """z of the sum alone; `noise_multiplier` is what it costs together with the count, where there is one."""
    correlated: Pattern | None = None
    """What the claim for correlated noise rests on; None where each version's noise is its own."""
    assumptions: tuple[str, ...] = WORKER_ASSUMPTIONS
    not_covered: tuple[str, ...] = WORKER_NOT_COVERED


class Statement(msgspec.Struct, frozen=True, kw_only=True):
    """What can be said about one state folder."""

    federation: str
    id: str
    version: int | None
    """The last one; None before the first."""
    finished: str | None
    promise: Promise | WorkerPromise | SampledPromise | None
    """None: nothing is promised."""


def statement(state: str | Path) -> Statement:
    """Read a state folder, beside its running broker or without one.

    Raises
    ------
    StateError
        When it is not a broker's, or cannot be read.
    PrivacyError
        When dp-accounting is needed and not installed.
    """
    state = Path(state)
    identity = read_identity(state)
    config = configs.parse((state / "config.toml").read_text(encoding="utf-8"), base_dir=identity.base_dir)
    with History.open(state / "journal.db") as journal:
        summary, versions = journal.summary(), journal.history()
    noises = {(row["sigma"], row["clip_norm"]) for row in versions if row["privacy_steps"]}
    sigmas = {sigma for sigma, _ in noises}
    ledger = read(state)
    promise: Promise | WorkerPromise | SampledPromise | None = None
    if isinstance(config.privacy, Privacy):
        assert ledger is not None
        promise = _promise(config.privacy, ledger.noise_multiplier, summary["privacy_steps"], sigmas)
    elif isinstance(config.privacy, SampledPrivacy):
        assert ledger is not None
        promise = sampled_promise(config.privacy, ledger, noises)
    elif ledger is not None:
        promise = _worker_promise(ledger, noises)
    return Statement(
        federation=config.federation.name,
        id=identity.id,
        version=summary["version"],
        finished=summary["finished"],
        promise=promise,
    )


def _promise(table: configs.Privacy, z: float, releases: int, sigmas: set[float]) -> Promise:
    q, sigma = table.sampling_rate, z * table.max_grad_norm

    def cost(steps: int) -> float:
        return epsilon([Spend(z, q, steps)], table.delta)

    return Promise(
        unit=table.unit,
        adjacency="add or remove one record, in one worker",
        mechanism="sum of clipped gradients of records + Gaussian noise, over a constant divisor (DP-SGD)",
        noise_multiplier=z,
        max_grad_norm=table.max_grad_norm,
        sigma=sigma,
        sampling_rate=q,
        divisor=table.divisor,
        max_batch=table.max_batch,
        accountant=(
            "exact composition of Gaussian releases"
            if q == 1
            else "privacy-loss distributions of Poisson-sampled Gaussian releases (dp-accounting)"
        ),
        delta=table.delta,
        epsilon_budget=table.epsilon,
        epsilon_planned=cost(table.steps),
        epsilon_spent=cost(releases),
        releases=releases,
        releases_planned=table.steps,
        noise_agrees=sigmas <= {sigma},
    )


def _worker_promise(ledger: Ledger, noises: set[tuple[float, float | None]]) -> WorkerPromise:
    """`noises`: σ of each release, and the clip norm that it was made with, where it is adapted."""
    if ledger.noise is not None:
        return _correlated_promise(ledger, ledger.noise, {sigma for sigma, _ in noises})
    z, delta, adaptive = ledger.noise_multiplier, ledger.delta, ledger.adaptive
    charges = {
        worker: Charge(times, gaussian_epsilon(1 / math.sqrt(ledger.spent[worker]), delta))
        for worker, times in ledger.participations.items()
    }
    return WorkerPromise(
        unit=ledger.unit,
        adjacency="all updates of one worker count as zero, or not; that it takes part is public",
        mechanism="sum of clipped updates + Gaussian noise, over a constant divisor (FedBuff)"
        + ("" if adaptive is None else COUNT),
        noise_multiplier=z,
        clip_norm=ledger.clip_norm,
        update_noise=update_noise(ledger),
        adaptive=adaptive,
        sigma=update_noise(ledger) * ledger.clip_norm,
        divisor=ledger.denominator,
        accountant="exact composition of the Gaussian releases that a worker had a part in; no amplification",
        delta=delta,
        epsilon_budget=ledger.epsilon,
        epsilon_planned=participations_epsilon(z, ledger.max_participations, delta),
        epsilon_spent=max((charge.epsilon for charge in charges.values()), default=0.0),
        releases=ledger.releases,
        max_participations=ledger.max_participations,
        noise_agrees=noise_agrees(ledger, noises) and set(ledger.noise_multipliers.values()) <= {z},
        workers=charges,
    )


def _correlated_promise(ledger: Ledger, noise: Bisr, sigmas: set[float]) -> WorkerPromise:
    delta, sigma = ledger.delta, noise.deviation * ledger.clip_norm
    pattern = Pattern.of(noise, ledger.parts, ledger.releases)
    charges = {
        worker: Charge(len(versions), spent(noise, versions, ledger.releases, delta))
        for worker, versions in ledger.parts.items()
    }
    agrees = sigmas <= {sigma} and set(ledger.noise_multipliers.values()) <= {noise.noise_multiplier}
    return WorkerPromise(
        unit=ledger.unit,
        adjacency="all updates of one worker count as zero, or not; that it takes part is public",
        mechanism="sum of clipped updates + noise that later versions take back (BISR), over a constant divisor",
        noise_multiplier=noise.noise_multiplier,
        update_noise=noise.deviation,
        clip_norm=ledger.clip_norm,
        sigma=sigma,
        divisor=ledger.denominator,
        accountant="one Gaussian release of all versions; of each worker, at the sensitivity of the versions it was in",
        delta=delta,
        epsilon_budget=ledger.epsilon,
        epsilon_planned=noise.epsilon(delta),
        epsilon_spent=max((charge.epsilon for charge in charges.values()), default=0.0),
        releases=ledger.releases,
        max_participations=ledger.max_participations,
        noise_agrees=agrees and ledger.participations == {w: len(v) for w, v in ledger.parts.items()},
        workers=charges,
        correlated=pattern,
    )
