"""The arms of `fedmq bench privacy`: what each line of its table is, and how it is run."""

from collections.abc import Callable, Iterator
from typing import Final, Literal

import msgspec
import numpy as np

from fedmq.fedcore.privacy.accounting import gaussian_epsilon

from ...demo.data import Dataset
from ..strategies import race
from ..strategies import settings as federations
from ..strategies.central import centralized
from . import record_level, worker_level
from .settings import DELTA, Setting

__all__ = ["Arm", "Found", "Kind", "arms", "run"]

Kind = Literal["central", "federated", "pixels", "head", "once", "each", "worker"]

FEATURED: Final[tuple[Kind, ...]] = ("head", "once", "each")
"""Arms of the linear head: their images are features."""

Progress = Callable[[int, int], None]
"""Takes the step and the number of steps."""


class Arm(msgspec.Struct, frozen=True):
    """One line of the table.

    Parameters
    ----------
    kind : str
    epsilon : float or None
        None: without privacy.
    workers : int
    crowd : WorkerLevel, optional
        Of a worker-level arm.
    """

    kind: Kind
    epsilon: float | None
    workers: int
    crowd: worker_level.WorkerLevel | None = None


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What an arm came to.

    Parameters
    ----------
    arm : Arm
    accuracies : list of float
        On the test images, one of each seed.
    noise_multiplier, steps, sampling_rate, spent
        z, T, q, and the ε that the accountant says; 0 where there is no privacy.
    """

    arm: Arm
    accuracies: list[float]
    noise_multiplier: float = 0.0
    steps: int = 0
    sampling_rate: float = 1.0
    spent: float = 0.0

    @property
    def median(self) -> float:
        """Of the seeds."""
        return float(np.median(self.accuracies))


def arms(setting: Setting) -> Iterator[Arm]:
    """All lines, in order; those that need features come last but for the crowds."""
    ten = federations.WORKERS
    yield Arm("central", None, 1)
    yield Arm("federated", None, ten)
    yield from (Arm("pixels", epsilon, ten) for epsilon in setting.epsilons)
    yield Arm("head", None, ten)
    yield from (Arm("once", epsilon, ten) for epsilon in setting.epsilons)
    yield from (Arm("each", epsilon, ten) for epsilon in setting.epsilons)
    for crowd in setting.crowds:
        yield from (Arm("worker", epsilon, crowd.workers, crowd) for epsilon in (None, *setting.epsilons))


def run(
    arm: Arm,
    dataset: Dataset,
    setting: Setting,
    plain: federations.Setting,
    *,
    seeds: int,
    progress: Progress,
) -> Found:
    """Run one arm with every seed.

    Parameters
    ----------
    arm : Arm
    dataset : Dataset
        Of features where the arm is one of `FEATURED`, else of pixels.
    setting, plain : Setting
        With privacy, and without.
    seeds : int
    progress : callable
    """
    if arm.crowd is not None:
        return _worker_level(arm, arm.crowd, dataset, seeds, progress)
    if arm.kind in ("central", "federated"):
        train = _central if arm.kind == "central" else _federated
        accuracies = []
        for seed in range(seeds):
            accuracies.append(train(dataset, plain, seed))
            progress(seed + 1, seeds)
        steps = plain.central_epochs if arm.kind == "central" else plain.rounds
        return Found(arm=arm, accuracies=accuracies, steps=steps)
    return _record_level(arm, dataset, setting, seeds, progress)


def _central(dataset: Dataset, plain: federations.Setting, seed: int) -> float:
    return centralized(
        dataset, epochs=plain.central_epochs, lr=plain.central_lr, batch=plain.batch, seed=seed
    )


def _federated(dataset: Dataset, plain: federations.Setting, seed: int) -> float:
    entry = next(each for each in federations.entries("accuracy", plain) if each.partition == federations.IID)
    return race.run(entry, dataset, seed).accuracies[-1]


def _record_level(arm: Arm, dataset: Dataset, setting: Setting, seeds: int, progress: Progress) -> Found:
    strict = arm.epsilon is not None and arm.epsilon < 2
    if arm.kind == "pixels":
        private, train = setting.pixels, record_level.train_network
    else:
        once = setting.once_strict if strict else setting.once
        each = setting.each_strict if strict else setting.each
        private, train = each if arm.kind == "each" else once, record_level.train_head
    plan = record_level.plan(private, len(dataset.train), arm.epsilon, centred=arm.kind in FEATURED)

    def trained(seed: int) -> float:
        return train(
            dataset,
            plan,
            workers=arm.workers,
            noise_in_each=arm.kind == "each",
            seed=seed,
            step=lambda number: progress(seed * plan.steps + number, seeds * plan.steps),
        )

    return Found(
        arm=arm,
        accuracies=[trained(seed) for seed in range(seeds)],
        noise_multiplier=plan.noise_multiplier,
        steps=plan.steps,
        sampling_rate=plan.sampling_rate,
        spent=plan.epsilon() if arm.epsilon is not None else 0.0,
    )


def _worker_level(
    arm: Arm, crowd: worker_level.WorkerLevel, dataset: Dataset, seeds: int, progress: Progress
) -> Found:
    versions = crowd.versions
    z = 0.0 if arm.epsilon is None else worker_level.noise_for(arm.epsilon, DELTA, versions)

    def trained(seed: int) -> float:
        return worker_level.train_crowd(
            dataset,
            crowd,
            noise_multiplier=z,
            seed=seed,
            step=lambda number: progress(seed * versions + number, seeds * versions),
        )

    return Found(
        arm=arm,
        accuracies=[trained(seed) for seed in range(seeds)],
        noise_multiplier=z,
        steps=versions,
        spent=gaussian_epsilon(z / versions**0.5, DELTA) if z else 0.0,
    )
