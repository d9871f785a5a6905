"""What devices train and what the broker makes of it: nothing at all, or a network on real images.

`Noop` is for crowds: a model of a few bytes, the same update from everybody, no arithmetic. `Real` is a whole
federation: each device has its own data and really trains on them, and the broker's own spool, versions and fold
make the next model of what they send. What is trained is its `Work`: the demo's `Digits` here, what `fedmq bench
strategies` races there. All take the same virtual time.
"""

import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, cast

import msgspec
import numpy as np
import xxhash

from fedmq.broker.aggregator import fold
from fedmq.broker.events import Event, Fold, Folded
from fedmq.broker.fold_job import plan_fold
from fedmq.broker.rows import AcceptRow, VersionInfo
from fedmq.broker.store.spool import Spool
from fedmq.broker.store.versions import VersionStore
from fedmq.broker.threads import Spooler, Spooling, write_initial
from fedmq.fedcore import model_file, state_dict, wire
from fedmq.fedcore.apps import ClientApp, TaskContext, Weights
from fedmq.fedcore.config import Config, WorkerPrivacy
from fedmq.fedcore.errors import ConfigError
from fedmq.fedcore.layout import Flat
from fedmq.worker.compression import encoded

ELEMENTS: Final = 8
SHARDS_MAX: Final = 100
"""The digits are dealt into so many shards at most; more devices share them."""


class Update(msgspec.Struct, frozen=True):
    """What a fit gives."""

    payload: bytes
    digest: bytes
    examples: int


class Training(Protocol):
    """The work of devices and of the broker."""

    needs_payloads: bool
    """Whether `fold` reads the updates."""

    def initial(self) -> VersionInfo:
        """Version 0."""
        ...

    def update(self, device: int, task: wire.Task) -> Update:
        """What a device makes of a task."""
        ...

    def block(self, version: int, offset: int, length: int) -> memoryview:
        """Bytes of a version's file."""
        ...

    def spool(self, job: Spooling) -> Event | None:
        """A job of the broker's spool."""
        ...

    def fold(self, job: Fold, rows: Sequence[AcceptRow]) -> Folded:
        """The next version; `rows` are the job's, with their payloads."""
        ...

    def accuracy(self, version: int) -> float | None:
        """On test images, where there are any."""
        ...

    def close(self) -> None:
        """Leave nothing behind."""
        ...


class Noop:
    """Updates that say nothing, and versions that are the same.

    Parameters
    ----------
    charged : float, optional
        What a version is made with where workers pay for their parts in it; the ledger counts the parts.
    """

    needs_payloads = False

    def __init__(self, charged: float | None = None) -> None:
        self._charged = charged
        payload = bytes(4 * ELEMENTS)
        self._update = Update(payload, xxhash.xxh3_128_digest(payload), 100)
        self._file = memoryview(bytes(64 + 4 * ELEMENTS))

    def initial(self) -> VersionInfo:
        """Version 0."""
        return self._info(0)

    def update(self, device: int, task: wire.Task) -> Update:
        """The same for everybody."""
        return self._update

    def block(self, version: int, offset: int, length: int) -> memoryview:
        """Bytes of a version's file."""
        return self._file[offset : offset + length]

    def spool(self, job: Spooling) -> Event | None:
        """Updates are so small that they come with their OFFERs; nothing is kept."""
        return None

    def fold(self, job: Fold, rows: Sequence[AcceptRow]) -> Folded:
        """The next version, of another name."""
        return Folded(
            info=self._info(job.buffer + 1),
            updates=len(rows),
            examples=sum(row.examples for row in rows),
            frac_bits=0,
            denominator=1.0,
            update_norm=0.0,
            seconds=0.0,
            charged=self._charged,
        )

    def accuracy(self, version: int) -> float | None:
        """There is nothing to measure."""
        return None

    def close(self) -> None:
        """There is nothing to leave."""

    def _info(self, version: int) -> VersionInfo:
        digest = version.to_bytes(16, "big")
        return VersionInfo(version=version, digest=digest, size=len(self._file), layout=b"noop", n=ELEMENTS)


class Work(Protocol):
    """What is trained by devices that really do."""

    def task(self) -> Mapping[str, Any]:
        """The ``[task]`` table that apps are given; the config's own keys go before these."""
        ...

    def initial(self) -> Weights:
        """The first weights."""
        ...

    def app(self, device: int) -> ClientApp:
        """The app of a device, with its data."""
        ...

    def accuracy(self, weights: Weights) -> float:
        """On images that no device has."""
        ...

    def made(self, version: int, weights: Weights) -> None:
        """There is a new version."""
        ...


