"""One race: a federation on virtual time, and how good its model was when.

The broker's real mind and real workers' minds, the real fold, real training; only time is not real
(`fedmq.cli.simulate`). A race is described by a frozen `Entry`, so that it can be run in another process.
"""

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np

from fedmq.fedcore import codecs
from fedmq.fedcore.config import (
    Aggregate,
    Config,
    Evaluate,
    Federation,
    Mean,
    Mode,
    Model,
    Optimizer,
    Rule,
    Sgd,
    Stop,
)
from fedmq.worker.compression import encoded

from ...demo import data, network
from ...simulate.crowd import Crowd
from ...simulate.distributions import parse
from ...simulate.engine import Simulation
from .participants import Attack, Participants, Training

__all__ = ["Curve", "Entry", "crossing", "run", "sent_by", "smoothed"]

WINDOW: Final = 5
"""Versions over which a curve is smoothed: under skewed data a single one may be lucky."""
LATENCY: Final = "lognormal:50ms,0.5"
FSYNC: Final = "uniform:1ms,5ms"


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One federation in a race.

    Parameters
    ----------
    topic, name, condition : str
        Which comparison it belongs to, what it is called there, and under what circumstances it runs.
    mode : Mode
    training : Training
    partition : str
    speeds : tuple of float
        Seconds that a fit takes each worker; there are so many workers.
    optimizer, rule, encoding, density
        As in a federation's config; `density` is of ``topk``, whose error feedback is on.
    dropout : float
        How likely a worker dies in a fit.
    bandwidth : float
        Bytes a second of each worker, both ways; 0: transfers take no time.
    attack, attackers
        See `participants`.
    """

    topic: str
    name: str
    condition: str = ""
    mode: Mode
    training: Training
    speeds: tuple[float, ...]
    partition: str = "iid"
    optimizer: Optimizer = Sgd()
    rule: Rule = Mean()
    encoding: codecs.Encoding = "f32"
    density: float = 0.1
    dropout: float = 0.0
    bandwidth: float = 0.0
    attack: Attack = "none"
    attackers: int = 0


class Curve(msgspec.Struct, frozen=True):
    """What came of a race.

    Parameters
    ----------
    times_s, accuracies : tuple of float
        Of each version, from the first on.
    updates : int
        Accepted.
    sent_bytes : int
        What all workers sent as updates that were accepted.
    """

    times_s: tuple[float, ...]
    accuracies: tuple[float, ...]
    updates: int
    sent_bytes: int

    @property
    def final(self) -> float:
        """Of the last versions."""
        return float(smoothed(self.accuracies)[-1])

    @property
    def update_bytes(self) -> float:
        """What an update takes."""
        return self.sent_bytes / self.updates

    @property
    def sent_by_version(self) -> np.ndarray:
        """The bytes of all updates in version 1, 2 … and those before it, where all are of as many."""
        sent: np.ndarray = np.arange(1, len(self.times_s) + 1) * (self.sent_bytes / len(self.times_s))
        return sent


def config_of(entry: Entry, seed: int) -> Config:
    """The federation.toml that an entry stands for."""
    robust = not isinstance(entry.rule, Mean)
    return Config(
        federation=Federation(seed=seed),
        mode=entry.mode,
        model=Model(initial="bench:model"),
        aggregate=Aggregate(
            rule=entry.rule,
            encoding=entry.encoding,
            density=entry.density,
            weight="uniform" if robust else "examples",
        ),
        optimizer=entry.optimizer,
        evaluate=Evaluate(every=0),
        stop=Stop(versions=entry.training.versions),
    )


def run(entry: Entry, dataset: data.Dataset, seed: int) -> Curve:
    """Run one race to its last version."""
    workers = len(entry.speeds)
    participants = Participants(
        dataset,
        entry.training,
        workers=workers,
        partition=entry.partition,
        hidden=network.HIDDEN,
        seed=seed,
        attack=entry.attack,
        attackers=entry.attackers,
    )
    floats = sum(array.size for array in participants.initial().values())
    config = config_of(entry, seed)
    payload = _payload_bytes(config.aggregate, floats)
    crowd = Crowd(
        workers=workers,
        speed=parse("1s"),
        speeds=entry.speeds,
        dropout=entry.dropout,
        latency=parse(LATENCY),
        bandwidth=parse(f"{entry.bandwidth}", {"": 1.0}) if entry.bandwidth else None,
        model_bytes=4.0 * floats,
        update_bytes=float(payload),
        fsync=parse(FSYNC),
        seed=seed,
    )
    simulation = Simulation(config, crowd, participants)
    report = simulation.run(lambda version, updates, now: None)
    return Curve(
        tuple(simulation.figures.versions),
        tuple(participants.accuracies),
        updates=report.updates,
        sent_bytes=report.updates * payload,
    )


def _payload_bytes(aggregate: Aggregate, n: int) -> int:
    """What an update takes; of ``topk``, one whose largest values may lie anywhere."""
    if aggregate.encoding != "topk":
        return codecs.payload_size(aggregate.encoding, n)
    anywhere = np.random.default_rng(0).standard_normal(n, np.float32)
    return sum(len(chunk) for chunk in encoded(anywhere, "topk", 0, keep=aggregate.keep(n)))


def smoothed(accuracies: Sequence[float], window: int = WINDOW) -> np.ndarray:
    """Each version's mean with those before it, `window` together; the first ones have fewer."""
    sums = np.cumsum([0.0, *accuracies])
    ends = np.arange(1, len(accuracies) + 1)
    starts = np.maximum(ends - window, 0)
    means: np.ndarray = (sums[ends] - sums[starts]) / (ends - starts)
    return means


def crossing(curve: Curve, accuracy: float) -> float | None:
    """When the smoothed curve was first at an accuracy, in virtual seconds; None when it never was."""
    there = np.flatnonzero(smoothed(curve.accuracies) >= accuracy)
    return curve.times_s[there[0]] if len(there) else None


def sent_by(curve: Curve, time_s: float | None) -> float | None:
    """The bytes of updates in versions up to a time; None for none."""
    if time_s is None:
        return None
    return float(curve.sent_by_version[np.searchsorted(curve.times_s, time_s, side="right") - 1])
