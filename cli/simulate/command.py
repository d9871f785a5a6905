"""`fedmq simulate`: what would so many workers do?"""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..json_file import json_option, write_json
from ..logs import log_options

if TYPE_CHECKING:
    from fedmq.fedcore.config import Config

    from .crowd import Crowd

QUICK_WORKERS, QUICK_VERSIONS = 1_000, 50


@click.command()
@click.argument(
    "config_file", metavar="[CONFIG]", required=False, type=click.Path(path_type=Path, dir_okay=False)
)
@click.option("--workers", type=click.IntRange(1, 1_000_000), help="Devices.  [default: 10000]")
@click.option("--versions", type=click.IntRange(1), help="Versions to make.  [default: CONFIG's, else 200]")
@click.option(
    "--mode",
    type=click.Choice(["async", "sync"]),
    default="async",
    show_default=True,
    help="A version per full buffer, or per round; where there is no CONFIG.",
)
@click.option(
    "--buffer",
    type=click.IntRange(1, 100_000),
    help="Updates that make a version.  [default: workers / 1000, 10 or more]",
)
@click.option(
    "--concurrency", type=click.IntRange(1), help="Fits that are out at a time.  [default: 10 x buffer]"
)
@click.option(
    "--beat",
    metavar="TIME",
    help="Silence after which a peer says that it lives.  [default: CONFIG's, else 10 s, or longer for a crowd]",
)
@click.option(
    "--speed",
    default="lognormal:10s,1.0",
    show_default=True,
    metavar="DIST",
    help="How long a fit takes; drawn once for each device, and each fit takes 0.8 to 1.25 times that.",
)
@click.option(
    "--availability",
    default="always",
    show_default=True,
    metavar="SHARE[:TIME]",
    help="How much of the time a device is on, and for how long at a time.",
)
@click.option(
    "--dropout",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.0,
    show_default=True,
    help="How likely a device dies in the middle of a fit; it is back after some minutes.",
)
@click.option(
    "--latency", default="lognormal:50ms,0.5", show_default=True, metavar="DIST", help="Of each message."
)
@click.option(
    "--bandwidth",
    metavar="DIST",
    help="Bytes a second of each device, such as lognormal:1MiB,1; with --model-size.",
)
@click.option(
    "--model-size", default="0", metavar="SIZE", help="What each device fetches and sends, such as 10MiB."
)
@click.option(
    "--slots",
    type=click.IntRange(1, 16),
    default=1,
    show_default=True,
    help="Tasks that a worker takes at a time.",
)
@click.option(
    "--fsync", default="uniform:1ms,5ms", show_default=True, metavar="DIST", help="Of the broker's disk."
)
@click.option(
    "--train",
    type=click.Choice(["noop", "digits"]),
    default="noop",
    show_default=True,
    help="Nothing, or the demo's network on handwritten digits, for real.",
)
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True)
@click.option(
    "--quick",
    is_flag=True,
    help=f"{QUICK_WORKERS} workers and {QUICK_VERSIONS} versions, if not said otherwise.",
)
@json_option
@log_options
def simulate(
    config_file: Path | None,
    workers: int | None,
    versions: int | None,
    mode: str,
    buffer: int | None,
    concurrency: int | None,
    beat: str | None,
    speed: str,
    availability: str,
    dropout: float,
    latency: str,
    bandwidth: str | None,
    model_size: str,
    slots: int,
    fsync: str,
    train: str,
    seed: int,
    quick: bool,
    json_file: Path | None,
) -> None:
    """Ask what a crowd of devices would do, before there is one.

    The broker's real mind and as many real workers' minds run on virtual time in this process: no sockets, no disk,
    and, unless --train digits says so, no training. Devices differ in speed, are off for some of the time, and die in
    the middle of a fit, as the options say. Hours of theirs take minutes here.

    It tells how many updates a second there would be, how stale they are, how long so many versions take, and how many
    messages the broker would have to bear. The same options and seed give the same figures.

    CONFIG is a federation.toml: its mode, network and stop tables are followed. Without one the federation is
    asynchronous, and sized for the crowd.

    \b
    DIST is one of
      10s                  always that
      uniform:5s,20s       anything between
      exponential:10s      memoryless, with this mean
      lognormal:10s,1.0    median, and the standard deviation of the logarithm: few are very slow

    \b
    Example:
      fedmq simulate --quick
      fedmq simulate --workers 100000 --versions 1000
      fedmq simulate federation.toml --workers 5000 --availability 0.3:2h --dropout 0.05
      fedmq simulate --workers 2000 --bandwidth lognormal:500KiB,1 --model-size 20MiB
      fedmq simulate --train digits --workers 100 --versions 100 --buffer 10
      fedmq simulate --mode sync --buffer 100 --workers 10000 --json figures.json
    """
    from ..processes import leave_on_signals
    from ..progress import Moment, view
    from . import distributions, figures
    from .crowd import Crowd, default_config
    from .crowd import availability as read_availability
    from .engine import Simulation

    beat_s = None if beat is None else distributions.quantity(beat)
    crowd = Crowd(
        workers=workers or (QUICK_WORKERS if quick else 10_000),
        speed=distributions.parse(speed),
        availability=read_availability(availability),
        dropout=dropout,
        latency=distributions.parse(latency),
        bandwidth=None if bandwidth is None else distributions.parse(bandwidth, distributions.BYTES),
        model_bytes=distributions.quantity(model_size, distributions.BYTES),
        slots=slots,
        fsync=distributions.parse(fsync),
        train="digits" if train == "digits" else "noop",
        seed=seed,
    )
    if config_file is not None:
        if buffer or concurrency:
            raise click.UsageError("with a CONFIG its [mode] says buffer and concurrency")
        config = _configured(config_file, versions or (QUICK_VERSIONS if quick else None), crowd, beat_s)
    else:
        made = versions or (QUICK_VERSIONS if quick else 200)
        config = default_config(
            crowd.workers, made, mode=mode, buffer=buffer, concurrency=concurrency, beat_s=beat_s
        )
    with leave_on_signals(), view() as shown, shown.arm("simulate") as show:

        def told(version: int, updates: int, now: float) -> None:
            note = f"{figures.duration(now)} of theirs, {crowd.workers:,} workers"
            show(Moment(version=version, versions=config.stop.versions, updates=updates, note=note))

        report = Simulation(config, crowd).run(told)
    if not write_json(figures.document(report), json_file):
        click.echo("\n".join(f"{name:<11} {text}" for name, text in figures.lines(report)))


def _configured(file: Path, versions: int | None, crowd: "Crowd", beat_s: float | None) -> "Config":
    import msgspec

    from fedmq.fedcore import config as configs

    from .crowd import LEASE_BEATS, fitted

    config = fitted(configs.load(file), versions, crowd.train)
    if beat_s is None:
        return config
    network = msgspec.structs.replace(config.network, beat_s=beat_s, lease_s=LEASE_BEATS * beat_s)
    return msgspec.structs.replace(config, network=network)
