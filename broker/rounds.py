"""Buffers and rounds: which update counts where, when a buffer is complete, and who is asked. Pure.

Buffer `b` builds on version `b`. Exactly one buffer is open; those before it are frozen and wait to be
folded, in order. In asynchronous mode a buffer is complete when it has K updates. In synchronous mode it
is a *round*: a cohort is asked, and it is complete at its target, or at its deadline with a quorum.

Nobody waits for ever: a round without its quorum at the deadline is extended with fresh workers, or goes on
without the members that have gone; every worker that is left out is recorded with a reason.
"""

import hashlib
import math
from collections.abc import Iterable

import msgspec

from fedmq.fedcore.config import AsyncMode, SyncMode

from .rows import AcceptRow, LeftOutRow, RoundRow
from .sampling import GONE_FOR_GOOD, Sampling, present
from .sessions import Workers


class Buffer:
    """Updates accepted for one version."""

    __slots__ = ("number", "rows", "workers")

    def __init__(self, number: int, rows: Iterable[AcceptRow] = ()) -> None:
        self.number = number
        self.rows: list[AcceptRow] = []
        self.workers: set[str] = set()
        for row in rows:
            self.add(row)

    def add(self, row: AcceptRow) -> None:
        """Put an accepted update in."""
        self.rows.append(row)
        self.workers.add(row.worker)


class AsyncPlan:
    """When to hand out and when to freeze, asynchronously (FedBuff).

    References
    ----------
    Nguyen et al., *Federated Learning with Buffered Asynchronous Aggregation*, arXiv:2106.06639.
    """

    def __init__(self, mode: AsyncMode) -> None:
        self.mode = mode

    def complete(self, buffer: Buffer) -> bool:
        """Whether the buffer is full."""
        return len(buffer.rows) >= self.mode.buffer

    def needed(self, buffer: Buffer) -> int:
        """How many more updates make the buffer full."""
        return max(self.mode.buffer - len(buffer.rows), 0)

    def lacking(self, workers: int) -> int:
        """How many more workers it takes before the buffer can ever be full."""
        return max(self.mode.buffer - workers, 0) if self.mode.one_per_worker else max(1 - workers, 0)


class Round:
    """An open round."""

    __slots__ = ("deadline_at", "durable", "lost", "members", "row", "substitutes")

    def __init__(self, row: RoundRow, now: float, *, durable: bool) -> None:
        self.row = row
        self.members = frozenset(row.cohort)
        self.durable = durable
        """Whether tasks may go out. Updates may come in before that: their rows follow the round's."""
        self.deadline_at = now + row.deadline_s if row.deadline_s else math.inf
        self.lost: dict[str, str] = {}
        """Members that lost their task once, and why; each calls for one substitute."""
        self.substitutes = 0
        """Workers that should be asked besides, when there are any."""


