"""The wire protocol, as docs/protocol.md has it: golden bytes, round trips, and all that is refused."""

import json
import math
import re
import tracemalloc
from pathlib import Path
from typing import Any, get_args

import msgpack
import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fedmq.fedcore import wire
from fedmq.fedcore.errors import ProtocolError

GOLDEN = json.loads((Path(__file__).parent / "golden" / "protocol1.json").read_text(encoding="utf-8"))
TABLES = {"W→B": wire.TO_BROKER, "B→W": wire.TO_WORKER}
KINDS = {kind.code: kind for table in TABLES.values() for kind in table.values()}
TASK = b"t" * 37
DIGEST = b"d" * 16


def by_name(group: str) -> Any:
    """Parametrize over one group of the golden vectors."""
    return pytest.mark.parametrize("vector", [pytest.param(v, id=v["name"]) for v in GOLDEN[group]])


def plain(value: Any) -> Any:
    """What a JSON value of the golden file stands for."""
    if isinstance(value, dict):
        if value.keys() == {"bin"}:
            return bytes.fromhex(value["bin"])
        if value.keys() == {"int"}:
            return int(value["int"])
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list) else value


def frames_of(vector: dict[str, Any]) -> list[bytes]:
    return [bytes.fromhex(frame) for frame in vector["frames"]]


def expected(vector: dict[str, Any]) -> tuple[wire.Message, bytes | None]:
    """The message of a golden vector, built from its readable half."""
    kind = KINDS[vector["code"]]
    attributes = {field.encode_name: field.name for field in msgspec.structs.fields(kind)}
    values = {
        attributes[key]: tuple(value) if isinstance(value, list) else value
        for key, value in plain(vector["header"]).items()
        if key in attributes
    }
    payload = vector.get("payload")
    return kind(**values), None if payload is None else bytes.fromhex(payload)


def refusal(frames: list[bytes], table: wire.Table) -> str:
    """Why `decode` refuses these frames."""
    with pytest.raises(ProtocolError) as caught:
        wire.decode(frames, table)
    assert caught.value.code == "malformed"
    return str(caught.value)


def header(kind: type[wire.Message], packed: bytes) -> list[bytes]:
    return [wire.MAGIC + bytes((kind.code,)), packed]


class TestGolden:
    @by_name("canonical")
    def test_encode_makes_these_very_bytes(self, vector: dict[str, Any]) -> None:
        """A release that changes a byte of protocol 1 fails here."""
        message, payload = expected(vector)
        assert [bytes(frame) for frame in wire.encode(message, payload)] == frames_of(vector)

    @pytest.mark.parametrize("group", ["canonical", "accepted"])
    def test_decode_reads_them_as_what_they_say(self, group: str) -> None:
        """Bytes and readable fields are two spellings of one message."""
        for vector in GOLDEN[group]:
            message, payload = wire.decode(frames_of(vector), TABLES[vector["way"]])
            assert (message, payload) == expected(vector), vector["name"]
            assert type(message).__name__.upper() == vector["kind"]

    @by_name("refused")
    def test_decode_refuses_with_one_clear_reason(self, vector: dict[str, Any]) -> None:
        """Each rule of the frame section, broken once."""
        reason = refusal(frames_of(vector), TABLES[vector["way"]])
        assert reason.startswith(vector["reason"])
        assert wire.clip(reason) == reason, "a reason fits into an ERROR as it is"

    def test_every_kind_has_a_vector(self) -> None:
        """In each direction in which it travels."""
        for way, table in TABLES.items():
            assert {v["code"] for v in GOLDEN["canonical"] if v["way"] == way} == set(table)

    def test_names_are_unique(self) -> None:
        """So that an implementer can quote a vector by its name."""
        names = [v["name"] for group in ("canonical", "accepted", "refused") for v in GOLDEN[group]]
        assert len(names) == len(set(names))


