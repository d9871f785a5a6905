"""What `fedmq status` shows of a running broker, as far as its mind knows it. Pure.

Under privacy nothing in it tells who contributed to a round; where a coin decides who is asked, nor who was asked.
"""

from typing import Any

from . import secrecy
from .books import Books
from .rounds import AsyncPlan, Round
from .sessions import Phase, Worker


def report(books: Books, now: float) -> dict[str, Any]:
    """The status as a map of plain values; times are seconds."""
    state, reason = condition(books, now)
    found = {
        "federation": books.config.federation.name,
        "id": books.federation,
        "state": state,
        "reason": reason,
        "version": None if books.current is None else books.version,
        "mode": "async" if isinstance(books.plan, AsyncPlan) else "sync",
        "buffer": _buffer(books),
        "round": _round(books, now),
        "workers": [_worker(books, w, now) for w in sorted(books.workers, key=lambda w: w.name)],
        "uploads": len(books.uploads),
        "metrics": {source: {"version": row.version, **row.metrics} for source, row in books.latest.items()},
        "updates": {
            what: books.counts.get(what, 0)
            for what in ("accepted", "rejected", "stale", "duplicate", "failed", "malformed", "flooded")
        },
        "privacy_steps_left": books.privacy_left,
        # Follows from a noisy count that was charged: it may be shown.
        "clip_norm": None if books.current is None else books.current.clip_norm,
        "ran_s": now - books.started,
    }
    return secrecy.status(found) if books.config.samples_workers else found


def condition(books: Books, now: float) -> tuple[str, str | None]:
    """One word for what the federation is doing, and why if it is not simply running."""
    if books.finished is not None:
        return "finished", books.finished
    if books.draining:
        return "draining", None
    if books.paused:
        return "paused", "by an operator"
    if books.stopping is not None:
        return "draining", books.stopping
    if books.current is None:
        return "stalled", "needs an initial model from a worker"
    if isinstance(books.plan, AsyncPlan):
        live = [w.id for w, s in books.workers.sessions() if "fit" in s.kinds and not s.suspect]
        # Of those that may have no part in it, the ones in the buffer still help to fill it.
        others = [w for w in live if w not in books.buffer.workers]
        spent = sum(map(books.capped, others))
        resting = sum(books.rests(w) and not books.capped(w) for w in others)
        gone = len(set(books.buffer.workers).difference(live))  # whose updates are here all the same
        lacking = books.plan.lacking(len(live) - spent - resting + gone)
        if lacking and (spent or resting):
            return "stalled", f"needs {_workers(lacking)}: {_barred(books, spent, resting)}"
    elif books.plan.round is None and books.buffer.number == books.version:
        lacking = books.plan.lacking(len(books.plan.candidates(books.workers, now)))
    else:
        current = books.plan.round
        if current is not None and current.row.extensions and not books.plan.private:
            short = max(current.row.quorum - len(books.buffer.rows), 0)
            updates = f"{short} more update{'' if short == 1 else 's'}"
            return "stalled", f"needs {updates}; the round was extended {current.row.extensions} times"
        if (
            current is not None
            and current.durable
            and not books.plan.private
            and not _is_at_work(books, current)
        ):
            return "stalled", "nobody works on the round"
        lacking = 0
    if lacking:
        return "stalled", f"needs {_workers(lacking)}"
    return "running", None


def _workers(lacking: int) -> str:
    return f"{lacking} more worker{'s' if lacking > 1 else ''}"


def _barred(books: Books, spent: int, resting: int) -> str:
    """Why workers that are here may have no part in the next version."""
    said = [f"{spent} here ha{'ve' if spent > 1 else 's'} spent the privacy budget"] if spent else []
    if resting:
        assert books.ledger is not None
        has = "have" if resting > 1 else "has"
        said.append(
            f"{resting}{'' if spent else ' here'} {has} been in one of the last {books.ledger.separation - 1} versions "
            "(privacy.correlated.min_separation)"
        )
    return ", ".join(said)


def _is_at_work(books: Books, current: Round) -> bool:
    """Whether a member of the round has a task of it, or may get one."""
    waited = [w for w in current.row.cohort if w not in books.buffer.workers and w not in books.evicted]
    here = [worker for worker in map(books.workers.get, waited) if worker is not None]
    return any(worker.session is not None or worker.held for worker in here)


def _buffer(books: Books) -> dict[str, Any] | None:
    if books.current is None:
        return None
    return {
        "number": books.buffer.number,
        # Under privacy it is not shown who answered. (How many is no secret but where a coin decides: `secrecy`.)
        "have": len(books.buffer.rows) if books.config.privacy is None else None,
        "of": _wanted(books),
        "frozen": len(books.frozen),
    }


def _wanted(books: Books) -> int | None:
    if isinstance(books.plan, AsyncPlan):
        return books.plan.mode.buffer
    return None if books.plan.round is None else books.plan.round.row.target


def _round(books: Books, now: float) -> dict[str, Any] | None:
    if isinstance(books.plan, AsyncPlan) or books.plan.round is None:
        return None
    current = books.plan.round
    private = books.config.privacy is not None
    return {
        "number": current.row.buffer,
        "asked": len(current.row.cohort),
        "have": None if private else len(books.buffer.rows),
        "needed": current.row.quorum,
        "deadline_s": max(current.deadline_at - now, 0.0) if current.row.deadline_s else None,
        "extensions": current.row.extensions,
    }


def _worker(books: Books, worker: Worker, now: float) -> dict[str, Any]:
    doing, version, task = _doing(books, worker)
    private = books.config.privacy is not None
    return {
        "name": worker.name,
        "key": worker.id if books.config.security.keys else None,
        "state": doing,
        "task": None if task is None else task[-16:].hex(),
        "version": version,
        "since_s": now - worker.since,
        "heard_s": None if worker.session is None else now - worker.session.heard,
        "updates": None if private else worker.accepted,
    }


def _doing(books: Books, worker: Worker) -> tuple[str, int | None, bytes | None]:
    """What a worker is doing: its state, and the version and task that it is about.

    Who has no task because of worker-level privacy has *spent* its budget, or is *resting* until `min_separation` lets
    it be in a version again.
    """
    # The oldest that it works on; of results that wait to be taken in the newest.
    working = [h for h in worker.held.values() if h.phase is not Phase.OFFERED]
    held = working[0] if working else next(reversed(worker.held.values()), None)
    version, task = (None, None) if held is None else (held.version, held.task)
    if worker.id in books.evicted:
        return "evicted", version, task
    if worker.session is None:
        return "gone", version, task
    if worker.session.suspect:
        return "suspect", version, task
    if held is None:
        idle = "spent" if books.capped(worker.id) else "resting" if books.rests(worker.id) else "idle"
        return idle, None, None
    if held.phase is Phase.OFFERED:
        return "uploading", version, task
    return {"fit": "training", "evaluate": "evaluating", "init": "initialising"}[held.kind], version, task
