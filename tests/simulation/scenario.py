"""What a seed stands for: a federation, its workers, and what goes wrong with them.

Faults come at random until `faults_s`; then everything is put right, and the federation must finish.
"""

import random
from typing import Literal, assert_never

import msgspec

from fedmq.fedcore.config import (
    Adam,
    AdaptiveClip,
    Aggregate,
    AsyncMode,
    CenteredClipping,
    Config,
    Correlated,
    Evaluate,
    Fadas,
    FedAsync,
    Mean,
    Median,
    Model,
    Momentum,
    Network,
    NormBound,
    Optimizer,
    Privacy,
    Rule,
    SampledPrivacy,
    Sgd,
    Stop,
    Storage,
    SyncMode,
    TrimmedMean,
    WorkerPrivacy,
)

INLINE_ELEMENTS = 16
CHUNKED_ELEMENTS = 2_000
"""8,000 bytes in f32: beyond a worker's credit, so that they do not ride with the OFFER."""
BALLAST = 20_000
"""Bytes of a model that are never trained, and too many to ride with a TASK: it is fetched in blocks."""
SMALL_BLOCK, BLOCK = 1024, 4096

Kind = Literal["draw", "full"]


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """One federation's circumstances."""

    seed: int
    kind: Kind
    config: Config
    workers: int
    elements: int
    ballast: int
    """Bytes of the model besides its elements."""
    fsync_s: float
    """Of the broker's journal, at most, as a rule."""
    failing: float
    """How often an app raises while faults last."""
    poisoned: float
    """How often it returns what is not finite while faults last."""
    faults_s: float
    """Until when things go wrong; 0 for never."""
    fault_every_s: float
    repeatable: bool = False
    """A task that is trained again gives the same update."""
    may_evict: bool = True

    @property
    def may_lose_power(self) -> bool:
        """Whether the broker's promises hold over a power cut."""
        return self.config.storage.durability == "fsync"


def make(kind: Kind, seed: int) -> Scenario:
    """The scenario of a kind and a seed."""
    match kind:
        case "draw":
            return draw(seed)
        case "full":
            return full_cohort(seed, faults=True)
        case _:
            assert_never(kind)


def draw(seed: int) -> Scenario:
    """The scenario of a seed: any mode, any size, any trouble."""
    rng = random.Random(seed)
    kind = rng.choice(("async", "async", "sync", "sync", "private"))
    workers = rng.randint(1, 6)
    versions = rng.randint(3, 8)
    private = kind == "private"
    elements, ballast = rng.choice(
        ((INLINE_ELEMENTS, 0), (INLINE_ELEMENTS, 0), (INLINE_ELEMENTS, BALLAST), (CHUNKED_ELEMENTS, 0))
    )
    block = BLOCK if ballast else SMALL_BLOCK
    config = Config(
        mode=_async(rng, workers) if kind == "async" else _sync(rng, workers, private=private),
        model=Model(initial=rng.choice(("first-worker", "app:initial"))),
        aggregate=Aggregate(
            weight="uniform" if private else rng.choice(("examples", "uniform")),
            encoding="f32" if private else rng.choice(("f32", "f32", "f16", "bf16", "i8", "topk")),
        ),
        optimizer=_optimizer(rng),
        evaluate=Evaluate(
            every=rng.choice((0, 1, 1, 2)),
            fraction=0.0 if private else rng.choice((0.5, 1.0, 1.0)),
            deadline_s=30.0,
            app=rng.choice(("", "", "app:evaluate")),
        ),
        stop=Stop(versions=versions),
        privacy=_privacy(versions) if private else None,
        storage=Storage(
            durability="fsync" if private else rng.choice(("fsync", "fsync", "fsync", "os")),
            keep=rng.choice((1, 3)),
            keep_payloads=rng.random() < 0.2,
            disk_budget=rng.choice((0, 0, 20_000)),
        ),
        network=Network(block=block, credit_budget=rng.choice((1, 3, 5, 40)) * block),
    )
    if not private:
        # With its own dice: a seed is the federation that it was before there were rules.
        config = _with_rule(random.Random(f"rule of {seed}"), config)
        config = _with_mixing(random.Random(f"mixing of {seed}"), config)
        config = _with_parts(random.Random(f"parts of {seed}"), config, workers)
        config = _with_coin(random.Random(f"coin of {seed}"), config, workers)
        config = _with_clip(random.Random(f"clip of {seed}"), config)
    config = _with_downlink(random.Random(f"downlink of {seed}"), config)
    return Scenario(
        seed=seed,
        kind="draw",
        config=config,
        workers=workers,
        elements=elements,
        ballast=ballast,
        fsync_s=rng.choice((0.005, 0.05, 2.0)),
        failing=rng.choice((0.0, 0.05, 0.2)),
        poisoned=rng.choice((0.0, 0.0, 0.05)),
        faults_s=rng.uniform(20.0, 250.0),
        fault_every_s=rng.choice((0.5, 1.5, 6.0)),
    )


