"""Rounds that a secret coin opens: whom they ask, and when they are over. Pure.

Under worker-level privacy in rounds each worker that is there is asked with probability q, whatever the others do.
Rules that hold here:

- A worker is there while it has a session that does fit tasks and is not silent. Whether it is busy, or rests after it
  failed, does not matter: that would depend on who was asked before.
- Nobody is asked besides those that the coin took, however few they are, or if it took nobody; and nobody is asked
  again who failed, or was sent away by an operator. Who is missing at the end counts as zero.
- The round's row, with those that the coin took, is durable before the first of them is asked. A restart goes on with
  that row.
- A round in which nobody is asked lasts until its deadline, as one whose members do not answer.
"""

from collections.abc import Iterable

from fedmq.fedcore.privacy.sampled_workers import Coin

from .rows import RoundRow
from .sessions import Workers

GONE_FOR_GOOD = frozenset({"evicted", "revoked"})
"""Why a session ended, where its worker will not be let in again during the round."""


class Sampling:
    """How a federation samples its workers.

    Parameters
    ----------
    coin : Coin
        Decides who is asked.
    until_deadline : bool
        Whether every round lasts until its deadline. Then its time does not depend on whom it asked; else it
        is over as soon as all of them have answered.
    """

    __slots__ = ("_coin", "_until_deadline")

    def __init__(self, coin: Coin, *, until_deadline: bool) -> None:
        self._coin = coin
        self._until_deadline = until_deadline

    def plan(self, buffer: int, present: Iterable[str], deadline_s: float) -> RoundRow:
        """The round to open now, given everybody who is there. Without a quorum: it may end with nobody."""
        cohort = tuple(sorted(worker for worker in present if self._coin.takes(buffer, worker)))
        return RoundRow(buffer=buffer, cohort=cohort, target=len(cohort), quorum=0, deadline_s=deadline_s)

    def may_end_early(self, row: RoundRow) -> bool:
        """Whether the round is over when each member has answered or is missing."""
        return bool(row.cohort) and not self._until_deadline


def present(workers: Workers) -> list[str]:
    """The workers that are there: the coin of each is flipped when a round opens."""
    return [w.id for w, session in workers.sessions() if "fit" in session.kinds and not session.suspect]
