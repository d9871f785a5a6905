"""`fedmq pause`, `resume`, `stop`, `evict` and `admit`: tell a running broker what to do.

They speak to the control socket in the state folder, so that who may steer is who may read that folder.
"""

from pathlib import Path
from typing import Any

import click

from .logs import log_options
from .state_folder import state_argument


@click.command()
@state_argument
@log_options
def pause(state: Path) -> None:
    """Hand out no more tasks.

    Tasks that are out are finished and their updates accepted. A pause is remembered: it outlives a restart.

    \b
    Example:
      fedmq pause state
    """
    already = _tell(state, "pause").get("already")
    click.echo(f'{"paused already" if already else "paused"}; "fedmq resume" goes on')


@click.command()
@state_argument
@log_options
def resume(state: Path) -> None:
    """Hand out tasks again.

    \b
    Example:
      fedmq resume state
    """
    already = _tell(state, "resume").get("already")
    click.echo("not paused" if already else "resumed")


@click.command()
@state_argument
@click.option("--finish", is_flag=True, help="End the federation for good; its workers exit.")
@log_options
def stop(state: Path, finish: bool) -> None:
    """Stop the broker cleanly.

    It commits what has arrived, finishes the version that it is making, and exits, without waiting for
    training, as with SIGTERM. Started again, it goes on where it was, and its workers come back by
    themselves. With --finish they are told that the federation is over.

    \b
    Example:
      fedmq stop state
    """
    _tell(state, "stop", finish=finish)
    click.echo("stopping, and finishing the federation" if finish else "stopping")


@click.command()
@state_argument
@click.argument("worker")
@log_options
def evict(state: Path, worker: str) -> None:
    """Send one worker away and hand its tasks to others.

    WORKER is its name, as "fedmq status" shows it. Its accepted updates stay. It is refused from now on, also
    after a restart, until it is admitted again.

    \b
    Example:
      fedmq evict state ward-3
    """
    _tell(state, "evict", worker=worker)
    click.echo(f"evicted {worker}")


@click.command()
@state_argument
@click.argument("worker")
@log_options
def admit(state: Path, worker: str) -> None:
    """Let an evicted worker come back.

    \b
    Example:
      fedmq admit state ward-3
    """
    _tell(state, "admit", worker=worker)
    click.echo(f"admitted {worker}")


def _tell(state: Path, command: str, **args: Any) -> dict[str, Any]:
    from fedmq.broker import control

    return control.request(state, command, **args)
