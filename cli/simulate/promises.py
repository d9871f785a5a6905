"""What a broker's body owes its mind: a commit's `then` follows when its rows, and all before them, are durable."""

from collections import deque
from collections.abc import Callable, Iterable

from fedmq.broker.events import Action, Commit


class Promises:
    """Commits that were asked for and are not durable yet, in order.

    Parameters
    ----------
    carry_out : callable
        Carries out the actions of a commit whose time has come.
    """

    def __init__(self, carry_out: Callable[[Iterable[Action]], None]) -> None:
        self._carry_out = carry_out
        self._commits: deque[Commit] = deque()

    def __len__(self) -> int:
        return len(self._commits)

    def add(self, commit: Commit) -> bool:
        """Take a commit; whether it has rows, which are to be written. One without waits for those before it."""
        if not commit.rows and not self._commits:
            self._carry_out(commit.then)
            return False
        self._commits.append(commit)
        return bool(commit.rows)

    def keep(self, commits: int) -> None:
        """So many more commits with rows are durable."""
        for _ in range(commits):
            self._carry_out(self._commits.popleft().then)
            while self._commits and not self._commits[0].rows:
                self._carry_out(self._commits.popleft().then)
