"""`fedmq backup`: copy a state folder, beside its running broker or without one."""

import contextlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .logs import log_options
from .state_folder import state_argument
from .status_view import size

if TYPE_CHECKING:
    from fedmq.broker.store.backup import Summary

SHOW_BYTES = 64 << 20
"""From this size on, a copy shows how far it is."""


@click.command()
@state_argument
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object instead of text.")
@log_options
def backup(state: Path, out: Path, as_json: bool) -> None:
    """Copy a state folder to OUT.

    It works beside a running broker, which goes on meanwhile, or without one. The copy is what the journal says
    at one moment: the versions that are kept, the updates that are in no version yet, identity and secrets. Keep
    it as safe as the original: it holds the model, updates of single workers, and keys.

    OUT must not be there, or be an empty folder. It appears when it is whole. To restore it, start a broker on it
    (federation.state); STATE_DIR may also be the federation.toml. A copy that was killed leaves a folder .OUT.*
    beside OUT, which may be deleted.

    \b
    Example:
      fedmq backup state /mnt/backups/$(date +%F)
    """
    from fedmq.broker.store.backup import backup as copy
    from fedmq.fedcore import config

    with _Bar() as bar:
        summary = copy(state, out, progress=bar.show)
    if as_json:
        from msgspec import to_builtins

        click.echo(json.dumps(to_builtins(summary), indent=2))
        return
    keys = config.load(state / "config.toml").security.keys
    inside = bool(keys) and Path(keys).is_relative_to(state.absolute())
    click.echo("\n".join(_lines(summary, out, "" if inside else keys)))


def _lines(summary: "Summary", out: Path, keys: str) -> list[str]:
    version = "no version yet" if summary.version is None else f"version {summary.version}"
    waiting = (
        f"{summary.waiting} accepted update{'' if summary.waiting == 1 else 's'} that are in no version yet"
    )
    taken = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(summary.taken_at))
    lines = [f"copied {summary.federation}: {version}, {waiting} ({size(summary.size)}) to {out}"]
    if summary.missed_updates or summary.missed_versions:
        lines.append(
            f"meanwhile the broker accepted {summary.missed_updates} updates and made {summary.missed_versions} "
            "versions, which are not in it"
        )
    if keys:
        lines.append(f"the CURVE keys in {keys} are not in it: back them up as well")
    lines += [
        f"to restore it, start a broker on it; that forgets everything after {taken}:",
        "- updates that are accepted from then on: their workers were told that they are safe, and do not send them "
        "again",
        "- versions that are made from then on: tasks against them are refused, and their workers get others",
    ]
    if summary.privacy_steps is not None:
        planned = "" if summary.privacy_planned is None else f" of {summary.privacy_planned}"
        lines.append(
            f"- WARNING: privacy that is spent from then on. {summary.privacy_steps}{planned} "
            "steps are in the copy; what was released after them stays released, and a restored broker would spend "
            "that part of the budget once more. Restore it only if no version was made since"
        )
    return lines


class _Bar:
    """How far a long copy is, on stderr; click shows it to people only."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._update: Callable[[int], None] | None = None
        self._done = 0

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def show(self, done: int, total: int) -> None:
        """So many bytes of so many."""
        if self._update is None:
            if total < SHOW_BYTES:
                return
            bar = click.progressbar(length=total, label=f"copying {size(total)}", file=sys.stderr)
            self._update = self._stack.enter_context(bar).update
        self._update(max(done - self._done, 0))
        self._done = done