class SyncPlan:
    """Whom a round asks, and when it is over (FedAvg).

    Parameters
    ----------
    mode : SyncMode
        The `[mode]` table.
    seed : int
        The federation's seed: with it the choice among the same candidates repeats.
    private : bool
        The round is a release of a private mechanism: it waits for its cohort or the deadline and ends
        with what it has, however little; a member that failed is missing, and is not asked again.
    sampling : Sampling, optional
        Where a secret coin decides who is asked.

    References
    ----------
    McMahan et al., *Communication-Efficient Learning of Deep Networks from Decentralized Data*,
    arXiv:1602.05629; Bonawitz et al., *Towards Federated Learning at Scale*, arXiv:1902.01046 (over-selection).
    """

    def __init__(self, mode: SyncMode, seed: int, *, private: bool, sampling: Sampling | None = None) -> None:
        self.mode = mode
        self._seed = seed
        self.private = private
        self.sampling = sampling
        self.round: Round | None = None

    def lacking(self, candidates: int) -> int:
        """How many more workers it takes to open a round."""
        return max(self.mode.min_available - candidates, 0)

    def candidates(self, workers: Workers, now: float) -> list[str]:
        """Everybody who could take part in a round that opens now."""
        if self.sampling is not None:
            return present(workers)
        return [worker.id for worker, _ in workers.sessions() if worker.soon("fit", now)]

    def plan(self, buffer: int, candidates: list[str]) -> RoundRow:
        """The round to open now, given everybody who could take part (at least `min_available`)."""
        if self.sampling is not None:
            return self.sampling.plan(buffer, candidates, self.mode.deadline_s)
        target = min(self.mode.clients_per_round or len(candidates), len(candidates))
        asked = min(math.ceil(target * self.mode.over_selection), len(candidates))
        return RoundRow(
            buffer=buffer,
            cohort=tuple(self._choose(buffer, candidates, asked)),
            target=target,
            quorum=min(self.mode.min_updates or target, target),
            deadline_s=self.mode.deadline_s,
        )

    def extend(self, candidates: list[str], buffer: Buffer, count: int, *, restart: bool) -> RoundRow:
        """The same round with up to `count` fresh members; `restart` begins its deadline again."""
        assert self.round is not None
        row = self.round.row
        fresh = [c for c in candidates if c not in row.cohort and c not in buffer.workers]
        chosen = self._choose(buffer.number, fresh, min(count, len(fresh)))
        return msgspec.structs.replace(
            row, cohort=row.cohort + tuple(chosen), extensions=row.extensions + restart
        )

    def settle(self, row: RoundRow, here: set[str], buffer: Buffer) -> RoundRow:
        """The same round without the members that have gone, where it is after everybody it asked.

        A quorum that an operator set stands, and so does `min_available`: below it the round goes on waiting.
        """
        able = sum(worker in here or worker in buffer.workers for worker in row.cohort)
        if self.private or self.mode.min_updates or not self.mode.min_available <= able < row.quorum:
            return row
        return msgspec.structs.replace(row, target=able, quorum=able)

    def wants(self, worker: str, buffer: Buffer) -> bool:
        """Whether the open round still needs this worker's update."""
        current = self.round
        return (
            current is not None
            and worker in current.members
            and worker not in buffer.workers
            and worker not in current.row.missing
        )

    def lost(self, worker: str, version: int, reason: str, *, failed: bool) -> RoundRow | None:
        """A member will not finish the task that it had, or failed at it; the round's row if that changes it."""
        current = self.round
        if current is None or current.row.buffer != version or worker not in current.members:
            return None
        if worker not in current.lost:
            current.lost[worker] = reason
            current.substitutes += 1
        is_missing = (failed and self.private) or (self.sampling is not None and reason in GONE_FOR_GOOD)
        if not is_missing or worker in current.row.missing:
            return None
        # Asked again it would draw another sample, and the accountant counts one.
        current.row = msgspec.structs.replace(current.row, missing=(*current.row.missing, worker))
        return current.row

    def complete(self, buffer: Buffer) -> bool:
        """Whether the round has what it is after (or, privately, nobody left to wait for)."""
        if self.round is None:
            return False
        if self.private:
            row = self.round.row
            if self.sampling is not None and not self.sampling.may_end_early(row):
                return False
            return all(worker in buffer.workers or worker in row.missing for worker in row.cohort)
        return len(buffer.rows) >= self.round.row.target

    def needed(self, buffer: Buffer) -> int:
        """How many more updates the round is after."""
        if self.round is None:
            return 0
        row = self.round.row
        return max((len(row.cohort) if self.private else row.target) - len(buffer.rows), 0)

    def expired(self, now: float) -> bool:
        """Whether the deadline has passed."""
        return self.round is not None and self.round.durable and now >= self.round.deadline_at

    def enough(self, buffer: Buffer) -> bool:
        """Whether the round may end at its deadline with this."""
        return self.private or (self.round is not None and len(buffer.rows) >= self.round.row.quorum)

    def left_out(self, buffer: Buffer, reason: str) -> list[LeftOutRow]:
        """A row for each member whose update is not in the buffer.

        Not under privacy: who answered is not published, and a row would say it.
        """
        if self.round is None or self.private:
            return []
        return [
            LeftOutRow(buffer=buffer.number, worker=w, reason=self.round.lost.get(w, reason))
            for w in self.round.row.cohort
            if w not in buffer.workers
        ]

    def _choose(self, buffer: int, candidates: list[str], count: int) -> list[str]:
        def rank(worker: str) -> bytes:
            text = f"{self._seed}/{buffer}/{worker}".encode()
            return hashlib.blake2b(text, digest_size=16, person=b"fedmq cohort 1").digest()

        return sorted(sorted(candidates, key=rank)[:count])
