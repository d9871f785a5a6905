"""Worker-level privacy in rounds: whom a secret coin asks, once; and that nothing which is shown tells."""

import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from fedmq.broker import metrics
from fedmq.broker.coordinator import Coordinator
from fedmq.broker.rows import AcceptRow, LeftOutRow, Recovered, RoundRow, VersionRow
from fedmq.broker.store.history import History
from fedmq.broker.store.journal import Journal
from fedmq.broker.tasks import TaskIds
from fedmq.cli import status_view
from fedmq.fedcore import wire
from fedmq.fedcore.config import Aggregate, Config, Evaluate, SampledPrivacy, Stop
from fedmq.fedcore.privacy.sampled_workers import Coin

from .federation import Federation, Worker, payload, synchronous

DEADLINE_S = 60.0


class Told(Coin):
    """A coin that takes whom the test says: the same workers in every round."""

    def __init__(self, *taken: str) -> None:
        super().__init__(bytes(32), 0.5)
        self._taken = taken

    def takes(self, round_: int, worker: str) -> bool:
        return worker in self._taken


def private(*, steps: int = 10, wait_for: Any = "sample", rate: float = 0.5, **keys: Any) -> Config:
    privacy = SampledPrivacy(
        epsilon=8.0,
        delta=1e-5,
        clip_norm=1.0,
        sampling_rate=rate,
        steps=steps,
        divisor=2.0,
        wait_for=wait_for,
        noise_multiplier=10.0,
    )
    keys = {"min_available": 2, "deadline_s": DEADLINE_S} | keys
    return synchronous(
        privacy=privacy,
        aggregate=Aggregate(weight="uniform"),
        evaluate=Evaluate(every=0, fraction=0.0),
        **keys,
    )


def live(federation: Federation, seconds: float, *workers: Worker, answered: Collection[bytes] = ()) -> None:
    """Let time pass; these say that they live, and that they work on what they got and have not answered."""
    for _ in range(math.ceil(seconds)):
        for worker in workers:
            worker.beat(tuple(task.task for task in unanswered(worker, answered)), free=1)
        federation.wait(1.0)


def unanswered(worker: Worker, answered: Collection[bytes] = ()) -> list[wire.Task]:
    """The fit tasks of a worker that are neither answered nor called back."""
    over = {*answered, *(message.task for kind in (wire.Ack, wire.Cancel) for message in worker.got(kind))}
    return [task for task in worker.tasks() if task.task not in over]


def test_a_round_asks_whom_the_coin_takes_and_ends_with_their_answers() -> None:
    """Each update counts the same, whatever its worker says of its examples; nobody else is asked."""
    federation = Federation(private(min_available=4), coin=Told("w0", "w2"))
    workers = federation.workers(4)
    assert [len(worker.tasks()) for worker in workers] == [1, 0, 1, 0]
    workers[0].fit(examples=1000)
    assert not federation.folds
    workers[2].fit()
    rows = federation.fold().rows
    assert {row.worker: row.weight for row in rows} == {"w0": 1.0, "w2": 1.0}
    assert federation.durable(VersionRow)[-1].charged is None
    assert federation.durable(RoundRow)[0].cohort == ("w0", "w2")


def test_a_round_opens_when_enough_workers_are_there_whomever_the_coin_takes() -> None:
    """Who comes while it is open has no coin in it."""
    federation = Federation(private(min_available=3), coin=Told("w0", "w9"))
    first, second = federation.workers(2)
    assert federation.status()["reason"] == "needs 1 more worker"
    assert not federation.durable(RoundRow)
    federation.worker("w2")
    late = federation.worker("w9")
    assert (len(first.tasks()), len(second.tasks()), len(late.tasks())) == (1, 0, 0)


def test_busy_and_resting_workers_have_a_coin_too() -> None:
    """Otherwise who is asked, and when a round opens, would depend on who was asked before."""
    federation = Federation(private(), coin=Told("w0"))
    failing, _ = federation.workers(2)
    failing.say(wire.Fail(task=failing.task().task, reason="ValueError"))
    federation.fold()
    assert [row.cohort for row in federation.durable(RoundRow) if row.buffer == 1] == [("w0",)]
    assert len(failing.tasks()) == 1  # it rests
    live(federation, 5, failing, answered={failing.tasks()[0].task})
    assert len(failing.tasks()) == 2