class TestTables:
    def test_kinds_are_1_to_18(self) -> None:
        """No gap, and no two kinds with one number."""
        assert sorted(KINDS) == list(range(1, 19))

    def test_only_beat_and_bye_go_both_ways(self) -> None:
        """Every other kind has one sender."""
        assert {KINDS[c] for c in wire.TO_BROKER.keys() & wire.TO_WORKER.keys()} == {wire.Beat, wire.Bye}

    def test_error_codes_are_one_closed_list(self) -> None:
        """The tuple that others look at is the type that the wire enforces."""
        annotation = next(f.type for f in msgspec.structs.fields(wire.Error) if f.encode_name == "code")
        assert get_args(annotation) == wire.ERROR_CODES


def bins(least: int, most: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=least, max_size=most)


texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=32)
names = texts.filter(lambda text: text != "")
reasons = texts.map(wire.clip)
tasks = bins(1, 64)
counts = st.integers(0, 2**53 - 1)
seconds = st.floats(0, 1e9)
lists = st.lists(tasks, max_size=8).map(tuple)
digests = bins(16, 16)
layouts = bins(1, 64)
metrics = st.dictionaries(texts, st.floats(allow_nan=False, allow_infinity=False), max_size=8)
configs = st.dictionaries(
    texts,
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | texts,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)
work = st.fixed_dictionaries({"version": counts, "size": counts, "digest": digests, "layout": layouts})
init_work = st.fixed_dictionaries({"version": st.just(0), "size": st.just(0)})


def task_messages() -> st.SearchStrategy[wire.Message]:
    return st.one_of(
        *(
            st.builds(
                lambda fields, **rest: wire.Task(**fields, **rest),
                init_work if kind == "init" else work,
                task=tasks,
                seq=counts,
                kind=st.just(kind),
                encoding=texts,
                seed=st.integers(0, 2**64 - 1),
                deadline_s=seconds,
                config=configs,
            )
            for kind in ("fit", "evaluate", "init")
        )
    )


def offers() -> st.SearchStrategy[wire.Message]:
    sized = {"task": tasks, "examples": counts, "size": counts, "digest": digests, "metrics": metrics}
    return st.one_of(
        st.builds(wire.Offer, kind=st.just("fit"), base=counts, layout=layouts, encoding=texts, **sized),
        st.builds(
            wire.Offer, kind=st.just("init"), base=st.just(0), encoding=st.just("safetensors"), **sized
        ),
        st.builds(
            wire.Offer,
            kind=st.just("evaluate"),
            base=counts,
            task=tasks,
            examples=counts,
            metrics=metrics.map(lambda found: {**found, "loss": 0.5}),
        ),
    )


maybe = st.none()
blocks = st.integers(1, 2**31 - 1)
messages = st.one_of(
    st.builds(
        wire.Hello,
        protocol=counts,
        name=names,
        instance=bins(1, 32),
        boot=bins(1, 32),
        kinds=st.lists(texts, max_size=4).map(tuple),
        encodings=st.lists(texts, max_size=4).map(tuple),
        tags=st.lists(texts, max_size=4).map(tuple),
        free=counts,
        tasks=lists,
        outbox=lists,
    ),
    st.builds(
        wire.Welcome,
        protocol=counts,
        federation=names,
        beat_s=seconds,
        lease_s=seconds,
        block=blocks,
        inline_max=counts,
        credit=counts,
        max_model_bytes=counts,
    ),
    st.builds(
        wire.Reject,
        why=st.sampled_from(["wrong_protocol", "name_in_use", "revoked", "full", "finished"]),
        reason=reasons,
        retry_s=seconds,
        fatal=st.booleans(),
    ),
    st.builds(wire.Beat, tasks=maybe | lists, outbox=maybe | lists, free=maybe | counts, seen=maybe | counts),
    task_messages(),
    st.builds(wire.Fetch, version=counts, offset=counts, length=blocks),
    st.builds(wire.Block, version=counts, offset=counts),
    offers(),
    st.builds(wire.Grant, task=tasks, offset=counts, limit=counts),
    st.builds(wire.Part, task=tasks, offset=counts),
    st.builds(
        wire.Ack,
        task=tasks,
        result=st.sampled_from(["accepted", "duplicate", "stale", "rejected"]),
        reason=reasons,
    ),
    st.builds(wire.Wait, task=tasks, retry_s=seconds),
    st.builds(wire.Fail, task=tasks, reason=reasons),
    st.builds(wire.Cancel, task=tasks, reason=reasons),
    st.builds(wire.Bye, reason=reasons),
    st.builds(
        wire.Error,
        ref=st.integers(0, 255),
        why=st.sampled_from(wire.ERROR_CODES),
        reason=reasons,
        task=maybe | tasks,
        version=maybe | counts,
        offset=maybe | counts,
    ),
    st.builds(wire.Enroll, key=bins(32, 32)),
    st.builds(wire.Enrolled, key=bins(32, 32)),
)


