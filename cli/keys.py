"""`fedmq keys`: make keys, and say which workers may connect.

Everything here works on files, whether or not a broker runs: one that runs sees what has changed. No command prints
a secret but `invite`, whose token is made to be handed on.
"""

import json
import re
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedmq.fedcore.errors import ConfigError

from .logs import log_options

if TYPE_CHECKING:
    from fedmq.broker.keyring import KeyRing

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
EXPIRES_MAX_S = 90 * 86400


def _seconds(ctx: click.Context, param: click.Parameter, text: str) -> int:
    """``"90m"`` to 5400."""
    match = re.fullmatch(r"(\d{1,6})([smhd])", text)
    seconds = int(match[1]) * UNITS[match[2]] if match else 0
    if not 0 < seconds <= EXPIRES_MAX_S:
        raise click.BadParameter(
            f"{text!r}; write a number and s, m, h or d, at most 90d, e.g. 2h.", ctx, param
        )
    return seconds


dir_option = click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path),
    default="keys",
    show_default=True,
    help="The folder that [security] keys names, or a federation.toml that does.",
)


@click.group()
def keys() -> None:
    """Make keys, and say which workers may connect.

    A broker with keys encrypts everything, and lets in only workers whose public keys are on its allowlist: the
    file "allowlist" in the folder of its keys, unless [security] allowlist names another. A broker that runs
    sees at once what has changed. A NAME.secret never leaves its machine; a NAME.key is for anybody.

    \b
    Example:
      fedmq keys new broker                  # once; then set [security] keys = "keys"
      fedmq keys invite --name ward-3        # prints a token; on the worker's machine:
                                             #   fedmq worker --invite TOKEN …
      fedmq keys list
      fedmq keys revoke ward-3
    """


@keys.command()
@click.argument("name")
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default="keys",
    show_default=True,
    help="Where to write them.",
)
@log_options
def new(name: str, folder: Path) -> None:
    """Make a pair of keys: NAME.key, which is public, and NAME.secret.

    A broker's pair is called broker. A worker makes its own when it starts; to have it before, make one called
    worker in its state folder.

    \b
    Example:
      fedmq keys new broker
      fedmq keys new worker --dir ward-3     # the worker's state folder
    """
    from fedmq.broker import auth
    from fedmq.fedcore.keys import write_pair

    pair = auth.new_pair()
    write_pair(folder, name, pair)
    click.echo(f"wrote {folder / name}.key and {folder / name}.secret; the public key is:", err=True)
    click.echo(pair.public)


@keys.command()
@click.argument("where", metavar="FILE_OR_FOLDER", type=click.Path(path_type=Path))
@log_options
def show(where: Path) -> None:
    """Print a public key: of a .key file, a worker's state folder, or a broker's folder of keys.

    \b
    Example:
      fedmq keys show ward-3                 # the worker's state folder
    """
    from fedmq.fedcore.keys import read_public

    click.echo(read_public(where))


@keys.command()
@click.argument("key", metavar="KEY_OR_FILE")
@click.option("--name", help="For people.  [default: the file's or folder's name, or a piece of the key]")
@dir_option
@log_options
def allow(key: str, name: str | None, folder: Path) -> None:
    """Let a worker in.

    KEY_OR_FILE is its public key in single quotes, a .key file that holds it, or its state folder.

    \b
    Example:
      fedmq keys allow ward-3.key
      fedmq keys allow 'Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID' --name ward-3
    """
    from fedmq.fedcore.keys import is_key, read_public, to_bytes

    public = read_public(key)
    if name is None:
        path = Path(key)
        name = (
            to_bytes(public).hex()[:8] if is_key(key) else path.stem if path.suffix else path.resolve().name
        )
    added = _ring(folder).allow(public, name)
    click.echo(f"allowed {name}" if added else "was allowed already")


