"""Sessions: who gets one, what HELLO and BEAT say against what the broker believes, and how silence ends it."""

from typing import Any

import pytest

from fedmq.broker.events import Received, Unreachable
from fedmq.broker.sessions import Refusal, Workers
from fedmq.fedcore import wire
from fedmq.fedcore.config import Network

from .federation import Federation, Worker, asynchronous, synchronous


def held(federation: Federation, name: str) -> list[str]:
    """The phases of what the broker believes a worker has."""
    books: Any = federation.mind._books
    return [h.phase.value for h in books.workers.get(name).held.values()]


def test_a_hello_opens_a_session_on_these_terms() -> None:
    """WELCOME says how this federation talks."""
    federation = Federation(asynchronous(network=Network(beat_s=5.0, lease_s=20.0, block=2048)))
    worker = federation.worker("w0", free=0)
    welcome = worker.last(wire.Welcome)
    assert (welcome.beat_s, welcome.lease_s, welcome.block) == (5.0, 20.0, 2048)
    assert welcome.credit == 8 * 2048
    assert welcome.federation == "federation"


def test_another_program_under_the_same_name_is_refused() -> None:
    """Two under one name never evict each other in turn."""
    federation = Federation()
    worker = federation.worker("w0")
    other = Worker(federation, "w0")
    other.hello(peer=b"other", instance=b"another state folder")
    assert other.last(wire.Reject).why == "name_in_use"
    assert not other.last(wire.Reject).fatal
    worker.beat()
    assert not worker.got(wire.Error)


def test_a_program_on_a_copied_state_folder_does_not_take_turns_with_the_first() -> None:
    """The one that came last is served; the first may come back when that has gone."""
    federation = Federation()
    first = federation.worker("w0", boot=b"1")
    copy = Worker(federation, "w0")
    copy.hello(peer=b"copy", boot=b"2")
    assert copy.got(wire.Welcome)
    first.hello(peer=b"again", boot=b"1")
    assert first.last(wire.Reject).why == "name_in_use"
    copy.beat()
    assert not copy.got(wire.Error)
    copy.say(wire.Bye(reason="stopped"))
    first.hello(peer=b"later", boot=b"1")
    assert first.got(wire.Welcome)


def test_another_program_may_have_the_name_of_one_that_is_silent() -> None:
    """A lease of silence is enough: the machine was replaced."""
    federation = Federation()
    federation.worker("w0")
    federation.wait(36.0)
    other = Worker(federation, "w0")
    other.hello(peer=b"other", instance=b"another state folder")
    assert other.got(wire.Welcome)


def test_the_same_program_replaces_its_session() -> None:
    """Its old connection may be half dead for long; what it lists it keeps."""
    federation = Federation()
    worker = federation.worker("w0")
    task = worker.task().task
    worker.hello(peer=b"second", tasks=(task,), free=0)
    assert worker.got(wire.Welcome)
    assert federation.dropped == [b"w0"]
    assert held(federation, "w0") == ["sent"]
    worker.peer = b"w0"
    worker.beat()
    assert worker.last(wire.Error).why == "need_hello"


def test_a_hello_over_the_same_connection_begins_anew() -> None:
    """`seq` restarts at 1; what it does not list is free at once."""
    federation = Federation()
    worker = federation.worker("w0")
    first = worker.task().task
    worker.hello()
    assert not federation.dropped
    assert [task.seq for task in worker.tasks()] == [1]
    assert worker.task().task != first


def test_a_connection_that_takes_another_name_ends_the_session_before() -> None:
    """One connection is one worker."""
    federation = Federation()
    worker = federation.worker("w0")
    Worker(federation, "w1").hello(peer=worker.peer)
    states = {w["name"]: w["state"] for w in federation.status()["workers"]}
    assert states == {"w0": "gone", "w1": "training"}


def test_another_protocol_is_refused_for_good() -> None:
    """Trying again would not help."""
    federation = Federation()
    worker = federation.worker("w0", protocol=2)
    reject = worker.last(wire.Reject)
    assert (reject.why, reject.fatal) == ("wrong_protocol", True)
    assert federation.dropped == [b"w0"]


