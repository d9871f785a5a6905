"""How often each worker had a part in a released version, when it had its last, and who may have another. Pure.

Rules that hold here:

- What is committed is the journal's: a version and the charge for it are one transaction. This is the mind's copy.
- An update that is accepted will be in a version, whatever happens; so a worker is at its cap as soon as what it has
  spent, what is frozen and what is buffered reach it together. Likewise it rests after a version that is still to be
  made: correlated noise hides two parts of a worker only where they are `min_separation` versions apart.
- Participation is public; what a worker's update held never shows here. A zero, or an update that is not finite,
  costs as much as any other.
- The unit is the principal: a CURVE key, without keys a name. Whoever comes back under another one is another unit.
"""

from collections.abc import Iterable, Sequence

from fedmq.fedcore.config import WorkerPrivacy

from .rounds import Buffer


class WorkerLedger:
    """The participations of all workers.

    Parameters
    ----------
    privacy : WorkerPrivacy
        The table, for its cap, and how far apart parts must be.
    participations : dict
        What the journal holds.
    last_parts : dict
        Likewise: the last version that each was in.
    """

    def __init__(
        self, privacy: WorkerPrivacy, participations: dict[str, int], last_parts: dict[str, int]
    ) -> None:
        self._cap = privacy.max_participations
        self._spent = dict(participations)
        self._last = dict(last_parts)
        self.separation = 1 if privacy.correlated is None else privacy.correlated.min_separation
        """b: a worker in version t may be in version t + b next."""

    def capped(self, worker: str, waiting: Iterable[Buffer]) -> bool:
        """Whether this worker may have no further part, given the buffers that are not versions yet."""
        ahead = sum(worker in buffer.workers for buffer in waiting)  # at most one update in each
        return self._spent.get(worker, 0) + ahead >= self._cap

    def rests(self, worker: str, waiting: Sequence[Buffer]) -> bool:
        """Whether this worker's next update would come too soon after its last one.

        Parameters
        ----------
        waiting : sequence of Buffer
            Those that are not versions yet, oldest first; the last one is open.
        """
        if self.separation == 1:
            return False  # one update a buffer, and that is all
        ahead = (buffer.number + 1 for buffer in reversed(waiting) if worker in buffer.workers)
        last = next(ahead, self._last.get(worker))
        return last is not None and waiting[-1].number + 1 < last + self.separation

    def rested(self, waiting: Sequence[Buffer]) -> list[str]:
        """The workers whose rest ends with the open buffer, the last one: it is the first that they may be in again."""
        last = waiting[-1].number + 1 - self.separation
        ahead = [row.worker for buffer in waiting if buffer.number + 1 == last for row in buffer.rows]
        return ahead or [worker for worker, version in self._last.items() if version == last]

    def charge(self, buffer: Buffer) -> None:
        """The version that this buffer made is durable, and so is its charge."""
        for worker in buffer.workers:
            self._spent[worker] = self._spent.get(worker, 0) + 1
            self._last[worker] = buffer.number + 1
