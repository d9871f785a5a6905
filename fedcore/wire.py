"""Protocol 1: messages to frames and back. Pure; every limit of the wire lives here.

A message is two or three ZeroMQ frames::

    [ "FQ" 0x01 kind ]  [ header: one msgpack map, at most 64 KiB ]  [ payload: at most one frame ]

Rules that hold in this file:

- `decode` accepts what `docs/protocol.md` allows and nothing else; anything else is a
  `ProtocolError` with a code from `ERROR_CODES`. Whatever a peer sends, it allocates a few MiB at most.
- `encode` makes nothing that `decode` would refuse: a defect shows where it is, not at the peer.
- Keys that it does not know are ignored, so that minor additions need no new version.
- A field that is None is absent from the header.
- Payloads stay outside of the structs: they are views of frames, and possibly unaligned.
"""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, ClassVar, Literal, NewType, TypeAlias

import msgpack
import msgspec
from msgspec import Meta

from .errors import ProtocolError

TaskId = NewType("TaskId", bytes)
Version = NewType("Version", int)
WorkerId = NewType("WorkerId", str)
"""The principal behind a connection: a CURVE public key, or without CURVE the name in HELLO."""

Frame: TypeAlias = bytes | bytearray | memoryview

PROTOCOL = 1
MAGIC = b"FQ\x01"
HEADER_MAX = 64 * 1024
INLINE_MAX = 64 * 1024
"""Payloads of at most this many bytes may ride with their OFFER."""
TASK_INLINE_MAX = 16 * 1024
"""A model file of at most this many bytes rides with its TASK. Half of what a connection costs a broker anyway:
a round may begin with as many TASKs as there are workers."""
TEXT_MAX = 128
"""Bytes of UTF-8, not characters; so are all limits of texts."""
REASON_MAX = 200
TASK_MAX = 64
"""Bytes of a task id."""
LIST_MAX = 64
IDS_MAX = 1024
"""Entries of a list of task ids, and of any array or map in a header: msgpack reserves memory for as many
entries as each of the nested arrays claims, so that 64 KiB of header could ask for hundreds of MiB."""
NESTING_MAX = 16
"""Maps and arrays inside of one another in a task's `config`."""
FETCHES_MAX = 4
"""A worker's outstanding FETCHes; the next one is answered `busy`."""
VIOLATIONS_MAX = 3
VIOLATIONS_WINDOW_S = 60.0
"""So many protocol errors within so many seconds end a session."""

ERROR_CODES = ("need_hello", "gone", "busy", "malformed", "forbidden")

Text: TypeAlias = Annotated[str, Meta(max_length=TEXT_MAX)]
Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=TEXT_MAX)]
Texts: TypeAlias = Annotated[tuple[Text, ...], Meta(max_length=LIST_MAX)]
Reason: TypeAlias = Annotated[str, Meta(max_length=REASON_MAX)]
TaskKey: TypeAlias = Annotated[bytes, Meta(min_length=1, max_length=TASK_MAX)]
TaskList: TypeAlias = Annotated[tuple[TaskKey, ...], Meta(max_length=IDS_MAX)]
Token: TypeAlias = Annotated[bytes, Meta(min_length=1, max_length=32)]
CurveKey: TypeAlias = Annotated[bytes, Meta(min_length=32, max_length=32)]
Digest: TypeAlias = Annotated[bytes, Meta(min_length=16, max_length=16)]
LayoutDigest: TypeAlias = Annotated[bytes, Meta(min_length=1, max_length=64)]
Count: TypeAlias = Annotated[int, Meta(ge=0, lt=2**53)]
Size: TypeAlias = Annotated[int, Meta(ge=0, lt=2**53)]
Length: TypeAlias = Annotated[int, Meta(ge=1, lt=2**31)]
KindNumber: TypeAlias = Annotated[int, Meta(ge=0, le=255)]
Seed: TypeAlias = Annotated[int, Meta(ge=0)]
Seconds: TypeAlias = Annotated[float, Meta(ge=0, le=1e9)]
Metrics: TypeAlias = Annotated[dict[Text, float], Meta(max_length=LIST_MAX)]

