"""`fedmq status`: what a broker is doing, once or live."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import click

from . import status_view
from .logs import log_options
from .state_folder import state_argument


@click.command()
@state_argument
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object (with --watch: one per line).")
@click.option("--watch", is_flag=True, help="Keep showing it until the broker is down, or Ctrl-C.")
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 3600),
    default=1.0,
    show_default=True,
    help="Seconds between looks, with --watch.",
)
@log_options
def status(state: Path, as_json: bool, watch: bool, interval: float) -> None:
    """Show what a broker is doing.

    The version, the buffer or round, each worker and what it does, the last metrics, the traffic. It asks the
    running broker; where none runs, it reads the journal, and says so. STATE_DIR may also be the
    federation.toml.

    \b
    Example:
      fedmq status state --watch
      fedmq status state --json | jq .version
    """
    if not watch:
        _show(_look(state), as_json=as_json)
    elif as_json or not sys.stdout.isatty():
        _follow(state, interval, as_json=as_json)
    else:
        _live(state, interval)


def _look(state: Path) -> dict[str, Any]:
    from fedmq.broker.snapshot import snapshot  # only a command that looks pays for it

    return snapshot(state)


def _show(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(found, indent=2))
    elif sys.stdout.isatty() and _has_rich():
        from rich.console import Console

        Console().print(status_view.rich_view(found))
    else:
        click.echo("\n".join(status_view.lines(found)))


def _follow(state: Path, interval: float, *, as_json: bool) -> None:
    """One line for every look at which something had changed."""
    last = ""
    while True:
        found = _look(state)
        line = json.dumps(found) if as_json else status_view.summary(found)
        if line != last:
            click.echo(line)
            last = line
        if _over(found):
            return
        time.sleep(interval)


def _live(state: Path, interval: float) -> None:
    if not _has_rich():
        _follow(state, interval, as_json=False)
        return
    from rich.live import Live

    with Live(auto_refresh=False, screen=False) as live:
        while True:
            found = _look(state)
            live.update(status_view.rich_view(found), refresh=True)
            if _over(found):
                return
            time.sleep(interval)


def _over(found: dict[str, Any]) -> bool:
    return found["state"] in {"finished", "stopped"}


def _has_rich() -> bool:
    try:
        import rich.live  # noqa: F401
    except ModuleNotFoundError:  # a bare install: plain lines
        return False
    return True
