"""`fedmq bench privacy`: what does differential privacy cost?"""

import importlib.util
from pathlib import Path

import click

from ...json_file import json_option, keep_json, write_json
from ...logs import log_options
from ..options import data_dir_option, from_option, only_option, plot_option, seeds_option, validation_option

KINDS = ("network", "once", "each", "worker")


def _epsilons(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[float, ...]:
    """``3,1``; without the option none, which leaves it to the setting."""
    if value is None:
        return ()
    try:
        chosen = tuple(float(part) for part in value.split(","))
    except ValueError:
        chosen = (0.0,)
    if not all(0 < epsilon <= 1000 for epsilon in chosen):
        raise click.BadParameter(f"{value!r} is no list of numbers from 0 to 1000, as 3,1", ctx, param)
    return tuple(dict.fromkeys(chosen))


@click.command()
@only_option("kinds", "KIND", KINDS)
@click.option(
    "--epsilon",
    "epsilons",
    callback=_epsilons,
    metavar="E,…",
    help="Budgets.  [default: 8,3,1; quick: 3]",
)
@seeds_option
@click.option(
    "--quick",
    is_flag=True,
    help="A tenth of the images and fewer steps: under a minute, to see it work; not the figures to quote.",
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    metavar="DIR",
    help="Keep the scattering features there (1.1 GB), and find them again.",
)
@data_dir_option
@validation_option
@from_option
@json_option
@plot_option("accuracy over epsilon, and over the number of workers")
@log_options
def privacy(
    kinds: tuple[str, ...],
    epsilons: tuple[float, ...],
    seeds: int | None,
    quick: bool,
    cache: Path | None,
    data_dir: Path | None,
    validation: bool,
    earlier: tuple[Path, ...],
    json_file: Path | None,
    plot: Path | None,
) -> None:
    """Measure what differential privacy costs, on real images.

    Fashion-MNIST, ten workers, at epsilon 8, 3 and 1:

    \b
    network  784-32-10 on pixels: in one place, federated, and with the noise drawn once
    once     a linear model on scattering features, the noise drawn once by the broker
    each     the same, every worker drawing its own
    worker   softmax regression where all images of a worker are hidden together: with 10 to
             3,000 workers, since it takes many

    Epsilon is what the accountant says of the mechanism that runs: privacy-loss distributions for Poisson-sampled
    steps, the exact formula where nothing is sampled. It takes about a quarter of an hour, a minute of it for
    the features, and 4 GB of memory. Ctrl-C shows what there is. --json is written as it goes, and --from goes on
    from there.

    \b
    Example:
      fedmq bench privacy
      fedmq bench privacy --quick
      fedmq bench privacy --only once --epsilon 3 --cache /var/tmp
      fedmq bench privacy --json privacy.json --plot privacy.png
      fedmq bench privacy --from privacy.json --plot again.png
    """
    import msgspec

    from fedmq.fedcore.errors import ConfigError

    from ...processes import leave_on_signals
    from ...progress import view
    from ..kernels import plot as picture
    from ..strategies import settings as federations
    from ..strategies.measure import images
    from . import plot as curves
    from .earlier import recall
    from .measure import measure
    from .report import Run, document, facts, lines
    from .settings import FULL, QUICK

    picture.check(plot)
    if set(kinds) != {"worker"} and importlib.util.find_spec("dp_accounting") is None:
        raise ConfigError(
            "this needs the library dp-accounting; install it with: pip install 'fedmq[privacy]'"
        )
    setting, plain = (QUICK, federations.QUICK) if quick else (FULL, federations.FULL)
    if epsilons:
        setting = msgspec.structs.replace(setting, epsilons=epsilons)
    dataset = images(data_dir, most=setting.images, validation=validation)
    run = Run(
        setting=setting,
        seeds=seeds or (1 if quick else 3),
        data=f"{dataset.name}, {len(dataset.train):,} images",
        measured_on=f"{len(dataset.test):,} {'validation' if validation else 'test'} images",
    )
    known = recall(earlier, facts(run))
    interrupted = False
    with leave_on_signals(), view() as shown:
        try:
            measure(
                run,
                kinds,
                dataset,
                plain,
                cache=cache,
                shown=shown,
                earlier=known,
                keep=keep_json(lambda: document(run), json_file),
            )
        except KeyboardInterrupt:
            interrupted = True
    if not write_json(document(run), json_file):
        click.echo("\n".join(lines(run)))
    if plot is not None and run.found:
        curves.draw(run, plot)
    if interrupted:
        raise KeyboardInterrupt
