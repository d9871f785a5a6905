"""The worker's mind, message by message. What it says on page one (the table) is what is tested first."""

import random
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest

from fedmq.fedcore import wire
from fedmq.worker import session as session_module
from fedmq.worker.connection import Phase
from fedmq.worker.entry import Entry
from fedmq.worker.events import (
    Action,
    AppFailed,
    BlockFailed,
    CancelApp,
    CloseSocket,
    DeleteModel,
    DeleteOutbox,
    Event,
    Exit,
    KeepModel,
    Lost,
    MayTrain,
    ModelBroken,
    Moment,
    Notify,
    Opened,
    OpenSocket,
    OutboxFailed,
    Pause,
    Received,
    Refused,
    Resume,
    Send,
    SendStored,
    Start,
    StartApp,
    Stop,
    StoreBlock,
    Stored,
    Tick,
    Wake,
)
from fedmq.worker.session import Identity, Session

KIB = 1024
MIB = 1024 * KIB
BLOCK = 64 * KIB
LEASE_S = 35.0
BEAT_S = 10.0
DIGEST = b"d" * 16


def welcome(**changes: Any) -> wire.Welcome:
    terms: dict[str, Any] = {
        "protocol": 1,
        "federation": "fed",
        "beat_s": BEAT_S,
        "lease_s": LEASE_S,
        "block": BLOCK,
        "inline_max": 64 * KIB,
        "credit": 4 * MIB,
        "max_model_bytes": 64 * MIB,
    }
    return wire.Welcome(**{**terms, **changes})


def a_task(name: str = "t", **changes: Any) -> wire.Task:
    fields: dict[str, Any] = {
        "task": name.encode(),
        "seq": 1,
        "kind": "fit",
        "version": 7,
        "size": 5000,
        "digest": DIGEST,
        "layout": b"layout",
    }
    return wire.Task(**{**fields, **changes})


def init_task(name: str, seq: int = 1) -> wire.Task:
    """A task that needs no model: the app is started at once."""
    return wire.Task(task=name.encode(), seq=seq, kind="init", version=0, size=0, encoding="safetensors")


def an_entry(name: str = "t", size: int = 100, **changes: Any) -> Entry:
    fields: dict[str, Any] = {
        "task": name.encode(),
        "kind": "fit",
        "federation": "fed",
        "base": 7,
        "examples": 10,
        "layout": b"layout",
        "encoding": "f32",
        "size": size,
        "digest": b"e" * 16,
    }
    return Entry(**{**fields, **changes})


class Driver:
    """A session, the time, and what it asked for last."""

    def __init__(self, *, outbox: tuple[Entry, ...] = (), models: dict[bytes, int] | None = None, **me: Any):
        identity = {
            "name": "w",
            "instance": b"i" * 16,
            "boot": b"b" * 16,
            "kinds": ("fit", "evaluate", "init"),
        }
        self.session = Session(
            Identity(**{**identity, **me}), rng=random.Random(1), outbox=outbox, models=models
        )
        self.now = 100.0
        self.actions: list[Action] = []

    def tell(self, *events: Event) -> list[Action]:
        """What the events lead to, all together."""
        self.actions = []
        for event in events:
            self.actions += self.session.handle(event, now=self.now)
        return self.actions

    def get(self, *messages: wire.Message) -> list[Action]:
        """The broker's messages arrive."""
        return self.tell(*(Received(message) for message in messages))

    def block(self, offset: int, length: int, version: int = 7) -> list[Action]:
        return self.tell(Received(wire.Block(version=version, offset=offset), memoryview(bytes(length))))

    def later(self, seconds: float) -> list[Action]:
        self.now += seconds
        return self.tell(Tick())

    def open(self, **terms: Any) -> "Driver":
        self.tell(Start(), Opened(), Received(welcome(**terms)))
        assert self.session.phase is Phase.OPEN
        return self

    def sent(self) -> list[wire.Message]:
        return [action.message for action in self.actions if isinstance(action, Send | SendStored)]

    def of(self, kind: type[Action]) -> list[Any]:
        return [action for action in self.actions if isinstance(action, kind)]

    def moments(self) -> list[Moment]:
        return [action.moment for action in self.of(Notify)]

    def run_through(self, name: str, seq: int = 1, size: int = 100) -> list[Action]:
        """A task comes and is finished."""
        self.get(init_task(name, seq))
        return self.tell(Stored(an_entry(name, size, base=0)))


def busy(phase: Phase) -> Driver:
    """A worker in this phase with one of everything in its hands."""
    driver = Driver(slots=5).open()
    driver.run_through("small", 1)
    driver.run_through("large", 2, size=3 * MIB)
    driver.get(init_task("running", 3), a_task("fetching", seq=4))
    match phase:
        case Phase.CLOSED:
            driver.get(wire.Bye(reason="shutdown"))
        case Phase.CONNECTING:
            driver.tell(Lost())
        case Phase.GREETING:
            driver.tell(Opened())
        case Phase.ENDED:
            driver.tell(Stop())
    assert driver.session.phase is phase
    return driver


def snapshot(
    thing: object, skip: frozenset[str] = frozenset({"_since", "_said_at", "_wake_at", "_out", "_rng"})
) -> Any:
    """All that a mind remembers, but for when it last heard and spoke."""
    if isinstance(thing, dict):
        return [(key, snapshot(value)) for key, value in thing.items()]
    if isinstance(thing, list | tuple | deque):
        return [snapshot(item) for item in thing]
    names = list(getattr(thing, "__slots__", ())) or list(vars(thing) if hasattr(thing, "__dict__") else ())
    if not type(thing).__module__.startswith("fedmq.worker") or not names or isinstance(thing, Phase):
        return repr(thing)
    return {name: snapshot(getattr(thing, name)) for name in names if name not in skip}


