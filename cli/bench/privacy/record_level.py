"""Record-level privacy: what is added to clipped sums of gradients, by whom, and what that costs.

Two ways, as docs/privacy.md tells them apart:

* *noise once*: every worker sends one sum of clipped per-example gradients over a Poisson sample, and the broker adds
  the noise. The mechanism, the exact sum and the noise's stream are the broker's own (`mechanisms.RecordLevel`,
  `kernels.Accumulator`).
* *noise in each worker*: each adds all the noise that its own records need. The broker is trusted with nothing, and
  the mean of K workers has √K times the noise.

Both do the same steps, w ← momentum(Σ clip_S(g) / D), and neither knows how many records were sampled.

Before the first step the mean of the features is released in the same way, once: a linear model that is trained
on what is left of each feature needs to find no other mean, and clipping cuts less of what matters. Group-normed
rows have a norm of at most √features, whatever the image, so that this is the sensitivity; the accountant
composes it with the steps.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from fedmq.fedcore import kernels
from fedmq.fedcore.config import Momentum
from fedmq.fedcore.layout import Layout
from fedmq.fedcore.privacy.accounting import Spend, epsilon, poisson_noise
from fedmq.fedcore.privacy.mechanisms import NOISE_NONCE, RecordLevel, noise_key
from fedmq.fedcore.state_dict import flatten, unflatten
from fedmq.fedcore.strategy import optimizers
from fedmq.worker.privacy.sampling import poisson_sample

from ...demo import network
from ...demo.data import Dataset, Shard, partition
from .linear import Linear
from .settings import DELTA, Private

__all__ = ["MEAN_NOISE", "Plan", "gradient_steps", "plan", "train_head", "train_network"]

MEAN_NOISE: Final = 20.0
"""z of the release of the features' mean."""

Flat = NDArray[np.float32]
Step = Callable[[int], None]
"""Told of every step."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A calibrated run of DP-SGD; without privacy the noise multiplier is 0.

    Parameters
    ----------
    private : Private
    sampling_rate : float
    steps : int
    divisor : float
        D, made of the public number of records.
    noise_multiplier : float
        z.
    mean_noise : float
        z of the mean's release; 0 where there is none.
    """

    private: Private
    sampling_rate: float
    steps: int
    divisor: float
    noise_multiplier: float
    mean_noise: float = 0.0

    def epsilon(self) -> float:
        """What everything together costs each record, at δ."""
        spends = [Spend(self.noise_multiplier, self.sampling_rate, self.steps)]
        if self.mean_noise:
            spends.append(Spend(self.mean_noise))
        return epsilon(spends, DELTA)


def plan(private: Private, records: int, budget: float | None, *, centred: bool) -> Plan:
    """Calibrate a run; takes seconds.

    Parameters
    ----------
    private : Private
    records : int
        N, public.
    budget : float or None
        ε; None for no privacy.
    centred : bool
        Whether the mean of the features is released first.
    """
    rate, steps = private.sampling_rate(records), private.steps(records)
    made = Plan(
        private=private,
        sampling_rate=rate,
        steps=steps,
        divisor=rate * records,
        noise_multiplier=0.0,
        mean_noise=MEAN_NOISE if centred and budget is not None else 0.0,
    )
    if budget is None:
        return made
    low = poisson_noise(epsilon_target=budget, delta=DELTA, sampling_rate=rate, steps=steps)
    made = msgspec.structs.replace(made, noise_multiplier=low)
    if made.epsilon() <= budget:
        return made
    # The mean takes its share, a few per cent of z at the most.
    high = 1.05 * low
    while msgspec.structs.replace(made, noise_multiplier=high).epsilon() > budget:
        low, high = high, 1.05 * high
    while high > 1.001 * low:
        middle = (low + high) / 2
        costs = msgspec.structs.replace(made, noise_multiplier=middle).epsilon()
        low, high = (middle, high) if costs > budget else (low, middle)
    return msgspec.structs.replace(made, noise_multiplier=high)


def train_head(
    dataset: Dataset, plan: Plan, *, workers: int, noise_in_each: bool, seed: int, step: Step
) -> float:
    """Train the linear head on features of `workers` workers; its accuracy on the test images."""
    shards = [dataset.train.take(own) for own in partition(dataset.train.y, workers=workers, seed=seed)]
    mean = _mean(shards, plan, noise_in_each=noise_in_each, seed=seed)
    heads = [Linear(Shard(shard.x - mean, shard.y), dataset.classes) for shard in shards]
    del shards
    flat = np.zeros(heads[0].n, np.float32)

    def summed(worker: int, sample: NDArray[np.intp], at: Flat) -> Flat:
        return heads[worker].clipped_gradient_sum(at, sample, max_norm=plan.private.max_grad_norm)

    gradient_steps(
        flat,
        summed,
        [len(head) for head in heads],
        plan,
        noise_in_each=noise_in_each,
        seed=seed,
        step=step,
    )
    return Linear(Shard(dataset.test.x - mean, dataset.test.y), dataset.classes).accuracy(flat)