def test_an_evicted_worker_is_refused() -> None:
    """Whenever it comes back, until an operator admits it."""
    federation = Federation()
    worker = federation.worker("w0")
    federation.operate("evict", worker="w0")
    worker.hello()
    reject = worker.last(wire.Reject)
    assert (reject.why, reject.fatal) == ("revoked", True)


def test_a_draining_broker_says_goodbye() -> None:
    """A worker that comes while it stops will come again."""
    federation = Federation(asynchronous(buffer=1))
    federation.worker("w0").fit()
    federation.drain()  # a fold is under way: it waits
    assert federation.exit is None
    late = federation.worker("late")
    assert late.last(wire.Bye).reason == "shutdown"


def test_a_worker_gets_no_more_tasks_than_it_asked_for() -> None:
    """`free` of HELLO, then of each BEAT, less what it had not seen when it said so."""
    federation = Federation()
    worker = federation.worker("w0", free=2)
    assert len(worker.tasks()) == 2
    ids = tuple(task.task for task in worker.tasks())
    worker.say(wire.Beat(tasks=ids[:1], outbox=(), free=1, seen=1))  # it had not seen the second
    assert len(worker.tasks()) == 2
    worker.say(wire.Beat(tasks=ids, outbox=(), free=1, seen=2))
    assert len(worker.tasks()) == 3
    federation.wait(5.0)
    assert len(worker.tasks()) == 3


def test_a_worker_that_claims_to_have_seen_what_was_never_sent_gains_nothing() -> None:
    """`seen` counts up to what was sent."""
    federation = Federation()
    worker = federation.worker("w0", free=1)
    worker.say(wire.Beat(tasks=(worker.task().task,), outbox=(), free=1, seen=100))
    assert len(worker.tasks()) == 2
    worker.say(wire.Beat(tasks=(), outbox=(), free=0, seen=1))  # never goes back
    federation.wait(5.0)
    assert len(worker.tasks()) == 2


def test_a_task_is_missing_only_when_it_was_seen() -> None:
    """A TASK may still be queued behind blocks when a BEAT lists nothing."""
    federation = Federation()
    worker = federation.worker("w0")
    worker.say(wire.Beat(tasks=(), outbox=(), free=1, seen=0))
    assert held(federation, "w0") == ["sent"]
    worker.say(wire.Beat(tasks=(), outbox=(), free=0, seen=1))
    assert held(federation, "w0") == []


def test_a_task_in_the_outbox_is_not_missing() -> None:
    """Its update is finished, and will be offered."""
    federation = Federation()
    worker = federation.worker("w0")
    worker.beat(outbox=(worker.task().task,), free=0)
    assert held(federation, "w0") == ["offered"]


def test_what_was_offered_and_is_listed_no_more_is_lost() -> None:
    """A worker whose disk died after its OFFER is given work again; it used to count as uploading for ever."""
    federation = Federation(synchronous(min_available=1, deadline_s=0.0), elements=1000)
    worker = federation.worker("w0")
    first = worker.task()
    worker.offer(first, inline=False)
    assert held(federation, "w0") == ["offered"]
    worker.hello(peer=b"second", instance=worker.instance)
    assert worker.task().task != first.task
    assert first.task in federation.discarded


def test_a_task_that_nobody_wants_is_called_back() -> None:
    """Here one of another worker."""
    federation = Federation()
    worker = federation.worker("w0")
    stranger = federation.task_id("fit", "somebody else", 0)
    worker.beat(tasks=(worker.task().task, stranger, b"no id"))
    assert {cancel.task for cancel in worker.got(wire.Cancel)} == {stranger, b"no id"}


def test_a_task_of_an_earlier_life_is_taken_over() -> None:
    """Its MAC says that this broker gave it to this worker; it counts as busy like any other."""
    federation = Federation(asynchronous(concurrency=1))
    task = federation.worker("w0").task().task
    federation.restart()
    worker = federation.worker("w0", tasks=(task,), free=0)
    federation.worker("w1")
    assert not worker.got(wire.Cancel)
    assert held(federation, "w0") == ["sent"]
    assert not federation.status()["workers"][1]["task"]


