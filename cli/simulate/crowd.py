"""What is to be simulated: a federation's config, and what its devices are like."""

import random
from collections.abc import Callable
from typing import Literal

import msgspec

from fedmq.fedcore.config import AsyncMode, Config, Evaluate, Model, Network, Stop, SyncMode
from fedmq.fedcore.errors import ConfigError

from . import distributions
from .distributions import Distribution

TrainName = Literal["noop", "digits"]

BEAT_WORKERS = 500.0
"""Without a config there is at most one BEAT a second and way for so many workers' seconds of silence …"""
BEAT_MIN_S = 10.0
LEASE_BEATS = 3.5


class Availability(msgspec.Struct, frozen=True):
    """How much of the time a device is on, and for how long at a time.

    Parameters
    ----------
    share : float
        Of the time; 1 for always.
    spell_s : float
        The mean time that it stays on.
    """

    share: float = 1.0
    spell_s: float = 3600.0

    @property
    def off_s(self) -> float:
        """The mean time that it stays off."""
        return self.spell_s * (1 - self.share) / self.share


class Crowd(msgspec.Struct, frozen=True, kw_only=True):
    """The devices of a simulation, and how they are connected.

    Parameters
    ----------
    workers : int
    speed : Distribution
        Seconds that a fit takes, drawn once for each device; every fit then takes 0.8 to 1.25 times that.
    speeds : tuple of float
        The same, said of each device; then nothing is drawn.
    availability : Availability
    dropout : float
        How likely a device dies during a fit. It starts again some minutes later.
    latency : Distribution
        Seconds that a message takes, drawn for each.
    bandwidth : Distribution or None
        Bytes a second, drawn once for each device; None: transfers take no time.
    model_bytes : float
        What is transferred each way, where there is a bandwidth.
    update_bytes : float or None
        What a device sends; None: as much as it fetches.
    slots : int
        Tasks that a worker takes at a time.
    fsync : Distribution
        Seconds of the broker's commits.
    train : {"noop", "digits"}
    seed : int
    """

    workers: int
    speed: Distribution
    speeds: tuple[float, ...] = ()
    availability: Availability = Availability()
    dropout: float = 0.0
    latency: Distribution
    bandwidth: Distribution | None = None
    model_bytes: float = 0.0
    update_bytes: float | None = None
    slots: int = 1
    fsync: Distribution
    train: TrainName = "noop"
    seed: int = 0


class Draws:
    """All that chance decides, from one seed."""

    def __init__(self, crowd: Crowd) -> None:
        self.rng = random.Random(crowd.seed)
        self._speed = crowd.speed.sampler(self.rng)
        self._speeds = crowd.speeds
        self.latency: Callable[[], float] = crowd.latency.sampler(self.rng)
        self.fsync = crowd.fsync.sampler(self.rng)
        self.bandwidth = None if crowd.bandwidth is None else crowd.bandwidth.sampler(self.rng)

    def speed(self, device: int) -> float:
        """Seconds that a fit of a device takes."""
        return self._speeds[device] if self._speeds else self._speed()


def availability(text: str) -> Availability:
    """Read ``always``, ``0.3`` or ``0.3:2h``: the share of the time, and the mean time on.

    Raises
    ------
    ConfigError
        When it is none of these.

    Examples
    --------
    >>> availability("0.25:1h").off_s
    10800.0
    """
    if text == "always":
        return Availability()
    share, colon, spell = text.partition(":")
    try:
        value = distributions.quantity(share, {"": 1.0})
        spell_s = distributions.quantity(spell) if colon else 3600.0
    except ConfigError:
        value, spell_s = 0.0, 0.0
    if not (0 < value <= 1 and spell_s > 0):
        raise ConfigError(
            f"--availability is {text!r}; it may be always, or a share of the time such as 0.3, or with the mean "
            "time on: 0.3:2h"
        )
    return Availability(value, spell_s)


def default_config(
    workers: int,
    versions: int,
    *,
    mode: str,
    buffer: int | None,
    concurrency: int | None,
    beat_s: float | None,
) -> Config:
    """The config where none is named: asynchronous or synchronous, sized for so many workers.

    BEATs keep a session alive and cost both sides work; a broker of a hundred thousand workers would ask for fewer.
    """
    beat_s = beat_s or max(BEAT_MIN_S, workers / BEAT_WORKERS)
    size = buffer or min(max(10, workers // 1000), workers)
    return Config(
        mode=SyncMode(min_available=size, clients_per_round=size, over_selection=1.2, min_updates=size)
        if mode == "sync"
        else AsyncMode(buffer=size, concurrency=concurrency or min(10 * size, workers)),
        model=Model(initial="simulate:model"),
        evaluate=Evaluate(every=0),
        stop=Stop(versions=versions),
        network=Network(beat_s=beat_s, lease_s=LEASE_BEATS * beat_s),
    )


def fitted(config: Config, versions: int | None, train: TrainName) -> Config:
    """A federation's own config, as far as a simulation can follow it.

    Raises
    ------
    ConfigError
        When nothing says when the simulation ends.
    """
    stop = msgspec.structs.replace(config.stop, versions=versions or config.stop.versions)
    if not (stop.versions or stop.seconds):
        raise ConfigError("the config has neither stop.versions nor stop.seconds: say --versions")
    return msgspec.structs.replace(
        config,
        stop=stop if train == "digits" else Stop(versions=stop.versions, seconds=stop.seconds),
        model=Model(initial="simulate:model", max_bytes=config.model.max_bytes),
        evaluate=Evaluate(every=0, fraction=config.evaluate.fraction),  # which [privacy] has a say in
    )
