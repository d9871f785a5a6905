"""What operators ask for: pause, resume, stop, finish, evict, admit; and SIGTERM."""

from fedmq.broker.events import Control
from fedmq.broker.rows import EvictRow, FinishRow, PauseRow, RoundRow
from fedmq.fedcore import wire
from fedmq.fedcore.config import Stop

from .federation import Federation, asynchronous, synchronous


def test_a_pause_is_answered_when_it_is_durable() -> None:
    """It outlives a restart."""
    federation = Federation()
    federation.hold = True
    assert federation.operate("pause") is None
    federation.commit()
    assert federation.replies[1] == {"ok": True, "already": False}
    federation.restart()
    assert federation.status()["state"] == "paused"
    assert federation.durable(PauseRow) == [PauseRow(paused=True)]


def test_while_paused_no_task_goes_out_and_updates_come_in() -> None:
    """What was trained is not lost; resuming hands out at once."""
    federation = Federation()
    worker = federation.worker("w0")
    federation.operate("pause")
    assert worker.fit().result == "accepted"
    assert len(worker.tasks()) == 1
    assert federation.operate("resume") == {"ok": True, "already": False}
    assert federation.operate("resume") == {"ok": True, "already": True}
    assert len(worker.tasks()) == 2


def test_no_round_opens_while_paused() -> None:
    """One that is open goes on."""
    federation = Federation(synchronous(min_available=1))
    federation.operate("pause")
    worker = federation.worker("w0")
    assert not federation.durable(RoundRow)
    federation.operate("resume")
    assert worker.tasks()
    federation.operate("pause")
    worker.fit()
    federation.fold()
    assert len(federation.durable(RoundRow)) == 1


def test_a_stop_drains() -> None:
    """Everybody is told to come again; the federation goes on at its next start."""
    federation = Federation()
    worker = federation.worker("w0")
    assert federation.operate("stop") == {"ok": True}
    assert worker.last(wire.Bye).reason == "shutdown"
    assert federation.exit is not None
    assert (federation.exit.code, federation.exit.reason) == (0, "stopped")
    federation.restart()
    assert federation.exit is None


def test_a_finish_ends_the_federation_for_good() -> None:
    """What is under way is folded first."""
    federation = Federation(asynchronous(buffer=1))
    worker = federation.worker("w0")
    worker.offer(worker.task())
    assert federation.operate("stop", finish=True) == {"ok": True}
    assert federation.exit is None
    federation.fold()
    assert worker.last(wire.Bye).reason == "finished"
    assert federation.durable(FinishRow) == [FinishRow(reason="finished by an operator")]


def test_an_evicted_worker_leaves_at_once() -> None:
    """When it is durable it hears why; its tasks are free before."""
    federation = Federation(asynchronous(concurrency=1))
    worker, other = federation.workers(2)
    federation.hold = True
    federation.operate("evict", worker="w0")
    assert other.tasks()
    assert not worker.got(wire.Bye)
    federation.commit()
    assert worker.last(wire.Bye).reason == "revoked"
    assert federation.dropped == [worker.peer]
    assert federation.status()["workers"][0]["state"] == "evicted"


def test_an_eviction_outlives_a_restart_until_it_is_taken_back() -> None:
    """Also of a worker that is not there."""
    federation = Federation()
    federation.worker("w0")
    federation.operate("evict", worker="w0")
    federation.restart()
    assert federation.worker("w0").last(wire.Reject).why == "revoked"
    assert federation.operate("admit", worker="w0") == {"ok": True}
    assert federation.worker("w0").got(wire.Welcome)
    assert [row.evicted for row in federation.durable(EvictRow)] == [True, False]


def test_a_worker_of_an_earlier_life_can_be_evicted() -> None:
    """It worked here and has not come back since the restart: it never will."""
    federation = Federation()
    federation.worker("w0").fit()
    federation.restart()
    assert federation.operate("evict", worker="w9") == {"ok": False, "error": "no worker 'w9'; there are: w0"}
    assert federation.operate("evict", worker="w0") == {"ok": True}
    assert federation.worker("w0").last(wire.Reject).why == "revoked"


