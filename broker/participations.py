"""How often each worker had a part in a released version, and who may have another. Pure.

Rules that hold here:

- What is committed is the journal's: a version and the charge for it are one transaction. This is the mind's copy.
- An update that is accepted will be in a version, whatever happens; so a worker is at its cap as soon as what it has
  spent, what is frozen and what is buffered reach it together.
- Participation is public; what a worker's update held never shows here. A zero, or an update that is not finite,
  costs as much as any other.
- The unit is the principal: a CURVE key, without keys a name. Whoever comes back under another one is another unit.
"""

from collections.abc import Iterable

from fedmq.fedcore.config import WorkerPrivacy

from .rounds import Buffer


class WorkerLedger:
    """The participations of all workers.

    Parameters
    ----------
    privacy : WorkerPrivacy
        The table, for its cap.
    participations : dict
        What the journal holds.
    """

    def __init__(self, privacy: WorkerPrivacy, participations: dict[str, int]) -> None:
        self._cap = privacy.max_participations
        self._spent = dict(participations)

    def capped(self, worker: str, waiting: Iterable[Buffer]) -> bool:
        """Whether this worker may have no further part, given the buffers that are not versions yet."""
        ahead = sum(worker in buffer.workers for buffer in waiting)  # at most one update in each
        return self._spent.get(worker, 0) + ahead >= self._cap

    def charge(self, buffer: Buffer) -> None:
        """The version that this buffer made is durable, and so is its charge."""
        for worker in buffer.workers:
            self._spent[worker] = self._spent.get(worker, 0) + 1
