"""What must never happen where workers are charged for their parts in versions: counted here from the rows alone.

- No worker is in more versions than its cap, nor in two less than `min_separation` apart; what is accepted counts.
- What a new life finds in the ledger is one participation for each update in a version, and the last version of each
  worker: no more, for it would lose a part that it may have, and no less, whatever was killed in between.
"""

from fedmq.broker.rows import AcceptRow, Recovered
from fedmq.fedcore.config import WorkerPrivacy


class Parts:
    """The participations of one federation.

    Parameters
    ----------
    privacy : WorkerPrivacy
    """

    def __init__(self, privacy: WorkerPrivacy) -> None:
        self._most = privacy.max_participations
        self._apart = 1 if privacy.correlated is None else privacy.correlated.min_separation
        self._versions = None if privacy.correlated is None else privacy.correlated.versions
        self._ahead: dict[str, list[int]] = {}
        """The versions that each worker is in or will be."""
        self.charged: dict[str, list[int]] = {}
        """The versions that each worker is in."""

    def accepted(self, row: AcceptRow) -> None:
        """An update is durably accepted."""
        versions = self._ahead.setdefault(row.worker, [])
        version = row.buffer + 1
        assert all(abs(version - other) >= self._apart for other in versions), (
            f"{row.worker} is to be in version {version} and was in {versions}: {self._apart} apart at the least"
        )
        versions.append(version)
        assert len(versions) <= self._most, f"{row.worker} is to be in {len(versions)} versions"

    def made(self, version: int, workers: list[str]) -> None:
        """A version is durable."""
        assert self._versions is None or version <= self._versions, (
            "a version that the noise is not planned for"
        )
        for worker in workers:
            self.charged.setdefault(worker, []).append(version)

    def restarted(self, recovered: Recovered) -> None:
        """A new life begins."""
        found = {worker: len(versions) for worker, versions in self.charged.items()}
        assert recovered.participations == found, "the ledger is not what the versions cost"
        last = {worker: max(versions) for worker, versions in self.charged.items()}
        assert recovered.last_parts == last, "the ledger forgot when a worker had its last part"