def test_an_outbox_of_an_earlier_life_is_taken_over() -> None:
    """It does not count as busy: its worker is free again."""
    federation = Federation(asynchronous(concurrency=1))
    task = federation.worker("w0").task()
    federation.restart()
    worker = federation.worker("w0", outbox=(task.task,), free=0)
    other = federation.worker("w1")
    assert other.tasks()
    worker.offer(task)
    assert worker.last(wire.Ack).result == "accepted"


def test_a_worker_that_says_goodbye_frees_its_tasks_at_once() -> None:
    """And an operator sees it as gone."""
    federation = Federation(asynchronous(concurrency=1))
    worker = federation.worker("w0")
    other = federation.worker("w1")
    assert not other.tasks()
    worker.say(wire.Bye(reason="stopped"))
    assert other.tasks()


def test_a_lease_of_silence_makes_a_worker_suspect() -> None:
    """It gets no new task, and any message clears it."""
    federation = Federation()
    worker = federation.worker("w0", free=2)
    federation.wait(36.0)
    assert federation.status()["workers"][0]["state"] == "suspect"
    ids = tuple(task.task for task in worker.tasks())
    worker.beat(tasks=ids, free=1)
    assert federation.status()["workers"][0]["state"] == "training"
    assert len(worker.tasks()) == 3


def test_two_leases_of_silence_end_the_session_and_free_its_tasks() -> None:
    """Somebody else gets the work."""
    federation = Federation(asynchronous(concurrency=1))
    federation.worker("w0")
    federation.wait(60.0)
    other = federation.worker("w1")
    assert not other.tasks()
    federation.wait(11.0)
    other.beat()
    assert other.tasks()
    assert {w["name"]: w["state"] for w in federation.status()["workers"]}["w0"] == "gone"


def test_a_session_that_ends_by_silence_gives_its_credit_back() -> None:
    """Also where two leases are shorter than a stall."""
    network = Network(beat_s=1.0, lease_s=5.0, block=1024, credit_budget=2048)
    federation = Federation(asynchronous(network=network), elements=1000)
    worker = federation.worker("w0")
    worker.offer(worker.task(), inline=False)
    books: Any = federation.mind._books
    assert books.uploads.in_flight() == 2048
    federation.wait(11.0)
    assert books.uploads.in_flight() == 0


def test_a_worker_that_was_away_goes_on_with_what_it_has() -> None:
    """It was cut off for longer than two leases, and trained on."""
    federation = Federation()
    worker = federation.worker("w0")
    task = worker.task()
    federation.wait(80.0)
    worker.hello(peer=b"second", outbox=(task.task,), free=0)
    worker.offer(task)
    assert worker.last(wire.Ack).result == "accepted"


def test_a_peer_without_a_route_is_suspect() -> None:
    """Until it is heard again, over whichever connection."""
    federation = Federation()
    worker = federation.worker("w0", free=0)
    federation.tell(Unreachable(worker.peer))
    assert federation.status()["workers"][0]["state"] == "suspect"
    worker.beat(free=1)
    assert worker.tasks()


def test_a_worker_whose_app_fails_is_left_alone_for_a_while() -> None:
    """Twice as long each time, so that a broken app does not spin."""
    federation = Federation()
    worker = federation.worker("w0")
    for wait_s in (1.0, 2.0, 4.0):
        before = len(worker.tasks())
        worker.say(wire.Fail(task=worker.task().task, reason="ValueError"))
        worker.beat()
        federation.wait(wait_s - 0.5)
        assert len(worker.tasks()) == before
        federation.wait(1.0)
        assert len(worker.tasks()) == before + 1


@pytest.mark.parametrize("reason", ["paused", "deadline", "version 0 is gone"])
def test_a_failure_that_is_not_the_apps_is_not_held_against_it(reason: str) -> None:
    """It gets its next task at once."""
    federation = Federation()
    worker = federation.worker("w0")
    worker.say(wire.Fail(task=worker.task().task, reason=reason))
    worker.beat()
    assert len(worker.tasks()) == 2