def test_a_member_that_failed_is_not_asked_again_in_that_round() -> None:
    """Nobody comes in its place; it counts as zero."""
    federation = Federation(private(), coin=Told("w0", "w1"))
    failing, other, spare = federation.workers(3)
    failing.say(wire.Fail(task=failing.task().task, reason="ValueError"))
    live(federation, 10, failing, other, spare, answered={failing.task().task})
    assert (len(failing.tasks()), len(spare.tasks())) == (1, 0)
    other.fit()
    assert [row.worker for row in federation.fold().rows] == ["w1"]


@pytest.mark.parametrize("has_task", [True, False])
def test_an_evicted_member_is_not_waited_for(has_task: bool) -> None:
    """It is gone for good, with its task or before it had one; who left may come back, and is asked again."""
    federation = Federation(private(), coin=Told("w0", "w1"))
    federation.worker("w0", **({} if has_task else {"free": 0}))
    one = federation.worker("w1")
    federation.operate("evict", worker="w0")
    one.say(wire.Bye())
    one.hello()
    one.fit()
    assert [row.worker for row in federation.fold().rows] == ["w1"]


def test_who_does_not_answer_counts_as_zero_at_the_deadline() -> None:
    """The round is neither extended nor filled up; a straggler's update is in no later one."""
    federation = Federation(private(), coin=Told("w0", "w1"))
    late, other, spare = federation.workers(3)
    straggles = late.task()
    other.fit()
    live(federation, DEADLINE_S + 1, other, spare, late)
    assert [row.worker for row in federation.fold().rows] == ["w1"]
    late.offer(straggles)
    assert late.last(wire.Ack).result == "stale"
    assert not spare.tasks()
    assert not [row for row in federation.durable(RoundRow) if row.extensions]
    assert not federation.durable(LeftOutRow)


def test_a_round_that_asks_nobody_is_released_at_its_deadline() -> None:
    """As long as one whose members do not answer, and it costs as much."""
    federation = Federation(private(), coin=Told())
    workers = federation.workers(3)
    live(federation, DEADLINE_S - 2, *workers)
    assert not federation.folds
    live(federation, 4, *workers)
    assert federation.fold().rows == ()
    assert federation.durable(VersionRow)[-1].privacy_steps == 1
    assert not any(worker.tasks() for worker in workers)


def test_every_round_may_last_until_its_deadline() -> None:
    """Then its time does not tell whether slow workers were asked."""
    federation = Federation(private(wait_for="deadline"), coin=Told("w0"))
    one, two = federation.workers(2)
    one.fit()
    live(federation, DEADLINE_S - 2, one, two)
    assert not federation.folds
    live(federation, 4, one, two)
    assert len(federation.fold().rows) == 1


def test_an_update_that_is_not_finite_counts_as_zero() -> None:
    """Who is in a round must not depend on data."""
    federation = Federation(private(), coin=Told("w0"))
    one, _ = federation.workers(2)
    assert one.fit(payload(math.nan)).result == "accepted"
    assert len(federation.fold().rows) == 1


@pytest.mark.parametrize("restarted", [False, True])
def test_the_federation_ends_when_its_rounds_are_spent(restarted: bool) -> None:
    """Empty ones among them, over a restart as well."""
    federation = Federation(private(steps=2), coin=Told())
    workers = federation.workers(2)
    live(federation, DEADLINE_S + 1, *workers)
    federation.fold()
    if restarted:
        federation.restart()
        workers = federation.workers(2)
    assert federation.status()["privacy_steps_left"] == 1
    live(federation, DEADLINE_S + 1, *workers)
    federation.fold()
    assert federation.exit is not None
    assert federation.exit.reason == "the privacy budget is spent"
    assert [row.privacy_steps for row in federation.durable(VersionRow)] == [0, 1, 1]


def test_versions_may_end_it_before() -> None:
    """Whichever comes first."""
    federation = Federation(private(steps=5, stop=Stop(versions=1)), coin=Told("w0"))
    federation.workers(2)[0].fit()
    federation.fold()
    assert federation.exit is not None
    assert federation.exit.reason == "made version 1"


def asked(federation: Federation) -> dict[int, set[str]]:
    """By version, whom this life of the broker has asked."""
    found: dict[int, set[str]] = {}
    for peer, messages in federation.sent.items():
        for message in messages:
            if isinstance(message, wire.Task):
                found.setdefault(message.version, set()).add(peer.decode())
    return found


