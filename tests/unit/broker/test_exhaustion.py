"""Worker-level privacy ends a federation when too few of those who can ever come have budget left, and not before."""

from typing import Any

from fedmq.broker.events import Enrolled
from fedmq.broker.rows import AcceptRow, FinishRow
from fedmq.fedcore import wire
from fedmq.fedcore.config import Config, Security

from .federation import Federation, Worker
from .test_coordinator_correlated import separated
from .test_coordinator_worker_private import private, version

REASON = "fewer than 2 workers have privacy budget left"


def keyed(**keys: Any) -> Config:
    """K = 2, one part for each worker, and keys."""
    return private(cap=1, security=Security(keys="keys"), **keys)


def workers(federation: Federation, *names: str) -> list[Worker]:
    """Workers whose keys are their names."""
    found = []
    for name in names:
        worker = Worker(federation, name)
        worker.key = name
        worker.hello()
        found.append(worker)
    return found


def enrol(federation: Federation, *names: str, invites: int = 0) -> None:
    """The allowlist, and how many invites are open."""
    federation.tell(Enrolled(frozenset(names), invites))


def test_it_ends_when_fewer_than_k_of_the_enrolled_have_budget_left() -> None:
    """Durably, with the reason in the status and the log, and workers are told to stop."""
    federation = Federation(keyed())
    enrol(federation, "a", "b", "c")
    a, b, c = workers(federation, "a", "b", "c")
    version(federation, a, b)
    assert federation.exit is not None
    assert federation.status()["state"] == "finished"
    assert federation.status()["reason"] == REASON
    assert [row.reason for row in federation.durable(FinishRow)] == [REASON]
    assert any(note.fields.get("reason") == REASON for note in federation.notes)
    assert {worker.last(wire.Bye).reason for worker in (a, b, c)} == {"finished"}


def test_what_is_accepted_and_short_of_a_buffer_is_not_released() -> None:
    """The one who could have made it a buffer was taken off the list: noise is for K updates, and there is one."""
    federation = Federation(keyed())
    enrol(federation, "a", "b", "c", "d")
    a, b, c = workers(federation, "a", "b", "c")
    version(federation, a, b)
    assert c.fit().result == "accepted"
    assert federation.exit is None
    enrol(federation, "a", "b", "c")
    assert not federation.folds
    assert federation.exit is not None
    assert (federation.status()["version"], len(federation.durable(AcceptRow))) == (1, 3)
    assert federation.status()["reason"] == REASON


def test_a_buffer_that_is_frozen_is_still_made() -> None:
    """It is decided as soon as nobody else can come, and what was promised is kept."""
    federation = Federation(keyed())
    enrol(federation, "a", "b")
    for worker in workers(federation, "a", "b"):
        worker.fit()
    assert federation.status()["state"] == "draining"
    assert federation.exit is None
    federation.fold()
    assert federation.exit is not None
    assert federation.status()["version"] == 1


def test_an_open_invite_is_a_worker_that_may_come() -> None:
    """Until it has expired or is withdrawn."""
    federation = Federation(keyed())
    enrol(federation, "a", "b", "c", invites=1)
    version(federation, *workers(federation, "a", "b"))
    assert federation.exit is None
    enrol(federation, "a", "b", "c", invites=0)
    assert federation.status()["reason"] == REASON


def test_a_key_more_makes_it_go_on_and_a_key_less_ends_it() -> None:
    """While it is only waiting; a worker that is away counts, and so does one that was evicted."""
    federation = Federation(keyed())
    enrol(federation, "a", "b", "c", "d")
    a, b = workers(federation, "a", "b")
    version(federation, a, b)
    assert federation.status()["state"] == "stalled"
    workers(federation, "c")
    federation.operate("evict", worker="c")
    assert federation.exit is None
    enrol(federation, "a", "b", "c", "d", "e")
    enrol(federation, "a", "b", "c", "e")
    assert federation.exit is None
    enrol(federation, "a", "b", "c")
    assert federation.status()["reason"] == REASON


def test_too_few_who_have_all_their_budget_only_wait() -> None:
    """Keys are given out one after the other: a list that is still short ends nothing."""
    federation = Federation(keyed())
    enrol(federation)
    enrol(federation, "a")
    workers(federation, "a")
    assert federation.status()["reason"] == "needs 1 more worker"
    assert federation.exit is None


def test_workers_that_rest_have_their_budget() -> None:
    """Too few for the separation is a stall: another key makes it go on."""
    federation = Federation(separated(3, buffer=2, security=Security(keys="keys")))
    enrol(federation, "a", "b", "c")
    version(federation, *workers(federation, "a", "b"))
    assert federation.exit is None
    assert federation.status()["state"] == "stalled"


def test_without_keys_anybody_new_may_come() -> None:
    """A name is all it takes, and so the federation waits for one."""
    federation = Federation(private(cap=1))
    version(federation, *federation.workers(2))
    federation.wait(30.0)
    assert federation.exit is None
    assert federation.status()["state"] == "stalled"


def test_a_restart_knows_what_was_spent() -> None:
    """The lists are read anew, the ledger is the journal's; before both are known nothing ends."""
    federation = Federation(keyed())
    enrol(federation, "a", "b", "c", "d")
    version(federation, *workers(federation, "a", "b"))
    federation.restart()
    workers(federation, "c")
    assert federation.exit is None
    enrol(federation, "a", "b", "c")
    assert federation.status()["reason"] == REASON