TaskKind = Literal["fit", "evaluate", "init"]


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the messages; `code` is the kind byte of the first frame."""

    code: ClassVar[int]
    payload: ClassVar[Literal["none", "required", "optional"]] = "none"


class Hello(Message, frozen=True, kw_only=True):
    """W→B. First message of a connection: who I am, what I can do, what I hold."""

    code: ClassVar[int] = 1
    protocol: Count
    name: Name
    instance: Token
    boot: Token
    kinds: Texts = ("fit", "evaluate")
    encodings: Texts = ("f32",)
    tags: Texts = ()
    free: Count = 1
    tasks: TaskList = ()
    outbox: TaskList = ()
    models: Texts | None = None

    def __post_init__(self) -> None:
        _check_texts("name", (self.name,))
        # Names stand in logs and on the operator's terminal.
        if _CONTROL.search(self.name):
            raise ValueError("name: holds control characters")
        _check_texts("kinds", self.kinds)
        _check_texts("encodings", self.encodings)
        _check_texts("tags", self.tags)
        _check_texts("models", self.models or ())


class Welcome(Message, frozen=True, kw_only=True):
    """B→W. The session is open; these are its terms."""

    code: ClassVar[int] = 2
    protocol: Count
    federation: Name
    beat_s: Seconds
    lease_s: Seconds
    block: Length
    inline_max: Size
    credit: Size
    max_model_bytes: Size

    def __post_init__(self) -> None:
        _check_texts("federation", (self.federation,))


class Reject(Message, frozen=True, kw_only=True):
    """B→W. Not welcome; `fatal` means that trying again will not help."""

    code: ClassVar[int] = 3
    # The header's key is `code`, which names the kind byte here.
    why: Literal["wrong_protocol", "name_in_use", "revoked", "full", "finished"] = msgspec.field(name="code")
    reason: Reason = ""
    retry_s: Seconds = 0.0
    fatal: bool = False


class Beat(Message, frozen=True, kw_only=True):
    """Both ways. Proof of life; a worker's says what it holds, a broker's is empty."""

    code: ClassVar[int] = 4
    tasks: TaskList | None = None
    outbox: TaskList | None = None
    free: Count | None = None
    seen: Count | None = None


class Task(Message, frozen=True, kw_only=True):
    """B→W. A piece of work against one model version; a small model rides along, a large one waits to be fetched."""

    code: ClassVar[int] = 5
    payload: ClassVar[Literal["none", "required", "optional"]] = "optional"
    task: TaskKey
    seq: Count
    kind: TaskKind
    version: Count
    size: Size
    digest: Digest | None = None
    layout: LayoutDigest | None = None
    encoding: Text = "f32"
    keep: Count | None = None
    feedback: bool | None = None
    model: Text | None = None
    seed: Seed = 0
    deadline_s: Seconds = 0.0
    config: dict[str, Any] = {}

    def __post_init__(self) -> None:
        _check_texts("encoding", (self.encoding,))
        _check_texts("model", () if self.model is None else (self.model,))
        _check_nesting(self.config)
        if self.seed >= 2**64:
            raise ValueError("seed is a uint64")
        if self.keep == 0:
            raise ValueError("keep is 1 or more")
        if self.kind != "init" and (self.digest is None or self.layout is None):
            raise ValueError(f"a {self.kind} task carries digest and layout")


class Fetch(Message, frozen=True, kw_only=True):
    """W→B. Send me these bytes of a version's file."""

    code: ClassVar[int] = 6
    version: Count
    offset: Size
    length: Length
    model: Text | None = None

    def __post_init__(self) -> None:
        _check_texts("model", () if self.model is None else (self.model,))