MESSAGES: dict[str, Received] = {
    "WELCOME": Received(welcome()),
    "REJECT": Received(wire.Reject(why="full", retry_s=5)),
    "BEAT": Received(wire.Beat()),
    "TASK": Received(a_task("new", seq=5)),
    "BLOCK": Received(wire.Block(version=7, offset=0), memoryview(bytes(5000))),
    "GRANT": Received(wire.Grant(task=b"large", offset=0, limit=MIB)),
    "WAIT": Received(wire.Wait(task=b"small", retry_s=3)),
    "ACK": Received(wire.Ack(task=b"small", result="accepted")),
    "CANCEL": Received(wire.Cancel(task=b"fetching")),
    "BYE": Received(wire.Bye(reason="shutdown")),
    "ERROR": Received(wire.Error(ref=4, why="need_hello")),
    "ENROLLED": Received(wire.Enrolled(key=b"k")),
}


def table() -> Iterator[tuple[str, Phase, bool]]:
    """The rows of the docstring's table: (message, phase, whether it changes anything)."""
    rows = (session_module.__doc__ or "").split("============\n")
    for line in rows[2].splitlines():
        cells = [cell for cell in line.strip().split("  ") if cell.strip()]
        if len(cells) < 3 or "===" in line:
            continue
        message = cells[0].strip()
        rest = [cell.strip() for cell in cells[1:]]
        if len(rest) < 4:  # one text for the three phases that have a socket
            rest = [rest[0], rest[1], rest[1], rest[1]]
        for phase, cell in zip(
            (Phase.CLOSED, Phase.CONNECTING, Phase.GREETING, Phase.OPEN), rest, strict=True
        ):
            yield message, phase, cell not in ("·", "proves life")
        yield message, Phase.ENDED, False


def test_the_table_names_every_message() -> None:
    """Each kind that a broker may send has its row, and its example here."""
    kinds = {kind.__name__.upper() for kind in wire.TO_WORKER.values()}
    assert {message for message, _, _ in table()} == kinds == set(MESSAGES)


@pytest.mark.parametrize(("message", "phase", "counts"), list(table()))
def test_every_message_in_every_phase(message: str, phase: Phase, counts: bool) -> None:
    """A message changes something exactly where the table says so; elsewhere nothing, and nothing is asked for."""
    driver = busy(phase)
    before = snapshot(driver.session)
    actions = [action for action in driver.tell(MESSAGES[message]) if not isinstance(action, Wake)]
    assert (snapshot(driver.session) != before) == counts
    assert bool(actions) == counts or message == "WAIT"


@pytest.mark.parametrize(
    "received",
    [
        Received(wire.Grant(task=b"unknown", offset=0, limit=9)),
        Received(wire.Grant(task=b"large", offset=4 * MIB, limit=5 * MIB)),
        Received(wire.Grant(task=b"large", offset=10, limit=9)),
        Received(wire.Grant(task=b"running", offset=0, limit=9)),
        Received(wire.Wait(task=b"unknown", retry_s=1)),
        Received(wire.Wait(task=b"running", retry_s=1)),
        Received(wire.Ack(task=b"running", result="accepted")),
        Received(wire.Cancel(task=b"unknown")),
        Received(wire.Block(version=8, offset=0), memoryview(bytes(5000))),
        Received(wire.Block(version=7, offset=1), memoryview(bytes(4999))),
        Received(wire.Block(version=7, offset=0), memoryview(bytes(4999))),
        Received(wire.Block(version=7, offset=0), memoryview(bytes(5001))),
        Received(wire.Error(ref=6, why="gone", version=8)),
        Received(wire.Error(ref=10, why="malformed", task=b"unknown")),
        Received(wire.Error(ref=8, why="malformed", task=b"unknown")),
    ],
)
def test_what_fits_nothing_changes_nothing(received: Received) -> None:
    """A message about a task, a version or a place that is not due is ignored."""
    driver = busy(Phase.OPEN)
    before = snapshot(driver.session)
    driver.tell(received)
    assert snapshot(driver.session) == before
    assert driver.sent() == []


# Connection


def test_hello_is_the_first_message_and_says_what_is_held() -> None:
    """A restarted worker's HELLO lists its outbox; nothing else is sent before WELCOME."""
    driver = Driver(outbox=(an_entry("kept"),))
    assert driver.tell(Start())[0] == OpenSocket()
    driver.tell(Opened())
    (hello,) = driver.sent()
    assert isinstance(hello, wire.Hello)
    assert (hello.outbox, hello.tasks, hello.free) == ((b"kept",), (), 2)
    driver.later(BEAT_S)
    assert driver.sent() == []
    driver.get(welcome())
    assert [type(m) for m in driver.sent()] == [wire.Offer]


def test_hello_lists_what_is_in_hand() -> None:
    """`tasks` and `outbox` of a HELLO are disjoint, and `free` is less what is held."""
    driver = busy(Phase.GREETING)
    (hello,) = driver.sent()
    assert isinstance(hello, wire.Hello)
    assert hello.tasks == (b"running", b"fetching")
    assert hello.outbox == (b"small", b"large")
    assert hello.free == 3


def test_need_hello_is_answered_once() -> None:
    """Each message of a forgotten session is answered need_hello; one HELLO is enough."""
    driver = Driver().open()
    driver.get(*[wire.Error(ref=4, why="need_hello")] * 3)
    assert [type(m) for m in driver.sent()] == [wire.Hello]


def test_a_task_of_the_session_before_is_not_taken() -> None:
    """The broker freed it when it read the HELLO that did not list it."""
    driver = Driver().open()
    driver.tell(Opened(), Received(a_task()))
    driver.get(welcome())
    assert driver.session.status()["tasks"] == 0


