"""`fedmq demo`: see a federation run, and what it costs in accuracy."""

import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedmq.fedcore.errors import ConfigError

from ..json_file import json_option, write_json
from ..logs import log_options

if TYPE_CHECKING:
    from .report import Report


@click.command()
@click.option(
    "--data",
    type=click.Choice(["digits", "fashion-mnist"]),
    default="digits",
    show_default=True,
    help="Which images.",
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of fashion-mnist's four IDX files.  [default: Debian's]",
)
@click.option("--workers", type=click.IntRange(1, 64), default=5, show_default=True, help="Worker processes.")
@click.option(
    "--mode",
    type=click.Choice(["async", "sync"]),
    default="async",
    show_default=True,
    help="A version per full buffer, or per round of all workers.",
)
@click.option(
    "--partition",
    default="iid",
    show_default=True,
    metavar="iid|dirichlet:ALPHA",
    help="How images are dealt to workers; with dirichlet:0.5 they see different classes.",
)
@click.option(
    "--app",
    type=click.Choice(["numpy", "torch"]),
    default="numpy",
    show_default=True,
    help="What the workers train with.",
)
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True)
@json_option
@click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Work in this new folder, and keep it.",
)
@click.option("--keep", is_flag=True, help="Keep the temporary folder.")
@log_options
def demo(
    data: str,
    data_dir: Path | None,
    workers: int,
    mode: str,
    partition: str,
    app: str,
    seed: int,
    json_file: Path | None,
    state: Path | None,
    keep: bool,
) -> None:
    """Train on real images with a real broker and real workers, and compare.

    It starts a broker process and worker processes on this machine, each worker with images that the others
    never see. The same network is trained centrally, in a federation, and in a federation with differential
    privacy for every image, and measured on the same test images. Nothing is downloaded.

    With --mode sync the model is the same, bit for bit, in every run with the same seed. Kill the broker while it
    trains, if you like: it is started again, goes on where it was, and nothing changes.

    \b
    Example:
      fedmq demo
      fedmq demo --mode sync --partition dirichlet:0.5 --json -
      fedmq demo --state demo && fedmq history demo/federated/state
    """
    from ..processes import ONE_THREAD, leave_on_signals
    from ..progress import view

    if "numpy" not in sys.modules:  # it reads them when it is imported, which is now
        os.environ.update(ONE_THREAD)
    from .run import Options, compare

    options = Options(
        data=data, data_dir=data_dir, workers=workers, mode=mode, partition=partition, app=app, seed=seed
    )
    logging.getLogger("fedmq.fedcore").setLevel(logging.WARNING)
    with leave_on_signals(), _folder(state, keep=keep) as folder:
        with view() as shown:
            report = compare(options, folder, shown)
        _write(report, json_file)


@contextlib.contextmanager
def _folder(state: Path | None, *, keep: bool) -> Iterator[Path]:
    """Where to work: a folder that is removed afterwards, unless it is to be kept."""
    if state is None and not keep:
        with tempfile.TemporaryDirectory(prefix="fedmq-demo-") as name:
            yield Path(name)
        return
    if state is None:
        state = Path(tempfile.mkdtemp(prefix="fedmq-demo-"))
    elif state.exists() and any(state.iterdir()):
        raise ConfigError(f"--state {state} is not empty; name a new folder")
    try:
        yield state
    finally:
        click.echo(f"everything is kept in {state}", err=True)


def _write(report: "Report", json_file: Path | None) -> None:
    from .report import footnotes, lines, rich_table, title

    if write_json(report.document(), json_file):
        return
    notes = [*footnotes(report), f"The whole comparison took {report.seconds:.1f} s."]
    if not sys.stdout.isatty() or not _has_rich():
        click.echo("\n".join([title(report), "", *lines(report), "", *notes]))
        return
    from rich.console import Console

    console = Console(highlight=False)
    console.print()
    console.print(rich_table(report))
    for note in notes:
        console.print(note, style="dim")


def _has_rich() -> bool:
    try:
        import rich.table  # noqa: F401
    except ModuleNotFoundError:  # a bare install: plain lines
        return False
    return True
