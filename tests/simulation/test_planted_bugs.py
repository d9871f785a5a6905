"""The simulation finds bugs: each of these, planted into the real mind, makes some seed fail.

A simulation that never fails proves nothing. What is planted here are the mistakes that its design is there to
prevent; the seeds that each test may run are enough to meet every one of them.
"""

import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest

from fedmq.broker import events, fold_job, peers, progress
from fedmq.broker.books import Books
from fedmq.broker.intake import Intake
from fedmq.broker.participations import WorkerLedger
from fedmq.broker.progress import Progress
from fedmq.broker.rounds import Buffer, Round, SyncPlan
from fedmq.broker.rows import FreezeRow, Recovered, Row, VersionRow
from fedmq.broker.sessions import Held, Worker, Workers
from fedmq.broker.store.journal import Journal
from fedmq.broker.store.spool import Spool
from fedmq.broker.store.versions import VersionStore
from fedmq.broker.uploads import Stage, Upload, Uploads
from fedmq.fedcore import kernels
from fedmq.fedcore.config import Config, SampledPrivacy, WorkerPrivacy
from fedmq.fedcore.privacy.adaptive import AdaptiveClipping
from fedmq.fedcore.privacy.mechanisms import noise_key
from fedmq.fedcore.privacy.sampled_workers import Coin
from fedmq.fedcore.strategy import rules
from fedmq.worker.uploads import Uploads as Outbox

from .federation import run
from .scenario import draw, full_cohort

SEEDS = 80

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


def refold_with_new_noise(patch: pytest.MonkeyPatch) -> None:
    """A buffer that is folded again after a crash gets noise of its own."""
    folded: set[bytes] = set()

    def fresh(master_key: bytes, *, version: int, frozen: bytes) -> bytes:
        again = frozen in folded
        folded.add(frozen)
        return os.urandom(32) if again else noise_key(master_key, version=version, frozen=frozen)

    patch.setattr(fold_job, "noise_key", fresh)


def ledger_misses_a_release(patch: pytest.MonkeyPatch) -> None:
    """A private version costs nothing."""
    patch.setattr(progress, "VersionRow", lambda **row: VersionRow(**row | {"privacy_steps": 0}))


def ledger_counts_twice(patch: pytest.MonkeyPatch) -> None:
    """A private version costs two steps: the federation ends before its budget is spent."""

    def double(**row: Any) -> VersionRow:
        return VersionRow(**row | {"privacy_steps": 2 * row.get("privacy_steps", 0)})

    patch.setattr(progress, "VersionRow", double)


def weight_applied_twice(patch: pytest.MonkeyPatch) -> None:
    """The staleness factor is in the weight, and in it again."""
    share = rules.Mean.share

    def twice(mean: rules.Mean, *, examples: int, tau: int) -> rules.Share:
        once = share(mean, examples=examples, tau=tau)
        return msgspec.structs.replace(once, weight=once.weight * mean.staleness(tau))

    patch.setattr(rules.Mean, "share", twice)


def summed_in_floats(patch: pytest.MonkeyPatch) -> None:
    """Updates are added as float32 numbers: the sum depends on who was first."""

    class Floats:
        def __init__(self, n: int, **_: Any) -> None:
            self.total = np.zeros(n, np.float32)

        def add(self, payload: Any, *, encoding: str, weight: float, **_: Any) -> None:
            self.total += np.float32(weight) * kernels.decode(payload, encoding, len(self.total))

        def add_noise(self, sigma: float, **_: Any) -> None:
            self.total += np.float32(sigma)

        def mean(self, denominator: float, out: Any) -> Any:
            out[:] = self.total / np.float32(denominator)
            return out

    patch.setattr(kernels, "Accumulator", Floats)


def versions_not_synced(patch: pytest.MonkeyPatch) -> None:
    """The journal names a version whose file a power cut may tear."""
    init = VersionStore.__init__
    patch.setattr(VersionStore, "__init__", lambda store, folder, *, fsync: init(store, folder, fsync=False))


