"""`fedmq verify`: make every version again from what was accepted, and compare the bytes."""

from pathlib import Path

import click

from fedmq.fedcore.errors import StateError

from .logs import log_options
from .state_folder import state_argument


@click.command()
@state_argument
@log_options
def verify(state: Path) -> None:
    """Recompute every version from the journal and the kept updates.

    Each version is folded again from the updates that the journal says it was made of, onto the recomputed
    version before, and must have the same bytes. It works beside a running broker or without one, changes
    nothing, and needs a federation that keeps its updates: storage.keep_payloads = true, and storage.keep
    above the number of versions.

    \b
    Example:
      fedmq verify state
    """
    from fedmq.broker.verification import verify as recompute

    count = 0
    for verdict in recompute(state):
        if not verdict.same:
            says, found = (
                ("digest " + verdict.digest, verdict.recomputed)
                if verdict.digest != verdict.recomputed
                else (f"clip norm {verdict.clip_norms[0]} after it", verdict.clip_norms[1])
            )
            raise StateError(
                f"version {verdict.version}: the journal has {says}, its {verdict.updates} updates give {found}"
            )
        count += 1
        click.echo(f"version {verdict.version}: {verdict.updates} updates, {verdict.digest}")
    if count:
        click.echo(f"{count} versions recomputed, all with the same bytes")
    else:
        click.echo("no version to recompute: none was made of updates yet")
