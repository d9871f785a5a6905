"""Models in fewer bytes, as the mind hands them out: who is given what, when, and what a crash changes."""

import msgspec
import pytest

from fedmq.broker.events import ModelEncoded, SendBlock
from fedmq.fedcore import wire
from fedmq.fedcore.config import Config, Evaluate, Model

from .federation import Federation, Worker, asynchronous, synchronous

READS = ("f32", "f16", "bf16")


def config(downlink: str = "f16", **keys: object) -> Config:
    return asynchronous(model=Model(initial="app:initial", downlink=downlink), **{"buffer": 1, **keys})  # type: ignore[arg-type]


def in_rounds(**keys: object) -> Config:
    """Of one worker each, so that each of its tasks is on the next version."""
    return synchronous(model=Model(initial="app:initial", downlink="f16"), min_available=1, **keys)


def blocks(federation: Federation) -> list[tuple[int, int, int, str]]:
    return [(b.version, b.offset, b.length, b.encoding) for b in federation.blocks]


def said(worker: Worker) -> tuple[str | None, int]:
    task = worker.task()
    return task.model, task.size


def test_tasks_wait_for_the_file_and_name_it() -> None:
    """Size and digest are those of what is fetched; layout and version those of the version."""
    federation = Federation(in_rounds())
    worker = federation.worker("w0", models=READS)
    assert not worker.tasks()
    assert federation.encode().encoding == "f16"
    task = worker.task()
    assert (task.model, task.size, task.version, task.layout) == ("f16", 2500, 0, federation.info(0).layout)
    assert task.digest not in (None, federation.info(0).digest)
    assert worker.fit().result == "accepted"
    federation.fold()
    assert worker.tasks()[-1].version == 0
    assert federation.encode().version == 1
    assert worker.tasks()[-1].version == 1


@pytest.mark.parametrize("hello", [{}, {"models": ("f32",)}, {"models": ("f32", "bf16")}])
def test_a_worker_that_does_not_read_it_is_given_the_version_itself(
    hello: dict[str, tuple[str, ...]],
) -> None:
    """One that knows nothing of it, or something else."""
    federation = Federation(config())
    federation.encode()
    worker = federation.worker("w0", **hello)
    assert said(worker) == (None, 5000)
    assert worker.task().digest == federation.info(0).digest
    assert worker.fit().result == "accepted"


def test_as_f32_nothing_is_encoded() -> None:
    """The default changes nothing, whatever a worker reads."""
    federation = Federation(config("f32"))
    assert said(federation.worker("w0", models=READS)) == (None, 5000)
    assert not federation.encodings


def test_who_only_evaluates_is_given_the_version_itself() -> None:
    """Who trains as well evaluates what it has fetched to train from: twice would be more bytes than without."""
    federation = Federation(in_rounds(evaluate=Evaluate(every=1)))
    judge = federation.worker("judge", models=READS, kinds=("evaluate",))
    both = federation.worker("both", models=READS)
    federation.encode()
    both.fit()
    federation.fold()
    federation.encode()
    judged, trained = (worker.task("evaluate") for worker in (judge, both))
    assert (judged.version, judged.model, judged.size) == (1, None, 5000)
    assert (trained.version, trained.model, trained.size) == (1, "f16", 2500)


def test_a_version_that_the_encoding_cannot_say_travels_as_it_is() -> None:
    """An infinity is never handed out; the log says why, and the next version may fit again."""
    federation = Federation(in_rounds())
    worker = federation.worker("w0", models=READS)
    federation.encode(refusal="tensor 'w' holds 1e+06")
    assert said(worker) == (None, 5000)
    note = next(note for note in federation.notes if note.text == "version not encoded")
    assert (note.level, note.fields["version"]) == ("warning", 0)
    assert note.fields["reason"] == "tensor 'w' holds 1e+06"
    worker.say(wire.Fetch(version=0, offset=0, length=1024, model="f16"))
    assert worker.last(wire.Error).why == "gone"
    worker.fit()
    federation.fold()
    federation.encode()
    assert said(worker) == ("f16", 2500)