@keys.command()
@click.argument("who", metavar="NAME_OR_KEY")
@dir_option
@log_options
def revoke(who: str, folder: Path) -> None:
    """Let a worker in no more.

    A broker that runs drops it at once and hands its tasks to others. Its accepted updates stay. Also withdraws
    an invite of that name.

    \b
    Example:
      fedmq keys revoke ward-3
    """
    gone, invites = _ring(folder).revoke(who)
    if not gone and not invites:
        raise ConfigError(
            f'nobody called {who}, and no such key, is allowed or invited; "fedmq keys list" shows all'
        )
    for key, name in gone.items():
        click.echo(f"revoked {name or key}")
    for invite in invites:
        click.echo(f"withdrew the invite for {invite.name}")


@keys.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Everything, for programs.")
@dir_option
@log_options
def list_(as_json: bool, folder: Path) -> None:
    """Show who may connect, and which invites are open.

    \b
    Example:
      fedmq keys list
      fedmq keys list --json
    """
    found = _listing(_ring(folder), time.time())
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    click.echo(f"{found['broker'] or '(no key yet)':<40}  the broker")
    for worker in found["allowed"]:
        click.echo(f"{worker['key']}  {worker['name']}")
    for invite in found["invites"]:
        left_m = max(int(invite["expires_s"] // 60), 0)
        what = (
            f"expires in {left_m} min"
            if invite["state"] == "open"
            else f"{invite['state']} by {invite['by']}"
        )
        click.echo(f"{'an invite':<40}  {invite['name']}, {what}")


@keys.command()
@click.option("--name", help="What to call the worker.  [default: worker- and six random digits]")
@click.option(
    "--expires",
    "seconds",
    metavar="DURATION",
    default="1h",
    show_default=True,
    callback=_seconds,
    help="How long it holds: a number and s, m, h or d.",
)
@click.option(
    "--connect", metavar="URL", default="", help="Where the worker finds the broker; goes into the token."
)
@dir_option
@log_options
def invite(name: str | None, seconds: int, connect: str, folder: Path) -> None:
    """Print a token with which one new worker registers its own key, once, until it expires.

    Whoever holds the token can join in that worker's place: hand it on as you would a password. It is printed
    now and kept nowhere.

    \b
    Example:
      fedmq keys invite --name ward-3 --expires 2d --connect tcp://broker.example:5560
    """
    from fedmq.broker import auth
    from fedmq.broker.keyring import Invite
    from fedmq.fedcore.keys import Token, to_token

    if connect and not connect.startswith(("tcp://", "ipc://")):
        raise ConfigError(f"--connect must be tcp://host:port or ipc://path, got {connect!r}")
    ring, now = _ring(folder), time.time()
    name = name or f"worker-{secrets.token_hex(3)}"
    server, pair = ring.public, auth.new_pair()
    ring.invite(Invite(pair.public, float(int(now) + seconds), name=name), now)
    token = Token(server, pair.secret, float(int(now) + seconds), connect, name)
    click.echo(f"an invite for {name}; on its machine: fedmq worker --invite TOKEN …", err=True)
    click.echo(to_token(token))


def _ring(folder: Path) -> "KeyRing":
    """The broker's folder of keys, by its own path or by its federation.toml."""
    from fedmq.broker.keyring import KeyRing

    if folder.suffix != ".toml":
        return KeyRing(folder)
    from fedmq.fedcore import config

    security = config.load(folder).security
    if not security.keys:
        raise ConfigError(f'{folder}: security.keys is empty; name the folder of keys there, such as "keys"')
    return KeyRing.of(security)


def _listing(ring: "KeyRing", now: float) -> dict[str, Any]:
    try:
        broker = ring.public
    except ConfigError:
        broker = None
    invites = [
        {"name": i.name, "state": i.claim, "by": i.by or None, "expires_s": i.expires_at - now}
        for i in ring.invites().values()
        if i.expires_at > now
    ]
    allowed = [{"key": key, "name": name} for key, name in ring.allowed().items()]
    return {"broker": broker, "allowed": allowed, "invites": invites}