def test_an_unknown_worker_is_named() -> None:
    """With those that there are."""
    federation = Federation()
    federation.workers(2)
    reply = federation.operate("evict", worker="nobody")
    assert reply == {"ok": False, "error": "no worker 'nobody'; there are: w0, w1"}
    assert federation.operate("evict") == {"ok": False, "error": "which worker? give its name"}


def test_an_unknown_command_is_an_error() -> None:
    """And changes nothing."""
    federation = Federation()
    assert federation.operate("dance") == {"ok": False, "error": "unknown command 'dance'"}


def test_the_status_is_answered_at_once() -> None:
    """It shows what each worker is doing."""
    federation = Federation()
    federation.worker("w0")
    reply = federation.operate("status")
    assert reply is not None
    assert (reply["state"], reply["mode"], reply["version"]) == ("running", "async", 0)
    assert [(w["name"], w["state"], w["version"]) for w in reply["workers"]] == [("w0", "training", 0)]
    assert reply["buffer"] == {"number": 0, "have": 0, "of": 10, "frozen": 0}


def test_a_drain_commits_what_has_come_and_does_not_wait_for_training() -> None:
    """SIGTERM: the ACK of an update that is here is sent before the goodbye."""
    federation = Federation()
    worker = federation.worker("w0")
    federation.worker("w1")
    federation.hold = True
    worker.offer(worker.task())
    federation.drain()
    assert federation.exit is None
    federation.commit()
    kinds = [type(message) for message in federation.sent[worker.peer][-2:]]
    assert kinds == [wire.Ack, wire.Bye]
    assert federation.exit is not None


def test_a_drain_finishes_the_fold() -> None:
    """Its version is committed, and nothing goes out against it; the next start does."""
    federation = Federation(asynchronous(buffer=1))
    worker = federation.worker("w0")
    worker.offer(worker.task())
    before = len(worker.tasks())
    federation.drain()
    worker.beat(free=1)
    assert federation.exit is None
    assert federation.status()["state"] == "draining"
    federation.fold()
    assert federation.exit is not None
    assert len(worker.tasks()) == before
    federation.restart()
    worker.hello()
    assert worker.task().version == 1


def test_a_full_buffer_takes_no_more_while_it_drains() -> None:
    """Nothing freezes then, and what is accepted would be in the next version: K updates, and not more."""
    federation = Federation(asynchronous(buffer=2))
    first, *others = federation.workers(5)
    first.fit()
    others[0].fit()
    federation.drain()
    for worker in others[1:]:
        worker.offer(worker.task())
    assert [bool(worker.got(wire.Ack)) for worker in others[1:]] == [True, True, False]
    assert others[3].got(wire.Wait)
    federation.fold()
    federation.restart()
    assert len(federation.fold().rows) == 2


def test_a_drain_at_the_end_leaves_the_end_to_the_next_start() -> None:
    """The last version was folded while it drained."""
    federation = Federation(asynchronous(buffer=1, stop=Stop(versions=1)))
    federation.worker("w0").fit()
    federation.drain()
    federation.fold()
    assert federation.exit is not None
    assert federation.exit.reason == "stopped"
    federation.restart()
    federation.worker("w0")
    assert federation.exit is not None
    assert federation.exit.reason == "made version 1"


def test_an_operator_is_answered_to_the_last() -> None:
    """While the last actions of a broker are carried out it changes nothing any more, and says so."""
    federation = Federation()
    federation.hold = True
    federation.operate("pause")
    federation.drain()
    actions = federation.mind.handle(Control(7, "resume", {}), federation.now)
    assert [action.data for action in actions] == [  # type: ignore[attr-defined]
        {"ok": False, "error": "the broker is stopping"}
    ]


def test_status_shows_what_a_worker_works_on() -> None:
    """Not an older result of its that has to wait: that is no news."""
    federation = Federation(asynchronous(buffer=9))
    worker = federation.worker("w0")
    first = worker.task()
    worker.offer(first, inline=False)
    second = worker.tasks()[-1]
    (shown,) = federation.status()["workers"]
    assert (shown["state"], shown["task"]) == ("training", second.task[-16:].hex())
