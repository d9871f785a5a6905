"""`fedmq worker`: run a worker in the foreground."""

from pathlib import Path

import click

from .logs import log_options


def _pairs(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """``("partition=3",)`` to ``{"partition": "3"}``."""
    pairs = {}
    for text in values:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise click.BadParameter(f"{text!r}; write KEY=VALUE, e.g. partition=3.", ctx, param)
        pairs[key] = value
    return pairs


@click.command()
@click.option("--connect", metavar="URL", help="The broker, e.g. tcp://127.0.0.1:5560.")
@click.option("--app", required=True, metavar="MODULE:ATTRIBUTE", help="The client app that trains.")
@click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    default="worker-state",
    show_default=True,
    help="Folder of work that is not delivered yet; one per worker.",
)
@click.option(
    "--name", help="What the broker calls it.  [default: the machine's name and a piece of STATE's id]"
)
@click.option(
    "--node",
    multiple=True,
    metavar="KEY=VALUE",
    callback=_pairs,
    help="Handed to the app as task.node; repeatable.",
)
@click.option(
    "--tag", "tags", multiple=True, metavar="TEXT", help="Told to the broker, for people; repeatable."
)
@click.option(
    "--slots",
    type=click.IntRange(1),
    default=2,
    show_default=True,
    help="Tasks in hand; with 2 the next model comes while one trains.",
)
@click.option(
    "--server-key",
    metavar="KEY_OR_FILE",
    help="The public key of a broker with keys. This worker's own key lies in STATE, made at first use.",
)
@click.option(
    "--invite",
    metavar="TOKEN_OR_FILE",
    help='Register this worker\'s key by itself, with what "fedmq keys invite" printed.',
)
@log_options
@click.pass_context
def worker(
    ctx: click.Context,
    connect: str | None,
    app: str,
    state: Path,
    name: str | None,
    node: dict[str, str],
    tags: tuple[str, ...],
    slots: int,
    server_key: str | None,
    invite: str | None,
) -> None:
    """Run a worker that trains with your app for as long as the federation lasts.

    APP names an object with fit(weights, task) and evaluate(weights, task), a Flower client, or a function
    that makes one; the current folder is searched first. Cut off from the broker, it goes on training, keeps
    what it has finished in --state, and delivers it later. It exits 0 when the federation is finished.

    A broker on another machine has keys. Then take --invite with a token from its operator, or --server-key, and
    let the operator allow the key that "fedmq keys show STATE" prints. Later starts need neither.

    \b
    Example:
      fedmq worker --connect tcp://127.0.0.1:5560 --app ward:app --state ward-3 --name ward-3
      fedmq worker --connect tcp://127.0.0.1:5560 --app client:client_fn --node partition-id=3
      fedmq worker --connect tcp://broker:5560 --app ward:app --invite invite.txt
    """
    if connect is None and invite is None:
        raise click.UsageError("Missing option '--connect'.", ctx)

    from fedmq.worker import daemon

    ctx.exit(
        daemon.run(
            connect,
            app,
            state,
            name=name,
            node=node,
            tags=tags,
            slots=slots,
            server_key=server_key,
            invite=invite,
        )
    )