class TestRoundTrip:
    @given(messages, bins(1, 100))
    def test_what_is_sent_arrives(self, message: wire.Message, data: bytes) -> None:
        """decode(encode(m)) is m, with its payload, for every kind and all values in range."""
        payload = data if message.payload == "required" else None
        frames = wire.encode(message, payload)
        table = {message.code: type(message)}
        assert wire.decode(frames, table) == (message, payload)

    @given(st.binary(max_size=wire.INLINE_MAX))
    @example(b"")
    @example(b"x" * wire.INLINE_MAX)
    def test_an_update_rides_with_its_offer(self, data: bytes) -> None:
        """Up to 64 KiB, an empty one included."""
        offer = wire.Offer(
            task=TASK,
            kind="fit",
            base=0,
            examples=1,
            layout=b"l",
            encoding="f32",
            size=len(data),
            digest=DIGEST,
        )
        assert wire.decode(wire.encode(offer, data), wire.TO_BROKER) == (offer, data)

    def test_payloads_are_not_copied(self) -> None:
        """Neither on the way out nor on the way in."""
        data = bytearray(b"abc")
        frames = wire.encode(wire.Part(task=TASK, offset=0), memoryview(data))
        _, payload = wire.decode(frames, wire.TO_BROKER)
        data[0] = ord("x")
        assert payload == b"xbc"

    def test_frames_may_be_any_buffer(self) -> None:
        """As a socket gives them: bytes, or views of frames."""
        frames = [memoryview(bytearray(f)) for f in wire.encode(wire.Part(task=TASK, offset=7), b"abc")]
        assert wire.decode(frames, wire.TO_BROKER) == (wire.Part(task=TASK, offset=7), b"abc")

    def test_a_field_that_is_none_is_absent(self) -> None:
        """A broker's BEAT is an empty map."""
        assert wire.encode(wire.Beat()) == [b"FQ\x01\x04", b"\x80"]

    def test_keys_that_are_not_known_are_ignored(self) -> None:
        """Minor additions need no new version, wherever a broker of tomorrow adds them."""
        for vector in GOLDEN["canonical"]:
            frames = frames_of(vector)
            fields = msgpack.unpackb(frames[1]) | {"new in 1.7": {"x": [1, None, 2.5]}}
            frames[1] = msgpack.packb(fields)
            assert wire.decode(frames, TABLES[vector["way"]]) == expected(vector)


def an_evaluation(**metrics: float) -> wire.Offer:
    return wire.Offer(task=TASK, kind="evaluate", base=0, examples=1, metrics={"loss": 1.0, **metrics})


def a_task(**config: Any) -> wire.Task:
    return wire.Task(
        task=TASK, seq=1, kind="fit", version=0, size=4, digest=DIGEST, layout=b"l", config=config
    )