def test_beat_when_nothing_else_was_said() -> None:
    """A BEAT goes `beat_s` after the last message, with what is held and seen."""
    driver = Driver().open()
    driver.get(init_task("t"))
    assert driver.later(BEAT_S - 0.1) == []
    driver.later(0.1)
    assert driver.sent() == [wire.Beat(tasks=(b"t",), outbox=(), free=1, seen=1)]


def test_beat_at_once_when_free_changes_otherwise_than_the_broker_knows() -> None:
    """A TASK lowers `free` on both sides, an OFFER raises it; a pause or a FAIL is news."""
    driver = Driver().open()
    driver.get(init_task("t"))
    assert driver.sent() == []
    driver.tell(Pause())
    assert driver.sent() == [wire.Beat(tasks=(b"t",), outbox=(), free=0, seen=1)]
    driver.tell(Resume())
    assert driver.sent() == [wire.Beat(tasks=(b"t",), outbox=(), free=1, seen=1)]
    driver.tell(Stored(an_entry("t")))
    assert [type(m) for m in driver.sent()] == [wire.Offer]
    driver.get(init_task("u", 2))
    driver.tell(AppFailed(b"u", "broken"))
    assert [type(m) for m in driver.sent()] == [wire.Fail, wire.Beat]


def test_an_offer_frees_a_slot_once() -> None:
    """Offered again it does not; nor after a HELLO or BEAT that listed its result."""
    driver = Driver(slots=1, outbox=(an_entry("old"),)).open()
    driver.get(wire.Wait(task=b"old", retry_s=1))
    driver.later(2)
    assert [type(m) for m in driver.sent()] == [wire.Offer]
    driver.get(wire.Ack(task=b"old", result="accepted"), init_task("t"))
    driver.tell(Stored(an_entry("t")))
    driver.get(wire.Wait(task=b"t", retry_s=1))
    driver.later(2)
    assert [type(m) for m in driver.sent()] == [wire.Offer]


def test_a_fifth_large_result_is_told_before_it_is_offered() -> None:
    """Four OFFERs may wait for a GRANT; a slot is free all the same, and the broker is to know."""
    driver = Driver(slots=1).open()
    for i in range(1, 5):
        driver.run_through(f"t{i}", i, size=MIB)
        assert [type(m) for m in driver.sent()] == [wire.Offer]
    driver.run_through("t5", 5, size=MIB)
    assert driver.sent() == [wire.Beat(tasks=(), outbox=(b"t1", b"t2", b"t3", b"t4", b"t5"), free=1, seen=5)]
    driver.get(wire.Ack(task=b"t1", result="accepted"))
    assert [type(m) for m in driver.sent()] == [wire.Offer]


@pytest.mark.parametrize("message", [wire.Ack(task=b"t", result="stale"), wire.Cancel(task=b"t")])
def test_free_is_told_again_where_the_broker_may_have_counted_otherwise(message: wire.Message) -> None:
    """It had given the task up while the OFFER was on its way, so that this one freed no slot."""
    driver = Driver().open()
    driver.run_through("t")
    driver.get(message)
    assert driver.sent() == [wire.Beat(tasks=(), outbox=(), free=2, seen=1)]


def test_silence_for_a_lease_reopens_with_full_jitter_that_doubles() -> None:
    """After the n-th failure the pause is anywhere in 0 … min(60, 2ⁿ) s, and a WELCOME begins anew."""
    ceilings: list[float] = []
    for seed in range(40):
        driver = Driver().open()
        driver.session._connection._rng.seed(seed)
        driver.later(LEASE_S)
        assert driver.of(CloseSocket)
        for attempt in range(9):
            at = driver.session._wake_at
            pause = at - driver.now
            assert 0 <= pause <= min(60, 2**attempt)
            ceilings.append(pause / min(60, 2**attempt))
            driver.later(pause)
            assert driver.of(OpenSocket)
            driver.later(LEASE_S)
    assert min(ceilings) < 0.05
    assert max(ceilings) > 0.95


def test_no_welcome_within_a_lease_reopens() -> None:
    """A broker that never answers HELLO is given up for a while."""
    driver = Driver()
    driver.tell(Start(), Opened())
    driver.later(LEASE_S - 0.1)
    assert driver.actions == []
    driver.later(0.1)
    assert driver.of(CloseSocket)


def test_any_message_proves_life() -> None:
    """Empty BEATs keep a session for ever."""
    driver = Driver().open()
    for _ in range(10):
        driver.now += LEASE_S - 1
        driver.get(wire.Beat())
        assert driver.session.phase is Phase.OPEN


def test_the_app_trains_on_while_the_worker_is_cut_off() -> None:
    """A loss cancels nothing, and what was finished meanwhile is offered later."""
    driver = busy(Phase.CLOSED)
    assert not driver.of(CancelApp)
    driver.tell(Stored(an_entry("running")))
    assert driver.sent() == []
    driver.later(60)
    driver.tell(Opened(), Received(welcome()))
    offered = [m.task for m in driver.sent() if isinstance(m, wire.Offer)]
    assert offered == [b"small", b"large", b"running"]


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (wire.Bye(reason="finished"), 0),
        (wire.Bye(reason="revoked"), 7),
        (wire.Reject(why="finished", fatal=True), 0),
        (wire.Reject(why="finished"), 0),
        (wire.Reject(why="revoked", reason="evicted", fatal=True), 7),
        (wire.Reject(why="wrong_protocol", fatal=True), 7),
    ],
)
def test_the_ends_that_a_broker_may_set(message: wire.Message, code: int) -> None:
    """Finished is a success; a refusal for good is exit code 7. The app is cancelled, the outbox stays."""
    driver = busy(Phase.GREETING)
    driver.get(message)
    (end,) = driver.of(Exit)
    assert end.code == code
    assert driver.of(CancelApp) == [CancelApp(b"running")]
    assert driver.of(CloseSocket)
    assert not driver.of(DeleteOutbox)
    assert driver.session.has_ended
    assert driver.tell(Tick(), Stop()) == []


