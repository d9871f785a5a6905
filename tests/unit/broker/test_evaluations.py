"""Measuring versions: by workers on their own data, and by an app beside the broker; training never waits for it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq.broker.evaluations import Evaluation, combine
from fedmq.broker.events import Evaluated
from fedmq.broker.rows import EvaluationRow, MetricsRow
from fedmq.fedcore import wire
from fedmq.fedcore.config import Config, Evaluate, Stop

from .federation import Federation, Worker, asynchronous


def config(**keys: object) -> Config:
    keys = {"every": 1, "deadline_s": 60.0} | keys
    return asynchronous(buffer=1, evaluate=Evaluate(**keys))  # type: ignore[arg-type]


def federation_at_1(
    count: int, settings: Config | None = None, **hello: object
) -> tuple[Federation, list[Worker]]:
    """A federation that has just made version 1, and its workers, each with a free slot."""
    federation = Federation(settings or config())
    workers = federation.workers(count, **hello)
    offered = workers[0].task()
    workers[0].offer(offered)
    federation.fold()
    for worker in workers:
        held = [task.task for task in worker.tasks() if task is not offered]
        worker.beat(tasks=tuple(held), free=int(not worker.tasks("evaluate")))
    return federation, workers


def measured(federation: Federation) -> list[MetricsRow]:
    return federation.durable(MetricsRow)


def test_the_metrics_of_a_version_are_weighted_by_examples() -> None:
    """It is over when everybody has answered."""
    federation, workers = federation_at_1(2)
    workers[0].answer(workers[0].task("evaluate"), examples=1, loss=1.0)
    assert not measured(federation)
    workers[1].answer(workers[1].task("evaluate"), examples=3, loss=2.0, accuracy=0.5)
    assert measured(federation) == [
        MetricsRow(
            version=1,
            source="federated",
            metrics={"accuracy": 0.5, "loss": 1.75},
            examples=4,
            workers=2,
        )
    ]
    assert federation.status()["metrics"]["federated"] == {"version": 1, "accuracy": 0.5, "loss": 1.75}


def test_an_answer_is_acknowledged_when_it_is_durable() -> None:
    """A restart combines the half of the answers that it has."""
    federation, workers = federation_at_1(2)
    federation.hold = True
    workers[0].answer(workers[0].task("evaluate"), loss=1.0)
    assert not workers[0].got(wire.Ack)[1:]
    federation.commit()
    assert workers[0].last(wire.Ack).result == "accepted"
    federation.restart()
    assert [(row.version, row.workers) for row in measured(federation)] == [(1, 1)]


def test_an_answer_that_comes_twice_counts_once() -> None:
    """Its ACK was lost."""
    federation, workers = federation_at_1(2)
    for _ in range(2):
        workers[0].answer(workers[0].task("evaluate"))
    assert [ack.result for ack in workers[0].got(wire.Ack)[-2:]] == ["accepted", "duplicate"]
    assert len(federation.durable(EvaluationRow)) == 1


def test_an_evaluation_ends_at_its_deadline() -> None:
    """With what it has; who comes later hears that it is over."""
    federation, workers = federation_at_1(2)
    late = workers[1]
    workers[0].answer(workers[0].task("evaluate"))
    for _ in range(3):
        federation.wait(20.5)
        late.beat(tasks=tuple(task.task for task in late.tasks()), free=0)
    assert [row.workers for row in measured(federation)] == [1]
    late.answer(late.task("evaluate"))
    ack = late.last(wire.Ack)
    assert (ack.result, ack.reason) == ("stale", "the evaluation is over")


def test_an_evaluation_that_nobody_answers_leaves_no_metrics() -> None:
    """The mean of nothing does not exist."""
    federation, _ = federation_at_1(2)
    federation.wait(61.0)
    assert not measured(federation)
    assert federation.status()["metrics"] == {}


def test_the_next_version_begins_another() -> None:
    """Training did not wait: what the first has is combined."""
    federation, workers = federation_at_1(2)
    workers[0].answer(workers[0].task("evaluate"))
    workers[1].offer(workers[1].task("fit"))
    federation.fold()
    assert [(row.version, row.workers) for row in measured(federation)] == [(1, 1)]
    workers[0].beat()
    assert workers[0].task("evaluate").version == 2


def test_an_evaluation_comes_before_the_next_fit() -> None:
    """It is short, and a version waits for it; the task says how long."""
    _, workers = federation_at_1(1)
    task = workers[0].tasks()[-1]
    assert (task.kind, task.version) == ("evaluate", 1)
    assert 0 < task.deadline_s <= 60.0


@pytest.mark.parametrize(("fraction", "count"), [(1.0, 4), (0.5, 2), (0.3, 2), (0.0, 0)])
def test_a_fraction_of_the_workers_is_asked(fraction: float, count: int) -> None:
    """Rounded up; version by version another part of them."""
    _, workers = federation_at_1(4, config(fraction=fraction), free=1)
    assert sum(bool(worker.tasks("evaluate")) for worker in workers) == count


def test_every_so_many_versions_are_measured() -> None:
    """Here every second."""
    federation, workers = federation_at_1(1, config(every=2))
    assert not workers[0].tasks("evaluate")
    workers[0].offer(workers[0].task())
    federation.fold()
    workers[0].beat(free=1)
    assert workers[0].task("evaluate").version == 2


@pytest.mark.parametrize("how", ["failed", "left", "lost", "rejected"])
def test_a_worker_that_will_not_answer_is_not_waited_for(how: str) -> None:
    """The rest decides."""
    federation, workers = federation_at_1(2)
    workers[0].answer(workers[0].task("evaluate"))
    match how:
        case "failed":
            workers[1].say(wire.Fail(task=workers[1].task("evaluate").task, reason="ValueError"))
        case "left":
            workers[1].say(wire.Bye())
        case "lost":
            workers[1].beat(tasks=(workers[1].task("fit").task,))
        case "rejected":
            workers[1].answer(workers[1].task("evaluate"), examples=0)
    assert [row.workers for row in measured(federation)] == [1]


def test_a_worker_that_was_not_asked_is_not_counted() -> None:
    """Even with a task of its own."""
    federation, workers = federation_at_1(2, config(fraction=0.5))
    outsider = next(worker for worker in workers if not worker.tasks("evaluate"))
    member = next(worker for worker in workers if worker.tasks("evaluate"))
    spare = federation.task_id("evaluate", outsider.name, 1)
    outsider.say(wire.Offer(task=spare, kind="evaluate", base=1, examples=1, metrics={"loss": 0.0}))
    assert outsider.last(wire.Ack).result == "stale"
    member.answer(member.task("evaluate"), loss=3.0)
    assert measured(federation)[0].metrics == {"loss": 3.0}


def test_the_app_beside_the_broker_measures_too() -> None:
    """Its metrics have a source of their own; a failure is noted and forgotten."""
    federation, _ = federation_at_1(1, config(app="app:evaluate", fraction=0.0))
    assert federation.evaluations == [0]
    federation.tell(Evaluated(version=0, metrics=None, reason="the app raised"))
    assert not measured(federation)
    federation.tell(Evaluated(version=1, metrics={"accuracy": 0.9}, examples=7))
    row = measured(federation)[-1]
    assert (row.source, row.metrics, row.examples) == ("broker", {"accuracy": 0.9}, 7)


def test_a_slow_app_measures_the_newest_version_next() -> None:
    """It skips those that were made meanwhile; the last one used to be skipped as well."""
    stop, evaluate = Stop(versions=3), Evaluate(every=1, fraction=0.0, app="app:evaluate")
    federation = Federation(asynchronous(buffer=1, evaluate=evaluate, stop=stop))
    worker = federation.worker("w0")
    for _ in range(3):
        worker.offer(worker.task())
        federation.fold()
        worker.beat()
    assert federation.evaluations == [0]
    federation.tell(Evaluated(version=0, metrics={"accuracy": 0.1}))
    assert federation.evaluations == [0, 3]
    assert federation.exit is None
    federation.tell(Evaluated(version=3, metrics=None, reason="the app raised"))
    assert federation.evaluations == [0, 3]
    assert federation.exit is not None


def test_the_app_is_asked_again_after_a_restart() -> None:
    """The child died with the broker."""
    federation = Federation(config(app="app:evaluate", fraction=0.0))
    assert federation.evaluations == [0]
    federation.restart()
    assert federation.evaluations == [0]
    federation.tell(Evaluated(version=0, metrics={"accuracy": 0.1}))
    federation.restart()
    assert federation.evaluations == []


def test_the_end_waits_for_the_last_measurement() -> None:
    """Its metrics are what the federation was for."""
    settings = asynchronous(buffer=1, evaluate=Evaluate(every=1), stop=Stop(versions=1))
    federation, workers = federation_at_1(1, settings)
    assert federation.exit is None
    workers[0].answer(workers[0].task("evaluate"))
    assert federation.exit is not None
    assert len(measured(federation)) == 1


ROWS = st.lists(st.tuples(st.integers(1, 10**9), st.floats(-1e6, 1e6), st.booleans()), min_size=1, max_size=8)


@given(rows=ROWS, seed=st.randoms())
def test_who_answers_first_does_not_show(rows: list[tuple[int, float, bool]], seed: object) -> None:
    """The sum is exact, so any order gives the same bits; each mean lies between the least and the most."""
    answers = [
        EvaluationRow(
            task=b"%d" % i,
            worker=f"w{i}",
            version=1,
            examples=examples,
            metrics={"loss": value} | ({"extra": value} if extra else {}),
        )
        for i, (examples, value, extra) in enumerate(rows)
    ]
    combined = combine(1, answers)
    assert combined is not None
    seed.shuffle(answers)  # type: ignore[attr-defined]
    assert combine(1, answers) == combined
    values = [value for _, value, _ in rows]
    slack = 1e-9 * max(map(abs, values))
    assert min(values) - slack <= combined.metrics["loss"] <= max(values) + slack
    assert combined.workers == len(rows)


def test_nothing_makes_no_mean() -> None:
    """Neither no rows, nor rows without metrics."""
    assert combine(1, []) is None
    row = EvaluationRow(task=b"t", worker="w", version=1, examples=1, metrics={})
    assert combine(1, [row]) is None


def test_an_evaluation_is_done_without_those_who_left() -> None:
    """Or when time is up."""
    evaluation = Evaluation(1, ["a", "b"], 100.0)
    evaluation.add(EvaluationRow(task=b"t", worker="a", version=1, examples=1, metrics={"loss": 1.0}))
    assert not evaluation.done(99.0)
    assert evaluation.done(100.0)
    evaluation.drop("b")
    assert evaluation.done(99.0)


def test_the_end_does_not_wait_for_a_worker_that_takes_no_task() -> None:
    """It is paused: it was asked for nothing, and is not left out of anything."""
    settings = asynchronous(buffer=1, evaluate=Evaluate(every=1), stop=Stop(versions=1))
    federation = Federation(settings)
    paused, worker = federation.worker("p", free=0), federation.worker("w")
    task = worker.task()
    worker.offer(task)
    federation.fold()
    worker.beat(tasks=tuple(t.task for t in worker.tasks() if t is not task))
    assert federation.exit is None
    worker.answer(worker.task("evaluate"))
    assert federation.exit is not None
    assert not paused.tasks()


def test_a_finish_while_paused_does_not_wait_for_measurements() -> None:
    """No task goes out any more, so none of them could come."""
    federation, workers = federation_at_1(2)
    federation.restart()
    for worker in workers:
        worker.hello()
    federation.operate("pause")
    federation.wait(1.0)
    assert federation.operate("stop", finish=True) == {"ok": True}
    for worker in workers:
        worker.say(wire.Bye())
    federation.wait(2.0)
    assert federation.exit is not None


def test_a_failed_evaluation_does_not_keep_a_worker_from_training() -> None:
    """Its metrics are missing; its next update is not."""
    _, workers = federation_at_1(1)
    workers[0].say(wire.Fail(task=workers[0].task("evaluate").task, reason="ValueError"))
    before = len(workers[0].tasks("fit"))
    workers[0].beat((), free=1)
    assert len(workers[0].tasks("fit")) > before
