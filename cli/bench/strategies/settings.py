"""Which federations are raced against which, and with what they train.

Ten workers share Fashion-MNIST evenly, or class by class in proportions drawn from Dirichlet(0.5). A fit of the fastest
takes 20 s of virtual time, of the slowest ten times as long.

How the numbers were chosen: on a sixth of the *training* images, cut out before anything was trained
(``--validation`` measures on it still); the test images had no say. Central training: 10 to 100 epochs, rates 0.03 to
0.2, batches of 32 to 128; more than 30 epochs make it worse. Rounds: 30, 60 or 100, batches of 16 and 32, rates 0.05
to 0.2, server momentum 0 to 0.9. Races have half the rounds and no momentum, as in the papers that they stand for;
both sides train on as many images with the same rates. Centered clipping: radii 0.1 to 1, once or three times.
"""

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from fedmq.fedcore import codecs
from fedmq.fedcore.config import (
    AsyncMode,
    CenteredClipping,
    Mean,
    Mode,
    Momentum,
    MultiKrum,
    Rule,
    SyncMode,
    TrimmedMean,
)

from .participants import ATTACKS, Training
from .race import Entry

__all__ = ["DIRICHLET", "FULL", "IID", "QUICK", "WORKERS", "Setting", "entries", "synchronous"]

WORKERS: Final = 10
ATTACKERS: Final = 2
IID: Final = "iid"
DIRICHLET: Final = "dirichlet:0.5"
PARTITIONS: Final = (IID, DIRICHLET)

FASTEST_S: Final = 20.0
SKEWED: Final = tuple(FASTEST_S * 10 ** (i / (WORKERS - 1)) for i in range(WORKERS))
"""Log-spaced over a factor of ten."""
STRAGGLER: Final = (*[FASTEST_S] * (WORKERS - 1), 10 * FASTEST_S)
DROPOUT: Final = 0.1
NARROW: Final = 2000.0
"""Bytes a second of a narrow link: an update of this network takes 50 s in f32."""


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """What a run of the benchmark depends on, but for topics and seeds.

    Parameters
    ----------
    images : int
        Of training at most; 0 for all.
    central_epochs, central_lr, rounds, momentum
        Of the comparison with central training.
    race_rounds : int
        Synchronous rounds of a race.
    lr, batch
        Of the workers.
    targets : tuple of float
        Accuracies of the test images; when they are reached is told.
    """

    images: int = 0
    central_epochs: int = 30
    central_lr: float = 0.05
    rounds: int = 60
    momentum: float = 0.5
    race_rounds: int = 30
    lr: float = 0.1
    batch: int = 32
    targets: tuple[float, ...] = (0.80, 0.85)


FULL: Final = Setting()
QUICK: Final = Setting(images=6000, central_epochs=5, rounds=6, race_rounds=6, targets=(0.60, 0.70))


def synchronous(workers: int = WORKERS) -> SyncMode:
    """Rounds of everybody, which wait for the slowest."""
    return SyncMode(min_available=workers, deadline_s=0.0)


def asynchronous(*, one_per_worker: bool = False) -> AsyncMode:
    """FedBuff: a version for every half of the workers, or by those who are fast, more than once."""
    return AsyncMode(buffer=WORKERS // 2, concurrency=WORKERS, one_per_worker=one_per_worker)


def entries(topic: str, setting: Setting) -> Iterator[Entry]:
    """The federations of one topic."""
    match topic:
        case "accuracy":
            yield from _accuracy(setting)
        case "speed":
            yield from _speed(setting)
        case "dropout":
            yield from _dropout(setting)
        case "compression":
            yield from _compression(setting)
        case "attackers":
            yield from _attackers(setting)


def _accuracy(setting: Setting) -> Iterator[Entry]:
    for partition in PARTITIONS:
        yield Entry(
            topic="accuracy",
            name="federated",
            mode=synchronous(),
            training=Training(setting.rounds, setting.lr, setting.batch),
            optimizer=Momentum(beta=setting.momentum),
            partition=partition,
            speeds=SKEWED,
        )


def _speed(setting: Setting) -> Iterator[Entry]:
    for speeds, skew in ((SKEWED, "log-spaced over 10x"), (STRAGGLER, "one 10x straggler")):
        for partition in PARTITIONS:
            modes: tuple[tuple[str, Mode], ...] = (
                ("synchronous", synchronous()),
                ("asynchronous", asynchronous()),
                ("asynchronous, one per worker", asynchronous(one_per_worker=True)),
            )
            for name, mode in modes:
                yield _race(setting, "speed", name, mode, condition=skew, partition=partition, speeds=speeds)


def _dropout(setting: Setting) -> Iterator[Entry]:
    # In the deadline's time two thirds of the workers are done; half of them are a quorum.
    patient = SyncMode(min_available=WORKERS // 2, min_updates=WORKERS // 2, deadline_s=6 * FASTEST_S)
    modes: tuple[tuple[str, Mode], ...] = (
        ("synchronous", synchronous()),
        ("synchronous, deadline", patient),
        ("asynchronous", asynchronous()),
    )
    for partition in PARTITIONS:
        for name, mode in modes:
            yield _race(
                setting,
                "dropout",
                name,
                mode,
                condition=f"{DROPOUT:.0%} of fits die",
                partition=partition,
                speeds=SKEWED,
                dropout=DROPOUT,
            )


def _compression(setting: Setting) -> Iterator[Entry]:
    for partition in PARTITIONS:
        for encoding in codecs.ENCODINGS:
            yield _race(
                setting,
                "compression",
                encoding,
                asynchronous(),
                condition=f"{NARROW / 1000:g} kB/s",
                partition=partition,
                speeds=SKEWED,
                encoding=encoding,
                bandwidth=NARROW,
            )


def _attackers(setting: Setting) -> Iterator[Entry]:
    rules: tuple[tuple[str, Rule], ...] = (
        ("mean", Mean()),
        ("trimmed mean", TrimmedMean(trim=ATTACKERS / WORKERS)),
        ("Multi-Krum", MultiKrum(byzantine=ATTACKERS)),
        ("centered clipping", CenteredClipping(radius=0.3, iterations=3)),
    )
    for attack in ATTACKS:
        for partition in PARTITIONS:
            for name, rule in rules:
                yield _race(
                    setting,
                    "attackers",
                    name,
                    synchronous(),
                    condition="nobody attacks" if attack == "none" else f"{ATTACKERS} of {WORKERS} {attack}",
                    partition=partition,
                    speeds=SKEWED,
                    rule=rule,
                    attack=attack,
                    attackers=ATTACKERS,
                )


def _race(setting: Setting, topic: str, name: str, mode: Mode, **more: Any) -> Entry:
    """As many fits for everybody: a version of half the workers is half a round."""
    versions = setting.race_rounds * (2 if isinstance(mode, AsyncMode) else 1)
    return Entry(
        topic=topic,
        name=name,
        mode=mode,
        training=Training(versions, setting.lr, setting.batch),
        **more,
    )
