"""When worker-level privacy ends a federation: fewer than K of those who can ever come have budget left. Pure.

Rules that hold here:

- Who can come is known where there are keys: the allowlist, and one more for each invite that is still open. Without
  keys any new name is a new worker, so that nothing ends, and the status says how many are missing.
- Somebody must have spent its budget. Where too few are enrolled yet, there is nothing to end.
- An evicted worker counts: an operator may let it in again. One that only rests counts, too (`WorkerLedger.rests`): its
  budget is not spent. Both are what the status is for.
- An update in the open buffer is its worker's, whether or not that one may still connect. A buffer that stays short
  of K is never released.
"""

from .books import Books
from .events import Enrolled
from .rounds import AsyncPlan


class Exhaustion:
    """Looks at the books for it; at all workers only when somebody may have come to its cap.

    Parameters
    ----------
    books : Books
    """

    def __init__(self, books: Books) -> None:
        self._books = books
        self._seen: tuple[int, int, Enrolled] | None = None
        """The open buffer's number and updates, and who was enrolled, when there were enough."""

    def reason(self) -> str | None:
        """Why the federation cannot go on; None while it can."""
        books = self._books
        enrolled, plan = books.enrolled, books.plan
        if enrolled is None or books.ledger is None or not isinstance(plan, AsyncPlan):
            return None
        now = (books.buffer.number, len(books.buffer.rows), enrolled)
        if self._seen is not None and now[:2] == self._seen[:2] and enrolled is self._seen[2]:
            return None
        others = [key for key in enrolled.keys if key not in books.buffer.workers]
        spent = sum(map(books.capped, others))
        able = len(books.buffer.workers) + len(others) - spent + enrolled.invites
        if not spent or able >= plan.mode.buffer:
            self._seen = now
            return None
        few = "no worker has" if plan.mode.buffer == 1 else f"fewer than {plan.mode.buffer} workers have"
        return f"{few} privacy budget left"
