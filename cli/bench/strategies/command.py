"""`fedmq bench strategies`: who is at which accuracy when?"""

import os
from pathlib import Path

import click

from ...json_file import json_option, keep_json, write_json
from ...logs import log_options
from ..options import data_dir_option, from_option, only_option, plot_option, seeds_option, validation_option
from .topics import TOPICS

BLAS_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


@click.command()
@only_option("topics", "TOPIC", TOPICS)
@seeds_option
@click.option(
    "--quick",
    is_flag=True,
    help="A tenth of the images, a fifth of the rounds: under a minute, to see it work; not the figures to quote.",
)
@click.option(
    "--processes", type=click.IntRange(1, 256), help="Races at a time.  [default: one for each core]"
)
@data_dir_option
@validation_option
@from_option
@json_option
@plot_option("accuracy over time")
@log_options
def strategies(
    topics: tuple[str, ...],
    seeds: int | None,
    quick: bool,
    processes: int | None,
    data_dir: Path | None,
    validation: bool,
    earlier: tuple[Path, ...],
    json_file: Path | None,
    plot: Path | None,
) -> None:
    """Race ways of aggregating against each other, on real images and virtual time.

    Ten workers train the network 784-32-10 on Fashion-MNIST: the broker's real mind, real workers' minds, the real fold
    and real training, but hours of theirs take seconds here, as in `fedmq simulate`. Images are dealt evenly, or
    class by class with Dirichlet(0.5).

    \b
    accuracy     how far rounds stay below training in one place
    speed        rounds against full buffers (FedBuff), where speeds differ tenfold
    dropout      the same where fits die
    compression  the encodings of updates, over narrow links
    attackers    robust rules, with two of ten workers hostile

    The time to an accuracy is that of the smoothed curve, the mean of five versions. The same seeds give the same
    figures wherever the BLAS is the same. All of it is 174 races of three seeds, about 20 minutes of one core; Ctrl-C
    shows what there is. --json is written as it goes, and --from goes on from there.

    \b
    Example:
      fedmq bench strategies
      fedmq bench strategies --quick
      fedmq bench strategies --only speed,attackers --seeds 5
      fedmq bench strategies --json races.json --plot races.png
      fedmq bench strategies --from races.json --only attackers --plot attackers.png
    """
    # Each race is one process's, and small: threads of a BLAS would only get into each other's way.
    for name in BLAS_THREADS:
        os.environ.setdefault(name, "1")
    from ...processes import leave_on_signals
    from ...progress import Moment, view
    from ..kernels import plot as picture
    from . import plot as curves
    from .earlier import recall
    from .measure import Found, images, measure
    from .report import document, facts, lines
    from .settings import FULL, QUICK

    picture.check(plot)
    setting = QUICK if quick else FULL
    dataset = images(data_dir, most=setting.images, validation=validation)
    found = Found(
        setting=setting,
        seeds=seeds or (1 if quick else 3),
        data=f"{dataset.name}, {len(dataset.train):,} images",
        measured_on=f"{len(dataset.test):,} {'validation' if validation else 'test'} images",
    )
    known = recall(earlier, facts(found))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    interrupted = False
    with leave_on_signals(), view() as shown, shown.arm("strategies") as show:
        try:
            measure(
                found,
                topics,
                dataset,
                processes=processes or cores,
                earlier=known,
                keep=keep_json(lambda: document(found), json_file),
                show=lambda done, of, note: show(
                    Moment(counted="race", version=done, versions=of, note=note)
                ),
            )
        except KeyboardInterrupt:
            interrupted = True
    if not write_json(document(found), json_file):
        click.echo("\n".join(lines(found)))
    if plot is not None and found.races:
        curves.draw(found, plot)
    if interrupted:
        raise KeyboardInterrupt
