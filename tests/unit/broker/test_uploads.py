"""Updates that come in PARTs: credit, resumption, stalls, and peers that do not keep to what was granted."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq.broker.events import OpenUpload, UploadOpened, WritePart
from fedmq.broker.rows import AcceptRow
from fedmq.broker.uploads import Stage, Uploads
from fedmq.fedcore import wire
from fedmq.fedcore.config import Config, Network, Storage

from .federation import Federation, Worker, asynchronous, payload, synchronous

ELEMENTS = 5000
DATA = payload(elements=ELEMENTS)
"""20,000 bytes: more than a window of eight blocks."""
WINDOW = 8 * 1024


def config(budget: int = 64 * 1024, **keys: Any) -> Config:
    return asynchronous(network=Network(block=1024, credit_budget=budget), **keys)


def uploads(federation: Federation) -> Uploads:
    books: Any = federation.mind._books
    found: Uploads = books.uploads
    return found


def begun(federation: Federation, name: str = "w0") -> Worker:
    """A worker that has offered its update and got a GRANT."""
    worker = federation.worker(name)
    worker.offer(worker.task(), DATA, inline=False)
    return worker


def finish(worker: Worker) -> None:
    """Send the rest, as it is granted."""
    assert worker.send_granted(worker.task(), DATA) == len(DATA)


def test_an_update_comes_in_parts() -> None:
    """OFFER, GRANT, PARTs, ACK; then its row says where the payload lies."""
    federation = Federation(config(), elements=ELEMENTS)
    worker = begun(federation)
    finish(worker)
    assert worker.last(wire.Ack).result == "accepted"
    (row,) = federation.durable(AcceptRow)
    assert row.inline is None
    assert row.size == len(DATA)
    assert row.norm == pytest.approx(ELEMENTS**0.5)
    assert bytes(federation.spool[row.task]) == DATA


def test_a_window_is_never_exceeded() -> None:
    """Each GRANT reaches at most eight blocks beyond what is on the disk."""
    federation = Federation(config(), elements=ELEMENTS)
    worker = begun(federation)
    assert worker.last(wire.Grant).limit == WINDOW
    federation.slow_spool = True
    worker.send_granted(worker.task(), DATA)
    assert worker.last(wire.Grant).limit == WINDOW
    federation.serve_spool()
    assert worker.last(wire.Grant).limit == 2 * WINDOW


def test_all_workers_share_one_budget() -> None:
    """When it is taken a worker is told to WAIT, and has it when it is free."""
    federation = Federation(config(budget=WINDOW), elements=ELEMENTS)
    first = begun(federation)
    second = begun(federation, "w1")
    assert second.last(wire.Wait).retry_s > 0
    assert not second.got(wire.Grant)
    finish(first)
    second.offer(second.task(), DATA, inline=False)
    finish(second)
    assert second.last(wire.Ack).result == "accepted"


def test_credit_that_comes_back_goes_to_those_who_wait_for_it() -> None:
    """Two uploads that were begun share what there is."""
    federation = Federation(config(budget=WINDOW + 2048), elements=ELEMENTS)
    first = begun(federation)
    second = begun(federation, "w1")
    assert second.last(wire.Grant).limit == 2048
    finish(first)
    assert second.last(wire.Grant).limit == WINDOW
    finish(second)
    assert len(federation.durable(AcceptRow)) == 2


def test_an_upload_resumes_after_a_reconnect() -> None:
    """Where the broker has come to: bytes are not sent twice."""
    federation = Federation(config(), elements=ELEMENTS)
    worker = begun(federation)
    worker.part(worker.task(), DATA[:1000], 0)
    task = worker.task()
    worker.hello(peer=b"second", outbox=(task.task,), free=0)
    worker.offer(task, DATA, inline=False)
    assert worker.last(wire.Grant).offset == 1000


def test_an_upload_resumes_after_a_restart() -> None:
    """At the length of the file that the dead broker left."""
    federation = Federation(config(), elements=ELEMENTS)
    worker = begun(federation)
    worker.part(worker.task(), DATA[:1000], 0)
    task = worker.task()
    federation.restart()
    worker.hello(outbox=(task.task,), free=0)
    worker.offer(task, DATA, inline=False)
    assert worker.last(wire.Grant).offset == 1000
    worker.send_granted(task, DATA)
    assert worker.last(wire.Ack).result == "accepted"


def test_an_upload_that_was_complete_at_the_restart_needs_no_more_bytes() -> None:
    """It is sealed at once."""
    federation = Federation(config(), elements=ELEMENTS)
    worker = begun(federation)
    federation.spool[worker.task().task][:] = DATA
    task = worker.task()
    federation.restart()
    worker.hello(outbox=(task.task,), free=0)
    worker.offer(task, DATA, inline=False)
    assert worker.last(wire.Ack).result == "accepted"


def test_an_update_that_was_trained_again_is_uploaded_from_the_start() -> None:
    """Other bytes under the same id: what had come of the first is deleted."""
    federation = Federation(config(), elements=ELEMENTS)
    worker = begun(federation)
    worker.part(worker.task(), DATA[:1000], 0)
    other = payload(2.0, ELEMENTS)
    worker.offer(worker.task(), other, inline=False)
    assert federation.discarded == [worker.task().task]
    assert worker.last(wire.Grant).offset == 0
    worker.send_granted(worker.task(), other)
    assert bytes(federation.spool[worker.task().task]) == other


def test_what_the_spool_says_of_a_discarded_file_changes_nothing() -> None:
    """Two OFFERs of other bytes cross the spool's answer to the first; it used to end the daemon."""
    federation = Federation(config(), elements=ELEMENTS)
    worker = federation.worker("w0")
    federation.slow_spool = True
    worker.offer(worker.task(), DATA, inline=False)
    worker.offer(worker.task(), payload(2.0, ELEMENTS), inline=False)
    opened = [a for a in federation.spooling if isinstance(a, OpenUpload)]
    assert len(opened) == 2
    federation.tell(UploadOpened(worker.task().task, 3000))  # what an earlier life had left
    assert not worker.got(wire.Grant)
    federation.tell(UploadOpened(worker.task().task, 0))
    assert worker.last(wire.Grant).offset == 0