def test_a_refusal_for_now_is_retried_after_retry_s() -> None:
    """`name_in_use` may pass: try again when the broker says, a little jittered."""
    driver = Driver()
    driver.tell(Start(), Opened(), Received(wire.Reject(why="name_in_use", retry_s=10)))
    assert driver.of(CloseSocket)
    assert 110 <= driver.session._wake_at <= 115


def test_a_refused_key_backs_off() -> None:
    """HANDSHAKE_FAILED_AUTH closes the socket, with one line for the log, and tries again later."""
    driver = Driver()
    driver.tell(Start(), Refused("not on the list"))
    (told,) = driver.of(Notify)
    assert (told.moment, told.fields) == (Moment.NOT_CONNECTED, {"reason": "not on the list"})
    assert driver.session.phase is Phase.CLOSED


def test_stop_says_bye_and_keeps_the_outbox() -> None:
    """BYE in session; CancelApp; Exit 0."""
    driver = busy(Phase.OPEN)
    driver.tell(Stop())
    assert [type(m) for m in driver.sent()] == [wire.Bye]
    assert driver.of(CancelApp)
    assert driver.of(Exit) == [Exit(0, "stopped")]
    assert not driver.of(DeleteOutbox)


def test_terms_that_cannot_be_met_are_not_accepted() -> None:
    """Another protocol or absurd blocks: not connected, retried."""
    for terms in (welcome(protocol=2), welcome(block=10)):
        driver = Driver()
        driver.tell(Start(), Opened(), Received(terms))
        assert driver.session.phase is Phase.CLOSED


def test_another_federation_gets_nothing_of_ours() -> None:
    """A broker of another federation at the same address: tasks are dropped, and its outbox is not ours."""
    driver = busy(Phase.GREETING)
    driver.get(welcome(federation="other"))
    assert {a.task for a in driver.of(DeleteOutbox)} == {b"small", b"large"}
    assert driver.of(CancelApp) == [CancelApp(b"running")]
    assert not [m for m in driver.sent() if isinstance(m, wire.Offer)]
    assert driver.session.status()["tasks"] == 0


# Tasks


def test_a_task_is_fetched_started_and_offered() -> None:
    """The whole way: TASK, FETCH, BLOCK, StartApp, Stored, OFFER, ACK."""
    driver = Driver().open()
    driver.get(a_task())
    assert driver.sent() == [wire.Fetch(version=7, offset=0, length=5000)]
    driver.block(0, 5000)
    assert [type(a) for a in driver.actions if not isinstance(a, Notify)] == [StoreBlock, StartApp]
    driver.tell(Stored(an_entry()))
    (offer,) = driver.of(SendStored)
    assert (offer.offset, offer.length) == (0, 100)
    driver.get(wire.Ack(task=b"t", result="accepted"))
    assert driver.of(DeleteOutbox) == [DeleteOutbox(b"t")]
    assert Moment.UPDATE_ACCEPTED in driver.moments()


def test_a_model_in_fewer_bytes_is_fetched_as_what_its_task_says() -> None:
    """HELLO says what is read, FETCH names it, and only a BLOCK that names it as well is taken."""
    driver = Driver()
    hello = next(m for m in (driver.tell(Start(), Opened()), driver.sent())[1] if isinstance(m, wire.Hello))
    assert hello.models == ("f32", "f16", "bf16")
    driver.get(welcome())
    driver.get(a_task(model="f16"))
    assert driver.sent() == [wire.Fetch(version=7, offset=0, length=5000, model="f16")]
    driver.block(0, 5000)
    assert not driver.of(StoreBlock)
    driver.tell(Received(wire.Block(version=7, offset=0, model="f16"), memoryview(bytes(5000))))
    assert [type(a) for a in driver.actions if not isinstance(a, Notify)] == [StoreBlock, StartApp]
    assert driver.of(StartApp)[0].task.model == "f16"


def test_it_goes_on_where_it_was_in_the_next_session() -> None:
    """The encoded file has the same bytes from every life of a broker."""
    driver = Driver().open(block=BLOCK)
    driver.get(a_task(size=2 * BLOCK, model="f16"))
    driver.tell(Received(wire.Block(version=7, offset=0, model="f16"), memoryview(bytes(BLOCK))))
    driver.tell(Lost())
    driver.tell(Opened(), Received(welcome(block=BLOCK)))
    fetches = [m for m in driver.sent() if isinstance(m, wire.Fetch)]
    assert fetches == [wire.Fetch(version=7, offset=BLOCK, length=BLOCK, model="f16")]


def test_one_version_may_come_as_two_files() -> None:
    """As when a broker was started anew on another config: each by its own digest, and neither into the other."""
    driver = Driver().open()
    driver.get(a_task("one", model="f16", size=3000), a_task("two", seq=2, digest=b"f" * 16))
    driver.tell(Received(wire.Block(version=7, offset=0), memoryview(bytes(5000))))
    assert [a.digest for a in driver.of(StoreBlock)] == [b"f" * 16]
    driver.tell(Received(wire.Block(version=7, offset=0, model="f16"), memoryview(bytes(3000))))
    assert [a.digest for a in driver.of(StoreBlock)] == [DIGEST]


def test_a_model_in_an_unknown_encoding_is_refused() -> None:
    """A broker may only name what HELLO did."""
    driver = Driver().open()
    driver.get(a_task(model="f8"))
    (fail,) = [m for m in driver.sent() if isinstance(m, wire.Fail)]
    assert fail.reason == "this worker does not read models as f8"
    assert not [m for m in driver.sent() if isinstance(m, wire.Fetch)]


