"""The demo's three arms in one process: central training, the federation, the federation with privacy.

`centralized` is the baseline that the demo reports. `federated` and `federated_private` are its reference: the same
client app, combination rule, mechanism and server optimizer as in the broker, driven by a plain loop without broker,
wire or disk. They are what the hyperparameters were chosen with, and what tests hold the demo to.

The asynchronous reference gives every fit a duration from a seeded generator, so that updates arrive in some order
and with some staleness; a real run has its own.
"""

import heapq

import numpy as np
from numpy.typing import NDArray

from fedmq.fedcore import config as configuration
from fedmq.fedcore import kernels
from fedmq.fedcore.layout import Layout
from fedmq.fedcore.privacy.accounting import poisson_noise
from fedmq.fedcore.privacy.mechanisms import NOISE_NONCE, RecordLevel, noise_key
from fedmq.fedcore.state_dict import delta, flatten, unflatten
from fedmq.fedcore.strategy import optimizers, rules, staleness
from fedmq.worker.client import TaskContext, check_fit

from . import network
from .app import DemoApp, cosine
from .data import Dataset
from .network import Measured, Weights
from .settings import HIDDEN, DemoSettings

__all__ = ["calibrated_noise", "centralized", "federated", "federated_private"]

Flat = NDArray[np.float32]


def centralized(dataset: Dataset, settings: DemoSettings) -> Measured:
    """Train the same network on all training images at once; measure it on the test images."""
    weights = _initial(dataset, settings)
    rng = np.random.default_rng([settings.seed, 0xCE17])
    plain = settings.plain
    for epoch in range(plain.central_epochs):
        lr = cosine(plain.central_lr, epoch, plain.central_epochs)
        network.train(weights, dataset.train, epochs=1, batch=plain.batch, lr=lr, rng=rng)
    return network.measure(weights, dataset.test)


def federated(dataset: Dataset, settings: DemoSettings, apps: list[DemoApp]) -> Measured:
    """The plain arm, synchronous or asynchronous as the settings say."""
    config = configuration.parse(settings.federation(), base_dir=".")
    mode = config.mode
    if isinstance(mode, configuration.SyncMode):
        mean, wanted = rules.Mean(config.aggregate.weight), len(apps)
    else:
        mean, wanted = rules.Mean(config.aggregate.weight, staleness.Polynomial(mode.exponent)), mode.buffer
    server = _Server(_initial(dataset, settings), config.optimizer)
    speeds = np.random.default_rng([settings.seed, 0x5BEED])
    # Who is done next: (when, which worker, the version that it trains from, that version's weights).
    running = [(1 + speeds.exponential(), i, 0, server.flat.copy()) for i in range(len(apps))]
    heapq.heapify(running)
    buffer: list[tuple[Flat, rules.Share]] = []
    idle: list[int] = []
    while server.version < config.stop.versions:
        now, worker, base, start = heapq.heappop(running)
        update, examples = server.fit(apps[worker], start, _task(settings, worker, base, config.task))
        buffer.append((update, mean.share(examples=examples, tau=server.version - base)))
        idle.append(worker)
        if len(buffer) == wanted:
            shares = [share for _, share in buffer]
            sums = kernels.Accumulator(server.layout.n, frac_bits=_frac_bits(buffer))
            for update, share in buffer:
                sums.add(update, weight=share.weight)
            server.step(sums.mean(rules.denominator(shares)))
            buffer = []
        if not buffer or not isinstance(mode, configuration.SyncMode):
            for free in idle:
                heapq.heappush(
                    running, (now + 1 + speeds.exponential(), free, server.version, server.flat.copy())
                )
            idle = []
    return network.measure(server.weights(), dataset.test)


def federated_private(
    dataset: Dataset, settings: DemoSettings, apps: list[DemoApp], *, noise_multiplier: float
) -> Measured:
    """The private arm: one Poisson gradient sum from each worker, noise once, server momentum."""
    config = configuration.parse(settings.private_federation(), base_dir=".")
    privacy = config.privacy
    assert isinstance(privacy, configuration.Privacy)  # private_federation always has the table
    mechanism = RecordLevel(
        privacy.max_grad_norm, noise_multiplier, privacy.sampling_rate, privacy.divisor, privacy.max_batch
    )
    frac_bits = kernels.frac_bits_for(mechanism.max_update_norm, len(apps), mechanism.sigma)
    server = _Server(_initial(dataset, settings), config.optimizer)
    master = settings.seed.to_bytes(32, "little")
    for _ in range(config.stop.versions):
        sums = kernels.Accumulator(server.layout.n, frac_bits=frac_bits)
        for worker, app in enumerate(apps):
            task = _task(settings, worker, server.version, config.task)
            update, _ = server.fit(app, server.flat.copy(), task)
            sums.add(update, max_norm=mechanism.max_update_norm, truncate=True)
        key = noise_key(master, version=server.version + 1, frozen=bytes(32))
        sums.add_noise(mechanism.sigma, key=key, nonce=NOISE_NONCE)
        server.step(sums.mean(mechanism.denominator))
    return network.measure(server.weights(), dataset.test)


def calibrated_noise(settings: DemoSettings) -> float:
    """The private arm's noise multiplier, from its ε and δ; takes a few seconds."""
    return poisson_noise(
        epsilon_target=settings.epsilon,
        delta=settings.delta,
        sampling_rate=settings.private.sampling_rate,
        steps=settings.private.steps,
    )


class _Server:
    """A model in memory, and the optimizer that moves it."""

    def __init__(self, weights: Weights, table: configuration.Optimizer) -> None:
        self.layout = Layout.of(weights)
        self.flat = flatten(self.layout, weights)
        self.version = 0
        optimizer = optimizers.make(table)
        assert isinstance(optimizer, optimizers.ServerOptimizer)
        self._optimizer = optimizer
        self._state = self._optimizer.init(self.layout.n)

    def weights(self) -> Weights:
        return unflatten(self.layout, self.flat)

    def fit(self, app: DemoApp, start: Flat, task: TaskContext) -> tuple[Flat, int]:
        """What a worker would send: the delta, and its number of examples."""
        base = start.copy()
        fit = check_fit(app.fit(unflatten(self.layout, start), task), unflatten(self.layout, base))
        return delta(self.layout, base, fit.weights), fit.examples

    def step(self, combined: Flat) -> None:
        self.version += 1
        self._optimizer.apply(self.flat, self._state, combined, step=self.version)


def _initial(dataset: Dataset, settings: DemoSettings) -> Weights:
    return network.initial_weights(
        dataset.train.x.shape[1], classes=dataset.classes, hidden=HIDDEN[dataset.name], seed=settings.seed
    )


def _task(settings: DemoSettings, worker: int, version: int, table: dict[str, object]) -> TaskContext:
    seed = np.random.SeedSequence([settings.seed, worker, version]).generate_state(1, np.uint64)[0]
    return TaskContext(kind="fit", version=version, seed=int(seed), config=dict(table))


def _frac_bits(buffer: list[tuple[Flat, rules.Share]]) -> int:
    bound = max(share.weight * float(np.sqrt(kernels.sum_squares(update))) for update, share in buffer)
    return kernels.frac_bits_for(bound, len(buffer))