@pytest.mark.parametrize("kill_before", range(1, 12))
def test_no_kill_flips_the_coin_again(kill_before: int) -> None:
    """Whenever the broker dies, and though its coin would fall otherwise: a round asks one sample, from the journal."""
    federation = Federation(private(stop=Stop(versions=3)), coin=Coin(b"1" * 32, 0.5))
    workers = federation.workers(6)
    told: list[dict[int, set[str]]] = []
    answered: set[bytes] = set()
    commits = 0
    for _ in range(400):
        if federation.exit is not None:
            break
        federation.hold = True
        if federation.pending:
            commits += 1
            if commits == kill_before:  # these rows are lost
                told.append(asked(federation))
                federation.coin = Coin(b"2" * 32, 0.5)
                federation.restart()
                federation.hold = True
                workers = federation.workers(6)
                continue
            federation.commit(1)
        elif federation.folds:
            federation.fold()
        else:
            at_work = [(w, task) for w in workers for task in unanswered(w, answered)]
            if at_work:
                worker, task = at_work[0]
                answered.add(task.task)
                worker.offer(task)
                worker.beat()
            else:
                live(federation, 10, *workers, answered=answered)
    told.append(asked(federation))
    assert federation.exit is not None
    assert commits >= kill_before
    rounds = federation.durable(RoundRow)
    assert len({(row.buffer, row.cohort) for row in rounds}) == len({row.buffer for row in rounds}) == 3
    for row in rounds:
        assert set().union(*(life.get(row.buffer, set()) for life in told)) <= set(row.cohort)
    assert {row.worker for row in federation.durable(AcceptRow) if row.buffer == 0} <= set(rounds[0].cohort)


def test_nobody_is_asked_before_the_round_is_durable() -> None:
    """The coin is on disk first."""
    federation = Federation(private(), coin=Told("w0"))
    federation.hold = True
    one, _ = federation.workers(2)
    assert not one.tasks()
    federation.commit()
    assert len(one.tasks()) == 1


def test_the_coin_does_not_follow_from_the_public_seed() -> None:
    """Two federations of one seed ask others; without a coin there is no such federation."""
    federations = [Federation(private(min_available=40), coin=Coin(key * 32, 0.5)) for key in (b"1", b"2")]
    for federation in federations:
        federation.workers(40)
    first, second = (federation.durable(RoundRow)[0].cohort for federation in federations)
    assert first != second
    with pytest.raises(ValueError, match="coin"):
        Coordinator(private(), TaskIds(b"f", b"k" * 32, b"bootboot"), "f", Recovered(), 0.0)


def shown(folder: Path, *taken: str) -> list[str]:
    """Everything that is published of a federation whose coin takes these workers, at every second of three rounds.

    One that is asked answers, one fails, one is refused, one never answers.
    """
    federation = Federation(private(wait_for="deadline", stop=Stop(versions=3)), coin=Told(*taken))
    workers = federation.workers(6)
    pages: list[Any] = []
    answered: set[bytes] = set()
    for second in range(3 * math.ceil(DEADLINE_S) + 6):
        for number, worker in enumerate(workers):
            for task in unanswered(worker, answered) if second % 60 == 5 + number else ():
                answered.add(task.task)
                match number % 4:
                    case 0:
                        worker.offer(task)
                    case 1:
                        worker.say(wire.Fail(task=task.task, reason="ValueError"))
                    case 2:
                        worker.offer(task, layout=b"another")
        live(federation, 1.0, *workers, answered=answered)
        if federation.folds:
            federation.fold()
        status = federation.status()
        numbers = federation.mind.measure(federation.now).numbers
        pages += [status, status_view.lines(status | {"uptime_s": 1})]
        pages.append(metrics.complete(numbers, private=True, sampled=True).items())
    pages.append([(note.level, note.text, note.fields) for note in federation.notes])
    folder.mkdir()
    journal = Journal.open(folder / "journal.db", "os", wall=lambda: 1.0, clock=lambda: 1.0)
    journal.apply(federation.rows)
    journal.close()
    with History.open(folder / "journal.db") as history:
        pages += [history.history(), history.left_out(1), history.participations()]
    return [json.dumps(page, default=repr) for page in pages]


def test_nothing_that_is_shown_tells_who_was_asked_or_how_many(tmp_path: Path) -> None:
    """Status, metrics, log and history are the same, letter by letter, whatever the coin says."""
    nobody = shown(tmp_path / "nobody")
    assert any("here" in page for page in nobody)
    for number, taken in enumerate((["w0"], ["w1", "w2"], ["w3"], [f"w{i}" for i in range(6)])):
        assert shown(tmp_path / str(number), *taken) == nobody