def train_network(
    dataset: Dataset, plan: Plan, *, workers: int, noise_in_each: bool, seed: int, step: Step
) -> float:
    """The same for the demo's network on what images there are: nothing is released before the first step."""
    shards = [dataset.train.take(own) for own in partition(dataset.train.y, workers=workers, seed=seed)]
    first = network.initial_weights(dataset.train.x.shape[1], classes=dataset.classes, seed=seed)
    layout = Layout.of(first)
    flat = flatten(layout, first)

    def summed(worker: int, sample: NDArray[np.intp], at: Flat) -> Flat:
        gradient = network.clipped_gradient_sum(
            unflatten(layout, at), shards[worker].take(sample), max_norm=plan.private.max_grad_norm
        )
        return flatten(layout, gradient)

    gradient_steps(
        flat, summed, list(map(len, shards)), plan, noise_in_each=noise_in_each, seed=seed, step=step
    )
    return network.measure(unflatten(layout, flat), dataset.test).accuracy


def gradient_steps(
    flat: Flat,
    summed: Callable[[int, NDArray[np.intp], Flat], Flat],
    records: list[int],
    plan: Plan,
    *,
    noise_in_each: bool,
    seed: int,
    step: Step,
) -> None:
    """All steps of DP-SGD, in place.

    Parameters
    ----------
    flat : float32[n]
        The parameters.
    summed : callable
        Takes a worker, the records of its sample and the parameters; gives its sum of clipped gradients.
    records : list of int
        How many each worker has.
    plan : Plan
    noise_in_each : bool
    seed : int
        Coins and noise follow from it, so that the benchmark can be repeated; a federation's are secret.
    step : callable
    """
    private = plan.private
    optimizer = optimizers.make(Momentum(lr=private.lr, beta=private.momentum))
    state = optimizer.init(flat.size)
    for number in range(plan.steps):
        step(number)
        updates = [
            summed(worker, poisson_sample(_key(seed, 1, number, worker), count, plan.sampling_rate), flat)
            for worker, count in enumerate(records)
        ]
        mean = _noised(
            updates,
            bound=private.max_grad_norm,
            noise_multiplier=plan.noise_multiplier,
            sampling_rate=plan.sampling_rate,
            divisor=plan.divisor,
            largest=sum(records),
            noise_in_each=noise_in_each,
            key=partial(_key, seed, 2, number),
        )
        optimizer.apply(flat, state, -mean, step=number + 1)
    step(plan.steps)


def _mean(shards: list[Shard], plan: Plan, *, noise_in_each: bool, seed: int) -> Flat:
    """The mean of all rows: as every step, a noisy sum over a public constant.

    Raises
    ------
    ValueError
        When a row is longer than what the noise is made for.
    """
    width = shards[0].x.shape[1]
    if any(np.einsum("ij,ij->i", shard.x, shard.x).max(initial=0.0) > width for shard in shards):
        raise ValueError(f"rows of {width} features must have norms of √{width} at most: group-norm them")
    return _noised(
        [shard.x.sum(axis=0, dtype=np.float64).astype(np.float32) for shard in shards],
        bound=math.sqrt(width),
        noise_multiplier=plan.mean_noise,
        sampling_rate=1.0,
        divisor=plan.divisor / plan.sampling_rate,
        largest=sum(map(len, shards)),
        noise_in_each=noise_in_each,
        key=partial(_key, seed, 3, 0),
    )


def _noised(
    updates: list[Flat],
    *,
    bound: float,
    noise_multiplier: float,
    sampling_rate: float,
    divisor: float,
    largest: int,
    noise_in_each: bool,
    key: Callable[[int], bytes],
) -> Flat:
    """( Σ updates + noise ) / D: one noise, or one of every worker."""
    sigma, most = 0.0, largest * bound
    if noise_multiplier:
        mechanism = RecordLevel(bound, noise_multiplier, sampling_rate, divisor, largest)
        sigma, most = mechanism.sigma, mechanism.max_update_norm
    noises = len(updates) if noise_in_each else 1
    total = kernels.Accumulator(
        updates[0].size, frac_bits=kernels.frac_bits_for(most, len(updates), sigma * math.sqrt(noises))
    )
    for update in updates:
        total.add(update, max_norm=most, truncate=True)
    if sigma:
        for worker in range(noises):
            total.add_noise(sigma, key=key(worker), nonce=NOISE_NONCE)
    return total.mean(divisor)


def _key(seed: int, purpose: int, number: int, worker: int) -> bytes:
    master = b"fedmq bench privacy".ljust(24) + seed.to_bytes(8, "little")
    return noise_key(master, version=number, frozen=bytes([purpose]) + worker.to_bytes(31, "little"))