def test_a_failure_of_somebody_elses_task_changes_nothing() -> None:
    """An id alone frees nothing."""
    federation = Federation()
    worker, other = federation.workers(2)
    other.say(wire.Fail(task=worker.task().task))
    assert held(federation, "w0") == ["sent"]


def test_a_worker_that_renames_itself_is_shown_by_its_new_name() -> None:
    """With keys the identity is the key, and a name is only a name."""
    federation = Federation()
    for peer, name in ((b"first", "old"), (b"second", "new")):
        hello = wire.Hello(protocol=1, name=name, instance=b"i", boot=b"b")
        federation.tell(Received(peer, hello, None, "the key"))
    assert [w["name"] for w in federation.status()["workers"]] == ["new"]


def test_beats_go_to_those_that_hear_nothing_else() -> None:
    """Once in every `beat_s` of silence, and not while something else was sent."""
    workers = Workers(lease_s=35.0, beat_s=10.0)
    for name, at in (("quiet", 0.0), ("busy", 0.0), ("gone", 0.0)):
        workers.open(name, name.encode(), wire.Hello(protocol=1, name=name, instance=b"i", boot=b"b"), at)
    quiet, busy, gone = (workers.get(name) for name in ("quiet", "busy", "gone"))
    assert quiet is not None and quiet.session is not None  # noqa: PT018
    assert busy is not None and busy.session is not None  # noqa: PT018
    assert gone is not None
    busy.session.sent = 6.0
    workers.close(gone)
    assert workers.beats(9.9) == []
    assert workers.beats(10.0) == [quiet.session]
    quiet.session.sent = 10.0
    assert workers.beats(15.9) == []
    assert workers.beats(16.0) == [busy.session]
    busy.session.sent = 16.0
    assert workers.beats(26.0) == [quiet.session, busy.session]


def test_a_beat_is_due_whatever_the_rounding() -> None:
    """What was found due is due; a comparison the other way round once looked at it for ever."""
    workers = Workers(lease_s=35.0, beat_s=0.1)
    workers.open("w0", b"w0", wire.Hello(protocol=1, name="w0", instance=b"i", boot=b"b"), 0.3)
    for step in range(1, 1000):
        for session in workers.beats(now := 0.3 + step * 0.1):
            session.sent = now


def test_those_silent_longest_are_looked_at_first() -> None:
    """And nobody behind the first that was heard within its lease."""
    workers = Workers(lease_s=10.0, beat_s=5.0)
    for name, at in (("w0", 0.0), ("w1", 1.0), ("w2", 2.0)):
        workers.open(name, name.encode(), wire.Hello(protocol=1, name=name, instance=b"i", boot=b"b"), at)
    first = workers.get("w0")
    assert first is not None
    workers.heard(first, 5.0)
    suspect, gone = workers.silent(11.5)
    assert ([w.name for w in suspect], gone) == (["w1"], [])
    suspect, gone = workers.silent(21.5)
    assert ([w.name for w in suspect], [w.name for w in gone]) == (["w2", "w0"], ["w1"])


def test_who_holds_something_is_known() -> None:
    """Until it holds nothing."""
    workers = Workers(lease_s=10.0, beat_s=5.0)
    worker = workers.open("w0", b"w0", wire.Hello(protocol=1, name="w0", instance=b"i", boot=b"b"), 0.0)
    assert not isinstance(worker, Refusal)
    for task in (b"1", b"2"):
        workers.hold(worker, task, "fit", 0, 0.0)
    workers.free(worker, b"1")
    assert workers.holders() == [worker]
    workers.free(worker, b"2")
    assert workers.holders() == []


def test_a_silent_worker_that_is_heard_again_gets_work() -> None:
    """Whatever it says: it need not wait until it beats."""
    federation = Federation(asynchronous(concurrency=1))
    first, second = federation.worker("w0"), federation.worker("w1")
    federation.wait(36.0)  # both are suspect; the first has the only task
    first.say(wire.Bye())
    assert not second.tasks()
    second.say(wire.Fetch(version=0, offset=0, length=1))
    assert second.tasks()
