"""`fedmq broker`: run a broker in the foreground."""

from pathlib import Path

import click

from .logs import log_options


@click.command()
@click.argument(
    "config", metavar="FEDERATION_TOML", type=click.Path(path_type=Path), default="federation.toml"
)
@log_options
@click.pass_context
def broker(ctx: click.Context, config: Path) -> None:
    """Run the broker that a federation.toml describes.

    It runs until its [stop] table says so or until SIGTERM or Ctrl-C: then it commits what has arrived,
    finishes the version that it is making, and says goodbye to its workers. Started again, it goes on where
    it was. A second signal ends it at once, which costs time, and no accepted update.

    \b
    Example:
      fedmq init
      fedmq broker federation.toml
      fedmq broker federation.toml --log-format json 2>> broker.log
    """
    from fedmq.broker import daemon

    ctx.exit(daemon.run(config))