def payloads_not_synced(patch: pytest.MonkeyPatch) -> None:
    """An update is accepted whose bytes a power cut may take."""
    init = Spool.__init__
    patch.setattr(Spool, "__init__", lambda spool, folder, *, fsync: init(spool, folder, fsync=False))


def seen_before_it_is_durable(patch: pytest.MonkeyPatch) -> None:
    """Tasks go out against a version as soon as its file is there."""
    folded = Progress.folded

    def hasty(progress: Progress, event: events.Folded) -> None:
        folded(progress, event)
        progress._books.versions[event.info.version] = progress._books.current = event.info
        progress._books.kept.add(event.info.version)

    patch.setattr(Progress, "folded", hasty)


def credit_leak(patch: pytest.MonkeyPatch) -> None:
    """An upload whose worker has gone keeps its part of the budget."""

    def keep(uploads: Uploads, upload: Upload) -> None:
        if upload.stage is Stage.MOVING:
            upload.stage = Stage.HELD

    patch.setattr(Uploads, "hold", keep)


def slot_counted_twice(patch: pytest.MonkeyPatch) -> None:
    """An OFFER frees two slots."""
    offered = Workers.offered

    def twice(workers: Workers, worker: Worker, task: bytes) -> None:
        free = worker.session.free if worker.session is not None else 0
        offered(workers, worker, task)
        if worker.session is not None and worker.session.free > free:
            worker.session.free += 1

    patch.setattr(Workers, "offered", twice)


def model_rides_once_for_all(patch: pytest.MonkeyPatch) -> None:
    """A worker that comes back is taken to hold the model that it got in an earlier session."""
    opening = Workers.open

    def forgetful(workers: Workers, worker_id: str, *args: Any) -> Any:
        before = workers.get(worker_id)
        given = before.session.given if before is not None and before.session is not None else -1
        opened = opening(workers, worker_id, *args)
        if isinstance(opened, Worker) and opened.session is not None:
            opened.session.given = given
        return opened

    patch.setattr(Workers, "open", forgetful)


def bases_collected(patch: pytest.MonkeyPatch) -> None:
    """FedAsync keeps no older version for the updates that are still to be mixed in with it."""
    patch.setattr(Config, "reach", 0)


def rests_after_what_is_released(patch: pytest.MonkeyPatch) -> None:
    """A worker in a buffer that waits to be folded may be in the next one."""
    rests = WorkerLedger.rests

    def hasty(ledger: WorkerLedger, worker: str, waiting: Sequence[Buffer]) -> bool:
        return rests(ledger, worker, waiting[-1:])

    patch.setattr(WorkerLedger, "rests", hasty)


