"""`fedmq bench`: how fast is it here?"""

import platform
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..json_file import json_option, write_json
from ..logs import log_options
from .kernels.command import kernels
from .privacy.command import privacy
from .strategies.command import strategies

if TYPE_CHECKING:
    from .federation import Measured
    from .flower import FlowerMeasured


_folder_option = click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="A folder on the disk to measure.  [default: that of temporary files]",
)


@click.group(commands=[kernels, strategies, privacy])
@log_options
def bench() -> None:
    """Measure fedmq on this machine.

    \b
    Example:
      fedmq bench federation
      fedmq bench load --workers 10000
      fedmq bench kernels --quick
      fedmq bench fold
      fedmq bench strategies --quick
      fedmq bench privacy --quick
    """


@bench.command()
@click.option(
    "--n", type=click.IntRange(1, 10**9), default=1000, show_default=True, help="Floats in the model."
)
@click.option("--workers", type=click.IntRange(1, 64), default=2, show_default=True, help="Worker processes.")
@click.option(
    "--rounds",
    type=click.IntRange(2, 10**6),
    help="Rounds that are counted.  [default: 300; fewer of large models]",
)
@click.option(
    "--mode",
    type=click.Choice(["sync", "async"]),
    default="sync",
    show_default=True,
    help="A version per round, or per buffer of as many updates as there are workers.",
)
@click.option(
    "--buffer",
    type=click.IntRange(1, 10**6),
    help="Updates in a version, in async mode.  [default: as many as there are workers]",
)
@click.option(
    "--slots",
    type=click.IntRange(1, 64),
    default=2,
    show_default=True,
    help="Tasks that a worker has in hand at a time.",
)
@click.option(
    "--durability",
    type=click.Choice(["os", "fsync", "both"]),
    default="both",
    show_default=True,
    help="Whether what is accepted survives a power cut.",
)
@click.option(
    "--encoding",
    type=click.Choice(["f32", "f16", "bf16", "i8"]),
    default="f32",
    show_default=True,
    help="What updates travel as.",
)
@click.option(
    "--downlink",
    type=click.Choice(["f32", "f16", "bf16"]),
    default="f32",
    show_default=True,
    help="What the model travels as.",
)
@click.option(
    "--flower/--no-flower",
    default=None,
    help="Whether to measure Flower's gRPC stream beside it.  [default: where it is installed]",
)
@_folder_option
@json_option
@log_options
def federation(
    n: int,
    workers: int,
    rounds: int | None,
    mode: str,
    buffer: int | None,
    slots: int,
    durability: str,
    encoding: str,
    downlink: str,
    flower: bool | None,
    folder: Path | None,
    json_file: Path | None,
) -> None:
    """Measure a federation whose training does nothing.

    A real broker process and real worker processes on loopback: what a round takes, how many updates and bytes
    pass in a second, what memory the broker holds, and how long an fsync takes on the disk that it wrote to. Where
    Flower is installed the same is done with its gRPC stream, in rounds.

    \b
    Example:
      fedmq bench federation
      fedmq bench federation --n 100000000 --durability os
      fedmq bench federation --workers 8 --mode async --buffer 64 --slots 3
      fedmq bench federation --n 10000000 --workers 4 --encoding f16 --downlink f16
    """
    import msgspec

    from ..processes import leave_on_signals
    from ..progress import Moment, view
    from . import federation as bench_federation
    from . import flower as bench_flower

    chosen = [
        bench_federation.Setting(
            n=n,
            workers=workers,
            rounds=rounds or bench_federation.default_rounds(n),
            mode=mode,
            durability=kind,
            buffer=buffer or 0,
            slots=slots,
            encoding=encoding,
            downlink=downlink,
        )
        for kind in (("os", "fsync") if durability == "both" else (durability,))
    ]
    with (
        leave_on_signals(),
        tempfile.TemporaryDirectory(prefix="fedmq-bench-", dir=folder) as scratch,
        view() as shown,
    ):
        found = [bench_federation.measure(s, Path(scratch) / s.durability, shown) for s in chosen]
        peer = None
        if bench_flower.is_installed() if flower is None else flower:
            with shown.arm("flower") as show:
                show(Moment(note="the same in Flower"))
                peer = bench_flower.measure_flower(
                    n=n, workers=workers, rounds=chosen[0].rounds, folder=Path(scratch)
                )
    document = {
        "n": n,
        "workers": workers,
        "mode": mode,
        "encoding": encoding,
        "downlink": downlink,
        "machine": platform.platform(),
        "runs": [_document(measured) for measured in found],
        "flower": None if peer is None else msgspec.structs.asdict(peer),
    }
    _write(document, found, peer, json_file)


