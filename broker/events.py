"""What the mind is told (events) and what it asks for (actions). Frozen values; no behaviour.

The body promises:

- Actions are carried out in order. A `Commit`'s `then` runs when its rows, and those of every commit
  before it, are durable; a commit without rows waits for the ones before it all the same.
- Each `OpenUpload` is answered by `UploadOpened`, each `WritePart` by `PartWritten`, each `Seal` by
  `Sealed`, each `Fold` by `Folded`, each `Adopt` by `Adopted` or `Refused`, each `Evaluate` by
  `Evaluated`, each `Register` by `Registered`, each `EncodeModel` by `ModelEncoded`. An I/O error that makes a
  promise impossible ends the daemon with a clear line; what is on disk stays consistent.
- `Send` never blocks; messages to one peer keep their order.
"""

from typing import Any

import msgspec

from fedmq.fedcore import wire

from .rows import AcceptRow, Row, VersionInfo

Peer = bytes
"""A connection: ZeroMQ's routing id. Only a return address; never an identity."""


class Event(msgspec.Struct, frozen=True):
    """Base of what the mind is told."""


class Received(Event, frozen=True):
    """A well-formed message. `user` is the CURVE public key (z85), or None without CURVE."""

    peer: Peer
    message: wire.Message
    payload: memoryview | None = None
    user: str | None = None
    invited: bool = False
    """Whether that key is an invite's, which may do nothing but ENROLL."""


class Violation(Event, frozen=True):
    """Frames from a peer that are no message."""

    peer: Peer
    ref: int
    """Kind byte when one could be read, else 0."""
    reason: str
    task: bytes | None = None
    """The task that it is about, when that could be read."""


class Unreachable(Event, frozen=True):
    """The socket has no route to this peer any more (EHOSTUNREACH)."""

    peer: Peer


class Revoked(Event, frozen=True):
    """A key may not connect any more. What it sent before was told before; nothing of it follows."""

    user: str


class Registered(Event, frozen=True):
    """What became of a `Register`; `refusal` is empty when the key is on the allowlist, durably."""

    peer: Peer
    key: bytes
    refusal: str = ""


class Enrolled(Event, frozen=True):
    """Who may connect, where there are keys: told at the start, and whenever the lists have changed."""

    keys: frozenset[str]
    """On the allowlist."""
    invites: int
    """Those that may still register a key."""


class Severed(Event, frozen=True):
    """The broker has closed its socket and bound it again: every connection is gone, and no session is over."""


class Tick(Event, frozen=True):
    """Time has passed: sent at the time of the last `Wake`, or earlier."""


class UploadOpened(Event, frozen=True):
    """The spool holds `length` bytes of this upload (0 for a new one)."""

    task: bytes
    length: int


class PartWritten(Event, frozen=True):
    """The spool holds `length` bytes of this upload."""

    task: bytes
    length: int


class Sealed(Event, frozen=True):
    """The upload is complete and durable; what it holds. `norm` is None for a `safetensors` encoding."""

    task: bytes
    digest: bytes
    norm: float | None
    fault: str = ""
    """Why these bytes are no payload of the model's values in their encoding."""


class Folded(Event, frozen=True):
    """The files of the next version are durable under their final names; nothing points to them yet."""

    info: VersionInfo
    updates: int
    examples: int
    frac_bits: int | None
    """Of the exact sum, and what divided it; None where the rule makes none, such as a median."""
    denominator: float | None
    update_norm: float
    seconds: float
    sigma: float = 0.0
    noise_key: bytes | None = None
    charged: float | None = None
    """z, where each worker in the buffer is charged for its part."""
    whole_run: bool = False
    """z is of all versions together: a worker is charged for the first one that it is in."""


class ModelEncoded(Event, frozen=True):
    """A version's file is there as workers fetch it, or cannot be: `size` is 0 then, and `refusal` says why."""

    version: int
    encoding: str
    size: int = 0
    digest: bytes = b""
    refusal: str = ""


class Adopted(Event, frozen=True):
    """A worker's file is now version 0's file."""

    task: bytes
    info: VersionInfo