def full_cohort(seed: int, *, faults: bool) -> Scenario:
    """A synchronous federation that waits for everybody, however long it takes."""
    rng = random.Random(seed)
    workers = rng.randint(2, 5)
    return Scenario(
        seed=seed,
        kind="full",
        config=Config(
            mode=SyncMode(min_available=workers, deadline_s=0.0),
            model=Model(initial="app:initial"),
            optimizer=_optimizer(rng),
            evaluate=Evaluate(every=rng.choice((0, 1)), deadline_s=30.0),
            stop=Stop(versions=4),
            network=Network(block=SMALL_BLOCK, credit_budget=3 * SMALL_BLOCK),
        ),
        workers=workers,
        elements=rng.choice((INLINE_ELEMENTS, CHUNKED_ELEMENTS)),
        ballast=0,
        fsync_s=rng.choice((0.005, 0.5)),
        failing=0.1 if faults else 0.0,
        poisoned=0.0,
        faults_s=150.0 if faults else 0.0,
        fault_every_s=1.5,
        repeatable=True,
        may_evict=False,
    )


def _async(rng: random.Random, workers: int) -> AsyncMode:
    alone = rng.random() < 0.3
    return AsyncMode(
        buffer=rng.randint(1, workers if alone else 6),
        concurrency=rng.choice((1, 3, 100)),
        max_staleness=rng.choice((0, 1, 20)),
        staleness=rng.choice(("constant", "polynomial", "hinge")),
        hinge_threshold=1,
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


def _with_rule(rng: random.Random, config: Config) -> Config:
    """Now and then the same federation under another rule than the mean, of those that its buffers have enough for."""
    mode = config.mode
    rules: list[Rule] = [NormBound(max_norm=1.0)]
    if isinstance(mode, SyncMode):
        alone = True
        least = min(k for k in (mode.min_available, mode.clients_per_round, mode.min_updates) if k)
    else:
        alone, least = mode.one_per_worker, mode.buffer
    if alone:
        robust = (CenteredClipping(radius=1.0), Median(), TrimmedMean(trim=0.34))
        rules += [rule for rule in robust if rule.minimum <= least]
    if rng.random() < 0.5:
        return config
    rule = rng.choice(rules)
    weight = "uniform" if rule.uniform else config.aggregate.weight
    aggregate = msgspec.structs.replace(config.aggregate, rule=rule, weight=weight)
    return msgspec.structs.replace(config, aggregate=aggregate)


def _with_mixing(rng: random.Random, config: Config) -> Config:
    """Now and then an asynchronous federation by its means as FedAsync, one update a version."""
    mode = config.mode
    if not isinstance(mode, AsyncMode) or config.aggregate.rule != Mean() or rng.random() < 0.5:
        return config
    return msgspec.structs.replace(
        config,
        mode=msgspec.structs.replace(mode, buffer=1),
        optimizer=FedAsync(alpha=rng.choice((0.6, 1.0))),
    )


def _with_downlink(rng: random.Random, config: Config) -> Config:
    """Now and then the same federation with models that travel as halves."""
    if isinstance(config.optimizer, FedAsync) or rng.random() < 0.7:
        return config
    return msgspec.structs.replace(config, model=msgspec.structs.replace(config.model, downlink="f16"))


def _with_parts(rng: random.Random, config: Config, workers: int) -> Config:
    """Now and then an asynchronous federation by its means as one that charges workers for their parts in versions.

    It is one that finishes, whoever comes first: with all that have spent their budget, and all that rest, there are
    enough left for a buffer.
    """
    mode = config.mode
    plain = config.aggregate.rule == Mean() and not isinstance(config.optimizer, FedAsync)
    if not isinstance(mode, AsyncMode) or not plain or workers < 2 or rng.random() < 0.4:
        return config
    buffer = rng.randint(1, workers // 2)
    cap, apart = rng.randint(1, 4), rng.choice((0, 1, 2, 3))
    apart = min(apart, workers // buffer)
    spent_at_most = workers - buffer * max(apart, 1)
    versions = min(config.stop.versions, ((spent_at_most + 1) * cap - 1) // buffer + 1)
    correlated = Correlated(
        versions=versions + rng.choice((0, 0, 3)), min_separation=max(apart, 1), bandwidth=rng.randint(1, 4)
    )
    privacy = WorkerPrivacy(
        epsilon=1000.0,
        delta=1e-5,
        clip_norm=0.5,
        max_participations=cap,
        noise_multiplier=1.0,
        correlated=correlated if apart else None,
    )
    replace = msgspec.structs.replace
    return replace(
        config,
        mode=replace(mode, buffer=buffer, one_per_worker=True),
        model=Model(initial="app:initial"),
        aggregate=replace(config.aggregate, weight="uniform"),
        evaluate=replace(config.evaluate, fraction=0.0),
        stop=Stop(versions=versions),
        privacy=privacy,
        storage=replace(config.storage, durability="fsync"),
    )


def _with_coin(rng: random.Random, config: Config, workers: int) -> Config:
    """Now and then a synchronous federation by its means as one whose rounds ask workers by a secret coin."""
    mode = config.mode
    if not isinstance(mode, SyncMode) or config.aggregate.rule != Mean() or rng.random() < 0.4:
        return config
    rate = rng.choice((0.5, 0.8, 1.0))
    privacy = SampledPrivacy(
        epsilon=1000.0,
        delta=1e-5,
        clip_norm=0.5,
        sampling_rate=rate,
        steps=config.stop.versions + rng.choice((0, 0, 3)),
        divisor=rate * workers,
        wait_for=rng.choice(("sample", "sample", "deadline")),
        noise_multiplier=1.0,
    )
    replace = msgspec.structs.replace
    return replace(
        config,
        mode=SyncMode(min_available=mode.min_available, deadline_s=20.0),
        model=Model(initial="app:initial"),
        aggregate=replace(config.aggregate, weight="uniform"),
        evaluate=replace(config.evaluate, fraction=0.0),
        privacy=privacy,
        storage=replace(config.storage, durability="fsync"),
    )


def _with_clip(rng: random.Random, config: Config) -> Config:
    """Now and then a worker-level federation with a clip norm that follows the updates; its noise is not correlated."""
    privacy = config.privacy
    if not isinstance(privacy, SampledPrivacy | WorkerPrivacy) or rng.random() < 0.4:
        return config
    if isinstance(privacy, WorkerPrivacy):
        if privacy.correlated is not None and rng.random() < 0.7:
            return config
        privacy = msgspec.structs.replace(privacy, correlated=None)
    clip = AdaptiveClip(
        quantile=rng.choice((0.5, 0.8)), rate=rng.choice((0.2, 1.0)), count_noise=rng.choice((0.6, 3.0))
    )
    return msgspec.structs.replace(config, privacy=msgspec.structs.replace(privacy, adaptive_clip=clip))


def _optimizer(rng: random.Random) -> Optimizer:
    return rng.choice((Sgd(), Sgd(lr=0.5), Momentum(lr=0.5, beta=0.9), Adam(bias_correction=True), Fadas()))


def _privacy(steps: int) -> Privacy:
    return Privacy(
        epsilon=3.0,
        delta=1e-5,
        max_grad_norm=0.5,
        sampling_rate=0.1,
        steps=steps,
        divisor=100.0,
        max_batch=4,
        noise_multiplier=1.0,
    )
