"""What a seed stands for: a federation, its workers, and what goes wrong with them.

Faults come at random until `faults_s`; then everything is put right, and the federation must finish.
"""

import random

import msgspec

from fedmq.fedcore.config import (
    Aggregate,
    AsyncMode,
    Config,
    Evaluate,
    Model,
    Network,
    Privacy,
    Stop,
    Storage,
    SyncMode,
)

INLINE_ELEMENTS = 100
CHUNKED_ELEMENTS = 2_000
"""8,000 bytes: beyond a worker's credit, so that they do not ride with the OFFER."""
BLOCK = 1024


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """One federation's circumstances."""

    seed: int
    config: Config
    workers: int
    elements: int
    model_bytes: int
    fsync_s: float
    """Of the broker's journal, at most, as a rule."""
    failing: float
    """How often an app raises while faults last."""
    faults_s: float
    """Until when things go wrong; 0 for never."""
    fault_every_s: float
    may_evict: bool = True


def draw(seed: int) -> Scenario:
    """The scenario of a seed: any mode, any size, any trouble."""
    rng = random.Random(seed)
    kind = rng.choice(("async", "async", "sync", "sync", "private"))
    workers = rng.randint(1, 6)
    versions = rng.randint(3, 10)
    private = kind == "private"
    config = Config(
        mode=_async(rng, workers) if kind == "async" else _sync(rng, workers, private=private),
        model=Model(initial=rng.choice(("first-worker", "app:initial"))),
        aggregate=Aggregate(weight="uniform" if private else rng.choice(("examples", "uniform"))),
        evaluate=Evaluate(
            every=rng.choice((0, 1, 1, 2)),
            fraction=0.0 if private else rng.choice((0.5, 1.0, 1.0)),
            deadline_s=30.0,
            app=rng.choice(("", "", "app:evaluate")),
        ),
        stop=Stop(versions=versions),
        privacy=_privacy(versions) if private else None,
        storage=Storage(keep=rng.choice((1, 3)), disk_budget=rng.choice((0, 0, 20_000))),
        network=Network(block=BLOCK, credit_budget=rng.choice((1, 3, 5, 40)) * BLOCK),
    )
    return Scenario(
        seed=seed,
        config=config,
        workers=workers,
        elements=rng.choice((INLINE_ELEMENTS, CHUNKED_ELEMENTS)),
        model_bytes=rng.choice((700, 3_000, 9_000)),
        fsync_s=rng.choice((0.005, 0.05, 2.0)),
        failing=rng.choice((0.0, 0.05, 0.2)),
        faults_s=rng.uniform(20.0, 300.0),
        fault_every_s=rng.choice((0.5, 1.5, 6.0)),
    )


def full_cohort(seed: int, *, faults: bool) -> Scenario:
    """A synchronous federation that waits for everybody, however long it takes."""
    rng = random.Random(seed)
    workers = rng.randint(2, 5)
    return Scenario(
        seed=seed,
        config=Config(
            mode=SyncMode(min_available=workers, deadline_s=0.0),
            model=Model(initial="app:initial"),
            evaluate=Evaluate(every=rng.choice((0, 1)), deadline_s=30.0),
            stop=Stop(versions=5),
            network=Network(block=BLOCK, credit_budget=3 * BLOCK),
        ),
        workers=workers,
        elements=rng.choice((INLINE_ELEMENTS, CHUNKED_ELEMENTS)),
        model_bytes=3_000,
        fsync_s=rng.choice((0.005, 0.5)),
        failing=0.1 if faults else 0.0,
        faults_s=200.0 if faults else 0.0,
        fault_every_s=1.5,
        may_evict=False,
    )


def _async(rng: random.Random, workers: int) -> AsyncMode:
    alone = rng.random() < 0.3
    return AsyncMode(
        buffer=rng.randint(1, workers if alone else 6),
        concurrency=rng.choice((1, 3, 100)),
        max_staleness=rng.choice((0, 1, 20)),
        staleness=rng.choice(("constant", "polynomial", "hinge")),
        one_per_worker=alone,
    )


def _sync(rng: random.Random, workers: int, *, private: bool) -> SyncMode:
    available = rng.randint(1, workers)
    asked = 0 if private else rng.choice((0, available))
    return SyncMode(
        min_available=available,
        clients_per_round=asked,
        over_selection=rng.choice((1.0, 1.3, 2.0)) if asked else 1.0,
        min_updates=rng.randint(1, asked) if asked and rng.random() < 0.5 else 0,
        deadline_s=rng.choice((20.0, 60.0)),
    )


def _privacy(steps: int) -> Privacy:
    return Privacy(
        epsilon=3.0,
        delta=1e-5,
        max_grad_norm=1.0,
        sampling_rate=0.1,
        steps=steps,
        divisor=100.0,
        max_batch=64,
        noise_multiplier=1.0,
    )
