"""The simulation finds bugs: each of these, planted into the real mind, makes some seed fail.

A simulation that never fails proves nothing. What is planted here are the mistakes that its design is there to
prevent; the few seeds that each test runs are enough to meet every one of them.
"""

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from fedmq.broker import events, peers
from fedmq.broker.books import Books
from fedmq.broker.intake import Intake
from fedmq.broker.progress import Progress
from fedmq.broker.rounds import Buffer, Round
from fedmq.broker.rows import FreezeRow
from fedmq.broker.sessions import Held, Worker, Workers
from fedmq.broker.uploads import Upload, Uploads
from fedmq.worker.uploads import Uploads as Outbox

from .federation import run
from .scenario import draw, full_cohort

SEEDS = 40

Patch = Callable[[pytest.MonkeyPatch], None]


def ack_before_commit(patch: pytest.MonkeyPatch) -> None:
    """An ACK leaves while its row is on the way to the disk."""
    commit = Books.commit

    def hasty(books: Books, *rows: Any, then: tuple[events.Action, ...] = ()) -> None:
        books.emit(*(action for action in then if isinstance(action, events.Send)))
        commit(books, *rows, then=tuple(a for a in then if not isinstance(a, events.Send)))

    patch.setattr(Books, "commit", hasty)


def duplicate_before_commit(patch: pytest.MonkeyPatch) -> None:
    """`duplicate` is said of an update whose row is still on the way to the disk."""

    def hasty(intake: Intake, worker: Worker, task: bytes, result: Any, reason: str, now: float) -> None:
        intake._books.emit(*intake._ack(worker, task, result, reason, now))

    patch.setattr(Intake, "_answer", hasty)


def no_dedupe(patch: pytest.MonkeyPatch) -> None:
    """An update that is known counts again."""
    init = Books.__init__

    class Forgetful(dict[bytes, int]):
        def __contains__(self, task: object) -> bool:
            return False

    def forgetful(books: Books, *args: Any) -> None:
        init(books, *args)
        books.known = Forgetful(books.known)

    patch.setattr(Books, "__init__", forgetful)


def freed_twice(patch: pytest.MonkeyPatch) -> None:
    """A task that is freed makes room for two."""
    free = Workers.free

    def twice(workers: Workers, worker: Worker, task: bytes) -> Held | None:
        held = free(workers, worker, task)
        workers.busy -= held is not None and held.kind == "fit"
        return held

    patch.setattr(Workers, "free", twice)


def credit_for_everybody(patch: pytest.MonkeyPatch) -> None:
    """Each upload gets its window, however little of the budget is left."""

    def generous(uploads: Uploads, upload: Upload) -> bool:
        upload.limit = min(upload.size, upload.written + uploads._cap)
        return True

    patch.setattr(Uploads, "extend", generous)


def buffer_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A restart begins with an empty buffer."""
    init = Books.__init__

    def empty(books: Books, *args: Any) -> None:
        init(books, *args)
        books.buffer = Buffer(books.buffer.number)

    patch.setattr(Books, "__init__", empty)


def tasks_before_their_round(patch: pytest.MonkeyPatch) -> None:
    """The tasks of a round go out before a restart would remember whom it asked."""
    init = Round.__init__

    def hasty(opened: Round, row: Any, now: float, *, durable: bool) -> None:
        init(opened, row, now, durable=True)

    patch.setattr(Round, "__init__", hasty)


def payloads_gone_before_their_version(patch: pytest.MonkeyPatch) -> None:
    """Payloads are deleted when they were folded, before the version is in the journal."""
    folded = Progress.folded

    def hasty(progress: Progress, event: events.Folded) -> None:
        rows = progress._books.frozen[0].rows
        progress._books.emit(events.Discard(tuple(row.task for row in rows if row.inline is None)))
        folded(progress, event)

    patch.setattr(Progress, "folded", hasty)


def lost_tasks_stay(patch: pytest.MonkeyPatch) -> None:
    """What a worker lost is never taken off the books."""

    def none(worker: Worker, listed: Iterable[bytes]) -> list[Held]:
        return []

    patch.setattr(peers, "missing", none)


def frozen_in_memory_only(patch: pytest.MonkeyPatch) -> None:
    """A buffer is folded that a restart would still take updates into."""
    commit = Books.commit

    def careless(books: Books, *rows: Any, then: tuple[events.Action, ...] = ()) -> None:
        commit(books, *(row for row in rows if not isinstance(row, FreezeRow)), then=then)

    patch.setattr(Books, "commit", careless)


def two_initial_models(patch: pytest.MonkeyPatch) -> None:
    """The second worker's initial model is written over the first one's."""
    patch.setattr(Intake, "_adopt", lambda intake, task, data: intake._books.emit(events.Adopt(task, data)))


def outbox_forgets_at_wait(patch: pytest.MonkeyPatch) -> None:
    """A worker that is told to WAIT deletes the update."""

    def careless(outbox: Outbox, message: Any, now: float) -> bool:
        return outbox.forget(message.task) is not None

    patch.setattr(Outbox, "wait", careless)


def run_seeds() -> None:
    for seed in range(SEEDS):
        run(draw(seed))
        run(full_cohort(seed, faults=True))


@pytest.mark.parametrize(
    "plant",
    [
        ack_before_commit,
        duplicate_before_commit,
        no_dedupe,
        freed_twice,
        credit_for_everybody,
        buffer_forgotten,
        tasks_before_their_round,
        payloads_gone_before_their_version,
        lost_tasks_stay,
        frozen_in_memory_only,
        two_initial_models,
        outbox_forgets_at_wait,
    ],
    ids=lambda plant: plant.__name__,
)
def test_a_planted_bug_is_found(plant: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some seed fails on it, and says how to see it again."""
    plant(monkeypatch)
    with pytest.raises(AssertionError, match="replay: FEDMQ_SEEDS="):
        run_seeds()
