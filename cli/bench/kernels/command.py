"""`fedmq bench kernels`: how fast is the arithmetic here, and what would the others take?"""

import os
from pathlib import Path

import click

from ...json_file import json_option, write_json
from ...logs import log_options
from ..options import plot_option

BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def _thread_counts(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...]:
    """``1,2``; without the option one thread, and all that there are."""
    if value is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return tuple(sorted({1, cores}))
    counts = [int(part) for part in value.split(",") if part.strip().isdigit()]
    if len(counts) != len(value.split(",")) or not all(1 <= count <= 256 for count in counts):
        raise click.BadParameter(f"{value!r} is no list of numbers from 1 to 256, as 1,2", ctx, param)
    return tuple(sorted(set(counts)))


@click.command()
@click.option(
    "--quick", is_flag=True, help="A tenth of the values: under a minute, and not the bars' figures."
)
@click.option(
    "--n",
    type=click.IntRange(16, 10**9),
    help="Values in an update.  [default: 10,000,000; quick: 1,000,000]",
)
@click.option("--k", type=click.IntRange(4, 1000), default=32, show_default=True, help="Updates.")
@click.option(
    "--threads", callback=_thread_counts, metavar="T,…", help="With how many threads.  [default: 1, and all]"
)
@json_option
@plot_option("the figures")
@log_options
def kernels(
    quick: bool, n: int | None, k: int, threads: tuple[int, ...], json_file: Path | None, plot: Path | None
) -> None:
    """Measure the kernels against the memory's limit and their peers.

    The roofline, the native kernels, their numpy twins, plain numpy, torch and Flower (where installed) take turns
    in one process. The figures are medians; Ctrl-C shows those that there are. What the kernels are meant
    to reach is at the end, for the default sizes: 5.4 GB of memory and about five minutes.

    \b
    Example:
      fedmq bench kernels
      fedmq bench kernels --quick --threads 1
      fedmq bench kernels --json figures.json --plot figures.png
    """
    # Peers that compute with numpy have one thread, and its BLAS reads how many when it is loaded.
    for name in BLAS_THREADS:
        os.environ.setdefault(name, "1")
    from ...processes import leave_on_signals
    from ...progress import view
    from . import machine
    from . import plot as picture
    from .report import lines
    from .run import Found, measure
    from .workload import BAR_N, QUICK_N, Workload, check_memory

    picture.check(plot)
    workload = Workload(n=n or (QUICK_N if quick else BAR_N), k=k, threads=threads)
    check_memory(workload, machine.free_bytes())
    found = Found(workload=workload, machine=machine.facts())
    interrupted = False
    with leave_on_signals(), view() as shown:
        try:
            measure(workload, shown, found)
        except KeyboardInterrupt:
            interrupted = True
    if not write_json(found.document(), json_file):
        click.echo("\n".join(lines(found)))
    if plot is not None:
        picture.draw(found, plot)
    if interrupted:
        raise KeyboardInterrupt
