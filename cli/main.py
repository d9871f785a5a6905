"""The `fedmq` command: which subcommands there are, and how every one of them ends.

Rules that hold for all of them:

- A subcommand's module is imported when it is used, and imports its room inside the function: so
  `fedmq worker` never loads the broker, and `fedmq --help` loads neither.
- What goes wrong on purpose (`FedmqError`) is one line on stderr and the error's exit code. Anything else is
  a defect: one line and exit code 70. `--debug` shows the traceback of either.
- Results go to stdout, everything else to stderr.
"""

import difflib
import importlib
import sys
import traceback
from collections.abc import Sequence

import click

from fedmq import __version__
from fedmq.fedcore.errors import FedmqError

from .logs import log_options

DEFECT = 70  # EX_SOFTWARE
INTERRUPTED = 130  # 128 + SIGINT, as shells say it

COMMANDS = {
    "broker": "fedmq.cli.broker:broker",
    "worker": "fedmq.cli.worker:worker",
    "init": "fedmq.cli.init:init",
    "status": "fedmq.cli.status:status",
    "pause": "fedmq.cli.steer:pause",
    "resume": "fedmq.cli.steer:resume",
    "stop": "fedmq.cli.steer:stop",
    "keys": "fedmq.cli.keys:keys",
    "evict": "fedmq.cli.steer:evict",
    "admit": "fedmq.cli.steer:admit",
    "history": "fedmq.cli.history:history",
    "export": "fedmq.cli.export:export",
    "verify": "fedmq.cli.verify:verify",
    "backup": "fedmq.cli.backup:backup",
    "privacy": "fedmq.cli.privacy.command:privacy",
    "info": "fedmq.cli.info:info",
    "demo": "fedmq.cli.demo.command:demo",
    "bench": "fedmq.cli.bench.command:bench",
    "simulate": "fedmq.cli.simulate.command:simulate",
}


class Commands(click.Group):
    """A group that imports a subcommand when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS:
            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean '{close[0]}'?" if close else "'fedmq --help' lists them."
            ctx.fail(f"No such command '{args[0]}'; {hint}")
        return super().resolve_command(ctx, args)


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 2 usage or config, 3 client app, 4 model file, 5 protocol, 6 state folder, "
    "7 no connection, 8 privacy, 9 a child process died, 70 a defect in fedmq, 130 interrupted.",
)
@click.version_option(__version__, prog_name="fedmq")
@log_options
def fedmq() -> None:
    """Federated learning as a message queue.

    A broker owns a model. Workers fetch it, train on data that never leaves them, and send updates back; the
    broker folds them into the next version.

    \b
    See it run:             fedmq demo
    Start a federation:     fedmq init
                            fedmq broker federation.toml
    Join it:                fedmq worker --connect tcp://127.0.0.1:5560 --app mymodule:app
    Watch it:               fedmq status state --watch
    """


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code."""
    settings: dict[str, object] = {}
    try:
        code = fedmq.main(args=argv, prog_name="fedmq", standalone_mode=False, obj=settings)
    except click.UsageError as error:
        usage = f" Try '{error.ctx.command_path} --help'." if error.ctx else ""
        _tell(error, f"{error.format_message()}{usage}", debug=bool(settings.get("debug")))
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(INTERRUPTED)
    except FedmqError as error:
        _tell(error, str(error), debug=bool(settings.get("debug")))
        sys.exit(error.exit_code)
    except Exception as error:
        debug = bool(settings.get("debug"))
        hint = "" if debug else "; --debug shows where"
        _tell(error, f"a defect, please report it: {type(error).__name__}: {error}{hint}", debug=debug)
        sys.exit(DEFECT)
    sys.exit(code if isinstance(code, int) else 0)


def _tell(error: BaseException, message: str, *, debug: bool) -> None:
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    click.echo(f"fedmq: {' '.join(message.split())}", err=True)


if __name__ == "__main__":
    main()