class TestEncode:
    """A defect of ours shows where it is: encode makes nothing that a peer would refuse."""

    @pytest.mark.parametrize(
        "message",
        [
            pytest.param(lambda: wire.Fetch(version=0, offset=0, length=0), id="a number out of range"),
            pytest.param(lambda: wire.Fetch(version=-1, offset=0, length=1), id="a negative number"),
            pytest.param(lambda: wire.Wait(task=TASK, retry_s=math.nan), id="NaN seconds"),
            pytest.param(lambda: wire.Ack(task=b"", result="accepted"), id="an empty id"),
            pytest.param(lambda: an_evaluation(**{f"m{i}": 1.0 for i in range(64)}), id="65 metrics"),
            pytest.param(lambda: a_task(at=object()), id="a config that msgpack has no type for"),
            pytest.param(lambda: a_task(n=2**64), id="an integer of more than 64 bits"),
            pytest.param(lambda: a_task(many=list(range(1025))), id="an array of more than 1,024 entries"),
            pytest.param(lambda: a_task(text="\udcff"), id="text that is not Unicode"),
            pytest.param(lambda: a_task(text="x" * wire.HEADER_MAX), id="a header over 64 KiB"),
            pytest.param(lambda: a_task(**{"": {"a": {1: 2}}}), id="a key that is no text"),
        ],
    )
    def test_refuses_what_decode_would(self, message: Any) -> None:
        """With a ValueError that names the kind, before anything is sent."""
        built = message()
        with pytest.raises(ValueError, match=f"^{type(built).__name__} cannot be sent: "):
            wire.encode(built)

    @pytest.mark.parametrize(
        ("message", "payload"),
        [
            (wire.Bye(), b""),
            (wire.Part(task=TASK, offset=0), None),
            (wire.Part(task=TASK, offset=0), b""),
            (an_evaluation(), b"x"),
        ],
    )
    def test_refuses_a_payload_that_does_not_belong(
        self, message: wire.Message, payload: bytes | None
    ) -> None:
        """Missing, empty, or where none is listed."""
        with pytest.raises(ValueError, match="payload"):
            wire.encode(message, payload)

    @given(st.text(st.characters(), max_size=500))
    @example("é" * 200)
    @example("a" * 199 + "é")
    @example("lone \udc80 surrogate")
    @example("\x1b[31mred\nTraceback:\n")
    def test_clips_any_reason(self, text: str) -> None:
        """The text of an exception may be passed as it is: it arrives as one line of at most 200 bytes."""
        message, _ = wire.decode(wire.encode(wire.Fail(task=TASK, reason=text)), wire.TO_BROKER)
        assert isinstance(message, wire.Fail)
        assert message.reason == wire.clip(text)
        assert len(message.reason.encode()) <= wire.REASON_MAX
        assert not re.search(r"[\x00-\x1f\x7f-\x9f]", message.reason)

    def test_clip_leaves_short_text_alone(self) -> None:
        """A reason of exactly 200 bytes is not shortened."""
        assert wire.clip("é" * 100) == "é" * 100


class TestRefused:
    """What the golden vectors have no room for."""

    def test_a_header_over_64_kib(self) -> None:
        """Before it is parsed; one byte less is fine."""

        def padded(size: int) -> list[bytes]:
            packed = msgpack.packb({"x": b"x" * (size - 6)})
            assert len(packed) == size
            return header(wire.Bye, packed)

        wire.decode(padded(wire.HEADER_MAX), wire.TO_BROKER)
        assert refusal(padded(wire.HEADER_MAX + 1), wire.TO_BROKER) == "header is 65537 bytes, at most 65536"

    def test_nesting(self) -> None:
        """Too deep for any parser's stack is one clear reason, not an exception of another kind."""
        packed = b"\x81\xa1x" + b"\x91" * 5000 + b"\xc0"
        assert refusal(header(wire.Bye, packed), wire.TO_BROKER) == "header: nested too deeply"

    def test_an_inline_payload_over_64_kib(self) -> None:
        """It has to be granted first."""
        size = wire.INLINE_MAX + 1
        frames = wire.encode(
            wire.Offer(
                task=TASK,
                kind="fit",
                base=0,
                examples=1,
                layout=b"l",
                encoding="f32",
                size=size,
                digest=DIGEST,
            )
        )
        assert "at most 65536 ride along" in refusal([*map(bytes, frames), bytes(size)], wire.TO_BROKER)

    def test_more_than_1024_ids(self) -> None:
        """In a BEAT's lists; 1,024 are fine."""
        ok = wire.Beat(tasks=tuple(bytes((i // 256, i % 256)) for i in range(1024)), outbox=())
        assert wire.decode(wire.encode(ok), wire.TO_BROKER)[0] == ok
        packed = msgpack.packb({"tasks": [b"t"] * 1025})
        assert "max_array_len" in refusal(header(wire.Beat, packed), wire.TO_BROKER)

    def test_headers_that_claim_much_cost_little(self) -> None:
        """64 KiB of nested arrays, each of which says that it is large, reserve a few MiB at most."""
        for claim in (b"\xdc\x04\x00", b"\xdc\xff\xff", b"\xde\x04\x00\xa1x"):
            packed = (b"\x81\xa1x" + claim * 1000).ljust(wire.HEADER_MAX, b"\xc0")
            tracemalloc.start()
            refusal(header(wire.Bye, packed), wire.TO_BROKER)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < 16 * 2**20

    def test_a_reason_never_carries_control_characters(self) -> None:
        """What a peer sent may stand in a reason, but cannot move an operator's cursor."""
        packed = msgpack.packb({"task": TASK, "result": "\x1b[2J\n"})
        assert "\x1b" not in refusal(header(wire.Ack, packed), wire.TO_WORKER)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=40),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=4) | st.integers(0, 9), inner, max_size=4)
    ),
    max_leaves=6,
)
tables = st.sampled_from([wire.TO_BROKER, wire.TO_WORKER])


