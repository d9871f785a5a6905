"""What the broker's mind adds to `/metrics` and `/readyz`. Pure.

It is asked for by the I/O thread alone, between two events, so that everything in one answer is of one moment.
"""

import re

import msgspec

from . import status
from .books import Books
from .metrics import MODEL_METRICS_MAX, RESULTS, STATES, Numbers
from .rounds import AsyncPlan
from .sessions import Phase

_METRIC_NAME = re.compile(r"[A-Za-z0-9_./-]{1,64}")


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One moment of the federation.

    Attributes
    ----------
    state, reason
        As in `fedmq status`.
    version
        The current one; None while there is no model.
    waits_for_model
        Whether a worker is to bring the first model.
    numbers
        By the names of `metrics.METRICS`.
    """

    state: str
    reason: str | None
    version: int | None
    waits_for_model: bool
    numbers: Numbers


def measure(books: Books, now: float) -> Measured:
    """Read the books."""
    state, reason = status.condition(books, now)
    numbers: Numbers = {
        "fedmq_state": {(name,): float(name == state) for name in STATES},
        **_workers(books),
        **_buffers(books),
        **_tallied(books),
        "fedmq_model_metric": _model_metrics(books),
        "fedmq_uploads": len(books.uploads),
        "fedmq_upload_credit_bytes": books.uploads.in_flight(),
        "fedmq_upload_credit_limit_bytes": books.config.network.credit_budget,
    }
    if books.current is not None:
        numbers["fedmq_version"] = books.version
        numbers["fedmq_version_age_seconds"] = now - books.version_at
        if books.current.clip_norm is not None:
            numbers["fedmq_privacy_clip_norm"] = books.current.clip_norm
    if books.planned is not None and books.privacy_left is not None:
        numbers["fedmq_privacy_steps_left"] = books.privacy_left
        numbers["fedmq_privacy_steps_spent"] = books.planned - books.privacy_left
    return Measured(
        state=state,
        reason=reason,
        version=None if books.current is None else books.version,
        waits_for_model=books.current is None,
        numbers=numbers,
    )


def _workers(books: Books) -> Numbers:
    out: dict[tuple[str, ...], float] = dict.fromkeys((("fit",), ("evaluate",), ("init",)), 0.0)
    sessions = suspect = 0
    for worker in books.workers:
        for held in worker.held.values():
            out[(held.kind,)] += held.phase is Phase.SENT
        if worker.session is not None:
            sessions += 1
            suspect += worker.session.suspect
    return {
        "fedmq_tasks_out": out,
        "fedmq_sessions": sessions,
        "fedmq_sessions_suspect": suspect,
        "fedmq_workers_evicted": len(books.evicted),
    }


def _buffers(books: Books) -> Numbers:
    numbers: Numbers = {"fedmq_buffers_waiting": len(books.frozen)}
    if books.current is None:
        return numbers
    numbers["fedmq_buffer_updates"] = len(books.buffer.rows)
    if isinstance(books.plan, AsyncPlan):
        numbers["fedmq_buffer_target_updates"] = books.plan.mode.buffer
    elif books.plan.round is not None:
        numbers["fedmq_buffer_target_updates"] = books.plan.round.row.target
    return numbers


def _tallied(books: Books) -> Numbers:
    tally = books.tally
    counted: dict[str, dict[tuple[str, ...], float]] = {}
    for (name, *labels), number in tally.counts.items():
        counted.setdefault(f"fedmq_{name}_total", {})[tuple(labels)] = number
    # What the three usual answers look like before the first of them.
    updates = counted.setdefault("fedmq_updates_total", {})
    for result in RESULTS:
        if not any(labels[1] == result for labels in updates):
            updates["fit", result, ""] = 0
    numbers: Numbers = {
        # A count without labels is one number.
        name: values[()] if list(values) == [()] else values
        for name, values in counted.items()
    }
    return numbers | {
        "fedmq_staleness_versions": tally.staleness.copy(),
        "fedmq_update_norm": tally.norms.copy(),
        "fedmq_fold_seconds": tally.folds.copy(),
    }


def _model_metrics(books: Books) -> dict[tuple[str, ...], float]:
    """The latest metrics of each source. Workers choose the names: only so many, and only plain ones."""
    found: dict[tuple[str, ...], float] = {}
    for source, row in books.latest.items():
        names = sorted(name for name in row.metrics if _METRIC_NAME.fullmatch(name))
        for name in names[:MODEL_METRICS_MAX]:
            found[source, name] = row.metrics[name]
    return found