def test_an_upload_that_is_opened_for_a_session_that_is_over_gets_no_credit() -> None:
    """It would hold it for a minute, and nobody would use it."""
    federation = Federation(config(), elements=ELEMENTS)
    worker = federation.worker("w0")
    federation.slow_spool = True
    worker.offer(worker.task(), DATA, inline=False)
    worker.say(wire.Bye())
    federation.serve_spool()
    assert uploads(federation).in_flight() == 0


def test_an_upload_that_stands_still_for_a_minute_loses_its_credit() -> None:
    """Its worker is told to offer again; the bytes stay."""
    federation = Federation(config(budget=WINDOW), elements=ELEMENTS)
    worker = begun(federation)
    task = worker.task()
    worker.part(task, DATA[:1000], 0)
    for _ in range(3):
        federation.wait(20.0)
        worker.beat(outbox=(task.task,), free=0)
    federation.wait(2.0)
    assert worker.got(wire.Wait)
    assert uploads(federation).in_flight() == 0
    worker.part(task, DATA[1000:2000], 1000)  # it had not heard yet
    assert not worker.got(wire.Error)
    worker.offer(task, DATA, inline=False)
    assert worker.last(wire.Grant).offset == 1000


def test_an_upload_that_moves_is_never_timed_out() -> None:
    """However slow it is."""
    federation = Federation(config(), elements=ELEMENTS)
    worker = begun(federation)
    for position in range(0, 800, 100):
        federation.wait(50.0)
        worker.part(worker.task(), DATA[position : position + 100], position)
    assert not worker.got(wire.Wait)
    assert worker.tasks()


@pytest.mark.parametrize(("offset", "length"), [(1, 10), (0, WINDOW + 1)], ids=["a hole", "beyond the limit"])
def test_a_part_that_was_not_granted_is_a_violation(offset: int, length: int) -> None:
    """And changes nothing; three of them end the session."""
    federation = Federation(config(), elements=ELEMENTS)
    worker = begun(federation)
    for _ in range(3):
        worker.part(worker.task(), bytes(length), offset)
    assert [e.why for e in worker.got(wire.Error)] == ["malformed"] * 3
    assert not federation.spool[worker.task().task]
    assert federation.dropped == [worker.peer]