def test_a_fetch_says_as_what() -> None:
    """Offsets are bytes of that file, and it ends where that ends."""
    federation = Federation(config())
    federation.encode()
    worker = federation.worker("w0", models=READS)
    worker.say(wire.Fetch(version=0, offset=2000, length=1024, model="f16"))
    worker.say(wire.Fetch(version=0, offset=4000, length=1024))
    assert blocks(federation) == [(0, 2000, 500, "f16"), (0, 4000, 1000, "f32")]
    worker.say(wire.Fetch(version=0, offset=2500, length=1, model="f16"))
    assert worker.last(wire.Error).why == "malformed"
    for model in ("bf16", "i8", "nonsense"):
        worker.say(wire.Fetch(version=0, offset=0, length=1024, model=model))
        assert worker.last(wire.Error).why == "gone"
    assert len(federation.blocks) == 2


def test_a_broker_that_died_before_it_was_encoded_makes_it_at_its_start() -> None:
    """The version is durable; nothing of the file was."""
    federation = Federation(config())
    worker = federation.worker("w0", models=READS)
    federation.encode()
    worker.fit()
    federation.fold()
    assert [job.version for job in federation.encodings] == [1]
    federation.restart()
    assert [job.version for job in federation.encodings] == [1]
    worker.hello(models=READS)
    assert not worker.tasks()
    federation.encode()
    assert said(worker) == ("f16", 2500)


def test_a_transfer_of_an_older_version_goes_on_after_a_restart() -> None:
    """Its file is made again when somebody asks, once, and until then it is `busy`."""
    federation = Federation(config())
    first, second = federation.workers(2, models=READS)
    federation.encode()
    held = first.task()
    second.fit()
    federation.fold()
    federation.restart()
    federation.encode()
    first.hello(models=READS, tasks=(held.task,))
    fetch = wire.Fetch(version=0, offset=1024, length=1024, model="f16")
    first.say(fetch)
    first.say(fetch)
    assert [error.why for error in first.got(wire.Error)] == ["busy", "busy"]
    assert [job.version for job in federation.encodings] == [0]
    federation.encode()
    first.say(fetch)
    assert blocks(federation) == [(0, 1024, 1024, "f16")]
    first.offer(held)
    assert first.last(wire.Ack).result == "accepted"


def test_what_was_made_of_a_version_that_went_meanwhile_goes_as_well() -> None:
    """Else it would lie there until the next start."""
    federation = Federation(config())
    federation.encode()
    federation.tell(ModelEncoded(17, "f16", 100, b"d" * 16))
    assert federation.collected == [17]


def test_a_version_whose_file_went_is_not_made_again() -> None:
    """A FETCH of one that is no longer kept gets `gone`, as ever."""
    federation = Federation(config(storage=msgspec.structs.replace(Config().storage, keep=1)))
    worker = federation.worker("w0", models=READS)
    for _ in range(3):
        federation.encode()
        worker.fit()
        federation.fold()
    assert federation.collected == [0, 1]
    federation.encode()
    worker.say(wire.Fetch(version=0, offset=0, length=1024, model="f16"))
    assert worker.last(wire.Error).why == "gone"
    assert not federation.encodings


def test_a_model_that_is_small_when_encoded_rides_with_its_task() -> None:
    """Once a session and version, like any small model."""
    federation = Federation(config(), model_bytes=2 * wire.TASK_INLINE_MAX)
    federation.encode()
    old, new = federation.worker("old"), federation.worker("new", models=READS)
    assert federation.rode == [(new.peer, 0)]
    assert (old.task().size, new.task().size) == (2 * wire.TASK_INLINE_MAX, wire.TASK_INLINE_MAX)


def test_a_round_waits_for_the_file_as_well() -> None:
    """Its tasks go out when it is there."""
    table = Model(initial="app:initial", downlink="bf16")
    federation = Federation(synchronous(min_available=2, model=table))
    workers = federation.workers(2, models=READS)
    assert not any(worker.tasks() for worker in workers)
    federation.encode()
    assert [said(worker) for worker in workers] == [("bf16", 2500)] * 2
    assert not any(isinstance(block, SendBlock) for block in federation.blocks)
