"""What devices train and what the broker makes of it: nothing at all, or the demo's network on real digits.

`Noop` is for crowds: a model of a few bytes, the same update from everybody, no arithmetic. `Digits` is a whole
federation: each device has its own images and really trains on them, and the broker's own spool, versions and fold
make the next model of what they send. Both take the same virtual time.
"""

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol, cast

import msgspec
import xxhash

from fedmq.broker.aggregator import fold, plan_fold
from fedmq.broker.events import Event, Fold, Folded
from fedmq.broker.rows import AcceptRow, VersionInfo
from fedmq.broker.store.spool import Spool
from fedmq.broker.store.versions import VersionStore
from fedmq.broker.threads import Spooler, Spooling, write_initial
from fedmq.fedcore import model_file, state_dict, wire
from fedmq.fedcore.apps import TaskContext
from fedmq.fedcore.config import Config
from fedmq.fedcore.errors import ConfigError
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
    """Updates that say nothing, and versions that are the same."""

    needs_payloads = False

    def __init__(self) -> None:
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
        )

    def accuracy(self, version: int) -> float | None:
        """There is nothing to measure."""
        return None

    def close(self) -> None:
        """There is nothing to leave."""

    def _info(self, version: int) -> VersionInfo:
        digest = version.to_bytes(16, "big")
        return VersionInfo(version=version, digest=digest, size=len(self._file), layout=b"noop", n=ELEMENTS)


class Digits:
    """The demo's network on handwritten digits, dealt out to the devices.

    Parameters
    ----------
    config : Config
        Whose ``[task]`` table may hold the demo's keys: epochs, batch, lr.
    workers : int
    seed : int
    """

    needs_payloads = True

    def __init__(self, config: Config, workers: int, seed: int) -> None:
        from ..demo import app, data, network

        self._module = app
        self._network = network
        self._test = data.load("digits").test
        self._config = config
        self._shards = min(workers, SHARDS_MAX)
        self._seed = seed
        self._apps: dict[int, app.DemoApp] = {}
        self._task: dict[str, Any] = {
            "epochs": 1, "batch": 8, "lr": 0.4, "versions": max(config.stop.versions, 1), **config.task,
        }  # fmt: skip
        self._stack = contextlib.ExitStack()
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="fedmq-simulate-")))
        self._versions = VersionStore(folder / "versions", fsync=False)
        self._spool = Spool(folder / "spool", fsync=False)
        self._stack.callback(self._spool.close)
        self._spooler = Spooler(self._spool, self._versions, config.model.max_bytes)

    def initial(self) -> VersionInfo:
        """Version 0, as the demo makes it."""
        model = model_file.from_arrays(cast(Any, self._app(0).initial()))
        file = b"".join(bytes(chunk) for chunk in model.chunks)
        return write_initial(self._versions, memoryview(file), self._config.model.max_bytes)

    def update(self, device: int, task: wire.Task) -> Update:
        """Train for real."""
        file = self._versions.file(task.version)
        layout = self._versions.layout(task.version)
        context = TaskContext(kind="fit", version=task.version, seed=task.seed, config=self._task)
        fit = self._app(device % self._shards).fit(state_dict.unpack(layout, file), context)
        delta = state_dict.delta(layout, layout.flat(file), cast(Any, fit.weights))
        payload = b"".join(encoded(delta, task.encoding, task.seed, keep=task.keep))
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
        return fold(plan, self._versions, self._spool)

    def accuracy(self, version: int) -> float | None:
        """On the test images, which no device has."""
        if version not in self._versions.versions():
            return None
        weights = state_dict.unpack(self._versions.layout(version), self._versions.file(version))
        return float(self._network.measure(cast(Any, weights), self._test).accuracy)

    def close(self) -> None:
        """Remove the folder."""
        self._stack.close()

    def _app(self, shard: int) -> Any:
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
            return Noop()
        case "digits":
            if config.privacy is not None:
                raise ConfigError("--train digits follows no [privacy]: use --train noop, or fedmq demo")
            return Digits(config, workers, seed)
    raise ConfigError(f"--train is {name!r}; it may be noop or digits")