def test_a_part_over_another_connection_is_a_violation() -> None:
    """A session's GRANT is for that session."""
    federation = Federation(config(), elements=ELEMENTS)
    worker = begun(federation)
    other = federation.worker("w1")
    other.part(worker.task(), DATA[:100], 0)
    assert other.last(wire.Error).why == "malformed"


def test_a_part_of_an_update_that_was_cancelled_is_ignored() -> None:
    """It was under way: no fault of the worker's."""
    federation = Federation(config(), elements=ELEMENTS)
    worker = begun(federation)
    worker.say(wire.Fail(task=worker.task().task, reason="the update can no longer be read"))
    worker.part(worker.task(), DATA[:100], 0)
    assert not worker.got(wire.Error)
    assert not any(isinstance(action, WritePart) for action in federation.spooling)


def test_a_failure_in_the_middle_of_an_upload_deletes_its_bytes() -> None:
    """They will never be complete, and held credit for a minute."""
    federation = Federation(config(), elements=ELEMENTS)
    worker = begun(federation)
    task = worker.task().task
    worker.say(wire.Fail(task=task, reason="the update can no longer be read"))
    assert federation.discarded == [task]
    assert uploads(federation).in_flight() == 0


def test_what_a_worker_lost_of_an_upload_is_deleted() -> None:
    """Its HELLO lists the update no more."""
    federation = Federation(config(), elements=ELEMENTS)
    worker = begun(federation)
    task = worker.task().task
    federation.wait(80.0)  # gone; the bytes stay, in case it comes back with the rest
    assert task in federation.spool
    worker.hello(peer=b"second")
    assert federation.discarded == [task]


def test_bytes_that_are_not_what_was_offered_are_rejected() -> None:
    """And deleted."""
    federation = Federation(config(), elements=ELEMENTS)
    worker = federation.worker("w0")
    worker.offer(worker.task(), DATA, inline=False, digest=b"another digest..")
    finish(worker)
    assert worker.last(wire.Ack).result == "rejected"
    assert worker.last(wire.Ack).reason.startswith("digest: ")
    assert federation.discarded == [worker.task().task]


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_an_update_that_is_not_finite_is_rejected_when_it_is_here(number: float) -> None:
    """Its norm says so."""
    federation = Federation(config(), elements=ELEMENTS)
    worker = federation.worker("w0")
    data = payload(number, ELEMENTS)
    worker.offer(worker.task(), data, inline=False)
    worker.send_granted(worker.task(), data)
    assert worker.last(wire.Ack).reason.startswith("non-finite: ")


def test_the_same_update_inline_ends_its_upload() -> None:
    """It is accepted once; the bytes in the spool are not needed. Their seal used to accept it again."""
    federation = Federation(config())
    worker = federation.worker("w0")
    worker.offer(worker.task(), inline=False)
    worker.part(worker.task(), payload()[:8], 0)
    worker.offer(worker.task())
    assert worker.last(wire.Ack).result == "accepted"
    assert federation.discarded == [worker.task().task]
    assert len(federation.durable(AcceptRow)) == 1


def test_an_upload_that_is_complete_too_late_is_stale() -> None:
    """It is judged again when its bytes are here."""
    federation = Federation(config(buffer=1, max_staleness=0), elements=ELEMENTS)
    worker = begun(federation)
    federation.worker("w1").fit(DATA)
    federation.fold()
    task = worker.task("fit")
    assert task.version == 0
    finish(worker)
    assert worker.last(wire.Ack).result == "stale"
    assert federation.discarded == [task.task]


def test_a_second_update_of_a_worker_waits_with_its_bytes() -> None:
    """Where one per worker is the rule; when the next buffer is open it is offered again, and not sent again."""
    federation = Federation(config(buffer=2, one_per_worker=True), elements=ELEMENTS)
    worker = begun(federation)
    first = worker.task()
    worker.hello()  # it says that it lost the first …
    second = worker.task()
    worker.offer(second, DATA, inline=False)
    worker.offer(first, DATA, inline=False)  # … and offers it all the same
    for task in (second, first):
        for position in range(0, len(DATA), 1024):
            worker.part(task, DATA[position : position + 1024], position)
    assert [ack.task for ack in worker.got(wire.Ack)] == [second.task]
    assert worker.last(wire.Wait).task == first.task
    federation.worker("w1").fit(DATA)
    federation.fold()
    worker.offer(first, DATA, inline=False)
    assert worker.last(wire.Ack).task == first.task
    assert worker.last(wire.Ack).result == "accepted"