class Real:
    """Devices that train, and the broker's own spool, versions and fold.

    Parameters
    ----------
    config : Config
    work : Work
    """

    needs_payloads = True

    def __init__(self, config: Config, work: Work) -> None:
        self._config = config
        self._work = work
        self._task: dict[str, Any] = {**work.task(), **config.task}
        self._left: dict[int, Flat] = {}
        """What encodings left out of each device's updates, where it is kept (`fedmq.worker.feedback`)."""
        self._stack = contextlib.ExitStack()
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="fedmq-simulate-")))
        self._versions = VersionStore(folder / "versions", fsync=False)
        self._spool = Spool(folder / "spool", fsync=False)
        self._stack.callback(self._spool.close)
        self._spooler = Spooler(self._spool, self._versions, config.model.max_bytes)

    def initial(self) -> VersionInfo:
        """Version 0, as the work makes it."""
        model = model_file.from_arrays(cast(Any, self._work.initial()))
        file = b"".join(bytes(chunk) for chunk in model.chunks)
        return write_initial(self._versions, memoryview(file), self._config.model.max_bytes)

    def update(self, device: int, task: wire.Task) -> Update:
        """Train for real."""
        file = self._versions.file(task.version)
        layout = self._versions.layout(task.version)
        context = TaskContext(kind="fit", version=task.version, seed=task.seed, config=self._task)
        fit = self._work.app(device).fit(state_dict.unpack(layout, file), context)
        delta = state_dict.delta(layout, layout.flat(file), cast(Any, fit.weights))
        left: list[Flat] = []
        if task.feedback and device in self._left:
            delta += self._left[device]
        keeps = left.append if task.feedback else None
        payload = b"".join(encoded(delta, task.encoding, task.seed, keep=task.keep, left_out=keeps))
        if task.feedback:
            self._left[device] = np.concatenate(left)
        return Update(payload, xxhash.xxh3_128_digest(payload), fit.examples)

    def block(self, version: int, offset: int, length: int) -> memoryview:
        """Bytes of a version's file."""
        return self._versions.block(version, offset, length)

    def spool(self, job: Spooling) -> Event | None:
        """A job of the broker's spool."""
        return self._spooler._do(job)

    def fold(self, job: Fold, rows: Sequence[AcceptRow]) -> Folded:
        """As the broker folds."""
        plan = plan_fold(
            job.base,
            rows,
            weighting=self._config.aggregate.weight,
            optimizer=self._config.optimizer,
            rule=self._config.aggregate.rule,
        )
        folded = fold(plan, self._versions, self._spool)
        self._work.made(folded.info.version, self._weights(folded.info.version))
        return folded

    def accuracy(self, version: int) -> float | None:
        """Of a version that is still there."""
        if version not in self._versions.versions():
            return None
        return self._work.accuracy(self._weights(version))

    def close(self) -> None:
        """Remove the folder."""
        self._stack.close()

    def _weights(self, version: int) -> Weights:
        return state_dict.unpack(self._versions.layout(version), self._versions.file(version))


class Digits:
    """The demo's network on handwritten digits, dealt out to the devices.

    Its task has the demo's keys: epochs, batch, lr.

    Parameters
    ----------
    config : Config
    workers : int
    seed : int
    """

    def __init__(self, config: Config, workers: int, seed: int) -> None:
        from ..demo import app, data, network

        self._module = app
        self._network = network
        self._test = data.load("digits").test
        self._versions = max(config.stop.versions, 1)
        self._shards = min(workers, SHARDS_MAX)
        self._seed = seed
        self._apps: dict[int, app.DemoApp] = {}

    def task(self) -> Mapping[str, Any]:
        """One epoch at a time."""
        return {"epochs": 1, "batch": 8, "lr": 0.4, "versions": self._versions}

    def initial(self) -> Weights:
        """As the demo makes them."""
        return cast(Weights, self._shard(0).initial())

    def app(self, device: int) -> ClientApp:
        """The demo's, with a shard."""
        return cast(ClientApp, self._shard(device % self._shards))

    def accuracy(self, weights: Weights) -> float:
        """On the test images, which no device has."""
        return float(self._network.measure(cast(Any, weights), self._test).accuracy)

    def made(self, version: int, weights: Weights) -> None:
        """Nobody asks."""

    def _shard(self, shard: int) -> Any:
        if shard not in self._apps:
            node = {"shard": f"{shard + 1}/{self._shards}", "seed": str(self._seed)}
            self._apps[shard] = self._module.app(node)
        return self._apps[shard]


def make(name: str, config: Config, workers: int, seed: int) -> Training:
    """The training of a name.

    Raises
    ------
    ConfigError
        When there is none, or what it needs is not here.
    """
    match name:
        case "noop":
            return Noop(charged=1.0 if isinstance(config.privacy, WorkerPrivacy) else None)
        case "digits":
            if config.privacy is not None:
                raise ConfigError("--train digits follows no [privacy]: use --train noop, or fedmq demo")
            return Real(config, Digits(config, workers, seed))
    raise ConfigError(f"--train is {name!r}; it may be noop or digits")
