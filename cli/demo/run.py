"""The demo's three arms, one after the other: central training, a federation, a federation with privacy.

The first runs in this process. The other two are real: a broker process and worker processes on loopback, each
worker with its own shard, started as anybody would start them. All three are measured here, on the same test images.

    folder/
      federated/   federation.toml, broker.log, state/, worker-1/, worker-1.log, …
      private/     the same for the federation with privacy
"""

import importlib.util
import secrets
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from fedmq.broker.store.history import History
from fedmq.broker.store.state import read_identity
from fedmq.broker.store.versions import VersionStore
from fedmq.fedcore import kernels
from fedmq.fedcore.errors import ConfigError, StateError
from fedmq.fedcore.privacy.accounting import Spend, epsilon
from fedmq.fedcore.state_dict import unpack

from ..processes import LocalFederation, Status
from ..progress import Moment, Show, View
from ..status_view import crowd
from . import comparison, data, network
from .data import Dataset
from .report import Arm, Made, Report
from .settings import DemoSettings, settings

__all__ = ["APPS", "Options", "compare"]

APPS: Final = {"numpy": "fedmq.cli.demo.app:app", "torch": "fedmq.cli.demo.torch_network:app"}
# What a run needs beyond the broker: the module, what it is called, and the extra that brings it.
_ACCOUNTING: Final = ("dp_accounting", "dp-accounting", "privacy")
_DIGITS: Final = ("sklearn", "scikit-learn", "sklearn")
_TORCH: Final = ("torch", "torch", "torch")


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says; see ``fedmq demo --help``."""

    data: str = "digits"
    data_dir: Path | None = None
    workers: int = 5
    mode: str = "async"
    partition: str = "iid"
    app: str = "numpy"
    seed: int = 0


def compare(options: Options, folder: Path, view: View) -> Report:
    """Run the three arms.

    Parameters
    ----------
    options : Options
    folder : Path
        For everything that the federations write.
    view : View
        Shows what goes on.

    Raises
    ------
    ConfigError
        When an option is wrong, the images are not here, or a library is missing.
    ProcessError
        When a broker or a worker ended before its time.
    """
    started = time.monotonic()
    _check_installed(options)
    dataset = data.load(options.data, data_dir=options.data_dir)
    data.partition(
        dataset.train.y, workers=options.workers, scheme=options.partition
    )  # wrong ones raise here
    chosen = settings(
        options.data,
        options.mode,
        train_size=len(dataset.train),
        workers=options.workers,
        partition=options.partition,
        seed=options.seed,
    )
    central = _central(dataset, chosen, view)
    demo = _Demo(options, chosen, dataset)
    federated = demo.federate("federated", chosen.federation(), folder / "federated", view)
    private = demo.federate("with privacy", chosen.private_federation(), folder / "private", view)
    spent = _spent(folder / "private" / "state", chosen)
    return Report(
        data=options.data,
        mode=options.mode,
        partition=options.partition,
        app=options.app,
        seed=options.seed,
        workers=options.workers,
        central=central,
        federated=federated,
        private=private,
        epsilon=epsilon([spent], chosen.delta),
        delta=chosen.delta,
        noise_multiplier=spent.noise_multiplier,
        sampling_rate=spent.sampling_rate,
        steps=spent.steps,
        seconds=time.monotonic() - started,
    )


def _central(dataset: Dataset, chosen: DemoSettings, view: View) -> Arm:
    """Train here, on all images; in a thread, so that the view stays alive."""
    measured: list[float] = []
    failures: list[BaseException] = []

    def train() -> None:
        try:
            measured.append(comparison.centralized(dataset, chosen).accuracy)
        except BaseException as error:  # raised again below
            failures.append(error)

    started = time.monotonic()
    with view.arm("centralised") as show:
        show(Moment(note=f"training on all {len(dataset.train)} images in one place"))
        thread = threading.Thread(target=train, name="fedmq-central", daemon=True)
        thread.start()
        thread.join()
        if failures:
            raise failures[0]
        show(Moment(note="", accuracy=measured[0]))
    return Arm(name="centralised", accuracy=measured[0], seconds=time.monotonic() - started)


class _Demo:
    """Runs federations of one setting."""

    def __init__(self, options: Options, chosen: DemoSettings, dataset: Dataset) -> None:
        self._app = APPS[options.app]
        self._data_dir = options.data_dir
        self._settings = chosen
        self._dataset = dataset

    def federate(self, name: str, tables: Mapping[str, Mapping[str, Any]], folder: Path, view: View) -> Arm:
        """Run one federation from its first process to its last."""
        started = time.monotonic()
        with view.arm(name) as show, LocalFederation(folder, tables) as federation:
            show(Moment(note="starting a broker" if "privacy" not in tables else "calibrating the noise"))
            federation.start_broker()
            federation.start_workers(self._app, [self._node(i) for i in range(self._settings.workers)])
            federation.wait(
                _Watch(self, federation.state, tables["stop"]["versions"], show),
                revived=lambda why: click.echo(f"{name}: {why}", err=True),
            )
            seconds = time.monotonic() - started
            made = _made(federation.state)
            accuracy = self.measure(federation.state, made.versions)
            show(
                Moment(
                    note="",
                    version=made.versions,
                    versions=made.versions,
                    updates=made.updates,
                    accuracy=accuracy,
                )
            )
        return Arm(name=name, accuracy=accuracy, seconds=seconds, made=made)

    def measure(self, state: Path, version: int) -> float:
        """Accuracy of a version on all test images.

        Raises
        ------
        StateError
            When it is not kept any more.
        """
        store = VersionStore(state / "versions")
        weights = unpack(store.layout(version), store.file(version))
        return network.measure(weights, self._dataset.test).accuracy

    def _node(self, index: int) -> dict[str, str]:
        # A secret of its own, so that nobody can tell from the public seed who is in a private sample.
        node = self._settings.node(index) | {"secret": secrets.token_hex(16)}
        return node if self._data_dir is None else node | {"data_dir": str(self._data_dir.absolute())}


class _Watch:
    """Turns what a broker says of itself into moments."""

    def __init__(self, demo: _Demo, state: Path, versions: int, show: Show) -> None:
        self._demo = demo
        self._state = state
        self._versions = versions
        self._show = show
        self._measured: int | None = None
        self._accuracy: float | None = None

    def __call__(self, status: Status) -> None:
        version = status["version"]
        if version is not None and version != self._measured:
            try:
                self._accuracy = self._demo.measure(self._state, version)
                self._measured = version
            except StateError:  # replaced by a newer one since; that one will be measured
                pass
        self._show(
            Moment(
                note=crowd(status),
                version=version or 0,
                versions=self._versions,
                updates=status["updates"]["accepted"],
                accuracy=self._accuracy,
            )
        )


def _made(state: Path) -> Made:
    with History.open(state / "journal.db") as journal:
        summary, versions = journal.summary(), journal.history()
    return Made(
        versions=summary["version"],
        updates=sum(row["updates"] for row in versions),
        bytes_up=summary["counts"]["bytes_up"],
        bytes_down=summary["counts"]["bytes_down"],
        digest=summary["digest"],
        kernels=kernels.backend,
    )


def _spent(state: Path, chosen: DemoSettings) -> Spend:
    """What the private federation did, as its own journal and state folder say."""
    noise_multiplier = read_identity(state).noise_multiplier
    assert noise_multiplier is not None  # a private federation always has one
    with History.open(state / "journal.db") as journal:
        steps = journal.privacy_steps()
    return Spend(noise_multiplier, chosen.private.sampling_rate, steps)


def _check_installed(options: Options) -> None:
    needed = [_ACCOUNTING]
    needed += [_DIGITS] if options.data == "digits" else []
    needed += [_TORCH] if options.app == "torch" else []
    missing = [(name, extra) for module, name, extra in needed if importlib.util.find_spec(module) is None]
    if missing:
        names, extras = zip(*missing, strict=True)
        raise ConfigError(
            f"fedmq demo needs {' and '.join(names)}, not installed here: pip install 'fedmq[{','.join(extras)}]'"
        )
