"""What must never happen where a secret coin decides whom a round asks: the coin is flipped here a second time.

- A round asks nobody whom the coin did not take, and a round that is open asks the same ones ever after, whatever was
  killed in between: no member comes, none goes, and there is neither a quorum nor an extension.
- Nobody is asked who is not in the round, whose update it has already, or who failed in it; nor twice while the
  broker's connection to it stands, but for the very same task.
- A version has rows of its round's sample only.
"""

import hmac
import struct

from fedmq.broker.rows import AcceptRow, RoundRow
from fedmq.fedcore import wire

from .recompute_noise import MASTER_KEY


class Sample:
    """The rounds of one federation.

    Parameters
    ----------
    rate : float
        The probability with which a round asks a worker.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self.rounds: dict[int, RoundRow] = {}
        self.resumed = 0
        """How often a new life found a round open."""
        self._answered: set[tuple[int, str]] = set()
        self._names: dict[bytes, str] = {}
        self._asked: dict[tuple[bytes, int], bytes] = {}

    def takes(self, buffer: int, worker: str) -> bool:
        """Whether the coin of a worker says that a round asks it: the first 64 of 256 secret bits, as a fraction."""
        secret = hmac.digest(b"fedmq coin 1", MASTER_KEY, "sha256")
        drawn = hmac.digest(secret, struct.pack("<q", buffer) + worker.encode() + b"\x01", "sha256")
        return int.from_bytes(drawn[:8], "big") / 2**64 < self._rate

    def opened(self, row: RoundRow) -> None:
        """A round is durable, or durable once more."""
        assert all(self.takes(row.buffer, worker) for worker in row.cohort), "a round asks whom no coin took"
        assert (row.quorum, row.extensions, row.target) == (0, 0, len(row.cohort)), "a round with a quorum"
        before = self.rounds.setdefault(row.buffer, row)
        assert before.cohort == row.cohort, "the coin of a round was flipped again"
        assert set(before.missing) <= set(row.missing) <= set(row.cohort), "a round forgot who failed"
        self.rounds[row.buffer] = row

    def restarted(self, opened: RoundRow | None) -> None:
        """A new life begins, with this round open."""
        self._asked.clear()
        if opened is not None:
            assert opened.cohort == self.rounds[opened.buffer].cohort, "a restart goes on with another round"
            self.resumed += 1

    def hears(self, peer: bytes, hello: wire.Hello) -> None:
        """A worker says who it is."""
        self._names[peer] = hello.name

    def asks(self, peer: bytes, task: wire.Task) -> None:
        """A worker is asked for an update."""
        worker, row = self._names[peer], self.rounds[task.version]
        assert worker in row.cohort, f"{worker} is asked in a round that the coin did not put it into"
        assert (task.version, worker) not in self._answered, f"{worker} is asked for a second update"
        assert worker not in row.missing, f"{worker} is asked again in a round that it failed in"
        assert self._asked.setdefault((peer, task.version), task.task) == task.task, (
            f"{worker} is asked twice"
        )

    def accepted(self, row: AcceptRow) -> None:
        """An update is durable."""
        assert row.worker in self.rounds[row.buffer].cohort, "an update of a worker that no coin took"
        assert self.takes(row.buffer, row.worker)
        self._answered.add((row.buffer, row.worker))
