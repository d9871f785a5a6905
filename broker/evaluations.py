"""Federated evaluation: a version is measured by the workers on their own data. Pure.

It goes to the workers that are there when the version is made, one task each, handed out before their
next fit; it ends with all of them, at its deadline, or when the next one begins; training never waits
for it. The result is the mean of each metric, weighted by examples, over the workers that report it.
"""

import math

from .rows import EvaluationRow, MetricsRow


class Evaluation:
    """The measuring of one version.

    Parameters
    ----------
    version : int
        What is measured.
    workers : iterable of str
        Who is asked.
    deadline_at : float
        When it ends without the rest.
    """

    __slots__ = ("_waiting", "asked", "deadline_at", "ready", "rows", "todo", "version")

    def __init__(self, version: int, workers: list[str], deadline_at: float) -> None:
        self.version = version
        self.todo = dict.fromkeys(workers)
        self.ready: dict[str, None] = {}
        """Of those, whom something has happened to: they may take their task now."""
        self.asked = set(workers)
        self._waiting = set(workers)
        self.deadline_at = deadline_at
        self.rows: dict[str, EvaluationRow] = {}

    def add(self, row: EvaluationRow) -> None:
        """A worker answered."""
        self.rows[row.worker] = row
        self._waiting.discard(row.worker)
        self.todo.pop(row.worker, None)

    def drop(self, worker: str) -> None:
        """A worker will not answer."""
        self.asked.discard(worker)
        self._waiting.discard(worker)
        self.todo.pop(worker, None)

    def done(self, now: float) -> bool:
        """Whether nobody is left to wait for, or time is up."""
        return now >= self.deadline_at or not self._waiting


def combine(version: int, rows: list[EvaluationRow]) -> MetricsRow | None:
    """Average each metric, weighted by examples, over the rows that have it.

    Summed exactly and in any order (`math.fsum`), so that who answers first does not show.

    Examples
    --------
    >>> a = EvaluationRow(task=b"1", worker="a", version=3, examples=1, metrics={"loss": 1.0})
    >>> b = EvaluationRow(task=b"2", worker="b", version=3, examples=3, metrics={"loss": 2.0, "accuracy": 0.5})
    >>> combine(3, [a, b]).metrics
    {'accuracy': 0.5, 'loss': 1.75}
    """
    metrics: dict[str, float] = {}
    for name in sorted({name for row in rows for name in row.metrics}):
        having = [row for row in rows if name in row.metrics]
        total = sum(row.examples for row in having)
        if total > 0:
            metrics[name] = math.fsum(row.metrics[name] * row.examples for row in having) / total
    if not metrics:
        return None
    return MetricsRow(
        version=version,
        source="federated",
        metrics=metrics,
        examples=sum(row.examples for row in rows),
        workers=len(rows),
    )