class Block(Message, frozen=True, kw_only=True):
    """B→W. Bytes of a version's file, as fetched."""

    code: ClassVar[int] = 7
    payload: ClassVar[Literal["none", "required", "optional"]] = "required"
    version: Count
    offset: Size
    model: Text | None = None

    def __post_init__(self) -> None:
        _check_texts("model", () if self.model is None else (self.model,))


class Offer(Message, frozen=True, kw_only=True):
    """W→B. The result of a task; a small payload rides along, a large one waits for a GRANT."""

    code: ClassVar[int] = 8
    payload: ClassVar[Literal["none", "required", "optional"]] = "optional"
    task: TaskKey
    kind: TaskKind
    base: Count
    examples: Count
    layout: LayoutDigest | None = None
    encoding: Text | None = None
    size: Size | None = None
    digest: Digest | None = None
    metrics: Metrics = {}

    def __post_init__(self) -> None:
        _check_texts("metrics", self.metrics)
        for value in self.metrics.values():
            if not math.isfinite(value):
                raise ValueError("a metric is not a finite number")
        encoded = (self.encoding, self.size, self.digest)
        if self.kind == "evaluate":
            if "loss" not in self.metrics:
                raise ValueError("an evaluate offer has a metric `loss`")
            if encoded != (None, None, None):
                raise ValueError("an evaluate offer has no encoding, size or digest")
            return
        if self.encoding is None or None in encoded:
            raise ValueError(f"a {self.kind} offer has encoding, size and digest")
        _check_texts("encoding", (self.encoding,))
        if self.kind == "fit" and self.layout is None:
            raise ValueError("a fit offer echoes the layout of its task")
        if self.kind == "init" and (self.encoding != "safetensors" or self.base != 0 or self.layout):
            raise ValueError("an init offer has encoding safetensors, base 0 and no layout")


class Grant(Message, frozen=True, kw_only=True):
    """B→W. "I hold `offset` bytes; you may send up to `limit`", both absolute; cumulative and idempotent."""

    code: ClassVar[int] = 9
    task: TaskKey
    offset: Size
    limit: Size


class Part(Message, frozen=True, kw_only=True):
    """W→B. Bytes of an update, in order."""

    code: ClassVar[int] = 10
    payload: ClassVar[Literal["none", "required", "optional"]] = "required"
    task: TaskKey
    offset: Size


class Ack(Message, frozen=True, kw_only=True):
    """B→W. What became of an update; durable before it is sent, and the worker then forgets the update."""

    code: ClassVar[int] = 11
    task: TaskKey
    result: Literal["accepted", "duplicate", "stale", "rejected"]
    reason: Reason = ""


class Wait(Message, frozen=True, kw_only=True):
    """B→W. No room for this update now: offer it again later, with jitter."""

    code: ClassVar[int] = 12
    task: TaskKey
    retry_s: Seconds


class Fail(Message, frozen=True, kw_only=True):
    """W→B. The client app raised or refused."""

    code: ClassVar[int] = 13
    task: TaskKey
    reason: Reason = ""


class Cancel(Message, frozen=True, kw_only=True):
    """B→W. The work is no longer wanted; deletes it from the outbox as well."""

    code: ClassVar[int] = 14
    task: TaskKey
    reason: Reason = ""


class Bye(Message, frozen=True, kw_only=True):
    """Both ways. An orderly leave. From a broker: `finished`, `shutdown` or `revoked`."""

    code: ClassVar[int] = 15
    reason: Reason = ""


class Error(Message, frozen=True, kw_only=True):
    """B→W. The message of kind `ref` could not be served."""

    code: ClassVar[int] = 16
    ref: KindNumber
    why: Literal["need_hello", "gone", "busy", "malformed", "forbidden"] = msgspec.field(name="code")
    reason: Reason = ""
    task: TaskKey | None = None
    version: Count | None = None
    offset: Size | None = None