def test_the_disk_budget_keeps_updates_at_their_workers() -> None:
    """Beyond it an offer is told to WAIT, until a version has made room."""
    storage = Storage(disk_budget=30_000)
    federation = Federation(config(buffer=1, storage=storage), elements=ELEMENTS)
    workers = federation.workers(3)
    workers[0].offer(workers[0].task(), DATA, inline=False)
    finish(workers[0])
    assert federation.folds
    workers[1].offer(workers[1].task(), DATA, inline=False)
    assert workers[1].last(wire.Wait)
    federation.fold()
    workers[1].offer(workers[1].task(), DATA, inline=False)
    assert workers[1].got(wire.Grant)


def test_a_disk_budget_below_a_buffer_does_not_stop_the_federation() -> None:
    """Nothing else would ever free the disk: what the open buffer lacks may come. It used to wait for ever."""
    federation = Federation(config(buffer=3, storage=Storage(disk_budget=30_000)), elements=ELEMENTS)
    for worker in federation.workers(3):
        worker.offer(worker.task(), DATA, inline=False)
        finish(worker)
    assert len(federation.folds) == 1


def test_a_rounds_uploads_end_with_it() -> None:
    """Who was late is told, and its bytes go."""
    network = Network(block=1024, credit_budget=64 * 1024)
    federation = Federation(
        synchronous(min_available=2, clients_per_round=1, over_selection=2.0, network=network),
        elements=ELEMENTS,
    )
    first, late = federation.workers(2)
    late.offer(late.task(), DATA, inline=False)
    late.part(late.task(), DATA[:1000], 0)
    first.fit(DATA)
    assert late.last(wire.Cancel).task == late.task().task
    assert federation.discarded == [late.task().task]


OFFER = wire.Offer(
    task=b"t", kind="fit", base=0, examples=1, layout=b"l", encoding="f32", size=10_000, digest=b"d" * 16
)


@given(
    budget=st.integers(1, 12_000),
    cap=st.integers(1, 8_000),
    moves=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4), st.integers(1, 3_000)), max_size=60),
)
def test_credit_never_exceeds_its_budget(budget: int, cap: int, moves: list[tuple[int, int, int]]) -> None:
    """Whatever is sent, written, held, resumed or ended, in any order."""
    table = Uploads(budget, cap)
    for which, move, amount in moves:
        task = b"%d" % which
        upload = table.get(task)
        if upload is None:
            offer = wire.Offer(**{f: getattr(OFFER, f) for f in OFFER.__struct_fields__} | {"task": task})
            table.start("w", b"p", offer, 0.0)
            table.opened(task, amount, 0.0)
        elif move == 0:
            table.extend(upload)
        elif move == 1:
            table.take(upload, upload.queued, amount, 0.0)
        elif move == 2 and upload.stage is not Stage.SEALING:
            table.written(upload, min(upload.written + amount, upload.queued))
        elif move == 3:
            table.hold(upload)
        else:
            table.resume(upload, b"p", 0.0)
        assert 0 <= table.in_flight() <= budget
        assert all(0 <= u.credit <= cap for u in table.of("w"))


def test_a_slow_upload_is_granted_a_little_every_ten_seconds() -> None:
    """Half a window may take minutes on a slow link; without a GRANT in between its worker would think it stuck."""
    federation = Federation(config(), elements=ELEMENTS)
    worker = begun(federation)
    task = worker.task()
    for position in range(0, 1000, 100):
        before = len(worker.got(wire.Grant))
        federation.wait(12.0)
        worker.part(task, DATA[position : position + 100], position)
        federation.wait(1.0)
        assert len(worker.got(wire.Grant)) <= before + 2
    assert len(worker.got(wire.Grant)) >= 8
