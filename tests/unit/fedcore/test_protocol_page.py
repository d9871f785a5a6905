"""docs/protocol.md is true: its tables are wire.py's structs and limits, its session is one of messages."""

import json
import re
import struct
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgpack
import msgspec
import numpy as np
import pytest
import xxhash

from fedmq.fedcore import codecs, kernels, wire

PAGE = (Path(__file__).parents[3] / "docs" / "protocol.md").read_text(encoding="utf-8")
TABLES = {"W→B": wire.TO_BROKER, "B→W": wire.TO_WORKER}
KINDS = {kind.__name__.upper(): kind for table in TABLES.values() for kind in table.values()}
TYPES: dict[str, Any] = {
    "text": wire.Text,
    "name": wire.Name,
    "texts": wire.Texts,
    "reason": wire.Reason,
    "id": wire.TaskKey,
    "ids": wire.TaskList,
    "token": wire.Token,
    "digest": wire.Digest,
    "key": wire.CurveKey,
    "count": wire.Count,
    "length": wire.Length,
    "kind number": wire.KindNumber,
    "uint64": wire.Seed,
    "seconds": wire.Seconds,
    "flag": bool,
    "metrics": wire.Metrics,
    "map": dict[str, Any],
}


def section(title: str) -> str:
    """The text under a heading, up to the next one."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, f"docs/protocol.md has no section {title!r}"
    return found[1]


def rows(title: str) -> list[list[str]]:
    """The cells of the first table in a section, without its head."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def cell_of(field: msgspec.structs.FieldInfo) -> tuple[str, str]:
    """(type, whether it must be there) of a struct's field, as the page writes them."""
    kinds = [kind for kind in get_args(field.type) if kind is not type(None)]
    bare = kinds[0] if type(None) in get_args(field.type) else field.type
    if get_origin(bare) is Literal:
        named = "one of " + ", ".join(f"`{word}`" for word in get_args(bare))
    else:
        named = next(name for name, alias in TYPES.items() if alias == bare)
    if field.required:
        return named, "required"
    default = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
    return named, "optional" if default is None else f"`{json.dumps(default)}`"


def test_every_kind_stands_in_the_table() -> None:
    """With its number, its way and its payload, in order."""
    expected = [
        [
            name,
            str(kind.code),
            "both" if all(kind.code in t for t in TABLES.values()) else way,
            kind.payload,
        ]
        for code in range(1, 19)
        for way, table in TABLES.items()
        if (kind := table.get(code)) is not None and (name := kind.__name__.upper())
    ]
    unique = [row for position, row in enumerate(expected) if row not in expected[:position]]
    assert [row[:4] for row in rows("Kinds")] == unique


@pytest.mark.parametrize("name", KINDS)
def test_every_header_key_stands_in_its_kinds_table(name: str) -> None:
    """With its type and whether it may be left out, in the order in which fedmq packs it."""
    documented = [(key, named, must) for key, named, must, _ in rows(name)]
    assert documented == [(f.encode_name, *cell_of(f)) for f in msgspec.structs.fields(KINDS[name])]


def test_every_type_is_explained() -> None:
    """The types that the tables use are those of the table of types."""
    assert {row[0] for row in rows("Types")} == {*TYPES, "one of …"}


def test_limits_are_the_codes() -> None:
    """Each number of the table of limits."""
    limits = dict(rows("Limits"))
    assert limits["header"] == f"{wire.HEADER_MAX:,} bytes"
    assert limits["payload of a TASK"] == f"{wire.TASK_INLINE_MAX:,} bytes"
    assert limits["payload of an OFFER"].startswith(f"{wire.INLINE_MAX:,} bytes")
    assert limits["a text; a name"] == f"{wire.TEXT_MAX} bytes"
    assert limits["a reason"] == f"{wire.REASON_MAX} bytes"
    assert limits["texts in a list; metrics"] == str(wire.LIST_MAX)
    assert limits["ids in a list; entries of any array or map in a header"] == f"{wire.IDS_MAX:,}"
    assert limits["depth of `config`"] == str(wire.NESTING_MAX)
    assert limits["FETCHes unanswered"] == str(wire.FETCHES_MAX)
    allowed, seconds = re.findall(r"\d+", limits["malformed messages"])
    assert (int(allowed) + 1, float(seconds)) == (wire.VIOLATIONS_MAX, wire.VIOLATIONS_WINDOW_S)


def test_codes_and_results_are_the_closed_lists() -> None:
    """Each has its line, and none is there that the wire does not know."""
    errors, results = (
        [row[0].strip("`") for row in rows(title) if row[0].startswith("`")]
        for title in ("Errors", "Updates")
    )
    assert tuple(errors) == wire.ERROR_CODES
    annotation = next(f.type for f in msgspec.structs.fields(wire.Ack) if f.name == "result")
    assert tuple(results) == get_args(annotation)


def test_encodings_are_the_codecs() -> None:
    """Every encoding that fedmq can read is explained."""
    assert tuple(row[0].strip("`") for row in rows("Work")) == codecs.ENCODINGS


class Line(msgspec.Struct, frozen=True):
    """One message of the page's session."""

    way: str
    kind: str
    header: dict[str, Any]
    payload: int


def transcript() -> list[Line]:
    lines = re.findall(
        r"^(W→B|B→W) (\w+) +(\{.*\})(?: \+ (\d+) bytes)?$",
        section("A session, message by message"),
        re.MULTILINE,
    )
    return [
        Line(way, kind, json.loads(bins(header), object_hook=unbin), int(n or 0))
        for way, kind, header, n in lines
    ]


def bins(text: str) -> str:
    return re.sub(r"h'([0-9a-f]*)'", r'{"bin": "\1"}', text)


def unbin(value: dict[str, Any]) -> Any:
    return bytes.fromhex(value["bin"]) if value.keys() == {"bin"} else value


def test_the_session_is_made_of_messages() -> None:
    """Each line decodes, on the side at which it arrives, as the kind that it says."""
    lines = transcript()
    assert len(lines) == section("A session, message by message").count("→")
    for line in lines:
        first = wire.MAGIC + bytes((KINDS[line.kind].code,))
        frames = [first, msgpack.packb(line.header), *([bytes(line.payload)] if line.payload else [])]
        message, _ = wire.decode(frames, TABLES[line.way])
        assert wire.encode(message, frames[2] if line.payload else None)[1] == frames[1], line


def test_the_sparse_payload_is_the_one_of_the_page() -> None:
    """What an implementer compares with."""
    hexadecimal = re.search(r"```\n([0-9a-f ]+)\n```", section("Topk payloads"))
    assert hexadecimal is not None
    x = np.zeros(400, np.float32)
    x[[0, 1, 258]] = 1, -2, 0.5
    assert kernels.encode(x, "topk") == bytes.fromhex(hexadecimal[1])


def test_the_sessions_digests_are_right() -> None:
    """An implementer may check a hash function against the page."""
    table = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, separators=(",", ":"))
    header = table.encode().ljust(120)
    model = struct.pack("<Q", len(header)) + header + struct.pack("<2f", 1.0, -2.0)
    update = struct.pack("<2f", 0.5, -0.25)
    for line in transcript():
        if line.kind == "TASK" and line.header["version"] == 7:
            assert (line.header["size"], line.header["digest"]) == (len(model), xxhash.xxh3_128_digest(model))
        elif line.kind == "OFFER" and line.payload:
            assert (line.payload, line.header["digest"]) == (len(update), xxhash.xxh3_128_digest(update))
