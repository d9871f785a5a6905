"""All races of a run, seed by seed, on as many processes as there are cores."""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from ...demo import data
from . import race
from .central import centralized
from .race import Curve, Entry
from .settings import Setting, entries

__all__ = ["VALIDATION_SEED", "Found", "Measured", "images", "measure"]

VALIDATION_SEED: Final = 7
_VALIDATION_SHARE: Final = 1 / 6
_TEST_IMAGES_QUICK: Final = 2000

Show = Callable[[int, int, str], None]
"""Takes how many races of how many are done, and what the last one was."""


class Measured(msgspec.Struct, frozen=True):
    """An entry, and its curve with every seed."""

    entry: Entry
    curves: list[Curve]

    @property
    def final(self) -> float:
        """The median of the seeds' last accuracies."""
        return float(np.median([curve.final for curve in self.curves]))

    def crossing(self, accuracy: float) -> float | None:
        """The median time to an accuracy; None where half of the seeds never get there."""
        times = [race.crossing(curve, accuracy) for curve in self.curves]
        median = float(np.median([np.inf if time is None else time for time in times]))
        return median if np.isfinite(median) else None


class Found(msgspec.Struct, kw_only=True):
    """A run of the benchmark, as far as it came."""

    setting: Setting
    seeds: int
    data: str
    measured_on: str
    central: list[float] = []
    """Accuracies of central training; empty where it was not asked for."""
    races: list[Measured] = []


def images(
    data_dir: Path | None, *, most: int, validation: bool, name: str = "fashion-mnist"
) -> data.Dataset:
    """What a benchmark trains and is measured on.

    Parameters
    ----------
    data_dir : path or None
        Where fashion-mnist's files are.
    most : int
        Training images at most, the first ones; 0 for all. With fewer there are fewer test images as well.
    validation : bool
        Whether a sixth of the training images stands in the place of the test images.
    name : str

    Raises
    ------
    ConfigError
        When the data set is not installed.
    """
    dataset = data.load(name, data_dir=data_dir)
    train, test = dataset.train, dataset.test
    if validation:
        train, test = data.split(train, share=_VALIDATION_SHARE, seed=VALIDATION_SEED)
    if most:
        train, test = (
            train.take(np.arange(min(most, len(train)))),
            test.take(np.arange(min(_TEST_IMAGES_QUICK, len(test)))),
        )
    return data.Dataset(dataset.name, train, test, dataset.classes)


def measure(
    found: Found, topics: Sequence[str], dataset: data.Dataset, *, processes: int, show: Show
) -> None:
    """Run the races of some topics and put what comes of them into `found`, entry by entry.

    Parameters
    ----------
    found : Found
        Filled as races end, so that what there is when somebody stops it is whole entries.
    topics : sequence of str
    dataset : Dataset
    processes : int
        Each race is a process's own; 1 runs them here.
    show : callable
    """
    setting, seeds = found.setting, range(found.seeds)
    chosen = [entry for topic in topics for entry in entries(topic, setting)]
    central = [_Job(None, seed) for seed in seeds if "accuracy" in topics]
    jobs = central + [_Job(entry, seed) for entry in chosen for seed in seeds]
    done: dict[_Job, Any] = {}
    curves = 0
    for job, result in _results(jobs, setting, dataset, processes):
        done[job] = result
        show(len(done), len(jobs), job.title)
        if central and not found.central and all(each in done for each in central):
            found.central = [done[each] for each in central]
        while curves < len(chosen) and all(_Job(chosen[curves], seed) in done for seed in seeds):
            entry = chosen[curves]
            found.races.append(Measured(entry, [done[_Job(entry, seed)] for seed in seeds]))
            curves += 1


class _Job(msgspec.Struct, frozen=True):
    """One race; without an entry, central training."""

    entry: Entry | None
    seed: int

    @property
    def title(self) -> str:
        if self.entry is None:
            return "central training"
        entry = self.entry
        return ", ".join(part for part in (entry.name, entry.condition, entry.partition) if part)

    def run(self, setting: Setting, dataset: data.Dataset) -> "Curve | float":
        if self.entry is None:
            return centralized(
                dataset,
                epochs=setting.central_epochs,
                lr=setting.central_lr,
                batch=setting.batch,
                seed=self.seed,
            )
        return race.run(self.entry, dataset, self.seed)


def _results(jobs: list[_Job], setting: Setting, dataset: data.Dataset, processes: int) -> Any:
    """Each job with its result, as they end."""
    if processes == 1:
        for job in jobs:
            yield job, job.run(setting, dataset)
        return
    # Not forked: a child of a process with threads may hang. Each gets the images once.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, _receive, (setting, dataset))
    try:
        waiting = {pool.submit(_run, job): job for job in jobs}
        while waiting:
            ended, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in ended:
                yield waiting.pop(future), future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_received: tuple[Setting, data.Dataset]
"""In a child."""


def _receive(setting: Setting, dataset: data.Dataset) -> None:
    global _received
    _received = setting, dataset
    os.nice(1)


def _run(job: _Job) -> "Curve | float":
    return job.run(*_received)
