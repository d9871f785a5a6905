"""One run: the topics one after the other, what was found so far at any time, and what it amounts to."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import msgspec

from ...progress import Moment, Show, View
from . import machine
from .bars import Bar, bars
from .calls import calls, crossovers
from .contest import ROUNDS, Absent, Contest, Result, Topic
from .folds import clipped, encoded
from .means import means
from .peers import Peers
from .robust import distances, medians, trimmed_means
from .vectors import adam, noise
from .workload import Updates, Workload, make_updates

__all__ = ["Found", "measure", "play"]


class Found(msgspec.Struct, kw_only=True):
    """What a run has found; it grows topic by topic, so that an interrupted run has what was measured."""

    workload: Workload
    machine: dict[str, Any]
    results: list[Result] = []
    titles: dict[str, str] = {}
    ours: dict[str, tuple[str, str]] = {}
    absent: list[Absent] = []
    errors: dict[str, float] = {}
    complete: bool = False

    @property
    def title(self) -> str:
        """One line that says what was measured."""
        return f"K = {self.workload.k} updates of n = {self.workload.n:,}, {machine.one_line(self.machine)}"

    @property
    def crossovers(self) -> dict[str, int | None]:
        """From which n native pays."""
        return crossovers(self.results)

    @property
    def bars(self) -> list[Bar]:
        """The twelve bars."""
        return bars(self.results, self.workload, self.errors, self.crossovers)

    def ratio(self, result: Result) -> float | None:
        """How many times as fast the topic's native kernel is with as many threads."""
        ours = (result.topic, "native", *self.ours.get(result.topic, ()), result.threads)
        times = (
            one.median_s
            for one in self.results
            if (one.topic, one.impl, one.kernel, one.mode, one.threads) == ours
        )
        native = next(times, None)
        return None if native is None or result.kernel.startswith("_") else result.median_s / native

    def document(self) -> dict[str, Any]:
        """What ``--json`` writes."""
        folds = [one for one in self.results if one.kernel == "_read4"]
        copies = [one for one in self.results if one.kernel == "_copy" and one.topic == "mean"]
        return {
            "machine": self.machine,
            "n": self.workload.n,
            "k": self.workload.k,
            "complete": self.complete,
            "is_the_bars_size": self.workload.is_the_bars,
            "roofline": {
                "read4_gbps": {str(one.threads): one.gbps for one in folds if one.topic == "mean"},
                "memcpy_gbps": {str(one.threads): one.gbps for one in copies},
                "read4_gbps_by_topic": _by_topic(folds),
            },
            "topics": self.titles,
            "results": [
                {**msgspec.structs.asdict(one), "native_is": self.ratio(one)}
                for one in self.results
                if not one.kernel.startswith("_")
            ],
            "relative_errors": self.errors,
            "crossover_n": self.crossovers,
            "bars": [_finite(msgspec.structs.asdict(bar)) for bar in self.bars],
            "absent": [msgspec.structs.asdict(one) for one in self.absent],
        }


def _finite(bar: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity: a bar that was not met at any size has no figure."""
    return {key: None if value == math.inf else value for key, value in bar.items()}


def _by_topic(limits: list[Result]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for one in limits:
        found.setdefault(one.topic, {})[str(one.threads)] = one.gbps
    return found


def measure(workload: Workload, view: View, found: Found, *, rounds: int = ROUNDS) -> None:
    """Measure everything, into `found`.

    Parameters
    ----------
    workload : Workload
    view : View
        Shows what goes on.
    found : Found
        Grows; also by what was measured of a topic when a KeyboardInterrupt ends it.
    rounds : int
        Turns of every contestant.
    """
    with view.arm("peers") as show:
        show(Moment(note="loading torch and Flower, where they are installed"))
        peers = Peers()
        found.absent = peers.absent
    with view.arm("updates") as show:
        show(Moment(note=f"drawing {workload.k} updates of {workload.n:,} values"))
        updates = make_updates(workload.n, workload.k)
    for name, make in _topics(workload, updates, peers):
        with view.arm(name) as show:
            show(Moment(note="getting ready, and a first turn that is checked and not counted"))
            # No name holds the contest: its models are gone before the next one's are made.
            play(Contest(make(), set_threads=peers.set_threads), found, rounds, partial(_tell, show, rounds))
    found.complete = True


def _tell(show: Show, rounds: int, number: int) -> None:
    show(Moment(note=f"round {number} of {rounds}"))


def play(contest: Contest, found: Found, rounds: int, tell: Callable[[int], None]) -> None:
    """Play one contest; what is measured when an exception ends it is kept as well."""
    topic = contest.topic
    try:
        contest.warm_up()
        contest.play(rounds, tell)
    finally:
        found.titles[topic.name], found.ours[topic.name] = topic.title, topic.ours
        found.results += contest.results()
        found.errors |= topic.errors
        found.absent += contest.absent


def _topics(workload: Workload, updates: Updates, peers: Peers) -> Iterator[tuple[str, Callable[[], Topic]]]:
    """Each topic's contestants are made when it begins and dropped when it ends: they hold whole models."""
    given = (peers, workload.threads)
    yield "calls", partial(calls, peers)
    yield "mean", partial(means, updates, *given)
    yield "clip", partial(clipped, updates, *given)
    for encoding in ("f16", "bf16", "i8"):
        yield encoding, partial(encoded, updates, *given, encoding)
    yield "noise", partial(noise, updates, *given)
    yield "adam", partial(adam, updates, *given)
    half, whole = (make_updates(workload.small_n, k) for k in (workload.k // 2, workload.k))
    yield "median of half", partial(medians, half, *given)
    yield "median", partial(medians, whole, *given)
    yield "trimmed mean", partial(trimmed_means, whole, *given)
    yield "distances", partial(distances, whole, *given)