def test_the_next_model_is_fetched_while_one_trains() -> None:
    """With two slots the second task waits with its model, and starts when the first is done."""
    driver = Driver().open()
    driver.get(init_task("one"), a_task("two", seq=2))
    assert driver.sent() == [wire.Fetch(version=7, offset=0, length=5000)]
    driver.block(0, 5000)
    assert not driver.of(StartApp)
    driver.tell(Stored(an_entry("one")))
    assert [a.task.task for a in driver.of(StartApp)] == [b"two"]


def test_a_task_known_already_is_not_taken_twice() -> None:
    """The id is the idempotency key, in hand and in the outbox."""
    driver = Driver().open()
    driver.get(init_task("t"), init_task("t", seq=2))
    assert driver.session.status()["tasks"] == 1
    driver.tell(Stored(an_entry("t")))
    driver.get(init_task("t", seq=3))
    assert driver.session.status()["tasks"] == 0


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        (a_task(encoding="q2"), "q2"),
        (a_task(size=65 * MIB), "announced"),
        (a_task(size=0), "announced"),
    ],
)
def test_a_task_that_cannot_be_done_fails_at_once(task: wire.Task, reason: str) -> None:
    """FAIL with the reason; nothing is fetched."""
    driver = Driver().open()
    driver.get(task)
    fail, beat = driver.sent()
    assert isinstance(fail, wire.Fail)
    assert reason in fail.reason
    assert beat == wire.Beat(tasks=(), outbox=(), free=2, seen=1)


def test_init_without_an_initial_fails() -> None:
    """A broker that asks what HELLO did not offer is told so."""
    driver = Driver(kinds=("fit", "evaluate")).open()
    driver.get(init_task("t"))
    fail = driver.sent()[0]
    assert isinstance(fail, wire.Fail)
    assert "init" in fail.reason


def test_a_failing_app_is_a_fail_with_its_reason_clipped() -> None:
    """At most 200 bytes of reason; the worker takes the next task."""
    driver = Driver().open()
    driver.get(init_task("t"))
    driver.tell(AppFailed(b"t", "é" * 300))
    fail = driver.sent()[0]
    assert isinstance(fail, wire.Fail)
    assert len(fail.reason.encode()) == 200
    driver.get(init_task("u", seq=2))
    assert driver.of(StartApp)


def test_an_app_that_keeps_failing_rests() -> None:
    """After the third failure in a row `free` is 0 for a second, then twice as long; a success forgives."""
    driver = Driver().open()
    rests = []
    for seq in range(1, 6):
        driver.get(init_task(f"t{seq}", seq))
        driver.tell(AppFailed(b"t%d" % seq, "broken"))
        begun = driver.now
        while isinstance(beat := driver.sent()[-1], wire.Beat) and beat.free == 0:
            driver.later(driver.session._wake_at - driver.now)
        rests.append(driver.now - begun)
    assert rests == pytest.approx([0, 0, 1, 2, 4])


def test_cancel_reaches_the_running_app_and_its_late_result_is_dropped() -> None:
    """After a CANCEL nothing of the task is offered, failed or listed, and the app's slot stays taken."""
    driver = Driver(slots=1).open()
    driver.get(init_task("t"), wire.Cancel(task=b"t", reason="round over"))
    assert driver.of(CancelApp) == [CancelApp(b"t")]
    assert driver.session.status()["tasks"] == 0
    assert driver.sent() == [wire.Beat(tasks=(), outbox=(), free=0, seen=1)]
    driver.get(init_task("u", seq=2))
    assert not driver.of(StartApp)
    driver.tell(Stored(an_entry("t")))
    assert driver.of(DeleteOutbox) == [DeleteOutbox(b"t")]
    assert [a.task.task for a in driver.of(StartApp)] == [b"u"]


def test_cancel_deletes_from_the_outbox() -> None:
    """A result that is no longer wanted is forgotten."""
    driver = busy(Phase.OPEN)
    driver.get(wire.Cancel(task=b"large"))
    assert driver.of(DeleteOutbox) == [DeleteOutbox(b"large")]


def test_a_deadline_counts_from_receipt() -> None:
    """When it passes the app is told, and the broker is."""
    driver = Driver().open()
    driver.get(a_task(deadline_s=5, kind="init", digest=None))
    driver.later(4.9)
    assert not driver.of(CancelApp)
    driver.later(0.2)
    assert driver.of(CancelApp)
    assert wire.Fail(task=b"t", reason="deadline") in driver.sent()


def test_pause_gives_back_what_is_not_begun() -> None:
    """The running task goes on; the waiting one is FAILed, so that somebody else may do it."""
    driver = Driver().open()
    driver.get(init_task("one"), a_task("two", seq=2))
    driver.tell(Pause())
    assert driver.sent() == [wire.Fail(task=b"two", reason="paused")]
    driver.tell(Stored(an_entry("one")))
    assert driver.session.status()["outbox"] == 1


def test_may_train_no_takes_no_task() -> None:
    """An edge program on battery: `free` is 0 until it says otherwise."""
    driver = Driver()
    driver.tell(MayTrain(False))
    driver.open()
    driver.get(init_task("t"))
    assert not driver.of(StartApp)
    assert wire.Fail(task=b"t", reason="paused") in driver.sent()
    driver.tell(MayTrain(True))
    assert driver.sent() == [wire.Beat(tasks=(), outbox=(), free=2, seen=1)]


def test_evaluations_carry_metrics_and_no_bytes() -> None:
    """They wait in the outbox like updates, and are offered without encoding, size and digest."""
    driver = Driver().open()
    driver.get(init_task("t"))
    entry = an_entry("t", 0, kind="evaluate", metrics={"loss": 1.0}, encoding=None, digest=None)
    driver.tell(Stored(entry))
    offer = driver.of(Send)[0].message
    assert isinstance(offer, wire.Offer)
    assert (offer.encoding, offer.size, offer.digest, offer.metrics) == (None, None, None, {"loss": 1.0})