def rest_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A restart does not know when a worker had its last part."""
    init = WorkerLedger.__init__

    def fresh(ledger: WorkerLedger, privacy: WorkerPrivacy, parts: dict[str, int], _: dict[str, int]) -> None:
        init(ledger, privacy, parts, {})

    patch.setattr(WorkerLedger, "__init__", fresh)


def charged_a_transaction_later(patch: pytest.MonkeyPatch) -> None:
    """A version is durable before what it cost its workers."""
    apply, owed = Journal.apply, list[VersionRow]()

    def lazy(journal: Journal, rows: Sequence[Row]) -> None:
        paid = owed.copy()
        owed[:] = [row for row in rows if isinstance(row, VersionRow) and row.charged is not None]
        free = [msgspec.structs.replace(row, charged=None) if row in owed else row for row in rows]
        apply(journal, free)
        if paid:
            charge = (
                "INSERT OR REPLACE INTO ledger SELECT worker, count(*), count(*), max(version) FROM updates"
            )
            journal._db.execute(f"{charge} WHERE version IS NOT NULL GROUP BY worker")

    patch.setattr(Journal, "apply", lazy)


def cap_of_what_is_released(patch: pytest.MonkeyPatch) -> None:
    """What is accepted and not yet in a version does not count as spent."""
    capped = WorkerLedger.capped
    patch.setattr(WorkerLedger, "capped", lambda ledger, worker, waiting: capped(ledger, worker, ()))


def another_coin_after_a_kill(patch: pytest.MonkeyPatch) -> None:
    """A broker that starts again has a coin that falls otherwise."""
    init, lives = Coin.__init__, itertools.count()

    def fresh(coin: Coin, master_key: bytes, rate: float) -> None:
        life = next(lives)
        init(coin, master_key + b"again" * bool(life), rate)

    patch.setattr(Coin, "__init__", fresh)


def sampled_round_opened_again(patch: pytest.MonkeyPatch) -> None:
    """A restart flips the coins of those that are there now, instead of going on with the round that is open."""
    recover = Journal.recover

    def forgetful(journal: Journal, *args: Any) -> Recovered:
        return msgspec.structs.replace(recover(journal, *args), round=None)

    patch.setattr(Journal, "recover", forgetful)


def asked_after_it_failed(patch: pytest.MonkeyPatch) -> None:
    """A member of a sampled round that failed gets another try."""

    def wants(plan: SyncPlan, worker: str, buffer: Buffer) -> bool:
        return plan.round is not None and worker in plan.round.members and worker not in buffer.workers

    patch.setattr(SyncPlan, "wants", wants)


def clip_norm_of_the_config(patch: pytest.MonkeyPatch) -> None:
    """A restart clips to what the federation began with."""
    recover = Journal.recover

    def forgetful(journal: Journal, *args: Any) -> Recovered:
        found = recover(journal, *args)
        versions = tuple(
            info if info.clip_norm is None else msgspec.structs.replace(info, clip_norm=0.5)
            for info in found.versions
        )
        return msgspec.structs.replace(found, versions=versions)

    patch.setattr(Journal, "recover", forgetful)


def counted_without_noise(patch: pytest.MonkeyPatch) -> None:
    """The clip norm moves by the bare count."""
    patch.setattr(AdaptiveClipping, "noisy", lambda rule, count, key: count)


def run_seeds_with(private: type[WorkerPrivacy | SampledPrivacy]) -> None:
    """Those of the first seeds whose `[privacy]` table is such a one."""
    for seed in range(4 * SEEDS):
        scenario = draw(seed)
        if isinstance(scenario.config.privacy, private):
            run(scenario)


def run_seeds() -> None:
    for seed in range(SEEDS):
        run(draw(seed))
        if seed % 4 == 0:
            run(full_cohort(seed, faults=True))


PLANTS: list[Patch] = [
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
    refold_with_new_noise,
    ledger_misses_a_release,
    ledger_counts_twice,
    weight_applied_twice,
    summed_in_floats,
    versions_not_synced,
    payloads_not_synced,
    seen_before_it_is_durable,
    credit_leak,
    slot_counted_twice,
    model_rides_once_for_all,
    bases_collected,
]


CHARGED_PLANTS: list[Patch] = [
    rests_after_what_is_released,
    rest_forgotten,
    charged_a_transaction_later,
    cap_of_what_is_released,
]


@pytest.mark.parametrize("plant", CHARGED_PLANTS, ids=lambda plant: plant.__name__)
def test_a_bug_in_what_workers_are_charged_is_found(plant: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a seed whose federation charges them."""
    plant(monkeypatch)
    with pytest.raises(AssertionError, match=r"replay: python -m tests\.simulation\.soak"):
        run_seeds_with(WorkerPrivacy)


SAMPLED_PLANTS: list[Patch] = [
    another_coin_after_a_kill,
    sampled_round_opened_again,
    asked_after_it_failed,
    clip_norm_of_the_config,
    counted_without_noise,
]


@pytest.mark.parametrize("plant", SAMPLED_PLANTS, ids=lambda plant: plant.__name__)
def test_a_bug_in_sampled_rounds_is_found(plant: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a seed whose broker flips coins."""
    plant(monkeypatch)
    with pytest.raises(AssertionError, match=r"replay: python -m tests\.simulation\.soak"):
        run_seeds_with(SampledPrivacy)


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_found(plant: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some seed fails on it, and says how to see it again."""
    plant(monkeypatch)
    with pytest.raises(AssertionError, match=r"replay: python -m tests\.simulation\.soak"):
        run_seeds()