def accept_or_refuse(frames: list[bytes], table: wire.Table) -> None:
    """A message that can be sent on as it is, or a ProtocolError whose reason fits an ERROR."""
    try:
        message, payload = wire.decode(frames, table)
    except ProtocolError as refused:
        message, payload = wire.Error(ref=0, why="malformed", reason=str(refused)), None
    wire.encode(message, payload)


class TestFuzz:
    """Whatever arrives, nothing but ProtocolError comes out; and what was accepted can be sent."""

    @given(st.lists(st.binary(max_size=64), max_size=4), tables)
    def test_random_frames(self, frames: list[bytes], table: wire.Table) -> None:
        """Noise."""
        accept_or_refuse(frames, table)

    @given(st.integers(0, 20), st.binary(max_size=64), st.none() | st.binary(max_size=8), tables)
    def test_random_headers(self, code: int, packed: bytes, payload: bytes | None, table: wire.Table) -> None:
        """A good first frame, then noise."""
        frames = [wire.MAGIC + bytes((code,)), packed]
        accept_or_refuse(frames if payload is None else [*frames, payload], table)

    @given(st.data(), st.sampled_from(GOLDEN["canonical"]))
    def test_wrong_values(self, data: st.DataObject, vector: dict[str, Any]) -> None:
        """A good message in which one value is something else, or gone."""
        frames = frames_of(vector)
        fields = msgpack.unpackb(frames[1])
        key = data.draw(st.sampled_from([*fields, "unknown"]))
        fields[key] = data.draw(values)
        if data.draw(st.booleans()):
            del fields[key]
        accept_or_refuse([frames[0], msgpack.packb(fields), *frames[2:]], TABLES[vector["way"]])

    @given(st.data(), st.sampled_from(GOLDEN["canonical"]))
    def test_flipped_bytes(self, data: st.DataObject, vector: dict[str, Any]) -> None:
        """A good message in which one byte is another."""
        frames = [bytearray(frame) for frame in frames_of(vector)]
        frame = data.draw(st.sampled_from(frames))
        if frame:
            frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
        accept_or_refuse([bytes(f) for f in frames], TABLES[vector["way"]])


def test_a_refused_message_says_which_task_it_was_about() -> None:
    """So that the answer can: a worker would offer the same again for ever."""
    offer = wire.Offer(task=b"t" * 37, kind="evaluate", base=0, examples=1, metrics={"loss": 1.0})
    first, header = wire.encode(offer)
    broken = msgpack.packb({**msgpack.unpackb(header), "metrics": {"loss": math.inf}})
    for frames in ([first, broken], [first, header, b"payload"]):
        with pytest.raises(ProtocolError) as caught:
            wire.decode(frames, wire.TO_BROKER)
        assert caught.value.task == b"t" * 37
    with pytest.raises(ProtocolError) as caught:
        wire.decode([first, msgpack.packb({"task": "no bytes"})], wire.TO_BROKER)
    assert caught.value.task is None