def test_an_initial_model_larger_than_the_federation_takes_is_a_fail() -> None:
    """It is not offered: the broker said what it takes."""
    driver = Driver().open(max_model_bytes=50)
    driver.get(init_task("t"))
    driver.tell(Stored(an_entry("t", 100, kind="init", base=0, encoding="safetensors", layout=None)))
    assert isinstance(driver.sent()[0], wire.Fail)
    assert driver.of(DeleteOutbox)


# Downloads


def test_few_fetches_at_a_time_and_resumed_where_it_was() -> None:
    """Three, of the four that are allowed; a new session begins at the first byte that is missing."""
    driver = Driver().open()
    driver.get(a_task(size=6 * BLOCK))
    assert [m.offset for m in driver.sent() if isinstance(m, wire.Fetch)] == [0, BLOCK, 2 * BLOCK]
    driver.block(0, BLOCK)
    assert driver.sent() == [wire.Fetch(version=7, offset=3 * BLOCK, length=BLOCK)]
    driver.tell(Opened(), Received(welcome()))
    fetches = [m.offset for m in driver.sent() if isinstance(m, wire.Fetch)]
    assert fetches == [BLOCK, 2 * BLOCK, 3 * BLOCK]


def test_a_partial_model_of_an_earlier_life_is_continued() -> None:
    """The length of its file is how much of it is here."""
    driver = Driver(models={DIGEST: 3000}).open()
    driver.get(a_task())
    assert driver.sent() == [wire.Fetch(version=7, offset=3000, length=2000)]


def test_a_model_in_the_cache_is_not_fetched() -> None:
    """The second task on a version starts at once."""
    driver = Driver(models={DIGEST: 5000}).open()
    driver.get(a_task())
    assert driver.of(StartApp)
    assert driver.sent() == []


def test_a_file_longer_than_its_model_is_begun_anew() -> None:
    """It cannot be what its name says."""
    driver = Driver(models={DIGEST: 5001}).open()
    driver.get(a_task())
    assert driver.of(DeleteModel) == [DeleteModel(DIGEST)]
    assert driver.sent() == [wire.Fetch(version=7, offset=0, length=5000)]


def test_the_cache_keeps_the_last_models() -> None:
    """Beyond `keep_models` the least recently used goes, never one that a task needs."""
    models = {bytes([i]) * 16: 5000 for i in range(3)}
    driver = Driver(models=models, keep_models=3).open()
    driver.get(a_task("a", digest=bytes([0]) * 16))
    driver.tell(Stored(an_entry("a")))
    driver.get(a_task("b", digest=b"n" * 16, version=8))
    assert not driver.of(DeleteModel)
    driver.block(0, 5000, version=8)
    driver.tell(Stored(an_entry("b")))
    assert driver.of(DeleteModel) == [DeleteModel(bytes([1]) * 16)]


def test_a_broken_model_is_fetched_once_more_and_then_fails() -> None:
    """Twice not what its digest says: FAIL `digest`."""
    driver = Driver().open()
    driver.get(a_task())
    driver.block(0, 5000)
    driver.tell(ModelBroken(b"t", DIGEST))
    assert driver.of(DeleteModel)
    assert driver.sent() == [wire.Fetch(version=7, offset=0, length=5000)]
    driver.block(0, 5000)
    assert driver.of(StartApp)
    driver.tell(ModelBroken(b"t", DIGEST))
    assert driver.sent()[0] == wire.Fail(task=b"t", reason="digest")


def test_a_version_that_is_gone_fails_its_tasks() -> None:
    """The broker then has a fresh one for this worker."""
    driver = busy(Phase.OPEN)
    driver.get(wire.Error(ref=6, why="gone", version=7, offset=0))
    assert driver.sent()[0] == wire.Fail(task=b"fetching", reason="version 7 is gone")


def test_a_version_that_is_gone_blocks_no_other() -> None:
    """FETCHes of it that were under way take no place from those of the next version."""
    driver = Driver().open()
    driver.get(a_task("old", size=64 * MIB))
    assert len([m for m in driver.sent() if isinstance(m, wire.Fetch)]) > 1
    driver.get(wire.Error(ref=6, why="gone", version=7, offset=0))
    assert wire.Fail(task=b"old", reason="version 7 is gone") in driver.sent()
    driver.get(a_task("new", seq=2, version=8, digest=b"another".ljust(16)))
    assert wire.Fetch(version=8, offset=0, length=5000) in driver.sent()


@pytest.mark.parametrize("offset", [None, 0])
def test_busy_is_asked_again_a_little_later(offset: int | None) -> None:
    """Nothing is fetched for 0.2 s, then from where it was."""
    driver = Driver().open()
    driver.get(a_task(), wire.Error(ref=6, why="busy", version=7, offset=offset))
    driver.later(0.19)
    assert driver.sent() == []
    driver.later(0.02)
    assert driver.sent() == [wire.Fetch(version=7, offset=0, length=5000)]


def test_busy_takes_back_nothing_that_was_asked_before() -> None:
    """The blocks before the refused one are on their way, and are not asked for twice."""
    driver = Driver().open()
    driver.get(a_task(size=6 * BLOCK), wire.Error(ref=6, why="busy", version=7, offset=2 * BLOCK))
    driver.block(0, BLOCK)
    driver.block(BLOCK, BLOCK)
    assert len(driver.of(StoreBlock)) == 1
    assert driver.sent() == []
    driver.later(0.3)
    offsets = [m.offset for m in driver.sent() if isinstance(m, wire.Fetch)]
    assert offsets == [2 * BLOCK, 3 * BLOCK, 4 * BLOCK]


def test_a_block_that_cannot_be_stored_fails_its_tasks() -> None:
    """A full disk: FAIL with that reason, and the rest of the file is given up."""
    driver = Driver().open()
    driver.get(a_task(size=2 * BLOCK))
    driver.block(0, BLOCK)
    driver.tell(BlockFailed(DIGEST, "the disk is full"))
    assert wire.Fail(task=b"t", reason="the disk is full") in driver.sent()
    assert driver.of(DeleteModel)


