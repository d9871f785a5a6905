"""`fedmq broker`: run a broker in the foreground."""

from pathlib import Path

import click

from .logs import log_options


@click.command()
@click.argument(
    "config", metavar="FEDERATION_TOML", type=click.Path(path_type=Path), default="federation.toml"
)
@click.option(
    "--insecure",
    is_flag=True,
    help="Allow an address that others can reach without keys: anybody can join, and read. As security.insecure.",
)
@log_options
@click.pass_context
def broker(ctx: click.Context, config: Path, insecure: bool) -> None:
    """Run the broker that a federation.toml describes.

    It runs until its [stop] table says so or until SIGTERM or Ctrl-C: then it commits what has arrived,
    finishes the version that it is making, and says goodbye to its workers. Started again, it goes on where
    it was. A second signal ends it at once, which costs time, and no accepted update.

    Workers on other machines need keys: "fedmq keys --help" says how to make them and whom to let in.

    \b
    Example:
      fedmq init
      fedmq broker federation.toml
      fedmq broker federation.toml --log-format json 2>> broker.log
    """
    from fedmq.broker import daemon

    ctx.exit(daemon.run(config, insecure=insecure))
