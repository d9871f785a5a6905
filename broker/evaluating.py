"""How good each version is: by the workers on their own data, and by an app beside the broker. Pure.

Training never waits for it. A version is measured when it is its turn (`evaluate.every`); the workers' part of it ends
with their answers, at its deadline, or when the next one begins (`evaluations`).
"""

import math

from .books import Books
from .evaluations import Evaluation, combine
from .events import Evaluate, Evaluated
from .rows import EvaluationRow, MetricsRow


class Evaluating:
    """Begins and ends evaluations on the books that it is given."""

    def __init__(self, books: Books) -> None:
        self._books = books

    def recovered(self, evaluations: tuple[EvaluationRow, ...]) -> None:
        """After a start: close the evaluation that the last life left open, with what it had."""
        books = self._books
        federated = books.latest.get("federated")
        if evaluations and (federated is None or federated.version < books.version):
            row = combine(books.version, list(evaluations))
            if row is not None:
                self._measured(row)

    def begin(self, now: float) -> None:
        """Measure the current version, if it is its turn."""
        books = self._books
        settings = books.config.evaluate
        version = books.version
        self._begin_beside()
        if settings.fraction and books.config.privacy is None and self._is_due("federated"):
            self._close()
            able = sorted(
                w.id for w, s in books.workers.sessions() if "evaluate" in s.kinds and w.will_take()
            )
            count = math.ceil(settings.fraction * len(able))
            # Version by version another part of them, the same in every run.
            start = version * count % max(len(able), 1)
            chosen = (able + able)[start : start + count]
            if chosen:
                books.evaluation = Evaluation(version, chosen, now + settings.deadline_s)
                books.look_at_those(chosen)

    def end(self, now: float) -> None:
        """Close the workers' evaluation, if nobody is waited for any more."""
        books = self._books
        evaluation = books.evaluation
        if evaluation is None:
            return
        if books.stopping is not None:  # nobody is waited for who takes no task
            for worker_id in list(evaluation.todo):
                worker = books.workers.get(worker_id)
                if not books.handing_out or worker is None or not worker.will_take():
                    evaluation.drop(worker_id)
        if evaluation.done(now):
            self._close()

    def evaluated(self, event: Evaluated) -> None:
        """The broker-side evaluation of a version ended."""
        books = self._books
        books.measuring = None
        if event.metrics is None:
            books.note("error", "broker-side evaluation failed", version=event.version, reason=event.reason)
        else:
            self._measured(
                MetricsRow(
                    version=event.version, source="broker", metrics=event.metrics, examples=event.examples
                )
            )
        if event.version < books.version and not books.draining:
            self._begin_beside()  # versions were made meanwhile: the newest of them

    def _begin_beside(self) -> None:
        """Let the app beside the broker measure the current version, if it is its turn and the app is idle."""
        books = self._books
        if books.config.evaluate.app and books.measuring is None and self._is_due("broker"):
            books.measuring = books.version
            books.emit(Evaluate(books.version))

    def _is_due(self, source: str) -> bool:
        """Whether the current version is to be measured, and was not."""
        books = self._books
        every = books.config.evaluate.every
        known = books.latest.get(source)
        return bool(every) and not books.version % every and (known is None or known.version < books.version)

    def _close(self) -> None:
        books = self._books
        evaluation, books.evaluation = books.evaluation, None
        if evaluation is not None:
            row = combine(evaluation.version, list(evaluation.rows.values()))
            if row is not None:
                self._measured(row)

    def _measured(self, row: MetricsRow) -> None:
        books = self._books
        books.remember(row)
        books.commit(row)
        shown = {name: round(value, 6) for name, value in row.metrics.items()}
        books.note("info", "version measured", version=row.version, source=row.source, **shown)
