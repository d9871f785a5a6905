"""What happened since this process started, as plain numbers: what the mind and the threads count for `/metrics`.

Rules that hold here:

- Counting is an addition to an int. Nobody takes a lock for it, and each number has one thread that writes it; a
  reader in another thread may see a number one event late, which a scrape cannot tell.
- What is counted has a name and labels from closed lists (`metrics.METRICS` has them all). A reason that was
  written for people becomes one of such a list by how it begins, never a label of its own: a label that a peer
  could choose would let it fill the memory of whoever collects them.
- Totals that survive a restart are the journal's (`Books.count`); these do not, as is usual for Prometheus.
"""

import bisect
from collections.abc import Mapping, Sequence

OTHER = "other"

STALENESS = (0, 1, 2, 3, 5, 8, 13, 20, 50, 100)
NORMS = tuple(10.0**power for power in range(-4, 7))
SECONDS = tuple(step * 10.0**power for power in range(-4, 1) for step in (1.0, 2.5, 5.0))
FOLD_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)

RELEASED = {
    "failed": "failed",
    "rejected": "rejected",
    "lost": "lost",
    "left": "left",
    "silent": "silent",
    "evicted": "evicted",
    "too many protocol errors": "protocol",
    "too many messages": "flood",
    "stale": "stale",
    "the connection took another name": "renamed",
    "revoked": "revoked",
}
"""Why a task, or a session, was taken from a worker: how its reason begins, and the label."""

ANSWERED = {
    "task": "task",
    "base": "base",
    "layout": "layout",
    "encoding": "encoding",
    "size": "size",
    "examples": "examples",
    "digest": "digest",
    "payload": "payload",
    "non-finite": "non-finite",
    "norm": "norm",
    "privacy budget": "privacy_budget",
    "privacy separation": "privacy_separation",
    "the round is over": "round",
    "the federation needs": "complete",
    "the federation has": "model",
    "the evaluation is over": "evaluation",
}
"""Why an update was not accepted, likewise."""


class Distribution:
    """How many values fell below each of some bounds, and what all of them add up to.

    Parameters
    ----------
    bounds : sequence of float
        Ascending upper bounds, each included; what is above the last one has a place of its own.

    Examples
    --------
    >>> waits = Distribution([0.1, 1.0])
    >>> for seconds in (0.05, 0.1, 3.0):
    ...     waits.add(seconds)
    >>> waits.counts, round(waits.total, 2)
    ([2, 0, 1], 3.15)
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """One more value."""
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.total += value

    def copy(self) -> "Distribution":
        """The same numbers, which no longer change."""
        same = Distribution(self.bounds)
        same.counts, same.total = list(self.counts), self.total
        return same


class Tally:
    """What the mind counts.

    Attributes
    ----------
    counts : dict
        By name and labels, in one tuple: ``("tasks_sent", "fit")``.
    staleness, norms, folds : Distribution
        Of accepted updates: the versions that they missed, and their L2 norms; seconds that a version took.
    """

    __slots__ = ("counts", "folds", "norms", "staleness")

    def __init__(self) -> None:
        self.counts: dict[tuple[str, ...], int] = {}
        self.staleness = Distribution(STALENESS)
        self.norms = Distribution(NORMS)
        self.folds = Distribution(FOLD_SECONDS)

    def add(self, *what: str) -> None:
        """Count one: a name, and its labels."""
        self.counts[what] = self.counts.get(what, 0) + 1


def reason_label(text: str, known: Mapping[str, str]) -> str:
    """The label of a reason that was written for people: that of the beginning that it has.

    Examples
    --------
    >>> reason_label("norm: 17 is above 10", ANSWERED), reason_label("failed: no such file", RELEASED)
    ('norm', 'failed')
    >>> reason_label("something new", RELEASED)
    'other'
    """
    return next((label for begins, label in known.items() if text.startswith(begins)), OTHER)


def labels(known: Mapping[str, str]) -> tuple[str, ...]:
    """All labels that `reason_label` may give."""
    return (*known.values(), OTHER)
