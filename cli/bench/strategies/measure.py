"""All races of a run, seed by seed, on as many processes as there are cores."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from ...demo import data
from . import race
from .central import centralized
from .earlier import NOTHING, Earlier
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
        """The median time to an accuracy, in virtual seconds; None where half of the seeds never get there."""
        return _median([race.crossing(curve, accuracy) for curve in self.curves])

    def sent(self, accuracy: float) -> float | None:
        """The median of the bytes that all workers had sent by then."""
        return _median([race.sent_by(curve, race.crossing(curve, accuracy)) for curve in self.curves])


class Found(msgspec.Struct, kw_only=True):
    """A run of the benchmark, as far as it came."""

    setting: Setting
    seeds: int
    data: str
    measured_on: str
    central: list[float] = []
    """Accuracies of central training; empty where it was not asked for."""
    races: list[Measured] = []


def _median(values: Sequence[float | None]) -> float | None:
    """With None for never, which is later than any time."""
    median = float(np.median([np.inf if value is None else value for value in values]))
    return median if np.isfinite(median) else None


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
    found: Found,
    topics: Sequence[str],
    dataset: data.Dataset,
    *,
    processes: int,
    show: Show,
    earlier: Earlier = NOTHING,
    keep: Callable[[], None] = lambda: None,
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
    earlier : Earlier
        What is there already, and is not run again.
    keep : callable
        Called when there is more in `found` that is whole.
    """
    setting, seeds = found.setting, range(found.seeds)
    chosen = [entry for topic in topics for entry in entries(topic, setting)]
    central = [_Job(None, seed) for seed in seeds if "accuracy" in topics]
    jobs = central + [_Job(entry, seed) for entry in chosen for seed in seeds]
    done: dict[_Job, Any] = dict(zip(central, earlier.central, strict=False))
    for entry in chosen:
        done.update((_Job(entry, seed), curve) for seed, curve in enumerate(earlier.curves(entry)))

    def gather() -> None:
        """Put what is whole where it is shown, in order."""
        if central and not found.central and all(each in done for each in central):
            found.central = [done[each] for each in central]
        for entry in chosen[len(found.races) :]:
            if not all(_Job(entry, seed) in done for seed in seeds):
                return
            found.races.append(Measured(entry, [done[_Job(entry, seed)] for seed in seeds]))

    gather()
    left = [job for job in jobs if job not in done]
    with closing(_results(left, setting, dataset, processes)) as results:
        for job, result in results:
            done[job] = result
            show(len(done), len(jobs), job.title)
            whole = len(found.races), len(found.central)
            gather()
            if whole != (len(found.races), len(found.central)):
                keep()


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


def _results(
    jobs: list[_Job], setting: Setting, dataset: data.Dataset, processes: int
) -> Generator[tuple[_Job, Any], None, None]:
    """Each job with its result, as they end."""
    if processes == 1 or not jobs:
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
    except BaseException:
        # Nobody waits for a race whose result is not wanted any more.
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_received: tuple[Setting, data.Dataset]
"""In a child."""


def _receive(setting: Setting, dataset: data.Dataset) -> None:
    global _received
    _received = setting, dataset
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches all of a terminal; the parent ends its children
    os.nice(1)


def _run(job: _Job) -> "Curve | float":
    return job.run(*_received)
