"""Buffers becoming versions, and the end. Pure.

`advance` looks at the books after every event and does what has become due: freeze a complete buffer, fold
the oldest frozen one, open a round or extend it, close an evaluation, stop. Nothing in it depends on *which*
event came, so that a restart, which has no events to remember, goes on the same way.
"""

import itertools

from fedmq.fedcore import wire

from .books import Books
from .evaluating import Evaluating
from .events import (
    Action,
    Collect,
    Commit,
    Discard,
    Exit,
    Fold,
    Folded,
    RoundDurable,
    Send,
    Tell,
    VersionDurable,
)
from .exhaustion import Exhaustion
from .rounds import Buffer, Round, SyncPlan
from .rows import (
    EvaluationRow,
    FinishRow,
    FreezeRow,
    LeftOutRow,
    RoundRow,
    VersionInfo,
    VersionRow,
)

KNOWN_SLACK = 1


class Progress:
    """Moves the books forward."""

    def __init__(self, books: Books, evaluating: Evaluating) -> None:
        self._books = books
        self._evaluating = evaluating
        self._exhaustion = Exhaustion(books)

    def recovered(self, evaluations: tuple[EvaluationRow, ...], now: float) -> None:
        """After a start: go on with the evaluations that the last life left open, and with the current version."""
        books = self._books
        self._evaluating.recovered(evaluations)
        if books.current is not None:
            books.emit(*books.downlink.request(books.version))
            self._evaluating.begin(now)

    def advance(self, now: float) -> None:
        """Do what has become due."""
        books = self._books
        if books.exited:
            return
        if books.current is not None and not books.draining and books.finished is None:
            self._evaluating.end(now)
            self._check_stop(now)
            if isinstance(books.plan, SyncPlan):
                self._round(books.plan, now)
            elif books.stopping is None and books.plan.complete(books.buffer):
                self._freeze("full", [], now)
            self._fold()
        self._end(now)

    def folded(self, event: Folded) -> None:
        """The files of the next version are there: commit it, with all that it consumed and spent."""
        books = self._books
        buffer = books.frozen[0]
        private = books.config.privacy is not None
        spooled = tuple(row.task for row in buffer.rows if row.inline is None)
        assert (event.charged is None) == (books.ledger is None), (
            "a private version that nobody is charged for"
        )
        row = VersionRow(
            info=event.info,
            updates=event.updates,
            examples=event.examples,
            frac_bits=event.frac_bits,
            denominator=event.denominator,
            update_norm=None if private else event.update_norm,
            seconds=event.seconds,
            sigma=event.sigma,
            noise_key=event.noise_key,
            privacy_steps=int(private),
            charged=event.charged,
            whole_run=event.whole_run,
        )
        then: tuple[Action, ...] = (Tell(VersionDurable(event.info)),)
        if spooled and not books.config.storage.keep_payloads:
            then = (Discard(spooled), *then)
        books.commit(row, *books.counter_rows(), then=then)
        books.tally.folds.add(event.seconds)
        books.fold_s = event.seconds
        books.made = event.info.version
        if books.privacy_left is not None:
            books.privacy_left -= 1

    def version_durable(self, info: VersionInfo, now: float) -> None:
        """A version exists for good."""
        books = self._books
        books.versions[info.version] = books.current = info
        books.version_at = now
        books.kept.add(info.version)
        books.emit(*books.downlink.request(info.version))
        if info.version == 0:
            books.buffer = Buffer(0)
            books.made = 0
            # A BEAT that listed the model as not yet acknowledged may have put it back on the books.
            for worker in books.workers.holders():
                for held in [h for h in worker.held.values() if h.kind == "init"]:
                    books.workers.free(worker, held.task)
            books.look_at_all()
        else:
            books.folding = False
            made = books.frozen.popleft()
            if books.ledger is not None:
                books.ledger.charge(made)
        self._forget()
        self._evaluating.begin(now)
        self._collect()

    def round_durable(self, buffer: int) -> None:
        """A round's row is on disk: its tasks may go out."""
        books = self._books
        current = books.plan.round if isinstance(books.plan, SyncPlan) else None
        if current is not None and current.row.buffer == buffer:
            current.durable = True
            books.look_at_those(current.row.cohort)

    def _freeze(self, reason: str, left_out: list[LeftOutRow], now: float) -> None:
        books = self._books
        buffer = books.buffer
        books.commit(FreezeRow(buffer=buffer.number, reason=reason), *left_out)
        books.tally.add("buffers_frozen", reason)
        books.frozen.append(buffer)
        books.buffer = Buffer(buffer.number + 1)
        books.note("info", "buffer frozen", buffer=buffer.number, updates=len(buffer.rows), reason=reason)
        if isinstance(books.plan, SyncPlan):
            books.plan.round = None
            self._cancel_fits(buffer.number, now)
        else:
            # Who may have had to wait for the next one, and whose rest ends with it.
            books.look_at_those(row.worker for row in buffer.rows)
            if books.ledger is not None:
                books.look_at_those(books.ledger.rested((*books.frozen, books.buffer)))

    def _cancel_fits(self, base: int, now: float) -> None:
        """A round is over: call back the tasks of those who did not make it."""
        books = self._books
        for worker in books.workers.holders():
            for held in [h for h in worker.held.values() if h.kind == "fit" and h.version == base]:
                books.workers.free(worker, held.task)
                books.tally.add("cancels_sent", "round_over")
                books.tell(worker, wire.Cancel(task=held.task, reason="the round is over"), now)
                books.discard(held.task)

    def _fold(self) -> None:
        books = self._books
        if books.folding or not books.frozen or books.current is None:
            return
        buffer = books.frozen[0]
        if buffer.number == books.version:
            books.folding = True
            books.commit(then=(Fold(buffer.number, books.current, tuple(buffer.rows)),))

    def _round(self, plan: SyncPlan, now: float) -> None:
        """Open, extend or close the synchronous round."""
        books = self._books
        if plan.round is None:
            self._open_round(plan, now)
            return
        if not plan.round.durable:
            return
        if plan.complete(books.buffer):
            self._freeze("complete", plan.left_out(books.buffer, "late"), now)
        elif plan.expired(now) and plan.enough(books.buffer):
            self._freeze("deadline", plan.left_out(books.buffer, "deadline"), now)
        elif plan.expired(now):
            self._extend_round(plan, plan.round, now)
        elif self._without_evicted(plan, plan.round, now):
            pass
        elif plan.round.substitutes and not plan.private:
            row = plan.extend(self._candidates(now), books.buffer, plan.round.substitutes, restart=False)
            found = len(row.cohort) - len(plan.round.row.cohort)
            if found:
                lost, substitutes = plan.round.lost, plan.round.substitutes - found
                deadline_at = plan.round.deadline_at
                self._journal_round(plan, row, now)
                plan.round.lost, plan.round.substitutes = lost, substitutes
                plan.round.deadline_at = deadline_at

    def _without_evicted(self, plan: SyncPlan, current: Round, now: float) -> bool:
        """Where members were evicted and nobody else can be asked: go on without them, as at a deadline."""
        books = self._books
        gone = books.evicted.intersection(current.row.cohort) - books.buffer.workers
        if not gone or not set(self._candidates(now)) <= set(current.row.cohort):
            return False
        settled = plan.settle(current.row, set(current.row.cohort) - gone, books.buffer)
        if settled == current.row:
            return False
        lost, deadline_at = current.lost, current.deadline_at
        self._journal_round(plan, settled, now)
        assert plan.round is not None
        plan.round.lost, plan.round.deadline_at = lost, deadline_at
        return True

    def _open_round(self, plan: SyncPlan, now: float) -> None:
        """Ask for the next round's row right behind its version's: one transaction takes both."""
        books = self._books
        if books.paused or books.complete or books.buffer.number != books.made:
            return
        if plan.lacking(len(books.workers)):
            return  # without looking at each of them, at every event
        candidates = self._candidates(now)
        if candidates and not plan.lacking(len(candidates)):
            books.tally.add("rounds_opened")
            self._journal_round(plan, plan.plan(books.buffer.number, candidates), now)

    def _extend_round(self, plan: SyncPlan, current: Round, now: float) -> None:
        """At the deadline, without a quorum: ask fresh workers, or go on without the members that have gone."""
        books = self._books
        short = current.row.quorum - len(books.buffer.rows)
        row = plan.extend(self._candidates(now), books.buffer, short, restart=True)
        found = len(row.cohort) - len(current.row.cohort)
        here = {worker.id for worker, _ in books.workers.sessions()}
        settled = plan.settle(row, here, books.buffer)
        given_up = row.quorum - settled.quorum
        books.tally.add("rounds_extended")
        books.note(
            "warning",
            "round extended",
            buffer=row.buffer,
            missing=short,
            cohort=len(row.cohort),
            given_up=given_up,
        )
        lost = current.lost  # why members are missing, for the record
        self._journal_round(plan, settled, now)
        assert plan.round is not None
        plan.round.lost = lost
        plan.round.substitutes = max(short - found - given_up, 0)  # asked as soon as they are there

    def _journal_round(self, plan: SyncPlan, row: RoundRow, now: float) -> None:
        plan.round = Round(row, now, durable=False)
        self._books.commit(row, then=(Tell(RoundDurable(row.buffer)),))

    def _candidates(self, now: float) -> list[str]:
        plan = self._books.plan
        return plan.candidates(self._books.workers, now) if isinstance(plan, SyncPlan) else []

    def _check_stop(self, now: float) -> None:
        books = self._books
        stop = books.config.stop
        if stop.versions and books.version >= stop.versions:
            self._stop(f"made version {books.version}")
        elif stop.seconds and now - books.started >= stop.seconds:
            self._stop(f"ran for {stop.seconds:g} s")
        elif books.privacy_left is not None and books.privacy_left <= 0:
            self._stop("the privacy budget is spent")
        elif (reason := self._exhaustion.reason()) is not None:
            self._stop(reason)
        for row in books.latest.values() if stop.metric else ():
            value = row.metrics.get(stop.metric)
            if value is not None and stop.reached(value):
                self._stop(f"{stop.metric} reached {value:.6g} at version {row.version}")

    def _stop(self, reason: str) -> None:
        books = self._books
        if books.stopping is None:
            books.stopping = reason
            books.note("info", "stopping", reason=reason, version=books.version)

    def _end(self, now: float) -> None:
        """When everything that was under way is done: say goodbye, and exit.

        A broker that was killed at the end of its federation has workers that do not know: the next one
        stays for a moment to tell them, because they would look for it for ever.
        """
        books = self._books
        if books.folding:
            return
        if books.stopping is not None and books.finished is None and not books.draining:
            if books.evaluation is not None or books.measuring is not None:
                return
            books.finished = books.stopping
            books.commit(FinishRow(reason=books.stopping))
        if books.finished is not None and not books.draining and books.awaited and now < books.stay_until:
            if goodbyes := self._goodbyes("finished"):
                books.commit(then=goodbyes)
            for worker, _ in list(books.workers.sessions()):
                books.tally.add("sessions_closed", "finished")
                books.workers.close(worker)
        elif books.finished is not None:
            self._leave("finished", books.finished)
        elif books.draining:
            self._leave("shutdown", "stopped")

    def _leave(self, bye: str, reason: str) -> None:
        books = self._books
        books.exited = True
        books.emit(Commit(books.counter_rows(), (*self._goodbyes(bye), Exit(0, reason))))

    def _goodbyes(self, reason: str) -> tuple[Action, ...]:
        return tuple(
            Send(session.peer, wire.Bye(reason=reason)) for _, session in self._books.workers.sessions()
        )

    def _forget(self) -> None:
        """Drop what no accepted update can refer to any more."""
        books = self._books
        oldest = books.version - books.max_staleness - KNOWN_SLACK
        for task, _ in list(itertools.takewhile(lambda entry: entry[1] < oldest, books.known.items())):
            del books.known[task]
        for version in [v for v in books.versions if v < oldest and v not in books.kept]:
            del books.versions[version]
        for task in books.uploads.older_than(oldest):
            books.discard(task)

    def _collect(self) -> None:
        """Delete files of versions that nothing needs: see `[storage] keep`, and `Config.reach`."""
        books = self._books
        latest = max(books.config.storage.keep, books.config.reach + 1)
        needed = {v for v in books.kept if v > books.version - latest}
        needed |= {version for _, version in books.best.values()}
        needed |= {held.version for worker in books.workers.holders() for held in worker.held.values()}
        if books.evaluation is not None:
            needed.add(books.evaluation.version)
        if books.measuring is not None:
            needed.add(books.measuring)
        gone = tuple(sorted(books.kept - needed))
        if gone:
            books.kept.difference_update(gone)
            books.emit(Collect(gone))
            books.downlink.forget(gone)