class Enroll(Message, frozen=True, kw_only=True):
    """W→B. Over a connection made with a one-use invite keypair: register my own public key."""

    code: ClassVar[int] = 17
    key: CurveKey


class Enrolled(Message, frozen=True, kw_only=True):
    """B→W. The key is registered."""

    code: ClassVar[int] = 18
    key: CurveKey


Table: TypeAlias = dict[int, type[Message]]

TO_BROKER: Table = {m.code: m for m in (Hello, Beat, Fetch, Offer, Part, Fail, Bye, Enroll)}
TO_WORKER: Table = {
    m.code: m for m in (Welcome, Reject, Beat, Task, Block, Grant, Ack, Wait, Cancel, Bye, Error, Enrolled)
}


_FIRST = {code: MAGIC + bytes((code,)) for code in (*TO_BROKER, *TO_WORKER)}


def encode(message: Message, payload: Frame | None = None) -> list[Frame]:
    """Turn a message into frames for `send_multipart`.

    Parameters
    ----------
    message : Message
        Any of the structs above.
    payload : bytes-like, optional
        The third frame; taken as it is, never copied.

    Raises
    ------
    ValueError
        The peer would refuse this: a value out of its range, a header of more than 64 KiB, a payload
        missing or where none belongs. A defect in the caller, or a `[task]` table that cannot travel.

    Notes
    -----
    A `reason` is clipped to its limit here, so that the text of any exception may be passed as it is.

    Examples
    --------
    >>> encode(Bye(reason="shutdown"))[1]
    b'\\x81\\xa6reason\\xa8shutdown'
    """
    kind = type(message)
    fields = {
        key: value for key, attribute in _keys(kind) if (value := getattr(message, attribute)) is not None
    }
    if "reason" in fields:
        fields["reason"] = clip(fields["reason"])
    try:
        frames: list[Frame] = [_FIRST[message.code], msgpack.packb(fields, use_bin_type=True)]
        if payload is not None:
            frames.append(payload)
        # Read again where anything may be inside; elsewhere the types of the fields say what is.
        free = fields.get("config") or len(frames[1]) > HEADER_MAX
        _check(kind, frames, _unpack(frames[1]) if free else fields)
    except (ProtocolError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{kind.__name__} cannot be sent: {error}") from error
    return frames


def decode(frames: Sequence[Frame], table: Table) -> tuple[Message, memoryview | None]:
    """Turn frames from a peer into a message and its payload, or refuse them.

    Parameters
    ----------
    frames : sequence of bytes-like
        What `recv_multipart` gave (without the routing id).
    table : Table
        `TO_BROKER` or `TO_WORKER`: the kinds that may arrive on this side.

    Returns
    -------
    (Message, memoryview or None)
        The payload is a read-only-as-given view of the third frame, possibly unaligned.

    Raises
    ------
    ProtocolError
        With code ``malformed`` and a reason that names what was wrong.
    """
    if not 2 <= len(frames) <= 3:
        raise ProtocolError(f"{len(frames)} frames, expected 2 or 3")
    first = bytes(frames[0][:8])
    if len(frames[0]) != 4 or first[:3] != MAGIC:
        raise ProtocolError("the first frame is not 'FQ' 0x01 kind")
    kind = table.get(first[3])
    if kind is None:
        known = first[3] in TO_BROKER or first[3] in TO_WORKER
        raise ProtocolError(
            f"kind {first[3]} does not travel this way" if known else f"unknown kind {first[3]}"
        )
    header = _unpack(frames[1])
    return _check(kind, frames, header)


def _check(
    kind: type[Message], frames: Sequence[Frame], header: dict[str, Any]
) -> tuple[Message, memoryview | None]:
    """A message of an unpacked header, and its payload, or why they are none."""
    payload = memoryview(frames[2]) if len(frames) == 3 else None
    if payload is not None and kind.payload == "none":
        raise ProtocolError(f"{kind.__name__} carries no payload")
    if kind.payload == "required" and not payload:
        raise ProtocolError(f"{kind.__name__} needs a payload of at least one byte")
    try:
        message = msgspec.convert(header, kind, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise ProtocolError(f"{kind.__name__}: {clip(str(error))}", task=_task_of(header)) from None
    reason = getattr(message, "reason", "")
    if len(reason) * 4 > REASON_MAX and len(reason.encode()) > REASON_MAX:
        raise ProtocolError(f"{kind.__name__}: reason: at most {REASON_MAX} bytes")
    if payload is not None and isinstance(message, Offer):
        if message.kind == "evaluate":
            raise ProtocolError("Offer: an evaluate offer carries no payload", task=message.task)
        if payload.nbytes > INLINE_MAX:
            raise ProtocolError(
                f"Offer: a payload of {payload.nbytes} bytes, at most {INLINE_MAX} ride along",
                task=message.task,
            )
    return message, payload


def clip(reason: str) -> str:
    """Make a text what a `reason` may be on the wire: one line of at most 200 bytes of UTF-8."""
    line = _CONTROL.sub(" ", reason[:REASON_MAX])
    return line.encode("utf-8", "replace")[:REASON_MAX].decode("utf-8", "ignore")


def _unpack(header: Frame) -> dict[str, Any]:
    if len(header) > HEADER_MAX:
        raise ProtocolError(f"header is {len(header)} bytes, at most {HEADER_MAX}")
    try:
        fields = msgpack.unpackb(
            header,
            strict_map_key=True,
            object_pairs_hook=_unique,
            ext_hook=_no_ext,
            max_ext_len=0,
            max_array_len=IDS_MAX,
            max_map_len=IDS_MAX,
        )
    except msgpack.ExtraData:
        raise ProtocolError("header: trailing bytes after the map") from None
    except (msgpack.StackError, RecursionError):
        raise ProtocolError("header: nested too deeply") from None
    except UnicodeDecodeError:
        raise ProtocolError("header: a text is not UTF-8") from None
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise ProtocolError(f"header: {clip(str(error)) or 'not msgpack'}") from None
    if not isinstance(fields, dict):
        raise ProtocolError("header: not a msgpack map")
    return fields


def _task_of(header: dict[str, Any]) -> bytes | None:
    """The task that a refused header names, if it names one."""
    task = header.get("task")
    return task if isinstance(task, bytes) and 1 <= len(task) <= TASK_MAX else None


def _unique(pairs: list[tuple[object, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key, value in pairs:
        if not isinstance(key, str):
            raise ValueError("a key is not a string")
        if key in fields:
            raise ValueError("a key stands twice")
        fields[key] = value
    return fields


def _no_ext(code: int, _: bytes) -> object:
    raise ValueError(f"ext type {code} has no place in a header")


def _check_texts(field: str, texts: Iterable[str]) -> None:
    for text in texts:
        # A character is at most four bytes: short texts need no second look.
        if len(text) * 4 > TEXT_MAX and len(text.encode()) > TEXT_MAX:
            raise ValueError(f"{field}: at most {TEXT_MAX} bytes each")


def _check_nesting(config: dict[str, Any]) -> None:
    level: list[Any] = [config]
    for _ in range(NESTING_MAX):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list | tuple)
        ]
        if not level:
            return
    raise ValueError(f"config: nested more than {NESTING_MAX} deep")


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_KEYS: dict[type[Message], tuple[tuple[str, str], ...]] = {}


def _keys(kind: type[Message]) -> tuple[tuple[str, str], ...]:
    """(header key, attribute) of each field, in the order in which they are packed."""
    keys = _KEYS.get(kind)
    if keys is None:
        keys = _KEYS[kind] = tuple((f.encode_name, f.name) for f in msgspec.structs.fields(kind))
    return keys