@bench.command()
@click.option("--workers", type=click.IntRange(1, 100_000), default=10_000, show_default=True)
@click.option(
    "--processes",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    help="That the workers are spread over.",
)
@click.option(
    "--rate",
    type=click.FloatRange(1, 1e6),
    default=1000,
    show_default=True,
    help="Updates a second that they try to deliver.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(1),
    default=30,
    show_default=True,
    help="How long the load lasts.",
)
@click.option(
    "--idle",
    type=click.FloatRange(1),
    default=15,
    show_default=True,
    help="How long they only beat before it.",
)
@click.option(
    "--n", type=click.IntRange(1, 10**6), default=1000, show_default=True, help="Floats in the model."
)
@click.option(
    "--buffer", type=click.IntRange(1, 10**6), default=64, show_default=True, help="Updates in a version."
)
@click.option(
    "--durability",
    type=click.Choice(["os", "fsync"]),
    default="fsync",
    show_default=True,
    help="Whether what is accepted survives a power cut.",
)
@_folder_option
@json_option
@log_options
def load(
    workers: int,
    processes: int,
    rate: float,
    seconds: float,
    idle: float,
    n: int,
    buffer: int,
    durability: str,
    folder: Path | None,
    json_file: Path | None,
) -> None:
    """Measure one broker that thousands of workers are connected to.

    They all connect at once; they idle; they deliver small updates at a rate; then the broker is killed and started
    again, and everybody comes back by itself. The workers are real minds over plain connections, many in a
    process, and train by waiting.

    \b
    Example:
      fedmq bench load
      fedmq bench load --workers 2000 --seconds 600
    """
    import msgspec

    from ..processes import leave_on_signals
    from ..progress import Moment, view
    from . import load as bench_load

    chosen = bench_load.Load(
        workers=workers,
        processes=min(processes, workers),
        rate=rate,
        seconds=seconds,
        idle_s=idle,
        floats=n,
        buffer=buffer,
        durability=durability,
    )
    with (
        leave_on_signals(),
        tempfile.TemporaryDirectory(prefix="fedmq-bench-", dir=folder) as scratch,
        view() as shown,
        shown.arm("load") as show,
    ):
        found = bench_load.measure_load(chosen, Path(scratch) / "load", lambda note: show(Moment(note=note)))
    document = {
        **msgspec.structs.asdict(chosen),
        "machine": platform.platform(),
        **msgspec.structs.asdict(found),
    }
    if not write_json({**document, "lost": found.lost}, json_file):
        click.echo("\n".join(bench_load.lines(chosen, found)))


@bench.command()
@click.option(
    "--n", type=click.IntRange(1, 10**9), default=10_000_000, show_default=True, help="Floats in the model."
)
@click.option("--k", type=click.IntRange(1, 1000), default=32, show_default=True, help="Updates.")
@click.option(
    "--optimizer",
    type=click.Choice(["sgd", "adam"]),
    default="sgd",
    show_default=True,
    help="That makes the version from the mean; adam keeps two vectors more.",
)
@click.option(
    "--durability",
    type=click.Choice(["os", "fsync", "both"]),
    default="both",
    show_default=True,
    help="Whether the version survives a power cut.",
)
@click.option("--threads", type=click.IntRange(1, 256), help="Of the kernels.  [default: all cores]")
@_folder_option
@json_option
@log_options
def fold(
    n: int,
    k: int,
    optimizer: str,
    durability: str,
    threads: int | None,
    folder: Path | None,
    json_file: Path | None,
) -> None:
    """Measure how updates in the spool become the next version's files.

    The broker's own fold, onto real files: payloads mapped from the page cache, the exact mean, the server optimizer,
    and the version written. It takes turns with a loop that reads the same payloads and does nothing with them: the
    memory's limit.

    \b
    Example:
      fedmq bench fold
      fedmq bench fold --n 1000000 --k 8 --optimizer adam --durability os
    """
    import msgspec

    from ..processes import leave_on_signals
    from ..progress import Moment, view
    from . import fold as bench_fold
    from .kernels import machine

    chosen = bench_fold.Setting(
        n=n,
        k=k,
        optimizer=optimizer,
        durability=("os", "fsync") if durability == "both" else (durability,),
        threads=threads,
    )
    with (
        leave_on_signals(),
        tempfile.TemporaryDirectory(prefix="fedmq-bench-", dir=folder) as scratch,
        view() as shown,
        shown.arm("fold") as show,
    ):
        found = bench_fold.measure_folds(chosen, Path(scratch), lambda note: show(Moment(note=note)))
    document = {
        **msgspec.structs.asdict(chosen),
        "machine": machine.facts(),
        **msgspec.to_builtins(found),
    }
    if not write_json(document, json_file):
        click.echo("\n".join(bench_fold.fold_lines(chosen, found)))


def _document(measured: "Measured") -> dict[str, Any]:
    import msgspec

    values = msgspec.structs.asdict(measured)
    return {**values, "within_bar": measured.within_bar}


def _write(
    document: dict[str, Any], found: "list[Measured]", peer: "FlowerMeasured | None", json_file: Path | None
) -> None:
    from .federation import lines, peer_lines

    if write_json(document, json_file):
        return
    crowd = f"{document['workers']} worker{'' if document['workers'] == 1 else 's'}"
    sent = f"{document['encoding']} up, {document['downlink']} down"
    click.echo(f"{document['n']} floats, {crowd}, {document['mode']}, {sent}, no training")
    for measured in found:
        click.echo()
        click.echo("\n".join(lines(measured)))
    if peer is not None:
        click.echo()
        click.echo("\n".join(peer_lines(peer, found)))
