"""How federations on this machine are shown while they run: bars on a terminal, plain lines elsewhere.

Both show the same: how many versions there are of how many, the updates in them, how good the newest version is,
where somebody measures, and what the workers are doing. They write to stderr; results go to stdout.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

import click
import msgspec

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

__all__ = ["BarView", "LineView", "Moment", "Show", "View", "view"]

_LINES: Final = 10
"""Lines that an arm may take where there is no terminal."""


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """How far an arm is.

    Attributes
    ----------
    note : str
        What goes on, in words.
    version, versions : int
        The newest version and the last that will be; 0 versions where there is nothing to count.
    updates : int
        Accepted so far.
    accuracy : float or None
        Of the newest version on the test images, if one was measured.
    counted : str
        What is counted, where it is not versions.
    """

    note: str
    version: int = 0
    versions: int = 0
    updates: int = 0
    accuracy: float | None = None
    counted: str = "version"


Show: TypeAlias = Callable[[Moment], None]


class View(Protocol):
    """Shows one arm after the other; made for a ``with`` block."""

    def arm(self, name: str) -> contextlib.AbstractContextManager[Show]:
        """Begin an arm; call what it gives with every new moment, the last one when the arm is done."""
        ...


class LineView:
    """Plain lines, a handful for each arm."""

    @contextlib.contextmanager
    def arm(self, name: str) -> Iterator[Show]:
        """One line at the start, and one for each tenth of the versions."""
        shown = -1

        def show(moment: Moment) -> None:
            nonlocal shown
            tenth = moment.version * _LINES // moment.versions if moment.versions else 0
            if tenth > shown:
                shown = tenth
                click.echo(f"{name}: {line(moment)}", err=True)

        yield show


class BarView:
    """One bar for each arm, updated in place."""

    def __init__(self, progress: "Progress") -> None:
        self._progress = progress

    @contextlib.contextmanager
    def arm(self, name: str) -> Iterator[Show]:
        """A bar that pulses until something can be counted."""
        task = self._progress.add_task(name, total=None, count="", accuracy="", note="")

        def show(moment: Moment) -> None:
            self._progress.update(
                task,
                total=moment.versions or None,
                completed=moment.version,
                count=f"{moment.version}/{moment.versions}" if moment.versions else "",
                accuracy="" if moment.accuracy is None else f"{moment.accuracy:.1%}",
                note=moment.note,
            )

        yield show
        found = next(other for other in self._progress.tasks if other.id == task)
        done = found.completed or 1
        self._progress.update(task, total=found.total or done, completed=found.total or done, note="")
        self._progress.stop_task(task)


@contextlib.contextmanager
def view() -> Iterator[View]:
    """The view that fits stderr: bars where a person watches and `rich` is installed, else lines."""
    console = _console() if sys.stderr.isatty() else None
    if console is None:
        yield LineView()
        return
    with _progress(console) as progress:
        yield BarView(progress)


def line(moment: Moment) -> str:
    """A moment as text: ``"version 12 of 30, 60 updates, accuracy 94.7%, 5 workers (…)"``."""
    parts = [f"{moment.counted} {moment.version} of {moment.versions}"] if moment.versions else []
    parts += [f"{moment.updates} updates"] if moment.updates else []
    parts += [f"accuracy {moment.accuracy:.1%}"] if moment.accuracy is not None else []
    return ", ".join([*parts, moment.note] if moment.note else parts)


def _console() -> "Console | None":
    try:
        from rich.console import Console
    except ModuleNotFoundError:
        return None
    return Console(stderr=True)


def _progress(console: "Console") -> "Progress":
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("[bold]{task.description:<12}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[count]:>7}"),
        TextColumn("[green]{task.fields[accuracy]:>6}"),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[note]}"),
        console=console,
        refresh_per_second=8,
    )