class Refused(Event, frozen=True):
    """A worker's file is not a model that this federation can use."""

    task: bytes
    reason: str


class Evaluated(Event, frozen=True):
    """The broker-side evaluation of a version ended; `metrics` is None when the app failed."""

    version: int
    metrics: dict[str, float] | None
    examples: int = 0
    reason: str = ""


class VersionDurable(Event, frozen=True):
    """The version's row is committed. Comes through `Tell`."""

    info: VersionInfo


class RoundDurable(Event, frozen=True):
    """The round's row is committed. Comes through `Tell`."""

    buffer: int


class Control(Event, frozen=True):
    """A command of the operator's; answered by exactly one `Reply` with the same token."""

    token: int
    command: str
    args: dict[str, Any]


class Drain(Event, frozen=True):
    """SIGTERM: commit what has arrived, finish the fold, BYE, then `Exit`. Never waits for training."""


class Action(msgspec.Struct, frozen=True):
    """Base of what the mind asks for."""


class Send(Action, frozen=True):
    """Send a message to a peer."""

    peer: Peer
    message: wire.Message


class SendTask(Action, frozen=True):
    """Send a TASK with the file of its version as the payload; without, when that cannot be read."""

    peer: Peer
    message: wire.Task


class SendBlock(Action, frozen=True):
    """Send a BLOCK of a version's file; `busy` when too many are unsent."""

    peer: Peer
    version: int
    offset: int
    length: int
    encoding: str = "f32"


class Drop(Action, frozen=True):
    """Forget a peer: unsent messages, and with CURVE its connection."""

    peer: Peer


class Commit(Action, frozen=True):
    """Make rows durable in one transaction, then carry out `then`."""

    rows: tuple[Row, ...]
    then: tuple[Action, ...] = ()


class Tell(Action, frozen=True):
    """Hand this event to the mind; in a `then`, that is how it learns that a commit is durable."""

    event: Event


class OpenUpload(Action, frozen=True):
    """Open (or find again) the spool file of an upload."""

    task: bytes
    size: int
    encoding: str
    n: int | None = None
    """Values that the payload must be of, where that is not said by its size."""
    most: int | None = None
    """How many of them it may hold, likewise."""


class WritePart(Action, frozen=True):
    """Append bytes at `offset`, which is where the file ends."""

    task: bytes
    offset: int
    data: memoryview


class Seal(Action, frozen=True):
    """Make the upload durable and say its digest and norm."""

    task: bytes


class Discard(Action, frozen=True):
    """Delete the payloads of these tasks from the spool; unknown ones are no error."""

    tasks: tuple[bytes, ...]


class Fold(Action, frozen=True):
    """Fold a frozen buffer onto version `buffer` and make version `buffer + 1`."""

    buffer: int
    base: VersionInfo
    rows: tuple[AcceptRow, ...]
    """Without their inline payloads, which the body reads from the journal."""


class EncodeModel(Action, frozen=True):
    """Make a version's file as workers fetch it, in an encoding that is not ``f32``."""

    version: int
    encoding: str


class Adopt(Action, frozen=True):
    """Make version 0 of the safetensors file that this task uploaded (or that `inline` holds)."""

    task: bytes
    inline: bytes | None = None


class Evaluate(Action, frozen=True):
    """Run the broker-side evaluation on a version, in a child process."""

    version: int


class Register(Action, frozen=True):
    """Let an invite put a worker's key on the allowlist, once."""

    peer: Peer
    invite: str
    key: bytes


class Collect(Action, frozen=True):
    """Delete the files of these versions."""

    versions: tuple[int, ...]


class Wake(Action, frozen=True):
    """Send a `Tick` at this time (monotonic seconds); replaces the one before."""

    at: float


class Reply(Action, frozen=True):
    """Answer a `Control`."""

    token: int
    data: dict[str, Any]


class Note(Action, frozen=True):
    """An event for the log. Fields never hold the content of a message."""

    level: str
    text: str
    fields: dict[str, Any] = {}


class Exit(Action, frozen=True):
    """The broker is done: stop with this exit code once everything before is carried out and sent."""

    code: int
    reason: str