def test_a_link_too_slow_for_a_block_is_tried_with_smaller_ones() -> None:
    """Silence in the middle of a transfer halves the pieces, down to 16 KiB."""
    driver = Driver().open()
    driver.get(a_task(size=6 * BLOCK))
    lengths = []
    for _ in range(4):
        lengths.append(next(m.length for m in driver.sent() if isinstance(m, wire.Fetch)))
        driver.later(LEASE_S)
        driver.later(60)
        driver.tell(Opened(), Received(welcome()))
    assert lengths == [BLOCK, BLOCK // 2, BLOCK // 4, BLOCK // 4]


def test_a_transfer_that_stands_still_is_given_up_after_60_s() -> None:
    """BEATs prove that the broker lives; a FETCH without a BLOCK for 60 s says that this session does not."""
    driver = Driver().open()
    driver.get(a_task())
    for _ in range(5):
        driver.now += 10
        driver.get(wire.Beat())
        assert driver.session.phase is Phase.OPEN
    driver.now += 10
    driver.get(wire.Beat())
    assert driver.session.phase is Phase.CLOSED


def test_a_model_that_rides_with_its_task_is_not_fetched() -> None:
    """The app begins at once; a second task on it needs it no more."""
    driver = Driver().open()
    file = memoryview(bytes(5000))
    driver.tell(Received(a_task(), file))
    assert driver.of(KeepModel) == [KeepModel(DIGEST, file)]
    assert [start.task.task for start in driver.of(StartApp)] == [b"t"]
    assert driver.sent() == []
    driver.tell(Received(a_task("u", seq=2), file))
    assert not driver.of(KeepModel)
    assert driver.sent() == []


def test_a_riding_model_takes_the_place_of_a_partial_one() -> None:
    """What was on disk goes; blocks that were asked for are nobody's when they come."""
    driver = Driver(models={DIGEST: 2000}).open()
    driver.get(a_task())
    assert [type(m) for m in driver.sent()] == [wire.Fetch]
    driver.tell(Received(a_task("u", seq=2), memoryview(bytes(5000))))
    assert [type(a) for a in driver.actions if isinstance(a, DeleteModel | KeepModel)] == [
        DeleteModel,
        KeepModel,
    ]
    assert driver.of(StartApp)
    driver.block(2000, 3000)
    assert not driver.of(StoreBlock)


def test_a_riding_model_of_another_size_is_no_model() -> None:
    """It is fetched as if it had not come; and so is one that turns out to be another file."""
    driver = Driver().open()
    driver.tell(Received(a_task(), memoryview(bytes(4999))))
    assert not driver.of(KeepModel)
    assert [type(m) for m in driver.sent()] == [wire.Fetch]
    driver = Driver().open()
    driver.tell(Received(a_task(), memoryview(bytes(5000))), ModelBroken(b"t", DIGEST))
    assert driver.of(DeleteModel) == [DeleteModel(DIGEST)]
    assert driver.sent() == [wire.Fetch(version=7, offset=0, length=5000)]


# Uploads


def test_only_the_first_grant_sets_the_position() -> None:
    """A later one was sent while PARTs were under way: it raises the limit."""
    driver = Driver().open()
    driver.run_through("t", size=3 * BLOCK + 5)
    assert [type(m) for m in driver.sent()] == [wire.Offer]
    driver.get(wire.Grant(task=b"t", offset=0, limit=2 * BLOCK))
    assert [(a.offset, a.length) for a in driver.of(SendStored)] == [(0, BLOCK), (BLOCK, BLOCK)]
    driver.get(wire.Grant(task=b"t", offset=0, limit=2 * BLOCK))
    assert driver.of(SendStored) == []
    driver.get(wire.Grant(task=b"t", offset=BLOCK, limit=9 * BLOCK))
    assert [(a.offset, a.length) for a in driver.of(SendStored)] == [(2 * BLOCK, BLOCK), (3 * BLOCK, 5)]


def test_an_upload_resumes_where_the_broker_says() -> None:
    """After a new session the OFFER goes again, and the GRANT's offset is where to go on."""
    driver = Driver().open()
    driver.run_through("t", size=3 * BLOCK)
    driver.get(wire.Grant(task=b"t", offset=0, limit=3 * BLOCK))
    driver.tell(Opened(), Received(welcome()))
    assert isinstance(driver.sent()[-1], wire.Offer)
    driver.get(wire.Grant(task=b"t", offset=2 * BLOCK, limit=3 * BLOCK))
    assert [(a.offset, a.length) for a in driver.of(SendStored)] == [(2 * BLOCK, BLOCK)]


def test_an_inline_offer_may_be_granted_instead() -> None:
    """GRANT with offset 0 after an inline OFFER: the same bytes as PARTs."""
    driver = Driver().open()
    driver.run_through("t", size=100)
    driver.get(wire.Grant(task=b"t", offset=0, limit=100))
    assert driver.of(SendStored) == [SendStored(wire.Part(task=b"t", offset=0), 0, 100)]


def test_wait_offers_again_later_with_jitter() -> None:
    """Not before `retry_s`, and whole again."""
    driver = Driver().open()
    driver.run_through("t")
    driver.get(wire.Wait(task=b"t", retry_s=4))
    driver.later(3.9)
    assert driver.sent() == []
    driver.later(2.2)
    assert [type(m) for m in driver.sent()] == [wire.Offer]


def test_offers_stay_within_the_credit() -> None:
    """Inline payloads count against it; of those that need a GRANT four are under way at most."""
    outbox = tuple(an_entry(f"t{i}", 40 * KIB) for i in range(8))
    driver = Driver(outbox=outbox).open(credit=100 * KIB)
    assert [m.task for m in driver.sent() if isinstance(m, wire.Offer)] == [b"t0", b"t1"]
    driver.get(wire.Ack(task=b"t0", result="accepted"))
    assert [m.task for m in driver.sent() if isinstance(m, wire.Offer)] == [b"t2"]
    driver = Driver(outbox=outbox).open()
    assert len([m for m in driver.sent() if isinstance(m, wire.Offer)]) == 8
    driver = Driver(outbox=tuple(an_entry(f"t{i}", MIB) for i in range(8))).open()
    assert [m.task for m in driver.sent() if isinstance(m, wire.Offer)] == [b"t0", b"t1", b"t2", b"t3"]


def test_an_offer_without_an_answer_is_made_again() -> None:
    """After 60 s, in the same session: it is idempotent."""
    driver = Driver().open()
    driver.run_through("t")
    for _ in range(6):
        driver.now += 10
        driver.get(wire.Beat())
    assert isinstance(driver.sent()[0], wire.Offer)


def test_parts_without_an_answer_end_the_session() -> None:
    """PARTs may be queued yet: an OFFER behind them would be answered too late. A new socket is clean."""
    driver = Driver().open()
    driver.run_through("t", size=2 * MIB)
    driver.get(wire.Grant(task=b"t", offset=0, limit=MIB))
    for _ in range(6):
        driver.now += 10
        driver.get(wire.Beat())
    assert driver.session.phase is Phase.CLOSED


def test_an_update_that_was_taken_before_is_accepted() -> None:
    """Its ACK was lost; for whoever trained, nothing is different."""
    driver = Driver().open()
    driver.run_through("t")
    driver.get(wire.Ack(task=b"t", result="duplicate"))
    assert driver.of(DeleteOutbox)
    (told,) = driver.of(Notify)
    assert (told.moment, told.fields["result"]) == (Moment.UPDATE_ACCEPTED, "duplicate")


@pytest.mark.parametrize("result", ["stale", "rejected"])
def test_an_update_that_is_not_taken_is_forgotten_and_told(result: Any) -> None:
    """ACK ends an update, whatever it says."""
    driver = Driver().open()
    driver.run_through("t")
    driver.get(wire.Ack(task=b"t", result=result, reason="norm"))
    assert driver.of(DeleteOutbox)
    (told,) = driver.of(Notify)
    assert told.moment is Moment.UPDATE_REJECTED
    assert (told.fields["result"], told.fields["reason"]) == (result, "norm")


def test_an_offer_that_the_broker_cannot_read_is_not_made_for_ever() -> None:
    """ERROR about an OFFER ends its update as a rejection does; about a PART it is offered again."""
    driver = busy(Phase.OPEN)
    driver.get(wire.Error(ref=8, why="malformed", task=b"small", reason="no"))
    assert driver.of(DeleteOutbox) == [DeleteOutbox(b"small")]
    driver.get(
        wire.Grant(task=b"large", offset=0, limit=MIB), wire.Error(ref=10, why="malformed", task=b"large")
    )
    assert isinstance(driver.sent()[-1], wire.Offer)


def test_an_update_that_cannot_be_read_is_failed() -> None:
    """The broker then has the task done again."""
    driver = busy(Phase.OPEN)
    driver.tell(OutboxFailed(b"small", "I/O error"))
    assert isinstance(driver.sent()[0], wire.Fail)
    assert driver.of(DeleteOutbox) == [DeleteOutbox(b"small")]


def test_delays_and_repetitions_are_told() -> None:
    """WAIT, the next OFFER of the same update, and what is lost: an embedding program can count them."""
    driver = Driver().open()
    driver.run_through("t")
    driver.get(wire.Wait(task=b"t", retry_s=1.0))
    (told,) = driver.of(Notify)
    assert (told.moment, told.fields) == (Moment.UPDATE_DELAYED, {"task": b"t", "retry_s": 1.0})
    driver.now += 2
    driver.tell(Tick())
    (told,) = driver.of(Notify)
    assert (told.moment, told.fields["offers"]) == (Moment.UPDATE_RESENT, 2)
    driver.tell(OutboxFailed(b"t", "I/O error"))
    assert [told.moment for told in driver.of(Notify)] == [Moment.UPDATE_LOST]


def test_a_full_outbox_is_told_once_and_again_when_half_of_it_is_gone() -> None:
    """Not at each ACK: a broker that is behind would hear as many BEATs as OFFERs."""
    driver = Driver(slots=1).open()
    for i in range(1, 17):
        driver.run_through(f"t{i}", i)
    assert [type(m) for m in driver.sent()] == [wire.Offer, wire.Beat]
    told = []
    for i in range(1, 17):
        driver.get(wire.Ack(task=b"t%d" % i, result="accepted"))
        told += [(i, m.free) for m in driver.sent() if isinstance(m, wire.Beat)]
    assert told == [(8, 1)]


def test_with_many_results_waiting_no_task_is_taken() -> None:
    """A broker that does not acknowledge does not fill this worker's disk."""
    driver = Driver(outbox=tuple(an_entry(f"t{i}", MIB) for i in range(16)))
    driver.tell(Start(), Opened())
    hello = driver.sent()[0]
    assert isinstance(hello, wire.Hello)
    assert hello.free == 0


def test_failed_evaluations_do_not_make_a_worker_rest() -> None:
    """Training goes on at its pace, whatever becomes of the metrics."""
    driver = Driver(models={DIGEST: 5000}).open()
    for seq in range(1, 8):
        driver.get(a_task(f"e{seq}", seq=seq, kind="evaluate"))
        driver.tell(AppFailed(b"e%d" % seq, "broken"))
        beat = driver.sent()[-1]
        assert isinstance(beat, wire.Beat)
        assert beat.free == 2
